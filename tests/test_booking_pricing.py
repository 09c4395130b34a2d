"""Prices on a real PostgreSQL: from memory while that is fresh, kept once they were quoted; codes and stock never sold beyond their limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from engine.booking.desk import Named, Wish
from engine.booking.extras import Asked
from engine.booking.pricing import FULL_MS, PLAN_MS, Pricing, leg_metres
from engine.booking.refusals import Refused
from engine.errors import Invalid
from engine.meter import Meter
from tests.booking_world import PARTNER, World

PER_KM = {"currency": "DZD", "base": {"kind": "PER_KM", "perKm": 1000, "start": 10_000}, "types": {"ADULT": 1000, "CHILD": 500}}
ANCILLARIES = [
    {"code": "BAG", "kind": "BAGGAGE", "name": "Second bag", "price": 3_000, "stock": 5, "maxPerPassenger": 2},
    {"code": "MEAL", "kind": "MEAL", "name": "Meal box", "price": 4_500},
]


class ShiftedClock:
    """The world's clock, some time ahead: what is remembered gets old without waiting."""

    def __init__(self, clock: Any) -> None:
        self._clock, self.ahead_ms = clock, 0

    def now_ms(self) -> int:
        return int(self._clock.now_ms()) + self.ahead_ms

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)


class Shop(World):
    """The world with real prices."""

    pricing: Pricing
    shifted: ShiftedClock
    meter: Meter

    def open(self) -> None:
        self.shifted, self.meter = ShiftedClock(self.clock), Meter()
        self.pricing = self.desk.pricing = Pricing(self.pool, self.shifted, meter=self.meter)

    async def plan(self, **more: Any) -> None:
        """The operator writes the fare plan anew; the worker remembers nothing."""
        await self.run("update sale.fare_plan set body = $1, version = version + 1 where partner_id = $2", PER_KM | more, PARTNER)
        self.open()

    async def promo(self, code: str = "SPRING", **more: Any) -> None:
        row = {"kind": "FIXED", "value": 1_000, "currency": "DZD", "min_amount": 0, "max_uses": None, "max_uses_each": None} | more
        await self.run(
            """insert into sale.promo_code (partner_id, code, kind, value, currency, min_amount, valid_from, max_uses, max_uses_each)
            values ($1, $2, $3, $4, $5, $6, clock_timestamp() - interval '1 day', $7, $8)""",
            PARTNER, code, row["kind"], row["value"], row["currency"], row["min_amount"], row["max_uses"], row["max_uses_each"],
        )  # fmt: skip

    async def buy(self, label: str, email: str = "a@example.org", **more: Any) -> Any:
        """One seat held and booked, with what is asked for beside it. Raises what the desk refuses it with."""
        made = await self.hold(label)
        named = [Named(seat=label, first_name="Amal", last_name="Benaïssa")]
        shown, _ = await self.desk.book(self.guest(made.token), self.key(), [made.held.booking], named, {"email": email}, **more)
        return shown

    async def bought(self, *seats: str, **more: Any) -> tuple[int, list[str]]:
        """(how many of these buyers, all at once, got it, codes that the others were refused with)."""
        ends = await asyncio.gather(*(self.buy(seat, f"{seat}@example.org", **more) for seat in seats), return_exceptions=True)
        refused = [end.code for end in ends if isinstance(end, Refused)]
        assert len(refused) + sum(isinstance(end, dict) for end in ends) == len(ends), ends
        return len(ends) - len(refused), refused

    def reads(self) -> float:
        return sum(self.meter.counter("timepoint_price_reads_total", "reads for prices, by what was read", ("what",)).value(what) for what in
                   ("plan", "occupancy", "promo"))  # fmt: skip


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    made = await Shop.make(database_url, guest_seats_max=50, guest_holds_max=50)
    assert isinstance(made, Shop)
    made.open()
    yield made
    await made.pricing.settled()
    await made.close()


