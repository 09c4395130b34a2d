"""What an operator offers: fare plans, and which routes are sold with them. For PARTNER_ADMIN of the operator and SUPER_ADMIN.

Another operator's things are as unknown as things that do not exist (404). An edit names the version it was decided on (`If-Match`); every
change leaves an audit row and an event. What was sold stays what it was: a new version of a plan prices new quotes, a changed offer the trips
that are not on sale yet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, delete, get, patch, post
from litestar.params import FromPath, FromQuery, JSONBody

from api.auth import PARTNER_ADMIN, SUPER_ADMIN, need
from api.callers import answered, booking_of, caller_of, key_of
from api.network import Cursor, Limit
from api.parts import Parts, parts_of
from api.tracking import principal_of
from engine.booking.fares import PlanBody, plan_of
from engine.booking.refusals import unless_match
from engine.booking.seats import layout_of
from engine.errors import Conflict, Invalid, NotFound
from engine.live.frames import rfc3339
from engine.store.desk import ALL
from engine.store.fares import NewOffer, OfferBook, ms_of

ThingId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,48}$(?!\n)")]
PartnerId = Annotated[str, msgspec.Meta(min_length=1, max_length=48)]
Title = Annotated[str, msgspec.Meta(min_length=1, max_length=120)]
OpenDays = Annotated[int, msgspec.Meta(ge=1, le=365)]
CloseS = Annotated[int, msgspec.Meta(ge=0, le=86_400)]
Labels = Annotated[list[Annotated[str, msgspec.Meta(min_length=1, max_length=12)]], msgspec.Meta(max_length=200)]


class FarePlanIn(msgspec.Struct, frozen=True, rename="camel"):
    id: ThingId
    name: Title
    plan: PlanBody
    partner_id: PartnerId | None = None


class FarePlanEdit(msgspec.Struct, frozen=True, rename="camel"):
    """`plan` takes the place of the whole plan; its currency stays."""

    name: Title | None = None
    plan: PlanBody | None = None


class FarePlanItem(msgspec.Struct, frozen=True, rename="camel"):
    id: str
    partner_id: str
    name: str
    plan: PlanBody
    version: int
    changed_at: str
    retired_at: str | None


class FarePlanItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[FarePlanItem]
    next_cursor: str | None


class OfferIn(msgspec.Struct, frozen=True, rename="camel"):
    """Every trip of the route goes on sale `openDays` before it leaves, until `closeS` before it leaves."""

    route_id: Annotated[str, msgspec.Meta(min_length=3, max_length=200)]
    layout_id: ThingId
    fare_plan_id: ThingId
    open_days: OpenDays = 14
    close_s: CloseS = 0
    women_only_seats: Labels = []
    partner_id: PartnerId | None = None


class OfferEdit(msgspec.Struct, frozen=True, rename="camel"):
    """What is not named stays."""

    layout_id: ThingId | None = None
    fare_plan_id: ThingId | None = None
    open_days: OpenDays | None = None
    close_s: CloseS | None = None
    women_only_seats: Labels | None = None


class OfferItem(msgspec.Struct, frozen=True, rename="camel"):
    route_id: str
    partner_id: str
    layout_id: str
    fare_plan_id: str
    open_days: int
    close_s: int
    women_only_seats: list[str]
    version: int
    changed_at: str
    retired_at: str | None


class OfferItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[OfferItem]
    next_cursor: str | None


# ------------------------------------------------------------------------------------------------ fare plans


@post("/admin/fare-plans", tags=["offers"])
async def create_fare_plan(request: Request[Any, Any, Any], data: JSONBody[FarePlanIn]) -> Response[FarePlanItem]:
    """A fare plan, checked as a whole: money in minor units, factors in permille."""
    partner_id = acting_for(request, data.partner_id)
    judged = _judged(data.plan)

    async def add(book: OfferBook) -> Any:
        row = await book.add_fare_plan(partner_id, data.id, data.name, judged.currency, msgspec.to_builtins(judged))
        if row is None:
            raise Conflict(f"a fare plan {data.id!r} is there already; edit it, or choose another id")
        return row

    return await created(request, partner_id, "FARE_PLAN_CHANGED", data.id, add, _plan_item)


@get("/admin/fare-plans", tags=["offers"])
async def list_fare_plans(
    request: Request[Any, Any, Any],
    limit: Limit = 20,
    cursor: Cursor = None,
    partner: FromQuery[str | None] = None,
    retired: FromQuery[bool] = False,
) -> FarePlanItems:
    """The operator's fare plans by id."""
    partner_id = acting_for(request, partner, anybody=True)
    rows = await reading(request, partner_id, lambda book: book.fare_plans(partner_id, place_of(cursor), limit + 1, retired=retired))
    return FarePlanItems([_plan_item(row) for row in rows[:limit]], next_place(rows, limit, "id"))


