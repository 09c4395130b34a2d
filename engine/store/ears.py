"""Listening on Redis: sharded pub/sub, each channel on the server that holds its slot, all of it heard in one place.

Promises: messages of one channel come in order, at most once. Who falls HEARD_MAX messages behind is no longer read from; Redis then ends
the connection (8 MB behind for a minute), which is noticed as any lost one is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from engine.store.line import Line
from engine.store.nodes import Nodes

HEARD_MAX: Final = 1_000

Message = tuple[bytes, bytes]  # (channel, message)


class Ear(Line):
    """One connection that listens. Answers to its commands come as pushes, one each."""

    def __init__(self, ears: Ears) -> None:
        super().__init__()
        self._ears, self._resting = ears, False

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._ears.ring()

    def _answered(self, answer: Any) -> None:
        if isinstance(answer, list) and answer[0] == b"smessage":
            self._ears.heard.append((answer[1], answer[2]))
        elif self._waiting:
            super()._answered(answer)
        else:  # the server ends a subscription by itself: the slot has moved
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._ears.ring()

    def rest(self) -> None:
        if self.alive and not self._resting and not self._waiting:  # an answer to come lies behind the messages
            self._resting = True
            self._transport.pause_reading()

    def go_on(self) -> None:
        if self.alive and self._resting:
            self._resting = False
            self._transport.resume_reading()


class Ears:
    """Connections that listen for one reader, one to each server that it needs."""

    def __init__(self, nodes: Nodes) -> None:
        self.heard: deque[Message] = deque()
        self._nodes, self._loop = nodes, asyncio.get_running_loop()
        self._ears: dict[str, Ear] = {}  # by server
        self._news: asyncio.Future[None] | None = None

    async def hear(self, channels: Iterable[str]) -> None:
        """These channels too. Raises as `Nodes.reach`, and what Redis said: begin anew."""
        asked = []
        for channel in channels:
            place = await self._nodes.where(channel)
            ear = self._ears.get(place)
            if ear is None:
                ear = self._ears[place] = await self._nodes.connect(place, lambda: Ear(self))
            ear.go_on()
            asked.append(ear.ask(("SSUBSCRIBE", channel)))
        await asyncio.gather(*asked)

    def take(self, most: int) -> list[Message]:
        """The oldest messages."""
        heard = self.heard
        return [heard.popleft() for _ in range(min(most, len(heard)))]

    async def wait(self, quiet_s: float) -> None:
        """Until there is something. Nothing for `quiet_s`: asks whether the servers are there. Raises ConnectionError where one has gone."""
        while not self.heard:
            self._check()
            for ear in self._ears.values():
                ear.go_on()
            self._news = self._loop.create_future()
            late = self._loop.call_later(quiet_s, self.ring)
            began_s = self._loop.time()
            try:
                await self._news
            finally:
                late.cancel()
                self._news = None
            if not self.heard and self._loop.time() - began_s >= quiet_s:
                await asyncio.gather(*(ear.ask(("PING",)) for ear in self._ears.values()))

    def ring(self) -> None:
        """There is something new, or an ear has gone."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
        if len(self.heard) > HEARD_MAX:
            for ear in self._ears.values():
                ear.rest()

    def close(self) -> None:
        for ear in self._ears.values():
            ear.close()

    def _check(self) -> None:
        if not all(ear.alive for ear in self._ears.values()):
            raise ConnectionError("a connection that listens was lost")
