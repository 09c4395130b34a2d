"""REST calls that change what was sold: cancel and modify a booking, swap a trip's bus, cancel a trip, stop and go on with its sales.

A booking's are its holder's; a trip's are its operator's (PARTNER_ADMIN, SUPER_ADMIN), another operator's trips are as unknown as those
that do not exist. The rules are in engine/booking: this is wire shapes.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Request, Response, get, patch, post
from litestar.params import FromPath, JSONBody

from api.auth import PARTNER_ADMIN, SUPER_ADMIN, need
from api.booking import BookingOut, HoldId, MoneyOut, PersonName, SeatLabel, StopWord, booking_out
from api.callers import booking_of, caller_of, key_of
from api.parts import Parts, parts_of
from api.tracking import principal_of
from engine.booking.callers import Caller
from engine.booking.exchanges import NewName, OtherTrip
from engine.errors import Invalid, NotFound
from engine.store.desk import Answer
from engine.store.fleet import Fleet

TripName = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
LayoutId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,48}$(?!\n)")]
BusName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._~-]{1,64}$(?!\n)")]
PlanId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$(?!\n)")]


# ------------------------------------------------------------------------------------------------ bookings


class CancelIn(msgspec.Struct, frozen=True, rename="camel"):
    """Nothing: an offer for the whole booking. `seats`, `tripId`: for a part of it. `offerId`: the offer is taken."""

    offer_id: HoldId | None = None
    seats: Annotated[list[SeatLabel], msgspec.Meta(max_length=100)] = []
    trip_id: TripName | None = None


class ReasonOut(msgspec.Struct, frozen=True, rename="camel"):
    """Why a cancellation keeps what it keeps: CANCELLATION_FEE (`permille` of the price), or UNPAID."""

    code: str
    detail: str
    trip_id: str | None = None
    permille: int | None = None
    amount: int | None = None
    seats: list[str] = []


class CancelOut(msgspec.Struct, frozen=True, rename="camel"):
    """An offer, or (status CANCELLED, or the seats of a part gone) its confirmation."""

    offer_id: str
    ref: str
    status: str
    fee: MoneyOut
    refund: MoneyOut
    seats: list[str]
    version: int
    expires_at: str | None = None
    reasons: list[ReasonOut] = []
    refund_ids: list[str] = []


class NameIn(msgspec.Struct, frozen=True, rename="camel"):
    """The passenger of a seat, as they are called from now on."""

    seat: SeatLabel
    first_name: PersonName | None = None
    last_name: PersonName | None = None
    detail: dict[Annotated[str, msgspec.Meta(max_length=40)], str | int | bool | None] | None = None


class ModifyIn(msgspec.Struct, frozen=True, rename="camel"):
    """One of: `passengers` (other names); `seats` from old to new label (the same trip); `tripId` with `seats` for each passenger in the
    order of their old seats, and `from`, `to` where they differ (another trip). Of a return trip `tripId`, or for another trip `fromTripId`,
    says which way is meant."""

    passengers: Annotated[list[NameIn], msgspec.Meta(max_length=120)] = []
    seats: (
        Annotated[dict[SeatLabel, SeatLabel], msgspec.Meta(max_length=100)]
        | Annotated[list[SeatLabel], msgspec.Meta(max_length=100)]
        | None
    ) = None
    trip_id: TripName | None = None
    from_trip_id: TripName | None = None
    start: StopWord | None = msgspec.field(name="from", default=None)
    end: StopWord | None = msgspec.field(name="to", default=None)


class ModifyOut(msgspec.Struct, frozen=True, rename="camel"):
    """What became of it. `payRef`: the exchange is done when `due` is paid for this reference, by `expiresAt`; until then nothing changes.
    `holdToken` opens it for a guest."""

    ref: str
    status: str
    version: int
    fee: MoneyOut
    refund: MoneyOut
    due: MoneyOut
    booking: BookingOut
    pay_ref: str | None = None
    expires_at: str | None = None
    hold_token: str | None = None


@patch("/bookings/{ref:str}/cancel", tags=["booking"])
async def cancel_booking(
    request: Request[Any, Any, Any], ref: FromPath[str], data: JSONBody[CancelIn | None] = None
) -> Response[CancelOut]:
    """What a cancellation would give back, as an offer with its `offerId`; the same call with the `offerId` cancels.

    An offer is good for a quarter of an hour and for the booking as it was (`If-Match` says which one you mean). What nobody has paid for is
    let go at once.
    """
    parts = parts_of(request)
    caller = caller_of(request)
    key = await key_of(request, caller, required=False)
    wish = data or CancelIn()
    answer = await booking_of(parts).changes.cancel(
        caller,
        key,
        ref.upper(),
        seats=tuple(wish.seats),
        trip_id=wish.trip_id,
        offer_id=wish.offer_id,
        must_be=request.headers.get("if-match"),
    )
    return _answer(answer, msgspec.convert(answer.body, CancelOut))


@post("/bookings/{ref:str}/modify", tags=["booking"], status_code=200)
async def modify_booking(request: Request[Any, Any, Any], ref: FromPath[str], data: JSONBody[ModifyIn]) -> Response[ModifyOut]:
    """Other names, other seats, or another trip for the difference in price: all of what is asked, or nothing."""
    parts = parts_of(request)
    caller = caller_of(request)
    key = await key_of(request, caller, required=False)
    answer = await _modified(booking_of(parts).exchanges, caller, key, ref.upper(), data, request.headers.get("if-match"))
    desk = booking_of(parts).desk
    body = answer.body | {"booking": await booking_out(desk, await desk.show(caller, reference=ref.upper()))}
    return _answer(answer, ModifyOut(**{name: body[_camel(name)] for name in ModifyOut.__struct_fields__ if _camel(name) in body}))


async def _modified(exchanges: Any, caller: Caller, key: Any, ref: str, data: ModifyIn, must_be: str | None) -> Answer:
    """Which of the three it is. Raises `Invalid` for none, or more than one."""
    if data.passengers and data.seats is None:
        names = [NewName(seat=one.seat, first_name=one.first_name, last_name=one.last_name, detail=one.detail) for one in data.passengers]
        return await exchanges.rename(caller, key, ref, names, data.trip_id, must_be)  # type: ignore[no-any-return]
    if isinstance(data.seats, dict) and data.seats and not data.passengers:
        return await exchanges.reseat(caller, key, ref, data.seats, data.trip_id, must_be)  # type: ignore[no-any-return]
    if isinstance(data.seats, list) and data.trip_id is not None and not data.passengers:
        other = OtherTrip(trip_id=data.trip_id, start=data.start, end=data.end, labels=tuple(data.seats))
        return await exchanges.exchange(caller, key, ref, other, data.from_trip_id, must_be)  # type: ignore[no-any-return]
    raise Invalid(
        "change one thing at a time: passengers, seats from old to new, or tripId with its seats",
        errors=[{"pointer": "/seats", "code": "MISSING_FIELD", "detail": "what is to be changed"}],
    )


# ------------------------------------------------------------------------------------------------ trips


class SwapIn(msgspec.Struct, frozen=True, rename="camel"):
    """A plan: `layoutId` (and `busId`). Its commit: `planId`, and `overflow` where some have no seat."""

    plan: bool = False
    layout_id: LayoutId | None = None
    bus_id: BusName | None = None
    plan_id: PlanId | None = None
    overflow: Literal["REFUND", "REBOOK"] | None = None


class SeatMoveOut(msgspec.Struct, frozen=True, rename="camel"):
    """`rule`: KEEP (the same label), POSITION (the same place), TOGETHER (the closest that is free). `ref` null: a hold or a lease."""

    booking_id: str
    ref: str | None
    state: str
    seat: str
    to: str
    rule: str


class OverflowOut(msgspec.Struct, frozen=True, rename="camel"):
    """Seats without a place on the other bus: in a plan with what may become of them, after its commit with what did (`done`)."""

    booking_id: str
    ref: str | None
    seats: list[str]
    options: list[Literal["REBOOK", "REFUND", "RELEASE"]] = []
    done: str | None = None
    refund: MoneyOut | None = None
    on_trip_id: str | None = None
    on_seats: list[str] = []


class SwapOut(msgspec.Struct, frozen=True, rename="camel"):
    """A plan (`committed` false), or what was done."""

    plan_id: str
    trip_id: str
    map_version: int
    committed: bool
    overflow: list[OverflowOut]
    bus_id: str | None = None
    layout_id: str | None = None
    moves: list[SeatMoveOut] = []
    moved: int = 0


class CancelTripIn(msgspec.Struct, frozen=True):
    """`reason`: what passengers are told."""

    reason: Annotated[str, msgspec.Meta(max_length=500)] | None = None


class CancelledTripOut(msgspec.Struct, frozen=True, rename="camel"):
    """`bookings`: that many are cancelled and refunded in the next seconds."""

    trip_id: str
    status: str
    version: int
    bookings: int


class CancellationOut(msgspec.Struct, frozen=True, rename="camel"):
    """`bookings`: dealt with so far. `finishedAt` null: more are to come."""

    trip_id: str
    reason: str | None
    bookings: int
    refunded: MoneyOut
    started_at: str
    finished_at: str | None


class SalesIn(msgspec.Struct, frozen=True):
    open: bool


class SalesOut(msgspec.Struct, frozen=True, rename="camel"):
    trip_id: str
    open: bool
    version: int


@post("/trips/{trip_id:str}/swap-bus", tags=["operations"], status_code=200)
async def swap_bus(request: Request[Any, Any, Any], trip_id: FromPath[str], data: JSONBody[SwapIn]) -> Response[SwapOut]:
    """Another bus for a trip: first a plan of who sits where, which changes nothing; then, with its `planId`, all of it at once.

    Tickets stay good. PLAN_STALE: who sits where has changed since; ask for a new plan.
    """
    parts, caller = _operator(request)
    swaps = booking_of(parts).swaps
    if data.plan_id is not None and not data.plan:
        key = await key_of(request, caller, required=False)
        answer = await swaps.commit(caller, key, trip_id, data.plan_id, data.overflow)
        return _answer(answer, msgspec.convert(answer.body | {"committed": True}, SwapOut))
    if data.layout_id is None:
        raise Invalid(
            "a plan needs layoutId, a commit needs planId",
            errors=[{"pointer": "/layoutId", "code": "MISSING_FIELD", "detail": "which layout"}],
        )
    if data.bus_id is not None and parts.postgres is not None:
        partner_id = (await booking_of(parts).catalogue.trip(trip_id)).partner_id
        if not caller.runs(partner_id):
            raise NotFound(f"no trip {trip_id[:120]!r} is on sale")
        if await Fleet(parts.postgres).buses_missing(partner_id, [data.bus_id]):
            raise Invalid(
                f"{data.bus_id!r} is no working bus of this operator",
                errors=[{"pointer": "/busId", "code": "UNKNOWN_BUS", "detail": "not among GET /v1/admin/buses"}],
            )
    made = await swaps.plan(caller, trip_id, data.layout_id, data.bus_id)
    return Response(msgspec.convert(made | {"committed": False}, SwapOut), status_code=200)


@post("/trips/{trip_id:str}/cancel", tags=["operations"], status_code=200)
async def cancel_trip(
    request: Request[Any, Any, Any], trip_id: FromPath[str], data: JSONBody[CancelTripIn | None] = None
) -> Response[CancelledTripOut]:
    """A trip that will not run: nobody can buy it any more; holds are let go and everybody's money goes back in full, within seconds."""
    parts, caller = _operator(request)
    key = await key_of(request, caller)
    answer = await booking_of(parts).cancelled_trips.cancel(caller, key, trip_id, data.reason if data is not None else None)
    return _answer(answer, msgspec.convert(answer.body, CancelledTripOut))


