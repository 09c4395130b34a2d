"""What deserves a word on a trip: off route, wrong way, missed stops. Small tables with hysteresis, one open incident per episode.

Pure. Single-fix rules give 1,000 to 7,000 false episodes in 1,000 trip hours; `python -m bench.deviation` says what this table gives. Lengths
in metres, times in UTC ms; every threshold is a field of `WatchConfig`. The other tables of a trip stand in `stall.py` (no progress) and
`approach.py` (a stop is near), those that go on from trip to trip in `guard.py`, those of several vehicles in `headways.py`.

Off route, ON -> SUSPECT -> OFF -> ON. How long a suspicion must last depends on how far away the vehicle is: errors of 20 m that wander
slowly stay beyond the limit for minutes and hardly reach 1.5 times it, the next street lies further; and nothing but driving leads on and on
away.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec

from engine.events import ApproachEvent, IncidentEvent, StopEvent
from engine.tracking.approach import approached
from engine.tracking.episodes import (
    CLOSED,
    CRITICAL,
    MAJOR,
    MINOR,
    MISSED_STOP,
    OFF_ROUTE,
    OPENED,
    WRONG_WAY,
    incident,
)
from engine.tracking.fix import Fix, Motion
from engine.tracking.ride import Course, Ride
from engine.tracking.rules import NO_RULES, Rules, WatchConfig
from engine.tracking.stall import Stall, stall_closed, stall_next
from engine.tracking.timetable import TripInstance
from geo.coords import distance_m
from geo.match import RETREAT_MAX_M, Match

ON, SUSPECT, OFF = "ON", "SUSPECT", "OFF"

STEP_M, STEP_SPEED, STEP_ACCURACY = 40.0, 1.2, 2.0  # a sideways step that no bus makes: more than max(40 m, 1.2 * v * dt + 2 * accuracy)
BYPASSED_MAX = 64  # stop sequences kept in one episode
WRONG_DRIVEN = 0.75  # of the way back must have been driven
JUMPED_M = 200.0  # from fix to fix further back than a match follows: it went to another arc, and what lies between was not driven
FAR_FIXES, FAR_MORE = 2, 1.25  # so many times further still than far, two fixes do: no reflection leads there


class OffRoute(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where the vehicle stands in the table ON -> SUSPECT -> OFF -> ON."""

    phase: str = ON
    since_ms: int = 0  # crossed the limit, between two fixes
    fixes: int = 0  # beyond the limit in a row
    driven_m: float = 0.0
    reflected: bool = False
    left_m: float = 0.0  # arc where it left
    worst_m: float = 0.0  # furthest from any place of the line
    back: int = 0  # fixes in a row that look like being back
    severity: str = MINOR
    bypassed: tuple[int, ...] = ()  # stop sequences missed meanwhile
    ratio: float = 0.0  # distance over limit, summed over `fixes`


