"""Which trip a vehicle is on, from fix to fix: who wins, what is looked at again, and what never happens."""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.events import DEADHEAD, DONE, IN_TRIP, LAYOVER, StopEvent, TripEvent
from engine.tracking.fix import Fix
from engine.tracking.ride import LATE_FOR_EVER_MS, Ride
from engine.tracking.rules import DISPATCHER, Order, Rules
from engine.tracking.timetable import Timetable
from engine.tracking.tracker import Tracker
from tests.small_world import DAY, SPEED, STRAIGHT, Bus, feed, instance_of

HOURLY = feed(block=False)
CLOSE = feed(headway_s=600, block=False, trips=6)
START = instance_of(HOURLY).departure_ms(0)


class Town:
    """A tracker and all that it said."""

    def __init__(self, timetable: Timetable = HOURLY) -> None:
        self.tracker = Tracker(timetable, feed_id="demo", partner_id="P")
        self.events: list[object] = []

    def fold(self, *parts: Iterable[Fix]) -> None:
        """In order of receipt, a tick a second."""
        fixes = sorted((fix for part in parts for fix in part), key=lambda fix: fix.received_at_ms)
        at_ms = fixes[0].received_at_ms
        for fix in fixes:
            while at_ms + 1_000 <= fix.received_at_ms:
                at_ms += 1_000
                self.tick(at_ms)
            self.tracker.fold(fix)
        self.tick(fixes[-1].received_at_ms + 5_000)

    def tick(self, at_ms: int) -> None:
        self.tracker.tick(at_ms)
        self.events += self.tracker.take().events

    def ride(self, bus_id: str = "b1") -> Ride | None:
        return self.tracker._vehicles[bus_id].newest.ride

    def trip(self, bus_id: str = "b1") -> str | None:
        ride = self.ride(bus_id)
        return ride.trip_id if ride is not None else None

    def said(self, kind: str, bus_id: str = "b1") -> list[tuple[str, str]]:
        return [(e.trip_id, e.reason) for e in self.events if isinstance(e, TripEvent) and (e.kind, e.bus_id) == (kind, bus_id)]


def silent(bus_id: str = "b1", **more: float) -> Bus:
    return Bus(STRAIGHT, bus_id=bus_id, trip_id=None, noise_m=more.get("noise_m", 4.0))


def ordered(trip_id: str, bus_id: str, at_ms: int = START) -> Rules:
    return Rules(1, orders=[Order(trip_id, DAY, bus_id, None, DISPATCHER, "anna", at_ms)])


# --- what a drive looks like ---


def test_a_departure_gives_the_trip_within_three_minutes_and_before_it_there_is_none() -> None:
    town, bus = Town(CLOSE), silent()
    town.fold(bus.stand(START - 300_000, 0.0, 300))
    assert town.trip() is None
    town.fold(bus.drive(START + 20_000, to_m=900.0))
    assert town.trip() == "T0" and town.said("ASSIGNED") == [("T0", "ENGINE")]


def test_the_departure_and_not_the_arrival_decides_between_two_trips() -> None:
    """It waits from 08:02 to 08:10: that is T1, whatever it could have been when it came."""
    town, bus = Town(CLOSE), silent()
    town.fold(bus.stand(START + 120_000, 0.0, 480), bus.drive(START + 610_000, to_m=900.0))
    assert town.trip() == "T1"


def test_a_bus_parked_for_forty_minutes_at_a_terminal_starts_no_trip_and_no_incident() -> None:
    for named in (None, "T0"):
        town = Town()
        bus = Bus(STRAIGHT, trip_id=named, noise_m=8.0)
        town.fold(bus.stand(START - 600_000, 0.0, 2_400))
        assert not [e for e in town.events if not isinstance(e, TripEvent) or e.kind == "STARTED"]
        assert town.trip() == named


