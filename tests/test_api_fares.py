"""What an operator offers and what a ride costs, as clients meet it: prices with their reasons, edits by version, nobody else's things."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from api import booking, fares, promos, quotes
from api.openapi import BODIES
from engine.tracking.plans import Plan
from tests import small_world
from tests.booking_world import OTHER, PARTNER
from tests.seat_house import SeatHouse, problem

PLAN = {
    "currency": "DZD",
    "base": {"kind": "PER_KM", "perKm": 1000, "start": 10_000},
    "step": 1_000,
    "types": {"ADULT": 1000, "CHILD": 500},
    "demand": [{"fromPermille": 0, "permille": 1200}],
    "bookingFee": 700,
    "ancillaries": [{"code": "BAG", "kind": "BAGGAGE", "name": "Second bag", "price": 3_000, "stock": 2, "maxPerPassenger": 2}],
}


class OneFeed:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def get(self, feed_id: str) -> Plan | None:
        return self.plan if feed_id == self.plan.feed_id else None

    def all(self) -> list[Plan]:
        return [self.plan]


class FareHouse(SeatHouse):
    async def ask(self, method: str, path: str, body: Any = None, *, who: dict[str, str] | None = None, **headers: str) -> Any:
        """The answer, as PARTNER_ADMIN of the world's operator unless somebody else asks."""
        given = self.as_("PARTNER_ADMIN", PARTNER) if who is None else who
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.request(method, path, json=body, headers=given | more)

    async def made(self, path: str, body: Any, **more: Any) -> Any:
        answer = await self.ask("POST", path, body, **more)
        assert answer.status_code == 201, answer.text
        return answer

    async def changes(self, kind: str) -> list[tuple[int, str]]:
        rows = await self.world.run("select version, partner_id from office.outbox where kind = $1 order by version", kind)
        assert len(await self.world.run("select from office.audit where action = $1", f"partner.{kind}")) == len(rows)
        return [(row[0], row[1]) for row in rows]


@pytest.fixture
async def house(database_url: str, redis_url: str) -> AsyncIterator[FareHouse]:
    routers = (*booking.ROUTERS, *fares.ROUTERS, *promos.ROUTERS, *quotes.ROUTERS)
    made = await FareHouse.make(database_url, redis_url, routers)
    assert isinstance(made, FareHouse)
    made.parts.plans = OneFeed(Plan("demo", PARTNER, small_world.feed()))  # type: ignore[assignment]
    yield made
    await made.close()


async def priced(house: FareHouse) -> str:
    """The world's trip, sold with PLAN."""
    await house.made("/v1/admin/fare-plans", {"id": "coach", "name": "Coaches", "plan": PLAN})
    await house.world.run("update sale.trip_instance set fare_plan_id = 'coach'")
    return f"/v1/trips/{house.world.trip_id}"


# ------------------------------------------------------------------------------------------------ fare plans


async def test_a_fare_plan_lives_from_its_making_to_its_end(house: FareHouse) -> None:
    made = await house.made("/v1/admin/fare-plans", {"id": "coach", "name": "Coaches", "plan": PLAN})
    assert made.headers["etag"] == '"1"'
    assert made.json()["plan"]["base"] == {"kind": "PER_KM", "perKm": 1000, "start": 10_000}
    read = await house.ask("GET", "/v1/admin/fare-plans/coach")
    assert read.json() == made.json()
    edited = await house.ask("PATCH", "/v1/admin/fare-plans/coach", {"plan": PLAN | {"step": 500}}, If_Match='"1"')
    assert (edited.status_code, edited.headers["etag"], edited.json()["plan"]["step"]) == (200, '"2"', 500)
    problem(await house.ask("PATCH", "/v1/admin/fare-plans/coach", {"name": "Late"}, If_Match='"1"'), 412, "PRECONDITION_FAILED")
    retired = await house.ask("DELETE", "/v1/admin/fare-plans/coach")
    assert retired.json()["retiredAt"] is not None
    assert (await house.ask("DELETE", "/v1/admin/fare-plans/coach")).json() == retired.json(), "twice is once"
    problem(await house.ask("PATCH", "/v1/admin/fare-plans/coach", {"name": "Again"}), 409, "CONFLICT")
    listed = await house.ask("GET", "/v1/admin/fare-plans")
    assert [item["id"] for item in listed.json()["items"]] == ["plain"], "the retired one is left out"
    assert await house.changes("FARE_PLAN_CHANGED") == [(1, PARTNER), (2, PARTNER), (3, PARTNER)]


