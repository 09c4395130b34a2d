"""Alerts: what passengers should know. Operators write them, incidents make them, everybody reads them.

Writing is for PARTNER_ADMIN, AGENT of the operator and SUPER_ADMIN; another operator's alert is as unknown as one that does not exist. An edit
names the version it was decided on (`If-Match`), and every change leaves an audit row and an event. Within two seconds of a change every
worker knows, and channels, GTFS-Realtime and `GET /v1/alerts` say so; words of enumerations are those of GTFS-Realtime.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, delete, get, patch, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import UNSET, UnsetType

from api.auth import AGENT, PARTNER_ADMIN, SUPER_ADMIN
from api.etags import unchanged
from api.fares import Change, PartnerId, acting_for, changed, created, going, reading, tagged
from api.ids import split_id, split_trip
from api.network import Cursor, Limit, offset_of
from api.parts import Parts, parts_of
from engine.errors import Conflict, EngineError, Invalid, NotFound, Unavailable
from engine.live.alerts import (
    AlertItem,
    Cause,
    Effect,
    Level,
    OperatorAlert,
    Period,
    Selector,
    concerns_route,
    concerns_stop,
    concerns_trip,
    of_incident,
    of_operator,
)
from engine.live.frames import rfc3339
from engine.store.alerts import LAST, AlertBook
from engine.tracking.plans import Plan

WRITERS: Final = (PARTNER_ADMIN, AGENT, SUPER_ADMIN)
ALERTS_MAX: Final = 500  # of one operator that are not retired: every worker keeps them all
YEARS: Final = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC))

Language = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z]{2,3}(-[A-Za-z0-9]{2,8})*$(?!\n)", max_length=20)]
Title = Annotated[str, msgspec.Meta(min_length=1, max_length=120)]
Told = Annotated[str, msgspec.Meta(min_length=1, max_length=2_000)]
Headers = Annotated[dict[Language, Title], msgspec.Meta(min_length=1, max_length=8)]
Descriptions = Annotated[dict[Language, Told], msgspec.Meta(max_length=8)]
Url = Annotated[str, msgspec.Meta(pattern=r"^https?://[!-~]{1,480}$(?!\n)")]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]  # RFC 3339 with a zone
Name = Annotated[str, msgspec.Meta(min_length=3, max_length=200)]


class PeriodIn(msgspec.Struct, frozen=True, rename="camel"):
    """Half open. None: from now on; without an end."""

    from_: Moment | None = msgspec.field(name="from", default=None)
    to: Moment | None = None


class SelectorIn(msgspec.Struct, frozen=True, rename="camel"):
    """What is named holds together: this stop on this route. `tripId` is a trip instance, or FEED:TRIP for every date."""

    route_id: Name | None = None
    direction_id: Annotated[int, msgspec.Meta(ge=0, le=1)] | None = None
    stop_id: Name | None = None
    trip_id: Name | None = None


Periods = Annotated[list[PeriodIn], msgspec.Meta(max_length=20)]
Informed = Annotated[list[SelectorIn], msgspec.Meta(max_length=100)]


class AlertIn(msgspec.Struct, frozen=True, rename="camel"):
    """Texts by language (BCP 47). No periods: until it is retired. Nobody named as informed: the whole feed."""

    header: Headers
    description: Descriptions = {}
    feed_id: Annotated[str, msgspec.Meta(min_length=1, max_length=48)] | None = None  # none: the operator's only one
    cause: Cause = "UNKNOWN_CAUSE"
    effect: Effect = "UNKNOWN_EFFECT"
    level: Level = "WARNING"
    url: Url | None = None
    periods: Periods = []
    informed: Informed = []
    partner_id: PartnerId | None = None


class AlertEdit(msgspec.Struct, frozen=True, rename="camel"):
    """What is not named stays; lists and texts are taken whole; `url` null takes it away."""

    header: Headers | None = None
    description: Descriptions | None = None
    cause: Cause | None = None
    effect: Effect | None = None
    level: Level | None = None
    url: Url | UnsetType | None = UNSET
    periods: Periods | None = None
    informed: Informed | None = None


class WrittenAlert(AlertItem, frozen=True, rename="camel", kw_only=True):
    """An alert as its operator reads it."""

    partner_id: str
    retired_at: str | None


class WrittenAlerts(msgspec.Struct, frozen=True, rename="camel"):
    items: list[WrittenAlert]
    next_cursor: str | None


class AlertItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[AlertItem]
    next_cursor: str | None


SHOWN: Final = ResponseSpec(AlertItems, generate_examples=False, description="the alerts")


# ------------------------------------------------------------------------------------------------ everybody


@get("/alerts", tags=["alerts"], sync_to_thread=False, responses={200: SHOWN})
def list_alerts(
    request: Request[Any, Any, Any],
    route: Annotated[str | None, QueryParameter(description="those that concern this route")] = None,
    stop: Annotated[str | None, QueryParameter(description="those that concern this stop")] = None,
    trip: Annotated[str | None, QueryParameter(description="those that concern this trip instance")] = None,
    feed: Annotated[str | None, QueryParameter(description="those of this feed")] = None,
    upcoming: Annotated[bool, QueryParameter(description="also those that will hold later")] = False,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Response[Any]:
    """What passengers should know now: detours and delays that go on, and what operators have written. Several filters hold together."""
    parts = parts_of(request)
    plans = parts.plans.all() if parts.plans is not None else []
    asked = _asked(route, stop, trip)
    wanted = {feed_id for feed_id in (feed, *(each[0] for each in asked if each is not None)) if feed_id is not None}
    found: list[AlertItem] = []
    for plan in plans:
        if wanted and wanted != {plan.feed_id}:
            continue
        found += [item for item, selectors in _alerts_of(parts, plan) if _concerns(plan, selectors, *asked)]
    if not upcoming:
        found = [item for item in found if item.in_force]
    found.sort(key=lambda item: (not item.in_force, item.updated_at, item.alert_id), reverse=True)
    start = offset_of(cursor)
    page = AlertItems(found[start : start + limit], str(start + limit) if start + limit < len(found) else None)
    body = msgspec.json.encode(page)
    headers = {"ETag": f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"', "Cache-Control": "public, max-age=2"}
    if unchanged(request, headers["ETag"]):
        return Response(None, status_code=304, headers=headers)
    return Response(page, headers=headers)


def _alerts_of(parts: Parts, plan: Plan) -> list[tuple[AlertItem, tuple[Selector, ...]]]:
    now_ms = parts.clock.now_ms()
    made: list[tuple[AlertItem, tuple[Selector, ...]]] = []
    for event in parts.table.incidents(plan.feed_id):
        item = of_incident(plan.feed_id, event, plan.timetable)
        if item is not None:
            made.append((item, (Selector(trip_id=event.trip_id, start_date=event.start_date),)))
    for alert in parts.board.all(plan.feed_id) if parts.board is not None else ():
        made.append((of_operator(alert, now_ms), alert.selectors))
    return made


Thing = tuple[str, str]  # (feed, the feed's own id)
Instance = tuple[str, str, str]  # (feed, trip, date)


def _asked(route: str | None, stop: str | None, trip: str | None) -> tuple[Thing | None, Thing | None, Instance | None]:
    """What the filters name. Raises `Invalid` for ids of another form."""
    try:
        things = [None if name is None else split_id(name, kind) for name, kind in ((route, "route"), (stop, "stop"))]
        return things[0], things[1], None if trip is None else split_trip(trip)
    except NotFound as fault:
        raise Invalid(fault.detail) from fault


def _concerns(plan: Plan, selectors: tuple[Selector, ...], route: Thing | None, stop: Thing | None, trip: Instance | None) -> bool:
    timetable = plan.timetable
    if route is not None and not concerns_route(selectors, timetable, route[1]):
        return False
    if stop is not None and not concerns_stop(selectors, timetable, stop[1]):
        return False
    if trip is None:
        return True
    known = timetable.trips.get(trip[1])
    return known is not None and concerns_trip(selectors, timetable, known, trip[2])


# ------------------------------------------------------------------------------------------------ operators


@post("/admin/alerts", tags=["alerts"])
async def create_alert(request: Request[Any, Any, Any], data: JSONBody[AlertIn]) -> Response[WrittenAlert]:
    """An alert, in force at once or in its periods."""
    parts = parts_of(request)
    partner_id = acting_for(request, data.partner_id, roles=WRITERS)
    plan = _plan(parts, partner_id, data.feed_id)
    new = OperatorAlert(
        alert_id=parts.clock.uuid7(),
        partner_id=partner_id,
        feed_id=plan.feed_id,
        cause=data.cause,
        effect=data.effect,
        level=data.level,
        header=dict(data.header),
        description=dict(data.description),
        url=data.url,
        periods=_periods(data.periods),
        selectors=_selectors(plan, data.informed),
        version=1,
        changed_at_ms=0,
    )

    async def add(book: Any) -> Any:
        alerts = AlertBook(book.connection)
        if await alerts.standing(partner_id) >= ALERTS_MAX:
            raise Conflict(f"there are {ALERTS_MAX} alerts already; retire some first")
        return _columns(await alerts.add(new))

    answer = await created(request, partner_id, "ALERT_CHANGED", new.alert_id, add, lambda row: _written(parts, row))
    await _refresh(parts)
    return answer


@get("/admin/alerts", tags=["alerts"])
async def list_written_alerts(
    request: Request[Any, Any, Any],
    limit: Limit = 20,
    cursor: Cursor = None,
    partner: FromQuery[str | None] = None,
    retired: FromQuery[bool] = False,
) -> WrittenAlerts:
    """The operator's alerts, newest first."""
    parts = parts_of(request)
    partner_id = acting_for(request, partner, anybody=True, roles=WRITERS)
    below = LAST if cursor is None else _uuid(cursor)
    rows = await reading(request, partner_id, lambda book: AlertBook(book.connection).alerts(partner_id, below, limit + 1, retired=retired))
    return WrittenAlerts([_written(parts, row) for row in rows[:limit]], rows[limit - 1].alert_id if len(rows) > limit else None)


