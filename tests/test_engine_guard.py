"""Speed and engine: one episode each, whatever the receiver says in between, and nothing of a bus that waits where it may."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.events import IncidentEvent
from engine.tracking.fix import Fix
from engine.tracking.guard import AT_EASE
from engine.tracking.rules import Rules, WatchConfig
from engine.tracking.tracker import Tracker
from engine.tracking.vehicle import Area, VehicleState, advance
from tests.small_world import STRAIGHT, Bus, feed, instance_of

TIMETABLE = feed()
START = instance_of(TIMETABLE).departure_ms(0)
LIMIT = 10.0


def watched(fixes: list[Fix], **config: Any) -> list[IncidentEvent]:
    """Everything that the guard says of one bus, in order of time. A bus that names no trip is on none."""
    area, state, said = Area(TIMETABLE if fixes[0].trip_id is not None else None), VehicleState("b1"), []
    area.rules = Rules(watch=WatchConfig(**{"speed_limit_mps": LIMIT, "speed_slack_mps": 0.0} | config))
    for fix in fixes:
        state, now = advance(state, fix, area)
        said += [event for event in now.events if isinstance(event, IncidentEvent) and event.kind in ("SPEEDING", "IDLING")]
    return said


def at_speeds(speeds: list[float], every_s: float = 1.0, **more: Any) -> list[Fix]:
    """On no trip, along the line, as fast as that from fix to fix."""
    bus, along, fixes = Bus(STRAIGHT, trip_id=None), 0.0, []
    for k, speed in enumerate(speeds):
        along += speed * every_s
        fixes.append(bus.at(START + round(k * every_s * 1000), along, speed=speed, **more))
    return fixes


def sayings(events: list[IncidentEvent]) -> list[tuple[str, bool]]:
    """Severity, and whether it is the closing word."""
    return [(event.severity, event.closed_at_ms is not None) for event in events]


def test_ten_seconds_over_the_limit_are_speeding_and_ten_under_it_end_it() -> None:
    said = watched(at_speeds([9.0] * 5 + [11.0] * 15 + [9.0] * 15))
    assert sayings(said) == [("MINOR", False), ("MINOR", True)]
    opened, closed = said
    assert opened.incident_id == closed.incident_id and opened.opened_at_ms == START + 5_000
    assert closed.closed_at_ms == START + 20_000, "when it was under the limit again, not when we were sure"
    assert msgspec.json.decode(closed.detail) == {"limitMps": 10.0, "maxMps": 11.0, "reason": "SLOWER"}
    assert opened.trip_id is None


@pytest.mark.parametrize(
    "speeds",
    [[11.0] * 9 + [9.0] + [11.0] * 9, [30.0] + [9.0] * 20, [10.0] * 60],
    ids=["two short ones", "one wild fix", "at the limit"],
)
def test_less_is_not_speeding(speeds: list[float]) -> None:
    assert watched(at_speeds([9.0, *speeds, 9.0])) == []


def test_a_dip_below_the_limit_does_not_end_the_episode_and_each_rise_is_said_once() -> None:
    said = watched(at_speeds([11.0] * 12 + [9.5] * 5 + [12.5] * 10 + [16.0] * 5 + [12.5] * 10 + [8.0] * 12))
    assert sayings(said) == [("MINOR", False), ("MAJOR", False), ("CRITICAL", False), ("CRITICAL", True)]
    assert len({event.event_id for event in said}) == 4 and len({event.incident_id for event in said}) == 1


def test_two_fixes_half_a_minute_apart_prove_it_and_two_a_minute_apart_do_not() -> None:
    assert sayings(watched(at_speeds([11.0, 11.0], 30.0))) == [("MINOR", False)]
    assert watched(at_speeds([11.0, 11.0, 11.0], 60.0)) == []


def standing(seconds: int, along_m: float = 3_200.0, *, every_s: int = 10, from_ms: int = START, **more: Any) -> list[Fix]:
    bus = Bus(STRAIGHT, trip_id=more.pop("trip_id", None), noise_m=4.0)
    return [bus.at(from_ms + k * 1000, along_m, speed=0.0, **more) for k in range(0, seconds, every_s)]


def test_a_bus_that_stands_with_its_engine_on_idles_until_it_is_off() -> None:
    on, off = standing(420, ignition=True), standing(60, from_ms=START + 420_000, ignition=False)
    said = watched(on + off)
    assert sayings(said) == [("MINOR", False), ("MINOR", True)]
    assert said[0].opened_at_ms == START and said[1].closed_at_ms == START + 420_000
    assert msgspec.json.decode(said[1].detail) == {"stoodS": 420, "reason": "ENGINE_OFF"}


def test_twenty_minutes_of_it_are_worse_and_driving_on_ends_it() -> None:
    off = Bus(STRAIGHT, trip_id=None).drive(START + 1_500_000, from_m=3_210.0, to_m=3_400.0)
    said = watched(standing(1_500, ignition=True) + [msgspec.structs.replace(fix, ignition=True) for fix in off])
    assert sayings(said) == [("MINOR", False), ("MAJOR", False), ("MAJOR", True)]
    assert msgspec.json.decode(said[-1].detail)["reason"] == "DRIVES"


@pytest.mark.parametrize("ignition", [None, False])
def test_a_bus_in_its_depot_that_says_nothing_of_its_engine_does_not_idle(ignition: bool | None) -> None:
    assert watched(standing(3_600, ignition=ignition)) == []


def on_trip(stand_m: float, stand_s: int, *, late_s: int = 0, **more: Any) -> list[Fix]:
    """Drives T0 to that arc on time, or that late, and stands there."""
    bus, start = Bus(STRAIGHT), START + late_s * 1000
    fixes = list(bus.drive(start, to_m=stand_m, every_s=5.0))
    return fixes + standing(stand_s, stand_m, from_ms=fixes[-1].fixed_at_ms + 10_000, trip_id="T0", **more)


def test_under_way_an_engine_that_nobody_speaks_of_runs() -> None:
    assert sayings(watched(on_trip(3_250.0, 400))) == [("MINOR", False)]


def test_who_waits_for_the_time_of_a_stop_or_at_the_end_does_not_idle() -> None:
    early = on_trip(3_000.0, 400, late_s=-500)  # eight minutes before its time at stop 7
    assert watched(early) == []
    assert watched(on_trip(5_900.0, 900)) == [], "at its terminal"
    assert watched(list(Bus(STRAIGHT, noise_m=3.0).stand(START - 900_000, 0.0, 900))) == [], "before its trip"


def test_a_fix_with_which_nothing_happens_answers_the_same_object() -> None:
    area, state = Area(TIMETABLE), VehicleState("b1")
    for fix in Bus(STRAIGHT).drive(START, to_m=500.0):
        state, _ = advance(state, fix, area)
        assert state.guard is AT_EASE


def test_what_is_open_is_closed_when_the_bus_falls_silent() -> None:
    area = Tracker(TIMETABLE, feed_id="demo", partner_id="P")
    area.rule(Rules(watch=WatchConfig(speed_limit_mps=LIMIT)))
    fixes = at_speeds([14.0] * 20)
    for fix in fixes:
        area.fold(fix)
    area.tick(fixes[-1].received_at_ms + 601_000)
    said = [event for event in area.take().events if isinstance(event, IncidentEvent) and event.kind == "SPEEDING"]
    assert sayings(said) == [("MAJOR", False), ("MAJOR", True)]
    assert said[1].closed_at_ms == fixes[-1].fixed_at_ms and msgspec.json.decode(said[1].detail)["reason"] == "SILENT"
