"""How well a vehicle is placed on its line: simulated traces with known arcs, over more than 200 shapes.

    python -m bench.match [--feed FEED.zip ...] [--shapes 200] [--quick] [--seed 1]

Shapes: of every `--feed` those of its patterns (lines that meet themselves first), of the demo network, and drawn ones (loops, out and back,
figures of eight, lollipops, grids). Every shape is driven once by the simulator's driver and seen with correlated noise of 5, 10 and 20 m every
1, 5, 30 and 60 s, by half of the devices without speed and bearing. Each cell says the 95th percentile of the error along the line and how many fixes
are on a wrong arc (more than 200 m off), against the bars of the design (3 sigma + 5 m; 0.1 % up to 10 m of noise), and for comparison what
the nearest point of the whole line gives. Then: how soon the right arc is found again after gaps, teleports and stretches left out, and CPU a match.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from bench.driving import Driver
from bench.fold import demo_timetable
from bench.scenario_roads import ALONG, LAT, LON, SPEED, Driven
from bench.scenario_roads import BEARING as COURSE
from bench.shapes import DRAWN, shape_of
from engine.events import IN_TRIP
from engine.tracking.fix import OK, Fix, Motion, screen
from engine.tracking.ride import DEVICE, GAP_MS, LEAVE_M, LEAVE_MPS, Course, Ride
from engine.tracking.timetable import Pattern, Route, Service, Stop, Timetable, Trip, TripInstance
from engine.tracking.vehicle import place
from geo.coords import metres_per_degree
from geo.match import Line, Match
from geo.shape import Shape
from ingest.gtfs import read_feed

SIGMAS_M, EVERY_S = (5.0, 10.0, 20.0), (1, 5, 30, 60)
WANDER_S = 25.0
WRONG_M, WRONG_SHARE, WRONG_SIGMA_M = 200.0, 0.001, 10.0
FAR_DEG, ASIDE_M, ASIDE_MPS = 0.045, 150.0, 9.0  # 5 km to the north; how far beside the line, and how fast, another way is driven
DRIVEN_MAX_S = 2_400  # of a coach's hours the first forty minutes
FOUND_S, FOUND_SHARE = 60.0, 0.99  # after a gap or a teleport the right arc within so long (or three fixes), so often
WAITS_S = 120
DAY = "20260302"
Floats = NDArray[np.float64]


class Drive(NamedTuple):
    """A shape, the trip on it, and where the bus was every second."""

    kind: str
    course: Course
    instance: TripInstance
    driven: Driven
    tells: bool


class Seen(NamedTuple):
    """How far the published arc was off, one for each accepted fix, and when; the same of the nearest point, for every fourth."""

    errors: list[float]
    nearest: list[float]
    at_s: list[float]


# --- the shapes ---


def timetable_for(shape: Shape) -> Timetable:
    """One trip over it, with a stop about every 400 m, at a city bus's pace."""
    along = np.linspace(0.0, shape.length_m, max(3, round(shape.length_m / 400) + 1))
    places = [shape.position(float(at)) for at in along]
    stops = {f"S{i}": Stop(f"S{i}", f"S{i}", lat, lon) for i, (lon, lat, _) in enumerate(places)}
    pattern = Pattern("P", "R", 0, shape, tuple(stops), tuple(range(1, len(stops) + 1)), along, (False,) * len(stops))
    times = tuple(28_800 + round(float(at) / 6.5) for at in along)
    trip = Trip("T", "R", "W", pattern, times, times)
    return Timetable(
        feed_id="drawn", version="1", tz=ZoneInfo("UTC"), agencies={}, stops=stops, routes={"R": Route("R", None, "1", "One", 3)},
        services={"W": Service("W", (True,) * 7, date(2026, 1, 1), date(2026, 12, 31))}, patterns={"P": pattern}, trips={"T": trip},
    )  # fmt: skip


