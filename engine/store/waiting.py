"""Waitlists and the switches of waiting rooms in PostgreSQL: every statement of `waiting.sql`, one function each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import asyncpg
import msgspec

from engine.booking.refusals import Refused
from engine.booking.room import Switch
from engine.store.desk import ALL, DeskPool
from engine.store.postgres import statements


class Waiter(msgspec.Struct, frozen=True):
    """One who waits."""

    entry_id: str
    seats: int
    start: int
    end: int
    holder: str


class Waiting:
    """Statements on a connection inside the caller's transaction, whose tenant is said."""

    def __init__(self, connection: Any) -> None:
        self._run, self._sql = connection, statements("waiting")

    async def join(
        self,
        entry_id: str,
        partner_id: str,
        trip_no: int,
        seats: int,
        legs: tuple[int, int],
        holder: str,
        contact: dict[str, Any],
        person: str,
        actor: str,
        request_id: str,
    ) -> None:
        """Raises `Refused` ALREADY_WAITING."""
        try:
            await self._run.execute(
                self._sql["join"], entry_id, partner_id, trip_no, seats, *legs, holder, contact, person, actor, request_id
            )
        except asyncpg.ExclusionViolationError as fault:
            raise Refused("ALREADY_WAITING", "you wait for this trip already: leave that place first, or wait on") from fault

    async def entry(self, entry_id: str) -> Any:
        """The row; None: there is none."""
        return await self._run.fetchrow(self._sql["entry"], entry_id)

    async def leave(self, entry_id: str, actor: str, request_id: str) -> None:
        """The place is given up, and what was offered to it. One that is over, or whose offer was booked, stays as it is."""
        row = await self._run.fetchrow(self._sql["lock_entry"], entry_id)
        if row["hold_id"] is not None:
            await self.tidy(row["trip_no"], request_id)
            row = await self._run.fetchrow(self._sql["lock_entry"], entry_id)
        if row["state"] not in ("WAITING", "OFFERED"):
            return
        await self._run.execute(self._sql["move"], entry_id, "LEFT", actor, request_id)
        if row["hold_id"] is not None:
            await self._run.fetchval(self._sql["release"], row["hold_id"], actor, request_id)

    async def freed(self, trip_ids: Sequence[str]) -> None:
        await self._run.execute(self._sql["freed"], list(trip_ids))

    async def take_freed(self, limit: int) -> list[int]:
        return [row["trip_no"] for row in await self._run.fetch(self._sql["take_freed"], limit)]

    async def waited_for(self) -> list[int]:
        return [row["trip_no"] for row in await self._run.fetch(self._sql["waited_for"])]

    async def look_after(self, trip_no: int) -> bool:
        """False: somebody else does."""
        return bool(await self._run.fetchval(self._sql["look_after"], trip_no))

    async def tidy(self, trip_no: int, request_id: str) -> int:
        return int(await self._run.fetchval(self._sql["tidy"], trip_no, request_id))

    async def line(self, trip_no: int, limit: int) -> list[Waiter]:
        rows = await self._run.fetch(self._sql["line"], trip_no, limit)
        return [Waiter(row["entry_id"], row["seats"], row["start"], row["end"], row["holder"]) for row in rows]

    async def free_seats(self, trip_no: int, start: int, end: int) -> set[int]:
        return {row["seat"] for row in await self._run.fetch(statements("pos")["free_seats"], trip_no, start, end)}

    async def hold(
        self,
        partner_id: str,
        hold_id: str,
        trip_no: int,
        map_version: int,
        seats: Sequence[int],
        waiter: Waiter,
        prices: Sequence[int],
        currency: str,
        quote: Any,
        ttl_s: float,
        request_id: str,
    ) -> Any:
        """`booking.hold` as it answers."""
        return await self._run.fetchval(
            self._sql["hold"], partner_id, hold_id, trip_no, map_version, list(seats), waiter.start, waiter.end, list(prices), currency, quote,
            waiter.holder, timedelta(seconds=ttl_s), request_id,
        )  # fmt: skip

    async def offer(self, entry_id: str, hold_id: str, request_id: str) -> None:
        await self._run.execute(self._sql["offer"], entry_id, hold_id, request_id)

    async def put_switch(self, trip_no: int, partner_id: str, switch: Switch, actor: str, request_id: str) -> None:
        version = await self._run.fetchval(self._sql["put_switch"], trip_no, partner_id, switch.mode, switch.admit_per_s)
        body = {"tripNo": trip_no, "mode": switch.mode, "admitPerS": switch.admit_per_s}
        await self._run.execute(self._sql["record"], partner_id, actor, request_id, trip_no, version, body)

    async def switch(self, trip_no: int) -> Switch:
        row = await self._run.fetchrow(self._sql["switch"], trip_no)
        return Switch("AUTO", None) if row is None else Switch(row["mode"], row["admit_per_s"])


class Rooms:
    """The operators' switches, for every worker's `Room`."""

    def __init__(self, pool: DeskPool) -> None:
        self._pool, self._sql = pool, statements("waiting")

    async def switches(self) -> dict[str, Switch]:
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute(self._pool.sql["tenant"], ALL)
            rows = await connection.fetch(self._sql["switches"])
        return {row["trip_id"]: Switch(row["mode"], row["admit_per_s"]) for row in rows}
