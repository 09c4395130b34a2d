"""REST calls of the office: what is said about changes (event types, publishing, dead letters and their replay), and the audit.

For PARTNER_ADMIN of the partner and SUPER_ADMIN, but for the list of event types, which is for everybody who writes a consumer. What
belongs to another partner is as unknown as what does not exist (404).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Request, Response, get, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from api.auth import PARTNER_ADMIN, SUPER_ADMIN, Principal, need
from api.callers import answered, booking_of, caller_of, key_of
from api.network import Cursor, Limit
from api.parts import Parts, parts_of
from api.tracking import principal_of
from engine.booking.refusals import Refused
from engine.errors import Forbidden, Invalid, NotFound
from engine.live.frames import rfc3339
from engine.office.topics import PUBLISHABLE, TOPICS, Event, event_of, examples
from engine.store.desk import ALL
from engine.store.office import LAST, NEWEST, AuditFilter, AuditRow, DeadLetter, Office

TIME_MAX_MS: Final = 253_402_200_000_000  # a day before the year 10,000
DATA_MAX: Final = 16_384  # bytes of the data of a published event
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ENTITY: Final = re.compile(rf"([a-z_]{{1,40}}):({_UUID.pattern})")

Word = Annotated[str, msgspec.Meta(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9._:-]+$(?!\n)")]


class EventType(msgspec.Struct, frozen=True):
    """`version`: of the shape of `data`; it rises when a field changes its meaning or goes away."""

    topic: str
    type: str
    version: int
    meaning: str
    example: Event


class EventTypes(msgspec.Struct, frozen=True, rename="camel"):
    items: list[EventType]
    next_cursor: str | None


class Publication(msgspec.Struct, frozen=True, rename="camel"):
    """An event of one's own. `data` is at most 16 KB of JSON. `partnerId`: for SUPER_ADMIN, whose event it is."""

    topic: Literal["partner", "system"]
    type: Word
    data: dict[str, Any]
    partner_id: Word | None = None


class DeadLetterItem(msgspec.Struct, frozen=True, rename="camel"):
    """An event that could not be delivered. HELD holds back the `behind` later events of its aggregate; REPLAYED is being tried again."""

    id: str
    event_id: str
    topic: str
    type: str
    aggregate: str
    seq: int
    partner_id: str
    state: str
    sink: str
    attempts: int
    error: str
    died_at: str
    behind: int
    replays: int
    replayed_at: str | None
    replayed_by: str | None


class DeadLetterItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[DeadLetterItem]
    next_cursor: str | None


class Replayed(msgspec.Struct, frozen=True):
    id: str
    state: str


class AuditItem(msgspec.Struct, frozen=True, rename="camel"):
    """Who changed what. `entity` reads KIND:UUID."""

    id: str
    partner_id: str
    actor: str
    request_id: str
    at: str
    action: str
    entity: str
    diff: Any


class AuditItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[AuditItem]
    next_cursor: str | None


@get("/events/topics", tags=["events"], sync_to_thread=False)
def list_event_types() -> EventTypes:
    """Every type of event, with the version of its shape and an example."""
    return EventTypes([EventType(e.topic, e.type, e.version, TOPICS[e.topic][e.type].meaning, e) for e in examples()], None)


@post("/events/publish", tags=["events"], status_code=201)
async def publish_event(request: Request[Any, Any, Any], data: JSONBody[Publication]) -> Response[Event]:
    """Says something to whoever consumes the operator's events. Needs an Idempotency-Key."""
    parts = parts_of(request)
    who, caller = _who(parts, request), caller_of(request)
    key = await key_of(request, caller)
    office, partner = _office(parts), who.partner_id or data.partner_id
    if partner is None:
        raise Invalid("partnerId is missing", errors=[_fault("/partnerId", "MISSING_FIELD", "a super admin says whose event it is")])
    if data.partner_id not in (None, partner) or not await office.is_partner(partner):
        raise NotFound(f"no partner {data.partner_id or partner!r}")
    if data.type not in PUBLISHABLE[data.topic]:
        listed = ", ".join(f"{topic} {kind}" for topic, kinds in PUBLISHABLE.items() for kind in kinds)
        raise Invalid(f"no type {data.type!r} of topic {data.topic}; there are {listed}", errors=[_fault("/type", "UNKNOWN_TYPE", listed)])
    if len(msgspec.json.encode(data.data)) > DATA_MAX:
        raise Invalid(f"data has at most {DATA_MAX} bytes", errors=[_fault("/data", "TOO_LARGE", f"at most {DATA_MAX} bytes of JSON")])
    aggregate = parts.clock.uuid7()

    async def work(connection: Any) -> tuple[int, Any]:
        await office.record(connection, partner, caller.actor, caller.request_id, data.topic, data.type, aggregate, data.data)
        event = event_of(data.topic, data.type, aggregate, 1, partner, parts.clock.now_ms(), data.data)
        return 201, msgspec.to_builtins(event)

    return answered(await booking_of(parts).pool.once(key, partner, work))


@get("/events/dead-letters", tags=["events"])
async def list_dead_letters(
    request: Request[Any, Any, Any],
    limit: Limit = 20,
    cursor: Cursor = None,
    standing: Annotated[Literal["HELD", "REPLAYED", "DELIVERED"] | None, QueryParameter(name="state")] = None,
    partner: FromQuery[str | None] = None,
) -> DeadLetterItems:
    """Events that could not be delivered, newest first."""
    parts = parts_of(request)
    tenant = _tenant(_who(parts, request), partner)
    before = LAST if cursor is None else _uuid(cursor)
    if before is None:
        raise Invalid("cursor must be the nextCursor of an earlier page")
    found = await _office(parts).dead_letters(tenant, before=before, state=standing, limit=limit + 1)
    return DeadLetterItems([_dead_letter(one) for one in found[:limit]], found[limit - 1].dead_letter_id if len(found) > limit else None)


