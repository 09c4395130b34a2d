"""A GTFS Schedule zip becomes a `Timetable`, or a list of complaints: one bad row and nothing of the feed is taken.

Read: agency, stops, routes, trips, stop_times, shapes, calendar, calendar_dates, frequencies, feed_info (GTFS reference, 2024 edition).
Errors make the feed unusable or its meaning a guess; warnings are worth a look and leave a feed usable. Every complaint names file, line,
column and value and says what to do. Fares, transfers, pathways and flexible services are not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import numpy as np

from engine.errors import FeedRejected
from engine.tracking.timetable import Agency, Route, Service, Stop, Timetable
from geo.shape import Shape
from ingest.archive import ERROR, WARNING, Archive, Complaint, Complaints, Row, Table, decimal, open_archive
from ingest.stop_times import DrawnShape, FrequencyRow, Reading, TripRow, build_trips, clock_seconds, read_stop_times

FILES: Final = (
    "agency.txt",
    "stops.txt",
    "routes.txt",
    "trips.txt",
    "stop_times.txt",
    "calendar.txt",
    "calendar_dates.txt",
    "shapes.txt",
    "frequencies.txt",
    "feed_info.txt",
)
WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
FEED_ID = re.compile(r"[A-Za-z0-9._-]{1,48}")  # stands before the colon of public ids and in Redis keys
_COLOR = re.compile(r"[0-9A-Fa-f]{6}")

T = TypeVar("T")
Progress = Callable[[float, str], None]  # share done from 0 to 1, and what is being done


class ParsedFeed(NamedTuple):
    """A feed that may be taken. `warnings` holds the first 1,000, `warnings_total` counts them all; `info` is fit for JSON."""

    timetable: Timetable
    sha256: str
    info: dict[str, Any]
    warnings: list[Complaint]
    warnings_total: int


def read_feed(path: str | Path, feed_id: str | None = None, progress: Progress | None = None) -> Timetable:
    """The timetable of a zip (feed id: the file's name where none is given). Raises `FeedRejected` with every complaint."""
    return parse_feed(path, feed_id, progress).timetable


def parse_feed(path: str | Path, feed_id: str | None = None, progress: Progress | None = None) -> ParsedFeed:
    """`read_feed` with what else there is to say about the feed. CPU work of seconds: not for an event loop."""
    path, say = Path(path), progress or (lambda done, what: None)
    feed_id = feed_id or re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem)[:48] or "feed"
    complaints = Complaints()
    if not FEED_ID.fullmatch(feed_id):
        complaints.error("BAD_FEED_ID", path.name, "a feed id has 1 to 48 letters, digits, dots, dashes or underscores", value=feed_id)
    archive = open_archive(path, FILES, complaints)
    if archive is None:
        raise _rejected(path, complaints)
    try:
        parsed = _parse(archive, feed_id, complaints, say)
    finally:
        archive.close()
    if parsed is None or complaints.errors:
        raise _rejected(path, complaints)
    return parsed


def _parse(archive: Archive, feed_id: str, complaints: Complaints, say: Progress) -> ParsedFeed | None:
    """The list of steps. Goes on after errors, so that one run names as many as it can."""
    say(0.0, "agency, routes, stops")
    agencies = _agencies(_table(archive, complaints, "agency.txt", ("agency_name", "agency_timezone")))
    tz = _timezone(agencies, complaints)
    stops = _stops(_table(archive, complaints, "stops.txt", ("stop_id",)))
    routes = _routes(_table(archive, complaints, "routes.txt", ("route_id", "route_type")), agencies)
    services = _services(archive, complaints)
    say(0.05, "shapes")
    drawn: dict[str, DrawnShape] = {}
    shapes_read = False
    if archive.has("shapes.txt"):
        table = _table(archive, complaints, "shapes.txt", ("shape_id", "shape_pt_lat", "shape_pt_lon", "shape_pt_sequence"))
        drawn, shapes_read = _shapes(table, complaints), table is not None and not table.torn
    say(0.2, "trips")
    reading = Reading(complaints, stops=stops, shapes=drawn)
    trips_table = _table(archive, complaints, "trips.txt", ("route_id", "service_id", "trip_id"))
    trip_rows = _trips(trips_table, routes, services, drawn if shapes_read else None)
    reading.trips = trip_rows
    if trip_rows and not archive.has("shapes.txt") and any(trip.shape_id for trip in trip_rows.values()):
        complaints.warn("NO_SHAPES", "shapes.txt", "trips name shapes but the file is missing; they run along their stops")
    if archive.has("frequencies.txt"):
        columns = ("trip_id", "start_time", "end_time", "headway_secs")
        reading.frequencies = _frequencies(_table(archive, complaints, "frequencies.txt", columns), trip_rows)
    say(0.25, "stop times")
    times = _table(archive, complaints, "stop_times.txt", ("trip_id", "stop_id", "stop_sequence"))
    if times is None or trip_rows is None:
        return None
    read_stop_times(reading, times)
    say(0.6, "patterns and trips")
    build_trips(reading, lambda share: say(0.6 + 0.4 * share, "patterns and trips"))
    info = _feed_info(archive, complaints)
    if complaints.errors or tz is None or agencies is None or stops is None or routes is None or services is None:
        return None
    timetable = Timetable(
        feed_id=feed_id,
        version=archive.sha256[:16],
        tz=tz,
        agencies=agencies,
        stops=stops,
        routes=routes,
        services=services,
        patterns=reading.patterns,
        trips=reading.built,
    )
    info["counts"] = {name: len(getattr(timetable, name)) for name in ("agencies", "routes", "stops", "services", "patterns", "trips")}
    info["counts"]["stopTimes"] = sum(len(trip.arrival_s) for trip in timetable.trips.values())
    info["warnings"] = complaints.total(WARNING)
    return ParsedFeed(timetable, archive.sha256, info, complaints.warnings, complaints.total(WARNING))


