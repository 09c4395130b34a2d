"""Who drives a trip: the word of a dispatcher or driver, what is in force, and how it came to be.

For PARTNER_ADMIN, AGENT, SUPER_ADMIN and DRIVER; another operator's trips are as unknown as those that do not exist (404). A word wins over
what the device says and over what the engine finds: the bus leaves its other trip and keeps this one until it is done, the word is taken back,
or 3 h past the trip's end. It reaches the bus within about a second.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, delete, get, put
from litestar.params import FromPath, JSONBody, QueryParameter

from api.auth import AGENT, DRIVER, PARTNER_ADMIN, SUPER_ADMIN, Principal, need
from api.callers import booking_of, caller_of
from api.ids import trip_key
from api.network import trip_instance
from api.parts import Parts, parts_of
from api.tracking import principal_of
from engine.errors import Conflict, NotFound, Unavailable
from engine.live.frames import rfc3339
from engine.store.fares import OfferBook
from engine.store.orders import OrderBook, OrderRow
from engine.tracking.plans import Plan
from engine.tracking.ride import LATE_FOR_EVER_MS
from engine.tracking.rules import DISPATCHER
from engine.tracking.rules import DRIVER as BY_DRIVER
from engine.tracking.timetable import TripInstance

OVERLAP: Final = timedelta(minutes=5)  # two trips of one bus may overlap so far: layovers are cut short
ORDERED, WITHDRAWN = "TRIP_ORDERED", "TRIP_ORDER_WITHDRAWN"


class AssignmentIn(msgspec.Struct, frozen=True, rename="camel"):
    """`driverId`: who drives; a driver's own word names themselves. `reason` is kept with the word."""

    bus_id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    driver_id: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None = None
    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""


class OrderItem(msgspec.Struct, frozen=True, rename="camel"):
    """A word in force."""

    bus_id: str
    driver_id: str | None
    said_as: str  # DISPATCHER | DRIVER
    said_by: str
    said_at: str
    reason: str


class AssignmentItem(msgspec.Struct, frozen=True, rename="camel"):
    """Who drives a trip. `busId`: who is on it now, else who is ordered onto it. `givenBy` says whose word that is: DISPATCHER, DRIVER,
    DEVICE (the device names the trip), BLOCK (it follows the bus's last trip), ENGINE (the drive fits)."""

    trip_id: str
    bus_id: str | None
    given_by: str | None
    live: bool  # the bus is seen on the trip
    order: OrderItem | None


class AssignmentStep(msgspec.Struct, frozen=True, rename="camel"):
    """What happened to a trip: ORDERED and WITHDRAWN by people, ASSIGNED, STARTED, COMPLETED and UNASSIGNED by the engine, each with its
    reason (docs/assignment.md)."""

    at: str
    kind: str
    bus_id: str
    reason: str
    by: str | None
    driver_id: str | None


class AssignmentSteps(msgspec.Struct, frozen=True, rename="camel"):
    items: list[AssignmentStep]
    next_cursor: str | None


