"""Sales that were made without a network come in: each is judged once, and moves its legs from the lease to a booking of its own, or loses.

Promises: idempotent by (device, seq) however the batches are split, repeated or ordered (`engine.booking.pos.settle` is a function of the
set; what it decides otherwise than before is put right and told as a correction). The server wins: who has no seat is owed the money by the
drawer, or is offered other seats where the operator says so (STANDBY until `seat` or a void). One batch is one transaction with the answer
to its key; the syncs of a device stand in line at its row.

The order of things in a batch: what is known already; what cannot be a sale at all (REJECTED, nothing is kept); which lease it was made from
and whether its price was the lease's; the fold over each lease; its consequences, what is given up first, then seat by seat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from engine.booking import booking, pos
from engine.booking.catalogue import Catalogue, SoldTrip
from engine.booking.desk import ALPHABET, TRIES, folded
from engine.booking.pos import CONFIRMED, CONFLICT_REFUND, DUPLICATE, REJECTED, STANDBY, VOIDED, Sale, lease_of, runs, settle
from engine.booking.refusals import Refused
from engine.clock import Clock
from engine.errors import Invalid, NotFound
from engine.meter import Meter
from engine.store.desk import Answer, DeskPool, Key
from engine.store.pos import Known, LeaseRow, Pos, fresh

OFFERS_MAX: Final = 10  # free seats named where one is gone
AMOUNT_MAX: Final = 10**12  # minor units of one sale
WITHDRAWABLE: Final = (booking.CONFIRMED, booking.CHECKED_IN)  # later its passenger is on board, or the desk has cancelled it


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """Who works at the till: somebody of the operator, or a device with a token of its own (`device_id`)."""

    partner_id: str
    actor: str
    request_id: str
    device_id: str | None = None

    def device(self, named: str | None) -> str:
        """The device that is meant. Raises `NotFound` for another than the token's, `Invalid` where none is named."""
        if self.device_id is not None and named not in (None, self.device_id):
            raise NotFound(f"no device {str(named)[:80]!r}")
        found = self.device_id or named
        if not found:
            raise Invalid("say which device", errors=[{"pointer": "/deviceId", "code": "MISSING_FIELD", "detail": "deviceId"}])
        return found


class Result(msgspec.Struct, frozen=True, rename="camel"):
    """What became of one sale. Of a DUPLICATE, `was` says what became of the sale. `refund`: money that is owed back, minor units."""

    seq: int
    result: str
    ref: str | None = None
    code: str | None = None
    was: str | None = None
    seat: str | None = None
    refund: int | None = None
    offers: list[str] = []  # free seats, where the operator offers them


class StaleMap(Exception):  # no fault: look again
    """The trip's seats were renumbered since they were read."""


