"""Sales made offline come in: leases, sync, conflicts, voids, drawers, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from engine.booking import pos
from engine.booking.drawers import Drawers
from engine.booking.exchanges import Exchanges, OtherTrip
from engine.booking.leases import Leases
from engine.booking.pos import Rider, Sale
from engine.booking.refusals import Refused
from engine.booking.till import Operator, Till
from engine.errors import NotFound, Unavailable
from engine.store.auditor import audit
from tests.booking_world import OTHER, PARTNER, FlatPrices, World, connect
from tests.changes_world import ChangingWorld

DEVICE = "till-1"
HOUR_MS = 3_600_000


class Counter:
    """A world with a till in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.till = Till(world.pool, world.catalogue, world.clock)
        self.leases = Leases(world.pool, world.catalogue, FlatPrices(), clock=world.clock, settings=world.settings)
        self.drawers = Drawers(world.pool, world.clock)

    def who(self, partner: str = PARTNER) -> Operator:
        return Operator(partner_id=partner, actor="agent:desk", request_id=self.world.clock.uuid7())

    async def lease(self, *labels: str, trip: str | None = None, device: str = DEVICE, **more: Any) -> Any:
        trip_id = trip or self.world.trip_id
        return (await self.leases.take(self.who(), self.world.key(), device, trip_id, labels=labels, **more)).body

    def sale(self, seq: int, seat: str, start: str = "demo:A", end: str = "demo:F", **changed: Any) -> Sale:
        legs = "ABCDEF".index(end[-1]) - "ABCDEF".index(start[-1])
        told: dict[str, Any] = {
            "amount": 10_000 * legs,
            "currency": "DZD",
            "sold_at_ms": self.world.clock.now_ms(),
            "trip_id": self.world.trip_id,
        }
        return Sale(seq=seq, seat=seat, from_=start, to=end, **(told | changed))

    async def sync(self, *sales: Sale, device: str = DEVICE, off_ms: int = 0, who: Operator | None = None) -> list[dict[str, Any]]:
        body = (await self.till.sync(who or self.who(), self.world.key(), device, self.world.clock.now_ms() + off_ms, sales)).body
        self.corrections: list[dict[str, Any]] = body["corrections"]
        results: list[dict[str, Any]] = body["results"]
        return results

    async def results(self, *sales: Sale, **more: Any) -> list[tuple[str, str | None]]:
        return [(one["result"], one["code"]) for one in await self.sync(*sales, **more)]

    async def seats(self) -> list[tuple[str, int, str, str]]:
        """(channel, seat, legs, state) of every active claim of the trip."""
        rows = await self.world.run(
            """select b.channel, c.seat, lower(c.legs) || '-' || upper(c.legs), c.state from booking.seat_claim c
            join booking.booking b using (booking_id) where c.active and c.trip_no = $1 order by 2, 3""", self.world.trip_no,
        )  # fmt: skip
        return [tuple(row) for row in rows]

    async def drawer(self, device: str = DEVICE) -> int:
        return int(await self.world.value("select money.drawer($1, $2, 'DZD')", PARTNER, device))

    async def sound(self) -> None:
        assert [tuple(row) for row in await self.world.run("select * from money.unsound()")] == []
        assert await self.world.overlaps() == 0
        said = await audit(self.world.settings.database_url, self.world.clock, keep_days=7)
        assert [(one.name, one.fault, one.broken) for one in said.findings if not one.holds] == []


@pytest.fixture
async def counter(database_url: str) -> AsyncIterator[Counter]:
    world = await World.make(database_url)
    yield Counter(world)
    await world.close()


# ------------------------------------------------------------------------------------------------ leases


async def test_a_lease_holds_a_block_of_seats_and_says_what_it_may_be_sold_for(counter: Counter) -> None:
    lease = await counter.lease("1A", "1B")
    assert lease["status"] == "HELD" and [seat["seat"] for seat in lease["left"]] == ["1A", "1B"]
    assert {(way["from"], way["to"]): way["prices"]["CHILD"]["1000"] for way in lease["fares"]}["demo:A", "demo:C"] == 10_000
    with pytest.raises(Refused) as refused:
        await counter.world.hold("1B", "1C")
    assert refused.value.code == "SEAT_TAKEN"


