"""How long a feed takes from its zip to a timetable in force.

    python -m bench.feed_import FEED.zip [--database-url URL] [--repeat 3]

Reads the feed in this process (parse), then runs `timepoint import-gtfs` on an empty migrated database, start of Python included (import).
The database is made for this run and dropped after it, on the server of `--database-url` (a role that may create databases and PostGIS),
else on a private server that is thrown away.
Medians of `--repeat` runs; CPU seconds are those of the product, without the server's. Bar: chattanooga (82,644 stop times) below 6 s.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

from deploy.servers import PostgresServer, throw_away_folder
from ingest.gtfs import parse_feed


@contextlib.contextmanager
def empty_database(server_url: str | None) -> Iterator[str]:
    """URL of a database that is gone when the block ends."""
    if server_url is None:
        server = PostgresServer(throw_away_folder())
        try:
            server.start()
            server.create_database("bench")
            yield server.dsn("bench", "postgres")
        finally:
            server.remove()
        return
    name = f"feed_import_{os.getpid()}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f'create database "{name}"')
        try:
            yield urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
        finally:
            connection.execute(f'drop database "{name}" with (force)')


def timepoint(url: str, *arguments: str) -> tuple[float, float]:
    """(seconds, CPU seconds) that the command took, the server's work aside; its output is shown where it failed."""
    begun, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "DATABASE_URL": url, "DATABASE_OWNER_URL": url, "DEMO": "true"}
    done = subprocess.run([sys.executable, "-m", "api.cli", *arguments], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"timepoint {arguments[0]} failed: {done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - begun, after.ru_utime - used.ru_utime + after.ru_stime - used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a feed takes from its zip to a timetable in force.")
    parser.add_argument("feed", type=Path)
    parser.add_argument("--database-url", help="a server to make a database on for this run (default: a private one)")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    parse, whole = [], []
    for _ in range(args.repeat):
        begun, used = time.perf_counter(), time.process_time()
        parsed = parse_feed(args.feed)
        parse.append((time.perf_counter() - begun, time.process_time() - used))
    with empty_database(args.database_url) as url:
        timepoint(url, "migrate")
        for number in range(args.repeat):
            whole.append(timepoint(url, "import-gtfs", str(args.feed), "--feed-id", f"bench{number}", "--json"))
    rows = parsed.info["counts"]["stopTimes"]
    print(f"{args.feed.name}: {rows} stop times, {parsed.info['counts']['trips']} trips, {parsed.info['counts']['patterns']} patterns")
    for name, runs in (("parse ", parse), ("import", whole)):
        wall_s, cpu_s = (statistics.median(values) for values in zip(*runs, strict=True))
        listed = ", ".join(f"{wall:.2f}" for wall, _ in runs)
        print(f"{name} {wall_s:6.2f} s  {cpu_s:6.2f} s CPU  {rows / wall_s:9.0f} stop times/s   (runs {listed})")


if __name__ == "__main__":
    main()
