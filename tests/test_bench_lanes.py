"""The benches' cheap HTTP client: scripts are played in order, whatever way the answers are cut, and rounds of an open loop keep their time."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from bench.lanes import Lanes, Script, request
from bench.seat_rush import bound, triples


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """A server that answers each request 201 with the path, in pieces; /no is refused."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b"":
            path = head.split(b" ")[1]
            length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
            await reader.readexactly(length)
            status = b"409 Conflict" if path == b"/no" else b"201 Created"
            said = b"HTTP/1.1 " + status + b"\r\ncontent-length: %d\r\n\r\n" % len(path) + path
            for at in range(0, len(said), 9):
                writer.write(said[at : at + 9])
                await writer.drain()

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(guarded, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


def script(heard: list[tuple[int, bytes]], last: str = "/two") -> Script:
    while True:
        heard.append((yield "one", request("POST", "/one", b"{}", Idempotency_Key="k")))  # type: ignore[misc]
        heard.append((yield "two", request("DELETE", last)))  # type: ignore[misc]
        yield None


async def test_a_lane_plays_its_script_again_and_again(port: int) -> None:
    heard: list[tuple[int, bytes]] = []
    lanes = Lanes(port, 2, lambda _: script(heard))
    await lanes.open()
    tally = await lanes.run(0.2)
    lanes.close()
    assert tally.rounds >= 2 and tally.good("one") == tally.good("two") == tally.rounds
    assert set(heard) == {(201, b"/one"), (201, b"/two")} and not tally.bad()
    assert 0 < tally.p("one", 0.5) <= tally.p("one", 0.95)


async def test_an_open_loop_begins_so_many_rounds_and_counts_those_that_found_no_lane(port: int) -> None:
    lanes = Lanes(port, 1, lambda _: script([], last="/no"))
    await lanes.open()
    calm = await lanes.run(0.3, rate=10)
    flooded = await lanes.run(0.2, rate=100_000)
    lanes.close()
    assert (calm.rounds, calm.late) == (3, 0) and calm.bad() == {"two 409": 3} and calm.refused[0][2] == b"/no"
    assert flooded.late > flooded.rounds > 0


def test_every_seat_is_in_one_triple_at_most_and_the_bound_is_named() -> None:
    seats = [seat for three in triples() for seat in three]
    assert len(seats) == len(set(seats)) == 198
    assert bound({"worker": 900.0, "PostgreSQL": 100.0, "cores": 1.2}, 1_000).startswith("the worker's core")
    assert "most of it PostgreSQL" in bound({"worker": 300.0, "PostgreSQL": 900.0, "cores": 1.9}, 1_000)


@pytest.mark.parametrize("module", ["seat_rush", "booking", "torture"])
def test_a_bench_says_how_it_is_used(module: str) -> None:
    told = subprocess.run([sys.executable, "-m", f"bench.{module}", "--help"], capture_output=True, text=True, check=True).stdout
    assert f"python -m bench.{module}" in told and "--seconds" in told