async def test_a_lease_of_a_number_of_seats_takes_seats_side_by_side(counter: Counter) -> None:
    assert len((await counter.lease(count=4))["seats"]) == 4


async def test_what_is_leased_twice_is_refused_with_the_seats_named(counter: Counter) -> None:
    await counter.lease("1A", "1B")
    with pytest.raises(Refused) as refused:
        await counter.lease("1B", "1C", device="till-2")
    assert [fault["pointer"] for fault in refused.value.errors] == ["/seats/1B"]


async def test_another_operators_trip_or_lease_is_unknown(counter: Counter) -> None:
    lease = await counter.lease("1A")
    with pytest.raises(NotFound):
        await counter.leases.take(counter.who(OTHER), None, DEVICE, counter.world.trip_id, labels=["1B"])
    for attempt in (
        counter.leases.show(counter.who(OTHER), lease["id"]),
        counter.leases.give_back(counter.who(OTHER), None, lease["id"]),
        counter.leases.extend(counter.who(OTHER), None, lease["id"]),
    ):
        with pytest.raises(NotFound):
            await attempt


async def test_giving_a_lease_back_frees_what_is_unsold_and_keeps_what_is_sold(counter: Counter) -> None:
    lease = await counter.lease("1A", "1B")
    await counter.sync(counter.sale(1, "1A", "demo:B", "demo:D"))
    assert (await counter.leases.give_back(counter.who(), None, lease["id"])).body["status"] == "RELEASED"
    assert await counter.seats() == [("POS", 1, "1-3", "SOLD")]
    assert (await counter.leases.give_back(counter.who(), None, lease["id"])).body["left"] == []
    await counter.sound()


async def test_a_lease_of_which_a_bus_swap_took_a_part_goes_on_and_is_given_back(counter: Counter) -> None:
    lease = await counter.lease("1A")
    await counter.sync(counter.sale(1, "1A", "demo:B", "demo:C"))  # the rest is two rows: before it and after it
    gone = await counter.world.value("select booking_id from booking.booking where lead_id = $1 and upper(legs) = 1", lease["id"])
    await counter.world.run("select booking.move(array[$1::uuid], 'RELEASED', 'test', 'test')", gone)
    extended = (await counter.leases.extend(counter.who(), None, lease["id"])).body
    assert (extended["status"], [one["from"] for one in extended["left"]]) == ("HELD", ["demo:C"])
    assert (await counter.leases.give_back(counter.who(), None, lease["id"])).body["status"] == "RELEASED"
    assert [channel for channel, _, _, _ in await counter.seats()] == ["POS"]
    kinds = await counter.world.run("select kind from office.outbox where aggregate = $1 order by version", gone)
    assert [row[0] for row in kinds][-1] == "RELEASED"


async def test_a_lease_that_is_over_cannot_be_extended(counter: Counter) -> None:
    lease = await counter.lease("1A")
    await counter.sync(counter.sale(1, "1A", "demo:B", "demo:C"))
    later = (await counter.leases.extend(counter.who(), None, lease["id"], 20_000)).body
    assert later["expiresAt"] > lease["expiresAt"]
    await counter.world.age(lease["id"], 30_000)
    with pytest.raises(Refused) as refused:
        await counter.leases.extend(counter.who(), None, lease["id"])
    assert refused.value.code == "LEASE_OVER"
    await counter.sound()


async def test_the_sweep_frees_what_a_lease_that_ran_out_has_left(counter: Counter) -> None:
    lease = await counter.lease("1A", "1B", "1C")
    await counter.sync(counter.sale(1, "1A", "demo:B", "demo:D"), counter.sale(2, "1B"))
    await age(counter, lease["id"])
    assert len(await counter.world.value("select booking.expire(array[$1::uuid], 'test')", lease["id"])) == 3
    assert await counter.seats() == [("POS", 1, "1-3", "SOLD"), ("POS", 2, "0-5", "SOLD")]
    await counter.sound()