def meets_itself(shape: Shape) -> bool:
    """Some place of it lies within 30 m of another that is 300 m or more away along the line."""
    arcs = np.arange(0.0, shape.length_m, max(25.0, shape.length_m / 400))
    lons, lats, _ = shape.positions(arcs)
    per_lon, per_lat = metres_per_degree(float(lats.mean()))
    x, y = (lons - lons[0]) * per_lon, (lats - lats[0]) * per_lat
    near = np.hypot(x[:, None] - x[None, :], y[:, None] - y[None, :]) < 30
    return bool((near & (np.abs(arcs[:, None] - arcs[None, :]) > 300)).any())


def of_feed(timetable: Timetable, name: str, most: int) -> list[tuple[str, Timetable, TripInstance]]:
    """One trip for each shape, those that meet themselves first."""
    trips: dict[str, Trip] = {}
    for trip in sorted(timetable.trips.values(), key=lambda each: each.trip_id):
        if trip.pattern.shape.length_m > 1_000 and len(trip.arrival_s) > 2:
            trips.setdefault(trip.pattern.shape.shape_id, trip)
    found = []
    for trip in sorted(trips.values(), key=lambda each: each.trip_id):
        kind = f"{name}, meets itself" if meets_itself(trip.pattern.shape) else name
        instance = timetable.instance(trip.trip_id, DAY)
        if instance is not None:
            found.append((kind, timetable, instance))
    return sorted(found, key=lambda each: "meets" not in each[0])[:most]


