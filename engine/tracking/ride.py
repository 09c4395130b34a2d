"""A vehicle on its trip: which trip it is, when the trip begins and ends, and what happens at its stops.

Pure. `Roadbook` makes one timetable ready for folding; `Ride` is what a vehicle's trip has come to; `begin` and `cross` take it one fix
further. Arc positions and offsets in metres, times in UTC ms. What is not seen is not said: a stop crossed in a gap of more than 300 s has
no event, and more than 12 stops at once, or several faster than one per 15 s, are a mistake of the match and not arrivals.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from datetime import datetime, timedelta
from hashlib import blake2b

import msgspec
import numpy as np

from engine.events import DEADHEAD, DONE, IN_TRIP, LAYOVER, StopEvent
from engine.tracking.atlas import Atlas
from engine.tracking.fix import Fix, Motion
from engine.tracking.timetable import Pattern, Timetable, TripInstance, parse_date
from geo.coords import distance_m, metres_per_degree
from geo.match import Line, Match
from geo.shape import Shape

DEVICE, BLOCK, ENGINE = "DEVICE", "BLOCK", "ENGINE"  # who gave the trip, where no person did (`rules.DISPATCHER`, `rules.DRIVER`)
GUESSED = (BLOCK, ENGINE)  # ours: it may be given up, and others may take it

OFF_M, OFF_ACCURACY = 60.0, 3.0  # D = max(60 m, 3 * accuracy): further than this is not on the shape
LEAVE_M, LEAVE_MPS = 100.0, 1.5  # left the first stop: this far along at this speed
EARLY_MS = 5 * 60_000  # earlier than this before its time a bus may be on its way to a place to wait, along its own line:
EARLY_M, EARLY_SHARE = 2_000.0, 0.33  # a trip that the device named then starts this far on or after this share of it, others do not
SURE_MS = 120_000  # so long after departure a bus that turns round is not on its way back to the first stop any more
STANDS_MS, STIR_M = 60_000, 30.0  # from so long before departure a vehicle past stop 2 is on the trip once it moves forward this far
TERMINAL_M = 150.0  # this near to the first stop is layover, further away is deadhead
ZONE_IN_M, ZONE_OUT_M = 30.0, 20.0  # a bus stands at its stop from 30 m before to 20 m behind the pole
LAST_M = 15.0  # a trip is over this far before its last stop: noise may never show the end of the line
REST_MPS = 1.5
SEEN_MS = 15_000  # fixes further apart than this cannot tell serving from passing
GAP_MS, LEARN_MS = 300_000, 90_000  # interpolated up to; measured up to
STOPS_MAX, PER_STOP_MS, PLAUSIBLE_MPS = 12, 15_000, 25.0
MISSED_M = 80.0
DAY_MS = 86_400_000
SHIFT_MS = DAY_MS // 2  # a first fix this long before departure: the service date may be off by one
LATE_FOR_EVER_MS = 3 * 3_600_000  # past its end by this, after a silence, nobody is on that trip


class Course:
    """A pattern made ready: its line, the arcs of its stops and where they stand."""

    __slots__ = ("along_m", "ids", "last", "line", "pattern", "places")

    def __init__(self, pattern: Pattern, line: Line, timetable: Timetable) -> None:
        self.pattern, self.line = pattern, line
        self.along_m: list[float] = [float(along) for along in pattern.along_m]
        self.ids = pattern.stop_ids
        self.last = len(self.ids) - 1
        self.places = [(timetable.stops[stop_id].lat, timetable.stops[stop_id].lon) for stop_id in self.ids]

    def scheduled_ms(self, instance: TripInstance, along_m: float) -> int:
        """When the timetable has the vehicle at that arc (before the first stop: its departure; behind the last: its arrival)."""
        at = bisect_right(self.along_m, along_m)
        if at == 0:
            return instance.departure_ms(0)
        if at > self.last:
            return instance.arrival_ms(self.last)
        low, high = self.along_m[at - 1], self.along_m[at]
        leaves, comes = instance.departure_ms(at - 1), instance.arrival_ms(at)
        return leaves + int((comes - leaves) * (along_m - low) / (high - low))


class Roadbook:
    """One feed version, ready for folding: instances by name, courses by pattern. Grows with use, within bounds."""

    INSTANCES_MAX = 20_000

    def __init__(self, timetable: Timetable) -> None:
        self.timetable, self.version = timetable, timetable.version
        self._courses: dict[str, Course] = {}
        self._lines: dict[str, Line] = {}
        self._instances: dict[tuple[str, str], TripInstance] = {}
        self._made_of: dict[str, list[str]] | None = None
        self.atlas = Atlas(timetable)

    def line(self, shape: Shape) -> Line:
        found = self._lines.get(shape.shape_id)
        if found is None or found.shape is not shape:
            found = self._lines[shape.shape_id] = Line(shape)
        return found

    def course_of(self, pattern: Pattern) -> Course:
        found = self._courses.get(pattern.pattern_id)
        if found is None:
            found = self._courses[pattern.pattern_id] = Course(pattern, self.line(pattern.shape), self.timetable)
        return found

    def course(self, instance: TripInstance) -> Course:
        return self.course_of(instance.trip.pattern)

    def instance(self, trip_id: str, start_date: str) -> TripInstance | None:
        key = (trip_id, start_date)
        found = self._instances.get(key)
        if found is None:
            found = self.timetable.instance(trip_id, start_date)
            if found is not None:
                if len(self._instances) >= self.INSTANCES_MAX:
                    self._instances.clear()
                self._instances[key] = found
        return found

    def named(self, trip_id: str, start_date: str | None, at_ms: int) -> TripInstance | None:
        """The trip instance that a device means, or None where the feed has no such trip.

        With a date it is taken as said, but for one known fault: a first fix more than 12 h before departure where the day before fits.
        Without a date (or where frequencies.txt made several trips of one id) it is the instance whose span is nearest to the fix.
        """
        if trip_id in self.timetable.trips and start_date is not None:
            said = self.instance(trip_id, start_date)
            if said is not None and at_ms < said.departure_ms(0) - SHIFT_MS:
                day = parse_date(start_date)
                before = self.instance(trip_id, (day - timedelta(days=1)).strftime("%Y%m%d")) if day is not None else None
                if before is not None and _away_ms(before, at_ms) <= LATE_FOR_EVER_MS:
                    return before
            return said
        trip_ids = [trip_id] if trip_id in self.timetable.trips else self._expanded(trip_id)
        if not trip_ids:
            return None
        dates = [start_date] if start_date is not None else self._dates_around(at_ms)
        choices = [found for each in trip_ids for date in dates if (found := self.instance(each, date)) is not None]
        return min(choices, key=lambda choice: self._strangeness(choice, at_ms), default=None)

    def next_in_block(self, instance: TripInstance) -> TripInstance | None:
        following = self.timetable.next_in_block(instance)
        return None if following is None else self.instance(following.trip.trip_id, following.start_date)

    def _strangeness(self, instance: TripInstance, at_ms: int) -> tuple[int, str, str]:
        day = parse_date(instance.start_date)
        service = self.timetable.services.get(instance.trip.service_id)
        idle = service is not None and day is not None and not service.runs_on(day)
        return _away_ms(instance, at_ms) + (DAY_MS // 4 if idle else 0), instance.start_date, instance.trip.trip_id

    def _dates_around(self, at_ms: int) -> list[str]:
        today = datetime.fromtimestamp(at_ms / 1000, self.timetable.tz).date()
        return [(today + timedelta(days=step)).strftime("%Y%m%d") for step in (-2, -1, 0, 1)]

    def _expanded(self, trip_id: str) -> list[str]:
        if self._made_of is None:
            self._made_of = {}
            for trip in self.timetable.trips.values():
                if trip.frequency_of is not None:
                    self._made_of.setdefault(trip.frequency_of, []).append(trip.trip_id)
        return self._made_of.get(trip_id, [])


def _away_ms(instance: TripInstance, at_ms: int) -> int:
    """How far a moment lies outside the instance's span; 0 inside."""
    first, last = instance.departure_ms(0), instance.arrival_ms(len(instance.trip.arrival_s) - 1)
    return max(first - at_ms, at_ms - last, 0)


