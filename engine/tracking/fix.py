"""Fix: one GPS reading in the product's one normal form, and the screens, which accept it or say the one reason why not.

Units: UTC milliseconds, degrees (WGS 84), metres, metres a second, degrees clockwise from north. A device's own units end in `ingest/wire.py`.

Two screens: `screen_at_door` needs nothing but the fix and the time, so the device hears of it in the answer; `screen` needs what the vehicle
did before and runs inside the tracker, in time order.
"""

from __future__ import annotations

import math
from functools import lru_cache

import msgspec

from geo.coords import metres_per_degree

OK, LATE, DUPLICATE = "OK", "LATE", "DUPLICATE"
# known at once, at the door
RANGE, ZERO_ISLAND, ACCURACY, ABSURD_TIME = "RANGE", "ZERO_ISLAND", "ACCURACY", "ABSURD_TIME"
# known to the tracker
FUTURE, TELEPORT, FROZEN = "FUTURE", "TELEPORT", "FROZEN"

ACCURACY_MAX_M = 200.0  # past it the fix cannot tell one street from the next
ZERO_ISLAND_DEG = 0.001  # receivers without a position say 0,0 or a rounding of it; the real place is open sea
AHEAD_MAX_MS = 86_400_000  # a day: no time zone mistake is larger
BEHIND_MAX_MS = 2 * 365 * 86_400_000  # devices that lost their clock wake up in 1970, 1980 or 2000; backlogs are days old
FUTURE_MAX_MS = 60_000  # ahead of receipt, after skew correction
SPEED_MAX_MPS = 45.0  # implied by two fixes; a coach drives 28
NOISE_M = 50.0  # of two fixes together, least: at one fix a second plain noise implies more than 45 m/s
AGREE_M, AGREE_MPS = 150.0, 15.0  # fixes far away confirm each other within this, and what a bus drives in between
FROZEN_FIXES, FROZEN_MS, FROZEN_MPS = 5, 10_000, 3.0  # the same spot to 1e-6 degrees for so long while the device reports this speed
DRIFT_S = 10.0  # time constant of the velocity: long enough to average noise of 20 m, short enough for a bus stop
TURN_MPS = 3.0  # an own bearing is believed above this
SKEW_MIN_MS = 5_000  # smaller skews are transport delay
SKEW_FIXES, SKEW_RANK = 50, 3  # the third smallest of fifty is their lower 5th percentile
SKEW_STEP_MS = 500  # fixes received closer than this are one burst: a backlog says nothing of the clock
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


