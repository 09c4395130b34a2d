"""Who may follow a booking live (`booking:{ref}`): its customer, whoever has its hold token, and the operator's desk.

A hold token makes a guest: somebody with a principal of role GUEST, which no access token can name and no call asks for. Whose a booking is
stands in the database, so the answer comes when the channel's log is read (engine/live/ordered.py). What is not yours is as unknown as what
does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from api.auth import Principal
from engine.booking.callers import Caller, HoldTokens
from engine.clock import Clock
from engine.errors import NotFound
from engine.store.office import Office

GUEST: Final = "GUEST"
GUEST_MS: Final = 86_400_000  # a token without an end is good for a day of listening


def guests(tokens: HoldTokens, clock: Clock) -> Callable[[str], Principal]:
    """From a hold token to a guest. The answer raises `Unauthenticated` for one that does not hold."""

    def guest_of(token: str) -> Principal:
        opened = tokens.read(token, clock.now_ms())
        return Principal(opened.booking_id, GUEST, None, opened.until_ms or clock.now_ms() + GUEST_MS)

    return guest_of


class Followers:
    """Asked for every subscription of an ordered channel."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def admit(self, principal: Any, channel: str) -> None:
        """Raises `NotFound` for a booking that is not this one's to follow, `Unavailable`. Other channels are judged by name alone
        (`api.auth.may_listen`)."""
        kind, _, ref = channel.partition(":")
        if kind != "booking":
            return
        found = await self._office.holder(ref)
        if found is None or principal is None or not _may_follow(principal, *found):
            raise NotFound(f"no booking {ref[:20]!r}, or not one of yours: auth with its holdToken, or sign in")


def _may_follow(principal: Principal, partner_id: str, holders: list[str], booking_ids: list[str]) -> bool:
    if principal.role == GUEST:
        return principal.subject in booking_ids
    caller = Caller(request_id="", subject=principal.subject, role=principal.role, partner_id=principal.partner_id)
    return caller.may_open(partner_id, holders, booking_ids)
