"""Picks on a real Redis: all or none, by leg, gone by the clock, told in order on the seat channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from deploy.servers import RedisServer
from engine.booking.refusals import Refused
from engine.clock import ManualClock
from engine.errors import Unavailable
from engine.settings import Settings
from engine.store.picks import Picks
from engine.store.redis import Redis
from tests.raw_redis import raw

T0 = 1_795_000_000_000
TTL_S = 90


class Stop(NamedTuple):
    stop_id: str


class Trip(NamedTuple):
    trip_id: str = 'demo:t "1"\\:20261121'  # a feed may write anything
    stops: tuple[Stop, ...] = tuple(Stop(f'demo:st"op{n}') for n in range(6))


TRIP = Trip()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(T0)


@pytest.fixture
async def redis(redis_url: str, clock: ManualClock) -> AsyncIterator[Redis]:
    redis = await Redis.connect(Settings(redis_url=redis_url), clock=clock)
    yield redis
    await redis.close()


@pytest.fixture
def picks(redis: Redis, clock: ManualClock) -> Picks:
    return Picks(redis, clock, ttl_s=TTL_S)


async def told(redis: Redis) -> list[dict[str, Any]]:
    log = await redis.channel_log(f"seats:{TRIP.trip_id}", 0)
    assert log.complete
    return [msgspec.json.decode(message.payload)["d"] for message in log.messages]


async def test_seats_are_picked_and_told_with_their_end(picks: Picks, redis: Redis) -> None:
    pick = await picks.pick(TRIP, ["1A", "1B"], 0, 3)
    assert pick.until_ms == T0 + 90_000
    assert await told(redis) == [
        {"seat": label, "state": "PICKED", "from": 'demo:st"op0', "to": 'demo:st"op3', "untilMs": T0 + 90_000} for label in ("1A", "1B")
    ]


async def test_one_seat_of_three_picked_by_somebody_leaves_all_three_as_they_were(picks: Picks, redis: Redis) -> None:
    await picks.pick(TRIP, ["1B"], 0, 3)
    with pytest.raises(Refused) as refused:
        await picks.pick(TRIP, ["1A", "1B", "1C"], 2, 5)
    assert refused.value.code == "SEAT_PICKED"
    assert [error["pointer"] for error in refused.value.errors] == ["/seats/1"]
    assert (await picks.picture(TRIP.trip_id)).picks.keys() == {"1B"}
    assert len(await told(redis)) == 1
    await picks.pick(TRIP, ["1A", "1C"], 2, 5)


async def test_a_seat_is_picked_by_two_people_for_legs_that_follow_each_other(picks: Picks) -> None:
    await picks.pick(TRIP, ["1A"], 0, 3)
    await picks.pick(TRIP, ["1A"], 3, 5)
    picture = await picks.picture(TRIP.trip_id)
    assert [(pick.start, pick.end) for pick in picture.picks["1A"]] == [(0, 3), (3, 5)]


async def test_a_pick_is_over_by_the_clock(picks: Picks, clock: ManualClock) -> None:
    await picks.pick(TRIP, ["1A"], 0, 3)
    clock.advance(TTL_S * 1000 - 1)
    with pytest.raises(Refused):
        await picks.pick(TRIP, ["1A"], 0, 3)
    assert await picks.others(TRIP, ["1A"], 0, 3, None) == ["1A"]
    clock.advance(1)
    assert await picks.others(TRIP, ["1A"], 0, 3, None) == []
    assert (await picks.picture(TRIP.trip_id)).picks == {}
    await picks.pick(TRIP, ["1A"], 0, 3)
    assert len((await picks.picture(TRIP.trip_id)).picks["1A"]) == 1


async def test_picking_again_with_the_same_id_extends_and_adds(picks: Picks, clock: ManualClock) -> None:
    first = await picks.pick(TRIP, ["1A"], 0, 3)
    clock.advance(60_000)
    again = await picks.pick(TRIP, ["1A", "1B"], 0, 3, first.pick_id)
    assert again == type(first)(first.pick_id, T0 + 150_000)
    clock.advance(60_000)
    assert await picks.others(TRIP, ["1A", "1B"], 0, 1, None) == ["1A", "1B"]
    assert await picks.others(TRIP, ["1A", "1B"], 0, 1, first.pick_id) == []


async def test_an_own_pick_moves_to_other_legs_and_says_so(picks: Picks, redis: Redis) -> None:
    first = await picks.pick(TRIP, ["1A"], 0, 2)
    await picks.pick(TRIP, ["1A"], 3, 5, first.pick_id)
    assert await picks.others(TRIP, ["1A"], 0, 3, None) == []
    assert [(one["state"], one["from"]) for one in await told(redis)] == [
        ("PICKED", 'demo:st"op0'),
        ("FREE", 'demo:st"op0'),
        ("PICKED", 'demo:st"op3'),
    ]


async def test_letting_go_frees_own_seats_alone_and_tells(picks: Picks, redis: Redis) -> None:
    mine = await picks.pick(TRIP, ["1A", "1B"], 0, 3)
    await picks.pick(TRIP, ["1C"], 0, 3)
    assert await picks.unpick(TRIP, mine.pick_id, ["1A"]) == 1
    assert await picks.others(TRIP, ["1A", "1B", "1C"], 0, 3, None) == ["1B", "1C"]
    assert await picks.unpick(TRIP, mine.pick_id) == 1
    assert await picks.unpick(TRIP, mine.pick_id) == 0
    assert [one["state"] for one in await told(redis)] == ["PICKED"] * 3 + ["FREE"] * 2


async def test_a_pick_that_became_a_hold_goes_without_a_word(picks: Picks, redis: Redis) -> None:
    mine = await picks.pick(TRIP, ["1A"], 0, 3)
    await picks.drop(TRIP, mine.pick_id)
    assert await picks.others(TRIP, ["1A"], 0, 3, None) == []
    assert len(await told(redis)) == 1


async def test_picks_and_sales_share_one_row_of_offsets(picks: Picks, redis: Redis) -> None:
    await picks.pick(TRIP, ["1A", "1B"], 0, 3)
    assert await redis.publish_ordered(f"seats:{TRIP.trip_id}", "booking:1", b'{"t":"seat","d":{"seat":"1A","state":"TAKEN"}}') == 3
    await picks.pick(TRIP, ["1C"], 0, 3)
    picture = await picks.picture(TRIP.trip_id)
    log = await redis.channel_log(f"seats:{TRIP.trip_id}", 0)
    assert [message.offset for message in log.messages] == [1, 2, 3, 4]
    assert (picture.epoch, picture.offset) == (log.epoch, 4)


async def test_what_is_published_together_is_heard_one_by_one_as_the_log_has_it(picks: Picks, redis: Redis) -> None:
    heard = redis.listen_ordered()
    assert await anext(heard) is None
    mine = await picks.pick(TRIP, ["1A", "1B", "1C"], 0, 3)
    await picks.unpick(TRIP, mine.pick_id)
    messages = [await anext(heard) for _ in range(6)]
    assert messages == (await redis.channel_log(f"seats:{TRIP.trip_id}", 0)).messages
    await heard.aclose()  # type: ignore[attr-defined]


async def test_of_thirty_two_who_pick_the_same_three_seats_at_once_one_gets_them(picks: Picks) -> None:
    done = await asyncio.gather(*(picks.pick(TRIP, ["1A", "1B", "1C"], 0, 3) for _ in range(32)), return_exceptions=True)
    assert sum(not isinstance(one, BaseException) for one in done) == 1


async def test_redis_flushed_in_mid_sale_forgets_picks_and_begins_a_new_epoch(picks: Picks, redis: Redis) -> None:
    await picks.pick(TRIP, ["1A"], 0, 3)
    before = (await picks.picture(TRIP.trip_id)).epoch
    await raw(redis).flushall()
    await picks.pick(TRIP, ["1A"], 0, 3)
    picture = await picks.picture(TRIP.trip_id)
    assert picture.offset == 1
    assert picture.epoch != before


async def test_redis_stopped_in_mid_sale_is_unavailable_and_soon_said(own_redis: RedisServer, clock: ManualClock) -> None:
    redis = await Redis.connect(Settings(redis_url=own_redis.url), clock=clock)
    picks = Picks(redis, clock, ttl_s=TTL_S)
    await picks.pick(TRIP, ["1A"], 0, 3)
    own_redis.stop()
    for ask in (picks.pick(TRIP, ["1B"], 0, 3), picks.others(TRIP, ["1A"], 0, 3, None), picks.drop(TRIP, "x"), picks.picture("x")):
        with pytest.raises(Unavailable):
            await ask
    with pytest.raises(Unavailable, match="a moment ago"):
        await picks.others(TRIP, ["1A"], 0, 3, None)
    own_redis.start()
    clock.advance(2_000)
    await picks.others(TRIP, ["1A"], 0, 3, None)
    await redis.close()


LABELS = ["1A", "1B", "1C"]
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("pick"),
            st.integers(0, 2),
            st.lists(st.sampled_from(LABELS), min_size=1, unique=True),
            st.integers(0, 4),
            st.integers(1, 3),
        ),
        st.tuples(st.just("unpick"), st.integers(0, 2), st.lists(st.sampled_from(LABELS), unique=True), st.just(0), st.just(0)),
        st.tuples(st.just("wait"), st.integers(0, 60), st.just([]), st.just(0), st.just(0)),
    ),
    max_size=20,
)


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_whatever_three_people_do_no_seat_is_picked_twice_and_the_log_tells_the_same_story(redis_url: str, steps: list[Any]) -> None:
    async def play() -> None:
        clock = ManualClock(T0)
        redis = await Redis.connect(Settings(redis_url=redis_url), clock=clock)
        await raw(redis).flushall()
        picks = Picks(redis, clock, ttl_s=TTL_S)
        owners = [f"owner-{n}" for n in range(3)]
        for what, who, labels, start, length in steps:
            if what == "wait":
                clock.advance(who * 1000)
            elif what == "unpick":
                await picks.unpick(TRIP, owners[who], labels)
            else:
                try:
                    await picks.pick(TRIP, labels, start, min(5, start + length), owners[who])
                except Refused:
                    pass
        seen: dict[str, dict[tuple[str, str], int]] = {label: {} for label in LABELS}
        for one in await told(redis):
            if one["state"] == "FREE":
                seen[one["seat"]].pop((one["from"], one["to"]), None)
            else:
                seen[one["seat"]][one["from"], one["to"]] = one["untilMs"]
        picture = (await picks.picture(TRIP.trip_id)).picks
        for label in LABELS:
            now = sorted(picture.get(label, []), key=lambda pick: pick.start)
            assert all(a.end <= b.start for a, b in pairwise(now))
            story = {ride for ride, until in seen[label].items() if until > clock.now_ms()}
            assert story == {(TRIP.stops[p.start].stop_id, TRIP.stops[p.end].stop_id) for p in now}
        await redis.close()

    asyncio.run(play())
