"""From what people draw to an area: GeoJSON geometry, checked whole, every fault with its place and a code.

Taken: Polygon and MultiPolygon (RFC 7946, 3.1.6 and 3.1.7), LineString with a half width (a corridor), Circle (a Point with a radius).
Longitude first, degrees; a third number, the height, is left aside. An edge goes the short way round, so an area over the 180th meridian may
be drawn through it (179.9, -179.9 or 179.9, 180.1) or be cut at it as the RFC has it: parts that touch there become one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import shapely

from geo.coords import metres_per_degree, wrap_lon
from geo.fence import Area, Circle, Corridor, Point, Polygon, near_lon

VERTICES_MAX: Final = 2_000  # of one fence, all rings together
RINGS_MAX: Final = 100
RADIUS_MIN_M, RADIUS_MAX_M = 5.0, 100_000.0
HALF_WIDTH_MIN_M, HALF_WIDTH_MAX_M = 5.0, 5_000.0
ACROSS_MAX_M: Final = 500_000.0  # from edge to edge of its box: beyond, straight on the map is no longer straight on the ground
POLAR_DEG: Final = 85.0  # beyond, a degree of longitude changes by a tenth in a kilometre
DEPTH_MIN_M: Final = 2.0  # a polygon that is nowhere wider than twice this is a line

EMPTY, TOO_MANY_VERTICES, TOO_LARGE, TOO_SMALL, POLAR, AROUND_POLE, RANGE = (
    "EMPTY", "TOO_MANY_VERTICES", "TOO_LARGE", "TOO_SMALL", "POLAR", "AROUND_POLE", "RANGE",
)  # fmt: skip
RING_NOT_CLOSED, SELF_CROSSING, HOLE_OUTSIDE, NOT_VALID, NOT_A_POSITION, UNKNOWN_TYPE, MISSING_FIELD = (
    "RING_NOT_CLOSED", "SELF_CROSSING", "HOLE_OUTSIDE", "NOT_VALID", "NOT_A_POSITION", "UNKNOWN_TYPE", "MISSING_FIELD",
)  # fmt: skip


class Fault(NamedTuple):
    """One thing that is wrong: where in the drawing (a JSON pointer), a code, and words for people."""

    pointer: str
    code: str
    detail: str


class BadDrawing(ValueError):
    """The drawing is no area. `faults`: at least one."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("; ".join(f"{fault.pointer or '/'}: {fault.detail}" for fault in faults))
        self.faults = faults


def drawn(geometry: Mapping[str, Any], depth_m: float | None = None) -> Area:
    """The area of a GeoJSON geometry. Raises `BadDrawing`. With the `depth_m` of an earlier time nothing is checked: it was then."""
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind in ("Circle", "Point"):
        return _circle(coordinates, geometry.get("radiusM"))
    if kind == "LineString":
        return _corridor(coordinates, geometry.get("halfWidthM"))
    if kind in ("Polygon", "MultiPolygon"):
        single = kind == "Polygon"
        parts = _listed([coordinates] if single else coordinates, "" if single else "/coordinates", 1, "polygons")
        return _polygon(parts, "/coordinates" if single else None, depth_m)
    raise BadDrawing(
        Fault("/type", UNKNOWN_TYPE, "type is Circle, Point (with radiusM), Polygon, MultiPolygon or LineString (with halfWidthM)")
    )


def _circle(coordinates: Any, radius: Any) -> Circle:
    lon, lat = _position(coordinates, "/coordinates")
    radius_m = _metres(radius, "/radiusM", RADIUS_MIN_M, RADIUS_MAX_M)
    circle = Circle(wrap_lon(lon), lat, radius_m)
    _not_polar(circle.south, circle.north, "/coordinates")
    return circle


def _corridor(coordinates: Any, half_width: Any) -> Corridor:
    places = [_position(one, f"/coordinates/{n}") for n, one in enumerate(_listed(coordinates, "/coordinates", 2, "positions"))]
    _not_too_many(len(places))
    half_width_m = _metres(half_width, "/halfWidthM", HALF_WIDTH_MIN_M, HALF_WIDTH_MAX_M)
    line = _short_way(places)
    if len(set(line)) < 2:
        raise BadDrawing(Fault("/coordinates", EMPTY, "all points of the line are one"))
    _not_large(line, "/coordinates")
    corridor = Corridor(line, half_width_m)
    _not_polar(corridor.south, corridor.north, "/coordinates")
    return corridor


