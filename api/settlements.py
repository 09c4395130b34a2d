"""Settlements: what an operator's account with the platform did over a period, and periods that were paid out.

A statement is made from the ledger each time, so it adds up to it: opening + net of its lines = closing. For PARTNER_ADMIN (their own) and
SUPER_ADMIN; only a SUPER_ADMIN closes a period, which pays it out.
"""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromQuery, JSONBody, QueryParameter

from api.auth import PARTNER_ADMIN, SUPER_ADMIN, need
from api.booking import MoneyOut
from api.callers import answered, booking_of, caller_of, key_of
from api.parts import Parts, parts_of
from api.tracking import principal_of
from engine.booking.refusals import Refused
from engine.errors import Invalid, NotFound, TooLarge
from engine.live.frames import rfc3339
from engine.store.payments import Payments

SPAN_MOST: Final = timedelta(days=366)
SPAN: Final = timedelta(days=31)
LINES_MOST: Final = 50_000  # of a CSV
QUIET: Final = timedelta(minutes=1)  # a period ends at least so long ago: whatever was begun in it has ended
YEARS: Final = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC))

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
PartnerId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,48}$(?!\n)")]
Start = Annotated[str | None, QueryParameter(name="from", description="RFC 3339; none: 31 days before `to`")]
End = Annotated[str | None, QueryParameter(name="to", description="RFC 3339, not included; none: now")]


class StatementLine(msgspec.Struct, frozen=True, rename="camel"):
    """All transactions of one kind on one day (UTC). Minor units; gross = net + commission; what left the account is negative."""

    day: str
    kind: str
    count: int
    gross: int
    commission: int
    net: int


class Statement(msgspec.Struct, frozen=True, rename="camel"):
    """One currency. `opening` and `closing`: what the platform owes the operator before and after."""

    currency: str
    opening: int
    closing: int
    lines: list[StatementLine]


class SettlementOut(msgspec.Struct, frozen=True, rename="camel"):
    """`carried`: what the operator owed at the end of the period and takes into the next one, as a negative amount."""

    id: str
    partner_id: str
    start: str = msgspec.field(name="from")
    end: str = msgspec.field(name="to")
    amount: MoneyOut = MoneyOut(0, "")
    carried: MoneyOut = MoneyOut(0, "")
    closed_at: str = ""


class Statements(msgspec.Struct, frozen=True, rename="camel"):
    partner_id: str
    start: str = msgspec.field(name="from")
    end: str = msgspec.field(name="to")
    items: list[Statement] = []
    settlements: list[SettlementOut] = []


class SettlementIn(msgspec.Struct, frozen=True, rename="camel"):
    """Everything of that currency up to `to` (not included) that has not been paid out."""

    partner_id: PartnerId
    currency: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}$(?!\n)")]
    to: Moment


@get("/settlements", tags=["payments"], responses={200: ResponseSpec(Statements, generate_examples=False, description="the account")})
async def read_settlements(
    request: Request[Any, Any, Any], partner: FromQuery[str | None] = None, start: Start = None, end: End = None
) -> Response[Any]:
    """The operator's account by day and kind, and the periods that were closed. `Accept: text/csv`: every transaction."""
    parts = parts_of(request)
    partner_id = _partner(request, partner)
    store = booking_of(parts).paying.store
    since, until = _span(parts, start, end)
    if "text/csv" in request.headers.get("accept", ""):
        name = f"statement-{partner_id}-{since:%Y%m%d}-{until:%Y%m%d}.csv"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(await _csv(store, partner_id, since, until), media_type="text/csv", headers=headers)
    items = []
    for currency in await store.currencies(partner_id):
        days = await store.days(partner_id, currency, since, until)
        opening = await store.balance(partner_id, "PARTNER", currency, since)
        lines = [StatementLine(day.day, day.kind, day.count, day.net + day.commission, day.commission, day.net) for day in days]
        items.append(Statement(currency, opening, opening + sum(line.net for line in lines), lines))
    closed = [
        SettlementOut(
            one.settlement_id,
            partner_id,
            _text(one.from_at),
            _text(one.to_at),
            MoneyOut(one.amount, one.currency),
            MoneyOut(one.carried, one.currency),
            _text(one.closed_at),
        )
        for one in await store.settlements(partner_id, since, until)
    ]
    return Response(Statements(partner_id, _text(since), _text(until), items, closed))


