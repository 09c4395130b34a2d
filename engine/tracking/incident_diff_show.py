"""Incidents of one or two replays in the terminal, and as one HTML file without outside requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Final

from rich.console import Console
from rich.table import Column, Table

from engine.tracking.eta_report_page import STYLE
from engine.tracking.incident_diff import Change, Count, Episode, IncidentReport, Side

LISTED: Final = 20  # in the terminal; the page has them all
EPISODE: Final = ("opened", "vehicle", "trip", "kind", "severity", "lasted s")


def show(report: IncidentReport, console: Console) -> None:
    """Counts and rates, then what was gained, lost and changed; to a console without markup."""
    for side in (report.here, report.there):
        if side is not None:
            console.print(_facts(side), soft_wrap=True)
    names = _count_names(report)
    table = Table(*names[:2], *(Column(name, justify="right") for name in names[2:]))
    for count in report.counts:
        table.add_row(*_count_cells(count))
    console.print(table)
    if report.there is None:
        return
    console.print(_summary(report))
    for title, rows in (("gained", report.gained), ("lost", report.lost)):
        _list(console, title, EPISODE, [_cells(one) for one in rows])
    _list(console, "changed", (*EPISODE, "what"), [_change_cells(one) for one in report.changed])


def page(report: IncidentReport) -> str:
    """The same as a page, with every episode."""
    title = "Incidents of a replay" if report.there is None else "Incidents of two replays"
    facts = "".join(f'<p class="dim">{escape(_facts(side))}</p>' for side in (report.here, report.there) if side is not None)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>{title}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head><body><main><h1>{title}</h1>{facts}'
        f"{_table(_count_names(report), [_count_cells(count) for count in report.counts])}{''.join(_sections(report))}</main></body></html>\n"
    )


def _sections(report: IncidentReport) -> Iterator[str]:
    if report.there is None:
        yield f"<h2>All of them</h2>{_table((*EPISODE, 'detail'), [(*_cells(one), one.detail) for one in report.here.episodes], words=True)}"
        return
    yield f"<p>{escape(_summary(report))}</p>"
    for title, rows in (("Gained", report.gained), ("Lost", report.lost)):
        yield f"<h2>{title}: {len(rows):,}</h2>{_table((*EPISODE, 'detail'), [(*_cells(one), one.detail) for one in rows], words=True)}"
    yield f"<h2>Changed: {len(report.changed):,}</h2>{_table((*EPISODE, 'what'), [_change_cells(one) for one in report.changed], words=True)}"


def _facts(side: Side) -> str:
    changed = ", ".join(f"{name}={value}" for name, value in side.changed.items()) or "the defaults"
    return f"{side.name}: {len(side.episodes):,} episodes, {side.fixes:,} fixes and {side.hours:,.1f} h on trips; settings: {changed}"


def _summary(report: IncidentReport) -> str:
    gained, lost, changed = len(report.gained), len(report.lost), len(report.changed)
    return f"{gained:,} gained, {lost:,} lost, {changed:,} changed, {report.same:,} the same"


def _count_names(report: IncidentReport) -> tuple[str, ...]:
    names = ("kind", "severity", "episodes", "per 1,000 fixes", "per 1,000 trip hours", "median length s")
    return names if report.there is None else (*names, "in the other")


def _count_cells(count: Count) -> tuple[str, ...]:
    figures = (_number(count.per_1000_fixes, 2), _number(count.per_1000_hours, 1), _number(count.median_s, 0))
    cells = (count.kind, count.severity, f"{count.episodes:,}", *figures)
    return cells if count.elsewhere is None else (*cells, f"{count.elsewhere:,}")


def _cells(one: Episode) -> tuple[str, ...]:
    opened = datetime.fromtimestamp(one.opened_at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    lasted = "open" if one.closed_at_ms is None else f"{(one.closed_at_ms - one.opened_at_ms) / 1000:.0f}"
    return opened, one.vehicle_id, one.trip_id or "-", one.kind, one.severity, lasted


def _change_cells(one: Change) -> tuple[str, ...]:
    return (*_cells(one.here), ", ".join(one.what))


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _list(console: Console, title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    table = Table(*names, title=f"{title}: {len(rows):,}")
    for row in rows[:LISTED]:
        table.add_row(*row)
    console.print(table)
    if len(rows) > LISTED:
        console.print(f"... and {len(rows) - LISTED:,} more: --html has them all")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> str:
    """`words`: most cells are no figures."""
    if not rows:
        return '<p class="dim">None.</p>'
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide{" words" if words else ""}" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )
