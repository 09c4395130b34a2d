"""The relay: what was committed is said once and in order, whoever dies between; what cannot be said is held back and nothing else."""

from __future__ import annotations

import asyncio
import json
import re
import resource
from collections.abc import AsyncIterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.servers import RedisServer
from engine.booking.booking import STATES
from engine.clock import ManualClock
from engine.errors import Unavailable
from engine.meter import Meter
from engine.office import outbox
from engine.office.outbox import PARTS, SINKS, Counts, Dispatcher, Relay, runs
from engine.office.topics import PUBLISHABLE, TOPICS, Event, plain_data
from engine.settings import Settings
from engine.store.office import Office, Waiting, consume
from engine.store.outlet import EVENTS, Bell, Entry, Line, Outlet
from engine.store.redis import Redis, ordered_keys
from tests.booking_world import PARTNER, World
from tests.product import CHECKOUT
from tests.raw_redis import raw


class Desk:
    """A world, its office and the relay of every partition, run by hand."""

    def __init__(self, world: World) -> None:
        self.world, self.office, self.redis = world, Office(world.pool), world.redis
        self.clock, self.counts = ManualClock(world.clock.now_ms()), Counts(Meter())
        self.parts = [self.dispatcher(part) for part in range(PARTS)]

    def dispatcher(self, part: int, **more: Any) -> Dispatcher:
        outlet = Outlet(self.redis, self.world.settings.events_stream_max)
        given = {"clock": self.clock, "settings": self.world.settings, "counts": self.counts}
        return Dispatcher(part, self.office, outlet, self.world.catalogue, **given | more)

    async def say(self) -> int:
        """Everything that waits and may be said now."""
        said = 0
        for one in self.parts:
            while more := await one.round():
                said += more
        return said

    async def seats(self, trip_id: str = "") -> list[tuple[str, str]]:
        """(seat, state) as the map of the trip was told."""
        log = await self.redis.channel_log("seats:" + (trip_id or self.world.trip_id), 0)
        bodies = [json.loads(message.payload) for message in log.messages]
        assert all(body["t"] == "seat" for body in bodies)
        return [(body["d"]["seat"], body["d"]["state"]) for body in bodies]

    async def stream(self) -> list[Event]:
        entries = await raw(self.redis).xrange(EVENTS)
        return [msgspec.json.decode(fields[b"event"], type=Event) for _, fields in entries]

    async def waiting(self) -> int:
        return int(await self.world.value("select count(*) from office.outbox where delivered_at is null"))

    async def publish(self, aggregate: int, version: int, data: Any = None, topic: str = "system") -> None:
        """An event of a made-up aggregate, committed."""
        await self.world.run(
            "select office.record($1, 'test', 'test', $2, 'ALERT', $3, $4, $5)", PARTNER, topic, name(aggregate), version, data or {}
        )


def name(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012x}"


class Poison:
    """A sink that refuses events whose data says so, while `sick`."""

    name = "poison"

    def __init__(self) -> None:
        self.sick = True

    def lines(self, event: Event, body: Mapping[str, Any], trip: Any | None) -> Sequence[Line]:
        if self.sick and body.get("poison"):
            raise ValueError("I cannot swallow this")
        return ()


@pytest.fixture
async def desk(database_url: str, redis_url: str) -> AsyncIterator[Desk]:
    world = await World.make(database_url, redis_url)
    yield Desk(world)
    await world.close()


async def test_a_hold_and_its_release_are_told_to_the_seat_map_in_order(desk: Desk) -> None:
    made = await desk.world.hold("1A", "1B")
    await desk.world.desk.release(desk.world.guest(made.token), desk.world.key(), made.held.booking)
    assert await desk.say() == 2
    assert await desk.seats() == [("1A", "TAKEN"), ("1B", "TAKEN"), ("1A", "FREE"), ("1B", "FREE")]
    assert [event.type for event in await desk.stream()] == ["HELD", "RELEASED"]


