"""History in PostgreSQL, with or without TimescaleDB: one writer (psycopg), and range reads (the shared asyncpg pool).

Promises: what a batch holds and the cursor behind it are one transaction, so a batch is in whole, once, or not at all;
writing it again changes nothing. Rows outside the history's window, and fixes with another verdict than OK or LATE, go
to `telemetry.quarantine`, readable by device. Rows are packed: micro-degrees, small integers, ids as numbers of
`telemetry.names`. Raises `Unavailable` where the database is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final

import msgspec
import psycopg

from engine.errors import Unavailable
from engine.events import Event, IncidentEvent, Refusal, StopEvent, TrackRow, TripEvent, TripForecast
from engine.settings import Settings
from engine.store.packing import copied
from engine.store.postgres import Postgres, statements

SQL: Final = statements("history")
KEPT: Final = ("OK", "LATE")  # verdicts that stand among the points
FUTURE_MS: Final = 5 * 60_000  # ahead of now, by a receiver's clock, that history still takes
SECONDS_MOST: Final = 32_767  # of a forecast: nine hours ahead
NAMES_MAX: Final = 500_000  # of the name cache; then it begins anew
END_OF_TIME_MS: Final = 253_402_300_800_000  # the year 10000: what datetime cannot hold, we do not write as a time
FAULTS: Final = (psycopg.OperationalError, psycopg.InterfaceError, OSError, TimeoutError)


class Batch(msgspec.Struct):
    """What one transaction writes of one area and stream: from `cursor` (exclusive) to `then`."""

    area: str
    stream: str  # out | quarantine
    cursor: str | None  # where the writer believes it stands; None: it never wrote here
    then: str
    rows: list[TrackRow] = []
    events: list[Event] = []
    refusals: list[Refusal] = []
    forecasts: list[TripForecast] = []  # as they were published


class Moved(Exception):
    """Another writer moved this cursor: forget what was read and ask for the cursors again."""


class HistoryWriter:
    """One connection, made when needed and made anew after a fault. One task uses it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._names: dict[str, int] = {}
        self._again = False  # the last batch held fixes that were there already, so the next one may too
        self.outside = 0  # forecasts made at a time that history does not take: a clock that jumped

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def cursors(self) -> dict[tuple[str, str], str]:
        """(area, stream) -> cursor, as the database has it."""
        connection = await self._connect()
        try:
            found = await (await connection.execute(SQL["cursors"])).fetchall()
        except FAULTS as away:
            raise await self._lost(away) from away
        return {(area, stream): cursor for area, stream, cursor in found}

    async def write(self, batch: Batch, now_ms: int) -> int:
        """All of the batch and its cursor in one transaction; how many rows were new points. Raises `Moved`,
        `Unavailable`.
        """
        connection = await self._connect()
        try:
            async with asyncio.timeout(self._settings.statement_timeout_ms / 1000 * 3):
                await self._learn_names(connection, batch)
                async with connection.transaction():
                    place = [batch.area, batch.stream, batch.cursor, batch.then]
                    if await (await connection.execute(SQL["move_cursor"], place)).fetchone() is None:
                        raise Moved(f"{batch.area} {batch.stream}")
                    return await self._write(connection, batch, now_ms)
        except FAULTS as away:
            raise await self._lost(away) from away

    async def _write(self, connection: psycopg.AsyncConnection[Any], batch: Batch, now_ms: int) -> int:
        oldest_ms = now_ms - self._settings.history_back_days * 86_400_000
        points, aside = [], []
        for row in batch.rows:
            if row.verdict in KEPT and oldest_ms <= row.fixed_at_ms <= now_ms + FUTURE_MS:
                points.append(row)
            else:
                aside.append(row)
        added = 0
        if points:
            added, late = await self._add_points(connection, points)
            if late:
                await self._ask_repairs(connection, batch.area, late)
        quarantined = [_quarantined_row(row) for row in aside if row.verdict != "DUPLICATE"]
        quarantined += [_quarantined_refusal(refusal) for refusal in batch.refusals]
        if quarantined:
            await connection.execute(SQL["add_quarantined"], [batch.area, *columns(quarantined)])
        await self._write_events(connection, batch, now_ms)
        samples = [one for one in batch.forecasts if oldest_ms <= one.made_at_ms <= now_ms + FUTURE_MS]
        self.outside += len(batch.forecasts) - len(samples)
        packed = [columned for one in samples if (columned := self._sample_columns(batch.area, one)) is not None]
        if packed:
            await connection.execute(SQL["add_forecasts"], columns(packed))
        return added

    async def _add_points(self, connection: psycopg.AsyncConnection[Any], points: list[TrackRow]) -> tuple[int, list[tuple[str, int, int]]]:
        """How many were new, and of each bus with late ones among them its first and last (ms)."""
        data = copied(points, self._names)
        # what is late may be there, or may belong into a part of the table that is compressed already: it is always staged
        if not self._again and all(row.verdict != "LATE" for row in points):
            try:
                async with connection.transaction(), connection.cursor().copy(SQL["copy_points"]) as copy:
                    await copy.write(data)
                return len(points), []
            except psycopg.errors.UniqueViolation:
                self._again = True
        async with connection.cursor().copy(SQL["copy_staged"]) as copy:
            await copy.write(data)
        new = await (await connection.execute(SQL["add_staged"])).fetchall()
        added = sum(count for _, count, _, _ in new)
        self._again = added < len(points)
        names = {self._names[row.bus_id]: row.bus_id for row in points if row.verdict == "LATE"}
        return added, [(names[bus_no], since_ms, until_ms) for bus_no, _, since_ms, until_ms in new if bus_no is not None]

    async def _ask_repairs(self, connection: psycopg.AsyncConnection[Any], area: str, late: list[tuple[str, int, int]]) -> None:
        """Late fixes that history did not have change what it said of their trips (engine/tracking/repair.py): bus, first and last in ms."""
        late.sort()  # one order for everybody: two writers cannot wait for each other
        await connection.execute(SQL["ask_repairs"], [area, *columns(late), self._settings.repair_quiet_s])

    async def _write_events(self, connection: psycopg.AsyncConnection[Any], batch: Batch, now_ms: int) -> None:
        stops = [stop_columns(e) for e in batch.events if isinstance(e, StopEvent)]
        trips = [_trip_columns(e) for e in batch.events if isinstance(e, TripEvent)]
        if stops:
            await connection.execute(SQL["add_stop_events"], [batch.area, now_ms, *columns(stops)])
        if trips:
            await connection.execute(SQL["add_trip_events"], [batch.area, *columns(trips)])
        for e in batch.events:
            if isinstance(e, IncidentEvent):
                await connection.execute(SQL["say_incident"], _incident_values(batch.area, e))

    def _sample_columns(self, area: str, one: TripForecast) -> tuple[Any, ...] | None:
        """A forecast as a row of telemetry.forecasts; None: nothing was foretold."""
        stops = [stop for stop in one.stops if stop.p50_ms is not None and stop.p10_ms is not None and stop.p90_ms is not None]
        if not stops:
            return None
        sequences = [stop.stop_sequence for stop in stops]
        dense = sequences == list(range(sequences[0], sequences[0] + len(stops)))
        numbers = self._names
        return (
            one.made_at_ms,
            numbers[one.bus_id],
            numbers[area],
            numbers[one.trip_id],
            int(one.start_date),
            sequences[0],
            None if dense else _array(sequences),
            _array(_ahead_s(stop.p10_ms, one.made_at_ms) for stop in stops),
            _array(_ahead_s(stop.p50_ms, one.made_at_ms) for stop in stops),
            _array(_ahead_s(stop.p90_ms, one.made_at_ms) for stop in stops),
        )

    async def _learn_names(self, connection: psycopg.AsyncConnection[Any], batch: Batch) -> None:
        """Numbers of all names in the batch. In a transaction of its own: a name that nobody uses yet harms nobody."""
        if len(self._names) > NAMES_MAX:
            self._names.clear()
        wanted = {
            name for row in batch.rows for name in (row.bus_id, row.device_id, row.source, row.trip_id, row.state) if name is not None
        }
        wanted.update(name for one in batch.forecasts for name in (batch.area, one.bus_id, one.trip_id))
        unknown = sorted(wanted - self._names.keys())
        if not unknown:
            return
        found = await (await connection.execute(SQL["names"], [unknown])).fetchall()
        missing = sorted(set(unknown) - {name for name, _ in found})
        if missing:
            await connection.execute(SQL["add_names"], [missing])
            found += await (await connection.execute(SQL["names"], [missing])).fetchall()
        self._names.update(found)

    async def tick(self) -> None:
        """Once a minute: partitions ahead, what is too old away. One engine at a time; another's tick is left alone."""
        connection = await self._connect()
        settings = self._settings
        try:
            async with connection.transaction():
                locked = await (await connection.execute(SQL["tick_lock"])).fetchone()
                if not (locked and locked[0]):
                    return
                await connection.execute(SQL["ensure_partitions"], [settings.history_back_days + 1, 7])
                await connection.execute(SQL["drop_points"], [settings.history_keep_days])
                await connection.execute(SQL["ensure_forecast_days"], [settings.history_back_days + 1, 7])
                await connection.execute(SQL["drop_forecasts"], [settings.forecast_keep_days])
                await connection.execute(SQL["drop_eta_accuracy"], [settings.accuracy_keep_days])
                await connection.execute(SQL["drop_eta_days"], [settings.accuracy_keep_days])
                await connection.execute(SQL["drop_stop_events"], [settings.history_keep_days])
                await connection.execute(SQL["drop_trip_events"], [settings.history_keep_days])
                await connection.execute(SQL["drop_quarantined"], [min(30, settings.history_keep_days)])
        except FAULTS as away:
            raise await self._lost(away) from away

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            try:
                connection = await psycopg.AsyncConnection.connect(
                    self._settings.database_url,
                    autocommit=True,
                    connect_timeout=5,
                    application_name="timepoint history",
                    cursor_factory=psycopg.AsyncRawCursor,
                    options=f"-c statement_timeout={self._settings.statement_timeout_ms * 3}",
                )
                await connection.execute(SQL["stage"])
            except FAULTS as away:
                raise Unavailable(f"PostgreSQL does not answer: {away}", retry_after_s=2) from away
            self._connection = connection
        return self._connection

    async def _lost(self, away: BaseException) -> Unavailable:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close()
            except FAULTS:
                pass  # it was lost anyway
        return Unavailable(f"PostgreSQL does not answer: {away}", retry_after_s=2)


def columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _ahead_s(at_ms: int | None, made_at_ms: int) -> int:
    assert at_ms is not None
    return max(-SECONDS_MOST, min(SECONDS_MOST, round((at_ms - made_at_ms) / 1000)))


def _array(values: Iterable[int]) -> str:
    """An array in PostgreSQL's text form: rows of one statement have arrays of unequal length, which no array of arrays can hold."""
    return "{" + ",".join(map(str, values)) + "}"


def stop_columns(e: StopEvent) -> tuple[Any, ...]:
    ids = (e.event_id, e.bus_id, e.trip_id, e.start_date, e.route_id, e.stop_id, e.stop_sequence)
    return (*ids, e.arrived_at_ms, e.departed_at_ms, e.kind, e.late)


def _trip_columns(e: TripEvent) -> tuple[Any, ...]:
    return (e.event_id, e.at_ms, e.bus_id, e.trip_id, e.start_date, e.route_id, e.kind, e.reason, e.late)


def _incident_values(area: str, e: IncidentEvent) -> list[Any]:
    ids = (e.incident_id, e.event_id, area, e.kind, e.severity, e.bus_id, e.trip_id, e.start_date, e.route_id)
    return [*ids, e.opened_at_ms, e.closed_at_ms, e.lat, e.lon, e.detail or "{}", e.late]


