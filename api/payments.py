"""REST calls of payments: begin one, confirm it, look at it, give money back, and what providers post to us.

No card number is ever taken: card data goes from the customer's device to the provider, we see tokens. A body with something like one in it is
refused before anything reads it, and nothing of it is repeated or logged.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Request, Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody

from api.auth import AGENT, PARTNER_ADMIN, SUPER_ADMIN, need
from api.booking import MoneyOut, SeatLabel
from api.callers import answered, booking_of, caller_of, key_of
from api.parts import parts_of
from api.problems import request_id_of
from api.tracking import principal_of
from engine.booking.money import AMOUNT_MAX, Money
from engine.booking.payments import UUID, refuse_card_numbers
from engine.booking.providers import scenario_of
from engine.errors import Invalid, NotFound

Id = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$(?!\n)")]
Reference = Annotated[str, msgspec.Meta(min_length=1, max_length=20)]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
Status = Literal["INITIATED", "IN_PROGRESS", "CONFIRMED", "FAILED", "OFFER_OTHER_SEATS", "REFUNDING", "REFUNDED", "CHARGED_BACK"]


class InitiateIn(msgspec.Struct, frozen=True, rename="camel"):
    """`scenario`: faults that a simulated provider is to play, one word or several (docs/payments.md)."""

    booking_ref: Reference
    provider: Word
    scenario: Word | Annotated[list[Word], msgspec.Meta(max_length=10)] | None = None


class ConfirmIn(msgspec.Struct, frozen=True, rename="camel"):
    payment_id: Id


class AmountIn(msgspec.Struct, frozen=True):
    amount: Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MAX)]
    currency: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}$(?!\n)")]


class RefundIn(msgspec.Struct, frozen=True, rename="camel"):
    """Of a payment, or of the payment of a booking that has so much left."""

    amount: AmountIn
    payment_id: Id | None = None
    booking_ref: Reference | None = None
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] = "asked for"


class SeatsOfTrip(msgspec.Struct, frozen=True, rename="camel"):
    trip_id: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    seats: Annotated[list[SeatLabel], msgspec.Meta(min_length=1, max_length=60)]


class OtherSeatsIn(msgspec.Struct, frozen=True):
    """Other seats, as many as were booked; or `refund`: the money back."""

    trips: Annotated[list[SeatsOfTrip], msgspec.Meta(max_length=2)] = []
    refund: bool = False


class PaymentOut(msgspec.Struct, frozen=True, rename="camel"):
    """`reason`: of a failure, an offer or a refund."""

    id: str
    status: Status
    booking_ref: str | None
    provider: str
    amount: MoneyOut
    refunded: MoneyOut
    reason: str | None


class RefundOut(msgspec.Struct, frozen=True, rename="camel"):
    """PENDING: promised, the provider could not just now. AT_COUNTER: paid in cash, so given back in cash."""

    id: str
    payment_id: str
    status: Literal["PENDING", "DONE", "FAILED", "SUPERSEDED", "AT_COUNTER"]
    amount: MoneyOut
    reason: str


class HeardOut(msgspec.Struct, frozen=True):
    received: int


@post("/payments/initiate", tags=["payments"])
async def initiate_payment(request: Request[Any, Any, Any], data: JSONBody[InitiateIn]) -> Response[PaymentOut]:
    """Begin to pay for a booking; its seats are kept while the payment goes on. One payment at a time."""
    refuse_card_numbers(await request.body())
    caller = caller_of(request)
    key = await key_of(request, caller)
    paying = booking_of(parts_of(request)).paying
    return answered(await paying.initiate(caller, key, data.booking_ref.upper(), data.provider, scenario_of(data.scenario)))


@post(
    "/payments/confirm",
    tags=["payments"],
    status_code=200,
    responses={202: ResponseSpec(PaymentOut, description="The customer has not answered yet; ask again", generate_examples=False)},
)
async def confirm_payment(request: Request[Any, Any, Any], data: JSONBody[ConfirmIn]) -> Response[PaymentOut]:
    """Take the money: the booking is confirmed and its tickets are issued. 202 while a wallet's customer has not answered yet."""
    refuse_card_numbers(await request.body())
    caller = caller_of(request)
    key = await key_of(request, caller)
    answer = await booking_of(parts_of(request)).paying.confirm(caller, key, data.payment_id.lower())
    return answered(answer, {"Retry-After": "2"} if answer.status == 202 else None)


