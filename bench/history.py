"""How many fixes a second history takes, idempotently, and how long a day of one bus takes to read.

    python -m bench.history [--database-url URL] [--redis-url URL] [--rows 300000] [--worker COMMAND]

Puts committed batches of an area into its out stream, as an owner would, starts one worker of the role `history` and waits until its cursor
has come to the end; then the same rows once more under new stream ids, of which nothing may stay. CPU is that of the worker and of PostgreSQL.
Without URLs: private servers that are thrown away. Bars: 40,000 rows/s, then 80,000; a day of one bus (86,400 fixes) below 50 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import psycopg
import redis

from bench.product import cpu_s
from deploy.servers import PostgresServer, RedisServer, children, throw_away_folder

AREA = "bench"
BATCH = 100  # fixes of one committed batch: what a rate of 5,000/s makes
DAY_S = 86_400
PAGE = 10_000  # fixes of one playback answer
DAY_BUS = "bus-of-a-day"
STATEMENTS = Path(__file__).resolve().parent.parent / "engine" / "store" / "history.sql"
LIMIT_S = 300


@contextlib.contextmanager
def servers(database_url: str | None, redis_url: str | None) -> Iterator[tuple[str, str]]:
    """(database, Redis): the given ones, else private ones. The private PostgreSQL syncs as a real one does."""
    with contextlib.ExitStack() as stack:
        if database_url is None:
            folder = throw_away_folder()
            postgres = PostgresServer(folder, throw_away=False)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.callback(postgres.stop)
            postgres.start()
            database_url = postgres.dsn("bench", "postgres")
            postgres.create_database("bench")
        if redis_url is None:
            private = RedisServer(throw_away_folder())
            stack.callback(private.remove)
            private.start()
            redis_url = private.url
        command = [sys.executable, "-m", "api.cli", "migrate"]
        subprocess.run(
            command, env={**os.environ, "DATABASE_URL": database_url, "DATABASE_OWNER_URL": ""}, check=True, stdout=subprocess.DEVNULL
        )
        yield database_url, redis_url


def row(bus: str, at_ms: int, place: int) -> list[object]:
    """One TrackRow by position (engine/events.py)."""
    lat, lon = 36.70 + place % 9_973 * 1e-5, 3.05 + place % 7_919 * 1e-5
    return [bus, at_ms, lat, lon, at_ms + 45, f"device-of-{bus}", "telemetry", "OK", 5.0, 8.3, 181.5, place, f"trip-{place % 50}", "20260101", place * 1.5, 2.5, "IN_TRIP"]  # fmt: skip  # noqa: E501


def batches(rows: int, now_ms: int) -> Iterator[bytes]:
    """OutBatches: one bus for a whole day at 1 Hz, and 500 others."""
    encode = msgspec.msgpack.encode
    begun_ms = now_ms - DAY_S * 1000
    held = []
    for place in range(rows):
        if place < DAY_S:
            held.append(row(DAY_BUS, begun_ms + place * 1000, place))
        else:
            held.append(row(f"bus-{place % 500}", begun_ms + place // 500 * 1000, place))
        if len(held) == BATCH:
            yield encode([place // BATCH + 1, "1:bench", held, []])
            held = []
    if held:
        yield encode([rows // BATCH + 1, "1:bench", held, []])


def fill(connection: redis.Redis, rows: int, now_ms: int) -> str:
    """The stream's last id."""
    connection.sadd("areas", AREA)
    last = b""
    pipe = connection.pipeline(transaction=False)
    for number, blob in enumerate(batches(rows, now_ms)):
        pipe.xadd(f"out:{{{AREA}}}", {"b": blob, "t": 0})
        if number % 500 == 499:
            last = pipe.execute()[-1]
    return bytes((pipe.execute() or [last])[-1]).decode()