@get("/admin/alerts/{alert_id:str}", tags=["alerts"])
async def read_alert(
    request: Request[Any, Any, Any], alert_id: FromPath[str], partner: FromQuery[str | None] = None
) -> Response[WrittenAlert]:
    """One alert; its ETag is what an edit sends as If-Match."""
    partner_id, name = acting_for(request, partner, roles=WRITERS), _uuid(alert_id)
    row = await reading(request, partner_id, lambda book: AlertBook(book.connection).alert(partner_id, name))
    if row is None:
        raise NotFound(f"no alert {alert_id[:40]!r}")
    return tagged(_written(parts_of(request), row))


@patch("/admin/alerts/{alert_id:str}", tags=["alerts"])
async def edit_alert(
    request: Request[Any, Any, Any], alert_id: FromPath[str], data: JSONBody[AlertEdit], partner: FromQuery[str | None] = None
) -> Response[WrittenAlert]:
    """Its next version, everywhere within two seconds."""
    parts = parts_of(request)
    partner_id = acting_for(request, partner, roles=WRITERS)

    def write(before: OperatorAlert) -> OperatorAlert:
        said = {
            name: value
            for name, value in (
                ("header", data.header),
                ("description", data.description),
                ("cause", data.cause),
                ("effect", data.effect),
                ("level", data.level),
            )
            if value is not None
        }
        if data.url is not UNSET:
            said["url"] = data.url  # type: ignore[assignment]  # a mapping of unlike values
        if data.periods is not None:
            said["periods"] = _periods(data.periods)  # type: ignore[assignment]
        if data.informed is not None:
            said["selectors"] = _selectors(_plan(parts, partner_id, before.feed_id), data.informed)  # type: ignore[assignment]
        return msgspec.structs.replace(before, **said)

    return await _edited(request, partner_id, alert_id, write, None)


