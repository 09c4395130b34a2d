"""REST as a client meets it: shapes of the contract, errors with codes, and what a caller may not do. On the whole running product."""

from __future__ import annotations

import itertools
import json
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.transit import gtfs_realtime_pb2 as rt

from tests.gtfs_feed import replaced
from tests.gtfs_feed import write_feed as write_city
from tests.product import Product, eventually

POS = {
    "busId", "tripId", "routeId", "startDate", "lat", "lon", "bearing", "speedMps", "alongM", "offsetM", "state", "delayS", "nextStop", "at",
    "receivedAt",
}  # fmt: skip


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    body: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "instance", "code", "requestId", "retryable", "errors"} <= body.keys()
    assert body["code"] == code
    assert body["requestId"] == answer.headers["x-request-id"]
    return body


def test_a_bus_says_where_it_is_and_how_old_that_is(product: Product) -> None:
    bus = product.running_trip()
    located = product.get(f"/v1/buses/{bus['busId']}/location")
    assert located.keys() >= POS
    assert located["fromRecord"] is False
    assert 0 <= located["ageMs"] < 60_000
    assert product.get(f"/api/v1/buses/{bus['busId']}/location")["busId"] == bus["busId"], "the alias answers too"


def test_a_trip_has_its_stops_and_its_live_part_says_when_the_bus_will_be_there(product: Product) -> None:
    bus = product.running_trip()
    trip = product.get(f"/v1/trips/{bus['tripId']}")
    assert trip["id"] == bus["tripId"]
    assert trip["status"] == "RUNNING"
    assert [stop["seq"] for stop in trip["stops"]] == sorted(stop["seq"] for stop in trip["stops"])
    alongs = [stop["alongM"] for stop in trip["stops"]]
    assert all(a < b for a, b in itertools.pairwise(alongs))
    live = product.get(f"/v1/trips/{bus['tripId']}/live")
    assert live.keys() >= POS | {"stops"}
    assert all(stop["p10"] <= stop["p50"] <= stop["p90"] for stop in live["stops"] if stop["p50"])
    medians = [stop["p50"] for stop in live["stops"] if stop["p50"]]
    assert medians == sorted(medians)
    assert medians


def test_stops_near_a_point_come_nearest_first_and_have_departures(product: Product) -> None:
    bus = product.running_trip()
    stop = next(s for s in product.get(f"/v1/trips/{bus['tripId']}")["stops"] if s["stopId"] == bus["nextStop"]["stopId"])
    near = product.get("/v1/stops", near=f"{stop['lat']},{stop['lon']}", radius=1500)["items"]
    away = [item["distanceM"] for item in near]
    assert away == sorted(away)
    assert stop["stopId"] in [item["stopId"] for item in near]
    departures = product.get(f"/v1/stops/{stop['stopId']}/departures", limit=50)["items"]
    live = [item for item in departures if item["tripId"] == bus["tripId"]]
    last = product.get(f"/v1/trips/{bus['tripId']}")["stops"][-1]["seq"]
    assert stop["seq"] == last or (live and live[0]["kind"] == "ESTIMATED" and live[0]["busId"] == bus["busId"])


def test_a_bus_on_its_trip_says_how_far_it_came_and_has_to_go(product: Product) -> None:
    bus = product.running_trip()
    length_m = product.get(f"/v1/trips/{bus['tripId']}")["stops"][-1]["alongM"]
    for path in (f"/v1/trips/{bus['tripId']}/live", f"/v1/buses/{bus['busId']}/location"):
        said = product.get(path)
        assert said["drivenM"] >= 0
        assert said["remainingM"] == pytest.approx(max(0.0, length_m - said["alongM"]), abs=0.2), "along the line to the last stop"


