"""Thresholds: `fanout.p99<100ms`. What can be said, and whether it holds for a result.

    MEASURE.p50 .p90 .p99 .p99.9 .max .mean .count      latencies, in s, ms or us: answer.p99<=20ms
    count.NAME   rate.NAME                              a counter over the hold, and per second: rate.accepted>=1500
    faults   fault.NAME                                 all faults, or those of one name; % is of the units offered: faults<0.1%
    cost.NAME   cost.NAME.PROCESS                       CPU of the product's processes (or of one: redis) per NAME counted: cost.accepted<80us
    cores.PROCESS   memory.PROCESS   growth.PROCESS     cores; KB, MB or GB at the end; % of memory gained over the hold
    figure.NAME                                         a figure of the scenario's own, as it is: figure.memory_slope<2
    looplag.p99   lag.p99                               how late the product's loop woke, and the generators' own

Comparisons: < <= > >= ==. A figure that was not measured does not hold: a threshold that watches nothing is no threshold.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from bench.harness import histogram, processes
from bench.harness.result import Result, Threshold

COMPARISONS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
TIMES: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
SIZES: Final = {"KB": 1.0, "MB": 1024.0, "GB": 1024.0 * 1024}
TEXT: Final = re.compile(
    r"\s*(?P<what>[A-Za-z][\w\- :./]*?)\s*(?P<sign><=|>=|==|<|>)\s*(?P<bound>\d+(?:\.\d+)?)\s*(?P<unit>%|[A-Za-z]*)\s*"
)
PERCENTILE: Final = re.compile(r"p(\d{1,2}(?:\.\d+)?|999)")
NUMBER: Final = {"": 1.0}
SHARE: Final = {"%": 0.01}
KINDS: Final = {
    "count": NUMBER, "rate": NUMBER, "faults": NUMBER | SHARE, "fault": NUMBER | SHARE, "cost": TIMES, "cores": NUMBER, "memory": SIZES,
    "growth": SHARE, "figure": NUMBER, "looplag": TIMES, "lag": TIMES,
}  # fmt: skip


class Rule(msgspec.Struct, frozen=True):
    """One threshold. `what` in parts; `bound` in seconds, KB, shares or as it is; `scale`: of the unit that was written."""

    text: str
    what: tuple[str, ...]
    sign: str
    bound: float
    unit: str
    scale: float

    def holds(self, figure: float) -> bool:
        return COMPARISONS[self.sign](figure, self.bound)


def parse(text: str) -> Rule:
    """Raises ValueError with what is wrong and an example."""
    match = TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"threshold {text!r}: write it like fanout.p99<100ms, rate.accepted>=500, faults<0.1%")
    what, unit = _parts(match["what"]), match["unit"]
    kind, rest = what[0], what[1:]
    if kind not in KINDS:
        if len(what) != 2 or not (rest[0] in ("max", "mean", "count") or PERCENTILE.fullmatch(rest[0])):
            raise ValueError(f"threshold {text!r}: of a measure p50, p99, p99.9, max, mean or count can be asked, as in answer.p99<20ms")
        units = NUMBER if rest[0] == "count" else TIMES
    else:
        units = KINDS[kind]
        few, many = {"faults": (0, 0), "cost": (1, 2), "looplag": (1, 1), "lag": (1, 1)}.get(kind, (1, 1))
        if not few <= len(rest) <= many or (kind in ("looplag", "lag") and rest != ("p99",)):
            raise ValueError(f"threshold {text!r}: {_example(kind)}")
    if unit not in units:
        raise ValueError(f"threshold {text!r}: its unit must be {' or '.join(name or 'left out' for name in units)}")
    return Rule(text.strip(), what, match["sign"], float(match["bound"]) * units[unit], unit, units[unit])


def _parts(what: str) -> tuple[str, ...]:
    """By dots, except for the one inside p99.9 and in names of faults."""
    kind, _, rest = what.partition(".")
    if not rest:
        return (kind,)
    return (kind, *rest.split(".")) if kind == "cost" else (kind, rest)


def _example(kind: str) -> str:
    examples = {
        "count": "count.accepted>=1000", "rate": "rate.accepted>=500", "faults": "faults<1", "fault": "fault.503<1", "cost": "cost.accepted<80us",
        "cores": "cores.worker-0<0.9", "memory": "memory.worker-0<500MB", "growth": "growth.worker-0<2%", "looplag": "looplag.p99<50ms",
        "lag": "lag.p99<10ms", "figure": "figure.memory_slope<2",
    }  # fmt: skip
    return f"write it like {examples[kind]}"


def judge(rules: Iterable[Rule], result: Result) -> list[Threshold]:
    """Each with its figure in the unit that was written."""
    found = []
    for rule in rules:
        value = figure(rule, result)
        shown = None if value is None else value / (1.0 if rule.unit == "%" else rule.scale) * (100 if rule.unit == "%" else 1)
        found.append(Threshold(text=rule.text, figure=shown, held=value is not None and rule.holds(value)))
    return found


def figure(rule: Rule, result: Result) -> float | None:
    """What the rule asks for: seconds, KB, a share, a number; None where nothing of that name was measured."""
    kind, rest = rule.what[0], rule.what[1:]
    match kind:
        case "count" | "rate":
            count = result.counts.get(rest[0])
            return count if count is None or kind == "count" else count / result.seconds
        case "faults" | "fault":
            count = sum(result.faults.values()) if kind == "faults" else result.faults.get(rest[0], 0)
            return count / max(1, result.offered) if rule.unit == "%" else count
        case "cost":
            return cost(result, rest[0], rest[1] if len(rest) > 1 else None)
        case "cores":
            spent = result.server.cpu_s.get(rest[0])
            return None if spent is None else spent / result.seconds
        case "memory":
            return result.server.memory_kb.get(rest[0], [None])[-1]
        case "growth":
            first, last = result.server.memory_kb.get(rest[0], (0, 0))
            return last / first - 1 if first else None
        case "figure":
            return result.figures.get(rest[0])
        case "looplag":
            return result.server.loop_lag_p99_s
        case "lag":
            return result.generators.lag_p99_s
    return _latency(result, kind, rest[0])


def cost(result: Result, name: str, process: str | None = None) -> float | None:
    """CPU seconds per so-called unit: of one process, or of all that are the product itself (servers beneath it have a line of their own)."""
    count = result.counts.get(name)
    spent = [cpu_s for one, cpu_s in result.server.cpu_s.items() if (processes.ours(one) if process is None else one == process)]
    return sum(spent) / count if spent and count else None


def _latency(result: Result, measure: str, stat: str) -> float | None:
    latency = result.measures.get(measure)
    if latency is None:
        return None
    if stat in ("max", "mean"):
        return latency.max_s if stat == "max" else latency.mean_s
    if stat == "count":
        return latency.count
    share = 0.999 if stat == "p999" else float(stat[1:]) / 100
    return histogram.decode(latency.hdr).percentile(share)
