"""The demo network as a GTFS feed: drives become shapes, frequencies become trips, trips become blocks.

`write_feed` gives the same bytes for the same day. The calendar runs from a week before that day to 400 days after it, so that
the feed serves "today" whenever it is made. The weekend is Friday and Saturday, as in Algiers.
"""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

from bench.network.drawing import Drive, Halt, drive
from bench.network.lines import AGENCIES, FREQUENCIES, LINES, Line

TIMEZONE = "Africa/Algiers"
DAYS_BEFORE, DAYS_AFTER = 7, 400
SERVICES = {  # Monday first
    "WEEK": (1, 1, 1, 1, 0, 0, 1),
    "END": (0, 0, 0, 0, 1, 1, 0),
    "DAY": (1, 1, 1, 1, 1, 1, 1),
}
STOP_S = 24  # what a stop costs a city bus: braking, doors, pulling out
MAX_WAIT_MIN = {"coach": 200, "coach_short": 200}  # longest layover inside a block; 35 min for the rest
URL = "https://example.org/"

Table = list[Sequence[object]]  # the header first


class Run(NamedTuple):
    """One trip before it is written. Times are seconds of the service day."""

    trip_id: str
    line: Line
    direction: int
    service_id: str
    arrival_s: tuple[int, ...]
    departure_s: tuple[int, ...]


def slowdown(line: Line, minute: int, service_id: str) -> float:
    """What the planner reckons with: city traffic in four bands, coaches a little."""
    hour = minute / 60 % 24
    peak = service_id != "END" and (7 <= hour < 9.5 or 15.5 <= hour < 19)
    day = 6 <= hour < 21
    if line.express:
        return 1.12 if peak else 1.07 if day else 1.0
    return 1.42 if peak else 1.24 if day else 1.12


