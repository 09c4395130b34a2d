"""Incidents in a real PostgreSQL: lists narrowed down, and every step that people take kept once, in order, with its audit row."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest_asyncio

from engine.clock import SystemClock
from engine.events import IncidentEvent
from engine.settings import Settings
from engine.store.incidents import CLOSED, DONE, SAME, Incidents, Step, Wanted
from engine.store.postgres import Postgres
from engine.store.timescale import Batch, HistoryWriter

NOW_MS = SystemClock().now_ms()
NOW = datetime.fromtimestamp(NOW_MS / 1000, UTC)
LATER = NOW + timedelta(minutes=5)
PARTNERS = {"demo": "demo"}


def incident(number: int, **more: object) -> IncidentEvent:
    kind, closed_at_ms = str(more.get("kind", "OFF_ROUTE")), more.get("closed_at_ms")
    severity, bus = str(more.get("severity", "MINOR")), str(more.get("bus", "b1"))
    return IncidentEvent(
        f"said-{number}", f"episode-{number}", kind, severity, bus, "T0", "20260302", "R", NOW_MS - 1_000 * number,
        closed_at_ms, 36.75, 3.05, '{"maxOffsetM":240}',  # type: ignore[arg-type]
    )  # fmt: skip


def step(state: str, by: str = "amal", **more: object) -> Step:
    return Step(state=state, by=by, actor=f"agent:{by}", request_id="r1", assigned_to=None, note=None, at=NOW, **more)


@pytest_asyncio.fixture
async def store(database_url: str) -> AsyncIterator[Incidents]:
    settings = Settings(database_url=database_url)
    writer = HistoryWriter(settings)
    events = [
        incident(1), incident(2, kind="SPEEDING", severity="MAJOR", bus="b2"), incident(3, closed_at_ms=NOW_MS),
        incident(4, kind="SOS", severity="CRITICAL"),
    ]  # fmt: skip
    await writer.write(Batch("demo", "out", None, "1-0", events=[*events]), NOW_MS)
    await writer.close()
    postgres = await Postgres.connect(settings)
    yield Incidents(postgres)
    await postgres.close()


async def names(store: Incidents, wanted: Wanted) -> list[str]:
    return [one.incident_id for one in await store.find(["demo"], LATER, wanted=wanted)]


async def test_a_list_is_narrowed_by_what_is_asked_for(store: Incidents) -> None:
    assert await names(store, Wanted()) == ["episode-1", "episode-2", "episode-3", "episode-4"]
    assert await names(store, Wanted(kinds=["SPEEDING", "SOS"])) == ["episode-2", "episode-4"]
    assert await names(store, Wanted(severities=["MAJOR"])) == ["episode-2"]
    assert await names(store, Wanted(bus_id="b2")) == ["episode-2"]
    assert await names(store, Wanted(trip_id="T0", start_date="20260302", only_open=True)) == ["episode-1", "episode-2", "episode-4"]
    assert await names(store, Wanted(trip_id="T0", start_date="20260303")) == []
    assert await names(store, Wanted(route_id="R", since=NOW - timedelta(seconds=2, milliseconds=1))) == ["episode-1", "episode-2"]
    assert await store.find(["another"], LATER) == []


async def test_every_step_is_kept_and_audited_and_what_a_person_closed_stays_closed(store: Incidents, database_admin_url: str) -> None:
    at = "episode-1"
    assert await store.handle(at, PARTNERS, step("ACKNOWLEDGED")) == DONE
    assert await store.handle(at, PARTNERS, step("ACKNOWLEDGED")) == SAME, "a request that was sent again"
    assert await store.handle(at, PARTNERS, step("ACKNOWLEDGED", by="ilyes")) == DONE
    assert await store.handle(at, PARTNERS, step("CLOSED")) == DONE
    assert await store.handle(at, PARTNERS, step("CLOSED")) == SAME
    assert await store.handle(at, PARTNERS, step("ASSIGNED")) == CLOSED
    steps = [(one.state, one.by) for one in await store.handlings(at)]
    assert steps == [("ACKNOWLEDGED", "amal"), ("ACKNOWLEDGED", "ilyes"), ("CLOSED", "amal")]
    assert at not in await names(store, Wanted(only_open=True)), "its bus is off route still; nobody wants to see it"
    found = await store.one(at, ["demo"])
    assert found is not None and (found.handled_state, found.closed_at) == ("CLOSED", None)
    with psycopg.connect(database_admin_url) as connection:
        audited = connection.execute("select action, actor from office.audit where entity_kind = 'incident' order by audit_id").fetchall()
    assert audited == [(f"incident.{state}", f"agent:{by}") for state, by in steps]


async def test_the_incidents_of_others_are_as_unknown_as_none(store: Incidents) -> None:
    assert await store.handle("episode-1", {"another": "p2"}, step("CLOSED")) is None
    assert await store.handle("episode-9", PARTNERS, step("CLOSED")) is None
    assert await store.one("episode-1", ["another"]) is None
