"""From a search to a taken seat on the running product, with somebody who watches the seat map live all the while."""

from __future__ import annotations

import json
import uuid
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.product import Product


def _next(socket: ClientConnection, kind: str) -> dict[str, Any]:
    """The next push of a kind."""
    while True:
        said: dict[str, Any] = json.loads(socket.recv(timeout=60))
        if said.get("t") == kind:
            return said


def _ride(product: Product) -> dict[str, Any]:
    """A ride on sale on a whole line of the demo, a good while before it leaves."""
    route = product.get("/v1/routes/popular")["items"][0]["routeId"]
    for day in range(3):
        for item in product.get(f"/v1/routes/{route}/schedules", limit=100, date=_day(day))["items"]:
            if item["onSale"]:
                trip = product.get(f"/v1/trips/{item['tripId']}")
                first, last = trip["stops"][0], trip["stops"][-1]
                found = product.get("/v1/routes", origin=first["name"], destination=last["stopId"], limit=100)["items"]
                return next(ride for ride in found if ride["tripId"] == item["tripId"])
    raise AssertionError("nothing of the demo is on sale")


def _day(ahead: int) -> str:
    from datetime import UTC, datetime, timedelta

    return (datetime.now(UTC) + timedelta(days=ahead)).date().isoformat()


def test_a_watcher_sees_a_seat_picked_held_and_let_go_in_order_and_misses_nothing_while_away(product: Product) -> None:
    ride = _ride(product)
    trip, legs = ride["tripId"], {"from": ride["from"], "to": ride["to"]}
    shown = product.get(f"/v1/trips/{trip}/seats", **legs)
    label = next(seat["seat"] for seat in shown["seats"] if seat["state"] == "FREE")
    assert ride["seatsFree"] == shown["free"]
    url = product.base_url.replace("http", "ws") + "/ws"
    with connect(url) as socket:
        socket.send(json.dumps({"id": 1, "op": "sub", "ch": f"seats:{trip}"}))
        snapshot = _next(socket, "snapshot")
        assert {one["seat"] for one in snapshot["d"]} == {seat["seat"] for seat in shown["seats"]}
        pick = product.http.post(f"/v1/trips/{trip}/picks", json={"seats": [label], **legs})
        assert pick.status_code == 201
        picked = _next(socket, "seat")
        assert picked["d"] == {"seat": label, "state": "PICKED", **legs, "untilMs": pick.json()["untilMs"]}
        hold = product.http.post(
            f"/v1/trips/{trip}/holds",
            json={"seats": [label], **legs, "pickId": pick.json()["pickId"]},
            headers={"Idempotency-Key": str(uuid.uuid4())},
        )
        assert hold.status_code == 201, hold.text
        assert hold.json()["seats"][0]["price"] == next(seat["price"] for seat in shown["seats"] if seat["seat"] == label)
        taken = _next(socket, "seat")
        assert (taken["d"]["seat"], taken["d"]["state"], taken["o"]) == (label, "TAKEN", picked["o"] + 1)
        assert taken["d"]["untilMs"] > pick.json()["untilMs"]
    now = product.get(f"/v1/trips/{trip}/seats", **legs)
    assert {seat["seat"]: seat["state"] for seat in now["seats"]}[label] == "TAKEN"
    assert now["version"] == taken["o"]
    token = {"X-Hold-Token": hold.json()["holdToken"]}
    assert product.http.delete(f"/v1/holds/{hold.json()['id']}", headers=token).status_code == 200
    with connect(url) as socket:
        since = {"e": now["epoch"], "o": now["version"]}
        socket.send(json.dumps({"id": 1, "op": "sub", "ch": f"seats:{trip}", "since": since}))
        freed = _next(socket, "seat")
        assert (freed["d"]["seat"], freed["d"]["state"], freed["o"]) == (label, "FREE", now["version"] + 1)


def test_trips_that_are_not_sold_say_so_in_the_timetable_and_have_no_seats(product: Product) -> None:
    bus = product.running_trip()
    items = product.get(f"/v1/routes/{bus['routeId']}/schedules", limit=100)["items"]
    sold = [item for item in items if item["onSale"] is not None]
    unsold = next((item for item in items if item["onSale"] is None), None)
    assert all(item["seatsFree"] is not None for item in sold)
    if unsold is not None:
        assert unsold["seatsFree"] is None and unsold["priceFrom"] is None
        assert product.http.get(f"/v1/trips/{unsold['tripId']}/seats").status_code == 404
