"""The plan of a bus swap: nobody is lost, nobody shares a leg of a seat, labels stay where they can."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.booking.swap import KEEP, POSITION, TOGETHER, Move, Overflow, Party, Seat, digest, legs_mask, plan

LETTERS = "ABCD"
WHOLE = legs_mask(0, 3)


def bus(rows: int, *, letters: str = LETTERS, first: int = 1, kind: str = "STANDARD", deck: int = 0) -> list[Seat]:
    """Rows of seats labelled 1A, 1B, ...; numbers from 1."""
    spots = [(row, column) for row in range(rows) for column in range(len(letters))]
    return [Seat(n, f"{row + first}{letters[column]}", kind, deck, row, column) for n, (row, column) in enumerate(spots, 1)]


def by_number(seats: list[Seat]) -> dict[int, Seat]:
    return {seat.number: seat for seat in seats}


def labels(seats: list[Seat], moves: tuple[Move, ...]) -> list[str]:
    named = by_number(seats)
    return [named[move.to].label for move in moves]


def test_on_a_bus_with_the_same_labels_everybody_keeps_theirs() -> None:
    old, new = bus(3), bus(4)
    made = plan(by_number(old), new, [Party("a", 1, ((2, WHOLE), (3, WHOLE))), Party("b", 4, ((12, WHOLE),))])
    assert [(move.seat, move.to, move.rule) for move in made.moves] == [(2, 2, KEEP), (3, 3, KEEP), (12, 12, KEEP)]
    assert made.overflow == ()


def test_on_a_renumbered_bus_everybody_keeps_their_place() -> None:
    old, new = bus(3), bus(3, first=11)
    made = plan(by_number(old), new, [Party("a", 1, ((5, WHOLE), (6, WHOLE)))])
    assert [move.rule for move in made.moves] == [POSITION, POSITION]
    assert labels(new, made.moves) == ["12A", "12B"]


def test_a_family_whose_row_is_missing_sits_together_elsewhere() -> None:
    old, new = bus(5), bus(4)
    single = Party("single", 1, ((1, WHOLE),))
    family = Party("family", 1, ((17, WHOLE), (18, WHOLE), (19, WHOLE)))
    made = plan(by_number(old), new, [single, family])
    seats = [by_number(new)[move.to] for move in made.moves if move.booking_id == "family"]
    assert len({seat.row for seat in seats}) == 1
    assert sorted(seat.column for seat in seats) in ([0, 1, 2], [1, 2, 3])


def test_who_only_holds_gives_way_to_who_has_paid() -> None:
    old, new = bus(2), bus(1)
    hold = Party("a-hold", 4, ((7, WHOLE),))
    paid = Party("b-paid", 1, ((8, WHOLE),))
    kept = [Party(f"k{n}", 1, ((n, WHOLE),)) for n in (1, 2, 3)]
    made = plan(by_number(old), new, [hold, paid, *kept])
    assert made.overflow == (Overflow("a-hold", (7,)),)
    assert Move("b-paid", 8, 4, TOGETHER) in made.moves


def test_two_rides_that_do_not_overlap_may_share_the_last_seat() -> None:
    old, new = bus(2), bus(1, letters="A")
    early, late = Party("early", 1, ((2, legs_mask(0, 1)),)), Party("late", 1, ((3, legs_mask(1, 3)),))
    made = plan(by_number(old), new, [early, late])
    assert [move.to for move in made.moves] == [1, 1]
    assert made.overflow == ()


def test_a_seat_of_another_kind_does_not_count_as_the_same_label() -> None:
    old, new = bus(1), bus(1, kind="ACCESSIBLE")
    assert [move.rule for move in plan(by_number(old), new, [Party("a", 1, ((1, WHOLE),))]).moves] == [TOGETHER]


def test_a_shown_plan_stands_when_somebody_else_took_the_seat_it_promised() -> None:
    old, new = bus(2), bus(1)
    first = Party("a", 1, ((5, WHOLE),))
    shown = plan(by_number(old), new, [first])
    promised = shown.moves[0].to
    assert promised == 1
    newcomer = Party("b", 4, ((promised, WHOLE),))
    again = plan(by_number(old), new, [newcomer, first], {("a", 5): promised})
    assert {move.booking_id: move.to for move in again.moves} == {"a": 1, "b": 2}


def test_a_plan_pinned_to_one_seat_twice_is_an_error() -> None:
    old = bus(1)
    both = [Party("a", 1, ((1, WHOLE),)), Party("b", 1, ((2, WHOLE),))]
    with pytest.raises(ValueError, match="not free"):
        plan(by_number(old), old, both, {("a", 1): 3, ("b", 2): 3})


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Seat], list[Seat], list[Party]]:
    """An old bus with rides sold on it so that no leg of a seat is sold twice, and any new bus."""
    old = bus(draw(st.integers(1, 6)))
    new = bus(draw(st.integers(1, 6)), letters=draw(st.sampled_from(["A", "AB", "ABCD", "DCBA", "XY"])), first=draw(st.integers(1, 3)))
    kinds = draw(st.lists(st.sampled_from(["STANDARD", "ACCESSIBLE"]), min_size=len(new), max_size=len(new)))
    new = [Seat(s.number, s.label, kind, s.deck, s.row, s.column) for s, kind in zip(new, kinds, strict=True)]
    taken: dict[int, int] = defaultdict(int)
    parties = []
    for n in range(draw(st.integers(0, 14))):
        start = draw(st.integers(0, 4))
        legs = legs_mask(start, draw(st.integers(start + 1, 5)))
        wanted = draw(st.sets(st.sampled_from([seat.number for seat in old]), min_size=1, max_size=4))
        seats = tuple((seat, legs) for seat in sorted(wanted) if not taken[seat] & legs)
        for seat, _ in seats:
            taken[seat] |= legs
        if seats:
            parties.append(Party(f"p{n:02}", draw(st.integers(0, 4)), seats))
    return old, new, parties


@settings(max_examples=120, deadline=None)
@given(situations())
def test_nobody_is_left_out_and_no_leg_of_a_new_seat_is_given_twice(case: tuple[list[Seat], list[Seat], list[Party]]) -> None:
    old, new, parties = case
    made = plan(by_number(old), new, parties)
    legs = {(party.booking_id, seat): bits for party in parties for seat, bits in party.seats}
    placed = [(move.booking_id, move.seat) for move in made.moves]
    lost = [(over.booking_id, seat) for over in made.overflow for seat in over.seats]
    assert sorted(placed + lost) == sorted(legs)
    used: dict[int, int] = defaultdict(int)
    for move in made.moves:
        bits = legs[move.booking_id, move.seat]
        assert not used[move.to] & bits
        used[move.to] |= bits
    for key in lost:  # overflow is the last resort
        assert all(used[seat.number] & legs[key] for seat in new)


@settings(max_examples=120, deadline=None)
@given(situations())
def test_a_label_that_can_be_kept_is_kept(case: tuple[list[Seat], list[Seat], list[Party]]) -> None:
    old, new, parties = case
    kept = {(move.booking_id, move.seat): move.to for move in plan(by_number(old), new, parties).moves}
    same = {(seat.label, seat.kind): seat.number for seat in new}
    for party in parties:
        for seat, _ in party.seats:
            was = by_number(old)[seat]
            if (was.label, was.kind) in same:
                assert kept[party.booking_id, seat] == same[was.label, was.kind]


@settings(max_examples=60, deadline=None)
@given(situations(), st.randoms(use_true_random=False))
def test_the_order_in_which_parties_are_read_changes_nothing(case: tuple[list[Seat], list[Seat], list[Party]], chance) -> None:  # type: ignore[no-untyped-def]
    old, new, parties = case
    mixed = list(parties)
    chance.shuffle(mixed)
    assert digest(plan(by_number(old), new, parties)) == digest(plan(by_number(old), new, mixed))


@settings(max_examples=60, deadline=None)
@given(situations())
def test_newcomers_never_move_whom_a_plan_has_placed(case: tuple[list[Seat], list[Seat], list[Party]]) -> None:
    old, new, parties = case
    before = parties[: len(parties) // 2]
    shown = plan(by_number(old), new, before)
    pinned: dict[tuple[str, int], int | None] = {(move.booking_id, move.seat): move.to for move in shown.moves}
    pinned |= {(over.booking_id, seat): None for over in shown.overflow for seat in over.seats}
    again = {(move.booking_id, move.seat): move.to for move in plan(by_number(old), new, parties, pinned).moves}
    assert {key: again.get(key) for key in pinned} == pinned
