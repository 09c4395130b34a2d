"""REST calls of tickets and boarding: a booking's tickets, what a shown ticket is worth, scans, manifest, check-in, a trip's start and end.

A ticket is its holder's (as the booking is). Scans, manifests, start and end are for the operator's people and devices; another operator's
trips are as unknown as those that do not exist. The rules are in engine/booking: this is wire shapes and media types.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, get, post
from litestar.datastructures import ResponseHeader
from litestar.params import FromPath, FromQuery, JSONBody

from api import manifest_page
from api.auth import AGENT, DRIVER, PARTNER_ADMIN, SUPER_ADMIN, need
from api.booking import BookingOut, booking_out
from api.callers import booking_of, caller_of
from api.etags import unchanged
from api.parts import Parts, parts_of
from api.problems import request_id_of
from api.tracking import principal_of
from engine.booking import scans
from engine.booking.boarding import SCANS_MAX, Boarding, ScanIn, ScanOut
from engine.booking.callers import Caller
from engine.booking.catalogue import SoldTrip
from engine.booking.issuing import Seen, Ticket, ms, name_of
from engine.booking.manifest import Manifest, as_csv
from engine.booking.tickets import KeyFile
from engine.errors import Invalid, NotFound, Unavailable
from engine.live.frames import rfc3339

STAFF: Final = (DRIVER, AGENT, PARTNER_ADMIN, SUPER_ADMIN)
PRINTS: Final = {"application/pdf": "pdf", "image/png": "png", "image/svg+xml": "svg"}
PNG_MAX: Final = 6  # tickets one below the other in one picture: five megabytes each while it is drawn
JSON, CSV, HTML = "application/json", "text/csv", "text/html"

Millis = Annotated[int, msgspec.Meta(ge=0, le=4_102_444_800_000)]  # to the year 2100
QrText = Annotated[str, msgspec.Meta(min_length=1, max_length=4_000)]
TripName = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Seq = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class StopOut(msgspec.Struct, frozen=True, rename="camel"):
    stop_id: str
    name: str
    at: str


class TicketOut(msgspec.Struct, frozen=True, rename="camel"):
    """`qr` is the text of the QR code. It stays good through a bus swap; `seat`, `busId` are as of now."""

    seat: str
    passenger: str
    qr: str
    valid_from: str
    valid_to: str
    ticket_id: str
    version: int
    type: str
    state: str
    operator: str
    trip_id: str
    bus_id: str | None
    timezone: str
    start: StopOut = msgspec.field(name="from")
    end: StopOut = msgspec.field(name="to")
    boarded_at: str | None = None


class TicketsOut(msgspec.Struct, frozen=True):
    ref: str
    tickets: list[TicketOut]


class VerifyIn(msgspec.Struct, frozen=True, rename="camel"):
    """`tripId`: the trip at whose door the question is asked; without it, any."""

    qr: QrText
    trip_id: TripName | None = None


class VerifyOut(msgspec.Struct, frozen=True, rename="camel"):
    """`result`: VALID, or why not. What names people is told to the operator's own staff alone; null where unknown or not told."""

    result: str
    meaning: str
    ticket_id: str | None = None
    version: int | None = None
    trip_id: str | None = None
    seat: str | None = None
    valid_from: str | None = None
    valid_to: str | None = None
    boarded_at: str | None = None
    boarded_by: str | None = None
    passenger: str | None = None
    ref: str | None = None


class ScanItem(msgspec.Struct, frozen=True, rename="camel"):
    """`seq`: the device's own number of the scan, by which it counts once. `scannedAtMs`: on the device's clock, for scans made offline."""

    qr: QrText
    trip_id: TripName | None = None
    seq: Seq | None = None
    scanned_at_ms: Millis | None = None


class ScansIn(msgspec.Struct, frozen=True, rename="camel"):
    """One scan (`qr`), or those that a device made offline (`scans`). `deviceTimeMs`: the device's clock as it sends this, so that a wrong
    clock can be put right. `deviceId`: without it, whoever's token this is."""

    device_id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:-]{1,64}$(?!\n)")] | None = None
    device_time_ms: Millis | None = None
    scans: Annotated[list[ScanItem], msgspec.Meta(min_length=1, max_length=SCANS_MAX)] | None = None
    qr: QrText | None = None
    trip_id: TripName | None = None
    seq: Seq | None = None
    scanned_at_ms: Millis | None = None


