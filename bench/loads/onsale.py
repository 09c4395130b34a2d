"""Trips on sale for the loads that buy: those that the product sells already, or, where it sells none, an offer of our own.

Our own: a layout of 200 seats, a fare by the kilometre, and the offer of the longest route for three days, all named `load`, by the same admin
calls that an operator has. Trips go on sale within the product's `SALES_PASS_S`.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from bench.harness.scenario import CallFailed, Target

ROWS, DAYS, SALE_LIMIT_S = 50, 3, 90.0
SOON_S = 1800.0  # a trip that leaves sooner may close in the middle of a run
ROUTES_MAX = 100
LETTERS = (("A", 0), ("B", 1), ("C", 3), ("D", 4))


class Sold(msgspec.Struct):
    """One trip on sale, as its seat map was before the load."""

    trip_id: str
    stops: list[str]  # what a call names them by: sequence numbers
    seats: list[str]  # free from end to end
    free: int


def sold_of(data: Any) -> list[Sold]:
    return msgspec.convert(data, list[Sold])


def on_sale(target: Target, trips: int) -> list[Sold]:
    """So many trips at most, those with the most free seats first. Raises ValueError where there is none, `CallFailed`."""
    found = _listed(target)
    if not found:
        _offer(target)
        until_s = time.monotonic() + SALE_LIMIT_S
        while not (found := _listed(target)) and time.monotonic() < until_s:
            time.sleep(0.5)
    if not found:
        raise ValueError(
            f"no trip is on sale, and none went on sale within {SALE_LIMIT_S:.0f} s of an offer: does a worker have the role `office`?"
        )
    return [seats_of(target, trip_id) for _, trip_id in sorted(found, reverse=True)[:trips]]


def seats_of(target: Target, trip_id: str) -> Sold:
    """Of one trip."""
    shown = target.call("GET", f"/v1/trips/{trip_id}/seats")
    stops = target.call("GET", f"/v1/trips/{trip_id}")["stops"]
    free = [one["seat"] for one in shown["seats"] if one["state"] == "FREE"]
    return Sold(trip_id, [str(stop["seq"]) for stop in stops], free, len(free))


def _listed(target: Target) -> list[tuple[int, str]]:
    """(free seats, trip)."""
    begins = datetime.now(UTC) + timedelta(seconds=SOON_S)
    found: list[tuple[int, str]] = []
    for route in target.call("GET", f"/v1/routes?limit={ROUTES_MAX}")["items"]:
        known = len(found)
        for ahead in range(DAYS):
            day = (datetime.now(UTC).date() + timedelta(days=ahead)).isoformat()
            page = target.call("GET", f"/v1/routes/{route['routeId']}/schedules?limit=100&date={day}")
            items = [one for one in page["items"] if one.get("onSale") and datetime.fromisoformat(one["departsAt"]) > begins]
            found += [(one["seatsFree"] or 0, one["tripId"]) for one in items]
            if ahead == 1 and len(found) == known:
                break  # not sold at all, most likely; today alone says little late in the evening
    return found


def _offer(target: Target) -> None:
    routes = target.call("GET", f"/v1/routes?limit={ROUTES_MAX}")["items"]
    lengths = {
        route["routeId"]: max((one["lengthM"] for one in target.call("GET", f"/v1/routes/{route['routeId']}")["patterns"]), default=0.0)
        for route in routes
    }
    if not lengths:
        raise ValueError("the product has no routes: import a feed")
    seats = [{"label": f"{row + 1}{letter}", "row": row, "column": column} for row in range(ROWS) for letter, column in LETTERS]
    layout = {"decks": [{"rows": ROWS, "columns": 5, "aisles": [2]}], "seats": seats}
    plan = {"currency": "DZD", "base": {"kind": "PER_KM", "perKm": 1000, "start": 10_000}}
    for path, body in (
        ("/v1/admin/seat-maps", {"id": "load-200", "name": "Load coach", "layout": layout}),
        ("/v1/admin/fare-plans", {"id": "load", "name": "Load fares", "plan": plan}),
        ("/v1/admin/offers", {
            "routeId": max(lengths, key=lengths.__getitem__), "layoutId": "load-200", "farePlanId": "load", "openDays": DAYS,
        }),
    ):  # fmt: skip
        try:
            target.call("POST", path, body)
        except CallFailed as fault:
            if fault.status != 409:  # there from an earlier run
                raise
