"""Playback: where buses were in any stretch of time that the record still has. For PARTNER_ADMIN and SUPER_ADMIN; many buses also for AGENT.

Of one bus every fix with its verdict, or, with `stepS` or `speed`, what `GET /v1/playback` gives of many: positions on a grid of instants, in
columns, and what happened meanwhile. A sample is the newest fix of its instant, at most `HOLD_S` old, else null: nothing is invented between
two fixes. A page has at most `SAMPLES_MOST` samples, its cursor is the next instant. JSON, or MessagePack with `Accept: application/msgpack`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from litestar import Request, Response, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, QueryParameter

from api.analytics import plans_of, route_of
from api.ids import public_id, trip_key
from api.network import Cursor
from api.parts import Parts, parts_of
from api.tracking import TrackPoints, area_of_bus, cursor_time, fleet_of, history_of, parse_box, point_of, span_of
from engine.errors import Invalid, NotFound, Unavailable
from engine.live.frames import rfc3339
from engine.store.incidents import Episode
from engine.store.playback import PastCall, PlaybackReader, Sample
from engine.tracking.plans import Plan

SAMPLES_MOST: Final = 20_000  # of one page: buses times instants
BUSES_MOST: Final = 300  # of one question
FINE: Final = 1_000  # instants of a stretch whose step nobody named
FRAMES_PER_S: Final = 4  # what `speed` is made for: so many instants in a second of watching
HOLD_S: Final = 180  # or a step, if that is longer: feeds with a fix every two minutes play without flicker
STEP_MOST_S: Final = 3_600
MSGPACK: Final = "application/msgpack"


class PlayedBus(msgspec.Struct, frozen=True, rename="camel"):
    """One bus in columns, each as long as `times`. None: nothing was heard."""

    bus_id: str
    lat: list[float | None]
    lon: list[float | None]
    speed_mps: list[float | None]
    bearing: list[float | None]
    state: list[int | None]  # place in `states`
    trip: list[int | None]  # place in `trips`
    delay_s: list[int | None]  # by the timetable at its place along the line; None: on no trip of the feed in force


class PlayedIncident(msgspec.Struct, frozen=True, rename="camel"):
    incident_id: str
    kind: str
    severity: str
    bus_id: str
    trip_id: str | None
    opened_at: str
    closed_at: str | None
    lat: float
    lon: float


class PlayedCall(msgspec.Struct, frozen=True, rename="camel"):
    bus_id: str
    trip_id: str
    stop_id: str
    seq: int
    kind: str  # SERVED | PASSED | MISSED | INTERPOLATED
    arrived_at: str | None
    departed_at: str | None


class Playback(msgspec.Struct, frozen=True, rename="camel"):
    step_s: int
    times_ms: list[int]
    states: list[str]
    trips: list[str]
    buses: list[PlayedBus]  # those of which something was heard
    incidents: list[PlayedIncident]  # that were going on
    stops: list[PlayedCall]
    next_cursor: str | None


Since = Annotated[str, QueryParameter(name="from", description="RFC 3339")]
Until = Annotated[str, QueryParameter(name="to", description="RFC 3339")]
Step = Annotated[int | None, QueryParameter(name="stepS", ge=1, le=STEP_MOST_S, description="seconds between two instants")]
Speed = Annotated[int | None, QueryParameter(ge=1, le=3_600, description="how much faster it is watched than it was: makes the step")]
PLAYED: Final = ResponseSpec(Playback, generate_examples=False, description="positions on a grid")
ONE: Final = ResponseSpec(TrackPoints | Playback, generate_examples=False, description="every fix, or positions on a grid")


@get("/buses/{bus_id:str}/playback", tags=["tracking"], responses={200: ONE})
async def read_playback(
    request: Request[Any, Any, Any],
    bus_id: FromPath[str],
    since: Since,
    until: Until,
    step: Step = None,
    speed: Speed = None,
    limit: Annotated[int, QueryParameter(ge=1, le=5_000, description="fixes a page, where no grid is asked for")] = 1_000,
    cursor: Cursor = None,
) -> Response[Any]:
    """A bus again: every fix with its verdict, oldest first; with `stepS` or `speed` its positions on a grid of instants."""
    parts = parts_of(request)
    fleet_of(parts, request, bus_id)
    began, ended = span_of(since, until)
    if step is not None or speed is not None:
        plans = parts.plans.all() if parts.plans is not None else []
        return _answer(request, await _play(parts, plans, [bus_id], began, ended, _step(began, ended, step, speed), cursor))
    if cursor is not None:
        began = max(began, cursor_time(cursor) + timedelta(milliseconds=1))
    rows = await history_of(parts).playback(bus_id, began, ended, limit + 1)
    more = len(rows) > limit
    if more:  # fixes of one instant stay on one page, for the cursor is an instant
        next_ts = rows.pop().ts
        rows = [row for row in rows if row.ts < next_ts] or rows
    items = [point_of(area_of_bus(parts, bus_id), row) for row in rows]
    return _answer(request, TrackPoints(items, str(_ms(rows[-1].ts)) if more else None))


@get("/playback", tags=["tracking"], responses={200: PLAYED})
async def read_playback_of_many(
    request: Request[Any, Any, Any],
    since: Since,
    until: Until,
    area: Annotated[str | None, QueryParameter(description="a feed: the buses that drive it")] = None,
    route: Annotated[str | None, QueryParameter(description="a route's id: the buses that were on it")] = None,
    bbox: Annotated[str | None, QueryParameter(description="west,south,east,north: what was inside")] = None,
    step: Step = None,
    speed: Speed = None,
    partner: FromQuery[str | None] = None,
    cursor: Cursor = None,
) -> Response[Any]:
    """Many buses again, of a feed, a route or a box: their positions on one grid of instants, with the incidents and calls of that time."""
    parts = parts_of(request)
    plans = plans_of(request, partner)
    began, ended = span_of(since, until)
    box = None if bbox is None else parse_box(bbox)
    if area is not None:
        plans = [plan for plan in plans if plan.feed_id == area]
        if not plans:
            raise NotFound(f"no feed {area!r}")
    plans, local = route_of(plans, route)
    if local is not None:
        own = await _reader(parts).buses_of_route(plans[0].feed_id, local, began, ended, BUSES_MOST + 1)
        buses = [bus_id for bus_id in own if _may_see(parts, plans, bus_id)]
    elif area is not None or box is not None:
        buses = sorted(bus.bus_id for bus in _registered(parts, plans))
    else:
        raise Invalid("say what is to be played: area, route or bbox")
    if len(buses) > BUSES_MOST:
        raise Invalid(f"{len(buses)} buses and more: at most {BUSES_MOST} are played at once; ask for a route")
    return _answer(request, await _play(parts, plans, buses, began, ended, _step(began, ended, step, speed), cursor, box))


# ------------------------------------------------------------------------------------------------ how they are made


def _reader(parts: Parts) -> PlaybackReader:
    if parts.postgres is None:
        raise Unavailable("this worker has no access to the record", retry_after_s=5)
    return PlaybackReader(parts.postgres)


def _registered(parts: Parts, plans: list[Plan]) -> list[Any]:
    """The buses of these feeds, as their operators have them; retired ones too, for they have a past."""
    own = {plan.feed_id: plan.partner_id for plan in plans}
    buses = parts.registry.buses.values() if parts.registry is not None else ()
    return [bus for bus in buses if own.get(bus.area) == bus.partner_id]


def _may_see(parts: Parts, plans: list[Plan], bus_id: str) -> bool:
    bus = parts.registry.buses.get(bus_id) if parts.registry is not None else None
    return bus is not None and bus.partner_id in {plan.partner_id for plan in plans}


def _step(began: datetime, ended: datetime, step: int | None, speed: int | None) -> int:
    """Seconds between two instants: as asked, by the speed of watching, or so that the stretch has FINE of them."""
    if step is not None:
        return step
    if speed is not None:
        return max(1, round(speed / FRAMES_PER_S))
    return max(1, min(STEP_MOST_S, -int(-(ended - began).total_seconds() // FINE)))


async def _play(
    parts: Parts,
    plans: list[Plan],
    bus_ids: list[str],
    began: datetime,
    ended: datetime,
    step_s: int,
    cursor: str | None,
    box: tuple[float, float, float, float] | None = None,
) -> Playback:
    """One page: instants from `began` (or the cursor) on."""
    if cursor is not None:
        began = max(began, cursor_time(cursor))
    total = int((ended - began).total_seconds() // step_s) + 1 if began <= ended else 0
    count = max(0, min(total, max(1, SAMPLES_MOST // max(1, len(bus_ids)))))
    reader, begin_ms = _reader(parts), _ms(began)
    times = [begin_ms + k * step_s * 1000 for k in range(count)]
    numbers = await reader.numbers(bus_ids)
    names = {no: name for name, no in numbers.items()}
    samples = await reader.samples(list(names), began, step_s, count, max(HOLD_S, step_s)) if names and count else []
    if box is not None:
        samples = [sample for sample in samples if _inside(sample, box)]
    words = await reader.names(sorted({no for s in samples for no in (s.state_no, s.trip_no) if no is not None}))
    columns = _Columns(plans, parts, times, names, words)
    for sample in samples:
        columns.add(sample)
    buses = columns.buses()
    seen, until = [bus.bus_id for bus in buses], began + timedelta(seconds=count * step_s)
    until = min(until, ended) if count == total else until
    incidents = await reader.incidents([plan.feed_id for plan in plans], seen, began, until) if seen else []
    calls = await reader.stop_events(seen, began, until) if seen else []
    after = str(begin_ms + count * step_s * 1000) if count < total else None
    return Playback(
        step_s,
        times,
        columns.states,
        columns.trips,
        buses,
        [_incident(row) for row in incidents if row.bus_id in seen],
        [_call(row) for row in calls],
        after,
    )


def _inside(sample: Sample, box: tuple[float, float, float, float]) -> bool:
    west, south, east, north = box
    lat, lon = sample.lat_e6 / 1e6, sample.lon_e6 / 1e6
    return south <= lat <= north and (west <= lon <= east if west <= east else lon >= west or lon <= east)


class _Columns:
    """Samples into columns; names of states and trips once each."""

    def __init__(self, plans: Sequence[Plan], parts: Parts, times: list[int], names: dict[int, str], words: dict[int, str]) -> None:
        self._plans = {plan.feed_id: plan for plan in plans}
        self._parts, self._times, self._names, self._words = parts, times, names, words
        self._buses: dict[int, PlayedBus] = {}
        self._drives: dict[tuple[int, int], list[tuple[int, int]]] = {}  # (bus number, place in `trips`) -> (k, metres along)
        self._known: dict[tuple[str, str, int], int] = {}
        self._instances: list[Any] = []  # of each of `trips`; None: not of the feed in force
        self.states: list[str] = []
        self.trips: list[str] = []

    def add(self, s: Sample) -> None:
        bus = self._buses.get(s.bus_no)
        if bus is None:
            columns: list[list[Any]] = [[None] * len(self._times) for _ in range(7)]
            bus = self._buses[s.bus_no] = PlayedBus(self._names[s.bus_no], *columns)
        bus.lat[s.k], bus.lon[s.k] = s.lat_e6 / 1e6, s.lon_e6 / 1e6
        bus.speed_mps[s.k] = None if s.speed_cms is None else s.speed_cms / 100
        bus.bearing[s.k] = None if s.bearing_ddeg is None else s.bearing_ddeg / 10
        if s.state_no is not None:
            bus.state[s.k] = self._state(self._words[s.state_no])
        if s.trip_no is not None and s.start_date is not None:
            place = self._trip(bus.bus_id, self._words[s.trip_no], s.start_date)
            if place is not None:
                bus.trip[s.k] = place
                if s.along_m is not None and self._instances[place] is not None:
                    self._drives.setdefault((s.bus_no, place), []).append((s.k, s.along_m))

    def _state(self, word: str) -> int:
        if word not in self.states:
            self.states.append(word)
        return self.states.index(word)

    def _trip(self, bus_id: str, trip_id: str, start_date: int) -> int | None:
        area = area_of_bus(self._parts, bus_id)
        if area is None:
            return None
        key = area, trip_id, start_date
        place = self._known.get(key)
        if place is None:
            place = self._known[key] = len(self.trips)
            self.trips.append(trip_key(area, trip_id, str(start_date)))
            plan = self._plans.get(area)
            self._instances.append(None if plan is None else plan.timetable.instance(trip_id, str(start_date)))
        return place

    def buses(self) -> list[PlayedBus]:
        """By id, delays filled in: how much later than planned each bus was at its place along the line."""
        for (bus_no, place), drive in self._drives.items():
            instance, delays = self._instances[place], self._buses[bus_no].delay_s
            pattern = instance.trip.pattern
            planned_s = np.interp([along for _, along in drive], pattern.along_m, instance.trip.departure_s)
            for (k, _), planned in zip(drive, planned_s.tolist(), strict=True):
                delays[k] = round((self._times[k] - instance.base_ms) / 1000 - planned)
        return sorted(self._buses.values(), key=lambda bus: bus.bus_id)


def _incident(row: Episode) -> PlayedIncident:
    trip_id = None if row.trip_id is None or row.start_date is None else trip_key(row.area, row.trip_id, row.start_date)
    times = rfc3339(_ms(row.opened_at)), _text(row.closed_at)
    return PlayedIncident(row.incident_id, row.kind, row.severity, row.bus_id, trip_id, *times, row.lat, row.lon)


def _call(row: PastCall) -> PlayedCall:
    ids = row.bus_id, trip_key(row.area, row.trip_id, row.start_date), public_id(row.area, row.stop_id), row.stop_sequence
    return PlayedCall(*ids, row.kind, _text(row.arrived_at), _text(row.departed_at))


def _answer(request: Request[Any, Any, Any], body: TrackPoints | Playback) -> Response[Any]:
    if MSGPACK in request.headers.get("accept", ""):
        return Response(msgspec.msgpack.encode(body), media_type=MSGPACK)
    return Response(body)


def _ms(when: datetime) -> int:
    return round(when.timestamp() * 1000)


def _text(when: datetime | None) -> str | None:
    return None if when is None else rfc3339(_ms(when.astimezone(UTC)))


ROUTERS: Final = (read_playback, read_playback_of_many)
