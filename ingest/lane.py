"""The lane: device requests that arrive whole are answered inside the HTTP parser's callbacks, without a task or an ASGI message each.

A fix of a phone is one small segment, head and body together: nearly every device request. Whatever else there may be (a body in pieces,
Expect: 100-continue, a signature, pipelined requests, a peer that does not read) goes to the ASGI application behind, byte for byte as if the
lane were not there; so limits on size and time stand there alone. Both answer through the same `DevicePaths`. docs/decisions/0030-device-lane.md
has what it saves.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ingest.http import Answer, DevicePaths, Request, Started

METHODS: Final = (b"POST", b"PUT", b"GET")
NOT_HERE: Final = (b"x-signature", b"transfer-encoding")  # signed: Redis is asked; chunked: the length is not known beforehand


class _Nobody:
    """Nobody waits for messages of a request in the lane."""

    __slots__ = ()

    def set(self) -> None: ...


class DeviceCycle:
    """One request in the lane. The first five names are what uvicorn's protocol looks at in whatever request is under way."""

    __slots__ = ("body", "disconnected", "keep_alive", "message_event", "method", "paths", "protocol", "response_complete", "started")

    def __init__(self, protocol: DeviceLane, paths: DevicePaths, method: bytes, keep_alive: bool) -> None:
        self.body = bytearray()
        self.disconnected = self.response_complete = False
        self.keep_alive = keep_alive
        self.message_event = NOBODY
        self.protocol, self.paths, self.method = protocol, paths, method
        self.started: Started | None = None

    def begin(self) -> None:
        """The body is there."""
        protocol, paths = self.protocol, self.paths
        path, _, query = protocol.url.partition(b"?")
        said: Request | Started | Answer = paths.open(self.method.decode("ascii"), path.decode("latin-1"), dict(protocol.headers), query)
        if isinstance(said, Request):
            said = paths.start(said, bytes(self.body))
        if isinstance(said, Answer):
            self.answer(said)
        else:
            self.started = said
            said.appended.add_done_callback(self.appended)

    def appended(self, future: asyncio.Future[Any]) -> None:
        assert self.started is not None
        self.answer(self.paths.finish(self.started))

    def answer(self, said: Answer) -> None:
        """Writes it in one piece; nothing where the device hung up."""
        self.response_complete = True
        self.body, self.started = bytearray(), None  # a kept connection keeps its last request, but not what was in it
        protocol = self.protocol
        if self.disconnected or protocol.transport.is_closing():
            return
        content = [STATUS_LINE[said.status]]
        for name, value in protocol.server_state.default_headers:
            content += (name, b": ", value, b"\r\n")
        for name, value in said.headers:
            if name != b"date":  # uvicorn's is there already
                content += (name, b": ", value, b"\r\n")
        content.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        content.append(said.body)
        protocol.transport.write(b"".join(content))
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()


NOBODY: Final = _Nobody()


class DeviceLane(HttpToolsProtocol):
    """uvicorn's HTTP protocol with the lane in it. Subclassed to know its `device_paths`; None: it has no lane."""

    device_paths: DevicePaths | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.arriving: DeviceCycle | None = None  # its head is there, its body not yet

    def data_received(self, data: bytes) -> None:
        self._parse(data)
        if self.arriving is not None:
            body, self.arriving = self.arriving.body, None
            if not self.transport.is_closing():
                self._hand_over(body)

    def _parse(self, data: bytes) -> None:
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

    def _hand_over(self, body: bytearray) -> None:
        """The body comes in pieces: from here on the request is the application's."""
        self.cycle = None  # type: ignore[assignment]
        super().on_headers_complete()
        if body:
            super().on_body(bytes(body))
