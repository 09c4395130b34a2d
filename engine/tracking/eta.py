"""When a bus will be where: arrivals with intervals at every remaining stop, learned link by link from the day itself.

`ArrivalModel` is the pure model of one area: no clock, no I/O, the same calls giving the same answers. A link is the way between two stops of
one route and direction; its ratio is observed over scheduled seconds, kept by a scalar Kalman filter each, with a common term per route and
direction that fades, a term for the gap to the leader, and holding at timepoints that is learned, not assumed. A bus that stands still although
it is early is waiting for its time: how far it waits is learned too. Recipe and measurements: docs/decisions/0020-arrivals.md.

It promises: times strictly increase along the trip, none lies in the past, p10 <= p50 <= p90, no value rather than an old one.
It refuses: fixes far off the shape, gaps and outliers as lessons. UTC ms outside, seconds inside; metres; delay positive = late.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import repeat
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from engine.events import StopForecast, TripForecast
from engine.tracking.pace import Pace, PaceConfig, Plan, Run, halt_class
from engine.tracking.spread import LEAST_S, MOVING, OVERDUE, PAUSED, STALLED, WAITING, Floats, Spread, SpreadConfig
from engine.tracking.timetable import TripInstance


class ArrivalConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Every constant of the forecast with unit and reason; those of learning stand in `PaceConfig` and `SpreadConfig`."""

    pace: PaceConfig = PaceConfig()
    spread: SpreadConfig = SpreadConfig()
    silent_s: Annotated[float, Meta(description="no forecast once the last fix is older: no value rather than an old one")] = 360.0
    start_least_s: Annotated[
        float, Meta(description="a bus still at its first stop past its time leaves this much after now at the earliest")
    ] = 20.0
    overdue_s: Annotated[
        tuple[float, float, float],
        Meta(description="past its departure by each of these a bus is in another class: the longer, the longer"),
    ] = (60.0, 180.0, 600.0)
    stalled_s: Annotated[float, Meta(description="standing so long though the timetable has it drive, nobody knows: p10-p90 widens")] = (
        480.0
    )
    stalled_most: Annotated[float, Meta(description="widest interval of such a bus, as a multiple of the learned one")] = 3.0
    recover_cap_s: Annotated[float, Meta(description="an early bus is expected to lose at most this much of it on the way")] = 600.0
    recover_s: Annotated[float, Meta(description="scheduled seconds over which it loses 63 % of that")] = 4_000.0
    late_least_s: Annotated[
        float, Meta(description="a bus later than this is expected to make up the share that late ones were seen to")
    ] = 60.0
    recover_most: Annotated[float, Meta(description="but never more than this share of the ride ahead")] = 0.5
    moving_s: Annotated[float, Meta(description="standing shorter than this counts as moving: one fix of noise at 10 s sampling")] = 20.0
    step_least_s: Annotated[float, Meta(description="least time between two stops: keeps the order strict")] = 1.0


class Progress(msgspec.Struct, frozen=True):
    """Where a vehicle is on its trip, after matching."""

    bus_id: str
    instance: TripInstance
    fixed_at_ms: int
    along_m: float  # on the trip's shape
    offset_m: float  # away from it
    stop_index: int  # of the next stop
    speed_mps: float | None
    departed: bool  # has left the first stop


