"""Headways of an area: who follows whom at every stop, how far behind, and bunches of buses. Pure; one per area, like the estimator.

Passes of all vehicles are taken in the order of the fixes that showed them, `WAIT_MS` behind the area's clock, so that the order in which
fixes were received does not matter: within the window in which fixes settle, any order gives the same gaps, episodes and state. A vehicle
whose network is slower than that is taken as it comes.

A **gap** is the time between two departures of different buses from one stop of a route and direction (a stop that a trip visits twice is
two). A **bunch** is a gap below a share of the scheduled one (or below a minute, at most half of the scheduled one) at two stops in a row; it
ends when the gap has opened again, with the follower's trip, or after half an hour without a pass. The last stop does not count: there
buses wait for each other. What was interpolated over a gap of the receiver counts neither for nor against.

State is kept stop by stop (`dump`), so that a pass costs one small record.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from engine.events import IncidentEvent
from engine.tracking.episodes import BUNCHING, CLOSED, MAJOR, MINOR, OPENED
from engine.tracking.ride import Course, event_id
from engine.tracking.rules import WatchConfig
from engine.tracking.timetable import TripInstance

WAIT_MS: Final = 6_000  # a fix settles 3 s after its time, or with a tick 2.2 s later
KEPT: Final = 4  # passes of one stop that are kept
LEADER_MS: Final = 3 * 3_600_000  # who passed longer ago leads nobody
SILENT_MS: Final = 30 * 60_000  # a bunch of which nothing was seen for so long is over
PREFIX: Final = "gaps:"  # of the keys of its state


class Pass(msgspec.Struct, frozen=True, array_like=True, gc=False, order=True):
    """A bus left a stop; without `stop`: it left its trip. In the order in which they are taken."""

    known_ms: int  # of the fix that showed it
    bus_id: str
    sequence: int
    at_ms: int
    stop: str  # route, direction, stop and which visit of it, as one key
    trip_id: str
    start_date: str
    route_id: str
    planned_ms: int
    measured: bool
    lat: float
    lon: float


class Bunch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a bus has followed its leader at its last stops."""

    stops: int  # in a row
    since_ms: int  # at the first of them
    seen_ms: int  # at the last
    last: Pass
    severity: str | None = None  # of the open episode
    leader: str = ""
    gap_s: int = 0
    planned_s: int = 0


