"""A cheap HTTP/1.1 client for scenarios: prebuilt bytes out on kept connections, answers read by httptools, every latency from its moment.

    calls = await Calls.open(share, connections=32)
    async for moment in share.moments():
        calls.send(moment, request("GET", "/v1/stops", host=calls.host), "stops")
    await calls.rest()

Open loop: a call that finds no free connection waits in a queue, and its waiting counts. One call is under way on a connection at a time. A
call without an answer within `limit_s` is the fault `timeout`; one whose connection is lost is the fault `connection lost`, and another opens
when a call waits for it. Servers close connections that say nothing for long, at the moment of a call too: one that rested is not used again.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httptools

from bench.harness.scenario import Option, Share

CONNECTIONS: Final = Option("connections", 64, "kept connections of one generator")
LIMIT_S: Final = 30.0
CONNECT_LIMIT_S: Final = 10.0
UNUSED_MAX_S: Final = 5.0  # a connection's first call comes sooner; servers limit the time to a first head
RESTING_MAX_S: Final = 45.0  # between two calls; proxies close after 60 or 75
QUEUE_MAX: Final = 100_000  # calls waiting for a connection; beyond it one is the fault `not sent`

Heard = Callable[[int, bytes], None]  # status and body


def opening(method: str, path: str, *, host: str, token: str = "", **headers: str) -> bytes:
    """The head of a call whose body differs from call to call; header names are written with _ for -."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    lines += [f"Authorization: Bearer {token}"] if token else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n"


def whole(head: bytes, body: bytes, kind: str = "application/json") -> bytes:
    """A call with a body, of its `opening`."""
    return b"%bContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (head, kind.encode(), len(body), body)


def request(method: str, path: str, body: object = None, *, host: str, token: str = "", **headers: str) -> bytes:
    """The bytes of a call. `body`: bytes as they are, None for none, anything else as JSON."""
    head = opening(method, path, host=host, token=token, **headers)
    if body is None and method in ("GET", "HEAD", "DELETE"):
        return head + b"\r\n"
    return whole(head, body if isinstance(body, bytes) else b"" if body is None else json.dumps(body, separators=(",", ":")).encode())


class _Call:
    __slots__ = ("data", "heard", "measure", "moment", "sent_s")

    def __init__(self, moment: float, data: bytes, measure: str, heard: Heard | None) -> None:
        self.moment, self.data, self.measure, self.heard = moment, data, measure, heard
        self.sent_s = 0.0


class _Line(asyncio.Protocol):
    """One kept connection."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.transport: Any = None
        self.call: _Call | None = None
        self.body: list[bytes] = []
        self.parser: Any = None
        self.rested_s, self.rest_max_s = time.monotonic(), UNUSED_MAX_S

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.parser = transport, httptools.HttpResponseParser(self)
        self.calls.free_line(self)

    def begin(self, call: _Call) -> None:
        self.call, call.sent_s = call, time.monotonic()
        self.transport.write(call.data)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.calls.share.fault("not HTTP")
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        call, status, keep = self.call, self.parser.get_status_code(), self.parser.should_keep_alive()
        body = b"".join(self.body)
        self.body.clear()
        if call is None or status < 200:
            return
        self.call = None
        self.rested_s, self.rest_max_s = time.monotonic(), RESTING_MAX_S
        self.calls.answered(call, status, body)
        if keep:
            self.calls.free_line(self)
        else:
            self.transport.close()

    def connection_lost(self, fault: Exception | None) -> None:
        self.transport = None
        self.calls.lost(self)


class Calls:
    """`connections` to one deployment. 2xx counts as `answered`, the rest is a fault by its status, unless `heard` is given: then the scenario judges."""

    def __init__(self, share: Share, connections: int, limit_s: float = LIMIT_S) -> None:
        parts = urlsplit(share.url)
        self.share, self.limit_s, self.connections = share, limit_s, connections
        self.host, self._name = parts.netloc, parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._free: deque[_Line] = deque()
        self._waiting: deque[_Call] = deque()
        self._lines: set[_Line] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way = self._opening = 0
        self._closed = False
        self._all_in: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, share: Share, connections: int = 0, limit_s: float = LIMIT_S) -> Self:
        """`connections`: 0 where the scenario has the option CONNECTIONS. Raises OSError where not one connection can be made."""
        self = cls(share, connections or int(share.options[CONNECTIONS.name]), limit_s)
        for _ in range(self.connections):
            await self._connect()
        self._spawn(self._sweep())
        return self

    async def _connect(self) -> None:
        making = asyncio.get_running_loop().create_connection(
            lambda: _Line(self), self._name, self._port, ssl=self._tls, server_hostname=self._name if self._tls else None
        )
        _, line = await asyncio.wait_for(making, CONNECT_LIMIT_S)
        self._lines.add(line)

    def _grow(self) -> None:
        """One connection more for the calls that wait, where there may be one."""
        if not self._closed and self._opening < len(self._waiting) and len(self._lines) + self._opening < self.connections:
            self._opening += 1
            self._spawn(self._again())

    async def _again(self) -> None:
        pause_s = 0.1
        try:
            while not self._closed:
                try:
                    return await self._connect()
                except (OSError, TimeoutError):
                    self.share.fault("not connected")
                    await asyncio.sleep(pause_s)
                    pause_s = min(2.0, pause_s * 2)
        finally:
            self._opening -= 1

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self.limit_s / 4))
            late_s = time.monotonic() - self.limit_s
            for line in [line for line in self._lines if line.call is not None and line.call.sent_s < late_s]:
                assert line.call is not None
                self.share.fault("timeout")
                self._end(line.call)
                line.call = None
                line.transport.abort()

    def send(self, moment: float, data: bytes, measure: str, heard: Heard | None = None) -> None:
        """Now, or when a connection is free. `measure`: what its latency is noted under; `heard(status, body)`: told of the answer."""
        call = _Call(moment, data, measure, heard)
        line = self._rested()
        if line is not None:
            self._under_way += 1
            line.begin(call)
        elif len(self._waiting) < QUEUE_MAX:
            self._under_way += 1
            self._waiting.append(call)
            self._grow()
        else:
            self.share.fault("not sent")

    def _rested(self) -> _Line | None:
        """The free connection that rested longest, of those that did not for too long."""
        now_s = time.monotonic()
        while self._free:
            line = self._free.popleft()
            if now_s - line.rested_s <= line.rest_max_s:
                return line
            self._lines.discard(line)
            line.transport.close()
        return None

    def answered(self, call: _Call, status: int, body: bytes) -> None:
        self.share.note(call.measure, time.monotonic() - call.moment)
        if call.heard is not None:
            call.heard(status, body)
        elif status < 300:
            self.share.count("answered")
        else:
            self.share.fault(str(status))
        self._end(call)

    def _end(self, call: _Call) -> None:
        self._under_way -= 1
        if self._all_in is not None and self._under_way == 0 and not self._all_in.done():
            self._all_in.set_result(None)

    def free_line(self, line: _Line) -> None:
        if self._waiting:
            line.begin(self._waiting.popleft())
        else:
            self._free.append(line)

    def lost(self, line: _Line) -> None:
        self._lines.discard(line)
        if line in self._free:
            self._free.remove(line)
        if line.call is not None:
            if not self._closed:
                self.share.fault("connection lost")
            self._end(line.call)
        if self._waiting:
            self._grow()

    async def rest(self) -> None:
        """Waits for the answers that are still out, and closes."""
        if self._under_way:
            self._all_in = asyncio.get_running_loop().create_future()
            await self._all_in
        self.close()

    def close(self) -> None:
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        for line in list(self._lines):
            line.transport.close()
