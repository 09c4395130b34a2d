"""How long managers wait for their figures: a month of a fleet of 200 buses, asked over HTTP of a real worker.

    python -m bench.reads [--buses 40] [--days 30] [--routes 20]

Makes a feed (20 routes in both directions, 100 trips each way and day, 30 stops: 120,000 calls a day), writes one day of calls and of fixes, has
the product summarise the day, copies the summaries to the other days, and asks each call nine times. `--buses` is how many leave fixes (a fix
every 5 s; one of them one a second); the heat map's cells do not depend on it. Servers are private and thrown away.
Bars: analytics < 1,000 ms, a day of one bus < 50 ms, the dashboard < 100 ms (medians).
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psycopg

from bench.checks import statements
from bench.history import backends, servers
from bench.product import cpu_s
from deploy.servers import children, free_port

STOPS = 30
TRIPS = 100
PASSES = 9
LIMIT_S = 300

SQL = statements("reads")


def write_feed(path: Path, routes: int) -> None:
    """A month's feed: straight lines side by side, a bus every nine minutes both ways."""
    files: dict[str, list[list[object]]] = {
        "agency.txt": [["agency_id", "agency_name", "agency_url", "agency_timezone"], ["A", "Month", "https://bus.example", "UTC"]],
        "stops.txt": [["stop_id", "stop_name", "stop_lat", "stop_lon"]],
        "routes.txt": [["route_id", "agency_id", "route_short_name", "route_long_name", "route_type"]],
        "calendar.txt": [
            ["service_id", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "start_date", "end_date"],
            ["all", 1, 1, 1, 1, 1, 1, 1, "20200101", "20991231"],
        ],
        "trips.txt": [["route_id", "service_id", "trip_id", "direction_id"]],
        "stop_times.txt": [["trip_id", "arrival_time", "departure_time", "stop_id", "stop_sequence"]],
    }
    for route in range(routes):
        files["routes.txt"].append([f"R{route}", "A", str(route), f"Line {route}", 3])
        for way in range(2):
            for place in range(STOPS):
                lon = 3.0 + 0.005 * (place if way == 0 else STOPS - place)
                files["stops.txt"].append(
                    [f"S{route}.{way}.{place}", f"Stop {place} of {route}", 36.0 + 0.01 * route + 0.0002 * way, round(lon, 5)]
                )
            for number in range(TRIPS):
                trip = f"T{route}.{way}.{number}"
                files["trips.txt"].append([f"R{route}", "all", trip, way])
                for place in range(STOPS):
                    at = 5 * 3600 + number * 540 + place * 75
                    clock = f"{at // 3600:02d}:{at // 60 % 60:02d}:{at % 60:02d}"
                    files["stop_times.txt"].append([trip, clock, clock, f"S{route}.{way}.{place}", place + 1])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, rows in files.items():
            text = io.StringIO()
            csv.writer(text).writerows(rows)
            zipped.writestr(name, text.getvalue())


def fill(database_url: str, day: str, buses: int) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        for name in ("names", "buses", "calls", "fixes"):
            begun = time.perf_counter()
            count = connection.execute(SQL[name], {"day": day, "buses": buses}).rowcount
            print(f"  {name}: {count:,} rows in {time.perf_counter() - begun:.1f} s", flush=True)
        connection.execute("analyze")


