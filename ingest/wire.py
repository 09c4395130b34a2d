"""Device bytes become fixes: what every protocol has in common, and the telemetry object of our own.

Promises: any bytes give `Decoded` or raise `WireError`, nothing else; one bad element of a batch is refused with its index and its reason
while the others are taken. Refuses: to guess. A value that is not what the protocol says is a refusal, never another value; only optional
readings (speed, heading, passengers ...) that lie outside what exists are dropped and their fix is kept.

Pure: no clock, no I/O. Units at the end of every protocol are those of `Fix`: UTC ms, degrees, metres, m/s. The phone protocols are in
`wire_phones.py`. Source of the shapes: docs/devices.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from engine.office.accounts import Device
from engine.tracking.fix import Fix, screen_at_door

KMH = 1 / 3.6  # m/s
KNOT = 1852 / 3600  # m/s
DETAIL_MAX = 256  # characters of a refusal's detail
ID_MAX = 128  # characters of a trip id; the longest of twelve public feeds had 62
INT64_MAX = 2**63 - 1  # what msgpack can carry


def clean(detail: str) -> str:
    """Fit to be kept: 256 characters, and no half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    return detail[:DETAIL_MAX].encode("utf-8", "replace").decode()


class WireError(Exception):
    """The body does not parse at all. `detail` says where."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = clean(detail)


class Refused(msgspec.Struct, frozen=True, gc=False):
    """One element that is not a usable fix. `reason` is one of docs/devices.md's "known at once"."""

    index: int  # its place in the body, from 0
    reason: str  # MALFORMED | RANGE | ZERO_ISLAND | ACCURACY | ABSURD_TIME | NOT_YOUR_BUS | RATE (MQTT: over the device's rate)
    detail: str
    bus_id: str | None = None
    seq: int | None = None


class Decoded(msgspec.Struct, gc=False):
    """What one body held. `ignored`: messages of a protocol that are no fixes (a battery report, a way point)."""

    fixes: list[Fix]
    refused: list[Refused]
    ignored: int = 0

    @property
    def count(self) -> int:
        return len(self.fixes) + len(self.refused) + self.ignored


class Unusable(Exception):
    """Raised while one element is read; `Reader.take` turns it into a `Refused`."""

    def __init__(self, reason: str, detail: str, bus_id: str | None = None) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.bus_id = reason, detail, bus_id


def _seq_of(element: Any) -> int | None:
    """The number by which the device knows the element, for the answer on a socket."""
    seq = element.get("seq") if isinstance(element, dict) else getattr(element, "seq", None)
    return seq if isinstance(seq, int) and 0 <= seq <= INT64_MAX else None


def take_each(elements: list[Any], read: Callable[[Any], Fix | None]) -> Decoded:
    """`read` on every element: a fix, None (no fix and no fault), or `Unusable`."""
    decoded = Decoded([], [])
    for index, element in enumerate(elements):
        try:
            fix = read(element)
        except Unusable as fault:
            decoded.refused.append(Refused(index, fault.reason, clean(fault.detail), fault.bus_id, _seq_of(element)))
        else:
            if fix is None:
                decoded.ignored += 1
            else:
                decoded.fixes.append(fix)
    return decoded


# --- values that every protocol has ---


def within(value: float | None, low: float, high: float) -> float | None:
    """The optional reading, or None where it lies outside what exists (devices say -1 for "unknown"; NaN compares false)."""
    return value if value is not None and low <= value <= high else None


def whole(value: float | None, low: int, high: int) -> int | None:
    return int(value) if value is not None and low <= value <= high else None


@lru_cache(4096)  # a bus says the same trip with every fix
def trip_of(area: str, trip_id: str | None, start_date: str | None) -> tuple[str | None, str | None]:
    """(GTFS trip_id, yyyymmdd) from what a device said: the feed's own id, `{feed}:{trip_id}` or `{feed}:{trip_id}:{yyyymmdd}`.

    A date that is none is dropped (the engine finds it); a trip id that cannot be one raises `Unusable`.
    """
    if start_date is not None and not (len(start_date) == 8 and start_date.isascii() and start_date.isdigit()):
        start_date = None
    if not trip_id:
        return None, start_date
    if len(trip_id) > ID_MAX or not trip_id.isprintable():
        raise Unusable("MALFORMED", f"tripId: at most {ID_MAX} printable characters")
    if not trip_id.startswith(area + ":"):
        return trip_id, start_date
    plain = trip_id[len(area) + 1 :]
    head, _, tail = plain.rpartition(":")
    if head and len(tail) == 8 and tail.isascii() and tail.isdigit() and start_date in (None, tail):
        return head, tail
    return plain or None, start_date


