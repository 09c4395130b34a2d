"""The life of a fix, inside one area: the visible list of steps. Pure: no await, no clock, no I/O.

`Tracker` is all that the shell (`control.py`), the replay and the tests talk to. (To be deepened: see the brief.)
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from engine.events import Event, Position, TrackRow, TripForecast
from engine.tracking.fix import Fix
from engine.tracking.timetable import Timetable


class Outcome(msgspec.Struct):
    """All that changed since the last `take()`: the shell commits it as one batch, or forgets it and restores."""

    states: dict[str, bytes]  # state key -> blob to keep in Redis ("bus:{id}" of a vehicle; other keys for what the area has learned)
    gone: list[str]  # bus ids to drop from the live picture and the GEO index
    positions: list[Position]  # newest per bus
    forecasts: list[TripForecast]  # newest per bus
    rows: list[TrackRow]
    events: list[Event]


class Tracker:
    def __init__(self, timetable: Timetable | None, *, feed_id: str, partner_id: str) -> None:
        """`timetable` None: an area without a feed; vehicles move, no trips."""
        self.timetable, self.feed_id, self.partner_id = timetable, feed_id, partner_id
        self._out = Outcome({}, [], [], [], [], [])

    def restore(self, states: Mapping[str, bytes]) -> None:
        """Forget everything and go on from what `Outcome.states` said, key by key."""

    def swap(self, timetable: Timetable) -> None:
        """A newer feed version; vehicles in a trip stay on it."""
        self.timetable = timetable

    def fold(self, fix: Fix) -> None:
        """One fix, in order of receipt. May raise: the shell sends the fix to the dead letters and goes on."""
        self._out.positions.append(
            Position(
                bus_id=fix.bus_id, partner_id=self.partner_id, feed_id=self.feed_id, trip_id=None, route_id=None, start_date=None,
                lat=fix.lat, lon=fix.lon, bearing_deg=fix.bearing_deg, speed_mps=fix.speed_mps, along_m=None, offset_m=None,
                state="DEADHEAD", delay_s=None, next_stop=None, fixed_at_ms=fix.fixed_at_ms, received_at_ms=fix.received_at_ms,
            )
        )  # fmt: skip
        self._out.states["bus:" + fix.bus_id] = b""
        self._out.rows.append(
            TrackRow(
                fix.bus_id, fix.fixed_at_ms, fix.lat, fix.lon, fix.received_at_ms, fix.device_id, fix.source, "OK", fix.accuracy_m,
                fix.speed_mps, fix.bearing_deg, fix.seq, None, None, None, None, "DEADHEAD",
            )
        )  # fmt: skip

    def tick(self, now_ms: int) -> None:
        """Once a second: silence, staleness, settled events and expiry happen too."""

    def take(self) -> Outcome:
        """What changed, and a clean slate."""
        out, self._out = self._out, Outcome({}, [], [], [], [], [])
        return out
