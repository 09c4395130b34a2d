"""`make bench`: every speed that the product promises, beside its bar, in less than ten minutes.

    python -m bench.bars                        all of them
    python -m bench.bars --only age --only fan  those whose names begin so (`--list` names them)
    python -m bench.bars --out folder           bars.json and bars.md too
    python -m bench.bars --feed FEED.zip        the import of that feed too

A row is one promise (`bench.promises` has them): where its figure comes from (a load scenario on a product of its own, or a bench with private
servers and a floor), the bar that the first form of the product had to reach, the one that counts now, and the ratio to what stands beside it: a floor
or peer of the same run, else a peer's published figure, by the machine's measure. What cannot be had here, or would take minutes, says `not measured`
and why. Bars on CPU and on rates that CPU bounds were set on a machine where a
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
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from bench.harness import catalogue, target, thresholds
from bench.harness.result import Result
from bench.harness.run import Plan, run
from bench.harness.schedule import Schedule
from bench.harness.target import Deployment
from bench.lanes import Lanes, Script, request
from bench.product import CHECKOUT, cpu_s
from bench.promises import ROWS, SOURCES, Bench, Elsewhere, Load, Row
from deploy.servers import free_port

BARE_US: Final = 23.0  # CPU of a bare ASGI request where the bars were set
COMMAND_LIMIT_S: Final = 240.0
START_LIMIT_S: Final = 30.0
STOP_LIMIT_S: Final = 20.0
PASS, HERE, SHORT, NONE, WEAK = "pass", "pass here", "SHORT", "not measured", "no evidence"


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
    ratio: float | None
    to: str  # what the ratio is to
    machine: float  # what a bare request cost just before, in what it cost where the bars were set
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
    match = re.search(ask, story.text) if ask else None
    return float(match[1].replace(",", "")) if match else None


def found(row: Row, stories: Mapping[str, Story], factor: float) -> Found:
    """`factor`: how much more a bare request costs here than where the bars were set."""
    story = stories[row.source]
    figure = figure_of(story, row.ask, row.unit)
    if row.over and figure is not None:
        below = figure_of(stories[row.over], row.ask, row.unit)
        figure = figure / below if below else None
    why = story.fault or ("" if figure is not None else reason(row, story))
    refused, broken = False, False
    if story.result is not None:
        refused, broken = bool(story.result.refused), bool(story.result.broken)
        why = "; ".join(story.result.broken) or story.result.refused.partition(": ")[0] or why
    ratio, to = beside(row, story, figure, factor)
    return Found(
        name=row.name, what=row.what, how=command_of(SOURCES[row.source]), figure=figure, unit=row.unit, sign=row.sign, first=row.first, then=row.then,
        ratio=ratio, to=to, machine=factor, why=why,
        first_holds=verdict(row, figure, row.first, factor, broken=broken, refused=refused),
        then_holds=verdict(row, figure, row.then, factor, broken=broken, refused=refused),
    )  # fmt: skip


def command_of(source: Load | Bench | Elsewhere) -> str:
    """What measures it alone."""
    if isinstance(source, Load):
        plain = {option.name: option.default for option in catalogue.find(source.scenario).options}
        told = [f"--option {name}={value:g}" for name, value in source.options.items() if value != plain[name]]
        times = f"--rate {source.rate:g} --seconds {source.seconds} --warm-up {source.warm_up}"
        times += f" --processes {source.processes}" if source.processes > 1 else ""
        return " ".join(["timepoint bench run", source.scenario, "--own", times, *told])
    return source.command if isinstance(source, Elsewhere) else "python -m " + " ".join(source.argv).replace("{feed}", "FEED.zip")


def reason(row: Row, story: Story) -> str:
    """Why there is no figure."""
    match = re.search(row.lacks, story.text) if row.lacks else None
    return match[1] if match else "its source did not say it"


def beside(row: Row, story: Story, figure: float | None, factor: float) -> tuple[float | None, str]:
    """The ratio to the floor or peer, and which that is."""
    if row.unit == "x":
        return figure, row.peer
    floor = figure_of(story, row.floor, row.unit) if row.floor else None
    if floor:
        return (figure / floor if figure is not None else None), "; ".join(filter(None, (f"{row.floor_is}, same run", row.peer)))
    if row.published is None:
        return None, row.peer
    eased = 1.0 if not row.by_cpu else 1 / factor if row.sign == ">=" else factor
    return (figure / (row.published * eased) if figure is not None else None), f"{row.peer} {number(row.published)} {row.unit} published"


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
    plan = Plan(scenario=load.scenario, schedule=schedule, options=options, processes=load.processes)
    try:
        return Story(result=uvloop.run(run(plan, product, lambda seen: None)))
    except Exception as fault:  # whatever a scenario raises: one row must not take the others with it, and says it
        return Story(fault=f"{type(fault).__name__}: {fault}")


def asked(bench: Bench, feed: str) -> Story:
    argv = [feed if word == "{feed}" else word for word in bench.argv]
    if "{feed}" in bench.argv and not feed:
        return Story(fault="give it a feed: --feed FEED.zip")
    with subprocess.Popen(
        [sys.executable, "-m", *argv], cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            said, faults = process.communicate(timeout=COMMAND_LIMIT_S)
        except subprocess.TimeoutExpired:
            stopped(process)
            return Story(fault=f"no end within {COMMAND_LIMIT_S:.0f} s")
    fault = faults.strip().splitlines()[-1:] if process.returncode not in (0, 1) or not said else []
    return Story(text=said, fault=" ".join(fault)[:200])


def stopped(process: subprocess.Popen[str]) -> None:
    """As Ctrl-C does it, so that it takes its servers with it; what does not heed that is killed."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.communicate(timeout=STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


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
            elif isinstance(source, Elsewhere):
                stories[name] = Story(fault=source.why)
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
    return f"{one.what}: {shown(one)} ({'; '.join(bars)})"


def shown(one: Found) -> str:
    """The figure, or why there is none."""
    if one.figure is None:
        return f"{NONE}: {one.why}"
    return f"{number(one.figure)} {one.unit}".rstrip() + (f" ({one.why})" if one.why else "")


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or not value else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def as_markdown(results: Sequence[Found]) -> str:
    lines = [
        "Machine: what a bare ASGI request cost just before, in what it cost where the bars were set; `pass here`: the bar is held by that measure.",
        "Ratio: to the floor or peer of the same run, else to what was published of the peer (where CPU bounds it, by the machine's measure).", "",
        "| what | figure | first | now | ratio | to | machine | command |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in results:
        bars = [
            f"{one.sign} {number(bar)}: {holds}" if bar is not None else ""
            for bar, holds in ((one.first, one.first_holds), (one.then, one.then_holds))
        ]
        ratio = f"{one.ratio:.2f}" if one.ratio is not None else ""
        lines.append(f"| {one.what} | {shown(one)} | {bars[0]} | {bars[1]} | {ratio} | {one.to} | {one.machine:.1f} | `{one.how}` |")
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