async def test_a_plan_that_contradicts_itself_is_refused_with_pointers_and_leaves_nothing(house: FareHouse) -> None:
    for change, pointer in (
        ({"currency": "dinar"}, "/plan/currency"), ({"step": 0}, "/plan/step"), ({"types": {"CHILD": 500}}, "/plan/types"),
        ({"base": {"kind": "PER_KM", "perKm": 1.5}}, "/plan/base/perKm"), ({"base": {"kind": "PER_KM", "perKm": 10**30}}, "/plan/base/perKm"),
    ):  # fmt: skip
        refused = problem(
            await house.ask("POST", "/v1/admin/fare-plans", {"id": "odd", "name": "Odd", "plan": PLAN | change}), 400, "INVALID"
        )
        assert [fault["pointer"] for fault in refused["errors"]] == [pointer]
    problem(await house.ask("GET", "/v1/admin/fare-plans/odd"), 404, "NOT_FOUND")
    assert await house.changes("FARE_PLAN_CHANGED") == []


async def test_a_plan_keeps_its_currency_and_its_id(house: FareHouse) -> None:
    body = {"id": "coach", "name": "Coaches", "plan": PLAN}
    await house.made("/v1/admin/fare-plans", body)
    problem(await house.ask("POST", "/v1/admin/fare-plans", body), 409, "CONFLICT")
    problem(await house.ask("PATCH", "/v1/admin/fare-plans/coach", {"plan": PLAN | {"currency": "JPY"}}), 400, "INVALID")


async def test_the_same_key_makes_a_plan_once(house: FareHouse) -> None:
    body = {"id": "coach", "name": "Coaches", "plan": PLAN}
    first = await house.made("/v1/admin/fare-plans", body, Idempotency_Key="one")
    again = await house.made("/v1/admin/fare-plans", body, Idempotency_Key="one")
    assert first.json() == again.json() and again.headers["idempotency-replayed"] == "true"
    problem(await house.ask("POST", "/v1/admin/fare-plans", body | {"name": "X"}, Idempotency_Key="one"), 422, "IDEMPOTENCY_KEY_REUSED")


@pytest.mark.parametrize("path", ["/v1/admin/fare-plans", "/v1/admin/promo-codes", "/v1/admin/offers"])
async def test_offers_are_for_those_who_run_the_operator(house: FareHouse, path: str) -> None:
    problem(await house.ask("GET", path, who={}), 401, "UNAUTHENTICATED")
    for role in ("CUSTOMER", "AGENT", "DRIVER"):
        problem(await house.ask("GET", path, who=house.as_(role, PARTNER)), 403, "FORBIDDEN")
    problem(await house.ask("GET", f"{path}?partner={OTHER}"), 404, "NOT_FOUND")
    assert (await house.ask("GET", path, who=house.as_("SUPER_ADMIN"))).status_code == 200


async def test_another_operators_things_are_unknown(house: FareHouse) -> None:
    await house.made("/v1/admin/fare-plans", {"id": "coach", "name": "Coaches", "plan": PLAN})
    await house.made("/v1/admin/promo-codes", {"code": "SPRING", "kind": "PERCENT", "value": 100})
    await offered(house)
    stranger = house.as_("PARTNER_ADMIN", OTHER)
    for path, body in (("fare-plans/coach", {"name": "Mine"}), ("promo-codes/SPRING", {"maxUses": 1}), ("offers/demo:R", {"openDays": 1})):
        for method, sent in (("GET", None), ("PATCH", body), ("DELETE", None)):
            problem(await house.ask(method, f"/v1/admin/{path}", sent, who=stranger), 404, "NOT_FOUND")
            assert (await house.ask("GET", f"/v1/admin/{path}")).json()["version"] == 1
    assert (await house.ask("GET", "/v1/admin/fare-plans", who=stranger)).json()["items"] == []


