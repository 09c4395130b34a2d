"""The demo network: valid, always running, the same every time, and of the shapes it is there to show."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import gtfs_guru
import numpy as np
import pytest

from bench.network.buses import assign, blocks_on, bus_list
from bench.network.feed import write_feed
from engine.tracking.timetable import Timetable
from ingest.gtfs import read_feed

TODAY = date(2026, 11, 21)


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "demo.zip"
    write_feed(path, TODAY)
    return path


@pytest.fixture(scope="module")
def timetable(feed: Path) -> Timetable:
    return read_feed(feed)


def rows(feed: Path, name: str) -> Iterator[dict[str, str]]:
    with zipfile.ZipFile(feed) as archive, archive.open(name) as member:
        yield from csv.DictReader(io.TextIOWrapper(member, "utf-8"))


def test_an_independent_validator_finds_no_error_and_no_warning(feed: Path) -> None:
    found = gtfs_guru.validate(str(feed))
    assert [(n.code, n.context()) for n in found.errors()] == []
    assert [(n.code, n.context()) for n in found.warnings()] == []


def test_the_validator_would_have_seen_a_trip_that_runs_backwards(feed: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.zip"
    with zipfile.ZipFile(feed) as source, zipfile.ZipFile(broken, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data.replace(b",05:00:00,05:00:00,", b",29:00:00,29:00:00,") if name == "stop_times.txt" else data)
    assert gtfs_guru.validate(str(broken)).error_count > 0


def test_the_same_day_gives_the_same_bytes_and_another_day_only_another_calendar(feed: Path, tmp_path: Path) -> None:
    again, later = tmp_path / "again.zip", tmp_path / "later.zip"
    write_feed(again, TODAY)
    write_feed(later, TODAY + timedelta(days=3))
    assert again.read_bytes() == feed.read_bytes()
    with zipfile.ZipFile(feed) as one, zipfile.ZipFile(later) as other:
        assert one.namelist() == other.namelist()
        assert {n for n in one.namelist() if one.read(n) != other.read(n)} == {"calendar.txt", "feed_info.txt"}


def test_at_every_minute_of_the_week_buses_are_in_a_trip(timetable: Timetable) -> None:
    monday = date(2026, 11, 23)
    week_ms = int(datetime(2026, 11, 23, tzinfo=timetable.tz).timestamp() * 1000)
    change = np.zeros(7 * 1440 + 1, dtype=int)
    for day in range(-2, 8):
        for trip in timetable.instances_on(monday + timedelta(days=day)):
            begin, end = (np.clip((ms - week_ms) // 60_000, 0, 7 * 1440) for ms in (trip.departure_ms(0), trip.arrival_ms(-1)))
            change[begin] += 1
            change[end] -= 1
    running = np.cumsum(change)[:-1]
    assert running.min() >= 40
    assert 90 <= running.max() <= 160
    assert running[8 * 60] > 1.5 * running[3 * 60], "a Monday's morning peak stands out from its night"


def test_it_runs_today_and_for_a_year(timetable: Timetable) -> None:
    for day in (-7, 0, 1, 5, 6, 365, 400):
        assert timetable.instances_on(TODAY + timedelta(days=day)), day


def test_friday_is_the_weekend(timetable: Timetable) -> None:
    friday, sunday = (len(timetable.instances_on(date(2026, 11, day))) for day in (20, 22))
    assert friday < 0.8 * sunday


def pattern_stops(timetable: Timetable, route_id: str, direction: int = 0) -> tuple[str, ...]:
    return next(p.stop_ids for p in timetable.patterns.values() if p.route_id == route_id and p.direction_id == direction)


def test_one_line_is_a_loop_one_a_lollipop_one_a_figure_of_eight_and_one_has_a_spur(timetable: Timetable) -> None:
    loop, lollipop, eight, spur = (pattern_stops(timetable, route) for route in ("115", "107", "127", "124"))
    assert loop[0] == loop[-1] and len(set(loop)) == len(loop) - 1
    assert lollipop[0] == lollipop[-1] and len(set(lollipop)) < len(lollipop) - 5, "the stem is driven up and down"
    assert eight[0] == eight[-1] and eight.count("mouradia-A") + eight.count("mouradia-B") == 2
    assert spur.count("vieuxkouba-B") == 2


def test_stops_lie_beside_their_place_on_the_shape_also_where_a_line_crosses_itself(feed: Path, timetable: Timetable) -> None:
    said: dict[str, list[float]] = {}
    for row in rows(feed, "stop_times.txt"):
        said.setdefault(row["trip_id"], []).append(float(row["shape_dist_traveled"]))
    seen = set()
    for trip in timetable.trips.values():
        if trip.pattern.pattern_id in seen:
            continue
        seen.add(trip.pattern.pattern_id)
        assert np.abs(trip.pattern.along_m - said[trip.trip_id]).max() < 12
        for stop_id, along in zip(trip.pattern.stop_ids, said[trip.trip_id], strict=True):
            lon, lat, _ = trip.pattern.shape.position(along)
            stop = timetable.stops[stop_id]
            assert abs(stop.lat - lat) * 111_000 < 30 and abs(stop.lon - lon) * 89_000 < 30


def test_shapes_are_curves_and_speeds_are_a_buss(timetable: Timetable) -> None:
    for trip in timetable.trips.values():
        assert len(trip.pattern.shape.lats) > 150
        kmh = trip.pattern.shape.length_m / (trip.arrival_s[-1] - trip.departure_s[0]) * 3.6
        assert 11 < kmh < 90, trip.trip_id


def test_night_trips_pass_midnight_and_blocks_link_trips_without_overlap(timetable: Timetable) -> None:
    assert any(trip.arrival_s[-1] > 25 * 3600 + 1800 and trip.departure_s[0] > 24 * 3600 for trip in timetable.trips.values())
    blocks = blocks_on(timetable, TODAY)
    assert max(len(block.trips) for block in blocks) >= 8
    waits = [b.departure_ms(0) - a.arrival_ms(-1) for block in blocks for a, b in zip(block.trips, block.trips[1:], strict=False)]
    assert min(waits) >= 5 * 60_000 and max(waits) >= 40 * 60_000, "turning takes time, and some layovers are long"


def test_coaches_sell_legs(timetable: Timetable) -> None:
    for route_id in ("W1", "E1", "E2"):
        assert 5 <= len(pattern_stops(timetable, route_id)) <= 12


def test_every_trip_has_one_bus_and_no_bus_two_trips_at_once(timetable: Timetable) -> None:
    driven: list[str] = []
    for bus in assign(timetable, TODAY):
        trips = [trip for block in bus.work for trip in block.trips]
        driven += [t.trip.trip_id for t in trips if t.start_date == f"{TODAY:%Y%m%d}"]
        for before, after in pairwise(trips):
            assert before.arrival_ms(-1) <= after.departure_ms(0)
    assert sorted(driven) == sorted(t.trip.trip_id for t in timetable.instances_on(TODAY))


def test_a_bus_keeps_its_work_from_day_to_day(timetable: Timetable) -> None:
    def work_on(day: date, asked: date) -> dict[str, str]:
        return {
            t.trip.trip_id: bus.bus_id for bus in assign(timetable, asked, days=4) for b in bus.work for t in b.trips
            if t.start_date == f"{day:%Y%m%d}"
        }  # fmt: skip

    one, next_day = (date.fromordinal(TODAY.toordinal() // 7 * 7 + n) for n in (2, 3))
    assert work_on(next_day, asked=one) == work_on(next_day, asked=next_day)


def test_the_list_of_buses_holds_whoever_drives_in_the_coming_week(timetable: Timetable) -> None:
    listed = {row["busId"] for row in bus_list(timetable, TODAY)}
    assert 120 <= len(listed) <= 260
    for day in (0, 3, 6):
        assert {bus.bus_id for bus in assign(timetable, TODAY + timedelta(days=day))} <= listed
    assert bus_list(timetable, TODAY)[0] == {"busId": "ALG-101", "name": "Étrama Alger 101", "agencyId": "ALG"}
