"""Matching: the right arc of lines that meet themselves, from noisy fixes."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.shapes import DRAWN, shape_of
from geo.coords import distance_m, moved
from geo.match import RETREAT_MAX_M, Line, Match, place_first, place_next, sigma_m
from geo.shape import Shape

KINDS = tuple(DRAWN)


@dataclass
class Driven:
    """What a matched trace looked like: absolute errors along the line in metres, and the published arcs."""

    errors: list[float]
    published: list[float]


def drive(shape: Shape, chance: random.Random, noise_m: float, every_s: float, *, tells_motion: bool) -> Driven:
    """A bus with stops and lights, seen through noise of `noise_m` to either side."""
    line, result = Line(shape), Driven([], [])
    along, speed, at_s, halt_s, next_halt = 0.0, 8.0, 0.0, 0.0, chance.uniform(200, 500)
    match: Match | None = None
    seen: tuple[float, float, float] | None = None
    east = north = 0.0
    next_fix_s = 0.0
    while along < shape.length_m:
        if at_s >= next_fix_s:
            next_fix_s += every_s
            lon, lat, course = shape.position(along)
            lon, lat = moved(lon, lat, chance.gauss(0, noise_m), chance.gauss(0, noise_m))
            rolling = 0.0 if halt_s > 0 else speed
            if seen is not None:
                lon0, lat0, _ = seen
                step_e = distance_m(lon0, lat0, lon, lat0) * (1 if lon > lon0 else -1) / every_s
                step_n = distance_m(lon, lat0, lon, lat) * (1 if lat > lat0 else -1) / every_s
                weight = 1 - math.exp(-every_s / 10)
                east, north = east + weight * (step_e - east), north + weight * (step_n - north)
            own = math.hypot(east, north)
            bearing = course if tells_motion else math.degrees(math.atan2(east, north)) % 360 if own > 3 else None
            v = rolling if tells_motion else own
            sigma = sigma_m(noise_m)
            if match is None:
                match = place_first(line, lon, lat, sigma=sigma, bearing_deg=None, prior=lambda s: min(8.0, s / 200))
            else:
                match = place_next(
                    line, match, lon, lat, dt_s=every_s, speed_mps=v, sigma=sigma, bearing_deg=bearing if v > 1.5 else None,
                    lost_m=max(60.0, 3 * noise_m),
                )  # fmt: skip
            result.errors.append(abs(match.along_m - along))
            result.published.append(match.along_m)
            seen = (lon, lat, at_s)
        if halt_s > 0:
            halt_s -= 1
        else:
            speed = min(14.0, max(3.0, speed + chance.gauss(0, 1)))
            along += speed
            if along > next_halt:
                halt_s, next_halt = chance.uniform(5, 40), along + chance.uniform(200, 500)
        at_s += 1
    return result


@pytest.mark.parametrize(("noise_m", "every_s"), [(5, 1), (10, 5), (5, 30), (10, 60), (20, 10)])
def test_the_right_arc_is_found_on_lines_that_meet_themselves(noise_m: float, every_s: float) -> None:
    errors: list[float] = []
    for kind in KINDS:
        for tells_motion in (True, False):
            chance = random.Random(f"{kind} {noise_m} {every_s} {tells_motion}")
            for _ in range(3):
                errors += drive(shape_of(kind, chance), chance, noise_m, every_s, tells_motion=tells_motion).errors
    assert np.percentile(errors, 95) <= 3 * noise_m + 5
    if noise_m <= 10:
        assert sum(error > 200 for error in errors) <= max(1, 0.001 * len(errors))


def straight(length_m: float = 5_000.0, lon: float = 3.0, lat: float = 36.0) -> Shape:
    places = [moved(lon, lat, x, 0.0) for x in np.arange(0.0, length_m + 1, 50.0)]
    return Shape("straight", np.array([x for x, _ in places]), np.array([y for _, y in places]))


def along_straight(shape: Shape, along: float, aside: float = 0.0) -> tuple[float, float]:
    lon, lat, _ = shape.position(along)
    return moved(lon, lat, 0.0, aside)


def step(line: Line, match: Match, shape: Shape, along: float, aside: float = 0.0, dt_s: float = 10.0, speed: float = 10.0) -> Match:
    lon, lat = along_straight(shape, along, aside)
    return place_next(line, match, lon, lat, dt_s=dt_s, speed_mps=speed, sigma=8.0, bearing_deg=None)


def first(line: Line, shape: Shape, along: float) -> Match:
    lon, lat = along_straight(shape, along)
    return place_first(line, lon, lat, sigma=8.0, bearing_deg=None)


def test_the_published_arc_goes_back_fifty_metres_and_no_further() -> None:
    shape = straight()
    line = Line(shape)
    match = first(line, shape, 2_000)
    for back in (30, 60, 120, 180):
        match = step(line, match, shape, 2_000 - back, speed=0.0)
        assert match.along_m >= 2_000 - RETREAT_MAX_M - 1e-6
    assert match.raw_m == pytest.approx(1_820, abs=1)


def test_a_vehicle_that_drives_on_from_further_back_is_followed_again() -> None:
    shape = straight()
    line = Line(shape)
    match = first(line, shape, 2_000)
    for along in (1_920, 1_840, 1_760, 1_860, 1_970):
        match = step(line, match, shape, along, speed=8.0)
    assert match.along_m == pytest.approx(1_970, abs=1)


def test_heading_decides_which_way_a_shared_street_is_driven() -> None:
    out = [moved(3.0, 36.0, x, 0.0) for x in np.arange(0, 2_001, 50.0)]
    places = out + out[-2::-1]
    shape = Shape("out_and_back", np.array([x for x, _ in places]), np.array([y for _, y in places]))
    line = Line(shape)
    lon, lat = moved(3.0, 36.0, 500.0, 3.0)
    assert place_first(line, lon, lat, sigma=8.0, bearing_deg=88.0).along_m == pytest.approx(500, abs=2)
    assert place_first(line, lon, lat, sigma=8.0, bearing_deg=268.0).along_m == pytest.approx(3_500, abs=2)
    unsure = place_first(line, lon, lat, sigma=8.0, bearing_deg=None)
    assert [round(arc.along_m, -1) for arc in unsure.arcs] == [500, 3_500]


EVERY_S = pytest.mark.parametrize("every_s", [1.0, 2.0, 5.0, 10.0])


@EVERY_S
def test_a_lost_vehicle_finds_its_way_back_beyond_the_window(every_s: float) -> None:
    """It leaves a line with a long detour, takes the short cut, and joins 3 km further on: so it is believed however often it is heard of."""
    shape = cornered("detour", (0, 0), (1_000, 0), (1_000, 1_500), (1_200, 1_500), (1_200, 0), (3_000, 0))
    line = Line(shape)
    match = place_first(line, *moved(3.0, 36.0, 800.0, 0.0), sigma=8.0, bearing_deg=90.0)
    for x in np.arange(800.0 + 10 * every_s, 2_201.0, 10 * every_s).tolist():
        y = -80.0 if x < 2_000 else 0.0
        match = place_next(line, match, *moved(3.0, 36.0, x, y), dt_s=every_s, speed_mps=10.0, sigma=8.0, bearing_deg=90.0)
    assert match.along_m == pytest.approx(shape.length_m - 800, abs=10)


@EVERY_S
def test_who_leaves_out_a_branch_is_not_taken_back_along_the_other_side_of_the_street(every_s: float) -> None:
    """The line goes 600 m up a branch and back; the vehicle turns at once, on the far side of the street, and drives the line's last part."""
    shape = cornered("branch", (0, 0), (0, 2_000), (600, 2_000), (600, 1_993), (7, 1_993), (7, 0))
    line = Line(shape)
    match = place_first(line, *moved(3.0, 36.0, 0.0, 1_700.0), sigma=8.0, bearing_deg=0.0)
    for y in np.arange(1_700.0 + 8 * every_s, 1_961.0, 8 * every_s).tolist():
        match = place_next(line, match, *moved(3.0, 36.0, 0.0, y), dt_s=every_s, speed_mps=8.0, sigma=8.0, bearing_deg=0.0)
    for y in np.arange(1_960.0, 1_700.0, -8 * every_s).tolist():
        match = place_next(line, match, *moved(3.0, 36.0, 7.0, y), dt_s=every_s, speed_mps=8.0, sigma=8.0, bearing_deg=180.0)
    assert match.along_m == pytest.approx(shape.length_m - y, abs=10)


