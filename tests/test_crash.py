"""Nothing accepted is lost and nothing is said twice, whoever is killed, frozen, stopped or cut off; and the checker can be seen to fail.

Workers are real processes (`engine_worker.py`) whose tracker counts: a fix left out, folded twice or out of order shows in its events. The
whole out stream is the evidence: nobody trims it here, because its second reader, the relay, never speaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from deploy.servers import PostgresServer, RedisServer
from engine.clock import SystemClock
from engine.errors import Unavailable
from engine.events import LiveBatch, OutBatch
from engine.settings import Settings
from engine.store.area import AreaStore
from engine.store.lease import Lease
from engine.store.redis import Redis
from engine.tracking.fix import Fix

pytestmark = pytest.mark.crash

AREA = "demo"
BUSES = [f"bus{n}" for n in range(8)]
STOPPED_S = float(os.environ.get("TIMEPOINT_STOPPED_S", "6"))  # how long PostgreSQL stands still; the bar says 60


class Fleet:
    """Devices that send every fix until it is accepted, in order, as phones do."""

    def __init__(self, redis: Redis) -> None:
        self.redis, self.seq, self.refused, self.accepted_at_s = redis, 0, 0, time.monotonic()
        self.longest_wait_s = 0.0

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
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await self.send()
            await asyncio.sleep(0.01)

    def events(self) -> list[str]:
        return sorted(f"{bus}:{seq}:{seq}" for bus in BUSES for seq in range(1, self.seq + 1))


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
            worker = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=Path(__file__).parent.parent)
        self.workers.append(worker)
        return worker

    async def token(self) -> str | None:
        found = await self.redis.calls.get(self.store.keys.lease)
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


@pytest.fixture
async def house(redis_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with furnished(redis_url, database_url, tmp_path) as found:
        yield found


# --- the worker ---


async def test_a_worker_killed_in_mid_stream_loses_nothing_and_says_nothing_twice(house: House) -> None:
    for _ in range(2):
        worker = house.start()
        await until(house.token, 20)
        await house.fleet.drive(1.0)
        worker.kill()
    house.start()
    await house.folded_all()
    assert violations(await house.out(), house.fleet.events()) == []
    everything = (len(BUSES) * house.fleet.seq,) * 2
    await until(lambda: _equal(house.history, everything), 30)


async def _equal(ask: Callable[[], Awaitable[Any]], wanted: Any) -> bool:
    return bool(await ask() == wanted)


async def test_two_workers_share_the_areas_and_the_other_goes_on_within_five_seconds(house: House) -> None:
    for number in range(3):
        await house.redis.add_area(f"other{number}")
    one, other = house.start(), house.start()
    areas = [AreaStore(house.redis, name) for name in await house.redis.areas()]

    async def owners() -> set[str]:
        held = [await house.redis.calls.get(area.keys.lease) for area in areas]
        return {"" if token is None else token.decode() for token in held}

    async def shared() -> bool:
        return "" not in await owners() and await house.redis.calls.zcard("workers") == 2

    await until(shared, 20)
    await asyncio.sleep(2)  # the second one takes its share
    await house.fleet.drive(1.0)
    await house.folded_all()
    before = {area.area: (await house.redis.calls.get(area.keys.lease)).decode() for area in areas}
    one.kill()
    began = time.monotonic()
    await house.fleet.drive(0.5)

    async def taken_over() -> bool:
        tokens = [await house.redis.calls.get(area.keys.lease) for area in areas]
        changed = [area for area, token in zip(areas, tokens, strict=True) if token and token.decode() != before[area.area]]
        return all(tokens) and len(changed) == 2

    await until(taken_over, 10)
    await house.folded_all()
    assert time.monotonic() - began < 6.0  # the bar is 5 s; the machine that runs this is shared
    assert other.poll() is None
    assert violations(await house.out(), house.fleet.events()) == []


# --- the frozen owner: the token ---


async def freeze_past_the_lease(house: House, *options: str) -> tuple[subprocess.Popen[bytes], str]:
    """A worker stopped in front of a commit that it has folded, until its lease has ended; and its token."""
    flag = house.folder / "freeze"
    worker = house.start("--freeze", str(flag), *options)
    await until(house.token, 20)
    await house.fleet.drive(0.5)
    token = await house.token()
    assert token is not None
    await asyncio.to_thread(flag.touch)
    await until(lambda: _gone(flag, house), 10)
    return worker, token


async def _gone(flag: Path, house: House) -> bool:
    if await asyncio.to_thread(flag.exists):
        await house.fleet.send()
        return False
    return await house.token() is None


async def test_an_owner_frozen_past_its_lease_is_refused_when_it_wakes(house: House) -> None:
    frozen, _ = await freeze_past_the_lease(house)
    house.start()
    await until(house.token, 20)
    await house.fleet.drive(0.5)
    frozen.send_signal(signal.SIGCONT)
    await house.fleet.drive(2.0)
    await house.folded_all()
    assert violations(await house.out(), house.fleet.events()) == []


@pytest.mark.parametrize(("mutant", "refused"), [((), True), (("--without", "token"), False)])
async def test_without_the_token_check_a_frozen_owner_would_write(house: House, mutant: tuple[str, ...], refused: bool) -> None:
    frozen, old = await freeze_past_the_lease(house, *mutant)
    new = await Lease(house.redis, AREA).acquire(60_000)  # a successor that has not committed yet
    assert new is not None
    before = len(await house.out())
    frozen.send_signal(signal.SIGCONT)
    await asyncio.sleep(1.5)
    late = (await house.out())[before:]
    assert all(batch.token == old for batch in late)
    assert (not late) is refused


# --- the lost answer: the number ---


@contextlib.asynccontextmanager
async def deaf_line(path: Path, target: str, every: int) -> AsyncIterator[str]:
    """A proxy in front of Redis that lets every commit through and loses every `every`th commit's answer with its connection."""
    from engine.store.redis import keys_of

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


