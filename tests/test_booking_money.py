"""Money: exact, rounded once, and nothing lost in a split."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.booking.money import Money, exponent, parsed, plain, scaled, split
from engine.errors import Invalid

AMOUNTS = st.integers(-(10**12), 10**12)


@given(AMOUNTS, st.lists(st.integers(0, 10**9), min_size=1, max_size=80))
def test_shares_add_up_and_none_is_a_unit_away_from_its_due(amount: int, weights: list[int]) -> None:
    shares = split(amount, weights)
    assert sum(shares) == amount
    total = sum(weights) or len(weights)
    for share, weight in zip(shares, weights if sum(weights) else [1] * len(weights), strict=True):
        assert abs(share - Fraction(amount * weight, total)) < 1


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**9), min_size=1, max_size=80))
def test_no_share_of_a_part_is_more_than_what_it_is_taken_from(part: int, prices: list[int]) -> None:
    assert all(share <= price for share, price in zip(split(min(part, sum(prices)), prices), prices, strict=True))


def test_nothing_is_split_among_nobody_and_more_cannot_be() -> None:
    assert split(0, []) == []
    with pytest.raises(ValueError, match="nobody"):
        split(1, [])
    with pytest.raises(ValueError, match="negative"):
        split(1, [1, -1])


@given(AMOUNTS, st.integers(0, 10**12), st.integers(1, 10**12), st.integers(1, 10**6))
def test_scaling_is_the_nearest_multiple_and_half_goes_to_the_even_one(amount: int, numerator: int, denominator: int, step: int) -> None:
    exact = Fraction(amount * numerator, denominator * step)
    assert scaled(amount, numerator, denominator, step) == round(exact) * step  # Fraction rounds half to even


def test_half_goes_to_even_in_permille_too() -> None:
    assert [scaled(amount, 500) for amount in (1, 2, 3, 5, -1, -3)] == [0, 1, 2, 2, 0, -2]


def test_yen_have_no_minor_units_and_dinars_of_kuwait_have_three() -> None:
    assert [exponent(code) for code in ("DZD", "JPY", "KWD", "EUR")] == [2, 0, 3, 2]
    assert [plain(Money(1234, code)) for code in ("DZD", "JPY", "KWD")] == ["12.34 DZD", "1234 JPY", "1.234 KWD"]
    assert plain(Money(-5, "DZD")) == "-0.05 DZD"


@given(st.integers(-(10**12) + 1, 10**12 - 1), st.sampled_from(["DZD", "JPY", "KWD"]))
def test_what_is_written_down_is_read_again(amount: int, currency: str) -> None:
    assert parsed(plain(Money(amount, currency)).split()[0], currency) == Money(amount, currency)


@pytest.mark.parametrize(
    ("text", "currency"), [("1.5", "JPY"), ("1.2345", "KWD"), ("1,5", "DZD"), ("", "DZD"), ("1e3", "DZD"), ("١٢", "DZD")]
)
def test_what_is_no_amount_is_refused(text: str, currency: str) -> None:
    with pytest.raises(Invalid):
        parsed(text, currency)


@pytest.mark.parametrize("code", ["dzd", "DZ", "DZDD", ""])
def test_what_is_no_currency_is_refused(code: str) -> None:
    with pytest.raises(Invalid):
        exponent(code)
