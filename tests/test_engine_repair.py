"""Repairs: late fixes make history right, once, whatever order they came in, and whoever stands still meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg
import pytest

from deploy.servers import PostgresServer
from engine.clock import SystemClock
from engine.errors import Unavailable
from engine.events import StopEvent, TrackRow
from engine.meter import Meter
from engine.settings import Settings
from engine.store.postgres import Postgres
from engine.store.redis import Redis
from engine.store.repairs import RepairStore
from engine.store.timescale import Batch, HistoryReader, HistoryWriter, PastFix
from engine.tracking.fix import LATE, OK, Fix
from engine.tracking.plans import Plan
from engine.tracking.repair import ADOPTED, TRIES_MAX, Repairs, fixes_of, refold
from engine.tracking.ride import Roadbook
from engine.tracking.tracker import Tracker
from tests.small_world import STRAIGHT, Bus, feed
from tests.test_engine_history import admin_url, as_application, eventually  # noqa: F401  # fixture: TimescaleDB where it is given

AREA = "demo"
TIMETABLE = feed()
YESTERDAY = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y%m%d")
FOUND = TIMETABLE.instance("T0", YESTERDAY)
assert FOUND is not None
TRIP = FOUND
START = TRIP.departure_ms(0)


class OnePlan:
    """One feed in force, since a time or since ever."""

    def __init__(self, since: datetime | None = None) -> None:
        self.since = since

    def get(self, feed_id: str) -> Plan | None:
        return Plan(AREA, "P", TIMETABLE, self.since)


class HalfAway(OnePlan):
    """What the repairs of one area read is always away."""

    def get(self, feed_id: str) -> Plan | None:
        if feed_id == "away":
            raise Unavailable("away")
        return super().get(feed_id)


class BrokenPlans:
    """Raises what nobody expects."""

    def get(self, feed_id: str) -> Plan | None:
        raise ZeroDivisionError("a thorn")


def drive(*, named: bool = True) -> list[Fix]:
    """The whole trip, yesterday, a fix every 5 s."""
    fixes = Bus(STRAIGHT, trip_id="T0" if named else None).drive(START, every_s=5.0)
    return [msgspec.structs.replace(fix, start_date=YESTERDAY if named else None) for fix in fixes]


def told(fixes: Sequence[Fix]) -> tuple[list[TrackRow], list[StopEvent]]:
    """What a tracker that gets them in this order says: rows, and stops."""
    tracker = Tracker(TIMETABLE, feed_id=AREA, partner_id="P")
    now_ms = 0
    for fix in fixes:
        now_ms = max(now_ms, fix.received_at_ms)
        tracker.fold(msgspec.structs.replace(fix, received_at_ms=now_ms))
        tracker.tick(now_ms + 100)
    tracker.tick(now_ms + 10_000)
    out = tracker.take()
    return out.rows, [event for event in out.events if isinstance(event, StopEvent)]


def spooled(fixes: list[Fix]) -> list[Fix]:
    """The middle of the drive, six minutes of it, comes after its end and newest first."""
    first, last = START + 200_000, START + 560_000
    middle = [fix for fix in fixes if first <= fix.fixed_at_ms < last]
    return [fix for fix in fixes if fix not in middle] + middle[::-1]


@pytest.fixture
def settings(admin_url: str, redis_url: str) -> Settings:  # noqa: F811
    return Settings(database_url=as_application(admin_url), redis_url=redis_url, repair_quiet_s=0.05)


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    redis = await Redis.connect(settings)
    yield redis
    await redis.close()


@pytest.fixture
async def postgres(settings: Settings) -> AsyncIterator[Postgres]:
    postgres = await Postgres.connect(settings)
    yield postgres
    await postgres.close()


@contextlib.asynccontextmanager
async def mending(redis: Redis, postgres: Postgres, settings: Settings, meter: Meter, plans: Any = None) -> AsyncIterator[None]:
    repairs = Repairs(redis, postgres, plans or OnePlan(), clock=SystemClock(), settings=settings, meter=meter)
    task = asyncio.create_task(repairs.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def write(
    settings: Settings, rows: list[TrackRow], stops: Sequence[StopEvent] = (), *, area: str = AREA, cursor: str | None = None, then: str
) -> int:
    writer = HistoryWriter(settings)
    added = await writer.write(Batch(area, "out", cursor, then, rows=rows, events=[*stops]), SystemClock().now_ms())
    await writer.close()
    return added


async def ask(settings: Settings, statement: str) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(settings.database_url) as connection:
        return list(await (await connection.execute(statement)).fetchall())  # type: ignore[call-overload]


async def stops_in(settings: Settings) -> dict[str, tuple[int, int | None, int | None, str]]:
    """Event id -> sequence, arrival and departure in seconds, kind."""
    rows = await ask(settings, "select event_id, stop_sequence, arrived_at, departed_at, kind from telemetry.stop_events")
    return {row[0]: (row[1], *(None if at is None else round(at.timestamp()) for at in row[2:4]), row[4]) for row in rows}


def as_kept(stops: Sequence[StopEvent]) -> dict[str, tuple[int, int | None, int | None, str]]:
    times = [(None if e.arrived_at_ms is None else round(e.arrived_at_ms / 1000),
              None if e.departed_at_ms is None else round(e.departed_at_ms / 1000)) for e in stops]  # fmt: skip
    return {event.event_id: (event.stop_sequence, *at, event.kind) for event, at in zip(stops, times, strict=True)}


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """The same stops of the same kind at the same times, to 2 s: history rounds places to 0.1 m."""
    return one.keys() == other.keys() and all(
        a[0] == b[0] and a[3] == b[3] and all((x is None) == (y is None) and abs((x or 0) - (y or 0)) <= 2 for x, y in zip(a[1:3], b[1:3], strict=True))
        for a, b in ((one[key], other[key]) for key in one)
    )  # fmt: skip


def outcome(meter: Meter, text: str) -> Any:
    async def counted() -> bool:
        return f'timepoint_repairs_total{{area="demo",outcome="{text}"}} 1' in meter.text()

    return counted


def test_a_trip_folded_again_from_its_fixes_in_any_order_says_what_was_said_live() -> None:
    fixes = drive()
    _, live = told(fixes)
    mixed = list(fixes)
    random.Random(3).shuffle(mixed)
    again = [stop for step in refold(mixed, TRIP, TIMETABLE) for stop in step.stops]
    assert len(live) == 13
    assert [msgspec.structs.replace(stop, late=False) for stop in again] == live
    assert all(stop.late for stop in again)


def test_a_late_fix_belongs_to_the_trip_it_names_else_to_the_one_driven_around_it() -> None:
    def past(second: int, trip: str | None, *, late: bool = False) -> PastFix:
        at = datetime.fromtimestamp(START / 1000 + second, UTC)
        return PastFix(at, 36.75, 3.05, None, None, None, None, None, trip, int(YESTERDAY) if trip else None, None, late, 0)

    fixes = [
        past(0, None, late=True),  # 0: before anything
        past(1, "T0"),
        past(2, None, late=True),  # 2: between fixes of T0
        past(3, "T0"),
        past(4, None, late=True),  # 4: between T0 and T1: may be of both
        past(5, "T1"),
        past(6, "T0", late=True),  # 6: its device says so
        past(7, "T1"),
        past(8, None),  # in time, and on no trip
        past(9, None, late=True),  # 9: after that
    ]
    book = Roadbook(TIMETABLE)
    other = TIMETABLE.instance("T1", YESTERDAY)
    assert other is not None
    assert [fixes.index(one) for one in fixes_of(fixes, TRIP, book)] == [0, 1, 2, 3, 4, 6]
    assert [fixes.index(one) for one in fixes_of(fixes, other, book)] == [4, 5, 7]


@pytest.mark.parametrize("named", [True, False])
async def test_a_backlog_that_comes_after_the_trip_completes_its_history(
    settings: Settings, redis: Redis, postgres: Postgres, named: bool
) -> None:
    fixes = drive(named=named)
    rows, live = told(spooled(fixes))
    _, whole = told(fixes)
    assert {row.verdict for row in rows} == {OK, LATE}
    assert len(live) < len(whole) == (13 if named else 12)  # unnamed, the trip is known from its second stop on
    await write(settings, rows, live, then="1-0")
    meter = Meter()
    async with mending(redis, postgres, settings, meter):
        await eventually(outcome(meter, "DONE"), True)
    assert alike(await stops_in(settings), as_kept(whole))
    since = datetime.fromtimestamp(START / 1000, UTC)
    kept = await HistoryReader(postgres).playback("b1", since, since + timedelta(hours=1))
    late = [one for one in kept if one.late]
    assert len(late) == 72
    assert all(one.trip_id == "T0" and one.along_m is not None for one in late)
    assert [one.along_m for one in kept if one.along_m is not None] == sorted(one.along_m for one in kept if one.along_m is not None)
    assert len(await ask(settings, "select from telemetry.stop_events where late")) >= len(whole) - len(live)
    assert await RepairStore(postgres).waiting() == 0


async def test_a_repair_done_twice_and_a_stream_read_again_change_nothing(settings: Settings, redis: Redis, postgres: Postgres) -> None:
    rows, live = told(spooled(drive()))
    await write(settings, rows, live, then="1-0")
    meter, again = Meter(), Meter()
    async with mending(redis, postgres, settings, meter):
        await eventually(outcome(meter, "DONE"), True)
    before = await ask(settings, "select * from telemetry.stop_events order by event_id")
    assert await write(settings, rows, live, cursor="1-0", then="2-0") == 0  # a writer that lost its cursor: nothing is new
    assert await RepairStore(postgres).waiting() == 0
    statement = "insert into telemetry.repairs (area, bus_id, since, until, asked_at, due_at) values ($1, 'b1', $2, $3, now(), now())"
    await postgres.execute(statement, AREA, *span(rows))
    async with mending(redis, postgres, settings, again):
        await eventually(outcome(again, "DONE"), True)
    assert await ask(settings, "select * from telemetry.stop_events order by event_id") == before
    assert 'timepoint_repair_stops_total{area="demo"} 0' in again.text()
    assert f'timepoint_repair_stops_total{{area="demo"}} {13 - len(live)}' in meter.text()


async def test_what_is_asked_for_during_a_repair_stays_asked_for(settings: Settings, postgres: Postgres) -> None:
    rows, _ = told(spooled(drive()))
    late = [row for row in rows if row.verdict == LATE]
    store = RepairStore(postgres)
    await write(settings, late[10:20], then="1-0")
    await eventually(lambda: _is_due(store), True)
    begun = await store.due()
    assert begun is not None
    await write(settings, late[:10] + late[20:], cursor="1-0", then="2-0")
    await store.end(begun, [])
    assert await store.waiting() == 1
    await eventually(lambda: _is_due(store), True)
    wider = await store.due()
    assert wider is not None
    assert (wider.since, wider.until, wider.turn) == (_at(late[-1]), _at(late[0]), 2)
    await store.end(wider, [])
    assert await store.waiting() == 0


async def _is_due(store: RepairStore) -> bool:
    return await store.due() is not None


def span(rows: list[TrackRow]) -> tuple[datetime, datetime]:
    """Of the late ones."""
    late = [_at(row) for row in rows if row.verdict == LATE]
    return min(late), max(late)


def _at(row: TrackRow) -> datetime:
    return datetime.fromtimestamp(row.fixed_at_ms / 1000, UTC)


async def test_a_stop_that_was_said_under_another_attempt_has_one_saying_afterwards(
    settings: Settings, redis: Redis, postgres: Postgres
) -> None:
    rows, live = told(spooled(drive()))
    stray = msgspec.structs.replace(live[0], event_id="of-another-attempt")
    await write(settings, rows, [stray, *live[1:]], then="1-0")
    meter = Meter()
    async with mending(redis, postgres, settings, meter):
        await eventually(outcome(meter, "DONE"), True)
    assert sorted(row[0] for row in (await stops_in(settings)).values()) == list(range(1, 14))


async def test_a_repair_that_breaks_is_counted_and_does_not_come_again(settings: Settings, redis: Redis, postgres: Postgres) -> None:
    rows, live = told(spooled(drive()))
    await write(settings, rows, live, then="1-0")
    meter = Meter()
    async with mending(redis, postgres, settings, meter, BrokenPlans()):
        await eventually(outcome(meter, "BROKEN"), True)
    assert await RepairStore(postgres).waiting() == 0
    assert await stops_in(settings) == as_kept(live)  # what was said stands


async def test_late_fixes_ask_for_a_repair_once_and_of_their_own_bus_only(settings: Settings, postgres: Postgres) -> None:
    rows, _ = told(spooled(drive()))
    assert await write(settings, rows, then="1-0") == len(rows)
    await postgres.execute("delete from telemetry.repairs")
    others = [msgspec.structs.replace(row, bus_id="b2") for row in rows]
    late = [row for row in others if row.verdict == LATE]
    assert (
        await write(settings, rows + [row for row in others if row not in late[1:-1]], cursor="1-0", then="2-0")
        == len(rows) - len(late) + 2
    )
    assert [tuple(row) for row in await postgres.fetch("select bus_id, since, until from telemetry.repairs")] == [("b2", *span(late))]
    assert await write(settings, [*others, *rows], cursor="2-0", then="3-0") == len(late) - 2
    assert [tuple(row) for row in await postgres.fetch("select bus_id, since, until, turn from telemetry.repairs")] == [
        ("b2", *span(late), 2)
    ]


async def test_a_repair_that_fails_is_put_off_behind_the_others(settings: Settings, redis: Redis, postgres: Postgres) -> None:
    rows, _ = told(spooled(drive()))
    await write(settings, rows, area="away", then="1-0")
    await write(settings, [msgspec.structs.replace(row, bus_id="b2") for row in rows], then="1-0")
    await postgres.execute("update telemetry.repairs set due_at = due_at - interval '1 hour' where area = 'away'")
    meter = Meter()
    async with mending(redis, postgres, settings, meter, HalfAway()):
        await eventually(outcome(meter, "DONE"), True)
    assert 'timepoint_repairs_total{area="away",outcome="PUT_OFF"}' in meter.text()
    [put_off] = await postgres.fetch("select area, tries, due_at, due_at > asked_at + interval '4 seconds' as later from telemetry.repairs")
    assert (put_off["area"], put_off["tries"] >= 1, put_off["later"]) == ("away", True, True)
    more = [msgspec.structs.replace(row, fixed_at_ms=row.fixed_at_ms + 1) for row in rows if row.verdict == LATE]
    await write(settings, more, area="away", cursor="1-0", then="2-0")
    [wider] = await postgres.fetch("select turn, due_at from telemetry.repairs")
    assert tuple(wider) == (2, put_off["due_at"])  # more of it does not bring it forward


async def test_a_repair_that_always_fails_is_given_up(settings: Settings, redis: Redis, postgres: Postgres) -> None:
    rows, _ = told(spooled(drive()))
    await write(settings, rows, area="away", then="1-0")
    await postgres.execute("update telemetry.repairs set tries = $1", TRIES_MAX - 1)
    meter = Meter()

    async def given_up() -> bool:
        return 'timepoint_repairs_total{area="away",outcome="GIVEN_UP"} 1' in meter.text()

    async with mending(redis, postgres, settings, meter, HalfAway()):
        await eventually(given_up, True)
    assert await RepairStore(postgres).waiting() == 0


async def test_a_trip_that_was_driven_on_another_timetable_is_left_as_it_was_told(
    settings: Settings, redis: Redis, postgres: Postgres
) -> None:
    rows, live = told(spooled(drive()))
    await write(settings, rows, live, then="1-0")
    first = min(map(_at, rows))
    meter = Meter()
    async with mending(redis, postgres, settings, meter, OnePlan(first - ADOPTED + timedelta(seconds=1))):
        await eventually(outcome(meter, "OTHER_PLAN"), True)
    assert 'timepoint_repair_trips_left_total{area="demo"} 1' in meter.text()
    assert await stops_in(settings) == as_kept(live)
    await postgres.execute(
        "insert into telemetry.repairs (area, bus_id, since, until, asked_at, due_at) values ($1, 'b1', $2, $3, now(), now())",
        AREA, *span(rows),
    )  # fmt: skip
    async with mending(redis, postgres, settings, meter, OnePlan(first - ADOPTED)):
        await eventually(outcome(meter, "DONE"), True)
    assert len(await stops_in(settings)) == 13


async def test_a_repair_waits_for_a_database_that_is_away(redis_url: str, own_postgres: PostgresServer) -> None:
    settings = Settings(database_url=own_postgres.url, redis_url=redis_url, repair_quiet_s=0.05)
    redis, postgres, meter = await Redis.connect(settings), await Postgres.connect(settings), Meter()
    rows, live = told(spooled(drive()))
    await write(settings, rows, live, then="1-0")
    await asyncio.to_thread(own_postgres.stop)

    async def waits() -> bool:
        return 'timepoint_repair_faults_total{kind="Unavailable"}' in meter.text()

    async with mending(redis, postgres, settings, meter):
        await eventually(waits, True)
        await asyncio.to_thread(own_postgres.start)
        await eventually(outcome(meter, "DONE"), True, limit_s=40)
    assert len(await stops_in(settings)) == 13
    await postgres.close()
    await redis.close()
