"""Device bytes become fixes: units, times, ids, reasons, and no bytes that do anything else."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.office.accounts import Device
from engine.tracking.fix import Fix
from ingest.wire import Decoded, WireError, telemetry, trip_of

NOW_MS = 1_795_262_400_000  # 2026-11-21 12:00 UTC
BUS = Device("d1", "p1", "TOKEN", {"B1": "demo"}, unique_id="123456")
GATEWAY = Device("d2", "p1", "GATEWAY", {"B1": "demo", "B2": "demo", "B3": "other"})


def said(**more: Any) -> dict[str, Any]:
    return {"busId": "B1", "timestamp": NOW_MS, "location": {"latitude": 36.75, "longitude": 3.05}} | more


def decoded(body: bytes | Any, content_type: str = "application/json", device: Device = BUS, **more: Any) -> Decoded:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return telemetry(raw, content_type, device, "telemetry", NOW_MS, **more)


def reasons(found: Decoded) -> list[tuple[int, str]]:
    return [(one.index, one.reason) for one in found.refused]


FULL = said(
    location={"latitude": 36.75, "longitude": 3.05, "accuracy": 4.5},
    motion={"speed": 54, "heading": 271.5, "altitude": 120},
    status={"ignition": True, "doorOpen": False, "passengers": 12, "fuel": 80.5},
    tripId="T1",
    startDate="20261121",
    deviceId="anything",
    seq=9,
    signature="not looked at",
    somethingNew={"a": [1]},
)


def test_every_field_of_the_telemetry_object_arrives_in_its_unit() -> None:
    [fix] = decoded(FULL).fixes
    assert fix == Fix(
        "B1",
        NOW_MS,
        36.75,
        3.05,
        NOW_MS,
        "d1",
        "telemetry",
        4.5,
        pytest.approx(15.0),
        271.5,
        9,
        "T1",
        "20261121",
        120.0,
        True,
        False,
        12,
        80.5,
    )


PACK = msgspec.msgpack.encode


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (json.dumps([FULL, FULL]).encode(), "application/json"),
        (json.dumps([FULL, FULL], indent=1).encode(), ""),
        (b"  " + json.dumps([FULL, FULL]).encode(), "text/plain"),
        (b"\n".join([json.dumps(FULL).encode()] * 2), "application/x-ndjson"),
        (b"\n".join([json.dumps(FULL).encode()] * 2) + b"\n\n", "application/json"),
        (PACK([FULL, FULL]), "application/msgpack"),
        (PACK([FULL, FULL]), ""),
    ],
)
def test_array_lines_and_messagepack_say_the_same(body: bytes, content_type: str) -> None:
    found = decoded(body, content_type)
    assert (len(found.fixes), found.refused) == (2, [])
    assert found.fixes[0] == decoded(FULL).fixes[0]


def test_one_object_in_messagepack_with_its_time_as_a_float() -> None:
    [fix] = decoded(PACK(FULL | {"timestamp": float(NOW_MS)}), "application/x-msgpack").fixes
    assert fix == decoded(FULL).fixes[0]


def test_a_bad_element_is_named_and_the_others_are_taken() -> None:
    batch = [
        said(seq=0),
        said(timestamp="yesterday"),
        {"busId": "B1"},
        said(location={"latitude": 91, "longitude": 3}),
        said(location={"latitude": 0.0, "longitude": 0.0}),
        said(location={"latitude": 36.75, "longitude": 3.05, "accuracy": 900}),
        said(timestamp=0),
        said(timestamp=NOW_MS + 3 * 86_400_000),
        said(busId="B2"),
        said(busId=7),
        "text",
        None,
        said(seq=-1),
        said(seq=1),
    ]
    found = decoded(batch)
    assert [fix.seq for fix in found.fixes] == [0, 1]
    assert reasons(found) == [
        (1, "MALFORMED"), (2, "MALFORMED"), (3, "RANGE"), (4, "ZERO_ISLAND"), (5, "ACCURACY"), (6, "ABSURD_TIME"), (7, "ABSURD_TIME"),
        (8, "NOT_YOUR_BUS"), (9, "MALFORMED"), (10, "MALFORMED"), (11, "MALFORMED"), (12, "MALFORMED"),
    ]  # fmt: skip
    assert all(one.detail for one in found.refused)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_a_number_that_is_none_spoils_its_element_only(value: str) -> None:
    body = json.dumps([said(seq=1), said(seq=2)]).replace("36.75", value, 1).encode()
    found = decoded(body)
    assert [fix.seq for fix in found.fixes] == [2]
    assert found.refused[0].index == 0
    assert found.refused[0].reason in ("RANGE", "MALFORMED")


def test_a_line_that_does_not_parse_is_one_refused_element() -> None:
    line = json.dumps(said()).encode()
    found = decoded(b"\n".join([line, b'{"busId": "B1", "time', line]), "application/x-ndjson")
    assert (len(found.fixes), reasons(found)) == (2, [(1, "MALFORMED")])


@pytest.mark.parametrize("body", [b"", b"   ", b"{", b"[1,", b"hello", b"\xff\xfe", b"[" * 100_000, b"\x93\x01", b"nope\nnope"])
def test_a_body_that_does_not_parse_at_all_is_a_wire_error(body: bytes) -> None:
    with pytest.raises(WireError):
        decoded(body)


def test_optional_readings_that_cannot_be_are_dropped_and_the_fix_kept() -> None:
    motion, status = {"speed": -1, "heading": -1, "altitude": 1e9}, {"passengers": -4, "fuel": 400}
    [fix] = decoded(said(location={"latitude": 36.75, "longitude": 3.05, "accuracy": -1}, motion=motion, status=status)).fixes
    assert (fix.accuracy_m, fix.speed_mps, fix.bearing_deg) == (None, None, None)
    assert (fix.altitude_m, fix.passengers, fix.fuel_pct) == (None, None, None)


def test_the_path_names_the_bus_where_the_object_does_not() -> None:
    without = {key: value for key, value in said().items() if key != "busId"}
    assert decoded(without, only_bus="B1").fixes[0].bus_id == "B1"
    assert reasons(decoded(without)) == [(0, "MALFORMED")]
    assert reasons(decoded(said(busId="B1"), device=GATEWAY, only_bus="B2")) == [(0, "NOT_YOUR_BUS")]


@pytest.mark.parametrize(
    ("trip_id", "start_date", "found"),
    [
        ("T1", None, ("T1", None)),
        ("demo:T1", "20261121", ("T1", "20261121")),
        ("demo:T1:20261121", None, ("T1", "20261121")),
        ("demo:T1:20261121", "20261121", ("T1", "20261121")),
        ("demo:T1:20261120", "20261121", ("T1:20261120", "20261121")),
        ("other:T1:20261121", None, ("other:T1:20261121", None)),
        ("T1", "tomorrow", ("T1", None)),
        ("T1", "٢٠٢٦١١٢١", ("T1", None)),
        ("", "20261121", (None, "20261121")),
        (None, None, (None, None)),
    ],
)
def test_a_trip_is_named_by_the_feed_or_by_its_public_id(trip_id: str | None, start_date: str | None, found: tuple[Any, Any]) -> None:
    assert trip_of("demo", trip_id, start_date) == found


def test_ids_that_redis_could_not_carry_are_refused() -> None:
    assert reasons(decoded(json.dumps([said(), {"a\ud800": 1}]).encode())) == [(1, "MALFORMED")]
    assert reasons(decoded([said(tripId="x" * 200), said(tripId="a\ud800"), said(seq=2**63), said(timestamp=2**70)])) == [
        (0, "MALFORMED"), (1, "MALFORMED"), (2, "MALFORMED"), (3, "ABSURD_TIME"),
    ]  # fmt: skip


# --- any bytes at all ---

JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*FULL, "latitude", "longitude", "speed", "x\ud800"]), inner, max_size=6)
    ),
    max_leaves=12,
)
MUTATED = st.builds(lambda key, value: FULL | {key: value}, st.sampled_from(sorted(FULL)), JSONISH)


def carried(found: Decoded) -> None:
    """Whatever was decoded can go into the stream and come back the same."""
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found.fixes), type=list[Fix]) == found.fixes
    assert msgspec.msgpack.encode(found.refused)
    for one in found.refused:
        assert one.reason in ("MALFORMED", "RANGE", "ZERO_ISLAND", "ACCURACY", "ABSURD_TIME", "NOT_YOUR_BUS")
        assert len(one.detail) <= 256


@given(st.binary(max_size=300), st.sampled_from(["", "application/json", "application/msgpack", "application/x-ndjson"]))
@example(b"\x81\x80\x01", "")
def test_any_bytes_are_decoded_or_refused(body: bytes, content_type: str) -> None:
    try:
        carried(decoded(body, content_type))
    except WireError:
        return  # the other honest answer


@given(st.lists(JSONISH | MUTATED, max_size=4))
def test_any_json_values_are_decoded_or_refused_one_by_one(values: list[Any]) -> None:
    found = decoded(json.dumps(values).encode())
    assert found.count == len(values)
    carried(found)


@given(MUTATED)
def test_any_messagepack_value_is_decoded_or_refused(value: Any) -> None:
    try:
        body = PACK(value)
    except (OverflowError, UnicodeEncodeError):
        return
    carried(decoded(body, "application/msgpack"))
