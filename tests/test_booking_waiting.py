"""The waitlist, with the events that free seats; the waiting room of a rush."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine.booking.callers import Caller, HoldTokens
from engine.booking.desk import Named
from engine.booking.refusals import Refused
from engine.booking.room import OFF, ON, QueueTokens, Room, Switch
from engine.booking.waitlist import Waitlist
from engine.clock import ManualClock
from engine.errors import Invalid, NotFound, Unavailable
from engine.meter import Meter
from engine.office.outbox import PARTS, Counts, Dispatcher
from engine.settings import Settings
from engine.store.auditor import audit
from engine.store.office import Office
from engine.store.outlet import Outlet
from engine.store.queue import Queue
from engine.store.redis import Redis
from engine.store.waiting import Rooms, Waiting
from tests.booking_world import OTHER, PARTNER, SECRET, FlatPrices, World

TRIP = "demo:T1:20261121"


class Line:
    """A world, its waitlist, and the relay that tells it of freed seats."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.list = Waitlist(world.pool, world.catalogue, FlatPrices(), world.tokens, SECRET, clock=world.clock, settings=world.settings)
        outlet = Outlet(world.redis, 1000)
        given: dict[str, Any] = {"clock": world.clock, "settings": world.settings, "counts": Counts(Meter()), "keep": [self.list.keep]}
        self.relay = [Dispatcher(part, Office(world.pool), outlet, world.catalogue, **given) for part in range(PARTS)]

    async def join(self, count: int = 1, start: str = "demo:A", end: str = "demo:F", who: str = "", caller: Any = None) -> dict[str, Any]:
        contact = {"email": f"{who or self.world.clock.token(6)}@example.org"}
        caller = caller or self.world.guest()
        body: dict[str, Any] = (await self.list.join(caller, self.world.key(), self.world.trip_id, count, start, end, contact)).body
        return body

    async def see(self, place: dict[str, Any]) -> dict[str, Any]:
        return await self.list.show(self.world.guest(), place["token"], place["id"])

    async def turn(self) -> int:
        """The relay says what happened, and freed seats are offered; how many offers."""
        for one in self.relay:
            while await one.round():
                pass
        return await self.list.round()

    async def fill(self) -> list[Any]:
        """Every seat is somebody's hold of its own."""
        trip = await self.world.catalogue.trip(self.world.trip_id)
        return [await self.world.hold(label) for label in trip.labels]


@pytest.fixture
async def line(database_url: str, redis_url: str) -> AsyncIterator[Line]:
    world = await World.make(database_url, redis_url)
    yield Line(world)
    said = await audit(database_url, world.clock, keep_days=7)
    await world.close()
    assert [(one.name, one.fault, one.broken) for one in said.findings if not one.holds] == []


# ------------------------------------------------------------------------------------------------ the waitlist


async def test_a_seat_that_is_let_go_is_offered_to_who_waits_and_held_for_them(line: Line) -> None:
    holds = await line.fill()
    place = await line.join()
    assert (await line.turn(), place["status"], place["position"]) == (0, "WAITING", 1)
    await line.world.desk.release(line.world.guest(holds[3].token), line.world.key(), holds[3].held.booking)
    assert await line.turn() == 1
    offer = (await line.see(place))["offer"]
    assert [seat["seat"] for seat in offer["seats"]] == ["1D"] and offer["total"] == {"amount": 50_000, "currency": "DZD"}
    shown = await line.world.desk.show(line.world.guest(offer["holdToken"]), booking_id=offer["holdId"])
    assert shown["rows"][0]["channel"] == "WAITLIST"
    said = await line.world.value(
        "select count(*) from office.outbox where kind = 'WAITLIST_OFFERED' and body->>'entryId' = $1", place["id"]
    )
    assert said == 1


async def test_the_token_of_a_place_is_the_same_for_who_asks_again_and_kept_nowhere(line: Line) -> None:
    await line.fill()
    key, guest = line.world.key(), Caller(request_id="r")
    wish = (line.world.trip_id, 1, "demo:A", "demo:F", {"email": "amal@example.org"})
    first, again = [await line.list.join(guest, key, *wish) for _ in range(2)]
    assert again.replayed and again.body == first.body
    assert await line.world.value("select count(*) from office.idempotency where strpos(answer::text, $1) > 0", first.body["token"]) == 0
    assert (await line.list.show(guest, first.body["token"], first.body["id"]))["position"] == 1


