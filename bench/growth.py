"""How cost grows: CPU a unit of work and p99 over three decades of fixes a second, watchers, channels, fences and trips, and over all sizes of a bus.

    python -m bench.growth                      all six: about eight minutes; figures go to docs/growth.json, plots and tables beside it
    python -m bench.growth fixes watchers       some; the others keep the figures that the file has
    python -m bench.growth --draw               measures nothing: plots and tables from the file

Each axis is measured on one product of its own, one worker, from small to large; generator and watchers are on the same cores. CPU is that of
each process as the kernel counts it. A knee is the first point at which p99 is four times what it was on the median of those before, or the
CPU of a unit twice the least before it; its cause is the process that is full there, where one is. From CPU a unit where it
was least the last table says what deployments of 10,000 buses and more need, if it stays so: what areas and shards are for.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.crowd import raise_limit
from bench.growth_axes import AXES, Point
from bench.harness import machine
from bench.harness import report_plots as plots
from bench.product import CHECKOUT

KNEE_TIMES, KNEE_COST = 4.0, 2.0
LEAST_MS = 1.0  # below it a p99 is the machine's
FULL = 0.85  # of a core: a process on one thread has no more to give
DOCS = CHECKOUT / "docs"


class Curve(msgspec.Struct):
    """One axis as measured."""

    axis: str
    points: list[Point]
    machine: dict[str, str] = {}


def knee(points: Sequence[Point], *, in_rounds: bool = False) -> int | None:
    """Which point is the first beyond it; None: there is none in sight. `in_rounds`: p99 is taken for each of those that a round reaches."""

    def late(one: Point) -> float:
        return one.p99_ms / one.x if in_rounds else max(LEAST_MS, one.p99_ms)

    for i in range(2, len(points)):
        before = points[:i]
        if late(points[i]) > KNEE_TIMES * statistics.median(late(one) for one in before):
            return i
        if points[i].unit_us > KNEE_COST * min(one.unit_us for one in before):
            return i
    return None


def cause(point: Point) -> str:
    """What is full at a point, from the cores that were busy."""
    full = {name: busy for name, busy in point.cores.items() if busy >= FULL}
    if full:
        return " and ".join(f"{name} is full ({busy:.2f} of a core)" for name, busy in sorted(full.items(), key=lambda one: -one[1]))
    total = sum(point.cores.values())
    most = max(point.cores, key=lambda name: point.cores[name], default="")
    if not most:
        return "one call's own work, or whatever else the machine did"
    return f"no process of the product is full ({total:.2f} cores busy in all, most of it {most}), so it waited for others on these cores"


def drawn(curve: Curve) -> str:
    """Two panels' worth of one axis as an SVG file: CPU a unit by process (lines), p99 dashed on the same decades."""
    axis, points = AXES[curve.axis], curve.points
    names = [name for name in points[-1].us if max(one.us.get(name, 0.0) for one in points) > 0]
    lines = [plots.Line("us, all" if len(names) > 1 else f"us, {names[0]}", [(one.x, one.unit_us) for one in points])]
    lines += [plots.Line(f"us, {name}", [(one.x, one.us.get(name) or None) for one in points]) for name in names if len(names) > 1]
    lines.append(plots.Line("p99, us" if axis.in_us else "p99, ms", [(one.x, one.p99_ms * (1e3 if axis.in_us else 1)) for one in points]))
    values = [value for line in lines for _, value in line.points if value is not None]
    at = knee(points, in_rounds=axis.in_rounds)
    x = plots.log([one.x for one in points], axis.label)
    marks = [] if at is None else [(points[at].x, "knee")]
    y = plots.log([max(value, 0.05) for value in values])
    return plots.alone(plots.chart(axis.title, lines, x, y, marks=marks, dots=True), [line.name for line in lines])


def table(curve: Curve) -> str:
    """The same as Markdown, with knee and cause."""
    axis, points = AXES[curve.axis], curve.points
    names = list(dict.fromkeys(name for one in points for name in one.us))
    head = [axis.label, *(f"{name} us" for name in names), "p99 ms", "units/s", "cores busy"]
    rows = [
        [
            plots.number(one.x), *(f"{one.us[name]:,.1f}" if name in one.us else "-" for name in names), f"{one.p99_ms:,.3g}",
            f"{one.per_s:,.0f}" if one.per_s else "-", f"{sum(one.cores.values()):.2f}" if one.cores else "-",
        ]
        for one in points
    ]  # fmt: skip
    at = knee(points, in_rounds=axis.in_rounds)
    if at is None:
        said = f"No knee up to {plots.number(points[-1].x)}."
    else:
        said = f"Knee between {plots.number(points[at - 1].x)} and {plots.number(points[at].x)}: {cause(points[at])}."
    if busy := curve.machine.get("load"):
        said += f" Load of the machine after it: {busy}."
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return f"### {axis.title}\n\n{axis.about} {said}\n\n![{axis.title}](growth-{curve.axis}.svg)\n\n" + "\n".join(lines) + "\n"


