"""The short form of `make torture`: 45 s of buyers, an operator and a nemesis on two workers; nothing may be wrong afterwards."""

from __future__ import annotations

import pytest

from bench.buyers import Held, Log
from bench.torture import torture

FAULTS = {"backends killed", "PostgreSQL restarted", "Redis flushed", "Redis stopped", "worker frozen", "worker killed"}


@pytest.mark.crash
@pytest.mark.timeout(400)
def test_nothing_is_sold_twice_lost_or_miscounted_while_everything_breaks() -> None:
    found = torture(45, seed=7, buyers=12)
    assert not found["wrong"], found["wrong"]
    assert found["faults"].keys() == FAULTS
    promised = found["promised"]
    assert promised["holds"] > 50 and promised["confirmed"] > 15 and promised["cancelled"] > 3 and promised["releases"] > 10, promised
    assert found["operations"]["duel"] > 20 and found["operations"]["swap"] > 2 and found["probes"] > 100
    assert found["auditor"] == "0"


def test_a_promise_that_is_not_kept_is_seen() -> None:
    log = Log()
    log.held = {name: Held(name, 1, ["1A"], "") for name in ("lost", "let go", "kept")}
    log.released, log.confirmed, log.cancelled = {"let go"}, {"PAID", "GONE"}, {"BACK"}
    log.booked = {"NONE": ["x"]}
    log.refused = [("SEAT_TAKEN", ("r1", "r2"))]
    row = {"lead": "", "confirmed": False}
    states = [
        row | {"id": "let go", "reference": None, "state": "HELD"},
        row | {"id": "kept", "reference": "PAID", "state": "CONFIRMED"},
        row | {"id": "gone", "reference": "GONE", "state": "EXPIRED", "confirmed": True},
        row | {"id": "back", "reference": "BACK", "state": "CONFIRMED"},
    ]
    wrong = log.compare(states, [{"request_id": "r2", "id": "kept"}])
    assert wrong == {
        "lost_hold": ["lost"],
        "release_undone": [("let go", "HELD")],
        "lost_booking": ["NONE"],
        "lost_confirm": ["PAID"],
        "confirm_undone": [("GONE", ["EXPIRED"])],
        "cancel_undone": [("BACK", ["CONFIRMED"])],
        "refused_but_held": [("SEAT_TAKEN", "r2", "kept")],
    }
