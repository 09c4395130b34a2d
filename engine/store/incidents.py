"""Incidents in the record: lists, one with all that people did with it, and the next step of a person.

The episodes are written by history (`timescale.py`), their handling here, each step with its audit row in one transaction. Raises
`Unavailable` where the database is away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from engine.store.postgres import Postgres, statements

SQL: Final = statements("incidents")
DONE, SAME, CLOSED = "DONE", "SAME", "CLOSED"


class Episode(msgspec.Struct, frozen=True):
    """What happened: an incident without what people did with it."""

    incident_id: str
    area: str
    kind: str
    severity: str
    bus_id: str
    trip_id: str | None
    start_date: str | None
    route_id: str | None
    opened_at: datetime
    closed_at: datetime | None
    lat: float
    lon: float


class Incident(Episode, frozen=True):
    """One episode and the last that people did with it."""

    detail: str  # JSON object
    handled_by: str | None
    handled_at: datetime | None
    handled_state: str | None  # ACKNOWLEDGED | ASSIGNED | CLOSED
    assigned_to: str | None


class Handling(msgspec.Struct, frozen=True):
    """One step of a person."""

    state: str
    by: str
    at: datetime
    assigned_to: str | None
    note: str | None


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a list is narrowed to. None: any."""

    kinds: Sequence[str] | None = None
    severities: Sequence[str] | None = None
    bus_id: str | None = None
    trip_id: str | None = None
    start_date: str | None = None
    route_id: str | None = None
    since: datetime | None = None
    only_open: bool = False  # those that go on and that nobody has closed


EVERY: Final = Wanted()


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What a person does with an incident."""

    state: str
    by: str  # subject
    actor: str  # as the audit names them
    request_id: str
    assigned_to: str | None
    note: str | None
    at: datetime


class Incidents:
    """Asked by REST."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def find(
        self, areas: Sequence[str], before: datetime, after_id: str = "", wanted: Wanted = EVERY, limit: int = 20
    ) -> list[Incident]:
        """Newest first, opened before then; with `after_id` also those opened then whose id comes after it."""
        rows = await self._postgres.fetch(
            SQL["incidents"], list(areas), before, after_id, _texts(wanted.kinds), _texts(wanted.severities), wanted.bus_id, wanted.trip_id,
            wanted.start_date, wanted.route_id, wanted.since, wanted.only_open, limit,
        )  # fmt: skip
        return [Incident(*row) for row in rows]

    async def one(self, incident_id: str, areas: Sequence[str]) -> Incident | None:
        row = await self._postgres.fetchrow(SQL["incident"], incident_id, list(areas))
        return None if row is None else Incident(*row)

    async def handlings(self, incident_id: str) -> list[Handling]:
        """Oldest first."""
        return [Handling(*row) for row in await self._postgres.fetch(SQL["handlings"], incident_id)]

    async def handle(self, incident_id: str, partners: Mapping[str, str], step: Step) -> str | None:
        """DONE, SAME (it is the last step already), CLOSED (a person closed it: nothing follows), None: there is none in these areas
        (area -> partner)."""
        row = await self._postgres.fetchrow(
            SQL["handle"], incident_id, list(partners), list(partners.values()), step.state, step.by, step.actor, step.request_id,
            step.assigned_to, step.note, step.at,
        )  # fmt: skip
        return None if row is None else row[0]

    async def called(self, incident_id: str, partner_id: str, actor: str, request_id: str, facts: dict[str, Any]) -> None:
        """The audit row of a call for help."""
        await self._postgres.execute(SQL["called"], incident_id, partner_id, actor, request_id, msgspec.json.encode(facts).decode())


def _texts(given: Sequence[str] | None) -> list[str] | None:
    return None if given is None else list(given)
