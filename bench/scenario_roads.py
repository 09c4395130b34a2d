"""What buses really do that no timetable says: they leave their line, turn back, pass around a stop, stand, wait, come over empty.

A journey becomes `Driven`, a table of where the bus truly is; every kind of trouble is a small struct whose `strike` answers the table with
that stretch cut out and another put in, and with what happened written beside it. Later rows and stop times move by what it cost, so that
troubles compose in any order. Pure: all chance comes from the `random.Random` given. UTC ms, metres, m/s, degrees.
"""

from __future__ import annotations

import math
import random
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.driving import Journey, StopVisit
from bench.receiver import Truth
from engine.tracking.timetable import TripInstance
from geo.coords import distance_m, metres_per_degree, moved
from geo.shape import Shape

T, ALONG, LON, LAT, SPEED, BEARING, OFFSET, PHASE, ON = range(9)  # columns; ON: on the shape itself, so that places between rows lie on it
LAYOVER, IN_TRIP, DEADHEAD = range(3)
PHASES = ("LAYOVER", "IN_TRIP", "DEADHEAD")
SIGNED_ON_MS = 4 * 60_000  # the driver names the trip this long before it leaves
GAIN_MPS2 = 1.0
AWAY_M = 60.0  # further from the shape than this nobody would say "on route"
MISSED_M = 80.0  # a stop that was never nearer than this was missed
CLEAR_M = 40.0  # from a stop to where a trouble begins, so that no dwell is cut in two
TRIES = 32
Rows = NDArray[np.float64]


class Happening(msgspec.Struct, frozen=True):
    """One thing that truly happened. `from_m`, `to_m` None: it has no place on the shape."""

    kind: str
    bus_id: str
    trip_id: str | None
    start_date: str | None
    from_ms: int
    to_ms: int
    from_m: float | None = None
    to_m: float | None = None
    facts: dict[str, Any] = {}


class RoadTrouble(Protocol):
    """One kind of trouble with its options. Where an option is None, chance decides; a place given is moved on past a stop in the way."""

    def strike(self, driven: Driven, chance: random.Random) -> Driven:
        """The same object where the trip has no room for it."""
        ...


