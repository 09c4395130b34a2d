"""GTFS feeds, good and bad: what is taken, and what exactly is said about the rest."""

from __future__ import annotations

import re
import struct
import zipfile
from datetime import date
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import FeedRejected
from engine.tracking.timetable import Timetable
from ingest import archive, gtfs, stop_times
from ingest.gtfs import FILES as READ
from ingest.gtfs import parse_feed, read_feed
from tests.gtfs_feed import FILES, replaced, write_feed

Changes = dict[str, str | bytes | None]
STOP_TIMES = FILES["stop_times.txt"]


def rejection(path: Path) -> FeedRejected:
    with pytest.raises(FeedRejected) as caught:
        read_feed(path)
    return caught.value


def said(fault: FeedRejected) -> set[tuple[str, str]]:
    """(pointer, code) of every error."""
    return {(error["pointer"], error["code"]) for error in fault.errors}


# what is taken


def test_a_feed_becomes_a_timetable(tmp_path: Path) -> None:
    parsed = parse_feed(write_feed(tmp_path / "city.zip"))
    table = parsed.timetable
    assert (table.feed_id, table.version, table.tz.key) == ("city", parsed.sha256[:16], "America/New_York")
    assert table.routes["1"].color == "00AA11"
    assert table.trips["t1"].arrival_s == (28800, 28980, 29220, 29700)
    assert table.trips["t1"].departure_s == (28800, 29040, 29220, 29700)
    assert table.trips["t3"].departure_s[0] == 25 * 3600 + 600
    assert table.trips["t1"].pattern is table.trips["t3"].pattern, "one pattern for the trips that drive it"
    assert [trip.block_id for trip in table.trips.values()] == ["b1", "b1", None]
    assert table.trips["t2"].pattern.stop_sequences == (1, 5, 9)
    assert parsed.warnings == []
    assert parsed.info["counts"] == {"agencies": 1, "routes": 1, "stops": 4, "services": 1, "patterns": 2, "trips": 3, "stopTimes": 11}


def test_stops_stand_on_the_shape(tmp_path: Path) -> None:
    pattern = read_feed(write_feed(tmp_path / "f.zip")).trips["t1"].pattern
    assert pattern.shape.shape_id == "out"
    assert pattern.along_m.tolist() == pytest.approx([0, 901.8, 1803.6, 3607.1], abs=1)
    assert not pattern.from_stops


def test_calendars_say_what_runs(tmp_path: Path) -> None:
    service = read_feed(write_feed(tmp_path / "f.zip")).services["wk"]
    assert service.runs_on(date(2026, 7, 3)) and service.runs_on(date(2026, 7, 4)) and not service.runs_on(date(2026, 7, 5))
    assert not service.runs_on(date(2026, 12, 25)) and not service.runs_on(date(2027, 1, 4))


def test_a_feed_may_have_dates_only(tmp_path: Path) -> None:
    service = read_feed(write_feed(tmp_path / "f.zip", {"calendar.txt": None})).services["wk"]
    assert service.start is None
    assert service.runs_on(date(2026, 7, 4)) and not service.runs_on(date(2026, 7, 6))


def test_without_shapes_the_line_is_the_chain_of_stops_and_says_so(tmp_path: Path) -> None:
    trips = FILES["trips.txt"].replace(",shape_id", "").replace(",out", "").replace(",back", "")
    table = read_feed(write_feed(tmp_path / "f.zip", {"shapes.txt": None, "trips.txt": trips}))
    pattern = table.trips["t2"].pattern
    assert pattern.from_stops
    assert pattern.along_m.tolist() == pytest.approx([0, 2705.4, 3607.1], abs=1)
    assert table.trips["t1"].pattern.shape.shape_id == table.trips["t3"].pattern.shape.shape_id


