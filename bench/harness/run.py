"""One run: set up, generators, the load, what it cost, and whether it is evidence.

    prepare -> generators connect -> start -> warm-up, ramp, hold -> drain -> verify -> Result

A run whose generators lagged says nothing about the product and is refused (`Result.refused`): their own lateness stands inside every latency.
The limit is 25 ms at the 99th percentile of the hold, ten times what an idle machine shows, unless the caller sets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from bench.harness import catalogue, machine
from bench.harness.beat import Beat, Done, Order, Ready, Said, Start
from bench.harness.result import Generators, Result, Second
from bench.harness.schedule import Schedule
from bench.harness.servers import TRACKED, Watch
from bench.harness.tally import Tally
from bench.harness.target import Deployment

LAG_LIMIT_S: Final = 0.025
DRAIN_S: Final = 20.0  # an answer that takes longer is a fault; sequence checks at the end need some of it
CONNECT_LIMIT_S: Final = 120.0
LEAD_S: Final = 0.2  # from the word to the start: every generator has read it by then
LINE_MAX: Final = 1 << 26


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for."""

    scenario: str  # as catalogue.find takes it
    schedule: Schedule
    options: dict[str, Any]
    processes: int = 1
    seed: int = 1
    drain_s: float = DRAIN_S
    lag_limit_s: float = LAG_LIMIT_S


class Seen(msgspec.Struct, kw_only=True):
    """What a live view is told, once a second and at every step."""

    step: str  # "preparing", "connecting", "running", "draining", "verifying"
    at_s: float = 0.0  # of the run
    second: Second | None = None
    tally: Tally | None = None


View = Callable[[Seen], None]


class Generator:
    """One generator process, from outside."""

    def __init__(self, number: int, process: asyncio.subprocess.Process) -> None:
        self.number, self.process = number, process
        self.ready, self.done = asyncio.Event(), asyncio.Event()
        self.why = ""

    async def listen(self, tally: Tally) -> None:
        """Takes what it says until it ends."""
        assert self.process.stdout is not None
        finished = False
        try:
            while line := await self.process.stdout.readline():
                said = msgspec.json.decode(line, type=Said)
                if isinstance(said, Beat):
                    tally.add(self.number, said)
                elif isinstance(said, Ready):
                    self.ready.set()
                else:
                    assert isinstance(said, Done)
                    finished, self.why = True, said.why
        finally:
            if not finished:
                self.why = "it ended without a word; its complaint stands above"
            self.ready.set()
            self.done.set()

    def tell(self, word: msgspec.Struct) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self.process.stdin.write(msgspec.json.encode(word) + b"\n")


@asynccontextmanager
async def generators(orders: list[Order], tally: Tally) -> AsyncIterator[list[Generator]]:
    """They run as long as the block does."""
    found, listening = [], []
    try:
        for order in orders:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "bench.harness.generator",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_MAX, cwd=machine.CHECKOUT,
            )  # fmt: skip
            one = Generator(order.number, process)
            found.append(one)
            listening.append(asyncio.create_task(one.listen(tally)))
            one.tell(order)
        yield found
    finally:
        for one in found:
            assert one.process.stdin is not None
            one.process.stdin.close()
        for one in found:
            try:
                await asyncio.wait_for(one.process.wait(), 5)
            except TimeoutError:
                one.process.kill()
                await one.process.wait()
        await asyncio.gather(*listening, return_exceptions=True)


