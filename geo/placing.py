"""Stops on a line: the arc position of each stop of a trip, strictly increasing, found for all of them together.

The nearest point of the line is wrong wherever a line comes back to where it was: out-and-back roads, lollipops, figures of eight, loops
that end where they began. So every stop gets a few candidates (the local minima of its distance to the line) and dynamic programming picks
one of each, in order along the line, with the least cost in square metres:

    offset^2  +  HINT_WEIGHT * metres from the feed's own shape_dist_traveled, where that is sane
              +  TIME_WEIGHT * metres by which a leg is longer or shorter than its scheduled share
              +  ORDER_WEIGHT * metres^2 by which it lies behind the stop before (small ones only: kerb stops drawn a little out of order)

Hint and time decide only between candidates that fit about equally well: neither is trusted to move a stop. Where no choice is in order, a
second pass over the whole line, cut into short pieces, always finds one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geo.coords import wrap_lon
from geo.shape import Shape

Floats = NDArray[np.float64]

CANDIDATES = 12  # of one stop; a line that passes a stop more often than that is a drawing fault
REACH_M = 250.0  # a candidate may be so much farther than the nearest one: a terminal passed on the street the second time
BEHIND_M = 100.0  # two stops may lie so much out of order before the second pass is asked
STEP_M = 1.0  # least distance between two stops in a row (less on a line too short for it)
HINT_WEIGHT, HINT_CAP_M = 0.2, 1_000.0
TIME_WEIGHT, TIME_CAP_M = 0.05, 3_000.0
END_WEIGHT, END_CAP_M = 0.02, 2_000.0  # the first stop is rather at the start of the line, the last one at its end
ORDER_WEIGHT = 4.0
PIECE_M = 25.0  # of the second pass
_BLOCK = 1_000_000  # stops x segments worked on at once: bounds memory at about 100 MB


class Placing(NamedTuple):
    """`along_m`, strictly increasing and within the line; `offset_m`, each stop's distance from its place; `forced`: by the second pass."""

    along_m: Floats
    offset_m: Floats
    forced: bool


def place_stops(
    shape: Shape,
    lons: Floats,
    lats: Floats,
    *,
    hint_m: Floats | None = None,
    leg_s: Sequence[float | None] | None = None,
) -> Placing:
    """Arc positions of n stops (degrees) along a shape of more than no length.

    `hint_m`: where the feed says each one is, in metres along (already converted; checked here, dropped where it is not sane).
    `leg_s`: scheduled seconds from each stop to the next (n - 1 values, None where not timed). Raises ValueError on a line of no length.
    """
    if shape.length_m <= 0:
        raise ValueError(f"shape {shape.shape_id}: no length, nothing can be placed on it")
    found = _candidates(shape, lons, lats)
    hints = _sane_hints(shape, lons, lats, hint_m, found)
    legs: list[float | None] = [None] * (len(lons) - 1)
    chosen = _choose(shape.length_m, found, hints, legs)
    if chosen is not None and leg_s is not None and any(len(alongs) > 1 for alongs, _ in found):
        chosen = _choose(shape.length_m, found, hints, _expected_legs(chosen, leg_s)) or chosen
    forced = chosen is None
    if chosen is None:
        chosen = _choose_by_pieces(shape, lons, lats)
    along = spread(np.array(chosen), shape.length_m)
    at_lon, at_lat, _ = shape.positions(along)
    index = np.clip(np.searchsorted(shape.cum_m, along, side="right") - 1, 0, len(shape.seg_m) - 1)
    along.setflags(write=False)  # it is shared by every trip of the pattern
    offset = np.hypot(wrap_lon(lons - at_lon) * shape.per_lon[index], (lats - at_lat) * shape.per_lat[index])
    return Placing(along, offset, forced)


