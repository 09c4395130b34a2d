"""Viewports: the boxes of all listeners that follow a map, and what each has to be told of a round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.live.listener import Listener
from engine.live.table import Seen
from engine.live.updates import Moved, Update, gone_update

CHUNK: Final = 500_000  # comparisons of viewports with vehicles between two yields: about 1 ms in numpy


class OnMap:
    """A vehicle of a round, as maps may have to tell of it. Its updates are made when the first map does."""

    __slots__ = ("_epoch", "_left", "_shown", "before", "is_again", "is_gone", "now", "version")

    def __init__(self, before: Seen, now: Seen, version: int, epoch: str, *, is_gone: bool, is_again: bool) -> None:
        """`is_again`: only for who saw it at `before` and does not now; another entry shows it."""
        self.before, self.now, self.version, self._epoch = before, now, version, epoch
        self.is_gone, self.is_again = is_gone, is_again
        self._shown: Update | None = None
        self._left: Update | None = None

    def shown(self) -> Update:
        if self._shown is None:
            self._shown = Moved(self.now, self.version, self._epoch)
        return self._shown

    def left(self) -> Update:
        if self._left is None:
            self._left = gone_update(self.now.position.bus_id, self._epoch, self.now.n, self.version)
        return self._left


class Viewports:
    """The boxes as columns, so that one numpy step compares all of them with all vehicles of a round."""

    def __init__(self) -> None:
        self.columns: NDArray[np.float64] = np.full((4, 64), np.nan)  # west, south, east, north; NaN is inside nothing
        self.rows: dict[int, Listener] = {}
        self._free = list(range(63, -1, -1))

    def put(self, listener: Listener, box: tuple[float, float, float, float]) -> None:
        if listener.row < 0:
            if not self._free:
                size = self.columns.shape[1]
                self.columns = np.concatenate([self.columns, np.full((4, size), np.nan)], axis=1)
                self._free = list(range(2 * size - 1, size - 1, -1))
            listener.row = self._free.pop()
            self.rows[listener.row] = listener
        self.columns[:, listener.row] = box
        listener.box = box

    def drop(self, listener: Listener) -> None:
        if listener.row >= 0:
            self.columns[:, listener.row] = np.nan
            self._free.append(listener.row)
            del self.rows[listener.row]
            listener.row, listener.box = -1, None

    def inside(self, rows: slice, lons: NDArray[np.float64], lats: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(rows, vehicles): whether each vehicle is in each box."""
        west, south, east, north = self.columns[:, rows, None]
        across = np.where(west <= east, (west <= lons) & (lons <= east), (west <= lons) | (lons <= east))
        inside: NDArray[np.bool_] = across & (south <= lats) & (lats <= north)
        return inside

    def shown(self, vehicles: Sequence[OnMap]) -> Iterator[tuple[list[Listener], list[int], list[int]]]:
        """(viewers, vehicles to show, vehicles that left) for all viewers that have the same to be told, by index; a chunk of comparisons at a
        time. Maps that show the same part of a town share it. Whoever iterates may yield to the loop between two."""
        places, before = [one.now.position for one in vehicles], [one.before.position for one in vehicles]
        is_going_on = ~np.array([one.is_gone for one in vehicles])
        is_first = ~np.array([one.is_again for one in vehicles])
        lons, lats = np.array([p.lon for p in places]), np.array([p.lat for p in places])
        old_lons, old_lats = np.array([p.lon for p in before]), np.array([p.lat for p in before])
        size, step = self.columns.shape[1], max(1, CHUNK // len(places))
        for start in range(0, size, step):
            rows = slice(start, min(size, start + step))
            here = self.inside(rows, lons, lats) & is_going_on
            left = self.inside(rows, old_lons, old_lats) & ~here
            here &= is_first
            alike: dict[tuple[bytes, bytes], list[int]] = {}
            for row in np.nonzero((here | left).any(axis=1))[0].tolist():
                alike.setdefault((here[row].tobytes(), left[row].tobytes()), []).append(row)
            for rows_alike in alike.values():
                viewers = [self.rows[start + row] for row in rows_alike if start + row in self.rows]
                one = rows_alike[0]
                yield viewers, np.nonzero(here[one])[0].tolist(), np.nonzero(left[one])[0].tolist()
