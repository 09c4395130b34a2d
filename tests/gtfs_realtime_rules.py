"""A test oracle: the error rules (E001-E052) that MobilityData's GTFS-Realtime validator holds against a producer, as far as they can apply to
vehicle positions, trip updates and alerts of a full dataset. Written from the published list of rules, not from its code.

`check(messages, timetable, now_s)` answers a list of `Fault`s; an empty list is what the product must reach. Rules about frequencies with
exact_times = 0 (E006, E013) and about ADDED trips (E016) are checked as "does not happen": the product publishes neither. E010 is a rule of
the schedule and not of what is live. Beside them what the reference says of SKIPPED, NO_DATA, occupancy and active_period.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from google.transit import gtfs_realtime_pb2 as rt
from numpy.typing import NDArray

from engine.tracking.timetable import Timetable, Trip
from geo.coords import distance_m
from geo.shape import Shape

POSIX = (1_000_000_000, 10_000_000_000)
STU = rt.TripUpdate.StopTimeUpdate
SHAPE_BUFFER_M = 200.0
AREA_BUFFER_DEG = 0.02


class Fault(NamedTuple):
    rule: str
    where: str
    why: str


def check(messages: Iterable[rt.FeedMessage], timetable: Timetable, now_s: int) -> list[Fault]:
    """Every fault in messages that were fetched together (positions, updates, alerts)."""
    faults: list[Fault] = []
    vehicles: dict[str, str] = {}
    updates: dict[str, str] = {}
    for message in messages:
        faults += _header(message, now_s)
        seen_vehicles: set[str] = set()
        ids = [entity.id for entity in message.entity]
        faults += [Fault("UNIQUE", name, "an entity id twice in a feed") for name in set(ids) if ids.count(name) > 1 or not name]
        for entity in message.entity:
            if entity.is_deleted:
                faults.append(Fault("E039", entity.id, "is_deleted in a full dataset"))
            if entity.HasField("vehicle"):
                vehicle = entity.vehicle
                faults += _vehicle(entity.id, vehicle, timetable, message.header.timestamp, now_s)
                if vehicle.vehicle.id in seen_vehicles:
                    faults.append(Fault("E052", entity.id, f"vehicle id {vehicle.vehicle.id} twice"))
                seen_vehicles.add(vehicle.vehicle.id)
                if vehicle.trip.trip_id:
                    vehicles[vehicle.vehicle.id] = vehicle.trip.trip_id
            if entity.HasField("trip_update"):
                update = entity.trip_update
                faults += _update(entity.id, update, timetable, message.header.timestamp, now_s)
                if update.vehicle.id:
                    updates[update.vehicle.id] = update.trip.trip_id
            if entity.HasField("alert"):
                faults += _alert(entity.id, entity.alert, timetable)
    for vehicle_id in vehicles.keys() & updates.keys():
        if vehicles[vehicle_id] != updates[vehicle_id]:
            faults.append(Fault("E047", vehicle_id, f"position says trip {vehicles[vehicle_id]}, update {updates[vehicle_id]}"))
    drives = {trip: vehicle_id for vehicle_id, trip in vehicles.items()}
    for vehicle_id, trip in updates.items():
        if trip in drives and drives[trip] not in updates and vehicle_id not in vehicles:
            faults.append(Fault("E047", trip, f"position says vehicle {drives[trip]}, update {vehicle_id}"))
    return faults


def check_sequence(older: rt.FeedMessage, newer: rt.FeedMessage) -> list[Fault]:
    """What two fetches of one feed, one after the other, may not do."""
    faults = []
    if newer.header.timestamp < older.header.timestamp:
        faults.append(Fault("E018", "header", "timestamp went back"))
    if newer.header.timestamp == older.header.timestamp and list(newer.entity) != list(older.entity):
        faults.append(Fault("E017", "header", "content changed under one timestamp"))
    return faults


def _time(where: str, value: int, header_s: int, now_s: int, *, future: bool = False) -> list[Fault]:
    faults = []
    if not POSIX[0] <= value <= POSIX[1]:
        faults.append(Fault("E001", where, f"{value} is not in POSIX seconds"))
    if not future:
        if value > header_s:
            faults.append(Fault("E012", where, f"{value} is after the header's {header_s}"))
        if value > now_s + 60:
            faults.append(Fault("E050", where, f"{value} is in the future of {now_s}"))
    return faults


def _header(message: rt.FeedMessage, now_s: int) -> list[Fault]:
    header = message.header
    faults = []
    if header.gtfs_realtime_version not in ("1.0", "2.0"):
        faults.append(Fault("E038", "header", f"version {header.gtfs_realtime_version!r}"))
    if not header.timestamp:
        faults.append(Fault("E048", "header", "no timestamp"))
    else:
        faults += _time("header", header.timestamp, header.timestamp, now_s)
    if not header.HasField("incrementality"):
        faults.append(Fault("E049", "header", "no incrementality"))
    return faults


def _trip(where: str, descriptor: rt.TripDescriptor, timetable: Timetable) -> tuple[list[Fault], Trip | None]:
    faults = []
    trip = timetable.trips.get(descriptor.trip_id)
    if trip is None and descriptor.start_time:  # frequencies.txt: the feed's own trip_id with its start time
        wanted = descriptor.start_time.replace(":", "")
        trip = next(
            (t for t in timetable.trips.values() if t.frequency_of == descriptor.trip_id and t.trip_id.endswith("@" + wanted)), None
        )
    if descriptor.trip_id and trip is None:
        faults.append(Fault("E003", where, f"trip {descriptor.trip_id} is not in the feed"))
    if descriptor.schedule_relationship == rt.TripDescriptor.ADDED:
        faults.append(Fault("E016", where, "ADDED trip"))
    if trip is not None and trip.frequency_of is not None:
        if descriptor.HasField("schedule_relationship") and descriptor.schedule_relationship != rt.TripDescriptor.UNSCHEDULED:
            faults.append(Fault("E013", where, "schedule_relationship on a trip of frequencies.txt"))
        if not (descriptor.start_time and descriptor.start_date):
            faults.append(Fault("E006", where, "a trip of frequencies.txt without start_time and start_date"))
    if descriptor.route_id and descriptor.route_id not in timetable.routes:
        faults.append(Fault("E004", where, f"route {descriptor.route_id} is not in the feed"))
    if descriptor.start_time and not re.fullmatch(r"\d{1,2}:[0-5]\d:[0-5]\d", descriptor.start_time):
        faults.append(Fault("E020", where, f"start_time {descriptor.start_time!r}"))
    if descriptor.start_date and not re.fullmatch(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", descriptor.start_date):
        faults.append(Fault("E021", where, f"start_date {descriptor.start_date!r}"))
    if trip is not None:
        if descriptor.HasField("direction_id") and descriptor.direction_id != trip.pattern.direction_id:
            faults.append(Fault("E024", where, "direction_id is not the trip's"))
        if descriptor.route_id and descriptor.route_id != trip.route_id:
            faults.append(Fault("E035", where, f"trip {trip.trip_id} is not of route {descriptor.route_id}"))
        if descriptor.start_time and trip.frequency_of is not None and _seconds(descriptor.start_time) != trip.departure_s[0]:
            faults.append(Fault("E019", where, f"start_time {descriptor.start_time} is no departure of the frequency"))
        if descriptor.start_time and trip.frequency_of is None:
            faults.append(Fault("E023", where, "start_time on a trip that frequencies.txt does not make"))
    return faults, trip


def _seconds(start_time: str) -> int:
    hours, minutes, seconds = map(int, start_time.split(":"))
    return hours * 3600 + minutes * 60 + seconds


def _vehicle(where: str, vehicle: rt.VehiclePosition, timetable: Timetable, header_s: int, now_s: int) -> list[Fault]:
    faults = _time(where, vehicle.timestamp, header_s, now_s)
    more, trip = _trip(where, vehicle.trip, timetable) if vehicle.HasField("trip") else ([], None)
    faults += more
    if vehicle.HasField("occupancy_percentage") and not vehicle.HasField("occupancy_status"):
        faults.append(Fault("OCCUPANCY", where, "a percentage without a status"))
    if vehicle.HasField("occupancy_status") and vehicle.occupancy_status == rt.VehiclePosition.EMPTY and vehicle.occupancy_percentage:
        faults.append(Fault("OCCUPANCY", where, f"empty, and {vehicle.occupancy_percentage} % full"))
    place = vehicle.position
    if not (-90 <= place.latitude <= 90 and -180 <= place.longitude <= 180) or (place.latitude == 0 and place.longitude == 0):
        return [*faults, Fault("E026", where, f"position {place.latitude},{place.longitude}")]
    if place.HasField("bearing") and not 0 <= place.bearing <= 360:
        faults.append(Fault("E027", where, f"bearing {place.bearing}"))
    lats = [stop.lat for stop in timetable.stops.values()]
    lons = [stop.lon for stop in timetable.stops.values()]
    inside = (
        min(lats) - AREA_BUFFER_DEG <= place.latitude <= max(lats) + AREA_BUFFER_DEG
        and min(lons) - AREA_BUFFER_DEG <= place.longitude <= max(lons) + AREA_BUFFER_DEG
    )
    if trip is not None and not inside:
        faults.append(Fault("E028", where, "outside the area of the feed's stops"))
    if trip is not None and _from_shape_m(trip, place.latitude, place.longitude) > SHAPE_BUFFER_M:
        faults.append(Fault("E029", where, f"more than {SHAPE_BUFFER_M:.0f} m from the shape of {trip.trip_id}"))
    if vehicle.stop_id:
        faults += _stop_exists(where, vehicle.stop_id, timetable)
    if trip is not None and vehicle.HasField("current_stop_sequence"):
        if vehicle.current_stop_sequence not in trip.pattern.stop_sequences:
            faults.append(Fault("E051", where, f"stop_sequence {vehicle.current_stop_sequence} is not in the trip"))
        elif vehicle.stop_id and (vehicle.current_stop_sequence, vehicle.stop_id) not in zip(
            trip.pattern.stop_sequences, trip.pattern.stop_ids, strict=True
        ):
            faults.append(Fault("E045", where, "stop_sequence and stop_id do not belong together"))
    return faults


def _from_shape_m(trip: Trip, lat: float, lon: float) -> float:
    """Least distance to the shape, by brute force over points every 20 m of it."""
    lons, lats = _points(trip.pattern.shape)
    return float(distance_m(np.full_like(lons, lon), np.full_like(lats, lat), lons, lats).min())


@lru_cache(maxsize=256)
def _points(shape: Shape) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    lons, lats, _ = shape.positions(np.append(np.arange(0.0, shape.length_m, 20.0), shape.length_m))
    return lons, lats


def _stop_exists(where: str, stop_id: str, timetable: Timetable) -> list[Fault]:
    stop = timetable.stops.get(stop_id)
    if stop is None:
        return [Fault("E011", where, f"stop {stop_id} is not in the feed")]
    if stop.location_type != 0:
        return [Fault("E015", where, f"stop {stop_id} has location_type {stop.location_type}")]
    return []


def _update(where: str, update: rt.TripUpdate, timetable: Timetable, header_s: int, now_s: int) -> list[Fault]:
    faults, trip = _trip(where, update.trip, timetable)
    if update.HasField("timestamp"):
        faults += _time(where, update.timestamp, header_s, now_s)
    if not update.stop_time_update and update.trip.schedule_relationship != rt.TripDescriptor.CANCELED:
        faults.append(Fault("E041", where, "no stop_time_update"))
    last_s, last = 0, None
    for stop in update.stop_time_update:
        at = f"{where} stop {stop.stop_sequence}/{stop.stop_id}"
        faults += _stop(at, stop, trip, timetable)
        if last is not None:
            if stop.stop_sequence == last.stop_sequence:
                faults.append(Fault("E036", at, "the same stop_sequence twice"))
            if stop.stop_sequence < last.stop_sequence:
                faults.append(Fault("E002", at, "not sorted by stop_sequence"))
            if stop.stop_id and stop.stop_id == last.stop_id:
                faults.append(Fault("E037", at, "the same stop_id twice in a row"))
        last = stop
        for event in ("arrival", "departure"):
            if stop.HasField(event):
                value = getattr(stop, event).time
                faults += _time(f"{at} {event}", value, header_s, now_s, future=True)
                if value < last_s or (event == "arrival" and value == last_s):
                    faults.append(Fault("E022", at, f"{event} {value} is not after {last_s}"))
                last_s = value
    return faults


def _stop(at: str, stop: rt.TripUpdate.StopTimeUpdate, trip: Trip | None, timetable: Timetable) -> list[Fault]:
    faults = []
    if not stop.HasField("stop_sequence") and not stop.stop_id:
        faults.append(Fault("E040", at, "neither stop_sequence nor stop_id"))
    if stop.stop_id:
        faults += _stop_exists(at, stop.stop_id, timetable)
    if trip is not None:
        pairs = list(zip(trip.pattern.stop_sequences, trip.pattern.stop_ids, strict=True))
        if not stop.HasField("stop_sequence") and trip.pattern.stop_ids.count(stop.stop_id) > 1:
            faults.append(Fault("E009", at, "no stop_sequence though the trip visits the stop twice"))
        if stop.HasField("stop_sequence") and stop.stop_sequence not in trip.pattern.stop_sequences:
            faults.append(Fault("E051", at, "stop_sequence is not in the trip"))
        elif stop.HasField("stop_sequence") and stop.stop_id and (stop.stop_sequence, stop.stop_id) not in pairs:
            faults.append(Fault("E045", at, "stop_sequence and stop_id do not belong together"))
    timed = stop.HasField("arrival") or stop.HasField("departure")
    if stop.schedule_relationship == STU.NO_DATA and timed:
        faults.append(Fault("E042", at, "times on NO_DATA"))
    if stop.schedule_relationship == STU.SKIPPED and timed:
        faults.append(Fault("SKIPPED", at, "times of a stop that is not served"))
    if stop.schedule_relationship == STU.SCHEDULED and not timed:
        faults.append(Fault("E043", at, "neither arrival nor departure"))
    for event in ("arrival", "departure"):
        if stop.HasField(event) and not (getattr(stop, event).HasField("time") or getattr(stop, event).HasField("delay")):
            faults.append(Fault("E044", at, f"{event} without time and delay"))
        if stop.HasField(event) and not getattr(stop, event).HasField("time"):
            faults.append(Fault("E046", at, f"{event} with a delay alone, of a stop whose planned time a reader may not have"))
        if stop.HasField(event) and getattr(stop, event).uncertainty < 0:
            faults.append(Fault("UNCERTAINTY", at, "less than nothing"))
    if stop.HasField("arrival") and stop.HasField("departure") and stop.departure.time < stop.arrival.time:
        faults.append(Fault("E025", at, "departure before arrival"))
    return faults


def _alert(where: str, alert: rt.Alert, timetable: Timetable) -> list[Fault]:
    faults = []
    if not alert.informed_entity:
        faults.append(Fault("E032", where, "no informed_entity"))
    for span in alert.active_period:
        for edge in ("start", "end"):
            if span.HasField(edge):
                faults += _time(f"{where} active_period.{edge}", getattr(span, edge), 0, 0, future=True)
        if span.HasField("start") and span.HasField("end") and span.end <= span.start:
            faults.append(Fault("PERIOD", where, "active_period ends before it begins"))
    for texts in (alert.header_text, alert.description_text):
        languages = [translation.language for translation in texts.translation]
        if len(set(languages)) != len(languages) or not all(translation.text for translation in texts.translation):
            faults.append(Fault("TEXT", where, "two texts of one language, or an empty one"))
    for entity in alert.informed_entity:
        if not (entity.agency_id or entity.route_id or entity.stop_id or entity.HasField("trip") or entity.HasField("route_type")):
            faults.append(Fault("E033", where, "informed_entity names nothing"))
        if entity.agency_id and entity.agency_id not in timetable.agencies:
            faults.append(Fault("E034", where, f"agency {entity.agency_id} is not in the feed"))
        if entity.route_id and entity.route_id not in timetable.routes:
            faults.append(Fault("E004", where, f"route {entity.route_id} is not in the feed"))
        if entity.stop_id and entity.stop_id not in timetable.stops:  # an alert may concern a station (E015 is for the other two feeds)
            faults.append(Fault("E011", where, f"stop {entity.stop_id} is not in the feed"))
        if entity.HasField("trip"):
            more, trip = _trip(where, entity.trip, timetable)
            faults += more
            if trip is not None and entity.route_id and entity.route_id != trip.route_id:
                faults.append(Fault("E030", where, "trip is not of the route"))
            if entity.route_id and entity.trip.route_id and entity.route_id != entity.trip.route_id:
                faults.append(Fault("E031", where, "two routes in one informed_entity"))
    return faults