async def test_an_event_speaks_of_labels_and_stops_and_not_of_our_numbers(desk: Desk) -> None:
    shown = await desk.world.confirmed("2C", frm="demo:B", to="demo:D")
    await desk.say()
    held, created, confirmed = await desk.stream()
    assert (held.id, created.seq, confirmed.type) == (f"booking:{shown['lead']}:1", 2, "CONFIRMED")
    assert confirmed.partner_id == PARTNER and confirmed.version == 1
    assert confirmed.data == {
        "ref": shown["ref"], "status": "CONFIRMED", "tripId": desk.world.trip_id, "seats": ["2C"], "from": "demo:B", "to": "demo:D",
        "mapVersion": 1, "expiresAt": None,
    }  # fmt: skip


async def test_whoever_follows_a_booking_hears_of_it_once_it_has_a_reference(desk: Desk) -> None:
    shown = await desk.world.confirmed("1A")
    await desk.say()
    log = await desk.redis.channel_log("booking:" + shown["ref"], 0)
    said = [json.loads(message.payload) for message in log.messages]
    assert [(one["t"], one["d"]["type"], one["d"]["version"]) for one in said] == [("booking", "CREATED", 2), ("booking", "CONFIRMED", 3)]


async def test_a_row_that_was_committed_late_is_said_although_younger_ones_went_before(desk: Desk) -> None:
    late = desk.world.pool.pool
    async with late.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("select set_config('tp.partner', '*', true)")
        await connection.execute("select office.record('north', 't', 't', 'system', 'ALERT', $1, 1, '{}')", name(1))
        await desk.publish(5, 1)  # hashes to any partition: the point is that it is said first
        assert await desk.say() == 1
        await transaction.commit()
    assert await desk.say() == 1
    assert [event.aggregate for event in await desk.stream()] == [name(5), name(1)]


async def test_versions_go_out_in_order_even_where_the_clock_went_back(desk: Desk) -> None:
    for version in (1, 2, 3):
        await desk.publish(1, version)
    await desk.world.run("update office.outbox set at = at - version * interval '1 minute'")
    await desk.say()
    assert [event.seq for event in await desk.stream()] == [1, 2, 3]


