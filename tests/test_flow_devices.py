"""From a device's bytes to what the public reads, on the whole running product: every protocol, the socket, the quarantine, revocation."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.product import Product, eventually

_numbers = itertools.count(1)
Send = Callable[[Product, str, str, float], Any]


def new_device(product: Product) -> tuple[str, dict[str, Any]]:
    """(bus id, its fresh device); returns when a worker knows it."""
    bus_id = f"FLOW-{next(_numbers)}"
    wanted = {"busIds": [bus_id], "feedId": "demo", "partnerId": "demo"}
    answer = product.http.post("/v1/admin/devices", json=wanted, headers=product.admin)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    eventually(lambda: post(product, made["token"], []).status_code == 202)
    return bus_id, dict(made)


def fix(bus_id: str, lat: float, **more: Any) -> dict[str, Any]:
    where = {"latitude": lat, "longitude": 3.05, "accuracy": 5}
    return {"busId": bus_id, "timestamp": round(time.time() * 1000), "location": where} | more


def post(product: Product, token: str, said: Any) -> Any:
    return product.http.post("/ingest/telemetry", json=said, headers={"Authorization": f"Bearer {token}"})


def owntracks(product: Product, bus: str, token: str, lat: float) -> Any:
    said = {"_type": "location", "lat": lat, "lon": 3.05, "tst": round(time.time())}
    return product.http.post("/ingest/owntracks", json=said, auth=(bus, token))


def overland(product: Product, bus: str, token: str, lat: float) -> Any:
    feature = {"geometry": {"coordinates": [3.05, lat]}, "properties": {"timestamp": round(time.time() * 1000), "device_id": bus}}
    return product.http.post("/ingest/overland", json={"locations": [feature]}, headers={"Authorization": f"Bearer {token}"})


def osmand(product: Product, bus: str, token: str, lat: float) -> Any:
    return product.http.get("/ingest/osmand", params={"token": token, "id": bus, "lat": lat, "lon": 3.05, "timestamp": round(time.time())})


def traccar(product: Product, bus: str, token: str, lat: float) -> Any:
    said = {"position": {"latitude": lat, "longitude": 3.05}, "device": {"uniqueId": bus}}
    return product.http.post("/ingest/traccar", json=said, headers={"Authorization": f"Bearer {token}"})


PROTOCOLS: dict[str, Send] = {
    "telemetry": lambda product, bus, token, lat: post(product, token, fix(bus, lat)),
    "osmand": osmand,
    "owntracks": owntracks,
    "overland": overland,
    "traccar": traccar,
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_fix_of_every_protocol_is_where_the_public_looks(product: Product, protocol: str) -> None:
    bus_id, device = new_device(product)
    assert PROTOCOLS[protocol](product, bus_id, device["token"], 36.77).status_code in (200, 202)

    def located() -> bool:
        answer = product.http.get(f"/v1/buses/{bus_id}/location")
        return bool(answer.status_code == 200 and answer.json()["lat"] == pytest.approx(36.77))

    eventually(located)


def test_a_socket_acknowledges_what_is_stored_and_the_quarantine_keeps_the_rest(product: Product) -> None:
    bus_id, device = new_device(product)
    url = product.base_url.replace("http", "ws") + f"/ingest/ws?token={device['token']}"
    with connect(url) as socket:
        socket.send(json.dumps([fix(bus_id, 36.77 + n / 1e5, seq=n) for n in range(200)]))
        assert json.loads(socket.recv(10)) == {"ack": 199}
        socket.send(json.dumps(fix(bus_id, 97, seq=200)))
        assert json.loads(socket.recv(10)) == {"quarantined": {"seq": 200, "reason": "RANGE"}}

    def kept() -> list[str]:
        answer = product.http.get(f"/v1/devices/{device['deviceId']}/quarantine", headers=product.admin)
        return [item["reason"] for item in answer.json()["items"]] if answer.status_code == 200 else []

    assert eventually(kept) == ["RANGE"]


def iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()


def test_a_fix_that_comes_too_late_moves_nothing_and_asks_for_a_repair_of_history(product: Product) -> None:
    bus_id, device = new_device(product)
    now_ms = round(time.time() * 1000)
    assert post(product, device["token"], fix(bus_id, 36.77)).status_code == 202
    span = {"from": iso(now_ms - 600_000), "to": iso(now_ms + 60_000)}

    def late() -> list[bool]:
        answer = product.http.get(f"/v1/buses/{bus_id}/playback", params=span, headers=product.admin)
        return [item["late"] for item in answer.json()["items"]] if answer.status_code == 200 else []

    def repaired() -> int:
        return sum(map(int, re.findall(r"^timepoint_repairs_total\S* (\d+)$", product.http.get("/metrics").text, re.M)))

    eventually(lambda: late() == [False])  # it has settled
    before = repaired()
    assert post(product, device["token"], fix(bus_id, 36.76, timestamp=now_ms - 60_000)).status_code == 202
    eventually(lambda: late() == [True, False])
    assert product.get(f"/v1/buses/{bus_id}/location")["lat"] == pytest.approx(36.77)
    eventually(lambda: repaired() > before)


def test_a_retired_device_is_refused_everywhere_within_five_seconds(product: Product) -> None:
    bus_id, device = new_device(product)
    url = product.base_url.replace("http", "ws") + f"/ingest/ws?token={device['token']}"
    with connect(url) as socket:
        path = f"/v1/admin/devices/{device['deviceId']}?partner=demo"
        assert product.http.delete(path, headers=product.admin).status_code == 204
        retired = time.monotonic()
        eventually(lambda: post(product, device["token"], []).status_code == 401, limit_s=5)
        assert time.monotonic() - retired < 5
        socket.send(json.dumps(fix(bus_id, 36.77, seq=1)))
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(10)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4401
