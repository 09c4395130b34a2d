"""Who drives a trip, as dispatchers say it and as it is read. On the whole running product."""

from __future__ import annotations

from typing import Any

from tests.product import Product, eventually


def path(trip_id: str) -> str:
    return f"/v1/trips/{trip_id}/assignment"


def order(product: Product, trip_id: str, bus_id: str, **more: Any) -> Any:
    params = {"force": "true"} if more.pop("force", False) else {}
    return product.http.put(path(trip_id), json={"busId": bus_id, **more}, params=params, headers=product.admin)


def test_a_dispatchers_word_is_in_force_until_it_is_taken_back_and_both_are_in_the_history(product: Product) -> None:
    bus = product.running_trip()
    said = order(product, bus["tripId"], bus["busId"], reason="as planned")
    assert said.status_code == 200, said.text
    assert (said.json()["busId"], said.json()["givenBy"]) == (bus["busId"], "DISPATCHER")
    again = order(product, bus["tripId"], bus["busId"], reason="as planned")
    assert again.json()["order"] == said.json()["order"], "the same word again is the same word"
    read = product.http.get(path(bus["tripId"]), headers=product.admin).json()
    assert read["order"]["reason"] == "as planned"

    taken_back = product.http.delete(path(bus["tripId"]), headers=product.admin)
    assert taken_back.status_code == 204, taken_back.text
    assert product.http.get(path(bus["tripId"]), headers=product.admin).json()["order"] is None
    assert product.http.delete(path(bus["tripId"]), headers=product.admin).status_code == 204

    steps = product.http.get(path(bus["tripId"]) + "/history", headers=product.admin).json()["items"]
    assert [(step["kind"], step["reason"]) for step in steps if step["by"] is not None] == [
        ("ORDERED", "as planned"), ("WITHDRAWN", "DISPATCHER"),
    ]  # fmt: skip
    assert any(step["kind"] == "ASSIGNED" and step["busId"] == bus["busId"] for step in steps), steps

    def audited() -> bool:
        rows = product.http.get("/v1/audit", params={"limit": 100}, headers=product.admin).json()["items"]
        return {"partner.TRIP_ORDERED", "partner.TRIP_ORDER_WITHDRAWN"} <= {row["action"] for row in rows}

    assert eventually(audited)


def test_a_bus_that_is_ordered_onto_another_trip_at_the_same_time_is_refused_unless_forced(product: Product) -> None:
    locations = product.get("/v1/buses/locations", bbox="-180,-85,180,85", limit=100)["items"]
    buses = [each for each in locations if each["state"] == "IN_TRIP" and each["tripId"]]
    first, second = buses[0], next(each for each in buses[1:] if each["tripId"] != buses[0]["tripId"])
    try:
        assert order(product, first["tripId"], first["busId"]).status_code == 200
        refused = order(product, second["tripId"], first["busId"])
        assert (refused.status_code, refused.json()["code"]) == (409, "CONFLICT"), refused.text
        assert first["tripId"] in refused.json()["detail"]
        assert order(product, second["tripId"], first["busId"], force=True).status_code == 200
        assert product.http.get(path(first["tripId"]), headers=product.admin).json()["order"] is None
    finally:
        for each in (first, second):
            product.http.delete(path(each["tripId"]), headers=product.admin)


def test_a_driver_may_say_that_they_drive_a_trip_but_not_against_the_dispatcher(product: Product) -> None:
    bus = product.running_trip()
    driver = {"Authorization": "Bearer " + product.token("DRIVER")}
    try:
        said = product.http.put(path(bus["tripId"]), json={"busId": bus["busId"]}, headers=driver)
        assert said.status_code == 200, said.text
        assert said.json()["givenBy"] == "DRIVER" and said.json()["order"]["driverId"] == said.json()["order"]["saidBy"]
        assert order(product, bus["tripId"], bus["busId"]).json()["givenBy"] == "DISPATCHER"
        assert product.http.put(path(bus["tripId"]), json={"busId": bus["busId"]}, headers=driver).status_code == 409
        assert product.http.delete(path(bus["tripId"]), headers=driver).status_code == 409
    finally:
        product.http.delete(path(bus["tripId"]), headers=product.admin)


def test_other_operators_trips_and_buses_are_unknown(product: Product) -> None:
    bus = product.running_trip()
    stranger = {"Authorization": "Bearer " + product.token("PARTNER_ADMIN", "stranger")}
    for answer in (
        product.http.put(path(bus["tripId"]), json={"busId": bus["busId"]}, headers=stranger),
        product.http.get(path(bus["tripId"]), headers=stranger),
        product.http.get(path(bus["tripId"]) + "/history", headers=stranger),
        product.http.delete(path(bus["tripId"]), headers=stranger),
        order(product, bus["tripId"], "NO-SUCH-BUS"),
        order(product, "demo:NO-SUCH-TRIP:20261121", bus["busId"]),
    ):
        assert answer.status_code == 404, answer.text
    assert product.http.get(path(bus["tripId"])).status_code == 401
