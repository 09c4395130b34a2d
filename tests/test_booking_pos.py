"""What a device may sell without a network, and who gets a seat once its sales have arrived: the pure part."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.booking import pos
from engine.booking.pos import Lease, Sale, Tariff, Wanted, bits, corrected, lease_of, runs, settle

WAYS = {"0-3": (120_000_000, 1000), "0-1": (50_000_000, 900)}
TARIFF = Tariff("DZD", 1, 0, {"ADULT": 1000, "CHILD": 500}, {"1A": 1000, "1B": 1500}, WAYS)
MIN = 60_000


def sale(**changed: object) -> Sale:
    told = {
        "seq": 1,
        "tripId": "demo:T:20261121",
        "seat": "1A",
        "from": "demo:A",
        "to": "demo:D",
        "soldAtMs": 0,
        "amount": 120_000,
        "currency": "DZD",
    }
    return msgspec.convert(told | changed, Sale)


@given(st.integers(0, 2**62 - 1))
def test_legs_are_the_same_as_bits_and_as_ranges(mask: int) -> None:
    ranges = runs(mask)
    assert sum(bits(a, b) for a, b in ranges) == mask
    assert all(b < c for (_, b), (c, _) in itertools.pairwise(ranges))


legs = st.tuples(st.integers(0, 4), st.integers(1, 5)).filter(lambda way: way[0] < way[1]).map(lambda way: bits(*way))
sales_of_a_device = st.lists(
    st.builds(Wanted, st.integers(0, 30), st.sampled_from(["1A", "1B"]), legs, st.booleans()), max_size=12, unique_by=lambda one: one.seq
)


@given(sales_of_a_device, st.randoms(use_true_random=False))
def test_no_order_or_repetition_of_sales_changes_who_gets_a_seat(sales: list[Wanted], chance: random.Random) -> None:
    room = {"1A": bits(0, 5), "1B": bits(1, 4)}
    mixed = sales + chance.sample(sales, len(sales) // 2)
    chance.shuffle(mixed)
    assert settle(room, mixed) == settle(room, sales)


@given(sales_of_a_device)
def test_nobody_gets_a_leg_twice_and_nothing_is_lost(sales: list[Wanted]) -> None:
    room = {"1A": bits(0, 5), "1B": bits(1, 4)}
    got, left = settle(room, sales)
    for seat, mask in room.items():
        given_out = [one.legs for one in sales if got[one.seq] and one.seat == seat]
        assert sum(given_out) + left[seat] == mask


def test_the_lower_number_of_the_device_wins_though_it_arrives_later() -> None:
    got, _ = settle({"1A": bits(0, 5)}, [Wanted(7, "1A", bits(0, 3)), Wanted(5, "1A", bits(2, 5))])
    assert got == {5: True, 7: False}


def test_a_seat_that_was_sold_void_can_be_sold_again() -> None:
    got, left = settle({"1A": bits(0, 5)}, [Wanted(5, "1A", bits(0, 5), void=True), Wanted(6, "1A", bits(0, 5))])
    assert got == {5: False, 6: True} and left == {"1A": 0}


def test_a_copy_that_says_void_wins_over_one_that_does_not() -> None:
    got, _ = settle({"1A": bits(0, 5)}, [Wanted(5, "1A", bits(0, 5), void=True), Wanted(5, "1A", bits(0, 5))])
    assert got == {5: False}


def test_a_clock_that_is_an_hour_fast_is_put_right_by_the_time_it_was_sent() -> None:
    hour = 3_600_000
    assert corrected(sold_at_ms=hour + 10 * MIN, device_time_ms=hour + 30 * MIN, received_at_ms=30 * MIN) == 10 * MIN
    assert corrected(sold_at_ms=-hour + 10 * MIN, device_time_ms=-hour + 30 * MIN, received_at_ms=30 * MIN) == 10 * MIN


def test_no_sale_was_made_after_it_arrived() -> None:
    assert corrected(sold_at_ms=500, device_time_ms=100, received_at_ms=200) == 200


LEASES = [
    Lease("a", bits(0, 5), 0, 30 * MIN, TARIFF),
    Lease("b", bits(0, 5), 25 * MIN, 60 * MIN, msgspec.structs.replace(TARIFF, seats={"1A": 1000})),
]


@pytest.mark.parametrize(
    ("seat", "legs", "at_min", "found"),
    [
        ("1B", (0, 5), 10, ("a", None)),
        ("1A", (0, 5), 10, ("a", None)),
        ("1A", (0, 5), 26, ("b", None)),
        ("1A", (0, 5), 61, ("b", None)),  # within the slack
        ("1B", (0, 5), 40, (None, pos.OUTSIDE_LEASE)),
        ("1B", (0, 6), 10, (None, pos.NOT_LEASED)),
        ("9Z", (0, 5), 10, (None, pos.NOT_LEASED)),
    ],
)
def test_a_sale_belongs_to_the_newest_lease_of_its_seat_at_that_time(
    seat: str, legs: tuple[int, int], at_min: int, found: tuple[str | None, str | None]
) -> None:
    lease, why = lease_of(LEASES, Wanted(1, seat, bits(*legs)), at_min * MIN)
    assert (lease.lease_id if lease else None, why) == found


def test_a_lease_says_what_each_way_costs_for_each_seat_and_passenger_and_nothing_else() -> None:
    assert TARIFF.price("1A", 0, 3) == 120_000
    assert TARIFF.price("1B", 0, 3) == 180_000
    assert TARIFF.price("1A", 0, 3, "CHILD") == 60_000
    assert TARIFF.price("1A", 0, 1) == 45_000
    assert TARIFF.price("1A", 0, 3, "PARROT") is None
    assert TARIFF.price("1A", 1, 3) is None
    assert TARIFF.price("9Z", 0, 3) is None


def test_a_copy_of_a_sale_is_known_by_what_it_says_and_not_by_being_void() -> None:
    assert sale().fingerprint() == sale(void=True).fingerprint()
    assert sale().fingerprint() != sale(seat="1B").fingerprint()
