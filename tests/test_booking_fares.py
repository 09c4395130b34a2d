"""Fares: bounded, explained, exact; what is sold stays what it was."""

from __future__ import annotations

import ast
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.booking import fares
from engine.booking.extras import persons_of
from engine.booking.fares import HOUR_MS, FeeStep, Quote, fee_permille, net_prices, plan_of, quote_from
from engine.booking.promos import Promo, PromoTerms, discount, folded, judged
from engine.booking.refusals import Refused
from engine.errors import Invalid

few = settings(max_examples=40)
ROOT = Path(__file__).resolve().parent.parent
STOPS = ["A", "B", "C", "D"]
METRES = [30_000, 45_500, 12_345]
PLAN: dict[str, Any] = {
    "currency": "DZD",
    "base": {"kind": "PER_KM", "perKm": 350, "start": 5_000},
    "step": 500,
    "classes": {"PREMIUM": 1350},
    "types": {"ADULT": 1000, "CHILD": 500, "INFANT": 0, "SENIOR": 700},
    "demand": [{"fromPermille": 300, "permille": 1000}, {"fromPermille": 500, "permille": 1200}, {"fromPermille": 800, "permille": 1600}],
    "lead": [{"fromHours": 0, "permille": 1250}, {"fromHours": 24, "permille": 1000}, {"fromHours": 168, "permille": 800}],
    "cancellation": [{"fromHours": 2, "feePermille": 500}, {"fromHours": 24, "feePermille": 100}],
    "bookingFee": 2_000,
}


def price_of(
    plan: fares.FarePlan, *, frm: int = 0, to: int = 3, hours: float = 48, occupancy: int = 0, kinds: Any = ("STANDARD",), **more: Any
) -> Quote:
    return fares.quote(
        plan, stops=STOPS, metres=METRES, frm=frm, to=to, kinds=kinds, departs_at_ms=round(hours * HOUR_MS), now_ms=0, occupancy=occupancy, **more
    )  # fmt: skip


def steps(name: str, low: int, high: int, values: Any) -> Any:
    """Steps that begin in rising order, their factors rising too."""
    return st.lists(st.tuples(st.integers(low, high), values), max_size=6, unique_by=lambda step: step[0]).map(
        lambda found: [
            {name: start, "permille": factor}
            for start, factor in zip(sorted(s for s, _ in found), sorted(f for _, f in found), strict=True)
        ]
    )


def from_empty(found: list[dict[str, int]]) -> list[dict[str, int]]:
    """A first step that makes the bus cheaper begins with the empty one."""
    return [found[0] | {"fromPermille": 0}, *found[1:]] if found and found[0]["permille"] < 1000 else found


PLANS = st.builds(
    lambda currency, per_km, start, least, step, demand, lead, low, high, premium: plan_of({
        "currency": currency, "base": {"kind": "PER_KM", "perKm": per_km, "start": start, "least": least}, "step": step,
        "classes": {"PREMIUM": premium}, "types": {"ADULT": 1000, "CHILD": 500}, "demand": demand, "lead": lead,
        "bounds": {"low": low, "high": high},
    }),
    st.sampled_from(["DZD", "JPY", "KWD"]), st.integers(0, 10**5), st.integers(0, 10**6), st.integers(0, 10**6),
    st.sampled_from([1, 5, 100, 1000]), steps("fromPermille", 0, 1000, st.integers(100, 5000)).map(from_empty),
    steps("fromHours", 0, 1000, st.integers(100, 5000)), st.integers(100, 1000), st.integers(1000, 5000), st.integers(100, 5000),
)  # fmt: skip


@few
@given(PLANS, st.integers(0, 1000), st.integers(-5, 2000))
def test_the_multiplier_stays_within_the_operators_bounds(plan: fares.FarePlan, occupancy: int, hours: int) -> None:
    made = price_of(plan, occupancy=occupancy, hours=hours)
    bounds = plan.body.bounds
    assert bounds.low <= made.multiplier <= bounds.high
    plain_milli = made.base_milli
    for end in (bounds.low, bounds.high):
        limit = Fraction(plain_milli * end, 10**6)
        assert (made.adult[0] - limit) * (1 if end == bounds.high else -1) <= Fraction(plan.body.step, 2)


@few
@given(PLANS, st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 2000))
def test_a_fuller_bus_is_never_cheaper(plan: fares.FarePlan, one: int, other: int, hours: int) -> None:
    emptier, fuller = sorted((one, other))
    assert price_of(plan, occupancy=emptier, hours=hours).adult <= price_of(plan, occupancy=fuller, hours=hours).adult


@few
@given(PLANS, st.integers(0, 1000), st.integers(0, 300), st.sampled_from(["ADULT", "CHILD"]))
def test_a_price_is_rounded_once_half_to_even(plan: fares.FarePlan, occupancy: int, hours: int, kind: str) -> None:
    made = price_of(plan, occupancy=occupancy, hours=hours, kinds=("STANDARD", "PREMIUM"))
    for index, permille in enumerate(made.classes):
        exact = Fraction(made.base_milli * permille * made.types[kind] * made.multiplier, 10**12 * made.step)
        assert made.price(index, kind) == round(exact) * made.step
    assert [made.price(n) for n in range(2)] == list(made.adult)


