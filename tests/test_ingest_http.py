"""The device paths as a device meets them: real uvicorn, real Redis, real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import hmac
import json
import os
import random
import re
import socket
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn

from api.server import HttpProtocol
from deploy.servers import RedisServer
from engine.clock import ManualClock, SystemClock
from engine.events import Refusal
from engine.office.accounts import BusRow, Device, Devices, Issued, NewDevice, create_devices
from engine.settings import Settings
from engine.store.fleet import Fleet
from engine.store.postgres import Postgres
from engine.store.redis import Redis
from engine.tracking.fix import Fix
from ingest.door import Door
from ingest.heads import HEADS_MAX, Heads
from ingest.http import ROUTES, DeviceApp, DevicePaths, Request
from ingest.wire import Decoded
from tests.raw_redis import raw

CLOCK = SystemClock()
SECRET_KEY = "a secret of the tests, long enough to be one"


def telemetry(bus_id: str = "B1", **more: Any) -> dict[str, Any]:
    where = {"latitude": 36.75, "longitude": 3.05, "accuracy": 5}
    return {"busId": bus_id, "timestamp": CLOCK.now_ms(), "location": where, "motion": {"speed": 36, "heading": 90}} | more


class House:
    """One worker's way in, and a client that talks to it."""

    def __init__(
        self, client: httpx.AsyncClient, redis: Redis, door: Door, issued: dict[str, Issued], settings: Settings, server: uvicorn.Server
    ) -> None:
        self.client, self.redis, self.door, self.issued, self.settings, self.server = client, redis, door, issued, settings, server
        self.port = server.servers[0].sockets[0].getsockname()[1]

    def bearer(self, name: str = "B1") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.issued[name].token}"}

    async def stored(self, area: str = "demo") -> list[Fix]:
        entries = await raw(self.redis).xrange(f"in:{{{area}}}")
        return [fix for _, fields in entries for fix in msgspec.msgpack.decode(fields[b"f"], type=list[Fix])]


@pytest.fixture(params=["application", "lane"])
async def house(request: pytest.FixtureRequest, database_url: str, redis_url: str) -> AsyncIterator[House]:
    async with standing(database_url, redis_url, lane=request.param == "lane") as made:
        yield made