async def test_a_super_admin_works_for_the_operator_it_names(house: FareHouse) -> None:
    boss = house.as_("SUPER_ADMIN")
    made = await house.made("/v1/admin/fare-plans", {"id": "coach", "name": "C", "plan": PLAN, "partnerId": OTHER}, who=boss)
    assert made.json()["partnerId"] == OTHER
    nobody = {"id": "coach", "name": "C", "plan": PLAN, "partnerId": "nobody"}
    problem(await house.ask("POST", "/v1/admin/fare-plans", nobody, who=boss), 404, "NOT_FOUND")
    everybody = await house.ask("GET", "/v1/admin/fare-plans?limit=1", who=boss)
    rest = await house.ask("GET", f"/v1/admin/fare-plans?limit=5&cursor={everybody.json()['nextCursor']}", who=boss)
    assert [item["partnerId"] for item in everybody.json()["items"] + rest.json()["items"]] == [OTHER, PARTNER]


# ------------------------------------------------------------------------------------------------ promo codes


async def test_a_promo_code_lives_from_its_making_to_its_end(house: FareHouse) -> None:
    made = await house.made(
        "/v1/admin/promo-codes", {"code": "spring-26", "kind": "FIXED", "value": 5_000, "currency": "DZD", "maxUses": 2}
    )
    assert (made.json()["code"], made.json()["used"]) == ("SPRING-26", 0)
    edited = await house.ask(
        "PATCH", "/v1/admin/promo-codes/Spring-26", {"maxUses": None, "validTo": "2199-01-01T00:00:00Z"}, If_Match='"1"'
    )
    assert (edited.json()["maxUses"], edited.json()["validTo"]) == (None, "2199-01-01T00:00:00.000Z")
    problem(await house.ask("PATCH", "/v1/admin/promo-codes/SPRING-26", {"maxUses": 1}, If_Match='"1"'), 412, "PRECONDITION_FAILED")
    problem(await house.ask("POST", "/v1/admin/promo-codes", {"code": "SPRING-26", "kind": "PERCENT", "value": 1}), 409, "CONFLICT")
    assert (await house.ask("DELETE", "/v1/admin/promo-codes/SPRING-26")).json()["retiredAt"] is not None
    assert (await house.ask("GET", "/v1/admin/promo-codes")).json()["items"] == []
    assert len((await house.ask("GET", "/v1/admin/promo-codes?retired=true")).json()["items"]) == 1
    assert [version for version, _ in await house.changes("PROMO_CODE_CHANGED")] == [1, 2, 3]


NO_CODES: list[tuple[dict[str, Any], str]] = [
    ({"code": "A", "kind": "PERCENT", "value": 1}, "/code"),
    ({"code": "ABC", "kind": "PERCENT", "value": 1001}, "/value"),
    ({"code": "ABC", "kind": "PERCENT", "value": -1}, "/value"),
    ({"code": "ABC", "kind": "FIXED", "value": 100}, "/currency"),
    ({"code": "ABC", "kind": "PERCENT", "value": 100, "minAmount": 5}, "/currency"),
    ({"code": "ABC", "kind": "PERCENT", "value": 1, "validTo": "2001-01-01T00:00:00Z"}, "/validTo"),
    ({"code": "ABC", "kind": "PERCENT", "value": 1, "validFrom": "9999-12-31T23:59:59Z"}, "/validFrom"),
    ({"code": "ABC", "kind": "PERCENT", "value": 1, "maxUses": 0}, "/maxUses"),
]  # fmt: skip


async def test_a_code_that_makes_no_sense_is_refused(house: FareHouse) -> None:
    for body, pointer in NO_CODES:
        refused = await house.ask("POST", "/v1/admin/promo-codes", body)
        assert refused.status_code == 400, refused.text
        assert [fault["pointer"] for fault in refused.json()["errors"]] == [pointer]


# ------------------------------------------------------------------------------------------------ offers


async def offered(house: FareHouse, **more: Any) -> Any:
    return await house.made("/v1/admin/offers", {"routeId": "demo:R", "layoutId": "twelve", "farePlanId": "plain"} | more)


