"""The device paths under /ingest: bytes in, an answer out, as docs/devices.md has them.

Promises: a phone protocol is answered 2xx for any body once its credentials hold, so that no phone sends one poison fix for ever; only
/ingest/telemetry says 400 MALFORMED_BODY, and only to a body that does not parse at all. 401 carries `Date` and `serverTimeMs`. Refuses:
bodies over 1 MiB (by Content-Length before a byte is read), more than 10,000 fixes, bodies that take longer than 10 s to arrive, and gzip
that inflates past 4 MiB.

`DevicePaths` is plain callables: `open` judges what stands before the body, `close` answers once it is there, `answer` is both. `DeviceApp` is
the ASGI shell around it; a protocol of our own can stand there in its place.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import math
import re
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
from msgspec.structs import replace

from engine.errors import BodyTimeout, EngineError, Invalid, MalformedBody, NotFound, TooLarge, Unauthenticated, Unavailable
from engine.meter import Meter
from engine.office.accounts import NEVER_MS, Device
from ingest.door import Door
from ingest.heads import Heads
from ingest.wire import Decoded, Refused, WireError, telemetry
from ingest.wire_phones import osmand, overland, owntracks, traccar

log = logging.getLogger(__name__)

DISCARD_MAX_BYTES = 33_554_432  # of a body that is refused for its size
JSON = b"application/json"
HEAD = b"content-type: %s\r\ncontent-length: %d\r\nx-request-id: %s\r\nx-api-version: 1\r\n"
PROBLEM = b"application/problem+json"
REQUEST_ID = re.compile(rb"^[A-Za-z0-9._-]{8,64}$")  # of the caller: fit for a log line
_encode = msgspec.json.Encoder().encode
_TEXT = {200: "200", 202: "202"}  # as a label
NOTHING = Decoded([], [])


class MethodNotAllowed(Invalid):
    code, status = "METHOD_NOT_ALLOWED", 405


class Answer(msgspec.Struct, frozen=True, gc=False):
    """`lines`: its header lines, each with its end; without Date, which is the server's."""

    status: int
    lines: bytes
    body: bytes


class Route(NamedTuple):
    """One device path. `phone`: answers 2xx to any body. `said`: the answer to so many accepted and those refused."""

    name: str
    methods: tuple[str, ...]
    decode: Callable[[Request, bytes, Device, int], Decoded]
    said: Callable[[int, list[Refused]], bytes]
    status: int
    phone: bool


class Request(msgspec.Struct, gc=False):
    """A request up to its body, as `open` and `close` have judged it: the head of any number of requests that say it again."""

    route: Route
    method: str
    path: str
    headers: Mapping[bytes, bytes]
    query: bytes
    rest: str | None = None  # the part of the path that the route leaves open
    device: Device | None = None  # None: it is signed, and known once the body is there
    user: str | None = None  # the name of Basic credentials
    content_type: str = ""
    version: int = 0  # of the registry that its device is from


def _quarantined(accepted: int, refused: list[Refused]) -> bytes:
    if not refused:
        return b'{"accepted":%d,"quarantined":[]}' % accepted
    return _encode({"accepted": accepted, "quarantined": [{"index": r.index, "reason": r.reason} for r in refused]})


def _telemetry(request: Request, body: bytes, device: Device, now_ms: int) -> Decoded:
    return telemetry(body, request.content_type, device, "telemetry", now_ms)


def _bus_location(request: Request, body: bytes, device: Device, now_ms: int) -> Decoded:
    return telemetry(body, request.content_type, device, "telemetry", now_ms, only_bus=request.rest)


def _osmand(request: Request, body: bytes, device: Device, now_ms: int) -> Decoded:
    return osmand(request.query, body, request.content_type, device, now_ms, request.user)


def _owntracks(request: Request, body: bytes, device: Device, now_ms: int) -> Decoded:
    """With Basic credentials their user is the bus; with others, X-Limit-U where it names one (the app sends it with every message)."""
    user = request.user
    if not user:
        named = request.headers.get(b"x-limit-u", b"").decode("utf-8", "replace")
        user = named if named in device.buses else None
    return owntracks(body, device, now_ms, user)


