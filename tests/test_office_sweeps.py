"""Sweeps: what is over goes, what is not stays, and nothing is held up by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from engine.booking.refusals import Refused
from engine.clock import ManualClock
from engine.meter import Meter
from engine.office import sweeps
from engine.office.sweeps import Expiry, Retention
from engine.store.office import Office, consume
from tests.booking_world import World


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    made = await World.make(database_url)
    yield made
    await made.close()


@pytest.fixture
def expiry(world: World) -> Expiry:
    return Expiry(Office(world.pool), clock=world.clock, settings=world.settings, meter=Meter())


async def states(world: World) -> list[str]:
    return [row["state"] for row in await world.run("select state from booking.booking order by booking_id")]


async def test_a_hold_past_its_time_goes_with_its_claims_and_says_so(world: World, expiry: Expiry) -> None:
    over, going = await world.hold("1A"), await world.hold("1B")
    await world.age(over.held.booking, 3_600)
    assert await expiry.sweep() == 1
    assert await states(world) == ["EXPIRED", "HELD"]
    assert [seat for _, seat, _, _ in await world.claims()] == [2]
    said = await world.run(
        "select version, actor from office.outbox join office.audit on entity_id = aggregate where action = 'booking.EXPIRED'"
    )
    assert ("system" in {row["actor"] for row in said}) and max(row["version"] for row in said) == 2
    assert going.held.booking in str(await world.claims())


async def test_an_unpaid_booking_goes_whole_and_one_that_is_being_paid_stays(world: World, expiry: Expiry) -> None:
    unpaid, paying = await world.booked("1A", "1B"), await world.booked("2A")
    for shown in (unpaid, paying):
        await world.age(shown["lead"], 7_200)
    await world.run("update booking.booking set paying = true where booking_id = $1", paying["lead"])
    assert await expiry.sweep() == 1
    assert sorted(await states(world)) == ["EXPIRED", "PENDING_PAYMENT"]


async def test_a_sold_booking_is_none_of_the_sweeps_business(world: World, expiry: Expiry) -> None:
    await world.age((await world.confirmed("1A"))["lead"], 7_200)
    assert await expiry.sweep() == 0


async def test_a_payment_that_ended_long_after_the_hold_is_found_by_the_wide_look(world: World) -> None:
    clock = ManualClock(world.clock.now_ms())
    expiry = Expiry(Office(world.pool), clock=clock, settings=world.settings, meter=Meter())
    shown = await world.booked("1A")
    await world.age(shown["lead"], 7_200)
    await world.run("update booking.booking set paying = true")
    assert await expiry.sweep() == 0
    await world.run("update booking.booking set paying = false")
    clock.advance(1_000)
    assert await expiry.sweep() == 0, "the narrow look does not go back two hours"
    clock.advance(int(sweeps.WIDE_S * 1000))
    assert await expiry.sweep() == 1


async def test_more_than_a_slice_goes_in_several_transactions(world: World, expiry: Expiry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "SLICE", 3)
    for row in (1, 2):
        for letter in "ABCD":
            await world.age((await world.hold(f"{row}{letter}")).held.booking, 1_200)
    assert await expiry.sweep() == 8
    assert await world.claims() == []


async def test_bookings_that_ended_at_one_instant_do_not_keep_the_sweep_for_ever(
    world: World, expiry: Expiry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "SLICE", 2)
    for label in ("1A", "1B", "1C", "1D", "2A"):
        await world.hold(label)
    await world.run("update booking.booking set expires_at = now() - interval '1 minute'")
    connection = await asyncpg.connect(world.settings.database_url)
    async with connection.transaction():
        await connection.execute("select booking.lock_trip($1, true)", world.trip_no)
        assert await expiry.sweep() == 0, "their trip is somebody's alone: they stay"
    await connection.close()
    assert await expiry.sweep() == 5, "and go with the next look"
    assert set(await states(world)) == {"EXPIRED"}


async def test_a_sweep_does_not_take_a_booking_whose_trip_is_being_swapped(world: World, expiry: Expiry) -> None:
    """Or the swap, which has read the claims already, would carry a dead booking's claim to the next map, where it blocks its seat for ever."""
    made = await world.hold("1A")
    await world.age(made.held.booking, 1_200)
    swap = await asyncpg.connect(world.settings.database_url)
    transaction = swap.transaction()
    await transaction.start()
    await swap.execute("select set_config('tp.partner', '*', true)")
    await swap.execute("select booking.lock_trip($1, true)", world.trip_no)
    assert await expiry.sweep() == 0
    await swap.execute(
        """insert into booking.seat_claim select booking_id, 2, seat, partner_id, trip_no, legs, state from booking.seat_claim where active"""
    )
    await swap.execute("update booking.seat_claim set state = 'MOVED' where map_version = 1")
    await transaction.commit()
    await swap.close()
    assert await expiry.sweep() == 1
    assert await world.claims() == []


async def test_a_sweep_and_a_release_of_the_same_hold_end_it_once(world: World, expiry: Expiry) -> None:
    made = await world.hold("1A")
    await world.age(made.held.booking, 1_200)
    await asyncio.gather(
        expiry.sweep(), world.desk.release(world.guest(made.token), world.key(), made.held.booking), return_exceptions=True
    )
    assert await world.value("select version from booking.booking") == 2
    with pytest.raises(Refused):
        await world.desk.extend(world.guest(made.token), made.held.booking)


async def test_what_was_said_a_week_ago_goes_in_slices_and_what_waits_stays(world: World) -> None:
    office = Office(world.pool)
    for label in ("1A", "1B", "1C"):
        await world.hold(label)
    await world.run("update office.outbox set delivered_at = now() - interval '8 days' where body->>'seats' <> '[3]'")
    await world.run("update office.outbox set at = now() - interval '30 days'")
    await world.run("update office.idempotency set keep_until = now() - interval '1 hour'")
    await world.pool.run("*", lambda connection: consume(connection, "mails", "old"))
    await world.run("update office.inbox set at = now() - interval '15 days'")
    await world.pool.run("*", lambda connection: consume(connection, "mails", "new"))
    went = await Retention(office, settings=world.settings, meter=Meter()).sweep(rows=1)
    assert went == {"outbox": 2, "inbox": 1, "idempotency": 3}
    assert await world.value("select count(*) from office.outbox") == 1, "it waits since a month and is not lost"
    assert await world.value("select array_agg(event_id) from office.inbox") == ["new"]
