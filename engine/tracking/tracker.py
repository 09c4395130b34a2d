"""The tracker of one area: many vehicles, the window in which late fixes still count, and what there is to tell. Pure: no await, no clock.

`Tracker` is all that the shell (`control.py`), the replay and the tests talk to; what one fix does to one vehicle stands in `vehicle.py`.
Positions are told at once. Rows and events leave when their fix is 3 s old by the area's clock (the newest receipt or tick that it was
told of), folded in the order of the fixes' own times, so that a fix which comes late inside the window changes what will be said instead of
unsaying it: any permutation of a trace inside 3 s gives the same state, rows and events.

Refused: a fix older than what has settled is a row LATE; it moves nothing and tells nobody (`repair.py` makes the trip's history
from all its fixes). A known (vehicle, time, place at 1e-6 degrees) is a row DUPLICATE.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import msgspec

from engine.events import (
    DEADHEAD,
    DONE,
    OFF_ROUTE,
    OFFLINE,
    SKIPPED,
    STALE,
    Event,
    Handled,
    IncidentEvent,
    Position,
    Sos,
    StopEvent,
    StopForecast,
    TrackRow,
    TripEvent,
    TripForecast,
    Word,
)
from engine.tracking import guard as guarding
from engine.tracking import watch as watching
from engine.tracking.eta import ArrivalModel, Progress
from engine.tracking.fix import DUPLICATE, OK, ClockSkew, Fix, screen_at_door, with_delay
from engine.tracking.guard import AT_EASE
from engine.tracking.headways import Headways
from engine.tracking.known import Known
from engine.tracking.open_incidents import OpenIncidents
from engine.tracking.ride import Ride
from engine.tracking.rules import Rules
from engine.tracking.silence import heard, silence_due_ms, silence_next
from engine.tracking.timetable import Timetable
from engine.tracking.vehicle import Area, Said, VehicleState
from engine.tracking.watch import OFF, QUIET
from engine.tracking.window import RECENT, Kept, Place, Vehicle, taken_up

log = logging.getLogger(__name__)

SETTLE_MS = 3_000
REST_MS = 1_200  # a fix that may settle waits so long for the vehicle's next one, which settles it on its way: at 1 Hz no tick has to
STALE_MS, SILENT_MS, OFFLINE_MS = 90_000, 360_000, 600_000  # no fix: stale; no predictions; gone
FORGET_MS = 86_400_000
FORECAST_MS = 10_000  # a forecast is made anew with the first fix after this, or at a stop
FORECAST_SILENT_MS = 30_000  # and without a fix after this
DAY_BREAK_S = 4 * 3600  # local time at which yesterday's traffic is over
LEARNED_MS = 60_000  # what the estimator has learned is kept this often
SAMPLE_MS = 60_000  # what is published of a vehicle is kept for the record this often
PENDING_MAX = 256  # fixes of one vehicle inside the window; past it the oldest settle early, counted
DEVICES_MAX = 4  # clocks of devices kept per vehicle


class Outcome(msgspec.Struct):
    """All that changed since the last `take()`: the shell commits it as one batch, or forgets it and restores."""

    states: dict[str, bytes]  # state key -> blob to keep in Redis ("bus:{id}", "eta:*" of what was learned); b"" drops the key
    gone: list[str]  # bus ids to drop from the live picture and the GEO index
    positions: list[Position]  # newest per bus
    forecasts: list[TripForecast]  # newest per bus; one without stops takes the bus's forecast away
    rows: list[TrackRow]  # settled fixes, and the refused ones at once
    events: list[Event]  # settled
    open_incidents: dict[str, bytes]  # incident id -> msgpack of IncidentEvent; b"": no longer open
    sampled: list[TripForecast]  # for the record of what was published


class Tracker:
    """One area. Drive it with `fold` in order of receipt and `tick` once a second; `take` what changed.

    `counts` counts verdicts and everything unusual by name, for the metrics. A `fold` that raises has changed nothing of the vehicle,
    unless the estimator raised, which is asked last.
    """

    def __init__(self, timetable: Timetable | None, *, feed_id: str, partner_id: str, model: ArrivalModel | None = None) -> None:
        """`timetable` None: an area without a feed; vehicles move, no trips. `model` None: one of its own."""
        self.feed_id, self.partner_id = feed_id, partner_id
        self.counts: Counter[str] = Counter()
        self._model = model if model is not None else ArrivalModel()
        self._area = Area(timetable)
        self._vehicles: dict[str, Vehicle] = {}
        self._seen = Known()  # a duplicate of what it has forgotten becomes a row LATE, which history has already
        self._now_ms = 0
        self._learned_ms = 0
        self._day = 0  # of the newest word of the area; 0: none yet
        self._open = OpenIncidents()
        self._headways = Headways()
        self._decode = msgspec.msgpack.Decoder(Kept).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._clear()

    def _clear(self) -> None:
        self._rows: list[TrackRow] = []
        self._events: list[Event] = []
        self._sampled: list[TripForecast] = []
        self._forecasts: dict[str, TripForecast] = {}
        self._states: dict[str, bytes] = {}
        self._gone: dict[str, None] = {}
        self._moved: dict[str, None] = {}  # whose position is to be told
        self._changed: dict[str, None] = {}  # whose state is to be kept

    @property
    def timetable(self) -> Timetable | None:
        """The newest feed version."""
        return self._area.book.timetable if self._area.book is not None else None

    def restore(self, states: Mapping[str, bytes], open_incidents: Iterable[bytes] = ()) -> None:
        """Forget everything and go on from what `Outcome.states` and `Outcome.open_incidents` said, key by key. A blob of another program
        version that cannot be read is counted (BAD_STATE) and its vehicle begins anew."""
        self._vehicles, self._seen, self._now_ms = {}, Known(), 0
        rules, self._area = self._area.rules, Area(self.timetable)
        self._area.rules = rules
        self.counts["BAD_STATE"] += self._open.restore(open_incidents) + self._headways.load(states)
        self._clear()
        learned = {key.removeprefix("eta:"): blob for key, blob in states.items() if key.startswith("eta:")}
        try:
            self._model.load(learned)
        except (msgspec.DecodeError, ValueError) as fault:
            self.counts["BAD_STATE"] += 1
            log.error("area %s: what was learned cannot be read, it is learned anew: %s", self.feed_id, fault)
            self._model.load({})
        for key, blob in states.items():
            if not key.startswith("bus:") or not blob:
                continue
            try:
                vehicle = taken_up(self._decode(blob), self._area)
            except Exception:  # whatever it is, the area must come up
                self.counts["BAD_STATE"] += 1
                log.exception("area %s: the state of %s cannot be taken up, it begins anew", self.feed_id, key)
                continue
            bus_id = vehicle.base.bus_id
            self._vehicles[bus_id] = vehicle
            if vehicle.shown is not None:  # of one that is offline others may drive the trip
                self._claim(bus_id, None, vehicle.newest.ride)
            for recent in vehicle.recent:
                self._seen.add((bus_id, *recent))
            newest = vehicle.newest.fix
            if newest is not None:
                self._now_ms = max(self._now_ms, newest.received_at_ms)
        self._day = self._day_of(self._now_ms) if self._now_ms else 0
        self._events.extend(self._open.abandoned(self._vehicles, self._now_ms))

    def swap(self, timetable: Timetable) -> None:
        """A newer feed version. A vehicle on a trip stays on the version it began with where the new one changed or lost that trip, until
        the trip ends; where the trip is the same it goes on in the new one."""
        area = self._area
        area.adopt(timetable)
        versions: set[str] = set()
        for bus_id, vehicle in self._vehicles.items():
            if vehicle.move(area):
                self._changed[bus_id] = None
            versions |= vehicle.versions()
        area.keep(versions)

    def rule(self, rules: Rules) -> None:
        """From now on these rules hold."""
        self._area.rules = rules

    def hear(self, word: Word) -> None:
        """A word of a person: said at once, it settles nothing. The same word twice is one."""
        if isinstance(word, Sos):
            self._events.extend(self._open.sos(word))
        elif isinstance(word, Handled):
            self._events.extend(self._open.handled(word))

    def fold(self, fix: Fix) -> None:
        """One fix, in order of receipt. May raise: the shell sends the fix to the dead letters and goes on."""
        if fix.received_at_ms > self._now_ms:
            self._now_ms = fix.received_at_ms
        checked = screen_at_door(fix, fix.received_at_ms)
        if isinstance(checked, str):
            return self._refuse(fix, checked)
        fix = checked
        vehicle = self._vehicles.get(fix.bus_id)
        if vehicle is None:
            vehicle = self._vehicles[fix.bus_id] = Vehicle(fix.bus_id)
        place = (fix.fixed_at_ms, round(fix.lat * 1e6), round(fix.lon * 1e6))
        key = (fix.bus_id, *place)
        is_news = fix.fixed_at_ms > vehicle.known_ms > 0  # than all that was known of it: nearly every fix
        if not is_news and (key in self._seen or vehicle.has_seen(place)):
            return self._refuse(fix, DUPLICATE)
        vehicle.heard_ms = fix.received_at_ms
        fix = self._clocked(vehicle, fix)
        was = vehicle.newest
        verdict = vehicle.verdict_at_once(fix)
        if verdict is None:
            vehicle.insert(fix, self._area)
        self._remember(vehicle, key, place)  # not before: a fix that raised may be sent again from the dead letters
        if verdict is not None:
            return self._refuse(fix, verdict)
        now = vehicle.newest
        self._changed[fix.bus_id] = None
        if now.fix is not was.fix:
            self._moved[fix.bus_id] = None
        if now.ride is not was.ride and _name(now.ride) != _name(was.ride):
            self._claim(fix.bus_id, was.ride, now.ride)
        return self._follow(vehicle, FORECAST_MS)

    def tick(self, now_ms: int) -> None:
        """Once a second: silence, staleness, settled events and expiry happen too. Never raises: a fault is counted and logged."""
        if now_ms > self._now_ms:
            self._now_ms = now_ms
        now_ms = self._now_ms
        forgotten = []
        for bus_id, vehicle in self._vehicles.items():
            if vehicle.due_ms > now_ms:
                continue
            try:
                self._follow(vehicle, FORECAST_SILENT_MS)
                if self._is_forgotten(vehicle):
                    forgotten.append(bus_id)
            except Exception:
                self.counts["TICK_FAULT"] += 1
                vehicle.due_ms = now_ms + FORECAST_MS
                log.exception("area %s: the tick of %s failed", self.feed_id, bus_id)
        for bus_id in forgotten:
            self._forget(bus_id)
        if forgotten:
            self._events.extend(self._open.abandoned(self._vehicles, now_ms))
        self._say(self._headways.look(now_ms, self._area.rules.watch))
        day = self._day_of(now_ms)
        if day != self._day:
            if self._day:
                self._model.new_day()
                self._headways.sweep(now_ms)
            self._day = day
        if now_ms - self._learned_ms >= LEARNED_MS:
            self._learned_ms = now_ms
            self._states.update({"eta:" + part: blob for part, blob in self._model.dump().items()})

    def _day_of(self, now_ms: int) -> int:
        """Days since the year 1, each from 04:00 to 04:00 local time."""
        tz = self.timetable.tz if self.timetable is not None else UTC
        return datetime.fromtimestamp(now_ms // 1000 - DAY_BREAK_S, tz).toordinal()

    def take(self) -> Outcome:
        """What changed, and a clean slate."""
        for bus_id in self._changed:
            vehicle = self._vehicles.get(bus_id)
            if vehicle is not None:
                self._states["bus:" + bus_id] = self._encode(vehicle.kept())
        self._states.update(self._headways.dump())
        positions = [self._position(self._vehicles[bus_id]) for bus_id in self._moved if bus_id not in self._gone]
        out = Outcome(
            self._states, list(self._gone), positions, list(self._forecasts.values()), self._rows, self._events, self._open.changed(),
            self._sampled,
        )  # fmt: skip
        self._clear()
        return out

    def forecasts(self, now_ms: int) -> list[TripForecast]:
        """What is foretold at this moment for every vehicle on a trip, in order of bus ids: for replays, which sample at fixed times."""
        found = []
        for bus_id in sorted(self._vehicles):
            vehicle = self._vehicles[bus_id]
            told = self._forecasts.get(bus_id) if vehicle.forecast_at_ms == now_ms else None
            forecast = told if told is not None else self._forecast(vehicle, now_ms)
            if forecast is not None and forecast.stops:
                found.append(forecast)
        return found

    def _follow(self, vehicle: Vehicle, forecast_every_ms: int) -> None:
        """What follows from the area's clock for one vehicle, after a fix or a tick."""
        self._settle(vehicle)
        self._foretell(vehicle, forecast_every_ms)
        state = vehicle.newest
        silent_ms = silence_due_ms(vehicle.silence, state, self._area.rules.watch)
        if silent_ms is not None and self._now_ms >= silent_ms:
            self._miss(vehicle)
            silent_ms = silence_due_ms(vehicle.silence, state, self._area.rules.watch)
        self._show(vehicle, silent_ms)

    def _remember(self, vehicle: Vehicle, key: tuple[str, int, int, int], place: Place) -> None:
        self._seen.add(key)
        if place[0] > vehicle.known_ms:
            vehicle.known_ms = place[0]
        vehicle.recent.append(place)
        if len(vehicle.recent) > 2 * RECENT:
            del vehicle.recent[:RECENT]

    def _clocked(self, vehicle: Vehicle, fix: Fix) -> Fix:
        """The fix with its device's clock put right."""
        clock = vehicle.clocks.get(fix.device_id)
        if clock is None:
            if len(vehicle.clocks) >= DEVICES_MAX:
                del vehicle.clocks[next(iter(vehicle.clocks))]
            clock = ClockSkew(fix.device_id)
        after = with_delay(clock, fix.fixed_at_ms, fix.received_at_ms)
        if after is not clock:
            vehicle.clocks[fix.device_id] = after
            self._changed[fix.bus_id] = None
            if after.skew_ms != clock.skew_ms:
                log.warning("area %s: the clock of device %s is off by %d ms", self.feed_id, fix.device_id, -after.skew_ms)
        if not after.skew_ms:
            return fix
        self.counts["SKEW_CORRECTED"] += 1
        return msgspec.structs.replace(fix, fixed_at_ms=fix.fixed_at_ms + after.skew_ms)

    def _refuse(self, fix: Fix, verdict: str) -> None:
        """On the trip that its device named, if any: what the vehicle is on now need not be what it was on then."""
        self.counts[verdict] += 1
        self._rows.append(_row(fix, verdict, fix.trip_id, fix.start_date, None, None, None))

    def _claim(self, bus_id: str, was: Ride | None, now: Ride | None) -> None:
        """The vehicle's trip is now another, or anew its own. Whoever had it by a guess that fits worse loses it at once."""
        if was is not None and (now is None or (was.trip_id, was.start_date) != (now.trip_id, now.start_date)):
            self._area.release(bus_id, was)
        if now is None:
            return
        name = now.trip_id, now.start_date
        if self._area.is_driven_by_other(name, bus_id) and (was is None or (was.trip_id, was.start_date) != name):
            self.counts["TRIP_DRIVEN_TWICE"] += 1
        loser = self._area.claim(bus_id, now, self._now_ms)
        if loser is not None and loser in self._vehicles:
            self._oust(self._vehicles[loser])

    def _oust(self, vehicle: Vehicle) -> None:
        """Another vehicle fits its trip better, or was named for it: it is on no trip until its next looks find it one."""
        self.counts["DISPLACED"] += 1
        self._say(vehicle.oust(self._area, "DISPLACED"))
        bus_id = vehicle.base.bus_id
        self._moved[bus_id] = self._changed[bus_id] = None
        vehicle.due_ms = 0

    def _settle(self, vehicle: Vehicle) -> None:
        """Fixes that are 3 s old by the area's clock say what they have to say, in the order of their times."""
        edge_ms = self._now_ms - SETTLE_MS
        settled = vehicle.settle(edge_ms, PENDING_MAX)
        if not settled:
            return
        if settled[-1].fix.fixed_at_ms >= edge_ms:
            self.counts["SETTLED_EARLY"] += 1
        self._changed[vehicle.base.bus_id] = None
        for fix, state, said in settled:
            self.counts[said.verdict] += 1
            if said.note is not None:
                self.counts[said.note] += 1
            if said.events:
                self._say(said.events)
                self._headway(fix, state, said.events)
            if vehicle.silence is not None and said.verdict == OK:
                self._is_heard(vehicle, fix)
            self._rows.append(_settled_row(fix, state, said.verdict))
        for _, state, said in settled:
            if said.verdict == OK:
                self._learn(state, said)

    def _say(self, events: Iterable[Event]) -> None:
        """Events that have settled; incidents as what people did with them allows."""
        for event in events:
            if isinstance(event, IncidentEvent):
                said = self._open.said(event)
                if said is not None:
                    self._events.append(said)
            else:
                self._events.append(event)

    def _headway(self, fix: Fix, state: VehicleState, events: Iterable[Event]) -> None:
        """Stops that a settled fix left behind, and trips that it ended, for those who follow each other."""
        found = self._area.of(state.ride) if state.ride is not None else None
        for event in events:
            if isinstance(event, TripEvent):
                if event.kind == "COMPLETED":
                    self._area.finish(event.bus_id, (event.trip_id, event.start_date))
                if event.kind in ("COMPLETED", "UNASSIGNED"):
                    self._headways.over(event.bus_id, event.trip_id, event.start_date, event.route_id, fix.fixed_at_ms)
            elif isinstance(event, StopEvent) and found is not None:
                at_ms = event.departed_at_ms if event.departed_at_ms is not None else event.arrived_at_ms
                if at_ms is not None:
                    index = found.course.pattern.stop_sequences.index(event.stop_sequence)
                    self._headways.passed(
                        found.instance, found.course, index, event.bus_id, at_ms, fix.fixed_at_ms, measured=event.kind != "INTERPOLATED"
                    )

    def _miss(self, vehicle: Vehicle) -> None:
        """A bus on its trip of which nothing is heard."""
        config, now_ms, state = self._area.rules.watch, self._now_ms, vehicle.newest
        found = self._area.of(state.ride) if state.ride is not None else None
        told = vehicle.silence or state.ride
        driver = self._area.driven.get((told.trip_id, told.start_date)) if told is not None else None
        vehicle.silence, events = silence_next(
            vehicle.silence, state, found.instance if found is not None else None, now_ms, config,
            replaced=driver is not None and driver != state.bus_id,
        )  # fmt: skip
        if events:
            self._say(events)
            self._changed[state.bus_id] = None

    def _is_heard(self, vehicle: Vehicle, fix: Fix) -> None:
        """The first fix that is news ends the silence."""
        event = heard(vehicle.silence, fix, self._area.rules.watch) if vehicle.silence is not None else None
        if event is not None:
            vehicle.silence = None
            self._say([event])

    def _learn(self, state: VehicleState, said: Said) -> None:
        progress = progress_of(state, self._area)
        if progress is None:
            return
        for crossing in said.crossings:
            self._model.crossed(state.bus_id, progress.instance, crossing.stop_index, crossing.at_ms, measured=crossing.measured)
        self._model.observe(progress)

    def _forecast(self, vehicle: Vehicle, now_ms: int) -> TripForecast | None:
        """Asks the estimator, and notes that it was asked; the stops that were missed stand before its answer. None: on no trip, or silent
        for 6 min."""
        state = vehicle.newest
        progress = progress_of(state, self._area)
        if progress is None or now_ms - progress.fixed_at_ms >= SILENT_MS:
            return None
        vehicle.forecast_at_ms, vehicle.forecast_stop = now_ms, progress.stop_index
        forecast = self._model.forecast(progress, now_ms)
        if forecast is None or state.ride is None or not state.ride.missed:
            return forecast
        return msgspec.structs.replace(forecast, stops=_skipped(state.ride, progress, forecast.stops) + forecast.stops)

    def _foretell(self, vehicle: Vehicle, every_ms: int) -> None:
        """Arrivals anew: at a stop, on another trip, or after `every_ms`; taken away at the end of the trip and after 6 min of silence."""
        state, now_ms, told = vehicle.newest, self._now_ms, vehicle.forecast_trip
        bus_id, ride = state.bus_id, state.ride
        if ride is not None and ride.phase != DONE and state.motion is not None and now_ms - state.motion.fixed_at_ms < SILENT_MS:
            same = told is not None and told[0] == ride.trip_id and told[1] == ride.start_date
            if same and vehicle.forecast_stop == ride.next_stop and now_ms - vehicle.forecast_at_ms < every_ms:
                return
            forecast = self._forecast(vehicle, now_ms)
            if forecast is not None and forecast.stops:
                vehicle.forecast_trip = (forecast.trip_id, forecast.start_date, forecast.route_id)
                vehicle.next_stop = forecast.ahead[0]
                self._forecasts[bus_id] = forecast
                self._changed[bus_id] = None
                if now_ms - vehicle.sampled_ms >= SAMPLE_MS:
                    vehicle.sampled_ms = now_ms
                    self._sampled.append(forecast)
                return
        if told is not None:
            trip_id, start_date, route_id = told
            self._forecasts[bus_id] = TripForecast(bus_id, trip_id, start_date, route_id, now_ms, ())
            vehicle.forecast_trip, vehicle.next_stop, vehicle.forecast_stop = None, None, -1
            self._changed[bus_id] = self._moved[bus_id] = None

    def _show(self, vehicle: Vehicle, silent_ms: int | None) -> None:
        """What watchers should see now, and when to look again. `silent_ms`: when its silence is to be looked at, if no fix comes."""
        now_ms, state = self._now_ms, vehicle.newest
        bus_id = state.bus_id
        if state.motion is None:
            vehicle.due_ms = now_ms + FORGET_MS
            return
        age_ms = now_ms - state.motion.fixed_at_ms
        shown = _shown(state, age_ms)
        if shown == OFFLINE:
            self._moved.pop(bus_id, None)
            if vehicle.shown is not None:
                self._gone[bus_id] = None
                self._part(vehicle)
        elif shown != vehicle.shown:
            if vehicle.shown is None:  # back: its trip is its own again, if nobody else has it
                self._claim(bus_id, state.ride, state.ride)
            self._moved[bus_id] = self._changed[bus_id] = None
            self._gone.pop(bus_id, None)
        vehicle.shown = shown if shown != OFFLINE else None
        due_ms = state.motion.fixed_at_ms + (STALE_MS if age_ms < STALE_MS else OFFLINE_MS if age_ms < OFFLINE_MS else FORGET_MS)
        if vehicle.pending:
            due_ms = min(due_ms, vehicle.pending[0].fix.fixed_at_ms + SETTLE_MS + REST_MS + 1)
        if vehicle.forecast_trip is not None or (state.ride is not None and age_ms < SILENT_MS):
            due_ms = min(due_ms, vehicle.forecast_at_ms + FORECAST_SILENT_MS)
        if silent_ms is not None and silent_ms > now_ms:
            due_ms = min(due_ms, silent_ms)
        vehicle.due_ms = due_ms

    def _part(self, vehicle: Vehicle) -> None:
        """Gone from the live picture: what is open is closed at the time of the last word, and others may drive its trip."""
        state = vehicle.base
        if state.fix is not None and state.motion is not None:
            at_ms = state.motion.fixed_at_ms
            self._say(guarding.close(state.guard, state.fix, state.ride, at_ms, "SILENT"))
            if state.ride is not None:
                self._say(watching.close(state.watch, state.fix, state.ride, at_ms, "SILENT"))
                self._claim(state.bus_id, state.ride, None)
            vehicle.base = msgspec.structs.replace(state, watch=QUIET, guard=AT_EASE)
        self._model.forget(state.bus_id)
        self._changed[state.bus_id] = None

    def _is_forgotten(self, vehicle: Vehicle) -> bool:
        motion = vehicle.newest.motion
        return self._now_ms - max(vehicle.heard_ms, motion.fixed_at_ms if motion is not None else 0) >= FORGET_MS

    def _forget(self, bus_id: str) -> None:
        vehicle = self._vehicles.pop(bus_id)
        self._claim(bus_id, vehicle.newest.ride, None)
        self._changed.pop(bus_id, None)
        self._moved.pop(bus_id, None)
        self._states["bus:" + bus_id] = b""

    def _position(self, vehicle: Vehicle) -> Position:
        state = vehicle.newest
        fix, motion, ride, match = state.fix, state.motion, state.ride, state.match
        assert fix is not None and motion is not None  # it moved
        on = match if ride is not None else None
        next_stop = vehicle.next_stop
        remaining = None
        if ride is not None and match is not None and (found := self._area.of(ride)) is not None:
            course = found.course
            remaining = max(0.0, course.along_m[course.last] - match.along_m)
        return Position(
            state.bus_id,
            self.partner_id,
            self.feed_id,
            ride.trip_id if ride is not None else None,
            ride.route_id if ride is not None else None,
            ride.start_date if ride is not None else None,
            fix.lat,
            fix.lon,
            motion.bearing_deg,
            motion.speed_mps,
            on.along_m if on is not None else None,
            on.offset_m if on is not None else None,
            vehicle.shown or OFFLINE,
            next_stop.delay_s if next_stop is not None else None,
            next_stop,
            fix.fixed_at_ms,
            fix.received_at_ms,
            ride.next_stop if ride is not None and ride.phase != DONE else None,
            fix.passengers,
            ride.driven_m if ride is not None else None,
            remaining,
        )


