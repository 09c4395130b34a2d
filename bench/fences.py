"""How truthful and how fast fences are.

    python -m bench.fences                          all four parts, about three minutes
    python -m bench.fences --part parked --days 20  more bus-days of each noise
    python -m bench.fences --part load --fences 10000

*parked*: a bus stands for a day 10 m inside the border, seen through receivers whose error has a size (5, 10, 15 m) and a memory (none, 30,
300, 1,800 s), which say how accurate they are or do not: events a day, and beside them what a rule of one fix would say. *passed*: a fence 60 m
across is crossed at 25 m/s with a fix every 30 s, at random phases and offsets: the share of the ways through it that is noticed. *oracle*:
100,000 random points over random fences: through the index as by asking every fence, and as GEOS and PROJ have it. *load*: 10,000 fences,
1,000 buses at 1 Hz through the engine's own steps of a fix (`engine.tracking.vehicle.advance`), beside the same without fences.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import shapely
from pyproj import Geod

from engine.events import IncidentEvent
from engine.tracking.fences import CORRIDOR, PLAIN, RESTRICTED, SPEED_ZONE, STAY_IN, Fence, FenceIndex
from engine.tracking.fix import Fix
from engine.tracking.rules import Rules
from engine.tracking.vehicle import Area, VehicleState, advance
from geo.coords import moved
from geo.drawing import drawn
from geo.fence import near_lon

PARTS = ("parked", "passed", "oracle", "load")
BAR_EVENTS_A_DAY, BAR_PASSED, BAR_WRONG, BAR_STEP_US = 2.0, 1.0, 0, 30.0
SIGMAS_M, MEMORIES_S = (5.0, 10.0, 15.0), (0.0, 30.0, 300.0, 1_800.0)
EVERY_S = 10.0
COARSE = 50  # points of a dense line between two that are looked at first
ROUNDS, SLICE, WARM_S = (
    6,
    100,
    2,
)  # of the load, each slice of so many fixes taken at its least: other programs make single ones dear; without the seconds in which
# not counted are the seconds in which all buses come up at once
START_MS = 1_772_400_000_000
HOME = (3.05, 36.75)
GEOD = Geod(ellps="WGS84")


def area_of(fences: Sequence[Fence]) -> Area:
    """An area without a feed, with these fences in force."""
    area = Area(None)
    area.rules = Rules(1, fences=FenceIndex(fences))
    return area


def fix_at(at_ms: int, lon: float, lat: float, accuracy_m: float | None, bus_id: str = "b") -> Fix:
    return Fix(bus_id, at_ms, lat, lon, at_ms, "d", "bench", accuracy_m)


def said_of(area: Area, fixes: Iterator[Fix]) -> list[IncidentEvent]:
    """Every word about fences."""
    state, words = VehicleState("b"), []
    for fix in fixes:
        state, said = advance(state, fix, area)
        words += [event for event in said.events if isinstance(event, IncidentEvent) and event.kind.startswith("FENCE")]
    return words


# ------------------------------------------------------------------------------------------------ parked


class Noise:
    """A receiver's error, per axis: a size, and a time constant after which it is another (0: every time)."""

    def __init__(self, sigma_m: float, memory_s: float, chance: random.Random) -> None:
        self.sigma_m, self.memory_s, self._chance = sigma_m, memory_s, chance
        self.east = self.north = 0.0
        self.after(1e9)

    def after(self, seconds: float) -> tuple[float, float]:
        keep = math.exp(-seconds / self.memory_s) if self.memory_s else 0.0
        fresh = self.sigma_m * math.sqrt(1.0 - keep * keep)
        self.east = keep * self.east + fresh * self._chance.gauss(0, 1)
        self.north = keep * self.north + fresh * self._chance.gauss(0, 1)
        return self.east, self.north


def parked_day(noise: Noise, says_m: float | None, every_s: float, inside_m: float, radius_m: float) -> tuple[int, int]:
    """(events of the table, changes of side of single fixes) of a bus that stands `inside_m` inside a round fence for a day."""
    lon, lat = HOME
    circle = drawn({"type": "Circle", "coordinates": [lon, lat], "radiusM": radius_m})
    area = area_of([Fence("f", "yard", RESTRICTED, circle)])
    sides: list[bool] = []

    def fixes() -> Iterator[Fix]:
        for number in range(round(86_400 / every_s)):
            east, north = noise.after(every_s)
            at = moved(lon, lat, radius_m - inside_m + east, north)
            sides.append(circle.signed_m(*at) < 0.0)
            yield fix_at(START_MS + round(number * every_s * 1000), *at, says_m)

    events = len(said_of(area, fixes()))
    return events, sum(one != other for one, other in itertools.pairwise(sides))


