"""Buses that report, over every protocol but plain single posts (those are `ingest-http`): batches of a gateway, sockets, MQTT, phones.

Each fix carries its intended moment as its time, so whoever watches can tell its age. The rate is fixes a second; `--option buses=N` spreads
them over N buses in turn, and without it there are as many buses as fixes a second: 1 Hz each.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from math import ceil
from typing import Any, ClassVar

import msgspec

from bench.harness.address import Address
from bench.harness.calls import CONNECTIONS, Calls, opening, whole
from bench.harness.devices import gateway, register
from bench.harness.scenario import Measure, Option, Scenario, Share, Target
from bench.loads.mqtt import PORTS, Login
from bench.loads.roads import Bus, Town, bus_ids, city_of, survey
from bench.loads.socket import Socket, connect_all, upgrade
from bench.loads.watch import Ages, Crowd, Ledger, gathered, until

CONNECTIONS_BATCH = 16  # of one generator
GATEWAY_BUSES = 5_000  # a gateway device is for so many at most
SETTLE_S = 8.0
KNOTS_PER_MPS = 3600 / 1852
BUSES = Option("buses", 0, "buses that report, in turn; 0: as many as the rate")
MEASURE = Measure("ingest", "from the moment a fix is meant to be sent until it is acknowledged")


class Answer(msgspec.Struct):
    """Of /ingest/telemetry."""

    accepted: int
    quarantined: list[msgspec.Raw]


_answer = msgspec.json.Decoder(Answer)


def buses_of(options: Mapping[str, Any], rate: float) -> int:
    return int(options["buses"]) or max(1, ceil(rate))


def mine(share: Share, count: int) -> range:
    """The numbers of the buses that this generator drives."""
    return range(share.number, count, share.of)


def prepared(target: Target, count: int) -> dict[str, Any]:
    """City, buses, tokens: as JSON."""
    return {"city": msgspec.to_builtins(survey(target)), "tokens": register(target, bus_ids(count))}


def drivers(share: Share) -> list[Bus]:
    """The buses of this generator."""
    town, names = Town(city_of(share.data["city"])), list(share.data["tokens"])
    return [Bus(town, number, names[number]) for number in mine(share, len(names))]


def took_all(status: int, body: bytes) -> bool:
    """Nothing of a request was quarantined."""
    return status == 202 and body.endswith(b'"quarantined":[]}')


def counted(share: Share, status: int, body: bytes, fixes: int) -> None:
    """What /ingest/telemetry made of them."""
    if status != 202:
        share.fault(str(status))
    elif took_all(status, body):
        share.count("accepted", fixes)
    else:
        said = _answer.decode(body)
        share.count("accepted", said.accepted)
        share.count("quarantined", len(said.quarantined))


def all_said(data: Any, counts: Mapping[str, int]) -> list[str]:
    """What does not hold of any ingest: nothing was accepted, or more than was sent."""
    wrong = []
    if not counts.get("accepted"):
        wrong.append("not one fix was accepted")
    if counts.get("quarantined"):
        wrong.append(f"{counts['quarantined']} fixes of healthy buses were quarantined")
    if counts.get("accepted", 0) > counts.get("sent", 0):
        wrong.append(f"{counts['accepted']} fixes were accepted of {counts.get('sent', 0)} that were sent")
    return wrong


class Reporters(Scenario):
    """Buses that report, by whatever way."""

    unit = "fixes"
    options: ClassVar[tuple[Option, ...]] = (BUSES,)
    measures: ClassVar[tuple[Measure, ...]] = (MEASURE,)
    needs = frozenset({"token"})

    def prepare(self, target: Target, options: Mapping[str, Any], rate: float, seed: int) -> Any:
        return prepared(target, buses_of(options, rate))

    def verify(self, target: Target, data: Any, counts: Mapping[str, int]) -> list[str]:
        return all_said(data, counts)


async def in_turn(share: Share, those: Sequence[Any]) -> AsyncIterator[tuple[float, Any]]:
    """Each moment with the next of those; none where there are none."""
    turn = 0
    async for moment in share.moments():
        if those:
            yield moment, those[turn % len(those)]
            turn += 1


class IngestBatch(Reporters):
    name = "ingest-batch"
    summary = "gateways that post the fixes of many buses together"
    rate: ClassVar[float] = 2000.0
    options = (BUSES, Option("batch", 100, "fixes in a request"))
    measures = (Measure("ingest", "from the moment the last fix of a batch is due until the batch is answered"),)

    def prepare(self, target: Target, options: Mapping[str, Any], rate: float, seed: int) -> Any:
        count = buses_of(options, rate)
        found = prepared(target, count)
        names = list(found["tokens"])
        return found | {"gateways": [gateway(target, names[start : start + GATEWAY_BUSES]) for start in range(0, count, GATEWAY_BUSES)]}

    async def drive(self, share: Share) -> None:
        buses, batch = drivers(share), int(share.options["batch"])
        calls = await Calls.open(share, CONNECTIONS_BATCH)
        heads = [opening("POST", "/ingest/telemetry", host=calls.host, token=token) for token in share.data["gateways"]]
        waiting: list[list[bytes]] = [[] for _ in heads]

        def send(which: int, moment: float) -> None:
            fixes, waiting[which] = waiting[which], []
            share.count("sent", len(fixes))
            share.count("requests")
            body = b"[" + b",".join(fixes) + b"]"
            calls.send(moment, whole(heads[which], body), "ingest", lambda status, said: counted(share, status, said, len(fixes)))

        async for moment, bus in in_turn(share, buses):
            which = bus.number // GATEWAY_BUSES
            waiting[which].append(bus.fix(moment, share.epoch_ms(moment)))
            if len(waiting[which]) >= batch:
                send(which, moment)
        for which, fixes in enumerate(waiting):
            if fixes:
                send(which, time.monotonic())
        await calls.rest()


class OsmAnd(Reporters):
    name = "osmand"
    summary = "phones that report by OsmAnd's protocol, a request each fix"
    rate: ClassVar[float] = 200.0
    options = (BUSES, CONNECTIONS)

    async def drive(self, share: Share) -> None:
        buses, tokens = drivers(share), share.data["tokens"]
        calls = await Calls.open(share)
        tail = f" HTTP/1.1\r\nHost: {calls.host}\r\nContent-Length: 0\r\n\r\n"
        heads = [f"POST /ingest/osmand?token={tokens[bus.bus_id]}&id={bus.bus_id}" for bus in buses]

        def heard(status: int, body: bytes) -> None:
            if status == 200:
                share.count("accepted")
            else:
                share.fault(str(status))

        async for moment, (bus, head) in in_turn(share, list(zip(buses, heads, strict=True))):
            lat, lon, bearing, mps = bus.place(moment)
            said = f"&lat={lat:.6f}&lon={lon:.6f}&timestamp={share.epoch_ms(moment) / 1000:.3f}"
            said += f"&speed={mps * KNOTS_PER_MPS:.2f}&bearing={bearing:.1f}&accuracy=5{tail}"
            share.count("sent")
            calls.send(moment, (head + said).encode(), "ingest", heard)
        await calls.rest()

    def verify(self, target: Target, data: Any, counts: Mapping[str, int]) -> list[str]:
        return all_said(data, counts) + _stored(target, data)


def _stored(target: Target, data: Any, looked_at: int = 3) -> list[str]:
    """The product answers 200 to phones whatever they say: whether it knows where the first buses are."""
    wrong = []
    for bus_id in list(data["tokens"])[:looked_at]:
        found = target.call("GET", f"/v1/buses/{bus_id}/location")
        if found.get("ageMs", 1e12) > 120_000:
            wrong.append(f"{bus_id} has reported, and its last known position is {found.get('ageMs')} ms old")
    return wrong


class _Reporting(asyncio.Event):
    """A bus on a socket: its frames under way, oldest first."""

    def __init__(self, bus: Bus) -> None:
        super().__init__()
        self.bus = bus
        self.due: deque[tuple[int, float]] = deque()  # sequence number, moment


class IngestWs(Reporters):
    name = "ingest-ws"
    summary = "a socket for every bus, a fix a frame, acknowledged by number"
    rate: ClassVar[float] = 500.0

    async def drive(self, share: Share) -> None:
        address = Address.of(share.url)
        reporting = [_Reporting(bus) for bus in drivers(share)]
        ending = False

        def heard(socket: Socket, payload: bytes) -> None:
            said, one, now_s = msgspec.json.decode(payload), socket.mark, time.monotonic()
            if "quarantined" in said:
                share.count("quarantined")
            elif said.get("ack") is not None:
                while one.due and one.due[0][0] <= said["ack"]:
                    share.note("ingest", now_s - one.due.popleft()[1])
                    share.count("accepted")

        def lost(socket: Socket) -> None:
            if not ending:
                share.fault(f"socket closed {socket.code or 'without a word'}")

        sockets = [
            Socket(upgrade(address, "/ingest/ws", Authorization=f"Bearer {share.data['tokens'][one.bus.bus_id]}"), heard, lost, one)
            for one in reporting
        ]
        await connect_all(address, sockets)
        async for moment, socket in in_turn(share, sockets):
            one = socket.mark
            payload = one.bus.fix(moment, share.epoch_ms(moment))
            one.due.append((one.bus.seq, moment))
            share.count("sent")
            socket.say(payload)
        await until(lambda: not any(one.due for one in reporting), SETTLE_S)
        for _ in range(sum(len(one.due) for one in reporting)):
            share.fault("not acknowledged")
        ending = True
        for socket in sockets:
            socket.cut()


class IngestMqtt(Reporters):
    name = "ingest-mqtt"
    summary = "a login at the broker for every bus, QoS 1; watchers see what becomes of it"
    rate: ClassVar[float] = 200.0
    measures = (
        Measure("ingest", "from the moment a fix is meant to be sent until the broker has it (PUBACK)"),
        Measure("age", "until a watcher of its bus has it"),
    )
    needs = frozenset({"token", "mqtt"})

    def prepare(self, target: Target, options: Mapping[str, Any], rate: float, seed: int) -> Any:
        return prepared(target, buses_of(options, rate)) | {"mqtt": target.mqtt_url}

    async def drive(self, share: Share) -> None:
        broker, buses = Address.of(share.data["mqtt"], "mqtt", PORTS), drivers(share)
        ledger = Ledger(share)
        crowd = Crowd(share, gathered([f"bus:{bus.bus_id}" for bus in buses], "bus"), Ages(share, {"bus": "age"}, ledger).heard)
        await crowd.open()
        logins: list[tuple[Bus, Login, dict[int, tuple[float, int]]]] = []
        for start in range(0, len(buses), 50):
            made = [self._login(share, broker, bus, ledger) for bus in buses[start : start + 50]]
            await asyncio.gather(*(login.connect() for _, login, _ in made))
            logins += made
        async for moment, (bus, login, due) in in_turn(share, logins):
            at_ms = share.epoch_ms(moment)
            due[login.publish(bus.fix(moment, at_ms))] = moment, at_ms
            share.count("sent")
        await until(lambda: not any(due for _, _, due in logins), SETTLE_S)
        for _ in range(sum(len(due) for _, _, due in logins)):
            share.fault("not acknowledged")
        await ledger.settle(SETTLE_S)
        for _, login, _ in logins:
            login.close()
        crowd.close()

    def _login(self, share: Share, broker: Address, bus: Bus, ledger: Ledger) -> tuple[Bus, Login, dict[int, tuple[float, int]]]:
        due: dict[int, tuple[float, int]] = {}

        def acked(number: int) -> None:
            if (found := due.pop(number, None)) is not None:
                share.note("ingest", time.monotonic() - found[0])
                share.count("accepted")
                ledger.accepted(bus.bus_id, found[1])

        topic, token = f"timepoint/v1/telemetry/{bus.bus_id}", share.data["tokens"][bus.bus_id]
        made = Login(broker, f"{bus.bus_id}-{share.seed}", bus.bus_id, token, topic, acked, lambda: share.fault("broker hung up"))
        return bus, made, due

    def verify(self, target: Target, data: Any, counts: Mapping[str, int]) -> list[str]:
        wrong = all_said(data, counts)
        if counts.get("accepted") and not counts.get("delivered"):
            wrong.append("the broker took every fix, and no watcher saw one: does the product read from this broker?")
        return wrong
