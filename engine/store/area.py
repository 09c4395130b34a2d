"""An area in Redis, as its one owner and its readers use it: load, commit, streams, cursors.

Promises: `commit` is all or nothing and happens once: it checks the lease's token and that the batch is number n + 1
before it writes, so the same bytes may be sent again after a lost answer, and a frozen former owner is refused.
Cursors are stream ids (`ms-seq`). Every call raises `Unavailable` where Redis is away; none waits longer than its
limit.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.events import Position, Word
from engine.store.lease import Lease
from engine.store.redis import Redis, keys_of

READERS = ("history", "relay")  # who must have read an out entry before it may go
START = "0-0"  # the cursor before the first entry
DEAD_MAX = 1_000  # dead letters an area keeps; the oldest go first
GEO_LAT_MAX = 85.05  # GEOADD takes no latitude beyond it (Web Mercator); such a bus has a position and no place in the index

Entry = tuple[str, bytes]  # (stream id, payload)
Incoming = tuple[str, bytes, bool]  # (stream id, payload, it is a person's word and no fixes)


class Loaded(msgspec.Struct, frozen=True):
    """What Redis holds of an area at one instant."""

    n: int
    cursor: str
    epoch: str
    states: dict[str, bytes]
    open_incidents: list[bytes] = []


class Change(msgspec.Struct, frozen=True):
    """What one commit makes true. An empty state blob drops its key; `gone` buses leave positions, forecasts and
    the GEO index.
    """

    n: int
    cursor: str
    out: bytes  # msgpack OutBatch; b"" = nothing for history
    live: bytes  # msgpack LiveBatch
    states: dict[str, bytes]
    positions: list[tuple[Position, bytes]]
    forecasts: dict[str, bytes]  # bus id -> msgpack TripForecast; b"" drops it
    gone: list[str]
    open_incidents: dict[str, bytes] = {}  # incident id -> msgpack IncidentEvent; b"" drops it


class AreaStore:
    """One area. Cheap to make; holds no connection of its own."""

    def __init__(self, redis: Redis, area: str) -> None:
        self.redis, self.area, self.keys = redis, area, keys_of(area)
        self.lease = Lease(redis, area)

    async def _run(self, script: str, keys: list[str], args: list[Any], attempts: int = 2) -> Any:
        return await self.redis.run(script, keys, *args, attempts=attempts)

    # --- the owner ---

    async def load(self, token: str) -> Loaded | None:
        """Number, cursor, epoch and states of one instant; None: the lease is not ours. Who listens to all areas hears of this one."""
        await self.redis.add_area(self.area)
        found = await self._run("load", [self.keys.lease, self.keys.ctl, self.keys.states, self.keys.open], [token])
        if not found:
            return None
        n, cursor, epoch, flat, incidents = found
        states = {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}
        return Loaded(int(n), cursor.decode(), epoch.decode(), states, incidents)

    async def commit(self, token: str, change: Change) -> str:
        """OK, DONE (it was in already), STALE (load again) or LEASE (forget everything). Asked once: the caller
        sends it again.
        """
        k = self.keys
        keep = [item for key, blob in change.states.items() if blob for item in (key, blob)]
        drop = [key for key, blob in change.states.items() if not blob]
        positions = [item for position, blob in change.positions for item in (position.bus_id, blob)]
        forecasts = [item for bus_id, blob in change.forecasts.items() if blob for item in (bus_id, blob)]
        unsaid = [bus_id for bus_id, blob in change.forecasts.items() if not blob]
        places: list[Any] = [item for at, _ in change.positions if abs(at.lat) <= GEO_LAT_MAX for item in (at.lon, at.lat, at.bus_id)]
        going = [item for name, blob in change.open_incidents.items() if blob for item in (name, blob)]
        closed = [name for name, blob in change.open_incidents.items() if not blob]
        parts: list[list[Any]] = [keep, drop, positions, forecasts, unsaid, places, list(change.gone), going, closed]
        args: list[Any] = [token, change.n, change.cursor, change.out, k.live, change.live]
        args += [len(part) for part in parts]
        for part in parts:
            args += part
        keys = [k.lease, k.ctl, k.states, k.pos, k.eta, k.geo, k.out, k.bytes, k.open]
        return str((await self._run("commit", keys, args, attempts=1)).decode())

    async def say(self, word: Word) -> None:
        """A person's word into the area, durable once this returns and folded in its turn. Raises `Unavailable`."""
        await self.redis.append(self.area, msgspec.msgpack.encode(word), "w")

    async def read_incoming(self, cursor: str, count: int, block_ms: int) -> list[Incoming]:
        """Entries after `cursor`, oldest first; empty after `block_ms` without any."""
        found = await self.redis.entries("read", self.keys.incoming, cursor, count, block_ms)
        return [(at.decode(), fields[1], fields[0] == b"w") for at, fields in found]

    async def trim_incoming(self, cursor: str) -> int:
        """Drop what lies below the owner's committed cursor; bytes the stream still holds."""
        return int(await self._run("trim", [self.keys.incoming, self.keys.bytes], [cursor, "in"]))

    async def trim_out(self) -> int | None:
        """Drop what every reader has read; bytes the stream still holds. None: a reader has not spoken yet, so
        everything stays.
        """
        cursors = await self.redis.rare("cursors", "HMGET", self.keys.cursors, *READERS)
        if not all(cursors):
            return None
        slowest = min((cursor.decode() for cursor in cursors), key=id_order)
        return int(await self._run("trim", [self.keys.out, self.keys.bytes], [slowest, "out"]))

    async def bury(self, payload: bytes, trace: str) -> None:
        """A dead letter: the fix (or entry) whose folding raised, with its trace. Bounded."""
        await self.redis.rare("bury", "XADD", self.keys.dead, "MAXLEN", "~", DEAD_MAX, "*", "f", payload, "trace", trace)

    async def dead_letters(self, limit: int = 100) -> list[tuple[str, bytes, str]]:
        """(id, payload, trace), newest first."""
        found = await self.redis.rare("dead", "XREVRANGE", self.keys.dead, "+", "-", "COUNT", limit)
        return [(at.decode(), fields[b"f"], fields[b"trace"].decode()) for at, fields in found]

    # --- the readers ---

    async def read_out(self, cursor: str, count: int, block_ms: int) -> list[Entry]:
        """Committed batches after `cursor` as msgpack OutBatch, oldest first."""
        return await self._read(self.keys.out, cursor, count, block_ms)

    async def read_quarantine(self, cursor: str, count: int) -> list[Entry]:
        """What the door refused at once, as msgpack list[Quarantined], after `cursor`."""
        return await self._read(self.keys.quarantine, cursor, count, 0)

    async def tell_cursor(self, reader: str, cursor: str) -> None:
        """How far a reader has safely come: only for trimming, the reader's own record is the truth."""
        await self.redis.call("cursor", "HSET", self.keys.cursors, reader, cursor)

    async def told_cursor(self, reader: str) -> str | None:
        """What that reader told last."""
        found = await self.redis.rare("cursor", "HGET", self.keys.cursors, reader)
        return found.decode() if found else None

    async def is_ahead(self, cursor: str) -> bool:
        """True where a cursor lies ahead of the server's clock by over 5 s: entries to come would be passed over,
        unseen.
        """
        seconds = await self.redis.server_s(self.keys.ctl)
        return bool(id_order(cursor)[0] > (seconds + 5) * 1000)

    async def _read(self, stream: str, cursor: str, count: int, block_ms: int) -> list[Entry]:
        return [(at.decode(), fields[1]) for at, fields in await self.redis.entries("read", stream, cursor, count, block_ms)]


def id_order(cursor: str) -> tuple[int, int]:
    """A stream id as what it sorts by."""
    ms, _, seq = cursor.partition("-")
    return int(ms), int(seq or 0)
