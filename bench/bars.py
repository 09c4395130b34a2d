"""`make bench`: every speed that the product promises, beside its bar, in less than ten minutes.

    python -m bench.bars                        all of them
    python -m bench.bars --only age --only fan  those whose names begin so (`--list` names them)
    python -m bench.bars --out folder           bars.json and bars.md too
    python -m bench.bars --feed FEED.zip        the import of that feed too

A row is one promise: where its figure comes from (a load scenario on a product of its own, or a bench with private servers and a floor), the bar
that the first form of the product had to reach, and the one that counts now. Bars on CPU and on rates that CPU bounds were set on a machine where a
bare ASGI request costs 23 us; what one costs here at its cheapest is measured first, and a row that holds only by that measure says `pass here`. One
row after the other on the cores that generator and product share: what is SHORT on a busy machine may not be on a quiet one. Exit code 1 where a row
is SHORT.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop

from bench.harness import catalogue, target, thresholds
from bench.harness.result import Result
from bench.harness.run import Plan, run
from bench.harness.schedule import Schedule
from bench.harness.target import Deployment
from bench.lanes import Lanes, Script, request
from bench.product import CHECKOUT, cpu_s
from deploy.servers import free_port

BARE_US: Final = 23.0  # CPU of a bare ASGI request where the bars were set
COMMAND_LIMIT_S: Final = 240.0
START_LIMIT_S: Final = 30.0
PASS, HERE, SHORT, NONE, WEAK = "pass", "pass here", "SHORT", "no figure", "no evidence"


class Load(msgspec.Struct, frozen=True):
    """A scenario, all of them one after the other on the same product."""

    scenario: str
    rate: float
    options: dict[str, Any] = {}
    seconds: int = 10
    warm_up: int = 4


class Bench(msgspec.Struct, frozen=True):
    """A bench of its own; `{feed}` stands for the feed given, and without one it is left out."""

    argv: tuple[str, ...]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One promise. `ask`: of a load the figure's name (as thresholds have it), of a bench a pattern whose group is the figure."""

    name: str
    what: str
    source: str
    ask: str
    unit: str
    sign: str = "<="
    first: float | None = None
    then: float | None = None
    peer: str = ""  # what stands beside it, and its figure where it is not measured in this run
    floor: str = ""  # pattern of the figure, or name, that it is divided by; a bar in floors is a row of its own
    over: str = ""  # a load that is divided by: the same figure of it
    by_cpu: bool = False  # the machine counts


def city(rate: float, watchers: int, **more: Any) -> Load:
    quiet = {"watchers": watchers, "maps": 0, "fleets": 5 if watchers else 0, "reads": 0.0, "bookings": 0.0}
    return Load("mixed-city", rate, quiet | more)


SOURCES: Final[dict[str, Load | Bench]] = {
    "batches": Load("ingest-batch", 2000.0, {"batch": 100, "buses": 1000}),
    "singles": city(1000.0, 0),
    "reads": Load("reads", 500.0),
    "readers": Load("slow-client", 20.0, {"watchers": 800, "stalled": 0}, seconds=12),
    "stalled": Load("slow-client", 20.0, {"watchers": 800, "stalled": 200}, seconds=12),
    "broadcasts": Load("fanout", 2.0, {"watchers": 5000, "reads": 50.0}),
    "city of 2,000": city(2000.0, 1000),
    "city of 5,000": city(5000.0, 2000),
    "door": Bench(("bench.door", "--seconds", "5")),
    "fanout": Bench(("bench.fanout", "--rounds", "25")),
    "idle": Bench(("bench.idle_sockets", "--sockets", "3000")),
    "rush": Bench(("bench.seat_rush", "--part", "picks", "--part", "holds", "--seconds", "6")),
    "booking": Bench(("bench.booking", "--seconds", "6")),
    "history": Bench(("bench.history", "--rows", "200000")),
    "import": Bench(("bench.feed_import", "{feed}", "--repeat", "1")),
    "start": Bench(("bench.start",)),
    "page": Bench(("bench.page",)),
}

