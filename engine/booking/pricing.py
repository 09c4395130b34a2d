"""Prices of the trips on sale, from what one worker remembers: fare plans (at most PLAN_MS old) and how full a trip is (at most FULL_MS).

A hold's price costs no database call while both are remembered; what somebody keeps asking about is read again before it is too old, behind
their back. A quote that was asked for (`give`) is kept and holds for QUOTE_S, whatever becomes of the plan and the demand; `recall` finds it.
Every quote given and every change of a trip's multiplier that this worker sees is a row of the price log; what a hold was sold at is its own
`quote`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Coroutine, Sequence
from itertools import pairwise
from typing import Any, Final

import msgspec

from engine.booking import fares
from engine.booking.catalogue import SoldTrip
from engine.booking.extras import Asked, ExtraRow, Extras, chosen, persons_of
from engine.booking.fares import ADULT, FarePlan, Quote
from engine.booking.promos import PromoTerms, discount, folded, judged
from engine.booking.refusals import Refused
from engine.clock import Clock
from engine.errors import EngineError, Invalid, Unavailable
from engine.meter import Meter
from engine.store.desk import Answer, DeskPool, Key
from engine.store.fares import Fares
from geo.coords import distance_m

log = logging.getLogger(__name__)

PLAN_MS: Final = 30_000
FULL_MS: Final = 5_000
EARLY: Final = 2  # what is older than a half of its life is read again while it still serves
QUOTE_S: Final = 300  # a quote that was asked for is good for so long
WAYS_MAX: Final = 256  # prices remembered of one trip: pairs of stops x kinds of seats x codes
PLANS_MAX: Final = 1_000
QUOTE_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class _Remembered(msgspec.Struct):
    """What is known of one trip: how full it is, and quotes made since that was read."""

    occupancy: int
    map_version: int
    read_at_ms: int
    metres: tuple[int, ...]
    stops: tuple[str, ...]
    quotes: dict[tuple[int, int, tuple[str, ...], PromoTerms | None], Quote]
    noted: int | None = None  # the multiplier that this worker noted last
    reading: bool = False


class _Plan(msgspec.Struct):
    plan: FarePlan
    read_at_ms: int
    reading: bool = False


class Pricing:
    """One of a worker."""

    def __init__(self, pool: DeskPool, clock: Clock, *, trips_max: int = 4_000, meter: Meter | None = None) -> None:
        self._pool, self._fares, self._clock, self._most = pool, Fares(pool), clock, trips_max
        self._plans: OrderedDict[tuple[str, str], _Plan] = OrderedDict()
        self._trips: OrderedDict[int, _Remembered] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        meter = meter or Meter()
        self._reads = meter.counter("timepoint_price_reads_total", "reads for prices, by what was read", ("what",))
        self._faults = meter.counter("timepoint_price_faults_total", "reads behind a buyer's back that failed")

    # --- prices ---

    async def quote(self, trip: SoldTrip, start: int, end: int, numbers: Sequence[int], promo: str | None = None) -> Quote:
        """What these seats (ascending) cost now. Raises `Refused` NO_FARE, PROMO_NOT_VALID."""
        return await self._quote(trip, start, end, tuple(trip.layout.seat(number).kind for number in numbers), promo)

    async def prices(self, trip: SoldTrip, start: int, end: int) -> dict[str, int]:
        """Price of a seat for an adult, by kind of seat: what seat maps and searches show. Raises `Refused` NO_FARE."""
        kinds = trip.layout.kinds
        return dict(zip(kinds, (await self._quote(trip, start, end, kinds, None)).adult, strict=True))

    async def _quote(self, trip: SoldTrip, start: int, end: int, kinds: tuple[str, ...], promo: str | None) -> Quote:
        plan = await self.plan(trip)
        known = await self._known(trip)
        terms = None if promo is None else await self.promo(trip, promo)
        made = known.quotes.get((start, end, kinds, terms))
        if made is not None and (made.plan_id, made.plan_version) == (plan.plan_id, plan.version):
            return made
        made = self._made(plan, known, trip, start, end, kinds, terms)
        if len(known.quotes) >= WAYS_MAX:
            known.quotes.clear()
        known.quotes[start, end, kinds, terms] = made
        return made

    def _made(
        self,
        plan: FarePlan,
        known: _Remembered,
        trip: SoldTrip,
        start: int,
        end: int,
        kinds: tuple[str, ...],
        terms: PromoTerms | None,
        quote_id: str | None = None,
    ) -> Quote:
        if plan.currency != trip.currency:
            raise Refused("NO_FARE", f"{trip.trip_id} is sold in {trip.currency}; its fare plan has become one in {plan.currency}")
        return fares.quote(
            plan,
            stops=known.stops,
            metres=known.metres,
            frm=start,
            to=end,
            kinds=kinds,
            departs_at_ms=trip.stops[start].departs_at_ms,
            now_ms=self._clock.now_ms(),
            occupancy=known.occupancy,
            promo=terms,
            quote_id=quote_id,
        )

    async def promo(self, trip: SoldTrip, code: str, fares_sum: int | None = None) -> PromoTerms:
        """The terms of a code on this trip now. Raises `Refused` PROMO_NOT_VALID, PROMO_MIN_AMOUNT."""
        wanted = folded(code)
        found = await self._fares.promo(trip.partner_id, wanted)
        self._reads.add(1, "promo")
        now_ms = self._clock.now_ms()
        return judged(found, wanted, route_id=trip.route_id, currency=trip.currency, now_ms=now_ms, fares=fares_sum)

    # --- quotes that are kept ---

    async def give(
        self,
        key: Key | None,
        trip: SoldTrip,
        start: int,
        end: int,
        kinds: Sequence[str],
        types: Sequence[str],
        promo: str | None = None,
        seats: Sequence[str] = (),
    ) -> Answer:
        """A quote that is kept: `Answer.body` is what POST /trips/{id}/quotes says. `types`: one for each seat.

        Raises `Refused` NO_FARE, PROMO_NOT_VALID, PROMO_MIN_AMOUNT; `Invalid` for a type that is not sold.
        """
        plan, known = await self.plan(trip), await self._known(trip)
        terms = None if promo is None else await self.promo(trip, promo)
        now_ms = self._clock.now_ms()
        quote = self._made(plan, known, trip, start, end, tuple(kinds), terms, self._clock.uuid7())
        gross = quote.gross(types)
        if terms is not None:
            await self.promo(trip, terms.code, sum(gross))
        until_ms = now_ms + QUOTE_S * 1000
        kept = {"quote": quote.body(), "from": start, "to": end, "kinds": list(kinds), "types": list(types)}
        net = quote.prices(types)
        named: Sequence[str | None] = seats or [None] * len(net)
        body = {
            "quote": kept["quote"],
            "untilMs": until_ms,
            "seats": [
                {"seat": seat, "type": name, "kind": kind, "price": price}
                for seat, name, kind, price in zip(named, types, kinds, net, strict=True)
            ],
            "discount": sum(gross) - sum(net),
            "total": sum(net) + quote.booking_fee,
        }

        async def keep(connection: Any) -> tuple[int, Any]:
            await self._fares.keep_quote(connection, trip.partner_id, trip.trip_no, quote, until_ms, kept)
            return 201, body

        return await self._pool.once(key, trip.partner_id, keep)

    async def recall(self, quote_id: str, trip: SoldTrip, start: int, end: int, numbers: Sequence[int], promo: str | None = None) -> Quote:
        """A quote that was given for this ride and these kinds of seats; `promo` takes the place of the code it was given with.

        Raises `Refused` QUOTE_EXPIRED: over, unknown, or for others; PROMO_NOT_VALID.
        """
        if not QUOTE_ID.fullmatch(quote_id):
            raise _gone(quote_id)
        kept = await self._fares.quote(trip.partner_id, quote_id, trip.trip_no)
        kinds = [trip.layout.seat(number).kind for number in numbers]
        if kept is None or (kept["from"], kept["to"]) != (start, end) or sorted(kept["kinds"]) != sorted(kinds):
            raise _gone(quote_id)
        quote = fares.quote_from(kept["quote"])
        if promo is not None:
            quote = fares.with_promo(quote, await self.promo(trip, promo))
        if kept["kinds"] == kinds:
            return quote
        of_kind = dict(zip(kept["kinds"], zip(quote.classes, quote.adult, strict=True), strict=True))
        classes, adult = zip(*(of_kind[kind] for kind in kinds), strict=True)
        return msgspec.structs.replace(quote, classes=classes, adult=adult)

    # --- beside the seats ---

    async def extras(
        self,
        rows: Sequence[ExtraRow],
        quotes: Sequence[Quote],
        types: Sequence[Sequence[str]],
        asked: Sequence[Asked] = (),
        promo_code: str | None = None,
        contact: dict[str, Any] | None = None,
        customer: str | None = None,
    ) -> Extras:
        """What a booking buys beside its seats, and its promo code: the one of the request, else the one it was held with.

        Raises `Invalid`, `Refused` PROMO_NOT_VALID, PROMO_MIN_AMOUNT. Stock and uses are judged by the database when it is booked.
        """
        quotes = list(quotes)
        if promo_code is not None:
            quotes[0] = fares.with_promo(quotes[0], await self.promo(rows[0].trip, promo_code))
        terms = next((quote.promo for quote in quotes if quote.promo is not None), None)
        amounts, items = chosen(rows, [await self.plan(row.trip) for row in rows], asked)
        body: dict[str, Any] = {}
        if terms is not None:
            gross = sum(sum(quote.gross(names)) for quote, names in zip(quotes, types, strict=True))
            if gross < terms.min_amount:
                detail = f"promo code {terms.code!r} is for fares of {terms.min_amount} or more (minor units); these are {gross}"
                raise Refused("PROMO_MIN_AMOUNT", detail)
            body["promo"] = {"code": terms.code, "amount": discount(terms, gross), "persons": persons_of(contact or {}, customer)}
        if items:
            body["ancillaries"] = items
        return Extras(quotes, amounts, body or None)

    async def ancillaries(self, trip: SoldTrip) -> list[tuple[fares.Ancillary, int | None]]:
        """What is sold beside the seats of a trip, and how many are left (None: as many as are asked for)."""
        plan = await self.plan(trip)
        limited = [code for code, thing in plan.ancillaries.items() if thing.stock is not None]
        taken = await self._fares.ancillaries_taken(trip.partner_id, trip.trip_no, limited)
        return [
            (thing, None if thing.stock is None else max(thing.stock - taken.get(code, 0), 0)) for code, thing in plan.ancillaries.items()
        ]

    # --- what is remembered ---

    async def plan(self, trip: SoldTrip) -> FarePlan:
        """The fare plan of a trip, at most PLAN_MS old. Raises `Refused` NO_FARE, `Unavailable`."""
        name = (trip.partner_id, trip.fare_plan_id)
        known, now_ms = self._plans.get(name), self._clock.now_ms()
        if known is None or now_ms - known.read_at_ms >= PLAN_MS:
            return await self._read_plan(name)
        if not known.reading and now_ms - known.read_at_ms >= PLAN_MS // EARLY:
            known.reading = True
            self._behind(self._read_plan(name))
        return known.plan

    async def _read_plan(self, name: tuple[str, str]) -> FarePlan:
        try:
            found = await self._fares.plan(*name)
        except BaseException:
            if name in self._plans:
                self._plans[name].reading = False
            raise
        self._reads.add(1, "plan")
        if found is None:
            raise Refused("NO_FARE", f"the operator's fare plan {name[1]!r} is not there")
        body, version = found
        try:
            plan = fares.plan_of(body, name[1], version)
        except Invalid as fault:
            log.error("fare plan %s of %s cannot be read: %s", name[1], name[0], fault.errors)
            raise Unavailable(f"fare plan {name[1]!r} cannot be read; its operator has to write it anew") from fault
        self._plans[name] = _Plan(plan, self._clock.now_ms())
        if len(self._plans) > PLANS_MAX:
            self._plans.popitem(last=False)
        return plan

    def forget_plan(self, partner_id: str, plan_id: str) -> None:
        """Read it again next time: it has changed."""
        self._plans.pop((partner_id, plan_id), None)

    async def _known(self, trip: SoldTrip) -> _Remembered:
        known, now_ms = self._trips.get(trip.trip_no), self._clock.now_ms()
        if known is None or known.map_version != trip.map_version or now_ms - known.read_at_ms >= FULL_MS:
            return await self._read_full(trip)
        if not known.reading and now_ms - known.read_at_ms >= FULL_MS // EARLY:
            known.reading = True
            self._behind(self._read_full(trip))
        return known

    async def _read_full(self, trip: SoldTrip) -> _Remembered:
        before = self._trips.get(trip.trip_no)
        try:
            occupancy = await self._fares.occupancy(trip.partner_id, trip.trip_no, trip.map_version)
        except BaseException:
            if before is not None:
                before.reading = False
            raise
        self._reads.add(1, "occupancy")
        metres = before.metres if before is not None else leg_metres(trip)
        stops = before.stops if before is not None else tuple(stop.stop_id for stop in trip.stops)
        known = _Remembered(occupancy, trip.map_version, self._clock.now_ms(), metres, stops, {}, before.noted if before else None)
        self._trips[trip.trip_no] = known
        self._trips.move_to_end(trip.trip_no)
        if len(self._trips) > self._most:
            self._trips.popitem(last=False)
        self._behind(self._note(trip, known))
        return known

    async def _note(self, trip: SoldTrip, known: _Remembered) -> None:
        """The trip's multiplier into the price log, where it has changed."""
        plan = await self.plan(trip)
        multiplier, reasons = fares.multiplier(plan, trip.departs_at_ms - self._clock.now_ms(), known.occupancy)
        if multiplier == known.noted:
            return
        body = {"reasons": msgspec.to_builtins(reasons), "planId": plan.plan_id, "planVersion": plan.version, "occupancy": known.occupancy}
        await self._fares.note_multiplier(trip.partner_id, trip.trip_no, self._clock.uuid7(), multiplier, body)
        known.noted = multiplier

    def _behind(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do it while the buyer goes on; a fault is counted and met again by whoever needs it."""

        async def guarded() -> None:
            try:
                await work
            except EngineError as fault:
                self._faults.add()
                log.warning("prices: a read failed: %s", fault)

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Until all that was begun behind a buyer's back is done: for a drain, and for tests."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


def leg_metres(trip: SoldTrip) -> tuple[int, ...]:
    """Length of each leg, whole metres as the crow flies between its stops: what a fare by the kilometre counts."""
    return tuple(round(distance_m(here.lon, here.lat, there.lon, there.lat)) for here, there in pairwise(trip.stops))


def one_type_each(count: int, types: Sequence[str] | None) -> list[str]:
    """Passenger types of so many seats; none given: adults. Raises `Invalid` where the numbers differ."""
    if not types:
        return [ADULT] * count
    if len(types) != count:
        detail = f"{count} seats, {len(types)} passengers"
        raise Invalid(detail, errors=[{"pointer": "/passengers", "code": "COUNT", "detail": "one type for each seat"}])
    return list(types)


def _gone(quote_id: str) -> Refused:
    return Refused("QUOTE_EXPIRED", f"quote {quote_id[:40]!r} is over, unknown, or for another ride; ask for a new one")
