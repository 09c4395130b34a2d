"""Whether a long run ends as it began: growth of memory, and of latency between its two halves. Pure, on a result's seconds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import linear_regression, median

from bench.harness.result import Second

SETTLING_SHARE = 0.2  # of the measured time: caches fill, collectors freeze what is there to stay


def memory_slope(series: Sequence[Second], process: str) -> float | None:
    """Growth of a process's resident memory after the settling, in percent an hour of what it then was; None where it was not seen."""
    seen = [(second.at_s, second.memory_kb[process]) for second in series if second.phase == "hold" and process in second.memory_kb]
    seen = seen[int(len(seen) * SETTLING_SHARE) :]
    if len(seen) < 3 or seen[0][1] == 0:
        return None
    slope, start = linear_regression([at for at, _ in seen], [kb for _, kb in seen])
    return slope * 3600 / (start + slope * seen[0][0]) * 100


def drift(series: Sequence[Second], measure: str) -> float | None:
    """How much larger the median p99 of a second is in the second half than in the first, in percent; None where there is too little."""
    p99s = [second.p99_s[measure] for second in series if second.phase == "hold" and measure in second.p99_s]
    half = len(p99s) // 2
    if half < 3 or median(p99s[:half]) == 0:
        return None
    return (median(p99s[-half:]) / median(p99s[:half]) - 1) * 100
