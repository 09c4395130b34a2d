"""One connection to Redis: commands go out in the order in which they are given, answers come back in the same order (pipelining).

What is asked within one turn of the loop is one write, and who asks alone goes at once. Own RESP on `hiredis` because a client with a pool
costs 57 us a call and 6 to 9 us a received message, this 3 to 10 and below 1 (docs/decisions/0061-redis-connection.md).

Promises: nothing waits longer than CALL_TIMEOUT_S for an answer (the connection is given up then, and whoever waits is told); at most
WAITING_MAX calls wait; who gives up holds nobody back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

import hiredis

CALL_TIMEOUT_S: Final = 5.0  # longest answer to a call; a LOAD of 20,000 states took 60 ms
LOOK_S: Final = 1.0  # how often somebody looks whether the oldest call waits too long
WAITING_MAX: Final = 10_000

Command = tuple[Any, ...]


class Rejected(Exception):  # what Redis said no to: a wrong command, or a value of another kind where one belongs
    """Redis said no: our own fault, not that it is away."""


class Refusing(Rejected):
    """Redis takes no such calls now: full, read-only, loading, too few replicas, a cluster that is not whole. It passes."""


class NoScript(Rejected):
    """Redis does not know our script: it was restarted, or flushed."""


class Elsewhere(Rejected):
    """The key lives on another server of the cluster: for good (MOVED), or for this call (ASK)."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        kind, slot, where = text.split()[:3]
        self.slot, self.for_good, self.where = int(slot), kind == "MOVED", where


# what an answer begins with -> what it means; all others are the caller's own fault
MEANT: Final[tuple[tuple[tuple[str, ...], type[Rejected]], ...]] = (
    (("NOSCRIPT",), NoScript),
    (("MOVED", "ASK "), Elsewhere),
    (("READONLY", "OOM", "LOADING", "BUSY ", "MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"), Refusing),
)


def meant(text: str) -> Rejected:
    """The fault that an error of Redis stands for."""
    return next((kind for starts, kind in MEANT if text.startswith(starts)), Rejected)(text)


class Line(asyncio.Protocol):
    """One connection for calls."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()  # (whose answer is next, since when)
        self._unsent: list[bytes] = []
        self._transport: Any = None
        self.alive = False

    def connection_made(self, transport: Any) -> None:
        self._transport, self.alive = transport, True
        self._loop.call_later(LOOK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        waiting, self._waiting = self._waiting, deque()
        for future, _ in waiting:
            if not future.done():
                future.set_exception(ConnectionError(f"the connection was lost: {exc or 'closed by the server'}"))

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        answer = self._reader.gets()
        while answer is not False:
            self._answered(answer)
            answer = self._reader.gets()

    def _answered(self, answer: Any) -> None:
        future, _ = self._waiting.popleft()
        if future.done():
            pass  # whoever asked has gone
        elif isinstance(answer, hiredis.ReplyError):
            future.set_exception(meant(str(answer)))
        else:
            future.set_result(answer)

    def ask(self, command: Command) -> asyncio.Future[Any]:
        """The answer to come, or a `Rejected`. Raises ConnectionError, now or later, where the connection is lost before."""
        if not self.alive:  # lost since it was given to us: nobody would ever answer
            raise ConnectionError("the connection was lost")
        if len(self._waiting) >= WAITING_MAX:
            raise Refusing("too many calls wait for Redis")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append((future, self._loop.time()))
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(hiredis.pack_command(command))
        return future

    async def together(self, commands: list[Command]) -> list[Any]:
        """The answers of several commands of one instant (MULTI). Raises as `ask`."""
        steps = [("MULTI",), *commands, ("EXEC",)]
        if len(self._waiting) + len(steps) > WAITING_MAX:  # all or none: what another asks must not end up among these
            raise Refusing("too many calls wait for Redis")
        *queued, answers = await asyncio.gather(*(self.ask(step) for step in steps), return_exceptions=True)
        for answer in (*queued, answers, *(answers if isinstance(answers, list) else ())):
            if isinstance(answer, BaseException):
                raise meant(str(answer)) if isinstance(answer, hiredis.ReplyError) else answer
        found: list[Any] = answers  # type: ignore[assignment]
        return found

    def close(self) -> None:
        self.alive = False
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self.alive:
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    def _look(self) -> None:
        if not self.alive:
            return
        if self._waiting and self._loop.time() - self._waiting[0][1] > CALL_TIMEOUT_S:
            self._transport.abort()
        else:
            self._loop.call_later(LOOK_S, self._look)


MESSAGES: Final = (b"smessage", b"pmessage", b"message")
HEARD_MAX: Final = 1_000  # messages that wait for who listens; then we read no more, and Redis ends a connection 8 MB behind


class Inbox:
    """What several listening connections heard, in order of each, for one reader."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.heard: deque[tuple[bytes, bytes]] = deque()  # (channel, message)
        self.ears: list[Ear] = []
        self._news: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """There is something new, or an ear has gone."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
        if len(self.heard) > HEARD_MAX:
            for ear in self.ears:
                ear.rest()

    async def wait(self, limit_s: float) -> bool:
        """Until there is something; False where `limit_s` have passed without. Raises ConnectionError where an ear has gone."""
        for ear in self.ears:
            ear.go_on()
        if not self.heard:
            self._check()
            self._news = self._loop.create_future()
            late = self._loop.call_later(limit_s, self.ring)
            try:
                await self._news
            finally:
                late.cancel()
                self._news = None
            if not self.heard:
                self._check()
        return bool(self.heard)

    def _check(self) -> None:
        if not all(ear.alive for ear in self.ears):
            raise ConnectionError("a connection that listens was lost")

    def close(self) -> None:
        for ear in self.ears:
            ear.close()


class Ear(Line):
    """One connection that listens: every message goes to the inbox. Answers to its commands come as pushes, one each."""

    def __init__(self, inbox: Inbox) -> None:
        super().__init__()
        self._inbox, self._resting = inbox, False
        inbox.ears.append(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._inbox.ring()

    def _answered(self, answer: Any) -> None:
        if isinstance(answer, list) and answer[0] in MESSAGES:
            self._inbox.heard.append((answer[-2], answer[-1]))
        elif self._waiting:
            super()._answered(answer)
        else:  # sunsubscribe that nobody asked for: the slot has moved
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._inbox.ring()

    def rest(self) -> None:
        if self.alive and not self._resting:
            self._resting = True
            self._transport.pause_reading()

    def go_on(self) -> None:
        if self.alive and self._resting:
            self._resting = False
            self._transport.resume_reading()
