"""The relay of the outbox: what was committed is said, to whoever listens.

Promises: each event at least once; on ordered channels once (by its id); the events of one aggregate in order; the events of one partition
(all bookings of a trip are in one) in the order in which they were written, so the seat map hears what was let go before what was taken
in its place. There is no cursor: a row is said because it is not marked as said, however late it was committed.
An event that a sink refuses `outbox_tries_max` times becomes a dead letter. It holds back the later events of its aggregate, and only
those, until somebody replays it. A server that is away refuses nothing: we wait for it.
Refuses: waiting for customers. What may be slow (webhooks, mails) gets its own queue: a sink's `keep` runs in the transaction that marks
the events as said, so its queue and the outbox never disagree.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from engine.booking.seats import seat_messages
from engine.clock import Clock
from engine.errors import EngineError, Unavailable
from engine.meter import Meter
from engine.office.topics import PUBLISHABLE, TOPICS, Event, booking_data, event_of, plain_data
from engine.settings import Settings
from engine.store.lease import hold
from engine.store.office import Office, Waiting
from engine.store.outlet import Bell, Entry, Line, Outlet, Saying
from engine.store.redis import Redis

log = logging.getLogger(__name__)

PARTS: Final = 4  # partitions: `& 3` where rows are written (migrations/0021_bookings.sql)
RUN_MAX: Final = 100  # events of one round trip: bounds what Redis has to take at once
REST_MS: Final = 200  # after the first refusal of an event; doubled at each further one
AWAY_MAX_S: Final = 2.0
ERROR_MAX: Final = 500  # characters of a dead letter's error

_ENCODE: Final = msgspec.json.Encoder().encode


class Trips(Protocol):
    """What we need of `engine.booking.catalogue.Catalogue`."""

    async def by_no(self, trip_no: int) -> Any: ...
    async def labels(self, trip: Any, map_version: int) -> tuple[str, ...]: ...
    def forget(self, trip_id: str) -> None: ...


class Sink(Protocol):
    """Somewhere that events go. `lines` says what Redis is told of an event; what it raises (but `Unavailable`) is a refusal of that event."""

    name: str

    def lines(self, event: Event, body: Mapping[str, Any], trip: Any | None) -> Sequence[Line]: ...


class Seats:
    """`seats:{tripId}`: every map of the trip. After a swap of the bus what was told is worth nothing: a notice says to read the map again."""

    name = "seats"

    def lines(self, event: Event, body: Mapping[str, Any], trip: Any | None) -> Sequence[Line]:
        if event.topic == "trip" and event.type == "BUS_SWAPPED":
            notice = {"t": "notice", "d": {"what": "MAP_CHANGED", "mapVersion": body["mapVersion"]}}
            return (Saying("seats:" + body["tripId"], event.id, _ENCODE(notice)),)
        if event.topic != "booking" or trip is None:
            return ()
        channel = "seats:" + trip.trip_id
        messages = seat_messages(body, trip)
        return [Saying(channel, f"{event.id}/{i}", _ENCODE({"t": "seat", "d": said})) for i, said in enumerate(messages)]


class Bookings:
    """`booking:{ref}`: whoever holds it."""

    name = "booking"

    def lines(self, event: Event, body: Mapping[str, Any], trip: Any | None) -> Sequence[Line]:
        if event.topic != "booking" or not event.data.get("ref"):
            return ()
        said = {"type": event.type, "version": event.seq, "at": event.at, **event.data}
        return (Saying("booking:" + event.data["ref"], event.id, _ENCODE({"t": "booking", "d": said})),)


class Notices:
    """`booking:{ref}` of the passengers of a trip, and the `notifications` of those among them who sign in, and of those who follow an
    operator's incidents (engine/office/notices.py)."""

    name = "notices"

    def lines(self, event: Event, body: Mapping[str, Any], trip: Any | None) -> Sequence[Line]:
        if event.topic == "incident":
            said = _ENCODE({"t": "incident", "d": event.data})
            return [Saying("notifications:" + subject, event.id, said) for subject in body["subjects"]]
        if event.topic != "notice":
            return ()
        told = {name: value for name, value in event.data.items() if name != "bookings"}
        lines = [Saying("booking:" + ref, event.id, _notice(told, ref)) for ref in body["bookings"]]
        return lines + [Saying("notifications:" + subject, f"{event.id}/{ref}", _notice(told, ref)) for subject, ref in body["subjects"]]


def _notice(told: Mapping[str, Any], ref: str) -> bytes:
    return _ENCODE({"t": "notice", "d": {"ref": ref, **told}})