def _polygon(parts: Sequence[Any], only: str | None, depth_m: float | None) -> Polygon:
    polygons: list[list[list[Point]]] = []
    mid: float | None = None
    count = rings = 0
    for number, part in enumerate(parts):
        at = only if only is not None else f"/coordinates/{number}"
        polygon = []
        for ring_number, ring in enumerate(_listed(part, at, 1, "rings")):
            polygon.append(_ring(ring, f"{at}/{ring_number}", mid))
            count += len(polygon[-1])
            rings += 1
            if mid is None:
                mid = polygon[0][0][0]
            if rings > RINGS_MAX:
                raise BadDrawing(Fault("/coordinates", TOO_MANY_VERTICES, f"a fence has at most {RINGS_MAX} rings"))
        polygons.append(polygon)
    _not_too_many(count)
    everywhere = [place for polygon in polygons for ring in polygon for place in ring]
    _not_polar(min(lat for _, lat in everywhere), max(lat for _, lat in everywhere), "/coordinates")
    _not_large(everywhere, "/coordinates")
    if depth_m is None:
        for number, polygon in enumerate(polygons):
            _not_crossing(polygon, only if only is not None else f"/coordinates/{number}")
    if len(polygons) > 1:  # a common side (of parts cut at the 180th meridian) is no border
        polygons = _joined(polygons)
    if depth_m is None:
        depth_m = max(_depth_m(polygon) for polygon in polygons)
        if depth_m < DEPTH_MIN_M:
            raise BadDrawing(Fault("/coordinates", TOO_SMALL, f"it is nowhere wider than {2 * depth_m:.1f} m: draw a line with halfWidthM"))
    area = Polygon([ring for polygon in polygons for ring in polygon], depth_m)
    turn = wrap_lon(area.west) - area.west
    return area if not turn else Polygon([[(lon + turn, lat) for lon, lat in ring] for polygon in polygons for ring in polygon], depth_m)


def _ring(ring: Any, at: str, mid: float | None) -> list[Point]:
    places = [_position(one, f"{at}/{n}") for n, one in enumerate(_listed(ring, at, 4, "positions"))]
    if len(places) > VERTICES_MAX:
        _not_too_many(len(places))
    first, last = places[0], places[-1]
    if first[1] != last[1] or wrap_lon(first[0] - last[0]) != 0.0:
        raise BadDrawing(Fault(at, RING_NOT_CLOSED, "the last position of a ring is its first once more (RFC 7946, 3.1.6)"))
    line = _short_way(places, mid)
    if abs(line[-1][0] - line[0][0]) > 1.0:
        raise BadDrawing(Fault(at, AROUND_POLE, "the ring goes round a pole, or round the whole earth: no such fence can be measured"))
    line[-1] = line[0]
    return line


def _short_way(places: Sequence[Point], mid: float | None = None) -> list[Point]:
    """The same places with every longitude in the turn of the one before; the first in that of `mid`."""
    lon = near_lon(places[0][0], mid) if mid is not None else wrap_lon(places[0][0])
    line = []
    for place_lon, lat in places:
        lon = near_lon(place_lon, lon)
        line.append((lon, lat))
    return line


def _joined(polygons: list[list[list[Point]]]) -> list[list[list[Point]]]:
    whole = shapely.unary_union([shapely.Polygon(polygon[0], polygon[1:]) for polygon in polygons])
    return [
        [[(float(x), float(y)) for x, y in ring.coords] for ring in (part.exterior, *part.interiors)]
        for part in getattr(whole, "geoms", [whole])
    ]


