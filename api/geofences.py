"""Geofences of an operator: list, draw, read, redraw, retire, and ask which hold at a place. For PARTNER_ADMIN of the operator and SUPER_ADMIN.

Another operator's are as unknown as those that do not exist (404). An edit names the version it was decided on (`If-Match`); every change
leaves an audit row and an event, and is in force on every worker about two seconds later. What they mean is told in docs/geofences.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Request, Response, delete, get, patch, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import UNSET, UnsetType

from api.callers import caller_of
from api.fares import Change, acting_for, changed, created, found, going, reading, tagged, when
from api.fleet import feed_of
from api.network import Cursor, Limit
from api.parts import Parts, parts_of
from api.tracking import parse_box
from engine.errors import Conflict, Invalid, NotFound
from engine.store.fares import OfferBook
from engine.store.fences import FIRST, Drawn, FenceBook
from engine.store.fleet import Fleet
from engine.tracking.fence_index import KINDS, SPEED_ZONE
from engine.tracking.hours import Calendar, hours_of
from geo.drawing import BadDrawing, drawn

KIND: Final = "FENCE_CHANGED"
WORD: Final = "geofence"
FENCES_MAX: Final = 20_000  # in force in one area
LISTED_MAX: Final = 5_000  # buses or routes named by one fence
HOLDING_MAX: Final = 100  # fences answered for one place

FenceKind = Literal["PLAIN", "RESTRICTED", "STAY_IN", "SPEED_ZONE", "CORRIDOR"]
Severity = Literal["MINOR", "MAJOR", "CRITICAL"]
Title = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Metres = Annotated[float, msgspec.Meta(ge=5, le=100_000)]
LimitKmh = Annotated[float, msgspec.Meta(ge=1, le=200)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Names = Annotated[tuple[Name, ...], msgspec.Meta(max_length=LISTED_MAX)]
PartnerId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class Geometry(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """GeoJSON, longitude first; and Circle, a Point with its radius. A LineString is a corridor and says how far it reaches to either side."""

    type: Literal["Circle", "Point", "Polygon", "MultiPolygon", "LineString"]
    coordinates: Annotated[list[Any], msgspec.Meta(min_length=1, max_length=2_000)]
    radius_m: Metres | None = None
    half_width_m: Annotated[float, msgspec.Meta(ge=5, le=5_000)] | None = None


class GeofenceIn(msgspec.Struct, frozen=True, rename="camel"):
    """`radiusM` and `halfWidthM` may stand in the geometry or beside it. `buses` and `routes`: for whom it is; neither: for all of the area.
    `severity` None: MINOR, of RESTRICTED, STAY_IN and CORRIDOR MAJOR. A SPEED_ZONE has a `speedLimitKmh`, the others have none."""

    name: Title
    kind: FenceKind
    geometry: Geometry
    radius_m: Metres | None = None
    half_width_m: Annotated[float, msgspec.Meta(ge=5, le=5_000)] | None = None
    severity: Severity | None = None
    speed_limit_kmh: LimitKmh | None = None
    calendar: Calendar | None = None
    buses: Names = ()
    routes: Names = ()
    feed_id: str | None = None  # the feed whose buses it is for; None: the operator's only one
    partner_id: PartnerId | None = None


class GeofenceEdit(msgspec.Struct, frozen=True, rename="camel"):
    """What is not named stays; `calendar` null makes it hold always. The kind stays what it was."""

    name: Title | None = None
    geometry: Geometry | None = None
    severity: Severity | None = None
    speed_limit_kmh: LimitKmh | None = None
    calendar: Calendar | UnsetType | None = UNSET
    buses: Names | None = None
    routes: Names | None = None


class GeofenceItem(msgspec.Struct, frozen=True, rename="camel"):
    """`routes` are public ids. `depthM`: how deep inside one can be; thresholds follow from it."""

    id: str
    partner_id: str
    feed_id: str
    name: str
    kind: str
    severity: str
    geometry: Geometry
    speed_limit_kmh: float | None
    calendar: Calendar | None
    buses: list[str]
    routes: list[str]
    depth_m: float
    version: int
    changed_at: str
    changed_by: str
    retired_at: str | None


class GeofenceItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[GeofenceItem]
    next_cursor: str | None


class Place(msgspec.Struct, frozen=True, rename="camel"):
    """`feedId`, `busId`, `routeId`: only fences for these."""

    lat: Annotated[float, msgspec.Meta(ge=-90, le=90)]
    lon: Annotated[float, msgspec.Meta(ge=-180, le=180)]
    feed_id: str | None = None
    bus_id: str | None = None
    route_id: str | None = None
    partner_id: PartnerId | None = None


class HoldingItem(msgspec.Struct, frozen=True, rename="camel"):
    """A fence that encloses the place. `depthM`: metres to its border. `inForce`: by its calendar, now."""

    id: str
    feed_id: str
    name: str
    kind: str
    severity: str
    speed_limit_kmh: float | None
    depth_m: float
    in_force: bool


class HoldingItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[HoldingItem]
    next_cursor: str | None


@post("/geofences", tags=["tracking"])
async def create_geofence(request: Request[Any, Any, Any], data: JSONBody[GeofenceIn]) -> Response[GeofenceItem]:
    """A fence: a circle, a polygon with holes, or a corridor along a line; what it is for; when it holds; for whom."""
    parts = parts_of(request)
    partner_id = acting_for(request, data.partner_id)
    feed_id = feed_of(parts, partner_id, data.feed_id)
    made = _drawn(data.geometry, data.radius_m, data.half_width_m)
    limit = _limit(data.kind, data.speed_limit_kmh)
    calendar = _calendar(parts, feed_id, data.calendar)
    routes = _routes(parts, feed_id, data.routes)
    by, fence_id = caller_of(request).actor, parts.clock.uuid7()

    async def add(offers: OfferBook) -> Any:
        book = FenceBook(offers.connection)
        if await book.count(feed_id) >= FENCES_MAX:
            raise Conflict(f"feed {feed_id!r} has {FENCES_MAX:,} fences already: retire some")
        severity = data.severity or KINDS[data.kind]
        buses = await _buses(offers, partner_id, data.buses)
        return await book.add(fence_id, partner_id, feed_id, data.name, data.kind, severity, made, calendar, buses, routes, limit, by)

    return await created(request, partner_id, KIND, fence_id, add, _item)


@get("/geofences", tags=["tracking"])
async def list_geofences(
    request: Request[Any, Any, Any],
    limit: Limit = 20,
    cursor: Cursor = None,
    bbox: Annotated[str | None, QueryParameter(description="west,south,east,north in degrees: only fences that may reach into it")] = None,
    kind: FromQuery[FenceKind | None] = None,
    feed: FromQuery[str | None] = None,
    partner: FromQuery[str | None] = None,
    retired: FromQuery[bool] = False,
) -> GeofenceItems:
    """The operator's fences, oldest first."""
    partner_id = acting_for(request, partner, anybody=True)
    after, box = FIRST if cursor is None else _uuid(cursor), None if bbox is None else parse_box(bbox)
    if after is None:
        raise Invalid("cursor must be the nextCursor of an earlier page")

    async def read(offers: OfferBook) -> Any:
        book = FenceBook(offers.connection)
        return await book.fences(partner_id, after, limit + 1, retired=retired, feed_id=feed, kind=kind, box=box)

    rows = await reading(request, partner_id, read)
    return GeofenceItems([_item(row) for row in rows[:limit]], rows[limit - 1]["id"] if len(rows) > limit else None)