async def age(counter: Counter, lease_id: str, seconds: int = 20_000) -> None:
    await counter.world.run(
        "update booking.booking set expires_at = expires_at - make_interval(secs => $2) where lead_id = $1", lease_id, float(seconds)
    )


# ------------------------------------------------------------------------------------------------ sync


async def test_a_sale_takes_its_legs_out_of_the_lease_and_is_paid_ticketed_and_referenced(counter: Counter) -> None:
    await counter.lease("1A")
    (done,) = await counter.sync(counter.sale(1, "1A", "demo:B", "demo:D", passenger=Rider("Amal", "Benaïssa")))
    assert done["result"] == "CONFIRMED" and done["seat"] == "1A" and len(done["ref"]) == 6
    assert await counter.seats() == [("LEASE", 1, "0-1", "HELD"), ("POS", 1, "1-3", "SOLD"), ("LEASE", 1, "3-5", "HELD")]
    shown = await counter.world.bookings.lookup(done["ref"], "benaissa")
    assert shown["rows"][0]["state"] == "CONFIRMED" and shown["rows"][0]["total"] == 20_000
    assert await counter.world.value("select count(*) from ticket.ticket where state = 'ISSUED'") == 1
    assert await counter.drawer() == 20_000
    await counter.sound()


async def test_two_passengers_share_a_seat_on_the_legs_of_a_lease(counter: Counter) -> None:
    await counter.lease("1A")
    sales = [
        counter.sale(1, "1A", "demo:A", "demo:C"),
        counter.sale(2, "1A", "demo:C", "demo:F"),
        counter.sale(3, "1A", "demo:B", "demo:D"),
    ]
    assert await counter.results(*sales) == [("CONFIRMED", None), ("CONFIRMED", None), ("CONFLICT_REFUND", "SEAT_TAKEN")]
    assert await counter.drawer() == 70_000
    await counter.sound()


async def test_a_sale_is_sold_once_however_often_it_arrives(counter: Counter) -> None:
    await counter.lease("1A", "1B")
    one, other = counter.sale(1, "1A"), counter.sale(2, "1B")
    first = await counter.sync(one, one, other)
    assert [r["result"] for r in first] == ["CONFIRMED", "DUPLICATE", "CONFIRMED"]
    again = await counter.sync(other, one)
    assert [(r["result"], r["was"], r["ref"]) for r in again] == [
        ("DUPLICATE", "CONFIRMED", first[2]["ref"]),
        ("DUPLICATE", "CONFIRMED", first[0]["ref"]),
    ]
    assert await counter.drawer() == 100_000


async def test_a_number_never_stands_for_two_sales(counter: Counter) -> None:
    await counter.lease("1A", "1B")
    assert await counter.results(counter.sale(1, "1A"), counter.sale(1, "1B")) == [("CONFIRMED", None), ("REJECTED", "SEQ_REUSED")]


async def test_the_same_request_is_answered_the_same(counter: Counter) -> None:
    await counter.lease("1A")
    key, now_ms = counter.world.key(), counter.world.clock.now_ms()
    first = await counter.till.sync(counter.who(), key, DEVICE, now_ms, [counter.sale(1, "1A")])
    again = await counter.till.sync(counter.who(), key, DEVICE, now_ms, [counter.sale(1, "1A")])
    assert again.replayed and again.body == first.body


