"""What the arrival estimator was fed on a recorded day, so that the estimator alone can be run over it again and again.

The tracker does not depend on the estimator: what it observes, and when it asks, is the same whatever the answers are. `recorded` drives a
day through the tracker once, noting the calls, and keeps them in a folder under the digest of feed, fixes and tracker; `Day.run` makes the same
calls to any other model and sets its answers against the true crossings, sample by sample as `timepoint score` does.
"""

from __future__ import annotations

import hashlib
import pickle
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import engine.tracking
from engine.events import TripForecast
from engine.tracking.accuracy import FAR_S
from engine.tracking.eta import ArrivalModel, Progress
from engine.tracking.replay import Told, drive, read_fixes
from engine.tracking.score import SAMPLE_MS, TIMEPOINT, RideName, Samples
from engine.tracking.timetable import Timetable, TripInstance
from engine.tracking.tracker import Tracker
from engine.tracking.truth import RideKey, rides

Floats = NDArray[np.float64]
Report = Callable[[int, int], None]  # done, of how many
OBSERVE, CROSSED, FORECAST, FORGET, NIGHT = range(5)


class Table(NamedTuple):
    """Where the samples of a ride stand in the columns of a day: its first tick, ticks, stops, and the place of its first cell."""

    first_ms: int
    ticks: int
    stops: int
    start: int


