"""Search: rides on sale between two places, what a trip has free and costs, places by name, the routes most booked.

What changes rarely (which trips, stops, times) is remembered for RIDES_MS, free seats and prices for FREE_MS; both are read for all rides of a
search at once, so that it is two calls to the database at most (and one for each fare plan every half minute). Free seats are a query over
legs; the judge is the hold.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from datetime import date
from itertools import pairwise
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from engine.booking import fares
from engine.booking.refusals import Refused
from engine.clock import Clock
from engine.errors import Invalid
from engine.store.desk import DeskPool
from engine.store.postgres import statements
from geo.coords import distance_m

RIDES_MS: Final = 10_000
FREE_MS: Final = 1_000
POPULAR_MS: Final = 24 * 3_600_000
POPULAR_DAYS: Final = 30
ENOUGH: Final = 100  # bookings; with fewer than these the order of routes is made again every minute
MINUTE_MS: Final = 60_000
RIDES_MOST: Final = 200  # of one search, the next ones
AHEAD_DAYS: Final = 7  # looked at where no date is given
NEAR_M: Final = 2_000  # a point means the stops within this
REMEMBERED: Final = 500  # searches of one worker

_POINT: Final = re.compile(r"\s*(-?\d{1,3}(?:\.\d+)?)\s*,\s*(-?\d{1,3}(?:\.\d+)?)\s*")

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class End(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where and when a ride begins or ends."""

    stop_sequence: int
    name: str
    at_ms: int


class Ride(msgspec.Struct, frozen=True, array_like=True):
    """A trip between two of its stops, as `sale.rides` tells it."""

    trip_no: int
    trip_id: str
    route_id: str
    partner_id: str
    headsign: str | None
    start: int  # place
    end: int
    fare_plan_id: str
    currency: str
    kinds: list[str]  # of its seats
    stop_ids: list[str]  # from `start` to `end`
    lats: list[float]
    lons: list[float]
    departs: End
    arrives: End
    metres: tuple[int, ...] = ()  # of each leg


