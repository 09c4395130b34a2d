"""The lane: device requests that arrive whole are answered inside the HTTP parser's callbacks, without a task or an ASGI message each.

A fix of a phone is one small segment, head and body together: nearly every device request. Whatever else there may be (a body in pieces,
Expect: 100-continue, a signature, pipelined requests, a peer that does not read) goes to the ASGI application behind, byte for byte as if the
lane were not there; so limits on size and time stand there alone. Both answer through the same `DevicePaths`. docs/decisions/0030-device-lane.md
has what it saves.

A device says the same head with every fix, but for its Content-Length. So a worker remembers the heads that the parser has read and that were
taken here; a segment that begins with one of them, byte for byte, and ends where its Content-Length says is that request again, and the parser
need not see it, whichever connection it comes on: a proxy sends many devices' requests over few. Nothing is judged anew but what can change: the
credentials (`DevicePaths.again`), size and rate. docs/decisions/0060-gate-and-lane.md.
"""

from __future__ import annotations

import asyncio
from typing import Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ingest.http import Answer, DevicePaths, Request

METHODS: Final = (b"POST", b"PUT", b"GET")
NOT_HERE: Final = (b"x-signature", b"transfer-encoding")  # signed: Redis is asked; chunked: the length is not known beforehand


class _Nobody:
    """Nobody waits for messages of a request in the lane."""

    __slots__ = ()

    def set(self) -> None: ...


class DeviceCycle:
    """One request in the lane. The first five names are what uvicorn's protocol looks at in whatever request is under way."""

    __slots__ = ("body", "disconnected", "keep_alive", "message_event", "method", "opened", "paths", "protocol", "response_complete")

    def __init__(self, protocol: DeviceLane, paths: DevicePaths, method: bytes, keep_alive: bool) -> None:
        self.body = b""
        self.disconnected = self.response_complete = False
        self.keep_alive = keep_alive
        self.message_event = NOBODY
        self.protocol, self.paths, self.method = protocol, paths, method
        self.opened: Request | None = None

    def begin(self) -> None:
        """The body is there."""
        protocol, paths = self.protocol, self.paths
        path, _, query = protocol.url.partition(b"?")
        said = paths.open(self.method.decode("ascii"), path.decode("latin-1"), dict(protocol.headers), query)
        if isinstance(said, Answer):
            self.answer(said)
        else:
            self.opened = said
            self.take(said, self.body)

    def take(self, request: Request, body: bytes) -> None:
        said = self.paths.start(request, body, self.answer)
        if said is not None:
            self.answer(said)

    def answer(self, said: Answer) -> None:
        """Writes it in one piece; nothing where the device hung up."""
        self.response_complete = True
        self.body = b""  # a kept connection keeps its last request, but not what was in it
        protocol = self.protocol
        if self.disconnected or protocol.transport.is_closing():
            return
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        protocol.transport.write(b"".join((STATUS_LINE[said.status], protocol.stamp(), said.lines, end, said.body)))
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()


NOBODY: Final = _Nobody()


class DeviceLane(HttpToolsProtocol):
    """uvicorn's HTTP protocol with the lane in it. Subclassed to know its `device_paths`; None: it has no lane."""

    device_paths: DevicePaths | None = None
    stamped: tuple[object, bytes] = (None, b"")  # of all connections: uvicorn's headers, which it makes anew each second, and their lines

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.arriving: DeviceCycle | None = None  # its head is there, its body not yet
        self.between = True  # no request is half read
        self.begun = 0  # requests of the bytes that are being read

    def data_received(self, data: bytes) -> None:
        if self.between and self._known_again(data):
            return
        alone, self.begun = self.between, 0
        self.parse(data)
        if self.arriving is not None:
            body, self.arriving = self.arriving.body, None
            if not self.transport.is_closing():
                self._hand_over(body)
        elif alone and self.begun == 1 and self.between and isinstance(self.cycle, DeviceCycle):
            opened = self.cycle.opened
            if opened is not None and self.cycle.keep_alive:
                self.cycle.paths.heads.keep(data, opened)

    def _known_again(self, data: bytes) -> bool:
        """Takes the segment where it is a request that was taken before with another body, and nothing is under way."""
        cycle, paths = self.cycle, self.device_paths
        if paths is None or (cycle is not None and not cycle.response_complete):
            return False
        found = paths.heads.find(data, paths.settings.ingest_body_max_bytes)
        if found is None or self.flow.write_paused or self.transport.is_closing():
            return False
        known, body = found
        request = paths.again(known)
        if request is None:
            paths.heads.drop(data)
            return False
        self.taken_whole()
        again = DeviceCycle(self, paths, b"", True)
        self.cycle = again  # type: ignore[assignment]  # of uvicorn's own it has what is looked at
        again.take(request, body)
        return True

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
        cycle = self._admitted(self.device_paths) if self.device_paths is not None and self.url.startswith(b"/ingest/") else None
        if cycle is None:
            super().on_headers_complete()
        else:
            self.cycle = self.arriving = cycle  # type: ignore[assignment]  # of uvicorn's own it has what is looked at

    def on_body(self, body: bytes) -> None:
        if self.arriving is None:
            super().on_body(body)
        else:
            self.arriving.body += body

    def on_message_complete(self) -> None:
        self.between = True
        if self.arriving is None:
            super().on_message_complete()
        else:
            cycle, self.arriving = self.arriving, None
            cycle.begin()

    def _admitted(self, paths: DevicePaths) -> DeviceCycle | None:
        """The request, where the lane takes it: nothing else is under way, and it may be answered at once."""
        method = self.parser.get_method()
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or self.flow.write_paused or self.expect_100_continue or method not in METHODS or self.parser.should_upgrade():
            return None
        if any(name in NOT_HERE for name, _ in self.headers):
            return None
        return DeviceCycle(self, paths, method, self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive())

    def _hand_over(self, body: bytes) -> None:
        """The body comes in pieces: from here on the request is the application's."""
        self.cycle = None  # type: ignore[assignment]
        super().on_headers_complete()
        if body:
            super().on_body(body)