async def test_what_can_be_no_sale_is_rejected_and_leaves_nothing_behind(counter: Counter) -> None:
    await counter.lease("1A")
    south, _ = await counter.world.trip(partner=OTHER)
    sales = [
        counter.sale(1, "1A", trip_id="demo:NONE:20261121"),
        counter.sale(2, "1A", trip_id=south),
        counter.sale(3, "1A", amount=-5),
        counter.sale(4, "1A", currency="EUR"),
        counter.sale(5, "1A", "demo:D", "demo:B", amount=1),
        Sale(6, counter.world.trip_id, "1A", "demo:A", "demo:Z", 0, 1, "DZD"),
    ]
    codes = ["UNKNOWN_TRIP", "UNKNOWN_TRIP", "INVALID_AMOUNT", "WRONG_CURRENCY", "WRONG_DIRECTION", "UNKNOWN_STOP"]
    assert await counter.results(*sales) == [("REJECTED", code) for code in codes]
    assert await counter.world.value("select count(*) from pos.sale") == 0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seat": "1B"}, ("CONFLICT_REFUND", "NOT_LEASED")),
        ({"seat": "9Z"}, ("CONFLICT_REFUND", "NOT_LEASED")),
        ({"amount": 49_999}, ("CONFLICT_REFUND", "WRONG_AMOUNT")),
        ({"passenger": Rider(type="PARROT")}, ("CONFLICT_REFUND", "WRONG_AMOUNT")),
        ({"sold_at_ms": 0}, ("STANDBY", "OUTSIDE_LEASE")),
    ],
)
async def test_who_has_no_right_to_a_seat_has_the_money_owed_back(counter: Counter, changed: dict[str, Any], said: tuple[str, str]) -> None:
    await counter.lease("1A")
    told = {"seat": "1A"} | changed
    (done,) = await counter.sync(counter.sale(1, **told))
    assert (done["result"], done["code"]) == said and done["refund"] == told.get("amount", 50_000) and done["ref"]
    assert await counter.seats() == [("LEASE", 1, "0-5", "HELD")]
    assert await counter.world.value("select sum(amount) from money.refund where state = 'AT_COUNTER'") == done["refund"]
    await counter.sound()


async def test_a_card_is_charged_online_or_not_at_all(counter: Counter) -> None:
    await counter.lease("1A")
    (done,) = await counter.sync(counter.sale(1, "1A", method="CARD_TOKEN"))
    assert (done["result"], done["code"], done["refund"]) == ("STANDBY", "PAY_ONLINE", None)
    assert await counter.drawer() == 0


async def test_a_child_pays_the_childs_fare(counter: Counter) -> None:
    await counter.lease("1A")
    assert await counter.results(counter.sale(1, "1A", amount=25_000, passenger=Rider(type="CHILD"))) == [("CONFIRMED", None)]


async def test_sales_of_a_trip_that_was_cancelled_meanwhile_are_owed_back(counter: Counter) -> None:
    await counter.lease("1A")
    await counter.world.run("update sale.trip_instance set status = 'CANCELLED' where trip_no = $1", counter.world.trip_no)
    assert await counter.results(counter.sale(1, "1A")) == [("CONFLICT_REFUND", "TRIP_CANCELLED")]


@pytest.mark.parametrize("off_ms", [HOUR_MS, -HOUR_MS])
async def test_a_pos_clock_that_is_off_by_an_hour_is_corrected(counter: Counter, off_ms: int) -> None:
    await counter.lease("1A", ttl_s=600)
    sale = counter.sale(1, "1A", sold_at_ms=counter.world.clock.now_ms() + off_ms)
    assert await counter.results(sale, off_ms=off_ms) == [("CONFIRMED", None)]
    assert abs((await counter.world.value("select sold_at - received_at from pos.sale")).total_seconds()) < 10


async def test_without_the_devices_time_that_sale_would_lie_outside_its_lease(counter: Counter) -> None:
    await counter.lease("1A", ttl_s=600)
    sale = counter.sale(1, "1A", sold_at_ms=counter.world.clock.now_ms() - HOUR_MS)
    assert await counter.results(sale) == [("STANDBY", "OUTSIDE_LEASE")]


# ------------------------------------------------------------------------------------------------ late uploads


async def test_an_upload_after_the_lease_ran_out_is_honoured_while_the_seat_is_free(counter: Counter) -> None:
    lease = await counter.lease("1A", "1B")
    await end_now(counter, lease["id"])
    await counter.world.hold("1B", frm="demo:C", to="demo:F")
    assert await counter.results(counter.sale(1, "1A"), counter.sale(2, "1B", "demo:A", "demo:C")) == [("CONFIRMED", None)] * 2
    await counter.sound()


