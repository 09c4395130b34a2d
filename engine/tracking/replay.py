"""Recorded fixes through the engine on the recorded clock: no database, no network, the same input giving the same bytes.

`drive` is the pure core: fixes in order of receipt go into a `Tracker`, ticks come every recorded second, and what it says comes out as
records. `replay` is the file shell around it: it reads a feed and a table of fixes, and writes predictions, stops, progress, incidents,
what was learned, and a manifest that names all inputs with their digests (the public contract, "Set-up and commands").

Every error of the input is `Invalid`, with file and line of each complaint; nothing is written then.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import NamedTuple, TextIO

import msgspec

from engine.errors import Invalid
from engine.events import IncidentEvent, StopEvent, TrackRow, TripForecast
from engine.tracking.eta import ArrivalModel
from engine.tracking.fix import LATE, OK, Fix
from engine.tracking.overrides import WATCH, configured
from engine.tracking.rules import Rules
from engine.tracking.timetable import Timetable
from engine.tracking.tracker import Outcome, Tracker

TICK_MS = 1_000
SAMPLE_MS = 30_000  # predictions stand at epoch multiples of this
DRAIN_MS = 6_000  # ticks after the last row: events settle for 3 s, and wait 1.2 s more for a next fix
COMPLAINTS_MAX = 20  # of one file; one bad export would say the same a million times
LEARNED = "learned.msgpack"
REQUIRED = ("vehicle_id", "timestamp_ms", "lat", "lon")
PREDICTIONS = ("made_at_ms", "vehicle_id", "trip_id", "start_date", "stop_sequence", "stop_id", "p10_ms", "p50_ms", "p90_ms")
STOPS = ("vehicle_id", "trip_id", "start_date", "stop_sequence", "stop_id", "arrived_at_ms", "departed_at_ms", "kind")
PROGRESS = ("vehicle_id", "timestamp_ms", "trip_id", "start_date", "along_m", "offset_m", "state")
INCIDENTS = ("kind", "severity", "vehicle_id", "trip_id", "start_date", "opened_at_ms", "closed_at_ms", "detail")

Report = Callable[[int, int], None]  # rows done, rows in all


class Sampled(NamedTuple):
    """The forecasts of one instant, by bus id."""

    made_at_ms: int
    forecasts: list[TripForecast]


class Told(NamedTuple):
    """What the tracker said since the last record, and how many fixes have gone in."""

    done: int
    outcome: Outcome


class Summary(msgspec.Struct, frozen=True):
    """What a replay did: rows read, verdicts and other counts of the tracker, rows written by file."""

    fixes: int
    counts: dict[str, int]
    written: dict[str, int]


def drive(tracker: Tracker, fixes: Sequence[Fix], faults: Counter[str] | None = None) -> Iterator[Sampled | Told]:
    """All fixes (ordered by receipt) through the tracker, ticks in between; `Sampled` at every multiple of 30 s, `Told` beside it.

    A fix whose folding raises is counted in `faults` by the exception's name and passed over, as the live shell does.
    """
    if not fixes:
        return
    done, total = 0, len(fixes)
    now_ms = -(-fixes[0].received_at_ms // TICK_MS) * TICK_MS
    end_ms = fixes[-1].received_at_ms + DRAIN_MS
    while now_ms <= end_ms:
        while done < total and fixes[done].received_at_ms <= now_ms:
            try:
                tracker.fold(fixes[done])
            except Exception as fault:
                if faults is None:
                    raise
                faults["FAULT_" + type(fault).__name__] += 1
            done += 1
        tracker.tick(now_ms)
        if now_ms % SAMPLE_MS == 0:
            yield Told(done, tracker.take())
            yield Sampled(now_ms, tracker.forecasts(now_ms))
        now_ms += TICK_MS
    yield Told(done, tracker.take())


def replay(
    feed: str | Path,
    fixes: str | Path,
    out: str | Path,
    *,
    read_feed: Callable[[Path], Timetable],
    history: str | Path | None = None,
    overrides: Mapping[str, str] | None = None,
    progress: Report | None = None,
) -> Summary:
    """Replay FIXES over FEED and write the files of the contract into the folder OUT (made where absent, files replaced).

    `read_feed` is `ingest.gtfs.read_feed`, handed in because the engine stands below ingest. `history` is the folder of an earlier replay,
    or of several of them: what they learned is where this one begins. `overrides` sets fields of `ArrivalConfig` by dotted name, and those of
    `WatchConfig` behind `watch.`.
    Raises `Invalid` for bad fixes, settings or history, and what `read_feed` raises for the feed.
    """
    feed, fixes, out = Path(feed), Path(fixes), Path(out)
    config, watch = configured(overrides or {})
    table, fixes_digest = read_fixes(fixes)
    model = ArrivalModel(config)
    earlier = []
    for digest, parts in _learned(history):
        model.inherit(parts)
        earlier.append({"sha256": digest})
    timetable = read_feed(feed)
    tracker = Tracker(timetable, feed_id=timetable.feed_id, partner_id="", model=model)
    tracker.rule(Rules(watch=watch))
    out.mkdir(parents=True, exist_ok=True)
    faults: Counter[str] = Counter()
    with ExitStack() as stack:
        report = progress or stack.enter_context(_bar())
        files = _Files(out, stack)
        for record in drive(tracker, table, faults):
            if isinstance(record, Sampled):
                files.predictions(record)
            else:
                files.told(record.outcome)
                report(record.done, len(table))
        written = files.finish()
    (out / LEARNED).write_bytes(msgspec.msgpack.encode(model.dump(everything=True)))
    counts = dict(sorted((tracker.counts + faults).items()))
    manifest = {
        "program": "timepoint",
        "version": _version(),
        "feed": {"path": str(feed.resolve()), "sha256": _digest(feed), "feedVersion": timetable.version},
        "fixes": {"path": str(fixes.resolve()), "sha256": fixes_digest, "rows": len(table)},
        "history": earlier,
        "settings": msgspec.to_builtins(config) | {WATCH: msgspec.to_builtins(watch)},
        "changed": dict(sorted((overrides or {}).items())),
        "counts": counts,
        "rows": written,
    }
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (out / "manifest.json").write_bytes(text + b"\n")
    return Summary(len(table), counts, written)


class _Files:
    """The four tables of a replay's folder. Predictions and progress are written as they come; stops and incidents once, at the end,
    because a later saying of the same episode replaces the earlier one."""

    def __init__(self, out: Path, stack: ExitStack) -> None:
        self._out = out
        self._predictions = stack.enter_context(_table(out / "predictions.csv", PREDICTIONS))
        self._progress = stack.enter_context(_table(out / "progress.csv", PROGRESS))
        self._progress_rows = csv.writer(self._progress, lineterminator="\n")
        self._stops: dict[str, StopEvent] = {}
        self._incidents: dict[str, IncidentEvent] = {}
        self._written: Counter[str] = Counter()

    def predictions(self, sampled: Sampled) -> None:
        for forecast in sampled.forecasts:
            prefix = f"{sampled.made_at_ms},{quoted(forecast.bus_id)},{quoted(forecast.trip_id)},{forecast.start_date},"
            lines = [
                f"{prefix}{stop.stop_sequence},{quoted(stop.stop_id)},{stop.p10_ms},{stop.p50_ms},{stop.p90_ms}\n"
                for stop in forecast.stops
                if stop.p50_ms is not None
            ]
            self._predictions.writelines(lines)
            self._written["predictions.csv"] += len(lines)

    def told(self, outcome: Outcome) -> None:
        for row in outcome.rows:
            if row.verdict in (OK, LATE):
                self._progress_rows.writerow(_progress_row(row))
                self._written["progress.csv"] += 1
        for event in outcome.events:
            if isinstance(event, StopEvent):
                self._stops[event.event_id] = event
            elif isinstance(event, IncidentEvent):
                self._incidents[event.incident_id] = event

    def finish(self) -> dict[str, int]:
        """Write what was gathered; rows by file."""
        stops = sorted(self._stops.values(), key=lambda e: (e.bus_id, e.start_date, e.trip_id, e.stop_sequence, e.event_id))
        incidents = sorted(self._incidents.values(), key=lambda e: (e.opened_at_ms, e.bus_id, e.kind, e.incident_id))
        with _table(self._out / "stops.csv", STOPS) as file:
            csv.writer(file, lineterminator="\n").writerows(
                (e.bus_id, e.trip_id, e.start_date, e.stop_sequence, e.stop_id, e.arrived_at_ms, e.departed_at_ms, e.kind) for e in stops
            )
        with _table(self._out / "incidents.csv", INCIDENTS) as file:
            csv.writer(file, lineterminator="\n").writerows(
                (e.kind, e.severity, e.bus_id, e.trip_id, e.start_date, e.opened_at_ms, e.closed_at_ms, e.detail) for e in incidents
            )
        self._written["stops.csv"], self._written["incidents.csv"] = len(stops), len(incidents)
        return dict(sorted(self._written.items()))


def _table(path: Path, columns: Sequence[str]) -> TextIO:
    file = path.open("w", encoding="utf-8", newline="", buffering=1 << 20)
    file.write(",".join(columns) + "\n")
    return file


def _progress_row(row: TrackRow) -> tuple[object, ...]:
    along_m = "" if row.along_m is None else f"{row.along_m:.1f}"
    offset_m = "" if row.offset_m is None else f"{row.offset_m:.1f}"
    return row.bus_id, row.fixed_at_ms, row.trip_id, row.start_date, along_m, offset_m, row.state or row.verdict


def quoted(text: str) -> str:
    """One field of a CSV line (RFC 4180)."""
    if any(mark in text for mark in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def read_fixes(path: Path) -> tuple[list[Fix], str]:
    """The fixes of a CSV file, plain or gzip, ordered by (received_at_ms, row), and the file's SHA-256.

    Columns `vehicle_id, timestamp_ms, lat, lon` and optionally `speed_mps, bearing_deg, accuracy_m, trip_id, start_date, received_at_ms`;
    others are passed over. Raises `Invalid` that names file and line of up to 20 complaints.
    """
    raw = _bytes(path)
    digest = hashlib.sha256(raw).hexdigest()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as fault:
            raise Invalid(f"{path}: begins like gzip and is none: {fault}") from fault
    elif path.suffix == ".gz":
        raise Invalid(f"{path}: is called .gz and is not gzip")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise Invalid(f"{path}: not UTF-8 at byte {fault.start}") from fault
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    complaints: list[dict[str, str]] = []
    found: list[Fix] = []
    try:
        header = [name.strip() for name in next(rows, [])]
        missing = [name for name in REQUIRED if name not in header]
        if missing:
            raise Invalid(
                f"{path}:1: missing columns: {', '.join(missing)}", errors=[_complaint(path, 1, "missing columns " + ", ".join(missing))]
            )
        for row in rows:
            if not row:
                continue
            try:
                if len(row) != len(header):
                    raise ValueError(f"{len(row)} fields where the header has {len(header)}")
                found.append(_fix(dict(zip(header, row, strict=True))))
            except ValueError as fault:
                complaints.append(_complaint(path, rows.line_num, str(fault)))
                if len(complaints) == COMPLAINTS_MAX:
                    break
    except csv.Error as fault:
        complaints.append(_complaint(path, rows.line_num, str(fault)))
    if complaints:
        listed = "\n".join(f"{each['pointer']}: {each['detail']}" for each in complaints)
        raise Invalid(f"bad fixes, nothing was replayed:\n{listed}", errors=complaints)
    if not found:
        raise Invalid(f"{path}: no fixes in it")
    found.sort(key=lambda fix: fix.received_at_ms)
    return found, digest


def _complaint(path: Path, line: int, detail: str) -> dict[str, str]:
    return {"pointer": f"{path}:{line}", "code": "BAD_ROW", "detail": detail}


def _fix(row: Mapping[str, str]) -> Fix:
    """One row. Raises ValueError that names the column."""
    bus_id = row["vehicle_id"].strip()
    if not bus_id:
        raise ValueError("vehicle_id is empty")
    fixed_at_ms = _whole(row, "timestamp_ms")
    received = row.get("received_at_ms", "").strip()
    lat, lon = _number(row, "lat"), _number(row, "lon")
    if lat is None or lon is None:
        raise ValueError("lat or lon is empty")
    start_date = row.get("start_date", "").strip() or None
    if start_date is not None and not (len(start_date) == 8 and start_date.isascii() and start_date.isdigit()):
        raise ValueError(f"start_date {start_date!r} is not yyyymmdd")
    return Fix(
        bus_id=bus_id,
        fixed_at_ms=fixed_at_ms,
        lat=lat,
        lon=lon,
        received_at_ms=_whole(row, "received_at_ms") if received else fixed_at_ms,
        device_id=bus_id,
        source="replay",
        accuracy_m=_number(row, "accuracy_m"),
        speed_mps=_number(row, "speed_mps"),
        bearing_deg=_number(row, "bearing_deg"),
        trip_id=row.get("trip_id", "").strip() or None,
        start_date=start_date,
    )


def _whole(row: Mapping[str, str], column: str) -> int:
    text = row[column].strip()
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"{column} {text!r} is not a whole number") from None
    if not 0 <= value < 1 << 53:
        raise ValueError(f"{column} {value} is no time in milliseconds since 1970")
    return value


def _number(row: Mapping[str, str], column: str) -> float | None:
    text = row.get(column, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{column} {text!r} is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{column} is {text}")
    return value


def _learned(history: str | Path | None) -> Iterator[tuple[str, dict[str, bytes]]]:
    """What earlier replays learned, each with its digest."""
    if history is None:
        return
    folder = Path(history)
    files = [folder / LEARNED] if (folder / LEARNED).is_file() else sorted(folder.glob(f"*/{LEARNED}"))
    if not files:
        raise Invalid(f"{folder}: no {LEARNED} of an earlier replay in it or one folder below")
    for file in files:
        raw = _bytes(file)
        try:
            yield hashlib.sha256(raw).hexdigest(), msgspec.msgpack.decode(raw, type=dict[str, bytes])
        except msgspec.DecodeError as fault:
            raise Invalid(f"{file}: not what a replay of this version learned: {fault}") from fault


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise Invalid(f"{path}: cannot be read: {fault.strerror}") from fault


def _digest(path: Path) -> str:
    return hashlib.sha256(_bytes(path)).hexdigest()


def _version() -> str:
    try:
        return package_version("timepoint")
    except PackageNotFoundError:
        return "unpackaged"


@contextmanager
def _bar() -> Iterator[Report]:
    """A progress bar on stderr; silent where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("replay"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("replay", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