class WrongWay(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far the match runs backwards."""

    open: bool = False
    since_ms: int = 0
    peak_m: float = 0.0
    low_m: float = 0.0
    fixes: int = 0  # backwards in a row; 0: it does not
    driven_m: float = 0.0  # meanwhile, by speed: a match that slips back drives nowhere


ON_ROUTE, FORWARD = OffRoute(), WrongWay()


class Watch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Everything that is watched of one vehicle on one trip."""

    off_route: OffRoute = ON_ROUTE
    wrong_way: WrongWay = FORWARD
    stall: Stall = Stall()
    near_stop: int = -1  # index of the last stop that passengers were told of


QUIET = Watch()


class Sight(NamedTuple):
    """One fix as the watches see it."""

    fix: Fix
    motion: Motion
    ride: Ride
    course: Course
    before: Match | None
    match: Match
    stops: list[StopEvent]  # said with this fix
    unsure: bool = False  # the trip may turn out not to have begun
    rules: Rules = NO_RULES
    instance: TripInstance | None = None
    last: Motion | None = None  # of the fix before


def look(watch: Watch, sight: Sight) -> tuple[Watch, list[IncidentEvent | ApproachEvent]]:
    """One fix further, on a trip under way; the same object where nothing changed."""
    said: list[IncidentEvent | ApproachEvent] = []
    limit = limit_m(sight.rules.watch, sight.motion.accuracy_m)
    off_route = off_route_next(watch.off_route, sight, limit, said)
    wrong_way = wrong_way_next(watch.wrong_way, sight, limit, off_route, said)
    stall = stall_next(watch.stall, sight, sight.match.offset_m <= limit, said)
    near_stop = approached(watch.near_stop, sight, sight.match.offset_m <= limit, said)
    if sight.stops and not _is_doubtful(watch.off_route) and not _is_doubtful(off_route):
        said += [_missed(sight, stop) for stop in sight.stops if stop.kind == "MISSED"]
    if off_route is watch.off_route and wrong_way is watch.wrong_way and stall is watch.stall and near_stop == watch.near_stop:
        return watch, said
    return Watch(off_route, wrong_way, stall, near_stop), said


def close(watch: Watch, fix: Fix, ride: Ride, at_ms: int, reason: str) -> list[IncidentEvent]:
    """The trip is over, or nothing was heard for long: what is open is closed, at the time of the last word."""
    said = []
    if watch.off_route.phase == OFF:
        said.append(_off_route_event(watch.off_route, fix, ride, watch.off_route.severity, CLOSED, at_ms, {"reason": reason}))
    if watch.wrong_way.open:
        said.append(_wrong_way_event(watch.wrong_way, fix, ride, CLOSED, at_ms, reason))
    if watch.stall.severity is not None:
        said.append(stall_closed(watch.stall, fix, ride, at_ms, reason))
    return said


def limit_m(config: WatchConfig, accuracy_m: float | None) -> float:
    """D: further from the shape than this is not on it."""
    return config.off_m if accuracy_m is None else max(config.off_m, config.off_accuracy * accuracy_m)


def off_route_next(off: OffRoute, sight: Sight, limit: float, said: list[Any]) -> OffRoute:
    """The table of the module, one fix further; answers the same object where nothing changed."""
    away = sight.match.offset_m
    if off.phase == ON:
        return off if away <= limit else _suspected(sight, limit)
    if off.phase == SUSPECT:
        return _suspect_next(off, sight, away, limit, said)
    return _off_next(off, sight, away, limit, said)


def _suspected(sight: Sight, limit: float) -> OffRoute:
    motion, match, before = sight.motion, sight.match, sight.before
    reflected, since_ms = False, motion.fixed_at_ms
    if before is not None and motion.gap_ms:
        sideways = abs(match.offset_m - before.offset_m)
        step = STEP_SPEED * motion.speed_mps * motion.gap_ms / 1000.0 + STEP_ACCURACY * (motion.accuracy_m or 0.0)
        reflected = sideways > max(STEP_M, step) and _moved_m(sight.last, motion) > max(STEP_M, step)
        if before.offset_m < limit and not reflected:
            since_ms -= round(motion.gap_ms * (match.offset_m - limit) / (match.offset_m - before.offset_m))
    left = before.along_m if before is not None else match.along_m
    worst = _worst_m(ON_ROUTE, sight, match.offset_m)
    severity = _severity(sight.rules.watch, worst)
    return OffRoute(SUSPECT, since_ms, 1, 0.0, reflected, left, worst, 0, severity, _bypassed((), sight), match.offset_m / limit)


def _moved_m(last: Motion | None, motion: Motion) -> float:
    """From fix to fix: where that is little and the sideways step large, the match has gone to another arc."""
    return math.inf if last is None else distance_m(last.lon, last.lat, motion.lon, motion.lat)


def _suspect_next(off: OffRoute, sight: Sight, away: float, limit: float, said: list[Any]) -> OffRoute:
    if away <= limit:
        return ON_ROUTE
    config, motion = sight.rules.watch, sight.motion
    fixes, driven, ratio = off.fixes + 1, off.driven_m + motion.driven_m, off.ratio + away / limit
    worst, bypassed = _worst_m(off, sight, away), _bypassed(off.bypassed, sight)
    far = ratio >= config.far_share * fixes and not off.reflected
    patience = config.far_patience if far else config.near_patience if worst < config.near_share * limit else 1.0
    wait_s = max(config.reflected_s if off.reflected else 0.0, config.off_s * patience)
    sure = (
        fixes >= (min(FAR_FIXES, config.off_fixes) if far and ratio >= FAR_MORE * config.far_share * fixes else config.off_fixes)
        and motion.fixed_at_ms - off.since_ms >= wait_s * 1000.0
        and driven >= config.off_driven_m
    )
    severity = _severity(config, worst)
    phase = OFF if sure else SUSPECT
    now = OffRoute(phase, off.since_ms, fixes, driven, off.reflected, off.left_m, worst, 0, severity, bypassed, ratio)
    if sure:
        said.append(_off_route_event(now, sight.fix, sight.ride, severity, OPENED, None, {}))
    return now


def _off_next(off: OffRoute, sight: Sight, away: float, limit: float, said: list[Any]) -> OffRoute:
    config, before = sight.rules.watch, sight.before
    advancing = before is None or sight.match.raw_m > before.raw_m
    back = off.back
    if away >= config.back_share * limit:
        back = 0
    elif advancing:
        back += 1
    worst, bypassed = _worst_m(off, sight, away), _bypassed(off.bypassed, sight)
    severity = _severity(config, worst)
    now = OffRoute(
        OFF, off.since_ms, off.fixes + 1, off.driven_m + sight.motion.driven_m, off.reflected, off.left_m, worst, back, severity, bypassed
    )
    if back >= config.back_fixes:
        facts = {"rejoinedM": round(sight.match.along_m), "reason": "BACK_ON_ROUTE"}
        said.append(_off_route_event(now, sight.fix, sight.ride, severity, CLOSED, sight.motion.fixed_at_ms, facts))
        return ON_ROUTE
    if severity != off.severity:
        said.append(_off_route_event(now, sight.fix, sight.ride, severity, severity, None, {}))
    return now


def _worst_m(off: OffRoute, sight: Sight, away: float) -> float:
    """How far it has come from its line. The match holds on to the stretch that it knows (`away`): where the line bends towards the vehicle
    another stretch may already be much nearer, and that is looked for only where the match would say "further than ever"."""
    if away <= off.worst_m:
        return off.worst_m
    line, motion = sight.course.line, sight.motion
    return max(off.worst_m, min(offset for _, offset, _ in line.minima(motion.lon, motion.lat, 0.0, line.length_m)))


def _severity(config: WatchConfig, worst_m: float) -> str:
    return CRITICAL if worst_m >= config.critical_m else MAJOR if worst_m >= config.major_m else MINOR


def _bypassed(known: tuple[int, ...], sight: Sight) -> tuple[int, ...]:
    if not sight.stops:
        return known
    missed = tuple(stop.stop_sequence for stop in sight.stops if stop.kind == "MISSED")
    return (known + missed)[:BYPASSED_MAX] if missed else known


def _off_route_event(
    off: OffRoute, fix: Fix, ride: Ride, severity: str, saying: str, closed_at_ms: int | None, facts: dict[str, Any]
) -> IncidentEvent:
    detail = {"maxOffsetM": round(off.worst_m), "leftM": round(off.left_m), "bypassedStops": list(off.bypassed), **facts}
    return incident(OFF_ROUTE, severity, off.since_ms, fix, ride, saying, closed_at_ms, detail)


def wrong_way_next(wrong: WrongWay, sight: Sight, limit: float, off: OffRoute, said: list[Any]) -> WrongWay:
    """Opens when the match has run back 150 m in at least three fixes on the shape, closes when it has come forward 100 m.

    A vehicle that leaves its shape and comes back to it elsewhere has not turned round: then it begins anew.
    """
    match = sight.match
    raw = match.raw_m
    if not wrong.fixes and raw >= match.peak_m:  # forward, as nearly always
        return wrong
    if match.offset_m > limit:
        return wrong
    config, at_ms = sight.rules.watch, sight.motion.fixed_at_ms
    if wrong.open:
        if raw < wrong.low_m:
            return WrongWay(True, wrong.since_ms, wrong.peak_m, raw, wrong.fixes + 1)
        if raw - wrong.low_m >= config.right_m:
            said.append(_wrong_way_event(wrong, sight.fix, sight.ride, CLOSED, at_ms, "FORWARD"))
            return FORWARD
        return wrong
    before = sight.before
    if before is None or sight.unsure or off.phase == OFF or before.raw_m - raw > JUMPED_M:
        return FORWARD
    peak = wrong.peak_m if wrong.fixes else min(match.peak_m, before.raw_m + RETREAT_MAX_M)
    if raw >= peak:
        return FORWARD
    if not wrong.fixes:
        return WrongWay(False, at_ms - sight.motion.gap_ms, peak, raw, 1, sight.motion.driven_m)
    fixes, driven = wrong.fixes + 1 if raw < wrong.low_m else wrong.fixes, wrong.driven_m + sight.motion.driven_m
    open_now = peak - raw >= config.wrong_m and fixes >= config.wrong_fixes and driven >= WRONG_DRIVEN * config.wrong_m
    now = WrongWay(open_now, wrong.since_ms, peak, min(raw, wrong.low_m), fixes, driven)
    if open_now:
        said.append(_wrong_way_event(now, sight.fix, sight.ride, OPENED, None, None))
    return now


def _wrong_way_event(wrong: WrongWay, fix: Fix, ride: Ride, saying: str, closed_at_ms: int | None, reason: str | None) -> IncidentEvent:
    detail: dict[str, Any] = {"turnedM": round(wrong.peak_m), "backToM": round(wrong.low_m)}
    if reason is not None:
        detail["reason"] = reason
    return incident(WRONG_WAY, MAJOR, wrong.since_ms, fix, ride, saying, closed_at_ms, detail)


def _is_doubtful(off: OffRoute) -> bool:
    """It is only seen beside its shape since a sideways step that no bus makes: where it really drove nobody knows yet."""
    return off.phase == SUSPECT and off.reflected and off.severity == MINOR


def _missed(sight: Sight, stop: StopEvent) -> IncidentEvent:
    at_ms = sight.motion.fixed_at_ms
    detail = {"stopId": stop.stop_id, "stopSequence": stop.stop_sequence}
    facts = (MISSED_STOP, sight.fix.bus_id, sight.ride.trip_id, sight.ride.start_date, stop.stop_sequence)
    return incident(MISSED_STOP, MINOR, at_ms, sight.fix, sight.ride, CLOSED, at_ms, detail, facts)
