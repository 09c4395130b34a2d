"""Incidents: what deserved a word about the buses of an operator, and what people did about it. For PARTNER_ADMIN, AGENT, SUPER_ADMIN.

The same episodes go out live on `incidents:{partner}`; here they are read from the record, a few seconds behind. Another operator's are as
unknown as those that do not exist (404).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Request, get, patch
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from api.auth import AGENT, PARTNER_ADMIN, SUPER_ADMIN, Principal, need
from api.ids import trip_key
from api.network import Cursor, Limit
from api.parts import Parts, parts_of
from api.tracking import principal_of
from engine.errors import Forbidden, Invalid, NotFound, Unavailable
from engine.live import frames
from engine.live.frames import rfc3339
from engine.store.timescale import HistoryReader, Incident

AHEAD: Final = timedelta(days=1)  # the first page begins past the newest: a device's clock may be ahead


class IncidentItem(frames.Incident, frozen=True, rename="camel"):
    """`incident` of the live stream, and what people did with it."""

    handled_state: str | None  # ACKNOWLEDGED | ASSIGNED | CLOSED; None: nobody has looked at it
    handled_by: str | None
    handled_at: str | None
    assigned_to: str | None


class IncidentItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[IncidentItem]
    next_cursor: str | None


class Handling(msgspec.Struct, frozen=True, rename="camel"):
    """What somebody did with an incident. ASSIGNED needs `assignedTo`."""

    state: Literal["ACKNOWLEDGED", "ASSIGNED", "CLOSED"]
    assigned_to: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None


@get("/incidents", tags=["tracking"])
async def list_incidents(
    request: Request[Any, Any, Any],
    limit: Limit = 20,
    cursor: Cursor = None,
    partner: FromQuery[str | None] = None,
    only_open: Annotated[bool, QueryParameter(name="open", description="only those that go on")] = False,
) -> IncidentItems:
    """The operator's incidents, newest first."""
    parts = parts_of(request)
    areas = _areas(parts, _who(parts, request), partner)
    before, after_id = _place(cursor) if cursor is not None else (datetime.fromtimestamp(parts.clock.now_ms() / 1000, UTC) + AHEAD, "")
    rows = await _record(parts).incidents(areas, before, after_id, only_open=only_open, limit=limit + 1)
    more = f"{_ms(rows[limit - 1].opened_at)}.{rows[limit - 1].incident_id}" if len(rows) > limit else None
    return IncidentItems([_item(row) for row in rows[:limit]], more)


@patch("/incidents/{incident_id:str}", tags=["tracking"])
async def handle_incident(request: Request[Any, Any, Any], incident_id: FromPath[str], data: JSONBody[Handling]) -> IncidentItem:
    """Acknowledge it, assign it to somebody, or close it."""
    parts = parts_of(request)
    who = _who(parts, request)
    if data.state == "ASSIGNED" and data.assigned_to is None:
        raise Invalid(
            "ASSIGNED needs assignedTo", errors=[{"pointer": "/assignedTo", "code": "MISSING_FIELD", "detail": "who looks after it"}]
        )
    row = await _record(parts).handle_incident(incident_id, _areas(parts, who, None), data.state, who.subject, data.assigned_to)
    if row is None:
        raise NotFound(f"no incident {incident_id[:80]!r}")
    return _item(row)


# ------------------------------------------------------------------------------------------------ how they are made


def _who(parts: Parts, request: Request[Any, Any, Any]) -> Principal:
    return need(principal_of(parts, request), PARTNER_ADMIN, AGENT, SUPER_ADMIN)


def _areas(parts: Parts, who: Principal, wanted: str | None) -> list[str]:
    """The areas that the caller may see: its partner's, or of a super admin those of the partner it names, else all."""
    if who.role != SUPER_ADMIN:
        if who.partner_id is None or wanted not in (None, who.partner_id):
            raise Forbidden("your token acts for another partner")
        wanted = who.partner_id
    plans = parts.plans.all() if parts.plans is not None else []
    return [plan.feed_id for plan in plans if wanted is None or plan.partner_id == wanted]


def _record(parts: Parts) -> HistoryReader:
    if parts.history is None:
        raise Unavailable("this worker has no access to the record", retry_after_s=5)
    return parts.history


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


def _item(row: Incident) -> IncidentItem:
    return IncidentItem(
        incident_id=row.incident_id,
        kind=row.kind,
        severity=row.severity,
        bus_id=row.bus_id,
        trip_id=None if row.trip_id is None or row.start_date is None else trip_key(row.area, row.trip_id, row.start_date),
        route_id=None if row.route_id is None else f"{row.area}:{row.route_id}",
        start_date=row.start_date,
        opened_at=rfc3339(_ms(row.opened_at)),
        closed_at=_text(row.closed_at),
        lat=row.lat,
        lon=row.lon,
        detail=msgspec.json.decode(row.detail),
        handled_state=row.handled_state,
        handled_by=row.handled_by,
        handled_at=_text(row.handled_at),
        assigned_to=row.assigned_to,
    )


ROUTERS: Final = (list_incidents, handle_incident)
