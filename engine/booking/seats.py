"""Seats: a bus's layout, which seats to offer together, who may sit where, and what the seat map is told. Pure.

A layout is a grid per deck, counted from 0 at the front left: rows to the back, columns to the right, aisles and what is no seat among them.
Seats are numbered 1, 2, ... in the order in which the layout lists them: claims, prices and tickets know the number, people the label.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Final, Protocol

import msgspec

from engine.booking.booking import REFUNDED, SEATED
from engine.booking.refusals import Refused
from engine.errors import Invalid

SEATS_MAX: Final = 200
FEATURES: Final = frozenset({"ACCESSIBLE", "WOMEN_ONLY", "WINDOW", "AISLE", "TABLE", "POWER", "EXTRA_LEGROOM"})
TASTES: Final = frozenset({"WINDOW", "AISLE", "FRONT", "BACK", "ACCESSIBLE", "WOMEN_ONLY"})  # besides the kinds of a layout
LABEL: Final = r"^[A-Za-z0-9][A-Za-z0-9-]{0,7}$(?!\n)"
KIND: Final = r"^[A-Z][A-Z0-9_]{0,23}$(?!\n)"

DECK_APART: Final = 100  # another deck is as far as so many rows
FAR: Final = 1_000  # farther than anything

Place = Annotated[int, msgspec.Meta(ge=0, le=63)]


class Cell(msgspec.Struct, frozen=True, gc=False):
    """A place of the grid that is no seat."""

    row: Place
    column: Place


class Deck(msgspec.Struct, frozen=True):
    """A floor of the bus. A column that is an aisle may still have a seat: the bench at the back goes across."""

    rows: Annotated[int, msgspec.Meta(ge=1, le=64)]
    columns: Annotated[int, msgspec.Meta(ge=1, le=12)]
    name: str = ""
    aisles: tuple[Place, ...] = ()  # columns
    driver: Cell | None = None
    doors: tuple[Cell, ...] = ()
    toilets: tuple[Cell, ...] = ()
    stairs: tuple[Cell, ...] = ()


class Seat(msgspec.Struct, frozen=True, omit_defaults=True):
    label: Annotated[str, msgspec.Meta(pattern=LABEL)]
    row: Place
    column: Place
    deck: Annotated[int, msgspec.Meta(ge=0, le=2)] = 0
    kind: Annotated[str, msgspec.Meta(pattern=KIND)] = "STANDARD"  # the fare class
    features: tuple[str, ...] | None = None  # None (only as drawn): WINDOW and AISLE by the grid; a read layout has them all
    blocked: bool = False  # never sold: the guide's, a broken one

    def has(self, feature: str) -> bool:
        return self.features is not None and feature in self.features


class Layout(msgspec.Struct, frozen=True, dict=True, omit_defaults=True, rename="camel"):
    """A layout that holds together. Made by `layout_of`."""

    decks: Annotated[tuple[Deck, ...], msgspec.Meta(min_length=1, max_length=3)]
    seats: tuple[Seat, ...]
    accessible_only: bool = False  # True: ACCESSIBLE seats go to passengers who need one; else they are merely offered last

    def body(self) -> dict[str, Any]:
        """As `layout_of` reads it."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made

    def seat(self, number: int) -> Seat:
        """Raises `Invalid`."""
        if not 1 <= number <= len(self.seats):
            raise Invalid(f"there is no seat {number}: the bus has {len(self.seats)}")
        return self.seats[number - 1]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The label of seat n is `labels[n - 1]`."""
        return tuple(seat.label for seat in self.seats)

    @cached_property
    def sellable(self) -> frozenset[int]:
        return frozenset(n for n, seat in enumerate(self.seats, 1) if not seat.blocked)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """In the order of their first seat."""
        return tuple(dict.fromkeys(seat.kind for seat in self.seats))

    @cached_property
    def runs(self) -> tuple[tuple[int, ...], ...]:
        """Seat numbers that stand side by side with no aisle or gap between them, each run left to right, front to back."""
        cells = {(seat.deck, seat.row, seat.column): n for n, seat in enumerate(self.seats, 1)}
        runs: list[list[int]] = []
        before: tuple[int, int, int] | None = None
        for deck, row, column in sorted(cells):
            if before == (deck, row, column - 1):
                runs[-1].append(cells[deck, row, column])
            else:
                runs.append([cells[deck, row, column]])
            before = (deck, row, column)
        return tuple(tuple(run) for run in runs)

    @cached_property
    def beside(self) -> dict[int, tuple[int, ...]]:
        """The seats at one's elbows."""
        return {n: tuple(run[i] for i in (at - 1, at + 1) if 0 <= i < len(run)) for run in self.runs for at, n in enumerate(run)}

    @cached_property
    def marks(self) -> dict[str, frozenset[int]]:
        """Seat numbers by kind, by feature, and of the FRONT and BACK thirds of their decks."""
        found: dict[str, set[int]] = {mark: set() for mark in (*self.kinds, *FEATURES, "FRONT", "BACK")}
        for n, seat in enumerate(self.seats, 1):
            rows = self.decks[seat.deck].rows
            ends = ["FRONT"] * (3 * seat.row < rows) + ["BACK"] * (3 * seat.row >= 2 * rows)
            for mark in (seat.kind, *(seat.features or ()), *ends):
                found[mark].add(n)
        return {mark: frozenset(numbers) for mark, numbers in found.items()}

    def with_women_only(self, numbers: Iterable[int]) -> Layout:
        """The same bus with these seats kept for women. Raises `Invalid` for a number that is no seat's."""
        marked = list(self.seats)
        for number in set(numbers):
            seat = self.seat(number)
            marked[number - 1] = msgspec.structs.replace(seat, features=tuple(sorted({*(seat.features or ()), "WOMEN_ONLY"})))
        return msgspec.structs.replace(self, seats=tuple(marked))


