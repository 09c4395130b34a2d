"""Many watchers of one bus: how long from the moment an update is meant to be published until a watcher has read it; and what readers that
stall do to the others.

Every generator drives one bus by posting its fixes, and every watcher listens to the buses of all generators: whoever publishes, all hear it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from bench.harness import processes
from bench.harness.calls import Calls, opening, request, whole
from bench.harness.devices import register
from bench.harness.result import Result
from bench.harness.scenario import Measure, Option, Scenario, Share, Target
from bench.loads.ingest import all_said, counted, took_all
from bench.loads.roads import Bus, Town, city_of, survey
from bench.loads.socket import Socket
from bench.loads.watch import Ages, Crowd, Ledger, Wish, subscribe

SPEAKERS_MAX = 16  # generators that can have a bus of their own
SETTLE_S = 5.0
FANOUT = Measure("fanout", "from the moment a fix is meant to be posted until a watcher has read it")
SMALL_BYTES = 4096  # receive buffer of a stalled reader: what the product must keep, the kernel cannot hide


def prepared(target: Target) -> dict[str, Any]:
    return {"city": _one_way(target), "tokens": register(target, [f"load-fan-{number}" for number in range(SPEAKERS_MAX)])}


def _one_way(target: Target) -> dict[str, Any]:
    """One line is enough."""
    city = survey(target)
    way = max(city.ways, key=lambda way: way.stops_m[-1])
    return {
        "ways": [{"route_id": way.route_id, "line": way.line, "stops_m": way.stops_m, "stop_ids": way.stop_ids, "trips": way.trips}],
        "stop_ids": [], "box": city.box,
    }  # fmt: skip


class Speaker:
    """The bus of one generator."""

    def __init__(self, share: Share, ledger: Ledger) -> None:
        self.share, self.ledger = share, ledger
        self.names = list(share.data["tokens"])[: share.of]
        if share.number >= SPEAKERS_MAX:
            raise ValueError(f"{SPEAKERS_MAX} generators at most")
        self.bus = Bus(Town(city_of(share.data["city"])), share.number, self.names[share.number])

    async def speak(self) -> None:
        """To the end of the run."""
        share, bus_id = self.share, self.bus.bus_id
        calls = await Calls.open(share, 4)
        head = opening("POST", "/ingest/telemetry", host=calls.host, token=share.data["tokens"][bus_id])
        async for moment in share.moments():
            at_ms = share.epoch_ms(moment)

            def heard(status: int, body: bytes, at_ms: int = at_ms) -> None:
                counted(share, status, body, 1)
                if took_all(status, body):
                    self.ledger.accepted(bus_id, at_ms)

            share.count("sent")
            calls.send(moment, whole(head, self.bus.fix(moment, at_ms)), "ingest", heard)
        await calls.rest()


def part(share: Share, whole: int) -> int:
    """This generator's part of so many sockets."""
    return whole // share.of + (share.number < whole % share.of)


def watchers_of(share: Share) -> int:
    """This generator's part of the watchers. Where callers are timed beside them, the first of several generators does that, with one watcher of
    its bus and no more: in the loop that reads a crowd's frames an answer waits for up to a thousand of them."""
    whole = int(share.options["watchers"])
    if not has_callers_apart(share):
        return part(share, whole)
    others, rest = share.of - 1, max(0, whole - 1)
    return min(1, whole) if share.number == 0 else rest // others + (share.number <= rest % others)


def has_callers_apart(share: Share) -> bool:
    return share.of > 1 and float(share.options["reads"]) > 0


class Fanout(Scenario):
    name = "fanout"
    summary = "many watchers of one bus that reports often"
    unit = "updates"
    rate: ClassVar[float] = 5.0
    options = (
        Option("watchers", 1000, "sockets that listen"),
        Option("stalled", 0, "sockets more, that read nothing after the first message"),
        Option("reads", 0.0, "requests a second beside, all generators together: how long a caller waits while all are told"),
    )
    measures = (FANOUT, Measure("ingest", "until the post is answered"), Measure("read", "until a request beside is answered"))
    needs = frozenset({"token"})

    def prepare(self, target: Target, options: Mapping[str, Any], rate: float, seed: int) -> Any:
        return prepared(target)

    async def drive(self, share: Share) -> None:
        ledger = Ledger(share)
        speaker = Speaker(share, ledger)
        asks = [subscribe(f"bus:{name}", number + 1) for number, name in enumerate(speaker.names)]
        stalled = Stalled(share, [Wish(asks, "stalled") for _ in range(part(share, int(share.options["stalled"])))])
        crowd = Crowd(
            share,
            [Wish(asks, "bus") for _ in range(watchers_of(share))],
            Ages(share, {"bus": "fanout"}, ledger).heard,
        )
        await stalled.open()
        await crowd.open()
        reading = asyncio.create_task(read(share, f"/v1/buses/{speaker.names[0]}/location"))
        try:
            await speaker.speak()
        finally:
            reading.cancel()
        await ledger.settle(SETTLE_S)
        crowd.close()
        stalled.close()

    def verify(self, target: Target, data: Any, counts: Mapping[str, int]) -> list[str]:
        wrong = all_said(data, counts)
        if counts.get("accepted") and not counts.get("delivered"):
            wrong.append("fixes were accepted, and nobody who watches heard of one")
        return wrong


async def read(share: Share, path: str) -> None:
    """So many requests a second, until it is cancelled; they begin with the run."""
    rate = float(share.options["reads"])
    if rate <= 0 or (has_callers_apart(share) and share.number > 0):
        return
    due_s = await share.begun() + 1.0  # the bus has reported by then
    calls = await Calls.open(share, 8)
    data = request("GET", path, host=calls.host)
    while True:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        calls.send(due_s, data, "read")
        due_s += 1 / rate


class SlowClient(Fanout):
    name = "slow-client"
    summary = "watchers of one bus beside readers that stall: what the others notice, what a stalled one costs"
    rate: ClassVar[float] = 20.0
    options = (Option("watchers", 800, "sockets that listen"), Option("stalled", 200, Fanout.options[1].meaning), Fanout.options[2])

    def verify(self, target: Target, data: Any, counts: Mapping[str, int]) -> list[str]:
        wrong = super().verify(target, data, counts)
        if not counts.get("stalled"):
            wrong.append("not one reader stalled: there is nothing to compare")
        return wrong

    def figures(self, result: Result) -> dict[str, float]:
        """Memory of the product that came with the stalled readers, while their buffers filled up: KB each."""
        grown_kb = sum(max(0, kb[-1] - kb[0]) for name, kb in result.server.memory_kb.items() if processes.ours(name))
        stalled = int(result.options["stalled"])
        return {"stalled_kb": grown_kb / stalled} if stalled and result.server.memory_kb else {}


class Stalled:
    """Readers with small windows that stop reading once they are there. A server cuts them off in the end: counted."""

    def __init__(self, share: Share, wishes: list[Wish]) -> None:
        self.share = share
        self.crowd = Crowd(share, wishes, self._heard)
        self.crowd.lost = self._cut_off  # type: ignore[method-assign]

    async def open(self) -> None:
        await self.crowd.open(rcvbuf=SMALL_BYTES)
        for socket in self.crowd.sockets:
            socket.transport.pause_reading()
        self.share.count("stalled", len(self.crowd.sockets))

    def _heard(self, socket: Socket, payload: bytes) -> None:
        """What it had received before it stalled."""

    def _cut_off(self, socket: Socket) -> None:
        if not self.crowd.closing:
            self.share.count("cut off")

    def close(self) -> None:
        self.crowd.close()
