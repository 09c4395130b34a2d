"""Storms: every socket of a generator is cut at once, and all come back at once. How long until each has a position again, and what was lost.

Buses go on reporting meanwhile, and guests go on picking seats: a listener of the ordered seat channel comes back with `since`, and must have every
message once, over all its connections; or be told by a snapshot that it has not.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from bench.harness.calls import CONNECTIONS, Calls, request
from bench.harness.devices import register
from bench.harness.scenario import Measure, Option, Scenario, Share, Target
from bench.loads.city import Reporting
from bench.loads.ingest import MEASURE, all_said, drivers
from bench.loads.onsale import Sold, on_sale, sold_of
from bench.loads.roads import bus_ids, survey
from bench.loads.seats import SERVES
from bench.loads.socket import Socket, connect
from bench.loads.watch import Ages, Crowd, Ledger, Ordered, Wish, pushes, subscribe, until

SETTLE_S = 10.0
BACK_LIMIT_S = 60.0
PAUSE_S = 0.1  # of a client that was refused, before it tries again


class ReconnectStorm(Scenario):
    name = "reconnect-storm"
    summary = "all sockets are cut at once and come back, buses and guests go on"
    unit = "storms"
    rate: ClassVar[float] = 0.1
    options = (
        Option("watchers", 500, "sockets that watch a bus each"),
        Option("listeners", 50, "sockets that listen to the seats of one trip, and come back with `since`"),
        Option("buses", 50, "buses at 1 Hz"),
        Option("guests", 5.0, "guests a second who pick a seat and drop it again"),
        CONNECTIONS,
    )
    measures = (
        Measure("first", "from the cut until a watcher has a position again"),
        Measure("back", "from the cut until the socket stands again"),
        Measure("recovered", "from the cut until a listener has had its answer to `since`"),
        Measure("age", "age of the positions that watchers read"),
        MEASURE,
        *(Measure(call, "one call of a guest") for call in ("pick", "drop")),
    )
    needs = frozenset({"token"})
    serves: ClassVar[Mapping[str, str]] = SERVES

    def prepare(self, target: Target, options: Mapping[str, Any], rate: float, seed: int) -> Any:
        found: dict[str, Any] = {
            "city": msgspec.to_builtins(survey(target)),
            "tokens": register(target, bus_ids(int(options["buses"]))),
            "sold": msgspec.to_builtins(on_sale(target, 1)) if options["listeners"] else [],
        }
        return found

    async def drive(self, share: Share) -> None:
        ledger = Ledger(share)
        storm = Storm(share, ledger)
        reporting = await Reporting.open(share, drivers(share), ledger)
        beside = [asyncio.create_task(report(reporting, share))]
        sold = sold_of(share.data["sold"])
        if sold and share.number == 0:
            beside.append(asyncio.create_task(pick(share, reporting.calls, sold[0])))
        try:
            await until(lambda: ledger.buses == len(reporting.buses), SETTLE_S)  # there is something to come back to
            await storm.crowd.open()
            async for moment in share.moments():
                storm.strike(moment)
        finally:
            for task in beside:
                task.cancel()
        await storm.over()
        await ledger.settle(SETTLE_S)
        await reporting.calls.rest()
        storm.crowd.close()

    def verify(self, target: Target, data: Any, counts: Mapping[str, int]) -> list[str]:
        wrong = all_said(data, counts)
        if not counts.get("cut"):
            wrong.append("no socket was cut")
        if counts.get("came back", 0) < counts.get("cut", 0):
            wrong.append(f"{counts.get('cut')} sockets were cut, {counts.get('came back', 0)} came back")
        return wrong


class Storm:
    """The sockets of one generator."""

    def __init__(self, share: Share, ledger: Ledger) -> None:
        self.share, self.ages = share, Ages(share, {"bus": "age"}, ledger)
        names = list(share.data["tokens"])
        watchers, listeners = (int(share.options[name]) for name in ("watchers", "listeners"))
        wishes = [Wish([subscribe(f"bus:{names[at % len(names)]}")], "bus") for at in range(share.number, watchers, share.of)]
        for _ in range(share.number, listeners if share.data["sold"] else 0, share.of):
            wishes.append(Wish([subscribe(self.seats)], "seats", ordered=Ordered(share)))
        self.crowd = Crowd(share, wishes, self.heard, self.granted)
        self._coming: set[asyncio.Task[None]] = set()

    @property
    def seats(self) -> str:
        return f"seats:{self.share.data['sold'][0]['trip_id']}"

    def strike(self, moment: float) -> None:
        """All at once."""
        for at, socket in enumerate(self.crowd.sockets):
            wish: Wish = socket.mark
            if socket.transport is None or wish.open:
                continue  # still on its way back from the storm before
            socket.cut()
            wish.cut_s, wish.seen = moment, {}
            if wish.ordered is not None:
                wish.asks = [subscribe(self.seats, 1, wish.ordered.since)]
            wish.open = len(wish.asks)
            self.share.count("cut")
            task = asyncio.get_running_loop().create_task(self._come_back(at, wish))
            self._coming.add(task)
            task.add_done_callback(self._coming.discard)

    async def _come_back(self, at: int, wish: Wish) -> None:
        """As browsers do: again and again, each after a pause of its own."""
        limit_s, chance = time.monotonic() + BACK_LIMIT_S, random.Random(self.share.seed + at)
        while time.monotonic() < limit_s:
            made = Socket(self.crowd.hello, self.crowd.hear, self.crowd.lost, wish)
            try:
                self.crowd.sockets[at] = await connect(self.crowd.address, made)
            except (OSError, TimeoutError):
                self.share.count("tried again")
                await asyncio.sleep(PAUSE_S * (0.5 + chance.random()))
                continue
            self.share.note("back", time.monotonic() - wish.cut_s)
            self.crowd.ask(made)
            return
        self.share.fault("never came back")

    def granted(self, socket: Socket) -> None:
        if socket.mark.ordered is not None:
            self._is_back(socket.mark, "recovered")

    def _is_back(self, wish: Wish, measure: str) -> None:
        if wish.cut_s:
            self.share.note(measure, time.monotonic() - wish.cut_s)
            self.share.count("came back")
            wish.cut_s = 0.0

    def heard(self, socket: Socket, payload: bytes) -> None:
        wish: Wish = socket.mark
        if wish.ordered is None:
            self._is_back(wish, "first")
            self.ages.heard(socket, payload)
        else:
            for push in pushes(payload):
                wish.ordered.message(push)

    async def over(self) -> None:
        """All are back, and every listener has heard the last message."""
        await until(lambda: not self._coming and not any(socket.mark.cut_s for socket in self.crowd.sockets), SETTLE_S)
        heard = [socket.mark.ordered for socket in self.crowd.sockets if socket.mark.ordered is not None]
        await until(lambda: len({one.offset for one in heard}) <= 1, SETTLE_S)
        for _ in range(sum(one.offset < max(other.offset for other in heard) for one in heard)):
            self.share.fault("missed the last messages")
        for task in list(self._coming):
            task.cancel()


async def report(reporting: Reporting, share: Share) -> None:
    """Buses at 1 Hz, until it is cancelled: the rate of the run counts storms."""
    due_s = time.monotonic()
    while reporting.buses:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        reporting.send(due_s)
        due_s += 1 / len(reporting.buses)


async def pick(share: Share, calls: Calls, trip: Sold) -> None:
    """Guests who pick a seat and drop it, until it is cancelled: something to miss on the seat channel."""
    path, turn, due_s = f"/v1/trips/{trip.trip_id}/picks", 0, time.monotonic()
    while float(share.options["guests"]) > 0:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        due_s += 1 / float(share.options["guests"])
        wish = {"seats": [trip.seats[turn % len(trip.seats)]], "from": trip.stops[0], "to": trip.stops[1]}
        turn += 1

        def picked(status: int, body: bytes) -> None:
            if status == 201:
                made = msgspec.json.decode(body)["pickId"]
                calls.send(time.monotonic(), request("DELETE", f"{path}/{made}", host=calls.host), "drop")

        calls.send(time.monotonic(), request("POST", path, wish, host=calls.host), "pick", picked)
