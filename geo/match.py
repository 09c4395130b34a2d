"""Where on the shape a vehicle is: windowed candidates, costs, a few hypotheses.

The nearest point of the whole line is wrong wherever a line meets itself (loops, out and back, figure of eight). So a fix is only compared
with the arcs that the vehicle can have reached, `[s - 100 m, s + 150 m + 28 m/s * dt]`, and while two arcs explain it about equally well both
are kept, at most three, judged by their last five fixes or so. While the best one explains a fix badly (far beside, or driven back along) the
whole line is looked at for a stretch that the vehicle drives along; what is found must make up for its jump, in the fixes that follow if they
are close, before it is believed. Lengths in metres, speeds in m/s, bearings in degrees clockwise from north.

cost of a candidate = (d^2 / (2 sigma^2) + 8 where the vehicle moves against the line) * min(1, dt / 12 s) + |ds - v dt| / beta.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from geo.coords import metres_per_degree, turn_deg
from geo.shape import Shape

BACK_M, AHEAD_M, AHEAD_MPS = 100.0, 150.0, 28.0  # the window; 28 m/s is a coach on a motorway
SIGMA_MIN_M = 8.0  # phones promise 3 m and mean 8
BETA_M = 40.0
OPPOSITE_DEG, OPPOSITE_COST = 120.0, 8.0
ALONG_DEG = 60.0  # a jump leads only to where the vehicle drives along the line: crossing a later stretch is not joining it
FAR_COST = 12.0  # cap of the distance term: one wild fix must not outweigh all that was known
JUMP_COST = 10.0  # cap of the progress term for arcs outside the window, which are looked at only while astray
STEADY_S = 10.0  # a speed holds for about this long; beyond it the vehicle's pace over some minutes is the better guess
PACE_S, PACE_MPS = 300.0, 6.0  # time constant of that pace, and what it starts from: a city bus with its stops
SPREAD_MPS = 1.0  # beta grows by this for every second beyond STEADY_S
ALIKE_S = 12.0  # errors of a receiver hang together for about this long (own simulations: 25 s): fixes closer in time count less, by their share of it
HYPOTHESES = 3
LEAD = 4.0  # a hypothesis that trails the best by this is given up
RETREAT_MAX_M = 50.0  # the published arc never goes back further
LOST_M = 60.0
SAME_ARC_M = 15.0  # two hypotheses nearer than this are one
TOLERANCE_M = 1.0  # of the simplified line
CHORD_MAX_M = 2_000.0  # of the simplified line: the scale of a degree changes along a longer one
NEAREST = 16  # candidates of a long window that are looked at
PLAIN_MAX = 120  # segments up to which a plain loop beats numpy (measured: 0.23 us a segment against 30 us a call)


Minimum = tuple[float, float, float]  # along_m, offset_m, bearing_deg of the line there


class Line:
    """A shape made ready for matching: fewer vertices (each left-out one within 1 m of its place, along and across), as plain tuples."""

    __slots__ = ("_arrays", "_cum", "_first_lon", "_segments", "length_m", "shape")

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.length_m = shape.length_m
        lons = np.degrees(np.unwrap(np.radians(shape.lons)))  # no step of 360 degrees at the antimeridian
        lats, cum = shape.lats, shape.cum_m
        kept = _simplified(lons, lats, shape)
        a, b = kept[:-1], kept[1:]
        per_lon, per_lat = metres_per_degree((lats[a] + lats[b]) * 0.5)
        east, north = (lons[b] - lons[a]) * per_lon, (lats[b] - lats[a]) * per_lat
        square = east * east + north * north
        inverse = np.where(square > 0.0, 1.0 / np.where(square > 0.0, square, 1.0), 0.0)
        bearing = np.degrees(np.arctan2(east, north)) % 360.0
        self._arrays = np.array([lons[a], lats[a], per_lon, per_lat, east, north, inverse, cum[a], cum[b] - cum[a], bearing])
        self._segments: list[tuple[float, ...]] = [tuple(row) for row in self._arrays.T.tolist()]
        self._cum: list[float] = cum[a].tolist()
        self._first_lon = float(lons[0])

    def candidates(self, lon: float, lat: float, low_m: float, high_m: float) -> list[Candidate]:
        """Local minima of the distance on the arcs [low_m, high_m], in order of arc; at least one."""
        return [Candidate(*each) for each in self.minima(lon, lat, low_m, high_m)]

    def minima(self, lon: float, lat: float, low_m: float, high_m: float) -> list[Minimum]:
        """`candidates` as plain tuples, which cost a tenth: matching looks at several for every fix."""
        if not -180.0 <= lon - self._first_lon <= 180.0:
            lon += 360.0 if lon < self._first_lon else -360.0
        cum = self._cum
        first = bisect_right(cum, low_m) - 1
        if first < 0:
            first = 0
        end = bisect_right(cum, high_m, first + 1)
        if end - first > PLAIN_MAX:
            return self.minima_array(lon, lat, first, end)
        return self.minima_plain(lon, lat, first, end)

    def minima_plain(self, lon: float, lat: float, first: int, end: int) -> list[Minimum]:
        """For few segments."""
        found: list[Minimum] = []
        sqrt = math.sqrt
        above = True  # the segment before had its nearest point at its end (or is not looked at)
        share = x = y = cum = length = bearing = 0.0
        for lon0, lat0, per_lon, per_lat, east, north, inverse, cum, length, bearing in self._segments[first:end]:
            x, y = (lon - lon0) * per_lon, (lat - lat0) * per_lat
            share = (x * east + y * north) * inverse
            if share >= 1.0:
                above = True
                continue
            if share > 0.0:
                x -= share * east
                y -= share * north
                found.append((cum + share * length, sqrt(x * x + y * y), bearing))
            elif above:  # a corner, or the begin of what is looked at
                found.append((cum, sqrt(x * x + y * y), bearing))
            above = False
        if above:  # its end
            found.append((cum + length, math.hypot(x - east, y - north), bearing))
        return found

    def minima_array(self, lon: float, lat: float, first: int, end: int) -> list[Minimum]:
        """For many segments; the same minima, at most the nearest NEAREST."""
        lon0, lat0, per_lon, per_lat, east, north, inverse, cum, length, bearing = self._arrays[:, first:end]
        x, y = (lon - lon0) * per_lon, (lat - lat0) * per_lat
        share = (x * east + y * north) * inverse
        beyond = share >= 1.0
        least = (share > 0.0) & ~beyond | (share <= 0.0) & np.concatenate(([True], beyond[:-1]))
        least[-1] |= beyond[-1]
        at = np.flatnonzero(least)
        share = np.clip(share, 0.0, 1.0)
        square = (x - share * east) ** 2 + (y - share * north) ** 2
        if len(at) > NEAREST:  # a line that winds
            at = np.sort(at[np.argsort(square[at], kind="stable")[:NEAREST]])
        return [(float(cum[i] + share[i] * length[i]), math.sqrt(float(square[i])), float(bearing[i])) for i in at.tolist()]


Guess = tuple[float, float, float, bool, bool]  # cost, along_m, offset_m, opposed, trusted: in the order in which the best comes first


class Candidate(NamedTuple):
    along_m: float
    offset_m: float
    bearing_deg: float  # of the line there


class Arc(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One hypothesis: the vehicle is here, and what the last fixes cost on that assumption (the best one stands at 0)."""

    along_m: float
    offset_m: float
    cost: float
    opposed: bool  # the vehicle moves against the line here
    trusted: bool  # False: found by a jump that no second fix has confirmed; not published while a trusted one is kept


