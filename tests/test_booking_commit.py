"""A backend that is killed in the middle of a commit: nobody can tell what became of it, until the same key is sent again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from engine.booking.desk import Wish
from engine.errors import Unavailable
from tests.booking_world import World, connect

WISH = Wish(start="demo:A", end="demo:F", labels=("1A", "1B"))
# the commit of a hold waits here, with all its work done and nothing of it certain
AT_COMMIT = """
create function public.wait_at_commit() returns trigger language plpgsql as $$ begin perform pg_advisory_xact_lock(77, 77); return null; end $$;
create constraint trigger wait_at_commit after insert on booking.booking deferrable initially deferred
for each row execute function public.wait_at_commit();
select pg_advisory_lock(77, 77)"""
KILL = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and application_name = 'timepoint desk' and wait_event = $1"""


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    made = await World.make(database_url)
    yield made
    await made.close()


@pytest.fixture
async def admin(database_admin_url: str) -> AsyncIterator[asyncpg.Connection]:
    made = await connect(database_admin_url)
    yield made
    await made.close()


async def killed_while_it(waits_for: str, admin: asyncpg.Connection, work: Callable[[], Awaitable[object]]) -> None:
    """Runs `work` and kills its backend where it waits for that; whoever asked learns that nothing is known."""
    asked = asyncio.ensure_future(work())
    while not await admin.fetch(KILL, waits_for):
        assert not asked.done(), "it did not wait"
        await admin.execute("select pg_stat_clear_snapshot()")
    with pytest.raises(Unavailable):
        await asked


async def is_confirmed(admin: asyncpg.Connection) -> bool:
    """Whether a commit still ends by itself: the server hears of its new setting when it comes to it."""
    try:
        await admin.execute("select pg_logical_emit_message(true, 'is anybody there', '')", timeout=0.3)
    except TimeoutError:
        return False
    return True


async def test_a_hold_whose_backend_is_killed_before_its_commit_is_certain_never_was(world: World, admin: asyncpg.Connection) -> None:
    who, key = world.guest(), world.key()
    await admin.execute(AT_COMMIT)
    await killed_while_it("advisory", admin, lambda: world.desk.hold(who, key, world.trip_id, WISH))
    await admin.execute("select pg_advisory_unlock(77, 77)")
    assert await world.claims() == []
    again = await world.desk.hold(who, key, world.trip_id, WISH)
    assert not again.held.replayed and len(await world.claims()) == 2


async def test_a_hold_whose_backend_is_killed_before_it_could_say_that_it_is_committed_is_told_by_its_key(
    world: World, admin: asyncpg.Connection
) -> None:
    """The log is on disk and the backend waits for a standby that does not exist: committed, and nobody was told."""
    who, key = world.guest(), world.key()
    await admin.execute("alter system set synchronous_standby_names = 'nobody'")
    try:
        await admin.execute("select pg_reload_conf()")
        while await is_confirmed(admin):
            pass
        await killed_while_it("SyncRep", admin, lambda: world.desk.hold(who, key, world.trip_id, WISH))
    finally:
        await admin.execute("alter system reset synchronous_standby_names")
        await admin.execute("select pg_reload_conf()")
    assert len(await world.claims()) == 2
    again = await world.desk.hold(who, key, world.trip_id, WISH)
    assert again.held.replayed and again.token and len(await world.claims()) == 2


async def test_connections_go_from_hand_to_hand_and_a_broken_or_abandoned_one_is_nobodys(
    database_url: str, admin: asyncpg.Connection
) -> None:
    world = await World.make(database_url, desk_pool_max=2)
    try:
        pid = "select pg_backend_pid()"
        first = await world.pool.call(pid)
        assert await world.pool.call(pid) == first  # the same one again
        assert len(set(await asyncio.gather(*(world.pool.call("select pg_backend_pid() from pg_sleep(0.01)") for _ in range(9))))) == 2
        busy = [asyncio.ensure_future(world.pool.call("select pg_sleep(30)")) for _ in range(2)]
        waits = [asyncio.ensure_future(world.pool.call(pid)) for _ in range(3)]
        await asyncio.sleep(0.05)
        waits[0].cancel()  # leaves while it waits
        for one in busy:
            one.cancel()  # leave in the middle
        assert len({await one for one in waits[1:]}) >= 1
        for ended in await world.run("select pid from pg_stat_activity where application_name = 'timepoint desk'"):
            await admin.execute("select pg_terminate_backend($1)", ended["pid"])
        await asyncio.sleep(0.05)  # the news arrives
        assert isinstance(await world.pool.call(pid), int)
        with pytest.raises(asyncpg.DivisionByZeroError):
            await world.pool.call("select 1 / 0")
        assert len(set(await asyncio.gather(*(world.pool.call("select pg_backend_pid() from pg_sleep(0.01)") for _ in range(5))))) == 2
    finally:
        await world.close()
