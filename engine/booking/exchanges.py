"""Modifications: other names, other seats on the same trip, another trip with the difference in price. One transaction each, or nothing.

Names and seats of the same class cost nothing. Another trip costs the fee that was sold with the fare. What is cheaper or as dear is
exchanged at once and the difference goes back; what is dearer becomes a booking of its own that waits for the difference: its seats are
held, the old ones stay sold until it is paid, and both change places in the transaction that confirms it (`money.confirmed`). Nobody is
ever without a seat they have paid for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from engine.booking import fares, seats
from engine.booking.booking import CANCELLED, CONFIRMED, EXCHANGED, PENDING_PAYMENT, SOLD, shown_state
from engine.booking.callers import Caller
from engine.booking.catalogue import SoldTrip, open_for_sale, sales_closed
from engine.booking.changes import GOING, OUT, UNPAID, Reader, Ride, check_can_go, chosen, moved, read_again
from engine.booking.desk import Desk, Pricing, folded
from engine.booking.refusals import Refused, unless_match
from engine.clock import Clock
from engine.errors import Invalid
from engine.live.frames import rfc3339
from engine.settings import Settings
from engine.store.changes import Change, Passenger, Row, version_of
from engine.store.desk import Answer, DeskPool, Key

CHANGING: Final = UNPAID | GOING


class NewName(msgspec.Struct, frozen=True, kw_only=True):
    """A passenger as they are called from now on. None: as before."""

    seat: str
    first_name: str | None = None
    last_name: str | None = None
    detail: dict[str, Any] | None = None


class OtherTrip(msgspec.Struct, frozen=True, kw_only=True):
    """Where to: stops as in a hold (None: those of the booking), and a seat for each passenger, in the order of their old seats."""

    trip_id: str
    start: str | int | None = None
    end: str | int | None = None
    labels: tuple[str, ...] = ()


class Exchanges:
    """Modifications by whoever may open a booking."""

    def __init__(self, pool: DeskPool, desk: Desk, pricing: Pricing, clock: Clock, settings: Settings) -> None:
        self._pool, self._desk, self._pricing, self._clock, self._settings = pool, desk, pricing, clock, settings
        self._catalogue, self._reader = desk.catalogue, Reader(desk.catalogue, clock)

    # --- names ---

    @read_again
    async def rename(
        self, caller: Caller, key: Key | None, reference: str, names: Sequence[NewName], trip_id: str | None, must_be: str | None = None
    ) -> Answer:
        """Other names; tickets are issued anew. Raises `Refused` WRONG_STATE, TOO_LATE, SEAT_WOMEN_ONLY, ...; `Invalid`, `NotFound`."""
        shown = await self._desk.show(caller, reference=reference)
        trips = await self._reader.trips(shown)

        async def work(connection: Any) -> tuple[int, Any]:
            change = Change(connection, caller.actor, caller.request_id)
            rows, rides = await self._rides(change, shown, trips, must_be)
            for ride, numbers in chosen(rides, [name.seat for name in names], trip_id):
                wanted = {number: next(n for n in names if n.seat == ride.label(number)) for number in numbers}
                await self._rename(change, ride, wanted)
            ids = [row.booking_id for row in rows]
            surnames = {folded(one.last_name) for one in await change.passengers(ids) if one.state != OUT}
            await change.all("surnames", rows[0].lead_id, sorted(surnames))
            return 200, self._said(reference, rows, sum(1 for ride in rides if _named(ride, names, trip_id)))

        return await self._pool.once(key, shown["partner"], work)

    async def _rename(self, change: Change, ride: Ride, wanted: Mapping[int, NewName]) -> None:
        known = {one.seat: one for one in ride.passengers}
        after = [
            (seat, wanted[seat].detail if seat in wanted and wanted[seat].detail is not None else one.detail) for seat, one in known.items()
        ]
        seats.check_passengers(ride.trip.layout, after)
        row = ride.row
        if row.state in SOLD:
            await change.revoke([row.booking_id], list(wanted))
        details = dict(after)
        for seat, name in wanted.items():
            was = known[seat]
            await change.all(
                "rename", row.booking_id, seat, name.first_name or was.first_name, name.last_name or was.last_name, details[seat]
            )
        await change.modified(row.booking_id, {"renamed": [ride.label(seat) for seat in wanted]})
        if row.state in SOLD:
            await change.issue([row.booking_id])

    # --- seats of the same trip ---

    @read_again
    async def reseat(
        self, caller: Caller, key: Key | None, reference: str, moves: Mapping[str, str], trip_id: str | None, must_be: str | None = None
    ) -> Answer:
        """Other seats of the same class, all or none: old label -> new label. Raises `Refused` SEAT_TAKEN (named), OTHER_CLASS, ..."""
        shown = await self._desk.show(caller, reference=reference)
        trips = await self._reader.trips(shown)

        async def work(connection: Any) -> tuple[int, Any]:
            change = Change(connection, caller.actor, caller.request_id)
            rows, rides = await self._rides(change, shown, trips, must_be)
            meant = chosen(rides, list(moves), trip_id)
            if len(meant) != 1:
                raise Invalid("name the trip whose seats change: tripId", errors=[_wrong("/tripId", "MISSING_FIELD", "which trip")])
            ride, numbers = meant[0]
            pairs = self._pairs(ride, numbers, moves)
            row = ride.row
            if row.state in SOLD:
                await change.revoke([row.booking_id], numbers)
            try:
                await change.reseat(row.booking_id, pairs, moves)
            except Refused as refusal:
                raise worded(refusal, ride.trip) from refusal
            if row.state in SOLD:
                await change.issue([row.booking_id])
            return 200, self._said(reference, rows, 1)

        return await self._pool.once(key, shown["partner"], work)

    def _pairs(self, ride: Ride, numbers: Sequence[int], moves: Mapping[str, str]) -> dict[int, int]:
        """Old number -> new number. Raises `Invalid` for seats that are none, twice the same, or still kept by the booking itself."""
        trip, row = ride.trip, ride.row
        if row.map_version != trip.map_version:
            self._catalogue.forget(trip.trip_id)
            raise moved()
        pairs = {number: trip.number_of(moves[ride.label(number)], f"/seats/{ride.label(number)}") for number in numbers}
        staying = set(row.seats) - set(numbers)
        if len(set(pairs.values())) != len(pairs) or staying & set(pairs.values()):
            raise Invalid("two passengers cannot have one seat", errors=[_wrong("/seats", "SEAT_TWICE", "a seat is named twice")])
        layout = trip.layout
        for old, new in pairs.items():
            if layout.seat(old).kind != layout.seat(new).kind:
                detail = f"{trip.label_of(new)} is {layout.seat(new).kind}, {trip.label_of(old)} is {layout.seat(old).kind}"
                raise Refused(
                    "OTHER_CLASS",
                    f"{detail}: ask for it with tripId, for its price",
                    errors=[_wrong(f"/seats/{trip.label_of(old)}", "OTHER_CLASS", detail)],
                )
        seats.check_passengers(layout, [(pairs.get(one.seat, one.seat), one.detail) for one in ride.passengers])
        return pairs

    # --- another trip ---

    @read_again
    async def exchange(
        self, caller: Caller, key: Key | None, reference: str, other: OtherTrip, from_trip: str | None, must_be: str | None = None
    ) -> Answer:
        """One trip of a booking for another. The answer says what it costs: `due` is to be paid for `payRef` before it is done, or nothing.

        Raises `Refused` SEAT_TAKEN (named; nothing has changed then), HOLD_LIMIT (one such exchange waits already), SALES_CLOSED,
        WRONG_CURRENCY, TOO_LATE, WRONG_STATE; `Invalid`.
        """
        shown = await self._desk.show(caller, reference=reference)
        trips = await self._reader.trips(shown)
        to = open_for_sale(await self._catalogue.trip(other.trip_id), self._clock.now_ms())
        start, end, numbers = self._wish(shown, trips, to, other, from_trip)
        quote = await self._pricing.quote(to, start, end, numbers)

        async def work(connection: Any) -> tuple[int, Any]:
            change = Change(connection, caller.actor, caller.request_id)
            for trip_no in sorted({to.trip_no, *(row["tripNo"] for row in shown["rows"])}):
                await change.lock_trip(trip_no, alone=False)
            rows, rides = await self._rides(change, shown, trips, must_be)
            ride = self._one(rides, from_trip)
            if ride.row.state not in GOING:
                raise Refused("WRONG_STATE", "it is not paid for yet: cancel it and book the other trip", state=ride.row.state)
            if to.partner_id != ride.row.partner_id:
                raise Invalid(
                    "the other trip is another operator's", errors=[_wrong("/tripId", "OTHER_OPERATOR", "choose one of the same")]
                )
            if to.currency != ride.row.currency:
                raise Refused("WRONG_CURRENCY", f"{to.trip_id} is sold in {to.currency}, the booking in {ride.row.currency}")
            if len(numbers) != len(ride.row.seats):
                wanted = f"{len(ride.row.seats)} passengers, {len(numbers)} seats"
                raise Invalid(wanted, errors=[_wrong("/seats", "COUNT", "a seat for each passenger")])
            swap = Swapping(ride, to, start, end, numbers, _with_promo(quote, ride.row.quote), self._clock.uuid7())
            return 200, await self._exchange(change, rows, reference, swap)

        answer = await self._pool.once(key, shown["partner"], work)
        body = answer.body
        if body["payRef"] is not None:  # whoever opened the old booking opens the new one, for as long; made again for who asks again
            until_ms = caller.opened.until_ms if caller.opened is not None else 0
            body = body | {"holdToken": self._desk.tokens.mint(body["id"], None, until_ms)}
        return Answer(answer.status, body, answer.replayed)

    def _wish(
        self,
        shown: Any,
        trips: Mapping[tuple[int, int], tuple[SoldTrip, Sequence[str]]],
        to: SoldTrip,
        other: OtherTrip,
        from_trip: str | None,
    ) -> tuple[int, int, list[int]]:
        """(from, to, seat numbers in the order named). Stops that are not named are those of the ride that is given up."""
        start, end = other.start, other.end
        for row in shown["rows"]:
            trip, _ = trips[row["tripNo"], row["map"]]
            if row["state"] in CHANGING and from_trip in (None, trip.trip_id):
                start = start if start is not None else trip.stops[row["from"]].stop_id
                end = end if end is not None else trip.stops[row["to"]].stop_id
                break
        if start is None or end is None:
            raise Invalid("say where from and where to", errors=[_wrong("/from", "MISSING_FIELD", "a stop")])
        numbers = [to.number_of(label, f"/seats/{index}") for index, label in enumerate(other.labels)]
        if not numbers or len(set(numbers)) != len(numbers):
            raise Invalid("name a seat for each passenger, each once", errors=[_wrong("/seats", "SEAT_TWICE", "one for each passenger")])
        return *to.legs(start, end), numbers

    @staticmethod
    def _one(rides: Sequence[Ride], from_trip: str | None) -> Ride:
        meant = [ride for ride in rides if from_trip in (None, ride.trip.trip_id)]
        if len(meant) != 1:
            raise Invalid("name the trip that is given up: fromTripId", errors=[_wrong("/fromTripId", "MISSING_FIELD", "which trip")])
        return meant[0]

    async def _exchange(self, change: Change, rows: Sequence[Row], reference: str, swap: Swapping) -> dict[str, Any]:
        old = swap.ride.row
        fee = min(swap.ride.terms.modify_fee, swap.worth)
        due = swap.price - swap.worth + fee
        same_trip = swap.to.trip_no == old.trip_no
        if due <= 0 and same_trip:  # its own seats are free for it first
            await self._give(change, swap)
        waits = await change.value("exchange_waits", old.booking_id) if due > 0 else None
        if waits is not None:  # or one paid seat would hold a whole bus
            raise Refused(
                "HOLD_LIMIT", f"an exchange of it waits to be paid for already: pay for {waits}, cancel it, or wait until it is over"
            )
        await self._hold(change, swap)
        if due > 0:
            answer = await self._ask_for(change, swap, due, fee)
            return self._said(reference, rows, 0) | answer
        if not same_trip:
            await self._give(change, swap)
        await change.all("join_lead", swap.new_id, old.lead_id, old.reference, old.contact, swap.price, swap.bodies(), None)
        await self._take_extras(change, swap)
        await change.move([swap.new_id], CONFIRMED, None, {"insteadOf": swap.ride.trip.trip_id})
        await change.issue([swap.new_id])
        refund, ids = await change.refund(old.lead_id, -due, "EXCHANGED")
        money = {"amount": refund, "currency": old.currency}
        return self._said(reference, rows, 1) | {
            "status": shown_state([CONFIRMED, *(row.state for row in rows if row is not old)]),
            "version": version_of(rows) + 2,
            "fee": {"amount": fee, "currency": old.currency},
            "refund": money,
            "refundIds": ids,
            "id": swap.new_id,
        }

    async def _give(self, change: Change, swap: Swapping) -> None:
        """The old row is given up; what it was worth is in the new one's price from here on."""
        old = swap.ride.row
        await change.revoke([old.booking_id])
        await change.move([old.booking_id], EXCHANGED, None, {"by": old.reference})
        await change.all("worth", old.booking_id, 0)

    async def _hold(self, change: Change, swap: Swapping) -> None:
        """The new seats, through the constraint like everybody's. Raises `Refused`: everything rolls back."""
        order = sorted(range(len(swap.numbers)), key=swap.numbers.__getitem__)
        quote = msgspec.structs.replace(
            swap.quote, classes=tuple(swap.quote.classes[i] for i in order), adult=tuple(swap.quote.adult[i] for i in order)
        )
        try:
            await change.hold(
                swap.ride.row,
                swap.new_id,
                trip_no=swap.to.trip_no,
                map_version=swap.to.map_version,
                seats=[swap.numbers[i] for i in order],
                start=swap.start,
                end=swap.end,
                prices=[swap.prices[i] for i in order],
                quote=quote.body(),
                ttl_s=self._settings.hold_ttl_s,
            )
        except Refused as refusal:
            if refusal.code in ("STALE_MAP", "SALES_CLOSED"):
                self._catalogue.forget(swap.to.trip_id)
            raise worded(refusal, swap.to) from refusal

    async def _ask_for(self, change: Change, swap: Swapping, due: int, fee: int) -> dict[str, Any]:
        """A booking that waits for the difference."""
        old = swap.ride.row
        for _ in range(3):
            pay_ref = self._desk.new_reference()
            bodies = [body | {"booking": swap.new_id, "folded": folded(body["last_name"])} for body in swap.bodies()]
            said = await change.book(swap.new_id, pay_ref, bodies, old.contact, swap.price, self._settings.hold_ttl_s)
            if said["status"] != "REFUSED":
                break
        else:
            raise Refused("BUSY", "no reference could be given; ask again", retry_after_s=1)
        await self._take_extras(change, swap)
        await change.all("put_exchange", swap.new_id, old.partner_id, old.lead_id, old.booking_id, swap.worth - fee, swap.worth)
        currency = old.currency
        return {
            "id": swap.new_id,
            "payRef": pay_ref,
            "status": PENDING_PAYMENT,
            "due": {"amount": due, "currency": currency},
            "fee": {"amount": fee, "currency": currency},
            "expiresAt": rfc3339(round(datetime.fromisoformat(said["shown"]["rows"][0]["until"]).timestamp() * 1000)),
        }

    async def _take_extras(self, change: Change, swap: Swapping) -> None:
        """Baggage and meals go along, as far as the other trip has them."""
        seats_now = dict(zip(swap.ride.row.seats, swap.numbers, strict=True)) | {0: 0}
        things = [
            {"booking": swap.new_id, **dict(one), "seat": seats_now[one["seat"]]}
            for one in await change.all("extras_of", swap.ride.row.booking_id)
        ]
        if things:
            await change.all("take_extras", things)

    # --- all of them ---

    async def _rides(self, change: Change, shown: Any, trips: Any, must_be: str | None) -> tuple[list[Row], list[Ride]]:
        """(all rows, rides that can still be changed). Raises `Refused` WRONG_STATE, TOO_LATE, PAYMENT_IN_PROGRESS."""
        rows = await self._reader.rows(change, shown["lead"])
        unless_match(must_be, f'"{version_of(rows)}"', "the booking")
        rides = [ride for ride in await self._reader.rides(change, rows, trips) if ride.row.state in CHANGING]
        if not rides:
            raise Refused("WRONG_STATE", f"booking {shown['ref']} cannot be changed any more: {rows[0].state if rows else CANCELLED}")
        now_ms = self._clock.now_ms()
        left = [ride for ride in rides if ride.departs_at_ms > now_ms]
        if not left:
            check_can_go(rides[0], now_ms)
        if any(ride.row.paying for ride in rides):
            raise Refused("PAYMENT_IN_PROGRESS", "a payment for it is in progress; wait for its end", retry_after_s=5)
        return rows, left

    @staticmethod
    def _said(reference: str, rows: Sequence[Row], moved: int) -> dict[str, Any]:
        nothing = {"amount": 0, "currency": rows[0].currency}
        return {
            "ref": reference,
            "status": shown_state(row.state for row in rows),
            "version": version_of(rows) + moved,
            "fee": nothing,
            "refund": nothing,
            "due": nothing,
            "payRef": None,
        }


