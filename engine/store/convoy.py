"""Short calls of many callers on one connection to Redis, written together and answered in order (pipelining, without the client's pool).

For what is asked thousands of times a second: a three-seat pick costs 29 us of CPU here with 16 callers (72 with one), and 170 to 290 through
the pool (measured on a busy machine). Who asks alone goes at once; what is asked within one turn of the loop is one write. Order among
callers is kept. Every call must bear being sent twice: a lost answer is tried again at once.

Promises: nothing waits longer than CALL_TIMEOUT_S for an answer (the connection is given up then, and whoever waits is told); at most
WAITING_MAX calls wait; a server that is away, loading, full or read-only is `Unavailable`.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections import deque
from typing import Any, Final

import hiredis
from redis import exceptions as fault
from redis.asyncio.connection import SSLConnection, parse_url

from engine.errors import Unavailable
from engine.store.redis import CALL_TIMEOUT_S, Redis, lua

WAITING_MAX: Final = 10_000
CONNECT_TIMEOUT_S: Final = 2.0
LOOK_S: Final = 1.0  # how often somebody looks whether the oldest call waits too long
# what an answer begins with -> what it means to `Redis.ask`; all others are the caller's own fault
MEANT: Final[tuple[tuple[str, type[fault.RedisError]], ...]] = (
    ("NOSCRIPT", fault.NoScriptError),
    ("READONLY", fault.ReadOnlyError),
    ("OOM", fault.OutOfMemoryError),
    ("LOADING", fault.BusyLoadingError),
)


class Script:
    """A Lua script of ours by its digest."""

    __slots__ = ("sha", "text")

    def __init__(self, name: str) -> None:
        self.text = lua(name)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class Line(asyncio.Protocol):
    """One connection: commands go out in the order in which they are given, answers come back in the same order."""

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
            future, _ = self._waiting.popleft()
            if future.done():
                pass  # whoever asked has gone
            elif isinstance(answer, hiredis.ReplyError):
                future.set_exception(_meant(str(answer)))
            else:
                future.set_result(answer)
            answer = self._reader.gets()

    def ask(self, command: tuple[Any, ...]) -> asyncio.Future[Any]:
        """The answer to come, or a `fault.RedisError`. Raises ConnectionError, now or later, where the connection is lost before."""
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

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self.alive:
            self._transport.write(b"".join(unsent))

    def _look(self) -> None:
        if not self.alive:
            return
        if self._waiting and self._loop.time() - self._waiting[0][1] > CALL_TIMEOUT_S:
            self._transport.abort()
        else:
            self._loop.call_later(LOOK_S, self._look)


def _meant(text: str) -> fault.RedisError:
    return next((kind for start, kind in MEANT if text.startswith(start)), fault.ResponseError)(text)


class Convoy:
    """One of a worker and purpose. `name` is what metrics call it."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis, self._name = redis, name
        self._line: Line | None = None
        self._connecting = asyncio.Lock()
        redis.closing.append(self.close)

    async def script(self, script: Script, keys: list[str], *args: Any) -> Any:
        """What the script answers. Raises `Unavailable`."""
        call = ("EVALSHA", script.sha, len(keys), *keys, *args)
        try:
            return await self.call(*call)
        except fault.NoScriptError:  # the server was restarted, or flushed
            await self.call("SCRIPT", "LOAD", script.text)
            return await self.call(*call)

    async def call(self, *command: Any) -> Any:
        """The raw answer of one command. Raises `Unavailable`, or what Redis said."""
        return await self._redis.ask(self._name, lambda: self._once(command))

    def close(self) -> None:
        if self._line is not None:
            self._line.close()

    async def _once(self, command: tuple[Any, ...]) -> Any:
        line = self._line
        if line is None or not line.alive:
            line = await self._connected()
        return await line.ask(command)

    async def _connected(self) -> Line:
        """The connection, made anew where it was lost. Raises OSError, TimeoutError."""
        async with self._connecting:
            if self._line is None or not self._line.alive:
                self._line = await asyncio.wait_for(self._connect(), CONNECT_TIMEOUT_S)
            return self._line

    async def _connect(self) -> Line:
        loop, where = asyncio.get_running_loop(), parse_url(self._redis.settings.redis_url)
        if "path" in where:
            _, line = await loop.create_unix_connection(Line, where["path"])
        else:
            tls = ssl.create_default_context() if where.get("connection_class") is SSLConnection else None
            _, line = await loop.create_connection(Line, where.get("host", "localhost"), where.get("port", 6379), ssl=tls)
        try:
            if where.get("password"):
                who = (where["username"],) if where.get("username") else ()
                await line.ask(("AUTH", *who, where["password"]))
            if where.get("db"):
                await line.ask(("SELECT", where["db"]))
        except BaseException:
            line.close()
            raise
        return line