@few
@given(PLANS, st.integers(0, 1000), st.integers(0, 300))
def test_the_way_through_is_never_dearer_than_its_parts(plan: fares.FarePlan, occupancy: int, hours: int) -> None:
    whole = fares.base_milli(plan, STOPS, METRES, 0, 3)
    parts = fares.base_milli(plan, STOPS, METRES, 0, 1) + fares.base_milli(plan, STOPS, METRES, 1, 3)
    assert whole <= parts
    base = plan.body.base
    assert isinstance(base, fares.PerKm)
    if base.start == base.least == 0:
        assert whole == parts


@few
@given(PLANS)
def test_a_quote_comes_back_from_the_booking_as_it_went_there(plan: fares.FarePlan) -> None:
    made = price_of(plan, kinds=("STANDARD", "PREMIUM"), promo=PromoTerms("SPRING", "PERCENT", 100))
    assert quote_from(msgspec.json.decode(msgspec.json.encode(made.body()))) == made


@given(
    st.lists(st.sampled_from(["ADULT", "CHILD", "SENIOR", "INFANT"]), min_size=1, max_size=8),
    st.sampled_from(["PERCENT", "FIXED"]), st.integers(1, 1000), st.integers(1, 10**6),
)  # fmt: skip
def test_a_promo_code_takes_off_exactly_what_it_says(types: list[str], kind: str, permille: int, amount: int) -> None:
    terms = PromoTerms("SPRING", kind, permille if kind == "PERCENT" else amount)  # type: ignore[arg-type]
    made = price_of(plan_of(PLAN), kinds=["STANDARD"] * len(types), promo=terms)
    gross, net = made.gross(types), made.prices(types)
    assert sum(gross) - sum(net) == discount(terms, sum(gross))
    assert all(0 <= after <= before for after, before in zip(net, gross, strict=True))


def test_a_fixed_code_is_taken_off_a_return_trip_once() -> None:
    made = price_of(plan_of(PLAN), promo=PromoTerms("SPRING", "FIXED", 5_001))
    net = net_prices([made, made], [["ADULT"], ["ADULT"]])
    assert sum(map(sum, net)) == 2 * made.adult[0] - 5_001


def test_below_its_least_amount_a_code_takes_nothing_off() -> None:
    made = price_of(plan_of(PLAN), promo=PromoTerms("SPRING", "FIXED", 5_000, min_amount=10**9))
    assert made.prices() == list(made.adult)


def test_a_price_says_how_it_came_about() -> None:
    made = price_of(plan_of(PLAN), occupancy=850, hours=3, kinds=("PREMIUM",))
    assert [(reason.code, reason.permille) for reason in made.reasons] == [
        ("BASE", None), ("SEAT_CLASS", 1350), ("DEMAND", 1600), ("LEAD_TIME", 1250), ("BOUND", 1800), ("BOOKING_FEE", None),
    ]  # fmt: skip
    assert made.multiplier == 1800, "1.6 x 1.25 is 2.0, and the bound 1.8"


def test_a_child_pays_half_and_a_stranger_type_is_named() -> None:
    made = price_of(plan_of(PLAN))
    assert (made.price(0), made.price(0, "CHILD")) == (35_500, 18_000), "half of 17,770.75 in steps of 5.00"
    with pytest.raises(Invalid) as refused:
        made.prices(["STUDENT"])
    assert refused.value.errors[0]["pointer"] == "/passengers/0/type"


def test_yen_and_dinars_of_kuwait_are_priced_in_their_own_minor_units() -> None:
    for currency, per_km, expected in (("JPY", 12, 360), ("KWD", 15, 450)):
        plan = plan_of({"currency": currency, "base": {"kind": "PER_KM", "perKm": per_km}})
        made = price_of(plan, frm=0, to=1)
        assert (made.currency, made.adult) == (currency, (expected,))


def pairs(**more: Any) -> dict[str, Any]:
    return {"currency": "DZD", "base": {"kind": "PAIRS", **more}}


def test_a_pair_has_its_own_price_else_that_of_its_legs() -> None:
    plan = plan_of(pairs(pairs=[
        {"from": "A", "to": "B", "amount": 100}, {"from": "B", "to": "C", "amount": 150}, {"from": "B", "to": "D", "amount": 210},
    ]))  # fmt: skip
    assert price_of(plan, frm=0, to=2).adult == (250,)
    assert price_of(plan, frm=1, to=3).adult == (210,)
    with pytest.raises(Refused) as refused:
        price_of(plan, frm=0, to=3)
    assert refused.value.code == "NO_FARE"


