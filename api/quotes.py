"""What a ride costs: quotes that hold for five minutes, and what is sold beside the seats. For everybody."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, get, post
from litestar.params import FromPath, JSONBody

from api.booking import MoneyOut, SeatLabel, StopWord
from api.callers import booking_of, caller_of, key_of
from api.parts import parts_of
from engine.booking.catalogue import SoldTrip, open_for_sale
from engine.booking.fares import PassengerType
from engine.booking.pricing import one_type_each
from engine.errors import Invalid
from engine.live.frames import rfc3339

SEATS_MAX: Final = 60


class QuoteIn(msgspec.Struct, frozen=True, rename="camel"):
    """Seats by label, or how many of a kind. `from` and `to`: a stop id, or its stop sequence where a stop comes twice."""

    start: StopWord = msgspec.field(name="from")
    end: StopWord = msgspec.field(name="to")
    seats: Annotated[list[SeatLabel], msgspec.Meta(max_length=SEATS_MAX)] = []
    count: Annotated[int, msgspec.Meta(ge=1, le=SEATS_MAX)] | None = None
    kind: Annotated[str, msgspec.Meta(max_length=24)] | None = None  # of the seats that are counted; none: STANDARD
    passengers: Annotated[list[PassengerType], msgspec.Meta(max_length=SEATS_MAX)] = []  # none: adults
    promo_code: Annotated[str, msgspec.Meta(max_length=40)] | None = None


class QuotedSeat(msgspec.Struct, frozen=True):
    seat: str | None  # null where seats were counted
    kind: str
    type: str
    price: MoneyOut  # what is paid, a promo code taken off


class ReasonOut(msgspec.Struct, frozen=True):
    """A step of how the price came about: a factor (permille: 1150 is fifteen per cent more) or an amount."""

    code: str
    detail: str
    permille: int | None
    amount: MoneyOut | None


class QuoteOut(msgspec.Struct, frozen=True, rename="camel"):
    """`quoteId` in a hold by `expiresAt` gets these prices until the hold ends."""

    quote_id: str
    trip_id: str
    start: str = msgspec.field(name="from")
    end: str = msgspec.field(name="to")
    seats: list[QuotedSeat]
    discount: MoneyOut
    booking_fee: MoneyOut  # once a booking, in `total`
    total: MoneyOut
    multiplier: int  # permille of the plain fare, within the operator's bounds
    reasons: list[ReasonOut]
    expires_at: str


class AncillaryOut(msgspec.Struct, frozen=True, rename="camel"):
    code: str
    kind: str
    name: str
    price: MoneyOut
    left: int | None  # null: as many as are asked for
    max_per_passenger: int


class AncillaryItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[AncillaryOut]
    next_cursor: str | None


@post("/trips/{trip_id:str}/quotes", tags=["booking"])
async def quote_seats(request: Request[Any, Any, Any], trip_id: FromPath[str], data: JSONBody[QuoteIn]) -> Response[QuoteOut]:
    """What seats cost now, why, and a price that stays: a hold that names the quote within five minutes gets it. Nothing is held."""
    parts = parts_of(request)
    house = booking_of(parts)
    caller = caller_of(request)
    house.rates.take("quote", caller)
    key = await key_of(request, caller, required=False)
    trip: SoldTrip = open_for_sale(await house.catalogue.trip(trip_id), parts.clock.now_ms())
    start, end = trip.legs(data.start, data.end)
    kinds = _kinds(trip, data)
    types = one_type_each(len(kinds), data.passengers)
    answer = await house.pricing.give(key, trip, start, end, kinds, types, data.promo_code, data.seats)
    headers = {"Idempotency-Replayed": "true"} if answer.replayed else {}
    return Response(_quote_out(trip, start, end, answer.body), status_code=201, headers=headers)


@get("/trips/{trip_id:str}/ancillaries", tags=["booking"])
async def list_ancillaries(request: Request[Any, Any, Any], trip_id: FromPath[str]) -> AncillaryItems:
    """Baggage, meals and the like that a booking of this trip may buy, and how many are left."""
    house = booking_of(parts_of(request))
    trip = await house.catalogue.trip(trip_id)
    found = [
        AncillaryOut(one.code, one.kind, one.name, MoneyOut(one.price, trip.currency), left, one.max_per_passenger)
        for one, left in await house.pricing.ancillaries(trip)
    ]
    return AncillaryItems(found, None)


def _kinds(trip: SoldTrip, data: QuoteIn) -> list[str]:
    """Kind of each seat that is asked for. Raises `Invalid`."""
    if bool(data.seats) == (data.count is not None):
        raise Invalid(
            "name the seats, or say how many", errors=[{"pointer": "/seats", "code": "MISSING_FIELD", "detail": "seats or count"}]
        )
    if data.seats:
        numbers = [trip.number_of(label, f"/seats/{index}") for index, label in enumerate(data.seats)]
        if len(set(numbers)) < len(numbers):
            raise Invalid("a seat is named twice", errors=[{"pointer": "/seats", "code": "SEAT_TWICE", "detail": "each seat once"}])
        return [trip.layout.seat(number).kind for number in numbers]
    known = trip.layout.kinds
    kind = data.kind or ("STANDARD" if "STANDARD" in known else known[0])
    if kind not in known:
        detail = f"{trip.trip_id} has seats of the kinds {', '.join(known)}"
        raise Invalid(detail, errors=[{"pointer": "/kind", "code": "UNKNOWN_KIND", "detail": detail}])
    return [kind] * (data.count or 0)


def _quote_out(trip: SoldTrip, start: int, end: int, body: Any) -> QuoteOut:
    quote, currency = body["quote"], trip.currency
    return QuoteOut(
        quote["quoteId"],
        trip.trip_id,
        trip.stops[start].stop_id,
        trip.stops[end].stop_id,
        [QuotedSeat(one["seat"], one["kind"], one["type"], MoneyOut(one["price"], currency)) for one in body["seats"]],
        MoneyOut(body["discount"], currency),
        MoneyOut(quote.get("bookingFee", 0), currency),
        MoneyOut(body["total"], currency),
        quote["multiplier"],
        [
            ReasonOut(one["code"], one["detail"], one.get("permille"), None if "amount" not in one else MoneyOut(one["amount"], currency))
            for one in quote["reasons"]
        ],
        rfc3339(body["untilMs"]),
    )


ROUTERS: Final = (quote_seats, list_ancillaries)
