"""Fixes as COPY takes them: read back field by field, whatever is null."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.events import TrackRow
from engine.store.packing import COLUMNS, EPOCH_2000_MS, HEADER, TRAILER, copied

CODES = {"i1": ">b", "i2": ">h", "i4": ">i", "i8": ">q"}
NAMES = {name: number for number, name in enumerate(("bus", "device", "telemetry", "trip", "IN_TRIP"), 1)}


def maybe(values: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.none() | values


MEASURES = st.floats(-1e7, 1e7)
ROWS = st.lists(
    st.builds(
        TrackRow,
        st.just("bus"), st.integers(1_600_000_000_000, 1_900_000_000_000), st.floats(-90, 90), st.floats(-180, 180),
        st.integers(1_600_000_000_000, 1_900_000_000_000), st.just("device"), st.just("telemetry"), st.sampled_from(["OK", "LATE"]),
        maybe(MEASURES), maybe(MEASURES), maybe(MEASURES), maybe(st.integers(-(2**70), 2**70)), maybe(st.just("trip")),
        maybe(st.just("20261122")), maybe(MEASURES), maybe(MEASURES), maybe(st.just("IN_TRIP")),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


def read(data: bytes) -> list[dict[str, int | None]]:
    """The rows in a COPY's input, by column."""
    assert data.startswith(HEADER) and data.endswith(TRAILER)
    at, found = len(HEADER), []
    while data[at : at + 2] != TRAILER:
        (fields,) = struct.unpack_from(">h", data, at)
        assert fields == len(COLUMNS)
        at += 2
        row: dict[str, int | None] = {}
        for name, kind in COLUMNS:
            (size,) = struct.unpack_from(">i", data, at)
            at += 4
            row[name] = None if size == -1 else struct.unpack_from(CODES[kind], data, at)[0]
            assert size in (-1, int(kind[1]))
            at += max(0, size)
        found.append(row)
    assert at + 2 == len(data)
    return found


def scaled(value: float | None, times: int, bits: int) -> int | None:
    most = 2 ** (bits - 1) - 1
    return None if value is None else max(-most, min(most, round(value * times)))


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_what_was_packed_is_read_back_and_nulls_are_nulls(rows: list[TrackRow]) -> None:
    for row, got in zip(rows, read(copied(rows, NAMES)), strict=True):
        assert got == {
            "ts": (row.fixed_at_ms - EPOCH_2000_MS) * 1000, "bus_no": 1, "device_no": 2, "source_no": 3, "late": int(row.verdict == "LATE"),
            "lat_e6": round(row.lat * 1e6), "lon_e6": round(row.lon * 1e6),
            "latency_ms": max(-(2**31), min(2**31 - 1, row.received_at_ms - row.fixed_at_ms)),
            "state_no": row.state and 5, "trip_no": row.trip_id and 4, "start_date": row.start_date and 20261122,
            "speed_cms": scaled(row.speed_mps, 100, 16), "bearing_ddeg": scaled(row.bearing_deg, 10, 16),
            "accuracy_dm": scaled(row.accuracy_m, 10, 16), "offset_dm": scaled(row.offset_m, 10, 16), "along_m": scaled(row.along_m, 1, 32),
            "seq": None if row.seq is None or abs(row.seq) >= 2**63 else row.seq,
        }  # fmt: skip
