"""Payments, refunds and the ledger in PostgreSQL: every statement of `payments.sql`, one function each.

What they call writes answer, audit row and event with the effect (migrations/0024_payments.sql), so each is one round trip and may be asked
again. Functions of a key answer {"status": "BEGUN" | "DONE" | "REFUSED", ...}.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from engine.booking.payments import Fact
from engine.live.frames import rfc3339
from engine.store.desk import ALL, DeskPool, Key
from engine.store.postgres import statements


class DuePayment(msgspec.Struct, frozen=True):
    payment_id: str
    provider: str
    state: str
    over: bool  # its deadline has passed
    amount: int
    currency: str
    scenario: list[str]
    reference: str | None


class DayLine(msgspec.Struct, frozen=True):
    """What one kind of transaction did to a partner's account on one day (UTC)."""

    day: str
    kind: str
    count: int
    net: int
    commission: int


class Line(msgspec.Struct, frozen=True):
    txn: int
    at: datetime
    kind: str
    net: int
    commission: int
    payment_id: str | None
    reference: str | None


class Settlement(msgspec.Struct, frozen=True):
    settlement_id: str
    currency: str
    from_at: datetime
    to_at: datetime
    amount: int
    carried: int
    closed_at: datetime


def said_as_json(facts: Sequence[Fact]) -> list[dict[str, Any]]:
    return [
        {
            "event": fact.event_id, "ref": fact.provider_ref, "kind": fact.kind, "amount": fact.amount, "currency": fact.currency,
            "part": fact.part, "reason": fact.reason, "at": rfc3339(fact.at_ms),
        }
        for fact in facts
    ]  # fmt: skip