class Match(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where on its shape a vehicle is believed to be. `along_m` is what is published; `raw_m` the best hypothesis as it is."""

    along_m: float
    offset_m: float
    raw_m: float
    peak_m: float  # furthest arc so far
    low_m: float  # lowest arc since then
    opposed: bool
    arcs: tuple[Arc, ...]  # best first
    pace_mps: float = PACE_MPS  # along the line, averaged over PACE_S, halts included


def sigma_m(accuracy_m: float | None) -> float:
    """Standard deviation of a fix from what the device says of its accuracy."""
    return SIGMA_MIN_M if accuracy_m is None or accuracy_m < SIGMA_MIN_M else accuracy_m


def place_first(
    line: Line, lon: float, lat: float, *, sigma: float, bearing_deg: float | None, prior: Callable[[float], float] | None = None
) -> Match:
    """The first fix on this line, or the first after a teleport: the whole shape is searched.

    `bearing_deg` None: standing or unknown. `prior` gives an extra cost to an arc (what the timetable expects); without one all are equal
    and of equals the earliest arc is published.
    """
    found: list[Guess] = []
    for along, offset, course in line.minima(lon, lat, 0.0, line.length_m):
        opposed = bearing_deg is not None and turn_deg(bearing_deg, course) > OPPOSITE_DEG
        cost = min(FAR_COST, offset * offset / (2.0 * sigma * sigma)) + (OPPOSITE_COST if opposed else 0.0)
        found.append((cost + (prior(along) if prior is not None else 0.0), along, offset, opposed, True))
    kept = _kept(found, LEAD)
    best = kept[0]
    return Match(best.along_m, best.offset_m, best.along_m, best.along_m, best.along_m, best.opposed, kept)


def place_next(
    line: Line,
    match: Match,
    lon: float,
    lat: float,
    *,
    dt_s: float,
    speed_mps: float,
    sigma: float,
    bearing_deg: float | None,
    lost_m: float = LOST_M,
    may_retreat: bool = False,
) -> Match:
    """The next fix in time on the same line. `lost_m`: further off than this, or driving back, the whole shape is looked at for a way on.
    `may_retreat`: the trip has not begun, so the published arc may move freely."""
    beyond = dt_s - STEADY_S if dt_s > STEADY_S else 0.0
    expected, reach = speed_mps * (dt_s - beyond) + match.pace_mps * beyond, AHEAD_M + AHEAD_MPS * dt_s
    weight = dt_s / ALIKE_S if dt_s < ALIKE_S else 1.0
    per_square, per_m = 0.5 * weight / (sigma * sigma), 1.0 / (BETA_M + SPREAD_MPS * beyond)
    far_cost, opposite_cost = FAR_COST * weight, OPPOSITE_COST * weight
    found: list[Guess] = []
    opposed = False
    for arc in match.arcs:
        base, past = arc.along_m, arc.cost
        ahead = base + expected
        for along, offset, course in line.minima(lon, lat, base - BACK_M, base + reach):
            cost = offset * offset * per_square
            cost = past + (cost if cost < far_cost else far_cost) + abs(along - ahead) * per_m
            if bearing_deg is not None and (opposed := OPPOSITE_DEG < abs(bearing_deg - course) < 360.0 - OPPOSITE_DEG):
                cost += opposite_cost
            found.append((cost, along, offset, opposed, True))
    turned_m = match.peak_m - RETREAT_MAX_M
    if not _is_astray(found, lost_m, turned_m):
        return _published(match, _kept(found, LEAD), dt_s, may_retreat)
    if bearing_deg is not None:  # who stands drives along nothing
        first, near = match.arcs[0], [each[1] for each in found]
        for along, offset, course in line.minima(lon, lat, 0.0, line.length_m):
            if offset > lost_m or turn_deg(bearing_deg, course) > ALONG_DEG or any(abs(along - other) <= SAME_ARC_M for other in near):
                continue
            cost = offset * offset * per_square
            cost = first.cost + (cost if cost < far_cost else far_cost) + min(JUMP_COST, abs(along - first.along_m - expected) * per_m)
            found.append((cost, along, offset, False, False))
    lead = LEAD
    if _is_astray(found, lost_m, turned_m):  # fixes that count less each need room to add up
        lead += JUMP_COST * (1.0 - weight)
    return _published(match, _kept(found, lead), dt_s, may_retreat)


def set_back(match: Match) -> Match:
    """The match with nothing held against going back: the published arc is the raw one."""
    return Match(match.raw_m, match.offset_m, match.raw_m, match.raw_m, match.raw_m, match.opposed, match.arcs, match.pace_mps)


def _is_astray(found: list[Guess], lost_m: float, turned_m: float) -> bool:
    """Whether the best of them is none that one would believe: too far beside, or driven against and back behind `turned_m`. A bearing alone
    does not show it, there are devices that always say north."""
    _, along, offset, opposed, _ = found[0] if len(found) == 1 else min(found)
    return offset > lost_m or (opposed and along < turned_m)


def _kept(found: list[Guess], lead: float) -> tuple[Arc, ...]:
    """The best few, one per place, costs counted from the best; those that trail by `lead` are given up."""
    least, along, offset, opposed, trusted = found[0] if len(found) == 1 else min(found)
    best = Arc(along, offset, 0.0, opposed, trusted)
    if len(found) == 1:
        return (best,)
    enough = least + lead
    close = [each for each in found if each[0] < enough and abs(each[1] - along) > SAME_ARC_M]
    if not close:
        return (best,)
    kept = [best]
    for cost, along, offset, opposed, trusted in sorted(close):
        if all(abs(along - other.along_m) > SAME_ARC_M for other in kept):
            kept.append(Arc(along, offset, cost - least, opposed, trusted))
            if len(kept) == HYPOTHESES:
                break
    return tuple(kept)


def _published(match: Match, kept: tuple[Arc, ...], dt_s: float, may_retreat: bool) -> Match:
    best = kept[0]
    if not best.trusted:
        best = next((arc for arc in kept if arc.trusted), best)
    raw, peak, low = best.along_m, match.peak_m, match.low_m
    stepped = min(AHEAD_MPS, max(0.0, (raw - match.raw_m) / dt_s)) if dt_s > 0 else 0.0
    pace = match.pace_mps + min(1.0, dt_s / PACE_S) * (stepped - match.pace_mps)
    if may_retreat:
        return Match(raw, best.offset_m, raw, raw, raw, best.opposed, kept)
    if raw >= peak:
        return Match(raw, best.offset_m, raw, raw, raw, best.opposed, kept, pace)
    low = min(low, raw) if raw < peak - RETREAT_MAX_M else peak
    if raw >= low + 2 * RETREAT_MAX_M:  # it drives forward again from further back: we had been wrong to be so far ahead
        return Match(raw, best.offset_m, raw, raw, raw, best.opposed, kept, pace)
    return Match(max(raw, peak - RETREAT_MAX_M), best.offset_m, raw, peak, low, best.opposed, kept, pace)


def _simplified(lons: NDArray[np.float64], lats: NDArray[np.float64], shape: Shape) -> NDArray[np.int64]:
    """Indices of the vertices that stay. A vertex may go where the point of the chord at its share of the arc is within TOLERANCE_M of
    it: unlike Douglas-Peucker's distance to the chord this keeps a way back and forth on one street (Meratnia and de By, 2004)."""
    cum = shape.cum_m
    keep = np.zeros(len(lons), dtype=bool)
    keep[0] = keep[-1] = True
    waiting = [(0, len(lons) - 1)]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        arc = cum[last] - cum[first]
        if arc > CHORD_MAX_M:
            middle = min(max(int(np.searchsorted(cum, cum[first] + arc / 2)), first + 1), last - 1)
            keep[middle] = True
            waiting += [(first, middle), (middle, last)]
            continue
        inner = slice(first + 1, last)
        share = (cum[inner] - cum[first]) / arc if arc > 0 else np.zeros(last - first - 1)
        x = (lons[inner] - lons[first] - share * (lons[last] - lons[first])) * shape.per_lon[first]
        y = (lats[inner] - lats[first] - share * (lats[last] - lats[first])) * shape.per_lat[first]
        away = x * x + y * y
        worst = int(np.argmax(away))
        if away[worst] > TOLERANCE_M * TOLERANCE_M:
            middle = first + 1 + worst
            keep[middle] = True
            waiting += [(first, middle), (middle, last)]
    return np.flatnonzero(keep)
