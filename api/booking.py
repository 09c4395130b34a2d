"""REST calls of the booking desk: hold, extend, let go, book, look at, look up. For everybody; what is not yours is 404.

A guest needs no account: the hold answers `holdToken`, which goes into `X-Hold-Token` of everything that follows. Each handler turns wire
shapes into what engine/booking/desk.py takes and back; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody

from api.auth import AGENT, PARTNER_ADMIN, SUPER_ADMIN, need
from api.callers import booking_of, caller_of, key_of
from api.etags import unchanged
from api.network import Cursor, Limit
from api.parts import parts_of
from api.tracking import principal_of
from engine.booking.booking import HELD, PENDING_PAYMENT, shown_state
from engine.booking.desk import Desk, Hold, Named, Wish
from engine.booking.extras import Asked
from engine.booking.fares import ADULT
from engine.errors import Invalid, NotFound
from engine.live.frames import rfc3339

SeatLabel = Annotated[str, msgspec.Meta(min_length=1, max_length=12)]
StopWord = Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | Annotated[int, msgspec.Meta(ge=0, le=100_000)]
PersonName = Annotated[str, msgspec.Meta(min_length=1, max_length=100, pattern=r"\S")]
HoldId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$(?!\n)")]
NEWEST: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"  # ids of bookings rise with time: all of them come before it


class MoneyOut(msgspec.Struct, frozen=True):
    """Minor units of the currency (ISO 4217): DZD 1500 is 15.00, JPY 1500 is 1,500."""

    amount: int
    currency: str


class SeatChoice(msgspec.Struct, frozen=True):
    """So many seats, the best that are free."""

    count: Annotated[int, msgspec.Meta(ge=1, le=60)]
    prefer: Annotated[list[Annotated[str, msgspec.Meta(max_length=20)]], msgspec.Meta(max_length=8)] = []


class HoldIn(msgspec.Struct, frozen=True, rename="camel"):
    """Seats by label, or how many. `from` and `to`: a stop id, or its stop sequence where a stop comes twice."""

    seats: Annotated[list[SeatLabel], msgspec.Meta(min_length=1, max_length=100)] | SeatChoice
    start: StopWord = msgspec.field(name="from")
    end: StopWord = msgspec.field(name="to")
    pick_id: Annotated[str, msgspec.Meta(max_length=100)] | None = None
    quote_id: Annotated[str, msgspec.Meta(max_length=100)] | None = None
    promo_code: Annotated[str, msgspec.Meta(max_length=40)] | None = None
    currency: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}$(?!\n)")] | None = None  # what the caller expects to pay in


class PricedSeat(msgspec.Struct, frozen=True):
    seat: str
    price: MoneyOut


class HoldOut(msgspec.Struct, frozen=True, rename="camel"):
    id: str
    trip_id: str
    start: str = msgspec.field(name="from")
    end: str = msgspec.field(name="to")
    seats: list[PricedSeat] = []
    total: MoneyOut = MoneyOut(0, "")
    status: str = HELD
    expires_at: str = ""
    hold_token: str | None = None  # only when it is made
    version: int = 1


class PassengerIn(msgspec.Struct, frozen=True, rename="camel"):
    seat: SeatLabel
    first_name: PersonName
    last_name: PersonName
    type: Annotated[str, msgspec.Meta(max_length=20)] = ADULT
    trip_id: Annotated[str, msgspec.Meta(max_length=200)] | None = None  # of a return trip whose two ways both have this seat
    detail: dict[Annotated[str, msgspec.Meta(max_length=40)], str | int | bool | None] | None = None


class ContactIn(msgspec.Struct, frozen=True):
    """Where word of changes goes; one of the two."""

    email: Annotated[str, msgspec.Meta(max_length=254, pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$(?!\n)")] | None = None
    phone: Annotated[str, msgspec.Meta(max_length=20, pattern=r"^\+?[0-9][0-9 ().-]{4,}$(?!\n)")] | None = None


class AncillaryIn(msgspec.Struct, frozen=True, rename="camel"):
    code: Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
    count: Annotated[int, msgspec.Meta(ge=1, le=50)] = 1
    seat: SeatLabel | None = None
    trip_id: Annotated[str, msgspec.Meta(max_length=200)] | None = None


class BookingIn(msgspec.Struct, frozen=True, rename="camel"):
    """`holdIds`: two holds, there and back, as one booking."""

    passengers: Annotated[list[PassengerIn], msgspec.Meta(min_length=1, max_length=120)]
    contact: ContactIn
    hold_id: HoldId | None = None
    hold_ids: Annotated[list[HoldId], msgspec.Meta(min_length=1, max_length=2)] = []
    promo_code: Annotated[str, msgspec.Meta(max_length=40)] | None = None
    ancillaries: Annotated[list[AncillaryIn], msgspec.Meta(max_length=50)] = []


class PassengerOut(msgspec.Struct, frozen=True, rename="camel"):
    trip_id: str
    seat: str
    first_name: str
    last_name: str
    type: str
    price: MoneyOut
    status: str


class BoughtOut(msgspec.Struct, frozen=True):
    """What was bought beside the seats: `count` of it at `price` each."""

    code: str
    name: str
    count: int
    price: MoneyOut
    seat: str | None  # null: of nobody in particular


class JourneyOut(msgspec.Struct, frozen=True, rename="camel"):
    """One trip of a booking."""

    id: str
    trip_id: str
    route_id: str
    start: str = msgspec.field(name="from")
    end: str = msgspec.field(name="to")
    from_name: str = ""
    to_name: str = ""
    departs_at: str = ""
    arrives_at: str = ""
    seats: list[str] = []
    status: str = ""
    total: MoneyOut = MoneyOut(0, "")
    ancillaries: list[BoughtOut] = []


class BookingOut(msgspec.Struct, frozen=True, rename="camel"):
    ref: str | None
    status: str
    total: MoneyOut
    passengers: list[PassengerOut]
    expires_at: str | None  # null once it is paid, or over
    version: int
    trips: list[JourneyOut]
    contact: dict[str, Any] | None
    hold_ids: list[str]
    paying: bool


class BookingItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[BookingOut]
    next_cursor: str | None


class LookupIn(msgspec.Struct, frozen=True, rename="camel"):
    ref: Annotated[str, msgspec.Meta(min_length=1, max_length=20)]
    last_name: PersonName


class LookupOut(msgspec.Struct, frozen=True, rename="camel"):
    """`holdToken` opens this booking until `tokenExpiresAt`: send it as X-Hold-Token."""

    booking: BookingOut
    hold_token: str
    token_expires_at: str


class ReleasedOut(msgspec.Struct, frozen=True):
    id: str
    status: Literal["RELEASED"]
    version: int


# ------------------------------------------------------------------------------------------------ holds


@post("/trips/{trip_id:str}/holds", tags=["booking"])
async def hold_seats(request: Request[Any, Any, Any], trip_id: FromPath[str], data: JSONBody[HoldIn]) -> Response[HoldOut]:
    """Hold seats for the legs between two stops, all or none, before any money is asked. Guests may; operators' desks have no limits."""
    house = booking_of(parts_of(request))
    desk = house.desk
    caller = caller_of(request)
    house.rates.take("hold", caller)
    key = await key_of(request, caller)
    if data.currency is not None:
        trip = await desk.catalogue.trip(trip_id)
        if trip.currency != data.currency:
            raise Invalid(
                f"{trip_id} is sold in {trip.currency}",
                errors=[{"pointer": "/currency", "code": "WRONG_CURRENCY", "detail": f"{trip.currency}, not {data.currency}"}],
            )
    chosen = data.seats
    wish = Wish(
        start=data.start,
        end=data.end,
        labels=tuple(chosen) if isinstance(chosen, list) else (),
        count=0 if isinstance(chosen, list) else chosen.count,
        prefer=() if isinstance(chosen, list) else tuple(chosen.prefer),
        pick_id=data.pick_id,
        quote_id=data.quote_id,
        promo=data.promo_code,
        queue_token=request.headers.get("x-queue-token"),
    )
    made: Hold = await desk.hold(caller, key, trip_id, wish)
    headers = {"ETag": f'"{made.held.version}"', "Location": f"/v1/holds/{made.held.booking}"}
    if made.held.replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(_hold_out(made), status_code=201, headers=headers)


