"""A zip taken into force: in a thread or in a child process, with a report that says what was read and what is odd about it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.errors import FeedRejected, Unavailable
from engine.settings import Settings
from engine.store import network
from engine.store.postgres import Postgres
from ingest import feed_import
from ingest.feed_import import import_zip
from tests.gtfs_feed import replaced, write_feed


@pytest.fixture
async def postgres(database_url: str) -> AsyncIterator[Postgres]:
    opened = await Postgres.connect(Settings(database_url=database_url))
    yield opened
    await opened.close()


@pytest.mark.parametrize("apart", [False, True])
async def test_the_report_counts_and_warns(postgres: Postgres, tmp_path: Path, apart: bool) -> None:
    path = write_feed(tmp_path / "city.zip", replaced("routes.txt", "00aa11", "green"))
    report = await import_zip(postgres, path, partner_id="north", apart=apart)
    assert (report.feed_id, report.partner_id, report.changed) == ("city", "north", True)
    assert report.counts["stopTimes"] == 11
    assert report.warnings_total == 1
    assert report.warnings[0].startswith("routes.txt:2 route_color 'green': ")
    table = await network.load_timetable(postgres, "city")
    assert table is not None and table.version == report.version


@pytest.mark.parametrize("apart", [False, True])
async def test_a_rejection_carries_its_complaints(postgres: Postgres, tmp_path: Path, apart: bool) -> None:
    path = write_feed(tmp_path / "city.zip", replaced("stops.txt", "36.0,3.01", "x,3.01"))
    with pytest.raises(FeedRejected) as caught:
        await import_zip(postgres, path, apart=apart)
    assert [error["pointer"] for error in caught.value.errors] == ["stops.txt:3#stop_lat"]
    assert caught.value.facts["errors_total"] == 1
    assert await network.feeds(postgres) == []


async def test_progress_ends_at_one(postgres: Postgres, tmp_path: Path) -> None:
    heard: list[tuple[float, str]] = []
    await import_zip(postgres, write_feed(tmp_path / "city.zip"), progress=lambda done, what: heard.append((done, what)))
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert heard[-1] == (1.0, "in force")


async def test_a_reading_without_end_is_stopped(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_import, "READ_TIMEOUT_S", 0.001)
    with pytest.raises(FeedRejected, match="took longer"):
        await import_zip(postgres, write_feed(tmp_path / "city.zip"), apart=True)


async def test_a_child_that_dies_is_said_to_have(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_import.sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match="ended with 1"):
        await import_zip(postgres, write_feed(tmp_path / "city.zip"), apart=True)
