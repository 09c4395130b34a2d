"""Simulated fleets whose trips are known, over any feed: what the devices of a whole fleet send on one day without naming a trip.

Buses pull out of a depot, drive the trips of their work near their times, wait at terminals at the stop or beside it, drive over
empty where the next trip begins elsewhere, and pull in. Some devices are switched on in the middle of a trip, some are away for a while.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import NamedTuple
from zlib import crc32

import msgspec

from bench.assignment_truth import Drive
from bench.fold import fix_of
from bench.network.buses import assign
from bench.receiver import Receiver, Truth
from engine.tracking.fix import Fix
from engine.tracking.timetable import Timetable, Trip, TripInstance, service_day_start_ms
from geo.coords import distance_m, moved

EMPTY_MPS = 9.0
PULL_MS = 360_000  # before its first departure a bus is at its stop
SWITCHED_ON_SHARE, AWAY_SHARE, BESIDE_SHARE = 0.15, 0.10, 0.30
AWAY_MS = 1_200_000
TURN_MS = 90_000  # a late bus turns round in so long
SLOW_SHARE = 0.12  # of trips that lose a tenth to a quarter of their time
HEADWAY_S = 900  # of the trips that frequencies.txt would make


class Journey:
    """A bus on a trip near its timetable: it leaves when it is time or when it can, loses and gains some seconds on each link, and now and then
    a trip meets a bad street; stops take ten seconds."""

    def __init__(self, instance: TripInstance, free_ms: int | None, seed: int) -> None:
        self.instance = instance
        chance = random.Random(crc32(f"{seed}:{instance.trip.trip_id}:{instance.start_date}".encode()))
        late_s = min(240.0, chance.expovariate(1 / 35.0))
        if free_ms is not None:
            late_s = max(late_s, (free_ms + TURN_MS - instance.departure_ms(0)) / 1000.0)
        self.begins_ms = instance.departure_ms(0) + round(late_s * 1000)
        slow = chance.uniform(0.10, 0.25) if chance.random() < SLOW_SHARE else 0.0
        at_s, arcs = [0.0], [float(instance.trip.pattern.along_m[0])]
        for index in range(1, len(instance.trip.arrival_s)):
            link_s = max(5.0, (instance.arrival_ms(index) - instance.departure_ms(index - 1)) / 1000.0)
            early_s = -late_s if late_s < -30.0 else 0.0
            late_s += link_s * slow + chance.gauss(0.0, 2.0 * math.sqrt(link_s)) - max(0.0, late_s) * 0.012 + 0.5 * early_s
            due_s = (instance.arrival_ms(index) - self.begins_ms) / 1000.0 + late_s
            arrives_s = max(due_s, at_s[-1] + 0.6 * link_s)
            late_s += arrives_s - due_s
            along = float(instance.trip.pattern.along_m[index])
            wait_s = (instance.departure_ms(index) - instance.arrival_ms(index)) / 1000.0
            at_s += [arrives_s, arrives_s + max(10.0, wait_s - max(0.0, late_s))]
            arcs += [along, along]
        self._at_s, self._arcs = at_s, arcs
        self.ends_ms = self.begins_ms + round(at_s[-2] * 1000)

    def at(self, now_ms: int) -> tuple[float, float]:
        """(metres along the shape, m/s)."""
        now_s = (now_ms - self.begins_ms) / 1000.0
        index = max(1, min(len(self._at_s) - 1, bisect_right(self._at_s, now_s)))
        low, high = self._at_s[index - 1], max(self._at_s[index], self._at_s[index - 1] + 0.001)
        speed = (self._arcs[index] - self._arcs[index - 1]) / (high - low)
        share = min(1.0, max(0.0, (now_s - low) / (high - low)))
        return self._arcs[index - 1] + share * (self._arcs[index] - self._arcs[index - 1]), speed


class Leg(NamedTuple):
    """A stretch of a bus's day: a journey, or a straight way (or a wait, where both ends are one place)."""

    begins_ms: int
    ends_ms: int
    journey: Journey | None
    start: tuple[float, float]  # lon, lat
    end: tuple[float, float]


def busiest_day(timetable: Timetable) -> date:
    """A date with as many trips as any."""
    days = {service.start + timedelta(days=step) for service in timetable.services.values() if service.start for step in range(7, 21)}
    days |= {day for service in timetable.services.values() for day in sorted(service.added)[:3]}
    return max(sorted(days), key=lambda day: len(timetable.instances_on(day)))


