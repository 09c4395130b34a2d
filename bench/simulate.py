"""`timepoint simulate`: buses that drive the loaded feed and report as devices do, through the public ingest only.

Online it keeps an open loop: every bus has its moment in each interval, a fix carries that moment as its time, and a slow engine shows as
waiting and dropped fixes, never as fewer fixes. Offline (`--write-fixes`) it writes the same buses' fixes to a file, as fast as it can, in the
form that `timepoint replay` reads; the same seed gives the same bytes. `--truth DIR` writes what was true: every fix's place, every stop's
times, and what happened on the way. `--fault NAME=SHARE` lets things go wrong on a share of the trips (docs/simulator.md).
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gzip
import heapq
import io
import json
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO
from zlib import crc32
from zoneinfo import ZoneInfo

import uvloop

from bench.fleet import Fleet, SimulatedBus
from bench.network.feed import TIMEZONE, write_feed
from bench.receiver import Reading, Truth
from bench.scenario_roads import Happening
from bench.scenarios import CATALOGUE, Share, parsed, stop_truths
from bench.senders import HttpSender, MqttSender, Sender, SocketSender, Tally
from bench.staged import Stage
from engine.tracking.timetable import Timetable
from ingest.gtfs import read_feed

LAG_MS = 60  # from a fix to its receipt, offline
ROLL_CALL_S = 20.0  # how often it is decided anew who drives
REGISTER_AT_ONCE = 2000
LATE_AT_END_MAX = 1000  # of what is still under way when the drive ends
FIX_COLUMNS = (
    "vehicle_id", "timestamp_ms", "lat", "lon", "speed_mps", "bearing_deg", "accuracy_m", "trip_id", "start_date", "received_at_ms",
)  # fmt: skip
TRUTH_COLUMNS = (
    "vehicle_id",
    "timestamp_ms",
    "true_ms",
    "trip_id",
    "start_date",
    "along_m",
    "offset_m",
    "lat",
    "lon",
    "speed_mps",
    "state",
)
HAPPENED_COLUMNS = ("kind", "vehicle_id", "trip_id", "start_date", "from_ms", "to_ms", "from_m", "to_m", "facts")
STOP_COLUMNS = (
    "vehicle_id", "trip_id", "start_date", "stop_sequence", "stop_id", "arrived_at_ms", "scheduled_ms", "departed_at_ms", "kind",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--feed", type=Path, metavar="FEED.zip", help="the GTFS feed that the engine has loaded (default: the demo network of today)")
    add(
        "--buses",
        type=int,
        metavar="N",
        help="this many; beyond the timetable's own, stand-ins drive trips of other hours (default: the timetable's)",
    )
    add(
        "--speedup",
        type=float,
        default=1.0,
        metavar="S",
        help="drive S times as fast; online, timestamps stay true, so the engine sees fast buses",
    )
    add("--interval", type=float, default=2.0, metavar="SECONDS", help="between two fixes of a bus (default 2)")
    add("--batch", type=int, default=1, metavar="K", help="fixes a request: of one bus, or with --token of all buses together (default 1)")
    add("--duration", type=float, metavar="SECONDS", help="stop after this long (default: never; with --write-fixes 3600)")
    add("--start", metavar="TIME", help="with --write-fixes: when to begin, RFC 3339 (default: now)")
    add("--seed", type=int, default=1)
    add("--url", "--base-url", dest="url", metavar="URL", help="the engine (default: baseUrl of --info)")
    add(
        "--info",
        type=Path,
        default=Path("run/info.json"),
        metavar="FILE",
        help="what a running demo says of itself (default run/info.json)",
    )
    add("--token", metavar="TOKEN", help="one device token for all buses: a gateway's")
    add("--devices", type=Path, metavar="FILE", help="JSON object of bus id -> device token")
    add("--admin-token", metavar="TOKEN", help="registers the buses that have no token (default: the admin login of --info)")
    add("--protocol", choices=("telemetry", "osmand", "owntracks", "ws", "mqtt"), default="telemetry")
    add("--mqtt-url", metavar="URL", help="the broker (default: mqttUrl of --info)")
    add("--connections", type=int, metavar="N", help="kept HTTP connections (default: one for eight buses, at most 256)")
    add("--unnamed-share", type=float, default=0.1, metavar="SHARE", help="of buses that do not say which trip they drive (default 0.1)")
    add(
        "--fault",
        action="append",
        default=[],
        metavar="NAME=SHARE[,OPTION=VALUE...]",
        help=f"what goes wrong, and on which share of the trips; may be repeated: {', '.join(CATALOGUE)}",
    )
    add("--detour-rate", type=float, default=0.01, metavar="SHARE", help="the same as --fault detour=SHARE (default 0.01)")
    add(
        "--staged",
        type=float,
        metavar="SECONDS",
        help="every so often, and soon after the start, one bus drives a detour and another misses a stop",
    )
    add("--noise", type=float, default=1.0, metavar="FACTOR", help="of receivers; 0: the truth, without gaps (default 1)")
    add("--write-fixes", type=Path, metavar="FIXES.csv", help="no engine: write the fixes to a file (.gz: compressed)")
    add("--json", action="store_true", help="a line of JSON every second instead of words: for the benches")
    add("--truth", type=Path, metavar="DIR", help="a folder for what was true: fixes.csv, stops.csv, happened.csv")


# --- the ground: feed, tokens ---


def load_feed(path: Path | None) -> Timetable:
    """The feed, or the demo network of today. Raises ingest.gtfs.FeedRejected."""
    if path is not None:
        return read_feed(path)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "demo.zip"
        write_feed(made, datetime.now(ZoneInfo(TIMEZONE)).date())
        return read_feed(made)


def register(base_url: str, admin_token: str, bus_ids: Sequence[str]) -> dict[str, str]:
    """Bus id -> device token of newly registered devices (POST /v1/admin/devices/bulk). Raises OSError with what the engine answered."""
    tokens: dict[str, str] = {}
    for begin in range(0, len(bus_ids), REGISTER_AT_ONCE):
        wanted = [{"busId": bus_id, "name": bus_id} for bus_id in bus_ids[begin : begin + REGISTER_AT_ONCE]]
        request = urllib.request.Request(
            base_url.rstrip("/") + "/v1/admin/devices/bulk",
            json.dumps({"devices": wanted}).encode(),
            {
                "Content-Type": "application/json",
                "Authorization": f"Bearer {admin_token}",
                "Idempotency-Key": f"simulate-{crc32(json.dumps(wanted).encode()):08x}-{time.time_ns()}",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                items = json.load(answer)["items"]
        except urllib.error.HTTPError as refused:
            raise OSError(f"devices could not be registered: {refused.code} {refused.read()[:500].decode(errors='replace')}") from refused
        tokens.update((item["busId"], item["token"]) for item in items)
    return tokens


class Keys:
    """Which token a bus has. One that has none is registered where there is somebody to do it, and left out otherwise."""

    def __init__(self, base_url: str, shared: str | None, known: dict[str, str], admin_token: str | None) -> None:
        self._base_url, self._shared, self._known, self._admin_token = base_url, shared, known, admin_token
        self.without: set[str] = set()

    def of(self, bus_id: str) -> str:
        return self._shared or self._known[bus_id]

    async def admit(self, buses: Sequence[SimulatedBus]) -> list[SimulatedBus]:
        """Those with a token. Raises OSError where registering fails."""
        if self._shared is not None:
            return list(buses)
        missing = [bus.bus_id for bus in buses if bus.bus_id not in self._known]
        if missing and self._admin_token:
            self._known |= await asyncio.to_thread(register, self._base_url, self._admin_token, missing)
        self.without = {bus.bus_id for bus in buses if bus.bus_id not in self._known}
        return [bus for bus in buses if bus.bus_id in self._known]


def read_info(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def keys_of(args: argparse.Namespace, info: dict[str, Any], base_url: str) -> Keys:
    known: dict[str, str] = dict(info.get("devices") or {})
    if args.devices:
        known = json.loads(args.devices.read_text())
    admin = args.admin_token
    if admin is None:
        logins = info.get("logins") or {}
        admin = next((login.get("token") for role, login in sorted(logins.items()) if "ADMIN" in role.upper()), None)
    return Keys(base_url, args.token, known, admin)


# --- what was true ---


class TruthFiles:
    """DIR/fixes.csv, stops.csv and happened.csv."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._fixes, self._stops, self._happened = (
            csv.writer(stack.enter_context((folder / f"{name}.csv").open("w", newline=""))) for name in ("fixes", "stops", "happened")
        )
        self._fixes.writerow(TRUTH_COLUMNS)
        self._stops.writerow(STOP_COLUMNS)
        self._happened.writerow(HAPPENED_COLUMNS)
        self._clocks: dict[str, list[Happening]] = {}  # of each bus, what its clock suffers

    def look(self, bus: SimulatedBus, truth: Truth, at_ms: int) -> None:
        """One measured fix, sent or not; `at_ms`: what a right clock would have said."""
        for each in bus.happened():
            self._happened.writerow((
                each.kind, each.bus_id, each.trip_id or "", each.start_date or "", each.from_ms, each.to_ms,
                "" if each.from_m is None else each.from_m, "" if each.to_m is None else each.to_m, json.dumps(each.facts),
            ))  # fmt: skip
            if "skewMillis" in each.facts:
                self._clocks.setdefault(bus.bus_id, []).append(each)
        wrong_ms = sum(each.facts["skewMillis"] for each in self._clocks.get(bus.bus_id, ()) if each.from_ms <= truth.at_ms)
        along = "" if truth.along_m is None else f"{truth.along_m:.2f}"
        self._fixes.writerow((
            truth.bus_id, at_ms + bus.receiver.skew_ms + wrong_ms, truth.at_ms, truth.trip_id or "", truth.start_date or "", along,
            f"{truth.offset_m:.2f}", f"{truth.lat:.7f}", f"{truth.lon:.7f}", f"{truth.speed_mps:.2f}", truth.phase,
        ))  # fmt: skip
        for journey, visit in bus.visited(truth.at_ms):
            (stop,) = stop_truths(bus.bus_id, journey.instance, [visit])
            self._stops.writerow((
                stop.bus_id, stop.trip_id, stop.start_date, stop.stop_sequence, stop.stop_id, stop.arrived_at_ms, stop.scheduled_ms,
                stop.departed_at_ms, stop.kind,
            ))  # fmt: skip


