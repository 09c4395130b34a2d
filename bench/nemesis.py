"""What is done to the house while its buyers buy: backends killed, PostgreSQL restarted without a goodbye, Redis flushed and stopped, a worker
frozen past every time to live, a worker killed. Each fault is undone by whoever did it; between two the house has a moment to breathe.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from bench.checks import STATEMENTS
from deploy.servers import children

if TYPE_CHECKING:
    from bench.torture import House

BREATH_S = (1.0, 2.5)  # between two faults, at least and at most


class Nemesis:
    """Goes through all its faults in a shuffled order, again and again."""

    def __init__(self, house: House, chance: random.Random, frozen_s: float) -> None:
        self.house, self.chance, self.frozen_s = house, chance, frozen_s
        self.done: Counter[str] = Counter()
        self.now = ""
        self.over = False

    async def haunt(self) -> None:
        """Until told to stop; ends with everything running."""
        faults: tuple[tuple[str, Callable[[], Awaitable[None]]], ...] = (
            ("backends killed", self.kill_backends), ("backends killed", self.kill_backends), ("PostgreSQL restarted", self.restart_postgres),
            ("Redis flushed", self.flush_redis), ("Redis stopped", self.stop_redis), ("worker frozen", self.freeze_worker),
            ("worker killed", self.kill_worker),
        )  # fmt: skip
        while not self.over:
            for name, fault in self.chance.sample(faults, len(faults)):
                await self._rest(self.chance.uniform(*BREATH_S))
                if self.over:
                    break
                self.now = name
                await fault()
                self.done[name] += 1
                self.now = ""

    async def _rest(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while not self.over and time.monotonic() < until_s:  # noqa: ASYNC110  (told to stop by whoever runs us)
            await asyncio.sleep(0.05)

    async def kill_backends(self) -> None:
        """Some connections of the application, in whatever they do; three bursts."""
        import asyncpg

        for _ in range(3):
            # our own backend may be among them
            with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                for row in await self.house.fetch(STATEMENTS["some_backends"], self.chance.randint(1, 4)):
                    await self.house.fetch(STATEMENTS["kill"], row["pid"])
            await asyncio.sleep(self.chance.random() * 0.5)

    async def restart_postgres(self) -> None:
        """As a power cut would: no checkpoint, every session gone; recovery from the log."""
        await asyncio.to_thread(self.house.postgres.kill)
        await asyncio.sleep(self.chance.random())
        await asyncio.to_thread(self.house.postgres.start)

    async def flush_redis(self) -> None:
        await asyncio.to_thread(self.house.redis_command, "FLUSHALL")

    async def stop_redis(self) -> None:
        await asyncio.to_thread(self.house.redis.stop)
        await asyncio.sleep(1 + self.chance.random() * 1.5)
        await asyncio.to_thread(self.house.redis.start)

    async def freeze_worker(self) -> None:
        """There and silent, longer than a hold, a pick, a lease and a transaction may last; then it goes on where it stood."""
        for pid in self._worker():
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(self.frozen_s)
            finally:
                os.kill(pid, signal.SIGCONT)

    async def kill_worker(self) -> None:
        """Its supervisor starts another."""
        for pid in self._worker():
            os.kill(pid, signal.SIGKILL)

    def _worker(self) -> list[int]:
        return children(self.chance.choice(self.house.supervisors).pid)[:1]
