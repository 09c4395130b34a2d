"""Three-seat picks a second straight through Redis: the script that the product picks with, and callers that only pipeline it.

    python -m bench.picks [--seconds 5] [--callers 2] [--deep 32] [--appendfsync always]

What bounds picks beneath the product: nothing of HTTP, of the worker or of the desk is in it. Every caller is a process of its own, the generator is
on the same cores, and Redis writes its file as a deployment's does. Seats are always free ones, of the legs and the three seats that were picked
longest ago, so every pick is granted: a refusal ends the run. As with the product, each pick says its three messages on the trip's seat channel.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple
from zlib import crc32

import msgspec

from bench import sold
from bench.load import percentile
from bench.product import CHECKOUT, cpu_s, table
from bench.seat_rush import triples
from deploy.servers import RedisServer, throw_away_folder

BAR = 15_000.0
TRIPS, LEGS = 48, sold.STOPS - 1  # 34,848 picks are free at once: more than end in TTL_MS
TTL_MS = 1_000
LOG, LIFE_S, SHARDS = 1_000, 259_200, 64  # of a seat channel, as the product has them
SCRIPT = CHECKOUT / "engine/store/pick.lua"
WARM_UP_S = 1.0


class Picked(NamedTuple):
    """What one caller did. `ms`: of its answers, each with the pipeline it came in, in order."""

    picks: int
    ms: list[float]
    own_cpu_s: float


def packed(*parts: bytes) -> bytes:
    """A command as it goes over the wire."""
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def commands(sha: bytes, number: int, of: int) -> Iterator[bytes]:
    """Caller `number` of `of` picks what is left to it, round and round."""
    encode, seats, pick = msgspec.msgpack.encode, triples(), 0
    rides = [f'"from":"{sold.stop_id(leg)}","to":"{sold.stop_id(leg + 1)}"' for leg in range(LEGS)]
    channels = [f"seats:{sold.trip_id(trip)}" for trip in range(1, TRIPS + 1)]
    tags = [f"{{o{crc32(channel.encode()) % SHARDS}}}" for channel in channels]
    slots = [(leg, three, trip) for leg in range(LEGS) for three in range(len(seats)) for trip in range(TRIPS)][number::of]
    keys = [[f"{kind}:{tag}:{channel}".encode() for kind in ("picks", "meta", "log")] for tag, channel in zip(tags, channels, strict=True)]
    while True:
        for leg, three, trip in slots:
            pick, now_ms = pick + 1, time.time_ns() // 1_000_000
            asked = (
                now_ms, now_ms + TTL_MS, f"caller-{number:02}-{pick:014}", leg, leg + 1, rides[leg], f"chan:{tags[trip]}", "benchrun", LOG, LIFE_S,
                seats[three], channels[trip],
            )  # fmt: skip
            yield packed(b"EVALSHA", sha, b"3", *keys[trip], encode(asked))


def call(path: str, sha: bytes, number: int, of: int, deep: int, seconds: float) -> Picked:
    """One caller for so long. Raises RuntimeError where a pick is not granted."""
    wanted, ms, begun_cpu_s = commands(sha, number, of), [], time.process_time()
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(10)
        line.connect(path)
        end_s = time.monotonic() + WARM_UP_S + seconds
        while (begun_s := time.monotonic()) < end_s:
            line.sendall(b"".join(next(wanted) for _ in range(deep)))
            said = b""
            while said.count(b"\n") < deep:
                said += line.recv(65_536)
            if said.count(b":") != deep:
                raise RuntimeError(f"a pick was not granted: {said[:200]!r}")
            if begun_s >= end_s - seconds:
                ms.append((time.monotonic() - begun_s) * 1e3)
            else:
                begun_cpu_s = time.process_time()
    return Picked(len(ms) * deep, ms, time.process_time() - begun_cpu_s)


def loaded(path: str) -> bytes:
    """The digest of the script, once Redis knows it."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(5)
        line.connect(path)
        line.sendall(packed(b"SCRIPT", b"LOAD", SCRIPT.read_bytes()))
        return line.recv(4096).split(b"\r\n")[1]


def measure(callers: int, deep: int, seconds: float, appendfsync: str) -> tuple[list[Picked], float]:
    """What each caller did, and the CPU seconds of Redis, of the warm-up too."""
    redis = RedisServer(throw_away_folder(), appendfsync=appendfsync)
    redis.start()
    try:
        path, pid = str(redis.socket), redis.pid or 0
        sha, begun = loaded(path), cpu_s(pid)
        with ProcessPoolExecutor(callers, get_context("spawn")) as pool:
            running = [pool.submit(call, path, sha, number, callers, deep, seconds) for number in range(callers)]
            return [one.result(timeout=seconds + 60) for one in running], cpu_s(pid) - begun
    finally:
        redis.remove()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.picks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of the measurement (default 5)")
    parser.add_argument("--callers", type=int, default=2, metavar="N", help="processes that pick (default 2)")
    parser.add_argument("--deep", type=int, default=32, metavar="N", help="picks of one caller under way at once (default 32)")
    parser.add_argument("--appendfsync", default="always", choices=("always", "everysec", "no"), help="of Redis (default always)")
    args = parser.parse_args()
    found, redis_s = measure(args.callers, args.deep, args.seconds, args.appendfsync)
    picks, ms = sum(one.picks for one in found), sorted(ms for one in found for ms in one.ms)
    rate, us = picks / args.seconds, redis_s / (args.seconds + WARM_UP_S) * args.seconds / picks * 1e6
    own_us = sum(one.own_cpu_s for one in found) / picks * 1e6
    busy = f"Redis {us:.1f} us a pick ({us * rate / 1e6:.2f} of a core), the callers {own_us:.1f}"
    table(
        f"three-seat picks straight through Redis: {args.callers} callers, {args.deep} deep, appendfsync {args.appendfsync}",
        [
            ("three-seat picks /s, straight", f"{rate:.0f}", f">= {BAR:.0f}", "pass" if rate >= BAR else "SHORT", busy),
            ("  p50 / p99 ms of a pipeline", f"{percentile(ms, 0.5):.1f} / {percentile(ms, 0.99):.1f}", "", "", "closed loop"),
        ],
    )
    return 0 if rate >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
