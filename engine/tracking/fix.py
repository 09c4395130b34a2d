"""Fix: one GPS reading in the product's one normal form, and the screens, which accept it or say the one reason why not.

Units: UTC milliseconds, degrees (WGS 84), metres, metres a second, degrees clockwise from north. A device's own units end in `ingest/wire.py`.

Two screens: `screen_at_door` needs nothing but the fix and the time, so the device hears of it in the answer; `screen` needs what the vehicle
did before and runs inside the tracker, in time order.
"""

from __future__ import annotations

import math

import msgspec

OK, LATE, DUPLICATE = "OK", "LATE", "DUPLICATE"
# known at once, at the door
RANGE, ZERO_ISLAND, ACCURACY, ABSURD_TIME = "RANGE", "ZERO_ISLAND", "ACCURACY", "ABSURD_TIME"
# known to the tracker
FUTURE, TELEPORT, FROZEN = "FUTURE", "TELEPORT", "FROZEN"

ACCURACY_MAX_M = 200.0  # past it the fix cannot tell one street from the next
ZERO_ISLAND_DEG = 0.001  # receivers without a position say 0,0 or a rounding of it; the real place is open sea
AHEAD_MAX_MS = 86_400_000  # a day: no time zone mistake is larger
BEHIND_MAX_MS = 2 * 365 * 86_400_000  # devices that lost their clock wake up in 1970, 1980 or 2000; backlogs are days old
WEEK_ROLLOVER_MS = 1024 * 7 * 86_400_000  # GPS counts weeks in ten bits (IS-GPS-200, 20.3.3.3.1.1)


class Fix(msgspec.Struct, frozen=True, array_like=True, gc=False, omit_defaults=False):
    """As it stands in the ingest stream `in:{area}`: msgpack, fields by position, so only append at the end."""

    bus_id: str
    fixed_at_ms: int  # when the receiver says it was there
    lat: float
    lon: float
    received_at_ms: int  # when we had it
    device_id: str
    source: str  # telemetry | osmand | owntracks | overland | traccar | socket | mqtt | replay
    accuracy_m: float | None = None  # None: the device did not say
    speed_mps: float | None = None
    bearing_deg: float | None = None
    seq: int | None = None  # the device's own counter
    trip_id: str | None = None  # GTFS trip_id inside the area's feed; None: the engine assigns
    start_date: str | None = None  # yyyymmdd service date; None: the engine finds it
    altitude_m: float | None = None
    ignition: bool | None = None
    door_open: bool | None = None
    passengers: int | None = None
    fuel_pct: float | None = None


def screen_at_door(fix: Fix, now_ms: int) -> Fix | str:
    """What is known at once. Answers the fix, with a GPS week rollover repaired and senseless speed, bearing and accuracy taken out,
    or one reason: RANGE, ZERO_ISLAND, ACCURACY, ABSURD_TIME. Doing it twice changes nothing."""
    lat, lon = fix.lat, fix.lon
    if not (-90.0 <= lat <= 90.0 and -180.0 <= lon <= 180.0):  # NaN and infinity fail this too
        return RANGE
    if -ZERO_ISLAND_DEG < lat < ZERO_ISLAND_DEG and -ZERO_ISLAND_DEG < lon < ZERO_ISLAND_DEG:
        return ZERO_ISLAND
    accuracy, speed, bearing = fix.accuracy_m, fix.speed_mps, fix.bearing_deg
    if accuracy is not None and accuracy > ACCURACY_MAX_M:
        return ACCURACY
    fixed_at_ms = repaired_time(fix.fixed_at_ms, now_ms)
    if fixed_at_ms is None:
        return ABSURD_TIME
    sane = (
        fixed_at_ms == fix.fixed_at_ms
        and (accuracy is None or accuracy >= 0.0)
        and (speed is None or 0.0 <= speed <= 100.0)
        and (bearing is None or 0.0 <= bearing <= 360.0)
    )
    if sane:
        return fix
    return msgspec.structs.replace(
        fix,
        fixed_at_ms=fixed_at_ms,
        accuracy_m=accuracy if accuracy is not None and accuracy >= 0.0 else None,
        speed_mps=speed if speed is not None and 0.0 <= speed <= 100.0 else None,
        bearing_deg=bearing % 360.0 if bearing is not None and math.isfinite(bearing) else None,
    )


def repaired_time(fixed_at_ms: int, now_ms: int) -> int | None:
    """The time itself where it can be true; moved on by one or two GPS week rollovers (1,024 weeks) where that makes it so; else None."""
    for rollovers in (0, 1, 2):
        at_ms = fixed_at_ms + rollovers * WEEK_ROLLOVER_MS
        if now_ms - BEHIND_MAX_MS <= at_ms <= now_ms + AHEAD_MAX_MS:
            return at_ms
    return None
