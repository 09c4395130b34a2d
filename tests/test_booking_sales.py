"""The opener on a real PostgreSQL: offered trips go on sale once, as the timetable has them, and stay what they were."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.booking.sales import STOPS_MAX, Opener, Report, open_sales
from engine.booking.seats import layout_of
from engine.clock import SystemClock
from engine.meter import Meter
from engine.store.sales import Sales
from engine.tracking.plans import Plan
from engine.tracking.timetable import Service, Timetable
from tests import small_world
from tests.booking_world import LAYOUT, OTHER, PARTNER, PLAN, World


class Feeds:
    """One feed in force."""

    def __init__(self, plan: Plan | None) -> None:
        self.plan = plan

    def get(self, feed_id: str) -> Plan | None:
        return self.plan if self.plan is not None and self.plan.feed_id == feed_id else None


def feed(**more: Any) -> Timetable:
    """Route R of the small world, running every day, hours away from now: the horizon, whole days from now, cuts no day's trips in two."""
    now = datetime.fromtimestamp(SystemClock().now_ms() / 1000, UTC)
    made = small_world.feed(first_s=15 * 3_600 if 4 <= now.hour < 12 else 8 * 3_600, **more)  # local: an hour later than UTC
    today = now.date()
    made.services["W"] = Service("W", (True,) * 7, today - timedelta(days=30), today + timedelta(days=60))
    return made


class Office(World):
    plans: Feeds

    async def offer(self, **more: Any) -> None:
        """Route demo:R is sold; a layout and a fare plan besides."""
        row = {"partner": PARTNER, "route": "demo:R", "days": 3, "close_s": 0, "women_only": []} | more
        body = layout_of(LAYOUT).body()
        await self.run(
            "insert into sale.seat_layout (partner_id, layout_id, name, body) values ($1, 'coach', 'Coach', $2) on conflict do nothing", row["partner"], body
        )  # fmt: skip
        await self.run(
            """insert into sale.fare_plan (partner_id, fare_plan_id, name, currency, body) values ($1, 'coach', 'Coach', 'DZD', $2)
            on conflict do nothing""", row["partner"], PLAN,
        )  # fmt: skip
        await self.run(
            """insert into sale.offer (partner_id, route_id, layout_id, fare_plan_id, open_days, close_s, women_only_seats)
            values ($1, $2, 'coach', 'coach', $3, $4, $5)""",
            row["partner"], row["route"], row["days"], row["close_s"], row["women_only"],
        )  # fmt: skip

    def put(self, timetable: Timetable, partner: str = PARTNER) -> None:
        self.plans = Feeds(Plan("demo", partner, timetable))

    async def pass_(self) -> Report:
        return await open_sales(self.pool, self.plans, self.clock)

    async def sold(self) -> list[Any]:
        return list(await self.run("select * from sale.trip_instance where route_id = 'demo:R' order by departs_at, trip_id"))


@pytest.fixture
async def office(database_url: str) -> AsyncIterator[Office]:
    made = await Office.make(database_url)
    assert isinstance(made, Office)
    await made.run("update sale.trip_instance set trip_id = 'demo:OWN:20260101'")  # the world's own trip, out of the way of the feed's
    made.put(feed())
    yield made
    await made.close()


async def test_every_trip_to_the_horizon_goes_on_sale_once(office: Office) -> None:
    await office.offer()
    first = await office.pass_()
    rows = await office.sold()
    assert first == Report(offers=1, opened=len(rows)) and len(rows) == 9, "three trips on each of three days"
    assert await office.pass_() == Report(offers=1, known=9)
    assert len(await office.sold()) == 9
    events = await office.run("select version, kind from office.outbox where topic = 'trip'")
    assert [tuple(event) for event in events] == [(1, "SCHEDULED")] * 9
    assert await office.value("select count(*) from office.audit where action = 'trip.SCHEDULED'") == 9


async def test_two_openers_at_once_put_nothing_on_sale_twice(office: Office) -> None:
    await office.offer()
    reports = await asyncio.gather(*(office.pass_() for _ in range(4)))
    assert sum(report.opened for report in reports) == 9 == len(await office.sold())
    assert (
        await office.value("select count(*) from sale.trip_stop s join sale.trip_instance i using (trip_no) where route_id = 'demo:R'")
        == 9 * 13
    )


async def test_a_trip_on_sale_has_its_stops_times_and_seats_and_can_be_held(office: Office) -> None:
    await office.offer(close_s=600, women_only=[3])
    await office.pass_()
    row = (await office.sold())[-1]
    trip = await office.catalogue.trip(row["trip_id"])
    instance = office.plans.plan.timetable.instance("T2", trip.start_date)  # type: ignore[union-attr]
    assert instance is not None
    assert [stop.stop_id for stop in trip.stops] == [f"demo:S{n}" for n in range(13)]
    assert [stop.departs_at_ms for stop in trip.stops] == [instance.departure_ms(n) for n in range(13)]
    assert [(stop.pickup, stop.drop_off) for stop in trip.stops] == [(True, False)] + [(True, True)] * 11 + [(False, True)]
    assert trip.closes_at_ms == trip.departs_at_ms - 600_000
    assert trip.labels == layout_of(LAYOUT).labels and len(trip.sellable) == 12
    assert [n for n in range(1, 13) if trip.layout.seat(n).has("WOMEN_ONLY")] == [3]
    made = await office.hold("1A", frm="demo:S2", to="demo:S9", trip=trip.trip_id)
    assert (made.held.from_, made.held.to) == (2, 9)


async def test_a_new_feed_version_changes_nothing_of_what_is_sold(office: Office) -> None:
    await office.offer()
    await office.pass_()
    before = [dict(row) for row in await office.sold()]
    office.put(feed(version="2", headway_s=1_800))
    report = await office.pass_()
    assert [dict(row) for row in await office.sold()] == before
    assert (report.opened, report.changed) == (0, 6), "T1 and T2 leave earlier now"