async def test_an_offer_names_the_seats_kept_for_women_by_label(house: FareHouse) -> None:
    made = await offered(house, womenOnlySeats=["1B", "1A"], closeS=300)
    assert (made.json()["womenOnlySeats"], made.json()["openDays"]) == (["1A", "1B"], 14)
    assert await house.world.value("select women_only_seats from sale.offer") == [1, 2]
    edited = await house.ask("PATCH", "/v1/admin/offers/demo:R", {"openDays": 30, "closeS": 0}, If_Match='"1"')
    assert (edited.json()["openDays"], edited.json()["closeS"], edited.json()["womenOnlySeats"]) == (30, 0, ["1A", "1B"])
    problem(
        await house.ask("POST", "/v1/admin/offers", {"routeId": "demo:R", "layoutId": "twelve", "farePlanId": "plain"}), 409, "CONFLICT"
    )
    problem(await house.ask("DELETE", "/v1/admin/fare-plans/plain"), 409, "CONFLICT")
    assert (await house.ask("DELETE", "/v1/admin/offers/demo:R")).json()["retiredAt"] is not None
    again = await offered(house)
    assert again.json()["version"] == 4, "a route may be offered again"
    assert [version for version, _ in await house.changes("OFFER_CHANGED")] == [1, 2, 3, 4]


NO_OFFERS: list[tuple[dict[str, Any], str]] = [
    ({"routeId": "demo:NOPE"}, "/routeId"), ({"routeId": "elsewhere"}, "/routeId"), ({"layoutId": "none"}, "/layoutId"),
    ({"farePlanId": "none"}, "/farePlanId"), ({"womenOnlySeats": ["9Z"]}, "/womenOnlySeats/0"), ({"openDays": 0}, "/openDays"),
    ({"closeS": 86_401}, "/closeS"),
]  # fmt: skip


async def test_an_offer_of_what_is_not_there_is_refused(house: FareHouse) -> None:
    for change, pointer in NO_OFFERS:
        refused = await house.ask("POST", "/v1/admin/offers", {"routeId": "demo:R", "layoutId": "twelve", "farePlanId": "plain"} | change)
        assert refused.status_code == 400, refused.text
        assert [fault["pointer"] for fault in refused.json()["errors"]] == [pointer]


# ------------------------------------------------------------------------------------------------ quotes and what is beside the seats


async def test_a_quote_says_what_why_and_how_long_and_a_hold_gets_its_prices(house: FareHouse) -> None:
    path = await priced(house)
    quote = await house.made(
        f"{path}/quotes", {"seats": ["1A", "1B"], "from": "demo:A", "to": "demo:F", "passengers": ["ADULT", "CHILD"]}, who={}
    )
    body = quote.json()
    assert [(seat["seat"], seat["type"]) for seat in body["seats"]] == [("1A", "ADULT"), ("1B", "CHILD")]
    adult, child = (seat["price"]["amount"] for seat in body["seats"])
    assert adult % 1_000 == child % 1_000 == 0 and abs(adult - 2 * child) <= 1_000
    assert body["total"] == {"amount": adult + child + 700, "currency": "DZD"}
    assert (body["multiplier"], [reason["code"] for reason in body["reasons"]]) == (1200, ["BASE", "DEMAND", "BOOKING_FEE"])
    edited = await house.ask("PATCH", "/v1/admin/fare-plans/coach", {"plan": PLAN | {"base": {"kind": "PER_KM", "perKm": 5_000}}})
    assert edited.status_code == 200
    wish = {"seats": ["1A", "1B"], "from": "demo:A", "to": "demo:F"}
    held = await house.made(f"{path}/holds", wish | {"quoteId": body["quoteId"]}, who={}, Idempotency_Key="h1")
    assert [seat["price"]["amount"] for seat in held.json()["seats"]] == [adult, adult], "passengers are not named yet: adults"
    passengers = [
        {"seat": "1A", "firstName": "Amal", "lastName": "Kaci"}, {"seat": "1B", "firstName": "Sami", "lastName": "Kaci", "type": "CHILD"}
    ]  # fmt: skip
    booked = await house.made(
        "/v1/bookings",
        {"holdId": held.json()["id"], "passengers": passengers, "contact": {"email": "a@example.org"}},
        who={"X-Hold-Token": held.json()["holdToken"]},
        Idempotency_Key="b1",
    )
    assert booked.json()["total"] == body["total"]
    other = await house.made(f"{path}/holds", wish | {"seats": ["2A"]}, who={}, Idempotency_Key="h2")
    assert other.json()["seats"][0]["price"]["amount"] > adult, "the edit is in force here at once"


