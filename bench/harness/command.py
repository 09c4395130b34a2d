"""`timepoint bench`: its commands. Exit codes: 0 held, 1 a threshold missed or something broken, 2 bad input or no target, 3 no evidence."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

import msgspec
from rich.console import Console
from rich.markup import escape

from bench.harness import catalogue, outputs, report, target, thresholds
from bench.harness import compare as comparing
from bench.harness import doctor as doctoring
from bench.harness import find_max as searching
from bench.harness.arguments import default_processes, given, load_arguments, option_arguments, plan_of, target_arguments
from bench.harness.result import Result, read
from bench.harness.run import run
from bench.harness.scenario import CallFailed, Scenario
from bench.harness.search import Search
from bench.harness.view import Shown, console

HELD, MISSED, BAD, REFUSED = 0, 1, 2, 3
OUT: Final = Console(highlight=False)
CODES: Final = "exit codes: 0 held, 1 a threshold missed or verify broken, 2 bad input or no target, 3 refused as evidence"


class Command(NamedTuple):
    name: str
    help: str
    examples: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


# ------------------------------------------------------------------------------------------------ run, list


def run_arguments(parser: argparse.ArgumentParser) -> None:
    load_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="result.json, result.md, junit.xml, an .hlog of each measure, report.html")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run_one(args: argparse.Namespace) -> int:
    import uvloop

    kind = catalogue.find(args.scenario)
    plan, rules = plan_of(args, kind), [thresholds.parse(text) for text in args.threshold or kind.thresholds]
    with target.find(kind, given(args, os.environ), workers=args.workers, own=args.own) as found:
        with Shown(plan, console()) as shown:
            result = uvloop.run(run(plan, found, shown.see))
    result.thresholds = thresholds.judge(rules, result)
    if args.out is not None:
        outputs.write(args.out, result)
    if args.json:
        sys.stdout.write(outputs.as_json(result).decode())
    else:
        OUT.print(outputs.as_text(result), markup=False, soft_wrap=True)
    return code(result)


def code(result: Result) -> int:
    if result.refused:
        return REFUSED
    return MISSED if result.broken or not all(threshold.held for threshold in result.thresholds) else HELD


def list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO", help="all that there is to know of this one")
    parser.add_argument("--thresholds", action="store_true", help="how thresholds are written")


def list_all(args: argparse.Namespace) -> int:
    if args.thresholds:
        print(thresholds.__doc__)
        return HELD
    for name in [args.scenario] if args.scenario else catalogue.LISTED:
        kind = catalogue.find(name)
        OUT.print(f"[bold]{kind.name:<16}[/] {kind.summary}", soft_wrap=True)
        if args.scenario:
            OUT.print(f"  --rate counts {kind.unit} a second; default {kind.rate:g}")
            for measure in kind.measures:
                OUT.print(f"  measure {measure.name}: {measure.meaning}", markup=False, soft_wrap=True)
            for option in kind.options:
                OUT.print(f"  --{option.name} ({option.default}): {option.meaning}", markup=False, soft_wrap=True)
            for rule in kind.thresholds:
                OUT.print(f"  threshold {rule}", markup=False)
            if kind.needs:
                OUT.print(f"  needs {', '.join(sorted(kind.needs))}", markup=False)
    return HELD


# ------------------------------------------------------------------------------------------------ find-max


def find_max_arguments(parser: argparse.ArgumentParser) -> None:
    load_arguments(parser)
    add = parser.add_argument
    add("--most", type=float, default=float("inf"), metavar="R", help="a rate that is not passed")
    add("--within", type=float, default=5.0, metavar="PERCENT", help="how close to the true one (default 5)")
    add("--tries", type=int, default=2, metavar="N", help="a rate holds if it does in one of so many runs (default 2)")
    add("--out", type=Path, metavar="DIR", help="find-max.json with every step, and the files of the best run")


def find_max(args: argparse.Namespace) -> int:
    import uvloop

    kind = catalogue.find(args.scenario)
    first = plan_of(args, kind)
    rules = searching.rules_of(args.threshold or kind.thresholds)
    search = Search(first.schedule.rate, args.within / 100, args.most)
    if args.tries < 1:
        raise ValueError("--tries must be at least 1")
    OUT.print(f"{kind.name}: the highest rate at which {', '.join(rule.text for rule in rules)}", markup=False, soft_wrap=True)
    OUT.print(f"{'rate':>10}  {'':8}figures")
    with target.find(kind, given(args, os.environ), workers=args.workers, own=args.own) as found:

        def measure(rate: float) -> Result:
            plan = plan_of(args, kind, rate)
            with Shown(plan, console(), quiet=True) as shown:
                return uvloop.run(run(plan, found, shown.see))

        ended = searching.find(search, rules, measure, args.tries, _step)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "find-max.json").write_bytes(msgspec.json.format(msgspec.json.encode(ended), indent=1) + b"\n")
        best = [step.result for step in ended.steps if step.held and step.rate == ended.rate]
        outputs.write(args.out, best[-1] if best else ended.steps[-1].result)
    if ended.why_ended:
        OUT.print(ended.why_ended, markup=False, soft_wrap=True)
    OUT.print(_found(ended, kind), markup=False, soft_wrap=True)
    if ended.why_ended:
        return REFUSED
    return HELD if ended.rate is not None else MISSED


def _step(step: searching.Step) -> None:
    figures = "  ".join(f"{one.text.strip()}: {outputs.figure(one.figure)}" for one in step.result.thresholds)
    verdict = "held" if step.held else "refused" if step.result.refused else "missed"
    broken = "".join(f"  broken: {sentence}" for sentence in step.result.broken[:1])
    OUT.print(f"{step.rate:10,.1f}  {verdict:<8}{figures}{broken}", markup=False, soft_wrap=True)


def _found(ended: searching.Found, kind: type[Scenario]) -> str:
    if ended.rate is None:
        return f"no rate held down to {ended.limit or 0:,.1f} {kind.unit} a second"
    beyond = f"; {ended.limit:,.1f} is too much" if ended.limit is not None else "; nothing broke up to it"
    return f"{ended.rate:,.1f} {kind.unit} a second held{beyond}"


# ------------------------------------------------------------------------------------------------ what results say


def results_of(paths: Sequence[Path]) -> list[Result]:
    """Raises ValueError with the file."""
    found = []
    for path in paths:
        place = path / "result.json" if path.is_dir() else path
        try:
            found.append(read(place.read_bytes()))
        except (OSError, msgspec.DecodeError) as fault:
            raise ValueError(f"{place} is no result of bench run: {fault}") from None
    return found


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = comparing.__doc__
    add = parser.add_argument
    add("before", nargs="?", type=Path, metavar="A.json", help="a result, or the folder that bench run --out wrote")
    add("after", nargs="?", type=Path, metavar="B.json")
    add("--before", dest="befores", nargs="+", type=Path, default=[], metavar="A.json", help="several runs of the first side")
    add("--after", dest="afters", nargs="+", type=Path, default=[], metavar="B.json", help="several runs of the second side")
    add("--json", action="store_true", help="print JSON")


def compare(args: argparse.Namespace) -> int:
    befores = [*([args.before] if args.before else []), *args.befores]
    afters = [*([args.after] if args.after else []), *args.afters]
    if not befores or not afters:
        raise ValueError("two results: compare A.json B.json, or compare --before A1.json A2.json ... --after B1.json B2.json ...")
    sides = results_of(befores), results_of(afters)
    found = comparing.compare(*sides)
    if args.json:
        print(msgspec.json.encode(found).decode())
    else:
        OUT.print(outputs.comparison_text(found), markup=False, soft_wrap=True)
    if any(result.refused for side in sides for result in side):
        return REFUSED
    return MISSED if any(line.verdict == "worse" for line in found.lines) else HELD


def report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json", help="results, or folders that bench run --out wrote")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="where it goes (default report.html)")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="all of them as one JUnit file too")


def report_all(args: argparse.Namespace) -> int:
    found = results_of(args.results)
    args.out.write_text(report.render(found), encoding="utf-8")
    if args.junit is not None:
        args.junit.write_bytes(outputs.as_junit(found))
    OUT.print(f"{args.out}: {len(found)} run{'s' if len(found) > 1 else ''}", markup=False)
    return max(map(code, found))


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    target_arguments(parser)
    parser.add_argument("--processes", type=int, default=default_processes(), metavar="N", help="generators that are meant to run")


def doctor(args: argparse.Namespace) -> int:
    found = given(args, os.environ)
    known = target.known(found)
    if known is None:
        OUT.print("no product is named and no demo runs: this machine only\n", markup=False)
    worst = HELD
    for finding in doctoring.examine(known, args.processes):
        colour = {"ok": "green", "note": "yellow", "bad": "red"}[finding.state]
        OUT.print(f"[{colour}]{finding.state:<5}[/] {finding.what:<20} {escape(finding.said)}", soft_wrap=True)
        if finding.do:
            OUT.print(f"{'':27}{finding.do}", markup=False, soft_wrap=True)
        worst = MISSED if finding.state == "bad" else worst
    return worst


COMMANDS: Final = (
    Command(
        "run", "drive one scenario and say what was found",
        "timepoint bench run ingest-http --rate 1000 --seconds 30 --threshold 'answer.p99<20ms' --out out\n"
        "timepoint bench run fanout --url https://bus.example --token T --watchers 5000\n"
        "timepoint bench run my_scenario.py --processes 2", run_arguments, run_one,
    ),
    Command("list", "which scenarios there are", "timepoint bench list\ntimepoint bench list fanout", list_arguments, list_all),
    Command(
        "find-max", "the highest rate whose thresholds hold",
        "timepoint bench find-max ingest-http --rate 500 --seconds 10 --threshold 'answer.p99<50ms'", find_max_arguments, find_max,
    ),
    Command(
        "compare", "two results measure by measure, with a verdict that knows noise; exit code 1: something is worse",
        "timepoint bench compare before.json after.json\ntimepoint bench compare --before a1 a2 a3 a4 --after b1 b2 b3 b4", compare_arguments, compare,
    ),
    Command(
        "report", "results as one HTML file, side by side",
        "timepoint bench report out/result.json\ntimepoint bench report before after --out both.html", report_arguments, report_all,
    ),
    Command(
        "doctor", "what stands in the way of a good measurement, and what to do about it",
        "timepoint bench doctor\ntimepoint bench doctor --url https://bus.example --token T", doctor_arguments, doctor,
    ),
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Bad input is one line and what to read, exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD, f"{self.prog}: {message}\n`{self.prog} --help` says what can be said\n")


def parser_of(command: Command) -> Parser:
    parser = Parser(
        prog=f"timepoint bench {command.name}", description=command.help,
        epilog="examples:\n  " + command.examples.replace("\n", "\n  ") + f"\n\n{CODES}", formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    command.arguments(parser)
    return parser


def usage() -> str:
    lines = [f"  {command.name:<10} {command.help}" for command in COMMANDS]
    examples = [f"  {command.examples.splitlines()[0]}" for command in COMMANDS]
    return "\n".join(["timepoint bench COMMAND ...", "", *lines, "", "examples:", *examples, "", CODES, ""])


def main(words: Sequence[str]) -> int:
    """`timepoint bench WORDS`."""
    command = next((one for one in COMMANDS if words and one.name == words[0]), None)
    if command is None:
        asked = not words or words[0] in ("-h", "--help")
        (sys.stdout if asked else sys.stderr).write(usage() if asked else f"timepoint bench: there is no {words[0]!r}\n\n{usage()}")
        return HELD if asked else BAD
    try:
        parser = parser_of(command)
        plain = [word for word in words[1:] if word not in ("-h", "--help")]
        if command.arguments in OF_A_SCENARIO and plain:
            sys.path.append(os.getcwd())  # package.module of somebody's own
            option_arguments(parser, catalogue.find(parser.parse_known_args(plain)[0].scenario))
        return command.run(parser.parse_args(words[1:]))
    except (ValueError, target.NoTarget, CallFailed) as fault:
        sys.stderr.write(f"timepoint bench {command.name}: {fault}\n")
        return BAD


OF_A_SCENARIO: Final = (run_arguments, find_max_arguments)