async def test_a_trip_whose_service_ended_stays_on_sale_and_is_counted(office: Office) -> None:
    await office.offer()
    await office.pass_()
    office.put(feed(version="2", trips=2))
    report = await office.pass_()
    assert (report.opened, report.gone, report.known) == (0, 3, 6)
    assert all(row["sales_open"] for row in await office.sold())


async def test_a_cancelled_trip_is_not_put_on_sale_again(office: Office) -> None:
    await office.offer()
    await office.pass_()
    await office.run("update sale.trip_instance set status = 'CANCELLED' where trip_no = $1", (await office.sold())[0]["trip_no"])
    assert (await office.pass_()).opened == 0


async def test_a_trip_of_more_than_62_stops_is_not_sold_and_one_of_62_is(office: Office) -> None:
    await office.offer()
    office.put(feed(stops=STOPS_MAX + 1))
    report = await office.pass_()
    assert (report.opened, report.too_long) == (0, 9)
    office.put(feed(stops=STOPS_MAX))
    assert (await office.pass_()).opened == 9


@pytest.mark.parametrize("what", ["no feed", "no route", "another's feed", "no such seat"])
async def test_an_offer_that_cannot_be_worked_on_is_named_and_holds_up_no_other(office: Office, what: str) -> None:
    await office.offer(route="demo:R", women_only=[99] if what == "no such seat" else [])
    if what == "no feed":
        office.plans.plan = None
    elif what == "no route":
        del office.plans.plan.timetable.routes["R"]  # type: ignore[union-attr]
    elif what == "another's feed":
        office.put(feed(), OTHER)
    report = await office.pass_()
    assert report.opened == 0 and len(report.faults) == 1 and report.faults[0].startswith("demo:R: ")


async def test_a_retired_offer_opens_nothing(office: Office) -> None:
    await office.offer()
    await office.run("update sale.offer set retired_at = clock_timestamp()")
    assert await office.pass_() == Report()


async def test_sales_end_and_trips_are_over_when_their_time_has_come(office: Office) -> None:
    await office.offer()
    opener = Opener(office.pool, office.plans, clock=office.clock, settings=office.settings, meter=Meter())
    await opener.step()
    first, second, *rest = await office.sold()
    ago = datetime.now(UTC) - timedelta(hours=3)
    for row, hours in ((first, 0), (second, 2)):
        times = row["trip_no"], ago, ago + timedelta(hours=hours)
        await office.run("update sale.trip_instance set departs_at = $2, closes_at = $2, arrives_at = $3 where trip_no = $1", *times)
    while await opener.end():
        pass
    rows = {row["trip_no"]: row for row in await office.run("select * from sale.trip_instance")}
    assert [(rows[r["trip_no"]]["status"], rows[r["trip_no"]]["sales_open"], rows[r["trip_no"]]["version"]) for r in (first, second)] == [
        ("COMPLETED", False, 3), ("COMPLETED", False, 3),
    ]  # fmt: skip
    assert all(rows[r["trip_no"]]["status"] == "SCHEDULED" and rows[r["trip_no"]]["sales_open"] for r in rest)
    kinds = await office.run(
        "select kind, version from office.outbox where topic = 'trip' and body->>'tripId' = $1 order by version", first["trip_id"]
    )
    assert [tuple(kind) for kind in kinds] == [("SCHEDULED", 1), ("SALES_CLOSED", 2), ("COMPLETED", 3)]
    assert await opener.end() == 0


async def test_a_trip_that_has_just_arrived_is_not_over_yet(office: Office) -> None:
    await office.offer()
    opener = Opener(office.pool, office.plans, clock=office.clock, settings=office.settings, meter=Meter())
    await opener.step()
    row = (await office.sold())[0]
    now = datetime.now(UTC)
    await office.run(
        "update sale.trip_instance set closes_at = $2, departs_at = $2, arrives_at = $2 where trip_no = $1", row["trip_no"], now
    )
    await opener.end()
    found = await office.run("select status, sales_open from sale.trip_instance where trip_no = $1", row["trip_no"])
    assert tuple(found[0]) == ("SCHEDULED", False)


async def test_a_trip_after_midnight_is_sold_under_its_service_date(office: Office) -> None:
    made = feed(trips=1)
    was = made.trips["T0"].departure_s
    late = msgspec.structs.replace(made.trips["T0"], **{
        name: tuple(second - was[0] + 26 * 3600 for second in was) for name in ("arrival_s", "departure_s")
    })  # fmt: skip
    made.trips["T0"] = late  # leaves at 26:00
    office.put(made)
    await office.offer(days=2)
    await office.pass_()
    for row in await office.sold():
        leaves = row["departs_at"].astimezone(made.tz)
        assert leaves.hour == 2
        assert leaves.date() == date.fromisoformat(str(row["start_date"])) + timedelta(days=1)
    assert len(await office.sold()) == 2


async def test_what_is_on_sale_is_listed_with_its_free_seats(office: Office) -> None:
    await office.offer()
    await office.pass_()
    first = (await office.sold())[0]
    await office.hold("1A", "1B", frm="demo:S0", to="demo:S3", trip=first["trip_id"])
    rows = await Sales(office.pool).on_sale(PARTNER, "demo:R", 2)
    assert (rows[0]["trip_id"], rows[0]["free"]) == (first["trip_id"], 10)
    assert await Sales(office.pool).on_sale(OTHER) == []


def test_the_small_world_has_evenly_spaced_stops() -> None:
    assert np.allclose(np.diff(feed().patterns["P"].along_m), 500.0, atol=1.0)
