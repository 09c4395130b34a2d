"""Who sits where when another bus comes: the plan of a bus swap. Pure.

Promises: every seat that somebody has is in the plan once, with a seat on the new bus or in the overflow, never silently left out; two
parties share a new seat only where their rides do not overlap; a seat whose label the new bus has, with the same kind, keeps it always.
The rules, in this order, each for all parties before the next one begins:

    KEEP        the same label of the same kind
    POSITION    the same kind in the same place (deck, row, column)
    TOGETHER    the free seats that lie closest to each other and to the party's other seats, the same kind first
    -           overflow: no seat of the new bus is free for the whole ride

Those who are seated already come first, then who has paid, then who sells offline, then who only holds; within a rank the larger party,
then the older one. A plan that was shown to somebody is kept by pinning it: its parties sit where it said, and those who came since are
placed in what is left by the same rules.

Legs are a word of bits: bit n is the ride from place n to place n + 1 (at most 62 legs of a trip).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from engine.booking.booking import HELD
from engine.booking.refusals import Refused
from engine.booking.seats import Layout

KEEP, POSITION, TOGETHER, PINNED = "KEEP", "POSITION", "TOGETHER", "PINNED"

DECK_APART, ROW_APART, OTHER_KIND = 60, 3, 1_000  # beside one column apart = 1

RANKS: Final = {  # booking state -> who is placed first
    "BOARDED": 0, "COMPLETED": 0, "CHECKED_IN": 1, "CONFIRMED": 1, "PENDING_PAYMENT": 3, "HELD": 4,
}  # fmt: skip
LEASED: Final = 2  # a point of sale may have sold it offline


class Seat(msgspec.Struct, frozen=True, gc=False):
    """A seat of a bus. `kind` as the layout says it; row and column count from the front left."""

    number: int
    label: str
    kind: str
    deck: int
    row: int
    column: int


class Party(msgspec.Struct, frozen=True):
    """One row of a booking, a hold or a lease: what sits, or may sit, together. `seats` has (number on the old bus, bits of its legs)."""

    booking_id: str
    rank: int
    seats: tuple[tuple[int, int], ...]


class Move(msgspec.Struct, frozen=True, gc=False):
    """`rule` says why it goes there."""

    booking_id: str
    seat: int
    to: int
    rule: str


class Overflow(msgspec.Struct, frozen=True):
    """Seats of one party, on the old bus, that have no place on the new one."""

    booking_id: str
    seats: tuple[int, ...]


class SwapPlan(msgspec.Struct, frozen=True):
    """Sorted by booking and seat, so that the same plan is the same bytes."""

    moves: tuple[Move, ...]
    overflow: tuple[Overflow, ...]


def legs_mask(start: int, end: int) -> int:
    """The half-open range of places [start, end) as bits."""
    return (1 << end) - (1 << start)


def plan(
    old: Mapping[int, Seat], new: Sequence[Seat], parties: Iterable[Party], pinned: Mapping[tuple[str, int], int | None] | None = None
) -> SwapPlan:
    """Where everybody sits. `new` has the seats that may be sold. `pinned`: (booking, old seat) -> new seat, or None for overflow.

    Raises ValueError where a pinned seat is not on the bus or is pinned twice for the same leg.
    """
    bus = _Bus(new)
    left: dict[tuple[str, int], int] = {}  # (booking, old seat) -> its legs: still without a seat
    order = sorted(parties, key=lambda party: (party.rank, -len(party.seats), party.booking_id))
    for party in order:
        for seat, legs in party.seats:
            left[party.booking_id, seat] = left.get((party.booking_id, seat), 0) | legs
    moves: list[Move] = []
    lost: set[tuple[str, int]] = set()

    def place(key: tuple[str, int], to: int, rule: str) -> None:
        bus.take(to, left.pop(key))
        moves.append(Move(key[0], key[1], to, rule))

    for key, to in (pinned or {}).items():
        if key not in left:
            continue
        if to is None:
            lost.add(key)
            del left[key]
        else:
            place(key, to, PINNED)
    for key, legs in list(left.items()):
        was = old[key[1]]
        same = bus.labels.get(was.label)
        if same is not None and same.kind == was.kind and bus.free(same.number, legs):
            place(key, same.number, KEEP)
    for key, legs in list(left.items()):
        was = old[key[1]]
        here = bus.spots.get((was.kind, was.deck, was.row, was.column))
        if here is not None and bus.free(here.number, legs):
            place(key, here.number, POSITION)
    for party in order:
        rest = [(seat, left[party.booking_id, seat]) for seat in sorted({s for s, _ in party.seats}) if (party.booking_id, seat) in left]
        if rest:
            beside = [bus.seats[move.to] for move in moves if move.booking_id == party.booking_id]
            for seat, to in _together(bus, [(old[seat], legs) for seat, legs in rest], beside).items():
                place((party.booking_id, seat), to, TOGETHER)
    return SwapPlan(tuple(sorted(moves, key=lambda m: (m.booking_id, m.seat))), _overflow(lost | set(left)))


def digest(of: object) -> str:
    """A short name of what a plan was made from and of what it says: 32 hexadecimal digits."""
    return hashlib.sha256(msgspec.json.encode(of, order="deterministic")).hexdigest()[:32]


class _Bus:
    """The new bus as it fills."""

    def __init__(self, seats: Sequence[Seat]) -> None:
        self.seats = {seat.number: seat for seat in seats}
        self.labels = {seat.label: seat for seat in seats}
        self.spots = {(seat.kind, seat.deck, seat.row, seat.column): seat for seat in seats}
        self._taken = dict.fromkeys(self.seats, 0)

    def free(self, number: int, legs: int) -> bool:
        return not self._taken[number] & legs

    def take(self, number: int, legs: int) -> None:
        if number not in self._taken or self._taken[number] & legs:
            raise ValueError(f"seat {number} of the new bus is not free")
        self._taken[number] |= legs

    def all_free(self, legs: int) -> list[Seat]:
        return [seat for number, seat in self.seats.items() if not self._taken[number] & legs]


def _apart(one: Seat, other: Seat) -> int:
    return DECK_APART * abs(one.deck - other.deck) + ROW_APART * abs(one.row - other.row) + abs(one.column - other.column)


def _together(bus: _Bus, wanted: Sequence[tuple[Seat, int]], beside: Sequence[Seat]) -> dict[int, int]:
    """Old seat -> new seat for as many of `wanted` as there is room for: the closest block, tried from every free seat."""
    legs = 0
    for _, each in wanted:
        legs |= each
    free = bus.all_free(legs)
    anchors = list(beside) or [seat for seat, _ in wanted]
    kinds = [seat.kind for seat, _ in wanted]
    best: tuple[int, list[Seat]] | None = None
    for start in free:
        block = sorted(free, key=lambda seat: (_apart(start, seat) + (0 if seat.kind in kinds else OTHER_KIND), seat.number))[: len(wanted)]
        cost = sum(_apart(start, seat) for seat in block) + min(_apart(start, anchor) for anchor in anchors)
        cost += OTHER_KIND * _misfits(kinds, [seat.kind for seat in block])
        if best is None or cost < best[0]:
            best = cost, block
    if best is None:
        return _one_by_one(bus, wanted)
    block, found, rest = list(best[1]), {}, []
    for seat, each in wanted:  # each the nearest of its kind first, so that a group keeps its order
        fits = [one for one in block if one.kind == seat.kind]
        if fits:
            one = min(fits, key=lambda one: (_apart(one, seat), one.number))
            block.remove(one)
            found[seat.number] = one.number
        else:
            rest.append((seat, each))
    for seat, _ in rest:
        if block:
            found[seat.number] = block.pop(0).number
    return found | _one_by_one(bus, [(seat, each) for seat, each in wanted if seat.number not in found], found.values())


def _one_by_one(bus: _Bus, wanted: Sequence[tuple[Seat, int]], used: Iterable[int] = ()) -> dict[int, int]:
    """The nearest free seat for each: where parts of a party ride on different legs, a seat may do for one and not for another."""
    found: dict[int, int] = {}
    taken = set(used)
    for seat, legs in wanted:
        fits = [one for one in bus.all_free(legs) if one.number not in taken]
        if fits:
            nearest = min(fits, key=lambda one: (one.kind != seat.kind, _apart(one, seat), one.number))
            found[seat.number] = nearest.number
            taken.add(nearest.number)
    return found


def _misfits(kinds: Sequence[str], block: Sequence[str]) -> int:
    """How many of `kinds` get no seat of their kind in `block`."""
    left = list(block)
    for kind in kinds:
        if kind in left:
            left.remove(kind)
    return len(left)


def _overflow(keys: Iterable[tuple[str, int]]) -> tuple[Overflow, ...]:
    parties: dict[str, list[int]] = {}
    for booking_id, seat in sorted(keys):
        parties.setdefault(booking_id, []).append(seat)
    return tuple(Overflow(booking_id, tuple(seats)) for booking_id, seats in parties.items())


# ------------------------------------------------------------------------------------------------ from what is kept


class Taken(msgspec.Struct, frozen=True):
    """What somebody has of a trip: one claim."""

    booking_id: str
    lead_id: str
    reference: str | None
    state: str
    channel: str
    seat: int
    legs: int
    over: bool


class Shown(msgspec.Struct, frozen=True):
    """A plan as it is kept."""

    plan_id: str
    map_version: int
    layout_id: str
    layout_version: int
    bus_id: str | None
    moves: list[tuple[str, int, int, int]]  # booking, old seat, new seat, legs
    overflow: list[tuple[str, int, int]]  # booking, old seat, legs
    answer: dict[str, Any] | None


def seats_of(layout: Layout) -> list[Seat]:
    """All seats of a layout as the planner sees them. What a seat is kept for is part of its kind: nobody loses it or gets it unasked."""
    made = []
    for number, seat in enumerate(layout.seats, 1):
        kept = [feature for feature in ("ACCESSIBLE", "WOMEN_ONLY") if seat.has(feature)]
        made.append(Seat(number, seat.label, "+".join([seat.kind, *kept]), seat.deck, seat.row, seat.column))
    return made


def parties_of(claims: Iterable[Taken]) -> list[Party]:
    """Who sits together: the rows of the claims."""
    found: dict[str, tuple[int, dict[int, int]]] = {}
    for claim in claims:
        rank = LEASED if claim.channel == "LEASE" else RANKS.get(claim.state, RANKS[HELD])
        _, mine = found.setdefault(claim.booking_id, (rank, {}))
        mine[claim.seat] = mine.get(claim.seat, 0) | claim.legs
    return [Party(booking_id, rank, tuple(sorted(mine.items()))) for booking_id, (rank, mine) in found.items()]


def pins_of(shown: Shown, claims: Sequence[Taken]) -> dict[tuple[str, int], int | None]:
    """What of a shown plan still stands. Raises `Refused` PLAN_STALE where a booking of it sits elsewhere or rides elsewhere by now.

    A hold or a lease may have changed (a point of sale sells from its lease all day): its seats that are as they were stay pinned.
    """
    planned: dict[tuple[str, int], tuple[int | None, int]] = {(b, seat): (to, legs) for b, seat, to, legs in shown.moves}
    planned |= {(b, seat): (None, legs) for b, seat, legs in shown.overflow}
    known = {booking for booking, _ in planned}
    pins: dict[tuple[str, int], int | None] = {}
    for party in parties_of(claims):
        booked = next(claim.reference is not None for claim in claims if claim.booking_id == party.booking_id)
        for seat, legs in party.seats:
            to, was = planned.get((party.booking_id, seat), (None, 0))
            if was == legs:
                pins[party.booking_id, seat] = to
            elif booked and party.booking_id in known:
                raise stale("a booking has changed since")
    return pins


def stale(why: str) -> Refused:
    return Refused("PLAN_STALE", f"{why}: ask for a new plan, look at it, and commit that one")
