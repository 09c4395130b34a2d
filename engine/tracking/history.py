"""The history shell: carries what the owners committed from `out:{area}` into the database, and what the door refused
from `quar:{area}`.

Promises: each batch is written with its cursor in one transaction, so whoever is killed, history has every committed
fix once and every event once by its id. The database away: reading stops, the streams wait (bounded by their byte
caps), live goes on; history is complete afterwards. A batch that the database refuses for what is in it goes to the
dead letters and the next one is written: counted, never stuck, never silent.

The cursor in the database is the truth; the one told to Redis only lets `out:{area}` be trimmed, and is told after the
commit.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import Final

import msgspec
import psycopg

from engine.clock import Clock
from engine.errors import Unavailable
from engine.events import OutBatch, Refusal, TrackRow, TripForecast
from engine.meter import SECONDS, SIZES, Meter
from engine.settings import Settings
from engine.store.area import START, AreaStore, id_order
from engine.store.lease import hold
from engine.store.redis import Redis
from engine.store.timescale import Batch, HistoryWriter, Moved

log = logging.getLogger(__name__)

READ_COUNT: Final = 200  # stream entries a read
TURN_MAX: Final = 8  # full transactions of one area before the others have their turn
TELL_S: Final = 5.0  # an idle reader tells its cursors again: a Redis that lost them would hold its stream for ever
TICK_S: Final = 60.0
AREAS_S: Final = 1.0  # how often new areas are looked for
UNWRITABLE: Final = (psycopg.DataError, ValueError, OverflowError)  # not that the server is away: what is in the batch
PAUSE_MOST_S: Final = 5.0  # between two tries at a database that is away


class History:
    """The one writer among all workers, by a lease; every worker of the role `history` runs one and most of them
    wait.
    """

    def __init__(self, redis: Redis, *, clock: Clock, settings: Settings, meter: Meter) -> None:
        self._redis, self._clock, self._settings = redis, clock, settings
        self._writer = HistoryWriter(settings)
        self._out = msgspec.msgpack.Decoder(OutBatch).decode
        self._refusals = msgspec.msgpack.Decoder(list[Refusal]).decode
        self._cursors: dict[tuple[str, str], str] = {}
        self._areas: dict[str, AreaStore] = {}
        self._rows = meter.counter("timepoint_history_rows_total", "fixes written to history", ("area",))
        self._batches = meter.histogram("timepoint_history_batch_fixes", "fixes of one history transaction", bounds=SIZES)
        self._took = meter.histogram("timepoint_history_write_seconds", "one history transaction", bounds=SECONDS)
        self._faults = meter.counter("timepoint_history_faults_total", "history writes that failed, by kind", ("kind",))
        self._behind = meter.gauge("timepoint_history_behind_seconds", "age of the newest batch that history has written", ("area",))
        self._ahead = meter.counter("timepoint_cursor_ahead_total", "cursors that lay ahead of the server's clock", ("area", "reader"))

    async def run(self) -> None:
        """For ever, until cancelled."""
        try:
            await hold(self._redis, "history", self._settings, self._write_on)
        finally:
            await self._writer.close()

    async def _write_on(self) -> None:
        """While the lease is ours: read, write, tell. Faults of either server are waited out here."""
        pause_s = 0.1
        self._cursors.clear()
        self._areas.clear()
        begun, ticked_s, told_s, looked_s = False, -TICK_S, 0.0, -AREAS_S
        while True:
            now_s = self._clock.steady_s()
            try:
                if not begun:
                    self._cursors = await self._writer.cursors()
                    begun, told_s = True, -TELL_S
                if now_s - ticked_s >= TICK_S:
                    await self._writer.tick()
                    ticked_s = now_s
                if now_s - looked_s >= AREAS_S:
                    await self._look_for_areas()
                    looked_s = now_s
                moved = False
                for area in list(self._areas):
                    moved |= await self._carry(area)
                if now_s - told_s >= TELL_S:
                    await self._tell_all()
                    told_s = now_s
                pause_s = 0.1
            except Moved as other:
                log.warning("history: another writer has been at %s", other)
                self._faults.add(1, "Moved")
                begun, moved = False, False
            except (Unavailable, psycopg.Error) as away:  # a schema or a right that is missing is waited for like a server
                self._faults.add(1, type(away).__name__)
                log.warning("history waits: %s", away)
                begun = False
                await asyncio.sleep(pause_s)
                pause_s = min(PAUSE_MOST_S, pause_s * 2)
                continue
            if not moved:
                await asyncio.sleep(self._settings.history_gather_ms / 1000)

    async def _look_for_areas(self) -> None:
        for area in await self._redis.areas():
            if area not in self._areas:
                self._areas[area] = AreaStore(self._redis, area)
                for stream in ("out", "quarantine"):
                    await self._check_cursor(area, stream)

    async def _check_cursor(self, area: str, stream: str) -> None:
        """A cursor ahead of the server's clock would pass over what comes: read from the start instead, writing
        twice is harmless.
        """
        cursor = self._cursors.get((area, stream))
        if cursor is None or not await self._areas[area].is_ahead(cursor):
            return
        log.error("history of %s: cursor %s lies ahead of the server's clock; reading from the start", area, cursor)
        self._ahead.add(1, area, "history")
        await self._write(Batch(area, stream, cursor, START))

    async def _carry(self, area: str) -> bool:
        """What there is of each stream of an area, in transactions of the out stream; whether there was more than fits one."""
        store, settings = self._areas[area], self._settings
        batch = await self._gather(store, self._cursors.get((area, "out")))
        behind = False
        for turn in range(TURN_MAX):
            if batch.then == (batch.cursor or START):
                break
            behind = len(batch.rows) >= settings.history_batch_max
            # the next batch is read and decoded while the database writes this one: each takes about half of the time
            ahead = (
                asyncio.create_task(self._gather(store, batch.then), name=f"history of {area} reads ahead")
                if behind and turn + 1 < TURN_MAX
                else None
            )
            try:
                await self._write(batch)
            except BaseException:
                if ahead is not None:
                    ahead.cancel()
                raise
            await store.tell_cursor("history", batch.then)
            self._behind.set(max(0.0, (self._clock.now_ms() - id_order(batch.then)[0]) / 1000), area)
            if ahead is None:
                break
            batch = await ahead
        return await self._carry_refusals(store) or behind

    async def _gather(self, store: AreaStore, cursor: str | None) -> Batch:
        """The next fixes of an area after `cursor`, as many as a transaction takes."""
        batch = Batch(store.area, "out", cursor, cursor or START, [], [], forecasts=[])
        while len(batch.rows) < self._settings.history_batch_max:
            entries = await store.read_out(batch.then, READ_COUNT, 0)
            for entry_id, payload in entries:
                try:
                    out = self._out(payload)
                except (msgspec.DecodeError, msgspec.ValidationError) as broken:
                    await self._bury(store, payload, broken)
                else:
                    batch.rows += out.rows
                    batch.events += out.events
                    batch.forecasts += out.forecasts
                batch.then = entry_id
                if len(batch.rows) >= self._settings.history_batch_max:
                    break
            if len(entries) < READ_COUNT:
                break
            await asyncio.sleep(0)
        return batch

    async def _carry_refusals(self, store: AreaStore) -> bool:
        cursor = self._cursors.get((store.area, "quarantine"))
        entries = await store.read_quarantine(cursor or START, READ_COUNT)
        if not entries:
            return False
        batch = Batch(store.area, "quarantine", cursor, entries[-1][0], refusals=[])
        for _, payload in entries:
            try:
                batch.refusals += self._refusals(payload)
            except (msgspec.DecodeError, msgspec.ValidationError) as broken:
                await self._bury(store, payload, broken)
        await self._write(batch)
        return len(entries) == READ_COUNT

    async def _write(self, batch: Batch) -> None:
        try:
            await self._commit(batch)
            return
        except UNWRITABLE as fault:
            broken = fault
        self._faults.add(1, "Unwritable")
        await self._write_halves(batch, broken)

    async def _write_halves(self, batch: Batch, broken: Exception) -> None:
        """A batch could not be written for what is in it: finds the item, buries it, writes all others."""
        items = [*batch.rows, *batch.events, *batch.refusals, *batch.forecasts]
        key = (batch.area, batch.stream)
        if len(items) <= 1:
            log.error("history of %s: cannot be written: %s", batch.area, broken)
            await self._bury(self._areas[batch.area], msgspec.msgpack.encode(items), broken)
        else:
            middle = len(items) // 2
            for half in (items[:middle], items[middle:]):
                cursor = self._cursors.get(key)
                piece = Batch(  # the place stays: a crash here begins again
                    batch.area,
                    batch.stream,
                    cursor,
                    cursor or START,
                    rows=[item for item in half if isinstance(item, TrackRow)],
                    events=[item for item in half if not isinstance(item, TrackRow | Refusal | TripForecast)],
                    refusals=[item for item in half if isinstance(item, Refusal)],
                    forecasts=[item for item in half if isinstance(item, TripForecast)],
                )
                await self._write(piece)
        await self._commit(Batch(batch.area, batch.stream, self._cursors.get(key), batch.then))

    async def _commit(self, batch: Batch) -> None:
        began_s = self._clock.steady_s()
        added = await self._writer.write(batch, self._clock.now_ms())
        self._cursors[(batch.area, batch.stream)] = batch.then
        if outside := self._writer.outside:
            self._faults.add(outside, "ForecastOutside")
            self._writer.outside = 0
        self._took.observe(self._clock.steady_s() - began_s)
        if batch.rows:
            self._batches.observe(len(batch.rows))
            self._rows.add(added, batch.area)

    async def _bury(self, store: AreaStore, payload: bytes, broken: Exception) -> None:
        self._faults.add(1, "Dead")
        await store.bury(payload, "".join(traceback.format_exception(broken))[-4_000:])

    async def _tell_all(self) -> None:
        for (area, stream), cursor in self._cursors.items():
            if stream == "out" and area in self._areas:
                await self._areas[area].tell_cursor("history", cursor)