@contextlib.asynccontextmanager
async def standing(database_url: str, redis_url: str, *, lane: bool = True) -> AsyncIterator[House]:
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
    paths = DevicePaths(door)
    http = type("Lane", (HttpProtocol,), {"device_paths": paths, "sockets": None}) if lane else "httptools"
    config = uvicorn.Config(DeviceApp(paths), port=0, http=http, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # uvicorn offers no event
        await asyncio.sleep(0.01)
    async with httpx.AsyncClient(timeout=10) as client:
        made = House(client, redis, door, issued, settings, server)
        client.base_url = httpx.URL(f"http://127.0.0.1:{made.port}")
        yield made
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
        [date] = answer.headers.get_list("date")
        assert abs(parsedate_to_datetime(date).timestamp() * 1000 - CLOCK.now_ms()) < 60_000
        assert abs(answer.json()["serverTimeMs"] - CLOCK.now_ms()) < 60_000
    assert not await house.stored()


async def test_a_poison_fix_does_not_hold_up_the_hundred_good_ones_behind_it(house: House) -> None:
    good = [telemetry(seq=n) for n in range(100)]
    answer = await house.client.post("/ingest/telemetry", json=[telemetry("B2"), *good], headers=house.bearer())
    assert (answer.status_code, answer.json()) == (202, {"accepted": 100, "quarantined": [{"index": 0, "reason": "NOT_YOUR_BUS"}]})
    assert [fix.seq for fix in await house.stored()] == list(range(100))


async def test_each_protocol_is_answered_as_its_senders_expect(house: House) -> None:
    now_s, client = CLOCK.now_ms() // 1000, house.client
    token, gateway = house.issued["B1"].token, house.issued["gateway"].token
    answers = [
        await client.put("/ingest/buses/B1/location", json=telemetry(), headers=house.bearer()),
        await client.get(f"/ingest/osmand?token={token}&id=123456&lat=36.75&lon=3.05&timestamp={now_s}&speed=10"),
        await client.get(f"/ingest/osmand/{token}?lat=36.75&lon=3.05&timestamp={now_s}"),
        await client.post(f"/ingest/osmand?token={token}", data={"id": "B1", "lat": "36.75", "lon": "3.05"}),
        await client.post(
            f"/ingest/osmand/{token}", json={"location": {"coords": {"latitude": 36.75, "longitude": 3.05}}, "device_id": "123456"}
        ),
        await client.post("/ingest/owntracks", json={"_type": "location", "lat": 36.75, "lon": 3.05, "tst": now_s}, auth=("B1", token)),
        await client.post("/ingest/overland", json={"locations": [feature()]}, headers=house.bearer()),
        await client.post(
            "/ingest/traccar",
            json={"position": {"latitude": 36.75, "longitude": 3.05, "speed": 10}, "device": {"uniqueId": "B2"}},
            headers={"Authorization": f"Bearer {gateway}"},
        ),
    ]
    assert [answer.status_code for answer in answers] == [202, 200, 200, 200, 200, 200, 200, 200]
    assert answers[5].json() == []
    assert answers[6].json() == {"result": "ok"}
    found = await house.stored()
    assert [fix.source for fix in found] == ["telemetry", "osmand", "osmand", "osmand", "osmand", "owntracks", "overland", "traccar"]
    assert [fix.bus_id for fix in found] == ["B1"] * 7 + ["B2"]


def feature() -> dict[str, Any]:
    return {"geometry": {"type": "Point", "coordinates": [3.05, 36.75]}, "properties": {"timestamp": CLOCK.now_ms()}}


BAD_BODIES = [
    b"",
    b"{",
    b"\x00\xff\x81",
    b"[" * 5000,
    b'"text"',
    b"17",
    b"null",
    b'{"location": 5}',
    b"lat=x&lon=y",
    b"\x1f\x8b\x08 no gzip",
]


@pytest.mark.parametrize("path", ["osmand", "owntracks", "overland", "traccar"])
async def test_a_phone_is_answered_2xx_whatever_it_sends(house: House, path: str) -> None:
    for body in BAD_BODIES:
        for kind in ("application/json", "application/x-www-form-urlencoded", "", "nonsense"):
            answer = await house.client.post(f"/ingest/{path}", content=body, headers=house.bearer() | {"Content-Type": kind})
            assert answer.status_code == 200, (body, kind, answer.text)
    gzip = {"Content-Encoding": "gzip"}
    assert (await house.client.post(f"/ingest/{path}", content=b"no gzip", headers=house.bearer() | gzip)).status_code == 200
    assert not await house.stored()


async def test_telemetry_that_does_not_parse_is_malformed_and_a_bad_value_is_quarantined(house: House) -> None:
    for body in (b"", b"{", b"\x00\xff", b'[{"busId": "B1"', b"hello"):
        answer = await house.client.post("/ingest/telemetry", content=body, headers=house.bearer())
        assert (answer.status_code, answer.json()["code"]) == (400, "MALFORMED_BODY")
        assert answer.json()["requestId"] == answer.headers["x-request-id"]
    nan = json.dumps(telemetry()).replace("36.75", "NaN").encode()
    wrong = json.dumps(telemetry(timestamp="soon")).encode()
    for body in (nan, wrong, b"null", b"17", b'{"busId": "B1"}'):
        answer = await house.client.post("/ingest/telemetry", content=body, headers=house.bearer())
        assert (answer.status_code, answer.json()["accepted"], len(answer.json()["quarantined"])) == (202, 0, 1)
    answer = await house.client.put("/ingest/buses/B1/location", content=b"{", headers=house.bearer())
    assert (answer.status_code, answer.json()) == (202, {"accepted": 0, "quarantined": [{"index": 0, "reason": "MALFORMED"}]})


async def test_a_fault_of_ours_is_logged_without_the_token_in_the_path(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def thorn(request: Request, body: bytes, device: Device, now_ms: int) -> Decoded:
        raise ZeroDivisionError("a thorn")

    monkeypatch.setitem(ROUTES, "osmand", ROUTES["osmand"]._replace(decode=thorn))
    token = house.issued["B1"].token or ""
    assert (await house.client.get(f"/ingest/osmand/{token}?lat=36.75&lon=3.05")).status_code == 200
    assert "a thorn" in caplog.text and token not in caplog.text


async def test_over_its_rate_a_device_hears_when_and_what_it_may(house: House) -> None:
    house.door._rate, house.door._burst = 1.0, 10
    assert (await house.client.post("/ingest/telemetry", json=[telemetry()] * 30, headers=house.bearer())).status_code == 202
    answer = await house.client.post("/ingest/telemetry", json=telemetry(), headers=house.bearer())
    assert answer.status_code == 429 and answer.json()["retryable"] is True
    wait = int(answer.headers["retry-after"])
    assert 20 <= wait <= 21
    assert answer.headers["ratelimit-policy"] == '"fixes";q=10;w=10' and answer.headers["ratelimit"] == f'"fixes";r=0;t={wait}'


async def test_what_is_refused_stands_in_the_quarantine_with_its_reason(house: House) -> None:
    await house.client.post("/ingest/telemetry", json=[telemetry("B9"), telemetry(timestamp=5)], headers=house.bearer())
    await house.door.drain()
    [(_, fields)] = await raw(house.redis).xrange("quar:{demo}")
    kept = msgspec.msgpack.decode(fields[b"f"], type=list[Refusal])
    assert [(one.reason, one.index, one.bus_id) for one in kept] == [("NOT_YOUR_BUS", 0, None), ("ABSURD_TIME", 1, "B1")]
    assert {one.device_id for one in kept} == {house.issued["B1"].device_id}


async def test_a_gateway_speaks_for_its_list_and_its_areas(house: House) -> None:
    batch = [telemetry("B1"), telemetry("B3"), telemetry("B4"), telemetry("B2")]
    answer = await house.client.post("/ingest/telemetry", json=batch, headers=house.bearer("gateway"))
    assert answer.json() == {"accepted": 3, "quarantined": [{"index": 2, "reason": "NOT_YOUR_BUS"}]}
    assert [fix.bus_id for fix in await house.stored()] == ["B1", "B2"]
    assert [fix.bus_id for fix in await house.stored("other")] == ["B3"]


async def test_sizes_have_limits_each_with_its_answer(house: House) -> None:
    big = b"[" + b" " * 10_000_000 + b"]"
    answer = await house.client.post("/ingest/telemetry", content=big, headers=house.bearer())
    assert (answer.status_code, answer.json()["code"]) == (413, "TOO_LARGE")

    async def dribbled() -> AsyncIterator[bytes]:  # chunked: no Content-Length to look at
        for _ in range(40):
            yield b" " * 50_000

    assert (await house.client.post("/ingest/telemetry", content=dribbled(), headers=house.bearer())).status_code == 413
    hundred_thousand = b"[" + b",".join([b"1"] * 100_000) + b"]"
    for path in ("telemetry", "overland"):
        body = hundred_thousand if path == "telemetry" else b'{"locations":%s}' % hundred_thousand
        assert (await house.client.post(f"/ingest/{path}", content=body, headers=house.bearer())).status_code == 413
    assert not await house.stored()


async def test_gzip_is_read_and_a_bomb_is_not(house: House) -> None:
    headers = house.bearer() | {"Content-Encoding": "gzip"}
    answer = await house.client.post("/ingest/telemetry", content=gzip.compress(json.dumps([telemetry()] * 3).encode()), headers=headers)
    assert answer.json() == {"accepted": 3, "quarantined": []}
    bomb = gzip.compress(b" " * 40_000_000, 9)
    assert len(bomb) < 1_000_000
    assert (await house.client.post("/ingest/telemetry", content=bomb, headers=headers)).status_code == 413
    for body in (b"plain", gzip.compress(b"{}")[:-4], gzip.compress(b"{}") * 2):
        assert (await house.client.post("/ingest/telemetry", content=body, headers=headers)).status_code == 400


async def test_a_body_that_dribbles_in_is_cut_off(house: House) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    token = house.issued["B1"].token
    writer.write(f"POST /ingest/telemetry HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 100\r\n\r\n{{".encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)  # the test's limit is 1 s
    assert head.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in head.lower()
    writer.close()


async def test_a_wrong_path_or_method_is_a_problem_document(house: House) -> None:
    cases = [("GET", "/ingest/telemetry", 405), ("DELETE", "/ingest/osmand", 405), ("POST", "/ingest/nothing", 404), ("POST", "/ingest", 404),
             ("POST", "/ingest/telemetry/token", 404), ("POST", "/ingest/buses/B1/location", 405), ("PUT", "/ingest/buses/B1", 404)]  # fmt: skip
    for method, path, status in cases:
        answer = await house.client.request(method, path, headers=house.bearer())
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert (status != 405) or answer.headers["allow"]


def signed(
    house: House, body: bytes, *, path: str = "/ingest/telemetry", nonce: str | None = None, skew_ms: int = 0, secret: str | None = None
) -> Any:
    issued = house.issued["hmac"]
    stamp, nonce = str(CLOCK.now_ms() + skew_ms), nonce or CLOCK.uuid7()
    said = "\n".join(("POST", path, stamp, nonce, hashlib.sha256(body).hexdigest()))
    signature = hmac.new((secret or issued.secret or "").encode(), said.encode(), hashlib.sha256).hexdigest()
    return {"X-Device-Id": issued.device_id, "X-Timestamp": stamp, "X-Nonce": nonce, "X-Signature": signature}


async def test_a_signed_request_is_good_once_and_only_as_it_was_signed(house: House) -> None:
    body = json.dumps(telemetry("B2")).encode()

    async def post(headers: Any, content: bytes = body) -> tuple[int, str]:
        answer = await house.client.post("/ingest/telemetry", content=content, headers=headers)
        return answer.status_code, answer.json().get("code", "")

    headers = signed(house, body)
    assert await post(headers) == (202, "")
    assert await post(headers) == (401, "REPLAYED_NONCE")
    assert await post(signed(house, body), body + b" ") == (401, "BAD_SIGNATURE")
    assert await post(signed(house, body, path="/ingest/osmand")) == (401, "BAD_SIGNATURE")
    assert await post(signed(house, body, secret="another")) == (401, "BAD_SIGNATURE")
    assert await post(signed(house, body) | {"X-Device-Id": "nobody"}) == (401, "BAD_SIGNATURE")
    assert await post(signed(house, body) | {"X-Device-Id": house.issued["B1"].device_id}) == (401, "BAD_SIGNATURE")
    assert await post(signed(house, body, skew_ms=-301_000)) == (401, "STALE_TIMESTAMP")
    assert await post(signed(house, body, skew_ms=301_000)) == (401, "STALE_TIMESTAMP")
    assert await post(signed(house, body, nonce="short")) == (401, "BAD_NONCE")
    assert await post(signed(house, body, skew_ms=-290_000)) == (202, "")
    assert len(await house.stored()) == 2
    query = "/ingest/osmand?lat=36.75&lon=3.05"
    for target, status in ((query, 200), (query.replace("36.75", "36.76"), 401)):
        answer = await house.client.post(target, headers=signed(house, b"", path=query))
        assert answer.status_code == status


async def test_the_test_vectors_of_the_documentation_hold(house: House) -> None:
    text = (Path(__file__).resolve().parent.parent / "docs/devices.md").read_text(encoding="utf-8")  # noqa: ASYNC240  # one small file
    vectors = re.findall(r"^\| (POST|PUT|GET) \| `([^`]+)` \| (\d+) \| (\S+) \|(?: `([^`]+)`)? \| `([0-9a-f]{64})` \|$", text, re.M)
    assert len(vectors) == 3
    secret = re.search(r"secret\n`([0-9a-f]{64})`", text)
    assert secret is not None
    device, door = house.issued["hmac"].device_id, house.door
    door.devices.secrets = lambda device_id: [secret[1]]  # type: ignore[method-assign]
    for method, target, stamp, nonce, body, signature in vectors:
        door.clock = ManualClock(int(stamp))
        headers = {b"x-device-id": device, b"x-timestamp": stamp, b"x-nonce": nonce, b"x-signature": signature}
        found = await door.by_signature(method, target, {name: value.encode() for name, value in headers.items()}, body.encode())
        assert found.device_id == device


async def test_redis_away_is_503_with_retry_after_and_nothing_is_said_to_be_accepted(database_url: str, own_redis: RedisServer) -> None:
    async with standing(database_url, own_redis.url) as house:
        assert (await house.client.post("/ingest/telemetry", json=telemetry(), headers=house.bearer())).status_code == 202
        own_redis.stop()
        for path, body in (("telemetry", telemetry()), ("osmand", {"lat": 1})):
            if path == "osmand":
                body = {"location": {"coords": {"latitude": 36.75, "longitude": 3.05}}}
            answer = await house.client.post(f"/ingest/{path}", json=body, headers=house.bearer())
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["retryable"] is True
        own_redis.start()
        assert (await house.client.post("/ingest/telemetry", json=telemetry(seq=9), headers=house.bearer())).status_code == 202
        assert (await house.stored())[-1].seq == 9


TORN: list[bytes] = [
    b"NaN", b"1e999", b"null", b"[]", b"{}", b'"', b"\xff", b"\\ud800", b"-", b"9" * 400, b"true", b"[[[[", b",", b"\x00", b"0", b"9" * 20,
]  # fmt: skip


def torn(body: bytes, chance: random.Random) -> bytes:
    """The body with one to four wounds: something put in, a byte changed, a piece or the end cut off, a number made another thing."""
    hurt = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(hurt) + 1)
        numbers = list(re.finditer(rb"[0-9.]+", bytes(hurt)))
        match chance.randrange(5):
            case 0:
                hurt[at : at + chance.randint(0, 12)] = chance.choice(TORN)
            case 1 if at < len(hurt):
                hurt[at] = chance.randrange(256)
            case 2:
                del hurt[at : at + chance.randint(1, 20)]
            case 3:
                del hurt[at:]
            case _ if numbers:
                number = chance.choice(numbers)
                hurt[number.start() : number.end()] = chance.choice(TORN)
    return bytes(hurt)


async def test_thousands_of_torn_bodies_break_nothing(house: House) -> None:
    """INGEST_TORN_BODIES=100000 for the long form. Straight into the plain callables: no socket between."""
    chance, paths, token = random.Random(7), DevicePaths(house.door), (house.issued["B1"].token or "").encode()
    one = telemetry(seq=5, tripId="demo:T:20261121", startDate="20261121", status={"passengers": 3, "doorOpen": False})
    many, coords = json.dumps([one] * 3).encode(), {"latitude": 36.75, "longitude": 3.05, "speed": -1}
    whole = {
        "telemetry": [
            json.dumps(one).encode(),
            many,
            msgspec.msgpack.encode([one] * 2),
            json.dumps(one).encode() + b"\n" + json.dumps(one).encode(),
        ],
        "buses/B1/location": [json.dumps(one).encode()],
        "osmand": [
            json.dumps({"location": {"timestamp": "2026-11-21T12:00:00Z", "coords": coords}, "device_id": "B1"}).encode(),
            b"id=B1&lat=36.7&lon=3.05&speed=12",
        ],
        "owntracks": [json.dumps({"_type": "location", "lat": 36.75, "lon": 3.05, "vel": 5}).encode()],
        "overland": [json.dumps({"locations": [feature()]}).encode()],
        "traccar": [json.dumps({"position": coords | {"fixTime": "2026-11-21T12:00:00.000+00:00"}, "device": {"uniqueId": "B1"}}).encode()],
    }
    for case in range(int(os.environ.get("INGEST_TORN_BODIES", "3000"))):
        name = chance.choice(sorted(whole))
        body = torn(chance.choice(whole[name]), chance)
        kind = chance.choice([b"application/json", b"", b"application/msgpack", b"application/x-ndjson", b"text/\xff"])
        headers = {b"authorization": b"Bearer " + token, b"content-type": kind}
        if case % 40 == 0:
            headers[b"content-encoding"], body = b"gzip", gzip.compress(body)[: chance.choice([20, 10_000])]
        method = "PUT" if name.startswith("buses") else "POST"
        answer = await paths.answer(method, f"/ingest/{name}", headers, body[:100] if case % 10 == 0 else b"", body)
        expected = (202, 400) if name == "telemetry" else (202,) if method == "PUT" else (200,)
        assert answer.status in expected, (name, body, answer)


def asked(house: House, body: bytes, *more: str, version: str = "1.1") -> bytes:
    token = house.issued["B1"].token
    head = [f"POST /ingest/telemetry HTTP/{version}", "Host: here", f"Authorization: Bearer {token}", f"Content-Length: {len(body)}", *more]
    return "\r\n".join((*head, "", "")).encode() + body


async def statuses(house: House, *pieces: bytes, answers: int) -> tuple[list[int], bool]:
    """Writes the pieces one after the other on one connection; the statuses of so many answers, and whether we were hung up on then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found = []
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.003)
        for _ in range(answers):
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"\r\n\r\n")
                [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                assert head.lower().count(b"\r\nx-request-id:") == 1
                body = await reader.readexactly(int(length.partition(b":")[2]))
            found.append(int(head.split()[1]))
            assert found[-1] != 202 or msgspec.json.decode(body)["accepted"] == 1
        try:
            async with asyncio.timeout(0.02):
                closed = await reader.read(1) == b""
        except TimeoutError:
            closed = False
    finally:
        writer.close()
    return found, closed


async def test_requests_are_answered_in_order_wherever_their_bytes_are_cut(house: House) -> None:
    number = iter(range(100_000))

    def said() -> bytes:
        return msgspec.json.encode(telemetry(seq=next(number)))

    size = len(asked(house, said()))
    sent = 0
    for cut in range(0, 2 * size, 7):
        both = asked(house, said()) + asked(house, said())
        assert await statuses(house, both[:cut], both[cut:], answers=2) == ([202, 202], False), cut
        sent += 2
    assert [fix.seq for fix in await house.stored()] == list(range(1, sent + 1))


async def test_a_connection_is_kept_or_closed_as_the_request_says(house: House) -> None:
    body = msgspec.json.encode(telemetry())
    assert await statuses(house, asked(house, body), answers=1) == ([202], False)
    assert await statuses(house, asked(house, body, "Connection: close"), answers=1) == ([202], True)
    assert await statuses(house, asked(house, body, version="1.0"), answers=1) == ([202], True)
    refused = asked(house, b"{").replace(b"Bearer ", b"Bearer x")
    assert await statuses(house, refused + asked(house, body), answers=2) == ([401, 202], False)


async def test_a_device_that_hangs_up_before_its_answer_harms_nobody(house: House) -> None:
    body = msgspec.json.encode(telemetry(seq=1))
    for cut in (20, len(asked(house, body)) - 5, len(asked(house, body))):
        _, writer = await asyncio.open_connection("127.0.0.1", house.port)
        writer.write(asked(house, body)[:cut])
        await writer.drain()
        writer.transport.abort()
    assert await statuses(house, asked(house, body), answers=1) == ([202], False)


async def test_a_chunked_body_is_taken_and_a_signature_in_its_trailer_is_judged(house: House) -> None:
    token, body = house.issued["B1"].token, msgspec.json.encode(telemetry(seq=3))
    head = f"POST /ingest/telemetry HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"%x\r\n%s\r\n0\r\n" % (len(body), body)
    assert await statuses(house, head.encode() + chunks + b"\r\n", answers=1) == ([202], False)
    assert await statuses(house, head.encode() + chunks + b"X-Signature: 00\r\n\r\n", answers=1) == ([401], False)


# --- a head that is known by heart ---


def segment(length: object = 3, body: bytes = b"abc", *more: bytes) -> bytes:
    lines = [
        b"POST /ingest/telemetry HTTP/1.1",
        b"Host: x",
        b"Content-Length: %s" % str(length).encode(),
        b"Authorization: Bearer t",
        *more,
    ]
    return b"\r\n".join((*lines, b"", b"")) + body


def knowing(*segments: bytes) -> Heads:
    heads = Heads()
    for each in segments:
        heads.keep(each, Request(ROUTES["telemetry"], "POST", "/ingest/telemetry", {}, each))
    return heads


def body(heads: Heads, segment: bytes) -> bytes | None:
    found = heads.find(segment, 1000)
    return None if found is None else found[1]


@pytest.mark.parametrize(
    "other",
    [
        segment(2), segment(4), segment("03", b"abcd"), segment("3 "), segment("+3"), segment("3, 3"), segment(""), segment(0, b""), segment("-3"),
        segment(3, b"abc") + b"\r\n", segment(3, b"abc") + segment(), segment(3, b"abc", b"X-Y: 1"), segment().replace(b"Bearer t", b"Bearer u"),
        segment().replace(b"POST", b"PUT"), b"\r\n" + segment(), segment().replace(b"\r\n", b"\n"), segment()[:-1], segment(1001, b"x" * 1001),
        segment("3\r\nTransfer-Encoding: chunked"), segment("0000000003"),
    ],
)  # fmt: skip
def test_only_the_same_head_with_another_length_is_known_again(other: bytes) -> None:
    heads = knowing(segment())
    assert body(heads, segment(5, b"other")) == b"other" and body(heads, segment("007", b"another")) == b"another"
    assert body(heads, other) is None


def test_a_head_is_learnt_only_where_its_end_and_length_are_plain() -> None:
    for wound in (segment(4), segment(0, b""), segment(3, b"abc", b"content-length: 3"), segment() + b"\r\n", b"\r\n\r\n" + segment()):
        assert body(knowing(wound), segment()) is None and body(knowing(wound), wound) is None


def test_digits_that_stand_elsewhere_are_another_head() -> None:
    a, b = (b"POST / HTTP/1.1\r\nContent-Length:%s3\r\nX: y\r\n\r\nabc" % space for space in (b" ", b"  "))
    heads = knowing(a)
    assert body(heads, a) == b"abc" and body(heads, b) is None


def test_heads_of_many_devices_are_known_and_the_oldest_go() -> None:
    many = [segment(3, b"abc", b"X-Device: %d" % number) for number in range(HEADS_MAX + 2)]
    heads = knowing(*many)
    assert [body(heads, each) for each in many[:4]] == [None, None, b"abc", b"abc"] and body(heads, many[-1]) == b"abc"
    heads.drop(many[-1])
    assert body(heads, many[-1]) is None and body(heads, many[-2]) == b"abc"


async def test_a_known_head_is_judged_again_where_something_else_may_have_changed(house: House) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)

    async def post(body: bytes, *more: str) -> int:
        writer.write(asked(house, body, *more))
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0]))
        return int(head.split()[1])

    good = [msgspec.json.encode(telemetry(seq=seq)) for seq in range(12)]
    assert [await post(body) for body in good[:3]] == [202] * 3
    assert await post(b"{") == 400 and await post(good[3]) == 202
    assert await post(good[4], "X-Request-Id: other-head") == 202 and await post(good[5]) == 202
    house.door._rate, house.door._burst = 1.0, 1
    assert [await post(body) for body in good[6:8]] == [202, 429]
    devices = house.door.devices
    device = devices.by_token(house.issued["B1"].token or "")
    assert device is not None
    devices._forget(device.device_id)
    devices.version += 1
    assert await post(good[8]) == 401
    writer.close()


async def test_a_head_that_one_connection_has_said_is_known_on_every_other(house: House) -> None:
    for seq in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
        for more in range(2):
            writer.write(asked(house, msgspec.json.encode(telemetry(seq=10 * seq + more))))
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0]))
            assert head.startswith(b"HTTP/1.1 202 ")
        waits = [protocol.began_s for protocol in house.server.server_state.connections if isinstance(protocol, HttpProtocol)]
        assert not any(waits), "a connection whose request is answered would be cut for a head that is not awaited"
        writer.close()
    assert [fix.seq for fix in await house.stored()] == [0, 1, 10, 11, 20, 21]
