"""Plans: the timetables that one worker holds, kept as new as the database.

Every worker needs them twice: the owner of an area to track with, and everybody to answer reads with. One object loads each feed version
once and tells whoever asked to be told. A database that is away changes nothing: the plans in memory go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec

from engine.errors import EngineError
from engine.meter import Meter
from engine.store import network
from engine.store.postgres import Postgres
from engine.tracking.timetable import Timetable

log = logging.getLogger(__name__)

REFRESH_S: Final = 3.0  # a new feed version is in force on every worker within this


class Plan(msgspec.Struct, frozen=True, eq=False):
    """One feed as it is in force."""

    feed_id: str
    partner_id: str
    timetable: Timetable
    since: datetime | None = None  # when it was put in force; None: it always was


class Plans:
    """Feeds by id. Readers call `get`; `changed` callbacks run on the loop after a version has been swapped in."""

    def __init__(self, postgres: Postgres, meter: Meter) -> None:
        self._postgres = postgres
        self._plans: dict[str, Plan] = {}
        self.changed: list[Callable[[Plan], None]] = []
        self.loaded = False  # the database has been asked at least once: an unknown feed is then really unknown
        self._faults = meter.counter("timepoint_plans_refresh_faults_total", "refreshes of the timetables that failed")

    def get(self, feed_id: str) -> Plan | None:
        return self._plans.get(feed_id)

    def timetable(self, feed_id: str) -> Timetable | None:
        plan = self._plans.get(feed_id)
        return plan.timetable if plan is not None else None

    def all(self) -> list[Plan]:
        """In the order of their ids, so that "the first feed" is the same on every worker."""
        return [self._plans[feed_id] for feed_id in sorted(self._plans)]

    async def refresh(self) -> None:
        """Loads what is new. Raises `Unavailable` where the database is away."""
        for row in await network.feeds(self._postgres):
            known = self._plans.get(row.feed_id)
            if known is not None and _marks(known) == (row.version, row.partner_id, row.activated_at):
                continue
            same = known is not None and known.timetable.version == row.version
            timetable = (
                known.timetable if same and known is not None else await network.load_timetable(self._postgres, row.feed_id, row.version)
            )
            if timetable is None:
                continue
            plan = Plan(row.feed_id, row.partner_id, timetable, row.activated_at)
            self._plans[row.feed_id] = plan
            log.info("feed %s version %s is in force: %d trips", row.feed_id, timetable.version, len(timetable.trips))
            for tell in self.changed:
                tell(plan)
        self.loaded = True

    async def run(self) -> None:
        """For ever: refresh, rest, again."""
        while True:
            try:
                await self.refresh()
            except EngineError as fault:
                self._faults.add(1)
                log.warning("the timetables could not be refreshed, the known ones go on: %s", fault)
            await asyncio.sleep(REFRESH_S)


def _marks(plan: Plan) -> tuple[str, str, datetime | None]:
    return plan.timetable.version, plan.partner_id, plan.since
