"""Trip instances on sale, as one worker knows them: stops, legs, seat map. Bounded, read from the database when first asked for and again
after KEEP_MS; what decides a sale (status, map version) is judged by the database itself, so an old entry costs a second look, nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from datetime import datetime
from typing import Any, Final

import msgspec

from engine.booking.refusals import Refused
from engine.booking.seats import Layout, layout_of
from engine.errors import EngineError, Invalid, NotFound
from engine.meter import Meter
from engine.store.desk import ALL, DeskPool
from engine.store.postgres import statements

log = logging.getLogger(__name__)

KEEP_MS: Final = 20_000  # after that it is read again, while callers go on with what they have
STALE_MS: Final = 120_000  # older than that, they wait for it
CANCELLED_MS: Final = 5_000  # how old the list of cancelled trips may be


class SoldStop(msgspec.Struct, frozen=True, gc=False):
    """A stop of a trip as it stood when sales opened. `place` counts 0 .. n-1 and is what legs are made of."""

    place: int
    stop_sequence: int
    stop_id: str  # public id
    name: str
    lat: float
    lon: float
    arrives_at_ms: int
    departs_at_ms: int
    pickup: bool
    drop_off: bool


class SoldTrip(msgspec.Struct, frozen=True, eq=False):
    """A trip on one service date, on sale. `labels[n - 1]` is the label of seat n; `sellable` has the numbers that may be sold."""

    trip_no: int
    trip_id: str
    partner_id: str
    feed_id: str
    route_id: str
    start_date: str  # yyyymmdd
    headsign: str | None
    status: str
    sales_open: bool
    closes_at_ms: int
    map_version: int
    timezone: str
    bus_id: str | None
    layout_id: str
    fare_plan_id: str
    currency: str
    departs_at_ms: int
    arrives_at_ms: int
    version: int
    stops: tuple[SoldStop, ...]
    labels: tuple[str, ...]
    sellable: frozenset[int]
    layout: Layout
    numbers: dict[str, int]  # label -> seat number
    read_at_ms: int

    def number_of(self, label: str, pointer: str = "/seats") -> int:
        """Raises `Invalid` for a seat that this bus does not have."""
        number = self.numbers.get(label)
        if number is None or number not in self.sellable:
            raise Invalid(
                f"no seat {label[:20]!r} is sold on {self.trip_id}; GET /v1/trips/{self.trip_id}/seats names them",
                errors=[{"pointer": pointer, "code": "UNKNOWN_SEAT", "detail": f"{label[:20]!r} is no seat of this trip"}],
            )
        return number

    def label_of(self, number: int) -> str:
        return self.labels[number - 1]

    def places_of(self, stop: str | int) -> list[int]:
        """Where the trip calls at a stop: its places by id, or the one with that stop sequence (a number, also in digits)."""
        if isinstance(stop, str):
            found = [one.place for one in self.stops if one.stop_id == stop]
            if found or not (stop.isascii() and stop.isdigit() and len(stop) < 8):
                return found
        return [one.place for one in self.stops if one.stop_sequence == int(stop)]

    def legs(self, start: str | int, end: str | int) -> tuple[int, int]:
        """(place of `start`, place of `end`) of a ride: stop ids, or stop sequences where a stop comes twice.

        Of a stop that comes twice, the pair that rides least. Raises `Invalid` for an unknown stop, a ride that goes nowhere or backwards,
        and stops where nobody may get in or out.
        """
        starts, ends = self.places_of(start), self.places_of(end)
        for places, stop, pointer in ((starts, start, "/from"), (ends, end, "/to")):
            if not places:
                raise Invalid(
                    f"{self.trip_id} does not call at {str(stop)[:80]!r}; GET /v1/trips/{self.trip_id} lists its stops",
                    errors=[{"pointer": pointer, "code": "UNKNOWN_STOP", "detail": f"no stop {str(stop)[:80]!r} on this trip"}],
                )
        pairs = sorted((b - a, a, b) for a in starts for b in ends if a < b)
        if not pairs:
            raise Invalid(
                f"{self.trip_id} calls at `to` no later than at `from`: a ride goes forwards",
                errors=[{"pointer": "/to", "code": "WRONG_DIRECTION", "detail": "`to` must come after `from` on this trip"}],
            )
        for _, a, b in pairs:
            if self.stops[a].pickup and self.stops[b].drop_off:
                return a, b
        raise Invalid(
            f"nobody may get in at {self.stops[pairs[0][1]].name!r} or out at {self.stops[pairs[0][2]].name!r} on {self.trip_id}",
            errors=[{"pointer": "/from", "code": "NO_PICKUP", "detail": "this trip takes no passengers between these two stops"}],
        )


class Catalogue:
    """Sold trips by public id and by number."""

    def __init__(self, pool: DeskPool, trips_max: int, meter: Meter | None = None) -> None:
        self._pool, self._most, self._clock = pool, trips_max, pool.clock
        self._sql = statements("catalogue")
        self._trips: OrderedDict[str, SoldTrip] = OrderedDict()
        self._ids: dict[int, str] = {}
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._unsold: OrderedDict[str, int] = OrderedDict()  # trip id -> until when (UTC ms) it need not be looked for again
        self._maps: OrderedDict[tuple[int, int], tuple[str, ...]] = OrderedDict()
        self._cancelled: tuple[int, frozenset[str]] | None = None  # until when (UTC ms) it holds, and which
        meter = meter or Meter()
        self._faults = meter.counter("timepoint_catalogue_faults_total", "sold trips that could not be read again")
        self._reads = meter.counter("timepoint_catalogue_reads_total", "sold trips read from the database")

    async def trip(self, trip_id: str) -> SoldTrip:
        """Raises `NotFound` for a trip that was never on sale."""
        known = self._trips.get(trip_id)
        if known is not None:
            age_ms = self._clock.now_ms() - known.read_at_ms
            if age_ms >= KEEP_MS and age_ms < STALE_MS:
                self._refresh(trip_id)
            if age_ms < STALE_MS:
                return known
        return await self._read("trip_by_id", trip_id)

    def _refresh(self, trip_id: str) -> None:
        """Read it again behind the callers' backs, once however many ask."""
        if trip_id in self._reading:
            return

        async def read() -> None:
            try:
                await self._read("trip_by_id", trip_id)
            except EngineError as fault:
                self._faults.add()
                log.warning("%s could not be read again: %s", trip_id, fault)
            finally:
                del self._reading[trip_id]

        self._reading[trip_id] = asyncio.create_task(read(), name=f"read {trip_id}")

    async def find(self, trip_id: str) -> SoldTrip | None:
        """The trip, or None for one that is not on sale; that too is remembered for KEEP_MS."""
        now_ms = self._clock.now_ms()
        if self._unsold.get(trip_id, 0) > now_ms:
            return None
        try:
            return await self.trip(trip_id)
        except NotFound:
            self._unsold[trip_id] = now_ms + KEEP_MS
            self._unsold.move_to_end(trip_id)  # in the order in which they are over
            while len(self._unsold) > self._most or next(iter(self._unsold.values())) <= now_ms:
                self._unsold.popitem(last=False)
            return None

    async def cancelled(self) -> frozenset[str]:
        """Ids of the trips around now that their operators have cancelled, at most CANCELLED_MS old. Raises `Unavailable`."""
        now_ms = self._clock.now_ms()
        if self._cancelled is None or self._cancelled[0] <= now_ms:

            async def read(connection: Any) -> Any:
                return await connection.fetch(self._sql["cancelled_trips"])

            rows = await self._pool.run(ALL, read)
            self._cancelled = now_ms + CANCELLED_MS, frozenset(row["trip_id"] for row in rows)
        return self._cancelled[1]

    async def by_no(self, trip_no: int) -> SoldTrip:
        """The same by the number that claims and events carry."""
        trip_id = self._ids.get(trip_no)
        return await (self.trip(trip_id) if trip_id is not None else self._read("trip_by_no", trip_no))

    async def labels(self, trip: SoldTrip, map_version: int) -> tuple[str, ...]:
        """Seat labels of one version of a trip's map: what a row that was made under it means."""
        if map_version == trip.map_version:
            return trip.labels
        found = self._maps.get((trip.trip_no, map_version))
        if found is None:

            async def read(connection: Any) -> Any:
                return await connection.fetchval(self._sql["labels_of_map"], trip.trip_no, map_version)

            rows = await self._pool.run(ALL, read)
            if rows is None:
                raise NotFound(f"{trip.trip_id} has no seat map of version {map_version}")
            found = self._maps[trip.trip_no, map_version] = tuple(rows)
            if len(self._maps) > self._most:
                self._maps.popitem(last=False)
        return found

    def forget(self, trip_id: str) -> None:
        """Read it again next time: its map or its status has changed."""
        known = self._trips.pop(trip_id, None)
        if known is not None:
            self._ids.pop(known.trip_no, None)

    async def _read(self, statement: str, key: Any) -> SoldTrip:
        async def read(connection: Any) -> Any:
            return await connection.fetchrow(self._sql[statement], key)

        row = await self._pool.run(ALL, read)
        self._reads.add()
        if row is None:
            raise NotFound(f"no trip {str(key)[:120]!r} is on sale")
        trip = _trip(row, self._clock.now_ms())
        self._trips[trip.trip_id] = trip
        self._trips.move_to_end(trip.trip_id)
        self._ids[trip.trip_no] = trip.trip_id
        if len(self._trips) > self._most:
            _, old = self._trips.popitem(last=False)
            self._ids.pop(old.trip_no, None)
        return trip


