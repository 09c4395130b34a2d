"""Search as a client meets it: places with typing mistakes, rides on sale with free seats by leg, pages, popular routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api import booking, network, search
from tests.booking_world import PARTNER, STOPS
from tests.seat_house import SeatHouse, problem

NAMES = {
    "A": "Gare routière d'Alger - Kharouba",
    "B": "Blida",
    "C": "Béjaïa",
    "D": "Sétif Centre",
    "E": "Constantine",
    "F": "Annaba, gare",
}


@pytest.fixture
async def house(database_url: str, redis_url: str) -> AsyncIterator[SeatHouse]:
    house = await SeatHouse.make(database_url, redis_url, (*network.ROUTERS, *search.ROUTERS, *booking.ROUTERS))
    await name_stops(house)
    yield house
    await house.close()


async def name_stops(house: SeatHouse) -> None:
    """What the stops are called; a trip that goes on sale afterwards calls them Stop A, Stop B again."""
    for stop, name in NAMES.items():
        await house.world.run("update sale.trip_stop set name = $2 where stop_id = $1", f"demo:{stop}", name)
        await house.world.run("update sale.place set name = $2 where stop_id = $1", f"demo:{stop}", name)


async def rides(house: SeatHouse, origin: str = "demo:A", destination: str = "demo:F", **more: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await house.get("/v1/routes", origin=origin, destination=destination, **more))["items"]
    return found


def forget(house: SeatHouse) -> None:
    """Search as a worker that was just started."""
    house.desk.search._rides._kept.clear()
    house.desk.search._founds._kept.clear()


async def test_a_ride_has_the_shape_of_the_contract(house: SeatHouse) -> None:
    [ride] = await rides(house)
    assert ride.keys() >= {"routeId", "tripId", "from", "to", "departsAt", "arrivesAt", "seatsFree", "priceFrom"}
    assert (ride["tripId"], ride["from"], ride["to"]) == (house.world.trip_id, "demo:A", "demo:F")
    assert ride["seatsFree"] == 12
    assert ride["priceFrom"]["currency"] == "DZD" and ride["priceFrom"]["amount"] > 0
    assert ride["durationS"] == 150 * 60 and ride["stops"] == 6
    seats = {"seats": ["1A"], "from": ride["from"], "to": ride["to"]}
    held = await house.http.post(f"/v1/trips/{ride['tripId']}/holds", json=seats, headers={"Idempotency-Key": "k"})
    assert held.status_code == 201, "what a search says goes straight into a hold"
    assert held.json()["total"] == ride["priceFrom"]


async def test_places_are_found_by_name_with_mistakes_by_point_and_by_id(house: SeatHouse) -> None:
    for origin, destination in (
        ("Alger", "Annaba"),
        ("ALGER", "anaba"),
        ("algre", "Annabba"),
        ("36.7001,3.0002", "Annaba"),
        ("demo:A", "gare annaba"),
    ):
        assert [(ride["from"], ride["to"]) for ride in await rides(house, origin, destination)] == [("demo:A", "demo:F")], origin


async def test_accents_do_not_matter_either_way(house: SeatHouse) -> None:
    for origin, destination in (("bejaia", "setif"), ("BÉJAÏA", "Sétif"), ("Bejaïa", "SETIF")):
        assert [(ride["from"], ride["to"]) for ride in await rides(house, origin, destination)] == [("demo:C", "demo:D")]


async def test_names_in_another_script_are_found_with_a_mistake(house: SeatHouse) -> None:
    await house.world.run("update sale.place set name = $2 where stop_id = $1", "demo:A", "محطة الجزائر")
    await house.world.run("update sale.place set name = $2 where stop_id = $1", "demo:F", "Москва Центр")
    assert len(await rides(house, "الجزاير", "МОСКВА")) == 1


async def test_an_unknown_place_or_the_way_back_has_no_rides(house: SeatHouse) -> None:
    assert await rides(house, "Timbuktu", "Annaba") == []
    assert await rides(house, "Annaba", "Alger") == []
    assert await rides(house, "0,0", "Annaba") == []


async def test_free_seats_are_counted_by_leg_and_a_hold_that_is_over_takes_none(house: SeatHouse) -> None:
    made = await house.world.hold("1A", "1B", frm="demo:A", to="demo:C")
    await house.world.hold("1A", frm="demo:C", to="demo:D")
    assert [(await rides(house, "demo:A", to))[0]["seatsFree"] for to in ("demo:B", "demo:F")] == [10, 10]
    assert [(await rides(house, begin, "demo:F"))[0]["seatsFree"] for begin in ("demo:C", "demo:D")] == [11, 12]
    await house.world.age(made.held.booking, 3600)
    forget(house)
    assert (await rides(house))[0]["seatsFree"] == 11
    assert await rides(house, passengers=12) == []
    assert len(await rides(house, passengers=11)) == 1


async def test_trips_that_left_are_closed_or_cancelled_are_not_offered(house: SeatHouse) -> None:
    world = house.world
    await world.trip(departs_in=timedelta(hours=-1))
    closed, _ = await world.trip(departs_in=timedelta(hours=3))
    await world.run("update sale.trip_instance set sales_open = false where trip_id = $1", closed)
    cancelled, _ = await world.trip(departs_in=timedelta(hours=4))
    await world.run("update sale.trip_instance set status = 'CANCELLED' where trip_id = $1", cancelled)
    assert [ride["tripId"] for ride in await rides(house)] == [world.trip_id]


async def test_nobody_gets_in_where_the_trip_takes_nobody(house: SeatHouse) -> None:
    await house.world.run("update sale.trip_stop set pickup = false where stop_id = 'demo:B'")
    await house.world.run("update sale.trip_stop set drop_off = false where stop_id = 'demo:C'")
    assert await rides(house, "demo:B", "demo:F") == []
    assert await rides(house, "demo:A", "demo:C") == []
    assert len(await rides(house, "demo:C", "demo:F")) == 1


async def test_a_date_means_the_local_day_of_departure(house: SeatHouse) -> None:
    [ride] = await rides(house)
    leaves = datetime.fromisoformat(ride["departsAt"]) + timedelta(hours=1)  # Africa/Algiers
    assert len(await rides(house, date=leaves.date().isoformat())) == 1
    assert await rides(house, date=(leaves.date() + timedelta(days=1)).isoformat()) == []
    assert await rides(house, date=(leaves.date() - timedelta(days=1)).isoformat()) == []


async def test_rides_are_sorted_and_paged_without_gaps(house: SeatHouse) -> None:
    for hours in (5, 3, 9, 7):
        await house.world.trip(departs_in=timedelta(hours=hours))
    short, _ = await house.world.trip(departs_in=timedelta(hours=11), stops=("A", "F"))
    whole = await rides(house)
    assert len(whole) == 6
    assert [ride["departsAt"] for ride in whole] == sorted(ride["departsAt"] for ride in whole)
    for sort, key in (("price", lambda r: r["priceFrom"]["amount"]), ("duration", lambda r: r["durationS"])):
        found = await rides(house, sort=sort)
        assert [key(ride) for ride in found] == sorted(key(ride) for ride in found)
    assert (await rides(house, sort="duration"))[0]["tripId"] == short
    seen, cursor = [], None
    while True:
        params = {"origin": "demo:A", "destination": "demo:F", "limit": 4} | ({"cursor": cursor} if cursor else {})
        page = await house.get("/v1/routes", **params)
        seen += [ride["tripId"] for ride in page["items"]]
        cursor = page["nextCursor"]
        if cursor is None:
            break
    assert seen == [ride["tripId"] for ride in whole]


async def test_a_search_is_at_most_three_calls_to_the_database_however_many_trips(house: SeatHouse) -> None:
    for hours in range(1, 9):
        await house.world.trip(departs_in=timedelta(hours=hours))
    await name_stops(house)
    calls = 0
    pool = house.desk.pool
    run, call = pool.run, pool.call

    async def counted_run(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return await run(*args)

    async def counted_call(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return await call(*args)

    pool.run, pool.call = counted_run, counted_call  # type: ignore[method-assign]
    assert len(await rides(house, "Alger", "Annaba")) == 9
    assert calls <= 3
    calls = 0
    await rides(house, "Alger", "Annaba")
    assert calls == 0, "within a second it is remembered"


async def test_bad_searches_say_what_is_wrong(house: SeatHouse) -> None:
    for params, pointer in (
        ({"origin": "demo:A"}, "/destination"),
        ({"destination": "demo:A"}, "/origin"),
        ({"origin": "91,0", "destination": "demo:A"}, "/origin"),
        ({"origin": " ", "destination": "demo:A"}, "/origin"),
        ({"origin": "A\x00", "destination": "demo:A"}, "/origin"),
        ({"origin": "demo:A", "destination": "demo:F", "date": "tomorrow"}, "/date"),
        ({"origin": "demo:A", "destination": "demo:F", "date": "1999-01-01"}, "/date"),
    ):
        refused = problem(await house.http.get("/v1/routes", params=params), 400, "INVALID")
        assert [error["pointer"] for error in refused["errors"]] == [pointer]
    for params in ({"passengers": "0"}, {"passengers": "x"}, {"sort": "beauty"}, {"cursor": "never-given"}, {"limit": "0"}):
        answer = await house.http.get("/v1/routes", params={"origin": "demo:A", "destination": "demo:F", **params})
        problem(answer, 400, "INVALID")


# --- places, popular routes ---


async def test_places_are_suggested_while_somebody_types(house: SeatHouse) -> None:
    for typed, wanted in (("cons", "demo:E"), ("Setif", "demo:D"), ("kharouba", "demo:A"), ("bejia", "demo:C")):
        items = (await house.get("/v1/places", q=typed))["items"]
        assert items[0]["id"] == wanted, typed
        assert items[0].keys() >= {"id", "name", "kind"} and items[0]["sold"] is True
    assert (await house.get("/v1/places", q="zzzz"))["items"] == []
    problem(await house.http.get("/v1/places"), 400, "INVALID")


async def test_stops_of_the_network_are_suggested_after_those_of_sold_trips(house: SeatHouse) -> None:
    run = house.world.run
    await run("insert into network.feed (feed_id, partner_id) values ('city', $1)", PARTNER)
    await run(
        """with v as (insert into network.feed_version (feed_id, version, sha256, timezone) values ('city', '1', repeat('0', 64), 'UTC')
             returning version_id), a as (update network.feed set active_version_id = (select version_id from v) where feed_id = 'city')
        insert into network.stop (version_id, stop_id, name, lat, lon, location_type, wheelchair)
          select version_id, 'S1', 'Constantine Nord', 36.4, 6.6, 0, 0 from v"""
    )
    items = (await house.get("/v1/places", q="constantine"))["items"]
    assert [(item["id"], item["sold"]) for item in items] == [("demo:E", True), ("city:S1", False)]


async def test_routes_that_are_booked_most_come_first_and_without_bookings_all_that_are_sold(house: SeatHouse) -> None:
    world = house.world
    other, _ = await world.trip(stops=STOPS[:3])
    await world.run("update sale.trip_instance set route_id = 'demo:R0' where trip_id = $1", other)
    assert [item["routeId"] for item in (await house.get("/v1/routes/popular"))["items"]] == ["demo:R0", "demo:R1"]
    await world.confirmed("1A")
    await world.hold("2A", trip=other, to="demo:C")
    house.desk.search._popular = None
    items = (await house.get("/v1/routes/popular"))["items"]
    assert [(item["routeId"], item["bookings"]) for item in items] == [("demo:R1", 1), ("demo:R0", 0)]


async def test_a_ride_booked_on_another_worker_is_seen_within_a_second(house: SeatHouse) -> None:
    assert (await rides(house))[0]["seatsFree"] == 12
    await house.world.hold("1A")
    good_until = [until for until, _ in house.desk.search._founds._kept.values()]
    assert all(until <= datetime.now(UTC).timestamp() * 1000 + 1_000 for until in good_until)
    forget(house)
    assert (await rides(house))[0]["seatsFree"] == 11
