"""Cancellations: an offer, then its confirmation. The rules are pure; the shell is one transaction for each.

An offer says what would go back and why. It is good for the booking as it was when it was made, for a quarter of an hour, and once:
confirming it again says the same again. What a cancellation keeps follows the terms that were sold (the quote on the booking), by hours
before the departure from the passenger's stop; promo codes are in the price already, what was bought beside the seats counts like the fare.
A booking that nobody has paid for is let go at once and as a whole.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, ParamSpec

import msgspec

from engine.booking import fares, money
from engine.booking.booking import CANCELLED, CHECKED_IN, CONFIRMED, HELD, PENDING_PAYMENT, shown_state
from engine.booking.callers import Caller
from engine.booking.catalogue import Catalogue, SoldTrip
from engine.booking.desk import Desk
from engine.booking.refusals import Refused, unless_match
from engine.clock import Clock
from engine.errors import Invalid, NotFound
from engine.live.frames import rfc3339
from engine.store.changes import Change, Passenger, Row, version_of
from engine.store.desk import Answer, DeskPool, Key

OFFER_LIFE: Final = timedelta(minutes=15)
TRIES: Final = 3
GOING: Final = frozenset({CONFIRMED, CHECKED_IN})  # states that a passenger may still change
UNPAID: Final = frozenset({HELD, PENDING_PAYMENT})
OUT: Final = "CANCELLED"  # of a passenger

P = ParamSpec("P")


# ------------------------------------------------------------------------------------------------ rules


class Terms(msgspec.Struct, frozen=True):
    """What a change of a row costs, as it was sold: steps of the cancellation (none: nothing goes back) and the fee of an exchange."""

    fees: tuple[fares.FeeStep, ...]
    modify_fee: int = 0


class Part(msgspec.Struct, frozen=True, rename="camel"):
    """What of one row is cancelled: `seats` by number, `whole` where none is left; minor units."""

    id: str
    seats: list[int]
    whole: bool
    fee: int
    refund: int


class Ride(msgspec.Struct, frozen=True):
    """A row with all that a change of it needs to know."""

    row: Row
    trip: SoldTrip
    labels: Sequence[str]  # of the row's map
    passengers: tuple[Passenger, ...]  # who still travel
    extras: Mapping[int, int]  # seat -> minor units bought beside it
    terms: Terms

    @property
    def departs_at_ms(self) -> int:
        """From the passenger's stop."""
        return self.trip.stops[self.row.start].departs_at_ms

    def label(self, seat: int) -> str:
        return self.labels[seat - 1]

    def worth(self, seats: Sequence[int]) -> int:
        """What some seats count for: fares and what was bought with them; of all seats the row's total."""
        total = self.row.total if self.row.total is not None else sum(self.row.prices)
        if set(self.row.seats) <= set(seats):
            return total
        prices = dict(zip(self.row.seats, self.row.prices, strict=True))
        return min(total, sum(prices[seat] + self.extras.get(seat, 0) for seat in seats))


def part_of(ride: Ride, seats: Sequence[int], now_ms: int) -> Part:
    """What cancelling these seats keeps and gives back."""
    worth = ride.worth(seats)
    fee = money.scaled(worth, fares.fee_permille(ride.terms.fees, ride.departs_at_ms, now_ms))
    return Part(ride.row.booking_id, sorted(seats), set(ride.row.seats) <= set(seats), fee, worth - fee)


def check_can_go(ride: Ride, now_ms: int) -> None:
    """Raises `Refused` where a passenger may not change this row any more."""
    if ride.row.state not in GOING:
        raise Refused("WRONG_STATE", f"the booking for {ride.trip.trip_id} is {ride.row.state}", state=ride.row.state)
    if ride.departs_at_ms <= now_ms:
        raise Refused("TOO_LATE", f"{ride.trip.trip_id} has left {ride.trip.stops[ride.row.start].name} already")


