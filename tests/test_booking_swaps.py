"""Bus swaps committed: nobody sits twice, nobody is lost, everybody is told once, tickets stay good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from engine.booking.desk import Named
from engine.booking.refusals import Refused
from engine.booking.swap import Shown, Taken, legs_mask, pins_of
from engine.errors import Invalid, NotFound
from tests.changes_world import ChangingWorld


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[ChangingWorld]:
    made = await ChangingWorld.make(database_url)
    await made.draw("eight", 2)
    await made.draw("one-row", 1)
    await made.draw("twenty", 5)
    await made.draw("renumbered", 3, first=11)
    yield made
    await made.close()


async def swap(world: ChangingWorld, layout: str, overflow: Any = None) -> dict[str, Any]:
    """Plan and commit in a row; the commit's answer."""
    shown = await world.swaps.plan(world.admin(), world.trip_id, layout, "BUS-9")
    return (await world.swaps.commit(world.admin(), None, world.trip_id, shown["planId"], overflow)).body  # type: ignore[no-any-return]


async def labels(world: ChangingWorld, lead: str) -> list[str]:
    """Where the passengers of a booking sit now."""
    row = (await world.bookings.shown(booking_id=lead))["rows"][0]
    trip = await world.catalogue.by_no(row["tripNo"])
    named = await world.catalogue.labels(trip, row["map"])
    assert sorted(row["seats"]) == sorted(one["seat"] for one in row["passengers"] if one["state"] != "CANCELLED") or not row["passengers"]
    return [named[n - 1] for n in row["seats"]]


async def sound(world: ChangingWorld) -> None:
    """What holds after every swap: no seat twice, each row with seats has its claims under the map in force."""
    assert await world.overlaps() == 0
    wrong = await world.run(
        """select b.booking_id from booking.booking b join sale.trip_instance i using (trip_no)
        where b.state in ('HELD', 'PENDING_PAYMENT', 'CONFIRMED', 'CHECKED_IN', 'BOARDED') and (b.map_version <> i.map_version or b.seats <> array(
          select c.seat from booking.seat_claim c where c.booking_id = b.booking_id and c.active and c.map_version = i.map_version order by c.seat))"""
    )
    assert wrong == []
    elsewhere = """select count(*) from booking.seat_claim c join sale.trip_instance i using (trip_no)
      where c.active and c.map_version <> i.map_version"""
    assert await world.value(elsewhere) == 0


async def test_a_plan_changes_nothing(world: ChangingWorld) -> None:
    shown = await world.sold("1A", "3D")
    before = await world.claims()
    made = await world.swaps.plan(world.admin(), world.trip_id, "eight", "BUS-9")
    assert [(move["ref"], move["seat"], move["rule"]) for move in made["moves"]] == [
        (shown["ref"], "1A", "KEEP"), (shown["ref"], "3D", "TOGETHER"),
    ]  # fmt: skip
    assert await world.claims() == before
    assert await world.value("select map_version from sale.trip_instance") == 1


async def test_a_renumbered_bus_keeps_everybodys_place_and_tickets(world: ChangingWorld) -> None:
    shown, held = await world.sold("1A", "1B"), await world.hold("2C")
    tickets = await world.run("select ticket_id, version, printed_seat, state from ticket.ticket order by 1")
    said = await swap(world, "renumbered")
    assert (said["mapVersion"], said["moved"], said["busId"], said["overflow"]) == (2, 3, "BUS-9", [])
    assert await labels(world, shown["lead"]) == ["11A", "11B"]
    assert await labels(world, held.held.booking) == ["12C"]
    assert await world.run("select ticket_id, version, printed_seat, state from ticket.ticket order by 1") == tickets
    await sound(world)
    assert await world.events(shown["lead"]) == ["HELD", "CREATED", "CONFIRMED", "MOVED"]
    body = await world.value("select body from office.outbox where kind = 'MOVED' and aggregate = $1", shown["lead"])
    assert body["moves"] == {"1A": "11A", "1B": "11B"}
    trip = await world.run("select kind, body from office.outbox where topic = 'trip' and kind = 'BUS_SWAPPED'")
    assert [(row["kind"], row["body"]["mapVersion"]) for row in trip] == [("BUS_SWAPPED", 2)]


