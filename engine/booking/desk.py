"""The desk: seats held, extended, let go, booked and shown. The second walk of docs/walkthrough.md begins here.

A hold is one round trip to PostgreSQL, whose exclusion constraint is the judge; before it, and without any say in correctness, come the
trip in memory (stops, seat numbers), the waiting room of a rush, other people's picks (Redis; ignored where it is away) and the price (from
memory). Everything that a hold answers can be made again from what is stored under its key, the token too, so that asking twice is harmless.
"""

from __future__ import annotations

import base64
import unicodedata
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from engine.booking import fares, seats
from engine.booking.callers import Caller, HoldTokens
from engine.booking.catalogue import Catalogue, SoldTrip, open_for_sale, sales_closed
from engine.booking.extras import Asked, ExtraRow, Extras
from engine.booking.refusals import Refused
from engine.clock import Clock
from engine.errors import Invalid, NotFound, Unavailable
from engine.meter import Meter
from engine.settings import Settings
from engine.store.bookings import Booked, Bookings, Held, NewHold
from engine.store.desk import Key

ALPHABET: Final = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # of references: no 0 O 1 I
SEATS_MOST: Final = 60  # of one hold, also for the operator's own desk
TRIES: Final = 3  # of a choice of seats that others took meanwhile, of a map that changed, of a reference in use
BEFORE_KEY: Final = frozenset(
    {"SEAT_PICKED", "TOO_FEW_SEATS", "WAITING_ROOM", "QUOTE_EXPIRED", "SALES_CLOSED"}
)  # said before the key is looked at
FRESH_MS: Final = 500  # a trip read so lately need not be read again because somebody names a seat that it has not
LOOKUP_S: Final = 1_800  # life of the token that a look-up answers
MADE_MOST: Final = 2_000  # holds of this worker that it remembers until they are booked


class Pricing(Protocol):
    """Prices of seats, from memory (engine/booking/pricing.py)."""

    async def quote(self, trip: SoldTrip, start: int, end: int, numbers: Sequence[int], promo: str | None = None) -> fares.Quote: ...
    async def recall(
        self, quote_id: str, trip: SoldTrip, start: int, end: int, numbers: Sequence[int], promo: str | None = None
    ) -> fares.Quote: ...
    async def extras(
        self,
        rows: Sequence[ExtraRow],
        quotes: Sequence[fares.Quote],
        types: Sequence[Sequence[str]],
        asked: Sequence[Asked] = (),
        promo_code: str | None = None,
        contact: dict[str, Any] | None = None,
        customer: str | None = None,
    ) -> Extras: ...


class Picks(Protocol):
    """Seats that somebody is choosing (engine/store/picks.py). Raise `Unavailable` where Redis is away."""

    async def others(self, trip: SoldTrip, labels: Sequence[str], start: int, end: int, owner: str | None) -> list[str]: ...
    async def drop(self, trip: SoldTrip, owner: str) -> None: ...


class SeatMaps(Protocol):
    """Which seats are free (engine/booking/seatmaps.py)."""

    async def free(self, trip: SoldTrip, start: int, end: int) -> set[int]: ...