@post("/settlements", tags=["payments"])
async def close_period(request: Request[Any, Any, Any], data: JSONBody[SettlementIn]) -> Response[SettlementOut]:
    """Close a period and pay it out. Closing it again answers the same settlement."""
    parts = parts_of(request)
    need(principal_of(parts, request), SUPER_ADMIN)
    caller = caller_of(request)
    key = await key_of(request, caller)
    now = datetime.fromtimestamp(parts.clock.now_ms() / 1000, UTC)
    if not YEARS[0] <= data.to <= now - QUIET:
        raise Invalid(
            "a period ends at least a minute ago", errors=[{"pointer": "/to", "code": "INVALID_VALUE", "detail": "too late or too early"}]
        )
    house = booking_of(parts)
    store: Payments = house.paying.store

    async def work(connection: Any) -> tuple[int, Any]:
        said = await store.close_period(
            connection, parts.clock.uuid7(), data.partner_id, data.currency, data.to, caller.actor, caller.request_id
        )
        if said["status"] == "REFUSED":
            raise Refused(said["code"], f"{data.partner_id} has nothing in {data.currency} that was not settled up to then")
        made = {name: said[name] for name in ("id", "partnerId", "amount", "carried")}
        times = {name: _text(datetime.fromisoformat(said[name])) for name in ("from", "to", "closedAt")}
        return 201, made | times

    return answered(await house.pool.once(key, data.partner_id, work))


# ------------------------------------------------------------------------------------------------ how they are made


def _partner(request: Request[Any, Any, Any], wanted: str | None) -> str:
    """Whose account. Raises `NotFound` for another operator, `Invalid`."""
    who = need(principal_of(parts_of(request), request), PARTNER_ADMIN, SUPER_ADMIN)
    chosen = wanted or who.partner_id
    if chosen is None:
        raise Invalid(
            "say which partner: ?partner=ID", errors=[{"pointer": "?partner", "code": "MISSING_FIELD", "detail": "whose account"}]
        )
    if not who.may_manage(chosen):
        raise NotFound(f"no operator {chosen[:80]!r}, or not yours")
    if "\x00" in chosen:
        raise Invalid("no partner has such an id")
    return chosen


def _span(parts: Parts, start: str | None, end: str | None) -> tuple[datetime, datetime]:
    now = datetime.fromtimestamp(parts.clock.now_ms() / 1000, UTC)
    until = _moment(end, "?to") if end is not None else now
    since = _moment(start, "?from") if start is not None else until - SPAN
    if not since < until or until - since > SPAN_MOST:
        raise Invalid(
            "`from` must come before `to`, at most 366 days", errors=[{"pointer": "?from", "code": "INVALID_VALUE", "detail": "span"}]
        )
    return since, until


def _moment(text: str, pointer: str) -> datetime:
    try:
        when = msgspec.convert(text.replace(" ", "+"), Moment)
    except msgspec.ValidationError as fault:
        raise Invalid(
            "times read like 2026-11-21T06:00:00Z", errors=[{"pointer": pointer, "code": "INVALID_VALUE", "detail": "RFC 3339"}]
        ) from fault
    if not YEARS[0] <= when <= YEARS[1]:
        raise Invalid("times are of this century", errors=[{"pointer": pointer, "code": "INVALID_VALUE", "detail": "out of range"}])
    return when


async def _csv(store: Payments, partner_id: str, since: datetime, until: datetime) -> bytes:
    """Every transaction of the account, a line each. Raises `TooLarge`."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["at", "kind", "bookingRef", "paymentId", "currency", "gross", "commission", "net", "transaction"])
    for currency in await store.currencies(partner_id):
        lines = await store.lines(partner_id, currency, since, until, 0, LINES_MOST + 1)
        if len(lines) > LINES_MOST:
            raise TooLarge(f"more than {LINES_MOST} transactions; ask for a shorter span")
        for line in lines:
            gross = line.net + line.commission
            row = [
                _text(line.at),
                line.kind,
                line.reference or "",
                line.payment_id or "",
                currency,
                gross,
                line.commission,
                line.net,
                line.txn,
            ]
            writer.writerow(row)
    return out.getvalue().encode()


def _text(when: datetime) -> str:
    return rfc3339(round(when.timestamp() * 1000))


ROUTERS: Final = (read_settlements, close_period)
