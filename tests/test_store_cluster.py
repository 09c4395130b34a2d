"""Redis Cluster: three servers, areas and channels spread over them, and the same promises as on one, also while a slot moves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.crc import key_slot
from websockets.asyncio.client import connect

from api import booking, seats
from engine.errors import Unavailable
from engine.meter import Meter
from engine.settings import Settings
from engine.store.area import AreaStore, Change
from engine.store.redis import ORDERED_SHARDS, Redis, ordered_keys, shard_of
from tests.crash_house import AREA, Phone, furnished, until
from tests.redis_cluster import Cluster, cluster  # noqa: F401
from tests.seat_house import SeatHouse

AREAS = [f"city{number}" for number in range(12)]


@pytest.fixture
async def redis(cluster: Cluster) -> AsyncIterator[Redis]:  # noqa: F811
    redis = await Redis.connect(Settings(redis_url=cluster.url), Meter())
    yield redis
    await redis.close()


def places(redis: Redis, keys: list[str]) -> set[str]:
    return {redis.nodes.place(key) for key in keys}


def change(n: int, live: bytes) -> Change:
    return Change(n, f"{n}-0", b"out", live, {"bus:1": b"state"}, [], {}, [])


async def test_areas_lie_on_all_servers_and_a_listener_hears_every_commit_of_each(redis: Redis) -> None:
    heard: dict[bytes, int] = {}

    async def listen() -> None:
        async for batch in redis.listen_live():
            if batch is not None:
                heard[batch] = heard.get(batch, 0) + 1

    listener = asyncio.create_task(listen())
    tokens: dict[str, str] = {}
    for area in AREAS:
        await redis.add_area(area)  # the listener is there already: it hears of it
        entry = await redis.append(area, b"fixes")
        store = AreaStore(redis, area)
        assert await store.read_incoming("0-0", 10, 1_000) == [(entry, b"fixes", False)]
        token = tokens[area] = await store.lease.acquire(60_000) or ""
        assert await store.load(token) is not None
    assert len(places(redis, [AreaStore(redis, area).keys.ctl for area in AREAS])) == 3
    for number in range(1, 200):  # until the listener has joined the newest area too
        said = await asyncio.gather(
            *(AreaStore(redis, area).commit(tokens[area], change(number, f"{area} {number}".encode())) for area in AREAS)
        )
        assert set(said) == {"OK"}
        if all(f"{area} {number}".encode() in heard for area in AREAS):
            break
        await asyncio.sleep(0.02)
    assert {f"{area} {number}".encode() for area in AREAS} <= set(heard)
    assert set(heard.values()) == {1}
    assert set(AREAS) <= set(await redis.areas())
    assert (await redis.load_live("city3")).n == number
    listener.cancel()


async def test_ordered_channels_lie_on_all_servers_and_keep_their_order(redis: Redis) -> None:
    channels = [f"seats:trip {number}" for number in range(40)]
    assert len(places(redis, [shard_of(number)[0] for number in range(ORDERED_SHARDS)])) == 3
    for channel in channels:
        keys, shard = ordered_keys(channel, "picks", "meta", "log", "seen")
        assert len({key_slot(key.encode()) for key in [*keys, shard]}) == 1
    heard: dict[str, list[int]] = {}
    listening = redis.listen_ordered()
    assert await anext(listening) is None
    for number in range(1, 4):
        await asyncio.gather(*(redis.publish_ordered(channel, f"e{number}", b"said") for channel in channels))
    for _ in range(3 * len(channels)):
        message = await anext(listening)
        assert message is not None
        heard.setdefault(message.channel, []).append(message.offset)
    assert heard == {channel: [1, 2, 3] for channel in channels}
    assert [message.offset for message in (await redis.channel_log(channels[0], 1)).messages] == [2, 3]
    await listening.aclose()  # type: ignore[attr-defined]


async def test_a_slot_that_moves_while_it_is_used_loses_nothing_and_its_listeners_hear_on(redis: Redis, cluster: Cluster) -> None:  # noqa: F811
    area = "moving"
    store = AreaStore(redis, area)
    answers: list[str] = []
    refused = 0
    stop = asyncio.Event()

    async def drive() -> None:
        nonlocal refused
        while not stop.is_set():
            try:
                answers.append(await redis.append(area, b"fixes"))
            except Unavailable:  # a call on two keys of which one has gone: TRYAGAIN, the device is told to come back
                refused += 1
            await asyncio.sleep(0)

    heard: list[bytes | None] = []

    async def listen() -> None:
        async for message in redis.listen(store.keys.live):
            heard.append(message and message[1])

    listener = asyncio.create_task(listen())
    driver = asyncio.create_task(drive())
    await until(lambda: _true(len(answers) > 50 and heard), 10)
    slot = key_slot(store.keys.ctl.encode())
    source = await asyncio.to_thread(cluster.owner, slot)
    target = next(node for node in cluster.nodes if node is not source)
    await asyncio.to_thread(cluster.move, slot, target)
    before = len(answers)
    await until(lambda: _true(len(answers) > before + 50), 10)
    stop.set()
    await driver
    assert await asyncio.to_thread(cluster.owner, slot) is target
    found = await store.read_incoming("0-0", len(answers) + 10, 0)
    assert [at for at, _, _ in found] == answers
    await until(lambda: _true(heard.count(None) >= 2), 10)  # told to load again
    await redis.publish("test", store.keys.live, b"after the move")
    await until(lambda: _true(b"after the move" in heard), 10)
    listener.cancel()


async def _true(value: Any) -> bool:
    return bool(value)


async def test_a_fix_reaches_a_watcher_through_a_worker_on_a_cluster(cluster: Cluster, database_url: str, tmp_path: Path) -> None:  # noqa: F811
    async with furnished(cluster.url, database_url, tmp_path) as house:
        token = await asyncio.to_thread(house.device, "bus1")
        _, address = house.serve("api,track,history")
        phone = Phone("bus1", token, [address])
        await phone.known()
        async with connect(address.replace("http", "ws") + "/ws") as socket:
            await socket.send(json.dumps({"id": 1, "op": "sub", "ch": "bus:bus1"}))
            driving = asyncio.create_task(phone.drive())
            async with asyncio.timeout(20):
                while True:
                    said = json.loads(await socket.recv())
                    if said.get("t") == "pos":
                        break
            phone.rest()
            await driving
        assert said["d"]["busId"] == "bus1"
        last = phone.accepted[-1]

        async def written() -> bool:
            return last in await house.times_in_history()

        await until(written, 20)
        assert await house.times_in_history() == phone.accepted
        assert AREA in await house.redis.areas()
        await phone.close()


async def test_seats_are_picked_held_and_told_of_on_a_cluster(cluster: Cluster, database_url: str) -> None:  # noqa: F811
    house = await SeatHouse.make(database_url, cluster.url, (*booking.ROUTERS, *seats.ROUTERS))
    picked = await house.pick("1A", "1B")
    assert picked.status_code == 201, picked.text
    taken = await house.pick("1B", "1C")
    assert (taken.status_code, taken.json()["code"]) == (409, "SEAT_PICKED")
    wish = {"seats": ["1A", "1B"], "from": "demo:A", "to": "demo:F", "pickId": picked.json()["pickId"]}
    held = await house.http.post(f"/v1/trips/{house.world.trip_id}/holds", json=wish, headers={"Idempotency-Key": "one"})
    assert held.status_code == 201, held.text
    log = await house.world.redis.channel_log(f"seats:{house.world.trip_id}", 0)
    assert [msgspec.json.decode(message.payload)["d"]["state"] for message in log.messages] == ["PICKED", "PICKED"]
    await house.close()
