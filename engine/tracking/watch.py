"""What deserves a word: off route, wrong way, missed stops. Small tables with hysteresis, one open incident per episode.

Pure. Single-fix rules give 1,000 to 7,000 false episodes in 1,000 trip hours, this table 0 to 220, by noise. Incident ids are made of what
happened, so a replay says the same ids again. Fences, speeding, idling and bunching are further tables of this kind beside these
(see `WATCHES`). Lengths in metres, times in UTC ms.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from engine.events import IncidentEvent, StopEvent
from engine.tracking.fix import Fix, Motion
from engine.tracking.ride import Course, Ride, event_id, off_limit_m
from geo.match import Match

ON, SUSPECT, OFF = "ON", "SUSPECT", "OFF"
MINOR, MAJOR, CRITICAL = "MINOR", "MAJOR", "CRITICAL"
OFF_ROUTE, WRONG_WAY, MISSED_STOP = "OFF_ROUTE", "WRONG_WAY", "MISSED_STOP"

OFF_FIXES, OFF_MS, OFF_DRIVEN_M = 3, 45_000, 150.0
REFLECTED_MS = 90_000  # after a sideways step that no bus can make
STEP_M, STEP_SPEED, STEP_ACCURACY = 40.0, 1.2, 2.0  # that step: more than max(40 m, 1.2 * v * dt + 2 * accuracy)
BACK_SHARE, BACK_FIXES = 0.6, 2
MAJOR_M, CRITICAL_M = 200.0, 2_000.0
BYPASSED_MAX = 64  # stop sequences kept in one episode
WRONG_M, WRONG_FIXES, RIGHT_M = 150.0, 3, 100.0


class OffRoute(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where the vehicle stands in the table ON -> SUSPECT -> OFF -> ON."""

    phase: str = ON
    since_ms: int = 0
    fixes: int = 0  # further than D in a row
    driven_m: float = 0.0
    reflected: bool = False
    left_m: float = 0.0  # arc where it left
    worst_m: float = 0.0
    back: int = 0  # fixes in a row that look like being back
    severity: str = MINOR
    bypassed: tuple[int, ...] = ()  # stop sequences missed meanwhile


