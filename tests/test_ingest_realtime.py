"""Another system's vehicles as fixes of ours: asked over real HTTP, through the same door, into one area, and nothing more than was allowed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.transit import gtfs_realtime_pb2 as rt

from api.realtime import RealtimeFeed
from engine.clock import ManualClock, SystemClock
from engine.errors import Invalid
from engine.meter import Meter
from engine.office.accounts import BusRow, Devices
from engine.settings import Settings
from engine.store.fleet import Fleet
from engine.store.network import import_feed
from engine.store.postgres import Postgres
from engine.store.redis import Redis
from engine.tracking.fix import Fix
from engine.tracking.plans import Plans
from ingest import realtime
from ingest.door import Door
from ingest.realtime import PollFault, RealtimeReader, Source, poll, read_sources
from tests.reads_house import at, driving
from tests.small_world import DAY, feed

NOW_MS = at("2026-03-02T08:10:00+01:00")
Answer = tuple[int, dict[str, str], bytes]


class Elsewhere:
    """A web server of another system: answers what the test says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer: Callable[[str, dict[str, str]], Answer] = lambda path, headers: (404, {}, b"")
        self.asked: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.asked.append((self.path, headers))
                status, more, body = outer.answer(self.path, headers)
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    made = Elsewhere()
    yield made
    made.server.shutdown()
    made.server.server_close()


