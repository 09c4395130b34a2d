"""Growth: where the knee is and what is full there, and that plots and tables say the same."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.growth import Curve, cause, draw, knee, main, needs
from bench.growth_axes import AXES, Point


def points(p99_ms: list[float], us: list[float] | None = None) -> list[Point]:
    each = us or [300.0] * len(p99_ms)
    pairs = enumerate(zip(p99_ms, each, strict=True))
    return [Point(x=10.0**i, us={"worker": u * 0.6, "redis": u * 0.1, "postgres": u * 0.3}, p99_ms=p) for i, (p, u) in pairs]


def test_a_knee_is_the_first_point_that_waits_four_times_as_long_or_costs_twice_as_much() -> None:
    assert knee(points([5.0, 6.0, 8.0, 9.0])) is None
    assert knee(points([5.0, 6.0, 30.0, 900.0])) == 2
    assert knee(points([5.0, 5.0, 5.0, 5.0], [300.0, 200.0, 390.0, 410.0])) == 3
    assert knee(points([0.01, 0.02, 0.5, 0.9])) is None, "below a millisecond it is the machine"


def test_a_round_may_take_longer_the_more_it_reaches_but_not_more_than_that() -> None:
    assert knee(points([1.0, 10.0, 100.0]), in_rounds=True) is None
    assert knee(points([1.0, 10.0, 900.0]), in_rounds=True) == 2


def test_the_cause_is_the_process_without_anything_left() -> None:
    full = Point(x=1, us={}, p99_ms=1.0, cores={"worker": 0.97, "redis": 0.2})
    assert cause(full) == "worker is full (0.97 of a core)"
    assert "1.40 cores busy in all, most of it worker" in cause(Point(x=1, us={}, p99_ms=1.0, cores={"worker": 0.8, "postgres": 0.6}))


def test_every_axis_becomes_a_plot_with_a_ground_of_its_own_and_a_table(tmp_path: Path) -> None:
    curves = {name: Curve(name, points([5.0, 6.0, 8.0, 400.0])) for name in AXES}
    text = draw(curves, tmp_path)
    for name in AXES:
        root = ElementTree.fromstring((tmp_path / f"growth-{name}.svg").read_text())
        assert root.tag.endswith("svg") and "prefers-color-scheme" in "".join(root.itertext())
        assert f"growth-{name}.svg" in text
    assert text.count("Knee between") == sum(not axis.in_rounds for axis in AXES.values())
    assert (tmp_path / "growth.md").read_text().endswith(text)


def test_what_a_fleet_needs_is_reckoned_from_where_a_unit_is_cheapest() -> None:
    curves = {name: Curve(name, points([5.0, 6.0, 8.0, 400.0], [900.0, 300.0, 400.0, 500.0])) for name in ("fixes", "watchers")}
    row = next(line for line in needs(curves).splitlines() if line.startswith("| 100,000"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "36.0", "180 us of the worker a fix and 180 a delivery"
    assert cells[3].startswith("3.0 ") and cells[4] == "9.0"
    assert needs({}) == ""


def test_an_axis_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["speed", "--docs", str(tmp_path)])
