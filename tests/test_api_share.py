"""Workers on one listening socket: who has taken too many connections passes new ones on, and nothing of a connection is lost on the way."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from api.share import FRESH_S, SLACK, Pairs, Share
from engine.clock import ManualClock
from tests.crash_house import until


class Side:
    """A worker: its share, its connections, and what it answers."""

    def __init__(self, pairs: Pairs, number: int, clock: ManualClock) -> None:
        words = ",".join(str(os.dup(fd)) for fd in pairs.fds)
        self.share, self.name = Share(words, number, clock.steady_s), b"%d" % number
        self.open: set[Any] = set()

    def protocol(self, passes: bool) -> asyncio.Protocol:
        side = self

        class Talk(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport: Any = transport
                if passes and side.share.pass_on(transport):
                    return
                side.open.add(transport)

            def data_received(self, data: bytes) -> None:
                self.transport.write(side.name + data)

            def connection_lost(self, exc: Exception | None) -> None:
                side.open.discard(self.transport)

        return Talk()

    def begin(self) -> None:
        self.share.begin(lambda: self.protocol(passes=False), lambda: len(self.open))


@pytest.fixture
async def house() -> AsyncIterator[SimpleNamespace]:
    """Three workers of which only the first accepts: the kernel at its most unfair."""
    clock, still, pairs = ManualClock(1_000), ManualClock(1_000), Pairs(3)
    sides = [Side(pairs, number, still if number else clock) for number in range(3)]
    server = await asyncio.get_running_loop().create_server(lambda: sides[0].protocol(passes=True), "127.0.0.1", 0)
    house = SimpleNamespace(clock=clock, pairs=pairs, sides=sides, address=server.sockets[0].getsockname(), clients=[])
    yield house
    for _, writer in house.clients:
        writer.close()
    for side in sides:
        side.share.end()
    server.close()
    pairs.close()


async def call(house: SimpleNamespace, count: int) -> list[bytes]:
    """So many new connections at once that stay; who answered each."""

    async def one() -> bytes:
        reader, writer = await asyncio.open_connection(*house.address)
        house.clients.append((reader, writer))
        writer.write(b" hello")  # on its way before anybody has accepted
        return (await asyncio.wait_for(reader.readexactly(7), 10)).split()[0]

    return await asyncio.gather(*(one() for _ in range(count)))


def stop_taking(side: Side) -> None:
    """It is busy: what is passed to it waits."""
    asyncio.get_running_loop().remove_reader(side.share._inbox.fileno())


@asynccontextmanager
async def on_their_way(house: SimpleNamespace) -> AsyncIterator[None]:
    """Connections that were passed to the second worker, which takes none of them; afterwards all of them have been served under its number."""
    first, second, _ = house.sides
    first.begin()
    second.begin()
    stop_taking(second)
    waiting = asyncio.ensure_future(call(house, 20))

    async def passed() -> bool:
        return bool(first.share.passed >= 5)

    await until(passed, 5)
    yield
    assert (await waiting).count(second.name) == first.share.passed


async def test_a_burst_that_one_worker_takes_ends_even(house: SimpleNamespace) -> None:
    for side in house.sides:
        side.begin()
    answered = await call(house, 90)
    counts = [answered.count(side.name) for side in house.sides]
    assert sum(counts) == 90
    assert max(counts) - min(counts) <= SLACK + 1
    assert counts == [len(side.open) for side in house.sides]


async def test_nobody_passes_to_a_worker_that_starts_hangs_drains_or_has_died(house: SimpleNamespace) -> None:
    first, second, third = house.sides
    first.begin()
    second.begin()  # the third is still starting
    assert b"2" not in await call(house, 30)
    third.begin()
    assert b"2" in await call(house, 30)
    second.share.end()  # it drains
    house.pairs.gone(2)  # and the other was killed
    third.share.end()
    assert set(await call(house, 30)) == {b"0"}
    second.begin()  # it hangs: its clock stands
    house.clock.advance(int(FRESH_S * 1000) + 1)  # and has said nothing for so long
    assert set(await call(house, 30)) == {b"0"}


async def test_a_connection_stays_where_the_way_to_the_others_is_full(house: SimpleNamespace) -> None:
    first, second, _ = house.sides
    first.begin()
    second.begin()
    stop_taking(second)
    with socket.socket() as spare:
        try:
            while True:
                socket.send_fds(second.share._outs[1], [b"c"], [spare.fileno()])
        except BlockingIOError:
            pass
        assert set(await call(house, 3 * SLACK)) == {b"0"}


async def test_what_was_passed_to_a_worker_that_died_first_is_served_by_its_successor(house: SimpleNamespace) -> None:
    async with on_their_way(house):
        successor = Side(house.pairs, 1, house.clock)
        successor.begin()


async def test_what_was_passed_before_a_drain_is_served(house: SimpleNamespace) -> None:
    async with on_their_way(house):
        house.sides[1].share.end()
