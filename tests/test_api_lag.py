"""What holds the event loop is seen: a blocked loop, and the collector."""

from __future__ import annotations

import asyncio
import gc
import time

from api.lag import LAG_EVERY_S, LoopLag
from engine.clock import SystemClock
from engine.meter import Meter


async def test_a_loop_that_is_held_and_a_full_collection_are_counted_and_nothing_is_left_behind() -> None:
    meter, before = Meter(), list(gc.callbacks)
    lag = LoopLag(SystemClock(), meter)
    running = asyncio.create_task(lag.run())
    await asyncio.sleep(0)
    gc.collect()
    time.sleep(2 * LAG_EVERY_S)  # noqa: ASYNC251  # holds the loop
    await asyncio.sleep(0.01)
    assert lag.newest_s > LAG_EVERY_S / 2
    assert 'timepoint_gc_seconds_count{generation="2"} 1' in meter.text()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert gc.callbacks == before
