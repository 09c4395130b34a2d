"""Cancellations: offered, confirmed, once; in part; of a return trip; of what nobody has paid for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from engine.booking.desk import Named
from engine.booking.refusals import Refused
from engine.errors import Invalid, NotFound
from tests.changes_world import ChangingWorld


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[ChangingWorld]:
    made = await ChangingWorld.make(database_url)
    yield made
    await made.close()


async def cancelled(world: ChangingWorld, ref: str, **what: Any) -> Any:
    """Offer and confirmation in a row; the confirmation's answer."""
    offer = (await world.changes.cancel(world.customer(), None, ref, **what)).body
    return (await world.changes.cancel(world.customer(), None, ref, offer_id=offer["offerId"])).body


async def test_an_offer_changes_nothing_and_its_confirmation_frees_the_seats_and_plans_the_refund(world: ChangingWorld) -> None:
    shown = await world.sold("1A", "1B")
    offer = (await world.changes.cancel(world.customer(), None, shown["ref"])).body
    assert offer["status"] == "CONFIRMED"
    assert (offer["fee"]["amount"], offer["refund"]["amount"]) == (10_000, 90_000)
    assert offer["seats"] == ["1A", "1B"]
    assert offer["reasons"][0]["permille"] == 100
    assert len(await world.claims()) == 2

    done = (await world.changes.cancel(world.customer(), None, shown["ref"], offer_id=offer["offerId"])).body
    assert done["status"] == "CANCELLED"
    assert done["refund"] == {"amount": 90_000, "currency": "DZD"}
    assert await world.claims() == []
    assert {state for _, _, state in await world.tickets(shown["lead"])} == {"REVOKED"}
    assert await world.refunds(shown["lead"]) == 90_000
    assert await world.states(shown["lead"]) == ["CANCELLED"]
    assert await world.give_money_back(shown["lead"]) == 90_000
    assert await world.states(shown["lead"]) == ["REFUNDED"]
    assert await world.balance() == []


async def test_refund_twice_through_cancelling_twice_is_one_refund(world: ChangingWorld) -> None:
    shown = await world.sold("1A")
    offer = (await world.changes.cancel(world.customer(), None, shown["ref"])).body
    answers = await asyncio.gather(
        *(world.changes.cancel(world.customer(), None, shown["ref"], offer_id=offer["offerId"]) for _ in range(5))
    )
    assert all(answer.body == answers[0].body for answer in answers)
    assert await world.refunds(shown["lead"]) == answers[0].body["refund"]["amount"] == 45_000
    assert (await world.events(shown["lead"])).count("CANCELLED") == 1
    with pytest.raises(Refused) as refusal:
        await world.changes.cancel(world.customer(), None, shown["ref"])
    assert refusal.value.code == "WRONG_STATE"


async def test_the_same_key_gets_the_same_offer(world: ChangingWorld) -> None:
    shown = await world.sold("1A")
    key = world.key()
    first = await world.changes.cancel(world.customer(), key, shown["ref"])
    again = await world.changes.cancel(world.customer(), key, shown["ref"])
    assert again.replayed and again.body == first.body


async def test_an_offer_is_stale_once_the_booking_has_changed(world: ChangingWorld) -> None:
    shown = await world.sold("1A", "1B")
    offer = (await world.changes.cancel(world.customer(), None, shown["ref"])).body
    await cancelled(world, shown["ref"], seats=["1B"])
    with pytest.raises(Refused) as refusal:
        await world.changes.cancel(world.customer(), None, shown["ref"], offer_id=offer["offerId"])
    assert refusal.value.code == "OFFER_STALE"
    assert len(await world.claims()) == 1


async def test_an_offer_that_is_over_or_of_another_booking_is_refused(world: ChangingWorld) -> None:
    shown, other = await world.sold("1A"), await world.sold("1B")
    offer = (await world.changes.cancel(world.customer(), None, shown["ref"])).body
    with pytest.raises(Refused) as refusal:
        await world.changes.cancel(world.customer(), None, other["ref"], offer_id=offer["offerId"])
    assert refusal.value.code == "OFFER_STALE"
    await world.run("update booking.offer set expires_at = clock_timestamp()")
    with pytest.raises(Refused) as refusal:
        await world.changes.cancel(world.customer(), None, shown["ref"], offer_id=offer["offerId"])
    assert refusal.value.code == "OFFER_EXPIRED"
    with pytest.raises(NotFound):
        await world.changes.cancel(world.customer(), None, shown["ref"], offer_id=world.clock.uuid7())


