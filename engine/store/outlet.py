"""What the office says through Redis: many messages in one round trip, and the bell that wakes the relay.

A `Saying` goes to an ordered channel, once by its event id (`Redis.publish_ordered`, say.lua); an `Entry` goes to the bounded stream of
events, each time it is said: consumers know it again by its id (office.inbox). The bell only saves waiting: it may be lost, and the relay
looks by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec
from redis import exceptions as fault

from engine.errors import Unavailable
from engine.store.redis import ORDERED_LIFE_S, ORDERED_LOG, Redis, ordered_keys

log = logging.getLogger(__name__)

EVENTS: Final = "events"  # the stream
BELL: Final = "office:wake"
CALL_MAX: Final = 100  # messages of one call of a script: about 2 ms in which Redis does nothing else
RING_S: Final = 0.005  # at most one ring in this time, of one process


class Saying(msgspec.Struct, frozen=True, gc=False):
    """One message of an ordered channel."""

    channel: str
    event_id: str
    payload: bytes


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One event for the stream: fields `id`, `topic`, `type`, `partner` to choose by, and `event`, its JSON."""

    event_id: str
    topic: str
    type: str
    partner_id: str
    event: bytes


Line = Saying | Entry


class Outlet:
    """Says lines. One per process."""

    def __init__(self, redis: Redis, stream_max: int) -> None:
        self._redis, self._stream_max = redis, stream_max

    async def say(self, lines: Sequence[Line]) -> list[str | None]:
        """All lines, those of one channel in order, the channels side by side; for each None, or why Redis refused its channel. Raises
        `Unavailable` where it is the server that cannot, or the stream, which is everybody's: some lines may have been said, and saying them
        again is harmless.

        One call of a script for each channel: half the CPU of one for each message, and all keys of a call lie in one slot of a cluster.
        """
        groups: dict[str, list[int]] = {}
        for i, line in enumerate(lines):
            groups.setdefault(line.channel if isinstance(line, Saying) else "", []).append(i)
        told: list[str | None] = [None] * len(lines)
        asked = (self._say_all([lines[i] for i in chosen]) for chosen in groups.values())
        for chosen, answer in zip(groups.values(), await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if isinstance(answer, fault.ResponseError) and isinstance(lines[chosen[0]], Saying):
                for i in chosen:
                    told[i] = f"{type(answer).__name__}: {answer}"
            elif isinstance(answer, fault.ResponseError):
                raise Unavailable(f"Redis takes no events: {answer}", retry_after_s=1) from answer
            elif answer is not None:
                raise answer
        return told

    async def _say_all(self, lines: Sequence[Line]) -> None:
        """Lines of one channel, or of the stream, in order."""
        chance = self._redis.clock.token(6)
        for start in range(0, len(lines), CALL_MAX):
            args: list[Any] = []
            for line in lines[start : start + CALL_MAX]:
                if isinstance(line, Saying):
                    args += (line.event_id, line.payload)
                else:
                    args += (line.event_id, line.topic, line.type, line.partner_id, line.event)
            first = lines[0]
            if isinstance(first, Saying):
                keys, shard = ordered_keys(first.channel, "meta", "log", "seen")
                await self._redis.run("say", keys, shard, first.channel, chance, ORDERED_LOG, ORDERED_LIFE_S, *args)
            else:
                await self._redis.run("enter", [EVENTS], self._stream_max, *args)


class Bell:
    """Rings after a commit: `ring` never waits and never raises. Who listens in this process hears it without Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._soon = False  # a ring is coming
        self._rings: set[asyncio.Task[None]] = set()
        self._ears: list[Callable[[], None]] = []

    def ring(self) -> None:
        if not self._soon:
            self._soon = True
            task = asyncio.get_running_loop().create_task(self._ring(), name="bell")
            self._rings.add(task)
            task.add_done_callback(self._rings.discard)

    async def _ring(self) -> None:
        await asyncio.sleep(RING_S)  # those who commit meanwhile are heard with it
        self._soon = False
        self._wake()
        try:
            await self._redis.publish("bell", BELL, b"")
        except Unavailable as away:
            log.debug("the bell is not heard elsewhere: %s", away)

    def hear(self, wake: Callable[[], None]) -> None:
        """`wake` is called at each ring: of this process, and of the others while `listen` runs."""
        self._ears.append(wake)

    def _wake(self) -> None:
        for wake in self._ears:
            wake()

    async def listen(self) -> None:
        """Hears the other processes until cancelled."""
        async with aclosing(self._redis.listen(BELL)) as rings:
            async for _ in rings:
                self._wake()
