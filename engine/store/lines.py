"""Connections of the desk, handed from caller to caller without asyncpg's pool in between: its two tasks for each use were 80 us of a call.

The pool behind it opens, mends and closes connections. One that is given back in order waits here for the next caller; one whose caller met
an error or left in the middle goes back to the pool, which knows how to cancel and to clean up. Promises: at most `most` are out; nobody
waits longer than WAIT_S for one (TimeoutError); one that nobody needed for REST_S goes back to the pool, which closes it in time.

Two queues, each in order. Whoever goes on with what has begun comes before whoever begins something new, but for every NEW_EVERY-th time: what
is offered beyond what can be done waits at the door, where it can be turned away (`behind_s`), and not between the steps of a purchase.
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
NEW_EVERY: Final = 20  # a purchase is a hold and five transactions after it: a larger share would let in more than can be finished

Waiting = deque[tuple[asyncio.Future[Any], float]]  # (a connection comes, or None: there is room for another one; since when)


class Lines:
    """Over one asyncpg pool of at least `most` connections."""

    def __init__(self, pool: Any, most: int) -> None:
        self._pool, self._most = pool, most
        self._resting: deque[tuple[Any, float]] = deque()  # (connection, since when), the one that was used last at the right
        self._going_on: Waiting = deque()
        self._beginning: Waiting = deque()
        self._turn = 0
        self._let_in_at_s, self._gap_s = 0.0, 0.0  # when somebody who begins was served last, and the pace of it where a queue stands
        self._going: set[asyncio.Task[None]] = set()
        self._out = 0  # taken from the pool, resting ones too

    @contextlib.asynccontextmanager
    async def line(self, *, new: bool = False) -> AsyncIterator[Any]:
        """A connection for the length of the block; `new`: for what begins something. Raises what asyncpg raises where there is none,
        TimeoutError past WAIT_S."""
        taken = self._resting.pop()[0] if self._resting else await self._take(new)
        try:
            if _is_dead(taken):  # the server ended it while it rested
                old, taken = taken, None
                await self._drop(old)
                taken = await self._take(new)
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

    def behind_s(self) -> float:
        """How long who begins something now will wait: at least as long as the first in the queue has, and at its pace."""
        while self._beginning and self._beginning[0][0].done():
            self._beginning.popleft()
        if not self._beginning:
            return 0.0
        return max(asyncio.get_running_loop().time() - self._beginning[0][1], len(self._beginning) * self._gap_s)

    async def _take(self, new: bool) -> Any:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(WAIT_S):
                while self._out >= self._most:
                    room: asyncio.Future[Any] = loop.create_future()
                    (self._beginning if new else self._going_on).append((room, loop.time()))
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
        """To whoever's turn it is; None: room for one."""
        while self._going_on or self._beginning:
            self._turn += 1
            new = not self._going_on or (self._turn % NEW_EVERY == 0 and bool(self._beginning))
            room, since_s = (self._beginning if new else self._going_on).popleft()
            if new:
                self._pace(since_s)
            if not room.done():
                room.set_result(line)
                return
        if line is not None:
            self._resting.append((line, asyncio.get_running_loop().time()))

    def _pace(self, since_s: float) -> None:
        now_s = asyncio.get_running_loop().time()
        self._gap_s += (now_s - max(self._let_in_at_s, since_s) - self._gap_s) / 8
        self._let_in_at_s = now_s

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