# --- offline ---


def drive_offline(
    fleet: Fleet, start_ms: int, duration_s: float, interval_s: float, truth: TruthFiles | None
) -> Iterable[tuple[int, Reading]]:
    """(received_at_ms, reading) in order of receipt; what would arrive after the end is left out."""
    step_ms, buses = round(interval_s * 1000), fleet.on_duty(start_ms)
    roll_call_ms = start_ms
    end_ms = start_ms + round(duration_s * 1000)
    under_way: list[tuple[int, str, int, int, Reading]] = []  # a heap; the running number keeps equal ones in order
    number = 0
    for begin_ms in range(start_ms, end_ms, step_ms):
        if begin_ms - roll_call_ms >= ROLL_CALL_S * 1000:
            buses, roll_call_ms = fleet.on_duty(begin_ms, buses), begin_ms
        for bus in buses:
            at_ms = begin_ms + _phase(bus.bus_id, step_ms)
            where = bus.truth(at_ms)
            if where is None:
                continue
            for due_ms, reading in bus.sends(where, at_ms):
                heapq.heappush(under_way, (due_ms + LAG_MS, bus.bus_id, reading.seq, number, reading))
                number += 1
            if truth is not None:
                truth.look(bus, where, at_ms)
        until_ms = begin_ms + step_ms if begin_ms + step_ms < end_ms else end_ms + LAG_MS
        while under_way and under_way[0][0] < until_ms:
            yield under_way[0][0], heapq.heappop(under_way)[-1]