class Driven:
    """One bus on one trip instance: where it is at any time, what it did at its stops, and what happened. Never changed."""

    __slots__ = ("_times", "begins_ms", "bus_id", "ends_ms", "happened", "instance", "rows", "visits")

    def __init__(
        self,
        bus_id: str,
        instance: TripInstance,
        begins_ms: int,
        ends_ms: int,
        rows: Rows,
        visits: list[StopVisit],
        happened: tuple[Happening, ...] = (),
    ) -> None:
        self.bus_id, self.instance, self.begins_ms, self.ends_ms = bus_id, instance, begins_ms, ends_ms
        self.rows, self.visits, self.happened = rows, visits, happened
        self._times: Rows = rows[:, T]

    @classmethod
    def of(cls, bus_id: str, journey: Journey) -> Driven:
        """A journey, once a second."""
        times = np.append(np.arange(journey.begins_ms, journey.ends_ms, 1000.0), float(journey.ends_ms))
        rows = np.zeros((len(times), 9))
        rows[:, T] = times
        rows[:, ALONG], rows[:, SPEED] = journey.many(times)
        _on_shape(rows, journey.instance.trip.pattern.shape)
        return cls(bus_id, journey.instance, journey.begins_ms, journey.ends_ms, rows, journey.visits)

    @property
    def shape(self) -> Shape:
        return self.instance.trip.pattern.shape

    @property
    def first_ms(self) -> int:
        """When it begins to be somewhere: what happens before the trip counts."""
        return int(self._times[0])

    @property
    def last_ms(self) -> int:
        return int(self._times[-1])

    def at(self, now_ms: float) -> tuple[float, float]:
        """(metres along the shape, m/s), as `Journey.at`."""
        return float(np.interp(now_ms, self._times, self.rows[:, ALONG])), float(np.interp(now_ms, self._times, self.rows[:, SPEED]))

    def truth(self, now_ms: int) -> Truth:
        """Before the table's first row it stands there, after the last likewise."""
        i = max(0, int(np.searchsorted(self._times, now_ms, side="right")) - 1)
        row = self.rows[i].tolist()
        after = self.rows[min(i + 1, len(self.rows) - 1)].tolist()
        share = min(1.0, max(0.0, (now_ms - row[T]) / (after[T] - row[T]))) if after[T] > row[T] else 0.0
        along = row[ALONG] + share * (after[ALONG] - row[ALONG])
        lon, lat = row[LON] + share * (after[LON] - row[LON]), row[LAT] + share * (after[LAT] - row[LAT])
        bearing, offset = row[BEARING], row[OFFSET] + share * (after[OFFSET] - row[OFFSET])
        speed = max(0.0, row[SPEED] + share * (after[SPEED] - row[SPEED]))
        if row[ON] and after[ON]:
            lon, lat, course = self.shape.position(along)
            bearing = (course + 180.0) % 360.0 if after[ALONG] < row[ALONG] else course
        phase = PHASES[int(row[PHASE])]
        if phase == "IN_TRIP" and not self.begins_ms <= now_ms <= self.ends_ms:
            phase, speed = "LAYOVER", 0.0
        trip = self.instance
        waits = phase == "LAYOVER" and 0 <= self.begins_ms - now_ms <= SIGNED_ON_MS
        if phase == "IN_TRIP" or waits:
            return Truth(self.bus_id, now_ms, lat, lon, speed, bearing, trip.trip.trip_id, trip.start_date, along, offset, phase)
        return Truth(self.bus_id, now_ms, lat, lon, speed, bearing, None, None, None, offset, phase)

    def spliced(self, first: int, end: int, rows: Rows, happened: Happening, *, instead: dict[int, str] | None = None) -> Driven:
        """Rows [first, end) replaced by others, whose first stands at the time of row `first` or later; what follows moves in time.
        `instead`: what becomes of the stops (index -> kind) that lay on the way cut out."""
        cost_ms = 0.0
        begin_ms, later = float(self._times[first]), self.rows[end:].copy()
        if len(later):
            step_ms = 1000.0 if end > first else float(later[0, T] - self._times[end - 1])
            cost_ms = round((float(rows[-1, T]) if len(rows) else begin_ms) + step_ms - float(later[0, T]))
            later[:, T] += cost_ms
        resumes_ms = float(self._times[end]) if end < len(self._times) else math.inf
        table = np.vstack((self.rows[:first], rows, later))
        moved_ms = round(cost_ms)
        visits = []
        for visit in self.visits:
            if instead and visit.stop_index in instead:
                at_ms = self._passed(rows, visit.stop_index)
                visits.append(StopVisit(visit.stop_index, at_ms, at_ms, instead[visit.stop_index]))
            elif visit.arrived_ms >= resumes_ms:
                visits.append(StopVisit(visit.stop_index, visit.arrived_ms + moved_ms, visit.departed_ms + moved_ms, visit.kind))
            else:
                visits.append(visit)
        before = tuple(_later(each, moved_ms) if each.from_ms >= resumes_ms else each for each in self.happened)
        ends_ms = self.ends_ms + moved_ms
        return Driven(self.bus_id, self.instance, self.begins_ms, ends_ms, table, visits, (*before, happened))

    def _passed(self, rows: Rows, stop_index: int) -> int:
        """When it was nearest to a stop that it drove around."""
        along = float(self.instance.trip.pattern.along_m[stop_index])
        return int(rows[int(np.argmin(np.abs(rows[:, ALONG] - along))), T])

    def free(self, from_m: float, to_m: float) -> tuple[int, int] | None:
        """The rows [first, end) between two arcs, both on the shape and clear of stops' dwells and of other troubles; else None."""
        arcs = self.instance.trip.pattern.along_m
        if from_m < float(arcs[0]) + CLEAR_M or to_m > float(arcs[-1]) - CLEAR_M or to_m < from_m:
            return None
        if min(float(np.abs(arcs - from_m).min()), float(np.abs(arcs - to_m).min())) < CLEAR_M:
            return None
        furthest = np.maximum.accumulate(np.where(self.rows[:, PHASE] == IN_TRIP, self.rows[:, ALONG], -np.inf))
        first, end = np.searchsorted(furthest, (from_m, to_m), side="right").tolist()
        last = min(end, len(self.rows) - 1)
        if first == 0 or not self.rows[first - 1 : last + 1, ON].all() or (np.diff(self.rows[first - 1 : last + 1, ALONG]) < -0.01).any():
            return None
        return first, max(first, end)

    def happening(self, kind: str, from_ms: float, to_ms: float, from_m: float | None, to_m: float | None, **facts: Any) -> Happening:
        trip = self.instance
        low, high = (None if each is None else round(each, 1) for each in (from_m, to_m))
        return Happening(kind, self.bus_id, trip.trip.trip_id, trip.start_date, round(from_ms), round(to_ms), low, high, facts)


