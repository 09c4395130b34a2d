"""REST calls of counters and conductors: devices, leases of seats, sync of offline sales, cash drawers. For AGENT and PARTNER_ADMIN of the
operator, or a device with a token of its own (`Authorization: Bearer tp_pos_...`), which acts for itself alone.

Another operator's devices, leases and sessions are as unknown as those that do not exist (404).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Request, Response, delete, get, post, put
from litestar.params import FromPath, FromQuery, JSONBody

from api.auth import AGENT, PARTNER_ADMIN, need
from api.booking import HoldId, MoneyOut, SeatLabel, StopWord
from api.callers import answered, booking_of, caller_of, key_of
from api.network import Cursor, Limit
from api.parts import parts_of
from api.problems import request_id_of
from api.tracking import principal_of
from engine.booking.callers import Caller
from engine.booking.drawers import TOKEN_PREFIX
from engine.booking.pos import SALES_MAX, TIME_MAX_MS, Sale
from engine.booking.till import Operator, Result
from engine.errors import Forbidden, Invalid, NotFound

DeviceId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$(?!\n)")]
Amount = Annotated[int, msgspec.Meta(ge=0, le=10**12)]


class SeatCount(msgspec.Struct, frozen=True):
    """So many seats, the best that are free."""

    count: Annotated[int, msgspec.Meta(ge=1, le=120)]


class LeaseIn(msgspec.Struct, frozen=True, rename="camel"):
    """Seats by label, or how many; the whole trip where no stops are named. `ttlS`: seconds, at most POS_LEASE_MOST_S."""

    trip_id: Annotated[str, msgspec.Meta(max_length=200)]
    seats: Annotated[list[SeatLabel], msgspec.Meta(min_length=1, max_length=120)] | SeatCount
    device_id: DeviceId | None = None  # a device's own token says it
    start: StopWord | None = msgspec.field(name="from", default=None)
    end: StopWord | None = msgspec.field(name="to", default=None)
    ttl_s: Annotated[int, msgspec.Meta(ge=60, le=604_800)] | None = None


class ExtendIn(msgspec.Struct, frozen=True, rename="camel"):
    ttl_s: Annotated[int, msgspec.Meta(ge=60, le=604_800)] | None = None


class LeasedSeat(msgspec.Struct, frozen=True):
    """`class`: permille of the plain price; `price`: of an adult over the lease's whole way."""

    seat: str
    price: int
    class_: int = msgspec.field(name="class", default=1000)


class LeftSeat(msgspec.Struct, frozen=True):
    seat: str
    start: str = msgspec.field(name="from")
    end: str = msgspec.field(name="to")


class LeaseFare(msgspec.Struct, frozen=True, rename="camel"):
    """`prices`: passenger type -> class of the seat -> minor units."""

    from_seq: int
    to_seq: int
    prices: dict[str, dict[str, int]]
    start: str = msgspec.field(name="from", default="")
    end: str = msgspec.field(name="to", default="")


class LeaseOut(msgspec.Struct, frozen=True, rename="camel"):
    id: str
    device_id: str
    trip_id: str
    seats: list[LeasedSeat]
    left: list[LeftSeat]
    currency: str
    fares: list[LeaseFare]
    status: str
    leased_at: str
    expires_at: str
    start: str = msgspec.field(name="from", default="")
    end: str = msgspec.field(name="to", default="")


class SyncIn(msgspec.Struct, frozen=True, rename="camel"):
    """`deviceTimeMs`: the device's clock as it sends; the sales' times are corrected by it."""

    device_time_ms: Annotated[int, msgspec.Meta(ge=0, le=TIME_MAX_MS)]
    sales: Annotated[list[Sale], msgspec.Meta(max_length=SALES_MAX)]
    device_id: DeviceId | None = None


class SyncOut(msgspec.Struct, frozen=True, rename="camel"):
    """`results` in the order of the sales; `corrections`: sales of earlier uploads that are something else since this one."""

    device_id: str
    clock_offset_ms: int
    results: list[Result]
    corrections: list[Result]


class SaleOut(msgspec.Struct, frozen=True, rename="camel"):
    seq: int
    trip_id: str
    seat: str
    start: str = msgspec.field(name="from")
    end: str = msgspec.field(name="to")
    amount: MoneyOut = MoneyOut(0, "")
    method: str = ""
    void: bool = False
    result: str = ""
    code: str | None = None
    ref: str | None = None
    given: str | None = None


class SaleItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[SaleOut]
    next_cursor: str | None


class SeatIn(msgspec.Struct, frozen=True, rename="camel"):
    seat: SeatLabel
    device_id: DeviceId | None = None


class DeviceIn(msgspec.Struct, frozen=True, rename="camel"):
    device_id: DeviceId
    name: Annotated[str, msgspec.Meta(max_length=200)] = ""


class PosDevice(msgspec.Struct, frozen=True, rename="camel"):
    """`token` is shown once; a new one ends the old one."""

    device_id: str
    name: str
    token: str


