"""A vehicle, one fix further: the visible list of steps. Pure, and a function of frozen state.

`advance` takes a `VehicleState` and the next fix in the order of the fixes' own times through screen, board, place, begin or cross, watch, guard.
What it answers to say (`Said`) is told when the fix has settled: see `tracker.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from engine.events import DEADHEAD, DONE, IN_TRIP, Event, TripEvent
from engine.tracking import guard as guarding
from engine.tracking import watch as watching
from engine.tracking.assign import Trail, assign, walked
from engine.tracking.fix import OK, Fix, Motion, screen
from engine.tracking.guard import AT_EASE, Guard
from engine.tracking.ride import (
    BLOCK,
    DEVICE,
    ENGINE,
    GAP_MS,
    LATE_FOR_EVER_MS,
    OFF_M,
    Course,
    Crossing,
    Ride,
    Roadbook,
    begin,
    begin_again,
    came_back,
    cross,
    event_id,
    is_same_plan,
    is_unsure,
    off_limit_m,
    on_new_course,
)
from engine.tracking.rules import NO_RULES, Rules
from engine.tracking.timetable import Timetable, TripInstance
from engine.tracking.watch import OFF, QUIET, Sight, Watch
from geo.match import Match, place_first, place_next, set_back, sigma_m

MISTAKEN_MS, NEVER_BEGAN_MS = 180_000, 900_000  # an assignment of ours is given up after so long off its route, or without a start
MOVING_MPS = 1.5  # below this a bearing is noise
FOUND_MAX = 20_000  # trips of rides kept ready
NEAR_END_M, NEAR_END_MPS = 300.0, 8.0  # a trip that is left this near to its end, and what may be driven since the last fix, is done


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
        self.driven: dict[tuple[str, str], str] = {}  # (trip_id, start_date) -> bus_id
        self.rules: Rules = NO_RULES

    def is_driven(self, instance: TripInstance, bus_id: str) -> bool:
        """By another vehicle."""
        return self.driven.get((instance.trip.trip_id, instance.start_date), bus_id) != bus_id

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
        guard, incidents = guarding.look(state.guard, guarding.Sight(fix, motion, state.motion, None, None, None, None, area.rules))
        events += incidents
        return VehicleState(state.bus_id, fix, motion, None, None, QUIET, trail, guard), Said(OK, tuple(events), (), note)
    book, instance, course = found
    same = state.ride is not None and state.ride.trip_id == ride.trip_id and state.ride.start_date == ride.start_date
    same = same and state.ride.version == book.version  # type: ignore[union-attr]
    before = state.match if same and 0 < motion.gap_ms <= GAP_MS else None
    watch = state.watch if same else QUIET

    match = place(course, instance, ride, before, state.match if same else None, motion)
    if ride.version != book.version:
        ride = on_new_course(ride, course, match, book.version)
    if ride.phase == IN_TRIP and came_back(ride, course, match, motion):
        events += watching.close(watch, fix, ride, motion.fixed_at_ms, "BACK_AT_FIRST_STOP")
        ride, watch, match = begin_again(ride), QUIET, set_back(match)
    if ride.started_at_ms is None:
        ride = begin(ride, course, instance, match, motion)
        if ride.started_at_ms is not None:
            events.append(_trip_event("STARTED", fix, ride, instance, "LEFT_FIRST_STOP" if ride.next_stop == 0 else "UNDER_WAY"))
    crossings: list[Crossing] = []
    if ride.phase == IN_TRIP:
        ride, stops, crossings = cross(ride, course, instance, before, match, state.motion if before is not None else None, motion, fix)
        watch, incidents = watching.look(
            watch,
            Sight(fix, motion, ride, course, before, match, stops, is_unsure(course, instance, match, motion.fixed_at_ms), area.rules, instance),
        )
        events += [*stops, *incidents]
        if ride.phase == DONE:
            events += watching.close(watch, fix, ride, motion.fixed_at_ms, "TRIP_DONE")
            events.append(_trip_event("COMPLETED", fix, ride, instance, "LAST_STOP"))
            watch = QUIET
    guard, guarded = guarding.look(state.guard, guarding.Sight(fix, motion, state.motion, ride, course, instance, match, area.rules))
    events += guarded
    return VehicleState(state.bus_id, fix, motion, ride, match, watch, trail, guard), Said(OK, tuple(events), tuple(crossings), note)


def board(state: VehicleState, fix: Fix, motion: Motion, area: Area) -> tuple[Ride | None, Trail, list[Event], str | None]:
    """Which trip the vehicle is on with this fix: as the device says, else the next of its block, else the one that fits.

    Answers the ride, the trail, what there is to say, and something to count.
    """
    ride, book, trail = state.ride, area.book, state.trail
    events: list[Event] = []
    if book is None:
        return None, trail, events, None
    if ride is not None and _is_past(ride, area, motion):
        events, ride, trail = _left(state, fix, ride, area, "OVER"), None, Trail()
    elif ride is not None and ride.given_by != DEVICE and (why := _mistake(state, ride, area, fix.fixed_at_ms)) is not None:
        events, ride, trail = _left(state, fix, ride, area, why), None, Trail()
    if fix.trip_id is not None:
        said = (fix.trip_id, fix.start_date)
        if ride is not None and ride.said == said:
            return ride, trail, events, None
        instance = book.named(fix.trip_id, fix.start_date, fix.fixed_at_ms)
        if instance is None:
            return None, trail, events + (_left(state, fix, ride, area, "UNKNOWN_TRIP") if ride is not None else []), "UNKNOWN_TRIP"
        if ride is not None and (ride.trip_id, ride.start_date) == (instance.trip.trip_id, instance.start_date):
            return msgspec.structs.replace(ride, said=said, given_by=DEVICE), trail, events, None
        given_by = DEVICE
    elif ride is not None:
        if ride.phase != DONE:
            return ride, trail, events, None
        ended = book.instance(ride.trip_id, ride.start_date)
        instance = book.next_in_block(ended) if ended is not None else None
        if instance is None or area.is_driven(instance, fix.bus_id):
            if state.match is not None and state.match.offset_m <= OFF_M:  # still at its last stop
                return ride, trail, events, None
            return None, Trail(block_id=ended.trip.block_id if ended is not None else None), events, None
        given_by, said = BLOCK, None
    else:
        longer = walked(trail, motion)
        if longer is trail:
            return None, trail, events, None
        trail, instance = assign(longer, motion, book, lambda each: area.is_driven(each, fix.bus_id))
        if instance is None:
            return None, trail, events, None
        given_by, said = ENGINE, None
    if ride is not None:
        events += _left(state, fix, ride, area, given_by)
    ride = Ride(instance.trip.trip_id, instance.start_date, instance.trip.route_id, book.version, given_by, fix.fixed_at_ms, said)
    events.append(_trip_event("ASSIGNED", fix, ride, instance, given_by))
    return ride, Trail(block_id=instance.trip.block_id), events, None


def _is_past(ride: Ride, area: Area, motion: Motion) -> bool:
    """Nothing was heard for a while, and the trip has been over for hours: whoever speaks now is not on it."""
    if 0 < motion.gap_ms <= GAP_MS:
        return False
    found = area.of(ride)
    return found is None or motion.fixed_at_ms > found.instance.arrival_ms(len(found.instance.trip.arrival_s) - 1) + LATE_FOR_EVER_MS


def _mistake(state: VehicleState, ride: Ride, area: Area, at_ms: int) -> str | None:
    """Why a trip that nobody named cannot be this vehicle's, or None: its drive says otherwise for minutes."""
    off, match = state.watch.off_route, state.match
    if off.phase == OFF and off.worst_m >= area.rules.watch.major_m and at_ms - off.since_ms >= MISTAKEN_MS:
        return "OFF_ROUTE"
    if state.watch.wrong_way.open:
        return "WRONG_WAY"
    if ride.started_at_ms is None and match is not None and match.offset_m > OFF_M and ride.phase == DEADHEAD:
        found = area.of(ride)
        if found is not None and at_ms > found.instance.departure_ms(0) + NEVER_BEGAN_MS:
            return "NOT_BEGUN"
    return None


