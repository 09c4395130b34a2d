"""Booking side by side: free seats taken and bookings made on Timepoint and on pretix by the same client, in turn and again.

A seat into a cart against a hold; an order with a seat, paid, against hold, book, initiate and confirm. As many callers at once on both, closed
loop, every seat once. CPU of the web processes and of PostgreSQL together (and Redis, where there is one): what a booking takes of a machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from bench import sold
from bench.booking import TRIPS, booking, free_seats
from bench.lanes import Lanes, Script, request
from bench.peers import pretix
from bench.peers.place import Missing, Running
from bench.product import Product

TURNS = 2


class Figures(msgspec.Struct, kw_only=True):
    """Of one shop and one thing. `us`: CPU of all its processes each; `web_us`: of the web process alone."""

    name: str
    version: str
    what: str
    us: float
    web_us: float
    rate: float
    p95_ms: float
    refused: dict[str, int] = {}


class Stage(NamedTuple):
    """One thing of one shop. `kind`: the call that counts."""

    name: str
    version: str
    what: str
    port: int
    web: Running
    others: Running
    script: Callable[[int], Script]
    kind: str
    call: str  # of the times: the slowest


def measure(callers: int, seconds: float, told: Callable[[str], None]) -> tuple[list[Figures], dict[str, str]]:
    """Figures in pairs, Timepoint first; why pretix could not be had."""
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        told("Timepoint: starting; selling trips")
        stages = stack.enter_context(_timepoint())
        try:
            told("pretix: starting")
            stages += stack.enter_context(_pretix())
        except Missing as fault:
            missing["pretix"] = str(fault)
        return asyncio.run(_in_turn(stages, callers, seconds, told)), missing


async def _in_turn(stages: list[Stage], callers: int, seconds: float, told: Callable[[str], None]) -> list[Figures]:
    found: dict[tuple[str, str], list[Figures]] = {(stage.name, stage.what): [] for stage in stages}
    for turn in range(TURNS):
        told(f"turn {turn + 1} of {TURNS}")
        for stage in stages if turn % 2 == 0 else stages[::-1]:
            found[stage.name, stage.what].append(await _play(stage, callers, seconds))
    return [
        msgspec.structs.replace(
            turns[0], us=statistics.median(one.us for one in turns), web_us=statistics.median(one.web_us for one in turns),
            rate=statistics.median(one.rate for one in turns), p95_ms=statistics.median(one.p95_ms for one in turns),
        )
        for turns in found.values()
    ]  # fmt: skip


async def _play(stage: Stage, callers: int, seconds: float) -> Figures:
    lanes = Lanes(stage.port, callers, stage.script)
    await lanes.open()
    await lanes.run(1.5)
    web, others, begun = stage.web.cpu_s(), stage.others.cpu_s(), time.perf_counter()
    tally = await lanes.run(seconds)
    took, web, others = time.perf_counter() - begun, stage.web.cpu_s() - web, stage.others.cpu_s() - others
    lanes.close()
    good = max(1, tally.good(stage.kind))
    return Figures(
        name=stage.name, version=stage.version, what=stage.what, us=(web + others) / good * 1e6, web_us=web / good * 1e6, rate=good / took,
        p95_ms=tally.p(stage.call, 0.95), refused=tally.bad(),
    )  # fmt: skip


@contextlib.contextmanager
def _timepoint() -> Iterator[list[Stage]]:
    with Product(durable=True, ROLES="api", RUSH_THRESHOLD_PER_S="0") as product:
        asyncio.run(sold.sell(product.postgres.admin_url, 2 * TRIPS))
        seats = free_seats()
        web, others = Running(product.port, (product.pid,)), Running(0, (product.postgres.pid or 0, product.redis.pid or 0))
        yield [
            Stage("Timepoint", "this checkout", "seat taken", product.port, web, others, lambda _: _holding(seats), "hold", "hold"),
            Stage("Timepoint", "this checkout", "booking paid", product.port, web, others, lambda _: booking(seats), "confirm", "confirm"),
        ]


def _holding(seats: Iterator[tuple[int, int, str]]) -> Script:
    """The first call of a booking alone."""
    for one in seats:
        whole = booking(iter([one]))
        yield next(whole)
        yield None


@contextlib.contextmanager
def _pretix() -> Iterator[list[Stage]]:
    with pretix.shop() as shop:
        seats = itertools.count()
        version = pretix.peer().version
        base = f"/api/v1/organizers/bench/events/{shop.slug}"
        head = {"Authorization": f"Token {shop.token}"}

        def cart(_: int) -> Script:
            for seat in seats:
                yield (
                    "cart",
                    request("POST", f"{base}/cartpositions/", f'{{"item":{shop.item},"seat":"s{seat}","price":"10.00"}}'.encode(), **head),
                )
                yield None

        def order(_: int) -> Script:
            for seat in seats:
                position = f'{{"item":{shop.item},"seat":"s{seat}","attendee_name_parts":{{"full_name":"Amal Benali"}}}}'
                body = f'{{"email":"amal@example.org","locale":"en","sales_channel":"web","status":"p","payment_provider":"manual","positions":[{position}]}}'
                yield "order", request("POST", f"{base}/orders/", body.encode(), **head)
                yield None

        yield [
            Stage("pretix", version, "seat taken", shop.running.port, shop.running, shop.postgres, cart, "cart", "cart"),
            Stage("pretix", version, "booking paid", shop.running.port, shop.running, shop.postgres, order, "order", "order"),
        ]
