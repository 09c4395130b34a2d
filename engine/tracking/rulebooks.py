"""Rulebooks: the rules of every area that one worker holds, kept as new as the database.

Like `plans.py`, but asked once a second: a dispatcher's word should be heard while the bus still stands there. One statement answers
whether anything changed. A database that is away changes nothing: the rules in memory go on.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from engine.errors import EngineError
from engine.meter import Meter
from engine.store import rules as store
from engine.store.postgres import Postgres
from engine.tracking.rules import NO_RULES, Rules

log = logging.getLogger(__name__)

REFRESH_S: Final = 1.0


class Rulebooks:
    """Rules by feed."""

    def __init__(self, postgres: Postgres, meter: Meter) -> None:
        self._postgres = postgres
        self._rules: dict[str, Rules] = {}
        self._faults = meter.counter("timepoint_rules_refresh_faults_total", "refreshes of the rules that failed")
        self._unread = meter.counter("timepoint_fences_unread_total", "fences that could not be read and hold nowhere")

    def get(self, feed_id: str) -> Rules:
        return self._rules.get(feed_id, NO_RULES)

    async def refresh(self) -> None:
        """Loads what is new. An area whose rules cannot be read keeps those it has; others go on. Raises `Unavailable`."""
        for feed_id, number in (await store.marks(self._postgres)).items():
            known = self._rules.get(feed_id)
            if known is not None and known.number == number:
                continue
            try:
                self._rules[feed_id] = await store.load_rules(self._postgres, feed_id, number, known, self._unread.add)
            except EngineError:
                raise
            except Exception:  # whatever stands there, one operator's rules must not stop a worker
                self._faults.add(1)
                log.exception("the rules of %s cannot be read, the known ones go on", feed_id)

    async def run(self) -> None:
        """For ever: refresh, rest, again."""
        while True:
            try:
                await self.refresh()
            except EngineError as fault:
                self._faults.add(1)
                log.warning("the rules could not be refreshed, the known ones go on: %s", fault)
            await asyncio.sleep(REFRESH_S)
