"""One vehicle, one fix further: a function of frozen state."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.events import Event
from engine.tracking.fix import Fix
from engine.tracking.vehicle import Area, VehicleState, advance
from geo.coords import moved
from tests.small_world import DAY, SPEED, STRAIGHT, Bus, feed, instance_of, line

TIMETABLE = feed()
START = instance_of(TIMETABLE).departure_ms(0)


def folded(fixes: list[Fix]) -> tuple[VehicleState, list[Event]]:
    state, events, area = VehicleState("b1"), [], Area(TIMETABLE)
    for fix in fixes:
        state, said = advance(state, fix, area)
        events += said.events
    return state, events


def test_the_state_comes_back_from_its_bytes_whole() -> None:
    state, _ = folded(list(Bus(STRAIGHT, noise_m=5.0).drive(START, to_m=1_111.0)))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=VehicleState) == state


def test_a_vehicle_weighs_less_than_a_kilobyte() -> None:
    state, _ = folded(list(Bus(STRAIGHT, noise_m=5.0).drive(START, to_m=3_000.0)))
    assert len(msgspec.msgpack.encode(state)) < 1_024


def test_advance_changes_neither_state_nor_fix() -> None:
    area = Area(TIMETABLE)
    bus = Bus(STRAIGHT)
    state, _ = folded(list(bus.drive(START, to_m=1_000.0)))
    before = msgspec.msgpack.encode(state)
    fix = bus.at(START + 126_000, 1_008.0)
    assert advance(state, fix, area) == advance(state, fix, area)
    assert msgspec.msgpack.encode(state) == before


steps = st.tuples(
    st.integers(-1, 400_000),  # ms since the fix before
    st.floats(-20_000, 20_000),
    st.floats(-3_000, 3_000),
    st.none() | st.floats(0, 200),
    st.none() | st.floats(0, 40),
    st.none() | st.floats(0, 360),
    st.sampled_from([None, "T0", "T1", "NO_SUCH"]),
)


@given(st.lists(steps, max_size=40))
@settings(max_examples=150, deadline=None)
def test_whatever_a_vehicle_does_its_story_holds_together(
    walk: list[tuple[int, float, float, float | None, float | None, float | None, str | None]],
) -> None:
    """Wild walks: arcs inside the line, never back by more than 50 m, nothing said twice, and a state that survives its bytes."""
    at_ms, area, state = START, Area(TIMETABLE), VehicleState("b1")
    for gap_ms, east, north, accuracy, speed, bearing, trip_id in walk:
        at_ms += max(gap_ms, 0)
        lon, lat = moved(3.05, 36.75, east, north)
        fix = Fix("b1", at_ms, lat, lon, at_ms, "d", "telemetry", accuracy, speed, bearing, None, trip_id, DAY if trip_id else None)
        was = state
        state, said = advance(state, fix, area)
        assert len({event.event_id for event in said.events}) == len(said.events)
        if state.match is not None:
            assert 0.0 <= state.match.along_m <= STRAIGHT.length_m + 1e-6
            joined = was.match is not None and state.motion is not None and 0 < state.motion.gap_ms <= 300_000
            if joined and was.ride is not None and state.ride is not None and was.match is not None:
                one_ride = (was.ride.trip_id, was.ride.attempt, was.ride.started_at_ms) == (
                    state.ride.trip_id,
                    state.ride.attempt,
                    state.ride.started_at_ms,
                )
                if one_ride and was.ride.started_at_ms is not None and state.match.raw_m < was.match.peak_m:
                    assert state.match.along_m >= was.match.peak_m - 50.0 - 1e-6 or state.match.peak_m == state.match.raw_m
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=VehicleState) == state


def test_a_bus_that_signs_on_late_stands_at_its_first_stop_and_not_where_the_line_comes_by_again() -> None:
    shape = line([(0, 0), (600, 0), (600, 600), (-60, 600), (-60, 0), (600, 0), (600, -3_000)], "again")
    timetable = feed(shape)
    area, bus, late = Area(timetable), Bus(shape), round(2_500 / SPEED) * 1000  # the second passage is due just now
    state = VehicleState("b1")
    for n in range(12):
        state, _ = advance(state, bus.at(instance_of(timetable).departure_ms(0) + late + n * 5_000, 0.0, speed=0.0), area)
    assert state.match is not None and state.match.along_m < 60.0
