"""Rules of a feed's area: thresholds of what is watched, and what counts as on time. For PARTNER_ADMIN of the operator and SUPER_ADMIN.

In force on every worker within about two seconds. Another operator's feed is as unknown as one that does not exist (404).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, get, patch
from litestar.params import FromPath, JSONBody

from api.auth import PARTNER_ADMIN, SUPER_ADMIN, Principal, need
from api.callers import booking_of, caller_of
from api.fares import tagged
from api.parts import Parts, parts_of
from api.tracking import principal_of
from engine.booking.refusals import unless_match
from engine.errors import Invalid, NotFound, Unavailable
from engine.store import rules as store
from engine.store.fares import OfferBook
from engine.tracking.rules import WatchConfig

WIRE: Final = {re.sub(r"_([a-z])", lambda found: found[1].upper(), name): name for name in WatchConfig.__struct_fields__}
Seconds = Annotated[int, msgspec.Meta(ge=0, le=3_600)]


class RulesItem(msgspec.Struct, frozen=True, rename="camel"):
    """`watch`: every threshold as it is in force (docs/incidents.md says what each does)."""

    feed_id: str
    watch: dict[str, float | int]
    on_time_early_s: int
    on_time_late_s: int
    version: int  # 0: nobody has set anything


class RulesEdit(msgspec.Struct, frozen=True, rename="camel"):
    """What is not named stays; a threshold set to null goes back to the default."""

    watch: dict[str, float | int | None] = {}
    on_time_early_s: Seconds | None = None
    on_time_late_s: Seconds | None = None


@get("/admin/feeds/{feed_id:str}/rules", tags=["tracking"])
async def read_feed_rules(request: Request[Any, Any, Any], feed_id: FromPath[str]) -> Response[RulesItem]:
    """The rules in force; the ETag is what an edit sends as If-Match."""
    parts = parts_of(request)
    _own(parts, request, feed_id)
    if parts.postgres is None:
        raise Unavailable("this worker has no database", retry_after_s=5)
    return tagged(_item(feed_id, await store.read_rules(parts.postgres, feed_id)))


@patch("/admin/feeds/{feed_id:str}/rules", tags=["tracking"])
async def edit_feed_rules(request: Request[Any, Any, Any], feed_id: FromPath[str], data: JSONBody[RulesEdit]) -> Response[RulesItem]:
    """Set thresholds, or the window of being on time. Try them on recorded days first: `timepoint replay --set watch.off_m=80`."""
    parts = parts_of(request)
    who, partner_id = _own(parts, request, feed_id)
    house, caller = booking_of(parts), caller_of(request)

    async def work(connection: Any) -> RulesItem:
        before = await store.read_rules(connection, feed_id)
        unless_match(request.headers.get("if-match"), f'"{before.version}"')
        watch = _edited(before.watch, data.watch)
        early_s = before.on_time_early_s if data.on_time_early_s is None else data.on_time_early_s
        late_s = before.on_time_late_s if data.on_time_late_s is None else data.on_time_late_s
        version = await store.put_rules(connection, feed_id, _differing(watch), early_s, late_s, who.subject, before.version)
        if version is None:  # somebody else was first, between our two statements
            unless_match(f'"{before.version}"', '"newer"')
        after = await store.read_rules(connection, feed_id)
        shown = msgspec.to_builtins(_item(feed_id, before)), msgspec.to_builtins(_item(feed_id, after))
        await OfferBook(connection).note(partner_id, caller.actor, caller.request_id, "RULES_CHANGED", feed_id, after.version, *shown)
        return _item(feed_id, after)

    return tagged(await house.pool.run(partner_id, work))


def _own(parts: Parts, request: Request[Any, Any, Any], feed_id: str) -> tuple[Principal, str]:
    """Who asks, and whose the feed is."""
    who = need(principal_of(parts, request), PARTNER_ADMIN, SUPER_ADMIN)
    plan = parts.plans.get(feed_id) if parts.plans is not None else None
    if plan is None or (who.role != SUPER_ADMIN and plan.partner_id != who.partner_id):
        raise NotFound(f"no feed {feed_id[:80]!r}")
    return who, plan.partner_id


def _edited(watch: WatchConfig, wanted: dict[str, float | int | None]) -> WatchConfig:
    defaults, now = msgspec.to_builtins(WatchConfig()), msgspec.to_builtins(watch)
    faults = []
    for spoken, value in wanted.items():
        name = WIRE.get(spoken)
        if name is None:
            faults.append({"pointer": f"/watch/{spoken[:80]}", "code": "UNKNOWN_SETTING", "detail": "no such threshold"})
            continue
        now[name] = defaults[name] if value is None else value
        try:
            msgspec.convert(now, WatchConfig)
        except msgspec.ValidationError as fault:
            faults.append({"pointer": f"/watch/{spoken}", "code": "BAD_SETTING", "detail": str(fault)})
            now[name] = defaults[name]
    if faults:
        raise Invalid("thresholds that cannot be set: " + ", ".join(fault["pointer"] for fault in faults), errors=faults)
    return msgspec.convert(now, WatchConfig)


def _differing(watch: WatchConfig) -> dict[str, Any]:
    defaults = msgspec.to_builtins(WatchConfig())
    return {name: value for name, value in msgspec.to_builtins(watch).items() if value != defaults[name]}


def _item(feed_id: str, row: store.RuleRow) -> RulesItem:
    watch = {spoken: getattr(row.watch, name) for spoken, name in WIRE.items()}
    return RulesItem(feed_id, watch, row.on_time_early_s, row.on_time_late_s, row.version)


ROUTERS: Final = (read_feed_rules, edit_feed_rules)
