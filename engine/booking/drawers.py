"""What stands on a counter: devices with tokens of their own, the operator's word on sales whose seat is gone, and cash drawers.

A cash session begins with a float and ends with a count; what is missing or too much is booked (`money.count_drawer`), so that the ledger and
the drawer agree afterwards. A sale that is uploaded after its session was counted belongs to the next one, where its money is found as too
little by as much as it was too much before. A device's token is kept as its SHA-256 and shown once.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from engine.booking.refusals import Refused
from engine.booking.till import Operator
from engine.clock import Clock
from engine.errors import NotFound, Unauthenticated
from engine.live.frames import rfc3339
from engine.store.desk import ALL, Answer, DeskPool, Key
from engine.store.pos import Known, Pos, device_of_token, ms

TOKEN_PREFIX: Final = "tp_pos_"  # noqa: S105  # tells a device's token from an access token


class Drawers:
    """All of one worker."""

    def __init__(self, pool: DeskPool, clock: Clock) -> None:
        self._pool, self._clock = pool, clock

    # --- devices and their operator's policy ---

    async def device_of(self, token: str, request_id: str) -> Operator:
        """Who a device's token names; asked of the database each time, so that a retired one is refused at once. Raises `Unauthenticated`."""
        found = await self._pool.run(ALL, lambda connection: device_of_token(connection, hashlib.sha256(token.encode()).digest()))
        if found is None:
            raise Unauthenticated("this device token is none of ours, or the device was retired")
        partner_id, device_id = found
        return Operator(partner_id=partner_id, actor=f"device:{device_id}", request_id=request_id, device_id=device_id)

    async def put_device(self, who: Operator, device_id: str, name: str) -> dict[str, Any]:
        """A device with a new token (the old one is good no more): {"deviceId", "name", "token"}."""
        token = TOKEN_PREFIX + self._clock.token(24)

        async def work(connection: Any) -> None:
            store = _store(connection, who)
            version = await store.put_device(device_id, name, hashlib.sha256(token.encode()).digest())
            await store.note("DEVICE_CHANGED", "device", device_id, version, {"deviceId": device_id, "name": name})

        await self._pool.run(who.partner_id, work)
        return {"deviceId": device_id, "name": name, "token": token}

    async def retire_device(self, who: Operator, device_id: str) -> None:
        """Raises `NotFound`."""

        async def work(connection: Any) -> None:
            store = _store(connection, who)
            version = await store.retire_device(device_id)
            if version is None:
                raise NotFound(f"no device {device_id[:80]!r}")
            await store.note("DEVICE_CHANGED", "device", device_id, version, {"deviceId": device_id, "retired": True})

        await self._pool.run(who.partner_id, work)

    async def put_policy(self, who: Operator, on_conflict: str) -> dict[str, Any]:
        """REFUND: the money back; OFFER: other seats first."""

        async def work(connection: Any) -> None:
            store = _store(connection, who)
            version = await store.put_policy(on_conflict)
            await store.note("POLICY_CHANGED", "policy", "", version, {"onConflict": on_conflict})

        await self._pool.run(who.partner_id, work)
        return {"onConflict": on_conflict}

    async def sales(self, who: Operator, device_id: str, after: int, result: str | None, limit: int) -> list[Known]:
        """A device's sales by number."""
        found: list[Known] = await self._pool.run(
            who.partner_id, lambda connection: _store(connection, who).sale_page(device_id, after, result, limit)
        )
        return found

    # --- drawers ---

    async def open(self, who: Operator, key: Key | None, device_id: str, currency: str, opened_with: int) -> Answer:
        """A drawer with a float in it. Raises `Refused` SESSION_OPEN, `NotFound`."""
        session_id = self._clock.uuid7()

        async def work(connection: Any) -> tuple[int, Any]:
            store = _store(connection, who)
            if not await store.lock_device(device_id, name_it=who.device_id is None):
                raise NotFound(f"no device {device_id[:80]!r}")
            await store.open_session(session_id, device_id, currency, opened_with)
            float_ = {"amount": opened_with, "currency": currency}
            await store.note("SESSION_OPENED", "session", session_id, 1, {"deviceId": device_id, "float": float_})
            return 201, await self._shown(store, session_id)

        return await self._pool.once(key, who.partner_id, work)

    async def close(self, who: Operator, key: Key | None, session_id: str, counted: int) -> Answer:
        """Counted, emptied, the difference booked. Raises `Refused` SESSION_CLOSED, `NotFound`."""

        async def work(connection: Any) -> tuple[int, Any]:
            store = _store(connection, who)
            row = await self._session(store, who, session_id)
            await store.lock_device(row["device_id"], name_it=False)  # no sync books into a drawer that is being counted
            row = await store.session(session_id)
            if row["closed_at"] is not None:
                raise Refused("SESSION_CLOSED", f"session {session_id} was closed at {rfc3339(ms(row['closed_at']))} by {row['closed_by']}")
            done = await store.close_session(session_id, row["device_id"], row["currency"], counted)
            said = {"deviceId": row["device_id"], "expected": done["expected"], "counted": counted, "difference": done["difference"]}
            await store.note("SESSION_CLOSED", "session", session_id, 2, said)
            return 200, await self._shown(store, session_id)

        return await self._pool.once(key, who.partner_id, work)

    async def show(self, who: Operator, session_id: str) -> dict[str, Any]:
        """A session; of an open one what should be in the drawer now. Raises `NotFound`."""

        async def read(connection: Any) -> dict[str, Any]:
            store = _store(connection, who)
            await self._session(store, who, session_id)
            return await self._shown(store, session_id)

        found: dict[str, Any] = await self._pool.run(who.partner_id, read)
        return found

    async def _session(self, store: Pos, who: Operator, session_id: str) -> Any:
        row = await store.session(session_id)
        if row is None or (who.device_id is not None and row["device_id"] != who.device_id):
            raise NotFound(f"no cash session {session_id[:80]!r}")
        return row

    async def _shown(self, store: Pos, session_id: str) -> dict[str, Any]:
        row = await store.session(session_id)
        is_open = row["closed_at"] is None

        def money(amount: int | None) -> dict[str, Any] | None:
            return None if amount is None else {"amount": amount, "currency": row["currency"]}

        expected = await store.drawer(row["device_id"], row["currency"]) if is_open else row["expected"]
        return {
            "id": row["id"],
            "deviceId": row["device_id"],
            "status": "OPEN" if is_open else "CLOSED",
            "float": money(row["opened_with"]),
            "expected": money(expected),
            "counted": money(row["counted"]),
            "difference": money(row["difference"]),
            "openedAt": rfc3339(ms(row["opened_at"])),
            "openedBy": row["opened_by"],
            "closedAt": None if is_open else rfc3339(ms(row["closed_at"])),
            "closedBy": row["closed_by"],
        }


def _store(connection: Any, who: Operator) -> Pos:
    return Pos(connection, who.partner_id, who.actor, who.request_id)
