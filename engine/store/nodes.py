"""Where a key lives, and the connections to there: one Redis, or a cluster whose slots may move.

REDIS_URL names one server, or several of a cluster (comma separated; the first one's user, password and TLS are everybody's). All calls of a
process to one server share one connection; what blocks has connections of its own, used again.

Promises: who asks for a connection waits no longer than CONNECT_TIMEOUT_S; a server that says that a key has moved is believed, and after a
fault the cluster is asked again who holds what.
"""

from __future__ import annotations

import asyncio
import ssl
from binascii import crc_hqx
from collections.abc import Callable
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from engine.errors import Invalid
from engine.store.line import Command, Elsewhere, Line, Rejected

CONNECT_TIMEOUT_S: Final = 2.0
SLOTS: Final = 16_384
LEARN_S: Final = 0.2  # the cluster is asked no oftener than this who holds what
WAITERS_MAX: Final = 512  # connections that may block: one XREAD an owned area and reader

L = TypeVar("L", bound=Line)


def slot_of(key: str) -> int:
    """The slot of a key: of what stands in its first braces, if anything does."""
    start = key.find("{") + 1
    if start:
        end = key.find("}", start)
        if end > start:
            key = key[start:end]
    return crc_hqx(key.encode(), 0) % SLOTS


class Nodes:
    """The servers behind REDIS_URL. `cluster`: it is one even if only one address is given."""

    def __init__(self, redis_url: str, *, cluster: bool = False) -> None:
        urls = [urlsplit(url if "://" in url else f"redis://{url}") for url in (part.strip() for part in redis_url.split(",")) if url]
        if not urls or any(url.scheme not in ("redis", "rediss", "unix") for url in urls):
            raise Invalid("REDIS_URL is no address of Redis: redis://host:6379/0, rediss:// with TLS, or unix:///path")
        first = urls[0]
        self.cluster = cluster or len(urls) > 1
        self._seeds = [url.path if url.scheme == "unix" else f"{url.hostname or 'localhost'}:{url.port or 6379}" for url in urls]
        self._user, self._password = unquote(first.username or ""), unquote(first.password or "")
        named = first.path.strip("/") if first.scheme != "unix" else ""
        self._database = int((parse_qs(first.query).get("db") or [named or "0"])[0])
        self._tls = first.scheme == "rediss"
        self._slots: list[str] = []  # slot -> its server; empty: not known yet
        self._learned_s = -LEARN_S
        self._doubted = self.cluster
        self._lines: dict[str, Line] = {}
        self._idle: dict[str, list[Line]] = {}  # connections for what blocks, between two uses
        self._blocking = 0
        self._locks: dict[str, asyncio.Lock] = {}
        self._closed = False

    def close(self) -> None:
        self._closed = True
        for line in (*self._lines.values(), *(line for idle in self._idle.values() for line in idle)):
            line.close()

    # --- where ---

    def place(self, key: str) -> str:
        """The server of a key, as far as we know."""
        return self._slots[slot_of(key)] if self._slots else self._seeds[0]

    def places(self) -> list[str]:
        """All servers that hold keys."""
        return sorted(set(self._slots)) or self._seeds[:1]

    def doubt(self) -> None:
        """A connection was lost or could not be made: in a cluster another server may hold the keys now."""
        self._doubted = self.cluster

    def moved(self, told: Elsewhere) -> None:
        """A server said where a slot is now; there may be more of them."""
        if self._slots:
            self._slots[told.slot] = told.where
        self._doubted = True

    async def _learn(self) -> None:
        """Ask anybody who holds what. Raises OSError, TimeoutError."""
        async with self._locks.setdefault("", asyncio.Lock()):
            now_s = asyncio.get_running_loop().time()
            if not self._doubted or (self._slots and now_s - self._learned_s < LEARN_S):
                return
            broken: Exception = ConnectionError("no server of the cluster answers")
            for place in dict.fromkeys((*self._slots, *self._seeds)):
                try:
                    async with asyncio.timeout(CONNECT_TIMEOUT_S):
                        found = await (await self._connected(place)).ask(("CLUSTER", "SLOTS"))
                except (OSError, TimeoutError) as fault:
                    broken = fault
                    continue
                except Rejected as refused:
                    raise ConnectionError(f"{place} is no server of a cluster: {refused}") from refused
                slots = [""] * SLOTS
                for first, last, master, *_ in found:
                    host = (master[0] or b"").decode() or place.rpartition(":")[0]
                    slots[first : last + 1] = [f"{host}:{master[1]}"] * (last - first + 1)
                if all(slots):
                    self._slots, self._doubted, self._learned_s = slots, False, now_s
                    return
                broken = ConnectionError("the cluster has slots that nobody holds")
            raise broken

    # --- connections ---

    def ready(self, key: str) -> Line | None:
        """The connection for a key, if there is one."""
        line = self._lines.get(self.place(key))
        return line if line is not None and line.alive and not self._doubted else None

    async def reach(self, key: str) -> Line:
        """The same, made where there is none. Raises OSError, TimeoutError."""
        if self._doubted:
            await self._learn()
        return await self._connected(self.place(key))

    async def asking(self, told: Elsewhere, command: Command | list[Command]) -> Any:
        """A call about a key that is on its way to another server."""
        line = await self._connected(told.where)
        line.ask(("ASKING",)).add_done_callback(lambda future: future.cancelled() or future.exception())
        return await (line.ask(command) if isinstance(command, tuple) else line.together(command))

    async def alone(self, key: str, command: Command) -> Any:
        """A call that may block, on a connection of its own. Raises OSError, TimeoutError, `Rejected`."""
        if self._doubted:
            await self._learn()
        place = self.place(key)
        idle = self._idle.setdefault(place, [])
        while idle and not idle[-1].alive:
            idle.pop()
        if not idle and self._blocking >= WAITERS_MAX:
            raise ConnectionError(f"{WAITERS_MAX} calls wait for Redis already")
        self._blocking += 1
        line = None
        try:
            line = idle.pop() if idle else await self.connect(place, Line)
            answer = await line.ask(command)
        except Rejected:
            idle.append(line)  # type: ignore[arg-type]  # it was asked
            raise
        except BaseException:  # its answer is still to come: nobody may have this connection after us
            if line is not None:
                line.close()
            raise
        finally:
            self._blocking -= 1
        idle.append(line)
        return answer

    async def _connected(self, place: str) -> Line:
        line = self._lines.get(place)
        if line is not None and line.alive:
            return line
        async with self._locks.setdefault(place, asyncio.Lock()):
            line = self._lines.get(place)
            if line is None or not line.alive:
                line = self._lines[place] = await self.connect(place, Line)
            return line

    async def connect(self, place: str, make: Callable[[], L]) -> L:
        """A new connection, known to the server. Raises OSError, TimeoutError."""
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
                if self._database:
                    await line.ask(("SELECT", self._database))
            except Rejected as refused:
                line.close()
                raise ConnectionError(f"Redis refuses us: {refused}") from refused
            except BaseException:
                line.close()
                raise
        return line