@get("/holds/{hold_id:str}", tags=["booking"])
async def read_hold(request: Request[Any, Any, Any], hold_id: FromPath[str]) -> Response[HoldOut]:
    """A hold of yours: its seats and prices, and when it ends."""
    desk = booking_of(parts_of(request)).desk
    shown = await desk.show(caller_of(request), booking_id=_uuid(hold_id))
    return await _hold_of(desk, shown, hold_id)


@delete("/holds/{hold_id:str}", tags=["booking"], status_code=200)
async def release_hold(request: Request[Any, Any, Any], hold_id: FromPath[str]) -> Response[ReleasedOut]:
    """Let the seats go, also those of a booking that nobody has paid. Doing it again changes nothing."""
    desk = booking_of(parts_of(request)).desk
    caller = caller_of(request)
    key = await key_of(request, caller, required=False)
    said = await desk.release(caller, key, _uuid(hold_id))
    headers = {"Idempotency-Replayed": "true"} if said.get("replayed") else {}
    return Response(ReleasedOut(hold_id, "RELEASED", said["version"]), headers=headers)


@post("/holds/{hold_id:str}/extend", tags=["booking"], status_code=200)
async def extend_hold(request: Request[Any, Any, Any], hold_id: FromPath[str]) -> Response[HoldOut]:
    """Hold longer: a full time from now, within the longest life of a hold."""
    desk = booking_of(parts_of(request)).desk
    shown = await desk.extend(caller_of(request), _uuid(hold_id))
    return await _hold_of(desk, shown, hold_id)


