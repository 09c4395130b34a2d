"""Words of people on who drives a trip instance, and what became of it. Raises `Unavailable` where the database is away.

A word in force reaches the tracker of the area within about a second (`rules.py`, `engine/tracking/rulebooks.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from engine.store.fleet import Executor
from engine.store.postgres import statements

_SQL: Final = statements("orders")


class OrderRow(msgspec.Struct, frozen=True):
    """One word. `withdrawn_at` None: in force."""

    order_id: str
    trip_id: str
    start_date: str
    bus_id: str
    driver_id: str | None
    said_as: str  # DISPATCHER | DRIVER
    said_by: str
    reason: str
    said_at: datetime
    withdrawn_at: datetime | None = None
    withdrawn_by: str | None = None


class Happened(msgspec.Struct, frozen=True):
    """What the tracker said of a trip instance."""

    at: datetime
    bus_id: str
    kind: str  # ASSIGNED | STARTED | COMPLETED | UNASSIGNED
    reason: str


class OrderBook:
    """Reads and writes on one connection; writes belong into a transaction that begins with `lock`."""

    def __init__(self, run: Executor) -> None:
        self._run: Any = run

    async def lock(self, feed_id: str) -> None:
        await self._run.fetchval(_SQL["order_lock"], feed_id)

    async def of_trip(self, feed_id: str, trip_id: str, start_date: str) -> OrderRow | None:
        row = await self._run.fetchrow(_SQL["order_of_trip"], feed_id, trip_id, start_date)
        return None if row is None else OrderRow(*row)

    async def of_bus(self, feed_id: str, bus_id: str, now: datetime) -> list[OrderRow]:
        return [OrderRow(*row) for row in await self._run.fetch(_SQL["orders_of_bus"], feed_id, bus_id, now)]

    async def on_trip(self, feed_id: str, trip_id: str, start_date: str) -> list[OrderRow]:
        """In force or not, oldest first."""
        return [OrderRow(*row) for row in await self._run.fetch(_SQL["orders_on_trip"], feed_id, trip_id, start_date)]

    async def withdraw(self, order_ids: Sequence[str], at: datetime, by: str) -> None:
        await self._run.execute(_SQL["withdraw"], list(order_ids), at, by)

    async def add(self, feed_id: str, order: OrderRow, ends_at: datetime) -> None:
        await self._run.execute(
            _SQL["add_order"], order.order_id, feed_id, order.trip_id, order.start_date, order.bus_id, order.driver_id, order.said_as,
            order.said_by, order.reason, order.said_at, ends_at,
        )  # fmt: skip

    async def is_bus(self, bus_id: str, partner_id: str, feed_id: str) -> bool:
        """Whether a working bus of the partner drives for that feed."""
        return await self._run.fetchrow(_SQL["bus_of_feed"], bus_id, partner_id, feed_id) is not None

    async def happened(self, feed_id: str, trip_id: str, start_date: str) -> list[Happened]:
        return [Happened(*row) for row in await self._run.fetch(_SQL["trip_events"], feed_id, trip_id, start_date)]
