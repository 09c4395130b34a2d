"""Picks: who is choosing which seats of a trip right now. Short, in Redis, and never the judge: a hold is (PostgreSQL).

Promises: all seats or none, in one call; a pick ends by itself after PICK_TTL_S; what is picked or let go stands on the ordered channel
`seats:{trip}` in the same step. An owner is whoever knows the pick's id. Raises `Unavailable` where Redis is away; losing Redis loses the
picks, and the slower of two then gets a clear 409 from their hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from engine.booking.refusals import Refused
from engine.clock import Clock
from engine.errors import Unavailable
from engine.meter import Meter
from engine.store.redis import ORDERED_LIFE_S, ORDERED_LOG, Redis, ordered_keys

ASK_TIMEOUT_S: Final = 0.25  # a hold waits for picks no longer than this, and then goes without
DEAF_MS: Final = 1_000  # nor are they asked again so soon after that
ID_BYTES: Final = 18


class _Stop(Protocol):
    @property
    def stop_id(self) -> str: ...


class PickedTrip(Protocol):
    """What we need of `engine.booking.catalogue.SoldTrip`."""

    @property
    def trip_id(self) -> str: ...
    @property
    def stops(self) -> Sequence[_Stop]: ...


class Pick(msgspec.Struct, frozen=True):
    """Seats that are yours to hold until `until_ms`."""

    pick_id: str
    until_ms: int


class Interval(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One pick of one seat, as pick.lua keeps it. Places are half open."""

    start: int
    end: int
    until_ms: int
    owner: str
    ride: str  # "from":..,"to":.. as JSON text


class Picture(msgspec.Struct, frozen=True):
    """The picks of a trip, and where its seat channel stood at that instant (epoch "" and 0: nothing was ever said)."""

    epoch: str
    offset: int
    picks: dict[str, list[Interval]]  # label -> those that are not over


class Picks:
    """All of one worker."""

    def __init__(self, redis: Redis, clock: Clock, *, ttl_s: float, meter: Meter | None = None) -> None:
        self._redis, self._clock, self._ttl_ms = redis, clock, round(ttl_s * 1000)
        self._decode = msgspec.msgpack.Decoder(list[Interval])
        self._deaf_until_ms = 0
        self._picks = (meter or Meter()).counter("timepoint_picks_total", "picks asked for, by what became of them", ("outcome",))

    async def pick(self, trip: PickedTrip, labels: Sequence[str], start: int, end: int, pick_id: str | None = None) -> Pick:
        """These seats from place `start` to place `end`, all or none; with the id of an own pick it is extended, and moved where the legs
        are others. Raises `Refused` SEAT_PICKED that names each seat that somebody else is choosing."""
        now_ms = self._clock.now_ms()
        until_ms, owner = now_ms + self._ttl_ms, pick_id or self._clock.token(ID_BYTES)
        keys, shard = _keys(trip.trip_id)
        ride, chance = _ride(trip, start, end), self._clock.token(6)
        named = _channel(trip.trip_id)
        asked = now_ms, until_ms, owner, start, end, ride, shard, chance, ORDERED_LOG, ORDERED_LIFE_S, labels, named
        said = await self._redis.run("pick", keys, msgspec.msgpack.encode(asked))
        if isinstance(said, list):
            self._picks.add(1, "SEAT_PICKED")
            taken = [label.decode() for label in said]
            faults = [
                {"pointer": f"/seats/{labels.index(label)}", "code": "SEAT_PICKED", "detail": f"{label}: somebody else is choosing it"}
                for label in taken
            ]
            raise Refused("SEAT_PICKED", f"somebody else is choosing {', '.join(taken)} right now; nothing is picked", errors=faults)
        self._picks.add(1, "PICKED")
        return Pick(owner, until_ms)

    async def unpick(self, trip: PickedTrip, pick_id: str, labels: Sequence[str] = ()) -> int:
        """Let go of a pick, or of some of its seats; how many seats. What is not there, or not theirs, is let go already."""
        return await self._unpick(trip, pick_id, labels, say="1")

    async def drop(self, trip: PickedTrip, owner: str) -> None:
        """A pick that became a hold: gone without a word, for the hold is what the map is told next."""
        await self._unpick(trip, owner, (), say="0")

    async def _unpick(self, trip: PickedTrip, owner: str, labels: Sequence[str], say: str) -> int:
        keys, shard = _keys(trip.trip_id)
        args = [self._clock.now_ms(), owner, say, shard, _channel(trip.trip_id), self._clock.token(6), ORDERED_LOG, ORDERED_LIFE_S, *labels]
        return int(await self._redis.run("unpick", keys, *args))

    async def others(self, trip: PickedTrip, labels: Sequence[str], start: int, end: int, owner: str | None) -> list[str]:
        """Those of the seats that somebody else is choosing for some of these legs. Raises `Unavailable` within ASK_TIMEOUT_S."""
        now_ms = self._clock.now_ms()
        if now_ms < self._deaf_until_ms:
            raise Unavailable("Redis did not answer a moment ago", retry_after_s=1)
        key = _keys(trip.trip_id)[0][0]
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):  # unlike wait_for, no task of its own
                found = await self._redis.call("picks", "HMGET", key, *labels)
        except (Unavailable, TimeoutError) as silent:
            self._deaf_until_ms = now_ms + DEAF_MS
            raise Unavailable("Redis does not answer (picks)", retry_after_s=1) from silent
        return [
            label
            for label, raw in zip(labels, found, strict=True)
            if raw is not None
            and any(
                pick.owner != owner and pick.until_ms > now_ms and pick.start < end and start < pick.end
                for pick in self._decode.decode(raw)
            )
        ]

    async def picture(self, trip_id: str) -> Picture:
        """All picks of a trip and where its channel stands, of one instant. Raises `Unavailable`."""
        (picks, meta, _), _ = _keys(trip_id)
        asked = ("HMGET", meta, "epoch", "offset"), ("HGETALL", picks)
        (epoch, offset), flat = await self._redis.together("picks", meta, *asked)
        now_ms, fields = self._clock.now_ms(), zip(flat[::2], flat[1::2], strict=True)
        found = {label.decode(): [pick for pick in self._decode.decode(raw) if pick.until_ms > now_ms] for label, raw in fields}
        return Picture((epoch or b"").decode(), int(offset or 0), {label: picks for label, picks in found.items() if picks})


def _keys(trip_id: str) -> tuple[list[str], str]:
    """(picks, meta, log) of the trip's seat channel in one slot of a cluster, and the pub/sub channel."""
    return ordered_keys(_channel(trip_id), "picks", "meta", "log")


def _channel(trip_id: str) -> str:
    return f"seats:{trip_id}"


def _ride(trip: PickedTrip, start: int, end: int) -> str:
    begins, ends = msgspec.json.encode(trip.stops[start].stop_id), msgspec.json.encode(trip.stops[end].stop_id)
    return f'"from":{begins.decode()},"to":{ends.decode()}'
