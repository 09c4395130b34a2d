"""Running a fleet over REST: buses, the devices that speak for them, and feeds. For PARTNER_ADMIN of the partner and SUPER_ADMIN.

A foreign partner's things are as unknown as things that do not exist (404). Credentials are shown once, in the answer that makes them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from api.auth import PARTNER_ADMIN, SUPER_ADMIN, Principal, need
from api.network import Cursor, Limit
from api.parts import Parts, parts_of
from api.tracking import principal_of
from engine.errors import Conflict, Forbidden, Invalid, NotFound, TooLarge, Unavailable
from engine.live.frames import rfc3339
from engine.office.accounts import GATEWAY, TOKEN, BusRow, DeviceRow, Issued, NewDevice, create_devices, rotate_device
from engine.store.fleet import FIRST, Fleet
from engine.store.postgres import Postgres
from ingest.feed_import import import_zip

BULK_MOST: Final = 10_000
FEED_MOST_BYTES: Final = 200_000_000


class NewBus(msgspec.Struct, frozen=True, rename="camel"):
    bus_id: str
    feed_id: str | None = None  # the feed it drives; None: the partner's only one
    label: str = ""
    plate: str | None = None
    partner_id: str | None = None


class BusItem(msgspec.Struct, frozen=True, rename="camel"):
    bus_id: str
    partner_id: str
    feed_id: str
    label: str
    plate: str | None
    retired_at: str | None


class BusItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[BusItem]
    next_cursor: str | None


class DeviceRequest(msgspec.Struct, frozen=True, rename="camel"):
    """One device to be made. `busId` for one bus, `busIds` for a gateway; buses that do not exist yet are made with it."""

    bus_id: str | None = None
    bus_ids: list[str] | None = None
    kind: str | None = None
    name: str = ""
    unique_id: str | None = None
    feed_id: str | None = None
    partner_id: str | None = None


class BulkRequest(msgspec.Struct, frozen=True, rename="camel"):
    devices: Annotated[list[DeviceRequest], msgspec.Meta(min_length=1, max_length=BULK_MOST)]
    feed_id: str | None = None
    partner_id: str | None = None


class DeviceItem(msgspec.Struct, frozen=True, rename="camel"):
    device_id: str
    partner_id: str
    kind: str
    name: str
    bus_ids: list[str]
    unique_id: str | None
    created_at: str
    rotated_at: str | None
    retired_at: str | None
    seen_at: str | None


class DeviceItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[DeviceItem]
    next_cursor: str | None


class IssuedItem(msgspec.Struct, frozen=True, rename="camel"):
    """Fresh credentials, in clear this one time."""

    device_id: str
    kind: str
    bus_id: str | None  # where it speaks for one bus
    bus_ids: list[str]
    name: str
    token: str | None
    secret: str | None
    previous_until: str | None = None  # after a rotation: until when the last credentials stay good
    mqtt_user: str | None = None  # after a rotation: the broker's user that has the new password at once


class IssuedItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[IssuedItem]
    next_cursor: str | None


class RotateRequest(msgspec.Struct, frozen=True, rename="camel"):
    grace_s: Annotated[int, msgspec.Meta(ge=0, le=7 * 86_400)] = 86_400  # 0: the old credentials end now


class ImportReport(msgspec.Struct, frozen=True, rename="camel"):
    """What became of a feed. `changed` false: this zip was in force already."""

    feed_id: str
    partner_id: str
    version: str
    changed: bool
    counts: dict[str, int]  # agencies, routes, stops, services, patterns, trips, stopTimes
    warnings: list[str]  # the first 1,000, with file and line
    warnings_total: int


# ------------------------------------------------------------------------------------------------ buses


@post("/admin/buses", tags=["fleet"])
async def create_bus(request: Request[Any, Any, Any], data: JSONBody[NewBus]) -> BusItem:
    """A bus of the partner; the same id again changes it."""
    parts = parts_of(request)
    partner_id = _partner(parts, request, data.partner_id)
    await _put_buses(parts, partner_id, [BusRow(data.bus_id, partner_id, feed_of(parts, partner_id, data.feed_id), data.label, data.plate)])
    return _bus(await _bus_row(parts, partner_id, data.bus_id))


@get("/admin/buses", tags=["fleet"])
async def list_buses(
    request: Request[Any, Any, Any],
    limit: Limit = 20,
    cursor: Cursor = None,
    partner: FromQuery[str | None] = None,
    retired: FromQuery[bool] = False,
) -> BusItems:
    """The partner's buses by id."""
    parts = parts_of(request)
    rows = await _fleet(parts).buses(_partner(parts, request, partner), after=cursor or "", limit=limit + 1, retired=retired)
    return BusItems([_bus(row) for row in rows[:limit]], rows[limit - 1].bus_id if len(rows) > limit else None)