@get("/trips/{trip_id:str}/cancellation", tags=["operations"])
async def read_cancellation(request: Request[Any, Any, Any], trip_id: FromPath[str]) -> CancellationOut:
    """How far the refunds of a cancelled trip have come."""
    parts, caller = _operator(request)
    return msgspec.convert(await booking_of(parts).cancelled_trips.progress(caller, trip_id), CancellationOut)


@post("/trips/{trip_id:str}/sales", tags=["operations"], status_code=200)
async def set_sales(request: Request[Any, Any, Any], trip_id: FromPath[str], data: JSONBody[SalesIn]) -> Response[SalesOut]:
    """Sales of a trip stop, or go on. What is held and sold stays."""
    parts, caller = _operator(request)
    key = await key_of(request, caller, required=False)
    answer = await booking_of(parts).cancelled_trips.set_open(caller, key, trip_id, open_=data.open)
    return _answer(answer, msgspec.convert(answer.body, SalesOut))


# ------------------------------------------------------------------------------------------------ how they are made


def _operator(request: Request[Any, Any, Any]) -> tuple[Parts, Caller]:
    parts = parts_of(request)
    need(principal_of(parts, request), PARTNER_ADMIN, SUPER_ADMIN)
    return parts, caller_of(request)


def _answer(answer: Answer, body: Any) -> Response[Any]:
    headers = {"Idempotency-Replayed": "true"} if answer.replayed else {}
    if "version" in answer.body and isinstance(body, CancelOut | ModifyOut):
        headers["ETag"] = f'"{body.version}"'
    return Response(body, status_code=answer.status, headers=headers)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


ROUTERS: Final = (cancel_booking, modify_booking, swap_bus, cancel_trip, read_cancellation, set_sales)
