"""Live sockets over the real server, the real Redis and a stranger's client."""

from __future__ import annotations

import asyncio
import json
import socket as sockets
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from litestar import get
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from deploy.servers import RedisServer
from engine.events import IncidentEvent
from engine.live.ordered import OrderedChannels
from engine.store.redis import ChannelLog
from tests.live_house import AT_MS, House, ask, forecast, hear, house, position
from tests.raw_redis import raw

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
LONG_BYTES = 4_000_000  # more than the kernel takes for who does not read
PACKED = {"subprotocols": ["timepoint.v1.msgpack"]}


async def until(true: Callable[[], object]) -> None:
    """Waits for something that has no event of its own."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def listen(h: House, ws: ClientConnection, channel: str, **more: Any) -> Any:
    """Subscribes and returns the reply and the first push."""
    await ask(ws, id=channel, op="sub", ch=channel, **more)
    return await hear(ws), await hear(ws)


async def code_of(ws: ClientConnection) -> int:
    async with asyncio.timeout(5):
        try:
            while True:
                await ws.recv()
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd is not None else 1006


async def test_a_subscriber_of_a_bus_gets_its_snapshot_and_then_what_the_area_says(redis_url: str) -> None:
    async with house(redis_url) as h:
        await h.owner.say(position("17"))
        async with h.connect() as ws:
            reply, snapshot = await listen(h, ws, "bus:17")
            assert (reply["id"], reply["ok"], reply["recovered"]) == ("bus:17", True, False)
            assert snapshot["t"] == "snapshot" and snapshot["ch"] == "bus:17" and [d["busId"] for d in snapshot["d"]] == ["17"]
            n = await h.owner.say(position("17", lat=36.76))
            pushed = await hear(ws)
            assert (pushed["ch"], pushed["o"], pushed["t"], pushed["d"]["lat"]) == ("bus:17", n, "pos", 36.76)
            assert pushed["d"]["tripId"] == "demo:t1:20260216" and pushed["d"]["at"] == "2026-02-16T14:05:09.250Z"


async def test_json_and_msgpack_listeners_hear_the_same(redis_url: str) -> None:
    async with house(redis_url) as h:
        async with h.connect() as plain, h.connect(**PACKED) as packed, h.connect("/ws/tracking/17") as by_path:
            assert packed.subprotocol == "timepoint.v1.msgpack"
            await listen(h, plain, "bus:17")
            await packed.send(msgspec.msgpack.encode({"id": 1, "op": "sub", "ch": "bus:17"}))
            await hear(packed), await hear(packed)
            await hear(by_path), await hear(by_path)
            await h.owner.say(position("17"), forecasts=(forecast("17", "a"),))
            said = [await hear(ws) for ws in (plain, packed, by_path)]
            assert said[0] == said[1] == said[2] and said[0]["t"] == "pos"


async def test_a_client_that_comes_back_gets_what_it_missed(redis_url: str) -> None:
    async with house(redis_url) as h:
        await h.owner.say(position("17"), position("18"))
        async with h.connect() as ws:
            reply, _ = await listen(h, ws, "route:demo:r1")
        await h.owner.say(position("18", lat=36.9))
        async with h.connect() as ws:
            again, missed = await listen(h, ws, "route:demo:r1", since={"e": reply["e"], "o": reply["o"]})
            assert again["recovered"] is True and (missed["t"], missed["d"]["busId"]) == ("pos", "18")
            foreign, snapshot = await listen(h, ws, "route:demo:r1", since={"e": "other", "o": 1})
            assert foreign["recovered"] is False and snapshot["t"] == "snapshot" and len(snapshot["d"]) == 2


async def test_a_number_that_was_never_heard_makes_the_worker_read_the_picture(redis_url: str) -> None:
    async with house(redis_url) as h:
        await h.owner.say(position("17"))
        async with h.connect() as ws:
            await listen(h, ws, "route:demo:r1")
            await h.owner.say(position("18", lat=36.5), lost=True)
            await h.owner.say(position("17", lat=36.6))
            said: dict[str, float] = {}
            while len(said) < 2:
                m = await hear(ws)
                said |= {p["d"]["busId"]: p["d"]["lat"] for p in (m["d"] if m["t"] == "batch" else [m])}
            assert said == {"17": 36.6, "18": 36.5}


async def test_redis_goes_away_and_comes_back_as_a_new_epoch(own_redis: RedisServer) -> None:
    async with house(own_redis.url) as h:
        await h.owner.say(position("17"))
        async with h.connect() as ws:
            await listen(h, ws, "bus:17")
            own_redis.stop()
            await until(lambda: h.table.stale)
            assert h.table.position("17") is not None, "the last picture stays"
            own_redis.start()
            await until(lambda: not (h.table.stale))
            h.owner.token = ""
            await raw(h.redis).delete(h.owner.store.keys.lease)
            await h.owner.begin()
            await h.owner.say(position("17", lat=37.0))
            m = await hear(ws)
            while m["t"] != "snapshot" or m["d"][0]["lat"] != 37.0:
                m = await hear(ws)
            assert m["e"] == h.owner.epoch


async def test_a_viewport_by_message(redis_url: str) -> None:
    async with house(redis_url, bbox_changes_max=3) as h:
        await h.owner.say(position("17"), position("far", lon=10.0))
        async with h.connect() as ws:
            await ask(ws, id=1, op="bbox", box=[2.5, 36, 3.5, 37], zoom=12)
            assert (await hear(ws))["ok"] and [d["busId"] for d in (await hear(ws))["d"]] == ["17"]
            await h.owner.say(position("17", lon=5.0))
            assert (await hear(ws))["t"] == "gone"
            await ask(ws, id=2, op="bbox", box=[-170, -80, 170, 80])
            assert (await hear(ws))["error"]["code"] == "INVALID"
            await ask(ws, id=3, op="bbox")
            assert (await hear(ws))["error"]["code"] == "INVALID"
            await ask(ws, id=4, op="bbox", box=[2.5, 36, 3.5, 37])
            await hear(ws), await hear(ws)
            await ask(ws, id=5, op="bbox", box=[2.5, 36, 3.5, 37])
            assert (await hear(ws))["error"]["code"] == "TOO_MANY_REQUESTS"


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[]",
        '"x"',
        '{"op":"fly"}',
        '{"op":5}',
        '{"op":"sub","since":{"e":1}}',
        b"\xff\xff",
        "\x00",
        '{"op":"bbox","box":[1,2,3]}',
        '{"op":"ping","x":' + "[" * 9_000,
    ],
)
async def test_a_bad_message_closes_with_4400_and_nobody_else_notices(redis_url: str, bad: str | bytes) -> None:
    async with house(redis_url) as h:
        async with h.connect() as ws, h.connect() as other:
            await listen(h, other, "bus:17")
            await ws.send(bad)
            assert await code_of(ws) == 4400
            await h.owner.say(position("17"))
            assert (await hear(other))["t"] == "pos"
        assert not h.hub.channels or list(h.hub.channels) == ["bus:17"]


async def test_limits_of_a_client(redis_url: str) -> None:
    async with house(redis_url, socket_subscriptions_max=2, socket_messages_max=10, socket_message_max_bytes=512, socket_max=3) as h:
        async with h.connect() as ws:
            for number in range(3):
                await ask(ws, id=number, op="sub", ch=f"bus:{number}")
            got = [await hear(ws) for _ in range(5)]
            assert got[-1]["error"]["code"] == "TOO_MANY_CHANNELS"
            for _ in range(20):
                await ask(ws, op="ping")
            assert await code_of(ws) == 4429
        async with h.connect() as ws:
            await ws.send("x" * 600)
            assert await code_of(ws) == 1009
        async with h.connect(), h.connect(), h.connect(), h.connect() as fourth:
            assert await code_of(fourth) == 4429


async def test_who_may_listen_to_what(redis_url: str) -> None:
    async with house(redis_url, socket_auth_s=0.2) as h:
        async with h.connect() as ws:
            await ask(ws, id=1, op="sub", ch="fleet:demo")
            assert (await hear(ws))["error"]["code"] == "UNAUTHENTICATED"
            await ask(ws, id=2, op="auth", token="forged")
            assert (await hear(ws))["error"]["code"] == "UNAUTHENTICATED"
            await ask(ws, id=3, op="auth", token="good")
            assert (await hear(ws))["ok"]
            assert (await listen(h, ws, "fleet:demo"))[0]["ok"]
            await ask(ws, id=4, op="auth", token="good2")
            assert (await hear(ws))["error"]["code"] == "FORBIDDEN", "a socket does not change hands"
        async with h.connect(subprotocols=["timepoint.v1.json", "bearer.good2"]) as ws:
            assert ws.subprotocol == "timepoint.v1.json", "the token is not said back"
            await ask(ws, id=1, op="sub", ch="fleet:demo")
            assert (await hear(ws))["error"]["code"] == "FORBIDDEN"
        async with h.connect(subprotocols=["timepoint.v1.json", "bearer.forged"]) as ws:
            assert await code_of(ws) == 4401
        async with h.connect("/ws/notifications") as ws:
            assert await code_of(ws) == 4401, "no token came in time"
        async with h.connect(subprotocols=["timepoint.v1.json", "bearer.brief"]) as ws:
            h.hub.may_listen = lambda principal, channel: principal is not None
            await listen(h, ws, "fleet:demo")
            assert await code_of(ws) == 4401, "its token is over"


async def test_refused_handshakes(redis_url: str) -> None:
    async with house(redis_url, socket_origins="https://timepoint.example") as h:
        for path, how, status in (
            ("/ws/elsewhere", {}, 404),
            ("/ingest/ws?token=x", {}, 404),  # this worker takes no devices
            ("/ws", {"origin": "https://evil.example"}, 403),
        ):
            with pytest.raises(InvalidStatus) as refused:
                async with h.connect(path, additional_headers={"X-Request-Id": "seen-by-me-1"}, **how):
                    pass
            answer = refused.value.response
            said = json.loads(answer.body)
            assert (answer.status_code, said["status"], said["instance"]) == (status, status, path.partition("?")[0])
            assert (answer.headers["X-Request-Id"], said["requestId"]) == ("seen-by-me-1", "seen-by-me-1")
            assert answer.headers["X-API-Version"] == "1"
        async with h.connect(origin="https://timepoint.example") as ws:
            assert (
                ws.response is not None and len(ws.response.headers["X-Request-Id"]) == 36 and ws.response.headers["X-API-Version"] == "1"
            )
            await ask(ws, id=1, op="ping")
            assert (await hear(ws)) == {"id": 1, "ok": True}
        reader, writer = await asyncio.open_connection("127.0.0.1", h.port)
        writer.write(b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 400")
        writer.close()


async def test_fragments_and_control_frames_between_them(redis_url: str) -> None:
    async with house(redis_url) as h:
        async with h.connect() as ws:
            await ws.send(['{"id":1,', "", '"op":', "", '"ping"}'])
            assert (await hear(ws))["id"] == 1
            await ws.send([b"\x82\xa2id\x02", b"", b"\xa2op\xa4ping"])
            assert (await hear(ws))["id"] == 2
            await (await ws.ping())


async def test_a_reader_that_stops_holds_up_nobody_and_gets_the_newest_or_4408(redis_url: str) -> None:
    async with house(redis_url, socket_stall_s=1.0) as h:
        slow = sockets.socket()
        slow.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(slow, ("127.0.0.1", h.port))
        said = json.dumps({"id": 1, "op": "sub", "ch": "route:demo:r1"}).encode()
        await loop.sock_sendall(slow, UPGRADE)
        await asyncio.sleep(0.05)
        await loop.sock_sendall(slow, bytes((0x81, 0x80 | len(said))) + bytes(4) + said)
        async with h.connect(max_queue=None) as quick:
            await listen(h, quick, "route:demo:r1")
            at = 0
            while not h.hub.stalled:
                at += 1
                await h.owner.say(*(position(f"b{i}", lat=36 + at / 1e4) for i in range(200)))
                assert (await hear(quick))["t"] == "batch"
                assert at < 500, "the slow reader was never noticed"
            await until(lambda: not (h.hub.stalled))
            await h.owner.say(position("b1"))
            assert (await hear(quick))["t"] == "pos"
        slow.close()


def whole_frame(data: bytes) -> tuple[bytes, bytes] | None:
    """The payload of the server's frame that `data` begins with, and what follows it; None where it is not whole."""
    short = data[1] if len(data) > 1 else 0
    start = 2 if short < 126 else 4 if short == 126 else 10
    end = start + (short if short < 126 else int.from_bytes(data[2:start], "big"))
    if len(data) < max(2, end):
        return None
    assert data[0] == 0x81, "no text frame begins here"
    return data[start:end], data[end:]


