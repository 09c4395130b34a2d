"""What was said of incidents, to whom, and who follows them, in PostgreSQL: every statement of `notices.sql`, one function each.

`NoticeBook` works on one connection inside a transaction. Raises `Unavailable` where the database is away.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import asyncpg
import msgspec

from engine.errors import NotFound
from engine.store.office import consume
from engine.store.postgres import statements

_SQL = statements("notices")


class Word(msgspec.Struct, frozen=True):
    """What was said of an incident so far: its events, those that passengers heard of, and the severity said last."""

    seq: int
    told: int
    severity: str


class Passenger(msgspec.Struct, frozen=True):
    """A booking on a trip. `holder` as in booking.booking ('customer:ID' is somebody who signs in); the ride as stop sequences."""

    ref: str
    holder: str
    from_seq: int
    to_seq: int


class Following(msgspec.Struct, frozen=True):
    severity: str  # and worse
    kinds: list[str]  # none: every kind


class NoticeBook:
    def __init__(self, connection: Any) -> None:
        self._run = connection

    async def cursor(self, reader: str) -> str | None:
        found: str | None = await self._run.fetchval(_SQL["cursor"], reader)
        return found

    async def keep_cursor(self, reader: str, cursor: str) -> None:
        await self._run.execute(_SQL["keep_cursor"], reader, cursor)

    async def is_new(self, reader: str, event_id: str) -> bool:
        """True the first time."""
        return await consume(self._run, reader, event_id)

    async def word(self, incident_id: str, partner_id: str, trip: str | None) -> Word:
        row = await self._run.fetchrow(_SQL["word"], incident_id, partner_id, trip)
        return Word(row["seq"], row["told"], row["severity"])

    async def said(self, incident_id: str, word: Word) -> None:
        await self._run.execute(_SQL["said"], incident_id, word.seq, word.told, word.severity)

    async def told_on_trip(self, trip: str) -> int:
        return int(await self._run.fetchval(_SQL["told_on_trip"], trip))

    async def say(self, partner_id: str, topic: str, kind: str, aggregate: str, version: int, body: Any) -> None:
        """Raises `ValueError` for a body that no column can hold (U+0000 in somebody's note), and for a version that there is already."""
        try:
            await self._run.execute(_SQL["say"], partner_id, topic, kind, aggregate, version, body)
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as fault:
            raise ValueError(f"this event cannot be stored: {fault}") from fault

    async def passengers(self, trip: str, limit: int) -> list[Passenger]:
        return [Passenger(**dict(row)) for row in await self._run.fetch(_SQL["passengers"], trip, limit)]

    async def followers(self, partner_id: str, kind: str, severity: str, limit: int) -> list[str]:
        return [row["subject"] for row in await self._run.fetch(_SQL["followers"], partner_id, kind, severity, limit)]

    async def sweep(self, older: timedelta, limit: int) -> int:
        return int(await self._run.fetchval(_SQL["sweep"], older, limit))

    async def following(self, partner_id: str, subject: str) -> Following | None:
        row = await self._run.fetchrow(_SQL["following"], partner_id, subject)
        return None if row is None else Following(row["severity"], row["kinds"])

    async def follow(self, partner_id: str, subject: str, wanted: Following) -> None:
        """Raises `NotFound` where there is no such operator."""
        try:
            await self._run.execute(_SQL["follow"], partner_id, subject, wanted.severity, wanted.kinds)
        except asyncpg.ForeignKeyViolationError as fault:
            raise NotFound(f"no partner {partner_id!r}") from fault

    async def unfollow(self, partner_id: str, subject: str) -> None:
        await self._run.execute(_SQL["unfollow"], partner_id, subject)
