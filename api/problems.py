"""Errors on the wire: one table from an `EngineError` leaf to its RFC 9457 problem document and its WebSocket close code.

Promises: every HTTP error, also those that the web framework raises itself (404, 405, 413, a body that does not validate, a bug of ours),
is `application/problem+json` with `type, title, status, detail, instance, code, requestId, retryable, errors`. `code` is stable; `detail`
is for people. A bug's trace goes to the log with the request id and never onto the wire.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

from engine import errors
from engine.booking.payments import ProviderRefused, ProviderSilent
from engine.booking.refusals import Refused

log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"

# What a socket's close code tells the client (contract, "Live").
RESTARTING, BAD_MESSAGE, NOT_AUTHENTICATED, NOT_ALLOWED, SLOW_READER, TOO_MANY = 1012, 4400, 4401, 4403, 4408, 4429
FAULT_OF_OURS: Final = 1011  # RFC 6455 section 7.4.1

# The table. A leaf that does not stand here speaks as its nearest ancestor that does, with its own code and status.
TITLES: Final[dict[type[errors.EngineError], tuple[str, int]]] = {
    errors.EngineError: ("Something broke on our side", FAULT_OF_OURS),
    errors.Invalid: ("The request is not valid", BAD_MESSAGE),
    errors.MalformedBody: ("The body does not parse", BAD_MESSAGE),
    errors.Unauthenticated: ("Credentials are missing or do not hold", NOT_AUTHENTICATED),
    errors.Forbidden: ("Not allowed", NOT_ALLOWED),
    errors.NotFound: ("Not found", BAD_MESSAGE),
    errors.Gone: ("It is over", BAD_MESSAGE),
    errors.Conflict: ("The state of things forbids it", BAD_MESSAGE),
    errors.BodyTimeout: ("The body did not arrive in time", BAD_MESSAGE),
    errors.TooLarge: ("Too large", BAD_MESSAGE),
    errors.TooMany: ("Too many requests", TOO_MANY),
    errors.Unavailable: ("Not available right now", RESTARTING),
    Refused: ("The desk refuses it", BAD_MESSAGE),  # each code has its own title: engine/booking/refusals.py
    ProviderSilent: ("The payment provider does not answer", RESTARTING),
    ProviderRefused: ("The payment provider refuses", BAD_MESSAGE),
    errors.FeedRejected: ("The feed has errors; nothing of it was taken", BAD_MESSAGE),
}

# Codes of what the web framework itself raises, by status.
STATUS_CODES: Final[dict[int, str]] = {
    400: "INVALID",
    401: "UNAUTHENTICATED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    406: "NOT_ACCEPTABLE",
    408: "TIMEOUT",
    410: "GONE",
    413: "TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    429: "TOO_MANY_REQUESTS",
    431: "HEADERS_TOO_LARGE",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}

_AT = re.compile(r" - at `(?:key in )?\$(?P<path>[^`]*)`$")  # how msgspec names the place of a fault


class Fault(msgspec.Struct, frozen=True):
    """One thing wrong with a request. `pointer` is a JSON pointer into the body (RFC 6901), or `?name` for a query parameter."""

    pointer: str
    code: str
    detail: str


class Problem(msgspec.Struct, frozen=True, rename="camel"):
    """RFC 9457 section 3, with the members that the contract adds."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    retryable: bool
    errors: list[Fault]


def title_and_close_code(error: type[errors.EngineError]) -> tuple[str, int]:
    """The table's row of that leaf, or of its nearest ancestor."""
    return next(TITLES[kind] for kind in error.__mro__ if kind in TITLES)


def close_code(fault: Exception) -> int:
    """The WebSocket close code that says what this error says."""
    return title_and_close_code(type(fault))[1] if isinstance(fault, errors.EngineError) else FAULT_OF_OURS


def pointer_of(path: str) -> str:
    """msgspec's `$.stops[0].name` (without the `$`) as a JSON pointer: `/stops/0/name`."""
    return re.sub(r"\[(\d+|\.\.\.)\]", lambda m: "/" + m[1], path).replace(".", "/") if path else ""


