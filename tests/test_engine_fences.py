"""Fences: in, out and through, each said once with its time, whatever the noise, the order and the batches."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import Invalid
from engine.events import IncidentEvent
from engine.tracking import fences
from engine.tracking.episodes import Sight
from engine.tracking.fences import (
    CORRIDOR,
    FENCES_MOST,
    PLAIN,
    RESTRICTED,
    SPEED_ZONE,
    STAY_IN,
    Fence,
    FenceIndex,
    FenceState,
    fences_close,
    fences_next,
    limit_mps,
)
from engine.tracking.fix import OK, Fix, Motion, screen
from engine.tracking.hours import Calendar, CalendarWindow, Hours, Window, hours_of
from engine.tracking.ride import Ride
from engine.tracking.rules import NO_RULES, Rules
from engine.tracking.tracker import Tracker
from geo.coords import moved
from geo.drawing import drawn
from geo.fence import Area

HOME = (3.05, 36.75)
START = 1_772_434_800_000  # a Monday, 07:00 UTC
HOUR = 3_600_000


def circle(radius_m: float = 100.0, east_m: float = 0.0, home: tuple[float, float] = HOME) -> Area:
    return drawn({"type": "Circle", "coordinates": list(moved(*home, east_m, 0.0)), "radiusM": radius_m})


def ride_of(route_id: str) -> Ride:
    return Ride("T", "20260302", route_id, "1", "DEVICE", START, None)


class Drive:
    """One bus, its fixes in local metres around a home, and what is said."""

    def __init__(self, *fences: Fence, bus_id: str = "b1", home: tuple[float, float] = HOME) -> None:
        self.index, self.bus_id, self.home = FenceIndex(fences), bus_id, home
        self.states: tuple[FenceState, ...] = ()
        self.motion: Motion | None = None
        self.last: Fix | None = None
        self.said: list[IncidentEvent] = []
        self.ride: Ride | None = None

    def at(self, seconds: float, east_m: float, north_m: float = 0.0, accuracy_m: float | None = 5.0) -> list[IncidentEvent]:
        """The words of one fix."""
        lon, lat = moved(*self.home, east_m, north_m)
        at_ms = START + round(seconds * 1000)
        fix = Fix(self.bus_id, at_ms, lat, lon, at_ms, "d", "test", accuracy_m)
        motion, verdict = screen(self.motion, fix)
        assert verdict == OK, verdict
        sight = Sight(fix, motion, self.motion, self.ride, None, None, None, NO_RULES)
        self.states, words = fences_next(self.states, sight, self.index)
        self.motion, self.last = motion, fix
        self.said += words
        return list(words)

    def along(self, places: Iterable[float], every_s: float, begin_s: float = 0.0, north_m: float = 0.0) -> Drive:
        for number, east_m in enumerate(places):
            self.at(begin_s + number * every_s, east_m, north_m)
        return self

    @property
    def words(self) -> list[tuple[str, bool]]:
        return [(event.kind, event.closed_at_ms is not None) for event in self.said]


def seconds(ms: int | None) -> float:
    assert ms is not None
    return (ms - START) / 1000.0


def detail(event: IncidentEvent) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(event.detail)
    return found


def test_coming_and_going_is_said_once_with_the_times_of_the_border() -> None:
    drive = Drive(Fence("f", "Depot", PLAIN, circle())).along(range(-400, 401, 40), 5.0)
    assert drive.words == [("FENCE_ENTERED", False), ("FENCE_ENTERED", True), ("FENCE_EXITED", True)]
    entered, left, gone = drive.said
    assert seconds(entered.opened_at_ms) == pytest.approx(37.5, abs=0.1), "40 m in 5 s from -400: at -100 after 37.5 s"
    assert seconds(left.closed_at_ms) == seconds(gone.opened_at_ms) == pytest.approx(62.5, abs=0.1)
    assert left.incident_id == entered.incident_id != gone.incident_id
    assert detail(left) == {"fenceId": "f", "fence": "Depot", "fenceKind": "PLAIN", "reason": "LEFT", "lastedS": 25}
    assert len({event.event_id for event in drive.said}) == 3 and {event.severity for event in drive.said} == {"MINOR"}
    assert drive.states == ()


def test_being_in_a_restricted_area_is_open_until_it_is_left() -> None:
    drive = Drive(Fence("f", "Works", RESTRICTED, circle(), severity="CRITICAL")).along([-300, -150, 0, 20], 10.0)
    assert drive.words == [("FENCE_ENTERED", False)] and drive.said[0].severity == "CRITICAL" and drive.said[0].closed_at_ms is None
    drive.along([20, 150, 300], 10.0, 40.0)
    assert drive.words[1:] == [("FENCE_ENTERED", True)]


@pytest.mark.parametrize(
    ("inside_m", "fixes"),
    [([8.0, 8.0, 8.0, 8.0], 0), ([12.0, 5.0, 12.0], 0), ([12.0, 12.0], 2), ([21.0], 1)],
    ids=["never deep", "not in a row", "two fixes", "once deep"],
)
def test_it_takes_two_fixes_beyond_the_noise_or_one_deep_one_to_be_inside(inside_m: list[float], fixes: int) -> None:
    drive = Drive(Fence("f", "x", RESTRICTED, circle()))
    drive.at(0, -130.0, accuracy_m=10.0)
    for number, deep in enumerate(inside_m, 1):
        drive.at(10 * number, -100.0 + deep, accuracy_m=10.0)
        assert bool(drive.said) == bool(fixes and number >= fixes)


@pytest.mark.parametrize(
    ("outside_m", "fixes"),
    [([29.0, 29.0, 29.0], 0), ([31.0, 20.0, 31.0], 0), ([31.0, 31.0], 2), ([61.0], 1)],
    ids=["within the noise", "not in a row", "two fixes", "once far"],
)
def test_it_takes_two_fixes_beyond_the_noise_or_one_far_one_to_be_outside(outside_m: list[float], fixes: int) -> None:
    drive = Drive(Fence("f", "x", RESTRICTED, circle()))
    drive.along([-150, -70, -60], 10.0)
    assert drive.words == [("FENCE_ENTERED", False)]
    for number, out in enumerate(outside_m, 1):
        drive.at(20 + 10 * number, -100.0 - out, accuracy_m=10.0)
        assert (len(drive.said) == 2) == bool(fixes and number >= fixes)


@settings(max_examples=80, deadline=None)
@given(
    offset=st.floats(-29.5, 29.5), phase=st.floats(0, 1), heading=st.floats(0, 6.28), accuracy=st.sampled_from([None, 5.0, 15.0, 40.0])
)  # fmt: skip
def test_a_small_fence_between_two_fixes_is_passed(offset: float, phase: float, heading: float, accuracy: float | None) -> None:
    """60 m across, 25 m/s, a fix every 30 s: it is noticed, once."""
    drive = Drive(Fence("f", "Gate", PLAIN, circle(30.0)))
    places = []
    for number in range(-3, 4):
        along = (number + phase) * 750.0
        places.append((along * math.cos(heading) - offset * math.sin(heading), along * math.sin(heading) + offset * math.cos(heading)))
        drive.at(30.0 * (number + 3), *places[-1], accuracy_m=accuracy)
    inside = any(math.hypot(*place) < 30.0 for place in places)
    if inside:
        assert drive.words in ([("FENCE_PASSED", True)], [("FENCE_ENTERED", False), ("FENCE_ENTERED", True), ("FENCE_EXITED", True)])
    else:
        assert drive.words == [("FENCE_PASSED", True)]
        passed = drive.said[0]
        assert passed.closed_at_ms is not None and passed.opened_at_ms <= passed.closed_at_ms
        assert seconds(passed.opened_at_ms) == pytest.approx((3 - phase) * 30.0, abs=1.5)
    assert drive.states == ()


def test_a_way_that_nobody_knows_passes_nothing() -> None:
    drive = Drive(Fence("f", "Gate", RESTRICTED, circle(30.0)))
    drive.at(0, -2_000)
    drive.at(600, 2_000)
    assert drive.said == [] and drive.states == ()


@pytest.mark.parametrize("memory_s", [0.0, 30.0, 300.0, 1_800.0])
def test_a_bus_that_is_parked_at_the_border_says_nothing_all_night(memory_s: float) -> None:
    """Two hours here, days in the bench."""
    chance = random.Random(f"night {memory_s}")
    keep = math.exp(-10.0 / memory_s) if memory_s else 0.0
    fresh, sigma = math.sqrt(1.0 - keep * keep), 10.0
    drive = Drive(Fence("f", "Yard", RESTRICTED, circle()))
    east, north = chance.gauss(0, sigma), chance.gauss(0, sigma)
    drive.along([-400, -250, 0], 15.0)
    crossed = 0
    for number in range(720):
        east, north = keep * east + fresh * chance.gauss(0, sigma), keep * north + fresh * chance.gauss(0, sigma)
        drive.at(60 + 10 * number, 90.0 + east, north, accuracy_m=10.0)
        crossed += math.hypot(90.0 + east, north) > 100.0
    assert crossed > 20 and drive.words == [("FENCE_ENTERED", False)]
    drive.along(range(140, 400, 40), 5.0, 7_300)
    assert drive.words == [("FENCE_ENTERED", False), ("FENCE_ENTERED", True)], "and its leaving is heard"
    assert seconds(drive.said[1].closed_at_ms) == pytest.approx(7_275, abs=26), "on the way from the last fix there to the first one away"


def test_outside_a_fence_to_stay_in_is_an_incident_wherever_it_begins() -> None:
    drive = Drive(Fence("f", "Town", STAY_IN, circle(2_000.0)))
    drive.along([5_000, 5_010], 10.0)
    assert drive.words == [("FENCE_EXITED", False)] and drive.said[0].severity == "MAJOR"
    drive.along(range(4_800, 500, -200), 10.0, 20.0)
    assert drive.words == [("FENCE_EXITED", False), ("FENCE_EXITED", True)]
    assert detail(drive.said[1])["farthestM"] == pytest.approx(3_010, abs=10) and detail(drive.said[1])["reason"] == "BACK"
    drive.along(range(600, 4_000, 200), 10.0, 300.0)
    assert drive.words[2:] == [("FENCE_EXITED", False)]
    assert seconds(drive.said[2].opened_at_ms) == pytest.approx(370, abs=1)


def corridor() -> Area:
    return drawn({"type": "LineString", "coordinates": [list(moved(*HOME, x, 0.0)) for x in (0, 1_000, 3_000)], "halfWidthM": 60})


def test_leaving_a_corridor_sideways_is_an_incident_and_past_its_end_is_not() -> None:
    fence = Fence("f", "Coast road", CORRIDOR, corridor())
    sideways = Drive(fence).along(range(-300, 1_000, 100), 10.0)
    assert sideways.words == [], "coming in is nothing"
    sideways.at(140, 1_000, 300)
    assert sideways.words == [("FENCE_EXITED", False)]
    sideways.at(150, 1_100, 0)
    sideways.at(160, 1_200, 0)
    assert sideways.words == [("FENCE_EXITED", False), ("FENCE_EXITED", True)]
    through = Drive(fence).along(range(-300, 3_600, 100), 10.0)
    assert through.words == [] and through.states == ()


def test_a_speed_zone_says_nothing_and_its_limit_holds_inside() -> None:
    slow, slower = (
        Fence("a", "30", SPEED_ZONE, circle(500.0), limit_mps=8.3),
        Fence("b", "20", SPEED_ZONE, circle(100.0), limit_mps=5.6, hours=Hours("UTC", (Window((0,), 0, 8 * 3600),))),
    )
    drive = Drive(slow, slower).along([-900, -300], 30.0)
    assert limit_mps(drive.states, drive.index, START + 30_000) == pytest.approx(8.3)
    drive.at(60, -20)
    assert limit_mps(drive.states, drive.index, START + 60_000) == pytest.approx(5.6)
    assert limit_mps(drive.states, drive.index, START + HOUR) == pytest.approx(8.3), "by its calendar"
    drive.along([900, 1_500], 60.0, 120.0)
    assert limit_mps(drive.states, drive.index, START + 180_000) is None and drive.said == []


def test_a_fence_is_for_the_buses_and_routes_that_it_names() -> None:
    fence = Fence("f", "x", RESTRICTED, circle(), buses=["b2"], routes=["R7"])
    assert Drive(fence).along([-300, 0], 20.0).said == []
    assert Drive(fence, bus_id="b2").along([-300, 0], 20.0).words == [("FENCE_ENTERED", False)]
    on_route = Drive(fence)
    on_route.ride = ride_of("R7")
    on_route.along([-300, 0], 20.0)
    assert on_route.words == [("FENCE_ENTERED", False)] and on_route.said[0].route_id == "R7"
    on_route.ride = ride_of("R8")
    on_route.at(60, 10)
    assert detail(on_route.said[1])["reason"] == "OTHER_TRIP" and on_route.states == ()


def test_what_is_open_closes_when_the_fence_goes_or_its_hours_end() -> None:
    hours = Hours("UTC", (Window((0,), 0, 7 * 3600 + 60),))  # to 07:01
    drive = Drive(Fence("f", "x", RESTRICTED, circle(), hours=hours), Fence("g", "y", RESTRICTED, circle(120.0)))
    drive.along([-300, 0, 5], 20.0)
    drive.at(70, 8)
    closed = [event for event in drive.said if event.closed_at_ms is not None]
    assert [(detail(event)["fenceId"], detail(event)["reason"], seconds(event.closed_at_ms)) for event in closed] == [
        ("f", "CALENDAR", 60.0)
    ]
    drive.index = FenceIndex([])
    drive.at(80, 8)
    assert detail(drive.said[-1]) == {"fenceId": "g", "reason": "RETIRED", "lastedS": pytest.approx(68, abs=2)}
    assert drive.states == ()


def test_silence_closes_what_is_open_and_a_bus_found_inside_is_not_said_to_have_come() -> None:
    plain, works = Fence("f", "Depot", PLAIN, circle()), Fence("g", "Works", RESTRICTED, circle())
    drive = Drive(plain, works).along([-300, 0], 20.0)
    assert drive.last is not None
    closed = fences_close(drive.states, drive.last, None, START + 20_000, "SILENT")
    assert [(event.kind, detail(event)["reason"]) for event in closed] == [("FENCE_ENTERED", "SILENT")] * 2
    drive.states, drive.said = (), []
    drive.at(4_000, 3)
    assert [(event.kind, detail(event)["fence"]) for event in drive.said] == [("FENCE_ENTERED", "Works")], "being there is an incident"
    drive.along([200, 400], 30.0, 4_030)
    assert ("FENCE_EXITED", True) in drive.words, "and going is said of both"


def test_a_redrawn_fence_is_asked_anew() -> None:
    drive = Drive(Fence("f", "x", RESTRICTED, circle(3_000.0))).along([-4_000, 0], 110.0)
    assert drive.words == [("FENCE_ENTERED", False)]
    drive.index = FenceIndex([Fence("f", "x", RESTRICTED, circle(200.0, 5_000.0), version=2)])
    drive.at(220, 0)
    assert drive.words == [("FENCE_ENTERED", False), ("FENCE_ENTERED", True)]


def test_nothing_near_answers_the_same_object_and_deep_inside_too() -> None:
    drive = Drive(Fence("f", "far", PLAIN, circle(100.0, 50_000.0)), Fence("g", "town", STAY_IN, circle(20_000.0)))
    drive.at(0, 0)
    held = drive.states
    assert [state.phase for state in held] == ["IN"]
    drive.along(range(20, 2_000, 40), 5.0, 5.0)
    assert drive.states is held and drive.said == []
    nothing = Drive(Fence("f", "far", PLAIN, circle(100.0, 50_000.0))).along([0, 40, 80], 5.0)
    assert nothing.states is nothing.states == ()


def test_a_vehicle_follows_no_more_fences_than_it_may() -> None:
    drive = Drive(*(Fence(f"f{number:03}", "x", RESTRICTED, circle(100.0 + number)) for number in range(FENCES_MOST + 20)))
    drive.along([-600, 0], 30.0)
    assert len(drive.states) == FENCES_MOST == len(drive.said), (
        "and of those that it does not follow there is no word that nobody could close"
    )
    drive.along([600, 1_200], 30.0, 60.0)
    assert drive.states == () and sum(closed for _, closed in drive.words) == FENCES_MOST


def test_a_thousand_fences_over_each_other_are_not_all_asked_with_every_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    met = fences._met
    monkeypatch.setattr(fences, "_met", lambda fence, *rest: (asked.append(fence.fence_id), met(fence, *rest))[1])
    drive = Drive(*(Fence(f"f{number:04}", "x", RESTRICTED, circle(100.0 + number / 100)) for number in range(1_000)))
    drive.along([-600, 0, 20, 40], 30.0)
    assert len(drive.states) == FENCES_MOST and len(asked) <= 2 * FENCES_MOST


@pytest.mark.parametrize("home", [(179.9995, -17.0), (3.05, 74.0)], ids=["over the 180th meridian", "far north"])
def test_fences_are_the_same_everywhere(home: tuple[float, float]) -> None:
    drive = Drive(Fence("f", "x", PLAIN, circle(100.0, home=home)), Fence("g", "y", STAY_IN, circle(250.0, home=home)), home=home)
    drive.along(range(-400, 401, 40), 5.0)
    assert [word for word in drive.words if word[0] == "FENCE_ENTERED"] == [("FENCE_ENTERED", False), ("FENCE_ENTERED", True)]
    assert [word for word in drive.words if word[0] == "FENCE_EXITED"] == [
        ("FENCE_EXITED", False), ("FENCE_EXITED", True), ("FENCE_EXITED", True), ("FENCE_EXITED", False),
    ]  # fmt: skip


def wander(seed: int) -> list[Fix]:
    """A bus about fences of every kind, at uneven times."""
    chance = random.Random(seed)
    east = north = 0.0
    heading, at_ms, fixes = chance.uniform(0, 6.3), START, []
    for _ in range(60):
        heading += chance.gauss(0, 0.5)
        step = chance.choice([0.0, 3.0, 20.0, 60.0])
        east, north = east + step * math.cos(heading), north + step * math.sin(heading)
        lon, lat = moved(*HOME, east + chance.gauss(0, 4), north + chance.gauss(0, 4))
        at_ms += chance.choice([500, 900, 4_000])
        fixes.append(Fix("b1", at_ms, lat, lon, at_ms + 100, "d", "test", chance.choice([None, 4.0])))
    return fixes


TOWN = FenceIndex(
    [
        Fence("a", "x", PLAIN, circle(60.0, 80.0)),
        Fence("b", "x", RESTRICTED, circle(40.0, -60.0)),
        Fence("c", "x", STAY_IN, circle(150.0)),
        Fence("d", "x", CORRIDOR, corridor()),
        Fence("e", "x", RESTRICTED, circle(200.0), hours=Hours("UTC", (Window((0,), 7 * 3600 + 30, 7 * 3600 + 60),))),
    ]
)


def told(batches: Sequence[Sequence[Fix]], *, again: bool = False) -> tuple[list[tuple[str, str, int | None]], dict[str, bytes]]:
    """What a tracker says of fixes in order of receipt, and what it would keep; `again`: kept and taken up after every batch."""
    tracker = Tracker(None, feed_id="demo", partner_id="P")
    tracker.rule(Rules(1, fences=TOWN))
    words, kept = [], {}
    for batch in batches:
        for fix in batch:
            tracker.fold(fix)
        out = tracker.take()
        kept |= {key: blob for key, blob in out.states.items() if key.startswith("bus:")}
        words += [(event.event_id, event.kind, event.closed_at_ms) for event in out.events if isinstance(event, IncidentEvent)]
        if again:
            tracker.restore(kept)
            tracker.rule(Rules(1, fences=TOWN))
    tracker.tick(START + HOUR)
    words += [(event.event_id, event.kind, event.closed_at_ms) for event in tracker.take().events if isinstance(event, IncidentEvent)]
    return words, kept


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_order_within_three_seconds_repetition_batches_and_restarts_change_nothing(seed: int) -> None:
    fixes, chance = wander(seed), random.Random(seed)
    plain, _ = told([fixes])
    late = {fix.fixed_at_ms: fix.fixed_at_ms + 100 + chance.randint(0, 2_500) for fix in fixes}
    mixed = sorted(
        (msgspec.structs.replace(fix, received_at_ms=late[fix.fixed_at_ms]) for fix in fixes), key=lambda fix: fix.received_at_ms
    )
    mixed += mixed[-3:]
    pieces = [mixed[start : start + 7] for start in range(0, len(mixed), 7)]
    assert told([mixed])[0] == told(pieces)[0] == told(pieces, again=True)[0] == plain
    assert len({event_id for event_id, _, _ in plain}) == len(plain)


def test_a_vehicle_that_follows_as_many_fences_as_it_may_is_counted() -> None:
    tracker = Tracker(None, feed_id="demo", partner_id="P")
    crowd = [Fence(f"f{number:03}", "x", PLAIN, circle(100.0 + number)) for number in range(FENCES_MOST + 1)]
    tracker.rule(Rules(1, fences=FenceIndex(crowd)))
    for at_ms in (START, START + 10_000):
        tracker.fold(Fix("b1", at_ms, HOME[1], HOME[0], at_ms, "d", "test", 5.0))
    tracker.tick(START + 20_000)
    assert tracker.counts["FENCES_FULL"] == 2


# ------------------------------------------------------------------------------------------------ hours


def test_hours_are_those_of_the_service_day() -> None:
    night = hours_of(Calendar("Africa/Algiers", (CalendarWindow(("FRI",), "22:00", "26:00"),)), "UTC")
    algiers = ZoneInfo("Africa/Algiers")

    def holds(day: int, hour: int, minute: int = 0) -> bool:
        return night.holds(round(datetime(2026, 3, day, hour, minute, tzinfo=algiers).timestamp() * 1000))

    assert [holds(6, 21, 59), holds(6, 22), holds(7, 1, 59), holds(7, 2), holds(5, 23)] == [False, True, True, False, False]


@pytest.mark.parametrize(("month", "day"), [(3, 8), (11, 1)], ids=["clocks go forward", "clocks go back"])
def test_on_the_days_when_clocks_are_set_hours_are_those_of_the_clock(month: int, day: int) -> None:
    zone = ZoneInfo("America/New_York")
    school = Hours("America/New_York", (Window(tuple(range(7)), 7 * 3600, 9 * 3600),))
    midnight = round(datetime(2026, month, day, tzinfo=zone).timestamp())
    held = [at for at in range(midnight, midnight + 26 * 3600, 300) if school.holds(at * 1000)]
    begin, end = (datetime(2026, month, day, hour, tzinfo=zone).timestamp() for hour in (7, 9))
    assert (held[0], held[-1] + 300) == (begin, end)
    night = Hours("America/New_York", (Window(tuple(range(7)), 3600, 3 * 3600),))  # 01:00 to 03:00
    assert sum(night.holds(at * 1000) for at in range(midnight, midnight + 12 * 3600, 300)) == 12 * (1 if month == 3 else 3)
    whole = Hours("America/New_York", (Window(tuple(range(7)), 0, 24 * 3600),))
    assert all(whole.holds(at * 1000) for at in range(midnight - 86_400, midnight + 2 * 86_400, 600)), "day joins day without a gap"


def test_hours_hold_between_their_dates_and_say_when_they_ended() -> None:
    hours = hours_of(Calendar("UTC", (), "2026-03-02T06:00:00Z", "2026-03-02T08:00:00Z"), "UTC")
    assert [hours.holds(START + shift) for shift in (-HOUR - 1, 0, HOUR - 1, HOUR)] == [False, True, True, False]
    assert hours.ended_ms(START, START + 5 * HOUR) == START + HOUR
    window = Hours("UTC", (Window((0,), 0, 8 * 3600),))
    assert window.ended_ms(START, START + 50 * HOUR) == START + HOUR


@pytest.mark.parametrize(
    ("calendar", "pointer", "code"),
    [
        (Calendar("Mars/Olympus"), "/calendar/timeZone", "UNKNOWN_TIME_ZONE"),
        (Calendar("../etc"), "/calendar/timeZone", "UNKNOWN_TIME_ZONE"),
        (Calendar(None, (CalendarWindow(("MON",), "08:00", "08:00"),)), "/calendar/windows/0/to", "EMPTY"),
        (Calendar(None, (), "2026-03-02"), "/calendar/validFrom", "INVALID_VALUE"),
        (Calendar(None, (), "2026-03-02T06:00:00Z", "2026-03-02T06:00:00Z"), "/calendar/validTo", "EMPTY"),
    ],
)
def test_a_calendar_that_never_holds_is_refused_with_its_place(calendar: Calendar, pointer: str, code: str) -> None:
    with pytest.raises(Invalid) as refused:
        hours_of(calendar, "UTC")
    assert (refused.value.errors[0]["pointer"], refused.value.errors[0]["code"]) == (pointer, code)