def plan(line: Line, way: Drive, start_min: int, service_id: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(arrivals, departures) of a trip: whole minutes at the timepoints, seconds between them."""
    arrivals, departures = [start_min * 60], [start_min * 60]
    clock = start_min * 60.0
    for previous, halt in zip(way.halts, way.halts[1:], strict=False):
        factor = slowdown(line, round(clock / 60), service_id)
        clock += (way.free_s[halt.at] - way.free_s[previous.at]) * factor + (90 if line.express else STOP_S)
        arrival = max(math.ceil(clock), departures[-1] + 20)
        last = halt is way.halts[-1]
        if last or halt.place in line.timepoints:
            arrival = -(-arrival // 60) * 60
        wait_s = 0 if last else line.hold_min.get(halt.place or "", 5 if line.express else 0) * 60
        arrivals.append(arrival)
        departures.append(arrival + wait_s)
        clock = float(arrival + wait_s)
    return tuple(arrivals), tuple(departures)


def drives_of(line: Line) -> list[Drive]:
    """One drive per direction."""
    ways = [drive(line.out, line.express)]
    if line.back is not None:
        ways.append(drive(line.back or line.out[::-1], line.express))
    return ways


def runs_of(line: Line, ways: Sequence[Drive]) -> list[Run]:
    """Every trip of the line, of each of its services, by start."""
    runs = []
    for service_id, bands in FREQUENCIES[line.frequency].items():
        for direction, way in enumerate(ways):
            for number, start in enumerate(_starts(bands, offset=direction)):
                times = plan(line, way, start, service_id)
                runs.append(Run(f"{line.route_id}-{service_id}-{direction}-{number + 1:03d}", line, direction, service_id, *times))
    return runs


def _starts(bands: Iterable[tuple[int, int, int]], offset: int) -> list[int]:
    """Departures in minutes; the way back starts half a headway later."""
    starts: list[int] = []
    for begin, end, headway in bands:
        minute = begin + offset * headway // 2 if not starts else max(begin, starts[-1] + headway)
        while minute < end:
            starts.append(minute)
            minute += headway
    return starts


def blocks_of(runs: Sequence[Run], ways: Mapping[str, Sequence[Drive]]) -> dict[str, str]:
    """trip_id -> block_id: the bus that has waited longest at a trip's first stop takes it, if its layover is over."""
    blocks: dict[str, str] = {}
    for service_id in SERVICES:
        waiting: list[tuple[int, int, str, str]] = []  # (arrived, free from, place, block)
        made: dict[str, int] = {}
        for run in sorted((r for r in runs if r.service_id == service_id), key=lambda r: (r.departure_s[0], r.trip_id)):
            halts = ways[run.line.route_id][run.direction].halts
            pool = f"{run.line.agency}-{run.line.frequency if run.line.express else 'city'}"
            longest_s = MAX_WAIT_MIN.get(run.line.frequency, 35) * 60
            here = f"{pool}:{halts[0].place}"
            fit = [w for w in waiting if w[2] == here and w[1] <= run.departure_s[0] and run.departure_s[0] - w[0] <= longest_s]
            if fit:
                chosen = min(fit)
                waiting.remove(chosen)
                block = chosen[3]
            else:
                made[pool] = made.get(pool, 0) + 1
                block = f"{pool}-{service_id}-{made[pool]:03d}"
            blocks[run.trip_id] = block
            waiting.append((run.arrival_s[-1], run.arrival_s[-1] + run.line.layover_min * 60, f"{pool}:{halts[-1].place}", block))
    return blocks


def clock_text(seconds: int) -> str:
    """GTFS Time: hours may pass 24."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def text_color(color: str) -> str:
    """Black or white, whichever stands out more (WCAG relative luminance)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return "FFFFFF" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.18 else "000000"


def tables(today: date) -> dict[str, Table]:
    """Every file of the feed as rows, the header first."""
    ways = {line.route_id: drives_of(line) for line in LINES}
    runs = [run for line in LINES for run in runs_of(line, ways[line.route_id])]
    blocks = blocks_of(runs, ways)
    start, end = (f"{today + timedelta(days=d):%Y%m%d}" for d in (-DAYS_BEFORE, DAYS_AFTER))
    return {
        "agency.txt": [
            ["agency_id", "agency_name", "agency_url", "agency_timezone", "agency_lang", "agency_phone", "agency_email"],
            *([key, name, URL + key.lower(), TIMEZONE, "fr", phone, f"contact@{key.lower()}.example.org"]
              for key, (name, phone) in AGENCIES.items()),
        ],
        "feed_info.txt": [
            ["feed_publisher_name", "feed_publisher_url", "feed_lang", "default_lang", "feed_start_date", "feed_end_date", "feed_version",
             "feed_contact_email"],
            ["Timepoint demo network", URL + "timepoint", "fr", "fr", start, end, f"demo-{start}", "demo@example.org"],
        ],
        "calendar.txt": [
            ["service_id", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "start_date", "end_date"],
            *([service_id, *days, start, end] for service_id, days in SERVICES.items()),
        ],
        "routes.txt": [
            ["route_id", "agency_id", "route_short_name", "route_long_name", "route_type", "route_color", "route_text_color",
             "route_sort_order"],
            *([n.route_id, n.agency, n.short_name, n.long_name, 3, n.color, text_color(n.color), i] for i, n in enumerate(LINES)),
        ],
        "stops.txt": _stops(halt for pair in ways.values() for way in pair for halt in way.halts),
        "shapes.txt": _shapes(ways),
        "trips.txt": _trips(runs, blocks),
        "stop_times.txt": _stop_times(runs, ways),
    }  # fmt: skip


def _stops(halts: Iterable[Halt]) -> Table:
    known: dict[str, Halt] = {}
    for halt in halts:
        known.setdefault(halt.stop_id, halt)
    rows: Table = [["stop_id", "stop_code", "stop_name", "stop_lat", "stop_lon", "location_type", "wheelchair_boarding"]]
    for number, stop_id in enumerate(sorted(known)):
        halt = known[stop_id]
        wheelchair = 1 if halt.place or number % 3 else 2
        rows.append([stop_id, 1001 + number, halt.name, f"{halt.lat:.6f}", f"{halt.lon:.6f}", 0, wheelchair])
    return rows


def _shapes(ways: Mapping[str, Sequence[Drive]]) -> Table:
    rows: Table = [["shape_id", "shape_pt_lat", "shape_pt_lon", "shape_pt_sequence", "shape_dist_traveled"]]
    for route_id, pair in ways.items():
        for direction, way in enumerate(pair):
            for i in range(len(way.lats)):
                rows.append([f"{route_id}-{direction}", f"{way.lats[i]:.6f}", f"{way.lons[i]:.6f}", i + 1, f"{way.along_m[i]:.2f}"])
    return rows


def _trips(runs: Iterable[Run], blocks: dict[str, str]) -> Table:
    rows: Table = [["route_id", "service_id", "trip_id", "trip_headsign", "direction_id", "block_id", "shape_id",
                                 "wheelchair_accessible", "bikes_allowed"]]  # fmt: skip
    for run in runs:
        rows.append([
            run.line.route_id, run.service_id, run.trip_id, run.line.heads[run.direction], run.direction, blocks[run.trip_id],
            f"{run.line.route_id}-{run.direction}", 2 if run.line.frequency == "coach_short" else 1, 2,
        ])  # fmt: skip
    return rows


def _stop_times(runs: Iterable[Run], ways: Mapping[str, Sequence[Drive]]) -> Table:
    rows: Table = [["trip_id", "arrival_time", "departure_time", "stop_id", "stop_sequence", "pickup_type", "drop_off_type",
                                 "timepoint", "shape_dist_traveled"]]  # fmt: skip
    for run in runs:
        way = ways[run.line.route_id][run.direction]
        last = len(way.halts) - 1
        for i, halt in enumerate(way.halts):
            fixed = i in (0, last) or halt.place in run.line.timepoints or run.departure_s[i] > run.arrival_s[i]
            rows.append([
                run.trip_id, clock_text(run.arrival_s[i]), clock_text(run.departure_s[i]), halt.stop_id, i + 1, int(i == last), int(i == 0),
                int(fixed), f"{way.along_m[halt.at]:.2f}",
            ])  # fmt: skip
    return rows


def write_feed(out: Path, today: date) -> None:
    """Write the zip. The same day gives the same bytes: fixed member dates and order, no chance anywhere."""
    with zipfile.ZipFile(out, "w") as archive:
        for name, rows in sorted(tables(today).items()):
            text = io.StringIO()
            csv.writer(text, lineterminator="\r\n").writerows(rows)
            member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(member, text.getvalue().encode(), compresslevel=6)
