"""Seats: layouts that hold together, seats that belong together, and who may sit where."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.booking.layouts import READY
from engine.booking.refusals import Refused
from engine.booking.seats import FEATURES, Layout, best_available, check_passengers, layout_of, seat_messages
from engine.errors import Invalid
from engine.office.outbox import Seats
from engine.office.topics import event_of

LAYOUTS = {name: layout_of(body) for name, body in READY.items()}
COACH = LAYOUTS["coach-49"]
PLUS_ONE = LAYOUTS["coach-32"]


def numbers(layout: Layout, *labels: str) -> list[int]:
    return [layout.labels.index(label) + 1 for label in labels]


def labels(layout: Layout, chosen: list[int]) -> list[str]:
    return [layout.labels[n - 1] for n in chosen]


# --- layouts ---


@pytest.mark.parametrize(("name", "seats"), [("coach-49", 49), ("coach-32", 32), ("double-decker", 66), ("minibus-19", 19)])
def test_a_ready_layout_reads_and_has_its_seats(name: str, seats: int) -> None:
    assert len(LAYOUTS[name].labels) == seats == len(LAYOUTS[name].sellable)
    assert layout_of(LAYOUTS[name].body()) == LAYOUTS[name]


def test_windows_and_aisles_are_where_the_grid_has_them_unless_the_drawing_says_otherwise() -> None:
    assert [COACH.seats[n - 1].features for n in numbers(COACH, "3A", "3B", "3C", "3D", "12C")] == [
        ("WINDOW",),
        ("AISLE",),
        ("AISLE",),
        ("WINDOW",),
        (),
    ]
    assert COACH.seats[0].features == ("ACCESSIBLE", "WINDOW")


def test_seats_are_numbered_from_one_in_the_order_of_the_list() -> None:
    assert COACH.labels[0] == "1A"
    assert COACH.seat(1).label == "1A"
    with pytest.raises(Invalid):
        COACH.seat(50)
    with pytest.raises(Invalid):
        COACH.seat(0)


def test_a_bench_goes_across_the_aisle() -> None:
    assert tuple(numbers(COACH, "12A", "12B", "12C", "12D", "12E")) in COACH.runs


SMALL: dict[str, Any] = {
    "decks": [{"rows": 2, "columns": 3, "aisles": [1], "driver": {"row": 0, "column": 0}}],
    "seats": [{"label": "A", "row": 1, "column": 0}, {"label": "B", "row": 1, "column": 2}],
}


@pytest.mark.parametrize(
    ("change", "pointer", "code"),
    [
        (lambda b: b["seats"][1].update(label="A"), "/seats/1/label", "DUPLICATE"),
        (lambda b: b["seats"][1].update(row=2), "/seats/1", "OFF_THE_GRID"),
        (lambda b: b["seats"][1].update(column=0), "/seats/1", "PLACE_TAKEN"),
        (lambda b: b["seats"][1].update(row=0, column=0), "/seats/1", "PLACE_TAKEN"),
        (lambda b: b["seats"][1].update(deck=1), "/seats/1/deck", "OFF_THE_GRID"),
        (lambda b: b["seats"][0].update(features=["SUNNY"]), "/seats/0/features", "UNKNOWN"),
        (lambda b: b["seats"][0].update(kind="WINDOW"), "/seats/0/kind", "RESERVED"),
        (lambda b: b["seats"][0].update(label="no space"), "/seats/0/label", "INVALID"),
        (lambda b: b["seats"][0].update(row=-1), "/seats/0/row", "INVALID"),
        (lambda b: b["seats"][0].pop("column"), "/seats/0", "INVALID"),
        (lambda b: b.update(seats=[]), "/seats", "OUT_OF_RANGE"),
        (lambda b: b.update(decks=[]), "/decks", "INVALID"),
        (lambda b: b["decks"][0].update(aisles=[3]), "/decks/0/aisles", "OFF_THE_GRID"),
        (lambda b: b["decks"][0].update(doors=[{"row": 9, "column": 0}]), "/decks/0/doors", "OFF_THE_GRID"),
    ],
)
def test_a_layout_that_does_not_hold_together_is_refused_with_the_place(change: Any, pointer: str, code: str) -> None:
    body = copy.deepcopy(SMALL)
    change(body)
    with pytest.raises(Invalid) as refused:
        layout_of(body)
    assert (pointer, code) in {(error["pointer"], error["code"]) for error in refused.value.errors}


def test_a_bus_of_201_seats_is_none() -> None:
    seats = [{"label": f"S{n}", "row": n // 5, "column": n % 5} for n in range(201)]
    with pytest.raises(Invalid, match="1 to 200"):
        layout_of({"decks": [{"rows": 64, "columns": 5}], "seats": seats})


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_other_json_is_refused_not_broken(body: Any) -> None:
    with pytest.raises(Invalid):
        layout_of(body)


# --- the best seats ---


def test_two_get_a_pair_and_the_accessible_pair_is_kept() -> None:
    assert labels(COACH, best_available(COACH, set(COACH.sellable), 2)) == ["1C", "1D"]


def test_four_get_two_pairs_of_neighbouring_rows_or_a_row_across_the_aisle() -> None:
    chosen = labels(COACH, best_available(COACH, set(COACH.sellable) - set(numbers(COACH, *(f"12{c}" for c in "ABCDE"))), 4))
    assert chosen == ["2A", "2B", "2C", "2D"]


def test_five_sit_on_the_bench() -> None:
    assert labels(COACH, best_available(COACH, set(COACH.sellable), 5)) == [f"12{c}" for c in "ABCDE"]


def test_one_who_rides_alone_takes_the_single_seat_before_breaking_a_pair() -> None:
    assert labels(PLUS_ONE, best_available(PLUS_ONE, set(PLUS_ONE.sellable), 1)) == ["4C"]
    free = set(numbers(COACH, "5A", "5B", "7D"))
    assert labels(COACH, best_available(COACH, free, 1)) == ["7D"]


def test_tastes_choose_among_equals() -> None:
    free = set(COACH.sellable)
    for taste, seen in (("WINDOW", {"WINDOW"}), ("AISLE", {"AISLE"})):
        [chosen] = best_available(COACH, free, 1, [taste])
        assert seen <= set(COACH.seat(chosen).features or ())
    assert COACH.seat(best_available(COACH, free, 2, ["BACK"])[0]).row >= 9
    assert COACH.seat(best_available(COACH, free, 2, ["FRONT"])[0]).row <= 4
    assert {PLUS_ONE.seat(n).kind for n in best_available(PLUS_ONE, set(PLUS_ONE.sellable), 2, ["PREMIUM"])} == {"PREMIUM"}


def test_who_names_no_kind_gets_standard_while_there_is_any() -> None:
    assert {PLUS_ONE.seat(n).kind for n in best_available(PLUS_ONE, set(PLUS_ONE.sellable), 2)} == {"STANDARD"}
    premium = set(numbers(PLUS_ONE, "1A", "1B", "1C"))
    assert len(best_available(PLUS_ONE, premium, 2)) == 2


def test_women_only_seats_go_to_those_who_ask() -> None:
    bus = layout_of(SMALL).with_women_only([1])
    assert best_available(bus, {1, 2}, 1) == [2]
    assert best_available(bus, {1}, 1) == []
    assert best_available(bus, {1, 2}, 1, ["WOMEN_ONLY"]) == [1]
    assert best_available(bus, {1, 2}, 2) == []


def test_accessible_seats_are_offered_last_or_kept_where_the_layout_says_so() -> None:
    first = set(numbers(COACH, "1A", "1B"))
    assert best_available(COACH, first | set(numbers(COACH, "9C", "9D")), 2) == numbers(COACH, "9C", "9D")
    assert best_available(COACH, first, 2) == sorted(first)
    kept = layout_of({**COACH.body(), "accessibleOnly": True})
    assert best_available(kept, first, 2) == []
    assert best_available(kept, set(kept.sellable), 2, ["ACCESSIBLE"]) == sorted(first)
    assert best_available(kept, set(kept.sellable) - first, 1, ["ACCESSIBLE"]) == []


def test_unknown_preferences_and_counts_are_refused() -> None:
    for count, prefer in ((0, []), (201, []), (1, ["SUNNY"])):
        with pytest.raises(Invalid):
            best_available(COACH, set(COACH.sellable), count, prefer)


@st.composite
def situations(draw: st.DrawFn) -> tuple[str, set[int], int, list[str]]:
    name = draw(st.sampled_from(sorted(LAYOUTS)))
    layout = LAYOUTS[name]
    free = draw(st.sets(st.sampled_from(range(1, len(layout.seats) + 1))))
    prefer = draw(st.lists(st.sampled_from(["WINDOW", "AISLE", "FRONT", "BACK", "ACCESSIBLE", *layout.kinds]), max_size=2))
    return name, free, draw(st.integers(1, 9)), prefer


@settings(max_examples=120, deadline=None)
@given(situations())
def test_the_seats_offered_are_free_enough_and_together_where_any_are(situation: tuple[str, set[int], int, list[str]]) -> None:
    name, free, count, prefer = situation
    layout = LAYOUTS[name]
    chosen = best_available(layout, set(free), count, prefer)
    if not chosen:
        accessible = {n for n in free if layout.seat(n).has("ACCESSIBLE")}
        assert len(free) < count or ("ACCESSIBLE" in prefer and not accessible)
        return
    assert len(chosen) == len(set(chosen)) == count
    assert set(chosen) <= free
    assert chosen == sorted(chosen)
    # together: if plain seats of the kind wanted have a stretch of `count`, so is the answer one
    kinds = [k for k in layout.kinds if k in prefer] or ["STANDARD"]
    good = {n for n in free if layout.seat(n).kind in kinds and ("ACCESSIBLE" in prefer or not layout.seat(n).has("ACCESSIBLE"))}
    windows = [set(run[i : i + count]) for run in layout.runs for i in range(len(run) - count + 1)]
    fits = [w for w in windows if w <= good and ("ACCESSIBLE" not in prefer or any(layout.seat(n).has("ACCESSIBLE") for n in w))]
    if fits:
        assert set(chosen) in fits
        if not prefer:
            assert orphans(layout, free, set(chosen)) == min(orphans(layout, free, w) for w in fits)


def orphans(layout: Layout, free: set[int], chosen: set[int]) -> int:
    def alone(left: set[int]) -> set[int]:
        found = set()
        for run in layout.runs:
            for i, n in enumerate(run):
                if n in left and len(run) > 1 and not any(0 <= j < len(run) and run[j] in left for j in (i - 1, i + 1)):
                    found.add(n)
        return found

    return len(alone(free - chosen) - alone(free))


def test_six_still_get_seats_close_by_where_every_other_seat_is_gone() -> None:
    seats = [{"label": f"S{n}", "row": n // 4, "column": n % 4 + (n % 4 > 1)} for n in range(200)]
    bus = layout_of({"decks": [{"rows": 50, "columns": 5, "aisles": [2]}], "seats": seats})
    chosen = best_available(bus, {n for n in bus.sellable if n % 2}, 6)
    rows = {bus.seat(n).row for n in chosen}
    assert len(chosen) == 6
    assert max(rows) - min(rows) == 2


# --- who may sit where ---


def test_a_women_only_seat_needs_a_woman() -> None:
    bus = COACH.with_women_only(numbers(COACH, "2A", "2B"))
    a, b, c = numbers(COACH, "2A", "2B", "2C")
    check_passengers(bus, [(a, {"gender": "FEMALE"}), (c, None)])
    with pytest.raises(Refused) as refused:
        check_passengers(bus, [(a, {"gender": "FEMALE"}), (b, {"gender": "MALE"}), (c, None)])
    assert refused.value.code == "SEAT_WOMEN_ONLY"
    assert [error["pointer"] for error in refused.value.errors] == ["/passengers/1/detail/gender"]


def test_an_accessible_seat_that_is_kept_takes_who_needs_it_and_the_companion() -> None:
    kept = layout_of({**COACH.body(), "accessibleOnly": True})
    a, b, c = numbers(kept, "1A", "1B", "1C")
    check_passengers(COACH, [(a, None)])
    check_passengers(kept, [(a, {"accessible": True}), (b, None), (c, None)])
    with pytest.raises(Refused) as refused:
        check_passengers(kept, [(a, None), (c, {"accessible": True})])
    assert refused.value.code == "SEAT_ACCESSIBLE_ONLY"


# --- what the map is told ---


class Stop(NamedTuple):
    stop_id: str


class Trip(NamedTuple):
    map_version: int = 1
    labels: tuple[str, ...] = ("1A", "1B")
    stops: tuple[Stop, ...] = (Stop("d:a"), Stop("d:b"), Stop("d:c"))


EVENT = {"tripNo": 7, "map": 1, "seats": [1, 2], "from": 0, "to": 2, "state": "HELD", "until": "2026-11-21T18:00:00.5+00:00"}


def test_a_hold_is_told_with_its_end_and_a_sale_without() -> None:
    told = seat_messages(EVENT, Trip())
    assert told[1] == {"seat": "1B", "state": "TAKEN", "from": "d:a", "to": "d:c", "untilMs": 1795284000500}
    assert seat_messages({**EVENT, "state": "CONFIRMED", "until": None}, Trip())[0]["untilMs"] is None


@pytest.mark.parametrize("state", ["RELEASED", "EXPIRED", "CANCELLED", "EXCHANGED", "NO_SHOW"])
def test_what_is_let_go_is_told_as_free(state: str) -> None:
    assert {(told["state"], told["untilMs"]) for told in seat_messages({**EVENT, "state": state}, Trip())} == {("FREE", None)}


def test_money_that_has_gone_back_frees_no_seat_which_somebody_else_may_have_by_now() -> None:
    assert seat_messages({**EVENT, "state": "REFUNDED"}, Trip()) == []


def test_a_change_of_seats_frees_the_old_before_it_takes_the_new() -> None:
    told = seat_messages({**EVENT, "seats": [2], "was": {"seats": [1], "from": 0, "to": 2}}, Trip())
    assert [(one["seat"], one["state"]) for one in told] == [("1A", "FREE"), ("1B", "TAKEN")]


def test_a_seat_of_an_older_map_is_nobodys_business() -> None:
    assert seat_messages(EVENT, Trip(map_version=2)) == []
    assert len(seat_messages({**EVENT, "map": 2, "was": {"seats": [1], "from": 0, "to": 2, "map": 1}}, Trip(map_version=2))) == 2


def test_every_feature_has_a_mark() -> None:
    assert set(COACH.marks) >= FEATURES


def test_after_a_swap_of_the_bus_the_seat_channel_says_to_read_the_map_again() -> None:
    data = {"tripId": "demo:T:20261121", "tripNo": 7, "mapVersion": 2}
    event = event_of("trip", "BUS_SWAPPED", "0195c0de-0001-7000-8000-000000000001", 3, "north", 0, data)
    [said] = Seats().lines(event, data, None)
    assert said.channel == "seats:demo:T:20261121"
    assert msgspec.json.decode(said.payload) == {"t": "notice", "d": {"what": "MAP_CHANGED", "mapVersion": 2}}