class WrongWay(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far the match runs backwards."""

    open: bool = False
    since_ms: int = 0
    peak_m: float = 0.0
    low_m: float = 0.0
    fixes: int = 0  # backwards in a row


class Watch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Everything that is watched of one vehicle on one trip."""

    off_route: OffRoute = OffRoute()
    wrong_way: WrongWay = WrongWay()


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


def look(watch: Watch, sight: Sight) -> tuple[Watch, list[IncidentEvent]]:
    """One fix further, on a trip under way."""
    off_route, said = off_route_next(watch.off_route, sight)
    wrong_way, more = wrong_way_next(watch.wrong_way, sight)
    said += more
    for stop in sight.stops:
        if stop.kind == "MISSED":
            said.append(_missed(sight, stop))
    if off_route is watch.off_route and wrong_way is watch.wrong_way:
        return watch, said
    return Watch(off_route, wrong_way), said


def close(watch: Watch, fix: Fix, ride: Ride, at_ms: int, reason: str) -> list[IncidentEvent]:
    """The trip is over, or nothing was heard for long: what is open is closed, at the time of the last word."""
    said = []
    if watch.off_route.phase == OFF:
        off = watch.off_route
        said.append(_off_route_event(off, fix, ride, off.severity, "closed", at_ms, {"reason": reason}))
    if watch.wrong_way.open:
        said.append(_wrong_way_event(watch.wrong_way, fix, ride, "closed", at_ms))
    return said


def off_route_next(off: OffRoute, sight: Sight) -> tuple[OffRoute, list[IncidentEvent]]:
    """The table of the module, one fix further; answers the same object where nothing changed."""
    away, limit = sight.match.offset_m, off_limit_m(sight.motion.accuracy_m)
    if off.phase == ON:
        return (off if away <= limit else _suspected(sight)), []
    if off.phase == SUSPECT:
        return _suspect_next(off, sight, away, limit)
    return _off_next(off, sight, away, limit)


def _suspected(sight: Sight) -> OffRoute:
    motion, match, before = sight.motion, sight.match, sight.before
    reflected = False
    if before is not None and motion.gap_ms:
        sideways = abs(match.offset_m - before.offset_m)
        step = STEP_SPEED * motion.speed_mps * motion.gap_ms / 1000.0 + STEP_ACCURACY * (motion.accuracy_m or 0.0)
        reflected = sideways > max(STEP_M, step)
    left = before.along_m if before is not None else match.along_m
    return OffRoute(SUSPECT, motion.fixed_at_ms, 1, 0.0, reflected, left, match.offset_m, 0, MINOR, _bypassed((), sight))


def _suspect_next(off: OffRoute, sight: Sight, away: float, limit: float) -> tuple[OffRoute, list[IncidentEvent]]:
    if away <= limit:
        return OffRoute(), []
    motion = sight.motion
    fixes, driven = off.fixes + 1, off.driven_m + motion.driven_m
    worst, bypassed = max(off.worst_m, away), _bypassed(off.bypassed, sight)
    wait_ms = REFLECTED_MS if off.reflected else OFF_MS
    sure = fixes >= OFF_FIXES and motion.fixed_at_ms - off.since_ms >= wait_ms and driven >= OFF_DRIVEN_M
    severity = _severity(worst)
    phase = OFF if sure else SUSPECT
    now = OffRoute(phase, off.since_ms, fixes, driven, off.reflected, off.left_m, worst, 0, severity, bypassed)
    return now, [_off_route_event(now, sight.fix, sight.ride, severity, "opened", None, {})] if sure else []


def _off_next(off: OffRoute, sight: Sight, away: float, limit: float) -> tuple[OffRoute, list[IncidentEvent]]:
    before = sight.before
    advancing = before is None or sight.match.along_m > before.along_m
    back = off.back + 1 if away < BACK_SHARE * limit and advancing else 0
    worst, bypassed = max(off.worst_m, away), _bypassed(off.bypassed, sight)
    severity = _severity(worst)
    now = OffRoute(
        OFF, off.since_ms, off.fixes + 1, off.driven_m + sight.motion.driven_m, off.reflected, off.left_m, worst, back, severity, bypassed
    )
    if back >= BACK_FIXES:
        facts = {"rejoinedM": round(sight.match.along_m), "reason": "BACK_ON_ROUTE"}
        return OffRoute(), [_off_route_event(now, sight.fix, sight.ride, severity, "closed", sight.motion.fixed_at_ms, facts)]
    if severity != off.severity:
        return now, [_off_route_event(now, sight.fix, sight.ride, severity, severity, None, {})]
    return now, []


def _severity(worst_m: float) -> str:
    return CRITICAL if worst_m >= CRITICAL_M else MAJOR if worst_m >= MAJOR_M else MINOR


def _bypassed(known: tuple[int, ...], sight: Sight) -> tuple[int, ...]:
    missed = tuple(stop.stop_sequence for stop in sight.stops if stop.kind == "MISSED")
    return (known + missed)[:BYPASSED_MAX] if missed else known


def _off_route_event(
    off: OffRoute, fix: Fix, ride: Ride, severity: str, saying: str, closed_at_ms: int | None, facts: dict[str, Any]
) -> IncidentEvent:
    detail = {"maxOffsetM": round(off.worst_m), "leftM": round(off.left_m), "bypassedStops": list(off.bypassed), **facts}
    return _incident(OFF_ROUTE, severity, off.since_ms, fix, ride, saying, closed_at_ms, detail)


def wrong_way_next(wrong: WrongWay, sight: Sight) -> tuple[WrongWay, list[IncidentEvent]]:
    """Opens when the match has run back 150 m in at least three fixes on the shape, closes when it has come forward 100 m."""
    raw, at_ms = sight.match.raw_m, sight.motion.fixed_at_ms
    if sight.match.offset_m > off_limit_m(sight.motion.accuracy_m):
        return wrong, []
    if wrong.open:
        if raw < wrong.low_m:
            return WrongWay(True, wrong.since_ms, wrong.peak_m, raw, wrong.fixes + 1), []
        if raw - wrong.low_m >= RIGHT_M:
            return WrongWay(False, at_ms, raw, raw, 0), [_wrong_way_event(wrong, sight.fix, sight.ride, "closed", at_ms)]
        return wrong, []
    if raw >= wrong.peak_m or sight.before is None or sight.unsure:
        return WrongWay(False, at_ms, raw, raw, 0), []
    fixes = wrong.fixes + 1 if raw < wrong.low_m else wrong.fixes
    now = WrongWay(wrong.peak_m - raw >= WRONG_M and fixes >= WRONG_FIXES, wrong.since_ms, wrong.peak_m, min(raw, wrong.low_m), fixes)
    return now, [_wrong_way_event(now, sight.fix, sight.ride, "opened", None)] if now.open else []


def _wrong_way_event(wrong: WrongWay, fix: Fix, ride: Ride, saying: str, closed_at_ms: int | None) -> IncidentEvent:
    detail = {"turnedM": round(wrong.peak_m), "backToM": round(wrong.low_m)}
    return _incident(WRONG_WAY, MAJOR, wrong.since_ms, fix, ride, saying, closed_at_ms, detail)


def _missed(sight: Sight, stop: StopEvent) -> IncidentEvent:
    at_ms = sight.motion.fixed_at_ms
    detail = {"stopId": stop.stop_id, "stopSequence": stop.stop_sequence}
    facts = (MISSED_STOP, sight.fix.bus_id, sight.ride.trip_id, sight.ride.start_date, stop.stop_sequence)
    return _incident(MISSED_STOP, MINOR, at_ms, sight.fix, sight.ride, "closed", at_ms, detail, facts)


def _incident(
    kind: str,
    severity: str,
    opened_at_ms: int,
    fix: Fix,
    ride: Ride,
    saying: str,
    closed_at_ms: int | None,
    detail: dict[str, Any],
    facts: tuple[object, ...] | None = None,
) -> IncidentEvent:
    incident = event_id(*(facts or (kind, fix.bus_id, ride.trip_id, ride.start_date, opened_at_ms)))
    return IncidentEvent(
        event_id(incident, saying), incident, kind, severity, fix.bus_id, ride.trip_id, ride.start_date, ride.route_id, opened_at_ms,
        closed_at_ms, fix.lat, fix.lon, msgspec.json.encode(detail).decode(),
    )  # fmt: skip