ROWS: Final = (
    Row(name="path batch", what="whole path CPU of the worker per fix, batches of 100", source="batches",
        ask="cost.accepted.worker-0", unit="us", first=80, then=40, peer="FastAPI's bare accept 6.9 us", by_cpu=True),
    Row(name="path single", what="whole path CPU of the worker per fix, single requests", source="singles",
        ask="cost.accepted.worker-0", unit="us", first=150, then=80, peer="FastAPI's bare accept 111-166 us", by_cpu=True),
    Row(name="reads cached", what="API reads at 500/s, from memory: p95", source="reads", ask="cached.p95", unit="ms", first=20, then=20,
        peer="seeds 50 ms"),
    Row(name="reads uncached", what="API reads at 500/s, the others: p95", source="reads", ask="uncached.p95", unit="ms", first=100, then=100,
        peer="seeds 200 ms"),
    Row(name="slow others", what="200 of 1,000 readers stall: the others' p99 / with none stalled", source="stalled", ask="fanout.p99", over="readers",
        unit="x", first=1.1, then=1.1),
    Row(name="slow memory", what="memory of a stalled reader", source="stalled", ask="figure.stalled_kb", unit="KB", first=256, then=256),
    Row(name="broadcast", what="HTTP p99 on the same worker during 5,000-wide broadcasts", source="broadcasts", ask="read.p99", unit="ms", then=5,
        peer="46-53 ms without slices"),
    Row(name="age 2000", what="fix to watcher, 2,000 buses at 1 Hz, 1,000 watchers, 5 of the fleet: p99", source="city of 2,000", ask="age.p99",
        unit="ms", first=150, then=100, peer="seeds 200 ms"),
    Row(name="age 5000 p50", what="fix to watcher, 5,000 buses at 1 Hz, 2,000 watchers, 5 of the fleet: p50", source="city of 5,000", ask="age.p50",
        unit="ms", then=25),
    Row(name="age 5000 p99", what="the same: p99", source="city of 5,000", ask="age.p99", unit="ms", then=100),
    Row(name="door post", what="device POST, accepted and authenticated, up to the XADD", source="door", unit="us", then=20, by_cpu=True,
        ask=r"CPU us a fix by post, product\s+([\d.]+)", floor=r"CPU us a fix by post, floor\s+([\d.]+)", peer="Litestar 73-100 us"),
    Row(name="door socket", what="socket ingest, one fix a frame: floors", source="door", unit="x", then=1.13, peer="asyncio protocol",
        ask=r"by socket, floor.*\n\s+in floors\s+([\d.]+)"),
    Row(name="fan-out", what="fan-out, product path, CPU per delivery", source="fanout", unit="us", first=9, by_cpu=True,
        ask=r"CPU us per delivery, product\s+([\d.]+)", floor=r"CPU us per delivery, floor \(uvloop\)\s+([\d.]+)", peer="Nchan: python -m bench.peers"),
    Row(name="fan-out floors", what="fan-out in floors", source="fanout", ask=r"product / floor\s+([\d.]+)", unit="x", first=1.4, then=1.4,
        peer="ready bytes on uvloop"),
    Row(name="idle memory", what="idle socket, listening to one bus", source="idle", ask=r"KB a socket, listening to one bus\s+([\d.]+)", unit="KB",
        first=16, then=4, peer="Nchan 10.3 KB"),
    Row(name="idle handshake", what="handshake", source="idle", ask=r"CPU us a handshake, connected\s+([\d.]+)", unit="us", first=300, then=40,
        floor=r"CPU us a handshake, floor\s+([\d.]+)", peer="Nchan 25 us", by_cpu=True),
    Row(name="seats pick", what="three-seat picks through HTTP", source="rush", ask=r"three-seat picks /s, 201\s+([\d.]+)", unit="/s", sign=">=",
        first=2000, then=4000, by_cpu=True),
    Row(name="seats hold", what="holds granted on one hot trip, each let go", source="rush", ask=r"holds granted /s[^\d]*201, each let go\s+([\d.]+)",
        unit="/s", sign=">=", first=500, then=1500, peer="pretix 12.5-16 /s", by_cpu=True),
    Row(name="seats hold p95", what="a hold at 500/s: p95", source="rush", ask=r"p50 / p95 ms at \d+/s\s+[\d.]+ / ([\d.]+)", unit="ms", first=50),
    Row(name="booking rate", what="hold to confirmed, four calls", source="booking", ask=r"bookings confirmed /s\s+([\d.]+)", unit="/s", sign=">=",
        first=200, then=450, peer="pretix 5.7-6.6 /s", by_cpu=True),
    Row(name="booking p95", what="the slowest of its calls: p95", source="booking", ask=r"worst p95 of a call at \d+/s, ms\s+([\d.]+)", unit="ms",
        first=200),
    Row(name="history write", what="history, idempotent", source="history", ask=r"new rows\s+([\d,]+) rows/s", unit="/s", sign=">=", first=40_000,
        then=80_000, by_cpu=True),
    Row(name="history day", what="a day of one bus", source="history", ask=r"a day of one bus\s+([\d.]+) ms", unit="ms", first=50, then=50),
    Row(name="import", what="import of the feed given (the bar is for 82,644 stop times)", source="import", ask=r"import\s+([\d.]+) s", unit="s",
        first=15, then=6, by_cpu=True),
    Row(name="start", what="`make run`, second start", source="start", ask=r"second start\s+([\d.]+) s", unit="s", first=10, then=4, by_cpu=True),
    Row(name="page", what="2,000 buses drawn after the fix: p95", source="page", ask=r"drawn after the commit, p95 ms\s+([\d.]+)", unit="ms", then=200),
)  # fmt: skip


