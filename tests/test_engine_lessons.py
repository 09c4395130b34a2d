"""Lessons from recorded stop events, and the bench that judges constants on days they were not chosen on."""

from __future__ import annotations

from datetime import date
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from bench.crossval import difference, judged, left_out
from bench.recording import CROSSED, FORECAST, OBSERVE, Day, Noting
from engine.tracking.eta import ArrivalModel
from engine.tracking.lessons import SATURDAY, SUNDAY, WEEKDAY, StopRow, day_type, learn_from
from engine.tracking.score import TIMEPOINT, RideName, Samples
from engine.tracking.timetable import Pattern, Service, Timetable, Trip, service_day_start_ms
from geo.shape import Shape

STOPS, LINK_S, APART_M, TZ = 10, 60, 400.0, ZoneInfo("America/New_York")
EVERY_DAY = (True,) * 7


def timetable_of(weekdays: tuple[bool, ...] = EVERY_DAY) -> Timetable:
    line = Shape("line", np.linspace(0.0, 0.04, 50), np.zeros(50))
    pattern = Pattern(
        "P", "R", 0, line, tuple(f"S{i}" for i in range(STOPS)), tuple(range(1, STOPS + 1)), np.arange(STOPS) * APART_M, (False,) * STOPS
    )
    trips = {}
    for n in range(8):
        times = tuple(36_001 + 900 * n + i * LINK_S for i in range(STOPS))
        trips[f"T{n}"] = Trip(f"T{n}", "R", "X", pattern, times, times)
    return Timetable(
        feed_id="f", version="1", tz=TZ, agencies={}, stops={}, routes={}, patterns={"P": pattern}, trips=trips,
        services={"X": Service("X", weekdays, date(2026, 1, 1), date(2026, 12, 31))},
    )  # fmt: skip


def rows_of(timetable: Timetable, day: date, pace: float, kind: str = "SERVED") -> list[StopRow]:
    base_ms, text = service_day_start_ms(TZ, day), day.strftime("%Y%m%d")
    return [
        StopRow(f"b{trip.trip_id}", trip.trip_id, text, i + 1, base_ms + int((trip.arrival_s[0] + pace * LINK_S * i) * 1000), kind)
        for trip in timetable.trips.values()
        for i in range(STOPS)
    ]


def ratios(parts: dict[str, bytes]) -> np.ndarray:
    model = ArrivalModel()
    model.inherit(parts)
    return model.pace._ratio[: model.pace._links]


def test_stop_events_teach_how_long_links_take_whatever_their_order():
    timetable = timetable_of()
    rows = rows_of(timetable, date(2026, 3, 2), 1.5)
    parts = learn_from(rows, timetable)
    assert ratios(parts)[2:-1].mean() > 1.25
    assert learn_from(rows[::-1], timetable) == parts
    assert not [key for key in parts if key.startswith("run:")]


def test_missed_and_filled_in_stops_and_unknown_trips_teach_nothing():
    timetable = timetable_of()
    unknown = [row._replace(trip_id="nobody") for row in rows_of(timetable, date(2026, 3, 2), 1.5)]
    for rows in (rows_of(timetable, date(2026, 3, 2), 1.5, "INTERPOLATED"), rows_of(timetable, date(2026, 3, 2), 1.5, "MISSED"), unknown):
        assert not ratios(learn_from(rows, timetable)).size


def test_only_days_of_the_type_that_is_asked_for_teach():
    timetable = timetable_of()
    rows = rows_of(timetable, date(2026, 3, 7), 1.5) + rows_of(timetable, date(2026, 3, 9), 0.8)
    saturday, weekday = (ratios(learn_from(rows, timetable, only=kind)) for kind in (SATURDAY, WEEKDAY))
    assert saturday[2:-1].mean() > 1.25
    assert weekday[2:-1].mean() < 0.95
    assert not ratios(learn_from(rows, timetable, only=SUNDAY)).size