def progress_of(state: VehicleState, area: Area) -> Progress | None:
    """The vehicle as the estimator sees it; None: on no trip, or not on its way."""
    ride, match, motion = state.ride, state.match, state.motion
    if ride is None or match is None or motion is None or ride.phase == DONE:
        return None
    found = area.of(ride)
    if found is None:
        return None
    return Progress(
        state.bus_id, found.instance, motion.fixed_at_ms, match.along_m, match.offset_m, ride.next_stop, motion.speed_mps,
        ride.started_at_ms is not None,
    )  # fmt: skip


def _name(ride: Ride | None) -> tuple[str, str, str, float, bool] | None:
    return (ride.trip_id, ride.start_date, ride.given_by, ride.cost_s, ride.started_at_ms is None) if ride is not None else None


def _skipped(ride: Ride, progress: Progress, ahead: tuple[StopForecast, ...]) -> tuple[StopForecast, ...]:
    """The stops that were missed. Not those that lie ahead again: published arcs may go back a little, and the estimator has the word there."""
    pattern, first = progress.instance.trip.pattern, ahead[0].stop_sequence
    return tuple(
        StopForecast(stop_id, sequence, None, None, None, None, SKIPPED)
        for stop_id, sequence in zip(pattern.stop_ids, pattern.stop_sequences, strict=True)
        if sequence < first and sequence in ride.missed
    )


