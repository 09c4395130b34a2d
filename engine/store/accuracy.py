"""Accuracy of published arrivals in PostgreSQL: every statement of `accuracy.sql`, one function each.

Promises: a day's rows and the word that it is worked out are one transaction, and doing it again replaces them. Raises `Unavailable` where
the database is away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final, NamedTuple

from engine.store.postgres import Postgres, statements
from engine.store.timescale import columns
from engine.tracking.accuracy import BucketSums, Published

SQL: Final = statements("accuracy")
TRIPS_MAX: Final = 200_000  # of one area and day
SAMPLES_MAX: Final = 50_000  # of one read

RideKey = tuple[str, str]  # trip_id, bus_id


class RouteDay(NamedTuple):
    """One route on one service date."""

    day: date
    area: str
    route_id: str


class AccuracyStore:
    """Over the shared pool. Times are aware datetimes; `start_date` is yyyymmdd."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    # --- the nightly job ---

    async def computed(self, area: str, since: date) -> dict[date, datetime]:
        """Which days are worked out, and when that was."""
        return {row["day"]: row["computed_at"] for row in await self._postgres.fetch(SQL["computed_days"], area, since)}

    async def trips(self, area: str, start_date: str, since: datetime, until: datetime) -> dict[str, list[str]]:
        """Trips that were driven, by route, at most `TRIPS_MAX`."""
        found: dict[str, list[str]] = {}
        for row in await self._postgres.fetch(SQL["trips"], area, start_date, since, until, TRIPS_MAX):
            found.setdefault(row["route_id"], []).append(row["trip_id"])
        return found

    async def first_sample(self, area: str, since: datetime, until: datetime) -> datetime | None:
        """Since when what was published was sampled; None: it was not."""
        row = await self._postgres.fetchrow(SQL["first_sample"], area, since, until)
        return None if row is None else row[0]

    async def arrivals(self, area: str, start_date: str, trip_ids: Sequence[str]) -> dict[RideKey, dict[int, int]]:
        """UTC ms at each stop sequence of every ride on these trips."""
        found: dict[RideKey, dict[int, int]] = {}
        for trip_id, bus_id, sequence, arrived_ms in await self._postgres.fetch(SQL["arrivals"], area, start_date, list(trip_ids)):
            found.setdefault((trip_id, bus_id), {})[sequence] = arrived_ms
        return found

    async def published(
        self, area: str, start_date: str, trip_ids: Sequence[str], since: datetime, until: datetime, limit: int = SAMPLES_MAX
    ) -> dict[RideKey, list[Published]]:
        """Samples of every ride on these trips in order of time, at most `limit` of all."""
        found: dict[RideKey, list[Published]] = {}
        rows = await self._postgres.fetch(SQL["published"], area, int(start_date), list(trip_ids), since, until, limit)
        for row in rows:
            sequences = row["sequences"] or range(row["first_sequence"], row["first_sequence"] + len(row["p50_s"]))
            sample = Published(row["made_ms"], sequences, row["p10_s"], row["p50_s"], row["p90_s"])
            found.setdefault((row["trip_id"], row["bus_id"]), []).append(sample)
        return found

    async def keep(
        self, area: str, day: date, routes: Mapping[str, Sequence[BucketSums]], *, rides: int, samples: int, at: datetime
    ) -> None:
        """The whole day of an area, in place of what was said of it before."""
        rows = [(route_id, *_values(one)) for route_id, buckets in sorted(routes.items()) for one in buckets]
        async with self._postgres.connection() as connection, connection.transaction():
            await connection.execute(SQL["forget_day"], area, day)
            if rows:
                await connection.execute(SQL["keep_route"], day, area, *columns(rows))
            await connection.execute(SQL["keep_day"], day, area, at, rides, samples)

    # --- reads ---

    async def route_days(
        self, areas: Sequence[str], since: date, until: date, route_id: str | None, after: RouteDay | None, limit: int
    ) -> list[RouteDay]:
        """Days and routes that have something to say, the newest day first; from behind `after`."""
        place = (None, None, None) if after is None else after
        rows = await self._postgres.fetch(SQL["route_days"], list(areas), since, until, route_id, *place, limit)
        return [RouteDay(*row) for row in rows]

    async def buckets(self, wanted: Sequence[RouteDay]) -> dict[RouteDay, list[BucketSums]]:
        """The buckets of each of them."""
        found: dict[RouteDay, list[BucketSums]] = {}
        if wanted:
            for row in await self._postgres.fetch(SQL["buckets"], *columns([tuple(one) for one in wanted])):
                found.setdefault(RouteDay(*row[:3]), []).append(BucketSums(*row[3:]))
        return found

    async def totals(self, areas: Sequence[str], since: date, until: date, route_id: str | None) -> list[BucketSums]:
        """All of these days and routes in one, without quantiles."""
        return [BucketSums(*row) for row in await self._postgres.fetch(SQL["totals"], list(areas), since, until, route_id)]


def _values(one: BucketSums) -> tuple[Any, ...]:
    sums = (one.samples, one.missing, one.in_window, one.covered, one.early, one.error_sum_s, one.size_sum_s)
    return (one.horizon, one.from_s, one.to_s, *sums, one.p50_s, one.p90_s)
