"""The planned world of one feed: stops, routes, patterns, trips, services, and trip instances on a service date.

Times follow the GTFS reference, "Time": seconds since noon minus 12 h of the service date in the agency's time zone, so 25:35:00 is after
midnight and a day of 23 or 25 hours is right. Sequences in a `Pattern` all have one length and are indexed by stop index 0..n-1;
`stop_sequence` is the feed's own number and need not be dense.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
from numpy.typing import NDArray

from geo.shape import Shape


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
        self.cache: dict[str, Any] = {}

    # The methods below are the interface; see the module's tests for their corners.

    def instance(self, trip_id: str, start_date: str) -> TripInstance | None:
        """The trip on that date, or None where the trip is unknown. Does not ask whether the service runs."""
        raise NotImplementedError

    def instances_on(self, day: date) -> list[TripInstance]:
        """Every trip instance of one service date, by departure."""
        raise NotImplementedError

    def instances_around(self, now_ms: int, before_s: int, after_s: int) -> Iterator[TripInstance]:
        """Instances whose span, widened by `before_s` and `after_s`, holds now: of today's, yesterday's and tomorrow's service date."""
        raise NotImplementedError

    def next_in_block(self, instance: TripInstance) -> TripInstance | None:
        """The trip that the same vehicle drives next, by block_id, on the same service date."""
        raise NotImplementedError


def service_day_start_ms(tz: ZoneInfo, day: date) -> int:
    """Noon minus 12 h of that date, UTC ms (GTFS reference, field type Time)."""
    raise NotImplementedError
