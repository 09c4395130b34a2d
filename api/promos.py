"""Promo codes of an operator. For PARTNER_ADMIN of the operator and SUPER_ADMIN; another operator's are as unknown as those that do not exist.

What a code takes off never changes once it is out; when, where and how often it may be used does. `used` counts the bookings that stand: one
that expires unpaid, is let go or cancelled gives its use back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Request, Response, delete, get, patch, post
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import UNSET, UnsetType

from api.fares import Change, PartnerId, acting_for, changed, created, found, going, next_place, place_of, reading, tagged, when
from api.network import Cursor, Limit
from api.parts import parts_of
from engine.booking.money import exponent
from engine.booking.promos import Promo, PromoTerms, folded
from engine.errors import Conflict, Invalid
from engine.live.frames import rfc3339
from engine.store.fares import OfferBook, promo_of

Code = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{3,24}$(?!\n)")]
Amount = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
Value = Annotated[int, msgspec.Meta(ge=1, le=10**12)]
Uses = Annotated[int, msgspec.Meta(ge=1, le=10**9)]
RouteIds = Annotated[list[Annotated[str, msgspec.Meta(min_length=3, max_length=200)]], msgspec.Meta(max_length=500)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]  # RFC 3339 with a zone
YEARS: Final = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC))


class PromoIn(msgspec.Struct, frozen=True, rename="camel"):
    """`value`: permille of the fares (PERCENT), or minor units of `currency` off the whole booking (FIXED)."""

    code: Code
    kind: Literal["PERCENT", "FIXED"]
    value: Value
    currency: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}$(?!\n)")] | None = None
    min_amount: Amount = 0  # of the fares together
    valid_from: Moment | None = None  # none: from now on
    valid_to: Moment | None = None
    route_ids: RouteIds = []  # none: every route of the operator
    max_uses: Uses | None = None
    max_uses_each: Uses | None = None  # by one customer, e-mail address or telephone number
    partner_id: PartnerId | None = None


class PromoEdit(msgspec.Struct, frozen=True, rename="camel"):
    """What is not named stays; null takes a limit away."""

    min_amount: Amount | None = None
    valid_from: Moment | None = None
    valid_to: Moment | UnsetType | None = UNSET
    route_ids: RouteIds | None = None
    max_uses: Uses | UnsetType | None = UNSET
    max_uses_each: Uses | UnsetType | None = UNSET


class PromoItem(msgspec.Struct, frozen=True, rename="camel"):
    code: str
    partner_id: str
    kind: str
    value: int
    currency: str | None
    min_amount: int
    valid_from: str
    valid_to: str | None
    route_ids: list[str]
    max_uses: int | None
    max_uses_each: int | None
    used: int
    version: int
    changed_at: str
    retired_at: str | None


class PromoItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[PromoItem]
    next_cursor: str | None


@post("/admin/promo-codes", tags=["offers"])
async def create_promo_code(request: Request[Any, Any, Any], data: JSONBody[PromoIn]) -> Response[PromoItem]:
    """A promo code, good from `validFrom` on. Codes are compared without case."""
    partner_id = acting_for(request, data.partner_id)
    now_ms = parts_of(request).clock.now_ms()
    code = folded(data.code)
    promo = _judged(
        Promo(
            terms=PromoTerms(code, data.kind, data.value, data.min_amount),
            currency=data.currency,
            valid_from_ms=now_ms if data.valid_from is None else _ms(data.valid_from, "/validFrom"),
            valid_to_ms=None if data.valid_to is None else _ms(data.valid_to, "/validTo"),
            route_ids=frozenset(data.route_ids),
            max_uses=data.max_uses,
            max_uses_each=data.max_uses_each,
        )
    )

    async def add(book: OfferBook) -> Any:
        row = await book.add_promo_code(partner_id, promo)
        if row is None:
            raise Conflict(f"a promo code {code} is there already; edit it, or choose another")
        return row

    return await created(request, partner_id, "PROMO_CODE_CHANGED", code, add, _item)


@get("/admin/promo-codes", tags=["offers"])
async def list_promo_codes(
    request: Request[Any, Any, Any],
    limit: Limit = 20,
    cursor: Cursor = None,
    partner: FromQuery[str | None] = None,
    retired: FromQuery[bool] = False,
) -> PromoItems:
    """The operator's promo codes by code, each with the uses that count."""
    partner_id = acting_for(request, partner, anybody=True)
    rows = await reading(request, partner_id, lambda book: book.promo_codes(partner_id, place_of(cursor), limit + 1, retired=retired))
    return PromoItems([_item(row) for row in rows[:limit]], next_place(rows, limit, "code"))