def without_blocks(timetable: Timetable) -> Timetable:
    """The same feed from an agency that publishes no blocks."""
    return _with_trips(timetable, {name: msgspec.structs.replace(trip, block_id=None) for name, trip in timetable.trips.items()})


def by_frequency(timetable: Timetable, day: date) -> Timetable:
    """The same lines with a departure every 15 minutes, as frequencies.txt makes them: one trip each, no blocks."""
    models: dict[str, Trip] = {}
    for instance in timetable.instances_on(day):
        models.setdefault(instance.trip.pattern.pattern_id, instance.trip)
    made = {}
    for model in models.values():
        for begins_s in range(5 * 3600, 26 * 3600, HEADWAY_S):
            shift = begins_s - model.departure_s[0]
            name = f"{model.trip_id}#{begins_s}"
            made[name] = msgspec.structs.replace(
                model, trip_id=name, arrival_s=tuple(at + shift for at in model.arrival_s), block_id=None, frequency_of=model.trip_id,
                departure_s=tuple(at + shift for at in model.departure_s),
            )  # fmt: skip
    return _with_trips(timetable, made)


def _with_trips(timetable: Timetable, trips: dict[str, Trip]) -> Timetable:
    return Timetable(
        feed_id=timetable.feed_id, version=timetable.version, tz=timetable.tz, agencies=timetable.agencies, stops=timetable.stops,
        routes=timetable.routes, services=timetable.services, patterns=timetable.patterns, trips=trips,
    )  # fmt: skip


def fleet(
    timetable: Timetable, day: date, from_h: float, to_h: float, *, seed: int = 1, every_s: float = 20.0
) -> tuple[list[Fix], list[Drive]]:
    """The fixes of all buses of a service date between two hours (beyond 24: after midnight) in order of receipt, and who drove what."""
    base_ms = service_day_start_ms(timetable.tz, day)
    from_ms, to_ms = base_ms + round(from_h * 3_600_000), base_ms + round(to_h * 3_600_000)
    received: list[tuple[int, Fix]] = []
    drives: list[Drive] = []
    for bus in assign(timetable, day, days=1):
        trips = [trip for block in bus.work for trip in block.trips if trip.start_date == day.strftime("%Y%m%d")]
        trips = [trip for trip in trips if trip.arrival_ms(-1) > from_ms - 3_600_000 and trip.departure_ms(0) < to_ms]
        if trips:
            fixes, driven = _bus(bus.bus_id, trips, seed, from_ms, to_ms, every_s)
            received += fixes
            drives += driven
    received.sort(key=lambda each: (each[0], each[1].bus_id, each[1].fixed_at_ms))
    return [fix for _, fix in received], drives


def _bus(
    bus_id: str, trips: Sequence[TripInstance], seed: int, from_ms: int, to_ms: int, every_s: float
) -> tuple[list[tuple[int, Fix]], list[Drive]]:
    chance = random.Random(crc32(f"{seed}:{bus_id}:day".encode()))
    legs = list(_legs(trips, seed, chance))
    on_ms = max(from_ms, legs[0].begins_ms)
    if chance.random() < SWITCHED_ON_SHARE:
        on_ms += round(chance.uniform(600, 5_400) * 1000)
    away_ms = on_ms + round(chance.uniform(1_800, 9_000) * 1000) if chance.random() < AWAY_SHARE else to_ms
    receiver = Receiver(bus_id, seed, named=False)
    fixes: list[tuple[int, Fix]] = []
    seen: list[int] = []
    step_ms = round(every_s * 1000)
    for at_ms in range(on_ms + crc32(bus_id.encode()) % step_ms, min(to_ms, legs[-1].ends_ms), step_ms):
        if away_ms <= at_ms < away_ms + AWAY_MS:
            continue
        leg = next(each for each in legs if each.ends_ms > at_ms)
        seen.append(at_ms)
        for reading in receiver.measure(_truth(bus_id, leg, at_ms), at_ms):
            fixes.append((at_ms + 400, fix_of(at_ms + 400, reading)))
    drives = []
    for leg in legs:
        times = [at for at in seen if leg.begins_ms <= at < leg.ends_ms]
        if leg.journey is None or len(times) < 3 or times[-1] - times[0] < 240_000:
            continue
        whole = any(at < leg.begins_ms for at in seen) and times[0] - leg.begins_ms <= 60_000
        name = leg.journey.instance.trip.trip_id, leg.journey.instance.start_date
        drives.append(Drive(bus_id, name, leg.begins_ms if whole else times[0], min(leg.ends_ms, times[-1]), whole))
    return fixes, drives


