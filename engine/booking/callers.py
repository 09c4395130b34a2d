"""Who asks something of the desk, and what is theirs to touch. Pure.

A caller is a person with an access token, a guest with a hold token, or a guest with nothing. A **hold token** is a capability: it opens the
bookings of one hold, and names the guest's first hold (its root), so that a guest's limits count over all they hold. It is an HMAC-SHA256
over the ids and is kept nowhere; an answer that is given again has the same token. What somebody may not touch is as unknown as what does
not exist.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import uuid
from collections.abc import Collection
from typing import Any, Final

import msgspec

from engine.errors import Unauthenticated

_MAC: Final = 16  # bytes of the HMAC kept: 2^128 guesses
_SIZE: Final = 16 + 16 + 6 + _MAC
DESK_ROLES: Final = frozenset({"AGENT", "PARTNER_ADMIN"})  # sell for their partner
STAFF_ROLES: Final = frozenset({"AGENT", "PARTNER_ADMIN", "DRIVER", "DEVICE"})  # see who travels; a device scans tickets


class Opened(msgspec.Struct, frozen=True):
    """What a hold token says."""

    booking_id: str
    root: str  # the guest's first hold
    until_ms: int = 0  # 0: as long as the booking is there


class HoldTokens:
    """Mints and reads hold tokens."""

    def __init__(self, secret: str) -> None:
        self._key = hashlib.sha256(b"hold token:" + secret.encode()).digest()

    def mint(self, booking_id: str, root: str | None = None, until_ms: int = 0) -> str:
        """`until_ms` 0: as long as the booking is there."""
        said = uuid.UUID(booking_id).bytes + uuid.UUID(root or booking_id).bytes + until_ms.to_bytes(6, "big")
        return base64.urlsafe_b64encode(said + self._mac(said)).decode()

    def read(self, token: str, now_ms: int) -> Opened:
        """Raises `Unauthenticated` for one that is malformed, forged or over."""
        try:
            raw = base64.b64decode(token.encode("ascii"), b"-_", validate=True)
        except (ValueError, binascii.Error, UnicodeEncodeError):
            raw = b""
        if len(raw) != _SIZE or not hmac.compare_digest(self._mac(raw[:-_MAC]), raw[-_MAC:]):
            raise Unauthenticated("X-Hold-Token is none of ours")
        until_ms = int.from_bytes(raw[32:38], "big")
        if until_ms and until_ms <= now_ms:
            raise Unauthenticated("the token is over; look the booking up again")
        return Opened(str(uuid.UUID(bytes=raw[:16])), str(uuid.UUID(bytes=raw[16:32])), until_ms)

    def _mac(self, said: bytes) -> bytes:
        return hmac.digest(self._key, said, "sha256")[:_MAC]


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Whoever asks. `role` None: a guest."""

    request_id: str
    address: str = ""
    subject: str | None = None
    role: str | None = None
    partner_id: str | None = None
    opened: Opened | None = None  # by the hold token that came along

    @property
    def actor(self) -> str:
        """How the audit names them."""
        if self.role is not None:
            return f"{self.role.lower()}:{self.subject}"
        return f"guest:{self.opened.root}" if self.opened is not None else "guest"

    def sells_for(self, partner_id: str) -> bool:
        """Whether this is the operator's desk: no guest limits, any booking of theirs."""
        return self.role == "SUPER_ADMIN" or (self.role in DESK_ROLES and self.partner_id == partner_id)

    def staff_of(self, partner_id: str) -> bool:
        """Whether this one may see who travels with that operator."""
        return self.role == "SUPER_ADMIN" or (self.role in STAFF_ROLES and self.partner_id == partner_id)

    def runs(self, partner_id: str) -> bool:
        """Whether this one decides for the operator."""
        return self.role == "SUPER_ADMIN" or (self.role == "PARTNER_ADMIN" and self.partner_id == partner_id)

    def holder(self, booking_id: str) -> str:
        """Whose limits a new hold counts against. Who has looked a booking up is not for ever the guest who made it: a hold of their own."""
        if self.role is not None:
            return self.actor
        return f"guest:{self.opened.root if self.opened is not None and not self.opened.until_ms else booking_id}"

    def may_open(self, partner_id: str, holders: Collection[str], booking_ids: Collection[str]) -> bool:
        """Whether a booking with these holders and row ids is theirs to see and to change."""
        if self.sells_for(partner_id):
            return True
        if self.role is not None and self.actor in holders:
            return True
        if self.opened is None:
            return False
        if self.opened.booking_id in booking_ids:
            return True
        return not self.opened.until_ms and f"guest:{self.opened.root}" in holders  # another hold of the same guest: there and back

    def may_open_shown(self, shown: Any) -> bool:
        """The same for what `booking.shown` answers."""
        rows = shown["rows"]
        return self.may_open(shown["partner"], {row["holder"] for row in rows}, {row["id"] for row in rows} | {shown["lead"]})
