"""Links that show a trip, in PostgreSQL: every statement of `shares.sql`, one function each. Raises `Unavailable` where the database is away."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.store.desk import ALL, DeskPool
from engine.store.postgres import statements


class NewLink(msgspec.Struct, frozen=True):
    """A link as it is made. Hashes are SHA-256, 32 bytes."""

    link_id: str
    token_sha256: bytes
    maker_sha256: bytes
    partner_id: str
    trip_id: str  # public id of the trip instance
    from_seq: int | None  # stop sequences of the ride; None: not said
    to_seq: int | None
    made_at_ms: int
    expires_at_ms: int


class Link(msgspec.Struct, frozen=True):
    """A link as whoever has its token may see it."""

    trip_id: str
    from_seq: int | None
    to_seq: int | None
    expires_at_ms: int
    ended: bool  # by its maker


class Shares:
    def __init__(self, pool: DeskPool) -> None:
        self._pool, self._sql = pool, statements("shares")

    async def make(self, link: NewLink, actor: str, request_id: str) -> None:
        async def work(connection: Any) -> None:
            await connection.execute(self._sql["make"], *msgspec.structs.astuple(link), actor, request_id)

        await self._pool.run(link.partner_id, work)

    async def link(self, token_sha256: bytes) -> Link | None:
        """None: nobody made one, or it has been over for long."""

        async def read(connection: Any) -> Any:
            return await connection.fetchrow(self._sql["link"], token_sha256)

        row = await self._pool.run(ALL, read)
        if row is None:
            return None
        expires_at_ms = round(row["expires_at"].timestamp() * 1000)
        return Link(row["trip_id"], row["from_seq"], row["to_seq"], expires_at_ms, row["ended_at"] is not None)

    async def finish(self, token_sha256: bytes, maker_sha256: bytes, at_ms: int, actor: str, request_id: str) -> bool:
        """False: that maker has no such link."""

        async def work(connection: Any) -> Any:
            return await connection.fetchval(self._sql["finish"], token_sha256, maker_sha256, at_ms, actor, request_id)

        return bool(await self._pool.run(ALL, work))