# ------------------------------------------------------------------------------------------------ reading one

_AT: Final = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.S)


def layout_of(body: Any) -> Layout:
    """The layout of a body such as `{"decks": [{"rows", "columns", "aisles", "driver", "doors", ...}], "seats": [{"label", "row", "column",
    "deck", "kind", "features", "blocked"}]}`. Raises `Invalid` with a pointer for each thing that is wrong.
    """
    try:
        drawn = msgspec.convert(body, Layout)
    except msgspec.ValidationError as fault:
        found = _AT.match(str(fault))
        path = re.sub(r"\[(\d+)\]|\.", lambda part: f"/{part[1]}" if part[1] else "/", (found and found["path"]) or "")
        what = found["what"] if found else str(fault)
        raise Invalid(f"the seat layout does not read: {fault}", errors=[_wrong(path, "INVALID", what)]) from fault
    wrong = _what_is_wrong(drawn)
    if wrong:
        raise Invalid(f"the seat layout does not hold together: {wrong[0]['detail']}", errors=wrong[:50])
    return msgspec.structs.replace(drawn, seats=tuple(_with_features(drawn, seat) for seat in drawn.seats))


def _wrong(pointer: str, code: str, detail: str) -> dict[str, str]:
    return {"pointer": pointer, "code": code, "detail": detail}


