"""Slow readers: of N subscribers of a fleet S stop reading; what the others notice, and what each stalled one costs.

    python -m bench.slow_readers [--sockets 5000] [--stalled 1000] [--rounds 40] [--buses 50]

Two turns on one product: the readers alone with N - S of them measured, then with S stalled beside them. The latency of a round is from
its PUBLISH to the last byte of a reader's frame. Memory: growth of the worker while the stalled ones fill up and stay full.
"""

from __future__ import annotations

import argparse
import time

from bench.crowd import CrowdProcess, raise_limit
from bench.product import Area, Product, memory_kb, table, verdict

BAR_SHARE, BAR_KB = 1.10, 256.0


def rounds_of(area: Area, crowd: CrowdProcess, readers: int, rounds: int, buses: int, start: int) -> tuple[float, float]:
    """(p50, p99) in ms over the rounds: medians of the rounds' own, so that one hiccup of a shared machine does not decide."""
    p50s, p99s = [], []
    for at in range(start, start + rounds):
        crowd.tell("expect")
        now = time.time()
        area.say([area.position(f"b{number}", at) for number in range(buses)])
        said = crowd.tell("report", now, readers, 20)
        assert said["frames"] >= readers, said
        p50s.append(said["p50_ms"])
        p99s.append(said["p99_ms"])
        time.sleep(0.05)
    return sorted(p50s)[rounds // 2], sorted(p99s)[rounds // 2]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.slow_readers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sockets", type=int, default=5_000)
    parser.add_argument("--stalled", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--buses", type=int, default=20)
    args = parser.parse_args()
    raise_limit()
    readers = args.sockets - args.stalled
    with Product(SOCKET_STALL_S="600") as product:
        area = Area(product.redis)
        area.say([area.position(f"b{number}", 0) for number in range(args.buses)])
        slow, quick = CrowdProcess(product.port), CrowdProcess(product.port)
        try:
            slow.tell("connect", args.stalled, "route:bench:r-4", 4096)
            quick.tell("connect", readers, "route:bench:r-4")
            time.sleep(8)
            before = rounds_of(area, quick, readers, args.rounds, args.buses, 1)
            memory = memory_kb(product.pid)
            slow.tell("stall", args.stalled)
            rounds_of(area, quick, readers, 60, args.buses, 1_000)  # the kernel's buffers and ours fill up
            after = rounds_of(area, quick, readers, args.rounds, args.buses, 2_000)
            kb = (memory_kb(product.pid) - memory) / args.stalled
        finally:
            slow.close()
            quick.close()
    share = after[1] / before[1]
    table(
        f"slow readers: {args.stalled} stalled of {args.sockets} on one route of {args.buses} buses, {args.rounds} rounds a turn, one worker",
        [
            ("p99 ms of the others, all reading", f"{before[1]:.1f}", "", "", "one core for server and readers"),
            ("p99 ms of the others, some stalled", f"{after[1]:.1f}", "", "", ""),
            ("stalled / all reading", f"{share:.2f}", f"<= {BAR_SHARE:.2f}", verdict(share, BAR_SHARE), ""),
            ("p50 ms, all reading / some stalled", f"{before[0]:.1f} / {after[0]:.1f}", "", "", ""),
            ("KB a stalled socket", f"{kb:.1f}", f"<= {BAR_KB:.0f}", verdict(kb, BAR_KB), "64 KB of transport buffer, shared frames"),
        ],
    )


if __name__ == "__main__":
    main()