async def test_a_hold_that_ran_out_frees_seats_for_who_waits(line: Line) -> None:
    holds = await line.fill()
    place = await line.join()
    await line.turn()
    await line.world.age(holds[0].held.booking, 1_000)
    await line.world.value("select booking.expire(array[$1::uuid], 'sweep')", holds[0].held.booking)
    assert await line.turn() == 1
    assert (await line.see(place))["status"] == "OFFERED"


async def test_the_looking_goes_on_by_itself_and_wakes_when_the_relay_says_what_was_freed(line: Line) -> None:
    holds = await line.fill()
    place = await line.join()
    running = asyncio.create_task(line.list.run())
    try:
        await line.world.desk.release(line.world.guest(holds[3].token), line.world.key(), holds[3].held.booking)
        for one in line.relay:
            while await one.round():
                pass
        async with asyncio.timeout(20):
            while (await line.see(place))["status"] != "OFFERED":
                pass
    finally:
        running.cancel()


async def test_first_come_first_served_among_those_who_fit(line: Line) -> None:
    holds = await line.fill()
    pair, alone, later = await line.join(2), await line.join(1), await line.join(1)
    await line.turn()
    for hold in holds[:1]:
        await line.world.desk.release(line.world.guest(hold.token), line.world.key(), hold.held.booking)
    assert await line.turn() == 1
    assert [(await line.see(place))["status"] for place in (pair, alone, later)] == ["WAITING", "OFFERED", "WAITING"]
    for hold in holds[1:3]:
        await line.world.desk.release(line.world.guest(hold.token), line.world.key(), hold.held.booking)
    assert await line.turn() == 1
    assert [(await line.see(place))["status"] for place in (pair, alone, later)] == ["OFFERED", "OFFERED", "WAITING"]


async def test_an_offer_that_lapses_is_passed_on(line: Line) -> None:
    holds = await line.fill()
    first, second = await line.join(), await line.join()
    await line.turn()
    await line.world.desk.release(line.world.guest(holds[0].token), line.world.key(), holds[0].held.booking)
    await line.turn()
    await line.world.age((await line.see(first))["offer"]["holdId"], 2_000)
    assert (await line.see(first))["offer"] is None
    assert await line.list.round(everything=True) == 1
    assert ((await line.see(first))["status"], (await line.see(second))["status"]) == ("LAPSED", "OFFERED")


async def test_an_offer_that_is_booked_is_taken(line: Line) -> None:
    place = await line.join()
    assert await line.turn() == 1
    offer = (await line.see(place))["offer"]
    named = [Named(seat=offer["seats"][0]["seat"], first_name="Amal", last_name="B")]
    await line.world.desk.book(line.world.guest(offer["holdToken"]), line.world.key(), [offer["holdId"]], named, {"email": "a@example.org"})
    assert (await line.list.leave(line.world.guest(), place["token"], place["id"]))["status"] == "TAKEN"  # nothing is lost by leaving late
    shown = await line.world.desk.show(line.world.guest(offer["holdToken"]), booking_id=offer["holdId"])
    assert shown["rows"][0]["state"] == "PENDING_PAYMENT"


async def test_who_leaves_gives_up_what_was_offered(line: Line) -> None:
    holds = await line.fill()
    first, second = await line.join(), await line.join()
    await line.turn()
    await line.world.desk.release(line.world.guest(holds[0].token), line.world.key(), holds[0].held.booking)
    await line.turn()
    assert (await line.list.leave(line.world.guest(), first["token"], first["id"]))["status"] == "LEFT"
    assert (await line.list.leave(line.world.guest(), first["token"], first["id"]))["status"] == "LEFT"
    assert await line.turn() == 1
    assert (await line.see(second))["status"] == "OFFERED"


async def test_two_that_look_at_once_offer_a_seat_once(line: Line) -> None:
    holds = await line.fill()
    places = [await line.join() for _ in range(4)]
    await line.turn()
    for hold in holds[:2]:
        await line.world.desk.release(line.world.guest(hold.token), line.world.key(), hold.held.booking)
    await asyncio.gather(*(line.list.round(everything=True) for _ in range(4)))
    await line.list.round(everything=True)
    assert [(await line.see(place))["status"] for place in places] == ["OFFERED", "OFFERED", "WAITING", "WAITING"]
    assert await line.world.overlaps() == 0