def _later(happening: Happening, ms: int) -> Happening:
    facts = {name: value + ms if name.endswith("Ms") else value for name, value in happening.facts.items()}
    return msgspec.structs.replace(happening, from_ms=happening.from_ms + ms, to_ms=happening.to_ms + ms, facts=facts)


def _on_shape(rows: Rows, shape: Shape) -> None:
    """Fills in place and bearing of rows that lie on the shape."""
    rows[:, LON], rows[:, LAT], rows[:, BEARING] = shape.positions(rows[:, ALONG])
    rows[:, PHASE], rows[:, ON] = IN_TRIP, 1.0


# --- ways ---


def rolled(length_m: float, from_mps: float, to_mps: float, cruise_mps: float) -> tuple[list[float], list[float]]:
    """(metres driven, speed) after every second of a way, gaining and losing speed at 1 m/s2, until it is driven."""
    driven, speed = 0.0, from_mps
    all_driven: list[float] = []
    speeds: list[float] = []
    while driven < length_m and len(speeds) < 20_000:
        room = length_m - driven
        allowed = math.sqrt(to_mps**2 + 2 * GAIN_MPS2 * room)
        speed = max(0.8, min(max(speed - GAIN_MPS2, min(speed + GAIN_MPS2, cruise_mps)), allowed))
        driven = min(length_m, driven + speed)
        all_driven.append(driven)
        speeds.append(speed)
    return all_driven, speeds


def way_rows(points: list[tuple[float, float]], shape: Shape, begin_ms: float, speeds_mps: tuple[float, float, float]) -> Rows:
    """Rows of a drive over corners (lon, lat), one a second from a second after `begin_ms`. Speeds: at its begin, at its end, between.
    Arcs and phase are the caller's to fill in."""
    lons, lats = np.array([lon for lon, _ in points]), np.array([lat for _, lat in points])
    legs = distance_m(lons[:-1], lats[:-1], lons[1:], lats[1:])
    cum = np.concatenate(([0.0], np.cumsum(legs)))
    driven, speeds = rolled(float(cum[-1]), *speeds_mps)
    rows = np.zeros((len(driven), 9))
    rows[:, T] = begin_ms + 1000.0 * np.arange(1, len(driven) + 1)
    rows[:, LON], rows[:, LAT], rows[:, SPEED] = np.interp(driven, cum, lons), np.interp(driven, cum, lats), speeds
    per_lon, per_lat = metres_per_degree(float(lats.mean()))
    courses = np.degrees(np.arctan2(np.diff(lons) * per_lon, np.diff(lats) * per_lat)) % 360.0
    rows[:, BEARING] = courses[np.clip(np.searchsorted(cum, driven, side="left") - 1, 0, len(courses) - 1)]
    rows[:, OFFSET] = distances(shape, rows[:, LON], rows[:, LAT])
    return rows


def distances(shape: Shape, lons: Rows, lats: Rows) -> Rows:
    """Of each place from the nearest point of the whole shape (some kilometres at most: segments far from all places are not looked at)."""
    per_lon, per_lat = metres_per_degree(float(lats.mean()))
    x, y = (shape.lons - lons[0]) * per_lon, (shape.lats - lats[0]) * per_lat
    px, py = (lons - lons[0]) * per_lon, (lats - lats[0]) * per_lat
    reach = 3_000.0 + float(np.hypot(px, py).max()) + shape.seg_m
    near = np.flatnonzero(np.hypot(x[:-1], y[:-1]) < reach)
    x0, y0, east, north = x[:-1][near], y[:-1][near], np.diff(x)[near], np.diff(y)[near]
    square = np.maximum(1e-9, east * east + north * north)
    least = np.full(len(lons), np.inf)
    for begin in range(0, len(near), 256):
        part = slice(begin, begin + 256)
        dx, dy = px[:, None] - x0[None, part], py[:, None] - y0[None, part]
        share = np.clip((dx * east[part] + dy * north[part]) / square[part], 0.0, 1.0)
        least = np.minimum(least, np.hypot(dx - share * east[part], dy - share * north[part]).min(axis=1))
    return least


