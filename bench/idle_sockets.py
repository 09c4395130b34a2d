"""Idle sockets: KB of the server's resident memory per connected socket, and its CPU per handshake.

    python -m bench.idle_sockets [--sockets 5000]

First sockets that only connected, then as many that also listen to one channel each; the growth is taken after the collector has run. Last as
many that a protocol accepts which looks at nothing and writes a ready answer: what the kernel and uvloop take on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import time

from bench.crowd import CrowdProcess, raise_limit
from bench.product import Area, Product, cpu_s, floor_server, memory_kb, table, verdict

BAR_KB = 4.0
BAR_FLOORS = 1.2  # 40 us where the floor, a bare uvloop protocol, took 33 and Nchan 25
SETTLE_S = 8  # the worker looks every 5 s whether a crowd came, collects and freezes


def measure(product: Product, sockets: int, channel: str) -> tuple[float, float]:
    """(KB a socket, CPU us a handshake with what follows it)."""
    crowd = CrowdProcess(product.port)
    try:
        memory, began = memory_kb(product.pid), cpu_s(product.pid)
        crowd.tell("connect", sockets, channel)
        time.sleep(1)
        cpu = cpu_s(product.pid) - began
        time.sleep(SETTLE_S)
        return (memory_kb(product.pid) - memory) / sockets, cpu / sockets * 1e6
    finally:
        crowd.close()


def measure_floor(sockets: int) -> float:
    """CPU us a handshake."""
    with floor_server("bench.fanout") as (port, pid), contextlib.closing(CrowdProcess(port)) as crowd:
        began = cpu_s(pid)
        crowd.tell("connect", sockets, "-")
        return (cpu_s(pid) - began) / sockets * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.idle_sockets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sockets", type=int, default=5_000)
    args = parser.parse_args()
    raise_limit()
    figures = {}
    for name, channel in (("connected", "-"), ("listening to one bus", "bus:b17")):
        with Product() as product:  # a new one each: freed memory of the first would hide what the second takes
            area = Area(product.redis)
            area.say([area.position("b17", 0)])
            time.sleep(2)
            figures[name] = measure(product, args.sockets, channel)
    floor_us = measure_floor(args.sockets)
    rows = [("CPU us a handshake, floor", f"{floor_us:.0f}", "", "", "the kernel, uvloop")]
    for name, (kb, us) in figures.items():
        rows += [
            (
                f"KB a socket, {name}",
                f"{kb:.2f}",
                f"<= {BAR_KB:.0f}",
                verdict(kb, BAR_KB),
                "uvloop's transport, the socket",
            ),
            (f"CPU us a handshake, {name}", f"{us:.0f}", "", "", "accept(), the 101; listening: the reply and a snapshot"),
            (f"in floors, {name}", f"{us / floor_us:.2f}", f"<= {BAR_FLOORS}", verdict(us / floor_us, BAR_FLOORS), ""),
        ]
    table(f"idle sockets: {args.sockets}, one worker", rows)


if __name__ == "__main__":
    main()