class Till:
    """One of a worker."""

    def __init__(self, pool: DeskPool, catalogue: Catalogue, clock: Clock, meter: Meter | None = None) -> None:
        self._pool, self._catalogue, self._clock = pool, catalogue, clock
        meter = meter or Meter()
        self._sales = meter.counter("timepoint_pos_sales_total", "sales that devices uploaded, by what became of them", ("result",))

    async def sync(self, who: Operator, key: Key | None, device_id: str, device_time_ms: int, sales: Sequence[Sale]) -> Answer:
        """{"deviceId", "clockOffsetMs", "results", "corrections"}, results in the order of the sales. Raises `Refused`, `NotFound`."""
        now_ms = self._clock.now_ms()

        async def batch(store: Pos, trips: dict[str, SoldTrip]) -> tuple[int, Any]:
            await _device(store, who, device_id)
            run = Run(store, device_id, self._clock, trips, now_ms, now_ms - device_time_ms)
            results = await run.take(sales)
            counts: dict[str, int] = {}
            for one in results:
                counts[one.result] = counts.get(one.result, 0) + 1
            version = await store.changed_device(device_id)
            await store.note("SYNCED", "device", device_id, version, {"deviceId": device_id, "counts": counts})
            return 200, {
                "deviceId": device_id,
                "clockOffsetMs": run.offset_ms,
                "results": msgspec.to_builtins(results),
                "corrections": msgspec.to_builtins(run.corrections()),
            }

        answer = await self._within(who, key, dict.fromkeys(sale.trip_id for sale in sales), batch)
        for one in answer.body["results"]:
            self._sales.add(1, one["result"])
        return answer

    async def seat(self, who: Operator, key: Key | None, device_id: str, seq: int, label: str) -> Answer:
        """A sale that has no seat gets this one, for what it has paid. Raises `Refused` SEAT_TAKEN, SALE_SETTLED, SALES_CLOSED; `NotFound`."""
        found = await self._pool.run(who.partner_id, lambda connection: _store(connection, who).sales(device_id, [seq]))
        if seq not in found:
            raise NotFound(f"{device_id} has no sale {seq}")
        trip = await self._catalogue.by_no(found[seq].trip_no)

        async def place(store: Pos, trips: dict[str, SoldTrip]) -> tuple[int, Any]:
            await _device(store, who, device_id)
            run = Run(store, device_id, self._clock, trips, self._clock.now_ms(), 0)
            return 200, msgspec.to_builtins(await run.place(seq, trips[trip.trip_id], label))

        return await self._within(who, key, [trip.trip_id], place)

    async def _within(self, who: Operator, key: Key | None, trip_ids: Any, step: Callable[[Pos, dict[str, SoldTrip]], Any]) -> Answer:
        """`step` in a transaction under the key, again where a map was renumbered meanwhile."""
        for _ in range(TRIES):
            trips = {}
            for trip_id in trip_ids:
                try:
                    trip = await self._catalogue.trip(trip_id)
                except NotFound:
                    continue
                if trip.partner_id == who.partner_id:  # another operator's is as unknown as one that is not there
                    trips[trip_id] = trip

            async def work(connection: Any, trips: dict[str, SoldTrip] = trips) -> Any:
                return await step(_store(connection, who), trips)

            try:
                return await self._pool.once(key, who.partner_id, work)
            except StaleMap:
                for trip_id in trips:
                    self._catalogue.forget(trip_id)
        raise Refused("BUSY", "the seats of a trip are being renumbered; send the same again", retry_after_s=1)


def _store(connection: Any, who: Operator) -> Pos:
    return Pos(connection, who.partner_id, who.actor, who.request_id)


async def _device(store: Pos, who: Operator, device_id: str) -> None:
    if not await store.lock_device(device_id, name_it=who.device_id is None):
        raise NotFound(f"no device {device_id[:80]!r}")


