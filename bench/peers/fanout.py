"""Fan-out side by side: the same crowd on Timepoint and on each peer, in turn and again, CPU of the server a delivery as the kernel counts it.

Every server has its own crowd of the same size at the same time; one of them speaks while the others rest, turn after turn, so that whatever else
the machine does meets all alike. The bytes are those of Timepoint's own update. What stands in front differs: Timepoint hears numbered batches
through Redis, decodes them, knows who listens to what and frames the update; a peer is POSTed the ready text.
"""

from __future__ import annotations

import contextlib
import http.client
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from bench.crowd import CrowdProcess
from bench.peers import epoll, nchan, socketify, ws
from bench.peers.place import Missing, Peer, Running
from bench.product import Area, Product

PEERS: dict[str, Callable[[], Peer]] = {"nchan": nchan.peer, "ws": ws.peer, "socketify": socketify.peer, "epoll": epoll.peer}
SETTLE_S = 8.0  # Timepoint looks every 5 s whether a crowd came, collects and freezes


class Figures(msgspec.Struct, kw_only=True):
    """Of one server. `delivery_us`: of a frame to one socket, the median of its turns; `late_ms`: p99 of a round."""

    name: str
    version: str
    delivery_us: float
    turns_us: list[float]
    late_ms: float
    handshake_us: float
    socket_kb: float
    bytes: int
    updates: int = 1  # in a frame

    @property
    def update_us(self) -> float:
        return self.delivery_us / self.updates


class Stage(NamedTuple):
    """One server with its crowd in front of it."""

    name: str
    version: str
    running: Running
    crowd: CrowdProcess
    say: Callable[[int], None]
    handshake_us: float
    socket_kb: float
    updates: int = 1


def measure(
    sockets: int, rounds: int, turns: int, pause_s: float, told: Callable[[str], None], peers: Iterable[str] = PEERS
) -> tuple[list[Figures], dict[str, str]]:
    """Figures of Timepoint (first; then with ten buses a tick) and of each of `peers` that could be had; reasons of those that could not."""
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        stages = stack.enter_context(_timepoint(sockets, told))
        text = b"x" * (_size_of_round(stages[0], sockets) - 4)
        for name in peers:
            try:
                stages.append(stack.enter_context(_peer(PEERS[name](), sockets, text, told)))
            except Missing as fault:
                missing[name] = str(fault)
        found = _in_turn(stages, sockets, rounds, turns, pause_s, told)
    return found, missing


def _in_turn(stages: list[Stage], sockets: int, rounds: int, turns: int, pause_s: float, told: Callable[[str], None]) -> list[Figures]:
    us: dict[str, list[float]] = {stage.name: [] for stage in stages}
    late: dict[str, list[float]] = {stage.name: [] for stage in stages}
    size: dict[str, int] = {}
    for turn in range(turns):
        told(f"turn {turn + 1} of {turns}")
        for stage in stages if turn % 2 == 0 else stages[::-1]:
            began = stage.running.cpu_s()
            for at in range(rounds):
                said = _round(stage, sockets, turn * rounds + at)
                late[stage.name].append(float(said["p99_ms"]))
                size[stage.name] = int(said["bytes"]) // sockets
                time.sleep(pause_s)
            us[stage.name].append((stage.running.cpu_s() - began) / (rounds * sockets) * 1e6)
    return [
        Figures(
            name=stage.name, version=stage.version, delivery_us=statistics.median(us[stage.name]), turns_us=us[stage.name],
            late_ms=statistics.median(late[stage.name]), handshake_us=stage.handshake_us, socket_kb=stage.socket_kb, bytes=size[stage.name],
            updates=stage.updates,
        )
        for stage in stages
    ]  # fmt: skip


def _round(stage: Stage, sockets: int, at: int) -> dict[str, float]:
    """One message to everybody; raises RuntimeError where somebody did not get it."""
    stage.crowd.tell("expect")
    now = time.time()
    stage.say(at)
    said = stage.crowd.tell("report", now, sockets, 10)
    if said["frames"] != sockets:
        raise RuntimeError(f"{stage.name}: {said['frames']} of {sockets} deliveries")
    return said


def _size_of_round(stage: Stage, sockets: int) -> int:
    return int(_round(stage, sockets, 0)["bytes"]) // sockets


@contextlib.contextmanager
def _gathered(running: Running, path: str, sockets: int, channel: str, settle_s: float) -> Iterator[tuple[CrowdProcess, float, float]]:
    """The crowd, CPU us of a handshake (with the subscription, where there is one), KB a socket once it rests."""
    with contextlib.closing(CrowdProcess(running.port, path)) as crowd:
        crowd.tell("connect", 50, channel)  # what is made once is not a socket's
        time.sleep(0.3)
        memory, began = running.memory_kb(), running.cpu_s()
        crowd.tell("connect", sockets - 50, channel)
        time.sleep(1)
        us = (running.cpu_s() - began) / (sockets - 50) * 1e6
        time.sleep(settle_s)
        yield crowd, us, (running.memory_kb() - memory) / (sockets - 50)


@contextlib.contextmanager
def _timepoint(sockets: int, told: Callable[[str], None]) -> Iterator[list[Stage]]:
    """One worker with two crowds: one listens to a bus, the other to a route on which ten others report in one tick."""
    told(f"Timepoint: starting, twice {sockets} sockets")
    with Product() as product, contextlib.ExitStack() as stack:
        area, running = Area(product.redis), Running(product.port, (product.pid,))

        def one(at: int) -> None:
            position = area.position("b0", at + 1)
            position[4] = "r-0"  # a route that nobody listens to
            area.say([position])

        def ten(at: int) -> None:
            area.say([area.position(f"b{i}", at + 1) for i in range(1, 11)])

        stages = []
        for name, say, channel, updates in (("Timepoint", one, "bus:b0", 1), ("Timepoint, 10 buses a tick", ten, "route:bench:r-4", 10)):
            say(0)
            time.sleep(0.5)
            crowd, us, kb = stack.enter_context(_gathered(running, "/ws", sockets, channel, SETTLE_S))
            stages.append(Stage(name, "this checkout", running, crowd, say, us, kb, updates))
        yield stages


@contextlib.contextmanager
def _peer(peer: Peer, sockets: int, text: bytes, told: Callable[[str], None]) -> Iterator[Stage]:
    told(f"{peer.name} {peer.version}: starting, {sockets} sockets")
    with peer.start() as running, _gathered(running, peer.path, sockets, "-", 1.0) as (crowd, us, kb):

        def say(at: int) -> None:
            line = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)  # a new one: servers close those that rest
            line.request("POST", "/pub", text, {"Content-Type": "text/plain", "Connection": "close"})
            line.getresponse().read()
            line.close()

        yield Stage(peer.name, peer.version, running, crowd, say, us, kb)