class Headways:
    """Drive it with `passed` and `over` as fixes settle, and `look` once a second."""

    def __init__(self) -> None:
        self._at: dict[str, list[Pass]] = {}  # stop key -> its newest passes by time
        self._bunches: dict[str, Bunch] = {}
        self._waiting: list[Pass] = []
        self._changed: dict[str, None] = {}

    def passed(self, instance: TripInstance, course: Course, index: int, bus_id: str, at_ms: int, known_ms: int, *, measured: bool) -> None:
        """A vehicle left the stop `index` of its trip, as the fix of `known_ms` showed."""
        if index == course.last:
            return
        trip, stop_id = instance.trip, course.ids[index]
        visit = course.ids[:index].count(stop_id)
        key = f"{trip.route_id}|{course.pattern.direction_id}|{stop_id}|{visit}"
        lat, lon = course.places[index]
        insort(
            self._waiting,
            Pass(
                known_ms, bus_id, course.pattern.stop_sequences[index], at_ms, key, trip.trip_id, instance.start_date, trip.route_id,
                instance.departure_ms(index), measured, lat, lon,
            ),
        )  # fmt: skip
        self._changed[PREFIX + "waiting"] = None

    def over(self, bus_id: str, trip_id: str, start_date: str, route_id: str, at_ms: int) -> None:
        """A vehicle left its trip: done, or it drives another."""
        end = 1 << 31  # after the last stop of the same fix
        insort(self._waiting, Pass(at_ms, bus_id, end, at_ms, "", trip_id, start_date, route_id, 0, False, 0.0, 0.0))
        self._changed[PREFIX + "waiting"] = None

    def look(self, now_ms: int, config: WatchConfig) -> list[IncidentEvent]:
        """Everything that is due by now, in its order."""
        said: list[IncidentEvent] = []
        waiting = self._waiting
        if waiting and waiting[0].known_ms <= now_ms - WAIT_MS:
            due = [one for one in waiting if one.known_ms <= now_ms - WAIT_MS]
            self._waiting = waiting[len(due) :]
            self._changed[PREFIX + "waiting"] = None
            for one in due:
                if one.stop:
                    self._take(one, config, said)
                else:
                    self._close(one, one.at_ms, "TRIP_OVER", said)
        if self._bunches:
            silent = [bunch for bunch in self._bunches.values() if bunch.seen_ms < now_ms - WAIT_MS - SILENT_MS]
            for bunch in silent:
                self._close(bunch.last, bunch.seen_ms, "NO_WORD", said)
        return said

    def _take(self, one: Pass, config: WatchConfig, said: list[IncidentEvent]) -> None:
        passes = [each for each in self._at.get(one.stop, ()) if abs(one.at_ms - each.at_ms) < LEADER_MS]
        leader = next((each for each in reversed(passes) if each.at_ms <= one.at_ms and each.bus_id != one.bus_id), None)
        insort(passes, one, key=_by_time)
        self._at[one.stop] = passes[-KEPT:]
        self._changed[f"{PREFIX}at:{one.stop}"] = None
        if leader is not None and one.measured and leader.measured:
            self._compare(one, leader, config, said)

    def _compare(self, one: Pass, leader: Pass, config: WatchConfig, said: list[IncidentEvent]) -> None:
        gap_s, planned_s = (one.at_ms - leader.at_ms) / 1000.0, abs(one.planned_ms - leader.planned_ms) / 1000.0
        known = self._bunches.get(one.bus_id)
        if known is not None and (known.last.trip_id, known.last.start_date) != (one.trip_id, one.start_date):
            self._close(known.last, known.seen_ms, "TRIP_OVER", said)
            known = None
        limit_s = min(max(config.bunched_share * planned_s, config.bunched_s), 0.5 * planned_s)
        if gap_s < limit_s:
            self._bunched(one, known, leader, round(gap_s), round(planned_s), config, said)
        elif known is not None and (known.severity is None or gap_s >= config.spread_share * planned_s):
            self._close(one, one.at_ms, "SPREAD", said)
        elif known is not None:
            self._keep(one.bus_id, msgspec.structs.replace(known, seen_ms=one.at_ms, last=one))

    def _bunched(
        self, one: Pass, known: Bunch | None, leader: Pass, gap_s: int, planned_s: int, config: WatchConfig, said: list[IncidentEvent]
    ) -> None:
        stops = 1 if known is None else known.stops + 1
        since_ms = one.at_ms if known is None else known.since_ms
        severity = None if known is None else known.severity
        wanted = None if stops < config.bunched_stops else MAJOR if stops >= config.bunched_major_stops else MINOR
        now = Bunch(stops, since_ms, one.at_ms, one, wanted, leader.bus_id, gap_s, planned_s)
        if wanted is not None and wanted != severity:
            said.append(_event(now, OPENED if severity is None else wanted, None, {}))
        self._keep(one.bus_id, now)

    def _close(self, at: Pass, at_ms: int, reason: str, said: list[IncidentEvent]) -> None:
        known = self._bunches.get(at.bus_id)
        if known is None or (known.last.trip_id, known.last.start_date) != (at.trip_id, at.start_date):
            return
        if known.severity is not None:
            said.append(_event(known, CLOSED, max(at_ms, known.since_ms), {"reason": reason}))
        del self._bunches[at.bus_id]
        self._changed[f"{PREFIX}bunch:{at.bus_id}"] = None

    def _keep(self, bus_id: str, bunch: Bunch) -> None:
        self._bunches[bus_id] = bunch
        self._changed[f"{PREFIX}bunch:{bus_id}"] = None

    def sweep(self, now_ms: int) -> None:
        """Lets go of stops at which nobody has passed for a day: once a day, for feeds come and go."""
        for key in [key for key, passes in self._at.items() if passes[-1].at_ms < now_ms - 86_400_000]:
            del self._at[key]
            self._changed[f"{PREFIX}at:{key}"] = None

    def dump(self) -> Iterator[tuple[str, bytes]]:
        """What changed since the last time: state key -> blob; b"" drops the key."""
        changed, self._changed = self._changed, {}
        for key in changed:
            kind, _, name = key.removeprefix(PREFIX).partition(":")
            value: Any = self._waiting if kind == "waiting" else self._at.get(name) if kind == "at" else self._bunches.get(name)
            yield key, _encode(value) if value else b""

    def load(self, states: Mapping[str, bytes]) -> int:
        """What `dump` said, all keys of it, taken up again; how many could not be read."""
        self._at, self._bunches, self._waiting, self._changed, bad = {}, {}, [], {}, 0
        for key, blob in states.items():
            if not key.startswith(PREFIX) or not blob:
                continue
            kind, _, name = key.removeprefix(PREFIX).partition(":")
            try:
                if kind == "bunch":
                    self._bunches[name] = _decode_bunch(blob)
                elif kind == "at":
                    self._at[name] = _decode_passes(blob)
                else:
                    self._waiting = sorted(_decode_passes(blob))
            except (msgspec.DecodeError, msgspec.ValidationError):
                bad += 1
        return bad


_encode = msgspec.msgpack.Encoder().encode
_decode_passes = msgspec.msgpack.Decoder(list[Pass]).decode
_decode_bunch = msgspec.msgpack.Decoder(Bunch).decode


def _by_time(one: Pass) -> tuple[int, str]:
    return one.at_ms, one.bus_id


def _event(bunch: Bunch, saying: str, closed_at_ms: int | None, facts: dict[str, Any]) -> IncidentEvent:
    one = bunch.last
    name = event_id(BUNCHING, one.bus_id, one.trip_id, one.start_date, bunch.since_ms)
    detail = {"leaderBusId": bunch.leader, "gapS": bunch.gap_s, "scheduledGapS": bunch.planned_s, "stops": bunch.stops, **facts}
    return IncidentEvent(
        event_id(name, saying), name, BUNCHING, bunch.severity or MINOR, one.bus_id, one.trip_id, one.start_date, one.route_id,
        bunch.since_ms, closed_at_ms, one.lat, one.lon, msgspec.json.encode(detail).decode(),
    )  # fmt: skip