class Stream:
    """The stream `events`: programs."""

    name = "stream"

    def lines(self, event: Event, body: Mapping[str, Any], trip: Any | None) -> Sequence[Line]:
        return (Entry(event.id, event.topic, event.type, event.partner_id, _ENCODE(event)),)


SINKS: Final[tuple[Sink, ...]] = (Seats(), Bookings(), Notices(), Stream())

# Runs in the transaction that marks events as said: for sinks that keep a queue of their own in the database.
Keep = Callable[[Any, Sequence[Event]], Awaitable[None]]


class Refusal(Exception):
    """A sink does not take an event."""

    def __init__(self, sink: str, why: str) -> None:
        super().__init__(why)
        self.sink, self.why = sink, why[:ERROR_MAX]


class Counts:
    def __init__(self, meter: Meter) -> None:
        self.said = meter.counter("timepoint_outbox_said_total", "events said", ("topic",))
        self.refused = meter.counter("timepoint_outbox_refused_total", "times that a sink refused an event", ("sink",))
        self.buried = meter.counter("timepoint_office_dead_letters_total", "events that became dead letters", ("sink",))
        self.unlisted = meter.counter("timepoint_outbox_unlisted_total", "events of a type that is in no list", ("topic",))
        self.waits = meter.histogram("timepoint_outbox_wait_seconds", "from an event's row to its being said")
        self.oldest = meter.gauge("timepoint_outbox_oldest_seconds", "age of the oldest event that waits", ("part",))
        self.held = meter.gauge("timepoint_dead_letters_held", "dead letters that hold back their aggregate", ("part",))


class Dispatcher:
    """The relay of one partition: `run` while its lease is ours."""

    def __init__(
        self,
        part: int,
        office: Office,
        outlet: Outlet,
        trips: Trips,
        *,
        clock: Clock,
        settings: Settings,
        counts: Counts,
        sinks: Sequence[Sink] = SINKS,
        keep: Sequence[Keep] = (),
    ) -> None:
        self.part, self.office, self.outlet, self.trips = part, office, outlet, trips
        self.clock, self.settings, self.counts, self.sinks, self.keep = clock, settings, counts, sinks, keep
        self.wake = asyncio.Event()
        self._tries: dict[str, int] = {}  # event id -> refusals so far
        self._rests: dict[tuple[str, str], int] = {}  # chain -> not before, UTC ms

    async def run(self) -> None:
        """Until cancelled."""
        pause_s = 0.05
        while True:
            try:
                while await self.round():
                    pass
                pause_s = 0.05
            except Unavailable as away:
                log.warning("outbox %d: %s; again in %.2f s", self.part, away, pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(AWAY_MAX_S, pause_s * 2)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), self.settings.outbox_poll_ms / 1000)
            self.wake.clear()

    async def round(self) -> int:
        """Says what waits, at most `outbox_batch_max` events; how many were said. Raises `Unavailable`."""
        self.wake.clear()
        rows = await self.office.waiting(self.part, self.settings.outbox_batch_max)
        if not rows:
            return 0
        stopped = {chain for chain, until in self._rests.items() if until > self.clock.now_ms()}
        for chain in {row.chain for row in rows if row.held}:
            stopped.add(chain)
            await self.office.park(self.part, chain)
        said: list[tuple[Waiting, Event]] = []
        try:
            for run in runs(rows):
                await self._say([row for row in run if row.chain not in stopped], stopped, said)
        finally:
            if said:  # also of a round that broke off: what was said need not be said again
                await self._mark(said)
        return len(said)

    async def _say(self, run: list[Waiting], stopped: set[tuple[str, str]], said: list[tuple[Waiting, Event]]) -> None:
        """One round trip: every event in it is of another aggregate, so that a refusal holds back only what comes after."""
        lines: list[Line] = []
        made: list[tuple[Waiting, Event, list[str]]] = []  # with the sink of each of its lines
        for row in run:
            try:
                event, ours, whose = await self._lines(row)
            except Refusal as refusal:
                stopped.add(row.chain)
                await self._refused(row, refusal)
                continue
            lines += ours
            made.append((row, event, whose))
        if not made:
            return
        answers = iter(await self.outlet.say(lines))
        for row, event, whose in made:
            wrong = [(sink, why) for sink, why in [(sink, next(answers)) for sink in whose] if why is not None]
            if wrong:
                stopped.add(row.chain)
                await self._refused(row, Refusal(*wrong[0]))
            else:
                said.append((row, event))

    async def _lines(self, row: Waiting) -> tuple[Event, list[Line], list[str]]:
        """Raises `Refusal`, `Unavailable`."""
        lines: list[Line] = []
        whose: list[str] = []
        name = "event"
        try:
            trip, data = await self._read(row)
            event = event_of(row.topic, row.kind, row.aggregate, row.version, row.partner_id, row.at_ms, data)
            for sink in self.sinks:
                name = sink.name
                ours = sink.lines(event, row.body, trip)
                lines += ours
                whose += [name] * len(ours)
        except Unavailable:
            raise
        except Exception as fault:  # whatever it is, it is about this event: the others go on
            log.warning("outbox %d: %s refuses %s: %r", self.part, name, row.event_id, fault)
            raise Refusal(name, f"{type(fault).__name__}: {fault}") from fault
        return event, lines, whose

    async def _read(self, row: Waiting) -> tuple[Any | None, Any]:
        """The trip that an event names, and the event's data."""
        body = row.body
        if "tripNo" not in body or row.topic in PUBLISHABLE:  # what people say themselves names no trip of ours
            return None, plain_data(body, None, ())
        trip = await self.trips.by_no(body["tripNo"])
        if row.topic != "booking":
            return trip, plain_data(body, trip, trip.labels)
        if body["map"] > trip.map_version:  # a swap that we have not heard of yet
            self.trips.forget(trip.trip_id)
            trip = await self.trips.by_no(body["tripNo"])
        return trip, booking_data(body, trip, await self.trips.labels(trip, body["map"]))

    async def _refused(self, row: Waiting, refusal: Refusal) -> None:
        """Once more later, or a dead letter."""
        self.counts.refused.add(1, refusal.sink)
        event_id = row.event_id
        tries = self._tries[event_id] = self._tries.get(event_id, 0) + 1
        if tries < self.settings.outbox_tries_max:
            self._rests[row.chain] = self.clock.now_ms() + REST_MS * 2 ** (tries - 1)
            return
        ids = self.clock.uuid7(), self.clock.uuid7()
        request = f"outbox:{ids[0]}"
        await self.office.bury(self.part, row, ids=ids, sink=refusal.sink, attempts=tries, error=refusal.why, request=request)
        self._tries.pop(event_id, None)
        self._rests.pop(row.chain, None)
        self.counts.buried.add(1, refusal.sink)
        log.error("outbox %d: %s is a dead letter after %d tries (%s): %s", self.part, event_id, tries, refusal.sink, refusal.why)

    async def _mark(self, said: list[tuple[Waiting, Event]]) -> None:
        events = [event for _, event in said]

        async def after(connection: Any) -> None:
            for keep in self.keep:
                await keep(connection, events)

        await self.office.delivered(self.part, [row for row, _ in said], after if self.keep else None)
        now_ms = self.clock.now_ms()
        for row, _ in said:
            self.counts.said.add(1, row.topic)
            self.counts.waits.observe(max(0, now_ms - row.at_ms) / 1000)
            if row.kind not in TOPICS.get(row.topic, {}):
                self.counts.unlisted.add(1, row.topic)
            if self._tries:
                self._tries.pop(row.event_id, None)
                self._rests.pop(row.chain, None)


