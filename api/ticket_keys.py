"""`timepoint key` and `timepoint ticket`: the keys that sign tickets, and verifying a ticket with public material alone."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import msgspec

from engine.booking import tickets
from engine.booking.catalogue import Catalogue
from engine.booking.issuing import Issuer
from engine.booking.scans import MEANINGS
from engine.booking.tickets import KeyFile
from engine.clock import Clock
from engine.errors import Invalid
from engine.live.frames import rfc3339
from engine.settings import Settings
from engine.store.desk import DeskPool

FILE_MAX = 16_777_216  # bytes of a list of keys or revocations


async def keys(settings: Settings, clock: Clock, secret: str, *, rotate: bool) -> KeyFile:
    """All keys, as `GET /v1/tickets/keys` answers; `rotate`: with a new one that signs from now on."""
    pool = await DeskPool.open(settings, clock)
    try:
        issuer = Issuer(pool, Catalogue(pool, 10), secret_key=secret, alg=settings.ticket_alg, clock=clock)
        if rotate:
            await issuer.keys()
            await issuer.rotate()
        return await issuer.published()
    finally:
        await pool.close()


def verified(qr: str, clock: Clock, *, keys: Path, trip_id: str | None, at: str | None, revoked: Path | None) -> dict[str, object]:
    """What a ticket is worth by its bytes, a clock and lists from files: no database, no settings, no network. Raises `Invalid`."""
    revocations = tickets.read_revocations(_read(revoked)) if revoked is not None else {}
    now_s = clock.now_ms() // 1000 if at is None else _seconds(at)
    verdict = tickets.verify(qr, tickets.read_keys(_read(keys)), now_s, trip_id=trip_id, revocations=revocations)
    said: dict[str, object] = {"result": verdict.result, "meaning": MEANINGS[verdict.result]}
    if verdict.payload is not None and verdict.result not in (tickets.FORGED, tickets.UNKNOWN_KEY):
        facts = msgspec.structs.asdict(verdict.payload)
        said |= {
            "ticketId": facts["ticket_id"],
            "version": facts["version"],
            "keyId": facts["key_id"],
            "seatNumber": facts["seat"],
            "fromPlace": facts["from_place"],
            "toPlace": facts["to_place"],
            "validFrom": rfc3339(facts["valid_from_s"] * 1000),
            "validTo": rfc3339(facts["valid_to_s"] * 1000),
        }
    return said


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > FILE_MAX:
            raise Invalid(f"{path} is larger than {FILE_MAX} bytes")
        return path.read_bytes()
    except OSError as fault:
        raise Invalid(f"{path} cannot be read: {fault.strerror}") from fault


def _seconds(at: str) -> int:
    """UTC seconds of RFC 3339 text with an offset, or of a number of milliseconds."""
    if at.isascii() and at.isdigit():
        return int(at) // 1000
    try:
        when = datetime.fromisoformat(at)
    except ValueError as fault:
        raise Invalid(f"--at reads like 2026-11-21T08:00:00Z, or milliseconds since 1970; not {at[:40]!r}") from fault
    if when.tzinfo is None:
        raise Invalid(f"--at {at} needs an offset: {at}Z or {at}+01:00")
    return int(when.timestamp())
