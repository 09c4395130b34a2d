"""Labelled traces over any feed: what a bus sent, and beside it what was true.

    trace(timetable, seed=3, faults=[Noise(8), Detour(length_m=900), Tunnel(60)]) -> Trace(fixes, truth)

The bus drives like those of `timepoint simulate` (bench.driving), the faults are composed in the order given. The same arguments give the
same trace. `traces` makes one for every block of a service day, with shares of trips that a fault strikes; `timepoint simulate --fault` does
the same to files or into a running product. docs/simulator.md lists the faults.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

from bench.driving import Driver, Journey, StopVisit
from bench.network.buses import blocks_on
from bench.receiver import Reading, Truth
from bench.scenario_radio import (
    Change,
    ClockJump,
    Duplicates,
    Frozen,
    LateBatch,
    Noise,
    OutOfOrder,
    RadioTrouble,
    Reflection,
    Scene,
    Sent,
    Skew,
    Teleport,
    Tunnel,
    Unnamed,
    WeekRollover,
)
from bench.scenario_roads import (
    Deadhead,
    Detour,
    Driven,
    Happening,
    MissedStop,
    Parked,
    RoadTrouble,
    Stand,
    WrongWay,
)
from engine.tracking.fix import Fix
from engine.tracking.timetable import Timetable, TripInstance

__all__ = [
    "CATALOGUE", "ClockJump", "Deadhead", "Detour", "Duplicates", "Fault", "Frozen", "Happening", "LateBatch", "MissedStop", "Noise", "OutOfOrder",
    "Parked", "Reflection", "Share", "Skew", "Stand", "StopTruth", "Teleport", "Trace", "TraceTruth", "Tunnel", "Unnamed", "WeekRollover", "WrongWay",
    "busy_day", "parsed", "struck", "trace", "traces",
]  # fmt: skip

Fault = RoadTrouble | RadioTrouble
ROADS = (Detour, MissedStop, WrongWay, Stand, Parked, Deadhead)
CATALOGUE: dict[str, type[Any]] = {
    "detour": Detour, "missed_stop": MissedStop, "wrong_way": WrongWay, "stand": Stand, "parked": Parked, "deadhead": Deadhead,
    "noise": Noise, "reflection": Reflection, "tunnel": Tunnel, "teleport": Teleport, "frozen": Frozen, "skew": Skew, "clock_jump": ClockJump,
    "week_rollover": WeekRollover, "duplicates": Duplicates, "out_of_order": OutOfOrder, "late_batch": LateBatch, "unnamed": Unnamed,
}  # fmt: skip
LASTING = (
    Noise,
    Skew,
    ClockJump,
    WeekRollover,
    Duplicates,
    OutOfOrder,
    Unnamed,
)  # from the trip that it strikes to the end of the bus's day
LAG_MS = 200  # from a fix to its receipt


class Share(NamedTuple):
    """A fault and the share of trips that it strikes."""

    name: str
    share: float
    fault: Fault


class StopTruth(msgspec.Struct, frozen=True):
    """What truly happened at a stop; `kind`: SERVED, PASSED (without standing) or MISSED (driven around, the times are of the nearest approach)."""

    bus_id: str
    trip_id: str
    start_date: str
    stop_index: int
    stop_sequence: int
    stop_id: str
    arrived_at_ms: int
    departed_at_ms: int
    scheduled_ms: int
    kind: str


class TraceTruth(NamedTuple):
    """`points[n]` is where the bus was when it measured the fix with `seq` n + 1, sent or not."""

    points: list[Truth]
    stops: list[StopTruth]
    happened: list[Happening]

    def of(self, fix: Fix) -> Truth:
        """Where the bus truly was at that fix, and on which trip."""
        return self.points[(fix.seq or 0) - 1]


class Trace(NamedTuple):
    """`fixes` in order of receipt."""

    fixes: list[Fix]
    truth: TraceTruth


def parsed(text: str) -> Share:
    """`detour=0.1` or `detour=0.1,length_m=600,aside_m=200`. Raises ValueError with what was expected."""
    first, *options = text.split(",")
    name, _, share = first.partition("=")
    kind = CATALOGUE.get(name)
    if kind is None:
        raise ValueError(f"{name!r} is no fault: one of {', '.join(CATALOGUE)}")
    given = dict(option.partition("=")[::2] for option in options)
    fields = {field.name for field in msgspec.structs.fields(kind)}
    if unknown := given.keys() - fields:
        raise ValueError(f"{name} has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(fields)) or 'no options'}")
    try:
        fault: Fault = msgspec.convert(given, kind, strict=False)
        return Share(name, float(share or 1), fault)
    except ValueError as wrong:
        raise ValueError(f"{text!r}: {wrong}") from wrong


def busy_day(timetable: Timetable) -> date:
    """The service date with the most trips (the first such), among all that the calendar names in the six weeks from its begin."""
    counts: dict[str, int] = {}
    for trip in timetable.trips.values():
        counts[trip.service_id] = counts.get(trip.service_id, 0) + 1
    services = [timetable.services[service_id] for service_id in counts if service_id in timetable.services]
    begins = [service.start for service in services if service.start] or [min(service.added) for service in services if service.added]
    days = {min(begins) + timedelta(days=n) for n in range(42)} | {day for service in services for day in service.added}
    return max(sorted(days), key=lambda day: sum(counts[service.service_id] for service in services if service.runs_on(day)))


def trace(
    timetable: Timetable,
    trips: TripInstance | Sequence[TripInstance] | None = None,
    *,
    faults: Sequence[Fault] = (),
    seed: int = 1,
    every_s: float = 5.0,
    bus_id: str = "bus-1",
    named: bool = True,
    tells_motion: bool = True,
    lead_s: float = 120.0,
    trail_s: float = 60.0,
    day: date | None = None,
) -> Trace:
    """One bus on one trip, or on several in a row (a block: then each fault strikes one of them, drawn).

    `trips` None: one of `day` (default: the feed's busiest), drawn by `seed`. `named`: the device says its trip, from four minutes before it
    leaves. Fixes every `every_s` from `lead_s` before the bus first does anything to `trail_s` after the last thing. Without Noise the
    positions are exact and the accuracy told is 5 m.
    """
    chance = random.Random(f"{seed}:{bus_id}:trace")
    if trips is None:
        trips = chance.choice([each for each in timetable.instances_on(day or busy_day(timetable)) if len(each.trip.arrival_s) > 2])
    row = [trips] if isinstance(trips, TripInstance) else list(trips)
    strikes: list[list[Fault]] = [[] for _ in row]
    for fault in faults:
        strikes[chance.randrange(len(row))].append(fault)
    return _trace(timetable, row, strikes, seed, every_s, bus_id, named, tells_motion, (lead_s, trail_s))


def traces(
    timetable: Timetable,
    *,
    faults: Iterable[Share | str] = (),
    seed: int = 1,
    day: date | None = None,
    every_s: float = 5.0,
    named: bool | float = True,
    tells_motion: bool = True,
    limit: int | None = None,
    wanted: Callable[[Sequence[TripInstance]], bool] = lambda trips: True,
) -> Iterator[Trace]:
    """One for each block of the day, by departure, at most `limit`, buses named after their blocks.

    Each trip is struck by each fault with its share ("detour=0.1" is a share too). `named`: the share of buses whose device says its trip.
    """
    shares = [parsed(each) if isinstance(each, str) else each for each in faults]
    made = 0
    for block in blocks_on(timetable, day or busy_day(timetable)):
        if limit is not None and made >= limit:
            return
        if not wanted(block.trips) or min(len(each.trip.arrival_s) for each in block.trips) < 2:
            continue
        made += 1
        bus_id = f"bus-{block.block_id}-{block.trips[0].trip.trip_id}"
        says = random.Random(f"{seed}:{bus_id}:named").random() < float(named)
        strikes = [struck(seed, each, shares) for each in block.trips]
        yield _trace(timetable, block.trips, strikes, seed, every_s, bus_id, says, tells_motion, (120.0, 60.0))


def struck(seed: int, instance: TripInstance, shares: Iterable[Share]) -> list[Fault]:
    """The faults that this trip gets; always the same for the same seed."""
    key = f"{seed}:{instance.trip.trip_id}:{instance.start_date}"
    return [each.fault for each in shares if random.Random(f"{key}:{each.name}").random() < each.share]


def drive(
    driver: Driver, bus_id: str, instance: TripInstance, free_from_ms: int | None, faults: Sequence[Fault], shift_ms: int = 0
) -> Driven:
    """The trip as it is really driven; of `faults` those of the road count."""
    driven = Driven.of(bus_id, driver.trip(instance, free_from_ms, shift_ms))
    for number, fault in enumerate(faults):
        if isinstance(fault, ROADS):
            chance = random.Random(f"{driver.seed}:{instance.trip.trip_id}:{instance.start_date}:{number}:{type(fault).__name__}")
            driven = fault.strike(driven, chance)
    return driven


class Reception:
    """What becomes of one bus's readings, trip after trip."""

    def __init__(self, seed: int, bus_id: str) -> None:
        self._seed, self._bus_id = seed, bus_id
        self._lasting: dict[type[Any], Change] = {}  # a clock that is off stays off; a receiver keeps its noise
        self._passing: list[Change] = []

    def begin(self, driven: Journey | Driven, faults: Sequence[Fault], from_ms: int, until_ms: int) -> list[Happening]:
        """A trip begins: what of `faults` strikes receiver, clock and modem. Lasting ones begin at `from_ms` and end at `until_ms`."""
        trip_id, start_date = driven.instance.trip.trip_id, driven.instance.start_date
        trip = Scene(self._bus_id, trip_id, start_date, driven.begins_ms, driven.last_ms)
        whole = Scene(self._bus_id, None, None, from_ms, until_ms)
        self._passing, happened = [], []
        for number, fault in enumerate(faults):
            kind = type(fault)
            if isinstance(fault, ROADS) or kind in self._lasting:
                continue
            chance = random.Random(f"{self._seed}:{self._bus_id}:{trip_id}:{start_date}:{number}:{kind.__name__}")
            happening, change = fault.begin(whole if isinstance(fault, LASTING) else trip, chance)  # type: ignore[union-attr]
            happened.append(happening)
            if isinstance(fault, LASTING):
                self._lasting[kind] = change
            else:
                self._passing.append(change)
        return happened

    def arriving(self, reading: Reading, truth: Truth, due_ms: int) -> list[Sent]:
        """What becomes of one reading."""
        sent = [Sent(due_ms, reading)]
        for change in (*self._lasting.values(), *self._passing):
            sent = [after for before in sent for after in change(before, truth)]
        return sent


def fix_of(sent: Sent) -> Fix:
    reading = sent.reading
    return Fix(
        reading.bus_id, reading.timestamp_ms, reading.lat, reading.lon, sent.due_ms, f"d-{reading.bus_id}", "telemetry", reading.accuracy_m,
        reading.speed_mps, reading.bearing_deg, reading.seq, reading.trip_id, reading.start_date,
    )  # fmt: skip


def stop_truths(bus_id: str, instance: TripInstance, visits: Iterable[StopVisit]) -> list[StopTruth]:
    trip, pattern = instance.trip, instance.trip.pattern
    return [
        StopTruth(
            bus_id, trip.trip_id, instance.start_date, visit.stop_index, pattern.stop_sequences[visit.stop_index],
            pattern.stop_ids[visit.stop_index], visit.arrived_ms, visit.departed_ms, instance.arrival_ms(visit.stop_index), visit.kind,
        )
        for visit in visits
    ]  # fmt: skip


def _trace(
    timetable: Timetable,
    trips: Sequence[TripInstance],
    strikes: Sequence[Sequence[Fault]],
    seed: int,
    every_s: float,
    bus_id: str,
    named: bool,
    tells_motion: bool,
    margins_s: tuple[float, float],
) -> Trace:
    first_day = datetime.fromtimestamp(trips[0].departure_ms(0) / 1000, timetable.tz)
    offset = first_day.utcoffset() or timedelta()
    driver = Driver(seed, offset_ms=round(offset.total_seconds() * 1000))
    drives: list[Driven] = []
    for instance, faults in zip(trips, strikes, strict=True):
        drives.append(drive(driver, bus_id, instance, drives[-1].last_ms if drives else None, faults))
    happened = [each for driven in drives for each in driven.happened]
    begin_ms, end_ms = drives[0].first_ms - round(margins_s[0] * 1000), drives[-1].last_ms + round(margins_s[1] * 1000)
    borders = [
        begin_ms,
        *((one.last_ms + max(one.last_ms, two.first_ms)) // 2 for one, two in pairwise(drives)),
        end_ms,
    ]
    points: list[Truth] = []
    sent: list[Sent] = []
    step_ms = round(every_s * 1000)
    now_ms = begin_ms + random.Random(f"{seed}:{bus_id}:phase").randrange(step_ms)
    reception = Reception(seed, bus_id)
    for driven, faults, since_ms, until_ms in zip(drives, strikes, borders, borders[1:], strict=False):
        happened += reception.begin(driven, faults, since_ms, end_ms)
        while now_ms < until_ms:
            truth = driven.truth(now_ms)
            points.append(truth)
            reading = Reading(
                bus_id, now_ms, round(truth.lat, 7), round(truth.lon, 7), 5.0, round(truth.speed_mps, 2) if tells_motion else -1.0,
                round(truth.bearing_deg, 1), truth.trip_id if named else None, truth.start_date if named else None, len(points),
            )  # fmt: skip
            sent += reception.arriving(reading, truth, now_ms + LAG_MS)
            now_ms += step_ms
    sent.sort(key=lambda each: (each.due_ms, each.reading.seq))
    fixes = [fix_of(each) for each in sent]
    if not tells_motion:
        fixes = [msgspec.structs.replace(fix, speed_mps=None, bearing_deg=None) for fix in fixes]
    stops = [stop for driven in drives for stop in stop_truths(bus_id, driven.instance, driven.visits)]
    return Trace(fixes, TraceTruth(points, stops, sorted(happened, key=lambda each: (each.from_ms, each.kind))))
