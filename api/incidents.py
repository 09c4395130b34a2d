"""Incidents: what deserved a word about the buses of an operator, and what people did about it. For PARTNER_ADMIN, AGENT, SUPER_ADMIN.

The same episodes go out live on `incidents:{partner}`; here they are read from the record, a few seconds behind. What somebody does with one
(acknowledge, assign, close, with a note) is kept step by step with its audit row, and said on that channel too. What a person has closed is
closed: it cannot be opened again, and its table says no more about it. Another operator's are as unknown as those that do not exist (404).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Request, Response, get, patch
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from api.auth import AGENT, PARTNER_ADMIN, SUPER_ADMIN, Principal, need
from api.callers import caller_of
from api.etags import tagged
from api.ids import split_id, split_trip, trip_key
from api.network import Cursor, Limit
from api.parts import Parts, parts_of
from api.tracking import principal_of
from engine.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from engine.events import Handled
from engine.live import frames
from engine.live.frames import rfc3339
from engine.store.area import AreaStore
from engine.store.incidents import CLOSED, Incident, Incidents, Step, Wanted
from engine.store.redis import Redis
from engine.tracking.episodes import KINDS, SEVERITIES
from engine.tracking.ride import event_id

AHEAD: Final = timedelta(days=1)  # the first page begins past the newest: a device's clock may be ahead
NOTE_MAX: Final = 500


class IncidentItem(frames.Incident, frozen=True, rename="camel"):
    """`incident` of the live stream, and the last that people did with it."""

    handled_by: str | None
    handled_at: str | None
    assigned_to: str | None


class IncidentItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[IncidentItem]
    next_cursor: str | None


class HandlingItem(msgspec.Struct, frozen=True, rename="camel"):
    """One step of a person."""

    state: str  # ACKNOWLEDGED | ASSIGNED | CLOSED
    by: str
    at: str
    assigned_to: str | None
    note: str | None


class IncidentWhole(IncidentItem, frozen=True, rename="camel"):
    """An incident and all that people did with it, oldest first."""

    handlings: list[HandlingItem]


class Handling(msgspec.Struct, frozen=True, rename="camel"):
    """What somebody does with an incident. ASSIGNED needs `assignedTo`."""

    state: Literal["ACKNOWLEDGED", "ASSIGNED", "CLOSED"]
    assigned_to: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    note: Annotated[str, msgspec.Meta(min_length=1, max_length=NOTE_MAX)] | None = None


ITEMS: Final = ResponseSpec(IncidentItems, generate_examples=False, description="newest first")
WHOLE: Final = ResponseSpec(IncidentWhole, generate_examples=False, description="the incident and its history")


@get("/incidents", tags=["tracking"], responses={200: ITEMS})
async def list_incidents(
    request: Request[Any, Any, Any],
    limit: Limit = 20,
    cursor: Cursor = None,
    partner: FromQuery[str | None] = None,
    kind: Annotated[str | None, QueryParameter(description="one kind, or several with commas: OFF_ROUTE,SPEEDING")] = None,
    severity: Annotated[str | None, QueryParameter(description="one severity, or several with commas: MAJOR,CRITICAL")] = None,
    bus: FromQuery[str | None] = None,
    trip: Annotated[str | None, QueryParameter(description="a trip instance, FEED:TRIP_ID:YYYYMMDD")] = None,
    route: Annotated[str | None, QueryParameter(description="FEED:ROUTE_ID")] = None,
    since: Annotated[str | None, QueryParameter(name="from", description="opened then or later, RFC 3339")] = None,
    until: Annotated[str | None, QueryParameter(name="to", description="opened before then, RFC 3339")] = None,
    only_open: Annotated[bool, QueryParameter(name="open", description="only those that go on and that nobody has closed")] = False,
) -> Response[IncidentItems]:
    """The operator's incidents, newest first."""
    parts = parts_of(request)
    areas = sorted(_partners(parts, _who(parts, request), partner))
    wanted, areas = _wanted(areas, kind, severity, bus, trip, route, since, only_open)
    now = datetime.fromtimestamp(parts.clock.now_ms() / 1000, UTC)
    before, after_id = _place(cursor) if cursor is not None else (_time(until, "to") if until is not None else now + AHEAD, "")
    rows = await _record(parts).find(areas, before, after_id, wanted, limit + 1)
    more = f"{_ms(rows[limit - 1].opened_at)}.{rows[limit - 1].incident_id}" if len(rows) > limit else None
    return tagged(request, IncidentItems([IncidentItem(**_fields(row)) for row in rows[:limit]], more))


