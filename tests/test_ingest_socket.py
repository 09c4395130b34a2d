"""The socket's session: what is acknowledged is stored, in the order of the frames, and nothing else is."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from api.device_socket import DeviceSocket
from engine.clock import ManualClock
from engine.errors import Unavailable
from engine.office.accounts import Device, Devices
from engine.settings import Settings
from ingest.door import Door
from ingest.socket import IN_FLIGHT_MAX, IngestSession

NOW_MS = 1_795_262_400_000
BUS = Device("d1", "p1", "TOKEN", {"B1": "demo"})
GATEWAY = Device("d2", "p1", "GATEWAY", {"B1": "slow", "B2": "fast"})


class Gate:
    """Streams whose appends wait for the test, area by area. (The door's own promises are tested on a real Redis.)"""

    def __init__(self) -> None:
        self.open: dict[str, asyncio.Event] = {}
        self.fault: Exception | None = None
        self.quarantined: list[bytes] = []

    def area(self, name: str) -> asyncio.Event:
        return self.open.setdefault(name, asyncio.Event())

    async def append(self, area: str, payload: bytes) -> str:
        await self.area(area).wait()
        if self.fault is not None:
            raise self.fault
        return "1-1"

    async def quarantine(self, area: str, payload: bytes) -> None:
        self.quarantined.append(payload)

    async def nonce_is_new(self, device_id: str, nonce: str, ttl_s: int) -> bool:
        return True


class Talk:
    """A session and what it said."""

    def __init__(self, device: Device = BUS) -> None:
        self.gate, self.said, self.ends = Gate(), [], []  # type: ignore[var-annotated]
        clock = ManualClock(NOW_MS)
        self.devices = Devices(None, clock, secret_key="")  # type: ignore[arg-type]
        self.devices._devices[device.device_id] = device
        self.door = Door(self.devices, self.gate, Settings(), clock)
        self.session = IngestSession(
            self.door, device, lambda said, is_text: self.said.append(said), lambda code, reason: self.ends.append(code)
        )

    def hear(self, seq: int | None, bus_id: str = "B1", **more: Any) -> None:
        self.text(fix(seq, bus_id) | more)

    def text(self, said: Any) -> None:
        self.session.receive(json.dumps(said).encode(), True)

    async def settle(self) -> list[Any]:
        await self.door.drain()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return [json.loads(one) for one in self.said]


def fix(seq: int | None, bus_id: str = "B1") -> dict[str, Any]:
    return {"busId": bus_id, "timestamp": NOW_MS, "location": {"latitude": 36.75, "longitude": 3.05}} | (
        {} if seq is None else {"seq": seq}
    )


async def test_nothing_is_acknowledged_before_it_is_appended() -> None:
    talk = Talk()
    talk.hear(1)
    await asyncio.sleep(0)
    assert talk.said == []
    talk.gate.area("demo").set()
    assert await talk.settle() == [{"ack": 1}]


async def test_frames_that_land_together_are_one_acknowledgement() -> None:
    talk = Talk()
    for seq in (5, 6, 7):
        talk.hear(seq)
    talk.gate.area("demo").set()
    assert await talk.settle() == [{"ack": 7}]


async def test_fixes_without_a_seq_are_counted() -> None:
    talk = Talk()
    talk.gate.area("demo").set()
    talk.hear(None)
    talk.text([fix(None), fix(None)])
    assert await talk.settle() == [{"ack": None, "n": 3}]


async def test_an_unusable_fix_is_named_and_the_others_of_its_frame_are_stored() -> None:
    talk = Talk()
    talk.gate.area("demo").set()
    talk.text([fix(1), fix(2, "B9"), fix(3) | {"location": {"latitude": 99, "longitude": 0}}, fix(4)])
    talk.session.receive(b"garbage", True)
    assert await talk.settle() == [
        {"quarantined": {"seq": 2, "reason": "NOT_YOUR_BUS"}},
        {"quarantined": {"seq": 3, "reason": "RANGE"}},
        {"quarantined": {"seq": None, "reason": "MALFORMED"}},
        {"ack": 4},
    ]
    assert talk.gate.quarantined
    assert talk.ends == []


async def test_messagepack_is_answered_in_messagepack() -> None:
    talk = Talk()
    talk.gate.area("demo").set()
    talk.session.receive(msgspec.msgpack.encode(fix(8)), False)
    await talk.door.drain()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [msgspec.msgpack.decode(one) for one in talk.said] == [{"ack": 8}]


async def test_a_later_frame_of_a_faster_area_waits_for_the_earlier_one() -> None:
    talk = Talk(GATEWAY)
    talk.hear(1, "B1")
    talk.hear(2, "B2")
    talk.gate.area("fast").set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert talk.said == []  # ack 2 would say that 1 is stored
    talk.gate.area("slow").set()
    assert (await talk.settle())[-1] == {"ack": 2}


async def test_a_failed_append_ends_the_socket_and_acknowledges_nothing_behind_it() -> None:
    talk = Talk()
    talk.gate.fault = Unavailable("away")
    talk.hear(1)
    talk.hear(2)
    talk.gate.area("demo").set()
    assert await talk.settle() == []
    assert talk.ends == [1012]
    talk.hear(3)
    assert await talk.settle() == []


async def test_a_device_that_hung_up_is_told_nothing() -> None:
    talk = Talk()
    talk.hear(1)
    talk.session.closed()
    talk.gate.area("demo").set()
    assert await talk.settle() == []


async def test_too_much_in_flight_pauses_the_reader_until_it_is_stored() -> None:
    talk, resumed = Talk(), []
    talk.session.on_resume = lambda: resumed.append(True)
    talk.text([fix(n) for n in range(IN_FLIGHT_MAX)])
    assert talk.session.paused
    talk.gate.area("demo").set()
    assert (await talk.settle())[-1] == {"ack": IN_FLIGHT_MAX - 1}
    assert not talk.session.paused
    assert resumed == [True]


@pytest.mark.parametrize("count", [10_001])
async def test_a_frame_over_the_limit_is_a_bad_message(count: int) -> None:
    talk = Talk()
    talk.session.receive(b"[" + b",".join([b"0"] * count) + b"]", False)
    assert talk.ends == [4400]


async def test_a_device_that_is_retired_is_sent_away_at_its_next_frame() -> None:
    talk = Talk()
    talk.gate.area("demo").set()
    talk.hear(1)
    await talk.settle()
    del talk.devices._devices[BUS.device_id]
    talk.hear(2)
    assert await talk.settle() == [{"ack": 1}]
    assert talk.ends == [4401]


async def test_a_device_far_over_its_rate_is_sent_away() -> None:
    talk = Talk()
    talk.gate.area("demo").set()
    for _ in range(4):
        talk.text([fix(n) for n in range(9000)])
        await talk.settle()
    assert talk.ends == [4429]


async def test_a_device_that_does_not_read_its_acknowledgements_is_not_read_because_its_fixes_are_stored() -> None:
    settings = Settings()
    wire = SimpleNamespace(reads=True, held=settings.socket_buffer_max_bytes + 1, is_closing=lambda: False)
    wire.pause_reading = lambda: setattr(wire, "reads", False)
    wire.resume_reading = lambda: setattr(wire, "reads", True)
    wire.get_write_buffer_size = lambda: wire.held
    socket = DeviceSocket(SimpleNamespace(settings=settings), Talk().door, BUS)  # type: ignore[arg-type]
    socket.transport = wire  # type: ignore[assignment]
    socket.pause_writing()
    assert socket.session.on_resume is not None
    socket.session.on_resume()
    assert not wire.reads
    wire.held = 0
    socket.resume_writing()
    assert wire.reads