class Standing(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What changes all the time, as `sale.seats_free` tells it."""

    trip_no: int
    free: int
    occupancy: int  # permille of the whole trip
    on_sale: bool


class Found(msgspec.Struct, frozen=True):
    """A ride with what is free and what the cheapest kind of seat costs an adult (minor units; None: there is no fare)."""

    ride: Ride
    free: int
    on_sale: bool
    price: int | None


class PlaceFound(msgspec.Struct, frozen=True, array_like=True):
    stop_id: str
    name: str
    lat: float
    lon: float
    sold: bool  # trips that are or were on sale call there


class Plans(Protocol):
    """What we need of `engine.booking.pricing.Pricing`: the plan of whatever has a `partner_id` and a `fare_plan_id`."""

    async def plan(self, trip: Any) -> fares.FarePlan: ...


def place_of(text: str, pointer: str) -> dict[str, Any]:
    """What somebody wrote for a place: a stop id, a name, or "lat,lon". Raises `Invalid`."""
    point = _POINT.fullmatch(text)
    if point is not None:
        lat, lon = float(point[1]), float(point[2])
        if abs(lat) > 90 or abs(lon) > 180:
            raise Invalid(
                f"{text[:60]!r} is on no map",
                errors=[{"pointer": pointer, "code": "OUT_OF_RANGE", "detail": "latitude -90..90, longitude -180..180"}],
            )
        return {"lat": lat, "lon": lon, "radius": NEAR_M}
    if not text.strip() or len(text) > 200 or "\x00" in text:
        raise Invalid(
            "a place is a stop id, a name or lat,lon", errors=[{"pointer": pointer, "code": "INVALID", "detail": "1 to 200 characters"}]
        )
    return {"text": text.strip()}


class Search:
    """All of one worker."""

    def __init__(self, pool: DeskPool, plans: Plans) -> None:
        self._pool, self._plans, self._clock = pool, plans, pool.clock
        self._sql = statements("search")
        self._rides: Recent[Hashable, list[Ride]] = Recent(self._clock, RIDES_MS, REMEMBERED)
        self._founds: Recent[Hashable, list[Found]] = Recent(self._clock, FREE_MS, REMEMBERED)
        self._popular: tuple[int, list[tuple[str, int]]] | None = None

    async def rides(self, origin: dict[str, Any], destination: dict[str, Any], day: date | None) -> list[Found]:
        """Rides on sale that have not left, in the order of departure; of one local date, or of the next AHEAD_DAYS."""
        key = (*origin.values(), "->", *destination.values(), day)

        async def read() -> list[Ride]:
            return _rides(await self._pool.call(self._sql["find"], origin, destination, day, AHEAD_DAYS, RIDES_MOST))

        rides = await self._rides.get(key, read)
        now_ms = self._clock.now_ms()
        return [found for found in await self._found(key, rides) if found.on_sale and found.ride.departs.at_ms > now_ms]

    async def trips(self, trip_ids: Sequence[str]) -> dict[str, Found]:
        """Those of these trips that are or were on sale, on their whole way."""
        key = tuple(trip_ids)

        async def read() -> list[Ride]:
            return _rides(await self._pool.call(self._sql["find_trips"], list(trip_ids)))

        return {found.ride.trip_id: found for found in await self._found(key, await self._rides.get(key, read))}

    async def places(self, typed: str, most: int) -> list[PlaceFound]:
        """What somebody who types this may mean, the likeliest first."""
        place_of(typed, "/q")
        rows = await self._pool.call(self._sql["places_like"], typed, most)
        return msgspec.convert(rows, list[PlaceFound])

    async def popular(self) -> list[tuple[str, int]]:
        """(route, bookings of the last POPULAR_DAYS) of the routes on sale, the most booked first."""
        now_ms = self._clock.now_ms()
        if self._popular is None or self._popular[0] <= now_ms:
            rows = [(route, count) for route, count in await self._pool.call(self._sql["popular"], POPULAR_DAYS, 100)]
            life_ms = POPULAR_MS if sum(count for _, count in rows) >= ENOUGH else MINUTE_MS
            self._popular = now_ms + life_ms, rows
        return self._popular[1]

    async def _found(self, key: Hashable, rides: list[Ride]) -> list[Found]:
        return await self._founds.get(key, lambda: self._look(rides)) if rides else []

    async def _look(self, rides: list[Ride]) -> list[Found]:
        trips, starts, ends = [ride.trip_no for ride in rides], [ride.start for ride in rides], [ride.end for ride in rides]
        rows = msgspec.convert(await self._pool.call(self._sql["seats_free"], trips, starts, ends), list[Standing])
        standings = {row.trip_no: row for row in rows}
        plans: dict[tuple[str, str], fares.FarePlan | None] = {}
        now_ms = self._clock.now_ms()
        found = []
        for ride in rides:
            name = (ride.partner_id, ride.fare_plan_id)
            if name not in plans:
                try:
                    plans[name] = await self._plans.plan(ride)
                except Refused:  # the operator has taken it away
                    plans[name] = None
            standing = standings.get(ride.trip_no)
            if standing is not None:
                price = _price(plans[name], ride, standing.occupancy, now_ms)
                found.append(Found(ride, standing.free, standing.on_sale, price))
        return found


def _rides(rows: Any) -> list[Ride]:
    return [msgspec.structs.replace(ride, metres=_metres(ride)) for ride in msgspec.convert(rows, list[Ride])]


def _metres(ride: Ride) -> tuple[int, ...]:
    points = pairwise(zip(ride.lons, ride.lats, strict=True))
    return tuple(round(distance_m(*here, *there)) for here, there in points)


def _price(plan: fares.FarePlan | None, ride: Ride, occupancy: int, now_ms: int) -> int | None:
    if plan is None or plan.currency != ride.currency:
        return None
    try:
        quote = fares.quote(
            plan,
            stops=ride.stop_ids,
            metres=ride.metres,
            frm=0,
            to=len(ride.metres),
            kinds=ride.kinds,
            departs_at_ms=ride.departs.at_ms,
            now_ms=now_ms,
            occupancy=occupancy,
        )
    except Refused:  # no fare between these two
        return None
    return min(quote.adult, default=None)


class Recent(Generic[K, T]):
    """Answers that are good for a while. Whoever asks while one is read waits for it; at most `most` are kept, the longest unused go first."""

    def __init__(self, clock: Clock, life_ms: int, most: int) -> None:
        self._clock, self._life_ms, self._most = clock, life_ms, most
        self._kept: OrderedDict[K, tuple[int, asyncio.Task[T]]] = OrderedDict()  # (good until, answer)

    async def get(self, key: K, read: Callable[[], Awaitable[T]]) -> T:
        now_ms = self._clock.now_ms()
        kept = self._kept.get(key)
        if kept is None or (kept[1].done() and (kept[0] <= now_ms or kept[1].cancelled() or kept[1].exception() is not None)):
            task = asyncio.create_task(_run(read))
            task.add_done_callback(_seen)
            kept = self._kept[key] = now_ms + self._life_ms, task
            self._kept.move_to_end(key)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return await asyncio.shield(kept[1])


def _seen(task: asyncio.Task[Any]) -> None:
    """A fault is everybody's who asked; where all of them have gone away it is nobody's."""
    if not task.cancelled():
        task.exception()


async def _run(read: Callable[[], Awaitable[T]]) -> T:
    return await read()
