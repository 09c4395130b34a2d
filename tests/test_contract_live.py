"""The live section of the contract, to the letter, from outside: real buses, real tokens, a stranger's client."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from google.transit import gtfs_realtime_pb2 as rt
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from deploy.servers import free_port
from tests.product import CHECKOUT, Product, eventually
from tests.test_api_rest import POS, problem
from tests.test_contract_devices import device

JSON, MSGPACK = "timepoint.v1.json", "timepoint.v1.msgpack"


class Talk:
    """A client of the live socket that speaks as its subprotocol says."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws, self.packed, self.waiting = ws, ws.subprotocol == MSGPACK, []  # type: ignore[var-annotated]

    def ask(self, **said: Any) -> None:
        self.ws.send(msgspec.msgpack.encode(said) if self.packed else json.dumps(said))

    def hear(self, limit_s: float = 20) -> dict[str, Any]:
        """The next reply or push; a batch is taken apart."""
        if not self.waiting:
            got = self.ws.recv(timeout=limit_s)
            assert isinstance(got, bytes) is self.packed, "a frame of the other kind"
            said = msgspec.msgpack.decode(got) if isinstance(got, bytes) else json.loads(got)
            self.waiting = list(said["d"]) if said.get("t") == "batch" else [said]
        answer: dict[str, Any] = self.waiting.pop(0)
        return answer

    def until(self, kind: str) -> dict[str, Any]:
        """The next push of that kind."""
        limit = time.monotonic() + 30
        while time.monotonic() < limit:
            said = self.hear()
            if said.get("t") == kind:
                return said
        raise AssertionError(f"no {kind} in 30 s")

    def reply(self) -> dict[str, Any]:
        """The next reply; pushes of what it listens to already may come before it."""
        while "id" not in (said := self.hear()):
            pass
        return said

    def sub(self, channel: str, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """(reply, the first push of that channel)."""
        self.ask(id=channel, op="sub", ch=channel, **more)
        reply = self.reply()
        assert (reply["id"], reply.get("ok")) == (channel, True), reply
        while (push := self.hear())["ch"] != channel:
            pass
        return reply, push

    def refused(self, **said: Any) -> str:
        """The code that a question is refused with."""
        self.ask(id="no", **said)
        reply = self.reply()
        assert reply["id"] == "no" and reply["error"]["detail"], reply
        code: str = reply["error"]["code"]
        return code

    def _read_on(self) -> None:
        while True:
            self.ws.recv(timeout=20)

    def closed_with(self) -> int:
        """The close code, whatever is said before it."""
        with pytest.raises(ConnectionClosed) as closed:
            self._read_on()
        assert closed.value.rcvd is not None, "the connection was cut without a word"
        return closed.value.rcvd.code


def open_socket(product: Product, path: str = "/ws", *offered: str, base: str = "") -> ClientConnection:
    return connect((base or product.base_url).replace("http", "ws") + path, subprotocols=list(offered) or None, compression=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("offered", [(), (JSON,), (MSGPACK,)])
def test_every_public_channel_begins_with_a_snapshot_and_goes_on_with_what_is_new(product: Product, offered: tuple[str, ...]) -> None:
    bus = product.running_trip()
    for channel in (f"bus:{bus['busId']}", f"trip:{bus['tripId']}", f"route:{bus['routeId']}"):
        with open_socket(product, "/ws", *offered) as ws:
            assert ws.subprotocol == (offered[0] if offered else None)
            talk = Talk(ws)
            reply, snapshot = talk.sub(channel)
            assert reply["recovered"] is False and reply["e"] and snapshot["e"] == reply["e"]
            assert (snapshot["t"], snapshot["ch"], snapshot["o"]) == ("snapshot", channel, reply["o"])
            assert all(body.keys() >= POS for body in snapshot["d"]) and bus["busId"] in [body["busId"] for body in snapshot["d"]]
            moved = talk.until("pos")
            assert moved.keys() == {"ch", "o", "t", "d"} and moved["ch"] == channel and moved["o"] > snapshot["o"]
            assert moved["d"].keys() >= POS
            for said in (moved["d"]["at"], moved["d"]["receivedAt"]):
                assert said.endswith("Z") and abs(datetime.fromisoformat(said).timestamp() - time.time()) < 120


def test_a_trip_says_its_arrivals_and_a_stop_who_is_coming(product: Product) -> None:
    bus = product.running_trip()
    stop = bus["nextStop"]["stopId"]
    with open_socket(product) as ws:
        talk = Talk(ws)
        talk.sub(f"trip:{bus['tripId']}")
        told = talk.until("eta")["d"]
        assert (told["busId"], told["tripId"]) == (bus["busId"], bus["tripId"])
        assert all({"stopId", "seq", "p10", "p50", "p90", "delayS", "kind"} <= stop.keys() for stop in told["stops"])
        medians = [stop["p50"] for stop in told["stops"] if stop["p50"]]
        assert medians and medians == sorted(medians)
    with open_socket(product) as ws:
        _, board = Talk(ws).sub(f"stop:{stop}")
        assert board["t"] == "snapshot" and all([s["stopId"] for s in coming["stops"]] == [stop] for coming in board["d"])


def test_one_socket_gets_a_fix_once_with_all_its_channels(product: Product) -> None:
    bus = product.running_trip()
    with open_socket(product) as ws:
        talk = Talk(ws)
        talk.sub(f"bus:{bus['busId']}")
        talk.sub(f"route:{bus['routeId']}")
        while True:
            said = talk.until("pos")
            if said["d"]["busId"] == bus["busId"] and isinstance(said["ch"], list):
                break
        assert sorted(said["ch"]) == sorted([f"bus:{bus['busId']}", f"route:{bus['routeId']}"])
        assert len(said["o"]) == 2 and len(set(said["o"])) == 1


def test_a_viewport_is_a_question_of_its_own(product: Product) -> None:
    bus = product.running_trip()
    with open_socket(product) as ws:
        talk = Talk(ws)
        talk.ask(id=1, op="bbox", box=[bus["lon"] - 0.2, bus["lat"] - 0.2, bus["lon"] + 0.2, bus["lat"] + 0.2], zoom=12)
        assert talk.hear()["ok"] is True
        snapshot = talk.hear()
        assert (snapshot["t"], snapshot["ch"]) == ("snapshot", "bbox") and bus["busId"] in [body["busId"] for body in snapshot["d"]]
        assert talk.until("pos")["ch"] == "bbox"
        assert talk.refused(op="bbox", box=[0, 50, 1, 40]) == "INVALID"


def test_who_comes_back_is_told_whether_it_missed_anything(product: Product) -> None:
    bus = product.running_trip()["busId"]
    with open_socket(product) as ws:
        talk = Talk(ws)
        reply, _ = talk.sub(f"bus:{bus}")
        last = talk.until("pos")["o"]
    with open_socket(product) as ws:
        talk = Talk(ws)
        again, next_ = talk.sub(f"bus:{bus}", since={"e": reply["e"], "o": last})
        assert (again["recovered"], again["e"]) == (True, reply["e"]) and next_["t"] in ("pos", "eta") and next_["o"] > last
    for since in ({"e": "another", "o": last}, {"e": reply["e"], "o": last + 10**9}):
        with open_socket(product) as ws:
            lost, snapshot = Talk(ws).sub(f"bus:{bus}", since=since)
            assert lost["recovered"] is False and snapshot["t"] == "snapshot", since


def test_what_a_client_may_not_ask_is_refused_and_the_socket_goes_on(product: Product) -> None:
    with open_socket(product) as ws:
        talk = Talk(ws)
        for channel in ("weather:here", "bus:", "bus", "trip:nofeed", "notifications:me", "x" * 300, "route:a\x00:b"):
            assert talk.refused(op="sub", ch=channel) == "INVALID", channel
        assert talk.refused(op="sub") == "INVALID"
        for number in range(200):
            talk.ask(op="sub", ch=f"bus:nobody-{number}")
        heard = [talk.hear() for _ in range(400)]
        assert sum(said.get("ok") is True for said in heard) == 200 and sum(said.get("t") == "snapshot" for said in heard) == 200
        assert talk.refused(op="sub", ch="bus:one-more") == "TOO_MANY_CHANNELS"
        talk.ask(id=1, op="unsub", ch="bus:nobody-0")
        assert talk.hear() == {"id": 1, "ok": True}
        talk.sub("bus:one-more")
        talk.ask(id="still", op="ping")
        assert talk.hear() == {"id": "still", "ok": True}
        pong = ws.ping()
        assert pong.wait(10), "RFC 6455 pings are answered too"


def test_every_example_of_the_document_is_understood_and_every_push_looks_like_its_own(product: Product) -> None:
    messages = product.get("/schema/asyncapi.json")["components"]["messages"]
    examples = {name: message["examples"][0]["payload"] for name, message in messages.items() if "examples" in message}
    asks = {name[4:]: example for name, example in examples.items() if name.startswith("ask.")}
    assert asks.keys() == {"auth", "sub", "unsub", "bbox", "ping"}
    with open_socket(product) as ws:
        talk = Talk(ws)
        for op in ("ping", "bbox", "sub", "unsub"):
            talk.ask(**asks[op])
            reply = talk.reply()
            assert reply["id"] == asks[op]["id"] and reply["ok"] is True
            assert op != "sub" or reply.keys() == examples["reply"].keys()
        talk.ask(**asks["auth"])
        assert talk.reply()["error"]["code"] == "UNAUTHENTICATED", "the example's token is none"
    bus = product.running_trip()
    with open_socket(product) as ws:
        talk = Talk(ws)
        _, snapshot = talk.sub(f"trip:{bus['tripId']}")
        for said in (snapshot, talk.until("pos"), talk.until("eta")):
            example = examples["push." + said["t"]]
            first, like = (one["d"][0] if said["t"] == "snapshot" else one["d"] for one in (said, example))
            assert said.keys() == example.keys() and first.keys() == like.keys()


@pytest.mark.parametrize("bad", ["{", '{"op":"dance"}', b"\xc1", '{"id":1}'])
def test_a_message_that_is_none_ends_the_socket(product: Product, bad: str | bytes) -> None:
    with open_socket(product) as ws:
        ws.send(bad)
        assert Talk(ws).closed_with() == 4400


def test_private_channels_ask_for_the_role(product: Product) -> None:
    manager = product.token("PARTNER_ADMIN")
    customer, stranger = (  # of their own names: others of these tests follow incidents
        product.command("user", "token", role, "--partner", "other", "--hours", "1", "--name", f"{role}-{uuid.uuid4().hex[:8]}").strip()
        for role in ("CUSTOMER", "PARTNER_ADMIN")
    )
    with open_socket(product, "/ws?token=" + manager) as ws:
        assert Talk(ws).refused(op="sub", ch="fleet:demo") == "UNAUTHENTICATED", "a token in the URL is none"
    with open_socket(product) as ws:
        talk = Talk(ws)
        for channel in ("fleet:demo", "incidents:demo", "notifications", "booking:ABC123"):
            assert talk.refused(op="sub", ch=channel) == "UNAUTHENTICATED"
        assert talk.refused(op="auth", token=manager[:-3] + "abc") == "UNAUTHENTICATED"
        talk.ask(id=1, op="auth", token=manager)
        assert talk.hear() == {"id": 1, "ok": True}
        _, snapshot = talk.sub("fleet:demo")
        assert len(snapshot["d"]) > 10
        somebody = product.command("user", "token", "CUSTOMER", "--name", "somebody").strip()
        assert talk.refused(op="auth", token=somebody) == "FORBIDDEN", "a socket does not change hands"
    for token in (customer, stranger):
        with open_socket(product, "/ws", JSON, "bearer." + token) as ws:
            assert ws.subprotocol == JSON, "the token is never said back"
            talk = Talk(ws)
            for channel in ("fleet:demo", "incidents:demo"):
                assert talk.refused(op="sub", ch=channel) == "FORBIDDEN"
            assert talk.sub("notifications")[1] == {"ch": "notifications", "o": 0, "e": "", "t": "snapshot", "d": []}
    with open_socket(product, "/ws", "bearer." + customer[:-3] + "abc") as ws:
        assert Talk(ws).closed_with() == 4401


def test_paths_that_subscribe_by_themselves(product: Product) -> None:
    bus = product.running_trip()["busId"]
    with open_socket(product, f"/ws/tracking/{bus}") as ws:
        talk = Talk(ws)
        assert talk.hear()["ch"] == f"bus:{bus}" and talk.hear()["t"] == "snapshot"
    with open_socket(product, "/ws/notifications", MSGPACK, "bearer." + product.token("CUSTOMER")) as ws:
        talk = Talk(ws)
        assert talk.hear()["ch"] == "notifications" and talk.hear()["t"] == "snapshot"


def test_those_who_cannot_open_sockets_hear_the_same(product: Product) -> None:
    bus = product.running_trip()["busId"]
    heard: list[dict[str, Any]] = []
    with product.http.stream("GET", f"/sse?channel=bus:{bus}") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream") and stream.headers["x-api-version"] == "1"
        for line in stream.iter_lines():
            if line.startswith("data: "):
                heard.append(json.loads(line[6:]))
            if heard and heard[-1]["t"] == "pos":
                break
    assert heard[0]["t"] == "snapshot" and heard[-1]["o"] > heard[0]["o"] and heard[-1]["d"]["busId"] == bus


# --- incidents: a bus of our own leaves its route ---


def departed_lately(product: Product) -> Iterator[str]:
    """Trips that left 6 to 30 minutes ago; after midnight they are yesterday's too."""
    now = datetime.now().astimezone()
    days = [f"{day:%Y-%m-%d}" for day in (now, now - timedelta(days=1))]
    for route, day in itertools.product(product.get("/v1/routes", limit=100)["items"], days):
        path, cursor = f"/v1/routes/{route['routeId']}/schedules?date={day}&limit=100", ""
        while cursor is not None:
            page = product.get(path + cursor)
            for trip in page["items"]:
                if 350 < (now - datetime.fromisoformat(trip["departsAt"])).total_seconds() < 1_800:
                    yield trip["tripId"]
            cursor = page["nextCursor"] and f"&cursor={page['nextCursor']}"


def detour(product: Product) -> Iterator[tuple[float, float, str]]:
    """(lat, lon, trip id) every 5 s: 40 fixes along the beginning of such a trip, then 25 that run 300 m beside it. Rather one that no bus of
    the demo drives."""
    trips = (product.get(f"/v1/trips/{trip_id}") for trip_id in departed_lately(product))
    long = [trip for trip in trips if trip["stops"][-1]["alongM"] > 5_000]
    assert long, "no trip of the demo network departed in the last half hour"
    trip = min(long, key=lambda trip: trip["busId"] is not None)
    yield from _along(trip["geometry"]["coordinates"], trip["id"])


def _along(line: list[list[float]], trip_id: str) -> Iterator[tuple[float, float, str]]:
    wide = math.cos(math.radians(line[0][1]))
    xy = [((lon - line[0][0]) * 111_320 * wide, (lat - line[0][1]) * 111_320) for lon, lat in line]
    at, step_m = 0.0, 45.0
    points = []
    for (x0, y0), (x1, y1) in itertools.pairwise(xy):
        long = math.hypot(x1 - x0, y1 - y0)
        while at < long:
            share = at / long
            points.append((x0 + share * (x1 - x0), y0 + share * (y1 - y0), -(y1 - y0) / long, (x1 - x0) / long))
            at += step_m
        at -= long
    for number, (x, y, left_x, left_y) in enumerate(points[:65]):
        aside = min(300.0, 60.0 * max(0, number - 39))
        yield (y + left_y * aside) / 111_320 + line[0][1], (x + left_x * aside) / (111_320 * wide) + line[0][0], trip_id


def test_a_bus_that_leaves_its_route_is_an_incident_and_an_alert(product: Product) -> None:
    bus = "D-" + uuid.uuid4().hex[:8]
    made = device(product, busId=bus)
    path = list(detour(product))
    began_ms = round(time.time() * 1000) - 5_000 * len(path)
    said = [
        {
            "busId": bus,
            "tripId": trip,
            "timestamp": began_ms + 5_000 * number,
            "location": {"latitude": lat, "longitude": lon, "accuracy": 5},
        }
        for number, (lat, lon, trip) in enumerate(path)
    ]
    with open_socket(product, "/ws", JSON, "bearer." + product.token("PARTNER_ADMIN")) as ws:
        talk = Talk(ws)
        reply, snapshot = talk.sub("incidents:demo")
        assert snapshot["t"] == "snapshot" and isinstance(snapshot["d"], list)
        sent = product.http.post("/ingest/telemetry", json=said, headers={"Authorization": f"Bearer {made['token']}"})
        assert sent.json() == {"accepted": len(said), "quarantined": []}
        while True:
            told = talk.until("incident")
            if told["d"]["busId"] == bus and told["d"]["kind"] == "OFF_ROUTE":
                break
        assert told["ch"] == "incidents:demo" and told["o"] > reply["o"]
        incident = told["d"]
        assert (incident["tripId"], incident["closedAt"], incident["severity"]) == (path[0][2], None, "MAJOR")
        assert incident["detail"]["maxOffsetM"] > 60 and incident["openedAt"].endswith("Z")
    with open_socket(product, "/ws", MSGPACK, "bearer." + product.token("PARTNER_ADMIN")) as ws:
        _, snapshot = Talk(ws).sub("incidents:demo")
        assert incident["incidentId"] in [body["incidentId"] for body in snapshot["d"]], "who comes later finds it in the snapshot"
    with open_socket(product, "/ws", JSON, "bearer." + product.token("PARTNER_ADMIN")) as ws:
        again, missed = Talk(ws).sub("incidents:demo", since={"e": reply["e"] or told.get("e") or snapshot["e"], "o": told["o"] - 1})
        assert again["recovered"] is True and missed == told, "who comes back gets what it missed"

    _handled(product, incident)

    def alerted() -> Any:
        message = rt.FeedMessage()
        message.ParseFromString(product.http.get("/gtfs-rt/alerts.pb?feed=demo").content)
        return next((entity.alert for entity in message.entity if entity.id == "a:" + incident["incidentId"]), None)

    alert = eventually(alerted)
    assert alert.effect == rt.Alert.DETOUR
    assert f"demo:{alert.informed_entity[0].trip.trip_id}:{alert.informed_entity[0].trip.start_date}" == path[0][2]


def _handled(product: Product, incident: dict[str, Any]) -> None:
    """The same incident in the record: found, looked after, and none of a stranger's business."""
    agent, stranger = ({"Authorization": "Bearer " + product.token(*who)} for who in (("AGENT",), ("PARTNER_ADMIN", "other")))

    def found(**params: Any) -> dict[str, Any] | None:
        answer = product.http.get("/v1/incidents", params=params, headers=agent)
        assert answer.status_code == 200, answer.text
        return next((item for item in answer.json()["items"] if item["incidentId"] == incident["incidentId"]), None)

    item = eventually(lambda: found(open=True, limit=100))
    assert {"kind", "severity", "busId", "tripId", "openedAt"} <= item.keys() and item["handledState"] is None
    assert {name: item[name] for name in ("busId", "tripId", "routeId", "openedAt", "closedAt")} == {
        name: incident[name] for name in ("busId", "tripId", "routeId", "openedAt", "closedAt")
    }
    path = f"/v1/incidents/{incident['incidentId']}"
    problem(product.http.patch(path, json={"state": "ASSIGNED"}, headers=agent), 400, "INVALID")
    problem(product.http.patch(path, json={"state": "FORGOTTEN"}, headers=agent), 400, "INVALID")
    problem(product.http.patch(path, json={"state": "CLOSED"}, headers=stranger), 404, "NOT_FOUND")
    problem(product.http.patch(path, json={"state": "CLOSED"}), 401, "UNAUTHENTICATED")
    problem(product.http.get("/v1/incidents?partner=demo", headers=stranger), 403, "FORBIDDEN")
    assert product.http.get("/v1/incidents", headers=stranger).json() == {"items": [], "nextCursor": None}
    assigned = product.http.patch(path, json={"state": "ASSIGNED", "assignedTo": "night desk"}, headers=agent).json()
    assert (assigned["handledState"], assigned["assignedTo"], assigned["handledBy"]) == ("ASSIGNED", "night desk", "cli")
    acknowledged = product.http.patch(path, json={"state": "ACKNOWLEDGED"}, headers=agent).json()
    assert (acknowledged["handledState"], acknowledged["assignedTo"]) == ("ACKNOWLEDGED", "night desk")
    pages, cursor = [], None
    while cursor is not None or not pages:
        page = product.http.get("/v1/incidents", params={"limit": 1} | ({"cursor": cursor} if cursor else {}), headers=agent).json()
        pages += [item["incidentId"] for item in page["items"]]
        cursor = page["nextCursor"]
        if incident["incidentId"] in pages:
            break
    assert incident["incidentId"] in pages and len(pages) == len(set(pages))
    for cursor in ("x", "1", "1.", "²", "9" * 40 + ".a", "1.a%00"):
        problem(product.http.get(f"/v1/incidents?cursor={cursor}", headers=agent), 400, "INVALID")


# --- a second worker of the same product, which goes ---


def test_a_worker_that_goes_says_drain_and_closes_with_1012(product: Product) -> None:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    with (product.folder / "second.log").open("wb") as log:
        second = subprocess.Popen(
            [sys.executable, "-m", "api.cli", "serve"], env=product.env | {"PORT": str(port)}, cwd=CHECKOUT, stdout=log, stderr=log
        )
    try:
        eventually(lambda: second.poll() is not None or _ready(base))
        assert second.poll() is None, (product.folder / "second.log").read_text()
        bus = product.running_trip()["busId"]
        eventually(lambda: httpx.get(f"{base}/v1/buses/{bus}/location").status_code == 200)  # it has read the picture
        with open_socket(product, "/ws", base=base) as ws, open_socket(product, f"/ws/tracking/{bus}", base=base) as other:
            talk = Talk(ws)
            _, snapshot = talk.sub(f"bus:{bus}")
            assert [body["busId"] for body in snapshot["d"]] == [bus], "every worker has the whole picture"
            os.kill(second.pid, signal.SIGTERM)
            assert talk.until("drain")["d"]["withinMs"] >= 0
            assert (talk.closed_with(), Talk(other).closed_with()) == (1012, 1012)
        assert second.wait(40) == 0
    finally:
        if second.poll() is None:
            second.kill()
            second.wait()
    with open_socket(product) as ws:
        Talk(ws).sub(f"bus:{bus}")


def _ready(base: str) -> bool:
    try:
        return httpx.get(base + "/readyz").status_code == 200
    except httpx.TransportError:
        return False
