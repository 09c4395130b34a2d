"""Repairs of history in PostgreSQL: which are asked for, what they read, and what they make true.

Promises: a repair's stops and its end are one transaction; one that was asked for again meanwhile stays asked for. Raises `Unavailable`
where the database is away.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from engine.events import StopEvent
from engine.store.postgres import Postgres, statements
from engine.store.timescale import columns, stop_columns

SQL: Final = statements("history")
TRIPS_MAX: Final = 200  # of one repair: three days of one bus


class Repair(msgspec.Struct, frozen=True):
    """Late fixes of one bus from `since` to `until`; `turn` goes up when more come, `tries` when it fails."""

    area: str
    bus_id: str
    since: datetime
    until: datetime
    turn: int
    tries: int = 0


class Placed(msgspec.Struct, frozen=True):
    """Where on its trip's shape a late fix was; metres."""

    ts: datetime
    lat: float
    lon: float
    along_m: float
    offset_m: float


class Mended(msgspec.Struct, frozen=True):
    """What a repair found out about one trip of its bus."""

    trip_id: str
    start_date: str  # yyyymmdd
    stops: list[StopEvent]
    placed: list[Placed]  # late fixes, in order of time


class RepairStore:
    """Over the shared pool."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def due(self) -> Repair | None:
        """The one that has waited longest, if any is due."""
        row = await self._postgres.fetchrow(SQL["due_repair"])
        return None if row is None else Repair(*row)

    async def put_off(self, repair: Repair, pause_s: float) -> None:
        """It failed: it is due again `pause_s` seconds from now, and one more try is written down."""
        await self._postgres.execute(SQL["put_off_repair"], repair.area, repair.bus_id, pause_s)

    async def waiting(self) -> int:
        """How many are asked for, due or not."""
        row = await self._postgres.fetchrow(SQL["repairs_waiting"])
        return int(row[0]) if row is not None else 0

    async def trips(self, repair: Repair) -> list[tuple[str, int | None, datetime]]:
        """(trip_id, start_date as yyyymmdd or None, time of a fix of it) that the late fixes may belong to, at most `TRIPS_MAX`."""
        rows = await self._postgres.fetch(SQL["trips_around"], repair.bus_id, repair.since, repair.until, TRIPS_MAX)
        return [(row[0], row[1], row[2]) for row in rows]

    async def end(self, repair: Repair, mended: Sequence[Mended]) -> int:
        """All of it and the repair's end in one transaction; how many stops were added or changed."""
        changed = 0
        async with self._postgres.connection() as connection, connection.transaction():
            for trip in mended:
                if trip.stops:
                    rows = [stop_columns(stop) for stop in trip.stops]
                    done = await connection.execute(SQL["mend_stop_events"], repair.area, *columns(rows))
                    changed += int(done.rpartition(" ")[2])
                    sequences, ids = [stop.stop_sequence for stop in trip.stops], [stop.event_id for stop in trip.stops]
                    await connection.execute(SQL["drop_other_sayings"], repair.bus_id, trip.trip_id, trip.start_date, sequences, ids)
                if trip.placed:
                    places = [(at.ts, *_packed(at)) for at in trip.placed]
                    span = trip.placed[0].ts, trip.placed[-1].ts
                    await connection.execute(SQL["place_late"], repair.bus_id, trip.trip_id, int(trip.start_date), *columns(places), *span)
            await connection.execute(SQL["end_repair"], repair.area, repair.bus_id, repair.turn)
        return changed


def _packed(at: Placed) -> tuple[int, int, int, int]:
    """Latitude and longitude in millionths, metres along, tenths of metres away: as the points have them."""
    return round(at.lat * 1e6), round(at.lon * 1e6), round(at.along_m), min(round(at.offset_m * 10), 32_767)
