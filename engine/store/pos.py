"""What a till does in PostgreSQL: the statements of `pos.sql`, one function each, on a connection inside the caller's transaction.

Whoever calls has said for which partner the transaction works, and locks in this order: device, trips, bookings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec

from engine.booking.pos import Lease, Sale, Tariff, Wanted, bits
from engine.booking.refusals import Refused
from engine.store.postgres import statements


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """A sale as it stands in the record. `booking_id` None: no money was taken for it."""

    seq: int
    fingerprint: bytes
    trip_no: int
    lease_id: str | None
    seat: str
    start: int
    end: int
    amount: int
    currency: str
    method: str
    passenger: dict[str, Any]
    void: bool
    result: str
    code: str | None
    booking_id: str | None
    reference: str | None
    given: str | None
    booking_state: str | None = None

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.seq, self.seat, bits(self.start, self.end), self.void)


class LeaseRow(msgspec.Struct, frozen=True):
    """A lease and its state: HELD, or over (EXPIRED, RELEASED, CANCELLED)."""

    lease: Lease
    trip_no: int
    state: str


class Pos:
    """All of it on one connection."""

    def __init__(self, connection: Any, partner_id: str, actor: str, request_id: str) -> None:
        self._run, self._sql = connection, statements("pos")
        self.partner_id, self.actor, self.request_id = partner_id, actor, request_id

    # --- devices ---

    async def lock_device(self, device_id: str, *, name_it: bool) -> bool:
        """Whether there is such a device in use, now locked; `name_it`: there is from now on."""
        row = await self._run.fetchrow(self._sql["lock_device"], self.partner_id, device_id)
        if row is None and name_it:
            await self._run.execute(self._sql["name_device"], self.partner_id, device_id)
            row = await self._run.fetchrow(self._sql["lock_device"], self.partner_id, device_id)
        return row is not None and not row["retired"]

    async def put_device(self, device_id: str, name: str, token_sha256: bytes) -> int:
        """Its version."""
        return int(await self._run.fetchval(self._sql["put_device"], self.partner_id, device_id, name, token_sha256))

    async def retire_device(self, device_id: str) -> int | None:
        """Its version; None: there is none in use."""
        version = await self._run.fetchval(self._sql["retire_device"], self.partner_id, device_id)
        return None if version is None else int(version)

    async def note(self, kind: str, of: str, name: str, version: int, body: dict[str, Any]) -> None:
        """Audit row and event (topic `pos`) of a device, a session or a policy."""
        args = (self.partner_id, self.actor, self.request_id, kind, of, name, version, body, body)
        await self._run.execute(self._sql["record"], *args)

    async def changed_device(self, device_id: str) -> int:
        """The device's next version."""
        return int(await self._run.fetchval(self._sql["changed_device"], self.partner_id, device_id))

    async def offers(self) -> bool:
        """Whether the operator offers other seats where one is gone."""
        return bool(await self._run.fetchval(self._sql["policy"], self.partner_id) == "OFFER")

    async def put_policy(self, on_conflict: str) -> int:
        return int(await self._run.fetchval(self._sql["put_policy"], self.partner_id, on_conflict))

    # --- leases ---

    async def hold(
        self,
        lease_id: str,
        trip_no: int,
        map_version: int,
        seats: Sequence[int],
        start: int,
        end: int,
        prices: Sequence[int],
        currency: str,
        device_id: str,
        ttl_s: float,
    ) -> Any:
        """`booking.hold` as it answers."""
        return await self._run.fetchval(
            self._sql["hold"], self.partner_id, lease_id, trip_no, map_version, list(seats), start, end, list(prices), currency,
            f"device:{device_id}", timedelta(seconds=ttl_s), self.actor, self.request_id,
        )  # fmt: skip

    async def put_lease(
        self, lease_id: str, device_id: str, trip_no: int, labels: Sequence[str], start: int, end: int, tariff: Tariff
    ) -> None:
        body = msgspec.to_builtins(tariff)
        await self._run.execute(self._sql["put_lease"], lease_id, self.partner_id, device_id, trip_no, list(labels), start, end, body)

    async def lease(self, lease_id: str) -> Any:
        """The row of `pos.sql`; None: the operator has none."""
        return await self._run.fetchrow(self._sql["lease"], lease_id, self.partner_id)

    async def leases_of(self, device_id: str, trips: Iterable[int]) -> list[LeaseRow]:
        rows = await self._run.fetch(self._sql["leases_of"], self.partner_id, device_id, sorted(trips))
        return [
            LeaseRow(
                Lease(
                    row["lease_id"], bits(row["start"], row["end"]), ms(row["leased_at"]), ms(row["ends_at"]),
                    msgspec.convert(row["tariff"], Tariff),
                ),
                row["trip_no"],
                row["state"],
            )
            for row in rows
        ]  # fmt: skip

    async def release(self, lease_id: str) -> Any:
        """`booking.release` as it answers; the lease ends now."""
        said = await self._run.fetchval(self._sql["release"], lease_id, self.actor, self.request_id)
        await self._run.execute(self._sql["end_lease"], lease_id)
        return said

    async def extend(self, lease_id: str, ttl_s: float, most_s: float) -> Any:
        """`pos.extend` as it answers."""
        ttl, most = timedelta(seconds=ttl_s), timedelta(seconds=most_s)
        return await self._run.fetchval(self._sql["extend"], lease_id, ttl, most, self.actor, self.request_id)

    # --- seats ---

    async def lock_trips(self, trips: Iterable[int]) -> None:
        for trip_no in sorted(set(trips)):
            await self._run.execute(self._sql["lock_trip"], trip_no)

    async def lock_bookings(self, leads: Iterable[str]) -> dict[str, str]:
        """State of each of these bookings (of a lease: of its first row), locked."""
        rows = await self._run.fetch(self._sql["lock_bookings"], sorted(set(leads)))
        return {row["booking_id"]: row["state"] for row in rows}

    async def trip_now(self, trip_no: int) -> tuple[str, int]:
        """(status, map version)."""
        row = await self._run.fetchrow(self._sql["trip_now"], trip_no)
        return row["status"], row["map_version"]

    async def claims(self, trip_no: int, map_version: int, seats: Sequence[int]) -> dict[int, dict[str, int]]:
        """Seat -> lead -> its legs as bits."""
        found: dict[int, dict[str, int]] = {seat: {} for seat in seats}
        for row in await self._run.fetch(self._sql["claims"], trip_no, map_version, list(seats)):
            of = found[row["seat"]]
            of[row["lead"]] = of.get(row["lead"], 0) | bits(row["start"], row["end"])
        return found

    async def free_seats(self, trip_no: int, start: int, end: int) -> set[int]:
        return {row["seat"] for row in await self._run.fetch(self._sql["free_seats"], trip_no, start, end)}

    async def keep(self, lease_id: str, map_version: int, seat: int, left: Sequence[tuple[int, int]]) -> None:
        """A lease has these legs of a seat left, and no others."""
        starts, ends = [a for a, _ in left], [b for _, b in left]
        await self._run.execute(self._sql["keep"], lease_id, map_version, seat, starts, ends, self.actor, self.request_id)

    # --- sales ---

    async def sales(self, device_id: str, seqs: Iterable[int]) -> dict[int, Known]:
        rows = await self._run.fetch(self._sql["sales"], self.partner_id, device_id, sorted(seqs))
        return {row["seq"]: _known(row) for row in rows}

    async def sales_of(self, leases: Iterable[str], seats: Iterable[str]) -> list[Known]:
        """Recorded sales of these leases and seats that the fold decides."""
        return [_known(row) for row in await self._run.fetch(self._sql["sales_of"], sorted(leases), sorted(seats))]

    async def put(
        self, booking_id: str, device_id: str, map_version: int, seat: int | None, sale: Known, reference: str, surname: str
    ) -> bool:
        """The booking of a sale, to be confirmed or to be owed. False: the reference is in use."""
        return bool(
            await self._run.fetchval(
                self._sql["put"], booking_id, self.partner_id, device_id, sale.trip_no, map_version, seat, sale.start, sale.end, sale.amount,
                sale.currency, reference, sale.passenger, surname,
            )
        )  # fmt: skip

    async def claim(self, booking_id: str) -> bool:
        return bool(await self._run.fetchval(self._sql["claim"], booking_id))

    async def drop(self, booking_id: str) -> None:
        await self._run.execute(self._sql["drop"], booking_id)

    async def confirm(self, booking_id: str, payment_id: str, drawer: str) -> None:
        await self._run.execute(self._sql["confirm"], booking_id, payment_id, drawer, self.actor, self.request_id)

    async def owe(self, booking_id: str, payment_id: str, drawer: str, why: str) -> None:
        await self._run.execute(self._sql["owe"], booking_id, payment_id, drawer, why, self.actor, self.request_id)

    async def undo(self, booking_id: str, why: str) -> None:
        await self._run.execute(self._sql["undo"], booking_id, why, self.actor, self.request_id)

    async def pay_out(self, booking_id: str, drawer: str) -> int:
        """How much left the drawer, minor units."""
        return int(await self._run.fetchval(self._sql["pay_out"], booking_id, drawer, self.actor, self.request_id))

    async def put_sale(self, device_id: str, sale: Known, sold_at_ms: int) -> None:
        await self._run.execute(
            self._sql["put_sale"], self.partner_id, device_id, sale.seq, sale.fingerprint, sale.trip_no, sale.lease_id, sale.seat, sale.start,
            sale.end, datetime.fromtimestamp(sold_at_ms / 1000, UTC), sale.amount, sale.currency, sale.method, sale.passenger, sale.void,
            sale.result, sale.code, sale.booking_id, sale.reference, sale.given,
        )  # fmt: skip

    async def change_sale(self, device_id: str, sale: Known) -> None:
        await self._run.execute(
            self._sql["change_sale"], self.partner_id, device_id, sale.seq, sale.void, sale.result, sale.code, sale.booking_id, sale.reference,
            sale.given,
        )  # fmt: skip

    async def sale_page(self, device_id: str, after: int, result: str | None, limit: int) -> list[Known]:
        return [_known(row) for row in await self._run.fetch(self._sql["sale_page"], self.partner_id, device_id, after, result, limit)]

    # --- drawers ---

    async def open_session(self, session_id: str, device_id: str, currency: str, opened_with: int) -> datetime:
        """When. Raises `Refused` SESSION_OPEN."""
        try:
            at: datetime = await self._run.fetchval(
                self._sql["open_session"], session_id, self.partner_id, device_id, currency, self.actor, opened_with
            )
        except asyncpg.ExclusionViolationError as fault:
            raise Refused("SESSION_OPEN", f"the drawer of {device_id} is open; close that session first") from fault
        await self._run.execute(self._sql["open_drawer"], self.partner_id, device_id, currency, opened_with, self.request_id)
        return at

    async def session(self, session_id: str) -> Any:
        return await self._run.fetchrow(self._sql["session"], session_id, self.partner_id)

    async def drawer(self, device_id: str, currency: str) -> int:
        """What should be in it, minor units."""
        return int(await self._run.fetchval(self._sql["drawer"], self.partner_id, device_id, currency))

    async def close_session(self, session_id: str, device_id: str, currency: str, counted: int) -> Any:
        said: Mapping[str, int] = await self._run.fetchval(
            self._sql["count_drawer"], self.partner_id, device_id, currency, counted, self.request_id
        )
        return await self._run.fetchrow(self._sql["close_session"], session_id, self.actor, counted, said["expected"], said["difference"])


