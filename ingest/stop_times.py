"""stop_times.txt: trips with their times, and the patterns that they share. The large part of a feed, so its loops are plain and flat.

Times are seconds after noon minus 12 h of the service date; times past 24:00 are ordinary. Stops without times get theirs by distance
between the timed stops around them (GTFS reference, stop_times.txt, timepoint). Trips of one route, direction, shape, stops, sequences and
timepoints share one `Pattern`, whose id is made of exactly that, so it is the same in the next version of the feed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.tracking.timetable import Pattern, Stop, Trip
from geo.placing import Placing, place_stops
from geo.shape import Shape
from ingest.archive import ERROR, Complaints, Row, Table

Floats = NDArray[np.float64]

FAR_M: Final = 100.0  # a stop this far from its trip's shape is worth a look
HOURS_MAX: Final = 240  # a trip of ten days; more is a typing fault
FREQUENCY_TRIPS_MAX: Final = 200_000  # trips that frequencies.txt may make; a headway of one second for a day makes 86,400 of each
STOPS_MAX: Final = 2_000  # of one trip: bounds the placing
UNTIMED: Final = -1


class TripRow(NamedTuple):
    """One row of trips.txt, references checked."""

    route_id: str
    service_id: str
    shape_id: str  # '' where the trip has none
    direction_id: int
    headsign: str | None
    block_id: str | None
    short_name: str | None
    bikes: int
    wheelchair: int
    line: int


class FrequencyRow(NamedTuple):
    """One row of frequencies.txt, seconds; departures at start_s, start_s + headway_s ... before end_s."""

    start_s: int
    end_s: int
    headway_s: int
    line: int


class DrawnShape(NamedTuple):
    """A line of shapes.txt; `dist` is the feed's own distance of each point, in whatever unit, where it is whole and never goes back."""

    shape: Shape
    dist: Floats | None


# stop_sequence, arrival_s, departure_s, stop_id, shape_dist_traveled, timepoint, line
StopRow = tuple[int, int, int, str, str, str, int]


class Reading:
    """What has been read of one feed so far, and what has been built of it."""

    def __init__(self, complaints: Complaints, *, stops: dict[str, Stop] | None, shapes: dict[str, DrawnShape]) -> None:
        self.complaints, self.stops, self.shapes = complaints, stops, shapes
        self.trips: dict[str, TripRow] | None = None
        self.frequencies: dict[str, list[FrequencyRow]] = {}
        self.rows: dict[str, list[StopRow]] = {}
        self.patterns: dict[str, Pattern] = {}
        self.built: dict[str, Trip] = {}
        self.placed: dict[tuple[str, tuple[str, ...]], tuple[Shape, Placing] | None] = {}


class _Times(dict[str, int]):
    """Seconds by text; a feed has a few thousand different times in a million cells."""

    def __missing__(self, text: str) -> int:
        seconds = parse_time(text)
        if seconds is None:
            raise ValueError(text)
        self[text] = seconds
        return seconds


def parse_time(text: str) -> int | None:
    """HH:MM:SS or H:MM:SS as seconds, UNTIMED for an empty value, None for anything else (GTFS reference, field type Time)."""
    text = text.strip()
    if not text:
        return UNTIMED
    hours, _, rest = text.partition(":")
    minutes, _, seconds = rest.partition(":")
    if len(hours) > 3 or len(minutes) != 2 or len(seconds) != 2 or not (hours + minutes + seconds).isdecimal() or not hours:
        return None
    if int(hours) > HOURS_MAX or int(minutes) > 59 or int(seconds) > 59:
        return None
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds)


def clock_seconds(row: Row, column: str) -> int:
    """A required time of a small file's row; 0 with a complaint where it is none."""
    seconds = parse_time(row.needed(column))
    if seconds is None:
        row.wrong("BAD_TIME", column, "a time of the form HH:MM:SS is expected; after midnight hours go on: 25:10:00")
    return max(0, seconds or 0)