async def test_a_seat_that_somebody_took_over_meanwhile_is_theirs_and_the_sale_is_owed_back(counter: Counter) -> None:
    lease = await counter.lease("1A", "1B")
    await end_now(counter, lease["id"])
    taken = await counter.world.hold("1A", frm="demo:C", to="demo:D")
    sales = counter.sale(1, "1A"), counter.sale(2, "1B"), counter.sale(3, "1A", "demo:A", "demo:B")
    assert await counter.results(*sales) == [("CONFLICT_REFUND", "SEAT_TAKEN"), ("CONFIRMED", None), ("CONFIRMED", None)]
    assert (taken.held.booking, 1, "2-3", "HELD") in await counter.world.claims()
    await counter.sound()


async def end_now(counter: Counter, lease_id: str) -> None:
    """The lease has run out a second ago and was swept."""
    await counter.world.run("update booking.booking set expires_at = clock_timestamp() - interval '1 second' where lead_id = $1", lease_id)
    await counter.world.value("select booking.expire(array[$1::uuid], 'test')", lease_id)


async def test_a_sale_made_after_the_lease_was_given_back_waits_for_a_seat(counter: Counter) -> None:
    lease = await counter.lease("1A")
    await counter.world.run(
        "update pos.lease set leased_at = leased_at - interval '1 hour', ended_at = clock_timestamp() - interval '30 minutes'"
    )
    await counter.leases.give_back(counter.who(), None, lease["id"])
    assert await counter.results(counter.sale(1, "1A")) == [("STANDBY", "OUTSIDE_LEASE")]


async def test_sales_made_before_a_bus_swap_find_the_seats_with_their_labels_on_the_other_bus(counter: Counter) -> None:
    lease = await counter.lease("1A", "1B")
    first = counter.sale(1, "1A", "demo:A", "demo:C")
    await counter.sync(first)
    trip = await counter.world.catalogue.trip(counter.world.trip_id)
    labels = list(reversed(trip.labels))  # the same seats, counted from the back
    rows = await counter.world.run("select booking_id, seat from booking.seat_claim where active and trip_no = $1", counter.world.trip_no)
    ids, old = [row[0] for row in rows], [row[1] for row in rows]
    body = trip.layout.body() | {"seats": list(reversed(trip.layout.body()["seats"]))}

    async def swap(connection: Any) -> None:
        await connection.execute("select booking.lock_trip($1, true)", trip.trip_no)
        moved = [13 - seat for seat in old]
        args = (trip.trip_no, 1, ids, old, moved, "twelve", None, list(range(1, 13)), labels, body, "agent:desk", "r")
        await connection.execute("select booking.swap($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)", *args)

    await counter.world.pool.run(PARTNER, swap)
    later = counter.sale(2, "1B"), counter.sale(3, "1A", "demo:C", "demo:F"), counter.sale(4, "1A")
    said = await counter.results(*later, pos.msgspec.structs.replace(first, void=True))
    assert said == [("CONFIRMED", None), ("CONFIRMED", None), ("CONFLICT_REFUND", "SEAT_TAKEN"), ("VOIDED", None)]
    claims = await counter.seats()
    assert [claim for claim in claims if claim[0] != "LEASE"] == [("POS", 11, "0-5", "SOLD"), ("POS", 12, "2-5", "SOLD")]
    assert ("LEASE", 12, "0-2", "HELD") in claims
    assert lease["id"] and await counter.world.overlaps() == 0
    await counter.sound()


# ------------------------------------------------------------------------------------------------ voids, offers, corrections


async def test_a_void_gives_the_seat_back_to_the_lease_and_the_money_to_the_passenger(counter: Counter) -> None:
    await counter.lease("1A")
    await counter.sync(counter.sale(1, "1A", "demo:B", "demo:D", sold_at_ms=5))
    sale = counter.sale(2, "1A", "demo:B", "demo:D")
    assert await counter.results(sale) == [("CONFIRMED", None)]
    again = pos.msgspec.structs.replace(sale, void=True)
    assert await counter.results(again, again) == [("VOIDED", None), ("DUPLICATE", None)]
    assert await counter.seats() == [("LEASE", 1, "0-5", "HELD")]
    assert await counter.drawer() == 20_000  # of the first, which waits for a seat
    assert await counter.world.value("select count(*) from ticket.ticket where state = 'REVOKED'") == 1
    await counter.sound()