class Room(Protocol):
    """The waiting room of a rush. Raises `Refused` WAITING_ROOM for who has to queue."""

    async def check(self, trip_id: str, queue_token: str | None) -> None: ...


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants held: seats by label, or a number of them."""

    start: str | int
    end: str | int
    labels: tuple[str, ...] = ()
    count: int = 0
    prefer: tuple[str, ...] = ()
    pick_id: str | None = None
    quote_id: str | None = None
    promo: str | None = None
    queue_token: str | None = None


class Hold(msgspec.Struct, frozen=True):
    """Seats held: the trip, what the database answered, labels beside `held.seats`, and the capability for it."""

    trip: SoldTrip
    held: Held
    labels: tuple[str, ...]
    token: str


class Row(msgspec.Struct, frozen=True):
    """What a booking is made of: a hold as it was made here, or as the database tells it."""

    id: str
    trip_no: int
    map: int
    seats: list[int]
    currency: str
    quote: fares.Quote
    partner_id: str = ""
    holder: str = ""


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """A passenger as somebody wrote them down."""

    seat: str
    first_name: str
    last_name: str
    type: str = fares.ADULT
    trip_id: str | None = None  # of a return trip, where both ways have the seat
    detail: dict[str, Any] | None = None


class Desk:
    """One of a worker. `picks`, `maps`, `room` None: without them."""

    def __init__(
        self,
        bookings: Bookings,
        catalogue: Catalogue,
        pricing: Pricing,
        tokens: HoldTokens,
        *,
        clock: Clock,
        settings: Settings,
        meter: Meter | None = None,
        picks: Picks | None = None,
        maps: SeatMaps | None = None,
        room: Room | None = None,
    ) -> None:
        self.bookings, self.catalogue, self.pricing, self.tokens = bookings, catalogue, pricing, tokens
        self.picks, self.maps, self.room = picks, maps, room
        self._made: OrderedDict[str, Row] = OrderedDict()
        self._clock, self._settings = clock, settings
        meter = meter or Meter()
        self._holds = meter.counter("timepoint_holds_total", "holds asked for, by what became of them", ("outcome",))
        self._blind = meter.counter("timepoint_holds_without_picks_total", "holds judged without picks because Redis was away")

    # --- hold ---

    async def hold(self, caller: Caller, key: Key | None, trip_id: str, wish: Wish) -> Hold:
        """Seats held, all or none. Raises `Refused` (SEAT_TAKEN and SEAT_PICKED name the seats), `Invalid`, `NotFound`; `Unavailable` where
        more is asked for than can be written: who has seats already is served first."""
        if self.bookings.pool.behind():
            self._holds.add(1, "LATER")
            raise Unavailable("more seats are asked for than can be written right now; ask again in a moment", retry_after_s=1)
        try:
            done = await self._hold(caller, key, trip_id, wish)
        except (Refused, Invalid) as refusal:
            early = refusal.code in BEFORE_KEY or any(
                fault["code"] == "UNKNOWN_SEAT" for fault in refusal.errors
            )  # after a swap of the bus
            first = await self.bookings.first_answer(key) if key is not None and early else None
            if first is None:
                self._holds.add(1, refusal.code)
                raise
            done = await self._held(caller, first)
        self._holds.add(1, "REPLAYED" if done.held.replayed else "HELD")
        return done

    async def _hold(self, caller: Caller, key: Key | None, trip_id: str, wish: Wish) -> Hold:
        booking_id = self._clock.uuid7()
        for attempt in range(TRIES):
            trip = await self.catalogue.trip(trip_id)
            start, end = trip.legs(wish.start, wish.end)
            limited = not caller.sells_for(trip.partner_id)
            most = self._settings.guest_seats_max if limited else SEATS_MOST
            try:
                numbers = _numbers(trip, wish, most)
            except Invalid:
                if attempt or self._clock.now_ms() - trip.read_at_ms < FRESH_MS:
                    raise
                self.catalogue.forget(trip_id)  # another bus may have come, with seats that this worker has not heard of
                continue
            if self.room is not None and limited:
                await self.room.check(trip_id, wish.queue_token)
            if not numbers:
                numbers = await self._choose(trip, start, end, wish)
            await self._not_picked(trip, numbers, start, end, wish)
            if wish.quote_id is not None:
                quote = await self.pricing.recall(wish.quote_id, trip, start, end, numbers, wish.promo)
            else:
                quote = await self.pricing.quote(trip, start, end, numbers, wish.promo)
            new = NewHold(
                partner_id=trip.partner_id,
                booking_id=booking_id,
                trip_no=trip.trip_no,
                map_version=trip.map_version,
                seats=numbers,
                start=start,
                end=end,
                prices=quote.prices(),
                currency=trip.currency,
                quote=quote.body(),
                holder=caller.holder(booking_id),
                channel="WEB" if limited else "AGENT",
                ttl_s=self._settings.hold_ttl_s,
                actor=caller.actor if caller.role is not None else caller.holder(booking_id),
                request_id=caller.request_id,
                seats_max=self._settings.guest_seats_max if limited else None,
                holds_max=self._settings.guest_holds_max if limited else None,
            )
            try:
                held = await self.bookings.hold(key, new)
            except Refused as refusal:
                again = refusal.code == "STALE_MAP" or (refusal.code == "SEAT_TAKEN" and not wish.labels)
                if refusal.code == "STALE_MAP" or refusal.code == "SALES_CLOSED":
                    self.catalogue.forget(trip_id)
                if again and attempt + 1 < TRIES:
                    continue
                raise self._worded(refusal, trip, start, end, wish) from refusal
            if not held.replayed:
                self._made[booking_id] = Row(
                    booking_id, trip.trip_no, held.map, held.seats, trip.currency, quote, trip.partner_id, caller.holder(booking_id)
                )
                if len(self._made) > MADE_MOST:
                    self._made.popitem(last=False)
            if wish.pick_id is not None:
                await self._drop_pick(trip, wish.pick_id)
            return await self._held(caller, held)
        raise AssertionError("the loop returns or raises")

    async def _held(self, caller: Caller, held: Held) -> Hold:
        trip = await self.catalogue.by_no(held.trip_no)
        labels = await self.catalogue.labels(trip, held.map)
        root = caller.holder(held.booking).removeprefix("guest:") if caller.role is None else held.booking
        return Hold(trip, held, tuple(labels[n - 1] for n in held.seats), self.tokens.mint(held.booking, root))

    async def _choose(self, trip: SoldTrip, start: int, end: int, wish: Wish) -> list[int]:
        """The best free seats for so many. Raises `Refused` TOO_FEW_SEATS."""
        if self.maps is None:
            raise Unavailable("seats cannot be chosen for you on this worker; name them")
        open_for_sale(trip, self._clock.now_ms())
        free = await self.maps.free(trip, start, end)
        found = seats.best_available(trip.layout, free, wish.count, wish.prefer)
        if not found:
            raise Refused("TOO_FEW_SEATS", f"{trip.trip_id} has no {wish.count} free seats like that between these stops")
        return sorted(found)

    async def _not_picked(self, trip: SoldTrip, numbers: Sequence[int], start: int, end: int, wish: Wish) -> None:
        if self.picks is None:
            return
        labels = [trip.label_of(n) for n in numbers]
        try:
            others = await self.picks.others(trip, labels, start, end, wish.pick_id)
        except Unavailable:
            self._blind.add()
            return
        if others:
            raise Refused(
                "SEAT_PICKED",
                f"somebody else is choosing {', '.join(others)} right now; try again in a minute or take other seats",
                retry_after_s=5,
                errors=[_seat_fault(wish, label, "SEAT_PICKED", "somebody else is choosing it") for label in others],
            )

    async def _drop_pick(self, trip: SoldTrip, pick_id: str) -> None:
        if self.picks is not None:
            try:
                await self.picks.drop(trip, pick_id)
            except Unavailable:
                self._blind.add()  # it ends by itself

    def _worded(self, refusal: Refused, trip: SoldTrip, start: int, end: int, wish: Wish) -> Exception:
        """A refusal of the database in words, its seats by label."""
        code, facts = refusal.code, refusal.facts
        if code == "SEAT_TAKEN":
            labels = [trip.label_of(n) for n in facts["seats"]]
            here = f"between {trip.stops[start].name} and {trip.stops[end].name}"
            faults = [_seat_fault(wish, label, "SEAT_TAKEN", f"taken {here}") for label in labels]
            return Refused(code, f"{', '.join(labels)} on {trip.trip_id}: taken {here}; nothing is held", errors=faults)
        if code == "SALES_CLOSED":
            return sales_closed(trip.trip_id, str(facts.get("trip", "")))
        if code == "HOLD_LIMIT":
            most = f"{self._settings.guest_holds_max} holds and {self._settings.guest_seats_max} seats"
            return Refused(code, f"you hold {facts['holds']} times {facts['held']} seats; at most {most} at a time")
        if code == "STALE_MAP":
            return Refused("BUSY", f"the seat map of {trip.trip_id} is changing; read it again", retry_after_s=1)
        if code == "TRIP_NOT_FOUND":
            return NotFound(f"no trip {trip.trip_id!r} is on sale")
        if code == "INVALID":
            return Invalid(f"these seats or stops do not fit {trip.trip_id}")
        return refusal

    # --- a hold's life ---

    async def extend(self, caller: Caller, booking_id: str) -> Any:
        """The hold with its new end. Raises `Refused` HOLD_EXPIRED, HOLD_USED; `NotFound`."""
        lead_id = await self._lead(caller, booking_id)
        try:
            await self.bookings.extend(lead_id, self._settings.hold_ttl_s, self._settings.hold_most_s, caller.actor, caller.request_id)
        except Refused as refusal:
            raise _of_hold(refusal, booking_id) from refusal
        return await self.show(caller, booking_id=booking_id)

    async def release(self, caller: Caller, key: Key | None, booking_id: str) -> Any:
        """Seats free again. Releasing twice says so twice. Raises `Refused` WRONG_STATE, PAYMENT_IN_PROGRESS; `NotFound`."""
        lead_id = await self._lead(caller, booking_id)
        try:
            return await self.bookings.release(key, lead_id, caller.actor, caller.request_id)
        except Refused as refusal:
            raise _of_hold(refusal, booking_id) from refusal

    async def _lead(self, caller: Caller, booking_id: str) -> str:
        """A row by which the database finds a booking that is theirs; for the hold's own token nothing has to be read. Raises `NotFound`."""
        if caller.opened is not None and caller.opened.booking_id == booking_id:
            return booking_id
        return str((await self.show(caller, booking_id=booking_id))["lead"])

    # --- book ---

    async def book(
        self,
        caller: Caller,
        key: Key | None,
        hold_ids: Sequence[str],
        named: Sequence[Named],
        contact: dict[str, Any],
        asked: Sequence[Asked] = (),
        promo_code: str | None = None,
    ) -> tuple[Any, bool]:
        """One or two holds, with a passenger for each seat, as a booking that waits for its payment: the booking as `show`
        tells it, and whether it was made by an earlier request with this key.

        Raises `Invalid` (passengers and seats that do not match), `Refused` HOLD_EXPIRED, HOLD_USED; `NotFound`.
        """
        try:
            done = await self._book(caller, key, hold_ids, named, contact, asked, promo_code)
        except (Invalid, Refused):  # asked again, it is still the same request, whatever has become of seats and promo codes since
            first = await self.bookings.first_booked(key) if key is not None else None
            if first is None:
                raise
            done = first
        return done.shown, done.replayed

    async def _book(
        self,
        caller: Caller,
        key: Key | None,
        hold_ids: Sequence[str],
        named: Sequence[Named],
        contact: dict[str, Any],
        asked: Sequence[Asked],
        promo_code: str | None,
    ) -> Booked:
        rows = [await self._row(caller, hold_id) for hold_id in hold_ids]
        if len({row.currency for row in rows}) > 1:
            raise Refused("WRONG_CURRENCY", "the two trips are sold in different currencies; book them apart")
        quotes = [row.quote for row in rows]
        seated = [await self._seated(row, named, len(rows) > 1) for row in rows]
        if sum(len(part) for part in seated) != len(named):
            raise Invalid("a passenger names a seat that is not held", errors=_unseated(named, seated))
        types = [[passenger.type for _, passenger in part] for part in seated]
        amounts, bought = [0] * len(rows), None
        if asked or promo_code is not None or any(quote.promo is not None for quote in quotes):
            held = [
                ExtraRow(row.id, await self.catalogue.by_no(row.trip_no), {passenger.seat: number for number, passenger in part})
                for row, part in zip(rows, seated, strict=True)
            ]
            customer = caller.subject if caller.role is not None else None
            extras = await self.pricing.extras(held, quotes, types, asked, promo_code, contact, customer)
            quotes, amounts, bought = extras.quotes, extras.amounts, extras.body
        paid = fares.net_prices(quotes, types)
        passengers = [
            _passenger(row.id, number, passenger, price)
            for row, part, prices in zip(rows, seated, paid, strict=True)
            for (number, passenger), price in zip(part, prices, strict=True)
        ]
        totals = [sum(prices) + more for prices, more in zip(paid, amounts, strict=True)]
        totals[0] += quotes[0].booking_fee
        for _ in range(TRIES):
            try:
                return await self.bookings.book(
                    key, hold_ids, self.new_reference(), passengers, contact, totals, bought, self._settings.hold_ttl_s, caller.actor,
                    caller.request_id,
                )  # fmt: skip
            except Refused as refusal:
                if refusal.code != "REFERENCE_TAKEN":
                    raise _of_hold(refusal, ", ".join(hold_ids)) from refusal
        raise Refused("BUSY", "no reference could be given; ask again", retry_after_s=1)

    async def _row(self, caller: Caller, hold_id: str) -> Row:
        """A hold that is theirs. What this worker remembers of one it made serves once, and while the bus is the same: the database judges
        whether it still stands, and another try reads it. Raises `NotFound`."""
        made = self._made.pop(hold_id, None)
        if (
            made is not None
            and caller.may_open(made.partner_id, {made.holder}, {made.id})
            and (await self.catalogue.by_no(made.trip_no)).map_version == made.map
        ):
            return made
        shown = await self.show(caller, booking_id=hold_id)
        row = next(row for row in shown["rows"] if row["id"] == hold_id)
        return Row(row["id"], row["tripNo"], row["map"], row["seats"], row["currency"], fares.quote_from(row["quote"]))

    async def _seated(self, row: Row, named: Sequence[Named], both_ways: bool) -> list[tuple[int, Named]]:
        """(seat number, passenger) of one hold's seats, in the order of its seats. Raises `Invalid` where one has none or two."""
        trip = await self.catalogue.by_no(row.trip_no)
        labels = await self.catalogue.labels(trip, row.map)
        found = []
        for number in row.seats:
            label = labels[number - 1]
            mine = [one for one in named if one.seat == label and (one.trip_id == trip.trip_id or (one.trip_id is None))]
            if both_ways and len(mine) > 1:
                mine = [one for one in mine if one.trip_id is not None] or mine
            if len(mine) != 1:
                what = "has no passenger" if not mine else f"has {len(mine)} passengers"
                raise Invalid(
                    f"seat {label} of {trip.trip_id} {what}; name one for each seat that is held",
                    errors=[{"pointer": "/passengers", "code": "SEAT_UNNAMED" if not mine else "SEAT_TWICE", "detail": f"{label} {what}"}],
                )
            found.append((number, mine[0]))
        seats.check_passengers(trip.layout, [(number, passenger.detail) for number, passenger in found])
        return found

    def new_reference(self) -> str:
        """Six of 32 letters: thirty random bits."""
        value = int.from_bytes(base64.urlsafe_b64decode(self._clock.token(6) + "=="), "big")
        return "".join(ALPHABET[value >> 5 * place & 31] for place in range(6))

    # --- look ---

    async def show(self, caller: Caller, *, reference: str | None = None, booking_id: str | None = None) -> Any:
        """`booking.shown` of a booking that is theirs. Raises `NotFound`: not there, or not theirs."""
        what = reference or booking_id or ""
        shown = await self.bookings.shown(reference=reference, booking_id=booking_id)
        if shown is None or not caller.may_open_shown(shown):
            raise NotFound(f"no booking {what[:80]!r}, or not one of yours: send the X-Hold-Token that its hold answered, or sign in")
        return shown

    async def lookup(self, reference: str, surname: str) -> tuple[Any, str, int]:
        """The booking of a reference and a surname, a token that opens it, and when that ends (UTC ms). Raises `NotFound`."""
        shown = await self.bookings.lookup(reference.strip().upper(), folded(surname))
        if shown is None:
            raise NotFound("no booking with this reference and surname")
        until_ms = self._clock.now_ms() + LOOKUP_S * 1000
        return shown, self.tokens.mint(shown["lead"], None, until_ms), until_ms