def copy_days(database_url: str, day: str, days: int) -> None:
    """Waits for the summary of the day, and has it stand for all days."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        begun = time.perf_counter()
        while (row := connection.execute(SQL["summarised"]).fetchone()) is None or not row[0]:
            if time.perf_counter() - begun > LIMIT_S:
                raise SystemExit(f"the product has not summarised the day within {LIMIT_S} s")
            time.sleep(0.5)
        print(f"summarised after {time.perf_counter() - begun:.1f} s, the worker's start among them", flush=True)
        for name in ("copy_delay", "copy_stop_delay", "copy_headway", "copy_heat"):
            count = connection.execute(SQL[name], {"day": day, "more": days - 1}).rowcount
            print(f"  {name}: {count:,} rows", flush=True)
        connection.execute("analyze")


def measure(http: httpx.Client, head: dict[str, str], day: datetime, days: int, used_s: Callable[[], float]) -> bool:
    """Whether every call keeps its bar. `used_s`: CPU of worker and database so far; what a call costs where others share the machine."""
    span = f"from={(day - timedelta(days=days - 1)).date()}&to={day.date()}"
    week = f"from={(day - timedelta(days=6)).date()}&to={day.date()}"
    begin, end = day.strftime("%Y-%m-%dT00:00:00Z"), (day + timedelta(days=1)).strftime("%Y-%m-%dT00:00:00Z")
    hour = day.strftime("%Y-%m-%dT09:00:00Z")
    asked = [
        *((f"/v1/analytics/on-time?by={by}&{span}", 1_000) for by in ("day", "route", "hour", "stop")),
        (f"/v1/analytics/on-time?by=hour&route=month:R3&{span}", 1_000),
        *((f"/v1/analytics/headways?by={by}&{span}", 1_000) for by in ("route", "stop", "day")),
        (f"/v1/analytics/heatmap?bbox=2.5,35.5,3.5,36.5&resolution=200&{span}", 1_000),
        (f"/v1/analytics/heatmap?bbox=2.5,35.5,3.5,36.5&resolution=1000&{week}", 1_000),
        (f"/v1/analytics/deviation?{span}", 1_000),
        (f"/v1/analytics/ladder?route=month:R3&direction=0&date={day.date()}", 1_000),
        ("/v1/dashboard", 100),
        (f"/v1/buses/bus-0/playback?from={begin}&to={end}&stepS=60", 50),
        (f"/v1/buses/bus-1/playback?from={begin}&to={end}&stepS=60", 50),
        (f"/v1/buses/bus-0/playback?from={begin}&to={end}&stepS=10", 250),
        (f"/v1/buses/bus-0/playback?from={begin}&to={end}&limit=1000", 50),
        (f"/v1/playback?area=month&from={begin}&to={hour}&stepS=60", 1_000),
    ]
    good = True
    for path, bar in asked:
        taken, size, before_s = [], 0, used_s()
        for _ in range(PASSES):
            begun = time.perf_counter()
            answer = http.get(path, headers=head)
            taken.append((time.perf_counter() - begun) * 1000)
            if answer.status_code != 200:
                raise SystemExit(f"{path}: {answer.status_code} {answer.text[:300]}")
            size = len(answer.content)
        cpu_ms = (used_s() - before_s) / PASSES * 1000
        median = statistics.median(taken)
        good &= median < bar
        verdict = "pass " if median < bar else "SHORT"
        cost = f"{cpu_ms:6.0f} ms CPU {size / 1024:7.1f} KB"
        print(f"{median:8.1f} ms (worst {max(taken):7.1f})  bar {bar:5} {verdict} {cost}  {path}", flush=True)
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], epilog="example: python -m bench.reads --buses 10")
    parser.add_argument("--buses", type=int, default=40, help="how many leave fixes")
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--routes", type=int, default=20)
    args = parser.parse_args()
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    port = free_port()
    with servers(None, None) as (database_url, redis_url), tempfile.TemporaryDirectory() as folder:
        env = {
            **os.environ,
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "DEMO": "1",
            "PORT": str(port),
            "ROLES": "api,history",
            "DRAIN_S": "0",
        }
        command = [sys.executable, "-m", "api.cli"]
        write_feed(Path(folder) / "month.zip", args.routes)
        imported = [*command, "import-gtfs", f"{folder}/month.zip", "--feed-id", "month", "--partner", "month"]
        subprocess.run(imported, env=env, check=True, stdout=subprocess.DEVNULL)
        fill(database_url, day.strftime("%Y%m%d"), args.buses)
        token = subprocess.run(
            [*command, "user", "token", "PARTNER_ADMIN", "--partner", "month", "--hours", "1"],
            env=env,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        with subprocess.Popen([*command, "serve"], env=env, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as worker:
            try:
                copy_days(database_url, day.strftime("%Y%m%d"), args.days)
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
                    pid = (children(worker.pid) or [worker.pid])[0]

                    def used_s() -> float:
                        return cpu_s(pid) + sum(backends(database_url).values())

                    good = measure(http, {"Authorization": f"Bearer {token}"}, day, args.days, used_s)
            finally:
                worker.terminate()
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
