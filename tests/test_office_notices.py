"""Notices: an incident reaches its operator and the passengers of its trip once, whoever dies between, and nobody who is not concerned."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from engine.clock import ManualClock
from engine.events import IncidentEvent, OutBatch
from engine.meter import Meter
from engine.office import notices
from engine.office.notices import Notices, named, riders, saying_of
from engine.office.topics import TOPICS
from engine.settings import Settings
from engine.store.heard import STREAM, Heard, IncidentStream
from engine.store.notices import Following, NoticeBook, Passenger, Word
from engine.tracking.relay import Relay
from engine.tracking.timetable import Timetable
from tests.booking_world import OTHER, PARTNER, World
from tests.raw_redis import raw
from tests.test_office_outbox import Desk


class NoTimetable:
    def timetable(self, feed_id: str) -> Timetable | None:
        return None

    def get(self, feed_id: str) -> Any:
        return None


class NoticeDesk(Desk):
    """The world with its outbox, and the reader of incidents run by hand."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.stream = IncidentStream(world.redis)
        self.meter = Meter()
        self.reader = self.another()

    def another(self, **more: Any) -> Notices:
        return Notices(
            self.stream, self.world.pool, NoTimetable(), clock=self.clock, settings=Settings(**more), meter=self.meter
        )  # fmt: skip

    def incident(self, saying: str = "opened", **more: Any) -> IncidentEvent:
        _, trip, date = self.world.trip_id.split(":")
        at_ms = self.clock.now_ms() - 60_000
        given = {
            "event_id": f"e-{more.get('incident_id', 'i1')}-{saying}", "incident_id": "i1", "kind": "OFF_ROUTE", "severity": "MINOR",
            "bus_id": "17", "trip_id": trip, "start_date": date, "route_id": "R1", "opened_at_ms": at_ms,
            "closed_at_ms": at_ms + 30_000 if saying == "closed" else None, "lat": 36.7, "lon": 3.0, "detail": "{}",
        }  # fmt: skip
        return IncidentEvent(**(given | more))

    async def happens(self, *events: IncidentEvent) -> None:
        """The relay says it, the reader makes events of it, and the outbox tells them."""
        for event in events:
            await self.stream.add(Heard("demo", PARTNER, event))
        await self.reader.step(await self.reader.begin(), 0)
        await self.say()

    async def told(self, channel: str) -> list[Any]:
        """(t, what or kind) of the notices and incidents of a channel."""
        log = await self.redis.channel_log(channel, 0)
        bodies = [json.loads(message.payload) for message in log.messages]
        return [(one["t"], one["d"].get("what") or one["d"]["kind"]) for one in bodies if one["t"] in ("notice", "incident")]

    async def events(self, topic: str) -> list[tuple[str, int]]:
        return [(event.type, event.seq) for event in await self.stream_of(topic)]

    async def stream_of(self, topic: str) -> list[Any]:
        return [event for event in await super().stream() if event.topic == topic]  # type: ignore[misc]

    def spared(self, reason: str) -> bool:
        return f'timepoint_notices_unsaid_total{{reason="{reason}"}}' in self.meter.text()


@pytest.fixture
async def desk(database_url: str, redis_url: str) -> AsyncIterator[NoticeDesk]:
    world = await World.make(database_url, redis_url)
    yield NoticeDesk(world)
    await world.close()


async def test_a_detour_reaches_the_operator_and_every_booking_of_its_trip_and_nobody_else(desk: NoticeDesk) -> None:
    guest = (await desk.world.confirmed("1A"))["ref"]
    amal = (await desk.world.confirmed("1B", who=desk.world.customer("amal")))["ref"]
    unpaid = (await desk.world.booked("2A"))["ref"]
    elsewhere, _ = await desk.world.trip()
    other = (await desk.world.confirmed("1A", trip=elsewhere))["ref"]
    await desk.happens(desk.incident())
    assert await desk.events("incident") == [("OPENED", 1)] and await desk.events("notice") == [("DETOUR", 1)]
    assert await desk.told("booking:" + guest) == [("notice", "DETOUR")] == await desk.told("booking:" + amal)
    assert await desk.told("notifications:amal") == [("notice", "DETOUR")]
    assert await desk.told("booking:" + unpaid) == [] == await desk.told("booking:" + other)
    (event,) = await desk.stream_of("notice")
    assert event.data["bookings"] == sorted([guest, amal]) and "subjects" not in event.data
    assert event.data["text"] == "The bus is on a detour; it may not call at all of its stops." and event.partner_id == PARTNER
    (said,) = await desk.stream_of("incident")
    assert said.data.keys() == TOPICS["incident"]["OPENED"].example.keys() and said.data["tripId"] == desk.world.trip_id


