"""Which trip a vehicle is on with its next fix. Pure, and a function of the vehicle's frozen state and the area around it.

The words that count, strongest first: an order of a dispatcher or driver (`rules.Order`), what the device names, the next trip of the block
that the vehicle has been driving, and what its drive looks like (`assign.py`). What people and devices name is kept until it is done or
taken back; what we guessed is looked at again while the vehicle leaves its first stop, when it drives elsewhere, and when it ends, and goes
to another vehicle that it fits clearly better. A trip instance is never guessed for two vehicles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from engine.events import DEADHEAD, DONE, IN_TRIP, Event, TripEvent
from engine.tracking import watch as watching
from engine.tracking.assign import (
    DULL_S,
    LEFT_M,
    SHARP_S,
    TRUST_MAX_S,
    TRUST_S,
    Standing,
    Trail,
    choices,
    choose,
    reviewed,
    walked,
)
from engine.tracking.fix import Fix, Motion
from engine.tracking.ride import (
    BLOCK,
    DEVICE,
    ENGINE,
    GAP_MS,
    GUESSED,
    LATE_FOR_EVER_MS,
    OFF_M,
    Course,
    Ride,
    Roadbook,
    event_id,
    first_part_m,
)
from engine.tracking.rules import Order
from engine.tracking.timetable import TripInstance
from engine.tracking.watch import OFF
from geo.coords import distance_m
from geo.match import Match

if TYPE_CHECKING:
    from engine.tracking.vehicle import Area, VehicleState

MISTAKEN_MS, NEVER_BEGAN_MS = 180_000, 900_000  # an assignment of ours is given up after so long off its route, or without a start
NEAR_END_M, NEAR_END_MPS = 300.0, 8.0  # a trip that is left this near to its end, and what may be driven since the last fix, is done
AWAY_M = 500.0  # gone from its last stop this far, whatever it was doing there is over
YOUNG_MS = 480_000  # so long after it was given an assignment of ours is easily taken back
OVERDUE_MS = 300_000
STOOD_MS = 150_000  # a bus that stands so long near its last stop has ended its trip
ASTRAY_MS = 900_000  # off route for so long, a trip that was known well is given up too
BLOCK_WAIT_MS = 3_600_000  # the next trip of the block is given so long before its departure, or with the look that finds it leaving
WAITING_S = 200.0  # against a vehicle that only waits for the trip
DISPLACE_S = 120.0  # a vehicle that takes another's trip must fit it better by this
FIRST_MS, LAST_MS = 3_600_000, LATE_FOR_EVER_MS  # an order holds from an hour before departure to 3 h past the trip's end
OVERLAP_MS = 300_000  # a trip that ends so much later than the ordered one departs cannot be driven before it
DISPLACED, WITHDRAWN, ELSEWHERE = "DISPLACED", "ORDER_WITHDRAWN", "ORDERED_ELSEWHERE"


class Boarded(NamedTuple):
    """The ride with this fix, the trail, what there is to say, and something to count."""

    ride: Ride | None
    trail: Trail
    events: list[Event]
    note: str | None = None


def board(state: VehicleState, fix: Fix, motion: Motion, area: Area) -> Boarded:
    """Which trip the vehicle is on with this fix."""
    ride, book, trail = state.ride, area.book, state.trail
    if book is None:
        return Boarded(None, trail, [])
    events: list[Event] = []
    if (
        ride is not None
        and ride.given_by == DEVICE
        and 0 < motion.gap_ms <= GAP_MS
        and ride.said == (fix.trip_id, fix.start_date)
        and not area.rules.of_bus
    ):  # nearly every fix of a device that names its trip, where nobody has said otherwise: none of the questions below can end it
        return Boarded(ride, trail, events)
    if ride is not None and (why := _reason_to_leave(state, ride, area, motion)) is not None:
        events, trail, ride = left(state, fix, ride, area, why), _after(trail, ride, fix, why), None
    order = _order(ride, trail, area, fix)
    if order is not None:
        return _ordered(order, state, ride, trail, events, fix, area)
    if fix.trip_id is not None and not _is_barred(fix, area):
        return _named(state, ride, trail, events, fix, area)
    if ride is not None and ride.phase != DONE and ride.given_by not in GUESSED:
        return Boarded(ride, trail, events)
    longer = walked(trail, motion)
    has_walked, trail = longer is not trail, longer
    if ride is not None and ride.phase == IN_TRIP and _has_arrived(state, ride, trail, motion, area, book):
        events = events + left(state, fix, ride, area, "STANDS_AT_END")
        trail, ride = _ended(trail, ride, fix.fixed_at_ms), None
    if ride is not None and ride.phase != DONE:
        return _review(state, ride, trail, events, fix, motion, area) if has_walked else Boarded(ride, trail, events)
    if ride is not None:
        trail = _ended(trail, ride, fix.fixed_at_ms)
    following = _next_of_block(trail, ride, fix, motion, area, book)
    if following is not None:
        return _given(state, ride, trail, events, fix, area, following, BLOCK, WAITING_S - trail.trust_s)
    if has_walked:
        found = choices(trail, motion, book, area.was_done_by_other(fix.bus_id))
        trail, choice = choose(trail, found, lambda each: area.is_open(each.name, fix.bus_id, each.cost_s, fix.fixed_at_ms))
        if choice is not None:
            return _given(state, ride, trail, events, fix, area, choice.instance, ENGINE, choice.cost_s)
    if ride is not None and _is_still_there(state, ride, motion, area):
        return Boarded(ride, trail, events)
    return Boarded(None, trail, events)


# --- people and devices ---


def _order(ride: Ride | None, trail: Trail, area: Area, fix: Fix) -> Order | None:
    """The order that holds for the vehicle now: of those that are not done, the one that departs first.

    A trip that the vehicle is driving may end before the ordered one departs; one that cannot be left for the order at once.
    """
    assert area.book is not None
    best: tuple[int, str, Order] | None = None
    for order in area.rules.of_bus.get(fix.bus_id, ()):
        instance = area.book.instance(order.trip_id, order.start_date)
        if instance is None:
            continue
        name, departs_ms = (order.trip_id, order.start_date), instance.departure_ms(0)
        over = fix.fixed_at_ms > instance.arrival_ms(len(instance.trip.arrival_s) - 1) + LAST_MS
        done = trail.last == name and order.at_ms <= trail.ended_at_ms
        if ride is not None and (ride.trip_id, ride.start_date) == name:
            done = done or ride.phase == DONE
            if not over and not done and ride.given_by == order.said_as:
                return order
        if not over and not done and fix.fixed_at_ms >= departs_ms - FIRST_MS and (best is None or (departs_ms, name[0]) < best[:2]):
            best = departs_ms, name[0], order
    if best is None:
        return None
    if _drives_before(ride, best[0], area, fix):
        return None
    return best[2]


def _drives_before(ride: Ride | None, departs_ms: int, area: Area, fix: Fix) -> bool:
    """Whether it is on a trip that ends before the ordered one departs: under way on it, or seen for the first time on one that its device
    names."""
    instance = None
    if ride is not None and ride.phase != DONE:
        found = area.of(ride)
        instance = found.instance if found is not None else None
    elif ride is None and fix.trip_id is not None and area.book is not None:
        instance = area.book.named(fix.trip_id, fix.start_date, fix.fixed_at_ms)
    if instance is None or (instance.departure_ms(0) > fix.fixed_at_ms and (ride is None or ride.phase != IN_TRIP)):
        return False
    return instance.arrival_ms(len(instance.trip.arrival_s) - 1) <= departs_ms + OVERLAP_MS


def _ordered(order: Order, state: VehicleState, ride: Ride | None, trail: Trail, events: list[Event], fix: Fix, area: Area) -> Boarded:
    if ride is not None and (ride.trip_id, ride.start_date) == (order.trip_id, order.start_date):
        if ride.given_by == order.said_as:
            return Boarded(ride, trail, events)
        return Boarded(msgspec.structs.replace(ride, given_by=order.said_as), trail, events)
    assert area.book is not None
    instance = area.book.instance(order.trip_id, order.start_date)
    assert instance is not None  # `_order` found it
    return _given(state, ride, trail, events, fix, area, instance, order.said_as, 0.0)


def _is_barred(fix: Fix, area: Area) -> bool:
    """The device names a trip that people have given to another vehicle."""
    if not area.rules.of_trip or area.book is None or fix.trip_id is None:
        return False
    instance = area.book.named(fix.trip_id, fix.start_date, fix.fixed_at_ms)
    order = area.rules.of_trip.get((instance.trip.trip_id, instance.start_date)) if instance is not None else None
    return order is not None and order.bus_id != fix.bus_id


def _named(state: VehicleState, ride: Ride | None, trail: Trail, events: list[Event], fix: Fix, area: Area) -> Boarded:
    assert area.book is not None and fix.trip_id is not None
    said = (fix.trip_id, fix.start_date)
    if ride is not None and ride.said == said and ride.given_by == DEVICE:
        return Boarded(ride, trail, events)
    instance = area.book.named(fix.trip_id, fix.start_date, fix.fixed_at_ms)
    if instance is None:
        return Boarded(None, trail, events + (left(state, fix, ride, area, "UNKNOWN_TRIP") if ride is not None else []), "UNKNOWN_TRIP")
    if ride is not None and (ride.trip_id, ride.start_date) == (instance.trip.trip_id, instance.start_date):
        return Boarded(msgspec.structs.replace(ride, said=said, given_by=DEVICE), trail, events)
    return _given(state, ride, trail, events, fix, area, instance, DEVICE, 0.0, said)


# --- what we guess ---


def _next_of_block(trail: Trail, ride: Ride | None, fix: Fix, motion: Motion, area: Area, book: Roadbook) -> TripInstance | None:
    """The next trip of the vehicle's block, near its departure, unless somebody has it by a better right."""
    last = trail.last if trail.block_id is not None else None
    ended = book.instance(*last) if last is not None else None
    if ended is None or ended.trip.block_id != trail.block_id:
        return None
    instance = book.next_in_block(ended)
    if instance is None or not -NEVER_BEGAN_MS <= instance.departure_ms(0) - fix.fixed_at_ms <= BLOCK_WAIT_MS:
        return None
    if ride is None:  # it is not at its last stop any more: it has to be seen at the first one
        lat, lon = book.course(instance).places[0]
        if distance_m(motion.lon, motion.lat, lon, lat) > AWAY_M:
            return None
    name = instance.trip.trip_id, instance.start_date
    return instance if area.is_open(name, fix.bus_id, WAITING_S - trail.trust_s, fix.fixed_at_ms) else None