# ------------------------------------------------------------------------------------------------ prices


async def test_a_price_is_so_much_a_kilometre_and_the_database_is_asked_once(shop: Shop) -> None:
    trip = await shop.catalogue.trip(shop.trip_id)
    made = await shop.pricing.quote(trip, 0, 5, [1, 2])
    await shop.pricing.settled()
    assert made.adult == (10_000 + sum(leg_metres(trip)),) * 2, "1,000 a kilometre is 1 a metre"
    before = shop.reads()
    for _ in range(50):
        assert await shop.pricing.quote(trip, 0, 5, [1, 2]) is made
    assert (await shop.pricing.prices(trip, 0, 5)) == {"STANDARD": made.adult[0]}
    assert shop.reads() == before


async def test_a_bus_that_fills_gets_dearer_within_seconds_and_what_is_held_stays(shop: Shop) -> None:
    await shop.plan(demand=[{"fromPermille": 500, "permille": 1500}])
    first = await shop.hold("1A", "1B", "1C", "1D", "2A", "2B")
    dear = await shop.hold("3A")
    assert first.held.prices[0] == dear.held.prices[0], "remembered for a few seconds"
    shop.shifted.ahead_ms += FULL_MS
    dear = await shop.hold("3B")
    assert dear.held.prices[0] * 1000 == pytest.approx(first.held.prices[0] * 1500, abs=500)
    kept = await shop.desk.show(shop.guest(first.token), booking_id=first.held.booking)
    assert kept["rows"][0]["prices"] == first.held.prices
    assert [reason["code"] for reason in (await shop.desk.show(shop.guest(dear.token), booking_id=dear.held.booking))["rows"][0]["quote"]["reasons"]] == [
        "BASE", "DEMAND",
    ]  # fmt: skip


async def test_a_seat_sold_for_half_the_way_counts_half(shop: Shop) -> None:
    await shop.hold("1A", frm="demo:A", to="demo:B")
    assert await shop.value("select sale.occupancy($1, $2, 1)", PARTNER, shop.trip_no) == 1000 // 60
    await shop.hold(*[f"{row}{letter}" for row in (2, 3) for letter in "ABCD"])
    assert await shop.value("select sale.occupancy($1, $2, 1)", PARTNER, shop.trip_no) == (8 * 5 + 1) * 1000 // 60


async def test_a_new_version_of_a_plan_is_in_force_within_its_time(shop: Shop) -> None:
    trip = await shop.catalogue.trip(shop.trip_id)
    before = await shop.pricing.quote(trip, 0, 5, [1])
    await shop.run("update sale.fare_plan set body = $1, version = version + 1 where partner_id = $2", PER_KM | {"step": 5_000}, PARTNER)
    assert await shop.pricing.quote(trip, 0, 5, [1]) is before
    shop.shifted.ahead_ms += PLAN_MS
    after = await shop.pricing.quote(trip, 0, 5, [1])
    assert after.adult[0] % 5_000 == 0
    assert after.plan_version == before.plan_version + 1


async def test_the_price_log_has_each_change_of_a_trips_multiplier_once(shop: Shop) -> None:
    await shop.plan(demand=[{"fromPermille": 80, "permille": 1500}])
    trip = await shop.catalogue.trip(shop.trip_id)
    other = Pricing(shop.pool, shop.shifted)
    for pricing in (shop.pricing, other, shop.pricing):
        await pricing.quote(trip, 0, 5, [1])
        await pricing.settled()
        shop.shifted.ahead_ms += FULL_MS
    await shop.hold("1A")
    shop.shifted.ahead_ms += FULL_MS
    for pricing in (shop.pricing, other):
        await pricing.quote(trip, 0, 5, [2])
        await pricing.settled()
    rows = await shop.run("select multiplier from sale.price_log where kind = 'MULTIPLIER' order by at")
    assert [row[0] for row in rows] == [1000, 1500]