def parked(days: int, every_s: float) -> list[Row]:
    """One row a memory of the noise."""
    rows = []
    for memory_s in MEMORIES_S:
        events, naive, most = [], [], 0
        for sigma_m in SIGMAS_M:
            for says_m in (sigma_m, None):
                for inside_m in (10.0, -10.0):
                    for day in range(days):
                        noise = Noise(sigma_m, memory_s, random.Random(f"{memory_s}{sigma_m}{says_m}{inside_m}{day}"))
                        said, flips = parked_day(noise, says_m, every_s, inside_m, 100.0)
                        events.append(said)
                        naive.append(flips)
                        most = max(most, said)
        name = f"parked 10 m beside the border, noise of {memory_s:,.0f} s: events a day"
        note = f"most in a day {most}; one-fix rule {min(naive):,}-{max(naive):,}; {len(events)} bus-days"
        rows.append(Row(name, statistics.mean(events), BAR_EVENTS_A_DAY, True, note))
    return rows


# ------------------------------------------------------------------------------------------------ passed


def passing(chance: random.Random, radius_m: float, sigma_m: float, says_m: float | None) -> tuple[bool, bool, Counter[str]]:
    """One bus on a straight way through the fence: (a fix lay inside, the way between fixes led through, what was said)."""
    lon, lat = HOME
    circle = drawn({"type": "Circle", "coordinates": [lon, lat], "radiusM": radius_m})
    area = area_of([Fence("f", "gate", RESTRICTED, circle)])
    heading, offset = chance.uniform(0, 2 * math.pi), chance.uniform(-radius_m, radius_m)
    phase, step = chance.uniform(0, 1), 25.0 * 30.0
    places = []
    for number in range(-4, 5):
        along = (number + phase) * step
        east = along * math.cos(heading) - offset * math.sin(heading) + chance.gauss(0, 1) * sigma_m
        north = along * math.sin(heading) + offset * math.cos(heading) + chance.gauss(0, 1) * sigma_m
        places.append(moved(lon, lat, east, north))
    fixes = (fix_at(START_MS + 30_000 * number, *place, says_m) for number, place in enumerate(places))
    words = Counter(event.kind for event in said_of(area, fixes))
    inside = any(circle.signed_m(*place) < 0.0 for place in places)
    through = any(circle.spans(*a, *b) for a, b in itertools.pairwise(places))
    return inside, through, words


def passed(times: int) -> list[Row]:
    rows = []
    for sigma_m, says_m in ((0.0, 5.0), (0.0, None), (5.0, 5.0), (10.0, 10.0)):
        chance = random.Random(7)
        clean = noticed = through = said = entered = 0
        while through < times:
            inside, led, words = passing(chance, 30.0, sigma_m, says_m)
            through += led
            if led and not inside:
                clean += 1
                said += words["FENCE_PASSED"] == 1 and len(words) == 1
            if led:
                noticed += words["FENCE_PASSED"] == 1 or words["FENCE_ENTERED"] == 2
                entered += words["FENCE_ENTERED"] == 2
        told = f"noise {sigma_m:.0f} m, accuracy {'unsaid' if says_m is None else f'{says_m:.0f} m'}"
        rows.append(
            Row(f"60 m fence at 25 m/s, 30 s: PASSED ({told})", said / clean, BAR_PASSED, False, f"{clean} ways, both ends outside")
        )
        rows.append(Row(f"the same, or a fix inside: noticed once ({told})", noticed / through, BAR_PASSED, False, f"{entered} as ENTERED"))
    return rows


# ------------------------------------------------------------------------------------------------ fences over a city


