"""Rules of the areas in PostgreSQL: every statement of `rules.sql`. Raises `Unavailable` where the database is away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from engine.store.fences import load_fences
from engine.store.fleet import Executor
from engine.store.postgres import statements
from engine.tracking.rules import Order, Rules, WatchConfig

_SQL = statements("rules")


class RuleRow(msgspec.Struct, frozen=True):
    """An area's thresholds and window as an editor reads them; version 0: never set, the defaults."""

    watch: WatchConfig
    on_time_early_s: int
    on_time_late_s: int
    version: int


async def marks(run: Executor) -> dict[str, int]:
    """Number of every area whose rules were ever set; it rises with every change."""
    return {row["feed_id"]: row["number"] for row in await run.fetch(_SQL["marks"])}


async def load_rules(
    run: Executor, feed_id: str, number: int, known: Rules | None = None, unread: Callable[[], None] = lambda: None
) -> Rules:
    """What holds in the area now; `known`: what held before, whose fences need not all be read again. A fence that cannot be read is told to
    `unread`. Raises `msgspec.ValidationError` where thresholds of another program version stand there."""
    row = await run.fetchrow(_SQL["rules"], feed_id)
    orders = [_order(each) for each in await run.fetch(_SQL["orders"], feed_id)]
    fences = await load_fences(run, feed_id, known.fences if known is not None else None, unread)
    if row is None:
        return Rules(number, None, orders, fences or None)
    watch = msgspec.json.decode(row["watch"], type=WatchConfig)
    return Rules(number, watch, orders, fences or None, row["on_time_early_s"], row["on_time_late_s"])


async def read_rules(run: Executor, feed_id: str) -> RuleRow:
    row = await run.fetchrow(_SQL["read_rules"], feed_id)
    if row is None:
        return RuleRow(WatchConfig(), 60, 300, 0)
    watch = msgspec.json.decode(row["watch"], type=WatchConfig)
    return RuleRow(watch, row["on_time_early_s"], row["on_time_late_s"], row["version"])


async def put_rules(
    run: Executor, feed_id: str, watch: dict[str, Any], early_s: int, late_s: int, by: str, version: int | None
) -> int | None:
    """`watch`: the fields that differ from the defaults. The new version; None where it is no longer the one that was read."""
    row = await run.fetchrow(_SQL["put_rules"], feed_id, msgspec.json.encode(watch).decode(), early_s, late_s, by, version)
    return None if row is None else row["version"]


def _order(row: Any) -> Order:
    at_ms = round(row["said_at"].timestamp() * 1000)
    return Order(row["trip_id"], row["start_date"], row["bus_id"], row["driver_id"], row["said_as"], row["said_by"], at_ms)
