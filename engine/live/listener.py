"""Listener: one who listens, as the hub sees it, with the bounded mailbox that it has only while it reads too slowly.

A transport subclasses it (api/live.py, api/sse.py) and calls `stall` and `hub.resume` as its write buffer fills and empties. While
stalled nothing is written: the mailbox keeps the newest state per vehicle (every message of ordered channels) as bytes that all listeners
share. Past `MAILBOX_BYTES` or `MAILBOX_PARTS` the vehicles' states are dropped and the channels owe a snapshot; ordered messages are
never dropped: then the listener has to go (4408) and come back with `since`.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final

from engine.errors import EngineError
from engine.live.frames import Wire

MAILBOX_BYTES: Final = 98_304  # with 64 KiB in a stream, or the rest of a frame in a socket: under 256 KiB for one that stalls
MAILBOX_PARTS: Final = 1_000
BBOX: Final = "bbox"  # the name of a viewport's channel


class Mailbox:
    """What a stalled listener will get when it reads again."""

    __slots__ = ("bytes", "ordered", "owed", "parts")

    def __init__(self, owed: dict[str, None] | None = None) -> None:
        self.parts: dict[Hashable, bytes] = {}  # newest per key, oldest change first
        self.ordered: list[bytes] = []
        self.bytes = 0
        self.owed: dict[str, None] = owed or {}  # channels that get a snapshot instead of what was dropped

    def keep(self, key: Hashable, channels: tuple[str, ...], part: bytes) -> bool:
        """Keep the newest of that key. False: no room."""
        if self.owed and all(channel in self.owed for channel in channels):
            return True
        old = self.parts.pop(key, None)
        if old is not None:
            self.bytes -= len(old)
        if len(self.parts) >= MAILBOX_PARTS or self.bytes + len(part) > MAILBOX_BYTES:
            return False
        self.parts[key] = part
        self.bytes += len(part)
        return True

    def keep_ordered(self, part: bytes) -> bool:
        """Keep one message of an ordered channel. False: no room, and none may be dropped."""
        if len(self.ordered) >= MAILBOX_PARTS or self.bytes + len(part) > MAILBOX_BYTES:
            return False
        self.ordered.append(part)
        self.bytes += len(part)
        return True

    def owe(self, channels: dict[str, None]) -> None:
        """Drop the vehicles' states; a snapshot of each channel will stand for them."""
        self.bytes -= sum(map(len, self.parts.values()))
        self.parts.clear()
        self.owed.update(channels)


class Listener:
    """One socket or stream. `channels` maps the name of each channel to the hub's version at the moment of subscribing."""

    __slots__ = ("box", "channels", "is_later", "mailbox", "principal", "row", "wire")

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.channels: dict[str, int] = {}
        self.mailbox: Mailbox | None = None  # not None: stalled
        self.is_later = False  # True: told at ticks (engine/live/audience.py)
        self.principal: Any = None
        self.row = -1  # its row among the viewports; -1: none
        self.box: tuple[float, float, float, float] | None = None

    def write(self, frame: bytes) -> Any:
        """One framed payload. Must not block."""
        raise NotImplementedError

    def subscribed(self, ident: Any, channel: str, epoch: str, offset: int, recovered: bool) -> None:
        """Called once per granted subscription, before its first push."""
        raise NotImplementedError

    def refused(self, ident: Any, fault: EngineError) -> None:
        """Called instead, where granting needed a look at the log and that failed."""
        raise NotImplementedError

    def close(self, code: int, reason: str) -> None:
        """The hub wants it gone: a slow reader."""
        raise NotImplementedError