# ------------------------------------------------------------------------------------------------ bookings

SHOWN: Final = ResponseSpec(BookingOut, generate_examples=False, description="the booking")


@post("/bookings", tags=["booking"])
async def book(request: Request[Any, Any, Any], data: JSONBody[BookingIn]) -> Response[BookingOut]:
    """A hold (or two: there and back) with a passenger for each seat becomes a booking that waits for its payment."""
    desk = booking_of(parts_of(request)).desk
    caller = caller_of(request)
    key = await key_of(request, caller)
    hold_ids = data.hold_ids or ([data.hold_id] if data.hold_id is not None else [])
    if not hold_ids or (data.hold_id is not None and data.hold_ids) or len(set(hold_ids)) != len(hold_ids):
        raise Invalid(
            "name the hold in holdId, or two different ones in holdIds", errors=[_fault("/holdId", "MISSING_FIELD", "which hold")]
        )
    if data.contact.email is None and data.contact.phone is None:
        raise Invalid(
            "contact needs an e-mail address or a telephone number", errors=[_fault("/contact", "MISSING_FIELD", "email or phone")]
        )
    named = [Named(**{name: getattr(one, name) for name in one.__struct_fields__}) for one in data.passengers]
    asked = [Asked(one.code, one.count, one.seat, one.trip_id) for one in data.ancillaries]
    contact = {name: value for name, value in (("email", data.contact.email), ("phone", data.contact.phone)) if value is not None}
    shown, replayed = await desk.book(caller, key, hold_ids, named, contact, asked, data.promo_code)
    made = await booking_out(desk, shown)
    headers = {"ETag": f'"{made.version}"', "Location": f"/v1/bookings/{made.ref}"}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(made, status_code=201, headers=headers)


