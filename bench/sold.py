"""Trips on sale for the benches of the booking side: an operator, a layout of 200 seats, prices, trips, and a season of sold seats beside them.

Written straight into the tables by a superuser (sold.sql), so that a bench measures the calls and not the setting up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bench.checks import statements

ROWS, STOPS = 50, 12
STATEMENTS = statements("sold")
LETTERS = (("A", 0), ("B", 1), ("C", 3), ("D", 4))
PLAN: dict[str, Any] = {"currency": "DZD", "base": {"kind": "PER_KM", "perKm": 1000, "start": 10_000}}


def labels(rows: int = ROWS) -> list[str]:
    """Of all seats, in the order of their numbers."""
    return [f"{row + 1}{letter}" for row in range(rows) for letter, _ in LETTERS]


def layout(rows: int = ROWS) -> dict[str, Any]:
    """Two and two around an aisle."""
    seats = [{"label": f"{row + 1}{letter}", "row": row, "column": column} for row in range(rows) for letter, column in LETTERS]
    return {"decks": [{"rows": rows, "columns": 5, "aisles": [2]}], "seats": seats}


def trip_id(number: int) -> str:
    """Public id of the trip of that number, from 1."""
    return f"bench:T{number}:20300101"


def stop_id(place: int) -> str:
    return f"bench:S{place}"


async def sell(
    admin_url: str, trips: int, *, full: int = 0, rows: int = ROWS, stops: int = STOPS, layouts: Mapping[str, Any] | None = None
) -> None:
    """`trips` empty ones (numbers from 1), and `full` more that are sold out; the tables are analysed. `layouts`: more of them, by id, for
    swaps. `admin_url`: a superuser's."""
    import asyncpg

    admin = await asyncpg.connect(admin_url)
    try:
        drawn = json.dumps(layout(rows))
        await admin.execute("set statement_timeout = 0")
        await admin.fetch(STATEMENTS["operator"], drawn, json.dumps(PLAN))
        for layout_id, body in (layouts or {}).items():
            await admin.fetch(STATEMENTS["layout"], layout_id, json.dumps(body))
        await admin.fetch(STATEMENTS["trips"], trips + full, 1, stops)
        await admin.fetch(STATEMENTS["stops"])
        await admin.fetch(STATEMENTS["maps"], labels(rows), drawn)
        if full:
            await admin.fetch(STATEMENTS["sold_out"], trips + 1)
        await admin.execute("vacuum analyze")
    finally:
        await admin.close()
