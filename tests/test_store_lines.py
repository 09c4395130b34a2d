"""Connections of the desk: who goes on comes before who begins, and where beginners wait too long the next one is turned away."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from engine.booking.desk import Wish
from engine.errors import Unavailable
from engine.store import desk, lines
from engine.store.lines import Lines
from tests.booking_world import World


async def served(line: Lines, order: list[str], name: str, **how: bool) -> None:
    async with line.line(**how):
        order.append(name)


async def test_who_goes_on_is_served_before_who_begins_and_all_are_served(database_url: str) -> None:
    pool = await asyncpg.create_pool(database_url, min_size=1, max_size=1)
    some = Lines(pool, 1)
    order: list[str] = []
    async with some.line():
        assert some.behind_s() == 0
        waiting = [asyncio.create_task(served(some, order, name, new=name[0] == "b")) for name in ("b1", "b2", "g1", "g2")]
        await asyncio.sleep(0)
        assert some.behind_s() > 0
    await asyncio.gather(*waiting)
    assert order == ["g1", "g2", "b1", "b2"]
    assert some.behind_s() == 0
    await some.close()
    await pool.close()


async def test_who_begins_is_not_kept_out_for_ever(database_url: str) -> None:
    pool = await asyncpg.create_pool(database_url, min_size=1, max_size=1)
    some = Lines(pool, 1)
    order: list[str] = []
    async with some.line():
        waiting = [asyncio.create_task(served(some, order, "b", new=True))]
        waiting += [asyncio.create_task(served(some, order, "g")) for _ in range(2 * lines.NEW_EVERY)]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    assert order.index("b") == lines.NEW_EVERY - 1
    await some.close()
    await pool.close()


async def test_a_hold_is_turned_away_while_others_wait_too_long_to_begin(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await World.make(database_url)
    caller, wish = world.guest(), Wish(start="demo:A", end="demo:F", labels=("1A",))
    monkeypatch.setattr(desk, "BEHIND_MS", 0)
    busy = [world.pool.take() for _ in range(world.settings.desk_pool_max)]
    for one in busy:
        await one.__aenter__()
    first = asyncio.create_task(world.pool.call("select 1", new=True))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable) as caught:
        await world.desk.hold(caller, world.key(), world.trip_id, wish)
    assert caught.value.retry_after_s == 1
    for one in busy:
        await one.__aexit__(None, None, None)
    assert await first == 1
    assert (await world.desk.hold(caller, world.key(), world.trip_id, wish)).labels == ("1A",)
    await world.close()