def _legs(trips: Sequence[TripInstance], seed: int, chance: random.Random) -> Iterator[Leg]:
    """The day of a bus, without holes."""
    free_ms: int | None = None
    place: tuple[float, float] | None = None
    for instance in trips:
        journey = Journey(instance, free_ms, seed)
        pattern = instance.trip.pattern
        first = _at(pattern.shape.position(float(pattern.along_m[0])))
        if place is None or free_ms is None:
            depot = _away(first, chance.uniform(1_500, 4_000), chance)
            takes = _takes_ms(depot, first)
            yield Leg(journey.begins_ms - PULL_MS - takes, journey.begins_ms - PULL_MS, None, depot, first)
            yield Leg(journey.begins_ms - PULL_MS, journey.begins_ms, None, first, first)
        else:
            yield from _between(place, first, free_ms, journey.begins_ms, chance)
        last = _at(pattern.shape.position(float(pattern.along_m[-1])))
        yield Leg(journey.begins_ms, journey.ends_ms, journey, first, last)
        place, free_ms = last, journey.ends_ms
    assert place is not None and free_ms is not None
    yield Leg(free_ms, free_ms + 120_000, None, place, place)
    depot = _away(place, chance.uniform(1_500, 4_000), chance)
    yield Leg(free_ms + 120_000, free_ms + 120_000 + _takes_ms(place, depot), None, place, depot)


def _between(place: tuple[float, float], first: tuple[float, float], free_ms: int, begins_ms: int, chance: random.Random) -> Iterator[Leg]:
    """From the last stop of one trip to the first of the next, with the wait."""
    far = distance_m(*place, *first)
    beside = _away(first, chance.uniform(60, 110), chance) if far < 100.0 and chance.random() < BESIDE_SHARE else first
    takes = min(_takes_ms(place, beside), (begins_ms - free_ms) // 3) if far >= 100.0 or beside is not first else 0
    stays = min(60_000, (begins_ms - free_ms) // 4)
    yield Leg(free_ms, free_ms + stays, None, place, place)
    if takes:
        yield Leg(free_ms + stays, free_ms + stays + takes, None, place, beside)
    back = min(20_000, (begins_ms - free_ms - stays - takes) // 2) if beside is not first else 0
    yield Leg(free_ms + stays + takes, begins_ms - back, None, beside, beside)
    if back:
        yield Leg(begins_ms - back, begins_ms, None, beside, first)


def _truth(bus_id: str, leg: Leg, at_ms: int) -> Truth:
    if leg.journey is not None:
        along, speed = leg.journey.at(at_ms)
        lon, lat, bearing = leg.journey.instance.trip.pattern.shape.position(along)
        return Truth(bus_id, at_ms, lat, lon, speed, bearing, None, None, None, 0.0, "IN_TRIP")
    share = (at_ms - leg.begins_ms) / max(1, leg.ends_ms - leg.begins_ms)
    lon = leg.start[0] + share * (leg.end[0] - leg.start[0])
    lat = leg.start[1] + share * (leg.end[1] - leg.start[1])
    far = distance_m(*leg.start, *leg.end)
    speed = far / max(1.0, (leg.ends_ms - leg.begins_ms) / 1000.0)
    east = (leg.end[0] - leg.start[0]) * math.cos(math.radians(lat))
    bearing = math.degrees(math.atan2(east, leg.end[1] - leg.start[1])) % 360.0
    return Truth(bus_id, at_ms, lat, lon, speed, bearing, None, None, None, 0.0, "LAYOVER")


def _at(position: tuple[float, float, float]) -> tuple[float, float]:
    return position[0], position[1]


def _away(place: tuple[float, float], metres: float, chance: random.Random) -> tuple[float, float]:
    turn = chance.uniform(0, 2 * math.pi)
    return moved(*place, metres * math.sin(turn), metres * math.cos(turn))


def _takes_ms(start: tuple[float, float], end: tuple[float, float]) -> int:
    return max(20_000, round(distance_m(*start, *end) / EMPTY_MPS * 1000))