def _overland(request: Request, body: bytes, device: Device, now_ms: int) -> Decoded:
    return overland(body, device, now_ms, request.user)


def _traccar(request: Request, body: bytes, device: Device, now_ms: int) -> Decoded:
    return traccar(body, device, now_ms, request.user)


def _fixed(body: bytes) -> Callable[[int, list[Refused]], bytes]:
    return lambda accepted, refused: body


ROUTES: dict[str, Route] = {
    "telemetry": Route("telemetry", ("POST",), _telemetry, _quarantined, 202, phone=False),
    "buses": Route("telemetry", ("PUT",), _bus_location, _quarantined, 202, phone=True),
    "osmand": Route("osmand", ("GET", "POST"), _osmand, _fixed(b""), 200, phone=True),
    "owntracks": Route("owntracks", ("POST",), _owntracks, _fixed(b"[]"), 200, phone=True),
    "overland": Route("overland", ("POST",), _overland, _fixed(b'{"result":"ok"}'), 200, phone=True),
    "traccar": Route("traccar", ("POST",), _traccar, _fixed(b"{}"), 200, phone=True),
}


class DevicePaths:
    """Plain callables over a `Door`. `headers` have lower-case names; `path` is the whole path, /ingest/...; `query` is without its "?"."""

    def __init__(self, door: Door, meter: Meter | None = None) -> None:
        self.door, self.settings, self.clock = door, door.settings, door.clock
        meter = meter or door.meter
        self._answers = meter.counter("timepoint_ingest_answers_total", "answers to devices, by status", ("status",))
        self._exact: dict[str, tuple[Route, str | None]] = {
            f"/ingest/{name}": (route, None) for name, route in ROUTES.items() if name != "buses"
        }
        self.heads = Heads()
        self._prefix, self._count = self.clock.uuid7().encode(), 0

    # --- the request as a whole ---

    async def answer(self, method: str, path: str, headers: Mapping[bytes, bytes], query: bytes, body: bytes) -> Answer:
        """The whole of it. Never raises."""
        opened = self.open(method, path, headers, query)
        return opened if isinstance(opened, Answer) else await self.close(opened, body)

    def open(self, method: str, path: str, headers: Mapping[bytes, bytes], query: bytes) -> Request | Answer:
        """All that can be judged before the body is read: path, method, length, token. An `Answer` is a refusal."""
        try:
            route, rest = self._route(method, path)
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length[:20]) > self.settings.ingest_body_max_bytes:
                raise self.too_large()
            request = Request(route, method, path, headers, query, rest)
            request.content_type = headers.get(b"content-type", b"").decode("latin-1").lower()
            request.version = self.door.devices.version
            if b"x-signature" not in headers:
                request.device, request.user = self._sender(request)
        except EngineError as fault:
            return self.problem(fault, path, headers)
        return request

    async def close(self, request: Request, body: bytes) -> Answer:
        """The answer, once the body is there. Never raises."""
        try:
            if request.device is None:
                request.device = await self._signed(request.method, request.path, request.headers, request.query, body)
        except EngineError as fault:
            return self.problem(fault, request.path, request.headers)
        waiting = _Awaited(self, request)
        self.start(waiting, body)
        return await waiting.answered

    def good(self, known: Request) -> bool:
        """Whether a request with that head, byte for byte, may be taken as it was; else its credentials have to be looked at again."""
        device = known.device
        return known.version == self.door.devices.version and device is not None and device.until_ms == NEVER_MS

    def start(self, asked: Asked, body: bytes) -> None:
        """A request whose device is known: it is answered at once, or once its fixes are appended. Never raises."""
        request = asked.request
        device = request.device
        assert device is not None
        try:
            decoded = asked.decoded = self._decoded(request, body, device)
            if self.door.begin(device, decoded.fixes, decoded.refused, asked, source=request.route.name):
                return
        except EngineError as fault:
            asked.answer(self.problem(fault, request.path, request.headers))
        except Exception as fault:
            asked.answer(self._unexpected(request, fault))
        else:
            asked.answer(self.done(request, decoded))

    def done(self, request: Request, decoded: Decoded) -> Answer:
        """All of it is appended."""
        route = request.route
        said = route.said(len(decoded.fixes), decoded.refused)
        self._answers.add(1, _TEXT[route.status])
        return Answer(route.status, HEAD % (JSON, len(said), self.request_id(request.headers)), said)

    def _unexpected(self, request: Request, fault: Exception) -> Answer:
        """Ours: the device comes back later, and the log has the trace."""
        log.error("%s /ingest/%s", request.method, request.route.name, exc_info=fault)  # not its path: a token may stand in it
        return self.problem(EngineError(f"unexpected: {type(fault).__name__}"), request.path, request.headers)

    def too_large(self) -> TooLarge:
        return TooLarge(f"a body may have at most {self.settings.ingest_body_max_bytes} bytes; send several requests")

    def _route(self, method: str, path: str) -> tuple[Route, str | None]:
        found = self._exact.get(path) or self._parsed(path)
        if method not in found[0].methods:
            raise MethodNotAllowed(f"{path} takes {', '.join(found[0].methods)}", allow=", ".join(found[0].methods))
        return found

    def _parsed(self, path: str) -> tuple[Route, str | None]:
        """Paths with an open part: /ingest/buses/{busId}/location and /ingest/{phone protocol}/{token}."""
        parts = path.rstrip("/").split("/")
        if parts[:2] == ["", "ingest"]:
            if len(parts) == 5 and parts[2] == "buses" and parts[4] == "location":
                return ROUTES["buses"], unquote(parts[3])
            if len(parts) in (3, 4) and parts[2] in ROUTES and parts[2] != "buses":
                route = ROUTES[parts[2]]
                if len(parts) == 3 or route.phone:
                    return route, unquote(parts[3]) if len(parts) == 4 else None
        raise NotFound(f"there is no device path {path[:100]}")

    # --- who ---

    def token_holder(self, headers: Mapping[bytes, bytes], query: bytes) -> Device:
        """Who opens a socket with a token in Authorization or in the query. Raises `Unauthenticated`."""
        found = self._token_device(headers, query)
        if found is None:
            raise self._nobody()
        return found[0]

    async def signer(self, path: str, headers: Mapping[bytes, bytes], query: bytes) -> Device:
        """Who opens a socket there with X-Signature: the upgrade is signed as a GET without a body. Raises `Unauthenticated`, `Unavailable`."""
        return await self._signed("GET", path, headers, query, b"")

    async def _signed(self, method: str, path: str, headers: Mapping[bytes, bytes], query: bytes, body: bytes) -> Device:
        target = f"{path}?{query.decode('latin-1')}" if query else path  # what a query says is signed too
        return await self.door.by_signature(method, target, headers, body)

    def _token_device(self, headers: Mapping[bytes, bytes], query: bytes) -> tuple[Device, str | None] | None:
        """(device, user of Basic credentials) by Authorization, else by `token` in the query; None: neither is there. Raises `Unauthenticated`."""
        given = headers.get(b"authorization")
        if given is not None:
            token, user = _credentials(given)
            return self.door.by_token(token), user
        if b"token=" in query:
            for part in query.split(b"&"):
                if part.startswith(b"token="):
                    return self.door.by_token(unquote(part[6:].decode("latin-1"))), None
        return None

    def _sender(self, request: Request) -> tuple[Device, str | None]:
        """By Authorization, else by `token` in the query, else by the open part of the path. Raises `Unauthenticated`."""
        found = self._token_device(request.headers, request.query)
        if found is not None:
            return found
        if request.rest is not None and request.route is not ROUTES["buses"]:
            return self.door.by_token(request.rest), None
        raise self._nobody()

    def _nobody(self) -> Unauthenticated:
        return self.door.stranger("NO_CREDENTIALS", "send a device token (Authorization: Bearer, Basic password, or token=) or X-Signature")

    # --- what ---

    def _decoded(self, request: Request, body: bytes, device: Device) -> Decoded:
        """Raises `MalformedBody` where the route says so, `TooLarge`. A phone's unreadable body is one refused element."""
        try:
            encoding = request.headers.get(b"content-encoding")
            if encoding:
                body = self._inflated(encoding.strip().lower(), body)
            decoded = request.route.decode(request, body, device, self.clock.now_ms())
        except WireError as fault:
            if not request.route.phone:
                raise MalformedBody(fault.detail) from fault
            return Decoded([], [Refused(0, "MALFORMED", fault.detail)])
        except EngineError:
            raise
        except Exception:  # a decoder's fault is ours, but a phone would send what woke it for ever
            if not request.route.phone:
                raise
            log.exception("%s /ingest/%s", request.method, request.route.name)  # not its path: a token may stand in it
            return Decoded([], [Refused(0, "MALFORMED", "it could not be read; the fault is ours")])
        if decoded.count > self.settings.ingest_fixes_max:
            raise TooLarge(f"{decoded.count} fixes; a request may have at most {self.settings.ingest_fixes_max}")
        return decoded

    def _inflated(self, encoding: bytes, body: bytes) -> bytes:
        """Raises `WireError`, and `TooLarge` for what would inflate past the limit; no more than the limit is ever inflated."""
        if encoding == b"identity":
            return body
        if encoding not in (b"gzip", b"x-gzip"):
            raise WireError(f"Content-Encoding {encoding[:40]!r}: only gzip is understood")
        most = self.settings.ingest_inflated_max_bytes
        inflate = zlib.decompressobj(wbits=31)
        try:
            plain = inflate.decompress(body, most)
        except zlib.error as fault:
            raise WireError(f"not gzip: {fault}") from fault
        if inflate.unconsumed_tail:
            raise TooLarge(f"a body may inflate to at most {most} bytes")
        if not inflate.eof or inflate.unused_data:
            raise WireError("gzip: cut short, or followed by something else")
        return plain

    # --- answers ---

    def request_id(self, headers: Mapping[bytes, bytes]) -> bytes:
        """The caller's own where it is fit for a log line, else one that counts up from a UUIDv7 of this worker."""
        given = headers.get(b"x-request-id", b"")
        if given and REQUEST_ID.match(given):
            return given
        self._count += 1
        return b"%s-%x" % (self._prefix, self._count)

    def problem(self, fault: EngineError, path: str, headers: Mapping[bytes, bytes]) -> Answer:
        """RFC 9457, as every error of the product. 401 and 403 carry the server's time, so that a clock can be set (beside Date)."""
        self._answers.add(1, str(fault.status))
        request_id = self.request_id(headers)
        code = str(fault.facts.get("reason", fault.code))
        said: dict[str, Any] = {
            "type": "urn:timepoint:problem:" + code.lower().replace("_", "-"),
            "title": code.replace("_", " ").capitalize(),
            "status": fault.status,
            "detail": fault.detail,
            "instance": path[:200],
            "code": code,
            "requestId": request_id.decode("latin-1"),
            "retryable": fault.retryable,
            "errors": fault.errors,
        }
        more = b""
        if fault.status in (401, 403):
            said["serverTimeMs"] = self.clock.now_ms()
        if isinstance(fault, Unauthenticated):
            more += b'www-authenticate: Bearer realm="timepoint", Basic realm="timepoint"\r\n'
        if "allow" in fault.facts:
            more += b"allow: %s\r\n" % fault.facts["allow"].encode()
        if fault.status in (429, 503):
            wait_s = max(1, math.ceil(fault.retry_after_s or 1))
            more += b"retry-after: %d\r\n" % wait_s
            if "quota" in fault.facts:  # draft-ietf-httpapi-ratelimit-headers; the quota counts fixes
                more += b'ratelimit-policy: "fixes";q=%d;w=%d\r\n' % (fault.facts["quota"], math.ceil(fault.facts["window_s"]))
                more += b'ratelimit: "fixes";r=0;t=%d\r\n' % wait_s
        body = _encode(said)
        return Answer(fault.status, HEAD % (PROBLEM, len(body), request_id) + more, body)