async def test_everything_that_has_a_seat_moves_whatever_its_state(world: ChangingWorld) -> None:
    sold, waiting, held = await world.sold("3A"), await world.booked("3B", who=world.customer()), await world.hold("3C")
    boarded = await world.sold("3D")

    async def board(connection: Any) -> None:
        await connection.execute("select * from booking.locked($1)", boarded["lead"])
        await connection.execute("select booking.move(array[$1::uuid], 'BOARDED', 'device:1', 'scan')", boarded["lead"])

    await world.pool.run("*", board)
    lease = await world.hold("2D")
    await world.run("update booking.booking set channel = 'LEASE' where booking_id = $1", lease.held.booking)
    await swap(world, "renumbered")
    found = [await labels(world, one) for one in (sold["lead"], waiting["lead"], held.held.booking, boarded["lead"], lease.held.booking)]
    assert found == [["13A"], ["13B"], ["13C"], ["13D"], ["12D"]]
    await sound(world)
    await world.pay(waiting["lead"])  # and the unpaid one can still be paid for
    assert await world.states(waiting["lead"]) == ["CONFIRMED"]


async def test_prices_passengers_and_bags_go_with_their_seats_where_numbers_change_places(world: ChangingWorld) -> None:
    await world.draw("mirrored", 3, letters="DCBA")  # the same labels, counted from the other side
    held = await world.hold("1A", "1B")
    await world.run(
        """update booking.booking set prices = '{100, 200}', quote = quote || '{"classes": [1000, 2000], "adult": [100, 200]}'
        where booking_id = $1""", held.held.booking,
    )  # fmt: skip
    shown = await world.booked("2A", "2B", who=world.customer())
    await world.bag(shown, seat=5)
    await world.pay(shown["lead"])
    await world.run("update booking.passenger set first_name = 'of 2A' where seat = 5")
    await swap(world, "mirrored")
    row = (await world.bookings.shown(booking_id=held.held.booking))["rows"][0]
    assert (row["seats"], row["prices"], row["quote"]["classes"], row["quote"]["adult"]) == ([3, 4], [200, 100], [2000, 1000], [200, 100])
    row = (await world.bookings.shown(booking_id=shown["lead"]))["rows"][0]
    assert [(one["seat"], one["firstName"]) for one in row["passengers"]] == [(7, "Amal"), (8, "of 2A")]
    assert await world.bags() == [(world.trip_no, 8)]
    assert await world.tickets(shown["lead"]) == [(7, 1, "ISSUED"), (8, 1, "ISSUED")]
    assert await labels(world, shown["lead"]) == ["2B", "2A"]
    await sound(world)


async def test_swapped_twice_and_back_everybody_sits_where_they_sat(world: ChangingWorld) -> None:
    shown = await world.sold("2A", "2B")
    await swap(world, "renumbered")
    said = await swap(world, "twelve")
    assert said["mapVersion"] == 3
    assert await labels(world, shown["lead"]) == ["2A", "2B"]
    await sound(world)
    assert await world.events(shown["lead"]) == ["HELD", "CREATED", "CONFIRMED", "MOVED", "MOVED"]
    offer = (await world.changes.cancel(world.customer(), None, shown["ref"])).body
    await world.changes.cancel(world.customer(), None, shown["ref"], offer_id=offer["offerId"])
    assert await world.claims() == []


