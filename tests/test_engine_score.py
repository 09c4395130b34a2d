"""The benchmark against examples worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from engine.errors import Invalid
from engine.tracking import truth
from engine.tracking.fix import Fix
from engine.tracking.replay import replay
from engine.tracking.score import DELAY, SCHEDULE, SPEED, TIMEPOINT, Report, Result, score
from geo.shape import Shape
from ingest.gtfs import read_feed
from tests.gtfs_feed import write_feed

DATE = "20260105"
EIGHT_MS = 1_767_618_000_000
# trip t1 driven at a steady pace: s2, s3, s4 stand at 1/4, 1/2 and all of the way, which takes 900 s; planned 180, 420, 900 s
CROSSED_S = {2: 225, 3: 450, 4: 900}
PLANNED_S = {2: 180, 3: 420, 4: 900}


@pytest.fixture
def played(tmp_path: Path) -> Path:
    feed = write_feed(tmp_path / "feed.zip")
    rows = [
        f"7,{EIGHT_MS + second * 1000},36.0,{3.0 + 0.04 * second / 900:.7f},t1,{DATE}"
        for second in range(0, 901, 15)
    ]  # fmt: skip
    fixes = tmp_path / "fixes.csv"
    fixes.write_text("\n".join(["vehicle_id,timestamp_ms,lat,lon,trip_id,start_date", *rows]) + "\n")
    replay(feed, fixes, tmp_path / "out", read_feed=read_feed)
    return tmp_path / "out"


def foretell(out: Path, shift_s: float, keep=lambda made_s, sequence: True) -> None:
    """Predictions that are wrong by a known amount: the bus comes `shift_s` after the median, the interval is 20 s to either side."""
    lines = ["made_at_ms,vehicle_id,trip_id,start_date,stop_sequence,stop_id,p10_ms,p50_ms,p90_ms"]
    for made_s in range(0, 900, 30):
        for sequence, crossed_s in CROSSED_S.items():
            if made_s < crossed_s and keep(made_s, sequence):
                times = [EIGHT_MS + int((crossed_s - shift_s + step) * 1000) for step in (-20, 0, 20)]
                lines.append(f"{EIGHT_MS + made_s * 1000},7,t1,{DATE},{sequence},s{sequence}," + ",".join(map(str, times)))
    (out / "predictions.csv").write_text("\n".join(lines) + "\n")


def named(report: Report, name: str) -> Result:
    return next(result for result in report.results if result.name == name)


def samples_in(low: float, high: float) -> list[float]:
    """Time to the crossing, s, of every sample in the range, by hand."""
    ahead = [crossed - made for crossed in CROSSED_S.values() for made in range(0, crossed, 30)]
    return [each for each in ahead if low < each <= high]


def test_truth_is_found_from_the_fixes_alone(played):
    report = score(played, read_feed=read_feed)
    assert (report.rides, report.crossings) == (1, 3)
    assert report.samples == len(samples_in(0, 900)) == 8 + 15 + 30


def test_fifty_seconds_late_is_inside_every_window_and_forty_early_is_not(played):
    foretell(played, 50)
    late = named(score(played, read_feed=read_feed), TIMEPOINT)
    assert late.in_window == [100.0, 100.0, 100.0, 100.0] and late.score == 100.0
    assert late.mae_s == pytest.approx(50, abs=0.2) and late.bias_mean_s == pytest.approx(50, abs=0.2)
    foretell(played, -40)
    early = named(score(played, read_feed=read_feed), TIMEPOINT)
    assert early.in_window == [0.0, 100.0, 100.0, 100.0] and early.score == 75.0  # 0-3 min allows 30 s
    assert early.bias_median_s == pytest.approx(-40, abs=0.2) and early.early_share == 0.0
    assert [bucket.coverage for bucket in early.by_actual if bucket.samples] == [0.0] * 5


def test_a_sample_without_a_value_counts_against_us(played):
    foretell(played, 0, keep=lambda made_s, sequence: sequence != 2)
    result = named(score(played, read_feed=read_feed), TIMEPOINT)
    near = samples_in(0, 180)
    of_two = [each for each in (225 - made for made in range(0, 225, 30)) if each <= 180]
    assert result.in_window[0] == pytest.approx(100 * (1 - len(of_two) / len(near)), abs=0.01)
    assert result.missing_share == pytest.approx(8 / 53, abs=1e-4)
    assert result.mae_s == pytest.approx(0, abs=0.2)
    assert {bucket.coverage for bucket in result.by_actual if bucket.samples} == {1.0}


def test_baselines_are_what_their_names_say(played):
    report = score(played, read_feed=read_feed)
    schedule = named(report, SCHEDULE)
    expected = [abs(CROSSED_S[s] - PLANNED_S[s]) for s in CROSSED_S for made in range(0, CROSSED_S[s], 30)]
    assert schedule.mae_s == pytest.approx(np.mean(expected), abs=0.2)
    # a steady bus is what distance / speed knows best, once it moves
    assert named(report, SPEED).by_actual[2].mae_s < 10
    assert 0 < named(report, DELAY).mae_s < 60


def test_arrivals_of_a_file_take_the_place_of_the_derived_ones(played, tmp_path):
    foretell(played, 0)
    lines = [f"7,t1,{DATE},{s},{EIGHT_MS + (crossed + 60) * 1000}" for s, crossed in CROSSED_S.items() if s != 4]
    (tmp_path / "arrivals.csv").write_text("\n".join(["vehicle_id,trip_id,start_date,stop_sequence,arrived_at_ms", *lines]))
    report = score(played, read_feed=read_feed, arrivals=tmp_path / "arrivals.csv")
    assert report.crossings == 2
    assert named(report, TIMEPOINT).mae_s == pytest.approx(60, abs=0.2)


def test_a_report_and_a_chart_are_written_beside(played):
    report = score(played, read_feed=read_feed)
    kept = json.loads((played / "score.json").read_text())
    assert kept["results"][0]["byActual"][0]["maeS"] == report.results[0].by_actual[0].mae_s
    drawn = ElementTree.parse(played / "score.svg").getroot()
    assert drawn.tag.endswith("svg") and len(drawn.findall("{*}polyline")) == 4


def test_inputs_that_changed_since_the_replay_are_refused(played, tmp_path):
    with (tmp_path / "fixes.csv").open("a") as file:
        file.write(f"7,{EIGHT_MS + 990_000},36.0,3.04,t1,{DATE}\n")
    with pytest.raises(Invalid, match="changed since the replay"):
        score(played, read_feed=read_feed)


def test_a_folder_that_is_no_replay_is_refused(tmp_path):
    with pytest.raises(Invalid, match=r"no manifest\.json"):
        score(tmp_path, read_feed=read_feed)


def test_bad_rows_of_arrivals_and_predictions_are_named(played, tmp_path):
    (tmp_path / "a.csv").write_text(f"vehicle_id,trip_id,start_date,stop_sequence,arrived_at_ms\n7,t1,{DATE},2,noon\n")
    with pytest.raises(Invalid, match=r"a\.csv:2"):
        score(played, read_feed=read_feed, arrivals=tmp_path / "a.csv")
    (played / "predictions.csv").write_text("made_at_ms,vehicle_id\n")
    with pytest.raises(Invalid, match=r"predictions\.csv:1: missing columns"):
        score(played, read_feed=read_feed)


def test_a_crossing_needs_fixes_two_minutes_apart_at_most():
    fixed = np.array([0, 100_000, 230_000, 260_000])
    found = truth.crossings(fixed, np.array([0.0, 500.0, 1500.0, 1800.0]), _Stops(np.array([0.0, 250.0, 1000.0, 1650.0, 2500.0])))
    assert found.tolist() == [0, 50_000, 0, 245_000, 0]


class _Stops:
    def __init__(self, along_m):
        self.along_m = along_m


def test_where_a_line_meets_itself_the_whole_trip_decides():
    # out and back on one road: the same places twice
    line = Shape("loop", np.array([3.0, 3.02, 3.0]), np.array([36.0, 36.0, 36.0]))
    out_and_back = [0.0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0]
    fixes = [Fix("7", 60_000 * i, 36.00005, 3.0 + 0.02 * share, 60_000 * i, "d", "replay") for i, share in enumerate(out_and_back)]
    kept, along = truth.place(fixes, line)
    assert len(kept) == len(fixes)
    assert np.allclose(along, np.linspace(0, line.length_m, len(fixes)), atol=3.0)
