"""The planned world of one feed: stops, routes, patterns, trips, services, and trip instances on a service date.

Times follow the GTFS reference, "Time": seconds since noon minus 12 h of the service date in the agency's time zone, so 25:35:00 is after
midnight and a day of 23 or 25 hours is right. Sequences in a `Pattern` all have one length and are indexed by stop index 0..n-1;
`stop_sequence` is the feed's own number and need not be dense.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
from numpy.typing import NDArray

from geo.shape import Shape

DAYS_KEPT = 8  # service dates held ready: yesterday, today and tomorrow, and a replay's steps around them


class Stop(msgspec.Struct, frozen=True, gc=False):
    stop_id: str
    name: str
    lat: float
    lon: float
    code: str | None = None
    parent_station: str | None = None
    location_type: int = 0
    platform: str | None = None
    wheelchair: int = 0


class Agency(msgspec.Struct, frozen=True, gc=False):
    agency_id: str
    name: str
    timezone: str
    url: str = ""


class Route(msgspec.Struct, frozen=True, gc=False):
    route_id: str
    agency_id: str | None
    short_name: str
    long_name: str
    kind: int  # GTFS route_type
    color: str | None = None  # RRGGBB
    text_color: str | None = None
    sort_order: int | None = None


class Service(msgspec.Struct, frozen=True):
    """calendar.txt and calendar_dates.txt of one service_id."""

    service_id: str
    weekdays: tuple[bool, ...]  # Monday first, seven of them
    start: date | None  # None: only `added` counts
    end: date | None
    added: frozenset[date] = frozenset()
    removed: frozenset[date] = frozenset()

    def runs_on(self, day: date) -> bool:
        if day in self.removed:
            return False
        if day in self.added:
            return True
        return self.start is not None and self.end is not None and self.start <= day <= self.end and self.weekdays[day.weekday()]


class Pattern(msgspec.Struct, frozen=True, eq=False):
    """One ordered list of stops along one shape; every trip that drives it shares this object."""

    pattern_id: str
    route_id: str
    direction_id: int
    shape: Shape
    stop_ids: tuple[str, ...]
    stop_sequences: tuple[int, ...]
    along_m: NDArray[np.float64]  # arc position of each stop, strictly increasing
    timepoint: tuple[bool, ...]  # stop_times.timepoint = 1 (or times given and no column)
    from_stops: bool = False  # True: the feed has no shape, the line is the chain of stops


class Trip(msgspec.Struct, frozen=True, eq=False):
    trip_id: str
    route_id: str
    service_id: str
    pattern: Pattern
    arrival_s: tuple[int, ...]
    departure_s: tuple[int, ...]
    headsign: str | None = None
    block_id: str | None = None
    short_name: str | None = None
    frequency_of: str | None = None  # the feed's trip_id where frequencies.txt made this trip; its start time is departure_s[0]
    bikes: int = 0
    wheelchair: int = 0


class TripInstance(msgspec.Struct, frozen=True, eq=False):
    """A trip on one service date (trip_id + start_date of GTFS-Realtime)."""

    trip: Trip
    start_date: str  # yyyymmdd
    base_ms: int  # the service date's noon minus 12 h, UTC ms

    def arrival_ms(self, index: int) -> int:
        return self.base_ms + self.trip.arrival_s[index] * 1000

    def departure_ms(self, index: int) -> int:
        return self.base_ms + self.trip.departure_s[index] * 1000


class Timetable:
    """All of one feed version, in memory. Built by `ingest.gtfs` from a zip or by the store from the database; never changed after."""

    def __init__(
        self,
        *,
        feed_id: str,
        version: str,
        tz: ZoneInfo,
        agencies: dict[str, Agency],
        stops: dict[str, Stop],
        routes: dict[str, Route],
        services: dict[str, Service],
        patterns: dict[str, Pattern],
        trips: dict[str, Trip],
    ) -> None:
        self.feed_id, self.version, self.tz = feed_id, version, tz
        self.agencies, self.stops, self.routes = agencies, stops, routes
        self.services, self.patterns, self.trips = services, patterns, trips
        self._days: dict[date, _Day] = {}
        self._starts: dict[str, int] = {}
        latest_s = max((trip.arrival_s[-1] for trip in trips.values()), default=0)
        self._days_back = max(1, latest_s // 86_400)  # a trip that runs past 48:00 is still under way two dates later

    def __repr__(self) -> str:
        return f"Timetable({self.feed_id!r}, {len(self.routes)} routes, {len(self.patterns)} patterns, {len(self.trips)} trips)"

    def __reduce__(self) -> tuple[Any, tuple[dict[str, Any]]]:
        fields = ("feed_id", "version", "tz", "agencies", "stops", "routes", "services", "patterns", "trips")
        return _timetable_of, ({name: getattr(self, name) for name in fields},)

    def instance(self, trip_id: str, start_date: str) -> TripInstance | None:
        """The trip on that date (yyyymmdd), or None where the trip or the date is none. Does not ask whether the service runs."""
        trip = self.trips.get(trip_id)
        if trip is None:
            return None
        base_ms = self._starts.get(start_date)
        if base_ms is None:
            day = parse_date(start_date)
            if day is None:
                return None
            base_ms = self._start_of(day)
        return TripInstance(trip, start_date, base_ms)

    def instances_on(self, day: date) -> list[TripInstance]:
        """Every trip instance of one service date, by departure, then by trip id. A new list each time; the instances are shared."""
        return list(self._day(day).instances)

    def instances_of_route(self, route_id: str, day: date) -> list[TripInstance]:
        """Those of one route, in the same order. To be read only: the list is kept."""
        return self._day(day).routes.get(route_id, [])

    def instances_around(self, now_ms: int, before_s: int, after_s: int) -> Iterator[TripInstance]:
        """Instances whose span, widened by `before_s` and `after_s`, holds now: of today's, yesterday's and tomorrow's service date.

        The span runs from the departure at the first stop to the arrival at the last one. Tomorrow's count because a first departure may
        be near midnight, yesterday's because times run past 24:00 (and earlier dates where the feed has times past 48:00).
        """
        today = datetime.fromtimestamp(now_ms / 1000, self.tz).date()
        for step in range(-self._days_back, 2):
            held = self._day(today + timedelta(days=step))
            open_now = (held.first_ms - before_s * 1000 <= now_ms) & (now_ms <= held.last_ms + after_s * 1000)
            for index in np.flatnonzero(open_now):
                yield held.instances[index]

    def next_in_block(self, instance: TripInstance) -> TripInstance | None:
        """The trip that the same vehicle drives next, by block_id, on the same service date; None after the last, or without a block."""
        block_id, day = instance.trip.block_id, parse_date(instance.start_date)
        if block_id is None or day is None:
            return None
        mine = (instance.trip.departure_s[0], instance.trip.trip_id)
        for other in self._day(day).blocks.get(block_id, ()):
            if (other.trip.departure_s[0], other.trip.trip_id) > mine:
                return other
        return None

    def _start_of(self, day: date) -> int:
        text = day.strftime("%Y%m%d")
        if text not in self._starts:
            if len(self._starts) >= 1024:  # a stream of odd dates must not grow this for ever
                self._starts.clear()
            self._starts[text] = service_day_start_ms(self.tz, day)
        return self._starts[text]

    def _day(self, day: date) -> _Day:
        held = self._days.get(day)
        if held is None:
            while len(self._days) >= DAYS_KEPT + self._days_back:
                del self._days[next(iter(self._days))]
            held = self._days[day] = self._make_day(day)
        return held

    def _make_day(self, day: date) -> _Day:
        running = {service_id for service_id, service in self.services.items() if service.runs_on(day)}
        trips = [trip for trip in self.trips.values() if trip.service_id in running]
        trips.sort(key=lambda trip: (trip.departure_s[0], trip.trip_id))
        text, base_ms = day.strftime("%Y%m%d"), self._start_of(day)
        instances = [TripInstance(trip, text, base_ms) for trip in trips]
        blocks: dict[str, list[TripInstance]] = {}
        routes: dict[str, list[TripInstance]] = {}
        for instance in instances:
            routes.setdefault(instance.trip.route_id, []).append(instance)
            if instance.trip.block_id is not None:
                blocks.setdefault(instance.trip.block_id, []).append(instance)
        first = np.array([trip.departure_s[0] for trip in trips], dtype=np.int64)
        last = np.array([trip.arrival_s[-1] for trip in trips], dtype=np.int64)
        return _Day(instances, base_ms + first * 1000, base_ms + last * 1000, blocks, routes)


class _Day(NamedTuple):
    """One service date: instances by departure, their spans in UTC ms, and those of each block and route in the order they are driven."""

    instances: list[TripInstance]
    first_ms: NDArray[np.int64]
    last_ms: NDArray[np.int64]
    blocks: dict[str, list[TripInstance]]
    routes: dict[str, list[TripInstance]]


def _timetable_of(fields: dict[str, Any]) -> Timetable:
    return Timetable(**fields)


def parse_date(text: str) -> date | None:
    """yyyymmdd as a date, or None where it is none."""
    if len(text) != 8 or not (text.isascii() and text.isdigit()):
        return None
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return None


def service_day_start_ms(tz: ZoneInfo, day: date) -> int:
    """Noon minus 12 h of that date, UTC ms (GTFS reference, field type Time)."""
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=tz)
    return int(noon.timestamp()) * 1000 - 43_200_000