async def test_who_is_on_board_cannot_be_void(counter: Counter) -> None:
    await counter.lease("1A")
    sale = counter.sale(1, "1A")
    await counter.sync(sale)
    await counter.world.run("select booking.move(array[booking_id], 'BOARDED', 'test', 'test') from booking.booking where channel = 'POS'")
    assert await counter.results(pos.msgspec.structs.replace(sale, void=True)) == [("REJECTED", "WRONG_STATE")]


async def test_a_sale_that_was_exchanged_for_a_dearer_ride_stops_no_later_upload(counter: Counter) -> None:
    world = counter.world
    await counter.lease("1A")
    sale = counter.sale(1, "1A", "demo:A", "demo:C")
    [sold] = await counter.sync(sale)
    exchanges = Exchanges(world.pool, world.desk, FlatPrices(), world.clock, world.settings)
    other = OtherTrip(trip_id=world.trip_id, start="demo:A", end="demo:F", labels=("3A",))
    begun = (await exchanges.exchange(world.agent(), None, sold["ref"], other, None)).body
    assert await ChangingWorld.pay(world, begun["id"])  # type: ignore[arg-type]
    assert await counter.results(msgspec.structs.replace(sale, void=True), counter.sale(2, "1A", "demo:C", "demo:F")) == [
        ("REJECTED", "WRONG_STATE"),
        ("CONFIRMED", None),
    ]
    await counter.sound()


async def test_the_lower_number_wins_a_seat_sold_twice_though_it_arrives_later_and_the_other_is_told(counter: Counter) -> None:
    await counter.lease("1A")
    await counter.sync(counter.sale(7, "1A", "demo:A", "demo:C"))
    assert await counter.results(counter.sale(5, "1A", "demo:B", "demo:F")) == [("CONFIRMED", None)]
    assert [(one["seq"], one["result"], one["was"]) for one in counter.corrections] == [(7, "CONFLICT_REFUND", "CONFIRMED")]
    assert await counter.seats() == [("LEASE", 1, "0-1", "HELD"), ("POS", 1, "1-5", "SOLD")]
    await counter.sound()


async def test_a_void_that_frees_a_seat_gives_it_to_the_sale_that_had_lost_it(counter: Counter) -> None:
    await counter.lease("1A")
    first = counter.sale(1, "1A")
    assert await counter.results(first, counter.sale(2, "1A")) == [("CONFIRMED", None), ("CONFLICT_REFUND", "SEAT_TAKEN")]
    await counter.sync(pos.msgspec.structs.replace(first, void=True))
    assert [(one["seq"], one["result"]) for one in counter.corrections] == [(2, "CONFIRMED")]
    assert await counter.drawer() == 50_000
    await counter.sound()


async def test_where_the_operator_says_so_other_seats_are_offered_and_one_is_taken(counter: Counter) -> None:
    await counter.drawers.put_policy(counter.who(), "OFFER")
    await counter.lease("1A")
    await counter.sync(counter.sale(1, "1A"))
    (lost,) = await counter.sync(counter.sale(2, "1A"))
    assert lost["result"] == "STANDBY" and lost["offers"][0] == "1B"
    done = (await counter.till.seat(counter.who(), counter.world.key(), DEVICE, 2, "1B")).body
    assert (done["result"], done["seat"], done["code"]) == ("CONFIRMED", "1B", "RESEATED")
    assert await counter.drawer() == 100_000
    with pytest.raises(Refused) as refused:
        await counter.till.seat(counter.who(), None, DEVICE, 2, "1C")
    assert refused.value.code == "SALE_SETTLED"
    assert await counter.results(pos.msgspec.structs.replace(counter.sale(2, "1A"), void=True)) == [("REJECTED", "SEQ_REUSED")]
    await counter.sound()


