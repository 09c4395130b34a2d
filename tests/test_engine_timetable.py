"""Service days, trip instances and blocks: midnight, both changes of the clock, times past 24:00."""

from __future__ import annotations

import pickle
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tracking.timetable import DAYS_KEPT, Pattern, Service, Timetable, Trip, parse_date, service_day_start_ms
from geo.shape import Shape

NEW_YORK, ALGIERS = ZoneInfo("America/New_York"), ZoneInfo("Africa/Algiers")
H = 3600
SHAPE = Shape("s", np.array([3.0, 3.1]), np.array([36.0, 36.0]))
PATTERN = Pattern("p", "r", 0, SHAPE, ("a", "b"), (1, 2), np.array([0.0, 9_000.0]), (True, True))
DAILY = Service("daily", (True,) * 7, date(2026, 1, 1), date(2026, 12, 31))
WEEKDAYS = Service("wk", (True,) * 5 + (False,) * 2, date(2026, 1, 1), date(2026, 12, 31), removed=frozenset({date(2026, 12, 25)}))


def trip(trip_id: str, start_s: int, end_s: int, *, service: str = "daily", block: str | None = None) -> Trip:
    return Trip(trip_id, "r", service, PATTERN, (start_s, end_s), (start_s, end_s), block_id=block)


def timetable(*trips: Trip, tz: ZoneInfo = NEW_YORK) -> Timetable:
    services = {service.service_id: service for service in (DAILY, WEEKDAYS)}
    by_id = {one.trip_id: one for one in trips}
    return Timetable(
        feed_id="f", version="1", tz=tz, agencies={}, stops={}, routes={}, services=services, patterns={"p": PATTERN}, trips=by_id
    )  # fmt: skip


def utc_ms(year: int, month: int, day: int, hour: int, minute: int = 0) -> int:
    return int(datetime(year, month, day, hour, minute, tzinfo=UTC).timestamp()) * 1000


def ids(table: Timetable, now_ms: int, before_s: int = 0, after_s: int = 0) -> list[tuple[str, str]]:
    return [(found.trip.trip_id, found.start_date) for found in table.instances_around(now_ms, before_s, after_s)]


def test_25_35_on_the_eve_of_the_spring_change_is_the_known_second() -> None:
    table = timetable(trip("night", 25 * H + 35 * 60, 26 * H))
    instance = table.instance("night", "20260307")
    assert instance is not None
    assert instance.departure_ms(0) == 1_772_951_700_000


@pytest.mark.parametrize(
    ("day", "hours_before_noon_utc"),
    [
        pytest.param(date(2026, 3, 7), 17, id="the day before the spring change"),
        pytest.param(date(2026, 3, 8), 16, id="the day of 23 hours: it starts an hour before midnight"),
        pytest.param(date(2026, 11, 1), 17, id="the day of 25 hours: it starts an hour after midnight"),
        pytest.param(date(2026, 10, 31), 16, id="the day before the autumn change"),
    ],
)
def test_a_service_day_starts_twelve_hours_before_its_noon(day: date, hours_before_noon_utc: int) -> None:
    assert service_day_start_ms(NEW_YORK, day) == utc_ms(day.year, day.month, day.day, hours_before_noon_utc) - 12 * H * 1000


def test_eight_o_clock_is_eight_on_the_wall_on_both_days_of_the_change() -> None:
    table = timetable(trip("early", 8 * H, 9 * H))
    for start_date in ("20260308", "20261101", "20260615"):
        instance = table.instance("early", start_date)
        assert instance is not None
        assert datetime.fromtimestamp(instance.departure_ms(0) / 1000, NEW_YORK).hour == 8


@given(st.dates(date(2000, 1, 1), date(2099, 12, 31)), st.integers(3 * H, 30 * H))
def test_a_time_past_three_is_the_wall_clock_of_that_day_or_the_next(day: date, seconds: int) -> None:
    """Where no clock changes (Algiers) every time is; the service day starts at midnight there."""
    at = datetime.fromtimestamp(service_day_start_ms(ALGIERS, day) / 1000 + seconds, ALGIERS)
    assert at.hour * H + at.minute * 60 + at.second == seconds % (24 * H)


def test_at_one_in_the_morning_yesterdays_trips_are_still_under_way() -> None:
    table = timetable(trip("late", 24 * H + 30 * 60, 28 * H + 10 * 60), trip("early", 4 * H, 5 * H))
    one_o_clock = utc_ms(2026, 6, 16, 5)  # 01:00 in New York
    assert ids(table, one_o_clock) == [("late", "20260615")]


