"""Group commit: what callers ask while the call before is under way goes to the database together, in one call and one transaction.

Batches come about by nature. There is no timer: whoever asks alone goes at once, as a batch of one, by the same path. Promises: callers are
served in the order in which they asked; at most `most` go together; what one call raises, all of its callers are told; a caller who leaves
takes nothing with them (the call goes on, its answer is dropped); at most WAITING_MAX wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Final, Generic, TypeVar

from engine.errors import Unavailable

WAITING_MAX: Final = 10_000

G = TypeVar("G", bound=Hashable)
Q = TypeVar("Q")
A = TypeVar("A")


class Gathered(Generic[G, Q, A]):
    """Of one kind of call: one call at a time for each group (a trip; one group for all)."""

    def __init__(self, work: Callable[[G, Sequence[Q]], Awaitable[Sequence[A]]], most: int) -> None:
        """`work(group, asked)` answers a list beside `asked`."""
        self._work, self._most = work, most
        self._waiting: dict[G, deque[tuple[Q, asyncio.Future[A]]]] = {}  # groups with a call under way
        self._running: set[asyncio.Task[None]] = set()
        self._count = 0

    async def ask(self, group: G, asked: Q) -> A:
        """Raises what `work` raises, and `Unavailable` where too many wait."""
        if self._count >= WAITING_MAX:
            raise Unavailable("too many calls wait for PostgreSQL", retry_after_s=1)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[A] = loop.create_future()
        waiting = self._waiting.get(group)
        if waiting is None:
            waiting = self._waiting[group] = deque()
            task = loop.create_task(self._run(group, waiting), name="gathered calls")
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        waiting.append((asked, answer))
        self._count += 1
        return await answer

    async def _run(self, group: G, waiting: deque[tuple[Q, asyncio.Future[A]]]) -> None:
        """Until nobody waits for this group."""
        try:
            while waiting:
                batch = [waiting.popleft() for _ in range(min(self._most, len(waiting)))]
                self._count -= len(batch)
                try:
                    answers = await self._work(group, [asked for asked, _ in batch])
                    for (_, answer), said in zip(batch, answers, strict=True):
                        if not answer.done():
                            answer.set_result(said)
                except Exception as fault:  # each of them has to hear of it, whatever it is
                    for _, answer in batch:
                        if not answer.done():
                            answer.set_exception(fault)
                finally:
                    for _, answer in batch:
                        answer.cancel()  # only where this worker ends: all others are done
        finally:
            del self._waiting[group]
            self._count -= len(waiting)
            for _, answer in waiting:
                answer.cancel()
