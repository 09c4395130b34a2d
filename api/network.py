"""REST reads of the planned network: routes, stops, trips and their times, joined with what is live.

Everything comes from the timetables in memory and the live table: no call here waits for a database. Lists are `{"items", "nextCursor"}`;
times RFC 3339 UTC; distances metres; ETags are the feed's version, so a client that polls gets 304 until the feed changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from operator import itemgetter
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from litestar import Request, Response, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, QueryParameter

from api.departures import HORIZON_MOST_S, HORIZON_S, Board, DepartureItem, DepartureItems, cancelled_trips, on_trip, route_name
from api.etags import tagged, unchanged
from api.ids import public_id, split_id, split_trip, trip_key
from api.parts import Parts, parts_of
from api.printed import following, printed
from api.search import RideItems, Sort, day_of, price_of, search_rides
from engine.booking.catalogue import SoldTrip
from engine.booking.search import Found
from engine.booking.seatmaps import Money
from engine.errors import Invalid, NotFound, Unavailable
from engine.events import Position
from engine.live.frames import EtaStop, Pos, eta_stop, pos, rfc3339
from engine.tracking.plans import Plan
from engine.tracking.timetable import Pattern, Stop, Timetable, TripInstance, parse_date
from geo.coords import distance_m, wrap_lon

NEAR_MOST_M: Final = 5_000
BOARDS_MOST: Final = 10  # departures of each stop near a point

Limit = Annotated[int, QueryParameter(name="limit", ge=1, le=100, description="items a page")]
Cursor = Annotated[str | None, QueryParameter(name="cursor", description="nextCursor of the page before")]


class RouteItem(msgspec.Struct, frozen=True, rename="camel"):
    route_id: str
    partner_id: str
    short_name: str
    long_name: str
    kind: int  # GTFS route_type
    color: str | None
    text_color: str | None


class RouteItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[RouteItem]
    next_cursor: str | None


class PatternItem(msgspec.Struct, frozen=True, rename="camel"):
    pattern_id: str
    direction_id: int
    stop_ids: list[str]
    along_m: list[float]  # arc position of each stop
    length_m: float
    geometry: dict[str, Any]  # GeoJSON LineString


class RouteDetail(RouteItem, frozen=True, rename="camel"):
    patterns: list[PatternItem]


DETAIL: Final = ResponseSpec(RouteDetail, generate_examples=False, description="the route")


class StopItem(msgspec.Struct, frozen=True, rename="camel"):
    stop_id: str
    name: str
    lat: float
    lon: float
    code: str | None
    distance_m: float | None = None
    departures: list[DepartureItem] | None = None  # the next ones, where they were asked for


class StopItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[StopItem]
    next_cursor: str | None


class ScheduleItem(msgspec.Struct, frozen=True, rename="camel"):
    trip_id: str
    start_date: str
    headsign: str | None
    direction_id: int
    departs_at: str
    arrives_at: str
    on_sale: bool | None = None  # None: this trip is not sold here
    seats_free: int | None = None  # on the whole way
    price_from: Money | None = None


class ScheduleItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[ScheduleItem]
    next_cursor: str | None


class TripStop(msgspec.Struct, frozen=True, rename="camel"):
    stop_id: str
    seq: int
    name: str
    lat: float
    lon: float
    arrives_at: str
    departs_at: str
    along_m: float


class TripDetail(msgspec.Struct, frozen=True, rename="camel"):
    id: str
    trip_id: str  # the trip, without its date
    route_id: str
    route_name: str
    start_date: str
    headsign: str | None
    status: str  # SCHEDULED | RUNNING | COMPLETED, by what is live, else by the timetable; CANCELLED by the operator
    bus_id: str | None
    map_version: int
    timezone: str
    stops: list[TripStop]
    geometry: dict[str, Any]
    on_sale: bool


class TripLive(Pos, frozen=True, rename="camel"):
    stops: list[EtaStop]
    age_ms: int
    driven_m: float | None  # since the start of the trip
    remaining_m: float | None  # along the line to its last stop


BOARD: Final = ResponseSpec(DepartureItems, generate_examples=False, description="the departures")
LIVE: Final = ResponseSpec(TripLive, generate_examples=False, description="the trip as it is live")


# ------------------------------------------------------------------------------------------------ routes


@get("/routes", tags=["network"])
async def list_routes(
    request: Request[Any, Any, Any],
    limit: Limit = 20,
    cursor: Cursor = None,
    feed: FromQuery[str | None] = None,
    origin: Annotated[str | None, QueryParameter(description="search: a stop id, a name (mistakes allowed) or lat,lon")] = None,
    destination: Annotated[str | None, QueryParameter(description="search: a stop id, a name (mistakes allowed) or lat,lon")] = None,
    on: Annotated[str | None, QueryParameter(name="date", description="search: yyyy-mm-dd where the ride begins; default: a week")] = None,
    passengers: Annotated[int | None, QueryParameter(ge=1, le=60, description="search: rides with so many free seats")] = None,
    sort: Annotated[Sort, QueryParameter(description="search: what comes first")] = "departure",
) -> RouteItems | RideItems:
    """All routes, by feed and id; with `origin` and `destination` the rides on sale between them that have not left, with free seats."""
    if origin is not None or destination is not None:
        parts = parts_of(request)
        day = day_of(on, parts.clock.now_ms())
        return await search_rides(parts, origin, destination, day, passengers=passengers, sort=sort, limit=limit, cursor=cursor)
    rows = sorted(
        (public, plan.feed_id, route_id, plan)
        for plan in _plans(request)
        if feed is None or plan.feed_id == feed
        for public, route_id in following(printed(plan.timetable).routes, cursor, limit + 1)
    )
    page = rows[: limit + 1]
    items = [_route(plan, route_id) for _, _, route_id, plan in page[:limit]]
    return RouteItems(items, items[-1].route_id if len(page) > limit else None)


@get("/routes/{route_id:str}", tags=["network"], sync_to_thread=False, responses={200: DETAIL})
def read_route(request: Request[Any, Any, Any], route_id: FromPath[str]) -> Response[Any]:
    """One route with its patterns: stops in order, and the line as GeoJSON."""
    plan, local = _planned(request, route_id, "route")
    if local not in plan.timetable.routes:
        raise NotFound(f"no route {route_id!r}")
    tag = f'"{plan.timetable.version}"'
    if unchanged(request, tag):
        return Response(None, status_code=304, headers={"ETag": tag})
    item = _route(plan, local)
    kept = printed(plan.timetable)
    patterns = [kept.json("pattern", pattern, lambda one: _pattern(plan, one)) for pattern in kept.patterns.get(local, ())]
    detail = RouteDetail(**msgspec.structs.asdict(item), patterns=patterns)
    return Response(detail, headers={"ETag": tag, "Cache-Control": "public, max-age=60"})


@get("/routes/{route_id:str}/schedules", tags=["network"])
async def read_schedules(
    request: Request[Any, Any, Any],
    route_id: FromPath[str],
    on: Annotated[str | None, QueryParameter(name="date", description="yyyy-mm-dd, default today")] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> ScheduleItems:
    """The trips of a route on one service date, by departure; of those on sale the free seats and the lowest price."""
    plan, local = _planned(request, route_id, "route")
    if local not in plan.timetable.routes:
        raise NotFound(f"no route {route_id!r}")
    day = _date(on, plan.timetable, parts_of(request).clock.now_ms())
    rows = plan.timetable.instances_of_route(local, day)
    start = offset_of(cursor)
    page = rows[start : start + limit]
    sold = await _sold(parts_of(request), [trip_key(plan.feed_id, one.trip.trip_id, one.start_date) for one in page])
    items = [_schedule(plan.feed_id, instance, sold) for instance in page]
    return ScheduleItems(items, str(start + limit) if start + limit < len(rows) else None)


# ------------------------------------------------------------------------------------------------ stops


@get("/stops", tags=["network"], responses={200: ResponseSpec(StopItems, generate_examples=False, description="the stops")})
async def list_stops(
    request: Request[Any, Any, Any],
    near: Annotated[str | None, QueryParameter(description="lat,lon")] = None,
    radius: Annotated[int, QueryParameter(ge=1, le=NEAR_MOST_M, description="metres")] = 500,
    departures: Annotated[int, QueryParameter(ge=0, le=BOARDS_MOST, description="of each stop the next so many, with live times")] = 0,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Response[Any]:
    """All stops by id, or those within `radius` of a point, nearest first; with `departures` what leaves there within two hours."""
    parts = parts_of(request)
    if near is not None:
        lat, lon = parse_point(near)
        near_by = (item for plan in _plans(request) for item in _stops_near(plan, lat, lon, radius))
        found = sorted(near_by, key=lambda stop: (stop.distance_m, stop.stop_id))
        start = offset_of(cursor)
        page, after = found[start : start + limit], str(start + limit) if start + limit < len(found) else None
    else:
        rows = (row for plan in _plans(request) for row in following(printed(plan.timetable).stops, cursor, limit + 1))
        few = sorted(rows, key=itemgetter(0))[: limit + 1]
        page = [_stop(stop_id, stop) for stop_id, stop in few[:limit]]
        after = page[-1].stop_id if len(few) > limit else None
    if departures:
        page = await _with_boards(parts, page, departures)
    return tagged(request, StopItems(page, after))


async def _with_boards(parts: Parts, stops: list[StopItem], count: int) -> list[StopItem]:
    """The same stops with their next departures."""
    cancelled, now_ms = await cancelled_trips(parts), parts.clock.now_ms()
    boards: dict[str, Board] = {}
    found = []
    for stop in stops:
        feed_id, local = split_id(stop.stop_id, "stop")
        if feed_id not in boards and parts.plans is not None and (plan := parts.plans.get(feed_id)) is not None:
            boards[feed_id] = Board(parts, plan, now_ms, HORIZON_S, cancelled)
        found.append(msgspec.structs.replace(stop, departures=boards[feed_id].at(local)[:count]))
    return found


@get("/stops/{stop_id:str}", tags=["network"], sync_to_thread=False)
def read_stop(request: Request[Any, Any, Any], stop_id: FromPath[str]) -> StopItem:
    """One stop."""
    plan, local = _planned(request, stop_id, "stop")
    stop = plan.timetable.stops.get(local)
    if stop is None:
        raise NotFound(f"no stop {stop_id!r}")
    return _stop(stop_id, stop)


@get("/stops/{stop_id:str}/departures", tags=["network"], responses={200: BOARD})
async def read_departures(
    request: Request[Any, Any, Any],
    stop_id: FromPath[str],
    horizon: Annotated[int, QueryParameter(ge=60, le=HORIZON_MOST_S, description="seconds from now")] = HORIZON_S,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Response[Any]:
    """The next departures of a stop or a station, as they are expected: live where a bus is on its way, else the timetable's word. A cursor
    counts from the first departure of the moment it is used, so a page that is asked for later begins as much later as buses have left
    meanwhile."""
    parts = parts_of(request)
    plan, local = _planned(request, stop_id, "stop")
    if local not in plan.timetable.stops:
        raise NotFound(f"no stop {stop_id!r}")
    found = Board(parts, plan, parts.clock.now_ms(), horizon, await cancelled_trips(parts)).at(local)
    start = offset_of(cursor)
    return tagged(request, DepartureItems(found[start : start + limit], str(start + limit) if start + limit < len(found) else None))


# ------------------------------------------------------------------------------------------------ trips


@get("/trips/{trip_id:str}", tags=["trips"])
async def read_trip(request: Request[Any, Any, Any], trip_id: FromPath[str]) -> TripDetail:
    """One trip instance: its stops with planned times, its line, who drives it now, and whether it is on sale."""
    parts = parts_of(request)
    plan, instance = trip_instance(parts, trip_id)
    position = on_trip(parts, trip_id)
    now_ms = parts.clock.now_ms()
    sold = await sold_trip(parts, trip_id)
    status = status_of(sold, position, instance, now_ms)
    trip, pattern = instance.trip, instance.trip.pattern
    stops = []
    for index, stop_id in enumerate(pattern.stop_ids):
        stop = plan.timetable.stops[stop_id]
        stops.append(
            TripStop(
                public_id(plan.feed_id, stop_id),
                pattern.stop_sequences[index],
                stop.name,
                stop.lat,
                stop.lon,
                rfc3339(instance.arrival_ms(index)),
                rfc3339(instance.departure_ms(index)),
                round(float(pattern.along_m[index]), 1),
            )
        )
    return TripDetail(
        trip_id,
        public_id(plan.feed_id, trip.trip_id),
        public_id(plan.feed_id, trip.route_id),
        route_name(plan.timetable, trip),
        instance.start_date,
        trip.headsign,
        status,
        position.bus_id if position is not None else None if sold is None else sold.bus_id,
        1 if sold is None else sold.map_version,
        str(plan.timetable.tz),
        stops,
        printed(plan.timetable).json("line", pattern, _line),
        sold is not None and sold.sales_open and sold.status == "SCHEDULED" and sold.closes_at_ms > now_ms,
    )


@get("/trips/{trip_id:str}/live", tags=["trips"], sync_to_thread=False, responses={200: LIVE})
def read_trip_live(request: Request[Any, Any, Any], trip_id: FromPath[str]) -> Response[Any]:
    """Where the trip's bus is, and when it will be at each remaining stop; stops that it missed stand before them as SKIPPED. 404 while no
    bus drives it."""
    parts = parts_of(request)
    trip_instance(parts, trip_id)
    position = on_trip(parts, trip_id)
    if position is None:
        raise NotFound(f"no bus is driving {trip_id!r} right now; GET /v1/trips/{trip_id} has its planned times")
    forecast = parts.table.forecast(position.bus_id)
    current = forecast is not None and forecast.trip_id == position.trip_id and forecast.start_date == position.start_date
    stops = [eta_stop(position.feed_id, stop) for stop in forecast.stops] if current and forecast is not None else []
    shown = pos(position)
    live = TripLive(
        **msgspec.structs.asdict(shown),
        stops=stops,
        age_ms=max(0, parts.clock.now_ms() - position.fixed_at_ms),
        driven_m=metres(position.driven_m),
        remaining_m=metres(position.remaining_m),
    )
    return tagged(request, live, but=msgspec.structs.replace(live, age_ms=0))


# ------------------------------------------------------------------------------------------------ how they are made


def status_of(sold: SoldTrip | None, position: Position | None, instance: TripInstance, now_ms: int) -> str:
    """SCHEDULED, RUNNING or COMPLETED, by what is live, else by the timetable; CANCELLED by the operator."""
    if sold is not None and sold.status == "CANCELLED":
        return "CANCELLED"
    if position is not None and position.stop_index is not None:  # None: it has done this trip and has no other yet
        return "RUNNING"
    if position is not None or now_ms > instance.arrival_ms(len(instance.trip.arrival_s) - 1):
        return "COMPLETED"
    return "SCHEDULED"


async def sold_trip(parts: Parts, trip_id: str) -> SoldTrip | None:
    """The trip as the desk knows it; None where it is not on sale, and while the database is away: the timetable is read without it."""
    if parts.booking is None:
        return None
    try:
        return await parts.booking.catalogue.find(trip_id)
    except Unavailable:
        return None


def metres(value: float | None) -> float | None:
    """To 0.1 m, as the other metres of a position."""
    return None if value is None else round(value, 1)


def parse_point(text: str) -> tuple[float, float]:
    """(lat, lon) from "lat,lon". Raises `Invalid`."""
    try:
        lat, lon = (float(part) for part in text.split(","))
    except ValueError as fault:
        raise Invalid(f"a point reads lat,lon in degrees, not {text[:60]!r}") from fault
    if not (-90 <= lat <= 90 and -180 <= lon <= 180):
        raise Invalid(f"{text[:60]!r} is on no map: latitude -90..90, longitude -180..180")
    return lat, lon


def _plans(request: Request[Any, Any, Any]) -> list[Plan]:
    plans = parts_of(request).plans
    if plans is None:
        raise Unavailable("no timetable is loaded yet", retry_after_s=2)
    return plans.all()


def _planned(request: Request[Any, Any, Any], public: str, what: str) -> tuple[Plan, str]:
    feed_id, local = split_id(public, what)
    for plan in _plans(request):
        if plan.feed_id == feed_id:
            return plan, local
    raise NotFound(f"no {what} {public!r}: there is no feed {feed_id!r}")


def trip_instance(parts: Parts, public: str) -> tuple[Plan, TripInstance]:
    """The trip instance of a public id, and its feed. Raises `NotFound`."""
    feed_id, trip_id, start_date = split_trip(public)
    if parts.plans is None:
        raise Unavailable("no timetable is loaded yet", retry_after_s=2)
    plan = next((one for one in parts.plans.all() if one.feed_id == feed_id), None)
    if plan is None:
        raise NotFound(f"no trip {public!r}: there is no feed {feed_id!r}")
    instance = plan.timetable.instance(trip_id, start_date)
    if instance is None:
        raise NotFound(f"no trip {public!r} in feed {feed_id!r}")
    return plan, instance


def _route(plan: Plan, route_id: str) -> RouteItem:
    route = plan.timetable.routes[route_id]
    return RouteItem(
        public_id(plan.feed_id, route_id), plan.partner_id, route.short_name, route.long_name, route.kind, route.color, route.text_color
    )


def _line(pattern: Pattern) -> dict[str, Any]:
    points = np.round(np.column_stack((pattern.shape.lons, pattern.shape.lats)), 6).tolist()
    return {"type": "LineString", "coordinates": points}


def _pattern(plan: Plan, pattern: Pattern) -> PatternItem:
    return PatternItem(
        public_id(plan.feed_id, pattern.pattern_id),
        pattern.direction_id,
        [public_id(plan.feed_id, stop_id) for stop_id in pattern.stop_ids],
        [round(float(along), 1) for along in pattern.along_m],
        round(pattern.shape.length_m, 1),
        _line(pattern),
    )


async def _sold(parts: Parts, trip_ids: list[str]) -> dict[str, Found]:
    """What is sold of these trips; nothing where the database is away: a timetable is worth having without prices."""
    if parts.booking is None or not trip_ids:
        return {}
    try:
        return await parts.booking.search.trips(trip_ids)
    except Unavailable:
        return {}


def _schedule(feed_id: str, instance: TripInstance, sold: dict[str, Found]) -> ScheduleItem:
    trip = instance.trip
    key = trip_key(feed_id, trip.trip_id, instance.start_date)
    found = sold.get(key)
    return ScheduleItem(
        key,
        instance.start_date,
        trip.headsign,
        trip.pattern.direction_id,
        rfc3339(instance.departure_ms(0)),
        rfc3339(instance.arrival_ms(len(trip.arrival_s) - 1)),
        None if found is None else found.on_sale,
        None if found is None else found.free,
        None if found is None else price_of(found),
    )


def _stop(public: str, stop: Stop, away_m: float | None = None) -> StopItem:
    return StopItem(public, stop.name, stop.lat, stop.lon, stop.code, None if away_m is None else round(away_m, 1))


def _stops_near(plan: Plan, lat: float, lon: float, radius_m: float) -> Iterator[StopItem]:
    """Boarding stops (location_type 0). A box first: 2,000 stops cost 0.3 ms, exact distances ten times that."""
    reach = radius_m / 110_000
    wide = reach / max(0.01, float(np.cos(np.radians(lat))))
    for stop_id, stop in plan.timetable.stops.items():
        if stop.location_type == 0 and abs(stop.lat - lat) <= reach and abs(wrap_lon(stop.lon - lon)) <= wide:
            away_m = distance_m(lon, lat, stop.lon, stop.lat)
            if away_m <= radius_m:
                yield _stop(public_id(plan.feed_id, stop_id), stop, away_m)


def _date(text: str | None, timetable: Timetable, now_ms: int) -> date:
    if text is None:
        return datetime.fromtimestamp(now_ms / 1000, timetable.tz).date()
    day = parse_date(text.replace("-", ""))
    if day is None:
        raise Invalid(f"date reads yyyy-mm-dd, not {text[:40]!r}")
    if abs(day - datetime.fromtimestamp(now_ms / 1000, timetable.tz).date()) > timedelta(days=400):
        raise Invalid("date must lie within 400 days of today")
    return day


def offset_of(cursor: str | None) -> int:
    """Where a page begins, by a cursor that counts. Raises `Invalid`."""
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit()) or len(cursor) > 9:  # "²" is a digit too, and no number
        raise Invalid("cursor must be the nextCursor of an earlier page")
    return int(cursor)


ROUTERS: Final = (list_routes, read_route, read_schedules, list_stops, read_stop, read_departures, read_trip, read_trip_live)
