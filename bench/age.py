"""How old a fix is when a watcher has it: N buses at 1 Hz, W watchers on a `bus:` channel each and a few on `fleet:`.

    python -m bench.age --buses 2000 --watchers 1000          (an engine of its own, or the demo where `make run` runs)

The age is the watcher's clock minus the moment the fix was meant to be sent, so a generator that falls behind counts against the figure, not for
it. Generator and watchers are processes of their own on the same cores as the engine: the figures include what they take.
Bar: p99 below 150 ms with 2,000 buses and 1,000 watchers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from typing import Any

from bench import load
from bench.cost import Meter, described, dump

BAR_P99_MS = 150.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    load.add_arguments(parser)
    parser.add_argument("--watchers", type=int, default=1000, metavar="W")
    parser.add_argument("--fleet-watchers", type=int, default=5, metavar="W")
    parser.add_argument("--partner", metavar="ID", help="whose fleet: channel (default: the demo's)")


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The figures. Raises ValueError, OSError, EOFError with what went wrong."""
    product = load.Product(args)
    bus_ids = await asyncio.to_thread(product.buses, args.buses)
    tokens = await asyncio.to_thread(product.devices, bus_ids)
    meter = Meter(product.pids) if product.pids else None
    async with load.generator(product, args.buses, tokens) as buses:
        first = await buses.said()
        while first["buses"] == 0:
            first = await buses.said()
        # stand-ins drive without end; buses of the timetable may go home in the middle of the run
        watched = sorted(bus_ids, reverse=True)[: args.watchers]
        channels = [f"bus:{bus_id}" for bus_id in watched] + [f"fleet:{args.partner or product.partner}"] * args.fleet_watchers
        async with load.child("bench.watchers") as watchers:
            await watchers.tell(json.dumps({"url": product.url, "channels": channels, "token": product.token}))
            await watchers.said()
            before = await _pass(buses, args.warm_up)
            await watchers.tell("begin")
            await watchers.said()
            if meter:
                meter.start()
            after = await _pass(buses, args.seconds)
            cpu_s = meter.stop() if meter else {}
            await watchers.tell("end")
            heard = await watchers.said()
    return _figures(args, before, after, heard, cpu_s)


async def _pass(buses: load.Child, seconds: float) -> dict[str, Any]:
    """Lets time pass; the generator's last word."""
    line = first = await buses.said()
    while line["atMs"] - first["atMs"] < seconds * 1000:
        line = await buses.said()
    return line


def _figures(
    args: argparse.Namespace, before: dict[str, Any], after: dict[str, Any], heard: dict[str, Any], cpu_s: dict[str, float]
) -> dict[str, Any]:
    seconds, fixes = (after["atMs"] - before["atMs"]) / 1000, after["accepted"] - before["accepted"]
    ages = {kind: sorted(found) for kind, found in heard["ages"].items()}
    return {
        "buses": args.buses, "watchers": args.watchers, "fleetWatchers": args.fleet_watchers, "seconds": seconds,
        "fixesPerS": fixes / seconds, "quarantined": after["quarantined"], "errors": after["errors"], "dropped": after["dropped"],
        "answerP50Ms": after["p50Ms"], "answerP99Ms": after["p99Ms"], "generatorBehindMs": after["behindMs"],
        "waiting": after["waiting"],
        "generatorCores": (after["cpuS"] - before["cpuS"]) / seconds, "socketsLost": heard["closed"],
        "ageMs": {
            kind: {"count": len(found)} | {name: round(load.percentile(found, share), 1) for name, share in
            (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))}
            for kind, found in ages.items()
        },
        "cores": {part: used / seconds for part, used in cpu_s.items()},
        "cpuUsPerFix": {part: used / max(1, fixes) * 1e6 for part, used in cpu_s.items()},
        "machineCores": os.cpu_count(),
    }  # fmt: skip


def bound_by(found: dict[str, Any]) -> str:
    """What keeps the age from being smaller, as far as these figures say."""
    cores, busy = found["cores"], sum(found["cores"].values()) + found["generatorCores"]
    if found["generatorBehindMs"] > 50:
        return f"the generator: {found['generatorBehindMs']} ms behind its own clock"
    if found["waiting"] > found["fixesPerS"]:
        return f"the door: it takes {found['fixesPerS']:.0f} of {found['buses']} fixes/s, {found['waiting']} wait (other work on this machine counts)"
    if cores and busy > 0.85 * found["machineCores"]:
        return f"the machine: {busy:.2f} of its {found['machineCores']} cores busy without the watchers; most in {max(cores, key=cores.__getitem__)}"
    if found["answerP50Ms"] > 0.6 * found["ageMs"]["bus"]["p50"]:
        return f"the door: a device waits {found['answerP50Ms']} ms of the {found['ageMs']['bus']['p50']} ms"
    return "the pauses that gather fixes (GATHER_MAX_MS) and the round of the hub: the cores have room"


async def run(args: argparse.Namespace) -> int:
    """Measures and prints; 1 where the bar is missed."""
    try:
        found = await measure(args)
    except (ValueError, OSError, EOFError, TimeoutError) as fault:
        print(f"bench age: {fault or type(fault).__name__}", file=sys.stderr)
        return 2
    bus, fleet = found["ageMs"]["bus"], found["ageMs"]["fleet"]
    print(f"{found['fixesPerS']:.0f} fixes/s of {args.buses} buses, {args.watchers} watchers on bus:, {args.fleet_watchers} on fleet:")
    for kind, ages in (("bus:", bus), ("fleet:", fleet)):
        print(
            f"  age {kind:<7} p50 {ages['p50']:7.1f}  p90 {ages['p90']:7.1f}  p99 {ages['p99']:7.1f}  max {ages['max']:7.1f} ms  ({ages['count']})"
        )
    print(
        f"  device answer p50 {found['answerP50Ms']} p99 {found['answerP99Ms']} ms; quarantined {found['quarantined']}, errors {found['errors']}"
    )
    if found["cores"]:
        cpu_s = {part: cores * found["seconds"] for part, cores in found["cores"].items()}
        print(described(cpu_s, round(found["fixesPerS"] * found["seconds"]), found["seconds"]))
    print(f"  generator {found['generatorCores']:.2f} cores; bound by {bound_by(found)}")
    met = bus["count"] > 0 and bus["p99"] < BAR_P99_MS
    print(f"  bar p99 < {BAR_P99_MS:.0f} ms: {'met' if met else 'MISSED'}")
    dump(args.out, found)
    return 0 if met else 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.age", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args(argv)
    with load.at_hand(args):
        return asyncio.run(run(args))


if __name__ == "__main__":
    sys.exit(main())