@delete("/admin/alerts/{alert_id:str}", tags=["alerts"], status_code=200)
async def retire_alert(
    request: Request[Any, Any, Any], alert_id: FromPath[str], partner: FromQuery[str | None] = None
) -> Response[WrittenAlert]:
    """It holds no longer."""
    partner_id = acting_for(request, partner, roles=WRITERS)
    now = datetime.fromtimestamp(parts_of(request).clock.now_ms() / 1000, UTC)
    return await _edited(request, partner_id, alert_id, lambda before: before, now)


# ------------------------------------------------------------------------------------------------ how they are made


async def _edited(
    request: Request[Any, Any, Any],
    partner_id: str,
    alert_id: str,
    write: Callable[[OperatorAlert], OperatorAlert],
    retired_at: datetime | None,
) -> Response[WrittenAlert]:
    parts, name = parts_of(request), _uuid(alert_id)

    async def read(book: Any) -> Any:
        row = await AlertBook(book.connection).alert(partner_id, name)
        return None if row is None else _columns(row)

    async def change(book: Any, before: Any) -> Any:
        if retired_at is not None and before["retired_at"] is not None:
            return before
        going(before, "alert", alert_id)
        return _columns(await AlertBook(book.connection).change(write(before["alert"]), retired_at))

    made: Callable[[Any, Any], Awaitable[Any]] = change
    item = await changed(request, Change(partner_id, "ALERT_CHANGED", "alert", name, read, made, lambda row: _written(parts, row)))
    await _refresh(parts)
    return tagged(item)


def _columns(alert: OperatorAlert) -> dict[str, Any]:
    """As the steps that all edits share read a row."""
    return {"alert": alert, "version": alert.version, "retired_at": alert.retired_at_ms}


async def _refresh(parts: Parts) -> None:
    """In force here at once, elsewhere within two seconds."""
    if parts.board is not None:
        try:
            await parts.board.refresh()
        except EngineError:  # what was written is written; the board asks again by itself, and counts what fails
            return


