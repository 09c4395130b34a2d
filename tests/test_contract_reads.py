"""REST and GTFS-Realtime to the letter of the contract, asked by a stranger who also asks for nonsense. On the whole running product."""

from __future__ import annotations

import json
import random
from datetime import datetime
from typing import Any
from urllib.parse import quote

import pytest
from google.transit import gtfs_realtime_pb2 as rt
from websockets.sync.client import connect

from tests.product import CHECKOUT, Product
from tests.test_api_rest import problem

SPAN = "from=2026-01-01T00:00:00Z&to=2026-01-02T00:00:00Z"
LISTS = ("/v1/routes", "/v1/stops", "/v1/buses/locations?bbox=-180,-85,180,85", "/v1/admin/buses", "/v1/admin/devices")
FUZZED = 1_500


@pytest.mark.parametrize(
    "path",
    [
        "/v1/stops?near=36.7,3.05&cursor=²",
        "/v1/buses/locations?near=36.7,3.05&cursor=²",
        "/v1/buses/locations?near=36.7,3.05&cursor=never-given",
        "/v1/buses/locations?near=36.7,3.05&cursor=" + "9" * 5000,
        "/v1/buses/%00/location",
        "/v1/buses/ALG-101/playback?cursor=999999999999999&" + SPAN,
        "/v1/buses/ALG-101/playback?cursor=²&" + SPAN,
        "/v1/buses/ALG-101/playback?from=0001-01-01T00:00:00%2B23:00&to=0001-01-02T00:00:00%2B23:00",
        "/v1/buses/ALG-101/playback?from=9999-12-31T23:00:00-23:00&to=9999-12-31T23:30:00-23:00",
        "/v1/admin/buses?cursor=%00",
        "/v1/admin/buses?partner=%00",
        "/v1/admin/buses/%00",
        "/v1/admin/devices?bus=%00",
    ],
)
def test_what_cannot_be_read_is_said_to_be_wrong_and_is_no_fault_of_ours(product: Product, path: str) -> None:
    problem(product.http.get(path, headers=product.admin), 400, "INVALID")


@pytest.mark.parametrize(
    "body", [b'{"busId":"a\\u0000b"}', b'{"busId":"NUL-1","name":"\\u0000"}', b'{"busId":"NUL-2","uniqueId":"\\u0000"}', b"[" * 5000, b"\xff", b""]
)  # fmt: skip
def test_a_body_that_no_device_can_be_made_of(product: Product, body: bytes) -> None:
    headers = product.admin | {"Content-Type": "application/json"}
    problem(product.http.post("/v1/admin/devices", content=body, headers=headers), 400, "INVALID")


def test_a_conditional_read_understands_weak_tags_and_lists(product: Product) -> None:
    route = product.get("/v1/routes", limit=1)["items"][0]["routeId"]
    path = f"/v1/routes/{route}"
    tag = product.http.get(path).headers["etag"]
    for given, status in ((tag, 304), ("W/" + tag, 304), (f'"other", {tag}', 304), ("*", 304), ('"other"', 200), (tag.strip('"'), 200)):
        assert product.http.get(path, headers={"If-None-Match": given}).status_code == status, given


@pytest.mark.parametrize("path", LISTS)
def test_a_list_has_twenty_items_unless_asked_and_never_more_than_a_hundred(product: Product, path: str) -> None:
    page = product.http.get(path, headers=product.admin).json()
    assert page.keys() == {"items", "nextCursor"} and len(page["items"]) <= 20
    more = path + ("&" if "?" in path else "?")
    assert len(product.http.get(more + "limit=1", headers=product.admin).json()["items"]) == 1
    for limit in ("0", "101", "-1", "x"):
        problem(product.http.get(f"{more}limit={limit}", headers=product.admin), 400, "INVALID")


def test_every_answer_has_its_id_and_the_version_and_keeps_the_callers_id(product: Product) -> None:
    for path in ("/v1/routes", "/api/v1/routes", "/v1/none", "/healthz", "/metrics", "/schema", "/gtfs-rt/trip-updates.pb"):
        answer = product.http.get(path, headers={"X-Request-Id": "seen-by-me-1"})
        assert (answer.headers["x-request-id"], answer.headers["x-api-version"]) == ("seen-by-me-1", "1"), path
        broken = product.http.get(path, headers={"X-Request-Id": "a b\tc"}).headers["x-request-id"]
        assert broken != "a b\tc" and len(broken) == 36


def test_times_are_rfc_3339_utc_and_ids_public(product: Product) -> None:
    bus = product.running_trip()
    live = product.get(f"/v1/trips/{bus['tripId']}/live")
    trip = product.get(f"/v1/trips/{bus['tripId']}")
    times = [live["at"], live["receivedAt"]] + [stop[key] for stop in live["stops"] for key in ("p10", "p50", "p90") if stop[key]]
    times += [stop[key] for stop in trip["stops"] for key in ("arrivesAt", "departsAt")]
    for time in times:
        assert time.endswith("Z") and datetime.fromisoformat(time).utcoffset() is not None
    assert live["startDate"] == trip["startDate"] == live["tripId"].rpartition(":")[2]
    assert trip["tripId"] + ":" + trip["startDate"] == trip["id"]
    assert all(stop["stopId"].startswith("demo:") and {"seq", "kind", "delayS"} <= stop.keys() for stop in live["stops"])