class Found(msgspec.Struct, kw_only=True):
    """A row with its figure."""

    name: str
    what: str
    how: str
    figure: float | None
    unit: str
    sign: str
    first: float | None
    then: float | None
    ratio: float | None  # to the floor of the same run
    machine: float  # what a bare request cost just before, in what it cost where the bars were set
    peer: str
    first_holds: str
    then_holds: str
    why: str = ""  # there is no figure, or it is no evidence


class Story(msgspec.Struct, kw_only=True):
    """What one source has said: a result, or the output of a bench."""

    result: Result | None = None
    text: str = ""
    fault: str = ""


# --- where figures come from ---


def figure_of(story: Story, ask: str, unit: str) -> float | None:
    """In the row's unit."""
    if story.result is not None:
        scaled = unit if unit in ("ms", "us") else "ms" if re.search(r"\.p\d", ask) else ""
        (judged,) = thresholds.judge([thresholds.parse(f"{ask}<1{scaled}")], story.result)
        return judged.figure
    match = re.search(ask, story.text)
    return float(match[1].replace(",", "")) if match else None


def found(row: Row, stories: Mapping[str, Story], factor: float) -> Found:
    """`factor`: how much more a bare request costs here than where the bars were set."""
    story, source = stories[row.source], SOURCES[row.source]
    figure = figure_of(story, row.ask, row.unit)
    if row.over and figure is not None:
        below = figure_of(stories[row.over], row.ask, row.unit)
        figure = figure / below if below else None
    floor = figure_of(story, row.floor, row.unit) if row.floor else None
    why = (
        story.fault or (story.result.refused.partition(": ")[0] if story.result is not None else "") or ("" if figure is not None else NONE)
    )
    if story.result is not None and story.result.broken:
        why = "; ".join(story.result.broken)
    refused, broken = (bool(story.result.refused), bool(story.result.broken)) if story.result is not None else (False, False)
    how = f"bench run {source.scenario}" if isinstance(source, Load) else "python -m " + " ".join(source.argv)
    return Found(
        name=row.name, what=row.what, how=how, figure=figure, unit=row.unit, sign=row.sign, first=row.first, then=row.then,
        ratio=figure / floor if figure is not None and floor else None, machine=factor, peer=row.peer, why=why,
        first_holds=verdict(row, figure, row.first, factor, broken=broken, refused=refused),
        then_holds=verdict(row, figure, row.then, factor, broken=broken, refused=refused),
    )  # fmt: skip