@get("/geofences/{fence_id:str}", tags=["tracking"])
async def read_geofence(
    request: Request[Any, Any, Any], fence_id: FromPath[str], partner: FromQuery[str | None] = None
) -> Response[GeofenceItem]:
    """One fence; its ETag is what an edit sends as If-Match."""
    partner_id = acting_for(request, partner)
    return tagged(_item(found(await reading(request, partner_id, _reading(partner_id, fence_id)), WORD, fence_id)))


@patch("/geofences/{fence_id:str}", tags=["tracking"])
async def edit_geofence(
    request: Request[Any, Any, Any], fence_id: FromPath[str], data: JSONBody[GeofenceEdit], partner: FromQuery[str | None] = None
) -> Response[GeofenceItem]:
    """The fence's next version. A bus that is inside goes on being inside, if the new border says so."""
    parts = parts_of(request)
    partner_id, by = acting_for(request, partner), caller_of(request).actor
    redrawn = None if data.geometry is None else _drawn(data.geometry, None, None)

    async def write(offers: OfferBook, before: Any) -> Any:
        going(before, WORD, fence_id)
        feed_id = before["feed_id"]
        made = redrawn or Drawn(before["drawing"], drawn(before["drawing"], before["depth_m"]))
        limit = before["limit_kmh"] if data.speed_limit_kmh is None else _limit(before["kind"], data.speed_limit_kmh)
        buses = before["buses"] if data.buses is None else await _buses(offers, partner_id, data.buses)
        return await FenceBook(offers.connection).change(
            partner_id,
            fence_id,
            data.name or before["name"],
            data.severity or before["severity"],
            made,
            before["calendar"] if data.calendar is UNSET else _calendar(parts, feed_id, data.calendar),
            buses,
            before["routes"] if data.routes is None else _routes(parts, feed_id, data.routes),
            limit,
            by,
        )

    return tagged(await changed(request, _change(partner_id, fence_id, write)))


