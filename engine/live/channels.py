"""The names of channels: what a listener may ask for, and what kind of promise stands behind each.

POSITION channels carry the newest state per vehicle: offsets may skip, nothing queues. ORDERED channels carry every message, in order,
resumed from a bounded log. Trips, routes and stops are named by their public ids, `{feed}:{gtfs_id}` (a trip instance
`{feed}:{trip_id}:{yyyymmdd}`), so the name alone says which area it belongs to.
"""

from __future__ import annotations

from typing import Final

from engine.errors import Invalid

POSITION: Final = frozenset({"bus", "trip", "route", "fleet", "stop"})
ORDERED: Final = frozenset({"seats", "booking", "incidents", "notifications"})
IN_A_FEED: Final = frozenset({"trip", "route", "stop"})  # the id begins with the feed's
NAME_MAX: Final = 200  # characters; the longest public id met in a recorded feed has 88


def kind_of(channel: str) -> str:
    """The kind of a well-formed channel name: `bus` of `bus:17`. Raises `Invalid` for anything else."""
    kind, colon, rest = channel.partition(":")
    if kind == "notifications" and not colon:
        return kind
    if kind == "notifications" or (kind not in POSITION and kind not in ORDERED):
        raise Invalid(f"no channel of kind {kind[:40]!r}; there are {', '.join(sorted(POSITION | ORDERED))}")
    if not rest or len(channel) > NAME_MAX or not channel.isprintable():
        raise Invalid(f"a {kind} channel is named {kind}:ID, of printable characters, at most {NAME_MAX} of them")
    if kind in IN_A_FEED and ":" not in rest:
        raise Invalid(f"{kind} ids begin with their feed: {kind}:FEED:ID")
    return kind


def trip_key(feed_id: str, trip_id: str, start_date: str) -> str:
    """The public id of a trip instance."""
    return f"{feed_id}:{trip_id}:{start_date}"


def spoken(channel: str) -> str:
    """The name that the wire uses: everyone's own notifications are called `notifications`."""
    return "notifications" if channel.startswith("notifications:") else channel
