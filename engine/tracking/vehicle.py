"""A vehicle, one fix further: the visible list of steps. Pure, and a function of frozen state.

`advance` takes a `VehicleState` and the next fix in the order of the fixes' own times through screen, board, place, begin or cross, watch, guard.
What it answers to say (`Said`) is told when the fix has settled: see `tracker.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from engine.events import DONE, IN_TRIP, Event
from engine.tracking import guard as guarding
from engine.tracking import watch as watching
from engine.tracking.assign import Name, Trail
from engine.tracking.boarding import DISPLACE_S, board, trip_event
from engine.tracking.fences import FENCES_MOST
from engine.tracking.fix import OK, Fix, Motion, screen
from engine.tracking.guard import AT_EASE, Guard
from engine.tracking.ride import (
    GAP_MS,
    GUESSED,
    OFF_M,
    TERMINAL_M,
    Course,
    Crossing,
    Ride,
    Roadbook,
    begin,
    begin_again,
    came_back,
    cross,
    is_same_plan,
    is_unsure,
    off_limit_m,
    on_new_course,
)
from engine.tracking.rules import NO_RULES, Rules
from engine.tracking.timetable import Timetable, TripInstance
from engine.tracking.watch import QUIET, Sight, Watch
from geo.match import Match, place_first, place_next, set_back, sigma_m

MOVING_MPS = 1.5  # below this a bearing is noise
BEGUN_COST = 1.0  # of a first fix behind the first stop: late there is likelier than on time where a loop comes by again
FOUND_MAX = 20_000  # trips of rides kept ready


class VehicleState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """All that is believed of one vehicle after its last accepted fix."""

    bus_id: str
    fix: Fix | None = None  # the last accepted one, its time corrected
    motion: Motion | None = None
    ride: Ride | None = None  # None: on no trip
    match: Match | None = None  # on the ride's shape
    watch: Watch = QUIET
    trail: Trail = Trail()
    guard: Guard = AT_EASE


class Said(NamedTuple):
    """What folding one fix has to say once it has settled."""

    verdict: str
    events: tuple[Event, ...] = ()
    crossings: tuple[Crossing, ...] = ()
    note: str | None = None  # something to count


QUIETLY = Said(OK)  # nothing to say, as nearly always


class Found(NamedTuple):
    """A ride's trip, ready for folding."""

    book: Roadbook
    instance: TripInstance
    course: Course


