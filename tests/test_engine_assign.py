"""Assignment: whose trip it is when the device does not say."""

from __future__ import annotations

import msgspec

from engine.tracking.assign import LOOKS, Trail, choices, choose, walked
from engine.tracking.fix import Fix, Motion, screen
from engine.tracking.ride import Roadbook
from engine.tracking.timetable import Timetable
from engine.tracking.tracker import Tracker
from tests.small_world import SPEED, STRAIGHT, Bus, feed, instance_of, line

TIMETABLE = feed(headway_s=600)
START = instance_of(TIMETABLE, "T1").departure_ms(0)


def looked(
    fixes: list[Fix], timetable: Timetable = TIMETABLE, driven: tuple[str, ...] = (), block_id: str | None = None
) -> tuple[str | None, Trail]:
    """Every place of the trail is one look; the first trip that comes out."""
    book, trail, motion = Roadbook(timetable), Trail(block_id=block_id), None
    for fix in fixes:
        motion, _ = screen(motion, fix)
        longer = walked(trail, motion)
        if longer is trail:
            continue
        trail, found = choose(longer, choices(longer, motion, book), lambda choice: choice.instance.trip.trip_id not in driven)
        if found is not None:
            return found.instance.trip.trip_id, trail
    return None, trail


def silent_bus() -> Bus:
    return Bus(STRAIGHT, trip_id=None, noise_m=5.0)


def test_the_trip_that_is_due_here_now_is_taken() -> None:
    trip_id, _ = looked(list(silent_bus().drive(START + 125_000, from_m=1_000.0, to_m=1_600.0)))
    assert trip_id == "T1"


def test_a_late_bus_keeps_its_trip_because_early_counts_three_times() -> None:
    late_ms = 240_000  # 4 min late on T1, 6 min early on T2
    assert looked(list(silent_bus().drive(START + 125_000 + late_ms, from_m=1_000.0, to_m=1_600.0)))[0] == "T1"


def test_between_two_departures_it_takes_three_looks() -> None:
    """7.5 min late on T1 (450 s) or 2.5 min early on T2 (450 s), seen to leave the first stop."""
    trip_id, trail = looked(list(silent_bus().drive(START + 450_000, to_m=1_000.0)))
    assert trip_id in ("T1", "T2") and trail.looks == LOOKS


def test_a_bus_found_under_way_must_have_driven_some_of_the_line() -> None:
    """A bus that comes from elsewhere may share a line's street for a while."""
    assert looked(list(silent_bus().drive(START + 125_000, from_m=1_000.0, to_m=1_350.0)))[0] is None
    assert looked(list(silent_bus().drive(START + 125_000, from_m=1_000.0, to_m=1_600.0)))[0] == "T1"


def test_a_trip_that_another_bus_drives_is_not_given_twice() -> None:
    assert looked(list(silent_bus().drive(START + 125_000, from_m=1_000.0, to_m=1_600.0)), driven=("T1",))[0] != "T1"


def test_a_bus_that_drives_the_line_backwards_gets_no_trip() -> None:
    fixes = list(silent_bus().drive(START + 125_000, from_m=2_500.0, to_m=1_000.0))
    assert looked(fixes)[0] is None


def test_a_parked_bus_is_not_looked_at() -> None:
    trail = Trail()
    motion: Motion | None = None
    for fix in silent_bus().stand(START, 1_000.0, 600):
        motion, _ = screen(motion, fix)
        trail = walked(trail, motion)
    assert len(trail.places) == 1


def test_on_a_street_that_is_driven_both_ways_the_direction_decides() -> None:
    """Out and back on one street: at 11:00 minutes the bus may be on either arc, but it drives home."""
    shape = line([(0, 0), (3_000, 0), (0, 0)], "out_and_back")
    timetable = feed(shape, trips=1)
    start = instance_of(timetable).departure_ms(0)
    bus = Bus(shape, trip_id=None)
    tracker = Tracker(timetable, feed_id="demo", partner_id="P")
    for fix in bus.drive(start + round(4_000 / SPEED * 1000), from_m=4_000.0, to_m=4_600.0):
        tracker.fold(fix)
    match = tracker._vehicles["b1"].newest.match
    assert match is not None and abs(match.along_m - 4_600.0) < 30


def test_a_wrong_guess_is_given_up_when_the_bus_drives_elsewhere() -> None:
    tracker = Tracker(TIMETABLE, feed_id="demo", partner_id="P")
    bus = silent_bus()
    fixes = list(bus.drive(START + 125_000, from_m=1_000.0, to_m=1_600.0))
    at_ms = fixes[-1].fixed_at_ms
    fixes += [bus.at(at_ms + k * 5_000, 1_600.0 + 4 * k, -30.0 * k) for k in range(1, 120)]
    for fix in fixes:
        tracker.fold(fix)
    assert tracker._vehicles["b1"].newest.ride is None


def test_of_two_trips_at_one_time_the_block_decides() -> None:
    twins = feed(trips=2, headway_s=0)
    twins.trips["T0"] = msgspec.structs.replace(twins.trips["T0"], block_id="A")
    start = instance_of(twins).departure_ms(0)
    fixes = list(silent_bus().drive(start + 125_000, from_m=1_000.0, to_m=1_600.0))
    assert looked(fixes, twins, block_id="A")[0] == "T0"
    assert looked(fixes, twins, block_id="B")[0] == "T1"
