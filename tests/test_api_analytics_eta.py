"""The accuracy of published arrivals, asked of the running product."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import psycopg
import pytest

from api.analytics_eta import figures
from engine.tracking.accuracy import ACTUAL, PREDICTED, BucketSums
from tests.product import Product
from tests.test_api_rest import problem

PATH = "/v1/analytics/eta-accuracy"
OLD = (datetime.now(UTC) - timedelta(days=200)).date()


def sums(horizon: str, from_s: int, to_s: int, samples: int, missing: int, in_window: int) -> BucketSums:
    known = samples - missing
    return BucketSums(horizon, from_s, to_s, samples, missing, in_window, known // 2, 1, 5 * known, 30 * known, 25, 70)


ROUTE = [
    sums(ACTUAL, 0, 180, 100, 10, 80),
    sums(ACTUAL, 180, 360, 200, 0, 140),
    sums(ACTUAL, 900, 1800, 50, 0, 0),
    sums(PREDICTED, 0, 180, 90, 0, 75),
]


def test_the_score_is_the_mean_of_the_windows_to_fifteen_minutes() -> None:
    found = figures(ROUTE)
    assert (found.score, found.samples, found.missing) == (75.0, 300, 10)
    assert (found.mae_s, found.bias_s, found.coverage) == (30.0, 5.0, 0.5)
    assert [(one.from_s, one.in_window) for one in found.buckets] == [(0, 0.8), (180, 0.7), (900, None)]
    assert [one.samples for one in found.by_predicted] == [90]
    assert figures([]).score is None


@pytest.fixture
def recorded(product: Product) -> Iterator[list[str]]:
    """Two routes of the operator's network on an old day, and one of somebody else's, as the nightly job would have kept them."""
    routes = [item["routeId"] for item in product.get("/v1/routes", limit=2)["items"]]
    columns = (
        "day, area, route_id, horizon, from_s, to_s, samples, missing, in_window, covered, early, error_sum_s, size_sum_s, p50_s, p90_s"
    )
    with psycopg.connect(product.env["DATABASE_URL"], autocommit=True) as connection:
        for area, route in [*(route.split(":", 1) for route in routes), ("elsewhere", "R")]:
            for one in ROUTE:
                values = [getattr(one, name.strip()) for name in columns.split(",")[3:]]
                connection.execute(
                    f"insert into telemetry.eta_accuracy ({columns}) values ({','.join(['%s'] * 15)})", [OLD, area, route, *values]
                )
        yield sorted(routes)
        connection.execute("delete from telemetry.eta_accuracy where day = %s", [OLD])


def ask(product: Product, role: str = "PARTNER_ADMIN", of: str = "demo", **params: Any) -> Any:
    headers = {"Authorization": "Bearer " + product.token(role, of)}
    return product.http.get(PATH, params=params, headers=headers)


def test_an_operator_reads_its_routes_page_by_page_and_the_total_of_all(product: Product, recorded: list[str]) -> None:
    span = {"from": OLD.isoformat(), "to": f"{OLD.isoformat()}T12:00:00Z"}
    first = ask(product, limit=1, **span).json()
    second = ask(product, limit=1, cursor=first["nextCursor"], **span).json()
    assert [item["routeId"] for item in first["items"] + second["items"]] == recorded
    assert second["nextCursor"] is None
    assert {(item["day"], item["score"], item["provisional"]) for item in first["items"] + second["items"]} == {
        (OLD.isoformat(), 75.0, False)
    }
    assert first["items"][0]["buckets"][0]["p90S"] == 70
    assert (first["total"]["samples"], first["total"]["score"], first["total"]["buckets"][0]["p90S"]) == (600, 75.0, None)
    answer = json.loads((Path(__file__).resolve().parent.parent / "docs/openapi.json").read_text())
    assert second["items"][0].keys() >= {"biasS", "coverage", "byPredicted", "maeS", "missing"}
    if PATH in answer["paths"]:
        schema = answer["paths"][PATH]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(first, schema | {"components": answer["components"]})


def test_another_operator_sees_nothing_of_it_and_a_passenger_may_not_ask(product: Product, recorded: list[str]) -> None:
    span = {"from": OLD.isoformat(), "to": OLD.isoformat()}
    theirs = ask(product, of="someone-else", **span).json()
    assert (theirs["items"], theirs["total"]["samples"]) == ([], 0)
    problem(ask(product, of="someone-else", route=recorded[0], **span), 404, "NOT_FOUND")
    problem(ask(product, of="someone-else", partner="demo", **span), 403, "FORBIDDEN")
    problem(ask(product, role="CUSTOMER", **span), 403, "FORBIDDEN")
    problem(product.http.get(PATH), 401, "UNAUTHENTICATED")
    of_all = ask(product, role="SUPER_ADMIN", **span).json()
    assert [item["routeId"] for item in of_all["items"]] == recorded, "the feed of the third is not in force"


@pytest.mark.parametrize(
    "params",
    [{"from": "yesterday"}, {"from": "2026-03-02", "to": "2026-03-01"}, {"from": "2020-01-01", "to": "2026-01-01"}, {"cursor": "20260301"}],
    ids=["no date", "backwards", "years", "cursor"],
)
def test_what_cannot_be_asked_is_refused(product: Product, params: dict[str, str]) -> None:
    problem(ask(product, **params), 400, "INVALID")


def test_of_the_running_day_a_route_is_answered_at_once(product: Product) -> None:
    bus = product.running_trip()
    area, trip_id, start_date = bus["tripId"].split(":")
    made = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=5)
    with psycopg.connect(product.env["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(
            "insert into telemetry.names (name) select unnest(%s::text[]) on conflict do nothing", [["ghost", area, trip_id]]
        )
        numbers = "(select no from telemetry.names where name = %s)"
        connection.execute(
            "insert into telemetry.forecasts (made_at, bus_no, area_no, trip_no, start_date, first_sequence, p10_s, p50_s, p90_s)"
            f" values (%s, {numbers}, {numbers}, {numbers}, %s, 9000, '{{30,90}}', '{{40,100}}', '{{60,120}}')",
            [made, "ghost", area, trip_id, int(start_date)],
        )
        for sequence, after_s in ((9000, 50), (9001, 220)):
            at = made + timedelta(seconds=after_s)
            connection.execute(
                "insert into telemetry.stop_events (event_id, at, area, bus_id, trip_id, start_date, route_id, stop_id, stop_sequence,"
                " arrived_at, kind, late) values (%s, %s, %s, 'ghost', %s, %s, 'R', 'S', %s, %s, 'SERVED', false)",
                [f"ghost-{sequence}", at, area, trip_id, start_date, sequence, at],
            )
    item = ask(product, route=bus["routeId"]).json()["items"][0]
    assert (item["provisional"], item["routeId"]) == (True, bus["routeId"])
    near, next_one = item["buckets"][:2]
    assert near["samples"] >= 1 and near["maeS"] is not None
    assert next_one["samples"] >= 1 and next_one["missing"] >= 0