@EVERY_S
def test_a_vehicle_that_truly_turns_round_drives_against_its_line(every_s: float) -> None:
    shape = straight()
    line = Line(shape)
    match = first(line, shape, 2_000)
    for along in np.arange(2_000.0, 1_700.0, -8 * every_s).tolist():
        lon, lat = along_straight(shape, along)
        match = place_next(line, match, lon, lat, dt_s=every_s, speed_mps=8.0, sigma=8.0, bearing_deg=270.0)
    assert match.raw_m == pytest.approx(along, abs=5) and match.opposed


@EVERY_S
def test_a_device_that_always_says_north_is_not_taken_to_the_way_back(every_s: float) -> None:
    """Where it drives south its bearing speaks for the other side of the street, and every place that it says against it."""
    shape = cornered("south", (-1_000, 0), (0, 0), (0, -3_000), (7, -3_000), (7, 7), (-1_000, 7))
    line = Line(shape)
    match = place_first(line, *moved(3.0, 36.0, -1_000.0, 0.0), sigma=8.0, bearing_deg=90.0)
    for along in np.arange(8 * every_s, 3_800.0, 8 * every_s).tolist():
        place = (along - 1_000.0, 0.0) if along < 1_000 else (0.0, 1_000.0 - along)
        match = place_next(line, match, *moved(3.0, 36.0, *place), dt_s=every_s, speed_mps=8.0, sigma=8.0, bearing_deg=0.0)
        assert match.along_m == pytest.approx(along, abs=60)


