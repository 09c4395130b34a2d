"""A trip's line, measured in metres along it.

Each segment has its own scale (WGS 84 at its middle latitude), so a shape of 300 km is as right at its end as at its start: one flat
projection of the whole would not be. Arc positions `along_m` run from 0 to `length_m`. All arrays are read-only and a shape never changes,
so tracker, estimator and pages may share it.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from geo.coords import metres_per_degree, wrap_lon

Floats = NDArray[np.float64]


class Shape:
    """Vertices in degrees and the arc position of each in metres.

    `lons`, `lats`, `cum_m` have one value per vertex (n >= 2; a single point is taken twice). Per segment i from vertex i to i + 1 (n - 1
    values): `east_m`, `north_m`, the segment as a vector; `per_lon`, `per_lat`, metres in a degree there; `seg_m`, its length;
    `bearings`, degrees clockwise from north. Segments of no length are allowed (feeds repeat points).
    """

    __slots__ = (
        "_cum",
        "_last",
        "bearings",
        "cum_m",
        "east_m",
        "lats",
        "length_m",
        "lons",
        "north_m",
        "per_lat",
        "per_lon",
        "seg_m",
        "shape_id",
    )

    def __init__(self, shape_id: str, lons: Floats, lats: Floats) -> None:
        """Raises ValueError where the arrays are empty, of different length, or not finite."""
        lons, lats = np.array(lons, dtype=np.float64), np.array(lats, dtype=np.float64)
        if lons.ndim != 1 or lons.shape != lats.shape or len(lons) == 0:
            raise ValueError(
                f"shape {shape_id}: needs as many longitudes as latitudes, and at least one; got {lons.shape} and {lats.shape}"
            )
        if not (np.isfinite(lons).all() and np.isfinite(lats).all()):
            raise ValueError(f"shape {shape_id}: a coordinate is not a number")
        if len(lons) == 1:
            lons, lats = np.repeat(lons, 2), np.repeat(lats, 2)
        self.shape_id = shape_id
        self.lons, self.lats = lons, lats
        self.per_lon, self.per_lat = metres_per_degree((lats[:-1] + lats[1:]) * 0.5)
        self.east_m: Floats = wrap_lon(np.diff(lons)) * self.per_lon
        self.north_m: Floats = np.diff(lats) * self.per_lat
        self.seg_m: Floats = np.hypot(self.east_m, self.north_m)
        self.bearings: Floats = np.degrees(np.arctan2(self.east_m, self.north_m)) % 360.0
        self.cum_m: Floats = np.concatenate(([0.0], np.cumsum(self.seg_m)))
        self.length_m = float(self.cum_m[-1])
        moving = np.flatnonzero(self.seg_m)
        self._last = int(moving[-1]) if len(moving) else 0  # the last segment that has a direction
        self._cum: list[float] = self.cum_m.tolist()  # bisect on a list is five times faster than searchsorted on one value
        for array in (
            self.lons,
            self.lats,
            self.per_lon,
            self.per_lat,
            self.east_m,
            self.north_m,
            self.seg_m,
            self.bearings,
            self.cum_m,
        ):
            array.setflags(write=False)

    def __reduce__(self) -> tuple[type[Shape], tuple[str, Floats, Floats]]:
        return Shape, (self.shape_id, self.lons, self.lats)

    def __repr__(self) -> str:
        return f"Shape({self.shape_id!r}, {len(self.lons)} points, {self.length_m:.0f} m)"

    def segment_at(self, along_m: float) -> int:
        """The segment that holds the arc position: of two that meet there the later one; positions outside are taken to the ends."""
        index = bisect_right(self._cum, along_m) - 1
        return max(0, min(index, self._last))

    def position(self, along_m: float) -> tuple[float, float, float]:
        """(lon, lat, bearing) at an arc position; positions outside the shape are taken to its ends."""
        i = self.segment_at(along_m)
        length = float(self.seg_m[i])
        share = min(1.0, max(0.0, (along_m - self._cum[i]) / length)) if length > 0 else 0.0
        lon = float(self.lons[i]) + share * float(self.east_m[i]) / float(self.per_lon[i])
        lat = float(self.lats[i]) + share * float(self.north_m[i]) / float(self.per_lat[i])
        return wrap_lon(lon) if abs(lon) >= 180 else lon, lat, float(self.bearings[i])

    def positions(self, along_m: Floats) -> tuple[Floats, Floats, Floats]:
        """`position` of many arc positions at once: three arrays of the shape of `along_m`."""
        along = np.asarray(along_m, dtype=np.float64)
        index = np.clip(np.searchsorted(self.cum_m, along, side="right") - 1, 0, self._last)
        length = self.seg_m[index]
        share = np.clip((along - self.cum_m[index]) / np.where(length > 0, length, 1.0), 0.0, 1.0)
        lon = self.lons[index] + share * self.east_m[index] / self.per_lon[index]
        lat = self.lats[index] + share * self.north_m[index] / self.per_lat[index]
        return np.where(np.abs(lon) >= 180, wrap_lon(lon), lon), lat, self.bearings[index]

    def span(self, low_m: float, high_m: float) -> tuple[int, int]:
        """Half-open range of segments that touch the arcs [low_m, high_m]; never empty."""
        first = self.segment_at(low_m)
        return first, max(first, self.segment_at(high_m)) + 1

    def project(self, lon: float, lat: float, first: int = 0, end: int | None = None) -> tuple[Floats, Floats]:
        """(along_m, offset_m) of the point's foot on each of the segments [first, end): arrays of one value per segment.

        Exact for points within some kilometres of the segment, which is all that matching and placing stops asks for.
        """
        part = slice(first, len(self.seg_m) if end is None else end)
        east, north, length = self.east_m[part], self.north_m[part], self.seg_m[part]
        x = wrap_lon(lon - self.lons[:-1][part]) * self.per_lon[part]
        y = (lat - self.lats[:-1][part]) * self.per_lat[part]
        square = length * length
        share = np.clip((x * east + y * north) / np.where(square > 0, square, 1.0), 0.0, 1.0)
        return self.cum_m[:-1][part] + share * length, np.hypot(x - share * east, y - share * north)

    def nearest(self, lon: float, lat: float) -> tuple[float, float]:
        """(along_m, offset_m) of the nearest point of the whole line. On loops that may be the wrong arc: for matching see geo/match.py."""
        along, offset = self.project(lon, lat)
        index = int(np.argmin(offset))
        return float(along[index]), float(offset[index])

    def box(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) in degrees."""
        return float(self.lons.min()), float(self.lats.min()), float(self.lons.max()), float(self.lats.max())