def ring(chance: random.Random, lon: float, lat: float, radius_m: float, corners: int) -> list[list[float]]:
    """A ring as people draw it: of few corners ragged, of many with bays."""
    found = []
    bays, turn = chance.randint(2, 7), chance.uniform(0, 2 * math.pi)
    for number in range(corners):
        angle = 2 * math.pi * (number + chance.uniform(0, 0.8)) / corners
        away = radius_m * (
            chance.uniform(0.5, 1.0) if corners < 20 else 0.75 + 0.2 * math.sin(bays * angle + turn) + chance.uniform(0, 0.02)
        )
        found.append(list(moved(lon, lat, away * math.cos(angle), away * math.sin(angle))))
    return [*found, found[0]]


def winding(chance: random.Random, lon: float, lat: float, corners: int, step_m: float) -> list[list[float]]:
    found, heading = [[lon, lat]], chance.uniform(0, 2 * math.pi)
    for _ in range(corners - 1):
        heading += chance.gauss(0, 0.3)
        found.append(list(moved(found[-1][0], found[-1][1], step_m * math.cos(heading), step_m * math.sin(heading))))
    return found


def some_fences(
    chance: random.Random, count: int, home: tuple[float, float], across_m: float, circles: float = 0.85
) -> list[tuple[Fence, dict[str, Any]]]:
    """What an operator might draw, and how it was drawn: mostly circles about stops and schools (a share of `circles`), a tenth small polygons,
    3 % zones of up to 200 corners, the rest corridors of some kilometres."""
    made = []
    for number in range(count):
        lon, lat = moved(*home, chance.uniform(-0.5, 0.5) * across_m, chance.uniform(-0.5, 0.5) * across_m)
        lot = chance.random()
        if lot < circles:
            kind, drawing = PLAIN, {"type": "Circle", "coordinates": [lon, lat], "radiusM": chance.uniform(25, 250)}
        elif lot < circles + 0.10:
            kind = RESTRICTED
            drawing = {"type": "Polygon", "coordinates": [ring(chance, lon, lat, chance.uniform(40, 400), chance.randint(4, 14))]}
        elif lot < circles + 0.13:
            corners, radius = chance.randint(40, 200), chance.uniform(300, 2_000)
            rings = [ring(chance, lon, lat, radius, corners), ring(chance, lon, lat, 0.4 * radius, 12)]
            kind, drawing = SPEED_ZONE, {"type": "Polygon", "coordinates": rings}
        else:
            line = winding(chance, lon, lat, chance.randint(10, 150), chance.uniform(30, 120))
            kind, drawing = CORRIDOR, {"type": "LineString", "coordinates": line, "halfWidthM": chance.uniform(20, 150)}
        made.append(
            (Fence(f"f{number:05}", f"fence {number}", kind, drawn(drawing), limit_mps=8.3 if kind == SPEED_ZONE else None), drawing)
        )
    return made


# ------------------------------------------------------------------------------------------------ oracle


