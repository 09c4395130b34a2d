"""No progress: a vehicle under way that comes no further where the timetable does not ask it to wait. One table, one open episode. Pure.

The clock runs from the last progress (`delayed_m` along the shape), or from the scheduled departure of the stop at which the vehicle stands,
whichever is later: a bus that is early, or that waits at a timepoint, is not delayed. Off its shape it has other worries (`watch.py`): the
clock starts anew when it is back. At the end of its trip nobody asks for progress.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from engine.events import IncidentEvent
from engine.tracking.episodes import CLOSED, CRITICAL, DELAYED, MAJOR, MINOR, OPENED, incident
from engine.tracking.fix import Fix
from engine.tracking.ride import REST_MPS, TERMINAL_M, Ride
from engine.tracking.rules import WatchConfig

if TYPE_CHECKING:
    from engine.tracking.watch import Sight

FRESH_MS = 60_000  # progress of a bus that drives is noted this often: a record a minute, not every few seconds
AT_STOP_M = 60.0  # this near to a stop, before or behind it, a bus may be waiting for its time


class Stall(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where the last progress was."""

    anchor_m: float = -1.0  # less than nothing: nowhere yet
    since_ms: int = 0
    severity: str | None = None  # of the open episode; None: none is open


def stall_next(stall: Stall, sight: Sight, on_shape: bool, said: list[Any]) -> Stall:
    """One fix further; the same object where nothing changed."""
    config, at_ms, along = sight.rules.watch, sight.motion.fixed_at_ms, sight.match.along_m
    if stall.anchor_m < 0.0 or along >= stall.anchor_m + config.delayed_m:
        if stall.severity is None and at_ms - stall.since_ms < FRESH_MS and sight.motion.speed_mps >= REST_MPS:
            return stall  # drives, as nearly always
        if stall.severity is not None:
            said.append(stall_closed(stall, sight.fix, sight.ride, at_ms, "MOVES"))
        return Stall(along, at_ms)
    if stall.severity is None and along > stall.anchor_m and _came_to_rest(sight):
        return Stall(along, at_ms)
    if at_ms - stall.since_ms < config.delayed_s * 1000.0:
        return stall
    if not on_shape:
        return stall if stall.severity is not None else Stall(stall.anchor_m, at_ms)
    if stall.severity is None:
        since_ms = _due_ms(stall.since_ms, sight)
        if since_ms is None or at_ms - since_ms < config.delayed_s * 1000.0:
            return stall
        stall = Stall(max(stall.anchor_m, along), since_ms, MINOR)
        said.append(_event(stall, sight.fix, sight.ride, OPENED, None, {}))
    severity = _severity(config, at_ms - stall.since_ms)
    if severity != stall.severity:
        stall = Stall(stall.anchor_m, stall.since_ms, severity)
        said.append(_event(stall, sight.fix, sight.ride, severity, None, {}))
    return stall


def _came_to_rest(sight: Sight) -> bool:
    """With this fix: noise of the standing bus is counted from here and not from where it last drove 50 m."""
    return sight.motion.speed_mps < REST_MPS and sight.last is not None and sight.last.speed_mps >= REST_MPS


def stall_closed(stall: Stall, fix: Fix, ride: Ride, at_ms: int, reason: str) -> IncidentEvent:
    return _event(stall, fix, ride, CLOSED, at_ms, {"reason": reason})


def _due_ms(since_ms: int, sight: Sight) -> int | None:
    """From when on progress was to be expected; None: no more of it is, the trip ends here."""
    course, along, ahead = sight.course, sight.match.along_m, min(sight.ride.next_stop, sight.course.last)
    if course.along_m[course.last] - along <= TERMINAL_M:
        return None
    if sight.instance is None:
        return since_ms
    for index in (ahead, ahead - 1):
        if 0 <= index < course.last and abs(course.along_m[index] - along) <= AT_STOP_M:
            since_ms = max(since_ms, sight.instance.departure_ms(index))
    return since_ms


def _severity(config: WatchConfig, stood_ms: int) -> str:
    if stood_ms >= config.delayed_critical_s * 1000.0:
        return CRITICAL
    return MAJOR if stood_ms >= config.delayed_major_s * 1000.0 else MINOR


def _event(stall: Stall, fix: Fix, ride: Ride, saying: str, closed_at_ms: int | None, facts: dict[str, Any]) -> IncidentEvent:
    detail = {"alongM": round(stall.anchor_m), **facts}
    if closed_at_ms is not None:
        detail["stoodS"] = round((closed_at_ms - stall.since_ms) / 1000)
    return incident(DELAYED, stall.severity or MINOR, stall.since_ms, fix, ride, saying, closed_at_ms, detail)