def _has_arrived(state: VehicleState, ride: Ride, trail: Trail, motion: Motion, area: Area, book: Roadbook) -> bool:
    """It stands short of its last stop where it waits for what comes next: buses are not always let out of where the feed has the last stop."""
    found, match = area.of(ride), state.match
    if found is None or match is None or found.course.along_m[found.course.last] - match.along_m > NEAR_END_M or not trail.places:
        return False
    stood_ms = motion.fixed_at_ms - trail.places[-1][0]
    following = book.next_in_block(found.instance)
    if following is not None:
        lat, lon = book.course(following).places[0]
        if distance_m(motion.lon, motion.lat, lon, lat) > NEAR_END_M:
            return False
        return stood_ms >= STOOD_MS or motion.fixed_at_ms >= following.departure_ms(0) - 60_000
    due_ms = found.instance.arrival_ms(found.course.last)
    return stood_ms >= 2 * STOOD_MS and motion.fixed_at_ms >= due_ms - STOOD_MS


def _review(state: VehicleState, ride: Ride, trail: Trail, events: list[Event], fix: Fix, motion: Motion, area: Area) -> Boarded:
    """A trip that we guessed, looked at again."""
    found, book = area.of(ride), area.book
    assert book is not None
    if found is None:
        return Boarded(ride, trail, events)
    match, now_ms = state.match, fix.fixed_at_ms
    course = found.course
    near_end = match is not None and _is_near_end(course, match, fix, state.fix)
    started = ride.started_at_ms is not None
    young = ride.given_by == ENGINE and now_ms - ride.given_at_ms <= YOUNG_MS
    fresh = started and now_ms - (ride.started_at_ms or 0) <= YOUNG_MS
    late_s = (now_ms - course.scheduled_ms(found.instance, match.along_m)) / 1000.0 if match is not None else 0.0
    sure = match is not None and match.offset_m <= OFF_M and match.along_m - course.along_m[0] >= first_part_m(course)
    departed = started and ride.joined_m <= course.along_m[0] + LEFT_M
    trail = _judged(trail, ride, late_s) if sure and departed else trail
    if started and not near_end and not young and not fresh and match is not None and match.offset_m <= OFF_M and abs(late_s) <= 900.0:
        return Boarded(ride, trail, events)
    name = ride.trip_id, ride.start_date
    standing = Standing(
        name, started, sure or trail.trust_s < TRUST_S, young, near_end, now_ms > found.instance.departure_ms(0) + OVERDUE_MS
    )
    seen = choices(trail, motion, book, area.was_done_by_other(fix.bus_id))
    trail, rival = reviewed(trail, seen, standing, lambda each: area.is_open(each.name, fix.bus_id, each.cost_s, fix.fixed_at_ms))
    if rival is not None:
        if near_end and rival.departing:
            trail = _ended(trail, ride, now_ms)
        return _given(state, ride, trail, events, fix, area, rival.instance, ENGINE, rival.cost_s)
    own = next((each for each in seen if each.name == name), None)
    if own is not None and own.departing and started and own.cost_s < ride.cost_s:
        ride = msgspec.structs.replace(ride, cost_s=own.cost_s)
    return Boarded(ride, trail, events)


