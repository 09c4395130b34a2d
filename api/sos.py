"""A call for help. Drivers and dispatchers call for a bus or trip of their operator, passengers for the trip that they are on.

The call is durable once it is answered, is said on `incidents:{partner}` at once (it waits for no fix to settle), and is CRITICAL until a
person closes it. The same call sent again (same `id`, or same Idempotency-Key) is one call. A note goes to the operator and nowhere else: it
is not logged, not audited, and not on any public channel. The database need not be there.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from litestar import Request, post
from litestar.params import JSONBody

from api.auth import AGENT, DRIVER, PARTNER_ADMIN, SUPER_ADMIN
from api.callers import KEY_MAX, caller_of
from api.ids import split_trip, trip_key
from api.network import trip_instance
from api.parts import Parts, parts_of
from engine.booking.callers import Caller
from engine.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from engine.events import Position, Sos
from engine.live.frames import rfc3339
from engine.store.area import AreaStore
from engine.store.incidents import Incidents
from engine.tracking.episodes import CRITICAL, SOS
from engine.tracking.ride import event_id
from engine.tracking.timetable import TripInstance

log = logging.getLogger(__name__)

STAFF: Final = (DRIVER, AGENT, PARTNER_ADMIN, SUPER_ADMIN)
BEFORE_MS: Final = timedelta(minutes=30) // timedelta(milliseconds=1)  # a passenger is on a trip from so long before its departure
AFTER_MS: Final = timedelta(hours=3) // timedelta(milliseconds=1)  # to so long after its arrival, or while a bus is on it
UNKNOWN: Final = "UNKNOWN"  # no bus is known on that trip
NOTE_MAX: Final = 500


class CallForHelp(msgspec.Struct, frozen=True, rename="camel"):
    """`busId` or `tripId`; passengers `tripId`. Without a place, the bus's own is taken."""

    bus_id: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None = None
    trip_id: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    lat: Annotated[float, msgspec.Meta(ge=-90, le=90)] | None = None
    lon: Annotated[float, msgspec.Meta(ge=-180, le=180)] | None = None
    note: Annotated[str, msgspec.Meta(min_length=1, max_length=NOTE_MAX)] | None = None
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=KEY_MAX)] | None = None  # the caller's own: the same one when it tries again


class Called(msgspec.Struct, frozen=True, rename="camel"):
    """The call as the operator hears it."""

    incident_id: str
    kind: str  # SOS
    severity: str  # CRITICAL
    bus_id: str  # UNKNOWN: no bus is known on that trip
    trip_id: str | None
    at: str


class Scene(NamedTuple):
    """What is called for. `position` None: its bus is not live."""

    area: str
    partner_id: str
    bus_id: str
    trip: tuple[str, str, str] | None  # trip_id, start_date, route_id
    position: Position | None


@post("/sos", tags=["tracking"])
async def call_for_help(request: Request[Any, Any, Any], data: JSONBody[CallForHelp]) -> Called:
    """Calls for help: heard by the bus's operator at once."""
    parts, caller = parts_of(request), caller_of(request)
    staff = caller.role in STAFF
    if not staff and parts.booking is not None:
        parts.booking.rates.take("sos", caller)
    scene = _of_trip(parts, caller, data, staff) if data.trip_id is not None else _of_bus(parts, caller, data, staff)
    lat, lon = _place(data, scene)
    name, now_ms = _name(request, caller, data, parts), parts.clock.now_ms()
    trip_id, start_date, route_id = scene.trip or (None, None, None)
    # U+0000 is in no text that the record can hold
    said: dict[str, Any] = {"calledAs": caller.role or "GUEST"} | ({} if data.note is None else {"note": data.note.replace("\x00", "")})
    word = Sos(name, scene.bus_id, trip_id, start_date, route_id, lat, lon, now_ms, msgspec.json.encode(said).decode())
    if not await _is_known(parts, name, scene.area):
        if parts.redis is None:
            raise Unavailable("this worker cannot reach the operator", retry_after_s=1)
        await AreaStore(parts.redis, scene.area).say(word)
        await _audit(parts, caller, scene, name)
    public = None if trip_id is None or start_date is None else trip_key(scene.area, trip_id, start_date)
    return Called(name, SOS, CRITICAL, scene.bus_id, public, rfc3339(now_ms))