def _left(state: VehicleState, fix: Fix, ride: Ride, area: Area, reason: str) -> list[Event]:
    """What there is to say when a vehicle leaves a trip; a trip that is done has been said already."""
    events: list[Event] = list(watching.close(state.watch, fix, ride, fix.fixed_at_ms, reason))
    found = area.of(ride)
    if found is not None and ride.phase != DONE:
        arrived = ride.phase == IN_TRIP and state.match is not None and _is_near_end(found.course, state.match, fix, state.fix)
        events.append(_trip_event("COMPLETED" if arrived else "UNASSIGNED", fix, ride, found.instance, reason))
    return events


def _is_near_end(course: Course, match: Match, fix: Fix, last: Fix | None) -> bool:
    """Drivers name the next trip when they roll into the terminal, not when they stand there."""
    gap_s = (fix.fixed_at_ms - last.fixed_at_ms) / 1000.0 if last is not None else 0.0
    return course.along_m[course.last] - match.along_m <= NEAR_END_M + NEAR_END_MPS * min(gap_s, 120.0)


def _trip_event(kind: str, fix: Fix, ride: Ride, instance: TripInstance, reason: str) -> TripEvent:
    name = event_id("trip", kind, fix.bus_id, ride.trip_id, ride.start_date, ride.given_at_ms, ride.attempt)
    return TripEvent(name, fix.bus_id, ride.trip_id, ride.start_date, instance.trip.route_id, kind, fix.fixed_at_ms, reason)


def place(course: Course, instance: TripInstance, ride: Ride, before: Match | None, known: Match | None, motion: Motion) -> Match:
    """Where on the shape. The whole of it is searched where nothing joins this fix to the one before, and on the way to the first stop."""
    sigma = sigma_m(motion.accuracy_m)
    bearing = motion.bearing_deg if motion.speed_mps > MOVING_MPS else None
    started = ride.started_at_ms is not None
    if before is None or (not started and before.offset_m > OFF_M):

        def prior(along_m: float) -> float:
            """What the timetable expects: late is likely, early is not; and what was driven is driven."""
            at_ms = max(motion.fixed_at_ms, instance.departure_ms(0))  # before its time it waits at the start
            late_s = (at_ms - course.scheduled_ms(instance, along_m)) / 1000.0
            cost = min(4.0, late_s / 600.0) if late_s >= 0 else min(8.0, -late_s / 60.0)
            return cost + 8.0 if started and known is not None and along_m < known.along_m - 50.0 else cost

        return place_first(course.line, motion.lon, motion.lat, sigma=sigma, bearing_deg=bearing, prior=prior)
    return place_next(
        course.line, before, motion.lon, motion.lat, dt_s=motion.gap_ms / 1000.0, speed_mps=motion.speed_mps, sigma=sigma,
        bearing_deg=bearing, lost_m=off_limit_m(motion.accuracy_m), may_retreat=not started,
    )  # fmt: skip
