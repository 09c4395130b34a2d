"""What a run has found: one JSON document that reports, comparisons and thresholds read. Times in seconds, CPU in seconds of one core."""

from __future__ import annotations

from typing import Any

import msgspec

FORMAT = 1


class Latency(msgspec.Struct, kw_only=True):
    """One measure over the whole measured time. `hdr` is the histogram itself (bench/harness/histogram.py), so that runs can be added up."""

    meaning: str
    count: int
    mean_s: float
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    p999_s: float
    max_s: float
    hdr: str


class Second(msgspec.Struct, kw_only=True):
    """One second of the run, warm-up included."""

    at_s: float  # from the run's start
    phase: str  # warm-up, ramp, hold, drain
    offered: float  # units intended in it
    counts: dict[str, int]
    p50_s: dict[str, float]
    p99_s: dict[str, float]
    lag_s: float  # how far the slowest generator was behind its schedule by its own doing
    cpu: dict[str, float]  # cores, by process name; empty where the product is not on this machine
    memory_kb: dict[str, int] = {}
    loop_lag_s: float | None = None  # the product's own worst, where it says


class Server(msgspec.Struct, kw_only=True):
    """What the product and its servers spent in the measured time. Empty where they are out of sight."""

    cpu_s: dict[str, float] = {}  # by process name: worker-0, redis, postgres, ...
    memory_kb: dict[str, list[int]] = {}  # first and last
    loop_lag_p99_s: float | None = None
    metrics: dict[str, float] = {}  # growth of the product's own counters (/metrics), by name
    redis: dict[str, float] = {}  # commands, network bytes, CPU (INFO), growth
    postgres: dict[str, float] = {}  # transactions, blocks, WAL bytes, growth


class Generators(msgspec.Struct, kw_only=True):
    """The harness's own part: a run whose generators lagged says nothing about the product."""

    processes: int
    cpu_s: float
    lag_p99_s: float  # of starting work later than intended, and of their loops waking late
    lag_max_s: float = 0.0
    lagged: bool
    why: str = ""


class Threshold(msgspec.Struct, kw_only=True):
    text: str  # as given
    figure: float | None  # in the threshold's unit; None: nothing of that name was measured
    held: bool


class Peer(msgspec.Struct, kw_only=True):
    """The same load on something else, in the same run. `figure` and `ours` in `unit`."""

    name: str
    version: str
    what: str
    unit: str
    figure: float
    ours: float

    @property
    def ratio(self) -> float:
        """Ours in theirs."""
        return self.ours / self.figure


class Result(msgspec.Struct, kw_only=True):
    format: int = FORMAT
    scenario: str
    title: str
    unit: str
    started_at: str  # RFC 3339, UTC
    seconds: float  # measured
    seed: int
    rate: float  # asked for; the ramp's end
    offered: int  # units intended while measuring
    options: dict[str, Any]
    machine: dict[str, str]  # cores, model, kernel, Python, load before
    product: dict[str, str]  # version, workers, where (no host names in reports of others' machines: only "this machine" or "elsewhere")
    measures: dict[str, Latency]
    counts: dict[str, int]
    faults: dict[str, int]
    broken: list[str]  # what `verify` found
    series: list[Second]
    server: Server
    generators: Generators
    figures: dict[str, float] = {}  # what the scenario itself reads out of all this
    thresholds: list[Threshold] = []
    peers: list[Peer] = []
    refused: str = ""  # why this run is no evidence; "" where it is


def read(data: bytes) -> Result:
    """Raises `msgspec.ValidationError` that says where."""
    return msgspec.json.decode(data, type=Result)
