"""REST reads of tracking: where buses are, where they were, and what a device sent that could not be used.

A position comes from the live table of this worker; a bus that is not in it is looked up in the record, and `ageMs` says how old the answer is.
Public: positions. What a bus did and what a device sent is its operator's (PARTNER_ADMIN, SUPER_ADMIN).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, QueryParameter

from api.auth import PARTNER_ADMIN, SUPER_ADMIN, Principal, need
from api.etags import tagged
from api.ids import trip_key
from api.network import Cursor, Limit, metres, offset_of, parse_point
from api.parts import Parts, parts_of
from engine.errors import Invalid, NotFound, Unavailable
from engine.live.frames import JSON, Pos, rfc3339
from engine.live.table import Seen
from engine.store.timescale import HistoryReader, PastFix
from geo.coords import distance_m

SPAN_MOST: Final = timedelta(days=31)  # one read of the record
BUCKET_MOST_S: Final = 86_400
RECORD_LOOKS_BACK: Final = timedelta(days=7)  # for the last position of a bus that is not live
BUCKETS_MOST: Final = 2_000


class Located(Pos, frozen=True, rename="camel"):
    """`pos` of the contract, how old it is, and how far the bus has come."""

    age_ms: int
    from_record: bool  # True: not live; the newest that history has
    driven_m: float | None  # since the start of the trip
    remaining_m: float | None  # along the line to the trip's last stop


LOCATED: Final = ResponseSpec(Located, generate_examples=False, description="where it is")


class LocatedItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[Located]
    next_cursor: str | None


class TrackPoint(msgspec.Struct, frozen=True, rename="camel"):
    at: str
    lat: float
    lon: float
    speed_mps: float | None
    bearing: float | None
    along_m: float | None
    offset_m: float | None
    trip_id: str | None
    state: str | None
    late: bool


class TrackPoints(msgspec.Struct, frozen=True, rename="camel"):
    items: list[TrackPoint]
    next_cursor: str | None


class TrackBucket(msgspec.Struct, frozen=True, rename="camel"):
    at: str  # the bucket's start
    fixes: int
    mean_speed_mps: float | None
    max_speed_mps: float | None
    max_offset_m: float | None
    lat: float  # where it stood at the bucket's end
    lon: float


class TrackBuckets(msgspec.Struct, frozen=True, rename="camel"):
    items: list[TrackBucket]
    next_cursor: str | None


class QuarantinedFix(msgspec.Struct, frozen=True, rename="camel"):
    received_at: str
    bus_id: str | None
    reason: str
    source: str
    fixed_at: str | None  # None: the door could not read one
    lat: float | None
    lon: float | None
    detail: str


class QuarantinedFixes(msgspec.Struct, frozen=True, rename="camel"):
    items: list[QuarantinedFix]
    next_cursor: str | None


@get("/buses/{bus_id:str}/location", tags=["tracking"], responses={200: LOCATED})
async def read_location(request: Request[Any, Any, Any], bus_id: FromPath[str]) -> Response[Any]:
    """Where a bus is: live, or the newest the record has."""
    parts = parts_of(request)
    seen = parts.table.buses.get(bus_id)
    if seen is not None:
        return tagged(request, _told(seen, parts.clock.now_ms()), but=_told(seen, seen.position.fixed_at_ms))
    since = datetime.fromtimestamp(parts.clock.now_ms() / 1000, UTC) - RECORD_LOOKS_BACK
    recorded = await parts.history.last_position(bus_id, since) if parts.history is not None else None
    if recorded is None:
        raise NotFound(f"no bus {bus_id!r} has been heard of in the last {RECORD_LOOKS_BACK.days} days")
    located = _from_record(parts, bus_id, recorded)
    return tagged(request, located, but=msgspec.structs.replace(located, age_ms=0))


@get("/buses/locations", tags=["tracking"], sync_to_thread=False)
def list_locations(
    request: Request[Any, Any, Any],
    near: Annotated[str | None, QueryParameter(description="lat,lon")] = None,
    radius: Annotated[int, QueryParameter(ge=1, le=100_000, description="metres")] = 1_000,
    bbox: Annotated[str | None, QueryParameter(description="west,south,east,north in degrees")] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> LocatedItems:
    """The buses near a point (nearest first) or in a box (by id), as they are live."""
    parts = parts_of(request)
    now_ms = parts.clock.now_ms()
    if near is not None and bbox is None:
        lat, lon = parse_point(near)
        box = box_around(lat, lon, radius)
        away = ((distance_m(lon, lat, s.position.lon, s.position.lat), s) for s in parts.table.inside(*box))
        near_by = sorted((row for row in away if row[0] <= radius), key=lambda row: (row[0], row[1].position.bus_id))
        start = offset_of(cursor)
        return _page([s for _, s in near_by[start : start + limit]], now_ms, str(start + limit) if start + limit < len(near_by) else None)
    if bbox is None or near is not None:
        raise Invalid("say near=lat,lon with radius=metres, or bbox=west,south,east,north")
    inside = parts.table.inside(*parse_box(bbox))
    rows = sorted((s for s in inside if cursor is None or s.position.bus_id > cursor), key=lambda s: s.position.bus_id)
    return _page(rows[:limit], now_ms, rows[limit - 1].position.bus_id if len(rows) > limit else None)


@get("/buses/{bus_id:str}/history", tags=["tracking"])
async def read_history(
    request: Request[Any, Any, Any],
    bus_id: FromPath[str],
    since: Annotated[str, QueryParameter(name="from", description="RFC 3339")],
    until: Annotated[str, QueryParameter(name="to", description="RFC 3339")],
    bucket: Annotated[int, QueryParameter(ge=60, le=BUCKET_MOST_S, description="seconds")] = 60,
) -> TrackBuckets:
    """How a bus drove, in buckets of time: fixes, speeds, and how far off its line it was."""
    parts = parts_of(request)
    fleet_of(parts, request, bus_id)
    began, ended = span_of(since, until)
    if (ended - began).total_seconds() > BUCKETS_MOST * bucket:
        raise Invalid(f"more than {BUCKETS_MOST:,} buckets: ask for a shorter time or larger buckets")
    rows = await history_of(parts).bus_history(bus_id, began, ended, bucket, BUCKETS_MOST)
    items = [
        TrackBucket(_text(row.bucket), row.n, row.mean_speed_mps, row.max_speed_mps, row.max_offset_m, row.lat, row.lon) for row in rows
    ]
    return TrackBuckets(items, None)


@get("/devices/{device_id:str}/quarantine", tags=["tracking"])
async def read_quarantine(
    request: Request[Any, Any, Any], device_id: FromPath[str], limit: Limit = 20, cursor: Cursor = None
) -> QuarantinedFixes:
    """What this device sent that could not be used, and why, newest first."""
    parts = parts_of(request)
    principal = need(principal_of(parts, request), PARTNER_ADMIN, SUPER_ADMIN)
    device = parts.registry.rows.get(device_id) if parts.registry is not None else None
    if device is None or not principal.may_manage(device.partner_id):
        raise NotFound(f"no device {device_id!r}")
    before, after = datetime.fromtimestamp(parts.clock.now_ms() / 1000, UTC) + timedelta(minutes=1), None
    if cursor is not None:
        at, _, fingerprint = cursor.partition(".")
        before, after = cursor_time(at), _fingerprint(fingerprint)
    rows = await history_of(parts).quarantine(device_id, before, limit + 1, after)
    items = [
        QuarantinedFix(
            _text(row.received_at),
            row.bus_id,
            row.reason,
            row.source,
            None if row.ts is None else _text(row.ts),
            row.lat,
            row.lon,
            row.detail,
        )
        for row in rows[:limit]
    ]
    last = rows[limit - 1] if len(rows) > limit else None
    return QuarantinedFixes(items, None if last is None else f"{_ms(last.received_at)}.{last.fingerprint}")


# ------------------------------------------------------------------------------------------------ how they are made


def principal_of(parts: Parts, request: Request[Any, Any, Any]) -> Principal | None:
    """Who asks; None without an Authorization header."""
    assert parts.tokens is not None
    return parts.tokens.from_header(request.headers.get("authorization"))


def parse_box(text: str) -> tuple[float, float, float, float]:
    """(west, south, east, north) from "w,s,e,n"; west > east crosses the antimeridian. Raises `Invalid`."""
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError as fault:
        raise Invalid(f"bbox reads west,south,east,north in degrees, not {text[:60]!r}") from fault
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
        raise Invalid(f"bbox {text[:60]!r} is on no map")
    return west, south, east, north


def box_around(lat: float, lon: float, radius_m: float) -> tuple[float, float, float, float]:
    """(west, south, east, north) of a box that holds the circle; west > east where it crosses the antimeridian."""
    north_deg = radius_m / 110_000
    south, north = max(-90.0, lat - north_deg), min(90.0, lat + north_deg)
    per_deg_m = 110_000 * math.cos(math.radians(min(90.0, max(abs(south), abs(north)))))
    if radius_m >= per_deg_m * 180.0:  # it goes round a pole
        return -180.0, south, 180.0, north
    east_deg = radius_m / per_deg_m
    west, east = lon - east_deg, lon + east_deg
    return west + 360.0 if west < -180.0 else west, south, east - 360.0 if east > 180.0 else east, north


def _told(seen: Seen, now_ms: int) -> bytes:
    """A live position as a `Located` in JSON: its `pos` is encoded once, for listeners and reads alike; the rest comes behind it."""
    position = seen.position
    return b'%b,"ageMs":%d,"fromRecord":false,"drivenM":%b,"remainingM":%b}' % (
        seen.body(JSON)[:-1],
        max(0, now_ms - position.fixed_at_ms),
        msgspec.json.encode(metres(position.driven_m)),
        msgspec.json.encode(metres(position.remaining_m)),
    )


def _page(seen: Sequence[Seen], now_ms: int, after: str | None) -> LocatedItems:
    items: list[Any] = [msgspec.Raw(_told(one, now_ms)) for one in seen]
    return LocatedItems(items, after)


def history_of(parts: Parts) -> HistoryReader:
    """Raises `Unavailable` where this process has none."""
    if parts.history is None:
        raise Unavailable("this worker has no access to the record", retry_after_s=5)
    return parts.history


def fleet_of(parts: Parts, request: Request[Any, Any, Any], bus_id: str) -> None:
    """Raises unless the caller runs the fleet that the bus belongs to; a foreign bus is as unknown as none."""
    principal = need(principal_of(parts, request), PARTNER_ADMIN, SUPER_ADMIN)
    bus = parts.registry.buses.get(bus_id) if parts.registry is not None else None
    if bus is None or not principal.may_manage(bus.partner_id):
        raise NotFound(f"no bus {bus_id!r}")


def span_of(since: str, until: str) -> tuple[datetime, datetime]:
    """Both ends as UTC datetimes. Raises `Invalid`."""
    marks = []
    for name, text in (("from", since), ("to", until)):
        try:
            when = datetime.fromisoformat(text)
            if when.tzinfo is None:
                raise Invalid(f"{name} needs an offset or Z")
            marks.append(when.astimezone(UTC))
        except (ValueError, OverflowError) as fault:  # OverflowError: an hour of year 1 that is year 0 in UTC
            raise Invalid(f"{name} must be an RFC 3339 time, not {text[:40]!r}") from fault
    if not timedelta(0) <= marks[1] - marks[0] <= SPAN_MOST:
        raise Invalid(f"to must lie after from, at most {SPAN_MOST.days} days")
    return marks[0], marks[1]


def cursor_time(cursor: str) -> datetime:
    """The instant of a cursor (UTC ms). Raises `Invalid`."""
    if not (cursor.isascii() and cursor.isdigit()) or len(cursor) > 14:  # 14 digits of ms: the year 5138
        raise Invalid("cursor must be the nextCursor of an earlier page")
    return datetime.fromtimestamp(int(cursor) / 1000, UTC)


def _fingerprint(text: str) -> int:
    """Of the last item of the page before: many refusals of one request have one time. Raises `Invalid`."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 19 or not -(2**63) <= int(text) < 2**63:
        raise Invalid("cursor must be the nextCursor of an earlier page")
    return int(text)


