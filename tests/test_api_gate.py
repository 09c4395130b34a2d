"""The gate before a real worker: what it takes itself, what it leaves to HTTP, and the limits that stand in it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

import api.server
from api.server import HEAD_MAX
from tests.live_house import House, house

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
PING = b'\x81\x94\0\0\0\0{"id":1,"op":"ping"}'


class Line:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await asyncio.sleep(0.005)

    async def head(self) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def hears(self, size: int) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.readexactly(size)

    async def ended(self) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.read()


@contextlib.asynccontextmanager
async def line(h: House) -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_connection("127.0.0.1", h.port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        yield Line(reader, writer)
    finally:
        writer.close()


ANSWER = b'\x81\x12{"id":1,"ok":true}'


async def test_an_upgrade_is_taken_whole_in_pieces_behind_requests_and_with_frames_behind_it(redis_url: str) -> None:
    async with house(redis_url) as h:
        get = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        for pieces in ([UPGRADE, PING], [UPGRADE[:30], UPGRADE[30:], PING], [UPGRADE[:3], UPGRADE[3:] + PING]):
            async with line(h) as one:
                await one.say(*pieces)
                assert (await one.head()).startswith(b"HTTP/1.1 101 ")
                assert await one.hears(len(ANSWER)) == ANSWER
        async with line(h) as kept:
            await kept.say(get)
            assert b"200 OK" in await kept.head()
            await kept.hears(len(b'{"status":"ok"}'))
            await kept.say(UPGRADE)
            assert (await kept.head()).startswith(b"HTTP/1.1 101 ")
            await kept.say(PING)
            assert await kept.hears(len(ANSWER)) == ANSWER
        async with line(h) as hasty:
            await hasty.say(get + UPGRADE)
            assert b"101" not in await hasty.ended(), "a 101 must not overtake the answer before it"


@pytest.mark.parametrize(
    ("wound", "status"),
    [
        ((b"Version: 13", b"Version: 8"), 426),
        ((b"Key: dGhl", b"Key: "), 400),
        ((b"HTTP/1.1\r\n", b"HTTP/1.0\r\n"), 400),
        ((b"GET /ws ", b"POST /ws "), 400),
        ((b"Host: x\r\n", b"Host: x\r\n folded\r\n"), 400),
        ((b"Host: x\r\n", b"Host: x\n y: z\r\n"), 400),
        ((b"Upgrade\r\n", b"Upgrade\r\nConnection: a b, Upgrade\r\n"), 400),
        ((b"GET /ws ", b"GET /ws/nowhere "), 404),
        ((b"Host: x\r\n", b"Host: x\r\nx: %s\r\n" % (b"y" * HEAD_MAX)), 431),
    ],
)
async def test_what_is_no_handshake_is_refused_by_its_name_and_cut(redis_url: str, wound: tuple[bytes, bytes], status: int) -> None:
    async with house(redis_url) as h, line(h) as one:
        await one.say(UPGRADE.replace(*wound))
        said = await one.ended()
        assert said.startswith(b"HTTP/1.1 %d " % status), said[:200]
        assert (b"\r\nsec-websocket-version: 13\r\n" in said) is (status == 426)


async def test_who_says_nothing_or_floods_with_pings_is_cut(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.server, "HEAD_TIMEOUT_S", 0.1)
    monkeypatch.setattr(api.server, "SWEEP_S", 0.05)
    async with house(redis_url, socket_messages_max=10) as h:
        async with line(h) as silent:
            assert (await silent.ended()).startswith(b"HTTP/1.1 408 ")
        async with line(h) as flood:
            await flood.say(UPGRADE)
            await flood.head()
            await flood.say(b"\x89\x80\0\0\0\0" * 11)
            said = await flood.hears(2 * 11 + 4)
            assert said[:-4].replace(b"\x8a\x00", b"") == b"" and said[-4:-2][:1] == b"\x88" and said[-2:] == (4429).to_bytes(2, "big")