def around(shape: Shape, from_m: float, to_m: float, aside_m: float) -> list[tuple[float, float]]:
    """Round a block: off at right angles, along a parallel street `aside_m` away (positive: to the right), and back."""
    lon0, lat0, _ = shape.position(from_m)
    lon1, lat1, _ = shape.position(to_m)
    per_lon, per_lat = metres_per_degree((lat0 + lat1) / 2)
    east, north = (lon1 - lon0) * per_lon, (lat1 - lat0) * per_lat
    length = math.hypot(east, north)
    if length < 1.0:
        return []
    out = (aside_m * north / length, -aside_m * east / length)
    return [(lon0, lat0), moved(lon0, lat0, *out), moved(lon1, lat1, *out), (lon1, lat1)]


# --- troubles ---


class Detour(msgspec.Struct, frozen=True):
    """Drives another way for a while: leaves the shape, misses the stops there, and rejoins."""

    at_m: float | None = None  # arc where it leaves
    length_m: float | None = None  # of the shape that is left out; None: 300 to 2,000 m, at most a third of it
    aside_m: float | None = None  # positive: to the right; None: 100 to 450 m to either side
    speed_mps: float = 7.0
    kind: str = "DETOUR"

    def strike(self, driven: Driven, chance: random.Random) -> Driven:
        found = self._found(driven, chance)
        if found is None:
            return driven
        (first, end), from_m, to_m, points = found
        before, after = driven.rows[first - 1], driven.rows[min(end, len(driven.rows) - 1)]
        rows = way_rows(points, driven.shape, float(before[T]), (float(before[SPEED]), float(after[SPEED]), self.speed_mps))
        rows[:, PHASE] = IN_TRIP
        legs = np.cumsum(np.concatenate(([0.0], np.hypot(np.diff(rows[:, LON]), np.diff(rows[:, LAT])))))
        rows[:, ALONG] = from_m + (to_m - from_m) * legs / max(1e-12, float(legs[-1]))
        pattern = driven.instance.trip.pattern
        inside = [i for i, along in enumerate(pattern.along_m.tolist()) if from_m < along < to_m]
        nearest = {i: self._distance(driven, rows, i) for i in inside}
        instead = {i: "MISSED" if distance > MISSED_M else "PASSED" for i, distance in nearest.items()}
        away = rows[rows[:, OFFSET] > AWAY_M]
        facts: dict[str, Any] = {
            "maxOffsetM": round(float(rows[:, OFFSET].max())),
            "drivenM": round(float(rows[:, SPEED].sum())),
            "stopsMissed": [pattern.stop_sequences[i] for i in inside if instead[i] == "MISSED"],
            "stopsWithinM": {str(pattern.stop_sequences[i]): round(nearest[i]) for i in inside},
        }
        if len(away):
            facts |= {"awayFromMs": int(away[0, T]), "awayToMs": int(away[-1, T])}
        happening = driven.happening(self.kind, float(before[T]), float(rows[-1, T]), from_m, to_m, **facts)
        return driven.spliced(first, end, rows, happening, instead=instead)

    @staticmethod
    def _distance(driven: Driven, rows: Rows, stop_index: int) -> float:
        """How near it came to a stop's place on the shape."""
        lon, lat, _ = driven.shape.position(float(driven.instance.trip.pattern.along_m[stop_index]))
        per_lon, per_lat = metres_per_degree(lat)
        return float(np.hypot((rows[:, LON] - lon) * per_lon, (rows[:, LAT] - lat) * per_lat).min())

    def _found(self, driven: Driven, chance: random.Random) -> tuple[tuple[int, int], float, float, list[tuple[float, float]]] | None:
        """A stretch whose other way is truly away from the whole shape, a loop's other side included."""
        shape, arcs = driven.shape, driven.instance.trip.pattern.along_m
        best, found = 0.55, None
        for attempt in range(TRIES):
            total = float(arcs[-1] - arcs[0])
            length = self.length_m if self.length_m is not None else min(chance.uniform(300, 2_000), total / 3)
            room = max(0.0, total - length - 4 * CLEAR_M)
            from_m = self.at_m if self.at_m is not None else float(arcs[0]) + 2 * CLEAR_M + chance.random() * room
            from_m += 0.0 if self.at_m is None else 6.0 * attempt  # a stop may be in the way
            aside = self.aside_m if self.aside_m is not None else chance.uniform(100, 450) * chance.choice((-1, 1))
            rows = driven.free(from_m, from_m + length)
            points = around(shape, from_m, from_m + length, aside) if rows is not None else []
            if rows is None or not points:
                continue
            (lon0, lat0), (lon1, lat1) = points[1], points[2]
            parts = np.linspace(0.0, 1.0, 7)
            share = float(np.mean(distances(shape, lon0 + parts * (lon1 - lon0), lat0 + parts * (lat1 - lat0)) >= 0.7 * abs(aside)))
            if share > best:
                best, found = share, (rows, from_m, from_m + length, points)
            if share == 1.0:
                break
        return found


