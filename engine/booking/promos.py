"""Promo codes: whether one may be used, and what it takes off. Pure; how often it was used is counted by the database (`sale.use_promo`)."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from engine.booking import money
from engine.booking.refusals import Refused

CODE_MAX: Final = 24


class PromoTerms(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What of a promo code goes into a price."""

    code: str
    kind: Literal["PERCENT", "FIXED"]
    value: int  # PERCENT: permille of the fares; FIXED: minor units off the whole booking
    min_amount: int = 0  # of the fares together, minor units; below it nothing is taken off


class Promo(msgspec.Struct, frozen=True):
    """A promo code of an operator."""

    terms: PromoTerms
    currency: str | None  # of `value` and `min_amount`; None only for PERCENT without a least amount
    valid_from_ms: int
    valid_to_ms: int | None  # None: until it is retired
    route_ids: frozenset[str]  # empty: all routes of the operator
    max_uses: int | None
    max_uses_each: int | None  # by one customer or one contact
    retired: bool = False


def folded(code: str) -> str:
    """As codes are compared: people type them in any case, with blanks around."""
    return code.strip().upper()[: CODE_MAX + 1]


def discount(terms: PromoTerms, fares: int) -> int:
    """What it takes off fares of this sum, minor units; never more than they are."""
    if fares < terms.min_amount:
        return 0
    return min(fares, money.scaled(fares, terms.value) if terms.kind == "PERCENT" else terms.value)


def judged(promo: Promo | None, code: str, *, route_id: str, currency: str, now_ms: int, fares: int | None = None) -> PromoTerms:
    """The terms of a code that may be used here and now. `fares`: what it is to be taken off, where that is known.
    Raises `Refused` PROMO_NOT_VALID or PROMO_MIN_AMOUNT. How often it was used is not asked here."""
    pointer = [{"pointer": "/promoCode", "code": "PROMO_NOT_VALID", "detail": "not known, over, not yet begun, or not for this trip"}]
    if (
        promo is None
        or promo.retired
        or now_ms < promo.valid_from_ms
        or (promo.valid_to_ms is not None and now_ms >= promo.valid_to_ms)
        or (promo.route_ids and route_id not in promo.route_ids)
        or promo.currency not in (None, currency)
    ):
        raise Refused("PROMO_NOT_VALID", f"promo code {code[:CODE_MAX]!r} is not valid for this trip now", errors=pointer)
    if fares is not None and fares < promo.terms.min_amount:
        least = money.plain(money.Money(promo.terms.min_amount, currency))
        raise Refused("PROMO_MIN_AMOUNT", f"promo code {promo.terms.code!r} is for fares of {least} or more")
    return promo.terms
