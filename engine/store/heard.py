"""The stream of incidents that the office reads: what the relay said, in order, with whose it is. Bounded; at least once.

A reader keeps its cursor with its effects in PostgreSQL and knows what it did by the event's id, so what comes twice has one effect.
"""

from __future__ import annotations

from typing import Final

import msgspec

from engine.events import IncidentEvent
from engine.store.area import id_order
from engine.store.redis import Redis

STREAM: Final = "incidents"
KEPT: Final = 20_000  # entries, about: hours of a large fleet; past it the oldest are passed over, which the reader notices
BLOCK_MS: Final = 1_000


class Heard(msgspec.Struct, frozen=True, array_like=True):
    """One saying of an incident."""

    area: str
    partner_id: str
    event: IncidentEvent


Entry = tuple[str, bytes]  # (stream id, msgpack Heard)


class IncidentStream:
    """Raises `Unavailable` where Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._encode = msgspec.msgpack.Encoder().encode

    async def add(self, heard: Heard) -> None:
        await self._redis.rare("heard", "XADD", STREAM, "MAXLEN", "~", KEPT, "*", "h", self._encode(heard))

    async def read(self, cursor: str, count: int, block_ms: int = BLOCK_MS) -> list[Entry]:
        """Entries after `cursor`, oldest first; empty after `block_ms` (0: at once) without any."""
        found = await self._redis.entries("heard", STREAM, cursor, count, block_ms)
        return [(at.decode(), fields[1]) for at, fields in found]

    async def lost(self, cursor: str) -> bool:
        """Whether entries after `cursor` have gone unread: the stream was cut behind a reader that was away too long."""
        found = await self._redis.rare("heard", "XRANGE", STREAM, "-", "+", "COUNT", 1)
        held = await self._redis.rare("heard", "XLEN", STREAM)
        return bool(found) and held >= KEPT and id_order(found[0][0].decode()) > id_order(cursor) > (0, 0)