def all_drives(feeds: Sequence[Path], wanted: int, seed: int) -> Iterator[Drive]:
    """At least `wanted` shapes: a quarter of them drawn, the rest of the feeds and the demo network, as many as there are."""
    trips: list[tuple[str, Timetable, TripInstance]] = []
    sources = [(read_feed(path), path.parent.name if path.stem == "gtfs" else path.stem) for path in feeds]
    sources.append((demo_timetable(date(2026, 3, 2)), "demo network"))
    for timetable, name in sources:
        trips += of_feed(timetable, name, max(1, (wanted * 3 // 4) // len(sources)))
    chance = random.Random(f"{seed}:shapes")
    kinds = list(DRAWN)
    for number in range(max(0, wanted - len(trips))):
        timetable = timetable_for(shape_of(kinds[number % len(kinds)], chance))
        instance = timetable.instance("T", DAY)
        if instance is not None:
            trips.append((kinds[number % len(kinds)], timetable, instance))
    for number, (kind, timetable, instance) in enumerate(trips):
        journey = Driver(seed).trip(instance, shift_ms=random.Random(f"{seed}:{number}:late").randrange(-60_000, 300_000))
        course = Course(instance.trip.pattern, Line(instance.trip.pattern.shape), timetable)
        yield Drive(kind, course, instance, _waiting_first(Driven.of("b", journey)), chance.random() < 0.5)


def _waiting_first(driven: Driven) -> Driven:
    """The driver names the trip a while before the bus leaves."""
    rows = np.repeat(driven.rows[:1], WAITS_S, axis=0)
    rows[:, 0] -= 1000.0 * np.arange(WAITS_S, 0, -1)
    rows[:, SPEED] = 0.0
    return Driven("b", driven.instance, driven.begins_ms, driven.ends_ms, np.vstack((rows, driven.rows)), driven.visits)


# --- seen and matched ---


def wandering(count: int, seed: str) -> Floats:
    """Unit noise to east and north, once a second, with a time constant of WANDER_S; shape (count, 2)."""
    rng = np.random.default_rng(list(seed.encode()))
    fresh = rng.normal(size=(count, 2))
    keep = float(np.exp(-1 / WANDER_S))
    out = np.empty_like(fresh)
    out[0] = fresh[0]
    for n in range(1, count):
        out[n] = keep * out[n - 1] + np.sqrt(1 - keep * keep) * fresh[n]
    return out


def fixes_of(drive: Drive, noise: Floats, sigma_m: float, every_s: int) -> Iterator[tuple[Fix, float]]:
    """(fix, true arc)."""
    rows = drive.driven.rows[: DRIVEN_MAX_S // (4 if every_s == 1 else 1)]
    per_lon, per_lat = metres_per_degree(float(rows[0, LAT]))
    for n in range(0, len(rows), every_s):
        row = rows[n].tolist()
        lon, lat = row[LON] + sigma_m * float(noise[n, 0]) / per_lon, row[LAT] + sigma_m * float(noise[n, 1]) / per_lat
        told = (round(row[SPEED], 2), row[COURSE]) if drive.tells else (None, None)
        at_ms = round(row[0])
        yield Fix("b", at_ms, lat, lon, at_ms, "d", "telemetry", 1.5 * sigma_m, *told), row[ALONG]


class Matcher:
    """Screen and place, as the tracker does it for a bus that names its trip."""

    def __init__(self, drive: Drive) -> None:
        self.drive = drive
        trip = drive.instance.trip
        self.ride = Ride(trip.trip_id, DAY, trip.route_id, "1", DEVICE, 0, None, phase=IN_TRIP)
        self.motion: Motion | None = None
        self.match: Match | None = None
        self.cpu_ns = 0
        self.placed = 0

    def fix(self, fix: Fix) -> Match | None:
        """None: held back or refused."""
        self.motion, verdict = screen(self.motion, fix)
        if verdict != OK:
            return None
        began = time.process_time_ns()
        before = self.match if 0 < self.motion.gap_ms <= GAP_MS else None
        self.match = place(self.drive.course, self.drive.instance, self.ride, before, self.match, self.motion)
        self.cpu_ns += time.process_time_ns() - began
        self.placed += 1
        if self.ride.started_at_ms is None and self.match.along_m > LEAVE_M and self.motion.speed_mps > LEAVE_MPS:
            self.ride = Ride(self.ride.trip_id, DAY, self.ride.route_id, "1", DEVICE, 0, None, phase=IN_TRIP, started_at_ms=fix.fixed_at_ms)
        return self.match


def matched(drive: Drive, fixes: Sequence[tuple[Fix, float]]) -> tuple[Seen, Matcher]:
    matcher, seen = Matcher(drive), Seen([], [], [])
    shape = drive.instance.trip.pattern.shape
    for number, (fix, along) in enumerate(fixes):
        match = matcher.fix(fix)
        if match is not None:
            seen.errors.append(abs(match.along_m - along))
            seen.at_s.append(fix.fixed_at_ms / 1000)
            if number % 4 == 0:
                seen.nearest.append(abs(shape.nearest(fix.lon, fix.lat)[0] - along))
    return seen, matcher


# --- gaps, teleports and other ways ---

AGAIN_M, AGAIN_S = 10.0, (1, 5)  # of which noise and intervals
Disturbed = tuple[list[tuple[Fix, float]], float]  # the fixes with a trouble in them, and when it was over


def silent(fixes: Sequence[tuple[Fix, float]], seconds: int, chance: random.Random, *, far: bool = False) -> Disturbed | None:
    """Nothing is heard for so long in the middle third, or (`far`) everything from 5 km off; None: the drive is too short."""
    if len(fixes) < 12 or fixes[-1][0].fixed_at_ms - fixes[0][0].fixed_at_ms < (seconds + 240) * 1000:
        return None
    first_ms, last_ms = fixes[0][0].fixed_at_ms, fixes[-1][0].fixed_at_ms
    begin_ms = first_ms + 90_000 + chance.randrange(max(1, last_ms - first_ms - seconds * 1000 - 210_000))
    end_ms = begin_ms + seconds * 1000
    out = []
    for fix, along in fixes:
        if begin_ms <= fix.fixed_at_ms < end_ms:
            if not far:
                continue
            fix = msgspec.structs.replace(fix, lat=fix.lat + FAR_DEG)
        out.append((fix, along))
    return out, end_ms / 1000


def left_out(fixes: Sequence[tuple[Fix, float]], length_m: float, chance: random.Random) -> Disturbed | None:
    """A stretch of that length is not driven: another street leads from its begin to its end, at least `ASIDE_M` beside both."""
    first_ms, last_ms = fixes[0][0].fixed_at_ms + 90_000, fixes[-1][0].fixed_at_ms - 150_000
    furthest = max((along for fix, along in fixes if fix.fixed_at_ms < last_ms), default=0.0)
    begins = [n for n, (fix, along) in enumerate(fixes) if fix.fixed_at_ms >= first_ms and along + length_m < furthest]
    if not begins:
        return None
    begin = chance.choice(begins)
    before, left_m = fixes[begin]
    end = next(n for n in range(begin, len(fixes)) if fixes[n][1] > left_m + length_m)
    after = fixes[end][0]
    every_ms = fixes[1][0].fixed_at_ms - fixes[0][0].fixed_at_ms
    per_lon, per_lat = metres_per_degree(before.lat)
    east, north = (after.lon - before.lon) * per_lon, (after.lat - before.lat) * per_lat
    length = max(1.0, math.hypot(east, north))
    aside = (ASIDE_M * north / length / per_lon, -ASIDE_M * east / length / per_lat)
    corners = [(before.lon, before.lat), (before.lon + aside[0], before.lat + aside[1]), (after.lon + aside[0], after.lat + aside[1])]
    legs = (0.0, ASIDE_M, ASIDE_M + length, 2 * ASIDE_M + length)
    steps = max(2, math.ceil(legs[-1] / ASIDE_MPS * 1000 / every_ms))
    driven = np.linspace(0.0, legs[-1], steps + 1)[1:-1]
    places = zip(*(np.interp(driven, legs, [each[axis] for each in [*corners, (after.lon, after.lat)]]) for axis in (0, 1)), strict=True)
    way = [
        (at(msgspec.structs.replace(before, lon=lon, lat=lat, speed_mps=None, bearing_deg=None), before.fixed_at_ms + n * every_ms), left_m)
        for n, (lon, lat) in enumerate(places, 1)
    ]
    over_ms = before.fixed_at_ms + steps * every_ms
    rest = [(at(fix, fix.fixed_at_ms - after.fixed_at_ms + over_ms), along) for fix, along in fixes[end:]]
    return [*fixes[: begin + 1], *way, *rest], over_ms / 1000


def at(fix: Fix, at_ms: int) -> Fix:
    return msgspec.structs.replace(fix, fixed_at_ms=at_ms, received_at_ms=at_ms)


TROUBLES: dict[str, Callable[[Sequence[tuple[Fix, float]], random.Random], Disturbed | None]] = {
    "a gap of 3 min": lambda fixes, chance: silent(fixes, 180, chance),
    "a gap of 8 min": lambda fixes, chance: silent(fixes, 480, chance),
    "a receiver 5 km off for 40 s": lambda fixes, chance: silent(fixes, 40, chance, far=True),
    "500 m left out": lambda fixes, chance: left_out(fixes, 500.0, chance),
    "2 km left out": lambda fixes, chance: left_out(fixes, 2_000.0, chance),
}


def found_again(seen: Seen, over_s: float, every_s: int) -> bool:
    """From FOUND_S after it was over (or three fixes after the teleport's own three) no fix within two minutes is on a wrong arc."""
    since = over_s + max(FOUND_S, 6 * every_s)
    later = [error for error, at_s in zip(seen.errors, seen.at_s, strict=True) if since <= at_s <= since + 120]
    return bool(later) and all(error <= WRONG_M for error in later)


# --- the report ---


def verdict(ok: bool) -> str:
    return "pass" if ok else "SHORT"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.match", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--feed", type=Path, action="append", default=[], metavar="FEED.zip", help="a feed whose shapes are driven too; may be repeated"
    )
    parser.add_argument("--shapes", type=int, default=220, help="at least so many (default 220)")
    parser.add_argument("--quick", action="store_true", help="only 1, 5 and 60 s, 10 m")
    parser.add_argument("--worst", type=int, default=0, metavar="N", help="list the N worst drives")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    sigmas, intervals = ((10.0,), (1, 5, 60)) if args.quick else (SIGMAS_M, EVERY_S)
    cells: dict[tuple[float, int], tuple[list[float], list[float]]] = {(s, e): ([], []) for s in sigmas for e in intervals}
    kinds: dict[str, list[float]] = defaultdict(list)
    shapes: dict[str, int] = defaultdict(int)
    again: dict[str, list[bool]] = defaultdict(list)
    worst: list[tuple[int, str]] = []
    cpu_ns = placed = 0
    drives = list(all_drives(args.feed, args.shapes, args.seed))
    with Progress(disable=not sys.stderr.isatty(), transient=True) as progress:
        for number, drive in enumerate(progress.track(drives, description="driving")):
            shapes[drive.kind] += 1
            noise = wandering(len(drive.driven.rows), f"{args.seed}:{number}")
            for sigma, every in cells:
                fixes = list(fixes_of(drive, noise, sigma, every))
                seen, matcher = matched(drive, fixes)
                cells[sigma, every][0].extend(seen.errors)
                cells[sigma, every][1].extend(seen.nearest)
                cpu_ns, placed = cpu_ns + matcher.cpu_ns, placed + matcher.placed
                if sigma <= WRONG_SIGMA_M:
                    kinds[drive.kind].extend(seen.errors)
                    wrong = sum(error > WRONG_M for error in seen.errors)
                    if wrong:
                        worst.append(
                            (wrong, f"{drive.kind} {drive.instance.trip.trip_id} sigma {sigma} every {every} s tells {drive.tells}")
                        )
                if sigma == AGAIN_M and every in AGAIN_S:
                    for name, disturbed in TROUBLES.items():
                        trouble = disturbed(fixes, random.Random(f"{args.seed}:{number}:{name}"))
                        if trouble is not None:
                            right = found_again(matched(drive, trouble[0])[0], trouble[1], every)
                            again[f"{name}, every {every} s"].append(right)
    print(f"{len(drives)} shapes: " + ", ".join(f"{count} {kind}" for kind, count in sorted(shapes.items())))
    missed = report(cells, again)
    print(f"\n{'fixes on a wrong arc, noise up to 10 m, by shape':<50}")
    for kind, errors in sorted(kinds.items()):
        print(f"  {kind:<44}{np.mean(np.array(errors) > WRONG_M) * 100:8.3f} %  of {len(errors)}")
    for wrong, what in sorted(worst, reverse=True)[: args.worst]:
        print(f"  {wrong:5} wrong: {what}")
    print(f"\nCPU a match: {cpu_ns / max(1, placed) / 1000:.1f} us (screen not counted)")
    return 1 if missed else 0


def report(cells: dict[tuple[float, int], tuple[list[float], list[float]]], again: dict[str, list[bool]]) -> int:
    """Prints the cells; how many bars were missed."""
    missed = 0
    print(
        f"{'noise':>6} {'every':>6} {'fixes':>8}   {'p95 m':>7} {'bar':>5}        {'wrong arc':>9} {'bar':>6}        nearest point: p95 m, wrong arc"
    )
    for (sigma, every), (errors, nearest) in cells.items():
        away, plain = np.array(errors), np.array(nearest)
        p95, wrong = float(np.percentile(away, 95)), float(np.mean(away > WRONG_M))
        bar = 3 * sigma + 5
        near, judged = p95 <= bar, sigma <= WRONG_SIGMA_M
        right = wrong <= WRONG_SHARE or not judged
        missed += (not near) + (not right)
        wanted = f"{WRONG_SHARE * 100:5.1f}% {verdict(right):<5}" if judged else f"{'':6} {'':5}"
        print(
            f"{sigma:4.0f} m {every:4} s {len(away):8}   {p95:7.1f} {bar:5.0f} {verdict(near):<5}  {wrong * 100:8.3f}% {wanted}"
            f"   {np.percentile(plain, 95):8.1f} {np.mean(plain > WRONG_M) * 100:8.2f}%"
        )
    for name, found in again.items():
        share = sum(found) / len(found)
        missed += share < FOUND_SHARE
        figure = f"right again within {FOUND_S:.0f} s: {share * 100:6.2f} % of {len(found)}"
        print(f"after {name:<44}{figure}, bar {FOUND_SHARE * 100:.0f} % {verdict(share >= FOUND_SHARE)}")
    return missed


if __name__ == "__main__":
    sys.exit(main())