def test_a_trip_of_tomorrow_is_found_before_midnight() -> None:
    table = timetable(trip("first", 60, 2 * H))
    ten_to_midnight = utc_ms(2026, 6, 16, 3, 50)
    assert ids(table, ten_to_midnight, before_s=900) == [("first", "20260616")]
    assert ids(table, ten_to_midnight, before_s=300) == []


def test_a_trip_of_two_and_a_half_days_is_found_on_its_third() -> None:
    table = timetable(trip("coach", 8 * H, 60 * H))
    assert ids(table, utc_ms(2026, 6, 16, 15)) == [("coach", "20260614"), ("coach", "20260615"), ("coach", "20260616")]


def test_the_span_is_widened_by_what_was_asked_for() -> None:
    table = timetable(trip("one", 8 * H, 9 * H))
    start = utc_ms(2026, 6, 16, 12)
    assert ids(table, start - 600_000, before_s=600) == [("one", "20260616")]
    assert ids(table, start - 600_001, before_s=600) == []
    assert ids(table, start + (3600 + 1200) * 1000, after_s=1200) == [("one", "20260616")]
    assert ids(table, start + (3600 + 1200) * 1000 + 1, after_s=1200) == []


def test_a_day_lists_what_runs_by_departure() -> None:
    table = timetable(trip("c", 9 * H, 10 * H), trip("b", 8 * H, 10 * H, service="wk"), trip("a", 8 * H, 9 * H))
    assert [found.trip.trip_id for found in table.instances_on(date(2026, 6, 16))] == ["a", "b", "c"]
    assert [found.trip.trip_id for found in table.instances_on(date(2026, 6, 20))] == ["a", "c"], "a Saturday"
    assert [found.trip.trip_id for found in table.instances_on(date(2026, 12, 25))] == ["a", "c"], "removed by date"
    assert table.instances_on(date(2027, 1, 1)) == []


def test_a_list_that_a_caller_changes_is_its_own() -> None:
    table = timetable(trip("a", 8 * H, 9 * H))
    table.instances_on(date(2026, 6, 16)).clear()
    assert len(table.instances_on(date(2026, 6, 16))) == 1


def test_an_instance_is_made_whether_the_service_runs_or_not() -> None:
    table = timetable(trip("b", 8 * H, 9 * H, service="wk"))
    assert table.instance("b", "20260620") is not None


@pytest.mark.parametrize("start_date", ["", "2026061", "20260231", "2026-6-1", "abcdefgh", "٢٠٢٦٠٦١٦"])
def test_a_date_that_is_none_gives_no_instance(start_date: str) -> None:
    table = timetable(trip("a", 8 * H, 9 * H))
    assert parse_date(start_date) is None
    assert table.instance("a", start_date) is None
    assert table.instance("unknown", "20260616") is None


def test_a_block_goes_on_with_the_next_trip_that_runs_that_day() -> None:
    table = timetable(
        trip("1", 8 * H, 9 * H, block="b"),
        trip("2", 9 * H, 10 * H, service="wk", block="b"),
        trip("3", 10 * H, 11 * H, block="b"),
        trip("other", 9 * H, 10 * H, block="x"),
        trip("loose", 9 * H, 10 * H),
    )

    def after(trip_id: str, start_date: str) -> str | None:
        instance = table.instance(trip_id, start_date)
        assert instance is not None
        following = table.next_in_block(instance)
        return following and following.trip.trip_id

    assert [after(trip_id, "20260616") for trip_id in ("1", "2", "3", "other", "loose")] == ["2", "3", None, None, None]
    assert after("1", "20260620") == "3", "the weekday trip does not run on a Saturday"


def test_the_days_held_ready_stay_few() -> None:
    table = timetable(trip("a", 8 * H, 9 * H))
    for day in range(1, 29):
        table.instances_on(date(2026, 6, day))
    assert len(table._days) == DAYS_KEPT + 1


def test_a_timetable_comes_whole_out_of_a_child_process() -> None:
    table = timetable(trip("a", 8 * H, 9 * H), trip("b", 9 * H, 10 * H))
    again = pickle.loads(pickle.dumps(table))
    assert again.tz.key == "America/New_York"
    assert again.trips["a"].pattern is again.trips["b"].pattern
    assert [found.trip.trip_id for found in again.instances_on(date(2026, 6, 16))] == ["a", "b"]


@pytest.mark.data
def test_at_one_in_the_morning_a_real_feed_has_only_trips_of_the_day_before(data_dir) -> None:
    from ingest.gtfs import read_feed

    table = read_feed(data_dir / "chattanooga" / "gtfs_20260510.zip")
    now_ms = utc_ms(2026, 6, 2, 4, 20)  # 00:20 in Chattanooga; the last trips end at 24:45
    found = ids(table, now_ms)
    assert found
    assert {start_date for _, start_date in found} == {"20260601"}