async def test_yen_and_dinars_of_kuwait_are_sold_without_a_digit_too_many(shop: Shop) -> None:
    for currency, per_km in (("JPY", 12), ("KWD", 15)):
        trip_id, trip_no = await shop.trip(currency=currency)
        plan = {"currency": currency, "base": {"kind": "PER_KM", "perKm": per_km}}
        await shop.run(
            "insert into sale.fare_plan (partner_id, fare_plan_id, name, currency, body) values ($1, $2, $2, $2, $3)",
            PARTNER,
            currency,
            plan,
        )
        await shop.run("update sale.trip_instance set fare_plan_id = $2 where trip_no = $1", trip_no, currency)
        shop.catalogue.forget(trip_id)
        made = await shop.hold("1A", trip=trip_id)
        trip = await shop.catalogue.trip(trip_id)
        assert made.held.prices == [round(per_km * sum(leg_metres(trip)) / 1000)]


async def test_a_trip_whose_plan_turned_to_another_currency_has_no_fare(shop: Shop) -> None:
    await shop.plan(currency="JPY")
    with pytest.raises(Refused) as refused:
        await shop.hold("1A")
    assert refused.value.code == "NO_FARE"


# ------------------------------------------------------------------------------------------------ quotes


async def quoted(shop: Shop, count: int = 1, **more: Any) -> Any:
    trip = await shop.catalogue.trip(shop.trip_id)
    answer = await shop.pricing.give(more.pop("key", None), trip, 0, 5, ["STANDARD"] * count, ["ADULT"] * count, **more)
    return answer.body


async def test_a_quote_is_kept_to_the_end_of_the_hold_whatever_the_plan_becomes(shop: Shop) -> None:
    given = await quoted(shop, 2)
    await shop.plan(base={"kind": "PER_KM", "perKm": 9_999})
    wish = Wish(start="demo:A", end="demo:F", labels=("1A", "1B"), quote_id=given["quote"]["quoteId"])
    made = await shop.desk.hold(shop.guest(), shop.key(), shop.trip_id, wish)
    assert made.held.prices == [seat["price"] for seat in given["seats"]]
    assert (await shop.hold("2A")).held.prices[0] > made.held.prices[0]


async def test_a_quote_is_for_its_ride_and_its_number_of_seats_and_ends(shop: Shop) -> None:
    given = (await quoted(shop, 2))["quote"]["quoteId"]
    trip = await shop.catalogue.trip(shop.trip_id)
    for quote_id, ride, numbers in (
        (given, (0, 4), [1, 2]), (given, (0, 5), [1]), ("nonsense", (0, 5), [1, 2]), (shop.clock.uuid7(), (0, 5), [1, 2])
    ):  # fmt: skip
        with pytest.raises(Refused) as refused:
            await shop.pricing.recall(quote_id, trip, *ride, numbers)
        assert refused.value.code == "QUOTE_EXPIRED"
    await shop.pricing.recall(given, trip, 0, 5, [7, 9])
    await shop.run("update sale.price_log set valid_until = clock_timestamp()")
    with pytest.raises(Refused):
        await shop.pricing.recall(given, trip, 0, 5, [1, 2])


async def test_a_hold_may_bring_a_code_to_its_quote(shop: Shop) -> None:
    await shop.promo(value=777)
    given = await quoted(shop)
    wish = Wish(start="demo:A", end="demo:F", labels=("1A",), quote_id=given["quote"]["quoteId"], promo="SPRING")
    made = await shop.desk.hold(shop.guest(), shop.key(), shop.trip_id, wish)
    assert made.held.prices == [given["total"] - 777]


async def test_the_same_request_for_a_quote_gets_the_same_quote(shop: Shop) -> None:
    key = shop.key()
    first, again = await quoted(shop, key=key), await quoted(shop, key=key)
    assert msgspec.json.decode(msgspec.json.encode(first)) == again
    assert await shop.value("select count(*) from sale.price_log where kind = 'QUOTE'") == 1


