"""Of a bus under way: no progress, silence, and the word to passengers that a stop is near."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.events import ApproachEvent, Event, IncidentEvent, StopEvent
from engine.tracking.fix import Fix
from engine.tracking.tracker import Tracker
from tests.small_world import SPEED, STRAIGHT, Bus, feed, instance_of

TIMETABLE = feed()
START = instance_of(TIMETABLE).departure_ms(0)
MINUTE = 60_000


def tracker() -> Tracker:
    return Tracker(TIMETABLE, feed_id="demo", partner_id="P")


def told(area: Tracker, fixes: list[Fix], until_ms: int | None = None) -> list[Event]:
    """Everything said; with a tick every five seconds after the last fix, up to then."""
    for fix in fixes:
        area.fold(fix)
    last = max(fix.received_at_ms for fix in fixes)
    for at_ms in range(last + 5_000, (until_ms or last + 10_000) + 1, 5_000):
        area.tick(at_ms)
    return area.take().events


def of_kind(events: list[Event], kind: str) -> list[IncidentEvent]:
    return [event for event in events if isinstance(event, IncidentEvent) and event.kind == kind]


def sayings(events: list[IncidentEvent]) -> list[tuple[str, bool]]:
    return [(event.severity, event.closed_at_ms is not None) for event in events]


def reason(event: IncidentEvent) -> Any:
    return msgspec.json.decode(event.detail)["reason"]


def stands(at_m: float, for_s: int, *, late_s: int = 0, then_m: float | None = None, noise_m: float = 5.0) -> list[Fix]:
    """Drives to that arc, so many seconds late, stands there, and drives on."""
    bus, still = Bus(STRAIGHT), Bus(STRAIGHT, noise_m=noise_m)
    fixes = list(bus.drive(START + late_s * 1000, to_m=at_m, every_s=5.0))
    fixes += list(still.stand(fixes[-1].fixed_at_ms + 5_000, at_m, for_s))
    if then_m is not None:
        fixes += list(bus.drive(fixes[-1].fixed_at_ms + 5_000, from_m=at_m, to_m=then_m, every_s=5.0))
    return fixes


def test_four_minutes_without_progress_are_a_delay_and_driving_on_ends_it() -> None:
    opened, closed = of_kind(told(tracker(), stands(3_250.0, 330, then_m=3_600.0)), "DELAYED")
    assert opened.closed_at_ms is None and closed.closed_at_ms is not None and opened.incident_id == closed.incident_id
    assert opened.opened_at_ms == pytest.approx(START + 3_250 / SPEED * 1000, abs=10_000), "since it came to rest"
    assert reason(closed) == "MOVES" and msgspec.json.decode(closed.detail)["stoodS"] == pytest.approx(340, abs=15)


def test_a_delay_that_lasts_is_worse_each_step_said_once() -> None:
    assert sayings(of_kind(told(tracker(), stands(3_250.0, 2_000)), "DELAYED")) == [("MINOR", False), ("MAJOR", False), ("CRITICAL", False)]


@pytest.mark.parametrize(
    ("at_m", "for_s", "late_s"),
    [(3_000.0, 600, -600), (3_250.0, 200, 0), (5_900.0, 900, 0)],
    ids=["early at a stop, until its time", "a long red light", "at its terminal"],
)
def test_who_may_stand_is_not_delayed(at_m: float, for_s: int, late_s: int) -> None:
    assert of_kind(told(tracker(), stands(at_m, for_s, late_s=late_s)), "DELAYED") == []


def test_after_its_time_at_a_stop_the_clock_runs() -> None:
    (opened,) = of_kind(told(tracker(), stands(3_000.0, 900, late_s=-600)), "DELAYED")
    assert opened.opened_at_ms == START + round(3_000 / SPEED) * 1000


def test_a_stop_that_is_near_is_said_once_and_before_it_is_served() -> None:
    fixes = stands(1_400.0, 60, then_m=3_100.0, noise_m=15.0)
    said = [event for event in told(tracker(), fixes) if isinstance(event, ApproachEvent | StopEvent)]
    near = [event for event in said if isinstance(event, ApproachEvent)]
    assert [event.stop_sequence for event in near] == [2, 3, 4, 5, 6, 7], "the first is where the trip begins"
    assert all(200 < event.away_m <= 250 for event in near[1:2] + near[3:])
    for event in near[:-1]:
        served = next(i for i, other in enumerate(said) if isinstance(other, StopEvent) and other.stop_sequence == event.stop_sequence)
        assert said.index(event) < served


HEARD = list(Bus(STRAIGHT).drive(START, to_m=2_000.0))
LAST_MS = HEARD[-1].fixed_at_ms


def test_a_bus_under_way_that_falls_silent_is_said_once_until_it_is_heard_again() -> None:
    area = tracker()
    (opened,) = of_kind(told(area, HEARD, LAST_MS + 7 * MINUTE), "SILENT")
    assert (opened.opened_at_ms, opened.closed_at_ms, opened.trip_id) == (LAST_MS, None, "T0")
    area.tick(LAST_MS + 16 * MINUTE)
    assert sayings(of_kind(area.take().events, "SILENT")) == [("MAJOR", False)]
    again = Bus(STRAIGHT).at(LAST_MS + 17 * MINUTE, 2_600.0)
    (closed,) = of_kind(told(area, [again]), "SILENT")
    assert (closed.incident_id, closed.closed_at_ms, reason(closed)) == (opened.incident_id, again.fixed_at_ms, "HEARD")


def test_a_restart_knows_who_is_silent() -> None:
    area, after = tracker(), tracker()
    for fix in HEARD:
        area.fold(fix)
    area.tick(LAST_MS + 7 * MINUTE)
    out = area.take()
    after.restore(out.states, out.open_incidents.values())
    closed = of_kind(told(after, [Bus(STRAIGHT).at(LAST_MS + 8 * MINUTE, 2_600.0)]), "SILENT")
    assert [reason(event) for event in closed] == ["HEARD"]


def test_a_backlog_of_old_fixes_is_no_sign_of_life() -> None:
    area = tracker()
    told(area, HEARD, LAST_MS + 9 * MINUTE)
    old = Bus(STRAIGHT).at(LAST_MS + MINUTE, 2_300.0, lag_ms=8 * MINUTE)
    assert of_kind(told(area, [old]), "SILENT") == []


def test_nobody_waits_for_a_word_long_after_the_trip_or_where_another_bus_drives_it() -> None:
    area = tracker()
    told(area, HEARD, LAST_MS + 7 * MINUTE)
    end_ms = instance_of(TIMETABLE).arrival_ms(12)
    area.tick(end_ms + 31 * MINUTE)
    (closed,) = of_kind(area.take().events, "SILENT")[-1:]
    assert (closed.closed_at_ms, reason(closed)) == (end_ms + 30 * MINUTE, "TRIP_OVER")
    area = tracker()
    told(area, HEARD, LAST_MS + 11 * MINUTE)
    other = [msgspec.structs.replace(fix, bus_id="b2") for fix in Bus(STRAIGHT, bus_id="b2").drive(LAST_MS + 11 * MINUTE, to_m=400.0)]
    said = of_kind(told(area, other, LAST_MS + 16 * MINUTE), "SILENT")
    assert [reason(event) for event in said if event.closed_at_ms is not None] == ["OTHER_BUS"]


def test_who_waits_for_its_trip_or_has_ended_it_may_be_silent() -> None:
    area = tracker()
    waiting = list(Bus(STRAIGHT).stand(START - 600_000, 0.0, 120))
    assert of_kind(told(area, waiting, START + 20 * MINUTE), "SILENT") == []
    done = list(Bus(STRAIGHT, bus_id="b2", trip_id="T0").drive(START, every_s=5.0))
    assert of_kind(told(tracker(), done, done[-1].fixed_at_ms + 20 * MINUTE), "SILENT") == []
