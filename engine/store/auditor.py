"""Asks the invariants of `auditor.sql` of a live database, in one snapshot that can change nothing.

A snapshot that stays open slows every hold (its rows cannot be cleaned away), so there is an end to it: a limit for each statement and one
for all of them; what was not asked by then says so, and the books are not called sound.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from importlib import resources

import asyncpg

from engine.clock import Clock
from engine.errors import Unavailable
from engine.live.frames import rfc3339
from engine.office.auditor import INVARIANTS, SHOWN, Broken, Finding, Report, report
from engine.store.desk import ALL
from engine.store.postgres import CONNECTION_FAULTS, statements

_PURPOSE = re.compile(r"^-- name: (\w+)\n((?:-- .*\n)+)", re.M)


@cache
def purposes() -> dict[str, str]:
    """The line of purpose of every invariant."""
    text = resources.files("engine.store").joinpath("auditor.sql").read_text(encoding="utf-8")
    return {name: " ".join(line[3:] for line in lines.splitlines()) for name, lines in _PURPOSE.findall(text)}


async def audit(
    url: str,
    clock: Clock,
    *,
    keep_days: int,
    limit_s: float = 60.0,
    names: Sequence[str] = INVARIANTS,
) -> Report:
    """Every invariant on the database of `url` (any role that may read), within `limit_s` in all.

    `keep_days`: how long said events are kept; older changes are not held against them. Raises `Unavailable`.
    """
    try:
        connection = await asyncpg.connect(url, timeout=10, server_settings={"application_name": "timepoint auditor"})
    except CONNECTION_FAULTS as fault:
        raise Unavailable(f"PostgreSQL does not answer: {fault}") from fault
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            findings = await ask(connection, clock, keep_days=keep_days, limit_s=limit_s, names=names)
    except CONNECTION_FAULTS as fault:
        raise Unavailable(f"PostgreSQL went away: {fault}") from fault
    finally:
        connection.terminate()
    return report(rfc3339(clock.now_ms()), findings)


async def ask(
    connection: asyncpg.Connection, clock: Clock, *, keep_days: int, limit_s: float = 60.0, names: Sequence[str] = INVARIANTS
) -> list[Finding]:
    """The same in a transaction of the caller's."""
    began_s = clock.steady_s()
    kept = timedelta(days=keep_days) - timedelta(hours=1)  # the retention may be at work
    await connection.execute(statements("desk")["tenant"], ALL)
    return [await _ask(connection, name, kept, limit_s - (clock.steady_s() - began_s), clock) for name in names]


async def _ask(connection: asyncpg.Connection, name: str, kept: timedelta, left_s: float, clock: Clock) -> Finding:
    purpose, statement = purposes()[name], statements("auditor")[name]
    if left_s <= 0:
        return Finding(name, purpose, None, [], "not asked: the time for all of them is over")
    began_s = clock.steady_s()
    counted = f"select entity, said, count(*) over () as n from ({statement}) wrong limit {SHOWN}"  # noqa: S608 - our own texts
    try:
        async with connection.transaction():  # a savepoint: one that fails leaves the others their snapshot
            await connection.execute(f"set local statement_timeout = {int(left_s * 1000) + 1}")
            rows = await connection.fetch(counted, *([kept] if "$1" in statement else []), timeout=left_s + 5)
    except asyncpg.PostgresError as fault:
        if isinstance(fault, CONNECTION_FAULTS) and not isinstance(fault, asyncpg.QueryCanceledError):
            raise
        return Finding(name, purpose, None, [], f"{type(fault).__name__}: {fault}", round((clock.steady_s() - began_s) * 1000))
    broken = [Broken(row["entity"], row["said"]) for row in rows]
    return Finding(name, purpose, rows[0]["n"] if rows else 0, broken, None, round((clock.steady_s() - began_s) * 1000))