def chosen(rides: Sequence[Ride], labels: Sequence[str], trip_id: str | None) -> list[tuple[Ride, list[int]]]:
    """(ride, seat numbers) that are meant: all seats of all rides that go on, of one trip, or the seats named.

    Raises `Invalid` for a trip or a seat that is not in the booking, and a seat that two trips of it have where no trip is named.
    """
    meant = [ride for ride in rides if trip_id is None or ride.trip.trip_id == trip_id]
    if not meant:
        raise Invalid(
            f"the booking has no trip {str(trip_id)[:80]!r}",
            errors=[{"pointer": "/tripId", "code": "UNKNOWN_TRIP", "detail": "not in this booking"}],
        )
    if not labels:
        return [(ride, list(ride.row.seats)) for ride in meant]
    found: dict[str, tuple[Ride, list[int]]] = {}
    for index, label in enumerate(labels):
        having = [(ride, seat) for ride in meant for seat in ride.row.seats if ride.label(seat) == label]
        if len(having) != 1 or label in labels[:index]:
            code, what = ("UNKNOWN_SEAT", "is not in this booking") if not having else ("SEAT_TWICE", "is named twice: say which tripId")
            detail = f"seat {label[:20]!r} {what}"
            raise Invalid(detail, errors=[{"pointer": f"/seats/{index}", "code": code, "detail": detail}])
        ride, seat = having[0]
        found.setdefault(ride.row.booking_id, (ride, []))[1].append(seat)
    return list(found.values())


def reasons(parts: Sequence[tuple[Ride, Part]], now_ms: int) -> list[dict[str, Any]]:
    """Why a cancellation keeps what it keeps, for each trip."""
    said = []
    for ride, part in parts:
        permille = fares.fee_permille(ride.terms.fees, ride.departs_at_ms, now_ms)
        hours = max(ride.departs_at_ms - now_ms, 0) // fares.HOUR_MS
        what = "nothing is given back" if permille == 1000 else f"{permille / 10:g} % is kept"
        said.append(
            {
                "code": "CANCELLATION_FEE",
                "tripId": ride.trip.trip_id,
                "detail": f"{hours} h before departure: {what}",
                "permille": permille,
                "amount": part.fee,
                "seats": [ride.label(seat) for seat in part.seats],
            }
        )
    return said


# ------------------------------------------------------------------------------------------------ the shell


class Reader:
    """Rides of a booking inside a transaction: rows locked, trips from memory."""

    def __init__(self, catalogue: Catalogue, clock: Clock) -> None:
        self.catalogue, self.clock = catalogue, clock

    async def trips(self, shown: Any) -> dict[tuple[int, int], tuple[SoldTrip, Sequence[str]]]:
        """(trip number, map version) -> trip and labels, read before the transaction so that it takes no second connection."""
        found: dict[tuple[int, int], tuple[SoldTrip, Sequence[str]]] = {}
        for row in shown["rows"]:
            trip = await self.catalogue.by_no(row["tripNo"])
            found[row["tripNo"], row["map"]] = trip, await self.catalogue.labels(trip, row["map"])
        return found

    async def rows(self, change: Change, lead_id: str) -> list[Row]:
        """All of a booking, locked. Raises `NotFound` where it is gone."""
        rows = await change.locked(lead_id)
        if not rows:
            raise NotFound("the booking is gone")
        return rows

    async def rides(
        self, change: Change, rows: Sequence[Row], trips: Mapping[tuple[int, int], tuple[SoldTrip, Sequence[str]]]
    ) -> list[Ride]:
        """Raises `Refused` BUSY where a trip came in or a bus was swapped since `trips` were read."""
        ids = [row.booking_id for row in rows]
        passengers, extras = await change.passengers(ids), await change.extras(ids)
        found = []
        for row in rows:
            if (row.trip_no, row.map_version) not in trips:
                raise moved()
            trip, labels = trips[row.trip_no, row.map_version]
            mine = tuple(one for one in passengers if one.booking_id == row.booking_id and one.state != OUT)
            beside = {seat: amount for (row_id, seat), amount in extras.items() if row_id == row.booking_id}
            found.append(Ride(row, trip, labels, mine, beside, await self._terms(change, row)))
        return found

    async def _terms(self, change: Change, row: Row) -> Terms:
        """As they were sold; of a sale without a quote (a point of sale) those of the trip's fare plan."""
        if row.quote is not None:
            quote = fares.quote_from(row.quote)
            return Terms(quote.fees, quote.modify_fee)
        body = await change.value("fare_terms", row.trip_no)
        if body is None:
            return Terms(())
        plan = fares.plan_of(body).body
        return Terms(tuple(plan.cancellation) if plan.refundable else (), plan.modify_fee)