def _shown(state: VehicleState, age_ms: int) -> str:
    if age_ms >= OFFLINE_MS:
        return OFFLINE
    if age_ms >= STALE_MS:
        return STALE
    if state.ride is None:
        return DEADHEAD
    return OFF_ROUTE if state.watch.off_route.phase == OFF else state.ride.phase


def _settled_row(fix: Fix, state: VehicleState, verdict: str) -> TrackRow:
    ride, match = state.ride, state.match
    if verdict != OK:
        return _row(fix, verdict, fix.trip_id, fix.start_date, None, None, None)
    shown = _shown(state, 0)
    if ride is None or match is None:
        return _row(fix, verdict, None, None, None, None, shown)
    return _row(fix, verdict, ride.trip_id, ride.start_date, match.along_m, match.offset_m, shown)


def _row(
    fix: Fix, verdict: str, trip_id: str | None, start_date: str | None, along_m: float | None, offset_m: float | None, shown: str | None
) -> TrackRow:
    return TrackRow(
        fix.bus_id, fix.fixed_at_ms, fix.lat, fix.lon, fix.received_at_ms, fix.device_id, fix.source, verdict, fix.accuracy_m,
        fix.speed_mps, fix.bearing_deg, fix.seq, trip_id, start_date, along_m, offset_m, shown,
    )  # fmt: skip
