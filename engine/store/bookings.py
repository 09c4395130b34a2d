"""Holds and bookings in PostgreSQL: every statement of `bookings.sql`, one function each.

The functions they call write answer, audit row and event with the effect, so that each of these is one round trip. `Held` and `Booked` are
what they answer; a refusal comes as `Refused` with the code that the function gave, seats as numbers in its facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from engine.booking.refusals import Refused
from engine.store.desk import ALL, DeskPool, Key, key_reused
from engine.store.postgres import statements


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


class Bookings:
    def __init__(self, pool: DeskPool) -> None:
        self.pool, self._sql = pool, statements("bookings")

    async def hold(self, key: Key | None, new: NewHold) -> Held:
        """Raises `Refused` SEAT_TAKEN (fact `seats`: numbers), STALE_MAP, SALES_CLOSED, HOLD_LIMIT, INVALID, TRIP_NOT_FOUND."""
        try:
            said = await self.pool.call(
                self._sql["hold"],
                new.partner_id, key and key.key, key and key.fingerprint, new.booking_id, new.trip_no, new.map_version, new.seats, new.start,
                new.end, new.prices, new.currency, new.quote, new.holder, new.channel, timedelta(seconds=new.ttl_s), new.actor, new.request_id,
                new.seats_max, new.holds_max,
            )  # fmt: skip
        except Refused as refusal:
            if refusal.code == "SEAT_TAKEN":  # a race lost inside: the detail is an array of seat numbers
                refusal.facts["seats"] = [int(n) for n in str(refusal.facts["said"]).strip("{}").split(",") if n]
            raise
        return msgspec.convert(_granted(said), Held)

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
        return _granted(await self.pool.call(self._sql["release"], key and key.key, key and key.fingerprint, lead_id, actor, request_id))

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
