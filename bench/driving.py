"""How simulated buses drive: a trip instance becomes a journey, an exact curve of metres along the shape over time, with its stop times.

Promises: the same seed, feed and day give the same journey whenever the simulation is started, so a run may begin in the middle of a trip.
A journey is a list of pieces of constant acceleration; its link times spread around the timetable's:

    scheduled x traffic of the hour x this street today x this street now x this bus on this trip

The street's factors belong to the pair of stops, so that every line on it feels them: that is what arrivals can learn. Stops take a dwell
(some are passed), streets have signals at fixed places, buses wait for the clock at timepoints and keep their lateness from trip to trip.
Units: UTC ms outside, seconds since the journey's start inside, metres, m/s.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from functools import lru_cache
from hashlib import blake2b
from statistics import NormalDist
from zlib import crc32

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.tracking.timetable import Pattern, TripInstance

ACCELERATE_MPS2, BRAKE_MPS2 = 0.9, 1.0
CITY_TOP_MPS, OPEN_ROAD_TOP_MPS = 20.0, 27.0  # the law stops coaches at 100 km/h
OPEN_ROAD_M = 4000.0  # a longer link is a road between towns: it may be driven fast, its pace changes on the way, and it has no signals
PASSED_SHARE = 0.10  # of stops in a city at which nobody gets on or off
PASSING_MPS = 11.0  # at most, so that the next stop can be reached without braking hard
SIGNAL_EVERY_M = 450.0
RED_SHARE, RED_MAX_S = 0.42, 42.0
DAY_MS = 86_400_000
_BELL = NormalDist()
Floats = NDArray[np.float64]


class StopVisit(msgspec.Struct, gc=False):
    """What truly happened at a stop. `kind`: SERVED, PASSED (without standing) or MISSED (driven around)."""

    stop_index: int
    arrived_ms: int
    departed_ms: int
    kind: str


class Journey:
    """One bus on one trip instance: where it is at any time from `begins_ms` to `ends_ms`."""

    __slots__ = ("_a", "_s", "_t", "_v", "begins_ms", "ends_ms", "instance", "visits")

    def __init__(self, instance: TripInstance, begins_ms: int) -> None:
        self.instance, self.begins_ms = instance, begins_ms
        self.ends_ms = begins_ms
        self.visits: list[StopVisit] = []
        self._t, self._s, self._v, self._a = [0.0], [0.0], [0.0], [0.0]

    @property
    def first_ms(self) -> int:
        return self.begins_ms

    @property
    def last_ms(self) -> int:
        return self.ends_ms

    def at(self, now_ms: float) -> tuple[float, float]:
        """(metres along the shape, m/s)."""
        t = (now_ms - self.begins_ms) / 1000
        i = max(0, bisect_right(self._t, t) - 1)
        dt = max(0.0, t - self._t[i])
        speed = max(0.0, self._v[i] + self._a[i] * dt)
        return self._s[i] + (self._v[i] + self._a[i] * dt / 2) * dt, speed

    def many(self, times_ms: Floats) -> tuple[Floats, Floats]:
        """`at` of many moments at once."""
        starts, places, speeds, gains = (np.array(each) for each in (self._t, self._s, self._v, self._a))
        t = (times_ms - self.begins_ms) / 1000
        i = np.maximum(0, np.searchsorted(starts, t, side="right") - 1)
        dt = np.maximum(0.0, t - starts[i])
        return places[i] + (speeds[i] + gains[i] * dt / 2) * dt, np.maximum(0.0, speeds[i] + gains[i] * dt)


class _Wheel:
    """Writes a journey piece by piece."""

    def __init__(self, journey: Journey, along_m: float) -> None:
        self.t, self.s, self.v = 0.0, along_m, 0.0
        self.pieces = (journey._t, journey._s, journey._v, journey._a)
        self._put(0.0)

    def _put(self, acceleration: float) -> None:
        ts, ss, vs, accelerations = self.pieces
        ts.append(self.t)
        ss.append(self.s)
        vs.append(self.v)
        accelerations.append(acceleration)

    def stand(self, seconds: float) -> None:
        if seconds > 0:
            self.v = 0.0
            self._put(0.0)
            self.t += seconds

    def to_speed(self, speed: float, rate: float, before_m: float = math.inf) -> None:
        """Gains or loses speed at `rate` m/s2, as far as that goes before an arc."""
        if speed == self.v:
            return
        acceleration = math.copysign(rate, speed - self.v)
        if self.s + (speed**2 - self.v**2) / (2 * acceleration) > before_m:
            speed = math.sqrt(max(0.0, self.v**2 + 2 * acceleration * max(0.0, before_m - self.s)))
        self._put(acceleration)
        dt = (speed - self.v) / acceleration
        self.s += (self.v + speed) / 2 * dt
        self.t += dt
        self.v = speed

    def roll_to(self, along_m: float) -> None:
        if along_m > self.s and self.v > 0:
            self._put(0.0)
            self.t += (along_m - self.s) / self.v
            self.s = along_m

    def drive(self, to_m: float, speeds: list[tuple[float, float]], halt: bool) -> None:
        """To an arc, at the given speeds up to their arcs, then to a standstill there or straight through."""
        for until_m, wanted in speeds:
            room = to_m - self.s
            if halt and self.v**2 / (2 * BRAKE_MPS2) >= room:
                break
            rate = ACCELERATE_MPS2 if len(speeds) == 1 or self.v < 1 else 0.5
            reach = math.sqrt((2 * room + self.v**2 / rate) / (1 / rate + 1 / BRAKE_MPS2)) if halt else wanted
            speed = min(wanted, reach)
            self.to_speed(speed, rate if speed > self.v else BRAKE_MPS2, before_m=to_m)
            self.roll_to(min(until_m, to_m - (self.v**2 / (2 * BRAKE_MPS2) if halt else 0.0)))
        if halt:
            if self.v > 0.01 and to_m > self.s:
                self.to_speed(0.0, self.v**2 / (2 * (to_m - self.s)))
            self.s, self.v = max(self.s, to_m), 0.0


def _chance(*key: object) -> float:
    """A number in (0, 1) that is always the same for that key (an MT19937 to seed for each would cost ten times as much)."""
    return (int.from_bytes(blake2b(repr(key).encode(), digest_size=6).digest(), "big") + 0.5) / (1 << 48)


@lru_cache(maxsize=200_000)
def _normal(*key: object) -> float:
    return _BELL.inv_cdf(_chance(*key))


@lru_cache(maxsize=4096)
def _arcs(pattern: Pattern) -> list[float]:
    """Where its stops are: plain numbers, ten times faster to take one by one than an array's."""
    found: list[float] = pattern.along_m.tolist()
    return found