@get("/admin/fare-plans/{plan_id:str}", tags=["offers"])
async def read_fare_plan(
    request: Request[Any, Any, Any], plan_id: FromPath[str], partner: FromQuery[str | None] = None
) -> Response[FarePlanItem]:
    """One fare plan; its ETag is what an edit sends as If-Match."""
    partner_id = acting_for(request, partner)
    row = await reading(request, partner_id, lambda book: book.fare_plan(partner_id, plan_id))
    return tagged(_plan_item(found(row, "fare plan", plan_id)))


@patch("/admin/fare-plans/{plan_id:str}", tags=["offers"])
async def edit_fare_plan(
    request: Request[Any, Any, Any], plan_id: FromPath[str], data: JSONBody[FarePlanEdit], partner: FromQuery[str | None] = None
) -> Response[FarePlanItem]:
    """The plan's next version: new quotes use it within 30 s, what was quoted or held stays."""
    partner_id = acting_for(request, partner)
    judged = None if data.plan is None else _judged(data.plan)

    async def write(book: OfferBook, before: Any) -> Any:
        going(before, "fare plan", plan_id)
        if judged is not None and judged.currency != before["body"]["currency"]:
            detail = f"trips are on sale in {before['body']['currency']}; make a new plan for {judged.currency}"
            raise Invalid(detail, errors=[{"pointer": "/plan/currency", "code": "WRONG_CURRENCY", "detail": detail}])
        body = before["body"] if judged is None else msgspec.to_builtins(judged)
        return await book.change_fare_plan(partner_id, plan_id, data.name or before["name"], body, None)

    change = Change(
        partner_id, "FARE_PLAN_CHANGED", "fare plan", plan_id, lambda book: book.fare_plan(partner_id, plan_id), write, _plan_item
    )
    item = await changed(request, change)
    booking_of(parts_of(request)).pricing.forget_plan(partner_id, plan_id)
    return tagged(item)


@delete("/admin/fare-plans/{plan_id:str}", tags=["offers"], status_code=200)
async def retire_fare_plan(
    request: Request[Any, Any, Any], plan_id: FromPath[str], partner: FromQuery[str | None] = None
) -> Response[FarePlanItem]:
    """No new offer may use it. Trips that are on sale with it go on."""
    partner_id = acting_for(request, partner)

    async def write(book: OfferBook, before: Any) -> Any:
        if before["retired_at"] is not None:
            return before
        route_id = await book.offered_with(partner_id, plan_id)
        if route_id is not None:
            raise Conflict(f"{route_id} is offered with fare plan {plan_id!r}; change or retire that offer first")
        return await book.change_fare_plan(partner_id, plan_id, before["name"], before["body"], _now(request))

    change = Change(
        partner_id, "FARE_PLAN_CHANGED", "fare plan", plan_id, lambda book: book.fare_plan(partner_id, plan_id), write, _plan_item
    )
    return tagged(await changed(request, change))


# ------------------------------------------------------------------------------------------------ offers