def _not_crossing(polygon: list[list[Point]], at: str) -> None:
    """Raises `BadDrawing` with the place on the map where rings meet that must not."""
    made = shapely.Polygon(polygon[0], polygon[1:])
    if made.is_valid and made.area > 0.0:
        return
    if len(set(polygon[0])) < 3 or made.is_valid:
        raise BadDrawing(Fault(at, EMPTY, "it encloses nothing"))
    reason, _, place = shapely.is_valid_reason(made).partition("[")
    code = SELF_CROSSING if reason.startswith(("Self", "Ring Self")) else HOLE_OUTSIDE if reason.startswith("Hole") else NOT_VALID
    for number, ring in enumerate(polygon):  # which ring, where one is enough to see it
        if not shapely.LinearRing(ring).is_simple:
            at = f"{at}/{number}"
            break
    where = place.rstrip("]").replace(" ", ", ")
    raise BadDrawing(Fault(at, code, f"{reason} at longitude, latitude {where}"))


def _depth_m(polygon: list[list[Point]]) -> float:
    """Radius of the largest circle inside."""
    lats = [lat for _, lat in polygon[0]]
    per_lon, per_lat = metres_per_degree((min(lats) + max(lats)) * 0.5)
    lon0, lat0 = polygon[0][0]
    shell, *holes = _flattened(polygon, lon0, lat0, per_lon, per_lat)
    flat = shapely.Polygon(shell, holes)
    return float(shapely.maximum_inscribed_circle(flat).length)


def _flattened(rings: list[list[Point]], lon0: float, lat0: float, per_lon: float, per_lat: float) -> list[list[Point]]:
    return [[((lon - lon0) * per_lon, (lat - lat0) * per_lat) for lon, lat in ring] for ring in rings]


def _listed(value: Any, at: str, least: int, of: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise BadDrawing(Fault(at or "/coordinates", MISSING_FIELD if value is None else NOT_VALID, f"an array of {of} is wanted here"))
    if len(value) < least:
        raise BadDrawing(Fault(at or "/coordinates", EMPTY, f"at least {least} {of} are wanted here"))
    return value


def _position(value: Any, at: str) -> Point:
    if (
        not isinstance(value, list | tuple)
        or len(value) not in (2, 3)
        or not all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in value)
    ):
        raise BadDrawing(Fault(at, NOT_A_POSITION, "a position is [longitude, latitude] in degrees"))
    lon, lat = float(value[0]), float(value[1])
    if not (-360.0 <= lon <= 360.0 and -90.0 <= lat <= 90.0):
        raise BadDrawing(Fault(at, RANGE, f"no such place: longitude {lon:g}, latitude {lat:g} (longitude comes first)"))
    return lon, lat


def _metres(value: Any, at: str, least: float, most: float) -> float:
    if value is None:
        raise BadDrawing(Fault(at, MISSING_FIELD, "how many metres?"))
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise BadDrawing(Fault(at, NOT_VALID, "a number of metres is wanted"))
    if not least <= value <= most:
        raise BadDrawing(Fault(at, TOO_SMALL if value < least else TOO_LARGE, f"from {least:g} to {most:g} metres"))
    return float(value)


def _not_too_many(count: int) -> None:
    if count > VERTICES_MAX:
        raise BadDrawing(Fault("/coordinates", TOO_MANY_VERTICES, f"a fence has at most {VERTICES_MAX} positions, this one {count}"))


def _not_polar(south: float, north: float, at: str) -> None:
    if south < -POLAR_DEG or north > POLAR_DEG:
        raise BadDrawing(Fault(at, POLAR, f"beyond {POLAR_DEG:g} degrees of latitude no fence can be measured rightly"))


def _not_large(places: Sequence[Point], at: str) -> None:
    lons, lats = [lon for lon, _ in places], [lat for _, lat in places]
    widest = 0.0 if min(lats) < 0.0 < max(lats) else min(abs(min(lats)), abs(max(lats)))
    per_lon, per_lat = metres_per_degree(widest)
    across = max((max(lons) - min(lons)) * per_lon, (max(lats) - min(lats)) * per_lat)
    if across > ACROSS_MAX_M:
        raise BadDrawing(Fault(at, TOO_LARGE, f"{across / 1000:,.0f} km across; at most {ACROSS_MAX_M / 1000:,.0f} km"))