def _what_is_wrong(drawn: Layout) -> list[dict[str, str]]:
    wrong = []
    if not 1 <= len(drawn.seats) <= SEATS_MAX:
        wrong.append(_wrong("/seats", "OUT_OF_RANGE", f"a bus has 1 to {SEATS_MAX} seats, not {len(drawn.seats)}"))
    taken: dict[tuple[int, int, int], str] = {}
    for d, deck in enumerate(drawn.decks):
        for name, cells in (("driver", [deck.driver] if deck.driver else []), *((n, getattr(deck, n)) for n in _THINGS)):
            for cell in cells:
                if cell.row >= deck.rows or cell.column >= deck.columns:
                    wrong.append(_wrong(f"/decks/{d}/{name}", "OFF_THE_GRID", f"deck {d} has {deck.rows} rows and {deck.columns} columns"))
                taken[d, cell.row, cell.column] = name
        for column in deck.aisles:
            if column >= deck.columns:
                wrong.append(_wrong(f"/decks/{d}/aisles", "OFF_THE_GRID", f"deck {d} has {deck.columns} columns, counted from 0"))
    labels: set[str] = set()
    for s, seat in enumerate(drawn.seats):
        at = f"/seats/{s}"
        if seat.deck >= len(drawn.decks):
            wrong.append(_wrong(f"{at}/deck", "OFF_THE_GRID", f"seat {seat.label} stands on deck {seat.deck} of {len(drawn.decks)}"))
            continue
        deck = drawn.decks[seat.deck]
        if seat.row >= deck.rows or seat.column >= deck.columns:
            wrong.append(
                _wrong(at, "OFF_THE_GRID", f"seat {seat.label} stands off the {deck.rows} x {deck.columns} grid of deck {seat.deck}")
            )
        place = (seat.deck, seat.row, seat.column)
        if place in taken:
            wrong.append(_wrong(at, "PLACE_TAKEN", f"seat {seat.label} stands where {taken[place]} is"))
        taken[place] = seat.label
        if seat.label in labels:
            wrong.append(_wrong(f"{at}/label", "DUPLICATE", f"two seats are called {seat.label}"))
        labels.add(seat.label)
        if seat.kind in TASTES | FEATURES:
            wrong.append(_wrong(f"{at}/kind", "RESERVED", f"{seat.kind} is a preference and cannot be a kind"))
        unknown = sorted(set(seat.features or ()) - FEATURES)
        if unknown:
            detail = f"no feature {unknown[0][:40]!r}; there are {', '.join(sorted(FEATURES))}"
            wrong.append(_wrong(f"{at}/features", "UNKNOWN", detail))
    return wrong


_THINGS: Final = ("doors", "toilets", "stairs")


def _with_features(drawn: Layout, seat: Seat) -> Seat:
    if seat.features is not None:
        return msgspec.structs.replace(seat, features=tuple(sorted(set(seat.features))))
    deck = drawn.decks[seat.deck]
    window = seat.column in (0, deck.columns - 1)
    aisle = seat.column not in deck.aisles and (seat.column - 1 in deck.aisles or seat.column + 1 in deck.aisles)
    return msgspec.structs.replace(seat, features=(*(["AISLE"] if aisle else []), *(["WINDOW"] if window else [])))


# ------------------------------------------------------------------------------------------------ which to offer


def best_available(layout: Layout, free: set[int], count: int, prefer: Sequence[str] = ()) -> list[int]:
    """`count` seat numbers of `free`, ascending, that sit best together; empty: there are none.

    Side by side in one run first, else in as few and as close pieces as can be. Of equals those that meet `prefer` (WINDOW, AISLE, FRONT,
    BACK, a kind), then those that leave fewest seats alone between taken ones, then the front. Who names no kind gets STANDARD before any
    other. WOMEN_ONLY seats go only to those who ask; ACCESSIBLE ones too where the layout keeps them, else last. Who asks for ACCESSIBLE
    gets at least one, or nothing. Under 1 ms of CPU for 200 seats (3 where every other one is gone). Raises `Invalid`.
    """
    tastes = set(prefer)
    unknown = sorted(tastes - TASTES - set(layout.kinds))
    if unknown:
        detail = f"no preference {unknown[0][:40]!r}; there are {', '.join(sorted(TASTES | set(layout.kinds)))}"
        raise Invalid(detail, errors=[_wrong("/seats/prefer", "UNKNOWN", detail)])
    if not 1 <= count <= SEATS_MAX:
        raise Invalid(f"count is 1 to {SEATS_MAX}", errors=[_wrong("/seats/count", "OUT_OF_RANGE", f"{count} seats")])
    marks = layout.marks
    kinds = [kind for kind in layout.kinds if kind in tastes] or ["STANDARD" if "STANDARD" in layout.kinds else layout.kinds[0]]
    anyone = free & layout.sellable
    if "WOMEN_ONLY" not in tastes:
        anyone -= marks["WOMEN_ONLY"]
    kept = marks["ACCESSIBLE"] if "ACCESSIBLE" not in tastes else frozenset()
    plain = anyone - kept
    tiers = [plain & frozenset().union(*(marks[kind] for kind in kinds)), plain]
    if not layout.accessible_only:
        tiers.append(anyone)
    need = marks["ACCESSIBLE"] if "ACCESSIBLE" in tastes else None
    asked = [marks[taste] for taste in sorted(tastes - {"ACCESSIBLE"} - set(layout.kinds))]
    for eligible in tiers:
        if len(eligible) >= count:
            chosen = _together(layout, free, eligible, count, asked, need, backwards="BACK" in tastes)
            if chosen:
                return sorted(chosen)
    return []


