"""A stop is near: a word for passengers, said once for each stop of a trip. Pure.

Said with the first fix that is nearer to the next stop than `approach_m`, or than the way of `approach_s` seconds at its speed; the word goes
with the stop's own messages (`stop` on the channels of trip and stop), where a later SERVED takes its place. Off its shape, and at the first
stop, where a trip begins, there is nothing to approach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.events import ApproachEvent
from engine.tracking.ride import event_id

if TYPE_CHECKING:
    from engine.tracking.watch import Sight


def approached(told: int, sight: Sight, on_shape: bool, said: list[Any]) -> int:
    """The index of the last stop that was said to be near, one fix further."""
    ride, course = sight.ride, sight.course
    ahead = ride.next_stop
    if ahead <= told or ahead > course.last or not ahead or not on_shape:
        return told
    config, away_m = sight.rules.watch, course.along_m[ahead] - sight.match.along_m
    if away_m > config.approach_m and away_m > config.approach_s * sight.motion.speed_mps:
        return told
    fix, sequence = sight.fix, course.pattern.stop_sequences[ahead]
    name = event_id("approach", fix.bus_id, ride.trip_id, ride.start_date, sequence, ride.attempt)
    said.append(
        ApproachEvent(
            name, fix.bus_id, ride.trip_id, ride.start_date, ride.route_id, course.ids[ahead], sequence, sight.motion.fixed_at_ms,
            max(0.0, away_m),
        )
    )  # fmt: skip
    return ahead
