"""The waiting room of a rush: a trip that too many want at once lets in so many a second, in the order in which they came.

Who joins the queue gets a signed token that says when they are let in; nobody keeps it, and judging one costs an HMAC. A room is open (there
is no queue) unless the trip is **hot**: its operator said so, or more holds a second were tried on it than `rush_threshold_per_s`, over all
workers. `check` costs two look-ups in memory while the trip is not hot; what is hot is read once a second. With Redis away every room is
open: PostgreSQL judges seats anyway, the room only spares everybody the crowd.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import math
from typing import Final, Protocol

import msgspec

from engine.booking.refusals import Refused
from engine.clock import Clock
from engine.errors import EngineError, Unavailable
from engine.meter import Meter
from engine.settings import Settings

log = logging.getLogger(__name__)

ON, OFF, AUTO = "ON", "OFF", "AUTO"
REFRESH_S: Final = 1.0
SWITCH_EVERY: Final = 2  # the operators' switches are read at every second refresh
TRIES_MAX: Final = 10_000  # trips counted between two refreshes; a guesser of ids gets no more memory than that
_MAC: Final = 16
_SIZE: Final = 8 + 6 + 6 + _MAC


class Place(msgspec.Struct, frozen=True, rename="camel"):
    """A place in a trip's queue. `position`: how many are let in before."""

    queue_token: str
    position: int
    admitted_at_ms: int


class Switch(msgspec.Struct, frozen=True):
    """What an operator said about a trip's room. `admit_per_s` None: the setting."""

    mode: str
    admit_per_s: float | None


class QueueTokens:
    """Signs and reads places: trip, number, when it is let in."""

    def __init__(self, secret: str) -> None:
        self._key = hashlib.sha256(b"queue token:" + secret.encode()).digest()

    def mint(self, trip_id: str, number: int, admitted_at_ms: int) -> str:
        said = _trip(trip_id) + number.to_bytes(6, "big") + admitted_at_ms.to_bytes(6, "big")
        return base64.urlsafe_b64encode(said + self._mac(said)).decode()

    def read(self, trip_id: str, token: str) -> int | None:
        """When it is let in (UTC ms); None: forged, malformed, or for another trip."""
        try:
            raw = base64.b64decode(token.encode("ascii"), b"-_", validate=True)
        except (ValueError, binascii.Error, UnicodeEncodeError):
            return None
        if len(raw) != _SIZE or not hmac.compare_digest(self._mac(raw[:-_MAC]), raw[-_MAC:]) or raw[:8] != _trip(trip_id):
            return None
        return int.from_bytes(raw[14:20], "big")

    def _mac(self, said: bytes) -> bytes:
        return hmac.digest(self._key, said, "sha256")[:_MAC]


def _trip(trip_id: str) -> bytes:
    return hashlib.sha256(trip_id.encode()).digest()[:8]


class Queue(Protocol):
    """What we need of `engine.store.queue.Queue`. Raise `Unavailable` where Redis is away."""

    async def take(self, trip_id: str, now_ms: int, admit_per_s: float) -> tuple[int, int]:
        """(number, let in at) of a new place."""
        ...

    async def report(self, tries: dict[str, int], now_ms: int, threshold_per_s: float, calm_ms: int) -> list[str]:
        """Add this worker's hold attempts of the last second; the trips that are hot by themselves."""
        ...


class Switches(Protocol):
    """What we need of `engine.store.waiting.Rooms`."""

    async def switches(self) -> dict[str, Switch]:
        """Of every trip still to come that has one other than AUTO."""
        ...


