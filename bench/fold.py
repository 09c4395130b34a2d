"""CPU of tracking alone per fix: the pure tracker, without sockets, Redis or history.

    python -m bench.fold [--buses 1000] [--seconds 60] [--batch 50] [--profile FILE]

The simulator's buses over the demo network at 1 Hz, folded in order of receipt; what changed is taken and encoded after every `--batch` fixes
and the area ticks once a second, as its owner has it. The first third is not counted: trips are met for the first time there.

The step list alone is what one fix goes through (screen, board, place, begin or cross, watch, guard), with what the arrival model learns of it
and the forecast of all remaining stops that every tenth second brings; without window, settling, rows and positions.
"""

from __future__ import annotations

import argparse
import cProfile
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median

import msgspec

from bench.fleet import Fleet
from bench.network.feed import write_feed
from bench.receiver import Reading
from bench.simulate import drive_offline
from engine.tracking.eta import ArrivalModel
from engine.tracking.fix import Fix
from engine.tracking.timetable import Timetable
from engine.tracking.tracker import FORECAST_MS, Tracker, progress_of
from engine.tracking.vehicle import Area, VehicleState, advance
from ingest.gtfs import read_feed

STEPS_US = 30  # on a machine where a bare ASGI request costs 22-24 us; one that needs twice that needs twice this


def demo_timetable(today: date) -> Timetable:
    with tempfile.TemporaryDirectory() as folder:
        write_feed(Path(folder) / "demo.zip", today)
        return read_feed(Path(folder) / "demo.zip", "demo")


def fix_of(received_at_ms: int, reading: Reading) -> Fix:
    return Fix(
        reading.bus_id, reading.timestamp_ms, reading.lat, reading.lon, received_at_ms, reading.bus_id, "telemetry", reading.accuracy_m,
        reading.speed_mps, reading.bearing_deg, reading.seq, reading.trip_id, reading.start_date,
    )  # fmt: skip


def fold_all(tracker: Tracker, fixes: list[Fix], batch: int) -> tuple[float, float]:
    """CPU seconds of folding with ticks, and of taking and encoding what changed."""
    encode = msgspec.msgpack.Encoder().encode
    folding = taking = 0.0
    ticked_ms = 0
    for start in range(0, len(fixes), batch):
        began = time.process_time()
        for fix in fixes[start : start + batch]:
            if fix.received_at_ms >= ticked_ms + 1000:
                ticked_ms = fix.received_at_ms
                tracker.tick(ticked_ms)
            tracker.fold(fix)
        folded = time.process_time()
        outcome = tracker.take()
        encode((outcome.positions, outcome.forecasts, outcome.rows, outcome.events))
        folding, taking = folding + folded - began, taking + time.process_time() - folded
    return folding, taking


def steps(timetable: Timetable, fixes: list[Fix], warm: int) -> float:
    """CPU seconds of the step list for each fix after the first `warm` ones."""
    area, model = Area(timetable), ArrivalModel()
    states: dict[str, VehicleState] = {}
    foretold: dict[str, int] = {}
    began = 0.0
    for number, fix in enumerate(fixes):
        if number == warm:
            began = time.process_time()
        state, _ = advance(states.get(fix.bus_id) or VehicleState(fix.bus_id), fix, area)
        states[fix.bus_id] = state
        progress = progress_of(state, area)
        if progress is None:
            continue
        model.observe(progress)
        if fix.fixed_at_ms - foretold.get(fix.bus_id, 0) >= FORECAST_MS:
            foretold[fix.bus_id] = fix.fixed_at_ms
            model.forecast(progress, fix.received_at_ms)
    return (time.process_time() - began) / (len(fixes) - warm)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fold", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--buses", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write a profile for pstats of the counted part")
    args = parser.parse_args()
    now_ms = round(time.time() * 1000)
    timetable = demo_timetable(date.today())
    fleet = Fleet(timetable, now_ms, wanted=args.buses)
    fixes = [fix_of(received_ms, reading) for received_ms, reading in drive_offline(fleet, now_ms, args.seconds, 1.0, None)]
    third = len(fixes) // 3
    tracker = Tracker(timetable, feed_id="demo", partner_id="demo")
    fold_all(tracker, fixes[:third], args.batch)
    counted = fixes[third:]
    profile = cProfile.Profile()
    if args.profile:
        profile.enable()
    folding_s, taking_s = fold_all(tracker, counted, args.batch)
    if args.profile:
        profile.disable()
        profile.dump_stats(args.profile)
    print(f"{len(counted)} fixes of {args.buses} buses in batches of {args.batch}; verdicts {dict(tracker.counts)}")
    print(f"  fold and tick    {folding_s / len(counted) * 1e6:7.1f} us a fix")
    print(f"  take and encode  {taking_s / len(counted) * 1e6:7.1f} us a fix")
    stepped_s = steps(timetable, fixes, third)
    verdict = "pass" if stepped_s * 1e6 <= STEPS_US else "SHORT"
    shape_m = median(trip.pattern.shape.length_m for trip in timetable.trips.values())
    print(f"  step list        {stepped_s * 1e6:7.1f} us a fix (bar {STEPS_US} us, {verdict}); median shape {shape_m / 1000:.1f} km")
    return 0 if verdict == "pass" else 1


if __name__ == "__main__":
    sys.exit(main())
