"""The accuracy report in the terminal: figures, what another replay differs by, and every bar as pass or SHORT."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from engine.tracking.eta_report import PASS, SHORT, Comparison, EtaReport, Interval, Part, span_text

ROUTES_SHOWN = 8


def show(report: EtaReport, console: Console) -> None:
    """Prints it to a console without markup: routes may have brackets in their names. How many bars are short stands in the last line."""
    facts = report.report
    console.print(f"{report.name}: {facts.rides:,} rides, {facts.samples:,} samples to 15 min ahead (truth: {facts.truth})", soft_wrap=True)
    console.print("error = actual - foretold: positive, the bus came later than said; brackets: 95 % of 2,000 draws of rides", style="dim")
    table = Table("to 15 min ahead", *_right("MAE s", "p90 s", "score", "0-3/-6/-10/-15 min %", "median error", "> 60 s early", "no value"))
    for each in facts.results:
        shares = (_share(each.early_share), _share(each.missing_share))
        windows = "/".join(f"{share:.0f}" for share in each.in_window)
        figures = (_ranged(report.mae.get(each.name)), _text(each.p90_s), f"{each.score:.1f}", windows, _text(each.bias_median_s))
        table.add_row(each.name, *figures, *shares)
    console.print(table)
    console.print(_parts("by hour", report.hours))
    console.print(_parts("by route, worst first", report.routes[:ROUTES_SHOWN]))
    if report.comparison is not None:
        _compare(report.comparison, console)
    bars = Table(f"bars{f' of {report.day}' if report.day else ''}", *_right("figure", "must be", ""))
    for bar in report.bars:
        style = {PASS: "green", SHORT: "bold red"}.get(bar.verdict or "", "dim")
        bars.add_row(bar.what, bar.figure, bar.bar, Text(bar.verdict or "too few", style))
    console.print(bars)
    passed, short = (sum(bar.verdict == word for bar in report.bars) for word in (PASS, SHORT))
    console.print(f"{passed} bars {PASS}, {short} {SHORT}")


def _parts(title: str, parts: Iterable[Part]) -> Table:
    table = Table(title, *_right("samples", "MAE s", "p90 s", "median error", "score", "schedule + delay: MAE s"))
    for part in parts:
        rival = _text(part.rivals_s.get("schedule + delay"))
        table.add_row(part.name, f"{part.samples:,}", _ranged(part.mae), _text(part.p90_s), _text(part.bias_s), f"{part.score:.1f}", rival)
    return table


def _compare(found: Comparison, console: Console) -> None:
    console.print(
        f"against {found.name}: MAE {found.difference.value:+.2f} s {_range(found.difference)} on {found.common:,} samples of both; "
        f"score {found.score:.1f} against {found.score_there:.1f}; a value here alone {found.only_here:,}, there alone {found.only_there:,}",
        soft_wrap=True,
    )
    table = Table("to the arrival", *_right("samples", "here s", "there s", "difference s"))
    for gain in found.by_actual:
        table.add_row(span_text(gain), f"{gain.samples:,}", _text(gain.here_s), _text(gain.there_s), _ranged(gain.difference))
    console.print(table)


def _right(*names: str) -> Iterable[Column]:
    return (Column(name, justify="right") for name in names)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _ranged(found: Interval | None) -> str:
    return "-" if found is None else f"{found.value:.1f} {_range(found)}".rstrip()


def _range(found: Interval) -> str:
    return "" if found.low is None or found.high is None else f"({found.low:.1f}..{found.high:.1f})"
