"""The door: an answer after the append, one append for all that gathered, and a name for every limit."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from engine.clock import ManualClock, SystemClock
from engine.errors import TooMany, Unauthenticated, Unavailable
from engine.office.accounts import Device, Devices
from engine.settings import Settings
from engine.store.redis import Redis
from engine.tracking.fix import Fix
from ingest.door import ENTRY_FIXES_MAX, REFUSALS_KEPT, Door
from ingest.wire import Refused
from tests.raw_redis import raw

NOW_MS = 1_795_262_400_000
BUS = Device("d1", "p1", "TOKEN", {"B1": "demo"})
GATEWAY = Device("d2", "p1", "GATEWAY", {"B1": "demo", "B2": "demo", "B3": "other"})


def fix(seq: int, bus_id: str = "B1") -> Fix:
    return Fix(bus_id, NOW_MS, 36.75, 3.05, NOW_MS, "d1", "telemetry", seq=seq)


class Slow:
    """Streams that take one append at a time, when the test lets them."""

    def __init__(self) -> None:
        self.appends: list[tuple[str, list[Fix]]] = []
        self.quarantined: list[tuple[str, int]] = []
        self.turn = asyncio.Event()
        self.fault: Exception | None = None

    async def append(self, area: str, payload: bytes) -> str:
        await self.turn.wait()
        if self.fault is not None:
            raise self.fault
        self.appends.append((area, msgspec.msgpack.decode(payload, type=list[Fix])))
        return "1-1"

    async def quarantine(self, area: str, payload: bytes) -> None:
        if self.fault is not None:
            raise self.fault
        self.quarantined.append((area, len(msgspec.msgpack.decode(payload))))

    async def nonce_is_new(self, device_id: str, nonce: str, ttl_s: int) -> bool:
        return True


def door(streams: Any, **settings: Any) -> Door:
    clock = ManualClock(NOW_MS)
    return Door(Devices(None, clock, secret_key=""), streams, Settings(**settings), clock)  # type: ignore[arg-type]


async def test_all_that_gathers_during_an_append_goes_in_the_next_one_in_order() -> None:
    streams = Slow()
    made = door(streams)
    first = asyncio.create_task(made.accept(BUS, [fix(0)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rest = [asyncio.create_task(made.accept(BUS, [fix(n)])) for n in range(1, 200)]
    await asyncio.sleep(0)
    assert not first.done()
    streams.turn.set()
    await asyncio.gather(first, *rest)
    assert [[one.seq for one in fixes] for _, fixes in streams.appends] == [[0], list(range(1, 200))]


async def test_a_large_request_is_several_entries_and_one_answer() -> None:
    streams = Slow()
    streams.turn.set()
    receipt = await door(streams).accept(BUS, [fix(n) for n in range(1201)])
    assert receipt.accepted == 1201
    assert [len(fixes) for _, fixes in streams.appends] == [ENTRY_FIXES_MAX, ENTRY_FIXES_MAX, 201]


async def test_a_gateways_fixes_go_to_the_area_of_their_bus() -> None:
    streams = Slow()
    streams.turn.set()
    await door(streams).accept(GATEWAY, [fix(1, "B1"), fix(2, "B3"), fix(3, "B2")])
    assert sorted((area, [one.seq for one in fixes]) for area, fixes in streams.appends) == [("demo", [1, 3]), ("other", [2])]


async def test_a_full_queue_is_unavailable_and_takes_again_when_it_has_emptied() -> None:
    streams = Slow()
    made = door(streams, ingest_queue_max=10)
    waiting = asyncio.create_task(made.accept(BUS, [fix(n) for n in range(10)]))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable) as refusal:
        await made.accept(BUS, [fix(99)])
    assert refusal.value.retry_after_s
    streams.turn.set()
    await waiting
    assert (await made.accept(BUS, [fix(100)])).accepted == 1
    full = made.meter.counter("timepoint_ingest_queue_full_total", "", ("area",))
    accepted = made.meter.counter("timepoint_ingest_fixes_total", "", ("source",))
    assert (full.value("demo"), accepted.value("telemetry")) == (1, 11)


async def test_a_request_for_two_areas_is_refused_whole_when_one_is_full() -> None:
    streams = Slow()
    made = door(streams, ingest_queue_max=1)
    waiting = asyncio.create_task(made.accept(BUS, [fix(0)]))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await made.accept(GATEWAY, [fix(1, "B3"), fix(2, "B1")])
    streams.turn.set()
    await waiting
    assert [area for area, _ in streams.appends] == ["demo"]


async def test_redis_that_does_not_answer_is_waited_for_no_longer_than_the_limit() -> None:
    made = door(Slow(), ingest_answer_timeout_s=0.1)
    outcomes = await asyncio.gather(*(made.accept(BUS, [fix(n)]) for n in range(20)), return_exceptions=True)
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)


@pytest.mark.parametrize("fault", [Unavailable("away"), RuntimeError("a bug of ours")])
async def test_a_failed_append_fails_its_requests_and_the_next_ones_go_on(fault: Exception) -> None:
    streams = Slow()
    streams.turn.set()
    streams.fault = fault
    made = door(streams)
    with pytest.raises(Unavailable):
        await made.accept(BUS, [fix(1)])
    streams.fault = None
    assert (await made.accept(BUS, [fix(2)])).accepted == 1


async def test_a_device_that_hangs_up_takes_nobody_with_it() -> None:
    streams = Slow()
    made = door(streams)
    gone, stays = asyncio.create_task(made.accept(BUS, [fix(1)])), asyncio.create_task(made.accept(BUS, [fix(2)]))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    streams.turn.set()
    assert (await stays).accepted == 1
    assert [one.seq for _, fixes in streams.appends for one in fixes] == [1, 2]


async def test_a_flood_of_refusals_is_counted_whole_and_kept_in_part() -> None:
    streams = Slow()
    streams.turn.set()
    made = door(streams)
    await made.accept(BUS, [], [Refused(n, "RANGE", "x", "B1") for n in range(9000)])
    await made.drain()
    assert streams.quarantined == [("demo", REFUSALS_KEPT)]
    assert made.meter.counter("timepoint_ingest_refused_total", "", ("reason",)).value("RANGE") == 9000


async def test_a_quarantine_that_cannot_be_written_fails_no_request() -> None:
    streams = Slow()
    streams.fault = Unavailable("away")
    made = door(streams)
    assert (await made.accept(BUS, [], [Refused(0, "RANGE", "x")])).accepted == 0
    await made.drain()
    assert made.meter.counter("timepoint_ingest_refusals_unkept_total", "").value() == 1


async def test_a_device_over_its_rate_is_told_when_to_come_back_and_others_are_not_held_up() -> None:
    streams = Slow()
    streams.turn.set()
    made = door(streams, ingest_device_rate=10, ingest_device_burst=100)
    clock = made.clock
    assert isinstance(clock, ManualClock)
    assert (await made.accept(BUS, [fix(n) for n in range(500)])).accepted == 500  # one request is never too large by itself
    with pytest.raises(TooMany) as refusal:
        await made.accept(BUS, [fix(1)])
    wait_s = refusal.value.retry_after_s
    assert wait_s == pytest.approx(40.1)
    assert (await made.accept(GATEWAY, [fix(1)])).accepted == 1
    clock.advance(round(wait_s * 1000) + 1)
    assert (await made.accept(BUS, [fix(2)])).accepted == 1


async def test_a_stranger_is_unauthenticated_and_counted() -> None:
    made = door(Slow())
    with pytest.raises(Unauthenticated):
        made.by_token("nonsense")
    assert made.meter.counter("timepoint_ingest_unauthenticated_total", "", ("code",)).value("UNKNOWN_TOKEN") == 1


async def test_a_thousand_devices_at_once_are_all_in_the_real_stream_in_few_entries(redis_url: str) -> None:
    settings = Settings(redis_url=redis_url)
    redis = await Redis.connect(settings)
    made = Door(Devices(None, SystemClock(), secret_key=""), redis, settings, SystemClock())  # type: ignore[arg-type]
    await asyncio.gather(*(made.accept(BUS, [fix(n)]) for n in range(1000)))
    entries = await raw(redis).xrange("in:{demo}")
    stored = [one.seq for _, fields in entries for one in msgspec.msgpack.decode(fields[b"f"], type=list[Fix])]
    assert stored == list(range(1000))
    assert len(entries) <= 4
    await redis.close()
