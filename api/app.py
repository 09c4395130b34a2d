"""The HTTP side of the product: what every request meets first (`Edge`), and the web application behind it.

Promises, for every answer: `X-Request-Id` (the caller's own, where it is a decent one), `X-API-Version: 1`, security headers with a content
security policy that allows no inline script, and a problem document for every error. `/api/v1` is an alias of `/v1`. `/ingest` goes to the
devices' application without passing through the web framework. A client that asks for
`application/vnd.timepoint.envelope+json` gets every JSON answer in its envelope.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
from litestar import Litestar, Router, get
from litestar.enums import HttpMethod, ScopeType
from litestar.openapi import OpenAPIConfig
from litestar.response import Response
from litestar.types import ControllerRouterHandler, Message, Receive, Scope, Send

from api import problems
from api.calls import Calls
from api.ids import VERSION, request_id
from api.openapi import Schema
from api.parts import Parts
from engine.errors import EngineError
from engine.live.frames import rfc3339

ENVELOPE: Final = b"application/vnd.timepoint.envelope+json"
BODY_MAX: Final = 1_048_576  # bytes of a web call's body; a handler that takes more (feeds) says so itself
CHECK_TIMEOUT_S: Final = 1.0  # longest wait of /readyz for one part

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS: Final[list[tuple[bytes, bytes]]] = [
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]

Check = Callable[[], Awaitable[object]]


def make_app(parts: Parts, routers: Sequence[ControllerRouterHandler] = (), *, roots: Sequence[ControllerRouterHandler] = ()) -> Edge:
    """The ASGI application: `routers` under /v1, `roots` at the root (/metrics, /gtfs-rt, /sse ...)."""
    handlers: list[ControllerRouterHandler] = [Router("/v1", route_handlers=list(routers)), *ops_handlers(parts), *roots]
    litestar = Litestar(
        route_handlers=handlers,
        exception_handlers={Exception: problems.answer},
        openapi_config=OpenAPIConfig(
            title="Timepoint", version="1", path="/schema", render_plugins=[Schema()], use_handler_docstrings=True
        ),
        request_max_body_size=BODY_MAX,
        state=None,
        logging_config=None,
    )
    litestar.state.parts = parts
    return Edge(litestar, parts)


def ops_handlers(parts: Parts) -> list[ControllerRouterHandler]:
    """/healthz (the process lives) and /readyz (it can do its work)."""

    @get("/healthz", tags=["ops"], sync_to_thread=False)
    def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @get("/readyz", tags=["ops"])
    async def readyz() -> Response[dict[str, Any]]:
        """Whether this worker should be sent work: 503 while it drains or while a part it needs is away."""
        checks: dict[str, Check] = {}
        if parts.redis is not None:
            checks["redis"] = parts.redis.ping
        if parts.postgres is not None:
            postgres = parts.postgres
            checks["postgres"] = lambda: postgres.execute("select 1")
        said = dict(zip(checks, await asyncio.gather(*(_state_of(check) for check in checks.values())), strict=True))
        said["worker"] = "draining" if parts.draining else "ok"
        ready = all(state == "ok" for state in said.values())
        body = {"status": "ready" if ready else "unavailable", "parts": said, "liveStale": parts.table.stale}
        return Response(body, status_code=200 if ready else 503, headers={} if ready else {"Retry-After": "2"})

    return [healthz, readyz]


async def _state_of(check: Check) -> str:
    try:
        await asyncio.wait_for(check(), CHECK_TIMEOUT_S)
    except TimeoutError:
        return f"no answer in {CHECK_TIMEOUT_S:.0f} s"
    except EngineError as fault:
        return fault.detail
    return "ok"


class Edge:
    """The outermost ASGI callable: ids, headers, alias, devices, HEAD, envelope."""

    __slots__ = ("calls", "litestar", "parts")

    def __init__(self, litestar: Litestar, parts: Parts) -> None:
        self.litestar, self.parts = litestar, parts
        self.calls = Calls(litestar, BODY_MAX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self.litestar(scope, receive, send)
            return
        path: str = scope["path"]
        if path.startswith("/ingest/") and self.parts.devices is not None:
            await self.parts.devices(scope, receive, send)
            return
        scope = scope.copy()  # uvicorn's own goes on saying what was asked: it sends no body to a HEAD by it
        if path.startswith("/api/v1/"):
            scope["path"] = path[4:]
            scope["raw_path"] = scope["raw_path"][4:]
        given = wants = host = length = None
        chunked = False
        for name, value in scope["headers"]:
            if name == b"host":
                host = host or value  # of several the first, as the framework reads them
            elif name == b"content-length":
                length = length or value
            elif name == b"accept":
                wants = value
            elif name == b"x-request-id":
                given = value
            elif name == b"transfer-encoding":
                chunked = True
        ident = request_id(given, self.parts.clock)
        scope.setdefault("state", {})["request_id"] = ident
        stamp = [(b"x-request-id", ident.encode()), (b"x-api-version", VERSION), *SECURITY_HEADERS]
        out: Send = _Stamped(send, stamp)
        if scope["method"] == HttpMethod.HEAD:
            scope["method"] = HttpMethod.GET
            out = _Headless(out)
        if wants is not None and ENVELOPE in wants:
            out = _Enveloped(out, ident, rfc3339(self.parts.clock.now_ms()))
        call = self.calls.find(scope, host)
        if call is None:
            await self.litestar(scope, receive, out)
            return
        answer = await self.calls.answer(call, scope, receive, out, length=length, chunked=chunked)
        if answer is not None:
            status, headers, body = answer
            await out({"type": "http.response.start", "status": status, "headers": headers})
            await out({"type": "http.response.body", "body": body, "more_body": False})


class _Stamped:
    """Adds the headers that every answer has."""

    __slots__ = ("_send", "_stamp")

    def __init__(self, send: Send, stamp: list[tuple[bytes, bytes]]) -> None:
        self._send, self._stamp = send, stamp

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            said = {name for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(pair for pair in self._stamp if pair[0] not in said)]
        await self._send(message)


class _Headless:
    """The answer to GET without its body: HEAD (RFC 9110 section 9.3.2)."""

    __slots__ = ("_send",)

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            message["body"] = b""
        await self._send(message)


class _Enveloped:
    """Holds a JSON answer back until it is whole, then wraps it; anything else passes through."""

    __slots__ = ("_at", "_body", "_request_id", "_send", "_start")

    def __init__(self, send: Send, request_id: str, at: str) -> None:
        self._send, self._request_id, self._at = send, request_id, at
        self._start: Any = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = next((value for name, value in message["headers"] if name.lower() == b"content-type"), b"")
            if kind.startswith((b"application/json", b"application/problem+json")):
                self._start = message
                return
        elif message["type"] == "http.response.body" and self._start is not None:
            self._body += message["body"]
            if message.get("more_body"):
                return
            wrapped = envelope(self._body, self._start["status"], self._request_id, self._at)
            kept = [pair for pair in self._start["headers"] if pair[0].lower() not in (b"content-type", b"content-length")]
            self._start["headers"] = [*kept, (b"content-type", ENVELOPE), (b"content-length", str(len(wrapped)).encode())]
            await self._send(self._start)
            message["body"] = wrapped
        await self._send(message)


def envelope(body: bytes, status: int, request_id: str, at: str) -> bytes:
    """`{"success", "data"|"error", "pagination", "meta"}` around a JSON body; the items of a list become `data`, its cursor `pagination`."""
    meta = {"timestamp": at, "requestId": request_id}
    if status >= 400:
        return msgspec.json.encode({"success": False, "error": msgspec.Raw(body or b"null"), "pagination": None, "meta": meta})
    data, pagination = msgspec.Raw(body or b"null"), None
    if body.startswith(b"{"):
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        if fields.keys() == {"items", "nextCursor"}:
            data, pagination = fields["items"], {"nextCursor": fields["nextCursor"]}
    return msgspec.json.encode({"success": True, "data": data, "pagination": pagination, "meta": meta})
