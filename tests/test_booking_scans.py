"""The fold over scans: whatever order they come in, and however often."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from engine.booking.scans import Scan, Standing, corrected_ms, fold_scans, merged

T = 1_795_248_000_000
HOUR = 3_600_000


def scan(device: str, at_ms: int, seq: int | None = 1, *, offline: bool = True, version: int = 1, verdict: str = "VALID") -> Scan:
    return Scan(f"{device}/{seq}", device, seq, at_ms, offline, version, verdict)


scans_of_a_ticket = st.lists(
    st.builds(
        lambda device, seq, at, offline, version, verdict: Scan(f"{device}/{seq}", device, seq, T + at, offline, version, verdict),
        st.sampled_from("ABC"), st.integers(1, 4), st.integers(0, 6), st.booleans(), st.integers(1, 2), st.sampled_from(["VALID", "VALID", "EXPIRED"]),
    ),
    max_size=9,
    unique_by=lambda one: one.scan_id,
)  # fmt: skip
standings = st.builds(
    Standing, version=st.integers(1, 2), revoked_at_ms=st.none() | st.integers(T, T + 6), no_show=st.booleans(), paid=st.booleans()
)


@given(scans_of_a_ticket, standings, st.randoms(use_true_random=False))
def test_order_and_repetition_change_nothing(scans: list[Scan], standing: Standing, chance: random.Random) -> None:
    once = fold_scans(scans, standing)
    again = [*scans, *chance.choices(scans, k=3)] if scans else []
    chance.shuffle(again)
    assert fold_scans(again, standing) == once


@given(scans_of_a_ticket, standings, st.integers(0, 9))
def test_pieces_merged_one_after_the_other_are_the_whole(scans: list[Scan], standing: Standing, at: int) -> None:
    assert fold_scans(merged([*merged(scans[at:]), *merged(scans[:at])]), standing) == fold_scans(scans, standing)


@given(scans_of_a_ticket, standings)
def test_at_most_one_scan_boards_and_it_is_the_earliest_good_one(scans: list[Scan], standing: Standing) -> None:
    done = fold_scans(scans, standing)
    aboard = [key for key, result in done.results.items() if result in ("BOARDED", "BOARDED_AFTER_NO_SHOW", "BOARDED_BEFORE_CANCELLATION")]
    assert len(aboard) <= 1
    assert (done.winner is None) == (not aboard)
    if done.winner is not None:
        assert aboard == [done.winner.scan_id]
        good = [one for one in scans if one.verdict == "VALID" and one.version >= standing.version]
        if standing.revoked_at_ms is not None:
            good = [one for one in good if one.offline]
        assert all(one.at_ms >= done.winner.at_ms for one in good)


def test_a_screenshot_boards_once_and_the_second_is_told_when_and_where() -> None:
    done = fold_scans([scan("door", T, offline=False), scan("door", T + 9_000, 2, offline=False)], Standing())
    assert done.winner == scan("door", T, offline=False)
    assert done.results == {"door/1": "BOARDED", "door/2": "ALREADY_BOARDED"}


def test_two_offline_scanners_the_earlier_wins_and_the_other_is_a_duplicate() -> None:
    done = fold_scans([scan("B", T + 1), scan("A", T)], Standing())
    assert done.results == {"A/1": "BOARDED", "B/1": "DUPLICATE_OFFLINE"}


def test_cancelled_while_a_scanner_was_offline_is_told_by_the_times() -> None:
    cancelled = Standing(revoked_at_ms=T)
    assert fold_scans([scan("A", T + 1)], cancelled).results == {"A/1": "CANCELLED_BEFORE_SCAN"}
    assert fold_scans([scan("A", T - 1)], cancelled).results == {"A/1": "BOARDED_BEFORE_CANCELLATION"}
    assert fold_scans([scan("A", T + 1, offline=False)], cancelled).results == {"A/1": "REVOKED"}


def test_the_old_ticket_of_a_reissue_is_superseded_and_the_new_one_boards() -> None:
    done = fold_scans([scan("A", T, 1, version=1), scan("A", T + 5, 2, version=2)], Standing(version=2))
    assert done.results == {"A/1": "SUPERSEDED", "A/2": "BOARDED"}


def test_a_scanner_whose_clock_is_off_by_an_hour_is_put_right() -> None:
    for off in (-HOUR, HOUR):
        scanned, told = T + off, T + off + 60_000  # on its own clock; we hear of it a minute later
        assert corrected_ms(scanned, told, T + 60_000) == T
    assert corrected_ms(T + HOUR, None, T) == T, "nothing was scanned after we heard of it"


def test_a_scan_told_after_the_passenger_was_given_up_still_says_who_travelled() -> None:
    assert fold_scans([scan("A", T), scan("B", T + 1)], Standing(no_show=True)).results == {
        "A/1": "BOARDED_AFTER_NO_SHOW",
        "B/1": "DUPLICATE_OFFLINE",
    }
