"""Stops on lines that meet themselves: where they were put is known, so the error is too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geo.coords import moved
from geo.placing import place_stops, spread
from geo.shape import Shape

LON, LAT = 3.05, 36.75


def line(*points: tuple[float, float]) -> Shape:
    """A shape through points given in metres east and north of a place."""
    lons, lats = zip(*(moved(LON, LAT, east, north) for east, north in points), strict=True)
    return Shape("line", np.array(lons), np.array(lats))


def circle(east: float, north: float, radius: float, start_deg: float, sweep_deg: float = 360.0) -> list[tuple[float, float]]:
    angles = np.radians(start_deg + np.linspace(0, sweep_deg, 73))
    return list(zip((east + radius * np.cos(angles)).tolist(), (north + radius * np.sin(angles)).tolist(), strict=True))


def stops_at(shape: Shape, along: list[float], aside_m: float = 4.0, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Places `aside_m` to the right of the line, as kerbs are, with 2 m of drawing noise."""
    lons, lats, bearings = shape.positions(np.array(along))
    noise = np.random.default_rng(seed).uniform(-2, 2, (2, len(along)))
    right = np.radians(bearings + 90)
    placed = [
        moved(lon, lat, aside_m * np.sin(angle) + east, aside_m * np.cos(angle) + north)
        for lon, lat, angle, east, north in zip(lons.tolist(), lats.tolist(), right.tolist(), *noise.tolist(), strict=True)
    ]
    return np.array([lon for lon, _ in placed]), np.array([lat for _, lat in placed])


OUT_AND_BACK = line((0, 0), (3_000, 0), (3_000, 600), (3_000, 0), (0, 0))
LOLLIPOP = line((0, 0), (2_000, 0), *circle(2_500, 0, 500, 180, -360), (0, 0))
EIGHT = line(*circle(0, 500, 500, 270), *circle(0, -500, 500, 90, -360))
SPIRAL = line(*circle(0, 0, 600, 0), *circle(0, 0, 600, 0))


@pytest.mark.parametrize(
    ("shape", "truth"),
    [
        pytest.param(
            OUT_AND_BACK, [0, 700, 1_400, 2_900, 3_600, 4_300, 5_800, 6_500, 7_195], id="out and back, every stop from both sides"
        ),
        pytest.param(OUT_AND_BACK, [0, 3_600, 5_800, 6_500, 7_150], id="out and back, served on the way back only"),
        pytest.param(LOLLIPOP, [0, 900, 2_300, 3_600, 4_900, 6_200, 7_100], id="lollipop, the stick served twice"),
        pytest.param(LOLLIPOP, [10, 2_300, 3_600, 6_200, 7_100], id="lollipop, the stick served on the way back"),
        pytest.param(EIGHT, [5, 800, 1_600, 2_400, 3_141, 3_900, 4_700, 5_500, 6_270], id="figure of eight, its crossing three times"),
        pytest.param(SPIRAL, [5, 900, 1_900, 2_900, 3_775, 4_670, 5_670, 6_670, 7_500], id="the same ring twice"),
    ],
)
def test_stops_stand_where_they_were_put(shape: Shape, truth: list[float]) -> None:
    placing = place_stops(shape, *stops_at(shape, truth))
    assert placing.along_m.tolist() == pytest.approx(truth, abs=5)
    assert not placing.forced
    assert placing.offset_m.max() < 8


def test_one_place_visited_twice_gets_two_positions() -> None:
    """On the stick of the lollipop one stop, in the middle of the road, stands in the trip's list two times."""
    lons, lats = stops_at(LOLLIPOP, [0, 1_000, 2_300, 4_900, 6_141.0, 7_130], aside_m=0)
    lons[4], lats[4] = lons[1], lats[1]
    placing = place_stops(LOLLIPOP, lons, lats)
    assert placing.along_m[1] == pytest.approx(1_000, abs=5)
    assert placing.along_m[4] == pytest.approx(LOLLIPOP.length_m - 1_000, abs=5)


def test_a_loop_that_ends_where_it_began_starts_at_0_and_ends_at_its_length() -> None:
    ring = line(*circle(0, 0, 600, 0))
    lons, lats = stops_at(ring, [0, ring.length_m], aside_m=0, seed=3)
    lons[1], lats[1] = lons[0], lats[0]
    placing = place_stops(ring, lons, lats)
    assert placing.along_m.tolist() == pytest.approx([0, ring.length_m], abs=5)


