"""The relay under a killer: real workers die with SIGKILL between commit, saying and marking; listeners hear everything once and in order."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.office.topics import Event
from engine.store.outlet import EVENTS
from tests.booking_world import World
from tests.crash_house import furnished, until
from tests.raw_redis import raw

pytestmark = [pytest.mark.crash, pytest.mark.timeout(240)]


async def sell(world: World, trip: str, letter: str, stopping: asyncio.Event) -> None:
    """Three seats of a trip are held and let go in turn, until told to stop."""
    number = 0
    while not stopping.is_set():
        number += 1
        made = await world.hold(f"{number % 3 + 1}{letter}", trip=trip, who=world.agent())
        await world.desk.release(world.agent(), world.key(), made.held.booking)
        await asyncio.sleep(0.01)  # or it takes the processor from the workers that are to start


async def said_everything(world: World) -> bool:
    return not await world.value("select count(*) from office.outbox where delivered_at is null")


async def seats(world: World, trip_id: str) -> dict[str, list[str]]:
    """What the map of a trip was told of each seat, in order."""
    log = await world.redis.channel_log("seats:" + trip_id, 0)
    assert [message.offset for message in log.messages] == list(range(1, log.offset + 1))[-len(log.messages) :]
    told: dict[str, list[str]] = defaultdict(list)
    for message in log.messages:
        body: Any = json.loads(message.payload)["d"]
        told[body["seat"]].append(body["state"])
    return told


async def stream(world: World) -> list[Event]:
    return [msgspec.json.decode(fields[b"event"], type=Event) for _, fields in await raw(world.redis).xrange(EVENTS)]


async def test_workers_that_are_killed_while_they_say_lose_nothing_and_repeat_nothing(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with furnished(redis_url, database_url, tmp_path) as house:
        world = await World.make(database_url, redis_url)
        trips = [world.trip_id, (await world.trip())[0]]
        first, _ = house.serve("office")
        stopping = asyncio.Event()
        selling = [asyncio.create_task(sell(world, trip, letter, stopping)) for trip in trips for letter in "AB"]
        try:

            async def heard(more_than: int) -> bool:
                return bool(await raw(world.redis).xlen(EVENTS) > more_than)

            await until(lambda: heard(30), 100)
            first.kill()
            before = await raw(world.redis).xlen(EVENTS)
            second, _ = house.serve("office")
            house.serve("office")
            await until(lambda: heard(before + 100), 100)
            second.kill()
            before = await raw(world.redis).xlen(EVENTS)
            await until(lambda: heard(before + 100), 100)
        finally:
            stopping.set()
            await asyncio.gather(*selling)
        await until(lambda: said_everything(world), 100)

        for trip in trips:
            for seat, states in (await seats(world, trip)).items():
                assert all(state != after for state, after in itertools.pairwise(states)), f"{trip} {seat}: {states}"
                assert states[-1] == "FREE"
        committed = {row[0] for row in await world.run("select topic || ':' || aggregate || ':' || version from office.outbox")}
        first_heard = list(dict.fromkeys(event.id for event in await stream(world)))
        assert set(first_heard) == committed, "every event and no other"
        newest: dict[str, int] = {}
        for event_id in first_heard:
            chain, _, seq = event_id.rpartition(":")
            assert int(seq) == newest.get(chain, 0) + 1, f"{event_id} came after {newest.get(chain)}"
            newest[chain] = int(seq)
        await world.close()
