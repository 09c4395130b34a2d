"""Boarding: scans folded into who is aboard, check-in, trips that start and end, and the sweep behind the buses.

A scan is judged twice: by its bytes at the time when it was made (corrected by how far the device's clock is off), and by the fold over all
scans of its ticket (engine/booking/scans.py), under the lock of its booking. One ticket is one transaction: a batch that breaks off half way
is sent again as it was, and each (device, seq) counts once.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from engine.booking import scans, tickets
from engine.booking.booking import CHECKED_IN, COMPLETED, CONFIRMED, NO_SHOW, SOLD
from engine.booking.callers import Caller
from engine.booking.catalogue import Catalogue, SoldTrip
from engine.booking.issuing import BACK, Issuer, ms, name_of
from engine.booking.manifest import Manifests
from engine.booking.press import Press
from engine.booking.refusals import Refused
from engine.booking.scans import Scan, Standing, corrected_ms, fold_scans
from engine.clock import Clock
from engine.errors import EngineError, NotFound
from engine.meter import Meter
from engine.settings import Settings
from engine.store.desk import ALL, DeskPool
from engine.store.postgres import statements

log = logging.getLogger(__name__)

SCANS_MAX: Final = 500  # of one batch
SWEEP_S: Final = 20.0


class ScanIn(msgspec.Struct, frozen=True):
    """One scan as its device tells it. `scanned_at_ms` on the device's clock; None: right now (online)."""

    qr: str
    trip_id: str | None = None
    seq: int | None = None
    scanned_at_ms: int | None = None


class ScanOut(msgspec.Struct, frozen=True):
    """What became of a scan. Facts of the ticket are None where it is none of this operator's."""

    seq: int | None
    result: str
    ticket_id: str | None = None
    reference: str | None = None
    trip_id: str | None = None
    seat: str | None = None
    passenger: str | None = None
    from_stop: str | None = None
    to_stop: str | None = None
    boarded_at_ms: int | None = None  # by the scan that won
    boarded_by: str | None = None


class Judged(msgspec.Struct, frozen=True):
    """A scan on its way into the fold. `row` None: no ticket of this operator."""

    place: int  # in the batch
    given: ScanIn
    at_ms: int
    offline: bool
    verdict: str
    version: int | None
    row: Any


