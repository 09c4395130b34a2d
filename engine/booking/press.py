"""The press: tickets printed off the loop, few at a time. What it has printed it keeps a while: people open their ticket again and again."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from engine.booking.issuing import Ticket
from engine.errors import Unavailable

AT_ONCE: Final = 1  # drawing is CPU in this process: a second one would only make both slower
WAITING_MAX: Final = 40  # a tenth of a second each: past it the caller is told to come back
KEPT_BYTES: Final = 8_388_608


class Press:
    """One of a worker."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0

    def tag(self, kind: str, tickets: Sequence[Ticket]) -> str:
        """What the print of these tickets is told apart by: everything that is printed on it."""
        facts = [
            (
                t.qr,
                t.operator,
                t.passenger,
                t.type,
                t.seat,
                t.reference,
                t.trip.bus_id,
                t.trip.headsign,
                t.start.departs_at_ms,
                t.end.arrives_at_ms,
            )
            for t in tickets
        ]
        return hashlib.sha256(repr((kind, facts)).encode()).hexdigest()[:24]

    async def print(self, kind: str, tickets: Sequence[Ticket]) -> bytes:
        """The file. Raises `Unavailable` where too many wait for theirs."""
        tag = self.tag(kind, tickets)
        known = self._kept.get(tag)
        if known is not None:
            self._kept.move_to_end(tag)
            return known
        if self._waiting >= WAITING_MAX:
            raise Unavailable("too many tickets are being printed; ask again", retry_after_s=3)
        self._waiting += 1
        try:
            async with self._turn:
                from engine.booking.paper import printed  # fonts and drawing: only where somebody prints

                made = await asyncio.to_thread(printed, kind, tickets)
        finally:
            self._waiting -= 1
        self._keep(tag, made)
        return made

    def _keep(self, tag: str, made: bytes) -> None:
        if tag not in self._kept:
            self._kept[tag] = made
            self._size += len(made)
        while self._size > KEPT_BYTES:
            self._size -= len(self._kept.popitem(last=False)[1])