@post("/admin/offers", tags=["offers"])
async def create_offer(request: Request[Any, Any, Any], data: JSONBody[OfferIn]) -> Response[OfferItem]:
    """Sell a route: its trips go on sale within half a minute, and every day from then on."""
    partner_id = acting_for(request, data.partner_id)
    _own_route(parts_of(request), partner_id, data.route_id)

    async def add(book: OfferBook) -> Any:
        new = NewOffer(
            data.route_id, data.layout_id, data.fare_plan_id, data.open_days, data.close_s,
            await _offerable(book, partner_id, data.layout_id, data.fare_plan_id, data.women_only_seats),
        )  # fmt: skip
        if not await book.add_offer(partner_id, new):
            raise Conflict(f"{data.route_id} is offered already; edit that offer")
        return await book.offer(partner_id, data.route_id)

    return await created(request, partner_id, "OFFER_CHANGED", data.route_id, add, _offer_item)


@get("/admin/offers", tags=["offers"])
async def list_offers(
    request: Request[Any, Any, Any],
    limit: Limit = 20,
    cursor: Cursor = None,
    partner: FromQuery[str | None] = None,
    retired: FromQuery[bool] = False,
) -> OfferItems:
    """The operator's offers by route."""
    partner_id = acting_for(request, partner, anybody=True)
    rows = await reading(request, partner_id, lambda book: book.offers(partner_id, cursor or "", limit + 1, retired=retired))
    return OfferItems([_offer_item(row) for row in rows[:limit]], rows[limit - 1]["route_id"] if len(rows) > limit else None)


@get("/admin/offers/{route_id:str}", tags=["offers"])
async def read_offer(
    request: Request[Any, Any, Any], route_id: FromPath[str], partner: FromQuery[str | None] = None
) -> Response[OfferItem]:
    """One offer; its ETag is what an edit sends as If-Match."""
    partner_id = acting_for(request, partner)
    row = await reading(request, partner_id, lambda book: book.offer(partner_id, route_id))
    return tagged(_offer_item(found(row, "offer for route", route_id)))


@patch("/admin/offers/{route_id:str}", tags=["offers"])
async def edit_offer(
    request: Request[Any, Any, Any], route_id: FromPath[str], data: JSONBody[OfferEdit], partner: FromQuery[str | None] = None
) -> Response[OfferItem]:
    """The offer's next version, for trips that are not on sale yet."""
    partner_id = acting_for(request, partner)

    async def write(book: OfferBook, before: Any) -> Any:
        going(before, "offer for route", route_id)
        layout_id, plan_id = data.layout_id or before["layout_id"], data.fare_plan_id or before["fare_plan_id"]
        labels = before["women_only"] if data.women_only_seats is None else data.women_only_seats
        new = NewOffer(
            route_id, layout_id, plan_id, data.open_days or before["open_days"], before["close_s"] if data.close_s is None else data.close_s,
            await _offerable(book, partner_id, layout_id, plan_id, labels),
        )  # fmt: skip
        await book.change_offer(partner_id, new, None)
        return await book.offer(partner_id, route_id)

    return tagged(await changed(request, _offer_change(partner_id, route_id, write)))


@delete("/admin/offers/{route_id:str}", tags=["offers"], status_code=200)
async def retire_offer(
    request: Request[Any, Any, Any], route_id: FromPath[str], partner: FromQuery[str | None] = None
) -> Response[OfferItem]:
    """No more trips of the route go on sale. Those that are stay on sale."""
    partner_id = acting_for(request, partner)

    async def write(book: OfferBook, before: Any) -> Any:
        if before["retired_at"] is not None:
            return before
        same = NewOffer(
            route_id, before["layout_id"], before["fare_plan_id"], before["open_days"], before["close_s"], before["women_only_seats"]
        )
        await book.change_offer(partner_id, same, _now(request))
        return await book.offer(partner_id, route_id)

    return tagged(await changed(request, _offer_change(partner_id, route_id, write)))