async def test_a_seat_that_is_taken_cannot_be_given_to_who_waits(counter: Counter) -> None:
    await counter.lease("1A")
    await counter.world.hold("1B")
    await counter.sync(counter.sale(1, "1A"), counter.sale(2, "1A"))
    with pytest.raises(Refused) as refused:
        await counter.till.seat(counter.who(), None, DEVICE, 2, "1B")
    assert refused.value.code == "SEAT_TAKEN"
    await counter.sound()


# ------------------------------------------------------------------------------------------------ every order, every split


async def end_state(counter: Counter, trip_no: int, device: str) -> Any:
    sales = await counter.world.run("select seq, void, result, code, given from pos.sale where device_id = $1 order by seq", device)
    claims = await counter.world.run(
        """select c.seat, c.legs::text, c.state, b.channel, s.seq from booking.seat_claim c join booking.booking b using (booking_id)
        left join pos.sale s using (booking_id) where c.active and c.trip_no = $1 order by 1, 2""", trip_no,
    )  # fmt: skip
    owed = await counter.world.value(
        """select coalesce(sum(r.amount), 0) from money.refund r join pos.sale s on s.booking_id = r.lead_id
        where s.device_id = $1 and r.state = 'AT_COUNTER'""", device,
    )  # fmt: skip
    return [tuple(row) for row in sales], [tuple(row) for row in claims], await counter.drawer(device), owed


@pytest.mark.parametrize("seed", range(6))
async def test_any_order_split_and_repetition_of_batches_ends_in_the_same_state(counter: Counter, seed: int) -> None:
    chance = random.Random(seed)
    stops = [f"demo:{letter}" for letter in "ABCDEF"]
    plans = []
    for seq in range(1, 11):
        start, end = sorted(chance.sample(range(6), 2))
        plans.append((seq, chance.choice(["1A", "1B", "1C"]), stops[start], stops[end], chance.random() < 0.3))
    ends = []
    for turn in range(3):
        trip_id, trip_no = await counter.world.trip()
        device = f"till-{seed}-{turn}"
        await counter.lease("1A", "1B", trip=trip_id, device=device)
        entries = []
        for seq, seat, start, end, void in plans:
            sale = counter.sale(seq, seat, start, end, trip_id=trip_id)
            entries += [sale] + ([pos.msgspec.structs.replace(sale, void=True)] if void else [])
        if turn:
            entries += chance.sample(entries, 4)
            chance.shuffle(entries)
        while entries:
            size = chance.randint(1, 4) if turn else len(entries)
            batch, entries = entries[:size], entries[size:]
            await counter.sync(*batch, device=device)
        ends.append(await end_state(counter, trip_no, device))
        await counter.sound()
    assert ends[1] == ends[0] and ends[2] == ends[0]


async def test_an_upload_whose_backend_is_killed_is_sent_again_and_counts_once(counter: Counter) -> None:
    await counter.lease("1A")
    key, sale = counter.world.key(), counter.sale(1, "1A")
    blocker = await connect(counter.world.settings.database_url)
    try:
        await blocker.execute("begin; set local tp.partner = '*'; select from pos.device for update")
        upload = asyncio.create_task(counter.till.sync(counter.who(), key, DEVICE, counter.world.clock.now_ms(), [sale]))
        killed = """
            select pg_terminate_backend(pid) from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock' and application_name = 'timepoint desk'"""
        while not await blocker.fetch(killed):
            await blocker.execute("select pg_stat_clear_snapshot()")
        with pytest.raises(Unavailable):
            await upload
    finally:
        await blocker.close()
    again = await counter.till.sync(counter.who(), key, DEVICE, counter.world.clock.now_ms(), [sale])
    assert not again.replayed and again.body["results"][0]["result"] == "CONFIRMED"
    assert await counter.drawer() == 50_000
    await counter.sound()


