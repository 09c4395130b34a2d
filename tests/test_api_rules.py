"""Rules of a feed as an operator sets them, and the owner of the area hearing of them. On the whole running product."""

from __future__ import annotations

import pytest

from engine.meter import Meter
from engine.settings import load
from engine.store.postgres import Postgres
from engine.tracking.rulebooks import Rulebooks
from engine.tracking.rules import WatchConfig
from tests.product import Product, eventually

PATH = "/v1/admin/feeds/demo/rules"


def test_rules_are_the_defaults_until_somebody_sets_them_and_null_sets_them_back(product: Product) -> None:
    first = product.http.get(PATH, headers=product.admin)
    assert first.status_code == 200, first.text
    assert first.json()["watch"]["offM"] == WatchConfig().off_m
    edited = product.http.patch(
        PATH, json={"watch": {"offM": 75}, "onTimeLateS": 240}, headers=product.admin | {"If-Match": first.headers["etag"]}
    )
    assert edited.status_code == 200, edited.text
    assert (edited.json()["watch"]["offM"], edited.json()["onTimeLateS"]) == (75.0, 240)
    assert edited.json()["version"] == first.json()["version"] + 1
    again = product.http.patch(PATH, json={"watch": {"offM": None}, "onTimeLateS": 300}, headers=product.admin)
    assert again.json()["watch"] == first.json()["watch"]
    stale = product.http.patch(PATH, json={"watch": {"offM": 90}}, headers=product.admin | {"If-Match": first.headers["etag"]})
    assert (stale.status_code, stale.json()["code"]) == (412, "PRECONDITION_FAILED")


def test_every_bad_threshold_is_named(product: Product) -> None:
    answer = product.http.patch(PATH, json={"watch": {"offM": -3, "offFixes": 1.5, "nonsense": 1}}, headers=product.admin)
    assert answer.status_code == 400, answer.text
    assert {fault["pointer"]: fault["code"] for fault in answer.json()["errors"]} == {
        "/watch/offM": "BAD_SETTING",
        "/watch/offFixes": "BAD_SETTING",
        "/watch/nonsense": "UNKNOWN_SETTING",
    }


def test_rules_of_another_operators_feed_are_unknown(product: Product) -> None:
    stranger = {"Authorization": "Bearer " + product.token("PARTNER_ADMIN", "stranger")}
    assert product.http.get(PATH, headers=stranger).status_code == 404
    assert product.http.patch(PATH, json={}, headers=stranger).status_code == 404
    assert product.http.get(PATH).status_code == 401


@pytest.mark.asyncio
async def test_workers_hear_of_a_change_by_its_number(product: Product) -> None:
    postgres = await Postgres.connect(load(product.env))
    try:
        books = Rulebooks(postgres, Meter())
        product.http.patch(PATH, json={"watch": {"offM": 71}}, headers=product.admin)
        await books.refresh()
        before = books.get("demo")
        assert before.watch.off_m == 71
        await books.refresh()
        assert books.get("demo") is before, "what has not changed is not read again"
        product.http.patch(PATH, json={"watch": {"offM": None}}, headers=product.admin)
        await books.refresh()
        after = books.get("demo")
        assert after.number > before.number
        assert after.watch == WatchConfig()
    finally:
        await postgres.close()


def test_what_changed_is_an_event_of_the_operator(product: Product) -> None:
    product.http.patch(PATH, json={"onTimeEarlyS": 90}, headers=product.admin)
    product.http.patch(PATH, json={"onTimeEarlyS": 60}, headers=product.admin)

    def noted() -> bool:
        rows = product.http.get("/v1/audit", params={"limit": 100}, headers=product.admin).json()["items"]
        return any(row["action"] == "partner.RULES_CHANGED" for row in rows)

    assert eventually(noted)
