"""GTFS-Realtime in: the vehicle positions of another system as a source of fixes, polled over HTTP.

Sources stand in a file that the operator of this product writes (REALTIME_SOURCES: a path; JSON, one object a source, see `Source`), never in
a request: nobody outside can make us ask an address. Promises: http and https only, also after a redirect, at most REDIRECTS of them and
never from https to http; secret headers go to the named host alone; a body has an upper size and a poll an upper time; a feed that has not
changed (ETag, Last-Modified) costs one small answer. Every vehicle goes through the door as a device's fix does: the same checks, the
same stream, and only into the source's own area. Run by one worker at a time (a lease). GTFS-Realtime reference, "message VehiclePosition".
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import logging
import re
import socket
import ssl
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple
from urllib.parse import urljoin, urlsplit
from uuid import UUID

import msgspec
from google.protobuf.message import DecodeError
from google.transit import gtfs_realtime_pb2 as rt

from engine.clock import Clock
from engine.errors import EngineError, Invalid, Unavailable
from engine.meter import Meter
from engine.office.accounts import GATEWAY, BusRow, Device, Devices
from engine.store.fleet import Fleet
from engine.tracking.fix import Fix, screen_at_door
from engine.tracking.plans import Plan, Plans
from ingest.door import Door
from ingest.wire import Refused

log = logging.getLogger(__name__)

SOURCE: Final = "gtfs-rt"
BODY_MAX_BYTES: Final = 16_777_216  # a national feed of 20,000 vehicles has 3 MB
ENTITIES_MAX: Final = 100_000  # of one message; 16 MB hold millions of small ones
POLL_LIMIT_S: Final = 10.0
PIECE: Final = 65_536
REDIRECTS: Final = 3
PAUSE_MOST_S: Final = 300.0  # between two polls of a source that fails
BUSES_MAX: Final = 5_000  # made for one source
SOURCES_MAX: Final = 100
STRANGER_MS: Final = 3_600_000  # a vehicle that is no bus of ours is kept in the quarantine once an hour, not with every poll
STRANGERS_MAX: Final = 10_000
_BUS: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}")
_ODD: Final = re.compile(r"[^A-Za-z0-9._~-]")
_UNCHANGED: Final = 304
_MOVED: Final = frozenset({301, 302, 303, 307, 308})


class Source(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """One feed of another system."""

    area: str  # our feed whose trips its vehicles drive
    url: Annotated[str, msgspec.Meta(pattern=r"^https?://[!-~]+$(?!\n)", max_length=2_000)]
    headers: dict[str, str] = {}  # secrets: an API key, Authorization
    every_s: Annotated[float, msgspec.Meta(ge=1, le=3_600)] = 15.0
    prefix: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._~-]{0,32}$(?!\n)")] = ""  # before the ids of its vehicles
    buses: dict[str, str] = {}  # their vehicle id -> our bus id, where it is another
    unknown: Literal["create", "quarantine"] = "quarantine"  # what becomes of vehicles that are no bus of ours yet


class Polled(NamedTuple):
    """What a poll brought. `message` None: the feed has not changed."""

    message: Any
    etag: str | None
    modified: str | None


class PollFault(Exception):
    """The feed could not be had; the text says why."""


def read_sources(path: str) -> list[Source]:
    """The file of sources. Raises `Invalid` that names what is wrong with it."""
    try:
        found = msgspec.json.decode(Path(path).read_bytes(), type=list[Source])
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as fault:
        raise Invalid(f"REALTIME_SOURCES: {path}: {fault}") from fault
    if len(found) > SOURCES_MAX:
        raise Invalid(f"REALTIME_SOURCES: {path}: at most {SOURCES_MAX} sources")
    for source in found:
        try:
            urlsplit(source.url).port  # noqa: B018  # both raise for an address that is none
        except ValueError as fault:
            raise Invalid(f"REALTIME_SOURCES: {path}: {source.url[:80]!r}: {fault}") from fault
    return found


# ------------------------------------------------------------------------------------------------ asking


def poll(source: Source, etag: str | None, modified: str | None, clock: Clock, *, limit_s: float = POLL_LIMIT_S) -> Polled:
    """One poll, blocking, within its limits. Raises `PollFault`."""
    url, until_s = source.url, clock.steady_s() + limit_s
    for _ in range(REDIRECTS + 1):
        own = urlsplit(url)[:2] == urlsplit(source.url)[:2]
        headers = {
            "Accept": "application/x-protobuf, application/octet-stream, */*",
            "Accept-Encoding": "identity",
            "User-Agent": "timepoint",
        }
        if own:  # secrets are for the host that they were given for
            headers |= source.headers
        if etag is not None:
            headers["If-None-Match"] = etag
        if modified is not None:
            headers["If-Modified-Since"] = modified
        status, answered, body = _ask(url, headers, until_s, clock)
        if status == _UNCHANGED:
            return Polled(None, etag, modified)
        if status in _MOVED:
            url = _next_url(url, answered.get("location", ""))
            continue
        if status != http.client.OK:
            raise PollFault(f"it answers {status}")
        message = rt.FeedMessage()
        try:
            message.ParseFromString(body)
        except DecodeError as fault:
            raise PollFault("what it answers is no GTFS-Realtime message") from fault
        if len(message.entity) > ENTITIES_MAX:
            raise PollFault(f"it has more than {ENTITIES_MAX:,} entities")
        return Polled(message, answered.get("etag"), answered.get("last-modified"))
    raise PollFault(f"more than {REDIRECTS} redirects")


@cache
def _tls() -> ssl.SSLContext:
    """Reading the system's authorities costs 20 ms."""
    return ssl.create_default_context()


