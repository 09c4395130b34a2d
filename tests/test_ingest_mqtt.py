"""MQTT in, over a real Mosquitto: nothing is acknowledged before it is in the stream, so no reader that dies can lose anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gmqtt import Client

from deploy.servers import MosquittoServer
from engine.clock import ManualClock, SystemClock
from engine.errors import Invalid, Unavailable
from engine.events import Refusal
from engine.office.accounts import BusRow, Change, Device, DeviceRow, Devices, mosquitto_hash
from engine.settings import Settings
from engine.store.redis import Redis
from engine.tracking.fix import Fix
from ingest.broker import BrokerFiles, files, hang_up, logins, write
from ingest.door import Door
from ingest.mqtt import MqttReader, broker_address
from tests.raw_redis import raw

CHECKOUT = Path(__file__).resolve().parent.parent
CLOCK = SystemClock()
READER = "reader", "the reader's own"
LIMIT_S = 20


def row(device_id: str, bus_ids: list[str], token: str, **more: Any) -> DeviceRow:
    kind = "TOKEN" if len(bus_ids) == 1 else "GATEWAY"
    known = mosquitto_hash(token, CLOCK)
    return msgspec.structs.replace(
        DeviceRow(device_id, "p1", kind, "", bus_ids, None, token.encode(), None, 1, None, 0, None, None, None, known), **more
    )


ROWS = [row("dev-1", ["B1"], "token one"), row("dev-2", ["B2"], "token two"), row("gate", ["B1", "B2"], "token of the gateway")]


class Registry:
    """The store behind `Devices`, in memory."""

    async def changed(self, since: int) -> Change:
        return Change(ROWS, [BusRow(bus_id, "p1", "demo", "", None) for bus_id in ("B1", "B2")], 1)

    async def seen(self, at_ms: dict[str, int]) -> None:
        pass


async def devices() -> Devices:
    made = Devices(Registry(), CLOCK, secret_key="")
    await made.load()
    return made


def said(seq: int, **more: Any) -> bytes:
    where = {"latitude": 36.75, "longitude": 3.05}
    return json.dumps({"timestamp": CLOCK.now_ms(), "location": where, "seq": seq} | more).encode()


async def stored(redis: Redis, area: str = "demo") -> list[Fix]:
    entries = await raw(redis).xrange(f"in:{{{area}}}")
    return [fix for _, fields in entries for fix in msgspec.msgpack.decode(fields[b"f"], type=list[Fix])]


async def until(condition: Any) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not (  # noqa: ASYNC110  # other processes set no event of ours
            await condition() if asyncio.iscoroutinefunction(condition) else condition()
        ):
            await asyncio.sleep(0.02)


class Phone:
    """A device's own MQTT client."""

    def __init__(self, user: str = "", password: str = "") -> None:
        self.client = Client(f"phone-{user}-{CLOCK.token(4)}")
        self.client.set_config({"reconnect_retries": -2})
        self.client.set_auth_credentials(user, password)

    async def __aenter__(self) -> Phone:
        async with asyncio.timeout(LIMIT_S):
            await self.client.connect(*self.where)
        return self

    def at(self, server: MosquittoServer) -> Phone:
        self.where = "127.0.0.1", server.port
        return self

    async def publish(self, topic: str, payload: bytes, qos: int = 1) -> None:
        """Within the broker's receive maximum."""
        await until(lambda: len(self.client._persistent_storage.get_all()) < 15)
        self.client.publish(topic, payload, qos=qos)

    async def taken(self) -> None:
        """The broker has acknowledged all of it."""
        await until(lambda: self.client._persistent_storage.is_empty)

    async def __aexit__(self, *_: object) -> None:
        await self.client.disconnect()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    made = await Redis.connect(Settings(redis_url=redis_url))
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def reading(url: str, redis: Any, settings: Settings | None = None) -> AsyncIterator[Door]:
    door = Door(await devices(), redis, settings or Settings(), CLOCK)
    reader = MqttReader(door, url)
    task = asyncio.create_task(reader.run())
    await until(lambda: door.meter.gauge("timepoint_mqtt_connected", "").value() == 1)
    try:
        yield door
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_telemetry_and_owntracks_arrive_and_poison_comes_once(own_mosquitto: MosquittoServer, redis: Redis) -> None:
    async with reading(own_mosquitto.url, redis) as door, Phone().at(own_mosquitto) as phone:
        await phone.publish("timepoint/v1/telemetry/B1", said(1, motion={"speed": 36}))
        await phone.publish("timepoint/v1/telemetry/B1", b"\x00 poison")
        await phone.publish("timepoint/v1/telemetry/B1", said(2, busId="B2"))
        await phone.publish("timepoint/v1/telemetry/nobody", said(3))
        await phone.publish("owntracks/B2/phone", json.dumps({"_type": "location", "lat": 36.75, "lon": 3.05, "vel": 36}).encode())
        await phone.publish("owntracks/dev-1/phone", json.dumps({"_type": "lwt"}).encode())
        await phone.publish("timepoint/v1/telemetry/B1", msgspec.msgpack.encode(json.loads(said(4))))
        await until(lambda: done(door))
        found = await stored(redis)
        assert [(fix.bus_id, fix.seq, fix.source) for fix in found] == [("B1", 1, "mqtt"), ("B2", None, "mqtt"), ("B1", 4, "mqtt")]
        assert found[0].speed_mps == found[1].speed_mps == pytest.approx(10)
        assert found[0].device_id == "dev-1"
        messages = door.meter.counter("timepoint_mqtt_messages_total", "", ("outcome",))
        assert (messages.value("quarantined"), messages.value("unknown")) == (2, 1)


