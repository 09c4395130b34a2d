"""What is watched of a vehicle whether it is on a trip or not: small tables with hysteresis, one open incident per episode.

Pure. `watch.py` has the tables of a trip; those here go on from trip to trip.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from engine.events import IncidentEvent
from engine.tracking.fix import Fix, Motion
from engine.tracking.ride import Course, Ride
from engine.tracking.rules import Rules
from engine.tracking.timetable import TripInstance
from geo.match import Match


class Guard(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where one vehicle stands in each of the tables."""


AT_EASE = Guard()


class Sight(NamedTuple):
    """One fix as the tables see it. `ride`, `course`, `instance`, `match`: None on no trip."""

    fix: Fix
    motion: Motion
    last: Motion | None  # of the fix before
    ride: Ride | None
    course: Course | None
    instance: TripInstance | None
    match: Match | None
    rules: Rules


def look(guard: Guard, sight: Sight) -> tuple[Guard, list[IncidentEvent]]:
    """One fix further; the same object where nothing changed."""
    return guard, []
