"""GTFS-Realtime 2.0 out: vehicle positions, trip updates and alerts of one feed, as protocol buffers and as JSON.

Built from the live table when somebody asks, at most once a second; while somebody goes on asking, a round of the worker (`api/feeds.py`)
builds it beside the requests, in slices, and they are answered with bytes. A `FeedMessage` is its header followed by its entities, so every entity
is serialised once, when its vehicle says something new, and a feed is the joined bytes: at 2,000 vehicles with thirty stops each, building
all of it anew would hold the event loop for a tenth of a second.

What the public validators hold against producers is kept by construction: header time >= every other time, strictly increasing times within
a trip, stop_sequence on every update, no times on SKIPPED and NO_DATA, and no trip named for a vehicle that is further from the trip's
shape than the 200 m they allow (the trip's own update then goes without the vehicle). A trip under way whose times nobody could honestly say
has an update too: NO_DATA from its next stop on.
Alerts are what the live table knows of right now (one for each open incident that concerns passengers, gone when it is over), and what
operators have written. Occupancy comes from the passengers that the device counts, else from those who were scanned aboard, against the
seats of the trip's seat map; where neither is known nothing is said.
Sources: the GTFS-Realtime reference, feed entities FeedHeader, VehiclePosition, TripUpdate, StopTimeUpdate, Alert, EntitySelector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable
from typing import Any, Final, ParamSpec

import msgspec
from google.protobuf import json_format
from google.transit import gtfs_realtime_pb2 as rt

from engine.events import IN_TRIP, OFF_ROUTE, OFFLINE, SKIPPED, STALE, IncidentEvent, Position, StopForecast, TripForecast
from engine.live.alerts import AlertItem, OperatorAlert, Selector, of_incident, of_operator
from engine.store.loads import Load
from engine.tracking.timetable import Timetable, Trip

VERSION: Final = "2.0"
SHAPE_BUFFER_M: Final = 180.0  # validators allow about 200 m between a vehicle and the shape of the trip it names
AT_STOP_MPS: Final = 1.0
AT_STOP_M: Final = 30.0
WANTED_MS: Final = 60_000  # a round builds what somebody asked for within this
AHEAD_MS: Final = 2_000  # what a round built is served for so long, two rounds: where the next is late, a request builds again
SLICE: Final = 50  # entities built without a yield: 2 ms
UNDER_WAY: Final = frozenset({IN_TRIP, OFF_ROUTE, STALE})

P = ParamSpec("P")
Seats = Callable[[Position], Load | None]
Occupancy = tuple[int, int | None]  # OccupancyStatus, percentage of the seats; None: the seats are not known


class Built(msgspec.Struct, frozen=True):
    """One feed as served: `body` and the strong ETag of its entities (the header's clock does not change it)."""

    body: bytes
    etag: str
    made_at_ms: int
    until_ms: int  # it is served before this


Steps = Generator[None, None, Built]  # yields where others may run


def _names_trip(position: Position, timetable: Timetable | None) -> bool:
    if position.trip_id is None or timetable is None or position.trip_id not in timetable.trips:
        return False
    if position.offset_m is None:
        return False
    return position.offset_m <= SHAPE_BUFFER_M and position.state != OFFLINE


def _describe_trip(into: Any, trip: Trip, start_date: str | None) -> None:
    into.trip_id = trip.frequency_of or trip.trip_id
    into.route_id = trip.route_id
    into.direction_id = trip.pattern.direction_id
    if start_date:
        into.start_date = start_date
    if trip.frequency_of is None:
        into.schedule_relationship = rt.TripDescriptor.SCHEDULED
    else:
        first = trip.departure_s[0]
        into.start_time = f"{first // 3600:02d}:{first // 60 % 60:02d}:{first % 60:02d}"


def occupancy_of(position: Position, load: Load | None) -> Occupancy | None:
    """How full the vehicle is; None: nobody knows. Seats are sold and nobody stands where there is a seat map: all of them taken is FULL."""
    aboard = position.occupancy
    if aboard is None and load is not None and position.stop_index is not None:
        aboard = load.aboard(position.stop_index)
    if aboard is None:
        return None
    if load is None or load.seats <= 0:
        return (rt.VehiclePosition.EMPTY, None) if aboard <= 0 else None
    percentage = round(100 * max(0, aboard) / load.seats)
    if aboard <= 0:
        status = rt.VehiclePosition.EMPTY
    elif percentage < 50:
        status = rt.VehiclePosition.MANY_SEATS_AVAILABLE
    else:
        status = rt.VehiclePosition.FEW_SEATS_AVAILABLE if aboard < load.seats else rt.VehiclePosition.FULL
    return status, percentage


def vehicle_entity(position: Position, timetable: Timetable | None, occupancy: Occupancy | None = None) -> rt.FeedEntity:
    """A VehiclePosition. Degrees, metres a second, seconds since 1970."""
    entity = rt.FeedEntity(id="v:" + position.bus_id)
    vehicle = entity.vehicle
    if occupancy is not None:
        vehicle.occupancy_status = occupancy[0]  # type: ignore[assignment]  # the stubs want the enum's own type for its numbers
        if occupancy[1] is not None:
            vehicle.occupancy_percentage = occupancy[1]
    vehicle.vehicle.id = position.bus_id
    vehicle.vehicle.label = position.bus_id
    vehicle.position.latitude = position.lat
    vehicle.position.longitude = position.lon
    if position.bearing_deg is not None:
        vehicle.position.bearing = position.bearing_deg % 360
    if position.speed_mps is not None:
        vehicle.position.speed = position.speed_mps
    vehicle.timestamp = position.fixed_at_ms // 1000
    if not _names_trip(position, timetable):
        return entity
    assert timetable is not None and position.trip_id is not None
    trip = timetable.trips[position.trip_id]
    _describe_trip(vehicle.trip, trip, position.start_date)
    index = position.stop_index
    if index is not None and 0 <= index < len(trip.pattern.stop_ids):
        vehicle.current_stop_sequence = trip.pattern.stop_sequences[index]
        vehicle.stop_id = trip.pattern.stop_ids[index]
        near = position.along_m is not None and abs(float(trip.pattern.along_m[index]) - position.along_m) <= AT_STOP_M
        standing = position.speed_mps is not None and position.speed_mps < AT_STOP_MPS
        vehicle.current_status = rt.VehiclePosition.STOPPED_AT if near and standing else rt.VehiclePosition.IN_TRANSIT_TO
    return entity


def _add_stop(update: Any, stop: StopForecast, last_s: int) -> int:
    """One StopTimeUpdate; answers the last second it used. Times strictly increase over the trip, whatever was rounded before."""
    entry = update.stop_time_update.add()
    entry.stop_sequence = stop.stop_sequence
    if len(update.stop_time_update) == 1 or update.stop_time_update[-2].stop_id != stop.stop_id:
        entry.stop_id = (
            stop.stop_id
        )  # else the same twice in a row (E037): a trip that comes back to a stop it missed; the sequence names it
    if stop.kind == SKIPPED:
        entry.schedule_relationship = rt.TripUpdate.StopTimeUpdate.SKIPPED
        return last_s
    if stop.kind == "NO_DATA" or stop.p50_ms is None:
        entry.schedule_relationship = rt.TripUpdate.StopTimeUpdate.NO_DATA
        return last_s
    entry.schedule_relationship = rt.TripUpdate.StopTimeUpdate.SCHEDULED
    arrival_s = max(stop.p50_ms // 1000, last_s + 1)
    departure_s = max(arrival_s, (stop.departs_ms or stop.p50_ms) // 1000)
    entry.arrival.time = arrival_s
    entry.departure.time = departure_s
    if stop.delay_s is not None:
        entry.arrival.delay = stop.delay_s
    if stop.p10_ms is not None and stop.p90_ms is not None:
        entry.arrival.uncertainty = max(1, (stop.p90_ms - stop.p10_ms) // 2000)
    return departure_s


def trip_entity(forecast: TripForecast, position: Position | None, timetable: Timetable | None) -> rt.FeedEntity | None:
    """A TripUpdate of the missed and the remaining stops, or None where the trip is not of this timetable or nothing is left to say."""
    trip = timetable.trips.get(forecast.trip_id) if timetable is not None else None
    if trip is None or not forecast.stops:
        return None
    entity = rt.FeedEntity(id=f"t:{forecast.trip_id}:{forecast.start_date}")
    update = entity.trip_update
    _describe_trip(update.trip, trip, forecast.start_date)
    if position is not None and position.trip_id == forecast.trip_id and _names_trip(position, timetable):
        update.vehicle.id = forecast.bus_id
        update.vehicle.label = forecast.bus_id
    update.timestamp = forecast.made_at_ms // 1000
    last_s = 0
    for stop in forecast.stops:
        last_s = _add_stop(update, stop, last_s)
    return entity


def silent_entity(position: Position, timetable: Timetable | None) -> rt.FeedEntity | None:
    """The update of a trip under way that has no forecast: NO_DATA, from its next stop to its last (GTFS-Realtime lets it hold for those
    that follow). None where that is not known."""
    trip = timetable.trips.get(position.trip_id or "") if timetable is not None else None
    index = position.stop_index
    if trip is None or index is None or not 0 <= index < len(trip.pattern.stop_ids) or position.state not in UNDER_WAY:
        return None
    entity = rt.FeedEntity(id=f"t:{position.trip_id}:{position.start_date}")
    update = entity.trip_update
    _describe_trip(update.trip, trip, position.start_date)
    if _names_trip(position, timetable):
        update.vehicle.id = update.vehicle.label = position.bus_id
    update.timestamp = position.fixed_at_ms // 1000
    stop = update.stop_time_update.add()
    stop.stop_sequence, stop.stop_id = trip.pattern.stop_sequences[index], trip.pattern.stop_ids[index]
    stop.schedule_relationship = rt.TripUpdate.StopTimeUpdate.NO_DATA
    return entity


def alert_entity(
    item: AlertItem, selectors: Iterable[Selector], periods: Iterable[tuple[int | None, int | None]], timetable: Timetable
) -> rt.FeedEntity | None:
    """An Alert; `periods` in UTC ms, none: for as long as it stands in the feed. Selectors of what this timetable does not know are left
    out; None where that leaves nothing."""
    entity = rt.FeedEntity(id=f"a:{item.alert_id}")
    alert = entity.alert
    for selector in selectors:
        _inform(alert, selector, timetable)
    if not alert.informed_entity and not item.informed:
        for agency_id in filter(None, timetable.agencies):
            alert.informed_entity.add().agency_id = agency_id
        if not alert.informed_entity:
            for kind in sorted({route.kind for route in timetable.routes.values()}):
                alert.informed_entity.add().route_type = kind
    if not alert.informed_entity:
        return None
    for from_ms, to_ms in periods:
        span = alert.active_period.add()
        if from_ms is not None:
            span.start = from_ms // 1000
        if to_ms is not None:
            span.end = to_ms // 1000
    alert.cause = getattr(rt.Alert, item.cause)
    alert.effect = getattr(rt.Alert, item.effect)
    alert.severity_level = getattr(rt.Alert, item.level)
    for texts, into in ((item.header, alert.header_text), (item.description, alert.description_text)):
        for language, text in texts.items():
            said = into.translation.add()
            said.language, said.text = language, text
    if item.url is not None:
        alert.url.translation.add().text = item.url
    return entity


def _inform(alert: Any, selector: Selector, timetable: Timetable) -> None:
    """One EntitySelector, where all that it names is in the timetable and belongs together."""
    trip = timetable.trips.get(selector.trip_id) if selector.trip_id is not None else None
    if (
        (selector.trip_id is not None and trip is None)
        or (selector.route_id is not None and selector.route_id not in timetable.routes)
        or (selector.stop_id is not None and selector.stop_id not in timetable.stops)
        or (trip is not None and selector.route_id not in (None, trip.route_id))
    ):
        return
    into = alert.informed_entity.add()
    if trip is not None:
        _describe_trip(into.trip, trip, selector.start_date)
    elif selector.route_id is not None:
        into.route_id = selector.route_id
        if selector.direction_id is not None:
            into.direction_id = selector.direction_id
    if selector.stop_id is not None:
        into.stop_id = selector.stop_id


class _Entity(msgspec.Struct):
    source: Any
    beside: Any  # what else it was made of
    raw: bytes
    message: rt.FeedEntity
    text: str | None = None  # JSON, made when first asked for


def at_once(steps: Callable[P, Steps]) -> Callable[P, Built]:
    """The same without a pause."""

    def made(*args: P.args, **more: P.kwargs) -> Built:
        under_way = steps(*args, **more)
        while True:
            try:
                next(under_way)
            except StopIteration as done:
                built: Built = done.value
                return built

    return made


class RealtimeFeed:
    """The three messages of one feed. Not for several threads; one object per worker and feed."""

    def __init__(self, feed_id: str) -> None:
        self.feed_id = feed_id
        self._vehicles: dict[str, _Entity] = {}
        self._trips: dict[str, _Entity] = {}
        self._alerts: dict[str, _Entity] = {}
        self._timetable: Timetable | None = None
        self._built: dict[tuple[str, bool], Built] = {}
        self._asked_ms: dict[tuple[str, bool], int] = {}

    def ask(self, kind: str, as_json: bool, now_ms: int) -> Built | None:
        """What is served of `vehicle`, `trip` or `alert` without building it; None: it is to be built."""
        self._asked_ms[kind, as_json] = now_ms
        return self._serve(kind, as_json, now_ms)

    def wanted(self, now_ms: int) -> list[tuple[str, bool]]:
        """What somebody has asked for within the last minute."""
        return [key for key, asked_ms in self._asked_ms.items() if now_ms - asked_ms <= WANTED_MS]

    def vehicle_steps(
        self,
        positions: Iterable[Position],
        timetable: Timetable | None,
        now_ms: int,
        *,
        as_json: bool,
        seats: Seats = lambda position: None,
        ahead: bool = False,
    ) -> Steps:
        """VehiclePositions of all vehicles of this feed that are not offline; `seats`: what the desk knows of the trip."""
        if not ahead and (kept := self._serve("vehicle", as_json, now_ms)) is not None:
            return kept
        self._turn(timetable)
        known: dict[str, _Entity] = {}
        for number, position in enumerate(positions):
            if number % SLICE == SLICE - 1:
                yield
            if position.feed_id != self.feed_id or position.state == OFFLINE:
                continue
            bus_id, occupancy = position.bus_id, occupancy_of(position, seats(position))
            had = self._vehicles.get(bus_id)
            if had is None or had.source is not position or had.beside != occupancy:
                message = vehicle_entity(position, timetable, occupancy)
                had = _Entity(position, occupancy, _entity_bytes(message), message)
            known[bus_id] = had
        if self._timetable is timetable:  # else a request met a new version meanwhile
            self._vehicles = known
        return (yield from self._join("vehicle", list(known.values()), now_ms, as_json, ahead))

    vehicle_positions = at_once(vehicle_steps)

    def trip_steps(
        self,
        forecasts: Iterable[tuple[TripForecast, Position]],
        timetable: Timetable | None,
        now_ms: int,
        *,
        as_json: bool,
        silent: Iterable[Position] = (),
        ahead: bool = False,
    ) -> Steps:
        """TripUpdates from (forecast, position of its vehicle): one per trip instance of this feed, the newest forecast. `silent`: vehicles
        without a forecast; where they are under way, their trips say NO_DATA."""
        if not ahead and (kept := self._serve("trip", as_json, now_ms)) is not None:
            return kept
        self._turn(timetable)
        known: dict[str, _Entity] = {}
        said: dict[tuple[str, str | None], str] = {}
        for number, (forecast, position) in enumerate(forecasts):
            if number % SLICE == SLICE - 1:
                yield
            if position.feed_id != self.feed_id:
                continue
            bus_id = forecast.bus_id
            named = position.state != OFF_ROUTE or _names_trip(position, timetable)
            had = self._trips.get(bus_id)
            if had is None or had.source is not forecast or had.beside != named:
                message = trip_entity(forecast, position, timetable)
                if message is None:
                    continue
                had = _Entity(forecast, named, _entity_bytes(message), message)
            key: tuple[str, str | None] = (forecast.trip_id, forecast.start_date)
            rival = said.get(key)
            if rival is not None and known[rival].source.made_at_ms >= forecast.made_at_ms:
                continue
            if rival is not None:
                del known[rival]
            said[key] = bus_id
            known[bus_id] = had
        for number, position in enumerate(silent):
            if number % SLICE == SLICE - 1:
                yield
            key = (position.trip_id or "", position.start_date)
            if position.feed_id != self.feed_id or key in said or position.bus_id in known:
                continue
            had = self._trips.get(position.bus_id)
            if had is None or had.source is not position:
                message = silent_entity(position, timetable)
                if message is None:
                    continue
                had = _Entity(position, None, _entity_bytes(message), message)
            said[key] = position.bus_id
            known[position.bus_id] = had
        if self._timetable is timetable:  # else a request met a new version meanwhile
            self._trips = known
        return (yield from self._join("trip", list(known.values()), now_ms, as_json, ahead))

    trip_updates = at_once(trip_steps)

    def alert_steps(
        self,
        incidents: Iterable[IncidentEvent],
        written: Iterable[OperatorAlert],
        timetable: Timetable | None,
        now_ms: int,
        *,
        as_json: bool,
        ahead: bool = False,
    ) -> Steps:
        """Alerts: of the incidents of this feed that are open and concern passengers, and those that operators wrote and that are not over."""
        if not ahead and (kept := self._serve("alert", as_json, now_ms)) is not None:
            return kept
        self._turn(timetable)
        known: dict[str, _Entity] = {}
        sources: list[IncidentEvent | OperatorAlert] = [*incidents, *written]
        for source in sources:
            name = source.incident_id if isinstance(source, IncidentEvent) else source.alert_id
            had = self._alerts.get(name)
            if had is None or had.source != source:
                message = self._alert(source, timetable, now_ms)
                if message is None:
                    continue
                had = _Entity(source, None, _entity_bytes(message), message)
            known[name] = had
        if self._timetable is timetable:  # else a request met a new version meanwhile
            self._alerts = known
        return (yield from self._join("alert", list(known.values()), now_ms, as_json, ahead))

    alerts = at_once(alert_steps)

    def _alert(self, source: IncidentEvent | OperatorAlert, timetable: Timetable | None, now_ms: int) -> rt.FeedEntity | None:
        if timetable is None:
            return None
        if isinstance(source, OperatorAlert):
            spans = [(period.from_ms, period.to_ms) for period in source.periods]
            return alert_entity(of_operator(source, now_ms), source.selectors, spans, timetable)
        item = of_incident(self.feed_id, source, timetable)
        if item is None:
            return None
        trip = Selector(trip_id=source.trip_id, start_date=source.start_date)
        stops = [] if item.params is None else [stop.stop_id.partition(":")[2] for stop in item.params.stops]
        selectors = [trip, *(msgspec.structs.replace(trip, stop_id=stop) for stop in dict.fromkeys(stops))]
        return alert_entity(item, selectors, [(source.opened_at_ms, None)], timetable)

    def _turn(self, timetable: Timetable | None) -> None:
        """A new feed version: what was serialised under the old one may name trips that are gone."""
        if timetable is not self._timetable:
            self._timetable = timetable
            self._vehicles, self._trips, self._alerts = {}, {}, {}

    def _serve(self, kind: str, as_json: bool, now_ms: int) -> Built | None:
        built = self._built.get((kind, as_json))
        return built if built is not None and built.made_at_ms // 1000 * 1000 <= now_ms < built.until_ms else None

    def _join(self, kind: str, rows: list[_Entity], now_ms: int, as_json: bool, ahead: bool) -> Steps:
        digest, newest_s = hashlib.blake2b(digest_size=16), 0
        for number, row in enumerate(rows):
            if number % SLICE == SLICE - 1:
                yield
            digest.update(row.raw)
            newest_s = max(newest_s, _newest_s(row.message))
            if as_json and row.text is None:
                row.text = json_format.MessageToJson(row.message, indent=None, ensure_ascii=False)
        header = rt.FeedHeader(
            gtfs_realtime_version=VERSION, incrementality=rt.FeedHeader.FULL_DATASET, timestamp=max(now_ms // 1000, newest_s)
        )
        if as_json:
            head = json_format.MessageToJson(header, indent=None)
            body = ('{"header":' + head + ',"entity":[' + ",".join(row.text or "" for row in rows) + "]}").encode()
        else:
            body = rt.FeedMessage(header=header).SerializePartialToString() + b"".join(row.raw for row in rows)
        until_ms = now_ms + AHEAD_MS if ahead else now_ms // 1000 * 1000 + 1000
        built = Built(body, f'"{digest.hexdigest()}"', now_ms, until_ms)
        self._built[kind, as_json] = built
        return built


def _entity_bytes(entity: rt.FeedEntity) -> bytes:
    """The entity as field 2 of a FeedMessage: tag, length (varint), bytes."""
    body = entity.SerializeToString(deterministic=True)
    size, length = len(body), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return b"\x12" + bytes(length) + body


def _newest_s(entity: rt.FeedEntity) -> int:
    return int(max(entity.vehicle.timestamp, entity.trip_update.timestamp))


# ------------------------------------------------------------------------------------------------ handlers