def read_stop_times(reading: Reading, table: Table) -> None:
    """Rows by trip into `reading.rows`; needs `reading.trips`."""
    rows: dict[str, list[StopRow]] = {trip_id: [] for trip_id in reading.trips or {}}
    reading.rows, times = rows, _Times()
    at_trip, at_stop, at_sequence = table.place("trip_id"), table.place("stop_id"), table.place("stop_sequence")
    at_arrival, at_departure = table.place("arrival_time"), table.place("departure_time")
    at_dist, at_timepoint = table.place("shape_dist_traveled"), table.place("timepoint")
    for line, row in table:
        try:
            rows[row[at_trip]].append(
                (
                    int(row[at_sequence]),
                    times[row[at_arrival]],
                    times[row[at_departure]],
                    row[at_stop],
                    row[at_dist],
                    row[at_timepoint],
                    line,
                )
            )
        except (KeyError, ValueError):
            values = dict(zip(table.header, map(str.strip, row), strict=False))
            _second_look(Row(reading.complaints, table.file, line, values), rows)


def _second_look(row: Row, rows: dict[str, list[StopRow]]) -> None:
    """A row that the fast loop could not take: with white space stripped it may be fine, else every fault of it is named."""
    trip_id = row.refers("trip_id", rows, "trips.txt")
    sequence = row.whole("stop_sequence", None, 0, 2**31 - 1)
    seconds = []
    for column in ("arrival_time", "departure_time"):
        found = parse_time(row.text(column))
        if found is None:
            row.wrong("BAD_TIME", column, "a time of the form HH:MM:SS is expected; after midnight hours go on: 25:10:00")
        seconds.append(UNTIMED if found is None else found)
    if not row.bad:
        values = (row.needed("stop_id"), row.text("shape_dist_traveled"), row.text("timepoint"))
        rows[trip_id].append((sequence, seconds[0], seconds[1], *values, row.line))


def build_trips(reading: Reading, say: Callable[[float], None]) -> None:
    """Patterns and trips from the rows. A trip of fewer than two stops cannot be driven: left out with a warning."""
    patterns: dict[tuple[object, ...], Pattern] = {}
    made = 0
    for number, (trip_id, rows) in enumerate(reading.rows.items()):
        if number % 256 == 0:
            say(number / len(reading.rows))
        trip = (reading.trips or {})[trip_id]
        if len(rows) < 2:
            advice = "the trip has fewer than two stop times and is left out"
            reading.complaints.warn("UNUSABLE_TRIP", "trips.txt", advice, line=trip.line, column="trip_id", value=trip_id)
            continue
        if not _in_order(reading, trip_id, rows):
            continue
        sequences, arrivals, departures, stop_ids, _, flags, _ = zip(*rows, strict=True)
        timed = tuple(a != UNTIMED and flag.strip() != "0" for a, flag in zip(arrivals, flags, strict=True))
        key = (trip.route_id, trip.direction_id, trip.shape_id, stop_ids, sequences, timed)
        pattern = patterns.get(key)
        if pattern is None:
            found = _pattern(reading, trip, rows, timed)
            if found is None:
                continue
            pattern = patterns[key] = reading.patterns[found.pattern_id] = found
        if UNTIMED in arrivals:
            arrivals, departures = _interpolated(pattern.along_m, arrivals, departures)
        base = Trip(
            trip_id,
            trip.route_id,
            trip.service_id,
            pattern,
            arrivals,
            departures,
            trip.headsign,
            trip.block_id,
            trip.short_name,
            None,
            trip.bikes,
            trip.wheelchair,
        )
        repeats = reading.frequencies.get(trip_id)
        if repeats is None:
            reading.built[trip_id] = base
        else:
            made = _repeat(reading, base, repeats, made)
    _check_blocks(reading)