def screened(fix: Fix) -> Fix:
    """The fix as `screen_at_door` gives it back. Raises `Unusable` with the reason known at once."""
    screen = screen_at_door(fix, fix.received_at_ms)
    if isinstance(screen, str):
        raise Unusable(screen, f"at {fix.lat},{fix.lon}, accuracy {fix.accuracy_m} m, fixed at {fix.fixed_at_ms}", fix.bus_id)
    return screen


# --- bodies ---


def loose_json(body: bytes) -> Any:
    """JSON as the strict decoder will not have it: NaN and Infinity stand for themselves, so that one of them spoils one element only."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as fault:  # UnicodeDecodeError and an integer of 5,000 digits are ValueErrors
        raise WireError(f"not JSON: {fault}") from fault


_MSGPACK_TYPES = ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack")
_LINE_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")
_OTHER_TYPES = (*_MSGPACK_TYPES, *_LINE_TYPES)  # than one JSON document


def is_msgpack(body: bytes, content_type: str) -> bool:
    """By content type, else by the first byte: maps and arrays of MessagePack begin where JSON cannot (80-9f, dc-df)."""
    if content_type.startswith(_MSGPACK_TYPES):
        return True
    return bool(body) and (0x80 <= body[0] <= 0x9F or 0xDC <= body[0] <= 0xDF) and "json" not in content_type


# --- the telemetry object ---


class Location(msgspec.Struct, gc=False):
    latitude: float
    longitude: float
    accuracy: float | None = None


class Motion(msgspec.Struct, gc=False):
    speed: float | None = None  # km/h
    heading: float | None = None
    altitude: float | None = None


class Status(msgspec.Struct, gc=False, rename="camel"):
    ignition: bool | None = None
    door_open: bool | None = None
    passengers: float | None = None
    fuel: float | None = None  # per cent


class Telemetry(msgspec.Struct, gc=False, rename="camel"):
    """docs/devices.md, "Own software: telemetry". Fields that it does not name are let pass."""

    timestamp: int | float  # UTC ms; some MessagePack libraries write large integers as floats
    location: Location
    bus_id: str | None = None  # None: the path or the token says which bus
    motion: Motion | None = None
    status: Status | None = None
    trip_id: str | None = None
    start_date: str | None = None
    seq: int | None = None


_JSON_ONE = msgspec.json.Decoder(Telemetry)
_JSON_MANY = msgspec.json.Decoder(list[Telemetry])
_PACK_ONE = msgspec.msgpack.Decoder(Telemetry)
_PACK_MANY = msgspec.msgpack.Decoder(list[Telemetry])
_PACK_ANY = msgspec.msgpack.Decoder()
_FAULTS = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)  # ValidationError is a DecodeError
_NO_MOTION, _NO_STATUS = Motion(), Status()


def telemetry_fix(said: Telemetry, device: Device, source: str, received_at_ms: int, only_bus: str | None = None) -> Fix:
    """`only_bus`: the bus of the path; an object may name no other. Raises `Unusable`."""
    bus_id = said.bus_id if said.bus_id is not None else only_bus
    if bus_id is None:
        raise Unusable("MALFORMED", "busId is missing")
    area = device.buses.get(bus_id)
    if area is None or (only_bus is not None and bus_id != only_bus):
        raise Unusable("NOT_YOUR_BUS", f"busId {bus_id[:64]!r} is not among this device's buses")
    where, motion, status = said.location, said.motion or _NO_MOTION, said.status or _NO_STATUS
    if not -INT64_MAX < said.timestamp < INT64_MAX:
        raise Unusable("ABSURD_TIME", f"timestamp {said.timestamp}", bus_id)
    if said.seq is not None and not 0 <= said.seq <= INT64_MAX:
        raise Unusable("MALFORMED", "seq: a whole number from 0 to 2^63 - 1", bus_id)
    trip_id, start_date = said.trip_id, said.start_date
    if trip_id is not None or start_date is not None:
        trip_id, start_date = trip_of(area, trip_id, start_date)
    heading, altitude, passengers, fuel = motion.heading, motion.altitude, status.passengers, status.fuel
    return screened(
        Fix(
            bus_id, int(said.timestamp), where.latitude, where.longitude, received_at_ms, device.device_id, source,
            where.accuracy, None if motion.speed is None else motion.speed * KMH, None if heading is None else within(heading, 0, 360), said.seq,
            trip_id, start_date, None if altitude is None else within(altitude, -1000, 20_000), status.ignition, status.door_open,
            None if passengers is None else whole(passengers, 0, 1000), None if fuel is None else within(fuel, 0, 100),
        )
    )  # fmt: skip


def telemetry(body: bytes, content_type: str, device: Device, source: str, received_at_ms: int, only_bus: str | None = None) -> Decoded:
    """One telemetry object, an array of them, or NDJSON; JSON or MessagePack. Raises `WireError`."""
    packed = False
    said: list[Any]
    try:
        if body[:1] == b"{" and not content_type.startswith(_OTHER_TYPES):  # nearly all
            said = [_JSON_ONE.decode(body)]
        elif packed := is_msgpack(body, content_type):
            many = 0x90 <= body[0] <= 0x9F or 0xDC <= body[0] <= 0xDD
            said = _PACK_MANY.decode(body) if many else [_PACK_ONE.decode(body)]
        elif content_type.startswith(_LINE_TYPES):
            said = _JSON_ONE.decode_lines(body)
        elif body[:1] == b"[":
            said = _JSON_MANY.decode(body)
        else:
            said = [_JSON_ONE.decode(body)]
    except (*_FAULTS, IndexError):
        said = _elements(body, packed=packed, lines=content_type.startswith(_LINE_TYPES))
    if len(said) == 1 and type(one := said[0]) is Telemetry:  # nearly all: a phone says one at a time
        try:
            return Decoded([telemetry_fix(one, device, source, received_at_ms, only_bus)], [])
        except Unusable as fault:
            return Decoded([], [Refused(0, fault.reason, clean(fault.detail), fault.bus_id, _seq_of(one))])
    return take_each(said, lambda one: telemetry_fix(_typed(one), device, source, received_at_ms, only_bus))


def _typed(one: Any) -> Telemetry:
    """An element as the fast path left it, or converted now, alone."""
    if type(one) is Telemetry:
        return one
    if isinstance(one, WireError):
        raise Unusable("MALFORMED", one.detail)
    try:
        return msgspec.convert(one, Telemetry)
    except (msgspec.ValidationError, ValueError, TypeError, ArithmeticError, RecursionError) as fault:  # a key of half a surrogate pair
        raise Unusable("MALFORMED", str(fault)) from fault


def _elements(body: bytes, *, packed: bool, lines: bool) -> list[Any]:
    """The slow path, when the body as a whole is not what the types say: its elements, each to be judged alone.

    A line of NDJSON that does not parse stands as its `WireError`. Raises `WireError` where nothing parses.
    """
    if packed:
        try:
            value = _PACK_ANY.decode(body)
        except (*_FAULTS, ValueError, TypeError) as fault:  # TypeError: a map whose key cannot be hashed
            raise WireError(f"not MessagePack: {fault}") from fault
        return value if isinstance(value, list) else [value]
    if not lines:
        try:
            value = loose_json(body)
        except WireError:
            if b"\n" not in body.strip():
                raise
        else:
            return value if isinstance(value, list) else [value]
    said: list[Any] = []
    for line in body.split(b"\n"):
        if line.strip():
            try:
                said.append(loose_json(line))
            except WireError as fault:
                said.append(fault)
    if all(isinstance(one, WireError) for one in said):
        raise said[0] if said else WireError("the body is empty")
    return said