class Asked:
    """A request that waits for its append. Subclassed to know how its answer is given; called by the door when it may be."""

    __slots__ = ("decoded", "paths", "request")

    def __init__(self, paths: DevicePaths, request: Request) -> None:
        self.paths, self.request = paths, request
        self.decoded = NOTHING

    def answer(self, said: Answer) -> None:
        """Called once."""
        raise NotImplementedError

    def __call__(self, fault: Unavailable | None) -> None:
        request = self.request
        if fault is None:
            self.answer(self.paths.done(request, self.decoded))
        else:
            self.answer(self.paths.problem(fault, request.path, request.headers))


class _Awaited(Asked):
    """For who awaits its answer."""

    __slots__ = ("answered",)

    def __init__(self, paths: DevicePaths, request: Request) -> None:
        super().__init__(paths, request)
        self.answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def answer(self, said: Answer) -> None:
        if not self.answered.done():  # its sender hung up
            self.answered.set_result(said)


def _credentials(given: bytes) -> tuple[bytes, str | None]:
    """(token, user) of an Authorization header: Bearer token, or Basic user:token. Empty token: neither."""
    scheme, _, value = given.partition(b" ")
    kind = scheme.lower()
    if kind == b"bearer":
        return value.strip(), None
    if kind == b"basic":
        try:
            user, _, token = base64.b64decode(value.strip(), validate=True).partition(b":")
        except binascii.Error:
            return b"", None
        return token, user.decode("utf-8", "replace")
    return b"", None


Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def _respond(send: Send, said: Answer) -> None:
    pairs = [line.partition(b": ") for line in said.lines.splitlines()]
    await send({"type": "http.response.start", "status": said.status, "headers": [(name, value) for name, _, value in pairs]})
    await send({"type": "http.response.body", "body": said.body})


