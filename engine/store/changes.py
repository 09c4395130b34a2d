"""Changes to bookings and trips in PostgreSQL: the statements of `changes.sql` inside a transaction of the desk.

A `Change` is one transaction's hands: the connection, and who asked. The functions behind the statements write audit row and event
themselves; they ask for locked rows (`locked`, or `lock_trip` and `lock_leads` in that order).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import asyncpg
import msgspec

from engine.booking.refusals import Refused
from engine.store.desk import REFUSING
from engine.store.postgres import statements

SQL: Final = statements("changes")
BOOKINGS: Final = statements("bookings")


class Row(msgspec.Struct, frozen=True):
    """A row of booking.booking, of one trip. `total` None: a hold."""

    booking_id: str
    lead_id: str
    partner_id: str
    trip_no: int
    map_version: int
    seats: tuple[int, ...]
    prices: tuple[int, ...]
    currency: str
    start: int
    end: int
    holder: str
    channel: str
    state: str
    version: int
    paying: bool
    reference: str | None
    total: int | None
    quote: Any
    contact: Any


class Passenger(msgspec.Struct, frozen=True):
    booking_id: str
    seat: int
    first_name: str
    last_name: str
    type: str
    price: int
    detail: dict[str, Any] | None
    state: str

    def body(self, seat: int, price: int) -> dict[str, Any]:
        """As `booking.join_lead` and `booking.book` take one."""
        return {
            "seat": seat,
            "first_name": self.first_name,
            "last_name": self.last_name,
            "type": self.type,
            "price": price,
            "detail": self.detail,
        }


class Change:
    """One transaction of a change, and who asked for it."""

    def __init__(self, connection: Any, actor: str, request_id: str) -> None:
        self._run, self.actor, self.request_id = connection, actor, request_id

    # --- rows ---

    async def locked(self, lead_id: str) -> list[Row]:
        """Empty: no such booking. Sets the tenant to the booking's."""
        return [row_of(one) for one in await self._run.fetch(SQL["locked"], lead_id)]

    async def lock_trip(self, trip_no: int, *, alone: bool) -> None:
        await self._run.execute(SQL["lock_trip"], trip_no, alone)

    async def lock_leads(self, lead_ids: Sequence[str]) -> list[Row]:
        return [row_of(one) for one in await self._run.fetch(SQL["lock_leads"], list(lead_ids))]

    async def passengers(self, ids: Sequence[str]) -> list[Passenger]:
        rows = await self._run.fetch(SQL["passengers"], list(ids))
        return [Passenger(str(one["booking_id"]), *[one[name] for name in Passenger.__struct_fields__[1:]]) for one in rows]

    async def extras(self, ids: Sequence[str]) -> dict[tuple[str, int], int]:
        """(row id, seat) -> minor units."""
        return {(str(one["booking_id"]), one["seat"]): one["amount"] for one in await self._run.fetch(SQL["extras"], list(ids))}

    async def one(self, statement: str, *args: Any) -> Any | None:
        """The first row of a statement by name."""
        return await self._run.fetchrow(SQL[statement], *args)

    async def all(self, statement: str, *args: Any) -> list[Any]:
        return list(await self._run.fetch(SQL[statement], *args))

    async def value(self, statement: str, *args: Any) -> Any:
        return await self._run.fetchval(SQL[statement], *args)

    @contextlib.asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """What is done inside is undone alone where it raises, by a savepoint. A refusal of the database raises `Refused`."""
        try:
            async with self._run.transaction():
                yield
        except asyncpg.PostgresError as fault:
            if fault.sqlstate not in REFUSING:
                raise
            raise Refused(str(fault.args[0]), fault.detail or "") from fault

    # --- moves ---

    async def move(self, ids: Sequence[str], to: str, kind: str | None = None, more: Mapping[str, Any] | None = None) -> None:
        await self._run.execute(SQL["move"], list(ids), to, self.actor, self.request_id, kind, dict(more or {}))

    async def shrink(self, row_id: str, seats: Sequence[int], total: int | None, more: Mapping[str, Any] | None = None) -> None:
        await self._run.execute(SQL["shrink"], row_id, list(seats), total, "MODIFIED", self.actor, self.request_id, dict(more or {}))

    async def reseat(self, row_id: str, pairs: Mapping[int, int], moves: Mapping[str, str]) -> None:
        """Raises `Refused` SEAT_TAKEN (fact `seats`: numbers): the transaction is lost then."""
        with _races():
            await self._run.execute(SQL["reseat"], row_id, list(pairs), list(pairs.values()), dict(moves), self.actor, self.request_id)

    async def modified(self, row_id: str, more: Mapping[str, Any]) -> None:
        await self._run.execute(SQL["modified"], row_id, self.actor, self.request_id, dict(more))

    # --- tickets and money ---

    async def revoke(self, ids: Sequence[str], seats: Sequence[int] | None = None) -> None:
        await self._run.execute(SQL["revoke"], list(ids), None if seats is None else list(seats), self.actor, self.request_id)

    async def issue(self, ids: Sequence[str]) -> None:
        await self._run.execute(SQL["issue"], list(ids), self.actor, self.request_id)

    async def refund(self, lead_id: str, amount: int, reason: str) -> tuple[int, list[str]]:
        """(minor units, refund ids) planned: `amount`, at most what of the booking's money is here."""
        amount = min(amount, await self._run.fetchval(SQL["paid"], lead_id))
        if amount <= 0:
            return 0, []
        ids = await self._run.fetchval(SQL["refund"], lead_id, amount, reason, self.actor, self.request_id)
        return amount, [str(one) for one in ids]

    # --- holds of its own ---

    async def hold(
        self,
        like: Row,
        booking_id: str,
        *,
        trip_no: int,
        map_version: int,
        seats: Sequence[int],
        start: int,
        end: int,
        prices: Sequence[int],
        quote: Any,
        ttl_s: float,
    ) -> Any:
        """Seats held for the holder of `like`, inside this transaction: what `booking.hold` answers.

        Raises `Refused` as `engine.store.bookings.Bookings.hold` does.
        """
        with _races():
            said = await self._run.fetchval(
                BOOKINGS["hold"], like.partner_id, None, None, booking_id, trip_no, map_version, list(seats), start, end, list(prices),
                like.currency, quote, like.holder, "EXCHANGE", timedelta(seconds=ttl_s), self.actor, self.request_id, None, None,
            )  # fmt: skip
        return granted(said)

    async def book(
        self, booking_id: str, reference: str, passengers: Sequence[Mapping[str, Any]], contact: Any, total: int, ttl_s: float
    ) -> Any:
        """What `booking.book` answers."""
        return await self._run.fetchval(
            BOOKINGS["book"], None, None, [booking_id], reference, list(passengers), contact, [total], None, timedelta(seconds=ttl_s),
            self.actor, self.request_id,
        )  # fmt: skip