def spread(along: Floats, length_m: float) -> Floats:
    """The nearest (least squares) strictly increasing positions inside [0, length_m]: pool adjacent violators, at least STEP_M apart."""
    count = len(along)
    step = min(STEP_M, length_m / (2.0 * count))
    ramp = np.arange(count) * step
    pools: list[list[float]] = []  # [mean, members]
    for value in (along - ramp).tolist():
        pools.append([value, 1.0])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, members = pools.pop()
            last = pools[-1]
            last[0] = (last[0] * last[1] + mean * members) / (last[1] + members)
            last[1] += members
    flat = np.repeat([mean for mean, _ in pools], [int(members) for _, members in pools])
    return np.asarray(np.clip(flat, 0.0, length_m - ramp[-1]) + ramp, dtype=np.float64)


def _feet(shape: Shape, lons: Floats, lats: Floats) -> tuple[Floats, Floats, Floats]:
    """Every stop's foot on every segment, three arrays [stops, segments]: share of the segment (0 to 1), along_m, offset_m."""
    x = wrap_lon(lons[:, None] - shape.lons[None, :-1]) * shape.per_lon
    y = (lats[:, None] - shape.lats[None, :-1]) * shape.per_lat
    square = shape.seg_m * shape.seg_m
    share = np.clip((x * shape.east_m + y * shape.north_m) / np.where(square > 0, square, 1.0), 0.0, 1.0)
    return share, shape.cum_m[:-1] + share * shape.seg_m, np.hypot(x - share * shape.east_m, y - share * shape.north_m)


