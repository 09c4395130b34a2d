"""Another bus for a trip: a plan that is shown, then its commit. Who sits where is swap.py's; here it is made to happen, at once for all.

The commit takes the trip alone (holds wait for it, a few hundredths of a second), makes the plan again with what was shown pinned, and
writes the next map version: every claim under its new seat, the old ones MOVED, rows, passengers and tickets with them. It is refused
(PLAN_STALE) where the trip, the layout or a booking of the plan has changed. Holds and sales that came since do not make it stale, or a
trip in demand could never change its bus: they are placed in what is left, by the same rules; of those, holds that find no room are let go.
A booking that left since is no matter either.

Overflow, those of the plan for whom there is no seat, is the operator's to decide: REFUND gives all their money back, REBOOK puts them on
the next trip of the route that has room for them at no cost, and where none has, gives the money back. Holds and what is not paid for go.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, Protocol

import msgspec

from engine.booking import seats
from engine.booking.booking import BOARDED, CANCELLED, CONFIRMED, EXCHANGED, PENDING_PAYMENT, RELEASED, SOLD
from engine.booking.callers import Caller
from engine.booking.catalogue import Catalogue, SoldTrip
from engine.booking.changes import Reader, Ride, give_up
from engine.booking.refusals import Refused
from engine.booking.swap import Overflow, Seat, Shown, SwapPlan, Taken, digest, legs_mask, parties_of, pins_of, plan, seats_of, stale
from engine.clock import Clock
from engine.errors import EngineError, Invalid, NotFound, Unavailable
from engine.settings import Settings
from engine.store.changes import Change, Row
from engine.store.desk import Answer, DeskPool, Key

REBOOK_WITHIN: Final = timedelta(days=2)
REBOOK_TRIPS: Final = 4  # later trips that are looked at
RUNNING: Final = ("SCHEDULED", "STARTED")  # of a trip whose bus may be swapped

Decision = Literal["REFUND", "REBOOK"]


class PickBoard(Protocol):
    """What we need of `engine.store.picks.Picks`."""

    async def picture(self, trip_id: str) -> Any: ...
    async def drop(self, trip: Any, owner: str) -> None: ...


class Bus(msgspec.Struct, frozen=True):
    """The other bus: its layout as the operator drew it."""

    layout_id: str
    version: int
    layout: seats.Layout
    bus_id: str | None

    @property
    def seats(self) -> list[Seat]:
        return [seat for seat in seats_of(self.layout) if seat.number in self.layout.sellable]


class Swaps:
    """Bus swaps by the operator. `picks` None: without them."""

    def __init__(self, pool: DeskPool, catalogue: Catalogue, clock: Clock, settings: Settings, picks: PickBoard | None = None) -> None:
        self._pool, self._catalogue, self._clock, self._settings, self._picks = pool, catalogue, clock, settings, picks
        self._reader = Reader(catalogue, clock)

    # --- the plan ---

    async def plan(self, caller: Caller, trip_id: str, layout_id: str, bus_id: str | None) -> dict[str, Any]:
        """Who would sit where, kept under its `planId`. Changes nothing. Raises `NotFound` for a trip or a layout that is not theirs."""
        trip = await self._owned(caller, trip_id)

        async def work(connection: Any) -> tuple[SwapPlan, Sequence[Taken], Bus, str, Any]:
            change = Change(connection, caller.actor, caller.request_id)
            now = await self._running(change, trip)
            bus = await self._bus(change, now["partner_id"], layout_id, bus_id)
            claims = [claim for claim in await _claims(change, now) if not claim.over]
            old = {seat.number: seat for seat in seats_of(await self._layout(change, now))}
            made = plan(old, bus.seats, parties_of(claims))
            legs = {(claim.booking_id, claim.seat): 0 for claim in claims}
            for claim in claims:
                legs[claim.booking_id, claim.seat] |= claim.legs
            moves = [(m.booking_id, m.seat, m.to, legs[m.booking_id, m.seat]) for m in made.moves]
            overflow = [(o.booking_id, seat, legs[o.booking_id, seat]) for o in made.overflow for seat in o.seats]
            plan_id = digest([trip.trip_no, now["map_version"], layout_id, bus.version, bus_id, moves, overflow])
            await change.all(
                "put_plan", trip.trip_no, plan_id, now["partner_id"], now["map_version"], layout_id, bus.version, bus_id, moves, overflow,
                change.actor, change.request_id,
            )  # fmt: skip
            return made, claims, bus, plan_id, now

        made, claims, bus, plan_id, now = await self._pool.run(trip.partner_id, work)
        labels = await self._catalogue.labels(trip, now["map_version"])
        named = {claim.booking_id: claim for claim in claims}
        new = bus.layout.labels
        return {
            "planId": plan_id,
            "tripId": trip_id,
            "mapVersion": now["map_version"],
            "layoutId": layout_id,
            "busId": bus_id,
            "moves": [_who(named[m.booking_id]) | {"seat": labels[m.seat - 1], "to": new[m.to - 1], "rule": m.rule} for m in made.moves],
            "overflow": [
                _who(named[o.booking_id]) | {"seats": [labels[n - 1] for n in o.seats], "options": _options(named[o.booking_id])}
                for o in made.overflow
            ],
        }

    # --- the commit ---

    async def commit(self, caller: Caller, key: Key | None, trip_id: str, plan_id: str, overflow: Decision | None) -> Answer:
        """The plan made true. Committing it again says the same again.

        Raises `Refused` PLAN_STALE, OVERFLOW_UNDECIDED (its errors name the bookings), TRIP_OVER; `NotFound`.
        """
        trip = await self._owned(caller, trip_id)
        later = await self._later(trip) if overflow == "REBOOK" else []

        async def work(connection: Any) -> tuple[int, Any]:
            change = Change(connection, caller.actor, caller.request_id)
            shown = await self._shown(change, trip, plan_id)
            leads = await self._leads_of(change, shown)
            numbers = {row["trip_no"] for row in await change.all("trips_of_leads", leads)} | {one.trip_no for one in later}
            for trip_no in sorted(numbers | {trip.trip_no}):
                await change.lock_trip(trip_no, alone=trip_no == trip.trip_no)
            return 200, await self._commit(change, trip, plan_id, overflow, later)

        answer = await self._pool.once(key, trip.partner_id, work)
        self._catalogue.forget(trip_id)
        await self._drop_picks(trip)
        return answer

    async def _commit(
        self, change: Change, trip: SoldTrip, plan_id: str, decision: Decision | None, later: Sequence[SoldTrip]
    ) -> dict[str, Any]:
        """With the trip alone: look again, place everybody, write it."""
        shown = await self._shown(change, trip, plan_id)
        if shown.answer is not None:
            return shown.answer
        now = await self._running(change, trip)
        if now["map_version"] != shown.map_version:
            raise stale("the bus was swapped")
        bus = await self._bus(change, now["partner_id"], shown.layout_id, shown.bus_id)
        if bus.version != shown.layout_version:
            raise stale("the layout has changed")
        over = sorted({claim.booking_id for claim in await _claims(change, now) if claim.over})
        if over:
            await change.all("expire", over, change.request_id)
        claims = await _claims(change, now)
        rows = {row.booking_id: row for row in await change.lock_leads(sorted({claim.lead_id for claim in claims}))}
        old_layout = await self._layout(change, now)
        old = {seat.number: seat for seat in seats_of(old_layout)}
        pins = pins_of(shown, claims)
        made = plan(old, bus.seats, parties_of(claims), pins)
        self._undecided(made.overflow, rows, pins, decision, old_layout.labels)
        labels = old_layout.labels
        done, gone = [], set()
        for part in made.overflow:
            if part.booking_id in gone:
                continue
            row = rows[part.booking_id]
            said, dropped = await self._spill(change, trip, now, labels, row, part.seats, decision, later)
            gone |= dropped
            done.append({"ref": row.reference, "bookingId": row.booking_id, "seats": [labels[n - 1] for n in part.seats], **said})
        moves = [move for move in made.moves if move.booking_id not in gone]
        told = await change.value(
            "swap", trip.trip_no, shown.map_version, [m.booking_id for m in moves], [m.seat for m in moves], [m.to for m in moves],
            bus.layout_id, bus.bus_id, sorted(bus.layout.sellable), list(bus.layout.labels), bus.layout.body(), change.actor, change.request_id,
        )  # fmt: skip
        answer = {"planId": plan_id, "tripId": trip.trip_id, "moved": len(moves), "bookings": len({m.booking_id for m in moves})}
        answer |= {**told, "overflow": done}
        await change.all("use_plan", trip.trip_no, plan_id, answer)
        return answer

    @staticmethod
    def _undecided(
        overflow: Sequence[Overflow],
        rows: Mapping[str, Row],
        pins: Mapping[tuple[str, int], int | None],
        decision: Decision | None,
        labels: Sequence[str],
    ) -> None:
        """Raises `Refused` where passengers lose their seat without anybody having decided what becomes of them, or unseen."""
        for part in overflow:
            row = rows[part.booking_id]
            if (row.state in SOLD or row.paying) and any((part.booking_id, seat) not in pins for seat in part.seats):
                raise stale("more was sold since than the other bus has seats")
        waiting = [part for part in overflow if rows[part.booking_id].state in SOLD]
        if waiting and decision is None:
            faults = [
                {"pointer": "/overflow", "code": "NO_SEAT", "detail": f"{rows[part.booking_id].reference}: seat {labels[seat - 1]}"}
                for part in waiting
                for seat in part.seats
            ]
            raise Refused("OVERFLOW_UNDECIDED", "say what becomes of them: overflow REFUND or REBOOK", errors=faults)

    # --- those for whom there is no seat ---

    async def _spill(
        self,
        change: Change,
        trip: SoldTrip,
        now: Any,
        labels: Sequence[str],
        row: Row,
        numbers: Sequence[int],
        decision: Decision | None,
        later: Sequence[SoldTrip],
    ) -> tuple[dict[str, Any], set[str]]:
        """(what became of them, ids of the rows that have no seats here any more)."""
        whole = set(row.seats) <= set(numbers)
        if row.state in SOLD:
            key = (row.trip_no, row.map_version)
            ride = (await self._reader.rides(change, [row], {key: (trip, labels)}))[0]
            if decision == "REBOOK" and row.state != BOARDED:
                for other in later:
                    seated = await self._rebook(change, ride, numbers, other)
                    if seated is not None:
                        return {"done": "REBOOKED", "onTripId": other.trip_id, "onSeats": seated}, {row.booking_id} if whole else set()
            worth = ride.worth(numbers)
            await give_up(change, ride, numbers, {"reason": "BUS_SWAPPED"})
            refund, ids = await change.refund(row.lead_id, worth, "BUS_SWAPPED")
            said = {"done": "REFUNDED", "refund": {"amount": refund, "currency": row.currency}, "refundIds": ids}
            return said, {row.booking_id} if whole else set()
        if row.channel == "LEASE" and not whole:
            await change.shrink(row.booking_id, numbers, row.total, {"reason": "BUS_SWAPPED"})
            return {"done": "RELEASED"}, set()
        ids_ = [one.booking_id for one in await change.locked(row.lead_id) if one.state == row.state]
        to = CANCELLED if row.state == PENDING_PAYMENT else RELEASED
        if row.channel == "LEASE":
            ids_ = [row.booking_id]
        await change.move(ids_, to, None, {"reason": "BUS_SWAPPED"})
        return {"done": to}, set(ids_)

    async def _rebook(self, change: Change, ride: Ride, numbers: Sequence[int], other: SoldTrip) -> list[str] | None:
        """Seats of another trip for these passengers at the old price: their labels, or None where they cannot travel on it."""
        row, new_id = ride.row, self._clock.uuid7()
        stops = [ride.trip.stops[place].stop_id for place in (row.start, row.end)]
        by_seat = {one.seat: one for one in ride.passengers}
        people = [by_seat[seat] for seat in numbers]
        prices = dict(zip(row.seats, row.prices, strict=True))
        try:
            start, end = other.legs(*stops)
            taken = {one["seat"] for one in await change.all("taken", other.trip_no, other.map_version, start, end)}
            found = seats.best_available(other.layout, set(other.sellable) - taken, len(numbers))
            seats.check_passengers(other.layout, [(n, one.detail) for n, one in zip(found, people, strict=False)])
            if not found:
                return None
            async with change.attempt():
                await change.hold(
                    row, new_id, trip_no=other.trip_no, map_version=other.map_version, seats=found, start=start, end=end,
                    prices=[prices[seat] for seat in numbers], quote=None, ttl_s=self._settings.hold_ttl_s,
                )  # fmt: skip
                await self._take_over(change, ride, numbers, new_id, found)
        except EngineError:
            return None  # another stop pattern, a rule of the operator, a race lost: the next trip
        return [other.label_of(n) for n in found]

    async def _take_over(self, change: Change, ride: Ride, numbers: Sequence[int], new_id: str, found: Sequence[int]) -> None:
        """The held row in place of the old one, or of a part of it, with its passengers, baggage and tickets."""
        row, worth = ride.row, ride.worth(numbers)
        now_on = dict(zip(numbers, found, strict=True))
        things = [dict(one) for one in await change.all("extras_of", row.booking_id) if one["seat"] in now_on]
        bodies = [one.body(now_on[one.seat], one.price) for one in ride.passengers if one.seat in now_on]
        if set(row.seats) <= set(numbers):
            await change.revoke([row.booking_id])
            await change.move([row.booking_id], EXCHANGED, None, {"by": row.reference, "reason": "BUS_SWAPPED"})
            await change.all("worth", row.booking_id, 0)
        else:
            await give_up(change, ride, numbers, {"reason": "BUS_SWAPPED"})
        await change.all("join_lead", new_id, row.lead_id, row.reference, row.contact, worth, bodies, row.quote)
        if things:
            await change.all("take_extras", [one | {"booking": new_id, "seat": now_on[one["seat"]]} for one in things])
        await change.move([new_id], CONFIRMED, None, {"insteadOf": ride.trip.trip_id, "reason": "BUS_SWAPPED"})
        await change.issue([new_id])

    # --- what they look at ---

    async def _owned(self, caller: Caller, trip_id: str) -> SoldTrip:
        trip = await self._catalogue.trip(trip_id)
        if not caller.runs(trip.partner_id):
            raise NotFound(f"no trip {trip_id[:120]!r} is on sale")
        return trip

    async def _running(self, change: Change, trip: SoldTrip) -> Any:
        now = await change.one("trip_by_no", trip.trip_no)
        if now is None or now["status"] not in RUNNING:
            raise Refused("TRIP_OVER", f"{trip.trip_id} is {now['status'] if now else 'gone'}: its bus stays")
        return now

    async def _shown(self, change: Change, trip: SoldTrip, plan_id: str) -> Shown:
        row = await change.one("plan", trip.trip_no, plan_id)
        if row is None:
            raise NotFound(f"no plan {plan_id[:64]!r} for {trip.trip_id}: ask for one with plan true")
        return msgspec.convert({name: row[name] for name in Shown.__struct_fields__}, Shown)

    @staticmethod
    async def _leads_of(change: Change, shown: Shown) -> list[str]:
        ids = sorted({booking_id for booking_id, _, _ in shown.overflow})
        return sorted({str(row["lead_id"]) for row in await change.all("leads_of", ids)})

    async def _bus(self, change: Change, partner_id: str, layout_id: str, bus_id: str | None) -> Bus:
        row = await change.one("layout", partner_id, layout_id)
        if row is None:
            raise Invalid(
                f"no seat layout {layout_id[:48]!r}",
                errors=[{"pointer": "/layoutId", "code": "UNKNOWN_LAYOUT", "detail": "none of this operator's layouts"}],
            )
        return Bus(layout_id, row["version"], seats.layout_of(row["body"]), bus_id)

    @staticmethod
    async def _layout(change: Change, now: Any) -> seats.Layout:
        row = await change.one("map", now["trip_no"], now["map_version"])
        if row is None:
            raise NotFound(f"{now['trip_id']} has no seat map")
        return seats.layout_of(row["layout"])

    async def _later(self, trip: SoldTrip) -> list[SoldTrip]:
        """Trips that could take passengers over, soonest first."""
        after = datetime.fromtimestamp(trip.departs_at_ms / 1000, UTC)

        async def read(connection: Any) -> list[Any]:
            change = Change(connection, "", "")
            return await change.all("later_trips", trip.route_id, trip.partner_id, trip.trip_no, after, REBOOK_WITHIN, REBOOK_TRIPS)

        rows = await self._pool.run(trip.partner_id, read)
        for row in rows:
            self._catalogue.forget(row["trip_id"])
        return [await self._catalogue.trip(row["trip_id"]) for row in rows]

    async def _drop_picks(self, trip: SoldTrip) -> None:
        """Who was choosing chooses anew: the seats are others."""
        if self._picks is None:
            return
        with contextlib.suppress(Unavailable):  # they end by themselves
            picture = await self._picks.picture(trip.trip_id)
            for owner in sorted({pick.owner for picks in picture.picks.values() for pick in picks}):
                await self._picks.drop(trip, owner)


async def _claims(change: Change, now: Any) -> list[Taken]:
    rows = await change.all("claims_of_trip", now["trip_no"], now["map_version"])
    return [
        Taken(
            str(row["booking_id"]), str(row["lead_id"]), row["reference"], row["state"], row["channel"], row["seat"],
            legs_mask(row["start"], row["end"]), row["over"],
        )
        for row in rows
    ]  # fmt: skip


def _who(claim: Taken) -> dict[str, Any]:
    return {"ref": claim.reference, "bookingId": claim.booking_id, "state": claim.state}


def _options(claim: Taken) -> list[str]:
    """What may become of somebody without a seat."""
    if claim.state not in SOLD:
        return ["RELEASE"]
    return ["REFUND"] if claim.state == BOARDED else ["REBOOK", "REFUND"]