@post("/events/dead-letters/{dead_letter_id:str}/replay", tags=["events"], status_code=200)
async def replay_dead_letter(request: Request[Any, Any, Any], dead_letter_id: FromPath[str]) -> Replayed:
    """Has the event tried again, and what waits behind it. Doing it twice is doing it once."""
    parts = parts_of(request)
    tenant, caller = _tenant(_who(parts, request), None), caller_of(request)
    office, wanted = _office(parts), _uuid(dead_letter_id)

    async def work(connection: Any) -> str | None:
        return await office.replay(connection, wanted or "", caller.actor, caller.request_id)

    state = await booking_of(parts).pool.run(tenant, work) if wanted is not None else None
    if state is None:
        raise NotFound(f"no dead letter {dead_letter_id[:80]!r}")
    if state == "DELIVERED":
        raise Refused("EVENT_DELIVERED", "the event has been delivered meanwhile: there is nothing to replay")
    return Replayed(str(wanted), "REPLAYED")


@get("/audit", tags=["audit"])
async def list_audit(
    request: Request[Any, Any, Any],
    limit: Limit = 20,
    cursor: Cursor = None,
    entity: Annotated[str | None, QueryParameter(description="KIND:UUID, as booking:0195c0de-...")] = None,
    actor: Annotated[str | None, QueryParameter(description="as customer:ID, agent:ID, system")] = None,
    action: Annotated[str | None, QueryParameter(description="as booking.CONFIRMED")] = None,
    since: Annotated[str | None, QueryParameter(name="from", description="RFC 3339")] = None,
    until: Annotated[str | None, QueryParameter(name="to", description="RFC 3339")] = None,
    partner: FromQuery[str | None] = None,
) -> AuditItems:
    """Who changed what, newest first."""
    parts = parts_of(request)
    tenant = _tenant(_who(parts, request), partner)
    named = None if entity is None else _ENTITY.fullmatch(entity)
    if entity is not None and named is None:
        raise Invalid(
            "entity reads KIND:UUID", errors=[_fault("?entity", "INVALID_VALUE", "as booking:0195c0de-0001-7000-8000-000000000001")]
        )
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
        raise Invalid("cursor must be the nextCursor of an earlier page")
    wanted = AuditFilter(
        entity_kind=named[1] if named else None,
        entity_id=named[2] if named else None,
        actor=actor,
        action=action,
        from_ms=_instant(since, "?from"),
        to_ms=_instant(until, "?to"),
    )
    found = await _office(parts).audit(tenant, wanted, before=int(cursor) if cursor else NEWEST, limit=limit + 1)
    return AuditItems([_audited(row) for row in found[:limit]], str(found[limit - 1].audit_id) if len(found) > limit else None)


# ------------------------------------------------------------------------------------------------ how they are made


def _who(parts: Parts, request: Request[Any, Any, Any]) -> Principal:
    who = need(principal_of(parts, request), PARTNER_ADMIN, SUPER_ADMIN)
    if who.role == PARTNER_ADMIN and who.partner_id is None:
        raise Forbidden("your token acts for no partner")
    return who


def _tenant(who: Principal, wanted: str | None) -> str:
    """Whose rows are shown: of a super admin those of the partner it names, else all. Raises `NotFound` for another partner."""
    if who.role == SUPER_ADMIN:
        return wanted or ALL
    assert who.partner_id is not None
    if wanted not in (None, who.partner_id):
        raise NotFound(f"no partner {wanted!r}")
    return who.partner_id


def _office(parts: Parts) -> Office:
    return Office(booking_of(parts).pool)


def _fault(pointer: str, code: str, detail: str) -> dict[str, str]:
    return {"pointer": pointer, "code": code, "detail": detail}


def _uuid(text: str) -> str | None:
    """None where it is no UUID."""
    return text.lower() if _UUID.fullmatch(text.lower()) else None


def _instant(text: str | None, pointer: str) -> int | None:
    """UTC milliseconds. Raises `Invalid`."""
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
        when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        return max(0, min(round(when.timestamp() * 1000), TIME_MAX_MS))
    except (ValueError, OverflowError) as fault:
        raise Invalid(f"{text[:60]!r} is no RFC 3339 time", errors=[_fault(pointer, "INVALID_VALUE", "as 2026-11-21T06:00:00Z")]) from fault


def _text(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)


def _dead_letter(one: DeadLetter) -> DeadLetterItem:
    return DeadLetterItem(
        one.dead_letter_id,
        f"{one.topic}:{one.aggregate}:{one.version}",
        one.topic,
        one.kind,
        one.aggregate,
        one.version,
        one.partner_id,
        one.state,
        one.sink,
        one.attempts,
        one.error,
        rfc3339(one.died_at_ms),
        one.behind,
        one.replays,
        _text(one.replayed_at_ms),
        one.replayed_by,
    )


def _audited(row: AuditRow) -> AuditItem:
    return AuditItem(str(row.audit_id), row.partner_id, row.actor, row.request_id, rfc3339(row.at_ms), row.action, row.entity, row.diff)


ROUTERS: Final = (list_event_types, publish_event, list_dead_letters, replay_dead_letter, list_audit)