def test_untimed_stops_get_their_times_by_distance(tmp_path: Path) -> None:
    """s2 lies at a quarter of the way from s1 to s4, s3 at half: not at thirds."""
    changes = replaced("stop_times.txt", "t1,08:03:00,08:04:00,s2,2\nt1,08:07:00,08:07:00,s3,3\n", "t1,,,s2,2\nt1,,,s3,3\n")
    trip = read_feed(write_feed(tmp_path / "f.zip", changes)).trips["t1"]
    assert trip.arrival_s == trip.departure_s == (28800, 29025, 29250, 29700)
    assert trip.pattern.timepoint == (True, False, False, True)


def test_one_of_two_times_stands_for_both(tmp_path: Path) -> None:
    trip = read_feed(write_feed(tmp_path / "f.zip", replaced("stop_times.txt", "08:03:00,08:04:00", ",08:04:00"))).trips["t1"]
    assert (trip.arrival_s[1], trip.departure_s[1]) == (29040, 29040)


def test_the_timepoint_column_is_read_and_parts_patterns(tmp_path: Path) -> None:
    lines = STOP_TIMES.splitlines()
    text = "\n".join(
        [lines[0] + ",timepoint", *(line + (",0" if ",s2," in line and line.startswith("t1") else ",1") for line in lines[1:])]
    )
    table = read_feed(write_feed(tmp_path / "f.zip", {"stop_times.txt": text}))
    assert table.trips["t1"].pattern.timepoint == (True, False, True, True)
    assert table.trips["t3"].pattern.timepoint == (True, True, True, True)
    assert table.trips["t1"].pattern.along_m is table.trips["t3"].pattern.along_m, "placed once"


def test_frequencies_become_trips_with_the_time_in_their_id(tmp_path: Path) -> None:
    rows = "trip_id,start_time,end_time,headway_secs,exact_times\nt1,06:00:00,06:30:00,600,0\nt1,24:50:00,25:00:00,600,1\n"
    table = read_feed(write_feed(tmp_path / "f.zip", {"frequencies.txt": rows}))
    assert sorted(table.trips) == ["t1@060000", "t1@061000", "t1@062000", "t1@245000", "t2", "t3"]
    made = table.trips["t1@061000"]
    assert made.frequency_of == "t1"
    assert made.departure_s == (22200, 22440, 22620, 23100)
    assert made.pattern is table.trips["t3"].pattern


def test_the_same_feed_has_the_same_pattern_ids_whatever_else_changed(tmp_path: Path) -> None:
    one = read_feed(write_feed(tmp_path / "1.zip"))
    other = read_feed(write_feed(tmp_path / "2.zip", replaced("stop_times.txt", "08:03:00", "08:02:30")))
    assert one.version != other.version
    assert sorted(one.patterns) == sorted(other.patterns)


def test_rows_may_stand_in_any_order_and_one_that_goes_down_is_mentioned(tmp_path: Path) -> None:
    header, *rows = STOP_TIMES.splitlines()
    parsed = parse_feed(write_feed(tmp_path / "f.zip", {"stop_times.txt": "\n".join([header, *reversed(rows)])}))
    assert parsed.timetable.trips["t1"].departure_s == (28800, 29040, 29220, 29700)
    assert [(warning.code, warning.line) for warning in parsed.warnings] == [("UNSORTED", 10), ("UNSORTED", 7), ("UNSORTED", 3)]


def test_white_space_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    spaced = STOP_TIMES.replace("t2,08:30:00,08:30:00,s2,5", " t2 , 08:30:00, 08:30:00 , s2 , 5 ").replace("\n", "\r\n")
    stops = "\ufeff" + FILES["stops.txt"].replace("\n", "\r\n").replace("Market", '"Market, ""old"""')
    table = read_feed(write_feed(tmp_path / "f.zip", {"stop_times.txt": spaced, "stops.txt": stops}))
    assert table.stops["s2"].name == 'Market, "old"'
    assert table.trips["t2"].pattern.stop_ids == ("s4", "s2", "s1")


def test_a_feed_inside_one_folder_is_taken_with_a_word(tmp_path: Path) -> None:
    parsed = parse_feed(write_feed(tmp_path / "f.zip", folder="google_transit/2026/"))
    assert len(parsed.timetable.trips) == 3
    assert [warning.code for warning in parsed.warnings] == ["INSIDE_FOLDER"]


