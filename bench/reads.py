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

from bench.history import backends, servers
from bench.product import cpu_s
from deploy.servers import children, free_port

STOPS = 30
TRIPS = 100
PASSES = 9

CALLS_OF_A_DAY = """
insert into telemetry.stop_events (event_id, at, area, bus_id, trip_id, start_date, route_id, stop_id, stop_sequence, arrived_at, departed_at, kind, late)
select t.trip_id || ' ' || u.place, c.at, 'month', 'bus-' || (hashtext(t.trip_id) & 127), t.trip_id, %(day)s, t.route_id, u.stop_id, u.seq, c.at,
       c.at + interval '20 seconds', case when random() < 0.01 then 'MISSED' else 'SERVED' end, false
  from network.trip t join network.pattern p using (version_id, pattern_id)
 cross join lateral unnest(p.stop_ids, p.stop_sequences, t.departure_s) with ordinality as u(stop_id, seq, dep, place)
 cross join lateral (select to_date(%(day)s, 'YYYYMMDD')::timestamp at time zone 'UTC' + make_interval(secs => u.dep + random() * 500 - 100) as at) c
"""
FIXES_OF_A_DAY = """
insert into telemetry.points (ts, bus_no, lat_e6, lon_e6, latency_ms, device_no, source_no, state_no, late, speed_cms, bearing_ddeg, along_m)
select to_date(%(day)s, 'YYYYMMDD')::timestamp at time zone 'UTC' + make_interval(secs => s), n.no, (36e6 + 2e5 * sin(s / 3000.0 + n.no))::int,
       (3e6 + 2e5 * cos(s / 5000.0 + n.no * 2))::int, 40, n.no, n.no, n.no, false, 800, 900, s %% 20000
  from telemetry.names n cross join lateral generate_series(0, 86399, case when n.name = 'bus-0' then 1 else 5 end) s
 where n.name like 'bus-%%'
"""
COPIES = (
    "insert into analytics.{table} select area, service_day - k, {rest} from analytics.{table}, generate_series(1, %(days)s) k"
    " where service_day = to_date(%(day)s, 'YYYYMMDD') on conflict do nothing"
)
TABLES = {
    "delay": "route_id, direction_id, hour, n, missed, delay_sum_s, below",
    "stop_delay": "route_id, direction_id, stop_id, n, missed, delay_sum_s, below",
    "headway": "route_id, direction_id, stop_id, place, n, sum_s, sum2_s, planned_n, planned_sum_s, planned_sum2_s, compared, bunched, gapped",
    "heat": "x, y, fixes, speeds, speed_sum_cms",
}


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
        for statement in (
            "insert into telemetry.names (name) select 'bus-' || i from generate_series(0, %(buses)s - 1) i on conflict do nothing",
            "insert into fleet.bus (bus_id, partner_id, area) select 'bus-' || i, 'month', 'month' from generate_series(0, 199) i",
            CALLS_OF_A_DAY,
            FIXES_OF_A_DAY,
        ):
            begun = time.perf_counter()
            count = connection.execute(statement, {"day": day, "buses": buses}).rowcount
            print(f"  {count:,} rows in {time.perf_counter() - begun:.1f} s", flush=True)
        connection.execute("analyze")


def copy_days(database_url: str, day: str, days: int) -> None:
    """Waits for the summary of the day, and has it stand for all days."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        begun = time.perf_counter()
        while not (
            connection.execute("select 1 from analytics.day").fetchone()
            and connection.execute("select 1 from analytics.heat limit 1").fetchone()
        ):
            if time.perf_counter() - begun > 300:
                raise SystemExit("the product has not summarised the day within 300 s")
            time.sleep(0.5)
        took = connection.execute("select count(*) from analytics.day").fetchone()
        print(f"summarised after {time.perf_counter() - begun:.1f} s ({took[0] if took else 0} day)", flush=True)
        for table, rest in TABLES.items():
            connection.execute(COPIES.format(table=table, rest=rest), {"day": day, "days": days - 1})
            count = connection.execute(f"select count(*) from analytics.{table}").fetchone()
            print(f"  analytics.{table}: {count[0] if count else 0:,} rows")
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
        print(
            f"{median:8.1f} ms (worst {max(taken):7.1f})  bar {bar:5} {'pass ' if median < bar else 'SHORT'} {cpu_ms:6.0f} ms CPU {size / 1024:7.1f} KB  {path}",
            flush=True,
        )
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
