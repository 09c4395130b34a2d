"""A trip that will not run: nobody can buy it from the moment of its cancellation, everybody's money goes back in full, once, and each
booking is told once.

Saying it is one short transaction. Its bookings follow one by one, each in a transaction of its own with its count: whoever dies in the
middle leaves bookings that are dealt with and bookings that are not, and the next worker goes on with those. No booking is dealt with
twice, for what is dealt with has no seats any more. Also here: sales of a trip stopped and let go on.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from datetime import datetime
from typing import Any, Final

from engine.booking.callers import Caller
from engine.booking.catalogue import Catalogue, SoldTrip, sales_closed
from engine.booking.refusals import Refused
from engine.errors import EngineError, NotFound, Unavailable
from engine.live.frames import rfc3339
from engine.meter import Meter
from engine.store.changes import Change
from engine.store.desk import ALL, Answer, DeskPool, Key

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0  # between two looks for trips whose bookings wait
TIDY_LOOKS: Final = 600  # looks between two times that old offers are dropped
PAUSE_MOST_S: Final = 30.0  # between two tries while the database is away
SLICE: Final = 20  # bookings found at a time
FIRST: Final = "00000000-0000-0000-0000-000000000000"


class CancelledTrips:
    """The operator's word, and the worker that makes it true. `run` is to be held by one worker (a lease)."""

    def __init__(self, pool: DeskPool, catalogue: Catalogue, meter: Meter | None = None) -> None:
        self._pool, self._catalogue = pool, catalogue
        self._due = asyncio.Event()
        meter = meter or Meter()
        self._dealt = meter.counter("timepoint_trip_cancellations_bookings_total", "bookings of cancelled trips dealt with")
        self._failed = meter.counter(
            "timepoint_trip_cancellations_failed_total", "bookings of cancelled trips that could not be dealt with yet"
        )

    # --- what the operator says ---

    async def cancel(self, caller: Caller, key: Key | None, trip_id: str, reason: str | None) -> Answer:
        """The trip is CANCELLED. Its bookings follow within seconds; `progress` says how far they are. Raises `Refused` TRIP_OVER."""
        trip = await self._owned(caller, trip_id)

        async def work(connection: Any) -> tuple[int, Any]:
            change = Change(connection, caller.actor, caller.request_id)
            said = await change.value("cancel_trip", trip.trip_no, reason, caller.actor, caller.request_id)
            if said["status"] == "REFUSED":
                raise Refused("TRIP_OVER", f"{trip_id} is over; it cannot be cancelled")
            left = await change.all("bookings_left", trip.trip_no, 100_000, FIRST)
            return 200, {"tripId": trip_id, "status": "CANCELLED", "version": said["version"], "bookings": len(left)}

        answer = await self._pool.once(key, trip.partner_id, work)
        self._catalogue.forget(trip_id)
        self._due.set()
        return answer

    async def progress(self, caller: Caller, trip_id: str) -> dict[str, Any]:
        """How many bookings are dealt with, what goes back, and whether that was all. Raises `NotFound`: not cancelled, or not theirs."""
        trip = await self._owned(caller, trip_id)

        async def read(connection: Any) -> Any:
            return await Change(connection, caller.actor, caller.request_id).one("cancellation", trip.trip_no)

        row = await self._pool.run(trip.partner_id, read)
        if row is None:
            raise NotFound(f"{trip_id} is not cancelled")
        return {
            "tripId": trip_id,
            "reason": row["reason"],
            "bookings": row["bookings"],
            "refunded": {"amount": row["refunded"], "currency": trip.currency},
            "startedAt": _text(row["started_at"]),
            "finishedAt": _text(row["finished_at"]),
        }

    async def set_open(self, caller: Caller, key: Key | None, trip_id: str, *, open_: bool) -> Answer:
        """Sales of the trip go on or stop; what is held and sold stays. Raises `Refused` SALES_CLOSED for a trip that has left or is over."""
        trip = await self._owned(caller, trip_id)

        async def work(connection: Any) -> tuple[int, Any]:
            change = Change(connection, caller.actor, caller.request_id)
            said = await change.value("set_open", trip.trip_no, open_, caller.actor, caller.request_id)
            if said["status"] == "REFUSED":
                raise sales_closed(trip_id, said["trip"])
            return 200, {"tripId": trip_id, "open": said["salesOpen"], "version": said["version"]}

        answer = await self._pool.once(key, trip.partner_id, work)
        self._catalogue.forget(trip_id)
        return answer

    async def _owned(self, caller: Caller, trip_id: str) -> SoldTrip:
        trip = await self._catalogue.trip(trip_id)
        if not caller.runs(trip.partner_id):
            raise NotFound(f"no trip {trip_id[:120]!r} is on sale")
        return trip

    # --- what follows ---

    async def run(self) -> None:
        """For ever: deal with what is left of every cancelled trip; and drop the offers of cancellations that ended a week ago."""
        pause_s = LOOK_S
        for look in itertools.count(1):
            try:
                await self.step()
                if look % TIDY_LOOKS == 0:
                    await self._read("drop_offers")
                pause_s = LOOK_S
            except EngineError as fault:
                log.warning("cancelled trips: %s", fault.detail)
                pause_s = min(pause_s * 2, PAUSE_MOST_S)
            try:
                await asyncio.wait_for(self._due.wait(), pause_s)
            except TimeoutError:
                pass
            self._due.clear()

    async def step(self) -> int:
        """Everything that is left of every cancelled trip, as it now stands; how many bookings that was.

        One that cannot be dealt with is logged and left for the next look: it holds up no other. Raises `Unavailable`.
        """
        done = 0
        for row in await self._read("cancelling"):
            after = FIRST
            while left := await self._read("bookings_left", row["trip_no"], SLICE, after):
                for one in left:
                    after = str(one["lead_id"])
                    done += await self._deal_with(row["trip_no"], after)
            await self._read("finish_cancellation", row["trip_no"])
        return done

    async def _deal_with(self, trip_no: int, lead_id: str) -> int:
        async def work(connection: Any) -> Any:
            return await Change(connection, "system", "changes").value("cancel_for_trip", trip_no, lead_id)

        try:
            await self._pool.run(ALL, work)
        except Unavailable:
            raise
        except Exception:  # whatever it is, the other passengers get their money; the trip stays unfinished and this one is tried again
            self._failed.add()
            log.exception("trip %s: booking %s is not dealt with", trip_no, lead_id)
            return 0
        self._dealt.add()
        return 1

    async def _read(self, statement: str, *args: Any) -> list[Any]:
        async def read(connection: Any) -> list[Any]:
            return await Change(connection, "system", "changes").all(statement, *args)

        found: list[Any] = await self._pool.run(ALL, read)
        return found


def _text(when: datetime | None) -> str | None:
    return None if when is None else rfc3339(round(when.timestamp() * 1000))
