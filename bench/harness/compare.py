"""Two sides, measure by measure, with a verdict that knows noise.

Where each side is one run, its samples are up to ten blocks of the hold (each the middle one of its seconds); seconds next to each other are
alike, so they are no samples of their own, and what differs from run to run is out of sight. Where each side is four runs or more, a run is a
sample, and it is in sight. Whether two sides differ is the exact permutation test of their rank sum (Mann and Whitney, 1947), two-sided, ties
counted half: `beyond noise` where p < 0.01 for blocks, p < 0.05 for runs. A difference below 5 % is none, whatever its p: nobody acts on it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

import msgspec

from bench.harness import processes
from bench.harness.result import Result, Second
from bench.harness.thresholds import cost

BLOCKS_MOST: Final = 10
RUNS_LEAST: Final = 4  # three against three never come below p = 0.1
P_BLOCKS, P_RUNS = 0.01, 0.05
SMALL: Final = 0.05


class Line(msgspec.Struct, kw_only=True):
    """One measure. `change`: of the second side in the first, 0.1 for 10 % more. Seconds, or per second."""

    what: str
    better: str  # "lower", "higher"
    before: float
    after: float
    change: float
    p: float
    verdict: str  # better, worse, no difference beyond noise, too few samples


class Comparison(msgspec.Struct, kw_only=True):
    lines: list[Line]
    by: str  # "blocks" or "runs"
    notes: list[str]  # what makes the two sides hard to compare


def compare(before: Sequence[Result], after: Sequence[Result]) -> Comparison:
    """Raises ValueError where they are of different scenarios."""
    names = {result.scenario for result in (*before, *after)}
    if len(names) != 1 or not before or not after:
        raise ValueError(f"results of one scenario can be compared, not of {' and '.join(sorted(names)) or 'none'}")
    by_runs = min(len(before), len(after)) >= RUNS_LEAST
    lines = []
    for what, better, whole, of_second in _measures(before[0]):
        sides: list[list[float]] = []
        for results in (before, after):
            if by_runs:
                sides.append([value for result in results if (value := whole(result)) is not None])
            else:
                sides.append([value for result in results for value in blocks(result, of_second)])
        figures = [[value for result in results if (value := whole(result)) is not None] for results in (before, after)]
        if figures[0] and figures[1]:
            lines.append(_judged(what, better, statistics.median(figures[0]), statistics.median(figures[1]), *sides, by_runs=by_runs))
    return Comparison(lines=lines, by="runs" if by_runs else "blocks", notes=notes(before, after))


Whole = Callable[[Result], float | None]
OfSecond = Callable[[Second], float | None]


def _measures(result: Result) -> list[tuple[str, str, Whole, OfSecond]]:
    found: list[tuple[str, str, Whole, OfSecond]] = []
    for name in result.measures:
        for stat in ("p50", "p99"):
            found.append((f"{name}.{stat}", "lower", _whole_latency(name, stat), _second_latency(name, stat)))
    for name in result.counts:
        found.append((f"rate.{name}", "higher", lambda one, name=name: _rate(one, name), lambda at, name=name: at.counts.get(name)))  # type: ignore[misc]
        found.append((f"cost.{name}", "lower", lambda one, name=name: cost(one, name), lambda at, name=name: _second_cost(at, name)))  # type: ignore[misc]
    return found


def _whole_latency(name: str, stat: str) -> Whole:
    return lambda result: getattr(result.measures[name], f"{stat}_s") if name in result.measures else None


def _second_latency(name: str, stat: str) -> OfSecond:
    return lambda second: getattr(second, f"{stat}_s").get(name)


def _rate(result: Result, name: str) -> float | None:
    return result.counts[name] / result.seconds if name in result.counts else None


def _second_cost(second: Second, name: str) -> float | None:
    spent = [cores for process, cores in second.cpu.items() if processes.ours(process)]
    return sum(spent) / second.counts[name] if spent and second.counts.get(name) else None


def blocks(result: Result, of_second: OfSecond) -> list[float]:
    """Up to ten of the hold, each as long as the others: the median of its seconds."""
    values = [value for second in result.series if second.phase == "hold" and (value := of_second(second)) is not None]
    if not values:
        return []
    size = max(1, len(values) // BLOCKS_MOST)
    return [statistics.median(values[at : at + size]) for at in range(0, len(values) - size + 1, size)]


def _judged(what: str, better: str, before: float, after: float, a: Sequence[float], b: Sequence[float], *, by_runs: bool) -> Line:
    change = after / before - 1 if before else 0.0 if after == before else float("inf")
    p = rank_sum_p(a, b)
    limit = P_RUNS if by_runs else P_BLOCKS
    if least_p(len(a), len(b)) >= limit:
        verdict = "too few samples"
    elif p >= limit or abs(change) < SMALL:
        verdict = "no difference beyond noise"
    else:
        verdict = "better" if (change < 0) == (better == "lower") else "worse"
    return Line(what=what, better=better, before=before, after=after, change=change, p=p, verdict=verdict)


def rank_sum_p(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of the exact permutation distribution of `a`'s rank sum; 1.0 where one side is empty."""
    if not a or not b:
        return 1.0
    ranks = doubled_ranks([*a, *b])
    ways: list[dict[int, int]] = [{} for _ in range(len(a) + 1)]  # how many of the choices of k samples have such a sum
    ways[0][0] = 1
    for rank in ranks:
        for k in range(len(a), 0, -1):
            for total, count in ways[k - 1].items():
                ways[k][total + rank] = ways[k].get(total + rank, 0) + count
    centre = len(a) * sum(ranks) / len(ranks)
    off = abs(sum(ranks[: len(a)]) - centre)
    found = ways[len(a)]
    return sum(count for total, count in found.items() if abs(total - centre) >= off - 1e-9) / sum(found.values())


def doubled_ranks(values: Sequence[float]) -> list[int]:
    """Twice the rank of each, so that ties (who share the middle of their ranks) stay whole numbers."""
    ordered = sorted(values)
    first: dict[float, int] = {}
    last: dict[float, int] = {}
    for rank, value in enumerate(ordered, 1):
        first.setdefault(value, rank)
        last[value] = rank
    return [first[value] + last[value] for value in values]


@cache
def least_p(a: int, b: int) -> float:
    """The smallest p that so many samples can show."""
    return rank_sum_p(list(range(a)), list(range(a, a + b)))


def notes(before: Sequence[Result], after: Sequence[Result]) -> list[str]:
    """What is not the same on both sides, beside the product."""
    found = []
    for results, side in ((before, "first"), (after, "second")):
        found += [f"a run of the {side} side was refused as evidence: {result.refused}" for result in results if result.refused]
        found += [f"a run of the {side} side is broken: {sentence}" for result in results for sentence in result.broken]
        faults = sum(sum(result.faults.values()) for result in results)
        found += [f"{faults:,} faults on the {side} side"] if faults else []
    a, b = before[0], after[0]
    for what, one, other in (
        ("rate", a.rate, b.rate), ("options", a.options, b.options), ("seed", a.seed, b.seed), ("measured seconds", a.seconds, b.seconds),
        ("generators", a.generators.processes, b.generators.processes), ("machine", _same(a.machine), _same(b.machine)),
        ("workers", a.product.get("workers"), b.product.get("workers")),
    ):  # fmt: skip
        if one != other:
            found.append(f"{what} differ: {one} and {other}")
    return found


def _same(machine: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in machine.items() if name != "load"}
