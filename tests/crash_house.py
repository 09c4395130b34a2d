"""A house for the tests that kill, freeze and cut off: servers, worker processes, devices that send until they are believed, and the checker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psycopg

from engine.clock import SystemClock
from engine.errors import Unavailable
from engine.events import OutBatch, TrackRow
from engine.settings import Settings
from engine.store.area import AreaStore
from engine.store.redis import Redis, keys_of
from engine.tracking.fix import Fix
from tests.raw_redis import raw

CHECKOUT = Path(__file__).resolve().parent.parent
AREA = "demo"
BUSES = [f"bus{n}" for n in range(8)]


class Fleet:
    """Devices that send every fix until it is accepted, in order, as phones do."""

    def __init__(self, redis: Redis) -> None:
        self.redis, self.seq, self.refused, self.until_s = redis, 0, 0, 0.0

    async def send(self) -> None:
        self.seq += 1
        now_ms = SystemClock().now_ms()
        fixes = [Fix(bus, now_ms, 36.7 + self.seq / 1e5, 3.0, now_ms, "d", "telemetry", seq=self.seq) for bus in BUSES]
        payload = msgspec.msgpack.encode(fixes)
        while True:
            try:
                await self.redis.append(AREA, payload)
                return
            except Unavailable:
                self.refused += 1
                await asyncio.sleep(0.1)

    async def drive(self, seconds: float) -> None:
        self.until_s = time.monotonic() + seconds
        while time.monotonic() < self.until_s:
            await self.send()
            await asyncio.sleep(0.01)

    def rest(self) -> None:
        """A drive ends after the fix in hand."""
        self.until_s = 0.0

    def events(self) -> list[str]:
        return sorted(f"{bus}:{seq}:{seq}" for bus in BUSES for seq in range(1, self.seq + 1))


class Phone:
    """A device at the door: one fix after the other over HTTP, each sent until a worker has accepted it."""

    def __init__(self, bus_id: str, token: str, addresses: list[str]) -> None:
        self.bus_id, self.addresses = bus_id, addresses
        self.accepted: list[int] = []  # times of the fixes that were answered 202
        self.refused: list[httpx.Response] = []
        self._http = httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=10)
        self._stopped = False

    async def send(self) -> int:
        """The fix's time, once it is accepted; the addresses take turns."""
        at_ms = max(SystemClock().now_ms(), self.accepted[-1] + 1 if self.accepted else 0)
        place = {"latitude": self.lat(len(self.accepted) + 1), "longitude": 3.05, "accuracy": 5}
        body = {"busId": self.bus_id, "timestamp": at_ms, "location": place}
        while True:
            address = self.addresses[len(self.accepted) % len(self.addresses)]
            answer = await self._http.post(address + "/ingest/telemetry", json=body)
            if answer.status_code == 202:
                self.accepted.append(at_ms)
                return at_ms
            assert answer.status_code == 503, answer.text
            self.refused.append(answer)
            await asyncio.sleep(0.05)

    @staticmethod
    def lat(number: int) -> float:
        """Where the bus is at its fix of that number: 0.1 m further each time."""
        return round(36.7 + number / 1e6, 6)

    async def drive(self) -> None:
        """On and on, until told to rest."""
        while not self._stopped:
            await self.send()
            await asyncio.sleep(0.02)

    def rest(self) -> None:
        self._stopped = True

    async def known(self) -> None:
        """Until every worker knows the device; nothing is sent."""
        for address in self.addresses:

            async def there(address: str = address) -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return (await self._http.post(address + "/ingest/telemetry", json=[])).status_code == 202
                return False

            await until(there, 30)

    async def get(self, address: str, path: str) -> httpx.Response:
        return await self._http.get(address + path)

    async def close(self) -> None:
        await self._http.aclose()


