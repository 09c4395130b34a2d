"""A lease: of several workers that want to do a thing, one does it, and another goes on within its life when that one
dies.

Promises: a token `number:chance` that never comes twice; a renewal that is refused ends the work. Refuses to be the
only guard: a frozen holder may wake after its lease, so what it writes must be checked where it lands (a commit by its
token, a cursor by compare-and-set).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from engine.errors import Unavailable
from engine.settings import Settings
from engine.store.redis import Redis, keys_of

log = logging.getLogger(__name__)


class Lease:
    """One named lease. Every call raises `Unavailable` where Redis is away."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis, self._keys = redis, keys_of(name)

    async def acquire(self, life_ms: int) -> str | None:
        """The token of a lease now ours, or None: somebody holds it. A lost answer leaves a lease nobody has; it
        ends by itself.
        """
        keys = [self._keys.lease, self._keys.fence]
        token = await self._redis.run("acquire", keys, self._redis.clock.token(6), life_ms, attempts=1)
        return token.decode() if token else None

    async def renew(self, token: str, life_ms: int) -> bool:
        """False: the lease is not ours any more."""
        return bool(await self._redis.run("renew", [self._keys.lease], token, life_ms))

    async def release(self, token: str) -> None:
        """Give the lease back, so that another takes it at once."""
        await self._redis.run("renew", [self._keys.lease], token, 0)


async def hold(redis: Redis, name: str, settings: Settings, work: Callable[[], Awaitable[None]]) -> None:
    """For ever: wait for the lease `name`, do `work` while it is ours, and wait again. Work that raises is logged and
    begun anew.

    Cancelling this cancels the work first and gives the lease back.
    """
    lease = Lease(redis, f"role:{name}")
    life_ms, pause_s = settings.lease_ms, settings.lease_renew_ms / 1000
    while True:
        token = None
        with contextlib.suppress(Unavailable):
            token = await lease.acquire(life_ms)
        if token is None:
            await asyncio.sleep(pause_s)
            continue
        task = asyncio.ensure_future(work())
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=pause_s)
                with contextlib.suppress(Unavailable):  # away: the work notices by itself
                    if not task.done() and not await lease.renew(token, life_ms):
                        log.warning("%s: the lease is lost", name)
                        break
        finally:
            while not task.done():  # again: wait_for of Python 3.11, under psycopg, loses a cancel that meets its answer
                task.cancel()
                await asyncio.wait({task}, timeout=0.5)
            if not task.cancelled() and (broken := task.exception()):
                log.error("%s: ended, will begin anew", name, exc_info=broken)
            with contextlib.suppress(Unavailable):
                await lease.release(token)
        await asyncio.sleep(pause_s)
