"""The servers' side of a run, as far as it is in sight: processes on this machine, the product's /metrics, its Redis, its PostgreSQL.

Everything here is a look at what they count anyway, once a second or at the two edges of the hold; what cannot be had is left out, never zero.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

import psycopg
import redis
from psycopg.rows import dict_row

from bench.checks import statements
from bench.harness import machine, processes
from bench.harness.result import Server
from bench.harness.scenario import CallFailed
from bench.harness.target import OWN, Deployment

METRICS_LIMIT_S: Final = 2.0
SERVER_LIMIT_S: Final = 2
SQL: Final = statements("harness/servers")
LAG_BUCKET: Final = re.compile(r'timepoint_loop_lag_seconds_bucket\{.*le="([^"]+)"')
WORKER: Final = re.compile(r'worker="([^"]*)",?')
TRACKED: Final = "timepoint_commit_fixes_sum"  # fixes folded and committed
EDGE_TRIES: Final = 6  # for each worker, until all have answered: the chance to miss one of two is 1 in 32
SAMPLE: Final = re.compile(r"^([a-zA-Z_:][\w:]*(?:\{.*\})?) (\S+)$")
REDIS_FIELDS: Final = (
    "total_commands_processed", "total_net_input_bytes", "total_net_output_bytes", "used_cpu_sys", "used_cpu_user",
    "total_connections_received", "rejected_connections",
)  # fmt: skip


Samples = dict[str, dict[str, float]]  # worker -> sample -> value


class Watch:
    """One run's looks. Methods block: the harness calls them in a thread."""

    def __init__(self, target: Deployment) -> None:
        self.target = target
        self._looks: dict[int, tuple[float, processes.Spent]] = {}
        self._newest: Samples = {}
        self._lags: dict[int, float | None] = {}  # second -> no waking of the product's loop was later
        self._edges: list[tuple[int, Samples, dict[str, float], dict[str, float]]] = []
        self._workers = max(1, sum(name.startswith("worker") for name in target.pids))

    def look(self, second: int) -> None:
        """At processes, at the beginning of a second."""
        if self.target.pids:
            self._looks[second] = (time.monotonic(), processes.look(self.target.pids))

    def ask(self, second: int) -> None:
        """The product's own figures; of one worker is enough."""
        self._take(second, self._metrics(1))

    def edge(self, second: int) -> None:
        """The hold begins or ends here: the figures of everybody."""
        fresh = self._metrics(EDGE_TRIES * self._workers)
        self._take(second, fresh)
        self._edges.append((second, fresh, self._redis(), self._postgres()))

    def _take(self, second: int, fresh: Samples) -> None:
        grown_lags = [grown(self._newest.get(worker, {}), samples) for worker, samples in fresh.items()]
        self._lags[second - 1] = max((lag for found in grown_lags if (lag := lag_bound(found, 1.0)) is not None), default=None)
        self._newest |= fresh

    def _metrics(self, tries: int) -> Samples:
        """Of as many workers as answer: each connection is taken by any of them."""
        found: Samples = {}
        for _ in range(tries):
            try:
                with urllib.request.urlopen(self.target.url + "/metrics", timeout=METRICS_LIMIT_S) as answer:
                    found |= parsed(answer.read().decode())
            except (OSError, ValueError):
                break
            if len(found) >= self._workers:
                break
        return found

    def _redis(self) -> dict[str, float]:
        if not self.target.redis_url:
            return {}
        try:
            with contextlib.closing(redis.Redis.from_url(self.target.redis_url, socket_timeout=SERVER_LIMIT_S)) as asked:
                info: dict[str, Any] = asked.info()
                return {name: float(info[name]) for name in REDIS_FIELDS if name in info}
        except redis.RedisError:
            return {}

    def _postgres(self) -> dict[str, float]:
        if not self.target.database_url:
            return {}
        found: dict[str, float] = {}
        try:
            with psycopg.connect(self.target.database_url, connect_timeout=SERVER_LIMIT_S, autocommit=True) as asked:
                for name in ("activity", "wal"):
                    with contextlib.suppress(psycopg.Error):  # a user without the right, an older server: the other one still counts
                        row = asked.cursor(row_factory=dict_row).execute(SQL[name]).fetchone()
                        found |= {key: float(value) for key, value in (row or {}).items() if value is not None}
        except psycopg.Error:
            return {}
        return found

    # ---- what they come to

    def cores(self, second: int) -> dict[str, float]:
        """Of each process in that second."""
        if second not in self._looks or second + 1 not in self._looks:
            return {}
        (began_s, before), (ended_s, after) = self._looks[second], self._looks[second + 1]
        took_s = max(1e-3, ended_s - began_s)
        return {name: round((spent - before.cpu_s[name]) / took_s, 4) for name, spent in after.cpu_s.items() if name in before.cpu_s}

    def memory_kb(self, second: int) -> dict[str, int]:
        return self._looks[second][1].memory_kb if second in self._looks else {}

    def loop_lag_s(self, second: int) -> float | None:
        """The bound that no waking of the product's loop was later than, in that second."""
        return self._lags.get(second)

    def spent(self) -> Server:
        """Between the edges of the hold."""
        if len(self._edges) < 2:
            return Server()
        (first, metrics, redis, postgres), (last, metrics_after, redis_after, postgres_after) = self._edges[0], self._edges[-1]
        by_worker = [grown(metrics[worker], metrics_after[worker]) for worker in metrics if worker in metrics_after]
        samples: dict[str, float] = {}
        for found in by_worker:
            for name, value in found.items():
                samples[name] = samples.get(name, 0.0) + value
        whole = Server(
            metrics={name: value for name, value in samples.items() if value and "_bucket" not in name},
            redis=grown(redis, redis_after), postgres=grown(postgres, postgres_after), loop_lag_p99_s=lag_bound(samples, 0.99),
        )  # fmt: skip
        if first in self._looks and last in self._looks:
            begun, ended = self._looks[first][1], self._looks[last][1]
            whole.cpu_s = {name: round(spent - begun.cpu_s[name], 4) for name, spent in ended.cpu_s.items() if name in begun.cpu_s}
            whole.memory_kb = {name: [begun.memory_kb[name], kb] for name, kb in ended.memory_kb.items() if name in begun.memory_kb}
        return whole

    def product(self) -> dict[str, str]:
        """Version, workers and where, with no names of hosts."""
        found = {"where": self.target.where, "on": "this machine" if self.target.pids else "elsewhere, or unknown"}
        if self.target.where == OWN:
            return found | {"version": machine.version(), "workers": str(self._workers)}
        with contextlib.suppress(CallFailed, KeyError, TypeError):
            found["version"] = str(self.target.call("GET", "/schema/openapi.json")["info"]["version"])
        workers = sum(name.startswith("worker") for name in self.target.pids)
        if workers:
            found["workers"] = str(workers)
        return found


def parsed(text: str) -> Samples:
    """The Prometheus text format: worker (its label; "" without) -> name and labels -> value."""
    found: Samples = {}
    for line in text.splitlines():
        if (match := SAMPLE.match(line)) is not None:
            worker = WORKER.search(match[1])
            name = WORKER.sub("", match[1]).replace("{}", "")
            with contextlib.suppress(ValueError):
                found.setdefault(worker[1] if worker else "", {})[name] = float(match[2])
    return found


def grown(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What has been added; nothing where there was no look before."""
    return {name: round(value - before.get(name, 0.0), 6) for name, value in after.items()} if before else {}


def lag_bound(samples: Mapping[str, float], share: float) -> float | None:
    """The smallest bound of a bucket that holds `share` of the new readings, the largest where none does; None where there are none."""
    rising = sorted((float(match[1]), value) for name, value in samples.items() if (match := LAG_BUCKET.match(name)))
    if not rising or rising[-1][1] <= 0:
        return None
    bound = next(bound for bound, below in rising if below >= share * rising[-1][1])
    return bound if bound != math.inf else rising[-2][0]
