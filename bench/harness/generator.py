"""One generator: a process of its own with a loop of its own that drives one share of a scenario.

    python -m bench.harness.generator        (the harness starts it; bench/harness/beat.py says what passes between them)

Promises: a moment is handed to the scenario as soon as it has come, none is skipped, and how late each was handed over is told (`lag`): the
generator's own doing, whatever the product does. How late its loop wakes is told in the same figure, for those who only listen.
"""

from __future__ import annotations

import asyncio
import math
import os
import resource
import signal
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, BinaryIO, Final

import msgspec

from bench.harness import catalogue
from bench.harness.alarm import Alarm
from bench.harness.beat import Beat, Counts, Done, Order, Ready, Said, Start
from bench.harness.histogram import HIGHEST_NS

BEAT_S: Final = 1.0
WAKE_S: Final = 0.02  # how often the loop's own lateness is looked at
TURN_S: Final = 0.002  # a scenario that is behind gives the loop a turn so often: answers are read in between
WAKES_APART_S: Final = 0.0005  # at thousands a second moments are handed out several at a waking: each waking costs 10 us
START_LIMIT_S: Final = 120.0

Tell = Callable[[Said], None]


class OneShare:
    """bench.harness.scenario.Share, of this process."""

    def __init__(self, order: Order, tell: Tell) -> None:
        self.number, self.of = order.number, order.of
        self.seed = order.seed * 1000 + order.number
        self.url, self.data = order.url, order.data
        self.options: Mapping[str, Any] = order.options
        self._order, self._tell = order, tell
        self._start: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._asked = False
        self._began_s, self._spent_s = math.nan, 0.0  # CPU before the run: imports, connections
        self._hours = time.time() - time.monotonic()
        self._clear()

    def _clear(self) -> None:
        self._latencies: dict[str, dict[int, Counts]] = defaultdict(lambda: defaultdict(dict))
        self._counts: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._faults: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._lag: dict[int, Counts] = defaultdict(dict)

    # ---- what a scenario sees

    async def begun(self) -> float:
        if not self._asked:
            self._asked = True
            self._tell(Ready())
        return await asyncio.shield(self._start)

    async def moments(self) -> AsyncIterator[float]:
        began_s, monotonic = await self.begun(), time.monotonic
        turn_s, alarm = 0.0, Alarm()
        try:
            for offset_s in self._order.schedule.moments(self.number, self.of, self._order.seed):
                moment = began_s + offset_s
                while moment > (now_s := monotonic()):
                    await alarm.until(max(moment, turn_s + WAKES_APART_S))
                    turn_s = monotonic()
                if now_s - turn_s > TURN_S:
                    await asyncio.sleep(0)
                    turn_s = now_s = monotonic()
                _put(self._lag[int(offset_s)], now_s - moment)
                yield moment
        finally:
            alarm.close()
        await self.over()

    async def over(self) -> None:
        end_s = await self.begun() + self._order.schedule.end_s
        await asyncio.sleep(end_s - time.monotonic() + 0.001)

    def epoch_ms(self, moment: float) -> int:
        return round((moment + self._hours) * 1000)

    def note(self, measure: str, seconds: float) -> None:
        _put(self._latencies[measure][self._second(time.monotonic() - seconds)], seconds)

    def count(self, what: str, by: int = 1) -> None:
        self._counts[what][self._second(time.monotonic())] += by

    def fault(self, what: str) -> None:
        self._faults[what][self._second(time.monotonic())] += 1

    def _second(self, moment: float) -> int:
        """Of the run; what happens before it begins belongs to its first."""
        return max(0, int(moment - self._began_s)) if self._start.done() else 0

    # ---- what the process does with it

    def start(self, at_s: float) -> None:
        self._began_s, self._spent_s = at_s, time.process_time()
        self._start.set_result(at_s)

    def woke(self, late_s: float) -> None:
        if self._start.done():
            _put(self._lag[self._second(time.monotonic())], late_s)

    def beat(self) -> None:
        self._tell(Beat(self._latencies, self._counts, self._faults, self._lag, time.process_time() - self._spent_s))
        self._clear()

    @property
    def ends_s(self) -> float:
        """When what is still under way is cut off; never, before the run has begun."""
        return self._began_s + self._order.schedule.end_s + self._order.drain_s if self._start.done() else float("inf")


def _put(counts: Counts, seconds: float) -> None:
    """Histogram.record into a plain dict."""
    ns = int(seconds * 1e9)
    ns = 0 if ns < 0 else min(ns, HIGHEST_NS)
    shift = ns.bit_length() - 11
    index = ns if shift <= 0 else (shift << 10) + (ns >> shift)
    counts[index] = counts.get(index, 0) + 1


async def _wake(share: OneShare) -> None:
    """How late the loop is, said to the share."""
    while True:
        due_s = time.monotonic() + WAKE_S
        await asyncio.sleep(WAKE_S)
        share.woke(time.monotonic() - due_s)


async def _beats(share: OneShare) -> None:
    while True:
        await asyncio.sleep(BEAT_S)
        share.beat()


async def drive(order: Order, told: asyncio.StreamReader, tell: Tell) -> str:
    """Drives one share to its end; answers what went wrong with the driving itself. Raises EOFError where the harness has gone."""
    scenario = catalogue.find(order.scenario)()
    share = OneShare(order, tell)
    work = asyncio.create_task(scenario.drive(share))
    orders = asyncio.create_task(_listen(share, told))
    beside = [orders, asyncio.create_task(_wake(share)), asyncio.create_task(_beats(share))]
    try:
        while not work.done() and time.monotonic() < share.ends_s:
            await asyncio.wait({work, orders}, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
            if orders.done():
                orders.result()
        if not work.done():
            share.fault("cut off")
            return ""
        fault = work.exception()
        return f"{type(fault).__name__}: {fault} ({_where(fault)})" if fault is not None else ""
    finally:
        for task in (*beside, work):
            task.cancel()
        await asyncio.gather(*beside, work, return_exceptions=True)
        share.beat()


async def _listen(share: OneShare, told: asyncio.StreamReader) -> None:
    line = await asyncio.wait_for(told.readline(), START_LIMIT_S)
    if line:
        share.start(msgspec.json.decode(line, type=Start).at_s)
        await told.readline()
    raise EOFError("the harness has gone")  # its end of the pipe closes when it dies, and when it wants an early end


def _where(fault: BaseException) -> str:
    """The line of the scenario that raised."""
    frame = traceback.extract_tb(fault.__traceback__)[-1]
    return f"{os.path.basename(frame.filename)}:{frame.lineno}"


async def serve(out: BinaryIO) -> int:
    told = asyncio.StreamReader(limit=1 << 28)  # `prepare` may have answered a lot
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    encoder = msgspec.json.Encoder()

    def tell(word: Said) -> None:
        out.write(encoder.encode(word) + b"\n")
        out.flush()

    line = await told.readline()
    if not line:
        return 0
    order = msgspec.json.decode(line, type=Order)
    os.chdir(order.folder)
    sys.path.append(order.folder)
    try:
        tell(Done(await drive(order, told, tell)))
    except (EOFError, BrokenPipeError):
        return 1
    return 0


def main() -> int:
    import uvloop

    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a scenario prints is for people, not for the harness
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)  # a socket a listener
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the harness ends us by closing our standard input
    return uvloop.run(serve(out))


if __name__ == "__main__":
    sys.exit(main())
