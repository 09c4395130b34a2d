"""What a scenario is, and what it is given. To write one: docs/bench.md.

A scenario runs in three places. `prepare` runs once in the harness's own process before the load: it registers devices, puts trips on sale,
and answers what every generator needs. `drive` runs in each of several generator processes, on a loop of its own, through a `Share`: it keeps
to the schedule of intended moments and notes what it sees. `verify` runs once after the load and answers what does not hold.

Open loop: work begins at its intended moment whether the product has answered the last one or not, and every latency counts from the intended
moment, so a product that stalls for a second shows a second, not one slow answer (what Gil Tene called coordinated omission).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar, Protocol

import msgspec

from bench.harness.result import Result


class Option(msgspec.Struct, frozen=True):
    """One option of a scenario: `--buses 2000`. The type of the default is its type."""

    name: str
    default: int | float | str | bool
    meaning: str


class Measure(msgspec.Struct, frozen=True):
    """One latency (seconds inside, printed in ms) that a scenario notes, by the name that thresholds use: `fanout.p99<100ms`."""

    name: str
    meaning: str


class CallFailed(Exception):
    """What the product answered to a call of `prepare` or `verify`: status (0: nothing) and its problem document, or text."""

    def __init__(self, method: str, path: str, status: int, problem: Any) -> None:
        super().__init__(f"{method} {path}: {status or 'no answer'} {str(problem)[:400]}")
        self.status, self.problem = status, problem


class Target(Protocol):
    """The deployment under load, as a stranger with an admin's token sees it."""

    url: str  # http(s)://host:port, no trailing slash
    token: str  # an operator admin's access token; "" where none was given
    partner: str  # the operator that it belongs to
    mqtt_url: str  # "" where there is none
    redis_url: str  # of its Redis, where it is known; else ""
    database_url: str  # of its PostgreSQL, where it is known; else ""
    pids: Mapping[str, int]  # of its processes by name, where they are on this machine; else empty

    def call(self, method: str, path: str, body: object = None, *, key: str = "", token: str | None = None) -> Any:
        """One call, blocking, for `prepare` and `verify`; with the admin's token where none is given, and for what changes something with a
        fresh Idempotency-Key. `body` goes as JSON, bytes as they are. Answers the body. Raises `CallFailed` with status and problem."""
        ...


class Share(Protocol):
    """One generator's part of the load. Everything that a generator knows or says goes through it."""

    number: int  # 0 .. of - 1
    of: int  # generators
    seed: int  # its own: the run's seed and its number
    url: str
    data: Any  # what `prepare` answered, as JSON carried it
    options: Mapping[str, Any]

    async def begun(self) -> float:
        """The moment at which the run begins (steady seconds). Answers once every generator has asked: connect first, then ask."""
        ...

    def moments(self) -> AsyncIterator[float]:
        """Its intended moments (steady seconds, `time.monotonic`), each as it comes, following the rate of the run (warm-up, ramp, hold).

        Moments that have passed come at once, one after the other: never skipped, never shifted. Ends with the run. Awaits `begun` first.
        Begin the work and come back for the next: a loop that waits for answers in between is late by its own doing, and the run is refused.
        """
        ...

    async def over(self) -> None:
        """Returns when the hold ends: for those who only listen."""
        ...

    def epoch_ms(self, moment: float) -> int:
        """What clocks on the wall say at a moment: milliseconds since 1970."""
        ...

    def note(self, measure: str, seconds: float) -> None:
        """One latency, from its intended moment. Those of the warm-up are kept apart."""
        ...

    def count(self, what: str, by: int = 1) -> None:
        """A counter: `accepted`, `delivered`, `granted`, `taken`, ..."""
        ...

    def fault(self, what: str) -> None:
        """Something that should not have happened, by its name (`503`, `timeout`, `lost`): a run with faults says so on top."""
        ...


class Scenario:
    """Subclass it, fill in the names, and list it in `bench/harness/catalogue.py`; one of your own is named by its file."""

    name: ClassVar[str]  # as on the command line: ingest-http
    summary: ClassVar[str]  # one line
    unit: ClassVar[str]  # what `rate` counts: "requests", "fixes", "updates", "picks"
    rate: ClassVar[float] = 100.0  # per second, all generators together, where --rate is not given
    options: ClassVar[tuple[Option, ...]] = ()
    measures: ClassVar[tuple[Measure, ...]]
    needs: ClassVar[frozenset[str]] = frozenset()  # of "token", "mqtt", "redis", "database", "local": what a target must have for it
    serves: ClassVar[Mapping[str, str]] = {}  # settings of a product that is started for it alone: {"ROLES": "api"}
    thresholds: ClassVar[tuple[str, ...]] = ()  # what holds where no --threshold is given

    def prepare(self, target: Target, options: Mapping[str, Any], rate: float, seed: int) -> Any:
        """Sets the product up; what it answers reaches every generator (JSON). Blocking; may take seconds."""
        return None

    async def drive(self, share: Share) -> None:
        """The load of one generator, until `share.moments()` ends and its answers are in. What takes longer than --drain is cut off: a fault."""
        raise NotImplementedError

    def verify(self, target: Target, data: Any, counts: Mapping[str, int]) -> list[str]:
        """After the load: every sentence is something that does not hold (a lost message, a seat sold twice). Empty: all is well."""
        return []

    def figures(self, result: Result) -> dict[str, float]:
        """What only this scenario reads out of its own result, by name; thresholds call it `figure.NAME<2`."""
        return {}