@pytest.mark.parametrize(
    ("mutant", "wrong"), [((), []), (("--without", "number"), ["a number came twice or late", "an event was said twice"])]
)
async def test_without_the_number_check_a_lost_answer_would_write_twice(house: House, mutant: tuple[str, ...], wrong: list[str]) -> None:
    target = house.settings.redis_url.removeprefix("unix://").split("?")[0]
    async with deaf_line(house.folder / "deaf", target, 5) as line:
        house.start("--roles", "track", *mutant, redis_url=line)
        await until(house.token, 20)
        await house.fleet.drive(2.0)
        await house.folded_all()
    assert violations(await house.out(), house.fleet.events()) == wrong


# --- PostgreSQL ---


async def test_while_postgres_stands_still_live_goes_on_and_history_is_complete_afterwards(
    redis_url: str, own_postgres: PostgresServer, tmp_path: Path
) -> None:
    async with furnished(redis_url, own_postgres.url, tmp_path) as house:
        house.start()
        await until(house.token, 20)
        await house.fleet.drive(1.0)
        ages = []

        async def listen() -> None:
            async for raw in house.redis.listen_live():
                if raw is None:
                    continue
                for blob in msgspec.msgpack.decode(raw, type=LiveBatch).positions:
                    ages.append(SystemClock().now_ms() - msgspec.msgpack.decode(blob)[16])

        listener = asyncio.create_task(listen())
        await asyncio.to_thread(own_postgres.stop)
        await house.fleet.drive(STOPPED_S)
        await house.folded_all()
        listener.cancel()
        assert len(ages) > len(BUSES) * 50
        assert sorted(ages)[len(ages) // 2] < 500  # ms: the live stream did not wait for the database
        await asyncio.to_thread(own_postgres.start)
        everything = (len(BUSES) * house.fleet.seq,) * 2
        await until(lambda: _equal(house.history, everything), 40)
        assert violations(await house.out(), house.fleet.events()) == []


# --- Redis ---


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_redis_away_refuses_new_fixes_and_keeps_the_accepted_ones(
    own_redis: RedisServer, database_url: str, tmp_path: Path, how: str
) -> None:
    async with furnished(own_redis.url, database_url, tmp_path) as house:
        house.start()
        await until(house.token, 20)
        first = (await house.redis.load_live(AREA)).epoch
        for _ in range(2):
            driving = asyncio.create_task(house.fleet.drive(3.0))
            await asyncio.sleep(1.0)
            await asyncio.to_thread(getattr(own_redis, how))
            await asyncio.sleep(0.5)
            await asyncio.to_thread(own_redis.start)
            await driving
        assert house.fleet.refused > 0
        await house.folded_all()
        assert violations(await house.out(), house.fleet.events()) == []
        everything = (len(BUSES) * house.fleet.seq,) * 2
        await until(lambda: _equal(house.history, everything), 30)
        assert (await house.redis.load_live(AREA)).epoch != first  # listeners are told to load again
