"""`timepoint`: every command. `COMMANDS` is the list of them as data; what a worker is made of stands in `api/compose.py`.

Nothing else in the product reads the environment.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from api import recorded
from engine import settings as settings_
from engine.clock import SystemClock
from engine.errors import EngineError, Invalid, NotFound
from engine.settings import Settings

WARNINGS_SHOWN: Final = 20  # of a feed; --json has the first 1,000
OUT: Final = Console(highlight=False)
ERR: Final = Console(stderr=True, highlight=False)


class Command(NamedTuple):
    """One command: its name, one line of help, an example, its arguments and what it does (answers the exit code)."""

    name: str
    help: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def bar() -> Progress:
    """A progress bar on stderr that vanishes into nothing where stderr is no terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=ERR, disable=not sys.stderr.isatty())


def _settings() -> Settings:
    return settings_.load(os.environ)


# ------------------------------------------------------------------------------------------------ the engine


def serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes on the one listening socket (default 1)")
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--share", help=argparse.SUPPRESS)


def serve(args: argparse.Namespace) -> int:
    import uvloop

    from api.compose import run_worker
    from api.workers import supervise

    settings = _settings()
    if args.fd is not None:
        return uvloop.run(run_worker(settings, socket.socket(fileno=args.fd), (args.share, args.number) if args.share else None))
    if args.workers < 1:
        raise Invalid("--workers must be at least 1")
    return uvloop.run(supervise(settings, args.workers))


# ------------------------------------------------------------------------------------------------ the database and its feeds


def migrate(args: argparse.Namespace) -> int:
    from migrations.runner import migrate as run_migrations

    settings = _settings()
    run_migrations(settings.database_owner_url or settings.database_url, say=OUT.print)
    return 0


def import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("feed", type=Path, metavar="FEED.zip", help="a GTFS feed")
    parser.add_argument(
        "--feed-id",
        "--feed",
        dest="feed_id",
        metavar="ID",
        help="short name that ids on the wire begin with (default: from the file's name)",
    )
    parser.add_argument("--partner", metavar="ID", help="the operator the feed belongs to (default: as it was; of a new feed: default)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON (also of a refusal)")


def import_gtfs(args: argparse.Namespace) -> int:
    return asyncio.run(_import_gtfs(args))


async def _import_gtfs(args: argparse.Namespace) -> int:
    from api.fleet import ImportReport
    from engine.store.postgres import Postgres
    from ingest.feed_import import import_zip

    settings = _settings()
    try:
        postgres = await Postgres.connect(settings)
        try:
            with bar() as progress:
                task = progress.add_task("reading", total=1.0)
                done = await import_zip(
                    postgres,
                    args.feed,
                    feed_id=args.feed_id,
                    partner_id=args.partner,
                    progress=lambda share, what: progress.update(task, completed=share, description=what),
                )
        finally:
            await postgres.close()
    except EngineError as fault:
        if not args.json:
            raise
        print(json.dumps({"code": fault.code, "detail": fault.detail, "errors": fault.errors[:1000]}))
        return 1
    if args.json:
        print(msgspec.json.encode(msgspec.convert(done, ImportReport, from_attributes=True)).decode())
        return 0
    word = "in force" if done.changed else "was in force already; nothing changed"
    counts = ", ".join(f"{number:,} {_words(name)}" for name, number in done.counts.items())
    OUT.print(f"feed [bold]{done.feed_id}[/] of {done.partner_id}, version {done.version} {word}: {counts}")
    for warning in done.warnings[:WARNINGS_SHOWN]:
        ERR.print(f"  {warning}", soft_wrap=True, markup=False)
    if done.warnings_total > WARNINGS_SHOWN:
        ERR.print(f"  ... and {done.warnings_total - WARNINGS_SHOWN:,} more warnings")
    return 0


