"""Public ids: `{feed}:{gtfs_id}` for routes, stops and trips, `{feed}:{trip_id}:{yyyymmdd}` for a trip instance (contract, "REST").

A feed's name has no colon; what follows the first one is the feed's own id, which may have any. Beside them the id of a request, and the
version that every answer names.
"""

from __future__ import annotations

import re
from typing import Final

from engine.clock import Clock
from engine.errors import NotFound
from engine.live.channels import trip_key
from ingest.http import REQUEST_ID

__all__ = ["VERSION", "public_id", "request_id", "split_id", "split_trip", "trip_key"]

VERSION: Final = b"1"
_DATE: Final = re.compile(r"(19|20)\d{6}")


def public_id(feed_id: str, local: str) -> str:
    return f"{feed_id}:{local}"


def split_id(public: str, what: str) -> tuple[str, str]:
    """(feed, the feed's own id). Raises `NotFound`: an id of another form names nothing."""
    feed, colon, local = public.partition(":")
    if not colon or not feed or not local:
        raise NotFound(f"no {what} {public!r}: {what} ids read FEED:ID")
    return feed, local


def split_trip(public: str) -> tuple[str, str, str]:
    """(feed, trip_id, start_date) of a trip instance. Raises `NotFound`."""
    feed, _, rest = public.partition(":")
    trip_id, colon, start_date = rest.rpartition(":")
    if not feed or not colon or not trip_id or not _DATE.fullmatch(start_date):
        raise NotFound(f"no trip {public!r}: trip ids read FEED:TRIP_ID:YYYYMMDD")
    return feed, trip_id, start_date


def request_id(given: bytes | None, clock: Clock) -> str:
    """The caller's own `X-Request-Id` where it is a decent one, else a fresh one."""
    return given.decode() if given and REQUEST_ID.match(given) else clock.uuid7()
