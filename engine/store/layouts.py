"""Seat layouts in PostgreSQL: every statement of `layouts.sql`, one function each, on one connection inside a transaction, so that the audit
row and the event go with the change. Rows come back as mappings of their columns; None: not there, or the id is taken.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import asyncpg

from engine.errors import NotFound
from engine.store.postgres import statements


class LayoutBook:
    def __init__(self, connection: Any) -> None:
        self._run, self._sql = connection, statements("layouts")

    async def layouts(self, partner_id: str, after: tuple[str, str], limit: int, *, retired: bool) -> list[Any]:
        return list(await self._run.fetch(self._sql["layouts"], partner_id, *after, limit, retired))

    async def layout(self, partner_id: str, layout_id: str) -> Any | None:
        return await self._run.fetchrow(self._sql["layout_for_update"], partner_id, layout_id)

    async def add(self, partner_id: str, layout_id: str, name: str, body: Any) -> Any | None:
        try:
            return await self._run.fetchrow(self._sql["add_layout"], partner_id, layout_id, name, body)
        except asyncpg.ForeignKeyViolationError as fault:
            raise NotFound(f"no partner {partner_id!r}") from fault

    async def change(self, partner_id: str, layout_id: str, name: str, body: Any, retired_at: datetime | None) -> Any:
        return await self._run.fetchrow(self._sql["change_layout"], partner_id, layout_id, name, body, retired_at)

    async def offered(self, partner_id: str, layout_id: str) -> list[tuple[str, list[int]]]:
        """(route, numbers of its women-only seats) of the offers in force that use the layout."""
        return [
            (row["route_id"], row["women_only_seats"])
            for row in await self._run.fetch(self._sql["offers_of_layout"], partner_id, layout_id)
        ]
