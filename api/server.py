"""One worker's server: uvicorn on an inherited listening socket, with our socket protocol and the limits that nothing behind it would set.

Promises: no access log, httptools, uvloop; a request whose head or body does not arrive in time is cut (slow-loris), a head over
`HEAD_MAX` answers 431. Drain, in this order: /readyz says 503, no new connection is taken, `drain` to every socket, closes with 1012 in
waves over `drain_s`, then uvicorn's own end (requests in flight finish).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from typing import Any, Final, cast

import uvicorn

from api.app import Edge
from api.gate import Gate
from api.live import Sockets
from api.parts import Parts
from api.share import Share
from api.sse import Streams
from ingest.http import DevicePaths
from ingest.lane import DeviceLane

log = logging.getLogger(__name__)

HEAD_MAX: Final = 32_768  # bytes of a request's head
HEAD_TIMEOUT_S: Final = 10.0  # from the first byte of a request, or of a connection, to the end of its head
BODY_TIMEOUT_S: Final = 60.0  # from there to the end of its body; the devices' application has a shorter one of its own
READ_TIMEOUT_S: Final = 60.0  # a peer that reads nothing of its answer for so long is cut
KEEP_ALIVE_S: Final = 75  # nginx keeps upstream connections for 60 s: we must not be the first to close
GRACE_S: Final = 5  # for requests in flight at the end
SWEEP_S: Final = 1.0


class HttpProtocol(DeviceLane):
    """uvicorn's HTTP protocol with limits on head and time, the devices' lane, and our sockets behind the upgrade.

    No timer a request: `Worker` looks at all connections once a second. Subclassed per worker, to know its `sockets` and `device_paths`.
    """

    __slots__ = ("began_s", "full_s", "head_bytes", "idle_s", "in_head")

    sockets: Sockets

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.began_s = self.loop.time()  # of what is awaited now; 0.0: nothing is
        self.in_head, self.head_bytes = True, 0
        self.idle_s = 0.0  # since when the last answer is given and nothing more was asked
        self.full_s = 0.0  # since when the peer reads nothing of our answer; 0.0: it reads

    def parse(self, data: bytes) -> None:
        """The limits of a head; a request that the lane knows by heart is whole and has none to keep."""
        if self.in_head:
            if self.began_s == 0.0:
                self.began_s = self.loop.time()
            self.head_bytes += len(data)
            if self.head_bytes == len(data) > HEAD_MAX and not 0 <= data.find(b"\r\n\r\n") <= HEAD_MAX:  # all of it in one segment
                self._cut(431, b"Request Header Fields Too Large")
                return
        super().parse(data)
        if self.in_head and self.head_bytes > HEAD_MAX and not self.transport.is_closing():
            self._cut(431, b"Request Header Fields Too Large")

    def on_headers_complete(self) -> None:
        self.in_head, self.head_bytes = False, 0
        self.began_s = self.loop.time()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.in_head, self.began_s = True, 0.0
        super().on_message_complete()

    def upgrade_to_socket(self, rest: bytes) -> None:
        """The head is parsed already: hand it over as it is. Not behind a request that waits for its answer: the 101 would overtake it."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.send_400_response("An upgrade has to wait for the answer before it.")
            return
        self.connections.discard(self)
        method, version = self.parser.get_method().decode("ascii"), self.parser.get_http_version()
        target = self.url.decode("latin-1")
        self.sockets.upgrade(
            self.transport, cast("set[Any]", self.connections), target, self.headers, dict(self.headers), rest, method, version
        )

    def on_response_complete(self) -> None:
        """No timer an answer: the sweep looks who says nothing for too long."""
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        if self.flow.read_paused:
            self.flow.resume_reading()
        self.idle_s = self.loop.time()

    def taken_whole(self) -> None:
        self.idle_s = self.began_s = 0.0

    def _unset_keepalive_if_required(self) -> None:
        self.idle_s = 0.0

    def pause_writing(self) -> None:
        self.full_s = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self.full_s = 0.0
        super().resume_writing()

    def late(self, now_s: float) -> bool:
        """Whether the rest of a head or body is overdue (answers 408 and cuts), or the peer does not read its answer (cuts). Who just says
        nothing more is let go.
        """
        if self.full_s and now_s - self.full_s > READ_TIMEOUT_S:
            self.transport.abort()
            return True
        if self.idle_s and now_s - self.idle_s > KEEP_ALIVE_S:
            self.transport.close()
            return False
        if self.began_s == 0.0 or now_s - self.began_s < (HEAD_TIMEOUT_S if self.in_head else BODY_TIMEOUT_S):
            return False
        self._cut(408, b"Request Timeout")
        return True

    def _cut(self, status: int, reason: bytes) -> None:
        if self.in_head:
            self.transport.write(b"HTTP/1.1 %d %s\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % (status, reason))
        self.transport.close()


class Worker(uvicorn.Server):
    """uvicorn's server with our drain in front of its own, run inside the loop of `api/compose.py` (which owns the signals)."""

    def __init__(
        self,
        edge: Edge,
        sockets: Sockets,
        parts: Parts,
        streams: Streams | None = None,
        device_paths: DevicePaths | None = None,
        share: Share | None = None,
    ) -> None:
        http = type("WorkerHttp", (HttpProtocol,), {"sockets": sockets, "device_paths": device_paths})
        config = uvicorn.Config(
            edge,
            http=type("WorkerGate", (Gate,), {"__slots__": (), "sockets": sockets, "http": http, "share": share}),
            ws=asyncio.Protocol,  # only says that upgrades are wanted: `upgrade_to_socket` is ours
            loop="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=True,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
        super().__init__(config)
        self.sockets, self.parts, self.streams, self.share = sockets, parts, streams, share
        self.slow_requests = (
            parts.meter.counter("timepoint_http_late_total", "requests cut because they did not arrive in time") if parts.meter else None
        )

    async def run_on(self, sock: socket.socket) -> None:
        """Serves until `stop`; returns when everything is closed. The socket is listening already and may be shared with other workers."""
        lowat = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # inherited by every connection, so that none has to be asked for its socket
        if lowat is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, lowat, self.parts.settings.socket_kernel_buffer_bytes)
        limits = asyncio.create_task(self._limits(), name="http limits")
        pings = asyncio.create_task(self.sockets.run(), name="pings")
        freeze = asyncio.create_task(self._freeze(), name="gc freeze")
        try:
            await self._serve(sockets=[sock])
        finally:
            for task in (limits, pings, freeze):
                task.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Once it serves, the other workers may pass connections on to it."""
        await super().startup(sockets)
        if self.share is not None and self.started:
            passed = type("PassedGate", (self.config.http_protocol_class,), {"__slots__": (), "share": None})
            state = self.server_state
            self.share.begin(lambda: passed(self.config, state, self.lifespan.state), lambda: len(state.connections))

    async def stop(self) -> None:
        """The drain. Idempotent."""
        if self.parts.draining:
            return
        self.parts.draining = True
        if self.share is not None:
            self.share.end()
        for server in self.servers:
            server.close()
        if self.streams is not None:
            self.streams.close_all()
        await self.sockets.drain(self.parts.settings.drain_s)
        self.should_exit = True

    async def _limits(self) -> None:
        """Cuts requests that do not arrive."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = asyncio.get_running_loop().time()
            connections: list[Any] = list(self.server_state.connections)
            for number, connection in enumerate(connections):
                if number % 2_000 == 1_999:
                    await asyncio.sleep(0)
                if isinstance(connection, HttpProtocol):
                    late = connection.late(now_s)
                else:
                    late = isinstance(connection, Gate) and connection.late(now_s, HEAD_TIMEOUT_S)
                if late and self.slow_requests is not None:
                    self.slow_requests.add()

    async def _freeze(self) -> None:
        """What start-up made, and every crowd of sockets that came, is taken out of the collector's sight (159 ms a full pass at 8,000 sockets)."""
        frozen_at = 0
        await asyncio.sleep(SWEEP_S)
        gc.collect()
        gc.freeze()
        while True:
            await asyncio.sleep(5 * SWEEP_S)
            if self.sockets.count - frozen_at >= 1_000:
                frozen_at = self.sockets.count
                gc.collect(1)
                gc.freeze()
            elif self.sockets.count < frozen_at // 2:
                frozen_at = self.sockets.count
