"""How long the ways between stops take: what one area has learned of its links, gaps and waits, and where each vehicle is being measured.

A chunk of driving (an anchor fix to a later one that covers a minute of timetable) is one observation of the ratios of the links under it:
a diagonal Kalman filter, one scalar a link, with a term common to route and direction. Full covariance between links gained nothing.
Seconds since 1970 as floats, metres along the trip's shape, ratios observed / scheduled. Nothing here forgets within a day.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from engine.tracking.timetable import Trip, TripInstance

Floats = NDArray[np.float64]
_GROWTH = 512  # links the arrays grow by


class PaceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Constants of learning; units last in the name."""

    offset_max_m: Annotated[float, Meta(description="a fix further off the shape says nothing about its links")] = 60.0
    progress_m: Annotated[float, Meta(description="advance that counts as having moved: above the noise of a standing receiver")] = 15.0
    chunk_least_m: Annotated[float, Meta(description="shorter chunks are position noise")] = 50.0
    chunk_least_s: Annotated[float, Meta(description="scheduled seconds of a chunk: below a minute noise wins")] = 60.0
    gap_max_s: Annotated[float, Meta(description="a silence longer than this starts a new anchor")] = 200.0
    age_max_s: Annotated[float, Meta(description="so does an anchor older than this: a standing bus says nothing about its road")] = 600.0
    start_m: Annotated[float, Meta(description="within this of the first stop the bus may still be waiting")] = 100.0
    link_least_s: Annotated[float, Meta(description="least scheduled seconds of a link: feeds give 0 between near stops")] = 5.0
    prior_variance: Annotated[float, Meta(description="of a link's ratio before it is driven: 0.45 squared")] = 0.2025
    common_variance: Annotated[float, Meta(description="of the common term of a route and direction: 0.05 squared")] = 0.0025
    common_tau_s: Annotated[float, Meta(description="the common term's deviation decays with this: half an hour of traffic")] = 2_400.0
    agency_rate: Annotated[float, Meta(description="step of the agency's slow mean")] = 0.0003
    ratio_least: Annotated[float, Meta(description="least multiplier of a scheduled time")] = 0.3
    ratio_most: Annotated[float, Meta(description="largest multiplier of a scheduled time")] = 3.0
    noise_s: Annotated[float, Meta(description="standard deviation of a chunk whatever its length: position and dwell")] = 25.0
    noise_share_s: Annotated[float, Meta(description="its variance grows by this times the scheduled seconds")] = 9.0
    hold_doubt: Annotated[float, Meta(description="variance of an assumed hold as a share of its square")] = 0.25
    clip_sigma: Annotated[float, Meta(description="an innovation counts up to this many sigma")] = 3.0
    drop_sigma: Annotated[float, Meta(description="and not at all beyond these: a wrong trip, not traffic")] = 15.0
    gap_weight: Annotated[float, Meta(description="slowing for the log of gap over scheduled gap: more passengers wait")] = 0.06
    gap_least_s: Annotated[float, Meta(description="scheduled gaps count as at least this")] = 120.0
    hold_reach_m: Annotated[float, Meta(description="a bus that waits at a stop may stand this far past it")] = 40.0
    hold_least_s: Annotated[float, Meta(description="earlier by less is on time: nobody waits")] = 20.0
    hold_most_s: Annotated[float, Meta(description="earlier by more is another matter than holding")] = 900.0
    hold_start: Annotated[float, Meta(description="share of its earliness a bus waits at a timepoint before any was seen")] = 0.5
    hold_prior_s2: Annotated[float, Meta(description="weight of the agency's mean share at a stop: one hold of 200 s")] = 40_000.0
    halt_least_s: Annotated[float, Meta(description="a bus that stands and is early by less is not waiting for its time")] = 30.0
    halt_start: Annotated[tuple[float, ...], Meta(description="share of its earliness that a standing bus waits, before any was seen")] = (
        0.3,
        0.4,
        0.5,
        0.6,
    )
    halt_prior_s2: Annotated[float, Meta(description="weight of that start: three halts of 300 s")] = 270_000.0
    halt_most_s: Annotated[float, Meta(description="longest wait expected of a standing bus")] = 1_800.0
    halt_every_s: Annotated[float, Meta(description="a halt is sampled at most this often, whatever the rate of fixes")] = 20.0
    history_variance: Annotated[
        float, Meta(description="least variance of a ratio taken from an earlier day: days differ by about 0.2")
    ] = 0.04
    plans_max: Annotated[int, Meta(description="trips whose arrays are kept ready")] = 20_000


