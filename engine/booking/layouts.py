"""Ready layouts of buses that many operators have: where the set-up of a new operator begins. Each reads with `layout_of`.

Rows are labelled from 1, seats of a row from A at the driver's side. The first row of doors and driver carries no seats.
"""

from __future__ import annotations

from typing import Any, Final


def _row(
    number: int, row: int, columns: list[int], *, deck: int = 0, prefix: str = "", kind: str = "STANDARD", **more: Any
) -> list[dict[str, Any]]:
    """The seats of one row, labelled by their order."""
    letters = "ABCDEFGH"
    return [
        {"label": f"{prefix}{number}{letters[i]}", "row": row, "column": column, "deck": deck, "kind": kind, **more}
        for i, column in enumerate(columns)
    ]


def coach_49() -> dict[str, Any]:
    """2 + 2, eleven rows of four and a bench of five; the first two rows are wheelchair places when their seats are out."""
    seats: list[dict[str, Any]] = []
    for number in range(1, 12):
        seats += _row(number, number, [0, 1, 3, 4])
    seats += _row(12, 12, [0, 1, 2, 3, 4])
    for seat in seats[:2]:
        seat["features"] = ["ACCESSIBLE", "WINDOW" if seat["column"] == 0 else "AISLE"]
    deck = {"rows": 13, "columns": 5, "aisles": [2], "driver": {"row": 0, "column": 0}, "doors": [{"row": 0, "column": 4}]}
    return {"decks": [deck], "seats": seats}


def coach_32() -> dict[str, Any]:
    """2 + 1 of ten rows and a pair beside the toilet, doors at the front and in the middle; the first three rows are PREMIUM."""
    seats: list[dict[str, Any]] = []
    for number in range(1, 11):
        row = number if number <= 6 else number + 1  # the middle door takes a row of its own
        seats += _row(number, row, [0, 1, 3], kind="PREMIUM" if number <= 3 else "STANDARD")
    seats += _row(11, 12, [0, 1])
    deck = {
        "rows": 13,
        "columns": 4,
        "aisles": [2],
        "driver": {"row": 0, "column": 0},
        "doors": [{"row": 0, "column": 3}, {"row": 7, "column": 3}],
        "toilets": [{"row": 12, "column": 3}],
    }
    return {"decks": [deck], "seats": seats}


def double_decker() -> dict[str, Any]:
    """Lower deck: 4 rows PREMIUM 2 + 1 and two accessible places; upper deck: 13 rows 2 + 2, the first with the view. 66 seats."""
    seats: list[dict[str, Any]] = []
    for number in range(1, 5):
        seats += _row(number, number, [0, 1, 3], prefix="L", kind="PREMIUM")
    seats += _row(5, 5, [0, 1], prefix="L", features=["ACCESSIBLE"])
    for number in range(1, 14):
        seats += _row(number, number - 1, [0, 1, 3, 4], deck=1, prefix="U")
    lower = {
        "name": "lower",
        "rows": 6,
        "columns": 4,
        "aisles": [2],
        "driver": {"row": 0, "column": 0},
        "doors": [{"row": 0, "column": 3}, {"row": 5, "column": 3}],
    }
    upper = {"name": "upper", "rows": 14, "columns": 5, "aisles": [2], "stairs": [{"row": 13, "column": 4}]}
    return {"decks": [lower, upper], "seats": seats}


def minibus_19() -> dict[str, Any]:
    """2 + 1 of five rows and a bench of four."""
    seats: list[dict[str, Any]] = []
    for number in range(1, 6):
        seats += _row(number, number, [0, 1, 3])
    seats += _row(6, 6, [0, 1, 2, 3])
    deck = {"rows": 7, "columns": 4, "aisles": [2], "driver": {"row": 0, "column": 0}, "doors": [{"row": 0, "column": 3}]}
    return {"decks": [deck], "seats": seats}


READY: Final[dict[str, dict[str, Any]]] = {
    "coach-49": coach_49(),
    "coach-32": coach_32(),
    "double-decker": double_decker(),
    "minibus-19": minibus_19(),
}