class Boarding:
    """One of a worker."""

    def __init__(
        self, pool: DeskPool, catalogue: Catalogue, issuer: Issuer, *, clock: Clock, settings: Settings, meter: Meter | None = None
    ) -> None:
        self.pool, self.catalogue, self.issuer = pool, catalogue, issuer
        self.manifests, self.press = Manifests(pool, catalogue, issuer, clock), Press()
        self._clock, self._settings = clock, settings
        self._sql = statements("tickets")
        meter = meter or Meter()
        self._scans = meter.counter("timepoint_scans_total", "scans told to us, by what became of them", ("result",))
        self._swept = meter.counter("timepoint_boarding_swept_total", "bookings that the sweep moved", ("to",))

    # --- scans ---

    async def scan(self, caller: Caller, device: str, device_time_ms: int | None, given: Sequence[ScanIn]) -> list[ScanOut]:
        """One result for each scan, in their order. Told again they are answered again, by what is known by then."""
        received_ms = self._clock.now_ms()
        judged = [
            await self._judge(caller, place, one, device_time_ms, received_ms, rows)
            for rows in [await self._rows(caller, given)]
            for place, one in enumerate(given)
        ]
        out: dict[int, ScanOut] = {}
        by_ticket: dict[str, list[Judged]] = {}
        for one in judged:
            if one.row is None:
                out[one.place] = await self._put_stranger(caller, device, received_ms, one)
            else:
                by_ticket.setdefault(one.row["ticket_id"], []).append(one)
        for group in by_ticket.values():
            out |= await self._merge(caller, device, received_ms, group)
        for result in out.values():
            self._scans.add(1, result.result)
        return [out[place] for place in range(len(given))]

    async def _rows(self, caller: Caller, given: Sequence[ScanIn]) -> dict[str, Any]:
        """The tickets that these scans speak of, those of the caller's operator."""
        found: set[str] = set()
        for one in given:
            try:
                found.add(tickets.parse(one.qr)[0].ticket_id)
            except EngineError:
                continue
        rows = await self.issuer.rows(sorted(found)) if found else {}
        return {key: row for key, row in rows.items() if caller.staff_of(row["partner_id"])}

    async def _judge(
        self, caller: Caller, place: int, one: ScanIn, device_time_ms: int | None, received_ms: int, rows: dict[str, Any]
    ) -> Judged:
        offline = one.scanned_at_ms is not None
        at_ms = received_ms if one.scanned_at_ms is None else corrected_ms(one.scanned_at_ms, device_time_ms, received_ms)
        try:
            payload, _, _ = tickets.parse(one.qr)
        except EngineError:
            return Judged(place, one, at_ms, offline, tickets.MALFORMED, None, None)
        row = rows.get(payload.ticket_id)
        keys = await self.issuer.keys(payload.key_id)
        known = [] if row is None else [payload.ticket_id]
        verdict = tickets.verify(one.qr, keys, at_ms // 1000, trip_id=one.trip_id, issued=known).result
        if verdict in (tickets.UNKNOWN_KEY, tickets.FORGED, tickets.ALTERED):
            row = None  # whatever a forger wrote, it is no scan of that ticket
        elif row is None:
            verdict = tickets.UNKNOWN_TICKET
        return Judged(place, one, at_ms, offline, verdict, payload.version, row)

    async def _put_stranger(self, caller: Caller, device: str, received_ms: int, one: Judged) -> ScanOut:
        """A scan of no ticket of ours is kept too: who shows forged tickets, and where, is worth knowing."""
        if caller.partner_id is None:
            return ScanOut(one.given.seq, one.verdict)

        async def step(connection: Any) -> Any:
            put = await self._put(connection, caller, caller.partner_id or "", device, received_ms, one)
            if put is not None and put["fresh"]:
                await connection.execute(
                    self._sql["note_stranger"], caller.partner_id, caller.actor, caller.request_id, put["scan_id"], one.verdict
                )
            return put

        put = await self.pool.run(caller.partner_id, step)
        return ScanOut(one.given.seq, scans.SEQ_REUSED if put is None else put["result"])

    async def _put(self, connection: Any, caller: Caller, partner_id: str, device: str, received_ms: int, one: Judged) -> Any:
        row = one.row
        return await connection.fetchrow(
            self._sql["put_scan"],
            self._clock.uuid7(),
            partner_id,
            device,
            one.given.seq,
            None if row is None else row["ticket_id"],
            None if row is None else row["trip_no"],
            one.version,
            hashlib.sha256(one.given.qr.encode()).digest(),
            _at(one.at_ms),
            _at(received_ms),
            one.offline,
            one.verdict,
            caller.actor,
        )

    async def _merge(self, caller: Caller, device: str, received_ms: int, group: list[Judged]) -> dict[int, ScanOut]:
        """The scans of one ticket into the record, folded with those that are there: one transaction."""
        ticket_id, lead_id, partner_id = (group[0].row[name] for name in ("ticket_id", "lead_id", "partner_id"))

        async def step(connection: Any) -> tuple[dict[int, tuple[str | None, str]], Any]:
            await connection.fetch(self._sql["locked"], lead_id)
            puts: dict[int, tuple[str | None, str]] = {}  # place -> (scan id, result where it is none)
            fresh = set()
            for one in group:
                put = await self._put(connection, caller, partner_id, device, received_ms, one)
                puts[one.place] = (None, scans.SEQ_REUSED) if put is None else (put["scan_id"], put["result"])
                if put is not None and put["fresh"]:
                    fresh.add(put["scan_id"])
            row = await self._fold(connection, caller, ticket_id, fresh, puts)
            return puts, row

        puts, row = await self.pool.run(partner_id, step)
        trip = await self.catalogue.by_no(row["trip_no"])
        labels = await self.catalogue.labels(trip, row["map_version"])
        return {
            one.place: ScanOut(
                seq=one.given.seq,
                result=puts[one.place][1],
                ticket_id=ticket_id,
                reference=row["reference"],
                trip_id=trip.trip_id,
                seat=labels[row["seat"] - 1],
                passenger=name_of(row),
                from_stop=trip.stops[row["from_place"]].name,
                to_stop=trip.stops[row["to_place"]].name,
                boarded_at_ms=None if row["boarded_at"] is None else ms(row["boarded_at"]),
                boarded_by=row["boarded_by"],
            )
            for one in group
        }

    async def _fold(self, connection: Any, caller: Caller, ticket_id: str, fresh: set[str], puts: dict[int, tuple[str | None, str]]) -> Any:
        """Fold all scans of the ticket, write what has changed, move the booking. The ticket's row as it then stands."""
        row = (await connection.fetch(self._sql["tickets"], [ticket_id]))[0]
        kept = await connection.fetch(self._sql["scans_of_ticket"], ticket_id)
        done = fold_scans(map(_scan, kept), _standing(row))
        was = {one["scan_id"]: one["result"] for one in kept}
        changed = [key for key, result in done.results.items() if was[key] != result or key in fresh]
        await connection.execute(
            self._sql["set_results"], changed, [done.results[key] for key in changed], [key in fresh for key in changed]
        )
        for place, (scan_id, _) in list(puts.items()):
            if scan_id is not None:
                puts[place] = (scan_id, done.results[scan_id])
        if done.winner is not None:
            await self._board(connection, caller, row, done.winner, done.results[done.winner.scan_id])
        for one in kept:
            if one["scan_id"] in fresh:
                said = {"result": done.results[one["scan_id"]], "device": one["device"], "seq": one["seq"], "at": one["at"].isoformat()}
                await connection.execute(self._sql["note_ticket"], ticket_id, "SCANNED", caller.actor, caller.request_id, said)
        return (await connection.fetch(self._sql["tickets"], [ticket_id]))[0]

    async def _board(self, connection: Any, caller: Caller, row: Any, winner: Scan, result: str) -> None:
        boards = result == scans.BOARDED
        if row["boarded_at"] is None or ms(row["boarded_at"]) != winner.at_ms or row["boarded_by"] != winner.device:
            await connection.execute(self._sql["set_boarded"], row["ticket_id"], _at(winner.at_ms), winner.device, boards)
        if boards and row["passenger_state"] != "BOARDED":
            await connection.execute(self._sql["set_passenger"], row["booking_id"], [row["seat"]], "BOARDED")
            if row["booking_state"] in (CONFIRMED, CHECKED_IN):  # the first of its passengers
                more = {"boarded": [row["seat"]], "device": winner.device}
                await self._move(connection, caller, [row["booking_id"]], "BOARDED", "BOARDED", more)

    async def _move(self, connection: Any, caller: Caller, ids: list[str], to: str, kind: str, more: dict[str, Any]) -> None:
        await connection.execute(self._sql["move"], ids, to, caller.actor, caller.request_id, kind, more)

    # --- check-in ---

    async def check_in(self, caller: Caller, shown: Any, trip_id: str | None) -> None:
        """CONFIRMED -> CHECKED_IN of the rows of a booking (as `booking.shown` tells it) whose time it is; again changes nothing.

        Raises `Refused` NOT_CONFIRMED, CHECK_IN_CLOSED, WRONG_STATE; `NotFound` where the booking has no such trip.
        """
        now_ms = self._clock.now_ms()
        rows = []
        for row in shown["rows"]:
            trip = await self.catalogue.by_no(row["tripNo"])
            if trip_id is None or trip.trip_id == trip_id:
                rows.append((row, trip))
        if not rows:
            raise NotFound(f"booking {shown['ref']} has no trip {str(trip_id)[:120]!r}")
        going = [(row, trip) for row, trip in rows if row["state"] in SOLD]
        if not going:
            state = rows[0][0]["state"]
            raise Refused("NOT_CONFIRMED" if state in ("HELD", "PENDING_PAYMENT") else "WRONG_STATE", f"booking {shown['ref']} is {state}")
        if all(row["state"] != CONFIRMED for row, _ in going):
            return
        window = [(row, trip) for row, trip in going if row["state"] == CONFIRMED and self._may_check_in(row, trip, now_ms)]
        if not window:
            hours = self._settings.check_in_open_s / 3600
            raise Refused("CHECK_IN_CLOSED", f"check-in is open from {hours:g} h before departure until departure")
        ids = {row["id"] for row, _ in window}

        async def step(connection: Any) -> None:
            locked = await connection.fetch(self._sql["locked"], shown["lead"])
            for row in locked:
                if row["booking_id"] in ids and row["state"] == CONFIRMED:
                    await connection.execute(self._sql["set_passenger"], row["booking_id"], row["seats"], "CHECKED_IN")
                    await self._move(connection, caller, [row["booking_id"]], CHECKED_IN, CHECKED_IN, {})

        await self.pool.run(shown["partner"], step)

    def _may_check_in(self, row: Any, trip: SoldTrip, now_ms: int) -> bool:
        departs_ms = trip.stops[row["from"]].departs_at_ms
        return departs_ms - self._settings.check_in_open_s * 1000 <= now_ms < departs_ms and trip.status in ("SCHEDULED", "STARTED")

    # --- the trip ---

    async def start(self, caller: Caller, trip_id: str) -> SoldTrip:
        """SCHEDULED -> STARTED; again changes nothing. Raises `Refused` WRONG_STATE, `NotFound`."""
        return await self._turn(caller, trip_id, {"SCHEDULED": "STARTED"})

    async def end(self, caller: Caller, trip_id: str) -> SoldTrip:
        """STARTED -> COMPLETED, and with it the bookings of those aboard; who has not come is a no-show."""
        trip = await self._turn(caller, trip_id, {"STARTED": "COMPLETED"})
        await self.sweep(trip.trip_no, caller)
        return trip

    async def _turn(self, caller: Caller, trip_id: str, moves: dict[str, str]) -> SoldTrip:
        trip = await self.trip_of(caller, trip_id)

        async def step(connection: Any) -> None:
            await connection.execute(self._sql["lock_trip"], trip.trip_no)
            now = await connection.fetchrow(self._sql["trip_status"], trip.trip_no)
            to = moves.get(now["status"])
            if now["status"] in moves.values():
                return
            if to is None:
                raise Refused("WRONG_STATE", f"{trip_id} is {now['status']}; this needs {' or '.join(moves)}")
            done = await connection.fetchrow(self._sql["set_trip_status"], trip.trip_no, to)
            body = {"tripId": trip_id, "tripNo": trip.trip_no, "status": to, "busId": done["bus_id"]}
            await connection.execute(
                self._sql["note_trip"], trip.partner_id, caller.actor, caller.request_id, to, trip_id, done["version"], body,
                {"status": to, "was": now["status"]},
            )  # fmt: skip

        await self.pool.run(trip.partner_id, step)
        self.catalogue.forget(trip_id)
        return await self.catalogue.trip(trip_id)

    async def trip_of(self, caller: Caller, trip_id: str) -> SoldTrip:
        """A trip of the caller's operator. Raises `NotFound`: not there, or another's."""
        trip = await self.catalogue.trip(trip_id)
        if not caller.staff_of(trip.partner_id):
            raise NotFound(f"no trip {trip_id[:120]!r} is on sale")
        return trip

    # --- the sweep ---

    async def sweep(self, trip_no: int | None = None, caller: Caller | None = None) -> int:
        """Who has not come becomes a no-show, who has arrived is done; how many rows of bookings moved. Any worker may, at any time."""
        who = caller or Caller(request_id=f"sweep-{self._clock.uuid7()}", subject="boarding", role="SYSTEM")
        late = timedelta(seconds=self._settings.no_show_after_s)
        done = timedelta(seconds=self._settings.completed_after_s)
        moved = 0
        while True:
            now = _at(self._clock.now_ms())

            async def look(connection: Any, now: datetime = now) -> Any:
                if trip_no is not None:
                    return await connection.fetch(self._sql["due_of_trip"], now, late, done, trip_no)
                return await connection.fetch(self._sql["due"], now, late, done)

            before, rows = moved, await self.pool.run(ALL, look)
            for row in rows:
                try:
                    moved += await self._leave_behind(who, row["lead_id"], row["booking_id"], now, late, done)
                except Refused as refusal:  # busy, or moved by somebody else meanwhile: next time
                    log.info("boarding sweep: %s: %s", row["booking_id"], refusal.detail)
            if moved == before:
                return moved

    async def _leave_behind(self, who: Caller, lead_id: str, booking_id: str, now: datetime, late: timedelta, done: timedelta) -> int:
        async def step(connection: Any) -> str | None:
            locked = {row["booking_id"]: row for row in await connection.fetch(self._sql["locked"], lead_id)}
            row = locked.get(booking_id)
            if row is None or not await connection.fetchval(self._sql["still_due"], booking_id, now, late, done):
                return None
            to = COMPLETED if row["state"] == "BOARDED" else NO_SHOW
            await connection.execute(self._sql["give_up"], booking_id)
            await self._move(connection, who, [booking_id], to, to, {})
            return to

        to = await self.pool.run(ALL, step)
        if to is not None:
            self._swept.add(1, to)
        return to is not None

    async def run(self) -> None:
        """The sweep, for ever: to be run under a lease."""
        while True:
            try:
                await self.sweep()
            except EngineError as fault:
                log.warning("boarding sweep: %s", fault)
            await asyncio.sleep(SWEEP_S)


def _standing(row: Any) -> Standing:
    back = row["state"] == "REVOKED" or row["booking_state"] in BACK
    revoked_at = row["revoked_at"]
    return Standing(
        version=row["version"],
        revoked_at_ms=None if not back else 0 if revoked_at is None else ms(revoked_at),
        no_show=row["passenger_state"] == NO_SHOW,
        paid=row["booking_state"] not in ("HELD", "PENDING_PAYMENT"),
    )


def _scan(row: Any) -> Scan:
    return Scan(row["scan_id"], row["device"], row["seq"], ms(row["at"]), row["offline"], row["version"], row["verdict"])


def _at(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)