async def run(plan: Plan, target: Deployment, view: View) -> Result:
    """Raises CallFailed where the product cannot be set up for it, ValueError where the plan makes no sense."""
    kind = catalogue.find(plan.scenario)
    scenario, schedule = kind(), plan.schedule
    before = machine.described()
    view(Seen(step="preparing"))
    data = await asyncio.to_thread(scenario.prepare, target, plan.options, schedule.rate, plan.seed)
    tally, watch = Tally(schedule), Watch(target)
    orders = [
        Order(
            scenario=plan.scenario, number=number, of=plan.processes, seed=plan.seed, url=target.url, data=data, options=plan.options,
            schedule=schedule, drain_s=plan.drain_s, folder=os.getcwd(),
        )
        for number in range(plan.processes)
    ]  # fmt: skip
    async with generators(orders, tally) as crowd:
        view(Seen(step="connecting"))
        failed = await _connected(crowd)
        started_at, began_s = datetime.now(UTC), time.monotonic() + LEAD_S
        if not failed:
            for one in crowd:
                one.tell(Start(began_s))
            await _watched(plan, crowd, tally, watch, began_s, view)
    view(Seen(step="verifying"))
    broken = [] if failed else await asyncio.to_thread(scenario.verify, target, data, tally.whole)
    lag = tally.lag
    refused = failed or _refusal(plan, crowd, lag.percentile(0.99))
    result = Result(
        scenario=kind.name, title=kind.summary, unit=kind.unit, started_at=started_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=schedule.hold_s, seed=plan.seed, rate=schedule.rate, offered=round(schedule.offered(schedule.hold_from_s, schedule.end_s)),
        options=plan.options, machine=before, product=await asyncio.to_thread(watch.product), measures=tally.measures(kind.measures),
        counts=tally.counts, faults=tally.faults, broken=broken, series=series(tally, watch), server=watch.spent(),
        generators=Generators(
            processes=plan.processes, cpu_s=sum(tally.cpu_s.values()), lag_p99_s=lag.percentile(0.99), lag_max_s=lag.max_s,
            lagged=lag.percentile(0.99) > plan.lag_limit_s, why=refused,
        ),
        refused=refused,
    )  # fmt: skip
    if tracked := result.server.metrics.get(TRACKED):  # a product that falls behind has accepted what it did not yet do
        result.counts["tracked"] = round(tracked)
    if not failed:
        result.figures = scenario.figures(result)
    return result


def _refusal(plan: Plan, crowd: list[Generator], lag_p99_s: float) -> str:
    """Why this run says nothing about the product; "" where it does."""
    if died := next((f"generator {one.number}: {one.why}" for one in crowd if one.why), ""):
        return died
    if lag_p99_s <= plan.lag_limit_s:
        return ""
    return (
        f"the generators began work {lag_p99_s * 1000:.0f} ms late (99th percentile; at most {plan.lag_limit_s * 1000:.0f}): more --processes, "
        "less --rate, fewer others on this machine, or a scenario that does not wait between its moments"
    )


async def _connected(crowd: list[Generator]) -> str:
    """Waits until all can begin; answers why not."""
    try:
        await asyncio.wait_for(asyncio.gather(*(one.ready.wait() for one in crowd)), CONNECT_LIMIT_S)
    except TimeoutError:
        return f"a generator was not ready after {CONNECT_LIMIT_S:.0f} s"
    return next((f"generator {one.number}: {one.why}" for one in crowd if one.done.is_set()), "")


async def _watched(plan: Plan, crowd: list[Generator], tally: Tally, watch: Watch, began_s: float, view: View) -> None:
    """Looks at the servers at the edges of every second, until the generators are done. A product that answers late delays no look at processes."""
    schedule, second, phase = plan.schedule, 0, ""
    all_done = asyncio.gather(*(one.done.wait() for one in crowd))
    last_s = schedule.end_s + plan.drain_s + 5
    asked: list[asyncio.Future[None]] = []
    with ThreadPoolExecutor(1) as asking:
        while True:
            wait_s = began_s + second - time.monotonic()
            if wait_s > 0:
                await asyncio.wait({all_done}, timeout=wait_s)
            if all_done.done() or time.monotonic() - began_s > last_s:
                break
            before, phase = phase, schedule.phase(second)
            await asyncio.to_thread(watch.look, second)
            if phase != before and phase in ("hold", "drain"):
                asked.append(asyncio.get_running_loop().run_in_executor(asking, watch.edge, second))
            elif all(one.done() for one in asked):
                asked = [asyncio.get_running_loop().run_in_executor(asking, watch.ask, second)]
            newest = tally.second(second - 2) if second >= 2 else None  # the one before this is not all here yet
            if newest is not None:
                newest.cpu = watch.cores(second - 2)
            step = "running" if second < schedule.end_s else "draining"
            view(Seen(step=step, at_s=float(second), second=newest, tally=tally))
            second = max(second + 1, int(time.monotonic() - began_s))
        if phase == "hold":  # they were done before this tick
            await asyncio.to_thread(watch.look, second)
            asked.append(asyncio.get_running_loop().run_in_executor(asking, watch.edge, second))
        await asyncio.gather(*asked)
    all_done.cancel()


def series(tally: Tally, watch: Watch) -> list[Second]:
    """Every second of the schedule, with what the servers spent in it."""
    found = []
    for at in range(int(tally.schedule.end_s)):
        second = tally.second(at)
        second.cpu, second.memory_kb, second.loop_lag_s = watch.cores(at), watch.memory_kb(at), watch.loop_lag_s(at)
        found.append(second)
    return found
