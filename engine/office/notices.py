"""Notices: from an incident to those who should hear of it, as events of the outbox.

For managers an event of topic `incident` (OPENED, RAISED, HANDLED, CLOSED), which also goes to the notifications of those who follow; for the
passengers of the trip an event of topic `notice`, which goes to `booking:{ref}` of every booking that rides it and to the notifications of
those who sign in. The relay of the outbox says both, once and in order. Whoever sends mails, messages or calls webhooks is one more reader of
these two topics: `data` has a code with its parameters, and an English text.

Promises: each saying of an incident has its effect once, by its event id and in one transaction with the cursor, whoever is killed in
between; nothing is said of late data (the relay passes it over), and passengers are not told what is older than `notice_max_age_s`.
Refuses: more than `TRIP_NOTICES_MAX` notices on one trip instance (a receiver that jumps would make a detour of every jump), more than
`PASSENGERS_MAX` bookings of one. What is refused is counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, Protocol
from uuid import UUID

import msgspec

from engine.clock import Clock
from engine.errors import EngineError, Unavailable
from engine.events import IncidentEvent
from engine.live import frames
from engine.live.advice import Advice, advice
from engine.live.channels import trip_key
from engine.live.frames import rfc3339
from engine.meter import Meter
from engine.settings import Settings
from engine.store.area import START
from engine.store.desk import ALL, DeskPool
from engine.store.heard import Entry, Heard, IncidentStream
from engine.store.notices import NoticeBook, Passenger, Word
from engine.tracking.episodes import MISSED_STOP, SEVERITIES
from engine.tracking.timetable import Timetable

log = logging.getLogger(__name__)

READER: Final = "notices"
READ_COUNT: Final = 64
PASSENGERS_MAX: Final = 500  # bookings of one trip that are told; the largest coach has 100 seats
TRIP_NOTICES_MAX: Final = 12
FOLLOWERS_MAX: Final = 500
PAUSE_S: Final = 0.5
SWEEP_S: Final = 3_600.0
KEEP: Final = timedelta(days=14)  # as long as the inbox remembers
SWEPT: Final = 5_000
OPENED, RAISED, HANDLED, CLOSED = "OPENED", "RAISED", "HANDLED", "CLOSED"
CUSTOMER: Final = "customer:"


class Timetables(Protocol):
    """What we need of `engine.tracking.plans.Plans`."""

    def timetable(self, feed_id: str) -> Timetable | None: ...


def saying_of(event: IncidentEvent, word: Word) -> str | None:
    """Which event this saying makes; None: nothing that matters has changed. A missed stop opens and is over at once: OPENED."""
    if word.seq == 0:
        return OPENED
    if event.closed_at_ms is not None:
        return CLOSED
    if _rank(event.severity) > _rank(word.severity):
        return RAISED
    return HANDLED if event.handled is not None else None


def riders(passengers: Sequence[Passenger], event: IncidentEvent) -> list[Passenger]:
    """Whom of a trip's passengers an incident concerns: of a missed stop those who wanted to get in or out there, else all."""
    if event.kind != MISSED_STOP:
        return list(passengers)
    seq = msgspec.json.decode(event.detail, type=dict[str, Any]).get("stopSequence")
    return [one for one in passengers if seq in (one.from_seq, one.to_seq)]


def named(*facts: str) -> str:
    """A UUID made of what it stands for."""
    return str(UUID(bytes=hashlib.blake2b("|".join(facts).encode(), digest_size=16).digest()))


