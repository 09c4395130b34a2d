"""The load report: one file that asks nobody, says first what speaks against a run, and puts every plotted number into a table."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some
from playwright.sync_api import Browser

from bench.harness import report_plots as plots
from bench.harness.histogram import Histogram
from bench.harness.report import complaints, render
from bench.harness.result import Generators, Latency, Peer, Result, Second, Server, Threshold
from tests.phone import holds_on_a_phone
from tests.test_browser_pages import browser  # noqa: F401  # fixture: a Chromium


def latency(factor: float = 1.0) -> Latency:
    hist = Histogram()
    for i in range(1, 1001):
        hist.record(i / 1000 * factor)
    share = {name: hist.percentile(p) for name, p in (("p50_s", 0.5), ("p90_s", 0.9), ("p95_s", 0.95), ("p99_s", 0.99), ("p999_s", 0.999))}
    return Latency(meaning="answered", count=1000, mean_s=hist.mean_s, max_s=hist.max_s, hdr=hist.encode(), **share)


def second(at: int) -> Second:
    return Second(
        at_s=at, phase="warm-up" if at < 10 else "hold", offered=100.0, counts={"accepted": 99}, p50_s={"answer": 0.01}, p99_s={"answer": 0.05},
        lag_s=0.0001, cpu={f"worker-{i}": 0.1 for i in range(12)}, memory_kb={"worker-0": 100_000}, loop_lag_s=0.002,
    )  # fmt: skip


def result(**changes: object) -> Result:
    one = Result(
        scenario="reads", title="Reads", unit="requests", started_at="2026-01-01T00:00:00Z", seconds=50.0, seed=1, rate=100.0, offered=5000,
        options={}, machine={"cores": "2"}, product={}, measures={"answer": latency()}, counts={"accepted": 5000}, faults={}, broken=[],
        series=[second(at) for at in range(60)], server=Server(cpu_s={"worker-0": 1.0}),
        generators=Generators(processes=1, cpu_s=1.0, lag_p99_s=0.0, lagged=False),
    )  # fmt: skip
    return msgspec.structs.replace(one, **changes)


def outside(text: str) -> list[str]:
    """What a browser would fetch or run."""
    return re.findall(r"""<script|<iframe|<link rel="style|@import|(?:src|href)=["'](?!#|data:)[^"']*|url\([^)]*\)""", text)


def test_what_speaks_against_a_run_stands_on_top_worst_first() -> None:
    bad = result(
        refused="its generators lagged", broken=["a seat was sold twice"], faults={"503": 7, "timeout": 0},
        thresholds=[Threshold(text="answer.p99<1ms", figure=990.0, held=False), Threshold(text="age.p50<9ms", figure=None, held=False)],
    )  # fmt: skip
    said = complaints(bad)
    assert [line.split(":")[0] for line in said] == ["This run is no evidence", "Does not hold", "Missed", "Missed", "Fault"]
    page = render([bad])
    assert page.index("its generators lagged") < page.index("seat was sold") < page.index("<figure")
    assert "not measured" in page
    assert complaints(result()) == []


def test_names_are_text_and_nothing_is_fetched() -> None:
    odd = '"><script>alert(1)</script><img src=x>'
    one = result(title=odd, faults={odd: 1}, options={odd: odd}, machine={odd: odd}, counts={odd: 3}, measures={odd: latency()},
                 peers=[Peer(name=odd, version=odd, what=odd, unit=odd, figure=2.0, ours=1.0)])  # fmt: skip
    page = render([one, result()])
    assert outside(page) == []
    assert "<img" not in page
    for drawn in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(drawn)
    assert page == render([one, result()])


def test_a_curve_is_read_from_the_histogram_and_its_table_has_the_same_numbers() -> None:
    page = render([result()])
    assert '<th scope="row">99 %</th><td>990 ms</td>' in page
    without = msgspec.structs.replace(latency(), hdr="")
    assert '<th scope="row">99.5 %</th><td>-</td>' in render([result(measures={"answer": without})])


def test_runs_side_by_side_are_told_apart_by_letter_and_one_without_a_figure_says_so() -> None:
    page = render([result(), result(measures={"answer": latency(2.0), "age": latency()})])
    assert "A reads" in page and "B reads" in page
    assert '<th scope="row">answer p99</th><td>990 ms</td><td>1.98 s</td>' in page
    assert '<th scope="row">age p99</th><td>-</td><td>990 ms</td>' in page
    with pytest.raises(ValueError, match="needs a result"):
        render([])


def test_a_run_of_hours_stays_a_small_file_and_twelve_workers_are_eight_colours() -> None:
    page = render([result(series=[second(at) for at in range(7200)])])
    assert len(page) < 200_000
    assert "others" in page


@given(some.lists(some.floats(0, 1e9), min_size=1, max_size=12), some.booleans())
def test_any_numbers_lie_within_the_frame(values: list[float], logarithmic: bool) -> None:
    y = plots.log(values) if logarithmic else plots.linear(values)
    x = plots.linear([float(i) for i in range(len(values))], tight=True)
    line = plots.Line("a & b", [(float(i), value) for i, value in enumerate(values)])
    for drawn in (plots.chart("t", [line], x, y, dots=True), plots.alone(plots.stacked("t", [line], x, y))):
        root = ElementTree.fromstring(drawn)
        for mark in root.iter():
            for number in map(float, re.findall(r"-?[\d.]+", mark.get("cx", "") + " " + mark.get("cy", "") + " " + mark.get("points", ""))):
                assert -1 <= number <= plots.WIDTH + 1


@given(some.lists(some.floats(1e-3, 1e3), min_size=1, max_size=8))
def test_a_ratio_below_one_points_left_and_one_above_right(found: list[float]) -> None:
    root = ElementTree.fromstring(plots.ratios("t", [(str(i), ratio, "") for i, ratio in enumerate(found)]))
    boxes = root.findall("rect")
    assert len(boxes) == len(found)
    for ratio, box in zip(found, boxes, strict=True):
        left, width = float(box.attrib["x"]), float(box.attrib["width"])
        assert left >= 0 and left + width <= plots.WIDTH
        assert (left < plots.WIDTH / 2) == (ratio < 1) or abs(left - plots.WIDTH / 2) < 0.2


@pytest.mark.browser
def test_a_phone_can_read_it_in_both_themes(tmp_path: Path, browser: Browser) -> None:  # noqa: F811
    peer = Peer(name="Nchan", version="1", what="fan-out", unit="us", figure=8.0, ours=7.0)
    few = [second(at) for at in range(9, 16)]
    many = [result(peers=[peer], faults={"x" * 80: 3}, title="y" * 90, series=few), result(refused="late", series=few)]
    (tmp_path / "page.html").write_text(render(many), encoding="utf-8")
    for theme in ("light", "dark"):
        holds_on_a_phone(browser, tmp_path / "page.html", theme)
