"""The board: the operators' alerts that one worker holds, kept as new as the database, and told to who listens when they begin and end.

Every worker needs them for reads, GTFS-Realtime and the live channels. Refreshed every two seconds by a mark of the database's transactions,
so that a long transaction is not passed over; a database that is away changes nothing. An alert is told on the channels of the trips, routes
and stops that it concerns when it comes into force, when its words change, and when it holds no longer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from engine.clock import Clock
from engine.errors import EngineError
from engine.live.alerts import AlertItem, OperatorAlert, concerns_route, concerns_stop, concerns_trip, of_operator
from engine.meter import Meter
from engine.tracking.timetable import Timetable

log = logging.getLogger(__name__)

REFRESH_S: Final = 2.0
KINDS: Final = frozenset({"trip", "route", "stop"})  # of channels that tell alerts

Changed = Callable[[int], Awaitable[tuple[list[OperatorAlert], int]]]  # mark -> alerts changed since (0: all), next mark


class Timetables(Protocol):
    """What we need of `engine.tracking.plans.Plans`."""

    def timetable(self, feed_id: str) -> Timetable | None: ...


class Ears(Protocol):
    """What we need of `engine.live.hub.Hub`."""

    def announce(self, feed_id: str, item: AlertItem, *, over: bool, carries: Callable[[str], bool]) -> None: ...


class Board:
    """One per worker."""

    def __init__(self, changed: Changed, timetables: Timetables, ears: Ears, *, clock: Clock, meter: Meter) -> None:
        self._changed, self._timetables, self._ears, self._clock = changed, timetables, ears, clock
        self._alerts: dict[str, OperatorAlert] = {}  # not over, the oldest first
        self._told: dict[str, OperatorAlert] = {}  # in force, as last told
        self._mark = 0
        self.version = 0  # rises whenever what is in force, or will be, changes
        self._faults = meter.counter("timepoint_alerts_refresh_faults_total", "refreshes of the operators' alerts that failed")
        self._held = meter.gauge("timepoint_alerts_held", "operators' alerts that are in force or will be")

    def all(self, feed_id: str | None = None) -> list[OperatorAlert]:
        """In force or still to come, the oldest first; None: of every feed."""
        now_ms = self._clock.now_ms()
        return [each for each in self._alerts.values() if feed_id in (None, each.feed_id) and not each.is_over(now_ms)]

    def on_channel(self, channel: str) -> list[AlertItem]:
        """What is in force for a `trip:`, `route:` or `stop:` channel."""
        now_ms = self._clock.now_ms()
        return [of_operator(each, now_ms) for each in self._told.values() if self._carries(each, channel)]

    async def refresh(self) -> None:
        """Reads what changed, and tells what began or ended. Raises `Unavailable`."""
        changed, self._mark = await self._changed(self._mark)
        self.take(changed)

    def take(self, changed: list[OperatorAlert]) -> None:
        """What changed, and what time has done meanwhile."""
        now_ms = self._clock.now_ms()
        for alert in changed:
            known = self._alerts.get(alert.alert_id)
            if known is None or alert.version > known.version:
                self._alerts[alert.alert_id] = alert
                self.version += 1
        for alert_id in [name for name, alert in self._alerts.items() if alert.is_over(now_ms)]:
            self._end(alert_id, self._alerts.pop(alert_id), now_ms)
        for alert in self._alerts.values():
            told = self._told.get(alert.alert_id)
            if not alert.holds(now_ms):
                self._end(alert.alert_id, alert, now_ms)
            elif told is None or told.version != alert.version:
                self._begin(alert, told, now_ms)
        self._held.set(len(self._alerts))

    def _begin(self, alert: OperatorAlert, before: OperatorAlert | None, now_ms: int) -> None:
        self._told[alert.alert_id] = alert
        self.version += 1
        if before is not None:  # channels that it no longer concerns hear that it is over for them
            item = of_operator(before, now_ms)
            left = before
            self._ears.announce(
                alert.feed_id, item, over=True, carries=lambda name: self._carries(left, name) and not self._carries(alert, name)
            )
        self._ears.announce(alert.feed_id, of_operator(alert, now_ms), over=False, carries=lambda name: self._carries(alert, name))

    def _end(self, alert_id: str, alert: OperatorAlert, now_ms: int) -> None:
        told = self._told.pop(alert_id, None)
        if told is not None:
            self.version += 1
            self._ears.announce(alert.feed_id, of_operator(alert, now_ms), over=True, carries=lambda name: self._carries(told, name))

    def _carries(self, alert: OperatorAlert, channel: str) -> bool:
        kind, _, name = channel.partition(":")
        feed_id, _, local = name.partition(":")
        timetable = self._timetables.timetable(feed_id)
        if kind not in KINDS or feed_id != alert.feed_id or timetable is None:
            return False
        if kind == "route":
            return concerns_route(alert.selectors, timetable, local)
        if kind == "stop":
            return concerns_stop(alert.selectors, timetable, local)
        trip_id, _, start_date = local.rpartition(":")
        trip = timetable.trips.get(trip_id)
        return trip is not None and concerns_trip(alert.selectors, timetable, trip, start_date)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.refresh()
            except EngineError as fault:
                self._faults.add()
                log.warning("the operators' alerts could not be refreshed, the known ones go on: %s", fault)
                self.take([])
            await asyncio.sleep(REFRESH_S)
