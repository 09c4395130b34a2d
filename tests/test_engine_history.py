"""History: what was committed stands in the database once, and what cannot stand there is kept aside with its reason."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import msgspec
import psycopg
import pytest

from engine.clock import SystemClock
from engine.events import IncidentEvent, OutBatch, Refusal, StopEvent, StopForecast, TrackRow, TripEvent, TripForecast
from engine.meter import Meter
from engine.settings import Settings
from engine.store.area import AreaStore
from engine.store.incidents import Incidents, Wanted
from engine.store.postgres import Postgres
from engine.store.redis import Redis, keys_of
from engine.store.timescale import Batch, HistoryReader, HistoryWriter, Moved
from engine.tracking.history import History
from migrations.runner import migrate
from tests.raw_redis import raw

AREA = "demo"
NUMBERS = itertools.count(1)
encode = msgspec.msgpack.encode


def row(bus: str = "bus1", *, at_ms: int, lat: float = 36.75, verdict: str = "OK", device: str = "dev1", **more: Any) -> TrackRow:
    values: dict[str, Any] = {
        "bus_id": bus,
        "fixed_at_ms": at_ms,
        "lat": lat,
        "lon": 3.05,
        "received_at_ms": at_ms + 40,
        "device_id": device,
        "source": "telemetry",
        "verdict": verdict,
        "accuracy_m": 4.2,
        "speed_mps": 8.25,
        "bearing_deg": 181.5,
        "seq": 7,
        "trip_id": "t1",
        "start_date": "20261121",
        "along_m": 1234.4,
        "offset_m": 2.04,
        "state": "IN_TRIP",
    }
    return TrackRow(**(values | more))


def stop_event(number: int, at_ms: int) -> StopEvent:
    return StopEvent(f"stop-{number}", "bus1", "t1", "20261121", "r1", f"s{number}", number, at_ms, at_ms + 20_000, "SERVED")


def incident(saying: int, *, closed_at_ms: int | None = None, at_ms: int) -> IncidentEvent:
    return IncidentEvent(
        f"said-{saying}", "episode-1", "OFF_ROUTE", "MINOR", "bus1", "t1", "20261121", "r1", at_ms, closed_at_ms, 36.7, 3.0, '{"m":80}'
    )


def now_ms() -> int:
    return SystemClock().now_ms()


@pytest.fixture
def admin_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh migrated database as superuser: on the TimescaleDB server of TIMESCALE_URL where it is given, else on the session's own."""
    server = os.environ.get("TIMESCALE_URL")
    if not server:
        yield request.getfixturevalue("database_admin_url")
        return
    name = f"timepoint_{os.getpid()}_{next(NUMBERS)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    url = psycopg.conninfo.make_conninfo(server, dbname=name)
    try:
        migrate(url, say=lambda _: None)
        yield url
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)")


def as_application(admin_url: str) -> str:
    """The same database as the engine sees it: role timepoint_app."""
    url = psycopg.conninfo.conninfo_to_dict(admin_url)
    return f"postgresql://timepoint_app@/{url['dbname']}?host={quote(str(url['host']))}"


@pytest.fixture
def settings(admin_url: str, redis_url: str) -> Settings:
    return Settings(database_url=as_application(admin_url), redis_url=redis_url, history_gather_ms=20)


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    redis = await Redis.connect(settings)
    yield redis
    await redis.close()


@pytest.fixture
async def reader(settings: Settings) -> AsyncIterator[HistoryReader]:
    postgres = await Postgres.connect(settings)
    yield HistoryReader(postgres)
    await postgres.close()


@pytest.fixture
async def record(settings: Settings) -> AsyncIterator[Incidents]:
    postgres = await Postgres.connect(settings)
    yield Incidents(postgres)
    await postgres.close()


