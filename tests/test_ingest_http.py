"""The device paths as a device meets them: real uvicorn, real Redis, real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn

from engine.clock import SystemClock
from engine.office.accounts import BusRow, Devices, Issued, NewDevice, create_devices
from engine.settings import Settings
from engine.store.fleet import Fleet
from engine.store.postgres import Postgres
from engine.store.redis import Redis
from engine.tracking.fix import Fix
from ingest.door import Door
from ingest.http import DeviceApp, DevicePaths

CLOCK = SystemClock()
SECRET_KEY = "a secret of the tests, long enough to be one"


def telemetry(bus_id: str = "B1", **more: Any) -> dict[str, Any]:
    where = {"latitude": 36.75, "longitude": 3.05, "accuracy": 5}
    return {"busId": bus_id, "timestamp": CLOCK.now_ms(), "location": where, "motion": {"speed": 36, "heading": 90}} | more


class House:
    """One worker's way in, and a client that talks to it."""

    def __init__(
        self, client: httpx.AsyncClient, redis: Redis, door: Door, issued: dict[str, Issued], settings: Settings, port: int
    ) -> None:
        self.client, self.redis, self.door, self.issued, self.settings, self.port = client, redis, door, issued, settings, port

    def bearer(self, name: str = "B1") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.issued[name].token}"}

    async def stored(self, area: str = "demo") -> list[Fix]:
        entries = await self.redis.calls.xrange(f"in:{{{area}}}")
        return [fix for _, fields in entries for fix in msgspec.msgpack.decode(fields[b"f"], type=list[Fix])]


@pytest.fixture
async def house(database_url: str, redis_url: str) -> AsyncIterator[House]:
    settings = Settings(database_url=database_url, redis_url=redis_url, ingest_body_timeout_s=1.0)
    postgres, redis = await Postgres.connect(settings), await Redis.connect(settings)
    await postgres.execute("insert into partner (partner_id, name) values ('p1', 'One')")
    fleet = Fleet(postgres)
    await fleet.put_buses([BusRow(bus_id, "p1", "demo" if bus_id != "B3" else "other", bus_id, None) for bus_id in ("B1", "B2", "B3")])
    wanted = {
        "B1": NewDevice(["B1"], unique_id="123456"),
        "gateway": NewDevice(["B1", "B2", "B3"], "GATEWAY"),
        "hmac": NewDevice(["B2"], "HMAC"),
    }
    issued = dict(zip(wanted, await create_devices(fleet, CLOCK, SECRET_KEY, "p1", list(wanted.values())), strict=True))
    devices = Devices(fleet, CLOCK, secret_key=SECRET_KEY)
    await devices.load()
    door = Door(devices, redis, settings, CLOCK)
    config = uvicorn.Config(DeviceApp(DevicePaths(door)), port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # uvicorn offers no event
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        yield House(client, redis, door, issued, settings, port)
    server.should_exit = True
    await task
    await redis.close()
    await postgres.close()


async def test_one_telemetry_object_is_in_the_stream_when_the_device_is_answered(house: House) -> None:
    said = telemetry(seq=7, tripId="demo:T1:20261121")
    answer = await house.client.post("/ingest/telemetry", json=said, headers=house.bearer())
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1, "quarantined": []})
    assert answer.headers["x-request-id"]
    [fix] = await house.stored()
    assert (fix.bus_id, fix.fixed_at_ms, fix.lat, fix.lon) == ("B1", said["timestamp"], 36.75, 3.05)
    assert fix.speed_mps == pytest.approx(10.0)
    assert (fix.seq, fix.trip_id, fix.start_date, fix.source) == (7, "T1", "20261121", "telemetry")
    assert fix.device_id == house.issued["B1"].device_id


async def test_no_good_token_is_401_with_the_servers_time(house: House) -> None:
    for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic !!"}):
        answer = await house.client.post("/ingest/telemetry", json=telemetry(), headers=headers)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["date"]
        assert abs(answer.json()["serverTimeMs"] - CLOCK.now_ms()) < 60_000
    assert not await house.stored()


async def test_a_poison_fix_does_not_hold_up_the_hundred_good_ones_behind_it(house: House) -> None:
    good = [telemetry(seq=n) for n in range(100)]
    answer = await house.client.post("/ingest/telemetry", json=[telemetry("B2"), *good], headers=house.bearer())
    assert (answer.status_code, answer.json()) == (202, {"accepted": 100, "quarantined": [{"index": 0, "reason": "NOT_YOUR_BUS"}]})
    assert [fix.seq for fix in await house.stored()] == list(range(100))
