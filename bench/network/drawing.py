"""From authored roads to lines on the ground: splines through the waypoints, bends, the right-hand lane, and the stops beside it.

Everything is worked out from the tables in `streets.py`, without chance: the same tables give the same bytes.
Units: degrees (WGS 84) outside, metres inside one road, which is short enough for a flat earth.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from shapely import LineString

from bench.network.streets import KINDS, PLACES, ROADS, Road
from geo.coords import metres_per_degree

Array = NDArray[np.float64]
LANE_M = 3.5  # half a street: buses keep to the right, so the two directions do not lie on each other
KERB_M = 4.0  # from the lane to the stop's post
SIMPLIFY_M = 0.8


class Drawn(NamedTuple):
    """A road in its own direction. `stop_at`: vertex of each of its stops."""

    lats: Array
    lons: Array
    stop_at: tuple[int, ...]


class Halt(NamedTuple):
    """Where a line stops. `key` is the same for both sides of the street."""

    stop_id: str
    key: str
    name: str
    lat: float
    lon: float
    at: int  # vertex of the drive
    place: str | None  # None: a stop along a road


class Drive(NamedTuple):
    """One direction of a line, as driven: vertices, metres along, seconds of free driving up to each vertex, and its halts."""

    lats: Array
    lons: Array
    along_m: Array
    free_s: Array
    halts: tuple[Halt, ...]


def _spline(x: Array, y: Array, step_m: float) -> tuple[Array, Array]:
    """Centripetal Catmull-Rom through all points: passes each of them and never loops between two."""
    xs, ys = [float(x[0])], [float(y[0])]
    x = np.concatenate(([2 * x[0] - x[1]], x, [2 * x[-1] - x[-2]]))
    y = np.concatenate(([2 * y[0] - y[1]], y, [2 * y[-1] - y[-2]]))
    for i in range(1, len(x) - 2):
        knots = [0.0]
        for j in range(i - 1, i + 2):
            knots.append(knots[-1] + math.hypot(x[j + 1] - x[j], y[j + 1] - y[j]) ** 0.5)
        t0, t1, t2, t3 = knots
        count = max(2, round(math.hypot(x[i + 1] - x[i], y[i + 1] - y[i]) / step_m))
        t = np.linspace(t1, t2, count + 1)[1:]
        for points, out in ((x, xs), (y, ys)):
            p0, p1, p2, p3 = points[i - 1 : i + 3]
            a1 = (t1 - t) / (t1 - t0) * p0 + (t - t0) / (t1 - t0) * p1
            a2 = (t2 - t) / (t2 - t1) * p1 + (t - t1) / (t2 - t1) * p2
            a3 = (t3 - t) / (t3 - t2) * p2 + (t - t2) / (t3 - t2) * p3
            b1 = (t2 - t) / (t2 - t0) * a1 + (t - t0) / (t2 - t0) * a2
            b2 = (t3 - t) / (t3 - t1) * a2 + (t - t1) / (t3 - t1) * a3
            out.extend((t2 - t) / (t2 - t1) * b1 + (t - t1) / (t2 - t1) * b2)
    return np.array(xs), np.array(ys)


def _normals(x: Array, y: Array) -> tuple[Array, Array]:
    """Unit vectors to the right of travel at every vertex."""
    dx, dy = np.gradient(x), np.gradient(y)
    size = np.hypot(dx, dy)
    size[size == 0] = 1.0
    return dy / size, -dx / size


def _bend(x: Array, y: Array, road: Road) -> tuple[Array, Array]:
    """Small curves that fade towards both ends, so that roads still meet."""
    along = np.concatenate(([0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))))
    nx, ny = _normals(x, y)
    aside = np.zeros(len(x))
    for size_m, wave_m in KINDS[road.kind].bends:
        phase = crc32(f"{road.start}-{road.end}-{wave_m}".encode()) % 6283 / 1000
        aside += size_m * np.sin(2 * np.pi * along / wave_m + phase)
    ramp_m = max(60.0, KINDS[road.kind].bends[0][1] / 2)
    aside *= np.clip(np.minimum(along, along[-1] - along) / ramp_m, 0, 1)
    return x + nx * aside, y + ny * aside


@cache
def draw(road: Road) -> Drawn:
    """The road's vertices, its stops among them."""
    points = [PLACES[road.start][1:], *road.via, PLACES[road.end][1:]]
    lat0, lon0 = (sum(p[k] for p in points) / len(points) for k in (0, 1))
    kx, ky = metres_per_degree(lat0)
    x, y = (np.array([p[1] - lon0 for p in points]) * kx, np.array([p[0] - lat0 for p in points]) * ky)
    x, y = _bend(*_spline(x, y, KINDS[road.kind].step_m), road)
    line = LineString(np.column_stack((x, y))).simplify(SIMPLIFY_M)
    coords = np.array(line.coords)
    along = np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(coords, axis=0).T))))
    stop_m = [along[-1] * (i + 1) / (len(road.stops) + 1) for i in range(len(road.stops))]
    every_m = np.unique(np.concatenate((along, stop_m)))
    x, y = np.interp(every_m, along, coords[:, 0]), np.interp(every_m, along, coords[:, 1])
    at = tuple(int(i) for i in np.searchsorted(every_m, stop_m))
    return Drawn(lat0 + y / ky, lon0 + x / kx, at)