@get("/bookings/{ref:str}", tags=["booking"], responses={200: SHOWN})
async def read_booking(request: Request[Any, Any, Any], ref: FromPath[str]) -> Response[Any]:
    """A booking of yours."""
    desk = booking_of(parts_of(request)).desk
    made = await booking_out(desk, await desk.show(caller_of(request), reference=ref.upper()))
    tag = f'"{made.version}"'
    if made.status not in (HELD, PENDING_PAYMENT) and unchanged(request, tag):  # until then its end may move without a move of the booking
        return Response(None, status_code=304, headers={"ETag": tag})
    return Response(made, headers={"ETag": tag, "Cache-Control": "private, no-cache"})


@get("/bookings", tags=["booking"])
async def list_bookings(
    request: Request[Any, Any, Any],
    limit: Limit = 20,
    cursor: Cursor = None,
    trip: FromQuery[str | None] = None,
    partner: FromQuery[str | None] = None,
) -> BookingItems:
    """An operator's bookings, newest first; of one trip with `trip`."""
    parts = parts_of(request)
    who = need(principal_of(parts, request), AGENT, PARTNER_ADMIN, SUPER_ADMIN)
    wanted = partner or who.partner_id
    if wanted is None:
        raise Invalid("say which operator: ?partner=ID", errors=[_fault("?partner", "MISSING_FIELD", "which operator")])
    if who.role != SUPER_ADMIN and wanted != who.partner_id:
        raise NotFound(f"no operator {wanted[:80]!r}, or not yours")
    desk = booking_of(parts).desk
    trip_no = (await desk.catalogue.trip(trip)).trip_no if trip is not None else None
    rows = await desk.bookings.of_partner(wanted, _before(cursor), limit + 1, trip_no)
    return await _items(desk, rows, limit)


@get("/users/me/bookings", tags=["booking"])
async def list_my_bookings(request: Request[Any, Any, Any], limit: Limit = 20, cursor: Cursor = None) -> BookingItems:
    """What you have booked, newest first."""
    parts = parts_of(request)
    caller = caller_of(request)
    need(principal_of(parts, request), "CUSTOMER", "DRIVER", AGENT, PARTNER_ADMIN, SUPER_ADMIN)
    desk = booking_of(parts).desk
    rows = await desk.bookings.of_holder(caller.actor, _before(cursor), limit + 1)
    return await _items(desk, rows, limit)


@post("/bookings/lookup", tags=["booking"], status_code=200)
async def look_up(request: Request[Any, Any, Any], data: JSONBody[LookupIn]) -> LookupOut:
    """A booking by its reference and a passenger's surname, with a token that opens it for half an hour. Rate limited."""
    house = booking_of(parts_of(request))
    desk = house.desk
    caller = caller_of(request)
    house.rates.take("lookup", caller)
    shown, token, until_ms = await desk.lookup(data.ref, data.last_name)
    return LookupOut(await booking_out(desk, shown), token, rfc3339(until_ms))


# ------------------------------------------------------------------------------------------------ how they are made


def _fault(pointer: str, code: str, detail: str) -> dict[str, str]:
    return {"pointer": pointer, "code": code, "detail": detail}


def _uuid(text: str) -> str:
    """The id, or one that nothing has: what is not a UUID names no hold."""
    try:
        return msgspec.convert(text.lower(), HoldId)
    except msgspec.ValidationError:
        return "00000000-0000-0000-0000-000000000000"


def _hold_out(made: Hold) -> HoldOut:
    trip, held = made.trip, made.held
    return HoldOut(
        held.booking,
        trip.trip_id,
        trip.stops[held.from_].stop_id,
        trip.stops[held.to].stop_id,
        [PricedSeat(label, MoneyOut(price, trip.currency)) for label, price in zip(made.labels, held.prices, strict=True)],
        MoneyOut(sum(held.prices), trip.currency),
        HELD,
        rfc3339(round(held.until.timestamp() * 1000)),
        made.token,
        held.version,
    )