def _ms(when: datetime) -> int:
    return round(when.timestamp() * 1000)


def _text(when: datetime) -> str:
    return rfc3339(_ms(when))


def area_of_bus(parts: Parts, bus_id: str) -> str | None:
    """The feed that a bus drives; None: it is not known."""
    bus = parts.registry.buses.get(bus_id) if parts.registry is not None else None
    return None if bus is None else bus.area


def _trip_of(area: str | None, row: PastFix) -> str | None:
    return None if area is None or row.trip_id is None or row.start_date is None else trip_key(area, row.trip_id, str(row.start_date))


def point_of(area: str | None, row: PastFix) -> TrackPoint:
    """A recorded fix as the wire has it."""
    along_m = None if row.along_m is None else float(row.along_m)
    trip_id = _trip_of(area, row)
    return TrackPoint(_text(row.ts), row.lat, row.lon, row.speed_mps, row.bearing_deg, along_m, row.offset_m, trip_id, row.state, row.late)


def _from_record(parts: Parts, bus_id: str, row: PastFix) -> Located:
    """A recorded fix in the shape of a live one; what only the live engine knows is null."""
    area, at_ms = area_of_bus(parts, bus_id), _ms(row.ts)
    return Located(
        bus_id=bus_id,
        trip_id=_trip_of(area, row),
        route_id=None,
        start_date=None if row.start_date is None else str(row.start_date),
        lat=row.lat,
        lon=row.lon,
        bearing=row.bearing_deg,
        speed_mps=row.speed_mps,
        along_m=None if row.along_m is None else float(row.along_m),
        offset_m=row.offset_m,
        state=row.state or "UNKNOWN",
        delay_s=None,
        next_stop=None,
        at=rfc3339(at_ms),
        received_at=rfc3339(at_ms + row.latency_ms),
        occupancy=None,
        age_ms=max(0, parts.clock.now_ms() - at_ms),
        from_record=True,
        driven_m=None,
        remaining_m=None,
    )


ROUTERS: Final = (read_location, list_locations, read_history, read_quarantine)