def _rank(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else -1


class Notices:
    """The one reader among all workers: `run` while its lease is ours."""

    def __init__(
        self, stream: IncidentStream, pool: DeskPool, timetables: Timetables, *, clock: Clock, settings: Settings, meter: Meter
    ) -> None:
        self._stream, self._pool, self._timetables = stream, pool, timetables
        self._clock, self._settings = clock, settings
        self._decode = msgspec.msgpack.Decoder(Heard).decode
        self._said = meter.counter("timepoint_notices_said_total", "events made of incidents, by topic", ("topic",))
        self._unsaid = meter.counter("timepoint_notices_unsaid_total", "notices that passengers were spared, by reason", ("reason",))
        self._faults = meter.counter("timepoint_notices_faults_total", "sayings of incidents that made no event, by reason", ("reason",))
        self._swept_s = float("-inf")

    async def run(self) -> None:
        """Until cancelled."""
        cursor: str | None = None
        while True:
            try:
                if cursor is None:
                    cursor = await self.begin()
                cursor = await self.step(cursor)
                await self._sweep()
            except EngineError as away:
                log.warning("notices wait: %s", away)
                cursor = None
                await asyncio.sleep(PAUSE_S)

    async def begin(self) -> str:
        """Where we were. Raises `Unavailable`."""

        async def read(connection: Any) -> str | None:
            return await NoticeBook(connection).cursor(READER)

        cursor = await self._pool.run(ALL, read) or START
        if await self._stream.lost(cursor):
            self._faults.add(1, "PASSED_OVER")
            log.error("incidents after %s have left their stream before we read them", cursor)
        return str(cursor)

    async def step(self, cursor: str, block_ms: int = 1_000) -> str:
        """What was said after that cursor, and how far we have come. Raises `Unavailable`."""
        entries = await self._stream.read(cursor, READ_COUNT, block_ms)
        if not entries:
            return cursor
        counts: dict[tuple[str, str], int] = {}

        async def work(connection: Any) -> None:
            counts.clear()
            book = NoticeBook(connection)
            for entry in entries:
                await self._take(connection, book, entry, counts)
            await book.keep_cursor(READER, entries[-1][0])

        await self._pool.run(ALL, work)
        for (metric, label), count in counts.items():
            {"said": self._said, "unsaid": self._unsaid, "fault": self._faults}[metric].add(count, label)
        return entries[-1][0]

    async def _take(self, connection: Any, book: NoticeBook, entry: Entry, counts: dict[tuple[str, str], int]) -> None:
        """One entry, in a savepoint: what cannot be said of one holds back none of the others."""
        try:
            heard = self._decode(entry[1])
            async with connection.transaction():
                for key in await self._say(book, heard):
                    counts[key] = counts.get(key, 0) + 1
        except (msgspec.DecodeError, msgspec.ValidationError) as fault:
            counts["fault", "MALFORMED"] = counts.get(("fault", "MALFORMED"), 0) + 1
            log.error("a saying of an incident does not decode: %s", fault)
        except Unavailable:
            raise
        except (ValueError, LookupError, TypeError) as fault:
            counts["fault", type(fault).__name__] = counts.get(("fault", type(fault).__name__), 0) + 1
            log.exception("a saying of an incident made no event")

    async def _say(self, book: NoticeBook, heard: Heard) -> list[tuple[str, str]]:
        """The events of one saying; (metric, label) of what became of it."""
        event = heard.event
        if event.late or not await book.is_new(READER, event.event_id):
            return []
        trip = None if event.trip_id is None or event.start_date is None else trip_key(heard.area, event.trip_id, event.start_date)
        word = await book.word(event.incident_id, heard.partner_id, trip)
        saying = saying_of(event, word)
        if saying is None:
            return []
        told = advice(heard.area, event, self._timetables.timetable(heard.area))
        body: dict[str, Any] = msgspec.to_builtins(frames.incident(heard.area, event))
        body["subjects"] = await self._followers(book, heard, saying)
        await book.say(heard.partner_id, "incident", saying, named("incident", event.incident_id), word.seq + 1, body)
        counts = [("said", "incident")]
        notices = 0
        if told is not None and trip is not None and saying in (OPENED, CLOSED):
            why = await self._notify(book, heard, trip, word, saying, told)
            notices = why == ""
            counts.append(("unsaid", why) if why else ("said", "notice"))
        severity = event.severity if _rank(event.severity) > _rank(word.severity) else word.severity
        await book.said(event.incident_id, Word(word.seq + 1, word.told + notices, severity))
        return counts

    async def _followers(self, book: NoticeBook, heard: Heard, saying: str) -> list[str]:
        """Who hears of it on their notifications: who follows; of an assignment whoever it was given to, if they follow. A name alone is
        free text, and must not reach people of other operators."""
        event = heard.event
        following = await book.followers(heard.partner_id, event.kind, event.severity, FOLLOWERS_MAX)
        if saying != HANDLED:
            return following
        to = msgspec.json.decode(event.detail, type=dict[str, Any]).get("assignedTo")
        return [to] if event.handled == "ASSIGNED" and to in following else []

    async def _notify(self, book: NoticeBook, heard: Heard, trip: str, word: Word, saying: str, told: Advice) -> str:
        """Tells the passengers; "" where it did, else why not."""
        event = heard.event
        at_ms = event.closed_at_ms if saying == CLOSED and event.closed_at_ms is not None else event.opened_at_ms
        if saying == CLOSED and not word.told:
            return "NOT_BEGUN"  # who did not hear of the beginning need not hear of the end
        if self._clock.now_ms() - at_ms > self._settings.notice_max_age_s * 1000:
            return "OLD"
        if saying == OPENED and await book.told_on_trip(trip) >= TRIP_NOTICES_MAX:
            return "TOO_MANY"
        among = riders(await book.passengers(trip, PASSENGERS_MAX), event)
        if not among:
            return "NOBODY"
        body = {
            "what": told.code,
            "tripId": trip,
            "incidentId": event.incident_id,
            "text": told.text,
            "params": msgspec.to_builtins(told.params),
            "at": rfc3339(at_ms),
            "bookings": [one.ref for one in among],
            "subjects": [[one.holder.removeprefix(CUSTOMER), one.ref] for one in among if one.holder.startswith(CUSTOMER)],
        }
        await book.say(heard.partner_id, "notice", told.code, named("notice", event.incident_id), word.told + 1, body)
        return ""

    async def _sweep(self) -> None:
        """Once an hour: what was said of incidents that are long over."""
        now_s = self._clock.steady_s()
        if now_s - self._swept_s < SWEEP_S:
            return
        self._swept_s = now_s
        await self._pool.run(ALL, lambda connection: NoticeBook(connection).sweep(KEEP, SWEPT))