@pytest.mark.parametrize("name", ["vehicle-positions", "trip-updates", "alerts"])
def test_both_forms_of_a_realtime_feed_stand_still_within_a_second(product: Product, name: str) -> None:
    product.running_trip()
    answers = [product.http.get(f"/gtfs-rt/{name}.pb") for _ in range(40)]
    tags: dict[int, set[str]] = {}
    for answer in answers:
        message = rt.FeedMessage()
        message.ParseFromString(answer.content)
        tags.setdefault(message.header.timestamp, set()).add(answer.headers["etag"])
    assert all(len(made) == 1 for made in tags.values()), "one building for each second of the header"
    assert answers[0].headers["content-type"] == "application/x-protobuf"
    as_json = product.http.get(f"/gtfs-rt/{name}.json").json()
    assert as_json["header"]["gtfsRealtimeVersion"] == "2.0" and (as_json["entity"] or name == "alerts")


def test_the_status_page_says_what_its_json_says(product: Product) -> None:
    page, said = product.http.get("/status"), product.get("/status.json")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "demo" in said["feeds"] and said["buses"] > 0 and said["liveStale"] is False
    assert f'<th scope="row">Feed demo</th><td>version {said["feeds"]["demo"]}</td>' in page.text
    with connect(product.base_url.replace("http", "ws") + "/ws"):
        assert product.get("/status.json")["sockets"] == said["sockets"] + 1


ORDER = {"post": 0, "put": 1, "get": 2, "patch": 3, "delete": 4}  # what is made first can be read, and goes last


def test_every_example_of_the_document_is_answered_as_the_document_says(product: Product) -> None:
    schema = product.get("/schema")
    assert schema == json.loads((CHECKOUT / "docs/openapi.json").read_text(encoding="utf-8")), "what is served is what is kept"
    calls = [(method, path, call) for path, calls in schema["paths"].items() for method, call in calls.items()]
    customer = {"Authorization": "Bearer " + product.token("CUSTOMER")}
    for method, path, call in sorted(calls, key=lambda row: ORDER[row[0]]):
        given = [parameter for parameter in call.get("parameters", []) if "example" in parameter]
        assert all("example" in parameter for parameter in call.get("parameters", []) if parameter["required"]), path
        where = path.format(**{parameter["name"]: parameter["example"] for parameter in given if parameter["in"] == "path"})
        params = {parameter["name"]: parameter["example"] for parameter in given if parameter["in"] == "query"}
        keyed = {parameter["name"]: parameter["example"] for parameter in given if parameter["in"] == "header"}
        body = next(iter(call["requestBody"]["content"].values())) if "requestBody" in call else {}
        assert "requestBody" not in call or "example" in body or path == "/v1/admin/feeds", path
        codes = {code: status for status, said in call["responses"].items() for code in said.get("x-codes", [])}
        if call["x-roles"] != ["everybody"]:
            problem(product.http.request(method, where, params=params, json=body.get("example"), headers=keyed), 401, "UNAUTHENTICATED")
        if call["x-roles"] != ["everybody"] and "CUSTOMER" not in call["x-roles"]:
            stranger = product.http.request(method, where, params=params, json=body.get("example"), headers=keyed | customer)
            problem(stranger, 403, "FORBIDDEN")
        answer = product.http.request(method, where, params=params, json=body.get("example"), headers=keyed | product.admin)
        if answer.status_code < 400:
            assert str(answer.status_code) in call["responses"], f"{method} {where}: {answer.status_code}"
        else:
            assert codes.get(answer.json()["code"]) == str(answer.status_code), f"{method} {where}: {answer.text}"
    assert len(calls) > 30


ODD = ["", "%00", "%ff", "²", "nan", "-1", "1e999", "9" * 30, "9" * 5000, "../..", "%2e%2e%2f", "'", '"', ";", "demo:", ":", "demo:x:20261341",
       "null", "[]", "{}", "%F0%9F%9A%8C", "a" * 3000, "0001-01-01T00:00:00+23:59", "2026-11-21T00:00:00Z", "36.7,3.05", "-180,-85,180,85"]  # fmt: skip
PLACES = ["/v1/routes/{}", "/v1/routes/{}/schedules", "/v1/stops/{}", "/v1/stops/{}/departures", "/v1/trips/{}", "/v1/trips/{}/live", "/v1/{}",
          "/v1/buses/{}/location", "/v1/buses/{}/history", "/v1/buses/{}/playback", "/v1/devices/{}/quarantine", "/v1/admin/devices/{}",
          "/v1/admin/buses/{}", "/v1/routes", "/v1/stops", "/v1/buses/locations", "/v1/admin/devices", "/v1/admin/buses",
          "/v1/buses/ALG-101/history", "/v1/buses/ALG-101/playback", "/gtfs-rt/{}", "/gtfs-rt/trip-updates.json", "/assets/{}", "/vendor/{}",
          "/trip/{}", "/sse"]  # fmt: skip
NAMES = ["limit", "cursor", "near", "radius", "bbox", "from", "to", "bucket", "date", "feed", "partner", "bus", "retired", "nothing"]


def test_questions_at_random_are_answered_and_never_with_a_fault_of_ours(product: Product) -> None:
    dice = random.Random(1787)
    said: dict[int, int] = {}
    for number in range(FUZZED):
        path = dice.choice(PLACES).replace("{}", dice.choice(ODD))
        asked = "&".join(f"{dice.choice(NAMES)}={dice.choice(ODD)}" for _ in range(dice.randint(0, 4)))
        headers: dict[str, Any] = product.admin if number % 3 else {}
        answer = product.http.request("GET", quote(f"{path}?{asked}", safe="/?&=%:,+"), headers=headers)
        said[answer.status_code] = said.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, f"{path}?{asked}: {answer.text}"
        if answer.status_code >= 400:
            assert answer.json()["code"], answer.text
        assert "Traceback" not in answer.text and "/site-packages/" not in answer.text
    print(said)
    assert product.http.get("/readyz").status_code == 200
