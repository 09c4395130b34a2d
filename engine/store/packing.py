"""Fixes as PostgreSQL's binary COPY takes them: micro-degrees, small integers and numbers of names.

A row of every column is laid out once with numpy; where a column is null, its bytes are cut out of the rows. Values are clamped to what their
column holds.

Format: "Binary Format" of COPY in PostgreSQL's manual: a header, then a count of fields and (size, value) of each, size -1 for null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.events import TrackRow

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"
EPOCH_2000_MS: Final = 946_684_800_000  # where PostgreSQL's time begins, whose unit is a microsecond
# the columns of the statements `copy_points` and `copy_staged`, in their order, with the size of each
COLUMNS: Final = (
    ("ts", "i8"), ("bus_no", "i4"), ("lat_e6", "i4"), ("lon_e6", "i4"), ("latency_ms", "i4"), ("device_no", "i4"), ("source_no", "i4"),
    ("state_no", "i4"), ("late", "i1"), ("speed_cms", "i2"), ("bearing_ddeg", "i2"), ("accuracy_dm", "i2"), ("offset_dm", "i2"),
    ("along_m", "i4"), ("seq", "i8"), ("trip_no", "i4"), ("start_date", "i4"),
)  # fmt: skip
ROW: Final = np.dtype(
    [("fields", ">i2"), *((f"{part}{name}", kind) for name, size in COLUMNS for part, kind in (("size ", ">i4"), ("", ">" + size)))]
)
AT: Final = {name: found[1] for name, found in (ROW.fields or {}).items()}  # where each begins in a row


def copied(rows: Sequence[TrackRow], names: Mapping[str, int]) -> bytes:
    """The whole input of a COPY. Every name in the rows must be in `names`."""
    out = np.empty(len(rows), dtype=ROW)
    out["fields"] = len(COLUMNS)
    for name, size in COLUMNS:
        out["size " + name] = int(size[1])
    kept = np.ones((len(rows), ROW.itemsize), dtype=bool)
    fixed_ms = np.array([row.fixed_at_ms for row in rows], dtype=np.int64)
    out["ts"] = (fixed_ms - EPOCH_2000_MS) * 1000
    out["latency_ms"] = np.clip(np.array([row.received_at_ms for row in rows], dtype=np.int64) - fixed_ms, -(2**31), 2**31 - 1)
    out["bus_no"] = [names[row.bus_id] for row in rows]
    out["device_no"] = [names[row.device_id] for row in rows]
    out["source_no"] = [names[row.source] for row in rows]
    out["lat_e6"] = np.rint(np.array([row.lat for row in rows]) * 1e6)
    out["lon_e6"] = np.rint(np.array([row.lon for row in rows]) * 1e6)
    out["late"] = [row.verdict == "LATE" for row in rows]
    _put_scaled(out, kept, "speed_cms", [row.speed_mps for row in rows], 100)
    _put_scaled(out, kept, "bearing_ddeg", [row.bearing_deg for row in rows], 10)
    _put_scaled(out, kept, "accuracy_dm", [row.accuracy_m for row in rows], 10)
    _put_scaled(out, kept, "offset_dm", [row.offset_m for row in rows], 10)
    _put_scaled(out, kept, "along_m", [row.along_m for row in rows], 1)
    _put(out, kept, "state_no", [None if row.state is None else names[row.state] for row in rows])
    _put(out, kept, "trip_no", [None if row.trip_id is None else names[row.trip_id] for row in rows])
    _put(out, kept, "start_date", [None if row.start_date is None else int(row.start_date) for row in rows])
    _put(out, kept, "seq", [None if row.seq is None or abs(row.seq) >= 2**63 else row.seq for row in rows])
    if kept.all():
        return HEADER + out.tobytes() + TRAILER
    return HEADER + out.view(np.uint8).reshape(len(rows), ROW.itemsize)[kept].tobytes() + TRAILER


def _put(out: NDArray[Any], kept: NDArray[Any], name: str, values: list[int | None]) -> None:
    """Whole numbers, some of them null."""
    if None not in values:
        out[name] = values
        return
    out[name] = [value or 0 for value in values]
    _cut(out, kept, name, np.array([value is None for value in values]))


def _put_scaled(out: NDArray[Any], kept: NDArray[Any], name: str, values: Sequence[float | None], times: int) -> None:
    """Measures in whole parts of their unit, clamped to what the column holds."""
    found = np.array(values, dtype=np.float64)  # None becomes NaN
    null = np.isnan(found)
    most = 2 ** (8 * out.dtype[name].itemsize - 1) - 1
    if null.any():
        found[null] = 0.0
        _cut(out, kept, name, null)
    out[name] = np.clip(np.rint(found * times), -most, most)


def _cut(out: NDArray[Any], kept: NDArray[Any], name: str, null: NDArray[Any]) -> None:
    out["size " + name][null] = -1
    at = AT[name]
    kept[null, at : at + ROW[name].itemsize] = False
