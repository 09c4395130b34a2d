"""What is watched of a vehicle whether it is on a trip or not: speed, engine, fences. Small tables with hysteresis, one open incident an episode.

Pure. `watch.py` has the tables of a trip; those here go on from trip to trip, so their episodes are named by bus and time alone. A fix with
which nothing happens answers the same object. Lengths in metres, speeds in m/s, times in UTC ms; thresholds are fields of `WatchConfig`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.events import DEADHEAD, IN_TRIP, IncidentEvent
from engine.tracking.episodes import CLOSED, CRITICAL, IDLING, MAJOR, MINOR, OPENED, SPEEDING, Sight, incident, worse
from engine.tracking.fences import FenceState, fences_close, fences_next, limit_mps
from engine.tracking.fix import Fix
from engine.tracking.ride import REST_MPS, TERMINAL_M, Ride
from engine.tracking.rules import Rules, WatchConfig
from geo.coords import distance_m

__all__ = ["AT_EASE", "Guard", "Idling", "Sight", "Speeding", "close", "look"]

SPEEDING_FIXES = 2  # one fix is a receiver's mistake, however long ago the last one was
UNSEEN_MS = 300_000  # after a silence longer than this nobody knows whether it stood all the time
AT_STOP_M = 60.0  # this near to a stop a bus may be waiting for its time


class Speeding(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Under the limit, over it for a moment, or speeding (`severity` of the open episode)."""

    since_ms: int = 0  # over the limit since; 0: it is not
    seen_ms: int = 0  # the last fix over the limit
    fixes: int = 0
    peak_mps: float = 0.0
    limit_mps: float = 0.0  # where it was exceeded most
    severity: str | None = None
    under_ms: int = 0  # under the limit again since; 0: still over it


