"""GTFS-Realtime out, held against the validator's rules, on simulated buses that detour, lose their signal and lie about the time."""

from __future__ import annotations

import asyncio
import copy
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from google.protobuf import json_format
from google.transit import gtfs_realtime_pb2 as rt

from api.feeds import build_ahead
from api.parts import Parts
from api.realtime import AHEAD_MS, SLICE, WANTED_MS, RealtimeFeed
from bench.network.feed import write_feed
from engine.clock import ManualClock
from engine.events import IncidentEvent, Position, StopForecast, TripForecast
from engine.live.alerts import OperatorAlert, Period, Selector
from engine.live.hub import Hub
from engine.live.table import LiveTable
from engine.settings import Settings
from engine.store.loads import Load
from engine.tracking.plans import Plan
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
    incidents: list[IncidentEvent]  # open


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
    incidents: dict[str, bytes] = {}
    now_ms = fixes[0].received_at_ms
    for fix in fixes:
        while fix.received_at_ms >= now_ms + 1_000:
            now_ms += 1_000
            tracker.tick(now_ms)
            out = tracker.take()
            positions |= {p.bus_id: p for p in out.positions}
            forecasts |= {f.bus_id: f for f in out.forecasts}
            incidents |= out.open_incidents
            if now_ms % 60_000 < 1_000:
                going = [msgspec.msgpack.decode(blob, type=IncidentEvent) for blob in incidents.values() if blob]
                yield Moment(now_ms, dict(positions), dict(forecasts), going)
        tracker.fold(fix)


def built(feed: RealtimeFeed, moment: Moment, timetable: Timetable) -> tuple[rt.FeedMessage, rt.FeedMessage]:
    vehicles, trips = rt.FeedMessage(), rt.FeedMessage()
    vehicles.ParseFromString(feed.vehicle_positions(moment.positions.values(), timetable, moment.now_ms, as_json=False).body)
    pairs = [(f, moment.positions[bus_id]) for bus_id, f in moment.forecasts.items() if bus_id in moment.positions and f.stops]
    foreseen = {(f.bus_id, f.trip_id, f.start_date) for f, _ in pairs}
    silent = [p for p in moment.positions.values() if (p.bus_id, p.trip_id, p.start_date) not in foreseen]
    trips.ParseFromString(feed.trip_updates(pairs, timetable, moment.now_ms, as_json=False, silent=silent).body)
    return vehicles, trips


def alerts_of(feed: RealtimeFeed, moment: Moment, timetable: Timetable, *written: OperatorAlert) -> rt.FeedMessage:
    message = rt.FeedMessage()
    message.ParseFromString(feed.alerts(moment.incidents, written, timetable, moment.now_ms, as_json=False).body)
    return message


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


def test_alerts_are_the_open_incidents_that_concern_passengers(drive: Drive) -> None:
    feed = RealtimeFeed("demo")
    seen: set[str] = set()
    over = 0
    for moment in drive.moments:
        now = alerts_of(feed, moment, drive.timetable)
        vehicles, trips = built(feed, moment, drive.timetable)
        assert not check([vehicles, trips, now], drive.timetable, moment.now_ms // 1000)
        wanted = {"a:" + i.incident_id: i for i in moment.incidents if i.kind in ("OFF_ROUTE", "DELAYED") and i.trip_id is not None}
        assert {entity.id for entity in now.entity} == set(wanted)
        for entity in now.entity:
            informed, incident = entity.alert.informed_entity[0], wanted[entity.id]
            assert (informed.trip.trip_id, informed.trip.start_date) == (incident.trip_id, incident.start_date)
            assert entity.alert.effect == (rt.Alert.DETOUR if incident.kind == "OFF_ROUTE" else rt.Alert.SIGNIFICANT_DELAYS)
            assert entity.alert.active_period[0].start == incident.opened_at_ms // 1000 and not entity.alert.active_period[0].HasField(
                "end"
            )
            assert entity.alert.header_text.translation[0].text and entity.alert.description_text.translation[0].text
        over += len(seen - {entity.id for entity in now.entity})
        seen |= {entity.id for entity in now.entity}
    assert seen and over, "the drive must have had detours that began and ended"