async def device_of_token(connection: Any, token_sha256: bytes) -> tuple[str, str] | None:
    """(partner, device); the transaction works for all partners."""
    row = await connection.fetchrow(statements("pos")["device_of_token"], token_sha256)
    return None if row is None else (row["partner_id"], row["device_id"])


def ms(when: datetime) -> int:
    return round(when.timestamp() * 1000)


def fresh(sale: Sale, trip_no: int, legs: tuple[int, int]) -> Known:
    """A sale that has just arrived, nothing decided."""
    return Known(
        seq=sale.seq,
        fingerprint=sale.fingerprint(),
        trip_no=trip_no,
        lease_id=None,
        seat=sale.seat,
        start=legs[0],
        end=legs[1],
        amount=sale.amount,
        currency=sale.currency,
        method=sale.method,
        passenger=msgspec.to_builtins(sale.passenger),
        void=sale.void,
        result="",
        code=None,
        booking_id=None,
        reference=None,
        given=None,
    )


def _known(row: Any) -> Known:
    legs = row["legs"]
    return Known(
        seq=row["seq"],
        fingerprint=row["fingerprint"],
        trip_no=row["trip_no"],
        lease_id=None if row["lease_id"] is None else str(row["lease_id"]),
        seat=row["seat"],
        start=legs.lower,
        end=legs.upper,
        amount=row["amount"],
        currency=row["currency"],
        method=row["method"],
        passenger=row["passenger"],
        void=row["void"],
        result=row["result"],
        code=row["code"],
        booking_id=None if row["booking_id"] is None else str(row["booking_id"]),
        reference=row["reference"],
        given=row["given"],
        booking_state=row["booking_state"],
    )