def _words(name: str) -> str:
    """stopTimes -> stop times."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name)


# ------------------------------------------------------------------------------------------------ people


def user_arguments(parser: argparse.ArgumentParser) -> None:
    from api.auth import ROLES

    parser.add_argument("what", choices=["token"], help="token: print a signed access token")
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--partner", metavar="ID", help="the operator it acts for")
    parser.add_argument("--name", default="cli", help="who it stands for (default cli)")
    parser.add_argument("--hours", type=float, default=0.25, help="how long it lives (default 0.25)")


def user(args: argparse.Namespace) -> int:
    from api.auth import Tokens

    token = Tokens(_settings(), SystemClock()).mint(args.name, args.role, partner_id=args.partner, life_s=int(args.hours * 3600))
    print(token)
    return 0


# ------------------------------------------------------------------------------------------------ tickets


def key_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["list", "rotate"], help="rotate: a new key signs from now on, the others only verify")


def key(args: argparse.Namespace) -> int:
    from api import ticket_keys
    from api.auth import Tokens

    settings, clock = _settings(), SystemClock()
    found = asyncio.run(ticket_keys.keys(settings, clock, Tokens(settings, clock).key, rotate=args.what == "rotate"))
    print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    return 0


def ticket_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["verify"])
    parser.add_argument("qr", metavar="QR", help="the text of the QR code; -: from standard input")
    parser.add_argument("--keys", type=Path, required=True, metavar="FILE", help="what GET /v1/tickets/keys answers, or a manifest")
    parser.add_argument("--trip", metavar="ID", help="the trip at whose door it is shown (default: any)")
    parser.add_argument("--at", metavar="TIME", help="RFC 3339 with its offset, or milliseconds since 1970 (default: now)")
    parser.add_argument("--revoked", type=Path, metavar="FILE", help='a manifest, or a list of {"ticketId", "goodFromVersion"}')


def ticket(args: argparse.Namespace) -> int:
    """Works without database and settings. Exit code 0: VALID."""
    from api import ticket_keys

    qr = sys.stdin.read().strip("\r\n") if args.qr == "-" else args.qr
    said = ticket_keys.verified(qr, SystemClock(), keys=args.keys, trip_id=args.trip, at=args.at, revoked=args.revoked)
    print(json.dumps(said, indent=2))
    return 0 if said["result"] == "VALID" else 1


# ------------------------------------------------------------------------------------------------ devices and simulated buses


def device_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["create", "list", "rotate", "retire", "demo"])
    parser.add_argument("id", nargs="*", metavar="ID", help="create: bus ids; rotate, retire: the device id")
    parser.add_argument("--partner", metavar="ID", help="the operator (default: whom --feed-id belongs to, else demo)")
    parser.add_argument("--feed-id", default="demo", metavar="ID", help="the feed that the buses drive (default demo)")
    parser.add_argument("--kind", choices=["TOKEN", "HMAC", "GATEWAY"], default="TOKEN", help="create: how it signs in (default TOKEN)")
    parser.add_argument("--name", default="", help="create: what people call it")
    parser.add_argument(
        "--grace", type=int, default=86_400, metavar="S", help="rotate: how long the old credentials stay good (default a day)"
    )
    parser.add_argument("--buses", type=Path, metavar="FILE", help="demo: JSON list of bus ids")
    parser.add_argument("--out", type=Path, metavar="FILE", help="demo: where {busId: token} goes (mode 0600)")


def device(args: argparse.Namespace) -> int:
    from api import devices
    from api.auth import Tokens

    settings, clock = _settings(), SystemClock()
    secret = Tokens(settings, clock).key
    args.partner = args.partner or asyncio.run(devices.partner_of(settings, args.feed_id)) or "demo"
    if args.what == "demo":
        if args.buses is None or args.out is None:
            raise Invalid("device demo needs --buses FILE and --out FILE")
        made = asyncio.run(
            devices.demo(settings, clock, secret, partner=args.partner, feed_id=args.feed_id, buses=args.buses, out=args.out)
        )
        print(f"{made} devices made; {args.out}")
    elif args.what == "list":
        print(json.dumps(asyncio.run(devices.listed(settings, partner=args.partner)), indent=2))
    elif not args.id:
        raise Invalid(f"device {args.what} needs an ID")
    elif args.what == "create":
        made_one = devices.create(
            settings, clock, secret, partner=args.partner, feed_id=args.feed_id, bus_ids=args.id, kind=args.kind, name=args.name
        )
        print(json.dumps(asyncio.run(made_one), indent=2))
    elif args.what == "rotate":
        fresh = devices.rotate(settings, clock, secret, partner=args.partner, device_id=args.id[0], grace_s=args.grace)
        print(json.dumps(asyncio.run(fresh), indent=2))
    elif not asyncio.run(devices.retire(settings, clock, partner=args.partner, device_id=args.id[0])):
        raise NotFound(f"no device {args.id[0]!r}")
    return 0


def simulate_arguments(parser: argparse.ArgumentParser) -> None:
    from bench import simulate

    simulate.add_arguments(parser)


def simulate(args: argparse.Namespace) -> int:
    import uvloop

    from bench import simulate

    return uvloop.run(simulate.run(args))


def bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="`timepoint bench COMMAND --help` says what each needs"
    )


def bench(args: argparse.Namespace) -> int:
    from bench.harness.command import main

    return main(args.words)


# ------------------------------------------------------------------------------------------------ what is on sale


def sales_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["open", "demo", "list"], help="open: one pass of the opener; demo: the demo's coach lines; list")
    parser.add_argument("--feed-id", default="demo", metavar="ID", help="demo: the feed of the coach lines (default demo)")
    parser.add_argument("--partner", metavar="ID", help="open, list: of this operator only")
    parser.add_argument("--route", metavar="FEED:ID", help="list: of this route only")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="list: so many, the next ones first (default 20)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def sales(args: argparse.Namespace) -> int:
    from api import sales as steps

    settings, clock = _settings(), SystemClock()
    if args.what == "list":
        rows = asyncio.run(steps.listed(settings, clock, args.partner, args.route, max(1, min(args.limit, 10_000))))
        if args.json:
            print(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
        for row in () if args.json else rows:
            OUT.print(f"{row.trip_id}  {row.departs_at}  {row.free:3d} seats free  {row.headsign or ''}", soft_wrap=True, markup=False)
        return 0
    if args.what == "demo":
        report = asyncio.run(steps.demo(settings, clock, args.feed_id))
    else:
        report = asyncio.run(steps.opened(settings, clock, args.partner))
    if args.json:
        print(msgspec.json.encode(report).decode())
    else:
        OUT.print(f"{report.opened:,} trips opened, {report.known:,} were on sale already, of {report.offers} offered routes")
        for fault in report.faults:
            ERR.print(f"  {fault}", soft_wrap=True, markup=False)
    return 1 if report.faults else 0


# ------------------------------------------------------------------------------------------------ settings


def auditor_arguments(parser: argparse.ArgumentParser) -> None:
    from engine.office.auditor import INVARIANTS

    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--limit-s", type=float, default=60.0, help="longest time for all of it: an open snapshot slows sales (default 60)")
    parser.add_argument("--only", action="append", default=[], choices=INVARIANTS, metavar="NAME", help="ask this one; may be given again")


def auditor(args: argparse.Namespace) -> int:
    """Exit code 0: every invariant holds; 1: not so, or not asked."""
    from api.auditing import run

    return asyncio.run(run(_settings(), SystemClock(), OUT, as_json=args.json, limit_s=args.limit_s, only=args.only))


def settings_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the values in force, secrets masked")


def show_settings(args: argparse.Namespace) -> int:
    rows = settings_.describe()
    values = msgspec.structs.asdict(_settings())
    shown = {name: _masked(name, values[name.lower()]) for name, *_ in rows}
    if args.json:
        print(json.dumps(shown, indent=2))
        return 0
    for name, _, default, reason in rows:
        changed = "" if repr(values[name.lower()]) == default else f"  (default {default})"
        OUT.print(f"[bold]{name}[/] = {shown[name]}{changed}\n    {reason}")
    return 0


def _masked(name: str, value: object) -> object:
    """Nothing secret is printed: keys whole, passwords inside URLs."""
    if "SECRET" in name and value:
        return "***"
    if name.endswith("_URL") and isinstance(value, str):
        value = re.sub(r"(password=)[^&\s]*", r"\1***", value, flags=re.IGNORECASE)
    if name.endswith("_URL") and isinstance(value, str) and "@" in value and "://" in value:
        scheme, _, rest = value.partition("://")
        login, _, place = rest.rpartition("@")
        return f"{scheme}://{login.partition(':')[0]}{':***' if ':' in login else ''}@{place}"
    return value


def nothing(parser: argparse.ArgumentParser) -> None:
    """A command without arguments of its own."""


COMMANDS: Final = (
    Command("serve", "run the engine", "timepoint serve --workers 2", serve_arguments, serve),
    Command("migrate", "bring the database up to this version", "timepoint migrate", nothing, migrate),
    Command("import-gtfs", "take a GTFS feed into force", "timepoint import-gtfs feed.zip --feed-id city", import_arguments, import_gtfs),
    Command("device", "devices and their credentials", "timepoint device create BUS-17 --feed-id city", device_arguments, device),
    Command("user", "people: print an access token", "timepoint user token PARTNER_ADMIN --partner demo", user_arguments, user),
    Command("key", "keys that sign tickets", "timepoint key rotate", key_arguments, key),
    Command("ticket", "verify a ticket offline", "timepoint ticket verify QR --keys keys.json", ticket_arguments, ticket),
    Command("sales", "what is on sale", "timepoint sales list", sales_arguments, sales),
    Command("auditor", "what must be true of the books, on a live database", "timepoint auditor --json", auditor_arguments, auditor),
    Command("simulate", "drive simulated buses into an engine", "timepoint simulate --buses 50", simulate_arguments, simulate),
    Command(
        "bench",
        "load a deployment and say how it held: run, list, find-max, compare, report, doctor",
        "timepoint bench run ingest-http --rate 500",
        bench_arguments,
        bench,
    ),
    Command(
        "replay",
        "run recorded fixes through the engine, without a database",
        recorded.REPLAY_EXAMPLES,
        recorded.replay_arguments,
        recorded.replay,
    ),
    Command("score", "how good a replay's arrivals were", "timepoint score --out out", recorded.score_arguments, recorded.score),
    Command(
        "eta-report",
        "how good a replay's arrivals were, in depth, with plots and every bar",
        "timepoint eta-report --out out --against before --html report.html",
        recorded.eta_report_arguments,
        recorded.eta_report,
    ),
    Command(
        "incidents",
        "what a replay found worth a word, and how that differs from another one",
        "timepoint incidents out --against before",
        recorded.incidents_arguments,
        recorded.incidents,
    ),
    Command("settings", "every setting with its meaning", "timepoint settings", settings_arguments, show_settings),
)


def main(argv: list[str] | None = None) -> int:
    """The console script. Errors of the engine are one line on stderr and exit code 1; bad usage is exit code 2."""
    args = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="timepoint", description="Real-time bus tracking and seat booking.", epilog="`timepoint COMMAND --help` says what each needs."
    )
    choices = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        words = "examples:" if "\n" in command.example else "example: "
        sub = choices.add_parser(
            command.name,
            help=command.help,
            description=command.help,
            epilog=words + command.example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=command.run)
        if args[:1] == [command.name]:  # the arguments of the others need not be imported
            command.arguments(sub)
    try:
        chosen = parser.parse_args(args)
        run: Callable[[argparse.Namespace], int] = chosen.run
        return run(chosen)
    except EngineError as fault:
        ERR.print(f"[red]{fault.code}[/] {fault.detail}", soft_wrap=True)
        for row in fault.errors[:20]:
            ERR.print(f"  {row.get('pointer', '')}: {row.get('detail', '')}", soft_wrap=True, markup=False)
        if len(fault.errors) > 20:
            ERR.print(f"  ... and {len(fault.errors) - 20:,} more")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
