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
from redis import exceptions as fault

from engine.errors import Unavailable

CALL_TIMEOUT_S: Final = 5.0  # longest answer to a call; a LOAD of 20,000 states took 60 ms
LOOK_S: Final = 1.0  # how often somebody looks whether the oldest call waits too long
WAITING_MAX: Final = 10_000

Command = tuple[Any, ...]


# what an answer begins with -> the fault that it means, of redis-py's so that there is one table of faults; all others are a plain ResponseError
MEANT: Final[tuple[tuple[str, type[fault.RedisError]], ...]] = (
    ("NOSCRIPT", fault.NoScriptError),
    ("READONLY", fault.ReadOnlyError),
    ("OOM", fault.OutOfMemoryError),
    ("LOADING", fault.BusyLoadingError),
    ("ERR max number of clients", fault.ConnectionError),  # said before anything was asked, and the connection ends
    ("UNBLOCKED", fault.ConnectionError),  # a blocking call, of a server that becomes a replica
    ("NOAUTH", fault.AuthenticationError),
    ("WRONGPASS", fault.AuthenticationError),
)
MOVES: Final[dict[str, type[fault.AskError]]] = {"MOVED ": fault.MovedError, "ASK ": fault.AskError}


def meant(text: str) -> fault.RedisError:
    """The fault that an error of Redis stands for."""
    for start, kind in MOVES.items():
        if text.startswith(start):
            return kind(text.removeprefix(start))
    return next((kind for start, kind in MEANT if text.startswith(start)), fault.ResponseError)(text)


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
        """The answer to come, or what Redis said. Raises ConnectionError, now or later, where the connection is lost before, and `Unavailable`
        where too many wait."""
        if not self.alive:  # lost since it was given to us: nobody would ever answer
            raise ConnectionError("the connection was lost")
        if len(self._waiting) >= WAITING_MAX:
            raise Unavailable("too many calls wait for Redis", retry_after_s=1)
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
            raise Unavailable("too many calls wait for Redis", retry_after_s=1)
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