@get("/payments/{payment_id:str}/status", tags=["payments"])
async def read_payment(request: Request[Any, Any, Any], payment_id: FromPath[str]) -> PaymentOut:
    """A payment of yours."""
    paying = booking_of(parts_of(request)).paying
    return msgspec.convert(await paying.status(caller_of(request), _id(payment_id)), PaymentOut)


@post("/payments/{payment_id:str}/seats", tags=["payments"], status_code=200)
async def choose_other_seats(
    request: Request[Any, Any, Any], payment_id: FromPath[str], data: JSONBody[OtherSeatsIn]
) -> Response[PaymentOut]:
    """The money came after the seats were gone (OFFER_OTHER_SEATS): take others, or have it back."""
    caller = caller_of(request)
    key = await key_of(request, caller)
    paying = booking_of(parts_of(request)).paying
    if data.refund != (not data.trips):
        raise Invalid(
            "choose seats or a refund", errors=[{"pointer": "/trips", "code": "MISSING_FIELD", "detail": "seats of each trip, or refund"}]
        )
    if data.refund:
        return Response(msgspec.convert(await paying.decline_seats(caller, _id(payment_id)), PaymentOut))
    return answered(await paying.choose_seats(caller, key, _id(payment_id), {trip.trip_id: trip.seats for trip in data.trips}))


@post("/payments/refund", tags=["payments"])
async def refund_payment(request: Request[Any, Any, Any], data: JSONBody[RefundIn]) -> Response[RefundOut]:
    """Give money back, never more than is left of what was taken. For the operator's people."""
    refuse_card_numbers(await request.body())
    need(principal_of(parts_of(request), request), AGENT, PARTNER_ADMIN, SUPER_ADMIN)
    caller = caller_of(request)
    key = await key_of(request, caller)
    if (data.payment_id is None) == (data.booking_ref is None):
        raise Invalid(
            "name the payment or the booking", errors=[{"pointer": "/paymentId", "code": "MISSING_FIELD", "detail": "or bookingRef"}]
        )
    paying = booking_of(parts_of(request)).paying
    reference = data.booking_ref.upper() if data.booking_ref is not None else None
    payment_id = data.payment_id.lower() if data.payment_id is not None else None
    amount = Money(data.amount.amount, data.amount.currency)
    return answered(await paying.refund(caller, key, payment_id, reference, amount, data.reason))


@post("/payments/webhooks/{provider:str}", tags=["payments"], status_code=200)
async def hear_provider(request: Request[Any, Any, Any], provider: FromPath[str]) -> HeardOut:
    """What a payment provider posts to us, signed: `Webhook-Signature: t=<unix seconds>,v1=<hex HMAC-SHA256 of "t.body">`. Heard twice, it
    counts once; of a payment that nobody knows it is kept."""
    body = await request.body()
    headers = {name.lower(): value for name, value in request.headers.items()}
    paying = booking_of(parts_of(request)).paying
    return HeardOut(await paying.webhook(provider, headers, body, request_id_of(request.scope)))


def _id(text: str) -> str:
    """Raises `NotFound`: what is no UUID names no payment."""
    if UUID.fullmatch(text) is None:
        raise NotFound(f"no payment {text[:60]!r}, or not one of yours")
    return text.lower()


ROUTERS: Final = (initiate_payment, confirm_payment, read_payment, choose_other_seats, refund_payment, hear_provider)