@delete("/geofences/{fence_id:str}", tags=["tracking"], status_code=200)
async def retire_geofence(
    request: Request[Any, Any, Any], fence_id: FromPath[str], partner: FromQuery[str | None] = None
) -> Response[GeofenceItem]:
    """It holds no more; what is open of it is closed. Its record stays."""
    partner_id, by = acting_for(request, partner), caller_of(request).actor

    async def write(offers: OfferBook, before: Any) -> Any:
        return before if before["retired_at"] is not None else await FenceBook(offers.connection).retire(partner_id, fence_id, by)

    return tagged(await changed(request, _change(partner_id, fence_id, write)))


@post("/geofences/check", tags=["tracking"], status_code=200)
async def check_geofences(request: Request[Any, Any, Any], data: JSONBody[Place]) -> HoldingItems:
    """Which fences enclose a place, and which of them hold now; at most a hundred."""
    parts = parts_of(request)
    partner_id = acting_for(request, data.partner_id, anybody=True)
    box = (data.lon, data.lat, data.lon, data.lat)

    async def read(offers: OfferBook) -> Any:
        return await FenceBook(offers.connection).fences(partner_id, FIRST, 10 * HOLDING_MAX, feed_id=data.feed_id, box=box)

    items = []
    for row in await reading(request, partner_id, read):
        away_m = drawn(row["drawing"], row["depth_m"]).signed_m(data.lon, data.lat)
        if away_m <= 0.0 and _is_for(row, data.bus_id, data.route_id):
            items.append(_holding(row, -away_m, parts.clock.now_ms()))
    return HoldingItems(items[:HOLDING_MAX], None)


# ------------------------------------------------------------------------------------------------ how they are made


def _change(partner_id: str, fence_id: str, write: Any) -> Change:
    return Change(partner_id, KIND, WORD, fence_id, _reading(partner_id, fence_id), write, _item)


def _reading(partner_id: str, fence_id: str) -> Any:
    """Raises `NotFound` at once for what is no id."""
    if _uuid(fence_id) is None:
        raise NotFound(f"no {WORD} {fence_id[:80]!r}")
    return lambda book: FenceBook(book.connection).fence(partner_id, fence_id)


def _uuid(text: str) -> str | None:
    plain = text.replace("-", "").lower()
    return text if len(plain) == 32 and len(text) <= 36 and all(digit in "0123456789abcdef" for digit in plain) else None


def _drawn(geometry: Geometry, radius_m: float | None, half_width_m: float | None) -> Drawn:
    """The area. Raises `Invalid` with the place of every fault."""
    drawing = msgspec.to_builtins(geometry)
    if drawing["type"] == "Point":
        drawing["type"] = "Circle"
    wanted = {"Circle": "radiusM", "LineString": "halfWidthM"}.get(drawing["type"])
    for name, given in (("radiusM", radius_m), ("halfWidthM", half_width_m)):
        if given is not None and drawing.setdefault(name, given) != given:
            raise _wrong(f"/{name}", "INVALID_VALUE", f"the geometry says {drawing[name]:g}")
        if name in drawing and name != wanted:
            raise _wrong(f"/geometry/{name}", "INVALID_VALUE", f"a {drawing['type']} has none")
    try:
        return Drawn(drawing, drawn(drawing))
    except BadDrawing as fault:
        errors = [{"pointer": "/geometry" + one.pointer, "code": one.code, "detail": one.detail} for one in fault.faults]
        raise Invalid(f"the geometry is no area: {fault}", errors=errors) from fault


