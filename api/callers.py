"""From a request to whoever asks and to the key that makes asking twice harmless: the one place where headers become a `Caller`.

`Authorization: Bearer` names a person, `X-Hold-Token` opens a guest's booking. `Idempotency-Key` counts per caller, method and route: the same
key with the same body gets the first answer, with another body 422.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Any, Final

import msgspec
from litestar import Request, Response

from api.parts import BookingParts, Parts, parts_of
from api.problems import request_id_of
from api.tracking import principal_of
from engine.booking.callers import Caller
from engine.booking.refusals import Refused
from engine.errors import Invalid, Unavailable
from engine.store.desk import Answer, Key

KEY_MAX: Final = 255  # characters of an Idempotency-Key


def booking_of(parts: Parts) -> BookingParts:
    """The shells of the desk. Raises `Unavailable` where this process has none."""
    if parts.booking is None:
        raise Unavailable("this worker has no booking desk", retry_after_s=5)
    return parts.booking


def caller_of(request: Request[Any, Any, Any]) -> Caller:
    """Raises `Unauthenticated` for credentials that are given and do not hold."""
    parts = parts_of(request)
    principal = principal_of(parts, request)
    token = request.headers.get("x-hold-token")
    opened = None
    if token and parts.booking is not None:
        opened = parts.booking.tokens.read(token, parts.clock.now_ms())
    address = request.client.host if request.client is not None else ""
    request_id = request_id_of(request.scope)
    if principal is None:
        return Caller(request_id=request_id, address=address, opened=opened)
    return Caller(
        request_id=request_id,
        address=address,
        subject=principal.subject,
        role=principal.role,
        partner_id=principal.partner_id,
        opened=opened,
    )


async def key_of(request: Request[Any, Any, Any], caller: Caller, *, required: bool = True) -> Key | None:
    """The request's key. Raises `Refused` IDEMPOTENCY_KEY_REQUIRED, `Invalid`. A guest without a token has the key itself as its scope."""
    given = request.headers.get("idempotency-key")
    if given is None or not given.strip():
        if required:
            raise Refused(
                "IDEMPOTENCY_KEY_REQUIRED",
                "send Idempotency-Key: a fresh UUID for each new request, the same one when you try it again",
            )
        return None
    if len(given) > KEY_MAX or not given.isprintable():
        raise Invalid(f"Idempotency-Key has at most {KEY_MAX} printable characters")
    who = caller.actor if caller.role is not None else (caller.opened.booking_id if caller.opened is not None else "")
    route = request.scope["path_template"]
    scope = f"{who}\n{request.method}\n{route}\n{given}".encode()
    body = await request.body()
    return Key(
        key=str(uuid.UUID(bytes=hashlib.sha256(scope).digest()[:16])),
        fingerprint=hashlib.sha256(request.scope["path"].encode() + b"\n" + body).digest(),
    )


def answered(answer: Answer, headers: dict[str, str] | None = None) -> Response[Any]:
    """An answer kept under a key, as HTTP."""
    said = dict(headers or {})
    if answer.replayed:
        said["Idempotency-Replayed"] = "true"
    return Response(msgspec.to_builtins(answer.body), status_code=answer.status, headers=said)