class MissedStop(msgspec.Struct, frozen=True):
    """Drives round the block of one stop: never nearer to it than about `aside_m`."""

    stop_index: int | None = None
    aside_m: float = 150.0
    half_m: float = 160.0  # leaves the shape this long before the stop and rejoins this long after

    def strike(self, driven: Driven, chance: random.Random) -> Driven:
        arcs = driven.instance.trip.pattern.along_m
        inner = [self.stop_index] if self.stop_index is not None else list(range(1, len(arcs) - 1))
        chance.shuffle(inner)
        for index in inner[:TRIES]:
            for side in chance.sample((1.0, -1.0), 2):
                detour = Detour(float(arcs[index]) - self.half_m, 2 * self.half_m, side * self.aside_m, kind="MISSED_STOP")
                struck = detour.strike(driven, chance)
                if struck is not driven and any(visit.stop_index == index and visit.kind == "MISSED" for visit in struck.visits):
                    return struck
        return driven


class WrongWay(msgspec.Struct, frozen=True):
    """Turns round, drives back along its shape, turns again and goes on."""

    at_m: float | None = None  # where it turns
    back_m: float | None = None  # None: 200 to 700 m
    speed_mps: float = 6.0
    turn_s: int = 15

    def strike(self, driven: Driven, chance: random.Random) -> Driven:
        arcs = driven.instance.trip.pattern.along_m
        for attempt in range(TRIES):
            back = self.back_m if self.back_m is not None else chance.uniform(200, 700)
            low, high = float(arcs[0]) + back + 2 * CLEAR_M, float(arcs[-1]) - 2 * CLEAR_M
            at_m = self.at_m + 6.0 * attempt if self.at_m is not None else low + chance.random() * max(0.0, high - low)
            room = driven.free(at_m, at_m)
            if at_m < float(arcs[0]) + back + CLEAR_M or room is None:
                continue
            first = room[0]
            begin, at_m = float(driven.rows[first - 1, T]), float(driven.rows[first - 1, ALONG])
            driven_back, speeds = rolled(back, 0.0, 0.0, self.speed_mps)
            still = [at_m] * self.turn_s
            along = [
                *still,
                *(at_m - each for each in driven_back),
                *[at_m - back] * self.turn_s,
                *(at_m - back + each for each in driven_back),
            ]
            rows = np.zeros((len(along), 9))
            rows[:, T] = begin + 1000.0 * np.arange(1, len(along) + 1)
            rows[:, ALONG], rows[:, SPEED] = along, [0.0] * self.turn_s + speeds + [0.0] * self.turn_s + speeds
            _on_shape(rows, driven.shape)
            turned = slice(self.turn_s, self.turn_s + len(driven_back))
            rows[turned, BEARING] = (rows[turned, BEARING] + 180.0) % 360.0
            turned_ms = float(rows[turned, T][-1])
            happening = driven.happening(
                "WRONG_WAY", float(rows[self.turn_s, T]), turned_ms, at_m, at_m - back, forwardAgainMs=int(turned_ms) + 1000 * self.turn_s
            )
            return driven.spliced(first, first, rows, happening)
        return driven


