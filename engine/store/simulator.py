"""What the simulated payment providers remember, in PostgreSQL and apart from everything of ours: schema `simulator`, transactions of its own.

Every change is one statement that compares the version it was made from.
"""

from __future__ import annotations

import msgspec

from engine.booking.providers import Memory, Post
from engine.store.desk import DeskPool
from engine.store.postgres import statements


class SimulatorStore:
    """`engine.booking.providers.Memories`."""

    def __init__(self, pool: DeskPool) -> None:
        self._pool, self._sql = pool, statements("simulator")

    async def load(self, provider: str, key: str) -> tuple[Memory, int] | None:
        row = await self._pool.fetchrow(self._sql["load"], provider, key)
        return None if row is None else (msgspec.convert(row["body"], Memory), row["version"])

    async def save(self, provider: str, memory: Memory, version: int, posts: list[Post]) -> bool:
        due, events = [post.due_at_ms for post in posts], [post.event_id for post in posts]
        body = msgspec.to_builtins(memory)
        return bool(await self._pool.call(self._sql["save"], provider, memory.key, body, version, due, events))

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
