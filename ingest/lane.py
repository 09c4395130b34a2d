"""The lane: device requests that arrive whole are answered inside the HTTP parser's callbacks, without a task or an ASGI message each.

A fix of a phone is one small segment, head and body together: nearly every device request. Whatever else there may be (a body in pieces,
Expect: 100-continue, a signature, pipelined requests, a peer that does not read) goes to the ASGI application behind, byte for byte as if the
lane were not there; so limits on size and time stand there alone. Both answer through the same `DevicePaths`. docs/decisions/0030-device-lane.md
has what it saves.

A device says the same head with every fix, but for its Content-Length. So a worker remembers the heads that the parser has read and that were
taken here; a segment that begins with one of them, byte for byte, and ends where its Content-Length says is that request again, and the parser
need not see it, whichever connection it comes on: a proxy sends many devices' requests over few. Nothing is judged anew but what can change: the
credentials (`DevicePaths.good`), size and rate. docs/decisions/0060-gate-and-lane.md.
"""

from __future__ import annotations

import asyncio
from typing import Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ingest.http import NOTHING, Answer, Asked, DevicePaths, Request

METHODS: Final = (b"POST", b"PUT", b"GET")
NOT_HERE: Final = (b"x-signature", b"transfer-encoding")  # signed: Redis is asked; chunked: the length is not known beforehand


class _Nobody:
    """Nobody waits for messages of a request in the lane."""

    __slots__ = ()

    def set(self) -> None: ...


NOBODY: Final = _Nobody()


class Arriving:
    """The head of a request in the lane, and so much of its body as has come."""

    __slots__ = ("body", "keep_alive", "method")

    def __init__(self, method: bytes, keep_alive: bool) -> None:
        self.method, self.keep_alive, self.body = method, keep_alive, b""


class DeviceCycle(Asked):
    """A request in the lane that waits for its append. uvicorn's protocol looks at the first three names, and at `message_event`, in whatever
    request is under way.
    """

    __slots__ = ("disconnected", "keep_alive", "protocol", "response_complete")

    message_event = NOBODY

    def __init__(self, protocol: DeviceLane, paths: DevicePaths, request: Request, keep_alive: bool) -> None:
        self.paths, self.request, self.decoded = paths, request, NOTHING
        self.protocol, self.keep_alive = protocol, keep_alive
        self.disconnected = self.response_complete = False

    def answer(self, said: Answer) -> None:
        self.response_complete = True
        self.decoded = NOTHING  # a kept connection keeps its last request, but not what was in it
        self.protocol.respond(said, self.keep_alive)


class DeviceLane(HttpToolsProtocol):
    """uvicorn's HTTP protocol with the lane in it. Subclassed to know its `device_paths`; None: it has no lane."""

    __slots__ = ("arriving", "begun", "between", "cycle", "flow", "opened", "server_state", "transport")  # what every request touches

    device_paths: DevicePaths | None = None
    stamped: tuple[object, bytes] = (None, b"")  # of all connections: uvicorn's headers, which it makes anew each second, and their lines

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.arriving: Arriving | None = None  # its head is there, its body not yet
        self.opened: DeviceCycle | None = None  # of the bytes that are being read: a request that was let in
        self.between = True  # no request is half read
        self.begun = 0  # requests of the bytes that are being read

    def data_received(self, data: bytes) -> None:
        if self.between and self._known_again(data):
            return
        alone, self.begun, self.opened = self.between, 0, None
        self.parse(data)
        if self.arriving is not None:
            body, self.arriving = self.arriving.body, None
            if not self.transport.is_closing():
                self._hand_over(body)
        elif self.opened is not None:
            opened, self.opened = self.opened, None
            if alone and self.begun == 1 and self.between and opened.keep_alive:
                opened.paths.heads.keep(data, opened.request)

    def _known_again(self, data: bytes) -> bool:
        """Takes the segment where it is a request that was taken before with another body, and nothing is under way."""
        cycle, paths = self.cycle, self.device_paths
        if paths is None or (cycle is not None and not cycle.response_complete):
            return False
        found = paths.heads.find(data, paths.settings.ingest_body_max_bytes)
        if found is None or self.flow.write_paused or self.transport.is_closing():
            return False
        request, body = found
        if not paths.good(request):
            paths.heads.drop(data)
            return False
        self.taken_whole()
        self._take(paths, request, body, True)
        return True

    def _take(self, paths: DevicePaths, request: Request, body: bytes, keep_alive: bool) -> DeviceCycle:
        self.cycle = cycle = DeviceCycle(self, paths, request, keep_alive)  # type: ignore[assignment]  # it has what uvicorn looks at
        paths.start(cycle, body)
        return cycle

    def respond(self, said: Answer, keep_alive: bool) -> None:
        """Writes it in one piece; nothing where the device hung up."""
        transport = self.transport
        if transport.is_closing():
            return
        end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
        transport.write(b"".join((STATUS_LINE[said.status], self.stamp(), said.lines, end, said.body)))
        if not keep_alive:
            transport.close()
        self.on_response_complete()

    def taken_whole(self) -> None:
        """A request has come past the parser: nothing is half read."""
        self._unset_keepalive_if_required()

    def stamp(self) -> bytes:
        """The header lines that every answer of this server has: Date."""
        headers, kept = self.server_state.default_headers, DeviceLane.stamped
        if kept[0] is not headers:
            kept = DeviceLane.stamped = headers, b"".join([b"%s: %s\r\n" % pair for pair in headers])
        return kept[1]

    def parse(self, data: bytes) -> None:
        """As uvicorn's, but what came behind an upgrade is not dropped."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.upgrade_to_socket(data[upgrade.args[0] :])
            else:
                self._unsupported_upgrade_warning()
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")

    def upgrade_to_socket(self, rest: bytes) -> None:
        """An upgrade whose head is parsed; `rest` came behind it."""
        raise NotImplementedError

    def on_message_begin(self) -> None:
        self.between = False
        self.begun += 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self.device_paths is not None and self.url.startswith(b"/ingest/"):
            self.arriving = self._admitted()
        if self.arriving is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.arriving is None:
            super().on_body(body)
        else:
            self.arriving.body += body

    def on_message_complete(self) -> None:
        self.between = True
        arriving, paths = self.arriving, self.device_paths
        if arriving is None or paths is None:
            super().on_message_complete()
            return
        self.arriving = None
        path, _, query = self.url.partition(b"?")
        said = paths.open(arriving.method.decode("ascii"), path.decode("latin-1"), dict(self.headers), query)
        if isinstance(said, Answer):
            self.respond(said, arriving.keep_alive)
        else:
            self.opened = self._take(paths, said, arriving.body, arriving.keep_alive)

    def _admitted(self) -> Arriving | None:
        """The request, where the lane takes it: nothing else is under way, and it may be answered at once."""
        method = self.parser.get_method()
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or self.flow.write_paused or self.expect_100_continue or method not in METHODS or self.parser.should_upgrade():
            return None
        if any(name in NOT_HERE for name, _ in self.headers):
            return None
        return Arriving(method, self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive())

    def _hand_over(self, body: bytes) -> None:
        """The body comes in pieces: from here on the request is the application's."""
        super().on_headers_complete()
        if body:
            super().on_body(body)