def _in_order(reading: Reading, trip_id: str, rows: list[StopRow]) -> bool:
    """Sorts a trip's rows and completes half-given times in place; False with complaints where they make no sense."""
    complaints, file, before = reading.complaints, "stop_times.txt", reading.complaints.total(ERROR)

    def wrong(code: str, row: StopRow, column: str, value: object, advice: str) -> None:
        complaints.error(code, file, f"{advice} (trip {trip_id})", line=row[6], column=column, value=str(value))

    sequences = [row[0] for row in rows]
    if any(map(int.__ge__, sequences, sequences[1:])):
        first = next(row for row, after in zip(rows[1:], rows, strict=False) if row[0] <= after[0])
        rows.sort(key=lambda row: row[0])
        sequences.sort()
        twice = [row for row, after in zip(rows[1:], rows, strict=False) if row[0] == after[0]]
        for row in twice:
            wrong("DUPLICATE_SEQUENCE", row, "stop_sequence", row[0], "the trip has this stop_sequence twice")
        if not twice:
            advice = f"stop_sequence goes down from one row to the next; the trip is read in order of stop_sequence (trip {trip_id})"
            complaints.warn("UNSORTED", file, advice, line=first[6], column="stop_sequence", value=str(first[0]))
    if sequences[0] < 0 or sequences[-1] > 2**31 - 1 or len(rows) > STOPS_MAX:
        wrong("BAD_NUMBER", rows[0], "stop_sequence", sequences[0], f"0 to {2**31 - 1} are expected, and at most {STOPS_MAX} stops")
    if any(row[1] == UNTIMED or row[2] == UNTIMED for row in rows):
        for index, row in enumerate(rows):
            either = row[1] if row[1] != UNTIMED else row[2]
            rows[index] = (row[0], either, row[2] if row[2] != UNTIMED else either, *row[3:])
        for row in (rows[0], rows[-1]):
            if row[1] == UNTIMED:
                wrong("MISSING_VALUE", row, "arrival_time", "", "the first and the last stop of a trip need times")
    flat = [seconds for row in rows for seconds in row[1:3] if seconds != UNTIMED]
    if any(map(int.__gt__, flat, flat[1:])):
        latest = 0
        for row in (row for row in rows if row[1] != UNTIMED):
            for seconds, column in ((row[1], "arrival_time"), (row[2], "departure_time")):
                if seconds < latest:
                    wrong(
                        "TIMES_REVERSED", row, column, _clock(seconds), f"lies before {_clock(latest)}, the time just before it on the trip"
                    )
                latest = max(latest, seconds)
    known = reading.stops
    for row in rows:
        if known is not None and row[3] not in known:
            stop_id = row[3].strip()
            if stop_id not in known:
                code = "UNKNOWN_REFERENCE" if stop_id else "MISSING_VALUE"
                wrong(code, row, "stop_id", row[3], "stops.txt has no such id" if stop_id else "a value is required here")
                continue
            rows[sequences.index(row[0])] = (*row[:3], stop_id, *row[4:])
    return complaints.total(ERROR) == before and known is not None


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _pattern(reading: Reading, trip: TripRow, rows: list[StopRow], timed: tuple[bool, ...]) -> Pattern | None:
    """A new pattern with its stops placed, or None with a warning where all of its stops are one place."""
    stop_ids, sequences = tuple(row[3] for row in rows), tuple(row[0] for row in rows)
    drawn = reading.shapes.get(trip.shape_id)
    if drawn is not None and drawn.shape.length_m < 1.0:
        drawn = None
    key = (trip.shape_id if drawn is not None else "", stop_ids)
    if key not in reading.placed:
        reading.placed[key] = _placed(reading, drawn, rows)
    placed = reading.placed[key]
    if placed is None:
        return None
    shape, placing = placed
    text = repr((trip.route_id, trip.direction_id, shape.shape_id, stop_ids, sequences, timed))
    pattern_id = f"{trip.route_id}-{trip.direction_id}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    return Pattern(
        pattern_id, trip.route_id, trip.direction_id, shape, stop_ids, sequences, placing.along_m, timed, from_stops=drawn is None
    )


