"""The buses of a simulation: who is on duty at a given moment, and where each of them truly is.

A bus on duty stands at the first stop of its block from eight minutes before the departure, drives the block's journeys, waits between them,
and is off duty five minutes after the last. Stand-ins (`SIM-...`) are there when more buses are asked for than the timetable has on the road:
each drives a trip of another hour of the day, moved so that it runs now.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime, timedelta
from zlib import crc32

from bench.driving import Driver, Journey
from bench.network.buses import Block, Bus, assign
from bench.receiver import Receiver, Truth
from engine.tracking.timetable import Timetable, TripInstance
from geo.coords import metres_per_degree

EARLY_MS, AFTER_MS = 8 * 60_000, 5 * 60_000
SIGNED_ON_MS = 4 * 60_000  # the driver names the trip this long before it leaves


class SimulatedBus:
    """One bus with its work. `truth` is asked in order of time."""

    def __init__(self, bus_id: str, work: Sequence[Block], driver: Driver, receiver: Receiver, shift_ms: int = 0) -> None:
        self.bus_id, self.receiver = bus_id, receiver
        self._work, self._driver, self._shift_ms = work, driver, shift_ms
        self._next = 0
        self.journeys: list[Journey] = []
        self._begins: list[int] = []
        self._reported = 0  # journeys already handed out by `finished`

    def _load(self, now_ms: int) -> bool:
        """Brings up the block of that moment; False where the bus is off duty."""
        while True:
            if self.journeys and now_ms <= self.journeys[-1].ends_ms + AFTER_MS and not self._relieved(now_ms):
                return now_ms >= self.journeys[0].begins_ms - EARLY_MS
            if self._next >= len(self._work):
                return False
            block = self._work[self._next]
            if block.begins_ms + self._shift_ms - EARLY_MS > now_ms:
                return False
            self._next += 1
            if block.ends_ms + self._shift_ms + 3_600_000 < now_ms:
                continue  # long over: not worth driving
            free_from_ms = self.journeys[-1].ends_ms if self.journeys else None
            self._journeys_are(self._driver.block(block, self._shift_ms, free_from_ms), now_ms)

    def _relieved(self, now_ms: int) -> bool:
        """The block is over and the next one calls."""
        if now_ms <= self.journeys[-1].ends_ms or self._next >= len(self._work):
            return False
        return self._work[self._next].begins_ms + self._shift_ms - EARLY_MS <= now_ms

    def _journeys_are(self, journeys: list[Journey], now_ms: int) -> None:
        self.journeys, self._begins = journeys, [j.begins_ms for j in journeys]
        self._reported = sum(j.ends_ms <= now_ms for j in journeys)  # those that ended before anybody looked

    def on_duty(self, now_ms: int) -> bool:
        return self._load(now_ms)

    def finished(self, now_ms: int) -> list[Journey]:
        """Journeys that have ended since the last call."""
        done = [j for j in self.journeys[self._reported :] if j.ends_ms <= now_ms]
        self._reported += len(done)
        return done

    def truth(self, now_ms: int) -> Truth | None:
        """None where the bus is off duty."""
        if not self._load(now_ms):
            return None
        i = bisect_right(self._begins, now_ms) - 1
        if i < 0:
            return self._waiting(self.journeys[0], now_ms, 0)
        journey = self.journeys[i]
        if now_ms < journey.ends_ms:
            return self._driving(journey, now_ms)
        if i + 1 < len(self.journeys) and now_ms > (journey.ends_ms + self._begins[i + 1]) // 2:
            return self._waiting(self.journeys[i + 1], now_ms, 0)
        return self._waiting(journey, now_ms, -1)

    def _waiting(self, journey: Journey, now_ms: int, index: int) -> Truth:
        shape, along = journey.instance.trip.pattern.shape, float(journey.instance.trip.pattern.along_m[index])
        lon, lat, bearing = shape.position(along)
        signed_on = index == 0 and journey.begins_ms - now_ms <= SIGNED_ON_MS
        instance = journey.instance
        trip_id, date = (instance.trip.trip_id, instance.start_date) if signed_on else (None, None)
        return Truth(self.bus_id, now_ms, lat, lon, 0.0, bearing, trip_id, date, along if signed_on else None, 0.0, "LAYOVER")

    def _driving(self, journey: Journey, now_ms: int) -> Truth:
        instance = journey.instance
        along, speed = journey.at(now_ms)
        lon, lat, bearing = instance.trip.pattern.shape.position(along)
        aside = journey.detour.offset_m(along) if journey.detour else 0.0
        if aside:
            kx, ky = metres_per_degree(lat)
            right = math.radians(bearing + 90)
            lon, lat = lon + aside * math.sin(right) / kx, lat + aside * math.cos(right) / ky
        return Truth(self.bus_id, now_ms, lat, lon, speed, bearing, instance.trip.trip_id, instance.start_date, along, aside, "IN_TRIP")


class Fleet:
    """All buses of the simulation. `wanted` None: whoever the timetable has on duty."""

    def __init__(
        self,
        timetable: Timetable,
        now_ms: int,
        *,
        wanted: int | None = None,
        seed: int = 1,
        noise: float = 1.0,
        unnamed_share: float = 0.1,
        detour_rate: float = 0.0,
    ) -> None:
        local = datetime.fromtimestamp(now_ms / 1000, timetable.tz)
        self._seed, self._noise, self._unnamed_share = seed, noise, unnamed_share
        offset = local.utcoffset() or timedelta()
        self._driver = Driver(seed, detour_rate, round(offset.total_seconds() * 1000))
        self.wanted = wanted
        self._timetable = timetable
        self.planned = [self._bus(bus.bus_id, bus.work) for bus in self._by_schedule(local)]
        self._spare: list[SimulatedBus] = []

    def _by_schedule(self, local: datetime) -> list[Bus]:
        return assign(self._timetable, local.date(), days=8)

    def _bus(self, bus_id: str, work: Sequence[Block], shift_ms: int = 0) -> SimulatedBus:
        named = crc32(f"{self._seed}:{bus_id}:named".encode()) % 10_000 >= self._unnamed_share * 10_000
        return SimulatedBus(bus_id, work, self._driver, Receiver(bus_id, self._seed, noise=self._noise, named=named), shift_ms)

    def on_duty(self, now_ms: int, keep: Sequence[SimulatedBus] = ()) -> list[SimulatedBus]:
        """Who drives now: those of `keep` first, up to `wanted`, made up with stand-ins."""
        by_schedule = [bus for bus in self.planned if bus.on_duty(now_ms)]
        if self.wanted is None:
            return by_schedule
        kept = [bus for bus in keep if bus.on_duty(now_ms)]
        known = {bus.bus_id for bus in kept}
        chosen = (kept + [bus for bus in by_schedule if bus.bus_id not in known])[: self.wanted]
        if len(chosen) < self.wanted:
            known = {bus.bus_id for bus in chosen}
            chosen += [bus for bus in self._stand_ins(self.wanted - len(by_schedule), now_ms) if bus.bus_id not in known]
        return chosen[: self.wanted]

    def _stand_ins(self, count: int, now_ms: int) -> list[SimulatedBus]:
        """`count` of them, all on duty; one whose trips are over gets new ones."""
        trips: list[TripInstance] | None = None
        for number in range(max(0, count)):
            if number < len(self._spare) and self._spare[number].on_duty(now_ms):
                continue
            trips = trips if trips is not None else self._idle_trips(now_ms)
            bus = self._stand_in(number, trips, now_ms)
            self._spare[number : number + 1] = [bus]
        return self._spare[: max(0, count)]

    def _idle_trips(self, now_ms: int) -> list[TripInstance]:
        """Trips of today that do not run now, the nearest in time first."""
        today = datetime.fromtimestamp(now_ms / 1000, self._timetable.tz).date()
        found = [
            t for t in self._timetable.instances_on(today) if not t.departure_ms(0) - EARLY_MS <= now_ms <= t.arrival_ms(-1) + AFTER_MS
        ]
        return sorted(found, key=lambda t: (abs((t.departure_ms(0) + t.arrival_ms(-1)) / 2 - now_ms), t.trip.trip_id))

    def _stand_in(self, number: int, trips: Sequence[TripInstance], now_ms: int) -> SimulatedBus:
        if not trips:
            raise ValueError("the feed has no trips today for stand-ins to drive")
        first = trips[number % len(trips)]
        bus_id = f"SIM-{number + 1:05d}"
        share = crc32(f"{self._seed}:{bus_id}:{number // len(trips)}".encode()) % 1000 / 1000 * 0.7
        shift_ms = round(now_ms - first.departure_ms(0) - share * (first.arrival_ms(-1) - first.departure_ms(0)))
        chain, following = [first], self._timetable.next_in_block(first)
        while following is not None:
            if following.departure_ms(0) >= chain[-1].arrival_ms(-1):
                chain.append(following)
            following = self._timetable.next_in_block(following)
        agency = self._timetable.routes[first.trip.route_id].agency_id or ""
        return self._bus(bus_id, [Block(first.trip.block_id or first.trip.trip_id, agency, tuple(chain))], shift_ms)