@get("/incidents/{incident_id:str}", tags=["tracking"], responses={200: WHOLE})
async def get_incident(request: Request[Any, Any, Any], incident_id: FromPath[str]) -> Response[IncidentWhole]:
    """One incident with all that people did with it: who, when, what."""
    parts = parts_of(request)
    partners = _partners(parts, _who(parts, request), None)
    return tagged(request, await _whole(_record(parts), incident_id, partners))


@patch("/incidents/{incident_id:str}", tags=["tracking"])
async def handle_incident(request: Request[Any, Any, Any], incident_id: FromPath[str], data: JSONBody[Handling]) -> IncidentWhole:
    """Acknowledge it, assign it to somebody, or close it. The same step sent again changes nothing; what is closed stays closed (409)."""
    parts = parts_of(request)
    who, caller = _who(parts, request), caller_of(request)
    if data.state == "ASSIGNED" and data.assigned_to is None:
        raise Invalid(
            "ASSIGNED needs assignedTo", errors=[{"pointer": "/assignedTo", "code": "MISSING_FIELD", "detail": "who looks after it"}]
        )
    partners, record = _partners(parts, who, None), _record(parts)
    step = Step(
        state=data.state, by=who.subject, actor=caller.actor, request_id=caller.request_id, assigned_to=data.assigned_to, note=data.note,
        at=datetime.fromtimestamp(parts.clock.now_ms() / 1000, UTC),
    )  # fmt: skip
    done = await record.handle(incident_id, partners, step)
    if done is None:
        raise _unknown(incident_id)
    if done == CLOSED:
        raise Conflict("the incident has been closed: it cannot be opened again")
    found = await record.one(incident_id, list(partners))
    if found is None or parts.redis is None:
        raise Unavailable("the step is kept; it could not be said", retry_after_s=2)
    await _say(parts.redis, found, partners[found.area], data)
    return await _whole(record, incident_id, partners)


async def _say(redis: Redis, row: Incident, partner: str, data: Handling) -> None:
    """Into its area, where the incident may still go on, and on the channel at once: both under one event id, so it is heard once."""
    assert row.handled_at is not None  # somebody has just handled it
    at_ms = _ms(row.handled_at)
    added = {"handledBy": row.handled_by, "assignedTo": row.assigned_to, "note": data.note}
    detail = {name: value for name, value in added.items() if value is not None}
    await AreaStore(redis, row.area).say(Handled(row.incident_id, data.state, at_ms, msgspec.json.encode(detail).decode()))
    if not partner:
        return
    said = _fields(row)
    message = frames.Incident(**{name: said[name] for name in frames.Incident.__struct_fields__} | {"detail": said["detail"] | detail})
    body = msgspec.json.encode({"t": "incident", "d": message})
    await redis.publish_ordered(f"incidents:{partner}", event_id(row.incident_id, data.state, at_ms), body)


# ------------------------------------------------------------------------------------------------ how they are made


def _who(parts: Parts, request: Request[Any, Any, Any]) -> Principal:
    return need(principal_of(parts, request), PARTNER_ADMIN, AGENT, SUPER_ADMIN)


def _partners(parts: Parts, who: Principal, wanted: str | None) -> dict[str, str]:
    """The areas that the caller may see, and whose each is: its partner's, or of a super admin those of the partner it names, else all."""
    if who.role != SUPER_ADMIN:
        if who.partner_id is None or wanted not in (None, who.partner_id):
            raise Forbidden("your token acts for another partner")
        wanted = who.partner_id
    plans = parts.plans.all() if parts.plans is not None else []
    return {plan.feed_id: plan.partner_id for plan in plans if wanted is None or plan.partner_id == wanted}


