"""Which of many boxes a small box meets: a grid of several cell sizes, each box in the finest whose cells are as large as itself.

Measured with 10,000 boxes over a city (`python -m bench.fences`): about a microsecond a question where few are near, a twentieth of an
STRtree's price for one question. Degrees; boxes over the 180th meridian are found from either side of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")

FINEST = 256.0  # cells a degree: 430 m from south to north, what a bus drives in half a minute
COARSER = 4.0
LEVELS = 8  # the last has one cell for 64 degrees
NEAR_180_DEG = 1.0  # boxes within this of the meridian stand on both sides of it; no question is wider
ROW = 1 << 20  # above the number of columns

Box = tuple[float, float, float, float]  # west, south, east, north; west in [-180, 180), east may pass 180


class Boxes(Generic[T]):
    """Things by their boxes. Made once, then only asked."""

    __slots__ = ("_levels", "count")

    def __init__(self, things: Iterable[tuple[Box, T]]) -> None:
        self.count = 0
        levels: dict[float, dict[int, list[tuple[float, float, float, float, T]]]] = {}
        for (west, south, east, north), thing in things:
            self.count += 1
            turns = [0.0]
            if east > 180.0 - NEAR_180_DEG:
                turns.append(-360.0)
            if west < -180.0 + NEAR_180_DEG:
                turns.append(360.0)
            extent = max(east - west, north - south)
            cells_a_degree = FINEST
            for _ in range(LEVELS - 1):
                if extent * cells_a_degree <= 1.0:
                    break
                cells_a_degree /= COARSER
            cells = levels.setdefault(cells_a_degree, {})
            for turn in turns:
                entry = (west + turn, south, east + turn, north, thing)
                for row in range(math.floor((south + 90.0) * cells_a_degree), math.floor((north + 90.0) * cells_a_degree) + 1):
                    first = math.floor((west + turn + 720.0) * cells_a_degree)
                    for column in range(first, math.floor((east + turn + 720.0) * cells_a_degree) + 1):
                        cells.setdefault(row * ROW + column, []).append(entry)
        self._levels = sorted(levels.items())

    def meeting(self, west: float, south: float, east: float, north: float) -> list[T]:
        """The things whose boxes meet this one, each once, in the order in which they were given within each cell size. A box of no extent is
        a point. West in [-181, 181), at most 1 degree wide."""
        found: list[T] = []
        for cells_a_degree, cells in self._levels:
            column, row = int((west + 720.0) * cells_a_degree), int((south + 90.0) * cells_a_degree)
            last_column, last_row = int((east + 720.0) * cells_a_degree), int((north + 90.0) * cells_a_degree)
            if column == last_column and row == last_row:
                held = cells.get(row * ROW + column)
                if held is not None:
                    for box_west, box_south, box_east, box_north, thing in held:
                        if box_west <= east and west <= box_east and box_south <= north and south <= box_north:
                            found.append(thing)
                continue
            once: dict[int, T] = {}
            for each_row in range(row, last_row + 1):
                for each in range(each_row * ROW + column, each_row * ROW + last_column + 1):
                    for box_west, box_south, box_east, box_north, thing in cells.get(each, ()):
                        if box_west <= east and west <= box_east and box_south <= north and south <= box_north:
                            once[id(thing)] = thing
            found.extend(once.values())
        return found
