"""The opener: every trip instance of an offered route, from now to its horizon, goes on sale; sales that are over end.

Promises: what is on sale is what the timetable said when it was put there - stops, times and seats are copied, and a later feed version
changes nothing of it (`Report.changed` and `Report.gone` count where the two differ: people decide). Running it again, or twice at once, adds
nothing twice. A trip of more than STOPS_MAX stops is not sold (its legs would not fit one word of bits). Works in slices, so that a
thousand trips hold up neither the loop nor a hold.

GTFS pickup_type and drop_off_type are not in the timetable: nobody gets out at the first stop or in at the last; everywhere else both.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

import msgspec

from engine.booking.seats import Layout, layout_of
from engine.clock import Clock
from engine.errors import EngineError, Invalid
from engine.live.channels import trip_key
from engine.meter import Meter
from engine.settings import Settings
from engine.store.desk import DeskPool
from engine.store.sales import OfferRow, Sales
from engine.tracking.timetable import Timetable, Trip, TripInstance

log = logging.getLogger(__name__)

STOPS_MAX: Final = 62
SLICE: Final = 50  # trips of one transaction: some 20 ms
END_SLICE: Final = 200
DAY_MS: Final = 86_400_000


class PlanInForce(Protocol):
    """What we need of `engine.tracking.plans.Plan`."""

    @property
    def partner_id(self) -> str: ...
    @property
    def timetable(self) -> Timetable: ...


class PlanSource(Protocol):
    """What we need of `engine.tracking.plans.Plans`."""

    def get(self, feed_id: str) -> Any: ...


class Report(msgspec.Struct, rename="camel"):
    """What one pass found. `faults`: offers that could not be worked on, and why."""

    offers: int = 0
    opened: int = 0  # trip instances that went on sale now
    known: int = 0  # that were on sale already
    too_long: int = 0  # of more than STOPS_MAX stops
    changed: int = 0  # on sale at another time than the timetable now says
    gone: int = 0  # on sale, and no longer in the timetable
    faults: list[str] = []


async def open_sales(pool: DeskPool, plans: PlanSource, clock: Clock, partner_id: str | None = None) -> Report:
    """One pass over all offers (of one partner, where it is named). Raises `Unavailable` where the database is away."""
    sales, report = Sales(pool), Report()
    for offer in await sales.offers():
        if partner_id is not None and offer.partner_id != partner_id:
            continue
        report.offers += 1
        try:
            await _open_offer(sales, plans, clock, offer, report)
        except Invalid as fault:
            report.faults.append(f"{offer.route_id}: {fault.detail}")
            log.warning("%s is not put on sale: %s", offer.route_id, fault.detail)
    return report


async def _open_offer(sales: Sales, plans: PlanSource, clock: Clock, offer: OfferRow, report: Report) -> None:
    feed_id, _, local = offer.route_id.partition(":")
    plan: PlanInForce | None = plans.get(feed_id)
    if plan is None or local not in plan.timetable.routes:
        raise Invalid(f"no feed in force has route {offer.route_id}")
    if plan.partner_id != offer.partner_id:
        raise Invalid(f"feed {feed_id} belongs to {plan.partner_id}, the offer to {offer.partner_id}")
    layout = layout_of(offer.layout).with_women_only(offer.women_only_seats)
    now_ms = clock.now_ms()
    until_ms = now_ms + offer.open_days * DAY_MS
    wanted = await _instances(plan.timetable, local, now_ms, until_ms)
    known = await sales.known(offer.route_id, now_ms, until_ms)
    report.known += len(wanted.keys() & known.keys())
    for trip_id, row in known.items():
        if row.status == "CANCELLED":
            continue
        if trip_id not in wanted:
            report.gone += 1
        elif round(row.departs_at.timestamp() * 1000) != wanted[trip_id].departure_ms(0):
            report.changed += 1
    fresh = []
    for trip_id, instance in wanted.items():
        if trip_id in known or instance.departure_ms(0) - offer.close_s * 1000 <= now_ms:
            continue
        if len(instance.trip.pattern.stop_ids) > STOPS_MAX:
            report.too_long += 1
            continue
        fresh.append(trip_id)
    moved = await sales.known_among(fresh)  # put on sale when it left at another time
    report.changed += len(moved)
    fresh = [trip_id for trip_id in fresh if trip_id not in moved]
    body = _offer_body(offer, feed_id, plan.timetable, layout)
    request_id = clock.uuid7()
    for at in range(0, len(fresh), SLICE):
        trips = [_trip_body(feed_id, trip_id, wanted[trip_id], plan.timetable, offer.close_s) for trip_id in fresh[at : at + SLICE]]
        report.opened += await sales.open(offer.partner_id, body, trips, request_id)
        await asyncio.sleep(0)


async def _instances(timetable: Timetable, route_id: str, from_ms: int, until_ms: int) -> dict[str, TripInstance]:
    """Trip instances of a route that leave their first stop in that span, by public id, in order of their service dates."""
    trips = [trip for trip in timetable.trips.values() if trip.route_id == route_id]
    by_service: dict[str, list[Trip]] = {}
    for trip in trips:
        by_service.setdefault(trip.service_id, []).append(trip)
    latest_s = max((trip.departure_s[0] for trip in trips), default=0)
    day = datetime.fromtimestamp(from_ms / 1000, timetable.tz).date() - timedelta(days=1 + latest_s // 86_400)
    last = datetime.fromtimestamp(until_ms / 1000, timetable.tz).date() + timedelta(days=1)
    found: dict[str, TripInstance] = {}
    while day <= last:
        text = day.strftime("%Y%m%d")
        for service_id, of_service in by_service.items():
            if not timetable.services[service_id].runs_on(day):
                continue
            for trip in of_service:  # `instances_on` would push the tracker's days out of its memory
                instance = timetable.instance(trip.trip_id, text)
                if instance is not None and from_ms <= instance.departure_ms(0) < until_ms:
                    found[trip_key(timetable.feed_id, trip.trip_id, text)] = instance
        day += timedelta(days=1)
        await asyncio.sleep(0)
    return found


def _offer_body(offer: OfferRow, feed_id: str, timetable: Timetable, layout: Layout) -> dict[str, Any]:
    return {
        "feed_id": feed_id, "route_id": offer.route_id, "timezone": timetable.tz.key, "layout_id": offer.layout_id,
        "fare_plan_id": offer.fare_plan_id, "currency": offer.currency, "seats": sorted(layout.sellable), "labels": list(layout.labels),
        "layout": layout.body(),
    }  # fmt: skip


def _trip_body(feed_id: str, trip_id: str, instance: TripInstance, timetable: Timetable, close_s: int) -> dict[str, Any]:
    trip, pattern = instance.trip, instance.trip.pattern
    last = len(pattern.stop_ids) - 1
    stops = []
    for place, (stop_id, sequence) in enumerate(zip(pattern.stop_ids, pattern.stop_sequences, strict=True)):
        stop = timetable.stops[stop_id]
        times = instance.arrival_ms(place), instance.departure_ms(place)
        stops.append([place, sequence, f"{feed_id}:{stop_id}", stop.name, stop.lat, stop.lon, *times, place < last, place > 0])
    return {
        "id": trip_id, "date": instance.start_date, "headsign": trip.headsign, "closes_ms": instance.departure_ms(0) - close_s * 1000,
        "departs_ms": instance.departure_ms(0), "arrives_ms": instance.arrival_ms(last), "stops": stops,
    }  # fmt: skip


class Opener:
    """The one that opens and ends sales, by a lease: for ever, a pass each `sales_pass_s`."""

    def __init__(self, pool: DeskPool, plans: PlanSource, *, clock: Clock, settings: Settings, meter: Meter) -> None:
        self._pool, self._plans, self._clock, self._settings = pool, plans, clock, settings
        self._opened = meter.counter("timepoint_sales_opened_total", "trip instances put on sale")
        self._ended = meter.counter("timepoint_sales_ended_total", "what ended, by kind: CLOSED sales, COMPLETED trips", ("kind",))
        self._faults = meter.counter("timepoint_sales_faults_total", "offers that could not be worked on, and passes that failed")
        self._seen = meter.gauge("timepoint_sales_trips", "trip instances as the last pass saw them, by state", ("state",))

    async def run(self) -> None:
        while True:
            try:
                await self.step()
            except EngineError as fault:
                self._faults.add()
                log.warning("sales: this pass failed, the next one goes on: %s", fault)
            await asyncio.sleep(self._settings.sales_pass_s)

    async def step(self) -> Report:
        """One pass. Raises `EngineError`."""
        ended = END_SLICE
        while ended >= END_SLICE:
            ended = await self.end()
        report = await open_sales(self._pool, self._plans, self._clock)
        self._opened.add(report.opened)
        self._faults.add(len(report.faults))
        for state, number in (
            ("KNOWN", report.known + report.opened), ("TOO_LONG", report.too_long), ("CHANGED", report.changed), ("GONE", report.gone)
        ):  # fmt: skip
            self._seen.set(number, state)
        if report.opened or report.too_long:
            log.info("sales: %d trips opened, %d too long to be sold", report.opened, report.too_long)
        return report

    async def end(self) -> int:
        """Ends what is over, at most END_SLICE of each kind; how many."""
        closed, completed = await Sales(self._pool).end(self._settings.trip_over_s, END_SLICE, self._clock.uuid7())
        self._ended.add(closed, "CLOSED")
        self._ended.add(completed, "COMPLETED")
        return closed + completed
