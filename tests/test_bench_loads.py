"""The parts that load scenarios are made of: what they read off the wire however it is cut, and what they call lost, doubled, or growing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness.address import Address
from bench.harness.calls import Calls, request
from bench.harness.result import Second
from bench.harness.scenario import Scenario
from bench.loads.city import MixedCity, Soak
from bench.loads.fanout import Fanout, SlowClient, watchers_of
from bench.loads.ingest import IngestBatch, IngestMqtt, IngestWs
from bench.loads.mqtt import PORTS, Login, packet
from bench.loads.onsale import Sold
from bench.loads.reconnect import ReconnectStorm
from bench.loads.roads import Bus, City, Town, Way, city_of, epoch_ms
from bench.loads.seats import Judge, places
from bench.loads.socket import PING, PONG, TEXT, Socket, connect, frame, upgrade
from bench.loads.steadiness import drift, memory_slope
from bench.loads.watch import Ages, Crowd, Ledger, Ordered, Push, Wish, positions, subscribe, until
from deploy.servers import MosquittoServer
from tests.loads_share import TestShare


def share(url: str = "http://127.0.0.1:1", data: Any = None, options: Mapping[str, Any] | None = None) -> TestShare:
    return TestShare(url, data, options or {}, 10, 1)


def pos(bus_id: str = "load-1", at: str = "2026-11-22T00:14:00.123Z", channel: str = "bus:load-1") -> bytes:
    return json.dumps({"ch": channel, "o": 4, "t": "pos", "d": {"busId": bus_id, "lat": 1.0, "at": at}}).encode()


# --- the wire ---


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 1000])
async def test_a_socket_hears_whole_messages_however_they_are_cut_and_answers_pings(cut: int) -> None:
    said = [b"short", b"m" * 300, b"l" * 70_000]
    pongs: list[bytes] = []
    heard: list[bytes] = []
    whole = asyncio.Event()

    def server_frame(opcode: int, payload: bytes) -> bytes:
        size = len(payload)
        head = bytes((size,)) if size < 126 else b"\x7e" + size.to_bytes(2, "big") if size < 65_536 else b"\x7f" + size.to_bytes(8, "big")
        return bytes((0x80 | opcode,)) + head + payload

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
        sent = head + b"".join(server_frame(TEXT, one) for one in said[:2]) + server_frame(PING, b"p") + server_frame(TEXT, said[2])
        for at in range(0, min(len(sent), 700), cut):
            writer.write(sent[at : at + cut] if at + cut < 700 else sent[at:])
            await writer.drain()
        pongs.append(await reader.readexactly(len(frame(PONG, b"p"))))
        writer.write(server_frame(8, (1012).to_bytes(2, "big")))

    def hear(socket: Socket, payload: bytes) -> None:
        heard.append(payload)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = Address.of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    made = await connect(address, Socket(upgrade(address, "/ws"), hear, lambda socket: whole.set()))
    await asyncio.wait_for(whole.wait(), 10)
    server.close()
    assert heard == said and pongs == [frame(PONG, b"p")] and made.code == 1012


async def test_a_refused_upgrade_is_an_error_that_says_why() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    address = Address.of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    with pytest.raises(ConnectionError, match="503"):
        await connect(address, Socket(upgrade(address, "/ws"), lambda socket, payload: None))
    server.close()


async def test_a_connection_that_rested_too_long_is_not_used_again_and_nothing_is_lost() -> None:
    """As a server that closes them just then would make a fault of it."""
    asked: list[int] = []  # requests of each connection

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = len(asked)
        asked.append(0)
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError):
            while await reader.readuntil(b"\r\n\r\n"):
                asked[mine] += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def ask(number: int) -> None:
        for _ in range(number):
            calls.send(time.monotonic(), request("GET", "/", host=calls.host), "read")
        await until(lambda: not calls._under_way, 10)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    told = share(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    calls = await Calls.open(told, 3)
    await ask(1)
    assert sorted(asked) == [0, 0, 1]
    for line in calls._free:
        line.rested_s -= 20.0  # too long for two that were never used, not for the third
    await ask(2)
    assert len(asked) == 4 and asked[1:3] == [0, 0] and sum(asked) == 3
    for line in calls._free:
        line.rested_s -= 60.0
    await ask(9)
    await calls.rest()
    server.close()
    assert told.counts["answered"] == 12 == sum(asked) and not told.faults
    assert 4 <= len(asked) <= 8, "never more than three at a time, and new ones only for calls that wait"


def test_long_mqtt_packets_say_their_length_in_groups_of_seven_bits() -> None:
    assert packet(0x32, b"x" * 321)[:3] == b"\x32\xc1\x02" and packet(0xC0, b"") == b"\xc0\0"
    with pytest.raises(ValueError, match="mqtt"):
        Address.of("http://example.org", "mqtt", PORTS)


async def test_a_login_publishes_and_hears_that_the_broker_has_it(own_mosquitto: MosquittoServer) -> None:
    acked: list[int] = []
    broker = Address.of(own_mosquitto.url, "mqtt", PORTS)
    login = Login(broker, "load-1", "load-1", "secret", "timepoint/v1/telemetry/load-1", acked.append, lambda: None)
    await login.connect()
    numbers = [login.publish(b"{}") for _ in range(300)]
    async with asyncio.timeout(10):
        while len(acked) < 300:  # noqa: ASYNC110  (the broker's time)
            await asyncio.sleep(0.01)
    login.close()
    assert acked == numbers


# --- buses ---


def city() -> City:
    there = [(36.70, 3.00 + number / 1000) for number in range(60)]
    trips = [(f"demo:T{number}:20261122", "20261122") for number in range(3)]
    length = 59 * 0.001 * 111_194.9 * 0.8018
    ways = [Way("demo:R", there, [0.0, length / 2, length], ["a", "b", "c"], trips),
            Way("demo:R", there[::-1], [0.0, length], ["c", "a"], trips)]  # fmt: skip
    return city_of(msgspec.json.decode(msgspec.json.encode(City(ways, ["a", "b", "c"], (3.0, 36.7, 3.06, 36.7)))))


def test_a_bus_drives_along_its_line_stands_at_its_stop_and_takes_the_way_back() -> None:
    bus = Bus(Town(city()), 0, "load-0")
    fixes = [msgspec.json.decode(bus.fix(1000.0 + second, 1_000_000 + second)) for second in range(1000)]
    lons = [one["location"]["longitude"] for one in fixes]
    assert all(one["location"]["latitude"] == 36.7 and 2.9999 < lon < 3.0591 for one, lon in zip(fixes, lons, strict=True))
    assert max(abs(b - a) for a, b in pairwise(lons)) * 111_194.9 * 0.8018 < 9.5  # metres a second
    assert len({one["tripId"] for one in fixes}) == 2 and lons[0] < max(lons) > lons[-1]  # there, and back on another trip
    stood = sum(a == b for a, b in pairwise(lons[:400]))
    assert 10 <= stood <= 13 and fixes[5]["seq"] == 6  # at the stop in the middle


def test_a_bus_drives_to_where_its_way_back_begins_and_does_not_leap() -> None:
    there = [(36.70, 3.00 + number / 1000) for number in range(20)]
    trips = [("demo:T:20261122", "20261122")]
    back = [(lat + 0.004, lon) for lat, lon in reversed(there)]  # 445 m beside it
    ways = [Way("demo:R", line, [0.0, 19 * 0.001 * 111_194.9 * 0.8018], ["a", "b"], trips) for line in (there, back)]
    bus = Bus(Town(City(ways, ["a", "b"], (3.0, 36.7, 3.02, 36.71))), 0, "load-0")
    places = [bus.place(float(second))[:2] for second in range(400)]
    metres = [((b[0] - a[0]) ** 2 + ((b[1] - a[1]) * 0.8018) ** 2) ** 0.5 * 111_194.9 for a, b in pairwise(places)]
    assert max(metres) < 13.0 and max(lat for lat, _ in places) > 36.7039


def test_a_bus_that_drives_is_never_twice_at_one_spot() -> None:
    """As a receiver that hangs would say: the product does not use such fixes."""
    bus = Bus(Town(city()), 0, "load-0")
    places = [bus.place(100_000.0 + 0.5 * number) for number in range(1_200)]
    stood = [other[3] for one, other in pairwise(places) if one[:2] == other[:2]]
    assert len(stood) > 20 and not any(stood)


def test_two_buses_of_a_way_drive_different_trips_from_different_places() -> None:
    town = Town(city())
    one, other = Bus(town, 0, "load-0"), Bus(town, 2, "load-2")
    assert one.trip != other.trip and one.place(5.0) != other.place(5.0)


def test_times_of_the_wire_are_read_to_the_millisecond() -> None:
    assert epoch_ms(b"2026-11-22T00:14:59.123Z") == 1795306499123
    assert epoch_ms(b"2026-11-22T00:15:00Z") == 1795306500000


# --- what is seen ---


def socket_of(kind: str = "bus") -> Any:
    class Standing:
        mark = Wish([], kind)

    return Standing()


def test_positions_of_our_buses_are_read_out_of_single_messages_and_batches() -> None:
    batch = b'{"t":"batch","d":[' + pos() + b"," + pos("ALG-101") + b"," + pos("load-2", "2026-11-22T00:14:01.000Z") + b"]}"
    assert list(positions(batch)) == [("load-1", 1795306440123), ("load-2", 1795306441000)]
    assert list(positions(b'{"ch":"bus:load-1","o":1,"t":"snapshot","d":[]}')) == []


def test_what_a_snapshot_shows_is_seen_and_no_news() -> None:
    told = share()
    ledger = Ledger(told)
    ages = Ages(told, {"bus": "age"}, ledger)
    ledger.accepted("load-1", 1795306440123)
    held = json.loads(pos())["d"]
    snapshot = json.dumps({"ch": "bus:load-1", "o": 1, "t": "snapshot", "d": [held]}, separators=(",", ":")).encode()
    assert ledger.behind() == ["load-1"]
    ages.heard(socket_of(), snapshot)
    ages.heard(socket_of(), snapshot)
    assert ledger.behind() == [] and not told.faults and not told.notes.get("age")
    board = b'{"ch":"stop:demo:A","t":"snapshot","d":[{"busId":"load-1","tripId":"t"}]}'
    ages.heard(socket_of(), board)


def test_an_age_is_read_against_the_moment_that_the_fix_carries() -> None:
    told = share()
    ages = Ages(told, {"bus": "age"})
    now_ms = time.time() * 1000
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_ms / 1000 - 5))
    ages.heard(socket_of(), pos(at=f"{at}.000Z"))
    assert 4.9 < told.notes["age"][0] < 6.5 and told.counts["delivered"] == 1


async def test_a_fix_that_nobody_saw_is_lost_unless_a_newer_one_was_seen() -> None:
    told = share()
    ledger, watcher = Ledger(told), socket_of()
    for bus_id, at_ms in (("a", 1), ("a", 2), ("b", 5), ("c", 7)):
        ledger.accepted(bus_id, at_ms)
    ledger.seen(watcher, "a", 3)
    ledger.seen(watcher, "b", 4)
    assert await ledger.settle(0.0) == ["b", "c"]
    assert told.faults == {"lost": 2} and ledger.buses == 3


def test_a_watcher_that_sees_one_twice_or_an_older_one_later_says_so() -> None:
    told = share()
    ledger, watcher, other = Ledger(told), socket_of(), type("Other", (), {"mark": Wish([], "bus")})()
    for socket, at_ms in ((watcher, 5), (watcher, 5), (watcher, 4), (other, 5)):
        ledger.seen(socket, "a", at_ms)
    assert told.faults == {"seen twice": 1, "older after newer": 1}


def ordered(*messages: tuple[str, int, str]) -> TestShare:
    told = share()
    listener = Ordered(told)
    for kind, offset, epoch in messages:
        listener.message(Push(t=kind, o=offset, e=epoch or None))
    return told


def test_an_ordered_channel_has_no_hole_and_nothing_twice_over_any_number_of_connections() -> None:
    begun = ("snapshot", 4, "e")
    assert not ordered(begun, ("seat", 5, ""), ("seat", 6, "")).faults
    assert ordered(begun, ("seat", 6, "")).faults == {"hole in an ordered channel": 1}
    assert ordered(begun, ("seat", 5, ""), ("seat", 5, "")).faults == {"doubled": 1}
    again = ordered(begun, ("seat", 5, ""), ("snapshot", 9, "e"), ("seat", 10, ""))
    assert not again.faults and again.counts["not recovered"] == 4  # told of it by a snapshot
    assert not ordered(begun, ("snapshot", 1, "other"), ("seat", 2, "")).counts["not recovered"]


def test_a_seat_that_is_taken_while_it_is_taken_is_a_fault() -> None:
    told = share()
    judge = Judge(told)
    states = ["PICKED", "TAKEN", "FREE", "TAKEN", "TAKEN"]
    judge.heard(socket_of(), b'{"ch":"seats:x","o":0,"e":"e","t":"snapshot","d":[]}')
    for number, state in enumerate(states):
        change = {"seat": "1A", "state": state, "from": "a", "to": "b", "untilMs": None}
        judge.heard(socket_of(), json.dumps({"ch": "seats:x", "o": number + 1, "t": "seat", "d": change}).encode())
    assert told.faults == {"seat taken twice": 1} and judge.ordered.heard == 5


async def test_a_crowd_that_is_refused_says_what_it_was_told() -> None:
    from websockets.asyncio.server import ServerConnection, serve

    async def product(socket: ServerConnection) -> None:
        async for text in socket:
            said = json.loads(text)
            if said["op"] == "sub":
                await socket.send(json.dumps({"id": said["id"], "error": {"code": "NOT_FOUND"}}, separators=(",", ":")))

    async with serve(product, "127.0.0.1", 0, subprotocols=["timepoint.v1.json"]) as server:  # type: ignore[list-item]
        told = share(f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}")
        crowd = Crowd(told, [Wish([subscribe("bus:nobody")], "bus")], lambda socket, payload: None)
        await crowd.open()
        crowd.close()
    (fault,) = told.faults
    assert "NOT_FOUND" in fault


def test_places_are_handed_out_once_over_all_generators() -> None:
    trips = [Sold("demo:A:1", ["1", "2", "3"], ["1A", "1B"], 2), Sold("demo:B:1", ["1", "2"], ["1A"], 1)]
    given = [(trip.trip_id, leg, seat) for number in range(3) for trip, leg, seat in places(trips, number, 3)]
    assert len(given) == len(set(given)) == 5


# --- what is judged ---


@pytest.mark.parametrize(
    ("kind", "counts", "wrong"),
    [
        (IngestBatch, {"sent": 5}, "not one fix"),
        (IngestWs, {"sent": 5, "accepted": 6}, "6 fixes were accepted of 5"),
        (IngestBatch, {"sent": 5, "accepted": 4, "quarantined": 1}, "quarantined"),
        (IngestMqtt, {"sent": 5, "accepted": 5}, "no watcher saw one"),
        (Fanout, {"sent": 5, "accepted": 5}, "nobody who watches"),
        (SlowClient, {"sent": 5, "accepted": 5, "delivered": 5}, "not one reader stalled"),
        (MixedCity, {"sent": 5, "accepted": 5}, "nobody who watches"),
        (Soak, {"sent": 5, "accepted": 5, "delivered": 5, "followed": 4}, "only 4 were followed"),
        (ReconnectStorm, {"sent": 5, "accepted": 5}, "no socket was cut"),
        (ReconnectStorm, {"sent": 5, "accepted": 5, "cut": 3, "came back": 2}, "3 sockets were cut, 2 came back"),
    ],
)
def test_a_run_that_did_not_do_its_work_is_found_out(kind: type[Scenario], counts: dict[str, int], wrong: str) -> None:
    (found,) = kind().verify(None, {"tokens": {"a": "", "b": ""}, "watched": True}, counts)  # type: ignore[arg-type]
    assert wrong in found


def seconds(count: int, memory: Any, p99: Any) -> list[Second]:
    return [
        Second(at_s=at, phase="hold" if at >= 5 else "warm-up", offered=1, counts={}, p50_s={}, p99_s={"age": p99(at)}, lag_s=0, cpu={},
               memory_kb={"worker-0": memory(at)})
        for at in range(count)
    ]  # fmt: skip


def test_growth_and_drift_are_read_after_the_settling() -> None:
    flat = seconds(105, lambda at: 200_000 if at > 20 else 100_000 + at, lambda at: 0.05)
    assert memory_slope(flat, "worker-0") == pytest.approx(0.0, abs=25) and drift(flat, "age") == pytest.approx(0.0)
    growing = seconds(105, lambda at: 100_000 + 10 * at, lambda at: 0.05 if at < 55 else 0.06)
    assert memory_slope(growing, "worker-0") == pytest.approx(36, rel=0.01)  # 36,000 KB an hour on 100,000
    assert drift(growing, "age") == pytest.approx(20.0, rel=0.05)
    assert memory_slope(growing, "redis") is None and drift(growing[:8], "age") is None


@given(st.integers(0, 60), st.integers(1, 7), st.sampled_from([0.0, 50.0]))
def test_all_watchers_are_somebodys_and_one_at_most_the_timed_callers(watchers: int, of: int, reads: float) -> None:
    found = []
    for number in range(of):
        share = TestShare("", None, {"watchers": watchers, "reads": reads}, 1, 1)
        share.number, share.of = number, of
        found.append(watchers_of(share))  # type: ignore[arg-type]
    assert sum(found) == watchers and min(found) >= 0
    assert found[0] <= 1 or of == 1 or not reads
