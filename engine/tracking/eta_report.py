"""How good arrivals were, in depth: the figures behind `timepoint eta-report`.

Pure figures over the samples of `score.py`: intervals by a bootstrap over rides (samples of one ride err together, so rides are drawn, not
samples), error by hour and by route, what two replays differ by on the same samples, and the bars that the product sets itself. The draws come
from a fixed seed: the same replays give the same report, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.errors import Invalid
from engine.tracking.accuracy import POOLED_S
from engine.tracking.score import (
    DELAY,
    HORIZONS_S,
    SCHEDULE,
    TIMEPOINT,
    Bucket,
    Gathered,
    Report,
    Result,
    Samples,
    gather,
    report_of,
    result_of,
)
from engine.tracking.timetable import Timetable

DRAWS: Final = 2_000
SEED: Final = 20_260_216
SHARE: Final = 0.95  # of an interval
RIDES_LEAST: Final = 5  # fewer give no interval worth showing
BIAS_MOST_S, BIAS_TO_S = 10.0, 600.0
MISSING_MOST: Final = 0.05
COVERED: Final = (0.76, 0.84)
SCHEDULE_FROM_S: Final = 1_800.0  # beyond, the timetable itself is the rival
SAMPLES_LEAST: Final = 200  # a bucket with fewer is shown without a verdict
PASS, SHORT = "pass", "SHORT"

Floats = NDArray[np.float64]


class DayBars(NamedTuple):
    """What one recorded day must reach, first and then; None: nothing is asked."""

    name: str
    mae_first_s: float
    mae_then_s: float
    score_first: float | None = None
    score_then: float | None = None


# by the digest of the recorded fixes: the days that the bars name. Any other day is held against the bars that hold everywhere.
DAYS: Final[Mapping[str, DayBars]] = {
    "0e4962d687304998e50f7d9244aa51b036e02d5ff017277d627952b29c33a8d0": DayBars("Washington, 16 February 2026", 78, 72, 68, 73),
    "9b5cfa398e9c0c1bf2e6ab0716bfb0b55e08ade2a4fd400ca25c1f180adb4f37": DayBars("Austin, 7 March 2015", 75, 66),
    "0c0de26366ef4458827cff040d9d13a2e4c3374e7bb23370394906dbc00088a4": DayBars("Austin, 7 June 2015", 78, 69),
}


class Interval(msgspec.Struct, frozen=True):
    """A figure with the range that holds it in 95 % of the draws; no range where there were too few rides."""

    value: float
    low: float | None
    high: float | None
    rides: int


class Bar(msgspec.Struct, frozen=True):
    """One figure, what it must be, and whether it is. None: too few samples to say."""

    what: str
    figure: str
    bar: str
    verdict: str | None


class Part(msgspec.Struct, frozen=True):
    """The samples to 15 min ahead of one hour of the day, or of one route."""

    name: str
    rides: int
    samples: int
    score: float
    missing: float
    mae: Interval | None  # None: no value at all
    p90_s: float | None
    bias_s: float | None  # median
    early: float | None
    rivals_s: dict[str, float | None]  # MAE of the plain predictors on the same samples


class Gain(msgspec.Struct, frozen=True):
    """What another replay differs by on one bucket of samples that both have a value for: MAE there minus MAE here."""

    from_s: float
    to_s: float
    samples: int
    here_s: float
    there_s: float
    difference: Interval


class Comparison(msgspec.Struct, frozen=True):
    """A replay against another one of the same recording. `difference` = MAE here minus MAE there: negative, this one is better."""

    name: str
    common: int
    only_here: int  # samples with a value here alone
    only_there: int
    difference: Interval
    score: float
    score_there: float
    by_actual: list[Gain]
    routes: list[tuple[str, int, float, float]]  # route, common samples, MAE here, there; the worst change first


class EtaReport(msgspec.Struct, frozen=True):
    """One replay in depth."""

    name: str
    manifest: dict[str, Any]
    report: Report
    mae: dict[str, Interval]  # of every predictor, to 15 min
    day: str | None  # the recorded day that the bars name; None: another one
    bars: list[Bar]
    hours: list[Part]
    routes: list[Part]
    comparison: Comparison | None = None

    @property
    def ours(self) -> Result:
        return next(one for one in self.report.results if one.name == TIMEPOINT)


def eta_report(
    out: Path, *, read_feed: Callable[[Path], Timetable], against: Path | None = None, arrivals: Path | None = None
) -> EtaReport:
    """The report of the replay in the folder OUT, beside the one in AGAINST where it is given. Raises `Invalid`."""
    here = gather(out, read_feed=read_feed, arrivals=arrivals)
    report = report_of(here)
    comparison = None
    if against is not None:
        there = gather(against, read_feed=read_feed, arrivals=arrivals)
        if here.manifest["fixes"]["sha256"] != there.manifest["fixes"]["sha256"]:
            raise Invalid(f"{out} and {against} are replays of different fixes: there is nothing to compare sample by sample")
        comparison = compared(str(against), here.samples, there.samples)
    near = here.samples.where(here.samples.actual_s <= POOLED_S)
    day = DAYS.get(here.manifest["fixes"]["sha256"])
    return EtaReport(
        name=str(out),
        manifest=here.manifest,
        report=report,
        mae={name: found for name in near.predicted_s if (found := _mae(near, name)) is not None},
        day=day.name if day is not None else None,
        bars=list(bars(report, day)),
        hours=_hours(near, here.timetable.tz),
        routes=_routes(near, here),
        comparison=comparison,
    )


# -- intervals --------------------------------------------------------------------------------------------------------------------------


def interval(sums: Floats, counts: Floats) -> Interval:
    """A ratio of sums over rides with its bootstrap interval. `counts` are positive somewhere."""
    value = float(sums.sum() / counts.sum())
    n = len(sums)
    if n < RIDES_LEAST:
        return Interval(round(value, 2), None, None, n)
    rng = np.random.default_rng(SEED)
    ratios = np.empty(DRAWS)
    step = max(1, 4_000_000 // n)
    for start in range(0, DRAWS, step):
        weights = rng.multinomial(n, np.full(n, 1 / n), size=min(step, DRAWS - start)).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios[start : start + len(weights)] = (weights @ sums) / (weights @ counts)
    low, high = np.nanquantile(ratios, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return Interval(round(value, 2), round(float(low), 2), round(float(high), 2), n)


def _by_ride(ride: NDArray[np.int64], values: Floats) -> tuple[Floats, Floats]:
    """Sum and count of the values of every ride that has any."""
    counts = np.bincount(ride).astype(np.float64)
    sums: Floats = np.bincount(ride, weights=values).astype(np.float64)
    return sums[counts > 0], counts[counts > 0]


def _mae(samples: Samples, name: str) -> Interval | None:
    error = np.abs(samples.actual_s - samples.predicted_s[name])
    known = ~np.isnan(error)
    return interval(*_by_ride(samples.ride[known], error[known])) if known.any() else None


# -- bars -------------------------------------------------------------------------------------------------------------------------------


def bars(report: Report, day: DayBars | None) -> Iterator[Bar]:
    """Every bar on arrivals, with its verdict. Those of a named day come first."""
    results = {each.name: each for each in report.results}
    ours, delay, schedule = results[TIMEPOINT], results[DELAY], results[SCHEDULE]
    if day is not None:
        for word, mae_s, least in (("first", day.mae_first_s, day.score_first), ("then", day.mae_then_s, day.score_then)):
            yield _bar(f"MAE to 15 min, {word} bar", ours.mae_s, f"<= {mae_s:.0f} s", most=mae_s, unit="s")
            if least is not None:
                yield _bar(f"score, {word} bar", ours.score, f">= {least:.0f}", least=least)
    yield _bar("samples without a value", ours.missing_share, "<= 5 %", most=MISSING_MOST, unit="%")
    for bucket in ours.by_predicted:
        if bucket.to_s <= BIAS_TO_S:
            for word, bias in (("median", bucket.bias_median_s), ("mean", bucket.bias_mean_s)):
                what = f"{word} error, {span_text(bucket)} foretold"
                yield _bar(what, bias, "within 10 s", bucket.samples, least=-BIAS_MOST_S, most=BIAS_MOST_S, unit="s")
    for bucket in ours.by_predicted:
        what = f"p10-p90 holds in the 2nd half, {span_text(bucket)} foretold"
        yield _bar(what, bucket.coverage_late, "76-84 %", bucket.samples, least=COVERED[0], most=COVERED[1], unit="%")
    for mine, theirs in zip(ours.by_actual, delay.by_actual, strict=True):
        if theirs.mae_s is not None:
            what = f"MAE {span_text(mine)}, schedule + delay has more"
            yield _bar(what, mine.mae_s, f"< {theirs.mae_s:.1f} s", mine.samples, below=theirs.mae_s, unit="s")
    for mine, theirs in zip(ours.by_actual, schedule.by_actual, strict=True):
        if theirs.mae_s is not None and mine.from_s >= SCHEDULE_FROM_S:
            what = f"MAE {span_text(mine)}, the static schedule has more"
            yield _bar(what, mine.mae_s, f"< {theirs.mae_s:.1f} s", mine.samples, below=theirs.mae_s, unit="s")


def _bar(
    what: str,
    value: float | None,
    bar: str,
    samples: int = SAMPLES_LEAST,
    *,
    least: float = -np.inf,
    most: float = np.inf,
    below: float = np.inf,
    unit: str = "",
) -> Bar:
    if value is None:
        return Bar(what, "-", bar, None)
    figure = f"{100 * value:.1f} %" if unit == "%" else f"{value:.1f}{unit and ' ' + unit}"
    holds = least <= value <= most and value < below
    return Bar(what, figure, bar, None if samples < SAMPLES_LEAST else PASS if holds else SHORT)


def span_text(bucket: Bucket | Gain) -> str:
    """Minutes of a bucket."""
    return f"{bucket.from_s / 60:.0f}-{bucket.to_s / 60:.0f} min"


# -- parts ------------------------------------------------------------------------------------------------------------------------------


def _hours(near: Samples, tz: ZoneInfo) -> list[Part]:
    """By the local hour at which the forecast was made."""
    quarters, place = np.unique((near.at_s // 900).astype(np.int64), return_inverse=True)  # zones lie at quarters of an hour
    local = np.array([datetime.fromtimestamp(int(quarter) * 900, tz).hour for quarter in quarters], dtype=np.int64)
    hours = local[place] if len(quarters) else place
    return [_part(f"{hour:02d}", near.where(hours == hour)) for hour in np.unique(hours)]


def _routes(near: Samples, here: Gathered) -> list[Part]:
    """Worst MAE first."""
    names, place = np.unique([one.route_id for one in near.rides], return_inverse=True)
    of = place[near.ride] if len(near.ride) else np.empty(0, dtype=np.int64)
    parts = []
    for number, route_id in enumerate(names):
        mask = of == number
        if mask.any():
            route = here.timetable.routes.get(str(route_id))
            parts.append(_part((route.short_name or route.long_name if route else "") or str(route_id), near.where(mask)))
    return sorted(parts, key=lambda part: (-(part.mae.value if part.mae else 0.0), part.name))


def _part(name: str, samples: Samples) -> Part:
    results = {each: result_of(each, samples) for each in samples.predicted_s}
    ours = results[TIMEPOINT]
    return Part(
        name=name,
        rides=len(np.unique(samples.ride)),
        samples=len(samples.actual_s),
        score=ours.score,
        missing=ours.missing_share,
        mae=_mae(samples, TIMEPOINT),
        p90_s=ours.p90_s,
        bias_s=ours.bias_median_s,
        early=ours.early_share,
        rivals_s={each: result.mae_s for each, result in results.items() if each != TIMEPOINT},
    )


# -- two replays ------------------------------------------------------------------------------------------------------------------------


def compared(name: str, here: Samples, there: Samples) -> Comparison:
    """Two replays of one recording, sample by sample: those that both have (they may have given some trips to other vehicles)."""
    i, j = _common(here, there)
    one, other = _picked(here, i), _picked(there, j)
    mine, theirs = (np.abs(each.actual_s - each.predicted_s[TIMEPOINT]) for each in (one, other))
    near = one.actual_s <= POOLED_S
    known, known_there = ~np.isnan(mine), ~np.isnan(theirs)
    both = known & known_there
    if not (both & near).any():
        raise Invalid(f"{name}: no sample has a value in both replays")
    step = mine - theirs
    gains = []
    for low, high in pairwise(HORIZONS_S):
        part = both & (one.actual_s > low) & (one.actual_s <= high)
        if part.any():
            difference = interval(*_by_ride(one.ride[part], step[part]))
            gains.append(Gain(low, high, int(part.sum()), _mean(mine[part]), _mean(theirs[part]), difference))
    part = both & near
    return Comparison(
        name=name,
        common=int(part.sum()),
        only_here=int((near & known & ~known_there).sum()) + _alone(here, i),
        only_there=int((near & known_there & ~known).sum()) + _alone(there, j),
        difference=interval(*_by_ride(one.ride[part], step[part])),
        score=result_of(TIMEPOINT, here).score,
        score_there=result_of(TIMEPOINT, there).score,
        by_actual=gains,
        routes=_changed_routes(one.where(part), mine[part], theirs[part]),
    )


def _mean(values: Floats) -> float:
    return round(float(values.mean()), 2)


def _common(here: Samples, there: Samples) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the same samples in both: same ride, stop and instant."""
    number = {each: i for i, each in enumerate(here.rides)}
    same = np.array([number.get(each, -1) for each in there.rides], dtype=np.int64)
    rides = here.ride, same[there.ride] if len(there.ride) else there.ride
    stops, stop = np.unique(np.concatenate([here.stop, there.stop]), return_inverse=True)
    instants, instant = np.unique(np.rint(np.concatenate([here.at_s, there.at_s])).astype(np.int64), return_inverse=True)
    key = (np.concatenate(rides) * len(stops) + stop) * len(instants) + instant
    i = np.flatnonzero(rides[0] >= 0)
    j = np.flatnonzero(rides[1] >= 0)
    _, one, other = np.intersect1d(key[i], key[len(here.ride) + j], return_indices=True)
    return i[one], j[other]


def _picked(samples: Samples, index: NDArray[np.int64]) -> Samples:
    predicted = {name: values[index] for name, values in samples.predicted_s.items()}
    columns = (samples.p10_s[index], samples.p90_s[index], samples.ride[index], samples.stop[index])
    return Samples(samples.actual_s[index], samples.at_s[index], predicted, *columns, samples.rides)


def _alone(samples: Samples, index: NDArray[np.int64]) -> int:
    """Samples to 15 min with a value that the other replay does not have at all."""
    mask = (samples.actual_s <= POOLED_S) & ~np.isnan(samples.predicted_s[TIMEPOINT])
    mask[index] = False
    return int(mask.sum())


def _changed_routes(samples: Samples, mine: Floats, theirs: Floats) -> list[tuple[str, int, float, float]]:
    names = np.array([one.route_id for one in samples.rides])[samples.ride]
    rows = []
    for name in np.unique(names):
        part = names == name
        rows.append((str(name), int(part.sum()), _mean(mine[part]), _mean(theirs[part])))
    return sorted(rows, key=lambda row: (-(row[2] - row[3]) * row[1], row[0]))