def test_zones_price_their_stops_alike_and_a_way_back_costs_the_same() -> None:
    plan = plan_of(
        pairs(pairs=[{"from": "town", "to": "coast", "amount": 900}], zones={"A": "coast", "B": "coast", "C": "town", "D": "town"})
    )
    assert price_of(plan, frm=0, to=3).adult == price_of(plan, frm=1, to=2).adult == (900,)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"currency": "dzd"}, "/currency"),
        ({"base": {"kind": "PER_KM", "perKm": 1.5}}, "/base/perKm"),
        ({"base": {"kind": "PER_KM", "perKm": -1}}, "/base/perKm"),
        ({"base": {"kind": "PER_KM", "perKm": 10**12}}, "/base/perKm"),
        ({"step": 0}, "/step"),
        ({"types": {"CHILD": 500}}, "/types"),
        ({"demand": [{"fromPermille": 500, "permille": 1200}, {"fromPermille": 700, "permille": 1100}]}, "/demand/1/permille"),
        ({"demand": [{"fromPermille": 500, "permille": 1200}, {"fromPermille": 500, "permille": 1300}]}, "/demand/1"),
        ({"demand": [{"fromPermille": 500, "permille": 900}]}, "/demand/0/permille"),
        ({"bounds": {"low": 1200}}, "/bounds/low"),
        ({"ancillaries": [{"code": "bag", "kind": "BAGGAGE", "name": "Bag", "price": 1}]}, "/ancillaries/0/code"),
        ({"ancillaries": [{"code": "BAG", "kind": "BAGGAGE", "name": "Bag", "price": 1}] * 2}, "/ancillaries/1/code"),
        ({"surprise": 1}, ""),
    ],
)  # fmt: skip
def test_a_plan_that_is_wrong_says_where(change: dict[str, Any], pointer: str) -> None:
    with pytest.raises(Invalid) as refused:
        plan_of(PLAN | change)
    assert pointer in [fault["pointer"] for fault in refused.value.errors]


def test_a_cancellation_keeps_more_the_later_it_comes() -> None:
    made = price_of(plan_of(PLAN))
    assert [fee_permille(made.fees, round(hours * HOUR_MS), 0) for hours in (48, 24, 23.9, 2, 1, -1)] == [100, 100, 500, 500, 1000, 1000]
    final = price_of(plan_of(PLAN | {"refundable": False}))
    assert fee_permille(final.fees, 1000 * HOUR_MS, 0) == 1000


@given(st.permutations([FeeStep(0, 500), FeeStep(24, 100), FeeStep(72, 0)]))
def test_the_fee_is_that_of_the_earliest_step_still_reached_in_whatever_order_they_stand(steps: list[FeeStep]) -> None:
    kept = [fee_permille(steps, hours * HOUR_MS, 0) for hours in (100, 72, 71, 24, 23, 0, -1)]
    assert kept == [0, 0, 100, 100, 500, 500, 1000]


PROMO = Promo(PromoTerms("SPRING", "FIXED", 100, min_amount=1_000), "DZD", 1_000, 2_000, frozenset({"demo:W1"}), None, None)


@pytest.mark.parametrize(
    ("change", "asked", "code"),
    [
        ({}, {}, None),
        ({}, {"now_ms": 999}, "PROMO_NOT_VALID"),
        ({}, {"now_ms": 2_000}, "PROMO_NOT_VALID"),
        ({}, {"route_id": "demo:E1"}, "PROMO_NOT_VALID"),
        ({}, {"currency": "JPY"}, "PROMO_NOT_VALID"),
        ({}, {"fares": 999}, "PROMO_MIN_AMOUNT"),
        ({"retired": True}, {}, "PROMO_NOT_VALID"),
        ({"valid_to_ms": None, "route_ids": frozenset()}, {"route_id": "demo:E1", "now_ms": 10**12}, None),
    ],
)  # fmt: skip
def test_a_promo_code_is_good_where_and_when_it_says(change: dict[str, Any], asked: dict[str, Any], code: str | None) -> None:
    given_: dict[str, Any] = {"route_id": "demo:W1", "currency": "DZD", "now_ms": 1_500, "fares": 1_000} | asked
    promo = msgspec.structs.replace(PROMO, **change)
    if code is None:
        assert judged(promo, "SPRING", **given_) == promo.terms
    else:
        with pytest.raises(Refused) as refused:
            judged(promo, "SPRING", **given_)
        assert refused.value.code == code


def test_a_code_is_typed_in_any_case_and_an_unknown_one_is_not_valid() -> None:
    assert folded(" spring ") == "SPRING"
    with pytest.raises(Refused):
        judged(None, "NOPE", route_id="demo:W1", currency="DZD", now_ms=0)


def test_a_person_is_told_by_account_address_and_number_however_they_are_spelled() -> None:
    here = persons_of({"email": " Amal@Example.org", "phone": "+213 550 12 34 56"}, "amal")
    assert here == ["customer:amal", "email:amal@example.org", "phone:550123456"]
    assert persons_of({"phone": "0550-123456"}, None) == ["phone:550123456"]


@pytest.mark.parametrize("name", ["fares", "money", "promos", "extras"])
def test_no_float_comes_near_a_price(name: str) -> None:
    tree = ast.parse((ROOT / "engine" / "booking" / f"{name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), ast.dump(node)
        assert not isinstance(node, ast.Div), "a division makes a float"
        assert not (isinstance(node, ast.Name) and node.id in ("float", "round")), node.id