async def test_nobody_stands_in_a_line_twice_and_nobody_reads_anothers_place(line: Line) -> None:
    place = await line.join(who="amal")
    with pytest.raises(Refused) as refused:
        await line.join(who="AMAL")
    assert refused.value.code == "ALREADY_WAITING"
    other = await line.join(who="ilyes")
    for caller, token in ((line.world.guest(), None), (line.world.guest(), other["token"]), (line.world.agent(OTHER), None)):
        with pytest.raises(NotFound):
            await line.list.show(caller, token, place["id"])
    assert (await line.list.show(line.world.agent(PARTNER), None, place["id"]))["id"] == place["id"]


async def test_a_wish_that_can_never_be_met_is_refused(line: Line) -> None:
    for count, start, end in ((0, "demo:A", "demo:F"), (7, "demo:A", "demo:F"), (1, "demo:F", "demo:A"), (1, "demo:A", "demo:Z")):
        with pytest.raises(Invalid):
            await line.join(count, start, end)
    with pytest.raises(Invalid):
        await line.list.join(line.world.guest(), None, line.world.trip_id, 1, "demo:A", "demo:F", {})
    with pytest.raises(NotFound):
        await line.list.join(line.world.guest(), None, "demo:NONE:20261121", 1, "demo:A", "demo:F", {"phone": "+213 555"})


async def test_the_places_of_a_trip_that_is_no_longer_sold_are_closed(line: Line) -> None:
    await line.fill()
    place = await line.join()
    await line.world.run("update sale.trip_instance set closes_at = clock_timestamp() where trip_no = $1", line.world.trip_no)
    await line.list.round(everything=True)
    assert (await line.see(place))["status"] == "CLOSED"


async def test_every_change_of_a_place_leaves_an_audit_row_and_an_event(line: Line) -> None:
    place = await line.join()
    await line.turn()
    await line.list.leave(line.world.guest(), place["token"], place["id"])
    kinds = [row[0] for row in await line.world.run("select kind from office.outbox where topic = 'waitlist' order by version")]
    assert kinds == ["JOINED", "OFFERED", "LEFT"]
    audited = await line.world.value("select count(*) from office.audit where action like 'waitlist.%'")
    assert audited == 3


# ------------------------------------------------------------------------------------------------ the waiting room


class Memory:
    """A queue in memory that can be away, and switches by hand."""

    def __init__(self) -> None:
        self.away, self.hot, self.next_ms, self.number = False, list[str](), 0.0, 0
        self.said: dict[str, Switch] = {}
        self.reported: list[dict[str, int]] = []

    async def take(self, trip_id: str, now_ms: int, admit_per_s: float) -> tuple[int, int]:
        if self.away:
            raise Unavailable("away")
        at = max(float(now_ms), self.next_ms)
        self.next_ms, self.number = at + 1000 / admit_per_s, self.number + 1
        return self.number, round(at)

    async def report(self, tries: dict[str, int], now_ms: int, threshold_per_s: float, calm_ms: int) -> list[str]:
        if self.away:
            raise Unavailable("away")
        self.reported.append(tries)
        return self.hot

    async def switches(self) -> dict[str, Switch]:
        return self.said


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def room(memory: Memory) -> Room:
    return Room(memory, memory, SECRET, clock=ManualClock(1_000_000), settings=Settings(rush_admit_per_s=2.0, rush_pass_s=60))


async def refused(room: Room, token: str | None, trip_id: str = TRIP) -> tuple[str, str, float | None]:
    with pytest.raises(Refused) as found:
        await room.check(trip_id, token)
    return found.value.code, found.value.errors[0]["code"], found.value.retry_after_s


async def test_nobody_queues_for_a_trip_that_is_not_hot(room: Room, memory: Memory) -> None:
    await room.check(TRIP, None)
    await room.check(TRIP, "nonsense")
    assert (await room.join(TRIP)).position == 0
    await room.refresh()
    assert memory.reported == [{TRIP: 2}]


async def test_a_hot_trip_lets_so_many_in_a_second_in_the_order_in_which_they_came(room: Room, memory: Memory) -> None:
    memory.hot = [TRIP]
    await room.refresh()
    assert await refused(room, None) == ("WAITING_ROOM", "NO_QUEUE_TOKEN", 1.0)
    places = [await room.join(TRIP) for _ in range(4)]
    assert [(one.position, one.admitted_at_ms - 1_000_000) for one in places] == [(0, 0), (1, 500), (2, 1000), (3, 1500)]
    await room.check(TRIP, places[0].queue_token)
    assert await refused(room, places[3].queue_token) == ("WAITING_ROOM", "NOT_YET", 1.5)
    room._clock.advance(1_500)  # type: ignore[attr-defined]
    await room.check(TRIP, places[3].queue_token)
    room._clock.advance(60_001)  # type: ignore[attr-defined]
    assert await refused(room, places[3].queue_token) == ("WAITING_ROOM", "QUEUE_TOKEN_OVER", 1.0)


