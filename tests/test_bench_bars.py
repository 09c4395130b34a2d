"""`make bench`: every row of the table names a figure that can be had, and says pass and short by the right measure."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import bars
from bench.bars import HERE, NONE, PASS, SHORT, WEAK, Story, as_markdown, asked, command_of, figure_of, found, verdict
from bench.harness import catalogue, thresholds
from bench.promises import ROWS, SOURCES, Bench, Load, Row

BENCH = Path(bars.__file__).parent
MAKEFILE = (BENCH.parent / "Makefile").read_text()


def said_by(source: Bench) -> str:
    """The text of a bench, of all its files where it is a folder."""
    place = BENCH / source.argv[0].removeprefix("bench.")
    return "".join(file.read_text() for file in (sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]))


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_there_and_takes_its_options(name: str) -> None:
    source = SOURCES[name]
    if isinstance(source, Load):
        options = {option.name: type(option.default) for option in catalogue.find(source.scenario).options}
        assert {given: options[given] for given in source.options} == {given: type(value) for given, value in source.options.items()}
        assert command_of(source).startswith(f"timepoint bench run {source.scenario} --own --rate {source.rate:g} ")
    elif isinstance(source, Bench):
        words = said_by(source) + (BENCH / "seat_rush.py").read_text()  # the options of the desk's benches are there
        assert all(f'"{option}"' in words for option in source.argv if option.startswith("--"))
    else:
        assert f"\n{source.command.rpartition(' ')[2]}:" in MAKEFILE and source.why


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_asks_for_something_that_its_source_says(row: Row) -> None:
    source = SOURCES[row.source]
    assert row.first is not None or row.then is not None
    if isinstance(source, Bench):
        said = said_by(source)
        assert row.ask
        for pattern in filter(None, (row.ask, row.floor, row.lacks)):
            words = re.findall(r"[A-Za-z]{2,}", pattern.split("([", 1)[0])
            assert words and sum(word in said for word in words) >= len(words) - 1  # "by post" is put together there
    elif isinstance(source, Load):
        kind, ask = catalogue.find(source.scenario), row.ask.split(".")
        if ask[0] in {measure.name for measure in kind.measures}:
            assert thresholds.parse(f"{row.ask}<1ms")
        else:
            assert ask[0] in ("cost", "figure")
            assert row.over in (*SOURCES, "")
    else:
        assert not row.ask


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
    assert "| w | 1,234 us | <= 2,000: pass | <= 1,000: SHORT | 2.00 | its floor, same run | 1.0 |" in as_markdown([one])


def test_what_has_no_figure_says_why_and_is_no_pass() -> None:
    (one,) = [found(row(then=1), {"door": Story(fault="no end within 240 s")}, 1.0)]
    assert one.then_holds == NONE and one.why == "no end within 240 s" and "no end within" in as_markdown([one])
    story = Story(text="server  ours in theirs\n  nchan is missing: there is no nginx on this machine\n")
    one = found(row(then=1, lacks=r"nchan is missing: (.*)"), {"door": story}, 1.0)
    assert (one.then_holds, one.why) == (NONE, "there is no nginx on this machine")
    assert "| w | not measured: its source did not say it |  | <= 1.00: not measured |" in as_markdown(
        [found(row(then=1), {"door": story}, 1.0)]
    )
    tests = next(one for one in ROWS if one.name == "tests")
    one = found(tests, {"tests": Story(fault="it takes minutes")}, 1.0)
    assert (one.figure, one.then_holds, one.how) == (None, NONE, "time make test")


def test_a_ratio_is_to_the_floor_of_the_run_or_to_what_was_published_by_the_measure_of_the_machine() -> None:
    def beside(text: str, **given: object) -> tuple[float | None, str]:
        one = found(row(then=1, **given), {"door": Story(text=text)}, 2.0)
        return one.ratio, one.to

    assert beside("took 30 floor 10", floor=r"floor ([\d.]+)", peer="P 5 us published") == (3.0, "its floor, same run; P 5 us published")
    assert beside("took 30", floor=r"floor ([\d.]+)", peer="P", published=5.0, by_cpu=True) == (3.0, "P 5.00 us published")
    assert beside("took 30", peer="P", published=5.0) == (6.0, "P 5.00 us published")
    assert beside("took 30", peer="P", published=5.0, by_cpu=True, sign=">=", unit="/s") == (12.0, "P 5.00 /s published")
    assert beside("took 1.5", unit="x", peer="P, same run") == (1.5, "P, same run") and beside("took 1.5") == (None, "")


def test_the_table_of_peers_is_read_row_by_row() -> None:
    text = (
        "  server  us a delivery  us an update  ours in theirs  ten a tick in theirs\n"
        "  Timepoint (this checkout)   16.87  16.87    227  0.4\n  Timepoint, 10 buses a tick (this checkout)  17.92  1.79    237  1.5\n"
        "  Nchan (1:1.3.6+dfsg-2)  13.96  13.96  1.21  0.128  142\n  C epoll floor (cc (Debian 12.2.0-14) 12.2.0)  11.67  11.67  1.45  0.154  61\n"
    )
    rows = {one.name: one for one in ROWS if one.source == "fanout"}
    seen = {name: found(one, {"fanout": Story(text=text)}, 1.0) for name, one in rows.items()}
    assert {name: one.figure for name, one in seen.items()} == {
        "fan-out": 16.87,
        "fan-out Nchan": 1.21,
        "fan-out C": 1.45,
        "fan-out ten": 0.128,
    }
    assert seen["fan-out"].ratio == 16.87 / 11.67 and seen["fan-out ten"].then_holds == PASS and seen["fan-out C"].then_holds == SHORT
    text = "  Timepoint (this checkout)   16.87  16.87\n  nchan is missing: no nginx\n  epoll is missing: there is no cc on this machine\n"
    lacking = {name: found(one, {"fanout": Story(text=text)}, 1.0) for name, one in rows.items()}
    assert [lacking[name].why for name in ("fan-out Nchan", "fan-out C", "fan-out ten")] == [
        "no nginx",
        "there is no cc on this machine",
        "no nginx",
    ]


def test_a_bench_that_does_not_run_says_its_last_word() -> None:
    told = asked(Bench(("bench.picks", "--deep", "none")), "")
    assert "invalid int value" in told.fault and asked(SOURCES["import"], "").fault.startswith("give it a feed")  # type: ignore[arg-type]


def test_the_rows_can_be_listed_without_measuring() -> None:
    told = subprocess.run([sys.executable, "-m", "bench.bars", "--list"], capture_output=True, text=True, check=True).stdout
    assert [line.split("  ")[0].strip() for line in told.splitlines()] == [one.name for one in ROWS]