def _next_url(url: str, location: str) -> str:
    try:
        to = urljoin(url, location)
        scheme = urlsplit(to).scheme
    except ValueError as fault:
        raise PollFault(f"it sends us on to {location[:80]!r}: {fault}") from fault
    if not location or scheme not in ("http", "https"):
        raise PollFault(f"it sends us on to {location[:80]!r}")
    if urlsplit(url).scheme == "https" and scheme == "http":
        raise PollFault("it sends us from https to http")
    return to


def _ask(url: str, headers: dict[str, str], until_s: float, clock: Clock) -> tuple[int, dict[str, str], bytes]:
    """(status, headers by lower-case name, body) of one GET. The limits of a socket are of one wait each; a feed that sends a byte now and then
    is cut off at `until_s`."""
    parts = urlsplit(url)
    left_s = until_s - clock.steady_s()
    if left_s <= 0 or not parts.hostname:
        raise PollFault("it took too long" if parts.hostname else "the address has no host")
    connection: http.client.HTTPConnection
    try:
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=left_s, context=_tls())
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=left_s)
    except (ValueError, http.client.HTTPException) as fault:
        raise PollFault(f"the address is none: {fault}") from fault
    held: list[socket.socket] = []
    watch = threading.Timer(left_s, _cut, (held,))
    watch.daemon = True
    try:
        connection.connect()
        held.append(connection.sock)
        watch.start()
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), headers=headers)
        answer = connection.getresponse()
        pieces, size = [], 0
        while piece := answer.read1(PIECE):
            size += len(piece)
            if size > BODY_MAX_BYTES:
                raise PollFault(f"it has more than {BODY_MAX_BYTES:,} bytes")
            if clock.steady_s() > until_s:
                raise PollFault("it took too long")
            pieces.append(piece)
        if clock.steady_s() > until_s:
            raise PollFault("it took too long")
        if answer.length:
            raise PollFault(f"it ended {answer.length:,} bytes early")
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, b"".join(pieces)
    except (OSError, ValueError, http.client.HTTPException) as fault:
        why = "it took too long" if clock.steady_s() > until_s else f"{type(fault).__name__}: {fault}"
        raise PollFault(why) from fault
    finally:
        watch.cancel()
        connection.close()


def _cut(held: list[socket.socket]) -> None:
    for sock in held:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # whoever waits in it reads the end


# ------------------------------------------------------------------------------------------------ reading


class Sighting(NamedTuple):
    """One vehicle of a message: the bus that it is for us, and where it was."""

    bus_id: str
    fix: Fix


def device_of(source: Source, plan: Plan, buses: dict[str, str]) -> Device:
    """What a source is for the door: a gateway of the area's operator. Its id is made of area and address: the same on every worker."""
    digest = hashlib.sha256(f"{SOURCE}\n{source.area}\n{source.url}".encode()).digest()[:16]
    return Device(str(UUID(bytes=digest, version=5)), plan.partner_id, GATEWAY, buses)