def backends(database_url: str) -> dict[int, float]:
    """CPU seconds of the server's processes: the writer's backend, WAL writer, checkpointer. Empty where it runs on another machine."""
    found = {}
    with psycopg.connect(database_url) as connection:
        server = Path(f"/proc/{connection.info.backend_pid}/stat")
        postmaster = server.read_text().rpartition(")")[2].split()[1] if server.exists() else "-"
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "stat").read_text().rpartition(")")[2].split()[1] == postmaster:
                found[int(entry.name)] = cpu_s(int(entry.name))
    return found


def carry(connection: redis.Redis, database_url: str, worker: int, last: str) -> tuple[float, float, float]:
    """(wall, worker CPU, PostgreSQL CPU) seconds until history has come to `last`."""
    begun, ours, theirs = time.perf_counter(), cpu_s(worker), backends(database_url)
    while (connection.hget(f"cur:{{{AREA}}}", "history") or b"").decode() != last:
        if time.perf_counter() - begun > LIMIT_S:
            raise SystemExit(f"history did not come to {last} within {LIMIT_S} s")
        time.sleep(0.01)
    wall = time.perf_counter() - begun
    return wall, cpu_s(worker) - ours, sum(value - theirs.get(pid, 0.0) for pid, value in backends(database_url).items())


def reads(database_url: str, now_ms: int) -> tuple[float, float, int]:
    """Medians in ms of one bus's newest day: its first page fix by fix, and all of it in buckets of a minute; and the fixes of the page."""
    parts = re.split(r"^-- name: (\w+)\s*$", STATEMENTS.read_text(), flags=re.M)
    statements = dict(zip(parts[1::2], parts[2::2], strict=True))
    end = datetime.fromtimestamp(now_ms / 1000, UTC)
    day = [DAY_BUS, end - timedelta(days=1), end]
    taken: dict[str, list[float]] = {"playback": [], "bus_history": []}
    rows = 0
    with psycopg.connect(database_url, autocommit=True, cursor_factory=psycopg.RawCursor) as connection:
        connection.execute("analyze telemetry.points")  # as autovacuum does within a minute or two
        for name, more in [("playback", [PAGE]), ("bus_history", [60.0, 2_000])] * 7:
            begun = time.perf_counter()
            found = connection.execute(statements[name], [*day, *more], binary=True).fetchall()
            taken[name].append((time.perf_counter() - begun) * 1000)
            rows = max(rows, len(found))
    return statistics.median(taken["playback"]), statistics.median(taken["bus_history"]), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--database-url", help="an empty database, as a role that may migrate it")
    parser.add_argument("--redis-url", help="an empty Redis")
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--worker", default=f"{sys.executable} -m api.cli serve", help="what starts a worker; ROLES=history is set for it")
    args = parser.parse_args()
    with servers(args.database_url, args.redis_url) as (database_url, redis_url), redis.Redis.from_url(redis_url) as connection:
        now_ms = int(time.time() * 1000)
        half = fill(connection, BATCH, now_ms)
        environment = {**os.environ, "DATABASE_URL": database_url, "REDIS_URL": redis_url, "ROLES": "history", "PORT": "0", "DEMO": "true"}
        with subprocess.Popen(shlex.split(args.worker), env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as started:
            try:
                carry(connection, database_url, started.pid, half)  # it has started and knows the area
                pid = (children(started.pid) or [started.pid])[0]  # the worker under its supervisor
                for title in ("new rows", "the same rows again"):
                    os.kill(pid, signal.SIGSTOP)
                    last = fill(connection, args.rows, now_ms)
                    os.kill(pid, signal.SIGCONT)
                    wall, ours, theirs = carry(connection, database_url, pid, last)
                    per_row = f"{ours / args.rows * 1e6:.1f} us worker, {theirs / args.rows * 1e6:.1f} us PostgreSQL CPU a row"
                    print(f"{title:20} {args.rows / wall:9,.0f} rows/s   {per_row}")
            finally:
                started.terminate()
        fix_ms, bucket_ms, fixes = reads(database_url, now_ms)
        print(f"a day of one bus     {fix_ms:9.1f} ms for {fixes:,} fixes, {bucket_ms:.1f} ms for all 86,400 in buckets of a minute")


if __name__ == "__main__":
    main()
