"""The issuer: keys of tickets, the tickets of a booking as people carry them, and what it says of a ticket that somebody shows.

A ticket row is made in the transaction that confirms its booking (`ticket.issue`); here its bytes are signed when they are asked for. Never
for a booking that is not paid for: the row would not be there, and the database refuses to make it.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, Final

import msgspec

from engine.booking import tickets
from engine.booking.booking import HELD, PENDING_PAYMENT, SOLD, shown_state
from engine.booking.callers import Caller
from engine.booking.catalogue import Catalogue, SoldStop, SoldTrip
from engine.booking.refusals import Refused
from engine.booking.tickets import KeyFile, Payload, PublicKey, SigningKeys, public_half, text64, trip_digest
from engine.clock import Clock
from engine.errors import Invalid
from engine.live.frames import rfc3339
from engine.store.desk import ALL, DeskPool
from engine.store.postgres import statements

KEEP_MS: Final = 60_000  # keys are read again after this
AGAIN_MS: Final = 5_000  # and for an unknown one at most this often: strangers choose the ids they show
BACK: Final = frozenset({"CANCELLED", "REFUNDED", "EXCHANGED", "RELEASED", "EXPIRED"})  # states of a booking whose tickets are good no more


class Ticket(msgspec.Struct, frozen=True):
    """One ticket as its passenger carries it. `seat`, `trip` and stops as they are now; `qr` stays through a bus swap."""

    ticket_id: str
    reference: str
    operator: str
    trip: SoldTrip
    seat: str
    first_name: str
    last_name: str
    type: str
    start: SoldStop
    end: SoldStop
    qr: str
    version: int
    state: str  # ISSUED | USED
    valid_from_ms: int
    valid_to_ms: int
    boarded_at_ms: int | None

    @property
    def passenger(self) -> str:
        return f"{self.first_name} {self.last_name}".strip()


class Seen(msgspec.Struct, frozen=True):
    """What the issuer says of a ticket that was shown. `row` None: nothing of ours, or not for this caller's eyes."""

    result: str
    payload: Payload | None = None
    row: Any = None
    trip: SoldTrip | None = None
    seat: str | None = None


def ms(when: datetime) -> int:
    return round(when.timestamp() * 1000)