def open_for_sale(trip: SoldTrip, now_ms: int) -> SoldTrip:
    """The trip, if it can be bought. Raises `Refused` SALES_CLOSED."""
    if not trip.sales_open or trip.status != "SCHEDULED" or trip.closes_at_ms <= now_ms:
        raise sales_closed(trip.trip_id, trip.status)
    return trip


def sales_closed(trip_id: str, status: str) -> Refused:
    why = {"CANCELLED": "it is cancelled", "STARTED": "it has left", "COMPLETED": "it is over"}.get(status, "sales are closed")
    return Refused("SALES_CLOSED", f"{trip_id} is not on sale: {why}")


def _ms(when: datetime) -> int:
    return round(when.timestamp() * 1000)


def _trip(row: Any, now_ms: int) -> SoldTrip:
    labels = tuple(row["labels"])
    stops = tuple(
        SoldStop(h[0], h[1], h[2], h[3], float(h[4]), float(h[5]), int(float(h[6])), int(float(h[7])), h[8], h[9]) for h in row["halts"]
    )
    return SoldTrip(
        trip_no=row["trip_no"],
        trip_id=row["trip_id"],
        partner_id=row["partner_id"],
        feed_id=row["feed_id"],
        route_id=row["route_id"],
        start_date=row["start_date"].strftime("%Y%m%d"),
        headsign=row["headsign"],
        status=row["status"],
        sales_open=row["sales_open"],
        closes_at_ms=_ms(row["closes_at"]),
        map_version=row["map_version"],
        timezone=row["timezone"],
        bus_id=row["bus_id"],
        layout_id=row["layout_id"],
        fare_plan_id=row["fare_plan_id"],
        currency=row["currency"],
        departs_at_ms=_ms(row["departs_at"]),
        arrives_at_ms=_ms(row["arrives_at"]),
        version=row["version"],
        stops=stops,
        labels=labels,
        sellable=frozenset(row["sellable"]),
        layout=layout_of(row["layout"]),
        numbers={label: number for number, label in enumerate(labels, 1)},
        read_at_ms=now_ms,
    )
