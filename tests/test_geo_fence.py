"""Areas of fences: their borders in metres wherever on the earth they lie, what of a way lies inside, and what is no area."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod

from geo.boxes import Boxes, pieces
from geo.coords import moved
from geo.drawing import BadDrawing, drawn
from geo.fence import Area, Corridor, near_lon

GEOD = Geod(ellps="WGS84")
HOMES = [(3.05, 36.75), (179.9995, -17.0), (-179.999, 51.9), (-73.9, 74.0), (0.0, 0.0)]


def star(chance: random.Random, lon: float, lat: float, radius_m: float, corners: int) -> list[list[float]]:
    ring = []
    for number in range(corners):
        angle, away = 2 * math.pi * (number + 0.6 * chance.random()) / corners, radius_m * chance.uniform(0.5, 1.0)
        ring.append(list(moved(lon, lat, away * math.cos(angle), away * math.sin(angle))))
    return [*ring, ring[0]]


def winding(chance: random.Random, lon: float, lat: float, corners: int, step_m: float) -> list[list[float]]:
    line, heading = [[lon, lat]], chance.uniform(0, 6.3)
    for _ in range(corners - 1):
        heading += chance.gauss(0, 0.4)
        line.append(list(moved(*line[-1], step_m * math.cos(heading), step_m * math.sin(heading))))
    return line


def some_area(chance: random.Random, home: tuple[float, float]) -> tuple[Area, dict[str, Any]]:
    """One of every kind, of few edges and of many, up to some kilometres."""
    lot, radius = chance.randrange(3), 10 ** chance.uniform(1.5, 3.7)
    if lot == 0:
        drawing: dict[str, Any] = {"type": "Circle", "coordinates": list(home), "radiusM": radius}
    elif lot == 1:
        rings = [star(chance, *home, radius, chance.choice([4, 9, 120])), star(chance, *home, 0.1 * radius, 7)]
        drawing = {"type": "Polygon", "coordinates": rings}
    else:
        line = winding(chance, *home, chance.choice([2, 6, 90]), radius / 10)
        drawing = {"type": "LineString", "coordinates": line, "halfWidthM": min(1_000.0, max(5.0, radius / 15))}
    return drawn(drawing), drawing


def border(drawing: dict[str, Any], lon: float) -> tuple[np.ndarray, float]:
    """Points of the drawn lines, a few metres apart, in the turn of `lon`; and how far the border lies from them."""
    lines = drawing["coordinates"] if drawing["type"] == "Polygon" else [drawing["coordinates"]]
    if drawing["type"] == "Circle":
        return np.array([[near_lon(drawing["coordinates"][0], lon), drawing["coordinates"][1]]]), drawing["radiusM"]
    dense = []
    for line in lines:
        places = [(near_lon(x, lon), y) for x, y in line]
        dense += [np.linspace(a, b, 2_000) for a, b in pairwise(places)]
    return np.concatenate(dense), drawing.get("halfWidthM", 0.0)


@pytest.mark.parametrize("home", HOMES, ids=str)
def test_distances_are_those_of_the_ellipsoid(home: tuple[float, float]) -> None:
    chance = random.Random(3)
    for _ in range(6):
        area, drawing = some_area(chance, home)
        for _ in range(6):
            reach = area.depth_m * 4
            lon, lat = moved(*home, chance.gauss(0, reach), chance.gauss(0, reach))
            points, out_m = border(drawing, lon)
            flat = ((points[:, 0] - lon) * math.cos(math.radians(lat))) ** 2 + (points[:, 1] - lat) ** 2
            near = points[np.argsort(flat)[:30]]
            _, _, away = GEOD.inv(np.full(len(near), lon), np.full(len(near), lat), near[:, 0], near[:, 1])
            signed = area.signed_m(lon, lat)
            ours = abs(signed) if drawing["type"] == "Polygon" else signed + out_m
            assert ours == pytest.approx(float(away.min()), rel=0.002, abs=2.0)
            rough = area.rough_m(lon, lat)
            assert rough == signed or (0.0 < abs(rough) <= abs(signed) and (rough < 0.0) == (signed < 0.0))


@pytest.mark.parametrize("home", HOMES, ids=str)
def test_inside_is_what_geos_takes_for_inside(home: tuple[float, float]) -> None:
    chance = random.Random(4)
    for corners in (4, 13, 150):
        rings = [star(chance, *home, 800.0, corners), star(chance, *home, 80.0, max(4, corners // 3))]
        area = drawn({"type": "Polygon", "coordinates": rings})
        shell, hole = ([(near_lon(x, home[0]), y) for x, y in ring] for ring in rings)
        other = shapely.Polygon(shell, [hole])
        for _ in range(150):
            lon, lat = moved(*home, chance.uniform(-900, 900), chance.uniform(-900, 900))
            assert (area.signed_m(lon, lat) < 0.0) == bool(shapely.contains_xy(other, near_lon(lon, home[0]), lat))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), home=st.sampled_from(HOMES))
def test_the_spans_of_a_way_are_where_its_points_lie_inside(seed: int, home: tuple[float, float]) -> None:
    chance = random.Random(seed)
    area, _ = some_area(chance, home)
    reach = area.depth_m * 3
    start = moved(*home, chance.gauss(0, reach), chance.gauss(0, reach))
    end = moved(*home, chance.gauss(0, reach), chance.gauss(0, reach))
    spans = area.spans(*start, *end)
    assert all(0.0 <= low < high <= 1.0 for low, high in spans) and all(a[1] < b[0] for a, b in pairwise(spans))
    end_lon = near_lon(end[0], start[0])
    for share in [chance.random() for _ in range(12)]:
        lon, lat = start[0] + share * (end_lon - start[0]), start[1] + share * (end[1] - start[1])
        away = area.signed_m(lon, lat)
        if abs(away) > 0.1 + 0.001 * area.depth_m:
            assert (away < 0.0) == any(low <= share <= high for low, high in spans)


def test_an_area_cut_at_the_180th_meridian_is_one_area() -> None:
    cut = {
        "type": "MultiPolygon",
        "coordinates": [
            [[[179.9, -17.1], [180.0, -17.1], [180.0, -16.9], [179.9, -16.9], [179.9, -17.1]]],
            [[[-180.0, -17.1], [-179.9, -17.1], [-179.9, -16.9], [-180.0, -16.9], [-180.0, -17.1]]],
        ],
    }
    through = {"type": "Polygon", "coordinates": [[[179.9, -17.1], [-179.9, -17.1], [-179.9, -16.9], [179.9, -16.9], [179.9, -17.1]]]}
    for lon in (180.0, -180.0, 179.999, -179.999):
        signed = drawn(cut).signed_m(lon, -17.0)
        assert signed == pytest.approx(drawn(through).signed_m(lon, -17.0)) == pytest.approx(-10_550, rel=0.02), "no border in the middle"
    assert drawn(cut).spans(179.95, -17.0, -179.85, -17.0) == [(0.0, pytest.approx(0.75))]
    assert drawn(through).signed_m(0.0, -17.0) > 1_000_000


def test_past_the_end_of_a_corridor_is_not_beside_it() -> None:
    line = [list(moved(3.05, 36.75, x, 0.0)) for x in (0, 500, 1_000)]
    corridor = drawn({"type": "LineString", "coordinates": line, "halfWidthM": 50})
    assert isinstance(corridor, Corridor)
    assert corridor.is_past_end(*moved(3.05, 36.75, 1_200, 30)) and corridor.is_past_end(*moved(3.05, 36.75, -80, 0))
    assert not corridor.is_past_end(*moved(3.05, 36.75, 900, 200))


SQUARE = [[3.0, 36.0], [3.01, 36.0], [3.01, 36.01], [3.0, 36.01], [3.0, 36.0]]


@pytest.mark.parametrize(
    ("drawing", "pointer", "code"),
    [
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}, "/coordinates/0", "SELF_CROSSING"),
        ({"type": "Polygon", "coordinates": [SQUARE, [[4, 36], [4.1, 36], [4.1, 36.1], [4, 36]]]}, "/coordinates", "HOLE_OUTSIDE"),
        ({"type": "Polygon", "coordinates": [SQUARE[:-1]]}, "/coordinates/0", "RING_NOT_CLOSED"),
        ({"type": "Polygon", "coordinates": []}, "/coordinates", "EMPTY"),
        ({"type": "Polygon", "coordinates": [[[3, 36], [3, 36], [3, 36], [3, 36]]]}, "/coordinates", "EMPTY"),
        ({"type": "Polygon", "coordinates": [[[3, 36], [3.1, 36], [3.1, 36.00001], [3, 36]]]}, "/coordinates", "TOO_SMALL"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [40, 0], [40, 30], [0, 30], [0, 0]]]}, "/coordinates", "TOO_LARGE"),
        (
            {"type": "Polygon", "coordinates": [[*([[3, 36]] * 1_000), *([[3.1, 36.1]] * 1_001), [3, 36]]]},
            "/coordinates",
            "TOO_MANY_VERTICES",
        ),
        ({"type": "Polygon", "coordinates": [[[0, 80], [120, 80], [240, 80], [360, 80]]]}, "/coordinates/0", "AROUND_POLE"),
        ({"type": "Polygon", "coordinates": [[[3, 36], [3.1, "x"], [3.1, 36.1], [3, 36]]]}, "/coordinates/0/1", "NOT_A_POSITION"),
        ({"type": "Polygon", "coordinates": [[[3, 36], [36, 300], [3.1, 36.1], [3, 36]]]}, "/coordinates/0/1", "RANGE"),
        ({"type": "Circle", "coordinates": [3, 84.99], "radiusM": 5_000}, "/coordinates", "POLAR"),
        ({"type": "Circle", "coordinates": [3, 36]}, "/radiusM", "MISSING_FIELD"),
        ({"type": "Circle", "coordinates": [3, 36], "radiusM": 1}, "/radiusM", "TOO_SMALL"),
        ({"type": "Circle", "coordinates": [3, 36], "radiusM": 1e9}, "/radiusM", "TOO_LARGE"),
        ({"type": "Circle", "coordinates": [3, math.nan], "radiusM": 9}, "/coordinates", "NOT_A_POSITION"),
        ({"type": "LineString", "coordinates": [[3, 36], [3, 36]], "halfWidthM": 50}, "/coordinates", "EMPTY"),
        ({"type": "LineString", "coordinates": [[3, 36]], "halfWidthM": 50}, "/coordinates", "EMPTY"),
        ({"type": "LineString", "coordinates": [[3, 36], [3, 37]]}, "/halfWidthM", "MISSING_FIELD"),
        ({"type": "GeometryCollection"}, "/type", "UNKNOWN_TYPE"),
        ({"type": "Polygon"}, "/coordinates", "MISSING_FIELD"),
    ],
    ids=lambda value: str(value)[:40] if not isinstance(value, dict) else value["type"],
)
def test_what_is_no_area_is_refused_with_its_place_and_why(drawing: dict[str, Any], pointer: str, code: str) -> None:
    with pytest.raises(BadDrawing) as refused:
        drawn(drawing)
    fault = refused.value.faults[0]
    assert (fault.pointer, fault.code) == (pointer, code) and fault.detail


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), home=st.sampled_from(HOMES))
def test_the_grid_misses_no_area_that_a_way_touches(seed: int, home: tuple[float, float]) -> None:
    chance = random.Random(seed)
    areas = [some_area(chance, moved(*home, chance.gauss(0, 4_000), chance.gauss(0, 4_000)))[0] for _ in range(25)]
    grid = Boxes((piece, number) for number, area in enumerate(areas) for piece in pieces(area))
    for _ in range(20):
        lon, lat = moved(*home, chance.gauss(0, 5_000), chance.gauss(0, 5_000))
        to_lon, to_lat = moved(lon, lat, chance.gauss(0, 600), chance.gauss(0, 600))
        to_lon = near_lon(to_lon, lon)
        found = grid.meeting(min(lon, to_lon), min(lat, to_lat), max(lon, to_lon), max(lat, to_lat))
        assert len(found) == len(set(found))
        touched = {number for number, area in enumerate(areas) if area.signed_m(lon, lat) <= 0.0 or area.spans(lon, lat, to_lon, to_lat)}
        assert touched <= set(found)
