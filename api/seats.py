"""The seat map of a trip, and picks: seats that somebody is choosing. For everybody, without a token.

A pick's id is the capability for it: picking again with it extends it, a hold that names it is not refused by it. Picks live in Redis alone
(503 while that is away); whether a seat is sold is judged by the hold.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody, QueryParameter

from api.booking import SeatLabel, StopWord
from api.callers import booking_of, caller_of
from api.etags import unchanged
from api.parts import parts_of
from engine.booking.catalogue import open_for_sale
from engine.booking.seatmaps import SeatMap
from engine.errors import Invalid

PickId = Annotated[str, msgspec.Meta(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9_-]+$(?!\n)")]
From = Annotated[str | None, QueryParameter(name="from", description="a stop id, or a stop sequence; default: the first stop")]
To = Annotated[str | None, QueryParameter(name="to", description="a stop id, or a stop sequence; default: the last stop")]


class PickIn(msgspec.Struct, frozen=True, rename="camel"):
    """`pickId`: of an own pick that is to be extended, or moved to other legs."""

    seats: Annotated[list[SeatLabel], msgspec.Meta(min_length=1, max_length=60)]
    start: StopWord = msgspec.field(name="from")
    end: StopWord = msgspec.field(name="to")
    pick_id: PickId | None = None


class PickOut(msgspec.Struct, frozen=True, rename="camel"):
    pick_id: str
    seats: list[str]
    until_ms: int


SHOWN: Final = ResponseSpec(SeatMap, generate_examples=False, description="the seat map")
SAME: Final = ResponseSpec(None, generate_examples=False, description="it is what If-None-Match names")


@get("/trips/{trip_id:str}/seats", tags=["booking"], responses={200: SHOWN, 304: SAME})
async def read_seats(request: Request[Any, Any, Any], trip_id: FromPath[str], start: From = None, end: To = None) -> Response[Any]:
    """Every seat of the trip between two stops: free, being chosen, taken or blocked, and its price. `version` and `epoch` say where the
    channel `seats:{tripId}` stood: subscribe with since {"e": epoch, "o": version} and nothing is missed."""
    shown = await booking_of(parts_of(request)).maps.show(trip_id, stop_word(start), stop_word(end))
    body = msgspec.json.encode(shown)
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if unchanged(request, tag):
        return Response(None, status_code=304, headers=headers)
    return Response(shown, headers=headers)


@post("/trips/{trip_id:str}/picks", tags=["booking"])
async def pick_seats(request: Request[Any, Any, Any], trip_id: FromPath[str], data: JSONBody[PickIn]) -> PickOut:
    """Say that you are choosing these seats: all or none, for a short while. Others see it at once and are refused."""
    parts = parts_of(request)
    house = booking_of(parts)
    if house.rates.limited("pick"):
        house.rates.take("pick", caller_of(request))
    labels = data.seats
    if len(labels) > parts.settings.pick_seats_max:
        raise Invalid(
            f"a pick has at most {parts.settings.pick_seats_max} seats",
            errors=[{"pointer": "/seats", "code": "TOO_MANY", "detail": f"{len(labels)} seats"}],
        )
    trip = await house.catalogue.trip(trip_id)
    open_for_sale(trip, parts.clock.now_ms())
    first, last = trip.legs(data.start, data.end)
    seen = set()
    for place, label in enumerate(labels):
        number = trip.number_of(label, f"/seats/{place}")
        if number in seen:
            raise Invalid(
                f"seat {label} is named twice", errors=[{"pointer": f"/seats/{place}", "code": "DUPLICATE", "detail": "named twice"}]
            )
        seen.add(number)
    pick = await house.picks.pick(trip, labels, first, last, data.pick_id)
    return PickOut(pick.pick_id, labels, pick.until_ms)


@delete("/trips/{trip_id:str}/picks/{pick_id:str}", tags=["booking"])
async def drop_pick(
    request: Request[Any, Any, Any],
    trip_id: FromPath[str],
    pick_id: FromPath[str],
    seats: Annotated[str | None, QueryParameter(name="seats", description="labels, comma separated; default: all of the pick")] = None,
) -> None:
    """Let a pick go, or some of its seats. Doing it again changes nothing."""
    await _let_go(request, trip_id, pick_id, seats)


@delete("/trips/{trip_id:str}/picks", tags=["booking"])
async def drop_picks(
    request: Request[Any, Any, Any],
    trip_id: FromPath[str],
    pick_id: Annotated[str, QueryParameter(name="pickId", description="the pick's id", min_length=8, max_length=64)],
    seats: Annotated[str | None, QueryParameter(name="seats", description="labels, comma separated; default: all of the pick")] = None,
) -> None:
    """The same with the pick's id in the query."""
    await _let_go(request, trip_id, pick_id, seats)


async def _let_go(request: Request[Any, Any, Any], trip_id: str, pick_id: str, seats: str | None) -> None:
    house = booking_of(parts_of(request))
    trip = await house.catalogue.trip(trip_id)
    labels = [label for label in (seats or "").split(",") if label in trip.numbers]
    if seats is None or labels:
        await house.picks.unpick(trip, pick_id, labels)


def stop_word(text: str | None) -> str | int | None:
    """A stop as a query writes it: digits alone are a stop sequence, for stop ids begin with their feed."""
    if text is None:
        return None
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else text


ROUTERS: Final = (read_seats, pick_seats, drop_pick, drop_picks)
