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
        self._say, self._enter = _Script("say"), _Script("enter")

    async def say(self, lines: Sequence[Line]) -> list[str | None]:
        """All lines, those of one channel in order, in one round trip; for each None, or why Redis refused its channel. Raises `Unavailable`
        where it is the server that cannot, or the stream, which is everybody's: some lines may have been said, and saying them again is
        harmless.

        One call of a script for each channel: half the CPU of one for each message, and all keys of a call lie in one slot of a cluster.
        """
        groups: dict[str, list[int]] = {}
        for i, line in enumerate(lines):
            groups.setdefault(line.channel if isinstance(line, Saying) else "", []).append(i)
        calls = [chosen[i : i + CALL_MAX] for chosen in groups.values() for i in range(0, len(chosen), CALL_MAX)]
        told: list[str | None] = [None] * len(lines)
        for _ in range(2):  # a second time for those that met a server without our scripts
            asked = [[lines[i] for i in call] for call in calls]
            answers = await self._redis.ask("say", lambda asked=asked: self._send(asked))  # type: ignore[misc]
            again = []
            for call, answer in zip(calls, answers, strict=True):
                if isinstance(answer, fault.NoScriptError):
                    again.append(call)
                elif isinstance(answer, Exception):
                    if isinstance(answer, FAULTS) or str(answer).startswith(PASSING) or isinstance(lines[call[0]], Entry):
                        raise Unavailable(f"Redis takes no messages: {answer}", retry_after_s=1) from answer
                    for i in call:
                        told[i] = f"{type(answer).__name__}: {answer}"
            if not again:
                return told
            for script in (self._say, self._enter):
                await self._redis.ask("say", lambda text=script.text: self._redis.calls.script_load(text))  # type: ignore[misc]
            calls = again
        raise Unavailable("Redis forgets our scripts as fast as we load them", retry_after_s=1)

    def _send(self, calls: Sequence[Sequence[Line]]) -> Awaitable[list[Any]]:
        chance = self._redis.clock.token(6)
        pipe = self._redis.calls.pipeline(transaction=False)
        for lines in calls:
            args: list[Any] = []
            first = lines[0]
            if isinstance(first, Saying):
                tag = f"{{{first.channel}}}"
                args += ["EVALSHA", self._say.sha, 3, f"meta:{tag}", f"log:{tag}", f"seen:{tag}"]
                args += [ORDERED + first.channel, chance, ORDERED_LOG, ORDERED_LIFE_S]
            else:
                args += ["EVALSHA", self._enter.sha, 1, EVENTS, self._stream_max]
            for line in lines:
                if isinstance(line, Saying):
                    args += (line.event_id, line.payload)
                else:
                    args += (line.event_id, line.topic, line.type, line.partner_id, line.event)
            pipe.execute_command(*args)
        answers: Awaitable[list[Any]] = pipe.execute(raise_on_error=False)
        return answers


class _Script:
    def __init__(self, name: str) -> None:
        self.text = lua(name)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


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
