"""How long a feed takes from its zip to a timetable in force.

    python -m bench.feed_import FEED.zip [--database-url URL] [--repeat 3]

Reads the feed in this process (parse), then runs `timepoint import-gtfs` on an empty migrated database, start of Python included (import).
The database is made for this run and dropped after it, on the server of `--database-url` (a role that may create databases and PostGIS),
else on a private server that is thrown away. Medians of `--repeat` runs; bar: chattanooga (82,644 stop times) below 6 s.
"""

from __future__ import annotations

import argparse
import contextlib
import os
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


def timepoint(url: str, *arguments: str) -> float:
    """Seconds that the command took; its output is shown where it failed."""
    begun = time.perf_counter()
    environment = {**os.environ, "DATABASE_URL": url, "DATABASE_OWNER_URL": url, "DEMO": "true"}
    done = subprocess.run([sys.executable, "-m", "api.cli", *arguments], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"timepoint {arguments[0]} failed: {done.stdout}{done.stderr}")
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a feed takes from its zip to a timetable in force.")
    parser.add_argument("feed", type=Path)
    parser.add_argument("--database-url", help="a server to make a database on for this run (default: a private one)")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    parse, whole = [], []
    for _ in range(args.repeat):
        begun = time.perf_counter()
        parsed = parse_feed(args.feed)
        parse.append(time.perf_counter() - begun)
    with empty_database(args.database_url) as url:
        timepoint(url, "migrate")
        for number in range(args.repeat):
            whole.append(timepoint(url, "import-gtfs", str(args.feed), "--feed-id", f"bench{number}", "--json"))
    rows = parsed.info["counts"]["stopTimes"]
    parse_s, whole_s = statistics.median(parse), statistics.median(whole)
    print(f"{args.feed.name}: {rows} stop times, {parsed.info['counts']['trips']} trips, {parsed.info['counts']['patterns']} patterns")
    print(f"parse   {parse_s:6.2f} s  {rows / parse_s:10.0f} stop times/s")
    print(f"rest    {whole_s - parse_s:6.2f} s  start of Python, COPY, read back")
    print(f"import  {whole_s:6.2f} s  {rows / whole_s:10.0f} stop times/s   (runs {', '.join(f'{value:.2f}' for value in whole)})")


if __name__ == "__main__":
    main()
