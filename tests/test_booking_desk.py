"""The desk on a real PostgreSQL: seats are held all or none, once for each leg, and everything asked twice is answered once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from engine.booking.booking import MOVES, STATES, diagram
from engine.booking.callers import Caller
from engine.booking.desk import Named, Wish
from engine.booking.refusals import Refused
from engine.errors import Invalid, NotFound
from tests.booking_world import OTHER, World


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    made = await World.make(database_url)
    yield made
    await made.close()


async def test_the_database_knows_the_same_table_of_moves(world: World) -> None:
    rows = await world.run("select from_state, to_state from booking.edge")
    assert {(r[0], r[1]) for r in rows} == {(a, b) for a, moves in MOVES.items() for b in moves}
    assert all(state in diagram() for state in STATES)


async def test_a_hold_answers_prices_an_end_and_a_token(world: World) -> None:
    made = await world.hold("1A", "1B", frm="demo:B", to="demo:D")
    assert made.labels == ("1A", "1B")
    assert made.held.prices == [20_000, 20_000]
    assert await world.claims() == [(made.held.booking, 1, "1-3", "HELD"), (made.held.booking, 2, "1-3", "HELD")]
    opened = await world.desk.show(world.guest(made.token), booking_id=made.held.booking)
    assert opened["rows"][0]["state"] == "HELD"


async def test_one_seat_of_three_taken_leaves_zero_rows_and_the_others_free(world: World) -> None:
    await world.hold("1B")
    before = await world.value("select count(*) from booking.booking")
    with pytest.raises(Refused) as refused:
        await world.hold("1A", "1B", "1C")
    assert refused.value.code == "SEAT_TAKEN"
    assert [(fault["pointer"], fault["detail"][:2]) for fault in refused.value.errors] == [("/seats/1", "1B")]
    assert await world.value("select count(*) from booking.booking") == before
    assert (await world.hold("1A", "1C")).labels == ("1A", "1C")


async def test_a_to_b_then_b_to_c_on_one_seat(world: World) -> None:
    await world.hold("1A", frm="demo:A", to="demo:B")
    await world.hold("1A", frm="demo:B", to="demo:C")
    with pytest.raises(Refused, match="taken"):
        await world.hold("1A", frm="demo:A", to="demo:C")
    assert len(await world.claims()) == 2 and await world.overlaps() == 0


async def test_many_strangers_want_the_same_seats_at_once_and_one_has_them(world: World) -> None:
    asked = [world.hold("2A", "2B") if n % 2 else world.hold("2B", "2A") for n in range(24)]
    done = await asyncio.gather(*asked, return_exceptions=True)
    won = [one for one in done if not isinstance(one, BaseException)]
    assert len(won) == 1
    assert all(isinstance(one, Refused) and one.code == "SEAT_TAKEN" for one in done if isinstance(one, BaseException))
    assert len(await world.claims()) == 2


async def test_a_double_click_holds_once(world: World) -> None:
    key = world.key()
    wish = Wish(start="demo:A", end="demo:F", labels=("1A",))
    first, second = await asyncio.gather(*(world.desk.hold(world.guest(), key, world.trip_id, wish) for _ in range(2)))
    assert first.held.booking == second.held.booking and first.token == second.token
    assert sorted([first.held.replayed, second.held.replayed]) == [False, True]
    assert len(await world.claims()) == 1


async def test_a_retry_on_another_worker_gets_the_first_answer(world: World, database_url: str) -> None:
    key, wish = world.key(), Wish(start="demo:A", end="demo:F", labels=("1A",))
    first = await world.desk.hold(world.guest(), key, world.trip_id, wish)
    elsewhere = World()
    elsewhere.__dict__.update(world.__dict__)
    from engine.booking.catalogue import Catalogue
    from engine.store.bookings import Bookings
    from engine.store.desk import DeskPool

    pool = await DeskPool.open(world.settings, world.clock)
    try:
        desk = type(world.desk)(
            Bookings(pool), Catalogue(pool, 10), world.desk.pricing, world.tokens, clock=world.clock, settings=world.settings
        )
        again = await desk.hold(world.guest(), key, world.trip_id, wish)
    finally:
        await pool.close()
    assert again.held.replayed and (again.held.booking, again.token) == (first.held.booking, first.token)


async def test_a_retry_after_the_bus_was_swapped_gets_the_first_answer_though_its_seats_are_called_otherwise_now(world: World) -> None:
    key, other, wish = world.key(), world.key(), Wish(start="demo:A", end="demo:F", labels=("1A",))
    made = await world.desk.hold(world.guest(), key, world.trip_id, wish)
    me, named = world.guest(made.token), [Named(seat="1A", first_name="Amal", last_name="Benaïssa")]
    booked, _ = await world.desk.book(me, other, [made.held.booking], named, {})
    await world.run(
        """insert into sale.seat_map select trip_no, 2, partner_id, seats, array(select 'X' || label from unnest(labels) label), layout
        from sale.seat_map where trip_no = $1""", world.trip_no,
    )  # fmt: skip
    for table in ("booking.seat_claim", "booking.booking", "sale.trip_instance"):
        await world.run(f"update {table} set map_version = 2 where trip_no = $1", world.trip_no)
    world.catalogue.forget(world.trip_id)
    again = await world.desk.hold(world.guest(), key, world.trip_id, wish)
    assert again.held.replayed and (again.held.booking, again.labels, again.token) == (made.held.booking, ("1A",), made.token)
    shown, replayed = await world.desk.book(me, other, [made.held.booking], named, {})
    assert replayed and shown["ref"] == booked["ref"]
    with pytest.raises(Invalid):
        await world.desk.hold(world.guest(), world.key(), world.trip_id, wish)


async def test_the_same_key_with_another_body_is_refused(world: World) -> None:
    key = world.key()
    await world.desk.hold(world.guest(), key, world.trip_id, Wish(start="demo:A", end="demo:F", labels=("1A",)))
    other = world.key(key.key, b"another body")
    with pytest.raises(Refused) as refused:
        await world.desk.hold(world.guest(), other, world.trip_id, Wish(start="demo:A", end="demo:F", labels=("1B",)))
    assert (refused.value.code, refused.value.status) == ("IDEMPOTENCY_KEY_REUSED", 422)


async def test_a_refusal_is_judged_anew_under_the_same_key(world: World) -> None:
    blocker = await world.hold("1A")
    key, wish = world.key(), Wish(start="demo:A", end="demo:F", labels=("1A",))
    with pytest.raises(Refused):
        await world.desk.hold(world.guest(), key, world.trip_id, wish)
    await world.desk.release(world.guest(blocker.token), None, blocker.held.booking)
    assert not (await world.desk.hold(world.guest(), key, world.trip_id, wish)).held.replayed


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        (Wish(start="demo:A", end="demo:F", labels=("9Z",)), "UNKNOWN_SEAT"),
        (Wish(start="demo:X", end="demo:F", labels=("1A",)), "UNKNOWN_STOP"),
        (Wish(start="demo:C", end="demo:C", labels=("1A",)), "WRONG_DIRECTION"),
        (Wish(start="demo:D", end="demo:B", labels=("1A",)), "WRONG_DIRECTION"),
        (Wish(start="demo:A", end="demo:F", labels=("1A", "1A")), "SEAT_TWICE"),
        (Wish(start="demo:A", end="demo:F"), "MISSING_FIELD"),
        (Wish(start="demo:A", end="demo:F", count=100), "TOO_MANY_SEATS"),
        (Wish(start="demo:A", end="demo:F", labels=tuple(f"{n}A" for n in range(100))), "TOO_MANY_SEATS"),
    ],
)
async def test_a_wish_that_makes_no_sense_names_what_is_wrong_and_leaves_nothing(world: World, wish: Wish, code: str) -> None:
    with pytest.raises(Invalid) as refused:
        await world.desk.hold(world.guest(), world.key(), world.trip_id, wish)
    assert refused.value.errors[0]["code"] == code
    assert await world.claims() == [] and await world.value("select count(*) from office.idempotency") == 0


async def test_an_unknown_trip_is_not_found(world: World) -> None:
    with pytest.raises(NotFound):
        await world.hold("1A", trip="demo:NONE:20990101")


async def test_a_guest_holds_six_seats_and_three_holds_at_a_time(world: World) -> None:
    first = await world.hold("1A")
    me = world.guest(first.token)
    second = await world.hold("1B", who=me)
    await world.hold("1C", who=world.guest(second.token))  # the second token names the same guest
    with pytest.raises(Refused) as refused:
        await world.hold("1D", who=me)
    assert refused.value.code == "HOLD_LIMIT"
    await world.hold("2A", "2B", "2C", "2D", "3A", "3B", "3C", who=world.agent())  # a desk has no limits


async def test_an_expired_hold_is_taken_over_whole(world: World) -> None:
    old = await world.hold("1A", "1B")
    await world.age(old.held.booking, 601)
    new = await world.hold("1A")
    assert [claim[0] for claim in await world.claims()] == [new.held.booking]
    shown = await world.desk.show(world.guest(old.token), booking_id=old.held.booking)
    assert shown["rows"][0]["state"] == "EXPIRED"


async def test_a_hold_whose_payment_is_in_progress_is_never_taken_over(world: World) -> None:
    shown = await world.booked("1A")
    await world.age(shown["lead"], 3_000)
    await world.run("update booking.booking set paying = true where lead_id = $1", shown["lead"])
    with pytest.raises(Refused, match="taken"):
        await world.hold("1A")


async def test_releasing_frees_the_seats_and_says_the_same_twice(world: World) -> None:
    made = await world.hold("1A")
    me = world.guest(made.token)
    assert (await world.desk.release(me, None, made.held.booking))["status"] == "RELEASED"
    assert (await world.desk.release(me, None, made.held.booking))["status"] == "RELEASED"
    assert await world.claims() == []


async def test_a_hold_is_extended_within_its_longest_life_and_not_after_its_end(world: World) -> None:
    made = await world.hold("1A")
    me = world.guest(made.token)
    await world.age(made.held.booking, 500)
    longer = await world.desk.extend(me, made.held.booking)
    assert longer["rows"][0]["until"] > made.held.until.isoformat()
    await world.age(made.held.booking, 1_000)
    with pytest.raises(Refused) as refused:
        await world.desk.extend(me, made.held.booking)
    assert refused.value.code == "HOLD_EXPIRED"


async def test_a_foreign_hold_is_as_unknown_as_none(world: World) -> None:
    made = await world.hold("1A")
    stranger = world.guest((await world.hold("1B")).token)
    for caller in (world.guest(), stranger, world.customer(), world.agent(OTHER)):
        with pytest.raises(NotFound):
            await world.desk.show(caller, booking_id=made.held.booking)
        with pytest.raises(NotFound):
            await world.desk.release(caller, None, made.held.booking)
    assert await world.desk.show(world.agent(), booking_id=made.held.booking)


async def test_a_booking_names_a_passenger_for_each_seat_and_prices_them(world: World) -> None:
    made = await world.hold("1A", "1B", frm="demo:A", to="demo:C")
    named = [
        Named(seat="1A", first_name="Amal", last_name="Benaïssa"),
        Named(seat="1B", first_name="Ilyes", last_name="Benaïssa", type="CHILD"),
    ]
    shown, replayed = await world.desk.book(world.guest(made.token), world.key(), [made.held.booking], named, {"phone": "+213555"})
    row = shown["rows"][0]
    assert (row["state"], row["prices"], row["total"], replayed) == ("PENDING_PAYMENT", [20_000, 10_000], 30_000, False)
    assert len(shown["ref"]) == 6 and not set(shown["ref"]) & set("0O1I")
    found, token, _ = await world.desk.lookup(shown["ref"].lower(), "BENAISSA")
    assert found["lead"] == shown["lead"]
    assert await world.desk.show(world.guest(token), reference=shown["ref"])
    with pytest.raises(NotFound):
        await world.desk.lookup(shown["ref"], "Somebody")


async def test_a_look_up_opens_nothing_for_longer_by_way_of_a_hold(world: World) -> None:
    first = await world.booked("1A")
    _, token, until_ms = await world.desk.lookup(first["ref"], "Benaïssa")
    made = await world.hold("1B", who=world.guest(token))
    mine = world.tokens.read(made.token, until_ms + 1)  # good when the look-up's token is over
    assert await world.desk.show(world.guest(made.token), booking_id=made.held.booking)
    with pytest.raises(NotFound):
        await world.desk.show(Caller(request_id="r", opened=mine), reference=first["ref"])


async def test_a_used_or_expired_hold_cannot_be_booked(world: World) -> None:
    made = await world.hold("1A")
    me, named = world.guest(made.token), [Named(seat="1A", first_name="A", last_name="B")]
    await world.desk.book(me, world.key(), [made.held.booking], named, {})
    with pytest.raises(Refused) as used:
        await world.desk.book(me, world.key(), [made.held.booking], named, {})
    late = await world.hold("1B")
    await world.age(late.held.booking, 601)
    with pytest.raises(Refused) as over:
        await world.desk.book(
            world.guest(late.token), world.key(), [late.held.booking], [Named(seat="1B", first_name="A", last_name="B")], {}
        )
    assert (used.value.code, over.value.code) == ("HOLD_USED", "HOLD_EXPIRED")


@pytest.mark.parametrize("labels", [("1A",), ("1A", "1B", "1C"), ("1A", "1A"), ("1A", "3D")])
async def test_passengers_who_do_not_match_the_seats_are_refused(world: World, labels: tuple[str, ...]) -> None:
    made = await world.hold("1A", "1B")
    named = [Named(seat=label, first_name="A", last_name="B") for label in labels]
    with pytest.raises(Invalid):
        await world.desk.book(world.guest(made.token), world.key(), [made.held.booking], named, {})


async def test_a_return_trip_is_one_booking_of_two_trips(world: World) -> None:
    back_id, back_no = await world.trip(stops=("F", "E", "D", "C", "B", "A"), departs_in=timedelta(days=4))
    there = await world.hold("1A")
    me = world.guest(there.token)
    back = await world.hold("1A", frm="demo:F", to="demo:A", trip=back_id, who=me)
    shown, _ = await world.desk.book(
        me, world.key(), [there.held.booking, back.held.booking],
        [Named(seat="1A", first_name="Amal", last_name="B", trip_id=trip) for trip in (world.trip_id, back_id)], {},
    )  # fmt: skip
    assert [row["tripNo"] for row in shown["rows"]] == [world.trip_no, back_no]
    assert {row["state"] for row in shown["rows"]} == {"PENDING_PAYMENT"}
    with pytest.raises(NotFound):
        await world.desk.show(world.guest((await world.hold("1B")).token), reference=shown["ref"])
    await world.desk.release(me, None, there.held.booking)
    assert [claim[1] for claim in await world.claims()] == [2] and await world.claims(back_no) == []


async def test_a_return_trip_expires_whole_or_not_at_all(world: World) -> None:
    back_id, back_no = await world.trip(stops=("F", "E", "D", "C", "B", "A"), departs_in=timedelta(days=4))
    desk = world.agent()
    there = await world.hold("1A", who=desk)
    back = await world.hold("1A", frm="demo:F", to="demo:A", trip=back_id, who=desk)
    named = [Named(seat="1A", first_name="A", last_name="B", trip_id=trip) for trip in (world.trip_id, back_id)]
    await world.desk.book(desk, world.key(), [there.held.booking, back.held.booking], named, {})
    await world.age(there.held.booking, 601)
    assert await world.value("select booking.expire($1, 'test')", [there.held.booking]) is None
    await world.age(back.held.booking, 601)
    assert len(await world.value("select booking.expire($1, 'test')", [back.held.booking])) == 2
    assert await world.claims() == [] and await world.claims(back_no) == []


async def test_every_edge_leaves_an_audit_row_and_an_event(world: World) -> None:
    shown = await world.confirmed("1A")
    lead = shown["lead"]
    actions = await world.run("select action from office.audit where entity_id = $1 order by audit_id", lead)
    kinds = await world.run("select kind, version from office.outbox where aggregate = $1 and topic = 'booking' order by version", lead)
    assert [row[0] for row in actions] == ["booking.HELD", "booking.CREATED", "booking.CONFIRMED"]
    assert [(row[0], row[1]) for row in kinds] == [("HELD", 1), ("CREATED", 2), ("CONFIRMED", 3)]


async def test_a_move_that_is_not_in_the_table_is_refused(world: World) -> None:
    shown = await world.booked("1A")

    async def wrong(connection: object) -> None:
        await connection.execute("select booking.move($1, 'BOARDED', 'test', 'test')", [shown["lead"]])  # type: ignore[attr-defined]

    with pytest.raises(Refused) as refused:
        await world.pool.run("*", wrong)
    assert refused.value.code == "WRONG_STATE"


async def test_without_a_tenant_no_row_is_seen(world: World, database_url: str) -> None:
    import asyncpg

    await world.hold("1A")
    connection = await asyncpg.connect(database_url)
    try:
        assert await connection.fetchval("select count(*) from booking.booking") == 0
        async with connection.transaction():
            await connection.execute("select set_config('tp.partner', $1, true)", OTHER)
            assert await connection.fetchval("select count(*) from booking.booking") == 0
    finally:
        await connection.close()
