"""A rush on seats through HTTP, one worker, the generator on the same cores: three-seat picks, and holds granted on one hot trip.

    python -m bench.seat_rush                              the bars: about a minute
    python -m bench.seat_rush --seconds 20 --lanes 32      longer, with more callers at once
    python -m bench.seat_rush --part holds                 holds only (picks, floors)
    python -m bench.seat_rush --out rush.json              the figures as JSON too

Picks: three seats each, always free ones (what was picked a second ago is over), closed loop. Holds: three seats, held and let go in turn by
guests, only answers 201 counted; closed loop for the rate, then by the clock at the bar's rate for the times. PostgreSQL is durable (fsync,
autovacuum) and as large as after a season: 50,000 sold seats. Floors of the same run: the same pairs of calls from asyncpg without HTTP, and
the same requests to a bare ASGI application on uvicorn. CPU per operation of each process as the kernel counts it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import uvloop

from bench import sold
from bench.cost import tree
from bench.lanes import Lanes, Script, Tally, request
from bench.product import Product, cpu_s, table
from deploy.servers import free_port

BAR_PICKS, BAR_HOLDS, BAR_MS = 2_000.0, 500.0, 50.0
HOT = sold.trip_id(1)
PICK_TRIPS = 12
LEGS = sold.STOPS - 1
PARTS = ("picks", "holds", "floors")


class Held(msgspec.Struct, rename="camel"):
    """What we need of an answered hold."""

    id: str
    hold_token: str


_HELD = msgspec.json.Decoder(Held)


def triples() -> list[list[str]]:
    """All seats, three by three."""
    names = sold.labels()
    return [names[at : at + 3] for at in range(0, len(names) - 2, 3)]


def picking(order: Iterator[int]) -> Script:
    """Picks of strangers, each of the three seats and the leg that were picked longest ago."""
    seats = [json.dumps(three) for three in triples()]
    slots = [(trip, leg, three) for leg in range(LEGS) for three in seats for trip in range(1, PICK_TRIPS + 1)]
    while True:
        trip, leg, three = slots[next(order) % len(slots)]
        body = f'{{"seats":{three},"from":"{sold.stop_id(leg)}","to":"{sold.stop_id(leg + 1)}"}}'
        yield "pick", request("POST", f"/v1/trips/{sold.trip_id(trip)}/picks", body.encode())
        yield None


def holding(lane: int) -> Script:
    """A guest who holds one or the other three of six seats and lets them go again."""
    names = sold.labels()[lane * 6 : lane * 6 + 6]
    path, ends = f"/v1/trips/{HOT}/holds", f'"from":"{sold.stop_id(0)}","to":"{sold.stop_id(LEGS)}"'
    bodies = [f'{{"seats":{json.dumps(names[at : at + 3])},{ends}}}'.encode() for at in (0, 3)]
    for turn in itertools.count():
        status, body = yield "hold", request("POST", path, bodies[turn % 2], Idempotency_Key=uuid.uuid4())  # type: ignore[misc]
        if status == 201:
            held = _HELD.decode(body)
            yield "release", request("DELETE", f"/v1/holds/{held.id}", X_Hold_Token=held.hold_token, Idempotency_Key=uuid.uuid4())
        yield None


class Cost:
    """CPU seconds of the product's processes and of ourselves since it was made."""

    def __init__(self, product: Product) -> None:
        self.roots = {"worker": [product.pid], "PostgreSQL": [product.postgres.pid or 0], "Redis": [product.redis.pid or 0]}
        self.begun, self.own, self.at = self._now(), time.process_time(), time.perf_counter()

    def _now(self) -> dict[str, float]:
        return {name: sum(_cpu(pid) for pid in tree(roots)) for name, roots in self.roots.items()}

    def each(self, operations: int) -> dict[str, float]:
        """Microseconds of CPU for each of so many operations, by process; `cores`: how many were busy in all."""
        used = {name: seconds - self.begun[name] for name, seconds in self._now().items()} | {"generator": time.process_time() - self.own}
        found = {name: round(seconds / max(1, operations) * 1e6, 1) for name, seconds in used.items()}
        return found | {"cores": round(sum(used.values()) / (time.perf_counter() - self.at), 2)}


def _cpu(pid: int) -> float:
    try:
        return cpu_s(pid)
    except OSError:
        return 0.0


def described(cost: dict[str, float]) -> str:
    """One line: us an operation of each process."""
    return ", ".join(f"{name} {us:.0f}" for name, us in cost.items() if name != "cores") + f" us; {cost['cores']:.2f} cores busy"


