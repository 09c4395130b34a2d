"""Holds and bookings in PostgreSQL: every statement of `bookings.sql`, one function each.

The functions they call write answer, audit row and event with the effect, so that each of these is one round trip. `Held` and `Booked` are
what they answer; a refusal comes as `Refused` with the code that the function gave, seats as numbers in its facts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg
import msgspec

from engine.booking.refusals import Refused
from engine.errors import Invalid
from engine.meter import Meter
from engine.store.desk import ALL, DeskPool, Key, key_reused
from engine.store.gathered import Gathered
from engine.store.postgres import statements

TOGETHER_MAX: Final = 32  # holds of one trip in one transaction: a hundred seats' worth of locks, about 10 ms of a busy PostgreSQL
ALONE: Final = {"status": "RETRY"}  # what booking.hold_many answers to one that would have to wait


class Held(msgspec.Struct, frozen=True, rename="camel"):
    """What `booking.hold` answered, now or to the first request with that key."""

    booking: str
    version: int
    trip_no: int
    map: int
    seats: list[int]
    prices: list[int]
    from_: int = msgspec.field(name="from")
    to: int = 0
    until: datetime = msgspec.field(default_factory=lambda: datetime.min)
    replayed: bool = False


class Booked(msgspec.Struct, frozen=True):
    lead: str
    ref: str
    shown: Any  # the booking as `booking.shown` told it then
    replayed: bool = False


class NewHold(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a hold is made of. `seats` ascending, `prices` beside them; `seats_max` None: no limits."""

    partner_id: str
    booking_id: str
    trip_no: int
    map_version: int
    seats: list[int]
    start: int
    end: int
    prices: list[int]
    currency: str
    quote: Any
    holder: str
    channel: str
    ttl_s: float
    actor: str
    request_id: str
    seats_max: int | None
    holds_max: int | None


class Letting(msgspec.Struct, frozen=True):
    """A hold, or a booking that nobody has paid, to be let go of."""

    booking_id: str
    actor: str
    request_id: str


