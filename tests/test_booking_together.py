"""Holds and releases that are written together: for each caller it is as if they had been asked for one after the other."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.booking.desk import Wish
from engine.booking.refusals import Refused
from engine.errors import Invalid, Unavailable
from engine.store.gathered import Gathered
from tests.booking_rush import SEATS, STOPS, WORLD
from tests.booking_world import World

HOLD = """select booking.hold('p', %s, decode(%s, 'hex'), %s, %s, %s, %s, %s, %s, %s, 'DZD', '{}', %s, 'WEB', interval '10 minutes', 'x', 'x', 3, 2)"""
HOLD_MANY = "select booking.hold_many('p', %s, interval '10 minutes', %s::jsonb)"


@pytest.fixture
async def world(database_url: str) -> Any:
    made = await World.make(database_url)
    yield made
    await made.close()


WISH = st.fixed_dictionaries(
    {
        "seats": st.lists(st.integers(1, SEATS + 1), min_size=1, max_size=3, unique=True).map(sorted),  # one seat that is none
        "legs": st.tuples(st.integers(0, STOPS - 1), st.integers(0, STOPS)),
        "holder": st.integers(0, 2),
        "key": st.integers(0, 7),
        "map": st.sampled_from([1, 1, 1, 1, 2]),
    }
)


def asked(salt: str, trip: int, wish: dict[str, Any]) -> dict[str, Any]:
    """A wish as booking.wanted on one of the two trips, where nothing but the trip is another."""
    seats, (first, last) = wish["seats"], wish["legs"]
    return {
        "key": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{salt}:{trip}:{wish['key']}")), "print": f"{wish['key']:02x}" + f"{seats[0]:02x}",
        "booking": str(uuid.uuid4()), "map": wish["map"], "seats": seats, "prices": [100] * len(seats), "first": first, "last": last,
        "currency": "DZD", "quote": {}, "holder": f"guest:{salt}:{trip}:{wish['holder']}", "channel": "WEB", "actor": "x", "request": "x",
        "max_seats": 3, "max_holds": 2,
    }  # fmt: skip


def singly(database: psycopg.Connection, trip: int, q: dict[str, Any]) -> Any:
    row = database.execute(
        HOLD, (q["key"], q["print"], q["booking"], trip, q["map"], q["seats"], q["first"], q["last"], q["prices"], q["holder"])
    ).fetchone()
    assert row is not None
    return row[0]


def told(answer: Any) -> tuple[Any, ...]:
    """What a caller is told, without ids and times."""
    return (answer["status"], answer.get("code"), answer.get("seats"), answer.get("from"), answer.get("held"), answer.get("replayed"))


def left(database: psycopg.Connection, trip: int) -> Any:
    """Claims, bookings, audit rows, events and answers of a trip."""
    rows = database.execute(
        """select b.seats::text, b.legs::text, b.state, b.version, split_part(b.holder, ':', 4),
             array(select c.seat || c.legs::text || c.state from booking.seat_claim c where c.booking_id = b.booking_id order by 1),
             (select string_agg(a.action || a.diff::text, ',' order by a.audit_id) from office.audit a where a.entity_id = b.booking_id),
             (select string_agg(o.kind || o.version || (o.body - 'tripNo' - 'until')::text, ',' order by o.version)
               from office.outbox o where o.aggregate = b.booking_id),
             (select count(*) from office.idempotency i where i.answer->>'booking' = b.booking_id::text)
           from booking.booking b where b.trip_no = %s order by 1, 2, 3, 5""", (trip,),
    ).fetchall()  # fmt: skip
    return rows


def test_a_call_for_many_is_as_if_each_had_been_asked_for_alone_in_some_order(database_admin_url: str) -> None:
    with psycopg.connect(database_admin_url, autocommit=True) as database:
        world = WORLD.replace("$STOPS", str(STOPS)).replace("case trip_no when 1 then $SEATS else 99 end", str(SEATS))
        database.execute(world)  # type: ignore[call-overload]
        seen: set[str] = set()

        @given(st.lists(WISH, max_size=4), st.lists(WISH, min_size=1, max_size=8), st.booleans())
        @settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
        def check(before: list[dict[str, Any]], wishes: list[dict[str, Any]], over: bool) -> None:
            salt = uuid.uuid4().hex
            for table in ("booking.booking", "booking.seat_claim", "office.audit", "office.outbox", "office.idempotency"):
                database.execute(f"delete from {table}")  # type: ignore[arg-type]
            for trip in (1, 2):
                for wish in before:
                    singly(database, trip, asked(salt, trip, wish))
                if over:
                    database.execute("update booking.booking set expires_at = clock_timestamp() where trip_no = %s", (trip,))
            together, alone = ([asked(salt, trip, wish) for wish in wishes] for trip in (1, 2))
            row = database.execute(HOLD_MANY, (1, json.dumps(together))).fetchone()
            assert row is not None
            answers = row[0]
            again = [at for at, answer in enumerate(answers) if answer["status"] == "RETRY"]
            order = [at for at in range(len(wishes)) if at not in again] + again
            for at in again:
                answers[at] = singly(database, 1, together[at])
            expected = {at: singly(database, 2, alone[at]) for at in order}
            assert [told(answer) for answer in answers] == [told(expected[at]) for at in range(len(wishes))]
            assert left(database, 1) == left(database, 2)
            seen.update(answer.get("code") or answer["status"] for answer in answers)
            seen.update("RETRY" for _ in again)

        check()
        wanted = {"HELD", "SEAT_TAKEN", "HOLD_LIMIT", "INVALID", "STALE_MAP", "IDEMPOTENCY_KEY_REUSED", "RETRY"}
        assert wanted <= seen


async def test_releases_together_are_as_releases_alone(world: World) -> None:
    there, back = await world.hold("1A"), await world.hold("1B")
    paid = await world.confirmed("2A", who=world.customer())
    over = await world.hold("3A")
    await world.bookings.extend(over.held.booking, 600, 1800, "x", "x")
    key = world.key()
    asks = [
        world.bookings.release(key, there.held.booking, "guest:x", "r1"),
        world.bookings.release(key, there.held.booking, "guest:x", "r2"),  # a double click
        world.bookings.release(world.key(), back.held.booking, "guest:x", "r3"),
        world.bookings.release(world.key(), back.held.booking, "guest:x", "r4"),  # twice, by another key
        world.bookings.release(world.key(), paid["lead"], "guest:x", "r5"),
        world.bookings.release(world.key(), "00000000-0000-0000-0000-000000000000", "guest:x", "r6"),
        world.bookings.release(None, over.held.booking, "guest:x", "r7"),
    ]
    said = await asyncio.gather(*asks, return_exceptions=True)
    assert [one["version"] for one in said[:4]] == [2, 2, 2, 2] and said[6]["version"] == 3  # type: ignore[index]
    assert sum(bool(one.get("replayed")) for one in said[:2]) == 1  # type: ignore[union-attr]
    assert [(type(one), one.code) for one in said[4:6]] == [(Refused, "WRONG_STATE"), (Refused, "HOLD_NOT_FOUND")]  # type: ignore[union-attr]
    assert [seat for _, seat, _, _ in await world.claims()] == [5]
    rows = await world.run("select action, count(*) from office.audit where action = 'booking.RELEASED' group by action")
    assert [tuple(row) for row in rows] == [("booking.RELEASED", 3)]
    assert await world.value("select count(*) from office.outbox where kind = 'RELEASED'") == 3


async def test_a_swap_that_waits_and_a_twin_elsewhere_hold_up_nobody_else(world: World) -> None:
    lines = [await world.pool.pool.acquire() for _ in range(2)]
    swap, twin = (line.transaction() for line in lines)
    await swap.start()
    await twin.start()
    try:
        key = world.key()
        await lines[1].execute("select booking.lock_key($1)", key.key)
        waiting = asyncio.create_task(
            world.desk.hold(world.guest(), key, world.trip_id, Wish(start="demo:A", end="demo:F", labels=("1A",)))
        )
        assert (await asyncio.wait_for(world.hold("1B"), 1)).labels == ("1B",)
        await twin.rollback()
        assert (await waiting).labels == ("1A",)
        await lines[0].execute("select booking.lock_trip($1, true)", world.trip_no)
        later = [asyncio.create_task(world.hold(label)) for label in ("2A", "2B")]
        await asyncio.sleep(0.1)
        await swap.rollback()
        assert [(await one).labels for one in later] == [("2A",), ("2B",)]
    finally:
        for line in lines:
            await world.pool.pool.release(line)


async def test_an_unfinished_claim_of_a_stranger_sends_everybody_singly(world: World) -> None:
    line = await world.pool.pool.acquire()
    stranger = line.transaction()
    await stranger.start()
    try:
        await line.execute("select set_config('tp.partner', 'north', true)")
        await line.execute(
            "insert into booking.seat_claim (booking_id, map_version, seat, partner_id, trip_no, legs, state)"
            " values (gen_random_uuid(), 1, 1, 'north', $1, '[0,5)', 'HELD')", world.trip_no,
        )  # fmt: skip
        asked = [asyncio.create_task(world.hold(*labels)) for labels in (("1A", "1C"), ("1B",), ("1D",))]
        assert [(await one).labels for one in asked[1:]] == [("1B",), ("1D",)]
        await stranger.rollback()
        assert (await asked[0]).labels == ("1A", "1C")
        assert await world.overlaps() == 0 and len(await world.claims()) == 4
    finally:
        await world.pool.pool.release(line)


async def test_what_cannot_be_stored_for_one_is_stored_for_the_others(world: World) -> None:
    first, second = await world.hold("1A"), await world.hold("1B")
    asks = [
        world.bookings.release(world.key(), held.held.booking, actor, "r") for held, actor in ((first, "guest:\0"), (second, "guest:x"))
    ]
    bad, good = await asyncio.gather(*asks, return_exceptions=True)
    assert isinstance(bad, Invalid) and good["status"] == "RELEASED"  # type: ignore[index]


# --- who goes with whom


async def test_who_asks_alone_goes_at_once_and_others_gather_meanwhile() -> None:
    calls: list[tuple[str, list[int]]] = []
    gate = asyncio.Event()

    async def work(group: str, asked: Any) -> list[int]:
        calls.append((group, list(asked)))
        await gate.wait()
        return [10 * one for one in asked]

    together: Gathered[str, int, int] = Gathered(work, 4)
    tasks = [asyncio.create_task(together.ask("a", 0))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(together.ask("a", n)) for n in range(1, 7)] + [asyncio.create_task(together.ask("b", 7))]
    await asyncio.sleep(0)
    tasks[3].cancel()  # leaves; its call goes on
    await asyncio.sleep(0)
    assert calls == [("a", [0]), ("b", [7])]
    gate.set()
    assert [one for one in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(one, int)] == [0, 10, 20, 40, 50, 60, 70]
    assert calls[2:] == [("a", [1, 2, 3, 4]), ("a", [5, 6])]


async def test_what_a_call_meets_all_its_callers_hear_and_the_next_goes_on() -> None:
    async def work(_: None, asked: Any) -> list[int]:
        if 1 in asked:
            raise Unavailable("away")
        return list(asked)

    together: Gathered[None, int, int] = Gathered(work, 8)
    said = await asyncio.gather(together.ask(None, 1), together.ask(None, 2), return_exceptions=True)
    assert [type(one) for one in said] == [Unavailable, Unavailable]
    assert await together.ask(None, 3) == 3