@put("/trips/{trip_id:str}/assignment", tags=["tracking"])
async def assign_trip(
    request: Request[Any, Any, Any],
    trip_id: FromPath[str],
    data: JSONBody[AssignmentIn],
    force: Annotated[bool, QueryParameter(description="take back the words on other trips of the bus that overlap")] = False,
) -> AssignmentItem:
    """Say which bus drives the trip. The same word again changes nothing; a new one replaces the old; a bus that is ordered onto another trip
    at the same time is refused (409) unless forced."""
    parts = parts_of(request)
    who, plan, instance = _theirs(parts, request, trip_id)
    house, caller = booking_of(parts), caller_of(request)
    now = datetime.fromtimestamp(parts.clock.now_ms() / 1000, UTC)
    ends_at = _end(instance) + timedelta(milliseconds=LATE_FOR_EVER_MS)
    if now >= ends_at:
        raise Conflict("the trip is over: nobody drives it any more")
    said_as = BY_DRIVER if who.role == DRIVER else DISPATCHER
    driver_id = who.subject if who.role == DRIVER else data.driver_id
    wanted = OrderRow(
        parts.clock.uuid7(), instance.trip.trip_id, instance.start_date, data.bus_id, driver_id, said_as, who.subject, data.reason, now
    )

    async def work(connection: Any) -> OrderRow:
        book = OrderBook(connection)
        await book.lock(plan.feed_id)
        if not await book.is_bus(data.bus_id, plan.partner_id, plan.feed_id):
            raise NotFound(f"no bus {data.bus_id!r} drives for this operator")
        before = await book.of_trip(plan.feed_id, wanted.trip_id, wanted.start_date)
        if before is not None and _is_same(before, wanted):
            return before
        if before is not None and before.said_as == DISPATCHER and said_as == BY_DRIVER:
            raise Conflict(f"a dispatcher has given the trip to bus {before.bus_id!r}: ask them")
        others = _overlapping(plan, instance, await book.of_bus(plan.feed_id, data.bus_id, now))
        if others and (not force or said_as == BY_DRIVER):
            named = ", ".join(trip_key(plan.feed_id, each.trip_id, each.start_date) for each in others)
            raise Conflict(f"bus {data.bus_id!r} is ordered onto {named} at the same time; force=true takes that back")
        leaving = [*others, *([before] if before is not None else [])]
        await book.withdraw([each.order_id for each in leaving], now, who.subject)
        await book.add(plan.feed_id, wanted, ends_at)
        number = len(await book.on_trip(plan.feed_id, wanted.trip_id, wanted.start_date))
        office = OfferBook(connection)
        for each in others:
            name = trip_key(plan.feed_id, each.trip_id, each.start_date)
            said = len(await book.on_trip(plan.feed_id, each.trip_id, each.start_date))
            await office.note(plan.partner_id, caller.actor, caller.request_id, WITHDRAWN, name, said, _shown(each), None)
        await office.note(plan.partner_id, caller.actor, caller.request_id, ORDERED, trip_id, number, _shown(before), _shown(wanted))
        return wanted

    return _assigned(parts, trip_id, await house.pool.run(plan.partner_id, work), None)


@delete("/trips/{trip_id:str}/assignment", tags=["tracking"])
async def withdraw_assignment(request: Request[Any, Any, Any], trip_id: FromPath[str]) -> None:
    """Take the word on the trip back: the engine finds out again who drives it. Without a word nothing changes."""
    parts = parts_of(request)
    who, plan, instance = _theirs(parts, request, trip_id)
    house, caller = booking_of(parts), caller_of(request)
    now = datetime.fromtimestamp(parts.clock.now_ms() / 1000, UTC)

    async def work(connection: Any) -> None:
        book = OrderBook(connection)
        await book.lock(plan.feed_id)
        before = await book.of_trip(plan.feed_id, instance.trip.trip_id, instance.start_date)
        if before is None:
            return
        if before.said_as == DISPATCHER and who.role == DRIVER:
            raise Conflict("a dispatcher has given the trip: ask them")
        await book.withdraw([before.order_id], now, who.subject)
        number = len(await book.on_trip(plan.feed_id, before.trip_id, before.start_date))
        await OfferBook(connection).note(plan.partner_id, caller.actor, caller.request_id, WITHDRAWN, trip_id, number, _shown(before), None)

    await house.pool.run(plan.partner_id, work)


@get("/trips/{trip_id:str}/assignment", tags=["tracking"])
async def read_assignment(request: Request[Any, Any, Any], trip_id: FromPath[str]) -> AssignmentItem:
    """Who drives the trip, and whose word that is."""
    parts = parts_of(request)
    _, plan, instance = _theirs(parts, request, trip_id)
    book = _record(parts)
    name = instance.trip.trip_id, instance.start_date
    order = await book.of_trip(plan.feed_id, *name)
    given_by = None
    for each in await book.happened(plan.feed_id, *name):
        given_by = each.reason if each.kind == "ASSIGNED" else None if each.kind == "UNASSIGNED" else given_by
    return _assigned(parts, trip_id, order, given_by)


