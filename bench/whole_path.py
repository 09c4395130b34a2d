"""CPU of the whole path per fix: every process of the engine (ingest, track, publish, history), with Redis and PostgreSQL beside it.

    python -m bench.whole_path          (an engine of its own, or the demo where `make run` runs)

Two runs on the same buses at 1 Hz: one fix a request, each bus with its own token, then 100 fixes a request through a gateway. A third sends
the first's requests to a bare ASGI application on uvicorn that accepts them unread: microseconds differ from machine to machine, their ratio
hardly. Bars: 150 us and 80 us a fix of the engine's processes, set on a machine whose floor was 23 us: 6.5 and 3.5 floors.
The demo's own simulator, if it runs, is charged too: stop it for a clean figure; what `--idle` seconds before the run cost is subtracted.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

from bench import load
from bench.cost import Meter, described, dump
from deploy.servers import free_port

BARS_US = {"single": 150.0, "batches of 100": 80.0}
BARS_FLOORS = {"single": 6.5, "batches of 100": 3.5}
BATCH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    load.add_arguments(parser)
    parser.add_argument("--idle", type=float, default=8.0, metavar="S", help="how long to measure the product at rest first (default 8)")


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Figures by kind of request. Raises ValueError, OSError, EOFError with what went wrong."""
    product = load.Product(args)
    if not product.pids:
        raise ValueError("which processes? Give --pids, or --info of a running demo")
    bus_ids = await asyncio.to_thread(product.buses, args.buses)
    tokens = await asyncio.to_thread(product.devices, bus_ids)
    gateway = await asyncio.to_thread(product.gateway, bus_ids)
    meter = Meter(product.pids)
    meter.start()
    await asyncio.sleep(args.idle)
    rest = {part: used / args.idle for part, used in meter.stop().items()}
    found: dict[str, Any] = {"buses": args.buses, "restCores": rest}
    ways: dict[str, tuple[str, ...]] = {"single": (), f"batches of {BATCH}": ("--token", gateway, "--batch", str(BATCH))}
    for name, more in ways.items():
        async with load.generator(product, args.buses, tokens, *more) as buses:
            found[name] = await _one(buses, meter, rest, args)
    found["floor"] = await _floor(product, tokens, args)
    return found


async def _floor(product: load.Product, tokens: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    port = free_port()
    server = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.floor", str(port))
    try:
        await asyncio.sleep(2)
        meter = Meter({"floor": server.pid})
        async with load.generator(product, args.buses, tokens, "--url", f"http://127.0.0.1:{port}") as buses:
            return await _one(buses, meter, {}, args)
    finally:
        server.terminate()
        await server.wait()


async def _one(buses: load.Child, meter: Meter, rest: dict[str, float], args: argparse.Namespace) -> dict[str, Any]:
    line = await buses.said()
    while line["buses"] == 0 or line["accepted"] == 0:
        line = await buses.said()
    until_ms = line["atMs"] + args.warm_up * 1000
    while line["atMs"] < until_ms:
        line = await buses.said()
    meter.start()
    before = line
    while line["atMs"] - before["atMs"] < args.seconds * 1000:
        line = await buses.said()
    cpu_s = meter.stop()
    seconds, fixes = (line["atMs"] - before["atMs"]) / 1000, line["accepted"] - before["accepted"]
    return {
        "fixesPerS": fixes / seconds, "seconds": seconds, "fixes": fixes, "quarantined": line["quarantined"], "errors": line["errors"],
        "cpuS": {part: max(0.0, used - rest.get(part, 0.0) * seconds) for part, used in cpu_s.items()},
        "generatorCores": (line["cpuS"] - before["cpuS"]) / seconds,
    }  # fmt: skip


async def run(args: argparse.Namespace) -> int:
    """Measures and prints; 1 where a bar is missed."""
    try:
        found = await measure(args)
    except (ValueError, OSError, EOFError, TimeoutError) as fault:
        print(f"bench whole-path: {fault or type(fault).__name__}", file=sys.stderr)
        return 2
    code = 0
    floor = found["floor"]
    floor_us = floor["cpuS"]["timepoint"] / max(1, floor["fixes"]) * 1e6
    for name, bar_us in BARS_US.items():
        one = found[name]
        us = one["cpuS"]["timepoint"] / max(1, one["fixes"]) * 1e6
        print(
            f"{name}: {one['fixesPerS']:.0f} fixes/s for {one['seconds']:.0f} s; quarantined {one['quarantined']}, errors {one['errors']}"
        )
        print(described(one["cpuS"], one["fixes"], one["seconds"]))
        met, met_ratio = us <= bar_us, us <= BARS_FLOORS[name] * floor_us
        print(f"  generator {one['generatorCores']:.2f} cores; bar {bar_us:.0f} us of timepoint: {'met' if met else 'MISSED'}")
        print(f"  {us / floor_us:.1f} floors; bar {BARS_FLOORS[name]}: {'met' if met_ratio else 'MISSED'}")
        code |= not (met or met_ratio)
    print(f"floor, a bare ASGI application: {floor['fixesPerS']:.0f} requests/s, {floor_us:.1f} us each")
    dump(args.out, found)
    return code


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.whole_path", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    with load.at_hand(args):
        return asyncio.run(run(args))


if __name__ == "__main__":
    sys.exit(main())
