"""Phone protocols: recorded messages, units, times, ids, and no bytes that do anything but decode or be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.office.accounts import Device
from engine.tracking.fix import Fix
from ingest.wire import Decoded, WireError
from ingest.wire_phones import moment, number, osmand, overland, owntracks, traccar

NOW_MS = 1_795_262_400_000  # 2026-11-21 12:00 UTC
BUS = Device("d1", "p1", "TOKEN", {"B1": "demo"}, unique_id="123456")
GATEWAY = Device("d2", "p1", "GATEWAY", {"B1": "demo", "B2": "demo"})


def from_query(query: str, device: Device = BUS, **more: Any) -> Decoded:
    return osmand(query.encode(), b"", "", device, NOW_MS, **more)


def from_json(said: Any, device: Device = BUS) -> Decoded:
    return osmand(b"", json.dumps(said).encode(), "application/json", device, NOW_MS)


def only(found: Decoded) -> Fix:
    assert (found.refused, found.ignored) == ([], 0)
    [fix] = found.fixes
    return fix


def reasons(found: Decoded) -> list[tuple[int, str]]:
    return [(one.index, one.reason) for one in found.refused]


AT = f"timestamp={NOW_MS // 1000}"
KNOTS_40 = pytest.approx(20.5778, abs=1e-4)


def test_osmand_query_speaks_knots() -> None:
    fix = only(from_query(f"id=123456&{AT}&lat=36.75&lon=3.05&speed=40&bearing=271.5&altitude=12&accuracy=6&ignition=true&fuel=24"))
    assert fix == Fix(
        "B1", NOW_MS, 36.75, 3.05, NOW_MS, "d1", "osmand", 6.0, KNOTS_40, 271.5, altitude_m=12.0, ignition=True, fuel_pct=24.0
    )


def test_osmand_form_says_the_same_as_its_query() -> None:
    fields = f"id=B1&{AT}&lat=36.75&lon=3.05&speed=40"
    form = osmand(b"token=T", fields.encode(), "application/x-www-form-urlencoded", BUS, NOW_MS)
    assert only(form) == only(from_query(fields))


def test_traccar_client_9_speaks_metres_a_second_and_says_minus_one_for_unknown() -> None:
    coords = {"latitude": 36.75, "longitude": 3.05, "accuracy": 5, "speed": 18.67, "heading": 63, "altitude": 35.7}
    fix = only(from_json({"location": {"timestamp": "2026-11-21T11:59:59.5Z", "coords": coords}, "device_id": "123456"}))
    assert (fix.fixed_at_ms, fix.speed_mps, fix.bearing_deg, fix.accuracy_m) == (NOW_MS - 500, 18.67, 63, 5)
    unknown = coords | {"speed": -1, "heading": -1, "accuracy": -1}
    fix = only(from_json({"location": {"timestamp": NOW_MS, "coords": unknown}, "device_id": 123456}))
    assert (fix.speed_mps, fix.bearing_deg, fix.accuracy_m) == (None, None, None)


def test_several_messages_in_one_body_are_judged_one_by_one() -> None:
    good = {"timestamp": NOW_MS, "coords": {"latitude": 36.75, "longitude": 3.05}}
    bad = {"timestamp": NOW_MS, "coords": {"latitude": "north", "longitude": 3.05}}
    for body in ({"location": [good, bad, good], "device_id": "B1"}, [{"location": one, "device_id": "B1"} for one in (good, bad, good)]):
        found = from_json(body)
        assert (len(found.fixes), reasons(found)) == (2, [(1, "MALFORMED")])


@pytest.mark.parametrize(
    ("said", "at_ms"),
    [
        (1377177267, 1377177267000),
        ("1377177267", 1377177267000),
        ("1377177267.5", 1377177267500),
        (1442068686579, 1442068686579),
        ("1442068686579", 1442068686579),
        ("2016-01-27T18:55:47Z", 1453920947000),
        ("2014-06-04 09:10:11", 1401873011000),
        ("2025-06-15T13:45:12.862Z", 1749995112862),
        ("2025-06-15T15:45:12.862+02:00", 1749995112862),
        ("2025-06-15T15:45:12.862+0200", 1749995112862),
        (None, NOW_MS),
        ("", NOW_MS),
    ],
)
def test_times_in_seconds_milliseconds_and_iso(said: Any, at_ms: int) -> None:
    assert moment(said, NOW_MS) == at_ms


@pytest.mark.parametrize("value", ["1_0", "٣", "nan", "inf", "0x10", "", "1e999", True, None, [], {}, 10**400, float("nan")])
def test_what_is_no_number_is_none(value: Any) -> None:
    assert number(value) is None


def test_an_id_is_a_bus_of_the_device_or_its_own_name() -> None:
    where = f"lat=36.75&lon=3.05&{AT}"
    assert only(from_query(where)).bus_id == "B1"  # one bus: the token says it all
    assert only(from_query(f"{where}&deviceid=123456")).bus_id == "B1"
    assert reasons(from_query(f"{where}&id=999")) == [(0, "NOT_YOUR_BUS")]
    assert only(from_query(f"{where}&id=B2", GATEWAY)).bus_id == "B2"
    assert only(from_query(where, GATEWAY, user="B2")).bus_id == "B2"
    assert reasons(from_query(where, GATEWAY)) == [(0, "NOT_YOUR_BUS")]


def test_a_query_without_a_position_is_refused_not_an_error() -> None:
    assert reasons(from_query(f"id=B1&{AT}&cell=257,02,16,2224&wifi=00-14-22-01-23-45,-80")) == [(0, "MALFORMED")]
    assert reasons(from_query("")) == [(0, "MALFORMED")]
    assert only(from_query(f"{AT}&location=36.75,3.05")).lon == 3.05


def test_owntracks_speaks_kmh_and_its_other_messages_are_no_fixes() -> None:
    said = {"_type": "location", "lat": 36.75, "lon": 3.05, "tst": NOW_MS // 1000, "acc": 15, "vel": 61, "cog": 271, "alt": 167}
    fix = only(owntracks(json.dumps(said).encode(), BUS, NOW_MS, "B1"))
    assert (fix.speed_mps, fix.bearing_deg, fix.accuracy_m, fix.altitude_m) == (pytest.approx(16.944, abs=1e-3), 271, 15, 167)
    for kind in ("lwt", "transition", "waypoint", "steps", None):
        found = owntracks(json.dumps(said | {"_type": kind}).encode(), BUS, NOW_MS, "B1")
        assert (found.fixes, found.refused, found.ignored) == ([], [], 1)
    assert reasons(owntracks(json.dumps(said).encode(), BUS, NOW_MS, "B2")) == [(0, "NOT_YOUR_BUS")]


def feature(lat: float, lon: float, **about: Any) -> dict[str, Any]:
    point = {"type": "Point", "coordinates": [lon, lat]}
    return {"type": "Feature", "geometry": point, "properties": {"timestamp": "2026-11-21T12:00:00Z"} | about}


def test_overland_speaks_metres_a_second() -> None:
    locations = [
        feature(36.75, 3.05, speed=12, course=90, horizontal_accuracy=5, altitude=30, device_id="B1"),
        feature(36.75, 3.05, speed=-1, course=-1, device_id=""),
        feature(95, 3.05),
        feature(36.75, 3.05, action="visit"),
        {"type": "Feature"},
        feature(36.75, 3.05, device_id="B2"),
    ]
    found = overland(json.dumps({"locations": locations}).encode(), BUS, NOW_MS)
    assert [(fix.speed_mps, fix.bearing_deg, fix.accuracy_m) for fix in found.fixes] == [(12, 90, 5), (None, None, None)]
    assert (reasons(found), found.ignored) == ([(2, "RANGE"), (4, "MALFORMED"), (5, "NOT_YOUR_BUS")], 1)
    with pytest.raises(WireError):
        overland(b'{"locations": 5}', BUS, NOW_MS)


def test_traccar_forwarding_speaks_knots_and_names_the_bus_by_unique_id() -> None:
    position = {
        "latitude": 36.75, "longitude": 3.05, "speed": 40, "course": 10.5, "altitude": 9, "accuracy": 0.0, "outdated": False,
        "fixTime": "2026-11-21T12:00:00.000+00:00", "attributes": {"ignition": True, "fuelLevel": 55, "batteryLevel": 90},
    }  # fmt: skip
    body = [{"position": position, "device": {"id": 1, "uniqueId": bus, "name": "x"}} for bus in ("B2", "B9")]
    found = traccar(json.dumps(body).encode(), GATEWAY, NOW_MS)
    [fix] = found.fixes
    assert (fix.bus_id, fix.speed_mps, fix.bearing_deg, fix.accuracy_m) == ("B2", KNOTS_40, 10.5, None)
    assert (fix.ignition, fix.fuel_pct, fix.source) == (True, 55, "traccar")
    assert reasons(found) == [(1, "NOT_YOUR_BUS")]


def recorded(data_dir: Path) -> list[dict[str, Any]]:
    lines = (data_dir / "device_messages" / "osmand_owntracks.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.data
def test_every_recorded_message_decodes(data_dir: Path) -> None:
    """On the day it was sent: the messages are years apart. A peer refuses one without an id; here the token says whose it is."""
    messages = recorded(data_dir)
    assert len(messages) == 21
    for message in messages:
        strings = message["strings"]
        ids = ("48241179", "658765", "8737767034", "123456", "902064", "353861053849681", "861001000719969", "123456789012345")
        device = Device("d", "p", "GATEWAY", dict.fromkeys(ids, "demo")) if "id" in str(strings) else BUS
        body = strings[-1].encode() if strings[-1].startswith("{") else b""
        if message["protocol"] == "OwnTracks":
            now_ms = json.loads(body)["tst"] * 1000 + 1000
            found = owntracks(body, BUS, now_ms, "B1")
        else:
            if message["verify"] == "Attribute":
                body = strings[3].encode()
            query = urlsplit(strings[0]).query.encode()
            at = query.decode() if query else json.loads(body)["location"]
            now_ms = when(at) + 1000
            found = osmand(query, body, strings[2] if body else "", device, now_ms)
        if message["verify"] == "NotNull":  # cell towers and no position
            assert reasons(found) == [(0, "MALFORMED")]
            continue
        fix = only(found)
        assert abs(fix.lat) > 1 and abs(fix.lon) > 0.5
        assert fix.fixed_at_ms <= now_ms


def when(said: str | dict[str, Any]) -> int:
    if isinstance(said, dict):
        return moment(said["timestamp"], NOW_MS)
    fields = dict(part.split("=", 1) for part in said.replace("%3A", ":").replace("+", " ").split("&"))
    return moment(fields.get("timestamp"), NOW_MS)


# --- any bytes at all ---

KEYS = (
    "location", "coords", "latitude", "longitude", "timestamp", "device_id", "locations", "properties", "geometry", "coordinates", "_type",
    "lat", "lon", "tst", "position", "device", "uniqueId", "fixTime", "attributes", "speed", "id", "tripId",
)  # fmt: skip
SCALAR = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["B1", "location", "36.7", "2026-11-21"])
)
JSONISH = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6), max_leaves=20
)
DECODERS = {
    "osmand": lambda body: osmand(b"id=B1", body, "application/json", BUS, NOW_MS),
    "owntracks": lambda body: owntracks(body, BUS, NOW_MS, "B1"),
    "overland": lambda body: overland(body, BUS, NOW_MS),
    "traccar": lambda body: traccar(body, BUS, NOW_MS),
}


def carried(found: Decoded) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found.fixes), type=list[Fix]) == found.fixes
    assert msgspec.msgpack.encode(found.refused)
    assert all(len(one.detail) <= 256 for one in found.refused)


@pytest.mark.parametrize("protocol", sorted(DECODERS))
@given(st.binary(max_size=200) | JSONISH.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_decoded_or_refused(protocol: str, body: bytes) -> None:
    try:
        carried(DECODERS[protocol](body))
    except WireError:
        return  # the other honest answer


@given(
    st.dictionaries(st.sampled_from(["lat", "lon", "timestamp", "id", "speed", "location", "tripId", "hacc"]), st.text(max_size=20)),
    st.binary(),
)
def test_any_query_is_decoded_or_refused(fields: dict[str, str], raw: bytes) -> None:
    from urllib.parse import urlencode

    for query in (urlencode(fields, errors="replace").encode(), raw):
        try:
            carried(osmand(query, b"", "", BUS, NOW_MS))
        except WireError:
            return  # the other honest answer