async def test_who_stops_reading_for_a_while_gets_whole_frames_and_the_newest_last(redis_url: str) -> None:
    async with house(redis_url) as h:
        slow = sockets.socket()
        slow.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(slow, ("127.0.0.1", h.port))
        await loop.sock_sendall(slow, UPGRADE)
        said = b'{"id":1,"op":"sub","ch":"route:demo:r1"}'
        await loop.sock_sendall(slow, bytes((0x81, 0x80 | len(said))) + bytes(4) + said)
        await until(lambda: "route:demo:r1" in h.hub.channels)
        at = 0
        while not h.hub.stalled:
            at += 1
            await h.owner.say(*(position(f"b{i}", lat=36 + at / 1e4) for i in range(200)))
            await asyncio.sleep(0.01)
            assert at < 500, "the slow reader was never noticed"
        await h.owner.say(*(position(f"b{i}", lat=37.0) for i in range(200)))
        heard, shown = b"", dict[str, float]()
        async with asyncio.timeout(10):
            while len(shown) < 200 or set(shown.values()) != {37.0}:
                heard += await loop.sock_recv(slow, 65_536)
                heard = heard[heard.find(b"\r\n\r\n") + 4 :] if heard.startswith(b"HTTP") else heard
                while (frame := whole_frame(heard)) is not None:
                    payload, heard = frame
                    push = msgspec.json.decode(payload)
                    for one in push["d"] if push.get("t") == "batch" else [push]:
                        if one.get("ch") and one.get("t") in ("pos", "snapshot"):
                            shown |= {bus["busId"]: bus["lat"] for bus in (one["d"] if one["t"] == "snapshot" else [one["d"]])}
        slow.close()


