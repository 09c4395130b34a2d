"""How good published arrivals turned out to be: what was really told to passengers, held against the stops that were served.

Pure. A sample is one published forecast at one stop ahead (history keeps one a vehicle and minute). Where none was published for longer than
that, samples without a value stand in its place: saying nothing counts against us. Truth are stops measured as served or passed; stops filled
in over a gap, and those that were missed, are no truth. Buckets, windows and the meaning of an error are those of `score.py`: error = actual
minus foretold, positive where the bus came later than we said.

Errors are kept as counts of whole seconds, so that quantiles of any sum of rides are exact to a second at a fixed size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

# (from, to, early, late) seconds of the ETA Accuracy Benchmark (TransitApp): of samples whose bus came in (from, to], those are good whose
# bus came at most `early` before and `late` after it was said to
WINDOWS: Final = ((0.0, 180.0, 30.0, 90.0), (180.0, 360.0, 60.0, 150.0), (360.0, 600.0, 60.0, 210.0), (600.0, 900.0, 90.0, 270.0))
POOLED_S: Final = 900.0  # pooled figures reach so far ahead
FAR_S: Final = 3600.0  # all figures
EARLY_S: Final = 60.0  # coming so long before it was said to makes people miss it
EDGES_S: Final = (0, 180, 360, 600, 900, 1800, 3600)
SAMPLE_MS: Final = 60_000  # how often what was published is sampled
GAP_MS: Final = 90_000  # samples further apart: nothing was published in between
BUCKETS: Final = len(EDGES_S) - 1
ACTUAL, PREDICTED = "ACTUAL", "PREDICTED"

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


class Published(NamedTuple):
    """One sample of a vehicle on one trip instance: seconds from `made_at_ms` to the stops of `sequences`."""

    made_at_ms: int
    sequences: Sequence[int]  # rising
    p10_s: Sequence[int]
    p50_s: Sequence[int]
    p90_s: Sequence[int]


class BucketSums(msgspec.Struct, frozen=True):
    """Samples whose time to the actual arrival (ACTUAL) or to the foretold one (PREDICTED) lies in (from_s, to_s]."""

    horizon: str
    from_s: int
    to_s: int
    samples: int  # those without a value among them
    missing: int  # without a value; 0 for PREDICTED
    in_window: int  # of the benchmark; 0 beyond 15 min
    covered: int  # arrival within p10 .. p90
    early: int  # the bus came over 60 s before it was said to
    error_sum_s: int
    size_sum_s: int  # of the errors without their sign
    p50_s: int | None  # of those; None: no sample with a value
    p90_s: int | None


class Tally:
    """Sums over rides, by bucket; `add` one ride after another."""

    def __init__(self) -> None:
        self.rides = 0
        self._missing: Counts = np.zeros(BUCKETS, dtype=np.int64)
        self._actual, self._predicted = _Sums(), _Sums()

    @property
    def samples(self) -> int:
        """To 60 min ahead, with and without a value."""
        return int(self._missing.sum()) + int(self._actual.sizes.sum())

    def add(self, published: Sequence[Published], arrived_ms: Mapping[int, int], began_ms: int | None = None) -> None:
        """One ride: its samples, when it was at which stop sequence, and when it was under way at the latest.

        From `began_ms` (None: the first sample) to the last arrival it ought to have been foretold.
        """
        if not arrived_ms:
            return
        self.rides += 1
        sequences = sorted(arrived_ms)
        arrived = np.array([arrived_ms[sequence] for sequence in sequences], dtype=np.int64)
        samples = sorted(published, key=lambda one: one.made_at_ms)
        silent = _silent(samples, int(arrived.max()), began_ms)
        if len(silent):
            actual = ((arrived[None, :] - silent[:, None]) / 1000.0).ravel()
            self._missing += np.bincount(_bucket(actual[(actual > 0) & (actual <= FAR_S)]), minlength=BUCKETS)
        if samples:
            self._judge(samples, sequences, arrived)

    def _judge(self, samples: Sequence[Published], sequences: list[int], arrived: Counts) -> None:
        known_stops = np.array(sequences, dtype=np.int64)
        row = np.repeat(np.arange(len(samples)), [len(one.sequences) for one in samples])
        stop = _joined(one.sequences for one in samples)
        place = np.minimum(np.searchsorted(known_stops, stop), len(sequences) - 1)
        known = known_stops[place] == stop
        told = np.full((3, len(samples), len(sequences)), np.nan)
        columns = (one.p10_s for one in samples), (one.p50_s for one in samples), (one.p90_s for one in samples)
        for table, column in zip(told, columns, strict=True):
            table[row[known], place[known]] = _joined(column)[known]
        made = np.array([one.made_at_ms for one in samples], dtype=np.int64)
        actual = (arrived[None, :] - made[:, None]) / 1000.0
        wanted = (actual > 0) & (actual <= FAR_S)
        actual = actual[wanted]
        low, middle, high = (part[wanted] for part in told)
        known = ~np.isnan(middle)
        self._missing += np.bincount(_bucket(actual[~known]), minlength=BUCKETS)
        actual, low, middle, high = (part[known] for part in (actual, low, middle, high))
        error, inside = actual - middle, (actual >= low) & (actual <= high)
        self._actual.add(_bucket(actual), error, inside)
        near = (middle > 0) & (middle <= FAR_S)
        self._predicted.add(_bucket(middle[near]), error[near], inside[near])

    def merge(self, other: Tally) -> None:
        """As if the rides of `other` had been added here."""
        self.rides += other.rides
        self._missing += other._missing
        self._actual.merge(other._actual)
        self._predicted.merge(other._predicted)

    def buckets(self) -> list[BucketSums]:
        """Those that have samples: by the actual horizon, then by the foretold one."""
        none = np.zeros(BUCKETS, dtype=np.int64)
        found = [*self._actual.rows(ACTUAL, self._missing), *self._predicted.rows(PREDICTED, none)]
        return [one for one in found if one.samples]


class _Sums:
    def __init__(self) -> None:
        self.sizes: Counts = np.zeros((BUCKETS, int(FAR_S) + 1), dtype=np.int64)  # whole seconds of |error|; the last: that and more
        self.in_window, self.covered, self.early = (np.zeros(BUCKETS, dtype=np.int64) for _ in range(3))
        self.error_s, self.size_s = np.zeros(BUCKETS), np.zeros(BUCKETS)

    def add(self, bucket: Counts, error: Floats, inside: NDArray[np.bool_]) -> None:
        size = np.abs(error)
        whole = np.minimum(np.rint(size), FAR_S).astype(np.int64)
        width = self.sizes.shape[1]
        self.sizes += np.bincount(bucket * width + whole, minlength=BUCKETS * width).reshape(BUCKETS, width)
        in_window = (error >= -EARLIEST[bucket]) & (error <= LATEST[bucket])
        self.in_window += np.bincount(bucket[in_window], minlength=BUCKETS)
        self.covered += np.bincount(bucket[inside], minlength=BUCKETS)
        self.early += np.bincount(bucket[error < -EARLY_S], minlength=BUCKETS)
        self.error_s += np.bincount(bucket, weights=error, minlength=BUCKETS)
        self.size_s += np.bincount(bucket, weights=size, minlength=BUCKETS)

    def merge(self, other: _Sums) -> None:
        for name in ("sizes", "in_window", "covered", "early", "error_s", "size_s"):
            getattr(self, name).__iadd__(getattr(other, name))

    def rows(self, horizon: str, missing: Counts) -> list[BucketSums]:
        found = []
        for i, (low, high) in enumerate(pairwise(EDGES_S)):
            count = int(self.sizes[i].sum())
            found.append(
                BucketSums(
                    horizon=horizon,
                    from_s=low,
                    to_s=high,
                    samples=count + int(missing[i]),
                    missing=int(missing[i]),
                    in_window=int(self.in_window[i]),
                    covered=int(self.covered[i]),
                    early=int(self.early[i]),
                    error_sum_s=round(float(self.error_s[i])),
                    size_sum_s=round(float(self.size_s[i])),
                    p50_s=_quantile(self.sizes[i], 0.5) if count else None,
                    p90_s=_quantile(self.sizes[i], 0.9) if count else None,
                )
            )
        return found


EARLIEST: Final = np.array([early for _, _, early, _ in WINDOWS] + [-np.inf] * (BUCKETS - len(WINDOWS)))
LATEST: Final = np.array([late for _, _, _, late in WINDOWS] + [-np.inf] * (BUCKETS - len(WINDOWS)))


def _joined(columns: Iterable[Sequence[int]]) -> Counts:
    return np.fromiter(chain.from_iterable(columns), dtype=np.int64)


def _silent(samples: Sequence[Published], ended_ms: int, began_ms: int | None) -> Counts:
    """The instants, a minute apart, at which a sample ought to stand and none does."""
    marks = [one.made_at_ms for one in samples]
    if began_ms is not None and (not marks or began_ms < marks[0]):
        marks.insert(0, began_ms)  # no sample, but under way
        found = [began_ms] if ended_ms > began_ms else []
    else:
        found = []
    for before, after in pairwise(marks):
        if after - before > GAP_MS:
            found.extend(range(before + SAMPLE_MS, after - SAMPLE_MS // 2, SAMPLE_MS))
    if marks and ended_ms - marks[-1] > GAP_MS:
        found.extend(range(marks[-1] + SAMPLE_MS, ended_ms, SAMPLE_MS))
    return np.array(found, dtype=np.int64)


def _bucket(horizon_s: Floats) -> Counts:
    """Index of the bucket (low, high] of each horizon; all lie in (0, 60 min]."""
    return np.searchsorted(np.array(EDGES_S[1:], dtype=np.float64), horizon_s, side="left").astype(np.int64)


def _quantile(counts: Counts, share: float) -> int:
    """The least whole second that so many of the counted do not exceed."""
    return int(np.searchsorted(np.cumsum(counts), share * counts.sum(), side="left"))