def bound(cost: dict[str, float], rate: float) -> str:
    """Which process is at its limit: one that is busy for more than 85 % of a second is; else the cores are shared out."""
    name, us = max(((n, u) for n, u in cost.items() if n != "cores"), key=lambda one: one[1])
    busy = us * rate / 1e6
    if name == "worker" and busy > 0.85:
        return f"the worker's core ({busy:.2f})"
    return f"the {cost['cores']:.2f} cores that all share; most of it {name}"


def over_ones(figure: float, bar: float) -> str:
    return "pass" if figure >= bar else "SHORT"


async def play(
    product: Product, name: str, lanes: Lanes, seconds: float, rate: float | None = None
) -> tuple[Tally, dict[str, float], float]:
    """A warm-up and a run: tally, CPU a good answer of the first kind, good answers a second."""
    say(f"{name}: {seconds:.0f} s" + (f" at {rate:.0f}/s" if rate else f", {lanes.count} callers at once"))
    await lanes.run(1.5, rate)
    cost, begun = Cost(product), time.perf_counter()
    tally = await lanes.run(seconds, rate)
    took, good = time.perf_counter() - begun, tally.good(name)
    if tally.refused:
        kind, status, body = tally.refused[0]
        say(f"  {tally.bad()}; the first: {kind} {status} {body.decode(errors='replace')[:200]}")
    return tally, cost.each(good), good / took


async def measure_picks(product: Product, args: argparse.Namespace) -> dict[str, Any]:
    order = itertools.count()
    lanes = Lanes(product.port, args.lanes, lambda _: picking(order))
    await lanes.open()
    tally, cost, rate = await play(product, "pick", lanes, args.seconds)
    lanes.close()
    return {"rate": rate, "p50_ms": tally.p("pick", 0.5), "p95_ms": tally.p("pick", 0.95), "us": cost, "refused": tally.bad()}


async def measure_holds(product: Product, args: argparse.Namespace) -> dict[str, Any]:
    lanes = Lanes(product.port, min(args.lanes, 32), holding)
    await lanes.open()
    tally, cost, rate = await play(product, "hold", lanes, args.seconds)
    timed, timed_cost, kept = await play(product, "hold", lanes, args.seconds, BAR_HOLDS)
    lanes.close()
    return {
        "rate": rate, "p50_ms": tally.p("hold", 0.5), "p95_ms": tally.p("hold", 0.95), "us": cost, "refused": tally.bad() | timed.bad(),
        "at_the_bar": {
            "rate": kept, "p50_ms": timed.p("hold", 0.5), "p95_ms": timed.p("hold", 0.95), "late": timed.late, "us": timed_cost,
            "release_p95_ms": timed.p("release", 0.95),
        },
    }  # fmt: skip


async def measure_sql(product: Product, args: argparse.Namespace) -> dict[str, Any]:
    """The floor beneath the holds: the same two calls from asyncpg, as many connections as a worker's desk has."""
    import asyncpg

    say(f"floor: the two functions alone from asyncpg, {args.seconds / 2:.0f} s")
    settings = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "enable_bitmapscan": "off", "lock_timeout": "2000"}
    pairs, until = 0, 0.0

    async def client(number: int, line: Any, trip_no: int) -> None:
        nonlocal pairs
        while time.perf_counter() < until:
            key = str(uuid.uuid4())
            seats = [number * 6 + 1, number * 6 + 2, number * 6 + 3]
            said = json.loads(await line.fetchval(sold.STATEMENTS["hold"], key, b"x" * 32, trip_no, seats, LEGS, [1, 1, 1], f"guest:{key}"))
            assert said["status"] == "HELD", said
            await line.fetchval(sold.STATEMENTS["release"], str(uuid.uuid4()), b"x" * 32, key)
            pairs += 1

    lines = [await asyncpg.connect(product.postgres.url, server_settings=settings) for _ in range(12)]
    admin = await asyncpg.connect(product.postgres.admin_url)
    trip_no = await admin.fetchval(sold.STATEMENTS["trip_no"], HOT)
    await admin.close()
    for seconds in (1.0, args.seconds / 2):
        pairs, until = 0, time.perf_counter() + seconds
        cost, begun = Cost(product), time.perf_counter()
        await asyncio.gather(*(client(number, line, trip_no) for number, line in enumerate(lines)))
    found = {"rate": pairs / (time.perf_counter() - begun), "us": cost.each(pairs)}
    for line in lines:
        await line.close()
    return found


