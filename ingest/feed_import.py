"""From a zip to the timetable in force: what `timepoint import-gtfs` and the upload of feeds run. Rejected or interrupted, it changes nothing."""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.errors import FeedRejected, Unavailable
from engine.store import network
from engine.store.postgres import Postgres
from ingest.gtfs import ParsedFeed, Progress, parse_feed

READ_TIMEOUT_S: Final = 300.0  # a zip within the limits of ingest/archive.py takes a minute or two
CHILD_NICE: Final = 10  # reading a feed is in no hurry, the loops beside it are


class FeedReport(msgspec.Struct, frozen=True):
    """What became of a zip. `changed` False: it was in force already. `warnings`: the first 1,000, as text with file and line."""

    feed_id: str
    partner_id: str
    version: str
    changed: bool
    counts: dict[str, int]  # agencies, routes, stops, services, patterns, trips, stopTimes
    warnings: list[str]
    warnings_total: int


async def import_zip(
    postgres: Postgres,
    path: str | Path,
    *,
    feed_id: str | None = None,
    partner_id: str | None = None,
    may_move: bool = True,
    force: bool = False,
    apart: bool = False,
    progress: Progress | None = None,
) -> FeedReport:
    """Reads the zip, stores it and puts it in force. The zip that is in force already is not stored again (`force`: as a new version).

    `feed_id` None: from the file's name; `partner_id` None: the feed's partner stays; else it becomes this one's (not
    `may_move`: another partner's feed is a `Conflict`). `apart`: read it in a child process, for a program
    whose loop must not feel it; else in a thread, with progress. Raises `FeedRejected` with every complaint, `Unavailable`, `Conflict`.
    """
    say = progress or (lambda done, what: None)
    if apart:
        parsed = await _parse_apart(Path(path), feed_id)
    else:
        parsed = await asyncio.to_thread(parse_feed, path, feed_id, lambda done, what: say(done * 0.7, what))
    say(0.7, "writing to PostgreSQL")
    done = await network.import_feed(
        postgres, parsed.timetable, sha256=parsed.sha256, info=parsed.info, partner_id=partner_id, may_move=may_move, force=force
    )  # fmt: skip
    say(1.0, "in force" if done.changed else "already in force")
    warnings = [str(complaint) for complaint in parsed.warnings]
    return FeedReport(
        done.feed_id, done.partner_id, done.version, done.changed, parsed.info["counts"], warnings, parsed.warnings_total
    )  # fmt: skip


async def _parse_apart(path: Path, feed_id: str | None) -> ParsedFeed:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ingest.feed_import", str(path), feed_id or "", stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            answer, _ = await child.communicate()
    except TimeoutError as fault:
        raise FeedRejected(f"{path.name}: reading it took longer than {READ_TIMEOUT_S:.0f} s; nothing was taken") from fault
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        raise Unavailable(f"{path.name}: the process that read it ended with {child.returncode}; nothing was taken, try again")
    result: Any = await asyncio.to_thread(pickle.loads, answer)  # the pickle is of our own child
    if isinstance(result, FeedRejected):
        raise result
    parsed: ParsedFeed = result
    return parsed


def _main(path: str, feed_id: str) -> None:
    """The child: one feed in, one pickle out."""
    os.nice(CHILD_NICE)
    result: ParsedFeed | FeedRejected
    try:
        result = parse_feed(path, feed_id or None)
    except FeedRejected as fault:
        result = fault
    sys.stdout.buffer.write(pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])
