"""When buses really were at their stops, and where they had got to: worked out after the event from recorded fixes, for scoring alone.

Not the tracker: it sees the whole trip at once (Viterbi over candidate arcs of each fix), while the tracker has to decide fix by fix. A
crossing is a stop's arc position between two fixes at most `BRACKET_MS` apart, taken linear along the shape; good to about half the
distance of the two. Milliseconds UTC, metres along the trip's shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.tracking.fix import Fix
from engine.tracking.timetable import Pattern, Timetable, TripInstance
from geo.shape import Shape

BRACKET_MS = 120_000  # fixes further apart say too little about what lies between
OFFSET_MAX_M = 60.0  # fixes further off the shape are not on the trip
CANDIDATES_MAX = 6  # arcs considered for one fix: a shape rarely passes the same place more often
STRETCH_M = 30.0
SIGMA_M = 20.0
BACK_M = 40.0  # a step back of this costs one unit: noise, not driving
SPEED_MAX_MPS = 35.0

Floats = NDArray[np.float64]
RideKey = tuple[str, str, str]  # vehicle_id, trip_id, start_date


class Ride(NamedTuple):
    """One vehicle on one trip instance as it was: its fixes on the shape, in time order, and the crossings of its stops (0: none)."""

    instance: TripInstance
    received_at_ms: NDArray[np.int64]
    fixed_at_ms: NDArray[np.int64]
    along_m: Floats  # never goes back
    crossed_at_ms: NDArray[np.int64]  # by stop index


def rides(fixes: Iterable[Fix], timetable: Timetable, assigned: Mapping[tuple[str, int], tuple[str, str]]) -> dict[RideKey, Ride]:
    """Every ride of a recording, by vehicle, trip and date.

    The trip is the one that the fix names; where it names none, `assigned` says it by (vehicle, fixed_at_ms). Fixes of trips that the
    timetable does not know, and rides of fewer than two fixes on the shape, are left out.
    """
    gathered: dict[RideKey, list[Fix]] = {}
    for fix in fixes:
        trip_id, start_date = fix.trip_id, fix.start_date
        if trip_id is None or start_date is None:
            trip_id, start_date = assigned.get((fix.bus_id, fix.fixed_at_ms), (trip_id, start_date))
        if trip_id is not None and start_date is not None:
            gathered.setdefault((fix.bus_id, trip_id, start_date), []).append(fix)
    found = {}
    for key in sorted(gathered):
        instance = timetable.instance(key[1], key[2])
        ride = None if instance is None else _ride(instance, gathered[key])
        if ride is not None:
            found[key] = ride
    return found


def _ride(instance: TripInstance, fixes: list[Fix]) -> Ride | None:
    pattern = instance.trip.pattern
    once = {fix.fixed_at_ms: fix for fix in sorted(fixes, key=lambda fix: (fix.fixed_at_ms, -fix.received_at_ms))}
    ordered, along = place(list(once.values()), pattern.shape)
    if len(ordered) < 2:
        return None
    fixed = np.array([fix.fixed_at_ms for fix in ordered], dtype=np.int64)
    received = np.array([fix.received_at_ms for fix in ordered], dtype=np.int64)
    along = np.maximum.accumulate(along)
    return Ride(instance, received, fixed, along, crossings(fixed, along, pattern))


def place(fixes: list[Fix], shape: Shape) -> tuple[list[Fix], Floats]:
    """The fixes on the shape and their arc positions: the cheapest way through the candidates of all of them."""
    kept, arcs, costs = [], [], []
    for fix in fixes:
        along, offset = _candidates(shape, fix)
        if len(along):
            kept.append(fix)
            arcs.append(along)
            costs.append(offset * offset / (2 * SIGMA_M * SIGMA_M))
    if not kept:
        return [], np.empty(0)
    total, back = costs[0], []
    for before, after, earlier, arc, cost in zip(kept, kept[1:], arcs, arcs[1:], costs[1:], strict=False):
        reach = SPEED_MAX_MPS * (after.fixed_at_ms - before.fixed_at_ms) / 1000 + 100
        step = arc[None, :] - earlier[:, None]
        penalty = np.where(step < 0, -step / BACK_M, np.where(step > reach, (step - reach) / BACK_M, 0.0))
        way = total[:, None] + penalty
        best = np.argmin(way, axis=0)
        back.append(best)
        total = way[best, np.arange(len(arc))] + cost
    index = int(np.argmin(total))
    chosen = [index]
    for best in reversed(back):
        index = int(best[index])
        chosen.append(index)
    return kept, np.array([arc[i] for arc, i in zip(arcs, reversed(chosen), strict=True)])


def _candidates(shape: Shape, fix: Fix) -> tuple[Floats, Floats]:
    """The nearest foot of every stretch of the shape within reach, nearest first. Feet further apart along it are other stretches."""
    along, offset = shape.project(fix.lon, fix.lat)
    near = np.flatnonzero(offset <= OFFSET_MAX_M)
    if not len(near):
        return np.empty(0), np.empty(0)
    stretches = np.split(near, np.flatnonzero(np.diff(along[near]) > STRETCH_M) + 1)
    least = np.array([stretch[int(np.argmin(offset[stretch]))] for stretch in stretches])
    best = least[np.argsort(offset[least], kind="stable")[:CANDIDATES_MAX]]
    return along[best], offset[best]


def crossings(fixed_at_ms: NDArray[np.int64], along_m: Floats, pattern: Pattern) -> NDArray[np.int64]:
    """When each stop's arc position was first reached, UTC ms; 0 where no two fixes at most `BRACKET_MS` apart bracket it.

    The first stop has none: a bus stands there before it leaves, and its arrival belongs to the trip before.
    """
    stops = pattern.along_m
    found = np.zeros(len(stops), dtype=np.int64)
    after = np.searchsorted(along_m, stops, side="left")
    for stop in range(1, len(stops)):
        i = int(after[stop])
        if 0 < i < len(along_m) and fixed_at_ms[i] - fixed_at_ms[i - 1] <= BRACKET_MS:
            share = (stops[stop] - along_m[i - 1]) / (along_m[i] - along_m[i - 1])
            found[stop] = fixed_at_ms[i - 1] + round(float(share) * float(fixed_at_ms[i] - fixed_at_ms[i - 1]))
    return found
