"""Trip sharing: a link that shows one trip to whoever has it, for a while. For everybody, signed in or not.

The link says nothing about the person who made it: it opens the trip, the stops of the ride where they were named, and what anybody may see
of that trip's bus. The token is kept as its hash; whoever made the link can end it (with their access token, or with the `revokeKey` that a
guest was given). Over or ended: 410; never made: 404.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody

from api.booking import StopWord
from api.callers import booking_of, caller_of
from api.departures import on_trip, route_name
from api.etags import tagged
from api.ids import public_id
from api.network import sold_trip, status_of, trip_instance
from api.parts import Parts, parts_of
from engine.errors import Gone, Invalid, NotFound
from engine.events import OFF_ROUTE, OFFLINE, SKIPPED, STALE, Position, StopForecast
from engine.live.advice import advice
from engine.live.frames import Pos, pos, rfc3339
from engine.store.shares import Link, NewLink, Shares
from engine.tracking.plans import Plan
from engine.tracking.timetable import TripInstance

LIFE_S: Final = 6 * 3600  # default; or an hour after the ride's planned end, whichever is later: the bus may be late
AFTER_S: Final = 3600
LIFE_MOST_S: Final = 48 * 3600
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{16,64}")
SHARE_KEY: Final = "x-share-key"


class ShareIn(msgspec.Struct, frozen=True, rename="camel"):
    """`from`, `to`: the ride, where somebody is to be met."""

    expires_in_s: Annotated[int, msgspec.Meta(ge=60, le=LIFE_MOST_S)] | None = None
    start: StopWord | None = msgspec.field(name="from", default=None)
    end: StopWord | None = msgspec.field(name="to", default=None)


class ShareOut(msgspec.Struct, frozen=True, rename="camel"):
    token: str
    url: str  # the page that shows the trip
    expires_at: str
    revoke_key: str | None  # of a guest: send it as X-Share-Key to end the link; None: your access token does that


class SharedStop(msgspec.Struct, frozen=True, rename="camel"):
    stop_id: str
    seq: int
    name: str
    lat: float
    lon: float
    arrives_at: str  # as planned
    departs_at: str
    p10: str | None
    p50: str | None
    p90: str | None
    delay_s: int | None
    kind: str  # PASSED | SKIPPED | ESTIMATED | SCHEDULED


class SharedNotice(msgspec.Struct, frozen=True, rename="camel"):
    kind: str  # CANCELLED | ALERT (of the operator) | DETOUR | STOP_MISSED | DELAYED | STOPS_SKIPPED | NO_SIGNAL
    text: str


class SharedTrip(msgspec.Struct, frozen=True, rename="camel"):
    """One trip as it is right now, for whoever has the link."""

    trip_id: str
    route_id: str
    route_name: str
    headsign: str | None
    start_date: str
    timezone: str
    status: str  # SCHEDULED | RUNNING | COMPLETED | CANCELLED
    state: str | None  # of its bus; None: no bus is on it
    delay_s: int | None
    position: Pos | None
    age_ms: int | None  # of the position
    stops: list[SharedStop]
    notices: list[SharedNotice]
    expires_at: str
    start: str | None = msgspec.field(name="from", default=None)
    start_seq: int | None = msgspec.field(name="fromSeq", default=None)
    end: str | None = msgspec.field(name="to", default=None)
    end_seq: int | None = msgspec.field(name="toSeq", default=None)


SHARED: Final = ResponseSpec(SharedTrip, generate_examples=False, description="the trip")


@post("/trips/{trip_id:str}/share", tags=["tracking"])
async def share_trip(request: Request[Any, Any, Any], trip_id: FromPath[str], data: JSONBody[ShareIn | None] = None) -> ShareOut:
    """A link that shows this trip to whoever has it: for six hours or until an hour after the ride, unless you say otherwise."""
    parts, wish = parts_of(request), data or ShareIn()
    house, caller = booking_of(parts), caller_of(request)
    house.rates.take("share", caller)
    plan, instance = trip_instance(parts, trip_id)
    first, last = _ride(instance, plan.feed_id, wish)
    now_ms, clock = parts.clock.now_ms(), parts.clock
    token, revoke_key = clock.token(18), None
    maker = _maker(parts, caller.actor) if caller.role is not None else None
    if maker is None:
        revoke_key = clock.token(18)
        maker = _digest(revoke_key)
    expires_at_ms = now_ms + _life_s(instance, last, wish, now_ms) * 1000
    sequences = instance.trip.pattern.stop_sequences
    from_seq, to_seq = (None if index is None else sequences[index] for index in (first, last))
    link = NewLink(clock.uuid7(), _digest(token), maker, plan.partner_id, trip_id, from_seq, to_seq, now_ms, expires_at_ms)
    await Shares(house.pool).make(link, caller.actor, caller.request_id)
    return ShareOut(token, f"{str(request.base_url).rstrip('/')}/share/{token}", rfc3339(expires_at_ms), revoke_key)


@get("/share/{token:str}", tags=["tracking"], responses={200: SHARED})
async def read_share(request: Request[Any, Any, Any], token: FromPath[str]) -> Response[Any]:
    """The trip behind a link: its bus, its stops with live times, and what passengers should know."""
    parts = parts_of(request)
    link = await Shares(booking_of(parts).pool).link(_digest(_good(token)))
    if link is None:
        raise NotFound("this link leads nowhere")
    if link.ended or link.expires_at_ms <= parts.clock.now_ms():
        raise Gone("this link has ended; ask for a new one")
    shown = await _shown(parts, link)
    return tagged(request, shown, but=msgspec.structs.replace(shown, age_ms=None))


@delete("/share/{token:str}", tags=["tracking"])
async def end_share(request: Request[Any, Any, Any], token: FromPath[str]) -> None:
    """Ends a link at once: by who made it, signed in, or with the `revokeKey` of a guest as X-Share-Key. Doing it again changes nothing."""
    parts = parts_of(request)
    house, caller = booking_of(parts), caller_of(request)
    key = request.headers.get(SHARE_KEY)
    makers = [] if caller.role is None else [_maker(parts, caller.actor)]
    if key is not None and _TOKEN.fullmatch(key):
        makers.append(_digest(key))
    shares, digest = Shares(house.pool), _digest(_good(token))
    for maker in makers:
        if await shares.finish(digest, maker, parts.clock.now_ms(), caller.actor, caller.request_id):
            return
    raise NotFound("you made no such link")


# ------------------------------------------------------------------------------------------------ how they are made


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _maker(parts: Parts, actor: str) -> bytes:
    """Who made a link, so that they can be known again and nobody can be read from it."""
    assert parts.tokens is not None
    return hmac.digest(parts.tokens.key.encode(), b"maker of a shared link\n" + actor.encode(), "sha256")


def _good(token: str) -> str:
    if not _TOKEN.fullmatch(token):
        raise NotFound("this link leads nowhere")
    return token


def _ride(instance: TripInstance, feed_id: str, wish: ShareIn) -> tuple[int | None, int | None]:
    """Indexes of the stops that were named, of a stop that comes twice those that ride least. Raises `Invalid`."""
    starts, ends = _places(instance, feed_id, wish.start, "/from"), _places(instance, feed_id, wish.end, "/to")
    if starts and ends:
        pairs = sorted((end - start, start, end) for start in starts for end in ends if start < end)
        if not pairs:
            fault = {"pointer": "/to", "code": "WRONG_DIRECTION", "detail": "`to` must come after `from` on this trip"}
            raise Invalid("the trip calls at `to` no later than at `from`", errors=[fault])
        return pairs[0][1], pairs[0][2]
    return (starts[0] if starts else None), (ends[-1] if ends else None)


def _places(instance: TripInstance, feed_id: str, word: StopWord | None, pointer: str) -> list[int]:
    if word is None:
        return []
    pattern = instance.trip.pattern
    found = [
        index
        for index, (stop_id, seq) in enumerate(zip(pattern.stop_ids, pattern.stop_sequences, strict=True))
        if word == seq or word == public_id(feed_id, stop_id)
    ]
    if not found:
        raise Invalid(
            f"the trip does not call at {str(word)[:80]!r}", errors=[{"pointer": pointer, "code": "UNKNOWN_STOP", "detail": "no such stop"}]
        )
    return found


def _life_s(instance: TripInstance, last: int | None, wish: ShareIn, now_ms: int) -> int:
    if wish.expires_in_s is not None:
        return wish.expires_in_s
    arrives_ms = instance.arrival_ms(len(instance.trip.arrival_s) - 1 if last is None else last)
    return min(LIFE_MOST_S, max(LIFE_S, (arrives_ms - now_ms) // 1000 + AFTER_S))


async def _shown(parts: Parts, link: Link) -> SharedTrip:
    plan, instance = trip_instance(parts, link.trip_id)
    trip, position, now_ms = instance.trip, on_trip(parts, link.trip_id), parts.clock.now_ms()
    status = status_of(await sold_trip(parts, link.trip_id), position, instance, now_ms)
    if status == "CANCELLED":
        position = None
    stops = _stops(parts, plan, instance, position)
    named = {stop.seq: stop.stop_id for stop in stops}
    return SharedTrip(
        link.trip_id,
        public_id(plan.feed_id, trip.route_id),
        route_name(plan.timetable, trip),
        trip.headsign,
        instance.start_date,
        str(plan.timetable.tz),
        status,
        None if position is None else position.state,
        None if position is None else position.delay_s,
        None if position is None else pos(position),
        None if position is None else max(0, now_ms - position.fixed_at_ms),
        stops,
        _notices(parts, plan, link.trip_id, status, position, stops),
        rfc3339(link.expires_at_ms),
        None if link.from_seq is None else named.get(link.from_seq),
        link.from_seq,
        None if link.to_seq is None else named.get(link.to_seq),
        link.to_seq,
    )


def _stops(parts: Parts, plan: Plan, instance: TripInstance, position: Position | None) -> list[SharedStop]:
    trip, live = instance.trip, dict[int, StopForecast]()
    if position is not None:
        forecast = parts.table.forecast(position.bus_id)
        if forecast is not None and (forecast.trip_id, forecast.start_date) == (trip.trip_id, instance.start_date):
            live = {stop.stop_sequence: stop for stop in forecast.stops}
    found = []
    for index, (stop_id, seq) in enumerate(zip(trip.pattern.stop_ids, trip.pattern.stop_sequences, strict=True)):
        stop, told = plan.timetable.stops[stop_id], live.get(seq)
        passed = position is not None and (position.stop_index is None or index < position.stop_index)
        times = (None,) * 3 if told is None else (told.p10_ms, told.p50_ms, told.p90_ms)
        p10, p50, p90 = (None if ms is None else rfc3339(ms) for ms in times)
        kind = told.kind if told is not None and (told.p50_ms is not None or told.kind == SKIPPED) else "PASSED" if passed else "SCHEDULED"
        ids = public_id(plan.feed_id, stop_id), seq, stop.name, stop.lat, stop.lon
        planned = rfc3339(instance.arrival_ms(index)), rfc3339(instance.departure_ms(index))
        found.append(SharedStop(*ids, *planned, p10, p50, p90, None if told is None else told.delay_s, kind))
    return found


def _notices(parts: Parts, plan: Plan, trip_id: str, status: str, position: Position | None, stops: list[SharedStop]) -> list[SharedNotice]:
    """What passengers should know, in the order of its weight: the operator's word, what is wrong with the trip, what is not known of it."""
    said = []
    if status == "CANCELLED":
        said.append(SharedNotice("CANCELLED", "This trip does not run."))
    for alert in parts.board.on_channel(f"trip:{trip_id}") if parts.board is not None else ():
        said.append(SharedNotice("ALERT", alert.header.get("en") or next(iter(alert.header.values()), "")))
    if position is None:
        return said
    for event in parts.table.incidents_of_trip(plan.feed_id, trip_id):
        told = advice(plan.feed_id, event, plan.timetable)
        if told is not None and not told.over:
            said.append(SharedNotice(told.code, told.text))
    if position.state == OFF_ROUTE and not any(notice.kind == "DETOUR" for notice in said):
        said.append(SharedNotice("DETOUR", "The bus is off its usual way; it may not call at all of its stops."))
    skipped = [stop.name for stop in stops if stop.kind == SKIPPED]
    if skipped:
        said.append(SharedNotice("STOPS_SKIPPED", f"Not served: {', '.join(skipped)}."))
    if position.state in (STALE, OFFLINE):
        said.append(SharedNotice("NO_SIGNAL", "There is no signal from the bus; it may be further along than shown."))
    return said


ROUTERS: Final = (share_trip, read_share, end_share)
