"""Queues of waiting rooms in Redis (`queue.lua`), and which trips are hot by themselves (`rush.lua`). Raises `Unavailable` where Redis is away."""

from __future__ import annotations

from typing import Final

from engine.store.redis import Redis

QUIET_MS: Final = 3_600_000  # a queue that nobody joined for so long is forgotten; its numbers begin anew
NEVER: Final = 2**53  # attempts a second: no trip is hot by itself


class Queue:
    """All trips."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def take(self, trip_id: str, now_ms: int, admit_per_s: float) -> tuple[int, int]:
        """(number, let in at) of a new place. Asked once only: a second try after a lost answer would lose a place."""
        keys = [f"queue:{{{trip_id}}}"]
        number, at_ms = await self._redis.run("queue", keys, now_ms, admit_per_s, QUIET_MS, attempts=1)
        return int(number), int(at_ms)

    async def report(self, tries: dict[str, int], now_ms: int, threshold_per_s: float, calm_ms: int) -> list[str]:
        """Add this worker's hold attempts of the last second; the trips that are hot by themselves."""
        most = int(min(threshold_per_s, NEVER))
        keys = ["rush:{hot}", f"rush:{{hot}}:{now_ms // 1000}"]
        args = [now_ms, most, calm_ms, *(part for pair in tries.items() for part in pair)]
        found = await self._redis.run("rush", keys, *args, attempts=1)
        return [trip_id.decode() for trip_id in found]
