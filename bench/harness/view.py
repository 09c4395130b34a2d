"""What a person sees while a run goes on: a bar, rates, percentiles, faults and lag on a terminal; a plain line every few seconds elsewhere."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.harness.result import Second
from bench.harness.run import Plan, Seen

PLAIN_EVERY_S: Final = 5


def seconds(value: float | None) -> str:
    """Readable: 850 us, 12.3 ms, 4.56 s."""
    if value is None:
        return "-"
    if value < 0.00095:
        return f"{value * 1e6:.0f} us"
    return f"{value * 1e3:.1f} ms" if value < 0.9995 else f"{value:.2f} s"


def percentiles(second: Second) -> str:
    return "  ".join(f"{name} p50 {seconds(value)} p99 {seconds(second.p99_s.get(name))}" for name, value in second.p50_s.items())


class Shown:
    """`with Shown(plan, console) as shown:` and `shown.see` is the run's view."""

    def __init__(self, plan: Plan, console: Console, *, quiet: bool = False) -> None:
        """`quiet`: nothing but the bar of a terminal."""
        self._plan, self._console, self._quiet = plan, console, quiet
        self._rich = console.is_terminal and not os.environ.get("CI")
        self._bar = Progress(TextColumn("{task.description:<10}"), BarColumn(40), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
        self._task = self._bar.add_task("preparing", total=plan.schedule.end_s, said="")
        self._live = Live(self._bar, console=console, refresh_per_second=4, transient=True) if self._rich else None
        self._step = ""
        self._plain_at: float = -PLAIN_EVERY_S

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def see(self, seen: Seen) -> None:
        second = seen.second
        phase = second.phase if seen.step == "running" and second is not None else seen.step
        if self._live is not None:
            self._bar.update(self._task, description=phase, completed=min(seen.at_s, self._plan.schedule.end_s))
            self._live.update(Group(self._bar, self._table(seen)) if second is not None else self._bar)
        elif self._quiet:
            return
        elif phase != self._step or (second is not None and second.at_s - self._plain_at >= PLAIN_EVERY_S):
            self._say(phase, seen)
        self._step = phase

    def _say(self, phase: str, seen: Seen) -> None:
        second = seen.second
        if second is None or seen.tally is None:
            self._console.print(phase, markup=False)
            return
        self._plain_at = second.at_s
        counts = " ".join(f"{name} {value}/s" for name, value in second.counts.items())
        faults = sum(seen.tally.faults.values())
        self._console.print(
            f"{second.at_s:5.0f} s {phase:<8} offered {second.offered:.0f}/s {counts}  {percentiles(second)}  faults {faults}  "
            f"lag {seconds(second.lag_s)}", markup=False, soft_wrap=True,
        )  # fmt: skip

    def _table(self, seen: Seen) -> Table:
        second, tally = seen.second, seen.tally
        assert second is not None and tally is not None
        table = Table(box=None, show_header=False, padding=(0, 2))
        table.add_row("offered", f"{second.offered:,.0f}/s")
        for name, count in second.counts.items():
            table.add_row(name, f"{count:,}/s")
        for name, p50_s in second.p50_s.items():
            table.add_row(name, f"p50 {seconds(p50_s)}  p99 {seconds(second.p99_s[name])}")
        if second.cpu:
            table.add_row("cores", "  ".join(f"{name} {cores:.2f}" for name, cores in second.cpu.items()))
        faults = tally.faults
        table.add_row("faults", "[red]" + ", ".join(f"{name} {n:,}" for name, n in faults.items()) if faults else "none")
        late = second.lag_s > self._plan.lag_limit_s
        table.add_row("own lag", f"{'[yellow]' if late else ''}{seconds(second.lag_s)} (worst of any generator)")
        return table


def console() -> Console:
    """Progress goes to standard error: what a run has found can be piped."""
    return Console(file=sys.stderr, highlight=False)