@pytest.mark.parametrize(
    ("weekdays", "day", "kind"),
    [
        (EVERY_DAY, date(2026, 3, 9), WEEKDAY),
        (EVERY_DAY, date(2026, 3, 7), SATURDAY),
        ((False,) * 7, date(2026, 3, 8), SUNDAY),
        ((False,) * 6 + (True,), date(2026, 2, 16), SUNDAY),  # Presidents' Day drives the Sunday service
        ((True,) * 5 + (False, False), date(2026, 2, 16), WEEKDAY),
    ],
    ids=["monday", "saturday", "dates only", "holiday", "working holiday"],
)
def test_the_type_of_a_day_is_that_of_the_service_that_runs(weekdays, day, kind):
    timetable = timetable_of(weekdays)
    assert day_type(timetable, timetable.trips["T0"], day) == kind


def samples_of(errors: list[list[float]]) -> Samples:
    actual = np.full(sum(map(len, errors)), 300.0)
    ride = np.repeat(np.arange(len(errors)), [len(each) for each in errors])
    names = [RideName(f"b{n}", "T", "20260101", "R") for n in range(len(errors))]
    return Samples(actual, actual, {TIMEPOINT: actual - np.concatenate(errors)}, actual, actual, ride, ride, names)


def test_a_difference_that_trips_disagree_on_may_be_none():
    chance = np.random.default_rng(1)
    before = [list(chance.normal(0, 60, 20)) for _ in range(60)]
    better = [[0.8 * error for error in ride] for ride in before]
    mixed = [[error * (0.8 if n % 2 else 1.2) for error in ride] for n, ride in enumerate(before)]
    today = judged(samples_of(before))
    mean, low, high = difference(judged(samples_of(better)), today)
    assert low < mean < high < 0
    _, low, high = difference(judged(samples_of(mixed)), today)
    assert low < 0 < high


def test_what_is_chosen_on_two_days_is_judged_on_the_third(capsys):
    def day(today: float, tried: float) -> dict[str, object]:
        return {"as it is": judged(samples_of([[today]] * 5)), "7": judged(samples_of([[tried]] * 5))}

    left_out("x", ["7"], {"A": day(60, 50), "B": day(60, 50), "C": day(60, 90)})  # type: ignore[dict-item]
    said = capsys.readouterr().out.splitlines()
    assert "without C the best is 7; on it 90.00 s  +30.00 s" in said[2]
    assert "without A the best is as it is; on it 60.00 s" in said[0]


def test_a_recording_run_over_the_same_model_gives_its_answers_again():
    timetable = timetable_of()
    day = date(2026, 3, 2)
    base_ms = service_day_start_ms(TZ, day)
    noting, told = Noting(), []
    instance = timetable.instance("T0", "20260302")
    assert instance is not None
    from engine.tracking.eta import Progress

    start_ms = -(-instance.departure_ms(0) // 30_000) * 30_000
    for step in range(12):
        now_ms = start_ms + 30_000 * step
        progress = Progress("b", instance, now_ms, 150.0 * step, 0.0, int(150 * step // APART_M) + 1, None, step > 0)
        noting.observe(progress)
        told.append(noting.forecast(progress, now_ms))
    assert {call[0] for call in noting.calls} == {OBSERVE, FORECAST}
    noting.calls.append((CROSSED, "b", "T0", "20260302", 4, start_ms + 320_000, True))
    crossed = np.zeros(STOPS, dtype=np.int64)
    crossed[6] = start_ms + 480_000
    again = Day("d", timetable, noting.calls, {("b", "T0", "20260302"): (crossed, start_ms)}, 1).run(ArrivalModel())
    expected = [(one.stops[-4].p50_ms - one.made_at_ms) / 1000 for one in told if one is not None]
    assert base_ms < start_ms
    assert np.abs(again.predicted_s[TIMEPOINT][:12] - expected).max() < 0.002