class Run:
    """One batch inside its transaction. `now`: every sale in play as it stands, by number; `before`: as the record had it."""

    def __init__(self, store: Pos, device_id: str, clock: Clock, trips: dict[str, SoldTrip], now_ms: int, offset_ms: int) -> None:
        self.store, self.device_id, self.offset_ms = store, device_id, offset_ms
        self._clock, self._now_ms = clock, now_ms
        self._trips = trips
        self._by_no = {trip.trip_no: trip for trip in trips.values()}
        self._leases: dict[str, LeaseRow] = {}
        self._offers = False
        self._cancelled: set[int] = set()  # trips
        self._seats_offered: dict[tuple[int, int, int], list[str]] = {}
        self.before: dict[int, Known] = {}
        self.now: dict[int, Known] = {}
        self.sold_at_ms: dict[int, int] = {}  # of those that are new
        self._told: set[int] = set()  # numbers whose result is the answer to an entry of this batch

    async def take(self, sales: Sequence[Sale]) -> list[Result]:
        """What became of each."""
        self.before = await self.store.sales(self.device_id, {sale.seq for sale in sales})
        self.now = dict(self.before)
        await self._look_around()
        said = [self._first_look(sale) for sale in sales]
        for seq, sold_at_ms in self.sold_at_ms.items():
            self.now[seq] = self._placed(self.now[seq], sold_at_ms)
        await self._lock()
        for lease_id in sorted({sale.lease_id for sale in self._changing() if sale.lease_id is not None and _open(sale)}):
            await self._fold(self._leases[lease_id])
        for sale in self._changing():
            if not _open(sale):
                self.now[sale.seq] = await self._step(sale, got=sale.result == CONFIRMED)
        for seq in sorted(self.now):
            await self._write(seq)
        return [await self._answer(seq, early) for seq, early in said]

    async def _look_around(self) -> None:
        """The trips, locked, and whether they are as we think; the leases; the operator's policy."""
        await self.store.lock_trips(self._by_no)
        for trip in self._by_no.values():
            status, map_version = await self.store.trip_now(trip.trip_no)
            if map_version != trip.map_version:
                raise StaleMap
            if status == booking.CANCELLED:
                self._cancelled.add(trip.trip_no)
        self._leases = {row.lease.lease_id: row for row in await self.store.leases_of(self.device_id, self._by_no)}
        self._offers = await self.store.offers()

    # --- judging ---

    def _first_look(self, sale: Sale) -> tuple[int, Result | None]:
        """REJECTED or DUPLICATE, or None: the result is what becomes of the sale."""
        known = self.now.get(sale.seq)
        if known is not None and known.fingerprint != sale.fingerprint():
            return sale.seq, Result(sale.seq, REJECTED, code=pos.SEQ_REUSED)
        if known is not None:
            if not sale.void or known.void:
                return sale.seq, Result(sale.seq, DUPLICATE)
            if known.result == CONFIRMED and known.booking_state not in WITHDRAWABLE:
                return sale.seq, Result(sale.seq, REJECTED, code="WRONG_STATE", was=CONFIRMED)
            self.now[sale.seq] = msgspec.structs.replace(known, void=True)
        else:
            trip = self._trips.get(sale.trip_id)
            if trip is None:
                return sale.seq, Result(sale.seq, REJECTED, code="UNKNOWN_TRIP")
            if not 0 <= sale.amount <= AMOUNT_MAX:
                return sale.seq, Result(sale.seq, REJECTED, code="INVALID_AMOUNT")
            if not 0 <= sale.sold_at_ms <= pos.TIME_MAX_MS:
                return sale.seq, Result(sale.seq, REJECTED, code="INVALID_TIME")
            if sale.currency != trip.currency:
                return sale.seq, Result(sale.seq, REJECTED, code=pos.WRONG_CURRENCY)  # no drawer of ours has such money in it
            try:
                legs = trip.legs(sale.from_, sale.to)
            except Invalid as fault:
                return sale.seq, Result(sale.seq, REJECTED, code=fault.errors[0]["code"])
            self.now[sale.seq] = fresh(sale, trip.trip_no, legs)
            self.sold_at_ms[sale.seq] = pos.corrected(sale.sold_at_ms, self._now_ms - self.offset_ms, self._now_ms)
        again = sale.seq in self._told
        self._told.add(sale.seq)
        return sale.seq, Result(sale.seq, DUPLICATE) if again else None

    def _placed(self, sale: Known, sold_at_ms: int) -> Known:
        """A new sale with its lease, or with why it has no right to a seat and what that makes of it."""
        if sale.method == pos.CARD_TOKEN:
            return msgspec.structs.replace(sale, result=STANDBY, code=pos.PAY_ONLINE)
        lease, why = lease_of([row.lease for row in self._leases.values() if row.trip_no == sale.trip_no], sale.wanted, sold_at_ms)
        if lease is None:
            return msgspec.structs.replace(sale, result=STANDBY if why == pos.OUTSIDE_LEASE else CONFLICT_REFUND, code=why)
        if lease.tariff.price(sale.seat, sale.start, sale.end, sale.passenger["type"]) != sale.amount:
            why = pos.WRONG_AMOUNT
        elif sale.trip_no in self._cancelled:
            why = pos.TRIP_CANCELLED
        return msgspec.structs.replace(sale, lease_id=lease.lease_id, result=CONFLICT_REFUND if why else "", code=why)

    def _changing(self) -> list[Known]:
        """Sales of this batch that are new or are void from now on, by number."""
        return [self.now[seq] for seq in sorted(self._told)]

    async def _lock(self) -> None:
        """Rows of the leases and bookings in play, by id; and the sales of the record that the fold has to see."""
        open_ones = [sale for sale in self._changing() if sale.lease_id is not None and _open(sale)]
        for known in await self.store.sales_of({sale.lease_id for sale in open_ones if sale.lease_id}, {sale.seat for sale in open_ones}):
            self.before.setdefault(known.seq, known)
            self.now.setdefault(known.seq, known)
        leads = {sale.lease_id for sale in open_ones} | {sale.booking_id for sale in self.before.values()}
        states = await self.store.lock_bookings(lead for lead in leads if lead is not None)
        for lease_id, row in self._leases.items():
            if lease_id in states:
                self._leases[lease_id] = msgspec.structs.replace(row, state=states[lease_id])
        for known in list(self.before.values()):
            if known.booking_id is not None:
                self.before[known.seq] = msgspec.structs.replace(known, booking_state=states[known.booking_id])

    # --- the fold over one lease, and what follows from it ---

    async def _fold(self, row: LeaseRow) -> None:
        trip, lease_id = self._by_no[row.trip_no], row.lease.lease_id
        mine = [sale for sale in self.now.values() if sale.lease_id == lease_id and _open(sale)]
        numbers = {sale.seat: trip.numbers[sale.seat] for sale in mine if sale.seat in trip.numbers}  # another bus may not have it
        claims = await self.store.claims(trip.trip_no, trip.map_version, sorted(numbers.values()))
        live = row.state == booking.HELD
        room, had, decided = {}, {}, []
        for sale in mine:
            here = sale.booking_id in claims.get(numbers.get(sale.seat, 0), {}) and self.before[sale.seq].booking_state in WITHDRAWABLE
            if sale.result != CONFIRMED or sale.void or here:
                decided.append(sale)  # else it was moved, is on board or has gone: no longer ours to decide
        for seat, number in numbers.items():
            ours = {lease_id} | {sale.booking_id for sale in decided if sale.seat == seat}
            had[seat] = claims[number].get(lease_id, 0)
            room[seat] = sum(legs for lead, legs in claims[number].items() if lead in ours)
            if not live:
                room[seat] |= row.lease.legs & ~sum(claims[number].values())
        got, left = settle(room, [sale.wanted for sale in decided])
        for sale in decided:
            if not got[sale.seq]:
                self.now[sale.seq] = await self._step(sale, got=False)
        for seat, number in sorted(numbers.items(), key=lambda one: one[1]):
            if live and left[seat] != had[seat]:
                await self.store.keep(lease_id, trip.map_version, number, runs(left[seat]))
            for sale in decided:
                if got[sale.seq] and sale.seat == seat:
                    self.now[sale.seq] = await self._step(sale, got=True, number=number)

    async def _step(self, sale: Known, *, got: bool, number: int | None = None) -> Known:
        """The sale as it is from now on, and its money with it. What stands already is left alone."""
        was, store = self.before.get(sale.seq), self.store
        if was is not None and not sale.void and got == (was.result == CONFIRMED):
            return sale
        code = sale.code or pos.SEAT_TAKEN
        if was is not None and was.booking_id is not None:
            if was.result == CONFIRMED:
                await store.undo(was.booking_id, VOIDED if sale.void else code)
            if sale.void or got:
                await store.pay_out(was.booking_id, self.device_id)
        if sale.void:
            return msgspec.structs.replace(sale, result=VOIDED, code=None if code == pos.SEAT_TAKEN else code, given=None)
        if got and number is not None:
            sold = await self._sell(msgspec.structs.replace(sale, code=None), number)
            if sold is not None:
                return sold
        lost = msgspec.structs.replace(sale, code=code, given=None)
        if code == pos.SEAT_TAKEN:
            lost = msgspec.structs.replace(lost, result=STANDBY if self._offers else CONFLICT_REFUND)
        if sale.method == pos.CASH and (was is None or got):
            lost = await self._owe(lost)
        return lost

    async def _sell(self, sale: Known, number: int) -> Known | None:
        """Its booking, its seat, the money, its ticket. None: somebody has these legs (and the booking that was begun is let go)."""
        sale = await self._put(sale, number)
        assert sale.booking_id is not None
        if not await self.store.claim(sale.booking_id):
            await self.store.drop(sale.booking_id)
            return None
        await self.store.confirm(sale.booking_id, self._clock.uuid7(), self.device_id)
        trip = self._by_no[sale.trip_no]
        return msgspec.structs.replace(sale, result=CONFIRMED, given=trip.label_of(number), booking_state=booking.CONFIRMED)

    async def _owe(self, sale: Known) -> Known:
        """A booking without a seat, for the money that is owed back."""
        sale = await self._put(sale, None)
        assert sale.booking_id is not None
        await self.store.owe(sale.booking_id, self._clock.uuid7(), self.device_id, sale.code or pos.SEAT_TAKEN)
        return sale

    async def _put(self, sale: Known, number: int | None) -> Known:
        trip, surname = self._by_no[sale.trip_no], folded(sale.passenger["lastName"])
        for _ in range(TRIES):
            chance = hashlib.sha256(self._clock.token(12).encode()).digest()
            reference = "".join(ALPHABET[byte & 31] for byte in chance[:6])
            booking_id = self._clock.uuid7()
            if await self.store.put(booking_id, self.device_id, trip.map_version, number, sale, reference, surname):
                return msgspec.structs.replace(sale, booking_id=booking_id, reference=reference)
        raise Refused("BUSY", "no reference could be given; send the same again", retry_after_s=1)

    # --- the record and the answer ---

    async def _write(self, seq: int) -> None:
        sale, was = self.now[seq], self.before.get(seq)
        if was is None:
            await self.store.put_sale(self.device_id, sale, self.sold_at_ms[seq])
        elif (sale.result, sale.void, sale.booking_id) != (was.result, was.void, was.booking_id):
            await self.store.change_sale(self.device_id, sale)

    async def _answer(self, seq: int, early: Result | None) -> Result:
        if early is not None and early.result == REJECTED:
            return early
        full = await self._result(self.now[seq])
        return full if early is None else msgspec.structs.replace(full, result=DUPLICATE, was=full.result)

    async def _result(self, sale: Known) -> Result:
        owed = sale.result in (CONFLICT_REFUND, STANDBY) and sale.booking_id is not None
        offers: list[str] = []
        if owed and self._offers and sale.trip_no not in self._cancelled:
            offers = await self._free(sale)
        return Result(
            sale.seq, sale.result, sale.reference, sale.code, seat=sale.given, refund=sale.amount if owed else None, offers=offers
        )  # fmt: skip

    async def _free(self, sale: Known) -> list[str]:
        where = (sale.trip_no, sale.start, sale.end)
        if where not in self._seats_offered:
            trip = self._by_no[sale.trip_no]
            free = sorted(await self.store.free_seats(*where))
            self._seats_offered[where] = [trip.label_of(number) for number in free[:OFFERS_MAX]]
        return self._seats_offered[where]

    def corrections(self) -> list[Result]:
        """Sales of earlier batches that are something else since this one."""
        changed = [sale for seq, sale in sorted(self.now.items()) if seq in self.before and seq not in self._told]
        return [
            Result(sale.seq, sale.result, sale.reference, sale.code, was=self.before[sale.seq].result, seat=sale.given)
            for sale in changed
            if sale.result != self.before[sale.seq].result
        ]

    # --- a seat for who has none ---

    async def place(self, seq: int, trip: SoldTrip, label: str) -> Result:
        """See `Till.seat`."""
        self.before = await self.store.sales(self.device_id, [seq])
        self.now = dict(self.before)
        await self._look_around()
        if trip.trip_no in self._cancelled:
            raise Refused("SALES_CLOSED", f"{trip.trip_id} is cancelled")
        await self._lock()
        sale = self.now[seq]
        if sale.result not in (STANDBY, CONFLICT_REFUND) or sale.booking_id is None:
            raise Refused("SALE_SETTLED", f"sale {seq} is {sale.result}{f' ({sale.code})' if sale.code else ''}: it waits for no seat")
        number = trip.number_of(label, "/seat")
        self._offers = False
        moved = await self._step(sale, got=True, number=number)
        if moved.result != CONFIRMED:
            raise Refused(
                "SEAT_TAKEN",
                f"{label} on {trip.trip_id} is taken between these stops",
                errors=[{"pointer": "/seat", "code": "SEAT_TAKEN", "detail": f"{label}: taken"}],
            )
        self.now[seq] = msgspec.structs.replace(moved, code=pos.RESEATED)
        await self._write(seq)
        version = await self.store.changed_device(self.device_id)
        await self.store.note("SEATED", "device", self.device_id, version, {"deviceId": self.device_id, "seq": seq, "seat": label})
        return await self._result(self.now[seq])


def _open(sale: Known) -> bool:
    """Whether the fold decides it: its only question is whether the seat is free."""
    return sale.lease_id is not None and sale.code in (None, pos.SEAT_TAKEN) and (sale.result != VOIDED or sale.void)
