"""The board of a stop: every departure within a horizon once, scheduled and live merged, in the order in which buses are expected.

Times come from the timetable and the live table in memory. A parent station has the departures of its platforms. A trip that runs for hours
late is found by its bus, for the timetable has forgotten it. What an operator has cancelled stands there as CANCELLED.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Final
from weakref import WeakKeyDictionary

import msgspec

from api.ids import public_id, trip_key
from api.parts import Parts
from engine.errors import Unavailable
from engine.events import SKIPPED, Position, StopForecast
from engine.live.frames import rfc3339
from engine.tracking.plans import Plan
from engine.tracking.timetable import Timetable, Trip, TripInstance

HORIZON_S: Final = 2 * 3600
HORIZON_MOST_S: Final = 86_400
LEFT_S: Final = 120  # a bus that has just left is still worth showing
OVER_S: Final = 3600  # a trip without a bus is looked for so long after its last arrival: a stop of it may still be ahead of a late start
CANCELLED: Final = "CANCELLED"
SHARED_MS: Final = 10_000
HORIZON_STEP_S: Final = 1_800  # horizons are looked up in steps of it: 48 at most, whatever is asked for

Running = dict[str, dict[tuple[str, str], TripInstance]]  # by pattern, then by trip and date


class DepartureItem(msgspec.Struct, frozen=True, rename="camel"):
    trip_id: str
    route_id: str
    route_name: str
    headsign: str | None
    seq: int
    scheduled_at: str
    p10: str | None
    p50: str | None
    p90: str | None
    delay_s: int | None
    kind: str  # SCHEDULED: the timetable's word; ESTIMATED: a bus is on its way; SKIPPED: its bus missed the stop; CANCELLED: the trip does not run
    bus_id: str | None
    stop_id: str  # the platform, where a station was asked for
    platform: str | None
    expected_at: str  # when it leaves: as the bus is foretold, else as planned


class DepartureItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[DepartureItem]
    next_cursor: str | None


class _Calls:
    """Where each pattern calls, by stop; which stops belong to a station; and which trips run at present."""

    __slots__ = ("_running", "_since_ms", "children", "stops")

    def __init__(self, timetable: Timetable) -> None:
        self.stops: dict[str, list[tuple[str, int]]] = {}
        self.children: dict[str, list[str]] = {}
        for pattern in timetable.patterns.values():
            for index, stop_id in enumerate(pattern.stop_ids[:-1]):  # nobody departs at the last one
                self.stops.setdefault(stop_id, []).append((pattern.pattern_id, index))
        self._since_ms = 0
        self._running: dict[int, Running] = {}  # by horizon, of the ten seconds from `_since_ms`
        for stop in timetable.stops.values():
            if stop.parent_station is not None:
                self.children.setdefault(stop.parent_station, []).append(stop.stop_id)

    def members(self, stop_id: str) -> list[str]:
        """The stop and everything below it: platforms, and their boarding areas."""
        found = [stop_id]
        for one in found:
            found += [child for child in self.children.get(one, ()) if child not in found]
        return found

    def running(self, timetable: Timetable, now_ms: int, horizon_s: int) -> Running:
        """The trips that a board of this moment may have to name, and at most a few more, which it sees by their times; to be read only. All
        boards of the same ten seconds share them: looking them up was two thirds of a board."""
        since_ms = now_ms - now_ms % SHARED_MS
        if since_ms != self._since_ms:
            self._since_ms = since_ms
            self._running.clear()
        reach_s = -(-horizon_s // HORIZON_STEP_S) * HORIZON_STEP_S
        found = self._running.get(reach_s)
        if found is None:
            found = self._running[reach_s] = {}
            for instance in timetable.instances_around(since_ms, reach_s + SHARED_MS // 1000, OVER_S):
                trip = instance.trip
                found.setdefault(trip.pattern.pattern_id, {})[trip.trip_id, instance.start_date] = instance
        return found


_CALLS: Final[WeakKeyDictionary[Timetable, _Calls]] = WeakKeyDictionary()


def _calls_of(timetable: Timetable) -> _Calls:
    calls = _CALLS.get(timetable)
    if calls is None:
        calls = _CALLS[timetable] = _Calls(timetable)
    return calls


async def cancelled_trips(parts: Parts) -> frozenset[str]:
    """Trip instances that operators have cancelled around now; none where the database is away: a board is worth having without them."""
    if parts.booking is None:
        return frozenset()
    try:
        return await parts.booking.catalogue.cancelled()
    except Unavailable:
        return frozenset()


def on_trip(parts: Parts, trip_id: str) -> Position | None:
    """The vehicle that drives a trip instance; of several, the one heard last."""
    seen = parts.table.on_trip(trip_id)
    return max((one.position for one in seen), key=lambda p: p.fixed_at_ms, default=None)


class Board:
    """The departures of one feed from one moment on. The trips under way are looked up once, however many stops are asked for."""

    def __init__(self, parts: Parts, plan: Plan, now_ms: int, horizon_s: int, cancelled: frozenset[str]) -> None:
        self._parts, self._plan, self._cancelled = parts, plan, cancelled
        self._calls = _calls_of(plan.timetable)
        self._low_ms, self._high_ms = now_ms - LEFT_S * 1000, now_ms + horizon_s * 1000
        self._running = self._calls.running(plan.timetable, now_ms, horizon_s)
        self._late: Running = {}  # whose bus is later than `running` looks

    def at(self, stop_id: str) -> list[DepartureItem]:
        """Of a stop (the feed's own id) or a station, in the order in which they are expected."""
        found: list[tuple[int, DepartureItem]] = []
        for member in self._calls.members(stop_id):
            self._late_ones(member)
            found += self._of(member)
        found.sort(key=lambda row: (row[0], row[1].trip_id, row[1].seq))
        return [item for _, item in found]

    def _late_ones(self, stop_id: str) -> None:
        """Trips whose bus has the stop ahead although the timetable is done with them."""
        timetable = self._plan.timetable
        for seen in self._parts.table.at_stop(public_id(self._plan.feed_id, stop_id)):
            forecast = seen.forecast
            trip = timetable.trips.get(forecast.trip_id)
            if trip is None or (trip.trip_id, forecast.start_date) in self._running.get(trip.pattern.pattern_id, {}):
                continue
            instance = timetable.instance(forecast.trip_id, forecast.start_date)
            if instance is not None:
                self._late.setdefault(trip.pattern.pattern_id, {})[trip.trip_id, forecast.start_date] = instance

    def _of(self, stop_id: str) -> Iterator[tuple[int, DepartureItem]]:
        for pattern_id, index in self._calls.stops.get(stop_id, ()):
            for instance in chain(self._running.get(pattern_id, {}).values(), self._late.get(pattern_id, {}).values()):
                found = self._departure(instance, index)
                if found is not None and self._low_ms <= found[0] <= self._high_ms:
                    yield found

    def _departure(self, instance: TripInstance, index: int) -> tuple[int, DepartureItem] | None:
        """(expected departure UTC ms, item); None: the bus has left."""
        trip, feed_id = instance.trip, self._plan.feed_id
        key = trip_key(feed_id, trip.trip_id, instance.start_date)
        expected_ms = planned_ms = instance.departure_ms(index)
        position = on_trip(self._parts, key)
        kind, live = "SCHEDULED", None
        if key in self._cancelled:
            kind, position = CANCELLED, None
        elif position is not None:
            live = self._foretold(position, instance, index)
            if live is not None and live.p50_ms is not None:
                kind, expected_ms = live.kind, live.departs_ms or live.p50_ms
            elif live is not None and live.kind == SKIPPED:
                kind = SKIPPED
            elif position.stop_index is None or index < position.stop_index:  # None: it has done this trip
                return None
        return expected_ms, self._item(key, instance, index, kind, planned_ms, expected_ms, live, position)

    def _foretold(self, position: Position, instance: TripInstance, index: int) -> StopForecast | None:
        trip = instance.trip
        forecast = self._parts.table.forecast(position.bus_id)
        if forecast is None or forecast.trip_id != trip.trip_id or forecast.start_date != instance.start_date:
            return None
        seq = trip.pattern.stop_sequences[index]
        return next((stop for stop in forecast.stops if stop.stop_sequence == seq), None)

    def _item(
        self,
        key: str,
        instance: TripInstance,
        index: int,
        kind: str,
        planned_ms: int,
        expected_ms: int,
        live: StopForecast | None,
        position: Position | None,
    ) -> DepartureItem:
        timetable, trip = self._plan.timetable, instance.trip
        stop_id = trip.pattern.stop_ids[index]
        p10, p50, p90 = (None,) * 3 if live is None else (live.p10_ms, live.p50_ms, live.p90_ms)
        return DepartureItem(
            key,
            public_id(self._plan.feed_id, trip.route_id),
            route_name(timetable, trip),
            trip.headsign,
            trip.pattern.stop_sequences[index],
            rfc3339(planned_ms),
            None if p10 is None else rfc3339(p10),
            None if p50 is None else rfc3339(p50),
            None if p90 is None else rfc3339(p90),
            None if live is None else live.delay_s,
            kind,
            None if position is None else position.bus_id,
            public_id(self._plan.feed_id, stop_id),
            timetable.stops[stop_id].platform,
            rfc3339(expected_ms),
        )


def route_name(timetable: Timetable, trip: Trip) -> str:
    """What stands on the bus: the short name, else the long one; empty where the feed has neither."""
    route = timetable.routes.get(trip.route_id)
    return "" if route is None else route.short_name or route.long_name
