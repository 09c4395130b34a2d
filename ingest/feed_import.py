"""From a zip to the timetable in force: what `timepoint import-gtfs` and the upload of feeds run. Rejected or interrupted, it changes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from engine.store import network
from engine.store.postgres import Postgres
from ingest.gtfs import Progress, parse_feed


async def import_zip(
    postgres: Postgres,
    path: str | Path,
    *,
    feed_id: str | None = None,
    partner_id: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> network.Imported:
    """`timepoint import-gtfs`: reads the zip (in a thread, so the loop goes on), stores it and puts it in force.

    The zip that is in force already is not stored again (`force`: it is, as a new version). Raises `FeedRejected`, `Unavailable`.
    """
    say = progress or (lambda done, what: None)
    parsed = await asyncio.to_thread(parse_feed, path, feed_id, lambda done, what: say(done * 0.7, what))
    say(0.7, "writing to PostgreSQL")
    imported = await network.import_feed(
        postgres, parsed.timetable, sha256=parsed.sha256, info=parsed.info, partner_id=partner_id, force=force
    )
    say(1.0, "in force" if imported.changed else "already in force")
    return imported