class ClockSkew(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far one device's clock is off: the lower 5th percentile of (received - fixed) over 50 live fixes, block by block.

    The percentile, because delays only add; live, because a backlog's delays are no clock. A block counts where its fixes were received
    in about the time in which they were made.
    """

    device_id: str
    skew_ms: int = 0  # add this to the device's times; 0 up to SKEW_MIN_MS
    count: int = 0  # in the running block
    least: tuple[int, ...] = ()  # its smallest delays, ascending
    first_received_ms: int = 0
    first_fixed_ms: int = 0
    last_received_ms: int = 0


def with_delay(clock: ClockSkew, fixed_at_ms: int, received_at_ms: int) -> ClockSkew:
    """The clock after one more fix, in order of receipt, times as the device said them."""
    if clock.count and received_at_ms - clock.last_received_ms < SKEW_STEP_MS:
        return clock
    delay = received_at_ms - fixed_at_ms
    if not clock.count:
        return ClockSkew(clock.device_id, clock.skew_ms, 1, (delay,), received_at_ms, fixed_at_ms, received_at_ms)
    least = clock.least
    if len(least) < SKEW_RANK or delay < least[-1]:
        least = tuple(sorted((*least, delay))[:SKEW_RANK])
    count = clock.count + 1
    if count < SKEW_FIXES:
        return ClockSkew(clock.device_id, clock.skew_ms, count, least, clock.first_received_ms, clock.first_fixed_ms, received_at_ms)
    received, fixed = received_at_ms - clock.first_received_ms, fixed_at_ms - clock.first_fixed_ms
    live = abs(received - fixed) <= 10_000 + received // 5
    skew = (least[-1] if abs(least[-1]) > SKEW_MIN_MS else 0) if live else clock.skew_ms
    return ClockSkew(clock.device_id, skew)


class Motion(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The last accepted fix of a vehicle and what it says about the next."""

    fixed_at_ms: int
    lat: float
    lon: float
    accuracy_m: float | None
    speed_mps: float  # the device's, else our own
    bearing_deg: float | None  # the device's, else our own; None: standing or unknown
    east_mps: float = 0.0  # own velocity, averaged over DRIFT_S
    north_mps: float = 0.0
    driven_m: float = 0.0  # since the fix before, by speed: noise of a parked bus adds nothing
    gap_ms: int = 0  # since the fix before; 0: none, or a jump lies between
    same: int = 1  # fixes in a row on this very spot
    same_since_ms: int = 0
    far: tuple[tuple[int, float, float], ...] = ()  # held back as teleports: (fixed_at_ms, lat, lon)


def screen(motion: Motion | None, fix: Fix) -> tuple[Motion, str]:
    """The next fix of a vehicle in time order, after the door's screen: (motion, OK), or (motion, TELEPORT or FROZEN) where it is not used.

    `gap_ms` of an accepted motion is 0 where nothing joins it to the one before: the first fix, and the one that ends a teleport.
    """
    if motion is None:
        return _set_down(fix), OK
    gap_ms = fix.fixed_at_ms - motion.fixed_at_ms
    dt_s = max(gap_ms, 1_000) / 1000.0  # two fixes of one instant: a second, so that noise is not speed
    per_lon, per_lat = _scale(round(fix.lat * 100.0))
    east, north = _lon_step(fix.lon - motion.lon) * per_lon, (fix.lat - motion.lat) * per_lat
    moved_m = math.hypot(east, north)
    noise_m = max(NOISE_M, (fix.accuracy_m or 0.0) + (motion.accuracy_m or 0.0))
    if moved_m - noise_m > SPEED_MAX_MPS * dt_s:
        return _far(motion, fix)
    same, same_since_ms = 1, fix.fixed_at_ms
    if abs(fix.lat - motion.lat) < 1e-6 and abs(fix.lon - motion.lon) < 1e-6:
        same, same_since_ms = motion.same + 1, motion.same_since_ms
        told = fix.speed_mps
        if told is not None and told > FROZEN_MPS and same >= FROZEN_FIXES and fix.fixed_at_ms - same_since_ms >= FROZEN_MS:
            return msgspec.structs.replace(motion, same=same, far=()), FROZEN
    weight = 1.0 - math.exp(-dt_s / DRIFT_S)
    east_mps = motion.east_mps + weight * (east / dt_s - motion.east_mps)
    north_mps = motion.north_mps + weight * (north / dt_s - motion.north_mps)
    own = math.hypot(east_mps, north_mps)
    speed = fix.speed_mps if fix.speed_mps is not None else own
    bearing = fix.bearing_deg
    if bearing is None and own > TURN_MPS:
        bearing = math.degrees(math.atan2(east_mps, north_mps)) % 360.0
    driven = min(moved_m, 0.5 * (speed + motion.speed_mps) * dt_s)
    return (
        Motion(
            fix.fixed_at_ms, fix.lat, fix.lon, fix.accuracy_m, speed, bearing, east_mps, north_mps, driven, max(gap_ms, 1),
            same, same_since_ms,
        ),
        OK,
    )  # fmt: skip


def _set_down(fix: Fix) -> Motion:
    return Motion(fix.fixed_at_ms, fix.lat, fix.lon, fix.accuracy_m, fix.speed_mps or 0.0, fix.bearing_deg, same_since_ms=fix.fixed_at_ms)


def _far(motion: Motion, fix: Fix) -> tuple[Motion, str]:
    """Too far to have been driven: held, until two further fixes agree with it."""
    far = motion.far
    if far:
        at_ms, lat, lon = far[-1]
        per_lon, per_lat = metres_per_degree(lat)
        apart = math.hypot(_lon_step(fix.lon - lon) * per_lon, (fix.lat - lat) * per_lat)
        if apart > AGREE_M + AGREE_MPS * (fix.fixed_at_ms - at_ms) / 1000.0:
            far = ()
    if len(far) == 2:
        return _set_down(fix), OK
    return msgspec.structs.replace(motion, far=(*far, (fix.fixed_at_ms, fix.lat, fix.lon))), TELEPORT


@lru_cache(maxsize=4096)
def _scale(hundredths: int) -> tuple[float, float]:
    """`metres_per_degree` of a latitude rounded to 1 km: within 0.02 % up to 60 degrees, for a tenth of the price."""
    return metres_per_degree(hundredths / 100.0)


def _lon_step(degrees: float) -> float:
    return degrees if -180.0 <= degrees < 180.0 else (degrees + 180.0) % 360.0 - 180.0
