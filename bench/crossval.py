"""Constants of the arrival estimator, chosen on some recorded days and judged on the others.

    python -m bench.crossval --data DIR [--days A,B,C] [--try pace.noise_s=20,25,30] [--thin 4] [--history]

DIR holds a folder for each day with `gtfs.zip` and `fixes.csv.gz`. What the estimator is fed on a day is recorded once (a minute a day) and kept
under `--cache`; then the estimator alone runs over it, with its constants of today and with each value of every `--try` (names as `timepoint
replay --set` has them; several values after commas, several --try one after the other). For each: MAE and score as `timepoint score` has them,
mean error and coverage by predicted horizon, and the difference of the MAE to today's constants with its 95 % interval by a bootstrap over
trips. Then, day left out by day left out: the value that was best on the other days, and what it gave on this one. Take a value only where
it lowers the error on days that it was not chosen on. `--history` runs each day once more, begun from what each other day had learned.
Thinned runs are for comparing errors: intervals and biases need `--thin 1`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.recording import Day, Report, recorded
from engine.errors import Invalid
from engine.tracking.accuracy import POOLED_S
from engine.tracking.eta import ArrivalModel
from engine.tracking.overrides import configured
from engine.tracking.score import TIMEPOINT, Result, Samples, result_of
from ingest.gtfs import read_feed

DRAWS, SEED = 1000, 5
BIAS_TO_S, BIAS_MOST_S, COVERED = 600.0, 10.0, (0.76, 0.84)
TODAY = "as it is"

Floats = NDArray[np.float64]


class Judged(NamedTuple):
    """One variant on one day: the figures, and by ride the sum of absolute errors to 15 min ahead and how many there are."""

    result: Result
    sums: Floats
    counts: Floats


def judged(samples: Samples) -> Judged:
    error = np.abs(samples.actual_s - samples.predicted_s[TIMEPOINT])
    known = ~np.isnan(error) & (samples.actual_s <= POOLED_S)
    ride, size = samples.ride[known], len(samples.rides)
    return Judged(
        result_of(TIMEPOINT, samples),
        np.bincount(ride, error[known], size).astype(np.float64),
        np.bincount(ride, minlength=size).astype(np.float64),
    )


def difference(ours: Judged, theirs: Judged) -> tuple[float, float, float]:
    """MAE of ours less theirs, and its 95 % interval over draws of trips."""
    chance = np.random.default_rng(SEED)
    draws = chance.multinomial(len(ours.sums), np.full(len(ours.sums), 1 / len(ours.sums)), DRAWS)
    found = draws @ ours.sums / (draws @ ours.counts) - draws @ theirs.sums / (draws @ theirs.counts)
    low, high = np.quantile(found, (0.025, 0.975))
    return float(ours.sums.sum() / ours.counts.sum() - theirs.sums.sum() / theirs.counts.sum()), float(low), float(high)


def shown(name: str, day: str, mine: Judged, today: Judged | None) -> None:
    r = mine.result
    text = f"  {name:34s} {day:22s} MAE {r.mae_s:6.2f} s  score {r.score:5.2f}  without {100 * r.missing_share:.1f} %"
    if today is not None:
        text += "  {:+.2f} s [{:+.2f}, {:+.2f}]".format(*difference(mine, today))
    print(text, flush=True)


def in_detail(mine: Judged) -> None:
    """By predicted horizon, against the bars."""
    for bucket in mine.result.by_predicted:
        if bucket.mae_s is None or bucket.bias_mean_s is None or bucket.coverage_late is None:
            continue
        faults = [] if bucket.to_s > BIAS_TO_S or abs(bucket.bias_mean_s) <= BIAS_MOST_S else ["mean error SHORT of 10 s"]
        if not COVERED[0] <= bucket.coverage_late <= COVERED[1]:
            faults.append("coverage SHORT of 76-84 %")
        print(
            f"      {bucket.from_s / 60:3.0f}-{bucket.to_s / 60:2.0f} min  MAE {bucket.mae_s:6.1f}  mean error {bucket.bias_mean_s:+6.1f}"
            f"  median {bucket.bias_median_s:+6.1f}  p10-p90 holds {100 * (bucket.coverage or 0):.1f} %,"
            f" 2nd half {100 * bucket.coverage_late:.1f} %  {', '.join(faults) or 'pass'}"
        )


def left_out(name: str, values: list[str], found: dict[str, dict[str, Judged]]) -> None:
    """For each day the value that is best on the other days (mean of the MAE relative to today's), and what it gives here."""
    for day, mine in found.items():
        others = [each for other, each in found.items() if other != day]
        if not others:
            return

        def cost(value: str, others: list[dict[str, Judged]] = others) -> float:
            return sum((each[value].result.mae_s or 0.0) / (each[TODAY].result.mae_s or 1.0) for each in others)

        best = min([TODAY, *values], key=cost)
        delta = "  {:+.2f} s [{:+.2f}, {:+.2f}]".format(*difference(mine[best], mine[TODAY])) if best != TODAY else ""
        print(f"  {name}: without {day} the best is {best}; on it {mine[best].result.mae_s:.2f} s{delta}")


@contextmanager
def bar(text: str) -> Iterator[Report]:
    """A progress bar on stderr; silent where that is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def run(day: Day, model: ArrivalModel, text: str) -> Judged:
    with bar(f"{day.name}: {text}") as report:
        return judged(day.run(model, report))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.crossval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a folder for each recorded day")
    parser.add_argument("--days", default="", metavar="A,B", help="names of some of them; without: all that have fixes")
    parser.add_argument("--try", dest="tries", action="append", default=[], metavar="NAME=V,V", help="values of a constant")
    parser.add_argument("--thin", type=int, default=1, metavar="N", help="every N-th question of each vehicle (default: all)")
    parser.add_argument("--history", action="store_true", help="each day once more, begun from each other day")
    parser.add_argument("--cache", type=Path, default=Path("run/crossval"), metavar="DIR", help="where recordings are kept")
    args = parser.parse_args()
    names = args.days.split(",") if args.days else sorted(path.parent.name for path in args.data.glob("*/fixes.csv.gz"))
    tries = [(text.partition("=")[0], text.partition("=")[2].split(",")) for text in args.tries]
    try:
        for name, values in tries:
            for value in values:
                configured({name: value})
        days = []
        for name in names:
            with bar(f"{name}: recording") as report:
                days.append(recorded(args.data / name, read_feed=read_feed, cache=args.cache, thin=args.thin, report=report))
    except (Invalid, OSError) as fault:
        print(fault, file=sys.stderr)
        return 2
    models = {day.name: ArrivalModel() for day in days}
    today = {day.name: run(day, models[day.name], TODAY) for day in days}
    for day in days:
        shown(TODAY, day.name, today[day.name], None)
        in_detail(today[day.name])
    for name, values in tries:
        found = {day.name: {TODAY: today[day.name]} for day in days}
        for value in values:
            for day in days:
                mine = found[day.name][value] = run(day, ArrivalModel(configured({name: value})[0]), f"{name}={value}")
                shown(f"{name}={value}", day.name, mine, today[day.name])
        left_out(name, values, found)
    if args.history:
        for day in days:
            for other in days:
                if other is not day and other.timetable.agencies.keys() & day.timetable.agencies.keys():
                    model = ArrivalModel()
                    model.inherit(models[other.name].dump(everything=True))
                    mine = run(day, model, f"after {other.name}")
                    shown(f"after {other.name}", day.name, mine, today[day.name])
                    in_detail(mine)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