# -- what deployments need -------------------------------------------------------------------------------------------------------------------

FIX_BYTES, UPDATE_BYTES = 620, 560  # on the wire, with headers of HTTP or frame, TCP and IP
ROW_BYTES = 90  # of history on disk, before compression
UPDATES_PER_FIX = 1.0  # one watcher for each bus


def needs(curves: dict[str, Curve]) -> str:
    """Cores, Redis, PostgreSQL and network of fleets that report once a second, one watcher a bus, from CPU a unit where it was least."""
    if "fixes" not in curves or "watchers" not in curves:
        return ""
    fix, update = _cheapest(curves["fixes"]), _cheapest(curves["watchers"])
    worker, redis, postgres = fix.us.get("worker", 0.0), fix.us.get("redis", 0.0), fix.us.get("postgres", 0.0)
    send = update.us.get("worker", 0.0) * UPDATES_PER_FIX
    head = [
        "buses at 1 Hz",
        "cores for workers",
        "areas at least",
        "Redis cores (shards)",
        "PostgreSQL cores",
        "history rows/day",
        "GB/day on disk",
        "in / out, Mbit/s",
    ]
    rows = []
    for buses in (10_000, 100_000, 1_000_000):
        cores = buses * (worker + send) / 1e6
        areas, shards = -(-buses * worker // (FULL * 1e6)), -(-buses * redis // (FULL * 1e6))
        net_in, net_out = buses * FIX_BYTES * 8 / 1e6, buses * UPDATES_PER_FIX * UPDATE_BYTES * 8 / 1e6
        rows.append([
            f"{buses:,}", f"{cores:,.1f}", f"{areas:,.0f}", f"{buses * redis / 1e6:,.1f} ({shards:,.0f})", f"{buses * postgres / 1e6:,.1f}",
            f"{buses * 86_400:,.2g}", f"{buses * 86_400 * ROW_BYTES / 1e9:,.0f}", f"{net_in:,.0f} / {net_out:,.0f}",
        ])  # fmt: skip
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    of_what = (
        f"{worker:,.0f} us of the worker, {redis:,.0f} of Redis and {postgres:,.0f} of PostgreSQL a fix (at {plots.number(fix.x)} fixes/s) and "
        f"{send:.1f} us a delivery (at {plots.number(update.x)} watchers)"
    )
    return (
        f"### What 10,000, 100,000 and 1,000,000 buses need\n\nReckoned from where a unit was cheapest, {of_what}, one watcher a bus, "
        "on cores like this machine's and at 100 % of them: add a half for peaks. A fix every ten seconds is a tenth of it. "
        "An area is owned by one worker, so a fleet is split into "
        "as many feeds at least; a shard of Redis is one core.\n\n" + "\n".join(lines) + "\n"
    )


def _cheapest(curve: Curve) -> Point:
    """Where a unit cost least: with few of them most of it is the product at rest, beyond the knee it is waiting."""
    return min(curve.points, key=lambda one: one.unit_us)


# -- files ---------------------------------------------------------------------------------------------------------------------------------


def read(file: Path) -> dict[str, Curve]:
    return msgspec.json.decode(file.read_bytes(), type=dict[str, Curve]) if file.exists() else {}


def draw(curves: dict[str, Curve], docs: Path) -> str:
    """Writes the plots; answers the Markdown."""
    parts = []
    for name in AXES:
        if name in curves:
            (docs / f"growth-{name}.svg").write_text(drawn(curves[name]), encoding="utf-8")
            parts.append(table(curves[name]))
    text = "\n".join([*parts, needs(curves)])
    how = "one worker, generator and watchers on the same cores; CPU in microseconds a unit"
    intro = f"# How cost grows\n\nMeasured by `python -m bench.growth`: {how}.\n\n"
    (docs / "growth.md").write_text(intro + text, encoding="utf-8")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("axis", nargs="*", help=f"of {', '.join(AXES)} (default: all)")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--docs", type=Path, default=DOCS, metavar="FOLDER", help="where figures, plots and tables go (default docs)")
    args = parser.parse_args(argv)
    if unknown := set(args.axis) - set(AXES):
        parser.error(f"there is no {', '.join(unknown)}: {', '.join(AXES)}")
    raise_limit()
    args.docs.mkdir(parents=True, exist_ok=True)
    file = args.docs / "growth.json"
    for name in [] if args.draw else args.axis or list(AXES):
        print(f"{name}: {AXES[name].title}", file=sys.stderr, flush=True)
        points = []
        for point in AXES[name].measure():
            points.append(point)
            us = ", ".join(f"{part} {each:.1f}" for part, each in point.us.items())
            print(f"  {point.x:>9,.0f}  {us} us; p99 {point.p99_ms:.3g} ms", file=sys.stderr, flush=True)
            curves = read(file) | {name: Curve(name, points, machine.described())}  # after each: an axis that is cut off keeps what it has
            file.write_bytes(msgspec.json.format(msgspec.json.encode(curves), indent=1) + b"\n")
    print(draw(read(file), args.docs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
