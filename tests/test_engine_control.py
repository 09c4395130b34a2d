"""The owner of an area, in one process on a real Redis with the real tracker: order, dead letters, a reload, a lost lease, time in the stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from engine.clock import Clock, ManualClock, SystemClock
from engine.events import STALE, Handled, LiveBatch, OutBatch, Position, Sos
from engine.meter import Meter
from engine.settings import Settings
from engine.store.area import AreaStore, Incoming
from engine.store.redis import Redis, keys_of
from engine.tracking import control
from engine.tracking.control import Counts, Owner
from engine.tracking.fix import Fix
from engine.tracking.shares import Shares
from engine.tracking.tracker import Tracker
from tests.raw_redis import raw

AREA = "demo"
encode = msgspec.msgpack.encode


class NoPlans:
    """A network without feeds: vehicles move, no trips."""

    loaded = True

    def get(self, feed_id: str) -> None:
        return None

    def all(self) -> list[Any]:
        return []


def fixes(*seconds: int, bus: str = "bus1", ago_ms: int = 60_000, began_ms: int | None = None) -> bytes:
    start_ms = began_ms or SystemClock().now_ms() - ago_ms
    return encode(
        [
            Fix(bus, start_ms + s * 1000, 36.7 + s / 1e4, 3.0, start_ms + s * 1000 + 10, "d1", "telemetry", accuracy_m=5.0, seq=s)
            for s in seconds
        ]
    )


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return Settings(redis_url=redis_url, lease_ms=1_500, lease_renew_ms=200)


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    redis = await Redis.connect(settings)
    yield redis
    await redis.close()


@pytest.fixture
def store(redis: Redis) -> AreaStore:
    return AreaStore(redis, AREA)


@pytest.fixture
def meter() -> Meter:
    return Meter()


@contextlib.asynccontextmanager
async def owning(store: AreaStore, settings: Settings, meter: Meter, clock: Clock | None = None) -> AsyncIterator[Owner]:
    token = await store.lease.acquire(60_000)
    assert token is not None
    owner = Owner(store, token, NoPlans(), clock=clock or SystemClock(), settings=settings, counts=Counts(meter))
    task = asyncio.create_task(owner.run())
    try:
        yield owner
    finally:
        owner.stop()
        await asyncio.wait({task}, timeout=10)
        assert task.done()


async def until(ask: Callable[[], Awaitable[Any]], limit_s: float = 20) -> None:
    for _ in range(int(limit_s / 0.02)):
        if await ask():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("did not come about")


async def batches(store: AreaStore) -> list[OutBatch]:
    return [msgspec.msgpack.decode(payload, type=OutBatch) for _, payload in await store.read_out("0-0", 10_000, 0)]


def rows_of(store: AreaStore, count: int) -> Callable[[], Awaitable[bool]]:
    async def there() -> bool:
        return sum(len(batch.rows) for batch in await batches(store)) >= count

    return there


async def test_fixes_become_rows_and_one_live_position_per_bus(store: AreaStore, redis: Redis, settings: Settings, meter: Meter) -> None:
    await redis.append(AREA, fixes(*range(10)))
    await redis.append(AREA, fixes(*range(10), bus="bus2"))
    async with owning(store, settings, meter):
        await until(rows_of(store, 20))
    live = await redis.load_live(AREA)
    found = {position.bus_id: position for position in (msgspec.msgpack.decode(raw, type=Position) for raw in live.positions)}
    assert sorted(found) == ["bus1", "bus2"]
    assert found["bus1"].lat == pytest.approx(36.7009)
    assert [batch.n for batch in await batches(store)] == sorted({batch.n for batch in await batches(store)})
    assert 'timepoint_fixes_total{area="demo",verdict="OK"} 20' in meter.text()


async def test_age_and_size_are_of_what_is_told_now_and_not_of_what_settles_later(
    store: AreaStore, redis: Redis, settings: Settings, meter: Meter
) -> None:
    clock = ManualClock(SystemClock().now_ms())
    now_ms = clock.now_ms()
    drive = [Fix("bus1", now_ms - 1_000 + k * 100, 36.7, 3.0 + k / 1e4, now_ms - 40, "d1", "telemetry", seq=k) for k in range(10)]
    await redis.append(AREA, encode(drive))

    def has(*lines: str) -> Callable[[], Awaitable[bool]]:
        async def there() -> bool:
            return all(line in meter.text().splitlines() for line in lines)

        return there

    once = (
        "timepoint_commit_fixes_count 1",
        "timepoint_commit_fixes_sum 10",
        "timepoint_fix_age_seconds_count 1",
        "timepoint_fix_age_seconds_sum 0.04",
    )
    async with owning(store, settings, meter, clock):
        await until(has(*once))
        clock.advance(5_000)
        await until(has('timepoint_fixes_total{area="demo",verdict="OK"} 10', *once))
        clock.advance(90_000)

        async def stale() -> bool:
            live = await redis.load_live(AREA)
            return [msgspec.msgpack.decode(raw, type=Position).state for raw in live.positions] == [STALE]

        await until(stale)
    assert await has(*once)()


async def test_what_the_tracker_counts_stands_among_the_metrics_across_a_reload(
    store: AreaStore, redis: Redis, settings: Settings, meter: Meter
) -> None:
    await raw(redis).hset(store.keys.states, "bus:bus9", b"\xc1 of another program")
    now_ms = SystemClock().now_ms()
    same = fixes(1, 2, began_ms=now_ms)
    async with owning(store, settings, meter):
        await redis.append(AREA, same)
        await redis.append(AREA, same)
        await until(rows_of(store, 4))
        await raw(redis).hincrby(store.keys.ctl, "n", 10)  # somebody wrote
        await redis.append(AREA, fixes(3, began_ms=SystemClock().now_ms() - 3_000))

        async def reloaded() -> bool:
            return 'timepoint_commits_total{area="demo",answer="STALE"} 1' in meter.text()

        await until(reloaded)
        await redis.append(AREA, same)
        await until(rows_of(store, 7))
    text = meter.text()
    counted = {line.partition("what=")[2] for line in text.splitlines() if line.startswith("timepoint_tracker_total{")}
    assert counted == {'"OK"} 3', '"DUPLICATE"} 4', '"BAD_STATE"} 2'}


async def test_live_batches_are_numbered_without_a_hole(store: AreaStore, redis: Redis, settings: Settings, meter: Meter) -> None:
    await redis.add_area(AREA)
    heard = redis.listen_live()
    assert await anext(heard) is None
    start_ms = SystemClock().now_ms()
    async with owning(store, settings, meter):
        for second in range(20):
            await redis.append(AREA, fixes(second, began_ms=start_ms))
        numbers = []
        while len(numbers) < 3 or numbers[-1] < (await redis.load_live(AREA)).n:
            numbers.append(msgspec.msgpack.decode(await anext(heard), type=LiveBatch).n)
    assert numbers == list(range(1, len(numbers) + 1))
    await heard.aclose()  # type: ignore[attr-defined]


async def test_a_fix_whose_folding_raises_is_buried_with_its_trace_and_the_area_goes_on(
    store: AreaStore, redis: Redis, settings: Settings, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Thorny(Tracker):
        def fold(self, fix: Fix) -> None:
            if fix.bus_id == "thorn":
                raise ZeroDivisionError("a thorn")
            super().fold(fix)

    monkeypatch.setattr(control, "Tracker", Thorny)
    await redis.append(AREA, fixes(1, 2, bus="thorn"))
    await redis.append(AREA, b"\xc1 not msgpack")
    await redis.append(AREA, fixes(*range(5)))
    async with owning(store, settings, meter):
        await until(rows_of(store, 5))
    dead = await store.dead_letters()
    assert [("a thorn" in trace, "malformed" in trace) for _, _, trace in dead] == [(False, True), (True, False), (True, False)]
    assert msgspec.msgpack.decode(dead[-1][1], type=list[Fix])[0].bus_id == "thorn"
    assert 'timepoint_dead_letters_total{area="demo"} 3' in meter.text()


async def test_a_word_that_cannot_be_heard_is_buried_and_the_area_goes_on(
    store: AreaStore, redis: Redis, settings: Settings, meter: Meter
) -> None:
    await store.say(Sos("help", "bus1", None, None, None, 36.7, 3.0, 1, "{}"))
    await store.say(Handled("help", "ACKNOWLEDGED", 2, "[]"))  # its detail is no object
    await redis.append(AREA, fixes(*range(5)))
    async with owning(store, settings, meter):
        await until(rows_of(store, 5))
    assert [b"ACKNOWLEDGED" in payload for _, payload, _ in await store.dead_letters()] == [True]
    assert 'timepoint_dead_letters_total{area="demo"} 1' in meter.text()


async def test_fixes_that_waited_for_a_takeover_are_judged_by_the_time_of_their_receipt(
    store: AreaStore, redis: Redis, settings: Settings, meter: Meter
) -> None:
    """An owner that ticked by its own clock first would call all of them late and tell nobody."""
    start_ms = SystemClock().now_ms()
    for second in range(3):
        await redis.append(AREA, fixes(second, began_ms=start_ms))
    await asyncio.sleep(3.5)  # longer than events settle
    async with owning(store, settings, meter):
        await until(rows_of(store, 3))
    assert {row.verdict for batch in await batches(store) for row in batch.rows} == {"OK"}


async def test_an_owner_whose_memory_is_not_redis_s_loads_again(store: AreaStore, redis: Redis, settings: Settings, meter: Meter) -> None:
    async with owning(store, settings, meter):
        await redis.append(AREA, fixes(1))
        await until(rows_of(store, 1))
        await raw(redis).hincrby(store.keys.ctl, "n", 10)  # somebody wrote
        await redis.append(AREA, fixes(2, ago_ms=50_000))
        await until(rows_of(store, 2))
    assert 'timepoint_commits_total{area="demo",answer="STALE"} 1' in meter.text()
    assert (await batches(store))[-1].n > 11


async def test_an_owner_that_lost_its_lease_writes_nothing_more(store: AreaStore, redis: Redis, settings: Settings, meter: Meter) -> None:
    async with owning(store, settings, meter):
        await redis.append(AREA, fixes(1))
        await until(rows_of(store, 1))
        await raw(redis).set(store.keys.lease, "99:other")
        before = len(await batches(store))
        await redis.append(AREA, fixes(2, ago_ms=50_000))

        async def refused() -> bool:
            return 'answer="LEASE"' in meter.text()

        await until(refused)
    assert len(await batches(store)) == before
    assert await raw(redis).get(store.keys.lease) == b"99:other"  # and does not give back what is another's


async def test_the_in_stream_is_trimmed_by_the_committed_cursor(store: AreaStore, redis: Redis, settings: Settings, meter: Meter) -> None:
    for second in range(300):
        await redis.append(AREA, fixes(second, ago_ms=400_000))
    async with owning(store, settings, meter):

        async def trimmed() -> bool:
            return bool(await raw(redis).xlen(store.keys.incoming) <= 101)

        await until(trimmed)


async def test_an_area_that_is_behind_is_trimmed_too(store: AreaStore, redis: Redis, redis_url: str, meter: Meter) -> None:
    class Hurrying(SystemClock):
        """Every look at it is a second later."""

        looks = 0.0

        def steady_s(self) -> float:
            self.looks += 1.0
            return self.looks

    for second in range(100):
        await redis.append(AREA, fixes(second, ago_ms=400_000))
    trim, behind = store.trim_incoming, []

    async def noted(cursor: str) -> int:
        behind.append(not owner._caught_up)
        return await trim(cursor)

    store.trim_incoming = noted  # type: ignore[method-assign]
    async with owning(store, Settings(redis_url=redis_url, batch_fixes_max=1), meter, Hurrying()) as owner:
        await until(rows_of(store, 100))
    assert sum(behind) > 50


async def test_what_was_read_beyond_a_full_batch_is_folded_once_and_forgotten_where_the_memory_is_not_redis_s(
    store: AreaStore, redis: Redis, redis_url: str, meter: Meter
) -> None:
    reads, read = [], store.read_incoming

    async def noted(cursor: str, count: int, block_ms: int) -> list[Incoming]:
        reads.append(await read(cursor, count, block_ms))
        if len(reads) == 2:  # the first of them is folded, in batches of three, and somebody writes meanwhile
            await raw(redis).hincrby(store.keys.ctl, "n", 10)
        return reads[-1]

    store.read_incoming = noted  # type: ignore[method-assign]
    for second in range(80):
        await redis.append(AREA, fixes(second, ago_ms=200_000))
    async with owning(store, Settings(redis_url=redis_url, batch_fixes_max=3), meter):
        await until(rows_of(store, 80))
    rows = [row for batch in await batches(store) for row in batch.rows]
    assert [(row.seq, row.verdict) for row in rows] == [(second, "OK") for second in range(80)]
    assert [len(some) for some in reads[:2]] == [64, 16] and 'answer="STALE"} 1' in meter.text()


async def test_two_workers_share_the_areas_and_a_drained_one_hands_its_own_over(redis: Redis, settings: Settings) -> None:
    for number in range(5):
        await redis.add_area(f"area{number}")
    one, other = (Shares(redis, NoPlans(), clock=SystemClock(), settings=settings, meter=Meter()) for _ in range(2))
    first = asyncio.create_task(one.run())

    async def owns_all() -> bool:
        return len(one.owned) == 5

    await until(owns_all)  # alone, it owns everything
    second = asyncio.create_task(other.run())

    async def shared() -> bool:
        return {len(one.owned), len(other.owned)} == {2, 3} and sorted(one.owned + other.owned) == [f"area{n}" for n in range(5)]

    await until(shared)
    await one.drain()

    async def handed_over() -> bool:
        return len(other.owned) == 5

    await until(handed_over)
    await other.drain()
    await asyncio.wait({first, second}, timeout=5)
    held = [await raw(redis).exists(keys_of(f"area{n}").lease) for n in range(5)]
    assert held == [0] * 5


async def test_a_worker_without_timetables_leaves_the_areas_to_others(redis: Redis, settings: Settings) -> None:
    await redis.add_area(AREA)
    plans = NoPlans()
    plans.loaded = False
    shares = Shares(redis, plans, clock=SystemClock(), settings=settings, meter=Meter())
    task = asyncio.create_task(shares.run())
    await asyncio.sleep(0.5)
    assert shares.owned == []
    plans.loaded = True

    async def owned() -> bool:
        return shares.owned == [AREA]

    await until(owned)
    await shares.drain()
    await asyncio.wait({task}, timeout=5)