class Issuer:
    """One of a worker."""

    def __init__(self, pool: DeskPool, catalogue: Catalogue, *, secret_key: str, alg: str, clock: Clock) -> None:
        self.pool, self.catalogue = pool, catalogue
        self._secret_key, self._alg, self._clock = secret_key, alg, clock
        self._sql = statements("tickets")
        self._keys: SigningKeys | None = None
        self._published: KeyFile = KeyFile([])
        self._read_at_ms = 0
        self._reading = asyncio.Lock()
        public_half(secret_key, 1, alg)  # refuses an unknown TICKET_ALG at start-up

    # --- keys ---

    async def keys(self, wanted: int | None = None) -> SigningKeys:
        """All keys; read again now and then, and where `wanted` is not among them. The first time one is made where none can sign."""
        if not self._old(wanted) and self._keys is not None:
            return self._keys
        async with self._reading:
            if self._old(wanted) or self._keys is None:
                self._published = await self.pool.run(ALL, self._ensure if self._keys is None else self._read)
                self._keys = SigningKeys(self._secret_key, self._published.keys)
                self._read_at_ms = self._clock.now_ms()
            return self._keys

    def _old(self, wanted: int | None) -> bool:
        if self._keys is None:
            return True
        age_ms = self._clock.now_ms() - self._read_at_ms
        return age_ms >= KEEP_MS or (wanted is not None and wanted not in self._keys.alg and age_ms >= AGAIN_MS)

    async def published(self) -> KeyFile:
        """What a verifier needs: every public key, also of those that sign no more."""
        await self.keys()
        return self._published

    async def rotate(self) -> PublicKey:
        """A new key signs from now on; tickets that are out stay what they are."""

        async def step(connection: Any) -> KeyFile:
            await connection.execute(self._sql["lock_keys"])
            return await self._next(connection, await self._read(connection))

        self._published = await self.pool.run(ALL, step)
        self._keys = SigningKeys(self._secret_key, self._published.keys)
        return self._published.keys[-1]

    async def _read(self, connection: Any) -> KeyFile:
        rows = await connection.fetch(self._sql["keys"])
        return KeyFile([_key(row) for row in rows])

    async def _ensure(self, connection: Any) -> KeyFile:
        """The keys; with a new one where none of them can sign as this worker is set (no key yet, TICKET_ALG or SECRET_KEY changed)."""
        await connection.execute(self._sql["lock_keys"])
        found = await self._read(connection)
        mine = SigningKeys(self._secret_key, found.keys).ours
        if any(key.retired_at is None and key.alg == self._alg and key.key_id in mine for key in found.keys[-1:]):
            return found
        return await self._next(connection, found)

    async def _next(self, connection: Any, found: KeyFile) -> KeyFile:
        key_id = max((key.key_id for key in found.keys), default=0) + 1
        await connection.execute(self._sql["retire_keys"])
        await connection.execute(self._sql["add_key"], key_id, self._alg, public_half(self._secret_key, key_id, self._alg))
        return await self._read(connection)

    # --- the tickets of a booking ---

    async def tickets(self, shown: Any, caller: Caller) -> list[Ticket]:
        """Those in force of a booking (as `booking.shown` tells it), signed. Raises `Refused` NOT_CONFIRMED, TICKETS_REVOKED."""
        state = shown_state(row["state"] for row in shown["rows"])
        if state in (HELD, PENDING_PAYMENT):
            raise Refused("NOT_CONFIRMED", f"booking {shown['ref']} is {state}: there are tickets when it is paid for")
        keys = await self.keys()
        current = max(keys.ours)

        async def step(connection: Any) -> list[Any]:
            missing = [row["booking_id"] for row in await connection.fetch(self._sql["unissued"], shown["lead"])]
            if missing:  # confirmed by a way that issues none: the same function, the same refusals
                await connection.fetch(self._sql["locked"], shown["lead"])
                await connection.fetchval(self._sql["issue"], missing, caller.actor, caller.request_id)
            rows = await connection.fetch(self._sql["tickets_of_booking"], shown["lead"])
            unsigned = [row["ticket_id"] for row in rows if row["key_id"] not in keys.ours]
            if unsigned:
                await connection.execute(self._sql["sign_with"], unsigned, current)
            return list(rows)

        rows = await self.pool.run(shown["partner"], step)
        if not rows:
            code = "TICKETS_REVOKED" if state in SOLD else "NOT_CONFIRMED"
            raise Refused(code, f"booking {shown['ref']} is {state}, and none of its tickets is good")
        operator = await self.operator(shown["partner"])
        return [await self._ticket(row, keys, current, operator) for row in rows]

    async def _ticket(self, row: Any, keys: SigningKeys, current: int, operator: str) -> Ticket:
        trip = await self.catalogue.by_no(row["trip_no"])
        labels = await self.catalogue.labels(trip, row["map_version"])
        payload = Payload(
            key_id=row["key_id"] if row["key_id"] in keys.ours else current,
            trip=trip_digest(trip.trip_id),
            ticket_id=row["ticket_id"],
            seat=row["printed_seat"],
            from_place=row["from_place"],
            to_place=row["to_place"],
            version=row["version"],
            valid_from_s=int(row["valid_from"].timestamp()),
            valid_to_s=int(row["valid_to"].timestamp()),
        )
        return Ticket(
            ticket_id=row["ticket_id"],
            reference=row["reference"],
            operator=operator,
            trip=trip,
            seat=labels[row["seat"] - 1],
            first_name=row["first_name"],
            last_name=row["last_name"],
            type=row["type"],
            start=trip.stops[row["from_place"]],
            end=trip.stops[row["to_place"]],
            qr=keys.sign(payload),
            version=row["version"],
            state=row["state"],
            valid_from_ms=ms(row["valid_from"]),
            valid_to_ms=ms(row["valid_to"]),
            boarded_at_ms=None if row["boarded_at"] is None else ms(row["boarded_at"]),
        )

    async def operator(self, partner_id: str) -> str:
        """What the partner calls itself."""

        async def read(connection: Any) -> Any:
            return await connection.fetchval(self._sql["operator"], partner_id)

        return str(await self.pool.run(partner_id, read) or partner_id)

    # --- a ticket that somebody shows ---

    async def seen(self, qr: str, trip_id: str | None) -> Seen:
        """What it is worth now: the bytes, the clock, and what only the issuer knows."""
        try:
            payload, _, _ = tickets.parse(qr)
        except Invalid:
            return Seen(tickets.MALFORMED)
        row = (await self.rows([payload.ticket_id])).get(payload.ticket_id)
        return await self.judge(qr, payload, row, trip_id)

    async def judge(self, qr: str, payload: Payload, row: Any, trip_id: str | None) -> Seen:
        keys = await self.keys(payload.key_id)
        revoked: tickets.Revocations = {}
        if row is not None:
            gone = row["state"] == "REVOKED" or row["booking_state"] in BACK
            revoked = {payload.ticket_id: None if gone else row["version"]}
        known = [] if row is None else [payload.ticket_id]
        now_s = self._clock.now_ms() // 1000
        verdict = tickets.verify(qr, keys, now_s, trip_id=trip_id, revocations=revoked, issued=known)
        if verdict.result in (tickets.UNKNOWN_KEY, tickets.FORGED, tickets.ALTERED):
            return Seen(verdict.result)
        if row is None:
            return Seen(tickets.UNKNOWN_TICKET, payload)
        result = verdict.result if verdict.result != tickets.VALID else _standing(row)
        trip = await self.catalogue.by_no(row["trip_no"])
        labels = await self.catalogue.labels(trip, row["map_version"])
        return Seen(result, payload, row, trip, labels[row["seat"] - 1])

    async def rows(self, ticket_ids: list[str]) -> dict[str, Any]:
        """Tickets by id, whoever's."""

        async def read(connection: Any) -> Any:
            return await connection.fetch(self._sql["tickets"], ticket_ids)

        return {row["ticket_id"]: row for row in await self.pool.run(ALL, read)}


def _standing(row: Any) -> str:
    """Of a ticket whose bytes and version are good: what its booking and its passenger say."""
    if row["boarded_at"] is not None:
        return tickets.ALREADY_BOARDED
    if row["booking_state"] not in SOLD | {"NO_SHOW"}:
        return tickets.NOT_CONFIRMED
    return tickets.NO_SHOW if "NO_SHOW" in (row["booking_state"], row["passenger_state"]) else tickets.VALID


def _key(row: Any) -> PublicKey:
    return PublicKey(
        key_id=row["key_id"],
        alg=row["alg"],
        public_key=text64(row["public_key"]),
        created_at=rfc3339(ms(row["created_at"])),
        retired_at=None if row["retired_at"] is None else rfc3339(ms(row["retired_at"])),
    )


def name_of(row: Any) -> str:
    return f"{row['first_name'] or ''} {row['last_name'] or ''}".strip()
