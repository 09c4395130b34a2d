"""Geofences as an operator's office meets them: drawn, found on the map, redrawn, retired; in force on the road two seconds later."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.product import Product, eventually

PATH = "/v1/geofences"
RING = [[3.0, 36.0], [3.02, 36.0], [3.02, 36.02], [3.0, 36.02], [3.0, 36.0]]
HOLE = [[3.005, 36.005], [3.015, 36.005], [3.015, 36.015], [3.005, 36.015], [3.005, 36.005]]
YARD: dict[str, Any] = {"name": "Yard", "kind": "RESTRICTED", "geometry": {"type": "Polygon", "coordinates": [RING, HOLE]}}


class Office:
    """Somebody who draws; what is left is retired at the end."""

    def __init__(self, product: Product, partner: str = "demo") -> None:
        self.product, self.http = product, product.http
        self.who = {"Authorization": "Bearer " + product.token("PARTNER_ADMIN", partner)}
        self.drawn: list[str] = []

    def post(self, body: dict[str, Any], path: str = PATH, **headers: str) -> httpx.Response:
        return self.http.post(path, json=body, headers=self.who | headers)

    def draw(self, **more: Any) -> dict[str, Any]:
        made = self.post(YARD | {"feedId": "demo"} | more)
        assert made.status_code == 201, made.text
        self.drawn.append(made.json()["id"])
        found: dict[str, Any] = made.json()
        return found

    def get(self, path: str = "", **params: Any) -> Any:
        answer = self.http.get(PATH + path, params=params or None, headers=self.who)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def office(product: Product) -> Iterator[Office]:
    office = Office(product)
    yield office
    for fence_id in office.drawn:
        product.http.delete(f"{PATH}/{fence_id}", headers=office.who)


def refused(answer: httpx.Response, status: int, code: str, pointer: str | None = None, fault: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    said = answer.json()
    assert said["code"] == code
    if pointer is not None:
        assert (said["errors"][0]["pointer"], said["errors"][0]["code"]) == (pointer, fault), said["errors"]
        assert said["errors"][0]["detail"]


def test_a_fence_is_drawn_read_redrawn_and_retired_and_every_step_is_on_record(office: Office) -> None:
    made = office.draw(calendar={"windows": [{"days": ["MON", "FRI"], "from": "22:00", "to": "29:30"}]}, severity="CRITICAL")
    assert (made["version"], made["severity"], made["partnerId"], made["feedId"]) == (1, "CRITICAL", "demo", "demo")
    assert made["geometry"] == YARD["geometry"] and made["depthM"] == pytest.approx(320, rel=0.2)
    assert made["calendar"]["timeZone"] == "Africa/Algiers", "the feed's, where none is named"
    path = f"{PATH}/{made['id']}"
    refused(office.http.patch(path, json={"name": "x"}, headers=office.who | {"If-Match": '"7"'}), 412, "PRECONDITION_FAILED")
    circle = {"type": "Circle", "coordinates": [3.01, 36.01], "radiusM": 150.0}
    edited = office.http.patch(path, json={"geometry": circle, "calendar": None}, headers=office.who | {"If-Match": '"1"'})
    assert edited.status_code == 200 and edited.headers["etag"] == '"2"', edited.text
    read = office.get(f"/{made['id']}")
    assert (read["geometry"], read["calendar"], read["name"], read["severity"]) == (circle, None, "Yard", "CRITICAL")
    retired = office.http.delete(path, headers=office.who)
    assert retired.json()["retiredAt"] is not None
    assert office.http.delete(path, headers=office.who).json()["version"] == 3, "again changes nothing"
    refused(office.http.patch(path, json={"name": "x"}, headers=office.who), 409, "CONFLICT")
    assert made["id"] not in [item["id"] for item in office.get(limit=100)["items"]]
    assert made["id"] in [item["id"] for item in office.get(limit=100, retired=True)["items"]]
    audit = office.http.get("/v1/audit", params={"action": "partner.FENCE_CHANGED", "limit": 100}, headers=office.who).json()["items"]
    mine = [row for row in audit if row["diff"]["after"]["id"] == made["id"]]
    assert [row["diff"]["after"]["version"] for row in mine] == [3, 2, 1] and mine[1]["diff"]["before"]["severity"] == "CRITICAL"


def test_a_circle_may_be_a_point_with_a_radius_beside_it(office: Office) -> None:
    point = {"type": "Point", "coordinates": [3.01, 36.01]}
    made = office.draw(geometry=point, radiusM=80, kind="PLAIN")
    assert made["geometry"] == {"type": "Circle", "coordinates": [3.01, 36.01], "radiusM": 80.0} and made["severity"] == "MINOR"
    line = office.draw(geometry={"type": "LineString", "coordinates": [[3.0, 36.0], [3.1, 36.0]]}, halfWidthM=60, kind="CORRIDOR")
    assert line["geometry"]["halfWidthM"] == line["depthM"] == 60.0 and line["severity"] == "MAJOR"


def test_the_same_key_draws_one_fence(office: Office) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first, again = (office.post(YARD | {"feedId": "demo"}, **key) for _ in range(2))
    office.drawn.append(first.json()["id"])
    assert first.json() == again.json() and again.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize(
    ("wrong", "pointer", "code"),
    [
        (
            {"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}},
            "/geometry/coordinates/0",
            "SELF_CROSSING",
        ),
        ({"geometry": {"type": "Polygon", "coordinates": [RING[:-1]]}}, "/geometry/coordinates/0", "RING_NOT_CLOSED"),
        (
            {"geometry": {"type": "Polygon", "coordinates": [[*([[3, 36]] * 1_900), *RING * 30]]}},
            "/geometry/coordinates",
            "TOO_MANY_VERTICES",
        ),
        ({"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]}}, "/geometry/coordinates", "TOO_LARGE"),
        ({"geometry": {"type": "Polygon", "coordinates": [[]]}}, "/geometry/coordinates/0", "EMPTY"),
        ({"geometry": {"type": "Circle", "coordinates": [3, 89], "radiusM": 50}}, "/geometry/coordinates", "POLAR"),
        ({"geometry": {"type": "Circle", "coordinates": [3, 36]}}, "/geometry/radiusM", "MISSING_FIELD"),
        ({"geometry": {"type": "Polygon", "coordinates": [RING], "radiusM": 50}}, "/geometry/radiusM", "INVALID_VALUE"),
        ({"kind": "SPEED_ZONE"}, "/speedLimitKmh", "MISSING_FIELD"),
        ({"speedLimitKmh": 30}, "/speedLimitKmh", "INVALID_VALUE"),
        ({"routes": ["demo:none"]}, "/routes/0", "UNKNOWN_ROUTE"),
        ({"buses": ["nobody"]}, "/buses/0", "UNKNOWN_BUS"),
        ({"calendar": {"windows": [{"days": ["MON"], "from": "09:00", "to": "08:00"}]}}, "/calendar/windows/0/to", "EMPTY"),
        ({"calendar": {"timeZone": "Nowhere/Town"}}, "/calendar/timeZone", "UNKNOWN_TIME_ZONE"),
        ({"feedId": "other"}, "/feedId", "UNKNOWN_FEED"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_what_is_wrong_is_refused_with_its_place_and_why(office: Office, wrong: dict[str, Any], pointer: str, code: str) -> None:
    refused(office.post(YARD | {"feedId": "demo"} | wrong), 400, "INVALID", pointer, code)


def test_another_operators_fences_do_not_exist(office: Office, product: Product) -> None:
    made, other = office.draw(), Office(product, "other")
    path = f"{PATH}/{made['id']}"
    refused(product.http.get(path, headers=other.who), 404, "NOT_FOUND")
    refused(product.http.patch(path, json={"name": "mine"}, headers=other.who), 404, "NOT_FOUND")
    refused(product.http.delete(path, headers=other.who), 404, "NOT_FOUND")
    refused(product.http.get(path, params={"partner": "demo"}, headers=other.who), 404, "NOT_FOUND")
    assert other.get()["items"] == []
    assert other.post({"lat": 36.002, "lon": 3.002}, f"{PATH}/check").json()["items"] == []
    refused(product.http.get(path), 401, "UNAUTHENTICATED")
    refused(product.http.get(path, headers={"Authorization": "Bearer " + product.token("DRIVER")}), 403, "FORBIDDEN")


def test_fences_are_found_on_the_map_and_page_by_page(office: Office) -> None:
    far = [
        office.draw(name=f"far {n}", geometry={"type": "Circle", "coordinates": [-60.0 + n / 100, -30.0], "radiusM": 200})["id"]
        for n in range(5)
    ]
    box, seen, cursor = "-61,-31,-59,-29", [], None
    while True:
        page = office.get(bbox=box, limit=2, **({"cursor": cursor} if cursor else {}))
        seen += [item["id"] for item in page["items"]]
        cursor = page["nextCursor"]
        if cursor is None:
            break
    assert seen == far
    assert [item["id"] for item in office.get(bbox="-60.001,-30.001,-59.999,-29.999")["items"]] == far[:1]
    for wrong in ({"bbox": "1,2,3"}, {"cursor": "x"}, {"kind": "NONE"}):
        refused(office.http.get(PATH, params=wrong, headers=office.who), 400, "INVALID")


def test_a_manager_asks_which_fences_hold_at_a_place(office: Office) -> None:
    yard = office.draw(name="ring", geometry={"type": "Polygon", "coordinates": [RING, HOLE]})
    past = office.draw(name="past", calendar={"validTo": "2020-01-01T00:00:00Z"}, kind="SPEED_ZONE", speedLimitKmh=20)
    of_bus = office.draw(name="of one", buses=[sorted(office.product.devices)[0]])

    def held(lat: float, lon: float, **more: Any) -> dict[str, Any]:
        items = office.post({"lat": lat, "lon": lon, **more}, f"{PATH}/check").json()["items"]
        return {item["id"]: item for item in items}

    inside = held(36.002, 3.002)
    assert inside.keys() >= {yard["id"], past["id"], of_bus["id"]}
    assert inside[yard["id"]]["depthM"] == pytest.approx(180, abs=4) and inside[yard["id"]]["inForce"] is True
    assert inside[past["id"]]["inForce"] is False and inside[past["id"]]["speedLimitKmh"] == 20
    assert yard["id"] not in held(36.01, 3.01), "in the hole"
    assert of_bus["id"] not in held(36.002, 3.002, busId="another")


def test_a_fence_drawn_about_a_bus_is_heard_of_and_closed_when_it_goes(office: Office, product: Product) -> None:
    bus = product.running_trip()
    circle = {"type": "Circle", "coordinates": [bus["lon"], bus["lat"]], "radiusM": 20_000}
    made = office.draw(name="all around", geometry=circle, buses=[bus["busId"]])

    def incident(is_open: bool) -> Any:
        items = office.http.get("/v1/incidents", params={"limit": 100}, headers=office.who).json()["items"]
        mine = [item for item in items if item["kind"] == "FENCE_ENTERED" and item["detail"].get("fenceId") == made["id"]]
        return [item for item in mine if (item["closedAt"] is None) is is_open]

    opened = eventually(lambda: incident(True), 60)
    assert [(item["busId"], item["severity"]) for item in opened] == [(bus["busId"], "MAJOR")]
    assert office.http.delete(f"{PATH}/{made['id']}", headers=office.who).status_code == 200
    closed = eventually(lambda: incident(False), 60)
    assert [(item["incidentId"], item["detail"]["reason"]) for item in closed] == [(opened[0]["incidentId"], "RETIRED")]
