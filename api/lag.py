"""How late the event loop wakes, and how long the garbage collector holds it."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, Final

from engine.clock import Clock
from engine.meter import SECONDS, Meter

LAG_EVERY_S: Final = 0.1


class LoopLag:
    """How late the event loop wakes: the time that something held it. A bar of its own, because everything waits behind it."""

    def __init__(self, clock: Clock, meter: Meter) -> None:
        self._clock = clock
        self._lag = meter.histogram("timepoint_loop_lag_seconds", "how late the event loop woke", bounds=SECONDS)
        self._collected = meter.histogram("timepoint_gc_seconds", "one garbage collection, by generation", ("generation",), bounds=SECONDS)
        self._began_s = 0.0
        self.newest_s = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        gc.callbacks.append(self._collecting)
        try:
            while True:
                due_s = self._clock.steady_s() + LAG_EVERY_S
                await asyncio.sleep(LAG_EVERY_S)
                self.newest_s = max(0.0, self._clock.steady_s() - due_s)
                self._lag.observe(self.newest_s)
        finally:
            gc.callbacks.remove(self._collecting)

    def _collecting(self, phase: str, info: dict[str, Any]) -> None:
        """Called by the collector before and after; the youngest generation is too short and too often to be looked at."""
        if info["generation"] == 0:
            return
        if phase == "start":
            self._began_s = self._clock.steady_s()
        else:
            self._collected.observe(self._clock.steady_s() - self._began_s, str(info["generation"]))
