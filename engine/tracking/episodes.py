"""Episodes: what every table of the watches shares. The kinds, the severities, one fix as the tables see it, and the words of an episode.

An episode is opened once, may change (each rise of its severity is said once), and is closed once. Its id and the ids of its sayings are made
of what happened, so a replay says the same ids again and every channel and table knows them. Pure.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from engine.events import IncidentEvent
from engine.tracking.fix import Fix, Motion
from engine.tracking.ride import Course, Ride, event_id
from engine.tracking.rules import Rules
from engine.tracking.timetable import TripInstance
from geo.match import Match

MINOR, MAJOR, CRITICAL = "MINOR", "MAJOR", "CRITICAL"
SEVERITIES: Final = (MINOR, MAJOR, CRITICAL)

OFF_ROUTE, WRONG_WAY, MISSED_STOP = "OFF_ROUTE", "WRONG_WAY", "MISSED_STOP"
FENCE_ENTERED, FENCE_EXITED, FENCE_PASSED = "FENCE_ENTERED", "FENCE_EXITED", "FENCE_PASSED"
SPEEDING, IDLING, BUNCHING, SILENT, DELAYED, SOS = "SPEEDING", "IDLING", "BUNCHING", "SILENT", "DELAYED", "SOS"
KINDS: Final = (
    OFF_ROUTE, WRONG_WAY, MISSED_STOP, FENCE_ENTERED, FENCE_EXITED, FENCE_PASSED, SPEEDING, IDLING, BUNCHING, SILENT, DELAYED, SOS,
)  # fmt: skip

OPENED, CLOSED = "opened", "closed"  # sayings; a change is said under its new severity


class Sight(NamedTuple):
    """One fix as the tables see it that watch a vehicle on a trip or not. `ride`, `course`, `instance`, `match`: None on no trip."""

    fix: Fix
    motion: Motion
    last: Motion | None  # of the fix before
    ride: Ride | None
    course: Course | None
    instance: TripInstance | None
    match: Match | None
    rules: Rules


def incident(
    kind: str,
    severity: str,
    opened_at_ms: int,
    fix: Fix,
    ride: Ride | None,
    saying: str,
    closed_at_ms: int | None,
    detail: dict[str, Any],
    facts: tuple[object, ...] | None = None,
) -> IncidentEvent:
    """One saying of an episode. `facts`: what its id is made of, where kind, bus, trip and the time of its beginning are not enough."""
    trip_id, start_date, route_id = (ride.trip_id, ride.start_date, ride.route_id) if ride is not None else (None, None, None)
    name = event_id(*(facts or (kind, fix.bus_id, trip_id, start_date, opened_at_ms)))
    return IncidentEvent(
        event_id(name, saying), name, kind, severity, fix.bus_id, trip_id, start_date, route_id, opened_at_ms, closed_at_ms,
        fix.lat, fix.lon, msgspec.json.encode(detail).decode(),
    )  # fmt: skip


def worse(severity: str, other: str) -> str:
    """The higher of two."""
    return other if SEVERITIES.index(other) > SEVERITIES.index(severity) else severity