def done(door: Door) -> bool:
    return door.meter.counter("timepoint_mqtt_messages_total", "", ("outcome",)).value("stored") == 3


async def test_a_device_over_its_rate_is_refused_once_and_its_neighbours_are_not(own_mosquitto: MosquittoServer, redis: Redis) -> None:
    slow = Settings(ingest_device_rate=0.001, ingest_device_burst=3)
    async with reading(own_mosquitto.url, redis, slow) as door, Phone().at(own_mosquitto) as phone:
        for seq in range(5):
            await phone.publish("timepoint/v1/telemetry/B1", said(seq))
        await phone.publish("timepoint/v1/telemetry/B2", said(9))
        messages = door.meter.counter("timepoint_mqtt_messages_total", "", ("outcome",))
        await until(lambda: messages.value("stored") + messages.value("quarantined") == 6)
        await door.drain()
    refusals = [
        one for _, fields in await raw(redis).xrange("quar:{demo}") for one in msgspec.msgpack.decode(fields[b"f"], type=list[Refusal])
    ]
    assert [(one.bus_id, one.device_id, one.reason) for one in refusals] == [("B1", "dev-1", "RATE")] * 2
    assert sorted((fix.bus_id, fix.seq) for fix in await stored(redis)) == [("B1", 0), ("B1", 1), ("B1", 2), ("B2", 9)]
    async with reading(own_mosquitto.url, redis), Phone().at(own_mosquitto) as phone:  # what was refused does not come again
        await phone.publish("timepoint/v1/telemetry/B1", said(10))
        await until(everything(redis, {0, 1, 2, 9, 10}))
    assert {fix.seq for fix in await stored(redis)} == {0, 1, 2, 9, 10}


class Thorny(Door):
    """Breaks in a way that nobody expects."""

    def appended(self, device: Device, fixes: list[Fix]) -> Any:
        raise ZeroDivisionError("a thorn")