async def test_somebody_elses_booking_is_as_unknown_as_none(world: ChangingWorld) -> None:
    shown = await world.sold("1A")
    with pytest.raises(NotFound):
        await world.changes.cancel(world.customer("stranger"), None, shown["ref"])
    with pytest.raises(NotFound):
        await world.changes.cancel(world.agent("south"), None, shown["ref"])


async def test_another_version_in_if_match_is_refused(world: ChangingWorld) -> None:
    shown = await world.sold("1A")
    with pytest.raises(Refused) as refusal:
        await world.changes.cancel(world.customer(), None, shown["ref"], must_be='"1"')
    assert refusal.value.code == "PRECONDITION_FAILED"
    version = sum(row["version"] for row in shown["rows"])
    assert (await world.changes.cancel(world.customer(), None, shown["ref"], must_be=f'"{version}"')).status == 200


async def test_one_seat_of_three_is_cancelled_and_the_others_travel(world: ChangingWorld) -> None:
    shown = await world.sold("1A", "1B", "1C")
    done = await cancelled(world, shown["ref"], seats=["1B"])
    assert done["status"] == "CONFIRMED"
    assert (done["seats"], done["refund"]["amount"]) == (["1B"], 45_000)
    after = (await world.bookings.shown(booking_id=shown["lead"]))["rows"][0]
    assert (after["seats"], after["prices"], after["total"]) == ([1, 3], [50_000, 50_000], 100_000)
    assert [one["state"] for one in after["passengers"]] == ["BOOKED", "CANCELLED", "BOOKED"]
    assert [seat for _, seat, _, _ in await world.claims()] == [1, 3]
    assert await world.tickets(shown["lead"]) == [(1, 1, "ISSUED"), (2, 1, "REVOKED"), (3, 1, "ISSUED")]
    assert await world.events(shown["lead"]) == ["HELD", "CREATED", "CONFIRMED", "MODIFIED"]
    body = await world.value("select body from office.outbox where aggregate = $1 and kind = 'MODIFIED'", shown["lead"])
    assert body["was"] == {"seats": [2], "from": 0, "to": 5, "map": 1}
    await world.sold("1B")  # at once somebody else's

    rest = await cancelled(world, shown["ref"])
    assert rest["status"] == "CANCELLED"
    assert await world.refunds(shown["lead"]) == 135_000
    assert await world.balance() == []


async def test_a_bag_is_given_back_with_its_seat(world: ChangingWorld) -> None:
    shown = await world.booked("1A", "1B", who=world.customer())
    await world.bag(shown, seat=2)
    await world.pay(shown["lead"])
    assert (await cancelled(world, shown["ref"], seats=["1B"]))["refund"]["amount"] == 49_500  # a tenth of 55,000 is kept
    assert await world.bags() == []
    assert (await cancelled(world, shown["ref"]))["refund"]["amount"] == 45_000
    assert await world.balance() == []


async def test_seats_that_are_not_in_the_booking_are_named(world: ChangingWorld) -> None:
    shown = await world.sold("1A")
    for seats in (["2A"], ["1A", "1A"]):
        with pytest.raises(Invalid) as refusal:
            await world.changes.cancel(world.customer(), None, shown["ref"], seats=seats)
        assert refusal.value.errors[0]["pointer"].startswith("/seats/")
    with pytest.raises(Invalid):
        await world.changes.cancel(world.customer(), None, shown["ref"], trip_id="demo:none:20990101")


async def test_a_booking_that_nobody_has_paid_for_is_let_go_at_once(world: ChangingWorld) -> None:
    shown = await world.booked("1A", who=world.customer())
    done = (await world.changes.cancel(world.customer(), None, shown["ref"])).body
    assert (done["status"], done["fee"]["amount"], done["refund"]["amount"]) == ("CANCELLED", 0, 0)
    assert await world.claims() == []
    again = (await world.changes.cancel(world.customer(), None, shown["ref"], offer_id=done["offerId"])).body
    assert again["status"] == "CANCELLED"
    assert (await world.events(shown["lead"])).count("CANCELLED") == 1