async def test_a_smaller_bus_gives_back_the_money_of_those_who_have_no_seat(world: ChangingWorld) -> None:
    kept = await world.sold("1A", "1B", "1C")
    pair = await world.sold("3A", "3B")
    hold = await world.hold("3C")
    made = await world.swaps.plan(world.admin(), world.trip_id, "one-row", "BUS-9")
    assert [(one["ref"], one["seats"], one["options"]) for one in made["overflow"] if one["ref"]] == [
        (pair["ref"], ["3B"], ["REBOOK", "REFUND"])
    ]
    with pytest.raises(Refused) as refusal:
        await world.swaps.commit(world.admin(), None, world.trip_id, made["planId"], None)
    assert refusal.value.code == "OVERFLOW_UNDECIDED"
    assert pair["ref"] in refusal.value.errors[0]["detail"]
    assert await world.value("select map_version from sale.trip_instance") == 1

    said = (await world.swaps.commit(world.admin(), None, world.trip_id, made["planId"], "REFUND")).body
    assert {one["ref"]: one["done"] for one in said["overflow"]} == {pair["ref"]: "REFUNDED", None: "RELEASED"}
    assert await labels(world, kept["lead"]) == ["1A", "1B", "1C"]
    assert await labels(world, pair["lead"]) == ["1D"]
    assert await world.refunds(pair["lead"]) == 50_000  # in full, no fee
    assert await world.states(hold.held.booking) == ["RELEASED"]
    await sound(world)
    assert await world.balance() == []
    again = (await world.swaps.commit(world.admin(), None, world.trip_id, made["planId"], "REFUND")).body
    assert again == said
    assert await world.refunds(pair["lead"]) == 50_000


async def test_those_without_a_seat_travel_on_the_next_trip_that_has_room(world: ChangingWorld) -> None:
    full = await world.sold("1A", "1B", "1C", "1D")
    alone, two = await world.sold("2A"), await world.sold("3A", "3B")
    later, later_no = await world.trip(departs_in=timedelta(days=2, hours=5))
    said = await swap(world, "one-row", "REBOOK")
    assert {one["ref"]: (one["done"], one["onTripId"]) for one in said["overflow"]} == {
        alone["ref"]: ("REBOOKED", later), two["ref"]: ("REBOOKED", later),
    }  # fmt: skip
    assert await labels(world, full["lead"]) == ["1A", "1B", "1C", "1D"]
    assert len(await world.claims(later_no)) == 3
    assert await world.states(two["lead"]) == ["CONFIRMED", "EXCHANGED"]
    assert await world.refunds(two["lead"]) == 0
    after = await world.bookings.shown(reference=two["ref"])
    assert sorted(row["total"] for row in after["rows"]) == [0, 100_000]
    await sound(world)
    offer = (await world.changes.cancel(world.customer(), None, two["ref"])).body
    assert offer["refund"]["amount"] == 90_000


async def test_where_no_trip_has_room_the_money_goes_back(world: ChangingWorld) -> None:
    await world.sold("1A", "1B", "1C", "1D")
    alone = await world.sold("2A")
    said = await swap(world, "one-row", "REBOOK")
    assert [(one["ref"], one["done"]) for one in said["overflow"]] == [(alone["ref"], "REFUNDED")]
    assert await world.states(alone["lead"]) == ["CANCELLED"]


async def test_a_swap_during_an_open_hold_takes_it_along_and_it_can_be_booked(world: ChangingWorld) -> None:
    guest = world.guest()
    held = await world.hold("3D", "3C", frm="demo:A", to="demo:C", who=guest)
    await swap(world, "eight")
    named = [Named(seat=label, first_name="Amal", last_name="Kaci") for label in await labels(world, held.held.booking)]
    shown, _ = await world.desk.book(world.guest(held.token), world.key(), [held.held.booking], named, {"email": "a@example.org"})
    assert await world.pay(shown["lead"])
    assert [(legs, state) for _, _, legs, state in await world.claims()] == [("0-2", "SOLD"), ("0-2", "SOLD")]
    await sound(world)


async def test_a_hold_that_came_after_the_plan_does_not_make_it_stale(world: ChangingWorld) -> None:
    shown = await world.sold("3D")
    made = await world.swaps.plan(world.admin(), world.trip_id, "eight", None)
    promised = made["moves"][0]["to"]
    late = await world.hold(promised)  # its label is what the plan has promised
    said = (await world.swaps.commit(world.admin(), None, world.trip_id, made["planId"], None)).body
    assert said["moved"] == 2
    assert await labels(world, shown["lead"]) == [promised]
    assert await labels(world, late.held.booking) != [promised]
    await sound(world)