NO_QUOTES: list[tuple[dict[str, Any], int, str]] = [
    ({"seats": []}, 400, "INVALID"),
    ({"seats": ["1A", "1A"]}, 400, "INVALID"),
    ({"seats": ["9Z"]}, 400, "INVALID"),
    ({"seats": [], "count": 0}, 400, "INVALID"),
    ({"seats": [], "count": 100}, 400, "INVALID"),
    ({"count": 1}, 400, "INVALID"),
    ({"seats": [], "count": 1, "kind": "THRONE"}, 400, "INVALID"),
    ({"from": "demo:F", "to": "demo:A"}, 400, "INVALID"),
    ({"to": "demo:A"}, 400, "INVALID"),
    ({"to": "demo:Z"}, 400, "INVALID"),
    ({"passengers": ["ADULT", "ADULT"]}, 400, "INVALID"),
    ({"passengers": ["SENIOR"]}, 400, "INVALID"),
    ({"passengers": ["WIZARD"]}, 400, "INVALID"),
    ({"promoCode": "NOPE"}, 409, "PROMO_NOT_VALID"),
]  # fmt: skip


async def test_a_quote_for_what_is_not_sold_is_refused(house: FareHouse) -> None:
    path = await priced(house)
    for change, status, code in NO_QUOTES:
        problem(
            await house.ask("POST", f"{path}/quotes", {"seats": ["1A"], "from": "demo:A", "to": "demo:F"} | change, who={}), status, code
        )
    assert await house.world.value("select count(*) from sale.price_log where kind = 'QUOTE'") == 0


async def test_a_quote_of_an_unknown_trip_or_one_that_has_left_is_refused(house: FareHouse) -> None:
    body = {"count": 1, "from": "demo:A", "to": "demo:F"}
    problem(await house.ask("POST", "/v1/trips/demo:NOPE:20260101/quotes", body, who={}), 404, "NOT_FOUND")
    await house.world.run("update sale.trip_instance set closes_at = clock_timestamp()")
    problem(await house.ask("POST", f"/v1/trips/{house.world.trip_id}/quotes", body, who={}), 409, "SALES_CLOSED")


async def test_bags_are_listed_with_what_is_left(house: FareHouse) -> None:
    path = await priced(house)
    [bag] = (await house.get(f"{path}/ancillaries"))["items"]
    assert (bag["code"], bag["left"], bag["price"]) == ("BAG", 2, {"amount": 3_000, "currency": "DZD"})
    held = (await house.made(f"{path}/holds", {"seats": ["1A"], "from": "demo:A", "to": "demo:F"}, who={}, Idempotency_Key="h")).json()
    order = {
        "holdId": held["id"], "passengers": [{"seat": "1A", "firstName": "Amal", "lastName": "Kaci"}],
        "contact": {"email": "a@example.org"}, "ancillaries": [{"code": "BAG", "count": 2, "seat": "1A"}],
    }  # fmt: skip
    booked = await house.made("/v1/bookings", order, who={"X-Hold-Token": held["holdToken"]}, Idempotency_Key="b")
    assert booked.json()["total"]["amount"] == held["total"]["amount"] + 700 + 2 * 3_000
    bought = {"code": "BAG", "name": "Second bag", "count": 2, "price": {"amount": 3_000, "currency": "DZD"}, "seat": "1A"}
    assert booked.json()["trips"][0]["ancillaries"] == [bought]
    assert (await house.get(f"{path}/ancillaries"))["items"][0]["left"] == 0


async def test_the_examples_of_the_document_are_taken(house: FareHouse) -> None:
    await house.made("/v1/admin/fare-plans", BODIES["post /v1/admin/fare-plans"])
    await house.made("/v1/admin/promo-codes", BODIES["post /v1/admin/promo-codes"])
    for path in ("fare-plans/coach", "promo-codes/SPRING"):
        kind = {"fare-plans/coach": "fare-plans/{plan_id}", "promo-codes/SPRING": "promo-codes/{code}"}[path]
        assert (await house.ask("PATCH", f"/v1/admin/{path}", BODIES[f"patch /v1/admin/{kind}"])).status_code == 200
