"""A generator's part of the load without the harness: even moments on the test's own loop, and everything noted in plain lists."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from bench.harness.scenario import Scenario, Target


class TestShare:
    """bench.harness.scenario.Share, one of one."""

    __test__ = False

    def __init__(self, url: str, data: Any, options: Mapping[str, Any], rate: float, seconds: float) -> None:
        self.number, self.of, self.seed = 0, 1, 7
        self.url, self.data, self.options = url, data, options
        self.rate, self.seconds = rate, seconds
        self.notes: dict[str, list[float]] = {}
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.offered = 0
        self._began_s = 0.0

    async def begun(self) -> float:
        self._began_s = self._began_s or time.monotonic()
        return self._began_s

    async def moments(self) -> AsyncIterator[float]:
        began_s = await self.begun()
        for number in range(round(self.rate * self.seconds)):
            moment = began_s + number / self.rate
            await asyncio.sleep(max(0.0, moment - time.monotonic()))
            self.offered += 1
            yield moment
        await self.over()

    async def over(self) -> None:
        await asyncio.sleep(max(0.0, await self.begun() + self.seconds - time.monotonic()))

    def epoch_ms(self, moment: float) -> int:
        return round((time.time() - time.monotonic() + moment) * 1000)

    def note(self, measure: str, seconds: float) -> None:
        self.notes.setdefault(measure, []).append(seconds)

    def count(self, what: str, by: int = 1) -> None:
        self.counts[what] += by

    def fault(self, what: str) -> None:
        self.faults[what] += 1


async def run(kind: type[Scenario], target: Target, rate: float, seconds: float, **given: Any) -> tuple[TestShare, list[str]]:
    """A short run of one generator: its share, and what `verify` found."""
    options = {option.name: option.default for option in kind.options} | given
    scenario = kind()
    data = await asyncio.to_thread(scenario.prepare, target, options, rate, 7)
    share = TestShare(target.url, msgspec.json.decode(msgspec.json.encode(data)), options, rate, seconds)
    async with asyncio.timeout(seconds + 60):
        await scenario.drive(share)
    return share, await asyncio.to_thread(scenario.verify, target, share.data, dict(share.counts))
