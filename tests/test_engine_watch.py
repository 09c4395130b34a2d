"""Watching: a word for what deserves one, once an episode, and silence for noise."""

from __future__ import annotations

import csv
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pytest

from engine.events import IN_TRIP, Event, IncidentEvent, StopEvent, StopForecast, TripForecast
from engine.events import OFF_ROUTE as OFF_STATE
from engine.tracking.fix import Fix
from engine.tracking.timetable import Timetable
from engine.tracking.tracker import Tracker
from engine.tracking.watch import OFF, ON, SUSPECT, OffRoute
from geo.coords import moved
from ingest.gtfs import read_feed
from tests.small_world import DAY, LAT0, LON0, STRAIGHT, Bus, feed, instance_of, line

TIMETABLE = feed()
START = instance_of(TIMETABLE).departure_ms(0)


def watched(fixes: list[Fix], timetable: Timetable = TIMETABLE) -> tuple[Tracker, list[Event], list[str | None]]:
    """Everything said, and the state of every row."""
    tracker = Tracker(timetable, feed_id="demo", partner_id="P")
    for fix in fixes:
        tracker.fold(fix)
    tracker.tick(fixes[-1].received_at_ms + 10_000)
    out = tracker.take()
    return tracker, out.events, [row.state for row in out.rows]


def incidents(events: list[Event], kind: str) -> list[IncidentEvent]:
    return [event for event in events if isinstance(event, IncidentEvent) and event.kind == kind]


def detail(event: IncidentEvent) -> dict[str, Any]:
    return msgspec.json.decode(event.detail)


def drive_aside(every_s: float, pieces: list[tuple[float, float]], *, start_m: float = 0.0, noise_m: float = 0.0) -> list[Fix]:
    """Along the line at 8 m/s, each piece (up to this arc, this far beside it)."""
    bus = Bus(STRAIGHT, noise_m=noise_m)
    fixes, along, at_ms = [], start_m, START
    for to_m, aside_m in pieces:
        while along < to_m:
            fixes.append(bus.at(at_ms, along, aside_m))
            along += 8.0 * every_s
            at_ms += round(every_s * 1000)
    return fixes


def test_a_detour_is_one_episode_with_its_facts() -> None:
    _, events, states = watched(drive_aside(5.0, [(1_600, 0), (2_900, 250), (4_500, 0)]))
    opened, *rest = incidents(events, "OFF_ROUTE")
    assert opened.closed_at_ms is None and opened.severity == "MAJOR"
    closed = rest[-1]
    assert closed.incident_id == opened.incident_id and closed.closed_at_ms is not None
    assert closed.opened_at_ms == pytest.approx(START + 200_000, abs=5_000)
    assert detail(closed)["maxOffsetM"] == pytest.approx(250, abs=2)
    assert detail(closed)["bypassedStops"] == [5, 6]
    assert detail(closed)["rejoinedM"] == pytest.approx(2_950, abs=60)
    assert OFF_STATE in states and states[-1] == "IN_TRIP"
    assert len({event.event_id for event in incidents(events, "OFF_ROUTE")}) == len(incidents(events, "OFF_ROUTE"))


def test_how_far_it_came_is_measured_from_the_whole_line() -> None:
    """A short cut from one leg of a U to the other: half way it is as far from both, whatever leg the match still holds on to."""
    shape = line([(0, 0), (3_000, 0), (3_000, 900), (0, 900)], "u")
    bus, at_ms = Bus(shape, tells=False), instance_of(feed(shape)).departure_ms(0)
    fixes = []
    for along, aside in [*((along, 0.0) for along in range(0, 1_501, 40)), *((1_500, float(aside)) for aside in range(40, 900, 40))]:
        fixes.append(bus.at(at_ms, along, aside))
        at_ms += 5_000
    for along in range(5_400, 6_400, 40):
        fixes.append(bus.at(at_ms, along))
        at_ms += 5_000
    _, events, _ = watched(fixes, feed(shape))
    closed = incidents(events, "OFF_ROUTE")[-1]
    assert closed.closed_at_ms is not None and detail(closed)["reason"] == "BACK_ON_ROUTE"
    assert detail(closed)["maxOffsetM"] == pytest.approx(450, abs=30)


