"""A cheap HTTP client for benches of request after request: kept connections ("lanes"), each playing one script of prebuilt bytes.

A script is a generator: it yields `(kind, request bytes)`, is sent `(status, body)`, and yields None at the end of a round. Closed loop: the
next round begins at once. Open loop: rounds begin by the clock, `rate` a second, on whichever lane is free; a round that finds none waits,
and its waiting counts: its first call is timed from the instant at which it should have begun.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Generator
from typing import Any

from bench.load import percentile

Script = Generator[tuple[str, bytes] | None, tuple[int, bytes], None]


class Tally:
    """What was answered: (kind, status) -> how often; milliseconds of each kind's good answers; bodies of what was not 2xx, a few."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        self.ms: dict[str, list[float]] = {}
        self.refused: list[tuple[str, int, bytes]] = []
        self.rounds = 0
        self.late = 0  # rounds of an open loop that no lane was free for by the end

    def p(self, kind: str, share: float) -> float:
        """Percentile of a kind's answer times, ms."""
        return percentile(sorted(self.ms.get(kind, ())), share)

    def good(self, kind: str) -> int:
        return sum(n for (one, status), n in self.answers.items() if one == kind and status < 300)

    def bad(self) -> dict[str, int]:
        return {f"{kind} {status}": n for (kind, status), n in sorted(self.answers.items()) if status >= 300}


class Lane(asyncio.Protocol):
    """One connection and its script."""

    def __init__(self, lanes: Lanes, script: Script) -> None:
        self.lanes, self.script = lanes, script
        self.transport: Any = None
        self.kind = ""
        self.began_s = 0.0
        self.head = bytearray()
        self.resting = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, fault: Exception | None) -> None:
        if not self.lanes.over:
            self.lanes.fail(fault or ConnectionError("the server hung up in the middle of a bench"))

    def begin(self, due_s: float | None = None) -> None:
        """The next round."""
        self.resting = False
        self._ask(next(self.script), due_s)

    def _ask(self, wanted: tuple[str, bytes] | None, due_s: float | None = None) -> None:
        if wanted is None:
            self.resting = True
            self.lanes.done(self)
            return
        self.kind, request = wanted
        self.began_s = due_s or time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self.head:
            self.head += data
            data = bytes(self.head)
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self.head[:] = data
            return
        at = data.lower().find(b"content-length: ", 0, end)
        length = int(data[at + 16 : data.find(b"\r", at)]) if at >= 0 else 0
        if len(data) < end + 4 + length:
            self.head[:] = data
            return
        self.head.clear()
        status, body = int(data[9:12]), data[end + 4 : end + 4 + length]
        tally = self.lanes.tally
        tally.answers[self.kind, status] += 1
        if status >= 300 and len(tally.refused) < 5:
            tally.refused.append((self.kind, status, body[:400]))
        if status < 300:
            tally.ms.setdefault(self.kind, []).append((time.perf_counter() - self.began_s) * 1000)
        if self.lanes.over:
            return
        self._ask(self.script.send((status, body)))


class Lanes:
    """`count` connections to 127.0.0.1:`port`, each with the script that `script(number)` makes."""

    def __init__(self, port: int, count: int, script: Callable[[int], Script]) -> None:
        self.port, self.count, self.make = port, count, script
        self.tally = Tally()
        self.over = True
        self.rate: float | None = None
        self.lanes: list[Lane] = []
        self._free: deque[Lane] = deque()
        self._due: deque[float] = deque()
        self._failed: asyncio.Future[None]

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        for number in range(self.count):
            _, lane = await loop.create_connection(lambda number=number: Lane(self, self.make(number)), "127.0.0.1", self.port)  # type: ignore[misc]
            self.lanes.append(lane)

    def fail(self, fault: BaseException) -> None:
        if not self._failed.done():
            self._failed.set_exception(fault)

    async def run(self, seconds: float, rate: float | None = None) -> Tally:
        """Plays for so long (closed loop, or `rate` rounds a second), lets what is under way end, and answers the tally of this run."""
        self.tally, self.over, self.rate = Tally(), False, rate
        self._due.clear()
        self._free = deque(self.lanes)
        if rate is None:
            for lane in self.lanes:
                lane.begin()
            await self._wait(seconds)
        else:
            await self._by_the_clock(seconds, rate)
        self.tally.late = len(self._due)
        self._due.clear()
        self.rate = 0.0  # rounds under way end, none begins
        limit_s = time.perf_counter() + 10
        while not all(lane.resting for lane in self.lanes) and time.perf_counter() < limit_s:
            await self._wait(0.01)
        self.over = True
        return self.tally

    async def _by_the_clock(self, seconds: float, rate: float) -> None:
        begun_s, sent = time.perf_counter(), 0
        while (now_s := time.perf_counter()) - begun_s < seconds:
            while sent / rate <= now_s - begun_s:
                self._due.append(begun_s + sent / rate)
                sent += 1
            while self._due and self._free:
                self._free.popleft().begin(self._due.popleft())
            await self._wait(0.001)

    def done(self, lane: Lane) -> None:
        self.tally.rounds += 1
        if self.rate is None and not self.over:
            asyncio.get_running_loop().call_soon(lane.begin)
        elif self._due:
            lane.begin(self._due.popleft())
        else:
            self._free.append(lane)

    async def _wait(self, seconds: float) -> None:
        await asyncio.wait({self._failed}, timeout=seconds)
        if self._failed.done():
            self._failed.result()

    def close(self) -> None:
        self.over = True
        for lane in self.lanes:
            lane.transport.close()


def request(method: str, path: str, body: bytes = b"", **headers: Any) -> bytes:
    """The bytes of a request; header names are written with _ for -."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\n{more}"
    if body or method == "POST":
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body
