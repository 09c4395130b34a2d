"""`timepoint device`: buses and device credentials from the command line, and those of the demo.

The same functions as POST /v1/admin/devices, straight on the database; running workers take the change over within 5 s.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from engine.clock import Clock
from engine.errors import Conflict, Invalid
from engine.office.accounts import TOKEN, BusRow, NewDevice, create_devices, rotate_device, token_hash
from engine.settings import Settings
from engine.store import network
from engine.store.fleet import FIRST, Fleet
from engine.store.postgres import Postgres

PAGE = 1_000


async def partner_of(settings: Settings, feed_id: str) -> str | None:
    """The operator of a feed; None: there is no such feed."""
    postgres = await Postgres.connect(settings)
    try:
        return next((row.partner_id for row in await network.feeds(postgres) if row.feed_id == feed_id), None)
    finally:
        await postgres.close()


async def create(
    settings: Settings, clock: Clock, secret: str, *, partner: str, feed_id: str, bus_ids: list[str], kind: str, name: str
) -> dict[str, Any]:
    """Makes buses that do not exist yet and one device for all of them. Its credentials are shown this once."""
    postgres = await Postgres.connect(settings)
    try:
        fleet = Fleet(postgres)
        await _buses(fleet, partner, feed_id, bus_ids)
        issued = (await create_devices(fleet, clock, secret, partner, [NewDevice(bus_ids, kind, name)]))[0]
        return {"deviceId": issued.device_id, "kind": issued.kind, "busIds": issued.bus_ids, "token": issued.token, "secret": issued.secret}
    finally:
        await postgres.close()


async def listed(settings: Settings, *, partner: str) -> list[dict[str, Any]]:
    """Every device of a partner; no credentials."""
    postgres = await Postgres.connect(settings)
    try:
        fleet, after, found = Fleet(postgres), FIRST, []
        while rows := await fleet.devices(partner, after=after, limit=PAGE):
            found += [{"deviceId": row.device_id, "kind": row.kind, "busIds": row.bus_ids, "name": row.name} for row in rows]
            after = rows[-1].device_id
        return found
    finally:
        await postgres.close()


async def rotate(settings: Settings, clock: Clock, secret: str, *, partner: str, device_id: str, grace_s: int) -> dict[str, Any]:
    """New credentials; the old ones stay good for `grace_s`."""
    postgres = await Postgres.connect(settings)
    try:
        issued = await rotate_device(Fleet(postgres), clock, secret, partner, device_id, grace_s=grace_s)
        return {"deviceId": issued.device_id, "token": issued.token, "secret": issued.secret, "previousUntilMs": issued.previous_until_ms}
    finally:
        await postgres.close()


async def retire(settings: Settings, clock: Clock, *, partner: str, device_id: str) -> bool:
    """False: there is no such device."""
    postgres = await Postgres.connect(settings)
    try:
        return await Fleet(postgres).retire_device(partner, device_id, clock.now_ms())
    finally:
        await postgres.close()


async def demo(settings: Settings, clock: Clock, secret: str, *, partner: str, feed_id: str, buses: Path, out: Path) -> int:
    """One device for each bus that `buses` lists (ids, or objects with `busId` and `label` or `name`); tokens that `out` holds and that still
    are good stay. Writes `out` as {busId: token}, mode 0600. Answers how many were made.
    """
    labels = _listed_buses(buses)
    known = _tokens(out)
    postgres = await Postgres.connect(settings)
    try:
        fleet = Fleet(postgres)
        await _buses(fleet, partner, feed_id, list(labels), labels)
        good = await _good_digests(fleet, partner)
        tokens = {bus_id: token for bus_id, token in known.items() if bus_id in labels and token_hash(token) in good}
        missing = [bus_id for bus_id in labels if bus_id not in tokens]
        for issued in await create_devices(
            fleet, clock, secret, partner, [NewDevice([bus_id], TOKEN, labels[bus_id]) for bus_id in missing]
        ):
            assert issued.token is not None
            tokens[issued.bus_ids[0]] = issued.token
    finally:
        await postgres.close()
    _write_private(out, json.dumps(dict(sorted(tokens.items())), indent=1))
    return len(missing)


async def _buses(fleet: Fleet, partner: str, feed_id: str, bus_ids: list[str], labels: dict[str, str] | None = None) -> None:
    rows = [BusRow(bus_id, partner, feed_id, (labels or {}).get(bus_id, ""), None) for bus_id in bus_ids]
    refused = sorted(set(bus_ids) - set(await fleet.put_buses(rows)))
    if refused:
        raise Conflict(f"these bus ids belong to another partner: {', '.join(refused[:10])}")


async def _good_digests(fleet: Fleet, partner: str) -> set[bytes]:
    found: set[bytes] = set()
    after = FIRST
    while rows := await fleet.devices(partner, after=after, limit=PAGE):
        found |= {row.token_sha256 for row in rows if row.token_sha256 is not None}
        after = rows[-1].device_id
    return found


def _listed_buses(path: Path) -> dict[str, str]:
    """bus id -> label. Raises `Invalid` for another form."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        rows = [{"busId": row} if isinstance(row, str) else row for row in listed]
        return {str(row["busId"]): str(row.get("label") or row.get("name") or "") for row in rows}
    except (OSError, ValueError, TypeError, KeyError) as fault:
        raise Invalid(f"{path}: not a list of bus ids: {fault}") from fault


def _tokens(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(bus_id): str(token) for bus_id, token in known.items()} if isinstance(known, dict) else {}


def _write_private(path: Path, text: str) -> None:
    """Readable by its owner alone from its first byte on, and whole or not at all."""
    beside = path.with_name(path.name + ".new")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    beside.replace(path)