def _phase(bus_id: str, step_ms: int) -> int:
    return crc32(bus_id.encode()) % step_ms


def write_offline(args: argparse.Namespace, timetable: Timetable) -> int:
    """Writes the files; the number of fixes."""
    start_ms = round((datetime.fromisoformat(args.start).timestamp() if args.start else time.time()) * 1000)
    fleet = _fleet(args, timetable, start_ms)
    count = 0
    with ExitStack() as stack:
        truth = TruthFiles(args.truth, stack) if args.truth else None
        out = csv.writer(stack.enter_context(_opened(args.write_fixes)))
        out.writerow(FIX_COLUMNS)
        for received_ms, r in drive_offline(fleet, start_ms, args.duration or 3600.0, args.interval, truth):
            out.writerow((
                r.bus_id, r.timestamp_ms, f"{r.lat:.6f}", f"{r.lon:.6f}", r.speed_mps, r.bearing_deg, r.accuracy_m, r.trip_id or "",
                r.start_date or "", received_ms,
            ))  # fmt: skip
            count += 1
    return count


def _opened(path: Path) -> TextIO:
    if path.suffix != ".gz":
        return path.open("w", newline="")
    packed = gzip.GzipFile(filename="", fileobj=path.open("wb"), mode="wb", mtime=0)  # no name, no date: the same bytes every time
    return io.TextIOWrapper(packed, newline="")


# --- online ---


def faults_of(args: argparse.Namespace) -> list[Share]:
    """Raises ValueError with what was expected."""
    return [*(parsed(text) for text in args.fault), *([parsed(f"detour={args.detour_rate}")] if args.detour_rate > 0 else [])]


