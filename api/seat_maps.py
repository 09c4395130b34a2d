"""Seat layouts of an operator's buses: list, draw, read, redraw, retire. For PARTNER_ADMIN of the operator and SUPER_ADMIN.

Another operator's are as unknown as those that do not exist (404). An edit names the version it was decided on (`If-Match`); every change
leaves an audit row and an event. Trips that are on sale keep the seats they were sold with: a new version is for trips that go on sale later.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from litestar import Request, Response, delete, get, patch, post
from litestar.params import FromPath, FromQuery, JSONBody

from api.fares import (
    Change,
    PartnerId,
    ThingId,
    Title,
    acting_for,
    changed,
    created,
    found,
    going,
    next_place,
    place_of,
    reading,
    tagged,
    when,
)
from api.network import Cursor, Limit
from api.parts import parts_of
from engine.booking.layouts import READY
from engine.booking.seats import Layout, layout_of
from engine.errors import Conflict, Invalid
from engine.store.fares import OfferBook, at
from engine.store.layouts import LayoutBook

KIND: Final = "SEAT_LAYOUT_CHANGED"
WORD: Final = "seat map"


class SeatMapIn(msgspec.Struct, frozen=True, rename="camel"):
    """A drawing of one's own (`layout`), or one of the ready ones."""

    id: ThingId
    name: Title
    layout: Layout | None = None
    ready: Literal["coach-49", "coach-32", "double-decker", "minibus-19"] | None = None
    partner_id: PartnerId | None = None


class SeatMapEdit(msgspec.Struct, frozen=True, rename="camel"):
    """`layout` takes the place of the whole drawing. What is not named stays."""

    name: Title | None = None
    layout: Layout | None = None


class SeatMapItem(msgspec.Struct, frozen=True, rename="camel"):
    id: str
    partner_id: str
    name: str
    seats: int
    layout: Layout
    version: int
    changed_at: str
    retired_at: str | None


class SeatMapItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[SeatMapItem]
    next_cursor: str | None


@post("/admin/seat-maps", tags=["offers"])
async def create_seat_map(request: Request[Any, Any, Any], data: JSONBody[SeatMapIn]) -> Response[SeatMapItem]:
    """A seat layout, checked as a whole: labels, places on the grid, features."""
    partner_id = acting_for(request, data.partner_id)
    if (data.layout is None) == (data.ready is None):
        raise Invalid(
            "give a layout, or the name of a ready one", errors=[_fault("/layout", "MISSING_FIELD", "layout or ready, one of them")]
        )
    body = _judged(data.layout) if data.layout is not None else layout_of(READY[data.ready or ""]).body()

    async def add(book: OfferBook) -> Any:
        row = await LayoutBook(book.connection).add(partner_id, data.id, data.name, body)
        if row is None:
            raise Conflict(f"a seat map {data.id!r} is there already; edit it, or choose another id")
        return row

    return await created(request, partner_id, KIND, data.id, add, _item)


@get("/admin/seat-maps", tags=["offers"])
async def list_seat_maps(
    request: Request[Any, Any, Any],
    limit: Limit = 20,
    cursor: Cursor = None,
    partner: FromQuery[str | None] = None,
    retired: FromQuery[bool] = False,
) -> SeatMapItems:
    """The operator's seat layouts by id."""
    partner_id, after = acting_for(request, partner, anybody=True), place_of(cursor)

    async def read(book: OfferBook) -> Any:
        return await LayoutBook(book.connection).layouts(partner_id, after, limit + 1, retired=retired)

    rows = await reading(request, partner_id, read)
    return SeatMapItems([_item(row) for row in rows[:limit]], next_place(rows, limit, "id"))