@get("/admin/buses/{bus_id:str}", tags=["fleet"])
async def read_bus(request: Request[Any, Any, Any], bus_id: FromPath[str], partner: FromQuery[str | None] = None) -> BusItem:
    """One bus."""
    parts = parts_of(request)
    return _bus(await _bus_row(parts, _partner(parts, request, partner), bus_id))


@delete("/admin/buses/{bus_id:str}", tags=["fleet"], status_code=200)
async def retire_bus(request: Request[Any, Any, Any], bus_id: FromPath[str], partner: FromQuery[str | None] = None) -> BusItem:
    """Its fixes are refused from now on; its history stays."""
    parts = parts_of(request)
    row = await _fleet(parts).retire_bus(_partner(parts, request, partner), bus_id, parts.clock.now_ms())
    if row is None:
        raise NotFound(f"no bus {bus_id!r}")
    return _bus(row)


# ------------------------------------------------------------------------------------------------ devices


@post("/admin/devices", tags=["devices"])
async def create_device(request: Request[Any, Any, Any], data: JSONBody[DeviceRequest]) -> IssuedItem:
    """One device, with its credentials. It is good on every worker within 5 s."""
    parts = parts_of(request)
    return (await _issue(parts, _partner(parts, request, data.partner_id), [data], data.feed_id))[0]


@post("/admin/devices/bulk", tags=["devices"], request_max_body_size=8_388_608)
async def create_devices_in_bulk(request: Request[Any, Any, Any], data: JSONBody[BulkRequest]) -> IssuedItems:
    """Up to 10,000 devices at once, all or none: for fleets and load tests."""
    parts = parts_of(request)
    return IssuedItems(await _issue(parts, _partner(parts, request, data.partner_id), data.devices, data.feed_id), None)


@get("/admin/devices", tags=["devices"])
async def list_devices(
    request: Request[Any, Any, Any],
    limit: Limit = 20,
    cursor: Cursor = None,
    partner: FromQuery[str | None] = None,
    bus: FromQuery[str | None] = None,
    retired: FromQuery[bool] = False,
) -> DeviceItems:
    """The partner's devices by id; never their credentials."""
    parts = parts_of(request)
    rows = await _fleet(parts).devices(
        _partner(parts, request, partner), after=_uuid(cursor) if cursor else FIRST, limit=limit + 1, retired=retired, bus_id=bus
    )
    return DeviceItems([_device(row) for row in rows[:limit]], rows[limit - 1].device_id if len(rows) > limit else None)


@get("/admin/devices/{device_id:str}", tags=["devices"])
async def read_device(request: Request[Any, Any, Any], device_id: FromPath[str], partner: FromQuery[str | None] = None) -> DeviceItem:
    """One device."""
    parts = parts_of(request)
    row = await _fleet(parts).device(_partner(parts, request, partner), _uuid(device_id))
    if row is None:
        raise NotFound(f"no device {device_id!r}")
    return _device(row)