def sightings(message: Any, source: Source, plan: Plan, device_id: str, now_ms: int) -> tuple[list[Sighting], list[Refused]]:
    """The vehicles of a message as fixes in our units, through the door's screen, and those that are none."""
    found, refused = [], []
    header_ms = int(message.header.timestamp) * 1000
    starts = cache(lambda: _starts(plan))
    for index, entity in enumerate(message.entity):
        if not entity.HasField("vehicle") or entity.is_deleted:
            continue
        vehicle = entity.vehicle
        theirs = _text(vehicle.vehicle.id or vehicle.vehicle.label or entity.id)
        bus_id = source.buses.get(theirs) or source.prefix + _ODD.sub("-", theirs)
        if not theirs or not _BUS.fullmatch(bus_id):
            refused.append(Refused(index, "MALFORMED", f"vehicle {theirs[:64]!r} cannot be the id of a bus"))
            continue
        if not vehicle.HasField("position"):
            refused.append(Refused(index, "MALFORMED", "a vehicle without a position", bus_id))
            continue
        position, at_ms = vehicle.position, int(vehicle.timestamp) * 1000 or header_ms or now_ms
        trip_id, start_date = _trip(vehicle, plan, starts)
        fix = Fix(
            bus_id,
            at_ms,
            position.latitude,
            position.longitude,
            now_ms,
            device_id,
            SOURCE,
            speed_mps=position.speed if position.HasField("speed") else None,
            bearing_deg=position.bearing if position.HasField("bearing") else None,
            trip_id=trip_id,
            start_date=start_date,
        )
        screened = screen_at_door(fix, now_ms)
        if isinstance(screened, str):
            refused.append(Refused(index, screened, f"vehicle {theirs[:64]!r}", bus_id))
        else:
            found.append(Sighting(bus_id, screened))
    return found, refused


def _trip(vehicle: Any, plan: Plan, starts: Callable[[], dict[tuple[str, int], str]]) -> tuple[str | None, str | None]:
    """(trip_id, start_date) where the feed names a trip of ours: also one of frequencies.txt by its start time. Else the engine assigns."""
    if not vehicle.HasField("trip"):
        return None, None
    told, trips = vehicle.trip, plan.timetable.trips
    if told.schedule_relationship not in (rt.TripDescriptor.SCHEDULED, rt.TripDescriptor.UNSCHEDULED):
        return None, None
    trip_id, start_date = _text(told.trip_id), _text(told.start_date)
    date = start_date if re.fullmatch(r"[0-9]{8}", start_date) else None
    if trip_id in trips:
        return trip_id, date
    start_s = _seconds(_text(told.start_time))
    found = starts().get((trip_id, start_s)) if trip_id and start_s is not None else None
    return (None, None) if found is None else (found, date)


def _starts(plan: Plan) -> dict[tuple[str, int], str]:
    """Trips of frequencies.txt by the id that the feed has for all of them, and when they start (s)."""
    found: dict[tuple[str, int], str] = {}
    for trip in plan.timetable.trips.values():
        if trip.frequency_of is not None:
            found.setdefault((trip.frequency_of, int(trip.departure_s[0])), trip.trip_id)
    return found