def test_what_a_feed_adds_beside_gtfs_is_left_alone(tmp_path: Path) -> None:
    changes: Changes = {"notes/readme.bin": b"\xff\x00", "fare_rules.txt": "fare_id\n1\n", "__MACOSX/._stops.txt": b"\x00\x05"}
    assert len(read_feed(write_feed(tmp_path / "f.zip", changes)).trips) == 3


def test_progress_goes_from_nothing_to_nearly_all(tmp_path: Path) -> None:
    heard: list[float] = []
    read_feed(write_feed(tmp_path / "f.zip"), progress=lambda done, _: heard.append(done))
    assert heard == sorted(heard)
    assert heard[0] == 0.0 and 0.5 < heard[-1] <= 1.0


# what is taken with a warning


@pytest.mark.parametrize(
    ("changes", "code", "place"),
    [
        (replaced("routes.txt", "00aa11", "green"), "BAD_COLOR", "routes.txt:2"),
        ({"shapes.txt": None}, "NO_SHAPES", "shapes.txt"),
        (replaced("shapes.txt", "back,36.0,3.0,2", "back,36.0,3.04,2"), "NO_LENGTH", "shapes.txt:5"),
        (replaced("routes.txt", "1,A,1,West - East", "1,A,,"), "NO_NAME", "routes.txt:2"),
        (replaced("trips.txt", "t3,East,0,,out", "t3,East,0,,out\n1,wk,t4,East,0,,out"), "UNUSABLE_TRIP", "trips.txt:5"),
        (replaced("stops.txt", "Market,36.0,3.01", "Market,36.005,3.01"), "STOP_FAR_FROM_SHAPE", "stop_times.txt:3"),
        (replaced("stop_times.txt", "t2,08:20:00,08:20:00", "t2,08:10:00,08:10:00"), "BLOCK_OVERLAP", "trips.txt:3"),
        (replaced("calendar_dates.txt", "wk,20261225,2\n", "wk,20261225,2\n,,\n"), "BLANK_ROW", "calendar_dates.txt:4"),
    ],
)
def test_a_warning_names_its_place_and_leaves_the_feed_usable(tmp_path: Path, changes: Changes, code: str, place: str) -> None:
    parsed = parse_feed(write_feed(tmp_path / "f.zip", changes))
    assert [warning.code for warning in parsed.warnings][:1] == [code]
    assert str(parsed.warnings[0]).startswith(place)
    assert len(parsed.timetable.trips) == 3


# what is refused, and what is said


