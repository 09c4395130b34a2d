"""The report in depth: intervals over rides, bars with their verdicts, two replays sample by sample, and a page that asks nobody."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from playwright.sync_api import Browser

from api.cli import main
from engine.errors import Invalid
from engine.tracking.eta_report import DAYS, PASS, SHORT, Bar, DayBars, EtaReport, bars, compared, eta_report, interval
from engine.tracking.eta_report_page import page
from engine.tracking.plots import Series, lines, ranks
from engine.tracking.plots import bars as bar_plot
from engine.tracking.score import DELAY, SCHEDULE, SPEED, TIMEPOINT, Report, RideName, Samples, result_of
from ingest.gtfs import read_feed
from tests.phone import holds_on_a_phone
from tests.test_browser_pages import browser  # noqa: F401  # fixture: a Chromium
from tests.test_engine_score import played  # noqa: F401  # fixture: a small replay


def samples(error_s: float, *, rides: int = 12, each: int = 60, delay_s: float = 30.0, missing: int = 0, first: int = 0) -> Samples:
    """`each` samples of each of some rides, one a horizon from 15 s on; our error is `error_s`, that of schedule + delay `delay_s`."""
    actual = np.tile(15.0 + 30.0 * np.arange(each), rides)
    ours = actual - error_s
    ours[:missing] = np.nan
    predicted = {TIMEPOINT: ours, SCHEDULE: actual + 300, DELAY: actual + delay_s, SPEED: actual - 90}
    names = [RideName(f"bus{i}", f"T{i}", "20260302", "R" if i % 2 else "Q") for i in range(first, first + rides)]
    at = 1_772_438_400 + 30.0 * np.arange(rides * each)
    ride = np.repeat(np.arange(rides), each)
    return Samples(actual, at, predicted, ours - 20, ours + 20, ride, np.full(rides * each, 7), names)


def report(of: Samples) -> Report:
    return Report("by hand", 1, 1, len(of.actual_s), [result_of(name, of) for name in of.predicted_s])


def verdicts(of: Samples, day: DayBars | None = None) -> dict[str, Bar]:
    return {bar.what: bar for bar in bars(report(of), day)}


def test_an_interval_draws_rides_and_is_the_same_each_time() -> None:
    rng = np.random.default_rng(1)
    sums = rng.normal(70, 20, 200) * 10
    found = interval(sums, np.full(200, 10.0))
    assert found == interval(sums, np.full(200, 10.0))
    assert found.low is not None and found.high is not None
    assert found.low < found.value < found.high
    assert pytest.approx(found.high - found.low, rel=0.15) == 2 * 1.96 * 20 / 200**0.5
    few = interval(sums[:4], np.full(4, 10.0))
    assert (few.low, few.high, few.rides) == (None, None, 4)


def test_samples_of_one_ride_do_not_make_an_interval_narrow() -> None:
    once = interval(np.array([10.0, 90, 30, 70, 50, 20]), np.ones(6))
    often = interval(np.array([10.0, 90, 30, 70, 50, 20]) * 1_000, np.full(6, 1_000.0))
    assert (once.low, once.high) == (often.low, often.high)


def test_a_bar_is_reached_or_short_or_nobody_can_say() -> None:
    found = verdicts(samples(12.0), DayBars("somewhere", 20, 10, 68, 73))
    assert found["MAE to 15 min, first bar"].verdict == PASS
    assert found["MAE to 15 min, then bar"] == Bar("MAE to 15 min, then bar", "12.0 s", "<= 10 s", SHORT)
    assert found["score, then bar"].verdict == PASS
    assert found["median error, 6-10 min foretold"].verdict is None, "120 samples are too few"
    many = verdicts(samples(12.0, rides=40))
    assert many["median error, 6-10 min foretold"].verdict == SHORT
    assert many["MAE 3-6 min, schedule + delay has more"].verdict == PASS
    assert many["p10-p90 holds in the 2nd half, 3-6 min foretold"].verdict == SHORT, "100 % is more than 84"
    assert not any("first bar" in what for what in many)
    assert verdicts(samples(12.0, rides=40, delay_s=12.0))["MAE 3-6 min, schedule + delay has more"].verdict == SHORT


def test_the_share_without_a_value_has_its_bar() -> None:
    assert verdicts(samples(0.0, missing=15))["samples without a value"].verdict == PASS
    assert verdicts(samples(0.0, missing=25))["samples without a value"].verdict == SHORT


def test_two_replays_differ_by_what_their_common_samples_differ_by() -> None:
    found = compared("other", samples(10.0), samples(-15.0))
    assert (found.difference.value, found.difference.low, found.difference.high) == (-5.0, -5.0, -5.0)
    assert [gain.difference.value for gain in found.by_actual] == [-5.0] * len(found.by_actual)
    assert found.common == 12 * 30
    assert [row[0] for row in found.routes] == ["Q", "R"]


def test_rides_of_one_replay_alone_are_counted_and_not_compared() -> None:
    here, there = samples(10.0, rides=4, missing=5), samples(10.0, rides=4, first=2)
    there.at_s = here.at_s[np.concatenate([np.arange(120, 240), np.arange(120)])]
    found = compared("other", here, there)
    assert (found.common, found.only_here, found.only_there) == (60, 55, 60)
    with pytest.raises(Invalid, match="no sample"):
        compared("other", samples(1.0, rides=2), samples(1.0, rides=2, first=5))


def svgs(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(one) for one in re.findall(r"<svg.*?</svg>", text, re.S)]


def outside(text: str) -> list[str]:
    """What a browser would fetch."""
    return re.findall(r"""<script|<iframe|@import|(?:src|href)=["'](?!#|data:)[^"']*|url\([^)]*\)""", text)


def test_a_page_is_whole_in_itself_and_writes_names_as_text(played: Path) -> None:  # noqa: F811
    made = eta_report(played, read_feed=read_feed, against=played)
    assert made.day is None
    assert made.comparison is not None
    assert made.comparison.difference.value == 0
    assert [part.samples for part in made.hours] == [made.report.samples], "all within one hour"
    odd = msgspec.structs.replace(made, name="<img src=x>", routes=[msgspec.structs.replace(made.routes[0], name='"><script>')])
    text = page([odd, made])
    assert outside(text) == []
    assert "<img" not in text and "&lt;img" in text
    assert len(svgs(text)) == 2 * 9
    assert text == page([odd, made])


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_a_phone_in_both_themes_and_everybody_can_read_it(played: Path, tmp_path: Path, browser: Browser, theme: str) -> None:  # noqa: F811
    made = eta_report(played, read_feed=read_feed, against=played)
    (tmp_path / "page.html").write_text(page([msgspec.structs.replace(made, name="/a/very/long/folder/" * 9)]), encoding="utf-8")
    holds_on_a_phone(browser, tmp_path / "page.html", theme)


def test_the_command_prints_every_bar_and_writes_the_page(
    played: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["eta-report", "--out", str(played), "--against", str(played), "--html", str(tmp_path / "r.html")]) == 0
    said = capsys.readouterr().out
    assert "samples without a value" in said and PASS in said and "against" in said
    assert outside((tmp_path / "r.html").read_text(encoding="utf-8")) == []
    assert main(["eta-report", "--out", str(played), "--json"]) == 0
    (read,) = msgspec.json.decode(capsys.readouterr().out, type=list[EtaReport])
    assert read == eta_report(played, read_feed=read_feed)
    assert main(["eta-report", "--out", str(played), "--against", str(played), "--against", str(played)]) == 1


def test_a_strict_report_ends_with_a_fault_where_a_bar_is_short(played: Path, tmp_path: Path) -> None:  # noqa: F811
    assert main(["eta-report", "--out", str(played), "--strict"]) == 0
    halved = tmp_path / "halved"
    shutil.copytree(played, halved)
    head, *rows = (played / "predictions.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (halved / "predictions.csv").write_text(head + "".join(rows[::2]), encoding="utf-8")
    assert main(["eta-report", "--out", str(halved)]) == 0
    assert main(["eta-report", "--out", str(halved), "--strict"]) == 1
    assert main(["eta-report", "--out", str(played), "--out", str(halved), "--strict", "--json"]) == 1


def test_replays_of_different_fixes_cannot_be_compared(played: Path, tmp_path: Path) -> None:  # noqa: F811
    other = tmp_path / "other"
    shutil.copytree(played, other)
    manifest = msgspec.json.decode((other / "manifest.json").read_bytes())
    fixes = tmp_path / "fixes2.csv"
    fixes.write_text((tmp_path / "fixes.csv").read_text() + "\n")
    manifest["fixes"] = {"path": str(fixes), "sha256": hashlib.sha256(fixes.read_bytes()).hexdigest()}
    (other / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(Invalid, match="different fixes"):
        eta_report(played, read_feed=read_feed, against=other)


def test_days_that_the_bars_name_are_known_by_their_digest() -> None:
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in DAYS)
    assert len({day.name for day in DAYS.values()}) == 3


@pytest.mark.parametrize("values", [[0.0, 0.0], [None, None], [1e-3, 2.0], [-30.0, 12_345.0], [5_000_000.0, None]], ids=str)
def test_any_figures_make_a_drawing_within_its_frame(values: list[float | None]) -> None:
    series = [Series("a & b", values), Series("c", [1.0, 2.0], [0.5, None], [1.5, 2.5])]
    labels = ["<1", "2"]
    for drawn in (
        lines("t", labels, series, below="x", band=(0, 1)),
        bar_plot("t", labels, series, below="x", limit=10.0),
        ranks("t", labels, Series("a", [1.0, values[0] and abs(values[0])]), series[1]),
    ):
        root = ElementTree.fromstring(drawn)
        width, height = map(float, root.attrib["viewBox"].split()[2:])
        for mark in root.iter():
            for name in ("cx", "x", "x1"):
                assert -1 <= float(mark.attrib.get(name, 0)) <= width + 1
            for name in ("cy", "y"):
                assert -1 <= float(mark.attrib.get(name, 0)) <= height + 1
