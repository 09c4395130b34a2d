"""A crowd of live sockets in a process of its own: connects, subscribes, counts what comes and when. Told what to do by lines on stdin.

    connect N CHANNEL [RCVBUF]   open N sockets; CHANNEL - subscribes nothing        -> {"connected": n, "seconds": s}
                                 a # in CHANNEL is the number of the socket
    stall K                      the first K stop reading                            -> {"stalled": k}
    expect                       forget what was counted                             -> {"ok": true}
    report T0 COUNT LIMIT_S      wait for COUNT frames by readers that are not stalled -> {"frames", "bytes", "p50_ms", "p99_ms", "max_ms"}

A frame's time is when its last byte was read, against T0 (time.time() of the publisher, same machine).
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import sys
import time
from typing import Any

import uvloop

PONG = b"\x8a\x80\0\0\0\0"  # masked with zeros
IP_BIND_ADDRESS_NO_PORT = 24  # ip(7); the socket module has no name for it before Python 3.12
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


class Reader(asyncio.Protocol):
    """Counts whole frames without keeping their bytes."""

    __slots__ = ("crowd", "head", "left", "opened", "stalled", "transport")

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.left = 0  # bytes of the current frame still to come
        self.head = b""
        self.stalled = False
        self.opened = False
        self.transport: asyncio.Transport = None  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.transport.write(self.crowd.hello)

    def data_received(self, data: bytes) -> None:
        if not self.opened:
            self.head += data
            at = self.head.find(b"\r\n\r\n")
            if at < 0:
                return
            assert self.head.startswith(b"HTTP/1.1 101"), self.head[:200]
            self.opened, data, self.head = True, self.head[at + 4 :], b""
            self.crowd.came(self)
        if self.left:
            taken = min(self.left, len(data))
            self.left -= taken
            data = data[taken:]
            if self.left:
                return
            self.crowd.frame()
        data = self.head + data
        while len(data) >= 2:
            short = data[1] & 127
            size, start = short, 2
            if short >= 126:
                start = 4 if short == 126 else 10
                if len(data) < start:
                    break
                size = int.from_bytes(data[2:start], "big")
            if data[0] & 8:  # control frames are not counted; a ping is answered, or the server would think us gone
                if len(data) < start + size:
                    break
                if data[0] & 15 == 9:
                    self.transport.write(PONG)
                data = data[start + size :]
                continue
            self.crowd.bytes += start + size
            if len(data) < start + size:
                self.left = start + size - len(data)
                data = b""
                break
            data = data[start + size :]
            self.crowd.frame()
        self.head = data

    def connection_lost(self, exc: Exception | None) -> None:
        self.crowd.lost += 1


class Crowd:
    def __init__(self, address: tuple[str, int], path: str) -> None:
        self.address = address
        self.hello = (
            f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {KEY}\r\n\r\n"
        ).encode()
        self.readers: list[Reader] = []
        self.open = self.frames = self.bytes = self.lost = 0
        self.times: list[float] = []

    def came(self, reader: Reader) -> None:
        self.open += 1

    def frame(self) -> None:
        self.frames += 1
        self.times.append(time.time())

    async def connect(self, count: int, channel: str, rcvbuf: int) -> dict[str, Any]:
        loop, began = asyncio.get_running_loop(), time.monotonic()
        for start in range(0, count, 200):
            size = min(200, count - start)
            target = self.open + size
            made = []
            for number in range(size):
                sock = socket.socket()
                if rcvbuf:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
                sock.setblocking(False)
                # one loopback address has 28,000 ports of its own; spread the clients over several, and crowds too. The kernel
                # picks the port when it connects: looking for a free one for thousands took more CPU than all the rest.
                sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((f"127.0.{os.getpid() % 250}.{2 + (start + number) // 10_000}", 0))
                await loop.sock_connect(sock, self.address)
                _, reader = await loop.create_connection(lambda: Reader(self), sock=sock)
                made.append(reader)
            async with asyncio.timeout(30):
                while self.open < target:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
            if channel != "-":
                for number, reader in enumerate(made, len(self.readers)):
                    said = json.dumps({"id": 1, "op": "sub", "ch": channel.replace("#", str(number))}).encode()
                    reader.transport.write(bytes((0x81, 0x80 | len(said))) + bytes(4) + said)
            self.readers += made
        return {"connected": self.open, "seconds": time.monotonic() - began}

    async def report(self, began: float, count: int, limit_s: float) -> dict[str, Any]:
        end = time.monotonic() + limit_s
        while self.frames < count and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        late = sorted((at - began) * 1000 for at in self.times) or [0.0]
        pick = {name: round(late[min(len(late) - 1, int(len(late) * share))], 3) for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99))}
        return {"frames": self.frames, "bytes": self.bytes, "lost": self.lost, **pick, "max_ms": round(late[-1], 3)}

    async def obey(self, line: str) -> dict[str, Any]:
        word, *rest = line.split()
        if word == "connect":
            return await self.connect(int(rest[0]), rest[1], int(rest[2]) if len(rest) > 2 else 0)
        if word == "stall":
            for reader in self.readers[: int(rest[0])]:
                reader.transport.pause_reading()
            return {"stalled": int(rest[0])}
        if word == "expect":
            self.frames = self.bytes = 0
            self.times.clear()
            return {"ok": True}
        if word == "report":
            return await self.report(float(rest[0]), int(rest[1]), float(rest[2]))
        raise ValueError(line)


async def run(port: int, path: str) -> None:
    crowd = Crowd(("127.0.0.1", port), path)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            answer = await crowd.obey(line)
        except Exception as fault:  # whoever asked is another process: it is told, and raises there
            answer = {"fault": repr(fault)}
        print(json.dumps(answer), flush=True)


def raise_limit() -> int:
    """As many open files as the machine allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class CrowdProcess:
    """The crowd seen from the bench that started it."""

    def __init__(self, port: int, path: str = "/ws") -> None:
        import subprocess

        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.crowd", str(port), path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, *words: object) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"fault": "the crowd died"}
        if "fault" in answer:
            raise RuntimeError(answer["fault"])
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    raise_limit()
    uvloop.run(run(int(sys.argv[1]), sys.argv[2]))
