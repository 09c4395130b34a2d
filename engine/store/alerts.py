"""Alerts that operators write, in PostgreSQL: every statement of `alerts.sql`, one function each.

`AlertBook` is what the office changes, on one connection inside a transaction; `changed_alerts` is what workers read to keep theirs in
memory. Raise `Unavailable` where the database is away.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from engine.errors import NotFound
from engine.live.alerts import OperatorAlert, Period, Selector
from engine.store.desk import ALL, DeskPool
from engine.store.fares import ms_of
from engine.store.postgres import statements

LAST = "ffffffff-ffff-ffff-ffff-ffffffffffff"

_SQL = statements("alerts")


def alert_of(row: Any) -> OperatorAlert:
    changed_at_ms = ms_of(row["changed_at"])
    assert changed_at_ms is not None
    return OperatorAlert(
        alert_id=str(row["alert_id"]),
        partner_id=row["partner_id"],
        feed_id=row["feed_id"],
        cause=row["cause"],
        effect=row["effect"],
        level=row["level"],
        header=row["header"],
        description=row["description"],
        url=row["url"],
        periods=msgspec.convert(row["periods"], tuple[Period, ...]),
        selectors=msgspec.convert(row["selectors"], tuple[Selector, ...]),
        version=row["version"],
        changed_at_ms=changed_at_ms,
        retired_at_ms=ms_of(row["retired_at"]),
    )


async def changed_alerts(pool: DeskPool, since: int) -> tuple[list[OperatorAlert], int]:
    """Alerts of every transaction from the mark `since` on (0: all that are not retired), and the next mark, which is taken first."""

    async def read(connection: Any) -> tuple[int, list[Any]]:
        return await connection.fetchval(_SQL["mark"]), await connection.fetch(_SQL["changed"], str(since))

    async with pool.connection() as connection, connection.transaction():
        await connection.execute(pool.sql["tenant"], ALL)
        mark, rows = await read(connection)
    return [alert_of(row) for row in rows], mark


class AlertBook:
    """Rows come back as `OperatorAlert`; None: not there."""

    def __init__(self, connection: Any) -> None:
        self._run = connection

    async def alerts(self, partner_id: str, below: str, limit: int, *, retired: bool) -> list[OperatorAlert]:
        return [alert_of(row) for row in await self._run.fetch(_SQL["alerts"], partner_id, below, limit, retired)]

    async def alert(self, partner_id: str, alert_id: str) -> OperatorAlert | None:
        row = await self._run.fetchrow(_SQL["alert"], partner_id, alert_id)
        return None if row is None else alert_of(row)

    async def standing(self, partner_id: str) -> int:
        return int(await self._run.fetchval(_SQL["standing"], partner_id))

    async def add(self, new: OperatorAlert) -> OperatorAlert:
        """Raises `NotFound` where there is no such partner or feed."""
        try:
            return alert_of(await self._run.fetchrow(_SQL["add"], new.alert_id, new.partner_id, new.feed_id, *_columns(new)))
        except asyncpg.ForeignKeyViolationError as fault:
            raise NotFound(f"no feed {new.feed_id!r} of partner {new.partner_id!r}") from fault

    async def change(self, alert: OperatorAlert, retired_at: datetime | None) -> OperatorAlert:
        return alert_of(await self._run.fetchrow(_SQL["change"], alert.partner_id, alert.alert_id, *_columns(alert), retired_at))


def _columns(alert: OperatorAlert) -> tuple[Any, ...]:
    periods, selectors = msgspec.to_builtins(alert.periods), msgspec.to_builtins(alert.selectors)
    return alert.cause, alert.effect, alert.level, alert.header, alert.description, alert.url, list(periods), list(selectors)
