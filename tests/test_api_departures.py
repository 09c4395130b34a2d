"""The board of a stop: scheduled and live merged, each departure once, in the order in which buses come; and reads that are polled."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest

from api.tracking import box_around
from engine.tracking.timetable import Stop, Timetable
from tests.reads_house import House, at, driving, foretold
from tests.small_world import DAY, feed

T0, T1, T2 = (f"demo:T{i}:{DAY}" for i in range(3))


pytestmark = pytest.mark.asyncio(loop_scope="module")


def changed(timetable: Timetable, **fields: object) -> Timetable:
    """The same timetable with other parts."""
    names = ("feed_id", "version", "tz", "agencies", "stops", "routes", "services", "patterns", "trips")
    return Timetable(**({name: getattr(timetable, name) for name in names} | fields))


async def test_only_the_timetable_speaks_where_no_bus_is(reads: House) -> None:
    items = (await reads.get("/v1/stops/demo:S3/departures"))["items"]
    assert [(item["tripId"], item["kind"], item["busId"], item["p50"]) for item in items] == [
        (T0, "SCHEDULED", None, None),
        (T1, "SCHEDULED", None, None),
    ]
    assert items[0]["expectedAt"] == items[0]["scheduledAt"] == "2026-03-02T07:03:07.000Z"
    assert [item["tripId"] for item in (await reads.get("/v1/stops/demo:S3/departures", horizon=6 * 3600))["items"]] == [T0, T1, T2]
    assert (await reads.get("/v1/stops/demo:S12/departures"))["items"] == [], "nobody departs at the last stop"


async def test_a_late_bus_stands_once_and_where_it_is_expected(reads: House) -> None:
    """T0 is an hour and a quarter late: after T1, and the timetable forgot it long ago."""
    now_ms = reads.clock.at_ms = at("2026-03-02T09:30:00+01:00")
    expected_ms = at("2026-03-02T10:20:00+01:00")
    reads.say(driving(at_ms=now_ms), forecasts=(foretold(made_at_ms=now_ms, stops={3: expected_ms}),))
    items = (await reads.get("/v1/stops/demo:S3/departures"))["items"]
    assert [item["tripId"] for item in items] == [T2, T0]
    late = items[1]
    assert (late["kind"], late["busId"], late["delayS"], late["p50"]) == ("ESTIMATED", "b1", 240, "2026-03-02T09:20:00.000Z")
    assert late["expectedAt"] == "2026-03-02T09:20:10.000Z", "when it leaves, not when it comes"
    assert late["scheduledAt"] == "2026-03-02T07:03:07.000Z"


async def test_a_stop_that_the_bus_has_left_or_missed_says_so(reads: House) -> None:
    now_ms = reads.clock.at_ms = at("2026-03-02T08:04:00+01:00")
    said = foretold(made_at_ms=now_ms, stops={6: now_ms + 120_000}, skipped=(3,))
    reads.say(driving(at_ms=now_ms, next_stop=6), forecasts=(said,))
    missed, left = [(await reads.get(f"/v1/stops/demo:{stop}/departures", horizon=4000))["items"] for stop in ("S3", "S2")]
    assert [item["kind"] for item in missed] == ["SKIPPED", "SCHEDULED"]
    assert [item["tripId"] for item in left] == [T1], "it was there and has gone"


async def test_a_trip_of_yesterdays_service_date_leaves_after_midnight(reads: House) -> None:
    plain = feed()
    late = msgspec.structs.replace(
        plain.trips["T0"],
        trip_id="N",
        arrival_s=tuple(86_400 + 600 + i * 60 for i in range(13)),
        departure_s=tuple(86_400 + 600 + i * 60 for i in range(13)),
    )
    await reads.take_feed(changed(plain, feed_id="night", trips={"N": late}))
    reads.clock.at_ms = at("2026-03-03T00:05:00+01:00")
    items = (await reads.get("/v1/stops/night:S3/departures"))["items"]
    assert [(item["tripId"], item["scheduledAt"]) for item in items] == [("night:N:20260302", "2026-03-02T23:13:00.000Z")]


async def test_a_stop_that_a_trip_visits_twice_has_it_twice(reads: House) -> None:
    plain = feed()
    pattern = plain.patterns["P"]
    loop = msgspec.structs.replace(pattern, stop_ids=(*pattern.stop_ids[:9], "S3", *pattern.stop_ids[10:]))
    trips = {key: msgspec.structs.replace(trip, pattern=loop) for key, trip in plain.trips.items()}
    await reads.take_feed(changed(plain, feed_id="loop", patterns={"P": loop}, trips=trips))
    items = (await reads.get("/v1/stops/loop:S3/departures", horizon=3600))["items"]
    assert [(item["tripId"], item["seq"]) for item in items] == [(f"loop:T0:{DAY}", 4), (f"loop:T0:{DAY}", 10)]


async def test_a_station_has_the_departures_of_its_platforms(reads: House) -> None:
    plain = feed()
    hall = Stop("HALL", "Hall", 36.75, 3.05, location_type=1)
    stops = plain.stops | {"HALL": hall}
    for name, letter in (("S3", "A"), ("S5", "B")):
        stops[name] = msgspec.structs.replace(plain.stops[name], parent_station="HALL", platform=letter)
    await reads.take_feed(changed(plain, feed_id="big", stops=stops))
    items = (await reads.get("/v1/stops/big:HALL/departures", horizon=3600))["items"]
    assert [(item["stopId"], item["platform"]) for item in items] == [("big:S3", "A"), ("big:S5", "B")]
    assert [item["expectedAt"] for item in items] == sorted(item["expectedAt"] for item in items)


async def test_stops_near_a_point_come_with_their_next_departures(reads: House) -> None:
    stop = await reads.get("/v1/stops/demo:S3")
    near = await reads.get("/v1/stops", near=f"{stop['lat']},{stop['lon']}", radius=600, departures=1)
    assert near["items"][0]["stopId"] == "demo:S3" and len(near["items"]) == 3
    assert all([d["tripId"] for d in item["departures"]] == [T0] for item in near["items"])
    assert (await reads.get("/v1/stops", near=f"{stop['lat']},{stop['lon']}"))["items"][0]["departures"] is None
    answer = await reads.http.get("/v1/stops?near=1,1&departures=11")
    assert answer.status_code == 400


async def test_near_reaches_over_the_antimeridian(reads: House) -> None:
    plain = feed()
    stops = {
        name: msgspec.structs.replace(stop, lat=-17.0, lon=179.9995 if name == "S0" else -179.9995 if name == "S1" else 100.0)
        for name, stop in plain.stops.items()
    }
    await reads.take_feed(changed(plain, feed_id="fiji", stops=stops))
    for lon in ("179.9999", "-179.9999"):
        found = (await reads.get("/v1/stops", near=f"-17.0,{lon}", radius=300))["items"]
        assert {item["stopId"] for item in found} == {"fiji:S0", "fiji:S1"} and all(item["distanceM"] < 200 for item in found)
    now_ms = reads.clock.now_ms()
    reads.say(driving("west", None, at_ms=now_ms, lat=-17.0, lon=179.9995), driving("east", None, at_ms=now_ms, lat=-17.0, lon=-179.9995))
    buses = (await reads.get("/v1/buses/locations", near="-17.0,179.9999", radius=300))["items"]
    assert [bus["busId"] for bus in buses] == ["west", "east"], "nearest first"


async def test_the_box_around_a_point_stays_on_the_map() -> None:
    west, south, east, north = box_around(0.0, 179.95, 11_000)
    assert west == pytest.approx(179.85) and east == pytest.approx(-179.95) and (south, north) == (-0.1, 0.1)
    assert box_around(89.99, 10.0, 50_000) == (-180.0, pytest.approx(89.535, abs=0.001), 180.0, 90.0), "round the pole"


@pytest.mark.parametrize(
    "path", ["/v1/stops/demo:S3/departures", f"/v1/trips/{T0}/live", "/v1/buses/b1/location", "/v1/stops?near=36.75,3.06&departures=3"]
)
async def test_a_polled_read_is_304_until_something_is_new(reads: House, path: str) -> None:
    now_ms = reads.clock.at_ms = at("2026-03-02T08:02:00+01:00")
    reads.say(driving(at_ms=now_ms), forecasts=(foretold(made_at_ms=now_ms, stops={i: now_ms + i * 60_000 for i in range(1, 12)}),))
    first = await reads.http.get(path)
    reads.clock.advance(900)  # it is older; nothing was said
    again = await reads.http.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    later_ms = now_ms + 1_000
    reads.say(
        driving(at_ms=later_ms, lat=36.7501),
        forecasts=(foretold(made_at_ms=later_ms, stops={i: later_ms + i * 60_000 for i in range(1, 12)}),),
    )
    assert (await reads.http.get(path, headers={"If-None-Match": first.headers["etag"]})).status_code == 200


async def test_the_day_that_is_an_hour_short_has_the_right_times(reads: House) -> None:
    """At 02:00 of 2026-03-08 New York's clocks are set to 03:00."""
    plain = feed()
    await reads.take_feed(changed(plain, feed_id="ny", tz=ZoneInfo("America/New_York")))
    reads.clock.at_ms = at("2026-03-08T07:30:00-04:00")
    items = (await reads.get("/v1/stops/ny:S0/departures", horizon=3600))["items"]
    leaves = datetime.fromisoformat(items[0]["scheduledAt"]).astimezone(ZoneInfo("America/New_York"))
    assert (leaves.hour, leaves.minute) == (8, 0)


async def test_a_cancelled_trip_stays_on_the_board_as_cancelled(reads: House) -> None:
    async with reads.postgres.connection() as connection, connection.transaction():
        await connection.execute("select set_config('tp.partner', 'demo', true)")
        await connection.execute(
            "insert into sale.trip_instance (trip_id, partner_id, feed_id, route_id, start_date, status, closes_at, stops, departs_at, arrives_at,"
            " timezone, layout_id, fare_plan_id, currency) values ($1, 'demo', 'demo', 'demo:R', '2026-03-02', 'CANCELLED', now(), 13, now(),"
            " now(), 'Africa/Algiers', 'x', 'x', 'DZD')",
            f"demo:T2:{DAY}",
        )
    reads.say(driving(trip="T2", at_ms=reads.clock.now_ms()))  # its bus drives on, with nobody in it
    items = (await reads.get("/v1/stops/demo:S3/departures", horizon=4 * 3600))["items"]
    assert [(item["tripId"], item["kind"], item["busId"]) for item in items[1:]] == [(T1, "SCHEDULED", None), (T2, "CANCELLED", None)]