@delete("/admin/devices/{device_id:str}", tags=["devices"])
async def retire_device(request: Request[Any, Any, Any], device_id: FromPath[str], partner: FromQuery[str | None] = None) -> None:
    """Its credentials end, on every worker within 5 s."""
    parts = parts_of(request)
    if not await _fleet(parts).retire_device(_partner(parts, request, partner), _uuid(device_id), parts.clock.now_ms()):
        raise NotFound(f"no device {device_id!r}")


@post("/admin/devices/{device_id:str}/rotate", tags=["devices"], status_code=200)
async def rotate(
    request: Request[Any, Any, Any],
    device_id: FromPath[str],
    data: JSONBody[RotateRequest | None] = None,
    partner: FromQuery[str | None] = None,
) -> IssuedItem:
    """New credentials; the old ones stay good for the grace, so that no fix is lost on the way."""
    parts = parts_of(request)
    partner_id = _partner(parts, request, partner)
    grace_s = (data or RotateRequest()).grace_s
    return _issued(
        await rotate_device(_fleet(parts), parts.clock, _secret(parts), partner_id, _uuid(device_id), grace_s=grace_s)
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ feeds


@post("/admin/feeds", tags=["network"], request_max_body_size=FEED_MOST_BYTES)
async def import_feed(
    request: Request[Any, Any, Any],
    feed: Annotated[str, QueryParameter(name="feed", pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$(?!\n)", description="its short name")],
    partner: FromQuery[str | None] = None,
) -> ImportReport:
    """A GTFS zip as the body (application/zip). Checked and loaded by a process of its own; a feed with errors changes nothing."""
    parts = parts_of(request)
    partner_id = _partner(parts, request, partner)
    plan = parts.plans.get(feed) if parts.plans is not None else None
    if plan is not None and plan.partner_id != partner_id:  # known before the upload; the import itself asks the database
        raise Conflict(f"a feed {feed!r} exists already; choose another name")
    if parts.importing:
        raise Unavailable("another feed is being taken in by this worker", retry_after_s=10)
    parts.importing = True
    try:
        return await _taken_in(parts, request, feed, partner_id)
    finally:
        parts.importing = False


async def _taken_in(parts: Parts, request: Request[Any, Any, Any], feed_id: str, partner_id: str) -> ImportReport:
    with tempfile.TemporaryDirectory(prefix="timepoint-feed-") as folder:
        path, size = Path(folder) / "feed.zip", 0
        with path.open("wb") as file:
            async for piece in request.stream():
                size += len(piece)
                if size > FEED_MOST_BYTES:
                    raise TooLarge(f"a feed may have {FEED_MOST_BYTES:,} bytes")
                file.write(piece)
        report = await import_zip(_postgres(parts), path, feed_id=feed_id, partner_id=partner_id, may_move=False, apart=True)
    return msgspec.convert(report, ImportReport, from_attributes=True)


# ------------------------------------------------------------------------------------------------ how they are made


def _partner(parts: Parts, request: Request[Any, Any, Any], wanted: str | None) -> str:
    """The partner that the caller acts for. A super admin names one, or means the only one there is."""
    principal: Principal = need(principal_of(parts, request), PARTNER_ADMIN, SUPER_ADMIN)
    if principal.role == PARTNER_ADMIN:
        if principal.partner_id is None or wanted not in (None, principal.partner_id):
            raise Forbidden("your token acts for another partner")
        return principal.partner_id
    if wanted is not None or principal.partner_id is not None:
        return wanted or principal.partner_id or ""
    known = {plan.partner_id for plan in parts.plans.all()} if parts.plans is not None else set()
    if len(known) != 1:
        raise Invalid("say which partner: there are " + (", ".join(sorted(known)) or "none yet"))
    return known.pop()


def feed_of(parts: Parts, partner_id: str, wanted: str | None) -> str:
    """The feed that a bus drives: the one named, else the partner's only one."""
    own = sorted(plan.feed_id for plan in parts.plans.all() if plan.partner_id == partner_id) if parts.plans is not None else []
    if wanted is not None:
        if wanted not in own:
            raise Invalid(
                f"no feed {wanted!r} of partner {partner_id!r}", errors=[{"pointer": "/feedId", "code": "UNKNOWN_FEED", "detail": wanted}]
            )
        return wanted
    if len(own) != 1:
        raise Invalid("say which feed (feedId): the partner has " + (", ".join(own) or "none yet"))
    return own[0]


async def _issue(parts: Parts, partner_id: str, wanted: list[DeviceRequest], feed: str | None) -> list[IssuedItem]:
    fleet = _fleet(parts)
    asked = []
    for one in wanted:
        bus_ids = one.bus_ids if one.bus_ids is not None else [one.bus_id] if one.bus_id is not None else []
        asked.append(NewDevice(bus_ids, one.kind or (TOKEN if len(bus_ids) == 1 else GATEWAY), one.name, one.unique_id))
    missing = await fleet.buses_missing(partner_id, sorted({bus_id for one in asked for bus_id in one.bus_ids}))
    if missing:
        area_of = {bus_id: one.feed_id or feed for one, new in zip(wanted, asked, strict=True) for bus_id in new.bus_ids}
        await _put_buses(
            parts, partner_id, [BusRow(bus_id, partner_id, feed_of(parts, partner_id, area_of[bus_id]), "", None) for bus_id in missing]
        )
    issued = [_issued(one) for one in await create_devices(fleet, parts.clock, _secret(parts), partner_id, asked)]
    if parts.registry is not None:
        await parts.registry.load()  # good here at once, elsewhere within 5 s
    return issued


async def _put_buses(parts: Parts, partner_id: str, buses: list[BusRow]) -> None:
    written = await _fleet(parts).put_buses(buses)
    refused = sorted({bus.bus_id for bus in buses} - set(written))
    if refused:
        raise Conflict(f"these bus ids are taken: {', '.join(refused[:10])}")


async def _bus_row(parts: Parts, partner_id: str, bus_id: str) -> BusRow:
    row = await _fleet(parts).bus(partner_id, bus_id)
    if row is None:
        raise NotFound(f"no bus {bus_id!r}")
    return row


def _postgres(parts: Parts) -> Postgres:
    if parts.postgres is None:
        raise Unavailable("this worker has no database", retry_after_s=5)
    return parts.postgres


def _fleet(parts: Parts) -> Fleet:
    return Fleet(_postgres(parts))


def _secret(parts: Parts) -> str:
    assert parts.tokens is not None
    return parts.tokens.key


def _uuid(text: str) -> str:
    """A UUID as PostgreSQL takes it. Raises `NotFound`: another text names no device."""
    plain = text.replace("-", "").lower()
    if len(plain) != 32 or any(digit not in "0123456789abcdef" for digit in plain):
        raise NotFound(f"no device {text[:40]!r}")
    return text


def _bus(row: BusRow) -> BusItem:
    retired = None if row.retired_at_ms is None else rfc3339(row.retired_at_ms)
    return BusItem(row.bus_id, row.partner_id, row.area, row.label, row.plate, retired)


def _device(row: DeviceRow) -> DeviceItem:
    rotated, retired, seen = (None if ms is None else rfc3339(ms) for ms in (row.rotated_at_ms, row.retired_at_ms, row.seen_at_ms))
    return DeviceItem(
        row.device_id, row.partner_id, row.kind, row.name, row.bus_ids, row.unique_id, rfc3339(row.created_at_ms), rotated, retired, seen
    )


def _issued(one: Issued) -> IssuedItem:
    only = one.bus_ids[0] if len(one.bus_ids) == 1 else None
    until = None if one.previous_until_ms is None else rfc3339(one.previous_until_ms)
    return IssuedItem(one.device_id, one.kind, only, one.bus_ids, one.name, one.token, one.secret, until, one.mqtt_user)


ROUTERS: Final = (
    create_bus,
    list_buses,
    read_bus,
    retire_bus,
    create_device,
    create_devices_in_bulk,
    list_devices,
    read_device,
    retire_device,
    rotate,
    import_feed,
)
