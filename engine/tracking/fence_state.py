"""What is remembered of a vehicle and a fence between two fixes, and whether it stands. Frozen; kept with the vehicle's state, so fields are
only ever appended. The table itself is `fences.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from engine.tracking.episodes import Sight
from geo.coords import distance_m
from geo.fence import near_lon

AFAR, OUT, IN = "AFAR", "OUT", "IN"
REST_MS, REST_FIXES = 120_000, 3  # standing for so long, in so many fixes, is standing
REST_M, REST_ACCURACY = 60.0, 5.0  # all within max(60 m, 5u) of their mean; two fixes beyond that end it, or one twice as far
REST_MEAN = 32  # fixes that the mean remembers


class Rest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where the vehicle has been about since a time: the mean of its fixes there."""

    lon: float
    lat: float
    since_ms: int
    fixes: int = 1
    away: bool = False  # the last one was a little too far

    def is_long(self, at_ms: int) -> bool:
        return self.fixes >= REST_FIXES and at_ms - self.since_ms >= REST_MS


class Touch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A way that has led inside and is not known to have come in: where it came from, how deep it led, when it went in and out."""

    lon: float
    lat: float
    deepest_m: float
    in_ms: int
    out_ms: int = 0
    stride: bool = True  # every step across the border was longer than the fence is wide


class FenceState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a vehicle stands towards one fence. A fence that it is outside of and has not touched has no state, but one to stay in."""

    fence_id: str
    version: int
    phase: str = OUT
    kind: str = ""  # of the open incident; empty: none is open
    severity: str = ""  # with which it was opened
    since_ms: int = 0  # of the open incident, else of being inside
    count: int = 0  # fixes in a row that speak for a change
    border_ms: int = 0  # on the other side than the phase says since; 0: it is not
    farthest_m: float = 0.0  # outside, of the open incident
    found: bool = False  # it was inside when the fence or the vehicle came up: nobody saw it come
    touch: Touch | None = None
    rest: Rest | None = None
    awake: tuple[float, float, float] | None = None  # (lon, lat, metres): nothing can change nearer to that place; None: look every time
    seen_ms: int = 0  # the last fix that was looked at


class Way(NamedTuple):
    """The way to one fix from the one before, as the table sees it. `from_lon` None: nothing joins them."""

    sight: Sight
    at_ms: int
    lon: float
    lat: float
    u: float
    from_lon: float | None
    from_lat: float
    gap_ms: int
    length_m: float  # of the way

    def ms(self, share: float) -> int:
        return self.at_ms - round((1.0 - share) * self.gap_ms)


def rest_m(u: float) -> float:
    return max(REST_M, REST_ACCURACY * u)


def rest_next(rest: Rest | None, way: Way) -> tuple[Rest, float]:
    """Where it has been about since when, and how far from there this fix lies."""
    if rest is not None:
        away_m, most_m = distance_m(rest.lon, rest.lat, way.lon, way.lat), rest_m(way.u)
        if away_m <= most_m:
            weight = 1.0 / min(rest.fixes + 1, REST_MEAN)
            lon, lat = rest.lon + weight * (near_lon(way.lon, rest.lon) - rest.lon), rest.lat + weight * (way.lat - rest.lat)
            return Rest(lon, lat, rest.since_ms, rest.fixes + 1), away_m
        if away_m <= 2.0 * most_m and not rest.away and rest.is_long(way.at_ms):
            return Rest(rest.lon, rest.lat, rest.since_ms, rest.fixes, True), away_m
    return Rest(way.lon, way.lat, way.at_ms), 0.0
