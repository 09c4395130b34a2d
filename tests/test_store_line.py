"""Calls that travel together: in order, each with its own answer or fault, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis import exceptions as fault

from deploy.servers import RedisServer
from engine.errors import Unavailable
from engine.settings import Settings
from engine.store.redis import Redis
from tests.raw_redis import raw


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    redis = await Redis.connect(Settings(redis_url=redis_url))
    yield redis
    await redis.close()


async def test_many_callers_get_their_own_answers_in_the_order_in_which_they_asked(redis: Redis) -> None:
    assert await asyncio.gather(*(redis.call("test", "INCR", "n") for _ in range(300))) == list(range(1, 301))


async def test_a_call_that_redis_refuses_spoils_no_other(redis: Redis) -> None:
    first, wrong, last = await asyncio.gather(
        redis.call("test", "SET", "text", "x"),
        redis.call("test", "INCR", "text"),
        redis.call("test", "GET", "text"),
        return_exceptions=True,
    )
    assert isinstance(wrong, fault.ResponseError)
    assert (first, last) == (b"OK", b"x")


async def test_a_server_that_forgot_our_script_is_given_it(redis: Redis) -> None:
    for _ in range(2):
        await raw(redis).script_flush()
        assert await asyncio.gather(*(redis.run("beat", ["workers"], f"w{n}", 60_000) for n in range(3)))


async def test_who_gives_up_holds_nobody_back(redis: Redis) -> None:
    await redis.call("test", "INCR", "n")
    impatient = asyncio.create_task(redis.call("test", "INCR", "n"))
    patient = asyncio.create_task(redis.call("test", "INCR", "n"))
    await asyncio.sleep(0)
    impatient.cancel()
    assert await patient == 3


async def test_a_connection_that_is_cut_in_mid_call_is_made_anew_and_the_call_sent_again(redis: Redis) -> None:
    await redis.call("test", "SET", "text", "x")
    for _ in range(3):
        asked = asyncio.create_task(redis.call("test", "GET", "text"))
        await asyncio.sleep(0)
        await raw(redis).execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await asked == b"x"


async def test_a_server_that_is_full_or_loading_is_away_and_a_wrong_command_is_our_own_fault(redis: Redis) -> None:
    await raw(redis).config_set("maxmemory", "1")
    with pytest.raises(Unavailable):
        await redis.call("test", "SET", "text", "x")
    await raw(redis).config_set("maxmemory", "0")
    with pytest.raises(fault.ResponseError):
        await redis.call("test", "NOSUCHCOMMAND", "x")
    assert await redis.call("test", "SET", "text", "x") == b"OK"


async def test_a_server_that_takes_no_more_clients_or_not_our_password_is_away(redis: Redis, redis_url: str) -> None:
    await redis.call("test", "CONFIG", "SET", "maxclients", 1)
    other = Redis(Settings(redis_url=redis_url))
    try:
        with pytest.raises(Unavailable):
            await other.call("test", "GET", "text")
        await redis.call("test", "CONFIG", "SET", "maxclients", 10_000, "requirepass", "secret")
        with pytest.raises(Unavailable):
            await other.call("test", "GET", "text")
    finally:
        await redis.call("test", "CONFIG", "SET", "maxclients", 10_000, "requirepass", "")
        await other.close()


async def test_a_server_that_is_away_is_said_to_all_and_found_again(own_redis: RedisServer) -> None:
    redis = await Redis.connect(Settings(redis_url=own_redis.url))
    assert await redis.call("test", "INCR", "n") == 1
    own_redis.stop()
    for said in await asyncio.gather(*(redis.call("test", "INCR", "n") for _ in range(3)), return_exceptions=True):
        assert isinstance(said, Unavailable)
    own_redis.start()
    assert await redis.call("test", "INCR", "n") == 2
    await redis.close()