def _rejected(path: Path, complaints: Complaints) -> FeedRejected:
    total, listed = complaints.total(ERROR), complaints.errors
    rest = f" (and {total - 1} more)" if total > 1 else ""
    return FeedRejected(
        f"{path.name}: {total} error{'s' if total != 1 else ''}, nothing was taken; first: {listed[0]}{rest}",
        errors=[complaint.as_error() for complaint in listed],
        errors_total=total,
        warnings_total=complaints.total(WARNING),
        counts={f"{severity}:{code}": number for (severity, code), number in sorted(complaints.counts.items())},
    )


def _table(archive: Archive, complaints: Complaints, file: str, required: tuple[str, ...]) -> Table | None:
    if archive.has(file):
        return archive.table(file, required)
    complaints.error("MISSING_FILE", file, "a GTFS feed needs this file")
    return None


def _whole(table: Table, found: dict[str, T]) -> dict[str, T] | None:
    """What was found, or None where rows were lost: then nobody may call an id unknown because of it."""
    if not found and not table.torn:
        table.complain("EMPTY_FILE", "the file has a header and no rows; a feed needs some")
    return None if table.torn or not found else found


def _agencies(table: Table | None) -> dict[str, Agency] | None:
    if table is None:
        return None
    agencies: dict[str, Agency] = {}
    for row in table.records():
        agency_id, timezone = row.text("agency_id"), row.needed("agency_timezone")
        if timezone:
            try:
                ZoneInfo(timezone)
            except (KeyError, ValueError, OSError):
                row.wrong("BAD_TIMEZONE", "agency_timezone", "a name of the IANA time zone list is expected, for example Africa/Algiers")
        if agency_id in agencies:
            row.wrong("DUPLICATE_ID", "agency_id", "several agencies need an id each")
        agencies[agency_id] = Agency(agency_id, row.needed("agency_name"), timezone, row.text("agency_url"))
    return _whole(table, agencies)


def _timezone(agencies: dict[str, Agency] | None, complaints: Complaints) -> ZoneInfo | None:
    names = sorted({agency.timezone for agency in (agencies or {}).values() if agency.timezone})
    if len(names) > 1:
        complaints.error("SEVERAL_TIMEZONES", "agency.txt", "all agencies of a feed share one time zone", value=", ".join(names))
    if not names or complaints.counts[ERROR, "BAD_TIMEZONE"]:
        return None
    return ZoneInfo(names[0])


def _stops(table: Table | None) -> dict[str, Stop] | None:
    """Stops, stations and entrances with a place; generic nodes and boarding areas (location_type 3, 4) may have none and are left out."""
    if table is None:
        return None
    stops: dict[str, Stop] = {}
    seen: set[str] = set()
    parents: list[tuple[Row, str]] = []
    for row in table.records():
        stop_id, kind = row.needed("stop_id"), row.whole("location_type", 0, 0, 4)
        if stop_id in seen:
            row.wrong("DUPLICATE_ID", "stop_id", "each stop has an id of its own")
        seen.add(stop_id)
        if row.text("parent_station"):
            parents.append((row, row.text("parent_station")))
        if kind >= 3 and not (row.text("stop_lat") and row.text("stop_lon")):
            continue
        lat, lon = row.degrees("stop_lat", 90.0), row.degrees("stop_lon", 180.0)
        if not row.bad and abs(lat) < 0.01 and abs(lon) < 0.01:
            row.wrong("ZERO_ISLAND", "stop_lat", "latitude and longitude are 0: the place was never set")
        name = row.text("stop_name") if kind >= 3 else row.needed("stop_name")
        stops[stop_id] = Stop(
            stop_id,
            name,
            lat,
            lon,
            row.text("stop_code") or None,
            row.text("parent_station") or None,
            kind,
            row.text("platform_code") or None,
            row.whole("wheelchair_boarding", 0, 0, 2),
        )
    for row, parent in parents:
        if parent not in seen:
            row.wrong("UNKNOWN_REFERENCE", "parent_station", "stops.txt has no such id")
    return _whole(table, stops)


