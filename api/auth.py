"""Who is asking: one function from a request's token to a `Principal`. Everything is refused by default.

A principal comes from a signed access token (JWT, RFC 7519; HS256 over `SECRET_KEY`, the algorithm allow-listed here and never read from
the token). Accounts, refresh tokens and key rotation will mint the same tokens; callers only ever see `Principal`.
"""

from __future__ import annotations

import hashlib
from typing import Final

import jwt
import msgspec

from engine.clock import Clock
from engine.errors import Forbidden, Invalid, Unauthenticated
from engine.settings import Settings

CUSTOMER, DRIVER, AGENT, PARTNER_ADMIN, SUPER_ADMIN = "CUSTOMER", "DRIVER", "AGENT", "PARTNER_ADMIN", "SUPER_ADMIN"
ROLES: Final = (CUSTOMER, DRIVER, AGENT, PARTNER_ADMIN, SUPER_ADMIN)

ISSUER: Final = "timepoint"
AUDIENCE: Final = "timepoint.api"
DEMO_KEY: Final = "timepoint-demo-key-for-one-machine-only"
CACHE_MAX: Final = 4_096  # verified tokens remembered by hash: a verify costs 60-180 us, a look-up under 1


class Principal(msgspec.Struct, frozen=True, gc=False):
    """Somebody known. `partner_id` None: of no partner (a customer, or a super admin, who sees all)."""

    subject: str
    role: str
    partner_id: str | None
    expires_at_ms: int

    def may_manage(self, partner_id: str) -> bool:
        """Whether this principal runs that partner's fleet."""
        return self.role == SUPER_ADMIN or (self.role == PARTNER_ADMIN and self.partner_id == partner_id)


class Tokens:
    """Mints and reads access tokens. Reading is cached by the token's SHA-256, so a socket or a poller pays for the signature once."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        key = settings.secret_key or (DEMO_KEY if settings.demo else "")
        if len(key) < 32 or (key == DEMO_KEY and not settings.demo):
            raise Invalid("SECRET_KEY must be set to at least 32 characters of its own (or DEMO=1 for a demo on this machine)")
        self.key, self._clock = key, clock  # HMAC secrets of devices derive from the key too
        self._seen: dict[bytes, Principal] = {}

    def mint(self, subject: str, role: str, *, partner_id: str | None = None, life_s: int = 900) -> str:
        """A signed token for `life_s` seconds. Raises `Invalid` for a role that does not exist."""
        if role not in ROLES:
            raise Invalid(f"no role {role}; there are {', '.join(ROLES)}")
        now_s = self._clock.now_ms() // 1000
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "typ": "access",
            "jti": self._clock.uuid7(),
            "sub": subject,
            "roles": [role],
            "partner": partner_id,
            "iat": now_s,
            "exp": now_s + life_s,
        }
        return jwt.encode(claims, self.key, algorithm="HS256")

    def principal(self, token: str) -> Principal:
        """Whoever the token names. Raises `Unauthenticated` for one that is malformed, forged, foreign or over."""
        now_ms = self._clock.now_ms()
        digest = hashlib.sha256(token.encode()).digest()
        known = self._seen.get(digest)
        if known is None:
            known = self._read(token)
            if len(self._seen) >= CACHE_MAX:
                self._seen.clear()
            self._seen[digest] = known
        if known.expires_at_ms <= now_ms:
            raise Unauthenticated("the access token is over; sign in again")
        return known

    def _read(self, token: str) -> Principal:
        try:
            claims = jwt.decode(
                token,
                self.key,
                algorithms=["HS256"],
                audience=AUDIENCE,
                issuer=ISSUER,
                options={"require": ["exp", "sub", "roles", "typ"], "verify_exp": False, "verify_iat": False},
            )
            role = claims["roles"][0]
            if claims["typ"] != "access" or role not in ROLES:
                raise Unauthenticated("not an access token of this product")
            return Principal(str(claims["sub"]), role, claims.get("partner"), int(claims["exp"]) * 1000)
        except (jwt.InvalidTokenError, LookupError, TypeError, ValueError) as fault:
            raise Unauthenticated(f"the access token does not hold: {type(fault).__name__}") from fault

    def from_header(self, authorization: str | None) -> Principal | None:
        """None where no Authorization header is given; raises `Unauthenticated` where one is given and does not hold."""
        if authorization is None:
            return None
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise Unauthenticated("Authorization must read: Bearer <access token>")
        return self.principal(token.strip())


def need(principal: Principal | None, *roles: str) -> Principal:
    """The principal, if it has one of these roles. Raises `Unauthenticated` or `Forbidden`."""
    if principal is None:
        raise Unauthenticated("this call needs an access token: Authorization: Bearer <token>")
    if principal.role not in roles:
        raise Forbidden(f"this call is for {' or '.join(roles)}")
    return principal


PUBLIC_CHANNELS: Final = frozenset({"bus", "trip", "route", "stop", "seats", "bbox"})


def may_listen(principal: Principal | None, channel: str) -> bool:
    """Whether this caller may subscribe. Public: what passengers see. The rest asks for the partner's role."""
    kind, _, of = channel.partition(":")
    if kind in PUBLIC_CHANNELS:
        return True
    if principal is None:
        return False
    if kind in ("fleet", "incidents"):
        return principal.may_manage(of) or (principal.role == AGENT and principal.partner_id == of)
    if kind == "booking":
        return True  # somebody known; whose it is, the database knows (api/following.py)
    return kind == "notifications" and principal.role in ROLES