def _of_trip(parts: Parts, caller: Caller, data: CallForHelp, staff: bool) -> Scene:
    """Raises `NotFound`, also for another operator's trip, and `Conflict` for a passenger of a trip that is not under way."""
    assert data.trip_id is not None
    feed, trip_id, start_date = split_trip(data.trip_id)
    plan, instance = trip_instance(parts, data.trip_id)
    if staff and not _is_theirs(caller, plan.partner_id):
        raise NotFound(f"no trip {data.trip_id!r}")
    seen = next((one.position for one in parts.table.on_trip(data.trip_id)), None)
    if not staff and seen is None and not _is_under_way(instance, parts.clock.now_ms()):
        raise Conflict("nobody is on that trip now; call for the trip that you are on")
    if data.bus_id is not None and (seen is None or seen.bus_id != data.bus_id):
        bus = _of_bus(parts, caller, data, staff) if staff else None
        if bus is not None and bus.area == feed:
            return bus._replace(trip=(trip_id, start_date, instance.trip.route_id))
    return Scene(feed, plan.partner_id, seen.bus_id if seen is not None else UNKNOWN, (trip_id, start_date, instance.trip.route_id), seen)


def _of_bus(parts: Parts, caller: Caller, data: CallForHelp, staff: bool) -> Scene:
    """Raises `Invalid` where there is neither trip nor bus, or where a passenger names a bus alone; `NotFound`."""
    if data.bus_id is None or not staff:
        what = "busId or tripId: what you call for" if staff else "the trip that you are on"
        raise Invalid("tripId is missing", errors=[{"pointer": "/tripId", "code": "MISSING_FIELD", "detail": what}])
    bus = parts.registry.buses.get(data.bus_id) if parts.registry is not None else None
    if bus is None or bus.retired_at_ms is not None or not _is_theirs(caller, bus.partner_id):
        raise NotFound(f"no bus {data.bus_id!r}")
    seen = parts.table.position(bus.bus_id)
    trip = None
    if seen is not None and seen.trip_id is not None and seen.start_date is not None and seen.route_id is not None:
        trip = seen.trip_id, seen.start_date, seen.route_id
    return Scene(bus.area, bus.partner_id, bus.bus_id, trip, seen)


def _is_theirs(caller: Caller, partner_id: str) -> bool:
    if caller.role == SUPER_ADMIN:
        return True
    if caller.partner_id is None:
        raise Forbidden("your token acts for no partner")
    return caller.partner_id == partner_id


def _is_under_way(instance: TripInstance, now_ms: int) -> bool:
    last = len(instance.trip.arrival_s) - 1
    return instance.departure_ms(0) - BEFORE_MS <= now_ms <= instance.arrival_ms(last) + AFTER_MS


def _place(data: CallForHelp, scene: Scene) -> tuple[float, float]:
    """Raises `Invalid` where nobody knows one."""
    if data.lat is not None and data.lon is not None:
        return data.lat, data.lon
    if scene.position is not None:
        return scene.position.lat, scene.position.lon
    raise Invalid("lat and lon are missing", errors=[{"pointer": "/lat", "code": "MISSING_FIELD", "detail": "the bus is not seen now"}])


def _name(request: Request[Any, Any, Any], caller: Caller, data: CallForHelp, parts: Parts) -> str:
    """The incident's id, made of the caller's own id of the call; a fresh one where it gives none."""
    key = data.id or request.headers.get("idempotency-key") or parts.clock.uuid7()
    if len(key) > KEY_MAX:
        raise Invalid(f"Idempotency-Key has at most {KEY_MAX} characters")
    return event_id(SOS, caller.actor, data.trip_id or data.bus_id, key)


async def _is_known(parts: Parts, name: str, area: str) -> bool:
    """Whether the record has it already (closed, perhaps). A database that is away knows nothing: the area does."""
    try:
        return parts.postgres is not None and await Incidents(parts.postgres).one(name, [area]) is not None
    except Unavailable:
        return False


async def _audit(parts: Parts, caller: Caller, scene: Scene, name: str) -> None:
    """Who called; a database that is away costs the row, not the call: counted, logged."""
    facts = {"busId": scene.bus_id, "tripId": None if scene.trip is None else trip_key(scene.area, *scene.trip[:2])}
    try:
        if parts.postgres is None:
            raise Unavailable("no database")
        await Incidents(parts.postgres).called(name, scene.partner_id, caller.actor, caller.request_id, facts)
    except Unavailable as away:
        if parts.meter is not None:
            parts.meter.counter("timepoint_sos_unaudited_total", "calls for help whose audit row was lost").add(1)
        log.error("the call for help %s has no audit row: %s", name, away)


ROUTERS: Final = (call_for_help,)