def _candidates(shape: Shape, lons: Floats, lats: Floats) -> list[tuple[list[float], list[float]]]:
    """Of each stop the local minima of its distance to the line, in order along: ([along_m], [offset_m]); at least one.

    A foot inside a segment always is one (both passes of a hairpin, however near each other); at a vertex both segments have to end there.
    """
    found: list[tuple[list[float], list[float]]] = []
    rows = max(1, _BLOCK // len(shape.seg_m))
    for first in range(0, len(lons), rows):
        share, along, offset = _feet(shape, lons[first : first + rows], lats[first : first + rows])
        edge = np.ones((len(along), 1), dtype=bool)
        ends_before = np.hstack((edge, share[:, :-1] == 1.0))
        begins_after = np.hstack((share[:, 1:] == 0.0, edge))
        low = np.where(share == 0.0, ends_before, np.where(share == 1.0, begins_after, True))
        low &= offset <= offset.min(axis=1, keepdims=True) + REACH_M
        low[np.arange(len(low)), offset.argmin(axis=1)] = True
        for row in range(len(along)):
            at = np.flatnonzero(low[row])
            if len(at) > CANDIDATES:
                at = np.sort(at[np.argsort(_distinct(along[row, at], offset[row, at]), kind="stable")[:CANDIDATES]])
            found.append(_merged(along[row, at].tolist(), offset[row, at].tolist()))
    return found


def _distinct(along: Floats, offset: Floats) -> Floats:
    """Offsets with the twins of a shared vertex (the foot on two segments is one point) pushed to the end of the order."""
    twin = np.zeros(len(along), dtype=bool)
    twin[1:] = np.diff(along) < 1e-6
    return np.where(twin, np.inf, offset)


def _merged(along: list[float], offset: list[float]) -> tuple[list[float], list[float]]:
    """Candidates less than STEP_M apart are one: the nearer."""
    kept_along, kept_offset = [along[0]], [offset[0]]
    for at, off in zip(along[1:], offset[1:], strict=True):
        if at - kept_along[-1] >= STEP_M:
            kept_along.append(at)
            kept_offset.append(off)
        elif off < kept_offset[-1]:
            kept_along[-1], kept_offset[-1] = at, off
    return kept_along, kept_offset


def _sane_hints(
    shape: Shape, lons: Floats, lats: Floats, hint_m: Floats | None, found: list[tuple[list[float], list[float]]]
) -> list[float] | None:
    """The feed's own positions where they never go back and nine in ten of them are about as near to their stops as the line is."""
    if hint_m is None or len(hint_m) != len(found) or not np.isfinite(hint_m).all() or (np.diff(hint_m) < 0).any():
        return None
    at_lon, at_lat, _ = shape.positions(hint_m)
    off = np.hypot(wrap_lon(lons - at_lon) * shape.per_lon[0], (lats - at_lat) * shape.per_lat[0])
    best = np.array([min(offsets) for _, offsets in found])
    return hint_m.tolist() if np.mean(off <= best + 60.0) >= 0.9 else None


def _expected_legs(chosen: list[float], leg_s: Sequence[float | None]) -> list[float | None]:
    """Metres that each leg would have at the median speed of the legs as chosen so far; None where the leg is not timed.

    The median, because the line may be far longer than the trip (a round trip drawn as one line) and one leg on the wrong pass must not count.
    """
    speeds = [(at - behind) / seconds for behind, at, seconds in zip(chosen, chosen[1:], leg_s, strict=False) if seconds]
    if not speeds:
        return [None] * len(leg_s)
    speed = float(np.median(speeds))
    return [None if seconds is None else speed * seconds for seconds in leg_s]


def _choose(
    length_m: float,
    found: list[tuple[list[float], list[float]]],
    hints: list[float] | None,
    legs: list[float | None],
) -> list[float] | None:
    """The cheapest choice of one candidate a stop in order along the line, or None where none is."""
    last = len(found) - 1
    costs: list[float] = []
    before: list[float] = []
    came: list[list[int]] = []
    for stop, (alongs, offsets) in enumerate(found):
        now, ways = [], []
        for at, off in zip(alongs, offsets, strict=True):
            own = off * off
            if hints is not None:
                own += HINT_WEIGHT * min(abs(at - hints[stop]), HINT_CAP_M)
            if stop == 0:
                own += END_WEIGHT * min(at, END_CAP_M)
            if stop == last:
                own += END_WEIGHT * min(length_m - at, END_CAP_M)
            cost, way = (own, -1) if stop == 0 else _cheapest_way(before, costs, at, legs[stop - 1])
            now.append(cost if stop == 0 else cost + own)
            ways.append(way)
        came.append(ways)
        before, costs = alongs, now
    best = min(range(len(costs)), key=costs.__getitem__)
    if costs[best] == float("inf"):
        return None
    picked = []
    for stop in range(last, -1, -1):
        picked.append(found[stop][0][best])
        best = came[stop][best]
    return picked[::-1]


def _cheapest_way(before: list[float], costs: list[float], at: float, leg_m: float | None) -> tuple[float, int]:
    """(cost, which candidate of the stop before) to reach this arc position."""
    best, way = float("inf"), 0
    for index, (behind, cost) in enumerate(zip(before, costs, strict=True)):
        ahead = at - behind
        lack = STEP_M - ahead
        if lack > BEHIND_M:
            break  # candidates stand in order along: the rest lie farther ahead still
        if lack > 0:
            cost += ORDER_WEIGHT * lack * lack
        if leg_m is not None:
            cost += TIME_WEIGHT * min(abs(ahead - leg_m), TIME_CAP_M)
        if cost < best:
            best, way = cost, index
    return best, way


def _choose_by_pieces(shape: Shape, lons: Floats, lats: Floats) -> list[float]:
    """Least square distances over the whole line cut into pieces, each stop on the same piece as the one before it or a later one."""
    pieces = max(2 * len(lons), min(20_000, int(shape.length_m / PIECE_M) + 1))
    centres: Floats = (np.arange(pieces, dtype=np.float64) + 0.5) * (shape.length_m / pieces)
    at_lon, at_lat, _ = shape.positions(centres)
    index = np.searchsorted(shape.cum_m, centres, side="right") - 1
    per_lon, per_lat = shape.per_lon[index], shape.per_lat[index]
    total = np.zeros(pieces)
    came: list[NDArray[np.int64]] = []
    numbers = np.arange(pieces)
    for lon, lat in zip(lons.tolist(), lats.tolist(), strict=True):
        lowest = np.minimum.accumulate(total)
        # where the running minimum was set: the piece that the stop before takes if this one takes piece j
        came.append(np.maximum.accumulate(np.where(total <= lowest, numbers, 0)))
        off_x, off_y = wrap_lon(lon - at_lon) * per_lon, (lat - at_lat) * per_lat
        total = lowest + off_x * off_x + off_y * off_y
    piece = int(np.argmin(total))
    chosen = []
    for ways in reversed(came):
        chosen.append(float(centres[piece]))
        piece = int(ways[piece])
    return chosen[::-1]
