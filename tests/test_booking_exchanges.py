"""Modifications: names, seats, another trip - paid for, given back, or nothing at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engine.booking.changes import Reader
from engine.booking.exchanges import NewName, OtherTrip
from engine.booking.refusals import Refused
from engine.errors import Invalid, NotFound
from engine.store.changes import Change
from engine.store.payments import Payments
from tests.booking_world import LAYOUT, PARTNER
from tests.changes_world import ChangingWorld


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[ChangingWorld]:
    made = await ChangingWorld.make(database_url)
    yield made
    await made.close()


async def reseat(world: ChangingWorld, ref: str, **moves: str) -> Any:
    return (await world.exchanges.reseat(world.customer(), None, ref, {old.lstrip("_"): new for old, new in moves.items()}, None)).body


async def exchange(world: ChangingWorld, ref: str, trip_id: str, *labels: str, **more: Any) -> Any:
    other = OtherTrip(trip_id=trip_id, labels=labels, **more)
    return (await world.exchanges.exchange(world.customer(), None, ref, other, None)).body


async def test_a_name_changes_with_its_ticket_and_its_look_up(world: ChangingWorld) -> None:
    shown = await world.sold("1A", "1B")
    names = [NewName(seat="1B", first_name="Nour", last_name="Çelik")]
    said = (await world.exchanges.rename(world.customer(), None, shown["ref"], names, None)).body
    after = await world.bookings.shown(booking_id=shown["lead"])
    assert [one["lastName"] for one in after["rows"][0]["passengers"]] == ["Benaïssa", "Çelik"]
    assert said["version"] == after["rows"][0]["version"]
    assert await world.tickets(shown["lead"]) == [(1, 1, "ISSUED"), (2, 2, "ISSUED")]
    assert await world.bookings.lookup(shown["ref"], "celik") is not None
    assert (await world.events(shown["lead"]))[-1] == "MODIFIED"


async def test_seats_change_places_within_a_booking(world: ChangingWorld) -> None:
    shown = await world.sold("1A", "1B")
    await world.exchanges.rename(world.customer(), None, shown["ref"], [NewName(seat="1A", first_name="Nour")], None)
    await reseat(world, shown["ref"], _1A="1B", _1B="1A")
    after = (await world.bookings.shown(booking_id=shown["lead"]))["rows"][0]
    assert [(one["seat"], one["firstName"]) for one in after["passengers"]] == [(1, "Amal"), (2, "Nour")]
    assert len(await world.claims()) == 2


async def test_other_seats_of_the_same_trip_free_the_old_ones(world: ChangingWorld) -> None:
    shown = await world.sold("1A", "1B")
    await reseat(world, shown["ref"], _1A="3D")
    after = (await world.bookings.shown(booking_id=shown["lead"]))["rows"][0]
    assert (after["seats"], after["total"], after["state"]) == ([2, 12], 100_000, "CONFIRMED")
    assert [(seat, state) for _, seat, _, state in await world.claims()] == [(2, "SOLD"), (12, "SOLD")]
    assert await world.tickets(shown["lead"]) == [(1, 1, "REVOKED"), (2, 1, "ISSUED"), (12, 1, "ISSUED")]
    await world.sold("1A")


async def test_modify_to_a_taken_seat_changes_nothing(world: ChangingWorld) -> None:
    shown = await world.sold("1A", "1B")
    await world.hold("2B")
    before = await world.bookings.shown(booking_id=shown["lead"])
    tickets = await world.tickets(shown["lead"])
    with pytest.raises(Refused) as refusal:
        await reseat(world, shown["ref"], _1A="2A", _1B="2B")
    assert (refusal.value.code, [one["pointer"] for one in refusal.value.errors]) == ("SEAT_TAKEN", ["/seats/2B"])
    assert await world.bookings.shown(booking_id=shown["lead"]) == before
    assert await world.tickets(shown["lead"]) == tickets
    assert [seat for _, seat, _, _ in await world.claims()] == [1, 2, 6]
    assert (await world.events(shown["lead"]))[-1] == "CONFIRMED"


async def test_two_who_want_the_same_free_seat_have_one_winner(world: ChangingWorld) -> None:
    one, two = await world.sold("1A"), await world.sold("1B")
    ends = await asyncio.gather(
        reseat(world, one["ref"], _1A="2A"), reseat(world, two["ref"], _1B="2A"), world.hold("2A"), return_exceptions=True
    )
    assert sum(not isinstance(end, Exception) for end in ends) == 1
    assert {end.code for end in ends if isinstance(end, Refused)} == {"SEAT_TAKEN"}
    assert await world.overlaps() == 0
    assert len(await world.claims()) == 2 + (not isinstance(ends[2], Exception))


async def test_a_hold_that_is_over_gives_way_to_a_modification(world: ChangingWorld) -> None:
    shown, old = await world.sold("1A"), await world.hold("2A")
    await world.age(old.held.booking, 3600)
    await reseat(world, shown["ref"], _1A="2A")
    assert [seat for _, seat, _, _ in await world.claims()] == [5]
    assert await world.states(old.held.booking) == ["EXPIRED"]


async def test_seats_that_cannot_be_meant_are_refused(world: ChangingWorld) -> None:
    shown = await world.sold("1A", "1B")
    for moves in ({"_1A": "9Z"}, {"_2A": "2B"}, {"_1A": "1B"}, {"_1A": "2A", "_1B": "2A"}):
        with pytest.raises(Invalid):
            await reseat(world, shown["ref"], **moves)
    with pytest.raises(NotFound):
        await world.exchanges.reseat(world.customer("stranger"), None, shown["ref"], {"1A": "2A"}, None)


async def test_a_change_that_knows_only_the_bus_before_the_swap_looks_again(world: ChangingWorld) -> None:
    shown = await world.sold("1A")
    other, _ = await world.trip(departs_in=timedelta(days=4))
    await world.draw("mirrored", 3, letters="DCBA")
    for trip_id in (world.trip_id, other):
        known = await world.catalogue.trip(trip_id)
        made = await world.swaps.plan(world.admin(), trip_id, "mirrored", None)
        await world.swaps.commit(world.admin(), None, trip_id, made["planId"], None)
        world.catalogue._trips[trip_id] = known  # another worker's memory
    await reseat(world, shown["ref"], _1A="2A")
    assert [seat for _, seat, _, _ in await world.claims()] == [8]
    assert (await exchange(world, shown["ref"], other, "1A"))["status"] == "CONFIRMED"


async def test_a_seat_of_another_class_is_not_had_for_nothing(world: ChangingWorld) -> None:
    dear = {**LAYOUT, "seats": [seat | ({"kind": "PREMIUM"} if seat["label"] == "3A" else {}) for seat in LAYOUT["seats"]]}
    trip_id, _ = await world.trip(layout=dear)
    shown = await world.sold("1A", trip=trip_id)
    with pytest.raises(Refused) as refusal:
        await reseat(world, shown["ref"], _1A="3A")
    assert refusal.value.code == "OTHER_CLASS"


async def test_a_cheaper_trip_takes_its_place_at_once_and_the_difference_goes_back(world: ChangingWorld) -> None:
    shown = await world.sold("1A", "1B")
    trip_id, trip_no = await world.trip(departs_in=timedelta(days=4))
    said = await exchange(world, shown["ref"], trip_id, "2A", "2B", end="demo:C")
    assert (said["status"], said["refund"]["amount"], said["payRef"]) == ("CONFIRMED", 60_000, None)
    assert await world.claims() == []
    assert [(seat, legs, state) for _, seat, legs, state in await world.claims(trip_no)] == [(5, "0-2", "SOLD"), (6, "0-2", "SOLD")]
    after = await world.bookings.shown(reference=shown["ref"])
    assert sorted((row["state"], row["total"]) for row in after["rows"]) == [("CONFIRMED", 40_000), ("EXCHANGED", 0)]
    assert said["version"] == sum(row["version"] for row in after["rows"]) - 1
    assert await world.refunds(shown["lead"]) == 60_000
    assert [state for _, _, state in await world.tickets(shown["lead"])] == ["REVOKED", "REVOKED", "ISSUED", "ISSUED"]
    assert await world.balance() == []

    offer = (await world.changes.cancel(world.customer(), None, shown["ref"])).body  # and the rest can still be given back
    assert offer["refund"]["amount"] == 36_000


async def test_bags_go_along_as_far_as_there_is_room_for_them(world: ChangingWorld) -> None:
    shown = await world.booked("1A", "1B", who=world.customer())
    await world.bag(shown, seat=2, stock=1)
    await world.pay(shown["lead"])
    await reseat(world, shown["ref"], _1B="2B")
    assert await world.bags() == [(world.trip_no, 6)]
    trip_id, trip_no = await world.trip(departs_in=timedelta(days=4))
    said = await exchange(world, shown["ref"], trip_id, "3A", "3B")
    assert (said["refund"]["amount"], said["due"]["amount"]) == (0, 0)
    assert await world.bags() == [(trip_no, 10)]
    assert (await world.bookings.shown(reference=shown["ref"]))["rows"][-1]["total"] == 105_000

    other = await world.booked("1A", who=world.customer())
    await world.bag(other, seat=1, stock=1)
    await world.pay(other["lead"])
    with pytest.raises(Refused) as refusal:
        await exchange(world, other["ref"], trip_id, "1A")
    assert refusal.value.code == "ANCILLARY_SOLD_OUT"
    assert await world.states(other["lead"]) == ["CONFIRMED"]


async def dearer(world: ChangingWorld) -> tuple[Any, Any, int]:
    """(booking of two legs, what the exchange for five asks, number of the other trip)."""
    shown = await world.sold("1A", to="demo:C")
    trip_id, trip_no = await world.trip(departs_in=timedelta(days=4))
    return shown, await exchange(world, shown["ref"], trip_id, "2A", end="demo:F"), trip_no


async def test_for_a_dearer_trip_the_old_seat_stays_until_the_difference_is_paid(world: ChangingWorld) -> None:
    shown, said, trip_no = await dearer(world)
    assert (said["status"], said["due"]["amount"]) == ("PENDING_PAYMENT", 30_000)
    assert await world.states(shown["lead"]) == ["CONFIRMED"]
    assert [state for _, _, _, state in await world.claims()] == ["SOLD"]
    assert [state for _, _, _, state in await world.claims(trip_no)] == ["HELD"]

    opened = world.guest(said["holdToken"])
    new = await world.desk.show(opened, reference=said["payRef"])
    assert await world.pay(new["lead"])
    assert await world.claims() == []
    assert [state for _, _, _, state in await world.claims(trip_no)] == ["SOLD"]
    one, other = await world.bookings.shown(reference=shown["ref"]), await world.bookings.shown(reference=said["payRef"])
    assert one == other
    assert sorted(row["state"] for row in one["rows"]) == ["CONFIRMED", "EXCHANGED"]
    assert await world.value("select money.paid($1)", one["lead"]) == 50_000

    offer = (await world.changes.cancel(world.customer(), None, shown["ref"])).body
    done = (await world.changes.cancel(world.customer(), None, shown["ref"], offer_id=offer["offerId"])).body
    assert done["refund"]["amount"] == 45_000  # of both payments
    assert await world.balance() == []


async def test_payments_and_statements_of_an_exchanged_booking_are_shown(world: ChangingWorld) -> None:
    _, said, _ = await dearer(world)
    assert await world.pay(said["id"])
    payments = Payments(world.pool)
    made = [str(row[0]) for row in await world.run("select payment_id from money.payment")]
    assert {(await payments.shown(one, {"all": True}))["bookingRef"] for one in made} <= {said["ref"], said["payRef"]}
    century = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
    assert len(await payments.lines(PARTNER, "DZD", *century, 0, 100)) == len(made) == 2


async def test_who_read_a_booking_before_its_exchange_ended_changes_all_of_it_or_asks_again(world: ChangingWorld) -> None:
    shown, said, _ = await dearer(world)
    trips = await Reader(world.catalogue, world.clock).trips(shown)
    new = await world.bookings.shown(reference=said["payRef"])
    await world.pay(new["lead"])

    async def work(connection: Any) -> None:
        reader, change = Reader(world.catalogue, world.clock), Change(connection, "test", "test")
        rows = await reader.rows(change, shown["lead"])
        assert {row.lead_id for row in rows} == {new["lead"]} and len(rows) == 2
        await reader.rides(change, rows, trips)

    with pytest.raises(Refused) as refusal:
        await world.pool.run("*", work)
    assert refusal.value.code == "BUSY" and refusal.value.retryable


async def test_an_exchange_whose_old_booking_was_cancelled_meanwhile_is_not_confirmed(world: ChangingWorld) -> None:
    shown, said, _ = await dearer(world)
    offer = (await world.changes.cancel(world.customer(), None, shown["ref"])).body
    await world.changes.cancel(world.customer(), None, shown["ref"], offer_id=offer["offerId"])
    new = await world.bookings.shown(reference=said["payRef"])
    assert not await world.pay(new["lead"])
    assert await world.states(shown["lead"]) == ["CANCELLED"]


async def test_an_exchange_that_nobody_pays_leaves_the_old_booking_as_it_was(world: ChangingWorld) -> None:
    shown, said, trip_no = await dearer(world)
    new = await world.bookings.shown(reference=said["payRef"])
    await world.age(new["lead"], 3600)
    await world.run("select booking.expire(array[$1::uuid], 'sweep')", new["lead"])
    assert await world.states(shown["lead"]) == ["CONFIRMED"]
    assert await world.claims(trip_no) == []


async def test_one_paid_seat_holds_no_more_than_one_dearer_seat_at_a_time(world: ChangingWorld) -> None:
    shown, said, trip_no = await dearer(world)
    trip_id = (await world.catalogue.by_no(trip_no)).trip_id
    with pytest.raises(Refused) as refusal:
        await exchange(world, shown["ref"], trip_id, "2B", end="demo:F")
    assert refusal.value.code == "HOLD_LIMIT" and said["payRef"] in refusal.value.detail
    assert len(await world.claims(trip_no)) == 1
    await world.changes.cancel(world.guest(said["holdToken"]), None, said["payRef"])
    assert (await exchange(world, shown["ref"], trip_id, "2B", end="demo:F"))["due"]["amount"] == 30_000


async def test_an_exchange_for_a_taken_seat_changes_nothing(world: ChangingWorld) -> None:
    shown = await world.sold("1A")
    trip_id, trip_no = await world.trip(departs_in=timedelta(days=4))
    await world.hold("2A", trip=trip_id)
    before = await world.bookings.shown(booking_id=shown["lead"])
    with pytest.raises(Refused) as refusal:
        await exchange(world, shown["ref"], trip_id, "2A")
    assert (refusal.value.code, refusal.value.errors[0]["pointer"]) == ("SEAT_TAKEN", "/seats/2A")
    assert await world.bookings.shown(booking_id=shown["lead"]) == before
    assert len(await world.claims(trip_no)) == 1


async def test_a_shorter_ride_in_the_same_seat_is_an_exchange_too(world: ChangingWorld) -> None:
    shown = await world.sold("1A")
    said = await exchange(world, shown["ref"], world.trip_id, "1A", end="demo:D")
    assert said["refund"]["amount"] == 20_000
    assert [(seat, legs) for _, seat, legs, _ in await world.claims()] == [(1, "0-3")]


async def test_another_operators_trip_or_currency_is_no_exchange(world: ChangingWorld) -> None:
    shown = await world.sold("1A")
    foreign, _ = await world.trip(partner="south")
    with pytest.raises(Invalid):
        await exchange(world, shown["ref"], foreign, "1A")
    with pytest.raises(NotFound):
        await exchange(world, shown["ref"], "demo:none:20990101", "1A")
    other, _ = await world.trip()
    with pytest.raises(Invalid):
        await exchange(world, shown["ref"], other, "1A", "1B")


async def test_an_unpaid_booking_is_renamed_and_reseated_but_not_exchanged(world: ChangingWorld) -> None:
    shown = await world.booked("1A", who=world.customer())
    await reseat(world, shown["ref"], _1A="1C")
    assert [(seat, state) for _, seat, _, state in await world.claims()] == [(3, "HELD")]
    other, _ = await world.trip()
    with pytest.raises(Refused) as refusal:
        await exchange(world, shown["ref"], other, "1A")
    assert refusal.value.code == "WRONG_STATE"
