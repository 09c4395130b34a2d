"""The REST side of a worker in this process, on a real database and a real Redis, its clock in the test's hand and its live table fed by the
test: for what managers and passengers read."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest_asyncio

from engine.clock import ManualClock
from engine.events import LiveBatch, Position, StopForecast, TripForecast
from engine.live.hub import Hub
from engine.live.table import LiveTable
from engine.meter import Meter
from engine.office.accounts import BusRow, Devices
from engine.settings import Settings
from engine.store.fleet import Fleet
from engine.store.network import import_feed
from engine.store.postgres import Postgres
from engine.store.redis import Redis
from engine.store.timescale import HistoryReader
from engine.tracking.plans import Plans
from engine.tracking.timetable import Timetable
from tests.live_house import batch
from tests.small_world import DAY, feed

MORNING = "2026-03-02T07:30:00+01:00"
KEY = "a key of the tests that is long enough"


def at(text: str) -> int:
    """RFC 3339 as UTC ms."""
    return round(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000)


class House:
    """Where to ask, and what to feed."""

    def __init__(self, parts: Any, http: httpx.AsyncClient, postgres: Postgres, clock: ManualClock) -> None:
        self.parts, self.http, self.postgres, self.clock = parts, http, postgres, clock
        self._n: dict[str, int] = {}

    def head(self, role: str, partner: str | None = "demo", subject: str = "someone") -> dict[str, str]:
        """The header that says who asks."""
        assert self.parts.tokens is not None
        return {"Authorization": "Bearer " + self.parts.tokens.mint(subject, role, partner_id=partner, life_s=86_400)}

    async def get(self, path: str, head: dict[str, str] | None = None, **params: Any) -> Any:
        answer = await self.http.get(path, headers=head, params=params or None)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def say(
        self,
        *positions: Position,
        forecasts: tuple[TripForecast, ...] = (),
        gone: tuple[str, ...] = (),
        events: tuple[Any, ...] = (),
        area: str = "demo",
    ) -> None:
        """One more batch of an area for the live table."""
        n = self._n[area] = self._n.get(area, 0) + 1
        said = batch(n, *positions, epoch="E", area=area, forecasts=forecasts, gone=gone, events=events)
        if n == 1:
            self.parts.table.learn(LiveBatch(area, "E", 0, [], [], []))
        assert self.parts.table.hear(said) is not None

    async def take_feed(self, timetable: Timetable, partner: str = "demo") -> None:
        assert self.parts.plans is not None
        sha256 = hashlib.sha256(f"{timetable.feed_id} {timetable.version}".encode()).hexdigest()
        await import_feed(self.postgres, timetable, sha256=sha256, partner_id=partner)
        await self.parts.plans.refresh()

    async def add_buses(self, *bus_ids: str, partner: str = "demo", area: str = "demo") -> None:
        assert self.parts.registry is not None
        await Fleet(self.postgres).put_buses([BusRow(bus_id, partner, area, "", None) for bus_id in bus_ids])
        await self.parts.registry.load()

    async def fresh(self) -> None:
        """As at the start: half past seven, no bus, no feed but `demo`."""
        self.clock.at_ms = at(MORNING)
        for area in self._n:
            self.say(gone=tuple(self.parts.table.buses), area=area)
        await self.postgres.execute("update network.feed set active_version_id = null where feed_id <> 'demo'")
        assert self.parts.plans is not None and self.parts.booking is not None
        self.parts.booking.catalogue._cancelled = None  # the clock has gone back, which theirs never does
        self.parts.booking.rates._buckets.clear()
        for plan in self.parts.plans.all():
            if plan.feed_id != "demo":
                del self.parts.plans._plans[plan.feed_id]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reads_of_module(databases: Any, redis_server: Any) -> AsyncIterator[House]:
    """One for all tests of a module: making one takes longer than most of them."""
    name = databases.take()
    async with reads_house(databases.server.dsn(name), redis_server.url) as made:
        yield made
    databases.give_back(name)


@pytest_asyncio.fixture(loop_scope="module")
async def reads(reads_of_module: House) -> House:
    """It, as at the start. For tests marked `asyncio(loop_scope="module")`."""
    await reads_of_module.fresh()
    return reads_of_module


@contextlib.asynccontextmanager
async def reads_house(database_url: str, redis_url: str) -> AsyncIterator[House]:
    """With the feed `demo` of small_world in force: route R, trips T0 (08:00), T1 (09:00), T2 (10:00), stops S0 .. S12."""
    from api.app import make_app
    from api.auth import Tokens
    from api.compose import open_desk
    from api.pages import ROOTS as PAGES
    from api.parts import Parts
    from api.routers import ROOTS, ROUTERS

    settings = Settings(database_url=database_url, redis_url=redis_url, demo=False, secret_key=KEY)
    clock, meter = ManualClock(at(MORNING)), Meter()
    postgres, redis = await Postgres.connect(settings), await Redis.connect(settings)
    plans, table = Plans(postgres, meter), LiveTable(meter)
    desk = await open_desk(settings, clock, redis, meter, KEY)
    parts = Parts(
        settings=settings,
        clock=clock,
        meter=meter,
        table=table,
        hub=Hub(table, settings, clock, meter, lambda *_: True),
        redis=redis,
        postgres=postgres,
        plans=plans,
        registry=Devices(Fleet(postgres), clock, secret_key=KEY, meter=meter),
        history=HistoryReader(postgres),
        tokens=Tokens(settings, clock),
        booking=desk,
    )
    app = make_app(parts, ROUTERS, roots=(*ROOTS, *PAGES))
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://bus.example")
    house = House(parts, http, postgres, clock)
    try:
        await house.take_feed(feed())
        yield house
    finally:
        await http.aclose()
        await redis.close()
        await desk.pool.close()
        await postgres.close()


def driving(
    bus_id: str = "b1",
    trip: str | None = "T0",
    *,
    at_ms: int,
    next_stop: int | None = 3,
    day: str = DAY,
    state: str = "IN_TRIP",
    **more: Any,
) -> Position:
    """A bus on a trip of small_world, the stop with that index ahead."""
    given: dict[str, Any] = {
        "bus_id": bus_id, "partner_id": "demo", "feed_id": "demo", "trip_id": trip, "route_id": "R" if trip else None,
        "start_date": day if trip else None, "lat": 36.75, "lon": 3.06, "bearing_deg": 90.0, "speed_mps": 8.0, "along_m": 1_200.0,
        "offset_m": 2.0, "state": state, "delay_s": 240, "next_stop": None, "fixed_at_ms": at_ms, "received_at_ms": at_ms + 200,
        "stop_index": next_stop,
    }  # fmt: skip
    return Position(**(given | more))


def foretold(
    bus_id: str = "b1", trip: str = "T0", *, made_at_ms: int, stops: dict[int, int], skipped: tuple[int, ...] = ()
) -> TripForecast:
    """Arrivals (UTC ms) at stops of small_world by index; `skipped` stand before them."""
    missed = [StopForecast(f"S{i}", i + 1, None, None, None, None, "SKIPPED") for i in skipped]
    ahead = [StopForecast(f"S{i}", i + 1, ms - 30_000, ms, ms + 60_000, 240, "ESTIMATED", ms + 10_000) for i, ms in stops.items()]
    return TripForecast(bus_id, trip, DAY, "R", made_at_ms, (*missed, *ahead))
