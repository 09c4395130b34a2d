"""A trip from its name to its last stop: the roadbook, the start, the stops."""

from __future__ import annotations

import msgspec
import pytest

from engine.tracking.ride import Roadbook, event_id, is_same_plan
from engine.tracking.timetable import Timetable
from tests.small_world import DAY, STRAIGHT, feed, instance_of, line

BOOK = Roadbook(feed())
START = instance_of(BOOK.timetable).departure_ms(0)
HOUR, DAY_MS = 3_600_000, 86_400_000


def night_feed() -> Timetable:
    """One trip from 23:50 to 24:02:30."""
    timetable = feed(trips=1)
    trip = timetable.trips["T0"]
    shift = 86_400 - 600 - 28_800
    moved = tuple(second + shift for second in trip.arrival_s)
    timetable.trips["T0"] = msgspec.structs.replace(trip, arrival_s=moved, departure_s=moved)
    return timetable


def found(book: Roadbook, trip_id: str, start_date: str | None, at_ms: int) -> str | None:
    instance = book.named(trip_id, start_date, at_ms)
    return None if instance is None else f"{instance.trip.trip_id} {instance.start_date}"


def test_a_trip_is_taken_as_said() -> None:
    assert found(BOOK, "T1", DAY, START + 2 * HOUR) == f"T1 {DAY}"
    assert found(BOOK, "T1", "20260301", START) == "T1 20260301"
    assert found(BOOK, "T9", DAY, START) is None
    assert found(BOOK, "T1", "yesterday", START) is None


def test_without_a_date_it_is_the_nearest_day() -> None:
    assert found(BOOK, "T0", None, START + HOUR) == f"T0 {DAY}"
    assert found(BOOK, "T0", None, START - DAY_MS + HOUR) == "T0 20260301"
    assert found(BOOK, "T0", None, START + 2 * DAY_MS - HOUR) == "T0 20260304"


def test_a_trip_after_midnight_belongs_to_the_day_before() -> None:
    book = Roadbook(night_feed())
    after_midnight = instance_of(book.timetable).departure_ms(0) + 660_000
    assert found(book, "T0", None, after_midnight) == f"T0 {DAY}"
    assert found(book, "T0", "20260303", after_midnight) == f"T0 {DAY}"  # the device's date is the calendar's


def test_a_date_is_only_put_right_when_the_day_before_fits() -> None:
    assert found(BOOK, "T0", "20260303", START + HOUR) == f"T0 {DAY}"
    assert found(BOOK, "T0", "20260303", START + 6 * HOUR) == "T0 20260303"


def test_a_trip_made_from_frequencies_is_found_by_the_name_of_its_pattern() -> None:
    timetable = feed(trips=3)
    for trip_id in list(timetable.trips):
        timetable.trips[trip_id] = msgspec.structs.replace(timetable.trips[trip_id], frequency_of="LOOP")
    assert found(Roadbook(timetable), "LOOP", None, START + 62 * 60_000) == f"T1 {DAY}"
    assert found(Roadbook(timetable), "LOOP", DAY, START + 125 * 60_000) == f"T2 {DAY}"


def test_the_timetable_between_two_stops_is_a_straight_line() -> None:
    instance = instance_of(BOOK.timetable)
    course = BOOK.course(instance)
    assert course.scheduled_ms(instance, 0.0) == instance.departure_ms(0)
    assert course.scheduled_ms(instance, 750.0) == pytest.approx(START + 94_000, abs=1_000)
    assert course.scheduled_ms(instance, 99_999.0) == instance.arrival_ms(12)


def test_the_same_facts_have_the_same_name() -> None:
    assert event_id("stop", "b1", 7) == event_id("stop", "b1", 7) != event_id("stop", "b17", "")
    assert len(event_id("x")) == 24


def test_plans_are_the_same_only_to_the_second_and_the_metre() -> None:
    mine = instance_of(feed())
    assert is_same_plan(mine, instance_of(feed(version="2")))
    assert not is_same_plan(mine, instance_of(feed(stops=7)))
    assert not is_same_plan(mine, instance_of(feed(line([(0, 0), (6_000, 300)]))))
    assert STRAIGHT.length_m == pytest.approx(6_000, abs=10)
