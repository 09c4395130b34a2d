"""REST calls of those who wait: the waitlist of a trip that is full, the queue of one that too many want at once. For everybody.

A place on a waitlist answers `token`, which goes into `X-Waitlist-Token`; what is offered to it is a hold like any other, opened by the
`holdToken` of the offer. The operator (AGENT, PARTNER_ADMIN) sees its places and closes and opens the waiting room of a trip.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Request, Response, delete, get, post, put
from litestar.params import FromPath, JSONBody

from api.auth import AGENT, PARTNER_ADMIN, SUPER_ADMIN, need
from api.booking import ContactIn, HoldId, MoneyOut, PricedSeat, StopWord
from api.callers import answered, booking_of, caller_of, key_of
from api.parts import parts_of
from api.tracking import principal_of
from engine.booking.catalogue import SoldTrip
from engine.booking.room import Place, Switch
from engine.errors import NotFound
from engine.store.waiting import Waiting


class WaitIn(msgspec.Struct, frozen=True):
    """So many seats together or in pieces, between two stops. `contact`: where to tell you."""

    count: Annotated[int, msgspec.Meta(ge=1, le=60)]
    contact: ContactIn
    start: StopWord = msgspec.field(name="from")
    end: StopWord = msgspec.field(name="to")


class OfferOut(msgspec.Struct, frozen=True, rename="camel"):
    """Seats that are held for this place: book them with `holdId`, and `holdToken` as X-Hold-Token."""

    hold_id: str
    hold_token: str
    seats: list[PricedSeat]
    total: MoneyOut
    expires_at: str


class PlaceOut(msgspec.Struct, frozen=True, rename="camel"):
    """`position`: 1 is first; null once it no longer waits. `token`: only when it is made."""

    id: str
    trip_id: str
    count: int
    status: Literal["WAITING", "OFFERED", "TAKEN", "LAPSED", "LEFT", "CLOSED"]
    position: int | None
    joined_at: str
    offer: OfferOut | None
    start: str = msgspec.field(name="from", default="")
    end: str = msgspec.field(name="to", default="")
    token: str | None = None


class RoomIn(msgspec.Struct, frozen=True, rename="camel"):
    """ON: everybody queues; OFF: nobody; AUTO: when too many come at once. `admitPerS`: people let in a second; null: the setting."""

    mode: Literal["ON", "OFF", "AUTO"]
    admit_per_s: Annotated[float, msgspec.Meta(ge=0.1, le=10_000)] | None = None


class RoomOut(msgspec.Struct, frozen=True, rename="camel"):
    trip_id: str
    mode: str
    admit_per_s: float | None
    queueing: bool  # now, as this worker knows it


# ------------------------------------------------------------------------------------------------ the waitlist


@post("/trips/{trip_id:str}/waitlist", tags=["booking"])
async def join_waitlist(request: Request[Any, Any, Any], trip_id: FromPath[str], data: JSONBody[WaitIn]) -> Response[PlaceOut]:
    """A place at the end of the trip's waitlist: seats that are let go are offered first come, first served among those who fit."""
    house: Any = booking_of(parts_of(request))
    caller = caller_of(request)
    house.rates.take("waitlist", caller)
    key = await key_of(request, caller)
    contact = {name: value for name, value in msgspec.to_builtins(data.contact).items() if value is not None}
    done = await house.waitlist.join(caller, key, trip_id, data.count, data.start, data.end, contact)
    return answered(done, {"Location": f"/v1/waitlist/{done.body['id']}"})


@get("/waitlist/{entry_id:str}", tags=["booking"])
async def read_place(request: Request[Any, Any, Any], entry_id: FromPath[str]) -> PlaceOut:
    """A place of yours, and what is offered to it."""
    house: Any = booking_of(parts_of(request))
    caller = caller_of(request)
    shown = await house.waitlist.show(caller, request.headers.get("x-waitlist-token"), _uuid(entry_id))
    return msgspec.convert(shown, PlaceOut)


@delete("/waitlist/{entry_id:str}", tags=["booking"], status_code=200)
async def leave_waitlist(request: Request[Any, Any, Any], entry_id: FromPath[str]) -> PlaceOut:
    """The place is given up, and the seats that were offered to it."""
    house: Any = booking_of(parts_of(request))
    caller = caller_of(request)
    shown = await house.waitlist.leave(caller, request.headers.get("x-waitlist-token"), _uuid(entry_id))
    return msgspec.convert(shown, PlaceOut)


# ------------------------------------------------------------------------------------------------ the waiting room


@post("/trips/{trip_id:str}/queue", tags=["booking"], status_code=201)
async def join_queue(request: Request[Any, Any, Any], trip_id: FromPath[str]) -> Place:
    """A place in the queue of a trip that too many want at once: send `queueToken` as X-Queue-Token with the hold, from `admittedAtMs` on."""
    house: Any = booking_of(parts_of(request))
    caller = caller_of(request)
    house.rates.take("queue", caller)
    await house.catalogue.trip(trip_id)
    place: Place = await house.room.join(trip_id)
    return place


@get("/trips/{trip_id:str}/waiting-room", tags=["booking"])
async def read_room(request: Request[Any, Any, Any], trip_id: FromPath[str]) -> RoomOut:
    """What the operator said about a trip's waiting room."""
    house, trip = await _of_operator(request, trip_id, AGENT, PARTNER_ADMIN, SUPER_ADMIN)
    switch = await house.pool.run(trip.partner_id, lambda connection: Waiting(connection).switch(trip.trip_no))
    return RoomOut(trip_id, switch.mode, switch.admit_per_s, house.room.is_hot(trip_id))


@put("/trips/{trip_id:str}/waiting-room", tags=["booking"])
async def put_room(request: Request[Any, Any, Any], trip_id: FromPath[str], data: JSONBody[RoomIn]) -> RoomOut:
    """Close a trip's waiting room before the rush, or open it; in force everywhere within 3 s."""
    house, trip = await _of_operator(request, trip_id, PARTNER_ADMIN, SUPER_ADMIN)
    caller, switch = caller_of(request), Switch(data.mode, data.admit_per_s)

    async def work(connection: Any) -> None:
        await Waiting(connection).put_switch(trip.trip_no, trip.partner_id, switch, caller.actor, caller.request_id)

    await house.pool.run(trip.partner_id, work)
    return RoomOut(trip_id, switch.mode, switch.admit_per_s, house.room.is_hot(trip_id))


async def _of_operator(request: Request[Any, Any, Any], trip_id: str, *roles: str) -> tuple[Any, SoldTrip]:
    house: Any = booking_of(parts_of(request))
    principal = need(principal_of(parts_of(request), request), *roles)
    trip: SoldTrip = await house.catalogue.trip(trip_id)
    if principal.role != SUPER_ADMIN and principal.partner_id != trip.partner_id:
        raise NotFound(f"no trip {trip_id[:120]!r} is on sale")
    return house, trip


def _uuid(text: str) -> str:
    """Raises `NotFound` for what can be no id of ours."""
    try:
        return msgspec.convert(text, HoldId)
    except msgspec.ValidationError as fault:
        raise NotFound(f"no place {text[:80]!r} on a waitlist") from fault


ROUTERS: Final = (join_waitlist, read_place, leave_waitlist, join_queue, read_room, put_room)
