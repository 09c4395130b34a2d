"""Nights: once a service date is over, how good its published arrivals were is worked out, route by route.

One worker does it, by a lease. A day of an area is due from 04:00 local time of its feed on the next day, and once more a day later: trips that
ran past four and stops that late fixes put right are in then. Days that were missed are caught up as far as samples are kept
(`forecast_keep_days`). A day is written whole with the word that it is done, so a job that was cut off begins that day again and nothing is
counted twice.

The work is done in pieces on the worker's own loop: a few trips are read, one ride is judged (about a millisecond), then others have their turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final, Protocol
from zoneinfo import ZoneInfo

import asyncpg

from engine.clock import Clock
from engine.errors import EngineError
from engine.meter import SECONDS, Meter
from engine.settings import Settings
from engine.store.accuracy import AccuracyStore
from engine.tracking.accuracy import Published, Tally
from engine.tracking.plans import Plan
from engine.tracking.timetable import service_day_start_ms

log = logging.getLogger(__name__)

LOOK_S: Final = 60.0  # between two looks at what is due
DUE_HOUR: Final = 4  # local time of the feed
BEFORE: Final = timedelta(hours=6)  # a trip's samples are looked for from so long before its service date begins
AFTER: Final = timedelta(hours=36)  # to so long after it began: trips run past midnight
TRIPS_A_READ: Final = 20
AGAIN_S: Final = 600.0  # a day that could not be worked out is tried again after this
PAUSE_S: Final = 0.001  # after each ride: half of a quiet loop at most


class AllPlans(Protocol):
    """`engine.tracking.plans.Plans`."""

    def all(self) -> list[Plan]: ...


def due(today: date, hour: int, computed: dict[date, datetime], tz: ZoneInfo, keep_days: int) -> list[date]:
    """Service dates to work out now, oldest first, at `hour` o'clock of `today` in the feed's time zone."""
    last = today - timedelta(days=1 if hour >= DUE_HOUR else 2)
    found = []
    for back in range(keep_days - 1):
        day = last - timedelta(days=back)
        done = computed.get(day)
        settled = datetime(day.year, day.month, day.day, DUE_HOUR, tzinfo=tz) + timedelta(days=2)
        if done is None or (done < settled and day < last):
            found.append(day)
    return found[::-1]


class Nights:
    """`run` under the lease `accuracy`."""

    def __init__(self, store: AccuracyStore, plans: AllPlans, *, clock: Clock, settings: Settings, meter: Meter) -> None:
        self._store, self._plans, self._clock, self._settings = store, plans, clock, settings
        self._put_off: dict[tuple[str, date], float] = {}
        self._days = meter.counter("timepoint_accuracy_days_total", "service dates of an area that were worked out", ("area",))
        self._took = meter.histogram("timepoint_accuracy_day_seconds", "one service date of an area", bounds=SECONDS)
        self._faults = meter.counter("timepoint_accuracy_faults_total", "service dates that could not be worked out, by kind", ("kind",))

    async def run(self) -> None:
        """For ever, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> int:
        """Works out all that is due; how many days of areas that were. A day that fails is put off, the others go on."""
        done = 0
        for plan in self._plans.all():
            try:
                days = await self._due(plan)
            except EngineError as fault:
                self._faults.add(1, type(fault).__name__)
                log.warning("accuracy of %s: %s", plan.feed_id, fault)
                continue
            for day in days:
                done += await self._try(plan, day)
        return done

    async def _due(self, plan: Plan) -> list[date]:
        now = datetime.fromtimestamp(self._clock.now_ms() / 1000, plan.timetable.tz)
        keep = self._settings.forecast_keep_days
        computed = await self._store.computed(plan.feed_id, now.date() - timedelta(days=keep + 1))
        days = due(now.date(), now.hour, computed, plan.timetable.tz, keep)
        now_s = self._clock.steady_s()
        return [day for day in days if self._put_off.get((plan.feed_id, day), 0.0) <= now_s]

    async def _try(self, plan: Plan, day: date) -> int:
        key = plan.feed_id, day
        began_s = self._clock.steady_s()
        try:
            await self.work_out(plan, day)
        except (EngineError, asyncpg.PostgresError) as fault:
            self._faults.add(1, type(fault).__name__)
            self._put_off[key] = began_s + AGAIN_S
            log.warning("accuracy of %s on %s: %s", plan.feed_id, day, fault)
            return 0
        self._put_off.pop(key, None)
        self._took.observe(self._clock.steady_s() - began_s)
        self._days.add(1, plan.feed_id)
        return 1

    async def work_out(self, plan: Plan, day: date) -> None:
        """One service date of an area, whole."""
        area, (since, until) = plan.feed_id, span(plan.timetable.tz, day)
        sampled = await self._store.first_sample(area, since, until)
        routes = await self._store.trips(area, f"{day:%Y%m%d}", since, until) if sampled is not None else {}
        tallies = {
            route_id: await judged(self._store, area, day, plan.timetable.tz, trip_ids, sampled) for route_id, trip_ids in routes.items()
        }
        await self._store.keep(
            area,
            day,
            {route_id: tally.buckets() for route_id, tally in tallies.items()},
            rides=sum(tally.rides for tally in tallies.values()),
            samples=sum(tally.samples for tally in tallies.values()),
            at=datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC),
        )


def span(tz: ZoneInfo, day: date) -> tuple[datetime, datetime]:
    """Between which instants the trips of a service date are driven and foretold."""
    start = datetime.fromtimestamp(service_day_start_ms(tz, day) / 1000, UTC)
    return start - BEFORE, start + AFTER


async def judged(
    store: AccuracyStore, area: str, day: date, tz: ZoneInfo, trip_ids: Sequence[str], sampled: datetime | None = None
) -> Tally:
    """Some trips of one service date. A day that still runs is judged by the stops that were served so far.

    Before `sampled` nothing was kept (the product was not there yet, or an older version was), so nothing is missing then.
    """
    tally, start_date, (since, until) = Tally(), f"{day:%Y%m%d}", span(tz, day)
    for trips in _pieces(trip_ids, TRIPS_A_READ):
        arrivals = await store.arrivals(area, start_date, trips)
        published = await store.published(area, start_date, trips, since, until)
        for key, arrived in arrivals.items():
            _judge(tally, published.get(key, []), arrived, 0 if sampled is None else round(sampled.timestamp() * 1000))
            await asyncio.sleep(PAUSE_S)
    return tally


def _judge(tally: Tally, published: Sequence[Published], arrived: dict[int, int], sampled_ms: int) -> None:
    """One ride. The first stop of a trip has no arrival to foretell: the bus stands there before the trip begins."""
    began_ms, first = max(sampled_ms, min(arrived.values())), min(arrived)
    if all(sequence > first for one in published for sequence in one.sequences[:1]):
        arrived = {sequence: at_ms for sequence, at_ms in arrived.items() if sequence != first}
    tally.add(published, arrived, began_ms)


def _pieces(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (items[i : i + size] for i in range(0, len(items), size))
