"""A line in metres: against pyproj.Geod, at its ends, over repeated points and the 180th meridian."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyproj import Geod

from geo.coords import distance_m
from geo.shape import Shape

GEOD = Geod(ellps="WGS84")


def intercity() -> Shape:
    """About 300 km over five degrees of longitude and two of latitude, with bends."""
    share = np.linspace(0, 1, 2_000)
    return Shape("intercity", 1.0 + 3.1 * share + 0.01 * np.sin(40 * share), 35.2 + 1.5 * share + 0.01 * np.cos(55 * share))


def corner() -> Shape:
    """About 1,113 m east, then 1,109 m north."""
    return Shape("corner", np.array([3.0, 3.0125, 3.0125]), np.array([36.0, 36.0, 36.01]))


def test_arc_positions_of_a_300_km_line_are_those_of_the_geodesic_within_two_thousandths() -> None:
    shape = intercity()
    truth = np.concatenate(([0.0], np.cumsum(GEOD.inv(shape.lons[:-1], shape.lats[:-1], shape.lons[1:], shape.lats[1:])[2])))
    assert 290_000 < truth[-1] < 400_000
    assert np.abs(shape.cum_m - truth).max() < 0.002 * truth[-1]
    assert np.abs(shape.cum_m[1:] / truth[1:] - 1).max() < 0.0002, "each vertex by itself, not only the sum"


def test_one_segment_of_300_km_is_still_within_two_thousandths() -> None:
    shape = Shape("ruler", np.array([1.0, 4.1]), np.array([35.2, 36.7]))
    assert shape.length_m == pytest.approx(GEOD.line_length(shape.lons, shape.lats), rel=0.002)


def test_a_position_far_along_is_where_the_geodesic_says() -> None:
    shape = intercity()
    for along in (1_000.0, 150_000.0, 250_000.0):
        lon, lat, _ = shape.position(along)
        index = shape.segment_at(along)
        walked = GEOD.line_length([*shape.lons[: index + 1], lon], [*shape.lats[: index + 1], lat])
        assert walked == pytest.approx(along, rel=0.002)


def test_a_position_carries_the_bearing_of_its_segment() -> None:
    shape = corner()
    assert shape.position(500)[2] == pytest.approx(90, abs=0.01)
    assert shape.position(1_500)[2] == pytest.approx(0, abs=0.01)


def test_positions_outside_are_taken_to_the_ends() -> None:
    shape = corner()
    assert shape.position(-50) == shape.position(0)
    assert shape.position(1e9) == shape.position(shape.length_m)
    assert shape.position(shape.length_m)[:2] == pytest.approx((3.0125, 36.01))


@given(hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(-100, 2_500)))
def test_many_positions_at_once_are_the_single_ones(along: np.ndarray) -> None:
    shape = corner()
    together = np.column_stack(shape.positions(along))
    assert np.allclose(together, [shape.position(value) for value in along.tolist()], rtol=0, atol=1e-9)


@given(st.floats(0, 1), st.integers(2, 40), st.integers(0, 2**31))
def test_the_foot_of_a_point_on_the_line_is_the_point(share: float, count: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    shape = Shape("walk", 3 + np.cumsum(chance.normal(0, 0.002, count)), 36 + np.cumsum(chance.normal(0, 0.002, count)))
    lon, lat, _ = shape.position(share * shape.length_m)
    along, offset = shape.nearest(lon, lat)
    assert offset < 0.01
    assert distance_m(*shape.position(along)[:2], lon, lat) < 0.01


def test_a_foot_beside_a_segment_knows_its_distance() -> None:
    shape = corner()
    lon, lat, _ = shape.position(600)
    along, offset = shape.project(lon, lat + 0.0009)  # 100 m north
    assert along[0] == pytest.approx(600, abs=0.1)
    assert offset[0] == pytest.approx(99.9, abs=0.2)
    assert len(along) == 2
    assert len(shape.project(lon, lat, *shape.span(1_200, 1_300))[0]) == 1


def test_repeated_points_have_no_length_and_do_no_harm() -> None:
    shape = Shape("stutter", np.array([3.0, 3.0, 3.01, 3.01, 3.01]), np.array([36.0, 36.0, 36.0, 36.0, 36.0]))
    assert np.isfinite(shape.cum_m).all()
    assert shape.position(shape.length_m) == pytest.approx((3.01, 36.0, 90.0))
    assert shape.position(0)[2] == pytest.approx(90)
    assert np.isfinite(shape.project(3.005, 36.001)[1]).all()


def test_a_single_point_is_a_line_without_length() -> None:
    shape = Shape("point", np.array([3.0]), np.array([36.0]))
    assert shape.length_m == 0
    assert shape.position(10) == (3.0, 36.0, 0.0)


def test_a_line_over_the_180th_meridian_is_short() -> None:
    shape = Shape("fiji", np.array([179.99, -179.99]), np.array([-17.0, -17.0]))
    assert shape.length_m == pytest.approx(2_130, abs=5)
    assert shape.position(shape.length_m * 0.75)[0] == pytest.approx(-179.995)
    assert shape.positions(np.array([shape.length_m * 0.75]))[0][0] == pytest.approx(-179.995)
    assert shape.nearest(-179.995, -17.0)[1] < 0.01


@pytest.mark.parametrize(("lons", "lats"), [([], []), ([3.0, 3.1], [36.0]), ([3.0, float("nan")], [36.0, 36.0])])
def test_coordinates_that_make_no_line_are_refused(lons: list[float], lats: list[float]) -> None:
    with pytest.raises(ValueError, match="shape broken"):
        Shape("broken", np.array(lons), np.array(lats))


def test_nothing_of_a_shape_can_be_written_to_even_after_a_pickle() -> None:
    lons = np.array([3.0, 3.01])
    shape = Shape("x", lons, np.array([36.0, 36.0]))
    lons[0] = 99
    assert shape.lons[0] == 3.0, "the caller's array is copied"
    for held in (shape, pickle.loads(pickle.dumps(shape))):
        with pytest.raises(ValueError, match="read-only"):
            held.cum_m[0] = 1
        assert held.box() == (3.0, 36.0, 3.01, 36.0)
