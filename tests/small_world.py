"""A feed one can hold in mind, and buses that drive it: for the tests of the tracking core."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from datetime import date
from zoneinfo import ZoneInfo

import numpy as np

from engine.tracking.fix import Fix
from engine.tracking.timetable import Pattern, Route, Service, Stop, Timetable, Trip, TripInstance
from geo.coords import moved
from geo.shape import Shape

DAY = "20260302"
LON0, LAT0 = 3.05, 36.75  # where local metres begin: Algiers
SPEED = 8.0  # m/s between stops, as the timetable has it


def line(corners: Sequence[tuple[float, float]], name: str = "line", spacing_m: float = 40.0) -> Shape:
    """A shape through corners given in local metres around Algiers."""
    points: list[tuple[float, float]] = []
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        count = max(1, round(float(np.hypot(x1 - x0, y1 - y0)) / spacing_m))
        points += [(x0 + (x1 - x0) * k / count, y0 + (y1 - y0) * k / count) for k in range(count)]
    points.append(corners[-1])
    places = [moved(LON0, LAT0, x, y) for x, y in points]
    return Shape(name, np.array([lon for lon, _ in places]), np.array([lat for _, lat in places]))


STRAIGHT = line([(0, 0), (6_000, 0)], "straight")


def feed(
    shape: Shape = STRAIGHT,
    *,
    stops: int = 13,
    trips: int = 3,
    first_s: int = 28_800,
    headway_s: int = 3_600,
    version: str = "1",
    block: bool = True,
) -> Timetable:
    """One route of evenly spaced stops; trips T0, T1, ... at `first_s` of the day (08:00) and every `headway_s` after, all of one block B."""
    along = np.linspace(0.0, shape.length_m, stops)
    places = [shape.position(float(at)) for at in along]
    known = {f"S{i}": Stop(f"S{i}", f"Stop {i}", lat, lon) for i, (lon, lat, _) in enumerate(places)}
    pattern = Pattern("P", "R", 0, shape, tuple(known), tuple(range(1, stops + 1)), along, (False,) * stops)
    made = {}
    for number in range(trips):
        times = tuple(first_s + number * headway_s + round(float(at) / SPEED) for at in along)
        made[f"T{number}"] = Trip(f"T{number}", "R", "W", pattern, times, times, block_id="B" if block else None)
    return Timetable(
        feed_id="demo",
        version=version,
        tz=ZoneInfo("Africa/Algiers"),
        agencies={},
        stops=known,
        routes={"R": Route("R", None, "1", "One", 3)},
        services={"W": Service("W", (True,) * 7, date(2026, 1, 1), date(2026, 12, 31))},
        patterns={"P": pattern},
        trips=made,
    )


def instance_of(timetable: Timetable, trip_id: str = "T0") -> TripInstance:
    found = timetable.instance(trip_id, DAY)
    assert found is not None
    return found


class Bus:
    """Makes fixes: where on a shape, how far beside it, when."""

    def __init__(
        self, shape: Shape, *, bus_id: str = "b1", trip_id: str | None = "T0", noise_m: float = 0.0, seed: int = 1, tells: bool = True
    ) -> None:
        self.shape, self.bus_id, self.trip_id, self.noise_m, self.tells = shape, bus_id, trip_id, noise_m, tells
        self._chance = random.Random(seed)

    def at(self, at_ms: int, along_m: float, aside_m: float = 0.0, *, speed: float = SPEED, lag_ms: int = 200, **more: object) -> Fix:
        """The fix of one moment; `aside_m` to the left of the line."""
        lon, lat, bearing = self.shape.position(along_m)
        angle = np.radians(bearing - 90.0)
        east = aside_m * float(np.sin(angle)) + self._chance.gauss(0, 1) * self.noise_m
        north = aside_m * float(np.cos(angle)) + self._chance.gauss(0, 1) * self.noise_m
        lon, lat = moved(lon, lat, east, north)
        told: dict[str, object] = {"accuracy_m": 5.0, "trip_id": self.trip_id, "start_date": DAY if self.trip_id else None}
        if self.tells:
            told |= {"speed_mps": speed, "bearing_deg": bearing}
        told |= more
        return Fix(self.bus_id, at_ms, lat, lon, at_ms + lag_ms, "d-" + self.bus_id, "telemetry", **told)  # type: ignore[arg-type]

    def drive(
        self,
        start_ms: int,
        *,
        from_m: float = 0.0,
        to_m: float | None = None,
        every_s: float = 1.0,
        speed: float = SPEED,
        aside_m: float = 0.0,
    ) -> Iterator[Fix]:
        """Without a halt from one arc to another, both included."""
        end = self.shape.length_m if to_m is None else to_m
        steps = int(abs(end - from_m) / (speed * every_s)) + 1
        sign = 1 if end >= from_m else -1
        for k in range(steps + 1):
            along = from_m + sign * min(abs(end - from_m), k * speed * every_s)
            yield self.at(start_ms + round(k * every_s * 1000), along, aside_m, speed=speed)

    def stand(self, start_ms: int, along_m: float, for_s: int, *, every_s: int = 10) -> Iterator[Fix]:
        for k in range(0, for_s, every_s):
            yield self.at(start_ms + k * 1000, along_m, speed=0.0)
