"""Which trip is it, when the device does not say? Trips whose line passes the vehicle's trail in the right order, judged in seconds.

Pure. What speaks against a trip, in seconds (`cost_s`): how far the vehicle is from where the timetable would have it (early counts three
times when it leaves its first stop, less when it was found under way: buses leave late and seldom early, but on an empty road they run ahead);
a heading against the line; another route than the vehicle's last trip; a departure before that trip was due to end. The block that the
vehicle has been driving speaks for a trip, the more so the more departures it explained to the minute (`Trail.trust_s`).

A look is taken every 100 m. A vehicle that was seen to leave a first stop is given its trip at once where one leads by a minute, or after three
looks; one that was found under way must have driven 400 m of the line first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from engine.tracking.atlas import Atlas
from engine.tracking.fix import Motion
from engine.tracking.ride import Course, Roadbook
from engine.tracking.timetable import Pattern, TripInstance
from geo.coords import distance_m, turn_deg
from geo.match import Line

NEAR_M = 60.0
STEP_M = 100.0  # between two places of the trail
TRAIL = 8
EARLY_WEIGHT, EARLY_WEIGHT_UNDER_WAY = 3.0, 1.7
OPPOSED_S, OPPOSED_DEG = 300.0, 120.0
BLOCK_S = 300.0  # for the vehicle's block, beside the trust it has earned
OTHER_ROUTE_S = 120.0  # against a trip of another route than the last one
TOO_SOON_S, SOON_MS = 900.0, 180_000  # against a trip that was to depart before the last one was to end
AGAIN_S = 600.0  # against a trip that another vehicle has done already
LEAD_S, LOOKS, LOOKS_UNDER_WAY = 60.0, 3, 8
WORST_S = 1_800.0  # further behind its time than this it is not that trip,
AHEAD_S = 1_200.0  # nor further ahead of it
WORST_OF_BLOCK_S = 3_600.0
LEFT_M, LEAVING_M = 200.0, 60.0  # a place so near to the first stop shows where it left from; so far on it is leaving
BESIDE_M = 350.0  # so near to the first stop, beside the line, buses wait
MOVING_MPS = 1.5  # below this a heading is noise
UNDER_WAY_S = 180.0  # against a vehicle that was only found under way: who was seen to leave has the better right
UNDER_WAY_M = 400.0  # of the line, driven, before a vehicle that was found under way is given a trip
REST_OF_LINE_M = 300.0  # with less of the line left there is nothing to give any more
MEMORY_MS = 5_400_000  # a trip that ended longer ago says nothing of the next one
TRUST_S, TRUST_MAX_S = 300.0, 900.0  # earned with each departure on time
SHARP_S, DULL_S = 180.0, 480.0  # near its time, far from it

Name = tuple[str, str]  # trip_id, start_date


class Trail(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a vehicle has been, (fixed_at_ms, lat, lon), at least 100 m apart, newest last; and what it has been doing all day."""

    places: tuple[tuple[int, float, float], ...] = ()
    looks: int = 0  # how often the trips were looked at without a clear winner
    block_id: str | None = None  # of the trip it drives or drove last
    last: Name | None = None  # the trip that it ended last
    ended_at_ms: int = 0
    trust_s: float = 0.0  # in the block: how well its departures were explained
    rival: Name | None = None  # what has lately looked better than its trip
    leads: int = 0  # looks in a row
    sure: Name | None = None  # the trip whose departure has been judged


class Choice(NamedTuple):
    """A trip that the trail fits."""

    cost_s: float
    instance: TripInstance
    late_s: float
    along_m: float  # behind its first stop
    departing: bool  # it was seen at the first stop
    driven_m: float  # of the line, as far as the trail shows
    of_block: bool

    @property
    def name(self) -> Name:
        return self.instance.trip.trip_id, self.instance.start_date


class Fit(NamedTuple):
    along_m: float
    from_m: float  # arc of the oldest place of the trail that fits
    opposed: bool
    lone: bool = False  # the place before is not on the line


def walked(trail: Trail, motion: Motion) -> Trail:
    """The trail with the newest fix, if that is far enough from the last place; else the same trail."""
    if trail.places:
        _, lat, lon = trail.places[-1]
        if distance_m(lon, lat, motion.lon, motion.lat) < STEP_M:
            return trail
    return msgspec.structs.replace(trail, places=(*trail.places, (motion.fixed_at_ms, motion.lat, motion.lon))[-TRAIL:])