class ScanResult(msgspec.Struct, frozen=True, rename="camel"):
    """`result` BOARDED: the first valid scan of its ticket. `boardedAt`, `boardedBy`: by the scan that boarded it."""

    result: str
    meaning: str
    seq: int | None
    ticket_id: str | None
    ref: str | None
    trip_id: str | None
    seat: str | None
    passenger: str | None
    start: str | None = msgspec.field(name="from")
    end: str | None = msgspec.field(name="to")
    boarded_at: str | None = None
    boarded_by: str | None = None


class ScansOut(msgspec.Struct, frozen=True, rename="camel"):
    """One result for each scan, in their order; of a single one also as `result`."""

    items: list[ScanResult]
    server_time_ms: int
    result: str | None = None
    meaning: str | None = None
    boarded_at: str | None = None
    boarded_by: str | None = None


class CheckInIn(msgspec.Struct, frozen=True, rename="camel"):
    """`tripId`: one way of a return trip; without it, all whose time it is."""

    trip_id: TripName | None = None


class TripTurned(msgspec.Struct, frozen=True, rename="camel"):
    trip_id: str
    status: str
    version: int
    bus_id: str | None
    departs_at: str
    arrives_at: str


# ------------------------------------------------------------------------------------------------ tickets


@get(
    "/bookings/{ref:str}/ticket",
    tags=["booking"],
    response_headers=[ResponseHeader(name="ETag", description="of the print", documentation_only=True)],
)
async def read_tickets(request: Request[Any, Any, Any], ref: FromPath[str], seat: FromQuery[str | None] = None) -> Response[TicketsOut]:
    """The tickets of a booking that is paid for, as JSON, PDF (a page each), PNG or SVG by `Accept`; of one seat with `seat`."""
    parts = parts_of(request)
    boarding = boarding_of(parts)
    caller = caller_of(request)
    shown = await booking_of(parts).desk.show(caller, reference=ref.upper())
    mine = await boarding.issuer.tickets(shown, caller)
    if seat is not None:
        mine = [one for one in mine if one.seat == seat]
        if not mine:
            raise NotFound(f"booking {shown['ref']} has no ticket for seat {seat[:20]!r}")
    kind = request.accept.best_match([JSON, *PRINTS]) or JSON
    headers = {"Cache-Control": "private, no-cache", "Vary": "Accept, Authorization, X-Hold-Token"}
    if kind == JSON:
        return Response(TicketsOut(shown["ref"], [_ticket_out(one) for one in mine]), headers=headers)
    if kind == "image/png" and len(mine) > PNG_MAX:
        fault = {"pointer": "?seat", "code": "TOO_MANY_SEATS", "detail": f"at most {PNG_MAX} tickets are one picture"}
        raise Invalid(f"{len(mine)} tickets are too many for one picture; ask for one with seat, or for a PDF", errors=[fault])
    headers["ETag"] = tag = f'"{boarding.press.tag(kind, mine)}"'
    if unchanged(request, tag):
        return _plain(b"", None, headers, status=304)
    headers["Content-Disposition"] = f'inline; filename="ticket-{shown["ref"]}.{PRINTS[kind]}"'
    return _plain(await boarding.press.print(kind, mine), kind, headers)


@get("/tickets/keys", tags=["boarding"])
async def read_keys(request: Request[Any, Any, Any]) -> Response[KeyFile]:
    """The public keys of tickets, also of those that sign no more: all that verifying offline needs."""
    keys = await boarding_of(parts_of(request)).issuer.published()
    newest = keys.keys[-1] if keys.keys else None
    tag = f'"{len(keys.keys)}-{newest.public_key[:12] if newest else ""}"'
    headers = {"ETag": tag, "Cache-Control": "public, max-age=300"}
    if unchanged(request, tag):
        return _plain(b"", None, headers, status=304)
    return Response(keys, headers=headers)