@pytest.mark.parametrize(
    ("changes", "pointer", "code"),
    [
        pytest.param({"stops.txt": None}, "stops.txt", "MISSING_FILE", id="missing file"),
        pytest.param({"calendar.txt": None, "calendar_dates.txt": None}, "calendar.txt", "MISSING_FILE", id="no calendar at all"),
        pytest.param({"stop_times.txt": b""}, "stop_times.txt", "EMPTY_FILE", id="empty file"),
        pytest.param({"routes.txt": "route_id,route_type\n"}, "routes.txt", "EMPTY_FILE", id="header only"),
        pytest.param(replaced("stops.txt", "stop_id,", "id,"), "stops.txt:1#stop_id", "MISSING_COLUMN", id="missing column"),
        pytest.param(replaced("stops.txt", "stop_name", "stop_id"), "stops.txt:1#stop_id", "DUPLICATE_COLUMN", id="column twice"),
        pytest.param(replaced("stops.txt", "s2,Market,", "s2,"), "stops.txt:3", "ROW_LENGTH", id="short row"),
        pytest.param(replaced("stops.txt", "Market", "Market,Hall"), "stops.txt:3", "ROW_LENGTH", id="long row"),
        pytest.param(replaced("stops.txt", "Market", '"Mar"ket'), "stops.txt:3", "BROKEN_ROW", id="quote inside"),
        pytest.param(replaced("stops.txt", "Market", '"Market'), "stops.txt:3", "BROKEN_ROW", id="quote never closed"),
        pytest.param(replaced("stops.txt", "Market", "M" * 70_000), "stops.txt:3", "BROKEN_ROW", id="endless value"),
        pytest.param(
            {"stops.txt": FILES["stops.txt"].replace("School", "École").encode("latin-1")}, "stops.txt:4", "NOT_UTF8", id="latin-1"
        ),
        pytest.param({"stops.txt": FILES["stops.txt"].encode("utf-16")}, "stops.txt:1", "NOT_UTF8", id="utf-16"),
        pytest.param(replaced("stops.txt", "School", "Sch\0ol"), "stops.txt:4", "NUL_BYTE", id="nul byte"),
        pytest.param(replaced("stops.txt", "s3,School", "s2,School"), "stops.txt:4#stop_id", "DUPLICATE_ID", id="stop twice"),
        pytest.param(replaced("stops.txt", "36.0,3.01", "north,3.01"), "stops.txt:3#stop_lat", "BAD_COORDINATE", id="no number"),
        pytest.param(replaced("stops.txt", "36.0,3.01", "36.0,nan"), "stops.txt:3#stop_lon", "BAD_COORDINATE", id="not a number"),
        pytest.param(replaced("stops.txt", "36.0,3.01", "96.0,3.01"), "stops.txt:3#stop_lat", "BAD_COORDINATE", id="beyond the pole"),
        pytest.param(replaced("stops.txt", "36.0,3.01", ",3.01"), "stops.txt:3#stop_lat", "MISSING_VALUE", id="no latitude"),
        pytest.param(replaced("stops.txt", "36.0,3.01", "0,0"), "stops.txt:3#stop_lat", "ZERO_ISLAND", id="zero island"),
        pytest.param(
            replaced("agency.txt", "America/New_York", "New York"), "agency.txt:2#agency_timezone", "BAD_TIMEZONE", id="time zone"
        ),
        pytest.param(
            {"agency.txt": FILES["agency.txt"] + "B,Other,https://b.example,Africa/Algiers\n"},
            "agency.txt",
            "SEVERAL_TIMEZONES",
            id="two time zones",
        ),
        pytest.param(
            {"agency.txt": FILES["agency.txt"] + "A,Other,https://b.example,America/New_York\n"},
            "agency.txt:3#agency_id",
            "DUPLICATE_ID",
            id="agency twice",
        ),
        pytest.param(replaced("routes.txt", "1,A,1", "1,Z,1"), "routes.txt:2#agency_id", "UNKNOWN_REFERENCE", id="unknown agency"),
        pytest.param(replaced("routes.txt", ",3,00aa11", ",bus,00aa11"), "routes.txt:2#route_type", "BAD_NUMBER", id="route type"),
        pytest.param(replaced("calendar.txt", "wk,1", "wk,yes"), "calendar.txt:2#monday", "BAD_NUMBER", id="weekday"),
        pytest.param(replaced("calendar.txt", "20261231", "20260231"), "calendar.txt:2#end_date", "BAD_DATE", id="no such day"),
        pytest.param(replaced("calendar.txt", "20261231", "20251231"), "calendar.txt:2#end_date", "DATES_REVERSED", id="ends first"),
        pytest.param(replaced("calendar_dates.txt", "4,1", "4,3"), "calendar_dates.txt:2#exception_type", "BAD_NUMBER", id="exception"),
        pytest.param(
            replaced("calendar_dates.txt", "wk,20261225", "wk,20260704"), "calendar_dates.txt:3#date", "DUPLICATE_ID", id="date twice"
        ),
        pytest.param(replaced("trips.txt", "1,wk,t2", "7,wk,t2"), "trips.txt:3#route_id", "UNKNOWN_REFERENCE", id="unknown route"),
        pytest.param(replaced("trips.txt", "1,wk,t2", "1,we,t2"), "trips.txt:3#service_id", "UNKNOWN_REFERENCE", id="unknown service"),
        pytest.param(replaced("trips.txt", ",back", ",bakc"), "trips.txt:3#shape_id", "UNKNOWN_REFERENCE", id="unknown shape"),
        pytest.param(
            replaced("trips.txt", "0,,out\n", "0,,out\n1,wk,t1,,0,,out\n"), "trips.txt:5#trip_id", "DUPLICATE_ID", id="trip twice"
        ),
        pytest.param(replaced("trips.txt", "West,1,", "West,2,"), "trips.txt:3#direction_id", "BAD_NUMBER", id="third direction"),
        pytest.param(
            replaced("shapes.txt", "36.0,3.02,2", "36.0,3.02,1"), "shapes.txt:3#shape_pt_sequence", "DUPLICATE_ID", id="point twice"
        ),
        pytest.param(replaced("shapes.txt", "36.0,3.02,2", "36.0,x,2"), "shapes.txt:3#shape_pt_lon", "BAD_COORDINATE", id="point"),
        pytest.param(replaced("shapes.txt", "36.0,3.02,2", "36.0,3.02,"), "shapes.txt:3#shape_pt_sequence", "MISSING_VALUE", id="no order"),
        pytest.param(
            replaced("stop_times.txt", "t2,08:20", "t9,08:20"), "stop_times.txt:6#trip_id", "UNKNOWN_REFERENCE", id="unknown trip"
        ),
        pytest.param(
            replaced("stop_times.txt", "08:30:00,s2", "08:30:00,s9"), "stop_times.txt:7#stop_id", "UNKNOWN_REFERENCE", id="unknown stop"
        ),
        pytest.param(replaced("stop_times.txt", "08:30:00,s2", "08:30:00,"), "stop_times.txt:7#stop_id", "MISSING_VALUE", id="no stop"),
        pytest.param(replaced("stop_times.txt", "s2,5", "s2,five"), "stop_times.txt:7#stop_sequence", "BAD_NUMBER", id="sequence"),
        pytest.param(replaced("stop_times.txt", "s2,5", "s2,-5"), "stop_times.txt:7#stop_sequence", "BAD_NUMBER", id="negative sequence"),
        pytest.param(
            replaced("stop_times.txt", "s2,5", "s2,99999999999"), "stop_times.txt:6#stop_sequence", "BAD_NUMBER", id="huge sequence"
        ),
        pytest.param(
            replaced("stop_times.txt", "s2,5", "s2,1"), "stop_times.txt:7#stop_sequence", "DUPLICATE_SEQUENCE", id="sequence twice"
        ),
        pytest.param(replaced("stop_times.txt", "t2,08:30:00", "t2,8.30"), "stop_times.txt:7#arrival_time", "BAD_TIME", id="bad time"),
        pytest.param(
            replaced("stop_times.txt", "t2,08:30:00", "t2,08:61:00"), "stop_times.txt:7#arrival_time", "BAD_TIME", id="61 minutes"
        ),
        pytest.param(replaced("stop_times.txt", "t2,08:30:00", "t2,-1:30:00"), "stop_times.txt:7#arrival_time", "BAD_TIME", id="negative"),
        pytest.param(
            replaced("stop_times.txt", "t2,08:30:00,08:30:00", "t2,08:10:00,08:10:00"),
            "stop_times.txt:7#arrival_time",
            "TIMES_REVERSED",
            id="back in time",
        ),
        pytest.param(
            replaced("stop_times.txt", "t1,08:03:00,08:04:00", "t1,08:03:00,08:02:00"),
            "stop_times.txt:3#departure_time",
            "TIMES_REVERSED",
            id="leaves before it comes",
        ),
        pytest.param(
            replaced("stop_times.txt", "t2,08:35:00,08:35:00", "t2,,"), "stop_times.txt:8#arrival_time", "MISSING_VALUE", id="untimed end"
        ),
        pytest.param(
            {"frequencies.txt": "trip_id,start_time,end_time,headway_secs\nt1,06:00:00,05:00:00,600\n"},
            "frequencies.txt:2#end_time",
            "TIMES_REVERSED",
            id="frequency backwards",
        ),
        pytest.param(
            {"frequencies.txt": "trip_id,start_time,end_time,headway_secs\nt1,06:00:00,07:00:00,0\n"},
            "frequencies.txt:2#headway_secs",
            "BAD_NUMBER",
            id="headway of nothing",
        ),
        pytest.param(
            {"frequencies.txt": "trip_id,start_time,end_time,headway_secs\n" + "t1,00:00:00,240:00:00,1\n"},
            "frequencies.txt:2",
            "TOO_MANY_TRIPS",
            id="a million trips",
        ),
    ],
)
def test_a_fault_is_named_with_its_place_and_refuses_the_feed(tmp_path: Path, changes: Changes, pointer: str, code: str) -> None:
    fault = rejection(write_feed(tmp_path / "f.zip", changes))
    assert (pointer, code) in said(fault)
    assert fault.facts["errors_total"] == len(fault.errors) <= 3, "and little besides"


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    changes = {
        **replaced("stops.txt", "s3,School,36.0", "s3,School,96.0"),
        **replaced("trips.txt", "t3,East,0,,out", "t3,East,0,,nowhere"),
        **replaced("stop_times.txt", "t1,08:03:00", "t1,8h03"),
    }
    assert said(rejection(write_feed(tmp_path / "f.zip", changes))) == {
        ("stops.txt:4#stop_lat", "BAD_COORDINATE"),
        ("trips.txt:4#shape_id", "UNKNOWN_REFERENCE"),
        ("stop_times.txt:3#arrival_time", "BAD_TIME"),
    }