async def test_a_dispatcher_that_dies_between_saying_and_marking_is_not_heard_twice(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    await desk.world.hold("1A")

    async def dies(*_: Any, **__: Any) -> int:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(desk.office, "delivered", dies)
        for one in desk.parts:
            try:
                await one.round()
            except asyncio.CancelledError:
                break
        else:
            raise AssertionError("nobody died")
    assert await desk.waiting() == 1, "the row was not marked"
    assert await desk.say() == 1, "its successor says it again"
    assert await desk.seats() == [("1A", "TAKEN")], "and the map hears it once"
    first, second = await desk.stream()
    assert first == second, "the stream twice, by one id"


async def test_a_consumer_acts_once_on_an_event_that_comes_twice(desk: Desk) -> None:
    async def act(connection: Any) -> bool:
        return await consume(connection, "mails", "booking:x:1")

    assert [await desk.world.pool.run("*", act) for _ in range(2)] == [True, False]

    async def fails(connection: Any) -> None:
        await consume(connection, "mails", "booking:x:2")
        raise RuntimeError("the effect did not come about")

    with pytest.raises(RuntimeError):
        await desk.world.pool.run("*", fails)
    assert await desk.world.pool.run("*", lambda connection: consume(connection, "mails", "booking:x:2")), "so it may be tried again"


async def test_two_dispatchers_of_one_partition_say_each_event_once_on_the_channels(desk: Desk) -> None:
    held = [await desk.world.hold(label) for label in ("1A", "1B", "1C")]
    for made in held:
        await desk.world.desk.release(desk.world.guest(made.token), desk.world.key(), made.held.booking)
    twins = [desk.dispatcher(part) for part in range(PARTS)]
    await asyncio.gather(*(one.round() for one in (*desk.parts, *twins)))
    seats = await desk.seats()
    assert sorted(seats) == sorted((label, state) for label in ("1A", "1B", "1C") for state in ("TAKEN", "FREE"))
    assert all(seats.index((label, "TAKEN")) < seats.index((label, "FREE")) for label in ("1A", "1B", "1C"))


async def test_a_poisoned_event_holds_back_its_aggregate_and_nobody_else(desk: Desk) -> None:
    poison = Poison()
    for one in desk.parts:
        one.sinks = (*SINKS, poison)
    await desk.publish(1, 1)
    await desk.publish(1, 2, {"poison": True}, topic="partner")
    await desk.publish(1, 3, topic="partner")
    await desk.publish(2, 1, topic="partner")
    for _ in range(desk.world.settings.outbox_tries_max):
        await desk.say()
        desk.clock.advance(60_000)
    await desk.say()
    said = {event.id for event in await desk.stream()}
    assert {f"system:{name(1)}:1", f"partner:{name(2)}:1"} <= said, "others go on, also those of the same number in another topic"
    assert not {f"partner:{name(1)}:2", f"partner:{name(1)}:3"} & said
    (dead,) = await desk.office.dead_letters(PARTNER)
    assert (dead.state, dead.version, dead.sink, dead.attempts, dead.behind) == ("HELD", 2, "poison", 5, 1)
    assert "cannot swallow" in dead.error
    assert [event.data["alert"] for event in await desk.stream() if event.data.get("alert")] == ["EVENT_DEAD"], "and it says so"
    assert sum(lag.held for lag in await desk.office.lag()) == 1

    await desk.publish(1, 4, topic="partner")
    assert await desk.say() == 0, "what comes later waits too"

    async def replay(connection: Any) -> str | None:
        return await desk.office.replay(connection, dead.dead_letter_id, "super_admin:ops", "r1")

    assert await desk.world.pool.run("*", replay) == "HELD"
    assert await desk.world.pool.run("*", replay) == "REPLAYED", "twice is once"
    poison.sick = False
    assert await desk.say() == 3
    assert [event.seq for event in await desk.stream() if event.topic == "partner" and event.aggregate == name(1)] == [2, 3, 4]
    assert [one.state for one in await desk.office.dead_letters(PARTNER)] == ["DELIVERED"]
    assert await desk.waiting() == 0
    assert await desk.world.value("select count(*) from office.audit where action = 'dead_letter.REPLAYED'") == 1


async def test_an_event_that_people_say_themselves_can_name_what_it_likes(desk: Desk) -> None:
    for number, odd in enumerate((10**30, "x", None, desk.world.trip_no, [1]), 1):
        await desk.publish(number, 1, {"tripNo": odd, "seat": 1, "from": 0, "currency": "DZD", "amount": odd})
    assert await desk.say() == 5 and await desk.waiting() == 0
    assert {event.data["seat"] for event in await desk.stream()} == {1}


async def test_a_replayed_event_that_fails_again_is_the_same_dead_letter(desk: Desk) -> None:
    for one in desk.parts:
        one.sinks = (Poison(),)
    await desk.publish(1, 1, {"poison": True}, topic="partner")
    for replays in (0, 1):
        for _ in range(desk.world.settings.outbox_tries_max):
            await desk.say()
            desk.clock.advance(60_000)
        (dead,) = await desk.office.dead_letters(PARTNER)
        assert (dead.state, dead.replays, dead.attempts) == ("HELD", replays, 5 * (replays + 1))
        await desk.world.pool.run("*", lambda connection, dead=dead: desk.office.replay(connection, dead.dead_letter_id, "x", "y"))


async def test_what_redis_itself_refuses_of_one_event_is_poison_of_that_event_alone(desk: Desk) -> None:
    [meta], _ = ordered_keys("seats:" + desk.world.trip_id, "meta")
    await raw(desk.redis).set(meta, b"somebody put a text where a hash belongs")
    await desk.world.hold("1A")
    other, _ = await desk.world.trip()
    await desk.world.hold("1A", trip=other)
    for _ in range(desk.world.settings.outbox_tries_max):
        await desk.say()
        desk.clock.advance(60_000)
    assert await desk.seats(other) == [("1A", "TAKEN")]
    (dead,) = await desk.office.dead_letters(PARTNER)
    assert dead.sink == "seats" and "WRONGTYPE" in dead.error


async def test_a_stream_that_redis_refuses_is_everybodys_and_no_event_dies_of_it(desk: Desk) -> None:
    await raw(desk.redis).set(EVENTS, b"somebody put a text where the stream belongs")
    await desk.publish(1, 1)
    with pytest.raises(Unavailable, match="WRONGTYPE"):
        await desk.say()
    await raw(desk.redis).delete(EVENTS)
    assert await desk.say() == 1
    assert await desk.office.dead_letters(PARTNER) == []


async def test_a_sink_that_keeps_a_queue_writes_it_with_the_mark(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []

    async def keep(connection: Any, events: Sequence[Event]) -> None:
        for event in events:
            await consume(connection, "queue", event.id)
        if not kept:
            kept.append("once")
            raise Unavailable("the queue is full")

    for one in desk.parts:
        one.keep = (keep,)
    await desk.publish(1, 1)
    with pytest.raises(Unavailable):
        await desk.say()
    assert await desk.waiting() == 1 and await desk.world.value("select count(*) from office.inbox") == 0, "neither without the other"
    await desk.say()
    assert await desk.waiting() == 0 and await desk.world.value("select count(*) from office.inbox") == 1


async def test_after_a_swap_the_relay_reads_the_new_map_at_once(desk: Desk) -> None:
    world = desk.world
    await world.catalogue.trip(world.trip_id)  # in memory, with map version 1
    await world.run(
        """insert into sale.seat_map select trip_no, 2, partner_id, seats, array(select 'X' || l from unnest(labels) l), layout
        from sale.seat_map where trip_no = $1""",
        world.trip_no,
    )
    await world.run("update sale.trip_instance set map_version = 2 where trip_no = $1", world.trip_no)
    world.catalogue.forget(world.trip_id)
    made = await world.hold("X1A")
    stale = World.__new__(World)  # another worker, which has not heard of the swap
    stale.catalogue = type(world.catalogue)(world.pool, 10)
    await world.run("update sale.trip_instance set map_version = 1 where trip_no = $1", world.trip_no)
    await stale.catalogue.trip(world.trip_id)
    await world.run("update sale.trip_instance set map_version = 2 where trip_no = $1", world.trip_no)
    for one in desk.parts:
        one.trips = stale.catalogue
    await desk.say()
    assert made.held.map == 2
    assert await desk.seats() == [("X1A", "TAKEN")]


async def test_another_bus_is_a_notice_on_the_seat_channel_and_our_numbers_stay_inside(desk: Desk) -> None:
    world = desk.world
    await world.run(
        "select office.record($1, 't', 't', 'trip', 'BUS_SWAPPED', gen_random_uuid(), 2, $2)",
        PARTNER, {"tripId": world.trip_id, "tripNo": world.trip_no, "mapVersion": 2},
    )  # fmt: skip
    await world.run(
        "select office.record($1, 't', 't', 'ticket', 'ISSUED', gen_random_uuid(), 1, $2)", PARTNER, {"tripNo": world.trip_no, "seat": 5}
    )
    await desk.say()
    log = await desk.redis.channel_log("seats:" + world.trip_id, 0)
    (notice,) = [json.loads(message.payload) for message in log.messages]
    assert (notice["t"], notice["d"]) == ("notice", {"what": "MAP_CHANGED", "mapVersion": 2})
    data = {event.topic: event.data for event in await desk.stream()}
    assert data["ticket"] == {"tripId": world.trip_id, "seat": "2A"}
    assert "tripNo" not in data["trip"]


async def test_a_flushed_redis_in_mid_sale_loses_nothing_that_was_not_yet_said(desk: Desk) -> None:
    await desk.world.hold("1A")
    await desk.say()
    await desk.world.hold("1B")
    await raw(desk.redis).flushall()
    await raw(desk.redis).script_flush()
    await desk.world.hold("1C")
    assert await desk.say() == 2
    assert await desk.seats() == [("1B", "TAKEN"), ("1C", "TAKEN")], "a new epoch: listeners take a snapshot and go on"


@pytest.mark.crash
async def test_events_of_a_sale_without_redis_arrive_when_it_is_back(database_url: str, own_redis: RedisServer) -> None:
    world = await World.make(database_url, own_redis.url)
    relay = running(world)
    try:
        await world.hold("1A")
        await heard(world, 1)
        own_redis.stop()
        for label in ("1B", "1C", "2A"):
            await world.hold(label)  # sales go on
        own_redis.start()
        await heard(world, 4)
        desk = Desk(world)
        assert [seat for seat, _ in await desk.seats()] == ["1A", "1B", "1C", "2A"]
        assert len({event.id for event in await desk.stream()}) == 4
    finally:
        relay.cancel()
        await asyncio.gather(relay, return_exceptions=True)
        await world.close()


async def test_the_bell_wakes_the_relay_of_another_worker_long_before_its_poll(database_url: str, redis_url: str) -> None:
    world = await World.make(database_url, redis_url, outbox_poll_ms=60_000)
    relay = running(world)
    try:
        async with asyncio.timeout(20):  # or it would take the minute of the poll
            bell = Bell(world.redis)
            world.pool.changed = bell.ring
            for label in ("1A", "1B", "1C"):
                await world.hold(label)
            while len(await Desk(world).seats()) < 3:
                await world.run("select 1")  # rings again: the first rings may have come before anybody listened
                await asyncio.sleep(0.02)
    finally:
        relay.cancel()
        await asyncio.gather(relay, return_exceptions=True)
        await world.close()


async def test_a_thousand_events_cost_this_much(desk: Desk) -> None:
    """Prints the CPU of one event in this process; what it is worth is compared in docs, not asserted."""
    await desk.world.run(
        """insert into office.outbox (part, topic, aggregate, version, partner_id, kind, body)
        select 0, 'booking', gen_random_uuid(), 1, $1, 'HELD', jsonb_build_object('tripNo', $2::bigint, 'map', 1, 'seats', array[1, 2],
          'from', 0, 'to', 5, 'state', 'HELD', 'ref', null, 'until', clock_timestamp()) from generate_series(1, 2000)""",
        PARTNER, desk.world.trip_no,
    )  # fmt: skip
    await desk.parts[0].round()
    used = resource.getrusage(resource.RUSAGE_SELF)
    assert await desk.say() == 1500
    now = resource.getrusage(resource.RUSAGE_SELF)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    print(f"{cpu / 1500 * 1e6:.0f} us of CPU an event (two seats and the stream: three messages)")


# ------------------------------------------------------------------------------------------------ the list of types

_SAID = re.compile(r"office\.record\((?:[^()']|\([^()]*\)|'[^']*'(?!,\s*'[A-Z]))*?'([a-z]+)',\s*'([A-Z_]+)'")
_BOOKING = re.compile(
    r"booking\.(?:note|move|shrink)\((?:[^()']|\([^()]*\)|'[^A-Z'][^']*')*?'([A-Z_]+)'(?:, p_actor, p_request, '([A-Z_]+)')?"
)


def test_whatever_our_statements_say_is_in_the_list_of_types() -> None:
    said: set[tuple[str, str]] = set()
    for path in (*(CHECKOUT / "migrations").glob("*.sql"), *(CHECKOUT / "engine/store").glob("*.sql")):
        text = path.read_text(encoding="utf-8")
        said |= set(_SAID.findall(text))
        said |= {("booking", kind or state) for state, kind in _BOOKING.findall(text)}
    assert len(said) > 15, "the statements are read"
    assert {(topic, kind) for topic, kind in said if kind not in TOPICS.get(topic, {})} == set()


def test_every_state_of_a_booking_has_its_event() -> None:
    assert {state for state in STATES if state != "PENDING_PAYMENT"} <= TOPICS["booking"].keys()


def test_every_type_of_operations_is_listed() -> None:
    """The taxonomy that consumers were promised; more may come, none may go."""
    promised = {
        "vehicle": "LOCATION_UPDATED STATUS_CHANGED MAINTENANCE_DUE",
        "route": "OPTIMIZED DEVIATION COMPLETED",
        "trip": "SCHEDULED STARTED DELAYED COMPLETED CANCELLED BUS_SWAPPED",
        "driver": "STATUS_CHANGED LOCATION_UPDATED HOS_VIOLATION",
        "booking": "HELD CREATED CONFIRMED CANCELLED EXPIRED MODIFIED BOARDED",
        "payment": "INITIATED CONFIRMED FAILED REFUNDED",
        "ticket": "ISSUED SCANNED REVOKED",
        "parcel": "CREATED ASSIGNED PICKED_UP IN_TRANSIT DELIVERED CANCELLED DELAYED",
        "partner": "PERFORMANCE_UPDATED CAPACITY_CHANGED",
        "system": "ALERT ANOMALY_SUSPECTED PREDICTION",
    }
    for topic, kinds in promised.items():
        assert set(kinds.split()) <= TOPICS[topic].keys()
    for topic, publishable in PUBLISHABLE.items():
        assert set(publishable) <= TOPICS[topic].keys()


# ------------------------------------------------------------------------------------------------ pure


def row(aggregate: int, version: int) -> Waiting:
    return Waiting("system", name(aggregate), version, PARTNER, "ALERT", {}, 0, False)


def test_an_event_speaks_the_words_of_the_wire_whatever_its_row_says() -> None:
    trip = SimpleNamespace(trip_id="demo:T:20261121", stops=[SimpleNamespace(stop_id=f"demo:{name}") for name in "ABC"])
    said = plain_data({"tripNo": 7, "seat": 2, "from": 0, "to": 2, "amount": 1200, "currency": "DZD", "ref": "X"}, trip, ["1A", "1B"])
    assert said == {
        "tripId": "demo:T:20261121", "seat": "1B", "from": "demo:A", "to": "demo:C", "amount": {"amount": 1200, "currency": "DZD"}, "ref": "X",
    }  # fmt: skip
    assert plain_data({"seat": "4A", "from": "2026-11-01", "currency": "DZD"}, None, ()) == {
        "seat": "4A", "from": "2026-11-01", "currency": "DZD",
    }  # fmt: skip


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 10))
def test_runs_keep_the_order_and_never_have_an_aggregate_twice(aggregates: list[int], most: int) -> None:
    rows = [row(aggregate, i) for i, aggregate in enumerate(aggregates)]
    cut = runs(rows, most)
    assert [one for run in cut for one in run] == rows
    assert all(len({one.chain for one in run}) == len(run) <= most for run in cut)


async def test_a_server_without_our_script_is_given_it_and_nothing_is_lost(redis_url: str) -> None:
    redis = await Redis.connect(Settings(redis_url=redis_url))
    await raw(redis).script_flush()
    lines: list[Line] = [outbox.Saying("seats:t", f"e{i}", b"{}") for i in range(3)]
    lines.insert(1, Entry("e", "system", "ALERT", "north", b"{}"))
    assert await Outlet(redis, 1000).say(lines) == [None] * 4
    log = await redis.channel_log("seats:t", 0)
    assert (log.offset, await raw(redis).xlen(EVENTS)) == (3, 1)
    await redis.close()


# ------------------------------------------------------------------------------------------------ running


def running(world: World) -> asyncio.Task[None]:
    relay = Relay(
        world.redis, Office(world.pool), world.catalogue, Bell(world.redis), clock=world.clock, settings=world.settings, meter=Meter()
    )
    return asyncio.create_task(relay.run())


async def heard(world: World, count: int) -> None:
    """Until so many seats were told."""
    for _ in range(600):
        try:
            if len(await Desk(world).seats()) >= count:
                return
        except Unavailable:
            pass
        await asyncio.sleep(0.05)
    raise AssertionError(f"not {count} seats within 30 s")
