"""What is tidied up: holds and unpaid bookings past their time, and rows that were kept long enough.

A hold that is over is taken over by the next hold that wants its seats (booking.hold), so the sweep decides nothing: it lets the map, the
limits and the audit say what is so. Every part is cut into slices, so that no transaction is long: an old snapshot slows every hold.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Final

from engine.clock import Clock
from engine.errors import EngineError, Unavailable
from engine.meter import Meter
from engine.settings import Settings
from engine.store.office import Office

log = logging.getLogger(__name__)

SLICE: Final = 200  # bookings of one transaction
SLACK: Final = timedelta(seconds=30)  # clocks of ours and the database's, and a look that failed
WIDE_S: Final = 600.0  # between two looks that go back all the way: at those whose payment ended, whose trip was being swapped
WIDE: Final = timedelta(days=8)  # how far those look
NARROW: Final = timedelta(hours=1)  # how far the others look at most, after those that could not go
RETENTION_S: Final = 60.0
ROWS: Final = 2_000  # of one slice of retention
SLICES_MAX: Final = 50  # of one round: 100,000 rows a minute is more than we write


class Expiry:
    """Holds and unpaid bookings past their time. The index by time has every booking there ever was, so a look goes back only to where the
    last one began, or to what that had to leave; now and then one goes back further."""

    def __init__(self, office: Office, *, clock: Clock, settings: Settings, meter: Meter) -> None:
        self._office, self._clock, self._settings = office, clock, settings
        self._gone = meter.counter("timepoint_bookings_expired_total", "holds and unpaid bookings that the sweep let go")
        self._since: datetime | None = None  # where the next look begins; None: there was none yet
        self._wide_s = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.sweep()
            except EngineError as fault:
                log.warning("expiry: %s", fault)
            await asyncio.sleep(self._settings.expiry_s)

    async def sweep(self) -> int:
        """One look; how many bookings went. Raises `Unavailable`, `Refused` BUSY."""
        now = datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC)
        steady_s = self._clock.steady_s()
        wide = self._since is None or steady_s - self._wide_s >= WIDE_S
        since = now - WIDE if self._since is None or wide else max(self._since, now - NARROW)
        gone, stayed = await self._from(since)
        self._since = min(now, stayed or now) - SLACK
        if wide:
            self._wide_s = steady_s
        self._gone.add(gone)
        return gone

    async def _from(self, since: datetime) -> tuple[int, datetime | None]:
        """How many went, and since when the first of those that could not go is over."""
        count, stayed = 0, None
        while True:
            over = await self._office.overdue(since, SLICE)
            gone = await self._office.expire([booking_id for booking_id, _ in over], f"sweep:{self._clock.uuid7()}") if over else set()
            count += len(gone)
            left = [at for booking_id, at in over if booking_id not in gone]
            if left:
                stayed = stayed or left[0]
                since = over[-1][1]  # past them; others of this very instant come with the next look
            if len(over) < SLICE:
                return count, stayed


class Retention:
    """Events that were said, what consumers did, answers under their keys: gone when they have been kept long enough."""

    def __init__(self, office: Office, *, settings: Settings, meter: Meter) -> None:
        self._office, self._settings = office, settings
        self._gone = meter.counter("timepoint_retention_rows_total", "rows that were kept long enough", ("what",))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.sweep()
            except Unavailable as away:
                log.warning("retention: %s", away)
            await asyncio.sleep(RETENTION_S)

    async def sweep(self, rows: int = ROWS) -> dict[str, int]:
        """How many rows went of each table. Raises `Unavailable`."""
        total: dict[str, int] = {}
        for _ in range(SLICES_MAX):
            went = await self._office.sweep(
                outbox=timedelta(days=self._settings.outbox_keep_days), inbox=timedelta(days=self._settings.inbox_keep_days), limit=rows
            )
            for what, count in went.items():
                total[what] = total.get(what, 0) + count
                self._gone.add(count, what)
            if max(went.values()) < rows:
                break
        return total
