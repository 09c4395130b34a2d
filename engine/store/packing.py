"""Fixes as packed columns: micro-degrees, small integers and numbers of names, in PostgreSQL's binary array format.

One parameter a column instead of one value a field: psycopg's own list dumper took 13 us a row of 17 columns, this takes 2. Arrays hold no
null; `None` travels as the type's smallest value, which the statement turns into null again (`nullif`), so no real value may be that one:
everything is clamped above it.

Format: `array_recv` in PostgreSQL's arrayfuncs.c: dimensions, has-null flag, element type, length, lower bound, then (size, value) pairs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from psycopg.adapt import AdaptersMap, Buffer, Dumper
from psycopg.pq import Format

from engine.events import TrackRow


class Packed:
    """One column in PostgreSQL's binary array format; the subclass says of which type."""

    __slots__ = ("data",)
    oid = 0
    element = 0
    kind = "i4"

    def __init__(self, values: Sequence[int] | NDArray[Any]) -> None:
        size = int(self.kind[1])
        pairs = np.empty(len(values), dtype=[("size", ">i4"), ("value", ">" + self.kind)])
        pairs["size"], pairs["value"] = size, values
        self.data = struct.pack(">iiiii", 1, 0, self.element, len(values), 1) + pairs.tobytes()


class Smallints(Packed):
    oid, element, kind = 1005, 21, "i2"


class Ints(Packed):
    oid, element, kind = 1007, 23, "i4"


class Bigints(Packed):
    oid, element, kind = 1016, 20, "i8"


class _Dump(Dumper):
    format = Format.BINARY

    def dump(self, obj: Packed) -> Buffer | None:
        return obj.data


def register(adapters: AdaptersMap) -> None:
    """Let a connection send packed columns."""
    for column in (Smallints, Ints, Bigints):
        adapters.register_dumper(column, type(f"{column.__name__}Dumper", (_Dump,), {"oid": column.oid}))


SMALL_NONE: Final = -(2**15)
INT_NONE: Final = -(2**31)
BIG_NONE: Final = -(2**63)


def pack(rows: Sequence[TrackRow], names: Mapping[str, int]) -> list[Packed]:
    """The 17 columns of the statement `add_points`, in its order. Every name in the rows must be in `names`."""
    fixed = np.array([row.fixed_at_ms for row in rows], dtype=np.int64)
    received = np.array([row.received_at_ms for row in rows], dtype=np.int64)
    return [
        Bigints(fixed),
        Ints([names[row.bus_id] for row in rows]),
        Ints(np.rint(np.array([row.lat for row in rows]) * 1e6)),
        Ints(np.rint(np.array([row.lon for row in rows]) * 1e6)),
        Ints(np.clip(received - fixed, INT_NONE + 1, 2**31 - 1)),
        Ints([names[row.device_id] for row in rows]),
        Ints([names[row.source] for row in rows]),
        Ints([INT_NONE if row.state is None else names[row.state] for row in rows]),
        Smallints([row.verdict == "LATE" for row in rows]),
        Smallints(_scaled(rows, lambda row: row.speed_mps, 100, SMALL_NONE)),
        Smallints(_scaled(rows, lambda row: row.bearing_deg, 10, SMALL_NONE)),
        Smallints(_scaled(rows, lambda row: row.accuracy_m, 10, SMALL_NONE)),
        Smallints(_scaled(rows, lambda row: row.offset_m, 10, SMALL_NONE)),
        Ints(_scaled(rows, lambda row: row.along_m, 1, INT_NONE)),
        Bigints([BIG_NONE if row.seq is None or abs(row.seq) >= 2**63 else row.seq for row in rows]),
        Ints([INT_NONE if row.trip_id is None else names[row.trip_id] for row in rows]),
        Ints([INT_NONE if row.start_date is None else int(row.start_date) for row in rows]),
    ]


def _scaled(rows: Sequence[TrackRow], field: Callable[[TrackRow], float | None], times: int, none: int) -> NDArray[Any]:
    """The field in whole parts of its unit, clamped to what the column holds."""
    values = np.array([field(row) for row in rows], dtype=np.float64)  # None becomes NaN
    return np.where(np.isnan(values), none, np.clip(np.rint(values * times), none + 1, -none - 1))
