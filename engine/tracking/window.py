"""One vehicle of an area with its window of three seconds: the settled state, and above it the fixes that may still be joined by late ones.

In order, which is nearly always, a fix is folded once: the state after each fix of the window is kept, so settling only lets go of the
oldest. A fix that comes late inside the window is put in its place, and those after it are folded again.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

import msgspec

from engine.events import Event, StopForecast
from engine.tracking.assign import Name
from engine.tracking.boarding import displaced, left
from engine.tracking.fix import FUTURE, FUTURE_MAX_MS, LATE, ClockSkew, Fix
from engine.tracking.silence import Silence
from engine.tracking.vehicle import Area, Said, VehicleState, advance
from engine.tracking.watch import QUIET

RECENT = 16  # keys kept with a vehicle across restarts, to know its duplicates

Place = tuple[int, int, int]  # fixed_at_ms, latitude and longitude in millionths of a degree


class Folded(NamedTuple):
    """A fix inside the window, the state after it, and what it will say."""

    fix: Fix
    state: VehicleState
    said: Said


def time_order(fix: Fix) -> tuple[int, float, float]:
    """By time, and in one fixed order where times are equal."""
    return fix.fixed_at_ms, fix.lat, fix.lon


def _folded_order(folded: Folded) -> tuple[int, float, float]:
    return time_order(folded.fix)


class Kept(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A vehicle as Redis keeps it: the fixes inside the window are folded again when it is taken up."""

    base: VehicleState
    settled_at_ms: int
    pending: list[Fix]
    clocks: list[ClockSkew]
    recent: list[Place]
    shown: str | None
    forecast_at_ms: int
    forecast_trip: tuple[str, str, str] | None
    forecast_stop: int
    next_stop: StopForecast | None
    heard_ms: int
    silence: Silence | None = None


