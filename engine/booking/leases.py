"""Blocks of seats that a device may sell from without a network: taken, extended, given back.

A lease is a hold without a guest's limits, with the prices of its beginning for every way it can be sold (`Tariff`), so that what a device
charges offline is what the operator asked then. It ends where it expires (the sweep frees what is left) or is given back; what was sold from
it stays sold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from engine.booking.catalogue import Catalogue, SoldTrip, open_for_sale
from engine.booking.desk import TRIES, Pricing
from engine.booking.pos import Tariff
from engine.booking.refusals import Refused
from engine.booking.seats import best_available
from engine.booking.till import Operator
from engine.clock import Clock
from engine.errors import Invalid, NotFound
from engine.live.frames import rfc3339
from engine.settings import Settings
from engine.store.desk import Answer, DeskPool, Key, Work
from engine.store.pos import Pos, ms

SEATS_MAX: Final = 120  # of one lease


class Leases:
    """All of one worker."""

    def __init__(self, pool: DeskPool, catalogue: Catalogue, pricing: Pricing, *, clock: Clock, settings: Settings) -> None:
        self._pool, self._catalogue, self._pricing = pool, catalogue, pricing
        self._clock, self._settings = clock, settings

    async def take(
        self,
        who: Operator,
        key: Key | None,
        device_id: str,
        trip_id: str,
        *,
        labels: Sequence[str] = (),
        count: int = 0,
        start: str | int | None = None,
        end: str | int | None = None,
        ttl_s: int | None = None,
    ) -> Answer:
        """Seats by label, or the best `count`, all or none; from the first stop to the last where none are named.

        Raises `Refused` SEAT_TAKEN (naming the seats), TOO_FEW_SEATS, SALES_CLOSED; `NotFound`, `Invalid`.
        """
        lease_id = self._clock.uuid7()
        for attempt in range(TRIES):
            trip = await self._trip(who, trip_id)
            open_for_sale(trip, self._clock.now_ms())
            stops = trip.stops
            legs = trip.legs(stops[0].stop_sequence if start is None else start, stops[-1].stop_sequence if end is None else end)
            numbers = _numbers(trip, labels, count) or await self._choose(who, trip, legs, count)
            tariff = await self._tariff(trip, legs, numbers)
            work = self._taking(who, lease_id, device_id, trip, legs, numbers, tariff, ttl_s)
            try:
                return await self._pool.once(key, who.partner_id, work)
            except Refused as refusal:
                if refusal.code == "STALE_MAP" or refusal.code == "SALES_CLOSED":
                    self._catalogue.forget(trip_id)
                again = refusal.code == "STALE_MAP" or (refusal.code == "SEAT_TAKEN" and not labels)
                if not again or attempt + 1 == TRIES:
                    raise _worded(refusal, trip) from refusal
        raise AssertionError("the loop returns or raises")

    async def show(self, who: Operator, lease_id: str) -> dict[str, Any]:
        """What is left of it, its end and its prices. Raises `NotFound`."""

        async def read(connection: Any) -> dict[str, Any]:
            return await self._read(_store(connection, who), who, lease_id)

        found: dict[str, Any] = await self._pool.run(who.partner_id, read)
        return found

    async def give_back(self, who: Operator, key: Key | None, lease_id: str) -> Answer:
        """What is unsold is free at once. Giving back twice says so twice. Raises `NotFound`."""

        async def work(connection: Any) -> tuple[int, Any]:
            store = _store(connection, who)
            shown = await self._read(store, who, lease_id, lock=True)
            if shown["status"] == "HELD":
                await store.release(lease_id)
            return 200, await self._read(store, who, lease_id)

        return await self._pool.once(key, who.partner_id, work)

    async def extend(self, who: Operator, key: Key | None, lease_id: str, ttl_s: int | None = None) -> Answer:
        """It goes on from now, within its longest life. Raises `Refused` LEASE_OVER; `NotFound`."""
        ttl = float(ttl_s or self._settings.pos_lease_s)

        async def work(connection: Any) -> tuple[int, Any]:
            store = _store(connection, who)
            await self._read(store, who, lease_id, lock=True)
            said = await store.extend(lease_id, ttl, float(self._settings.pos_lease_most_s))
            if said["status"] == "REFUSED":
                raise Refused(said["code"], f"lease {lease_id} is over: upload what was sold from it and take another")
            return 200, await self._read(store, who, lease_id)

        return await self._pool.once(key, who.partner_id, work)

    # --- how they are made ---

    def _taking(
        self,
        who: Operator,
        lease_id: str,
        device_id: str,
        trip: SoldTrip,
        legs: tuple[int, int],
        numbers: list[int],
        tariff: Tariff,
        ttl_s: int | None,
    ) -> Work:
        """The transaction of `take`."""
        labels = [trip.label_of(number) for number in numbers]
        prices = [tariff.price(label, *legs) or 0 for label in labels]
        ttl = float(min(ttl_s or self._settings.pos_lease_s, self._settings.pos_lease_most_s))

        async def work(connection: Any) -> tuple[int, Any]:
            store = _store(connection, who)
            if not await store.lock_device(device_id, name_it=who.device_id is None):
                raise NotFound(f"no device {device_id[:80]!r}")
            said = await store.hold(lease_id, trip.trip_no, trip.map_version, numbers, *legs, prices, trip.currency, device_id, ttl)
            if said["status"] == "REFUSED":
                raise Refused(said["code"], "", seats=said.get("seats"))
            await store.put_lease(lease_id, device_id, trip.trip_no, labels, *legs, tariff)
            return 201, _shown(trip, await store.lease(lease_id), trip.labels)

        return work

    async def _trip(self, who: Operator, trip_id: str) -> SoldTrip:
        trip = await self._catalogue.trip(trip_id)
        if trip.partner_id != who.partner_id:
            raise NotFound(f"no trip {trip_id[:120]!r} is on sale")
        return trip

    async def _choose(self, who: Operator, trip: SoldTrip, legs: tuple[int, int], count: int) -> list[int]:
        free = await self._pool.run(who.partner_id, lambda connection: _store(connection, who).free_seats(trip.trip_no, *legs))
        found = best_available(trip.layout, free, count)
        if not found:
            raise Refused("TOO_FEW_SEATS", f"{trip.trip_id} has no {count} free seats between these stops")
        return found

    async def _tariff(self, trip: SoldTrip, legs: tuple[int, int], numbers: Sequence[int]) -> Tariff:
        """Prices for every way within the legs; a way that the operator has no fare for is not sold."""
        ways: dict[str, tuple[int, int]] = {}
        quote = None
        for start in range(legs[0], legs[1]):
            for end in range(start + 1, legs[1] + 1):
                if not (trip.stops[start].pickup and trip.stops[end].drop_off):
                    continue
                try:
                    quote = await self._pricing.quote(trip, start, end, numbers)
                except Refused as refusal:
                    if refusal.code != "NO_FARE":
                        raise
                    continue
                ways[f"{start}-{end}"] = (quote.base_milli, quote.multiplier)
        if quote is None:
            raise Refused("NO_FARE", f"the operator has no fare for any way of {trip.trip_id} between these stops")
        seats = {trip.label_of(number): permille for number, permille in zip(numbers, quote.classes, strict=True)}
        return Tariff(quote.currency, quote.step, quote.booking_fee, quote.types, seats, ways)

    async def _read(self, store: Pos, who: Operator, lease_id: str, *, lock: bool = False) -> dict[str, Any]:
        row = await store.lease(lease_id)
        if row is None or (who.device_id is not None and row["device_id"] != who.device_id):
            raise NotFound(f"no lease {lease_id[:80]!r}")
        if lock and not await store.lock_device(row["device_id"], name_it=False):
            raise NotFound(f"no device {row['device_id']!r}")
        trip = await self._catalogue.by_no(row["trip_no"])
        return _shown(trip, row, await self._catalogue.labels(trip, row["map_version"]))


def _store(connection: Any, who: Operator) -> Pos:
    return Pos(connection, who.partner_id, who.actor, who.request_id)


def _shown(trip: SoldTrip, row: Any, labels: Sequence[str]) -> dict[str, Any]:
    stops = trip.stops
    tariff = msgspec.convert(row["tariff"], Tariff)
    state = "EXPIRED" if row["state"] == "HELD" and row["over"] else row["state"]
    left = row["left"] if state == "HELD" else []
    return {
        "id": row["lease_id"],
        "deviceId": row["device_id"],
        "tripId": trip.trip_id,
        "from": stops[row["start"]].stop_id,
        "to": stops[row["end"]].stop_id,
        "seats": [
            {"seat": label, "class": tariff.seats[label], "price": tariff.price(label, row["start"], row["end"]) or 0}
            for label in row["labels"]
        ],
        "left": [{"seat": labels[n - 1], "from": stops[a].stop_id, "to": stops[b].stop_id} for n, a, b in left],
        "currency": tariff.currency,
        "fares": [_fare(trip, tariff, way) for way in tariff.ways],
        "status": state,
        "leasedAt": rfc3339(ms(row["leased_at"])),
        "expiresAt": rfc3339(ms(row["expires_at"])),
    }


def _fare(trip: SoldTrip, tariff: Tariff, way: str) -> dict[str, Any]:
    """Prices of one way: passenger type -> class of a seat (permille) -> minor units, so that a device can price any of its seats."""
    start, end = (int(place) for place in way.split("-"))
    of_class = {permille: label for label, permille in tariff.seats.items()}
    prices = {kind: {str(n): tariff.price(label, start, end, kind) or 0 for n, label in of_class.items()} for kind in tariff.types}
    a, b = trip.stops[start], trip.stops[end]
    return {"from": a.stop_id, "to": b.stop_id, "fromSeq": a.stop_sequence, "toSeq": b.stop_sequence, "prices": prices}


def _numbers(trip: SoldTrip, labels: Sequence[str], count: int) -> list[int]:
    """Seat numbers of the labels, ascending; empty where only a number is asked for. Raises `Invalid`."""
    wanted = len(labels) or count
    if bool(labels) == bool(count) or not 1 <= wanted <= SEATS_MAX:
        raise Invalid(
            f"name the seats, or say how many: 1 to {SEATS_MAX}",
            errors=[{"pointer": "/seats", "code": "OUT_OF_RANGE", "detail": f"{wanted} seats"}],
        )
    numbers = sorted({trip.number_of(label, f"/seats/{index}") for index, label in enumerate(labels)})
    if len(numbers) < len(labels):
        raise Invalid("a seat is named twice", errors=[{"pointer": "/seats", "code": "SEAT_TWICE", "detail": "named twice"}])
    return numbers


def _worded(refusal: Refused, trip: SoldTrip) -> Exception:
    """A refusal of the database in words, its seats by label."""
    if refusal.code == "SEAT_TAKEN":
        seats = refusal.facts.get("seats") or [int(n) for n in str(refusal.facts.get("said") or "").strip("{}").split(",") if n]
        labels = [trip.label_of(n) for n in seats]
        faults = [{"pointer": f"/seats/{label}", "code": "SEAT_TAKEN", "detail": f"{label}: taken"} for label in labels]
        return Refused("SEAT_TAKEN", f"{', '.join(labels)} on {trip.trip_id}: taken; nothing is leased", errors=faults)
    if refusal.code == "SALES_CLOSED":
        return Refused("SALES_CLOSED", f"{trip.trip_id} is not on sale")
    if refusal.code == "STALE_MAP":
        return Refused("BUSY", f"the seat map of {trip.trip_id} is changing; ask again", retry_after_s=1)
    if refusal.code == "INVALID":
        return Invalid(f"these seats or stops do not fit {trip.trip_id}")
    return refusal