async def measure_bare(args: argparse.Namespace) -> dict[str, Any]:
    """The floor beneath every call: a bare ASGI application on uvicorn, the same client."""
    say(f"floor: a bare ASGI application, {args.seconds / 2:.0f} s")
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "bench.floor", str(port)])  # noqa: ASYNC220  (nothing else runs meanwhile)
    try:
        lanes = Lanes(port, args.lanes, lambda _: picking(itertools.count()))
        for _ in range(100):
            with contextlib.suppress(OSError):
                await lanes.open()
                break
            await asyncio.sleep(0.1)
        await lanes.run(1.0)
        begun, own, at = cpu_s(server.pid), time.process_time(), time.perf_counter()
        tally = await lanes.run(args.seconds / 2)
        took, n = time.perf_counter() - at, tally.rounds
        lanes.close()
        return {
            "rate": n / took,
            "us": {"worker": (cpu_s(server.pid) - begun) / n * 1e6, "generator": (time.process_time() - own) / n * 1e6},
        }
    finally:
        server.terminate()
        server.wait(10)


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    parts = args.part or PARTS
    say("starting a product of its own; selling 200 x 250 seats beside the hot trip")
    with Product(durable=True, ROLES=args.roles, PICK_TTL_S="1", RUSH_THRESHOLD_PER_S="0", GUEST_HOLDS_MAX="3") as product:
        await sold.sell(product.postgres.admin_url, PICK_TRIPS, full=args.full)
        if "holds" in parts:
            found["holds"] = await measure_holds(product, args)
        if "picks" in parts:
            found["picks"] = await measure_picks(product, args)
        if "floors" in parts:
            found["sql"] = await measure_sql(product, args)
    if "floors" in parts:
        found["bare"] = await measure_bare(args)
    return found


def report(found: dict[str, Any]) -> bool:
    """Prints the table; whether every bar is met."""
    rows, notes, good = [], [], True
    if (picks := found.get("picks")) is not None:
        verdict = over_ones(picks["rate"], BAR_PICKS)
        good &= verdict == "pass"
        rows += [("three-seat picks /s, 201", f"{picks['rate']:.0f}", f">= {BAR_PICKS:.0f}", verdict, bound(picks["us"], picks["rate"]))]
        rows += [("  p50 / p95 ms", f"{picks['p50_ms']:.1f} / {picks['p95_ms']:.1f}", "", "", "closed loop")]
        notes += ["CPU a pick: " + described(picks["us"])]
    if (holds := found.get("holds")) is not None:
        timed = holds["at_the_bar"]
        verdicts = over_ones(holds["rate"], BAR_HOLDS), "pass" if timed["p95_ms"] < BAR_MS and not timed["late"] else "SHORT"
        good &= verdicts == ("pass", "pass")
        rows += [
            (
                "holds granted /s, 201, each let go",
                f"{holds['rate']:.0f}",
                f">= {BAR_HOLDS:.0f}",
                verdicts[0],
                bound(holds["us"], holds["rate"]),
            )
        ]
        rows += [("  p50 / p95 ms, closed loop", f"{holds['p50_ms']:.1f} / {holds['p95_ms']:.1f}", "", "", "")]
        ms = f"{timed['p50_ms']:.1f} / {timed['p95_ms']:.1f}"
        rows += [(f"  p50 / p95 ms at {BAR_HOLDS:.0f}/s", ms, f"< {BAR_MS:.0f}", verdicts[1], f"{timed['rate']:.0f}/s granted")]
        notes += ["CPU a hold and its release: " + described(holds["us"])]
    if (sql := found.get("sql")) is not None:
        rows += [("floor: pairs /s from asyncpg", f"{sql['rate']:.0f}", "", "", "12 connections, no HTTP")]
        notes += ["CPU a pair from asyncpg: " + described(sql["us"])]
    if (bare := found.get("bare")) is not None:
        rows += [("floor: bare ASGI requests /s", f"{bare['rate']:.0f}", "", "", f"worker {bare['us']['worker']:.0f} us a request")]
    table("a rush on seats, one worker, generator on the same cores", rows)
    for note in notes:
        print("  " + note)
    return good


def arguments(prog: str, about: str | None, full: str) -> argparse.ArgumentParser:
    """What the benches of the desk are told. `full`: what the sold-out trips are beside."""
    parser = argparse.ArgumentParser(prog=prog, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of each measurement (default 10)")
    parser.add_argument("--lanes", type=int, default=16, metavar="N", help="callers at once (default 16)")
    parser.add_argument("--full", type=int, default=250, metavar="N", help=f"trips that are sold out beside {full} (default 250)")
    parser.add_argument("--roles", default="api", help="roles of the worker (default api; with office it relays every event too)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the figures")
    return parser


def finish(found: dict[str, Any], out: Path | None, report: Callable[[dict[str, Any]], bool]) -> NoReturn:
    """The figures written down and told; the exit code says whether every bar is met."""
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(0 if report(found) else 1)


def main() -> None:
    parser = arguments("python -m bench.seat_rush", __doc__, "the hot one")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part (may be given again)")
    args = parser.parse_args()
    finish(uvloop.run(measure(args)), args.out, report)


if __name__ == "__main__":
    main()
