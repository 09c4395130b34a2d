"""`make bench`: every row of the table names a figure that can be had, and says pass and short by the right measure."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import bars
from bench.bars import HERE, NONE, PASS, ROWS, SHORT, SOURCES, WEAK, Bench, Load, Row, Story, as_markdown, figure_of, found, verdict
from bench.harness import catalogue, thresholds

BENCH = Path(bars.__file__).parent


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_there_and_takes_its_options(name: str) -> None:
    source = SOURCES[name]
    if isinstance(source, Load):
        options = {option.name: type(option.default) for option in catalogue.find(source.scenario).options}
        assert {given: options[given] for given in source.options} == {given: type(value) for given, value in source.options.items()}
    else:
        assert (BENCH / f"{source.argv[0].removeprefix('bench.')}.py").exists()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_asks_for_something_that_its_source_says(row: Row) -> None:
    source = SOURCES[row.source]
    assert row.first is not None or row.then is not None
    if isinstance(source, Bench):
        said = (BENCH / f"{source.argv[0].removeprefix('bench.')}.py").read_text()
        for pattern in filter(None, (row.ask, row.floor)):
            words = re.findall(r"[A-Za-z]{2,}", pattern.split("([", 1)[0])
            assert words and sum(word in said for word in words) >= len(words) - 1  # "by post" is put together there
    else:
        kind, ask = catalogue.find(source.scenario), row.ask.split(".")
        if ask[0] in {measure.name for measure in kind.measures}:
            assert thresholds.parse(f"{row.ask}<1ms")
        else:
            assert ask[0] in ("cost", "figure")
            assert row.over in (*SOURCES, "")


def row(**given: object) -> Row:
    return Row(**({"name": "n", "what": "w", "source": "door", "ask": r"took\s+([\d.,]+)", "unit": "us"} | given))  # type: ignore[arg-type]


def test_a_bar_on_cpu_may_be_held_by_the_measure_of_this_machine_and_says_so() -> None:
    assert verdict(row(by_cpu=True), 40.0, 40.0, 2.0) == PASS
    assert verdict(row(by_cpu=True), 79.0, 40.0, 2.0) == HERE and verdict(row(), 79.0, 40.0, 2.0) == SHORT
    assert verdict(row(by_cpu=True), 81.0, 40.0, 2.0) == SHORT
    assert verdict(row(by_cpu=True, sign=">="), 600.0, 1000.0, 2.0) == HERE and verdict(row(sign=">="), 600.0, 1000.0, 2.0) == SHORT
    assert verdict(row(), None, 1.0, 1.0) == NONE and verdict(row(), 1.0, None, 1.0) == ""
    assert verdict(row(), 1.0, 2.0, 1.0, broken=True) == SHORT and verdict(row(), 1.0, 2.0, 1.0, refused=True) == WEAK


def test_figures_are_read_out_of_what_a_bench_prints_and_divided_by_their_floor() -> None:
    story = Story(text="  what   took  1,234.5   <= 9\n  floor  took here 617.25\n")
    assert figure_of(story, r"took\s+([\d.,]+)", "us") == 1234.5 and figure_of(story, r"nothing ([\d.]+)", "us") is None
    one = found(row(floor=r"took here ([\d.]+)", first=2000, then=1000), {"door": story}, 1.0)
    assert one.ratio == 2.0 and (one.first_holds, one.then_holds) == (PASS, SHORT)
    assert "| w | 1,234 us | <= 2,000: pass | <= 1,000: SHORT | 2.00 | 1.0 |" in as_markdown([one])


def test_a_bench_that_fails_is_a_row_that_says_why() -> None:
    (one,) = [found(row(then=1), {"door": Story(fault="no end within 240 s")}, 1.0)]
    assert one.then_holds == NONE and one.why == "no end within 240 s" and "no end within" in as_markdown([one])


def test_the_rows_can_be_listed_without_measuring() -> None:
    told = subprocess.run([sys.executable, "-m", "bench.bars", "--list"], capture_output=True, text=True, check=True).stdout
    assert [line.split("  ")[0].strip() for line in told.splitlines()] == [one.name for one in ROWS]