def _together(
    layout: Layout,
    free: set[int],
    eligible: set[int],
    count: int,
    asked: Sequence[frozenset[int]],
    need: frozenset[int] | None,
    backwards: bool,
) -> list[int]:
    """The best of what each free stretch of seats offers when one begins there; empty: none holds what is needed."""
    stretches = _stretches(layout, eligible)
    rows: dict[tuple[int, int], list[list[int]]] = {}
    for one in stretches:
        first = layout.seats[one[0] - 1]
        rows.setdefault((first.deck, first.row), []).append(one)
    begins = [(one, block) for one in (reversed(stretches) if backwards else stretches) for block in _blocks(one, count, need)]
    whole = [begin for begin in begins if len(begin[1]) == count]
    best, chosen = (FAR, FAR, FAR), list[int]()
    for one, block in whole or begins:
        most = best[0] - (not any(best[1:]))  # nothing but less spread is better than what meets every taste and leaves nobody alone
        if most < 0:
            break
        found, spread = (block, 0) if whole else _with_neighbours(layout, free, rows, one, block, count, most)
        if len(found) == count and spread <= most:
            cost = (spread, sum(1 for mark in asked if not mark.intersection(found)), _left_alone(layout, free, found))
            if cost < best:
                best, chosen = cost, found
    return chosen


def _stretches(layout: Layout, eligible: set[int]) -> list[list[int]]:
    """The runs cut where a seat may not be had."""
    found: list[list[int]] = []
    for run in layout.runs:
        open_ = False
        for number in run:
            if number not in eligible:
                open_ = False
            elif open_:
                found[-1].append(number)
            else:
                found.append([number])
                open_ = True
    return found


def _blocks(stretch: list[int], count: int, need: frozenset[int] | None) -> list[list[int]]:
    size = min(count, len(stretch))
    blocks = [stretch[at : at + size] for at in range(len(stretch) - size + 1)]
    return blocks if need is None else [block for block in blocks if need.intersection(block)]


def _with_neighbours(
    layout: Layout, free: set[int], rows: dict[tuple[int, int], list[list[int]]], begun: list[int], block: list[int], count: int, most: int
) -> tuple[list[int], int]:
    """A block made up to `count` from the rows around it, nearest first, and what that costs: further pieces + the rows they lie apart. Given
    up, with too few, past a cost of `most`."""
    seat = layout.seats[block[0] - 1]
    chosen, pieces = list(block), 0
    for deck in sorted(range(len(layout.decks)), key=lambda deck: deck != seat.deck):
        for away in range(layout.decks[deck].rows):
            far = away + DECK_APART * (deck != seat.deck)
            if pieces + far >= most:
                break
            near = [one for row in {seat.row - away, seat.row + away} for one in rows.get((deck, row), ()) if one is not begun]
            while near:
                missing = count - len(chosen)
                one = max(near, key=lambda one: (min(len(one), missing), len(one) == missing))
                near.remove(one)
                piece = min(_blocks(one, missing, None), key=lambda piece: _left_alone(layout, free, piece))
                chosen += piece
                pieces += 1
                if len(chosen) == count:
                    return chosen, pieces + far
    return chosen, FAR