class Visit(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was seen so far at the next stop."""

    passed_at_ms: int | None = None  # at the pole, interpolated
    rest_at_ms: int | None = None  # stood in the zone, first
    rest_until_ms: int | None = None  # and last


NOT_THERE = Visit()


class Ride(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One vehicle on one trip instance, as far as it has come."""

    trip_id: str
    start_date: str
    route_id: str
    version: str  # of the feed: a vehicle stays on the version it started with
    given_by: str  # DISPATCHER | DRIVER | DEVICE | BLOCK | ENGINE
    given_at_ms: int
    said: tuple[str, str | None] | None  # trip_id and start_date as the device said them
    phase: str = DEADHEAD  # DEADHEAD | LAYOVER before the start, IN_TRIP, DONE
    started_at_ms: int | None = None
    next_stop: int = 0  # index of the stop that is served next; number of stops: all done
    joined_m: float = math.inf  # lowest arc before the start
    driven_m: float = 0.0  # since the start
    visit: Visit = NOT_THERE
    near_m: tuple[float, ...] = ()  # closest approach to the next stops while away from the shape
    attempt: int = 0  # how often it began and came back to the first stop
    missed: tuple[int, ...] = ()  # sequences of the stops that it missed, rising
    cost_s: float = 0.0  # what spoke against it when it was given, or when it left its first stop: the vehicle with less may take it
    sure_stop: int = 0  # index before which all stops are behind it; from there to `next_stop` the match leapt, and may be taken back


def event_id(*facts: object) -> str:
    """A name made of what happened: the same facts give the same 24 hex digits on every machine."""
    return blake2b("|".join(map(str, facts)).encode(), digest_size=12).hexdigest()


def off_limit_m(accuracy_m: float | None) -> float:
    """D: further from the shape than this is not on it."""
    return OFF_M if accuracy_m is None or accuracy_m < OFF_M / OFF_ACCURACY else OFF_ACCURACY * accuracy_m


def begin(ride: Ride, course: Course, instance: TripInstance, match: Match, motion: Motion) -> Ride:
    """Before the start: layover, deadhead, or off it goes. Answers the ride; started when `started_at_ms` is set."""
    along, at_ms, stops = match.along_m, motion.fixed_at_ms, course.along_m
    on_shape = match.offset_m <= off_limit_m(motion.accuracy_m)
    joined = min(ride.joined_m, along) if on_shape else math.inf
    second = stops[1] if course.last > 0 else course.line.length_m
    forward = along - joined  # a bus on its way to the first stop may drive its line backwards
    if on_shape and not match.opposed and _is_time(ride, course, instance, at_ms, forward):
        came = forward >= LEAVE_M
        left = came and along >= stops[0] + LEAVE_M and motion.speed_mps > LEAVE_MPS
        passed = along >= second and (came or (forward >= STIR_M and at_ms >= instance.departure_ms(0) - STANDS_MS))
        if left or passed:
            seen = joined <= stops[0] + ZONE_IN_M  # it was at the first stop, so that its departure is known
            next_stop = 0 if seen else min(bisect_right(stops, along - ZONE_OUT_M), course.last)
            visit = ride.visit if seen else NOT_THERE
            return msgspec.structs.replace(
                ride, phase=IN_TRIP, started_at_ms=at_ms, joined_m=joined, next_stop=next_stop, visit=visit, sure_stop=next_stop
            )
    lat, lon = course.places[0]
    phase = LAYOVER if distance_m(motion.lon, motion.lat, lon, lat) <= TERMINAL_M else DEADHEAD
    visit = ride.visit
    if on_shape and along <= stops[0] + ZONE_OUT_M:  # stands at its first stop, or is still before it: it leaves later than now
        visit = Visit(None, visit.rest_at_ms if visit.rest_at_ms is not None else at_ms, at_ms)
    if phase == ride.phase and joined == ride.joined_m and visit is ride.visit:
        return ride
    return msgspec.structs.replace(ride, phase=phase, joined_m=joined, visit=visit)


def on_new_course(ride: Ride, course: Course, match: Match, version: str) -> Ride:
    """The ride taken over to another feed version whose stops may differ: what was seen at the next stop, and missed, is forgotten."""
    next_stop = min(bisect_right(course.along_m, match.along_m - ZONE_OUT_M), course.last) if ride.started_at_ms is not None else 0
    if ride.phase == DONE:
        next_stop = course.last + 1
    return msgspec.structs.replace(ride, version=version, next_stop=next_stop, visit=NOT_THERE, near_m=(), missed=(), sure_stop=next_stop)


def is_same_plan(one: TripInstance, other: TripInstance) -> bool:
    """Whether two feed versions plan the same: the same times at the same stops at the same arcs of the same line."""
    a, b = one.trip, other.trip
    if one.base_ms != other.base_ms or a.arrival_s != b.arrival_s or a.departure_s != b.departure_s:
        return False
    p, q = a.pattern, b.pattern
    return (
        p.stop_ids == q.stop_ids
        and p.stop_sequences == q.stop_sequences
        and np.array_equal(p.shape.lons, q.shape.lons)
        and np.array_equal(p.shape.lats, q.shape.lats)
        and bool(np.allclose(p.along_m, q.along_m, atol=1.0))
    )


def _is_time(ride: Ride, course: Course, instance: TripInstance, at_ms: int, forward_m: float) -> bool:
    if at_ms >= instance.departure_ms(0) - EARLY_MS:
        return True
    return ride.given_by not in GUESSED and forward_m >= first_part_m(course)


def first_part_m(course: Course) -> float:
    """On this part of the line a bus may still be looking for a place to wait."""
    return min(EARLY_M, EARLY_SHARE * course.line.length_m)


def is_unsure(course: Course, instance: TripInstance, match: Match, at_ms: int) -> bool:
    """The trip has begun, it seems, but may turn out not to have: around its time, on the first part of the line."""
    return at_ms < instance.departure_ms(0) + SURE_MS and match.peak_m - course.along_m[0] <= first_part_m(course)


def came_back(course: Course, match: Match, motion: Motion) -> bool:
    """It stands at its first stop again after the first part of the line: it had not begun (a place to wait lay beyond the stop)."""
    return (
        match.raw_m <= course.along_m[0] + LEAVE_M
        and match.peak_m - match.raw_m >= LEAVE_M
        and match.peak_m - course.along_m[0] <= first_part_m(course)
        and match.offset_m <= off_limit_m(motion.accuracy_m)
    )


def begin_again(ride: Ride) -> Ride:
    """The ride as it was before it began."""
    return Ride(
        ride.trip_id, ride.start_date, ride.route_id, ride.version, ride.given_by, ride.given_at_ms, ride.said, LAYOVER,
        attempt=ride.attempt + 1, cost_s=ride.cost_s,
    )  # fmt: skip


class Crossing(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A stop that was left behind, as the estimator wants to hear of it."""

    stop_index: int
    at_ms: int
    measured: bool  # bracketed by fixes at most 90 s apart


def cross(
    ride: Ride, course: Course, instance: TripInstance, before: Match | None, match: Match, last: Motion | None, motion: Motion, fix: Fix
) -> tuple[Ride, list[StopEvent], list[Crossing]]:
    """After the start: the stops that this fix leaves behind, each once, and the end of the trip.

    `before` and `last`: match and motion of the fix before, None where nothing joins it to this one.
    """
    along, index, stops = match.along_m, min(ride.next_stop, course.last), course.along_m
    driven = ride.driven_m + motion.driven_m
    if index > ride.sure_stop and along < stops[index - 1] - ZONE_IN_M:
        ride = _taken_back(ride, max(ride.sure_stop, bisect_right(stops, along - ZONE_OUT_M)))
        index = ride.next_stop
    ahead = stops[index]
    away = match.offset_m > OFF_M or (before is not None and before.offset_m > OFF_M)
    if along < ahead - ZONE_IN_M and not away and not ride.near_m and index < course.last:  # between stops: nearly every fix
        return msgspec.structs.replace(ride, driven_m=driven), [], []

    near = _nearness(ride, course, last, motion, away)
    events: list[StopEvent] = []
    crossings: list[Crossing] = []
    end = bisect_right(stops, along - ZONE_OUT_M, index)
    if end <= course.last and _is_over(ride, course, match, motion):
        end = course.last + 1
    believable = _believable(end - index, before, match, motion)
    visit = ride.visit
    while index < end:
        visit = _seen(visit, stops[index] - (LAST_M if index == course.last else 0.0), before, match, motion)
        event, crossing = _said(ride, course, instance, index, visit, near, motion, fix) if believable else (None, None)
        if event is not None:
            events.append(event)
        if crossing is not None:
            crossings.append(crossing)
        index, visit, near = index + 1, NOT_THERE, near[1:]
    if index <= course.last:
        visit = _seen(visit, stops[index], before, match, motion)
    phase = IN_TRIP if index <= course.last else DONE
    near = near if away else ()
    missed = ride.missed + tuple(event.stop_sequence for event in events if event.kind == "MISSED")
    sure = index if believable else ride.sure_stop
    ride = msgspec.structs.replace(
        ride, phase=phase, driven_m=driven, next_stop=index, visit=visit, near_m=near, missed=missed, sure_stop=sure
    )
    return ride, events, crossings


def _taken_back(ride: Ride, next_stop: int) -> Ride:
    """The match had leapt over stops of which nothing could be said, and stands before them again: they are still to come."""
    return msgspec.structs.replace(ride, next_stop=next_stop, visit=NOT_THERE, near_m=())


def _is_over(ride: Ride, course: Course, match: Match, motion: Motion) -> bool:
    """At its last stop, or gone from the shape just before it (a terminal loop, the depot's gate)."""
    left_m = course.along_m[course.last] - match.along_m
    if match.offset_m > off_limit_m(motion.accuracy_m):
        return left_m <= TERMINAL_M and ride.next_stop >= course.last - 1
    stood_ms = 0
    if ride.next_stop == course.last and ride.visit.rest_at_ms is not None:
        stood_ms = motion.fixed_at_ms - ride.visit.rest_at_ms
    return left_m <= LAST_M or (left_m <= ZONE_IN_M and stood_ms >= 20_000)


def _believable(count: int, before: Match | None, match: Match, motion: Motion) -> bool:
    """Whether that many stops can have been passed since the fix before."""
    if count <= 0:
        return True
    if before is None or motion.gap_ms == 0 or motion.gap_ms > GAP_MS:
        return count == 1 and before is None  # a lone first sight is judged by `_said`, which needs times
    if count > STOPS_MAX:
        return False
    slow_enough = motion.gap_ms >= PER_STOP_MS * (count - 1)
    return slow_enough or match.along_m - before.along_m <= 100.0 + PLAUSIBLE_MPS * motion.gap_ms / 1000.0


def _seen(visit: Visit, pole_m: float, before: Match | None, match: Match, motion: Motion) -> Visit:
    """The visit after this fix: when the pole was passed, and whether the vehicle stood there."""
    along, at_ms = match.along_m, motion.fixed_at_ms
    passed = visit.passed_at_ms
    if passed is None and along >= pole_m:
        if before is not None and 0 < motion.gap_ms <= GAP_MS and before.along_m < pole_m:
            passed = at_ms - round(motion.gap_ms * (along - pole_m) / (along - before.along_m))
        elif before is not None and before.along_m >= pole_m:
            passed = at_ms  # was past it already (the first stop of a trip that began behind it)
    rest, until = visit.rest_at_ms, visit.rest_until_ms
    if motion.speed_mps < REST_MPS and 0 < motion.gap_ms <= SEEN_MS and -ZONE_IN_M <= along - pole_m <= ZONE_OUT_M:
        rest, until = rest if rest is not None else at_ms, at_ms
    if passed == visit.passed_at_ms and until == visit.rest_until_ms:
        return visit
    return Visit(passed, rest, until)


def _said(
    ride: Ride,
    course: Course,
    instance: TripInstance,
    index: int,
    visit: Visit,
    near: tuple[float, ...],
    motion: Motion,
    fix: Fix,
) -> tuple[StopEvent | None, Crossing | None]:
    trip = instance.trip
    sequence = course.pattern.stop_sequences[index]
    name = event_id("stop", fix.bus_id, ride.trip_id, ride.start_date, sequence, ride.attempt)
    arrived = visit.rest_at_ms if visit.rest_at_ms is not None else visit.passed_at_ms
    departed = visit.rest_until_ms if visit.rest_until_ms is not None else visit.passed_at_ms
    limit = max(MISSED_M, OFF_ACCURACY * (motion.accuracy_m or 0.0))
    if near and near[0] > limit:
        missed = StopEvent(
            name, fix.bus_id, ride.trip_id, ride.start_date, trip.route_id, course.ids[index], sequence, None, None, "MISSED"
        )
        return missed, None
    if arrived is None or departed is None:
        return None, None
    measured = motion.gap_ms <= LEARN_MS
    if not measured:
        kind = "INTERPOLATED"
    elif visit.rest_at_ms is None and motion.gap_ms <= SEEN_MS:
        kind = "PASSED"
    else:
        kind = "SERVED"
    at_ms = departed if index == 0 else arrived
    event = StopEvent(
        name, fix.bus_id, ride.trip_id, ride.start_date, trip.route_id, course.ids[index], sequence,
        None if index == 0 and visit.rest_at_ms is None else arrived, None if index == course.last else departed, kind,
    )  # fmt: skip
    return event, Crossing(index, at_ms, measured)


def _nearness(ride: Ride, course: Course, last: Motion | None, motion: Motion, away: bool) -> tuple[float, ...]:
    """Closest approach so far to each of the next stops, kept only while the vehicle is away from its shape."""
    if not away and not ride.near_m:
        return ()
    known, places = ride.near_m, course.places[ride.next_stop : ride.next_stop + STOPS_MAX]
    start = motion if last is None else last
    closest = []
    for place, (lat, lon) in enumerate(places):
        apart = _chord_m(start.lat, start.lon, motion.lat, motion.lon, lat, lon)
        closest.append(min(apart, known[place]) if place < len(known) else apart)
    return tuple(closest)


def _chord_m(lat0: float, lon0: float, lat1: float, lon1: float, lat: float, lon: float) -> float:
    """Metres from a point to the straight way between two fixes."""
    per_lon, per_lat = metres_per_degree(lat0)
    x1, y1 = (lon1 - lon0) * per_lon, (lat1 - lat0) * per_lat
    x, y = (lon - lon0) * per_lon, (lat - lat0) * per_lat
    square = x1 * x1 + y1 * y1
    share = min(1.0, max(0.0, (x * x1 + y * y1) / square)) if square > 0.0 else 0.0
    return math.hypot(x - share * x1, y - share * y1)