async def test_a_quote_with_a_code_names_what_it_takes_off(shop: Shop) -> None:
    await shop.promo(value=1_001)
    given = await quoted(shop, 2, promo="spring ")
    assert given["discount"] == 1_001
    assert given["total"] == sum(seat["price"] for seat in given["seats"])
    with pytest.raises(Refused) as refused:
        await quoted(shop, promo="WINTER")
    assert refused.value.code == "PROMO_NOT_VALID"


# ------------------------------------------------------------------------------------------------ promo codes


async def test_a_code_of_three_uses_is_used_three_times_by_ten_buyers_at_once(shop: Shop) -> None:
    await shop.promo(max_uses=3)
    got, refused = await shop.bought(*(f"{row}{letter}" for row in (1, 2) for letter in "ABCD"), "3A", "3B", promo_code="SPRING")
    assert (got, refused) == (3, ["PROMO_USED_UP"] * 7)
    assert await shop.value("select count(*) from sale.promo_use where person = ''") == 3
    assert await shop.value("select count(*) from booking.reference") == 3, "a refused booking leaves nothing"


@pytest.mark.parametrize("end", ["EXPIRED", "RELEASED", "CANCELLED"])
async def test_a_use_comes_back_when_its_unpaid_booking_ends(shop: Shop, end: str) -> None:
    await shop.promo(max_uses=1, max_uses_each=1)
    first = await shop.buy("1A", promo_code="SPRING")
    with pytest.raises(Refused):
        await shop.buy("1B", promo_code="SPRING")
    await move(shop, first, end)
    again = await shop.buy("1C", promo_code="SPRING")
    assert again["rows"][0]["total"] == (await shop.buy("1D"))["rows"][0]["total"] - 1_000


async def test_one_person_uses_a_code_as_often_as_one_may(shop: Shop) -> None:
    await shop.promo(max_uses_each=1)
    await shop.buy("1A", "amal@example.org", promo_code="SPRING")
    with pytest.raises(Refused) as refused:
        await shop.buy("1B", "Amal@Example.org", promo_code="SPRING")
    assert refused.value.code == "PROMO_USED_UP"
    await shop.buy("1C", "ilyes@example.org", promo_code="SPRING")


async def test_a_code_of_the_hold_is_used_when_it_is_booked_and_not_before(shop: Shop) -> None:
    await shop.promo(max_uses=1, kind="PERCENT", value=100)
    wishes = [Wish(start="demo:A", end="demo:F", labels=(label,), promo="SPRING") for label in ("1A", "1B")]
    holds = [await shop.desk.hold(shop.guest(), shop.key(), shop.trip_id, wish) for wish in wishes]
    plain = await shop.hold("1C")
    assert holds[0].held.prices[0] == pytest.approx(plain.held.prices[0] * 0.9, abs=1)
    assert await shop.value("select count(*) from sale.promo_use") == 0
    codes = []
    for made, label in zip(holds, ("1A", "1B"), strict=True):
        named = [Named(seat=label, first_name="Amal", last_name="Kaci")]
        try:
            shown, _ = await shop.desk.book(shop.guest(made.token), shop.key(), [made.held.booking], named, {"email": f"{label}@x.org"})
            codes.append(shown["rows"][0]["state"])
            assert shown["rows"][0]["total"] == made.held.prices[0]
        except Refused as refusal:
            codes.append(refusal.code)
    assert codes == ["PENDING_PAYMENT", "PROMO_USED_UP"]


async def test_fares_below_a_codes_least_amount_are_told_so(shop: Shop) -> None:
    await shop.promo(min_amount=10**9)
    with pytest.raises(Refused) as refused:
        await shop.buy("1A", promo_code="SPRING")
    assert refused.value.code == "PROMO_MIN_AMOUNT"


# ------------------------------------------------------------------------------------------------ ancillaries


