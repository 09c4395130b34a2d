"""Buses played again: on a grid of instants, nothing invented, nothing of others, and page after page the same as at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from engine.clock import SystemClock
from tests.reads_house import House
from tests.small_world import feed

pytestmark = pytest.mark.asyncio(loop_scope="module")
START_MS = SystemClock().now_ms() // 3_600_000 * 3_600_000 - 7_200_000  # the record has partitions for the days around now


def text(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat()


async def record(
    reads: House, bus: str, fixes: list[tuple[int, float]], *, trip: str | None = None, day: str = "", state: str = "IN_TRIP"
) -> None:
    """Fixes of a bus: (seconds after the start, longitude), a metre along for each second."""
    words = [bus, state] + ([trip] if trip else [])
    await reads.postgres.execute("insert into telemetry.names (name) select unnest($1::text[]) on conflict do nothing", words)
    await reads.postgres.execute(
        "insert into telemetry.points (ts, bus_no, lat_e6, lon_e6, latency_ms, device_no, source_no, state_no, late, speed_cms, bearing_ddeg,"
        " along_m, trip_no, start_date) select to_timestamp(($1::bigint + s * 1000) / 1000.0), b.no, 36750000, round(lon * 1e6)::int, 0, b.no, b.no,"
        " w.no, false, 800, 900, s, (select no from telemetry.names where name = $5), nullif($6, '')::int"
        " from unnest($2::int[], $3::float8[]) as t(s, lon), telemetry.names b, telemetry.names w where b.name = $4 and w.name = $7",
        START_MS, [s for s, _ in fixes], [lon for _, lon in fixes], bus, trip, day, state,
    )  # fmt: skip


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_recorded(reads: House) -> None:
    reads.clock.at_ms = SystemClock().now_ms()
    for table in ("points", "stop_events", "incidents", "trip_events"):
        await reads.postgres.execute(f"delete from telemetry.{table}")
    await reads.add_buses("p1", "p2")


async def played(reads: House, path: str = "/v1/buses/p1/playback", until_s: int = 60, role: str = "PARTNER_ADMIN", **params: Any) -> Any:
    return await reads.get(path, reads.head(role), **{"from": text(START_MS), "to": text(START_MS + until_s * 1000)} | params)


async def test_each_instant_has_the_newest_fix_before_it(reads: House) -> None:
    await record(reads, "p1", [(0, 3.0), (9, 3.1), (11, 3.2), (30, 3.3)])
    said = await played(reads, until_s=40, stepS=10)
    (bus,) = said["buses"]
    assert said["timesMs"] == [START_MS + s * 1000 for s in (0, 10, 20, 30, 40)] and said["nextCursor"] is None
    assert bus["lon"] == [3.0, 3.1, 3.2, 3.3, 3.3] and bus["speedMps"][0] == 8.0 and bus["bearing"][0] == 90.0
    assert [said["states"][i] for i in bus["state"]] == ["IN_TRIP"] * 5 and bus["trip"] == [None] * 5


async def test_silence_is_null_and_nothing_is_invented(reads: House) -> None:
    await record(reads, "p1", [(60, 3.0), (600, 3.5)])
    said = await played(reads, until_s=900, stepS=60)
    heard = [k for k, lon in enumerate(said["buses"][0]["lon"]) if lon is not None]
    assert heard == [1, 2, 3, 10, 11, 12], "three minutes after a fix there is no signal"


async def test_the_delay_is_told_by_the_place_along_the_line(reads: House) -> None:
    """T0 leaves at 08:00 and drives 8 m/s; the bus is 800 m along, 100 s, at 08:02:30."""
    day = datetime.fromtimestamp(START_MS / 1000, UTC).strftime("%Y%m%d")
    world = feed()
    instance = world.instance("T0", day)
    assert instance is not None
    wanted = START_MS + 800_000 - instance.base_ms - (28_800_000 + 100_000)
    await record(reads, "p1", [(800, 3.0)], trip="T0", day=day)
    said = await played(reads, until_s=900, **{"from": text(START_MS + 800_000), "stepS": 100})
    assert said["trips"] == [f"demo:T0:{day}"] and said["buses"][0]["trip"] == [0, 0]
    assert said["buses"][0]["delayS"][0] == pytest.approx(wanted / 1000, abs=2)
    assert said["buses"][0]["delayS"][1] == said["buses"][0]["delayS"][0] + 100, "it stands where it was"


async def test_pages_one_after_the_other_are_what_one_page_would_be(reads: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await record(reads, "p1", [(s, 3 + s / 1000) for s in range(0, 100, 3)])
    await record(reads, "p2", [(s, 4 + s / 1000) for s in range(0, 100, 7)])
    path, params = "/v1/playback", {"area": "demo", "stepS": 5, "until_s": 100}
    whole = await played(reads, path, **params)
    assert [bus["busId"] for bus in whole["buses"]] == ["p1", "p2"]
    monkeypatch.setattr("api.playback.SAMPLES_MOST", 20)
    times: list[int] = []
    lons: dict[str, list[float]] = {"p1": [], "p2": []}
    cursor = None
    while True:
        page = await played(reads, path, **params, **({"cursor": cursor} if cursor else {}))
        times += page["timesMs"]
        for bus in page["buses"]:
            lons[bus["busId"]] += bus["lon"]
        cursor = page["nextCursor"]
        if cursor is None:
            break
    assert times == whole["timesMs"] and lons == {bus["busId"]: bus["lon"] for bus in whole["buses"]}


async def test_a_box_has_what_was_inside_it(reads: House) -> None:
    await record(reads, "p1", [(0, 3.0), (10, 3.5), (20, 4.0)])
    await record(reads, "p2", [(0, 9.0)])
    said = await played(reads, "/v1/playback", bbox="3.4,36,4.5,37", stepS=10, until_s=20)
    assert [(bus["busId"], bus["lon"]) for bus in said["buses"]] == [("p1", [None, 3.5, 4.0])]


async def test_a_route_has_the_buses_that_were_on_it_and_what_happened_meanwhile(reads: House) -> None:
    began = datetime.fromtimestamp(START_MS / 1000, UTC)
    await record(reads, "p1", [(0, 3.0)], trip="T0", day="20260302")
    await record(reads, "p2", [(0, 3.0)])
    await reads.postgres.execute(
        "insert into telemetry.trip_events (event_id, at, area, bus_id, trip_id, start_date, route_id, kind, reason, late)"
        " values ('e', $1, 'demo', 'p1', 'T0', '20260302', 'R', 'STARTED', 'x', false)", began,
    )  # fmt: skip
    await reads.postgres.execute(
        "insert into telemetry.stop_events (event_id, at, area, bus_id, trip_id, start_date, route_id, stop_id, stop_sequence, arrived_at, departed_at,"
        " kind, late) values ('s', $1, 'demo', 'p1', 'T0', '20260302', 'R', 'S1', 2, $1, null, 'SERVED', false)", began + timedelta(seconds=5),
    )  # fmt: skip
    await reads.postgres.execute(
        "insert into telemetry.incidents (incident_id, said_id, area, kind, severity, bus_id, opened_at, closed_at, lat, lon, detail, late) values"
        " ('i', 'i', 'demo', 'OFF_ROUTE', 'MINOR', 'p1', $1, $2, 36.7, 3, '{}', false), ('j', 'j', 'demo', 'OFF_ROUTE', 'MINOR', 'p1', $1, $1, 36.7, 3,"
        " '{}', false)", began - timedelta(hours=1), began + timedelta(seconds=9),
    )  # fmt: skip
    said = await played(reads, "/v1/playback", role="AGENT", route="demo:R", stepS=30)
    assert [bus["busId"] for bus in said["buses"]] == ["p1"]
    assert [(call["stopId"], call["kind"], call["departedAt"]) for call in said["stops"]] == [("demo:S1", "SERVED", None)]
    assert [incident["incidentId"] for incident in said["incidents"]] == ["i"], "the other was over"


async def test_messagepack_says_the_same(reads: House) -> None:
    await record(reads, "p1", [(0, 3.0), (20, 3.1)])
    params = {"from": text(START_MS), "to": text(START_MS + 60_000), "stepS": 20}
    head = reads.head("PARTNER_ADMIN")
    packed = await reads.http.get("/v1/buses/p1/playback", params=params, headers=head | {"Accept": "application/msgpack"})
    assert packed.headers["content-type"] == "application/msgpack"
    assert msgspec.msgpack.decode(packed.content) == await played(reads, stepS=20)


async def test_the_step_follows_the_speed_of_watching_or_the_length_of_time(reads: House) -> None:
    assert (await played(reads, speed=240))["stepS"] == 60
    assert (await played(reads, "/v1/playback", area="demo", until_s=86_400))["stepS"] == 87
    assert "items" in await played(reads), "every fix, where no grid is asked for"


async def test_nobody_plays_the_buses_of_another(reads: House) -> None:
    await record(reads, "p1", [(0, 3.0)])
    span = {"from": text(START_MS), "to": text(START_MS + 60_000), "stepS": "10"}
    other = reads.head("PARTNER_ADMIN", "other")
    for path, params, status in (
        ("/v1/buses/p1/playback", {}, 404),
        ("/v1/playback", {"area": "demo"}, 404),
        ("/v1/playback", {"route": "demo:R"}, 404),
        ("/v1/playback", {}, 400),
        ("/v1/playback", {"area": "demo", "partner": "demo"}, 404),
    ):
        assert (await reads.http.get(path, params=span | params, headers=other)).status_code == status, (path, params)
    answer = await reads.http.get("/v1/playback", params=span | {"bbox": "0,0,90,90"}, headers=other)
    assert answer.json()["buses"] == []
    assert (await reads.http.get("/v1/playback", params=span | {"area": "demo"})).status_code == 401


@pytest.mark.parametrize(
    "bad",
    [
        {"stepS": 0},
        {"speed": 0},
        {"cursor": "x"},
        {"cursor": "9" * 15},
        {"to": text(START_MS - 1)},
        {"to": text(START_MS + 32 * 86_400_000)},
    ],
)
async def test_a_stretch_that_cannot_be_is_refused(reads: House, bad: dict[str, Any]) -> None:
    span = {"from": text(START_MS), "to": text(START_MS + 60_000), "stepS": 10}
    for path in ("/v1/playback?area=demo", "/v1/buses/p1/playback"):
        answer = await reads.http.get(
            path, params=span | bad | ({"area": "demo"} if "?" in path else {}), headers=reads.head("PARTNER_ADMIN")
        )
        assert answer.status_code == 400, answer.text
