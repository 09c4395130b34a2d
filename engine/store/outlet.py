"""What the office says through Redis: many messages in one round trip, and the bell that wakes the relay.

A `Saying` goes to an ordered channel, once by its event id (`Redis.publish_ordered`, say.lua); an `Entry` goes to the bounded stream of
events, each time it is said: consumers know it again by its id (office.inbox). The bell only saves waiting: it may be lost, and the relay
looks by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec
from redis import exceptions as fault

from engine.errors import Unavailable
from engine.store.redis import FAULTS, ORDERED, ORDERED_LIFE_S, ORDERED_LOG, REFUSES, Redis, lua

log = logging.getLogger(__name__)

EVENTS: Final = "events"  # the stream
BELL: Final = "office:wake"
PASSING: Final = (*REFUSES, "BUSY", "LOADING", "OOM", "READONLY")  # answers that say something of the server, nothing of the message
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
        text = lua("say")
        self._text, self._sha = text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def say(self, lines: Sequence[Line]) -> list[str | None]:
        """All lines in order, in one round trip; for each None, or why Redis refused it. Raises `Unavailable` where it is the server that
        cannot: some lines may have been said, and saying them again is harmless.
        """
        told: list[str | None] = [None] * len(lines)
        rest = list(range(len(lines)))
        for _ in range(2):  # a second time for those that met a server without our script
            chosen = [lines[i] for i in rest]
            answers = await self._redis.ask("say", lambda chosen=chosen: self._send(chosen))  # type: ignore[misc]
            again = []
            for i, answer in zip(rest, answers, strict=True):
                if isinstance(answer, fault.NoScriptError):
                    again.append(i)
                elif isinstance(answer, Exception):
                    if isinstance(answer, FAULTS) or str(answer).startswith(PASSING):
                        raise Unavailable(f"Redis takes no messages: {answer}", retry_after_s=1) from answer
                    told[i] = f"{type(answer).__name__}: {answer}"
            if not again:
                return told
            await self._redis.ask("say", lambda: self._redis.calls.script_load(self._text))
            rest = again
        raise Unavailable("Redis forgets our script as fast as we load it", retry_after_s=1)

    def _send(self, lines: Sequence[Line]) -> Awaitable[list[Any]]:
        chance = self._redis.clock.token(6)
        pipe = self._redis.calls.pipeline(transaction=False)
        for line in lines:
            if isinstance(line, Saying):
                tag = f"{{{line.channel}}}"
                pipe.execute_command(
                    "EVALSHA", self._sha, 3, f"meta:{tag}", f"log:{tag}", f"seen:{tag}",
                    line.event_id, line.payload, ORDERED + line.channel, chance, ORDERED_LOG, ORDERED_LIFE_S,
                )  # fmt: skip
            else:
                pipe.execute_command(
                    "XADD", EVENTS, "MAXLEN", "~", self._stream_max, "*",
                    "id", line.event_id, "topic", line.topic, "type", line.type, "partner", line.partner_id, "event", line.event,
                )  # fmt: skip
        answers: Awaitable[list[Any]] = pipe.execute(raise_on_error=False)
        return answers


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
            await self._redis.ask("bell", lambda: self._redis.calls.publish(BELL, b""), attempts=1)
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
