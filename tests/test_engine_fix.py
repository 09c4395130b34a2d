"""The screens: what a fix may be, and the one reason why not."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tracking.fix import (
    ABSURD_TIME,
    ACCURACY,
    FROZEN,
    OK,
    RANGE,
    TELEPORT,
    WEEK_ROLLOVER_MS,
    ZERO_ISLAND,
    ClockSkew,
    Fix,
    Motion,
    screen,
    screen_at_door,
    with_delay,
)
from geo.coords import moved

NOW = 1_772_435_000_000


def fix(at_ms: int = NOW, lat: float = 36.75, lon: float = 3.05, **more: object) -> Fix:
    return Fix("b1", at_ms, lat, lon, at_ms + 100, "d1", "telemetry", **more)  # type: ignore[arg-type]


def aside(at_ms: int, east_m: float, **more: object) -> Fix:
    lon, lat = moved(3.05, 36.75, east_m, 0.0)
    return fix(at_ms, lat, lon, **more)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (fix(lat=90.001), RANGE),
        (fix(lon=-180.5), RANGE),
        (fix(lat=math.nan), RANGE),
        (fix(lon=math.inf), RANGE),
        (fix(lat=0.0, lon=0.0), ZERO_ISLAND),
        (fix(lat=0.0004, lon=-0.0004), ZERO_ISLAND),
        (fix(accuracy_m=201.0), ACCURACY),
        (fix(at_ms=NOW + 86_400_001), ABSURD_TIME),
        (fix(at_ms=0), ABSURD_TIME),
        (fix(at_ms=-5), ABSURD_TIME),
    ],
)
def test_the_door_says_the_one_reason(bad: Fix, reason: str) -> None:
    assert screen_at_door(bad, NOW) == reason


def test_a_receiver_that_lives_1024_weeks_ago_is_brought_home() -> None:
    repaired = screen_at_door(fix(at_ms=NOW - WEEK_ROLLOVER_MS), NOW)
    assert isinstance(repaired, Fix)
    assert repaired.fixed_at_ms == NOW
    assert screen_at_door(repaired, NOW) is repaired


def test_senseless_extras_are_dropped_and_the_place_is_kept() -> None:
    clean = screen_at_door(fix(accuracy_m=-1.0, speed_mps=-1.0, bearing_deg=400.0), NOW)
    assert isinstance(clean, Fix)
    assert (clean.accuracy_m, clean.speed_mps, clean.bearing_deg) == (None, None, 40.0)
    assert (clean.lat, clean.lon) == (36.75, 3.05)


@given(
    st.builds(
        Fix,
        bus_id=st.just("b"),
        fixed_at_ms=st.integers(-(2**40), 2**42),
        lat=st.floats(),
        lon=st.floats(),
        received_at_ms=st.just(NOW),
        device_id=st.just("d"),
        source=st.just("telemetry"),
        accuracy_m=st.none() | st.floats(),
        speed_mps=st.none() | st.floats(),
        bearing_deg=st.none() | st.floats(),
    )
)
def test_whatever_passes_the_door_is_fit_to_be_folded(any_fix: Fix) -> None:
    answer = screen_at_door(any_fix, NOW)
    if isinstance(answer, str):
        return
    assert screen_at_door(answer, NOW) is answer
    motion, verdict = screen(None, answer)
    assert verdict == OK
    assert math.isfinite(motion.speed_mps) and (motion.bearing_deg is None or 0.0 <= motion.bearing_deg <= 360.0)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(answer), type=Fix) == answer


def folded(*fixes: Fix) -> tuple[Motion, list[str]]:
    motion: Motion | None = None
    verdicts = []
    for each in fixes:
        motion, verdict = screen(motion, each)
        verdicts.append(verdict)
    assert motion is not None
    return motion, verdicts


def test_one_wild_fix_is_held_back_and_the_bus_stays_where_it_was() -> None:
    motion, verdicts = folded(aside(NOW, 0), aside(NOW + 1_000, 5_000), aside(NOW + 2_000, 16))
    assert verdicts == [OK, TELEPORT, OK]
    assert motion.far == () and motion.gap_ms == 2_000


def test_three_fixes_that_agree_far_away_are_believed_and_nothing_joins_them_to_before() -> None:
    motion, verdicts = folded(*(aside(NOW + k * 1_000, 0 if k == 0 else 5_000 + 8 * k) for k in range(5)))
    assert verdicts == [OK, TELEPORT, TELEPORT, OK, OK]
    assert motion.gap_ms == 1_000
    assert folded(*(aside(NOW + k * 1_000, 0 if k == 0 else 5_000 + 8 * k) for k in range(4)))[0].gap_ms == 0


def test_wild_fixes_that_disagree_are_never_believed() -> None:
    _, verdicts = folded(aside(NOW, 0), *(aside(NOW + k * 1_000, 5_000 * k) for k in range(1, 7)))
    assert verdicts == [OK] + [TELEPORT] * 6


def test_noise_at_one_fix_a_second_is_no_teleport() -> None:
    _, verdicts = folded(*(aside(NOW + k * 1_000, 40 * (k % 2)) for k in range(10)))
    assert set(verdicts) == {OK}


def test_a_frozen_receiver_that_reports_speed_is_found_out_and_a_parked_bus_is_not() -> None:
    _, moving = folded(*(fix(NOW + k * 3_000, speed_mps=9.0) for k in range(8)))
    assert moving == [OK] * 4 + [FROZEN] * 4
    _, parked = folded(*(fix(NOW + k * 3_000, speed_mps=0.0) for k in range(50)))
    assert set(parked) == {OK}
    _, silent = folded(*(fix(NOW + k * 3_000) for k in range(50)))
    assert set(silent) == {OK}


def test_a_frozen_receiver_that_thaws_is_believed_again() -> None:
    fixes = [fix(NOW + k * 3_000, speed_mps=9.0) for k in range(8)] + [aside(NOW + 24_000, 200, speed_mps=9.0)]
    assert folded(*fixes)[1][-1] == OK


def test_speed_and_bearing_are_our_own_where_the_device_says_none() -> None:
    motion, _ = folded(*(aside(NOW + k * 1_000, 8.0 * k) for k in range(60)))
    assert motion.speed_mps == pytest.approx(8.0, abs=0.2)
    assert motion.bearing_deg == pytest.approx(90.0, abs=1.0)


def clock_after(lags_ms: list[int], every_ms: int = 1_000, received_every_ms: int | None = None) -> ClockSkew:
    clock = ClockSkew("d1")
    for k, lag in enumerate(lags_ms):
        at = NOW + k * every_ms
        clock = with_delay(clock, at, at + lag if received_every_ms is None else NOW + 7_200_000 + k * received_every_ms)
    return clock


def test_a_clock_that_is_two_minutes_slow_is_found_after_fifty_live_fixes() -> None:
    lags = [120_000 + (k * 37) % 400 for k in range(50)]
    assert clock_after(lags[:49]).skew_ms == 0
    assert clock_after(lags).skew_ms == pytest.approx(120_000, abs=200)


def test_delay_alone_is_no_skew() -> None:
    assert clock_after([200 if k % 10 == 0 else 20_000 for k in range(50)], every_ms=30_000).skew_ms == 0


def test_a_backlog_says_nothing_of_the_clock() -> None:
    assert clock_after([0] * 60, every_ms=1_000, received_every_ms=20).skew_ms == 0
    assert clock_after([0] * 60, every_ms=60_000, received_every_ms=1_500).skew_ms == 0


def test_a_clock_that_was_put_right_is_believed_again() -> None:
    assert clock_after([120_000] * 50 + [300] * 50).skew_ms == 0
