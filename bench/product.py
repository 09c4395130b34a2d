"""A product to measure: one worker of `timepoint serve` with private servers beneath it, its CPU and memory as the kernel counts them.

`Area` stands for the tracking of one area: it says numbered batches on `live:{bench}` over a plain connection to that product's Redis, the
way the area's owner does, so that fan-out is measured alone (ROLES=api: the worker tracks nothing).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from deploy.servers import PostgresServer, RedisServer, children, free_port, throw_away_folder

CHECKOUT = Path(__file__).resolve().parent.parent
TIMEPOINT = (sys.executable, "-m", "api.cli")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, user and system (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def memory_kb(pid: int) -> int:
    """Resident memory."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])


class Product:
    """Started on entry, stopped and thrown away on exit."""

    def __init__(
        self, *, appendfsync: str = "no", feed: Path | None = None, workers: int = 1, durable: bool = False, **settings: str
    ) -> None:
        """`feed`: what is taken into force before it starts. `durable`: PostgreSQL as it would be set up to keep data (fsync, autovacuum)."""
        self.settings, self.feed, self.workers = settings, feed, workers
        self.postgres = PostgresServer(throw_away_folder(), throw_away=not durable)
        self.redis = RedisServer(throw_away_folder(), appendfsync=appendfsync)
        self.port = 0
        self.pid = 0  # of the first worker
        self.token = ""  # of an admin
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed on exit
        self.supervisor: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.redis.start(), self.postgres.start()
        self.postgres.create_database("timepoint")
        self.port = free_port(20_000 + os.getpid() % 8_000)  # benches that start at once do not meet
        environ = os.environ | {
            "DATABASE_URL": self.postgres.url, "DATABASE_OWNER_URL": self.postgres.admin_url, "REDIS_URL": self.redis.url,
            "PORT": str(self.port), "ROLES": "api", "DEMO": "1", "MQTT_URL": "", "DRAIN_S": "0.1", **self.settings,
        }  # fmt: skip
        self._ask(environ, "migrate")
        if self.feed is not None:
            self._ask(environ, "import-gtfs", str(self.feed), "--feed-id", "demo", "--partner", "demo")
        self.token = self._ask(environ, "user", "token", "PARTNER_ADMIN", "--partner", "demo", "--hours", "2").strip()
        self.supervisor = subprocess.Popen(
            [*TIMEPOINT, "serve", "--workers", str(self.workers)], env=environ, cwd=CHECKOUT, stderr=self.log
        )
        for _ in range(200):
            time.sleep(0.1)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=1):
                    break
            except OSError:
                continue
        else:
            self.log.seek(0)
            raise RuntimeError(f"the product did not come up in 20 s: {self.log.read()[-2000:]}")
        self.pid = children(self.supervisor.pid)[0]
        return self

    def _ask(self, environ: dict[str, str], *words: str) -> str:
        done = subprocess.run([*TIMEPOINT, *words], env=environ, cwd=CHECKOUT, check=True, stdout=subprocess.PIPE, text=True, timeout=120)
        return done.stdout

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        if self.supervisor is not None:
            self.supervisor.send_signal(signal.SIGTERM)
            try:
                self.supervisor.wait(20)
            except subprocess.TimeoutExpired:
                self.supervisor.kill()
        self.postgres.throw_away = True
        self.postgres.remove()
        self.redis.remove()
        self.log.close()


class Area:
    """The bench's own area on a product's Redis (a Unix socket)."""

    def __init__(self, redis: RedisServer, area: str = "bench") -> None:
        self.area, self.n = area, 0
        path = redis.url.removeprefix("unix://").partition("?")[0]
        self.link = socket.socket(socket.AF_UNIX)
        self.link.settimeout(5)
        self.link.connect(path)
        self.ask("HSET", f"ctl:{{{area}}}", "epoch", "bench", "n", "0")
        self.ask("SADD", "areas", area)
        self.ask("SPUBLISH", "areas", area)  # who listens to all areas hears of a new one
        self.say([])

    def ask(self, *words: str | bytes) -> None:
        """One command, its answer read and dropped."""
        parts = [word.encode() if isinstance(word, str) else word for word in words]
        self.link.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
        self.link.recv(4096)

    def say(self, positions: list[Any]) -> None:
        """One numbered batch."""
        self.n += 1
        blobs = [word for p in positions for word in (str(p[0]), msgspec.msgpack.encode(p))]
        if blobs:
            self.ask("HSET", f"pos:{{{self.area}}}", *blobs)
        self.ask("HSET", f"ctl:{{{self.area}}}", "n", str(self.n))
        self.ask("SPUBLISH", f"live:{{{self.area}}}", msgspec.msgpack.encode([self.area, "bench", self.n, positions, [], [], []]))

    def position(self, bus_id: str, at: int) -> list[Any]:
        """A position as it stands in Redis (engine/events.py), moving with `at`."""
        ahead = ["1021", 14, 1_771_250_740_000, 1_771_250_760_000, 1_771_250_790_000, 45, "ESTIMATED", None]
        lat, lon = 36.70 + at % 1000 / 1e4, 3.05 + int(bus_id[1:] or 0) % 100 / 1e3
        return [
            bus_id, "demo", self.area, "trip-17", "r-4", "20260216", lat, lon, 91.5, 8.25, 1204.5, 3.2, "IN_TRIP", 45, ahead,
            1_771_250_709_250 + at, 1_771_250_709_500 + at, 13, None,
        ]  # fmt: skip


@contextlib.contextmanager
def floor_server(module: str) -> Iterator[tuple[int, int]]:
    """(port, process) of the floor that `python -m MODULE --floor PORT` serves."""
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", module, "--floor", str(port)])
    try:
        time.sleep(1.5)
        yield port, server.pid
    finally:
        server.kill()
        server.wait()


def table(title: str, rows: list[tuple[str, str, str, str, str]]) -> None:
    """Prints what / figure / bar / verdict / what bounds it."""
    print(f"\n{title}")
    rows = [("what", "figure", "bar", "", "bounded by"), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def verdict(figure: float, bar: float) -> str:
    return "pass" if figure <= bar else "SHORT"
