"""Why the desk says no: one table from a code to its HTTP status and its meaning, and the error that carries one.

A refusal is an answer, not a fault: the request was understood and the state of things (or the operator's rules) forbids it. `errors` names
each seat, passenger or field that stands in the way. Unknown things are `NotFound`, malformed ones `Invalid` (engine/errors.py).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from engine.errors import EngineError


class Meaning(NamedTuple):
    status: int  # HTTP
    title: str
    retryable: bool = False  # sending the same request again may help


# Kept in alphabetical order. Codes never change their meaning.
REFUSALS: Final[dict[str, Meaning]] = {
    "ALREADY_WAITING": Meaning(409, "You wait for this already"),
    "ANCILLARY_SOLD_OUT": Meaning(409, "There are not so many left of it on this trip"),
    "BUSY": Meaning(503, "Somebody else is changing the same thing; come back", True),
    "CARD_NUMBER_REFUSED": Meaning(400, "Card numbers are never taken here"),
    "CHECK_IN_CLOSED": Meaning(409, "Check-in is not open"),
    "CLAIMS_MISSING": Meaning(500, "A booking lost its seats"),
    "EVENT_DELIVERED": Meaning(409, "The event has been delivered"),
    "EXTRAS_NOT_SOLD": Meaning(422, "Nothing is sold beside the seats of this trip"),
    "HOLD_EXPIRED": Meaning(409, "The hold is over"),
    "HOLD_LIMIT": Meaning(409, "You hold as much as one may at a time"),
    "HOLD_NOT_FOUND": Meaning(404, "No such hold"),
    "HOLD_USED": Meaning(409, "The hold has become a booking or was let go"),
    "IDEMPOTENCY_IN_PROGRESS": Meaning(409, "The first request with this Idempotency-Key is still running", True),
    "IDEMPOTENCY_KEY_REQUIRED": Meaning(400, "This call needs an Idempotency-Key"),
    "IDEMPOTENCY_KEY_REUSED": Meaning(422, "This Idempotency-Key was used with another request"),
    "INVALID": Meaning(400, "The request is not valid"),
    "LEASE_NOT_FOUND": Meaning(404, "No such lease"),
    "LEASE_OVER": Meaning(409, "The lease is over"),
    "NOTHING_DUE": Meaning(409, "There is nothing to pay"),
    "NOTHING_OFFERED": Meaning(409, "No other seats are offered for this payment"),
    "NOTHING_TO_SETTLE": Meaning(409, "There is nothing to settle up to then"),
    "NOT_CONFIRMED": Meaning(409, "The booking is not paid for"),
    "NO_FARE": Meaning(409, "The operator has no fare for this way"),
    "OFFER_EXPIRED": Meaning(409, "The offer is over"),
    "OFFER_OTHER_SEATS": Meaning(409, "The money came too late and the seats are gone: choose others, or have it back"),
    "OFFER_STALE": Meaning(409, "The booking has changed since the offer was made"),
    "OTHER_CLASS": Meaning(409, "The seat is of another class"),
    "OVERFLOW_UNDECIDED": Meaning(409, "Some passengers have no seat on the other bus"),
    "PAYMENT_FAILED": Meaning(402, "The payment failed; nothing was taken"),
    "PAYMENT_IN_PROGRESS": Meaning(409, "A payment for this booking is in progress"),
    "PAYMENT_REFUNDED": Meaning(409, "The booking could not be kept; the money goes back"),
    "PLAN_STALE": Meaning(409, "Who sits where has changed since the plan was made"),
    "PRECONDITION_FAILED": Meaning(412, "It has changed since you read it"),
    "PROMO_MIN_AMOUNT": Meaning(409, "The fares are below what the promo code is for"),
    "PROMO_NOT_VALID": Meaning(409, "The promo code is not valid here and now"),
    "PROMO_USED_UP": Meaning(409, "The promo code has been used as often as it may"),
    "PROVIDER_SILENT": Meaning(503, "The payment provider has not answered; send the same request again", True),
    "QUOTE_EXPIRED": Meaning(409, "The quote is over, or for other seats"),
    "REFERENCE_TAKEN": Meaning(409, "The reference is in use"),
    "REFUND_TOO_MUCH": Meaning(409, "There is not so much left to refund"),
    "SALES_CLOSED": Meaning(409, "The trip is not on sale"),
    "SALE_SETTLED": Meaning(409, "The sale has its seat, or its money back"),
    "SEATS_DO_NOT_FIT": Meaning(422, "As many different seats as were booked, of those that are sold"),
    "SEAT_ACCESSIBLE_ONLY": Meaning(422, "The seat is kept for passengers who need it"),
    "SEAT_PICKED": Meaning(409, "Somebody else is choosing this seat right now", True),
    "SEAT_TAKEN": Meaning(409, "A seat is taken"),
    "SEAT_WOMEN_ONLY": Meaning(422, "The seat is kept for women"),
    "SESSION_CLOSED": Meaning(409, "The cash session is closed"),
    "SESSION_OPEN": Meaning(409, "The drawer is open already"),
    "STALE_MAP": Meaning(409, "The seat map has changed"),
    "TICKETS_REVOKED": Meaning(409, "The tickets of this booking were taken back"),
    "TOO_FEW_SEATS": Meaning(409, "There are not so many free seats"),
    "TOO_LATE": Meaning(409, "The bus has left"),
    "TRIP_NOT_FOUND": Meaning(404, "No such trip"),
    "TRIP_OVER": Meaning(409, "The trip is over or does not run"),
    "WAITING_ROOM": Meaning(429, "Many want this trip right now; queue", True),
    "WRONG_CURRENCY": Meaning(422, "The trip is sold in another currency"),
    "WRONG_STATE": Meaning(409, "The booking's state does not allow it"),
}


class Refused(EngineError):
    """One row of the table. Raises KeyError for a code that is not in it."""

    code: str  # type: ignore[misc]  # of the instance: one class speaks for the whole table
    status: int  # type: ignore[misc]
    retryable: bool  # type: ignore[misc]

    def __init__(
        self, code: str, detail: str, *, retry_after_s: float | None = None, errors: list[dict[str, str]] | None = None, **facts: Any
    ) -> None:
        meaning = REFUSALS[code]
        super().__init__(detail, retry_after_s=retry_after_s, errors=errors, **facts)
        self.code, self.status, self.retryable, self.title = code, meaning.status, meaning.retryable, meaning.title


def unless_match(wanted: str | None, tag: str, what: str = "it") -> None:
    """Raises `Refused` PRECONDITION_FAILED where If-Match (its text, RFC 9110 section 13.1.1; None: not sent) names another version."""
    if wanted is not None and wanted.strip() != "*" and tag not in [one.strip() for one in wanted.split(",")]:
        raise Refused("PRECONDITION_FAILED", f"{what} is now version {tag}; read it again and decide anew")
