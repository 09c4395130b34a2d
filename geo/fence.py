"""Fences: circles, polygons with holes, and corridors along a line, measured in metres on WGS 84.

An area answers two questions: `signed_m`, the distance to its border, negative inside; and `spans`, which parts of the chord between two
points lie inside, as shares of the chord. Edges are straight in longitude and latitude, as GeoJSON says (RFC 7946, 3.1.1), and go the short
way over the 180th meridian. The scale is that of the ellipsoid at the point asked about, so distances are right where they matter: within
0.1 % up to 10 km from the border below 75 degrees of latitude (checked against pyproj.Geod), coarser farther away.

Refused when made (`geo/drawing.py` says what and where): anything beyond 85 degrees of latitude, round a pole, or wider than 500 km.

Everything is plain Python on purpose: one call of numpy or shapely costs more than twenty edges. Areas of many edges look only at those near
the point, in a grid that is made when the first vehicle comes near.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

import numpy as np

from geo.coords import metres_per_degree

GRID_MIN = 16  # edges from which on a grid pays
CELLS_MOST = 25  # of a chord; a longer one looks at every edge

Point = tuple[float, float]  # longitude, latitude
Spans = list[tuple[float, float]]  # parts of a chord as (from, to) in shares of it, ascending, apart from each other


class Area(Protocol):
    """What a fence encloses. `west <= mid_lon <= east`; `east` passes 180 where the area lies over the 180th meridian. Points may be given in
    any turn of longitude. `depth_m`: how deep inside one can be (radius, half width, radius of the largest circle in a polygon)."""

    west: float
    south: float
    east: float
    north: float
    depth_m: float

    @property
    def is_large(self) -> bool:
        """Whether asking takes some time: many edges."""

    def signed_m(self, lon: float, lat: float) -> float:
        """Metres to the border, negative inside."""

    def rough_m(self, lon: float, lat: float) -> float:
        """`signed_m` near the border; far from it something of the same sign and nearer to 0, for a tenth of the price."""

    def spans(self, lon0: float, lat0: float, lon1: float, lat1: float) -> Spans:
        """The parts of the straight way between two points that lie inside; it goes the short way round."""


@lru_cache(maxsize=8192)
def _scale(lat: float) -> tuple[float, float]:
    return metres_per_degree(lat)


def scale_at(lat: float) -> tuple[float, float]:
    """`metres_per_degree` of a latitude rounded to 100 m: within 0.01 % up to 85 degrees, for a fifth of the price."""
    return _scale(round(lat, 3))


def near_lon(lon: float, mid: float) -> float:
    """The longitude in the turn that lies within 180 degrees of `mid`."""
    apart = lon - mid
    if -180.0 <= apart < 180.0:
        return lon
    return mid + (apart + 180.0) % 360.0 - 180.0


class Circle:
    """A centre and a radius."""

    __slots__ = ("depth_m", "east", "lat", "lon", "north", "radius_m", "south", "west")
    is_large = False

    def __init__(self, lon: float, lat: float, radius_m: float) -> None:
        self.lon, self.lat, self.radius_m = lon, lat, radius_m
        self.depth_m = radius_m
        _, per_lat = metres_per_degree(lat)
        high = radius_m / per_lat * 1.01
        per_lon = min(metres_per_degree(lat - high)[0], metres_per_degree(lat + high)[0])
        wide = radius_m / max(per_lon, 1.0) * 1.01
        self.west, self.south, self.east, self.north = lon - wide, lat - high, lon + wide, lat + high

    def signed_m(self, lon: float, lat: float) -> float:
        per_lon, per_lat = scale_at((lat + self.lat) * 0.5)
        apart = lon - self.lon
        if not -180.0 <= apart < 180.0:
            apart = (apart + 180.0) % 360.0 - 180.0
        return math.hypot(apart * per_lon, (lat - self.lat) * per_lat) - self.radius_m

    rough_m = signed_m

    def spans(self, lon0: float, lat0: float, lon1: float, lat1: float) -> Spans:
        per_lon, per_lat = scale_at((lat1 + self.lat) * 0.5)
        lon0 = near_lon(lon0, self.lon)
        x, y = (lon0 - self.lon) * per_lon, (lat0 - self.lat) * per_lat
        part = _in_disc(x, y, (near_lon(lon1, lon0) - lon0) * per_lon, (lat1 - lat0) * per_lat, self.radius_m)
        return _clipped([part] if part is not None else [])


class _Edged:
    """Edges in degrees, as (lon, lat, step in lon, step in lat), and the grid to find those near a point."""

    __slots__ = ("_bands", "_cells", "_edges", "_high", "_table", "_wide", "depth_m", "east", "mid_lon", "north", "south", "west")

    def __init__(self, lines: Sequence[Sequence[Point]], margin_m: float) -> None:
        self._edges = [(x0, y0, x1 - x0, y1 - y0) for line in lines for (x0, y0), (x1, y1) in pairwise(line) if (x0, y0) != (x1, y1)]
        lons, lats = [x for line in lines for x, _ in line], [y for line in lines for _, y in line]
        south, north = min(lats), max(lats)
        high = margin_m / metres_per_degree(south)[1] * 1.01
        self.south, self.north = south - high, north + high
        per_lon = min(metres_per_degree(self.south)[0], metres_per_degree(self.north)[0])
        wide = margin_m / max(per_lon, 1.0) * 1.01
        self.west, self.east = min(lons) - wide, max(lons) + wide
        self.mid_lon = (self.west + self.east) * 0.5
        self._cells: dict[int, list[int]] | None = None
        self._wide, self._high = 2.0 * wide, 2.0 * high  # of a cell, at least: all edges within the margin of a point are in its cell
        self._bands: list[list[int]] = []
        self._table: np.ndarray | None = None

    @property
    def is_large(self) -> bool:
        return len(self._edges) >= GRID_MIN

    def _grid(self) -> dict[int, list[int]]:
        """Edges by the cells within one cell of them, and by the bands of latitude that they touch."""
        cells = self._cells
        if cells is not None:
            return cells
        edges, cells = self._edges, {}
        columns = 2 * math.isqrt(len(edges)) + 2
        self._wide = max(self._wide, (self.east - self.west) / columns, 1e-9)
        self._high = max(self._high, (self.north - self.south) / columns, 1e-9)
        self._bands = [[] for _ in range(columns)]
        for number, (x, y, step_x, step_y) in enumerate(edges):
            low, top = sorted((self._row(y), self._row(y + step_y)))
            for row in range(max(0, low), min(columns - 1, top) + 1):
                self._bands[row].append(number)
            pieces = int(max(abs(step_x) / self._wide, abs(step_y) / self._high)) + 1  # a long edge is not its box
            for piece in range(pieces):
                a, b = piece / pieces, (piece + 1) / pieces
                left, right = sorted((self._column(x + a * step_x), self._column(x + b * step_x)))
                low, top = sorted((self._row(y + a * step_y), self._row(y + b * step_y)))
                for row in range(low - 1, top + 2):
                    for column in range(left - 1, right + 2):
                        held = cells.setdefault(row * 65_536 + column, [])
                        if not held or held[-1] != number:
                            held.append(number)
        self._cells = cells
        return cells

    def _column(self, lon: float) -> int:
        return math.floor((lon - self.west) / self._wide)

    def _row(self, lat: float) -> int:
        return math.floor((lat - self.south) / self._high)

    def _rough_away_m(self, lon: float, lat: float) -> float:
        """Metres to the nearest edge, or the size of a cell where none is as near as that. `lon` in this area's turn."""
        per_lon, per_lat = scale_at(lat)
        edges = self._edges
        if len(edges) < GRID_MIN:
            return math.sqrt(_least_square(edges, lon, lat, per_lon, per_lat))
        held = self._grid().get(self._row(lat) * 65_536 + self._column(lon))
        most_m = min(self._wide * per_lon, self._high * per_lat)  # an edge that is not held stands beyond the next cell
        if held is None:
            return most_m
        return min(most_m, math.sqrt(_least_square([edges[number] for number in held], lon, lat, per_lon, per_lat)))

    def _away_m(self, lon: float, lat: float) -> float:
        """Metres to the nearest edge; `lon` in this area's turn."""
        per_lon, per_lat = scale_at(lat)
        edges = self._edges
        if len(edges) < GRID_MIN:
            return math.sqrt(_least_square(edges, lon, lat, per_lon, per_lat))
        held = self._grid().get(self._row(lat) * 65_536 + self._column(lon))
        if held is not None:
            away = math.sqrt(_least_square([edges[number] for number in held], lon, lat, per_lon, per_lat))
            if away <= min(self._wide * per_lon, self._high * per_lat):  # farther edges may stand in cells that were not looked at
                return away
        if self._table is None:
            self._table = np.array(edges).T
        x0, y0, step_x, step_y = self._table
        x, y, east, north = (lon - x0) * per_lon, (lat - y0) * per_lat, step_x * per_lon, step_y * per_lat
        share = np.clip((x * east + y * north) / (east * east + north * north), 0.0, 1.0)
        return float(np.sqrt(np.min((x - share * east) ** 2 + (y - share * north) ** 2)))

    def _along(self, lon0: float, lat0: float, lon1: float, lat1: float) -> list[tuple[float, float, float, float]]:
        """The edges that come within the margin of a chord, and others."""
        if max(lon0, lon1) < self.west or min(lon0, lon1) > self.east or max(lat0, lat1) < self.south or min(lat0, lat1) > self.north:
            return []
        edges = self._edges
        if len(edges) < GRID_MIN:
            return edges
        cells = self._grid()
        left, right = sorted((self._column(lon0), self._column(lon1)))
        low, top = sorted((self._row(lat0), self._row(lat1)))
        if (right - left + 1) * (top - low + 1) > CELLS_MOST:
            return edges
        met: set[int] = set()
        for row in range(low, top + 1):
            for column in range(left, right + 1):
                met.update(cells.get(row * 65_536 + column, ()))
        return [edges[number] for number in sorted(met)]