def _offer_change(partner_id: str, route_id: str, write: Callable[[OfferBook, Any], Awaitable[Any]]) -> Change:
    return Change(
        partner_id, "OFFER_CHANGED", "offer for route", route_id, lambda book: book.offer(partner_id, route_id), write, _offer_item
    )


# ------------------------------------------------------------------------------------------------ steps that the calls share


class Change(msgspec.Struct, frozen=True):
    """One edit: whose, the event it makes, what people call the thing, how it is read (locked), written and shown."""

    partner_id: str
    kind: str
    word: str
    what: str
    read: Callable[[OfferBook], Awaitable[Any]]
    write: Callable[[OfferBook, Any], Awaitable[Any]]
    show: Callable[[Any], Any]


def acting_for(
    request: Request[Any, Any, Any], wanted: str | None, *, anybody: bool = False, roles: Sequence[str] = (PARTNER_ADMIN, SUPER_ADMIN)
) -> str:
    """The operator that the caller, of one of `roles`, acts for; `anybody`: a super admin who names none means all ('*').

    Raises `Unauthenticated`, `Forbidden`, `NotFound` for another operator, `Invalid` where a super admin has to name one.
    """
    parts = parts_of(request)
    who = need(principal_of(parts, request), *roles)
    if who.role != SUPER_ADMIN:
        if who.partner_id is None or wanted not in (None, who.partner_id):
            raise NotFound(f"no partner {str(wanted)[:48]!r} that you act for")
        return who.partner_id
    if wanted == ALL:
        raise NotFound("no partner '*'")
    if wanted is not None or who.partner_id is not None:
        return wanted or who.partner_id or ""
    if anybody:
        return ALL
    known = sorted({plan.partner_id for plan in parts.plans.all()}) if parts.plans is not None else []
    if len(known) != 1:
        raise Invalid("say which partner: there are " + (", ".join(known) or "none yet"))
    return known[0]


async def reading(request: Request[Any, Any, Any], partner_id: str, read: Callable[[OfferBook], Awaitable[Any]]) -> Any:
    return await booking_of(parts_of(request)).pool.run(partner_id, lambda connection: read(OfferBook(connection)))


async def created(
    request: Request[Any, Any, Any],
    partner_id: str,
    kind: str,
    what: str,
    add: Callable[[OfferBook], Awaitable[Any]],
    show: Callable[[Any], Any],
) -> Response[Any]:
    """201 with the new thing, its audit row and its event; the same Idempotency-Key again gets the same answer."""
    house, caller = booking_of(parts_of(request)), caller_of(request)
    key = await key_of(request, caller, required=False)

    async def work(connection: Any) -> tuple[int, Any]:
        book = OfferBook(connection)
        row = await add(book)
        item = msgspec.to_builtins(show(row))
        await book.note(partner_id, caller.actor, caller.request_id, kind, what, row["version"], None, item)
        return 201, item

    answer = await house.pool.once(key, partner_id, work)
    return answered(answer, {"ETag": f'"{answer.body["version"]}"'})


async def changed(request: Request[Any, Any, Any], change: Change) -> Any:
    """The thing as it now is. Raises `NotFound`, `Refused` PRECONDITION_FAILED. What `write` leaves as it was leaves no event."""
    house, caller = booking_of(parts_of(request)), caller_of(request)

    async def work(connection: Any) -> Any:
        book = OfferBook(connection)
        before = found(await change.read(book), change.word, change.what)
        unless_match(request.headers.get("if-match"), f'"{before["version"]}"')
        after = await change.write(book, before)
        if after["version"] != before["version"]:
            shown = msgspec.to_builtins(change.show(before)), msgspec.to_builtins(change.show(after))
            await book.note(change.partner_id, caller.actor, caller.request_id, change.kind, change.what, after["version"], *shown)
        return change.show(after)

    return await house.pool.run(change.partner_id, work)


def found(row: Any, word: str, what: str) -> Any:
    if row is None:
        raise NotFound(f"no {word} {what[:200]!r}")
    return row


