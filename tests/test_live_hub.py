"""The hub, with listeners that collect: who is told what, once, newest first of all."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.clock import ManualClock
from engine.errors import EngineError, Forbidden, Invalid, TooManyChannels, Unauthenticated
from engine.events import IncidentEvent, LiveBatch
from engine.live.frames import JSON, MSGPACK, Wire
from engine.live.hub import Hub, Since
from engine.live.listener import BBOX, MAILBOX_PARTS, Listener
from engine.live.table import LiveTable
from engine.settings import Settings
from tests.live_house import AT_MS, batch, forecast, position, served

PLAIN = (Wire("plain", JSON, lambda payload, last: payload), Wire("packed", MSGPACK, lambda payload, last: payload))


class Collector(Listener):
    """Decodes what it is told; a batch is taken apart into its pushes."""

    __slots__ = ("closed", "frames", "replies", "told", "write")

    def __init__(self, encoding: int = JSON) -> None:
        super().__init__(PLAIN[encoding])
        self.write = self._take
        self.told: list[Any] = []
        self.frames: list[bytes] = []
        self.replies: list[Any] = []
        self.closed: int | None = None

    def _take(self, frame: bytes) -> None:
        self.frames.append(frame)
        said = msgspec.json.decode(frame) if self.wire.encoding == JSON else msgspec.msgpack.decode(frame)
        self.told += said["d"] if said["t"] == "batch" else [said]

    def subscribed(self, ident: Any, channel: str, epoch: str, offset: int, recovered: bool) -> None:
        self.replies.append((channel, epoch, offset, recovered))

    def refused(self, ident: Any, fault: EngineError) -> None:
        self.replies.append(fault.code)

    def close(self, code: int, reason: str) -> None:
        self.closed = code

    def took_all(self) -> None:
        self.told.clear()

    def took(self) -> list[Any]:
        """What it was told since it was last asked, short: (t, ch, what)."""
        told, self.told = self.told, []
        return [(m["t"], m["ch"], [d["busId"] for d in m["d"]] if m["t"] == "snapshot" else m["d"]["busId"]) for m in told]


class Desk:
    """A table and its hub, driven by hand."""

    def __init__(self, *first: Any, **given: Any) -> None:
        self.clock = ManualClock(1_000_000)
        self.table = LiveTable()
        self.hub = Hub(
            self.table, Settings(**given), self.clock, may_listen=lambda who, channel: who == "boss" or not channel.startswith("fleet:")
        )
        for change in self.table.learn(batch(1, *first)):
            self.hub.tell(change)

    async def say(self, n: int, *positions: Any, **more: Any) -> None:
        self.hear(batch(n, *positions, **more))
        await self.hub.round()

    def hear(self, said: LiveBatch) -> None:
        change = self.table.hear(said)
        assert change is not None
        self.hub.tell(change)

    def listen(self, *channels: str, encoding: int = JSON, since: Since | None = None) -> Collector:
        listener = Collector(encoding)
        listener.principal = "boss"
        for channel in channels:
            self.hub.subscribe(listener, channel, since)
        return listener


TRIP = "trip:demo:t1:20260216"


async def test_a_snapshot_first_and_then_only_what_is_newer_than_it() -> None:
    desk = Desk(position("17"))
    desk.hear(batch(2, position("17", lat=36.8)))
    early = desk.listen("bus:17")
    assert early.replies == [("bus:17", "E", 2, False)]
    assert early.took() == [("snapshot", "bus:17", ["17"])]
    await desk.hub.round()
    assert early.took() == [], "the snapshot said number 2 already"
    await desk.say(3, position("17", lat=36.9))
    assert early.took() == [("pos", "bus:17", "17")]


async def test_a_vehicle_on_several_channels_of_a_socket_is_said_once_with_all_of_them() -> None:
    desk = Desk()
    one, other = desk.listen("bus:17", TRIP, "fleet:demo"), desk.listen("fleet:demo")
    one.took(), other.took()
    await desk.say(2, position("17"), position("18", trip="t2"))
    assert one.took() == [("pos", ["bus:17", TRIP, "fleet:demo"], "17"), ("pos", "fleet:demo", "18")]
    assert other.took() == [("pos", "fleet:demo", "17"), ("pos", "fleet:demo", "18")]
    assert len(one.frames) == len(other.frames) + 2 == 4, "both updates of the round travelled in one frame"
    last = msgspec.json.decode(one.frames[-1])
    assert last["t"] == "batch" and last["d"][0]["o"] == [2, 2, 2] and last["d"][1]["o"] == 2


async def test_the_newest_wins_where_two_batches_meet_before_a_round() -> None:
    desk = Desk(position("17"))
    listener = desk.listen("fleet:demo")
    listener.took()
    desk.hear(batch(2, position("17", lat=36.1), position("18")))
    desk.hear(batch(3, position("17", lat=36.2)))
    await desk.hub.round()
    assert [(m["o"], m["d"]["busId"], m["d"]["lat"]) for m in listener.told] == [(2, "18", 36.75), (3, "17", 36.2)]


async def test_whoever_shares_a_channel_gets_the_same_bytes() -> None:
    desk = Desk()
    crowd = [desk.listen("bus:17") for _ in range(250)]
    await desk.say(2, position("17"))
    assert len({id(listener.frames[-1]) for listener in crowd}) == 1


async def test_msgpack_says_what_json_says() -> None:
    desk = Desk(position("17"))
    listeners = [desk.listen("bus:17", TRIP, "fleet:demo", encoding=encoding) for encoding in (JSON, MSGPACK)]
    await desk.say(2, *(position(str(n)) for n in range(17, 40)), forecasts=(forecast("17", "a"),))
    assert listeners[0].told == listeners[1].told and len(listeners[0].told) > 20


async def test_leaving_a_trip_is_said_to_those_who_follow_the_trip_only() -> None:
    desk = Desk(position("17"))
    trip, bus = desk.listen(TRIP), desk.listen("bus:17")
    trip.took(), bus.took()
    await desk.say(2, position("17", trip="t2"))
    assert trip.took() == [("gone", TRIP, "17")] and bus.took() == [("pos", "bus:17", "17")]
    await desk.say(3, gone=("17",))
    assert trip.took() == [] and bus.took() == [("gone", "bus:17", "17")]


async def test_a_vehicle_that_came_and_went_between_two_rounds_was_never_there() -> None:
    desk = Desk()
    listener = desk.listen("fleet:demo")
    listener.took()
    desk.hear(batch(2, position("17")))
    desk.hear(batch(3, gone=("17",)))
    await desk.hub.round()
    assert listener.took() == []


async def test_forecasts_go_to_the_trip_whole_and_to_the_stop_alone() -> None:
    desk = Desk(position("17"))
    trip, stop = desk.listen(TRIP), desk.listen("stop:demo:b")
    trip.took(), stop.took()
    await desk.say(2, forecasts=(forecast("17", "a", "b"),), events=[served("17", "a")])
    assert trip.told[0]["t"] == "eta" and [s["stopId"] for s in trip.told[0]["d"]["stops"]] == ["demo:a", "demo:b"]
    assert trip.told[1]["t"] == "stop" and trip.told[1]["d"]["kind"] == "SERVED" and trip.told[1]["d"]["stopId"] == "demo:a"
    assert [s["stopId"] for s in stop.told[0]["d"]["stops"]] == ["demo:b"] and len(stop.told) == 1
    late = desk.listen("stop:demo:b")
    assert late.told[0]["t"] == "snapshot" and late.told[0]["d"][0]["tripId"] == "demo:t1:20260216"


# --- resume ---


async def test_a_resume_of_this_epoch_gets_only_what_changed_and_who_left() -> None:
    desk = Desk(position("17"), position("18"), position("19"))
    await desk.say(2, position("17", lat=36.8))
    await desk.say(3, position("18", trip="t2"))
    back = desk.listen(TRIP, since=Since("E", 1))
    assert back.replies == [(TRIP, "E", 3, True)]
    assert back.took() == [("gone", TRIP, "18"), ("pos", TRIP, "17")]
    assert desk.listen(TRIP, since=Since("E", 3)).told == []


@pytest.mark.parametrize(
    "since", [Since("D", 2), Since("E", 9), Since("", 0), Since("E", 0)], ids=["other epoch", "ahead of us", "nothing", "too old"]
)
async def test_a_resume_that_cannot_be_trusted_gets_a_snapshot(since: Since) -> None:
    desk = Desk(position("17"))
    await desk.say(2, position("17", lat=36.8))
    back = desk.listen(TRIP, since=since)
    assert back.replies[0][3] is False and back.took() == [("snapshot", TRIP, ["17"])]


async def test_a_new_epoch_gives_everyone_a_snapshot() -> None:
    desk = Desk(position("17"))
    bus, fleet = desk.listen("bus:17"), desk.listen("fleet:demo", "bus:17")
    bus.took(), fleet.took()
    desk.table.hear(batch(1, epoch="F"))
    for change in desk.table.learn(batch(1, position("17", lat=37.0), epoch="F")):
        desk.hub.tell(change)
    await desk.hub.round()
    assert bus.told[0]["e"] == "F" and bus.took() == [("snapshot", "bus:17", ["17"])]
    assert sorted(fleet.took()) == [("snapshot", "bus:17", ["17"]), ("snapshot", "fleet:demo", ["17"])]


# --- viewports ---


async def test_a_viewport_follows_its_box_and_says_who_left_it() -> None:
    desk = Desk(position("in", lon=3.0), position("out", lon=5.0))
    viewer = desk.listen()
    desk.hub.look(viewer, (2.5, 36, 3.5, 37))
    assert viewer.took() == [("snapshot", BBOX, ["in"])]
    await desk.say(2, position("in", lon=3.1), position("out", lon=3.2))
    assert sorted(viewer.took()) == [("pos", BBOX, "in"), ("pos", BBOX, "out")]
    await desk.say(3, position("in", lon=4.0))
    assert viewer.took() == [("gone", BBOX, "in")]
    await desk.say(4, position("in", lon=4.1), gone=("out",))
    assert viewer.took() == [("gone", BBOX, "out")]


async def test_a_moved_viewport_starts_anew_and_an_unsubscribed_one_is_silent() -> None:
    desk = Desk(position("a", lon=3.0), position("b", lon=5.0))
    viewer = desk.listen()
    desk.hub.look(viewer, (2.5, 36, 3.5, 37))
    desk.hear(batch(2, position("a", lon=3.1)))
    desk.hub.look(viewer, (4.5, 36, 5.5, 37))
    await desk.hub.round()
    assert viewer.took() == [("snapshot", BBOX, ["a"]), ("snapshot", BBOX, ["b"])], "nothing of the box before"
    desk.hub.unsubscribe(viewer, BBOX)
    await desk.say(3, position("b", lon=5.1))
    assert viewer.took() == [] and not desk.hub.later.viewports.rows


async def test_a_vehicle_in_the_box_and_on_a_channel_is_said_once() -> None:
    desk = Desk()
    viewer = desk.listen("bus:17")
    desk.hub.look(viewer, (2.5, 36, 3.5, 37))
    viewer.took()
    await desk.say(2, position("17"), position("18"))
    assert viewer.took() == [("pos", ["bus:17", BBOX], "17"), ("pos", BBOX, "18")]


async def test_more_viewports_than_there_were_rows_for() -> None:
    desk = Desk(position("17"))
    viewers = [desk.listen() for _ in range(200)]
    for viewer in viewers:
        desk.hub.look(viewer, (2.5, 36, 3.5, 37))
    await desk.say(2, position("17", lat=36.8))
    assert all(viewer.took()[-1] == ("pos", BBOX, "17") for viewer in viewers)


@pytest.mark.parametrize("box", [(0, 0, 20, 1), (0, 5, 1, 4), (-190, 0, -185, 1), (179, 0, -160, 1), (float("nan"), 0, 1, 1)])
async def test_a_box_that_is_none_or_too_big(box: tuple[float, ...]) -> None:
    with pytest.raises(Invalid):
        Desk().hub.look(Collector(), box)


# --- slow readers ---


async def test_a_stalled_listener_gets_the_newest_of_each_vehicle_in_one_frame_when_it_reads_again() -> None:
    desk = Desk(position("17"), position("18"))
    slow, quick = desk.listen("fleet:demo"), desk.listen("fleet:demo")
    slow.took()
    desk.hub.stall(slow)
    for n in range(2, 50):
        await desk.say(n, position("17", lat=36 + n / 100), position("18" if n % 2 else "19"))
    assert slow.told == [] and len(quick.told) > 90
    before = len(slow.frames)
    desk.hub.resume(slow)
    assert len(slow.frames) == before + 1
    assert {m["d"]["busId"]: m["o"] for m in slow.told} == {"17": 49, "18": 49, "19": 48}
    assert [m["o"] for m in slow.told] == sorted(m["o"] for m in slow.told)
    slow.told.clear()
    await desk.say(50, position("17"))
    assert slow.took() == [("pos", "fleet:demo", "17")] and not desk.hub.stalled


async def test_a_mailbox_that_is_full_becomes_a_snapshot() -> None:
    desk = Desk()
    slow = desk.listen("fleet:demo", "bus:b1")
    slow.took()
    desk.hub.stall(slow)
    for n in range(2, 6):
        await desk.say(n, *(position(f"b{i}", at_ms=n) for i in range(MAILBOX_PARTS + 1)))
    assert slow.mailbox is not None and slow.mailbox.bytes < 100_000 and len(slow.mailbox.parts) <= MAILBOX_PARTS
    desk.hub.resume(slow)
    snapshots = [m for m in slow.told if m["t"] == "snapshot"]
    assert {m["ch"]: len(m["d"]) for m in snapshots} == {"fleet:demo": MAILBOX_PARTS + 1, "bus:b1": 1}
    slow.told.clear()
    await desk.say(6, position("b1"))
    assert slow.took() == [("pos", ["bus:b1", "fleet:demo"], "b1")]


async def test_who_leaves_while_a_listener_is_stalled_is_gone_for_it_too() -> None:
    desk = Desk(position("17"))
    slow = desk.listen(TRIP, "bus:17")
    slow.took()
    desk.hub.stall(slow)
    await desk.say(2, position("17", lat=36.8))
    await desk.say(3, position("17", trip="t2"))
    await desk.say(4, position("17", trip="t3"))
    desk.hub.resume(slow)
    assert slow.took() == [("gone", TRIP, "17"), ("pos", "bus:17", "17")]


async def test_a_listener_that_reads_nothing_for_long_is_sent_away() -> None:
    desk = Desk(socket_stall_s=30)
    slow = desk.listen("bus:17")
    desk.hub.stall(slow)
    desk.clock.advance(29_000)
    desk.hub.sweep()
    assert slow.closed is None
    desk.clock.advance(1_500)
    desk.hub.sweep()
    assert slow.closed == 4408


async def test_a_listener_that_reads_slowly_but_reads_is_not_sent_away() -> None:
    desk = Desk(position("17"), socket_stall_s=30)
    slow = desk.listen("bus:17")
    take = slow.write

    def full_again(frame: bytes) -> None:
        """What a transport does whose buffer one frame fills."""
        take(frame)
        desk.hub.stall(slow)

    slow.write = full_again
    desk.hub.stall(slow)
    for n in range(2, 8):
        await desk.say(n, position("17", lat=36 + n / 100))
        desk.clock.advance(20_000)
        desk.hub.resume(slow)
        desk.hub.sweep()
    assert slow.closed is None and len(slow.frames) == 7
    desk.clock.advance(31_000)
    desk.hub.sweep()
    assert slow.closed == 4408


# --- who may, and how much ---


async def test_what_is_refused() -> None:
    desk = Desk(socket_subscriptions_max=2)
    listener = Collector()
    with pytest.raises(Unauthenticated):
        desk.hub.subscribe(listener, "fleet:demo")
    listener.principal = "somebody"
    with pytest.raises(Forbidden):
        desk.hub.subscribe(listener, "fleet:demo")
    for bad in ("", "bus", "bus:", "plane:1", "trip:nofeed", "bus:" + "x" * 300, "bus:a\nb", "notifications:other"):
        with pytest.raises(Invalid):
            desk.hub.subscribe(listener, bad)
    desk.hub.subscribe(listener, "bus:1")
    desk.hub.subscribe(listener, "bus:2")
    desk.hub.subscribe(listener, "bus:2")
    with pytest.raises(TooManyChannels):
        desk.hub.subscribe(listener, "bus:3")


async def test_a_listener_that_left_leaves_nothing_behind() -> None:
    desk = Desk(position("17"))
    listener = desk.listen("bus:17", TRIP, "stop:demo:a", "fleet:demo")
    desk.hub.look(listener, (2.5, 36, 3.5, 37))
    desk.hub.stall(listener)
    desk.hub.leave(listener)
    assert not desk.hub.channels and not desk.hub.later.viewports.rows and not desk.hub.stalled and not listener.channels
    listener.took()
    await desk.say(2, position("17"))
    assert listener.took() == []


async def test_nobody_listens_nothing_is_kept() -> None:
    desk = Desk()
    desk.hear(batch(2, position("17")))
    assert not desk.hub.now.pending and not desk.hub.later.pending


async def test_unsubscribing_in_the_middle_of_a_broadcast_stops_it() -> None:
    desk = Desk()
    crowd = [desk.listen("bus:17") for _ in range(150)]
    last = crowd[-1]
    last.took()
    crowd[0].write = lambda frame: desk.hub.unsubscribe(last, "bus:17")
    await desk.say(2, position("17"))
    assert last.took() == [] and crowd[-2].told[-1]["t"] == "pos"


# ------------------------------------------------------------------------------------------------ what passengers should know


def incident(saying: str = "opened", **more: Any) -> IncidentEvent:
    given = {
        "event_id": f"e-{saying}", "incident_id": "i1", "kind": "OFF_ROUTE", "severity": "MINOR", "bus_id": "17", "trip_id": "t1",
        "start_date": "20260216", "route_id": "r1", "opened_at_ms": AT_MS, "closed_at_ms": None, "lat": 36.7, "lon": 3.0,
        "detail": '{"maxOffsetM":80,"bypassedStops":[],"note":"asked Amal"}',
    }  # fmt: skip
    return IncidentEvent(**(given | more))


def troubles(listener: Collector) -> list[tuple[str, str, bool]]:
    """(code, severity, over) of the incidents since it was last asked."""
    told, listener.told = listener.told, []
    return [(m["d"]["code"], m["d"]["severity"], m["d"]["closedAt"] is not None) for m in told if m["t"] == "incident"]


async def test_the_channel_of_a_trip_tells_its_detour_when_it_begins_grows_and_ends_and_no_other_channel_does() -> None:
    desk = Desk(position("17"))
    trip, others = desk.listen(TRIP), desk.listen("bus:17", "route:demo:r1", "fleet:demo")
    await desk.say(2, events=(incident(),))
    assert troubles(trip) == [("DETOUR", "MINOR", False)]
    await desk.say(3, events=(incident("MAJOR", severity="MAJOR"),))
    await desk.say(4, events=(incident("ACKNOWLEDGED", severity="MAJOR", handled="ACKNOWLEDGED"),))
    assert troubles(trip) == [("DETOUR", "MAJOR", False)], "who looks after it is nobody else's business"
    await desk.say(5, events=(incident("closed", severity="MAJOR", closed_at_ms=AT_MS + 60_000),))
    assert troubles(trip) == [("DETOUR_OVER", "MAJOR", True)]
    assert troubles(others) == []


async def test_what_is_said_to_everybody_has_no_word_of_who_handles_it() -> None:
    desk = Desk(position("17"))
    trip = desk.listen(TRIP)
    await desk.say(2, events=(incident(handled="ASSIGNED"),))
    (said,) = [m["d"] for m in trip.told if m["t"] == "incident"]
    assert said["detail"] == {"maxOffsetM": 80, "bypassedStops": []} and said["handledState"] is None
    assert said["text"] == "The bus is on a detour; it may not call at all of its stops." and said["params"]["since"] == said["openedAt"]


@pytest.mark.parametrize("kind", ["SPEEDING", "BUNCHING", "SOS", "IDLING", "SILENT", "FENCE_ENTERED", "WRONG_WAY"])
async def test_what_is_the_operators_business_is_not_told_to_passengers(kind: str) -> None:
    desk = Desk(position("17"))
    trip = desk.listen(TRIP)
    await desk.say(2, events=(incident(kind=kind),))
    assert troubles(trip) == []


async def test_a_missed_stop_is_told_once_and_late_data_never() -> None:
    desk = Desk(position("17"))
    trip = desk.listen(TRIP)
    missed = incident("closed", kind="MISSED_STOP", closed_at_ms=AT_MS, detail='{"stopId":"a","stopSequence":1}')
    await desk.say(2, events=(missed,))
    await desk.say(3, events=(msgspec.structs.replace(missed, incident_id="i9", event_id="e9", late=True), incident("x", late=True)))
    assert troubles(trip) == [("STOP_MISSED", "MINOR", True)]
    assert troubles(desk.listen(TRIP)) == [], "it is over: a newcomer has the SKIPPED stop in the eta"


async def test_a_newcomer_gets_what_goes_on_in_the_frame_of_its_snapshot() -> None:
    desk = Desk(position("17"))
    await desk.say(2, events=(incident(), incident("b", incident_id="i2", kind="DELAYED"), incident("c", incident_id="i3", trip_id="t2")))
    late = desk.listen(TRIP)
    assert [m["t"] for m in late.told] == ["snapshot", "incident", "incident"] and len(late.frames) == 1
    assert [m["d"]["code"] for m in late.told[1:]] == ["DETOUR", "DELAYED"]


async def test_who_comes_back_hears_that_a_detour_ended_meanwhile() -> None:
    desk = Desk(position("17"))
    await desk.say(2, events=(incident(),))
    await desk.say(3, events=(incident("closed", closed_at_ms=AT_MS + 1),))
    back = desk.listen(TRIP, since=Since("E", 2))
    assert back.replies[-1][3] and troubles(back) == [("DETOUR_OVER", "MINOR", True)]
    assert troubles(desk.listen(TRIP, since=Since("E", 3))) == []
    assert not desk.listen(TRIP, since=Since("E", 0)).replies[-1][3], "before we began to hear: a snapshot"


async def test_endings_are_remembered_for_a_while_and_then_a_snapshot_stands_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.live.troubles.ENDED_MAX", 2)
    desk = Desk(position("17"))
    for n in range(2, 6):
        name = f"i{n}"
        await desk.say(n, events=(incident(name, incident_id=name), incident(name + "c", incident_id=name, closed_at_ms=AT_MS)))
    assert not desk.listen(TRIP, since=Since("E", 2)).replies[-1][3]
    assert desk.listen(TRIP, since=Since("E", 3)).replies[-1][3]


async def test_what_a_person_closed_is_over_for_passengers_though_the_bus_is_still_off_its_way() -> None:
    desk = Desk(position("17"))
    trip = desk.listen(TRIP)
    await desk.say(2, events=(incident(),))
    await desk.say(3, events=(incident("CLOSED", handled="CLOSED"),))
    assert troubles(trip) == [("DETOUR", "MINOR", False), ("DETOUR_OVER", "MINOR", True)]
    assert troubles(desk.listen(TRIP)) == []


async def test_a_new_epoch_tells_again_what_goes_on_and_a_picture_without_it_tells_its_end() -> None:
    desk = Desk(position("17"))
    await desk.say(2, events=(incident(),))
    trip = desk.listen(TRIP)
    trip.took_all()
    going = [msgspec.Raw(msgspec.msgpack.encode(incident()))]
    desk.table.lose("demo", "CONNECTED")
    for change in desk.table.learn(msgspec.structs.replace(batch(1, position("17"), epoch="F"), incidents=going)):
        desk.hub.tell(change)
    await desk.hub.round()
    assert [m["t"] for m in trip.told] == ["snapshot", "incident"], "said once, behind the snapshot"
    trip.took_all()
    desk.table.lose("demo", "CONNECTED")
    for change in desk.table.learn(batch(9, position("17"), epoch="F")):
        desk.hub.tell(change)
    await desk.hub.round()
    assert troubles(trip) == [("DETOUR_OVER", "MINOR", True)]


async def test_a_slow_reader_gets_the_newest_word_of_an_incident() -> None:
    desk = Desk(position("17"))
    trip = desk.listen(TRIP)
    trip.took_all()
    desk.hub.stall(trip)
    await desk.say(2, events=(incident(),))
    await desk.say(3, events=(incident("closed", closed_at_ms=AT_MS + 1),))
    desk.hub.resume(trip)
    assert troubles(trip) == [("DETOUR_OVER", "MINOR", True)]
