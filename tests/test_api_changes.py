"""Changes over HTTP, with real prices, payments and tickets: what passengers and operators can do, and who may not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from api import booking, changes, payments, tickets
from tests.changes_world import ChangingWorld
from tests.seat_house import SeatHouse, problem

ROUTERS = (*booking.ROUTERS, *changes.ROUTERS, *payments.ROUTERS, *tickets.ROUTERS)


class House(SeatHouse):
    """A guest with a booking that was paid by card, and an operator."""

    async def call(self, method: str, path: str, body: Any = None, token: str | None = None, **headers: str) -> httpx.Response:
        said = {"Idempotency-Key": self.world.clock.uuid7()} | ({"X-Hold-Token": token} if token else {})
        return await self.http.request(method, f"/v1{path}", json=body, headers=said | headers)

    async def done(self, method: str, path: str, body: Any = None, token: str | None = None, **headers: str) -> Any:
        answer = await self.call(method, path, body, token, **headers)
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    async def sold(self, *labels: str, to: str = "demo:F") -> tuple[str, str]:
        """(reference, hold token)."""
        held = await self.done("POST", f"/trips/{self.world.trip_id}/holds", {"seats": list(labels), "from": "demo:A", "to": to})
        people = [{"seat": label, "firstName": "Amal", "lastName": "Benaïssa"} for label in labels]
        wish = {"holdId": held["id"], "passengers": people, "contact": {"email": "a@example.org"}}
        ref = (await self.done("POST", "/bookings", wish, held["holdToken"]))["ref"]
        await self.pay(ref, held["holdToken"])
        return ref, held["holdToken"]

    async def pay(self, ref: str, token: str) -> Any:
        begun = await self.done("POST", "/payments/initiate", {"bookingRef": ref, "provider": "SIMULATED_CARD"}, token)
        return await self.done("POST", "/payments/confirm", {"paymentId": begun["id"]}, token)

    async def send_refunds(self) -> None:
        for row in await self.world.run("select refund_id from money.refund where state = 'PENDING'"):
            await self.desk.paying.run_refund(str(row[0]))

    @property
    def admin(self) -> dict[str, str]:
        return self.as_("PARTNER_ADMIN", "north")


@pytest.fixture
async def house(database_url: str, redis_url: str) -> AsyncIterator[House]:
    made = await House.make(database_url, redis_url, ROUTERS)
    assert isinstance(made, House)
    yield made
    await made.close()


async def test_a_booking_is_cancelled_by_an_offer_and_its_confirmation_and_then_refunded(house: House) -> None:
    ref, token = await house.sold("1A", "1B")
    paid = (await house.done("GET", f"/bookings/{ref}", token=token))["total"]["amount"]
    offer = await house.done("PATCH", f"/bookings/{ref}/cancel", {}, token)
    assert offer["status"] == "CONFIRMED" and offer["expiresAt"].endswith("Z")
    assert offer["fee"]["amount"] + offer["refund"]["amount"] == paid
    assert offer["fee"]["amount"] == paid // 10  # more than a day before: the plan keeps a tenth
    done = await house.done("PATCH", f"/bookings/{ref}/cancel", {"offerId": offer["offerId"]}, token)
    assert (done["status"], done["refund"]) == ("CANCELLED", offer["refund"])
    again = await house.done("PATCH", f"/bookings/{ref}/cancel", {"offerId": offer["offerId"]}, token)
    assert again == done
    await house.send_refunds()
    assert (await house.done("GET", f"/bookings/{ref}", token=token))["status"] == "REFUNDED"
    assert await house.world.value("select sum(refunded) from money.payment") == offer["refund"]["amount"]
    assert await house.world.run("select * from money.unsound()") == []


async def test_without_a_body_the_whole_booking_is_offered(house: House) -> None:
    ref, token = await house.sold("1A")
    answer = await house.http.patch(f"/v1/bookings/{ref}/cancel", headers={"X-Hold-Token": token})
    assert answer.status_code == 200 and answer.json()["seats"] == ["1A"]
    assert answer.headers["etag"] == f'"{answer.json()["version"]}"'


async def test_a_booking_of_somebody_else_and_another_version_are_refused(house: House) -> None:
    ref, token = await house.sold("1A")
    _, other = await house.sold("1B")
    for call in (("PATCH", f"/bookings/{ref}/cancel", {}), ("POST", f"/bookings/{ref}/modify", {"seats": {"1A": "2A"}})):
        problem(await house.call(*call), 404, "NOT_FOUND")
        problem(await house.call(*call, token=other), 404, "NOT_FOUND")
        problem(await house.call(*call, token=token, **{"If-Match": '"99"'}), 412, "PRECONDITION_FAILED")
    problem(await house.call("PATCH", "/bookings/ZZZZZZ/cancel", {}), 404, "NOT_FOUND")
    problem(await house.call("PATCH", f"/bookings/{ref}/cancel", {"offerId": "x"}, token), 400, "INVALID")


async def test_a_key_answers_the_same_again_and_refuses_another_body(house: House) -> None:
    ref, token = await house.sold("1A")
    key = {"Idempotency-Key": "one"}
    first = await house.call("PATCH", f"/bookings/{ref}/cancel", {}, token, **key)
    again = await house.call("PATCH", f"/bookings/{ref}/cancel", {}, token, **key)
    assert again.json() == first.json() and again.headers["idempotency-replayed"] == "true"
    problem(await house.call("PATCH", f"/bookings/{ref}/cancel", {"seats": ["1A"]}, token, **key), 422, "IDEMPOTENCY_KEY_REUSED")


async def test_names_and_seats_change_and_a_taken_seat_is_named(house: House) -> None:
    ref, token = await house.sold("1A", "1B")
    await house.sold("2B")
    named = await house.done("POST", f"/bookings/{ref}/modify", {"passengers": [{"seat": "1A", "lastName": "Kaci"}]}, token)
    assert [one["lastName"] for one in named["booking"]["passengers"]] == ["Kaci", "Benaïssa"]
    moved = await house.done("POST", f"/bookings/{ref}/modify", {"seats": {"1A": "2A"}}, token)
    assert [one["seat"] for one in moved["booking"]["passengers"]] == ["1B", "2A"]
    assert moved["version"] == moved["booking"]["version"]
    refusal = problem(await house.call("POST", f"/bookings/{ref}/modify", {"seats": {"1B": "2B"}}, token), 409, "SEAT_TAKEN")
    assert [one["pointer"] for one in refusal["errors"]] == ["/seats/2B"]
    for nothing in ({}, {"seats": ["2A"]}, {"passengers": [{"seat": "1B"}], "seats": {"1B": "1C"}}):
        problem(await house.call("POST", f"/bookings/{ref}/modify", nothing, token), 400, "INVALID")


async def test_another_trip_is_paid_for_by_the_difference(house: House) -> None:
    ref, token = await house.sold("1A", to="demo:B")
    before = (await house.done("GET", f"/bookings/{ref}", token=token))["total"]["amount"]
    other, _ = await house.world.trip(departs_in=timedelta(days=4))
    wish = {"tripId": other, "seats": ["3C"], "to": "demo:F"}
    asked = await house.done("POST", f"/bookings/{ref}/modify", wish, token)
    assert asked["status"] == "PENDING_PAYMENT" and asked["due"]["amount"] > 0
    assert asked["booking"]["status"] == "CONFIRMED"
    await house.pay(asked["payRef"], asked["holdToken"])
    for reference in (ref, asked["payRef"]):
        after = await house.done("GET", f"/bookings/{reference}", token=token)
        assert after["status"] == "CONFIRMED" and after["total"]["amount"] == before + asked["due"]["amount"]
    found = await house.done("GET", f"/bookings/{asked['payRef']}/ticket", token=asked["holdToken"])
    assert [(one["seat"], one["tripId"]) for one in found["tickets"]] == [("3C", other)]
    assert await house.world.run("select * from money.unsound()") == []


async def test_a_bus_is_swapped_and_tickets_stay_good(house: House) -> None:
    ref, token = await house.sold("1A", "3D")
    (first, _) = (await house.done("GET", f"/bookings/{ref}/ticket", token=token))["tickets"]
    await ChangingWorld.draw(house.world, "two-rows", 2, first=11)  # type: ignore[arg-type]
    picked = await house.desk.picks.pick(await house.desk.catalogue.trip(house.world.trip_id), ["2A"], 0, 5)
    path = f"/trips/{house.world.trip_id}/swap-bus"
    plan = await house.done("POST", path, {"layoutId": "two-rows", "plan": True}, **house.admin)
    assert not plan["committed"] and [(one["seat"], one["rule"]) for one in plan["moves"]] == [("1A", "POSITION"), ("3D", "TOGETHER")]
    done = await house.done("POST", path, {"planId": plan["planId"]}, **house.admin)
    assert (done["committed"], done["mapVersion"], done["moved"], done["overflow"]) == (True, 2, 2, [])
    verified = await house.done("POST", "/tickets/verify", {"qr": first["qr"], "tripId": house.world.trip_id})
    assert (verified["result"], verified["seat"]) == ("VALID", "11A")
    shown = await house.done("GET", f"/bookings/{ref}", token=token)
    assert "11A" in [one["seat"] for one in shown["passengers"]]
    assert (await house.desk.picks.picture(house.world.trip_id)).picks == {}
    assert await house.desk.picks.unpick(await house.desk.catalogue.trip(house.world.trip_id), picked.pick_id) == 0


async def test_only_the_operator_swaps_cancels_and_stops_sales(house: House) -> None:
    trip = f"/trips/{house.world.trip_id}"
    calls: tuple[tuple[str, dict[str, Any]], ...] = (
        (f"{trip}/swap-bus", {"layoutId": "twelve", "plan": True}), (f"{trip}/cancel", {}), (f"{trip}/sales", {"open": False}),
    )  # fmt: skip
    for path, body in calls:
        problem(await house.call("POST", path, body), 401, "UNAUTHENTICATED")
        problem(await house.call("POST", path, body, **house.as_("AGENT", "north")), 403, "FORBIDDEN")
        problem(await house.call("POST", path, body, **house.as_("PARTNER_ADMIN", "south")), 404, "NOT_FOUND")
    problem(await house.call("POST", f"{trip}/swap-bus", {}, **house.admin), 400, "INVALID")
    problem(await house.call("POST", f"{trip}/swap-bus", {"planId": "0" * 32}, **house.admin), 404, "NOT_FOUND")
    answer = await house.http.post(f"/v1{trip}/cancel", json={}, headers=house.admin)
    problem(answer, 400, "IDEMPOTENCY_KEY_REQUIRED")


async def test_a_cancelled_trip_gives_everybody_their_money_and_says_how_far_it_is(house: House) -> None:
    ref, token = await house.sold("1A")
    trip = f"/trips/{house.world.trip_id}"
    problem(await house.call("GET", f"{trip}/cancellation", **house.admin), 404, "NOT_FOUND")
    said = await house.done("POST", f"{trip}/cancel", {"reason": "snow"}, **house.admin)
    assert (said["status"], said["bookings"]) == ("CANCELLED", 1)
    await house.desk.cancelled_trips.step()
    await house.send_refunds()
    assert (await house.done("GET", f"/bookings/{ref}", token=token))["status"] == "REFUNDED"
    far = await house.done("GET", f"{trip}/cancellation", **house.admin)
    assert (far["reason"], far["bookings"], far["finishedAt"] is not None) == ("snow", 1, True)
    wish = {"seats": ["2A"], "from": "demo:A", "to": "demo:F"}
    problem(await house.call("POST", f"{trip}/holds", wish), 409, "SALES_CLOSED")


async def test_money_that_comes_after_the_trip_was_cancelled_goes_back(house: House) -> None:
    held = await house.done("POST", f"/trips/{house.world.trip_id}/holds", {"seats": ["1A"], "from": "demo:A", "to": "demo:F"})
    people = [{"seat": "1A", "firstName": "Amal", "lastName": "Benaïssa"}]
    wish = {"holdId": held["id"], "passengers": people, "contact": {"email": "a@example.org"}}
    ref, token = (await house.done("POST", "/bookings", wish, held["holdToken"]))["ref"], held["holdToken"]
    begun = await house.done("POST", "/payments/initiate", {"bookingRef": ref, "provider": "SIMULATED_CARD"}, token)
    problem(await house.call("PATCH", f"/bookings/{ref}/cancel", {}, token), 409, "PAYMENT_IN_PROGRESS")
    await house.done("POST", f"/trips/{house.world.trip_id}/cancel", None, **house.admin)
    await house.desk.cancelled_trips.step()
    answer = await house.call("POST", "/payments/confirm", {"paymentId": begun["id"]}, token)
    assert answer.json().get("code") == "PAYMENT_REFUNDED", answer.text
    await house.send_refunds()
    assert await house.world.value("select sum(captured - refunded) from money.payment") == 0
    assert (await house.done("GET", f"/bookings/{ref}", token=token))["status"] in ("CANCELLED", "REFUNDED")
    assert await house.world.run("select * from money.unsound()") == []


async def test_cancelled_and_scanned_at_once_a_passenger_travels_or_gets_their_money_never_both(house: House) -> None:
    for seat in ("1A", "1B", "1C", "1D", "2A", "2B"):
        ref, token = await house.sold(seat)
        qr = (await house.done("GET", f"/bookings/{ref}/ticket", token=token))["tickets"][0]["qr"]
        offer = await house.done("PATCH", f"/bookings/{ref}/cancel", {}, token)
        scan = house.call("POST", "/tickets/scans", {"qr": qr, "tripId": house.world.trip_id}, **house.as_("DRIVER", "north"))
        confirm = house.call("PATCH", f"/bookings/{ref}/cancel", {"offerId": offer["offerId"]}, token)
        scanned, cancelled = await asyncio.gather(scan, confirm) if seat[0] == "1" else (await asyncio.gather(confirm, scan))[::-1]
        boarded = scanned.json()["result"] == "BOARDED"
        assert boarded == (cancelled.status_code == 409), (scanned.text, cancelled.text)
        if boarded:  # stale rather than in a wrong state where the scan came first
            assert cancelled.json()["code"] in ("OFFER_STALE", "WRONG_STATE")
        status = (await house.done("GET", f"/bookings/{ref}", token=token))["status"]
        assert status == ("BOARDED" if boarded else "CANCELLED")
    assert await house.world.value("select count(*) from money.refund") == await house.world.value(
        "select count(*) from booking.booking where state = 'CANCELLED'"
    )