def runs(rows: Sequence[Waiting], most: int = RUN_MAX) -> list[list[Waiting]]:
    """The same order cut into runs, in none of which an aggregate comes twice."""
    cut: list[list[Waiting]] = []
    met: set[tuple[str, str]] = set()
    for row in rows:
        if not cut or row.chain in met or len(cut[-1]) >= most:
            cut.append([])
            met = set()
        cut[-1].append(row)
        met.add(row.chain)
    return cut


class Relay:
    """All partitions: a worker takes those whose lease it gets. `run` until cancelled."""

    def __init__(
        self,
        redis: Redis,
        office: Office,
        trips: Trips,
        bell: Bell,
        *,
        clock: Clock,
        settings: Settings,
        meter: Meter,
        keep: Sequence[Keep] = (),
    ) -> None:
        self._redis, self._office, self._settings, self._bell = redis, office, settings, bell
        self._counts = Counts(meter)
        outlet = Outlet(redis, settings.events_stream_max)
        self.dispatchers = [
            Dispatcher(part, office, outlet, trips, clock=clock, settings=settings, counts=self._counts, keep=keep) for part in range(PARTS)
        ]
        for dispatcher in self.dispatchers:
            bell.hear(dispatcher.wake.set)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._bell.listen(), name="bell")
            group.create_task(self._watch(), name="outbox lag")
            for one in self.dispatchers:
                group.create_task(hold(self._redis, f"outbox-{one.part}", self._settings, one.run), name=f"outbox {one.part}")

    async def _watch(self) -> None:
        """How far behind we are, for whoever looks at the metrics."""
        while True:
            with contextlib.suppress(EngineError):
                for lag in await self._office.lag():
                    self._counts.oldest.set(lag.oldest_s or 0.0, str(lag.part))
                    self._counts.held.set(lag.held, str(lag.part))
            await asyncio.sleep(5)