def test_where_the_order_leaves_it_open_the_timetable_decides() -> None:
    """One stop between the ends of an out-and-back, on both its ways equally near: 300 s before the end, not after the start."""
    shape = line((0, 0), (5_000, 0), (0, 0))
    lons, lats = stops_at(shape, [0, 8_000, 10_000], aside_m=0)
    late = place_stops(shape, lons, lats, leg_s=[1_200.0, 300.0])
    early = place_stops(shape, lons, lats, leg_s=[300.0, 1_200.0])
    assert late.along_m[1] == pytest.approx(8_000, abs=5)
    assert early.along_m[1] == pytest.approx(2_000, abs=5)


def test_the_feeds_own_distance_decides_between_equals() -> None:
    shape = line((0, 0), (5_000, 0), (0, 0))
    lons, lats = stops_at(shape, [0, 8_000, 10_000], aside_m=0)
    placing = place_stops(shape, lons, lats, hint_m=np.array([0.0, 7_950.0, 10_000.0]))
    assert placing.along_m[1] == pytest.approx(8_000, abs=5), "chosen by the hint, placed by the geometry"


@pytest.mark.parametrize("factor", [0.3048, 1000.0, -1.0, float("nan")])
def test_distances_that_make_no_sense_are_not_listened_to(factor: float) -> None:
    truth = [0, 900, 2_300, 3_600, 4_900, 6_200, 7_100]
    lons, lats = stops_at(LOLLIPOP, truth)
    placing = place_stops(LOLLIPOP, lons, lats, hint_m=np.array(truth) * factor)
    assert placing.along_m.tolist() == pytest.approx(truth, abs=5)


def test_two_kerbs_drawn_a_little_out_of_order_keep_their_order() -> None:
    shape = line((0, 0), (2_000, 0))
    placing = place_stops(shape, *stops_at(shape, [100, 1_010, 1_000, 1_900], aside_m=6))
    assert (np.diff(placing.along_m) > 0).all()
    assert placing.along_m[1] == pytest.approx(1_005, abs=5)
    assert not placing.forced


def test_stops_against_the_line_are_placed_all_the_same_and_it_is_said() -> None:
    shape = line((0, 0), (4_000, 0))
    placing = place_stops(shape, *stops_at(shape, [3_900, 2_500, 1_000, 100]))
    assert placing.forced
    assert (np.diff(placing.along_m) > 0).all()
    assert placing.offset_m.max() > 500


def test_a_line_without_length_is_refused() -> None:
    with pytest.raises(ValueError, match="no length"):
        place_stops(line((0, 0), (0, 0)), np.array([LON, LON]), np.array([LAT, LAT]))


WALKS = st.lists(st.tuples(st.floats(-800, 800), st.floats(-800, 800)), min_size=2, max_size=25)


@settings(deadline=None, max_examples=150)
@given(WALKS, st.lists(st.tuples(st.floats(-1_500, 1_500), st.floats(-1_500, 1_500)), min_size=2, max_size=30), st.booleans())
def test_whatever_the_line_and_the_stops_positions_increase_and_stay_on_it(
    points: list[tuple[float, float]], places: list[tuple[float, float]], timed: bool
) -> None:
    shape = line(*points)
    if shape.length_m < 1:
        return
    lons, lats = (np.array(axis) for axis in zip(*(moved(LON, LAT, east, north) for east, north in places), strict=True))
    legs = [float(index % 3 * 60) if index % 4 else None for index in range(len(places) - 1)] if timed else None
    placing = place_stops(shape, lons, lats, leg_s=legs)
    assert (np.diff(placing.along_m) > 0).all()
    assert placing.along_m[0] >= 0
    assert placing.along_m[-1] <= shape.length_m + 1e-6
    assert np.isfinite(placing.offset_m).all()


@settings(deadline=None, max_examples=150)
@given(WALKS, st.integers(2, 30), st.integers(0, 10_000))
def test_no_placing_is_worse_than_the_one_the_stops_came_from(points: list[tuple[float, float]], count: int, seed: int) -> None:
    shape = line(*points)
    if shape.length_m < 60 * count:
        return
    gaps = np.random.default_rng(seed).uniform(1, 3, count + 1)
    truth = np.cumsum(gaps)[:-1] / gaps.sum() * shape.length_m
    placing = place_stops(shape, *stops_at(shape, truth.tolist(), aside_m=3, seed=seed))
    assert not placing.forced
    # 40 m^2 is the dearest that the preference for the line's own ends can be, for each of the two
    assert float((placing.offset_m**2).sum()) <= count * 6.0**2 + 80


@given(st.lists(st.floats(-100, 5_100), min_size=1, max_size=40))
def test_spreading_changes_nothing_that_is_in_order_already(values: list[float]) -> None:
    flat = spread(np.array(values), 5_000.0)
    assert (np.diff(flat) > 0).all()
    assert flat[0] >= 0 and flat[-1] <= 5_000.0 + 1e-9
    again = spread(flat, 5_000.0)
    assert again.tolist() == pytest.approx(flat.tolist(), abs=1e-6)