def test_a_value_over_two_lines_does_not_shift_the_line_numbers(tmp_path: Path) -> None:
    changes = replaced("stops.txt", "Market", '"Market\nHall"')
    changes["stops.txt"] = str(changes["stops.txt"]).replace("s4,East,36.0", "s4,East,x")
    assert said(rejection(write_feed(tmp_path / "f.zip", changes))) == {("stops.txt:6#stop_lat", "BAD_COORDINATE")}


def test_the_list_of_complaints_ends_and_the_rest_is_counted(tmp_path: Path) -> None:
    rows = "".join(f"x{number},08:00:00,08:00:00,s1,1\n" for number in range(3_000))
    fault = rejection(write_feed(tmp_path / "f.zip", {"stop_times.txt": STOP_TIMES + rows}))
    assert len(fault.errors) == archive.COMPLAINTS_MAX
    assert fault.facts["errors_total"] == 3_000
    assert fault.facts["counts"] == {"ERROR:UNKNOWN_REFERENCE": 3_000}
    assert "3000 errors" in fault.detail


def test_faults_beyond_the_end_of_the_list_still_refuse_their_trips(tmp_path: Path) -> None:
    trips = "".join(f"1,wk,n{number},,0,,\n" for number in range(1_200))
    times = "".join(f"n{number},08:00:00,08:00:00,s1,1\nn{number},08:05:00,08:05:00,s9,2\n" for number in range(1_200))
    changes: Changes = {"trips.txt": FILES["trips.txt"] + trips, "stop_times.txt": STOP_TIMES + times}
    assert rejection(write_feed(tmp_path / "f.zip", changes)).facts["counts"] == {"ERROR:UNKNOWN_REFERENCE": 1_200}


