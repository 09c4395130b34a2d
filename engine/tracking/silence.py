"""Silence: a bus on its trip of which nothing is heard. One table, one open episode. Pure.

Unlike the other tables it is moved by the area's clock and not by fixes. It opens `silent_s` after the last fix of a trip under way, and
closes with the first fix that is news again (not a backlog of old ones), `silent_over_s` after the trip's end by the timetable, or when
another bus drives the trip. Its time is the last fix's: silent since then.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.events import IN_TRIP, IncidentEvent
from engine.tracking.episodes import CLOSED, MAJOR, MINOR, OPENED, SILENT
from engine.tracking.fix import Fix
from engine.tracking.ride import event_id
from engine.tracking.rules import WatchConfig
from engine.tracking.timetable import TripInstance
from engine.tracking.vehicle import VehicleState


class Silence(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An open episode."""

    bus_id: str
    trip_id: str
    start_date: str
    route_id: str
    since_ms: int  # the last fix
    over_ms: int  # nobody waits for a word after this
    lat: float
    lon: float
    severity: str = MINOR


def silence_due_ms(silence: Silence | None, state: VehicleState, config: WatchConfig) -> int | None:
    """When to look again, if no fix comes; None: there is nothing to wait for."""
    if silence is not None:
        grows = silence.since_ms + round(config.silent_major_s * 1000)
        return min(grows, silence.over_ms) if silence.severity == MINOR else silence.over_ms
    if state.ride is None or state.motion is None or state.ride.phase != IN_TRIP:
        return None
    return state.motion.fixed_at_ms + round(config.silent_s * 1000)


def silence_next(
    silence: Silence | None, state: VehicleState, instance: TripInstance | None, now_ms: int, config: WatchConfig, *, replaced: bool
) -> tuple[Silence | None, list[IncidentEvent]]:
    """What follows from the clock. `instance`: of the state's ride; `replaced`: another bus drives its trip now."""
    if silence is not None:
        if replaced or now_ms >= silence.over_ms:
            reason = "OTHER_BUS" if replaced else "TRIP_OVER"
            return None, [_event(silence, CLOSED, min(now_ms, silence.over_ms), {"reason": reason})]
        if silence.severity == MINOR and now_ms - silence.since_ms >= config.silent_major_s * 1000:
            silence = msgspec.structs.replace(silence, severity=MAJOR)
            return silence, [_event(silence, MAJOR, None, {})]
        return silence, []
    fix, ride, motion = state.fix, state.ride, state.motion
    if fix is None or ride is None or motion is None or instance is None or ride.phase != IN_TRIP or replaced:
        return None, []
    over_ms = instance.arrival_ms(len(instance.trip.arrival_s) - 1) + round(config.silent_over_s * 1000)
    if now_ms - motion.fixed_at_ms < config.silent_s * 1000 or now_ms >= over_ms:
        return None, []
    silence = Silence(
        state.bus_id, ride.trip_id, ride.start_date, ride.route_id, motion.fixed_at_ms, over_ms, motion.lat, motion.lon
    )  # fmt: skip
    return silence, [_event(silence, OPENED, None, {})]


def heard(silence: Silence, fix: Fix, config: WatchConfig) -> IncidentEvent | None:
    """The closing word, where an accepted fix is news."""
    if fix.received_at_ms - fix.fixed_at_ms >= config.silent_s * 1000:
        return None
    now = msgspec.structs.replace(silence, lat=fix.lat, lon=fix.lon)
    return _event(now, CLOSED, max(fix.fixed_at_ms, silence.since_ms), {"reason": "HEARD"})


def _event(silence: Silence, saying: str, closed_at_ms: int | None, facts: dict[str, Any]) -> IncidentEvent:
    name = event_id(SILENT, silence.bus_id, silence.trip_id, silence.start_date, silence.since_ms)
    return IncidentEvent(
        event_id(name, saying), name, SILENT, silence.severity, silence.bus_id, silence.trip_id, silence.start_date, silence.route_id,
        silence.since_ms, closed_at_ms, silence.lat, silence.lon, msgspec.json.encode(facts).decode(),
    )  # fmt: skip