def _judged(trail: Trail, ride: Ride, late_s: float) -> Trail:
    """What the departure said of the block, once for each trip: near its time it speaks for the block, far from it against."""
    name = ride.trip_id, ride.start_date
    if trail.sure == name:
        return trail
    gained_s = TRUST_S if abs(late_s) <= SHARP_S else -TRUST_S if late_s < -SHARP_S or late_s > DULL_S else TRUST_S / 2
    trust_s = trail.trust_s + gained_s
    return msgspec.structs.replace(trail, sure=name, trust_s=min(TRUST_MAX_S, max(0.0, trust_s)))


def _ended(trail: Trail, ride: Ride, at_ms: int) -> Trail:
    """The trail of a vehicle whose trip is done."""
    name = ride.trip_id, ride.start_date
    if trail.last == name:
        return trail
    return msgspec.structs.replace(trail, last=name, ended_at_ms=at_ms, looks=0, rival=None, leads=0)


def _after(trail: Trail, ride: Ride, fix: Fix, why: str) -> Trail:
    """The trail of a vehicle that was taken off its trip: where we were wrong, the block is not what we thought."""
    if why == "LEFT_AT_END":
        return _ended(trail, ride, fix.fixed_at_ms)
    return displaced(trail) if why != "OVER" else Trail()


