"""How truthful the watches are: deviations that were none, deviations that were missed, and how long either takes to be said.

    python -m bench.deviation --data DATA                        all three parts, about three minutes
    python -m bench.deviation --data DATA --part recorded        the recorded buses with human labels alone
    python -m bench.deviation --part noise --hours 500           more trip hours a setting (a feed: --feed FEED.zip)
    python -m bench.deviation --part detours --detours 400

*recorded*: six buses of Brooklyn's B63 (DATA/brooklyn_b63_2010) that name no trip. A fix that people labelled IN_PROGRESS and that stands
off route is a false deviation; a bus that deadheads must be off its trip within 90 s. *noise*: buses that keep to their trip, seen through
receivers whose error has a size and a time constant (Gauss-Markov), some of them lying about their accuracy, some with reflections:
episodes in 1,000 trip hours. *detours*: buses that leave their shape at a corner, drive 100 m to 2 km away and come back: the share that is
noticed, seconds from 60 m beside the shape to the word (three seconds for settling included; they drive without halts), closed after they are back.

Simulated buses drive the feed's own shapes. The steps of a fix are the engine's (`engine.tracking.vehicle.advance`), in order of time.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from bench.network.feed import write_feed
from engine.events import IN_TRIP, IncidentEvent
from engine.tracking.fix import Fix
from engine.tracking.timetable import Timetable, TripInstance
from engine.tracking.tracker import SETTLE_MS, Tracker
from engine.tracking.vehicle import Area, VehicleState, advance
from engine.tracking.watch import OFF
from geo.coords import metres_per_degree
from geo.match import Line
from geo.shape import Shape
from ingest.gtfs import read_feed

BAR_FALSE_SHARE, BAR_DEADHEAD_S = 1 / 1_000, 90.0
BAR_EPISODES, BAR_NOTICED, BAR_DELAY_S, BAR_CLOSED = 1.0, 0.99, 60.0, 0.99
CLOSE_S = 120.0  # after being back on the shape an episode that is still open is not closed
PARTS = ("recorded", "noise", "detours")
REFLECTION_EVERY_S, REFLECTION_S, REFLECTION_M = 1_200.0, (4.0, 45.0), (35.0, 130.0)
OFF_TRUE_M = 60.0  # really beside the shape
REAL_M, REAL_S, REAL_DEG = 80.0, 75.0, 60.0  # a detour: that far away for so long, and it does not begin or end back along its own line


class Noise(NamedTuple):
    """How a receiver errs, per axis."""

    sigma_m: float
    tau_s: float  # 0: white
    says_m: float | None  # the accuracy that it claims; None: nothing
    reflections: bool = False

    @property
    def name(self) -> str:
        says = "says nothing" if self.says_m is None else f"says {self.says_m:.0f} m"
        return f"{self.sigma_m:>2.0f} m over {self.tau_s:>3.0f} s, {says}{', reflections' if self.reflections else ''}"


QUIET = Noise(5, 25, 8)
NOISES = (
    QUIET, Noise(10, 0, 15), Noise(10, 30, 15), Noise(10, 120, 15), Noise(10, 600, None), Noise(20, 0, None), Noise(20, 30, None),
    Noise(20, 120, None), Noise(20, 600, None), Noise(20, 120, 5), Noise(20, 120, 30), Noise(8, 30, 10, True), Noise(8, 30, None, True),
)  # fmt: skip


class Wander:
    """The error of one receiver, step by step: Gauss-Markov, and now and then a street whose houses reflect."""

    def __init__(self, noise: Noise, chance: random.Random) -> None:
        self.noise, self._chance = noise, chance
        self._east, self._north = chance.gauss(0, noise.sigma_m), chance.gauss(0, noise.sigma_m)
        self._left_s, self._bias = 0.0, (0.0, 0.0)

    def step(self, dt_s: float) -> tuple[float, float]:
        noise, gauss = self.noise, self._chance.gauss
        keep = math.exp(-dt_s / noise.tau_s) if noise.tau_s else 0.0
        fresh = noise.sigma_m * math.sqrt(1 - keep * keep)
        self._east, self._north = self._east * keep + gauss(0, fresh), self._north * keep + gauss(0, fresh)
        if not noise.reflections:
            return self._east, self._north
        self._left_s -= dt_s
        if self._left_s <= 0 and self._chance.random() < dt_s / REFLECTION_EVERY_S:
            self._left_s = self._chance.uniform(*REFLECTION_S)
            size, turn = self._chance.uniform(*REFLECTION_M), self._chance.uniform(0, 2 * math.pi)
            self._bias = size * math.cos(turn), size * math.sin(turn)
        east, north = self._bias if self._left_s > 0 else (0.0, 0.0)
        return self._east + east, self._north + north


class Moment(NamedTuple):
    """Where a bus truly is."""

    at_s: float
    lon: float
    lat: float
    bearing_deg: float
    speed_mps: float


def drive(path: Shape, chance: random.Random, halts_m: Sequence[float], every_s: float, signals: bool = True) -> Iterator[Moment]:
    """Along a line at about 8 m/s, with halts at its stops (two of three) and at signals."""
    along, at_s, stand_s, speed = 0.0, 0.0, 0.0, 0.0
    pace = chance.uniform(6.0, 11.0)
    red = [chance.uniform(0, path.length_m) for _ in range(int(path.length_m / 900))] if signals else []
    halts = sorted([m for m in halts_m if chance.random() < 0.67] + red)
    following = 0
    next_s = 0.0
    while along < path.length_m:
        while at_s >= next_s:
            lon, lat, bearing = path.position(along)
            yield Moment(next_s, lon, lat, bearing, speed)
            next_s += every_s
        step = min(1.0, every_s)
        at_s += step
        if stand_s > 0:
            stand_s -= step
            speed = 0.0
            continue
        speed = min(pace, speed + 1.0 * step)
        along += speed * step
        if following < len(halts) and along >= halts[following]:
            following += 1
            stand_s, speed = chance.uniform(8, 35), 0.0


def seen(
    moments: Iterator[Moment], instance: TripInstance, bus_id: str, noise: Noise, chance: random.Random
) -> Iterator[tuple[Moment, Fix]]:
    """The fixes that a receiver makes of it, beside the truth."""
    error, last_s = Wander(noise, chance), 0.0
    start = instance.departure_ms(0)
    bearing = None
    for moment in moments:
        east, north = error.step(max(0.001, moment.at_s - last_s))
        last_s = moment.at_s
        per_lon, per_lat = metres_per_degree(moment.lat)
        at_ms = start + round(moment.at_s * 1000)
        speed = max(0.0, moment.speed_mps + (chance.gauss(0, 0.3) if moment.speed_mps > 0 else 0.0))
        if moment.speed_mps > 1:
            bearing = (moment.bearing_deg + chance.gauss(0, 5)) % 360
        yield (
            moment,
            Fix(
                bus_id, at_ms, moment.lat + north / per_lat, moment.lon + east / per_lon, at_ms + 300, bus_id, "telemetry",
                accuracy_m=noise.says_m, speed_mps=speed, bearing_deg=bearing, trip_id=instance.trip.trip_id,
                start_date=instance.start_date,
            ),
        )  # fmt: skip


# --- recorded ---


def recorded(folder: Path) -> bool:
    """The six labelled traces; whether both bars hold."""
    timetable = read_feed(folder / "gtfs.zip", feed_id="b63")
    in_progress = false_off = on_trip = 0
    waits: list[float] = []
    sayings: Counter[str] = Counter()
    for path in sorted(folder.glob("*.csv")):
        tracker = Tracker(timetable, feed_id="b63", partner_id="P")
        since_ms: int | None = None
        for fix, phase in labelled(path):
            tracker.fold(fix)
            state = tracker._vehicles[fix.bus_id].newest
            off = state.watch.off_route.phase == OFF
            riding = state.ride is not None and state.ride.phase == IN_TRIP and not off
            for event in tracker.take().events:
                if isinstance(event, IncidentEvent) and (event.closed_at_ms is None or event.kind == "MISSED_STOP"):
                    sayings[event.kind] += 1
            if phase == "IN_PROGRESS":
                in_progress, false_off, on_trip = in_progress + 1, false_off + off, on_trip + riding
            if "DEADHEAD" not in phase or "IN_PROGRESS" in phase:
                since_ms = None
            elif since_ms is None or since_ms > 0:
                since_ms = fix.fixed_at_ms if since_ms is None else since_ms
                if not riding:
                    waits.append((fix.fixed_at_ms - since_ms) / 1000)
                    since_ms = -1  # noticed
                elif fix.fixed_at_ms - since_ms > BAR_DEADHEAD_S * 1000:
                    waits.append(math.inf)
                    since_ms = -1
    share = false_off / max(1, in_progress)
    print(f"recorded: {in_progress} fixes in progress, {on_trip} of them on a trip; incidents opened {dict(sorted(sayings.items()))}")
    good = bar("false deviations per 1,000 fixes in progress", share * 1000, BAR_FALSE_SHARE * 1000, "")
    return bar(f"longest of {len(waits)} deadheads until noticed", max(waits), BAR_DEADHEAD_S, " s") and good


def labelled(path: Path) -> Iterator[tuple[Fix, str]]:
    """Fixes of one recorded bus with the phase that people gave them; times are New York local."""
    zone = ZoneInfo("America/New_York")
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            at_ms = round(datetime.strptime(row["timestamp"], "%Y-%m-%d %H:%M:%S").replace(tzinfo=zone).timestamp() * 1000)
            yield Fix(row["vid"], at_ms, float(row["lat"]), float(row["lon"]), at_ms, row["vid"], "replay"), row["actual_phase"]


# --- noise ---


def noises(timetable: Timetable, hours: float, every_s: Sequence[float], seed: int) -> bool:
    """Buses that keep to their trips under every receiver; whether all stay within the bar."""
    good = True
    for noise in NOISES:
        for every in every_s:
            counted: Counter[str] = Counter()
            driven_s = 0.0
            chance = random.Random(f"{seed}{noise}{every}")
            for instance in trips(timetable, chance):
                progress(f"noise: {noise.name}, every {every:.0f} s", driven_s / 3600 / hours)
                driven_s += one_trip(timetable, instance, noise, every, chance, counted)
                if driven_s >= hours * 3600:
                    break
            rate = {kind: count / (driven_s / 3.6e6) for kind, count in sorted(counted.items())}
            said = ", ".join(f"{kind} {each:.1f}" for kind, each in rate.items()) or "nothing"
            good = bar(f"{noise.name}, every {every:.0f} s: {said}; all", sum(rate.values()), BAR_EPISODES, " per 1,000 h") and good
    return good


def one_trip(
    timetable: Timetable, instance: TripInstance, noise: Noise, every_s: float, chance: random.Random, counted: Counter[str]
) -> float:
    """Seconds driven; the episodes go into `counted`."""
    pattern = instance.trip.pattern
    area, state, at_s, known = Area(timetable), VehicleState("b"), 0.0, set[str]()
    for moment, fix in seen(drive(pattern.shape, chance, pattern.along_m.tolist(), every_s), instance, "b", noise, chance):
        state, said = advance(state, fix, area)
        at_s = moment.at_s
        for event in said.events:
            if isinstance(event, IncidentEvent) and event.kind in ("OFF_ROUTE", "WRONG_WAY", "MISSED_STOP"):
                counted[event.kind] += event.incident_id not in known
                known.add(event.incident_id)
    return at_s


def trips(timetable: Timetable, chance: random.Random) -> Iterator[TripInstance]:
    """Instances of random trips for ever, each on a date that its service runs."""
    known = sorted(timetable.trips)
    while True:
        trip = timetable.trips[chance.choice(known)]
        service = timetable.services[trip.service_id]
        day = min(service.added, default=service.start) if service.start is None else service.start
        found = timetable.instance(trip.trip_id, (day or date(2026, 1, 5)).strftime("%Y%m%d"))
        if found is not None and trip.pattern.shape.length_m > 3_000:
            yield found


# --- detours ---


class Detoured(NamedTuple):
    """What became of one real detour."""

    off_s: float  # truly far from the shape
    delay_s: float | None  # until it was said; None: never
    closed: bool
    episodes: int
    turned: int  # times it was said to drive the wrong way


def detours(timetable: Timetable, count: int, every_s: Sequence[float], seed: int) -> bool:
    """Real detours, by how far they lead away; whether all bars hold."""
    good = True
    for every in every_s:
        for least, most in ((100, 150), (150, 300), (300, 700), (700, 2_000)):
            chance = random.Random(f"{seed}{every}{least}")
            found: list[Detoured] = []
            for instance in trips(timetable, chance):
                progress(f"detours: {least}-{most} m, every {every:.0f} s", len(found) / count)
                one = one_detour(timetable, instance, chance.uniform(least, most), every, chance)
                if one is not None:
                    found.append(one)
                if len(found) >= count:
                    break
            good = tell_detours(f"{least}-{most} m, every {every:.0f} s", found) and good
    return good


def tell_detours(name: str, found: Sequence[Detoured]) -> bool:
    delays = sorted(one.delay_s for one in found if one.delay_s is not None)
    noticed = len(delays) / len(found)
    closed = sum(one.closed for one in found if one.delay_s is not None) / max(1, len(delays))
    good = bar(
        f"{name}: share noticed (off for {statistics.median(one.off_s for one in found):.0f} s)", noticed, BAR_NOTICED, "", most=False
    )
    if delays:
        p95 = delays[min(len(delays) - 1, int(0.95 * len(delays)))]
        good = bar(f"{name}: p95 until said (p50 {statistics.median(delays):.0f} s)", p95, BAR_DELAY_S, " s") and good
        good = bar(f"{name}: share closed after rejoining", closed, BAR_CLOSED, "", most=False) and good
    extra = sum(max(0, one.episodes - 1) for one in found)
    good = bar(f"{name}: further episodes of one detour", extra / len(found), 0.01, "") and good
    return bar(f"{name}: said to drive the wrong way", sum(one.turned for one in found) / len(found), 0.01, "") and good


def one_detour(timetable: Timetable, instance: TripInstance, aside_m: float, every_s: float, chance: random.Random) -> Detoured | None:
    """A trip whose bus leaves its shape once; None where that place has no room (the shape itself passes by there)."""
    shape = instance.trip.pattern.shape
    length = chance.uniform(500, 1_500)
    if shape.length_m < length + 2_000:
        return None
    left = chance.uniform(800, shape.length_m - length - 800)
    path = around(shape, left, left + length, aside_m * chance.choice((-1, 1)))
    if folds(path, shape, left) or folds(path, shape, left + length, end=True):
        return None
    line = Line(shape)
    area, state = Area(timetable), VehicleState("b")
    off_since = back_since = opened_s = None
    off_s, stretch_s, closed, open_ids, last, turned = 0.0, 0.0, False, set[str](), 0.0, 0
    for moment, fix in seen(drive(path, chance, (), every_s, signals=False), instance, "b", QUIET, chance):
        away = min(one.offset_m for one in line.candidates(moment.lon, moment.lat, 0.0, shape.length_m))
        stretch_s = stretch_s + moment.at_s - last if away > REAL_M else 0.0
        off_s = max(off_s, stretch_s)
        if away > OFF_TRUE_M:
            off_since, back_since = moment.at_s if off_since is None else off_since, None
        elif off_since is not None:
            back_since = moment.at_s if back_since is None else back_since
            off_since = None if opened_s is None else off_since  # near the shape again before anybody said a word
        last = moment.at_s
        state, said = advance(state, fix, area)
        for event in said.events:
            if isinstance(event, IncidentEvent) and event.kind == "WRONG_WAY":
                turned += event.closed_at_ms is None
            elif isinstance(event, IncidentEvent) and event.kind == "OFF_ROUTE":
                open_ids.add(event.incident_id)
                if event.closed_at_ms is None:
                    opened_s = moment.at_s if opened_s is None else opened_s
                else:
                    closed = back_since is not None and moment.at_s - back_since <= CLOSE_S
    if off_s < REAL_S:  # the shape winds and the bus was near it all the same
        return None
    delay = None if opened_s is None or off_since is None else max(0.0, opened_s - off_since) + SETTLE_MS / 1000
    return Detoured(off_s, delay, closed, len(open_ids), turned)


def around(shape: Shape, from_m: float, to_m: float, aside_m: float) -> Shape:
    """The shape with the part between two arcs replaced by three sides of a rectangle."""
    (lon0, lat0, _), (lon1, lat1, _) = shape.position(from_m), shape.position(to_m)
    per_lon, per_lat = metres_per_degree(lat0)
    east, north = (lon1 - lon0) * per_lon, (lat1 - lat0) * per_lat
    away = math.hypot(east, north) or 1.0
    x, y = north / away * aside_m / per_lon, -east / away * aside_m / per_lat
    keep_low, keep_high = shape.cum_m < from_m, shape.cum_m > to_m
    lons = [*shape.lons[keep_low], lon0, lon0 + x, lon1 + x, lon1, *shape.lons[keep_high]]
    lats = [*shape.lats[keep_low], lat0, lat0 + y, lat1 + y, lat1, *shape.lats[keep_high]]
    return Shape("detour", np.array(lons), np.array(lats))


def folds(path: Shape, shape: Shape, at_m: float, *, end: bool = False) -> bool:
    """Whether a detour begins (or ends) back along the line that the bus came (or goes on) by."""
    lon, lat, _ = shape.position(at_m)
    side = path.position(path.length_m - (shape.length_m - at_m) - 20.0) if end else path.position(at_m + 20.0)
    own = shape.position(at_m + 20.0 if end else at_m - 20.0)
    back, away = bearing_deg(lon, lat, own[0], own[1]), bearing_deg(lon, lat, side[0], side[1])
    return abs((back - away + 180.0) % 360.0 - 180.0) < REAL_DEG


def bearing_deg(lon: float, lat: float, to_lon: float, to_lat: float) -> float:
    per_lon, per_lat = metres_per_degree(lat)
    return math.degrees(math.atan2((to_lon - lon) * per_lon, (to_lat - lat) * per_lat))


# --- the command ---


def bar(what: str, figure: float, limit: float, unit: str, *, most: bool = True) -> bool:
    """One line: figure, bar, verdict."""
    good = figure <= limit if most else figure >= limit
    print(f"  {what}: {figure:.3g}{unit} (bar {'<=' if most else '>='} {limit:g}{unit}) {'pass' if good else 'SHORT'}", flush=True)
    return good


def progress(what: str, share: float) -> None:
    """A bar on a terminal; nothing in a pipe."""
    if sys.stderr.isatty():
        done = int(min(1.0, share) * 30)
        print(f"\r{what} [{'#' * done}{'.' * (30 - done)}]\033[K", end="\n" if share >= 1 else "", file=sys.stderr, flush=True)


def ground(path: Path | None) -> Timetable:
    """The feed, or the demo network of today."""
    if path is not None:
        return read_feed(path)
    with tempfile.TemporaryDirectory() as folder:
        write_feed(Path(folder) / "demo.zip", date.today())
        return read_feed(Path(folder) / "demo.zip")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.deviation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="DATA", help="the shared recordings; without them the part `recorded` is left out")
    parser.add_argument("--feed", type=Path, metavar="FEED.zip", help="whose shapes the simulated buses drive (default: the demo network)")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part (may be given again)")
    parser.add_argument("--hours", type=float, default=100.0, help="trip hours of each receiver and interval (default 100)")
    parser.add_argument("--detours", type=int, default=100, help="of each distance and interval (default 100)")
    parser.add_argument(
        "--every", type=float, action="append", metavar="SECONDS", help="between fixes (default 5 and 30; detours 1, 5, 10, 30)"
    )
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    parts = args.part or PARTS
    good = True
    if "recorded" in parts and args.data is not None:
        good = recorded(args.data / "brooklyn_b63_2010")
    timetable = ground(args.feed) if {"noise", "detours"} & set(parts) else None
    if timetable is not None and "noise" in parts:
        print("noise: episodes of buses that keep to their trip")
        good = noises(timetable, args.hours, args.every or (5.0, 30.0), args.seed) and good
    if timetable is not None and "detours" in parts:
        print("detours: buses that leave their trip")
        good = detours(timetable, args.detours, args.every or (1.0, 5.0, 10.0, 30.0), args.seed) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