class ArrivalModel:
    """The arrivals of one area. Feed it `observe` and `crossed` in time order of each vehicle, ask `forecast` at any time.

    State is dumped by parts (`agency`, `route:{id}`, `run:{bus}`), each only when it changed; an empty part means: drop it.
    """

    def __init__(self, config: ArrivalConfig | None = None) -> None:
        self.config = config or ArrivalConfig()
        self.pace = Pace(self.config.pace)
        self.spread = Spread(self.config.spread)
        self._agency_changed = False

    def observe(self, progress: Progress) -> None:
        """A settled fix of a vehicle on a trip, in time order of that vehicle; older ones and those off the shape are passed over."""
        plan = self.pace.plan(progress.instance.trip)
        run, fresh = self.pace.run(progress.bus_id, progress.instance)
        if fresh:
            self.spread.forget(progress.bus_id)
        at_s = progress.fixed_at_ms / 1000
        if at_s <= run.fixed_at_s or progress.offset_m > self.config.pace.offset_max_m:
            return
        self.pace.observe(progress.bus_id, run, plan, progress.instance.base_ms / 1000, at_s, progress.along_m, progress.departed)
        self._agency_changed = True

    def crossed(self, bus_id: str, instance: TripInstance, stop_index: int, at_ms: int, *, measured: bool) -> None:
        """The vehicle was at a stop then. `measured` False (a long gap filled in): nothing is learned from it."""
        if measured and self.pace.is_on(bus_id, instance):
            self._agency_changed |= self.spread.learn(bus_id, stop_index, at_ms / 1000)

    def forget(self, bus_id: str) -> None:
        """The vehicle is gone or off its trip: what was being measured on it is dropped, what was learned stays."""
        self.pace.forget(bus_id)
        self.spread.forget(bus_id)

    def forecast(self, progress: Progress, now_ms: int, *, learn: bool = True) -> TripForecast | None:
        """Arrivals at all remaining stops as seen at `now_ms`; None at the end of the trip or when the last fix is over `silent_s` old.

        With `learn` the forecast is kept, at most every 30 s, to be judged when its stops are crossed; without, nothing changes at all.
        """
        told = self.foresee(progress, now_ms, learn=learn)
        return None if told is None else self._published(progress, now_ms, *told)

    def foresee(self, progress: Progress, now_ms: int, *, learn: bool = True) -> tuple[int, Floats, Floats | None] | None:
        """The numbers of `forecast`: index of the first remaining stop, [p10, p50, p90] in seconds from now, waits there (None: no waits)."""
        now_s = now_ms / 1000
        if now_s - progress.fixed_at_ms / 1000 > self.config.silent_s:
            return None
        instance = progress.instance
        plan = self.pace.plan(instance.trip)
        first = max(1, bisect_right(plan.stops_m, progress.along_m))
        if first >= plan.n:
            return None
        run = self.pace.runs.get(progress.bus_id)
        if run is None or run.trip_id != instance.trip.trip_id or run.start_date != instance.start_date:
            run = Run(instance.trip.trip_id, instance.start_date)
        state, horizons, waits, late, wider = self._expect(plan, run, progress, first, now_s)
        if learn and self.spread.due(progress.bus_id, now_s):
            self.spread.keep(progress.bus_id, now_s, state, first, horizons, late=late)
        offsets = self.spread.offsets(state, horizons)
        if wider != 1.0:
            offsets[0] += (wider - 1.0) * (offsets[0] - offsets[1])
            offsets[2] += (wider - 1.0) * (offsets[2] - offsets[1])
        return first, self._ordered(plan, horizons, offsets), waits

    def _expect(self, plan: Plan, run: Run, progress: Progress, first: int, now_s: float) -> tuple[int, Floats, Floats | None, bool, float]:
        """State, expected seconds from now to each remaining stop (some may be past: the spread knows how long those take), expected waits
        there (None: no waits), whether it is so late that it is expected to make up for some of it, and how many times wider the interval
        is than learned."""
        c, pace = self.config, self.pace
        base_s, at_s, along_m = progress.instance.base_ms / 1000, progress.fixed_at_ms / 1000, progress.along_m
        link = first - 1
        seconds = plan.seconds[link:].copy()
        late0, wider = 0.0, 1.0
        if not progress.departed:
            leaves_s = base_s + plan.leaves_s
            start = max(leaves_s - now_s, c.start_least_s)
            state = WAITING if now_s < leaves_s else OVERDUE + sum(now_s - leaves_s >= limit for limit in c.overdue_s)
        else:
            seconds[0] *= min(1.0, (plan.stops_m[first] - along_m) / float(plan.length_m[link]))
            moved = along_m >= run.moved_to_m + c.pace.progress_m or (run.moved_at_s == at_s)
            stood_s = 0.0 if moved else at_s - run.moved_at_s
            if stood_s < c.moving_s:
                state = MOVING
                start = at_s - now_s if moved else (at_s - now_s) / 2
            else:
                start = (at_s - now_s) / 2
                patience = halt_class(stood_s)
                state = PAUSED + patience
                due_s = base_s + plan.leaves_at(along_m, c.pace.hold_reach_m)
                late0 = pace.halt_wait(patience, base_s + plan.scheduled_at(along_m) - now_s)
                stalled_s = now_s - max(run.moved_at_s, due_s)
                if stalled_s >= c.stalled_s:
                    state, wider = STALLED, min(stalled_s / c.stalled_s, c.stalled_most)
        elapsed_s = float(plan.elapsed_s[first]) - float(seconds[0])
        travel = pace.multipliers(plan, link, elapsed_s, now_s)
        travel *= seconds
        travel[0] += start / run.gap
        arrive: Floats = np.add.accumulate(travel)
        arrive *= run.gap
        early_s = base_s + plan.arrivals[first] - now_s - float(arrive[0])
        late = False
        if early_s > 0 or -early_s > c.late_least_s:
            ahead = plan.elapsed_s[first:] - elapsed_s
            relief = min(max(early_s, -c.recover_cap_s), c.recover_cap_s) * np.expm1(ahead / -c.recover_s)
            if early_s > 0:
                arrive -= relief
            else:
                late = True
                if self.spread.recovery:
                    arrive -= np.minimum(self.spread.recovery * relief, c.recover_most * (arrive - arrive[0]))
        if late0:
            arrive += late0
        waits = pace.hold(plan, first, arrive, base_s - now_s)
        if arrive[0] < LEAST_S:
            np.maximum(arrive, LEAST_S, out=arrive)
        return state, arrive, waits, late, wider

    def _ordered(self, plan: Plan, horizons: Floats, offsets: Floats) -> Floats:
        """Quantiles in order, none in the past, strictly increasing; seconds from now."""
        n, least = len(horizons), self.config.step_least_s
        low, middle, high = quantiles = horizons + offsets
        np.maximum(middle, least, out=middle)
        np.minimum(low, middle, out=low)
        np.maximum(high, middle, out=high)
        np.maximum(low, least, out=low)
        ladder = plan.ladder[:n] if least == 1.0 else plan.ladder[:n] * least
        quantiles -= ladder
        np.maximum.accumulate(quantiles, axis=1, out=quantiles)
        quantiles += ladder
        return quantiles

    def _published(self, progress: Progress, now_ms: int, first: int, quantiles: Floats, waits: Floats | None) -> TripForecast:
        """As records."""
        plan = self.pace.plan(progress.instance.trip)
        times = (quantiles * 1000.0).astype(np.int64)
        times += now_ms
        p10, p50, p90 = times.tolist()
        instance = progress.instance
        leaves = p50 if waits is None else (times[1] + (waits * 1000.0).astype(np.int64)).tolist()
        delays = ((times[1] - instance.base_ms) // 1000 - plan.arrival_whole_s[first:]).tolist()
        pattern = instance.trip.pattern
        ids, sequences = pattern.stop_ids[first:], pattern.stop_sequences[first:]
        stops = tuple(map(StopForecast, ids, sequences, p10, p50, p90, delays, repeat("ESTIMATED"), leaves))
        return TripForecast(progress.bus_id, instance.trip.trip_id, instance.start_date, pattern.route_id, now_ms, stops)

    def dump(self, *, everything: bool = False) -> dict[str, bytes]:
        """The parts that changed since the last dump (or all there is), msgpack; b"" = drop that part."""
        parts = self.pace.dump(everything=everything)
        if self._agency_changed or everything:
            parts["agency"] = msgspec.msgpack.encode((self.pace.agency(), self.spread.state()))
            self._agency_changed = False
        return parts

    def load(self, parts: Mapping[str, bytes]) -> None:
        """Take up what `dump` said, all parts of it; what was learned before the call is forgotten. Unknown keys raise ValueError."""
        self.pace = Pace(self.config.pace)
        self.spread = Spread(self.config.spread)
        self._agency_changed = False
        for key in sorted(parts):
            if not parts[key]:
                continue
            if key == "agency":
                agency, spread = msgspec.msgpack.decode(parts[key], type=tuple[list[float], tuple[list[float], list[float], list[float]]])
                self.pace.restore_agency(agency)
                self.spread.restore(*spread)
            else:
                self.pace.restore(key, parts[key])

    def new_day(self) -> None:
        """Call it in the night, once: yesterday is known with less certainty from here on."""
        self.pace.new_day()
        self._agency_changed = True

    def inherit(self, parts: Mapping[str, bytes]) -> None:
        """Begin a day from what an earlier one learned (a full dump, or `lessons.learn_from`): links, holds and halts count, with less
        certainty; its vehicles, gaps and passing deviations do not, and neither does how wrong it was: a day learns that anew, sooner than
        it unlearns it. Several days: call it for each, oldest first."""
        earlier = ArrivalModel(self.config)
        earlier.load({key: part for key, part in parts.items() if not key.startswith("run:")})
        self.pace.inherit(earlier.pace)
        self._agency_changed = True