def _routes(table: Table | None, agencies: dict[str, Agency] | None) -> dict[str, Route] | None:
    if table is None:
        return None
    routes: dict[str, Route] = {}
    for row in table.records():
        route_id, agency_id = row.needed("route_id"), row.text("agency_id")
        if route_id in routes:
            row.wrong("DUPLICATE_ID", "route_id", "each route has an id of its own")
        if agency_id:
            row.refers("agency_id", agencies, "agency.txt")
        elif agencies and len(agencies) > 1:
            row.wrong("MISSING_VALUE", "agency_id", "with several agencies each route names its own")
        if not row.text("route_short_name") and not row.text("route_long_name"):
            row.odd("NO_NAME", "route_short_name", "give a short or a long name; the route's id is shown instead")
        routes[route_id] = Route(
            route_id,
            agency_id or None,
            row.text("route_short_name"),
            row.text("route_long_name"),
            row.whole("route_type", None, 0, 1702),
            _color(row, "route_color"),
            _color(row, "route_text_color"),
            row.whole("route_sort_order", 0, 0, 2**31 - 1) if row.text("route_sort_order") else None,
        )
    return _whole(table, routes)


def _color(row: Row, column: str) -> str | None:
    value = row.text(column)
    if value and not _COLOR.fullmatch(value):
        row.odd("BAD_COLOR", column, "six hexadecimal digits are expected; the colour is left out")
        return None
    return value.upper() or None


def _services(archive: Archive, complaints: Complaints) -> dict[str, Service] | None:
    """calendar.txt and calendar_dates.txt together; a feed needs one of the two."""
    if not archive.has("calendar.txt") and not archive.has("calendar_dates.txt"):
        complaints.error("MISSING_FILE", "calendar.txt", "a feed needs calendar.txt or calendar_dates.txt")
        return None
    regular: dict[str, tuple[tuple[bool, ...], date, date]] = {}
    if archive.has("calendar.txt"):
        table = archive.table("calendar.txt", ("service_id", *WEEKDAYS, "start_date", "end_date"))
        if table is None:
            return None
        for row in table.records():
            service_id = row.needed("service_id")
            if service_id in regular:
                row.wrong("DUPLICATE_ID", "service_id", "each service stands once in calendar.txt")
            days = tuple(row.whole(day, None, 0, 1) == 1 for day in WEEKDAYS)
            start, end = row.day("start_date"), row.day("end_date")
            if start > end and not row.bad:
                row.wrong("DATES_REVERSED", "end_date", "the end lies before the start")
            regular[service_id] = (days, start, end)
        if table.torn:
            return None
    changes: dict[str, dict[date, bool]] = {}
    if archive.has("calendar_dates.txt"):
        table = archive.table("calendar_dates.txt", ("service_id", "date", "exception_type"))
        if table is None:
            return None
        for row in table.records():
            day, kind = row.day("date"), row.whole("exception_type", None, 1, 2)
            of_service = changes.setdefault(row.needed("service_id"), {})
            if day in of_service and not row.bad:
                row.wrong("DUPLICATE_ID", "date", "the service has this date already")
            of_service[day] = kind == 1
        if table.torn:
            return None
    services = {}
    for service_id in [*regular, *(other for other in changes if other not in regular)]:
        weekdays, first, last = regular.get(service_id, ((False,) * 7, None, None))
        dates = changes.get(service_id, {})
        added = frozenset(day for day, runs in dates.items() if runs)
        services[service_id] = Service(service_id, weekdays, first, last, added, frozenset(dates) - added)
    return services