@get("/admin/promo-codes/{code:str}", tags=["offers"])
async def read_promo_code(
    request: Request[Any, Any, Any], code: FromPath[str], partner: FromQuery[str | None] = None
) -> Response[PromoItem]:
    """One promo code; its ETag is what an edit sends as If-Match."""
    partner_id = acting_for(request, partner)
    row = await reading(request, partner_id, lambda book: book.promo_code(partner_id, folded(code)))
    return tagged(_item(found(row, "promo code", code)))


@patch("/admin/promo-codes/{code:str}", tags=["offers"])
async def edit_promo_code(
    request: Request[Any, Any, Any], code: FromPath[str], data: JSONBody[PromoEdit], partner: FromQuery[str | None] = None
) -> Response[PromoItem]:
    """When, where and how often it may be used from now on. Fewer uses than there were: nobody may use it, nobody loses it."""
    partner_id = acting_for(request, partner)

    async def write(book: OfferBook, before: Any) -> Any:
        going(before, "promo code", code)
        old = promo_of(before)
        terms = old.terms if data.min_amount is None else msgspec.structs.replace(old.terms, min_amount=data.min_amount)
        valid_to_ms = old.valid_to_ms
        if data.valid_to is not UNSET:
            valid_to_ms = None if data.valid_to is None else _ms(data.valid_to, "/validTo")
        promo = msgspec.structs.replace(
            old,
            terms=terms,
            valid_from_ms=old.valid_from_ms if data.valid_from is None else _ms(data.valid_from, "/validFrom"),
            valid_to_ms=valid_to_ms,
            route_ids=old.route_ids if data.route_ids is None else frozenset(data.route_ids),
            max_uses=old.max_uses if data.max_uses is UNSET else data.max_uses,
            max_uses_each=old.max_uses_each if data.max_uses_each is UNSET else data.max_uses_each,
        )
        return await book.change_promo_code(partner_id, _judged(promo), None)

    return tagged(await changed(request, _change(partner_id, code, write)))


@delete("/admin/promo-codes/{code:str}", tags=["offers"], status_code=200)
async def retire_promo_code(
    request: Request[Any, Any, Any], code: FromPath[str], partner: FromQuery[str | None] = None
) -> Response[PromoItem]:
    """It is not valid any more. Holds and quotes that have it keep it."""
    partner_id = acting_for(request, partner)

    async def write(book: OfferBook, before: Any) -> Any:
        if before["retired_at"] is not None:
            return before
        now = datetime.fromtimestamp(parts_of(request).clock.now_ms() / 1000, UTC)
        return await book.change_promo_code(partner_id, promo_of(before), now)

    return tagged(await changed(request, _change(partner_id, code, write)))


# ------------------------------------------------------------------------------------------------ how they are made


def _change(partner_id: str, code: str, write: Callable[[OfferBook, Any], Awaitable[Any]]) -> Change:
    wanted = folded(code)
    return Change(partner_id, "PROMO_CODE_CHANGED", "promo code", wanted, lambda book: book.promo_code(partner_id, wanted), write, _item)


def _wrong(pointer: str, code: str, detail: str) -> Invalid:
    return Invalid(detail, errors=[{"pointer": pointer, "code": code, "detail": detail}])


def _ms(moment: datetime, pointer: str) -> int:
    if not YEARS[0] <= moment < YEARS[1]:
        raise _wrong(pointer, "OUT_OF_RANGE", "a time between 2000 and 2200")
    return round(moment.timestamp() * 1000)


def _judged(promo: Promo) -> Promo:
    """The code, if it makes sense. Raises `Invalid`."""
    terms = promo.terms
    if terms.kind == "PERCENT" and terms.value > 1000:
        raise _wrong("/value", "OUT_OF_RANGE", "permille: 1000 is everything")
    if promo.currency is None and (terms.kind == "FIXED" or terms.min_amount):
        raise _wrong("/currency", "MISSING_FIELD", "an amount needs its currency")
    if promo.currency is not None:
        exponent(promo.currency)
    if promo.valid_to_ms is not None and promo.valid_to_ms <= promo.valid_from_ms:
        raise _wrong("/validTo", "OUT_OF_RANGE", "it ends after it begins")
    return promo


def _item(row: Any) -> PromoItem:
    promo = promo_of(row)
    terms = promo.terms
    return PromoItem(
        terms.code, row["partner_id"], terms.kind, terms.value, promo.currency, terms.min_amount, rfc3339(promo.valid_from_ms),
        None if promo.valid_to_ms is None else rfc3339(promo.valid_to_ms), sorted(promo.route_ids), promo.max_uses, promo.max_uses_each,
        row["used"], row["version"], when(row["changed_at"]) or "", when(row["retired_at"]),
    )  # fmt: skip


ROUTERS: Final = (create_promo_code, list_promo_codes, read_promo_code, edit_promo_code, retire_promo_code)