async def test_while_its_payment_is_in_progress_a_booking_is_not_let_go(world: ChangingWorld) -> None:
    shown = await world.booked("1A", who=world.customer())
    await world.run("update booking.booking set paying = true")
    with pytest.raises(Refused) as refusal:
        await world.changes.cancel(world.customer(), None, shown["ref"])
    assert refusal.value.code == "PAYMENT_IN_PROGRESS"


async def returning(world: ChangingWorld) -> Any:
    """There and back, two seats, paid for."""
    back, _ = await world.trip(departs_in=timedelta(days=9))
    there, here = await world.hold("1A", "1B", who=world.customer()), await world.hold("2A", "2B", who=world.customer(), trip=back)
    named = [Named(seat=seat, first_name="Amal", last_name="Benaïssa") for seat in ("1A", "1B", "2A", "2B")]
    shown, _ = await world.desk.book(
        world.customer(), world.key(), [there.held.booking, here.held.booking], named, {"email": "a@example.org"}
    )
    await world.pay(shown["lead"])
    return await world.bookings.shown(booking_id=shown["lead"])


async def test_the_way_back_alone_is_cancelled_and_the_way_there_stays(world: ChangingWorld) -> None:
    shown = await returning(world)
    back = next(trip for trip in ("demo:T2", "demo:T1") if trip == "demo:T2")
    trip_id = await world.value("select trip_id from sale.trip_instance where trip_id like $1", f"{back}:%")
    done = await cancelled(world, shown["ref"], trip_id=trip_id)
    assert done["status"] == "CONFIRMED"
    assert await world.states(shown["lead"]) == ["CANCELLED", "CONFIRMED"]
    assert [seat for _, seat, _, _ in await world.claims(world.trip_no)] == [1, 2]
    whole = await cancelled(world, shown["ref"])
    assert whole["status"] == "CANCELLED"
    assert await world.refunds(shown["lead"]) == 180_000
    assert await world.balance() == []


async def test_a_return_trip_is_cancelled_as_a_whole(world: ChangingWorld) -> None:
    shown = await returning(world)
    done = await cancelled(world, shown["ref"])
    assert (done["status"], done["refund"]["amount"]) == ("CANCELLED", 180_000)
    assert await world.states(shown["lead"]) == ["CANCELLED", "CANCELLED"]


async def test_nothing_is_cancelled_once_the_bus_has_left(world: ChangingWorld) -> None:
    shown = await world.sold("1A")
    await world.run("update sale.trip_stop set departs_at = clock_timestamp() - interval '1 minute'")
    world.catalogue.forget(world.trip_id)
    with pytest.raises(Refused) as refusal:
        await world.changes.cancel(world.customer(), None, shown["ref"])
    assert refusal.value.code == "TOO_LATE"


async def test_cancel_and_scan_at_once_have_one_winner(world: ChangingWorld) -> None:
    for seat in ("1A", "1B", "1C", "1D"):
        shown = await world.sold(seat)
        offer = (await world.changes.cancel(world.customer(), None, shown["ref"])).body

        async def scan(lead: str = shown["lead"]) -> bool:
            async def work(connection: Any) -> None:
                ids = [row["booking_id"] for row in await connection.fetch("select * from booking.locked($1)", lead)]
                await connection.execute("select booking.move($1, 'BOARDED', 'device:1', 'scan')", ids)

            await world.pool.run("*", work)
            return True

        outcomes = await asyncio.gather(
            scan(), world.changes.cancel(world.customer(), None, shown["ref"], offer_id=offer["offerId"]), return_exceptions=True
        )
        assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 1
        assert await world.states(shown["lead"]) in (["BOARDED"], ["CANCELLED"])
        paid_back = await world.refunds(shown["lead"])
        assert (paid_back > 0) == (await world.states(shown["lead"]) == ["CANCELLED"])