def _shapes(table: Table | None, complaints: Complaints) -> dict[str, DrawnShape]:
    """Lines of shapes.txt, points in order of their sequence, with the feed's own distances where every point has one."""
    if table is None:
        return {}
    at_id, at_lat, at_lon = table.place("shape_id"), table.place("shape_pt_lat"), table.place("shape_pt_lon")
    at_sequence, at_dist = table.place("shape_pt_sequence"), table.place("shape_dist_traveled")
    points: dict[str, list[tuple[int, float, float, str, int]]] = {}
    for line, row in table:
        try:
            lat, lon, sequence = float(row[at_lat]), float(row[at_lon]), int(row[at_sequence])
            if not (-90 <= lat <= 90 and -180 <= lon <= 180 and sequence >= 0 and row[at_id]):
                raise ValueError
        except ValueError:
            _bad_point(Row(complaints, table.file, line, dict(zip(table.header, map(str.strip, row), strict=False))))
            continue
        held = points.get(row[at_id])
        if held is None:
            held = points[row[at_id]] = []
        held.append((sequence, lon, lat, row[at_dist], line))
    shapes: dict[str, DrawnShape] = {}
    for shape_id, of_shape in points.items():
        of_shape.sort()
        sequences, lons, lats, texts, lines = zip(*of_shape, strict=True)
        for index in range(1, len(sequences)):
            if sequences[index] == sequences[index - 1]:
                advice = "the shape has this sequence number twice"
                where = {"line": lines[index], "column": "shape_pt_sequence", "value": str(sequences[index])}
                complaints.error("DUPLICATE_ID", table.file, advice, **where)
        shape = Shape(shape_id, np.array(lons), np.array(lats))
        if shape.length_m < 1.0:
            complaints.warn(
                "NO_LENGTH", table.file, "the shape has no length; its trips run along their stops", line=lines[0], value=shape_id
            )
        shapes[shape_id] = DrawnShape(shape, _distances(texts))
    return shapes


def _bad_point(row: Row) -> None:
    row.needed("shape_id")
    row.degrees("shape_pt_lat", 90.0)
    row.degrees("shape_pt_lon", 180.0)
    row.whole("shape_pt_sequence", None, 0, 2**31 - 1)
    if not row.bad:
        row.wrong("BAD_NUMBER", "shape_pt_sequence", "plain digits are expected")


def _distances(texts: tuple[str, ...]) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """shape_dist_traveled of a shape where all of its points have one and it never goes back."""
    if not texts[0]:
        return None
    values = [decimal(text) for text in texts]
    if any(value is None for value in values):
        return None
    found = np.array(values, dtype=np.float64)
    return found if (np.diff(found) >= 0).all() and found[-1] > found[0] else None


def _trips(
    table: Table | None, routes: dict[str, Route] | None, services: dict[str, Service] | None, shapes: dict[str, DrawnShape] | None
) -> dict[str, TripRow] | None:
    if table is None:
        return None
    trips: dict[str, TripRow] = {}
    for row in table.records():
        trip_id = row.needed("trip_id")
        if trip_id in trips:
            row.wrong("DUPLICATE_ID", "trip_id", "each trip has an id of its own")
        shape_id = row.refers("shape_id", shapes, "shapes.txt") if row.text("shape_id") else ""
        trips[trip_id] = TripRow(
            row.refers("route_id", routes, "routes.txt"),
            row.refers("service_id", services, "calendar.txt and calendar_dates.txt"),
            shape_id,
            row.whole("direction_id", 0, 0, 1),
            row.text("trip_headsign") or None,
            row.text("block_id") or None,
            row.text("trip_short_name") or None,
            row.whole("bikes_allowed", 0, 0, 2),
            row.whole("wheelchair_accessible", 0, 0, 2),
            row.line,
        )
    return _whole(table, trips)


def _frequencies(table: Table | None, trips: dict[str, TripRow] | None) -> dict[str, list[FrequencyRow]]:
    found: dict[str, list[FrequencyRow]] = {}
    if table is None:
        return found
    for row in table.records():
        trip_id, headway_s = row.refers("trip_id", trips, "trips.txt"), row.whole("headway_secs", None, 1, 86_400)
        start_s, end_s = clock_seconds(row, "start_time"), clock_seconds(row, "end_time")
        if end_s <= start_s and not row.bad:
            row.wrong("TIMES_REVERSED", "end_time", "the end lies not after the start")
        if not row.bad:
            found.setdefault(trip_id, []).append(FrequencyRow(start_s, end_s, headway_s, row.line))
    return found


def _feed_info(archive: Archive, complaints: Complaints) -> dict[str, Any]:
    if not archive.has("feed_info.txt"):
        return {}
    table = archive.table("feed_info.txt", ("feed_publisher_name",))
    for row in table.records() if table is not None else ():
        names = ("feed_publisher_name", "feed_publisher_url", "feed_lang", "feed_version", "feed_start_date", "feed_end_date")
        return {name: row.text(name) for name in names if row.text(name)}
    return {}
