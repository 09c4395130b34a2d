"""Fares, promo codes and offers in PostgreSQL: every statement of `fares.sql`, one function each.

`Fares` reads for prices, each in one round trip; `OfferBook` is what the office changes, on one connection inside a transaction, so that the
audit row and the event go with the change. Raise `Unavailable` where the database is away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec

from engine.booking.fares import Quote
from engine.booking.promos import Promo, PromoTerms
from engine.errors import NotFound
from engine.store.desk import DeskPool
from engine.store.postgres import statements


def at(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def ms_of(when: datetime | None) -> int | None:
    return None if when is None else round(when.timestamp() * 1000)


class Fares:
    def __init__(self, pool: DeskPool) -> None:
        self.pool, self._sql = pool, statements("fares")

    async def plan(self, partner_id: str, plan_id: str) -> tuple[Any, int] | None:
        """(body, version); None: there is none."""

        async def read(connection: Any) -> Any:
            return await connection.fetchrow(self._sql["fare_plan"], partner_id, plan_id)

        row = await self.pool.run(partner_id, read)
        return None if row is None else (row["body"], row["version"])

    async def occupancy(self, partner_id: str, trip_no: int, map_version: int) -> int:
        """Permille of the seats, leg by leg."""
        return int(await self.pool.call(self._sql["occupancy"], partner_id, trip_no, map_version))

    async def note_multiplier(self, partner_id: str, trip_no: int, price_id: str, multiplier: int, body: Any) -> bool:
        """False: it is the one that was noted last."""
        return bool(await self.pool.call(self._sql["note_multiplier"], partner_id, trip_no, price_id, multiplier, body))

    async def promo(self, partner_id: str, code: str) -> Promo | None:
        async def read(connection: Any) -> Any:
            return await connection.fetchrow(self._sql["promo"], partner_id, code)

        row = await self.pool.run(partner_id, read)
        return None if row is None else promo_of(row)

    async def quote(self, partner_id: str, quote_id: str, trip_no: int) -> Any | None:
        """The body that was kept, while it is good."""

        async def read(connection: Any) -> Any:
            return await connection.fetchval(self._sql["quote"], quote_id, trip_no)

        return await self.pool.run(partner_id, read)

    async def keep_quote(self, connection: Any, partner_id: str, trip_no: int, quote: Quote, valid_until_ms: int, body: Any) -> None:
        await connection.execute(self._sql["keep_quote"], quote.quote_id, partner_id, trip_no, at(valid_until_ms), quote.multiplier, body)

    async def ancillaries_taken(self, partner_id: str, trip_no: int, codes: Sequence[str]) -> dict[str, int]:
        async def read(connection: Any) -> Any:
            return await connection.fetch(self._sql["ancillaries_taken"], trip_no, list(codes))

        return {row["code"]: row["taken"] for row in await self.pool.run(partner_id, read)} if codes else {}


class NewOffer(msgspec.Struct, frozen=True):
    """A route to be sold, in the order of the statements' arguments."""

    route_id: str
    layout_id: str
    plan_id: str
    open_days: int
    close_s: int
    women_only: list[int]  # seat numbers of the layout


