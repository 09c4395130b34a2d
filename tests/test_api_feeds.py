"""GTFS-Realtime out, held against the validator's rules, on simulated buses that detour, lose their signal and lie about the time."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from google.protobuf import json_format
from google.transit import gtfs_realtime_pb2 as rt

from api.realtime import RealtimeFeed
from bench.network.feed import write_feed
from engine.events import Position, StopForecast, TripForecast
from engine.tracking.replay import read_fixes
from engine.tracking.timetable import Timetable
from engine.tracking.tracker import Tracker
from ingest.gtfs import read_feed
from tests.gtfs_realtime_rules import Fault, check, check_sequence

DAY = date(2026, 11, 18)
BEGIN = "2026-11-18T07:00:00Z"


class Moment(NamedTuple):
    now_ms: int
    positions: dict[str, Position]
    forecasts: dict[str, TripForecast]


class Drive(NamedTuple):
    timetable: Timetable
    moments: list[Moment]


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Drive:
    """A quarter of an hour of the demo network through the tracker, looked at once a minute."""
    folder = tmp_path_factory.mktemp("realtime")
    feed, fixes = folder / "demo.zip", folder / "fixes.csv"
    write_feed(feed, DAY)
    argv = [sys.executable, "-m", "api.cli", "simulate", "--feed", feed, "--write-fixes", fixes, "--start", BEGIN, "--duration", "900"]
    subprocess.run([*map(str, argv), "--buses", "40", "--detour-rate", "0.5", "--interval", "5", "--seed", "7"], check=True, cwd=Path.cwd())
    timetable = read_feed(feed, "demo")
    return Drive(timetable, list(_moments(timetable, fixes)))


def _moments(timetable: Timetable, path: Path) -> Iterator[Moment]:
    tracker = Tracker(timetable, feed_id="demo", partner_id="demo")
    fixes = sorted(read_fixes(path)[0], key=lambda fix: fix.received_at_ms)
    positions: dict[str, Position] = {}
    forecasts: dict[str, TripForecast] = {}
    now_ms = fixes[0].received_at_ms
    for fix in fixes:
        while fix.received_at_ms >= now_ms + 1_000:
            now_ms += 1_000
            tracker.tick(now_ms)
            out = tracker.take()
            positions |= {p.bus_id: p for p in out.positions}
            forecasts |= {f.bus_id: f for f in out.forecasts}
            if now_ms % 60_000 < 1_000:
                yield Moment(now_ms, dict(positions), dict(forecasts))
        tracker.fold(fix)


def built(feed: RealtimeFeed, moment: Moment, timetable: Timetable) -> tuple[rt.FeedMessage, rt.FeedMessage]:
    vehicles, trips = rt.FeedMessage(), rt.FeedMessage()
    vehicles.ParseFromString(feed.vehicle_positions(moment.positions.values(), timetable, moment.now_ms, as_json=False).body)
    pairs = [(f, moment.positions[bus_id]) for bus_id, f in moment.forecasts.items() if bus_id in moment.positions]
    trips.ParseFromString(feed.trip_updates(pairs, timetable, moment.now_ms, as_json=False).body)
    return vehicles, trips


def test_every_minute_of_a_rough_quarter_of_an_hour_has_no_error_by_the_validators_rules(drive: Drive) -> None:
    feed = RealtimeFeed("demo")
    faults: list[Fault] = []
    last: tuple[rt.FeedMessage, rt.FeedMessage] | None = None
    for moment in drive.moments:
        now = built(feed, moment, drive.timetable)
        faults += check(now, drive.timetable, moment.now_ms // 1000)
        if last is not None:
            faults += check_sequence(last[0], now[0]) + check_sequence(last[1], now[1])
        last = now
    assert not faults, faults[:10]
    assert last is not None
    assert len(last[0].entity) >= 30, "the drive must have had vehicles to say something about"
    assert sum(len(entity.trip_update.stop_time_update) for entity in last[1].entity) > 150


def test_alerts_are_the_detours_of_the_moment(drive: Drive) -> None:
    feed = RealtimeFeed("demo")
    seen: set[str] = set()
    over = 0
    for moment in drive.moments:
        now = rt.FeedMessage()
        now.ParseFromString(feed.alerts(moment.positions.values(), drive.timetable, moment.now_ms, as_json=False).body)
        vehicles, trips = built(feed, moment, drive.timetable)
        assert not check([vehicles, trips, now], drive.timetable, moment.now_ms // 1000)
        off = {p.bus_id: p for p in moment.positions.values() if p.state == "OFF_ROUTE"}
        assert {entity.id for entity in now.entity} == {"a:" + bus_id for bus_id in off}
        for entity in now.entity:
            (informed,) = entity.alert.informed_entity
            assert informed.trip.trip_id == off[entity.id[2:]].trip_id and entity.alert.effect == rt.Alert.DETOUR
            assert entity.alert.header_text.translation[0].text and entity.alert.description_text.translation[0].text
        over += len(seen - {entity.id for entity in now.entity})
        seen |= {entity.id for entity in now.entity}
    assert seen and over, "the drive must have had detours that began and ended"


def test_no_detour_is_an_empty_feed_in_both_forms(drive: Drive) -> None:
    feed, moment = RealtimeFeed("demo"), drive.moments[-1]
    message = rt.FeedMessage()
    message.ParseFromString(feed.alerts([], drive.timetable, moment.now_ms, as_json=False).body)
    assert not message.entity and not check([message], drive.timetable, moment.now_ms // 1000)
    assert json_format.Parse(feed.alerts([], drive.timetable, moment.now_ms, as_json=True).body, rt.FeedMessage()) == message


def test_the_json_form_says_the_same_as_the_bytes(drive: Drive) -> None:
    feed, moment = RealtimeFeed("demo"), drive.moments[-1]
    raw = feed.vehicle_positions(moment.positions.values(), drive.timetable, moment.now_ms, as_json=False).body
    text = feed.vehicle_positions(moment.positions.values(), drive.timetable, moment.now_ms, as_json=True).body
    from_bytes, from_text = rt.FeedMessage(), rt.FeedMessage()
    from_bytes.ParseFromString(raw)
    json_format.Parse(text, from_text)
    assert from_text == from_bytes


def test_a_feed_is_built_at_most_once_a_second_and_its_etag_follows_its_entities(drive: Drive) -> None:
    feed, moment = RealtimeFeed("demo"), drive.moments[-1]
    at_ms = moment.now_ms // 1000 * 1000
    first = feed.vehicle_positions(moment.positions.values(), drive.timetable, at_ms, as_json=False)
    assert feed.vehicle_positions([], drive.timetable, at_ms + 999, as_json=False) is first
    same = feed.vehicle_positions(moment.positions.values(), drive.timetable, at_ms + 1_000, as_json=False)
    assert same.etag == first.etag
    other = feed.vehicle_positions([], drive.timetable, at_ms + 2_000, as_json=False)
    assert other.etag != first.etag


def test_a_missed_stop_is_skipped_in_the_trip_updates_of_the_drive(drive: Drive) -> None:
    feed, skipped = RealtimeFeed("demo"), 0
    for moment in drive.moments:
        _, trips = built(feed, moment, drive.timetable)
        known = {f"t:{f.trip_id}:{f.start_date}": f for f in moment.forecasts.values()}
        for entity in trips.entity:
            updates = entity.trip_update.stop_time_update
            said = [row.stop_sequence for row in updates if row.schedule_relationship == rt.TripUpdate.StopTimeUpdate.SKIPPED]
            assert said == [stop.stop_sequence for stop in known[entity.id].stops if stop.kind == "SKIPPED"]
            assert len(said) < len(updates), "and the stops ahead have times"
            skipped += len(said)
    assert skipped, "the drive must have had buses that missed stops"


def test_a_trip_that_comes_back_to_a_stop_it_missed_does_not_name_it_twice_in_a_row(drive: Drive) -> None:
    moment = drive.moments[-1]
    bus_id, forecast = next((b, f) for b, f in moment.forecasts.items() if len(f.ahead) > 4)
    first, second, *rest = forecast.ahead
    missed = StopForecast(first.stop_id, first.stop_sequence, None, None, None, None, "SKIPPED")
    changed = msgspec.structs.replace(forecast, stops=(missed, msgspec.structs.replace(second, stop_id=first.stop_id), *rest))
    message = rt.FeedMessage()
    pairs = [(changed, moment.positions[bus_id])]
    message.ParseFromString(RealtimeFeed("demo").trip_updates(pairs, drive.timetable, moment.now_ms, as_json=False).body)
    assert not check([message], drive.timetable, moment.now_ms // 1000)
    updates = message.entity[0].trip_update.stop_time_update
    assert [(row.stop_sequence, row.stop_id) for row in updates[:2]] == [(first.stop_sequence, first.stop_id), (second.stop_sequence, "")]
    updates[1].stop_id = first.stop_id
    assert "E037" in {fault.rule for fault in check([message], drive.timetable, moment.now_ms // 1000)}


def test_the_oracle_sees_what_it_is_there_for(drive: Drive) -> None:
    """Faults put into a good message by hand: an oracle that finds nothing in them would prove nothing above."""
    moment = drive.moments[-1]
    vehicles, trips = built(RealtimeFeed("demo"), moment, drive.timetable)
    now_s = moment.now_ms // 1000

    def rules(message: rt.FeedMessage) -> set[str]:
        return {fault.rule for fault in check([message], drive.timetable, now_s)}

    late = copy.deepcopy(trips)
    update = next(e.trip_update for e in late.entity if len(e.trip_update.stop_time_update) > 3)
    update.stop_time_update[2].arrival.time = update.stop_time_update[1].arrival.time - 60
    assert "E022" in rules(late)
    update.trip.trip_id = "nobody"
    assert "E003" in rules(late)
    far = copy.deepcopy(vehicles)
    vehicle = next(e.vehicle for e in far.entity if e.vehicle.trip.trip_id)
    vehicle.position.latitude += 0.01
    assert "E029" in rules(far)
    vehicle.timestamp = now_s + 600
    assert {"E012", "E050"} <= rules(far)
    far.header.ClearField("timestamp")
    assert "E048" in rules(far)
    alerts = rt.FeedMessage(header=trips.header)
    alert = alerts.entity.add(id="a").alert
    alert.SetInParent()
    assert "E032" in rules(alerts)
    selector = alert.informed_entity.add()
    assert "E033" in rules(alerts)
    selector.trip.trip_id = "nobody"
    assert "E003" in rules(alerts)


def test_skipped_and_unknown_stops_carry_no_times(drive: Drive) -> None:
    moment = drive.moments[-1]
    bus_id, forecast = next((b, f) for b, f in moment.forecasts.items() if len(f.stops) > 4)
    stops = list(forecast.stops)
    stops[1] = StopForecast(stops[1].stop_id, stops[1].stop_sequence, None, None, None, None, "SKIPPED")
    stops[2] = StopForecast(stops[2].stop_id, stops[2].stop_sequence, None, None, None, None, "NO_DATA")
    changed = msgspec.structs.replace(forecast, stops=tuple(stops))
    body = RealtimeFeed("demo").trip_updates([(changed, moment.positions[bus_id])], drive.timetable, moment.now_ms, as_json=False).body
    message = rt.FeedMessage()
    message.ParseFromString(body)
    assert not check([message], drive.timetable, moment.now_ms // 1000)
    said = [row.schedule_relationship for row in message.entity[0].trip_update.stop_time_update]
    assert said[1:3] == [rt.TripUpdate.StopTimeUpdate.SKIPPED, rt.TripUpdate.StopTimeUpdate.NO_DATA]
