"""Buses and devices in PostgreSQL: every statement of `fleet.sql`, one function each.

`Fleet` runs on the pool, or on one connection inside a transaction (`Fleet(connection)`), so that an audit row can go with the change.
Raises `Unavailable` where the database is away, `Conflict` where a name is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import asyncpg

from engine.errors import Conflict, Invalid, NotFound
from engine.office.accounts import BusRow, Change, DeviceRow
from engine.store.postgres import statements

FIRST = "00000000-0000-0000-0000-000000000000"


class Executor(Protocol):
    """`engine.store.postgres.Postgres`, or an asyncpg connection."""

    async def fetch(self, query: str, *args: Any) -> list[Any]: ...

    async def fetchrow(self, query: str, *args: Any) -> Any | None: ...

    async def execute(self, query: str, *args: Any) -> str: ...


def _ms(at: datetime | None) -> int | None:
    return None if at is None else round(at.timestamp() * 1000)


def _at(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _device(row: Any) -> DeviceRow:
    created_at_ms = _ms(row["created_at"])
    assert created_at_ms is not None
    return DeviceRow(
        device_id=row["device_id"],
        partner_id=row["partner_id"],
        kind=row["kind"],
        name=row["name"],
        bus_ids=row["bus_ids"],
        unique_id=row["unique_id"],
        token_sha256=row["token_sha256"],
        previous_sha256=row["previous_sha256"],
        generation=row["generation"],
        previous_until_ms=_ms(row["previous_until"]),
        created_at_ms=created_at_ms,
        rotated_at_ms=_ms(row["rotated_at"]),
        retired_at_ms=_ms(row["retired_at"]),
        seen_at_ms=_ms(row["seen_at"]),
        mqtt_hash=row["mqtt_hash"],
        previous_mqtt_hash=row["previous_mqtt_hash"],
    )


def _bus(row: Any) -> BusRow:
    return BusRow(row["bus_id"], row["partner_id"], row["area"], row["label"], row["plate"], _ms(row["retired_at"]))


class Fleet:
    def __init__(self, executor: Executor) -> None:
        self._run, self._sql = executor, statements("fleet")

    # --- the registry ---

    async def changed(self, since: int) -> Change:
        """Devices and buses of every transaction from the mark `since` on (0: all), and the next mark.

        The mark is taken first: what commits between the reads is read now or next time, never missed.
        """
        mark = (await self._run.fetchrow(self._sql["mark"]))["mark"]  # type: ignore[index]  # a select without from has one row
        buses = [_bus(row) for row in await self._run.fetch(self._sql["changed_buses"], str(since))]
        devices = [_device(row) for row in await self._run.fetch(self._sql["changed_devices"], str(since))]
        return Change(devices, buses, mark)

    async def seen(self, at_ms: dict[str, int]) -> None:
        await self._run.execute(self._sql["seen"], list(at_ms), [_at(ms) for ms in at_ms.values()])

    # --- buses ---

    async def put_buses(self, buses: Sequence[BusRow]) -> list[str]:
        """Ids of the buses written: new ones, and changed ones of the same partner. An id that another partner holds is not among them.
        Raises `NotFound` for a partner that does not exist, `Invalid`."""
        columns = zip(*((b.bus_id, b.partner_id, b.area, b.label, b.plate) for b in buses), strict=True)
        try:
            rows = await self._run.fetch(self._sql["put_buses"], *map(list, columns)) if buses else []
        except asyncpg.CheckViolationError as fault:
            raise Invalid("a bus id has 1 to 64 letters, digits or . _ ~ - (it stands in paths, channels and MQTT topics)") from fault
        except asyncpg.ForeignKeyViolationError as fault:
            raise NotFound(f"no partner {', '.join(sorted({bus.partner_id for bus in buses}))!r}") from fault
        return [row["bus_id"] for row in rows]

    async def buses(self, partner_id: str, *, after: str = "", limit: int = 20, retired: bool = False) -> list[BusRow]:
        return [_bus(row) for row in await self._run.fetch(self._sql["buses"], partner_id, after, limit, retired)]

    async def bus(self, partner_id: str, bus_id: str) -> BusRow | None:
        row = await self._run.fetchrow(self._sql["bus"], bus_id, partner_id)
        return None if row is None else _bus(row)

    async def retire_bus(self, partner_id: str, bus_id: str, at_ms: int) -> BusRow | None:
        """None: the partner has no such bus."""
        row = await self._run.fetchrow(self._sql["retire_bus"], bus_id, partner_id, _at(at_ms))
        return None if row is None else _bus(row)

    async def buses_missing(self, partner_id: str, bus_ids: Sequence[str]) -> list[str]:
        """Those of `bus_ids` that are no working bus of the partner."""
        return [row["bus_id"] for row in await self._run.fetch(self._sql["buses_missing"], list(bus_ids), partner_id)]

    # --- devices ---

    async def insert_devices(self, devices: Sequence[DeviceRow]) -> None:
        """All or none. Raises `Conflict` where a unique_id is taken."""
        if not devices:
            return
        rows = [
            (d.device_id, d.partner_id, d.kind, d.name, ",".join(d.bus_ids), d.unique_id, d.token_sha256, d.mqtt_hash, _at(d.created_at_ms))
            for d in devices
        ]
        try:
            await self._run.execute(self._sql["insert_devices"], *map(list, zip(*rows, strict=True)))
        except asyncpg.UniqueViolationError as fault:
            raise Conflict(f"a device with this unique id exists already: {fault.detail}", constraint=fault.constraint_name) from fault

    async def devices(
        self, partner_id: str, *, after: str = FIRST, limit: int = 20, retired: bool = False, bus_id: str | None = None
    ) -> list[DeviceRow]:
        return [_device(row) for row in await self._run.fetch(self._sql["devices"], partner_id, after, limit, retired, bus_id)]

    async def device(self, partner_id: str, device_id: str) -> DeviceRow | None:
        row = await self._run.fetchrow(self._sql["device"], device_id, partner_id)
        return None if row is None else _device(row)

    async def retire_device(self, partner_id: str, device_id: str, at_ms: int) -> bool:
        """False: the partner has no such device."""
        return await self._run.fetchrow(self._sql["retire_device"], device_id, partner_id, _at(at_ms)) is not None

    async def rotate_device(self, row: DeviceRow, token_sha256: bytes | None, mqtt_hash: str, at_ms: int, until_ms: int) -> bool:
        """The next generation of `row`; its credentials of now stay good until `until_ms`. False: it is no longer what `row` says."""
        sql, key = self._sql["rotate_device"], (row.device_id, row.partner_id, row.generation)
        return await self._run.fetchrow(sql, *key, token_sha256, mqtt_hash, _at(at_ms), _at(until_ms)) is not None
