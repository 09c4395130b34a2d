"""Which of many areas a small box may meet: a grid of several cell sizes, each area in the finest whose cells are as large as itself.

A large area stands in smaller cells, as many as its form needs, for the box of a long corridor is mostly empty. `python -m bench.fences`
measures a question. Degrees; areas over the 180th meridian are found from either side of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Generic, TypeVar

from geo.coords import metres_per_degree
from geo.fence import Area

T = TypeVar("T")

FINEST = 256.0  # cells a degree: 430 m from south to north, what a bus drives in half a minute
COARSER = 4.0
LEVELS = 8  # the last has one cell for 64 degrees
NEAR_180_DEG = 1.0  # boxes within this of the meridian stand on both sides of it; no question is wider
ROW = 1 << 20  # above the number of columns
SPLITS = 2  # times that the cells of a large area are cut in sixteen
MARGIN = 1.05  # distances to far borders are a little coarse

Box = tuple[float, float, float, float]  # west, south, east, north; west in [-180, 180), east may pass 180


def level_of(extent: float) -> float:
    """Cells a degree of the finest level with cells of that extent."""
    cells_a_degree = FINEST
    for _ in range(LEVELS - 1):
        if extent * cells_a_degree <= 1.0:
            break
        cells_a_degree /= COARSER
    return cells_a_degree


def pieces(area: Area) -> list[Box]:
    """Boxes that hold the area together: its own, or cells of the grid, each of which it meets or nearly so; no two overlap."""
    extent = max(area.east - area.west, area.north - area.south)
    cells_a_degree = level_of(extent)
    if cells_a_degree == FINEST:
        return [(area.west, area.south, area.east, area.north)]
    found: list[Box] = []
    todo = [
        (row, column, cells_a_degree, SPLITS)
        for row in range(math.floor((area.south + 90.0) * cells_a_degree), math.floor((area.north + 90.0) * cells_a_degree) + 1)
        for column in range(math.floor((area.west + 720.0) * cells_a_degree), math.floor((area.east + 720.0) * cells_a_degree) + 1)
    ]
    while todo:
        row, column, scale, splits = todo.pop()
        size = 1.0 / scale
        west, south = column * size - 720.0, row * size - 90.0
        east, north = west + size, south + size
        if west > area.east or east < area.west or south > area.north or north < area.south:
            continue
        per_lon, per_lat = metres_per_degree(0.0 if south < 0.0 < north else min(abs(south), abs(north), 89.0))
        half_m = 0.5 * size * math.hypot(per_lon, per_lat) * MARGIN
        away_m = area.signed_m(west + 0.5 * size, south + 0.5 * size)
        if away_m > half_m:
            continue
        if away_m < -half_m or not splits or scale >= FINEST:
            found.append((west, south, east, north))
            continue
        some = range(int(COARSER))
        todo += [
            (row * int(COARSER) + i, column * int(COARSER) + j, scale * COARSER, splits - 1) for i in some for j in some
        ]  # fmt: skip
    return found


class Boxes(Generic[T]):
    """Things by their boxes; those of one thing do not overlap. Made once, then only asked."""

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
            cells_a_degree = level_of(max(east - west, north - south) * 0.999_999)  # a cell of the grid is of its own level
            cells = levels.setdefault(cells_a_degree, {})
            for turn in turns:
                entry = (west + turn, south, east + turn, north, thing)
                for row in range(math.floor((south + 90.0) * cells_a_degree), math.ceil((north + 90.0) * cells_a_degree)):
                    first = math.floor((west + turn + 720.0) * cells_a_degree)
                    for column in range(first, math.ceil((east + turn + 720.0) * cells_a_degree)):
                        cells.setdefault(row * ROW + column, []).append(entry)
        self._levels = sorted(levels.items())

    def meeting(self, west: float, south: float, east: float, north: float) -> list[T]:
        """The things whose boxes meet this one, each once, in an order that follows from what was given and asked. A box of no extent is a
        point. West in [-181, 181), at most 1 degree wide."""
        found: list[T] = []
        x, y, to_x, to_y = west + 720.0, south + 90.0, east + 720.0, north + 90.0
        for cells_a_degree, cells in self._levels:
            column, row = int(x * cells_a_degree), int(y * cells_a_degree)
            last_column, last_row = int(to_x * cells_a_degree), int(to_y * cells_a_degree)
            if column == last_column and row == last_row:
                held = cells.get(row * ROW + column)
                if held is not None:
                    for box_west, box_south, box_east, box_north, thing in held:
                        if box_west <= east and west < box_east and box_south <= north and south < box_north:
                            found.append(thing)
                continue
            once: dict[int, T] = {}
            for each_row in range(row, last_row + 1):
                for each in range(each_row * ROW + column, each_row * ROW + last_column + 1):
                    for box_west, box_south, box_east, box_north, thing in cells.get(each, ()):
                        if box_west <= east and west < box_east and box_south <= north and south < box_north:
                            once[id(thing)] = thing
            found.extend(once.values())
        return found if len(found) < 2 else list(dict.fromkeys(found))  # a way may lead through several pieces of one thing
