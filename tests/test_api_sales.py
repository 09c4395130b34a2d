"""`timepoint sales` on a real PostgreSQL: the coaches of the demo on sale, twice as well as once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from api import sales
from engine.booking.layouts import READY
from engine.booking.seats import layout_of
from engine.clock import SystemClock
from engine.errors import NotFound
from engine.settings import Settings
from engine.store.postgres import Postgres
from ingest.feed_import import import_zip
from tests.gtfs_feed import FILES, write_feed


async def imported(settings: Settings, path: Path, route: str) -> None:
    """The small feed in force as `demo` of partner demo, its route under that name, running every day around now."""
    today = datetime.now(UTC).date()
    first, last = (f"{today + timedelta(days=days):%Y%m%d}" for days in (-5, 60))
    changes: dict[str, str | bytes | None] = {
        "routes.txt": FILES["routes.txt"].replace("\n1,", f"\n{route},"),
        "trips.txt": FILES["trips.txt"].replace("\n1,", f"\n{route},"),
        "calendar.txt": FILES["calendar.txt"].split("\n")[0] + f"\nwk,1,1,1,1,1,1,1,{first},{last}\n",
        "calendar_dates.txt": None,
    }
    postgres = await Postgres.connect(settings)
    try:
        await import_zip(postgres, write_feed(path / "demo.zip", changes), feed_id="demo", partner_id="demo")
    finally:
        await postgres.close()


async def test_the_demo_puts_its_coaches_on_sale_once(database_url: str, tmp_path: Path) -> None:
    settings, clock = Settings(database_url=database_url), SystemClock()
    await imported(settings, tmp_path, "W1")
    first = await sales.demo(settings, clock)
    assert (first.offers, first.opened, first.faults) == (1, 3 * 14, [])
    again = await sales.demo(settings, clock)
    assert (again.opened, again.known) == (0, 3 * 14)
    assert (await sales.opened(settings, clock, "demo")).opened == 0
    rows = await sales.listed(settings, clock, limit=1_000)
    assert len(rows) == 3 * 14 and {row.currency for row in rows} == {"DZD"}
    assert {row.free for row in rows} == {len(layout_of(READY["coach-49"]).sellable)}
    assert [row.departs_at for row in rows] == sorted(row.departs_at for row in rows)
    assert await sales.listed(settings, clock, "nobody") == []


async def test_a_feed_without_coaches_or_no_feed_is_said(database_url: str, tmp_path: Path) -> None:
    settings, clock = Settings(database_url=database_url), SystemClock()
    with pytest.raises(NotFound, match="import-gtfs"):
        await sales.demo(settings, clock)
    await imported(settings, tmp_path, "17")
    with pytest.raises(NotFound, match="coach lines"):
        await sales.demo(settings, clock)


def test_the_seats_kept_for_women_are_seats_of_their_layouts() -> None:
    for one in sales.DEMO_ROUTES:
        assert set(one.women_only) <= set(layout_of(READY[one.layout_id]).labels)