class PolicyIn(msgspec.Struct, frozen=True, rename="camel"):
    """What becomes of a sale whose seat is gone: the money back, or other seats offered first."""

    on_conflict: Literal["REFUND", "OFFER"]


class SessionIn(msgspec.Struct, frozen=True, rename="camel"):
    """`float`: what lies in the drawer to begin with, minor units."""

    currency: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}$(?!\n)")]
    float_: Amount = msgspec.field(name="float")
    device_id: DeviceId | None = None


class CountIn(msgspec.Struct, frozen=True):
    counted: Amount  # minor units


class SessionOut(msgspec.Struct, frozen=True, rename="camel"):
    """`expected`: what should be in the drawer (of an open one: now); `difference`: counted - expected."""

    id: str
    device_id: str
    status: Literal["OPEN", "CLOSED"]
    expected: MoneyOut
    counted: MoneyOut | None
    difference: MoneyOut | None
    opened_at: str
    opened_by: str
    closed_at: str | None
    closed_by: str | None
    float_: MoneyOut = msgspec.field(name="float")


# ------------------------------------------------------------------------------------------------ leases


@post("/pos/leases", tags=["POS"])
async def take_lease(request: Request[Any, Any, Any], data: JSONBody[LeaseIn]) -> Response[LeaseOut]:
    """A block of seats that a device may sell from without a network, with the prices of now."""
    house, who, caller = await _at_the_till(request)
    key = await key_of(request, caller)
    seats = data.seats
    done = await house.leases.take(
        who,
        key,
        who.device(data.device_id),
        data.trip_id,
        labels=seats if isinstance(seats, list) else (),
        count=0 if isinstance(seats, list) else seats.count,
        start=data.start,
        end=data.end,
        ttl_s=data.ttl_s,
    )
    return answered(done, {"Location": f"/v1/pos/leases/{done.body['id']}"})


@get("/pos/leases/{lease_id:str}", tags=["POS"])
async def read_lease(request: Request[Any, Any, Any], lease_id: FromPath[str]) -> LeaseOut:
    """What is left of it, its end and its prices."""
    house, who, _ = await _at_the_till(request)
    return msgspec.convert(await house.leases.show(who, _uuid(lease_id, "lease")), LeaseOut)


@delete("/pos/leases/{lease_id:str}", tags=["POS"], status_code=200)
async def give_lease_back(request: Request[Any, Any, Any], lease_id: FromPath[str]) -> Response[LeaseOut]:
    """What is unsold is free at once."""
    house, who, caller = await _at_the_till(request)
    key = await key_of(request, caller, required=False)
    return answered(await house.leases.give_back(who, key, _uuid(lease_id, "lease")))


@post("/pos/leases/{lease_id:str}/extend", tags=["POS"], status_code=200)
async def extend_lease(request: Request[Any, Any, Any], lease_id: FromPath[str], data: JSONBody[ExtendIn]) -> Response[LeaseOut]:
    """It goes on from now, within its longest life."""
    house, who, caller = await _at_the_till(request)
    key = await key_of(request, caller, required=False)
    return answered(await house.leases.extend(who, key, _uuid(lease_id, "lease"), data.ttl_s))


# ------------------------------------------------------------------------------------------------ sales


@post("/pos/sync", tags=["POS"], status_code=200)
async def sync_sales(request: Request[Any, Any, Any], data: JSONBody[SyncIn]) -> Response[SyncOut]:
    """Sales made offline, once each by (device, seq) however they are batched. Where a seat is not theirs the server wins: the money is owed
    back, or other seats are offered."""
    house, who, caller = await _at_the_till(request)
    key = await key_of(request, caller)
    return answered(await house.till.sync(who, key, who.device(data.device_id), data.device_time_ms, data.sales))


@get("/pos/sales", tags=["POS"])
async def list_sales(
    request: Request[Any, Any, Any],
    limit: Limit = 20,
    cursor: Cursor = None,
    device: FromQuery[str | None] = None,
    result: FromQuery[Literal["CONFIRMED", "CONFLICT_REFUND", "STANDBY", "VOIDED"] | None] = None,
) -> SaleItems:
    """A device's uploaded sales by number, and what became of each."""
    house, who, _ = await _at_the_till(request)
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 17):
        raise Invalid("cursor must be the nextCursor of an earlier page")
    rows = await house.drawers.sales(who, who.device(device), -1 if cursor is None else int(cursor), result, limit + 1)
    items = []
    for row in rows[:limit]:
        trip = await house.catalogue.by_no(row.trip_no)
        items.append(
            SaleOut(
                row.seq,
                trip.trip_id,
                row.seat,
                trip.stops[row.start].stop_id,
                trip.stops[row.end].stop_id,
                MoneyOut(row.amount, row.currency),
                row.method,
                row.void,
                row.result,
                row.code,
                row.reference,
                row.given,
            )
        )
    return SaleItems(items, str(rows[limit - 1].seq) if len(rows) > limit else None)


