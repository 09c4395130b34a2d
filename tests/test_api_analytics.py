"""What managers read of the days behind them, against what really happened in a record that a test can count by hand."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import pytest

from engine.clock import SystemClock
from engine.events import IncidentEvent
from engine.meter import Meter
from engine.store.analytics import Analytics
from engine.tracking.summaries import Summaries
from engine.tracking.timetable import TripInstance
from tests.reads_house import House, at, driving
from tests.small_world import DAY, feed, instance_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
DATES = {"from": "2026-03-01", "to": "2026-03-02"}


async def emptied(reads: House) -> Summaries:
    """No event of any day, no summary; and who makes them."""
    for table in (
        "telemetry.stop_events",
        "telemetry.incidents",
        "analytics.day",
        "analytics.delay",
        "analytics.stop_delay",
        "analytics.headway",
    ):
        await reads.postgres.execute(f"delete from {table}")
    return Summaries(Analytics(reads.postgres), clock=reads.clock, settings=reads.parts.settings, meter=Meter())


async def call(reads: House, instance: TripInstance, index: int, delay_s: float | None, *, bus: str = "b1", late: bool = False) -> None:
    """A bus calls at a stop so much after the planned departure (at the last stop arrival), or misses it (None)."""
    last = index == len(instance.trip.arrival_s) - 1
    planned_ms = instance.arrival_ms(index) if last else instance.departure_ms(index)
    when = datetime.fromtimestamp((planned_ms + round((delay_s or 0) * 1000)) / 1000, UTC)
    key = f"{instance.trip.trip_id} {instance.start_date} {index}"
    times = (None, None) if delay_s is None else (when, when + timedelta(seconds=30)) if last else (when - timedelta(seconds=20), when)
    await reads.postgres.execute(
        "insert into telemetry.stop_events (event_id, at, area, bus_id, trip_id, start_date, route_id, stop_id, stop_sequence, arrived_at, departed_at,"
        " kind, late) values ($1, $2, 'demo', $3, $4, $5, 'R', $6, $7, $8, $9, $10, $11) on conflict (event_id) do update set arrived_at = $8,"
        " departed_at = $9, late = true",
        key, when, bus, instance.trip.trip_id, instance.start_date, f"S{index}", index + 1, *times, "MISSED" if delay_s is None else "SERVED", late,
    )  # fmt: skip


async def asked(reads: House, what: str, **params: Any) -> Any:
    return await reads.get(f"/v1/analytics/{what}", reads.head("PARTNER_ADMIN"), **DATES | params)


async def test_calls_are_early_on_time_late_or_missed_by_the_operators_window(reads: House) -> None:
    summaries, t0 = await emptied(reads), instance_of(feed())
    for index, delay_s in enumerate((-90, -61, -60, 0, 299, 300, None, 4_000)):
        await call(reads, t0, index, delay_s)
    await call(reads, t0, 12, 250)  # the last stop: by its arrival
    assert await summaries.look() == 1
    said = await asked(reads, "on-time")
    total = said["total"]
    assert (said["earlyS"], said["lateS"]) == (60, 300)
    assert (total["early"], total["onTime"], total["late"], total["missed"], total["calls"]) == (2, 4, 2, 1, 9)
    assert total["onTimeShare"] == pytest.approx(4 / 9, abs=1e-4)
    assert total["meanDelayS"] == pytest.approx((-90 - 61 - 60 + 299 + 300 + 4_000 + 250) / 8, abs=0.1)
    assert [row["key"] for row in said["rows"]] == ["2026-03-02"]
    wide = (await asked(reads, "on-time", earlyS=90, lateS=330))["total"]
    between = await asked(reads, "on-time", earlyS=80, lateS=319)
    assert (between["earlyS"], between["lateS"], between["total"]) == (90, 330, wide), "to the nearest 30 s, and it says so"
    assert (wide["early"], wide["onTime"], wide["late"]) == (0, 7, 1)
    stops = (await asked(reads, "on-time", by="stop", route="demo:R", direction=0))["rows"]
    assert {row["key"]: (row["early"], row["onTime"], row["late"], row["missed"]) for row in stops if row["key"] in ("demo:S0", "demo:S6", "demo:S12")} == {
        "demo:S0": (1, 0, 0, 0), "demo:S6": (0, 0, 0, 1), "demo:S12": (0, 1, 0, 0),
    }  # fmt: skip
    assert [row["key"] for row in (await asked(reads, "on-time", by="hour"))["rows"]] == ["08"], (
        "of the planned time, where the buses drive"
    )
    assert [row["key"] for row in (await asked(reads, "on-time", by="route"))["rows"]] == ["demo:R"]


async def test_a_month_of_chance_is_counted_as_by_hand(reads: House) -> None:
    summaries, chance = await emptied(reads), random.Random(5)
    world, delays = feed(), []
    for day in ("20260227", "20260228", "20260301", "20260302"):
        for trip in ("T0", "T1", "T2"):
            instance = world.instance(trip, day)
            assert instance is not None
            for index in range(13):
                delays.append((day, chance.choice((None, *range(-200, 900, 7)))))
                await call(reads, instance, index, delays[-1][1])
    assert await summaries.look() == 4
    for early, late in ((60, 300), (0, 0), (120, 600)):
        rows = (await asked(reads, "on-time", **{"from": "2026-02-01"}, earlyS=early, lateS=late))["rows"]
        wanted: dict[str, list[int]] = {}
        for day, delay in delays:
            counts = wanted.setdefault(f"{day[:4]}-{day[4:6]}-{day[6:]}", [0, 0, 0, 0])
            counts[3 if delay is None else 0 if delay < -early else 1 if delay < late else 2] += 1
        assert {row["key"]: [row["early"], row["onTime"], row["late"], row["missed"]] for row in rows} == wanted


async def test_a_day_is_written_anew_when_its_events_change_and_only_then(reads: House) -> None:
    summaries, t0 = await emptied(reads), instance_of(feed())
    await call(reads, t0, 3, 0)
    assert (await summaries.look(), await summaries.look()) == (1, 0)
    await call(reads, t0, 3, 700)  # late fixes put it right
    assert (await summaries.look(), await summaries.look()) == (1, 0)
    total = (await asked(reads, "on-time"))["total"]
    assert (total["calls"], total["late"]) == (1, 1)


async def test_headways_say_how_even_and_how_long_people_waited(reads: House) -> None:
    """Planned an hour apart; T1 comes 2,900 s late, so T2 is 700 s behind it."""
    summaries, world = await emptied(reads), feed()
    for trip, delay_s in (("T0", 0), ("T1", 2_900), ("T2", 0)):
        await call(reads, instance_of(world, trip), 4, delay_s)
    await summaries.look()
    rows = (await asked(reads, "headways", by="stop", route="demo:R"))["rows"]
    (row,) = [one for one in rows if one["stopId"] == "demo:S4"]
    assert (row["observed"], row["planned"], row["meanS"], row["plannedMeanS"]) == (2, 2, 3_600.0, 3_600.0)
    sd = ((6_500 - 3_600) ** 2 + (700 - 3_600) ** 2) ** 0.5
    assert row["sdS"] == pytest.approx(sd, abs=0.1) and row["variation"] == pytest.approx(sd / 3_600, abs=1e-3)
    wait = (6_500**2 + 700**2) / (2 * 7_200)
    assert row["waitS"] == pytest.approx(wait, abs=0.1) and row["excessWaitS"] == pytest.approx(wait - 1_800, abs=0.1)
    assert (row["bunchedShare"], row["gappedShare"]) == (0.5, 0.5)
    assert [one["stopId"] for one in rows] == [f"demo:S{i}" for i in range(12)], "in the order of the line, those nobody was seen at too"
    assert {(one["stopId"], one["observed"], one["meanS"]) for one in rows if one["stopId"] == "demo:S7"} == {("demo:S7", 0, None)}


async def test_a_ladder_has_each_trip_as_planned_and_as_driven(reads: House) -> None:
    await emptied(reads)
    t1 = instance_of(feed(), "T1")
    for index, delay_s in ((0, 60), (1, 120), (2, None), (3, 180)):
        await call(reads, t1, index, delay_s)
    said = await reads.get("/v1/analytics/ladder", reads.head("AGENT"), route="demo:R", date="2026-03-02")
    assert [place["stopId"] for place in said["places"]] == [f"demo:S{i}" for i in range(13)] and said["leftOut"] == 0
    assert [trip["tripId"] for trip in said["trips"]] == [f"demo:T{i}:{DAY}" for i in range(3)]
    bare, driven = said["trips"][0], said["trips"][1]
    assert (bare["busId"], bare["drivenAtMs"], len(bare["plannedAtMs"])) == (None, [], 13)
    assert driven["busId"] == "b1" and driven["missedSeqs"] == [3]
    assert driven["drivenAtMs"][1] == t1.departure_ms(0) + 60_000 and len(driven["drivenAtMs"]) == 6
    assert driven["drivenAtMs"] == sorted(driven["drivenAtMs"]) and driven["drivenAlongM"] == sorted(driven["drivenAlongM"])
    assert driven["plannedAlongM"] == [place["alongM"] for place in said["places"]]
    other = await reads.get("/v1/analytics/ladder", reads.head("AGENT"), route="demo:R", direction=1, date="2026-03-02")
    assert (other["places"], other["trips"]) == ([], [])


async def test_a_ladder_has_fixes_between_the_stops_where_they_are_asked_for(reads: House) -> None:
    """One a minute, of the bus that drove the trip, on that trip."""
    await emptied(reads)
    reads.clock.at_ms = SystemClock().now_ms()  # the record has partitions for the days around now
    day = (datetime.fromtimestamp(reads.clock.at_ms / 1000, UTC) - timedelta(days=1)).date()
    t0 = feed().instance("T0", day.strftime("%Y%m%d"))
    assert t0 is not None
    await call(reads, t0, 0, 0, bus="l1")
    await call(reads, t0, 12, 0, bus="l1")
    await reads.postgres.execute(
        "insert into telemetry.names (name) select unnest($1::text[]) on conflict do nothing", ["l1", "l2", "T0", "T1"]
    )
    for bus, trip in (("l1", "T0"), ("l1", "T1"), ("l2", "T0")):
        await reads.postgres.execute(
            "insert into telemetry.points (ts, bus_no, lat_e6, lon_e6, latency_ms, device_no, source_no, late, along_m, trip_no, start_date)"
            " select to_timestamp($1::bigint / 1000.0) + make_interval(secs => s), b.no, t.no, s, 0, b.no, b.no, false, s * 8, t.no, $4"
            " from telemetry.names b, telemetry.names t, generate_series(0, 600, 10) s where b.name = $2 and t.name = $3",
            t0.departure_ms(0), bus, trip, int(t0.start_date),
        )  # fmt: skip
    said = await reads.get("/v1/analytics/ladder", reads.head("AGENT"), route="demo:R", date=str(day), everyS=60)
    times = [(at_ms - t0.departure_ms(0)) / 1000 for at_ms in said["trips"][0]["drivenAtMs"]]
    assert times == [-20, *range(0, 601, 60), 750, 780] and said["trips"][0]["drivenAlongM"][2:12] == [480.0 * k for k in range(1, 11)]
    assert said["trips"][1]["drivenAtMs"] == []


async def test_a_trip_of_another_pattern_is_put_onto_the_axis_by_the_stops_they_share(reads: House) -> None:
    await emptied(reads)
    plain = feed()
    pattern = plain.patterns["P"]
    keep = (0, 3, 6, 9)
    express = msgspec.structs.replace(
        pattern,
        pattern_id="X",
        stop_ids=tuple(pattern.stop_ids[i] for i in keep),
        stop_sequences=(1, 2, 3, 4),
        along_m=pattern.along_m[list(keep)],
        timepoint=(False,) * 4,
    )
    quick = msgspec.structs.replace(
        plain.trips["T1"],
        trip_id="Q",
        pattern=express,
        arrival_s=(33_000, 33_100, 33_200, 33_300),
        departure_s=(33_000, 33_100, 33_200, 33_300),
    )
    plain.patterns["X"], plain.trips["Q"] = express, quick
    plain.feed_id = "two"
    await reads.take_feed(plain)
    said = await reads.get("/v1/analytics/ladder", reads.head("AGENT"), route="two:R", date="2026-03-02")
    drawn = next(trip for trip in said["trips"] if trip["tripId"] == f"two:Q:{DAY}")
    assert drawn["plannedAlongM"] == [said["places"][i]["alongM"] for i in keep]


async def test_fixes_by_place_say_where_buses_are_and_how_fast(reads: House) -> None:
    summaries = await emptied(reads)
    now_ms = reads.clock.at_ms = SystemClock().now_ms()  # the record has partitions for the days around now
    today = datetime.fromtimestamp(now_ms / 1000, UTC).date()
    for table in ("heat", "heat_until"):
        await reads.postgres.execute(f"delete from analytics.{table}")
    await reads.add_buses("h1")
    await reads.postgres.execute("insert into telemetry.names (name) values ('h1'), ('hdev') on conflict do nothing")
    rows = [(36.7501, 3.0501, 500), (36.7502, 3.0502, 1_500), (36.7503, 3.0503, None), (36.7611, 3.0501, 800)]
    for second, (lat, lon, speed) in enumerate(rows):
        await reads.postgres.execute(
            "insert into telemetry.points (ts, bus_no, lat_e6, lon_e6, latency_ms, device_no, source_no, late, speed_cms) select"
            " to_timestamp($1::bigint / 1000.0), no, $2, $3, 0, no, no, false, $4 from telemetry.names where name = 'h1'",
            now_ms - 3_600_000 + second * 1_000, round(lat * 1e6), round(lon * 1e6), speed,
        )  # fmt: skip
    await summaries.look()
    await summaries.look()  # each fix is counted once
    params = {"from": str(today - timedelta(days=1)), "to": str(today + timedelta(days=1)), "bbox": "3.0,36.7,3.1,36.8"}
    said = await reads.get("/v1/analytics/heatmap", reads.head("PARTNER_ADMIN"), **params, resolution=111)
    cells = {
        (lat, lon): (fixes, speed)
        for lat, lon, fixes, speed in zip(said["lat"], said["lon"], said["fixes"], said["meanSpeedMps"], strict=True)
    }
    assert cells == {(36.75, 3.05): (3, 10.0), (36.761, 3.05): (1, 8.0)}
    coarse = await reads.get("/v1/analytics/heatmap", reads.head("PARTNER_ADMIN"), **params, resolution=10_000)
    assert coarse["fixes"] == [4] and coarse["cellDeg"] == pytest.approx(0.09)
    elsewhere = await reads.get("/v1/analytics/heatmap", reads.head("PARTNER_ADMIN"), **params | {"bbox": "170,-20,-170,-10"})
    assert elsewhere["fixes"] == []


async def test_detours_are_gathered_by_route_and_by_place(reads: House) -> None:
    await emptied(reads)
    begun = datetime(2026, 3, 2, 8, tzinfo=UTC)
    for number, (minutes, lat, kind) in enumerate(
        ((10, 36.75, "OFF_ROUTE"), (20, 36.7501, "OFF_ROUTE"), (None, 36.80, "OFF_ROUTE"), (5, 36.75, "WRONG_WAY"))
    ):
        closed = None if minutes is None else begun + timedelta(minutes=minutes)
        await reads.postgres.execute(
            "insert into telemetry.incidents (incident_id, said_id, area, kind, severity, bus_id, trip_id, start_date, route_id, opened_at, closed_at, lat,"
            " lon, detail, late) values ($1, $1, 'demo', $2, 'MINOR', 'b1', 'T0', '20260302', 'R', $3, $4, $5, 3.05, $6::jsonb, false)",
            f"i{number}", kind, begun, closed, lat, f'{{"maxOffsetM": {100 + number}, "bypassedStops": [4, 5]}}',
        )  # fmt: skip
    reads.clock.at_ms = at("2026-03-02T08:30:00+00:00")
    said = await asked(reads, "deviation")
    await reads.postgres.execute(
        "update telemetry.incidents set handled_state = 'CLOSED', handled_at = opened_at + interval '1 minute' where kind = 'OFF_ROUTE' and closed_at is null"
    )
    reads.clock.at_ms += 86_400_000
    later = await asked(reads, "deviation")
    reads.clock.at_ms -= 86_400_000
    assert later["routes"][0]["minutes"] < 60.0, "a person has ended it: it is not off for ever"
    assert said["routes"] == [{"routeId": "demo:R", "episodes": 3, "minutes": 60.0, "maxOffsetM": 102.0, "stopsBypassed": 6}]
    assert [(place["episodes"], place["minutes"], place["routeIds"]) for place in said["places"]] == [
        (2, 30.0, ["demo:R"]),
        (1, 30.0, ["demo:R"]),
    ]


async def test_the_dashboard_says_how_the_fleet_stands_now(reads: House) -> None:
    await emptied(reads)
    now_ms = reads.clock.at_ms = at("2026-03-02T08:55:00+01:00")
    await reads.add_buses("b1", "b2", "b3")
    reads.say(
        driving("b1", at_ms=now_ms, delay_s=0),
        driving("b2", "T2", at_ms=now_ms, delay_s=900, state="OFF_ROUTE"),
        driving("b3", None, at_ms=now_ms - 300_000, next_stop=None, state="STALE", delay_s=None),
    )
    event = IncidentEvent("e1", "i1", "OFF_ROUTE", "MAJOR", "b2", "T2", DAY, "R", now_ms, None, 36.7, 3.0, "{}")
    reads.parts.table.areas["demo"].incidents["i1"] = event
    said = await reads.get("/v1/dashboard", reads.head("AGENT"))
    reads.parts.table.areas["demo"].incidents.clear()
    assert said["fleet"]["live"] == 3 and said["fleet"]["heardLastMinute"] == 2
    assert {state: count for state, count in said["fleet"]["byState"].items() if count} == {"IN_TRIP": 1, "OFF_ROUTE": 1, "STALE": 1}
    assert said["punctuality"] == {"early": 0, "onTime": 1, "late": 1, "onTimeShare": 0.5}
    assert said["incidents"] == {"open": 1, "bySeverity": {"MINOR": 0, "MAJOR": 1, "CRITICAL": 0}, "byKind": {"OFF_ROUTE": 1}}
    assert (said["tripsRunning"], said["tripsWithoutBus"]) == (2, 1)
    assert said["nextWithoutBus"][0]["tripId"] == f"demo:T1:{DAY}" and said["nextWithoutBus"][0]["departsAt"] == "2026-03-02T08:00:00.000Z"
    assert said["fixesPerS"] == 0.0
    empty = await reads.get("/v1/dashboard", reads.head("PARTNER_ADMIN", "other"))
    assert (empty["fleet"]["live"], empty["incidents"]["open"], empty["tripsWithoutBus"]) == (0, 0, 0), (
        "another operator sees nothing of it"
    )


CALLS = ("on-time", "headways", "deviation", "heatmap?bbox=0,0,1,1", "ladder?route=demo:R")


@pytest.mark.parametrize("what", CALLS)
async def test_only_who_runs_the_fleet_reads_its_days(reads: House, what: str) -> None:
    path = f"/v1/analytics/{what}"
    mark = "&" if "?" in path else "?"
    assert (await reads.http.get(path)).status_code == 401
    assert (await reads.http.get(path, headers=reads.head("CUSTOMER"))).status_code == 403
    assert (await reads.http.get(path, headers=reads.head("DRIVER"))).status_code == 403
    assert (await reads.http.get(f"{path}{mark}partner=demo", headers=reads.head("AGENT", "other"))).status_code == 404
    if not what.startswith(("heatmap", "ladder")):
        assert (await reads.http.get(f"{path}{mark}route=demo:R", headers=reads.head("AGENT", "other"))).status_code == 404
        for bad in ("from=2026-03-02&to=2026-03-01", "from=2025-01-01&to=2026-03-01", "to=yesterday", "from=20260301", "to=9999-12-31"):
            assert (await reads.http.get(f"{path}{mark}{bad}", headers=reads.head("AGENT"))).status_code == 400, bad


async def test_an_area_that_cannot_be_summarised_holds_back_none_of_the_others(reads: House, monkeypatch: pytest.MonkeyPatch) -> None:
    summaries = await emptied(reads)
    await call(reads, instance_of(feed()), 3, 0)
    (demo,) = [each for each in await Analytics(reads.postgres).feeds() if each.feed_id == "demo"]

    async def feeds(store: Analytics) -> list[Any]:
        return [msgspec.structs.replace(demo, feed_id="broken", timezone="Nowhere/At all"), demo]

    monkeypatch.setattr(Analytics, "feeds", feeds)
    with pytest.raises(LookupError):
        await summaries.look()
    assert (await reads.get("/v1/analytics/on-time", reads.head("AGENT"), **DATES))["total"]["calls"] == 1


async def test_another_operators_calls_are_not_among_ones_own(reads: House) -> None:
    summaries = await emptied(reads)
    await call(reads, instance_of(feed()), 3, 0)
    await summaries.look()
    mine, theirs = [
        (await reads.get("/v1/analytics/on-time", reads.head("AGENT", who), **DATES))["total"]["calls"] for who in ("demo", "other")
    ]
    assert (mine, theirs) == (1, 0)
    assert (await reads.get("/v1/analytics/on-time", reads.head("SUPER_ADMIN", None), **DATES))["total"]["calls"] == 1
    assert date.fromisoformat((await reads.get("/v1/analytics/on-time", reads.head("AGENT")))["from"]) == date(2026, 2, 24)
