"""How good the arrivals of a replay were, beside plain predictors on the same samples.

A sample is (crossing, instant): every multiple of 30 s from the vehicle's first fix on the trip up to the crossing, at most 60 min ahead.
The score is TransitApp's ETA Accuracy Benchmark: samples by time to the actual arrival, and the share of them where the bus came at most so
much before and at most so much after the prediction (`WINDOWS`); the mean of the four shares. A sample without a value is a miss.
The windows allow more lateness than earliness, so early-shifted predictions score higher: mean and median bias stand beside it.

Error = actual - predicted, seconds: positive means that the bus came later than we said. Crossings come from `truth`, not from the tracker,
or from a file. Baselines know what had been received by the instant: the timetable; the timetable plus the delay at the last fix; the rest of
the way at the mean speed of the last five minutes.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
from array import array
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from engine.errors import Invalid
from engine.tracking.accuracy import EARLY_S, FAR_S, POOLED_S, WINDOWS
from engine.tracking.replay import read_fixes
from engine.tracking.timetable import Timetable
from engine.tracking.truth import Ride, RideKey, rides

SAMPLE_MS = 30_000
HORIZONS_S = (0.0, 60.0, 180.0, 360.0, 600.0, 900.0, 1800.0, 3600.0)  # edges; the first five make the 15 min of the pooled figures
SPEED_LEAST_MPS, SPEED_WINDOW_MS = 1.0, 300_000
TIMEPOINT, SCHEDULE, DELAY, SPEED = "timepoint", "static schedule", "schedule + delay", "distance / speed"

Floats = NDArray[np.float64]
Times = NDArray[np.int64]


class Bucket(msgspec.Struct, frozen=True, rename="camel"):
    """Samples whose horizon lies in (from_s, to_s]: by time to the actual arrival, or as predicted. None: no sample with a value."""

    from_s: float
    to_s: float
    samples: int
    mae_s: float | None
    p90_s: float | None
    bias_mean_s: float | None
    bias_median_s: float | None
    coverage: Annotated[float | None, Meta(description="share of actual arrivals within p10..p90; None for predictors without")] = None
    coverage_late: Annotated[float | None, Meta(description="the same in the second half of the recorded time: held out")] = None


class Result(msgspec.Struct, frozen=True, rename="camel"):
    """One predictor on all samples."""

    name: str
    score: float
    in_window: list[float]
    mae_s: float | None
    p90_s: float | None
    bias_mean_s: float | None
    bias_median_s: float | None
    early_share: float | None
    missing_share: float
    by_actual: list[Bucket]
    by_predicted: list[Bucket]


class Report(msgspec.Struct, frozen=True, rename="camel"):
    """The figures of one replay. `samples` and the pooled figures of a `Result` reach to 15 min, `by_actual` and `by_predicted` to 60."""

    truth: str
    rides: int
    crossings: int
    samples: int
    results: list[Result]


class RideName(msgspec.Struct, frozen=True):
    """Whose samples they are."""

    vehicle_id: str
    trip_id: str
    start_date: str
    route_id: str


class Samples(msgspec.Struct):
    """Columns of equal length, seconds: time to the actual arrival, time of the sample, and each predictor's horizon (NaN: no value);
    `ride` is an index of `rides`, `stop` the stop's sequence."""

    actual_s: Floats
    at_s: Floats
    predicted_s: dict[str, Floats]
    p10_s: Floats
    p90_s: Floats
    ride: NDArray[np.int64]
    stop: NDArray[np.int64]
    rides: list[RideName]

    def where(self, mask: NDArray[np.bool_]) -> Samples:
        """Those of the mask; `rides` stays as it is."""
        predicted = {name: values[mask] for name, values in self.predicted_s.items()}
        columns = (self.p10_s[mask], self.p90_s[mask], self.ride[mask], self.stop[mask])
        return Samples(self.actual_s[mask], self.at_s[mask], predicted, *columns, self.rides)


class Gathered(msgspec.Struct):
    """A replay with its truth, sample by sample."""

    manifest: dict[str, Any]
    timetable: Timetable
    truth: str
    rides: int
    crossings: int
    samples: Samples


