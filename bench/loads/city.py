"""A city at work: buses that report once a second, people who watch them on maps and single buses, passengers who look up, search and book.

`mixed-city` says how old a fix is when a watcher has it, and how long the others wait meanwhile. `soak` is the same for half an hour and more: what
was accepted must have been seen by a watcher of its bus, or a newer fix in its place; and nothing may grow.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from bench.harness import processes
from bench.harness.calls import CONNECTIONS, Calls, opening, request, whole
from bench.harness.devices import register
from bench.harness.result import Result
from bench.harness.scenario import Measure, Option, Scenario, Share, Target
from bench.loads.ingest import BUSES, MEASURE, all_said, buses_of, counted, drivers, took_all
from bench.loads.onsale import on_sale, sold_of
from bench.loads.roads import Bus, bus_ids, city_of, survey
from bench.loads.seats import SERVES, Booking, Customers
from bench.loads.steadiness import drift, memory_slope
from bench.loads.watch import Ages, Crowd, Ledger, Wish, gathered, subscribe, until, view, watching

SETTLE_S = 8.0
VIEW_DEG = 0.04  # half the side of a map's view: a few kilometres
KINDS = {"bus": "age", "trip": "age", "route": "age_map", "fleet": "age_map", "bbox": "age_map", "check": "age_check"}
SEARCHES = ("departures", "nearby", "seats", "trip", "place")


class MixedCity(Scenario):
    name = "mixed-city"
    summary = "buses at 1 Hz, watchers of buses, trips, fleet and map, passengers who read and book"
    unit = "fixes"
    rate: ClassVar[float] = 500.0
    options = (
        BUSES,
        Option("watchers", 250, "sockets that watch a bus each (a tenth of them: its trip)"),
        Option("maps", 20, "sockets that watch a part of the map or a route"),
        Option("fleets", 5, "sockets of the operator that watch all its buses"),
        Option("reads", 0.04, "reads for each fix: departures, search, seats, a bus"),
        Option("bookings", 0.002, "bookings for each fix"),
        CONNECTIONS,  # for buses and passengers each
    )
    measures = (
        MEASURE,
        Measure("age", "until a watcher of its bus or trip has read it"),
        Measure("age_map", "until somebody who watches a route, a map or the fleet has read it"),
        Measure("read", "one read of a passenger"),
        *Booking.measures,
    )
    needs = frozenset({"token"})
    serves: ClassVar[Mapping[str, str]] = SERVES
    checked: ClassVar[bool] = False  # every fix is looked for

    def prepare(self, target: Target, options: Mapping[str, Any], rate: float, seed: int) -> Any:
        found: dict[str, Any] = {
            "city": msgspec.to_builtins(survey(target)), "tokens": register(target, bus_ids(buses_of(options, rate))),
            "fleet": target.partner, "token": target.token, "sold": [], "watched": any(options[name] for name in ("watchers", "maps", "fleets")),
        }  # fmt: skip
        if options["bookings"] > 0:
            found["sold"] = msgspec.to_builtins(on_sale(target, 20))
        return found

    async def drive(self, share: Share) -> None:
        buses, ledger = drivers(share), Ledger(share)
        ages = Ages(share, KINDS, ledger)
        crowd = Crowd(share, self._wishes(share, buses), ages.heard)
        await crowd.open()
        reporting = await Reporting.open(share, buses, ledger)
        passengers = await Passengers.open(share)
        async for moment in share.moments():
            reporting.send(moment)
            passengers.come(moment)
        await reporting.calls.rest()
        await passengers.rest()
        if self.checked:
            await ledger.settle(SETTLE_S)
        crowd.close()

    def _wishes(self, share: Share, buses: Sequence[Bus]) -> list[Wish]:
        """The sockets of this generator, for buses of all generators or, where every fix is looked for, of its own too."""
        chance, city, options = random.Random(share.seed), share.data["city"], share.options
        names = list(share.data["tokens"])

        def part(name: str) -> int:
            whole = int(options[name])
            return whole // share.of + (share.number < whole % share.of)

        count = part("watchers")
        trips = watching([f"trip:{bus.trip[0]}" for bus in buses[: count // 10]], "trip")
        single = watching([f"bus:{names[chance.randrange(len(names))]}" for _ in range(count - len(trips))], "bus")
        maps = []
        for number in range(part("maps")):
            if number % 2:
                maps += watching([f"route:{chance.choice(city['ways'])['route_id']}"], "route")
            else:
                lat, lon = chance.choice(chance.choice(city["ways"])["line"])
                maps.append(Wish([view((lon - VIEW_DEG, lat - VIEW_DEG, lon + VIEW_DEG, lat + VIEW_DEG))], "bbox"))
        fleets = [Wish([subscribe(f"fleet:{share.data['fleet']}")], "fleet", share.data["token"]) for _ in range(part("fleets"))]
        checks = gathered([f"bus:{bus.bus_id}" for bus in buses], "check") if self.checked else []
        return [*single, *trips, *maps, *fleets, *checks]

    def verify(self, target: Target, data: Any, counts: Mapping[str, int]) -> list[str]:
        wrong = all_said(data, counts)
        if data["watched"] and counts.get("accepted") and not counts.get("delivered"):
            wrong.append("fixes were accepted, and nobody who watches heard of one")
        return wrong


class Soak(MixedCity):
    name = "soak"
    summary = "mixed-city for long, every fix followed to a watcher of its bus"
    rate: ClassVar[float] = 300.0
    measures = (*MixedCity.measures, Measure("age_check", "until the watcher that looks for every fix of its bus has read it"))
    checked: ClassVar[bool] = True

    def verify(self, target: Target, data: Any, counts: Mapping[str, int]) -> list[str]:
        wrong = super().verify(target, data, counts)
        if counts.get("followed", 0) < counts.get("accepted", 0):
            wrong.append(f"{counts.get('accepted')} fixes were accepted, only {counts.get('followed', 0)} were followed")
        return wrong

    def figures(self, result: Result) -> dict[str, float]:
        """`memory_slope`: growth of the worker that grows most, % an hour; `age_drift`: of the age's p99 between the halves, %."""
        slopes = [memory_slope(result.series, name) for name in result.server.memory_kb if processes.ours(name)]
        found = {
            "memory_slope": max((slope for slope in slopes if slope is not None), default=None), "age_drift": drift(result.series, "age_check"),
        }  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}