def choices(trail: Trail, motion: Motion, book: Roadbook, is_done: Callable[[Name], bool] = lambda _: False) -> list[Choice]:
    """Every trip instance that the trail fits, the best first; whoever drives it."""
    if len(trail.places) < 2:
        return []
    _, lat1, lon1 = trail.places[-1]
    atlas = book.atlas
    shapes = atlas.shapes_through(lon1, lat1)
    last = _last(trail, motion, book)
    best: dict[Name, Choice] = {}
    for shape_id in sorted(shapes):
        patterns = atlas.patterns_of(shape_id)
        for fit in fits(atlas, book.line(patterns[0].shape), trail, motion):
            for pattern in patterns:
                for choice in _of_pattern(trail, motion, book, pattern, fit, last):
                    if choice.name == trail.last:
                        continue
                    if is_done(choice.name):
                        choice = choice._replace(cost_s=choice.cost_s + AGAIN_S)
                    known = best.get(choice.name)
                    if known is None or choice.cost_s < known.cost_s:
                        best[choice.name] = choice
    return sorted(best.values(), key=lambda each: (each.cost_s, each.name))


def choose(trail: Trail, found: list[Choice], is_open: Callable[[Choice], bool]) -> tuple[Trail, Choice | None]:
    """One look. Answers the trail with the look counted and the trip, or None while it is not clear."""
    free = [choice for choice in found if is_open(choice)]
    if not free:
        return (msgspec.structs.replace(trail, looks=0) if trail.looks else trail), None
    best = free[0]
    looks = trail.looks + 1
    lead_s = free[1].cost_s - best.cost_s if len(free) > 1 else LEAD_S
    if best.departing or best.of_block:
        clear = lead_s >= LEAD_S or looks >= LOOKS
    else:
        clear = best.driven_m >= UNDER_WAY_M and (lead_s >= LEAD_S or looks >= LOOKS_UNDER_WAY)
    return msgspec.structs.replace(trail, looks=looks), best if clear else None


def fits(atlas: Atlas, line: Line, trail: Trail, motion: Motion) -> list[Fit]:
    """Arcs of the newest place from which the places before lie behind in order."""
    (_, lat0, lon0), (_, lat1, lon1) = trail.places[-2], trail.places[-1]
    found = []
    ends = atlas.near(line, lon1, lat1, NEAR_M)
    if not ends:
        return []
    before = [each.along_m for each in atlas.near(line, lon0, lat0, NEAR_M)]
    if not before:
        return [Fit(along, along, _is_opposed(motion, bearing), True) for along, _, bearing in ends]
    earlier: list[tuple[float, list[float]]] | None = None
    for along, _, bearing in ends:
        at = _behind(along, distance_m(lon0, lat0, lon1, lat1), before)
        if at is None:
            continue
        if earlier is None:
            earlier = _earlier(atlas, line, trail)
        for step, arcs in earlier:
            further = _behind(at, step, arcs)
            if further is None:
                break
            at = further
        found.append(Fit(along, at, _is_opposed(motion, bearing)))
    return found


def _is_opposed(motion: Motion, bearing_deg: float) -> bool:
    return motion.bearing_deg is not None and motion.speed_mps > MOVING_MPS and turn_deg(motion.bearing_deg, bearing_deg) > OPPOSED_DEG


def _earlier(atlas: Atlas, line: Line, trail: Trail) -> list[tuple[float, list[float]]]:
    """For the places before the last two, newest first: metres to the place after, and the arcs near it; up to the first that is off."""
    found = []
    for index in range(len(trail.places) - 3, -1, -1):
        (_, lat0, lon0), (_, lat1, lon1) = trail.places[index], trail.places[index + 1]
        arcs = [each.along_m for each in atlas.near(line, lon0, lat0, NEAR_M)]
        if not arcs:
            break
        found.append((distance_m(lon0, lat0, lon1, lat1), arcs))
    return found


def _behind(along_m: float, step_m: float, arcs: list[float]) -> float | None:
    """The nearest of the arcs that a vehicle can have come from in a straight step of that length."""
    fitting = [arc for arc in arcs if 0.5 * step_m <= along_m - arc <= 3.0 * step_m + 500.0]
    return max(fitting) if fitting else None


def _last(trail: Trail, motion: Motion, book: Roadbook) -> TripInstance | None:
    """The trip that the vehicle ended not long ago."""
    if trail.last is None or motion.fixed_at_ms - trail.ended_at_ms > MEMORY_MS:
        return None
    return book.instance(*trail.last)


