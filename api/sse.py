"""GET /sse?channel=NAME (repeatable): the live stream for those who cannot open sockets, as server-sent events (WHATWG HTML, section 9.2).

The same hub and promises as the sockets. An event has no name, its data is the push as JSON; with one channel its id is `epoch:offset`, and
`Last-Event-ID` resumes from there. A token comes in Authorization (a guest's in X-Hold-Token), never in the URL, and a stream of private
channels ends with it. The stream has a mailbox of one buffer: past `socket_buffer_max_bytes` unsent the hub keeps only the newest
(engine/live/listener.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from litestar import Request, asgi
from litestar.exceptions import MethodNotAllowedException
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from api.problems import NOT_AUTHENTICATED, RESTARTING
from engine.errors import EngineError, Invalid, TooMany
from engine.live.frames import JSON, Wire
from engine.live.hub import OFFSETS, Hub, Since
from engine.live.listener import Listener

CHANNELS_MAX: Final = 20  # of one stream: they all stand in the URL
STREAMS_MAX: Final = 2_000  # of one worker: each costs a task and about 12 KB more than a socket
HEARTBEAT_S: Final = 20.0  # a comment, so that proxies keep the stream
HEADERS: Final = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]


def event(payload: bytes, last: str) -> bytes:
    """One event; `last` becomes its id where it is not empty. JSON of ours has no line break in it."""
    head = b"id: " + last.encode() + b"\n" if last else b""
    return head + b"data: " + payload + b"\n\n"


def bare_event(payload: bytes, last: str) -> bytes:
    """Of a stream of several channels: one id could not say where each stands."""
    return b"data: " + payload + b"\n\n"


ONE: Final = Wire("sse-one", JSON, event)
MANY: Final = Wire("sse-many", JSON, bare_event)


class Stream(Listener):
    """One event stream: what the hub writes waits in `buffer` until the server has taken it."""

    __slots__ = ("buffer", "closed", "hub", "limit", "ready", "size")

    def __init__(self, hub: Hub, wire: Wire, limit: int) -> None:
        super().__init__(wire)
        self.hub, self.limit = hub, limit
        self.buffer: list[bytes] = []
        self.size = 0
        self.closed = False
        self.ready = asyncio.Event()

    def write(self, frame: bytes) -> None:
        self.buffer.append(frame)
        self.size += len(frame)
        self.ready.set()
        if self.size > self.limit:
            self.hub.stall(self)

    def take(self) -> bytes:
        taken = b"".join(self.buffer)
        self.buffer.clear()
        self.size = 0
        self.ready.clear()
        return taken

    def subscribed(self, ident: Any, channel: str, epoch: str, offset: int, recovered: bool) -> None:
        """The first event says it: a snapshot, or what was missed."""

    def refused(self, ident: Any, fault: EngineError) -> None:
        self.write(b"event: error\ndata: " + msgspec.json.encode({"code": fault.code, "detail": fault.detail}) + b"\n\n")
        self.closed = True

    def close(self, code: int, reason: str) -> None:
        self.closed = True
        self.ready.set()


class Streams:
    """All event streams of one worker. `handler` is one of the `roots` of `api.app.make_app`."""

    def __init__(
        self, hub: Hub, buffer_max_bytes: int, principal_of: Callable[[str], Any], guest_of: Callable[[str], Any] | None = None
    ) -> None:
        self.hub, self.buffer_max_bytes, self.principal_of, self.guest_of = hub, buffer_max_bytes, principal_of, guest_of
        self.open: set[Stream] = set()
        self.handler: ASGIRouteHandler = asgi("/sse", copy_scope=False)(self._answer)

    def close_all(self) -> None:
        """The drain: every stream ends, and its client comes back after the `retry` it was given."""
        for stream in self.open:
            stream.close(RESTARTING, "restarting")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The live stream as server-sent events."""
        request: Request[Any, Any, Any] = Request(scope)
        if request.method != "GET":
            raise MethodNotAllowedException(headers={"Allow": "GET"})
        names = parse_qs(scope["query_string"].decode("latin-1")).get("channel", [])
        if not 1 <= len(names) <= CHANNELS_MAX:
            raise Invalid(f"/sse needs channel=NAME, at most {CHANNELS_MAX} of them")
        if len(self.open) >= STREAMS_MAX:
            raise TooMany("this worker has all the event streams it takes", retry_after_s=5)
        stream = Stream(self.hub, ONE if len(names) == 1 else MANY, self.buffer_max_bytes)
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            stream.principal = self.principal_of(token.strip())
        elif self.guest_of is not None and "x-hold-token" in request.headers:
            stream.principal = self.guest_of(request.headers["x-hold-token"])
        since = since_of(request.headers.get("last-event-id", "")) if len(names) == 1 else None
        self.open.add(stream)
        ends = None
        if stream.principal is not None and not all(self.hub.may_listen(None, name) for name in names):
            left_s = (stream.principal.expires_at_ms - self.hub.clock.now_ms()) / 1000
            ends = asyncio.get_running_loop().call_later(max(0.0, left_s), stream.close, NOT_AUTHENTICATED, "the access token is over")
        try:
            for name in names:
                inner = f"{name}:{stream.principal.subject}" if name == "notifications" and stream.principal is not None else name
                self.hub.subscribe(stream, name, since, name=inner)
            await _pump(stream, receive, send)
        finally:
            if ends is not None:
                ends.cancel()
            self.open.discard(stream)
            self.hub.leave(stream)


def since_of(last_event_id: str) -> Since | None:
    """`epoch:offset`; None for anything else."""
    epoch, _, offset = last_event_id.rpartition(":")
    if not (epoch and offset.isascii() and offset.isdigit() and len(offset) <= 20 and int(offset) in OFFSETS):
        return None
    return Since(epoch, int(offset))


async def _pump(stream: Stream, receive: Receive, send: Send) -> None:
    """Sends what gathers until the client, the hub or a drain ends it. `send` waits while the transport's buffer is full."""
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": b"retry: 2000\n\n", "more_body": True})
    left = asyncio.create_task(_gone(receive))
    left.add_done_callback(lambda _: stream.close(0, "gone"))
    try:
        while True:
            try:
                await asyncio.wait_for(stream.ready.wait(), HEARTBEAT_S)
                body = stream.take()
            except TimeoutError:
                body = b": still here\n\n"
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
            if stream.closed:
                break
            stream.hub.resume(stream)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        left.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
