"""Whose trip is it? Assignment held against days whose trips are known, without the devices naming them.

    python -m bench.assignment                       # fleets simulated over the demo network
    python -m bench.assignment --data DIR            # recorded days DIR/*/{gtfs.zip,fixes.csv.gz} with labels, and fleets over the feeds
    python -m bench.assignment --feed F.zip --fixes FIXES.csv.gz

The labels are taken off, the fixes go through the tracker in order of receipt, and what it publishes of each bus is asked 3 min after the
bus left its first stop (a bus that was first seen under way: 3 min after that), and at the middle of its trip. Right: that trip instance.
Wrong: another one. None: no trip. "ever wrong" is the strict count: at any look, every 15 s, from then to a minute before the end, another
one was published. CPU of a decision is that of one look at the trips around a vehicle without one, or at a guessed one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench import assignment_fleets as fleets
from bench.assignment_truth import Drive, Tally, counted, recorded_drives, run, stripped
from bench.network.feed import write_feed
from engine.tracking import boarding
from engine.tracking.fix import Fix
from engine.tracking.replay import read_fixes
from engine.tracking.ride import Roadbook
from engine.tracking.timetable import Timetable
from ingest.gtfs import read_feed

RIGHT, WRONG, DECISION_MS = 0.97, 0.005, 5.0


class Day(NamedTuple):
    name: str
    timetable: Timetable
    fixes: list[Fix]
    drives: list[Drive]


class Clocked:
    """Times the looks of the tracker."""

    def __init__(self) -> None:
        self.took_ms: list[float] = []
        self._choices = boarding.__dict__["choices"]

    def __enter__(self) -> Clocked:
        def timed(*args: object) -> object:
            began = time.process_time_ns()
            found = self._choices(*args)
            self.took_ms.append((time.process_time_ns() - began) / 1e6)
            return found

        boarding.__dict__["choices"] = timed
        return self

    def __exit__(self, *_: object) -> None:
        boarding.__dict__["choices"] = self._choices


def recorded(name: str, feed: Path, fixes: Path) -> Day:
    timetable = read_feed(feed)
    table, _ = read_fixes(fixes)
    return Day(name, timetable, stripped(table), recorded_drives(timetable, table))


def simulated(name: str, timetable: Timetable, hours: tuple[float, float]) -> Iterator[Day]:
    """A feed's fleet three times: as published, without blocks, and with its lines by frequency."""
    day = fleets.busiest_day(timetable)
    fixes, drives = fleets.fleet(timetable, day, *hours)
    if any(trip.block_id is not None for trip in timetable.trips.values()):
        yield Day(f"{name} fleet, blocks", timetable, fixes, drives)
    yield Day(f"{name} fleet, no blocks", fleets.without_blocks(timetable), fixes, drives)
    frequent = fleets.by_frequency(timetable, day)
    fixes, drives = fleets.fleet(frequent, day, 7.0, 8.5)
    yield Day(f"{name} fleet, frequencies", frequent, fixes, drives)
    late, driven = fleets.fleet(timetable, day, 22.5, 26.0)
    if driven:
        yield Day(f"{name} fleet, past midnight", timetable, late, driven)


def days(args: argparse.Namespace) -> Iterator[Day]:
    hours = (args.hours[0], args.hours[1])
    if args.feed is not None and args.fixes is not None:
        yield recorded(args.fixes.parent.name or args.fixes.name, args.feed, args.fixes)
        return
    if args.feed is not None:
        yield from simulated(args.feed.stem, read_feed(args.feed), hours)
        return
    if args.data is None:
        with tempfile.TemporaryDirectory() as folder:
            write_feed(Path(folder) / "demo.zip", date(2026, 3, 2))
            yield from simulated("demo", read_feed(Path(folder) / "demo.zip"), hours)
        return
    for folder in sorted(each for each in args.data.iterdir() if each.is_dir()):
        if args.only and not any(word in folder.name for word in args.only):
            continue
        if (folder / "fixes.csv.gz").exists() and (folder / "gtfs.zip").exists():
            yield recorded(folder.name, folder / "gtfs.zip", folder / "fixes.csv.gz")
        elif feeds := sorted(folder.glob("gtfs_*.zip")):
            yield from simulated(folder.name, read_feed(feeds[-1]), hours)


