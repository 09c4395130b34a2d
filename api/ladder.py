"""The ladder (string-line diagram) of a route: time against distance of every trip of a day, as planned and as driven, for who runs it.

A diagram has one axis of places: that of the pattern with the most trips. Trips of other patterns are put onto it by the stops that they
share; a trip that shares fewer than two with it is left out. Observed lines come from stop events, with `everyS` from fixes in between too.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from litestar import Request, get
from litestar.params import FromQuery, QueryParameter
from numpy.typing import NDArray

from api.analytics import analytics_of, day_of, plans_of, route_of
from api.ids import public_id, trip_key
from api.parts import parts_of
from engine.errors import Invalid
from engine.store.analytics import Analytics, LadderStop
from engine.tracking.plans import Plan
from engine.tracking.timetable import Pattern, TripInstance

TRIPS_MOST: Final = 500


class LadderPlace(msgspec.Struct, frozen=True, rename="camel"):
    stop_id: str
    name: str
    along_m: float


class LadderTrip(msgspec.Struct, frozen=True, rename="camel"):
    """Lines in columns: the same place of `...AtMs` and `...AlongM` is one point, in the order of time."""

    trip_id: str
    bus_id: str | None  # None: nobody was seen on it
    headsign: str | None
    planned_at_ms: list[int]
    planned_along_m: list[float]
    driven_at_ms: list[int]
    driven_along_m: list[float]
    missed_seqs: list[int]  # stops that it missed


class Ladder(msgspec.Struct, frozen=True, rename="camel"):
    route_id: str
    direction_id: int
    date: str
    places: list[LadderPlace]
    trips: list[LadderTrip]  # by planned departure
    left_out: int  # trips of patterns that do not fit the axis


@get("/analytics/ladder", tags=["analytics"])
async def read_ladder(
    request: Request[Any, Any, Any],
    route: Annotated[str, QueryParameter(description="a route's id")],
    direction: Annotated[int, QueryParameter(ge=0, le=1, description="GTFS direction_id")] = 0,
    on: Annotated[str | None, QueryParameter(name="date", description="yyyy-mm-dd, a service date; default: today")] = None,
    every: Annotated[
        int | None, QueryParameter(name="everyS", ge=15, le=600, description="seconds between fixes; default: stops only")
    ] = None,
    partner: FromQuery[str | None] = None,
) -> Ladder:
    """Time against distance of each trip of a route and direction on one service date."""
    parts = parts_of(request)
    plans, local = route_of(plans_of(request, partner), route)
    plan = plans[0]
    zone = plan.timetable.tz
    day = datetime.fromtimestamp(parts.clock.now_ms() / 1000, UTC).astimezone(zone).date() if on is None else day_of(on, "date")
    instances = [
        one for one in plan.timetable.instances_on(day) if one.trip.route_id == local and one.trip.pattern.direction_id == direction
    ]
    if len(instances) > TRIPS_MOST:
        raise Invalid(f"a diagram has at most {TRIPS_MOST} trips, this route has {len(instances)} on that day")
    if not instances:
        return Ladder(route, direction, day.isoformat(), [], [], 0)
    axis = Counter(one.trip.pattern.pattern_id for one in instances).most_common(1)[0][0]
    reference = plan.timetable.patterns[axis]
    maps = {pattern.pattern_id: _onto(pattern, reference) for pattern in {id(p): p for p in (i.trip.pattern for i in instances)}.values()}
    fitting = [one for one in instances if maps[one.trip.pattern.pattern_id] is not None]
    drawn = await _Drawing(analytics_of(parts), plan, maps).trips(fitting, every)
    places = [
        LadderPlace(public_id(plan.feed_id, stop_id), plan.timetable.stops[stop_id].name, round(float(along), 1))
        for stop_id, along in zip(reference.stop_ids, reference.along_m, strict=True)
    ]
    return Ladder(route, direction, day.isoformat(), places, drawn, len(instances) - len(fitting))


Onto = tuple[NDArray[np.float64], NDArray[np.float64]]  # own arc -> the axis, by pairs


def _onto(pattern: Pattern, reference: Pattern) -> Onto | None:
    """How arcs of one pattern become places on the axis of another: by the stops they share, in both orders the same. None: too few."""
    if pattern is reference:
        ends = np.array([0.0, pattern.shape.length_m])
        return ends, ends
    own, axis, after = [], [], -1
    for index, stop_id in enumerate(pattern.stop_ids):
        place = next((i for i in range(after + 1, len(reference.stop_ids)) if reference.stop_ids[i] == stop_id), None)
        if place is not None:
            own.append(float(pattern.along_m[index]))
            axis.append(float(reference.along_m[place]))
            after = place
    return (np.array(own), np.array(axis)) if len(own) >= 2 else None


class _Drawing:
    def __init__(self, store: Analytics, plan: Plan, maps: dict[str, Onto | None]) -> None:
        self._store, self._plan, self._maps = store, plan, maps

    async def trips(self, instances: list[TripInstance], every_s: int | None) -> list[LadderTrip]:
        if not instances:
            return []
        feed_id, start_date = self._plan.feed_id, instances[0].start_date
        said: dict[str, list[LadderStop]] = {}
        for row in await self._store.ladder_stops(feed_id, start_date, [one.trip.trip_id for one in instances]):
            said.setdefault(row.trip_id, []).append(row)
        between = await self._fixes(said, start_date, every_s) if every_s is not None else {}
        return [self._trip(one, said.get(one.trip.trip_id, []), between.get(one.trip.trip_id, [])) for one in instances]

    async def _fixes(self, said: dict[str, list[LadderStop]], start_date: str, every_s: int) -> dict[str, list[tuple[int, float]]]:
        drives = []
        for trip_id, rows in said.items():
            times = [when for row in rows for when in (row.arrived_at, row.departed_at) if when is not None]
            if times:
                drives.append((rows[-1].bus_id, trip_id, min(times), max(times)))
        found: dict[str, list[tuple[int, float]]] = {}
        for point in await self._store.ladder_points(drives, start_date, float(every_s)) if drives else ():
            found.setdefault(point.trip_id, []).append((_ms(point.ts), float(point.along_m)))
        return found

    def _trip(self, instance: TripInstance, rows: list[LadderStop], between: list[tuple[int, float]]) -> LadderTrip:
        pattern = instance.trip.pattern
        along = dict(zip(pattern.stop_sequences, (float(m) for m in pattern.along_m), strict=True))
        planned = []
        for index, seq in enumerate(pattern.stop_sequences):
            planned.append((instance.arrival_ms(index), along[seq]))
            if instance.departure_ms(index) != instance.arrival_ms(index):
                planned.append((instance.departure_ms(index), along[seq]))
        driven = set(between)
        for row in rows:
            if row.kind != "MISSED" and row.stop_sequence in along:
                driven |= {(_ms(when), along[row.stop_sequence]) for when in (row.arrived_at, row.departed_at) if when is not None}
        missed = sorted({row.stop_sequence for row in rows if row.kind == "MISSED"})
        planned_ms, planned_m = self._columns(pattern, planned)
        driven_ms, driven_m = self._columns(pattern, sorted(driven))
        key = trip_key(self._plan.feed_id, instance.trip.trip_id, instance.start_date)
        bus_id = rows[-1].bus_id if rows else None
        return LadderTrip(key, bus_id, instance.trip.headsign, planned_ms, planned_m, driven_ms, driven_m, missed)

    def _columns(self, pattern: Pattern, points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
        """Times, and places on the axis; what lies before or behind the shared stops is not drawn."""
        onto = self._maps[pattern.pattern_id]
        assert onto is not None
        own, axis = onto
        inside = [(at_ms, m) for at_ms, m in points if own[0] - 1 <= m <= own[-1] + 1]
        placed = np.interp([m for _, m in inside], own, axis)
        return [at_ms for at_ms, _ in inside], [round(float(m), 1) for m in placed]


def _ms(when: datetime) -> int:
    return round(when.timestamp() * 1000)


ROUTERS: Final = (read_ladder,)
