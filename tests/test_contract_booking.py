"""The booking calls as the contract writes them, over HTTP, on the running product: shapes, keys, tokens, and bad input that leaves nothing."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx
import pytest

from tests.product import Product


class Rider:
    """A guest on one sold trip."""

    def __init__(self, product: Product, trip_id: str) -> None:
        self.http, self.trip = product.http, trip_id
        detail = product.get(f"/v1/trips/{trip_id}")
        self.stops = [stop["stopId"] for stop in detail["stops"]]

    def free(self, count: int) -> list[str]:
        answer = self.http.get(f"/v1/trips/{self.trip}/seats").json()
        return [seat["seat"] for seat in answer["seats"] if seat["state"] == "FREE" and "WOMEN_ONLY" not in seat["features"]][-count:]

    def hold(self, seats: Any, *, frm: Any = None, to: Any = None, key: str | None = None, trip: str | None = None, **more: Any) -> Any:
        body = {"seats": seats, "from": frm or self.stops[0], "to": to or self.stops[-1], **more.pop("body", {})}
        headers = {"Idempotency-Key": key or str(uuid.uuid4()), **more.pop("headers", {})}
        return self.http.post(f"/v1/trips/{trip or self.trip}/holds", json=body, headers=headers)

    def call(self, method: str, path: str, token: str | None = None, **body: Any) -> httpx.Response:
        headers = {"Idempotency-Key": str(uuid.uuid4())} | ({"X-Hold-Token": token} if token else {})
        return self.http.request(method, path, json=body or None, headers=headers)

    def booked(self, seats: list[str]) -> tuple[Any, str]:
        hold = self.hold(seats).json()
        named = [{"seat": seat, "firstName": "Amal", "lastName": "Benaïssa"} for seat in seats]
        made = self.call("POST", "/v1/bookings", hold["holdToken"], holdId=hold["id"], passengers=named, contact={"email": "a@example.org"})
        assert made.status_code == 201, made.text
        return made.json(), hold["holdToken"]


@pytest.fixture(scope="module")
def trips(product: Product) -> list[str]:
    """Sold trips of two coach lines that leave tomorrow."""
    listed = json.loads(product.command("sales", "list", "--json", "--limit", "200"))
    return [trip["tripId"] for trip in listed][60:]


@pytest.fixture
def rider(product: Product, trips: list[str]) -> Rider:
    """Somebody on a trip of their own."""
    return Rider(product, trips.pop())


def problem(answer: httpx.Response, status: int, code: str) -> Any:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    said = answer.json()
    assert said["code"] == code and said["detail"] and said["requestId"] == answer.headers["x-request-id"]
    return said


def test_a_hold_has_the_shape_of_the_contract(rider: Rider) -> None:
    seats = rider.free(2)
    answer = rider.hold(seats)
    assert answer.status_code == 201
    made = answer.json()
    assert {"id", "tripId", "from", "to", "seats", "total", "status", "expiresAt", "holdToken", "version"} <= made.keys()
    assert sorted(seat["seat"] for seat in made["seats"]) == sorted(seats) and made["status"] == "HELD"
    assert made["total"]["amount"] == sum(seat["price"]["amount"] for seat in made["seats"]) and made["total"]["currency"] == "DZD"
    read = rider.call("GET", f"/v1/holds/{made['id']}", made["holdToken"])
    assert read.json()["expiresAt"] == made["expiresAt"] and read.headers["etag"] == '"1"'


def test_the_second_buyer_is_refused_with_the_seats_named_and_nothing_is_held(rider: Rider) -> None:
    one, two, three = rider.free(3)
    rider.hold([two])
    said = problem(rider.hold([one, two, three]), 409, "SEAT_TAKEN")
    assert [fault["detail"].split(":")[0] for fault in said["errors"]] == [two] and not said["retryable"]
    assert rider.hold([one, three]).status_code == 201


def test_a_seat_is_sold_again_from_where_its_passenger_gets_out(rider: Rider) -> None:
    (seat,) = rider.free(1)
    middle = rider.stops[len(rider.stops) // 2]
    assert rider.hold([seat], to=middle).status_code == 201
    assert rider.hold([seat], frm=middle).status_code == 201
    problem(rider.hold([seat]), 409, "SEAT_TAKEN")


def test_a_stop_may_be_named_by_its_sequence_and_seats_by_their_number(rider: Rider) -> None:
    made = rider.hold({"count": 3, "prefer": ["WINDOW"]}, frm=1, to=2).json()
    assert len(made["seats"]) == 3 and (made["from"], made["to"]) == (rider.stops[0], rider.stops[1])


def test_the_same_key_gets_the_first_answer_and_another_body_is_refused(rider: Rider) -> None:
    seats, key = rider.free(2), str(uuid.uuid4())
    first, again = rider.hold(seats[:1], key=key), rider.hold(seats[:1], key=key)
    assert (first.status_code, again.status_code) == (201, 201) and first.json() == again.json()
    assert "idempotency-replayed" not in first.headers and again.headers["idempotency-replayed"] == "true"
    problem(rider.hold(seats[1:], key=key), 422, "IDEMPOTENCY_KEY_REUSED")


def test_calls_that_create_want_a_key(rider: Rider) -> None:
    body = {"seats": rider.free(1), "from": rider.stops[0], "to": rider.stops[-1]}
    problem(rider.http.post(f"/v1/trips/{rider.trip}/holds", json=body), 400, "IDEMPOTENCY_KEY_REQUIRED")
    for path in ("/v1/bookings", "/v1/payments/initiate", "/v1/payments/refund", "/v1/pos/sync"):
        answer = rider.http.post(path, json={})
        assert answer.status_code in (400, 401), f"{path} {answer.text}"


@pytest.mark.parametrize(
    ("seats", "more", "status", "code", "fault"),
    [
        (["99Z"], {}, 400, "INVALID", "UNKNOWN_SEAT"),
        ([], {}, 400, "INVALID", None),
        ([f"{n}A" for n in range(100)], {}, 400, "INVALID", "TOO_MANY_SEATS"),
        ({"count": 0}, {}, 400, "INVALID", None),
        ({"count": 100}, {}, 400, "INVALID", None),
        (["1A", "1A"], {}, 400, "INVALID", "SEAT_TWICE"),
        (["1A"], {"frm": "demo:nowhere"}, 400, "INVALID", "UNKNOWN_STOP"),
        (["1A"], {"frm": 2, "to": 2}, 400, "INVALID", "WRONG_DIRECTION"),
        (["1A"], {"frm": 3, "to": 1}, 400, "INVALID", "WRONG_DIRECTION"),
        (["1A"], {"body": {"currency": "EUR"}}, 400, "INVALID", "WRONG_CURRENCY"),
        (["1A"], {"trip": "demo:NONE:20260101"}, 404, "NOT_FOUND", None),
        ("1A", {}, 400, "INVALID", None),
    ],
)
def test_a_bad_wish_is_refused_and_leaves_nothing(
    rider: Rider, seats: Any, more: dict[str, Any], status: int, code: str, fault: Any
) -> None:
    before = len(rider.free(99))
    said = problem(rider.hold(seats, **more), status, code)
    if fault is not None:
        assert fault in [one["code"] for one in said["errors"]]
    assert len(rider.free(99)) == before


def test_a_foreign_or_forged_token_opens_nothing(rider: Rider) -> None:
    one, two = rider.free(2)
    mine, other = rider.hold([one]).json(), rider.hold([two]).json()
    for token in (None, other["holdToken"]):
        problem(rider.call("GET", f"/v1/holds/{mine['id']}", token), 404, "NOT_FOUND")
        problem(rider.call("DELETE", f"/v1/holds/{mine['id']}", token), 404, "NOT_FOUND")
    letter = "B" if mine["holdToken"][20] != "B" else "C"
    forged = mine["holdToken"][:20] + letter + mine["holdToken"][21:]
    problem(rider.call("GET", f"/v1/holds/{mine['id']}", forged), 401, "UNAUTHENTICATED")


def test_a_hold_that_was_let_go_cannot_be_booked(rider: Rider) -> None:
    (seat,) = rider.free(1)
    made = rider.hold([seat]).json()
    gone = rider.call("DELETE", f"/v1/holds/{made['id']}", made["holdToken"])
    assert gone.json() == {"id": made["id"], "status": "RELEASED", "version": 2}
    named = [{"seat": seat, "firstName": "A", "lastName": "B"}]
    answer = rider.call("POST", "/v1/bookings", made["holdToken"], holdId=made["id"], passengers=named, contact={"phone": "+21355500"})
    problem(answer, 409, "HOLD_USED")


def test_a_booking_has_the_shape_of_the_contract_and_a_version_as_its_etag(rider: Rider) -> None:
    made, token = rider.booked(rider.free(2))
    assert {"ref", "status", "total", "passengers", "expiresAt", "version"} <= made.keys() and made["status"] == "PENDING_PAYMENT"
    read = rider.call("GET", f"/v1/bookings/{made['ref']}", token)
    assert read.json() == made and read.headers["etag"] == f'"{made["version"]}"'
    problem(rider.call("GET", f"/v1/bookings/{made['ref']}"), 404, "NOT_FOUND")


def test_who_knows_reference_and_surname_finds_the_booking(rider: Rider) -> None:
    made, _ = rider.booked(rider.free(1))
    found = rider.call("POST", "/v1/bookings/lookup", ref=made["ref"].lower(), lastName="benaissa")
    token = found.json()["holdToken"]
    assert rider.call("GET", f"/v1/bookings/{made['ref']}", token).json()["ref"] == made["ref"]
    problem(rider.call("POST", "/v1/bookings/lookup", ref=made["ref"], lastName="Somebody"), 404, "NOT_FOUND")


def test_no_ticket_before_the_money(rider: Rider) -> None:
    made, token = rider.booked(rider.free(1))
    problem(rider.call("GET", f"/v1/bookings/{made['ref']}/ticket", token), 409, "NOT_CONFIRMED")


def test_from_hold_to_ticket_in_four_calls_and_a_verdict(rider: Rider) -> None:
    made, token = rider.booked(rider.free(1))
    begun = rider.call("POST", "/v1/payments/initiate", token, bookingRef=made["ref"], provider="SIMULATED_CARD")
    assert begun.status_code == 201 and begun.json()["status"] == "INITIATED" and begun.json()["amount"] == made["total"]
    paid = rider.call("POST", "/v1/payments/confirm", token, paymentId=begun.json()["id"])
    assert paid.status_code == 200 and paid.json()["status"] == "CONFIRMED" and paid.json()["bookingRef"] == made["ref"]
    read = rider.call("GET", f"/v1/bookings/{made['ref']}", token)
    assert read.json()["status"] == "CONFIRMED"
    same = rider.http.get(f"/v1/bookings/{made['ref']}", headers={"X-Hold-Token": token, "If-None-Match": read.headers["etag"]})
    assert same.status_code == 304 and not same.content
    (ticket,) = rider.call("GET", f"/v1/bookings/{made['ref']}/ticket", token).json()["tickets"]
    verdict = rider.call("POST", "/v1/tickets/verify", qr=ticket["qr"], tripId=rider.trip).json()
    assert verdict["result"] == "VALID"
    at = len(ticket["qr"]) // 2
    altered = ticket["qr"][:at] + ("A" if ticket["qr"][at] != "A" else "B") + ticket["qr"][at + 1 :]
    assert rider.call("POST", "/v1/tickets/verify", qr=altered, tripId=rider.trip).json()["result"] != "VALID"


def test_a_webhook_with_a_bad_signature_is_refused(rider: Rider) -> None:
    answer = rider.http.post("/v1/payments/webhooks/SIMULATED_CARD", content=b'{"id":"x"}', headers={"X-Signature": "t=1,v1=00"})
    problem(answer, 401, "UNAUTHENTICATED")


@pytest.mark.parametrize("amount", [-1, 0, 10**15, 1.5, "12"])
def test_a_refund_of_nonsense_is_refused(rider: Rider, product: Product, amount: Any) -> None:
    made, _ = rider.booked(rider.free(1))
    headers = {"Idempotency-Key": str(uuid.uuid4())} | product.admin
    answer = rider.http.post("/v1/payments/refund", json={"bookingRef": made["ref"], "amount": amount, "reason": "x"}, headers=headers)
    assert answer.status_code in (400, 409, 422), answer.text


def test_another_operators_staff_finds_nothing(rider: Rider, product: Product) -> None:
    made, _ = rider.booked(rider.free(1))
    foreign = {"Authorization": "Bearer " + product.token("PARTNER_ADMIN", "south")}
    for path in (f"/v1/bookings/{made['ref']}", f"/v1/trips/{rider.trip}/manifest"):
        problem(rider.http.get(path, headers=foreign), 404, "NOT_FOUND")
    listed = rider.http.get("/v1/bookings", headers=foreign)
    assert listed.json() == {"items": [], "nextCursor": None}


def test_the_operator_lists_the_bookings_of_a_trip(rider: Rider, product: Product) -> None:
    made, _ = rider.booked(rider.free(1))
    own = {"Authorization": "Bearer " + product.token("AGENT", "demo")}
    listed = rider.http.get("/v1/bookings", params={"trip": rider.trip}, headers=own).json()
    assert [one["ref"] for one in listed["items"]] == [made["ref"]]


def test_a_customer_finds_their_bookings(rider: Rider, product: Product) -> None:
    me = {"Authorization": "Bearer " + product.token("CUSTOMER")}
    (seat,) = rider.free(1)
    hold = rider.hold([seat], headers=me).json()
    named = [{"seat": seat, "firstName": "Amal", "lastName": "Kaci"}]
    body = {"holdId": hold["id"], "passengers": named, "contact": {"email": "k@example.org"}}
    made = rider.http.post("/v1/bookings", json=body, headers={"Idempotency-Key": str(uuid.uuid4())} | me).json()
    mine = rider.http.get("/v1/users/me/bookings", headers=me).json()["items"]
    assert made["ref"] in [one["ref"] for one in mine]
    assert rider.http.get("/v1/users/me/bookings").status_code == 401
