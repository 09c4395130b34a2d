"""The desk's way to PostgreSQL: a pool of its own, transactions that know their tenant, and answers kept with their effects.

Apart from the tracking side's pool: neither can take the other's connections, and the planner is told what the desk's statements need
(generic plans; indexes, although a plan may be made while a table is empty). A transaction of `run` has `tp.partner` set, without which
row-level security shows it nothing. jsonb goes in and out as Python objects.

A function of ours that has to undo what it wrote raises with a code of the table of refusals: it comes out as that `Refused`, whose facts
`said` and `hint` are the exception's detail and hint.

Every wait is limited: a connection 5 s, a lock 2 s (`Refused("BUSY")`), a statement by settings. Deadlocks and serialization failures
are run again, with chance between the tries, at most TRIES times. A connection that breaks leaves the outcome unknown: `Unavailable`, and
the caller's key makes trying again safe.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import asyncpg
import msgspec

from engine.booking.refusals import Refused
from engine.clock import Clock
from engine.errors import Invalid, Unavailable
from engine.settings import Settings
from engine.store.lines import Lines
from engine.store.postgres import CONNECTION_FAULTS, Postgres, statements

ALL: Final = "*"  # the tenant of sweeps, dispatchers and references: every partner
TRIES: Final = 6
BEHIND_MS: Final = 100  # longest wait of a hold for a connection before others are asked to come later: the bar of a call is 200
PAUSE_MS: Final = 15  # longest first pause between two tries; doubled each time
REFUSING: Final = ("TP409", "TP422")  # states that our functions raise with a code of the table of refusals as their message

Work = Callable[[Any], Awaitable[Any]]

_AGAIN = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)


class Key(msgspec.Struct, frozen=True):
    """A request's idempotency key: a digest of scope and key as a UUID, and a digest of what was asked."""

    key: str
    fingerprint: bytes


class Answer(msgspec.Struct, frozen=True):
    """What a request was answered: HTTP status and JSON-able body. `replayed`: by the first request with its key."""

    status: int
    body: Any
    replayed: bool = False