class Reporting:
    """The buses of one generator: a post a fix, each with its device's token."""

    def __init__(self, share: Share, buses: Sequence[Bus], ledger: Ledger, calls: Calls) -> None:
        self.share, self.buses, self.ledger, self.calls = share, buses, ledger, calls
        tokens = share.data["tokens"]
        self._heads = [opening("POST", "/ingest/telemetry", host=calls.host, token=tokens[bus.bus_id]) for bus in buses]
        self._turn = 0

    @classmethod
    async def open(cls, share: Share, buses: Sequence[Bus], ledger: Ledger) -> Reporting:
        return cls(share, buses, ledger, await Calls.open(share))

    def send(self, moment: float) -> None:
        if not self.buses:
            return
        at = self._turn % len(self.buses)
        self._turn += 1
        bus, at_ms = self.buses[at], self.share.epoch_ms(moment)

        def heard(status: int, body: bytes) -> None:
            counted(self.share, status, body, 1)
            if took_all(status, body):
                self.ledger.accepted(bus.bus_id, at_ms)
                self.share.count("followed")

        self.share.count("sent")
        self.calls.send(moment, whole(self._heads[at], bus.fix(moment, at_ms)), "ingest", heard)


class Passengers:
    """Those of one generator: `reads` and `bookings` of them for each fix."""

    def __init__(self, share: Share, calls: Calls) -> None:
        self.share, self.calls = share, calls
        self.chance = random.Random(share.seed + 1)
        self.city, self.sold = city_of(share.data["city"]), sold_of(share.data["sold"])
        self.names = list(share.data["tokens"])
        self.customers = Customers(share, calls, self.sold)
        self._reads = self._bookings = 0.0

    @classmethod
    async def open(cls, share: Share) -> Passengers:
        return cls(share, await Calls.open(share))

    def come(self, moment: float) -> None:
        self._reads += float(self.share.options["reads"])
        while self._reads >= 1:
            self._reads -= 1
            self.calls.send(moment, request("GET", self._path(), host=self.calls.host), "read", self._read)
        self._bookings += float(self.share.options["bookings"])
        while self._bookings >= 1:
            self._bookings -= 1
            self.customers.come(moment)

    def _path(self) -> str:
        chance, what = self.chance, self.chance.choice(SEARCHES)
        if what == "seats" and self.sold:
            return f"/v1/trips/{chance.choice(self.sold).trip_id}/seats"
        if what == "nearby":
            lat, lon = chance.choice(chance.choice(self.city.ways).line)
            return f"/v1/stops?near={lat:.3f},{lon:.3f}&radius=500"
        if what == "place":
            return f"/v1/buses/{chance.choice(self.names)}/location"
        if what == "trip":
            return f"/v1/trips/{chance.choice(chance.choice(self.city.ways).trips)[0]}"
        return f"/v1/stops/{chance.choice(self.city.stop_ids)}/departures"

    def _read(self, status: int, body: bytes) -> None:
        if status == 200:
            self.share.count("read")
        elif status == 404:
            self.share.count("not there")  # a bus that has not reported yet
        else:
            self.share.fault(f"read {status}")

    async def rest(self) -> None:
        await until(lambda: not self.customers.under_way, SETTLE_S)
        await self.calls.rest()