class Vehicle:
    """The settled state, the window above it, and what watchers were told last."""

    __slots__ = (
        "base",
        "clocks",
        "due_ms",
        "forecast_at_ms",
        "forecast_stop",
        "forecast_trip",
        "heard_ms",
        "known_ms",
        "next_stop",
        "pending",
        "recent",
        "sampled_ms",
        "settled_at_ms",
        "shown",
        "silence",
    )

    def __init__(self, bus_id: str) -> None:
        self.base = VehicleState(bus_id)
        self.settled_at_ms = 0  # time of the newest fix that has settled
        self.pending: list[Folded] = []
        self.clocks: dict[str, ClockSkew] = {}
        self.recent: list[Place] = []
        self.known_ms = 0  # time of the newest fix that was ever remembered; 0: of none. A later one is no duplicate
        self.shown: str | None = None  # state as told last; None: not in the live picture
        self.forecast_at_ms = 0
        self.forecast_trip: tuple[str, str, str] | None = None  # trip_id, start_date, route_id that a forecast stands for
        self.forecast_stop = -1
        self.next_stop: StopForecast | None = None
        self.due_ms = 0  # a tick before this has nothing to do here
        self.heard_ms = 0  # last receipt of anything
        self.silence: Silence | None = None  # an open episode
        self.sampled_ms = 0  # when a forecast was last kept for the record; not kept itself

    @property
    def newest(self) -> VehicleState:
        """After the newest fix, settled or not."""
        return self.pending[-1].state if self.pending else self.base

    def has_seen(self, place: Place) -> bool:
        """Whether it is among the newest ones."""
        return place in self.recent

    def verdict_at_once(self, fix: Fix) -> str | None:
        """FUTURE or LATE where the fix will not be folded, else None."""
        if fix.fixed_at_ms > fix.received_at_ms + FUTURE_MAX_MS:
            return FUTURE
        return LATE if fix.fixed_at_ms < self.settled_at_ms else None

    def insert(self, fix: Fix, area: Area) -> None:
        """One more fix in the window. Where `advance` raises nothing has changed."""
        pending = self.pending
        if not pending or fix.fixed_at_ms > pending[-1].fix.fixed_at_ms or time_order(fix) >= time_order(pending[-1].fix):
            state, said = advance(pending[-1].state if pending else self.base, fix, area)
            pending.append(Folded(fix, state, said))
            return
        at = bisect_right(pending, time_order(fix), key=_folded_order)
        window = pending[:at]
        state = window[-1].state if window else self.base
        for each in [fix, *(folded.fix for folded in pending[at:])]:
            state, said = advance(state, each, area)
            window.append(Folded(each, state, said))
        self.pending = window

    def settle(self, edge_ms: int, most: int) -> list[Folded]:
        """Lets go of the fixes older than `edge_ms`, and of the oldest beyond `most`: what they say is final. In the order of their times."""
        pending, count = self.pending, 0
        for folded in pending:
            if folded.fix.fixed_at_ms >= edge_ms and len(pending) - count <= most:
                break
            count += 1
        if not count:
            return []
        settled = pending[:count]
        del pending[:count]
        self.base, self.settled_at_ms = settled[-1].state, settled[-1].fix.fixed_at_ms
        return settled

    def move(self, area: Area) -> bool:
        """Onto the newest feed version, where its trip is the same there; whether anything changed."""
        base = _moved(self.base, area)
        pending = [each._replace(state=_moved(each.state, area)) for each in self.pending]
        changed = base is not self.base or any(one.state is not other.state for one, other in zip(pending, self.pending, strict=True))
        self.base, self.pending = base, pending
        return changed

    def oust(self, area: Area, reason: str) -> list[Event]:
        """Off its trip, at the time of its last word, in all that was kept of the window; what there is to say, at once. What its fixes inside
        the window would have said of that trip after this is never said."""
        newest, base = self.newest, self.base
        if newest.ride is None:
            return []
        name = newest.ride.trip_id, newest.ride.start_date
        events: list[Event] = []
        if is_on(base, name) and base.ride is not None and base.fix is not None:
            events = left(base, base.fix, base.ride, area, reason)
        self.base = off_trip(self.base, name)
        self.pending = [
            Folded(each.fix, off_trip(each.state, name), each.said._replace(events=of_others(each.said.events, name), crossings=()))
            if is_on(each.state, name)
            else each
            for each in self.pending
        ]
        return events

    def versions(self) -> set[str]:
        """Feed versions that its states stand on."""
        states = (self.base, *(folded.state for folded in self.pending))
        return {state.ride.version for state in states if state.ride is not None}

    def kept(self) -> Kept:
        """What Redis should keep of it."""
        return Kept(
            self.base,
            self.settled_at_ms,
            [folded.fix for folded in self.pending],
            list(self.clocks.values()),
            self.recent[-RECENT:],
            self.shown,
            self.forecast_at_ms,
            self.forecast_trip,
            self.forecast_stop,
            self.next_stop,
            self.heard_ms,
            self.silence,
        )


def taken_up(kept: Kept, area: Area) -> Vehicle:
    """The vehicle as it was when it was kept."""
    vehicle = Vehicle(kept.base.bus_id)
    vehicle.base, vehicle.settled_at_ms = kept.base, kept.settled_at_ms
    for fix in kept.pending:
        vehicle.insert(fix, area)
    vehicle.clocks = {clock.device_id: clock for clock in kept.clocks}
    vehicle.recent, vehicle.shown, vehicle.next_stop = list(kept.recent), kept.shown, kept.next_stop
    vehicle.known_ms = max((at_ms for at_ms, _, _ in kept.recent), default=0)
    vehicle.forecast_at_ms, vehicle.forecast_trip, vehicle.forecast_stop = kept.forecast_at_ms, kept.forecast_trip, kept.forecast_stop
    vehicle.heard_ms, vehicle.silence = kept.heard_ms, kept.silence
    return vehicle


def _moved(state: VehicleState, area: Area) -> VehicleState:
    ride = area.moved(state.ride) if state.ride is not None else None
    return state if ride is state.ride else msgspec.structs.replace(state, ride=ride)


def is_on(state: VehicleState, name: Name) -> bool:
    return state.ride is not None and (state.ride.trip_id, state.ride.start_date) == name


def off_trip(state: VehicleState, name: Name) -> VehicleState:
    """The same vehicle without that trip."""
    if not is_on(state, name):
        return state
    return msgspec.structs.replace(state, ride=None, match=None, watch=QUIET, trail=displaced(state.trail))


def of_others(events: tuple[Event, ...], name: Name) -> tuple[Event, ...]:
    """Without what concerns that trip."""
    return tuple(event for event in events if (event.trip_id, event.start_date) != name)
