"""A live worker for the tests: the real server on a real socket, fed through a real Redis; and the records that feed it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect

from api.app import make_app
from api.live import Sockets
from api.parts import Parts
from api.server import Worker
from api.sse import Streams
from engine.clock import SystemClock
from engine.errors import Unauthenticated
from engine.events import LiveBatch, Position, StopEvent, StopForecast, TripForecast
from engine.live.hub import Hub
from engine.live.table import LiveTable
from engine.settings import Settings
from engine.store.area import AreaStore, Change
from engine.store.redis import Keys, Redis

AT_MS = 1_771_250_709_250  # 2026-02-16T14:05:09.250Z


def position(
    bus_id: str,
    *,
    lat: float = 36.75,
    lon: float = 3.06,
    trip: str | None = "t1",
    route: str | None = "r1",
    at_ms: int = AT_MS,
    **more: Any,
) -> Position:
    given = {
        "bus_id": bus_id, "partner_id": "demo", "feed_id": "demo", "trip_id": trip, "route_id": route, "start_date": "20260216" if trip else None,
        "lat": lat, "lon": lon, "bearing_deg": 90.0, "speed_mps": 8.0, "along_m": 100.0, "offset_m": 2.0, "state": "IN_TRIP", "delay_s": 30,
        "next_stop": None, "fixed_at_ms": at_ms, "received_at_ms": at_ms + 200,
    }  # fmt: skip
    return Position(**(given | more))


def forecast(bus_id: str, *stops: str, trip: str = "t1", made_at_ms: int = AT_MS) -> TripForecast:
    ahead = tuple(
        StopForecast(stop, i + 1, made_at_ms, made_at_ms + 60_000, made_at_ms + 90_000, 30, "ESTIMATED") for i, stop in enumerate(stops)
    )
    return TripForecast(bus_id, trip, "20260216", "r1", made_at_ms, ahead)


def served(bus_id: str, stop: str, *, trip: str = "t1", seq: int = 1) -> StopEvent:
    return StopEvent(f"e-{bus_id}-{stop}", bus_id, trip, "20260216", "r1", stop, seq, AT_MS, AT_MS + 9_000, "SERVED")


def batch(
    n: int,
    *positions: Position,
    epoch: str = "E",
    area: str = "demo",
    forecasts: tuple[TripForecast, ...] = (),
    events: Any = (),
    gone: Any = (),
) -> LiveBatch:
    def raw(record: Any) -> msgspec.Raw:
        return msgspec.Raw(msgspec.msgpack.encode(record))

    return LiveBatch(area, epoch, n, [raw(p) for p in positions], [raw(f) for f in forecasts], list(events), list(gone))


class Owner:
    """Stands for the owner of an area: commits numbered batches the way the tracking shell does."""

    def __init__(self, redis: Redis, area: str = "demo", table: LiveTable | None = None) -> None:
        self.table = table  # where what was said is to be heard before we go on
        self.store, self.area, self.token, self.n, self.epoch = AreaStore(redis, area), area, "", 0, ""
        self.store.keys = Keys(area)  # our own: `lost` bends it

    async def begin(self) -> Owner:
        await self.store.redis.add_area(self.area)
        self.token = await self.store.lease.acquire(600_000) or ""
        loaded = await self.store.load(self.token)
        assert loaded is not None
        self.n, self.epoch = loaded.n, loaded.epoch
        return self

    async def say(
        self, *positions: Position, forecasts: tuple[TripForecast, ...] = (), events: Any = (), gone: Any = (), lost: bool = False
    ) -> int:
        """One commit. `lost`: the picture changes and the number rises, and nobody hears it (as when a subscriber's connection breaks)."""
        self.n += 1
        live = msgspec.msgpack.encode(
            batch(self.n, *positions, epoch=self.epoch, area=self.area, forecasts=forecasts, events=events, gone=gone)
        )
        if lost:
            self.store.keys.live = "nowhere"
        change = Change(
            self.n, f"{self.n}-0", b"", live, {}, [(p, msgspec.msgpack.encode(p)) for p in positions],
            {f.bus_id: msgspec.msgpack.encode(f) for f in forecasts}, list(gone),
        )  # fmt: skip
        said = await self.store.commit(self.token, change)
        assert said == "OK", said
        if lost:
            self.store.keys.live = f"live:{{{self.area}}}"
        elif self.table is not None:
            await self._heard(self.table)
        return self.n

    async def _heard(self, table: LiveTable) -> None:
        """For a while only: a worker may be cut off from Redis on purpose."""
        for _ in range(200):
            area = table.areas.get(self.area)
            if area is not None and area.n >= self.n:
                return
            await asyncio.sleep(0.01)


class Somebody(msgspec.Struct):
    subject: str
    expires_at_ms: int


def principal_of(token: str) -> Somebody:
    """Tokens of the tests: `good` and `good2`; `brief` is over at once."""
    if token not in ("good", "good2", "brief"):
        raise Unauthenticated("no such token")
    return Somebody(token, SystemClock().now_ms() + (200 if token == "brief" else 3_600_000))


def may_listen(principal: Any, channel: str) -> bool:
    kind = channel.partition(":")[0]
    if kind in ("bus", "trip", "route", "stop", "seats"):
        return True
    return principal is not None and (principal.subject == "good" or kind == "notifications")


class House:
    """A running worker and what it is made of."""

    def __init__(self, parts: Parts, sockets: Sockets, worker: Worker, port: int, redis: Redis, owner: Owner) -> None:
        self.parts, self.sockets, self.worker, self.port, self.redis, self.owner = parts, sockets, worker, port, redis, owner
        self.hub, self.table = parts.hub, parts.table

    def connect(self, path: str = "/ws", **how: Any) -> connect:
        return connect(f"ws://127.0.0.1:{self.port}{path}", compression=None, **how)


@contextlib.asynccontextmanager
async def house(redis_url: str, *, roots: Sequence[Any] = (), **given: Any) -> AsyncIterator[House]:
    """`roots`: handlers of the test's own. The rest are settings."""
    settings = Settings(redis_url=redis_url, drain_s=0.2, **given)
    clock = SystemClock()
    redis = await Redis.connect(settings)
    table = LiveTable()
    hub = Hub(table, settings, clock, may_listen=may_listen)
    sockets = Sockets(hub, settings, clock, principal_of)
    parts = Parts(settings=settings, clock=clock, table=table, hub=hub, redis=redis, principal_of=principal_of)
    streams = Streams(hub, settings.socket_buffer_max_bytes, principal_of)
    worker = Worker(make_app(parts, roots=[streams.handler, *roots]), sockets, parts, streams)
    owner = await Owner(redis, table=table).begin()
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    tasks = [asyncio.create_task(job) for job in (table.follow(redis, hub.tell), hub.run(), worker.run_on(sock))]
    try:
        async with asyncio.timeout(10):
            while table.stale or not worker.started:  # noqa: ASYNC110 - neither has an event, and none is worth adding for a test
                await asyncio.sleep(0.01)
        yield House(parts, sockets, worker, port, redis, owner)
    finally:
        worker.should_exit = True
        await asyncio.wait(tasks[2:], timeout=5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await redis.close()


async def ask(socket: ClientConnection, **said: Any) -> None:
    await socket.send(json.dumps(said))


async def hear(socket: ClientConnection, limit_s: float = 5.0) -> Any:
    """The next message, decoded by its kind."""
    async with asyncio.timeout(limit_s):
        got = await socket.recv()
    return json.loads(got) if isinstance(got, str) else msgspec.msgpack.decode(got)
