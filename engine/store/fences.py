"""Geofences in PostgreSQL: every statement of `fences.sql`. `load_fences` is for workers, who track for every operator; `FenceBook` for the
office, on one connection inside a transaction of one tenant, so that the audit row goes with the change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import asyncpg
import msgspec

from engine.errors import NotFound
from engine.store.fleet import Executor
from engine.store.postgres import statements
from engine.tracking.fence_index import Fence, FenceIndex
from engine.tracking.hours import Calendar, Hours, hours_of
from geo.drawing import drawn
from geo.fence import Area

log = logging.getLogger(__name__)

FIRST: Final = "00000000-0000-0000-0000-000000000000"
KMH: Final = 3.6
BUILD_HERE: Final = 50  # changed fences that are read on the loop
_SQL: Final = statements("fences")


class Drawn(msgspec.Struct, frozen=True):
    """A drawing with what follows from it, as it is kept."""

    drawing: dict[str, Any]
    area: Area

    def columns(self) -> tuple[Any, ...]:
        """drawing, shape, radius_m, half_width_m, depth_m, box."""
        area, kind = self.area, self.drawing["type"]
        shape = {"type": "Point" if kind == "Circle" else kind, "coordinates": self.drawing["coordinates"]}
        return (
            self.drawing, msgspec.json.encode(shape).decode(), self.drawing.get("radiusM"), self.drawing.get("halfWidthM"), area.depth_m,
            area.west, area.south, area.east, area.north,
        )  # fmt: skip


async def load_fences(
    run: Executor, feed_id: str, known: FenceIndex | None = None, unread: Callable[[], None] = lambda: None
) -> FenceIndex:
    """The fences in force in an area; `known` itself where nothing has changed since it was loaded. Raises `Unavailable`.

    The mark is taken first: what commits between the reads is read now or next time, never missed. A fence of another program version that
    cannot be read is logged, told to `unread`, and holds nowhere.
    """
    mark = (await run.fetchrow(_SQL["mark"]))["mark"]  # type: ignore[index]  # a select without from has one row
    rows = await run.fetch(_SQL["since"], feed_id, known.mark if known is not None else 0)
    known = known if known is not None else FenceIndex(mark=mark)
    if len(rows) > BUILD_HERE:  # a quarter of a second for ten thousand: the loop goes on meanwhile
        return await asyncio.to_thread(_built, known, rows, mark, unread)
    return _built(known, rows, mark, unread)


def _built(known: FenceIndex, rows: list[Any], mark: int, unread: Callable[[], None]) -> FenceIndex:
    changed, gone = [], []
    for row in rows:
        had = known.by_id.get(row["fence_id"])
        if row["retired"]:
            if had is not None:
                gone.append(row["fence_id"])
        elif had is None or had.version != row["version"]:
            fence = _fence(row)
            if fence is not None:
                changed.append(fence)
                continue
            unread()
            if had is not None:  # what it was before is no longer what its operator wants
                gone.append(row["fence_id"])
    if changed or gone:
        return known.changed(changed, gone, mark)
    known.mark = mark  # the rows below it need not be read again
    return known


def _fence(row: Any) -> Fence | None:
    try:
        area = drawn(msgspec.json.decode(row["drawing"]), row["depth_m"])
        hours: Hours | None = None
        if row["calendar"] is not None:
            hours = hours_of(msgspec.json.decode(row["calendar"], type=Calendar), "UTC")
    except Exception:  # whatever stands there, the others hold; counted by the caller
        log.exception("fence %s cannot be read and holds nowhere", row["fence_id"])
        return None
    limit = row["limit_kmh"]
    return Fence(
        row["fence_id"],
        row["name"],
        row["kind"],
        area,
        severity=row["severity"],
        hours=hours,
        buses=row["buses"],
        routes=row["routes"],
        limit_mps=None if limit is None else limit / KMH,
        version=row["version"],
    )


class FenceBook:
    """Rows come back as mappings of their columns; None: not there, or not this operator's."""

    def __init__(self, connection: Any) -> None:
        self._run = connection

    async def fences(
        self,
        partner_id: str,
        after: str,
        limit: int,
        *,
        retired: bool = False,
        feed_id: str | None = None,
        kind: str | None = None,
        box: tuple[float, float, float, float] | None = None,
    ) -> list[Any]:
        """`box`: west, south, east, north; west > east goes over the 180th meridian."""
        if box is not None and box[0] > box[2]:
            box = (box[0], box[1], box[2] + 360.0, box[3])
        edges = None if box is None else list(box)
        return list(await self._run.fetch(_SQL["fences"], partner_id, after, limit, retired, feed_id, kind, edges))

    async def fence(self, partner_id: str, fence_id: str) -> Any | None:
        return await self._run.fetchrow(_SQL["fence_for_update"], partner_id, fence_id)

    async def count(self, feed_id: str) -> int:
        return int(await self._run.fetchval(_SQL["count"], feed_id))

    async def add(
        self,
        fence_id: str,
        partner_id: str,
        feed_id: str,
        name: str,
        kind: str,
        severity: str,
        made: Drawn,
        calendar: Any,
        buses: list[str],
        routes: list[str],
        limit_kmh: float | None,
        by: str,
    ) -> Any:
        """Raises `NotFound` where there is no such partner or feed."""
        given = fence_id, partner_id, feed_id, name, kind, severity, *made.columns(), calendar, buses, routes, limit_kmh, by
        try:
            return await self._run.fetchrow(_SQL["add"], *given)
        except asyncpg.ForeignKeyViolationError as fault:
            raise NotFound(f"no feed {feed_id!r} of partner {partner_id!r}") from fault

    async def change(
        self,
        partner_id: str,
        fence_id: str,
        name: str,
        severity: str,
        made: Drawn,
        calendar: Any,
        buses: list[str],
        routes: list[str],
        limit_kmh: float | None,
        by: str,
    ) -> Any:
        given = partner_id, fence_id, name, severity, *made.columns(), calendar, buses, routes, limit_kmh, by
        return await self._run.fetchrow(_SQL["change"], *given)

    async def retire(self, partner_id: str, fence_id: str, by: str) -> Any:
        return await self._run.fetchrow(_SQL["retire"], partner_id, fence_id, by)