class OfferBook:
    """What the office changes, on one connection. Rows come back as mappings of their columns; None: not there, or the name is taken."""

    def __init__(self, connection: Any) -> None:
        self._run, self._sql = connection, statements("fares")

    @property
    def connection(self) -> Any:
        """For what another book changes in the same transaction."""
        return self._run

    async def fare_plans(self, partner_id: str, after: tuple[str, str], limit: int, *, retired: bool) -> list[Any]:
        return list(await self._run.fetch(self._sql["fare_plans"], partner_id, *after, limit, retired))

    async def fare_plan(self, partner_id: str, plan_id: str) -> Any | None:
        return await self._run.fetchrow(self._sql["fare_plan_for_update"], partner_id, plan_id)

    async def add_fare_plan(self, partner_id: str, plan_id: str, name: str, currency: str, body: Any) -> Any | None:
        with _of_a_partner(partner_id):
            return await self._run.fetchrow(self._sql["add_fare_plan"], partner_id, plan_id, name, currency, body)

    async def change_fare_plan(self, partner_id: str, plan_id: str, name: str, body: Any, retired_at: datetime | None) -> Any:
        return await self._run.fetchrow(self._sql["change_fare_plan"], partner_id, plan_id, name, body, retired_at)

    async def promo_codes(self, partner_id: str, after: tuple[str, str], limit: int, *, retired: bool) -> list[Any]:
        return list(await self._run.fetch(self._sql["promo_codes"], partner_id, *after, limit, retired))

    async def promo_code(self, partner_id: str, code: str) -> Any | None:
        return await self._run.fetchrow(self._sql["promo_code_for_update"], partner_id, code)

    async def add_promo_code(self, partner_id: str, promo: Promo) -> Any | None:
        terms = promo.terms
        valid_to = None if promo.valid_to_ms is None else at(promo.valid_to_ms)
        with _of_a_partner(partner_id):
            return await self._run.fetchrow(
                self._sql["add_promo_code"], partner_id, terms.code, terms.kind, terms.value, promo.currency, terms.min_amount,
                at(promo.valid_from_ms), valid_to, sorted(promo.route_ids), promo.max_uses, promo.max_uses_each,
            )  # fmt: skip

    async def change_promo_code(self, partner_id: str, promo: Promo, retired_at: datetime | None) -> Any:
        valid_to = None if promo.valid_to_ms is None else at(promo.valid_to_ms)
        return await self._run.fetchrow(
            self._sql["change_promo_code"], partner_id, promo.terms.code, promo.terms.min_amount, at(promo.valid_from_ms), valid_to,
            sorted(promo.route_ids), promo.max_uses, promo.max_uses_each, retired_at,
        )  # fmt: skip

    async def offers(self, partner_id: str, after: str, limit: int, *, retired: bool) -> list[Any]:
        return list(await self._run.fetch(self._sql["offers"], partner_id, after, limit, retired))

    async def offer(self, partner_id: str, route_id: str) -> Any | None:
        return await self._run.fetchrow(self._sql["offer_for_update"], route_id, partner_id)

    async def add_offer(self, partner_id: str, new: NewOffer) -> bool:
        """False: the route is offered already."""
        sql = self._sql["add_offer"]
        return await self._run.fetchval(sql, partner_id, *msgspec.structs.astuple(new)) is not None

    async def change_offer(self, partner_id: str, new: NewOffer, retired_at: datetime | None) -> None:
        route_id, *rest = msgspec.structs.astuple(new)
        await self._run.execute(self._sql["change_offer"], route_id, partner_id, *rest, retired_at)

    async def offered_with(self, partner_id: str, plan_id: str) -> str | None:
        """A route that is offered with that fare plan."""
        found: str | None = await self._run.fetchval(self._sql["offered_with"], partner_id, plan_id)
        return found

    async def layout(self, partner_id: str, layout_id: str) -> Any | None:
        """The body of a seat layout."""
        return await self._run.fetchval(self._sql["layout_body"], partner_id, layout_id)

    async def offerable(self, partner_id: str, layout_id: str, plan_id: str) -> tuple[bool, bool]:
        """Whether the operator has that layout, and that fare plan, neither retired."""
        row = await self._run.fetchrow(self._sql["offerable"], partner_id, layout_id, plan_id)
        return row["layout"], row["plan"]

    async def note(self, partner_id: str, actor: str, request_id: str, kind: str, what: str, version: int, before: Any, after: Any) -> None:
        """Audit row and event of the change, in its transaction."""
        await self._run.execute(self._sql["note_change"], partner_id, actor, request_id, kind, what, version, before, after)


@contextlib.contextmanager
def _of_a_partner(partner_id: str) -> Iterator[None]:
    """Raises `NotFound` where there is no such partner."""
    try:
        yield
    except asyncpg.ForeignKeyViolationError as fault:
        raise NotFound(f"no partner {partner_id!r}") from fault


def promo_of(row: Any) -> Promo:
    valid_from_ms = ms_of(row["valid_from"])
    assert valid_from_ms is not None
    return Promo(
        terms=PromoTerms(row["code"], row["kind"], row["value"], row["min_amount"]),
        currency=row["currency"],
        valid_from_ms=valid_from_ms,
        valid_to_ms=ms_of(row["valid_to"]),
        route_ids=frozenset(row["route_ids"]),
        max_uses=row["max_uses"],
        max_uses_each=row["max_uses_each"],
        retired=row["retired_at"] is not None,
    )