async def test_a_reader_whose_appending_breaks_ends_and_its_message_is_the_next_ones(own_mosquitto: MosquittoServer, redis: Redis) -> None:
    door = Thorny(await devices(), redis, Settings(), CLOCK)
    task = asyncio.create_task(MqttReader(door, own_mosquitto.url).run())
    await until(lambda: door.meter.gauge("timepoint_mqtt_connected", "").value() == 1)
    async with Phone().at(own_mosquitto) as phone:
        await phone.publish("timepoint/v1/telemetry/B1", said(1))
        await phone.taken()
    ended, _ = await asyncio.wait({task}, timeout=LIMIT_S)
    assert ended
    with pytest.raises(ExceptionGroup) as broken:
        await task
    assert broken.group_contains(ZeroDivisionError)
    async with reading(own_mosquitto.url, redis):
        await until(everything(redis, {1}))


PROCESS = """
import asyncio, sys
from engine.clock import SystemClock
from engine.settings import Settings
from engine.store.redis import Redis
from ingest.door import Door
from ingest.mqtt import MqttReader
from tests.test_ingest_mqtt import devices

async def main():
    settings = Settings(redis_url=sys.argv[2])
    door = Door(await devices(), await Redis.connect(settings), settings, SystemClock())
    await MqttReader(door, sys.argv[1]).run()

asyncio.run(main())
"""


@pytest.mark.crash
async def test_readers_killed_while_messages_stream_in_lose_none(own_mosquitto: MosquittoServer, redis: Redis, redis_url: str) -> None:
    total, sent = 3000, 0

    async def reader() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROCESS, own_mosquitto.url, redis_url, cwd=CHECKOUT, env=os.environ | {"PYTHONPATH": str(CHECKOUT)}
        )

    async with Phone().at(own_mosquitto) as phone:
        for life in range(3):
            process = await reader()
            try:
                if life == 0:  # its session must stand before anything is published
                    await until(subscribed(redis, phone))
                goal = len(await stored(redis)) + 50
                while len(await stored(redis)) < goal and sent < total:
                    for _ in range(10):
                        await phone.publish("timepoint/v1/telemetry/B1", said(sent))
                        sent += 1
                    await asyncio.sleep(0.02)
            finally:
                process.send_signal(signal.SIGKILL)
                await process.wait()
            for _ in range(100):
                await phone.publish("timepoint/v1/telemetry/B1", said(sent))
                sent += 1
        await phone.taken()
        async with reading(own_mosquitto.url, redis):
            await until(everything(redis, sent))
    seen = {fix.seq for fix in await stored(redis) if fix.bus_id == "B1"}
    assert seen == set(range(sent))


def subscribed(redis: Redis, phone: Phone) -> Any:
    async def check() -> bool:
        await phone.publish("timepoint/v1/telemetry/B2", said(10**6))
        await asyncio.sleep(0.05)
        return bool(await stored(redis))

    return check


def everything(redis: Redis, sent: int | set[int]) -> Any:
    async def check() -> bool:
        return {fix.seq for fix in await stored(redis)} >= (sent if isinstance(sent, set) else set(range(sent)))

    return check


class Flaky:
    """Redis in front of which the test puts a fault."""

    def __init__(self, redis: Redis) -> None:
        self.redis, self.away = redis, True

    async def append(self, area: str, payload: bytes) -> str:
        if self.away:
            raise Unavailable("away")
        return await self.redis.append(area, payload)

    async def quarantine(self, area: str, payload: bytes) -> None:
        await self.redis.quarantine(area, payload)

    async def nonce_is_new(self, device_id: str, nonce: str, ttl_s: int) -> bool:
        return True


async def test_an_outage_of_redis_keeps_every_message_and_their_order(own_mosquitto: MosquittoServer, redis: Redis) -> None:
    flaky = Flaky(redis)
    async with reading(own_mosquitto.url, flaky) as door, Phone().at(own_mosquitto) as phone:
        faults = door.meter.counter("timepoint_ingest_append_faults_total", "", ("area",))
        for seq in range(200):
            await phone.publish("timepoint/v1/telemetry/B1", said(seq))
        await until(lambda: faults.value("demo") >= 3)
        assert not await stored(redis)
        flaky.away = False
        await until(everything(redis, 200))
    assert [fix.seq for fix in await stored(redis)] == list(range(200))