@post("/tickets/verify", tags=["boarding"], status_code=200)
async def verify_ticket(request: Request[Any, Any, Any], data: JSONBody[VerifyIn]) -> VerifyOut:
    """What a ticket is worth now. Changes nothing: scanning boards. For everybody; names only for the operator's staff."""
    parts = parts_of(request)
    caller = caller_of(request)
    booking_of(parts).rates.take("verify", caller)
    return _verified(await boarding_of(parts).issuer.seen(data.qr, data.trip_id), caller)


# ------------------------------------------------------------------------------------------------ boarding


@post("/tickets/scans", tags=["boarding"], status_code=200)
async def scan_tickets(request: Request[Any, Any, Any], data: JSONBody[ScansIn]) -> ScansOut:
    """Board passengers: one scan, or what a device scanned offline. Sent again, each (device, seq) counts once."""
    parts = parts_of(request)
    caller = scanner_of(parts, request)
    if (data.scans is None) == (data.qr is None):
        fault = {"pointer": "/qr", "code": "MISSING_FIELD", "detail": "one scan in qr, or several in scans"}
        raise Invalid("send qr for one scan, or scans for several", errors=[fault])
    if data.qr is not None:
        given = [ScanIn(data.qr, data.trip_id, data.seq, data.scanned_at_ms)]
    else:
        given = [ScanIn(one.qr, one.trip_id or data.trip_id, one.seq, one.scanned_at_ms) for one in data.scans or ()]
    device = data.device_id or str(caller.subject)[:64]
    done = [_scan_result(one) for one in await boarding_of(parts).scan(caller, device, data.device_time_ms, given)]
    one = done[0] if data.qr is not None else None
    return ScansOut(
        items=done,
        server_time_ms=parts.clock.now_ms(),
        result=one.result if one else None,
        meaning=one.meaning if one else None,
        boarded_at=one.boarded_at if one else None,
        boarded_by=one.boarded_by if one else None,
    )


@get("/trips/{trip_id:str}/manifest", tags=["boarding"])
async def read_manifest(request: Request[Any, Any, Any], trip_id: FromPath[str]) -> Response[Manifest]:
    """Who travels, by seat; with the keys and revocations that an offline scanner needs. JSON, CSV, or a page to print, by `Accept`."""
    parts = parts_of(request)
    boarding = boarding_of(parts)
    manifest = await boarding.manifests.of(await boarding.trip_of(scanner_of(parts, request), trip_id))
    headers = {"Cache-Control": "private, no-store", "Vary": "Accept, Authorization"}
    kind = request.accept.best_match([JSON, CSV, HTML]) or JSON
    if kind == CSV:
        name = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in trip_id)
        headers["Content-Disposition"] = f'attachment; filename="manifest-{name}.csv"'
        return _plain(as_csv(manifest).encode(), "text/csv; charset=utf-8; header=present", headers)
    if kind == HTML:
        return _plain(manifest_page.page(manifest).encode(), "text/html; charset=utf-8", headers)
    return Response(manifest, headers=headers)


@post("/bookings/{ref:str}/check-in", tags=["boarding"], status_code=200)
async def check_in(request: Request[Any, Any, Any], ref: FromPath[str], data: JSONBody[CheckInIn | None] = None) -> Response[BookingOut]:
    """Say that you come. Doing it again changes nothing."""
    parts = parts_of(request)
    desk = booking_of(parts).desk
    caller = caller_of(request)
    shown = await desk.show(caller, reference=ref.upper())
    await boarding_of(parts).check_in(caller, shown, data.trip_id if data is not None else None)
    made = await booking_out(desk, await desk.show(caller, reference=ref.upper()))
    return Response(made, headers={"ETag": f'"{made.version}"'})


@post("/trips/{trip_id:str}/start", tags=["operations"], status_code=200)
async def start_trip(request: Request[Any, Any, Any], trip_id: FromPath[str]) -> TripTurned:
    """The bus leaves: SCHEDULED -> STARTED, and nobody buys any more. Doing it again changes nothing."""
    parts = parts_of(request)
    return _turned(await boarding_of(parts).start(_crew(parts, request), trip_id))


@post("/trips/{trip_id:str}/end", tags=["operations"], status_code=200)
async def end_trip(request: Request[Any, Any, Any], trip_id: FromPath[str]) -> TripTurned:
    """The bus has arrived: STARTED -> COMPLETED; who boarded has travelled, who has not come is a no-show."""
    parts = parts_of(request)
    return _turned(await boarding_of(parts).end(_crew(parts, request), trip_id))


