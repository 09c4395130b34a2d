"""What must be true of the bookings, asked of the database itself: the judges of the torture run and of the tests that build mutants.

The statements stand in checks.sql beside this file, written apart from the product's own. `ALWAYS` is cheap and asked during a run (an end
state that looks sound can hide a seat that was sold twice for a second); `AT_REST` is asked once, over all
bookings; `MONEY` once everything that was under way has ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.M)
ALWAYS = ("overlaps", "stale_claims")
MONEY = ("ledger", "paid_without_seat", "seat_without_money", "refunded_too_much")
AT_REST = (*ALWAYS, "partial", "orphans", "halves", "passengers", "events", "confirms", "answers")


def statements(file: str) -> dict[str, str]:
    """The statements of a .sql file of this folder, or of one inside it, by name."""
    parts = _NAME.split((Path(__file__).parent / f"{file}.sql").read_text(encoding="utf-8"))
    return dict(zip(parts[1::2], (body.strip().rstrip(";") for body in parts[2::2]), strict=True))


STATEMENTS = statements("checks")


async def wrong(connection: Any, names: tuple[str, ...] = AT_REST) -> dict[str, list[dict[str, Any]]]:
    """Of each check of `names` the rows it finds wrong, in one snapshot; a check that finds nothing is left out. `connection`: asyncpg."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        found = {name: [dict(row) for row in await connection.fetch(STATEMENTS[name])] for name in names}
    return {name: rows for name, rows in found.items() if rows}


async def unfounded(connection: Any, event_ids: Iterable[str]) -> list[str]:
    """Of the events that were said (`topic:aggregate:version`) those that no committed row bears: news of what never happened."""
    said = set(event_ids)
    aggregates = list({one.split(":")[1] for one in said})
    return sorted(said - {row[0] for row in await connection.fetch(STATEMENTS["committed"], aggregates)})