class Stand(msgspec.Struct, frozen=True):
    """Stands in traffic between two stops."""

    at_m: float | None = None
    seconds: float | None = None  # None: 5 to 15 min

    def strike(self, driven: Driven, chance: random.Random) -> Driven:
        arcs = driven.instance.trip.pattern.along_m
        seconds = self.seconds if self.seconds is not None else chance.uniform(300, 900)
        for attempt in range(TRIES):
            at_m = (
                self.at_m + 6.0 * attempt if self.at_m is not None else chance.uniform(float(arcs[0]) + CLEAR_M, float(arcs[-1]) - CLEAR_M)
            )
            room = driven.free(at_m, at_m)
            if room is not None:
                first = room[0]
                rows = np.repeat(driven.rows[first - 1 : first], round(seconds), axis=0)
                rows[:, T] += 1000.0 * np.arange(1, len(rows) + 1)
                rows[:, SPEED] = 0.0
                place = float(rows[0, ALONG])
                return driven.spliced(first, first, rows, driven.happening("STAND", float(rows[0, T]), float(rows[-1, T]), place, place))
        return driven


class Parked(msgspec.Struct, frozen=True):
    """Stands near the first stop before the trip, or near the last one after it, `aside_m` beside the line."""

    minutes: float = 40.0
    where: str = "first"  # or "last"
    aside_m: float = 15.0

    def strike(self, driven: Driven, chance: random.Random) -> Driven:
        count = max(2, round(self.minutes * 6))
        rows = np.repeat(driven.rows[:1] if self.where == "first" else driven.rows[-1:], count, axis=0)
        begin_ms = driven.first_ms - 10_000.0 * count if self.where == "first" else driven.last_ms + 10_000.0
        rows[:, T] = begin_ms + 10_000.0 * np.arange(count)
        course = math.radians(float(rows[0, BEARING]) + 90.0 * chance.choice((-1, 1)))
        lon, lat = moved(float(rows[0, LON]), float(rows[0, LAT]), self.aside_m * math.sin(course), self.aside_m * math.cos(course))
        rows[:, LON], rows[:, LAT], rows[:, SPEED], rows[:, OFFSET] = lon, lat, 0.0, driven.shape.nearest(lon, lat)[1]
        rows[:, PHASE], rows[:, ON] = LAYOVER, 0.0
        place = float(rows[0, ALONG])
        return _joined(driven, rows, driven.happening("PARKED", float(rows[0, T]), float(rows[-1, T]), place, place))


class Deadhead(msgspec.Struct, frozen=True):
    """Comes over empty to the first stop, or drives away empty from the last one, over streets that are no line's."""

    metres: float = 3_000.0
    where: str = "first"  # or "last"
    speed_mps: float = 9.0
    wait_s: float = 120.0  # between arriving there and leaving on the trip

    def strike(self, driven: Driven, chance: random.Random) -> Driven:
        row = driven.rows[0] if self.where == "first" else driven.rows[-1]
        here = float(row[LON]), float(row[LAT])
        east, north = self.metres * chance.uniform(0.3, 0.7) * chance.choice((-1, 1)), 0.0
        north = (self.metres - abs(east)) * chance.choice((-1, 1))
        points = [here, moved(*here, east, 0.0), moved(*here, east, north)]
        if self.where == "first":
            points.reverse()
        rows = way_rows(points, driven.shape, 0.0, (0.0, 0.0, self.speed_mps))
        begin_ms = driven.first_ms - self.wait_s * 1000.0 - float(rows[-1, T]) if self.where == "first" else driven.last_ms + 30_000.0
        rows[:, T] += begin_ms
        rows[:, ALONG], rows[:, PHASE] = row[ALONG], DEADHEAD
        if self.where == "first":
            rows[-1, PHASE] = LAYOVER
        return _joined(driven, rows, driven.happening("DEADHEAD", float(rows[0, T]), float(rows[-1, T]), None, None))


def _joined(driven: Driven, rows: Rows, happening: Happening) -> Driven:
    """Rows before or after the table."""
    table = np.vstack((rows, driven.rows) if rows[0, T] < driven.first_ms else (driven.rows, rows))
    happened = (*driven.happened, happening)
    return Driven(driven.bus_id, driven.instance, driven.begins_ms, driven.ends_ms, table, driven.visits, happened)
