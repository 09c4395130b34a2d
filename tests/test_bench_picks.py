"""The bench of picks through Redis picks as the product does: what it says, the product reads back."""

from __future__ import annotations

import itertools

import pytest

from bench import picks as bench
from bench import sold
from deploy.servers import RedisServer, throw_away_folder
from engine.clock import ManualClock
from engine.settings import Settings
from engine.store.picks import Picks
from engine.store.redis import Redis
from tests.raw_redis import raw


def words_of(command: bytes) -> list[bytes]:
    """The arguments of a packed command."""
    words, at = [], command.index(b"\r\n") + 2
    while at < len(command):
        end = command.index(b"\r\n", at)
        size = int(command[at + 1 : end])
        words.append(command[end + 2 : end + 2 + size])
        at = end + 4 + size
    return words


async def test_every_pick_is_granted_and_is_the_products_own(redis_url: str) -> None:
    redis = await Redis.connect(Settings(redis_url=redis_url))
    try:
        sha = (await raw(redis).script_load(bench.SCRIPT.read_text())).encode()
        callers = [bench.commands(sha, number, 2) for number in range(2)]
        for command in itertools.islice(itertools.chain.from_iterable(zip(*callers, strict=True)), 2 * bench.TRIPS):
            assert isinstance(await raw(redis).execute_command(*words_of(command)), int)  # a refusal is a list
        picture = await Picks(redis, ManualClock(0), ttl_s=1).picture(sold.trip_id(7))
    finally:
        await redis.close()
    assert picture.offset == 6 and sorted(picture.picks) == sorted(sold.labels()[:6])
    assert {(one.start, one.end) for seat in picture.picks.values() for one in seat} == {(0, 1)}


def test_a_caller_counts_what_is_granted_and_ends_at_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WARM_UP_S", 0.0)
    monkeypatch.setattr(bench, "TTL_MS", 60_000)
    redis = RedisServer(throw_away_folder(), appendfsync="no")
    redis.start()
    try:
        path = str(redis.socket)
        sha = bench.loaded(path)
        done = bench.call(path, sha, 0, 1, 4, 0.1)
        assert done.picks == 4 * len(done.ms) > 0
        with pytest.raises(RuntimeError, match="not granted"):
            bench.call(path, sha, 1, 2, 4, 0.1)  # another owner, of what was just picked
    finally:
        redis.remove()