STANDING_S = (45.0, 90.0, 240.0)  # standing longer than each of these is another class of patience


def halt_class(stood_s: float) -> int:
    """Class of patience, 0 to 3, of a bus that has stood that long."""
    return sum(stood_s > limit for limit in STANDING_S)


class Plan:
    """The arrays of one trip, read only. Index i is a stop, link i leads from stop i to i + 1; seconds from the service day's start."""

    __slots__ = (
        "along_m", "arrival_s", "arrival_whole_s", "arrivals", "common", "departure_s", "departures", "direction", "elapsed", "elapsed_s",
        "fading", "holds", "ladder", "leaves_s", "length_m", "links", "n", "route", "seconds", "stops_m", "trip",
    )  # fmt: skip

    def __init__(self, trip: Trip, links: NDArray[np.intp], config: PaceConfig) -> None:
        pattern = trip.pattern
        self.trip, self.links, self.n = trip, links, len(pattern.stop_ids)
        self.route, self.direction = pattern.route_id, pattern.direction_id
        self.common = (pattern.route_id, pattern.direction_id)
        self.along_m: Floats = np.asarray(pattern.along_m, dtype=np.float64)
        self.length_m: Floats = np.maximum(np.diff(self.along_m), 1.0)
        self.arrival_whole_s = np.array(trip.arrival_s, dtype=np.int64)
        self.arrival_s: Floats = self.arrival_whole_s.astype(np.float64)
        self.departure_s: Floats = np.array(trip.departure_s, dtype=np.float64)
        self.leaves_s = float(self.departure_s[0])
        self.seconds: Floats = np.maximum(self.arrival_s[1:] - self.departure_s[:-1], config.link_least_s)
        self.elapsed_s: Floats = np.concatenate(([0.0], np.cumsum(self.seconds)))
        self.fading: Floats = np.exp(self.elapsed_s / -config.common_tau_s)
        self.stops_m: list[float] = self.along_m.tolist()  # single values: bisect on a list costs a tenth of searchsorted and interp
        self.arrivals: list[float] = self.arrival_s.tolist()
        self.departures: list[float] = self.departure_s.tolist()
        self.elapsed: list[float] = self.elapsed_s.tolist()
        self.ladder: Floats = np.arange(self.n, dtype=np.float64)
        self.holds: list[int] = _hold_stops(trip)

    def elapsed_at(self, along_m: float) -> float:
        """Scheduled driving seconds from the first stop to there."""
        stops, elapsed = self.stops_m, self.elapsed
        at = bisect_right(stops, along_m)
        if at == 0:
            return elapsed[0]
        if at == self.n:
            return elapsed[-1]
        low_m, low_s = stops[at - 1], elapsed[at - 1]
        return (elapsed[at] - low_s) / (stops[at] - low_m) * (along_m - low_m) + low_s

    def scheduled_at(self, along_m: float) -> float:
        """When the timetable has the bus there, seconds from the service day's start."""
        link = min(max(bisect_right(self.stops_m, along_m) - 1, 0), self.n - 2)
        share = min(max((along_m - self.stops_m[link]) / float(self.length_m[link]), 0.0), 1.0)
        leaves_s = self.departures[link]
        return leaves_s + share * (self.arrivals[link + 1] - leaves_s)

    def leaves_at(self, along_m: float, reach_m: float) -> float:
        """From when on the timetable has the bus drive on from there, seconds from the service day's start: at a stop, its departure."""
        link = bisect_right(self.stops_m, along_m) - 1
        for stop in (link + 1, link):
            if 0 <= stop < self.n and abs(self.stops_m[stop] - along_m) <= reach_m:
                return self.departures[stop]
        return self.scheduled_at(along_m)


