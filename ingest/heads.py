"""Heads of device requests that a worker knows by heart: what the parser has read once need not be parsed again (ingest/lane.py)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ingest.http import Request

HEADS_MAX: Final = 8_192  # heads that a worker remembers: 1.5 KB each
HEAD_KEPT_MAX: Final = 2_048  # bytes of one; devices send 200 to 500
LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,7})\r\n", re.I)


class Heads:
    """Heads of requests whose credentials were good, each cut out of it the digits of its Content-Length. Who holds good credentials may fill it, so it
    is bounded: the oldest go.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, Request]] = {}  # -> where the digits stood

    def keep(self, segment: bytes, request: Request) -> None:
        """From a segment in which the parser found just this request; nothing where its body does not plainly begin behind the head."""
        end = segment.find(b"\r\n\r\n") + 4
        lengths = list(LENGTH.finditer(segment, 0, end))
        if end > HEAD_KEPT_MAX or len(lengths) != 1 or not 0 < int(lengths[0][1]) == len(segment) - end:
            return
        if len(self._known) >= HEADS_MAX:
            del self._known[next(iter(self._known))]
        start, stop = lengths[0].span(1)
        self._known[segment[:start] + segment[stop:end]] = start, request

    def drop(self, segment: bytes) -> None:
        """What `find` has found is not good any more."""
        end = segment.find(b"\r\n\r\n") + 4
        length = LENGTH.search(segment, 0, end)
        if length is not None:
            self._known.pop(segment[: length.start(1)] + segment[length.end(1) : end], None)

    def find(self, segment: bytes, most: int) -> tuple[Request, bytes] | None:
        """(the request before, the body), where the segment is a known request with another body of at most so many bytes, and nothing else."""
        end = segment.find(b"\r\n\r\n") + 4
        length = LENGTH.search(segment, 0, end)
        if length is None:
            return None
        start, stop = length.span(1)
        known = self._known.get(segment[:start] + segment[stop:end])
        if known is None or known[0] != start:
            return None
        body = segment[end:]
        return (known[1], body) if 0 < int(segment[start:stop]) == len(body) <= most else None
