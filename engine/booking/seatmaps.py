"""Seat maps as people see them: free, picked, taken or blocked for a ride, with prices; and what a newcomer to `seats:{trip}` is told.

Read fresh for every request, one round trip to each store: requests of one trip that come while a read runs share the next one, which begins
after them, so that a reader sees its own writes and a rush of readers costs one read at a time. Redis is read before PostgreSQL: a message
later than the `version` told may repeat what the map shows, and none is missed. Redis away: the map comes without picks and version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from engine.booking.catalogue import Catalogue, SoldTrip
from engine.booking.refusals import Refused
from engine.booking.seats import Deck
from engine.errors import NotFound, Unavailable
from engine.store.desk import DeskPool
from engine.store.picks import Picks, Picture
from engine.store.postgres import statements

FREE, PICKED, TAKEN, BLOCKED = "FREE", "PICKED", "TAKEN", "BLOCKED"
PREFIX: Final = "seats:"

T = TypeVar("T")


class Prices(Protocol):
    """What we need of `engine.booking.pricing.Pricing`."""

    async def prices(self, trip: SoldTrip, start: int, end: int) -> dict[str, int]: ...


class Claim(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A seat that is held or sold on some legs. `until_ms` None: sold, or being paid."""

    seat: int
    start: int
    end: int
    until_ms: int | None


class Money(msgspec.Struct, frozen=True, gc=False):
    amount: int  # minor units
    currency: str


class SeatItem(msgspec.Struct, frozen=True, rename="camel"):
    seat: str  # its label
    deck: int
    row: int
    column: int
    kind: str
    features: tuple[str, ...]
    state: str  # FREE | PICKED | TAKEN | BLOCKED
    until_ms: int | None  # when a pick or a hold ends by itself
    price: Money | None  # of an adult; None: there is no fare between these stops


class SeatMap(msgspec.Struct, frozen=True, rename="camel"):
    trip_id: str
    map_version: int
    version: int | None  # offset of the channel seats:{tripId}: subscribe with since {"e": epoch, "o": version}. None: no live side now
    epoch: str | None
    from_: str = msgspec.field(name="from")
    to: str
    from_seq: int
    to_seq: int
    on_sale: bool
    free: int
    decks: tuple[Deck, ...]
    seats: list[SeatItem]


class Standing(msgspec.Struct, frozen=True):
    """A trip's seats at one instant. `picture` None: Redis is away."""

    trip: SoldTrip
    claims: list[Claim]
    picture: Picture | None


class SeatMaps:
    """All of one worker."""

    def __init__(self, pool: DeskPool, catalogue: Catalogue, picks: Picks, prices: Prices) -> None:
        self._pool, self._catalogue, self._picks, self._prices = pool, catalogue, picks, prices
        self._sql = statements("search")
        self._standings: Shared[str, Standing] = Shared(self._read)

    async def show(self, trip_id: str, start: str | int | None = None, end: str | int | None = None) -> SeatMap:
        """The map of a ride; no stops given: of the whole way. Raises `NotFound`, `Invalid`, `Unavailable`."""
        standing = await self._standings.get(trip_id)
        trip = standing.trip
        first, last = ride_of(trip, start, end)
        try:
            prices = await self._prices.prices(trip, first, last)
        except Refused:  # no fare between these two
            prices = {}
        states = states_of(standing, first, last)
        seats = [
            SeatItem(
                seat.label,
                seat.deck,
                seat.row,
                seat.column,
                seat.kind,
                seat.features or (),
                *states[number],
                Money(prices[seat.kind], trip.currency) if seat.kind in prices else None,
            )
            for number, seat in enumerate(trip.layout.seats, 1)
        ]
        picture, begin, stop = standing.picture, trip.stops[first], trip.stops[last]
        now_ms = self._pool.clock.now_ms()
        return SeatMap(
            trip_id=trip.trip_id,
            map_version=trip.map_version,
            version=picture.offset if picture is not None else None,
            epoch=picture.epoch if picture is not None else None,
            from_=begin.stop_id,
            to=stop.stop_id,
            from_seq=begin.stop_sequence,
            to_seq=stop.stop_sequence,
            on_sale=trip.sales_open and trip.status == "SCHEDULED" and now_ms < trip.closes_at_ms,
            free=sum(state == FREE for state, _ in states.values()),
            decks=trip.layout.decks,
            seats=seats,
        )

    async def free(self, trip: SoldTrip, start: int, end: int) -> set[int]:
        """Seat numbers that nobody has, holds or is choosing on these legs."""
        standing = await self._standings.get(trip.trip_id)
        return {number for number, (state, _) in states_of(standing, start, end).items() if state == FREE}

    async def picture(self, channel: str) -> list[dict[str, Any]] | None:
        """What a newcomer to a seat channel has to know, as `seat` messages: each claim and pick on its own legs, FREE once for a seat that has
        none. None: no seat channel, or a trip that is not sold."""
        if not channel.startswith(PREFIX):
            return None
        try:
            standing = await self._standings.get(channel.removeprefix(PREFIX))
        except NotFound:
            return None
        return told_of(standing)

    async def _read(self, trip_id: str) -> Standing:
        trip = await self._catalogue.trip(trip_id)
        try:
            picture = await self._picks.picture(trip_id)
        except Unavailable:
            picture = None
        found = await self._pool.call(self._sql["seats_taken"], trip.trip_no)
        if found is None:
            raise NotFound(f"no trip {trip_id[:120]!r} is on sale")
        if found["map"] != trip.map_version:  # the bus was swapped since we read the trip
            self._catalogue.forget(trip_id)
            trip = await self._catalogue.trip(trip_id)
        return Standing(trip, [Claim(*claim) for claim in found["claims"]], picture)


