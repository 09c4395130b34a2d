"""For those who run it: /metrics in the Prometheus text format, and /status, what a person wants to know first.

A worker answers for itself: its label `worker` is the process id, so a scraper that meets another worker next time keeps their series apart.
"""

from __future__ import annotations

import asyncio
import os
import resource
from typing import Any, Final

import msgspec
from litestar import MediaType, Request, Response, get

from api.app import parts_of
from engine.clock import Clock
from engine.live.frames import rfc3339
from engine.meter import SECONDS, Meter

LAG_EVERY_S: Final = 0.1


class AreaStatus(msgspec.Struct, frozen=True, rename="camel"):
    area: str
    number: int  # of the last live batch heard
    buses: int


class Status(msgspec.Struct, frozen=True, rename="camel"):
    at: str
    worker: int
    draining: bool
    live_stale: bool
    buses: int
    sockets: int
    areas: list[AreaStatus]
    feeds: dict[str, str]  # feed id -> version in force
    loop_lag_s: float  # the newest reading


class LoopLag:
    """How late the event loop wakes: the time that something held it. A bar of its own, because everything waits behind it."""

    def __init__(self, clock: Clock, meter: Meter) -> None:
        self._clock = clock
        self._lag = meter.histogram("timepoint_loop_lag_seconds", "how late the event loop woke", bounds=SECONDS)
        self.newest_s = 0.0

    async def run(self) -> None:
        while True:
            due_s = self._clock.steady_s() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self.newest_s = max(0.0, self._clock.steady_s() - due_s)
            self._lag.observe(self.newest_s)


@get("/metrics", tags=["ops"], media_type=MediaType.TEXT, sync_to_thread=False)
def metrics(request: Request[Any, Any, Any]) -> Response[str]:
    """Counters, gauges and histograms of this worker."""
    parts = parts_of(request)
    meter = parts.meter or Meter()
    used = resource.getrusage(resource.RUSAGE_SELF)
    meter.gauge("timepoint_cpu_seconds", "CPU that this worker has used").set(used.ru_utime + used.ru_stime)
    meter.gauge("timepoint_resident_peak_bytes", "the most memory this worker has had").set(used.ru_maxrss * 1024)
    meter.gauge("timepoint_live_buses", "vehicles in this worker's live table").set(len(parts.table.buses))
    return Response(meter.text({"worker": str(os.getpid())}), media_type="text/plain; version=0.0.4; charset=utf-8")


@get("/status.json", tags=["ops"], sync_to_thread=False)
def status(request: Request[Any, Any, Any]) -> Status:
    """What a person wants to know first about this worker."""
    parts = parts_of(request)
    areas = [AreaStatus(area.id, area.n, len(area.buses)) for area in parts.table.areas.values()]
    feeds = {plan.feed_id: plan.timetable.version for plan in parts.plans.all()} if parts.plans is not None else {}
    return Status(
        rfc3339(parts.clock.now_ms()),
        os.getpid(),
        parts.draining,
        parts.table.stale,
        len(parts.table.buses),
        parts.hub.listeners if hasattr(parts.hub, "listeners") and isinstance(parts.hub.listeners, int) else 0,
        areas,
        feeds,
        parts.lag.newest_s if parts.lag is not None else 0.0,
    )


ROOTS: Final = (metrics, status)
