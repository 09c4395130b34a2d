"""What the command line says of a target and of a load, and the plan that it makes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from bench.harness import catalogue, machine
from bench.harness.run import DRAIN_S, LAG_LIMIT_S, Plan
from bench.harness.scenario import Option, Scenario
from bench.harness.schedule import Schedule


def target_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("target (default: the running demo; where none runs, a product of its own)").add_argument
    add("--url", metavar="URL", help="the deployment, http(s)://host:port")
    add("--token", metavar="T", help="an operator admin's access token (or BENCH_TOKEN in the environment)")
    add("--partner", metavar="ID", help="the operator that it belongs to (default demo)")
    add("--mqtt-url", metavar="URL", help="its broker, where the scenario sends by MQTT")
    add("--redis-url", metavar="URL", help="its Redis, for figures and for scenarios that need it")
    add("--database-url", metavar="URL", help="its PostgreSQL, likewise")
    add("--pids", metavar="NAME=PID,...", help="its processes on this machine: worker-0=1,redis=2,postgres=3")


def default_processes() -> int:
    """One for every two cores: the product wants some too."""
    return max(1, machine.cores() // 2)


def load_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", metavar="SCENARIO", help="a name of `timepoint bench list`, my_scenario.py, or package.module:Class")
    target_arguments(parser)
    add = parser.add_argument_group("a product of its own").add_argument
    add("--own", action="store_true", help="even where a demo runs")
    add("--workers", type=int, default=1, metavar="N", help="how many it has (default 1)")
    add = parser.add_argument_group("load").add_argument
    add("--rate", type=float, metavar="R", help="units a second, all generators together (default: the scenario's)")
    add("--seconds", type=int, default=20, metavar="S", help="measured time (default 20)")
    add("--warm-up", type=int, default=5, metavar="S", help="before it, not measured (default 5)")
    add("--ramp", type=int, default=0, metavar="S", help="from a tenth of the rate to all of it, between the two (default 0)")
    add("--arrivals", choices=("even", "poisson"), default="even", help="evenly spaced (default), or as strangers come")
    add("--processes", type=int, metavar="N", help="generators (default: one per two cores)")
    add("--seed", type=int, default=1, metavar="N", help="of all that is random (default 1)")
    add("--drain", type=int, default=int(DRAIN_S), metavar="S", help=f"longest wait for the last answers (default {DRAIN_S:.0f})")
    add("--lag-limit", type=float, default=LAG_LIMIT_S * 1000, metavar="MS",
        help=f"99th percentile of the generators' own lag, over which a run is no evidence (default {LAG_LIMIT_S * 1000:.0f})")  # fmt: skip
    add(
        "--threshold",
        action="append",
        default=[],
        metavar="'RULE'",
        help="'fanout.p99<100ms'; again for another (`bench list --thresholds`)",
    )
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the scenario; --NAME VALUE says the same")


def option_arguments(parser: argparse.ArgumentParser, kind: type[Scenario]) -> None:
    group = parser.add_argument_group(f"options of {kind.name}")
    taken = {text for action in parser._actions for text in action.option_strings}
    for option in kind.options:
        flag = f"--{option.name}"
        if flag in taken:
            raise ValueError(f"{kind.name}: its option {option.name!r} is a word of bench run itself; rename it")
        meaning = f"{option.meaning} (default {option.default})".replace("%", "%%")
        group.add_argument(flag, dest=f"option_{option.name}", metavar="V", help=meaning)


def options_of(args: argparse.Namespace, kind: type[Scenario]) -> dict[str, Any]:
    """By name, each of its default's type. Raises ValueError."""
    known = {option.name: option for option in kind.options}
    found = {name: option.default for name, option in known.items()}
    said = [pair.partition("=")[::2] for pair in args.option]
    said += [(name, value) for name in known if (value := getattr(args, f"option_{name}")) is not None]
    for name, value in said:
        if name not in known:
            raise ValueError(f"{kind.name} has no option {name!r}: {', '.join(known) or 'it has none'}")
        found[name] = typed(known[name], value)
    return found


def typed(option: Option, text: str) -> int | float | str | bool:
    wanted = type(option.default)
    if wanted is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise ValueError(f"{option.name} is yes or no, not {text!r}")
        return text.lower() in ("true", "1", "yes")
    try:
        return wanted(text)
    except ValueError:
        raise ValueError(f"{option.name} is a number like {option.default}, not {text!r}") from None


def given(args: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, Any]:
    """What is known of the target, in the words of run/info.json."""
    pids = {}
    for pair in filter(None, (args.pids or "").split(",")):
        name, _, pid = pair.partition("=")
        if not pid.isdigit():
            raise ValueError(f"--pids is NAME=PID,...: not {pair!r}")
        pids[name] = int(pid)
    return {
        "url": args.url, "token": args.token or environ.get("BENCH_TOKEN"), "mqttUrl": args.mqtt_url, "redisUrl": args.redis_url,
        "databaseUrl": args.database_url, "pids": pids, "partner": args.partner or "demo",
    }  # fmt: skip


def plan_of(args: argparse.Namespace, kind: type[Scenario], rate: float | None = None) -> Plan:
    schedule = Schedule(
        rate=rate or (kind.rate if args.rate is None else args.rate), hold_s=args.seconds, warm_up_s=args.warm_up, ramp_s=args.ramp,
        arrivals=args.arrivals,
    )  # fmt: skip
    processes = default_processes() if args.processes is None else args.processes
    if processes < 1:
        raise ValueError("--processes must be at least 1")
    return Plan(
        scenario=catalogue.reference(kind, args.scenario), schedule=schedule, options=options_of(args, kind), processes=processes, seed=args.seed,
        drain_s=args.drain, lag_limit_s=args.lag_limit / 1000,
    )  # fmt: skip