def folded(name: str) -> str:
    """A surname without accents, case and all but letters and digits, so that who books as Benaïssa is found as BENAISSA."""
    plain = unicodedata.normalize("NFKD", name).casefold()
    return "".join(letter for letter in plain if letter.isalnum())


def _numbers(trip: SoldTrip, wish: Wish, most: int) -> list[int]:
    """Seat numbers of the labels, ascending; empty where only a number is asked for. Raises `Invalid`."""
    wanted = len(wish.labels) or wish.count
    if bool(wish.labels) == bool(wish.count) or wanted < 1:
        raise Invalid(
            "name the seats, or say how many", errors=[{"pointer": "/seats", "code": "MISSING_FIELD", "detail": "at least one seat"}]
        )
    if wanted > most:
        raise Invalid(
            f"{wanted} seats; at most {most} in one hold",
            errors=[{"pointer": "/seats", "code": "TOO_MANY_SEATS", "detail": f"at most {most}"}],
        )
    if len(set(wish.labels)) != len(wish.labels):
        twice = sorted({label for label in wish.labels if wish.labels.count(label) > 1})
        raise Invalid("a seat is named twice", errors=[_seat_fault(wish, label, "SEAT_TWICE", "named twice") for label in twice])
    return sorted(trip.number_of(label, f"/seats/{index}") for index, label in enumerate(wish.labels))