def test_a_street_between_two_legs_of_the_line_is_no_grave_detour() -> None:
    """230 m from the leg that the bus left in one step, 170 m from the other."""
    shape = line([(0, 0), (3_000, 0), (3_000, 400), (0, 400)], "u")
    bus, at_ms = Bus(shape, tells=False), instance_of(feed(shape)).departure_ms(0)
    fixes = []
    for along, aside in [*((along, 0.0) for along in range(0, 1_501, 160)), *((along, 230.0) for along in range(1_600, 2_400, 160))]:
        fixes.append(bus.at(at_ms, along, aside))
        at_ms += 20_000
    _, events, _ = watched(fixes, feed(shape))
    opened = incidents(events, "OFF_ROUTE")[0]
    assert opened.severity == "MINOR" and detail(opened)["maxOffsetM"] == pytest.approx(170, abs=2)


TWO_LEGS = line([(0, 0), (3_000, 0), (3_000, 1_500), (-1_000, 1_500), (-1_000, 250), (2_800, 250)], "two legs")


def driven(every_s: int, *pieces: tuple[float, float]) -> list[Fix]:
    """From corner to corner (metres) at 8 m/s, with speed and bearing, on the trip of a feed of `TWO_LEGS`; a corner said twice: 20 s there."""
    way: list[tuple[float, float, float, float]] = []
    for (x0, y0), (x1, y1) in itertools.pairwise(pieces):
        count = round(math.hypot(x1 - x0, y1 - y0) / 8)
        bearing = math.degrees(math.atan2(x1 - x0, y1 - y0)) % 360 if count else way[-1][3]
        speed = 8.0 if count else 0.0
        way += [(x0 + (x1 - x0) * n / max(1, count), y0 + (y1 - y0) * n / max(1, count), speed, bearing) for n in range(count or 20)]
    start = instance_of(feed(TWO_LEGS)).departure_ms(0)
    fixes = []
    for second in range(0, len(way), every_s):
        x, y, speed, bearing = way[second]
        lon, lat = moved(LON0, LAT0, x, y)
        told = {"accuracy_m": 5.0, "speed_mps": speed, "bearing_deg": bearing, "trip_id": "T0", "start_date": DAY}
        fixes.append(Fix("b1", start + second * 1000, lat, lon, start + second * 1000 + 200, "d", "telemetry", **told))  # type: ignore[arg-type]
    return fixes


@pytest.mark.parametrize("every_s", [1, 5, 10])
def test_a_detour_that_crosses_a_later_stretch_of_its_line_is_one_detour_and_keeps_its_stops(every_s: int) -> None:
    """Out and back across it, with a red light right before each time."""
    around = [(1_000, 235), (1_000, 235), (1_000, 400), (2_000, 400), (2_000, 265), (2_000, 265), (2_000, 0)]
    rest = [(3_000, 0), (3_000, 1_500), (-1_000, 1_500), (-1_000, 250), (2_800, 250)]
    _, events, _ = watched(driven(every_s, (0, 0), (1_000, 0), *around, *rest), feed(TWO_LEGS, stops=35))
    kinds = Counter(event.kind for event in events if isinstance(event, StopEvent))
    assert kinds["MISSED"] == 2 and sum(kinds.values()) >= 34
    assert len({event.incident_id for event in incidents(events, "OFF_ROUTE")}) == 1


@pytest.mark.parametrize("every_s", [1, 5, 10])
def test_who_turns_back_and_round_again_on_a_street_driven_both_ways_keeps_its_stops(every_s: int) -> None:
    """For 300 m it drives as if its way back had begun; nothing was said of what lies between, and it is still to come."""
    shape = line([(0, 0), (5_000, 0), (5_000, 7), (0, 7)], "out and back")
    bus, at_ms, fixes = Bus(shape), instance_of(feed(shape)).departure_ms(0), []
    way = [*np.arange(0, 2_500, 8 * every_s), *np.arange(2_500, 2_200, -8 * every_s), *np.arange(2_200, shape.length_m, 8 * every_s)]
    for n, along in enumerate(way):
        back = n > 0 and along < way[n - 1]
        fixes.append(bus.at(at_ms, float(along), **({"bearing_deg": 270.0} if back else {})))
        at_ms += every_s * 1_000
    _, events, _ = watched(fixes, feed(shape, stops=26))
    assert len([event for event in events if isinstance(event, StopEvent)]) >= 24
    assert not incidents(events, "WRONG_WAY") or max(detail(event)["turnedM"] for event in incidents(events, "WRONG_WAY")) < 2_600