def _left_alone(layout: Layout, free: set[int], chosen: list[int]) -> int:
    """How many free seats this choice leaves with no free seat beside them that had one before."""
    beside, gone, alone = layout.beside, set(chosen), set()
    for number in chosen:
        for next_ in beside[number]:
            if next_ in free and next_ not in gone and not any(far in free and far not in gone for far in beside[next_]):
                alone.add(next_)
    return len(alone)


# ------------------------------------------------------------------------------------------------ who may sit where


def check_passengers(layout: Layout, passengers: Sequence[tuple[int, Mapping[str, Any] | None]]) -> None:
    """Raises `Refused` where a passenger may not have their seat: (seat number, detail) of each.

    WOMEN_ONLY: the detail says `"gender": "FEMALE"`. ACCESSIBLE of a layout that keeps them: it says `"accessible": true` for this passenger
    or for one beside them (the companion).
    """
    wrong, codes = [], []
    needing = {number for number, detail in passengers if (detail or {}).get("accessible") is True}
    beside = {other for run in layout.runs if needing.intersection(run) for other in run}
    for index, (number, detail) in enumerate(passengers):
        seat = layout.seat(number)
        if seat.has("WOMEN_ONLY") and (detail or {}).get("gender") != "FEMALE":
            codes.append("SEAT_WOMEN_ONLY")
            wrong.append(_wrong(f"/passengers/{index}/detail/gender", codes[-1], f"seat {seat.label} is kept for women: gender FEMALE"))
        if layout.accessible_only and seat.has("ACCESSIBLE") and number not in beside:
            codes.append("SEAT_ACCESSIBLE_ONLY")
            what = f"seat {seat.label} is kept for passengers who need it: accessible true"
            wrong.append(_wrong(f"/passengers/{index}/detail/accessible", codes[-1], what))
    if wrong:
        raise Refused(codes[0], f"{wrong[0]['detail']}; choose another seat or say so in the passenger's detail", errors=wrong)


# ------------------------------------------------------------------------------------------------ what the map is told


class _Stop(Protocol):
    @property
    def stop_id(self) -> str: ...


class MappedTrip(Protocol):
    """What we need of `engine.booking.catalogue.SoldTrip`."""

    @property
    def map_version(self) -> int: ...
    @property
    def labels(self) -> Sequence[str]: ...
    @property
    def stops(self) -> Sequence[_Stop]: ...


def seat_messages(event: Mapping[str, Any], trip: MappedTrip) -> list[dict[str, Any]]:
    """What `seats:{tripId}` is told of a change to a booking: `{"seat", "state": TAKEN | FREE, "from", "to", "untilMs"}`, what was let go
    first.

    `event` is the body of an outbox row of topic booking (`booking.note`): seats, from, to, state, map, until. A change that gave seats
    or legs up says so in `was`: {"seats", "from", "to", "map"}. A seat of another map version is nobody's business any more: no message.
    """
    if event.get("state") == REFUNDED:  # its seats were let go before the money was, and may be somebody else's by now
        return []
    messages = []
    was = event.get("was")
    if was:
        messages += _told(was, trip, event.get("map"), "FREE", None)
    taken = event.get("state") in SEATED
    until = _ms(event.get("until")) if taken else None
    return messages + _told(event, trip, event.get("map"), "TAKEN" if taken else "FREE", until)


def _told(part: Mapping[str, Any], trip: MappedTrip, version: Any, state: str, until_ms: int | None) -> list[dict[str, Any]]:
    if part.get("map", version) != trip.map_version:
        return []
    begin, end = trip.stops[part["from"]].stop_id, trip.stops[part["to"]].stop_id
    return [{"seat": trip.labels[n - 1], "state": state, "from": begin, "to": end, "untilMs": until_ms} for n in part["seats"]]


def _ms(when: str | None) -> int | None:
    """UTC milliseconds of a timestamp as PostgreSQL writes it into JSON."""
    if when is None:
        return None
    return round(msgspec.convert(when.replace(" ", "T"), type=datetime).timestamp() * 1000)