@get("/admin/seat-maps/{layout_id:str}", tags=["offers"])
async def read_seat_map(
    request: Request[Any, Any, Any], layout_id: FromPath[str], partner: FromQuery[str | None] = None
) -> Response[SeatMapItem]:
    """One seat layout; its ETag is what an edit sends as If-Match."""
    partner_id = acting_for(request, partner)
    row = await reading(request, partner_id, lambda book: LayoutBook(book.connection).layout(partner_id, layout_id))
    return tagged(_item(found(row, WORD, layout_id)))


@patch("/admin/seat-maps/{layout_id:str}", tags=["offers"])
async def edit_seat_map(
    request: Request[Any, Any, Any], layout_id: FromPath[str], data: JSONBody[SeatMapEdit], partner: FromQuery[str | None] = None
) -> Response[SeatMapItem]:
    """The layout's next version, for trips that are not on sale yet."""
    partner_id = acting_for(request, partner)
    drawn = None if data.layout is None else _judged(data.layout)

    async def write(book: OfferBook, before: Any) -> Any:
        going(before, WORD, layout_id)
        layouts = LayoutBook(book.connection)
        if drawn is not None:
            _women_keep_their_seats(await layouts.offered(partner_id, layout_id), before["body"], drawn)
        return await layouts.change(partner_id, layout_id, data.name or before["name"], before["body"] if drawn is None else drawn, None)

    return tagged(await changed(request, _change(partner_id, layout_id, write)))


@delete("/admin/seat-maps/{layout_id:str}", tags=["offers"], status_code=200)
async def retire_seat_map(
    request: Request[Any, Any, Any], layout_id: FromPath[str], partner: FromQuery[str | None] = None
) -> Response[SeatMapItem]:
    """No new offer may use it. Trips that are on sale with it go on."""
    partner_id = acting_for(request, partner)

    async def write(book: OfferBook, before: Any) -> Any:
        if before["retired_at"] is not None:
            return before
        layouts = LayoutBook(book.connection)
        offered = await layouts.offered(partner_id, layout_id)
        if offered:
            raise Conflict(f"{offered[0][0]} is offered with seat map {layout_id!r}; change or retire that offer first")
        now = at(parts_of(request).clock.now_ms())
        return await layouts.change(partner_id, layout_id, before["name"], before["body"], now)

    return tagged(await changed(request, _change(partner_id, layout_id, write)))


# ------------------------------------------------------------------------------------------------ how they are made


def _change(partner_id: str, layout_id: str, write: Any) -> Change:
    return Change(partner_id, KIND, WORD, layout_id, lambda book: LayoutBook(book.connection).layout(partner_id, layout_id), write, _item)


def _judged(drawn: Layout) -> dict[str, Any]:
    """The body of a drawing that holds together. Raises `Invalid` with pointers into the request."""
    try:
        return layout_of(drawn.body()).body()
    except Invalid as fault:
        errors = [error | {"pointer": "/layout" + error["pointer"]} for error in fault.errors]
        raise Invalid(fault.detail, errors=errors) from None


def _women_keep_their_seats(offered: list[tuple[str, list[int]]], before: Any, after: Any) -> None:
    """Offers name the seats they keep for women by number: a new drawing leaves these where they are. Raises `Conflict`."""
    for route_id, numbers in offered:
        for number in numbers:
            label = before["seats"][number - 1]["label"]
            if number > len(after["seats"]) or after["seats"][number - 1]["label"] != label:
                raise Conflict(
                    f"seat {label} is kept for women on {route_id}: it must stay seat number {number}, or change that offer first"
                )


def _fault(pointer: str, code: str, detail: str) -> dict[str, str]:
    return {"pointer": pointer, "code": code, "detail": detail}


def _item(row: Any) -> SeatMapItem:
    layout = layout_of(row["body"])
    return SeatMapItem(
        row["id"],
        row["partner_id"],
        row["name"],
        len(layout.seats),
        layout,
        row["version"],
        when(row["changed_at"]) or "",
        when(row["retired_at"]),
    )


ROUTERS: Final = (create_seat_map, list_seat_maps, read_seat_map, edit_seat_map, retire_seat_map)