def oracle(points: int, count: int) -> list[Row]:
    """Which fences hold at a point: the index, every fence by itself, and another library."""
    index_wrong = other_wrong = asked = close = 0
    for home in (HOME, (179.99, -17.0), (-73.9, 62.0)):
        chance = random.Random(11)
        made = some_fences(chance, count, home, 20_000, 0.5)
        index = FenceIndex(fence for fence, _ in made)
        share = points // 3
        places = [moved(*home, chance.uniform(-12_000, 12_000), chance.uniform(-12_000, 12_000)) for _ in range(share)]
        found = []
        for lon, lat in places:
            found.append({fence.fence_id for fence in index.near(lon, lat, lon, lat) if fence.area.signed_m(lon, lat) <= 0.0})
        asked += share
        lons, lats = np.array([lon for lon, _ in places]), np.array([lat for _, lat in places])
        every = [{fence.fence_id for fence, _ in made if fence.area.signed_m(lon, lat) <= 0.0} for lon, lat in places[: share // 10]]
        index_wrong += sum(one != other for one, other in zip(found, every, strict=False))
        for fence, drawing in made:
            inside, unsure = held(drawing, lons, lats)
            ours = np.array([fence.fence_id in one for one in found])
            other_wrong += int(np.sum((inside != ours) & ~unsure))
            close += int(np.sum(unsure))
    return [
        Row(f"oracle: {asked:,} points, {count} fences, 3 places: points where GEOS and PROJ differ", other_wrong, BAR_WRONG, True,
            f"{close} pairs within 0.2 % of the border left out"),
        Row("oracle: points where asking every fence differs from the index", index_wrong, BAR_WRONG, True, f"{asked // 10:,} points"),
    ]  # fmt: skip


def held(drawing: dict[str, Any], lons: Any, lats: Any) -> tuple[Any, Any]:
    """(inside, too near the border to tell) of every point, by GEOS in degrees and by PROJ on the ellipsoid."""
    coordinates = drawing["coordinates"]
    inside, unsure = np.zeros(len(lons), bool), np.zeros(len(lons), bool)
    if drawing["type"] == "Polygon":
        mid = coordinates[0][0][0]
        rings = [[(near_lon(lon, mid), lat) for lon, lat in one] for one in coordinates]
        turned = (lons - mid + 180.0) % 360.0 - 180.0 + mid
        return shapely.contains_xy(shapely.Polygon(rings[0], rings[1:]), turned, lats), unsure
    reach_m = drawing.get("radiusM") or drawing["halfWidthM"]
    line = [coordinates] if drawing["type"] == "Circle" else coordinates
    mid = line[0][0]
    turned = (lons - mid + 180.0) % 360.0 - 180.0 + mid
    line = [(near_lon(lon, mid), lat) for lon, lat in line]
    west, east = min(lon for lon, _ in line), max(lon for lon, _ in line)
    south, north = min(lat for _, lat in line), max(lat for _, lat in line)
    wide = reach_m / 111_000 * 1.1
    near = np.flatnonzero(
        (lats > south - wide) & (lats < north + wide) & (turned > west - wide / math.cos(math.radians(lats[0]))) &
        (turned < east + wide / math.cos(math.radians(lats[0])))
    )  # fmt: skip
    if not len(near):
        return inside, unsure
    if len(line) > 1:  # a point every half metre or so
        parts = [np.linspace(a, b, 200, endpoint=False) for a, b in itertools.pairwise(line)]
        dense = np.concatenate([*parts, [line[-1]]])
    else:
        dense = np.array(line)
    coarse = dense[:: COARSE // 2] if len(dense) > COARSE else dense
    for number in near:
        squash = math.cos(math.radians(lats[number]))
        best = np.argsort(((coarse[:, 0] - turned[number]) * squash) ** 2 + (coarse[:, 1] - lats[number]) ** 2)[:3]
        for at in best:
            low = max(0, at * (COARSE // 2) - COARSE) if coarse is not dense else 0
            some = dense[low : low + 2 * COARSE]
            flat = ((some[:, 0] - turned[number]) * squash) ** 2 + (some[:, 1] - lats[number]) ** 2
            one = some[int(np.argmin(flat))]
            _, _, away = GEOD.inv(turned[number], lats[number], one[0], one[1])
            inside[number] |= away <= reach_m
            unsure[number] |= abs(away - reach_m) <= max(0.05, 0.002 * reach_m)
    return inside, unsure


# ------------------------------------------------------------------------------------------------ load


def load(count: int, buses: int, seconds: int) -> list[Row]:
    """CPU of a fix through `advance` with the fences and without, in turns."""
    chance = random.Random(5)
    made = [fence for fence, _ in some_fences(chance, count - 1 - buses // 2, HOME, 30_000)]
    city = drawn({"type": "Polygon", "coordinates": [ring(chance, *HOME, 24_000, 500)]})
    made.append(Fence("city", "city", STAY_IN, city))
    for number in range(buses // 2):
        lon, lat = moved(*HOME, chance.uniform(-9_000, 9_000), chance.uniform(-9_000, 9_000))
        circle = drawn({"type": "Circle", "coordinates": [lon, lat], "radiusM": 20_000})
        made.append(Fence(f"own{number}", "own", STAY_IN, circle, buses=[f"b{number}"]))
    began = time.process_time()
    index = FenceIndex(made)
    built_ms = (time.process_time() - began) * 1000
    drives = [list(drive(random.Random(number), f"b{number}", seconds)) for number in range(buses)]
    fixes = [one for second in zip(*drives, strict=True) for one in second]
    slices = len(fixes) // SLICE
    fixes = fixes[: slices * SLICE]
    took: dict[str, list[float]] = {"with": [math.inf] * slices, "without": [math.inf] * slices}
    events, tracked = 0, 0
    for _ in range(ROUNDS):
        for name, fences in (("without", None), ("with", index)):
            area = Area(None)
            area.rules = Rules(1, fences=fences)
            states = {f"b{number}": VehicleState(f"b{number}") for number in range(buses)}
            gc.collect()
            for number in range(slices):
                began = time.process_time()
                for fix in fixes[number * SLICE : (number + 1) * SLICE]:
                    states[fix.bus_id], said = advance(states[fix.bus_id], fix, area)
                    events += len(said.events)
                took[name][number] = min(took[name][number], time.process_time() - began)
    lookups = list(fixes[:: max(1, len(fixes) // 20_000)])
    began = time.process_time()
    for fix in lookups:
        tracked += len(index.near(fix.lon, fix.lat, fix.lon, fix.lat))
    look_us = (time.process_time() - began) / len(lookups) * 1e6
    settled = WARM_S * buses // SLICE
    floor, whole = (sum(took[name][settled:]) / ((slices - settled) * SLICE) * 1e6 for name in ("without", "with"))
    note = f"{whole:.1f} us with, {floor:.1f} without; {len(fixes):,} fixes of {buses:,} buses at 1 Hz, {events // ROUNDS:,} events"
    return [
        Row(f"load: {count:,} fences: CPU us a fix of the fence step", whole - floor, BAR_STEP_US, True, note),
        Row("load: all steps of a fix off trips, with fences, us", whole, BAR_STEP_US, True, f"the index alone {look_us:.2f} us a question,"
            f" {tracked / len(lookups):.1f} boxes met; made in {built_ms:.0f} ms"),
    ]  # fmt: skip


def drive(chance: random.Random, bus_id: str, seconds: int) -> Iterator[Fix]:
    """A bus about town at 8 m/s with stops, and noise of 5 m."""
    lon, lat = moved(*HOME, chance.uniform(-12_000, 12_000), chance.uniform(-12_000, 12_000))
    heading, rest = chance.uniform(0, 2 * math.pi), 0
    for second in range(seconds):
        if rest > 0:
            rest -= 1
        else:
            rest = 20 if chance.random() < 0.02 else 0
            heading += chance.gauss(0, 0.05)
            lon, lat = moved(lon, lat, 8.0 * math.cos(heading), 8.0 * math.sin(heading))
        at = moved(lon, lat, chance.gauss(0, 5), chance.gauss(0, 5))
        yield fix_at(START_MS + second * 1000, *at, 6.0, bus_id)


# ------------------------------------------------------------------------------------------------ how it is said


class Row(NamedTuple):
    what: str
    figure: float
    bar: float
    at_most: bool  # else at least
    note: str

    @property
    def holds(self) -> bool:
        return self.figure <= self.bar if self.at_most else self.figure >= self.bar


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fences", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be given several times")
    parser.add_argument("--days", type=int, default=2, help="bus-days of every size of noise, claimed accuracy and side (default 2)")
    parser.add_argument("--every", type=float, default=EVERY_S, help="seconds between two fixes of a parked bus (default 10)")
    parser.add_argument("--ways", type=int, default=2_000, help="ways through the fence for each noise (default 2000)")
    parser.add_argument("--points", type=int, default=100_000, help="of the oracle")
    parser.add_argument("--fences", type=int, default=10_000, help="of the load")
    parser.add_argument("--buses", type=int, default=1_000)
    parser.add_argument("--seconds", type=int, default=60, help="of the load")
    args = parser.parse_args()
    steps = {
        "parked": lambda: parked(args.days, args.every),
        "passed": lambda: passed(args.ways),
        "oracle": lambda: oracle(args.points, 300),
        "load": lambda: load(args.fences, args.buses, args.seconds),
    }
    rows: list[Row] = []
    for part in args.part or PARTS:
        print(f"{part} ...", file=sys.stderr, flush=True)
        rows += steps[part]()
    width = max(len(row.what) for row in rows)
    for row in rows:
        sign = "<=" if row.at_most else ">="
        print(f"{row.what:<{width}}  {row.figure:>9.4g}  {sign} {row.bar:<6g} {'pass ' if row.holds else 'SHORT'}  {row.note}")
    sys.exit(0 if all(row.holds for row in rows) else 1)


if __name__ == "__main__":
    main()