async def test_a_place_is_good_for_its_own_trip_and_cannot_be_forged(room: Room, memory: Memory) -> None:
    memory.hot = [TRIP, "demo:T2:20261121"]
    await room.refresh()
    token = (await room.join(TRIP)).queue_token
    assert (await refused(room, token, "demo:T2:20261121"))[1] == "QUEUE_TOKEN_INVALID"
    for place in range(len(token)):
        altered = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        if QueueTokens(SECRET).read(TRIP, altered) is not None:
            assert altered.rstrip("=")[-1] != token.rstrip("=")[-1]  # the last letter has bits that mean nothing
    assert QueueTokens("another secret").read(TRIP, token) is None
    assert (await refused(room, "é"))[1] == "QUEUE_TOKEN_INVALID"


async def test_an_operator_closes_and_opens_a_room_and_says_how_fast(room: Room, memory: Memory) -> None:
    memory.said = {TRIP: Switch(ON, 10.0)}
    await room.refresh()
    assert [(await room.join(TRIP)).admitted_at_ms for _ in range(2)] == [1_000_000, 1_000_100]
    memory.said, memory.hot = {TRIP: Switch(OFF, None)}, [TRIP]
    await room.refresh()
    await room.refresh()
    await room.check(TRIP, None)


async def test_with_redis_away_every_room_is_open(room: Room, memory: Memory) -> None:
    memory.hot = [TRIP]
    await room.refresh()
    memory.away = True
    assert (await room.join(TRIP)).position == 0
    await room.refresh()
    await room.check(TRIP, None)


async def test_attempts_of_all_workers_make_a_trip_hot_and_calm_cools_it(redis_url: str) -> None:
    redis = await Redis.connect(Settings(redis_url=redis_url))
    queue = Queue(redis)
    try:
        assert await queue.report({TRIP: 30}, 5_000, 50, 10_000) == []
        assert await queue.report({TRIP: 30, "b": 1}, 5_900, 50, 10_000) == [TRIP]
        assert await queue.report({}, 15_000, 50, 10_000) == [TRIP]
        assert await queue.report({TRIP: 1}, 16_000, 50, 10_000) == []
        taken = [await queue.take(TRIP, 20_000, 4.0) for _ in range(3)]
        assert taken == [(1, 20_000), (2, 20_250), (3, 20_500)]
        assert await queue.take(TRIP, 30_000, 4.0) == (4, 30_000)
        many = await asyncio.gather(*(queue.take(TRIP, 30_000, 100.0) for _ in range(50)))
        assert sorted(at for _, at in many) == [30_250 + 10 * n for n in range(50)]
    finally:
        await redis.close()


async def test_a_stopped_redis_leaves_holds_open(database_url: str) -> None:
    world = await World.make(database_url)
    try:
        room = Room(Queue(world.redis), Rooms(world.pool), SECRET, clock=world.clock, settings=world.settings)
        await room.refresh()
        await room.check(world.trip_id, None)
        assert (await room.join(world.trip_id)).position == 0
    finally:
        await world.close()


async def test_the_operators_switch_reaches_the_hold(line: Line) -> None:
    world = line.world
    room = Room(Queue(world.redis), Rooms(world.pool), SECRET, clock=world.clock, settings=world.settings)
    world.desk.room = room

    async def close(connection: Any) -> None:
        await Waiting(connection).put_switch(world.trip_no, PARTNER, Switch(ON, 5.0), "agent:desk", "r")

    await world.pool.run(PARTNER, close)
    await room.refresh()
    with pytest.raises(Refused) as found:
        await world.hold("1A")
    assert found.value.code == "WAITING_ROOM" and found.value.status == 429
    assert (await world.hold("1A", who=world.agent())).labels == ("1A",)  # the operator's own desk does not queue


def test_tokens_of_the_waitlist_open_no_hold() -> None:
    token = HoldTokens("waitlist:" + SECRET).mint("0195c0de-0001-7000-8000-000000000003")
    with pytest.raises(Exception, match="none of ours"):
        HoldTokens(SECRET).read(token, 0)
