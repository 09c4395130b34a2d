"""The manifest: who travels on a trip, what an offline scanner has to know of it, and which scans somebody should look at."""

from __future__ import annotations

import csv
import io
from typing import Any, Final

import msgspec

from engine.booking import scans
from engine.booking.catalogue import Catalogue, SoldTrip
from engine.booking.issuing import Issuer, ms, name_of
from engine.booking.tickets import HMAC, PublicKey, Revoked, TripSecret, text64, trip_digest
from engine.clock import Clock
from engine.live.frames import rfc3339
from engine.store.desk import DeskPool
from engine.store.postgres import statements

COLUMNS: Final = (
    "seat", "lastName", "firstName", "type", "from", "to", "state", "reference", "channel", "phone", "boardedAt", "boardedBy", "ticketId",
)  # fmt: skip


class Travels(msgspec.Struct, frozen=True, rename="camel"):
    """One passenger on their legs. `state`: BOOKED, CHECKED_IN, BOARDED, NO_SHOW."""

    seat: str
    passenger: str
    first_name: str
    last_name: str
    type: str
    from_: str = msgspec.field(name="from")  # names of stops
    to: str
    from_stop_id: str
    to_stop_id: str
    state: str
    reference: str | None
    channel: str
    phone: str | None
    needs: Any  # what the passenger asked for, as booked; null: nothing
    ticket_id: str | None
    ticket_version: int | None
    boarded_at: str | None
    boarded_by: str | None


class LookAt(msgspec.Struct, frozen=True, rename="camel"):
    """A scan that the devices and the server saw differently."""

    result: str
    told: str  # what the device was told
    meaning: str
    seat: str
    reference: str | None
    device: str
    seq: int | None
    scanned_at: str
    received_at: str
    boarded_at: str | None
    boarded_by: str | None


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """`counts` by state, and of all seats. `ticket_keys` (with this trip's HMAC secrets, where there are any) and `revoked` let a device
    verify offline."""

    trip_id: str
    route_id: str
    headsign: str | None
    operator: str
    status: str
    bus_id: str | None
    timezone: str
    departs_at: str
    arrives_at: str
    map_version: int
    made_at: str
    counts: dict[str, int]
    passengers: list[Travels]
    look_at: list[LookAt]
    revoked: list[Revoked]
    keys: list[PublicKey]
    trip_secrets: list[TripSecret]


class Manifests:
    """Makes them."""

    def __init__(self, pool: DeskPool, catalogue: Catalogue, issuer: Issuer, clock: Clock) -> None:
        self._pool, self._catalogue, self._issuer, self._clock = pool, catalogue, issuer, clock
        self._sql = statements("tickets")

    async def of(self, trip: SoldTrip) -> Manifest:
        """As of now. The trip is read anew: a swap may have changed bus and map."""
        self._catalogue.forget(trip.trip_id)
        trip = await self._catalogue.trip(trip.trip_id)

        async def read(connection: Any) -> tuple[Any, Any, Any]:
            return (
                await connection.fetch(self._sql["manifest"], trip.trip_no),
                await connection.fetch(self._sql["manifest_revoked"], trip.trip_no),
                await connection.fetch(self._sql["manifest_scans"], trip.trip_no, sorted(scans.LOOK_AT)),
            )

        people, revoked, odd = await self._pool.run(trip.partner_id, read)
        maps = {version: await self._catalogue.labels(trip, version) for version in {row["map_version"] for row in (*people, *odd)}}
        passengers = [_travels(row, trip, maps[row["map_version"]]) for row in people]
        keys = await self._issuer.published()
        return Manifest(
            trip_id=trip.trip_id,
            route_id=trip.route_id,
            headsign=trip.headsign,
            operator=await self._issuer.operator(trip.partner_id),
            status=trip.status,
            bus_id=trip.bus_id,
            timezone=trip.timezone,
            departs_at=rfc3339(trip.departs_at_ms),
            arrives_at=rfc3339(trip.arrives_at_ms),
            map_version=trip.map_version,
            made_at=rfc3339(self._clock.now_ms()),
            counts=_counts(passengers, len(trip.sellable)),
            passengers=passengers,
            look_at=[_look_at(row, maps[row["map_version"]]) for row in odd],
            revoked=[Revoked(row["ticket_id"], row["good_from_version"]) for row in revoked],
            keys=keys.keys,
            trip_secrets=await self._secrets(trip),
        )

    async def _secrets(self, trip: SoldTrip) -> list[TripSecret]:
        keys = await self._issuer.keys()
        digest = trip_digest(trip.trip_id)
        held = [(key_id, keys.secret(key_id, digest)) for key_id in sorted(keys.ours) if keys.alg[key_id] == HMAC]
        return [TripSecret(key_id, trip.trip_id, text64(secret)) for key_id, secret in held if secret is not None]


def _counts(passengers: list[Travels], seats: int) -> dict[str, int]:
    states = ("BOOKED", "CHECKED_IN", "BOARDED", "NO_SHOW")
    return {"passengers": len(passengers), "seats": seats} | {state: sum(one.state == state for one in passengers) for state in states}


def _when(at: Any) -> str | None:
    return None if at is None else rfc3339(ms(at))


def _travels(row: Any, trip: SoldTrip, labels: tuple[str, ...]) -> Travels:
    start, end = trip.stops[row["from_place"]], trip.stops[row["to_place"]]
    return Travels(
        seat=labels[row["seat"] - 1],
        passenger=name_of(row),
        first_name=row["first_name"],
        last_name=row["last_name"],
        type=row["type"],
        from_=start.name,
        to=end.name,
        from_stop_id=start.stop_id,
        to_stop_id=end.stop_id,
        state=row["passenger_state"],
        reference=row["reference"],
        channel=row["channel"],
        phone=(row["contact"] or {}).get("phone"),
        needs=row["detail"],
        ticket_id=row["ticket_id"],
        ticket_version=row["version"],
        boarded_at=_when(row["boarded_at"]),
        boarded_by=row["boarded_by"],
    )


def _look_at(row: Any, labels: tuple[str, ...]) -> LookAt:
    return LookAt(
        result=row["result"],
        told=row["first_result"],
        meaning=scans.MEANINGS.get(row["result"], ""),
        seat=labels[row["seat"] - 1],
        reference=row["reference"],
        device=row["device"],
        seq=row["seq"],
        scanned_at=rfc3339(ms(row["at"])),
        received_at=rfc3339(ms(row["received_at"])),
        boarded_at=_when(row["boarded_at"]),
        boarded_by=row["boarded_by"],
    )


def as_csv(manifest: Manifest) -> str:
    """One line for each passenger, RFC 4180. A cell that a spreadsheet would take for a formula begins with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for one in manifest.passengers:
        cells = msgspec.to_builtins(one)
        writer.writerow([_cell(cells[name]) for name in COLUMNS])
    return out.getvalue()


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return f"'{text}" if text[:1] in "=+-@\t\r" and text[:1] and not text[1:].replace(" ", "").isdigit() else text
