"""Labelled traces: what is said to have happened did happen, and nothing else."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.scenarios import (
    CATALOGUE,
    ClockJump,
    Deadhead,
    Detour,
    Duplicates,
    Fault,
    Frozen,
    Happening,
    LateBatch,
    MissedStop,
    Noise,
    OutOfOrder,
    Parked,
    Reflection,
    Skew,
    Stand,
    Teleport,
    Trace,
    Tunnel,
    Unnamed,
    WeekRollover,
    WrongWay,
    parsed,
    trace,
    traces,
)
from engine.tracking.timetable import Timetable
from geo.coords import distance_m
from geo.shape import Shape
from tests import small_world

HILLY = small_world.line([(0, 0), (2_500, 0), (2_500, 2_000), (6_000, 2_500), (9_000, 2_500)], "hilly")
LOOP = small_world.line([(0, 0), (2_000, 0), (2_000, 1_500), (0, 1_500), (0, 60)], "loop")


@pytest.fixture(scope="module")
def world() -> Timetable:
    return small_world.feed(HILLY, stops=16)


def made(world: Timetable, *faults: Fault, every_s: float = 1.0, seed: int = 1, named: bool = True) -> Trace:
    return trace(world, small_world.instance_of(world), faults=faults, every_s=every_s, seed=seed, named=named)


def one(found: Trace, kind: str) -> Happening:
    (happening,) = [each for each in found.truth.happened if each.kind == kind]
    return happening


def off_by_m(found: Trace) -> list[float]:
    """How far each fix is from where the bus truly was."""
    points = [(fix, found.truth.of(fix)) for fix in found.fixes]
    return [distance_m(fix.lon, fix.lat, true.lon, true.lat) for fix, true in points]


def shape_of(world: Timetable) -> Shape:
    return world.patterns["P"].shape


# --- nothing wrong ---


def test_without_faults_fixes_are_the_truth_and_the_truth_lies_on_the_shape(world: Timetable) -> None:
    found = made(world)
    assert not found.truth.happened and len(found.fixes) == len(found.truth.points)
    assert max(off_by_m(found)) < 0.1
    for true in found.truth.points[::11]:
        if true.along_m is not None:
            lon, lat, _ = shape_of(world).position(true.along_m)
            assert distance_m(lon, lat, true.lon, true.lat) < 0.1
    assert Counter(each.kind for each in found.truth.stops).keys() <= {"SERVED", "PASSED"} and len(found.truth.stops) == 16


def test_the_same_arguments_give_the_same_trace_and_another_seed_another(world: Timetable) -> None:
    faults = (Noise(), Detour(), Tunnel(), Reflection(), Duplicates())
    assert made(world, *faults) == made(world, *faults)
    assert made(world, *faults) != made(world, *faults, seed=2)


# --- on the road ---


def test_a_detour_leaves_the_shape_rejoins_it_and_costs_the_time_that_it_takes(world: Timetable) -> None:
    found, plain = made(world, Detour(2_700, 850, 220)), made(world)
    happening = one(found, "DETOUR")
    during = [true for true in found.truth.points if happening.from_ms < true.at_ms < happening.to_ms]
    assert max(true.offset_m for true in during) == pytest.approx(220, abs=15)
    assert all(true.offset_m < 0.1 for true in found.truth.points if true.at_ms > happening.to_ms)
    assert all(shape_of(world).nearest(true.lon, true.lat)[1] == pytest.approx(true.offset_m, abs=3) for true in during)
    missed = [stop.stop_sequence for stop in found.truth.stops if stop.kind == "MISSED"]
    assert missed == happening.facts["stopsMissed"] != []
    assert [stop.stop_sequence for stop in found.truth.stops] == sorted(stop.stop_sequence for stop in found.truth.stops)
    assert found.truth.stops[-1].arrived_at_ms != plain.truth.stops[-1].arrived_at_ms
    assert found.truth.stops[1] == plain.truth.stops[1], "what lies before it is as it was"


def test_a_bus_that_misses_a_stop_never_comes_near_that_one_and_serves_the_others(world: Timetable) -> None:
    found = made(world, MissedStop(stop_index=6))
    missed = [stop for stop in found.truth.stops if stop.kind == "MISSED"]
    assert [stop.stop_index for stop in missed] == [6]
    stop = world.stops[missed[0].stop_id]
    assert min(distance_m(true.lon, true.lat, stop.lon, stop.lat) for true in found.truth.points) > 80


def test_the_wrong_way_is_driven_along_the_shape_backwards_and_then_forward_again(world: Timetable) -> None:
    found = made(world, WrongWay(3_400, 400))
    happening = one(found, "WRONG_WAY")
    back = [true for true in found.truth.points if happening.from_ms + 2_000 < true.at_ms < happening.to_ms - 2_000]
    arcs = [true.along_m or 0.0 for true in back]
    assert arcs == sorted(arcs, reverse=True) and arcs[0] - arcs[-1] > 300
    _, _, course = shape_of(world).position(arcs[20])
    assert abs(back[20].bearing_deg - course) % 360 == pytest.approx(180, abs=1)
    assert found.truth.points[-1].lat == pytest.approx(made(world).truth.points[-1].lat, abs=1e-6)


def test_a_stand_in_traffic_lasts_as_long_as_asked_and_moves_all_later_stops(world: Timetable) -> None:
    found, plain = made(world, Stand(3_400, 300)), made(world)
    late = [a.arrived_at_ms - b.arrived_at_ms for a, b in zip(found.truth.stops, plain.truth.stops, strict=True)]
    assert set(late) == {0, 300_000} and late == sorted(late)


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_parked_bus_stands_beside_its_terminal_and_is_on_no_trip(world: Timetable, where: str) -> None:
    found = made(world, Parked(40, where))
    happening = one(found, "PARKED")
    waiting = [true for true in found.truth.points if happening.from_ms <= true.at_ms <= happening.to_ms]
    assert len(waiting) > 2_300 and {true.speed_mps for true in waiting} == {0.0} and {true.phase for true in waiting} == {"LAYOVER"}


def test_a_deadhead_comes_from_far_off_names_no_trip_and_ends_at_the_first_stop(world: Timetable) -> None:
    found = made(world, Deadhead(3_000))
    empty = [true for true in found.truth.points if true.phase == "DEADHEAD"]
    assert empty and all(true.trip_id is None for true in empty)
    first = world.stops["S0"]
    away = [distance_m(true.lon, true.lat, first.lon, first.lat) for true in empty]
    assert away[0] > 1_500 and away[-1] < 30 and not [fix for fix in found.fixes if found.truth.of(fix).phase == "DEADHEAD" and fix.trip_id]


@given(
    seed=st.integers(0, 10_000),
    faults=st.lists(st.sampled_from([Detour(), WrongWay(), MissedStop(), Stand(), Parked(), Deadhead()]), max_size=5),
)
@settings(max_examples=12, deadline=None)
def test_any_composition_is_a_drive_that_a_bus_can_make(seed: int, faults: list[Fault]) -> None:
    world = small_world.feed(LOOP if seed % 2 else HILLY, stops=14)
    found = trace(world, small_world.instance_of(world), faults=faults, seed=seed, every_s=2.0)
    for before, after in pairwise(found.truth.points):
        assert distance_m(before.lon, before.lat, after.lon, after.lat) < 31 * 2
    times = [stop.arrived_at_ms for stop in found.truth.stops]
    assert times == sorted(times)
    kinds = Counter(each.kind for each in found.truth.happened)
    assert sum(kinds.values()) <= len(faults), "each at most once"
    for true in found.truth.points[::9]:
        assert shape_of(world).nearest(true.lon, true.lat)[1] <= true.offset_m + 12.0


# --- on the way to us ---


def test_noise_has_the_size_asked_for_and_hangs_together(world: Timetable) -> None:
    found = made(world, Noise(10, wander_s=25))
    off = np.array([(fix.lat - found.truth.of(fix).lat) * 111_000 for fix in found.fixes])
    assert off.std() == pytest.approx(10, rel=0.4)
    assert np.abs(np.diff(off)).mean() < 0.5 * off.std()
    assert {fix.accuracy_m for fix in found.fixes} == {15.0}
    fresh = made(world, Noise(10, wander_s=0))
    apart = np.array([(fix.lat - fresh.truth.of(fix).lat) * 111_000 for fix in fresh.fixes])
    assert np.abs(np.diff(apart)).mean() > apart.std() * 0.9


def test_a_reflection_throws_one_run_of_fixes_aside_by_one_vector(world: Timetable) -> None:
    found = made(world, Reflection(60, 120, at_s=300))
    happening = one(found, "REFLECTION")
    thrown = [fix for fix, off in zip(found.fixes, off_by_m(found), strict=True) if off > 1]
    assert {happening.from_ms <= found.truth.of(fix).at_ms < happening.to_ms for fix in thrown} == {True} and len(thrown) in (59, 60, 61)
    assert [round(off) for off in off_by_m(found) if off > 1] == [120] * len(thrown)


def test_a_tunnel_is_silence_and_a_frozen_receiver_repeats_one_place(world: Timetable) -> None:
    silent = made(world, Tunnel(90, at_s=300))
    assert max(b.fixed_at_ms - a.fixed_at_ms for a, b in pairwise(silent.fixes)) in (90_000, 91_000)
    frozen = made(world, Frozen(90, at_s=300))
    places = Counter((fix.lat, fix.lon) for fix in frozen.fixes if (fix.speed_mps or 0) > 3)
    assert places.most_common(1)[0][1] > 20


def test_a_teleport_is_far_away_for_a_moment(world: Timetable) -> None:
    off = off_by_m(made(world, Teleport(5_000, 10, at_s=200)))
    assert sum(each > 4_900 for each in off) == 10 and sum(each > 1 for each in off) == 10


@pytest.mark.parametrize(
    ("fault", "wrong_ms"),
    [(Skew(30), {30_000}), (ClockJump(-45, at_s=300), {0, -45_000}), (WeekRollover(), {-1024 * 7 * 86_400_000})],
    ids=str,
)
def test_a_wrong_clock_is_wrong_by_what_was_asked(world: Timetable, fault: Fault, wrong_ms: set[int]) -> None:
    found = made(world, fault)
    assert {fix.fixed_at_ms - found.truth.of(fix).at_ms for fix in found.fixes} == wrong_ms


def test_deliveries_come_doubled_shuffled_late_and_backwards_but_always_in_order_of_receipt(world: Timetable) -> None:
    plain = made(world)
    for fault in (Duplicates(0.3, 20), OutOfOrder(2.5), OutOfOrder(20), LateBatch(120), LateBatch(7_200, newest_first=True)):
        found = made(world, fault)
        received = [fix.received_at_ms for fix in found.fixes]
        assert received == sorted(received)
        assert {fix.seq for fix in found.fixes} == {fix.seq for fix in plain.fixes}, "nothing is lost"
    doubled = Counter(fix.seq for fix in made(world, Duplicates(0.3, 20)).fixes)
    assert 0.2 < sum(count == 2 for count in doubled.values()) / len(doubled) < 0.4
    lags = [fix.received_at_ms - fix.fixed_at_ms for fix in made(world, OutOfOrder(2.5)).fixes]
    assert 2_000 < max(lags) <= 2_700
    backwards = made(world, LateBatch(600, at_s=200, newest_first=True))
    backlog = [fix.fixed_at_ms for fix in backwards.fixes if fix.received_at_ms - fix.fixed_at_ms > 2_000]
    assert len(backlog) > 500 and backlog == sorted(backlog, reverse=True)


def test_an_unnamed_bus_says_no_trip_but_the_truth_knows_it(world: Timetable) -> None:
    for found in (made(world, named=False), made(world, Unnamed())):
        assert {fix.trip_id for fix in found.fixes} == {None}
        assert "T0" in {found.truth.of(fix).trip_id for fix in found.fixes}


# --- many ---


def test_a_block_is_driven_trip_after_trip_and_a_days_blocks_by_a_bus_each(world: Timetable) -> None:
    (found,) = traces(world, faults=["detour=1,length_m=500", "noise=1,sigma_m=4"], every_s=5)
    order = [stop.trip_id for stop in found.truth.stops]
    assert list(dict.fromkeys(order)) == ["T0", "T1", "T2"]
    assert Counter(each.kind for each in found.truth.happened) == {"DETOUR": 3, "NOISE": 1}
    times = [point.at_ms for point in found.truth.points]
    assert times == sorted(times) and len(set(times)) == len(times)


def test_every_fault_of_the_list_can_be_asked_for_by_name(world: Timetable) -> None:
    for name, kind in CATALOGUE.items():
        asked = parsed(f"{name}=0.25")
        assert asked.fault == kind() and asked.share == 0.25
        assert one(made(world, asked.fault, every_s=5.0), name.upper()).to_ms > 0
    assert parsed("detour=0.1,length_m=600,aside_m=-200").fault == Detour(length_m=600, aside_m=-200)
    assert parsed("tunnel").share == 1


@pytest.mark.parametrize("text", ["earthquake=1", "detour=1,colour=red", "detour=often", "tunnel=1,seconds=long"])
def test_what_is_no_fault_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no fault: one of|it has|often|long"):
        parsed(text)
