"""Ticks and conflation: whoever listens to whatever, in slices, stalled, moved between audiences or gone and back, ends with the newest of every
vehicle, is told nothing twice and nothing older after something newer."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.events import LiveBatch
from engine.live import frames
from engine.live.hub import Since
from engine.live.listener import BBOX
from tests.live_house import batch, forecast, position
from tests.test_live_hub import Collector, Desk

BOX = (2.95, 36.0, 3.25, 37.0)
DOINGS = ["listen", "listen", "listen", "unlisten", "stall", "read", "back", "anew"]
CHANNELS = [
    "bus:b0",
    "bus:b1",
    "bus:b2",
    "trip:demo:t0:20260216",
    "trip:demo:t1:20260216",
    "route:demo:r1",
    "stop:demo:s1",
    "fleet:demo",
    BBOX,
]


class Socket(Collector):
    """One connection of a client."""

    __slots__ = ("client",)

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client, self.write = client, client.hear

    def subscribed(self, ident: Any, channel: str, epoch: str, offset: int, recovered: bool) -> None:
        self.client.granted(channel, epoch, offset, recovered)


class Client:
    """Keeps what a client of the contract would show, per channel, and what it would come back with."""

    def __init__(self) -> None:
        self.shown: dict[str, dict[str, Any]] = {}
        self.last: dict[str, Since] = {}
        self.socket: Collector | None = None
        self.faults: list[str] = []
        self._numbers: dict[tuple[str, str], int] = {}

    def open(self, desk: Desk) -> Collector:
        self.socket = Socket(self)
        self.socket.principal = "boss"
        # what it heard last may have a lower number than something before it in the same frame: that is said again then
        self._numbers = {key: n - 1 for key, n in self._numbers.items()}
        return self.socket

    def granted(self, channel: str, epoch: str, offset: int, recovered: bool) -> None:
        if not recovered:
            self.shown[channel] = {"-": "waits for a snapshot"}
        self.last[channel] = Since(epoch, offset)

    def hear(self, frame: bytes) -> None:
        said = msgspec.json.decode(frame)
        for push in said["d"] if said["t"] == "batch" else [said]:
            names, offsets = (push["ch"], push["o"]) if isinstance(push["ch"], list) else ([push["ch"]], [push["o"]])
            for name, offset in zip(names, offsets, strict=True):
                self._on(name, offset, push["t"], push["d"], push.get("e"))

    def _on(self, name: str, offset: int, kind: str, body: Any, epoch: str | None) -> None:
        assert self.socket is not None
        if name not in self.socket.channels:
            self.faults.append(f"{kind} on {name}, which it does not listen to")
        shown = self.shown.setdefault(name, {})
        if kind == "snapshot":
            shown.clear()
            shown |= {one["busId"]: one for one in body}
            self.last[name] = Since(epoch or "", offset)
            self._numbers = {key: n for key, n in self._numbers.items() if key[0] != name}
            return
        bus_id = body["busId"]
        if kind in ("pos", "gone"):
            before = self._numbers.get((name, bus_id), -1)
            if offset < before or (offset == before and kind == "pos"):
                self.faults.append(f"{kind} {offset} of {bus_id} on {name} after {before}")
            self._numbers[name, bus_id] = offset
        if kind == "gone":
            shown.pop(bus_id, None)
        elif kind == "pos" or (kind == "eta" and name.startswith("stop:")):
            shown[bus_id] = body
        if name in self.last:
            self.last[name] = Since(self.last[name].epoch, offset)


class World:
    """The truth of one area, its table and hub, with slices of one socket, so that everything that may come between does."""

    def __init__(self) -> None:
        self.desk = Desk(live_gather_ms=50, socket_stall_s=1e9)
        self.n, self.epoch = 1, "E"
        self.truth: dict[str, Any] = {}
        self.clients = [Client() for _ in range(4)]
        for client in self.clients:
            client.open(self.desk)

    def move(self, bus: int, place: int, trip: int, foreseen: bool) -> None:
        self.n += 1
        said = position(f"b{bus}", lon=3.0 + place / 10, lat=36.5 + self.n / 1e5, trip=f"t{trip}", at_ms=self.n * 1000)
        self.truth[said.bus_id] = said
        told = forecast(said.bus_id, "s1", "s2", trip=f"t{trip}", made_at_ms=self.n * 1000)
        self.hear(batch(self.n, said, epoch=self.epoch, forecasts=(told,) if foreseen else ()))

    def go(self, bus: int) -> None:
        self.n += 1
        self.truth.pop(f"b{bus}", None)
        self.hear(batch(self.n, epoch=self.epoch, gone=(f"b{bus}",)))

    def hear(self, said: LiveBatch) -> None:
        change = self.desk.table.hear(said)
        assert change is not None
        self.desk.hub.tell(change)

    def restart(self) -> None:
        """Redis lost something: a new epoch."""
        self.n, self.epoch = 1, self.epoch + "+"
        self.desk.table.lose("demo", "CONNECTED")
        for change in self.desk.table.learn(batch(1, *self.truth.values(), epoch=self.epoch)):
            self.desk.hub.tell(change)

    def act(self, client: Client, what: str, channel: str) -> None:
        hub, socket = self.desk.hub, client.socket
        assert socket is not None
        if what.endswith("listen") and socket.mailbox is not None:
            return  # whoever does not read is not asked either (api/live.py)
        if what == "listen" and channel == BBOX:
            hub.look(socket, BOX)
        elif what == "listen":
            hub.subscribe(socket, channel)
        elif what == "unlisten":
            hub.unsubscribe(socket, channel)
            client.shown.pop(channel, None)
        elif what == "stall":
            hub.stall(socket)
        elif what == "read":
            hub.resume(socket)
        else:  # it comes back on another socket, with what it saw last; or it begins anew, which is how it is told at once again
            names = list(socket.channels)
            hub.leave(socket)
            back = client.open(self.desk)
            if what == "anew":
                client.shown.clear()
                names = []
            for name in names:
                if name == BBOX:
                    hub.look(back, BOX)
                else:
                    hub.subscribe(back, name, client.last[name])

    def check(self) -> None:
        table = self.desk.table
        for client in self.clients:
            assert not client.faults, client.faults[0]
            assert client.socket is not None
            for name in client.socket.channels:
                if name == BBOX:
                    seen = list(table.inside(*BOX))
                elif name.startswith("stop:"):
                    continue
                else:
                    seen = table.on_channel(name)
                want = {one.position.bus_id: msgspec.to_builtins(frames.pos(one.position)) for one in seen}
                assert client.shown[name] == want, name


ACTS = st.one_of(
    st.tuples(st.just("move"), st.integers(0, 3), st.integers(0, 3), st.integers(0, 1), st.booleans()),
    st.tuples(st.just("move"), st.integers(0, 3), st.integers(0, 3), st.integers(0, 1), st.booleans()),
    st.tuples(st.just("go"), st.integers(0, 3)),
    st.tuples(st.just("restart")),
    st.tuples(st.just("tick")),
    st.tuples(st.just("turn"), st.integers(1, 6)),
    st.tuples(st.just("client"), st.integers(0, 3), st.sampled_from(DOINGS), st.sampled_from(CHANNELS)),
)  # fmt: skip


async def _play(acts: list[tuple[Any, ...]]) -> None:
    world = World()
    hub = world.desk.hub
    running = asyncio.create_task(hub.run())
    for act in acts:
        match act:
            case ("move", bus, place, trip, foreseen):
                world.move(bus, place, trip, foreseen)
            case ("go", bus):
                world.go(bus)
            case ("restart",):
                world.restart()
            case ("tick",):
                world.desk.clock.advance(60)
                hub._wake.set()
            case ("turn", turns):
                for _ in range(turns):
                    await asyncio.sleep(0)
            case ("client", number, what, channel):
                world.act(world.clients[number], what, channel)
            case ("check",):
                await _check(world)
    await _check(world)
    running.cancel()


async def _check(world: World) -> None:
    """Everybody reads, everything arrives, and is what it should be."""
    hub = world.desk.hub
    for client in world.clients:
        assert client.socket is not None
        hub.resume(client.socket)
    while hub.now.pending or hub.later.pending or hub.now.is_busy or hub.later.is_busy:
        world.desk.clock.advance(60)
        hub._wake.set()
        await asyncio.sleep(0)
    assert hub._broken.total() == 0
    world.check()


@pytest.fixture
def slices_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.live.delivery.SLICE", 1)
    monkeypatch.setattr("engine.live.delivery.PARTS_SLICE", 1)
    monkeypatch.setattr("engine.live.listener.MAILBOX_PARTS", 3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(ACTS, max_size=40))
def test_nothing_is_lost_said_twice_or_turned_around(slices_of_one: None, acts: list[tuple[Any, ...]]) -> None:
    asyncio.run(_play(acts))


@pytest.mark.parametrize("seed", range(4))
def test_nor_in_a_long_day(slices_of_one: None, seed: int) -> None:
    chance = random.Random(seed)
    acts: list[tuple[Any, ...]] = []
    for _ in range(2_500):
        kind = chance.choice(["move"] * 6 + ["go", "tick", "turn", "client", "client", "client", "check"])
        acts.append({
            "move": ("move", chance.randrange(4), chance.randrange(4), chance.randrange(2), chance.random() < 0.3),
            "go": ("go", chance.randrange(4)),
            "tick": ("tick",),
            "check": ("check",),
            "turn": ("turn", chance.randrange(1, 7)),
            "client": ("client", chance.randrange(4), chance.choice(DOINGS), chance.choice(CHANNELS)),
        }[kind])  # fmt: skip
    asyncio.run(_play(acts))


async def test_who_follows_many_vehicles_gets_the_newest_of_each_in_one_frame_a_tick() -> None:
    desk = Desk(live_gather_ms=100)
    one, many = desk.listen("bus:17"), desk.listen("route:demo:r1")
    running = asyncio.create_task(desk.hub.run())
    turns = [asyncio.sleep(0) for _ in range(5)]
    desk.hear(batch(2, position("17", lat=36.1)))
    for turn in turns:
        await turn
    one.took(), many.took()  # the first of a quiet moment goes at once
    for n in range(3, 8):
        desk.hear(batch(n, position("17", lat=36 + n / 10), position(f"x{n}")))
        for _ in range(5):
            await asyncio.sleep(0)
    assert [m["o"] for m in one.told] == [3, 4, 5, 6, 7] and many.told == []
    desk.clock.advance(101)
    desk.hub._wake.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(many.told) == 6 and {m["d"]["busId"]: m["o"] for m in many.told}["17"] == 7
    assert msgspec.json.decode(many.frames[-1])["t"] == "batch"
    running.cancel()


async def test_a_new_epoch_shows_maps_anew() -> None:
    desk = Desk(position("17", lon=3.0))
    viewer = desk.listen()
    desk.hub.look(viewer, BOX)
    viewer.took()
    desk.table.lose("demo", "CONNECTED")
    for change in desk.table.learn(batch(1, position("18", lon=3.0), epoch="F")):
        desk.hub.tell(change)
    await desk.hub.round()
    assert viewer.took() == [("snapshot", BBOX, ["18"])]
