"""Repairs: history made right by fixes that came too late to be told, a phone's backlog after a tunnel or a day without a network.

A late fix moves nothing and nobody is told of it (`tracker.py`); the writer of history asks, in the transaction that keeps it, for a repair of
its bus. When no more came for some seconds, the trips around it are folded again from all their fixes by the same pure steps: stops that
were missing are added, those that were guessed are put right, the late fixes get their place on the shape. Event ids are made of what
happened, so a repair done twice, or cut off and begun again, changes nothing.

Bounds: one repair at a time among all workers, a trip's first 50,000 fixes, a few fixes folded between two yields to the loop. A repair whose
reads or writes fail while the database is there is put off, longer each time, and given up after `TRIES_MAX` tries (about 50 minutes). A late
fix without a trip of its own belongs to the trip that its bus was on before or after it; where there is neither, it stays as it is.

Refused: a trip whose first fix is older than the timetable in force. It was driven on another one, whose stops and shape may differ, so what
was said of it stands.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import msgspec

from engine.clock import Clock
from engine.errors import Unavailable
from engine.events import IN_TRIP, StopEvent
from engine.meter import SECONDS, Meter
from engine.settings import Settings
from engine.store.lease import hold
from engine.store.postgres import Postgres
from engine.store.redis import Redis
from engine.store.repairs import Mended, Placed, Repair, RepairStore
from engine.store.timescale import HistoryReader, PastFix
from engine.tracking.control import PlanSource
from engine.tracking.fix import OK, Fix
from engine.tracking.plans import Plan
from engine.tracking.ride import LATE_FOR_EVER_MS, Roadbook
from engine.tracking.timetable import Timetable, TripInstance
from engine.tracking.vehicle import Area, VehicleState, advance
from engine.tracking.window import time_order
from geo.match import Match

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0  # between two looks at what is due
PAUSE_MOST_S: Final = 10.0  # between two tries at a database that is away
BEFORE: Final = timedelta(hours=1)  # fixes of a trip are looked for from so long before its departure
AFTER: Final = timedelta(milliseconds=LATE_FOR_EVER_MS)  # to so long after its arrival
ADOPTED: Final = timedelta(minutes=1)  # after a timetable was put in force, every worker tracks on it
TRIES_MAX: Final = 12  # of one repair that fails
PUT_OFF_S, PUT_OFF_MOST_S = 5.0, 600.0  # after its first failure, and at most; doubling
FIXES_MAX: Final = 50_000  # of one trip: half a day at one a second
SLICE_FIXES, SLICE_PAUSE_S = 20, 0.002  # about 2 ms of folding, then others: a repair takes half of a quiet loop at most


class Step(NamedTuple):
    """One fix folded again, and the stops it left behind."""

    fix: Fix
    stops: list[StopEvent]
    placed: Match | None  # None: refused, or not between the trip's start and its end


def refold(fixes: Iterable[Fix], instance: TripInstance, timetable: Timetable) -> Iterator[Step]:
    """One vehicle on one trip instance, folded again from all its fixes of that trip, late ones among them, given in any order.

    For history alone: every event is `late`. Its ids are those of the live events of the same stops, so that history replaces and adds.
    """
    area = Area(timetable)
    state: VehicleState | None = None
    for fix in sorted(fixes, key=time_order):
        named = msgspec.structs.replace(fix, trip_id=instance.trip.trip_id, start_date=instance.start_date)
        state, said = advance(state if state is not None else VehicleState(fix.bus_id), named, area)
        stops = [msgspec.structs.replace(event, late=True) for event in said.events if isinstance(event, StopEvent)]
        driving = said.verdict == OK and state.ride is not None and (state.ride.phase == IN_TRIP or bool(stops))
        yield Step(fix, stops, state.match if driving else None)


def fixes_of(past: Sequence[PastFix], instance: TripInstance, book: Roadbook) -> list[PastFix]:
    """Those of one bus's fixes, in order of time, that belong to a trip: told in time and on it, late and named so by the device, or late
    without a name and next to one that was told in time and on it."""
    trip = instance.trip.trip_id, instance.start_date
    in_time = [_on(one) for one in past if not one.late]
    found, seen = [], 0  # in_time[seen - 1] is the last one before, in_time[seen] the first one after
    for one in past:
        if not one.late:
            seen += 1
            belongs = _on(one) == trip
        elif one.trip_id is not None:
            meant = _meant(book, one)
            belongs = meant is not None and (meant.trip.trip_id, meant.start_date) == trip
        else:
            belongs = trip in in_time[max(0, seen - 1) : seen + 1]
        if belongs:
            found.append(one)
    return found


def _on(one: PastFix) -> tuple[str | None, str | None]:
    return one.trip_id, None if one.start_date is None else str(one.start_date)


def _meant(book: Roadbook, one: PastFix) -> TripInstance | None:
    return (
        book.named(one.trip_id, None if one.start_date is None else str(one.start_date), _ms(one.ts)) if one.trip_id is not None else None
    )


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


class Repairs:
    """The one mender among all workers, by a lease."""

    def __init__(self, redis: Redis, postgres: Postgres, plans: PlanSource, *, clock: Clock, settings: Settings, meter: Meter) -> None:
        self._redis, self._plans, self._clock, self._settings = redis, plans, clock, settings
        self._store, self._reader = RepairStore(postgres), HistoryReader(postgres)
        self._done = meter.counter("timepoint_repairs_total", "repairs of history after late fixes, by how they ended", ("area", "outcome"))
        self._stops = meter.counter("timepoint_repair_stops_total", "stops that repairs added or changed", ("area",))
        self._left = meter.counter("timepoint_repair_trips_left_total", "trips not repaired: driven on another timetable", ("area",))
        self._faults = meter.counter("timepoint_repair_faults_total", "repairs that waited for a server", ("kind",))
        self._waiting = meter.gauge("timepoint_repairs_waiting", "repairs asked for")
        self._took = meter.histogram("timepoint_repair_seconds", "one repair", bounds=(*SECONDS, 30.0, 60.0))

    async def run(self) -> None:
        """For ever, until cancelled."""
        await hold(self._redis, "repair", self._settings, self._mend_on)

    async def _mend_on(self) -> None:
        pause_s = LOOK_S
        while True:
            try:
                repair = await self._store.due()
                self._waiting.set(await self._store.waiting())
                if repair is not None:
                    await self._mend(repair)
                else:
                    await asyncio.sleep(LOOK_S)
                pause_s = LOOK_S
            except Unavailable as away:
                self._faults.add(1, "Unavailable")
                log.warning("repairs wait: %s", away)
                await asyncio.sleep(pause_s)
                pause_s = min(PAUSE_MOST_S, pause_s * 2)

    async def _mend(self, repair: Repair) -> None:
        """One repair to its end, or put off. A fault of ours ends it too: counted, logged, the next one is not kept waiting."""
        began_s = self._clock.steady_s()
        try:
            mended, left = await self._look(repair)
            self._stops.add(await self._store.end(repair, mended), repair.area)
            self._left.add(left, repair.area)
            outcome = "DONE" if mended else "OTHER_PLAN" if left else "NO_TRIP"
        except Unavailable as fault:
            outcome = await self._put_off(repair, fault)
        except Exception:
            outcome = "BROKEN"
            log.exception("area %s: the history of %s could not be repaired", repair.area, repair.bus_id)
            await self._store.end(repair, [])
        self._done.add(1, repair.area, outcome)
        self._took.observe(self._clock.steady_s() - began_s)

    async def _put_off(self, repair: Repair, fault: Unavailable) -> str:
        """Behind the others, or away after its last try. Raises `Unavailable` where the database is away for all: no try is counted then."""
        if repair.tries + 1 >= TRIES_MAX:
            await self._store.end(repair, [])
            log.error("area %s: the history of %s is not repaired, %d tries failed: %s", repair.area, repair.bus_id, TRIES_MAX, fault)
            return "GIVEN_UP"
        pause_s = min(PUT_OFF_MOST_S, PUT_OFF_S * 2**repair.tries)
        await self._store.put_off(repair, pause_s)
        log.warning("area %s: the repair of %s failed, again in %.0f s: %s", repair.area, repair.bus_id, pause_s, fault)
        return "PUT_OFF"

    async def _look(self, repair: Repair) -> tuple[list[Mended], int]:
        """What the trips around the late fixes come to, and how many others are left as they are: driven on another timetable."""
        plan = self._plans.get(repair.area)
        if plan is None:
            return [], 0
        book = Roadbook(plan.timetable)
        instances: dict[tuple[str, str], TripInstance] = {}
        others: set[tuple[str, str]] = set()
        for trip_id, start_date, ts in await self._store.trips(repair):
            instance = book.named(trip_id, None if start_date is None else str(start_date), _ms(ts))
            if instance is not None:
                instances[trip_id, instance.start_date] = instance
                if not _in_force(plan, ts):
                    others.add((trip_id, instance.start_date))
        mended = []
        for key, instance in instances.items():
            if key in others:
                continue
            since = datetime.fromtimestamp(instance.departure_ms(0) / 1000, UTC) - BEFORE
            until = datetime.fromtimestamp(instance.arrival_ms(len(instance.trip.arrival_s) - 1) / 1000, UTC) + AFTER
            past = fixes_of(await self._reader.playback(repair.bus_id, since, until, FIXES_MAX), instance, book)
            if past and not _in_force(plan, past[0].ts):
                others.add(key)
                continue
            mended.append(await self._fold(repair.bus_id, past, instance, plan.timetable))
        return mended, len(others)

    async def _fold(self, bus_id: str, past: list[PastFix], instance: TripInstance, timetable: Timetable) -> Mended:
        late = {(_ms(one.ts), one.lat, one.lon): one for one in past if one.late}
        mended = Mended(instance.trip.trip_id, instance.start_date, [], [])
        for number, step in enumerate(refold((_fix(bus_id, one) for one in past), instance, timetable), 1):
            mended.stops.extend(step.stops)
            one = late.get(time_order(step.fix))
            if one is not None and (match := step.placed) is not None:
                mended.placed.append(Placed(one.ts, one.lat, one.lon, match.along_m, match.offset_m))
            if number % SLICE_FIXES == 0:
                await asyncio.sleep(SLICE_PAUSE_S)
        return mended


def _in_force(plan: Plan, at: datetime) -> bool:
    return plan.since is None or at >= plan.since + ADOPTED


def _fix(bus_id: str, one: PastFix) -> Fix:
    """As it was before it was kept; the device's own trip is replaced by the one that is folded."""
    at_ms = _ms(one.ts)
    return Fix(
        bus_id, at_ms, one.lat, one.lon, at_ms + one.latency_ms, "", "history",
        accuracy_m=one.accuracy_m, speed_mps=one.speed_mps, bearing_deg=one.bearing_deg,
    )  # fmt: skip
