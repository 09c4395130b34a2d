"""Putting trips on sale and ending it, in PostgreSQL: every statement of `sales.sql`, one function each."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec

from engine.store.desk import ALL, DeskPool
from engine.store.fares import at
from engine.store.postgres import statements


class OfferRow(msgspec.Struct, frozen=True):
    """An offer in force with what it needs. `layout`: the body of its seat layout."""

    partner_id: str
    route_id: str
    layout_id: str
    fare_plan_id: str
    open_days: int
    close_s: int
    women_only_seats: list[int]
    layout: Any
    currency: str


class KnownTrip(msgspec.Struct, frozen=True):
    """A trip instance that was put on sale."""

    trip_id: str
    departs_at: datetime
    status: str


class Sales:
    def __init__(self, pool: DeskPool) -> None:
        self.pool, self._sql = pool, statements("sales")

    async def _rows(self, statement: str, *args: Any, partner: str = ALL) -> list[Any]:
        async def read(connection: Any) -> Any:
            return await connection.fetch(self._sql[statement], *args)

        return list(await self.pool.run(partner, read))

    async def offers(self) -> list[OfferRow]:
        """By route."""
        return [OfferRow(**dict(row)) for row in await self._rows("offers_in_force")]

    async def known(self, route_id: str, from_ms: int, until_ms: int) -> dict[str, KnownTrip]:
        """Trips of a route that were put on sale and leave in that span, by id."""
        return {row["trip_id"]: KnownTrip(**dict(row)) for row in await self._rows("known_trips", route_id, at(from_ms), at(until_ms))}

    async def known_among(self, trip_ids: list[str]) -> set[str]:
        """Those of `trip_ids` that were put on sale, whenever they leave."""
        return {row["trip_id"] for row in await self._rows("known_ids", trip_ids)} if trip_ids else set()

    async def open(self, partner_id: str, offer: dict[str, Any], trips: list[dict[str, Any]], request_id: str) -> int:
        """How many of them were new. Shapes: `sale.open_trips`."""
        return int(await self.pool.call(self._sql["open_trips"], partner_id, offer, trips, request_id))

    async def end(self, over_after_s: float, most: int, request_id: str) -> tuple[int, int]:
        """(sales closed, trips completed), at most so many of each."""
        said = await self.pool.call(self._sql["end_trips"], timedelta(seconds=over_after_s), most, request_id)
        return said["closed"], said["completed"]

    async def on_sale(self, partner_id: str = ALL, route_id: str | None = None, limit: int = 100) -> list[Any]:
        """Trips on sale, the next ones first: trip_id, route_id, headsign, departs_at, closes_at, currency, status, free."""
        return await self._rows("on_sale", partner_id, route_id, limit, partner=partner_id)

    async def add_layout(self, connection: Any, partner_id: str, layout_id: str, name: str, body: Any) -> bool:
        """False: the operator has one of that id."""
        return str(await connection.execute(self._sql["add_layout"], partner_id, layout_id, name, body)).endswith(" 1")
