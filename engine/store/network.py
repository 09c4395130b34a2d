"""Feeds and their versions in PostgreSQL: imported whole or not at all, read back to the last bit.

An import is one transaction: the version's tables by binary COPY, then `feed.active_version_id`. Readers see the old version or the new one,
never a mixture; a process that dies in between leaves nothing. The newest `VERSIONS_KEPT` versions stay.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import date, datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

import asyncpg
import msgspec
import numpy as np

from engine.errors import Conflict
from engine.store.postgres import Postgres, statements
from engine.tracking.timetable import Agency, Pattern, Route, Service, Stop, Timetable, Trip
from geo.shape import Shape

VERSIONS_KEPT: Final = 3  # yesterday's version is still driven after midnight, and one more to go back to
IMPORT_TIMEOUT_S: Final = 300.0  # the pool's statement limit is for requests; a national feed takes a minute
DEFAULT_PARTNER: Final = "default"
_LIMIT: Final = f"{IMPORT_TIMEOUT_S:.0f}s"

_SQL = statements("network")
_LINE_HEADER = struct.Struct("<BIII")  # little endian, LINESTRING with SRID, 4326, number of points
_LINESTRING_SRID: Final = 0x20000002


class FeedRow(msgspec.Struct, frozen=True):
    """A feed in force. `version` changes with every import, so a worker compares it with what it holds."""

    feed_id: str
    partner_id: str
    version: str
    version_id: int
    timezone: str
    imported_at: datetime
    activated_at: datetime  # in force since then; a version that was put in force again is younger there than its import


class Imported(msgspec.Struct, frozen=True):
    """What an import did. `changed` False: this zip was in force already and nothing was written."""

    feed_id: str
    partner_id: str
    version: str
    changed: bool


async def import_feed(
    postgres: Postgres,
    timetable: Timetable,
    *,
    sha256: str,
    info: dict[str, Any] | None = None,
    partner_id: str | None = None,
    may_move: bool = True,
    force: bool = False,
) -> Imported:
    """Stores the timetable as the feed's newest version and puts it in force.

    `sha256`: of the zip, 64 hex digits; the zip in force is not stored again, one that is still kept is put in force again, unless `force`.
    `partner_id` None: as it was, "default" for a new feed. Raises `Unavailable`, and `Conflict` where the database refuses the rows, or,
    unless `may_move`, where the feed is another partner's.
    """
    partner = partner_id
    async with postgres.connection() as connection:
        try:
            async with connection.transaction():
                await connection.execute(_SQL["lift_limit"], _LIMIT)
                partner = partner or await connection.fetchval(_SQL["partner_of_feed"], timetable.feed_id) or DEFAULT_PARTNER
                await connection.execute(_SQL["make_partner"], partner)
                feed = await connection.fetchrow(_SQL["lock_feed"], timetable.feed_id, partner, may_move, timeout=IMPORT_TIMEOUT_S)
                if feed["partner_id"] != partner:
                    raise Conflict(f"a feed {timetable.feed_id!r} exists already; choose another name")
                same = await connection.fetch(_SQL["same_versions"], timetable.feed_id, sha256)
                if same and not force:
                    kept = next((row for row in same if row["version_id"] == feed["active_version_id"]), same[0])
                    changed = kept["version_id"] != feed["active_version_id"]
                    if changed:
                        await connection.execute(_SQL["activate"], timetable.feed_id, kept["version_id"])
                    return Imported(timetable.feed_id, partner, kept["version"], changed)
                version = timetable.version if not same else f"{timetable.version}.{_next_number(same)}"
                encoded = msgspec.json.encode(info or {}).decode()
                values = (timetable.feed_id, version, sha256, timetable.tz.key, encoded)
                version_id = await connection.fetchval(_SQL["add_version"], *values)
                await _copy(connection, version_id, timetable)
                await connection.execute(_SQL["activate"], timetable.feed_id, version_id)
                await connection.execute(_SQL["prune"], timetable.feed_id, VERSIONS_KEPT, timeout=IMPORT_TIMEOUT_S)
        except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError) as fault:
            raise Conflict(f"feed {timetable.feed_id}: the database refuses it: {fault}") from fault
    return Imported(timetable.feed_id, partner, version, True)


def _next_number(same: Sequence[Any]) -> int:
    """2 for the second time that a zip is taken, and so on; pruned versions leave no name free to be used again."""
    return max(int(row["version"].partition(".")[2] or 1) for row in same) + 1


async def feeds(postgres: Postgres) -> list[FeedRow]:
    """The feeds in force, by id. Cheap: made to be asked every few seconds. Raises `Unavailable`."""
    return [FeedRow(**row) for row in await postgres.fetch(_SQL["feeds"])]


async def versions(postgres: Postgres, feed_id: str) -> list[dict[str, Any]]:
    """The kept versions of a feed, newest first: version, sha256, imported_at, active, info (counts, feed_info.txt, number of warnings)."""
    rows = await postgres.fetch(_SQL["versions"], feed_id)
    return [{**row, "info": msgspec.json.decode(row["info"])} for row in rows]


async def load_timetable(postgres: Postgres, feed_id: str, version: str | None = None) -> Timetable | None:
    """The version in force, or the given one while it is kept; None where there is none. Raises `Unavailable`."""
    async with postgres.connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.execute(_SQL["lift_limit"], _LIMIT)
        found = await connection.fetchrow(_SQL["version"], feed_id, version)
        if found is None:
            return None
        rows = {
            name: await connection.fetch(_SQL[name], found["version_id"], timeout=IMPORT_TIMEOUT_S)
            for name in ("agencies", "stops", "routes", "services", "shapes", "patterns", "trips")
        }
    return await asyncio.to_thread(_timetable, feed_id, found["version"], found["timezone"], rows)


def _timetable(feed_id: str, version: str, timezone: str, rows: dict[str, list[Any]]) -> Timetable:
    shapes = {row["shape_id"]: _shape(row["shape_id"], row["line"]) for row in rows["shapes"]}
    patterns = {}
    for row in rows["patterns"]:
        along = np.array(row["along_m"], dtype=np.float64)
        along.setflags(write=False)
        patterns[row["pattern_id"]] = Pattern(
            row["pattern_id"],
            row["route_id"],
            row["direction_id"],
            shapes[row["shape_id"]],
            tuple(row["stop_ids"]),
            tuple(row["stop_sequences"]),
            along,
            tuple(row["timepoint"]),
            row["from_stops"],
        )
    trips = {}
    for trip_id, route_id, service_id, pattern_id, arrival_s, departure_s, *rest in rows["trips"]:
        trips[trip_id] = Trip(trip_id, route_id, service_id, patterns[pattern_id], tuple(arrival_s), tuple(departure_s), *rest)
    services = {}
    for service_id, weekdays, start, end, added, removed in rows["services"]:
        services[service_id] = Service(service_id, tuple(weekdays), start, end, frozenset(added), frozenset(removed))
    return Timetable(
        feed_id=feed_id,
        version=version,
        tz=ZoneInfo(timezone),
        agencies={row["agency_id"]: Agency(*row) for row in rows["agencies"]},
        stops={row["stop_id"]: Stop(*row) for row in rows["stops"]},
        routes={row["route_id"]: Route(*row) for row in rows["routes"]},
        services=services,
        patterns=patterns,
        trips=trips,
    )


def _shape(shape_id: str, line: bytes) -> Shape:
    """From well-known binary, little endian: a header of nine bytes, then pairs of longitude and latitude."""
    points = np.frombuffer(line, dtype="<f8", offset=9).reshape(-1, 2)
    return Shape(shape_id, points[:, 0], points[:, 1])


def _line(shape: Shape) -> bytes:
    """As extended well-known binary, which PostGIS takes in a binary COPY."""
    header = _LINE_HEADER.pack(1, _LINESTRING_SRID, 4326, len(shape.lons))
    return header + np.column_stack((shape.lons, shape.lats)).astype("<f8").tobytes()


async def _copy(connection: Any, version_id: int, timetable: Timetable) -> None:
    """All tables of a version, parents first."""
    schema = await connection.fetchval(_SQL["geometry_schema"])
    await connection.set_type_codec("geometry", schema=schema, encoder=_same, decoder=_same, format="binary")
    for table, columns, records in _records(timetable):
        await connection.copy_records_to_table(
            table,
            schema_name="network",
            columns=("version_id", *columns),
            records=_paced(version_id, records),
            timeout=IMPORT_TIMEOUT_S,
        )


async def _paced(version_id: int, records: Iterable[tuple[Any, ...]]) -> AsyncIterator[tuple[Any, ...]]:
    """Rows of COPY with a breath for the loop every few hundred: a national feed has a million of them."""
    for number, record in enumerate(records):
        if number % 256 == 255:
            await asyncio.sleep(0)
        yield (version_id, *record)


def _same(value: bytes) -> bytes:
    return value


def _records(timetable: Timetable) -> Iterable[tuple[str, tuple[str, ...], Iterable[tuple[Any, ...]]]]:
    """(table, columns, rows) of everything in a timetable; the order of the columns is that of the structs."""
    yield "agency", ("agency_id", "name", "timezone", "url"), map(msgspec.structs.astuple, timetable.agencies.values())
    stop = ("stop_id", "name", "lat", "lon", "code", "parent_station", "location_type", "platform", "wheelchair")
    yield "stop", stop, map(msgspec.structs.astuple, timetable.stops.values())
    route = ("route_id", "agency_id", "short_name", "long_name", "kind", "color", "text_color", "sort_order")
    yield "route", route, map(msgspec.structs.astuple, timetable.routes.values())
    service = ("service_id", "weekdays", "starts_on", "ends_on", "added", "removed")
    yield (
        "service",
        service,
        ((s.service_id, s.weekdays, s.start, s.end, _dates(s.added), _dates(s.removed)) for s in timetable.services.values()),
    )
    shapes = {pattern.shape.shape_id: pattern.shape for pattern in timetable.patterns.values()}
    yield "shape", ("shape_id", "line"), ((shape_id, _line(shape)) for shape_id, shape in shapes.items())
    pattern = ("pattern_id", "route_id", "direction_id", "shape_id", "stop_ids", "stop_sequences", "along_m", "timepoint", "from_stops")
    yield "pattern", pattern, map(_pattern_record, timetable.patterns.values())
    trip = ("trip_id", "route_id", "service_id", "pattern_id", "arrival_s", "departure_s", "headsign", "block_id", "short_name")
    yield "trip", (*trip, "frequency_of", "bikes", "wheelchair"), map(_trip_record, timetable.trips.values())


def _pattern_record(p: Pattern) -> tuple[Any, ...]:
    along = p.along_m.tolist()
    return p.pattern_id, p.route_id, p.direction_id, p.shape.shape_id, p.stop_ids, p.stop_sequences, along, p.timepoint, p.from_stops


def _trip_record(t: Trip) -> tuple[Any, ...]:
    times = (t.arrival_s, t.departure_s)
    rest = (t.headsign, t.block_id, t.short_name, t.frequency_of, t.bikes, t.wheelchair)
    return t.trip_id, t.route_id, t.service_id, t.pattern.pattern_id, *times, *rest


def _dates(days: frozenset[date]) -> list[date]:
    return sorted(days)
