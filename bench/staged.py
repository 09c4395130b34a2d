"""Something to see: soon after the start, and again every so often, one bus really drives a detour and another misses a stop.

Which bus: the first in a fixed order of those that name their trip, drive a city trip, and have enough of it ahead. The detour begins within
a minute or two of the time set, leaves out at least one stop and lasts three to five minutes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from zlib import crc32

from bench.fleet import SimulatedBus
from bench.scenario_roads import Detour, Happening, MissedStop, RoadTrouble

DETOUR_MS, MISSED_MS = 100_000, 160_000  # after the start, and after each repetition
AHEAD_M, LEFT_M = 120.0, 2_500.0  # where it begins, ahead of the bus; what must be left of the trip
SOON_MS = 75_000
LASTS_MS = (150_000, 320_000)
SPACING_M = 900.0  # a longer way between stops is no city's


class Stage:
    """Looked at every now and then with the buses on duty. `every_ms`: between two detours."""

    def __init__(self, every_ms: float) -> None:
        self._every_ms = every_ms
        self._due: dict[str, float] = {}
        self.played: list[Happening] = []

    def look(self, buses: Sequence[SimulatedBus], now_ms: int) -> None:
        if not self._due:
            self._due = {"DETOUR": now_ms + DETOUR_MS, "MISSED_STOP": now_ms + MISSED_MS}
        for kind, due_ms in self._due.items():
            if now_ms < due_ms:
                continue
            happening = self._play(kind, buses, now_ms)
            if happening is not None:
                self.played.append(happening)
                self._due[kind] = due_ms + self._every_ms

    def _play(self, kind: str, buses: Sequence[SimulatedBus], now_ms: int) -> Happening | None:
        taken = {each.bus_id for each in self.played[-2:]}
        for bus in sorted(buses, key=lambda each: crc32(each.bus_id.encode())):
            place = bus.arc(now_ms)
            if place is None or not bus.receiver.named or bus.bus_id in taken:
                continue
            instance, along = place
            arcs = instance.trip.pattern.along_m
            if float(arcs[-1]) - along < LEFT_M or float(arcs[-1] - arcs[0]) / len(arcs) > SPACING_M:
                continue
            for trouble in _troubles(kind, along, arcs.tolist(), random.Random(bus.bus_id)):
                happening = bus.strike(trouble, now_ms, wanted=_good)
                if happening is not None:
                    return happening
        return None


def _troubles(kind: str, along: float, arcs: list[float], chance: random.Random) -> list[RoadTrouble]:
    if kind == "DETOUR":
        side = chance.choice((-1.0, 1.0))
        return [Detour(along + AHEAD_M, 950.0, 230.0 * sign * side) for sign in (1, -1)]
    ahead = [index for index, arc in enumerate(arcs[1:-1], 1) if 250.0 < arc - along < 700.0]
    return [MissedStop(stop_index=index) for index in ahead]


def _good(happening: Happening, now_ms: int) -> bool:
    """Soon, of the right length, and with a stop left out."""
    if happening.from_ms - now_ms > SOON_MS * (1 if happening.kind == "DETOUR" else 2) or not happening.facts["stopsMissed"]:
        return False
    return happening.kind != "DETOUR" or LASTS_MS[0] <= happening.to_ms - happening.from_ms <= LASTS_MS[1]