def score(out: str | Path, *, read_feed: Callable[[Path], Timetable], arrivals: str | Path | None = None) -> Report:
    """Score the replay in the folder OUT and write `score.json` and `score.svg` beside it.

    `read_feed` is `ingest.gtfs.read_feed`. `arrivals` is a file of crossings `vehicle_id,trip_id,start_date,stop_sequence,arrived_at_ms`
    (plain or gzip); None: derived from the fixes that the manifest names. Raises `Invalid` where OUT is no replay or its inputs changed.
    """
    from engine.tracking.score_show import chart

    out = Path(out)
    report = report_of(gather(out, read_feed=read_feed, arrivals=arrivals))
    (out / "score.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    (out / "score.svg").write_text(chart(report), encoding="utf-8")
    return report


def gather(out: Path, *, read_feed: Callable[[Path], Timetable], arrivals: str | Path | None = None) -> Gathered:
    """What `score` looks at; writes nothing. Raises as `score` does."""
    manifest = read_manifest(out)
    feed, fixes_path = (_same(manifest, name) for name in ("feed", "fixes"))
    fixes, _ = read_fixes(fixes_path)
    named = all(fix.trip_id and fix.start_date for fix in fixes)
    timetable = read_feed(feed)
    found = rides(fixes, timetable, {} if named else _assigned(out / "progress.csv"))
    if arrivals is not None:
        found = _with_arrivals(found, Path(arrivals))
    return Gathered(
        manifest=manifest,
        timetable=timetable,
        truth="derived from the fixes" if arrivals is None else str(arrivals),
        rides=len(found),
        crossings=int(sum((ride.crossed_at_ms > 0).sum() for ride in found.values())),
        samples=_samples(found, _predictions(out / "predictions.csv")),
    )


def report_of(gathered: Gathered) -> Report:
    """The figures of all samples."""
    return Report(
        truth=gathered.truth,
        rides=gathered.rides,
        crossings=gathered.crossings,
        samples=int((gathered.samples.actual_s <= POOLED_S).sum()),
        results=[result_of(name, gathered.samples) for name in gathered.samples.predicted_s],
    )


# -- inputs -----------------------------------------------------------------------------------------------------------------------------


def read_manifest(out: Path) -> dict[str, Any]:
    """What a replay says of itself. Raises `Invalid` where the folder is none."""
    try:
        found: dict[str, Any] = msgspec.json.decode((out / "manifest.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as fault:
        raise Invalid(f"{out}: no manifest.json of a replay: {fault}") from fault
    return found


def _same(manifest: Mapping[str, Any], name: str) -> Path:
    """The input that the manifest names, as it was."""
    try:
        path, digest = Path(manifest[name]["path"]), manifest[name]["sha256"]
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise Invalid(f"{path}: changed since the replay; replay again")
    except (KeyError, TypeError) as fault:
        raise Invalid(f"manifest.json: says no path and sha256 of {name}") from fault
    except OSError as fault:
        raise Invalid(f"{path}: named by the manifest, cannot be read: {fault.strerror}") from fault
    return path


def read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[list[str]]:
    """The named columns of a CSV file, plain or gzip. Raises `Invalid` with file and line."""
    try:
        raw = path.open("rb")
    except OSError as fault:
        raise Invalid(f"{path}: cannot be read: {fault.strerror}") from fault
    with raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with io.TextIOWrapper(gzip.open(raw) if packed else raw, "utf-8-sig", newline="") as text:
            rows = csv.reader(text)
            try:
                header = next(rows, [])
                missing = [name for name in columns if name not in header]
                if missing:
                    raise Invalid(f"{path}:1: missing columns: {', '.join(missing)}")
                places = [header.index(name) for name in columns]
                for row in rows:
                    if row:
                        yield [row[i] for i in places]
            except (IndexError, csv.Error, EOFError, gzip.BadGzipFile, UnicodeDecodeError) as fault:
                raise Invalid(f"{path}:{rows.line_num}: {fault}") from fault


def _assigned(path: Path) -> dict[tuple[str, int], tuple[str, str]]:
    """What trip the engine gave each fix, for recordings that name none."""
    columns = ("vehicle_id", "timestamp_ms", "trip_id", "start_date")
    return {(v, int(at)): (trip_id, start_date) for v, at, trip_id, start_date in read_rows(path, columns) if trip_id}


def _with_arrivals(found: dict[RideKey, Ride], path: Path) -> dict[RideKey, Ride]:
    """The rides with the crossings of a file in place of the derived ones."""
    crossed: dict[RideKey, dict[int, int]] = {}
    for line, row in enumerate(read_rows(path, ("vehicle_id", "trip_id", "start_date", "stop_sequence", "arrived_at_ms")), start=2):
        try:
            crossed.setdefault((row[0], row[1], row[2]), {})[int(row[3])] = int(row[4])
        except ValueError as fault:
            raise Invalid(f"{path}:{line}: {fault}") from fault
    replaced = {}
    for key, ride in found.items():
        mine = crossed.get(key, {})
        times = np.array([mine.get(sequence, 0) for sequence in ride.instance.trip.pattern.stop_sequences], dtype=np.int64)
        replaced[key] = ride._replace(crossed_at_ms=times)
    return replaced


def _predictions(path: Path) -> dict[RideKey, NDArray[np.int64]]:
    """By ride: rows of (made_at_ms, stop_sequence, p10_ms, p50_ms, p90_ms)."""
    gathered: dict[RideKey, array[int]] = {}  # eight bytes a number: a day of a city has 25 million
    columns = ("vehicle_id", "trip_id", "start_date", "made_at_ms", "stop_sequence", "p10_ms", "p50_ms", "p90_ms")
    key: RideKey | None = None
    mine_rows: array[int] = array("q")
    for line, row in enumerate(read_rows(path, columns), start=2):
        mine = (row[0], row[1], row[2])
        if mine != key:
            key, mine_rows = mine, gathered.setdefault(mine, array("q"))
        try:
            mine_rows.extend(map(int, row[3:]))
        except (ValueError, OverflowError) as fault:
            raise Invalid(f"{path}:{line}: {fault}") from fault
    return {key: np.frombuffer(values, dtype=np.int64).reshape(-1, 5) for key, values in gathered.items()}


# -- samples ----------------------------------------------------------------------------------------------------------------------------


def _samples(found: Mapping[RideKey, Ride], predictions: Mapping[RideKey, NDArray[np.int64]]) -> Samples:
    columns: list[list[Floats]] = [[] for _ in range(10)]
    names = [RideName(*key, ride.instance.trip.route_id) for key, ride in found.items()]
    for number, (key, ride) in enumerate(found.items()):
        stops = np.flatnonzero(ride.crossed_at_ms)
        first = -(-int(ride.received_at_ms.min()) // SAMPLE_MS)
        last = int(ride.crossed_at_ms.max()) // SAMPLE_MS
        if not len(stops) or last < first:
            continue
        ticks = np.arange(first, last + 1, dtype=np.int64) * SAMPLE_MS
        actual = (ride.crossed_at_ms[stops][None, :] - ticks[:, None]) / 1000
        wanted = (actual > 0) & (actual <= FAR_S)
        ours = _ours(ride, stops, ticks, predictions.get(key))
        delay, speed = _plain(ride, stops, ticks)
        schedule = (_scheduled_ms(ride)[stops][None, :] - ticks[:, None]) / 1000
        at = np.broadcast_to(ticks[:, None] / 1000, actual.shape)
        sequence = np.broadcast_to(np.array(ride.instance.trip.pattern.stop_sequences, dtype=np.float64)[stops], actual.shape)
        mine = np.full(actual.shape, float(number))
        for column, values in zip(columns, (actual, at, *ours, schedule, delay, speed, mine, sequence), strict=True):
            column.append(values[wanted])
    joined = [np.concatenate(column) if column else np.empty(0) for column in columns]
    actual_s, at_s, p10, p50, p90, schedule, delay, speed, ride_no, stop_no = joined
    predicted = {TIMEPOINT: p50, SCHEDULE: schedule, DELAY: delay, SPEED: speed}
    return Samples(actual_s, at_s, predicted, p10, p90, ride_no.astype(np.int64), stop_no.astype(np.int64), names)


def _ours(ride: Ride, stops: NDArray[np.intp], ticks: Times, rows: NDArray[np.int64] | None) -> tuple[Floats, Floats, Floats]:
    """Our three quantiles as horizons, [tick, stop]; NaN where none was made."""
    sequences = np.array(ride.instance.trip.pattern.stop_sequences, dtype=np.int64)
    tables = np.full((3, len(ticks), len(sequences)), np.nan)
    if rows is not None:
        tick = (rows[:, 0] - ticks[0]) // SAMPLE_MS
        stop = np.searchsorted(sequences, rows[:, 1])
        known = (tick >= 0) & (tick < len(ticks)) & (sequences[np.minimum(stop, len(sequences) - 1)] == rows[:, 1])
        tables[:, tick[known], stop[known]] = (rows[known, 2:] - rows[known, :1]).T / 1000
    p10, p50, p90 = tables[:, :, stops]
    return p10, p50, p90


def _scheduled_ms(ride: Ride) -> Times:
    return ride.instance.base_ms + np.array(ride.instance.trip.arrival_s, dtype=np.int64) * 1000


def _plain(ride: Ride, stops: NDArray[np.intp], ticks: Times) -> tuple[Floats, Floats]:
    """Horizons by the delay at the last fix received, and by the mean speed of the five minutes before it; none lies in the past.

    A bus within 100 m of its first stop leaves on time, or now where it is late; its speed is the timetable's.
    """
    trip, pattern = ride.instance.trip, ride.instance.trip.pattern
    order = np.argsort(ride.received_at_ms, kind="stable")
    last = order[np.maximum(np.searchsorted(ride.received_at_ms[order], ticks, side="right") - 1, 0)]
    fixed, along = ride.fixed_at_ms[last], ride.along_m[last]
    due = ride.instance.base_ms + np.interp(along, pattern.along_m, trip.arrival_s) * 1000
    departs = ride.instance.base_ms + trip.departure_s[0] * 1000
    waiting = along < pattern.along_m[0] + 100
    late = np.where(waiting, np.maximum(0, ticks - departs), fixed - due)
    delay = (_scheduled_ms(ride)[stops][None, :] + late[:, None] - ticks[:, None]) / 1000
    before = np.searchsorted(ride.fixed_at_ms, fixed - SPEED_WINDOW_MS, side="left")
    span_s = (fixed - ride.fixed_at_ms[before]) / 1000
    driven = along - ride.along_m[before]
    planned = (pattern.along_m[-1] - pattern.along_m[0]) / max(1, trip.arrival_s[-1] - trip.departure_s[0])
    mean = np.where((span_s > 0) & ~waiting, np.maximum(SPEED_LEAST_MPS, driven / np.maximum(span_s, 1)), max(SPEED_LEAST_MPS, planned))
    from_s = np.where(waiting, np.maximum(departs - ticks, 0), fixed - ticks) / 1000
    speed = from_s[:, None] + (pattern.along_m[stops][None, :] - along[:, None]) / mean[:, None]
    return np.maximum(delay, 0.0), np.maximum(speed, 0.0)


# -- figures ----------------------------------------------------------------------------------------------------------------------------


def result_of(name: str, samples: Samples) -> Result:
    """One predictor on these samples. Coverage in the second half is of the recorded time of these samples."""
    predicted = samples.predicted_s[name]
    error = samples.actual_s - predicted
    pooled = samples.actual_s <= POOLED_S
    known = pooled & ~np.isnan(error)
    in_window = []
    for low, high, early, late in WINDOWS:
        part = (samples.actual_s > low) & (samples.actual_s <= high)
        with np.errstate(invalid="ignore"):
            in_window.append(float(100 * np.mean((error[part] >= -early) & (error[part] <= late))) if part.any() else 0.0)
    inside = (samples.actual_s >= samples.p10_s) & (samples.actual_s <= samples.p90_s) if name == TIMEPOINT else None
    half = float(np.median(samples.at_s)) if len(samples.at_s) else 0.0
    held_out = samples.at_s > half
    whole = figures(error[known])
    return Result(
        name=name,
        score=round(float(np.mean(in_window)), 2),
        in_window=[round(share, 2) for share in in_window],
        mae_s=whole[0],
        p90_s=whole[1],
        bias_mean_s=whole[2],
        bias_median_s=whole[3],
        early_share=round(float(np.mean(error[known] < -EARLY_S)), 4) if known.any() else None,
        missing_share=round(1 - float(known.sum()) / max(1, int(pooled.sum())), 4),
        by_actual=_buckets(samples.actual_s, error, inside, held_out),
        by_predicted=_buckets(predicted, error, inside, held_out),
    )


def figures(error: Floats) -> tuple[float | None, float | None, float | None, float | None]:
    """MAE, 90th percentile of the absolute error, mean and median error; seconds."""
    if not len(error):
        return None, None, None, None
    size = np.abs(error)
    return tuple(round(float(x), 2) for x in (size.mean(), np.quantile(size, 0.9), error.mean(), np.median(error)))  # type: ignore[return-value]


def _buckets(horizon: Floats, error: Floats, inside: NDArray[np.bool_] | None, held_out: NDArray[np.bool_]) -> list[Bucket]:
    found = []
    for low, high in pairwise(HORIZONS_S):
        with np.errstate(invalid="ignore"):
            part = (horizon > low) & (horizon <= high) & ~np.isnan(error)
        cover = None if inside is None or not part.any() else round(float(inside[part].mean()), 4)
        late = part & held_out
        cover_late = None if inside is None or not late.any() else round(float(inside[late].mean()), 4)
        found.append(Bucket(low, high, int(part.sum()), *figures(error[part]), cover, cover_late))
    return found
