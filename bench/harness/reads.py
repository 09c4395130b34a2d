"""What passengers and apps ask: where buses are, stops and lines, boards of departures, trips.

Two measures, by what stands behind an answer: the worker's memory (`cached`), or work for this very call, mostly with the database (`uncached`).
Every path is built from what the deployment itself has, by a seeded choice; a few buses of the scenario's own have sent a fix before.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import quote

from bench.harness.calls import CONNECTIONS, Calls, request
from bench.harness.devices import fix, register
from bench.harness.scenario import CallFailed, Measure, Option, Scenario, Share, Target

BUSES = 20
PAGE = 100
TRIPS = 20
HORIZON = "horizon=7200"


class Reads(Scenario):
    name = "reads"
    summary = "passengers and apps that ask for buses, stops, lines, boards and trips"
    unit = "requests"
    rate = 500.0
    options = (
        Option("uncached-share", 0.1, "of the requests, 0 to 1: boards, schedules, trips, the record of a bus"),
        CONNECTIONS,
    )
    measures = (
        Measure("cached", "from the intended moment to the answer, of what the worker has in memory"),
        Measure("uncached", "the same, of what is worked out or asked of the database for this call"),
    )
    needs: ClassVar[frozenset[str]] = frozenset({"token"})
    thresholds = ("cached.p95<20ms", "uncached.p95<100ms", "faults<1")

    def prepare(self, target: Target, options: Mapping[str, Any], rate: float, seed: int) -> Any:
        """Paths by measure, each asked once: what this deployment does not have is left out."""
        buses = register(target, [f"reader-{number}" for number in range(BUSES)])
        for lane, (bus_id, token) in enumerate(sorted(buses.items())):
            target.call("POST", "/ingest/telemetry", fix(bus_id, lane, time.time_ns() // 1_000_000, 0.0), token=token)
        stops = [one["stopId"] for one in target.call("GET", f"/v1/stops?limit={PAGE}")["items"]]
        routes = [one["routeId"] for one in target.call("GET", f"/v1/routes?limit={PAGE}")["items"]]
        trips = [
            one["tripId"]
            for route_id in routes[:5]
            for one in target.call("GET", f"/v1/routes/{quote(route_id)}/schedules?limit={TRIPS}")["items"]
        ]
        now = datetime.now(UTC)
        span = f"from={now - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}&to={now + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
        cached = [
            *(f"/v1/buses/{bus_id}/location" for bus_id in buses),
            *(f"/v1/buses/locations?near=36.7{digit},3.05&radius=5000" for digit in range(10)),
            *(f"/v1/stops/{quote(stop_id)}" for stop_id in stops),
            *(f"/v1/routes/{quote(route_id)}" for route_id in routes[:20]),
            "/v1/routes?limit=20", "/v1/stops?limit=20", "/gtfs-rt/vehicle-positions.pb", "/gtfs-rt/trip-updates.pb",
        ]  # fmt: skip
        uncached = [
            *(f"/v1/stops/{quote(stop_id)}/departures?{HORIZON}" for stop_id in stops[:50]),
            *(f"/v1/routes/{quote(route_id)}/schedules" for route_id in routes[:20]),
            *(f"/v1/trips/{quote(trip_id)}" for trip_id in trips),
            *(f"/v1/buses/{bus_id}/history?{span}" for bus_id in buses),
        ]
        answered = {"cached": _answered(target, cached), "uncached": _answered(target, uncached)}
        return answered | {"token": target.token}

    async def drive(self, share: Share) -> None:
        calls = await Calls.open(share)
        chance = random.Random(share.seed)
        asked = {
            measure: [request("GET", path, host=calls.host, token=share.data["token"]) for path in share.data[measure]]
            for measure in ("cached", "uncached")
        }
        part = share.options["uncached-share"] if asked["uncached"] else 0.0
        async for moment in share.moments():
            measure = "uncached" if chance.random() < part else "cached"
            calls.send(moment, chance.choice(asked[measure]), measure)
        await calls.rest()


def _answered(target: Target, paths: list[str]) -> list[str]:
    found = []
    for path in paths:
        try:
            target.call("GET", path)
        except CallFailed as refused:
            if refused.status != 404:
                raise
        else:
            found.append(path)
    return found
