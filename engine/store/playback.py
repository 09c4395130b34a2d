"""The record of buses in a stretch of time: every statement of `playback.sql`, one function each. Raises `Unavailable`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from engine.store.incidents import Episode
from engine.store.postgres import Postgres, statements

HISTORY = statements("history")  # names_of: the names behind numbers


class Sample(msgspec.Struct, frozen=True, gc=False):
    """Where a bus was at the k-th instant. Micro-degrees, cm/s, tenths of a degree, metres; names as numbers."""

    bus_no: int
    k: int
    lat_e6: int
    lon_e6: int
    speed_cms: int | None
    bearing_ddeg: int | None
    along_m: int | None
    state_no: int | None
    trip_no: int | None
    start_date: int | None  # yyyymmdd


class PastCall(msgspec.Struct, frozen=True):
    """What a bus did at a stop."""

    area: str
    bus_id: str
    trip_id: str
    start_date: str
    stop_id: str
    stop_sequence: int
    kind: str
    arrived_at: datetime | None
    departed_at: datetime | None


class PlaybackReader:
    def __init__(self, postgres: Postgres) -> None:
        self._run, self._sql = postgres, statements("playback")

    async def buses_of_route(self, area: str, route_id: str, since: datetime, until: datetime, limit: int) -> list[str]:
        return [row["bus_id"] for row in await self._run.fetch(self._sql["buses_of_route"], area, route_id, since, until, limit)]

    async def numbers(self, names: Sequence[str]) -> dict[str, int]:
        return {row["name"]: row["no"] for row in await self._run.fetch(self._sql["numbers"], list(names))}

    async def names(self, numbers: Sequence[int]) -> dict[int, str]:
        return {row["no"]: row["name"] for row in await self._run.fetch(HISTORY["names_of"], list(numbers))} if numbers else {}

    async def samples(self, bus_nos: Sequence[int], since: datetime, step_s: int, count: int, hold_s: float) -> list[Sample]:
        """By bus, then by instant; an instant without a fix in the `hold_s` before it has no row."""
        ends = since - timedelta(seconds=hold_s), since + timedelta(seconds=step_s * count)
        rows = await self._run.fetch(self._sql["samples"], list(bus_nos), since, float(step_s), count, float(hold_s), *ends)
        return [Sample(*row) for row in rows]

    async def incidents(self, areas: Sequence[str], bus_ids: Sequence[str], since: datetime, until: datetime) -> list[Episode]:
        rows = await self._run.fetch(self._sql["incidents"], list(areas), list(bus_ids), since, until)
        return [Episode(*row) for row in rows]

    async def stop_events(self, bus_ids: Sequence[str], since: datetime, until: datetime) -> list[PastCall]:
        return [PastCall(*row) for row in await self._run.fetch(self._sql["stop_events"], list(bus_ids), since, until)]
