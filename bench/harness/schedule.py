"""When every unit of work is meant to begin: seconds from the run's start, known before the first one is sent.

A run warms up, climbs to its rate, and holds it; only the hold is measured. Without a ramp the warm-up has the full rate, with one it has a
tenth of it. Shares of several generators are cut out of one schedule, so all of them together follow it, whoever they are.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

RAMP_FROM: Final = 0.1  # of the rate

Arrivals = Literal["even", "poisson"]


class Schedule(msgspec.Struct, frozen=True):
    """`rate`: units per second of the hold, all generators together. Raises ValueError where it holds nothing."""

    rate: float
    hold_s: float
    warm_up_s: float = 0.0
    ramp_s: float = 0.0
    arrivals: Arrivals = "even"  # one as far from the next as from the last, or as strangers come: at random, by the same rate

    def __post_init__(self) -> None:
        for name, value, least in (("rate", self.rate, 1e-6), ("seconds", self.hold_s, 0.1)):
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name} must be at least {least:g}, not {value}")
        for name, value in (("warm-up", self.warm_up_s), ("ramp", self.ramp_s)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be 0 or more seconds, not {value}")

    @property
    def first_rate(self) -> float:
        return self.rate * RAMP_FROM if self.ramp_s else self.rate

    @property
    def hold_from_s(self) -> float:
        return self.warm_up_s + self.ramp_s

    @property
    def end_s(self) -> float:
        return self.hold_from_s + self.hold_s

    def phase(self, at_s: float) -> str:
        """warm-up, ramp, hold or drain."""
        if at_s < self.warm_up_s:
            return "warm-up"
        if at_s < self.hold_from_s:
            return "ramp"
        return "hold" if at_s < self.end_s else "drain"

    def due(self, at_s: float) -> float:
        """Units meant to begin before `at_s`, as a real number."""
        warm = min(max(at_s, 0.0), self.warm_up_s)
        climbed = min(max(at_s - self.warm_up_s, 0.0), self.ramp_s)
        held = min(max(at_s - self.hold_from_s, 0.0), self.hold_s)
        grown = (self.rate - self.first_rate) * climbed * climbed / (2 * self.ramp_s) if self.ramp_s else 0.0
        return self.first_rate * (warm + climbed) + grown + self.rate * held

    def at(self, units: float) -> float:
        """When so many units are due: the inverse of `due`; the end, where there are never so many."""
        warm = self.first_rate * self.warm_up_s
        if units < warm:
            return units / self.first_rate
        climbed = self.due(self.hold_from_s) - warm
        if units < warm + climbed:
            # first_rate x + k x² / 2 = units - warm, in the form that loses no digits
            rest, k = units - warm, (self.rate - self.first_rate) / self.ramp_s
            return self.warm_up_s + 2 * rest / (self.first_rate + math.sqrt(self.first_rate**2 + 2 * k * rest))
        return min(self.end_s, self.hold_from_s + (units - warm - climbed) / self.rate)

    def moments(self, number: int = 0, of: int = 1, seed: int = 0) -> Iterator[float]:
        """The moments of generator `number`: even ones are every `of`-th of all; random ones have `1 / of` of the rate."""
        chance = random.Random(f"{seed} {number}")
        whole = self.due(self.end_s)
        units = number if self.arrivals == "even" else chance.expovariate(1 / of)
        while units < whole:
            at_s = self.at(units)
            if at_s >= self.end_s:
                return
            yield at_s
            units += of if self.arrivals == "even" else chance.expovariate(1 / of)

    def offered(self, from_s: float, until_s: float) -> float:
        """Units meant to begin in [from, until)."""
        return self.due(until_s) - self.due(from_s)