def _hold_stops(trip: Trip) -> list[int]:
    """Where drivers may wait for their time: the feed's timepoints, else stops with whole-minute times where these are rare; and scheduled
    waits of a minute or more. Never the first or the last stop."""
    n = len(trip.arrival_s)
    named = [i for i in range(n) if trip.pattern.timepoint[i]]
    whole = [i for i in range(n) if trip.departure_s[i] % 60 == 0]
    chosen = set(named if 0 < len(named) < n else whole if len(whole) < 0.4 * n else ())
    chosen.update(i for i in range(n) if trip.departure_s[i] - trip.arrival_s[i] >= 60)
    return sorted(chosen - {0, n - 1})


def _stops_between(plan: Plan, from_m: float, to_m: float) -> list[int]:
    """Hold stops with from_m < position <= to_m."""
    return [stop for stop in plan.holds if from_m < plan.stops_m[stop] <= to_m]


class Run(msgspec.Struct, array_like=True):
    """One vehicle on one trip, as far as measuring it needs. -1 seconds: not yet."""

    trip_id: str
    start_date: str
    fixed_at_s: float = -1.0
    along_m: float = 0.0
    moved_at_s: float = -1.0  # last progress
    moved_to_m: float = -1e9
    anchor_at_s: float = -1.0
    anchor_m: float = 0.0
    departed: bool = False  # at the last progress
    gap: float = 1.0  # multiplier for the gap to the leader
    stood_at_s: list[float] = []  # fixes since then without progress


class Pace:
    """All links, common terms, leaders, holds and halts of one area, and its runs."""

    def __init__(self, config: PaceConfig | None = None) -> None:
        self.config = config or PaceConfig()
        c = self.config
        self.runs: dict[str, Run] = {}
        self._plans: dict[str, Plan] = {}
        self._ratio: Floats = np.empty(0)
        self._variance: Floats = np.empty(0)
        self._routes: dict[str, dict[tuple[int, str, str], int]] = {}  # route -> (direction, from, to) -> place in the arrays
        self._links = 0
        self._common: dict[tuple[str, int], tuple[float, float]] = {}  # (route, direction) -> deviation, at_s
        self._mean = 0.0
        self._leaders: dict[tuple[str, int, str], tuple[float, float, str]] = {}  # (route, direction, stop) -> at_s, scheduled, bus
        self._holds: dict[tuple[str, int, str], tuple[float, float]] = {}  # sums of weight * share, weight
        self._hold_all = (c.hold_start * c.hold_prior_s2, c.hold_prior_s2)
        self._halts = [(share * c.halt_prior_s2, c.halt_prior_s2) for share in c.halt_start]
        self._changed: dict[str, None] = {}  # keys of parts, in order of change

    # -- reading ------------------------------------------------------------------------------------------------------------------------

    def plan(self, trip: Trip) -> Plan:
        """The arrays of a trip, made once."""
        plan = self._plans.get(trip.trip_id)
        if plan is None or plan.trip is not trip:
            if len(self._plans) >= self.config.plans_max:
                self._plans.clear()
            pattern = trip.pattern
            links = [
                self._link(pattern.route_id, (pattern.direction_id, a, b))
                for a, b in zip(pattern.stop_ids, pattern.stop_ids[1:], strict=False)
            ]
            plan = self._plans[trip.trip_id] = Plan(trip, np.array(links, dtype=np.intp), self.config)
        return plan

    def _link(self, route: str, key: tuple[int, str, str]) -> int:
        links = self._routes.setdefault(route, {})
        place = links.get(key)
        if place is None:
            place = links[key] = self._links
            self._links += 1
            if place >= len(self._ratio):
                self._ratio = np.concatenate((self._ratio, np.ones(_GROWTH)))
                self._variance = np.concatenate((self._variance, np.full(_GROWTH, self.config.prior_variance)))
        return place

    def multipliers(self, plan: Plan, link: int, elapsed_s: float, now_s: float) -> Floats:
        """Observed over scheduled seconds of the links from `link` on, for a bus `elapsed_s` of timetable from its first stop."""
        c = self.config
        factor = self._ratio.take(plan.links[link:])
        held = self._common.get(plan.common)
        if held is None:
            factor += self._mean
        else:  # the deviation fades with the time until the bus gets there
            deviation = held[0] * math.exp((min(0.0, held[1] - now_s) + elapsed_s) / c.common_tau_s)
            factor += plan.fading[link + 1 :] * deviation + self._mean
        np.maximum(factor, c.ratio_least, out=factor)
        return np.minimum(factor, c.ratio_most, out=factor)

    def hold(self, plan: Plan, first: int, arrive_s: Floats, shift_s: float) -> Floats | None:
        """Add the waits of an early bus to the arrivals behind them (in place); the wait at each stop, or None where there is none.

        `arrive_s` is on the caller's clock, the timetable's seconds plus `shift_s` are too.
        """
        waits: Floats | None = None
        for stop in plan.holds:
            if stop < first:
                continue
            early_s = plan.departures[stop] + shift_s - float(arrive_s[stop - first])
            if early_s > self.config.hold_least_s:
                wait_s = self._hold_share(plan, stop) * min(early_s, self.config.hold_most_s)
                arrive_s[stop - first + 1 :] += wait_s
                if waits is None:
                    waits = np.zeros(len(arrive_s))
                waits[stop - first] = wait_s
        return waits

    def halt_wait(self, patience: int, early_s: float) -> float:
        """Seconds that a bus standing now and early by `early_s` goes on standing; 0 for one that is not early."""
        if early_s <= self.config.halt_least_s:
            return 0.0
        total, weight = self._halts[patience]
        return min(total / weight * early_s, self.config.halt_most_s)

    def _hold_share(self, plan: Plan, stop: int) -> float:
        mean = self._hold_all[0] / self._hold_all[1]
        total, weight = self._holds.get((plan.route, plan.direction, plan.trip.pattern.stop_ids[stop]), (0.0, 0.0))
        prior = self.config.hold_prior_s2
        return (prior * mean + total) / (prior + weight)

    # -- runs ---------------------------------------------------------------------------------------------------------------------------

    def run(self, bus_id: str, instance: TripInstance) -> tuple[Run, bool]:
        """The vehicle's run on this trip; True where it has just begun."""
        if self.is_on(bus_id, instance):
            return self.runs[bus_id], False
        run = self.runs[bus_id] = Run(instance.trip.trip_id, instance.start_date)
        return run, True

    def is_on(self, bus_id: str, instance: TripInstance) -> bool:
        run = self.runs.get(bus_id)
        return run is not None and run.trip_id == instance.trip.trip_id and run.start_date == instance.start_date

    def forget(self, bus_id: str) -> None:
        if self.runs.pop(bus_id, None) is not None:
            self._changed["run:" + bus_id] = None

    # -- learning -----------------------------------------------------------------------------------------------------------------------

    def observe(self, bus_id: str, run: Run, plan: Plan, base_s: float, at_s: float, along_m: float, departed: bool) -> None:
        """One fix on the shape, later than the last one."""
        c = self.config
        self._changed["run:" + bus_id] = None
        along_m = max(along_m, run.along_m) if run.fixed_at_s >= 0 else along_m
        silent = run.fixed_at_s >= 0 and at_s - run.fixed_at_s > c.gap_max_s
        moved = along_m >= run.moved_to_m + c.progress_m
        waited = False
        if moved:
            if run.moved_at_s >= 0:
                self._meet(bus_id, run, plan, base_s, at_s, along_m)
                waited = departed and run.departed and self._halt(run, plan, base_s, at_s, along_m)
            run.moved_at_s, run.moved_to_m, run.departed, run.stood_at_s = at_s, along_m, departed, []
        elif at_s - (run.stood_at_s[-1] if run.stood_at_s else run.moved_at_s) >= c.halt_every_s:
            run.stood_at_s.append(at_s)
            if len(run.stood_at_s) > 120:
                del run.stood_at_s[::2]
        run.fixed_at_s, run.along_m = at_s, along_m
        stale = silent or run.anchor_at_s < 0 or at_s - run.anchor_at_s > c.age_max_s
        if waited and _stops_between(plan, run.anchor_m - c.hold_reach_m, along_m - c.hold_reach_m):
            waited = False  # at a timepoint: the chunk says how much of it was holding
        if stale or waited or not departed or along_m < plan.along_m[0] + c.start_m:
            run.anchor_at_s, run.anchor_m = at_s, along_m
        elif (
            moved
            and along_m - run.anchor_m > c.chunk_least_m
            and plan.elapsed_at(along_m) - plan.elapsed_at(run.anchor_m) >= c.chunk_least_s
        ):
            from_s, from_m = run.anchor_at_s, run.anchor_m
            run.anchor_at_s, run.anchor_m = at_s, along_m
            self._chunk(run, plan, base_s, (from_s, from_m), (at_s, along_m))

    def _meet(self, bus_id: str, run: Run, plan: Plan, base_s: float, at_s: float, along_m: float) -> None:
        """Stops passed since the last progress: how far ahead was the leader, against the timetable."""
        c = self.config
        from_s, from_m = run.moved_at_s, run.moved_to_m
        if at_s - from_s > 300:
            return
        stops = plan.stops_m
        first = bisect_right(stops, from_m)
        for stop in range(first, bisect_right(stops, along_m, first)):
            passed_s = from_s + (at_s - from_s) * (stops[stop] - from_m) / (along_m - from_m)
            scheduled_s = base_s + plan.arrivals[stop]
            key = (plan.route, plan.direction, plan.trip.pattern.stop_ids[stop])
            leader = self._leaders.get(key)
            if leader is not None and leader[2] != bus_id and 0 < passed_s - leader[0] < 7_200 and scheduled_s > leader[1]:
                gap = math.log(max(1.0, passed_s - leader[0]) / max(c.gap_least_s, scheduled_s - leader[1]))
                run.gap = 1 + c.gap_weight * min(max(gap, -1.5), 0.7)
            self._leaders[key] = (passed_s, scheduled_s, bus_id)
            self._changed["route:" + plan.route] = None

    def _halt(self, run: Run, plan: Plan, base_s: float, at_s: float, along_m: float) -> bool:
        """A bus moves on: had it stood and been early, how much of its earliness did it wait? True when it waited a minute or more."""
        c = self.config
        if not run.stood_at_s or at_s - run.moved_at_s > 3_600:
            return False
        due_s = base_s + plan.scheduled_at(run.moved_to_m)
        travel_s = plan.elapsed_at(along_m) - plan.elapsed_at(run.moved_to_m)
        divisor = max(1.0, len(run.stood_at_s) / 2)  # samples of one halt are not independent
        for stood_s in run.stood_at_s:
            early_s = due_s - stood_s
            if early_s > c.halt_least_s:
                patience = halt_class(stood_s - run.moved_at_s)
                share = min(max((at_s - travel_s - stood_s) / early_s, 0.0), 1.3)
                weight = min(early_s, 600.0) ** 2 / divisor
                total, weights = self._halts[patience]
                self._halts[patience] = (total + weight * share, weights + weight)
        return due_s - run.moved_at_s > 60 and at_s - run.moved_at_s - travel_s > 60

    def _chunk(self, run: Run, plan: Plan, base_s: float, start: tuple[float, float], end: tuple[float, float]) -> None:
        """One observation: the Kalman step of its links, of the common term and of the agency's mean, and of a hold inside it."""
        c = self.config
        (from_s, from_m), (at_s, along_m) = start, end
        first = max(0, int(np.searchsorted(plan.along_m, from_m, "right")) - 1)
        last = min(plan.n - 1, int(np.searchsorted(plan.along_m, along_m, "left")))
        links = plan.links[first:last]
        covered = np.minimum(plan.along_m[first + 1 : last + 1], along_m) - np.maximum(plan.along_m[first:last], from_m)
        scheduled = plan.seconds[first:last] * np.maximum(covered, 0.0) / plan.length_m[first:last]
        total_s = float(scheduled.sum())
        h = scheduled * run.gap
        deviation = self._deviation(plan, at_s)
        factor = np.clip(self._ratio[links] + (self._mean + deviation), c.ratio_least, c.ratio_most)
        travel = h * factor
        travel_s = float(travel.sum())
        stops = _stops_between(plan, from_m - c.hold_reach_m, along_m - c.hold_reach_m)
        held = self._held(plan, stops, first, base_s, from_s, travel)
        hold_s = sum(self._hold_share(plan, stop) * early_s for stop, early_s in held)
        doubt = c.noise_s**2 + c.noise_share_s * total_s
        noise = doubt + c.hold_doubt * hold_s * hold_s
        variance = self._variance[links]
        h_sum = float(h.sum())
        spread = float((h * h * variance).sum()) + h_sum * h_sum * c.common_variance + noise
        innovation = at_s - from_s - hold_s - travel_s
        sigma = math.sqrt(spread)
        if abs(innovation) > c.drop_sigma * sigma:
            return
        if len(held) == 1:
            self._learn_hold(plan, held[0], at_s - from_s - travel_s, doubt)
        clipped = min(max(innovation, -c.clip_sigma * sigma), c.clip_sigma * sigma)
        gain = variance * h / spread
        self._ratio[links] += gain * clipped
        self._variance[links] = np.maximum(variance - gain * variance * h, 1e-6)
        self._common[plan.common] = (deviation + c.common_variance * h_sum / spread * clipped, at_s)
        self._mean += c.agency_rate * min(max(innovation / total_s, -1.0), 1.0) * min(1.0, total_s / 120)
        self._changed["route:" + plan.route] = None

    def _deviation(self, plan: Plan, at_s: float) -> float:
        held = self._common.get(plan.common)
        return 0.0 if held is None else held[0] * math.exp(min(0.0, held[1] - at_s) / self.config.common_tau_s)

    def _held(self, plan: Plan, stops: list[int], first: int, base_s: float, from_s: float, travel: Floats) -> list[tuple[int, float]]:
        """Of the stops in a chunk, those where the bus may have waited, with how early it came there."""
        found = []
        for stop in stops:
            early_s = base_s + float(plan.departure_s[stop]) - from_s - float(travel[: max(0, stop - first)].sum())
            if early_s > self.config.hold_least_s:
                found.append((stop, min(early_s, self.config.hold_most_s)))
        return found

    def _learn_hold(self, plan: Plan, held: tuple[int, float], waited_s: float, doubt: float) -> None:
        stop, early_s = held
        share = min(max(waited_s / early_s, -0.5), 1.5)
        weight = min(early_s, 300.0) ** 2 * 900 / doubt  # a chunk whose driving is in more doubt says less
        key = (plan.route, plan.direction, plan.trip.pattern.stop_ids[stop])
        total, weights = self._holds.get(key, (0.0, 0.0))
        self._holds[key] = (total + weight * share, weights + weight)
        self._hold_all = (self._hold_all[0] + weight * share, self._hold_all[1] + weight)

    # -- keeping ------------------------------------------------------------------------------------------------------------------------

    def agency(self) -> list[float]:
        """Mean, hold sums, halt sums: what the whole area shares."""
        return [self._mean, *self._hold_all, *(value for pair in self._halts for value in pair)]

    def restore_agency(self, values: list[float]) -> None:
        if len(values) == 3 + 2 * len(self._halts):
            self._mean, self._hold_all = values[0], (values[1], values[2])
            self._halts = [(values[3 + 2 * i], values[4 + 2 * i]) for i in range(len(self._halts))]

    def dump(self, *, everything: bool = False) -> dict[str, bytes]:
        """Parts changed since the last dump, or all there is."""
        parts = {}
        if everything:
            self._changed = {"route:" + route: None for route in self._routes} | {"run:" + bus_id: None for bus_id in self.runs}
        for key in self._changed:
            kind, _, name = key.partition(":")
            if kind == "run":
                run = self.runs.get(name)
                parts[key] = b"" if run is None else msgspec.msgpack.encode(run)
            else:
                parts[key] = msgspec.msgpack.encode(self._route(name))
        self._changed = {}
        return parts

    def _route(self, route: str) -> _Route:
        links = [
            (*key, float(self._ratio[place]), float(self._variance[place]))
            for key, place in self._routes.get(route, {}).items()
            if self._variance[place] != self.config.prior_variance
        ]
        return _Route(
            links,
            [(d, *held) for (r, d), held in self._common.items() if r == route],
            [(d, stop, *leader) for (r, d, stop), leader in self._leaders.items() if r == route],
            [(d, stop, *sums) for (r, d, stop), sums in self._holds.items() if r == route],
        )

    def restore(self, key: str, part: bytes) -> None:
        """One part of a dump. Raises ValueError for a key that is none of ours."""
        kind, _, name = key.partition(":")
        if kind == "run":
            self.runs[name] = msgspec.msgpack.decode(part, type=Run)
        elif kind == "route":
            kept = msgspec.msgpack.decode(part, type=_Route)
            for direction, a, b, ratio, variance in kept.links:
                place = self._link(name, (direction, a, b))
                self._ratio[place], self._variance[place] = ratio, variance
            self._common.update({(name, d): (deviation, at_s) for d, deviation, at_s in kept.common})
            self._leaders.update({(name, d, stop): (at_s, due_s, bus) for d, stop, at_s, due_s, bus in kept.leaders})
            self._holds.update({(name, d, stop): (total, weight) for d, stop, total, weight in kept.holds})
        else:
            raise ValueError(f"no part of an arrival model is called {key!r}")

    def new_day(self) -> None:
        """A night lies between: links are as uncertain as an earlier day leaves them, and what was learned of waiting counts half. Without
        it a filter that never forgets would learn nothing more after some weeks."""
        for route, links in self._routes.items():
            places = list(links.values())
            self._variance[places] = np.maximum(self._variance[places], self.config.history_variance)
            self._changed["route:" + route] = None
        self._holds = {key: (total / 2, weight / 2) for key, (total, weight) in self._holds.items()}
        self._hold_all = (self._hold_all[0] / 2, self._hold_all[1] / 2)
        self._halts = [(total / 2, weight / 2) for total, weight in self._halts]

    def inherit(self, earlier: Pace) -> None:
        """Links, holds and halts of an earlier day. Where this one has seen a link too, the two ratios are weighed by their variances."""
        for route, links in earlier._routes.items():
            for key, place in links.items():
                variance = max(float(earlier._variance[place]), self.config.history_variance)
                if variance >= self.config.prior_variance:
                    continue
                mine = self._link(route, key)
                share = float(self._variance[mine]) / (float(self._variance[mine]) + variance)
                self._ratio[mine] += share * (earlier._ratio[place] - self._ratio[mine])
                self._variance[mine] = max(share * variance, self.config.history_variance)
            self._changed["route:" + route] = None
        self._mean, self._hold_all, self._halts = earlier._mean, earlier._hold_all, list(earlier._halts)
        self._holds.update(earlier._holds)


class _Route(msgspec.Struct, array_like=True):
    """A route's part of a dump."""

    links: list[tuple[int, str, str, float, float]]  # direction, from, to, ratio, variance
    common: list[tuple[int, float, float]]
    leaders: list[tuple[int, str, float, float, str]]
    holds: list[tuple[int, str, float, float]]
