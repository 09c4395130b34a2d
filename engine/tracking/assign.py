"""Which trip is it, when the device does not say? Active trips that nobody drives, whose shape passes the vehicle's trail in the right order.

Pure. Score in seconds: how far the vehicle is from where the timetable would have it (early counts three times: buses run late, seldom
early), plus what speaks against the direction, minus what the block says. The best is taken when it leads by 60 s, or after three looks.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from engine.tracking.fix import Motion
from engine.tracking.ride import Course, Roadbook
from engine.tracking.timetable import TripInstance
from geo.coords import distance_m, turn_deg

BEFORE_S, AFTER_S = 1_200, 600  # a trip is active from 10 min before its departure to 20 min after its arrival
NEAR_M = 60.0
STEP_M = 100.0  # between two places of the trail
TRAIL = 3
EARLY_WEIGHT = 3.0
OPPOSED_S, OPPOSED_DEG = 300.0, 120.0
BLOCK_S = 120.0
LEAD_S, LOOKS = 60.0, 3
WORST_S = 1_800.0  # further from its time than this it is not that trip


class Trail(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a vehicle without a trip has been: (fixed_at_ms, lat, lon), at least 100 m apart, newest last."""

    places: tuple[tuple[int, float, float], ...] = ()
    looks: int = 0  # how often the trips were looked at without a clear winner
    block_id: str | None = None  # of the trip it drove before


def walked(trail: Trail, motion: Motion) -> Trail:
    """The trail with the newest fix, if that is far enough from the last place; else the same trail."""
    if trail.places:
        _, lat, lon = trail.places[-1]
        if distance_m(lon, lat, motion.lon, motion.lat) < STEP_M:
            return trail
    places = (*trail.places, (motion.fixed_at_ms, motion.lat, motion.lon))[-TRAIL:]
    return Trail(places, trail.looks, trail.block_id)


def assign(trail: Trail, motion: Motion, book: Roadbook, is_driven: Callable[[TripInstance], bool]) -> tuple[Trail, TripInstance | None]:
    """One look. Answers the trail with the look counted and the trip, or None while it is not clear."""
    if len(trail.places) < 2:
        return trail, None
    scores: list[tuple[float, str, TripInstance]] = []
    arcs_by_pattern: dict[str, list[tuple[float, float]]] = {}
    for instance in book.timetable.instances_around(motion.fixed_at_ms, AFTER_S, BEFORE_S):
        trip = instance.trip
        if is_driven(instance):
            continue
        arcs = arcs_by_pattern.get(trip.pattern.pattern_id)
        if arcs is None:
            near = book.is_near(trip.pattern, motion.lon, motion.lat)
            arcs = arcs_by_pattern[trip.pattern.pattern_id] = _arcs(book.course(instance), trail, motion) if near else []
        for along, against in arcs:
            score = _time_score(book.course(instance), instance, along, motion.fixed_at_ms)
            if score <= WORST_S:
                bonus = BLOCK_S if trail.block_id is not None and trip.block_id == trail.block_id else 0.0
                scores.append((score + against - bonus, trip.trip_id, instance))
    looked = Trail(trail.places, trail.looks + 1, trail.block_id)
    if not scores:
        return looked, None
    scores.sort(key=lambda each: each[:2])
    best = scores[0]
    rival = next((each[0] for each in scores[1:] if each[1] != best[1]), best[0] + LEAD_S)
    clear = rival - best[0] >= LEAD_S or looked.looks >= LOOKS
    return looked, best[2] if clear else None


def _arcs(course: Course, trail: Trail, motion: Motion) -> list[tuple[float, float]]:
    """Arcs of the newest place from which the one before lies behind: (along_m, seconds that speak against it)."""
    line, found = course.line, []
    (_, lat0, lon0), (_, lat1, lon1) = trail.places[-2], trail.places[-1]
    befores = [each.along_m for each in line.candidates(lon0, lat0, 0.0, line.length_m) if each.offset_m <= NEAR_M]
    if not befores:
        return []
    step = distance_m(lon0, lat0, lon1, lat1)
    for along, offset, bearing in line.candidates(lon1, lat1, 0.0, line.length_m):
        if offset > NEAR_M or not any(0.5 * step <= along - before <= 3.0 * step + 500.0 for before in befores):
            continue
        opposed = motion.bearing_deg is not None and turn_deg(motion.bearing_deg, bearing) > OPPOSED_DEG
        found.append((along, OPPOSED_S if opposed else 0.0))
    return found


def _time_score(course: Course, instance: TripInstance, along_m: float, at_ms: int) -> float:
    late_s = (at_ms - course.scheduled_ms(instance, along_m)) / 1000.0
    return late_s if late_s >= 0 else -late_s * EARLY_WEIGHT