class House:
    """The servers' addresses, one connection, and the workers started in a test."""

    def __init__(self, settings: Settings, redis: Redis, folder: Path) -> None:
        self.settings, self.redis, self.folder = settings, redis, folder
        self.store, self.fleet = AreaStore(redis, AREA), Fleet(redis)
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str, redis_url: str | None = None) -> subprocess.Popen[bytes]:
        env = os.environ | {"DATABASE_URL": self.settings.database_url, "REDIS_URL": redis_url or self.settings.redis_url}
        with (self.folder / f"worker{len(self.workers)}.log").open("wb") as log:
            command = [sys.executable, "-m", "tests.engine_worker", *options]
            worker = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=CHECKOUT)
        self.workers.append(worker)
        return worker

    def serve(self, roles: str) -> tuple[subprocess.Popen[bytes], str]:
        """A worker of the product (`timepoint serve` as its supervisor starts it) on a port of its own; process and address. Without the role
        `history` nobody trims the out stream."""
        with socket.create_server(("127.0.0.1", 0), backlog=128) as sock:
            where = {"DATABASE_URL": self.settings.database_url, "REDIS_URL": self.settings.redis_url, "MQTT_URL": ""}
            env = os.environ | where | {"DEMO": "1", "ROLES": roles}
            with (self.folder / f"worker{len(self.workers)}.log").open("wb") as log:
                command = [sys.executable, "-m", "api.cli", "serve", "--fd", str(sock.fileno())]
                worker = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=CHECKOUT, pass_fds=[sock.fileno()])
            self.workers.append(worker)
            return worker, f"http://127.0.0.1:{sock.getsockname()[1]}"

    def device(self, bus_id: str) -> str:
        """The token of a new device on a new bus, of an operator without a timetable."""
        with psycopg.connect(self.settings.database_url) as connection:
            connection.execute("insert into public.partner (partner_id, name) values ('demo', 'Demo') on conflict do nothing")
        env = os.environ | {"DATABASE_URL": self.settings.database_url, "REDIS_URL": self.settings.redis_url, "DEMO": "1"}
        command = [sys.executable, "-m", "api.cli", "device", "create", bus_id, "--feed-id", AREA]
        done = subprocess.run(command, env=env, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return str(msgspec.json.decode(done.stdout)["token"])

    async def token(self) -> str | None:
        found = await raw(self.redis).get(self.store.keys.lease)
        return found.decode() if found else None

    async def out(self) -> list[OutBatch]:
        batches: list[OutBatch] = []
        cursor = "0-0"
        while entries := await self.store.read_out(cursor, 500, 0):
            batches += [msgspec.msgpack.decode(payload, type=OutBatch) for _, payload in entries]
            cursor = entries[-1][0]
        return batches

    async def said(self) -> list[str]:
        return sorted(event.event_id for batch in await self.out() for event in batch.events)

    async def rows(self) -> list[TrackRow]:
        """What was committed, in the order of the commits."""
        return [row for batch in await self.out() for row in batch.rows]

    async def times_in_history(self) -> list[int]:
        """Of all fixes in the database, UTC ms, rising."""
        async with await psycopg.AsyncConnection.connect(self.settings.database_url) as connection:
            found = await (await connection.execute("select ts from telemetry.points order by ts")).fetchall()
        return [round(ts.timestamp() * 1000) for (ts,) in found]

    async def history(self) -> tuple[int, int]:
        """(fixes, events) in the database."""
        async with await psycopg.AsyncConnection.connect(self.settings.database_url) as connection:
            found = await (
                await connection.execute("select (select count(*) from telemetry.points), (select count(*) from telemetry.trip_events)")
            ).fetchone()
        assert found is not None
        return found[0], found[1]

    async def folded_all(self, limit_s: float = 30) -> None:
        """Until the newest fix of every bus has been committed."""
        newest = {f"{bus}:{self.fleet.seq}:" for bus in BUSES}

        async def there() -> bool:
            ends = {event.event_id.rpartition(":")[0] + ":" for batch in await self.out() for event in batch.events}
            return newest <= ends

        await until(there, limit_s)


async def until(ask: Callable[[], Awaitable[Any]], limit_s: float) -> None:
    """Waits for what must come about."""
    for _ in range(int(limit_s / 0.05)):
        with contextlib.suppress(Unavailable, psycopg.OperationalError):
            if await ask():
                return
        await asyncio.sleep(0.05)
    raise AssertionError(f"did not come about within {limit_s:.0f} s")


def violations(batches: list[OutBatch], wanted: list[str]) -> list[str]:
    """What is wrong with an out stream: numbers with a hole or twice, an old owner after a new one, fixes lost, twice or out of order."""
    wrong = []
    numbers = [batch.n for batch in batches]
    if numbers != sorted(set(numbers)):
        wrong.append("a number came twice or late")
    owners = [int(batch.token.split(":")[0]) for batch in batches]
    if owners != sorted(owners):
        wrong.append("an owner committed after its successor")
    said = sorted(event.event_id for batch in batches for event in batch.events)
    if len(said) != len(set(said)):
        wrong.append("an event was said twice")
    if set(said) != set(wanted):
        wrong.append("fixes were lost, folded twice or out of order")
    return wrong


@contextlib.asynccontextmanager
async def furnished(redis_url: str, database_url: str, folder: Path) -> AsyncIterator[House]:
    settings = Settings(redis_url=redis_url, database_url=database_url)
    redis = await Redis.connect(settings)
    house = House(settings, redis, folder)
    await redis.add_area(AREA)
    try:
        yield house
    finally:
        for worker in house.workers:
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(signal.SIGCONT)
                worker.kill()
            worker.wait(10)
        await redis.close()


@contextlib.asynccontextmanager
async def deaf_line(path: Path, target: str, every: int) -> AsyncIterator[str]:
    """A proxy in front of Redis that lets every commit through and loses every `every`th commit's answer with its connection."""
    seen = 0
    mark = keys_of(AREA).live.encode()  # of all calls only a commit names the live channel

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        up_reader, up_writer = await asyncio.open_unix_connection(target)
        deaf = False

        async def up() -> None:
            nonlocal seen, deaf
            with contextlib.suppress(OSError):
                while data := await reader.read(1 << 20):
                    if mark in data:
                        seen += 1
                        deaf = seen % every == 0
                    up_writer.write(data)
                    await up_writer.drain()
            up_writer.close()

        forward = asyncio.create_task(up())
        with contextlib.suppress(OSError):
            while data := await up_reader.read(1 << 20):
                if deaf:
                    break
                writer.write(data)
                await writer.drain()
        forward.cancel()
        writer.close()
        up_writer.close()

    server = await asyncio.start_unix_server(carry, path)
    try:
        yield f"unix://{path}"
    finally:
        server.close()
