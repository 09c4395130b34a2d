"""Connections of the desk, handed from caller to caller without asyncpg's pool in between: its two tasks for each use were 80 us of a call.

The pool behind it opens, mends and closes connections. One that is given back in order waits here for the next caller; one whose caller met
an error or left in the middle goes back to the pool, which knows how to cancel and to clean up. Promises: at most `most` are out; nobody
waits longer than WAIT_S for one (TimeoutError), in order; one that nobody needed for REST_S goes back to the pool, which closes it in time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg

WAIT_S: Final = 5.0
REST_S: Final = 60.0


class Lines:
    """Over one asyncpg pool of at least `most` connections."""

    def __init__(self, pool: Any, most: int) -> None:
        self._pool, self._most = pool, most
        self._resting: deque[tuple[Any, float]] = deque()  # (connection, since when), the one that was used last at the right
        self._waiting: deque[asyncio.Future[Any]] = deque()  # a connection comes, or None: there is room for another one
        self._going: set[asyncio.Task[None]] = set()
        self._out = 0  # taken from the pool, resting ones too

    @contextlib.asynccontextmanager
    async def line(self) -> AsyncIterator[Any]:
        """A connection for the length of the block. Raises what asyncpg raises where there is none, TimeoutError past WAIT_S."""
        taken = self._resting.pop()[0] if self._resting else await self._take()
        try:
            if _is_dead(taken):  # the server ended it while it rested
                old, taken = taken, None
                await self._drop(old)
                taken = await self._take()
            yield taken
        except BaseException:
            if taken is not None:
                await self._drop(taken)
            raise
        self._give(taken)

    async def close(self) -> None:
        """Those that rest go back."""
        while self._resting:
            await self._drop(self._resting.pop()[0])

    async def _take(self) -> Any:
        try:
            async with asyncio.timeout(WAIT_S):
                while self._out >= self._most:
                    room: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                    self._waiting.append(room)
                    try:
                        given = await room
                    except asyncio.CancelledError:
                        if room.done() and not room.cancelled():  # it came just now, and is for somebody else
                            self._hand_on(room.result())
                        raise
                    if given is not None:
                        return given
        except TimeoutError as fault:
            raise TimeoutError("no connection became free") from fault
        self._out += 1
        try:
            return await self._pool.acquire(timeout=WAIT_S)
        except BaseException:
            self._out -= 1
            self._hand_on(None)
            raise

    def _give(self, line: Any) -> None:
        self._hand_on(line)
        now_s = asyncio.get_running_loop().time()
        if self._resting and now_s - self._resting[0][1] > REST_S:
            task = asyncio.get_running_loop().create_task(self._drop(self._resting.popleft()[0]), name="a connection goes back")
            self._going.add(task)
            task.add_done_callback(self._going.discard)

    def _hand_on(self, line: Any) -> None:
        """To whoever waits longest; None: room for one."""
        while self._waiting:
            room = self._waiting.popleft()
            if not room.done():
                room.set_result(line)
                return
        if line is not None:
            self._resting.append((line, asyncio.get_running_loop().time()))

    async def _drop(self, line: Any) -> None:
        """Back to the pool, whatever state it is in."""
        try:
            await self._pool.release(line)
        finally:
            self._out -= 1
            self._hand_on(None)


def _is_dead(line: Any) -> bool:
    try:
        return bool(line.is_closed())
    except asyncpg.InterfaceError:  # the pool has taken it back by itself
        return True