async def test_the_broker_lets_a_device_publish_for_its_own_bus_only(own_mosquitto: MosquittoServer, redis: Redis) -> None:
    passwords, acl = files(ROWS, CLOCK.now_ms(), (READER[0], mosquitto_hash(READER[1], CLOCK)))
    own_mosquitto.give("passwords", passwords)
    own_mosquitto.give("acl", acl)
    own_mosquitto.stop()
    own_mosquitto.start()
    url = own_mosquitto.url.replace("mqtt://", "mqtt://reader:the%20reader's%20own@")
    async with reading(url, redis):
        for user, password, seq in (("B1", "token one", 1), ("dev-2", "token two", 2), ("gate", "token of the gateway", 3)):
            async with Phone(user, password).at(own_mosquitto) as phone:
                for bus_id in ("B1", "B2"):
                    await phone.publish(f"timepoint/v1/telemetry/{bus_id}", said(seq))
                await phone.publish(f"owntracks/{user}/x", json.dumps({"_type": "location", "lat": 36.0, "lon": 3.0}).encode())
                await phone.publish("owntracks/somebody/x", json.dumps({"_type": "location", "lat": 35.0, "lon": 3.0}).encode())
                await asyncio.sleep(0.2)
        with pytest.raises(Exception, match=r"[Nn]ot authorized"):
            async with Phone("B1", "token two").at(own_mosquitto):
                pass
        await until(everything_of(redis, {("B1", 1), ("B2", 2), ("B1", 3), ("B2", 3), ("B1", None), ("B2", None)}))
    found = [(fix.bus_id, fix.seq) for fix in await stored(redis)]
    assert sorted(found, key=str) == sorted([("B1", 1), ("B2", 2), ("B1", 3), ("B2", 3), ("B1", None), ("B2", None)], key=str)


async def test_a_login_follows_the_registry_while_the_broker_runs(own_mosquitto: MosquittoServer) -> None:
    registry = await devices()
    folder = own_mosquitto.folder
    kept = BrokerFiles(registry, folder, lambda: hang_up(folder / "server.pid"), CLOCK, READER)
    write(folder, *files(ROWS, CLOCK.now_ms(), (READER[0], mosquitto_hash(READER[1], CLOCK))))
    own_mosquitto.stop()
    own_mosquitto.start()
    kept.refresh()

    async def may_enter() -> bool:
        with contextlib.suppress(Exception):
            async with Phone("new", "its token").at(own_mosquitto):
                return True
        return False

    async def refused() -> bool:
        return not await may_enter()

    assert not await may_enter()
    for retired_at_ms, outcome in ((None, may_enter), (1, refused)):
        registry.rows["new"] = row("new", ["B1"], "its token", retired_at_ms=retired_at_ms)
        registry.version += 1
        assert kept.refresh()
        await until(outcome)


def everything_of(redis: Redis, wanted: set[Any]) -> Any:
    async def check() -> bool:
        return {(fix.bus_id, fix.seq) for fix in await stored(redis)} >= wanted

    return check


def test_while_a_rotation_has_its_grace_the_known_users_keep_the_old_password() -> None:
    old, new = mosquitto_hash("old", CLOCK), mosquitto_hash("new", CLOCK)
    rotated = row("dev-1", ["B1"], "x", mqtt_hash=new, previous_mqtt_hash=old, previous_until_ms=1000, generation=2)
    assert {user: known for user, (known, _) in logins([rotated], 500).items()} == {"dev-1": old, "B1": old, "dev-1.2": new}
    assert {user: known for user, (known, _) in logins([rotated], 1000).items()} == {"dev-1": new, "B1": new, "dev-1.2": new}