class Room:
    """The rooms of all trips, as one worker knows them."""

    def __init__(
        self, queue: Queue, switches: Switches, secret: str, *, clock: Clock, settings: Settings, meter: Meter | None = None
    ) -> None:
        self._queue, self._switches, self._tokens = queue, switches, QueueTokens(secret)
        self._clock, self._settings = clock, settings
        self._tries: dict[str, int] = {}  # hold attempts since the last refresh
        self._hot: dict[str, float] = {}  # trip -> people let in a second
        self._said: dict[str, Switch] = {}
        self._turn = 0
        meter = meter or Meter()
        self._turned_away = meter.counter("timepoint_waiting_room_total", "holds turned away by a waiting room, by why", ("why",))
        self._rooms = meter.gauge("timepoint_waiting_rooms", "trips whose waiting room is closed")

    def is_hot(self, trip_id: str) -> bool:
        return trip_id in self._hot

    async def check(self, trip_id: str, queue_token: str | None) -> None:
        """Counts a hold attempt. Raises `Refused` WAITING_ROOM for who has to queue, or to wait on."""
        tries = self._tries
        if trip_id in tries or len(tries) < TRIES_MAX:
            tries[trip_id] = tries.get(trip_id, 0) + 1
        if trip_id not in self._hot:
            return
        now_ms, admitted_at_ms = self._clock.now_ms(), None if queue_token is None else self._tokens.read(trip_id, queue_token)
        if admitted_at_ms is None:
            raise self._away(trip_id, "NO_QUEUE_TOKEN" if queue_token is None else "QUEUE_TOKEN_INVALID", 1.0)
        if now_ms < admitted_at_ms:
            raise self._away(trip_id, "NOT_YET", (admitted_at_ms - now_ms) / 1000)
        if now_ms > admitted_at_ms + self._settings.rush_pass_s * 1000:
            raise self._away(trip_id, "QUEUE_TOKEN_OVER", 1.0)

    async def join(self, trip_id: str) -> Place:
        """A new place at the end of the trip's queue; let in at once where there is none."""
        now_ms = self._clock.now_ms()
        number, at_ms = 0, now_ms
        rate = self._hot.get(trip_id)
        if rate is not None:
            try:
                number, at_ms = await self._queue.take(trip_id, now_ms, rate)
            except Unavailable:
                rate = None  # the room is open
        ahead = 0 if rate is None else math.ceil((at_ms - now_ms) * rate / 1000)
        return Place(self._tokens.mint(trip_id, number, at_ms), max(0, ahead), at_ms)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.refresh()
            except EngineError as fault:
                log.warning("waiting rooms: %s", fault)
            await asyncio.sleep(REFRESH_S)

    async def refresh(self) -> None:
        """What is hot now. Raises `Unavailable` where PostgreSQL is away (what operators said stays as it was)."""
        tries, self._tries = self._tries, {}
        now_ms, settings = self._clock.now_ms(), self._settings
        threshold = settings.rush_threshold_per_s or math.inf
        try:
            by_itself = await self._queue.report(tries, now_ms, threshold, settings.rush_calm_s * 1000)
        except Unavailable:
            self._set({})
            return
        try:
            if self._turn % SWITCH_EVERY == 0:
                self._said = await self._switches.switches()
            self._turn += 1
        finally:
            hot = dict.fromkeys(by_itself, settings.rush_admit_per_s)
            for trip_id, switch in self._said.items():
                if switch.mode == OFF:
                    hot.pop(trip_id, None)
                elif switch.mode == ON or trip_id in hot:
                    hot[trip_id] = switch.admit_per_s or settings.rush_admit_per_s
            self._set(hot)

    def _set(self, hot: dict[str, float]) -> None:
        self._hot = hot
        self._rooms.set(len(hot))

    def _away(self, trip_id: str, why: str, after_s: float) -> Refused:
        self._turned_away.add(1, why)
        where = f"POST /v1/trips/{trip_id}/queue, then send its queueToken as X-Queue-Token"
        detail = f"many want {trip_id} right now: {where}"
        if why == "NOT_YET":
            detail = f"you are in the queue of {trip_id}: come back with the same token in {math.ceil(after_s)} s"
        return Refused("WAITING_ROOM", detail, retry_after_s=after_s, errors=[{"pointer": "X-Queue-Token", "code": why, "detail": where}])
