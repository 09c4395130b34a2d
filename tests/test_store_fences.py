"""Fences in a real PostgreSQL, as workers load them and as the office finds them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec
import pytest

from engine.clock import ManualClock
from engine.meter import Meter
from engine.settings import Settings
from engine.store import rules
from engine.store.desk import ALL, DeskPool
from engine.store.fences import FIRST, Drawn, FenceBook, load_fences
from engine.store.postgres import Postgres
from engine.tracking.rulebooks import Rulebooks
from geo.drawing import drawn

CIRCLE = {"type": "Circle", "coordinates": [3.05, 36.75], "radiusM": 120.0}
NIGHT = {"timeZone": "UTC", "windows": [{"days": ["MON"], "from": "22:00", "to": "29:00"}]}


class Office:
    """Two operators with a feed each; fences are drawn as the desk draws them."""

    def __init__(self, postgres: Postgres, pool: DeskPool, clock: ManualClock) -> None:
        self.postgres, self.pool, self.clock = postgres, pool, clock

    async def draw(
        self, drawing: dict[str, Any] = CIRCLE, *, name: str = "Depot", kind: str = "PLAIN", feed: str = "north", **more: Any
    ) -> Any:
        given = {"calendar": None, "buses": [], "routes": [], "limit_kmh": None} | more
        made, fence_id = Drawn(drawing, drawn(drawing)), self.clock.uuid7()

        async def add(connection: Any) -> Any:
            return await FenceBook(connection).add(fence_id, feed, feed, name, kind, "MINOR", made, **given, by="agent:1")

        return await self.pool.run(feed, add)

    async def book(self, partner: str, work: Any) -> Any:
        return await self.pool.run(partner, lambda connection: work(FenceBook(connection)))


@pytest.fixture
async def office(database_url: str) -> AsyncIterator[Office]:
    settings, clock = Settings(database_url=database_url), ManualClock(1_795_262_400_000)
    postgres, pool = await Postgres.connect(settings), await DeskPool.open(settings, clock)
    for partner in ("north", "south"):
        await postgres.execute("insert into partner (partner_id, name) values ($1, $1)", partner)
        await postgres.execute("insert into network.feed (feed_id, partner_id) values ($1, $1)", partner)
    yield Office(postgres, pool, clock)
    await pool.close()
    await postgres.close()


async def test_what_was_drawn_is_what_a_worker_loads(office: Office) -> None:
    ring = [[3.0, 36.0], [3.01, 36.0], [3.01, 36.01], [3.0, 36.01], [3.0, 36.0]]
    drawings: list[dict[str, Any]] = [
        CIRCLE,
        {"type": "Polygon", "coordinates": [ring]},
        {"type": "MultiPolygon", "coordinates": [[ring]]},
        {"type": "LineString", "coordinates": ring[:3], "halfWidthM": 40.0},
    ]
    for drawing in drawings:
        await office.draw(drawing, calendar=NIGHT, buses=["B1"], routes=["R1"], kind="SPEED_ZONE", limit_kmh=36.0)
    index = await load_fences(office.postgres, "north")
    assert len(index) == 4
    for fence, drawing in zip(index.by_id.values(), drawings, strict=True):
        area = drawn(drawing)
        assert fence.area.signed_m(3.005, 36.004) == pytest.approx(area.signed_m(3.005, 36.004))
        assert fence.area.depth_m == pytest.approx(area.depth_m)
        assert fence.hours is not None and fence.hours.windows[0].to_s == 29 * 3600
        assert (fence.buses, fence.routes, fence.limit_mps) == ({"B1"}, {"R1"}, pytest.approx(10.0))


async def test_a_worker_reads_only_what_has_changed_and_keeps_what_it_has_otherwise(office: Office) -> None:
    first, second = await office.draw(), await office.draw(name="Yard")
    index = await load_fences(office.postgres, "north")
    assert await load_fences(office.postgres, "north", index) is index
    kept = index.by_id[second["id"]]
    made = Drawn(CIRCLE | {"radiusM": 500.0}, drawn(CIRCLE | {"radiusM": 500.0}))
    await office.book("north", lambda book: book.change("north", first["id"], "Big", "MINOR", made, None, [], [], None, "agent:1"))
    newer = await load_fences(office.postgres, "north", index)
    assert newer is not index and newer.by_id[second["id"]] is kept
    assert (newer.by_id[first["id"]].area.depth_m, newer.by_id[first["id"]].version) == (500.0, 2)
    await office.book("north", lambda book: book.retire("north", second["id"], "agent:1"))
    assert list((await load_fences(office.postgres, "north", newer)).by_id) == [first["id"]]


async def test_many_fences_at_once_are_loaded_like_few(office: Office) -> None:
    for number in range(60):
        await office.draw(name=f"stop {number}")
    assert len(await load_fences(office.postgres, "north")) == 60
    assert len(await load_fences(office.postgres, "south")) == 0


async def test_a_fence_that_commits_late_is_not_missed(office: Office, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    slow = connection.transaction()
    await slow.start()
    await connection.execute("select pg_current_xact_id()")  # its number is older than what follows
    await office.draw(name="quick")
    index = await load_fences(office.postgres, "north")
    await connection.execute("select set_config('tp.partner', 'north', true)")
    made = Drawn(CIRCLE, drawn(CIRCLE))
    await connection.set_type_codec("jsonb", encoder=lambda value: msgspec.json.encode(value).decode(), decoder=str, schema="pg_catalog")
    await FenceBook(connection).add(office.clock.uuid7(), "north", "north", "slow", "PLAIN", "MINOR", made, None, [], [], None, "agent:1")
    await slow.commit()
    await connection.close()
    assert {fence.name for fence in (await load_fences(office.postgres, "north", index)).by_id.values()} == {"quick", "slow"}


async def test_a_change_reaches_the_rules_of_its_area_and_of_no_other(office: Office) -> None:
    rulebooks = Rulebooks(office.postgres, Meter())
    await office.draw()
    await rulebooks.refresh()
    assert len(rulebooks.get("north").fences) == 1 and rulebooks.get("south").fences is None
    known = rulebooks.get("north")
    await rulebooks.refresh()
    assert rulebooks.get("north") is known, "nothing changed, nothing was read"
    await office.draw(name="Yard")
    await rulebooks.refresh()
    assert len(rulebooks.get("north").fences) == 2 and rulebooks.get("north").number > known.number


async def test_what_cannot_be_read_of_one_operator_stops_no_worker_and_no_other_operator(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = await office.draw(name="Broken")
    await office.draw()
    whole = await load_fences(office.postgres, "north")
    assert len(whole) == 2
    spoil = "update fleet.fence set drawing = '[]', version = version + 1 where fence_id = $1::uuid"
    await office.pool.run("north", lambda connection: connection.execute(spoil, broken["id"]))
    unread: list[int] = []
    for known in (None, whole):  # what it was before holds no longer either
        found = await load_fences(office.postgres, "north", known, lambda: unread.append(1))
        assert [fence.name for fence in found.by_id.values()] == ["Depot"]
    assert len(unread) == 2
    await office.draw(feed="south")
    load = rules.load_rules

    async def thorny(run: Any, feed_id: str, *rest: Any) -> Any:
        if feed_id == "north":
            raise ZeroDivisionError("a thorn")
        return await load(run, feed_id, *rest)

    monkeypatch.setattr(rules, "load_rules", thorny)
    meter = Meter()
    rulebooks = Rulebooks(office.postgres, meter)
    await rulebooks.refresh()
    assert len(rulebooks.get("south").fences) == 1 and "timepoint_rules_refresh_faults_total 1" in meter.text()


async def test_an_operator_finds_its_own_fences_on_the_map_and_nobody_elses(office: Office) -> None:
    east = await office.draw({"type": "Circle", "coordinates": [179.999, -17.0], "radiusM": 5_000.0}, name="Dateline")
    home = await office.draw()
    await office.draw(feed="south")

    async def seen(partner: str, *box: float) -> list[str]:
        rows = await office.book(partner, lambda book: book.fences("*", FIRST, 100, box=box or None))
        return [row["id"] for row in rows]

    assert await seen("north") == [east["id"], home["id"]], "the wall between tenants holds even where a statement asks for all"
    assert len(await seen(ALL)) == 3
    assert await seen("north", 3.0, 36.7, 3.1, 36.8) == [home["id"]]
    for box in ((179.9, -17.1, 180.0, -16.9), (-180.0, -17.1, -179.9, -16.9), (179.9, -17.1, -179.9, -16.9)):
        assert await seen("north", *box) == [east["id"]]
    assert await office.book("south", lambda book: book.fence("north", home["id"])) is None