class Polygon(_Edged):
    """Rings, each closed: shells and holes of one polygon or of several. Inside is what an odd number of rings goes round."""

    __slots__ = ()

    def __init__(self, rings: Sequence[Sequence[Point]], depth_m: float) -> None:
        super().__init__(rings, 0.0)
        self.depth_m = depth_m

    def signed_m(self, lon: float, lat: float) -> float:
        lon = near_lon(lon, self.mid_lon)
        away = self._away_m(lon, lat)
        return -away if self._holds(lon, lat) else away

    def rough_m(self, lon: float, lat: float) -> float:
        lon = near_lon(lon, self.mid_lon)
        away = self._rough_away_m(lon, lat)
        return -away if self._holds(lon, lat) else away

    def _holds(self, lon: float, lat: float) -> bool:
        """Whether a way east from the point meets an odd number of edges (half open in latitude, so no corner counts twice)."""
        if not (self.south <= lat <= self.north and self.west <= lon <= self.east):
            return False
        edges: Sequence[tuple[float, float, float, float]] = self._edges
        if len(edges) >= GRID_MIN:
            self._grid()
            band = self._bands[min(self._row(lat), len(self._bands) - 1)]
            edges = [edges[number] for number in band]
        inside = False
        for x, y, step_x, step_y in edges:
            if (y > lat) != (y + step_y > lat) and lon < x + (lat - y) / step_y * step_x:
                inside = not inside
        return inside

    def spans(self, lon0: float, lat0: float, lon1: float, lat1: float) -> Spans:
        lon0 = near_lon(lon0, self.mid_lon)
        lon1 = near_lon(lon1, lon0)
        chord_x, chord_y = lon1 - lon0, lat1 - lat0
        shares = []
        for x, y, step_x, step_y in self._along(lon0, lat0, lon1, lat1):
            side = chord_x * (y - lat0) - chord_y * (x - lon0)
            turn = chord_x * step_y - chord_y * step_x
            if (side >= 0.0) != (side + turn >= 0.0):
                share = ((x - lon0) * step_y - (y - lat0) * step_x) / turn
                if 0.0 < share < 1.0:
                    shares.append(share)
        shares.sort()
        if self._holds(lon0, lat0):
            shares.insert(0, 0.0)
        if len(shares) % 2:
            shares.append(1.0)
        return list(zip(shares[::2], shares[1::2], strict=True))