async def test_leases_syncs_and_web_holds_on_one_trip_never_sell_a_seat_twice(counter: Counter) -> None:
    labels = list(counter.world.catalogue and (await counter.world.catalogue.trip(counter.world.trip_id)).labels)
    chance = random.Random(4)

    async def device(number: int) -> Sequence[str]:
        try:
            await counter.lease(*chance.sample(labels, 3), device=f"d{number}")
        except Refused:
            return []
        sales = [counter.sale(seq, chance.choice(labels), *chance.choice([("demo:A", "demo:C"), ("demo:B", "demo:F")])) for seq in range(4)]
        return [one["result"] for one in await counter.sync(*sales, device=f"d{number}")]

    async def web() -> str:
        try:
            await counter.world.hold(chance.choice(labels), frm="demo:C", to="demo:E")
        except Refused as refusal:
            return refusal.code
        return "HELD"

    done = await asyncio.gather(*(device(n) for n in range(6)), *(web() for _ in range(24)))
    assert "HELD" in done and {code for code in done if isinstance(code, str)} <= {"HELD", "SEAT_TAKEN"}
    await counter.sound()


@pytest.mark.parametrize("seed", range(3))
async def test_an_upload_and_strangers_meet_on_the_seats_of_a_lease_that_runs_out(counter: Counter, seed: int) -> None:
    lease = await counter.lease("1A", "1B", "1C", "1D")
    await counter.world.run("update booking.booking set expires_at = clock_timestamp() where lead_id = $1", lease["id"])
    chance = random.Random(seed)

    async def web(label: str) -> str:
        try:
            return (await counter.world.hold(label, frm="demo:B", to="demo:D")).held.booking
        except Refused as refusal:
            return refusal.code

    sales = [counter.sale(seq, label, "demo:A", "demo:C") for seq, label in enumerate(("1A", "1B", "1C", "1D"))]
    asks = [counter.results(*sales), *(web(label) for label in ("1A", "1B", "1C", "1D") * 2)]
    chance.shuffle(asks)
    await asyncio.gather(*asks, counter.world.value("select booking.expire(array[$1::uuid], 'sweep')", lease["id"]))
    taken = {seat for _, seat, *_ in await counter.seats()}
    assert taken == {1, 2, 3, 4}  # each went to the passenger or to a stranger
    await counter.sound()


# ------------------------------------------------------------------------------------------------ devices and drawers


async def test_a_devices_token_opens_its_own_till_until_it_is_retired(counter: Counter) -> None:
    made = await counter.drawers.put_device(counter.who(), "handheld", "the red one")
    who = await counter.drawers.device_of(made["token"], "r")
    assert (who.partner_id, who.device("handheld")) == (PARTNER, "handheld")
    with pytest.raises(NotFound):
        who.device("another")
    await counter.drawers.retire_device(counter.who(), "handheld")
    with pytest.raises(Exception, match="none of ours"):
        await counter.drawers.device_of(made["token"], "r")
    with pytest.raises(NotFound):
        await counter.lease("1A", device="handheld")


async def test_a_cash_session_is_opened_counted_and_its_difference_booked(counter: Counter) -> None:
    session = (await counter.drawers.open(counter.who(), counter.world.key(), DEVICE, "DZD", 5_000)).body
    with pytest.raises(Refused) as refused:
        await counter.drawers.open(counter.who(), counter.world.key(), DEVICE, "DZD", 0)
    assert refused.value.code == "SESSION_OPEN"
    await counter.lease("1A")
    lost = counter.sale(2, "1A")
    await counter.sync(counter.sale(1, "1A"), lost)
    await counter.sync(pos.msgspec.structs.replace(lost, void=True))
    assert (await counter.drawers.show(counter.who(), session["id"]))["expected"] == {"amount": 55_000, "currency": "DZD"}
    closed = (await counter.drawers.close(counter.who(), counter.world.key(), session["id"], 54_000)).body
    assert closed["status"] == "CLOSED" and closed["difference"]["amount"] == -1_000
    assert await counter.drawer() == 0
    short = "select sum(debit - credit) from money.ledger where account = 'CASH_DIFFERENCE'"
    assert await counter.world.value(short) == 1_000
    with pytest.raises(Refused) as refused:
        await counter.drawers.close(counter.who(), counter.world.key(), session["id"], 1)
    assert refused.value.code == "SESSION_CLOSED"
    with pytest.raises(NotFound):
        await counter.drawers.show(counter.who(OTHER), session["id"])
    await counter.sound()