def _text(value: str | bytes) -> str:
    """Bytes that are no UTF-8 come out of a message as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _seconds(text: str) -> int | None:
    found = re.fullmatch(r"(\d{1,3}):(\d\d):(\d\d)", text)
    return None if found is None else int(found[1]) * 3600 + int(found[2]) * 60 + int(found[3])


# ------------------------------------------------------------------------------------------------ keeping on


class RealtimeReader:
    """`run` under the lease: every source in a task of its own."""

    def __init__(
        self, sources: list[Source], door: Door, registry: Devices, fleet: Fleet, plans: Plans, clock: Clock, meter: Meter
    ) -> None:
        self._sources, self._door, self._registry, self._fleet = sources, door, registry, fleet
        self._plans, self._clock = plans, clock
        self._polls = meter.counter(
            "timepoint_realtime_in_polls_total", "polls of other systems' feeds, by what they brought", ("area", "outcome")
        )
        self._fixes = meter.counter("timepoint_realtime_in_fixes_total", "vehicles of other systems that became fixes", ("area",))
        self._age = meter.gauge("timepoint_realtime_in_age_seconds", "age of the newest message of another system", ("area",))
        self._seen: dict[tuple[str, str], dict[str, int]] = {}  # (area, url) -> bus id -> time of its last fix
        self._strangers: dict[tuple[str, str], int] = {}  # (area, bus id) -> when it was last kept

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for source in self._sources:
                tasks.create_task(self._follow(source), name=f"{SOURCE} {source.area}")

    async def _follow(self, source: Source) -> None:
        etag = modified = None
        failed = 0
        while True:
            try:
                polled = await asyncio.to_thread(poll, source, etag, modified, self._clock)
                if polled.message is not None:
                    await self.take(source, polled.message)
                etag, modified, failed = polled.etag, polled.modified, 0
                self._polls.add(1, source.area, "UNCHANGED" if polled.message is None else "TAKEN")
            except (PollFault, EngineError) as fault:
                failed += 1  # its tag is as it was, so what could not be appended is asked for again
                self._polls.add(1, source.area, "FAILED")
                log.warning("%s of area %s: %s", SOURCE, source.area, fault)
            except Exception:  # whatever is in it, the other sources go on
                failed += 1
                self._polls.add(1, source.area, "FAULT")
                log.exception("%s of area %s", SOURCE, source.area)
            await asyncio.sleep(min(max(PAUSE_MOST_S, source.every_s), source.every_s * 2 ** min(failed, 10)))

    async def take(self, source: Source, message: Any) -> int:
        """One message into the stream of its area; how many fixes that were. Raises `Unavailable`, `TooMany`."""
        plan = self._plans.get(source.area)
        if plan is None:
            raise Unavailable(f"there is no feed {source.area!r}")
        now_ms = self._clock.now_ms()
        if message.header.timestamp:
            self._age.set(now_ms / 1000 - message.header.timestamp, source.area)
        device_id = device_of(source, plan, {}).device_id
        found, refused = await asyncio.to_thread(
            sightings, message, source, plan, device_id, now_ms
        )  # a second for the largest: not on the loop
        await self._make_buses(source, plan, {sighting.bus_id for sighting in found})
        buses, seen = {}, self._seen.setdefault((source.area, source.url), {})
        fixes: list[Fix] = []
        for sighting in found:
            bus = self._registry.buses.get(sighting.bus_id)
            if bus is None or bus.retired_at_ms is not None or (bus.partner_id, bus.area) != (plan.partner_id, source.area):
                refused += self._stranger(source, sighting.bus_id, now_ms)
            elif seen.get(sighting.bus_id) != sighting.fix.fixed_at_ms:  # a feed repeats a vehicle until it says something new
                buses[sighting.bus_id] = source.area
                fixes.append(sighting.fix)
        await self._accept(device_of(source, plan, buses), fixes, refused)
        seen |= {fix.bus_id: fix.fixed_at_ms for fix in fixes}
        self._fixes.add(len(fixes), source.area)
        return len(fixes)

    def _stranger(self, source: Source, bus_id: str, now_ms: int) -> list[Refused]:
        """What is kept of a vehicle that is no bus of the area; nothing where that was done a short while ago."""
        if now_ms - self._strangers.get((source.area, bus_id), 0) < STRANGER_MS:
            return []
        if len(self._strangers) >= STRANGERS_MAX:
            self._strangers.clear()
        self._strangers[source.area, bus_id] = now_ms
        return [Refused(0, "NOT_YOUR_BUS", f"{bus_id} is no bus of area {source.area}", bus_id)]

    async def _accept(self, device: Device, fixes: list[Fix], refused: list[Refused]) -> None:
        if refused:
            self._door.keep(device, refused, SOURCE)
        if fixes:
            await self._door.accept(device, fixes, source=SOURCE)

    async def _make_buses(self, source: Source, plan: Plan, wanted: set[str]) -> None:
        """Buses for vehicles that nobody knows yet, where the source may bring them."""
        missing = sorted(wanted - self._registry.buses.keys())
        if not missing or source.unknown != "create":
            return
        own = sum(bus.area == source.area for bus in self._registry.buses.values())
        room = max(0, BUSES_MAX - own)
        if room:
            await self._fleet.put_buses([BusRow(bus_id, plan.partner_id, source.area, "", None) for bus_id in missing[:room]])
            await self._registry.load()