def _seat_fault(wish: Wish, label: str, code: str, detail: str) -> dict[str, str]:
    pointer = f"/seats/{wish.labels.index(label)}" if label in wish.labels else "/seats"
    return {"pointer": pointer, "code": code, "detail": f"{label}: {detail}"}


def _unseated(named: Sequence[Named], seated: Sequence[Sequence[tuple[int, Named]]]) -> list[dict[str, str]]:
    placed = {id(passenger) for part in seated for _, passenger in part}
    return [
        {"pointer": f"/passengers/{index}/seat", "code": "UNKNOWN_SEAT", "detail": f"{passenger.seat[:20]!r} is not held"}
        for index, passenger in enumerate(named)
        if id(passenger) not in placed
    ]


def _passenger(booking_id: str, number: int, passenger: Named, price: int) -> dict[str, Any]:
    return {
        "booking": booking_id,
        "seat": number,
        "first_name": passenger.first_name,
        "last_name": passenger.last_name,
        "folded": folded(passenger.last_name),
        "type": passenger.type,
        "price": price,
        "detail": passenger.detail,
    }


def _of_hold(refusal: Refused, booking_id: str) -> Exception:
    """What the database refused about a hold, in words."""
    code, state = refusal.code, refusal.facts.get("state", "")
    if code == "HOLD_NOT_FOUND":
        return NotFound(f"no hold {booking_id!r}")
    if code == "HOLD_EXPIRED":
        return Refused(code, f"hold {booking_id} is over; hold the seats again")
    if code == "HOLD_USED":
        return Refused(code, f"hold {booking_id} is {state} already")
    if code == "WRONG_STATE":
        return Refused("HOLD_EXPIRED" if state == "EXPIRED" else code, f"{booking_id} is {state}")
    if code == "PAYMENT_IN_PROGRESS":
        return Refused(code, "a payment for it is in progress; wait for its end", retry_after_s=5)
    if code == "INVALID":
        return Invalid("there must be one passenger for each seat")
    if code == "STALE_MAP":
        return Refused("BUSY", f"the bus was changed and hold {booking_id} has other seats now; read it again", retry_after_s=1)
    return refusal
