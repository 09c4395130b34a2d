"""`timepoint`: every command, and the one place where the product is put together.

`COMMANDS` is the list of commands as data; `compose` builds a worker from its parts in the order in which they depend on each other, and
`run_worker` starts and drains it. Nothing else in the product reads the environment.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from engine import settings as settings_
from engine.clock import SystemClock
from engine.settings import Settings

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


def serve(args: argparse.Namespace) -> int:
    import uvloop

    from api.worker import run_worker
    from api.workers import supervise

    settings = _settings()
    if args.fd is not None:
        return uvloop.run(run_worker(settings, args.fd, number=args.number))
    if args.workers < 1:
        raise SystemExit("--workers must be at least 1")
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
    parser.add_argument("--partner", default="demo", metavar="ID", help="the operator the feed belongs to (default demo)")
    parser.add_argument("--complaints", type=int, default=20, metavar="N", help="how many complaints to print (default 20)")


# ------------------------------------------------------------------------------------------------ recorded days


def replay_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--feed", type=Path, required=True, metavar="FEED.zip")
    parser.add_argument("--fixes", type=Path, required=True, metavar="FIXES.csv", help="plain or gzip; columns in docs/replay.md")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--history", type=Path, metavar="DIR", help="the output of an earlier replay to learn from")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a threshold for this run; may be given again"
    )


def replay(args: argparse.Namespace) -> int:
    from engine.tracking.replay import replay as run_replay

    overrides = dict(pair.partition("=")[::2] for pair in args.set)
    with bar() as progress:
        task = progress.add_task("replaying", total=None)
        run_replay(
            args.feed,
            args.fixes,
            args.out,
            history=args.history,
            overrides=overrides,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    return 0


def score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="what a replay wrote")
    parser.add_argument(
        "--arrivals", type=Path, metavar="FILE", help="observed arrivals; without it, from the fixes that the manifest names"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def score(args: argparse.Namespace) -> int:
    from engine.tracking.score import score as run_score

    return run_score(args.out, arrivals=args.arrivals, as_json=args.json)


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


# ------------------------------------------------------------------------------------------------ settings


def settings_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the values in force, secrets masked")
    parser.add_argument("--markdown", action="store_true", help="the table of docs/settings.md")


def show_settings(args: argparse.Namespace) -> int:
    rows = settings_.describe()
    if args.markdown:
        print("# Settings\n\nEvery setting is an environment variable. Made by `timepoint settings --markdown`.\n")
        print("| variable | type | default | meaning |\n|---|---|---|---|")
        for name, kind, default, reason in rows:
            print(f"| `{name}` | {kind} | `{default}` | {reason} |")
        return 0
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
    if name.endswith("_URL") and isinstance(value, str) and "@" in value and "://" in value:
        scheme, _, rest = value.partition("://")
        login, _, place = rest.rpartition("@")
        return f"{scheme}://{login.partition(':')[0]}{':***' if ':' in login else ''}@{place}"
    return value


def nothing(parser: argparse.ArgumentParser) -> None:
    """A command without arguments of its own."""
