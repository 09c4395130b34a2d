"""The dashboard: how the fleet stands at this moment, from the live table. For PARTNER_ADMIN, AGENT, SUPER_ADMIN; cheap enough to be polled."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import msgspec
from litestar import Request, get
from litestar.params import FromQuery

from api.analytics import analytics_of, plans_of
from api.departures import cancelled_trips, on_trip, route_name
from api.ids import public_id, trip_key
from api.parts import Parts, parts_of
from engine.errors import Unavailable
from engine.events import DEADHEAD, DONE, IN_TRIP, LAYOVER, OFF_ROUTE, OFFLINE, STALE, Position
from engine.live.frames import rfc3339
from engine.tracking.plans import Plan
from engine.tracking.rules import NO_RULES

AHEAD_S: Final = 1_800  # departures without a bus are looked for so far ahead
BEHIND_S: Final = 600  # and so far behind: they should have left
WITHOUT_MOST: Final = 20
STATES: Final = (IN_TRIP, LAYOVER, DEADHEAD, OFF_ROUTE, DONE, STALE, OFFLINE)
HEARD_MS: Final = 60_000


class FleetNow(msgspec.Struct, frozen=True, rename="camel"):
    registered: int  # buses that may drive for this operator
    live: int  # of them (and of guests) those in the live picture
    heard_last_minute: int
    by_state: dict[str, int]


class PunctualNow(msgspec.Struct, frozen=True, rename="camel"):
    """Of the buses that are on a trip, by their delay at this moment."""

    early: int
    on_time: int
    late: int
    on_time_share: float | None  # None: no bus is on a trip


class IncidentsNow(msgspec.Struct, frozen=True, rename="camel"):
    open: int
    by_severity: dict[str, int]
    by_kind: dict[str, int]


class TripWithout(msgspec.Struct, frozen=True, rename="camel"):
    """A departure that is due, and nobody is on that trip."""

    trip_id: str
    route_id: str
    route_name: str
    headsign: str | None
    stop_id: str  # where it begins
    departs_at: str


class Dashboard(msgspec.Struct, frozen=True, rename="camel"):
    at: str
    stale: bool  # True: the live picture is old, Redis does not answer
    fleet: FleetNow
    punctuality: PunctualNow
    incidents: IncidentsNow
    trips_running: int
    trips_without_bus: int  # that leave within half an hour, or should have left within the last ten minutes
    next_without_bus: list[TripWithout]
    fixes_per_s: float | None  # of the last minute, as the record has them; None: the record does not answer


@get("/dashboard", tags=["analytics"])
async def read_dashboard(request: Request[Any, Any, Any], partner: FromQuery[str | None] = None) -> Dashboard:
    """Buses by state, punctuality and open incidents of this moment, departures without a bus, and how fast fixes come in."""
    parts, plans = parts_of(request), plans_of(request, partner)
    own = {plan.feed_id: plan for plan in plans}
    now_ms = parts.clock.now_ms()
    positions = [seen.position for area in own for bus_id in _buses(parts, area) if (seen := parts.table.buses.get(bus_id)) is not None]
    partners = {plan.partner_id for plan in plans}
    buses = parts.registry.buses.values() if parts.registry is not None else ()
    registered = sum(bus.retired_at_ms is None and bus.partner_id in partners for bus in buses)
    states = Counter(position.state for position in positions)
    incidents = [event for area in own for event in parts.table.incidents(area)]
    without = _without(parts, plans, now_ms, await cancelled_trips(parts))
    return Dashboard(
        rfc3339(now_ms),
        parts.table.stale,
        FleetNow(
            registered,
            len(positions),
            sum(now_ms - position.received_at_ms <= HEARD_MS for position in positions),
            {state: states.get(state, 0) for state in (*STATES, *sorted(states.keys() - set(STATES)))},
        ),
        _punctuality(parts, positions),
        IncidentsNow(
            len(incidents),
            {"MINOR": 0, "MAJOR": 0, "CRITICAL": 0} | Counter(event.severity for event in incidents),
            dict(sorted(Counter(event.kind for event in incidents).items())),
        ),
        len({(p.feed_id, p.trip_id, p.start_date) for p in positions if p.trip_id is not None and p.stop_index is not None}),
        len(without),
        without[:WITHOUT_MOST],
        await _rate(parts, list(own), now_ms),
    )


def _buses(parts: Parts, area: str) -> list[str]:
    known = parts.table.areas.get(area)
    return [] if known is None else list(known.buses)


def _punctuality(parts: Parts, positions: list[Position]) -> PunctualNow:
    early = on_time = late = 0
    for position in positions:
        if position.delay_s is None or position.state not in (IN_TRIP, OFF_ROUTE):
            continue
        rules = NO_RULES if parts.rules is None else parts.rules.get(position.feed_id)
        if position.delay_s < -rules.on_time_early_s:
            early += 1
        elif position.delay_s < rules.on_time_late_s:
            on_time += 1
        else:
            late += 1
    count = early + on_time + late
    return PunctualNow(early, on_time, late, round(on_time / count, 4) if count else None)


def _without(parts: Parts, plans: list[Plan], now_ms: int, cancelled: frozenset[str]) -> list[TripWithout]:
    """Departures around now with nobody on the trip, the next ones first."""
    found = []
    for plan in plans:
        for instance in plan.timetable.instances_around(now_ms, AHEAD_S, 0):
            leaves_ms, trip = instance.departure_ms(0), instance.trip
            key = trip_key(plan.feed_id, trip.trip_id, instance.start_date)
            if leaves_ms < now_ms - BEHIND_S * 1000 or key in cancelled or on_trip(parts, key) is not None:
                continue
            ids = key, public_id(plan.feed_id, trip.route_id), route_name(plan.timetable, trip), trip.headsign
            found.append((leaves_ms, TripWithout(*ids, public_id(plan.feed_id, trip.pattern.stop_ids[0]), rfc3339(leaves_ms))))
    found.sort(key=lambda row: (row[0], row[1].trip_id))
    return [item for _, item in found]


async def _rate(parts: Parts, areas: list[str], now_ms: int) -> float | None:
    try:
        return round(await analytics_of(parts).fixes_since(areas, now_ms - HEARD_MS, now_ms) * 1000 / HEARD_MS, 2)
    except Unavailable:
        return None


ROUTERS: Final = (read_dashboard,)