def test_the_stops_of_a_detour_are_missed_and_the_others_served() -> None:
    _, events, _ = watched(drive_aside(5.0, [(1_600, 0), (2_900, 250), (4_500, 0)]))
    kinds = {event.stop_sequence: event.kind for event in events if isinstance(event, StopEvent)}
    assert kinds == {1: "SERVED", 2: "PASSED", 3: "PASSED", 4: "PASSED", 5: "MISSED", 6: "MISSED", 7: "PASSED", 8: "PASSED", 9: "PASSED"}
    missed = incidents(events, "MISSED_STOP")
    assert [detail(event)["stopSequence"] for event in missed] == [5, 6]
    assert all(event.closed_at_ms == event.opened_at_ms for event in missed)


def test_a_ninety_second_diversion_that_misses_a_stop_is_noticed_at_thirty_seconds_sampling() -> None:
    _, events, _ = watched(drive_aside(30.0, [(1_700, 0), (2_400, 400), (4_500, 0)]))
    assert [detail(event)["stopSequence"] for event in incidents(events, "MISSED_STOP")] == [5]


def foretold(fixes: list[Fix], *, restart_after: int | None = None) -> list[tuple[TripForecast, StopForecast | None]]:
    """Every forecast told on the way, with the next stop as the position beside it says it."""
    tracker, found, kept = Tracker(TIMETABLE, feed_id="demo", partner_id="P"), [], {}
    for number, fix in enumerate(fixes):
        tracker.fold(fix)
        out = tracker.take()
        kept |= out.states
        found += [(forecast, out.positions[-1].next_stop) for forecast in out.forecasts if forecast.stops]
        if number == restart_after:
            tracker = Tracker(TIMETABLE, feed_id="demo", partner_id="P")
            tracker.restore(kept)
    return found


def test_the_stops_of_a_detour_stand_as_skipped_before_the_forecast_until_the_trip_ends() -> None:
    fixes = drive_aside(5.0, [(1_600, 0), (2_900, 250), (4_500, 0)])
    found = foretold(fixes)
    said = [[stop.stop_sequence for stop in forecast.stops if stop.kind == "SKIPPED"] for forecast, _ in found]
    assert said == sorted(said) and said[0] == [] and [5] in said and said[-1] == [5, 6], "none before, then one after the other"
    for forecast, next_stop in found:
        sequences = [stop.stop_sequence for stop in forecast.stops]
        assert sequences == sorted(set(sequences)) and sequences[-1] == 13
        assert all((stop.p50_ms is None) == (stop.kind == "SKIPPED") for stop in forecast.stops)
        assert forecast.ahead == tuple(stop for stop in forecast.stops if stop.kind == "ESTIMATED") and next_stop == forecast.ahead[0]
    again = foretold(fixes, restart_after=len(fixes) - 30)  # on the line again, both stops behind it
    assert len(again) == len(found)
    assert [stop.stop_sequence for stop in again[-1][0].stops if stop.kind == "SKIPPED"] == [5, 6], "a restart knows what was missed"


def test_two_wild_fixes_are_no_deviation() -> None:
    _, events, _ = watched(drive_aside(10.0, [(1_600, 0), (1_760, 120), (4_500, 0)]))
    assert not incidents(events, "OFF_ROUTE")


def test_noise_of_ten_metres_says_nothing_at_all() -> None:
    for every_s in (1.0, 10.0, 30.0):
        _, events, _ = watched(drive_aside(every_s, [(5_900, 0)], noise_m=10.0))
        assert not [event for event in events if isinstance(event, IncidentEvent)]


def test_a_parked_bus_whose_receiver_drifts_behind_houses_is_not_off_route() -> None:
    bus, chance = Bus(STRAIGHT), random.Random(5)
    fixes = drive_aside(5.0, [(2_000, 0)])
    at_ms = fixes[-1].fixed_at_ms
    for k in range(60):
        fixes.append(bus.at(at_ms + (k + 1) * 5_000, 2_000 + chance.gauss(0, 10), 75 + chance.gauss(0, 10), speed=0.0))
    _, events, _ = watched(fixes)
    assert not incidents(events, "OFF_ROUTE")


def test_a_reflection_has_to_last_ninety_seconds() -> None:
    """Sideways by 120 m from one second to the next: no bus does that, houses do."""
    for until_m, episodes in ((2_200, 0), (2_500, 1)):  # 75 s, 112 s
        _, said, _ = watched(drive_aside(1.0, [(1_600, 0), (until_m, 120), (2_800, 0)]))
        assert len({event.incident_id for event in incidents(said, "OFF_ROUTE")}) == episodes


def test_an_inaccurate_fix_widens_the_limit() -> None:
    fixes = [msgspec.structs.replace(fix, accuracy_m=60.0) for fix in drive_aside(5.0, [(1_600, 0), (2_900, 150), (4_500, 0)])]
    assert not incidents(watched(fixes)[1], "OFF_ROUTE")


