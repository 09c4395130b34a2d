"""The six axes of bench/growth.py: each measures its points from small to large on a product of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import random
import statistics
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import msgspec
import uvloop

from bench import sold
from bench.crowd import CrowdProcess
from bench.harness import catalogue, target
from bench.harness.run import Plan, run
from bench.harness.schedule import Schedule
from bench.lanes import Lanes, Script, request
from bench.load import percentile
from bench.peers.place import Running
from bench.product import Area, Product

RATES: Final = (5, 15, 50, 150, 500, 1500, 5000)
CROWDS: Final = (10, 30, 100, 300, 1000, 3000, 10_000)
FENCES: Final = (1, 10, 100, 1000)
TRIPS: Final = (3, 30, 300, 3000)
ROWS: Final = (1, 4, 16, 64)  # of four seats; a layout has no more rows
CALLERS: Final = 8


class Point(msgspec.Struct, kw_only=True):
    """`us`: CPU of each process a unit of work; `cores`: how busy each was; `per_s`: units that were done a second."""

    x: float
    us: dict[str, float]
    p99_ms: float
    per_s: float = 0.0
    cores: dict[str, float] = {}

    @property
    def unit_us(self) -> float:
        return sum(self.us.values())


class Axis(NamedTuple):
    title: str
    label: str
    about: str
    measure: Callable[[], Iterable[Point]]
    in_us: bool = False  # its p99 is plotted in microseconds
    in_rounds: bool = False  # its p99 is of a round to all, which grows with them of itself


# -- fixes -------------------------------------------------------------------------------------------------------------------------------


def fixes() -> Iterator[Point]:
    """`mixed-city` without passengers: as many buses as fixes a second, one fix a request, 50 watchers, one of the whole fleet."""
    kind = catalogue.find("mixed-city")
    options = {one.name: one.default for one in kind.options} | {"watchers": 50, "maps": 2, "fleets": 1, "reads": 0.0, "bookings": 0.0}
    with target.find(kind, {}, own=True) as found:
        for rate in RATES:
            schedule = Schedule(rate=float(rate), hold_s=6.0, warm_up_s=3.0)
            plan = Plan(scenario="mixed-city", schedule=schedule, options=options, drain_s=5.0, lag_limit_s=10.0)
            result = uvloop.run(run(plan, found, lambda seen: None))
            done = max(1, result.counts.get("accepted", 0))
            spent: dict[str, float] = {}
            for name, cpu_s in result.server.cpu_s.items():
                if name != "supervisor":
                    name = name.partition("-")[0]
                    spent[name] = spent.get(name, 0.0) + cpu_s
            cores = {name: cpu_s / result.seconds for name, cpu_s in spent.items()} | {
                "generator": result.generators.cpu_s / schedule.end_s
            }
            age = result.measures.get("age")
            late_ms = age.p99_s * 1e3 if age and age.count else schedule.hold_s * 1e3  # where nobody heard of one: at least that
            yield Point(
                x=rate, us={name: cpu_s / done * 1e6 for name, cpu_s in spent.items()}, p99_ms=late_ms,
                per_s=done / result.seconds, cores=cores,
            )  # fmt: skip


# -- watchers, channels --------------------------------------------------------------------------------------------------------------------


def watchers() -> Iterator[Point]:
    return _crowds(lambda area, size, at: area.say([area.position("b0", at)]), "bus:b0")


def channels() -> Iterator[Point]:
    return _crowds(_all_move, "bus:b#")


def _all_move(area: Area, size: int, at: int) -> None:
    """Every bus once, in commits of 50."""
    for start in range(0, size, 50):
        area.say([area.position(f"b{i}", at) for i in range(start, min(size, start + 50))])


def _crowds(say: Callable[[Area, int, int], None], channel: str) -> Iterator[Point]:
    """Rounds of one update to each socket: as many as make 60,000 deliveries, at least eight."""
    with Product() as product, contextlib.closing(CrowdProcess(product.port)) as crowd:
        area, running = Area(product.redis), Running(0, (product.pid,))
        redis = Running(0, (product.redis.pid or 0,))
        there = 0
        for size in CROWDS:
            say(area, size, 0)
            time.sleep(0.5)
            crowd.tell("connect", size - there, channel)
            there = size
            time.sleep(6)  # replies and snapshots go out; the worker freezes the crowd
            rounds, late = max(8, min(60, 30_000 // size)), []
            began = running.cpu_s(), redis.cpu_s(), time.perf_counter()
            for at in range(1, rounds + 1):
                crowd.tell("expect")
                now = time.time()
                say(area, size, at)
                said = crowd.tell("report", now, size, 20)
                if said["frames"] < size:
                    raise RuntimeError(f"{said['frames']} of {size} deliveries")
                late.append(said["p99_ms"])
                time.sleep(0.02)
            took = time.perf_counter() - began[2]
            worker, beneath, done = running.cpu_s() - began[0], redis.cpu_s() - began[1], rounds * size
            yield Point(
                x=size, us={"worker": worker / done * 1e6, "redis": beneath / done * 1e6}, p99_ms=statistics.median(late), per_s=done / took,
                cores={"worker": worker / took, "redis": beneath / took},
            )  # fmt: skip


# -- fences --------------------------------------------------------------------------------------------------------------------------------


def fences() -> Iterator[Point]:
    """The steps of a fix, 200 buses about town, with so many fences of one operator; no I/O."""
    from bench.fences import HOME, drive, some_fences
    from engine.tracking.fences import FenceIndex
    from engine.tracking.rules import Rules
    from engine.tracking.vehicle import Area as Steps
    from engine.tracking.vehicle import VehicleState, advance

    buses = [list(drive(random.Random(number), f"b{number}", 90)) for number in range(200)]
    moves = [one for second in zip(*buses, strict=True) for one in second]
    for count in FENCES:
        area = Steps(None)
        area.rules = Rules(1, fences=FenceIndex([fence for fence, _ in some_fences(random.Random(5), count, HOME, 30_000)]))
        states = {f"b{number}": VehicleState(f"b{number}") for number in range(len(buses))}
        gc.collect()
        each: list[float] = []
        for number, fix in enumerate(moves):
            if number == len(moves) // 3:
                each, began = [], time.process_time()
            at = time.thread_time()  # what the fold itself takes, whoever else has the core meanwhile
            states[fix.bus_id], _ = advance(states[fix.bus_id], fix, area)
            each.append(time.thread_time() - at)
        us = (time.process_time() - began) / len(each) * 1e6
        yield Point(x=count, us={"fold": us}, p99_ms=percentile(sorted(each), 0.99) * 1e3)


# -- trips, seats --------------------------------------------------------------------------------------------------------------------------


def trips() -> Iterator[Point]:
    """Holds of three seats on ten trips, each let go, beside so many trips on which every seat is sold."""
    for full in TRIPS:
        yield _held(full, full=full, rows=50)


def seats() -> Iterator[Point]:
    """The same on buses with so many seats."""
    for rows in ROWS:
        yield _held(rows * 4, full=3, rows=rows)


HOT: Final = 10


def _held(x: float, *, full: int, rows: int) -> Point:
    with Product(durable=True, ROLES="api", RUSH_THRESHOLD_PER_S="0") as product:
        asyncio.run(sold.sell(product.postgres.admin_url, HOT, full=full, rows=rows))
        return asyncio.run(_play(product, x, rows))


async def _play(product: Product, x: float, rows: int) -> Point:
    lanes = Lanes(product.port, CALLERS, lambda lane: _holding(lane, sold.labels(rows)))
    await lanes.open()
    await lanes.run(2.0)
    parts = {"worker": product.pid, "postgres": product.postgres.pid or 0, "redis": product.redis.pid or 0}
    began, at = {name: Running(0, (pid,)).cpu_s() for name, pid in parts.items()}, time.perf_counter()
    tally = await lanes.run(6.0)
    took = time.perf_counter() - at
    spent = {name: Running(0, (pid,)).cpu_s() - began[name] for name, pid in parts.items()}
    lanes.close()
    good = tally.good("hold")
    if not good:
        raise RuntimeError(f"no hold was granted: {tally.refused[:1]}")
    return Point(
        x=x, us={name: cpu_s / good * 1e6 for name, cpu_s in spent.items()}, p99_ms=tally.p("hold", 0.99), per_s=good / took,
        cores={name: cpu_s / took for name, cpu_s in spent.items()},
    )  # fmt: skip


class _Held(msgspec.Struct, rename="camel"):
    id: str
    hold_token: str


def _holding(lane: int, names: list[str]) -> Script:
    """A guest on a trip of their own (the first ones share where there are few) who holds up to three seats and lets them go."""
    size = min(3, len(names))
    trip, read = lane % HOT + 1, msgspec.json.Decoder(_Held)
    for turn in itertools.count():
        start = turn * size % max(1, len(names) - size + 1)
        body = f'{{"seats":{json.dumps(names[start : start + size])},"from":"{sold.stop_id(0)}","to":"{sold.stop_id(sold.STOPS - 1)}"}}'
        path = f"/v1/trips/{sold.trip_id(trip)}/holds"
        status, said = yield "hold", request("POST", path, body.encode(), Idempotency_Key=uuid.uuid4())
        if status == 201:
            held = read.decode(said)
            yield "release", request("DELETE", f"/v1/holds/{held.id}", X_Hold_Token=held.hold_token, Idempotency_Key=uuid.uuid4())
        yield None


AXES: Final = {
    "fixes": Axis(
        "Fixes a second", "fixes/s", "Buses at 1 Hz, one fix a request, accepted, tracked, published and written; p99 is the age at a watcher. "
        "With few fixes most of it is the product at rest.", fixes
    ),
    "watchers": Axis("Watchers of one bus", "watchers", "One update to each; a unit is a delivery, p99 that of a round to all.", watchers, in_rounds=True),
    "channels": Axis(
        "Channels, a watcher each", "channels", "As many buses as watchers, all move at once; a unit is a delivery, p99 of a round.", channels, in_rounds=True
    ),
    "fences": Axis("Fences of an operator", "fences", "All steps of a fix with so many fences; a unit is a fix, p99 of one call.", fences, in_us=True),
    "trips": Axis("Sold-out trips beside", "trips of 200 seats", "A unit is a hold of three seats and its release; p99 of the hold, eight callers.", trips),
    "seats": Axis("Seats of a bus", "seats", "A unit is a hold of up to three seats and its release; p99 of the hold, eight callers.", seats),
}  # fmt: skip