async def test_a_rise_is_news_for_the_operator_and_the_end_is_news_for_both(desk: NoticeDesk) -> None:
    ref = (await desk.world.confirmed("1A"))["ref"]
    await desk.happens(
        desk.incident(), desk.incident("same"), desk.incident("MAJOR", severity="MAJOR"),
        desk.incident("ack", severity="MAJOR", handled="ACKNOWLEDGED"), desk.incident("closed", severity="MAJOR"),
    )  # fmt: skip
    assert await desk.events("incident") == [("OPENED", 1), ("RAISED", 2), ("HANDLED", 3), ("CLOSED", 4)]
    assert await desk.told("booking:" + ref) == [("notice", "DETOUR"), ("notice", "DETOUR_OVER")]


async def test_what_comes_twice_or_late_has_one_effect_or_none(desk: NoticeDesk) -> None:
    ref = (await desk.world.confirmed("1A"))["ref"]
    opened = desk.incident()
    await desk.happens(opened, opened, desk.incident("x", incident_id="i2", late=True))
    await desk.world.run("delete from office.reader")  # a cursor that was lost begins at the start
    await desk.happens(opened)
    assert await desk.events("incident") == [("OPENED", 1)] and await desk.told("booking:" + ref) == [("notice", "DETOUR")]


async def test_a_reader_that_dies_in_mid_batch_leaves_nothing_half_said(desk: NoticeDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = (await desk.world.confirmed("1A"))["ref"]
    await desk.stream.add(Heard("demo", PARTNER, desk.incident()))

    async def dies(self: NoticeBook, reader: str, cursor: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(NoticeBook, "keep_cursor", dies)
        with pytest.raises(KeyboardInterrupt):
            await desk.reader.step("0-0", 0)
    assert await desk.waiting() == 3, "the booking's own events, and none of the incident"
    second = desk.another()
    await second.step(await second.begin(), 0)
    await desk.say()
    assert await desk.told("booking:" + ref) == [("notice", "DETOUR")]


async def test_a_missed_stop_is_told_to_those_who_wanted_to_get_in_or_out_there(desk: NoticeDesk) -> None:
    out_at_c = (await desk.world.confirmed("1A", to="demo:C"))["ref"]
    in_at_c = (await desk.world.confirmed("1B", frm="demo:C"))["ref"]
    past_it = (await desk.world.confirmed("1C"))["ref"]
    missed = desk.incident("closed", kind="MISSED_STOP", detail='{"stopId":"C","stopSequence":3}')
    await desk.happens(missed)
    assert await desk.told("booking:" + out_at_c) == [("notice", "STOP_MISSED")] == await desk.told("booking:" + in_at_c)
    assert await desk.told("booking:" + past_it) == []
    assert await desk.events("incident") == [("OPENED", 1)], "one saying: it opens and is over at once"


async def test_old_news_is_kept_from_passengers_and_not_from_the_record(desk: NoticeDesk) -> None:
    ref = (await desk.world.confirmed("1A"))["ref"]
    await desk.happens(desk.incident(opened_at_ms=desk.clock.now_ms() - 901_000))
    await desk.happens(desk.incident("closed", opened_at_ms=desk.clock.now_ms() - 901_000, closed_at_ms=desk.clock.now_ms()))
    assert await desk.told("booking:" + ref) == [] and desk.spared("OLD") and desk.spared("NOT_BEGUN")
    assert [kind for kind, _ in await desk.events("incident")] == ["OPENED", "CLOSED"]


async def test_a_receiver_that_jumps_does_not_drown_the_passengers_of_a_trip(desk: NoticeDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "TRIP_NOTICES_MAX", 2)
    ref = (await desk.world.confirmed("1A"))["ref"]
    await desk.happens(*(desk.incident(incident_id=f"i{n}") for n in range(5)))
    assert len(await desk.told("booking:" + ref)) == 2 and desk.spared("TOO_MANY")
    assert len(await desk.events("incident")) == 5


async def test_what_is_the_operators_business_is_told_to_no_passenger(desk: NoticeDesk) -> None:
    ref = (await desk.world.confirmed("1A"))["ref"]
    await desk.happens(*(desk.incident(incident_id=kind, kind=kind) for kind in ("SPEEDING", "SOS", "BUNCHING", "IDLING")))
    assert await desk.told("booking:" + ref) == [] and len(await desk.events("incident")) == 4


async def test_who_follows_hears_of_what_is_bad_enough_and_of_the_kinds_they_chose(desk: NoticeDesk) -> None:
    async def follow(partner: str, subject: str, severity: str, *kinds: str) -> None:
        await desk.world.pool.run("*", lambda c: NoticeBook(c).follow(partner, subject, Following(severity, list(kinds))))

    await follow(PARTNER, "night", "MINOR")
    await follow(PARTNER, "boss", "CRITICAL")
    await follow(PARTNER, "yard", "MINOR", "SPEEDING")
    await follow(OTHER, "stranger", "MINOR")
    await desk.happens(desk.incident(), desk.incident("CRITICAL", severity="CRITICAL"), desk.incident(incident_id="s", kind="SPEEDING"))
    assert await desk.told("notifications:night") == [("incident", "OFF_ROUTE"), ("incident", "OFF_ROUTE"), ("incident", "SPEEDING")]
    assert await desk.told("notifications:boss") == [("incident", "OFF_ROUTE")]
    assert await desk.told("notifications:yard") == [("incident", "SPEEDING")]
    assert await desk.told("notifications:stranger") == []
    await follow(PARTNER, "karim", "MINOR")
    given = [desk.incident(f"for {name}", handled="ASSIGNED", detail=f'{{"assignedTo":"{name}"}}') for name in ("karim", "stranger")]
    await desk.happens(*given)
    assert await desk.told("notifications:karim") == [("incident", "OFF_ROUTE")]
    assert await desk.told("notifications:stranger") == [], "a name alone reaches nobody of another operator"


async def test_bytes_that_are_no_incident_and_notes_that_no_column_holds_hold_nobody_back(desk: NoticeDesk) -> None:
    await raw(desk.redis).xadd(STREAM, {"h": b"\xc1"})
    await desk.happens(desk.incident(incident_id="nul", detail='{"note":"\\u0000"}'), desk.incident())
    assert await desk.events("incident") == [("OPENED", 1)]
    assert 'timepoint_notices_faults_total{reason="ValueError"} 1' in desk.meter.text()
    assert 'timepoint_notices_faults_total{reason="MALFORMED"} 1' in desk.meter.text()


async def test_a_stream_that_was_cut_behind_us_is_noticed(desk: NoticeDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.store.heard.KEPT", 2)
    await desk.stream.add(Heard("demo", PARTNER, desk.incident()))
    cursor = await desk.reader.step("0-0", 0)
    assert not await desk.stream.lost(cursor)
    for n in range(3):
        await desk.stream.add(Heard("demo", PARTNER, desk.incident(incident_id=f"i{n}")))
    await raw(desk.redis).xtrim(STREAM, maxlen=2, approximate=False)
    assert await desk.stream.lost(cursor)
    assert await desk.reader.begin() == cursor
    assert 'timepoint_notices_faults_total{reason="PASSED_OVER"} 1' in desk.meter.text()


async def test_the_relay_hands_the_office_what_it_says_to_managers(desk: NoticeDesk) -> None:
    class Plans(NoTimetable):
        def get(self, feed_id: str) -> Any:
            return msgspec.defstruct("P", ["partner_id"])(PARTNER)

    relay = Relay(desk.redis, Plans(), clock=ManualClock(), settings=desk.world.settings, meter=Meter())
    late = desk.incident("late", incident_id="i2", late=True)
    await relay._say("demo", msgspec.msgpack.encode(OutBatch(1, "t", [], [desk.incident(), late])))
    await desk.reader.step("0-0", 0)
    await desk.say()
    assert await desk.events("incident") == [("OPENED", 1)]
    assert await desk.told(f"incidents:{PARTNER}") == [("incident", "OFF_ROUTE")]


async def test_the_memory_of_what_was_said_goes_when_it_is_old(desk: NoticeDesk) -> None:
    await desk.happens(desk.incident())
    await desk.world.run("update office.incident_word set at = at - interval '15 days'")
    await desk.reader._sweep()
    assert await desk.world.value("select count(*) from office.incident_word") == 0


async def test_an_incident_that_outlives_the_memory_of_it_holds_nobody_back(desk: NoticeDesk) -> None:
    await desk.happens(desk.incident())
    await desk.world.run("update office.incident_word set at = at - interval '15 days'")
    await desk.reader._sweep()
    await desk.happens(desk.incident("closed"), desk.incident(incident_id="i2"))
    assert await desk.events("incident") == [("OPENED", 1), ("OPENED", 1)]
    assert 'timepoint_notices_faults_total{reason="ValueError"} 1' in desk.meter.text()


def test_which_event_a_saying_makes() -> None:
    def event(**more: Any) -> IncidentEvent:
        given = dict.fromkeys(("trip_id", "start_date", "route_id", "closed_at_ms"))
        return IncidentEvent(**({"event_id": "e", "incident_id": "i", "kind": "OFF_ROUTE", "severity": "MINOR", "bus_id": "b",
            "opened_at_ms": 1, "lat": 0.0, "lon": 0.0, "detail": "{}"} | given | more))  # fmt: skip

    said = Word(1, 0, "MAJOR")
    assert saying_of(event(closed_at_ms=2), Word(0, 0, "")) == "OPENED"
    assert saying_of(event(severity="CRITICAL"), said) == "RAISED" and saying_of(event(severity="MAJOR"), said) is None
    assert saying_of(event(handled="CLOSED"), said) == "HANDLED" and saying_of(event(closed_at_ms=2), said) == "CLOSED"
    assert named("notice", "i") != named("incident", "i") and named("a") == named("a")
    assert riders([Passenger("R", "guest:x", 1, 4)], event(kind="MISSED_STOP", detail='{"stopSequence":2}')) == []
