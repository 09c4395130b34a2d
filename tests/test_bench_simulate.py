"""The simulator: buses that drive like buses, the same ones for the same seed, and a client that neither loses nor hurries."""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bench import simulate
from bench.driving import Driver, Journey
from bench.fleet import Fleet
from bench.network.feed import write_feed
from bench.receiver import Reading, Receiver, Truth
from bench.senders import HttpSender, osmand_query, owntracks_body, telemetry_body
from bench.staged import Stage
from engine.tracking.timetable import Timetable
from ingest.gtfs import read_feed

TODAY = date(2026, 11, 22)
NOON = "2026-11-22T12:00:00+01:00"
READING = Reading("ALG-101", 1_795_000_000_000, 36.75, 3.05, 8.0, 10.0, 90.0, "101-WEEK-0-001", "20261122", 7)


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulate") / "demo.zip"
    write_feed(path, TODAY)
    return path


@pytest.fixture(scope="module")
def feed_of_now(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulate") / "now.zip"
    write_feed(path, datetime.now().astimezone().date())
    return path


@pytest.fixture(scope="module")
def timetable(feed: Path) -> Timetable:
    return read_feed(feed)


@pytest.fixture(scope="module")
def journeys(timetable: Timetable) -> list[Journey]:
    return [Driver(seed=3).trip(instance) for instance in timetable.instances_on(TODAY)[::23]]


def options(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    simulate.add_arguments(parser)
    return parser.parse_args(argv)


def offline(feed: Path, folder: Path, *more: str) -> tuple[list[dict[str, str]], list[dict[str, str]], list[dict[str, str]]]:
    """Fixes, true fixes and true stops of a run without an engine."""
    fixes, truth = folder / "fixes.csv", folder / "truth"
    args = options("--feed", str(feed), "--write-fixes", str(fixes), "--truth", str(truth), "--start", NOON, *more)
    assert asyncio.run(simulate.run(args)) == 0
    with fixes.open() as one, (truth / "fixes.csv").open() as two, (truth / "stops.csv").open() as three:
        return list(csv.DictReader(one)), list(csv.DictReader(two)), list(csv.DictReader(three))


# --- driving ---


def test_journeys_never_roll_back_never_race_and_end_at_the_last_stop(journeys: list[Journey]) -> None:
    for journey in journeys:
        times = np.arange(journey.begins_ms, journey.ends_ms + 1000, 1000)
        along, speed = np.array([journey.at(float(t)) for t in times]).T
        assert (np.diff(along) >= -1e-6).all()
        assert speed.max() <= 29.01
        assert np.abs(np.diff(speed)).max() < 2.5, "no bus brakes harder than its passengers can stand"
        assert np.diff(along) == pytest.approx((speed[1:] + speed[:-1]) / 2, abs=1.2)
        assert along[-1] == pytest.approx(float(journey.instance.trip.pattern.along_m[-1]), abs=1)


def test_a_served_stop_is_stood_at_and_a_passed_one_is_not(journeys: list[Journey]) -> None:
    kinds: Counter[str] = Counter()
    for journey in journeys:
        for visit in journey.visits[1:-1]:
            along, speed = journey.at((visit.arrived_ms + visit.departed_ms) / 2)
            kinds[visit.kind] += 1
            assert along == pytest.approx(float(journey.instance.trip.pattern.along_m[visit.stop_index]), abs=1.5)
            assert (speed == 0) == (visit.kind == "SERVED")
    assert 0.03 < kinds["PASSED"] / kinds.total() < 0.15


def test_buses_are_somewhat_late_and_seldom_early(journeys: list[Journey]) -> None:
    late_s = np.array([(j.visits[-1].arrived_ms - j.instance.arrival_ms(-1)) / 1000 for j in journeys])
    assert -60 < np.median(late_s) < 180
    assert np.percentile(late_s, 90) < 600 and np.percentile(late_s, 5) > -400


def test_the_street_is_slow_for_every_line_that_uses_it(timetable: Timetable) -> None:
    """What arrivals can learn: the ratio of observed to scheduled time of a link hangs together over different trips."""
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    for instance in timetable.instances_on(TODAY):
        if instance.trip.route_id in ("101", "112") and 9 <= instance.trip.departure_s[0] / 3600 < 15:
            visits = Driver(seed=5).trip(instance).visits
            for before, after in pairwise(visits):
                i = after.stop_index
                planned = instance.trip.arrival_s[i] - instance.trip.departure_s[i - 1]
                stops = instance.trip.pattern.stop_ids
                ratios[stops[i - 1], stops[i]].append((after.arrived_ms - before.departed_ms) / 1000 / planned)
    groups = [np.array(group) for group in ratios.values() if len(group) >= 20]
    between = np.var([group.mean() for group in groups])
    within = np.mean([group.var() / len(group) for group in groups])
    assert between > 3 * within


def test_lateness_is_carried_into_the_next_trip_of_the_block(timetable: Timetable) -> None:
    first, second = next(
        (a, b)
        for a in timetable.instances_on(TODAY)
        if (b := timetable.next_in_block(a)) and b.departure_ms(0) - a.arrival_ms(-1) < 600_000
    )
    very_late = second.departure_ms(0) + 900_000
    assert Driver().trip(second, free_from_ms=very_late).begins_ms >= very_late + 90_000
    assert Driver().trip(second, free_from_ms=first.arrival_ms(-1) - 600_000).begins_ms < second.departure_ms(0) + 300_000


# --- fixes ---


def test_the_same_seed_repeats_every_byte_and_another_seed_does_not(feed: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    offline(feed, tmp_path / "a", "--duration", "120", "--buses", "30", "--interval", "5")
    offline(feed, tmp_path / "b", "--duration", "120", "--buses", "30", "--interval", "5")
    offline(feed, tmp_path / "c", "--duration", "120", "--buses", "30", "--interval", "5", "--seed", "2")
    one, same, other = ((tmp_path / name / "fixes.csv").read_bytes() for name in ("a", "b", "c"))
    assert one == same
    assert one != other


def test_without_noise_fixes_lie_on_the_shape_where_the_truth_says(feed: Path, timetable: Timetable, tmp_path: Path) -> None:
    fixes, truth, _ = offline(
        feed, tmp_path, "--duration", "300", "--interval", "10", "--noise", "0", "--detour-rate", "0", "--unnamed-share", "0"
    )
    assert len(fixes) == len(truth) > 2000
    true = {(row["vehicle_id"], row["timestamp_ms"]): row for row in truth}
    driving = [fix for fix in fixes if true[fix["vehicle_id"], fix["timestamp_ms"]]["state"] == "IN_TRIP"]
    for fix in driving[::7]:
        pattern = timetable.trips[fix["trip_id"]].pattern
        row = true[fix["vehicle_id"], fix["timestamp_ms"]]
        lon, lat, _ = pattern.shape.position(float(row["along_m"]))
        assert abs(lat - float(fix["lat"])) < 3e-6 and abs(lon - float(fix["lon"])) < 3e-6


def test_with_noise_fixes_scatter_by_metres_and_some_go_missing_or_come_late(feed: Path, tmp_path: Path) -> None:
    fixes, truth, _ = offline(feed, tmp_path, "--duration", "900", "--interval", "5", "--seed", "4")
    true = {(row["vehicle_id"], row["timestamp_ms"]): row for row in truth}
    assert 0.9 < len(fixes) / len(truth) < 1.0
    away_m, late = [], 0
    for fix in fixes:
        row = true[fix["vehicle_id"], fix["timestamp_ms"]]
        away_m.append(np.hypot((float(fix["lat"]) - float(row["lat"])) * 111_000, (float(fix["lon"]) - float(row["lon"])) * 89_000))
        late += int(fix["received_at_ms"]) - int(fix["timestamp_ms"]) > 100_000
    assert 3 < np.median(away_m) < 9
    assert 15 < np.percentile(away_m, 99.5) < 130, "reflections"
    assert late > 0, "a modem that was away delivers afterwards"
    received = [int(fix["received_at_ms"]) for fix in fixes]
    assert received == sorted(received)
    assert 0.02 < sum(not f["trip_id"] for f in fixes) / len(fixes) < 0.4


def test_stop_times_agree_with_where_the_bus_was(feed: Path, tmp_path: Path) -> None:
    _, truth, stops = offline(feed, tmp_path, "--duration", "2400", "--interval", "5", "--noise", "0", "--buses", "40")
    places: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for row in truth:
        if row["state"] == "IN_TRIP":
            places[row["vehicle_id"], row["trip_id"]].append((int(row["timestamp_ms"]), float(row["along_m"])))
    compared = 0
    for (vehicle, trip), seen in places.items():
        crossings = [row for row in stops if (row["vehicle_id"], row["trip_id"]) == (vehicle, trip)]
        for row in crossings:
            before = [along for at, along in seen if at < int(row["arrived_at_ms"])]
            after = [along for at, along in seen if at > int(row["departed_at_ms"])]
            if before and after:
                compared += 1
                assert max(before) <= min(after)
    assert compared > 100


def test_a_run_may_begin_in_the_middle_and_meets_the_same_buses(timetable: Timetable) -> None:
    noon_ms = round(datetime.fromisoformat(NOON).timestamp() * 1000)
    early, late = (Fleet(timetable, ms, noise=0) for ms in (noon_ms - 3_600_000, noon_ms))
    for ms in (noon_ms - 3_600_000, noon_ms - 1_800_000):
        early.on_duty(ms)
    places = [{b.bus_id: (t.lat, t.lon, t.trip_id) for b in fleet.on_duty(noon_ms) if (t := b.truth(noon_ms))} for fleet in (early, late)]
    same = sum(places[0].get(bus_id) == place for bus_id, place in places[1].items())
    assert same / len(places[1]) > 0.97, "but for a bus that was late into a block that had already begun"


def test_more_buses_than_trips_are_made_up_with_stand_ins_that_all_drive(timetable: Timetable) -> None:
    noon_ms = round(datetime.fromisoformat(NOON).timestamp() * 1000)
    fleet = Fleet(timetable, noon_ms, wanted=600)
    buses = fleet.on_duty(noon_ms)
    assert len({bus.bus_id for bus in buses}) == 600
    truths = [bus.truth(noon_ms) for bus in buses]
    assert all(truths)
    named = Counter(t.trip_id for t in truths if t and t.trip_id)
    assert named.most_common(1)[0][1] == 1, "no two buses on one trip"
    later_ms = noon_ms + 3 * 3_600_000
    assert all(bus.truth(later_ms) for bus in fleet.on_duty(later_ms, buses))


def test_a_receivers_error_wanders_rather_than_jumps() -> None:
    receiver = Receiver("X", seed=11)
    still = [Truth("X", t * 1000, 36.7, 3.0, 0.0, 0.0, None, None, None, 0.0, "LAYOVER") for t in range(4000)]
    lat = np.array([r.lat for t in still for r in receiver.measure(t, t.at_ms)]) * 111_000
    steps = np.abs(np.diff(lat))
    assert np.percentile(steps, 95) < lat.std()


def test_faults_strike_their_share_of_trips_and_what_happened_is_written_down(feed: Path, timetable: Timetable, tmp_path: Path) -> None:
    more = ("--noise", "0", "--detour-rate", "0", "--unnamed-share", "0", "--fault", "detour=0.5", "--fault", "skew=0.2,seconds=40")
    fixes, truth, stops = offline(feed, tmp_path, "--duration", "2400", "--interval", "15", "--buses", "50", *more)
    with (tmp_path / "truth" / "happened.csv").open() as file:
        happened = list(csv.DictReader(file))
    kinds = Counter(row["kind"] for row in happened)
    trips = {row["trip_id"] for row in truth if row["trip_id"]}
    assert 0.25 < len({row["trip_id"] for row in happened if row["kind"] == "DETOUR"}) / len(trips) < 0.7 and kinds["SKEW"] > 5
    for row in happened:
        if row["kind"] == "DETOUR":
            during = [
                one
                for one in truth
                if one["vehicle_id"] == row["vehicle_id"] and int(row["from_ms"]) < int(one["true_ms"]) < int(row["to_ms"])
            ]
            assert not during or {one["trip_id"] for one in during} == {row["trip_id"]}
            assert max((float(one["offset_m"]) for one in during), default=0) <= json.loads(row["facts"])["maxOffsetM"] + 1
    assert {"MISSED"} <= {row["kind"] for row in stops}
    true = {(row["vehicle_id"], row["timestamp_ms"]): row for row in truth}
    wrong = [int(fix["timestamp_ms"]) - int(true[fix["vehicle_id"], fix["timestamp_ms"]]["true_ms"]) for fix in fixes]
    assert set(wrong) == {0, 40_000}, "every fix has its truth, also where the clock is wrong"


def test_deliveries_that_come_late_are_written_in_order_of_receipt(feed: Path, tmp_path: Path) -> None:
    late = ("--fault", "late_batch=0.5,newest_first=true", "--fault", "out_of_order=0.5,within_s=20", "--noise", "0")
    fixes, _, _ = offline(feed, tmp_path, "--duration", "1200", "--interval", "10", "--buses", "20", *late)
    received = [int(fix["received_at_ms"]) for fix in fixes]
    assert received == sorted(received)
    assert max(int(fix["received_at_ms"]) - int(fix["timestamp_ms"]) for fix in fixes) > 20_000


def test_a_fault_that_is_none_is_named_with_those_there_are(feed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asyncio.run(simulate.run(options("--feed", str(feed), "--fault", "flood=0.1"))) == 2
    assert "detour" in capsys.readouterr().err


@pytest.mark.parametrize("hour", [3, 12, 18])
def test_a_staged_drive_shows_a_detour_and_a_missed_stop_within_minutes_at_any_hour(timetable: Timetable, hour: int) -> None:
    begin_ms = round(datetime.fromisoformat(NOON).timestamp() * 1000) + (hour - 12) * 3_600_000
    fleet, stage = Fleet(timetable, begin_ms), Stage(900_000)
    for now_ms in range(begin_ms, begin_ms + 1_500_000, 20_000):
        stage.look(fleet.on_duty(now_ms), now_ms)
    detours = [each for each in stage.played if each.kind == "DETOUR"]
    missed = [each for each in stage.played if each.kind == "MISSED_STOP"]
    assert 60_000 < detours[0].from_ms - begin_ms < 300_000 and missed[0].from_ms - begin_ms < 360_000
    assert 150_000 <= detours[0].to_ms - detours[0].from_ms <= 320_000 and detours[0].facts["maxOffsetM"] > 200
    assert len(detours) == 2 and len({each.bus_id for each in stage.played}) == len(stage.played)
    bus = next(each for each in fleet.on_duty(detours[1].from_ms + 60_000) if each.bus_id == detours[1].bus_id)
    truth = bus.truth((detours[1].from_ms + detours[1].to_ms) // 2)
    assert truth is not None and truth.offset_m > 150


# --- on the wire ---


def test_units_of_the_protocols() -> None:
    said = json.loads(telemetry_body([READING]))
    assert said["motion"] == {"speed": 36.0, "heading": 90.0}
    assert said["tripId"] == "101-WEEK-0-001" and said["startDate"] == "20261122" and said["seq"] == 7
    assert [one["busId"] for one in json.loads(telemetry_body([READING, READING]))] == ["ALG-101", "ALG-101"]
    assert "speed=19.44" in osmand_query(READING, "t") and "timestamp=1795000000.000" in osmand_query(READING, "t")
    assert json.loads(owntracks_body(READING))["vel"] == 36


Answer = Callable[[str, dict[str, str], bytes], Awaitable[tuple[int, dict[str, str], bytes] | None]]


@asynccontextmanager
async def engine(answer: Answer) -> AsyncIterator[str]:
    """A raw HTTP server; an answer of None cuts the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                said = await answer(first, headers, body)
                if said is None:
                    break
                status, more, payload = said
                head = "".join(f"{k}: {v}\r\n" for k, v in {**more, "Content-Length": str(len(payload))}.items())
                writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + payload)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def accepted(body: bytes) -> tuple[int, dict[str, str], bytes]:
    said = json.loads(body)
    return 202, {}, json.dumps({"accepted": len(said) if isinstance(said, list) else 1, "quarantined": []}, separators=(",", ":")).encode()


async def test_a_busy_engine_gets_the_same_fix_again_after_its_retry_after_and_order_is_kept() -> None:
    seen: list[int] = []
    refusals = iter([503, 429])

    async def answer(first: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        seen.append(json.loads(body)["seq"])
        refusal = next(refusals, None) if len(seen) >= 3 else None
        return (refusal, {"Retry-After": "0"}, b"{}") if refusal else accepted(body)

    async with engine(answer) as url:
        sender = HttpSender(url, lambda bus: "t", connections=1)
        for seq in range(6):
            sender.send("B", [_numbered(seq)])
        await sender.close(5)
    assert seen == [0, 1, 2, 2, 2, 3, 4, 5]
    assert (sender.tally.accepted, sender.tally.sent, sender.tally.retried, sender.tally.dropped) == (6, 6, 2, 0)
    assert sender.tally.errors == {"HTTP 503": 1, "HTTP 429": 1}


async def test_a_connection_that_is_cut_is_made_again_and_the_fix_sent_again() -> None:
    seen: list[int] = []

    async def answer(first: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes] | None:
        seen.append(json.loads(body)["seq"])
        return None if len(seen) == 2 else accepted(body)

    async with engine(answer) as url:
        sender = HttpSender(url, lambda bus: "t", connections=1)
        for seq in range(4):
            sender.send("B", [_numbered(seq)])
        await sender.close(5)
    assert seen == [0, 1, 1, 2, 3]
    assert sender.tally.accepted == 4


async def test_quarantined_and_refused_fixes_are_counted_by_reason() -> None:
    async def answer(first: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if headers["authorization"] == "Bearer wrong":
            return 401, {}, b"{}"
        return 202, {}, b'{"accepted":1,"quarantined":[{"index":1,"reason":"RANGE"}]}'

    async with engine(answer) as url:
        sender = HttpSender(url, lambda bus: {"A": "right", "B": "wrong"}[bus], connections=2)
        sender.send("A", [_numbered(1), _numbered(2)])
        sender.send("B", [_numbered(3)])
        await sender.close(5)
    assert sender.tally.accepted == 1 and sender.tally.quarantined == {"RANGE": 1}
    assert sender.tally.errors == {"HTTP 401": 1}


async def test_an_engine_that_does_not_answer_costs_the_oldest_fixes_not_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.senders.QUEUE_MAX", 10)

    async def answer(first: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        await asyncio.sleep(30)
        return accepted(body)

    async with engine(answer) as url:
        sender = HttpSender(url, lambda bus: "t", connections=1)
        for seq in range(100):
            sender.send("B", [_numbered(seq)])
        assert sender.waiting() <= 11 and sender.tally.dropped == 90
        await sender.close(0)


def _numbered(seq: int) -> Reading:
    return Reading("B", 1_795_000_000_000, 36.75, 3.05, 8.0, 10.0, 90.0, None, None, seq)


@pytest.mark.parametrize("protocol", ["telemetry", "osmand"])
async def test_the_whole_command_drives_buses_and_registers_those_without_a_token(
    feed_of_now: Path, tmp_path: Path, protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths: Counter[str] = Counter()
    registered: list[str] = []

    async def answer(first: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        path = first.split()[1].partition("?")[0]
        paths[path] += 1
        if path == "/v1/admin/devices/bulk":
            assert headers["authorization"] == "Bearer boss"
            registered.extend(one["busId"] for one in json.loads(body)["devices"])
            items = [{"deviceId": "d", "busId": bus, "token": f"t-{bus}"} for bus in registered]
            return 201, {}, json.dumps({"items": items}).encode()
        if protocol == "telemetry":
            assert headers["authorization"] == f"Bearer t-{json.loads(body)['busId']}"
            return accepted(body)
        return 200, {}, b""

    async with engine(answer) as url:
        more = ("--url", url, "--admin-token", "boss", "--buses", "40", "--interval", "0.2", "--duration", "1.5", "--protocol", protocol)
        code = await simulate.run(options("--feed", str(feed_of_now), "--info", str(tmp_path / "none.json"), *more))
    assert code == 0
    assert len(registered) == 40
    assert paths[f"/ingest/{protocol}"] > 100
    assert "accepted" in capsys.readouterr().out


async def test_without_an_address_it_says_what_is_missing(feed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await simulate.run(options("--feed", str(feed), "--info", str(tmp_path / "none.json"))) == 2
    assert "--url" in capsys.readouterr().err
