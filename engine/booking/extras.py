"""What is bought with a booking beside its seats: ancillaries and the use of a promo code, judged and priced. Pure.

The database sells them in the booking's transaction (`booking.take_extras`): stock and uses are counted there, under a lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engine.booking.catalogue import SoldTrip
from engine.booking.fares import FarePlan, Quote
from engine.errors import Invalid


class Asked(msgspec.Struct, frozen=True):
    """One line of `ancillaries` of POST /bookings."""

    code: str
    count: int = 1
    seat: str | None = None  # None: of nobody in particular
    trip_id: str | None = None  # None: the first trip of the booking


class ExtraRow(msgspec.Struct, frozen=True):
    """One trip instance of the booking that is being made: its row's id, and its seats by label."""

    booking_id: str
    trip: SoldTrip
    seats: dict[str, int]


class Extras(msgspec.Struct, frozen=True):
    """`quotes`: with the promo code; `amounts`: of the ancillaries of each row, minor units; `body`: for booking.book, None: nothing."""

    quotes: list[Quote]
    amounts: list[int]
    body: dict[str, Any] | None


def _wrong(index: int, field: str, code: str, detail: str) -> Invalid:
    return Invalid(detail, errors=[{"pointer": f"/ancillaries/{index}/{field}", "code": code, "detail": detail}])


def chosen(rows: Sequence[ExtraRow], plans: Sequence[FarePlan], asked: Sequence[Asked]) -> tuple[list[int], list[dict[str, Any]]]:
    """(amount of each row, items for `sale.take_ancillaries`). Raises `Invalid` for what the plan does not sell, or not so often."""
    amounts, items = [0] * len(rows), []
    counted: dict[tuple[int, str], int] = {}
    known: set[tuple[int, int, str]] = set()
    for index, line in enumerate(asked):
        at = next((n for n, row in enumerate(rows) if line.trip_id in (None, row.trip.trip_id)), None)
        if at is None:
            raise _wrong(index, "tripId", "UNKNOWN_TRIP", f"{str(line.trip_id)[:80]!r} is no trip of this booking")
        row, thing = rows[at], plans[at].ancillaries.get(line.code)
        if thing is None:
            named = ", ".join(plans[at].ancillaries) or "nothing"
            raise _wrong(index, "code", "UNKNOWN_ANCILLARY", f"{line.code[:24]!r} is not sold on {row.trip.trip_id}; it sells {named}")
        seat = 0 if line.seat is None else row.seats.get(line.seat, -1)
        if seat < 0:
            raise _wrong(index, "seat", "UNKNOWN_SEAT", f"seat {str(line.seat)[:20]!r} is not in this booking")
        if (at, seat, line.code) in known:
            raise _wrong(index, "code", "DUPLICATE", f"{line.code} stands there twice; say how many with `count`")
        known.add((at, seat, line.code))
        most = thing.max_per_passenger * (1 if seat else len(row.seats))
        counted[at, line.code] = counted.get((at, line.code), 0) + line.count
        if line.count < 1 or line.count > most or counted[at, line.code] > thing.max_per_passenger * len(row.seats):
            raise _wrong(index, "count", "OUT_OF_RANGE", f"{line.code}: 1 to {thing.max_per_passenger} for each passenger")
        amounts[at] += thing.price * line.count
        items.append({
            "booking": row.booking_id, "seat": seat, "code": thing.code, "kind": thing.kind, "name": thing.name, "count": line.count,
            "price": thing.price, "stock": thing.stock,
        })  # fmt: skip
    return amounts, items


def persons_of(contact: dict[str, Any], customer: str | None) -> list[str]:
    """What tells who uses a promo code: the account, the e-mail address, the telephone number."""
    found = [f"customer:{customer}"] if customer else []
    email, phone = contact.get("email"), contact.get("phone")
    if isinstance(email, str) and email.strip():
        found.append(f"email:{email.strip().casefold()}")
    if isinstance(phone, str):
        digits = "".join(letter for letter in phone if letter.isdigit()).lstrip("0")
        if digits:
            found.append(f"phone:{digits[-9:]}")  # national and international spellings of one number end alike
    return found