def test_what_waits_at_its_first_stop_past_its_time_keeps_the_trip_that_was_named() -> None:
    """Arrival 07:48, departure 08:00 and three minutes more: a layover, then the trip."""
    town, bus = Town(), Bus(STRAIGHT, noise_m=4.0)
    town.fold(bus.stand(START - 720_000, 0.0, 900))
    assert town.ride() is not None and town.ride().phase == LAYOVER  # type: ignore[union-attr]
    town.fold(bus.drive(START + 180_000, to_m=800.0))
    assert town.ride() is not None and (town.trip(), town.ride().phase) == ("T0", IN_TRIP)  # type: ignore[union-attr]
    assert town.said("UNASSIGNED") == []


def test_a_scheduled_wait_inside_a_trip_keeps_the_trip() -> None:
    """Fifteen minutes at the seventh stop, as the timetable has it."""
    timetable = feed(block=False)
    for name, trip in list(timetable.trips.items()):
        arrival = tuple(at + (900 if index > 6 else 0) for index, at in enumerate(trip.arrival_s))
        departure = tuple(at + (900 if index >= 6 else 0) for index, at in enumerate(trip.departure_s))
        timetable.trips[name] = msgspec.structs.replace(trip, arrival_s=arrival, departure_s=departure)
    town, bus = Town(timetable), silent()
    waits_ms = START + round(3_000 / SPEED * 1000)
    town.fold(
        bus.stand(START - 60_000, 0.0, 60), bus.drive(START, to_m=3_000.0), bus.stand(waits_ms, 3_000.0, 900),
        bus.drive(waits_ms + 900_000, from_m=3_000.0, to_m=6_000.0),
    )  # fmt: skip
    assert town.said("ASSIGNED") == [("T0", "ENGINE")] and town.said("COMPLETED") == [("T0", "LAST_STOP")]
    assert town.said("UNASSIGNED") == []


def test_a_short_diversion_that_misses_a_stop_is_noticed_and_the_trip_is_kept() -> None:
    """Off the line by 400 m for 90 s, around the stop at 2,500 m."""
    town, bus = Town(), silent()
    town.fold(bus.stand(START - 60_000, 0.0, 60), bus.drive(START, to_m=2_200.0))
    at_ms = START + 275_000
    detour = [bus.at(at_ms + k * 1_000, 2_200.0 + 6.7 * k, 400.0 * min(1.0, k / 20, (90 - k) / 20)) for k in range(90)]
    town.fold(detour, bus.drive(at_ms + 90_000, from_m=2_803.0, to_m=4_500.0))
    assert town.trip() == "T0" and town.said("UNASSIGNED") == []
    missed = [e.stop_sequence for e in town.events if isinstance(e, StopEvent) and e.kind == "MISSED"]
    assert missed == [6]


def test_on_one_line_two_buses_are_never_guessed_onto_one_trip() -> None:
    town = Town(CLOSE)
    one, other = silent("b1"), silent("b2")
    town.fold(one.drive(START + 10_000, to_m=2_000.0), other.drive(START + 60_000, to_m=2_000.0))
    assert {town.trip("b1"), town.trip("b2")} - {None} and town.trip("b1") != town.trip("b2")


def test_the_bus_that_fits_better_takes_a_guessed_trip_and_the_other_one_is_told_why() -> None:
    """b1 passes seven minutes late and is given the only trip there is; then its own bus comes along on time."""
    timetable = feed(trips=1, block=False)
    town = Town(timetable)
    late, punctual = silent("b1"), silent("b2")
    town.fold(late.drive(START + 10_000, from_m=3_100.0, to_m=4_000.0))  # far ahead of the timetable
    assert town.trip("b1") == "T0"
    town.fold(punctual.drive(START + 125_000, to_m=1_500.0))
    assert (town.trip("b1"), town.trip("b2")) == (None, "T0")
    assert town.said("UNASSIGNED", "b1") == [("T0", "DISPLACED")]


