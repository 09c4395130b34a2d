"""The relay: carries what must be heard once and in order from `out:{area}` to the ordered channels of the live stream.

Promises: an event reaches its channel once, by its event id, and in the order of its area, whoever is killed in
between, with or without PostgreSQL. `late` events, which repair the past, are not said to anybody. What is said where
is one table, `CHANNELS`; how, as JSON `{"t", "d"}` in the shapes of the live stream, is another, `SHAPES`. Incidents
also go into the stream that the office reads (engine/office/notices.py), at least once.

Its cursor stands in Redis beside what it publishes: a cursor that is lost begins at the stream's start, and the
channel knows the ids it said.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from engine.clock import Clock
from engine.errors import Unavailable
from engine.events import Event, IncidentEvent, OutBatch
from engine.live import frames
from engine.meter import Meter
from engine.settings import Settings
from engine.store.area import START, AreaStore
from engine.store.heard import Heard, IncidentStream
from engine.store.lease import hold
from engine.store.redis import Redis
from engine.tracking.control import PlanSource

log = logging.getLogger(__name__)

READ_COUNT: Final = 64
BLOCK_MS: Final = 1_000
AREAS_S: Final = 1.0
PAUSE_S: Final = 0.5

# event type -> the ordered channels that it is said on, by event, area and partner
CHANNELS: Final[dict[type, Callable[[Event, str, str], list[str]]]] = {
    IncidentEvent: lambda event, area, partner: [f"incidents:{partner}"] if partner else [],
}
# event type -> (t, d) of its message, by event and area
SHAPES: Final[dict[type, Callable[[Any, str], tuple[str, Any]]]] = {
    IncidentEvent: lambda event, area: ("incident", frames.incident(area, event)),
}


class Relay:
    """The one relay among all workers, by a lease."""

    def __init__(self, redis: Redis, plans: PlanSource, *, clock: Clock, settings: Settings, meter: Meter) -> None:
        self._redis, self._plans, self._clock, self._settings = redis, plans, clock, settings
        self._heard = IncidentStream(redis)
        self._out = msgspec.msgpack.Decoder(OutBatch).decode
        self._encode = msgspec.json.Encoder().encode
        self._said = meter.counter("timepoint_relay_said_total", "events said on ordered channels", ("area",))
        self._again = meter.counter("timepoint_relay_said_before_total", "events that their channel knew already", ("area",))
        self._faults = meter.counter("timepoint_relay_faults_total", "relay steps that failed", ("kind",))

    async def run(self) -> None:
        """For ever, until cancelled."""
        await hold(self._redis, "relay", self._settings, self._relay_all)

    async def _relay_all(self) -> None:
        """While the lease is ours: one task an area, new areas within a second."""
        async with asyncio.TaskGroup() as tasks:
            known: set[str] = set()
            while True:
                try:
                    for area in set(await self._redis.areas()) - known:
                        known.add(area)
                        tasks.create_task(self._relay(area), name=f"relay {area}")
                except Unavailable as away:
                    log.warning("relay waits: %s", away)
                await asyncio.sleep(AREAS_S)

    async def _relay(self, area: str) -> None:
        store = AreaStore(self._redis, area)
        cursor: str | None = None
        while True:
            try:
                if cursor is None:
                    cursor = await store.told_cursor("relay") or START
                    if await store.is_ahead(cursor):
                        log.error("relay of %s: cursor %s lies ahead of the server's clock; reading from the start", area, cursor)
                        cursor = START
                    await store.tell_cursor("relay", cursor)
                entries = await store.read_out(cursor, READ_COUNT, BLOCK_MS)
                for _, payload in entries:
                    await self._say(area, payload)
                if entries:
                    cursor = entries[-1][0]
                    await store.tell_cursor("relay", cursor)
            except Unavailable as away:
                self._faults.add(1, "Unavailable")
                log.warning("relay of %s waits: %s", area, away)
                cursor = None  # a server that comes back may have lost its tail
                await asyncio.sleep(PAUSE_S)

    async def _say(self, area: str, payload: bytes) -> None:
        try:
            events = self._out(payload).events
        except (msgspec.DecodeError, msgspec.ValidationError):  # history buries it
            self._faults.add(1, "Malformed")
            return
        plan = self._plans.get(area)
        partner = plan.partner_id if plan else ""
        for event in events:
            find = CHANNELS.get(type(event))
            if find is None or event.late:
                continue
            channels = find(event, area, partner)
            kind, body = SHAPES[type(event)](event, area) if channels else ("", None)
            for channel in channels:
                said = await self._redis.publish_ordered(channel, event.event_id, self._encode({"t": kind, "d": body}))
                (self._said if said else self._again).add(1, area)
            if partner and isinstance(event, IncidentEvent):
                await self._heard.add(Heard(area, partner, event))
