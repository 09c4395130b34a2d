"""Many listeners in one process: sockets on /ws that note how old every position is when it arrives.

`python -m bench.watchers`, driven by lines of JSON: the first on its input says whom to watch; it answers `{"ready": n}`, then `begin` clears the
ages (`{"begun": true}`) and `end` prints them. An age is now minus the fix's own time, so the fixes must carry the time at which they were meant to be sent.
Client side of RFC 6455 by hand, without masks that mask anything: 1,000 sockets must cost less than the engine they watch.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from datetime import datetime
from typing import Any

import msgspec
import uvloop

from bench.senders import Where

MASKED, FIN = 0x80, 0x80
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class Push(msgspec.Struct):
    t: str | None = None
    d: msgspec.Raw = msgspec.Raw(b"")


class Pos(msgspec.Struct):
    at: str


_push = msgspec.json.Decoder(Push)
_batch = msgspec.json.Decoder(list[Push])
_pos = msgspec.json.Decoder(Pos)


class Ages:
    """Ages in ms of what came since `begin`, by kind of channel."""

    def __init__(self) -> None:
        self.of: dict[str, list[float]] = {"bus": [], "fleet": []}
        self.closed = 0

    def begin(self) -> None:
        for kind in self.of:
            self.of[kind] = []


def frame(opcode: int, payload: bytes) -> bytes:
    """A client's frame; its mask is zero, so the payload stands as it is."""
    size = len(payload)
    head = bytes((FIN | opcode, MASKED | size)) if size < 126 else bytes((FIN | opcode, MASKED | 126)) + size.to_bytes(2, "big")
    return head + b"\0\0\0\0" + payload


class Watcher(asyncio.Protocol):
    """One socket on one channel."""

    def __init__(self, where: Where, channel: str, token: str | None, ages: Ages, ready: asyncio.Semaphore) -> None:
        self._where, self._channel, self._token, self._ages, self._ready = where, channel, token, ages, ready
        self._kind = channel.partition(":")[0]
        self._bytes = bytearray()
        self._open = self._granted = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        key = base64.b64encode(os.urandom(16)).decode()
        self._write(
            (
                f"GET {self._where.prefix}/ws HTTP/1.1\r\nHost: {self._where.host}:{self._where.port}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Protocol: timepoint.v1.json\r\n\r\n"
            ).encode()
        )

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        now_ms = time.time() * 1000
        buffer = self._bytes
        buffer += data
        if not self._open:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            if not buffer.startswith(b"HTTP/1.1 101"):
                raise ConnectionError(f"no socket: {bytes(buffer[:200])!r}")
            del buffer[: end + 4]
            self._open = True
            if self._token:
                self._write(frame(TEXT, json.dumps({"op": "auth", "token": self._token}).encode()))
            self._write(frame(TEXT, json.dumps({"id": 1, "op": "sub", "ch": self._channel}).encode()))
        at = 0
        while len(buffer) - at >= 2:
            size, begin = buffer[at + 1], at + 2
            if size == 126:
                size, begin = int.from_bytes(buffer[at + 2 : at + 4], "big"), at + 4
            elif size == 127:
                size, begin = int.from_bytes(buffer[at + 2 : at + 10], "big"), at + 10
            if len(buffer) < begin + size:
                break
            self._frame(buffer[at] & 0x0F, bytes(buffer[begin : begin + size]), now_ms)
            at = begin + size
        del buffer[:at]

    def _frame(self, opcode: int, payload: bytes, now_ms: float) -> None:
        if opcode == PING:
            self._write(frame(PONG, payload))
        elif opcode == TEXT:
            self._said(_push.decode(payload), payload, now_ms)

    def _said(self, push: Push, payload: bytes, now_ms: float) -> None:
        if push.t == "pos":
            ages = self._ages.of[self._kind]
            ages.append(now_ms - datetime.fromisoformat(_pos.decode(push.d).at).timestamp() * 1000)
        elif push.t == "batch":
            for one in _batch.decode(push.d):
                self._said(one, b"", now_ms)
        elif not self._granted and b'"error"' in payload:
            raise ConnectionError(payload.decode())
        elif not self._granted and b'"ok":true' in payload and b'"id":1' in payload:
            self._granted = True
            self._ready.release()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ages.closed += 1


async def watch(config: dict[str, Any]) -> None:
    """`config`: url, channels, token (for those that ask for one)."""
    loop, where, ages, ready = asyncio.get_running_loop(), Where.of(config["url"]), Ages(), asyncio.Semaphore(0)
    channels: list[str] = config["channels"]
    for begin in range(0, len(channels), 50):
        await asyncio.gather(*(
            loop.create_connection(
                lambda name=name: Watcher(where, name, config["token"] if name.startswith("fleet:") else None, ages, ready),
                where.host, where.port, ssl=where.ssl,
            )
            for name in channels[begin : begin + 50]
        ))  # fmt: skip
    for _ in channels:
        await asyncio.wait_for(ready.acquire(), 30)
    print(json.dumps({"ready": len(channels)}), flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        if line.strip() == b"begin":
            ages.begin()
            print('{"begun": true}', flush=True)
        elif line.strip() == b"end":
            print(
                json.dumps({"ages": {kind: [round(a, 1) for a in found] for kind, found in ages.of.items()}, "closed": ages.closed}),
                flush=True,
            )
            return


def main() -> None:
    with open(0, "rb", buffering=0, closefd=False) as said:  # unbuffered: the loop reads the rest
        config = json.loads(said.readline())
    uvloop.run(watch(config))


if __name__ == "__main__":
    main()
