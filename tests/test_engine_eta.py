"""Arrivals: the promises of `ArrivalModel` under any progress, and what it learns from."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.tracking.eta import ArrivalConfig, ArrivalModel, Progress
from engine.tracking.pace import Pace
from engine.tracking.spread import MOVING, TAUS, WAITING, Spread
from engine.tracking.timetable import Pattern, Trip, TripInstance
from geo.shape import Shape

BASE_MS = 1_700_000_000_000
STOPS, APART_M, LINK_S = 12, 400.0, 60
DEPARTS_MS = BASE_MS + 36_000_000


def pattern_of(stops: int = STOPS, timepoints: tuple[int, ...] = ()) -> Pattern:
    line = Shape("line", np.linspace(0.0, 0.04, 50), np.zeros(50))
    return Pattern(
        "P",
        "R",
        0,
        line,
        tuple(f"S{i}" for i in range(stops)),
        tuple(range(1, stops + 1)),
        np.arange(stops) * APART_M,
        tuple(i in timepoints for i in range(stops)),
    )


def instance_of(pattern: Pattern, trip_id: str = "T", start_s: int = 36_000) -> TripInstance:
    # 1 s past the minute, so that no stop looks like a timepoint by its time
    times = tuple(start_s + 1 + i * LINK_S for i in range(len(pattern.stop_ids)))
    return TripInstance(Trip(trip_id, "R", "X", pattern, times, times), "20260101", BASE_MS)


def at(instance: TripInstance, at_ms: int, along_m: float, bus_id: str = "b", offset_m: float = 3.0, departed: bool = True) -> Progress:
    stop = int(np.searchsorted(instance.trip.pattern.along_m, along_m, "right"))
    return Progress(bus_id, instance, at_ms, along_m, offset_m, stop, None, departed)


def drive(model: ArrivalModel, instance: TripInstance, pace: float, bus_id: str = "b", every_s: int = 20) -> None:
    """A whole trip at `pace` times the scheduled time."""
    pattern = instance.trip.pattern
    speed = APART_M / (LINK_S * pace)
    start_ms = instance.departure_ms(0)
    for step in range(int(pattern.along_m[-1] / speed / every_s)):
        along = speed * every_s * step
        model.observe(at(instance, start_ms + every_s * 1000 * step, along, bus_id))
    for stop in range(1, len(pattern.stop_ids)):
        model.crossed(bus_id, instance, stop, start_ms + int(1000 * pattern.along_m[stop] / speed), measured=True)


steps = st.lists(
    st.tuples(st.integers(1, 400), st.floats(-80, 900), st.floats(0, 90), st.booleans(), st.integers(0, 500)), min_size=1, max_size=25
)


@settings(max_examples=80, deadline=None)
@given(steps=steps, start=st.integers(-1_500, 1_500))
def test_whatever_the_bus_does_times_increase_and_none_lies_in_the_past(steps, start):
    instance = instance_of(pattern_of(timepoints=(3, 7)))
    model, now_ms, along = ArrivalModel(), DEPARTS_MS + start * 1000, 0.0
    for wait_s, advance_m, offset_m, departed, later_s in steps:
        now_ms += wait_s * 1000
        along = min(max(0.0, along + advance_m), STOPS * APART_M)
        progress = at(instance, now_ms, along, offset_m=offset_m, departed=departed)
        model.observe(progress)
        asked_ms = now_ms + later_s * 1000
        forecast = model.forecast(progress, asked_ms)
        if later_s > 360:
            assert forecast is None
        if forecast is None:
            continue
        for column in ("p10_ms", "p50_ms", "p90_ms"):
            times = [getattr(stop, column) for stop in forecast.stops]
            assert times[0] >= asked_ms + 1000
            assert all(later - sooner >= 999 for sooner, later in pairwise(times))
        assert all(stop.p10_ms <= stop.p50_ms <= stop.p90_ms for stop in forecast.stops)
        assert all(stop.departs_ms >= stop.p50_ms for stop in forecast.stops)
        assert [stop.stop_sequence for stop in forecast.stops] == list(range(max(1, progress.stop_index) + 1, STOPS + 1))


def test_delay_is_the_median_against_the_timetable_and_positive_when_late():
    instance = instance_of(pattern_of())
    late = at(instance, instance.arrival_ms(4) + 300_000, 4 * APART_M)
    stop = ArrivalModel().forecast(late, late.fixed_at_ms).stops[0]
    assert stop.delay_s == (stop.p50_ms - instance.arrival_ms(5)) // 1000
    assert 250 < stop.delay_s < 350


@pytest.mark.parametrize("pace", [0.7, 1.5])
def test_a_day_of_slow_or_fast_buses_moves_the_next_ones_forecast_that_way(pace):
    pattern = pattern_of()
    model = ArrivalModel()
    for trip in range(6):
        drive(model, instance_of(pattern, f"T{trip}", 36_000 + 900 * trip), pace, f"b{trip}")
    following = instance_of(pattern, "next", 36_000 + 900 * 6)
    progress = at(following, following.departure_ms(1), APART_M + 1, "next")
    told = model.forecast(progress, progress.fixed_at_ms).stops
    ride_s = (told[-1].p50_ms - told[0].p50_ms) / 1000
    planned_s = (STOPS - 3) * LINK_S
    assert abs(ride_s / planned_s - pace) < 0.35 * abs(1 - pace)


def test_one_outlier_moves_a_link_less_than_three_sigma_allow():
    pattern = pattern_of()
    calm, shaken = ArrivalModel(), ArrivalModel()
    for model in (calm, shaken):
        for trip in range(5):
            drive(model, instance_of(pattern, f"T{trip}", 36_000 + 900 * trip), 1.0, f"b{trip}")
    drive(shaken, instance_of(pattern, "odd", 36_000 + 4_500), 2.9, "odd")
    progress = at(instance_of(pattern, "next", 41_400), BASE_MS + 41_400_000, 1.0, "next")
    ends = [model.forecast(progress, progress.fixed_at_ms).stops[-1].p50_ms for model in (calm, shaken)]
    assert 0 < ends[1] - ends[0] < 400_000


def test_fixes_off_the_shape_and_older_ones_teach_nothing():
    instance = instance_of(pattern_of())
    model = ArrivalModel()
    model.observe(at(instance, DEPARTS_MS + 60_000, 500.0))
    model.dump()
    model.observe(at(instance, DEPARTS_MS + 90_000, 2_000.0, offset_m=61.0))
    model.observe(at(instance, DEPARTS_MS + 30_000, 2_000.0))
    assert model.dump() == {}


def test_an_early_bus_that_stands_is_waiting_for_its_time_once_others_were_seen_to():
    pattern = pattern_of()

    def told(model: ArrivalModel) -> int:
        early = instance_of(pattern, "early", 50_000)
        due_ms = early.arrival_ms(2)
        for second in range(0, 400, 20):
            model.observe(at(early, due_ms - 900_000 + second * 1000, 2 * APART_M + 20, "early"))
        now_ms = due_ms - 500_000
        return model.forecast(at(early, now_ms, 2 * APART_M + 20, "early"), now_ms).stops[0].p50_ms - now_ms

    taught = ArrivalModel()
    for trip in range(5):
        instance = instance_of(pattern, f"T{trip}", 36_000 + 1_200 * trip)
        due_ms = instance.arrival_ms(2)
        for second in range(-880, 121, 20):  # stands at the third stop until its time, then drives on
            along = 2 * APART_M + 20 + max(0, second) * 7
            taught.observe(at(instance, due_ms + second * 1000, along, f"b{trip}"))
    assert told(taught) > told(ArrivalModel()) + 60_000
    assert told(taught) > 350_000


def test_waiting_at_a_timepoint_is_learned_where_it_is_seen():
    pattern = pattern_of(timepoints=(5,))
    waits, passes = ArrivalModel(), ArrivalModel()
    for trip in range(8):
        instance = instance_of(pattern, f"T{trip}", 36_000 + 1_200 * trip)
        start_ms = instance.departure_ms(0) - 200_000  # 200 s early all the way
        for model, wait_s in ((waits, 200), (passes, 0)):
            for second in range(0, 11 * LINK_S + wait_s, 20):
                driven = min(second, 5 * LINK_S) + max(0, second - 5 * LINK_S - wait_s)
                model.observe(at(instance, start_ms + second * 1000, APART_M / LINK_S * driven, f"b{trip}"))
    early = instance_of(pattern, "next", 50_000)
    progress = at(early, early.arrival_ms(3) - 200_000, 3 * APART_M, "next")
    with_wait, without = (model.forecast(progress, progress.fixed_at_ms).stops for model in (waits, passes))
    # index of the stop after the timepoint in what remains: 6 - 4
    assert with_wait[2].p50_ms - without[2].p50_ms > 80_000
    assert abs(with_wait[1].p50_ms - without[1].p50_ms) < 40_000


def test_a_bus_before_its_departure_leaves_on_time_or_soon():
    instance = instance_of(pattern_of())
    for now_ms, least_ms in ((DEPARTS_MS - 600_000, DEPARTS_MS), (DEPARTS_MS + 300_000, DEPARTS_MS + 320_000)):
        told = ArrivalModel().forecast(at(instance, now_ms, 0.0, departed=False), now_ms)
        assert abs(told.stops[0].p50_ms - least_ms - LINK_S * 1000) < 5_000


def test_the_end_of_the_trip_has_no_forecast():
    instance = instance_of(pattern_of())
    assert ArrivalModel().forecast(at(instance, DEPARTS_MS, STOPS * APART_M), DEPARTS_MS) is None


def test_a_dump_loaded_is_the_same_model_and_a_second_dump_is_empty():
    pattern = pattern_of(timepoints=(4,))
    model = ArrivalModel()
    for trip in range(4):
        drive(model, instance_of(pattern, f"T{trip}", 36_000 + 600 * trip), 1.2 + 0.1 * trip, f"b{trip}")
    kept = model.dump()
    assert set(kept) == {"agency", "route:R", "run:b0", "run:b1", "run:b2", "run:b3"}
    assert model.dump() == {}
    again = ArrivalModel()
    again.load(kept)
    assert again.dump(everything=True) == model.dump(everything=True)
    following = instance_of(pattern, "next", 39_000)
    for second in range(0, 300, 30):
        progress = at(following, following.departure_ms(0) + second * 1000, second * 6.0, "b1")
        for each in (model, again):
            each.observe(progress)
        assert model.forecast(progress, progress.fixed_at_ms) == again.forecast(progress, progress.fixed_at_ms)
    assert model.dump() == again.dump()


def test_parts_of_the_dump_are_those_that_changed_and_a_forgotten_vehicle_is_dropped():
    pattern = pattern_of()
    model = ArrivalModel()
    drive(model, instance_of(pattern), 1.1, "b0")
    model.dump()
    model.observe(at(instance_of(pattern, "T9"), DEPARTS_MS, 10.0, "b9"))
    assert set(model.dump()) == {"agency", "run:b9"}
    model.forget("b9")
    assert model.dump()["run:b9"] == b""
    with pytest.raises(ValueError, match="nonsense"):
        model.load({"nonsense": b"\x90"})


def test_a_forecast_that_is_not_to_teach_changes_nothing():
    instance = instance_of(pattern_of())
    model, plain = ArrivalModel(), ArrivalModel()
    for second in range(0, 600, 30):
        progress = at(instance, DEPARTS_MS + second * 1000, second * 6.0)
        for each in (model, plain):
            each.observe(progress)
            each.forecast(progress, progress.fixed_at_ms)
        model.forecast(progress, progress.fixed_at_ms + 15_000, learn=False)
    for each in (model, plain):
        for stop in range(1, 8):
            each.crossed("b", instance, stop, DEPARTS_MS + 70_000 * stop, measured=True)
    assert model.dump() == plain.dump()


def test_a_day_begun_from_an_earlier_one_knows_its_links_but_less_surely():
    pattern = pattern_of()
    earlier = ArrivalModel()
    for trip in range(6):
        drive(earlier, instance_of(pattern, f"T{trip}", 36_000 + 900 * trip), 1.5, f"b{trip}")
    today = ArrivalModel()
    today.inherit(earlier.dump(everything=True))
    following = instance_of(pattern, "next", 50_000)
    progress = at(following, following.departure_ms(1), APART_M + 1, "next")
    told = [model.forecast(progress, progress.fixed_at_ms).stops for model in (today, ArrivalModel())]
    ride_s = [(stops[-1].p50_ms - stops[0].p50_ms) / 1000 for stops in told]
    assert ride_s[0] > 1.25 * ride_s[1]
    assert today.pace.runs == {}


def test_after_many_days_a_model_still_learns_where_nights_lie_between():
    pattern = pattern_of()

    def ride_s(*, nights: bool) -> float:
        model = ArrivalModel()
        for day in range(12):
            for trip in range(10):
                drive(model, instance_of(pattern, f"D{day}T{trip}", 36_000 + 900 * trip), 1.0, f"b{day}.{trip}")
            if nights:
                model.new_day()
        for trip in range(3):  # from today on the road is slow
            drive(model, instance_of(pattern, f"slow{trip}", 46_000 + 900 * trip), 2.0, f"slow{trip}")
        following = instance_of(pattern, "next", 50_000)
        stops = model.forecast(at(following, following.departure_ms(1), APART_M + 1, "next"), following.departure_ms(1)).stops
        return (stops[-1].p50_ms - stops[0].p50_ms) / 1000

    assert ride_s(nights=True) > 1.1 * ride_s(nights=False)


def test_quantiles_settle_where_the_errors_lie():
    spread = Spread()
    chance = np.random.default_rng(7)
    errors = chance.normal(40.0, 30.0, 8_000)
    for n, error in enumerate(errors):
        bus = f"b{n}"
        spread.keep(bus, 0.0, MOVING, 0, np.array([270.0]))
        spread.learn(bus, 0, 270.0 + error)
        spread.forget(bus)
    found = spread.offsets(MOVING, np.array([270.0]))[:, 0]
    assert np.abs(found - np.quantile(errors, TAUS)).max() < 15.0


def test_a_quantile_table_of_another_shape_is_not_taken():
    spread = Spread()
    before = spread.table.copy()
    spread.restore([1.0, 2.0], [3.0], [0.1, 4.0])
    assert (spread.table == before).all()


def test_links_of_no_scheduled_time_count_as_five_seconds():
    pattern = pattern_of(4)
    trip = Trip("T", "R", "X", pattern, (0, 0, 60, 60), (0, 0, 60, 60))
    assert Pace().plan(trip).seconds.tolist() == [5.0, 60.0, 5.0]


def test_every_constant_says_its_unit_and_reason():
    import typing

    import msgspec

    for struct in (ArrivalConfig, type(ArrivalConfig().pace), type(ArrivalConfig().spread)):
        hints = typing.get_type_hints(struct, include_extras=True)
        for field in msgspec.structs.fields(struct):
            if isinstance(field.default, msgspec.Struct):
                continue
            (meta,) = typing.get_args(hints[field.name])[1:]
            assert len(meta.description) > 20, field.name


def test_late_buses_that_make_up_time_are_expected_to_do_it_again():
    pattern = pattern_of(40)
    model = ArrivalModel()

    def late_bus(trip: int, shrink: float) -> None:
        """10 min late at the first stop; drives at `shrink` of the planned time, watched at every stop."""
        instance = instance_of(pattern, f"T{trip}", 36_000 + 600 * trip)
        start_ms = instance.departure_ms(0) + 600_000
        for stop in range(1, 40):
            at_ms = start_ms + int(stop * LINK_S * shrink * 1000)
            if stop > 1:
                model.crossed(f"b{trip}", instance, stop, at_ms, measured=True)
            progress = at(instance, at_ms, stop * APART_M + 1, f"b{trip}")
            model.forecast(progress, at_ms)
            if stop < 3:  # hardly a lesson for the links: what is seen is that arrivals come sooner than told
                model.observe(progress)
            else:
                model.pace.runs[f"b{trip}"].moved_at_s = at_ms / 1000

    for trip in range(30):
        late_bus(trip, 0.8)
    made_up = model.spread.recovery
    assert made_up > 0.1
    for trip in range(30, 90):
        late_bus(trip, 1.2)
    assert model.spread.recovery < made_up


def test_a_bus_that_has_stood_for_eight_minutes_though_it_is_late_gets_a_wider_interval_the_longer_it_stands():
    instance = instance_of(pattern_of())
    model, stood_ms = ArrivalModel(), instance.departure_ms(4) + 60_000
    wide = {}
    model.observe(at(instance, stood_ms - 30_000, 3.5 * APART_M))
    for second in range(0, 1_501, 20):
        now_ms = stood_ms + second * 1000
        progress = at(instance, now_ms, 4 * APART_M + 100)
        model.observe(progress)
        stop = model.forecast(progress, now_ms).stops[-1]
        wide[second] = stop.p90_ms - stop.p10_ms
    assert wide[460] == wide[300]
    assert wide[480] >= wide[460]
    assert wide[960] > 1.4 * wide[460]
    assert wide[1_440] == wide[1_500]  # three times as wide is the most


def test_a_bus_that_waits_for_its_time_is_not_stalled():
    instance = instance_of(pattern_of())
    model, due_ms = ArrivalModel(), instance.departure_ms(4)
    wide = []
    for second in range(-900, 1, 20):
        progress = at(instance, due_ms + second * 1000, 4 * APART_M)
        model.observe(progress)
        stop = model.forecast(progress, progress.fixed_at_ms).stops[-1]
        wide.append(stop.p90_ms - stop.p10_ms)
    assert max(wide) < 1.2 * wide[10]


def test_buses_that_are_overdue_longer_are_another_matter():
    instance, model = instance_of(pattern_of()), ArrivalModel()
    kept = []
    model.spread.keep = lambda bus, now, state, *rest, late: kept.append(state)
    for late_s in (-60, 30, 90, 300, 900):
        now_ms = DEPARTS_MS + 1_000 + late_s * 1000
        model.forecast(at(instance, now_ms, 0.0, bus_id=f"b{late_s}", departed=False), now_ms)
    assert len(set(kept)) == 5


def test_an_arrival_that_should_be_over_is_first_expected_soon_and_then_when_it_is_seen_to_come():
    spread = Spread()
    first = spread.offsets(MOVING, np.array([-60.0]))[1, 0] - 60.0
    assert 0.0 <= first < 20.0
    for n in range(4_000):
        spread.keep(f"b{n}", 0.0, MOVING, 0, np.array([-60.0]))
        spread.learn(f"b{n}", 0, 45.0)
    assert abs(spread.offsets(MOVING, np.array([-60.0]))[1, 0] - 60.0 - 45.0) < 12.0


def test_what_the_spread_says_of_itself_is_taken_up_again():
    spread, horizons = Spread(), np.linspace(-90, 3_600, 50)
    spread.offsets(WAITING, horizons)  # asked before the errors of others: what is kept ready of it may not grow old
    for n in range(300):
        spread.keep(f"b{n}", 0.0, MOVING, 0, np.array([200.0]))
        spread.learn(f"b{n}", 0, 290.0)
    again = Spread()
    again.restore(*spread.state())
    for state in (MOVING, WAITING):
        assert (again.offsets(state, horizons) == spread.offsets(state, horizons)).all()


def test_a_day_begins_without_the_errors_of_the_day_before():
    earlier = ArrivalModel()
    for n in range(300):
        earlier.spread.keep(f"b{n}", 0.0, MOVING, 0, np.array([200.0]))
        earlier.spread.learn(f"b{n}", 0, 290.0)
    today = ArrivalModel()
    today.inherit(earlier.dump(everything=True))
    assert (today.spread.table == Spread().table).all()