def verdict(row: Row, figure: float | None, bar: float | None, factor: float, *, broken: bool = False, refused: bool = False) -> str:
    """Of a bar; "" where there is none. What broke a promise cannot pass, and a run whose generators lagged says nothing."""
    if bar is None:
        return ""
    if figure is None:
        return NONE
    if refused or broken:
        return SHORT if broken else WEAK
    over = row.sign == ">="
    if (figure >= bar) if over else (figure <= bar):
        return PASS
    eased = bar / factor if over else bar * factor
    return HERE if row.by_cpu and ((figure >= eased) if over else (figure <= eased)) else SHORT


def played(load: Load, product: Deployment) -> Story:
    kind = catalogue.find(load.scenario)
    options = {option.name: option.default for option in kind.options} | load.options
    schedule = Schedule(rate=load.rate, hold_s=load.seconds, warm_up_s=load.warm_up)
    plan = Plan(scenario=load.scenario, schedule=schedule, options=options)
    try:
        return Story(result=uvloop.run(run(plan, product, lambda seen: None)))
    except Exception as fault:  # one row must not take the others with it
        return Story(fault=f"{type(fault).__name__}: {fault}")


def asked(bench: Bench, feed: str) -> Story:
    argv = [feed if word == "{feed}" else word for word in bench.argv]
    if "{feed}" in bench.argv and not feed:
        return Story(fault="give it a feed: --feed FEED.zip")
    try:
        done = subprocess.run([sys.executable, "-m", *argv], cwd=CHECKOUT, capture_output=True, text=True, timeout=COMMAND_LIMIT_S)
    except subprocess.TimeoutExpired:
        return Story(fault=f"no end within {COMMAND_LIMIT_S:.0f} s")
    fault = done.stderr.strip().splitlines()[-1:] if done.returncode not in (0, 1) or not done.stdout else []
    return Story(text=done.stdout, fault=" ".join(fault)[:200])


class Bare:
    """A bare ASGI application: what a request costs on this machine."""

    def __init__(self) -> None:
        self.port = free_port(28_000 + os.getpid() % 4_000)  # two runs at once do not meet
        self.server = subprocess.Popen([sys.executable, "-m", "bench.floor", str(self.port)], cwd=CHECKOUT)

    def factor(self, tries: int = 8, seconds: float = 0.5) -> float:
        """How many times what it cost where the bars were set; never below 1. The cheapest of several tries: what disturbs one of them must not
        lower the bars."""
        return max(1.0, min(uvloop.run(self._us(seconds)) for _ in range(tries)) / BARE_US)

    async def _us(self, seconds: float) -> float:
        lanes = Lanes(self.port, 8, lambda _: _asking())
        until_s = time.monotonic() + START_LIMIT_S
        while not lanes.lanes:
            try:
                await lanes.open()
            except OSError:
                if time.monotonic() > until_s:
                    raise
                await asyncio.sleep(0.1)
        await lanes.run(0.3)
        begun = cpu_s(self.server.pid)
        tally = await lanes.run(seconds)
        lanes.close()
        return (cpu_s(self.server.pid) - begun) / max(1, tally.rounds) * 1e6

    def close(self) -> None:
        self.server.terminate()
        self.server.wait(10)


def _asking() -> Script:
    while True:
        yield "post", request("POST", "/", b"{}" * 150)
        yield None


# --- the run ---


