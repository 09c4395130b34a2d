"""Waking at a moment, to a tenth of a millisecond: the loop's own timers have whole ones, which is more than many an answer takes.

On Linux a timerfd (timerfd_create(2)) on the clock of `time.monotonic`, watched by the loop like a socket; elsewhere the loop's timers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
import time
from typing import Final

CLOCK_MONOTONIC: Final = 1
ABSOLUTE: Final = 1


class _Spec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "at_s", "at_ns")]


class Alarm:
    """One at a time waits for it. Of the running loop; `close` when done."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung: asyncio.Future[None] | None = None
        self._fd = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.timerfd_create(CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._ring)

    async def until(self, moment: float) -> None:
        """Returns at `moment` (`time.monotonic`), or at once where it has passed."""
        wait_s = moment - time.monotonic()
        if wait_s <= 0:
            return
        if self._fd < 0:
            await asyncio.sleep(max(wait_s, 0.001))  # a shorter wait would be rounded to none, and spin
            return
        self._rung = self._loop.create_future()
        spec = _Spec(0, 0, int(moment), int(moment % 1 * 1e9) + 1)
        if self._libc.timerfd_settime(self._fd, ABSOLUTE, ctypes.byref(spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        await self._rung

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
        if self._rung is not None and not self._rung.done():
            self._rung.set_result(None)

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
