"""A booking's states and the one table of moves. Pure; the diagram in docs/booking.md is drawn from it, the database keeps the same table
(`booking.edge`) and refuses every other move.

A hold is a booking that nobody has named passengers for. A return trip is one booking of two rows, one for each trip instance; each row has
its own state, and people see the state of the row that has come least far.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

HELD, PENDING_PAYMENT, CONFIRMED = "HELD", "PENDING_PAYMENT", "CONFIRMED"
CHECKED_IN, BOARDED, COMPLETED, NO_SHOW = "CHECKED_IN", "BOARDED", "COMPLETED", "NO_SHOW"
EXPIRED, RELEASED, CANCELLED, REFUNDED, EXCHANGED = "EXPIRED", "RELEASED", "CANCELLED", "REFUNDED", "EXCHANGED"

STATES: Final = (
    HELD, PENDING_PAYMENT, CONFIRMED, CHECKED_IN, BOARDED, COMPLETED, NO_SHOW, EXPIRED, RELEASED, CANCELLED, REFUNDED, EXCHANGED,
)  # fmt: skip

# from -> to: what makes the move
MOVES: Final[dict[str, dict[str, str]]] = {
    HELD: {
        PENDING_PAYMENT: "passengers are named",
        CONFIRMED: "sold for cash at a counter",
        RELEASED: "let go by its holder",
        EXPIRED: "its time is over",
        CANCELLED: "the trip is cancelled",
    },
    PENDING_PAYMENT: {
        CONFIRMED: "the money is in",
        RELEASED: "let go before anything was paid",
        EXPIRED: "its time is over and no payment is in progress",
        CANCELLED: "cancelled before it was paid, or the trip is cancelled",
    },
    CONFIRMED: {
        CHECKED_IN: "the passenger has checked in",
        BOARDED: "the first valid scan",
        NO_SHOW: "the bus has left without them",
        CANCELLED: "a cancellation was confirmed, or the trip is cancelled",
        EXCHANGED: "another booking took its place",
    },
    CHECKED_IN: {
        BOARDED: "the first valid scan",
        NO_SHOW: "the bus has left without them",
        CANCELLED: "a cancellation was confirmed, or the trip is cancelled",
        EXCHANGED: "another booking took its place",
    },
    BOARDED: {COMPLETED: "the trip has ended", CANCELLED: "the trip is cancelled on its way"},
    CANCELLED: {REFUNDED: "the money has gone back"},
    NO_SHOW: {REFUNDED: "the operator gave the money back"},
    EXPIRED: {
        CONFIRMED: "money that came too late, and the seats are still free",
        REFUNDED: "money that came too late has gone back",
    },
}

SEATED: Final = frozenset({HELD, PENDING_PAYMENT, CONFIRMED, CHECKED_IN, BOARDED, COMPLETED})  # its claims stand
SOLD: Final = frozenset({CONFIRMED, CHECKED_IN, BOARDED, COMPLETED})  # and they are paid for

_ORDER: Final = {state: place for place, state in enumerate(STATES)}


def may_move(state: str, to: str) -> bool:
    return to in MOVES.get(state, {})


def shown_state(states: Iterable[str]) -> str:
    """What a booking of several rows is called: the earliest of the states of those that still go on, else of all."""
    all_states = list(states)
    going = [state for state in all_states if state in SEATED]
    return min(going or all_states, key=_ORDER.__getitem__)


def diagram() -> str:
    """The table of moves as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {HELD}: seats are held"]
    lines += [f"    {state} --> {to}: {why}" for state, moves in MOVES.items() for to, why in moves.items()]
    lines += [f"    {state} --> [*]" for state in STATES if state not in MOVES]
    return "\n".join(lines) + "\n"