class Swapping:
    """One row given up for seats on a trip; `numbers` and `prices` in the order of the old seats."""

    def __init__(self, ride: Ride, to: SoldTrip, start: int, end: int, numbers: Sequence[int], quote: fares.Quote, new_id: str) -> None:
        self.ride, self.to, self.start, self.end, self.numbers, self.quote, self.new_id = ride, to, start, end, numbers, quote, new_id
        by_seat = {one.seat: one for one in ride.passengers}
        self.passengers: list[Passenger] = [by_seat[seat] for seat in ride.row.seats]
        seats.check_passengers(to.layout, [(n, one.detail) for n, one in zip(numbers, self.passengers, strict=True)])
        self.prices = quote.prices([one.type for one in self.passengers])
        row = ride.row
        self.worth = row.total if row.total is not None else sum(row.prices)
        self.price = sum(self.prices) + self.worth - sum(row.prices)  # what was bought beside the seats goes along

    def bodies(self) -> list[dict[str, Any]]:
        return [one.body(n, price) for one, n, price in zip(self.passengers, self.numbers, self.prices, strict=True)]


def _with_promo(quote: fares.Quote, sold: Any) -> fares.Quote:
    """A code that takes a share off goes along; one that takes a sum off has done so."""
    promo = fares.quote_from(sold).promo if sold is not None else None
    return fares.with_promo(quote, promo) if promo is not None and promo.kind == "PERCENT" else quote


def _named(ride: Ride, names: Sequence[NewName], trip_id: str | None) -> bool:
    labels = {ride.label(seat) for seat in ride.row.seats}
    return trip_id in (None, ride.trip.trip_id) and any(name.seat in labels for name in names)


def _wrong(pointer: str, code: str, detail: str) -> dict[str, str]:
    return {"pointer": pointer, "code": code, "detail": detail}


def worded(refusal: Refused, trip: SoldTrip) -> Refused:
    """What the database refused about seats of a trip, in words."""
    if refusal.code == "SEAT_TAKEN":
        labels = [trip.label_of(n) for n in refusal.facts["seats"]]
        faults = [_wrong(f"/seats/{label}", "SEAT_TAKEN", f"{label} is taken") for label in labels]
        return Refused("SEAT_TAKEN", f"{', '.join(labels)} on {trip.trip_id}: taken; nothing has changed", errors=faults)
    if refusal.code == "STALE_MAP":
        return moved()
    if refusal.code == "SALES_CLOSED":
        return sales_closed(trip.trip_id, str(refusal.facts.get("trip", "")))
    return refusal