class Corridor(_Edged):
    """A line and what lies within half its width of it; its ends are round."""

    __slots__ = ("_ends", "half_width_m")

    def __init__(self, line: Sequence[Point], half_width_m: float) -> None:
        super().__init__([line], half_width_m)
        self.half_width_m = self.depth_m = half_width_m
        first, last = self._edges[0], self._edges[-1]
        self._ends = (first, (last[0] + last[2], last[1] + last[3], -last[2], -last[3]))

    def signed_m(self, lon: float, lat: float) -> float:
        return self._away_m(near_lon(lon, self.mid_lon), lat) - self.half_width_m

    def rough_m(self, lon: float, lat: float) -> float:
        return self._rough_away_m(near_lon(lon, self.mid_lon), lat) - self.half_width_m  # a cell is twice as wide as that

    def is_past_end(self, lon: float, lat: float) -> bool:
        """Whether the nearest point of the line is one of its ends, and the point lies before or beyond it."""
        lon = near_lon(lon, self.mid_lon)
        per_lon, per_lat = scale_at(lat)
        away = self._away_m(lon, lat)
        for x0, y0, step_x, step_y in self._ends:
            x, y = (lon - x0) * per_lon, (lat - y0) * per_lat
            if x * step_x * per_lon + y * step_y * per_lat < 0.0 and math.hypot(x, y) <= away * 1.0001:
                return True
        return False

    def spans(self, lon0: float, lat0: float, lon1: float, lat1: float) -> Spans:
        lon0 = near_lon(lon0, self.mid_lon)
        lon1 = near_lon(lon1, lon0)
        per_lon, per_lat = scale_at(lat1)
        chord_x, chord_y = (lon1 - lon0) * per_lon, (lat1 - lat0) * per_lat
        parts = []
        for x, y, step_x, step_y in self._along(lon0, lat0, lon1, lat1):
            from_x, from_y = (lon0 - x) * per_lon, (lat0 - y) * per_lat
            part = _in_capsule(from_x, from_y, chord_x, chord_y, step_x * per_lon, step_y * per_lat, self.half_width_m)
            if part is not None:
                parts.append(part)
        return _clipped(parts)