def going(row: Any, word: str, what: str) -> None:
    if row["retired_at"] is not None:
        raise Conflict(f"{word} {what!r} is retired")


def tagged(item: Any) -> Response[Any]:
    return Response(item, status_code=200, headers={"ETag": f'"{item.version}"', "Cache-Control": "private, no-cache"})


def place_of(cursor: str | None) -> tuple[str, str]:
    """(id, partner) of the last item of the page before."""
    if cursor is None:
        return "", ""
    name, colon, partner_id = cursor.partition(":")
    if not colon:
        raise Invalid("cursor must be the nextCursor of an earlier page")
    return name, partner_id


def next_place(rows: list[Any], limit: int, name: str) -> str | None:
    return f"{rows[limit - 1][name]}:{rows[limit - 1]['partner_id']}" if len(rows) > limit else None


def when(at: datetime | None) -> str | None:
    ms = ms_of(at)
    return None if ms is None else rfc3339(ms)


def _now(request: Request[Any, Any, Any]) -> datetime:
    return datetime.fromtimestamp(parts_of(request).clock.now_ms() / 1000, UTC)


def _judged(plan: PlanBody) -> PlanBody:
    """The plan, if it holds together. Raises `Invalid` with pointers into the request."""
    try:
        return plan_of(plan).body
    except Invalid as fault:
        raise Invalid(fault.detail, errors=[error | {"pointer": "/plan" + error["pointer"]} for error in fault.errors]) from None


def _own_route(parts: Parts, partner_id: str, route_id: str) -> None:
    feed_id, _, local = route_id.partition(":")
    plan = parts.plans.get(feed_id) if parts.plans is not None else None
    if plan is None or plan.partner_id != partner_id or local not in plan.timetable.routes:
        detail = f"the operator has no route {route_id!r} in force"
        raise Invalid(detail, errors=[{"pointer": "/routeId", "code": "UNKNOWN_ROUTE", "detail": detail}])


async def _offerable(book: OfferBook, partner_id: str, layout_id: str, plan_id: str, women_only: list[str]) -> list[int]:
    """Seat numbers of those labels, where layout and plan may be offered. Raises `Invalid`."""
    has_layout, has_plan = await book.offerable(partner_id, layout_id, plan_id)
    for there, pointer, what in (
        (has_layout, "/layoutId", f"seat layout {layout_id!r}"),
        (has_plan, "/farePlanId", f"fare plan {plan_id!r}"),
    ):
        if not there:
            raise Invalid(f"the operator has no {what}", errors=[{"pointer": pointer, "code": "UNKNOWN", "detail": f"no {what}"}])
    labels = {label: number for number, label in enumerate(layout_of(await book.layout(partner_id, layout_id)).labels, 1)}
    for index, label in enumerate(women_only):
        if label not in labels:
            detail = f"layout {layout_id!r} has no seat {label!r}"
            raise Invalid(detail, errors=[{"pointer": f"/womenOnlySeats/{index}", "code": "UNKNOWN_SEAT", "detail": detail}])
    return sorted({labels[label] for label in women_only})


def _plan_item(row: Any) -> FarePlanItem:
    plan = msgspec.convert(row["body"], PlanBody)
    return FarePlanItem(
        row["id"], row["partner_id"], row["name"], plan, row["version"], when(row["changed_at"]) or "", when(row["retired_at"])
    )


def _offer_item(row: Any) -> OfferItem:
    return OfferItem(
        row["route_id"], row["partner_id"], row["layout_id"], row["fare_plan_id"], row["open_days"], row["close_s"], list(row["women_only"]),
        row["version"], when(row["changed_at"]) or "", when(row["retired_at"]),
    )  # fmt: skip


ROUTERS: Final = (
    create_fare_plan,
    list_fare_plans,
    read_fare_plan,
    edit_fare_plan,
    retire_fare_plan,
    create_offer,
    list_offers,
    read_offer,
    edit_offer,
    retire_offer,
)