_BETWEEN = {(road.start, road.end): road for road in ROADS}


def _drive_roads(places: tuple[str, ...]) -> list[tuple[Road, bool]]:
    """(road, driven against its own direction) of each pair of places. Raises KeyError naming a pair that no road joins."""
    found = []
    for start, end in pairwise(places):
        if (start, end) in _BETWEEN:
            found.append((_BETWEEN[start, end], False))
        elif (end, start) in _BETWEEN:
            found.append((_BETWEEN[end, start], True))
        else:
            raise KeyError(f"no road between {start} and {end}")
    return found


def _keep_right(lats: Array, lons: Array, by_m: float) -> tuple[Array, Array]:
    """The line `by_m` to the right of travel. At a U-turn the two lanes are joined straight across."""
    kx, ky = metres_per_degree(float(lats.mean()))
    x, y = lons * kx, lats * ky
    dx, dy = np.diff(x), np.diff(y)
    size = np.hypot(dx, dy)
    rx, ry = dy / size, -dx / size  # right of each segment
    nx, ny = np.append(rx, rx[-1]), np.append(ry, ry[-1])
    turn = rx[:-1] * rx[1:] + ry[:-1] * ry[1:]
    mean_x, mean_y = rx[:-1] + rx[1:], ry[:-1] + ry[1:]
    gentle = turn > -0.5
    scale = np.where(gentle, np.maximum(np.hypot(mean_x, mean_y), 1e-9), 1.0)
    nx[1:-1] = np.where(gentle, mean_x / scale, rx[:-1])
    ny[1:-1] = np.where(gentle, mean_y / scale, ry[:-1])
    return lats + ny * by_m / ky, lons + nx * by_m / kx


class Mark(NamedTuple):
    """A halt to be: vertex, key, the name of a stop along a road (None: a place), and whether its road is driven backwards."""

    at: int
    key: str
    name: str | None
    against: bool


def drive(places: tuple[str, ...], express: bool) -> Drive:
    """One direction of a line over its places. A place written `~id` is driven through without a stop."""
    names = tuple(p.lstrip("~") for p in places)
    lats, lons = [PLACES[names[0]][1]], [PLACES[names[0]][2]]
    free, marks = [0.0], [Mark(0, names[0], None, False)]
    for number, (road, against) in enumerate(_drive_roads(names)):
        drawn, base = draw(road), len(lats) - 1
        last = len(drawn.lats) - 1
        way = slice(None, None, -1) if against else slice(None)
        if not express:
            ahead = [last - v if against else v for v in drawn.stop_at]
            marks += sorted(Mark(base + v, f"{road.start}-{road.end}-{i + 1}", road.stops[i], against) for i, v in enumerate(ahead))
        _roll(road, drawn.lats[way], drawn.lons[way], free)
        lats.extend(drawn.lats[way][1:].tolist())
        lons.extend(drawn.lons[way][1:].tolist())
        if not places[number + 1].startswith("~"):
            marks.append(Mark(len(lats) - 1, names[number + 1], None, False))
    return _beside(np.array(lats), np.array(lons), np.array(free), marks)


def _roll(road: Road, lats: Array, lons: Array, free_s: list[float]) -> None:
    """Adds the road's seconds of free driving, vertex by vertex; a signal costs 9 s on average."""
    kind = KINDS[road.kind]
    for i in range(1, len(lats)):
        kx, ky = metres_per_degree(float(lats[i]))
        step_m = math.hypot((lats[i] - lats[i - 1]) * ky, (lons[i] - lons[i - 1]) * kx)
        free_s.append(free_s[-1] + step_m / (kind.free_kmh / 3.6) + step_m / 1000 * kind.signals_per_km * 9)


def _beside(lats: Array, lons: Array, free_s: Array, marks: list[Mark]) -> Drive:
    lane_lats, lane_lons = _keep_right(lats, lons, LANE_M)
    post_lats, post_lons = _keep_right(lats, lons, LANE_M + KERB_M)
    lane_lats, lane_lons = np.round(lane_lats, 6), np.round(lane_lons, 6)
    kx, ky = metres_per_degree(lane_lats)
    steps = np.hypot(np.diff(lane_lats) * (ky[1:] + ky[:-1]) / 2, np.diff(lane_lons) * (kx[1:] + kx[:-1]) / 2)
    along = np.concatenate(([0.0], np.cumsum(steps)))
    halts: list[Halt] = []
    seen: dict[str, Halt] = {}
    for at, key, name, against in marks:
        before, after = max(0, at - 1), min(len(lats) - 1, at + 1)
        north, east = (lats[after] - lats[before]) * ky[at], (lons[after] - lons[before]) * kx[at]
        side = "B" if (against if name is not None else north + east < 0) else "A"
        stop_id = f"{key}-{side}"
        earlier = seen.get(key)  # the second visit of a spur, a loop or a lollipop is to the same post
        place = key if name is None else None
        halt = Halt(
            earlier.stop_id if earlier else stop_id, key, name or PLACES[key][0],
            earlier.lat if earlier else float(np.round(post_lats[at], 6)), earlier.lon if earlier else float(np.round(post_lons[at], 6)),
            at, place,
        )  # fmt: skip
        seen.setdefault(key, halt)
        halts.append(halt)
    return Drive(lane_lats, lane_lons, along, free_s, tuple(halts))