class Area:
    """What a vehicle needs to know beside itself: the plans, and which trips are driven already."""

    def __init__(self, timetable: Timetable | None) -> None:
        self.book = Roadbook(timetable) if timetable is not None else None
        self.books: dict[str, Roadbook] = {self.book.version: self.book} if self.book is not None else {}
        self._found: dict[tuple[str, str, str], Found] = {}
        self.driven: dict[Name, str] = {}  # (trip_id, start_date) -> bus_id
        self._guesses: dict[Name, tuple[float, int | None]] = {}  # of trips that we guessed: what speaks against who drives it,
        # and when it was to depart if it has not; no entry: a person or the device named it
        self._done: dict[Name, str] = {}  # who drove it to its end
        self.rules: Rules = NO_RULES

    def is_driven_by_other(self, name: Name, bus_id: str) -> bool:
        return self.driven.get(name, bus_id) != bus_id

    def is_open(self, name: Name, bus_id: str, cost_s: float, at_ms: int) -> bool:
        """Whether the vehicle may be given the trip: nobody has it, or one on which it was guessed and whom it fits clearly worse."""
        order = self.rules.of_trip.get(name)
        if order is not None and order.bus_id != bus_id:
            return False
        if self.driven.get(name, bus_id) == bus_id:
            return True
        against_s, departs_ms = self._guesses.get(name, (-math.inf, None))
        if departs_ms is not None and at_ms > departs_ms:  # it waits, and should have left
            against_s += (at_ms - departs_ms) / 1000.0
        return cost_s + DISPLACE_S < against_s

    def was_done_by_other(self, bus_id: str) -> Callable[[Name], bool]:
        """Asks whether another vehicle has driven a trip to its end."""
        return lambda name: self._done.get(name, bus_id) != bus_id

    def claim(self, bus_id: str, ride: Ride, at_ms: int) -> str | None:
        """The ride's trip is the vehicle's, if it may be. Answers who loses it by that; who named it keeps it beside a device that names it too."""
        name = ride.trip_id, ride.start_date
        holder, guessed = self.driven.get(name, bus_id), ride.given_by in GUESSED
        if holder != bus_id and guessed and not self.is_open(name, bus_id, ride.cost_s, at_ms):
            return None
        loses = holder if holder != bus_id and name in self._guesses else None
        self.driven[name] = bus_id
        if guessed:
            found = self.of(ride) if ride.started_at_ms is None else None
            self._guesses[name] = ride.cost_s, found.instance.departure_ms(0) if found is not None else None
        else:
            self._guesses.pop(name, None)
        return loses

    def release(self, bus_id: str, ride: Ride) -> None:
        name = ride.trip_id, ride.start_date
        if self.driven.get(name) == bus_id:
            del self.driven[name]
            self._guesses.pop(name, None)

    def finish(self, bus_id: str, name: Name) -> None:
        """The vehicle has driven the trip to its end."""
        if len(self._done) >= FOUND_MAX:
            for old in list(self._done)[: FOUND_MAX // 2]:
                del self._done[old]
        self._done[name] = bus_id

    def adopt(self, timetable: Timetable) -> None:
        """A newer feed version beside the ones that are driven."""
        self.book = self.books[timetable.version] = Roadbook(timetable)
        self._found.clear()

    def moved(self, ride: Ride) -> Ride:
        """The ride on the newest feed version where that has the trip just as the ride's own has it (or the trip is done), else the same."""
        if self.book is None or ride.version == self.book.version:
            return ride
        old, now = self.books.get(ride.version), self.book.instance(ride.trip_id, ride.start_date)
        was = old.instance(ride.trip_id, ride.start_date) if old is not None else None
        if ride.phase == DONE or (was is not None and now is not None and is_same_plan(was, now)):
            return msgspec.structs.replace(ride, version=self.book.version)
        return ride

    def keep(self, versions: set[str]) -> None:
        """Let go of the feed versions that nobody drives."""
        current = self.book.version if self.book is not None else None
        self.books = {version: book for version, book in self.books.items() if version in versions or version == current}
        self._found.clear()

    def of(self, ride: Ride) -> Found | None:
        """The ride's trip in the feed version it began with, else in the newest that knows it; None: the trip is gone."""
        key = (ride.version, ride.trip_id, ride.start_date)
        found = self._found.get(key)
        if found is None:
            for book in (self.books.get(ride.version), self.book):
                instance = book.instance(ride.trip_id, ride.start_date) if book is not None else None
                if book is not None and instance is not None:
                    if len(self._found) >= FOUND_MAX:
                        self._found.clear()
                    found = self._found[key] = Found(book, instance, book.course(instance))
                    break
        return found


def advance(state: VehicleState, fix: Fix, area: Area) -> tuple[VehicleState, Said]:
    """One fix further, in the order of their times. The steps a fix goes through are the lines of this function."""
    motion, verdict = screen(state.motion, fix)
    if verdict != OK:
        return msgspec.structs.replace(state, motion=motion), Said(verdict)

    ride, trail, events, note = board(state, fix, motion, area)
    found = area.of(ride) if ride is not None else None
    if ride is None or found is None:
        guard = state.guard
        if not guarding.is_at_ease(guard, motion.speed_mps, area.rules):
            guard, guarded = guarding.look(guard, guarding.Sight(fix, motion, state.motion, None, None, None, None, area.rules))
            events += guarded
        return VehicleState(state.bus_id, fix, motion, None, None, QUIET, trail, guard), _said(events, [], note or _crowded(guard))
    book, instance, course = found
    was = state.ride
    same = was is not None and was.trip_id == ride.trip_id and was.start_date == ride.start_date and was.version == book.version
    before = state.match if same and 0 < motion.gap_ms <= GAP_MS else None
    watch = state.watch if same else QUIET

    match = place(course, instance, ride, before, state.match if same else None, motion)
    if ride.version != book.version:
        ride = on_new_course(ride, course, match, book.version)
    if ride.phase == IN_TRIP and came_back(course, match, motion):
        events += watching.close(watch, fix, ride, motion.fixed_at_ms, "BACK_AT_FIRST_STOP")
        ride, watch, match = begin_again(ride), QUIET, set_back(match)
    if ride.started_at_ms is None:
        ride = begin(ride, course, instance, match, motion)
        if ride.started_at_ms is not None:
            events.append(trip_event("STARTED", fix, ride, instance, "LEFT_FIRST_STOP" if ride.next_stop == 0 else "UNDER_WAY"))
    crossings: list[Crossing] = []
    if ride.phase == IN_TRIP:
        ride, stops, crossings = cross(ride, course, instance, before, match, state.motion if before is not None else None, motion, fix)
        unsure = is_unsure(course, instance, match, motion.fixed_at_ms)
        sight = Sight(fix, motion, ride, course, before, match, stops, unsure, area.rules, instance, state.motion)
        watch, watched = watching.look(watch, sight)
        events += [*stops, *watched]
        if ride.phase == DONE:
            events += watching.close(watch, fix, ride, motion.fixed_at_ms, "TRIP_DONE")
            events.append(trip_event("COMPLETED", fix, ride, instance, "LAST_STOP"))
            watch = QUIET
    guard = state.guard
    if not guarding.is_at_ease(guard, motion.speed_mps, area.rules):
        guard, guarded = guarding.look(guard, guarding.Sight(fix, motion, state.motion, ride, course, instance, match, area.rules))
        events += guarded
    return VehicleState(state.bus_id, fix, motion, ride, match, watch, trail, guard), _said(events, crossings, note or _crowded(guard))


def _said(events: list[Event], crossings: list[Crossing], note: str | None) -> Said:
    return Said(OK, tuple(events), tuple(crossings), note) if events or crossings or note else QUIETLY


def _crowded(guard: Guard) -> str | None:
    """What to count of a vehicle that follows as many fences as it may: others that it touches are not taken on."""
    return "FENCES_FULL" if len(guard.fences) >= FENCES_MOST else None


def place(course: Course, instance: TripInstance, ride: Ride, before: Match | None, known: Match | None, motion: Motion) -> Match:
    """Where on the shape. The whole of it is searched where nothing joins this fix to the one before, and on the way to the first stop."""
    speed = motion.speed_mps
    bearing = motion.bearing_deg if speed > MOVING_MPS else None
    started = ride.started_at_ms is not None
    if before is None or (not started and before.offset_m > OFF_M):
        return _place_anew(course, instance, started, known, motion, bearing)
    accuracy = motion.accuracy_m
    return place_next(
        course.line, before, motion.lon, motion.lat, dt_s=motion.gap_ms / 1000.0, speed_mps=speed, sigma=sigma_m(accuracy),
        bearing_deg=bearing, lost_m=off_limit_m(accuracy), may_retreat=not started,
    )  # fmt: skip


def _place_anew(
    course: Course, instance: TripInstance, started: bool, known: Match | None, motion: Motion, bearing_deg: float | None
) -> Match:
    def prior(along_m: float) -> float:
        """What the timetable expects: late is likely, early is not; and what was driven is driven."""
        at_ms = max(motion.fixed_at_ms, instance.departure_ms(0))  # before its time it waits at the start
        late_s = (at_ms - course.scheduled_ms(instance, along_m)) / 1000.0
        cost = min(4.0, late_s / 600.0) if late_s >= 0 else min(8.0, -late_s / 60.0)
        if not started and along_m > course.along_m[0] + TERMINAL_M:
            cost += BEGUN_COST
        return cost + 8.0 if started and known is not None and along_m < known.along_m - 50.0 else cost

    return place_first(course.line, motion.lon, motion.lat, sigma=sigma_m(motion.accuracy_m), bearing_deg=bearing_deg, prior=prior)