@get("/trips/{trip_id:str}/assignment/history", tags=["tracking"])
async def read_assignment_history(request: Request[Any, Any, Any], trip_id: FromPath[str]) -> AssignmentSteps:
    """All that happened to the trip, oldest first: who was given it, by whose word, why it was left."""
    parts = parts_of(request)
    _, plan, instance = _theirs(parts, request, trip_id)
    book = _record(parts)
    name = instance.trip.trip_id, instance.start_date
    steps = [
        (each.at, AssignmentStep(_time(each.at), each.kind, each.bus_id, each.reason, None, None))
        for each in await book.happened(plan.feed_id, *name)
    ]
    for order in await book.on_trip(plan.feed_id, *name):
        reason = order.reason or order.said_as
        steps.append((order.said_at, AssignmentStep(_time(order.said_at), "ORDERED", order.bus_id, reason, order.said_by, order.driver_id)))
        if order.withdrawn_at is not None:
            steps.append((
                order.withdrawn_at,
                AssignmentStep(_time(order.withdrawn_at), "WITHDRAWN", order.bus_id, order.said_as, order.withdrawn_by, order.driver_id),
            ))  # fmt: skip
    return AssignmentSteps([step for _, step in sorted(steps, key=lambda each: each[0])], None)


def _theirs(parts: Parts, request: Request[Any, Any, Any], trip_id: str) -> tuple[Principal, Plan, TripInstance]:
    """Who asks, and the trip, if it is one of their operator's."""
    who = need(principal_of(parts, request), PARTNER_ADMIN, AGENT, SUPER_ADMIN, DRIVER)
    plan, instance = trip_instance(parts, trip_id)
    if who.role != SUPER_ADMIN and plan.partner_id != who.partner_id:
        raise NotFound(f"no trip {trip_id!r}")
    return who, plan, instance


def _record(parts: Parts) -> OrderBook:
    if parts.postgres is None:
        raise Unavailable("this worker has no access to the record", retry_after_s=5)
    return OrderBook(parts.postgres)


def _overlapping(plan: Plan, instance: TripInstance, orders: list[OrderRow]) -> list[OrderRow]:
    """Words on other trips that the bus cannot drive beside this one."""
    found = []
    for order in orders:
        other = plan.timetable.instance(order.trip_id, order.start_date)
        same = (order.trip_id, order.start_date) == (instance.trip.trip_id, instance.start_date)
        if other is not None and not same and _begin(other) < _end(instance) - OVERLAP and _begin(instance) < _end(other) - OVERLAP:
            found.append(order)
    return found


def _is_same(one: OrderRow, other: OrderRow) -> bool:
    return (one.bus_id, one.driver_id, one.said_as) == (other.bus_id, other.driver_id, other.said_as)


def _assigned(parts: Parts, trip_id: str, order: OrderRow | None, given_by: str | None) -> AssignmentItem:
    seen = sorted(one.position.bus_id for one in parts.table.on_trip(trip_id))
    word = None
    if order is not None:
        word = OrderItem(order.bus_id, order.driver_id, order.said_as, order.said_by, _time(order.said_at), order.reason)
        live = order.bus_id in seen
        return AssignmentItem(trip_id, order.bus_id, order.said_as, live, word)
    return AssignmentItem(trip_id, seen[0] if seen else None, given_by if seen else None, bool(seen), word)


def _shown(order: OrderRow | None) -> dict[str, Any] | None:
    """As the audit keeps it."""
    if order is None:
        return None
    return {"busId": order.bus_id, "driverId": order.driver_id, "saidAs": order.said_as, "reason": order.reason}


def _begin(instance: TripInstance) -> datetime:
    return datetime.fromtimestamp(instance.departure_ms(0) / 1000, UTC)


def _end(instance: TripInstance) -> datetime:
    return datetime.fromtimestamp(instance.arrival_ms(len(instance.trip.arrival_s) - 1) / 1000, UTC)


def _time(at: datetime) -> str:
    return rfc3339(round(at.timestamp() * 1000))


ROUTERS: Final = (assign_trip, withdraw_assignment, read_assignment, read_assignment_history)