def test_a_trip_that_a_device_names_is_taken_from_whom_it_was_guessed_for_and_never_the_other_way() -> None:
    town = Town()
    guessed, named = silent("b1"), Bus(STRAIGHT, bus_id="b2", trip_id="T0")
    town.fold(guessed.drive(START + 10_000, to_m=1_000.0))
    assert town.trip("b1") == "T0"
    town.fold(named.drive(START + 136_000, to_m=500.0))
    assert (town.trip("b1"), town.trip("b2")) == (None, "T0")
    town.fold(guessed.drive(START + 200_000, from_m=1_000.0, to_m=2_500.0))
    assert town.trip("b1") is None and town.trip("b2") == "T0"


# --- blocks and chains ---


def test_the_block_goes_on_with_its_next_trip_and_a_departure_at_the_wrong_time_breaks_it() -> None:
    """Guessed onto T1 under way, it ends there; then it leaves at the time of T3 and not of T2."""
    shape = STRAIGHT
    timetable = feed(shape, headway_s=1_200, trips=5)
    for number in range(5):  # two buses that follow each other
        name = f"T{number}"
        timetable.trips[name] = msgspec.structs.replace(timetable.trips[name], block_id=f"B{number % 2}")
    town, bus = Town(timetable), silent()
    end_ms = START + round(shape.length_m / SPEED * 1000)
    town.fold(bus.stand(START - 60_000, 0.0, 60), bus.drive(START, to_m=shape.length_m))
    assert town.said("COMPLETED") == [("T0", "LAST_STOP")]
    back = Bus(shape, trip_id=None)
    town.fold(back.drive(end_ms + 10_000, from_m=shape.length_m, to_m=0.0, speed=25.0))
    town.fold(back.stand(end_ms + 300_000, 0.0, 300))
    assert town.said("ASSIGNED")[-1] == ("T2", "BLOCK")
    town.fold(back.drive(START + 3 * 1_200_000 + 20_000, to_m=1_500.0))
    assert town.trip() == "T3"


# --- people ---


def test_an_order_moves_the_bus_at_once_and_holds_until_it_is_taken_back() -> None:
    town, bus = Town(feed(headway_s=120, block=False)), Bus(STRAIGHT, trip_id="T0")
    town.fold(bus.drive(START, to_m=1_500.0))
    town.tracker.rule(ordered("T1", "b1", START + 190_000))
    town.fold(bus.drive(START + 190_000, from_m=1_500.0, to_m=2_000.0))
    assert town.ride() is not None and (town.trip(), town.ride().given_by) == ("T1", DISPATCHER)  # type: ignore[union-attr]
    assert town.said("UNASSIGNED") == [("T0", DISPATCHER)]
    town.tracker.rule(Rules(2))
    town.fold(bus.drive(START + 255_000, from_m=2_000.0, to_m=2_400.0))
    assert town.trip() == "T0" and ("T1", "ORDER_WITHDRAWN") in town.said("UNASSIGNED")


def test_an_ordered_trip_is_nobody_elses_whatever_a_device_says() -> None:
    town = Town()
    named = Bus(STRAIGHT, bus_id="b2", trip_id="T0")
    town.fold(named.drive(START, to_m=500.0))
    assert town.trip("b2") == "T0"
    town.tracker.rule(ordered("T0", "b1"))
    town.fold(named.drive(START + 64_000, from_m=500.0, to_m=1_500.0))
    assert town.trip("b2") != "T0" and town.said("UNASSIGNED", "b2") == [("T0", "ORDERED_ELSEWHERE")]


def test_a_trip_under_way_is_driven_to_its_end_before_an_ordered_one_that_departs_after_it() -> None:
    town, bus = Town(), Bus(STRAIGHT, trip_id="T0")
    town.tracker.rule(ordered("T1", "b1"))
    town.fold(bus.drive(START + 900_000, to_m=2_000.0))  # 15 min late, T1 departs in 41
    assert town.trip() == "T0"
    end = Bus(STRAIGHT, trip_id=None)
    town.fold(end.drive(START + 1_155_000, from_m=2_000.0), end.stand(START + 1_700_000, STRAIGHT.length_m, 60))
    assert town.ride() is not None and (town.trip(), town.ride().given_by) == ("T1", DISPATCHER)  # type: ignore[union-attr]


