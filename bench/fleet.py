"""The buses of a simulation: who is on duty at a given moment, and where each of them truly is.

A bus on duty stands at the first stop of its block from eight minutes before the departure, drives the block's journeys, waits between them,
and is off duty five minutes after the last. Stand-ins (`SIM-...`) are there when more buses are asked for than the timetable has on the road:
each drives a trip of another hour of the day, moved so that it runs now.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from zlib import crc32

import msgspec

from bench.driving import Driver, Journey, StopVisit
from bench.network.buses import Block, assign
from bench.receiver import Receiver, Truth
from bench.scenario_radio import Sent
from bench.scenario_roads import SIGNED_ON_MS, Driven, Happening, RoadTrouble
from bench.scenarios import ROADS, Reception, Share, drive, struck
from engine.tracking.timetable import Timetable, TripInstance

EARLY_MS, AFTER_MS = 8 * 60_000, 5 * 60_000
LATE_MAX_MS = 40 * 60_000  # a trip that should have ended longer ago is not worth driving
DAY_MS = 86_400_000


class SimulatedBus:
    """One bus with its work. It is asked in order of time, and drives only the trips of the time it is asked about."""

    def __init__(
        self, bus_id: str, work: Sequence[Block], driver: Driver, receiver: Receiver, shift_ms: int = 0, faults: Sequence[Share] = ()
    ) -> None:
        self.bus_id, self.receiver = bus_id, receiver
        self._faults = faults
        self._reception = Reception(driver.seed, bus_id)
        self._happened: list[Happening] = []
        self._work, self._driver, self._shift_ms = work, driver, shift_ms
        self._next = 0  # index of the block after the present one
        self._todo: deque[TripInstance] = deque()  # of the present block
        self._before: Journey | Driven | None = None  # in the present block
        self._journey: Journey | Driven | None = None
        self._free_ms: int | None = None  # when the last block ended
        self._seen_ms: int | None = None
        self._visited: list[tuple[Journey | Driven, StopVisit]] = []
        self._visits = 0  # of the present journey, already put there

    def plan(self, work: Sequence[Block]) -> None:
        """More work. What the bus is doing stays."""
        begun_ms = self._work[self._next - 1].begins_ms if self._next else -1
        self._work = work
        self._next = sum(block.begins_ms <= begun_ms for block in work)

    def on_duty(self, now_ms: int) -> bool:
        """Brings the bus to that moment; False where it has nothing to do then."""
        if self._seen_ms is None:
            self._seen_ms = now_ms
        while True:
            journey = self._journey
            if journey is None:
                if not self._begin_block(now_ms):
                    return False
            elif now_ms < journey.last_ms:
                return self._before is not None or now_ms >= min(journey.first_ms, journey.begins_ms - EARLY_MS)
            elif self._todo:
                self._drive(self._todo.popleft(), journey.last_ms)
                self._before = journey
            elif now_ms <= journey.last_ms + AFTER_MS and not self._due(now_ms):
                return True
            else:
                self._look(journey.last_ms)
                self._journey, self._free_ms = None, journey.last_ms

    def _due(self, now_ms: int) -> bool:
        """The next block calls."""
        return self._next < len(self._work) and self._work[self._next].begins_ms + self._shift_ms - EARLY_MS <= now_ms

    def _begin_block(self, now_ms: int) -> bool:
        """Takes up the next block that is not long over, at the trip before the one of that moment: its lateness is what counts."""
        while self._due(now_ms):
            block = self._work[self._next]
            self._next += 1
            recent_ms = now_ms - self._shift_ms - LATE_MAX_MS
            todo = [trip for trip in block.trips if trip.arrival_ms(-1) > recent_ms]
            if todo:
                self._todo, self._before = deque(todo[1:]), None
                self._drive(todo[0], self._free_ms)
                return True
        return False

    def _drive(self, instance: TripInstance, free_from_ms: int | None) -> None:
        if self._journey is not None:
            self._look(self._journey.last_ms)
        faults = struck(self._driver.seed, instance, self._faults)
        if any(isinstance(fault, ROADS) for fault in faults):
            driven = drive(self._driver, self.bus_id, instance, free_from_ms, faults, self._shift_ms)
            self._journey, self._happened = driven, [*self._happened, *driven.happened]
        else:
            self._journey = self._driver.trip(instance, free_from_ms, self._shift_ms)
        since_ms = free_from_ms if free_from_ms is not None else self._journey.first_ms - EARLY_MS
        self._happened += self._reception.begin(self._journey, faults, since_ms, self._journey.last_ms + DAY_MS)
        self._visits = sum(visit.departed_ms < (self._seen_ms or 0) for visit in self._journey.visits)

    def strike(
        self, trouble: RoadTrouble, now_ms: int, wanted: Callable[[Happening, int], bool] = lambda happening, now_ms: True
    ) -> Happening | None:
        """Something happens on the way that lies ahead; None where the bus has no room for it, is in trouble already, or it is not wanted."""
        journey = self._journey
        if not isinstance(journey, Journey) or not journey.begins_ms < now_ms < journey.ends_ms:
            return None
        driven = trouble.strike(Driven.of(self.bus_id, journey), random.Random(f"{self._driver.seed}:{self.bus_id}:{now_ms}"))
        if not driven.happened or driven.happened[0].from_ms <= now_ms + 1000 or not wanted(driven.happened[0], now_ms):
            return None
        self._journey = driven
        self._happened += driven.happened
        return driven.happened[0]

    def arc(self, now_ms: int) -> tuple[TripInstance, float] | None:
        """The trip that it drives and where on it; None while it waits."""
        journey = self._journey
        if journey is None or not journey.begins_ms < now_ms < journey.ends_ms:
            return None
        return journey.instance, journey.at(now_ms)[0]

    def sends(self, truth: Truth, at_ms: int) -> list[Sent]:
        """What arrives, and when, of what the receiver makes of that moment: mostly one reading, at once."""
        found: list[Sent] = []
        for reading in self.receiver.measure(truth, at_ms):
            measured_ms = truth.at_ms + reading.timestamp_ms - self.receiver.skew_ms - at_ms  # earlier, where the modem was away
            then = truth if measured_ms == truth.at_ms else msgspec.structs.replace(truth, at_ms=measured_ms)
            found += self._reception.arriving(reading, then, truth.at_ms)
        return found

    def happened(self) -> list[Happening]:
        """What has come to be known since the last call; some of it may lie ahead."""
        found, self._happened = self._happened, []
        return [each for each in found if each.to_ms >= (self._seen_ms or 0)]

    def _look(self, now_ms: int) -> None:
        journey = self._journey
        while journey is not None and self._visits < len(journey.visits) and journey.visits[self._visits].departed_ms <= now_ms:
            self._visited.append((journey, journey.visits[self._visits]))
            self._visits += 1

    def visited(self, now_ms: int) -> list[tuple[Journey | Driven, StopVisit]]:
        """The stops left behind since the last call."""
        self._look(now_ms)
        found, self._visited = self._visited, []
        return found

    def truth(self, now_ms: int) -> Truth | None:
        """None where the bus is off duty."""
        if not self.on_duty(now_ms) or self._journey is None:
            return None
        journey, before = self._journey, self._before
        if isinstance(journey, Driven) and journey.first_ms <= now_ms <= journey.last_ms:
            return journey.truth(now_ms)
        if now_ms >= journey.last_ms:
            return journey.truth(now_ms) if isinstance(journey, Driven) else self._waiting(journey, now_ms, -1)
        if isinstance(journey, Journey) and now_ms >= journey.begins_ms:
            return self._driving(journey, now_ms)
        if before is not None and now_ms < (before.last_ms + journey.first_ms) // 2:
            return before.truth(now_ms) if isinstance(before, Driven) else self._waiting(before, now_ms, -1)
        return journey.truth(now_ms) if isinstance(journey, Driven) else self._waiting(journey, now_ms, 0)

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
        return Truth(self.bus_id, now_ms, lat, lon, speed, bearing, instance.trip.trip_id, instance.start_date, along, 0.0, "IN_TRIP")


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
        faults: Sequence[Share] = (),
    ) -> None:
        local = datetime.fromtimestamp(now_ms / 1000, timetable.tz)
        self._seed, self._noise, self._unnamed_share = seed, noise, unnamed_share
        offset = local.utcoffset() or timedelta()
        self._driver = Driver(seed, round(offset.total_seconds() * 1000))
        self._faults = faults
        self.wanted = wanted
        self._timetable = timetable
        self._planned: dict[str, SimulatedBus] = {}
        self._planned_to: date | None = None
        self._spare: list[SimulatedBus] = []
        self._plan(now_ms)

    def _plan(self, now_ms: int) -> None:
        """The work of today and tomorrow, once a day. In an order that mixes the lines, for those who want only a few buses."""
        today = datetime.fromtimestamp(now_ms / 1000, self._timetable.tz).date()
        if self._planned_to is not None and today < self._planned_to:
            return
        self._planned_to = today + timedelta(days=1)
        for bus in sorted(assign(self._timetable, today, days=2), key=lambda bus: crc32(bus.bus_id.encode())):
            if bus.bus_id in self._planned:
                self._planned[bus.bus_id].plan(bus.work)
            else:
                self._planned[bus.bus_id] = self._bus(bus.bus_id, bus.work)

    def _bus(self, bus_id: str, work: Sequence[Block], shift_ms: int = 0) -> SimulatedBus:
        named = crc32(f"{self._seed}:{bus_id}:named".encode()) % 10_000 >= self._unnamed_share * 10_000
        receiver = Receiver(bus_id, self._seed, noise=self._noise, named=named)
        return SimulatedBus(bus_id, work, self._driver, receiver, shift_ms, self._faults)

    def possible(self) -> list[str]:
        """Ids of all buses that may be called on."""
        return [*self._planned, *(f"SIM-{number + 1:05d}" for number in range(self.wanted or 0))]

    def on_duty(self, now_ms: int, keep: Sequence[SimulatedBus] = ()) -> list[SimulatedBus]:
        """Who drives now: those of `keep` first, up to `wanted`, made up with stand-ins."""
        self._plan(now_ms)
        by_schedule = [bus for bus in self._planned.values() if bus.on_duty(now_ms)]
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