def displaced(trail: Trail) -> Trail:
    """The trail of a vehicle that lost its trip to another one."""
    return Trail(trail.places, 0, None, trail.last, trail.ended_at_ms)


def _given(
    state: VehicleState, ride: Ride | None, trail: Trail, events: list[Event], fix: Fix, area: Area, instance: TripInstance, given_by: str,
    cost_s: float, said: tuple[str, str | None] | None = None,
) -> Boarded:  # fmt: skip
    assert area.book is not None
    if ride is not None:
        events = events + left(state, fix, ride, area, given_by)
        if ride.phase == DONE:
            trail = _ended(trail, ride, fix.fixed_at_ms)
    trip = instance.trip
    now = Ride(trip.trip_id, instance.start_date, trip.route_id, area.book.version, given_by, fix.fixed_at_ms, said, cost_s=cost_s)
    events.append(trip_event("ASSIGNED", fix, now, instance, given_by))
    trust_s = TRUST_MAX_S if given_by not in GUESSED else trail.trust_s if trail.block_id in (None, trip.block_id) else 0.0
    places = trail.places if given_by in GUESSED else ()
    return Boarded(now, Trail(places, 0, trip.block_id, trail.last, trail.ended_at_ms, trust_s), events)


# --- leaving ---


def _reason_to_leave(state: VehicleState, ride: Ride, area: Area, motion: Motion) -> str | None:
    """Why the vehicle is on its trip no more, before anything else is asked; None: it may stay."""
    name = ride.trip_id, ride.start_date
    if _is_past(ride, area, motion):
        return "OVER"
    order = area.rules.of_trip.get(name)
    if order is not None and order.bus_id != state.bus_id and ride.phase != DONE:
        return ELSEWHERE
    if ride.given_by not in (*GUESSED, DEVICE):
        return WITHDRAWN if order is None and ride.phase != DONE else None
    if ride.given_by not in GUESSED or ride.phase == DONE:
        return None
    if area.is_driven_by_other(name, state.bus_id):
        return DISPLACED
    return _mistake(state, ride, area, motion)


