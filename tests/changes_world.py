"""Bookings that are paid for (in cash, so that no provider is needed), for tests of what changes them."""

from __future__ import annotations

from typing import Any

from engine.booking.callers import Caller
from engine.booking.cancelled_trips import CancelledTrips
from engine.booking.changes import Changes
from engine.booking.exchanges import Exchanges
from engine.booking.seats import layout_of
from engine.booking.swaps import Swaps
from tests.booking_world import PARTNER, FlatPrices, World

DRAWER = "till-1"


class ChangingWorld(World):
    """A `World` with the shells that change what it sold."""

    @classmethod
    async def make(cls, database_url: str, redis_url: str = "", **settings: Any) -> ChangingWorld:
        world = await super().make(database_url, redis_url, **settings)
        assert isinstance(world, cls)
        world.changes = Changes(world.pool, world.desk, world.clock)
        world.exchanges = Exchanges(world.pool, world.desk, FlatPrices(), world.clock, world.settings)
        world.swaps = Swaps(world.pool, world.catalogue, world.clock, world.settings)
        world.cancelled_trips = CancelledTrips(world.pool, world.catalogue)
        return world

    def __init__(self) -> None:
        super().__init__()
        self.changes: Changes
        self.exchanges: Exchanges
        self.swaps: Swaps
        self.cancelled_trips: CancelledTrips

    def admin(self, partner: str = PARTNER) -> Caller:
        return self.agent(partner, role="PARTNER_ADMIN")

    async def draw(self, layout_id: str, rows: int, letters: str = "ABCD", first: int = 1) -> None:
        """A seat layout of the operator: rows of seats around an aisle."""
        columns = dict(zip(letters, (0, 1, 3, 4), strict=False))
        drawn = {
            "decks": [{"rows": rows, "columns": 5, "aisles": [2]}],
            "seats": [
                {"label": f"{row + first}{letter}", "row": row, "column": columns[letter]} for row in range(rows) for letter in letters
            ],
        }
        await self.run(
            """insert into sale.seat_layout (partner_id, layout_id, name, body) values ($1, $2, $2, $3) on conflict (partner_id, layout_id)
            do update set body = excluded.body, version = sale.seat_layout.version + 1""", PARTNER, layout_id, layout_of(drawn).body(),
        )  # fmt: skip

    async def bag(self, shown: Any, seat: int, price: int = 5_000, stock: int | None = None) -> None:
        """A bag for one seat of a booking that is not paid for yet."""
        item = {
            "booking": shown["lead"],
            "seat": seat,
            "code": "BAG",
            "kind": "BAGGAGE",
            "name": "bag",
            "count": 1,
            "price": price,
            "stock": stock,
        }

        async def work(connection: Any) -> None:
            await connection.execute("select * from booking.locked($1)", shown["lead"])
            await connection.execute("select sale.take_ancillaries($1)", [item])
            await connection.execute("update booking.booking set total = total + $2 where booking_id = $1", shown["lead"], price)

        await self.pool.run("*", work)

    async def bags(self) -> list[tuple[int, int]]:
        """(trip number, seat) of all bags of bookings that stand."""
        rows = await self.run(
            """select a.trip_no, a.seat from booking.ancillary a join booking.booking b using (booking_id)
            where b.state not in ('CANCELLED', 'REFUNDED', 'EXCHANGED') order by 1, 2"""
        )
        return [tuple(row) for row in rows]

    async def sold(self, *labels: str, who: Caller | None = None, **more: Any) -> Any:
        """A booking that was paid for, as `show` tells it."""
        shown = await self.booked(*labels, who=who or self.customer(), **more)
        await self.pay(shown["lead"])
        return await self.bookings.shown(booking_id=shown["lead"])

    async def pay(self, lead_id: str) -> bool:
        """What is due is laid on the counter; False: it could not be confirmed any more."""

        async def work(connection: Any) -> bool:
            ids = [row["booking_id"] for row in await connection.fetch("select * from booking.locked($1)", lead_id)]
            if not await connection.fetchval("select money.may_confirm($1)", lead_id):
                return False
            await connection.execute("select money.take_cash($1, $2, $3, 'test', 'test')", self.clock.uuid7(), lead_id, DRAWER)
            await connection.execute("select booking.move($1, 'CONFIRMED', 'test', 'test')", ids)
            await connection.execute("select ticket.issue($1, 'test', 'test')", ids)
            await connection.execute("select money.confirmed($1, $2, 'test', 'test')", lead_id, ids)
            return True

        return bool(await self.pool.run("*", work))

    async def give_money_back(self, lead_id: str) -> int:
        """Every refund of a booking that waits is paid out; how much that was."""

        async def work(connection: Any) -> int:
            ids = await connection.fetch("select refund_id from money.refund where lead_id = $1 and state = 'AT_COUNTER'", lead_id)
            return sum([await connection.fetchval("select money.give_cash($1, $2, 'test', 'test')", one[0], DRAWER) for one in ids])

        return int(await self.pool.run("*", work))

    async def states(self, lead_id: str) -> list[str]:
        shown = await self.bookings.shown(booking_id=lead_id)
        return sorted(row["state"] for row in shown["rows"])

    async def tickets(self, lead_id: str) -> list[tuple[int, int, str]]:
        """(seat, version, state) of the tickets of a booking."""
        rows = await self.run(
            """select t.seat, t.version, t.state from ticket.ticket t join booking.booking b using (booking_id) where b.lead_id = $1
            order by t.seat, t.state""", lead_id,
        )  # fmt: skip
        return [tuple(row) for row in rows]

    async def refunds(self, lead_id: str) -> int:
        """What is on its way back, or has gone."""
        return int(await self.value("select coalesce(sum(amount), 0) from money.refund where lead_id = $1", lead_id))

    async def balance(self) -> list[Any]:
        """Currencies whose ledger does not balance."""
        return await self.run("select currency from money.ledger group by currency having sum(debit) <> sum(credit)")

    async def events(self, booking_id: str) -> list[str]:
        rows = await self.run("select kind from office.outbox where topic = 'booking' and aggregate = $1 order by version", booking_id)
        return [row[0] for row in rows]
