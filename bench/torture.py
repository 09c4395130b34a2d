"""The torture run: two workers, real PostgreSQL and Redis, many buyers at once, and a nemesis that breaks all of it again and again.

    python -m bench.torture                                 45 s, seed 7
    python -m bench.torture --seconds 300 --seed 11         the long form (`make torture`)
    python -m bench.torture --buyers 40 --out torture.json  more callers; the report as JSON too

While it runs, a probe looks ten times a second for seats that are sold twice. When everybody has stopped and all that was under way has ended:
no overlap, no partial booking, everything that was promised to a buyer is there in its state, the ledger balances, every confirmation was
said once, programs were told of nothing that never happened, and `timepoint auditor` finds nothing. Exit code 0: nothing was wrong.

The seed decides what the buyers want and when the nemesis strikes; the machine decides who meets whom, so no two runs are the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

from bench import checks, sold
from bench.buyers import Buyer, Log
from bench.nemesis import Nemesis
from bench.operators import Operator
from deploy.servers import PostgresServer, RedisServer, free_port, throw_away_folder

CHECKOUT = Path(__file__).resolve().parent.parent
TIMEPOINT = (sys.executable, "-m", "api.cli")
TRIPS, ROWS, STOPS = 6, 3, 6  # 12 seats a trip: people have to meet; the last trip is cancelled after two thirds of a run
FROZEN_S = 6.0
REST_S = 90.0  # longest wait for what is under way to end
SETTINGS = {
    "DEMO": "1", "MQTT_URL": "", "ROLES": "api,office", "DRAIN_S": "0.2", "HOLD_TTL_S": "4", "HOLD_MOST_S": "8", "PICK_TTL_S": "2",
    "LEASE_MS": "1500", "LEASE_RENEW_MS": "300", "EXPIRY_S": "0.5", "PAYMENT_LIMIT_S": "10", "PAYMENT_RUN_S": "3",
    "PAYMENT_RECONCILE_S": "0.5", "PAYMENT_PROVIDER_TIMEOUT_S": "2", "LATE_PAYMENT_OFFER_S": "3", "SIMULATOR_ANSWER_MS": "200",
    "RUSH_THRESHOLD_PER_S": "0", "POS_LEASE_S": "60",
}  # fmt: skip


class House:
    """Servers and workers, thrown away at the end."""

    def __init__(self, workers: int = 2) -> None:
        self.postgres, self.redis = PostgresServer(throw_away_folder()), RedisServer(throw_away_folder())
        first = 20_000 + os.getpid() % 7_000
        self.ports = [free_port(first + 3 * number) for number in range(workers)]
        self.supervisors: list[subprocess.Popen[bytes]] = []
        self.environ = os.environ | SETTINGS | {
            "DATABASE_URL": self.postgres.url, "DATABASE_OWNER_URL": self.postgres.admin_url, "REDIS_URL": self.redis.url,
        }  # fmt: skip
        self.log = tempfile.NamedTemporaryFile("wb", prefix="torture-", suffix=".log", delete=False)  # noqa: SIM115  # kept for reading
        self.token = ""
        self._admin: Any = None

    def __enter__(self) -> Self:
        self.redis.start(), self.postgres.start()
        self.postgres.create_database("timepoint")
        self.command("migrate")
        asyncio.run(sold.sell(self.postgres.admin_url, TRIPS, rows=ROWS, stops=STOPS, layouts=other_buses()))
        self.token = self.command("user", "token", "PARTNER_ADMIN", "--partner", "demo", "--hours", "2").strip()
        for port in self.ports:
            environ = self.environ | {"PORT": str(port)}
            self.supervisors.append(subprocess.Popen([*TIMEPOINT, "serve"], env=environ, cwd=CHECKOUT, stdout=self.log, stderr=self.log))
        for port in self.ports:
            self._await(port)
        return self

    def _await(self, port: int) -> None:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
                    return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"a worker did not come up in 30 s; see {self.log.name}")

    def command(self, *words: str, check: bool = True) -> str:
        """What `timepoint ...` prints."""
        done = subprocess.run([*TIMEPOINT, *words], env=self.environ, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
        if check and done.returncode:
            raise RuntimeError(f"timepoint {' '.join(words)}: {done.stderr[-2000:]}")
        return done.stdout if check else f"{done.returncode}\n{done.stdout}{done.stderr}"

    def redis_command(self, *words: str) -> Any:
        import redis

        with redis.Redis.from_url(self.redis.url, socket_timeout=5) as connection:
            return connection.execute_command(*words)

    def deadlocks(self) -> list[str]:
        """What PostgreSQL said of those it had to break: run again and harmless, but each is a lock order to look at."""
        said = self.postgres.log.read_text(errors="replace").split("ERROR:  deadlock detected")[1:]
        return [one[:2500] for one in said[:5]]

    async def fetch(self, statement: str, *args: Any) -> list[Any]:
        """As a superuser, on a connection of its own each time: they are killed too."""
        import asyncpg

        connection = await asyncpg.connect(self.postgres.admin_url, timeout=5)
        try:
            return list(await connection.fetch(statement, *args))
        finally:
            connection.terminate()

    def __exit__(self, *_: object) -> None:
        for supervisor in self.supervisors:
            supervisor.send_signal(signal.SIGTERM)
        for supervisor in self.supervisors:
            try:
                supervisor.wait(20)
            except subprocess.TimeoutExpired:
                supervisor.kill()
        self.postgres.remove()
        self.redis.remove()
        self.log.close()


def other_buses() -> dict[str, Any]:
    """What trips are swapped to: a bus with the same labels numbered from the back, and one that is a row shorter."""
    plain, short = sold.layout(ROWS), sold.layout(ROWS - 1)
    return {"backwards": plain | {"seats": plain["seats"][::-1]}, "short": short, "plain": plain}


class Run:
    """One run on one house."""

    def __init__(self, house: House, seed: int, buyers: int) -> None:
        chance = random.Random(seed)
        self.house, self.seed, self.log = house, seed, Log()
        self.buyers = [
            Buyer(house.ports, self.log, random.Random(chance.getrandbits(64)), TRIPS, sold.labels(ROWS), STOPS) for _ in range(buyers)
        ]
        self.operator = Operator(house.ports, self.log, random.Random(chance.getrandbits(64)), TRIPS, sold.labels(ROWS), STOPS, house.token)
        self.nemesis = Nemesis(house, random.Random(chance.getrandbits(64)), FROZEN_S)
        self.probes = 0
        self.over = False

    async def play(self, seconds: float) -> dict[str, Any]:
        """The report."""
        begun_s = time.monotonic()
        self.operator.cancels_at_s = begun_s + seconds * 2 / 3
        probe = asyncio.create_task(self._probe())
        show = asyncio.create_task(self._show(seconds))
        haunting = asyncio.create_task(self.nemesis.haunt())
        living = [asyncio.create_task(one.live()) for one in (*self.buyers, self.operator)]
        ended = asyncio.gather(haunting, *living)
        await asyncio.wait({ended}, timeout=seconds)
        if ended.done():
            ended.result()  # nobody stops by himself: raises why
        self.nemesis.over = True
        for one in (*self.buyers, self.operator):
            one.over = True
        await ended
        left = await self._rest()
        self.over = True
        await asyncio.gather(probe, show)
        return await self._judge(time.monotonic() - begun_s, left)

    async def _probe(self) -> None:
        import asyncpg

        line: Any = None
        while not self.over:
            try:
                line = line or await asyncpg.connect(self.house.postgres.admin_url, timeout=5)
                for check, rows in (await checks.wrong(line, checks.ALWAYS)).items():
                    self.log.fault(check, rows)
                self.probes += 1
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                if line is not None:
                    line.terminate()
                line = None
            await asyncio.sleep(0.1)

    async def _show(self, seconds: float) -> None:
        """A line a second, on stderr; rewritten in place on a terminal."""
        begun_s = time.monotonic()
        end = "\r" if sys.stderr.isatty() else "\n"
        while not self.over:
            log, at = self.log, time.monotonic() - begun_s
            text = (
                f"{at:4.0f}/{seconds:.0f} s  {log.tried.total()} operations  {len(log.held)} held, {len(log.confirmed)} confirmed,"
                f" {len(log.cancelled)} cancelled  {self.nemesis.done.total()} faults  {self.nemesis.now or '-':20s}"
                f"  wrong: {', '.join(log.wrong) or 'nothing'}   "
            )
            print(text, end=end, file=sys.stderr, flush=True)
            await asyncio.sleep(1 if end == "\r" else 5)

    async def _rest(self) -> dict[str, int]:
        """Waits until nothing is under way; what is left after REST_S."""
        limit_s = time.monotonic() + REST_S
        left: dict[str, int] = {"unknown": 1}
        while time.monotonic() < limit_s:
            try:
                left = {name: n for name, n in dict((await self.house.fetch(checks.STATEMENTS["unfinished"]))[0]).items() if n}
            except OSError:
                left = {"unknown": 1}
            if not left:
                break
            await asyncio.sleep(0.5)
        return left

    async def _judge(self, took_s: float, left: dict[str, int]) -> dict[str, Any]:
        import asyncpg

        fetch = self.house.fetch
        self.log.compare(await fetch(checks.STATEMENTS["states"]), await fetch(checks.STATEMENTS["held_by_request"]))
        if left:
            self.log.fault("unfinished", left)
        admin = await asyncpg.connect(self.house.postgres.admin_url)
        for check, rows in (await checks.wrong(admin, (*checks.AT_REST, *checks.MONEY))).items():
            self.log.fault(check, rows)
        said = await asyncio.to_thread(self.house.redis_command, "XRANGE", "events", "-", "+")
        ids = [fields[b"id"].decode() for _, fields in said]
        if news := await checks.unfounded(admin, ids):
            self.log.fault("said_and_never_committed", news[:20])
        counted = dict(await admin.fetchrow(checks.STATEMENTS["counted"]))
        await admin.close()
        verdict = await asyncio.to_thread(self.house.command, "auditor", check=False)
        if not verdict.startswith("0\n"):
            self.log.fault("auditor", verdict[-3000:])
        log = self.log
        return {
            "seed": self.seed, "seconds": round(took_s, 1), "operations": dict(sorted(log.tried.items())), "answers": dict(sorted(log.said.items())),
            "tries_without_an_answer": log.lost, "faults": dict(sorted(self.nemesis.done.items())), "probes": self.probes,
            "promised": {"holds": len(log.held), "releases": len(log.released), "bookings": len(log.booked), "confirmed": len(log.confirmed),
                         "cancelled": len(log.cancelled)},
            "events_heard": len(ids), "left_behind": counted, "auditor": verdict.partition("\n")[0], "wrong": log.wrong,
            "deadlocks": self.house.deadlocks(), "samples": log.samples,
        }  # fmt: skip


def report(found: dict[str, Any]) -> None:
    """As text."""
    print(f"\ntorture: seed {found['seed']}, {found['seconds']:.0f} s with the rest, {sum(found['operations'].values())} operations")
    for title in ("operations", "answers", "faults", "promised", "left_behind"):
        told = ", ".join(f"{name} {n}" for name, n in found[title].items())
        print(f"  {title.replace('_', ' ')}: {told}")
    print(
        f"  tries without an answer: {found['tries_without_an_answer']}; probes: {found['probes']}; events heard: {found['events_heard']}"
    )
    for one in found["deadlocks"]:
        print(f"  deadlock, broken and run again: {one[:1200]}")
    print(f"  timepoint auditor: exit code {found['auditor']}")
    if not found["wrong"]:
        print("  nothing was wrong")
    for check, facts in found["wrong"].items():
        print(f"  WRONG {check}: {len(facts)}; the first: {str(facts[0])[:1500]}")


def torture(seconds: float, seed: int, buyers: int) -> dict[str, Any]:
    """One run on a house of its own; the report. `wrong` is empty where all is well."""
    with House() as house:
        print(f"seed {seed}; the workers' log: {house.log.name}", file=sys.stderr)
        return asyncio.run(Run(house, seed, buyers).play(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=45.0, metavar="S", help="how long to buy and break (default 45); the rest comes on top"
    )
    parser.add_argument("--seed", type=int, default=7, metavar="N", help="of buyers and nemesis (default 7)")
    parser.add_argument("--buyers", type=int, default=16, metavar="N", help="at once (default 16)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the report")
    args = parser.parse_args()
    found = torture(args.seconds, args.seed, args.buyers)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1, default=str) + "\n")
    report(found)
    sys.exit(1 if found["wrong"] else 0)


if __name__ == "__main__":
    main()
