"""The ways out of a simulated bus: HTTP on kept connections, WebSocket, MQTT. Lean, because the generator shares the machine with the engine.

Every way is bounded: what waits for an answer is limited per connection, and what does not fit is dropped, oldest first, and counted, as a
device with a small memory would. 429 and 503 are obeyed (`Retry-After`) and the same bytes sent again; 4xx is counted and given up.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit
from zlib import crc32

import msgspec

from bench.harness.address import Address
from bench.receiver import Reading

QUEUE_MAX = 400  # requests waiting on one connection
ANSWER_LIMIT_S = 15.0
RETRY_MAX_S = 30.0
KNOTS_PER_MPS = 3600 / 1852
SOCKETS_MAX = 4000


class Tally(msgspec.Struct):
    """What came of the fixes. `sent` counts fixes put on the wire, `requests` requests answered."""

    sent: int = 0
    accepted: int = 0
    requests: int = 0
    retried: int = 0
    dropped: int = 0
    quarantined: Counter[str] = msgspec.field(default_factory=Counter)
    errors: Counter[str] = msgspec.field(default_factory=Counter)
    answer_ms: deque[float] = msgspec.field(default_factory=lambda: deque(maxlen=4000))

    def percentile(self, share: float) -> float:
        ordered = sorted(self.answer_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Sender(Protocol):
    """A way out. `send` never waits; `close` gives what is under way a moment to end."""

    tally: Tally

    def send(self, bus_id: str, readings: Sequence[Reading]) -> None: ...
    async def close(self, limit_s: float) -> None: ...
    def waiting(self) -> int: ...


# --- what the protocols write ---


def telemetry_object(r: Reading) -> str:
    """docs/devices.md, telemetry object, as JSON text. Speed in km/h."""
    trip = f',"tripId":{json.dumps(r.trip_id)},"startDate":"{r.start_date}"' if r.trip_id is not None else ""
    return (
        f'{{"busId":"{r.bus_id}","timestamp":{r.timestamp_ms},"location":{{"latitude":{r.lat:.6f},"longitude":{r.lon:.6f},'
        f'"accuracy":{r.accuracy_m:.1f}}},"motion":{{"speed":{r.speed_mps * 3.6:.1f},"heading":{r.bearing_deg:.1f}}}{trip},"seq":{r.seq}}}'
    )


def telemetry_body(readings: Sequence[Reading]) -> bytes:
    """One object, or an array of several."""
    if len(readings) == 1:
        return telemetry_object(readings[0]).encode()
    return ("[" + ",".join(map(telemetry_object, readings)) + "]").encode()


def osmand_query(r: Reading, token: str) -> str:
    """OsmAnd: seconds and knots."""
    return (
        f"token={token}&id={r.bus_id}&lat={r.lat:.6f}&lon={r.lon:.6f}&timestamp={r.timestamp_ms / 1000:.3f}"
        f"&speed={r.speed_mps * KNOTS_PER_MPS:.2f}&bearing={r.bearing_deg:.1f}&accuracy={r.accuracy_m:.1f}"
    )


def owntracks_body(r: Reading) -> bytes:
    """OwnTracks: whole seconds and km/h."""
    return (
        f'{{"_type":"location","lat":{r.lat:.6f},"lon":{r.lon:.6f},"tst":{r.timestamp_ms // 1000},"acc":{r.accuracy_m:.0f},'
        f'"vel":{r.speed_mps * 3.6:.0f},"cog":{r.bearing_deg:.0f},"tid":"{r.bus_id[-2:]}"}}'
    ).encode()


# --- HTTP ---


class _Request(msgspec.Struct, gc=False):
    head_and_body: bytes
    fixes: int
    begun_s: float = 0.0


class Line(asyncio.Protocol):
    """One kept HTTP/1.1 connection: one request under way, the others queued behind it. Connects again by itself."""

    def __init__(self, where: Address, tally: Tally) -> None:
        self._where, self._tally = where, tally
        self.queue: deque[_Request] = deque()
        self.now: _Request | None = None
        self._transport: asyncio.Transport | None = None
        self._bytes = b""
        self._connecting: asyncio.Task[None] | None = None
        self._not_before_s = 0.0
        self._pause_s = 0.2
        self.closed = False

    def put(self, head_and_body: bytes, fixes: int) -> None:
        if len(self.queue) >= QUEUE_MAX:
            self._tally.dropped += self.queue.popleft().fixes
        self.queue.append(_Request(head_and_body, fixes))
        if self.now is None:
            self._pump()

    def _pump(self) -> None:
        if self.now is not None or not self.queue or self.closed or time.monotonic() < self._not_before_s:
            return
        if self._transport is None:
            if self._connecting is None:
                self._connecting = asyncio.get_running_loop().create_task(self._connect())
            return
        self.now = self.queue.popleft()
        self.now.begun_s = time.monotonic()
        self._tally.sent += self.now.fixes
        self._transport.write(self.now.head_and_body)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.closed:
            try:
                await asyncio.wait_for(loop.create_connection(lambda: self, self._where.host, self._where.port, ssl=self._where.ssl), 10)
            except (OSError, TimeoutError) as fault:
                self._tally.errors[f"connect: {type(fault).__name__}"] += 1
                await asyncio.sleep(self._pause_s)
                self._pause_s = min(5.0, self._pause_s * 2)
            else:
                self._pause_s = 0.2
                break
        self._connecting = None
        self._pump()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._bytes = b""

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.now is not None and not self.closed:  # a fix twice is a fix once: send it again
            self._again("connection lost", 0.0)
        self._pump()

    def data_received(self, data: bytes) -> None:
        self._bytes += data
        while self.now is not None:
            end = self._bytes.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._bytes[:end].lower()
            length = _header(head, b"content-length")
            size = end + 4 + int(length or 0)
            if len(self._bytes) < size:
                return
            body, self._bytes = self._bytes[end + 4 : size], self._bytes[size:]
            self._answered(int(head[9:12]), head, body)

    def _answered(self, status: int, head: bytes, body: bytes) -> None:
        request, tally = self.now, self._tally
        assert request is not None
        tally.answer_ms.append((time.monotonic() - request.begun_s) * 1000)
        tally.requests += 1
        if status in (429, 503):
            text = _header(head, b"retry-after") or b"1"
            self._again(f"HTTP {status}", min(RETRY_MAX_S, max(0.05, float(text) if text.isdigit() else 1.0)))
            return
        self.now = None
        if 200 <= status < 300:
            _count(tally, body, request.fixes)
        else:
            tally.errors[f"HTTP {status}"] += 1
            tally.dropped += request.fixes
        if _header(head, b"connection") == b"close" and self._transport is not None:
            self._transport.close()
            self._transport = None
        self._pump()

    def _again(self, why: str, wait_s: float) -> None:
        assert self.now is not None
        self._tally.errors[why] += 1
        self._tally.retried += 1
        self._tally.sent -= self.now.fixes
        self.queue.appendleft(self.now)
        self.now = None
        if self._transport is not None:  # refused; a lost connection goes on when it stands again
            self._not_before_s = time.monotonic() + wait_s
            asyncio.get_running_loop().call_later(wait_s + 0.002, self._pump)

    def sweep(self, now_s: float) -> None:
        """Gives up a connection that does not answer."""
        if self.now is not None and now_s - self.now.begun_s > ANSWER_LIMIT_S and self._transport is not None:
            self._tally.errors["no answer"] += 1
            self._transport.abort()

    def close(self) -> None:
        self.closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.close()


def _header(head: bytes, name: bytes) -> bytes | None:
    """`head` in lower case."""
    at = head.find(b"\r\n" + name + b":")
    if at < 0:
        return None
    begin = at + len(name) + 3
    end = head.find(b"\r\n", begin)
    return head[begin : end if end >= 0 else None].strip()


def _count(tally: Tally, body: bytes, fixes: int) -> None:
    if body.endswith(b'"quarantined":[]}') or not body.startswith(b'{"accepted"'):
        tally.accepted += fixes
        return
    said = json.loads(body)
    tally.accepted += said["accepted"]
    tally.quarantined.update(one["reason"] for one in said["quarantined"])


class HttpSender:
    """telemetry, osmand or owntracks over `connections` kept connections; a bus always uses the same one, so its fixes keep their order."""

    def __init__(self, base_url: str, tokens: Callable[[str], str], *, protocol: str = "telemetry", connections: int = 8) -> None:
        self.tally = Tally()
        self._where = Address.of(base_url)
        self._tokens, self._protocol = tokens, protocol
        self._lines = [Line(self._where, self.tally) for _ in range(connections)]
        self._heads: dict[str, bytes] = {}
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    def send(self, bus_id: str, readings: Sequence[Reading]) -> None:
        line = self._lines[crc32(bus_id.encode()) % len(self._lines)]
        if self._protocol == "telemetry":
            body = telemetry_body(readings)
            line.put(b"%b%d\r\n\r\n%b" % (self._head(bus_id), len(body), body), len(readings))
            return
        for reading in readings:
            if self._protocol == "osmand":
                line.put(self._osmand(reading), 1)
            else:
                body = owntracks_body(reading)
                line.put(b"%b%d\r\n\r\n%b" % (self._head(bus_id), len(body), body), 1)

    def _head(self, bus_id: str) -> bytes:
        """Everything before the content length, made once for a bus."""
        head = self._heads.get(bus_id)
        if head is None:
            token = self._tokens(bus_id)
            basic = base64.b64encode(f"{bus_id}:{token}".encode()).decode()
            who = f"Basic {basic}" if self._protocol == "owntracks" else f"Bearer {token}"
            head = self._heads[bus_id] = (
                f"POST {self._where.prefix}/ingest/{self._protocol} HTTP/1.1\r\nHost: {self._where.host}:{self._where.port}\r\n"
                f"Authorization: {who}\r\nContent-Type: application/json\r\nContent-Length: "
            ).encode()
        return head

    def _osmand(self, reading: Reading) -> bytes:
        query = osmand_query(reading, self._tokens(reading.bus_id))
        return (
            f"POST {self._where.prefix}/ingest/osmand?{query} HTTP/1.1\r\nHost: {self._where.host}:{self._where.port}\r\nContent-Length: 0\r\n\r\n"
        ).encode()

    def waiting(self) -> int:
        return sum(len(line.queue) + (line.now is not None) for line in self._lines)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1)
            now_s = time.monotonic()
            for line in self._lines:
                line.sweep(now_s)

    async def close(self, limit_s: float) -> None:
        until = time.monotonic() + limit_s
        while self.waiting() and time.monotonic() < until:  # noqa: ASYNC110  (once, at the end; an event would cost every answer)
            await asyncio.sleep(0.01)
        self._sweeper.cancel()
        for line in self._lines:
            line.close()
        await asyncio.sleep(0)


# --- WebSocket ---


class SocketSender:
    """/ingest/ws: a socket for every bus, as its device would have it. Frames wait in a bounded queue while a socket connects again."""

    def __init__(self, base_url: str, tokens: Callable[[str], str]) -> None:
        self.tally = Tally()
        where = urlsplit(base_url)
        self._url = f"{'wss' if where.scheme == 'https' else 'ws'}://{where.netloc}{where.path.rstrip('/')}/ingest/ws"
        self._tokens = tokens
        self._queues: dict[str, asyncio.Queue[Reading]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def send(self, bus_id: str, readings: Sequence[Reading]) -> None:
        queue = self._queues.get(bus_id)
        if queue is None:
            if len(self._queues) >= SOCKETS_MAX:
                self.tally.dropped += len(readings)
                self.tally.errors["too many sockets"] += 1
                return
            queue = self._queues[bus_id] = asyncio.Queue(QUEUE_MAX)
            self._tasks.append(asyncio.get_running_loop().create_task(self._keep(bus_id, queue)))
        for reading in readings:
            if queue.full():
                queue.get_nowait()
                self.tally.dropped += 1
            queue.put_nowait(reading)

    async def _keep(self, bus_id: str, queue: asyncio.Queue[Reading]) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        pause_s = 0.2
        while True:
            try:
                headers = {"Authorization": f"Bearer {self._tokens(bus_id)}"}
                async with connect(self._url, additional_headers=headers, compression=None, open_timeout=10) as socket:
                    pause_s = 0.2
                    await self._speak(socket, queue)
            except (OSError, TimeoutError, WebSocketException) as fault:
                self.tally.errors[f"socket: {type(fault).__name__}"] += 1
                await asyncio.sleep(pause_s)
                pause_s = min(5.0, pause_s * 2)

    async def _speak(self, socket: Any, queue: asyncio.Queue[Reading]) -> None:
        sent: deque[int] = deque()

        async def listen() -> None:
            async for frame in socket:
                said = json.loads(frame)
                if "quarantined" in said:
                    self.tally.quarantined[said["quarantined"].get("reason", "?")] += 1
                elif said.get("ack") is not None:
                    while sent and sent[0] <= said["ack"]:
                        sent.popleft()
                        self.tally.accepted += 1
                elif "n" in said:
                    self.tally.accepted += said["n"]

        listener = asyncio.get_running_loop().create_task(listen())
        try:
            while not listener.done():
                taking = asyncio.get_running_loop().create_task(queue.get())
                await asyncio.wait({taking, listener}, return_when=asyncio.FIRST_COMPLETED)
                if not taking.done():
                    taking.cancel()
                    break
                reading = taking.result()
                sent.append(reading.seq)
                self.tally.sent += 1
                await socket.send(telemetry_object(reading))
            await listener
        finally:
            listener.cancel()

    def waiting(self) -> int:
        return sum(queue.qsize() for queue in self._queues.values())

    def _open(self) -> bool:
        return self.waiting() > 0 or self.tally.accepted + self.tally.quarantined.total() < self.tally.sent

    async def close(self, limit_s: float) -> None:
        until = time.monotonic() + limit_s
        while self._open() and time.monotonic() < until:  # noqa: ASYNC110  (as above)
            await asyncio.sleep(0.02)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


# --- MQTT ---


class MqttSender:
    """`timepoint/v1/telemetry/{busId}`, QoS 1, a client for every bus (the broker's rules let it publish for its own bus only)."""

    def __init__(self, url: str, tokens: Callable[[str], str]) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise ValueError(f"{url!r} is not an mqtt:// address")
        self.tally = Tally()
        self._host, self._port, self._secure = (
            parts.hostname,
            parts.port or (8883 if parts.scheme == "mqtts" else 1883),
            parts.scheme == "mqtts",
        )
        self._tokens = tokens
        self._clients: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, bus_id: str, readings: Sequence[Reading]) -> None:
        client = self._clients.get(bus_id)
        if client is None:
            self._clients[bus_id] = False
            task = asyncio.get_running_loop().create_task(self._connect(bus_id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if not client or not client.is_connected:
            self.tally.dropped += len(readings)
            return
        for reading in readings:
            client.publish(f"timepoint/v1/telemetry/{bus_id}", telemetry_object(reading).encode(), qos=1)
            self.tally.sent += 1
            self.tally.accepted += 1  # by the broker's client library; what the engine makes of it is the engine's to say

    async def _connect(self, bus_id: str) -> None:
        from gmqtt import Client

        client = Client(f"simulate-{bus_id}", clean_session=True)
        client.set_auth_credentials(bus_id, self._tokens(bus_id))
        try:
            await asyncio.wait_for(client.connect(self._host, self._port, ssl=self._secure, keepalive=60), 10)
            self._clients[bus_id] = client
        except Exception as fault:  # gmqtt raises what its transport raises, and kinds of its own: counted by name
            self.tally.errors[f"mqtt: {type(fault).__name__}"] += 1
            await asyncio.sleep(2)
            self._clients.pop(bus_id, None)

    def waiting(self) -> int:
        return 0

    async def close(self, limit_s: float) -> None:
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(1.0, limit_s)):
                for client in self._clients.values():
                    if client:
                        await client.disconnect()
