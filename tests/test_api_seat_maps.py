"""Seat layouts as an operator's office meets them: drawn, judged as a whole, redrawn with If-Match, retired; nobody else's business."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api import seat_maps
from tests.booking_world import LAYOUT, OTHER, PARTNER
from tests.seat_house import SeatHouse, problem

PATH = "/v1/admin/seat-maps"
DRAWN: dict[str, Any] = {"id": "small", "name": "Small bus", "layout": LAYOUT}


@pytest.fixture
async def house(database_url: str, redis_url: str) -> AsyncIterator[SeatHouse]:
    house = await SeatHouse.make(database_url, redis_url, seat_maps.ROUTERS)
    yield house
    await house.close()


async def test_a_layout_is_drawn_read_redrawn_and_retired_and_every_step_is_on_record(house: SeatHouse) -> None:
    who = house.as_("PARTNER_ADMIN", PARTNER)
    made = await house.http.post(PATH, json=DRAWN, headers=who)
    assert made.status_code == 201 and made.headers["etag"] == '"1"'
    assert made.json().keys() == {"id", "partnerId", "name", "seats", "layout", "version", "changedAt", "retiredAt"}
    assert (made.json()["seats"], made.json()["partnerId"]) == (12, PARTNER)
    problem(await house.http.post(PATH, json=DRAWN, headers=who), 409, "CONFLICT")

    fewer = copy.deepcopy(LAYOUT)
    fewer["seats"].pop()
    stale = await house.http.patch(f"{PATH}/small", json={"layout": fewer}, headers={**who, "If-Match": '"7"'})
    problem(stale, 412, "PRECONDITION_FAILED")
    edited = await house.http.patch(f"{PATH}/small", json={"layout": fewer, "name": "Smaller"}, headers={**who, "If-Match": '"1"'})
    assert edited.status_code == 200 and edited.headers["etag"] == '"2"'
    read = (await house.http.get(f"{PATH}/small", headers=who)).json()
    assert (read["seats"], read["name"], read["version"]) == (11, "Smaller", 2)

    retired = await house.http.delete(f"{PATH}/small", headers=who)
    assert retired.json()["retiredAt"] is not None
    assert (await house.http.delete(f"{PATH}/small", headers=who)).json()["version"] == 3, "again changes nothing"
    problem(await house.http.patch(f"{PATH}/small", json={"name": "x"}, headers=who), 409, "CONFLICT")
    listed = (await house.http.get(PATH, headers=who)).json()["items"]
    assert [item["id"] for item in listed] == ["twelve"]
    assert len((await house.http.get(PATH, params={"retired": True}, headers=who)).json()["items"]) == 2

    audit = await house.world.run("select action, diff from office.audit where entity_kind = 'partner' order by audit_id")
    assert [row["action"] for row in audit] == ["partner.SEAT_LAYOUT_CHANGED"] * 3
    assert audit[1]["diff"]["after"]["name"] == "Smaller"
    assert await house.world.value("select count(*) from office.outbox where kind = 'SEAT_LAYOUT_CHANGED'") == 3


async def test_a_ready_layout_needs_no_drawing(house: SeatHouse) -> None:
    who = house.as_("PARTNER_ADMIN", PARTNER)
    made = await house.http.post(PATH, json={"id": "coach", "name": "Coach", "ready": "coach-49"}, headers=who)
    assert made.status_code == 201 and made.json()["seats"] == 49
    for wrong in ({"id": "x", "name": "x"}, {**DRAWN, "ready": "coach-49"}):
        assert problem(await house.http.post(PATH, json=wrong, headers=who), 400, "INVALID")["errors"][0]["pointer"] == "/layout"


async def test_a_drawing_that_does_not_hold_together_is_refused_with_the_place(house: SeatHouse) -> None:
    who = house.as_("PARTNER_ADMIN", PARTNER)
    twice = copy.deepcopy(DRAWN)
    twice["layout"]["seats"][3]["label"] = "1A"
    refused = problem(await house.http.post(PATH, json=twice, headers=who), 400, "INVALID")
    assert [(error["pointer"], error["code"]) for error in refused["errors"]] == [("/layout/seats/3/label", "DUPLICATE")]
    none = {**DRAWN, "layout": {**LAYOUT, "seats": []}}
    assert problem(await house.http.post(PATH, json=none, headers=who), 400, "INVALID")["errors"][0]["pointer"] == "/layout/seats"
    for wrong in ({**DRAWN, "id": "no space"}, {**DRAWN, "name": ""}, {**DRAWN, "layout": 7}, {}):
        problem(await house.http.post(PATH, json=wrong, headers=who), 400, "INVALID")


async def test_another_operators_layouts_do_not_exist(house: SeatHouse) -> None:
    other = house.as_("PARTNER_ADMIN", OTHER)
    for call in (
        house.http.get(f"{PATH}/twelve", headers=other),
        house.http.patch(f"{PATH}/twelve", json={"name": "mine"}, headers=other),
        house.http.delete(f"{PATH}/twelve", headers=other),
        house.http.get(f"{PATH}/twelve", params={"partner": PARTNER}, headers=other),
        house.http.get(PATH, params={"partner": PARTNER}, headers=other),
        house.http.post(PATH, json={**DRAWN, "partnerId": PARTNER}, headers=other),
    ):
        problem(await call, 404, "NOT_FOUND")
    assert (await house.http.get(PATH, headers=other)).json()["items"] == []
    for role in ("CUSTOMER", "DRIVER", "AGENT"):
        problem(await house.http.get(PATH, headers=house.as_(role, PARTNER)), 403, "FORBIDDEN")
    problem(await house.http.get(PATH), 401, "UNAUTHENTICATED")


async def test_a_super_admin_acts_for_the_operator_it_names(house: SeatHouse) -> None:
    who = house.as_("SUPER_ADMIN")
    made = await house.http.post(PATH, json={**DRAWN, "partnerId": OTHER}, headers=who)
    assert made.json()["partnerId"] == OTHER
    assert [item["id"] for item in (await house.http.get(PATH, headers=who)).json()["items"]] == ["small", "twelve"]
    problem(await house.http.get(f"{PATH}/small", params={"partner": PARTNER}, headers=who), 404, "NOT_FOUND")
    problem(await house.http.post(PATH, json={**DRAWN, "partnerId": "nobody"}, headers=who), 404, "NOT_FOUND")


async def test_layouts_are_paged(house: SeatHouse) -> None:
    who = house.as_("PARTNER_ADMIN", PARTNER)
    for n in range(3):
        await house.http.post(PATH, json={**DRAWN, "id": f"bus-{n}"}, headers=who)
    first = (await house.http.get(PATH, params={"limit": 2}, headers=who)).json()
    rest = (await house.http.get(PATH, params={"limit": 2, "cursor": first["nextCursor"]}, headers=who)).json()
    assert [item["id"] for item in first["items"] + rest["items"]] == ["bus-0", "bus-1", "bus-2", "twelve"]
    assert rest["nextCursor"] is None


async def test_a_layout_in_use_is_not_retired_and_its_women_only_seats_stay_where_they_are(house: SeatHouse) -> None:
    who = house.as_("PARTNER_ADMIN", PARTNER)
    await house.world.run(
        """insert into sale.offer (partner_id, route_id, layout_id, fare_plan_id, women_only_seats)
        values ($1, 'demo:R1', 'twelve', 'plain', '{2}')""",
        PARTNER,
    )
    problem(await house.http.delete(f"{PATH}/twelve", headers=who), 409, "CONFLICT")
    moved = {**LAYOUT, "seats": LAYOUT["seats"][::-1]}
    problem(await house.http.patch(f"{PATH}/twelve", json={"layout": moved}, headers=who), 409, "CONFLICT")
    shorter = {**LAYOUT, "seats": LAYOUT["seats"][:6]}
    assert (await house.http.patch(f"{PATH}/twelve", json={"layout": shorter}, headers=who)).status_code == 200
