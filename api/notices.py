"""Who hears of an operator's incidents on their own `notifications` channel. For PARTNER_ADMIN, AGENT and SUPER_ADMIN, each for themselves."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Request, delete, get, put
from litestar.params import FromQuery, JSONBody

from api.auth import AGENT, PARTNER_ADMIN, SUPER_ADMIN, need
from api.callers import booking_of
from api.fares import PartnerId, acting_for
from api.parts import parts_of
from api.tracking import principal_of
from engine.errors import NotFound
from engine.store.notices import Following, NoticeBook
from engine.tracking.episodes import KINDS

FOLLOW: Final = (PARTNER_ADMIN, AGENT, SUPER_ADMIN)
Kinds = Annotated[list[Literal[KINDS]], msgspec.Meta(max_length=len(KINDS))]  # type: ignore[valid-type]  # one list of kinds, not two


class FollowIn(msgspec.Struct, frozen=True, rename="camel"):
    """Incidents of this severity and worse; no kinds: of every kind."""

    severity: Literal["MINOR", "MAJOR", "CRITICAL"] = "MAJOR"
    kinds: Kinds = []
    partner_id: PartnerId | None = None


class FollowItem(msgspec.Struct, frozen=True, rename="camel"):
    partner_id: str
    severity: str
    kinds: list[str]


@get("/notifications/incidents", tags=["alerts"])
async def read_following(request: Request[Any, Any, Any], partner: FromQuery[str | None] = None) -> FollowItem:
    """Which incidents come to your notifications; 404: none."""
    partner_id, subject = acting_for(request, partner, roles=FOLLOW), _who(request)
    found = await _pool(request).run(partner_id, lambda connection: NoticeBook(connection).following(partner_id, subject))
    if found is None:
        raise NotFound("you follow no incidents; PUT says which")
    return FollowItem(partner_id, found.severity, found.kinds)


@put("/notifications/incidents", tags=["alerts"])
async def follow_incidents(request: Request[Any, Any, Any], data: JSONBody[FollowIn]) -> FollowItem:
    """From now on these come to your notifications, when they open, become worse and close; in the place of those you chose before."""
    partner_id, subject = acting_for(request, data.partner_id, roles=FOLLOW), _who(request)
    wanted = Following(data.severity, list(dict.fromkeys(data.kinds)))
    await _pool(request).run(partner_id, lambda connection: NoticeBook(connection).follow(partner_id, subject, wanted))
    return FollowItem(partner_id, wanted.severity, wanted.kinds)


@delete("/notifications/incidents", tags=["alerts"])
async def unfollow_incidents(request: Request[Any, Any, Any], partner: FromQuery[str | None] = None) -> None:
    """None come any more. Harmless where none did."""
    partner_id, subject = acting_for(request, partner, roles=FOLLOW), _who(request)
    await _pool(request).run(partner_id, lambda connection: NoticeBook(connection).unfollow(partner_id, subject))


def _pool(request: Request[Any, Any, Any]) -> Any:
    return booking_of(parts_of(request)).pool


def _who(request: Request[Any, Any, Any]) -> str:
    return need(principal_of(parts_of(request), request), *FOLLOW).subject


ROUTERS: Final = (read_following, follow_incidents, unfollow_incidents)