def test_a_retired_device_has_no_login_and_the_youngest_of_a_bus_has_its_name() -> None:
    retired, young = row("dev-1", ["B1"], "a", retired_at_ms=5), row("dev-9", ["B1"], "b")
    assert logins([young, retired, row("dev-3", ["B1"], "c")], 0)["B1"][0] == young.mqtt_hash
    assert "dev-1" not in logins([retired], 0)


def test_a_bus_that_is_called_as_another_device_does_not_take_its_login() -> None:
    device, namesake = row("X", ["B1"], "a"), row("z-younger", ["X"], "b")
    assert {user: known for user, (known, _) in logins([namesake, device], 0).items()} == {
        "X": device.mqtt_hash, "B1": device.mqtt_hash, "z-younger": namesake.mqtt_hash,
    }  # fmt: skip
    rotated, third = msgspec.structs.replace(device, generation=2), row("third", ["X.2"], "c")
    assert logins([rotated, third], 0)["X.2"][0] == device.mqtt_hash
    assert logins([msgspec.structs.replace(device, retired_at_ms=1), namesake], 0)["X"][0] == namesake.mqtt_hash


async def test_owntracks_of_a_user_that_is_a_device_and_a_bus_speaks_for_the_device(redis: Redis) -> None:
    rows = [row("X", ["B1"], "a", generation=2), row("z", ["X"], "b"), row("third", ["X.2"], "c"), row("plain", ["z.1"], "d")]
    buses = [BusRow(bus_id, "p1", "demo", "", None) for bus_id in ("B1", "X", "X.2", "z.1")]

    class Namesakes(Registry):
        async def changed(self, since: int) -> Change:
            return Change(rows, buses, 1)

    registry = Devices(Namesakes(), CLOCK, secret_key="")
    await registry.load()
    reader = MqttReader(Door(registry, redis, Settings(), CLOCK), "mqtt://nowhere")
    for user, device_id, bus_id in (("X", "X", "B1"), ("X.2", "X", "B1"), ("B1", "X", "B1"), ("z", "z", "X"), ("z.1", "plain", "z.1")):
        device, bus = reader._sender(f"owntracks/{user}/phone")
        assert device is not None
        assert (device.device_id, bus) == (device_id, bus_id)


def test_the_password_file_is_nobody_elses_at_any_moment(tmp_path: Path) -> None:
    draft = tmp_path / ".passwords.new"
    draft.write_text("of a writer that was killed")
    draft.chmod(0o644)
    before = os.umask(0)
    try:
        write(tmp_path, "user:hash\n", "user x\n")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("passwords", "acl")] == [0o600, 0o600]
    assert (tmp_path / "passwords").read_text() == "user:hash\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acl", "passwords"]


async def test_files_are_written_when_the_registry_or_a_grace_changes_and_not_otherwise(tmp_path: Path) -> None:
    clock, reloads = ManualClock(100), []
    registry = await devices()
    kept = BrokerFiles(registry, tmp_path, lambda: reloads.append(1), clock, READER)
    assert kept.refresh() and not kept.refresh()
    assert oct((tmp_path / "passwords").stat().st_mode & 0o777) == "0o600"
    assert "user B1\ntopic write timepoint/v1/telemetry/B1\ntopic write owntracks/B1/+\n" in (tmp_path / "acl").read_text()
    old = ROWS[0]
    registry.rows["dev-1"] = msgspec.structs.replace(old, previous_mqtt_hash=old.mqtt_hash, previous_until_ms=200, generation=2)
    registry.version += 1
    assert kept.refresh() and not kept.refresh()
    clock.advance(150)
    assert kept.refresh() and not kept.refresh()
    assert len(reloads) == 3


@pytest.mark.parametrize("url", ["", "http://x", "mqtt://", "mqtt://h:99999999"])
def test_a_bad_broker_url_is_named(url: str) -> None:
    with pytest.raises(Invalid, match="MQTT_URL"):
        broker_address(url)
