"""`timepoint sales`: what is on sale, from the command line, and the set-up of the demo.

The same steps as the calls under /v1/admin and the opener's own passes, straight on the database; running workers take them over within half
a minute.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from engine.booking.fares import plan_of
from engine.booking.layouts import READY
from engine.booking.sales import Report, open_sales
from engine.booking.seats import layout_of
from engine.clock import Clock
from engine.errors import NotFound
from engine.live.frames import rfc3339
from engine.meter import Meter
from engine.settings import Settings
from engine.store.desk import ALL, DeskPool
from engine.store.fares import NewOffer, OfferBook
from engine.store.postgres import Postgres
from engine.store.sales import Sales
from engine.tracking.plans import Plans

ACTOR: Final = "system"


class DemoRoute(NamedTuple):
    route: str  # of bench/network/lines.py
    layout_id: str
    women_only: tuple[str, ...] = ()


DEMO_ROUTES: Final = (
    DemoRoute("W1", "coach-49"),
    DemoRoute("E1", "coach-49"),
    DemoRoute("E2", "coach-32", ("9A", "9B")),
)
DEMO_PLAN_ID: Final = "coach"
# dinars: 3.00 a kilometre and 100.00 once, in tens; dearer when it gets full or late, cheaper a week ahead
DEMO_PLAN: Final[dict[str, Any]] = {
    "currency": "DZD",
    "base": {"kind": "PER_KM", "perKm": 300, "start": 10_000, "least": 20_000},
    "step": 1_000,
    "classes": {"STANDARD": 1000, "PREMIUM": 1350},
    "types": {"ADULT": 1000, "CHILD": 500, "INFANT": 100, "SENIOR": 800, "STUDENT": 850},
    "demand": [{"fromPermille": 500, "permille": 1100}, {"fromPermille": 800, "permille": 1300}],
    "lead": [{"fromHours": 0, "permille": 1100}, {"fromHours": 24, "permille": 1000}, {"fromHours": 168, "permille": 900}],
    "bounds": {"low": 700, "high": 1800},
    "cancellation": [{"fromHours": 0, "feePermille": 500}, {"fromHours": 6, "feePermille": 250}, {"fromHours": 24, "feePermille": 100}],
    "modifyFee": 20_000,
    "ancillaries": [
        {"code": "BAG", "kind": "BAGGAGE", "name": "Second bag, 23 kg", "price": 30_000, "stock": 30, "maxPerPassenger": 2},
        {"code": "MEAL", "kind": "MEAL", "name": "Meal box", "price": 45_000, "stock": 40, "maxPerPassenger": 1},
        {"code": "PARCEL", "kind": "PARCEL", "name": "Parcel of 10 kg", "price": 60_000, "maxPerPassenger": 1},
    ],
}


class OnSale(msgspec.Struct, frozen=True, rename="camel"):
    """A trip on sale. `free`: seats that are free on the whole way."""

    trip_id: str
    route_id: str
    headsign: str | None
    departs_at: str
    closes_at: str
    currency: str
    free: int


async def opened(settings: Settings, clock: Clock, partner_id: str | None = None) -> Report:
    """One pass of the opener. Raises `Unavailable`."""
    postgres, pool = await Postgres.connect(settings), await DeskPool.open(settings, clock)
    try:
        return await open_sales(pool, await _plans(postgres), clock, partner_id)
    finally:
        await pool.close()
        await postgres.close()


async def demo(settings: Settings, clock: Clock, feed_id: str = "demo") -> Report:
    """The coach lines of the demo network on sale, with layouts and a fare plan; what is there already stays. Raises `NotFound`."""
    postgres, pool = await Postgres.connect(settings), await DeskPool.open(settings, clock)
    try:
        plans = await _plans(postgres)
        plan = plans.get(feed_id)
        if plan is None:
            raise NotFound(f"no feed {feed_id!r}; run `timepoint import-gtfs` first")
        routes = [one for one in DEMO_ROUTES if one.route in plan.timetable.routes]
        if not routes:
            raise NotFound(f"feed {feed_id!r} has none of the demo's coach lines ({', '.join(one.route for one in DEMO_ROUTES)})")
        sales = Sales(pool)

        async def set_up(connection: Any) -> None:
            await _set_up(OfferBook(connection), sales, connection, plan.partner_id, feed_id, routes, clock.uuid7())

        await pool.run(plan.partner_id, set_up)
        return await open_sales(pool, plans, clock, plan.partner_id)
    finally:
        await pool.close()
        await postgres.close()


async def listed(
    settings: Settings, clock: Clock, partner_id: str | None = None, route_id: str | None = None, limit: int = 100
) -> list[OnSale]:
    """Trips on sale, the next ones first."""
    pool = await DeskPool.open(settings, clock)
    try:
        rows = await Sales(pool).on_sale(partner_id or ALL, route_id, limit)
    finally:
        await pool.close()
    return [
        OnSale(
            row["trip_id"],
            row["route_id"],
            row["headsign"],
            _time(row["departs_at"]),
            _time(row["closes_at"]),
            row["currency"],
            row["free"],
        )
        for row in rows
    ]


async def _set_up(
    book: OfferBook, sales: Sales, connection: Any, partner_id: str, feed_id: str, routes: list[DemoRoute], request_id: str
) -> None:
    for layout_id in sorted({one.layout_id for one in routes}):
        body = layout_of(READY[layout_id]).body()
        if await sales.add_layout(connection, partner_id, layout_id, layout_id.replace("-", " "), body):
            await book.note(partner_id, ACTOR, request_id, "SEAT_LAYOUT_CHANGED", layout_id, 1, None, {"id": layout_id})
    body = msgspec.to_builtins(plan_of(DEMO_PLAN).body)
    if await book.add_fare_plan(partner_id, DEMO_PLAN_ID, "Coaches", DEMO_PLAN["currency"], body) is not None:
        await book.note(partner_id, ACTOR, request_id, "FARE_PLAN_CHANGED", DEMO_PLAN_ID, 1, None, {"id": DEMO_PLAN_ID})
    for one in routes:
        route_id, layout = f"{feed_id}:{one.route}", layout_of(READY[one.layout_id])
        if await book.offer(partner_id, route_id) is not None:
            continue
        women_only = [layout.labels.index(label) + 1 for label in one.women_only]
        if await book.add_offer(partner_id, NewOffer(route_id, one.layout_id, DEMO_PLAN_ID, 14, 0, women_only)):
            await book.note(partner_id, ACTOR, request_id, "OFFER_CHANGED", route_id, 1, None, {"routeId": route_id})


async def _plans(postgres: Postgres) -> Plans:
    plans = Plans(postgres, Meter())
    await plans.refresh()
    return plans


def _time(at: Any) -> str:
    return rfc3339(round(at.timestamp() * 1000))
