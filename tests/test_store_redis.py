"""The store on a real Redis: caps, nonces, numbered commits, trims by the slowest reader, ordered channels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from deploy.servers import RedisServer
from engine.clock import ManualClock
from engine.errors import Unavailable
from engine.events import Position
from engine.meter import Meter
from engine.settings import Settings
from engine.store.area import AreaStore, Change, id_order
from engine.store.lease import Lease, hold
from engine.store.redis import Redis, keys_of
from tests.raw_redis import raw

AREA = "demo"
LONG_MS = 60_000


def position(bus: str, lat: float = 36.7) -> Position:
    return Position(bus, "p", AREA, None, None, None, lat, 3.0, None, None, None, None, "DEADHEAD", None, None, 1, 2)


def change(n: int, **more: Any) -> Change:
    values: dict[str, Any] = {
        "n": n,
        "cursor": f"{n}-0",
        "out": b"out",
        "live": b"live",
        "states": {},
        "positions": [],
        "forecasts": {},
        "gone": [],
    }
    return Change(**(values | more))


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    redis = await Redis.connect(Settings(redis_url=redis_url), Meter(), ManualClock(1))
    yield redis
    await redis.close()


@pytest.fixture
def store(redis: Redis) -> AreaStore:
    return AreaStore(redis, AREA)


async def owned(store: AreaStore) -> str:
    token = await store.lease.acquire(LONG_MS)
    assert token is not None
    await store.load(token)  # as every owner does: the area's epoch begins
    return token


# --- the door ---


async def test_an_area_appears_when_its_first_fix_is_appended(redis: Redis, store: AreaStore) -> None:
    entry = await redis.append(AREA, b"payload")
    assert await redis.areas() == [AREA]
    assert await store.read_incoming("0-0", 10, 10) == [(entry, b"payload", False)]


async def test_past_the_byte_cap_the_door_is_told_to_come_back_and_a_trim_opens_it_again(redis_url: str) -> None:
    meter = Meter()
    redis = await Redis.connect(Settings(redis_url=redis_url, ingest_stream_max_bytes=100_000), meter)
    store = AreaStore(redis, AREA)
    for _ in range(10):
        last = await redis.append(AREA, bytes(10_000))
    with pytest.raises(Unavailable) as full:
        await redis.append(AREA, bytes(10_000))
    assert full.value.retry_after_s == 5
    assert 'timepoint_stream_full_total{area="demo",stream="in"} 1' in meter.text()
    assert await store.trim_incoming(last) <= 20_000
    await redis.append(AREA, bytes(10_000))
    await redis.close()


async def test_a_history_that_is_far_behind_closes_the_door_too(redis_url: str) -> None:
    redis = await Redis.connect(Settings(redis_url=redis_url, out_stream_max_bytes=50_000))
    store = AreaStore(redis, AREA)
    token = await owned(store)
    for n in range(1, 8):
        assert await store.commit(token, change(n, out=bytes(10_000))) == "OK"
    with pytest.raises(Unavailable, match="out stream"):
        await redis.append(AREA, b"x")
    await redis.close()


@given(sizes=st.lists(st.integers(1, 9_000), min_size=1, max_size=60), keep=st.integers(0, 59))
@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_books_of_a_streams_bytes_are_exact_after_any_trim(redis: Redis, store: AreaStore, sizes: list[int], keep: int) -> None:
    await raw(redis).flushall()
    entries = [await redis.append(AREA, bytes(size)) for size in sizes]
    held = await store.trim_incoming(entries[min(keep, len(entries) - 1)])
    assert held == sum(len(payload) for _, payload, _ in await store.read_incoming("0-0", 100, 1))


async def test_a_nonce_is_new_once(redis: Redis) -> None:
    assert [await redis.nonce_is_new("dev1", "a", 60), await redis.nonce_is_new("dev1", "a", 60)] == [True, False]
    assert await redis.nonce_is_new("dev2", "a", 60)


async def test_a_server_that_is_away_is_unavailable_and_counted() -> None:
    meter = Meter()
    redis = Redis(Settings(redis_url="unix:///nowhere/redis.sock"), meter)
    with pytest.raises(Unavailable):
        await redis.append(AREA, b"x")
    assert meter.counter("timepoint_redis_faults_total", "", ("call",)).total() == 2
    await redis.close()


async def test_a_server_that_takes_no_writes_is_unavailable_and_counted(own_redis: RedisServer) -> None:
    meter = Meter()
    redis = await Redis.connect(Settings(redis_url=own_redis.url), meter)
    await redis.append(AREA, b"x")
    await raw(redis).config_set("min-replicas-to-write", 1)
    with pytest.raises(Unavailable):
        await redis.append(AREA, b"x")
    with pytest.raises(Unavailable):
        await redis.beat("worker", 1_000)
    assert meter.counter("timepoint_redis_faults_total", "", ("call",)).total() == 2
    await raw(redis).config_set("min-replicas-to-write", 0)
    await redis.append(AREA, b"x")
    await redis.close()


# --- the owner ---


async def test_a_lease_has_one_holder_and_a_new_token_each_time(redis: Redis) -> None:
    lease = Lease(redis, AREA)
    first = await lease.acquire(LONG_MS)
    assert first is not None
    assert await lease.acquire(LONG_MS) is None
    assert await lease.renew(first, LONG_MS)
    assert not await lease.renew("0:else", LONG_MS)
    await lease.release("0:else")
    assert await lease.acquire(LONG_MS) is None
    await lease.release(first)
    second = await lease.acquire(LONG_MS)
    assert second is not None
    assert second != first
    assert int(second.split(":")[0]) > int(first.split(":")[0])


async def test_work_under_a_lease_ends_when_the_lease_is_lost_and_begins_anew(redis: Redis) -> None:
    happened: asyncio.Queue[str] = asyncio.Queue()

    async def work() -> None:
        happened.put_nowait("begun")
        try:
            await asyncio.Event().wait()
        finally:
            happened.put_nowait("ended")

    holding = asyncio.create_task(hold(redis, "test", Settings(lease_ms=500, lease_renew_ms=100), work))
    assert await happened.get() == "begun"
    await raw(redis).delete(keys_of("role:test").lease)
    assert [await happened.get(), await happened.get()] == ["ended", "begun"]
    holding.cancel()
    await asyncio.wait({holding})
    assert await happened.get() == "ended"
    assert await raw(redis).exists(keys_of("role:test").lease) == 0


async def test_a_commit_is_made_once_however_often_it_is_sent(store: AreaStore) -> None:
    token = await owned(store)
    assert [await store.commit(token, change(1)) for _ in range(3)] == ["OK", "DONE", "DONE"]
    assert len(await store.read_out("0-0", 10, 1)) == 1


async def test_a_commit_of_another_number_or_another_owner_writes_nothing(store: AreaStore) -> None:
    token = await owned(store)
    assert await store.commit(token, change(2)) == "STALE"
    assert await store.commit("0:zombie", change(1)) == "LEASE"
    assert await store.read_out("0-0", 10, 1) == []


async def test_a_successor_with_the_same_number_is_not_mistaken_for_a_repetition(store: AreaStore) -> None:
    first = await owned(store)
    await store.commit(first, change(1))
    await store.lease.release(first)
    second = await owned(store)
    assert await store.commit(second, change(1)) == "STALE"


async def test_what_was_committed_is_loaded_at_one_instant(store: AreaStore, redis: Redis) -> None:
    token = await owned(store)
    await store.commit(
        token,
        change(
            1,
            cursor="77-3",
            states={"bus:a": b"A", "bus:b": b"B", "eta:x": b"X"},
            positions=[(position("a"), b"pa"), (position("b"), b"pb")],
            forecasts={"a": b"fa", "b": b"fb"},
        ),
    )
    await store.commit(token, change(2, cursor="78-0", states={"bus:b": b""}, forecasts={"a": b""}, gone=["b"]))
    loaded = await store.load(token)
    assert loaded is not None
    assert (loaded.n, loaded.cursor, loaded.states) == (2, "78-0", {"bus:a": b"A", "eta:x": b"X"})
    live = await redis.load_live(AREA)
    assert (live.n, live.epoch, [bytes(raw) for raw in live.positions], live.forecasts) == (2, loaded.epoch, [b"pa"], [])
    assert await raw(redis).zrange(store.keys.geo, 0, -1) == [b"a"]


async def test_a_bus_beyond_the_reach_of_the_geo_index_has_a_position_all_the_same(store: AreaStore, redis: Redis) -> None:
    token = await owned(store)
    assert await store.commit(token, change(1, positions=[(position("pole", 89.0), b"p"), (position("a"), b"p")])) == "OK"
    assert len((await redis.load_live(AREA)).positions) == 2
    assert await raw(redis).zrange(store.keys.geo, 0, -1) == [b"a"]


async def test_a_commit_of_twenty_thousand_vehicles_is_whole(store: AreaStore, redis: Redis) -> None:
    token = await owned(store)
    buses = [f"b{n}" for n in range(20_000)]
    whole = change(
        1,
        states={f"bus:{bus}": b"s" for bus in buses},
        positions=[(position(bus), b"p") for bus in buses],
        forecasts=dict.fromkeys(buses, b"f"),
    )
    assert await store.commit(token, whole) == "OK"
    counts = [await raw(redis).hlen(key) for key in (store.keys.states, store.keys.pos, store.keys.eta)]
    assert [*counts, await raw(redis).zcard(store.keys.geo)] == [20_000] * 4
    assert await store.commit(token, change(2, gone=buses)) == "OK"
    assert (await redis.load_live(AREA)).positions == []


async def test_another_run_of_the_server_begins_another_epoch(store: AreaStore, redis: Redis) -> None:
    token = await owned(store)
    await store.commit(token, change(1))
    before = (await redis.load_live(AREA)).epoch
    await raw(redis).hset(store.keys.ctl, "run", "of another server run")  # what a restart leaves behind
    assert await store.commit(token, change(2)) == "STALE"
    await store.lease.release(token)
    token = await owned(store)
    assert await store.commit(token, change(2)) == "OK"
    assert (await redis.load_live(AREA)).epoch != before


async def test_the_out_stream_is_trimmed_by_its_slowest_reader_and_held_for_one_that_never_spoke(store: AreaStore) -> None:
    token = await owned(store)
    for n in range(1, 31):
        await store.commit(token, change(n, out=bytes(5_000)))
    entries = await store.read_out("0-0", 100, 1)
    await store.tell_cursor("history", entries[-1][0])
    assert await store.trim_out() is None
    await store.tell_cursor("relay", entries[9][0])
    assert await store.trim_out() == 21 * 5_000
    assert (await store.read_out("0-0", 100, 1))[0] == entries[9]


async def test_a_cursor_ahead_of_the_servers_clock_is_known_as_such(store: AreaStore) -> None:
    assert await store.is_ahead("99999999999999-0")
    assert not await store.is_ahead("1-0")
    assert sorted(["10-2", "9-30", "10-11"], key=id_order) == ["9-30", "10-2", "10-11"]


async def test_dead_letters_keep_their_trace(store: AreaStore) -> None:
    await store.bury(b"fix", "ValueError: no")
    assert [(payload, trace) for _, payload, trace in await store.dead_letters()] == [(b"fix", "ValueError: no")]


# --- live and ordered channels ---


async def test_a_listener_is_told_of_its_connection_and_then_of_every_batch(store: AreaStore, redis: Redis) -> None:
    token = await owned(store)
    heard = redis.listen_live()
    assert await anext(heard) is None
    await store.commit(token, change(1, live=b"\x91one"))
    assert await anext(heard) == b"\x91one"
    for connection in await raw(redis).client_list("pubsub"):
        await raw(redis).client_kill_filter(_id=connection["id"])
    assert await anext(heard) is None
    await heard.aclose()  # type: ignore[attr-defined]


async def test_an_ordered_channel_says_each_event_once_and_keeps_what_it_said(redis: Redis) -> None:
    heard = redis.listen_ordered()
    assert await anext(heard) is None
    said = [
        await redis.publish_ordered("incidents:p1", event, payload) for event, payload in [("e1", b"a b"), ("e1", b"a b"), ("e2", b"\xff")]
    ]
    assert said == [1, 0, 2]
    messages = [await anext(heard), await anext(heard)]
    log = await redis.channel_log("incidents:p1", 0)
    assert (log.messages, log.offset, log.complete) == (messages, 2, True)
    assert [message.payload for message in log.messages] == [b"a b", b"\xff"]
    assert not (await redis.channel_log("incidents:p1", 9)).complete
    await heard.aclose()  # type: ignore[attr-defined]


async def test_a_log_that_forgot_the_place_says_so(redis: Redis) -> None:
    for n in range(1_005):
        await redis.publish_ordered("notices", f"e{n}", msgspec.msgpack.encode(n))
    gone, there = await redis.channel_log("notices", 3), await redis.channel_log("notices", 5)
    assert (gone.complete, there.complete, len(there.messages)) == (False, True, 1_000)