def _limit(kind: str, limit_kmh: float | None) -> float | None:
    if (kind == SPEED_ZONE) is (limit_kmh is None):
        detail = "a SPEED_ZONE has a speed limit" if kind == SPEED_ZONE else f"a {kind} fence has no speed limit: draw a SPEED_ZONE"
        raise _wrong("/speedLimitKmh", "MISSING_FIELD" if kind == SPEED_ZONE else "INVALID_VALUE", detail)
    return limit_kmh


def _calendar(parts: Parts, feed_id: str, calendar: Calendar | None) -> Any:
    """As it is kept: with its time zone. None: always."""
    if calendar is None:
        return None
    timetable = parts.plans.timetable(feed_id) if parts.plans is not None else None
    hours = hours_of(calendar, str(timetable.tz) if timetable is not None else "UTC")
    return msgspec.to_builtins(msgspec.structs.replace(calendar, time_zone=hours.tz))


async def _buses(offers: OfferBook, partner_id: str, buses: tuple[str, ...]) -> list[str]:
    """Each once. Raises `Invalid` for one that is no working bus of the operator."""
    missing = set(await Fleet(offers.connection).buses_missing(partner_id, buses)) if buses else set()
    for number, bus_id in enumerate(buses):
        if bus_id in missing:
            raise _wrong(f"/buses/{number}", "UNKNOWN_BUS", f"the operator has no bus {bus_id!r}")
    return list(dict.fromkeys(buses))


def _routes(parts: Parts, feed_id: str, routes: tuple[str, ...]) -> list[str]:
    """Ids of the feed. Raises `Invalid` for a route that it does not have."""
    timetable = parts.plans.timetable(feed_id) if parts.plans is not None else None
    local = []
    for number, route_id in enumerate(routes):
        feed, _, name = route_id.partition(":")
        if feed != feed_id or timetable is None or name not in timetable.routes:
            raise _wrong(f"/routes/{number}", "UNKNOWN_ROUTE", f"feed {feed_id!r} has no route {route_id[:80]!r}")
        local.append(name)
    return list(dict.fromkeys(local))


def _is_for(row: Any, bus_id: str | None, route_id: str | None) -> bool:
    if (bus_id is None and route_id is None) or not (row["buses"] or row["routes"]):
        return True
    return bus_id in row["buses"] or (route_id is not None and route_id.removeprefix(f"{row['feed_id']}:") in row["routes"])


def _wrong(pointer: str, code: str, detail: str) -> Invalid:
    return Invalid(f"{pointer}: {detail}", errors=[{"pointer": pointer, "code": code, "detail": detail}])


def _holding(row: Any, depth_m: float, now_ms: int) -> HoldingItem:
    calendar = row["calendar"]
    in_force = calendar is None or hours_of(msgspec.convert(calendar, Calendar), "UTC").holds(now_ms)
    return HoldingItem(
        row["id"], row["feed_id"], row["name"], row["kind"], row["severity"], row["limit_kmh"], round(depth_m, 1), in_force
    )  # fmt: skip


def _item(row: Any) -> GeofenceItem:
    calendar = row["calendar"]
    return GeofenceItem(
        row["id"],
        row["partner_id"],
        row["feed_id"],
        row["name"],
        row["kind"],
        row["severity"],
        msgspec.convert(row["drawing"], Geometry),
        row["limit_kmh"],
        None if calendar is None else msgspec.convert(calendar, Calendar),
        row["buses"],
        [f"{row['feed_id']}:{route_id}" for route_id in row["routes"]],
        round(row["depth_m"], 1),
        row["version"],
        when(row["changed_at"]) or "",
        row["changed_by"],
        when(row["retired_at"]),
    )


ROUTERS: Final = (create_geofence, list_geofences, check_geofences, read_geofence, edit_geofence, retire_geofence)