def test_a_feed_id_that_could_not_stand_in_public_ids_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FeedRejected, match="feed id"):
        read_feed(write_feed(tmp_path / "f.zip"), "a:b")


# zips that are no feeds


def test_what_is_no_zip_is_named_so(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("stop_id,stop_name\n")
    (tmp_path / "nothing.zip").write_bytes(b"")
    for name in ("text.zip", "nothing.zip", "absent.zip"):
        assert said(rejection(tmp_path / name)) == {(name, "NOT_A_ZIP")}
    assert said(rejection(tmp_path)) == {(tmp_path.name, "NOT_A_ZIP")}


def test_a_zip_that_broke_off_is_refused(tmp_path: Path) -> None:
    path = write_feed(tmp_path / "f.zip")
    path.write_bytes(path.read_bytes()[:-200])
    assert said(rejection(path)) == {("f.zip", "NOT_A_ZIP")}


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    path = write_feed(tmp_path / "f.zip")
    with zipfile.ZipFile(path) as zipped:
        member = zipped.getinfo("stop_times.txt")
    data = bytearray(path.read_bytes())
    start = member.header_offset + 30 + len(member.filename)
    data[start + 20 : start + 30] = bytes(10)
    path.write_bytes(bytes(data))
    assert ("stop_times.txt", "UNREADABLE_FILE") in said(rejection(path))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = write_feed(tmp_path / "f.zip", {"stop_times.txt": b"0" * (archive.RATIO_FROM_BYTES + 1)})
    fault = rejection(path)
    assert said(fault) == {("f.zip", "ZIP_BOMB")}


@pytest.mark.parametrize(
    ("limit", "value"), [("MEMBERS_MAX", 5), ("MEMBER_MAX_BYTES", 100), ("TOTAL_MAX_BYTES", 500), ("ZIP_MAX_BYTES", 1_000)]
)
def test_every_limit_of_the_zip_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    monkeypatch.setattr(archive, limit, value)
    code = "TOO_LARGE" if limit == "ZIP_MAX_BYTES" else "ZIP_BOMB"
    assert {found for _, found in said(rejection(write_feed(tmp_path / "f.zip")))} == {code}


def test_a_trip_of_too_many_stops_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_times, "STOPS_MAX", 3)
    assert ("stop_times.txt:2#stop_sequence", "BAD_NUMBER") in said(rejection(write_feed(tmp_path / "f.zip")))


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:evil.txt"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    assert said(rejection(write_feed(tmp_path / "f.zip", {name: "x"}))) == {("f.zip", "UNSAFE_NAME")}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_twice_in_the_zip_is_refused(tmp_path: Path) -> None:
    path = write_feed(tmp_path / "f.zip")
    with zipfile.ZipFile(path, "a") as zipped:
        zipped.writestr("stops.txt", "stop_id\n")
    assert said(rejection(path)) == {("f.zip", "DUPLICATE_MEMBER")}


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = write_feed(tmp_path / "f.zip")
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 8 : entry + 10] = struct.pack("<H", 1)
    path.write_bytes(bytes(data))
    assert said(rejection(path)) == {("f.zip", "ENCRYPTED")}


