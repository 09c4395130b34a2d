"""Ingest side by side: the same devices POST to Timepoint, to FastAPI with pydantic, and to floors, in turn and again.

One fix a request, then a hundred, at one rate from kept connections. Timepoint accepts as it always does (limits, token, whose bus it is, one
XADD for what gathered) with its tracking elsewhere; FastAPI validates and keeps nothing; the asyncio floor decodes and answers; the ASGI floor does
not even read. CPU of the server's process alone; Redis beneath Timepoint is told beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench import door, load
from bench.lanes import Lanes, Script, request
from bench.network.feed import write_feed
from bench.peers import fastapi
from bench.peers.place import Missing, Running, serving, some_port
from bench.product import CHECKOUT, Product

TURNS = 3
BATCH = 100
LANES = 100


class Figures(msgspec.Struct, kw_only=True):
    """Of one server. `request_us`, `fix_us`: medians of the turns, of requests with one fix and of a fix among a hundred; None: not measured."""

    name: str
    version: str
    request_us: float
    fix_us: float | None
    beneath_us: float = 0.0  # Redis, a request with one fix
    refused: dict[str, int] = {}


class Stage(NamedTuple):
    name: str
    version: str
    running: Running
    path: str
    many: str  # "": it takes no batches
    beneath: Running | None = None


class Senders(NamedTuple):
    """Buses with their tokens, and the token of a gateway that may speak for the first hundred."""

    tokens: dict[str, str]
    gateway: str


def measure(rate: int, seconds: float, told: Callable[[str], None]) -> tuple[list[Figures], dict[str, str]]:
    """Figures of each server (Timepoint first), and why others could not be had. `rate`: requests a second with one fix."""
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        told("Timepoint: starting")
        stage, senders = stack.enter_context(_timepoint())
        stages = [stage, stack.enter_context(_asyncio_floor()), stack.enter_context(_asgi_floor())]
        try:
            peer = fastapi.peer()
            told(f"{peer.name} {peer.version}: starting")
            running = stack.enter_context(peer.start())
            stages.append(Stage(peer.name, peer.version, running, "/ingest/telemetry", peer.path))
        except Missing as fault:
            missing["fastapi"] = str(fault)
        return asyncio.run(_in_turn(stages, senders, rate, seconds, told)), missing


async def _in_turn(stages: list[Stage], senders: Senders, rate: int, seconds: float, told: Callable[[str], None]) -> list[Figures]:
    single: dict[str, list[float]] = {stage.name: [] for stage in stages}
    many: dict[str, list[float]] = {stage.name: [] for stage in stages}
    beneath: dict[str, list[float]] = {stage.name: [] for stage in stages}
    refused: dict[str, dict[str, int]] = {stage.name: {} for stage in stages}
    for turn in range(TURNS):
        told(f"turn {turn + 1} of {TURNS}")
        for stage in stages if turn % 2 == 0 else stages[::-1]:
            us, below, bad = await _play(stage, lambda lane, stage=stage: _one_fix(stage, senders, lane), rate, seconds)  # type: ignore[misc]
            single[stage.name].append(us)
            beneath[stage.name].append(below)
            refused[stage.name] |= bad
            if stage.many:
                us, _, bad = await _play(stage, lambda lane, stage=stage: _hundred(stage, senders, lane), rate / 20, seconds / 2)  # type: ignore[misc]
                many[stage.name].append(us / BATCH)
                refused[stage.name] |= bad
    return [
        Figures(
            name=stage.name, version=stage.version, request_us=statistics.median(single[stage.name]),
            fix_us=statistics.median(many[stage.name]) if many[stage.name] else None, beneath_us=statistics.median(beneath[stage.name]),
            refused=refused[stage.name],
        )
        for stage in stages
    ]  # fmt: skip


async def _play(stage: Stage, script: Callable[[int], Script], rate: float, seconds: float) -> tuple[float, float, dict[str, int]]:
    """(CPU us of the server a good answer, of what is beneath it, refusals)."""
    lanes = Lanes(stage.running.port, LANES, script)
    await lanes.open()
    await lanes.run(1.0, rate)
    began = stage.running.cpu_s(), stage.beneath.cpu_s() if stage.beneath else 0.0
    tally = await lanes.run(seconds, rate)
    spent = stage.running.cpu_s() - began[0], (stage.beneath.cpu_s() if stage.beneath else 0.0) - began[1]
    lanes.close()
    good = max(1, tally.good("post"))
    return spent[0] / good * 1e6, spent[1] / good * 1e6, tally.bad()


def _one_fix(stage: Stage, senders: Senders, lane: int) -> Script:
    bus_id, token = list(senders.tokens.items())[lane % len(senders.tokens)]
    for seq in itertools.count(time.time_ns() // 1_000_000 % 1_000_000_000):
        yield "post", request("POST", stage.path, door.telemetry(bus_id, seq), Authorization=f"Bearer {token}")
        yield None


def _hundred(stage: Stage, senders: Senders, lane: int) -> Script:
    bus_ids = list(senders.tokens)[:BATCH]
    for seq in itertools.count(time.time_ns() // 1_000_000 % 1_000_000_000 + lane):
        body = b"[" + b",".join(door.telemetry(bus_id, seq) for bus_id in bus_ids) + b"]"
        yield "post", request("POST", stage.many, body, Authorization=f"Bearer {senders.gateway}")
        yield None


@contextlib.contextmanager
def _timepoint() -> Iterator[tuple[Stage, Senders]]:
    with tempfile.TemporaryDirectory() as made:
        feed = Path(made) / "demo.zip"
        write_feed(feed, date.today())
        with Product(feed=feed) as product:
            given = argparse.Namespace(info=Path(made) / "none", url=f"http://127.0.0.1:{product.port}", token=product.token,
                                       pids=f"engine={product.pid}", feed=feed)  # fmt: skip
            engine = load.Product(given)
            tokens = engine.devices([f"peer-{number}" for number in range(LANES)])
            gateway = engine.gateway(list(tokens))
            time.sleep(5)  # credentials are good within that
            beneath = Running(0, (product.redis.pid or 0,))
            yield (
                Stage(
                    "Timepoint", "this checkout", Running(product.port, (product.pid,)), "/ingest/telemetry", "/ingest/telemetry", beneath
                ),
                Senders(tokens, gateway),
            )


@contextlib.contextmanager
def _asyncio_floor() -> Iterator[Stage]:
    port = some_port()
    with serving([sys.executable, "-m", "bench.door", "--floor", str(port)], port, where=CHECKOUT) as running:
        yield Stage("asyncio floor", "one protocol on uvloop, msgspec", running, "/ingest/telemetry", "")


@contextlib.contextmanager
def _asgi_floor() -> Iterator[Stage]:
    port = some_port()
    with serving([sys.executable, "-m", "bench.floor", str(port)], port, where=CHECKOUT) as running:
        yield Stage("bare ASGI on uvicorn", "bodies unread", running, "/ingest/telemetry", "/ingest/telemetry")
