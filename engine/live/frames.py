"""What a listener reads: the shapes of the contract's live section, and their bytes.

The body (`d`) of an update is encoded once per encoding, the push around it once per set of channels that it names, and the frame around
that once per wire. JSON is camelCase with RFC 3339 times; MessagePack has the same names and values. None where something is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Literal

import msgspec

from engine.events import IncidentEvent, Position, StopEvent, StopForecast, TripForecast
from engine.live.channels import trip_key

JSON: Final = 0
MSGPACK: Final = 1


_SECONDS: Final = tuple(f":{second:02d}" for second in range(60))
_MILLIS: Final = tuple(f".{ms:03d}Z" for ms in range(1000))
_minutes: dict[int, str] = {}  # of the minutes that are spoken of: now, and the arrivals of the next hours
MINUTES_MAX: Final = 1_000  # seventeen hours, 0.1 MB: their seconds would be six, which come and go


def rfc3339(ms: int) -> str:
    """UTC milliseconds as RFC 3339 text: `2026-02-16T14:05:09.250Z`."""
    minute, rest_ms = divmod(ms, 60_000)
    second = rest_ms // 1000
    return (_minutes.get(minute) or _minute(minute)) + _SECONDS[second] + _MILLIS[rest_ms - second * 1000]


def _minute(minute: int) -> str:
    if len(_minutes) >= MINUTES_MAX:
        _minutes.clear()
    text = _minutes[minute] = datetime.fromtimestamp(minute * 60, UTC).strftime("%Y-%m-%dT%H:%M")
    return text


def _when(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)


class NextStop(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    stop_id: str
    seq: int
    p10: str | None
    p50: str | None
    p90: str | None


class Pos(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """`pos` of the contract."""

    bus_id: str
    trip_id: str | None  # the trip instance
    route_id: str | None
    start_date: str | None
    lat: float
    lon: float
    bearing: float | None
    speed_mps: float | None
    along_m: float | None
    offset_m: float | None
    state: str
    delay_s: int | None
    next_stop: NextStop | None
    at: str
    received_at: str
    occupancy: int | None


class EtaStop(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    stop_id: str
    seq: int
    p10: str | None
    p50: str | None
    p90: str | None
    delay_s: int | None
    kind: str
    departs: str | None


class Eta(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """`eta`: the forecast of one vehicle on one trip; on a stop channel `stops` has that stop alone."""

    bus_id: str
    trip_id: str
    route_id: str
    start_date: str
    made_at: str
    stops: list[EtaStop]


class Served(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """`stop`: a vehicle is near a stop (APPROACHING), or it served, passed or missed it."""

    bus_id: str
    trip_id: str
    route_id: str
    start_date: str
    stop_id: str
    seq: int
    kind: str
    arrived_at: str | None
    departed_at: str | None


class Gone(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """`gone`: the vehicle left this channel (its trip, its route, the box, or the air)."""

    bus_id: str


class Incident(msgspec.Struct, frozen=True, rename="camel"):
    """`incident`: one saying of an episode (opened, changed or closed)."""

    incident_id: str  # of the episode, the same in all its sayings
    kind: str  # OFF_ROUTE | MISSED_STOP | WRONG_WAY ...
    severity: str  # MINOR | MAJOR | CRITICAL
    bus_id: str
    trip_id: str | None
    route_id: str | None
    start_date: str | None
    opened_at: str
    closed_at: str | None  # None: it goes on
    lat: float
    lon: float
    detail: dict[str, Any]  # what there is to say of this kind
    handled_state: str | None  # ACKNOWLEDGED | ASSIGNED | CLOSED: what people did with it while it went on


class SeatSaid(msgspec.Struct, frozen=True, rename="camel"):
    """`seat`: a seat on some legs of a trip is something else now (`engine.booking.seats.seat_messages`, `engine/store/pick.lua`)."""

    seat: str
    state: Literal["FREE", "PICKED", "TAKEN", "BLOCKED"]
    start: str = msgspec.field(name="from")
    end: str = msgspec.field(name="to")
    until_ms: int | None = None  # the pick or hold ends by itself then; None: it does not


class BookingSaid(msgspec.Struct, frozen=True, rename="camel"):
    """`booking`: one of its rows (each trip of a return trip is one) has moved. What is said of one type alone comes beside these."""

    type: str  # of topic booking, as GET /v1/events/topics lists them
    version: int  # of the row
    at: str
    ref: str
    status: str
    trip_id: str
    seats: list[str]
    start: str = msgspec.field(name="from")
    end: str = msgspec.field(name="to")
    map_version: int = 1
    expires_at: str | None = None  # None: it is paid for, or over


class Notice(msgspec.Struct, frozen=True, rename="camel"):
    """`notice` on a seat channel: another bus drives the trip; read its seat map again."""

    what: Literal["MAP_CHANGED"]
    map_version: int


def pos(p: Position) -> Pos:
    """A position with public ids. Degrees to 6 places (0.1 m), metres and m/s to 2: what lies below is noise that costs bytes. Rounded by
    way of integers: `round(x, 6)` costs four times as much."""
    feed, ahead = p.feed_id, p.next_stop
    bearing, speed, along, offset = p.bearing_deg, p.speed_mps, p.along_m, p.offset_m
    return Pos(
        p.bus_id,
        None if p.trip_id is None or p.start_date is None else trip_key(feed, p.trip_id, p.start_date),
        None if p.route_id is None else f"{feed}:{p.route_id}",
        p.start_date,
        round(p.lat * 1e6) / 1e6,
        round(p.lon * 1e6) / 1e6,
        None if bearing is None else round(bearing * 10) / 10,
        None if speed is None else round(speed * 100) / 100,
        None if along is None else round(along * 10) / 10,
        None if offset is None else round(offset * 10) / 10,
        p.state,
        p.delay_s,
        None
        if ahead is None
        else NextStop(f"{feed}:{ahead.stop_id}", ahead.stop_sequence, _when(ahead.p10_ms), _when(ahead.p50_ms), _when(ahead.p90_ms)),
        rfc3339(p.fixed_at_ms),
        rfc3339(p.received_at_ms),
        p.occupancy,
    )


def eta_stop(feed_id: str, stop: StopForecast) -> EtaStop:
    return EtaStop(
        f"{feed_id}:{stop.stop_id}",
        stop.stop_sequence,
        _when(stop.p10_ms),
        _when(stop.p50_ms),
        _when(stop.p90_ms),
        stop.delay_s,
        stop.kind,
        _when(stop.departs_ms),
    )


def eta(feed_id: str, forecast: TripForecast, only_stop_id: str | None = None) -> Eta:
    """A forecast with public ids; `only_stop_id` (the feed's own id) leaves that stop alone."""
    return Eta(
        forecast.bus_id,
        trip_key(feed_id, forecast.trip_id, forecast.start_date),
        f"{feed_id}:{forecast.route_id}",
        forecast.start_date,
        rfc3339(forecast.made_at_ms),
        [eta_stop(feed_id, stop) for stop in forecast.stops if only_stop_id is None or stop.stop_id == only_stop_id],
    )


def served(feed_id: str, event: StopEvent) -> Served:
    return Served(
        event.bus_id,
        trip_key(feed_id, event.trip_id, event.start_date),
        f"{feed_id}:{event.route_id}",
        event.start_date,
        f"{feed_id}:{event.stop_id}",
        event.stop_sequence,
        event.kind,
        _when(event.arrived_at_ms),
        _when(event.departed_at_ms),
    )


def incident(feed_id: str, event: IncidentEvent) -> Incident:
    return Incident(
        event.incident_id,
        event.kind,
        event.severity,
        event.bus_id,
        None if event.trip_id is None or event.start_date is None else trip_key(feed_id, event.trip_id, event.start_date),
        None if event.route_id is None else f"{feed_id}:{event.route_id}",
        event.start_date,
        rfc3339(event.opened_at_ms),
        _when(event.closed_at_ms),
        round(event.lat, 6),
        round(event.lon, 6),
        msgspec.json.decode(event.detail, type=dict[str, Any]),
        event.handled,
    )


# --- bytes ---

ENCODE: Final[tuple[Callable[[Any], bytes], ...]] = (msgspec.json.encode, msgspec.msgpack.encode)

Frame = Callable[[bytes, str], bytes]  # (payload, where to resume: "epoch:offset") -> what the transport writes


class Wire:
    """One way to speak: an encoding, and the frame that a transport puts around a payload."""

    __slots__ = ("encoding", "frame", "name")

    def __init__(self, name: str, encoding: int, frame: Frame) -> None:
        self.name, self.encoding, self.frame = name, encoding, frame


@lru_cache(maxsize=16_384)
def _quoted(encoding: int, text: str) -> bytes:
    """A name as it stands encoded: the channels that are listened to, again and again."""
    return ENCODE[encoding](text)


def push(encoding: int, channels: Sequence[str], offset: int, kind: str, body: bytes, epoch: str | None = None) -> bytes:
    """`{"ch","o","t","d"}` around an encoded body; `ch` and `o` are lists where there is more than one channel. `e` where it is given. Put
    together from bytes: encoding a dict around a raw body costs 1.3 us, this a third."""
    count = len(channels)
    if encoding == JSON:
        if count == 1:
            names, offsets = _quoted(JSON, channels[0]), b"%d" % offset
        else:
            names = array(JSON, [_quoted(JSON, name) for name in channels])
            offsets = array(JSON, [b"%d" % offset] * count)
        era = b"" if epoch is None else b',"e":' + _quoted(JSON, epoch)
        return b'{"ch":%b,"o":%b%b,"t":%b,"d":%b}' % (names, offsets, era, _quoted(JSON, kind), body)
    number = ENCODE[MSGPACK](offset)
    if count == 1:
        names, offsets = _quoted(MSGPACK, channels[0]), number
    else:
        names, offsets = array(MSGPACK, [_quoted(MSGPACK, name) for name in channels]), array(MSGPACK, [number] * count)
    era = b"" if epoch is None else b"\xa1e" + _quoted(MSGPACK, epoch)
    return b"%b\xa2ch%b\xa1o%b%b\xa1t%b\xa1d%b" % (
        b"\x84" if epoch is None else b"\x85", names, offsets, era, _quoted(MSGPACK, kind), body,
    )  # fmt: skip


def array(encoding: int, parts: Sequence[bytes]) -> bytes:
    """Encoded values as one encoded array."""
    if encoding == JSON:
        return b"[" + b",".join(parts) + b"]"
    count = len(parts)
    if count < 16:
        head = bytes((0x90 | count,))
    elif count < 65_536:
        head = b"\xdc" + count.to_bytes(2, "big")
    else:
        head = b"\xdd" + count.to_bytes(4, "big")
    return head + b"".join(parts)


def batch(encoding: int, parts: Sequence[bytes]) -> bytes:
    """Several pushes in one frame: `{"t":"batch","d":[push, ...]}`; a single one stays itself."""
    if len(parts) == 1:
        return parts[0]
    listed = array(encoding, parts)
    return b'{"t":"batch","d":' + listed + b"}" if encoding == JSON else b"\x82\xa1t\xa5batch\xa1d" + listed
