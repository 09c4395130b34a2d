"""Seat maps and picks as a client meets them: states by leg, prices, versions, conditional reads, and refusals that name each seat."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from api import booking, seats
from engine.booking.seatmaps import SeatMaps
from tests.booking_world import LAYOUT
from tests.seat_house import SeatHouse, problem


@pytest.fixture
async def house(database_url: str, redis_url: str) -> AsyncIterator[SeatHouse]:
    house = await SeatHouse.make(database_url, redis_url, (*booking.ROUTERS, *seats.ROUTERS))
    yield house
    await house.close()


def path(house: SeatHouse, what: str) -> str:
    return f"/v1/trips/{house.world.trip_id}/{what}"


# --- the seat map ---


async def test_a_seat_map_has_the_shape_of_the_contract(house: SeatHouse) -> None:
    shown = await house.get(path(house, "seats"))
    assert shown.keys() >= {"tripId", "mapVersion", "version", "epoch", "decks", "seats"}
    assert shown["mapVersion"] == 1
    assert (shown["from"], shown["to"]) == ("demo:A", "demo:F")
    assert shown["onSale"] is True
    assert shown["decks"][0] == {**LAYOUT["decks"][0], "name": "", "driver": None, "doors": [], "toilets": [], "stairs": []}
    first = shown["seats"][0]
    assert first["seat"] == "1A" and first["kind"] == "STANDARD" and first["state"] == "FREE" and first["untilMs"] is None
    assert first["price"]["currency"] == "DZD" and first["price"]["amount"] > 0
    assert len(shown["seats"]) == shown["free"] == 12


async def test_a_seat_from_a_to_b_is_free_from_b_to_c(house: SeatHouse) -> None:
    await house.world.hold("1A", frm="demo:A", to="demo:C")
    await house.pick("1B", frm="demo:A", to="demo:C")
    assert (await house.states())["1A"] == "TAKEN"
    assert (await house.states())["1B"] == "PICKED"
    rest = await house.states(**{"from": "demo:C", "to": "demo:F"})
    assert rest["1A"] == rest["1B"] == "FREE"
    begin = await house.states(**{"from": "2", "to": "3"})
    assert begin["1A"] == "TAKEN", "a stop sequence does as well"


async def test_the_fare_of_half_the_way_is_less(house: SeatHouse) -> None:
    whole, half = [
        (await house.get(path(house, "seats"), **{"from": "demo:A", "to": to}))["seats"][0]["price"]["amount"]
        for to in ("demo:F", "demo:C")
    ]
    assert 0 < half < whole


async def test_a_hold_past_its_end_is_free_before_anybody_swept_it(house: SeatHouse) -> None:
    made = await house.world.hold("1A")
    assert (await house.states())["1A"] == "TAKEN"
    await house.world.age(made.held.booking, 3600)
    assert (await house.states())["1A"] == "FREE"
    assert (await house.get(path(house, "seats")))["free"] == 12


async def test_blocked_seats_say_so(house: SeatHouse) -> None:
    layout: dict[str, Any] = {**LAYOUT, "seats": [{**seat, "blocked": seat["label"] == "1A"} for seat in LAYOUT["seats"]]}
    house.world.trip_id, _ = await house.world.trip(layout=layout)
    shown = await house.states()
    assert shown["1A"] == "BLOCKED" and shown["1B"] == "FREE"
    problem(await house.pick("1A"), 400, "INVALID")


async def test_a_map_is_304_until_something_changes(house: SeatHouse) -> None:
    first = await house.http.get(path(house, "seats"))
    assert first.headers["etag"]
    again = await house.http.get(path(house, "seats"), headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == first.headers["etag"]
    await house.world.hold("1A")
    changed = await house.http.get(path(house, "seats"), headers={"If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200 and changed.headers["etag"] != first.headers["etag"]


async def test_the_version_is_where_the_channel_stands(house: SeatHouse) -> None:
    await house.pick("1A", "1B")
    shown = await house.get(path(house, "seats"))
    log = await house.world.redis.channel_log(f"seats:{house.world.trip_id}", 0)
    assert (shown["epoch"], shown["version"]) == (log.epoch, log.offset) == (log.epoch, 2)


async def test_after_a_bus_swap_the_new_map_is_shown(house: SeatHouse) -> None:
    await house.get(path(house, "seats"))
    world = house.world
    await world.run(
        """insert into sale.seat_map (trip_no, map_version, partner_id, seats, labels, layout)
        select trip_no, 2, partner_id, seats, labels, layout from sale.seat_map where trip_no = $1""",
        world.trip_no,
    )
    await world.run("update sale.trip_instance set map_version = 2 where trip_no = $1", world.trip_no)
    assert (await house.get(path(house, "seats")))["mapVersion"] == 2


async def test_stops_that_make_no_ride_are_named(house: SeatHouse) -> None:
    for params, code in (
        ({"from": "demo:X"}, "UNKNOWN_STOP"),
        ({"from": "demo:C", "to": "demo:C"}, "WRONG_DIRECTION"),
        ({"from": "demo:D", "to": "demo:B"}, "WRONG_DIRECTION"),
        ({"from": "999999"}, "UNKNOWN_STOP"),
    ):
        answer = await house.http.get(path(house, "seats"), params=params)
        assert problem(answer, 400, "INVALID")["errors"][0]["code"] == code


async def test_an_unknown_trip_is_not_found(house: SeatHouse) -> None:
    for trip in ("demo:nothing:20261121", "%00", "x" * 300):
        answer = await house.http.get(f"/v1/trips/{trip}/seats")
        assert answer.status_code in (400, 404), answer.text


async def test_without_redis_the_map_comes_without_picks_and_version(database_url: str) -> None:
    house = await SeatHouse.make(database_url, "redis://127.0.0.1:1", (*booking.ROUTERS, *seats.ROUTERS))
    await house.world.hold("1A")
    shown = await house.get(path(house, "seats"))
    assert shown["version"] is None and shown["epoch"] is None
    assert shown["seats"][0]["state"] == "TAKEN"
    problem(await house.pick("1B"), 503, "UNAVAILABLE")
    await house.close()


async def test_thirty_readers_at_once_cost_few_reads_and_see_their_own_writes(house: SeatHouse) -> None:
    import asyncio

    maps: SeatMaps = house.desk.maps
    reads = 0
    real = maps._standings._read

    async def counted(key: str) -> Any:
        nonlocal reads
        reads += 1
        return await real(key)

    maps._standings._read = counted

    async def hold_then_look(label: str) -> bool:
        await house.world.hold(label)
        return (await house.states())[label] == "TAKEN"

    looks = [house.states() for _ in range(30)]
    seen = await asyncio.gather(*(hold_then_look(label) for label in ("1A", "2A", "3A")), *looks)
    assert seen[:3] == [True, True, True]
    assert reads < 12


# --- picks ---


async def test_a_pick_answers_its_id_and_its_end(house: SeatHouse) -> None:
    answer = await house.pick("1A", "1B")
    assert answer.status_code == 201
    made = answer.json()
    assert made.keys() == {"pickId", "seats", "untilMs"} and made["seats"] == ["1A", "1B"]
    assert 0 < made["untilMs"] - house.world.clock.now_ms() <= 90_000
    again = await house.pick("1A", "1C", pickId=made["pickId"])
    assert again.json()["pickId"] == made["pickId"]


async def test_who_comes_second_is_told_which_seats(house: SeatHouse) -> None:
    await house.pick("1B")
    refused = problem(await house.pick("1A", "1B"), 409, "SEAT_PICKED")
    assert [(error["pointer"], error["code"]) for error in refused["errors"]] == [("/seats/1", "SEAT_PICKED")]
    assert refused["retryable"] is True
    assert (await house.states())["1A"] == "FREE", "all or none"


async def test_a_pick_is_let_go_by_its_id_in_path_or_query(house: SeatHouse) -> None:
    for let_go in ("picks/{}", "picks?pickId={}"):
        made = (await house.pick("1A", "1B")).json()
        some = await house.http.delete(path(house, let_go.format(made["pickId"])), params={"pickId": made["pickId"], "seats": "1A"})
        assert some.status_code == 204
        assert [(await house.states())[label] for label in ("1A", "1B")] == ["FREE", "PICKED"]
        assert (await house.http.delete(path(house, let_go.format(made["pickId"])))).status_code == 204
        assert (await house.states())["1B"] == "FREE"
        assert (await house.http.delete(path(house, let_go.format(made["pickId"])))).status_code == 204, "again changes nothing"


async def test_a_hold_is_refused_by_somebody_elses_pick_and_ends_ones_own(house: SeatHouse) -> None:
    made = (await house.pick("1A")).json()
    body = {"seats": ["1A"], "from": "demo:A", "to": "demo:F"}
    refused = await house.http.post(path(house, "holds"), json=body, headers={"Idempotency-Key": "k1"})
    assert problem(refused, 409, "SEAT_PICKED")["errors"][0]["pointer"].startswith("/seats")
    held = await house.http.post(path(house, "holds"), json={**body, "pickId": made["pickId"]}, headers={"Idempotency-Key": "k2"})
    assert held.status_code == 201
    assert (await house.desk.picks.picture(house.world.trip_id)).picks == {}
    assert (await house.states())["1A"] == "TAKEN"


async def test_the_best_seats_pass_by_those_that_others_are_choosing(house: SeatHouse) -> None:
    body = {"seats": {"count": 2}, "from": "demo:A", "to": "demo:F"}
    first = (await house.http.post(path(house, "holds"), json=body, headers={"Idempotency-Key": "k1"})).json()
    assert [seat["seat"] for seat in first["seats"]] == ["1A", "1B"]
    await house.pick("1C")
    second = (await house.http.post(path(house, "holds"), json=body, headers={"Idempotency-Key": "k2"})).json()
    assert [seat["seat"] for seat in second["seats"]] == ["2A", "2B"]


BAD: list[dict[str, Any]] = [
    {"seats": []},
    {"seats": ["1A"] * 100},
    {"seats": ["1A", "1A"]},
    {"seats": ["9Z"]},
    {"seats": [1]},
    {"from": "demo:F", "to": "demo:A"},
    {"from": "demo:A", "to": "demo:A"},
    {"from": "nowhere"},
    {"from": -1},
    {"pickId": "x"},
    {"pickId": "!" * 20},
]


async def test_bad_picks_are_refused_and_leave_nothing(house: SeatHouse) -> None:
    for change in BAD:
        body = {"seats": ["1A"], "from": "demo:A", "to": "demo:F", **change}
        problem(await house.http.post(path(house, "picks"), json=body), 400, "INVALID")
    assert (await house.desk.picks.picture(house.world.trip_id)).picks == {}


async def test_a_trip_whose_sales_are_closed_takes_no_picks(house: SeatHouse) -> None:
    await house.world.run("update sale.trip_instance set sales_open = false where trip_no = $1", house.world.trip_no)
    problem(await house.pick("1A"), 409, "SALES_CLOSED")


# --- the live channel ---


async def test_a_newcomer_to_the_seat_channel_gets_every_claim_and_pick_on_its_legs(house: SeatHouse) -> None:
    await house.world.hold("1A", frm="demo:A", to="demo:C")
    await house.pick("1A", frm="demo:C", to="demo:E")
    told = await house.desk.maps.picture(f"seats:{house.world.trip_id}")
    assert told is not None
    assert {one["seat"] for one in told} == {seat["label"] for seat in LAYOUT["seats"]}
    assert [(one["state"], one["from"], one["to"]) for one in told if one["seat"] == "1A"] == [
        ("TAKEN", "demo:A", "demo:C"),
        ("PICKED", "demo:C", "demo:E"),
    ]
    assert all(one["state"] == "FREE" and one["untilMs"] is None for one in told if one["seat"] != "1A")


async def test_other_channels_have_no_seat_picture(house: SeatHouse) -> None:
    assert await house.desk.maps.picture("booking:ABC234") is None
    assert await house.desk.maps.picture("seats:demo:unsold:20261121") is None
