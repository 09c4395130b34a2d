"""What a generator and the harness tell each other: lines of JSON, the harness's on standard input, the generator's on standard output.

harness -> Order                      once
generator -> Ready                    connected: `drive` has asked when the run begins
harness -> Start                      once all are ready
generator -> Beat, every second, and Done
"""

from __future__ import annotations

from typing import Any

import msgspec

from bench.harness.schedule import Schedule

Counts = dict[int, int]  # bucket of a histogram -> how many


class Order(msgspec.Struct, kw_only=True):
    scenario: str  # as catalogue.find takes it
    number: int
    of: int
    seed: int
    url: str
    data: Any
    options: dict[str, Any]
    schedule: Schedule
    drain_s: float
    folder: str  # where the harness was called: a scenario of somebody's own finds its modules and files there


class Start(msgspec.Struct):
    at_s: float  # time.monotonic, one clock for all processes of a machine


class Ready(msgspec.Struct, tag="ready"):
    """It can begin."""


class Beat(msgspec.Struct, tag="beat"):
    """What is new since the last one, by the second of the run it belongs to: latencies and lag by their intended moment, counts as they came."""

    latencies: dict[str, dict[int, Counts]]
    counts: dict[str, dict[int, int]]
    faults: dict[str, dict[int, int]]
    lag: dict[int, Counts]
    cpu_s: float  # of the generator so far


class Done(msgspec.Struct, tag="done"):
    """The last line. `why`: what went wrong with the generator itself, "" where nothing did."""

    why: str = ""


Said = Ready | Beat | Done