def cornered(name: str, *corners: tuple[float, float]) -> Shape:
    """Straight from corner to corner (metres), a vertex every 50 m or so."""
    points: list[tuple[float, float]] = []
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        count = max(2, int(math.hypot(x1 - x0, y1 - y0) / 50))
        points += [(x0 + (x1 - x0) * u, y0 + (y1 - y0) * u) for u in np.linspace(0, 1, count, endpoint=False)]
    points.append(corners[-1])
    places = [moved(3.0, 36.0, x, y) for x, y in points]
    return Shape(name, np.array([x for x, _ in places]), np.array([y for _, y in places]))


def test_a_point_beside_a_long_intercity_shape_is_right_to_metres_at_both_ends() -> None:
    places = [moved(3.0, 33.0 + k * 0.01, 2_000 * math.sin(k / 9), 0.0) for k in range(270)]  # 300 km northward
    shape = Shape("intercity", np.array([x for x, _ in places]), np.array([y for _, y in places]))
    line = Line(shape)
    for along in (10.0, 150_000.0, shape.length_m - 10.0):
        lon, lat, bearing = shape.position(along)
        aside = moved(lon, lat, 20 * math.cos(math.radians(bearing)), -20 * math.sin(math.radians(bearing)))
        match = place_first(line, *aside, sigma=8.0, bearing_deg=None)
        assert match.along_m == pytest.approx(along, abs=3)
        assert match.offset_m == pytest.approx(20, abs=0.5)


def test_the_antimeridian_is_no_edge() -> None:
    places = [moved(179.99, -17.0, x, 0.0) for x in np.arange(0, 4_001, 50.0)]
    shape = Shape("fiji", np.array([x for x, _ in places]), np.array([y for _, y in places]))
    line = Line(shape)
    for along in (100.0, 2_000.0, 3_900.0):
        lon, lat, _ = shape.position(along)
        assert place_first(line, lon, lat, sigma=8.0, bearing_deg=None).along_m == pytest.approx(along, abs=1)


@given(seed=st.integers(0, 10_000), kind=st.sampled_from(KINDS))
@settings(max_examples=40, deadline=None)
def test_the_thinned_line_keeps_every_place_within_two_metres(seed: int, kind: str) -> None:
    chance = random.Random(seed)
    shape = shape_of(kind, chance)
    line = Line(shape)
    along = chance.uniform(0, shape.length_m)
    lon, lat, _ = shape.position(along)
    near = line.candidates(lon, lat, max(0.0, along - 5), along + 5)
    assert min(abs(each.along_m - along) + each.offset_m for each in near) < 3.0


@given(seed=st.integers(0, 10_000), kind=st.sampled_from(KINDS))
@settings(max_examples=40, deadline=None)
def test_loop_and_arrays_find_the_same_minima(seed: int, kind: str) -> None:
    chance = random.Random(seed)
    shape = shape_of(kind, chance)
    line = Line(shape)
    lon, lat, _ = shape.position(chance.uniform(0, shape.length_m))
    lon, lat = moved(lon, lat, chance.gauss(0, 30), chance.gauss(0, 30))
    first = chance.choice((0, chance.randrange(len(line._segments))))
    segments = (first, first + chance.randint(1, 40))
    plain = line.minima_plain(lon, lat, *segments)
    arrays = line.minima_array(lon, lat, *segments)
    nearest = sorted(plain, key=lambda each: each[1])[: len(arrays)]
    assert sorted(round(along, 3) for along, _, _ in nearest) == [round(along, 3) for along, _, _ in arrays]


@given(seed=st.integers(0, 10_000), kind=st.sampled_from(KINDS), away_m=st.sampled_from([0.0, 100.0, 1_500.0]))
@settings(max_examples=60, deadline=None)
def test_the_nearest_place_of_what_is_looked_at_is_always_among_the_candidates(seed: int, kind: str, away_m: float) -> None:
    """Also where all of it leads away from the vehicle: then it is its begin."""
    chance = random.Random(seed)
    shape = shape_of(kind, chance)
    line = Line(shape)
    low = chance.uniform(0, shape.length_m - 10)
    high = chance.uniform(low, min(shape.length_m, low + 600))
    lon, lat, _ = shape.position(chance.uniform(0, shape.length_m))
    lon, lat = moved(lon, lat, chance.gauss(0, away_m), chance.gauss(0, away_m))
    found = line.candidates(lon, lat, low, high)
    nearest = min(distance_m(lon, lat, *shape.position(along)[:2]) for along in np.linspace(low, high, 200).tolist())
    assert min(each.offset_m for each in found) <= nearest * 1.01 + 2.0