def granted(said: Any) -> Any:
    """What a function answered. Raises `Refused` with its facts where it refused."""
    if said["status"] != "REFUSED":
        return said
    raise Refused(said["code"], "", **{name: value for name, value in said.items() if name not in ("status", "code")})


@contextlib.contextmanager
def _races() -> Iterator[None]:
    """A race for seats that is lost inside a function, as `Refused` SEAT_TAKEN with their numbers."""
    try:
        yield
    except asyncpg.PostgresError as fault:
        if fault.sqlstate != "TP409" or fault.args[0] != "SEAT_TAKEN":
            raise
        raise Refused("SEAT_TAKEN", "", seats=[int(n) for n in (fault.detail or "").strip("{}").split(",") if n]) from fault


def row_of(one: Any) -> Row:
    """A row as `select * from booking.booking` gives it."""
    legs = one["legs"]
    return Row(
        booking_id=str(one["booking_id"]),
        lead_id=str(one["lead_id"]),
        partner_id=one["partner_id"],
        trip_no=one["trip_no"],
        map_version=one["map_version"],
        seats=tuple(one["seats"]),
        prices=tuple(one["prices"]),
        currency=one["currency"],
        start=legs.lower,
        end=legs.upper,
        holder=one["holder"],
        channel=one["channel"],
        state=one["state"],
        version=one["version"],
        paying=one["paying"],
        reference=one["reference"],
        total=one["total"],
        quote=one["quote"],
        contact=one["contact"],
    )


def version_of(rows: Sequence[Row]) -> int:
    """Of a booking of these rows, as people see it."""
    return sum(row.version for row in rows) - len(rows) + 1
