"""Replays: the same bytes twice, the contract's files and columns, and errors that name file and line."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from engine.errors import Invalid
from engine.tracking.overrides import configured, settable
from engine.tracking.replay import DRAIN_MS, Sampled, Told, drive, read_fixes, replay
from engine.tracking.tracker import Tracker
from ingest.gtfs import read_feed
from tests.gtfs_feed import write_feed

DATE = "20260105"  # a Monday
EIGHT_MS = 1_767_618_000_000  # 08:00 in New York that day: trip t1 leaves s1
HEADER = "vehicle_id,timestamp_ms,lat,lon,trip_id,start_date"


def ride(bus_id: str = "7", start_s: int = -60, end_s: int = 900, every_s: int = 15, trip: str = f"t1,{DATE}") -> list[str]:
    """Rows of a bus that drives trip t1 at a steady pace: 3.0 to 3.04 degrees east in 15 minutes."""
    rows = []
    for second in range(start_s, end_s + 1, every_s):
        lon = 3.0 + 0.04 * min(max(second, 0) / 900, 1.0)
        rows.append(f"{bus_id},{EIGHT_MS + second * 1000},36.0,{lon:.6f},{trip}")
    return rows


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    return write_feed(tmp_path / "feed.zip")


def recorded(path: Path, rows: list[str], header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_same_input_gives_the_same_bytes(tmp_path, feed):
    fixes = recorded(tmp_path / "fixes.csv", ride("7") + ride("8-b"))
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        replay(feed, fixes, out, read_feed=read_feed)
    names = sorted(path.name for path in outs[0].iterdir())
    assert names == ["incidents.csv", "learned.msgpack", "manifest.json", "predictions.csv", "progress.csv", "stops.csv"]
    for name in names:
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes(), name


def test_files_have_the_contracts_columns_and_order(tmp_path, feed):
    fixes = recorded(tmp_path / "fixes.csv", ride())
    summary = replay(feed, fixes, tmp_path / "out", read_feed=read_feed)
    out = tmp_path / "out"
    heads = {path.name: path.read_text("utf-8").split("\n", 1)[0] for path in out.glob("*.csv")}
    assert heads == {
        "predictions.csv": "made_at_ms,vehicle_id,trip_id,start_date,stop_sequence,stop_id,p10_ms,p50_ms,p90_ms",
        "stops.csv": "vehicle_id,trip_id,start_date,stop_sequence,stop_id,arrived_at_ms,departed_at_ms,kind",
        "progress.csv": "vehicle_id,timestamp_ms,trip_id,start_date,along_m,offset_m,state",
        "incidents.csv": "kind,severity,vehicle_id,trip_id,start_date,opened_at_ms,closed_at_ms,detail",
    }
    predictions = rows_of(out / "predictions.csv")
    keys = [(int(r["made_at_ms"]), r["vehicle_id"], r["trip_id"], int(r["stop_sequence"])) for r in predictions]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)
    assert {key[0] % 30_000 for key in keys} == {0}
    for row in predictions:
        assert int(row["made_at_ms"]) < int(row["p10_ms"]) <= int(row["p50_ms"]) <= int(row["p90_ms"])
    assert len(rows_of(out / "progress.csv")) == summary.fixes == len(ride())
    assert summary.written["predictions.csv"] == len(predictions)


def test_all_remaining_stops_are_foretold_and_the_passed_ones_are_in_stops(tmp_path, feed):
    fixes = recorded(tmp_path / "fixes.csv", ride())
    replay(feed, fixes, tmp_path / "out", read_feed=read_feed)
    at_mid = [r for r in rows_of(tmp_path / "out/predictions.csv") if int(r["made_at_ms"]) == EIGHT_MS + 300_000]
    assert [r["stop_id"] for r in at_mid] == ["s3", "s4"]  # s2 lies a quarter of the way on, at 225 s
    stops = {r["stop_id"]: r for r in rows_of(tmp_path / "out/stops.csv")}
    for stop_id, second in (("s2", 225), ("s3", 450)):
        assert abs(int(stops[stop_id]["arrived_at_ms"]) - EIGHT_MS - second * 1000) <= 15_000


def test_the_manifest_names_inputs_digests_version_and_settings(tmp_path, feed):
    fixes = recorded(tmp_path / "fixes.csv", ride())
    replay(feed, fixes, tmp_path / "out", read_feed=read_feed, overrides={"pace.noise_s": "30", "silent_s": "240"})
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["fixes"]["sha256"] == hashlib.sha256(fixes.read_bytes()).hexdigest()
    assert manifest["feed"]["sha256"] == hashlib.sha256(feed.read_bytes()).hexdigest()
    assert Path(manifest["fixes"]["path"]) == fixes and Path(manifest["feed"]["path"]) == feed
    assert manifest["settings"]["pace"]["noise_s"] == 30.0 and manifest["settings"]["silent_s"] == 240.0
    assert manifest["version"] and manifest["counts"]["OK"] == len(ride())


def test_gzip_and_rows_in_any_order_give_the_same_predictions(tmp_path, feed):
    rows = ride("7") + ride("8")
    plain = recorded(tmp_path / "fixes.csv", rows)
    packed = tmp_path / "fixes.csv.gz"
    # another order of the rows, each vehicle's receipt times unchanged
    packed.write_bytes(gzip.compress("\n".join([HEADER, *reversed(rows)]).encode()))
    for fixes in (plain, packed):
        replay(feed, fixes, tmp_path / fixes.name.replace(".", "_"), read_feed=read_feed)
    assert (tmp_path / "fixes_csv/predictions.csv").read_bytes() == (tmp_path / "fixes_csv_gz/predictions.csv").read_bytes()


def test_a_row_received_late_is_taken_when_it_was_received(tmp_path):
    rows = [f"7,{EIGHT_MS + 60_000},36.0,3.004,{EIGHT_MS + 61_000}", f"7,{EIGHT_MS},36.0,3.0,{EIGHT_MS + 900_000}"]
    fixes, _ = read_fixes(recorded(tmp_path / "f.csv", rows, "vehicle_id,timestamp_ms,lat,lon,received_at_ms"))
    assert [fix.fixed_at_ms - EIGHT_MS for fix in fixes] == [60_000, 0]
    assert fixes[0].trip_id is None and fixes[0].accuracy_m is None


def test_without_trip_ids_the_engine_assigns(tmp_path, feed):
    rows = [row.rsplit(",", 2)[0] for row in ride(every_s=10)]
    fixes = recorded(tmp_path / "fixes.csv", rows, "vehicle_id,timestamp_ms,lat,lon")
    replay(feed, fixes, tmp_path / "out", read_feed=read_feed)
    found = Counter((r["trip_id"], r["start_date"]) for r in rows_of(tmp_path / "out/predictions.csv"))
    assert set(found) == {("t1", DATE)}


def test_ticks_come_every_second_and_samples_every_thirty(tmp_path, feed):
    fixes, _ = read_fixes(recorded(tmp_path / "fixes.csv", ride(every_s=60)))
    seen: list[int] = []

    class Watched(Tracker):
        def tick(self, now_ms: int) -> None:
            seen.append(now_ms)
            super().tick(now_ms)

    tracker = Watched(read_feed(feed), feed_id="f", partner_id="")
    records = list(drive(tracker, fixes))
    assert {later - sooner for sooner, later in pairwise(seen)} == {1_000}
    assert seen[0] == fixes[0].received_at_ms and seen[-1] == fixes[-1].received_at_ms + DRAIN_MS
    sampled = [record.made_at_ms for record in records if isinstance(record, Sampled)]
    assert sampled == [at for at in seen if at % 30_000 == 0]
    assert sum(len(record.outcome.rows) for record in records if isinstance(record, Told)) == len(fixes)


def test_a_fix_that_cannot_be_folded_is_counted_and_the_rest_goes_on(feed, tmp_path):
    class Brittle(Tracker):
        def fold(self, fix):
            if fix.fixed_at_ms == EIGHT_MS:
                raise ZeroDivisionError
            super().fold(fix)

    fixes, _ = read_fixes(recorded(tmp_path / "fixes.csv", ride()))
    faults: Counter[str] = Counter()
    records = list(drive(Brittle(read_feed(feed), feed_id="f", partner_id=""), fixes, faults))
    assert faults == {"FAULT_ZeroDivisionError": 1}
    assert sum(len(record.outcome.rows) for record in records if isinstance(record, Told)) == len(fixes) - 1


def test_history_is_where_the_next_replay_begins(tmp_path, feed):
    slow = recorded(tmp_path / "slow.csv", [row for n in range(6) for row in ride(f"{n}")])
    replay(feed, slow, tmp_path / "days/first", read_feed=read_feed)
    assert (tmp_path / "days/first/learned.msgpack").stat().st_size > 100
    for name, history in (("cold", None), ("warm", tmp_path / "days"), ("same", tmp_path / "days/first")):
        replay(feed, slow, tmp_path / name, read_feed=read_feed, history=history)
    cold, warm, same = ((tmp_path / name / "predictions.csv").read_bytes() for name in ("cold", "warm", "same"))
    assert cold != warm == same
    with pytest.raises(Invalid, match=r"learned\.msgpack"):
        replay(feed, slow, tmp_path / "none", read_feed=read_feed, history=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        ("vehicle_id,timestamp_ms,lat", "7,1,36", "fixes.csv:1: missing columns: lon"),
        (HEADER, f"7,soon,36.0,3.0,t1,{DATE}", "fixes.csv:3: timestamp_ms 'soon' is not a whole number"),
        (HEADER, f"7,-5,36.0,3.0,t1,{DATE}", "fixes.csv:3: timestamp_ms -5 is no time"),
        (HEADER, f"7,{EIGHT_MS},nan,3.0,t1,{DATE}", "fixes.csv:3: lat is nan"),
        (HEADER, f"7,{EIGHT_MS},,3.0,t1,{DATE}", "fixes.csv:3: lat or lon is empty"),
        (HEADER, f",{EIGHT_MS},36.0,3.0,t1,{DATE}", "fixes.csv:3: vehicle_id is empty"),
        (HEADER, f"7,{EIGHT_MS},36.0,3.0,t1,2026-01-05", "fixes.csv:3: start_date '2026-01-05' is not yyyymmdd"),
        (HEADER, f"7,{EIGHT_MS},36.0", "fixes.csv:3: 3 fields where the header has 6"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line_and_nothing_is_written(tmp_path, feed, header, row, said):
    fixes = recorded(tmp_path / "fixes.csv", [ride()[0], row], header)
    with pytest.raises(Invalid) as caught:
        replay(feed, fixes, tmp_path / "out", read_feed=read_feed)
    assert said in caught.value.detail
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("f.csv.gz", b"vehicle_id,timestamp_ms,lat,lon\n", "is not gzip"),
        ("f.csv", b"\x1f\x8b broken", "begins like gzip and is none"),
        ("f.csv.gz", gzip.compress(b"vehicle_id,timestamp_ms,lat,lon\n" * 999, mtime=0)[:40], "begins like gzip and is none"),
        ("f.csv", b"vehicle_id,timestamp_ms,lat,lon\n", "no fixes in it"),
        ("f.csv", b"", "missing columns"),
        ("f.csv", b"vehicle_id,timestamp_ms,lat,lon\n\xff\xfe", "not UTF-8"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(Invalid, match=said):
        read_fixes(path)


def test_a_thousand_bad_rows_are_not_a_thousand_complaints(tmp_path):
    with pytest.raises(Invalid) as caught:
        read_fixes(recorded(tmp_path / "fixes.csv", ["7,x,1,1,t1,"] * 1_000))
    assert len(caught.value.errors) == 20
    assert caught.value.errors[0]["pointer"].endswith("fixes.csv:2")


def test_settings_are_named_when_they_are_wrong():
    with pytest.raises(Invalid) as caught:
        configured({"pace.nonsense": "1", "pace": "{}", "silent_s": "soon", "watch.off_m": "5", "watch": "{}", "watch.back_fixes": "1.5"})
    assert [error["pointer"] for error in caught.value.errors] == [
        "pace.nonsense",
        "pace",
        "silent_s",
        "watch.off_m",
        "watch",
        "watch.back_fixes",
    ]


def test_every_setting_of_arrivals_and_watches_may_be_tried_and_says_why_it_is_there():
    offered = settable()
    assert {"silent_s", "pace.noise_s", "watch.off_m"} <= {name for name, _, _ in offered}
    assert all(reason for _, _, reason in offered)
    arrivals, watch = configured({name: default for name, default, _ in offered})
    assert (arrivals, watch) == configured({})
    assert configured({"watch.off_m": "80"})[1].off_m == 80


@pytest.mark.data
def test_forty_minutes_of_washington_are_plausible(tmp_path, data_dir):
    """The first 40 minutes of a recorded day: every bus on a trip is foretold, and within reach of what happened."""
    day = data_dir / "washington_20260216"
    with gzip.open(day / "fixes.csv.gz", "rt") as file:
        header, *rows = file.read().splitlines()
    start = min(int(row.split(",")[1]) for row in rows)
    part = [row for row in rows if int(row.split(",")[1]) < start + 2_400_000]
    summary = replay(day / "gtfs.zip", recorded(tmp_path / "fixes.csv", part, header), tmp_path / "out", read_feed=read_feed)
    assert summary.counts["OK"] > 0.98 * len(part)
    with gzip.open(day / "arrivals.csv.gz", "rt") as file:
        actual = {(r["vehicle_id"], r["trip_id"], r["stop_sequence"]): int(r["arrived_at_ms"]) for r in csv.DictReader(file)}
    errors = []
    for row in rows_of(tmp_path / "out/predictions.csv"):
        arrived = actual.get((row["vehicle_id"], row["trip_id"], row["stop_sequence"]), 0)
        if 0 < arrived - int(row["made_at_ms"]) <= 900_000:
            errors.append(abs(arrived - int(row["p50_ms"])) / 1000)
    assert len(errors) > 5_000
    assert sum(errors) / len(errors) < 90
