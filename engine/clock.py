"""Time, ids and chance: the only module of the product that asks the operating system for any of them.

Everything else takes a `Clock` as an argument, so that a replay runs on the recorded clock and a test gives time instead of sleeping.
"""

from __future__ import annotations

import secrets
import time
from typing import Protocol


class Clock(Protocol):
    """Wall time in UTC milliseconds, a steady counter in seconds, and what must not repeat."""

    def now_ms(self) -> int:
        """UTC milliseconds since 1970."""
        ...

    def steady_s(self) -> float:
        """Seconds on a counter that never goes back; its zero means nothing."""
        ...

    def uuid7(self) -> str:
        """A UUIDv7 (RFC 9562 section 5.7): ids made later sort later."""
        ...

    def token(self, size: int = 32) -> str:
        """`size` random bytes from the operating system, as URL-safe text: fit for a secret."""
        ...


def uuid7_at(now_ms: int, chance: bytes) -> str:
    """A UUIDv7 from a time and ten random bytes."""
    rand = int.from_bytes(chance[:10], "big")
    value = (now_ms & (1 << 48) - 1) << 80
    value |= 0x7 << 76 | (rand >> 62 & 0xFFF) << 64
    value |= 0b10 << 62 | rand & (1 << 62) - 1
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class SystemClock:
    """The real one."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    steady_s = staticmethod(time.monotonic)  # asked several times a request: no frame of ours in between

    def uuid7(self) -> str:
        return uuid7_at(self.now_ms(), secrets.token_bytes(10))

    def token(self, size: int = 32) -> str:
        return secrets.token_urlsafe(size)


class ManualClock:
    """A clock that stands still until it is told: for replays and tests. Its ids and tokens count up, so a run can be repeated."""

    def __init__(self, now_ms: int = 0) -> None:
        self.at_ms = now_ms
        self._made = 0

    def now_ms(self) -> int:
        return self.at_ms

    def steady_s(self) -> float:
        return self.at_ms / 1000

    def advance(self, by_ms: int) -> None:
        self.at_ms += by_ms

    def uuid7(self) -> str:
        self._made += 1
        return uuid7_at(self.at_ms, self._made.to_bytes(10, "big"))

    def token(self, size: int = 32) -> str:
        self._made += 1
        return f"{self._made:0{size}x}"
