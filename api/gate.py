"""The gate: every connection of a worker begins here, on one port. It looks at the first bytes and gives the connection away.

An ordinary upgrade that has come whole goes to our sockets at once: no HTTP protocol is made for it, no parser, no scope. Everything else is
replayed into the HTTP protocol (api/server.py) as if nothing had looked at it, which also hands over upgrades that come later on a kept
connection, as they do behind a proxy, or in pieces. A connection that says nothing is held to the limit of a head.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from api.handshake import plain_upgrade
from api.live import Sockets
from api.share import Share

DOORS: Final = (b"GET /ws", b"GET /ingest/ws")
UPGRADE_MAX: Final = 8_192  # bytes; browsers send about 500. A longer head is for the HTTP protocol and its limit
SILENT: Final = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Gate(asyncio.Protocol):
    """A connection until its first bytes. Subclassed per worker, to know its sockets and what makes its HTTP protocols."""

    __slots__ = ("began_s", "loop", "make_http", "server_state", "transport")

    sockets: Sockets
    http: Callable[..., asyncio.Protocol]
    share: Share | None = None  # of several workers on one socket

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None) -> None:
        """As uvicorn makes its protocols."""
        self.loop = _loop or asyncio.get_running_loop()
        self.server_state = server_state
        self.make_http = config, app_state

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        if self.share is not None and self.share.pass_on(transport):
            return
        self.began_s = self.loop.time()
        self.server_state.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        transport, connections = self.transport, self.server_state.connections
        connections.discard(self)
        if data.startswith(DOORS) and len(data) <= UPGRADE_MAX:
            asked = plain_upgrade(data)
            if asked is not None:
                self.sockets.upgrade(transport, connections, *asked)
                return
        config, app_state = self.make_http
        http = type(self).http(config, self.server_state, app_state, self.loop)
        http.connection_made(transport)
        transport.set_protocol(http)
        http.data_received(data)

    def eof_received(self) -> None:
        """It has said nothing and will not; the transport closes itself."""

    def late(self, now_s: float, limit_s: float) -> bool:
        """Whether nothing came in time: answers 408 and cuts."""
        if now_s - self.began_s < limit_s:
            return False
        self.transport.write(SILENT)
        self.transport.close()
        return True

    def shutdown(self) -> None:
        """uvicorn's last word."""
        self.transport.close()
