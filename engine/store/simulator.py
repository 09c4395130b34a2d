"""What the simulated payment providers remember, in PostgreSQL and apart from everything of ours: schema `simulator`, transactions of its own.

Every change is one statement that compares the version it was made from, so a memory that was kept here a while may be tried first: where it
is old, the change is refused and made again from what is stored.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from engine.booking.providers import Memory, Post
from engine.store.desk import DeskPool
from engine.store.postgres import statements

KEPT_MOST: Final = 500  # some hundred payments are under way where as many are made a second as a machine can

_decode = msgspec.msgpack.Decoder(Memory).decode


class SimulatorStore:
    """`engine.booking.providers.Memories`."""

    def __init__(self, pool: DeskPool) -> None:
        self._pool, self._sql = pool, statements("simulator")
        self._kept: OrderedDict[tuple[str, str], tuple[bytes, int]] = OrderedDict()

    async def load(self, provider: str, key: str) -> tuple[Memory, int] | None:
        row = await self._pool.fetchrow(self._sql["load"], provider, key)
        return None if row is None else (msgspec.convert(row["body"], Memory), row["version"])

    def recall(self, provider: str, key: str) -> tuple[Memory, int] | None:
        kept = self._kept.pop((provider, key), None)
        return None if kept is None else (_decode(kept[0]), kept[1])

    async def save(self, provider: str, memory: Memory, version: int, posts: list[Post]) -> bool:
        body = msgspec.to_builtins(memory)
        if posts:
            due, events = [post.due_at_ms for post in posts], [post.event_id for post in posts]
            stored = await self._pool.call(self._sql["post"], provider, memory.key, body, version, due, events)
        elif version:
            stored = await self._pool.call(self._sql["change"], provider, memory.key, body, version)
        else:
            stored = await self._pool.call(self._sql["make"], provider, memory.key, body)
        if stored is None:
            return False
        self._kept[provider, memory.key] = (msgspec.msgpack.encode(memory), stored)  # 570 bytes; as dicts 2.2 KB
        if len(self._kept) > KEPT_MOST:
            self._kept.popitem(last=False)
        return True

    async def due(self, provider: str, now_ms: int, limit: int) -> list[tuple[int, Post]]:
        rows = await self._pool.fetch(self._sql["due"], provider, now_ms, limit)
        found = []
        for row in sorted(rows, key=lambda row: int(row["delivery_id"])):
            key, _, event_id = row["body"].partition(" ")
            found.append((row["delivery_id"], Post(row["due_at_ms"], key, event_id)))
        return found

    async def sent(self, delivery_ids: list[int]) -> None:
        if delivery_ids:
            await self._pool.execute(self._sql["sent"], delivery_ids)