def ride_of(trip: SoldTrip, start: str | int | None, end: str | int | None) -> tuple[int, int]:
    """(first place, last place). Raises `Invalid`."""
    last = len(trip.stops) - 1
    if start is None and end is None:
        return 0, last
    return trip.legs(
        trip.stops[0].stop_sequence if start is None else start,
        trip.stops[last].stop_sequence if end is None else end,
    )


def states_of(standing: Standing, start: int, end: int) -> dict[int, tuple[str, int | None]]:
    """Seat number -> (state, until ms) on these legs; of several the last one to end counts."""
    trip = standing.trip
    states: dict[int, tuple[str, int | None]] = {
        number: (FREE if number in trip.sellable else BLOCKED, None) for number in range(1, len(trip.labels) + 1)
    }
    for label, picks in (standing.picture.picks if standing.picture is not None else {}).items():
        number = trip.numbers.get(label)
        if number is None or states[number][0] == BLOCKED:
            continue
        ends = [pick.until_ms for pick in picks if pick.start < end and start < pick.end]
        if ends:
            states[number] = PICKED, max(ends)
    for claim in standing.claims:
        if claim.start < end and start < claim.end and claim.seat in states:
            state, until_ms = states[claim.seat]
            over = claim.until_ms
            if state == TAKEN:
                over = None if until_ms is None or over is None else max(until_ms, over)
            states[claim.seat] = TAKEN, over
    return states


def told_of(standing: Standing) -> list[dict[str, Any]]:
    """The same as messages of the seat channel."""
    trip = standing.trip
    last = len(trip.stops) - 1
    found: dict[int, list[tuple[str, int, int, int | None]]] = {number: [] for number in range(1, len(trip.labels) + 1)}
    for claim in standing.claims:
        found.setdefault(claim.seat, []).append((TAKEN, claim.start, claim.end, claim.until_ms))
    for label, picks in (standing.picture.picks if standing.picture is not None else {}).items():
        if label in trip.numbers:
            found[trip.numbers[label]] += [(PICKED, pick.start, pick.end, pick.until_ms) for pick in picks]
    told = []
    for number, entries in found.items():
        if number > len(trip.labels):
            continue
        alone = (FREE if number in trip.sellable else BLOCKED, 0, last, None)
        for state, start, end, until_ms in entries or [alone]:
            told.append(
                {
                    "seat": trip.labels[number - 1],
                    "state": state,
                    "from": trip.stops[start].stop_id,
                    "to": trip.stops[end].stop_id,
                    "untilMs": until_ms,
                }
            )
    return told


K = TypeVar("K", bound=Hashable)


class Shared(Generic[K, T]):
    """Reads that everyone who asks meanwhile shares: of one key one runs and one waits for it to end; whoever asks joins the one that has not
    begun, so that what they did before is in it."""

    def __init__(self, read: Callable[[K], Awaitable[T]]) -> None:
        self._read = read
        self._next: dict[K, asyncio.Task[T]] = {}
        self._running: dict[K, asyncio.Task[T]] = {}

    async def get(self, key: K) -> T:
        waiting = self._next.get(key)
        if waiting is None:
            waiting = self._next[key] = asyncio.create_task(self._after(key, self._running.get(key)))
            waiting.add_done_callback(_seen)
        return await asyncio.shield(waiting)

    async def _after(self, key: K, before: asyncio.Task[T] | None) -> T:
        if before is not None:
            await asyncio.wait({before})
        task = self._running[key] = self._next.pop(key)
        try:
            return await self._read(key)
        finally:
            if self._running.get(key) is task:
                del self._running[key]


def _seen(task: asyncio.Task[Any]) -> None:
    """A fault is everybody's who asked; where all of them have gone away it is nobody's."""
    if not task.cancelled():
        task.exception()