async def _hold_of(desk: Desk, shown: Any, hold_id: str) -> Response[HoldOut]:
    row = next((row for row in shown["rows"] if row["id"] == hold_id.lower()), shown["rows"][0])
    trip = await desk.catalogue.by_no(row["tripNo"])
    labels = await desk.catalogue.labels(trip, row["map"])
    out = HoldOut(
        row["id"],
        trip.trip_id,
        trip.stops[row["from"]].stop_id,
        trip.stops[row["to"]].stop_id,
        [PricedSeat(labels[n - 1], MoneyOut(price, row["currency"])) for n, price in zip(row["seats"], row["prices"], strict=True)],
        MoneyOut(sum(row["prices"]), row["currency"]),
        _state(row),
        rfc3339(_when_ms(row["until"])),
        None,
        row["version"],
    )
    return Response(out, status_code=200, headers={"ETag": f'"{out.version}"'})


def _state(row: Any) -> str:
    """Of a row as people see it: one past its end is over, whether or not it has been tidied away."""
    return "EXPIRED" if row["over"] else str(row["state"])


def _when_ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


async def booking_out(desk: Desk, shown: Any) -> BookingOut:
    """The wire shape of what `booking.shown` tells."""
    passengers, journeys = [], []
    for row in shown["rows"]:
        trip = await desk.catalogue.by_no(row["tripNo"])
        labels = await desk.catalogue.labels(trip, row["map"])
        currency = row["currency"]
        for one in row["passengers"]:
            price = MoneyOut(one["price"], currency)
            label = labels[one["seat"] - 1]
            passengers.append(PassengerOut(trip.trip_id, label, one["firstName"], one["lastName"], one["type"], price, one["state"]))
        start, end = trip.stops[row["from"]], trip.stops[row["to"]]
        journeys.append(
            JourneyOut(
                row["id"],
                trip.trip_id,
                trip.route_id,
                start.stop_id,
                end.stop_id,
                start.name,
                end.name,
                rfc3339(start.departs_at_ms),
                rfc3339(end.arrives_at_ms),
                [labels[n - 1] for n in row["seats"]],
                _state(row),
                MoneyOut(_total(row), currency),
                [
                    BoughtOut(
                        one["code"],
                        one["name"],
                        one["count"],
                        MoneyOut(one["price"], currency),
                        labels[one["seat"] - 1] if one["seat"] else None,
                    )
                    for one in row.get("bought") or ()
                ],
            ),
        )
    rows = shown["rows"]
    status = shown_state([_state(row) for row in rows])
    waits = status in (HELD, PENDING_PAYMENT)
    return BookingOut(
        shown["ref"],
        status,
        MoneyOut(sum(map(_total, rows)), rows[0]["currency"]),
        passengers,
        rfc3339(min(_when_ms(row["until"]) for row in rows)) if waits else None,
        sum(row["version"] for row in rows) - len(rows) + 1,
        journeys,
        shown["contact"],
        [row["id"] for row in rows],
        any(row["paying"] for row in rows),
    )


def _total(row: Any) -> int:
    return int(row["total"]) if row["total"] is not None else sum(row["prices"])


def _before(cursor: str | None) -> str:
    """The id of the last booking of the page before. Raises `Invalid`."""
    try:
        return NEWEST if cursor is None else msgspec.convert(cursor, HoldId)
    except msgspec.ValidationError as fault:
        raise Invalid("cursor must be the nextCursor of an earlier page") from fault


async def _items(desk: Desk, rows: Sequence[Any], limit: int) -> BookingItems:
    found = [await booking_out(desk, await desk.bookings.shown(reference=row["reference"])) for row in rows[:limit]]
    return BookingItems(found, rows[limit - 1]["lead_id"] if len(rows) > limit else None)


ROUTERS: Final = (
    hold_seats,
    read_hold,
    release_hold,
    extend_hold,
    book,
    read_booking,
    list_bookings,
    list_my_bookings,
    look_up,
)