def message(*vehicles: dict[str, Any], at_s: int = NOW_MS // 1000) -> rt.FeedMessage:
    said = rt.FeedMessage()
    said.header.gtfs_realtime_version = "2.0"
    said.header.timestamp = at_s
    for number, given in enumerate(vehicles):
        entity = said.entity.add()
        entity.id = f"e{number}"
        vehicle = entity.vehicle
        vehicle.vehicle.id = given.get("id", "")
        vehicle.position.latitude, vehicle.position.longitude = given.get("place", (36.75, 3.06))
        vehicle.timestamp = given.get("at_s", at_s)
        for name in ("trip_id", "start_date", "start_time"):
            if name in given:
                setattr(vehicle.trip, name, given[name])
    return said


class Reading:
    """A reader with its door, and what came to the stream of an area."""

    def __init__(self, redis: Redis, fleet: Fleet, registry: Devices, plans: Plans, door: Door, clock: ManualClock) -> None:
        self.redis, self.fleet, self.registry, self.plans, self.door, self.clock = redis, fleet, registry, plans, door, clock
        self.meter = Meter()

    def reader(self, *sources: Source) -> RealtimeReader:
        return RealtimeReader(list(sources), self.door, self.registry, self.fleet, self.plans, self.clock, self.meter)

    async def fixes(self, area: str = "demo") -> list[Fix]:
        import redis.asyncio as client

        connection = client.Redis.from_url(self.door.settings.redis_url)
        rows = await connection.xrange(f"in:{{{area}}}")
        await connection.aclose()
        return [fix for _, fields in rows for fix in msgspec.msgpack.decode(fields[b"f"], type=list[Fix])]


@pytest.fixture
async def reading(database_url: str, redis_url: str) -> AsyncIterator[Reading]:
    settings = Settings(database_url=database_url, redis_url=redis_url)
    clock = ManualClock(NOW_MS)
    postgres, redis = await Postgres.connect(settings), await Redis.connect(settings)
    await import_feed(postgres, feed(), sha256="0" * 64, partner_id="demo")
    await postgres.execute("insert into partner (partner_id, name) values ('other', 'other')")
    plans, fleet = Plans(postgres, Meter()), Fleet(postgres)
    await plans.refresh()
    await fleet.put_buses([BusRow("b1", "demo", "demo", "", None), BusRow("o1", "other", "elsewhere", "", None)])
    registry = Devices(fleet, clock, secret_key="")
    await registry.load()
    yield Reading(redis, fleet, registry, plans, Door(registry, redis, settings, clock), clock)
    await redis.close()
    await postgres.close()


async def test_our_own_feed_read_back_is_where_our_buses_were(reading: Reading, elsewhere: Elsewhere) -> None:
    plan = reading.plans.get("demo")
    assert plan is not None
    position = driving("b1", at_ms=NOW_MS - 5_000, lat=36.7512, lon=3.0634)
    built = RealtimeFeed("demo").vehicle_positions([position], plan.timetable, NOW_MS, as_json=False)

    def answer(path: str, headers: dict[str, str]) -> Answer:
        return (304, {}, b"") if headers.get("if-none-match") == built.etag else (200, {"ETag": built.etag}, built.body)

    elsewhere.answer = answer
    source = Source("demo", elsewhere.url + "/gtfs-rt/vehicle-positions.pb?feed=demo", {"X-Api-Key": "secret"}, every_s=1)
    reader = reading.reader(source)
    task = asyncio.create_task(reader.run())
    for _ in range(400):
        if len(elsewhere.asked) >= 2:
            break
        await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    (fix,) = await reading.fixes()
    assert (fix.bus_id, fix.trip_id, fix.start_date, fix.source) == ("b1", "T0", DAY, "gtfs-rt")
    assert (fix.lat, fix.lon) == (pytest.approx(36.7512, abs=1e-5), pytest.approx(3.0634, abs=1e-5))
    assert (fix.fixed_at_ms, fix.received_at_ms, fix.speed_mps, fix.bearing_deg) == (NOW_MS - 5_000, NOW_MS, 8.0, 90.0)
    first, second = elsewhere.asked[:2]
    assert first[0] == "/gtfs-rt/vehicle-positions.pb?feed=demo" and first[1]["x-api-key"] == "secret" and "if-none-match" not in first[1]
    assert second[1]["if-none-match"] == built.etag
    polls = reading.meter.counter(
        "timepoint_realtime_in_polls_total", "polls of other systems' feeds, by what they brought", ("area", "outcome")
    )
    assert polls.value("demo", "TAKEN") == 1 and polls.value("demo", "UNCHANGED") >= 1


async def test_a_vehicle_that_says_nothing_new_is_no_fix(reading: Reading) -> None:
    reader, source = reading.reader(), Source("demo", "http://x")
    assert await reader.take(source, message({"id": "b1"})) == 1
    assert await reader.take(source, message({"id": "b1"}, at_s=NOW_MS // 1000)) == 0
    assert await reader.take(source, message({"id": "b1", "at_s": NOW_MS // 1000 + 5})) == 1


async def test_strangers_and_the_buses_of_others_are_quarantined_once_an_hour(reading: Reading) -> None:
    reader, source = reading.reader(), Source("demo", "http://x")
    kept: list[str] = []
    reading.door.keep = lambda device, refused, source: kept.extend(one.reason + " " + str(one.bus_id) for one in refused)  # type: ignore[method-assign]
    for step in range(3):
        later = NOW_MS // 1000 + step * 15
        assert (
            await reader.take(source, message({"id": "b1", "at_s": later}, {"id": "o1", "at_s": later}, {"id": "new", "at_s": later})) == 1
        )
    assert kept == ["NOT_YOUR_BUS o1", "NOT_YOUR_BUS new"]
    assert {fix.bus_id for fix in await reading.fixes()} == {"b1"}
    reading.clock.advance(3_600_000)
    await reader.take(source, message({"id": "new"}))
    assert len(kept) == 3


async def test_a_source_that_may_bring_its_buses_does_but_takes_none_from_another_operator(reading: Reading) -> None:
    source = Source("demo", "http://x", prefix="city-", buses={"4711": "b1"}, unknown="create")
    made = message({"id": "4711"}, {"id": "Bus 12/a"}, {"id": ""})
    made.entity[2].id = "7"
    assert await reading.reader().take(source, made) == 3
    assert sorted(fix.bus_id for fix in await reading.fixes()) == ["b1", "city-7", "city-Bus-12-a"]
    bus = reading.registry.buses["city-7"]
    assert (bus.partner_id, bus.area) == ("demo", "demo")
    assert await reading.reader().take(Source("demo", "http://x", unknown="create"), message({"id": "o1"})) == 0


async def test_what_no_device_could_send_is_refused_as_of_a_device(reading: Reading) -> None:
    kept: list[str] = []
    reading.door.keep = lambda device, refused, source: kept.extend(one.reason for one in refused)  # type: ignore[method-assign]
    said = message({"id": "b1", "place": (0.0, 0.0)}, {"id": "b1", "place": (99.0, 3.0)}, {"id": "b1", "at_s": 5}, {"id": "x" * 80})
    said.entity.add(id="no position").vehicle.vehicle.id = "b1"
    said.entity.add(id="gone", is_deleted=True).vehicle.vehicle.id = "b1"
    assert await reading.reader().take(Source("demo", "http://x"), said) == 0
    assert kept == ["ZERO_ISLAND", "RANGE", "ABSURD_TIME", "MALFORMED", "MALFORMED"]


async def test_trips_are_named_where_they_are_ours(reading: Reading) -> None:
    plan = reading.plans.get("demo")
    assert plan is not None
    trips = plan.timetable.trips
    trips["T2"] = msgspec.structs.replace(trips["T2"], frequency_of="F")
    said = message(
        {"id": "a", "trip_id": "T1", "start_date": DAY},
        {"id": "b", "trip_id": "none of ours"},
        {"id": "c", "trip_id": "F", "start_time": "10:00:00"},
        {"id": "d", "trip_id": "F", "start_time": "10:01:00"},
        {"id": "e", "trip_id": "T1", "start_date": "tomorrow"},
        {"id": "f", "trip_id": "T1"},
    )
    said.entity[5].vehicle.trip.schedule_relationship = rt.TripDescriptor.CANCELED
    found, refused = realtime.sightings(said, Source("demo", "http://x"), plan, "d", NOW_MS)
    assert [(one.fix.trip_id, one.fix.start_date) for one in found] == [
        ("T1", DAY),
        (None, None),
        ("T2", None),
        (None, None),
        ("T1", None),
        (None, None),
    ]
    assert not refused


def ask(source: Source, **more: Any) -> Any:
    return poll(source, None, None, SystemClock(), **more)


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("file:///etc/passwd", "sends us on"),
        ("gopher://x/", "sends us on"),
        ("http://[", "sends us on"),
        ("", "sends us on"),
        ("/again", "more than 3 redirects"),
    ],
)
def test_a_redirect_leads_to_http_or_nowhere(elsewhere: Elsewhere, location: str, words: str) -> None:
    elsewhere.answer = lambda path, headers: (302, {"Location": location}, b"")
    with pytest.raises(PollFault, match=words):
        ask(Source("demo", elsewhere.url + "/feed"))
    assert len(elsewhere.asked) <= 4


def test_nobody_is_sent_from_https_to_http() -> None:
    with pytest.raises(PollFault, match="from https to http"):
        realtime._next_url("https://a.example/feed", "http://a.example/feed")
    assert realtime._next_url("http://a.example/feed", "https://b.example/x") == "https://b.example/x"


def test_the_secret_is_for_the_named_host_alone(elsewhere: Elsewhere) -> None:
    other = Elsewhere()
    try:
        elsewhere.answer = lambda path, headers: (307, {"Location": other.url + "/moved"}, b"")
        other.answer = lambda path, headers: (200, {}, message({"id": "b1"}).SerializeToString())
        polled = ask(Source("demo", elsewhere.url + "/feed", {"Authorization": "Bearer s3cret"}))
        assert len(polled.message.entity) == 1
        assert elsewhere.asked[0][1]["authorization"] == "Bearer s3cret" and "authorization" not in other.asked[0][1]
    finally:
        other.server.shutdown()
        other.server.server_close()


@pytest.mark.parametrize(
    ("answer", "words"), [((500, {}, b""), "answers 500"), ((200, {}, b"<html>"), "no GTFS-Realtime"), ((401, {}, b""), "answers 401")]
)
def test_a_feed_that_is_none_is_a_fault_with_words(elsewhere: Elsewhere, answer: Answer, words: str) -> None:
    elsewhere.answer = lambda path, headers: answer
    with pytest.raises(PollFault, match=words):
        ask(Source("demo", elsewhere.url + "/feed"))


def test_a_body_without_end_and_a_poll_without_end_have_one(elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime, "BODY_MAX_BYTES", 100_000)
    elsewhere.answer = lambda path, headers: (200, {}, b"x" * 200_000)
    with pytest.raises(PollFault, match="more than 100,000 bytes"):
        ask(Source("demo", elsewhere.url + "/feed"))
    done = threading.Event()
    elsewhere.answer = lambda path, headers: (200, {}, b"") if done.wait(5) else (500, {}, b"")
    with pytest.raises(PollFault, match=r"Timeout|timed out|too long"):
        ask(Source("demo", elsewhere.url + "/feed"), limit_s=0.1)
    done.set()
    with pytest.raises(PollFault):
        ask(Source("demo", "http://127.0.0.1:1/feed"))


def test_a_feed_that_sends_a_byte_now_and_then_is_cut_off() -> None:
    listener, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def dribble() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not over.wait(0.02):
                connection.sendall(b"X-Wait: 1\r\n")

    threading.Thread(target=dribble, daemon=True).start()
    with listener, pytest.raises(PollFault, match="too long"):
        ask(Source("demo", f"http://127.0.0.1:{listener.getsockname()[1]}/feed"), limit_s=0.2)
    over.set()


def test_an_answer_that_ends_early_is_none(elsewhere: Elsewhere) -> None:
    whole = message({"id": "b1"}).SerializeToString()
    elsewhere.answer = lambda path, headers: (200, {"Content-Length": str(len(whole) + 9), "Connection": "close"}, whole)
    with pytest.raises(PollFault, match="9 bytes early"):
        ask(Source("demo", elsewhere.url + "/feed"))


def test_a_message_of_too_many_entities_is_refused(elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime, "ENTITIES_MAX", 2)
    elsewhere.answer = lambda path, headers: (200, {}, message(*({"id": f"b{n}"} for n in range(3))).SerializeToString())
    with pytest.raises(PollFault, match="more than 2 entities"):
        ask(Source("demo", elsewhere.url + "/feed"))


async def test_ids_that_are_no_text_are_read_as_far_as_they_are(reading: Reading) -> None:
    said = message({"id": "ABCDEFG", "trip_id": "TRIPTRIP", "start_date": "DATEDATE", "start_time": "TIMETIME"}).SerializeToString()
    for name in (b"CDE", b"IPT", b"TED", b"MET"):
        said = said.replace(name, b"\xff\xfe\xfd")
    plan = reading.plans.get("demo")
    assert plan is not None
    found, refused = realtime.sightings(rt.FeedMessage.FromString(said), Source("demo", "http://x"), plan, "d", NOW_MS)
    assert [(one.bus_id, one.fix.trip_id) for one in found] == [("AB---FG", None)] and not refused


@pytest.mark.parametrize(
    "bad",
    [
        [{"area": "demo", "url": "http://["}],
        [{"area": "demo", "url": "http://x:99999/"}],
        [{"area": "demo", "url": "file:///etc/passwd"}],
        [{"area": "demo", "url": "http://x", "everyS": 0.1}],
        [{"area": "demo", "url": "http://x", "typo": 1}],
        [{"area": "demo", "url": "http://x\n"}],
        [{"area": "demo", "url": "http://x", "unknown": "steal"}],
        {"area": "demo"},
        [{"area": "demo", "url": "http://x"}] * 101,
    ],
)
def test_a_file_of_sources_that_cannot_be_stops_the_start(tmp_path: Path, bad: Any) -> None:
    path = tmp_path / "sources.json"
    path.write_text(json.dumps(bad))
    with pytest.raises(Invalid, match="REALTIME_SOURCES"):
        read_sources(str(path))
    with pytest.raises(Invalid, match="REALTIME_SOURCES"):
        read_sources(str(tmp_path / "none.json"))


def test_a_file_of_sources_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sources.json"
    path.write_text(
        json.dumps([{"area": "demo", "url": "https://a.example/vp.pb", "headers": {"X-Key": "k"}, "everyS": 30, "unknown": "create"}])
    )
    assert read_sources(str(path)) == [Source("demo", "https://a.example/vp.pb", {"X-Key": "k"}, 30.0, unknown="create")]