def moved() -> Refused:
    """What was read before the transaction is no longer so."""
    return Refused("BUSY", "it was exchanged or its bus was swapped just now; ask again", retry_after_s=1, moved=True)


def read_again(change: Callable[P, Awaitable[Answer]]) -> Callable[P, Awaitable[Answer]]:
    """A change that meets the end of a bus swap or an exchange (`moved`) reads again and is tried again, at most TRIES times."""

    @functools.wraps(change)
    async def tried(*args: P.args, **kwargs: P.kwargs) -> Answer:
        for _ in range(TRIES - 1):
            try:
                return await change(*args, **kwargs)
            except Refused as refusal:
                if not refusal.facts.get("moved"):
                    raise
        return await change(*args, **kwargs)

    return tried


class Changes:
    """Cancellations by whoever may open a booking."""

    def __init__(self, pool: DeskPool, desk: Desk, clock: Clock) -> None:
        self._pool, self._desk, self._clock = pool, desk, clock
        self._reader = Reader(desk.catalogue, clock)

    @read_again
    async def cancel(
        self,
        caller: Caller,
        key: Key | None,
        reference: str,
        *,
        seats: Sequence[str] = (),
        trip_id: str | None = None,
        offer_id: str | None = None,
        must_be: str | None = None,
    ) -> Answer:
        """An offer, or with `offer_id` its confirmation. `seats` (labels), `trip_id`: a part of the booking.

        Raises `Refused` OFFER_STALE, OFFER_EXPIRED, WRONG_STATE, TOO_LATE, PAYMENT_IN_PROGRESS, PRECONDITION_FAILED; `Invalid`; `NotFound`.
        """
        shown = await self._desk.show(caller, reference=reference)
        trips = await self._reader.trips(shown)

        async def work(connection: Any) -> tuple[int, Any]:
            change = Change(connection, caller.actor, caller.request_id)
            rows = await self._reader.rows(change, shown["lead"])
            if offer_id is not None:
                return 200, await self._confirm(change, rows, trips, reference, offer_id, must_be)
            unless_match(must_be, f'"{version_of(rows)}"', "the booking")
            return 200, await self._offer(change, rows, trips, reference, seats, trip_id)

        return await self._pool.once(key, shown["partner"], work)

    async def _offer(
        self, change: Change, rows: Sequence[Row], trips: Any, reference: str, seats: Sequence[str], trip_id: str | None
    ) -> dict[str, Any]:
        rides = await self._reader.rides(change, rows, trips)
        open_ = [ride for ride in rides if ride.row.state in UNPAID]
        now_ms = self._clock.now_ms()
        if open_:
            return await self._let_go(change, open_, reference)
        going = [ride for ride in rides if ride.row.state in GOING]
        if not going:
            state = shown_state(row.state for row in rows)
            raise Refused("WRONG_STATE", f"booking {reference} is {state}; nothing of it can be cancelled", state=state)
        meant = chosen(going, seats, trip_id)
        if not seats and trip_id is None and len(meant) > 1:  # of a return trip whose first way is over, the rest
            meant = [(ride, numbers) for ride, numbers in meant if ride.departs_at_ms > now_ms] or meant
        for ride, _ in meant:
            check_can_go(ride, now_ms)
        parts = [(ride, part_of(ride, numbers, now_ms)) for ride, numbers in meant]
        return await self._put(change, rows, [part for _, part in parts], reasons(parts, now_ms), reference, self._labels(parts))

    async def _let_go(self, change: Change, rides: Sequence[Ride], reference: str) -> dict[str, Any]:
        """Nobody has paid: the whole booking, at once, for nothing."""
        if any(ride.row.paying for ride in rides):
            raise Refused("PAYMENT_IN_PROGRESS", "a payment for it is in progress; wait for its end", retry_after_s=5)
        await change.move([ride.row.booking_id for ride in rides], CANCELLED, None, {"reason": "UNPAID"})
        parts = [(ride, Part(ride.row.booking_id, list(ride.row.seats), True, 0, 0)) for ride in rides]
        why = [{"code": "UNPAID", "detail": "nothing was paid; the seats are free again"}]
        row = rides[0].row
        answer = self._said(reference, [part for _, part in parts], row.currency, CANCELLED, self._labels(parts))
        answer["version"] = version_of([ride.row for ride in rides]) + len(rides)
        return await self._put(
            change, [ride.row for ride in rides], [part for _, part in parts], why, reference, self._labels(parts), answer
        )

    async def _put(
        self,
        change: Change,
        rows: Sequence[Row],
        parts: Sequence[Part],
        why: list[dict[str, Any]],
        reference: str,
        labels: list[str],
        answer: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The offer kept and told; with `answer` it is used already."""
        offer_id, row = self._clock.uuid7(), rows[0]
        fee, refund = sum(part.fee for part in parts), sum(part.refund for part in parts)
        versions = {one.booking_id: one.version for one in rows}
        until = await change.value(
            "put_offer", offer_id, row.lead_id, row.partner_id, versions, msgspec.to_builtins(parts), fee, refund, row.currency,
            OFFER_LIFE, answer, change.actor, change.request_id,
        )  # fmt: skip
        offered = {
            "offerId": offer_id,
            "expiresAt": rfc3339(round(until.timestamp() * 1000)),
            "reasons": why,
            "version": version_of(rows),
        }
        return self._said(reference, parts, row.currency, shown_state(one.state for one in rows), labels) | offered | (answer or {})

    async def _confirm(
        self, change: Change, rows: Sequence[Row], trips: Any, reference: str, offer_id: str, must_be: str | None
    ) -> dict[str, Any]:
        offer = await change.one("offer", offer_id)
        if offer is None or offer["partner_id"] != rows[0].partner_id:
            raise NotFound(f"booking {reference} has no offer {offer_id[:40]!r}; ask for one: the same call without offerId")
        if offer["answer"] is not None and str(offer["lead_id"]) == rows[0].lead_id:
            used: dict[str, Any] = offer["answer"]
            return used
        if offer["over"]:
            raise Refused("OFFER_EXPIRED", "the offer is over; ask for a new one: the same call without offerId")
        versions = {row.booking_id: row.version for row in rows}
        if str(offer["lead_id"]) != rows[0].lead_id or offer["versions"] != versions:
            raise Refused(
                "OFFER_STALE", "the booking has changed since this was offered; ask for a new offer: the same call without offerId"
            )
        unless_match(must_be, f'"{version_of(rows)}"', "the booking")
        rides = {ride.row.booking_id: ride for ride in await self._reader.rides(change, rows, trips)}
        parts = msgspec.convert(offer["parts"], list[Part])
        for part in parts:
            check_can_go(rides[part.id], self._clock.now_ms())
        for part in parts:
            await give_up(change, rides[part.id], part.seats, {"fee": part.fee, "refund": part.refund})
        refund, ids = await change.refund(rows[0].lead_id, offer["refund"], "CANCELLED")
        after = [row.state if not any(part.id == row.booking_id and part.whole for part in parts) else CANCELLED for row in rows]
        labels = self._labels([(rides[part.id], part) for part in parts])
        answer = self._said(reference, parts, rows[0].currency, shown_state(after), labels)
        answer |= {"offerId": offer_id, "version": version_of(rows) + len(parts), "refundIds": ids}
        answer["refund"] = {"amount": refund, "currency": rows[0].currency}
        await change.all("use_offer", offer_id, answer)
        return answer

    @staticmethod
    def _labels(parts: Sequence[tuple[Ride, Part]]) -> list[str]:
        return [ride.label(seat) for ride, part in parts for seat in part.seats]

    @staticmethod
    def _said(reference: str, parts: Sequence[Part], currency: str, status: str, labels: list[str]) -> dict[str, Any]:
        return {
            "ref": reference,
            "status": status,
            "fee": {"amount": sum(part.fee for part in parts), "currency": currency},
            "refund": {"amount": sum(part.refund for part in parts), "currency": currency},
            "seats": labels,
        }


async def give_up(change: Change, ride: Ride, seats: Sequence[int], more: Mapping[str, Any]) -> None:
    """Seats of a paid row go, with their tickets; the row is CANCELLED where none is left. Money is the caller's business."""
    row = ride.row
    if set(row.seats) <= set(seats):
        await change.revoke([row.booking_id])
        await change.move([row.booking_id], CANCELLED, None, more)
        return
    await change.revoke([row.booking_id], seats)
    left = [seat for seat in row.seats if seat not in seats]
    named = {"gone": [ride.label(seat) for seat in seats], **more}
    await change.shrink(row.booking_id, seats, ride.worth(row.seats) - ride.worth(seats), named | {"left": len(left)})