def test_every_complaint_stands_in_the_manual() -> None:
    sources = "".join(Path(module.__file__ or "").read_text(encoding="utf-8") for module in (archive, stop_times, gtfs))
    codes = set(re.findall(r'"([A-Z0-9]+(?:_[A-Z0-9]+)+|OVERLAP|UNSORTED|ENCRYPTED)"', sources))
    manual = (Path(__file__).resolve().parent.parent / "docs" / "feeds.md").read_text(encoding="utf-8")
    assert len(codes) > 35
    assert codes == set(re.findall(r"^\| `([A-Z0-9_]+)`", manual, re.M))


# whatever comes


JUNK = st.one_of(
    st.text(alphabet=st.sampled_from(list('s1,t2:"\n\r 08-.é\0')), max_size=60), st.binary(max_size=60), st.sampled_from(["", "\n", ","])
)


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from(READ[:8]), junk=JUNK, at=st.floats(0, 1), append=st.booleans())
def test_junk_anywhere_is_taken_or_refused_by_name_and_nothing_else(
    tmp_path: Path, file: str, junk: str | bytes, at: float, append: bool
) -> None:
    whole = FILES[file].encode()
    cut = int(at * len(whole))
    piece = junk if isinstance(junk, bytes) else junk.encode()
    path = write_feed(tmp_path / "f.zip", {file: whole[:cut] + piece + whole[cut if append else cut + len(piece) :]})
    table, refused = None, None
    try:
        table = read_feed(path)
    except FeedRejected as fault:
        refused = fault
    if table is None:
        assert refused is not None and refused.errors
        assert all(error["pointer"] and error["code"].isupper() for error in refused.errors)
        return
    for pattern in table.patterns.values():
        assert (np.diff(pattern.along_m) > 0).all()
    for trip in table.trips.values():
        flat = [seconds for pair in zip(trip.arrival_s, trip.departure_s, strict=True) for seconds in pair]
        assert flat == sorted(flat)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12))