def test_the_table_is_walked_in_order() -> None:
    tracker = Tracker(TIMETABLE, feed_id="demo", partner_id="P")
    phases = []
    for fix in drive_aside(15.0, [(1_600, 0), (2_500, 100), (4_000, 0)]):
        tracker.fold(fix)
        phase = tracker._vehicles["b1"].newest.watch.off_route.phase
        if not phases or phases[-1] != phase:
            phases.append(phase)
    assert phases == [ON, SUSPECT, OFF, ON]


def test_what_is_open_is_closed_when_the_bus_falls_silent() -> None:
    fixes = drive_aside(5.0, [(1_600, 0), (2_900, 250)])
    tracker, events, _ = watched(fixes)
    assert incidents(events, "OFF_ROUTE")[-1].closed_at_ms is None
    tracker.tick(fixes[-1].fixed_at_ms + 601_000)
    out = tracker.take()
    assert [event.closed_at_ms for event in incidents(out.events, "OFF_ROUTE")] == [fixes[-1].fixed_at_ms]
    assert tracker._vehicles["b1"].newest.watch.off_route == OffRoute()


def test_wrong_way_opens_after_150_metres_back_and_closes_when_it_comes_forward() -> None:
    bus = Bus(STRAIGHT)
    fixes = list(bus.drive(START, to_m=3_000.0, every_s=5.0))
    at_ms = fixes[-1].fixed_at_ms
    back = [bus.at(at_ms + (k + 1) * 5_000, 3_000.0 - 40 * k, bearing_deg=270.0) for k in range(10)]
    at_ms = back[-1].fixed_at_ms
    forth = list(bus.drive(at_ms + 5_000, from_m=2_640.0, to_m=4_000.0, every_s=5.0))
    _, events, _ = watched(fixes + back + forth)
    said = incidents(events, "WRONG_WAY")
    assert [event.closed_at_ms is None for event in said] == [True, False]
    assert detail(said[1])["turnedM"] == pytest.approx(3_000, abs=10)
    served = [event.stop_sequence for event in events if isinstance(event, StopEvent)]
    assert served == sorted(set(served))


def test_a_replay_says_the_same_ids() -> None:
    fixes = drive_aside(5.0, [(1_600, 0), (2_900, 250), (4_500, 0)])
    assert [event.event_id for event in watched(fixes)[1]] == [event.event_id for event in watched(fixes)[1]]


@pytest.mark.data
def test_recorded_buses_are_on_route_when_they_are_and_deadheads_are_noticed(data_dir: Path) -> None:
    """Six recorded vehicles of Brooklyn's B63 with human labels; none of them names its trip."""
    folder = data_dir / "brooklyn_b63_2010"
    timetable = read_feed(folder / "gtfs.zip", feed_id="b63")
    in_progress, false_off, on_trip = 0, 0, 0
    for path in sorted(folder.glob("*.csv")):
        tracker = Tracker(timetable, feed_id="b63", partner_id="P")
        deadhead_since_ms: int | None = None
        noticed = True
        for fix, phase in labelled(path):
            tracker.fold(fix)
            state = tracker._vehicles[fix.bus_id].newest
            off = state.watch.off_route.phase == OFF
            riding = state.ride is not None and state.ride.phase == IN_TRIP and not off
            if phase == "IN_PROGRESS":
                in_progress, false_off, on_trip = in_progress + 1, false_off + off, on_trip + riding
            if "DEADHEAD" not in phase or "IN_PROGRESS" in phase:
                deadhead_since_ms, noticed = None, True
                continue
            if deadhead_since_ms is None:
                deadhead_since_ms, noticed = fix.fixed_at_ms, False
            noticed = noticed or not riding
            assert noticed or fix.fixed_at_ms - deadhead_since_ms <= 90_000, (path.name, fix.fixed_at_ms)
    assert in_progress > 500
    assert false_off <= in_progress / 1_000
    assert on_trip >= 0.95 * in_progress  # the first minutes of a recording, until its trip is found, are not the watches'


def labelled(path: Path) -> Iterator[tuple[Fix, str]]:
    zone = ZoneInfo("America/New_York")
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            at_ms = round(datetime.strptime(row["timestamp"], "%Y-%m-%d %H:%M:%S").replace(tzinfo=zone).timestamp() * 1000)
            yield Fix(row["vid"], at_ms, float(row["lat"]), float(row["lon"]), at_ms, row["vid"], "replay"), row["actual_phase"]
