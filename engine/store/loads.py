"""How full a bus is, as far as the desk knows: seats of the trip's seat map, and who was scanned aboard.

Kept in memory for `KEEP_S` and read again behind the readers' backs, only while somebody asks, in one statement for all trips under way.
A database that is away leaves what was known. What is not sold here is not known: then only the device can say how many are on board.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from engine.errors import EngineError
from engine.meter import Meter
from engine.store.desk import ALL, DeskPool
from engine.store.postgres import statements

log = logging.getLogger(__name__)

KEEP_S: Final = 10.0
TRIPS_MAX: Final = 5_000  # of one look


class Load(msgspec.Struct, frozen=True):
    """`rides`: (place where it begins, place where it ends) of everybody who was scanned aboard; places count the stops of the trip from 0."""

    seats: int
    rides: tuple[tuple[int, int], ...] = ()

    def aboard(self, next_place: int) -> int | None:
        """How many ride on the leg that ends at that place; None: nobody was scanned on this trip, so we cannot tell."""
        if not self.rides:
            return None
        leg = max(0, next_place - 1)
        return sum(begin <= leg < end for begin, end in self.rides)


class Loads:
    """One per worker."""

    def __init__(self, pool: DeskPool, meter: Meter) -> None:
        self._pool, self._sql = pool, statements("loads")
        self._known: dict[str, Load] = {}
        self._read_s = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._faults = meter.counter("timepoint_loads_faults_total", "times that seats and boardings could not be read")

    def of(self, trip: str) -> Load | None:
        """By public id of the trip instance; None: not sold here, or not read yet."""
        return self._known.get(trip)

    def want(self, trips: Iterable[str]) -> None:
        """Somebody asks about these: read them again where they were read `KEEP_S` ago."""
        now_s = self._pool.clock.steady_s()
        if self._reading is None and now_s - self._read_s >= KEEP_S:
            self._read_s = now_s
            self._reading = asyncio.create_task(self._look(list(dict.fromkeys(trips))[:TRIPS_MAX]), name="loads")

    async def _look(self, trips: list[str]) -> None:
        try:
            await self.read(trips)
        except EngineError as fault:
            self._faults.add()
            log.warning("seats and boardings could not be read: %s", fault)
        finally:
            self._reading = None

    async def read(self, trips: list[str]) -> None:
        """Those of them that are sold; the others are forgotten. Raises `Unavailable`."""

        async def fetch(connection: Any) -> Any:
            return await connection.fetch(self._sql["loads"], trips)

        rows = await self._pool.run(ALL, fetch) if trips else []
        self._known = {row["trip_id"]: Load(row["seats"], tuple(zip(row["froms"], row["tos"], strict=True))) for row in rows}