def _least_square(edges: Sequence[tuple[float, float, float, float]], lon: float, lat: float, per_lon: float, per_lat: float) -> float:
    """The square of the distance to the nearest of the edges, in square metres."""
    least = math.inf
    for x0, y0, step_x, step_y in edges:
        x, y = (lon - x0) * per_lon, (lat - y0) * per_lat
        east, north = step_x * per_lon, step_y * per_lat
        along = x * east + y * north
        if along > 0.0:
            square = east * east + north * north
            share = along / square if along < square else 1.0
            x -= share * east
            y -= share * north
        off = x * x + y * y
        if off < least:
            least = off
    return least


def _in_disc(x: float, y: float, east: float, north: float, radius: float) -> tuple[float, float] | None:
    """Where (x, y) + t (east, north) is within `radius` of the origin, as (from, to) of t; None: nowhere."""
    square, along, excess = east * east + north * north, x * east + y * north, x * x + y * y - radius * radius
    if square == 0.0:
        return (-math.inf, math.inf) if excess <= 0.0 else None
    root = along * along - square * excess
    if root < 0.0:
        return None
    root = math.sqrt(root)
    return (-along - root) / square, (-along + root) / square


def _in_capsule(x: float, y: float, east: float, north: float, line_x: float, line_y: float, radius: float) -> tuple[float, float] | None:
    """Where (x, y) + t (east, north) is within `radius` of the segment from the origin to (line_x, line_y). One interval: that set is convex."""
    length = math.hypot(line_x, line_y)
    unit_x, unit_y = line_x / length, line_y / length
    parts = [_in_disc(x, y, east, north, radius), _in_disc(x - line_x, y - line_y, east, north, radius)]
    low, high = -math.inf, math.inf
    for at, step, least, most in (
        (x * unit_x + y * unit_y, east * unit_x + north * unit_y, 0.0, length),
        (y * unit_x - x * unit_y, north * unit_x - east * unit_y, -radius, radius),
    ):
        if step == 0.0:
            if not least <= at <= most:
                low, high = 1.0, 0.0
        else:
            a, b = (least - at) / step, (most - at) / step
            low, high = max(low, min(a, b)), min(high, max(a, b))
    if low <= high:
        parts.append((low, high))
    found = [part for part in parts if part is not None]
    return (min(part[0] for part in found), max(part[1] for part in found)) if found else None


def _clipped(parts: list[tuple[float, float]]) -> Spans:
    """The union of the parts, between 0 and 1."""
    spans: Spans = []
    for low, high in sorted((max(0.0, low), min(1.0, high)) for low, high in parts):
        if low >= high:
            continue
        if spans and low <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], high))
        else:
            spans.append((low, high))
    return spans