def fault_of(message: str) -> Fault:
    """One msgspec complaint with its place taken out of the text."""
    at = _AT.search(message)
    code = "MISSING_FIELD" if "missing required field" in message else "UNKNOWN_FIELD" if "unknown field" in message else "INVALID_VALUE"
    named = re.search(r"(?:required|unknown) field `([^`]+)`", message)
    pointer = pointer_of(at["path"]) if at else ""
    return Fault(pointer + ("/" + named[1] if named else ""), code, _AT.sub("", message))


def problem_of(fault: Exception, instance: str, request_id: str) -> tuple[Problem, dict[str, str]]:
    """The document of any exception, and the headers that go with it (Retry-After, WWW-Authenticate, Allow)."""
    headers: dict[str, str] = {}
    if isinstance(fault, errors.EngineError):
        title = fault.title if isinstance(fault, Refused) else title_and_close_code(type(fault))[0]
        code, status, retryable, detail = fault.code, fault.status, fault.retryable, fault.detail
        listed = [Fault(e.get("pointer", ""), e.get("code", "INVALID_VALUE"), e.get("detail", "")) for e in fault.errors]
        if fault.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(fault.retry_after_s)))
    elif isinstance(fault, msgspec.ValidationError):
        title, code, status, retryable, detail = TITLES[errors.Invalid][0], "INVALID", 400, False, str(fault)
        listed = [fault_of(str(fault))]
    elif isinstance(fault, RecursionError) and "deserializing" in str(fault):  # msgspec, of a body nested a thousand deep
        title, code, status, retryable, listed = TITLES[errors.Invalid][0], "INVALID", 400, False, []
        detail = "the body is nested too deeply"
    elif isinstance(fault, HTTPException) and fault.status_code < 500:
        status, detail, listed = fault.status_code, fault.detail or HTTPStatus(fault.status_code).phrase, _listed(fault)
        title, code, retryable = HTTPStatus(status).phrase, STATUS_CODES.get(status, f"HTTP_{status}"), status in (408, 429)
        headers.update(fault.headers or {})
    else:
        log.error("request %s to %s broke", request_id, instance, exc_info=fault)
        title, code, status, retryable, listed = TITLES[errors.EngineError][0], "INTERNAL", 500, False, []
        detail = "a fault of ours, written to our log under this requestId"
    if status == 401:
        headers.setdefault("WWW-Authenticate", "Bearer")
    kind = "urn:timepoint:problem:" + code.lower().replace("_", "-")
    return Problem(kind, title, status, detail, instance, code, request_id, retryable, listed), headers


def _listed(fault: HTTPException) -> list[Fault]:
    """The single complaints of a request that did not validate; the framework keeps them as `extra` or as the cause."""
    if isinstance(fault.__cause__, msgspec.ValidationError):
        one = fault_of(str(fault.__cause__))  # of the handler's arguments, of which the body is the one called `data`
        inside = re.match(r"/data(?=/|$)", one.pointer)
        return [one if inside is None else msgspec.structs.replace(one, pointer=one.pointer[inside.end() :])]
    extra = fault.extra if isinstance(fault, ValidationException) else None
    found = []
    for item in extra if isinstance(extra, list) else []:
        if isinstance(item, Mapping):
            key, where = str(item.get("key", "")), str(item.get("source", "body"))
            pointer = "?" + key if where == "query" else "/" + key.replace(".", "/")
            found.append(Fault(pointer if key else "", "INVALID_VALUE", str(item.get("message", ""))))
    return found


def request_id_of(scope: Mapping[str, Any]) -> str:
    """The id that the edge gave this request; empty where it did not pass through it."""
    return str(scope.get("state", {}).get("request_id", ""))


def answer(request: Request[Any, Any, Any], fault: Exception) -> Response[bytes]:
    """The exception handler of the web framework."""
    problem, headers = problem_of(fault, request.url.path, request_id_of(request.scope))
    return Response(msgspec.json.encode(problem), status_code=problem.status, headers=headers, media_type=MEDIA_TYPE)
