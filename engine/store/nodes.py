"""Where a key lives, and the connections to there: one Redis, or a cluster whose slots may move.

REDIS_URL names one server, or several of a cluster (comma separated; the first one's user, password and TLS are everybody's). `client` is
redis-py's own, for what is asked rarely, and knows the slots of a cluster. What is asked often goes over one connection of ours to each
server (`line.py`); what blocks has such connections of its own, used again.

Promises: who asks for a connection waits no longer than CONNECT_TIMEOUT_S; a server that says that a key has moved is believed, and after a
fault the cluster is asked again who holds what.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final, TypeVar

from redis import asyncio as redis_py
from redis import exceptions as fault
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

from engine.errors import Invalid
from engine.store.line import CALL_TIMEOUT_S, Command, Line

CONNECT_TIMEOUT_S: Final = 2.0
LEARN_S: Final = 0.2  # the cluster is asked no oftener than this who holds what
POOL_MAX: Final = 16  # connections of the client for rare calls
WAITERS_MAX: Final = 512  # connections that may block, in use and kept: one XREAD an owned area and reader

L = TypeVar("L", bound=Line)


class Nodes:
    """The servers behind REDIS_URL. `cluster`: it is one even if only one address is given."""

    def __init__(self, redis_url: str, *, cluster: bool = False) -> None:
        try:
            found = [parse_url(url if "://" in url else f"redis://{url}") for url in (part.strip() for part in redis_url.split(",")) if url]
            first = found[0]
        except (ValueError, IndexError) as wrong:
            raise Invalid("REDIS_URL is no address of Redis: redis://host:6379/0, rediss:// with TLS, or unix:///path") from wrong
        addresses = [(str(each.get("host", "localhost")), int(each.get("port", 6379))) for each in found]
        self._server = str(first.get("path") or "{}:{}".format(*addresses[0]))
        self._user, self._password, self._database = first.get("username"), first.get("password"), int(first.get("db", 0))
        self._tls = first.get("connection_class") is SSLConnection
        self.cluster = cluster or len(found) > 1
        limits: dict[str, Any] = {
            "socket_timeout": CALL_TIMEOUT_S,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "retry": Retry(NoBackoff(), 0),
        }
        self.client: Any
        if self.cluster:
            who: dict[str, Any] = {"username": self._user, "password": self._password, "ssl": self._tls, "max_connections": POOL_MAX}
            self.client = RedisCluster(startup_nodes=[ClusterNode(*address) for address in addresses], **who, **limits)
        else:
            pool = redis_py.BlockingConnectionPool.from_url(redis_url, max_connections=POOL_MAX, timeout=CALL_TIMEOUT_S, **limits)
            self.client = redis_py.Redis(connection_pool=pool)
        self._learned_s = -LEARN_S
        self._doubted = self.cluster
        self._learning = asyncio.Lock()
        self._lines: dict[str, Line] = {}
        self._connecting: dict[str, asyncio.Lock] = {}
        self._idle: dict[str, list[Line]] = {}  # connections for what blocks, between two uses
        self._blocking = 0  # in use
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        for line in (*self._lines.values(), *(line for idle in self._idle.values() for line in idle)):
            line.close()
        await self.client.aclose()
        if not self.cluster:
            await self.client.connection_pool.disconnect()

    # --- where ---

    def place(self, key: str) -> str:
        """The server of a key, as far as we know."""
        return str(self.client.nodes_manager.slots_cache[key_slot(key.encode())][0].name) if self.cluster else self._server

    async def where(self, key: str) -> str:
        """The same, asked for where we cannot be sure. Raises as `reach`."""
        if self._doubted:
            async with self._learning:
                now_s = asyncio.get_running_loop().time()
                if self._doubted and now_s - self._learned_s >= LEARN_S:
                    await (self.client.nodes_manager.initialize() if self.client.nodes_manager.slots_cache else self.client.initialize())
                    self._doubted, self._learned_s = False, now_s
        return self.place(key)

    def doubt(self) -> None:
        """A connection was lost or could not be made: in a cluster another server may hold the keys now."""
        self._doubted = self.cluster

    async def moved(self, told: fault.MovedError) -> None:
        """A server said where a slot is now."""
        if not self.cluster:
            raise Invalid("Redis is a cluster: set REDIS_CLUSTER=1, or name several of its servers in REDIS_URL") from told
        await self.client.nodes_manager.move_slot(told)

    def refused(self, key: str) -> None:
        """A server that only reads was a master once: its connection is given up, so that the next one finds who is."""
        line = self._lines.get(self.place(key))
        if line is not None:
            line.close()
        self.doubt()

    # --- connections ---

    def ready(self, key: str) -> Line | None:
        """The connection for a key, if there is one."""
        if self._doubted:
            return None
        line = self._lines.get(self.place(key))
        return line if line is not None and line.alive else None

    async def reach(self, key: str) -> Line:
        """The same, made where there is none. Raises OSError, TimeoutError, or a fault of redis-py."""
        return await self._connected(await self.where(key))

    async def asking(self, told: fault.AskError) -> Line:
        """The connection for the very next call, about a key that is on its way to another server. Raises as `reach`."""
        line = await self._connected(f"{told.host}:{told.port}")
        line.ask(("ASKING",)).add_done_callback(lambda future: future.cancelled() or future.exception())
        return line

    async def alone(self, key: str, command: Command) -> Any:
        """A call that may block, on a connection of its own. Raises as `reach`, and what Redis said."""
        place = await self.where(key)
        idle = self._idle.setdefault(place, [])
        while idle and not idle[-1].alive:
            idle.pop()
        if self._blocking >= WAITERS_MAX:
            raise ConnectionError(f"{WAITERS_MAX} calls wait for Redis already")
        self._blocking += 1
        line: Line | None = None
        asked: asyncio.Future[Any] | None = None
        try:
            line = idle.pop() if idle else await self.connect(place, Line)
            asked = line.ask(command)
            return await asked
        finally:
            self._blocking -= 1
            if line is not None:
                answered = asked is not None and asked.done() and not asked.cancelled() and line.alive
                if answered and len(idle) + self._blocking < WAITERS_MAX:
                    idle.append(line)
                else:  # its answer may still be to come: nobody may have this connection after us
                    line.close()

    async def _connected(self, place: str) -> Line:
        line = self._lines.get(place)
        if line is not None and line.alive:
            return line
        async with self._connecting.setdefault(place, asyncio.Lock()):
            line = self._lines.get(place)
            if line is None or not line.alive:
                line = self._lines[place] = await self.connect(place, Line)
            return line

    async def connect(self, place: str, make: Callable[[], L]) -> L:
        """A new connection, known to the server. Raises as `reach`."""
        if self._closed:
            raise ConnectionError("closed")
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            if place.startswith("/"):
                _, line = await loop.create_unix_connection(make, place)
            else:
                host, _, port = place.rpartition(":")
                tls = ssl.create_default_context() if self._tls else None
                _, line = await loop.create_connection(make, host, int(port), ssl=tls)
            try:
                if self._password:
                    await line.ask(("AUTH", *((self._user,) if self._user else ()), self._password))
                if self._database and not self.cluster:
                    await line.ask(("SELECT", self._database))
            except BaseException:
                line.close()
                raise
        return line
