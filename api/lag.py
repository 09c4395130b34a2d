"""How late the event loop wakes."""

from __future__ import annotations

import asyncio
from typing import Final

from engine.clock import Clock
from engine.meter import SECONDS, Meter

LAG_EVERY_S: Final = 0.1


class LoopLag:
    """How late the event loop wakes: the time that something held it. A bar of its own, because everything waits behind it."""

    def __init__(self, clock: Clock, meter: Meter) -> None:
        self._clock = clock
        self._lag = meter.histogram("timepoint_loop_lag_seconds", "how late the event loop woke", bounds=SECONDS)
        self.newest_s = 0.0

    async def run(self) -> None:
        while True:
            due_s = self._clock.steady_s() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self.newest_s = max(0.0, self._clock.steady_s() - due_s)
            self._lag.observe(self.newest_s)
