"""The office in PostgreSQL: every statement of `office.sql`, one function each.

On the desk's pool, but without its bell: the relay would wake itself. Raises `Unavailable` where the database is away.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from engine.store.desk import ALL, DeskPool
from engine.store.postgres import statements

LAST: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"
NEWEST: Final = 2**63 - 1

After = Callable[[Any], Awaitable[None]]


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """One row of the outbox that waits to be said. `held`: a dead letter stands before it."""

    topic: str
    aggregate: str
    version: int
    partner_id: str
    kind: str
    body: dict[str, Any]
    at_ms: int
    held: bool

    @property
    def event_id(self) -> str:
        return f"{self.topic}:{self.aggregate}:{self.version}"

    @property
    def chain(self) -> tuple[str, str]:
        """What is said in order, and held back together."""
        return self.topic, self.aggregate


class Lag(msgspec.Struct, frozen=True):
    """How a partition stands. `oldest_s` None: nothing waits."""

    part: int
    oldest_s: float | None
    held: int


class DeadLetter(msgspec.Struct, frozen=True):
    dead_letter_id: str
    partner_id: str
    topic: str
    aggregate: str
    version: int
    kind: str
    sink: str
    attempts: int
    error: str
    state: str  # HELD | REPLAYED | DELIVERED
    died_at_ms: int
    replays: int
    replayed_at_ms: int | None
    replayed_by: str | None
    behind: int  # events of its aggregate that wait for it


class AuditRow(msgspec.Struct, frozen=True):
    audit_id: int
    partner_id: str
    actor: str
    request_id: str
    at_ms: int
    action: str
    entity: str  # KIND:UUID
    diff: Any


class AuditFilter(msgspec.Struct, frozen=True, kw_only=True):
    """None: any. `entity_id` goes with its kind."""

    entity_kind: str | None = None
    entity_id: str | None = None
    actor: str | None = None
    action: str | None = None
    from_ms: int | None = None
    to_ms: int | None = None


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _when(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)


class Office:
    def __init__(self, pool: DeskPool) -> None:
        self._pool, self._sql = pool, statements("office")

    async def _run(self, partner: str, work: Callable[[Any], Awaitable[Any]]) -> Any:
        """One transaction of that tenant which rings no bell."""
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute(self._pool.sql["tenant"], partner)
            return await work(connection)

    async def _value(self, partner: str, name: str, *args: Any) -> Any:
        return await self._run(partner, lambda connection: connection.fetchval(self._sql[name], *args))

    async def _rows(self, partner: str, name: str, *args: Any) -> list[Any]:
        return list(await self._run(partner, lambda connection: connection.fetch(self._sql[name], *args)))

    # --- the relay ---

    async def waiting(self, part: int, limit: int) -> list[Waiting]:
        """Chains with something to say, in the order in which to say it."""
        rows = await self._pool.fetch(self._sql["waiting"], part, limit)
        return [Waiting(r[0], r[1], r[2], r[3], r[4], r[5], round(r[6].timestamp() * 1000), r[7]) for r in rows]

    async def delivered(self, part: int, said: Sequence[Waiting], after: After | None = None) -> int:
        """Marks events as said, `after(connection)` in the same transaction; how many were not yet."""

        columns = [row.topic for row in said], [row.aggregate for row in said], [row.version for row in said]

        async def work(connection: Any) -> int:
            if after is not None:
                await after(connection)
            return int(await connection.fetchval(self._sql["delivered"], part, *columns))

        if after is not None:
            return int(await self._run(ALL, work))
        async with self._pool.connection() as connection:
            return await work(connection)

    async def park(self, part: int, chain: tuple[str, str]) -> None:
        await self._value(ALL, "park", part, *chain)

    async def bury(self, part: int, row: Waiting, *, ids: tuple[str, str], sink: str, attempts: int, error: str, request: str) -> bool:
        """`ids`: of the dead letter and of its alert. False: it has been said meanwhile."""
        dead, alert = ids
        return bool(
            await self._value(ALL, "bury", dead, part, row.topic, row.aggregate, row.version, sink, attempts, error, alert, request)
        )

    async def lag(self) -> list[Lag]:
        return [Lag(row["part"], row["oldest_s"], row["held"]) for row in await self._rows(ALL, "lag")]

    # --- dead letters ---

    async def dead_letters(self, partner: str, *, before: str = LAST, state: str | None = None, limit: int = 20) -> list[DeadLetter]:
        return [
            DeadLetter(
                dead_letter_id=row["dead_letter_id"],
                partner_id=row["partner_id"],
                topic=row["topic"],
                aggregate=row["aggregate"],
                version=row["version"],
                kind=row["kind"],
                sink=row["sink"],
                attempts=row["attempts"],
                error=row["error"],
                state=row["state"],
                died_at_ms=_ms(row["died_at"]),
                replays=row["replays"],
                replayed_at_ms=None if row["replayed_at"] is None else _ms(row["replayed_at"]),
                replayed_by=row["replayed_by"],
                behind=row["behind"],
            )
            for row in await self._rows(partner, "dead_letters", before, state, limit)
        ]

    async def replay(self, connection: Any, dead_letter_id: str, actor: str, request: str) -> str | None:
        """In the caller's transaction: the state before (only HELD changes), None: this tenant has no such dead letter."""
        state: str | None = await connection.fetchval(self._sql["replay"], dead_letter_id, actor, request)
        return state

    async def record(
        self, connection: Any, partner: str, actor: str, request: str, topic: str, kind: str, aggregate: str, body: Any
    ) -> None:
        """In the caller's transaction: audit row and outbox row of a change that stands alone."""
        await connection.execute(self._sql["record"], partner, actor, request, topic, kind, aggregate, 1, body)

    async def is_partner(self, partner: str) -> bool:
        return bool(await self._value(ALL, "partner", partner))

    # --- the audit ---

    async def audit(self, partner: str, wanted: AuditFilter, *, before: int = NEWEST, limit: int = 20) -> list[AuditRow]:
        """Newest first, from below the id `before`."""

        async def work(connection: Any) -> list[Any]:
            low, high = 0, before
            if wanted.from_ms is not None:
                low = await connection.fetchval(self._sql["audit_near"], _when(wanted.from_ms)) or 0
            if wanted.to_ms is not None:  # a minute is the slack of `audit_near`, downwards: so another two upwards
                near = await connection.fetchval(self._sql["audit_near"], _when(wanted.to_ms + 120_000))
                high = min(high, near if near is not None else high)
            name = "audit" if wanted.entity_id is None else "audit_of_entity"
            return list(
                await connection.fetch(
                    self._sql[name],
                    high,
                    low,
                    wanted.entity_kind,
                    wanted.entity_id,
                    wanted.actor,
                    wanted.action,
                    _when(wanted.from_ms),
                    _when(wanted.to_ms),
                    limit,
                )
            )

        rows = await self._run(partner, work)
        return [AuditRow(r[0], r[1], r[2], r[3], _ms(r[4]), r[5], f"{r[6]}:{r[7]}", r[8]) for r in rows]

    # --- sweeps ---

    async def overdue(self, after: datetime, limit: int) -> list[tuple[str, datetime]]:
        """Ids of bookings whose time ended after that instant, and when it did."""
        return [(row["booking_id"], row["expires_at"]) for row in await self._rows(ALL, "overdue", after, limit)]

    async def expire(self, booking_ids: Sequence[str], request: str) -> set[str]:
        """Ids of the rows that went, other rows of the same bookings among them. Rings the bell: their seats are free."""
        gone = await self._pool.run(ALL, lambda connection: connection.fetchval(self._sql["expire"], sorted(booking_ids), request))
        return set(gone or ())

    async def sweep(self, *, outbox: timedelta, inbox: timedelta, limit: int) -> dict[str, int]:
        """One slice of each table that is kept for a while; how many rows went of each."""

        async def keys(connection: Any) -> int:
            await connection.execute(self._sql["bitmaps"])
            return int(await connection.fetchval(self._sql["sweep_keys"], limit))

        return {
            "outbox": await self._value(ALL, "sweep_outbox", outbox, limit),
            "inbox": await self._value(ALL, "sweep_inbox", inbox, limit),
            "idempotency": await self._run(ALL, keys),
        }

    # --- whose ---

    async def holder(self, reference: str) -> tuple[str, list[str], list[str]] | None:
        """(partner, holders, booking ids) of a reference; None: there is none."""
        rows = await self._rows(ALL, "holder", reference)
        return (rows[0]["partner_id"], rows[0]["holders"], rows[0]["ids"]) if rows else None


async def consume(connection: Any, consumer: str, event_id: str) -> bool:
    """True the first time that `consumer` meets this event: call it in the transaction of the effect, and do nothing where it says False."""
    return bool(await connection.fetchval(statements("office")["consume"], consumer, event_id))