class Idling(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Moving, standing at a place since a time, or idling there (`severity` of the open episode)."""

    since_ms: int = 0  # 0: it moves, or its engine is off, or it may stand there
    lat: float = 0.0
    lon: float = 0.0
    severity: str | None = None


SLOW, LIVELY = Speeding(), Idling()


class Guard(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where one vehicle stands in each of the tables."""

    speeding: Speeding = SLOW
    idling: Idling = LIVELY
    fences: tuple[FenceState, ...] = ()


AT_EASE = Guard()


def is_at_ease(guard: Guard, speed_mps: float, rules: Rules) -> bool:
    """It drives, not too fast, and no fence is near that anybody follows: `look` would say nothing and change nothing. Nearly every fix."""
    config = rules.watch
    return (
        REST_MPS <= speed_mps <= config.speed_limit_mps + config.speed_slack_mps
        and rules.fences is None
        and not guard.fences
        and not guard.speeding.since_ms
        and not guard.idling.since_ms
    )


def look(guard: Guard, sight: Sight) -> tuple[Guard, list[IncidentEvent]]:
    """One fix further; the same object where nothing changed."""
    said: list[IncidentEvent] = []
    fences, zone_mps = guard.fences, None
    index = sight.rules.fences
    if index is not None or fences:
        fences, words = fences_next(fences, sight, index)
        said += words
        if fences:
            zone_mps = limit_mps(fences, index, sight.motion.fixed_at_ms)
    speeding = speeding_next(guard.speeding, sight, zone_mps, said)
    idling = idling_next(guard.idling, sight, said)
    if speeding is guard.speeding and idling is guard.idling and fences is guard.fences:
        return guard, said
    return Guard(speeding, idling, fences), said


def close(guard: Guard, fix: Fix, ride: Ride | None, at_ms: int, reason: str) -> list[IncidentEvent]:
    """Nothing was heard for long: what is open is closed, at the time of the last word."""
    said = []
    if guard.speeding.severity is not None:
        said.append(_speeding_event(guard.speeding, fix, ride, CLOSED, at_ms, reason))
    if guard.idling.severity is not None:
        said.append(_idling_event(guard.idling, fix, ride, CLOSED, at_ms, reason))
    said += fences_close(guard.fences, fix, ride, at_ms, reason)
    return said


def speeding_next(speeding: Speeding, sight: Sight, zone_mps: float | None, said: list[IncidentEvent]) -> Speeding:
    """Over the limit for `speeding_s` opens, as long under it closes. `zone_mps`: of the speed zones here; None: there is none."""
    config, speed = sight.rules.watch, sight.motion.speed_mps
    limit = config.speed_limit_mps if zone_mps is None or zone_mps > config.speed_limit_mps else zone_mps
    over = speed > limit + config.speed_slack_mps
    if not over and not speeding.since_ms:  # as nearly always
        return speeding
    at_ms = sight.motion.fixed_at_ms
    if speeding.severity is not None:
        return _still_speeding(speeding, sight, limit, over, said)
    if not over:
        return SLOW
    if not speeding.since_ms or at_ms - speeding.seen_ms > config.speeding_gap_s * 1000.0:
        return Speeding(at_ms, at_ms, 1, speed, limit)
    worst = speed * speeding.limit_mps >= speeding.peak_mps * limit  # by share of the limit
    peak, of = (speed, limit) if worst else (speeding.peak_mps, speeding.limit_mps)
    fixes = speeding.fixes + 1
    if at_ms - speeding.since_ms < config.speeding_s * 1000.0 or fixes < SPEEDING_FIXES:
        return Speeding(speeding.since_ms, at_ms, fixes, peak, of)
    now = Speeding(speeding.since_ms, at_ms, fixes, peak, of, _severity(config, peak, of))
    said.append(_speeding_event(now, sight.fix, sight.ride, OPENED, None, None))
    return now


def _still_speeding(speeding: Speeding, sight: Sight, limit: float, over: bool, said: list[IncidentEvent]) -> Speeding:
    config, at_ms, speed = sight.rules.watch, sight.motion.fixed_at_ms, sight.motion.speed_mps
    known = speeding.severity or MINOR
    if over:
        worst = speed * speeding.limit_mps >= speeding.peak_mps * limit
        peak, of = (speed, limit) if worst else (speeding.peak_mps, speeding.limit_mps)
        severity = worse(known, _severity(config, peak, of))
        now = Speeding(speeding.since_ms, at_ms, speeding.fixes + 1, peak, of, severity)
        if severity != known:
            said.append(_speeding_event(now, sight.fix, sight.ride, severity, None, None))
        return now
    under_ms = speeding.under_ms or at_ms
    if at_ms - under_ms >= config.speeding_s * 1000.0 or at_ms - speeding.seen_ms > config.speeding_gap_s * 1000.0:
        said.append(_speeding_event(speeding, sight.fix, sight.ride, CLOSED, under_ms, "SLOWER"))
        return SLOW
    return speeding if speeding.under_ms else msgspec.structs.replace(speeding, under_ms=under_ms)


def _severity(config: WatchConfig, speed: float, limit: float) -> str:
    if speed >= config.speeding_critical * limit:
        return CRITICAL
    return MAJOR if speed >= config.speeding_major * limit else MINOR


def _speeding_event(
    speeding: Speeding, fix: Fix, ride: Ride | None, saying: str, closed_at_ms: int | None, reason: str | None
) -> IncidentEvent:
    detail: dict[str, Any] = {"limitMps": round(speeding.limit_mps, 1), "maxMps": round(speeding.peak_mps, 1)}
    if reason is not None:
        detail["reason"] = reason
    facts = (SPEEDING, fix.bus_id, speeding.since_ms)
    return incident(SPEEDING, speeding.severity or MINOR, speeding.since_ms, fix, ride, saying, closed_at_ms, detail, facts)


def idling_next(idling: Idling, sight: Sight, said: list[IncidentEvent]) -> Idling:
    """Standing for `idle_s` with the engine on opens; driving on, or the engine off, closes.

    Where the device says nothing of the engine it is taken to run on a trip under way and nowhere else: a bus in its depot with a phone on
    board does not idle all night.
    """
    motion, fix = sight.motion, sight.fix
    if not idling.since_ms and motion.speed_mps >= REST_MPS:  # drives
        return idling
    if idling.since_ms:
        gone = distance_m(motion.lon, motion.lat, idling.lon, idling.lat) > sight.rules.watch.idle_m
        if gone or not _may_idle(sight) or motion.gap_ms > UNSEEN_MS:
            if idling.severity is not None:
                reason = "DRIVES" if gone else "ENGINE_OFF" if fix.ignition is False else "WAITS"
                said.append(_idling_event(idling, fix, sight.ride, CLOSED, motion.fixed_at_ms, reason))
            return LIVELY
        return _standing(idling, sight, said)
    return Idling(motion.fixed_at_ms, motion.lat, motion.lon) if _may_idle(sight) else idling


def _standing(idling: Idling, sight: Sight, said: list[IncidentEvent]) -> Idling:
    config, at_ms = sight.rules.watch, sight.motion.fixed_at_ms
    if at_ms - idling.since_ms < config.idle_s * 1000.0:
        return idling
    if idling.severity is None:
        now = Idling(idling.since_ms, idling.lat, idling.lon, MINOR)
        said.append(_idling_event(now, sight.fix, sight.ride, OPENED, None, None))
        return now
    if idling.severity == MINOR and at_ms - idling.since_ms >= config.idle_major_s * 1000.0:
        now = Idling(idling.since_ms, idling.lat, idling.lon, MAJOR)
        said.append(_idling_event(now, sight.fix, sight.ride, MAJOR, None, None))
        return now
    return idling


def _may_idle(sight: Sight) -> bool:
    """Whether standing here with this engine is idling: not with it off, at a terminal, or before the time of a stop."""
    ride, ignition = sight.ride, sight.fix.ignition
    if ignition is False or (ignition is None and (ride is None or ride.phase != IN_TRIP)):
        return False
    if ride is None:
        return True
    if ride.phase not in (IN_TRIP, DEADHEAD):  # LAYOVER, DONE
        return False
    course, instance, match = sight.course, sight.instance, sight.match
    if course is None or instance is None or match is None or ride.phase == DEADHEAD:
        return True
    stops, along, at_ms = course.along_m, match.along_m, sight.motion.fixed_at_ms
    if along - stops[0] <= TERMINAL_M or stops[course.last] - along <= TERMINAL_M:
        return False
    ahead = min(ride.next_stop, course.last)
    return not any(abs(stops[i] - along) <= AT_STOP_M and at_ms < instance.departure_ms(i) for i in (ahead, ahead - 1) if i >= 0)


def _idling_event(idling: Idling, fix: Fix, ride: Ride | None, saying: str, closed_at_ms: int | None, reason: str | None) -> IncidentEvent:
    detail: dict[str, Any] = (
        {"ignition": fix.ignition} if closed_at_ms is None else {"stoodS": round((closed_at_ms - idling.since_ms) / 1000)}
    )
    if reason is not None:
        detail["reason"] = reason
    facts = (IDLING, fix.bus_id, idling.since_ms)
    return incident(IDLING, idling.severity or MINOR, idling.since_ms, fix, ride, saying, closed_at_ms, detail, facts)
