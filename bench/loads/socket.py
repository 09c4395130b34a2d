"""WebSockets by hand (RFC 6455, client side) for crowds: a few hundred bytes and microseconds each, masks of zero, no compression.

`Socket` is one connection; what it hears goes to one function, together with nothing that costs. A close by the server is told with its code.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Callable
from typing import Any

from bench.harness.address import Address

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # any 16 bytes will do
OPEN_LIMIT_S = 30.0
WAVE = 100  # connections that are opened at once: within every server's backlog

Heard = Callable[["Socket", bytes], None]


def frame(opcode: int, payload: bytes) -> bytes:
    """A client's frame; its mask is zero, so the payload stands as it is."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, 0x80 | size, 0, 0, 0, 0)) + payload
    if size < 65_536:
        return bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big") + b"\0\0\0\0" + payload
    return bytes((0x80 | opcode, 0xFF)) + size.to_bytes(8, "big") + b"\0\0\0\0" + payload


def upgrade(address: Address, path: str, **headers: Any) -> bytes:
    """The request that opens a socket; header names are written with _ for -."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return (
        f"GET {address.prefix}{path} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    ).encode()


class Socket(asyncio.Protocol):
    """`heard(socket, payload)` for every whole message, `lost(socket)` once at the end; `code`: why the server closed, 0 where it did not say.

    `opened` is done when the server has taken the upgrade; it fails with ConnectionError where it refuses.
    """

    __slots__ = ("code", "heard", "hello", "lost", "mark", "opened", "rest", "transport")

    def __init__(self, hello: bytes, heard: Heard, lost: Callable[[Socket], None] | None = None, mark: Any = None) -> None:
        self.hello, self.heard, self.lost, self.mark = hello, heard, lost, mark
        self.opened: asyncio.Future[None] | None = asyncio.get_running_loop().create_future()
        self.rest = b""
        self.code = 0
        self.transport: asyncio.Transport = None  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.transport.write(self.hello)

    def say(self, text: bytes) -> None:
        self.transport.write(frame(TEXT, text))

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data = self.rest + data
        at = 0
        if self.opened is not None:
            at = data.find(b"\r\n\r\n") + 4
            if at < 4:
                self.rest = data
                return
            opened, self.opened = self.opened, None
            if not data.startswith(b"HTTP/1.1 101"):
                if not opened.done():
                    opened.set_exception(ConnectionError(f"no socket: {data[:200]!r}"))
                self.transport.abort()
                return
            if not opened.done():
                opened.set_result(None)
        end = len(data)
        while end - at >= 2:
            size, begin = data[at + 1], at + 2
            if size >= 126:
                begin = at + (4 if size == 126 else 10)
                if begin > end:
                    break
                size = int.from_bytes(data[at + 2 : begin], "big")
            stop = begin + size
            if stop > end:
                break
            opcode = data[at] & 15
            if opcode <= BINARY:
                self.heard(self, data[begin:stop])
            elif opcode == PING:
                self.transport.write(frame(PONG, data[begin:stop]))
            elif opcode == CLOSE:
                self.code = int.from_bytes(data[begin : begin + 2], "big")
                self.transport.write(frame(CLOSE, data[begin : begin + 2]))
                self.transport.close()
            at = stop
        self.rest = data[at:] if at < end else b""

    def connection_lost(self, exc: Exception | None) -> None:
        if self.opened is not None and not self.opened.done():
            self.opened.set_exception(exc or ConnectionError("hung up before the socket stood"))
            self.opened = None
        if self.lost is not None:
            self.lost(self)

    def cut(self) -> None:
        """As a phone that leaves the net: no closing frame."""
        self.lost = None
        self.transport.abort()


async def connect(address: Address, made: Socket, *, rcvbuf: int = 0) -> Socket:
    """Opens it. Raises OSError (ConnectionError where the upgrade is refused), TimeoutError."""
    loop, opened = asyncio.get_running_loop(), made.opened
    assert opened is not None
    try:
        async with asyncio.timeout(OPEN_LIMIT_S):
            if rcvbuf:
                sock = socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
                sock.setblocking(False)
                await loop.sock_connect(sock, (address.host, address.port))
                named = address.host if address.ssl else None
                await loop.create_connection(lambda: made, sock=sock, ssl=address.ssl, server_hostname=named)
            else:
                await loop.create_connection(lambda: made, address.host, address.port, ssl=address.ssl)
            await opened
    except BaseException:  # cancelled too: a socket that half stands would stay open
        opened.cancel()
        if made.transport is not None:
            made.cut()
        raise
    return made


async def connect_all(address: Address, sockets: list[Socket], *, rcvbuf: int = 0) -> float:
    """Opens them in waves; the seconds it took. Raises as `connect`."""
    raise_file_limit()
    begun_s = time.monotonic()
    for start in range(0, len(sockets), WAVE):
        await asyncio.gather(*(connect(address, one, rcvbuf=rcvbuf) for one in sockets[start : start + WAVE]))
    return time.monotonic() - begun_s


def raise_file_limit() -> None:
    """As many open files as the machine allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
