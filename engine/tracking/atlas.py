"""Which trips pass a place at about this time? An index over one feed version, so that a vehicle without a trip costs no look at all trips.

Pure. Space: cells of a few hundred metres with the shapes that pass through them or within 100 m. Time: the trip instances of a pattern on a
service date, by departure. Both are made with the first question; a feed of 3,000 shapes takes about half a second once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from datetime import datetime, timedelta

import numpy as np

from engine.tracking.timetable import Pattern, Timetable, TripInstance
from geo.shape import Shape

CELL_DEG = 0.004  # about 440 m north, less east
MARGIN_M, STEP_M = 100.0, 100.0
METRES_PER_DEG = 111_320.0
DAYS_KEPT = 6


class Atlas:
    """Patterns by place, trip instances by pattern and time."""

    def __init__(self, timetable: Timetable) -> None:
        self._timetable = timetable
        self._cells: dict[tuple[int, int], frozenset[str]] | None = None
        self._patterns: dict[str, list[Pattern]] = {}  # by shape
        self._days: dict[str, dict[str, _Departures]] = {}
        self._longest_ms = max((trip.arrival_s[-1] - trip.departure_s[0] for trip in timetable.trips.values()), default=0) * 1000
        self._latest_s = max((trip.departure_s[0] for trip in timetable.trips.values()), default=0)

    def shapes_through(self, lon: float, lat: float) -> frozenset[str]:
        """Ids of the shapes that pass within about 60 m of that place, and of some that do not."""
        if self._cells is None:
            self._cells = self._drawn()
        return self._cells.get(_cell(lon, lat), frozenset())

    def patterns_of(self, shape_id: str) -> list[Pattern]:
        """The patterns along that shape, in order of their ids."""
        return self._patterns.get(shape_id, [])

    def departures(self, pattern: Pattern, from_ms: int, to_ms: int) -> Iterator[TripInstance]:
        """The pattern's trip instances that leave their first stop in [from, to], of every service date, each date's by departure."""
        tz = self._timetable.tz
        first = datetime.fromtimestamp(from_ms / 1000, tz).date() - timedelta(days=1 + self._latest_s // 86_400)
        last = datetime.fromtimestamp(to_ms / 1000, tz).date() + timedelta(days=1)
        while first <= last:
            held = self._day(first.strftime("%Y%m%d"), first).get(pattern.pattern_id)
            if held is not None:
                for index in range(bisect_left(held.at_ms, from_ms), len(held.at_ms)):
                    if held.at_ms[index] > to_ms:
                        break
                    yield held.instances[index]
            first += timedelta(days=1)

    @property
    def longest_ms(self) -> int:
        """How long the longest trip takes by the timetable."""
        return self._longest_ms

    def _day(self, name: str, day: object) -> dict[str, _Departures]:
        found = self._days.get(name)
        if found is None:
            while len(self._days) >= DAYS_KEPT:
                del self._days[next(iter(self._days))]
            found = self._days[name] = {}
            for instance in self._timetable.instances_on(day):  # type: ignore[arg-type]
                departures = found.setdefault(instance.trip.pattern.pattern_id, _Departures())
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


class _Departures:
    """One pattern on one service date."""

    __slots__ = ("at_ms", "instances")

    def __init__(self) -> None:
        self.at_ms: list[int] = []
        self.instances: list[TripInstance] = []


def _cell(lon: float, lat: float) -> tuple[int, int]:
    return int(np.floor(lon / CELL_DEG)), int(np.floor(lat / CELL_DEG))


def _cells_of(shape: Shape) -> set[tuple[int, int]]:
    """Every cell within MARGIN_M of the line."""
    count = max(2, int(shape.length_m / STEP_M) + 2)
    arcs = np.concatenate((np.linspace(0.0, shape.length_m, count), shape.cum_m))
    lons = np.interp(arcs, shape.cum_m, np.degrees(np.unwrap(np.radians(shape.lons))))
    lats = np.interp(arcs, shape.cum_m, shape.lats)
    lons = (lons + 180.0) % 360.0 - 180.0
    north = MARGIN_M / METRES_PER_DEG
    east = north / np.maximum(0.05, np.cos(np.radians(lats)))
    found: set[tuple[int, int]] = set()
    for sign_x in (-1, 1):
        for sign_y in (-1, 1):
            x = np.floor((lons + sign_x * east) / CELL_DEG).astype(int)
            y = np.floor((lats + sign_y * north) / CELL_DEG).astype(int)
            found.update(zip(x.tolist(), y.tolist(), strict=True))
    return found