async def test_five_bags_are_sold_five_times_to_eight_buyers_at_once(shop: Shop) -> None:
    await shop.plan(ancillaries=ANCILLARIES)
    got, refused = await shop.bought(*(f"{row}{letter}" for row in (1, 2) for letter in "ABCD"), asked=[Asked("BAG")])
    assert (got, refused) == (5, ["ANCILLARY_SOLD_OUT"] * 3)
    trip = await shop.catalogue.trip(shop.trip_id)
    assert [(one.code, left) for one, left in await shop.pricing.ancillaries(trip)] == [("BAG", 0), ("MEAL", None)]


@pytest.mark.parametrize("end", ["EXPIRED", "RELEASED", "CANCELLED"])
async def test_a_bag_is_free_again_when_its_booking_ends(shop: Shop, end: str) -> None:
    await shop.plan(ancillaries=[ANCILLARIES[0] | {"stock": 2}])
    first = await shop.buy("1A", asked=[Asked("BAG", 2, "1A")])
    with pytest.raises(Refused) as refused:
        await shop.buy("1B", asked=[Asked("BAG")])
    assert refused.value.code == "ANCILLARY_SOLD_OUT"
    await move(shop, first, end)
    await shop.buy("1C", asked=[Asked("BAG", 2)])


async def test_what_is_bought_beside_the_seat_is_in_the_total(shop: Shop) -> None:
    await shop.plan(ancillaries=ANCILLARIES)
    shown = await shop.buy("1A", asked=[Asked("BAG", 2, "1A"), Asked("MEAL")])
    row = shown["rows"][0]
    assert row["total"] == row["passengers"][0]["price"] + 2 * 3_000 + 4_500
    rows = await shop.run("select code, seat, count, price from booking.ancillary order by code")
    assert [tuple(one) for one in rows] == [("BAG", 1, 2, 3_000), ("MEAL", 0, 1, 4_500)]


@pytest.mark.parametrize(
    ("asked", "pointer"),
    [
        (Asked("TRUNK"), "/ancillaries/0/code"),
        (Asked("BAG", 3), "/ancillaries/0/count"),
        (Asked("BAG", -1), "/ancillaries/0/count"),
        (Asked("BAG", 1, "3D"), "/ancillaries/0/seat"),
        (Asked("BAG", 1, None, "demo:NOPE:20260101"), "/ancillaries/0/tripId"),
    ],
)  # fmt: skip
async def test_what_is_not_sold_is_refused_and_nothing_is_left_behind(shop: Shop, asked: Asked, pointer: str) -> None:
    await shop.plan(ancillaries=ANCILLARIES)
    with pytest.raises(Invalid) as refused:
        await shop.buy("1A", asked=[asked])
    assert [fault["pointer"] for fault in refused.value.errors] == [pointer]
    assert await shop.value("select count(*) from booking.ancillary") == 0
    assert await shop.value("select state from booking.booking") == "HELD"


async def test_late_money_gets_its_code_and_its_bag_only_while_there_are_some(shop: Shop) -> None:
    await shop.promo(max_uses=1)
    await shop.plan(ancillaries=[ANCILLARIES[0] | {"stock": 1}])
    late = await shop.buy("1A", promo_code="SPRING", asked=[Asked("BAG")])
    await move(shop, late, "EXPIRED")
    assert await shop.value("select sale.retake($1)", late["lead"]) is True
    other = await shop.buy("1B", promo_code="SPRING")
    assert await shop.value("select sale.retake($1)", late["lead"]) is False
    await move(shop, other, "RELEASED")
    await shop.buy("1C", asked=[Asked("BAG")])
    assert await shop.value("select sale.retake($1)", late["lead"]) is False


async def move(shop: Shop, shown: Any, to: str) -> None:
    async def work(connection: Any) -> None:
        ids = [row["booking_id"] for row in await connection.fetch("select * from booking.locked($1)", shown["lead"])]
        await connection.execute("select booking.move($1, $2, 'test', 'test')", ids, to)

    await shop.pool.run("*", work)
