"""The live table: applied once, in order, without a hole."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.events import SKIPPED, LiveBatch, StopForecast
from engine.live.frames import rfc3339
from engine.live.table import LEFT_MAX, LiveTable
from engine.meter import Meter
from engine.settings import Settings
from engine.store.redis import Redis, keys_of
from tests.crash_house import until
from tests.live_house import Owner, batch, forecast, position, served


def table_with(*first: LiveBatch) -> LiveTable:
    table = LiveTable()
    table.learn(first[0] if first else batch(0))
    return table


def test_a_batch_of_an_unknown_area_asks_for_the_picture_and_waits_for_it() -> None:
    table = LiveTable()
    assert table.hear(batch(7, position("17", lat=36.8))) is None
    assert list(table.wanted) == ["demo"]
    first, second = table.learn(batch(6, position("17", lat=36.7), position("18")))
    assert first.reset and [now.position.bus_id for _, now in first.moved] == ["17", "18"]
    assert not second.reset and [(now.n, now.position.lat) for _, now in second.moved] == [(7, 36.8)]
    assert not table.wanted and table.areas["demo"].n == 7


def test_a_picture_newer_than_what_waited_makes_the_waiting_repetitions() -> None:
    table = LiveTable()
    for n in (3, 4, 5):
        table.hear(batch(n, position("17", lat=36.0 + n)))
    changes = table.learn(batch(5, position("17", lat=41.0)))
    assert len(changes) == 1 and table.areas["demo"].n == 5
    kept = table.position("17")
    assert kept is not None and kept.lat == 41.0


def test_a_missing_number_tells_only_what_the_reload_finds_different() -> None:
    table = table_with(batch(1, position("17"), position("18"), position("19")))
    assert table.hear(batch(3, position("17", lat=37.0))) is None
    (change, later) = table.learn(batch(2, position("17"), position("18", lat=36.9)))
    assert not change.reset
    assert [now.position.bus_id for _, now in change.moved] == ["18"]
    assert [seen.position.bus_id for seen in change.gone] == ["19"]
    assert [now.position.lat for _, now in later.moved] == [37.0]


def test_a_new_epoch_is_a_reset_even_where_the_numbers_look_right() -> None:
    table = table_with(batch(5, position("17")))
    assert table.hear(batch(6, position("17"), epoch="F")) is None
    (change,) = table.learn(batch(6, position("17"), epoch="F"))
    assert change.reset and table.areas["demo"].epoch == "F"


def test_a_hole_among_what_waited_asks_again() -> None:
    table = LiveTable()
    table.hear(batch(5))
    table.hear(batch(8))
    table.learn(batch(5))
    assert list(table.wanted) == ["demo"] and table.areas["demo"].n == 5
    table.learn(batch(9))
    assert not table.wanted and table.areas["demo"].n == 9


def test_indexes_follow_a_vehicle_from_trip_to_trip_and_from_place_to_place() -> None:
    table = table_with(batch(1, position("17", trip="t1", lon=3.0), forecasts=(forecast("17", "a", "b"),)))
    assert [f.forecast.bus_id for f in table.at_stop("demo:b")] == ["17"]
    table.hear(batch(2, position("17", trip="t2", route="r2", lon=4.0)))
    assert not table.on_trip("demo:t1:20260216") and [s.n for s in table.on_trip("demo:t2:20260216")] == [2]
    assert not table.on_channel("route:demo:r1") and table.on_channel("route:demo:r2") and table.on_channel("fleet:demo")
    assert not table.at_stop("demo:b"), "the forecast of the trip it left is over"
    assert not list(table.inside(2.9, 36, 3.1, 37)) and list(table.inside(3.9, 36, 4.1, 37))


def test_a_forecast_loses_the_stops_behind_it() -> None:
    table = table_with(batch(1, position("17"), forecasts=(forecast("17", "a", "b", "c"),)))
    shorter = forecast("17", "a", "b", "c", made_at_ms=2)
    shorter = type(shorter)(shorter.bus_id, shorter.trip_id, shorter.start_date, shorter.route_id, 2, shorter.stops[1:])
    table.hear(batch(2, forecasts=(shorter,)))
    assert not table.at_stop("demo:a") and len(table.at_stop("demo:c")) == 1


def test_a_missed_stop_leaves_the_stops_board_and_stays_in_the_trips_forecast() -> None:
    table = table_with(batch(1, position("17"), forecasts=(forecast("17", "a", "b", "c"),)))
    whole = forecast("17", "a", "b", "c", made_at_ms=2)
    missed = StopForecast("a", 1, None, None, None, None, SKIPPED)
    said = msgspec.structs.replace(whole, stops=(missed, *whole.stops[1:]))
    table.hear(batch(2, forecasts=(said,)))
    assert table.forecast("17") == said
    assert not table.at_stop("demo:a") and len(table.at_stop("demo:b")) == len(table.at_stop("demo:c")) == 1
    table.hear(batch(3, gone=("17",)))
    assert not table.stops


def test_a_box_across_the_antimeridian() -> None:
    table = table_with(batch(1, position("east", lon=179.9), position("west", lon=-179.9), position("far", lon=0.0)))
    assert {seen.position.bus_id for seen in table.inside(179, 36, -179, 37)} == {"east", "west"}


def test_departures_are_remembered_and_their_horizon_is_said() -> None:
    table = table_with(batch(1, position("17"), position("18")))
    table.hear(batch(2, position("17", trip="t2")))
    table.hear(batch(3, gone=("18",)))
    area = table.areas["demo"]
    assert table.left_since(area, "trip:demo:t1:20260216", 1) == ["17", "18"]
    assert table.left_since(area, "trip:demo:t1:20260216", 2) == ["18"]
    assert table.left_since(area, "trip:demo:t1:20260216", 0) is None, "from before we knew anything"
    for n in range(4, 4 + LEFT_MAX + 2):
        table.hear(batch(n, position("17", trip=f"t{n}")))
    assert table.left_since(area, "trip:demo:t1:20260216", 2) is None, "forgotten, and it says so"


def test_late_events_and_events_of_other_kinds_are_not_told() -> None:
    table = table_with()
    event = served("17", "a")
    late = type(event)(*(getattr(event, name) for name in event.__struct_fields__[:-1]), late=True)
    change = table.hear(batch(1, events=[event, late]))
    assert change is not None and change.stops == [event]


STEPS = st.lists(
    st.tuples(st.sampled_from(["move", "move", "leave", "epoch"]), st.integers(0, 4), st.integers(0, 3), st.booleans(), st.booleans()),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_whatever_is_lost_or_repeated_the_table_ends_as_the_picture(steps: list[tuple[str, int, int, bool, bool]]) -> None:
    """`truth` is what Redis holds; some publications are lost, some come twice; a reload is served whenever it is wanted."""
    truth: dict[str, object] = {}
    epoch, n = 0, 0
    table = table_with(batch(0, epoch="0"))
    told: dict[str, object] = {}

    def note(changes: list) -> None:
        for change in changes:
            for _, now in change.moved:
                told[now.position.bus_id] = now.position
            for seen in change.gone:
                told.pop(seen.position.bus_id, None)

    def reload() -> None:
        while table.wanted:
            note(table.learn(batch(n, *truth.values(), epoch=str(epoch))))  # type: ignore[arg-type]

    for step, bus, place, lost, twice in steps:
        bus_id = f"b{bus}"
        if step == "epoch":
            epoch, n = epoch + 1, 0
            continue
        n += 1
        if step == "leave":
            truth.pop(bus_id, None)
            said = batch(n, epoch=str(epoch), gone=(bus_id,))
        else:
            p = position(bus_id, lon=place * 0.1, trip=f"t{place}")
            truth[bus_id] = p
            said = batch(n, p, epoch=str(epoch))
        if lost:
            continue
        for _ in range(1 + twice):
            change = table.hear(said)
            note([change] if change is not None else [])
        if place % 2:
            reload()
    n += 1
    table.hear(batch(n, epoch=str(epoch)))
    reload()
    assert {bus_id: seen.position for bus_id, seen in table.buses.items()} == truth == told
    assert {bus_id for ids in table.cells.values() for bus_id in ids} == set(truth) == set(table.groups.get("fleet:demo", {}))
    assert table.areas["demo"].n == n and not table.wanted


def test_an_area_that_a_bus_has_left_does_not_bring_it_back() -> None:
    table = table_with(batch(1, position("17", at_ms=1_000)))
    table.learn(batch(1, position("17", feed_id="other", at_ms=9_000), area="other", epoch="F"))
    table.hear(batch(2, position("17", at_ms=1_000, state="STALE")))
    found = table.position("17")
    assert found is not None and (found.feed_id, found.state) == ("other", "IN_TRIP")
    table.hear(batch(3, gone=("17",)))
    assert table.position("17") is found and not table.on_trip("demo:t1:20260216")
    table.hear(batch(4, position("17", at_ms=10_000)))
    back = table.position("17")
    assert back is not None and back.feed_id == "demo", "with a newer fix it does"


BROKEN = msgspec.Raw(b"\x91\xc1")
BAD = "timepoint_live_undecodable_total"


def broken_stops(bus_id: str, *stops: str) -> msgspec.Raw:
    """A forecast whose head is whole."""
    whole = msgspec.to_builtins(forecast(bus_id, *stops))
    whole[5] = [[stop[0], "third", *stop[2:]] for stop in whole[5]]
    return msgspec.Raw(msgspec.msgpack.encode(whole))


def counted(meter: Meter) -> float:
    return sum(float(line.split()[-1]) for line in meter.text().splitlines() if line.startswith(BAD))


def test_what_does_not_decode_is_counted_and_left_out_and_the_picture_is_read_again() -> None:
    meter = Meter()
    table = LiveTable(meter)
    table.learn(batch(0))
    said = batch(1, position("17"), forecasts=(forecast("17", "a"),))
    said.positions.insert(0, BROKEN)
    said.forecasts.insert(0, BROKEN)
    change = table.hear(said)
    assert change is not None and [now.position.bus_id for _, now in change.moved] == ["17"]
    assert len(change.forecasts) == 1 and counted(meter) == 2 and not table.wanted
    table.heed_doubts()
    assert list(table.wanted) == ["demo"]
    (change,) = table.learn(batch(1, position("17"), position("18"), forecasts=(forecast("17", "a"),)))
    assert [now.position.bus_id for _, now in change.moved] == ["18"] and not table.wanted
    table.heed_doubts()
    assert not table.wanted


def test_a_picture_keeps_what_of_it_decodes_and_is_not_read_for_ever() -> None:
    meter = Meter()
    table = LiveTable(meter)
    picture = batch(3, position("17"), forecasts=(forecast("17", "a"),))
    picture.positions.insert(0, BROKEN)
    picture.forecasts.insert(0, BROKEN)
    picture.incidents.append(BROKEN)
    (change,) = table.learn(picture)
    assert [now.position.bus_id for _, now in change.moved] == ["17"] and table.at_stop("demo:a")
    table.heed_doubts()
    assert counted(meter) == 3 and not table.wanted


def test_a_forecast_that_does_not_decode_has_no_stops_for_its_reader_until_the_next_picture() -> None:
    meter = Meter()
    table = LiveTable(meter)
    table.learn(batch(1, position("17"), forecasts=(forecast("17", "a"),)))
    said = batch(2, position("17"))
    said.forecasts.append(broken_stops("17", "a"))
    table.hear(said)
    found = table.forecast("17")
    assert found is not None and (found.trip_id, found.stops) == ("t1", ()) and counted(meter) == 1
    table.heed_doubts()
    table.learn(batch(2, position("17"), forecasts=(forecast("17", "a"),)))
    whole = table.forecast("17")
    assert whole is not None and [stop.stop_id for stop in whole.stops] == ["a"]


async def test_who_follows_survives_what_does_not_decode(redis_url: str) -> None:
    redis, meter = await Redis.connect(Settings(redis_url=redis_url)), Meter()
    table = LiveTable(meter)
    following = asyncio.create_task(table.follow(redis, lambda change: None))
    try:
        owner = await Owner(redis).begin()
        await until(lambda: _true(not table.stale and "demo" in table.areas), 10)
        said = batch(owner.n + 1, position("17"), epoch=owner.epoch)
        said.positions.insert(0, BROKEN)
        for payload in (b"\xc1", msgspec.msgpack.encode(said)):
            await redis.publish("test", keys_of("demo").live, payload)
        await until(lambda: _true(following.done() or counted(meter) == 2), 10)
        await until(lambda: _true(following.done() or (not table.doubted and not table.wanted)), 10)
        assert not following.done()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await redis.close()


async def _true(value: bool) -> bool:
    return value


@given(st.lists(st.integers(0, 4_000_000_000_000), min_size=1, max_size=50))
def test_a_time_on_the_wire_is_the_same_to_the_millisecond(times_ms: list[int]) -> None:
    for ms in times_ms:
        exact = datetime.fromtimestamp(ms // 1000, UTC) + timedelta(milliseconds=ms % 1000)
        assert rfc3339(ms) == exact.isoformat(timespec="milliseconds").replace("+00:00", "Z")
