"""What the generators have said, added up: by the second of the run, and over the hold, which alone is measured."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from bench.harness.beat import Beat
from bench.harness.histogram import Histogram, total
from bench.harness.result import Latency, Second
from bench.harness.scenario import Measure
from bench.harness.schedule import Schedule

SHARES = (0.5, 0.9, 0.95, 0.99, 0.999)
SETTLED_S = 90  # a second that is so old gets no more answers to speak of: its histogram joins the whole, its percentiles stay as they are


class Tally:
    """One run. `faults` are all that there were; `counts` and `latencies` those of the hold; `whole` are counts with warm-up and drain."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.by_second: dict[str, dict[int, Histogram]] = defaultdict(lambda: defaultdict(Histogram))  # those not settled
        self.settled: dict[str, Histogram] = defaultdict(Histogram)  # of the hold
        self.told: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)  # p50 and p99 of settled seconds
        self.counted: dict[str, Counter[int]] = defaultdict(Counter)
        self.faulted: dict[str, Counter[int]] = defaultdict(Counter)
        self.lag = Histogram()  # of the hold
        self.slowest: dict[int, float] = defaultdict(float)  # worst lag of any generator
        self.cpu_s: dict[int, float] = {}  # of the generators, by number

    def add(self, number: int, beat: Beat) -> None:
        for measure, seconds in beat.latencies.items():
            for second, counts in seconds.items():
                if second not in self.told[measure]:
                    self.by_second[measure][second].add(counts)
                elif self.held(second):
                    self.settled[measure].add(counts)
            self._settle(measure, max(seconds, default=0) - SETTLED_S)
        for found, told in ((self.counted, beat.counts), (self.faulted, beat.faults)):
            for name, by in told.items():
                found[name].update(by)
        for second, counts in beat.lag.items():
            if self.held(second):
                self.lag.add(counts)
            self.slowest[second] = max(self.slowest[second], Histogram(counts).max_s)
        self.cpu_s[number] = beat.cpu_s

    def _settle(self, measure: str, until: int) -> None:
        """A soak of hours keeps a minute and a half of histograms."""
        for second in [second for second in self.by_second[measure] if second < until]:
            found = self.by_second[measure].pop(second)
            p50, p99 = found.percentiles((0.5, 0.99))
            self.told[measure][second] = p50, p99
            if self.held(second):
                self.settled[measure].add(found.counts)

    def held(self, second: int) -> bool:
        return self.schedule.phase(second) == "hold"

    def latency(self, measure: str) -> Histogram:
        new = (found for second, found in self.by_second.get(measure, {}).items() if self.held(second))
        return total([self.settled.get(measure, Histogram()), *new])

    @property
    def counts(self) -> dict[str, int]:
        return {name: sum(by for second, by in found.items() if self.held(second)) for name, found in sorted(self.counted.items())}

    @property
    def whole(self) -> dict[str, int]:
        return {name: found.total() for name, found in sorted(self.counted.items())}

    @property
    def faults(self) -> dict[str, int]:
        return {name: found.total() for name, found in sorted(self.faulted.items())}

    def measures(self, declared: Iterable[Measure]) -> dict[str, Latency]:
        """Those that were declared, in their order, and what else was noted; none for what was never noted."""
        meanings = {measure.name: measure.meaning for measure in declared}
        found = {}
        for name in [*meanings, *(other for other in sorted(self.by_second) if other not in meanings)]:
            latency = self.latency(name)
            if not latency.counts:
                continue
            p50, p90, p95, p99, p999 = latency.percentiles(SHARES)
            found[name] = Latency(
                meaning=meanings.get(name, ""), count=latency.count, mean_s=latency.mean_s, p50_s=p50, p90_s=p90, p95_s=p95, p99_s=p99,
                p999_s=p999, max_s=latency.max_s, hdr=latency.encode(),
            )  # fmt: skip
        return found

    def second(self, at: int) -> Second:
        """One second, as far as it is known; without what the servers spent in it."""
        p50, p99 = {}, {}
        for measure, found in self.by_second.items():
            if at in self.told[measure]:
                p50[measure], p99[measure] = self.told[measure][at]
            elif at in found:
                p50[measure], p99[measure] = found[at].percentiles((0.5, 0.99))
        counts = {name: found[at] for name, found in self.counted.items() if found[at]}
        return Second(
            at_s=at, phase=self.schedule.phase(at), offered=round(self.schedule.offered(at, at + 1), 3), counts=counts, p50_s=p50, p99_s=p99,
            lag_s=self.slowest.get(at, 0.0), cpu={},
        )  # fmt: skip
