"""Which trips pass a place at about this time? An index over one feed version, so that a vehicle without a trip costs no look at all trips.

Pure. Space: cells of a few hundred metres with the shapes that pass through them or within 100 m. Time: the trip instances of a pattern on a
service date, by departure. Both are made with the first question; a feed of 3,000 shapes takes about half a second once.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from datetime import date, datetime, timedelta

import numpy as np

from engine.tracking.timetable import Pattern, Timetable, TripInstance
from geo.match import Candidate, Line
from geo.shape import Floats, Shape

CELL_DEG = 0.002  # about 220 m north, less east
MARGIN_M, STEP_M = 80.0, 50.0
METRES_PER_DEG = 111_320.0
DAYS_KEPT = 6
SAMPLES_KEPT = 512
NEAR_KEPT = 50_000  # answers kept, a few hundred bytes each
HOUR_MS = 3_600_000


class Atlas:
    """Patterns by place, trip instances by pattern and time."""

    def __init__(self, timetable: Timetable) -> None:
        self._timetable = timetable
        self._cells: dict[tuple[int, int], frozenset[str]] | None = None
        self._patterns: dict[str, list[Pattern]] = {}  # by shape
        self._days: dict[str, dict[str, Departures]] = {}
        self._near: dict[tuple[str, float, float], tuple[Candidate, ...]] = {}
        self._samples: dict[str, tuple[Floats, Floats, Floats]] = {}
        self._stretches: dict[tuple[str, int, int], tuple[tuple[float, float], ...]] = {}
        self._around: dict[int, list[dict[str, Departures]]] = {}
        self._latest_s = max((trip.arrival_s[-1] for trip in timetable.trips.values()), default=0)

    def shapes_through(self, lon: float, lat: float) -> frozenset[str]:
        """Ids of the shapes that pass within about 60 m of that place, and of some that do not."""
        if self._cells is None:
            self._cells = self._drawn()
        return self._cells.get(_cell(lon, lat), frozenset())

    def near(self, line: Line, lon: float, lat: float, within_m: float) -> tuple[Candidate, ...]:
        """Where that line passes the place within that distance (at most MARGIN_M): only the parts of it that lie in the place's cell are
        looked at, and what was found is remembered, because the places of a trail are asked about again and again."""
        key = (line.shape.shape_id, lon, lat)
        found = self._near.get(key)
        if found is None:
            looked = [each for low, high in self._spans(line.shape, _cell(lon, lat)) for each in line.candidates(lon, lat, low, high)]
            found = tuple(each for each in looked if each.offset_m <= within_m)
            if len(self._near) >= NEAR_KEPT:
                self._near.clear()
            self._near[key] = found
        return found

    def _spans(self, shape: Shape, cell: tuple[int, int]) -> tuple[tuple[float, float], ...]:
        """The stretches of a shape in and around a cell, from arc to arc."""
        key = (shape.shape_id, *cell)
        found = self._stretches.get(key)
        if found is None:
            sample = self._samples.get(shape.shape_id)
            if sample is None:
                if len(self._samples) >= SAMPLES_KEPT:
                    self._samples.clear()
                sample = self._samples[shape.shape_id] = _sampled(shape)
            arcs, lons, lats = sample
            east, north = _margins(lats)
            inside = (lons >= cell[0] * CELL_DEG - east) & (lons <= (cell[0] + 1) * CELL_DEG + east)
            inside &= (lats >= cell[1] * CELL_DEG - north) & (lats <= (cell[1] + 1) * CELL_DEG + north)
            at = np.sort(arcs[inside])
            parts = np.split(at, np.flatnonzero(np.diff(at) > 2.5 * STEP_M) + 1) if len(at) else []
            found = tuple((float(part[0]) - 1.5 * STEP_M, float(part[-1]) + 1.5 * STEP_M) for part in parts)
            if len(self._stretches) >= NEAR_KEPT:
                self._stretches.clear()
            self._stretches[key] = found
        return found

    def patterns_of(self, shape_id: str) -> list[Pattern]:
        """The patterns along that shape, in order of their ids."""
        return self._patterns.get(shape_id, [])

    def around(self, now_ms: int) -> list[dict[str, Departures]]:
        """The departures of each pattern on each service date that may have a vehicle on the road now."""
        hour = now_ms // HOUR_MS
        found = self._around.get(hour)
        if found is None:
            tz = self._timetable.tz
            day = datetime.fromtimestamp(hour * HOUR_MS / 1000, tz).date() - timedelta(days=1 + self._latest_s // 86_400)
            last = datetime.fromtimestamp((hour + 1) * HOUR_MS / 1000, tz).date() + timedelta(days=1)
            found = []
            while day <= last:
                found.append(self._day(day.strftime("%Y%m%d"), day))
                day += timedelta(days=1)
            if len(self._around) >= DAYS_KEPT:
                self._around.clear()
            self._around[hour] = found
        return found

    def _day(self, name: str, day: date) -> dict[str, Departures]:
        found = self._days.get(name)
        if found is None:
            while len(self._days) >= DAYS_KEPT:
                del self._days[next(iter(self._days))]
            found = self._days[name] = {}
            for instance in self._timetable.instances_on(day):
                departures = found.setdefault(instance.trip.pattern.pattern_id, Departures())
                departures.at_ms.append(instance.departure_ms(0))
                departures.instances.append(instance)
        return found

    def _drawn(self) -> dict[tuple[int, int], frozenset[str]]:
        shapes: dict[str, Shape] = {}
        for pattern in sorted(self._timetable.patterns.values(), key=lambda each: each.pattern_id):
            shapes[pattern.shape.shape_id] = pattern.shape
            self._patterns.setdefault(pattern.shape.shape_id, []).append(pattern)
        cells: dict[tuple[int, int], set[str]] = {}
        for shape_id, shape in shapes.items():
            for cell in _cells_of(shape):
                cells.setdefault(cell, set()).add(shape_id)
        shared: dict[frozenset[str], frozenset[str]] = {}  # neighbouring cells mostly hold the same shapes
        return {cell: shared.setdefault(frozen := frozenset(names), frozen) for cell, names in cells.items()}


class Departures:
    """One pattern on one service date, by departure."""

    __slots__ = ("at_ms", "instances")

    def __init__(self) -> None:
        self.at_ms: list[int] = []
        self.instances: list[TripInstance] = []

    def between(self, from_ms: int, to_ms: int) -> list[TripInstance]:
        return self.instances[bisect_left(self.at_ms, from_ms) : bisect_right(self.at_ms, to_ms)]


def _cell(lon: float, lat: float) -> tuple[int, int]:
    return int(np.floor(lon / CELL_DEG)), int(np.floor(lat / CELL_DEG))


def _sampled(shape: Shape) -> tuple[Floats, Floats, Floats]:
    """Arcs every 50 m and at the vertices, with their places."""
    count = max(2, int(shape.length_m / STEP_M) + 2)
    arcs = np.concatenate((np.linspace(0.0, shape.length_m, count), shape.cum_m))
    lons = np.interp(arcs, shape.cum_m, np.degrees(np.unwrap(np.radians(shape.lons))))
    lons = (lons + 180.0) % 360.0 - 180.0
    return arcs, lons, np.interp(arcs, shape.cum_m, shape.lats)


def _margins(lats: Floats) -> tuple[Floats, float]:
    """MARGIN_M in degrees, east and north."""
    north = MARGIN_M / METRES_PER_DEG
    return north / np.maximum(0.05, np.cos(np.radians(lats))), north


def _cells_of(shape: Shape) -> set[tuple[int, int]]:
    """Every cell within MARGIN_M of the line."""
    _, lons, lats = _sampled(shape)
    east, north = _margins(lats)
    found: set[tuple[int, int]] = set()
    for sign_x in (-1, 1):
        for sign_y in (-1, 1):
            x = np.floor((lons + sign_x * east) / CELL_DEG).astype(int)
            y = np.floor((lats + sign_y * north) / CELL_DEG).astype(int)
            found.update(zip(x.tolist(), y.tolist(), strict=True))
    return found