@post("/pos/sales/{seq:int}/seat", tags=["POS"], status_code=200)
async def seat_sale(request: Request[Any, Any, Any], seq: FromPath[int], data: JSONBody[SeatIn]) -> Response[Result]:
    """A sale that lost its seat, or waits for one, gets this one for what it has paid."""
    house, who, caller = await _at_the_till(request)
    key = await key_of(request, caller, required=False)
    if not 0 <= seq < 2**53:
        raise NotFound(f"no sale {seq}")
    return answered(await house.till.seat(who, key, who.device(data.device_id), seq, data.seat))


# ------------------------------------------------------------------------------------------------ devices


@post("/pos/devices", tags=["POS"])
async def put_pos_device(request: Request[Any, Any, Any], data: JSONBody[DeviceIn]) -> PosDevice:
    """A device with a token of its own; again: a new token, and the old one is good no more."""
    house, who = _manager(request)
    return msgspec.convert(await house.drawers.put_device(who, data.device_id, data.name), PosDevice)


@delete("/pos/devices/{device_id:str}", tags=["POS"])
async def retire_pos_device(request: Request[Any, Any, Any], device_id: FromPath[str]) -> None:
    """Its token is good no more, and nobody sells with it."""
    house, who = _manager(request)
    await house.drawers.retire_device(who, device_id)


@put("/pos/policy", tags=["POS"])
async def put_pos_policy(request: Request[Any, Any, Any], data: JSONBody[PolicyIn]) -> PolicyIn:
    """What becomes of a sale whose seat is gone."""
    house, who = _manager(request)
    return msgspec.convert(await house.drawers.put_policy(who, data.on_conflict), PolicyIn)


# ------------------------------------------------------------------------------------------------ drawers


@post("/pos/sessions", tags=["POS"])
async def open_session(request: Request[Any, Any, Any], data: JSONBody[SessionIn]) -> Response[SessionOut]:
    """A drawer is opened with a float in it; one at a time for each device."""
    house, who, caller = await _at_the_till(request)
    key = await key_of(request, caller, required=False)
    done = await house.drawers.open(who, key, who.device(data.device_id), data.currency, data.float_)
    return answered(done, {"Location": f"/v1/pos/sessions/{done.body['id']}"})


@get("/pos/sessions/{session_id:str}", tags=["POS"])
async def read_session(request: Request[Any, Any, Any], session_id: FromPath[str]) -> SessionOut:
    """A cash session, and what should be in its drawer."""
    house, who, _ = await _at_the_till(request)
    return msgspec.convert(await house.drawers.show(who, _uuid(session_id, "cash session")), SessionOut)


@post("/pos/sessions/{session_id:str}/close", tags=["POS"], status_code=200)
async def close_session(request: Request[Any, Any, Any], session_id: FromPath[str], data: JSONBody[CountIn]) -> Response[SessionOut]:
    """The drawer was counted and emptied; what is missing or too much is booked."""
    house, who, caller = await _at_the_till(request)
    key = await key_of(request, caller, required=False)
    return answered(await house.drawers.close(who, key, _uuid(session_id, "cash session"), data.counted))


# ------------------------------------------------------------------------------------------------ who asks


async def _at_the_till(request: Request[Any, Any, Any]) -> tuple[Any, Operator, Caller]:
    """Whoever works at the till: a device by its token, or somebody of the operator."""
    house: Any = booking_of(parts_of(request))
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and token.strip().startswith(TOKEN_PREFIX):
        who = await house.drawers.device_of(token.strip(), request_id_of(request.scope))
        caller = Caller(request_id=who.request_id, subject=f"{who.partner_id}/{who.device_id}", role="DEVICE", partner_id=who.partner_id)
        return house, who, caller
    caller = caller_of(request)
    principal = need(principal_of(parts_of(request), request), AGENT, PARTNER_ADMIN)
    return house, _operator(principal.partner_id, caller), caller


def _manager(request: Request[Any, Any, Any]) -> tuple[Any, Operator]:
    house: Any = booking_of(parts_of(request))
    principal = need(principal_of(parts_of(request), request), PARTNER_ADMIN)
    return house, _operator(principal.partner_id, caller_of(request))


def _operator(partner_id: str | None, caller: Caller) -> Operator:
    if partner_id is None:
        raise Forbidden("your token acts for no operator")
    return Operator(partner_id=partner_id, actor=caller.actor, request_id=caller.request_id)


def _uuid(text: str, what: str) -> str:
    """Raises `NotFound` for what can be no id of ours."""
    try:
        return msgspec.convert(text, HoldId)
    except msgspec.ValidationError as fault:
        raise NotFound(f"no {what} {text[:80]!r}") from fault


ROUTERS: Final = (
    take_lease, read_lease, give_lease_back, extend_lease, sync_sales, list_sales, seat_sale, put_pos_device, retire_pos_device, put_pos_policy,
    open_session, read_session, close_session,
)  # fmt: skip
