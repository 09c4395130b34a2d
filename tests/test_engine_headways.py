"""Headways: who follows whom, how far behind; a bunch is one episode, whatever the order in which buses were heard."""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgspec
import pytest

from engine.events import IncidentEvent
from engine.tracking.headways import WAIT_MS, Headways
from engine.tracking.ride import Roadbook
from engine.tracking.rules import WatchConfig
from tests.small_world import DAY, feed

TIMETABLE = feed(trips=4, headway_s=600, block=False)
BOOK = Roadbook(TIMETABLE)
CONFIG = WatchConfig()
MINUTE = 60_000


def planned_ms(trip: str, index: int) -> int:
    instance = BOOK.instance(trip, DAY)
    assert instance is not None
    return instance.departure_ms(index)


Passing = tuple[str, str, int, int]  # bus, trip, stop index, UTC ms


def passings(bus: str, trip: str, late_s: dict[int, int]) -> list[Passing]:
    """So many seconds late at each of these stops."""
    return [(bus, trip, index, planned_ms(trip, index) + late * 1000) for index, late in late_s.items()]


def feed_in(area: Headways, passed: Iterable[Passing], *, measured: bool = True) -> None:
    for bus, trip, index, at_ms in passed:
        instance = BOOK.instance(trip, DAY)
        assert instance is not None
        area.passed(instance, BOOK.course(instance), index, bus, at_ms, at_ms + 2_000, measured=measured)


def said(passed: list[Passing], area: Headways | None = None) -> list[IncidentEvent]:
    area = area or Headways()
    feed_in(area, passed)
    return area.look(max(at_ms for *_, at_ms in passed) + WAIT_MS + 2_000, CONFIG)


LEADER = passings("b1", "T0", dict.fromkeys(range(1, 12), 480))  # eight minutes late, so the next is two minutes behind: a fifth of ten


def test_two_stops_in_a_row_are_a_bunch_and_a_gap_of_half_the_headway_ends_it() -> None:
    late = {1: 0, 2: 0, 3: 0, 4: 120, 5: 180}
    events = said(LEADER + passings("b2", "T1", late))
    assert [(event.kind, event.closed_at_ms is not None) for event in events] == [("BUNCHING", False), ("BUNCHING", True)]
    opened, closed = events
    assert (opened.bus_id, opened.trip_id, opened.opened_at_ms) == ("b2", "T1", planned_ms("T1", 1))
    assert msgspec.json.decode(opened.detail) == {"leaderBusId": "b1", "gapS": 120, "scheduledGapS": 600, "stops": 2}
    assert closed.closed_at_ms == planned_ms("T1", 5) + 180_000, "at the fourth stop four minutes: neither bunch nor spread"
    assert msgspec.json.decode(closed.detail)["reason"] == "SPREAD"


def test_one_stop_is_a_red_light_and_the_last_stop_does_not_count() -> None:
    assert said(LEADER + passings("b2", "T1", {1: 0, 2: 60, 3: 0, 4: 60})) == []
    assert said(passings("b1", "T0", {11: 480, 12: 590}) + passings("b2", "T1", {11: 0, 12: 0})) == []


def test_buses_that_the_timetable_sends_together_are_no_bunch() -> None:
    close = feed(trips=4, headway_s=90, block=False)
    book, area = Roadbook(close), Headways()
    for trip, bus in (("T0", "b1"), ("T1", "b2")):
        instance = book.instance(trip, DAY)
        assert instance is not None
        for index in range(1, 8):
            at_ms = instance.departure_ms(index) - (40_000 if trip == "T1" else 0)  # 50 s behind; half of 90 is 45
            area.passed(instance, book.course(instance), index, bus, at_ms, at_ms, measured=True)
    assert area.look(planned_ms("T3", 12), CONFIG) == []


def test_a_bunch_that_lasts_is_worse_and_ends_with_the_trip() -> None:
    area = Headways()
    assert [event.severity for event in said(LEADER + passings("b2", "T1", dict.fromkeys(range(1, 9), 0)), area)] == ["MINOR", "MAJOR"]
    end_ms = planned_ms("T1", 8) + MINUTE
    area.over("b2", "T1", DAY, "R", end_ms)
    (closed,) = area.look(end_ms + WAIT_MS, CONFIG)
    assert (closed.severity, closed.closed_at_ms) == ("MAJOR", end_ms) and msgspec.json.decode(closed.detail)["reason"] == "TRIP_OVER"


def test_a_bunch_of_which_nothing_is_seen_any_more_is_over() -> None:
    area = Headways()
    said(LEADER + passings("b2", "T1", {1: 0, 2: 0}), area)
    seen_ms = planned_ms("T1", 2)
    assert area.look(seen_ms + 29 * MINUTE, CONFIG) == []
    (closed,) = area.look(seen_ms + 31 * MINUTE, CONFIG)
    assert closed.closed_at_ms == seen_ms


def test_what_was_interpolated_says_nothing_of_gaps() -> None:
    area = Headways()
    feed_in(area, LEADER)
    feed_in(area, passings("b2", "T1", dict.fromkeys(range(1, 9), 0)), measured=False)
    assert area.look(planned_ms("T3", 12), CONFIG) == []


@pytest.mark.parametrize("seed", range(5))
def test_the_order_in_which_passes_become_known_changes_nothing(seed: int) -> None:
    passed = LEADER + passings("b2", "T1", {1: 0, 2: 0, 3: 0, 4: 200}) + passings("b3", "T2", dict.fromkeys(range(1, 9), -560))
    mixed = list(passed)
    random.Random(seed).shuffle(mixed)
    straight, other = Headways(), Headways()
    assert said(mixed, other) == said(passed, straight) != []
    assert dict(other.dump()) == dict(straight.dump())


def test_a_restart_in_the_middle_of_a_bunch_goes_on_with_it() -> None:
    first, second = Headways(), Headways()
    opened = said(LEADER + passings("b2", "T1", {1: 0, 2: 0}), first)
    feed_in(first, passings("b2", "T1", {3: 0}))  # still waits for its time
    kept = dict(first.dump())
    assert second.load(kept | {"bus:b1": b"\\x00"}) == 0
    rest = passings("b2", "T1", {4: 0, 5: 200})
    closed = said(rest, second)
    assert closed == said(rest, first) and {event.incident_id for event in closed} == {event.incident_id for event in opened}
    assert second.load({"gaps:bunch:b2": b"\\x93"}) == 1


def test_stops_at_which_nobody_passes_any_more_are_forgotten() -> None:
    area = Headways()
    said(LEADER, area)
    dict(area.dump())
    area.sweep(planned_ms("T0", 12) + 20 * 3_600_000)
    assert dict(area.dump()) == {}
    area.sweep(planned_ms("T0", 12) + 25 * 3_600_000)
    assert set(dict(area.dump()).values()) == {b""}