def _of_pattern(trail: Trail, motion: Motion, book: Roadbook, pattern: Pattern, fit: Fit, last: TripInstance | None) -> list[Choice]:
    course = book.course_of(pattern)
    first_m, last_m = course.along_m[0], course.along_m[course.last]
    if fit.along_m < first_m + LEAVING_M or fit.along_m > last_m - REST_OF_LINE_M:
        return []
    from_m = first_m if fit.lone and _came_from_start(trail, course, fit) else fit.from_m
    if fit.lone and from_m == fit.from_m:
        return []
    departing = from_m <= first_m + LEFT_M
    found: list[Choice] = []
    for instance in _due(book, course, fit.along_m, motion.fixed_at_ms):
        late_s = (motion.fixed_at_ms - course.scheduled_ms(instance, fit.along_m)) / 1000.0
        of_block = trail.block_id is not None and instance.trip.block_id == trail.block_id
        if not -AHEAD_S <= late_s <= (WORST_OF_BLOCK_S if of_block else WORST_S):
            continue
        cost = late_s if late_s >= 0 else -late_s * (EARLY_WEIGHT if departing else EARLY_WEIGHT_UNDER_WAY)
        cost += OPPOSED_S if fit.opposed else 0.0
        cost += 0.0 if departing or of_block else UNDER_WAY_S
        if of_block:
            cost -= BLOCK_S + trail.trust_s
        if last is not None:
            if instance.trip.route_id != last.trip.route_id and not of_block:
                cost += OTHER_ROUTE_S
            if instance.departure_ms(0) < last.arrival_ms(len(last.trip.arrival_s) - 1) - SOON_MS:
                cost += TOO_SOON_S
        found.append(Choice(cost, instance, late_s, fit.along_m - first_m, departing, fit.along_m - from_m, of_block))
    return found


def _due(book: Roadbook, course: Course, along_m: float, now_ms: int) -> Iterator[TripInstance]:
    """The pattern's trips that might be here now. How long they take to get here is taken from one of them, give or take."""
    for held in book.atlas.around(now_ms):
        departures = held.get(course.pattern.pattern_id)
        if departures is None:
            continue
        model = departures.instances[len(departures.instances) // 2]
        takes_ms = course.scheduled_ms(model, along_m) - model.departure_ms(0)
        earliest_ms = now_ms - round(1.5 * takes_ms) - round(WORST_OF_BLOCK_S * 1000)
        yield from departures.between(earliest_ms, now_ms - takes_ms // 2 + round(AHEAD_S * 1000))


def _came_from_start(trail: Trail, course: Course, fit: Fit) -> bool:
    """Buses wait beside their line: the place before is near the first stop, and so far it can have come from there."""
    (_, lat0, lon0), (_, lat1, lon1) = trail.places[-2], trail.places[-1]
    lat, lon = course.places[0]
    step_m = distance_m(lon0, lat0, lon1, lat1) + BESIDE_M
    return distance_m(lon0, lat0, lon, lat) <= BESIDE_M and fit.along_m - course.along_m[0] <= 1.5 * step_m + 200.0


class Standing(NamedTuple):
    """How a vehicle stands to the trip that it was given, for `reviewed`."""

    name: Name
    started: bool
    sure: bool  # it has driven so much of the line that it does not come back to wait, or the trip is not well known to be its own
    young: bool  # given by the engine minutes ago, and nothing has confirmed it yet
    near_end: bool
    overdue: bool  # it should have begun minutes ago and has not


SWITCH_S = 60.0  # a better trip must lead by this, after all that speaks for staying,
HOLD_S = 240.0  # which is this where the feed has no blocks
ODD_S = 900.0  # so far from its time a trip under way is looked at again
SWITCH_LOOKS = 3
EARLY_S = 300.0


def reviewed(trail: Trail, found: list[Choice], standing: Standing, is_open: Callable[[Choice], bool]) -> tuple[Trail, Choice | None]:
    """One look at the trips around a vehicle that has one. Answers the trail, and the trip that it should be on instead, if any."""
    own = next((choice for choice in found if choice.name == standing.name), None)
    rival = next((choice for choice in found if choice.name != standing.name and is_open(choice)), None)
    looks = _looks_needed(own, rival, standing) if rival is not None else None
    if rival is None or looks is None:
        return (msgspec.structs.replace(trail, rival=None, leads=0) if trail.leads else trail), None
    leads = trail.leads + 1 if trail.rival == rival.name else 1
    return msgspec.structs.replace(trail, rival=rival.name, leads=leads), rival if leads >= looks else None


def _looks_needed(own: Choice | None, rival: Choice, standing: Standing) -> int | None:
    """How many looks in a row the rival must lead to take the vehicle over; None: it does not lead."""
    if own is not None:  # both fit: the clock decides
        if own.departing and own.late_s < -EARLY_S and not standing.sure:
            return None  # it may be on its way to a place to wait, along its own line
        stays_s = own.cost_s if own.of_block else own.cost_s - HOLD_S
        if rival.cost_s + SWITCH_S >= stays_s:
            return None
        if rival.departing and own.departing:
            return 1
        return SWITCH_LOOKS if abs(own.late_s) > ODD_S else None
    if not standing.started:
        if not standing.overdue and (not rival.departing or not standing.young):
            return None
        return 2 if rival.departing else SWITCH_LOOKS
    if standing.near_end and rival.departing:
        return 1
    return 2 if standing.young else None
