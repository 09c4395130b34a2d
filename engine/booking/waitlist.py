"""The waitlist of a trip: who found no seats gets those that are let go, first come first served among those whose wish fits.

Freed seats are noticed by the events that freed them (`keep`, in the transaction of the relay) and, should one be missed, by a look every
`waitlist_poll_s`. An offer is a hold of `waitlist_offer_s` in the waiter's name; what becomes of the hold is what becomes of the place, and
seats that were not taken are offered to the next. Nothing is taken away from who comes by themselves: a hold at the desk may be quicker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from engine.booking.callers import Caller, HoldTokens
from engine.booking.catalogue import Catalogue, SoldTrip, open_for_sale
from engine.booking.desk import Pricing
from engine.booking.refusals import Refused
from engine.booking.seats import best_available
from engine.clock import Clock
from engine.errors import EngineError, Invalid, NotFound
from engine.live.frames import rfc3339
from engine.meter import Meter
from engine.office.topics import Event
from engine.settings import Settings
from engine.store.desk import ALL, Answer, DeskPool, Key
from engine.store.waiting import Waiter, Waiting

log = logging.getLogger(__name__)

FREEING: Final = frozenset({"RELEASED", "EXPIRED", "CANCELLED", "EXCHANGED", "MODIFIED", "NO_SHOW", "REFUNDED", "MOVED"})
LINE_MAX: Final = 200  # places of one trip looked at, first come first; a bus has at most some sixty seats
TRIPS_MAX: Final = 100  # trips of one round
WAKE_S: Final = 0.5  # how often freed seats that another worker heard of are looked for


class Waitlist:
    """One of a worker."""

    def __init__(
        self,
        pool: DeskPool,
        catalogue: Catalogue,
        pricing: Pricing,
        holds: HoldTokens,
        secret: str,
        *,
        clock: Clock,
        settings: Settings,
        meter: Meter | None = None,
    ) -> None:
        self._pool, self._catalogue, self._pricing, self._holds = pool, catalogue, pricing, holds
        self._places = HoldTokens("waitlist:" + secret)
        self._clock, self._settings = clock, settings
        self._wake = asyncio.Event()
        self._offers = (meter or Meter()).counter("timepoint_waitlist_offers_total", "freed seats offered to who waits")

    # --- a place ---

    async def join(
        self, caller: Caller, key: Key | None, trip_id: str, count: int, start: str | int, end: str | int, contact: dict[str, Any]
    ) -> Answer:
        """A place at the end of the list, with the token that opens it. Raises `Refused` ALREADY_WAITING, SALES_CLOSED; `Invalid`, `NotFound`."""
        trip = open_for_sale(await self._catalogue.trip(trip_id), self._clock.now_ms())
        legs = trip.legs(start, end)
        if not 1 <= count <= self._settings.guest_seats_max:
            most = self._settings.guest_seats_max
            raise Invalid(f"1 to {most} seats", errors=[{"pointer": "/count", "code": "OUT_OF_RANGE", "detail": f"1 to {most}"}])
        who = _person(caller, contact)
        entry_id = self._clock.uuid7()
        holder = caller.actor if caller.role is not None else f"guest:{entry_id}"

        async def work(connection: Any) -> tuple[int, Any]:
            store = Waiting(connection)
            await store.join(entry_id, trip.partner_id, trip.trip_no, count, legs, holder, contact, who, holder, caller.request_id)
            return 201, await self._shown(await store.entry(entry_id))

        answer = await self._pool.once(key, trip.partner_id, work)
        self._wake.set()
        token = self._places.mint(answer.body["id"])  # not kept with the answer; made again for who asks again
        return Answer(answer.status, answer.body | {"token": token}, answer.replayed)

    async def show(self, caller: Caller, token: str | None, entry_id: str) -> dict[str, Any]:
        """A place, and what is offered to it. Raises `NotFound`: not there, or not theirs."""
        row = await self._pool.run(ALL, lambda connection: Waiting(connection).entry(entry_id))
        return await self._shown(self._own(caller, token, entry_id, row))

    async def leave(self, caller: Caller, token: str | None, entry_id: str) -> dict[str, Any]:
        """The place is given up, and the seats that were offered. Leaving twice says so twice. Raises `NotFound`."""
        row = await self._pool.run(ALL, lambda connection: Waiting(connection).entry(entry_id))
        self._own(caller, token, entry_id, row)
        actor = caller.actor if caller.role is not None else row["holder"]
        await self._pool.run(row["partner_id"], lambda connection: Waiting(connection).leave(entry_id, actor, caller.request_id))
        return await self.show(caller, token, entry_id)

    def _own(self, caller: Caller, token: str | None, entry_id: str, row: Any) -> Any:
        opened = self._places.read(token, self._clock.now_ms()).booking_id if token else None
        theirs = row is not None and (
            opened == entry_id or (caller.role is not None and caller.actor == row["holder"]) or caller.sells_for(row["partner_id"])
        )
        if not theirs:
            raise NotFound(f"no place {entry_id[:80]!r} on a waitlist, or not yours: send X-Waitlist-Token")
        return row

    async def _shown(self, row: Any) -> dict[str, Any]:
        trip = await self._catalogue.by_no(row["trip_no"])
        offer = None
        if row["state"] == "OFFERED" and row["hold_state"] == "HELD" and not row["over"]:
            labels = await self._catalogue.labels(trip, row["map_version"])
            money = {"currency": row["currency"]}
            pairs = zip(row["hold_seats"], row["prices"], strict=True)
            offer = {
                "holdId": row["hold_id"],
                "holdToken": self._holds.mint(row["hold_id"], row["entry_id"]),
                "seats": [{"seat": labels[seat - 1], "price": {"amount": price, **money}} for seat, price in pairs],
                "total": {"amount": sum(row["prices"]), **money},
                "expiresAt": rfc3339(round(row["expires_at"].timestamp() * 1000)),
            }
        return {
            "id": row["entry_id"],
            "tripId": trip.trip_id,
            "count": row["seats"],
            "from": trip.stops[row["start"]].stop_id,
            "to": trip.stops[row["end"]].stop_id,
            "status": row["state"],
            "position": row["ahead"] + 1 if row["state"] == "WAITING" else None,
            "joinedAt": rfc3339(round(row["joined_at"].timestamp() * 1000)),
            "offer": offer,
        }

    # --- offers ---

    async def keep(self, connection: Any, events: Sequence[Event]) -> None:
        """For the relay of the outbox, in the transaction that marks these events as said: trips of which something was let go."""
        trips = {
            event.data["tripId"] for event in events if event.topic == "booking" and event.type in FREEING and event.data.get("tripId")
        }
        if trips:
            await Waiting(connection).freed(sorted(trips))
            self._wake.set()

    async def run(self) -> None:
        """Until cancelled: offers what is freed, at once where this worker hears of it."""
        next_look_s = 0.0
        while True:
            try:
                now_s = self._clock.steady_s()
                await self.round(everything=now_s >= next_look_s)
                if now_s >= next_look_s:
                    next_look_s = now_s + self._settings.waitlist_poll_s
            except EngineError as fault:
                log.warning("waitlist: %s", fault)
            try:
                await asyncio.wait_for(self._wake.wait(), WAKE_S)
            except TimeoutError:
                pass
            self._wake.clear()

    async def round(self, *, everything: bool = False) -> int:
        """One look at trips of which something was let go, or at all that somebody waits for; how many offers were made."""
        trips = await self._quietly(lambda store: store.take_freed(TRIPS_MAX))
        if everything:
            trips = sorted({*trips, *await self._quietly(lambda store: store.waited_for())})
        made = 0
        for trip_no in trips:
            while await self._offer_one(trip_no):
                made += 1
        self._offers.add(made)
        return made

    async def _quietly(self, look: Callable[[Waiting], Awaitable[list[int]]]) -> list[int]:
        """A look for all partners that wakes no relay: it writes no event."""
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute(self._pool.sql["tenant"], ALL)
            return await look(Waiting(connection))

    async def _offer_one(self, trip_no: int) -> bool:
        """The first of the line whose wish fits is offered seats. False: there is nobody, or somebody else looks after this trip."""
        trip = await self._catalogue.by_no(trip_no)
        request_id = f"waitlist:{self._clock.uuid7()}"

        async def look(connection: Any) -> tuple[Waiter, list[int]] | None:
            store = Waiting(connection)
            if not await store.look_after(trip_no):
                return None
            await store.tidy(trip_no, request_id)
            return await _first_that_fits(store, trip)

        found = await self._pool.run(trip.partner_id, look)
        if found is None:
            return False
        waiter, seats = found
        try:
            quote = await self._pricing.quote(trip, waiter.start, waiter.end, seats)
            offered: bool = await self._pool.run(
                trip.partner_id, lambda connection: self._offer(connection, trip, waiter, seats, quote, request_id)
            )
            return offered
        except Refused as refusal:
            if refusal.code == "STALE_MAP":
                self._catalogue.forget(trip.trip_id)
            log.info("waitlist of %s: %s; looked at again later", trip.trip_id, refusal.code)
            return False

    async def _offer(self, connection: Any, trip: SoldTrip, waiter: Waiter, seats: list[int], quote: Any, request_id: str) -> bool:
        store = Waiting(connection)
        if not await store.look_after(trip.trip_no) or waiter not in await store.line(trip.trip_no, LINE_MAX):
            return False
        hold_id = self._clock.uuid7()
        said = await store.hold(
            trip.partner_id, hold_id, trip.trip_no, trip.map_version, seats, waiter, quote.prices(), trip.currency, quote.body(),
            float(self._settings.waitlist_offer_s), request_id,
        )  # fmt: skip
        if said["status"] == "REFUSED":
            raise Refused(said["code"], f"waitlist of {trip.trip_id}")
        await store.offer(waiter.entry_id, hold_id, request_id)
        return True


async def _first_that_fits(store: Waiting, trip: SoldTrip) -> tuple[Waiter, list[int]] | None:
    free: dict[tuple[int, int], set[int]] = {}
    for waiter in await store.line(trip.trip_no, LINE_MAX):
        legs = (waiter.start, waiter.end)
        if legs not in free:
            free[legs] = await store.free_seats(trip.trip_no, *legs)
        seats = best_available(trip.layout, free[legs], waiter.seats) if len(free[legs]) >= waiter.seats else []
        if seats:
            return waiter, seats
    return None


def _person(caller: Caller, contact: dict[str, Any]) -> str:
    """Who waits, as far as one can tell. Raises `Invalid` where nobody could be told of an offer."""
    said = (contact.get("email") or contact.get("phone") or "").strip().casefold()
    if not said:
        raise Invalid("say where to reach you", errors=[{"pointer": "/contact", "code": "MISSING_FIELD", "detail": "email or phone"}])
    return caller.actor if caller.role == "CUSTOMER" else said
