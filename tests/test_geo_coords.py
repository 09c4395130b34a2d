"""Local metres against the geodesic of pyproj."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod

from geo.coords import bearing_deg, distance_m, metres_per_degree, moved, turn_deg, wrap_lon

GEOD = Geod(ellps="WGS84")
LATITUDES = st.floats(-65, 65)
LONGITUDES = st.floats(-180, 179.999)


@given(LONGITUDES, LATITUDES, st.floats(0, 359.9), st.floats(1, 100_000))
def test_a_distance_up_to_100_km_is_the_geodesic_within_a_ten_thousandth_to_a_thousandth(
    lon: float, lat: float, way: float, far: float
) -> None:
    to_lon, to_lat, _ = GEOD.fwd(lon, lat, way, far)
    allowed = 1e-4 if abs(lat) < 45 else 1e-3
    assert distance_m(lon, lat, to_lon, to_lat) == pytest.approx(far, rel=allowed, abs=0.001)


@given(LONGITUDES, LATITUDES, st.floats(0, 359.9), st.floats(10, 2_000))
def test_a_bearing_over_a_few_streets_is_the_geodesic_one_within_a_tenth_of_a_degree(
    lon: float, lat: float, way: float, far: float
) -> None:
    to_lon, to_lat, _ = GEOD.fwd(lon, lat, way, far)
    assert turn_deg(bearing_deg(lon, lat, to_lon, to_lat), way) < 0.1


@given(LONGITUDES, LATITUDES, st.floats(-5_000, 5_000), st.floats(-5_000, 5_000))
def test_moving_a_point_takes_it_as_far_as_was_said(lon: float, lat: float, east: float, north: float) -> None:
    to_lon, to_lat = moved(lon, lat, east, north)
    assert -180 <= to_lon < 180
    assert distance_m(lon, lat, to_lon, to_lat) == pytest.approx(float(np.hypot(east, north)), rel=1e-3, abs=0.01)


def test_the_180th_meridian_is_crossed_the_short_way() -> None:
    assert distance_m(179.999, -17.0, -179.999, -17.0) == pytest.approx(212.95, abs=0.5)
    assert bearing_deg(179.999, -17.0, -179.999, -17.0) == pytest.approx(90, abs=0.01)
    assert wrap_lon(540.0) == -180.0


def test_arrays_give_what_single_values_give() -> None:
    lons, lats = np.array([3.05, 3.1, -5.0]), np.array([36.7, 36.75, 40.0])
    together = distance_m(lons[:-1], lats[:-1], lons[1:], lats[1:])
    single = [distance_m(*pair) for pair in zip(lons[:-1].tolist(), lats[:-1].tolist(), lons[1:].tolist(), lats[1:].tolist(), strict=True)]
    assert together.tolist() == pytest.approx(single)
    assert metres_per_degree(lats)[0].tolist() == pytest.approx([metres_per_degree(lat)[0] for lat in lats.tolist()])


def test_a_point_has_no_distance_and_bearing_zero_to_itself() -> None:
    assert distance_m(3.0, 36.0, 3.0, 36.0) == 0
    assert bearing_deg(3.0, 36.0, 3.0, 36.0) == 0


def test_a_turn_is_never_more_than_half_a_circle() -> None:
    assert turn_deg(350, 10) == 20
    assert turn_deg(0, 180) == 180
    assert turn_deg(90, 271) == pytest.approx(179)
