"""Search over HTTP: rides between two places, places by name, the routes most booked. For everybody.

`GET /v1/routes?origin&destination` is answered from here (api/network.py has the call's other half, the list of all routes).
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Request, get
from litestar.params import QueryParameter

from api.parts import Parts, parts_of
from engine.booking.search import Found, Search, place_of
from engine.booking.seatmaps import Money
from engine.errors import Invalid, Unavailable
from engine.live.frames import rfc3339

Sort = Literal["departure", "price", "duration"]
DAY_MS: Final = 86_400_000
LAST: Final = 2**53  # of a price that is not known: after all others


class RideItem(msgspec.Struct, frozen=True, rename="camel"):
    """A ride on sale. `from` and `to` go into the calls that hold seats as they stand here; where the trip calls at a stop twice, `fromSeq` and
    `toSeq` say which."""

    route_id: str
    trip_id: str
    start: str = msgspec.field(name="from")
    end: str = msgspec.field(name="to")
    departs_at: str
    arrives_at: str
    seats_free: int
    price_from: Money | None  # the cheapest kind of seat for an adult; null: there is no fare
    duration_s: int
    stops: int  # calls on the way, both ends counted
    from_name: str
    to_name: str
    from_seq: int
    to_seq: int
    route_name: str
    headsign: str | None
    partner_id: str


class RideItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[RideItem]
    next_cursor: str | None


class PlaceItem(msgspec.Struct, frozen=True, rename="camel"):
    id: str
    name: str
    kind: Literal["STOP"]
    lat: float
    lon: float
    sold: bool  # there are or were trips on sale that call there


class PlaceItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[PlaceItem]
    next_cursor: None = None


class PopularItem(msgspec.Struct, frozen=True, rename="camel"):
    route_id: str
    route_name: str
    bookings: int  # confirmed in the last 30 days


class PopularItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[PopularItem]
    next_cursor: None = None


@get("/places", tags=["network"])
async def list_places(
    request: Request[Any, Any, Any],
    typed: Annotated[str, QueryParameter(name="q", min_length=1, max_length=200, description="the beginning of a name, mistakes allowed")],
    limit: Annotated[int, QueryParameter(name="limit", ge=1, le=50, description="at most so many")] = 10,
) -> PlaceItems:
    """Places somebody may mean while they type, the likeliest first. An item's `id` is good as origin or destination of a search."""
    found = await _search(parts_of(request)).places(typed, limit)
    return PlaceItems([PlaceItem(one.stop_id, one.name, "STOP", one.lat, one.lon, one.sold) for one in found])


@get("/routes/popular", tags=["network"])
async def list_popular(
    request: Request[Any, Any, Any],
    limit: Annotated[int, QueryParameter(name="limit", ge=1, le=100, description="at most so many")] = 20,
) -> PopularItems:
    """Routes on sale, the most booked of the last 30 days first."""
    parts = parts_of(request)
    rows = (await _search(parts).popular())[:limit]
    return PopularItems([PopularItem(route, route_name(parts, route), count) for route, count in rows])


# ------------------------------------------------------------------------------------------------ how they are made


async def search_rides(
    parts: Parts,
    origin: str | None,
    destination: str | None,
    day: date | None,
    *,
    passengers: int | None,
    sort: Sort,
    limit: int,
    cursor: str | None,
) -> RideItems:
    """One page of the rides between two places. A cursor names the last ride of the page before. Raises `Invalid`."""
    missing = [name for name, given in (("origin", origin), ("destination", destination)) if given is None]
    if missing or origin is None or destination is None:
        raise Invalid(
            f"a search needs both ends: {', '.join(missing)} is missing",
            errors=[{"pointer": f"/{name}", "code": "MISSING_FIELD", "detail": "a stop id, a place name or lat,lon"} for name in missing],
        )
    search = _search(parts)
    found = await search.rides(place_of(origin, "/origin"), place_of(destination, "/destination"), day)
    rows = sorted((_rank(one, sort), one) for one in found if passengers is None or one.free >= passengers)
    if cursor is not None:
        after = _place(cursor)
        rows = [row for row in rows if row[0] > after]
    more = ".".join(map(str, rows[limit - 1][0])) if len(rows) > limit else None
    return RideItems([_item(one, route_name(parts, one.ride.route_id)) for _, one in rows[:limit]], more)


def _search(parts: Parts) -> Search:
    if parts.booking is None:
        raise Unavailable("this worker has no booking desk", retry_after_s=5)
    return parts.booking.search


def _rank(found: Found, sort: Sort) -> tuple[int, int, int]:
    ride = found.ride
    first = {
        "departure": ride.departs.at_ms,
        "price": LAST if found.price is None else found.price,
        "duration": ride.arrives.at_ms - ride.departs.at_ms,
    }[sort]
    return first, ride.departs.at_ms, ride.trip_no


def _place(cursor: str) -> tuple[int, int, int]:
    parts = cursor.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) <= 18 for part in parts):
        raise Invalid("cursor must be the nextCursor of an earlier page")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _item(found: Found, name: str) -> RideItem:
    ride = found.ride
    first, last = ride.departs, ride.arrives
    return RideItem(
        route_id=ride.route_id,
        trip_id=ride.trip_id,
        start=ride.stop_ids[0],
        end=ride.stop_ids[-1],
        departs_at=rfc3339(first.at_ms),
        arrives_at=rfc3339(last.at_ms),
        seats_free=found.free,
        price_from=price_of(found),
        duration_s=(last.at_ms - first.at_ms) // 1000,
        stops=len(ride.stop_ids),
        from_name=first.name,
        to_name=last.name,
        from_seq=first.stop_sequence,
        to_seq=last.stop_sequence,
        route_name=name,
        headsign=ride.headsign,
        partner_id=ride.partner_id,
    )


def price_of(found: Found) -> Money | None:
    return None if found.price is None else Money(found.price, found.ride.currency)


def route_name(parts: Parts, public: str) -> str:
    """What people call a route; "" where no timetable in force has it."""
    feed_id, _, local = public.partition(":")
    for plan in parts.plans.all() if parts.plans is not None else []:
        if plan.feed_id == feed_id and local in plan.timetable.routes:
            route = plan.timetable.routes[local]
            return route.short_name or route.long_name
    return ""


def day_of(text: str | None, now_ms: int) -> date | None:
    """A date as a query writes it, yyyy-mm-dd or yyyymmdd. Raises `Invalid`."""
    if text is None:
        return None
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise Invalid(
            f"date reads yyyy-mm-dd, not {text[:40]!r}", errors=[{"pointer": "/date", "code": "INVALID", "detail": "yyyy-mm-dd"}]
        ) from None
    if abs(day - datetime.fromtimestamp(now_ms / 1000, UTC).date()) > timedelta(days=400):
        raise Invalid("date must lie within 400 days of today", errors=[{"pointer": "/date", "code": "OUT_OF_RANGE", "detail": text}])
    return day


ROUTERS: Final = (list_places, list_popular)
