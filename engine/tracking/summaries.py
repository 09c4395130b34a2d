"""Summaries: the worker that keeps `analytics.*` as new as the record, so that a month of a fleet is read in less than a second.

A pass looks at the stop events of the last days; a service day whose events have changed is written anew, whole, in one transaction. Days
that are over are judged by the feed version by which they were judged first, while it is kept. Fixes are counted by place as they grow
`HEAT_AFTER` old: what a phone sends later than that is not on the heat map. Held by one worker at a time (a lease); two at once would write
the same rows.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import asyncpg
import msgspec

from engine.clock import Clock
from engine.errors import EngineError
from engine.meter import Meter
from engine.settings import Settings
from engine.store.analytics import Analytics, FeedRow
from engine.tracking.timetable import parse_date

log = logging.getLogger(__name__)

HEAT_AFTER: Final = timedelta(minutes=10)
HEAT_SLICE: Final = timedelta(hours=1)  # of one transaction: 3.4 million fixes a day of 200 buses at 5 s
HEAT_BACK: Final = timedelta(days=1)  # where counting begins when it never began
AGAIN_S: Final = 30.0  # after a pass that failed
FAULTS: Final = (EngineError, asyncpg.PostgresError, ValueError, LookupError)  # a time zone that is none is a LookupError
OLD_LOOKS: Final = 288  # passes between two times that old summaries go: a day at five minutes


class Summaries:
    """`run` is to be held by one worker."""

    def __init__(self, store: Analytics, *, clock: Clock, settings: Settings, meter: Meter) -> None:
        self._store, self._clock, self._settings = store, clock, settings
        self._made = meter.counter("timepoint_summaries_days_total", "service days summarised")
        self._faults = meter.counter("timepoint_summaries_faults_total", "passes over the record that failed")
        self._took = meter.histogram("timepoint_summaries_pass_seconds", "time of one pass over the record")
        self._passes = 0

    async def run(self) -> None:
        """Until cancelled: a pass, a rest, again. What fails is counted and tried again in the next pass."""
        while True:
            begun_s, rest_s = self._clock.steady_s(), self._settings.summaries_s
            try:
                await self.look()
            except FAULTS as fault:
                self._faults.add(1)
                rest_s = min(rest_s, AGAIN_S)
                log.warning("summaries: %s", fault)
            self._took.observe(self._clock.steady_s() - begun_s)
            await asyncio.sleep(rest_s)

    async def look(self) -> int:
        """One pass; how many days were written. An area that fails holds back none of the others; the last fault is raised in the end."""
        written, failed = 0, None
        for feed in await self._store.feeds():
            try:
                written += await self._days(feed)
            except FAULTS as fault:
                log.warning("summaries of %s: %s", feed.feed_id, fault)
                failed = fault
        await self._heat()
        if self._passes % OLD_LOOKS == 0:
            await self._store.forget_old(self._settings.summaries_keep_days)
        self._passes += 1
        if failed is not None:
            raise failed
        return written

    async def _days(self, feed: FeedRow) -> int:
        now = datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC)
        zone = ZoneInfo(feed.timezone)
        since = now - timedelta(days=self._settings.history_back_days + 3)
        whole_from = since.astimezone(zone).date() + timedelta(days=1)  # of older days we see some events only, and others in every pass
        said = await self._store.days_said(feed.feed_id, since)
        made = await self._store.days_made(feed.feed_id, whole_from)
        open_from = now.astimezone(zone).date() - timedelta(days=1)
        written = 0
        for text, mark in sorted(said.items()):
            day = parse_date(text)
            if day is None or not whole_from <= day <= open_from + timedelta(days=2):
                continue
            known = made.get(day)
            if known is not None and known.mark == mark:
                continue
            judge = feed
            if known is not None and day < open_from and await self._store.has_version(known.version_id):
                judge = msgspec.structs.replace(feed, version_id=known.version_id)
            await self._store.summarise_day(judge, day, mark, self._clock.now_ms())
            self._made.add(1)
            written += 1
        return written

    async def _heat(self) -> None:
        until = datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC) - HEAT_AFTER
        since = await self._store.heat_until()
        if since is None:
            since = until - HEAT_BACK
            await self._store.add_heat(None, since)
        while since < until:
            then = min(until, since + HEAT_SLICE)
            await self._store.add_heat(since, then)
            since = then
