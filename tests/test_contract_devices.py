"""The device paths to the letter of the contract, from outside: credentials in every place they may stand, and bodies of any kind."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.product import Product, eventually

FUZZED = 1_500


def device(product: Product, **more: Any) -> dict[str, Any]:
    made = product.http.post("/v1/admin/devices", json=more, headers=product.admin)
    assert made.status_code == 201, made.text
    answer: dict[str, Any] = made.json()
    return answer


@pytest.fixture(scope="module")
def phone(product: Product) -> dict[str, Any]:
    return device(product, busId="C-" + uuid.uuid4().hex[:8])


def fix(bus: str, lat: float = 36.75, **more: Any) -> dict[str, Any]:
    return {"busId": bus, "timestamp": round(time.time() * 1000), "location": {"latitude": lat, "longitude": 3.05}} | more


def test_a_token_is_good_in_every_place_where_it_may_stand(product: Product, phone: dict[str, Any]) -> None:
    bus, token, http = phone["busId"], phone["token"], product.http
    said = fix(bus)
    taken = http.post("/ingest/telemetry", json=said, headers={"Authorization": f"bearer {token}", "X-Request-Id": "seen-by-me-1"})
    assert (taken.status_code, taken.headers["x-request-id"], taken.headers["x-api-version"]) == (202, "seen-by-me-1", "1")
    assert http.post("/ingest/telemetry", json=said, auth=(bus, token)).status_code == 202
    assert http.post(f"/ingest/telemetry?token={token}", json=said).status_code == 202
    assert http.put(f"/ingest/buses/{bus}/location?token={token}", json=said).status_code == 202
    where = {"lat": 36.75, "lon": 3.05}
    assert http.get(f"/ingest/osmand/{token}", params=where).status_code == 200
    assert http.get("/ingest/osmand", params=where | {"token": token, "deviceid": bus}).status_code == 200
    assert http.post(f"/ingest/overland/{token}", json={"locations": []}).json() == {"result": "ok"}


@pytest.mark.parametrize("path", ["telemetry", "buses/B/location", "osmand", "owntracks", "overland", "traccar"])
def test_bad_credentials_are_401_on_every_path_with_a_clock_to_set_by(product: Product, path: str) -> None:
    method = "PUT" if path.startswith("buses") else "POST"
    for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "Basic bm8="}, {"X-Signature": "00", "X-Device-Id": b"\xff"}):
        answer = product.http.request(method, f"/ingest/{path}", content=b"{}", headers=headers)
        assert answer.status_code == 401, answer.text
        assert abs(answer.json()["serverTimeMs"] - time.time() * 1000) < 60_000
        assert len(answer.headers.get_list("date")) == 1 and answer.headers["x-request-id"] and answer.headers["x-api-version"] == "1"


def signed(signer: dict[str, Any], method: str, path: str, body: bytes, stamp: int, nonce: str) -> dict[str, str]:
    """The four headers of docs/devices.md."""
    text = "\n".join((method, path, str(stamp), nonce, hashlib.sha256(body).hexdigest()))
    signature = hmac.new(signer["secret"].encode(), text.encode(), hashlib.sha256).hexdigest()
    return {"X-Device-Id": signer["deviceId"], "X-Timestamp": str(stamp), "X-Nonce": nonce, "X-Signature": signature}


@pytest.fixture(scope="module")
def signer(product: Product) -> dict[str, Any]:
    made = device(product, busId="H-" + uuid.uuid4().hex[:8], kind="HMAC")
    assert made["token"] is None and made["secret"]
    return made


def test_a_signed_request_counts_once_and_an_old_one_never(product: Product, signer: dict[str, Any]) -> None:
    def post(stamp: int, nonce: str) -> tuple[int, str | None]:
        body = json.dumps(fix(signer["busId"])).encode()
        answer = product.http.post(
            "/ingest/telemetry", content=body, headers=signed(signer, "POST", "/ingest/telemetry", body, stamp, nonce)
        )
        return answer.status_code, answer.json().get("code")

    now_ms, nonce = round(time.time() * 1000), uuid.uuid4().hex
    assert post(now_ms, nonce) == (202, None)
    assert post(now_ms, nonce) == (401, "REPLAYED_NONCE")
    assert post(now_ms - 301_000, uuid.uuid4().hex) == (401, "STALE_TIMESTAMP")


def socket(product: Product, query: str = "", headers: dict[str, str] | None = None) -> Any:
    return connect(product.base_url.replace("http", "ws") + "/ingest/ws" + query, additional_headers=headers, compression=None)


def test_a_socket_takes_every_kind_of_credentials(product: Product, phone: dict[str, Any], signer: dict[str, Any]) -> None:
    bus, token = phone["busId"], phone["token"]
    basic = base64.b64encode(f"{bus}:{token}".encode()).decode()
    now_ms, nonce = round(time.time() * 1000), uuid.uuid4().hex
    by_signature = signed(signer, "GET", "/ingest/ws", b"", now_ms, nonce)
    for query, headers, who in (
        (f"?token={token}", None, bus),
        ("", {"Authorization": f"Bearer {token}"}, bus),
        ("", {"Authorization": f"bearer {token}"}, bus),
        ("", {"Authorization": f"Basic {basic}"}, bus),
        ("", by_signature, signer["busId"]),
    ):
        with socket(product, query, headers) as ws:
            ws.send(json.dumps(fix(who, seq=7)))
            assert json.loads(ws.recv(timeout=10)) == {"ack": 7}, headers
            ws.send(msgspec.msgpack.encode([fix(who), fix(who) | {"seq": 8, "location": {"latitude": 0, "longitude": 0}}]))
            said = [msgspec.msgpack.decode(ws.recv(timeout=10)) for _ in range(2)]
            assert said == [{"quarantined": {"seq": 8, "reason": "ZERO_ISLAND"}}, {"ack": None, "n": 1}]
    with pytest.raises(InvalidStatus) as refused:  # a signature is good once
        socket(product, "", by_signature).close()
    assert refused.value.response.status_code == 401 and json.loads(refused.value.response.body)["code"] == "REPLAYED_NONCE"


@pytest.mark.parametrize(
    ("query", "headers", "code"),
    [
        ("", None, "NO_CREDENTIALS"),
        ("?token=no", None, "UNKNOWN_TOKEN"),
        ("", {"Authorization": "Basic bm8="}, "UNKNOWN_TOKEN"),
        ("", {"X-Signature": "00"}, "BAD_SIGNATURE"),
    ],
)
def test_a_refused_socket_says_why_and_what_time_it_is(product: Product, query: str, headers: dict[str, str] | None, code: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        socket(product, query, {"X-Request-Id": "seen-by-me-1"} | (headers or {})).close()
    answer = refused.value.response
    said = json.loads(answer.body)
    assert (answer.status_code, said["code"], said["instance"], said["requestId"]) == (401, code, "/ingest/ws", "seen-by-me-1")
    assert abs(said["serverTimeMs"] - time.time() * 1000) < 60_000
    assert len(answer.headers.get_all("Date")) == 1 and answer.headers["WWW-Authenticate"]
    assert (answer.headers["X-Request-Id"], answer.headers["X-API-Version"]) == ("seen-by-me-1", "1")


def test_a_gateway_sends_for_its_list_and_for_nobody_else(product: Product) -> None:
    mine = [f"G-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    gateway = device(product, busIds=mine, kind="GATEWAY")
    body = [fix(mine[0]), fix("ALG-101"), fix(mine[1])]
    answer = product.http.post("/ingest/telemetry", json=body, headers={"Authorization": f"Bearer {gateway['token']}"})
    assert (answer.status_code, answer.json()) == (202, {"accepted": 2, "quarantined": [{"index": 1, "reason": "NOT_YOUR_BUS"}]})
    for bus in mine:
        eventually(lambda bus=bus: product.http.get(f"/v1/buses/{bus}/location").status_code == 200)


def bodies(bus: str, dice: random.Random) -> Iterator[bytes]:
    """Good bodies of every protocol with bytes changed, cut, doubled or replaced by what parsers stumble over."""
    good = [json.dumps(said).encode() for said in (
        fix(bus, seq=1, tripId="demo:x", motion={"speed": 10}), [fix(bus)] * 3, {"_type": "location", "lat": 36.7, "lon": 3.0, "tst": 1},
        {"locations": [{"geometry": {"coordinates": [3.0, 36.7]}, "properties": {"timestamp": "2026-11-21T00:00:00Z"}}]},
        {"position": {"latitude": 36.7, "longitude": 3.0}, "device": {"uniqueId": bus}}, {"location": {"coords": {"latitude": 36.7}}},
    )]  # fmt: skip
    torn = [
        b"NaN",
        b"1e999",
        b"null",
        b"[[[[",
        b"\xff",
        b"\x00",
        b"\\u0000",
        b"\\ud800",
        b"-1",
        b"9" * 400,
        b'"',
        b"{}",
        b"\x81\xa1",
        b"\n",
    ]
    while True:
        body = bytearray(dice.choice(good))
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(body) or 1)
            if dice.random() < 0.5:
                body[at : at + dice.randint(0, 8)] = dice.choice(torn)
            elif dice.random() < 0.5:
                del body[at : at + dice.randint(1, 20)]
            else:
                body[at : at + 1] = dice.randbytes(1)
        yield bytes(body)


def test_bodies_at_random_never_break_anything_and_the_next_good_fix_is_taken(product: Product, phone: dict[str, Any]) -> None:
    bus, token, dice = phone["busId"], phone["token"], random.Random(8787)
    paths = ["telemetry", f"buses/{bus}/location", "osmand", "owntracks", "overland", "traccar"]
    kinds = ["application/json", "application/msgpack", "application/x-ndjson", "application/x-www-form-urlencoded", "", b"\xff"]
    assert product.http.post("/ingest/telemetry", json=fix(bus), auth=(bus, token)).json()["accepted"] == 1
    eventually(lambda: product.http.get(f"/v1/buses/{bus}/location").status_code == 200)
    said: dict[str, int] = {}
    for _, body in zip(range(FUZZED), bodies(bus, dice), strict=False):
        path = dice.choice(paths)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": dice.choice(kinds)}
        if dice.random() < 0.1:
            headers["Content-Encoding"] = dice.choice(["gzip", "br", "identity"])
        answer = product.http.request("PUT" if path.startswith("buses") else "POST", f"/ingest/{path}", content=body, headers=headers)
        said[f"{path.partition('/')[0]} {answer.status_code}"] = said.get(f"{path.partition('/')[0]} {answer.status_code}", 0) + 1
        allowed = {"telemetry": (202, 400), f"buses/{bus}/location": (202,)}.get(path, (200,))
        assert answer.status_code in allowed, (path, body, answer.text)
        assert answer.status_code != 400 or answer.json()["code"] == "MALFORMED_BODY"
    print(said)
    # A bus that was here a moment ago cannot be kilometres away now (TELEPORT): the good fix stands 33 m from where it was last believed.
    # It is looked for in the record, which has it also where one of the bodies above moved the bus's clock up to a minute ahead.
    good = fix(bus, round(product.get(f"/v1/buses/{bus}/location")["lat"] + 0.0003, 6))
    sent = product.http.post("/ingest/telemetry", json=good, auth=(bus, token))
    assert (sent.status_code, sent.json()) == (202, {"accepted": 1, "quarantined": []})
    now = datetime.now(UTC)
    span = {"from": (now - timedelta(minutes=5)).isoformat(), "to": (now + timedelta(minutes=5)).isoformat(), "limit": 5_000}

    def taken() -> bool:
        points = product.http.get(f"/v1/buses/{bus}/playback", params=span, headers=product.admin).json()["items"]
        return any(abs(point["lat"] - good["location"]["latitude"]) < 1e-6 and not point["late"] for point in points)

    eventually(taken)
    reasons = eventually(lambda: product.http.get(f"/v1/devices/{phone['deviceId']}/quarantine", headers=product.admin).json()["items"])
    assert all(item["reason"] for item in reasons)
