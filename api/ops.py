"""For those who run it: /metrics in the Prometheus text format, and /status, what a person wants to know first.

A worker answers for itself: its label `worker` is the process id, so a scraper that meets another worker next time keeps their series apart.
"""

from __future__ import annotations

import os
import resource
from html import escape
from typing import Any, Final

import msgspec
from litestar import MediaType, Request, Response, get

from api.parts import Parts, parts_of
from engine.live.frames import rfc3339
from engine.meter import Meter

PAGE: Final = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Timepoint: status</title>
<link rel="icon" href="/assets/icon.svg" type="image/svg+xml"><link rel="stylesheet" href="/assets/style.css"></head>
<body>
<header class="bar"><a class="brand" href="/">Timepoint</a></header>
<main class="home">
<h1>Status of this worker</h1>
<table>
{rows}</table>
<p class="soft">The same as <a href="/status.json">JSON</a>; numbers over time at <a href="/metrics">/metrics</a>.</p>
</main>
</body>
</html>
"""


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
def status_json(request: Request[Any, Any, Any]) -> Status:
    """What a person wants to know first about this worker."""
    return _status(parts_of(request))


@get("/status", tags=["ops"], media_type=MediaType.HTML, sync_to_thread=False)
def status(request: Request[Any, Any, Any]) -> Response[str]:
    """The same as a page."""
    said = _status(parts_of(request))
    rows = {
        "At": said.at,
        "Worker": f"process {said.worker}" + (", draining" if said.draining else ""),
        "Live picture": "stale: Redis is away" if said.live_stale else "current",
        "Buses": f"{said.buses:,}",
        "Sockets": f"{said.sockets:,}",
        "Event loop lag": f"{said.loop_lag_s * 1000:.1f} ms",
        **{f"Feed {feed_id}": f"version {version}" for feed_id, version in said.feeds.items()},
        **{f"Area {area.area}": f"{area.buses:,} buses, live batch {area.number:,}" for area in said.areas},
    }
    body = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>\n' for name, value in rows.items())
    return Response(PAGE.format(rows=body), media_type=MediaType.HTML, headers={"Cache-Control": "no-store"})


def _status(parts: Parts) -> Status:
    areas = [AreaStatus(area.id, area.n, len(area.buses)) for area in parts.table.areas.values()]
    feeds = {plan.feed_id: plan.timetable.version for plan in parts.plans.all()} if parts.plans is not None else {}
    return Status(
        rfc3339(parts.clock.now_ms()),
        os.getpid(),
        parts.draining,
        parts.table.stale,
        len(parts.table.buses),
        parts.sockets.count if parts.sockets is not None else 0,
        areas,
        feeds,
        parts.lag.newest_s if parts.lag is not None else 0.0,
    )


ROOTS: Final = (metrics, status, status_json)