class DeskPool(Postgres):
    """`call` for one statement, `run` for a transaction, `once` for a transaction whose answer is kept under a key."""

    def __init__(self, pool: asyncpg.Pool, clock: Clock, settings: Settings) -> None:
        super().__init__(pool)
        self._lines = Lines(pool, settings.desk_pool_max)
        self.clock, self.settings = clock, settings
        self.sql = statements("desk")
        self.changed: Callable[[], None] = lambda: None  # told after each commit of `call`, `run` and `once`: wakes the outbox

    @classmethod
    async def open(cls, settings: Settings, clock: Clock) -> DeskPool:
        """Raises `Unavailable` where nobody answers."""
        try:
            pool = await asyncpg.create_pool(
                settings.database_url,
                min_size=1,
                max_size=settings.desk_pool_max,
                command_timeout=settings.statement_timeout_ms / 1000,
                server_settings={
                    "application_name": "timepoint desk",
                    "statement_timeout": str(settings.statement_timeout_ms),
                    "lock_timeout": "2000",
                    "idle_in_transaction_session_timeout": "5000",  # an old snapshot slows every hold
                    "plan_cache_mode": "force_generic_plan",
                    "enable_seqscan": "off",
                    "enable_bitmapscan": "off",
                    "jit": "off",
                },
                init=_speak_json,
                reset=_leave_as_is,
            )
        except CONNECTION_FAULTS as fault:
            raise Unavailable(f"PostgreSQL does not answer: {fault}") from fault
        return cls(pool, clock, settings)

    async def close(self) -> None:
        await self._lines.close()
        await super().close()

    def take(self, **how: Any) -> contextlib.AbstractAsyncContextManager[Any]:
        return self._lines.line(**how)

    def behind(self) -> bool:
        """Whether those who begin something wait so long already that nobody else should begin."""
        return self._lines.behind_s() * 1000 > BEHIND_MS

    async def call(self, statement: str, *args: Any, new: bool = False) -> Any:
        """The first column of the first row of one statement, in a transaction of its own. `new`: after those who go on (`Lines`)."""
        tries = 0
        while True:
            try:
                with _faults():
                    async with self.connection(new=new) as connection:
                        found = await connection.fetchval(statement, *args)
                self.changed()
                return found
            except _AGAIN:
                tries += 1
                await self._rest(tries)

    async def run(self, partner: str, work: Work) -> Any:
        """What `work(connection)` answers, in one transaction of that tenant. It may run several times."""
        tries = 0
        while True:
            try:
                with _faults():
                    async with self.connection() as connection, connection.transaction():
                        await connection.execute(self.sql["tenant"], partner)
                        found = await work(connection)
                self.changed()
                return found
            except _AGAIN:
                tries += 1
                await self._rest(tries)

    async def once(self, key: Key | None, partner: str, work: Work) -> Answer:
        """`work(connection) -> (status, body)` at most once for a key; the same request again gets the first answer.

        Raises `Refused`: IDEMPOTENCY_KEY_REUSED for another body, IDEMPOTENCY_IN_PROGRESS where the first one still runs after 2 s. What
        `work` raises rolls back, and nothing is kept.
        """

        async def step(connection: Any) -> Answer:
            if key is not None:
                known = await self._known(connection, key)
                if known is not None:
                    return known
                await connection.execute(self.sql["tenant"], partner)
            status, body = await work(connection)
            if key is not None:
                kept = {"status": "DONE", "http": status, "body": body}
                await connection.execute(self.sql["keep_answer"], key.key, partner, key.fingerprint, kept)
            return Answer(status, body)

        answer: Answer = await self.run(ALL if key is not None else partner, step)
        return answer

    async def _known(self, connection: Any, key: Key) -> Answer | None:
        try:
            row = await connection.fetchval(self.sql["answered"], key.key, key.fingerprint)
        except asyncpg.LockNotAvailableError as fault:
            raise in_progress() from fault
        if row is None:
            return None
        if row["status"] == "REFUSED":
            raise key_reused()
        if row["status"] == "IN_PROGRESS":
            raise in_progress()
        return Answer(row["http"], row["body"], replayed=True)

    async def _rest(self, tries: int) -> None:
        """Before the next try. Raises `Refused` BUSY after the last one."""
        if tries >= TRIES:
            raise Refused("BUSY", "too many others change the same thing right now", retry_after_s=1)
        chance = int.from_bytes(self.clock.token(4).encode()[:2], "big") / 65_535
        await asyncio.sleep(PAUSE_MS / 1000 * 2 ** (tries - 1) * (0.2 + 0.8 * chance))


def in_progress() -> Refused:
    return Refused("IDEMPOTENCY_IN_PROGRESS", "the first request with this Idempotency-Key is still running; ask again", retry_after_s=1)


def key_reused() -> Refused:
    return Refused("IDEMPOTENCY_KEY_REUSED", "this Idempotency-Key was used with another request; take a new key for a new request")


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Lock waits past their limit and what no column can hold, as errors of ours."""
    try:
        yield
    except asyncpg.LockNotAvailableError as fault:
        raise Refused("BUSY", "somebody else is changing the same thing; ask again", retry_after_s=1) from fault
    except asyncpg.UntranslatableCharacterError as fault:
        raise Invalid("a text has a character in it that cannot be stored: U+0000") from fault
    except asyncpg.PostgresError as fault:
        if fault.sqlstate not in REFUSING:
            raise
        raise Refused(str(fault.args[0]), fault.detail or "", said=fault.detail, hint=fault.hint) from fault


async def _leave_as_is(connection: Any) -> None:
    """Nothing of ours outlives a transaction (locks, settings), and asyncpg's own reset is a round trip: 114 us of CPU a call."""


async def _speak_json(connection: Any) -> None:
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: msgspec.json.encode(value).decode(),
        decoder=msgspec.json.decode,
        format="text",
    )