def _quarantined_row(row: TrackRow) -> tuple[Any, ...]:
    reason = "OUTSIDE_HISTORY" if row.verdict in KEPT else row.verdict
    detail = msgspec.json.encode(msgspec.structs.asdict(row)).decode()
    return (
        row.received_at_ms,
        row.device_id,
        _fingerprint(detail),
        row.bus_id,
        row.source,
        reason,
        row.fixed_at_ms if 0 <= row.fixed_at_ms < END_OF_TIME_MS else None,
        row.lat,
        row.lon,
        detail,
    )


def _quarantined_refusal(said: Refusal) -> tuple[Any, ...]:
    fingerprint = _fingerprint(f"{said.index}\n{said.reason}\n{said.bus_id}\n{said.detail}")
    detail = said.detail.replace("\x00", "\ufffd")  # PostgreSQL text holds no zero
    return (said.received_at_ms, said.device_id, fingerprint, said.bus_id, said.source, said.reason, None, None, None, detail)


def _fingerprint(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big", signed=True)


class Bucket(msgspec.Struct, frozen=True):
    """One bucket of `bus_history`; lat and lon are where it stood at the bucket's end."""

    bucket: datetime
    n: int
    mean_speed_mps: float | None
    max_speed_mps: float | None
    max_offset_m: float | None
    mean_latency_ms: float
    first_at: datetime
    last_at: datetime
    lat: float
    lon: float


class PastFix(msgspec.Struct, frozen=True):
    """One fix as history kept it."""

    ts: datetime
    lat: float
    lon: float
    speed_mps: float | None
    bearing_deg: float | None
    accuracy_m: float | None
    along_m: int | None
    offset_m: float | None
    trip_id: str | None
    start_date: int | None  # yyyymmdd
    state: str | None
    late: bool
    latency_ms: int


class Quarantined(msgspec.Struct, frozen=True):
    """One fix that is not in history, and why."""

    received_at: datetime
    device_id: str
    area: str
    bus_id: str | None
    source: str
    reason: str
    ts: datetime | None  # None: the door could not read one
    lat: float | None
    lon: float | None
    detail: str
    fingerprint: int  # tells apart what one request brought


class HistoryReader:
    """Range reads over the shared pool. Times are aware datetimes; ranges are half open; every list has a limit."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def bus_history(self, bus_id: str, since: datetime, until: datetime, bucket_s: int, limit: int = 2_000) -> list[Bucket]:
        """Buckets with at least one fix, oldest first."""
        found = await self._postgres.fetch(SQL["bus_history"], bus_id, since, until, float(bucket_s), limit)
        return [Bucket(*row) for row in found]

    async def playback(self, bus_id: str, since: datetime, until: datetime, limit: int = 10_000) -> list[PastFix]:
        """Fixes in order of their own time."""
        return await self._past(await self._postgres.fetch(SQL["playback"], bus_id, since, until, limit))

    async def last_position(self, bus_id: str, since: datetime) -> PastFix | None:
        """The newest fix since then: what REST answers while Redis is away."""
        found = await self._past(await self._postgres.fetch(SQL["last_position"], bus_id, since))
        return found[0] if found else None

    async def _past(self, rows: list[Any]) -> list[PastFix]:
        """Names for the numbers of trips and states: few, so asked for once; joining them row by row took three times the scan."""
        numbers = {number for row in rows for number in (row["trip_no"], row["state_no"]) if number is not None}
        names: dict[int | None, str | None] = {None: None}
        if numbers:
            names.update(dict(map(tuple, await self._postgres.fetch(SQL["names_of"], sorted(numbers)))))
        past = []
        for row in rows:
            values: tuple[Any, ...] = (*row[:8], names[row["trip_no"]], row["start_date"], names[row["state_no"]], *row[11:])
            past.append(PastFix(*values))
        return past

    async def quarantine(self, device_id: str, before: datetime, limit: int = 20, after: int | None = None) -> list[Quarantined]:
        """Newest first, received before then; with `after` also those received then whose fingerprint comes after it."""
        return [Quarantined(*row) for row in await self._postgres.fetch(SQL["quarantine"], device_id, before, limit, after)]