async def test_a_plan_is_stale_once_a_booking_of_it_sits_elsewhere_or_the_bus_is_another(world: ChangingWorld) -> None:
    shown = await world.sold("1A")
    made = await world.swaps.plan(world.admin(), world.trip_id, "eight", None)
    await world.exchanges.reseat(world.customer(), None, shown["ref"], {"1A": "2A"}, None)
    with pytest.raises(Refused) as refusal:
        await world.swaps.commit(world.admin(), None, world.trip_id, made["planId"], None)
    assert refusal.value.code == "PLAN_STALE"
    made = await world.swaps.plan(world.admin(), world.trip_id, "eight", None)
    await swap(world, "renumbered")
    with pytest.raises(Refused) as refusal:
        await world.swaps.commit(world.admin(), None, world.trip_id, made["planId"], None)
    assert refusal.value.code == "PLAN_STALE"


async def test_a_plan_is_stale_once_its_layout_was_drawn_anew(world: ChangingWorld) -> None:
    made = await world.swaps.plan(world.admin(), world.trip_id, "eight", None)
    await world.draw("eight", 3)
    with pytest.raises(Refused) as refusal:
        await world.swaps.commit(world.admin(), None, world.trip_id, made["planId"], None)
    assert refusal.value.code == "PLAN_STALE"


async def test_a_hold_that_is_over_takes_no_place_on_the_other_bus(world: ChangingWorld) -> None:
    old = await world.hold("1A", "1B", "1C", "1D")
    await world.age(old.held.booking, 3600)
    shown = await world.sold("3A", "3B")
    assert (await swap(world, "one-row"))["overflow"] == []
    assert await world.states(old.held.booking) == ["EXPIRED"]
    assert await labels(world, shown["lead"]) == ["1A", "1B"]


async def test_another_operators_trip_and_unknown_things_are_unknown(world: ChangingWorld) -> None:
    with pytest.raises(NotFound):
        await world.swaps.plan(world.admin("south"), world.trip_id, "eight", None)
    with pytest.raises(Invalid):
        await world.swaps.plan(world.admin(), world.trip_id, "no-such-layout", None)
    with pytest.raises(NotFound):
        await world.swaps.commit(world.admin(), None, world.trip_id, "f" * 32, None)


async def test_holds_that_race_swaps_never_sell_a_seat_twice_and_never_keep_a_swap_waiting(world: ChangingWorld) -> None:
    """Forty strangers hold and let go of the same seats while the bus changes back and forth, under the trip's lock for each."""
    seats, refused = ("1A", "1B", "2A", "2B"), set()
    swapping = True
    granted = 0

    async def stranger(n: int) -> None:
        nonlocal granted
        while swapping:
            try:
                made = await world.hold(seats[n % 4], frm=("demo:A", "demo:C")[n % 2], to=("demo:C", "demo:F")[n % 2], who=world.agent())
                granted += 1
                if n % 3:
                    await world.desk.release(world.agent(), None, made.held.booking)
                else:
                    await world.age(made.held.booking, 3600)
            except Refused as refusal:
                refused.add(refusal.code)
            await asyncio.sleep(0)

    async def watcher() -> None:
        while swapping:
            assert await world.overlaps() == 0
            await asyncio.sleep(0.01)

    others = [asyncio.create_task(stranger(n)) for n in range(40)] + [asyncio.create_task(watcher())]
    try:
        for turn in range(8):
            said = await swap(world, ("eight", "twelve")[turn % 2])  # lock_timeout ends a swap that waits for 2 s: BUSY
            assert said["mapVersion"] == turn + 2
    finally:
        swapping = False
        await asyncio.gather(*others)
    assert granted > 20
    assert refused <= {"SEAT_TAKEN", "BUSY"}
    await sound(world)


def test_what_a_point_of_sale_sold_from_its_lease_does_not_make_a_plan_stale() -> None:
    whole = legs_mask(0, 5)
    shown = Shown("p", 1, "eight", 1, None, [("lease", 1, 1, whole), ("lease", 2, 2, whole)], [], None)
    left = Taken("lease", "lease", None, "HELD", "LEASE", 1, whole, False)
    shorter = Taken("lease", "lease", None, "HELD", "LEASE", 2, legs_mask(0, 2), False)
    sale = Taken("sale", "sale", "7GK2QX", "CONFIRMED", "POS", 2, legs_mask(2, 5), False)
    assert pins_of(shown, [left, shorter, sale]) == {("lease", 1): 1}
