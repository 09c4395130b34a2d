"""Redis past our own store, for what a test looks at or breaks: the client that everybody knows, one connection a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from redis import asyncio as client

from engine.store.redis import Redis


class raw:  # reads as `await raw(redis).xlen(key)`
    """Any command of redis-py on the server of `redis`."""

    def __init__(self, redis: Redis) -> None:
        self._url = redis.settings.redis_url

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **more: Any) -> Any:
            async with client.Redis.from_url(self._url) as connection:
                return await getattr(connection, name)(*args, **more)

        return call