class Noting(ArrivalModel):
    """A model that notes what it is told and asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def observe(self, progress: Progress) -> None:
        self.calls.append((OBSERVE, *_flat(progress)))
        super().observe(progress)

    def crossed(self, bus_id: str, instance: TripInstance, stop_index: int, at_ms: int, *, measured: bool) -> None:
        self.calls.append((CROSSED, bus_id, instance.trip.trip_id, instance.start_date, stop_index, at_ms, measured))
        super().crossed(bus_id, instance, stop_index, at_ms, measured=measured)

    def forget(self, bus_id: str) -> None:
        self.calls.append((FORGET, bus_id))
        super().forget(bus_id)

    def forecast(self, progress: Progress, now_ms: int, *, learn: bool = True) -> TripForecast | None:
        self.calls.append((FORECAST, *_flat(progress), now_ms))
        return super().forecast(progress, now_ms, learn=learn)

    def new_day(self) -> None:
        self.calls.append((NIGHT,))
        super().new_day()


def _flat(p: Progress) -> tuple[Any, ...]:
    trip_id, start_date = p.instance.trip.trip_id, p.instance.start_date
    return p.bus_id, trip_id, start_date, p.fixed_at_ms, p.along_m, p.offset_m, p.stop_index, p.speed_mps, p.departed


class Day:
    """The calls of one recorded day and its truth. `thin` n: of each vehicle's questions every n-th, for a quicker look; the spread then
    learns from fewer samples too, so that intervals and biases are worse than they are."""

    def __init__(
        self,
        name: str,
        timetable: Timetable,
        calls: Iterable[tuple[Any, ...]],
        truth: dict[RideKey, tuple[NDArray[np.int64], int]],
        thin: int,
    ) -> None:
        self.name, self.timetable, self.thin = name, timetable, thin
        self._calls = list(_calls(calls, timetable, thin))
        self._tables: dict[RideKey, Table] = {}
        self._names: list[RideName] = []
        columns: list[list[Floats]] = [[], [], [], []]
        cells = 0
        for key, (crossed_ms, received_ms) in truth.items():
            first = -(-received_ms // SAMPLE_MS)
            last = int(crossed_ms.max()) // SAMPLE_MS
            if last < first or not crossed_ms.any():
                continue
            ticks, stops = np.arange(first, last + 1, dtype=np.int64) * SAMPLE_MS, len(crossed_ms)
            actual = np.where(crossed_ms > 0, (crossed_ms[None, :] - ticks[:, None]) / 1000, np.nan)
            self._tables[key] = Table(int(ticks[0]), len(ticks), stops, cells)
            at, ride = np.repeat(ticks / 1000, stops), np.full(actual.size, float(len(self._names)))
            for column, values in zip(columns, (actual.ravel(), at, ride, np.tile(np.arange(float(stops)), len(ticks))), strict=True):
                column.append(values)
            self._names.append(RideName(*key, _route(timetable, key[1])))
            cells += actual.size
        self._cells = cells
        self._actual, self._at, self._ride, self._stop = (np.concatenate(column) for column in columns)

    def run(self, model: ArrivalModel, report: Report | None = None) -> Samples:
        """The day through a model: samples to an hour ahead. Thinned: only those that were asked for, missing values are not counted then."""
        told, asked = np.full((3, self._cells), np.nan), np.zeros(self._cells, dtype=bool)
        for done, call in enumerate(self._calls):
            kind = call[0]
            if kind == FORECAST:
                progress, now_ms, sampled = call[1:]
                found = model.foresee(progress, now_ms)
                table = (
                    self._tables.get((progress.bus_id, progress.instance.trip.trip_id, progress.instance.start_date)) if sampled else None
                )
                tick = (now_ms - table.first_ms) // SAMPLE_MS if table is not None else -1
                if found is not None and table is not None and 0 <= tick < table.ticks:
                    start = table.start + tick * table.stops
                    told[:, start + found[0] : start + table.stops] = found[1]
                    asked[start : start + table.stops] = True
            elif kind == OBSERVE:
                model.observe(call[1])
            elif kind == CROSSED:
                model.crossed(call[1], call[2], call[3], call[4], measured=call[5])
            elif kind == FORGET:
                model.forget(call[1])
            else:
                model.new_day()
            if report is not None and done % 1000 == 0:
                report(done, len(self._calls))
        with np.errstate(invalid="ignore"):
            wanted = (self._actual > 0) & (self._actual <= FAR_S) & (asked if self.thin > 1 else True)
        p10, p50, p90 = told[:, wanted]
        ride, stop = self._ride[wanted].astype(np.int64), self._stop[wanted].astype(np.int64)
        return Samples(self._actual[wanted], self._at[wanted], {TIMEPOINT: p50}, p10, p90, ride, stop, self._names)


def _route(timetable: Timetable, trip_id: str) -> str:
    trip = timetable.trips.get(trip_id)
    return trip.route_id if trip is not None else ""


def _calls(calls: Iterable[tuple[Any, ...]], timetable: Timetable, thin: int) -> Iterable[tuple[Any, ...]]:
    """Ready to be made: with instances in place of names, and what is asked said to be a sample of the score or not."""
    instances: dict[tuple[str, str], TripInstance | None] = {}
    progresses: dict[tuple[Any, ...], Progress] = {}

    def instance(trip_id: str, start_date: str) -> TripInstance | None:
        if (trip_id, start_date) not in instances:
            instances[(trip_id, start_date)] = timetable.instance(trip_id, start_date)
        return instances[(trip_id, start_date)]

    for call in calls:
        kind, now_ms = call[0], call[-1]
        if kind in (OBSERVE, FORECAST):
            if kind == FORECAST and thin > 1 and (now_ms % SAMPLE_MS or (now_ms // SAMPLE_MS + zlib.crc32(call[1].encode())) % thin):
                continue
            found = instance(call[2], call[3])
            if found is not None:
                progress = progresses.setdefault(call[1:10], Progress(call[1], found, *call[4:10]))
                yield (kind, progress) if kind == OBSERVE else (kind, progress, now_ms, now_ms % SAMPLE_MS == 0)
        elif kind == CROSSED:
            yield kind, call[1], instance(call[2], call[3]), *call[4:]
        else:
            yield call


def recorded(folder: Path, *, read_feed: Callable[[Path], Timetable], cache: Path, thin: int = 1, report: Report | None = None) -> Day:
    """The day of a folder with `gtfs.zip` and `fixes.csv.gz`, out of the cache or driven anew. The cache is a pickle of our own: point it
    at no folder that others write to."""
    feed, fixes = folder / "gtfs.zip", folder / "fixes.csv.gz"
    digest = hashlib.sha256(feed.read_bytes() + fixes.read_bytes())
    for source in sorted(Path(engine.tracking.__path__[0]).glob("*.py")):
        if source.stem not in ("eta", "pace", "spread", "lessons", "score"):
            digest.update(source.read_bytes())
    kept = cache / f"{folder.name}-{digest.hexdigest()[:16]}.pickle"
    timetable = read_feed(feed)
    if kept.exists():
        calls, truth = pickle.loads(kept.read_bytes())
        return Day(folder.name, timetable, calls, truth, thin)
    table, _ = read_fixes(fixes)
    model = Noting()
    tracker = Tracker(timetable, feed_id=timetable.feed_id, partner_id="", model=model)
    for record in drive(tracker, table):
        if report is not None and isinstance(record, Told):
            report(record.done, len(table))
    truth = {key: (ride.crossed_at_ms, int(ride.received_at_ms.min())) for key, ride in rides(table, timetable, {}).items()}
    cache.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(pickle.dumps((model.calls, truth)))
    return Day(folder.name, timetable, model.calls, truth, thin)
