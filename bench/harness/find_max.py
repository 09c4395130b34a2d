"""`find-max`: the highest rate whose thresholds hold, step by step on one target.

A rate holds if it does in one of `tries` runs: on a shared machine a step must not fail for what a neighbour did. Where the generators lag before
a threshold is missed, what is found is their limit, not the product's: the search ends and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from bench.harness import thresholds
from bench.harness.result import Result
from bench.harness.search import Search

NO_FAULTS = "faults<0.1%"  # where no threshold says a word on faults: a rate that fails its callers is no rate


class Step(msgspec.Struct, kw_only=True):
    rate: float
    held: bool
    tries: int
    result: Result  # of the last try


class Found(msgspec.Struct, kw_only=True):
    """`rate`: the highest that held; None: none did. `limit`: the lowest that did not. `why_ended`: "" where the search came to its end."""

    scenario: str
    rate: float | None
    limit: float | None
    within: float
    steps: list[Step]
    why_ended: str = ""


def rules_of(texts: Sequence[str]) -> list[thresholds.Rule]:
    """Raises ValueError where there are none: a search needs something that can break."""
    if not texts:
        raise ValueError("what must hold? Give --threshold, for example --threshold 'answer.p99<50ms'")
    rules = [thresholds.parse(text) for text in texts]
    return rules if any(rule.what[0] in ("faults", "fault") for rule in rules) else [*rules, thresholds.parse(NO_FAULTS)]


def find(
    search: Search, rules: Sequence[thresholds.Rule], measure: Callable[[float], Result], tries: int, tell: Callable[[Step], None]
) -> Found:
    """`measure` makes one run at a rate; `tell` hears of every step."""
    steps: list[Step] = []
    why = ""
    while (rate := search.next_rate()) is not None and not why:
        held, tried = False, 0
        while not held and tried < tries:
            result, tried = measure(rate), tried + 1
            result.thresholds = thresholds.judge(rules, result)
            held = not result.refused and not result.broken and all(one.held for one in result.thresholds)
        step = Step(rate=rate, held=held, tries=tried, result=result)
        steps.append(step)
        tell(step)
        if result.refused:
            why = f"at {rate:g} a second the run was no evidence: {result.refused}"
        else:
            search.tell(rate, held)
    return Found(
        scenario=steps[-1].result.scenario, rate=search.held, limit=search.failed, within=search.within, steps=steps, why_ended=why
    )