def report(day: Day, show: int) -> tuple[Tally, list[float]]:
    """Runs one day and prints what became of it."""
    book = Roadbook(day.timetable)
    with Clocked() as clocked:
        done = run(day.timetable, day.fixes)
    sound = [drive for drive in day.drives if drive.doubt is None]
    tally = counted(sound, done.answers, book)
    departed = counted([drive for drive in sound if drive.seen], done.answers, book)
    print(f"\n{day.name}: {len(day.fixes):,} fixes, {len(sound)} trips, {len(departed_of(sound))} of them seen to depart")
    for words, each in (("all trips", tally), ("departures seen", departed)):
        count = max(1, each.trips)
        print(
            f"  {words:<16} right {each.right / count:6.1%}  wrong {each.wrong / count:5.1%}  none {each.none / count:5.1%}"
            f"   mid-trip right {each.mid_right / count:6.1%} wrong {each.mid_wrong / count:5.1%}   ever wrong {each.ever_wrong / count:5.1%}"
        )
    print(
        f"  took for it: {', '.join(f'{cause} {count}' for cause, count in tally.causes.most_common()) or 'nothing'}; switches {tally.switches}"
    )
    doubtful = [drive for drive in day.drives if drive.doubt is not None]
    if doubtful:
        reasons = sorted({drive.doubt or "" for drive in doubtful})
        named = [
            f"{reason}: {sum(d.doubt == reason for d in doubtful)} (as {next(d for d in doubtful if d.doubt == reason).name[0]})"
            for reason in reasons
        ]
        print(f"  labels not counted, {'; '.join(named)}")
    for drive, told in tally.worst[:show]:
        print(f"    {drive.bus_id} on {drive.name[0]} from {drive.begins_ms}: {told[0] if told is not None else None}")
    looks = clocked.took_ms or [0.0]
    print(
        f"  decision CPU p50 {np.percentile(looks, 50):.2f} p99 {np.percentile(looks, 99):.2f} ms of {len(looks):,} looks;"
        f" {done.seconds / max(1, done.fixes) * 1e6:.0f} us a fix in all"
    )
    return departed, looks


def departed_of(drives: Sequence[Drive]) -> list[Drive]:
    return [drive for drive in drives if drive.seen]


def verdict(name: str, value: float, bar: float, holds: bool, unit: str) -> bool:
    print(f"{name:<34} {value:8.2f} {unit}  bar {bar:g} {unit}  {'pass' if holds else 'SHORT'}")
    return holds


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.assignment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--feed", type=Path, metavar="F.zip")
    parser.add_argument("--fixes", type=Path, metavar="FIXES.csv")
    parser.add_argument("--only", nargs="*", metavar="WORD", help="folders of --data whose name has one of these words in it")
    parser.add_argument("--hours", nargs=2, type=float, default=(6.5, 9.5), metavar=("FROM", "TO"), help="of simulated fleets")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="name so many trips that were not right")
    args = parser.parse_args()
    trips = right = wrong = 0
    slowest = 0.0
    for day in days(args):
        tally, looks = report(day, args.show)
        trips, right, wrong = trips + tally.trips, right + tally.right, wrong + tally.wrong
        slowest = max(slowest, float(np.percentile(looks, 99)))
    count = max(1, trips)
    print()
    held = [
        verdict("right 3 min after departure", 100 * right / count, 100 * RIGHT, right >= RIGHT * count, "%"),
        verdict("wrong 3 min after departure", 100 * wrong / count, 100 * WRONG, wrong <= WRONG * count, "%"),
        verdict("CPU of a decision, p99 of the worst", slowest, DECISION_MS, slowest <= DECISION_MS, "ms"),
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
