"""GTFS-Realtime over HTTP: /gtfs-rt/vehicle-positions, trip-updates and alerts, as .pb and .json; api/realtime.py builds them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from litestar import Request, Response, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromQuery

from api.calls import PROTOBUF
from api.etags import unchanged
from api.parts import Parts, parts_of
from api.realtime import RealtimeFeed, Steps, at_once
from engine.errors import NotFound
from engine.events import Position
from engine.live.table import LiveTable, trip_of
from engine.store.loads import Load
from engine.tracking.timetable import Timetable

log = logging.getLogger(__name__)

ROUND_S: Final = 1.0
MESSAGE: Final = ResponseSpec(dict[str, Any], generate_examples=False, description="a FeedMessage in protobuf's JSON form")


def _built(request: Request[Any, Any, Any], kind: str, feed: str | None, *, as_json: bool) -> Response[bytes]:
    parts = parts_of(request)
    plans = parts.plans.all() if parts.plans is not None else []
    plan = next((p for p in plans if feed is None or p.feed_id == feed), None)
    if plan is None:
        raise NotFound(f"no feed {feed!r}" if feed else "no feed is loaded yet")
    made = parts.realtime.get(plan.feed_id)
    if made is None:
        made = parts.realtime[plan.feed_id] = RealtimeFeed(plan.feed_id)
    now_ms = parts.clock.now_ms()
    built = made.ask(kind, as_json, now_ms) or at_once(_steps)(parts, made, plan.timetable, kind, as_json, now_ms)
    headers = {"ETag": built.etag, "Cache-Control": "public, max-age=1"}
    if unchanged(request, built.etag):
        return Response(b"", status_code=304, headers=headers)
    return Response(built.body, headers=headers, media_type="application/json" if as_json else PROTOBUF)


async def build_ahead(parts: Parts) -> None:
    """For ever, once a second: the feeds that somebody has asked for within the last minute, in slices between which requests are served. A
    feed that cannot be built is built by the next request for it, which then says why."""
    meter = parts.meter
    faults = None if meter is None else meter.counter("timepoint_feed_build_faults_total", "rounds of a GTFS-Realtime feed that failed")
    while True:
        await asyncio.sleep(ROUND_S)
        for made in list(parts.realtime.values()):
            for kind, as_json in made.wanted(parts.clock.now_ms()):
                plan = parts.plans.get(made.feed_id) if parts.plans is not None else None
                if plan is None:
                    continue
                try:
                    for _ in _steps(parts, made, plan.timetable, kind, as_json, parts.clock.now_ms(), ahead=True):
                        await asyncio.sleep(0)
                except Exception:  # whatever one vehicle says must not end the worker
                    log.exception("GTFS-Realtime %s of %s could not be built", kind, made.feed_id)
                    if faults is not None:
                        faults.add()


def _steps(parts: Parts, made: RealtimeFeed, timetable: Timetable, kind: str, as_json: bool, now_ms: int, *, ahead: bool = False) -> Steps:
    """One message, of the live table as it is now: others run between the steps, so what is read is listed first."""
    table, loads = parts.table, parts.loads
    if kind == "vehicle":
        if loads is not None:
            loads.want(name.removeprefix("trip:") for name in table.groups if name.startswith("trip:"))
        positions = [seen.position for seen in table.buses.values()]
        return made.vehicle_steps(positions, timetable, now_ms, as_json=as_json, seats=lambda position: _load(parts, position), ahead=ahead)
    if kind == "alert":
        written = parts.board.all(made.feed_id) if parts.board is not None else ()
        return made.alert_steps(table.incidents(made.feed_id), written, timetable, now_ms, as_json=as_json, ahead=ahead)
    held = [(found, table.buses[bus_id].position) for bus_id, found in table.forecasts.items() if bus_id in table.buses]
    pairs = ((found.forecast, position) for found, position in held)
    silent = [seen.position for bus_id, seen in table.buses.items() if not _is_foreseen(table, bus_id, seen.position)]
    return made.trip_steps(pairs, timetable, now_ms, as_json=as_json, silent=silent, ahead=ahead)


def _load(parts: Parts, position: Position) -> Load | None:
    """What the desk knows of the trip that it drives."""
    trip = trip_of(position)
    return None if trip is None or parts.loads is None else parts.loads.of(trip)


def _is_foreseen(table: LiveTable, bus_id: str, position: Position) -> bool:
    found = table.forecasts.get(bus_id)
    return found is not None and found.shape[1:3] == (position.trip_id, position.start_date)  # its stops need not be decoded for that


@get("/gtfs-rt/vehicle-positions.pb", tags=["feeds"], sync_to_thread=False, media_type=PROTOBUF)
def vehicle_positions_pb(request: Request[Any, Any, Any], feed: FromQuery[str | None] = None) -> Response[bytes]:
    """GTFS-Realtime VehiclePositions of a feed (the first one, where `feed` names none)."""
    return _built(request, "vehicle", feed, as_json=False)


@get("/gtfs-rt/vehicle-positions.json", tags=["feeds"], sync_to_thread=False, responses={200: MESSAGE})
def vehicle_positions_json(request: Request[Any, Any, Any], feed: FromQuery[str | None] = None) -> Response[bytes]:
    """The same in protobuf's JSON form."""
    return _built(request, "vehicle", feed, as_json=True)


@get("/gtfs-rt/trip-updates.pb", tags=["feeds"], sync_to_thread=False, media_type=PROTOBUF)
def trip_updates_pb(request: Request[Any, Any, Any], feed: FromQuery[str | None] = None) -> Response[bytes]:
    """GTFS-Realtime TripUpdates of a feed."""
    return _built(request, "trip", feed, as_json=False)


@get("/gtfs-rt/trip-updates.json", tags=["feeds"], sync_to_thread=False, responses={200: MESSAGE})
def trip_updates_json(request: Request[Any, Any, Any], feed: FromQuery[str | None] = None) -> Response[bytes]:
    """The same in protobuf's JSON form."""
    return _built(request, "trip", feed, as_json=True)


@get("/gtfs-rt/alerts.pb", tags=["feeds"], sync_to_thread=False, media_type=PROTOBUF)
def alerts_pb(request: Request[Any, Any, Any], feed: FromQuery[str | None] = None) -> Response[bytes]:
    """GTFS-Realtime Alerts of a feed: detours and delays of this moment, and what its operator has written."""
    return _built(request, "alert", feed, as_json=False)


@get("/gtfs-rt/alerts.json", tags=["feeds"], sync_to_thread=False, responses={200: MESSAGE})
def alerts_json(request: Request[Any, Any, Any], feed: FromQuery[str | None] = None) -> Response[bytes]:
    """The same in protobuf's JSON form."""
    return _built(request, "alert", feed, as_json=True)


ROOTS: Final = (vehicle_positions_pb, vehicle_positions_json, trip_updates_pb, trip_updates_json, alerts_pb, alerts_json)