def _fleet(args: argparse.Namespace, timetable: Timetable, now_ms: int) -> Fleet:
    return Fleet(
        timetable,
        now_ms,
        wanted=args.buses,
        seed=args.seed,
        noise=args.noise,
        unnamed_share=args.unnamed_share,
        faults=faults_of(args),
    )


class Drive:
    """The open loop. `simulated_ms` maps wall time to the buses' time, which `speedup` stretches."""

    def __init__(self, fleet: Fleet, sender: Sender, keys: Keys, args: argparse.Namespace, truth: TruthFiles | None) -> None:
        self.fleet, self.sender, self.keys, self.truth = fleet, sender, keys, truth
        self.step_ms, self.batch, self.speedup = max(50, round(args.interval * 1000)), max(1, args.batch), args.speedup
        self.pooled = args.token is not None
        self.began_ms = time.time_ns() // 1_000_000
        self.buses: list[SimulatedBus] = []
        self.gathered: dict[str, list[Reading]] = {}
        self.late: list[tuple[int, int, Reading]] = []  # a heap of what arrives later than it was measured
        self.stage = Stage(args.staged * 1000) if args.staged else None
        self.number = 0
        self.behind_ms = 0

    def simulated_ms(self, wall_ms: int) -> int:
        stretched: float = (wall_ms - self.began_ms) * self.speedup
        return self.began_ms + round(stretched)

    async def roll_call(self, wall_ms: int) -> None:
        chosen = self.fleet.on_duty(self.simulated_ms(wall_ms), self.buses)
        if self.stage is not None:
            self.stage.look(chosen, self.simulated_ms(wall_ms))
        self.buses = sorted(await self.keys.admit(chosen), key=lambda bus: _phase(bus.bus_id, self.step_ms))

    async def run(self, until_ms: float, stop: asyncio.Event, report: Callable[[Drive], None]) -> None:
        round_ms = self.began_ms // self.step_ms * self.step_ms
        called_ms = reported_ms = 0
        while not stop.is_set():
            if round_ms - called_ms >= ROLL_CALL_S * 1000:
                await self.roll_call(round_ms)
                called_ms = round_ms
            for bus in self.buses:
                due_ms = round_ms + _phase(bus.bus_id, self.step_ms)
                now_ms = time.time_ns() // 1_000_000
                if due_ms > now_ms:
                    if due_ms >= until_ms or stop.is_set():
                        return
                    await asyncio.sleep((due_ms - now_ms) / 1000)
                self.behind_ms = max(0, now_ms - due_ms)
                self.report_one(bus, due_ms)
                while self.late and self.late[0][0] <= now_ms:
                    reading = heapq.heappop(self.late)[-1]
                    self.sender.send(reading.bus_id, [reading])
            round_ms += self.step_ms
            wait_ms = round_ms - time.time_ns() // 1_000_000
            if round_ms >= until_ms:
                return
            await asyncio.sleep(max(0.0, wait_ms / 1000))
            if round_ms - reported_ms >= 1000:
                report(self)
                reported_ms = round_ms

    def report_one(self, bus: SimulatedBus, due_ms: int) -> None:
        at_ms = self.simulated_ms(due_ms)
        where = bus.truth(at_ms)
        if where is None:
            return
        readings = []
        for arrives_ms, reading in bus.sends(where, due_ms):
            if arrives_ms <= at_ms:
                readings.append(reading)
            else:
                self.number += 1
                heapq.heappush(self.late, (due_ms + round((arrives_ms - at_ms) / self.speedup), self.number, reading))
        if self.truth is not None:
            self.truth.look(bus, where, due_ms)
        if self.batch > 1:
            sender = f"gateway-{bus.receiver.seq % 8}" if self.pooled else bus.bus_id
            waiting = self.gathered.setdefault(sender, [])
            waiting.extend(readings)
            if len(waiting) >= self.batch:
                self.sender.send(sender, self.gathered.pop(sender))
        elif readings:
            self.sender.send(bus.bus_id, readings)