def _record(parts: Parts) -> Incidents:
    if parts.postgres is None:
        raise Unavailable("this worker has no access to the record", retry_after_s=5)
    return Incidents(parts.postgres)


def _unknown(incident_id: str) -> NotFound:
    return NotFound(f"no incident {incident_id[:80]!r}")


def _wanted(
    areas: list[str],
    kind: str | None,
    severity: str | None,
    bus: str | None,
    trip: str | None,
    route: str | None,
    since: str | None,
    only_open: bool,
) -> tuple[Wanted, list[str]]:
    """What the list is narrowed to. A trip or route of a feed that the caller does not see gives an empty list, like one that is not there."""
    trip_id = start_date = route_id = None
    try:
        if trip is not None:
            feed, trip_id, start_date = split_trip(trip)
            areas = [area for area in areas if area == feed]
        if route is not None:
            feed, route_id = split_id(route, "route")
            areas = [area for area in areas if area == feed]
    except NotFound as wrong:  # a filter that reads like no id
        raise Invalid(wrong.detail) from wrong
    wanted = Wanted(
        kinds=_listed(kind, KINDS, "kind"),
        severities=_listed(severity, SEVERITIES, "severity"),
        bus_id=bus,
        trip_id=trip_id,
        start_date=start_date,
        route_id=route_id,
        since=None if since is None else _time(since, "from"),
        only_open=only_open,
    )
    return wanted, areas


def _listed(given: str | None, known: tuple[str, ...], name: str) -> list[str] | None:
    """Words between commas. Raises `Invalid` for one that is none of `known`."""
    if given is None:
        return None
    words = [word.strip() for word in given.split(",")]
    if any(word not in known for word in words):
        raise Invalid(f"{name} must be among {', '.join(known)}")
    return words


def _time(text: str, name: str) -> datetime:
    """Raises `Invalid`."""
    try:
        when = datetime.fromisoformat(text)
        if when.tzinfo is not None:
            return when.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise Invalid(f"{name} must be RFC 3339 with an offset, like 2026-11-21T06:00:00Z")


def _place(cursor: str) -> tuple[datetime, str]:
    """(opened at, incident id) of the last item of the page before. Raises `Invalid`."""
    ms, dot, incident_id = cursor.partition(".")
    if not (ms.isascii() and ms.isdigit() and len(ms) <= 14 and dot and incident_id and "\x00" not in incident_id):
        raise Invalid("cursor must be the nextCursor of an earlier page")
    return datetime.fromtimestamp(int(ms) / 1000, UTC), incident_id


def _ms(when: datetime) -> int:
    return round(when.timestamp() * 1000)


def _text(when: datetime | None) -> str | None:
    return None if when is None else rfc3339(_ms(when))


async def _whole(record: Incidents, incident_id: str, partners: dict[str, str]) -> IncidentWhole:
    row = await record.one(incident_id, list(partners))
    if row is None:
        raise _unknown(incident_id)
    steps = [
        HandlingItem(one.state, one.by, rfc3339(_ms(one.at)), one.assigned_to, one.note) for one in await record.handlings(incident_id)
    ]
    return IncidentWhole(**_fields(row), handlings=steps)


def _fields(row: Incident) -> dict[str, Any]:
    """The fields of an `IncidentItem`."""
    return {
        "incident_id": row.incident_id,
        "kind": row.kind,
        "severity": row.severity,
        "bus_id": row.bus_id,
        "trip_id": None if row.trip_id is None or row.start_date is None else trip_key(row.area, row.trip_id, row.start_date),
        "route_id": None if row.route_id is None else f"{row.area}:{row.route_id}",
        "start_date": row.start_date,
        "opened_at": rfc3339(_ms(row.opened_at)),
        "closed_at": _text(row.closed_at),
        "lat": row.lat,
        "lon": row.lon,
        "detail": msgspec.json.decode(row.detail),
        "handled_state": row.handled_state,
        "handled_by": row.handled_by,
        "handled_at": _text(row.handled_at),
        "assigned_to": row.assigned_to,
    }


ROUTERS: Final = (list_incidents, get_incident, handle_incident)