def traffic(seed: int, at_ms: int, offset_ms: int) -> float:
    """How full the streets are beyond what the timetable allows for: two humps a day and a slow drift of the whole town."""
    hour = (at_ms + offset_ms) / 3_600_000 % 24
    humps = math.exp(-(((hour - 8.2) / 1.1) ** 2)) + 1.1 * math.exp(-(((hour - 17.4) / 1.4) ** 2))
    drift = 0.03 * math.sin(at_ms / 3_600_000 + seed) + 0.03 * math.sin(at_ms / 8_200_000 + 2 * seed)
    return 0.89 + 0.17 * humps + drift


def street_factor(seed: int, link: tuple[str, str], at_ms: int) -> float:
    """A street's own pace: always so, today so, and this half hour so (fading from one half hour into the next); now and then it is blocked."""
    always, today = _normal(seed, link), _normal(seed, link, at_ms // DAY_MS)
    slot, share = divmod(at_ms / 1_800_000, 1)
    now = (1 - share) * _normal(seed, link, "h", int(slot)) + share * _normal(seed, link, "h", int(slot) + 1)
    blocked = 1.6 if _chance(seed, link, "blocked", at_ms // 5_400_000) < 0.008 else 1.0
    return math.exp(0.13 * always + 0.08 * today + 0.08 * now) * blocked


class Driver:
    """Makes journeys of one feed. `offset_ms`: local time minus UTC, for the hours of traffic."""

    def __init__(self, seed: int = 1, offset_ms: int = 3_600_000) -> None:
        self.seed, self.offset_ms = seed, offset_ms

    def trip(self, instance: TripInstance, free_from_ms: int | None = None, shift_ms: int = 0) -> Journey:
        """`free_from_ms`: when the bus ended its last trip; it turns round in at least 90 s."""
        chance = random.Random(crc32(f"{self.seed}:{instance.trip.trip_id}:{instance.start_date}".encode()))
        pattern = instance.trip.pattern
        planned = instance.departure_ms(0) + shift_ms
        leaves = planned + min(240_000, int(chance.expovariate(1 / 22_000)))
        if free_from_ms is not None:
            leaves = max(leaves, free_from_ms + 90_000)
        first_m = float(pattern.along_m[0])
        journey = Journey(instance, leaves)
        journey.visits.append(StopVisit(0, leaves, leaves, "SERVED"))
        wheel = _Wheel(journey, first_m)
        pace = math.exp(chance.gauss(0.0, 0.06))
        for i in range(1, len(pattern.stop_ids)):
            self._link(wheel, journey, i, pace, chance)
            self._stop(wheel, journey, i, planned - instance.departure_ms(0), chance)
        wheel.v = 0.0
        wheel._put(0.0)
        journey.ends_ms = leaves + round(wheel.t * 1000)
        return journey

    def _link(self, wheel: _Wheel, journey: Journey, i: int, pace: float, chance: random.Random) -> None:
        """From stop i - 1 to stop i, with the signals on the way."""
        instance, pattern = journey.instance, journey.instance.trip.pattern
        link = (pattern.stop_ids[i - 1], pattern.stop_ids[i])
        from_m, to_m = _arcs(pattern)[i - 1 : i + 1]
        length = to_m - from_m
        now_ms = journey.begins_ms + round(wheel.t * 1000)
        scheduled_s = max(5.0, instance.trip.arrival_s[i] - instance.trip.departure_s[i - 1])
        open_road = length > OPEN_ROAD_M
        factor = pace * street_factor(self.seed, link, now_ms)
        if open_road:  # the motorway is less moody than the town
            factor = 1 + (factor - 1) * 0.45
        factor *= 1 + (traffic(self.seed, now_ms, self.offset_ms) - 1) * (0.4 if open_road else 1.0)
        standing = [] if open_road else self._signals(link, from_m, length, chance)
        dwell_s = 40.0 if open_road else 14.0
        running_s = max(length / OPEN_ROAD_TOP_MPS, scheduled_s * factor - dwell_s - len(standing) * RED_SHARE * RED_MAX_S / 2)
        hops = 1 + sum(1 for _, red_s in standing if red_s > 0)
        speed = _cruise(length, running_s, hops, OPEN_ROAD_TOP_MPS if open_road else CITY_TOP_MPS)
        for place_m, red_s in standing:
            if red_s > 0 and place_m - wheel.s > 25 + wheel.v**2 / (2 * BRAKE_MPS2):
                wheel.drive(place_m, [(place_m, speed)], halt=True)
                wheel.stand(red_s)
        passed = not open_road and i < len(pattern.stop_ids) - 1 and not pattern.timepoint[i] and chance.random() < PASSED_SHARE
        pieces = [(to_m, min(speed, PASSING_MPS) if passed else speed)]
        if open_road:
            count = int(length // 2200) + 1
            tilt = [math.exp(0.09 * _normal(self.seed, link, "piece", n) + 0.04 * chance.gauss(0, 1)) for n in range(count)]
            mean = sum(1 / t for t in tilt) / count
            pieces = [(from_m + length * (n + 1) / count, min(OPEN_ROAD_TOP_MPS, speed * tilt[n] * mean)) for n in range(count)]
        wheel.drive(to_m, pieces, halt=not passed)

    def _signals(self, link: tuple[str, str], from_m: float, length: float, chance: random.Random) -> list[tuple[float, float]]:
        """(arc, seconds of red; 0 when green) of the link's signals. Their places belong to the street."""
        count = int(length / SIGNAL_EVERY_M + _chance(self.seed, link, "signals"))
        places = sorted(0.12 + 0.76 * _chance(self.seed, link, "signal", n) for n in range(count))
        return [(from_m + length * p, chance.uniform(3, RED_MAX_S) if chance.random() < RED_SHARE else 0.0) for p in places]

    def _stop(self, wheel: _Wheel, journey: Journey, i: int, shift_ms: int, chance: random.Random) -> None:
        instance, pattern = journey.instance, journey.instance.trip.pattern
        arrived_ms = journey.begins_ms + round(wheel.t * 1000)
        arcs = _arcs(pattern)
        if wheel.v > 0:
            journey.visits.append(StopVisit(i, arrived_ms, arrived_ms, "PASSED"))
            return
        if i == len(pattern.stop_ids) - 1:
            journey.visits.append(StopVisit(i, arrived_ms, arrived_ms, "SERVED"))
            return
        dwell_s = 6 + chance.gammavariate(1.6, 5.5)
        if arcs[i] - arcs[i - 1] > OPEN_ROAD_M:
            dwell_s += 25
        planned_ms = instance.departure_ms(i) + shift_ms
        long_wait = instance.trip.departure_s[i] - instance.trip.arrival_s[i] >= 60
        if pattern.timepoint[i] and (long_wait or chance.random() < 0.85):
            dwell_s = max(dwell_s, (planned_ms - arrived_ms) / 1000 + chance.uniform(0, 15))
        wheel.stand(dwell_s)
        journey.visits.append(StopVisit(i, arrived_ms, arrived_ms + round(dwell_s * 1000), "SERVED"))


def _cruise(length_m: float, running_s: float, hops: int, top_mps: float) -> float:
    """The speed at which `hops` starts and stops over that length take that time, at most `top_mps`."""
    ramps = hops * (0.5 / ACCELERATE_MPS2 + 0.5 / BRAKE_MPS2)
    root = running_s**2 - 4 * ramps * length_m
    speed = (running_s - math.sqrt(root)) / (2 * ramps) if root > 0 else math.sqrt(length_m / ramps)
    return max(1.5, min(top_mps, speed))