class Payments:
    def __init__(self, pool: DeskPool) -> None:
        self.pool, self._sql = pool, statements("payments")

    async def initiate(
        self,
        key: Key | None,
        run_s: float | None,
        payment_id: str,
        reference: str,
        provider: str,
        scenario: Sequence[str],
        limit_s: float,
        most_s: float,
        who: dict[str, Any],
        actor: str,
        request_id: str,
    ) -> Any:
        """`run_s` None: no provider is asked now, this is all of the request."""
        run = None if run_s is None else timedelta(seconds=run_s)
        return await self.pool.call(
            self._sql["initiate"], key and key.key, key and key.fingerprint, run, payment_id, reference, provider,
            list(scenario), timedelta(seconds=limit_s), timedelta(seconds=most_s), who, actor, request_id,
        )  # fmt: skip

    async def begin_confirm(self, key: Key | None, run_s: float, payment_id: str, who: dict[str, Any], actor: str, request_id: str) -> Any:
        return await self.pool.call(
            self._sql["begin_confirm"],
            key and key.key,
            key and key.fingerprint,
            timedelta(seconds=run_s),
            payment_id,
            who,
            actor,
            request_id,
        )

    async def let_go(self, key: Key | None) -> None:
        if key is not None:
            await self.pool.call(self._sql["let_go"], key.key)

    async def settle(
        self,
        payment_id: str,
        facts: Sequence[Fact],
        offer_s: float,
        actor: str,
        request_id: str,
        *,
        provider: str | None = None,
        give_up: bool = False,
        key: Key | None = None,
    ) -> Any:
        """{"status", "body", "refunds"}, or {"status": "NOT_FOUND"}. `key`: of the request that asked; it gets its answer."""
        return await self.pool.call(
            self._sql["settle"], payment_id, provider, said_as_json(facts), give_up, timedelta(seconds=offer_s), key and key.key, actor,
            request_id,
        )  # fmt: skip

    async def prepared(self, payment_id: str, facts: Sequence[Fact], reference: str) -> Any:
        """What a provider said when it prepared a charge, none of it about money; as `settle` answers."""
        return await self.pool.call(self._sql["prepared"], payment_id, said_as_json(facts), reference)

    async def hear(self, provider: str, reference: str, facts: Sequence[Fact]) -> int:
        return int(await self.pool.call(self._sql["hear"], provider, reference, said_as_json(facts)))

    async def attach(self) -> list[str]:
        return [str(one) for one in await self.pool.call(self._sql["attach"]) or ()]

    async def shown(self, payment_id: str, who: dict[str, Any]) -> Any:
        """None: there is none, or it is not theirs."""

        async def read(connection: Any) -> Any:
            return await connection.fetchval(self._sql["shown"], payment_id, who)

        return await self.pool.run(ALL, read)

    async def offered(self, payment_id: str, who: dict[str, Any]) -> list[tuple[str, int, int, list[int]]]:
        """(booking id, trip number, map version, seats) of the rows of a payment's booking; nothing: not theirs."""

        async def read(connection: Any) -> Any:
            return await connection.fetch(self._sql["offered"], payment_id, who)

        return [(row["booking_id"], row["trip_no"], row["map_version"], row["seats"]) for row in await self.pool.run(ALL, read)]

    async def accept_seats(
        self, key: Key | None, payment_id: str, who: dict[str, Any], seats: list[dict[str, Any]], actor: str, request_id: str
    ) -> Any:
        return await self.pool.call(
            self._sql["accept_seats"], key and key.key, key and key.fingerprint, payment_id, who, seats, actor, request_id
        )

    async def decline_seats(self, payment_id: str, who: dict[str, Any], actor: str, request_id: str) -> Any:
        return await self.pool.call(self._sql["decline_seats"], payment_id, who, actor, request_id)

    # --- refunds ---

    async def ask_refund(
        self,
        key: Key | None,
        run_s: float,
        payment_id: str | None,
        reference: str | None,
        refund_id: str,
        amount: int,
        currency: str,
        reason: str,
        who: dict[str, Any],
        actor: str,
        request_id: str,
    ) -> Any:
        return await self.pool.call(
            self._sql["ask_refund"], key and key.key, key and key.fingerprint, timedelta(seconds=run_s), payment_id, reference, refund_id,
            amount, currency, reason, who, actor, request_id,
        )  # fmt: skip

    async def plan_refund(self, connection: Any, lead_id: str, amount: int | None, reason: str, actor: str, request_id: str) -> list[str]:
        """Inside the caller's transaction."""
        planned = await connection.fetchval(self._sql["plan_refund"], lead_id, amount, reason, actor, request_id)
        return [str(one) for one in planned or ()]

    async def start_refund(self, refund_id: str, run_s: float) -> Any:
        return await self.pool.call(self._sql["start_refund"], refund_id, timedelta(seconds=run_s))

    async def refund_failed(
        self, refund_id: str, wait_s: float | None, fault: str, actor: str, request_id: str, *, covered: bool = False
    ) -> None:
        wait = None if wait_s is None else timedelta(seconds=wait_s)
        await self.pool.call(self._sql["refund_failed"], refund_id, wait, fault, covered, actor, request_id)

    async def shown_refund(self, refund_id: str) -> Any:
        async def read(connection: Any) -> Any:
            return await connection.fetchval(self._sql["shown_refund"], refund_id)

        return await self.pool.run(ALL, read)

    # --- what waits ---

    async def due_payments(self, limit: int) -> list[DuePayment]:
        async def read(connection: Any) -> Any:
            return await connection.fetch(self._sql["due_payments"], limit)

        return [DuePayment(**row) for row in await self.pool.run(ALL, read)]

    async def due_refunds(self, limit: int) -> list[str]:
        async def read(connection: Any) -> Any:
            return await connection.fetch(self._sql["due_refunds"], limit)

        return [row["refund_id"] for row in await self.pool.run(ALL, read)]

    # --- settlements ---

    async def currencies(self, partner_id: str) -> list[str]:
        return [row["currency"] for row in await self._read(partner_id, "currencies", partner_id)]

    async def balance(self, partner_id: str, account: str, currency: str, before: datetime) -> int:
        async def read(connection: Any) -> Any:
            return await connection.fetchval(self._sql["balance"], partner_id, account, currency, before)

        return int(await self.pool.run(partner_id, read))

    async def days(self, partner_id: str, currency: str, start: datetime, end: datetime) -> list[DayLine]:
        rows = await self._read(partner_id, "statement", partner_id, currency, start, end)
        return [DayLine(row["day"].isoformat(), row["kind"], row["count"], row["net"], row["commission"]) for row in rows]

    async def lines(self, partner_id: str, currency: str, start: datetime, end: datetime, after: int, limit: int) -> list[Line]:
        rows = await self._read(partner_id, "statement_lines", partner_id, currency, start, end, after, limit)
        return [Line(r["txn"], r["at"], r["kind"], r["net"], r["commission"], r["payment_id"], r["reference"]) for r in rows]

    async def settlements(self, partner_id: str, start: datetime, end: datetime) -> list[Settlement]:
        rows = await self._read(partner_id, "settlements", partner_id, start, end)
        return [
            Settlement(r["settlement_id"], r["currency"], r["from_at"], r["to_at"], r["amount"], r["carried"], r["closed_at"]) for r in rows
        ]

    async def close_period(
        self, connection: Any, settlement_id: str, partner_id: str, currency: str, to_at: datetime, actor: str, request_id: str
    ) -> Any:
        """Inside the caller's transaction (of `DeskPool.once`)."""
        return await connection.fetchval(self._sql["close_period"], settlement_id, partner_id, currency, to_at, actor, request_id)

    async def unsound(self) -> list[tuple[str, str, str]]:
        """(rule, entity, what was found) of every invariant that does not hold."""
        rows = await self._read(ALL, "unsound")
        return [(row["rule"], row["entity"], row["said"]) for row in rows]

    async def _read(self, partner_id: str, statement: str, *args: Any) -> list[Any]:
        async def read(connection: Any) -> Any:
            return await connection.fetch(self._sql[statement], *args)

        return list(await self.pool.run(partner_id, read))