@get("/long", media_type="text/plain", sync_to_thread=False)
def long_answer() -> str:
    return "x" * LONG_BYTES


async def test_nothing_overtakes_an_answer_that_waits_when_its_connection_becomes_a_socket(redis_url: str) -> None:
    async with house(redis_url, roots=[long_answer]) as h:
        await h.owner.say(position("17"))
        slow = sockets.socket()
        slow.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 65_536)
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(slow, ("127.0.0.1", h.port))
        await loop.sock_sendall(slow, b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
        heard = await loop.sock_recv(slow, 4096)  # the answer is given, and most of it is not here
        await loop.sock_sendall(slow, UPGRADE.replace(b"/ws ", b"/ws/tracking/17 "))
        await until(lambda: bool(h.hub.stalled))
        async with asyncio.timeout(10):
            while b'"snapshot"' not in heard:
                heard += await loop.sock_recv(slow, 262_144)
        start = heard.index(b"\r\n\r\n") + 4
        assert heard[start : start + LONG_BYTES].count(b"x") == LONG_BYTES, "the answer is whole"
        told = heard[start + LONG_BYTES :]
        assert told.startswith(b"HTTP/1.1 101") and told.index(b'"recovered":false') < told.index(b'"snapshot"')
        slow.close()


async def test_a_drain_says_so_and_closes_everyone_with_1012(redis_url: str) -> None:
    async with house(redis_url) as h:
        async with h.connect() as ws, h.connect("/ws/tracking/17") as other:
            await listen(h, ws, "bus:17")
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{h.port}") as http:
                assert (await http.get("/readyz")).status_code == 200
                stopping = asyncio.create_task(h.worker.stop())
                await asyncio.sleep(0)
                said = await http.get("/readyz")
                assert said.status_code == 503 and said.json()["parts"]["worker"] == "draining"
            assert (await hear(ws))["t"] == "drain"
            assert (await code_of(ws), await code_of(other)) == (1012, 1012)
            await stopping


async def test_a_peer_that_answers_no_ping_is_closed(redis_url: str) -> None:
    async with house(redis_url, socket_ping_s=0.2) as h:
        async with h.connect(ping_interval=None) as ws:
            await listen(h, ws, "bus:17")
            ws.protocol.recv_frame = lambda frame: None  # type: ignore[method-assign]  # it hears and says nothing
            await until(lambda: not (h.sockets.count))


async def test_event_streams_speak_the_same_and_resume(redis_url: str) -> None:
    async with house(redis_url) as h:
        await h.owner.say(position("17"))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{h.port}", timeout=5) as http:
            async with http.stream("GET", "/sse?channel=route:demo:r1") as stream:
                assert stream.status_code == 200 and stream.headers["content-type"].startswith("text/event-stream")
                lines = stream.aiter_lines()
                event = await events(lines)
                assert event["data"]["t"] == "snapshot"
                n = await h.owner.say(position("17", lat=36.8))
                event = await events(lines)
                assert event["data"]["d"]["lat"] == 36.8 and event["id"] == f"{h.owner.epoch}:{n}"
            await h.owner.say(position("18"))
            async with http.stream("GET", "/sse?channel=route:demo:r1", headers={"Last-Event-ID": event["id"]}) as stream:
                again = await events(stream.aiter_lines())
                assert again["data"]["t"] == "pos" and again["data"]["d"]["busId"] == "18"
            for nowhere in ("9" * 30, "9" * 5_000):
                headers = {"Last-Event-ID": f"{h.owner.epoch}:{nowhere}"}
                async with http.stream("GET", "/sse?channel=route:demo:r1", headers=headers) as stream:
                    assert (await events(stream.aiter_lines()))["data"]["t"] == "snapshot"
            refused = await http.get("/sse?channel=fleet:demo")
            assert refused.status_code == 401 and refused.json()["code"] == "UNAUTHENTICATED"
            assert (await http.get("/sse")).status_code == 400
            h.hub.may_listen = lambda principal, channel: principal is not None
            ended = await http.get("/sse?channel=fleet:demo", headers={"Authorization": "Bearer brief"})
            assert ended.status_code == 200 and '"snapshot"' in ended.text, "it ended by itself: its token is over"
        await until(lambda: not (h.hub.channels))


async def events(lines: Any) -> dict[str, Any]:
    """The next event with data."""
    event: dict[str, Any] = {}
    async for line in lines:
        if not line and "data" in event:
            return event
        name, _, value = line.partition(": ")
        if name == "data":
            event["data"] = json.loads(value)
        elif name == "id":
            event["id"] = value
    raise AssertionError("the stream ended")


# --- ordered channels ---


def note(text: str, kind: str = "incident") -> bytes:
    return msgspec.json.encode({"t": kind, "d": {"text": text}})


async def test_an_ordered_channel_says_everything_in_order_and_resumes(redis_url: str) -> None:
    async with house(redis_url) as h:
        channels = OrderedChannels(h.hub, h.redis)
        task = asyncio.create_task(channels.run())
        try:
            await h.redis.publish_ordered("incidents:demo", "e1", note("one"))
            async with h.connect(subprotocols=["timepoint.v1.json", "bearer.good"]) as ws:
                reply, snapshot = await listen(h, ws, "incidents:demo")
                assert reply["o"] == 1 and snapshot["t"] == "snapshot" and snapshot["d"] == [{"text": "one"}]
                for number in range(2, 12):
                    await h.redis.publish_ordered("incidents:demo", f"e{number}", note(str(number)))
                said = [await hear(ws) for _ in range(10)]
                assert [(m["t"], m["o"], m["d"]["text"]) for m in said] == [("incident", n, str(n)) for n in range(2, 12)]
            await h.redis.publish_ordered("incidents:demo", "e12", note("12"))
            async with h.connect(subprotocols=["timepoint.v1.msgpack", "bearer.good"]) as ws:
                await ws.send(msgspec.msgpack.encode({"id": 1, "op": "sub", "ch": "incidents:demo", "since": {"e": reply["e"], "o": 10}}))
                assert (await hear(ws))["recovered"] is True
                assert [(await hear(ws))["o"] for _ in range(2)] == [11, 12]
            async with h.connect(subprotocols=["timepoint.v1.json", "bearer.good"]) as ws:
                ahead, snapshot = await listen(h, ws, "incidents:demo", since={"e": reply["e"], "o": 99})
                assert ahead["recovered"] is False and len(snapshot["d"]) == 12
            for nowhere in (-1, 2**63, 10**40):
                async with h.connect(subprotocols=["timepoint.v1.json", "bearer.good"]) as ws:
                    reply, _ = await listen(h, ws, "incidents:demo", since={"e": ahead["e"], "o": nowhere})
                    assert reply["recovered"] is False
            await until(lambda: not (channels.channels))
        finally:
            task.cancel()


async def test_who_joins_while_the_last_listener_leaves_hears_what_follows(redis_url: str) -> None:
    async with house(redis_url) as h:
        channels = OrderedChannels(h.hub, h.redis)
        task = asyncio.create_task(channels.run())
        read, may_answer = h.redis.channel_log, asyncio.Event()
        may_answer.set()

        async def slowly(channel: str, since: int) -> ChannelLog:
            found = await read(channel, since)
            await may_answer.wait()
            return found

        h.redis.channel_log = slowly  # type: ignore[method-assign]
        try:
            offered = ["timepoint.v1.json", "bearer.good"]
            async with h.connect(subprotocols=offered) as one, h.connect(subprotocols=offered) as other:
                await listen(h, one, "incidents:demo")
                may_answer.clear()
                await ask(other, id=1, op="sub", ch="incidents:demo")
                await until(lambda: channels._tasks)
                await ask(one, id=2, op="unsub", ch="incidents:demo")
                assert (await hear(one))["ok"]
                may_answer.set()
                assert [(await hear(other)).get("t") for _ in range(2)] == [None, "snapshot"]
                await h.redis.publish_ordered("incidents:demo", "e1", note("one"))
                assert (await hear(other))["d"] == {"text": "one"}
            await until(lambda: not channels.channels)
        finally:
            task.cancel()


async def test_a_message_whose_publication_was_lost_is_read_from_the_log(redis_url: str) -> None:
    async with house(redis_url) as h:
        channels = OrderedChannels(h.hub, h.redis)
        task = asyncio.create_task(channels.run())
        hear_one = channels.hear
        lost = {2, 3}
        channels.hear = lambda held, message: None if message.offset in lost else hear_one(held, message)  # type: ignore[method-assign]
        try:
            async with h.connect("/ws/notifications", subprotocols=["timepoint.v1.json", "bearer.good"]) as ws:
                reply, _ = await hear(ws), await hear(ws)
                assert reply["ch"] == "notifications"
                for number in range(1, 5):
                    await h.redis.publish_ordered("notifications:good", f"e{number}", note(str(number), "notice"))
                assert [(m["ch"], m["o"]) for m in [await hear(ws) for _ in range(4)]] == [("notifications", n) for n in range(1, 5)]
        finally:
            task.cancel()


async def test_a_message_that_does_not_decode_is_left_out_and_holds_nobody_up(redis_url: str) -> None:
    async with house(redis_url) as h:
        channels = OrderedChannels(h.hub, h.redis)
        task = asyncio.create_task(channels.run())
        try:
            for number, payload in enumerate((b"\x93\x01\x02\x03", note("two"), b'{"d":1}')):
                await h.redis.publish_ordered("incidents:demo", f"e{number}", payload)
            async with h.connect(subprotocols=["timepoint.v1.json", "bearer.good"]) as ws:
                reply, snapshot = await listen(h, ws, "incidents:demo")
                assert (reply["o"], snapshot["d"]) == (3, [{"text": "two"}])
                await h.redis.publish_ordered("incidents:demo", "e4", b"\xff")
                await h.redis.publish_ordered("incidents:demo", "e5", note("five"))
                assert (await hear(ws))["o"] == 5
        finally:
            task.cancel()


async def test_a_detour_is_heard_on_the_channel_of_its_trip_by_all_who_follow_it_and_by_who_comes_later(redis_url: str) -> None:
    async with house(redis_url) as h:
        await h.owner.say(position("17"))
        detour = IncidentEvent(
            "e1", "i1", "OFF_ROUTE", "MAJOR", "17", "t1", "20260216", "r1", AT_MS, None, 36.7, 3.0, '{"maxOffsetM":240,"note":"x"}'
        )
        over = msgspec.structs.replace(detour, event_id="e2", closed_at_ms=AT_MS + 60_000)
        channel = "trip:demo:t1:20260216"
        async with h.connect() as plain, h.connect(**PACKED) as packed:
            await listen(h, plain, channel)
            await packed.send(msgspec.msgpack.encode({"id": 1, "op": "sub", "ch": channel}))
            await hear(packed), await hear(packed)
            await h.owner.say(events=(detour,))
            said = [await hear(ws) for ws in (plain, packed)]
            assert said[0] == said[1] and (said[0]["t"], said[0]["d"]["code"], said[0]["d"]["closedAt"]) == ("incident", "DETOUR", None)
            assert "note" not in said[0]["d"]["detail"]
            async with h.connect() as late:
                _, first = await listen(h, late, channel)
                assert [one["t"] for one in first["d"]] == ["snapshot", "incident"]
            async with httpx.AsyncClient() as http, http.stream("GET", f"http://127.0.0.1:{h.port}/sse?channel={channel}") as stream:
                lines = stream.aiter_lines()
                while not (line := await anext(lines)).startswith("data:"):
                    pass
                assert [one["t"] for one in json.loads(line[5:])["d"]] == ["snapshot", "incident"]
            await h.owner.say(events=(over,))
            assert (await hear(plain))["d"]["code"] == "DETOUR_OVER"