@contextlib.asynccontextmanager
async def running(redis: Redis, settings: Settings, meter: Meter | None = None) -> AsyncIterator[None]:
    task = asyncio.create_task(History(redis, clock=SystemClock(), settings=settings, meter=meter or Meter()).run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def eventually(ask: Callable[[], Awaitable[Any]], wanted: Any, limit_s: float = 20.0) -> None:
    """Waits for what must come about; fails with what was there instead."""
    for _ in range(int(limit_s / 0.05)):
        if await ask() == wanted:
            return
        await asyncio.sleep(0.05)
    assert await ask() == wanted


async def count(settings: Settings, what: str) -> int:
    async with await psycopg.AsyncConnection.connect(settings.database_url) as connection:
        found = await (await connection.execute(f"select count(*) from telemetry.{what}")).fetchone()
        assert found is not None
        return int(found[0])


async def commit_out(redis: Redis, *batches: OutBatch) -> None:
    """What an owner's commit adds to the out stream."""
    await redis.add_area(AREA)
    for batch in batches:
        await raw(redis).xadd(keys_of(AREA).out, {"b": encode(batch), "t": 1})


async def test_what_an_owner_committed_stands_in_history_with_its_events(
    redis: Redis, settings: Settings, reader: HistoryReader, record: Incidents
) -> None:
    at_ms = now_ms() - 60_000
    await commit_out(
        redis,
        OutBatch(
            1, "t", [row(at_ms=at_ms)], [stop_event(1, at_ms), TripEvent("e1", "bus1", "t1", "20261121", "r1", "STARTED", at_ms, "left")]
        ),
        OutBatch(2, "t", [row(at_ms=at_ms + 1000, verdict="LATE", speed_mps=None)], [incident(1, at_ms=at_ms)]),
    )
    async with running(redis, settings):
        await eventually(lambda: count(settings, "points"), 2)
    found = await reader.playback("bus1", datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC))
    assert (found[0].lat, found[0].speed_mps, found[0].bearing_deg, found[0].offset_m, found[0].trip_id) == (36.75, 8.25, 181.5, 2.0, "t1")
    assert (found[0].late, found[1].late, found[1].speed_mps, found[0].latency_ms) == (False, True, None, 40)
    assert found[0].ts == datetime.fromtimestamp(at_ms / 1000, UTC)
    assert [await count(settings, table) for table in ("stop_events", "trip_events", "incidents")] == [1, 1, 1]
    assert (await record.find([AREA], datetime.now(UTC)))[0].detail == '{"m": 80}'


async def test_a_stream_that_is_read_twice_is_written_once(redis: Redis, settings: Settings) -> None:
    at_ms = now_ms() - 60_000
    await commit_out(redis, *(OutBatch(n, "t", [row(at_ms=at_ms + n)], [stop_event(n, at_ms)]) for n in range(1, 301)))
    async with running(redis, settings):
        await eventually(lambda: count(settings, "points"), 300)
    async with await psycopg.AsyncConnection.connect(settings.database_url) as connection:
        await connection.execute("delete from telemetry.cursors")
    await commit_out(redis, OutBatch(301, "t", [row(at_ms=at_ms + 301)], []))
    async with running(redis, settings):
        await eventually(lambda: count(settings, "points"), 301)
    assert await count(settings, "stop_events") == 300


async def test_the_cursor_told_to_redis_is_never_ahead_of_the_database(redis: Redis, settings: Settings) -> None:
    await commit_out(redis, OutBatch(1, "t", [row(at_ms=now_ms())], []))
    store = AreaStore(redis, AREA)
    async with running(redis, settings):
        await eventually(lambda: count(settings, "points"), 1)
        last = (await store.read_out("0-0", 10, 10))[-1][0]
        await eventually(lambda: store.told_cursor("history"), last)


async def test_two_writers_at_once_are_one_too_many(settings: Settings) -> None:
    one, other = HistoryWriter(settings), HistoryWriter(settings)
    at_ms = now_ms()
    assert await one.write(Batch(AREA, "out", None, "5-0", rows=[row(at_ms=at_ms)]), at_ms) == 1
    with pytest.raises(Moved):
        await other.write(Batch(AREA, "out", None, "6-0", rows=[row(at_ms=at_ms + 1)]), at_ms)
    assert await other.write(Batch(AREA, "out", "5-0", "6-0", rows=[row(at_ms=at_ms + 1)]), at_ms) == 1
    assert await one.cursors() == {(AREA, "out"): "6-0"}
    await one.close()
    await other.close()


@pytest.mark.parametrize(
    ("off_ms", "verdict", "reason"),
    [
        (-5 * 86_400_000, "OK", "OUTSIDE_HISTORY"),
        (10 * 60_000, "OK", "OUTSIDE_HISTORY"),
        (0, "TELEPORT", "TELEPORT"),
        (10**15, "FUTURE", "FUTURE"),
    ],
)
async def test_a_row_that_history_does_not_take_is_kept_aside_with_its_reason(
    settings: Settings, reader: HistoryReader, off_ms: int, verdict: str, reason: str
) -> None:
    writer = HistoryWriter(settings)
    at_ms = now_ms()
    aside = row(at_ms=at_ms + off_ms, verdict=verdict, received_at_ms=at_ms)
    assert await writer.write(Batch(AREA, "out", None, "1-0", rows=[aside, row(at_ms=at_ms)]), at_ms) == 1
    found = await reader.quarantine("dev1", datetime.now(UTC) + timedelta(days=1))
    assert [item.reason for item in found] == [reason]
    assert msgspec.json.decode(found[0].detail)["fixed_at_ms"] == at_ms + off_ms
    await writer.close()


