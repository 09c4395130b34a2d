"""Feeds in a real PostgreSQL: the same to the last bit, whole or not at all, version after version."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.errors import Conflict, FeedRejected, Unavailable
from engine.meter import Meter
from engine.settings import Settings
from engine.store import network
from engine.store.postgres import Postgres
from engine.tracking.plans import Plans
from engine.tracking.timetable import Timetable
from ingest.feed_import import import_zip
from ingest.gtfs import parse_feed, read_feed
from tests.gtfs_feed import replaced, write_feed

TABLES = ("agency", "stop", "route", "service", "shape", "pattern", "trip")


@pytest.fixture
async def postgres(database_url: str) -> AsyncIterator[Postgres]:
    opened = await Postgres.connect(Settings(database_url=database_url))
    yield opened
    await opened.close()


async def rows(postgres: Postgres) -> dict[str, int]:
    return {table: (await postgres.fetchrow(f"select count(*) from network.{table}"))[0] for table in ("feed", "feed_version", *TABLES)}


def assert_same(one: Timetable, other: Timetable) -> None:
    """Everything of two timetables, to the last bit of a coordinate."""
    for name in ("feed_id", "tz", "agencies", "stops", "routes", "services"):
        assert getattr(one, name) == getattr(other, name)
    assert one.patterns.keys() == other.patterns.keys()
    for pattern_id, pattern in one.patterns.items():
        again = other.patterns[pattern_id]
        skipped = {"shape", "along_m"}
        for field in set(pattern.__struct_fields__) - skipped:
            assert getattr(pattern, field) == getattr(again, field)
        assert np.array_equal(pattern.along_m, again.along_m)
        assert pattern.shape.shape_id == again.shape.shape_id
        assert np.array_equal(pattern.shape.lons, again.shape.lons) and np.array_equal(pattern.shape.lats, again.shape.lats)
        assert np.array_equal(pattern.shape.cum_m, again.shape.cum_m)
    assert one.trips.keys() == other.trips.keys()
    for trip_id, trip in one.trips.items():
        again_trip = other.trips[trip_id]
        for field in set(trip.__struct_fields__) - {"pattern"}:
            assert getattr(trip, field) == getattr(again_trip, field)
        assert again_trip.pattern is other.patterns[trip.pattern.pattern_id], "trips share the pattern"


async def test_a_feed_comes_back_as_it_was_read(postgres: Postgres, tmp_path: Path) -> None:
    changes = {
        "frequencies.txt": "trip_id,start_time,end_time,headway_secs\nt1,06:00:00,07:00:00,900\n",
        **replaced("stops.txt", "Market", '"Place de l’Émir"'),
        **replaced("trips.txt", "1,wk,t3,East,0,,out", "1,wk,t3,,0,,"),
    }
    path = write_feed(tmp_path / "city.zip", changes)
    done = await import_zip(postgres, path)
    assert (done.feed_id, done.partner_id, done.changed) == ("city", "default", True)
    loaded = await network.load_timetable(postgres, "city")
    assert loaded is not None
    assert loaded.version == done.version
    assert_same(read_feed(path), loaded)
    assert loaded.trips["t3"].pattern.from_stops


async def test_feeds_says_what_is_in_force(postgres: Postgres, tmp_path: Path) -> None:
    assert await network.feeds(postgres) == []
    done = await import_zip(postgres, write_feed(tmp_path / "city.zip"), feed_id="b", partner_id="north")
    await import_zip(postgres, write_feed(tmp_path / "city.zip"), feed_id="a")
    found = await network.feeds(postgres)
    assert [(row.feed_id, row.partner_id, row.version) for row in found] == [("a", "default", done.version), ("b", "north", done.version)]


async def test_the_same_zip_again_writes_nothing_and_says_so(postgres: Postgres, tmp_path: Path) -> None:
    path = write_feed(tmp_path / "city.zip")
    first = await import_zip(postgres, path)
    before = await rows(postgres)
    again = await import_zip(postgres, path)
    assert (again.changed, again.version) == (False, first.version)
    assert await rows(postgres) == before


async def test_the_same_zip_on_purpose_is_a_version_of_another_name(postgres: Postgres, tmp_path: Path) -> None:
    path = write_feed(tmp_path / "city.zip")
    first = await import_zip(postgres, path)
    second = await import_zip(postgres, path, force=True)
    third = await import_zip(postgres, path, force=True)
    assert [second.version, third.version] == [f"{first.version}.2", f"{first.version}.3"]
    assert (await network.feeds(postgres))[0].version == third.version


async def test_a_feed_changes_hands_only_where_that_is_meant(postgres: Postgres, tmp_path: Path) -> None:
    mine = await import_zip(postgres, write_feed(tmp_path / "1.zip"), feed_id="city", partner_id="north")
    other = write_feed(tmp_path / "2.zip", replaced("stops.txt", "Market", "Hall"))
    with pytest.raises(Conflict, match="exists already"):
        await import_zip(postgres, other, feed_id="city", partner_id="south", may_move=False)
    [row] = await network.feeds(postgres)
    assert (row.partner_id, row.version) == ("north", mine.version)
    plans = Plans(postgres, Meter())
    await plans.refresh()
    before = plans.get("city")
    await import_zip(postgres, tmp_path / "1.zip", feed_id="city", partner_id="south")
    await plans.refresh()
    after = plans.get("city")
    assert before is not None and after is not None and after.timetable is before.timetable, "it is the same version"
    assert (before.partner_id, after.partner_id) == ("north", "south")


async def test_a_newer_feed_takes_over_and_the_older_stays_readable(postgres: Postgres, tmp_path: Path) -> None:
    old = await import_zip(postgres, write_feed(tmp_path / "1.zip"), feed_id="city", partner_id="north")
    newer = replaced("stop_times.txt", "t1,08:15:00,08:15:00", "t1,08:16:00,08:16:00")
    new = await import_zip(postgres, write_feed(tmp_path / "2.zip", newer), feed_id="city")
    assert new.partner_id == "north", "an import that names no partner leaves the feed where it is"
    loaded, kept = await network.load_timetable(postgres, "city"), await network.load_timetable(postgres, "city", old.version)
    assert loaded is not None and kept is not None
    assert (loaded.trips["t1"].arrival_s[-1], kept.trips["t1"].arrival_s[-1]) == (29_760, 29_700)
    assert [(row["version"], row["active"]) for row in await network.versions(postgres, "city")] == [
        (new.version, True),
        (old.version, False),
    ]


async def test_going_back_to_a_kept_version_writes_no_second_copy(postgres: Postgres, tmp_path: Path) -> None:
    first_zip = write_feed(tmp_path / "1.zip")
    old = await import_zip(postgres, first_zip, feed_id="city")
    await import_zip(postgres, write_feed(tmp_path / "2.zip", replaced("stops.txt", "Market", "Hall")), feed_id="city")
    before = await rows(postgres)
    [left] = await network.feeds(postgres)
    back = await import_zip(postgres, first_zip, feed_id="city")
    assert (back.changed, back.version) == (True, old.version)
    assert (await network.feeds(postgres))[0].version == old.version
    assert await rows(postgres) == before
    plans = Plans(postgres, Meter())
    await plans.refresh()
    plan = plans.get("city")
    assert plan is not None and plan.since is not None and plan.since > left.activated_at > left.imported_at, "in force since now"
    await import_zip(postgres, first_zip, feed_id="city")
    await plans.refresh()
    assert plans.get("city") is plan, "nothing has changed"


async def test_old_versions_are_pruned_but_never_the_one_in_force(postgres: Postgres, tmp_path: Path) -> None:
    made = []
    for number in range(network.VERSIONS_KEPT + 2):
        path = write_feed(tmp_path / f"{number}.zip", replaced("stops.txt", "Market", f"Market {number}"))
        made.append((await import_zip(postgres, path, feed_id="city")).version)
    kept = [row["version"] for row in await network.versions(postgres, "city")]
    assert kept == made[::-1][: network.VERSIONS_KEPT]
    assert (await rows(postgres))["stop"] == 4 * network.VERSIONS_KEPT
    assert await network.load_timetable(postgres, "city", made[0]) is None


async def test_a_bad_feed_changes_nothing(postgres: Postgres, tmp_path: Path) -> None:
    await import_zip(postgres, write_feed(tmp_path / "1.zip"), feed_id="city")
    before, in_force = await rows(postgres), await network.feeds(postgres)
    with pytest.raises(FeedRejected):
        await import_zip(postgres, write_feed(tmp_path / "2.zip", replaced("stops.txt", "36.0,3.01", "x,3.01")), feed_id="city")
    assert await rows(postgres) == before
    assert await network.feeds(postgres) == in_force


async def test_a_fault_in_the_middle_of_writing_leaves_nothing(postgres: Postgres, tmp_path: Path) -> None:
    """A trip without its service: the agency, stops, routes and patterns before it have been copied by then."""
    parsed = parse_feed(write_feed(tmp_path / "city.zip"))
    broken = parsed.timetable
    broken.services.clear()
    with pytest.raises(Conflict, match="city"):
        await network.import_feed(postgres, broken, sha256=parsed.sha256)
    assert set((await rows(postgres)).values()) == {0}


async def test_two_imports_of_one_feed_follow_one_another(postgres: Postgres, tmp_path: Path) -> None:
    paths = [write_feed(tmp_path / f"{number}.zip", replaced("stops.txt", "Market", f"M{number}")) for number in range(4)]
    done = await asyncio.gather(*(import_zip(postgres, path, feed_id="city") for path in paths))
    assert all(one.changed for one in done)
    assert (await network.feeds(postgres))[0].version in {one.version for one in done}
    assert (await rows(postgres))["feed_version"] == network.VERSIONS_KEPT


async def test_a_reader_meanwhile_sees_the_old_version_whole(postgres: Postgres, tmp_path: Path) -> None:
    old = await import_zip(postgres, write_feed(tmp_path / "1.zip"), feed_id="city")
    seen: list[tuple[str, int]] = []
    done = asyncio.Event()

    async def read() -> None:
        while not done.is_set():
            table = await network.load_timetable(postgres, "city")
            assert table is not None
            seen.append((table.version, table.trips["t1"].arrival_s[-1]))

    reader = asyncio.create_task(read())
    newer = replaced("stop_times.txt", "t1,08:15:00,08:15:00", "t1,08:16:00,08:16:00")
    new = await import_zip(postgres, write_feed(tmp_path / "2.zip", newer), feed_id="city")
    done.set()
    await reader
    assert set(seen) <= {(old.version, 29_700), (new.version, 29_760)}


async def test_an_unknown_feed_or_version_is_none(postgres: Postgres, tmp_path: Path) -> None:
    await import_zip(postgres, write_feed(tmp_path / "city.zip"))
    assert await network.load_timetable(postgres, "other") is None
    assert await network.load_timetable(postgres, "city", "0000") is None
    assert await network.versions(postgres, "other") == []


async def test_stops_and_lines_can_be_searched_by_place(postgres: Postgres, tmp_path: Path) -> None:
    await import_zip(postgres, write_feed(tmp_path / "city.zip"))
    near = await postgres.fetch(
        "select stop_id from network.stop where st_dwithin(point::geography, st_setsrid(st_makepoint(3.0101, 36.0), 4326)::geography, 50)"
    )
    assert [row["stop_id"] for row in near] == ["s2"]
    length = await postgres.fetchrow("select st_length(line::geography) from network.shape where shape_id = 'back'")
    assert length[0] == pytest.approx(3_607, abs=1)


async def test_what_was_said_at_import_is_kept_with_the_version(postgres: Postgres, tmp_path: Path) -> None:
    info = "feed_publisher_name,feed_publisher_url,feed_lang,feed_version\nCity,https://bus.example,en,7\n"
    await import_zip(postgres, write_feed(tmp_path / "city.zip", {"feed_info.txt": info}))
    (version,) = await network.versions(postgres, "city")
    assert version["info"]["feed_version"] == "7"
    assert version["info"]["counts"]["trips"] == 3
    assert msgspec.json.encode(version["info"])


async def test_a_database_that_is_away_is_said_to_be(own_postgres, tmp_path: Path) -> None:
    postgres = await Postgres.connect(Settings(database_url=own_postgres.url))
    try:
        own_postgres.stop()
        with pytest.raises(Unavailable):
            await import_zip(postgres, write_feed(tmp_path / "city.zip"))
        with pytest.raises(Unavailable):
            await network.feeds(postgres)
    finally:
        await postgres.close()


@pytest.mark.data
async def test_two_versions_of_a_real_feed_round_trip(postgres: Postgres, data_dir: Path) -> None:
    for name in ("gtfs_20250817.zip", "gtfs_20260510.zip"):
        parsed = parse_feed(data_dir / "chattanooga" / name, "carta")
        done = await network.import_feed(postgres, parsed.timetable, sha256=parsed.sha256, info=parsed.info)
        loaded = await network.load_timetable(postgres, "carta")
        assert done.changed and loaded is not None
        assert_same(parsed.timetable, loaded)
    assert (await rows(postgres))["trip"] == 2_216 + 1_848
