"""`timepoint replay`, `score`, `eta-report`, `incidents`: recorded days, without a database."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.progress import track

from engine.errors import Invalid

ERR: Final = Console(stderr=True, highlight=False)
PIPE_WIDTH: Final = 130  # of tables where the output is no terminal


def _console() -> Console:
    """Without markup: names of routes and folders may have brackets in them."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(width=PIPE_WIDTH, highlight=False, markup=False)


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def replay_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--feed", type=Path, required=True, metavar="FEED.zip")
    parser.add_argument("--fixes", type=Path, required=True, metavar="FIXES.csv", help="plain or gzip; columns in docs/replay.md")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--history", type=Path, metavar="DIR", help="the output of an earlier replay, or a folder of several, to learn from"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting for this run, may be given again: of the arrivals (silent_s, pace.NAME, spread.NAME) or of what is watched"
        " (watch.NAME); --settings lists them all",
    )
    parser.add_argument("--settings", action=ListSettings, nargs=0, help="list what --set may change, with default and reason, and stop")


REPLAY_EXAMPLES: Final = """
  timepoint replay --feed f.zip --fixes day.csv.gz --out out
      then: timepoint score --out out; timepoint eta-report --out out --html report.html
  timepoint replay --feed f.zip --fixes day2.csv.gz --out day2 --history out
      begins with what the first day taught
  timepoint replay --feed f.zip --fixes day.csv.gz --out wider --set watch.off_m=80 --set watch.off_s=60
      then: timepoint incidents wider --against out
  timepoint replay --feed f.zip --fixes day.csv.gz --out noisy --set pace.noise_s=30
      then: timepoint eta-report --out noisy --against out"""


class ListSettings(argparse.Action):
    """`--settings`: prints and stops, whatever else was given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from engine.tracking.overrides import settable

        for name, default, reason in settable():
            _console().print(f"{name} = {default}\n    {reason}", soft_wrap=True)
        parser.exit()


def replay(args: argparse.Namespace) -> int:
    from engine.tracking.replay import replay as run_replay
    from ingest.gtfs import read_feed

    for pair in args.set:
        if "=" not in pair:
            raise Invalid(f"--set reads KEY=VALUE, not {pair!r}")
    overrides = dict(pair.partition("=")[::2] for pair in args.set)
    done = run_replay(args.feed, args.fixes, args.out, read_feed=read_feed, history=args.history, overrides=overrides)
    ERR.print(f"{args.out}: {done}", soft_wrap=True)
    return 0


def score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="what a replay wrote")
    parser.add_argument(
        "--arrivals", type=Path, metavar="FILE", help="observed arrivals; without it, from the fixes that the manifest names"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def score(args: argparse.Namespace) -> int:
    from engine.tracking.score import score as run_score
    from engine.tracking.score_show import show
    from ingest.gtfs import read_feed

    report = run_score(args.out, read_feed=read_feed, arrivals=args.arrivals)
    if args.json:
        _print_json(report)
    else:
        show(report)
    return 0


def eta_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, action="append", metavar="DIR", help="what a replay wrote; may be given again")
    parser.add_argument(
        "--against", type=Path, action="append", default=[], metavar="DIR", help="another replay of the same fixes; one for each --out"
    )
    parser.add_argument("--arrivals", type=Path, action="append", default=[], metavar="FILE", help="observed arrivals; one for each --out")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as one page, without outside requests")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--strict", action="store_true", help="exit code 1 where a bar is SHORT")


def eta_report(args: argparse.Namespace) -> int:
    """Exit code 0 also where bars are short, but for --strict: the report says so."""
    from engine.tracking.eta_report import SHORT
    from engine.tracking.eta_report import eta_report as make
    from engine.tracking.eta_report_page import page
    from engine.tracking.eta_report_show import show
    from ingest.gtfs import read_feed

    for name, given in (("--against", args.against), ("--arrivals", args.arrivals)):
        if given and len(given) != len(args.out):
            raise Invalid(f"{name} has to be given once for each --out, in the same order")
    reports = []
    for i, out in enumerate(track(args.out, "judging", console=ERR, transient=True, disable=not ERR.is_terminal)):
        other, arrivals = (given[i] if given else None for given in (args.against, args.arrivals))
        reports.append(make(out, read_feed=read_feed, against=other, arrivals=arrivals))
    if args.html is not None:
        args.html.write_text(page(reports), encoding="utf-8")
        ERR.print(f"{args.html}: written", soft_wrap=True)
    code = 1 if args.strict and any(bar.verdict == SHORT for report in reports for bar in report.bars) else 0
    if args.json:
        _print_json(reports)
        return code
    console = _console()
    for report in reports:
        show(report, console)
    return code


def incidents_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="DIR", help="what a replay wrote")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another replay of the same fixes: what was gained, lost and changed")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write every episode as one page, without outside requests")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def incidents(args: argparse.Namespace) -> int:
    from engine.tracking.incident_diff import incident_report
    from engine.tracking.incident_diff_show import page, show

    report = incident_report(args.out, args.against)
    if args.html is not None:
        args.html.write_text(page(report), encoding="utf-8")
        ERR.print(f"{args.html}: written", soft_wrap=True)
    if args.json:
        _print_json(report)
    else:
        show(report, _console())
    return 0
