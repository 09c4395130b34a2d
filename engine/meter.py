"""Meter: counters, gauges and histograms of one process, and their text in the Prometheus exposition format (version
0.0.4).

Promises: adding to a metric is a dictionary step, never an await and never an error; label values are bounded, and a
metric that meets more than `series_max` sets of them puts the rest under `OTHER` and counts that in
`timepoint_meter_overflow_total`. Refuses: a name declared twice in different ways. One thread (the event loop) writes;
nothing here locks.

    meter = Meter()
    folded = meter.counter("timepoint_fixes_folded_total", "fixes folded, by verdict", ("verdict",))
    folded.add(1, "OK")
    print(meter.text({"worker": "0"}))
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping
from typing import TypeVar

SERIES_MAX = 500  # label sets of one metric: 500 areas or routes; more is a page nobody reads and memory nobody planned
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # buckets of a wait, s
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)  # buckets of a batch, items

_NAME = re.compile(r"^[a-z][a-z0-9_]*$")


class Metric:
    """One name with its label sets. Values of labels are given by position, in the order they were declared."""

    kind = ""

    def __init__(self, meter: Meter, name: str, text: str, labels: tuple[str, ...]) -> None:
        if not _NAME.match(name) or not all(_NAME.match(label) for label in labels):
            raise ValueError(f"not a metric name: {name} {labels}")
        self._meter, self.name, self.text, self.labels = meter, name, text, labels
        self._keys: set[tuple[str, ...]] = set()

    def _key(self, values: tuple[str, ...]) -> tuple[str, ...]:
        if values in self._keys:
            return values
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name} wants labels {self.labels}, got {values}")
        if len(self._keys) >= self._meter.series_max and values:
            self._meter.overflow.add(1, self.name)
            return ("OTHER",) * len(values)
        self._keys.add(values)
        return values

    def lines(self, more: str) -> list[str]:
        """The samples, one a line; `more` is label text that stands on every sample."""
        raise NotImplementedError

    def _labelled(self, suffix: str, key: tuple[str, ...], more: str, extra: str = "") -> str:
        own = ",".join(f'{label}="{_escaped(value)}"' for label, value in zip(self.labels, key, strict=True))
        inside = ",".join(part for part in (more, own, extra) if part)
        return f"{self.name}{suffix}{{{inside}}}" if inside else f"{self.name}{suffix}"


class Counter(Metric):
    """Only goes up."""

    kind = "counter"

    def __init__(self, meter: Meter, name: str, text: str, labels: tuple[str, ...]) -> None:
        super().__init__(meter, name, text, labels)
        self._values: dict[tuple[str, ...], float] = {(): 0.0} if not labels else {}

    def add(self, by: float = 1.0, *labels: str) -> None:
        values = self._values
        if labels in values:
            values[labels] += by
        else:
            key = self._key(labels)
            values[key] = values.get(key, 0.0) + by

    def value(self, *labels: str) -> float:
        """What it stands at; 0.0 for a label set never met."""
        return self._values.get(labels, 0.0)

    def total(self) -> float:
        """The sum over all label sets."""
        return sum(self._values.values())

    def lines(self, more: str) -> list[str]:
        return [f"{self._labelled('', key, more)} {_number(value)}" for key, value in sorted(self._values.items())]


class Gauge(Counter):
    """Goes up and down."""

    kind = "gauge"

    def set(self, value: float, *labels: str) -> None:
        self._values[self._key(labels)] = value

    def drop(self, *labels: str) -> None:
        """Forget one label set: an area we no longer own says nothing rather than something old."""
        self._values.pop(labels, None)
        self._keys.discard(labels)


class Histogram(Metric):
    """How often a value fell at or below each bound."""

    kind = "histogram"

    def __init__(self, meter: Meter, name: str, text: str, labels: tuple[str, ...], bounds: tuple[float, ...]) -> None:
        super().__init__(meter, name, text, labels)
        if list(bounds) != sorted(set(bounds)):
            raise ValueError(f"{name}: bounds must rise: {bounds}")
        self.bounds = bounds
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def observe(self, value: float, *labels: str) -> None:
        key = self._key(labels)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = [0] * (len(self.bounds) + 1)
            self._sums[key] = 0.0
        counts[bisect_left(self.bounds, value)] += 1
        self._sums[key] += value

    def count(self, *labels: str) -> int:
        return sum(self._counts.get(labels, ()))

    def lines(self, more: str) -> list[str]:
        out = []
        for key, counts in sorted(self._counts.items()):
            below = 0
            for bound, count in zip((*map(_number, self.bounds), "+Inf"), counts, strict=True):
                below += count
                edge = f'le="{bound}"'
                out.append(f"{self._labelled('_bucket', key, more, edge)} {below}")
            out.append(f"{self._labelled('_sum', key, more)} {_number(self._sums[key])}")
            out.append(f"{self._labelled('_count', key, more)} {below}")
        return out


M = TypeVar("M", bound=Metric)


class Meter:
    """All metrics of one process. Declaring the same metric again gives the one that stands."""

    def __init__(self, series_max: int = SERIES_MAX) -> None:
        self.series_max = series_max
        self._metrics: dict[str, Metric] = {}
        self.overflow = self.counter("timepoint_meter_overflow_total", "samples put under OTHER, by metric", ("metric",))

    def counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return self._declare(Counter(self, name, text, labels))

    def gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return self._declare(Gauge(self, name, text, labels))

    def histogram(self, name: str, text: str, labels: tuple[str, ...] = (), bounds: tuple[float, ...] = SECONDS) -> Histogram:
        return self._declare(Histogram(self, name, text, labels, bounds))

    def _declare(self, metric: M) -> M:
        held = self._metrics.setdefault(metric.name, metric)
        if type(held) is not type(metric) or held.labels != metric.labels:
            raise ValueError(f"{metric.name} is declared already as {held.kind} of {held.labels}")
        return held

    def text(self, labels: Mapping[str, str] | None = None) -> str:
        """The exposition text; `labels` (of the process, say its worker number) stand on every sample."""
        more = ",".join(f'{name}="{_escaped(value)}"' for name, value in (labels or {}).items())
        out = []
        for metric in self._metrics.values():
            samples = metric.lines(more)
            if samples:
                out += [f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}", *samples]
        return "\n".join(out) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