def _placed(reading: Reading, drawn: DrawnShape | None, rows: list[StopRow]) -> tuple[Shape, Placing] | None:
    stops = [(reading.stops or {})[row[3]] for row in rows]
    lons, lats = np.array([stop.lon for stop in stops]), np.array([stop.lat for stop in stops])
    line = rows[0][6]
    if drawn is None:
        chain = "~" + hashlib.sha256(repr([stop.stop_id for stop in stops]).encode()).hexdigest()[:16]
        shape, dist = Shape(chain, lons, lats), None
        if shape.length_m < 1.0:
            advice = "all stops of the trip are in one place; trips like it are left out"
            reading.complaints.warn("UNUSABLE_TRIP", "stop_times.txt", advice, line=line)
            return None
        hints: Floats | None = shape.cum_m
    else:
        shape, dist = drawn
        hints = None if dist is None else _hints(shape, dist, [row[4] for row in rows])
    legs = [None if before[2] == UNTIMED or after[1] == UNTIMED else float(after[1] - before[2]) for before, after in pairwise(rows)]
    placing = place_stops(shape, lons, lats, hint_m=hints, leg_s=legs)
    for index in np.flatnonzero(placing.offset_m > FAR_M).tolist():
        advice = f"the stop is {placing.offset_m[index]:.0f} m away from shape {shape.shape_id}; move one of the two"
        row = rows[index]
        reading.complaints.warn("STOP_FAR_FROM_SHAPE", "stop_times.txt", advice, line=row[6], column="stop_id", value=row[3])
    return shape, placing


def _hints(shape: Shape, dist: Floats, texts: list[str]) -> Floats | None:
    """Metres along by the feed's own shape_dist_traveled, where every stop has one."""
    try:
        values = np.array([float(text) for text in texts])
    except ValueError:
        return None
    return np.interp(values, dist, shape.cum_m) if np.isfinite(values).all() else None


def _interpolated(along_m: Floats, arrivals: tuple[int, ...], departures: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Times for the untimed stops, by distance between the departure before and the arrival after them."""
    new_arrivals, new_departures = list(arrivals), list(departures)
    known = [index for index, seconds in enumerate(arrivals) if seconds != UNTIMED]
    for before, after in pairwise(known):
        start, end = departures[before], arrivals[after]
        length = along_m[after] - along_m[before]
        for index in range(before + 1, after):
            share = float((along_m[index] - along_m[before]) / length)
            new_arrivals[index] = new_departures[index] = round(start + (end - start) * share)
    return tuple(new_arrivals), tuple(new_departures)


def _repeat(reading: Reading, base: Trip, repeats: list[FrequencyRow], made: int) -> int:
    """frequencies.txt: one trip for each start, named `{trip_id}@{HHMMSS}`. Returns how many have been made in all."""
    for row in repeats:
        starts = range(row.start_s, row.end_s, row.headway_s)
        made += len(starts)
        if made > FREQUENCY_TRIPS_MAX:
            advice = f"frequencies.txt would make more than {FREQUENCY_TRIPS_MAX} trips; check headway_secs"
            reading.complaints.error("TOO_MANY_TRIPS", "frequencies.txt", advice, line=row.line)
            return made
        for start_s in starts:
            trip_id, shift = f"{base.trip_id}@{_clock(start_s).replace(':', '')}", start_s - base.departure_s[0]
            if trip_id in reading.built:
                advice = "two rows of the trip start at the same time; one is left out"
                reading.complaints.warn("OVERLAP", "frequencies.txt", advice, line=row.line, value=trip_id)
                continue
            reading.built[trip_id] = Trip(
                trip_id,
                base.route_id,
                base.service_id,
                base.pattern,
                tuple(seconds + shift for seconds in base.arrival_s),
                tuple(seconds + shift for seconds in base.departure_s),
                base.headsign,
                base.block_id,
                base.short_name,
                base.trip_id,
                base.bikes,
                base.wheelchair,
            )
    return made


def _check_blocks(reading: Reading) -> None:
    """One vehicle drives a block, so its trips of one service must not overlap."""
    blocks: dict[tuple[str, str], list[Trip]] = {}
    for trip in reading.built.values():
        if trip.block_id is not None:
            blocks.setdefault((trip.block_id, trip.service_id), []).append(trip)
    for (block_id, _), trips in blocks.items():
        trips.sort(key=lambda trip: (trip.departure_s[0], trip.trip_id))
        for before, after in pairwise(trips):
            if after.departure_s[0] < before.arrival_s[-1]:
                row = (reading.trips or {})[after.frequency_of or after.trip_id]
                advice = f"the trip leaves before trip {before.trip_id} of the same block has ended"
                reading.complaints.warn("BLOCK_OVERLAP", "trips.txt", advice, line=row.line, column="block_id", value=block_id)