class DeviceApp:
    """ASGI over `DevicePaths`, mounted at /ingest. Reads the body within its limits; everything else is decided there."""

    def __init__(self, paths: DevicePaths) -> None:
        self.paths, self.settings = paths, paths.settings

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"DeviceApp serves http, not {scope['type']}")
        path = scope["raw_path"].decode("latin-1") if scope.get("raw_path") else scope.get("root_path", "") + scope["path"]
        method, query = scope["method"], scope["query_string"]
        headers = dict(scope["headers"])
        said = self.paths.open(method, path, headers, query)
        if isinstance(said, Request):
            try:
                body = await self._body(receive)
            except EngineError as fault:
                said = self.paths.problem(fault, path, headers)
            else:
                if body is not None:
                    await _respond(send, await self.paths.close(said, body))
                return
        if said.status == 408 or (said.status == 413 and (b"expect" in headers or not await self._discarded(receive))):
            said = replace(said, lines=said.lines + b"connection: close\r\n")  # the rest of the body is still on its way
        await _respond(send, said)

    async def _discarded(self, receive: Receive) -> bool:
        """Read what is left of a refused body, keeping none of it: a client that writes it all before it reads would otherwise see a
        reset connection instead of the 413. False: it was too much, or too slow.
        """
        size = 0
        try:
            async with asyncio.timeout(self.settings.ingest_body_timeout_s):
                while size <= DISCARD_MAX_BYTES:
                    message = await receive()
                    size += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return True
        except TimeoutError:
            pass
        return False

    async def _body(self, receive: Receive) -> bytes | None:
        """Whole, or None where the device hung up. Raises `TooLarge`, `BodyTimeout`."""
        most = self.settings.ingest_body_max_bytes
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.settings.ingest_body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    if size > most:
                        raise self.paths.too_large()
                    if not message.get("more_body", False):
                        return part if not parts else b"".join((*parts, part))
                    parts.append(part)
        except TimeoutError as fault:
            raise BodyTimeout(f"the body must arrive within {self.settings.ingest_body_timeout_s:g} s") from fault
