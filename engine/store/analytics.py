"""Summaries for managers, in PostgreSQL: every statement of `analytics.sql`, one function each. Raises `Unavailable` where it is away."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, Final

import msgspec

from engine.store.postgres import Postgres, statements

LIMIT_S: Final = 120.0  # longest summary of a day


class FeedRow(msgspec.Struct, frozen=True):
    feed_id: str
    version_id: int
    timezone: str


class MadeDay(msgspec.Struct, frozen=True):
    """A service day that is summarised: `mark` of the events, and the feed version by which they were judged."""

    service_day: date
    mark: str
    version_id: int


class Punctuality(msgspec.Struct, frozen=True):
    """Calls of one key by how late they were."""

    key: str
    early: int
    on_time: int
    late: int
    missed: int
    mean_s: float | None  # delay; None: all were missed


class HeadwaySums(msgspec.Struct, frozen=True):
    """Sums of headways in seconds, and of their squares. None in a name: all of them."""

    area: str
    route_id: str | None
    direction_id: int | None
    stop_id: str | None
    service_day: date | None
    n: int
    sum_s: float
    sum2_s: float
    planned_n: int
    planned_sum_s: float
    planned_sum2_s: float
    compared: int
    bunched: int
    gapped: int


class HeatCell(msgspec.Struct, frozen=True):
    """Place in cells from 0, 0 degrees."""

    x: int
    y: int
    fixes: int
    mean_speed_mps: float | None


class StopMean(msgspec.Struct, frozen=True):
    area: str
    stop_id: str
    n: int
    mean_s: float


class OffRouteRoute(msgspec.Struct, frozen=True):
    area: str
    route_id: str | None
    episodes: int
    minutes: float
    worst_m: float | None
    bypassed: int


class OffRoutePlace(msgspec.Struct, frozen=True):
    y: int
    x: int
    episodes: int
    lat: float
    lon: float
    minutes: float
    routes: list[str] | None


class LadderStop(msgspec.Struct, frozen=True):
    trip_id: str
    bus_id: str
    stop_sequence: int
    kind: str
    arrived_at: datetime | None
    departed_at: datetime | None


class LadderPoint(msgspec.Struct, frozen=True):
    trip_id: str
    ts: datetime
    along_m: int


Windows = Sequence[tuple[str, int, int]]  # (area, early s, late s): on time is from -early to late, multiples of EDGE_S
EDGE_S: Final = 30  # of the summaries: between two edges
EARLY_MOST_S, LATE_MOST_S = 1_800, 3_600  # the outermost edges


class Analytics:
    def __init__(self, postgres: Postgres) -> None:
        self._run, self._sql = postgres, statements("analytics")

    # --- how they are made ---

    async def feeds(self) -> list[FeedRow]:
        return [FeedRow(*row) for row in await self._run.fetch(self._sql["feeds"])]

    async def days_said(self, area: str, since: datetime) -> dict[str, str]:
        """Service date (yyyymmdd) -> mark of its stop events, of those with events since then."""
        return {row["start_date"]: row["mark"] for row in await self._run.fetch(self._sql["days_said"], area, since)}

    async def days_made(self, area: str, since: date) -> dict[date, MadeDay]:
        return {row["service_day"]: MadeDay(*row) for row in await self._run.fetch(self._sql["days_made"], area, since)}

    async def has_version(self, version_id: int) -> bool:
        row = await self._run.fetchrow(self._sql["has_version"], version_id)
        return bool(row and row[0])

    async def summarise_day(self, feed: FeedRow, day: date, mark: str, now_ms: int) -> int:
        """All of a service day anew, in one transaction; how many calls were judged."""
        async with self._run.connection() as connection, connection.transaction():
            await connection.execute(self._sql["lift_limit"])
            for statement in ("forget_delays", "forget_stop_delays", "forget_headways"):
                await connection.execute(self._sql[statement], feed.feed_id, day)
            args = feed.feed_id, day, feed.version_id, feed.timezone
            judged = await connection.fetchval(self._sql["summarise_day"], *args, timeout=LIMIT_S)
            await connection.execute(self._sql["day_made"], feed.feed_id, day, feed.version_id, mark, now_ms)
        return int(judged)

    async def forget_old(self, keep_days: int) -> None:
        for statement in ("forget_old_days", "forget_old_delays", "forget_old_stop_delays", "forget_old_headways", "forget_old_heat"):
            await self._run.execute(self._sql[statement], keep_days)

    async def heat_until(self) -> datetime | None:
        row = await self._run.fetchrow(self._sql["heat_until"])
        return None if row is None else row["until"]

    async def add_heat(self, since: datetime | None, until: datetime) -> None:
        """The fixes of a stretch of time by place, each once. `since` None: nothing is counted, counting begins at `until`."""
        async with self._run.connection() as connection, connection.transaction():
            if since is not None:
                await connection.execute(self._sql["lift_limit"])
                await connection.execute(self._sql["add_heat"], since, until, timeout=LIMIT_S)
            await connection.execute(self._sql["move_heat"], until)

    # --- how they are read ---

    async def as_of(self, areas: Sequence[str], since: date, until: date) -> datetime | None:
        row = await self._run.fetchrow(self._sql["as_of"], list(areas), since, until)
        return None if row is None else row[0]

    async def on_time(
        self, windows: Windows, since: date, until: date, by: str, route_id: str | None, direction_id: int | None
    ) -> list[Punctuality]:
        """By total, day, route, hour or stop; at most 2,001."""
        areas = [area for area, _, _ in windows]
        edges = [
            [1 + (EARLY_MOST_S + at_s) // EDGE_S for at_s in side]
            for side in ([-e for _, e, _ in windows], [late for _, _, late in windows])
        ]
        columns = areas, *edges
        if by == "stop":
            rows = await self._run.fetch(self._sql["on_time_stops"], *columns, since, until, route_id, direction_id)
        else:
            rows = await self._run.fetch(self._sql["on_time"], *columns, since, until, by, route_id, direction_id)
        return [Punctuality(*row) for row in rows]

    async def headways(
        self, areas: Sequence[str], since: date, until: date, by: str, route_id: str | None, direction_id: int | None
    ) -> list[HeadwaySums]:
        """By route, stop or day; at most 2,001."""
        rows = await self._run.fetch(self._sql["headways"], list(areas), since, until, by, route_id, direction_id)
        return [HeadwaySums(*row) for row in rows]

    async def heat(self, areas: Sequence[str], since: date, until: date, box: tuple[int, int, int, int], cell: int) -> list[HeatCell]:
        """`box`: west, east, south, north in thousandths of a degree; `cell` too. The fullest first, at most 5,001."""
        return [HeatCell(*row) for row in await self._run.fetch(self._sql["heat"], list(areas), since, until, *box, float(cell))]

    async def stop_means(self, areas: Sequence[str], since: date, until: date) -> list[StopMean]:
        return [StopMean(*row) for row in await self._run.fetch(self._sql["stop_means"], list(areas), since, until)]

    async def off_route_routes(
        self, areas: Sequence[str], since: datetime, until: datetime, now: datetime, route_id: str | None
    ) -> list[OffRouteRoute]:
        rows = await self._run.fetch(self._sql["off_route_routes"], list(areas), since, until, now, route_id)
        return [OffRouteRoute(*row) for row in rows]

    async def off_route_places(
        self, areas: Sequence[str], since: datetime, until: datetime, now: datetime, route_id: str | None
    ) -> list[OffRoutePlace]:
        rows = await self._run.fetch(self._sql["off_route_places"], list(areas), since, until, now, route_id)
        return [OffRoutePlace(*row) for row in rows]

    async def ladder_stops(self, area: str, start_date: str, trip_ids: Sequence[str]) -> list[LadderStop]:
        return [LadderStop(*row) for row in await self._run.fetch(self._sql["ladder_stops"], area, start_date, list(trip_ids))]

    async def ladder_points(
        self, drives: Sequence[tuple[str, str, datetime, datetime]], start_date: str, every_s: float
    ) -> list[LadderPoint]:
        """`drives`: (bus, trip, from, to)."""
        columns: list[list[Any]] = [[drive[i] for drive in drives] for i in range(4)]
        rows = await self._run.fetch(self._sql["ladder_points"], *columns, int(start_date), every_s)
        return [LadderPoint(*row) for row in rows]

    async def fixes_since(self, areas: Sequence[str], since_ms: int, until_ms: int) -> int:
        """Of the buses of these areas, by the times of the fixes."""
        row = await self._run.fetchrow(self._sql["fixes_since"], list(areas), since_ms, until_ms)
        return 0 if row is None else int(row[0])