@contextmanager
def product_for(loads: Sequence[Load]) -> Iterator[Deployment | None]:
    """One for all loads; None where there is none."""
    if not loads:
        yield None
        return
    with target.find(catalogue.find(loads[0].scenario), {}, own=True) as deployment:
        yield deployment


def measure(rows: Sequence[Row], feed: str) -> list[Found]:
    """The figures, row by row."""
    wanted = {name for row in rows for name in (row.source, row.over) if name}
    names = [name for name in SOURCES if name in wanted]
    begun_s = time.monotonic()
    stories: dict[str, Story] = {}
    results: list[Found] = []
    loads = [name for name in names if isinstance(SOURCES[name], Load)]
    say("what a bare request costs here")
    with contextlib.closing(Bare()) as bare:
        factor = bare.factor()
    say(f"  {factor:.2f} times what it cost where the bars were set")
    with ExitStack() as stack:
        if loads:
            say("starting a product for the load scenarios")
        product = stack.enter_context(product_for([one for name in loads if isinstance(one := SOURCES[name], Load)]))
        for number, name in enumerate(names):
            source = SOURCES[name]
            say(f"{number + 1} of {len(names)}, {time.monotonic() - begun_s:.0f} s: {name}")
            if isinstance(source, Load):
                assert product is not None
                stories[name] = played(source, product)
            else:
                stack.close()  # the product of the loads would share the cores
                stories[name] = asked(source, feed)
            for row in rows:
                if row.source == name and (not row.over or row.over in stories):
                    results.append(found(row, stories, factor))
                    say("  " + as_line(results[-1]))
    say(f"{time.monotonic() - begun_s:.0f} s in all")
    return results


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def as_line(one: Found) -> str:
    bars = [f"{label} {one.sign} {number(bar)} {holds}" for label, bar, holds in
            (("first", one.first, one.first_holds), ("now", one.then, one.then_holds)) if bar is not None]  # fmt: skip
    return f"{one.what}: {number(one.figure)} {one.unit} ({'; '.join(bars)}){' - ' + one.why if one.why else ''}"


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def as_markdown(results: Sequence[Found]) -> str:
    lines = [
        "Machine: what a bare ASGI request cost just before, in what it cost where the bars were set; `pass here`: the bar is held by that measure.", "",
        "| what | figure | first | now | ratio to the floor | machine | peer | command |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in results:
        bars = [
            f"{one.sign} {number(bar)}: {holds}" if bar is not None else ""
            for bar, holds in ((one.first, one.first_holds), (one.then, one.then_holds))
        ]
        ratio = f"{one.ratio:.2f}" if one.ratio is not None else ""
        why = f" ({one.why})" if one.why else ""
        lines.append(
            f"| {one.what} | {number(one.figure)} {one.unit}{why} | {bars[0]} | {bars[1]} | {ratio} | {one.machine:.1f} | {one.peer} | `{one.how}` |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bars", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="rows whose names begin so (may be given again)")
    parser.add_argument("--list", action="store_true", help="the rows, and nothing is measured")
    parser.add_argument("--feed", default="", metavar="FEED.zip", help="whose import is measured too")
    parser.add_argument("--out", type=Path, metavar="DIR", help="bars.json and bars.md there")
    args = parser.parse_args()
    rows = [row for row in ROWS if not args.only or any(row.name.startswith(one) for one in args.only)]
    if not rows:
        parser.error(f"no row begins so: {', '.join(row.name for row in ROWS)}")
    if args.list:
        width = max(len(row.name) for row in rows)
        print("\n".join(f"{row.name:<{width}}  {row.what}" for row in rows))
        return
    results = measure(rows, args.feed)
    text = as_markdown(results)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "bars.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)))
        (args.out / "bars.md").write_text(text)
    print(text)
    sys.exit(1 if any(SHORT in (one.first_holds, one.then_holds) for one in results) else 0)


if __name__ == "__main__":
    main()