async def test_what_the_door_refused_can_be_read_by_its_device(redis: Redis, settings: Settings, reader: HistoryReader) -> None:
    await redis.add_area(AREA)
    said = Refusal(now_ms(), "dev9", None, "osmand", "ZERO_ISLAND", 0, "lat=0\x00&lon=0")
    await redis.quarantine(AREA, encode([said]))
    async with running(redis, settings):
        await eventually(lambda: count(settings, "quarantine"), 1)
    found = await reader.quarantine("dev9", datetime.now(UTC))
    assert (found[0].reason, found[0].bus_id, found[0].ts) == ("ZERO_ISLAND", None, None)


async def test_one_poisoned_row_is_buried_and_its_neighbours_are_written(redis: Redis, settings: Settings) -> None:
    at_ms = now_ms() - 1000
    rows = [row(at_ms=at_ms + n, device="no\x00name" if n == 37 else "dev1") for n in range(100)]
    await commit_out(redis, OutBatch(1, "t", rows, [stop_event(1, at_ms)]))
    meter = Meter()
    async with running(redis, settings, meter):
        await eventually(lambda: count(settings, "points"), 99)
        await eventually(lambda: count(settings, "stop_events"), 1)
    buried = await AreaStore(redis, AREA).dead_letters()
    assert len(buried) == 1
    assert "NUL" in buried[0][2]
    assert 'timepoint_history_faults_total{kind="Dead"} 1' in meter.text()


async def test_an_episode_has_one_row_and_a_closed_one_stays_closed(settings: Settings, record: Incidents) -> None:
    writer = HistoryWriter(settings)
    at_ms = now_ms() - 5000
    sayings = [incident(1, at_ms=at_ms), incident(2, at_ms=at_ms, closed_at_ms=at_ms + 3000)]
    await writer.write(Batch(AREA, "out", None, "1-0", events=[*sayings]), at_ms)
    await writer.write(Batch(AREA, "out", "1-0", "2-0", events=[incident(1, at_ms=at_ms)]), at_ms)
    found = await record.find([AREA], datetime.now(UTC))
    assert [(item.incident_id, item.closed_at is not None) for item in found] == [("episode-1", True)]
    assert await record.find([AREA], datetime.now(UTC), wanted=Wanted(only_open=True)) == []
    await writer.close()


async def test_buckets_say_how_many_and_how_fast(settings: Settings, reader: HistoryReader) -> None:
    writer = HistoryWriter(settings)
    start = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=10)
    first_ms = int(start.timestamp() * 1000)
    rows = [row(at_ms=first_ms + n * 1000, lat=36.0 + n / 1e4, speed_mps=float(n % 60)) for n in range(120)]
    await writer.write(Batch(AREA, "out", None, "1-0", rows=rows), now_ms())
    found = await reader.bus_history("bus1", start, start + timedelta(minutes=5), 60)
    assert [(b.n, b.mean_speed_mps, b.max_speed_mps) for b in found] == [(60, 29.5, 59.0), (60, 29.5, 59.0)]
    assert found[0].lat == 36.0059
    last = await reader.last_position("bus1", start)
    assert last is not None
    assert last.lat == 36.0119
    assert await reader.last_position("nobody", start) is None
    await writer.close()