def sender_of(args: argparse.Namespace, info: dict[str, Any], base_url: str, keys: Keys, buses: int) -> Sender:
    """Raises ValueError for an address that is none."""
    if args.protocol == "mqtt":
        return MqttSender(args.mqtt_url or info.get("mqttUrl") or "", keys.of)
    if args.protocol == "ws":
        return SocketSender(base_url, keys.of)
    connections = args.connections or max(2, min(256, buses // 8))
    return HttpSender(base_url, keys.of, protocol=args.protocol, connections=connections)


def state_line(drive: Drive) -> str:
    tally = drive.sender.tally
    parts = [
        f"{len(drive.buses)} buses", f"{tally.accepted} accepted", f"{tally.quarantined.total()} quarantined", f"{tally.retried} sent again",
        f"{tally.dropped} dropped", f"{drive.sender.waiting()} waiting", f"answer p50 {tally.percentile(0.5):.0f} p99 {tally.percentile(0.99):.0f} ms",
    ]  # fmt: skip
    if drive.behind_ms > 50:
        parts.append(f"generator {drive.behind_ms} ms behind")
    if drive.keys.without:
        parts.append(f"{len(drive.keys.without)} buses without a token")
    for counter in (tally.quarantined, tally.errors):
        parts.extend(f"{name} {count}" for name, count in counter.most_common(4))
    return ", ".join(parts)


def state_json(drive: Drive) -> str:
    tally = drive.sender.tally
    return json.dumps({
        "atMs": time.time_ns() // 1_000_000, "buses": len(drive.buses), "sent": tally.sent, "accepted": tally.accepted,
        "requests": tally.requests, "quarantined": dict(tally.quarantined), "errors": dict(tally.errors), "dropped": tally.dropped,
        "waiting": drive.sender.waiting(), "behindMs": drive.behind_ms, "p50Ms": round(tally.percentile(0.5), 1),
        "p99Ms": round(tally.percentile(0.99), 1), "cpuS": time.process_time(),
    })  # fmt: skip


def _reporter(stack: ExitStack, as_json: bool) -> Callable[[Drive], None]:
    """On a terminal a line that changes every second, else a line every 30 s."""
    if as_json:
        return lambda drive: print(state_json(drive), flush=True)
    if sys.stderr.isatty():
        from rich.console import Console

        status = stack.enter_context(Console(stderr=True).status("starting"))
        return lambda drive: status.update(state_line(drive))
    last = [time.monotonic()]

    def plain(drive: Drive) -> None:
        if time.monotonic() - last[0] >= 30:
            last[0] = time.monotonic()
            print(state_line(drive), file=sys.stderr, flush=True)

    return plain


def _nothing_to_do(timetable: Timetable) -> str:
    return f"no bus of feed {timetable.feed_id} is on duty now: does its calendar cover today, and does every bus have a device token?"


async def run(args: argparse.Namespace) -> int:
    """The whole command; the exit code. Ends on SIGINT and SIGTERM, and after `--duration`."""
    try:
        faults_of(args)
    except ValueError as wrong:
        print(wrong, file=sys.stderr)
        return 2
    timetable = await asyncio.to_thread(load_feed, args.feed)
    if args.write_fixes:
        print(f"{await asyncio.to_thread(write_offline, args, timetable)} fixes in {args.write_fixes}")
        return 0
    info = read_info(args.info)
    base_url = args.url or info.get("baseUrl")
    if not base_url:
        print(f"where is the engine? Give --url, or start the demo (`make run`), which writes {args.info}", file=sys.stderr)
        return 2
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    keys = keys_of(args, info, base_url)
    fleet = await asyncio.to_thread(_fleet, args, timetable, time.time_ns() // 1_000_000)
    with ExitStack() as stack:
        truth = TruthFiles(args.truth, stack) if args.truth else None
        try:
            sender = sender_of(args, info, base_url, keys, args.buses or 200)
            drive = Drive(fleet, sender, keys, args, truth)
            await drive.roll_call(drive.began_ms)
        except (ValueError, OSError) as fault:
            print(fault, file=sys.stderr)
            return 2
        if not drive.buses and args.duration:
            print(_nothing_to_do(timetable), file=sys.stderr)
        until_ms = drive.began_ms + args.duration * 1000 if args.duration else float("inf")
        await drive.run(until_ms, stop, _reporter(stack, args.json))
        for bus_id, readings in drive.gathered.items():
            sender.send(bus_id, readings)
        for _, _, reading in sorted(drive.late)[:LATE_AT_END_MAX]:
            sender.send(reading.bus_id, [reading])
        await sender.close(2.0 if stop.is_set() else 5.0)
    print(state_json(drive) if args.json else state_line(drive))
    return 1 if failed(sender.tally) else 0


def failed(tally: Tally) -> bool:
    """Nothing at all was taken."""
    return tally.accepted == 0 and bool(tally.errors)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="timepoint simulate", description=__doc__)
    add_arguments(parser)
    return int(uvloop.run(run(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