def test_a_detour_names_the_stops_that_it_leaves_out(drive: Drive) -> None:
    moment = next(m for m in drive.moments if any(i.kind == "OFF_ROUTE" for i in m.incidents))
    incident = next(i for i in moment.incidents if i.kind == "OFF_ROUTE")
    pattern = drive.timetable.trips[incident.trip_id or ""].pattern
    detail = msgspec.json.encode({"bypassedStops": list(pattern.stop_sequences[2:4])}).decode()
    bypassing = moment._replace(incidents=[msgspec.structs.replace(incident, detail=detail)])
    message = alerts_of(RealtimeFeed("demo"), bypassing, drive.timetable)
    assert not check([message], drive.timetable, moment.now_ms // 1000)
    alert = message.entity[0].alert
    assert [one.stop_id for one in alert.informed_entity] == ["", *pattern.stop_ids[2:4]]
    assert {one.trip.trip_id for one in alert.informed_entity} == {incident.trip_id}
    assert drive.timetable.stops[pattern.stop_ids[2]].name in alert.description_text.translation[0].text


def written(timetable: Timetable, *selectors: Selector, **more: Any) -> OperatorAlert:
    given = {
        "alert_id": "0195c0de-0001-7000-8000-00000000000a", "partner_id": "demo", "feed_id": timetable.feed_id, "cause": "CONSTRUCTION",
        "effect": "MODIFIED_SERVICE", "level": "WARNING", "header": {"en": "Works", "fr": "Travaux"}, "description": {"en": "Until May."},
        "url": "https://example.org/works", "periods": (), "selectors": selectors, "version": 1, "changed_at_ms": 1,
    }  # fmt: skip
    return OperatorAlert(**(given | more))


def test_what_an_operator_wrote_stands_among_the_alerts_and_forgets_what_the_feed_no_longer_has(drive: Drive) -> None:
    moment, timetable = drive.moments[-1], drive.timetable
    trip = next(iter(timetable.trips.values()))
    stop = trip.pattern.stop_ids[1]
    selectors = (
        Selector(route_id=trip.route_id, direction_id=trip.pattern.direction_id), Selector(route_id=trip.route_id, stop_id=stop),
        Selector(stop_id=stop), Selector(trip_id=trip.trip_id, start_date="20261118"), Selector(trip_id=trip.trip_id, stop_id=stop),
        Selector(route_id="gone"), Selector(stop_id="gone"), Selector(trip_id="gone"),
    )  # fmt: skip
    spans = (Period(moment.now_ms - 1_000, moment.now_ms + 1_000), Period(moment.now_ms + 9_000, None))
    gone = written(timetable, Selector(route_id="gone"), alert_id="g")
    everybody = written(timetable, alert_id="e")
    message = alerts_of(RealtimeFeed("demo"), moment, timetable, written(timetable, *selectors, periods=spans), gone, everybody)
    assert not check([message], timetable, moment.now_ms // 1000)
    by_id = {entity.id: entity.alert for entity in message.entity}
    assert "a:g" not in by_id and len(by_id["a:e"].informed_entity) >= 1
    alert = by_id["a:0195c0de-0001-7000-8000-00000000000a"]
    assert len(alert.informed_entity) == 5 and [span.HasField("end") for span in alert.active_period] == [True, False]
    assert {text.language: text.text for text in alert.header_text.translation} == {"en": "Works", "fr": "Travaux"}
    assert (alert.cause, alert.effect, alert.severity_level) == (rt.Alert.CONSTRUCTION, rt.Alert.MODIFIED_SERVICE, rt.Alert.WARNING)
    assert alert.url.translation[0].text == "https://example.org/works"


def test_no_alert_is_an_empty_feed_in_both_forms(drive: Drive) -> None:
    feed, moment = RealtimeFeed("demo"), drive.moments[-1]
    message = rt.FeedMessage()
    message.ParseFromString(feed.alerts([], [], drive.timetable, moment.now_ms, as_json=False).body)
    assert not message.entity and not check([message], drive.timetable, moment.now_ms // 1000)
    assert json_format.Parse(feed.alerts([], [], drive.timetable, moment.now_ms, as_json=True).body, rt.FeedMessage()) == message


def test_a_trip_under_way_without_a_forecast_says_no_data_from_its_next_stop(drive: Drive) -> None:
    moment = drive.moments[-1]
    position = next(p for p in moment.positions.values() if p.state == "IN_TRIP" and p.stop_index is not None and p.offset_m is not None)
    feed, message = RealtimeFeed("demo"), rt.FeedMessage()
    message.ParseFromString(feed.trip_updates([], drive.timetable, moment.now_ms, as_json=False, silent=[position]).body)
    vehicles = rt.FeedMessage()
    vehicles.ParseFromString(feed.vehicle_positions([position], drive.timetable, moment.now_ms, as_json=False).body)
    assert not check([message, vehicles], drive.timetable, moment.now_ms // 1000)
    (row,) = message.entity[0].trip_update.stop_time_update
    pattern = drive.timetable.trips[position.trip_id or ""].pattern
    assert row.stop_sequence == pattern.stop_sequences[position.stop_index or 0]
    assert row.schedule_relationship == rt.TripUpdate.StopTimeUpdate.NO_DATA and not row.HasField("arrival")
    stands = msgspec.structs.replace(position, state="DEADHEAD")
    message.ParseFromString(feed.trip_updates([], drive.timetable, moment.now_ms + 2_000, as_json=False, silent=[stands]).body)
    assert not message.entity, "a bus between its trips has no times to owe"


@pytest.mark.parametrize(
    ("counted", "load", "said"),
    [
        (None, None, None),
        (None, Load(49), None),
        (0, None, ("EMPTY", None)),
        (12, None, None),
        (12, Load(49), ("MANY_SEATS_AVAILABLE", 24)),
        (40, Load(49), ("FEW_SEATS_AVAILABLE", 82)),
        (49, Load(49), ("FULL", 100)),
        (55, Load(49), ("FULL", 112)),
        (None, Load(4, ((0, 3), (0, 1), (1, 3))), ("FEW_SEATS_AVAILABLE", 50)),
        (None, Load(4, ((0, 1),)), ("EMPTY", 0)),
        (3, Load(4, ((0, 1),)), ("FEW_SEATS_AVAILABLE", 75)),
    ],
)
def test_how_full_a_bus_is_comes_from_its_counter_else_from_who_was_scanned_aboard(
    drive: Drive, counted: int | None, load: Load | None, said: tuple[str, int | None] | None
) -> None:
    moment = drive.moments[-1]
    position = msgspec.structs.replace(next(p for p in moment.positions.values() if p.state == "IN_TRIP"), stop_index=2, occupancy=counted)
    message = rt.FeedMessage()
    built_ = RealtimeFeed("demo").vehicle_positions([position], drive.timetable, moment.now_ms, as_json=False, seats=lambda _: load)
    message.ParseFromString(built_.body)
    assert not [fault for fault in check([message], drive.timetable, moment.now_ms // 1000) if fault.rule == "OCCUPANCY"]
    vehicle = message.entity[0].vehicle
    assert vehicle.HasField("occupancy_status") == (said is not None)
    if said is not None:
        assert rt.VehiclePosition.OccupancyStatus.Name(vehicle.occupancy_status) == said[0]
        assert (vehicle.occupancy_percentage if vehicle.HasField("occupancy_percentage") else None) == said[1]


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
    update.stop_time_update[0].schedule_relationship = rt.TripUpdate.StopTimeUpdate.NO_DATA
    update.stop_time_update[1].schedule_relationship = rt.TripUpdate.StopTimeUpdate.SKIPPED
    update.stop_time_update[2].arrival.ClearField("time")
    assert {"E042", "SKIPPED", "E046"} <= rules(late)
    alerts = rt.FeedMessage(header=trips.header)
    alert = alerts.entity.add(id="a").alert
    alert.SetInParent()
    assert "E032" in rules(alerts)
    selector = alert.informed_entity.add()
    assert "E033" in rules(alerts)
    selector.trip.trip_id = "nobody"
    assert "E003" in rules(alerts)
    selector.route_id, selector.stop_id = "nowhere", "nowhere"
    alert.active_period.add(start=now_s * 1000)
    alert.header_text.translation.add(text="")
    assert {"E004", "E011", "E001", "TEXT"} <= rules(alerts)


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


def test_what_a_round_builds_in_slices_is_what_a_request_builds_and_is_served_for_two_rounds(drive: Drive) -> None:
    moment, at_ms = drive.moments[-1], drive.moments[-1].now_ms
    many = [msgspec.structs.replace(p, bus_id=f"{p.bus_id}-{n}") for n in range(9) for p in moment.positions.values()]
    for as_json in (False, True):
        ours, theirs = RealtimeFeed("demo"), RealtimeFeed("demo")
        assert ours.wanted(at_ms) == []
        assert ours.ask("vehicle", as_json, at_ms) is None, "nothing is built yet"
        assert ours.wanted(at_ms + WANTED_MS) == [("vehicle", as_json)]
        assert ours.wanted(at_ms + WANTED_MS + 1) == []
        pauses = sum(1 for _ in ours.vehicle_steps(many, drive.timetable, at_ms, as_json=as_json, ahead=True))
        assert pauses >= len(many) // SLICE > 3
        kept = ours.ask("vehicle", as_json, at_ms + AHEAD_MS - 1)
        wanted = theirs.vehicle_positions(many, drive.timetable, at_ms, as_json=as_json)
        assert kept is not None and (kept.body, kept.etag) == (wanted.body, wanted.etag)
        assert ours.ask("vehicle", as_json, at_ms + AHEAD_MS) is None, "no round came: a request builds it"
        assert theirs.ask("vehicle", as_json, (at_ms // 1000 + 1) * 1000) is None


class Known:
    """Plans of one feed."""

    def __init__(self, timetable: Timetable) -> None:
        self._plan = Plan("demo", "demo", timetable)

    def get(self, feed_id: str) -> Plan | None:
        return self._plan if feed_id == "demo" else None


async def test_the_rounds_build_what_was_asked_for_and_nothing_else(drive: Drive) -> None:
    clock, table, settings = ManualClock(drive.moments[-1].now_ms), LiveTable(), Settings()
    known: Any = Known(drive.timetable)
    parts = Parts(settings=settings, clock=clock, table=table, hub=Hub(table, settings, clock), plans=known)
    made = parts.realtime["demo"] = RealtimeFeed("demo")
    made.ask("trip", False, clock.now_ms())
    rounds = asyncio.create_task(build_ahead(parts))
    try:
        async with asyncio.timeout(10):
            while (kept := made.ask("trip", False, clock.now_ms())) is None:  # noqa: ASYNC110  # a round rests on the wall clock
                await asyncio.sleep(0.02)
    finally:
        rounds.cancel()
    assert kept.until_ms == clock.now_ms() + AHEAD_MS
    assert made.ask("alert", False, clock.now_ms()) is None