def test_a_zip_with_any_bytes_changed_is_taken_or_refused_by_name(tmp_path: Path, changes: list[tuple[float, int]]) -> None:
    path = write_feed(tmp_path / "f.zip")
    data = bytearray(path.read_bytes())
    for at, byte in changes:
        data[int(at * len(data))] = byte
    path.write_bytes(bytes(data))
    try:
        found = len(read_feed(path).trips)
    except FeedRejected as fault:
        found = -len(fault.errors)
    assert found != 0


def test_a_member_whose_own_name_is_not_text_is_refused(tmp_path: Path) -> None:
    """Found by flipping bytes: zipfile decodes the member's own name when it is opened, and raises UnicodeDecodeError."""
    path = write_feed(tmp_path / "f.zip")
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x03\x04")
    data[start + 6 : start + 8] = struct.pack("<H", 0x800)  # names in UTF-8
    data[start + 30] = 0xCD
    path.write_bytes(bytes(data))
    assert ("agency.txt", "UNREADABLE_FILE") in said(rejection(path))


# recorded feeds


@cache
def recorded(path: Path) -> Timetable:
    return read_feed(path)


@pytest.mark.data
@pytest.mark.parametrize(
    ("feed", "trips", "times"),
    [
        ("chattanooga/gtfs_20260510.zip", 1_848, 82_644),
        ("santa_monica/gtfs_20200216.zip", 3_563, 129_412),
        ("washington_20260216/gtfs.zip", 4_167, 232_187),
        ("brooklyn_b63_2010/gtfs.zip", 735, 41_327),
    ],
)
def test_a_recorded_feed_is_read_whole_with_every_position_increasing(data_dir: Path, feed: str, trips: int, times: int) -> None:
    table = recorded(data_dir / feed)
    assert (len(table.trips), sum(len(trip.arrival_s) for trip in table.trips.values())) == (trips, times)
    for pattern in table.patterns.values():
        assert (np.diff(pattern.along_m) > 0).all(), pattern.pattern_id
        assert pattern.along_m[0] >= 0 and pattern.along_m[-1] <= pattern.shape.length_m


@pytest.mark.data
def test_positions_agree_with_an_agencys_own_distances(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chattanooga gives shape_dist_traveled for each stop; placed without looking at it, no stop is 5 m off."""
    hints: dict[int, np.ndarray] = {}

    def placed_blind(shape, lons, lats, *, hint_m=None, leg_s=None):
        placing = place(shape, lons, lats, leg_s=leg_s)
        hints[id(placing.along_m)] = hint_m
        return placing

    place = stop_times.place_stops
    monkeypatch.setattr(stop_times, "place_stops", placed_blind)
    table = read_feed(data_dir / "chattanooga" / "gtfs_20260510.zip")
    off = np.concatenate([np.abs(pattern.along_m - hints[id(pattern.along_m)]) for pattern in table.patterns.values()])
    assert len(off) > 3_000
    assert off.max() < 5


@pytest.mark.data
def test_a_stop_visited_twice_has_two_positions(data_dir: Path) -> None:
    table = recorded(data_dir / "santa_monica" / "gtfs_20200216.zip")
    twice = {trip.trip_id for trip in table.trips.values() if len(set(trip.pattern.stop_ids)) < len(trip.pattern.stop_ids)}
    assert len(twice) == 213
    for trip_id in twice:
        pattern = table.trips[trip_id].pattern
        again = [index for index, stop_id in enumerate(pattern.stop_ids) if stop_id in pattern.stop_ids[:index]]
        for index in again:
            before = pattern.stop_ids.index(pattern.stop_ids[index])
            assert pattern.along_m[index] - pattern.along_m[before] > 100
