"""How good published arrivals were: by hand, against the benchmark's own samples, and through a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from engine.clock import ManualClock, SystemClock
from engine.events import StopEvent, StopForecast, TripForecast
from engine.meter import Meter
from engine.settings import Settings
from engine.store.accuracy import AccuracyStore, RouteDay
from engine.store.postgres import Postgres
from engine.store.timescale import Batch, HistoryWriter
from engine.tracking.accuracy import ACTUAL, PREDICTED, BucketSums, Published, Tally
from engine.tracking.nights import Nights, due, span
from engine.tracking.plans import Plan
from engine.tracking.timetable import service_day_start_ms
from tests.small_world import feed

AREA, TIMETABLE = "demo", feed()
ARRIVED = {2: 225_000, 3: 450_000, 4: 900_000}  # ms after the start


def told(made_s: float, wrong_s: float, sequences: tuple[int, ...] = (2, 3, 4)) -> Published:
    """A sample that says every arrival `wrong_s` too early, give or take 20 s."""
    ahead = [s for s in sequences if ARRIVED[s] > made_s * 1000]
    middle = [round(ARRIVED[s] / 1000 - made_s - wrong_s) for s in ahead]
    return Published(round(made_s * 1000), ahead, [m - 20 for m in middle], middle, [m + 20 for m in middle])


def by(tally: Tally, horizon: str) -> dict[int, BucketSums]:
    return {one.from_s: one for one in tally.buckets() if one.horizon == horizon}


def test_fifty_seconds_late_is_in_every_window_and_outside_the_interval() -> None:
    tally = Tally()
    tally.add([told(made_s, 50) for made_s in range(0, 900, 60)], ARRIVED)
    found = by(tally, ACTUAL)
    assert sum(one.samples for one in found.values()) == 4 + 8 + 15
    for one in found.values():
        assert (one.missing, one.in_window, one.covered, one.early) == (0, one.samples, 0, 0)
        assert one.error_sum_s == one.size_sum_s == 50 * one.samples
        assert one.p50_s == one.p90_s == 50


def test_what_is_foretold_fifty_seconds_too_late_is_early_for_who_waits() -> None:
    tally = Tally()
    tally.add([told(made_s, -70) for made_s in range(0, 900, 60)], ARRIVED)
    found = by(tally, ACTUAL)
    assert [one.in_window for one in found.values()] == [0, 0, 0, found[600].samples]  # 10-15 min allow 90 s
    assert all(one.early == one.samples for one in found.values())
    assert sum(one.samples for one in by(tally, PREDICTED).values()) == sum(one.samples for one in found.values())


def test_a_stop_that_a_sample_leaves_out_counts_against_us() -> None:
    tally = Tally()
    tally.add([told(made_s, 0, (3, 4)) for made_s in range(0, 900, 60)], ARRIVED)
    assert sum(one.missing for one in by(tally, ACTUAL).values()) == 4
    assert sum(one.missing for one in by(tally, PREDICTED).values()) == 0


def test_minutes_in_which_nothing_was_published_count_against_us() -> None:
    told_at = [0, 60, 600, 660, 720, 780, 840]
    tally = Tally()
    tally.add([told(made_s, 0) for made_s in told_at], ARRIVED)
    # 120, 180, ... 540 s: stop 2 until 225 s, stop 3 until 450 s, stop 4 always
    assert sum(one.missing for one in tally.buckets()) == 2 + 6 + 8
    assert tally.samples == 4 + 8 + 15


def test_a_ride_of_which_nothing_was_said_is_missing_from_its_first_stop_on() -> None:
    tally = Tally()
    tally.add([], {3: 450_000, 4: 900_000}, began_ms=225_000)
    assert tally.samples == sum(one.missing for one in tally.buckets()) == 4 + 12
    silent = Tally()
    silent.add([told(0, 0)], {})
    assert silent.samples == 0


errors = st.lists(st.tuples(st.integers(0, 14), st.integers(-300, 300)), min_size=1, max_size=15, unique_by=lambda one: one[0])


@examples(max_examples=40, deadline=None)
@given(st.lists(errors, min_size=1, max_size=6), st.integers(0, 6))
def test_rides_may_be_added_up_in_any_grouping(rides: list[list[tuple[int, int]]], cut: int) -> None:
    whole, one, other = Tally(), Tally(), Tally()
    for number, ride in enumerate(rides):
        samples = [told(minute * 60, wrong) for minute, wrong in ride]
        whole.add(samples, ARRIVED)
        (one if number < cut else other).add(samples[::-1], ARRIVED)
    one.merge(other)
    assert one.buckets() == whole.buckets()
    sizes = [abs(wrong) for ride in rides for minute, wrong in ride if 0 < 900 - minute * 60 - wrong <= 180]
    near = by(whole, PREDICTED).get(0)
    if near is not None:
        mine = [abs(w) for ride in rides for m, w in ride for a in ARRIVED.values() if a > m * 60_000 and 0 < a / 1000 - m * 60 - w <= 180]
        assert len(mine) == near.samples
        assert near.p90_s == np.quantile(mine, 0.9, method="inverted_cdf")
        assert set(sizes) <= set(mine)


# ---------------------------------------------------------------------------------------------------------------- which days

TZ = ZoneInfo("America/New_York")


def at(day: date, hour: int) -> datetime:
    return datetime(day.year, day.month, day.day, hour, tzinfo=TZ)


def test_a_day_is_due_after_four_and_once_more_a_day_later() -> None:
    today = date(2026, 3, 9)
    sixth, seventh, eighth = (date(2026, 3, day) for day in (6, 7, 8))
    settled = {sixth: at(date(2026, 3, 8), 4), date(2026, 3, 5): at(date(2026, 3, 8), 4)}
    fresh = settled | {seventh: at(date(2026, 3, 8), 5)}
    assert due(today, 3, fresh, TZ, 5) == [date(2026, 3, 4)]
    assert due(today, 4, fresh, TZ, 5) == [seventh, eighth]
    assert due(today, 5, fresh | {seventh: at(today, 4), eighth: at(today, 4)}, TZ, 5) == []


def test_days_that_were_missed_are_caught_up_as_far_as_samples_are_kept() -> None:
    found = due(date(2026, 3, 9), 12, {}, TZ, 8)
    assert found == [date(2026, 3, 2) + timedelta(days=i) for i in range(7)]


# ---------------------------------------------------------------------------------------------------------------- in the database

YESTERDAY = (datetime.now(TIMETABLE.tz) - timedelta(days=1)).date()
START_MS = service_day_start_ms(TIMETABLE.tz, YESTERDAY) + 12 * 3_600_000


def forecast(made_s: int, wrong_s: int = 10, *, bus: str = "b1", sequences: tuple[int, ...] = (2, 3, 4), trip: str = "T0") -> TripForecast:
    made_ms = START_MS + made_s * 1000
    stops = []
    for sequence in sequences:
        middle = START_MS + ARRIVED[sequence] - wrong_s * 1000
        if ARRIVED[sequence] > made_s * 1000:
            stops.append(StopForecast(f"S{sequence}", sequence, middle - 20_000, middle, middle + 20_000, 0, "ESTIMATED"))
    stops.insert(0, StopForecast("S1", 1, None, None, None, None, "SKIPPED"))
    return TripForecast(bus, trip, f"{YESTERDAY:%Y%m%d}", "R", made_ms, tuple(stops))


def served(sequence: int, kind: str = "SERVED", *, bus: str = "b1", trip: str = "T0") -> StopEvent:
    at_ms = START_MS + {1: -30_000, **ARRIVED}[sequence]
    return StopEvent(
        f"{bus}-{trip}-{sequence}", bus, trip, f"{YESTERDAY:%Y%m%d}", "R", f"S{sequence}", sequence, at_ms, at_ms + 9_000, kind
    )


DAY = [forecast(made_s) for made_s in range(0, 900, 60)]
STOPS = [served(1), *(served(sequence) for sequence in ARRIVED)]


class OnePlan:
    def all(self) -> list[Plan]:
        return [Plan(AREA, "P", TIMETABLE)]


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(database_url=database_url, forecast_keep_days=3)


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[AccuracyStore]:
    postgres = await Postgres.connect(settings)
    yield AccuracyStore(postgres)
    await postgres.close()


async def write(settings: Settings, forecasts: list[TripForecast], stops: list[StopEvent], cursor: str | None, then: str) -> int:
    writer = HistoryWriter(settings)
    await writer.write(Batch(AREA, "out", cursor, then, events=[*stops], forecasts=forecasts), SystemClock().now_ms())
    outside = writer.outside
    await writer.close()
    return outside


async def ask(settings: Settings, statement: str) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(settings.database_url) as connection:
        return list(await (await connection.execute(statement)).fetchall())  # type: ignore[call-overload]


def nights(store: AccuracyStore, settings: Settings, meter: Meter | None = None) -> Nights:
    noon_ms = START_MS + 86_400_000  # of the day after: before four in the morning yesterday is not over
    return Nights(store, OnePlan(), clock=ManualClock(noon_ms), settings=settings, meter=meter or Meter())


async def kept(store: AccuracyStore) -> list[BucketSums]:
    since, until = YESTERDAY - timedelta(days=3), YESTERDAY
    days = await store.route_days([AREA], since, until, None, None, 10)
    found = await store.buckets(days)
    return [one for day in days for one in found[day]]


async def test_samples_are_kept_once_with_their_arrays(settings: Settings, store: AccuracyStore) -> None:
    gap = forecast(300, bus="b2", sequences=(2, 4))
    await write(settings, [*DAY, gap], [], None, "1-0")
    await write(settings, [*DAY, gap], [], "1-0", "2-0")
    rows = await ask(settings, "select bus_no, first_sequence, sequences, p50_s from telemetry.forecasts order by bus_no, made_at")
    assert len(rows) == len(DAY) + 1
    assert rows[0][1:] == (2, None, [215, 440, 890])
    assert rows[-1][1:] == (4, None, [590])
    sparse = forecast(0, bus="b3", sequences=(2, 4))
    await write(settings, [sparse], [], "2-0", "3-0")
    found = await store.published(AREA, sparse.start_date, ["T0"], *span(TIMETABLE.tz, YESTERDAY))
    assert [list(one.sequences) for one in found["T0", "b3"]] == [[2, 4]]
    assert [one.made_at_ms for one in found["T0", "b1"]] == [one.made_at_ms for one in DAY]


async def test_a_sample_of_a_clock_that_jumped_is_counted_and_harms_no_other(settings: Settings) -> None:
    far = TripForecast("b1", "T0", "20260101", "R", START_MS + 90 * 86_400_000, DAY[0].stops)
    assert await write(settings, [far, *DAY], [], None, "1-0") == 1
    assert await ask(settings, "select count(*) from telemetry.forecasts") == [(len(DAY),)]


async def test_a_night_joins_what_was_said_with_what_happened(settings: Settings, store: AccuracyStore) -> None:
    await write(settings, DAY, STOPS, None, "1-0")
    meter = Meter()
    assert await nights(store, settings, meter).look() == 2  # yesterday, and the empty day before
    assert 'timepoint_accuracy_days_total{area="demo"} 2' in meter.text()
    expected = Tally()
    expected.add([told(made_s, 10) for made_s in range(0, 900, 60)], ARRIVED)
    assert await kept(store) == expected.buckets()
    assert await nights(store, settings).look() == 0
    assert await ask(settings, "select rides, samples from telemetry.eta_days order by day") == [(0, 0), (1, 4 + 8 + 15)]


async def test_a_stop_that_was_filled_in_is_no_truth_and_a_second_run_replaces_the_first(settings: Settings, store: AccuracyStore) -> None:
    await write(settings, DAY, [*STOPS[:2], served(3, "INTERPOLATED"), served(4)], None, "1-0")
    night = nights(store, settings)
    await night.work_out(OnePlan().all()[0], YESTERDAY)
    first = await kept(store)
    assert sum(one.samples for one in first if one.horizon == ACTUAL) == 4 + 15
    await write(settings, [], [served(sequence, bus="b2", trip="T1") for sequence in (1, 2, 3, 4)], "1-0", "2-0")
    for _ in range(2):
        await night.work_out(OnePlan().all()[0], YESTERDAY)
    second = await kept(store)
    assert sum(one.missing for one in second) == sum(
        len(range(0, ms // 1000, 60)) for ms in (225_000, 450_000, 900_000)
    )  # of a bus that nobody foretold, from the first sample of the area on
    assert sum(one.samples - one.missing for one in second if one.horizon == ACTUAL) == 4 + 15


async def test_a_day_of_which_no_samples_were_kept_says_nothing(settings: Settings, store: AccuracyStore) -> None:
    await write(settings, [], STOPS, None, "1-0")
    assert await nights(store, settings).look() == 2
    assert await kept(store) == []


async def test_a_day_that_fails_is_put_off_and_the_others_go_on(settings: Settings, store: AccuracyStore, database_admin_url: str) -> None:
    await write(settings, DAY, STOPS, None, "1-0")
    with psycopg.connect(database_admin_url, autocommit=True) as admin:
        admin.execute(f"alter table telemetry.eta_days add constraint thorn check (day = '{YESTERDAY}')")
        meter = Meter()
        night = nights(store, settings, meter)
        assert await night.look() == 1
        assert await night.look() == 0
        assert 'timepoint_accuracy_faults_total{kind="CheckViolationError"} 1' in meter.text()
        admin.execute("alter table telemetry.eta_days drop constraint thorn")
    assert await nights(store, settings).look() == 1


async def test_routes_come_by_pages_and_totals_are_their_sum(store: AccuracyStore) -> None:
    tally = Tally()
    tally.add([told(made_s, 10) for made_s in range(0, 900, 60)], ARRIVED)
    buckets = tally.buckets()
    now = datetime.now(UTC)
    for day in (YESTERDAY, YESTERDAY - timedelta(days=1)):
        await store.keep(AREA, day, {"A": buckets, "B": buckets}, rides=2, samples=2 * tally.samples, at=now)
    await store.keep("other", YESTERDAY, {"A": buckets}, rides=1, samples=tally.samples, at=now)
    found: list[RouteDay] = []
    after = None
    while page := await store.route_days([AREA], YESTERDAY - timedelta(days=5), YESTERDAY, None, after, 3):
        found += page
        after = page[-1]
    assert [(one.day, one.route_id) for one in found] == [
        (YESTERDAY, "A"),
        (YESTERDAY, "B"),
        (YESTERDAY - timedelta(days=1), "A"),
        (YESTERDAY - timedelta(days=1), "B"),
    ]
    totals = await store.totals([AREA], YESTERDAY, YESTERDAY, None)
    assert [one.samples for one in totals] == [2 * one.samples for one in buckets]
    assert {one.p90_s for one in totals} == {None}