# ------------------------------------------------------------------------------------------------ how they are made


def boarding_of(parts: Parts) -> Boarding:
    """Raises `Unavailable` where this process has none."""
    boarding = booking_of(parts).boarding
    if boarding is None:
        raise Unavailable("this worker does no boarding", retry_after_s=5)
    return boarding


def scanner_of(parts: Parts, request: Request[Any, Any, Any]) -> Caller:
    """The operator's people by their access token, or one of its devices by its own. Raises `Unauthenticated`, `Forbidden`."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    device = parts.registry.by_token(token.strip()) if parts.registry is not None and kind.lower() == "bearer" else None
    if device is not None:
        request_id = request_id_of(request.scope)
        return Caller(request_id=request_id, subject=device.device_id, role="DEVICE", partner_id=device.partner_id)
    need(principal_of(parts, request), *STAFF)
    return caller_of(request)


def _crew(parts: Parts, request: Request[Any, Any, Any]) -> Caller:
    need(principal_of(parts, request), DRIVER, PARTNER_ADMIN, SUPER_ADMIN)
    return caller_of(request)


def _plain(body: bytes, kind: str | None, headers: dict[str, str], status: int = 200) -> Response[Any]:
    """An answer that is no JSON: the schema of a call is that of its JSON; api/openapi.py names its other media types."""
    return Response(body, status_code=status, media_type=kind, headers=headers)


def _ticket_out(one: Ticket) -> TicketOut:
    return TicketOut(
        seat=one.seat,
        passenger=one.passenger,
        qr=one.qr,
        valid_from=rfc3339(one.valid_from_ms),
        valid_to=rfc3339(one.valid_to_ms),
        ticket_id=one.ticket_id,
        version=one.version,
        type=one.type,
        state=one.state,
        operator=one.operator,
        trip_id=one.trip.trip_id,
        bus_id=one.trip.bus_id,
        timezone=one.trip.timezone,
        start=StopOut(one.start.stop_id, one.start.name, rfc3339(one.start.departs_at_ms)),
        end=StopOut(one.end.stop_id, one.end.name, rfc3339(one.end.arrives_at_ms)),
        boarded_at=_when(one.boarded_at_ms),
    )


def _verified(seen: Seen, caller: Caller) -> VerifyOut:
    row, payload = seen.row, seen.payload
    said = VerifyOut(seen.result, scans.MEANINGS[seen.result])
    if row is None or payload is None or seen.trip is None:
        return said
    ours = caller.staff_of(row["partner_id"])
    return msgspec.structs.replace(
        said,
        ticket_id=row["ticket_id"],
        version=payload.version,
        trip_id=seen.trip.trip_id,
        seat=seen.seat,
        valid_from=rfc3339(payload.valid_from_s * 1000),
        valid_to=rfc3339(payload.valid_to_s * 1000),
        boarded_at=None if row["boarded_at"] is None else rfc3339(ms(row["boarded_at"])),
        boarded_by=row["boarded_by"] if ours else None,
        passenger=name_of(row) if ours else None,
        ref=row["reference"] if ours else None,
    )


def _scan_result(one: ScanOut) -> ScanResult:
    return ScanResult(
        result=one.result,
        meaning=scans.MEANINGS[one.result],
        seq=one.seq,
        ticket_id=one.ticket_id,
        ref=one.reference,
        trip_id=one.trip_id,
        seat=one.seat,
        passenger=one.passenger,
        start=one.from_stop,
        end=one.to_stop,
        boarded_at=_when(one.boarded_at_ms),
        boarded_by=one.boarded_by,
    )


def _turned(trip: SoldTrip) -> TripTurned:
    return TripTurned(trip.trip_id, trip.status, trip.version, trip.bus_id, rfc3339(trip.departs_at_ms), rfc3339(trip.arrives_at_ms))


def _when(at_ms: int | None) -> str | None:
    return None if at_ms is None else rfc3339(at_ms)


ROUTERS: Final = (
    read_tickets, read_keys, verify_ticket, scan_tickets, read_manifest, check_in, start_trip, end_trip,
)  # fmt: skip
