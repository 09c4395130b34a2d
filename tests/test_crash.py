"""Nothing accepted is lost and nothing is said twice, whoever is killed, frozen, stopped or cut off; and the checker can be seen to fail.

Workers are real processes (`engine_worker.py`) whose tracker counts: a fix left out, folded twice or out of order shows in its events. The
whole out stream is the evidence: nobody trims it here, because its second reader, the relay, never speaks.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.servers import PostgresServer, RedisServer
from engine.clock import SystemClock
from engine.events import LiveBatch
from engine.store.area import AreaStore
from engine.store.lease import Lease
from tests.crash_house import AREA, BUSES, House, Phone, deaf_line, furnished, until, violations
from tests.raw_redis import raw

pytestmark = pytest.mark.crash

STOPPED_S = float(os.environ.get("TIMEPOINT_STOPPED_S", "6"))  # how long PostgreSQL stands still; the bar says 60


@pytest.fixture
async def house(redis_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with furnished(redis_url, database_url, tmp_path) as found:
        yield found


# --- the worker ---


async def test_a_worker_killed_in_mid_stream_loses_nothing_and_says_nothing_twice(house: House) -> None:
    driving = asyncio.create_task(house.fleet.drive(60))
    for _ in range(2):
        before = await house.token()
        worker = house.start()
        await until(lambda before=before: _owns(house, before), 20)
        await asyncio.sleep(1.0)
        worker.kill()  # SIGKILL: fixes in the stream, in its memory and on their way to a commit
    house.start()
    await asyncio.sleep(1.0)
    house.fleet.rest()
    await driving
    await house.folded_all()
    assert violations(await house.out(), house.fleet.events()) == []
    everything = (len(BUSES) * house.fleet.seq,) * 2
    await until(lambda: _equal(house.history, everything), 30)


async def _owns(house: House, before: str | None) -> bool:
    """A worker of its own, not the lease that a killed one left behind."""
    return await house.token() not in (None, before)


async def _equal(ask: Callable[[], Awaitable[Any]], wanted: Any) -> bool:
    return bool(await ask() == wanted)


async def test_two_workers_share_the_areas_and_the_other_goes_on_when_one_is_killed(house: House) -> None:
    for number in range(3):
        await house.redis.add_area(f"other{number}")
    one, other = house.start(), house.start()
    areas = [AreaStore(house.redis, name) for name in await house.redis.areas()]

    async def owners() -> set[str]:
        held = [await raw(house.redis).get(area.keys.lease) for area in areas]
        return {"" if token is None else token.decode() for token in held}

    async def shared() -> bool:
        return "" not in await owners() and await raw(house.redis).zcard("workers") == 2

    await until(shared, 20)
    await asyncio.sleep(2)  # the second one takes its share
    await house.fleet.drive(1.0)
    await house.folded_all()
    before = {area.area: (await raw(house.redis).get(area.keys.lease)).decode() for area in areas}
    one.kill()
    began_s = time.monotonic()
    await house.fleet.drive(0.5)

    async def taken_over() -> bool:
        tokens = [await raw(house.redis).get(area.keys.lease) for area in areas]
        changed = [area for area, token in zip(areas, tokens, strict=True) if token and token.decode() != before[area.area]]
        return all(tokens) and len(changed) == 2

    await until(taken_over, 10)
    await house.folded_all()
    print(f"\nthe other worker had caught up after {time.monotonic() - began_s:.1f} s")  # the bar is 5 s, of a machine that nobody shares
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


# --- two workers behind one bus ---


async def test_points_of_one_bus_over_two_workers_keep_order_and_one_state_and_one_goes_on_alone(house: House) -> None:
    token = await asyncio.to_thread(house.device, "bus1")
    workers = dict(house.serve("api,track")[::-1] for _ in range(2))  # address -> process
    phone = Phone("bus1", token, list(workers))
    await phone.known()
    for _ in range(100):
        await phone.send()
    assert {answer async for answer in _last_seen(phone, 100)} == {Phone.lat(100)}  # both workers read the same state

    owner = await _owner_of(phone)
    phone.addresses = [address for address in workers if address != owner]
    driving = asyncio.create_task(phone.drive())
    workers[owner].kill()
    began_s, number = time.monotonic(), len(phone.accepted)
    [seen] = [answer async for answer in _last_seen(phone, number + 1)]
    print(f"\nthe other worker went on after {time.monotonic() - began_s:.1f} s")
    assert seen > Phone.lat(number)
    await asyncio.sleep(1.0)
    phone.rest()
    await driving
    await until(lambda: _settled(house, len(phone.accepted)), 30)
    rows = await house.rows()
    assert [row.fixed_at_ms for row in rows] == phone.accepted  # each once, in order, whoever took it in
    assert {row.verdict for row in rows} == {"OK"}
    numbers = [batch.n for batch in await house.out()]
    assert numbers == sorted(set(numbers))
    await phone.close()


async def _last_seen(phone: Phone, number: int) -> AsyncIterator[float]:
    """Latitude of the bus in each worker's answer, once it has its fix of that number."""
    for address in phone.addresses:

        async def there(address: str = address) -> float | None:
            answer = await phone.get(address, f"/v1/buses/{phone.bus_id}/location")
            lat = float(answer.json()["lat"]) if answer.status_code == 200 else 0.0
            return lat if lat >= Phone.lat(number) else None

        await until(there, 15)
        yield await there() or 0.0


async def _owner_of(phone: Phone) -> str:
    """The address of the worker that owns the area."""
    owners = [at for at in phone.addresses if re.search(r"^timepoint_areas_owned\S* 1$", (await phone.get(at, "/metrics")).text, re.M)]
    assert len(owners) == 1
    return owners[0]


async def _settled(house: House, count: int) -> bool:
    return len(await house.rows()) >= count


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


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_devices_hear_503_while_redis_is_away_and_history_has_all_that_was_answered_202(
    own_redis: RedisServer, database_url: str, tmp_path: Path, how: str
) -> None:
    async with furnished(own_redis.url, database_url, tmp_path) as house:
        token = await asyncio.to_thread(house.device, "bus1")
        _, address = house.serve("api,track,history")
        phone = Phone("bus1", token, [address])
        await phone.known()
        driving = asyncio.create_task(phone.drive())
        for _ in range(2):
            await asyncio.sleep(1.0)
            refused = len(phone.refused)
            await asyncio.to_thread(getattr(own_redis, how))
            await until(lambda refused=refused: _refused_since(phone, refused), 20)
            await asyncio.to_thread(own_redis.start)
            accepted = len(phone.accepted)
            await until(lambda accepted=accepted: _accepted_since(phone, accepted), 20)
        phone.rest()
        await driving
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in phone.refused)
        await until(lambda: _equal(house.times_in_history, phone.accepted), 30)
        await phone.close()


async def _refused_since(phone: Phone, number: int) -> bool:
    return len(phone.refused) > number


async def _accepted_since(phone: Phone, number: int) -> bool:
    return len(phone.accepted) > number
