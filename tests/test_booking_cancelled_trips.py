"""Trips that will not run: everybody's money once, everybody told once, whoever dies in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from engine.booking.cancelled_trips import CancelledTrips
from engine.booking.desk import Named
from engine.booking.refusals import Refused
from engine.errors import NotFound
from tests.changes_world import ChangingWorld

WIDE: dict[str, Any] = {
    "decks": [{"rows": 14, "columns": 5, "aisles": [2]}],
    "seats": [
        {"label": f"{row}{letter}", "row": row - 1, "column": column}
        for row in range(1, 15)
        for letter, column in (("A", 0), ("B", 1), ("C", 3), ("D", 4))
    ],
}


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[ChangingWorld]:
    made = await ChangingWorld.make(database_url)
    yield made
    await made.close()


async def dealt_with(world: ChangingWorld) -> int:
    return int(await world.value("select count(*) from booking.booking where state = 'CANCELLED'"))


async def test_a_trip_with_50_paid_seats_is_cancelled_while_workers_die(world: ChangingWorld) -> None:
    trip_id, trip_no = await world.trip(layout=WIDE)
    labels = [seat["label"] for seat in WIDE["seats"]]
    leads = [(await world.sold(*labels[n : n + 2], who=world.agent(), trip=trip_id))["lead"] for n in range(0, 50, 2)]
    held, waiting = await world.hold("13C", trip=trip_id), await world.booked("13D", trip=trip_id, who=world.agent())
    elsewhere = await world.sold("1A")

    said = (await world.cancelled_trips.cancel(world.admin(), world.key(), trip_id, "snow")).body
    assert (said["status"], said["bookings"]) == ("CANCELLED", 27)
    with pytest.raises(Refused) as refusal:
        await world.hold("14A", trip=trip_id)
    assert refusal.value.code == "SALES_CLOSED"

    for _ in range(3):  # three workers die at it, each after a few bookings, in the middle of one
        worker = asyncio.create_task(CancelledTrips(world.pool, world.catalogue).run())
        before = await dealt_with(world)
        while not worker.done() and await dealt_with(world) < before + 3:
            pass
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
    left = await world.value("select count(*) from booking.booking where trip_no = $1 and state <> 'CANCELLED'", trip_no)
    assert 0 < left < 27
    two = CancelledTrips(world.pool, world.catalogue), CancelledTrips(world.pool, world.catalogue)  # and a lease that two think they hold
    await asyncio.gather(*(one.step() for one in two))

    assert await world.claims(trip_no) == []
    for lead in leads:
        assert await world.refunds(lead) == 100_000
        assert await world.states(lead) == ["CANCELLED"]
        assert (await world.events(lead)).count("CANCELLED") == 1
        assert {state for _, _, state in await world.tickets(lead)} == {"REVOKED"}
    assert await world.states(held.held.booking) == ["CANCELLED"]
    assert await world.states(waiting["lead"]) == ["CANCELLED"]
    assert await world.states(elsewhere["lead"]) == ["CONFIRMED"]
    progress = await world.cancelled_trips.progress(world.admin(), trip_id)
    assert (progress["bookings"], progress["refunded"]["amount"]) == (27, 2_500_000)
    assert progress["finishedAt"] is not None
    assert await world.balance() == []
    assert await world.give_money_back(leads[0]) == 100_000
    assert await world.states(leads[0]) == ["REFUNDED"]


async def test_cancelling_a_trip_twice_gives_the_money_back_once(world: ChangingWorld) -> None:
    shown = await world.sold("1A")
    for _ in range(2):
        said = (await world.cancelled_trips.cancel(world.admin(), None, world.trip_id, None)).body
        assert said["status"] == "CANCELLED"
        await world.cancelled_trips.step()
    assert await world.refunds(shown["lead"]) == 50_000
    assert len(await world.run("select from office.outbox where topic = 'trip' and kind = 'CANCELLED'")) == 1


async def test_who_has_cancelled_a_seat_before_gets_only_the_rest(world: ChangingWorld) -> None:
    shown = await world.sold("1A", "1B")
    offer = (await world.changes.cancel(world.customer(), None, shown["ref"], seats=["1A"])).body
    await world.changes.cancel(world.customer(), None, shown["ref"], offer_id=offer["offerId"])
    await world.cancelled_trips.cancel(world.admin(), None, world.trip_id, None)
    await world.cancelled_trips.step()
    assert await world.refunds(shown["lead"]) == 45_000 + 50_000
    assert await world.balance() == []


async def test_of_a_return_trip_only_the_cancelled_way_goes_back(world: ChangingWorld) -> None:
    back, back_no = await world.trip(departs_in=timedelta(days=9))
    there, here = await world.hold("1A", who=world.customer()), await world.hold("2A", who=world.customer(), trip=back)
    named = [Named(seat=seat, first_name="Amal", last_name="Benaïssa") for seat in ("1A", "2A")]
    shown, _ = await world.desk.book(
        world.customer(), world.key(), [there.held.booking, here.held.booking], named, {"email": "a@example.org"}
    )
    await world.pay(shown["lead"])
    await world.cancelled_trips.cancel(world.admin(), None, back, None)
    await world.cancelled_trips.step()
    assert await world.refunds(shown["lead"]) == 50_000
    assert await world.states(shown["lead"]) == ["CANCELLED", "CONFIRMED"]
    assert await world.claims(back_no) == []
    assert len(await world.claims()) == 1


async def test_an_unpaid_return_trip_goes_with_both_ways(world: ChangingWorld) -> None:
    back, back_no = await world.trip(departs_in=timedelta(days=9))
    there, here = await world.hold("1A", who=world.customer()), await world.hold("2A", who=world.customer(), trip=back)
    named = [Named(seat=seat, first_name="Amal", last_name="Benaïssa") for seat in ("1A", "2A")]
    shown, _ = await world.desk.book(
        world.customer(), world.key(), [there.held.booking, here.held.booking], named, {"email": "a@example.org"}
    )
    await world.cancelled_trips.cancel(world.admin(), None, back, None)
    await world.cancelled_trips.step()
    assert await world.states(shown["lead"]) == ["CANCELLED", "CANCELLED"]
    assert await world.claims() == await world.claims(back_no) == []


async def test_people_aboard_get_their_money_back_too(world: ChangingWorld) -> None:
    shown = await world.sold("1A")

    async def board(connection: Any) -> None:
        await connection.execute("select * from booking.locked($1)", shown["lead"])
        await connection.execute("select booking.move(array[$1::uuid], 'BOARDED', 'device:1', 'scan')", shown["lead"])

    await world.pool.run("*", board)
    await world.cancelled_trips.cancel(world.admin(), None, world.trip_id, "engine trouble")
    await world.cancelled_trips.step()
    assert await world.refunds(shown["lead"]) == 50_000


async def test_only_the_operator_cancels_its_trips_and_none_that_are_over(world: ChangingWorld) -> None:
    for caller in (world.customer(), world.agent(), world.admin("south")):
        with pytest.raises(NotFound):
            await world.cancelled_trips.cancel(caller, None, world.trip_id, None)
    with pytest.raises(NotFound):
        await world.cancelled_trips.progress(world.admin(), world.trip_id)
    await world.run("update sale.trip_instance set status = 'COMPLETED'")
    with pytest.raises(Refused) as refusal:
        await world.cancelled_trips.cancel(world.admin(), None, world.trip_id, None)
    assert refusal.value.code == "TRIP_OVER"


async def test_sales_stop_and_go_on(world: ChangingWorld) -> None:
    made = await world.hold("1A")
    assert (await world.cancelled_trips.set_open(world.admin(), None, world.trip_id, open_=False)).body["open"] is False
    with pytest.raises(Refused) as refusal:
        await world.hold("1B")
    assert refusal.value.code == "SALES_CLOSED"
    assert await world.states(made.held.booking) == ["HELD"]
    assert (await world.cancelled_trips.set_open(world.admin(), None, world.trip_id, open_=True)).body["open"] is True
    await world.hold("1B")
    kinds = await world.run("select kind, version from office.outbox where topic = 'trip' order by version")
    assert [tuple(row) for row in kinds] == [("SALES_CLOSED", 2), ("SALES_OPENED", 3)]