def test_three_hours_past_its_end_an_order_is_forgotten() -> None:
    town, bus = Town(), silent()
    town.tracker.rule(ordered("T0", "b1"))
    town.fold(bus.stand(START, 0.0, 60))
    assert town.trip() == "T0"
    over_ms = instance_of(HOURLY).arrival_ms(12) + LATE_FOR_EVER_MS
    town.fold(bus.stand(over_ms + 10_000, 0.0, 60))
    assert town.trip() is None and town.said("UNASSIGNED") == [("T0", "OVER")]


# --- what never depends on the order ---


@given(st.randoms(use_true_random=False), st.sampled_from(["T0", None]))
@settings(max_examples=25, deadline=None)
def test_any_order_inside_three_seconds_any_duplicate_and_any_split_give_one_state_and_one_story(
    chance: random.Random, named: str | None
) -> None:
    bus = Bus(STRAIGHT, trip_id=named, noise_m=6.0)
    fixes = [
        *bus.stand(START - 60_000, 0.0, 60),
        *bus.drive(START + 5_000, to_m=1_600.0),
        *bus.drive(START + 206_000, from_m=1_600.0, to_m=1_900.0, aside_m=300.0),
    ]
    plain, mixed = Town(CLOSE), Town(CLOSE)
    plain.fold(fixes)
    jumbled = [msgspec.structs.replace(fix, received_at_ms=fix.fixed_at_ms + chance.randrange(200, 2_900)) for fix in fixes]
    jumbled += [chance.choice(jumbled) for _ in range(20)]
    jumbled.sort(key=lambda fix: (fix.received_at_ms, chance.random()))
    mixed.fold(jumbled)
    for town in (plain, mixed):
        town.tick(fixes[-1].fixed_at_ms + 10_000)
    one, other = plain.tracker._vehicles["b1"].base, mixed.tracker._vehicles["b1"].base
    assert (one.ride, one.match, one.trail) == (other.ride, other.match, other.trail)
    assert sorted(map(repr, plain.events)) == sorted(map(repr, mixed.events))


@pytest.mark.parametrize("day", ["20260328", "20260329", "20261024", "20261025"])
def test_trips_of_both_dst_days_are_found_by_the_clock(day: str) -> None:
    """Also after midnight: 24:30 belongs to the day before."""
    from datetime import date
    from zoneinfo import ZoneInfo

    made = feed(block=False, headway_s=3_600, trips=18)
    timetable = Timetable(
        feed_id="demo", version="1", tz=ZoneInfo("Europe/Paris"), agencies={}, stops=made.stops, routes=made.routes,
        services={name: msgspec.structs.replace(each, end=date(2026, 12, 31)) for name, each in made.services.items()},
        patterns=made.patterns, trips=made.trips,
    )  # fmt: skip
    for name in ("T0", "T17"):  # 08:00 and 25:00
        instance = timetable.instance(name, day)
        assert instance is not None
        town, bus = Town(timetable), silent()
        town.fold(bus.drive(instance.departure_ms(0) + 20_000, to_m=900.0))
        assert town.ride() is not None and (town.trip(), town.ride().start_date) == (name, day)  # type: ignore[union-attr]


def test_states_follow_the_trip() -> None:
    town, bus = Town(), Bus(STRAIGHT)
    seen = []
    for part in (bus.stand(START - 300_000, 0.0, 60), bus.drive(START, to_m=1_000.0), bus.drive(START + 126_000, from_m=1_000.0)):
        town.fold(part)
        seen.append(town.ride().phase if town.ride() is not None else DEADHEAD)  # type: ignore[union-attr]
    assert seen == [LAYOVER, IN_TRIP, DONE]