async def test_a_tick_makes_the_days_ahead_and_drops_the_days_behind(settings: Settings, admin_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(admin_url, autocommit=True) as connection:
        mode = await (await connection.execute("select val from telemetry.meta where key = 'mode'")).fetchone()
        if mode != ("plain",):
            pytest.skip("the days are TimescaleDB's chunks here: see the next test")
        await connection.execute(
            "create table telemetry.points_20200101 partition of telemetry.points for values from ('2020-01-01 00:00Z') to ('2020-01-02 00:00Z')"
        )
        await connection.execute("drop table telemetry.points_" + (datetime.now(UTC) + timedelta(days=5)).strftime("%Y%m%d"))
        writer = HistoryWriter(settings)
        await writer.tick()
        await writer.close()
        found = await (
            await connection.execute("select inhrelid::regclass::text from pg_inherits where inhparent = 'telemetry.points'::regclass")
        ).fetchall()
    names = {name for (name,) in found}
    assert "telemetry.points_20200101" not in names
    assert len(names) in (12, 13), "one more where the database was made before midnight"


@pytest.mark.timescale
async def test_with_timescaledb_the_points_are_a_hypertable_of_days(settings: Settings, admin_url: str) -> None:
    if not os.environ.get("TIMESCALE_URL"):
        pytest.skip("needs TIMESCALE_URL: make test-timescale")
    writer = HistoryWriter(settings)
    at_ms = now_ms()
    rows = [row(at_ms=at_ms - days * 86_400_000) for days in range(3)]
    assert await writer.write(Batch(AREA, "out", None, "1-0", rows=rows), at_ms) == 3
    assert await writer.write(Batch(AREA, "out", "1-0", "2-0", rows=rows), at_ms) == 0
    await writer.tick()
    async with await psycopg.AsyncConnection.connect(admin_url, autocommit=True) as connection:
        found = await (await connection.execute("select val from telemetry.meta where key = 'mode'")).fetchone()
        assert found is not None
        assert found[0] in ("apache", "timescale")
        assert await (await connection.execute("select count(*) from show_chunks('telemetry.points')")).fetchone() == (3,)
        await connection.execute("select telemetry.drop_points(interval '1 day')")
        assert await (await connection.execute("select count(*) from show_chunks('telemetry.points')")).fetchone() == (2,)
    await writer.close()


def published(at_ms: int, trip: str = "t1") -> TripForecast:
    stops = tuple(StopForecast(f"s{n}", n, at_ms + 50_000 * n, at_ms + 60_000 * n, at_ms + 70_000 * n, 0, "ESTIMATED") for n in (1, 2, 3))
    return TripForecast("bus1", trip, "20261121", "r1", at_ms, stops)


async def test_what_was_published_is_kept_once_with_the_rows_it_came_with(redis: Redis, settings: Settings) -> None:
    at_ms = now_ms() - 60_000
    await commit_out(
        redis, OutBatch(1, "t", [row(at_ms=at_ms)], [], [published(at_ms)]), OutBatch(2, "t", [], [], [published(at_ms + 60_000)])
    )
    async with running(redis, settings):
        await eventually(lambda: count(settings, "forecasts"), 2)
    async with await psycopg.AsyncConnection.connect(settings.database_url) as connection:
        await connection.execute("delete from telemetry.cursors")
    await commit_out(redis, OutBatch(3, "t", [], [], [published(at_ms + 120_000)]))
    async with running(redis, settings):
        await eventually(lambda: count(settings, "forecasts"), 3)
    assert await count(settings, "points") == 1


async def test_a_batch_of_before_there_were_samples_is_read_as_ever(redis: Redis, settings: Settings) -> None:
    await redis.add_area(AREA)
    await raw(redis).xadd(keys_of(AREA).out, {"b": encode((1, "t", [row(at_ms=now_ms())], [])), "t": 1})
    async with running(redis, settings):
        await eventually(lambda: count(settings, "points"), 1)
    assert await count(settings, "forecasts") == 0


async def test_one_poisoned_sample_is_buried_and_the_rest_of_its_batch_is_written(redis: Redis, settings: Settings) -> None:
    at_ms = now_ms() - 60_000
    samples = [published(at_ms + n * 1_000, "no\x00name" if n == 3 else "t1") for n in range(8)]
    await commit_out(redis, OutBatch(1, "t", [row(at_ms=at_ms)], [stop_event(1, at_ms)], samples))
    async with running(redis, settings):
        await eventually(lambda: count(settings, "forecasts"), 7)
        await eventually(lambda: count(settings, "stop_events"), 1)
    assert await count(settings, "points") == 1
    assert len(await AreaStore(redis, AREA).dead_letters()) == 1


async def test_a_tick_drops_the_samples_behind_and_makes_days_ahead(settings: Settings, admin_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(admin_url, autocommit=True) as connection:
        mode = await (await connection.execute("select val from telemetry.meta where key = 'mode'")).fetchone()
        writer = HistoryWriter(settings)
        await writer.write(Batch(AREA, "out", None, "1-0", forecasts=[published(now_ms())]), now_ms())
        if mode == ("plain",):
            await connection.execute(
                "create table telemetry.forecasts_20200101 partition of telemetry.forecasts"
                " for values from ('2020-01-01 00:00Z') to ('2020-01-02 00:00Z')"
            )
            await connection.execute("drop table telemetry.forecasts_" + (datetime.now(UTC) + timedelta(days=5)).strftime("%Y%m%d"))
        else:
            await writer.write(Batch(AREA, "out", "1-0", "2-0", forecasts=[published(now_ms() - 2 * 86_400_000)]), now_ms())
            assert await count(settings, "forecasts") == 2
            await connection.execute("select telemetry.drop_forecasts(interval '1 day')")
        await connection.execute("insert into telemetry.eta_days values ('2020-01-01', 'demo', now(), 0, 0)")
        await writer.tick()
        await writer.close()
        found = await (
            await connection.execute("select inhrelid::regclass::text from pg_inherits where inhparent = 'telemetry.forecasts'::regclass")
        ).fetchall()
    assert "telemetry.forecasts_20200101" not in {name for (name,) in found}
    assert len(found) in ((12, 13) if mode == ("plain",) else (1,)), "days around now, or the one chunk that is left"
    assert await count(settings, "forecasts") == 1
    assert await count(settings, "eta_days") == 0
