"""`timepoint auditor`: what must be true of the books, asked of a live database, as a table or as JSON."""

from __future__ import annotations

import sys

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.clock import Clock
from engine.office.auditor import INVARIANTS, Finding, Report
from engine.settings import Settings
from engine.store.auditor import audit


async def run(settings: Settings, clock: Clock, out: Console, *, as_json: bool, limit_s: float, only: list[str]) -> int:
    """0: every invariant was asked and holds; 1: not so."""
    url = settings.database_owner_url or settings.database_url
    names = [name for name in INVARIANTS if not only or name in only]
    done = await audit(url, clock, keep_days=settings.outbox_keep_days, limit_s=limit_s, names=names)
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(done), indent=2).decode() + "\n")
        return 0 if done.sound else 1
    return show(out, done)


def show(out: Console, done: Report) -> int:
    """The table, then whatever is wrong; the exit code."""
    table = Table("invariant", "what it says", "wrong", "ms", box=None, pad_edge=False)
    for one in done.findings:
        verdict = "[green]0[/]" if one.holds else "[red]?[/]" if one.count is None else f"[red]{one.count:,}[/]"
        table.add_row(one.name, escape(one.purpose), verdict, str(one.took_ms))
    out.print(table)
    for one in done.findings:
        if not one.holds:
            _list(out, one)
    wrong = sum(not one.holds for one in done.findings)
    out.print("[green]sound[/]: every invariant holds" if done.sound else f"[red]not sound[/]: {wrong} of {len(done.findings)} do not hold")
    return 0 if done.sound else 1


def _list(out: Console, one: Finding) -> None:
    out.print(f"\n[red]{one.name}[/]: {escape(one.fault or one.purpose)}", soft_wrap=True)
    for row in one.broken:
        out.print(f"  {escape(row.entity)}  {escape(row.said)}", soft_wrap=True)
    if one.count is not None and one.count > len(one.broken):
        out.print(f"  ... and {one.count - len(one.broken):,} more")
