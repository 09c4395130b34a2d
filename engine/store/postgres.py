"""The asyncpg pool and the named SQL statements: every statement of the product stands in a .sql file of this folder, by name, with its purpose.

A statement file reads

    -- name: bus_by_id
    -- One bus of one partner.
    select ...

and `statements("fleet")["bus_by_id"]` is its text. Connection faults become `Unavailable`, so that callers can answer 503 and try again.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from functools import cache
from importlib import resources
from typing import Any

import asyncpg

from engine.errors import Invalid, Unavailable
from engine.settings import Settings

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.M)

# What asyncpg and the socket below it raise when the server is away, restarting or killed under us (InternalClientError: a backend that
# died while the pool was resetting its connection).
CONNECTION_FAULTS = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
)


@cache
def statements(file: str) -> dict[str, str]:
    """Named statements of `engine/store/{file}.sql`."""
    text = resources.files("engine.store").joinpath(f"{file}.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)
    found = dict(zip(parts[1::2], (body.strip() for body in parts[2::2]), strict=True))
    if len(found) * 2 != len(parts) - 1:
        raise ValueError(f"{file}.sql: a statement name stands twice")
    return found


class Postgres:
    """A bounded pool. Every wait in it has a limit: taking a connection, and each statement."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool

    @classmethod
    async def connect(cls, settings: Settings) -> Postgres:
        try:
            pool = await asyncpg.create_pool(
                settings.database_url,
                min_size=1,
                max_size=settings.database_pool_max,
                command_timeout=settings.statement_timeout_ms / 1000,
                server_settings={"application_name": "timepoint", "statement_timeout": str(settings.statement_timeout_ms)},
            )
        except CONNECTION_FAULTS as fault:
            raise Unavailable(f"PostgreSQL does not answer: {fault}") from fault
        return cls(pool)

    async def close(self) -> None:
        try:
            await asyncio.wait_for(self.pool.close(), 5)
        except TimeoutError:
            self.pool.terminate()

    def take(self, **how: Any) -> contextlib.AbstractAsyncContextManager[Any]:
        """A connection for a while, within 5 s."""
        return self.pool.acquire(timeout=5, **how)

    @contextlib.asynccontextmanager
    async def connection(self, **how: Any) -> AsyncIterator[Any]:
        """One connection, `how` for `take`; faults of the connection become `Unavailable`, a text that no column can hold `Invalid`, others pass through."""
        try:
            async with self.take(**how) as connection:
                yield connection
        except CONNECTION_FAULTS as fault:
            raise Unavailable(f"PostgreSQL does not answer: {fault}", retry_after_s=2) from fault
        except asyncpg.CharacterNotInRepertoireError as fault:  # U+0000: JSON and URLs can spell it, PostgreSQL's text cannot
            raise Invalid("a text has a character in it that cannot be stored: U+0000") from fault

    async def fetch(self, statement: str, *args: Any) -> list[Any]:
        async with self.connection() as connection:
            return list(await connection.fetch(statement, *args))

    async def fetchrow(self, statement: str, *args: Any) -> Any | None:
        async with self.connection() as connection:
            return await connection.fetchrow(statement, *args)

    async def execute(self, statement: str, *args: Any) -> str:
        async with self.connection() as connection:
            return str(await connection.execute(statement, *args))