def _is_past(ride: Ride, area: Area, motion: Motion) -> bool:
    """Nothing was heard for a while, and the trip has been over for hours: whoever speaks now is not on it."""
    found = area.of(ride)
    if found is None:
        return not 0 < motion.gap_ms <= GAP_MS
    if 0 < motion.gap_ms <= GAP_MS and ride.given_by in (*GUESSED, DEVICE):
        return False
    return motion.fixed_at_ms > found.instance.arrival_ms(len(found.instance.trip.arrival_s) - 1) + LATE_FOR_EVER_MS


def _mistake(state: VehicleState, ride: Ride, area: Area, motion: Motion) -> str | None:
    """Why a trip that nobody named cannot be this vehicle's any more, or None: its drive says otherwise for minutes."""
    off, match, at_ms = state.watch.off_route, state.match, motion.fixed_at_ms
    found = area.of(ride)
    if ride.phase == IN_TRIP and match is not None and found is not None and match.offset_m > OFF_M and state.fix is not None:
        lat, lon = found.course.places[found.course.last]
        near_end = _is_near_end(found.course, match, state.fix, state.fix)
        if near_end and distance_m(motion.lon, motion.lat, lon, lat) > AWAY_M:
            return "LEFT_AT_END"
    known = state.trail.sure == (ride.trip_id, ride.start_date)
    if off.phase == OFF and off.worst_m >= area.rules.watch.major_m and at_ms - off.since_ms >= (ASTRAY_MS if known else MISTAKEN_MS):
        return "OFF_ROUTE"
    first_part = found is not None and match is not None and match.peak_m - found.course.along_m[0] <= first_part_m(found.course)
    if state.watch.wrong_way.open and not first_part:  # a place to wait may lie on the first part: it comes back from there
        return "WRONG_WAY"
    astray = ride.started_at_ms is None and match is not None and match.offset_m > OFF_M and ride.phase == DEADHEAD
    if astray and found is not None and at_ms > found.instance.departure_ms(0) + NEVER_BEGAN_MS:
        return "NOT_BEGUN"
    return None


def _is_still_there(state: VehicleState, ride: Ride, motion: Motion, area: Area) -> bool:
    """A vehicle whose trip is done is on it until it has gone from its last stop."""
    found = area.of(ride)
    if found is None or state.match is None or state.match.offset_m > OFF_M:
        return False
    lat, lon = found.course.places[found.course.last]
    return distance_m(motion.lon, motion.lat, lon, lat) <= AWAY_M


def left(state: VehicleState, fix: Fix, ride: Ride, area: Area, reason: str) -> list[Event]:
    """What there is to say when a vehicle leaves a trip; a trip that is done has been said already."""
    events: list[Event] = list(watching.close(state.watch, fix, ride, fix.fixed_at_ms, reason))
    found = area.of(ride)
    if found is not None and ride.phase != DONE:
        arrived = ride.phase == IN_TRIP and state.match is not None and _is_near_end(found.course, state.match, fix, state.fix)
        events.append(trip_event("COMPLETED" if arrived else "UNASSIGNED", fix, ride, found.instance, reason))
    return events


def _is_near_end(course: Course, match: Match, fix: Fix, last: Fix | None) -> bool:
    """Drivers name the next trip when they roll into the terminal, not when they stand there."""
    gap_s = (fix.fixed_at_ms - last.fixed_at_ms) / 1000.0 if last is not None else 0.0
    return course.along_m[course.last] - match.along_m <= NEAR_END_M + NEAR_END_MPS * min(gap_s, 120.0)


def trip_event(kind: str, fix: Fix, ride: Ride, instance: TripInstance, reason: str) -> TripEvent:
    name = event_id("trip", kind, fix.bus_id, ride.trip_id, ride.start_date, ride.given_at_ms, ride.attempt)
    return TripEvent(name, fix.bus_id, ride.trip_id, ride.start_date, instance.trip.route_id, kind, fix.fixed_at_ms, reason)
