"""Buses for load: the network as the product itself tells it over its public wire, and buses that drive its trips, a few microseconds a fix.

`survey` reads routes, lines, stops and trips of today. A `Bus` drives along the line of a trip at a city bus's pace and stands at its stops; at
the end it takes the way back where there is one, else it stays. Every half second of a pattern's way is written out once, as bytes, so a fix is
a look into a table. The trip is named, at whatever hour: as a stand-in that runs now.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from bench.harness.scenario import Target

CRUISE_MPS, STAND_S = 8.5, 12.0
STEP_S = 0.5  # of the tables
WAY_MAX_M = 40_000.0  # as much of a line as is written out: coaches cross the country
WAY_BACK_M = 500.0  # as near must the way back begin
M_PER_DEG = 111_194.9
PAGE, ROUTES_MAX, TRIPS_MAX = 100, 100, 20_000


class Way(msgspec.Struct):
    """One pattern: its line, where its stops are on it, and its trips of today."""

    route_id: str
    line: list[tuple[float, float]]  # lat, lon
    stops_m: list[float]
    stop_ids: list[str]
    trips: list[tuple[str, str]]  # public trip instance id, start date


class City(msgspec.Struct):
    """What a load needs to know of a network. JSON: `msgspec.to_builtins` there, `city_of` back."""

    ways: list[Way]
    stop_ids: list[str]
    box: tuple[float, float, float, float]  # west, south, east, north of all lines


def city_of(data: Any) -> City:
    return msgspec.convert(data, City)


def survey(target: Target) -> City:
    """Raises ValueError where the product has no trips today, else what `target.call` raises."""
    routes = _all(target, "/v1/routes", ROUTES_MAX)
    ways: list[Way] = []
    for route in routes:
        detail = target.call("GET", f"/v1/routes/{route['routeId']}")
        by_stops = {tuple(one["stopIds"]): one for one in detail["patterns"]}
        trips: dict[tuple[int, str], list[tuple[str, str]]] = {}
        for one in _all(target, f"/v1/routes/{route['routeId']}/schedules", TRIPS_MAX):
            trips.setdefault((one["directionId"], one["headsign"] or ""), []).append((one["tripId"], one["startDate"]))
        for found in trips.values():  # trips of one direction and sign share a pattern, or nearly
            stops = target.call("GET", f"/v1/trips/{found[0][0]}")["stops"]
            pattern = by_stops.get(tuple(stop["stopId"] for stop in stops))
            if pattern is not None and pattern["geometry"].get("type") == "LineString":
                line = [(lat, lon) for lon, lat, *_ in pattern["geometry"]["coordinates"]]
                ways.append(Way(route["routeId"], line, pattern["alongM"], pattern["stopIds"], found))
    city_ways = [way for way in ways if way.stops_m[-1] <= WAY_MAX_M] or ways
    if not city_ways:
        raise ValueError("the product has no trips today: import a feed whose calendar covers today")
    points = [point for way in city_ways for point in way.line]
    box = (min(p[1] for p in points), min(p[0] for p in points), max(p[1] for p in points), max(p[0] for p in points))
    return City(city_ways, sorted({stop for way in city_ways for stop in way.stop_ids}), box)


def _all(target: Target, path: str, most: int) -> list[Any]:
    """The items of all pages."""
    items: list[Any] = []
    cursor = ""
    while len(items) < most:
        page = target.call("GET", f"{path}?limit={PAGE}" + (f"&cursor={cursor}" if cursor else ""))
        items += page["items"]
        cursor = page.get("nextCursor") or ""
        if not cursor:
            break
    return items


def bus_ids(count: int) -> list[str]:
    """Of the buses that the load drives. The same ones in every run, a fleet and not a heap; so a run's first fixes of a bus may be far from
    where the run before left it, and the product takes it as a receiver gone wrong until the second one agrees."""
    return [f"load-{number:05d}" for number in range(count)]


def epoch_ms(text: bytes) -> int:
    """Of a time on the wire (RFC 3339, UTC, milliseconds)."""
    minute = _minutes.get(text[:17])
    if minute is None:
        _minutes.clear()
        minute = _minutes[text[:17]] = round(datetime.fromisoformat(text[:17].decode() + "00+00:00").timestamp() * 1000)
    return minute + int(text[17:19]) * 1000 + (int(text[20:23]) if text[19:20] == b"." else 0)


_minutes: dict[bytes, int] = {}


class Table:
    """A way, written out: what a bus says of its place and motion at every half second since it left. `onward`: where the way back begins
    (lat, lon), driven to in a straight line, for a bus that leaps is taken for a receiver gone wrong."""

    def __init__(self, way: Way, onward: tuple[float, float] | None = None) -> None:
        self.way = way
        self.places: list[tuple[float, float, float, float]] = []  # lat, lon, bearing, m/s
        self.said: list[bytes] = []
        arcs = [0.0]
        for (lat, lon), (lat2, lon2) in zip(way.line, way.line[1:], strict=False):
            arcs.append(arcs[-1] + math.hypot((lat2 - lat) * M_PER_DEG, (lon2 - lon) * M_PER_DEG * math.cos(math.radians(lat))))
        whole = arcs[-1] / max(1.0, way.stops_m[-1])  # their metres and ours differ a little
        along, end = 0.0, min(arcs[-1], WAY_MAX_M)
        stops = [stop * whole for stop in way.stops_m if 0 < stop * whole < end - 1]
        while along < end:
            if stops and along >= stops[0]:
                stops.pop(0)
                self._put(way.line, arcs, along, 0.0, round(STAND_S / STEP_S))
            else:  # and not the same spot at speed: that is a receiver that hangs, and its fix is not used
                self._put(way.line, arcs, along, CRUISE_MPS, 1)
            along += CRUISE_MPS * STEP_S
        self._put(way.line, arcs, end, 0.0, 1)
        if onward is not None and end == arcs[-1]:
            (lat, lon), (lat2, lon2) = way.line[-1], onward
            gap = math.hypot((lat2 - lat) * M_PER_DEG, (lon2 - lon) * M_PER_DEG * math.cos(math.radians(lat)))
            along = CRUISE_MPS * STEP_S
            while along < gap:
                self._put([way.line[-1], onward], [0.0, gap], along, CRUISE_MPS, 1)
                along += CRUISE_MPS * STEP_S

    def _put(self, line: Sequence[tuple[float, float]], arcs: Sequence[float], along: float, mps: float, times: int) -> None:
        at = min(max(0, bisect_right(arcs, along) - 1), len(line) - 2)
        (lat, lon), (lat2, lon2) = line[at], line[at + 1]
        share = (along - arcs[at]) / max(0.01, arcs[at + 1] - arcs[at])
        bearing = math.degrees(math.atan2((lon2 - lon) * math.cos(math.radians(lat)), lat2 - lat)) % 360
        place = (lat + share * (lat2 - lat), lon + share * (lon2 - lon), bearing, mps)
        said = b',"location":{"latitude":%.6f,"longitude":%.6f,"accuracy":5.0},"motion":{"speed":%.1f,"heading":%.1f},' % (
            *place[:2],
            mps * 3.6,
            bearing,
        )
        self.places += [place] * times
        self.said += [said] * times


class Town:
    """The tables of a city, made as they are needed, and who drives what."""

    def __init__(self, city: City) -> None:
        self.city = city
        self._tables: dict[int, Table] = {}
        self.back = [self._way_back(number) for number in range(len(city.ways))]

    def _way_back(self, number: int) -> int | None:
        lat, lon = self.city.ways[number].line[-1]
        for other, way in enumerate(self.city.ways):
            there, beyond = way.line[0]
            if other != number and math.hypot(lat - there, (lon - beyond) * math.cos(math.radians(lat))) * M_PER_DEG < WAY_BACK_M:
                return other
        return None

    def table(self, way: int) -> Table:
        if way not in self._tables:
            back = self.back[way]
            self._tables[way] = Table(self.city.ways[way], self.city.ways[back].line[0] if back is not None else None)
        return self._tables[way]


class Bus:
    """One of many, the `number`-th. Asked in order of time."""

    __slots__ = ("_from_s", "_head", "_leg", "_tail", "_town", "_way", "bus_id", "number", "seq", "table", "trip")

    def __init__(self, town: Town, number: int, bus_id: str) -> None:
        self._town, self.number, self.bus_id = town, number, bus_id
        self.seq = 0
        self._leg = 0
        self._from_s: float | None = None
        self._head = b'{"busId":"%b","timestamp":' % bus_id.encode()
        self._begin(number % len(town.city.ways))

    def _begin(self, way: int) -> None:
        self._way, self.table = way, self._town.table(way)
        trips = self._town.city.ways[way].trips
        # buses of the same way have different trips; on the way back it is the trip of the same place in the list
        self.trip = trips[(self.number // len(self._town.city.ways) + self._leg) % len(trips)]
        self._tail = b'"tripId":"%b","startDate":"%b","seq":' % (self.trip[0].encode(), self.trip[1].encode())

    def _index(self, moment_s: float) -> int:
        if self._from_s is None:  # already on its way: somewhere in the first half
            self._from_s = moment_s - self.number * 0.618034 % 0.5 * len(self.table.said) * STEP_S
        index = int((moment_s - self._from_s) / STEP_S)
        if index >= len(self.table.said):
            back = self._town.back[self._way]
            if back is None:
                return len(self.table.said) - 1
            self._leg += 1
            self._begin(back)
            self._from_s, index = moment_s, 0
        return index

    def fix(self, moment_s: float, at_ms: int) -> bytes:
        """A telemetry object. `at_ms`: the time it carries; never the same twice, as nothing else tells two fixes of a standing bus apart."""
        self.seq += 1
        index = self._index(moment_s)  # which may turn the bus round
        return b"%b%d%b%b%d}" % (self._head, at_ms, self.table.said[index], self._tail, self.seq)

    def place(self, moment_s: float) -> tuple[float, float, float, float]:
        """lat, lon, bearing, m/s: for protocols that say it otherwise."""
        self.seq += 1
        index = self._index(moment_s)
        return self.table.places[index]