def test_the_departures_of_a_busy_stop_are_paged(product: Product) -> None:
    stops = [stop["stopId"] for stop in product.get("/v1/stops", limit=100)["items"]]
    whole = {stop: product.get(f"/v1/stops/{stop}/departures", limit=100) for stop in stops}
    stop = max((one for one in stops if whole[one]["nextCursor"] is None), key=lambda one: len(whole[one]["items"]))
    count = len(whole[stop]["items"])
    assert count > 4
    first = product.get(f"/v1/stops/{stop}/departures", limit=count // 2)
    assert len(first["items"]) == count // 2 and first["nextCursor"] == str(count // 2)
    second = product.get(f"/v1/stops/{stop}/departures", limit=100, cursor=first["nextCursor"])
    said = {(item["tripId"], item["seq"]) for item in first["items"] + second["items"]}
    wanted = {(item["tripId"], item["seq"]) for item in whole[stop]["items"]}
    assert len(said ^ wanted) <= 2, "all of them; at the edges one may have left, another come into the two hours"
    assert product.get(f"/v1/stops/{stop}/departures", cursor="999999")["items"] == []
    problem(product.http.get(f"/v1/stops/{stop}/departures?cursor=never-given"), 400, "INVALID")


def test_lists_are_paged_without_gaps_or_repetition(product: Product) -> None:
    seen: list[str] = []
    cursor = None
    while True:
        page = product.get("/v1/stops", limit=7, **({"cursor": cursor} if cursor else {}))
        seen += [item["stopId"] for item in page["items"]]
        cursor = page["nextCursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) > 100
    routes = product.get("/v1/routes", limit=100)["items"]
    schedule = product.get(f"/v1/routes/{routes[0]['routeId']}/schedules", limit=5)
    assert len(schedule["items"]) == 5 and schedule["nextCursor"] is not None


def test_a_polled_route_is_304_until_the_feed_changes(product: Product) -> None:
    route = product.get("/v1/routes", limit=1)["items"][0]["routeId"]
    first = product.http.get(f"/v1/routes/{route}")
    again = product.http.get(f"/v1/routes/{route}", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/buses/nobody/location", 404, "NOT_FOUND"),
        ("/v1/trips/demo:none:20260101", 404, "NOT_FOUND"),
        ("/v1/trips/rubbish", 404, "NOT_FOUND"),
        ("/v1/trips/demo:none:20269999/live", 404, "NOT_FOUND"),
        ("/v1/routes/other:1", 404, "NOT_FOUND"),
        ("/v1/stops?near=91,0", 400, "INVALID"),
        ("/v1/stops?near=here", 400, "INVALID"),
        ("/v1/stops?limit=0", 400, "INVALID"),
        ("/v1/stops?limit=101", 400, "INVALID"),
        ("/v1/buses/locations", 400, "INVALID"),
        ("/v1/buses/locations?bbox=1,2,3", 400, "INVALID"),
        ("/v1/buses/locations?bbox=nan,0,1,1", 400, "INVALID"),
        ("/v1/nothing", 404, "NOT_FOUND"),
        ("/v1/admin/devices", 401, "UNAUTHENTICATED"),
        ("/v1/buses/ALG-101/playback?from=2026-01-01T00:00:00Z&to=2026-01-02T00:00:00Z", 401, "UNAUTHENTICATED"),
        ("/gtfs-rt/vehicle-positions.pb?feed=none", 404, "NOT_FOUND"),
    ],
)
def test_errors_are_problem_documents_with_stable_codes(product: Product, path: str, status: int, code: str) -> None:
    problem(product.http.get(path), status, code)


def test_the_envelope_wraps_an_answer_and_a_problem_for_clients_that_ask_for_it(product: Product) -> None:
    accept = {"Accept": "application/vnd.timepoint.envelope+json"}
    good = product.http.get("/v1/routes?limit=1", headers=accept).json()
    assert good["success"] is True and good["data"] and good["meta"]["requestId"]
    bad = product.http.get("/v1/routes/other:1", headers=accept).json()
    assert bad["success"] is False and bad["error"]["code"] == "NOT_FOUND"


def test_a_device_is_made_used_rotated_and_retired(product: Product) -> None:
    bus = "T-" + uuid.uuid4().hex[:8]
    made = product.http.post("/v1/admin/devices", json={"busId": bus, "name": "test"}, headers=product.admin)
    assert made.status_code == 201, made.text
    device = made.json()

    def send(token: str) -> int:
        fix = {"busId": bus, "timestamp": int(datetime.now(UTC).timestamp() * 1000), "location": {"latitude": 36.75, "longitude": 3.05}}
        return product.http.post("/ingest/telemetry", json=fix, headers={"Authorization": f"Bearer {token}"}).status_code

    assert send(device["token"]) == 202
    eventually(lambda: product.http.get(f"/v1/buses/{bus}/location").status_code == 200)
    assert device["mqttUser"] is None, "until it is rotated its users are the bus and the device"
    fresh = product.http.post(f"/v1/admin/devices/{device['deviceId']}/rotate", json={"graceS": 0}, headers=product.admin).json()
    assert fresh["mqttUser"] == f"{device['deviceId']}.2" and fresh["previousUntil"]
    eventually(lambda: send(fresh["token"]) == 202, 8)
    eventually(lambda: send(device["token"]) == 401, 8)
    shown = product.http.get(f"/v1/admin/devices/{device['deviceId']}", headers=product.admin).json()
    assert "token" not in shown and shown["busIds"] == [bus]
    assert product.http.delete(f"/v1/admin/devices/{device['deviceId']}", headers=product.admin).status_code == 204
    eventually(lambda: send(fresh["token"]) == 401, 8)


def test_devices_in_bulk_are_all_or_none(product: Product) -> None:
    names = [f"B-{uuid.uuid4().hex[:8]}" for _ in range(50)]
    made = product.http.post("/v1/admin/devices/bulk", json={"devices": [{"busId": name} for name in names]}, headers=product.admin)
    assert made.status_code == 201, made.text
    assert [item["busId"] for item in made.json()["items"]] == names
    assert all(item["token"] for item in made.json()["items"])
    bad = product.http.post("/v1/admin/devices/bulk", json={"devices": [{"busId": "ok-1"}, {"busId": "bad id!"}]}, headers=product.admin)
    problem(bad, 400, "INVALID")
    assert product.http.get("/v1/admin/buses/ok-1", headers=product.admin).status_code == 404


def test_another_partners_things_are_as_unknown_as_none(product: Product) -> None:
    stranger = {"Authorization": "Bearer " + product.token("PARTNER_ADMIN", "other")}
    bus = next(iter(product.devices))
    problem(product.http.get(f"/v1/admin/buses/{bus}", headers=stranger), 404, "NOT_FOUND")
    span = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"}
    problem(product.http.get(f"/v1/buses/{bus}/playback", params=span, headers=stranger), 404, "NOT_FOUND")
    problem(product.http.get("/v1/admin/buses?partner=demo", headers=stranger), 403, "FORBIDDEN")
    customer = {"Authorization": "Bearer " + product.token("CUSTOMER")}
    problem(product.http.get("/v1/admin/devices", headers=customer), 403, "FORBIDDEN")


def test_history_fills_behind_a_moving_bus(product: Product) -> None:
    bus = product.running_trip()["busId"]
    now = datetime.now(UTC)
    span = {"from": (now - timedelta(hours=1)).isoformat(), "to": (now + timedelta(hours=1)).isoformat()}

    def points() -> Any:
        answer = product.http.get(f"/v1/buses/{bus}/playback", params=span, headers=product.admin)
        assert answer.status_code == 200, answer.text
        return len(answer.json()["items"]) > 3 and answer.json()["items"]

    found = eventually(points)
    assert [point["at"] for point in found] == sorted(point["at"] for point in found)
    buckets = product.http.get(f"/v1/buses/{bus}/history", params=span | {"bucket": "60"}, headers=product.admin).json()["items"]
    assert sum(bucket["fixes"] for bucket in buckets) >= len(found) - 5


def test_a_quarantined_fix_can_be_read_with_its_reason(product: Product) -> None:
    bus = "Q-" + uuid.uuid4().hex[:8]
    device = product.http.post("/v1/admin/devices", json={"busId": bus}, headers=product.admin).json()
    fix = {"busId": bus, "timestamp": int(datetime.now(UTC).timestamp() * 1000), "location": {"latitude": 0.0, "longitude": 0.0}}
    sent = product.http.post("/ingest/telemetry", json=fix, headers={"Authorization": f"Bearer {device['token']}"})
    assert sent.status_code == 202 and sent.json()["accepted"] == 0
    assert sent.json()["quarantined"][0]["reason"] == "ZERO_ISLAND"
    path = f"/v1/devices/{device['deviceId']}/quarantine"
    rows = eventually(lambda: product.http.get(path, headers=product.admin).json().get("items"))
    assert rows[0]["reason"] == "ZERO_ISLAND" and rows[0]["busId"] == bus


def test_the_quarantine_is_paged_without_gaps_though_one_request_brought_all_of_it(product: Product) -> None:
    bus = "Q-" + uuid.uuid4().hex[:8]
    device = product.http.post("/v1/admin/devices", json={"busId": bus}, headers=product.admin).json()
    bad = [{"busId": bus, "timestamp": 5 + n, "location": {"latitude": 36.75, "longitude": 3.05}} for n in range(25)]
    assert product.http.post("/ingest/telemetry", json=bad, headers={"Authorization": f"Bearer {device['token']}"}).status_code == 202
    path = f"/v1/devices/{device['deviceId']}/quarantine"
    eventually(lambda: len(product.http.get(path, params={"limit": 100}, headers=product.admin).json()["items"]) == 25)
    seen: list[str] = []
    cursor: str | None = None
    while True:
        params = {"limit": "7"} | ({"cursor": cursor} if cursor is not None else {})
        page = product.http.get(path, params=params, headers=product.admin).json()
        seen += [item["detail"] for item in page["items"]]
        cursor = page["nextCursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 25
    for cursor in ("5", "5.", "5.x", "5.-", "5." + "9" * 19):
        problem(product.http.get(path, params={"cursor": cursor}, headers=product.admin), 400, "INVALID")


def test_gtfs_realtime_is_served_with_an_etag(product: Product) -> None:
    product.running_trip()
    answer = product.http.get("/gtfs-rt/trip-updates.pb")
    message = rt.FeedMessage()
    message.ParseFromString(answer.content)
    assert message.header.gtfs_realtime_version == "2.0" and len(message.entity) > 5
    assert answer.headers["etag"].startswith('"')
    assert product.get("/gtfs-rt/vehicle-positions.json")["entity"]


def test_a_bad_feed_is_refused_with_its_complaints_and_changes_nothing(product: Product) -> None:
    before = product.get("/status.json")["feeds"]
    answer = product.http.post("/v1/admin/feeds?feed=demo", content=b"PK not a zip", headers=product.admin)
    body = problem(answer, 422, "FEED_REJECTED")
    assert body["detail"] and body["errors"][0]["code"] == "NOT_A_ZIP"
    assert product.get("/status.json")["feeds"] == before


def test_the_same_feed_again_is_no_new_version(product: Product) -> None:
    answer = product.http.post("/v1/admin/feeds?feed=demo", content=product.feed.read_bytes(), headers=product.admin)
    assert answer.status_code == 201, answer.text
    report = answer.json()
    assert (report["feedId"], report["partnerId"], report["changed"], report["warningsTotal"]) == ("demo", "demo", False, 0)
    again = json.loads(product.command("import-gtfs", product.feed, "--feed-id", "demo", "--json"))
    assert again == report, "the command says the same, and leaves the feed with its partner"


def test_a_feed_with_something_odd_is_taken_and_says_what(product: Product, tmp_path: Path) -> None:
    zipped = write_city(tmp_path / "city.zip", replaced("routes.txt", "00aa11", "green"))
    answer = product.http.post("/v1/admin/feeds?feed=odd&partner=odd-lines", content=zipped.read_bytes(), headers=product.admin)
    assert answer.status_code == 201, answer.text
    report = answer.json()
    assert (report["partnerId"], report["changed"], report["counts"]["stopTimes"], report["warningsTotal"]) == ("odd-lines", True, 11, 1)
    assert report["warnings"][0].startswith("routes.txt:2 route_color 'green': ")


def test_metrics_name_cpu_and_loop_lag_of_the_worker(product: Product) -> None:
    text = product.http.get("/metrics").text
    for name in ("timepoint_cpu_seconds", "timepoint_loop_lag_seconds_bucket", "timepoint_fixes_total", "timepoint_history_rows_total"):
        assert name in text


def test_one_feed_at_a_time_is_taken_in(product: Product) -> None:
    begun, finish = threading.Event(), threading.Event()
    where = "/v1/admin/feeds?feed=demo"

    def slowly() -> Iterator[bytes]:
        yield b"PK not"
        begun.set()
        finish.wait(60)
        yield b" a zip"

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, product.base_url + where, content=slowly(), headers=product.admin, timeout=60)
        try:
            assert begun.wait(20)
            time.sleep(2)  # its head is there now; a client that is still sending hears nothing, so it cannot be asked
            answer = product.http.post(where, content=b"PK", headers=product.admin)
        finally:
            finish.set()
    assert (answer.status_code, answer.json()["code"]) == (503, "UNAVAILABLE") and answer.headers["retry-after"]
    assert first.result().json()["code"] == "FEED_REJECTED"
    assert product.http.post(where, content=b"PK", headers=product.admin).json()["code"] == "FEED_REJECTED"