def _written(parts: Parts, row: Any) -> WrittenAlert:
    alert: OperatorAlert = row if isinstance(row, OperatorAlert) else row["alert"]
    item = msgspec.structs.asdict(of_operator(alert, parts.clock.now_ms()))
    retired = None if alert.retired_at_ms is None else rfc3339(alert.retired_at_ms)
    return WrittenAlert(**item, partner_id=alert.partner_id, retired_at=retired)


def _plan(parts: Parts, partner_id: str, wanted: str | None) -> Plan:
    """The feed that an alert is about: the one named, else the operator's only one. Raises `Invalid`, `Unavailable`."""
    if parts.plans is None:
        raise Unavailable("this worker has no timetables", retry_after_s=5)
    own = [plan for plan in parts.plans.all() if plan.partner_id == partner_id]
    if wanted is None and len(own) == 1:
        return own[0]
    found = next((plan for plan in own if plan.feed_id == wanted), None)
    if found is None:
        detail = (
            f"no feed {wanted!r} of {partner_id!r}" if wanted else "say which feed: " + (", ".join(p.feed_id for p in own) or "none yet")
        )
        raise _wrong("/feedId", "UNKNOWN_FEED", detail)
    return found


def _periods(given: list[PeriodIn]) -> tuple[Period, ...]:
    made = []
    for index, one in enumerate(given):
        for when in (one.from_, one.to):
            if when is not None and not YEARS[0] <= when < YEARS[1]:
                raise _wrong(f"/periods/{index}", "OUT_OF_RANGE", "a time between 2000 and 2200")
        if one.from_ is not None and one.to is not None and one.to.timestamp() - one.from_.timestamp() < 1:
            raise _wrong(f"/periods/{index}/to", "OUT_OF_RANGE", "it ends a second or more after it begins")
        made.append(Period(*(None if when is None else round(when.timestamp() * 1000) for when in (one.from_, one.to))))
    return tuple(made)


def _selectors(plan: Plan, given: list[SelectorIn]) -> tuple[Selector, ...]:
    made = []
    for index, one in enumerate(given):
        try:
            made.append(_selector(plan, one, f"/informed/{index}"))
        except NotFound as fault:
            raise _wrong(f"/informed/{index}", "UNKNOWN", fault.detail) from fault
    return tuple(made)


def _selector(plan: Plan, one: SelectorIn, at: str) -> Selector:
    """Raises `Invalid` for what the feed does not have, or what does not belong together."""
    timetable = plan.timetable
    route_id, stop_id = (
        None if name is None else _local(plan, name, f"{at}/{field}", known)
        for name, field, known in ((one.route_id, "routeId", timetable.routes), (one.stop_id, "stopId", timetable.stops))
    )
    if one.direction_id is not None and route_id is None:
        raise _wrong(f"{at}/routeId", "MISSING_FIELD", "a direction is a route's")
    if one.trip_id is None:
        if route_id is None and stop_id is None:
            raise _wrong(at, "MISSING_FIELD", "name a route, a stop or a trip")
        return Selector(route_id, one.direction_id, stop_id)
    trip_id, start_date = _trip(plan, one.trip_id, f"{at}/tripId")
    if route_id is not None and timetable.trips[trip_id].route_id != route_id:
        raise _wrong(f"{at}/routeId", "WRONG_ROUTE", f"{one.trip_id} is no trip of that route")
    return Selector(route_id, one.direction_id, stop_id, trip_id, start_date)


def _local(plan: Plan, name: str, pointer: str, known: Any) -> str:
    feed, local = split_id(name, "thing")
    if feed != plan.feed_id or local not in known:
        raise _wrong(pointer, "UNKNOWN", f"feed {plan.feed_id!r} has no {name!r}")
    return local


def _trip(plan: Plan, name: str, pointer: str) -> tuple[str, str | None]:
    """(trip, its date); None: on every date."""
    feed, local = split_id(name, "trip")
    trip_id, _, date = local.rpartition(":")
    if feed == plan.feed_id and trip_id in plan.timetable.trips and plan.timetable.instance(trip_id, date) is not None:
        return trip_id, date
    return _local(plan, name, pointer, plan.timetable.trips), None


def _uuid(text: str) -> str:
    """Raises `NotFound`: another text names no alert."""
    plain = text.replace("-", "").lower()
    if len(plain) != 32 or any(digit not in "0123456789abcdef" for digit in plain):
        raise NotFound(f"no alert {text[:40]!r}")
    return f"{plain[:8]}-{plain[8:12]}-{plain[12:16]}-{plain[16:20]}-{plain[20:]}"


def _wrong(pointer: str, code: str, detail: str) -> Invalid:
    return Invalid(detail, errors=[{"pointer": pointer, "code": code, "detail": detail}])


ROUTERS: Final = (list_alerts, create_alert, list_written_alerts, read_alert, edit_alert, retire_alert)
