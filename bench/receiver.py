"""What a bus's receiver and modem make of the truth: noise that hangs together, reflections, gaps, late deliveries and a clock that is off.

Every bus has its own receiver with its own seed, so one bus more or less changes nothing for the others. `clean` receivers tell the truth.
"""

from __future__ import annotations

import math
import random
from zlib import crc32

import msgspec

from geo.coords import metres_per_degree

SIGMA_M = (2.5, 6.0)  # of a receiver, drawn once; the error wanders with a time constant of WANDER_S
WANDER_S = 25.0
JITTER_M = 0.8  # from fix to fix
REFLECTION_EVERY_S, REFLECTION_S, REFLECTION_M = 1500.0, (4.0, 25.0), (35.0, 110.0)
GAP_EVERY_S, GAP_S = 2700.0, (20.0, 170.0)
LATE_SHARE = 0.4  # of the gaps: the modem was away, not the sky, and the fixes come afterwards
SKEWED_SHARE, SKEW_S = 0.05, (6.0, 60.0)


class Truth(msgspec.Struct, frozen=True, gc=False):
    """Where a bus really is. `trip_id` None: in no trip (waiting)."""

    bus_id: str
    at_ms: int
    lat: float
    lon: float
    speed_mps: float
    bearing_deg: float
    trip_id: str | None
    start_date: str | None
    along_m: float | None
    offset_m: float  # from the nearest point of the shape
    phase: str  # IN_TRIP | LAYOVER | DEADHEAD


class Reading(msgspec.Struct, frozen=True, gc=False):
    """What the bus sends."""

    bus_id: str
    timestamp_ms: int
    lat: float
    lon: float
    accuracy_m: float
    speed_mps: float
    bearing_deg: float
    trip_id: str | None
    start_date: str | None
    seq: int


class Receiver:
    """One bus's. `measure` is called in order of time."""

    def __init__(self, bus_id: str, seed: int, *, noise: float = 1.0, named: bool = True) -> None:
        self._chance = random.Random(crc32(f"{seed}:{bus_id}:receiver".encode()))
        self.bus_id, self.noise, self.named = bus_id, noise, named
        self.sigma_m = self._chance.uniform(*SIGMA_M) * noise
        skewed = self._chance.random() < SKEWED_SHARE
        self.skew_ms = round(
            noise * 1000 * (self._chance.uniform(*SKEW_S) * self._chance.choice((-1, 1)) if skewed else self._chance.gauss(0, 0.3))
        )
        self._east = self._north = 0.0
        self._last_ms: int | None = None
        self._reflected_until_ms = self._gap_until_ms = 0
        self._reflection = (0.0, 0.0)
        self._late: list[Reading] | None = None
        self._bearing = 0.0
        self.seq = 0

    def measure(self, truth: Truth, at_ms: int) -> list[Reading]:
        """What goes out at `at_ms`, which is also what the clock says: nothing in a gap, everything held back after a late one."""
        dt = 1.0 if self._last_ms is None else max(0.001, (at_ms - self._last_ms) / 1000)
        self._last_ms = at_ms
        reading = self._read(truth, at_ms, dt)
        if self.noise == 0:
            return [reading]
        if at_ms < self._gap_until_ms:
            if self._late is not None:
                self._late.append(reading)
            return []
        if self._late is not None:
            held, self._late = self._late, None
            return [*held, reading]
        if self._chance.random() < dt / GAP_EVERY_S * self.noise:
            self._gap_until_ms = at_ms + round(1000 * self._chance.uniform(*GAP_S))
            self._late = [reading] if self._chance.random() < LATE_SHARE else None
            return []
        return [reading]

    def _read(self, truth: Truth, at_ms: int, dt: float) -> Reading:
        chance, gauss = self._chance, self._chance.gauss
        keep = math.exp(-dt / WANDER_S)
        fresh = self.sigma_m * math.sqrt(1 - keep * keep)
        self._east, self._north = self._east * keep + gauss(0, fresh), self._north * keep + gauss(0, fresh)
        jitter = JITTER_M * self.noise
        east, north = self._east + gauss(0, jitter), self._north + gauss(0, jitter)
        accuracy = max(3.0, self.sigma_m * 1.6)
        if at_ms < self._reflected_until_ms:
            east, north = east + self._reflection[0], north + self._reflection[1]
            accuracy += 10
        elif self.noise and truth.speed_mps < 18 and chance.random() < dt / REFLECTION_EVERY_S * self.noise:
            self._reflected_until_ms = at_ms + round(1000 * chance.uniform(*REFLECTION_S))
            size, turn = chance.uniform(*REFLECTION_M), chance.uniform(0, 2 * math.pi)
            self._reflection = (size * math.cos(turn), size * math.sin(turn))
        if truth.speed_mps > 1:
            self._bearing = (truth.bearing_deg + gauss(0, 4 * self.noise)) % 360
        kx, ky = metres_per_degree(truth.lat)
        self.seq += 1
        return Reading(
            truth.bus_id,
            at_ms + self.skew_ms,
            round(truth.lat + north / ky, 6),
            round(truth.lon + east / kx, 6),
            round(accuracy, 1),
            max(0.0, round(truth.speed_mps + (gauss(0, 0.25 * self.noise) if truth.speed_mps > 0.5 else 0.0), 2)),
            round(self._bearing, 1),
            truth.trip_id if self.named else None,
            truth.start_date if self.named else None,
            self.seq,
        )