class Bookings:
    def __init__(self, pool: DeskPool, meter: Meter | None = None) -> None:
        self.pool, self._sql = pool, statements("bookings")
        self._holds: Gathered[tuple[str, int, float], tuple[Key | None, NewHold], Any] = Gathered(self._hold_many, TOGETHER_MAX)
        self._releases: Gathered[None, tuple[Key | None, Letting], Any] = Gathered(self._release_many, TOGETHER_MAX)
        self._calls = (meter or Meter()).counter(
            "timepoint_desk_group_calls_total", "holds and releases by how they were written: together, or alone after all", ("kind", "how")
        )

    async def hold(self, key: Key | None, new: NewHold) -> Held:
        """With those that others ask for on this trip meanwhile. Raises `Refused` SEAT_TAKEN (fact `seats`: numbers), STALE_MAP,
        SALES_CLOSED, HOLD_LIMIT, INVALID, TRIP_NOT_FOUND. Whoever leaves meanwhile has the hold all the same, until it ends by itself."""
        said = await self._holds.ask((new.partner_id, new.trip_no, new.ttl_s), (key, new))
        if said == ALONE:
            said = await self._hold_alone(key, new)
        return msgspec.convert(_granted(said), Held)

    async def _hold_many(self, trip: tuple[str, int, float], asked: Sequence[tuple[Key | None, NewHold]]) -> Sequence[Any]:
        partner_id, trip_no, ttl_s = trip
        wanted = [
            {
                "key": key and key.key, "print": key and key.fingerprint.hex(), "booking": new.booking_id, "map": new.map_version,
                "seats": new.seats, "prices": new.prices, "first": new.start, "last": new.end, "currency": new.currency, "quote": new.quote,
                "holder": new.holder, "channel": new.channel, "actor": new.actor, "request": new.request_id, "max_seats": new.seats_max,
                "max_holds": new.holds_max,
            }
            for key, new in asked
        ]  # fmt: skip
        call = self.pool.call(self._sql["hold_many"], partner_id, trip_no, timedelta(seconds=ttl_s), wanted, new=True)
        return await self._together("hold", len(asked), call)

    async def _release_many(self, _: None, asked: Sequence[tuple[Key | None, Letting]]) -> Sequence[Any]:
        wanted = [
            {
                "key": key and key.key, "print": key and key.fingerprint.hex(), "booking": one.booking_id, "actor": one.actor,
                "request": one.request_id,
            }
            for key, one in asked
        ]  # fmt: skip
        return await self._together("release", len(asked), self.pool.call(self._sql["release_many"], wanted))

    async def _together(self, kind: str, count: int, call: Awaitable[Any]) -> Sequence[Any]:
        """What a call for many answers; where it fails as a whole (somebody's unfinished claim was waited for too long, a text of one cannot be
        stored), ALONE for each."""
        try:
            answers: Sequence[Any] = await call
        except (Refused, Invalid, asyncpg.PostgresError):
            # undone; a lost connection is another matter (`Unavailable`): who asked has to ask again
            answers = [ALONE] * count
        alone = sum(answer == ALONE for answer in answers)
        self._calls.add(alone, kind, "ALONE")
        self._calls.add(count - alone, kind, "TOGETHER")
        return answers

    async def _hold_alone(self, key: Key | None, new: NewHold) -> Any:
        try:
            return await self.pool.call(
                self._sql["hold"],
                new.partner_id, key and key.key, key and key.fingerprint, new.booking_id, new.trip_no, new.map_version, new.seats, new.start,
                new.end, new.prices, new.currency, new.quote, new.holder, new.channel, timedelta(seconds=new.ttl_s), new.actor, new.request_id,
                new.seats_max, new.holds_max,
            )  # fmt: skip
        except Refused as refusal:
            if refusal.code == "SEAT_TAKEN":  # a race lost inside: the detail is an array of seat numbers
                refusal.facts["seats"] = [int(n) for n in str(refusal.facts["said"]).strip("{}").split(",") if n]
            raise

    async def first_answer(self, key: Key) -> Held | None:
        """What the first hold with that key was answered; None: there was none."""
        said = await self._answered(key)
        return None if said is None else msgspec.convert(said, Held)

    async def first_booked(self, key: Key) -> Booked | None:
        """What the first booking with that key was answered; None: there was none."""
        said = await self._answered(key)
        return None if said is None else msgspec.convert(said, Booked)

    async def _answered(self, key: Key) -> Any:
        async def read(connection: Any) -> Any:
            return await connection.fetchval(self.pool.sql["answered"], key.key, key.fingerprint)

        said = await self.pool.run(ALL, read)
        return None if said is None else _granted(said)

    async def release(self, key: Key | None, lead_id: str, actor: str, request_id: str) -> Any:
        """{"status", "booking", "version", "replayed"?}. Raises `Refused`."""
        said = await self._releases.ask(None, (key, Letting(lead_id, actor, request_id)))
        if said == ALONE:
            said = await self.pool.call(self._sql["release"], key and key.key, key and key.fingerprint, lead_id, actor, request_id)
        return _granted(said)

    async def extend(self, booking_id: str, ttl_s: float, most_s: float, actor: str, request_id: str) -> Any:
        """{"status", "booking", "version"}. Raises `Refused` HOLD_EXPIRED, WRONG_STATE, HOLD_NOT_FOUND."""
        ttl, most = timedelta(seconds=ttl_s), timedelta(seconds=most_s)
        return _granted(await self.pool.call(self._sql["extend"], booking_id, ttl, most, actor, request_id))

    async def book(
        self,
        key: Key | None,
        ids: Sequence[str],
        reference: str,
        passengers: list[dict[str, Any]],
        contact: dict[str, Any],
        totals: list[int],
        extras: dict[str, Any] | None,
        ttl_s: float,
        actor: str,
        request_id: str,
    ) -> Booked:
        """Raises `Refused` REFERENCE_TAKEN (pick another), HOLD_EXPIRED, HOLD_USED, HOLD_NOT_FOUND, and what extras raise."""
        said = await self.pool.call(
            self._sql["book"], key and key.key, key and key.fingerprint, list(ids), reference, passengers, contact, totals, extras,
            timedelta(seconds=ttl_s), actor, request_id,
        )  # fmt: skip
        return msgspec.convert(_granted(said), Booked)

    async def shown(self, *, reference: str | None = None, booking_id: str | None = None) -> Any:
        """The booking as `booking.shown` tells it; None: there is none."""
        return await self.pool.call(self._sql["shown"], reference, booking_id)

    async def lookup(self, reference: str, surname: str) -> Any:
        """The same, if a passenger has that surname (folded as when it was booked)."""

        async def read(connection: Any) -> Any:
            return await connection.fetchval(self._sql["lookup"], reference, surname)

        return await self.pool.run(ALL, read)

    async def of_holder(self, holder: str, before: str, limit: int) -> list[Any]:
        """(reference, lead_id) of a customer's bookings, newest first, from the one with the lead `before` on."""

        async def read(connection: Any) -> Any:
            return await connection.fetch(self._sql["of_holder"], holder, before, limit)

        return list(await self.pool.run(ALL, read))

    async def of_partner(self, partner_id: str, before: str, limit: int, trip_no: int | None = None) -> list[Any]:
        """The same of an operator, or of one of its trips."""
        more = () if trip_no is None else (trip_no,)

        async def read(connection: Any) -> Any:
            return await connection.fetch(self._sql["of_trip" if more else "of_partner"], partner_id, before, limit, *more)

        return list(await self.pool.run(partner_id, read))


def _granted(said: Any) -> Any:
    """What a function answered, unless it refused."""
    if said["status"] != "REFUSED":
        return said
    if said["code"] == "IDEMPOTENCY_KEY_REUSED":
        raise key_reused()
    facts = {name: value for name, value in said.items() if name not in ("status", "code")}
    raise Refused(said["code"], "", **facts)
