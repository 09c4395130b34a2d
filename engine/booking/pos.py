"""Sales of a counter or a conductor without a network: what a device may sell, and who gets a seat once its sales have arrived. Pure.

A device leases a block of seats for some legs and sells from it alone, so that what it sells offline nobody else can sell. Its sales arrive
in any batches, in any order, more than once: `settle` is a function of the set of them, read in the order of the device's own numbers, so
that every order of arrival ends in the same state. Legs are bits: bit n is the leg from place n to place n + 1.

Refuses: a price that the lease did not name, a seat that it never had, a sale made before or after it (by the corrected clock).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Final, Literal

import msgspec

from engine.booking import money

# what became of a sale (the answer of a sync); VOIDED stands in the record only
CONFIRMED, DUPLICATE, CONFLICT_REFUND, STANDBY, REJECTED = "CONFIRMED", "DUPLICATE", "CONFLICT_REFUND", "STANDBY", "REJECTED"
VOIDED: Final = "VOIDED"
CASH, CARD_TOKEN = "CASH", "CARD_TOKEN"

# why it was not confirmed
SEAT_TAKEN: Final = "SEAT_TAKEN"  # the only one that may still change: the fold judges it anew
NOT_LEASED, OUTSIDE_LEASE, WRONG_AMOUNT, WRONG_CURRENCY = "NOT_LEASED", "OUTSIDE_LEASE", "WRONG_AMOUNT", "WRONG_CURRENCY"
TRIP_CANCELLED, PAY_ONLINE, RESEATED, SEQ_REUSED = "TRIP_CANCELLED", "PAY_ONLINE", "RESEATED", "SEQ_REUSED"

SALES_MAX: Final = 200  # of one batch: one transaction, 5 to 15 ms a sale, in which no swap of these trips can begin
SEQ_MAX: Final = 2**53 - 1  # what every JSON reader can count to
TIME_MAX_MS: Final = 2**47  # the year 6429
SLACK_MS: Final = 120_000  # either side of a lease: a clock corrected by one request is right to within the request's journey


class Rider(msgspec.Struct, frozen=True, rename="camel"):
    """Who travels. Names are optional at a counter."""

    first_name: Annotated[str, msgspec.Meta(max_length=100)] = ""
    last_name: Annotated[str, msgspec.Meta(max_length=100)] = ""
    type: Annotated[str, msgspec.Meta(max_length=40)] = "ADULT"
    phone: Annotated[str, msgspec.Meta(max_length=40)] | None = None


class Sale(msgspec.Struct, frozen=True, rename="camel"):
    """One sale as the device wrote it down. `seq` is the device's own number and never stands for two sales. `void`: the money has been handed
    back; a sale that was sent before is sent again with it."""

    seq: Annotated[int, msgspec.Meta(ge=0, le=SEQ_MAX)]
    trip_id: Annotated[str, msgspec.Meta(max_length=200)]
    seat: Annotated[str, msgspec.Meta(max_length=20)]
    from_: str | int = msgspec.field(name="from")  # a stop id, or its stop sequence
    to: str | int
    sold_at_ms: int  # by the device's clock
    amount: int
    currency: Annotated[str, msgspec.Meta(max_length=3)]
    method: Literal["CASH", "CARD_TOKEN"] = "CASH"
    passenger: Rider = msgspec.field(default_factory=Rider)
    void: bool = False

    def fingerprint(self) -> bytes:
        """Of all that may not change between two copies of a sale."""
        return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(self, void=False))).digest()


# ------------------------------------------------------------------------------------------------ legs as bits


def bits(start: int, end: int) -> int:
    """The legs from one place to another: (1, 3) -> 0b110."""
    return (1 << end) - (1 << start)


def runs(mask: int) -> list[tuple[int, int]]:
    """The same as ranges, as long as they can be, in order: 0b1110011 -> [(0, 2), (4, 7)]."""
    found, place = [], 0
    while mask:
        gap = (mask & -mask).bit_length() - 1
        mask >>= gap
        length = (~mask & (mask + 1)).bit_length() - 1
        found.append((place + gap, place + gap + length))
        mask >>= length
        place += gap + length
    return found


# ------------------------------------------------------------------------------------------------ who gets a seat


class Wanted(msgspec.Struct, frozen=True):
    """A sale as the fold sees it."""

    seq: int
    seat: str
    legs: int  # bits
    void: bool = False


def settle(room: Mapping[str, int], sales: Iterable[Wanted]) -> tuple[dict[int, bool], dict[str, int]]:
    """Which sales get their seat, and what is left of each: (seq -> it does, seat -> legs).

    `room`: the legs of each seat that this device may dispose of: what its lease still has and what it has sold. The lower number wins; a
    void sale takes nothing. A function of the set: no order, split or repetition of what arrived changes it.
    """
    left = dict(room)
    got: dict[int, bool] = {}
    for sale in sorted({sale.seq: sale for sale in sorted(sales, key=lambda one: one.void)}.values(), key=lambda one: one.seq):
        if sale.void:
            got[sale.seq] = False
            continue
        got[sale.seq] = left.get(sale.seat, 0) & sale.legs == sale.legs
        if got[sale.seq]:
            left[sale.seat] &= ~sale.legs
    return got, left


# ------------------------------------------------------------------------------------------------ what a device may sell


def corrected(sold_at_ms: int, device_time_ms: int, received_at_ms: int) -> int:
    """When a sale was made, by our clock: the device's clock is as wrong as it was when it sent. Never later than it arrived."""
    return max(0, min(sold_at_ms + received_at_ms - device_time_ms, received_at_ms))


class Tariff(msgspec.Struct, frozen=True):
    """Prices as they stood when the lease began: a device sells at them however long it is without a network."""

    currency: str
    step: int
    booking_fee: int
    types: dict[str, int]  # passenger type -> permille
    seats: dict[str, int]  # label of each seat -> permille of its kind
    ways: dict[str, tuple[int, int]]  # "from-to" in places -> (base in thousandths of a minor unit, multiplier in permille)

    def price(self, seat: str, start: int, end: int, passenger: str = "ADULT") -> int | None:
        """What a passenger of that type pays, the booking fee in it. None: the lease does not sell that."""
        way, kind, permille = self.ways.get(f"{start}-{end}"), self.seats.get(seat), self.types.get(passenger)
        if way is None or kind is None or permille is None:
            return None
        factor = kind * permille * way[1]
        return money.scaled(way[0], factor, 10**12, self.step) + self.booking_fee


class Lease(msgspec.Struct, frozen=True):
    """A block of seats of a device. Times UTC ms; it ends where it expires, or where the rest of it was given back."""

    lease_id: str
    legs: int  # bits
    leased_at_ms: int
    ends_at_ms: int
    tariff: Tariff  # its seats are the lease's, as leased


def lease_of(leases: Sequence[Lease], sale: Wanted, sold_at_ms: int) -> tuple[Lease | None, str | None]:
    """The lease that a sale was made from (of several the newest), else why there is none: NOT_LEASED, OUTSIDE_LEASE."""
    having = [lease for lease in leases if sale.seat in lease.tariff.seats and lease.legs & sale.legs == sale.legs]
    if not having:
        return None, NOT_LEASED
    within = [lease for lease in having if lease.leased_at_ms - SLACK_MS <= sold_at_ms <= lease.ends_at_ms + SLACK_MS]
    if not within:
        return None, OUTSIDE_LEASE
    return max(within, key=lambda lease: (lease.leased_at_ms, lease.lease_id)), None
