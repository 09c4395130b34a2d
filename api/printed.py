"""What reads say of a timetable again and again, made once for each version of a feed: pages in order, lines and patterns as JSON.

A timetable never changes, so whatever is made of it holds for as long as it is in force; it goes when the timetable goes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import msgspec

from api.ids import public_id
from engine.tracking.timetable import Pattern, Stop, Timetable

KEPT_MAX_BYTES: Final = 16 * 1024 * 1024  # of lines and patterns as JSON, per feed; a large city has 20 MB of them, most never asked for

T = TypeVar("T")

_first: Final = itemgetter(0)


class Printed:
    """Of one timetable."""

    __slots__ = ("_kept", "_kept_bytes", "patterns", "routes", "stops")

    def __init__(self, timetable: Timetable) -> None:
        feed_id = timetable.feed_id
        self.stops: list[tuple[str, Stop]] = sorted(
            ((public_id(feed_id, stop_id), stop) for stop_id, stop in timetable.stops.items()), key=_first
        )
        self.routes: list[tuple[str, str]] = sorted((public_id(feed_id, route_id), route_id) for route_id in timetable.routes)
        self.patterns: dict[str, list[Pattern]] = {}  # by route
        for pattern in timetable.patterns.values():
            self.patterns.setdefault(pattern.route_id, []).append(pattern)
        self._kept: dict[tuple[str, str], msgspec.Raw] = {}
        self._kept_bytes = 0

    def json(self, what: str, pattern: Pattern, make: Callable[[Pattern], Any]) -> Any:
        """What `make` says of a pattern, encoded: it stands for the value wherever an answer is encoded."""
        kept = self._kept.get((what, pattern.pattern_id))
        if kept is None:
            kept = msgspec.Raw(msgspec.json.encode(make(pattern)))
            size = len(bytes(kept))
            if self._kept_bytes + size > KEPT_MAX_BYTES:
                self._kept.clear()
                self._kept_bytes = 0
            self._kept[what, pattern.pattern_id] = kept
            self._kept_bytes += size
        return kept


_PRINTED: Final[WeakKeyDictionary[Timetable, Printed]] = WeakKeyDictionary()


def printed(timetable: Timetable) -> Printed:
    """Made when first asked for."""
    found = _PRINTED.get(timetable)
    if found is None:
        found = _PRINTED[timetable] = Printed(timetable)
    return found


def following(rows: Sequence[tuple[str, T]], cursor: str | None, count: int) -> Sequence[tuple[str, T]]:
    """At most `count` rows after the public id `cursor`, of rows in the order of theirs."""
    start = 0 if cursor is None else bisect_right(rows, cursor, key=_first)
    return rows[start : start + count]
