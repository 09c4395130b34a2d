"""Payments and settlements as a client meets them: the four calls of a purchase, refusals, webhooks, statements that add up to the ledger."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api import booking, payments, settlements
from engine.booking.money import Money
from engine.booking.payments import SIGNATURE, Charge, signature, webhook_secret
from engine.booking.providers import CARD
from tests.booking_world import OTHER, PARTNER, SECRET
from tests.seat_house import SeatHouse, problem


class Till(SeatHouse):
    """A desk that takes money."""

    async def post(self, path: str, body: Any, headers: dict[str, str] | None = None, key: str | None = None) -> Any:
        named = {"Idempotency-Key": key or self.world.clock.uuid7()} | (headers or {})
        return await self.http.post(path, json=body, headers=named)

    async def booked(self, *seats: str) -> tuple[str, dict[str, str]]:
        """(reference, headers that open it)."""
        held = await self.post(f"/v1/trips/{self.world.trip_id}/holds", {"seats": list(seats), "from": "demo:A", "to": "demo:F"})
        assert held.status_code == 201, held.text
        mine = {"X-Hold-Token": held.json()["holdToken"]}
        passengers = [{"seat": seat, "firstName": "Amal", "lastName": "Kaci"} for seat in seats]
        body = {"holdId": held.json()["id"], "passengers": passengers, "contact": {"email": "amal@example.org"}}
        made = await self.post("/v1/bookings", body, mine)
        assert made.status_code == 201, made.text
        return made.json()["ref"], mine

    async def paid(self, *seats: str, **more: Any) -> tuple[str, str, dict[str, str]]:
        ref, mine = await self.booked(*seats)
        begun = await self.post("/v1/payments/initiate", {"bookingRef": ref, "provider": CARD, **more}, mine)
        assert begun.status_code == 201, begun.text
        done = await self.post("/v1/payments/confirm", {"paymentId": begun.json()["id"]}, mine)
        assert done.status_code == 200, done.text
        return ref, begun.json()["id"], mine


@pytest.fixture
async def till(database_url: str, redis_url: str) -> AsyncIterator[Till]:
    till = await Till.make(database_url, redis_url, (*booking.ROUTERS, *payments.ROUTERS, *settlements.ROUTERS))
    assert isinstance(till, Till)
    yield till
    assert await till.desk.paying.store.unsound() == []
    await till.close()


async def test_a_booking_goes_from_hold_to_confirmed_in_four_calls(till: Till) -> None:
    ref, mine = await till.booked("1A", "1B")
    begun = await till.post("/v1/payments/initiate", {"bookingRef": ref.lower(), "provider": CARD}, mine)
    assert begun.status_code == 201
    assert begun.json().keys() >= {"id", "status", "amount"}
    assert begun.json()["status"] == "INITIATED" and begun.json()["amount"]["currency"] == "DZD"
    done = await till.post("/v1/payments/confirm", {"paymentId": begun.json()["id"]}, mine)
    assert done.status_code == 200
    assert {"id": begun.json()["id"], "status": "CONFIRMED", "bookingRef": ref}.items() <= done.json().items()
    assert (await till.http.get(f"/v1/bookings/{ref}", headers=mine)).json()["status"] == "CONFIRMED"
    assert (await till.http.get(f"/v1/payments/{begun.json()['id']}/status", headers=mine)).json()["status"] == "CONFIRMED"


async def test_the_same_key_gets_the_first_answer_and_another_body_is_refused(till: Till) -> None:
    ref, mine = await till.booked("1A")
    body = {"bookingRef": ref, "provider": CARD}
    first, second = [await till.post("/v1/payments/initiate", body, mine, key="k-1") for _ in range(2)]
    assert second.json() == first.json() and second.headers["Idempotency-Replayed"] == "true"
    problem(
        await till.post("/v1/payments/initiate", body | {"provider": "SIMULATED_MOBILE_MONEY"}, mine, key="k-1"),
        422,
        "IDEMPOTENCY_KEY_REUSED",
    )
    problem(await till.http.post("/v1/payments/initiate", json=body, headers=mine), 400, "IDEMPOTENCY_KEY_REQUIRED")


@pytest.mark.parametrize(
    "number", ["4111111111111111", "4111 1111 1111 1111", "4111-1111-1111-1111", 4111111111111111, "my card is 378282246310005!"]
)
async def test_a_card_number_is_refused_and_never_repeated(till: Till, number: Any, caplog: pytest.LogCaptureFixture) -> None:
    ref, mine = await till.booked("1A")
    for body in (
        {"bookingRef": ref, "provider": CARD, "card": {"number": number}},
        {"bookingRef": ref, "provider": CARD, "scenario": str(number)[:40]},
    ):
        said = problem(await till.post("/v1/payments/initiate", body, mine), 400, "CARD_NUMBER_REFUSED")
        assert "1111" not in json.dumps(said) and "378282246310005" not in json.dumps(said)
    assert "4111" not in caplog.text


async def test_what_is_not_yours_or_not_there_is_not_found(till: Till) -> None:
    ref, payment_id, _ = await till.paid("1A")
    confirm = "/v1/payments/confirm"
    for stranger in ({}, till.as_("CUSTOMER"), till.as_("AGENT", "south"), till.as_("PARTNER_ADMIN", "south")):
        problem(await till.post("/v1/payments/initiate", {"bookingRef": ref, "provider": CARD}, stranger), 404, "NOT_FOUND")
        problem(await till.post(confirm, {"paymentId": payment_id}, stranger), 404, "NOT_FOUND")
        problem(await till.http.get(f"/v1/payments/{payment_id}/status", headers=stranger), 404, "NOT_FOUND")
    problem(await till.http.get("/v1/payments/nothing/status"), 404, "NOT_FOUND")
    refund = {"paymentId": payment_id, "amount": {"amount": 1, "currency": "DZD"}}
    problem(await till.post("/v1/payments/refund", refund, till.as_("AGENT", "south")), 404, "NOT_FOUND")
    problem(await till.post("/v1/payments/refund", refund), 401, "UNAUTHENTICATED")
    problem(await till.post("/v1/payments/refund", refund, till.as_("CUSTOMER")), 403, "FORBIDDEN")


async def test_bad_requests_have_a_code_and_leave_nothing(till: Till) -> None:
    ref, mine = await till.booked("1A")
    start = "/v1/payments/initiate"
    problem(await till.post(start, {"bookingRef": ref, "provider": "PAYPAL"}, mine), 400, "INVALID")
    problem(await till.post(start, {"bookingRef": ref, "provider": CARD, "scenario": "FREE_MONEY"}, mine), 400, "INVALID")
    problem(await till.post(start, {"bookingRef": "ZZZZZZ", "provider": CARD}, mine), 404, "NOT_FOUND")
    problem(await till.post("/v1/payments/confirm", {"paymentId": "x"}, mine), 400, "INVALID")
    desk = till.as_("AGENT", PARTNER)
    for amount in (0, -1, 10**30, 1.5):
        problem(
            await till.post("/v1/payments/refund", {"bookingRef": ref, "amount": {"amount": amount, "currency": "DZD"}}, desk),
            400,
            "INVALID",
        )
    problem(await till.post("/v1/payments/refund", {"amount": {"amount": 1, "currency": "DZD"}}, desk), 400, "INVALID")
    assert await till.world.value("select count(*) from money.payment") == 0


async def test_a_declined_card_is_402_and_another_try_is_welcome(till: Till) -> None:
    ref, mine = await till.booked("1A")
    begun = await till.post("/v1/payments/initiate", {"bookingRef": ref, "provider": CARD, "scenario": "DECLINE"}, mine)
    problem(await till.post("/v1/payments/confirm", {"paymentId": begun.json()["id"]}, mine), 402, "PAYMENT_FAILED")
    again = await till.post("/v1/payments/initiate", {"bookingRef": ref, "provider": CARD}, mine)
    assert again.status_code == 201


async def test_a_wallet_that_has_not_answered_is_202(till: Till) -> None:
    ref, mine = await till.booked("1A")
    begun = await till.post(
        "/v1/payments/initiate", {"bookingRef": ref, "provider": "SIMULATED_MOBILE_MONEY", "scenario": "NO_ANSWER"}, mine
    )
    waits = await till.post("/v1/payments/confirm", {"paymentId": begun.json()["id"]}, mine)
    assert (waits.status_code, waits.json()["status"], waits.headers["Retry-After"]) == (202, "IN_PROGRESS", "2")


async def test_a_refund_gives_back_what_was_paid_and_no_more(till: Till) -> None:
    ref, payment_id, _ = await till.paid("1A")
    desk = till.as_("AGENT", PARTNER)
    paid = (await till.http.get(f"/v1/payments/{payment_id}/status", headers=desk)).json()["amount"]
    done = await till.post("/v1/payments/refund", {"bookingRef": ref, "amount": paid | {"amount": 100}, "reason": "late"}, desk)
    assert (done.status_code, done.json()["status"], done.json()["paymentId"]) == (201, "DONE", payment_id)
    problem(await till.post("/v1/payments/refund", {"paymentId": payment_id, "amount": paid}, desk), 409, "REFUND_TOO_MUCH")
    euros = {"amount": 1, "currency": "EUR"}
    problem(await till.post("/v1/payments/refund", {"paymentId": payment_id, "amount": euros}, desk), 422, "WRONG_CURRENCY")


async def test_a_webhook_is_taken_with_its_signature_and_refused_without(till: Till) -> None:
    hook, secret = f"/v1/payments/webhooks/{CARD}", webhook_secret(SECRET, CARD)
    body = b'{"events":[]}'
    now_ms = till.world.clock.now_ms()
    good = {SIGNATURE: signature(secret, body, now_ms)}
    assert (await till.http.post(hook, content=body, headers=good)).json() == {"received": 0}
    problem(await till.http.post(hook, content=body), 401, "UNAUTHENTICATED")
    problem(await till.http.post(hook, content=body + b" ", headers=good), 401, "UNAUTHENTICATED")
    old = {SIGNATURE: signature(secret, body, now_ms - 400_000)}
    problem(await till.http.post(hook, content=body, headers=old), 401, "UNAUTHENTICATED")
    problem(await till.http.post("/v1/payments/webhooks/NOBODY", content=body, headers=good), 404, "NOT_FOUND")
    for junk, code in ((b"not json", "MALFORMED_BODY"), (b'{"events":[{}]}', "INVALID"), (b"[" * 5_000, "INVALID")):
        problem(await till.http.post(hook, content=junk, headers={SIGNATURE: signature(secret, junk, now_ms)}), 400, code)
    assert await till.world.value("select count(*) from money.fact") == 0


async def test_a_statement_adds_up_to_the_ledger_as_json_and_as_csv(till: Till) -> None:
    ref, _, _ = await till.paid("1A")
    await till.paid("1B", "1C")
    desk, admin = till.as_("AGENT", PARTNER), till.as_("PARTNER_ADMIN", PARTNER)
    await till.post("/v1/payments/refund", {"bookingRef": ref, "amount": {"amount": 3_333, "currency": "DZD"}}, desk)
    owed = await till.world.value("select sum(credit - debit)::bigint from money.ledger where account = 'PARTNER'")
    earned = await till.world.value("select sum(credit - debit)::bigint from money.ledger where account = 'COMMISSION'")
    told = (await till.http.get("/v1/settlements", headers=admin)).json()
    [statement] = told["items"]
    assert (statement["currency"], statement["opening"], statement["closing"]) == ("DZD", 0, owed)
    assert sum(line["net"] for line in statement["lines"]) == owed
    assert sum(line["commission"] for line in statement["lines"]) == earned
    assert {line["kind"]: line["count"] for line in statement["lines"]} == {"SALE": 2, "REFUND": 1}
    page = await till.http.get("/v1/settlements", headers=admin | {"Accept": "text/csv"})
    assert page.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(page.text)))
    assert sum(int(row["net"]) for row in rows) == owed
    assert sum(int(row["gross"]) - int(row["commission"]) for row in rows) == owed
    assert {row["bookingRef"] for row in rows} >= {ref}
    problem(
        await till.http.get("/v1/settlements", headers=till.as_("PARTNER_ADMIN", "south"), params={"partner": PARTNER}), 404, "NOT_FOUND"
    )
    assert (await till.http.get("/v1/settlements", headers=till.as_("PARTNER_ADMIN", "south"))).json()["items"] == []


async def test_a_period_is_paid_out_once_and_the_next_begins_where_it_ended(till: Till) -> None:
    await till.paid("1A")
    owed = await till.world.value("select sum(credit - debit)::bigint from money.ledger where account = 'PARTNER'")
    boss = till.as_("SUPER_ADMIN")
    now = datetime.now(UTC)
    body = {"partnerId": PARTNER, "currency": "DZD", "to": (now - timedelta(hours=1)).isoformat()}
    problem(await till.post("/v1/settlements", body, boss), 409, "NOTHING_TO_SETTLE")
    problem(await till.post("/v1/settlements", body | {"to": (now + timedelta(hours=1)).isoformat()}, boss), 400, "INVALID")
    problem(await till.post("/v1/settlements", body, till.as_("PARTNER_ADMIN", PARTNER)), 403, "FORBIDDEN")
    ahead = till.parts.clock.now_ms() + 3_600_000
    till.parts.clock = _At(till.parts.clock, ahead)
    body["to"] = (now + timedelta(minutes=30)).isoformat()
    first = await till.post("/v1/settlements", body, till.as_("SUPER_ADMIN"))
    assert first.status_code == 201, first.text
    assert first.json()["amount"] == {"amount": owed, "currency": "DZD"}
    assert (await till.post("/v1/settlements", body, till.as_("SUPER_ADMIN"))).json()["id"] == first.json()["id"]
    assert await till.world.value("select sum(credit - debit)::bigint from money.ledger where account = 'PARTNER'") == 0
    assert await till.world.value("select sum(credit - debit)::bigint from money.ledger where account = 'BANK'") == owed
    told = (await till.http.get("/v1/settlements", headers=till.as_("PARTNER_ADMIN", PARTNER))).json()
    assert [one["id"] for one in told["settlements"]] == [first.json()["id"]]
    assert told["items"][0]["closing"] == 0


class _At:
    """Another clock, put ahead."""

    def __init__(self, clock: Any, now_ms: int) -> None:
        self._clock, self._now_ms = clock, now_ms

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)

    def now_ms(self) -> int:
        return self._now_ms


async def test_money_that_came_too_late_is_other_seats_or_the_money(till: Till) -> None:
    world = till.world
    ref, mine = await till.booked("1A")
    begun = await till.post("/v1/payments/initiate", {"bookingRef": ref, "provider": CARD}, mine)
    payment_id = begun.json()["id"]
    seats = f"/v1/payments/{payment_id}/seats"
    problem(await till.post(seats, {"refund": True, "trips": [{"tripId": world.trip_id, "seats": ["2A"]}]}, mine), 400, "INVALID")
    problem(await till.post(seats, {"trips": [{"tripId": world.trip_id, "seats": ["2A"]}]}, mine), 409, "NOTHING_OFFERED")
    await world.run("update money.payment set deadline_at = clock_timestamp(), next_try_at = clock_timestamp()")
    await till.desk.paying.reconcile()
    await world.run("update booking.booking set expires_at = clock_timestamp() - interval '1 s' where reference = $1", ref)
    await world.run("select booking.expire(array_agg(booking_id), 'sweep') from booking.booking where reference = $1", ref)
    await till.paid("1A")
    charge = Charge(payment_id=payment_id, reference=ref, amount=Money(**begun.json()["amount"]))
    await till.desk.paying.providers[CARD].capture(payment_id, charge)
    await world.run("update money.payment set next_try_at = clock_timestamp() where payment_id = $1", payment_id)
    await till.desk.paying.reconcile()
    problem(await till.post("/v1/payments/confirm", {"paymentId": payment_id}, mine), 409, "OFFER_OTHER_SEATS")
    problem(await till.post(seats, {"trips": [{"tripId": world.trip_id, "seats": ["1A"]}]}, mine), 409, "SEAT_TAKEN")
    problem(await till.post(seats, {"trips": [{"tripId": world.trip_id, "seats": ["9Z"]}]}, mine), 400, "INVALID")
    problem(await till.post(seats, {"trips": [{"tripId": world.trip_id, "seats": ["2A"]}]}), 404, "NOT_FOUND")
    done = await till.post(seats, {"trips": [{"tripId": world.trip_id, "seats": ["2A"]}]}, mine)
    assert (done.status_code, done.json()["status"]) == (200, "CONFIRMED")
    shown = (await till.http.get(f"/v1/bookings/{ref}", headers=mine)).json()
    assert (shown["status"], shown["trips"][0]["seats"]) == ("CONFIRMED", ["2A"])


@pytest.mark.parametrize("odd", ["\x00", "A\x00B", "é" * 20, "' or 1=1", "%00", "K7MWXQ\n"])
async def test_odd_texts_are_answered_without_a_fault_of_ours(till: Till, odd: str) -> None:
    desk = till.as_("SUPER_ADMIN")
    answers = [
        await till.post("/v1/payments/initiate", {"bookingRef": odd, "provider": CARD}),
        await till.post("/v1/payments/initiate", {"bookingRef": "K7MWXQ", "provider": odd, "scenario": [odd]}),
        await till.post("/v1/payments/refund", {"bookingRef": odd, "reason": odd, "amount": {"amount": 1, "currency": "DZD"}}, desk),
        await till.http.get("/v1/settlements", params={"partner": odd, "from": odd}, headers=desk),
        await till.http.get("/v1/settlements", params={"partner": odd}, headers=desk),
        await till.post("/v1/settlements", {"partnerId": odd, "currency": "DZD", "to": "2026-01-01T00:00:00Z"}, desk),
    ]
    assert {answer.status_code for answer in answers} <= {200, 400, 404, 409}


async def test_a_line_end_behind_an_id_or_an_address_is_refused_and_no_fault_of_ours(till: Till) -> None:
    ref, mine = await till.booked("1A")
    begun = await till.post("/v1/payments/initiate", {"bookingRef": ref, "provider": CARD}, mine)
    problem(await till.post("/v1/payments/confirm", {"paymentId": begun.json()["id"] + "\n"}, mine), 400, "INVALID")
    problem(await till.http.get(f"/v1/holds/{begun.json()['id']}%0A", headers=mine), 404, "NOT_FOUND")
    passenger = {"seat": "1A", "firstName": "Amal", "lastName": "Kaci"}
    body = {"holdId": begun.json()["id"], "passengers": [passenger], "contact": {"email": "amal@example.org\n"}}
    problem(await till.post("/v1/bookings", body, mine), 400, "INVALID")


async def test_bookings_are_listed_page_by_page_each_once_and_to_nobody_elses_operator(till: Till) -> None:
    made = [(await till.booked(seat))[0] for seat in ("1A", "1B", "1C")]
    ours = till.as_("AGENT", PARTNER)

    async def pages(**params: str) -> list[str]:
        refs: list[str] = []
        cursor: str | None = None
        while True:
            asked = {"limit": "2", **params} | ({"cursor": cursor} if cursor else {})
            page = (await till.http.get("/v1/bookings", params=asked, headers=ours)).json()
            refs += [item["ref"] for item in page["items"]]
            if (cursor := page["nextCursor"]) is None:
                return refs

    assert await pages() == await pages(trip=till.world.trip_id) == made[::-1]
    foreign = await till.http.get("/v1/bookings", headers=till.as_("AGENT", OTHER), params={"trip": till.world.trip_id})
    assert foreign.json() == {"items": [], "nextCursor": None}
    problem(await till.http.get("/v1/bookings", params={"cursor": "17"}, headers=ours), 400, "INVALID")
