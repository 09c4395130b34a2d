"""A small operator in a fresh database: a coach of 12 seats that calls at six stops, on sale, and the desk that sells it.

Times are real (the database judges by its own clock); a test that needs an end in the past says so with a short `ttl_s` or by `age`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec

from engine.booking import fares
from engine.booking.callers import Caller, HoldTokens
from engine.booking.catalogue import Catalogue, SoldTrip
from engine.booking.desk import Desk, Hold, Named, Wish
from engine.booking.refusals import Refused
from engine.booking.seats import layout_of
from engine.clock import SystemClock
from engine.settings import Settings
from engine.store.bookings import Bookings
from engine.store.desk import DeskPool, Key
from engine.store.redis import Redis

SECRET = "a-secret-of-the-tests-that-is-long-enough"
PARTNER, OTHER = "north", "south"
STOPS = ("A", "B", "C", "D", "E", "F")

# three rows of four, lettered A to D around an aisle
LAYOUT: dict[str, Any] = {
    "decks": [{"rows": 3, "columns": 5, "aisles": [2]}],
    "seats": [
        {"label": f"{row}{letter}", "row": row - 1, "column": column}
        for row in (1, 2, 3)
        for letter, column in (("A", 0), ("B", 1), ("C", 3), ("D", 4))
    ],
}
PLAN: dict[str, Any] = {"currency": "DZD", "base": {"kind": "PER_KM", "perKm": 1000, "start": 10_000}}


class FlatPrices:
    """100.00 a leg for every seat, whoever sits there: a price list for tests that are not about prices."""

    async def quote(self, trip: SoldTrip, start: int, end: int, numbers: Sequence[int], promo: str | None = None) -> fares.Quote:
        price = 10_000 * (end - start)
        return fares.Quote(
            currency=trip.currency, plan_id="flat", plan_version=1, made_at_ms=0, multiplier=1000, base_milli=price * 1000, step=1,
            classes=(1000,) * len(numbers), adult=(price,) * len(numbers), types={"ADULT": 1000, "CHILD": 500},
            fees=(fares.FeeStep(0, 500), fares.FeeStep(24, 100)),
        )  # fmt: skip

    async def recall(self, quote_id: str, trip: SoldTrip, start: int, end: int, numbers: Sequence[int]) -> fares.Quote:
        raise Refused("QUOTE_EXPIRED", "a price list gives no quotes")


class World:
    """Everything a test of the desk needs. `close()` when done."""

    pool: DeskPool
    redis: Redis
    catalogue: Catalogue
    bookings: Bookings
    desk: Desk
    trip_id: str
    trip_no: int

    @classmethod
    async def make(cls, database_url: str, redis_url: str = "", **settings: Any) -> World:
        """With one trip on sale; `redis_url` "": without Redis."""
        world = cls()
        world.clock = SystemClock()
        world.settings = Settings(database_url=database_url, redis_url=redis_url or "redis://127.0.0.1:1", **settings)
        world.pool = await DeskPool.open(world.settings, world.clock)
        world.redis = Redis(world.settings)
        world.tokens = HoldTokens(SECRET)
        world.catalogue = Catalogue(world.pool, 100)
        world.bookings = Bookings(world.pool)
        world.desk = Desk(world.bookings, world.catalogue, FlatPrices(), world.tokens, clock=world.clock, settings=world.settings)
        for partner in (PARTNER, OTHER):
            await world.run("insert into public.partner (partner_id, name) values ($1, $1)", partner)
        world.trip_id, world.trip_no = await world.trip()
        return world

    def __init__(self) -> None:
        self.clock: SystemClock
        self.settings: Settings
        self.tokens: HoldTokens
        self._trips = 0

    async def close(self) -> None:
        await self.pool.close()
        await self.redis.close()

    async def run(self, statement: str, *args: Any) -> Any:
        """One statement for all tenants; the rows."""

        async def work(connection: Any) -> Any:
            return await connection.fetch(statement, *args)

        return await self.pool.run("*", work)

    async def value(self, statement: str, *args: Any) -> Any:
        rows = await self.run(statement, *args)
        return rows[0][0] if rows else None

    async def trip(
        self,
        *,
        partner: str = PARTNER,
        layout: dict[str, Any] | None = None,
        stops: Sequence[str] = STOPS,
        departs_in: timedelta = timedelta(days=2),
        currency: str = "DZD",
    ) -> tuple[str, int]:
        """(trip id, trip number) of another trip on sale: a stop every half hour, ten kilometres apart."""
        self._trips += 1
        drawn = layout_of(layout or LAYOUT)
        departs = datetime.now(UTC) + departs_in
        trip_id = f"demo:T{self._trips}:{departs:%Y%m%d}"
        await self.run(
            """insert into sale.seat_layout (partner_id, layout_id, name, body) values ($1, 'twelve', 'Twelve', $2)
            on conflict do nothing""", partner, msgspec.to_builtins(drawn.body()),
        )  # fmt: skip
        await self.run(
            """insert into sale.fare_plan (partner_id, fare_plan_id, name, currency, body) values ($1, 'plain', 'Plain', $2, $3)
            on conflict do nothing""", partner, currency, PLAN | {"currency": currency},
        )  # fmt: skip
        trip_no = await self.value(
            """insert into sale.trip_instance (trip_id, partner_id, feed_id, route_id, start_date, headsign, closes_at, stops, departs_at,
                 arrives_at, timezone, layout_id, fare_plan_id, currency)
            values ($1, $2, 'demo', 'demo:R1', $3, 'the coast', $4, $5, $4, $6, 'Africa/Algiers', 'twelve', 'plain', $7) returning trip_no""",
            trip_id, partner, departs.date(), departs, len(stops), departs + timedelta(minutes=30 * (len(stops) - 1)), currency,
        )  # fmt: skip
        for place, stop in enumerate(stops):
            at = departs + timedelta(minutes=30 * place)
            await self.run(
                """insert into sale.trip_stop (trip_no, place, partner_id, stop_sequence, stop_id, name, lat, lon, arrives_at, departs_at,
                     pickup, drop_off) values ($1, $2, $3, $4, $5, $6, 36.7, $7, $8, $8, $9, $10)""",
                trip_no, place, partner, place + 1, f"demo:{stop}", f"Stop {stop}", 3.0 + place * 0.112, at, place < len(stops) - 1, place > 0,
            )  # fmt: skip
        await self.run(
            "insert into sale.seat_map (trip_no, map_version, partner_id, seats, labels, layout) values ($1, 1, $2, $3, $4, $5)",
            trip_no, partner, sorted(drawn.sellable), list(drawn.labels), drawn.body(),
        )  # fmt: skip
        return trip_id, trip_no

    # --- people ---

    def guest(self, token: str | None = None) -> Caller:
        opened = self.tokens.read(token, self.clock.now_ms()) if token is not None else None
        return Caller(request_id=self.clock.uuid7(), address="203.0.113.9", opened=opened)

    def customer(self, name: str = "amal") -> Caller:
        return Caller(request_id=self.clock.uuid7(), subject=name, role="CUSTOMER")

    def agent(self, partner: str = PARTNER, role: str = "AGENT") -> Caller:
        return Caller(request_id=self.clock.uuid7(), subject="desk", role=role, partner_id=partner)

    def key(self, name: str = "", body: bytes = b"") -> Key:
        """A fresh idempotency key; the same one again for the same name is a test's own business (`key` of it)."""
        return Key(name or self.clock.uuid7(), body or b"body")

    # --- what they do ---

    async def hold(
        self, *labels: str, frm: str | int = "demo:A", to: str | int = "demo:F", who: Caller | None = None, trip: str | None = None
    ) -> Hold:
        wish = Wish(start=frm, end=to, labels=labels)
        return await self.desk.hold(who or self.guest(), self.key(), trip or self.trip_id, wish)

    async def booked(self, *labels: str, who: Caller | None = None, **more: Any) -> Any:
        """A booking that waits for its payment, as `show` tells it."""
        made = await self.hold(*labels, who=who, **more)
        named = [Named(seat=label, first_name="Amal", last_name="Benaïssa") for label in labels]
        shown, _ = await self.desk.book(who or self.guest(made.token), self.key(), [made.held.booking], named, {"email": "a@example.org"})
        return shown

    async def confirmed(self, *labels: str, who: Caller | None = None, **more: Any) -> Any:
        """A booking that is paid for: by the state table alone, without a payment (tests of payments do it whole)."""
        shown = await self.booked(*labels, who=who, **more)
        await self.run("select booking_id from booking.locked($1)", shown["lead"])

        async def confirm(connection: Any) -> None:
            ids = [row["booking_id"] for row in await connection.fetch("select * from booking.locked($1)", shown["lead"])]
            await connection.execute("select booking.move($1, 'CONFIRMED', 'test', 'test')", ids)

        await self.pool.run("*", confirm)
        return await self.bookings.shown(booking_id=shown["lead"])

    async def age(self, booking_id: str, seconds: int) -> None:
        """Let a hold be so much older."""
        await self.run(
            """update booking.booking set held_at = held_at - make_interval(secs => $2), expires_at = expires_at - make_interval(secs => $2)
            where booking_id = $1""", booking_id, float(seconds),
        )  # fmt: skip

    # --- what must hold ---

    async def overlaps(self) -> int:
        """Pairs of active claims on one seat whose legs meet: looked for without trusting the constraint."""
        return int(
            await self.value(
                """select count(*) from booking.seat_claim a join booking.seat_claim b on a.trip_no = b.trip_no
                and a.map_version = b.map_version and a.seat = b.seat and a.legs && b.legs
                and (a.booking_id, a.legs) < (b.booking_id, b.legs) where a.active and b.active"""
            )
        )

    async def claims(self, trip_no: int | None = None) -> list[tuple[str, int, str, str]]:
        """(booking, seat, legs, state) of the active claims of the trip."""
        rows = await self.run("select * from booking.seat_claim where active and trip_no = $1 order by seat, legs", trip_no or self.trip_no)
        return [(str(r["booking_id"]), r["seat"], f"{r['legs'].lower}-{r['legs'].upper}", r["state"]) for r in rows]


async def connect(database_url: str) -> asyncpg.Connection:
    """A connection of one's own, to break or to wait with."""
    return await asyncpg.connect(database_url)
