"""Money: whole minor units of a currency, and the three things that are done with it - scaling, splitting, writing down.

There is no fraction of a minor unit anywhere: a calculation is kept exact (integers over integers) and rounded once, half to even; a split
adds up to what was split (largest remainder). Minor digits: ISO 4217, list one; a currency that is not named here has two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from engine.errors import Invalid

EXPONENTS: Final = {
    **dict.fromkeys(
        ("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV", "XAF", "XOF", "XPF"), 0
    ),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
}
AMOUNT_MAX: Final = 10**15  # minor units: ten thousand times any fare, and far inside bigint
_CODE: Final = re.compile(r"[A-Z]{3}")


class Money(msgspec.Struct, frozen=True):
    """`amount` minor units of `currency`, as the wire says it."""

    amount: int
    currency: str


def exponent(currency: str) -> int:
    """Digits after the point: DZD 2, JPY 0, KWD 3. Raises `Invalid` where it is no currency code."""
    if _CODE.fullmatch(currency) is None:
        raise Invalid(f"{currency[:20]!r} is no currency code: three capital letters (ISO 4217)")
    return EXPONENTS.get(currency, 2)


def scaled(amount: int, numerator: int, denominator: int = 1000, step: int = 1) -> int:
    """amount * numerator / denominator to the nearest multiple of `step`, half to even (of the multiples). By default in permille."""
    if denominator <= 0 or step <= 0:
        raise ValueError("a fraction and a step are of something positive")
    whole, rest = divmod(amount * numerator, denominator * step)
    twice = 2 * rest
    half = denominator * step
    if twice > half or (twice == half and whole & 1):
        whole += 1
    return whole * step


def split(amount: int, weights: Sequence[int]) -> list[int]:
    """Shares of `amount` (of either sign) in proportion to `weights`, adding up to it: largest remainder, the first of equals. Weights that
    are all zero share equally; no weights: only nothing can be split."""
    if any(weight < 0 for weight in weights):
        raise ValueError("weights are not negative")
    if not weights:
        if amount:
            raise ValueError("there is nobody to share it")
        return []
    total = sum(weights)
    if total == 0:
        weights, total = [1] * len(weights), len(weights)
    sign = -1 if amount < 0 else 1
    parts = [divmod(abs(amount) * weight, total) for weight in weights]
    shares = [whole for whole, _ in parts]
    left = abs(amount) - sum(shares)
    for place in sorted(range(len(parts)), key=lambda n: -parts[n][1])[:left]:
        shares[place] += 1
    return [sign * share for share in shares]


def plain(money: Money) -> str:
    """`1234.50 DZD`, `1235 JPY`, `1.234 KWD`: for papers and messages."""
    digits = exponent(money.currency)
    sign, text = "-" if money.amount < 0 else "", str(abs(money.amount)).rjust(digits + 1, "0")
    if digits:
        text = f"{text[:-digits]}.{text[-digits:]}"
    return f"{sign}{text} {money.currency}"


def parsed(text: str, currency: str) -> Money:
    """What `plain` wrote, or a person: `1234.5`. Raises `Invalid` where it is no amount or has more digits than the currency."""
    digits = exponent(currency)
    found = re.fullmatch(r"(-?)(\d{1,12})(?:\.(\d{1,4}))?", text.strip(), re.ASCII)
    if found is None or len(found[3] or "") > digits:
        raise Invalid(f"{text[:40]!r} is no amount of {currency}: digits, and at most {digits} after a point")
    amount = int(found[2] + (found[3] or "").ljust(digits, "0")) if digits else int(found[2])
    return Money(-amount if found[1] else amount, currency)
