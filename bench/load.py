"""What the benches have in common: the product they load, devices for their buses, and generator and watchers in processes of their own."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from bench import product as ours
from bench.cost import pids_of
from bench.fleet import Fleet
from bench.network.feed import write_feed
from bench.simulate import load_feed, read_info, register

LINE_MAX = 64 * 1024 * 1024  # the ages of a long run are one line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every bench of this package takes."""
    add = parser.add_argument
    add("--url", metavar="URL", help="the engine (default: baseUrl of --info)")
    add("--token", metavar="TOKEN", help="an admin's access token, to register devices (default: PARTNER_ADMIN of --info)")
    add("--info", type=Path, default=Path("run/info.json"), metavar="FILE", help="what a running demo says of itself")
    add("--pids", metavar="NAME=PID,...", help="processes to charge: engine=1,redis=2,postgres=3 (default: pids of --info)")
    add("--feed", type=Path, metavar="FEED.zip", help="the feed that the engine has loaded (default: the demo network of today)")
    add("--workers", type=int, default=1, metavar="N", help="of an engine of the bench's own (default 1)")
    add("--buses", type=int, default=2000, metavar="N")
    add("--seconds", type=float, default=20.0, metavar="S", help="how long to measure (default 20)")
    add("--warm-up", type=float, default=8.0, metavar="S", help="before that (default 8)")
    add("--out", type=Path, metavar="FILE.json", help="write the figures")


@contextmanager
def at_hand(args: argparse.Namespace) -> Iterator[None]:
    """The engine that `args` name or the running demo; where there is neither, one of our own for as long as the block lasts."""
    if args.url or args.info.exists():
        yield
        return
    print("no demo runs: starting an engine for this bench", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        args.feed = args.feed or Path(folder) / "demo.zip"
        if not args.feed.exists():
            write_feed(args.feed, date.today())
        with ours.Product(appendfsync="always", feed=args.feed, workers=args.workers, ROLES="api,track,history") as product:
            assert product.supervisor is not None
            args.url, args.token = f"http://127.0.0.1:{product.port}", product.token
            args.pids = f"engine={product.supervisor.pid},redis={product.redis.pid},postgres={product.postgres.pid}"
            yield


class Product:
    """The engine under load: where it is, who may register devices, and its processes. Raises ValueError where something is missing."""

    def __init__(self, args: argparse.Namespace) -> None:
        info = read_info(args.info)
        self.url: str = args.url or info.get("baseUrl") or ""
        self.token: str = args.token or (info.get("logins", {}).get("PARTNER_ADMIN") or {}).get("token") or ""
        if not self.url or not self.token:
            raise ValueError(f"which engine? Give --url and --token, or start the demo (`make run`), which writes {args.info}")
        self.pids = pids_of(args.pids, info)
        self.partner: str = str(info.get("partner", "demo"))
        self.feed: Path | None = args.feed

    def buses(self, count: int) -> list[str]:
        """Ids of the buses that a simulation of `count` may call on."""
        fleet = Fleet(load_feed(self.feed), time.time_ns() // 1_000_000, wanted=count)
        return fleet.possible()

    def devices(self, bus_ids: Sequence[str]) -> dict[str, str]:
        return register(self.url, self.token, bus_ids)

    def gateway(self, bus_ids: Sequence[str]) -> str:
        """The token of one new device for all of them; the buses exist. Raises OSError."""
        body = json.dumps({"busIds": list(bus_ids), "kind": "GATEWAY", "name": "bench gateway"}).encode()
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {self.token}",
            "Idempotency-Key": f"bench-{time.time_ns()}",
        }
        request = urllib.request.Request(f"{self.url}/v1/admin/devices", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            token: str = json.load(answer)["token"]
            return token


class Child:
    """One of our own modules as a process; lines of JSON come out of it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def said(self, limit_s: float = 60.0) -> dict[str, Any]:
        """Its next line. Raises EOFError where it has ended, TimeoutError where it says nothing."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), limit_s)
        if not line:
            raise EOFError("the process ended without its figures; its complaint stands above")
        found: dict[str, Any] = json.loads(line)
        return found

    async def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()


@asynccontextmanager
async def child(module: str, *argv: str) -> AsyncIterator[Child]:
    """Runs `python -m module`; it is ended when the block is."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_MAX
    )
    try:
        yield Child(process)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()


@asynccontextmanager
async def generator(product: Product, buses: int, tokens: dict[str, str], *more: str) -> AsyncIterator[Child]:
    """Buses at 1 Hz that tell the truth, each fix stamped with the moment it is meant to be sent; a line of JSON every second."""
    with tempfile.TemporaryDirectory() as folder:
        devices = Path(folder) / "devices.json"
        devices.write_text(json.dumps(tokens))
        devices.chmod(0o600)
        argv = [
            "--url",
            product.url,
            "--buses",
            str(buses),
            "--interval",
            "1",
            "--noise",
            "0",
            "--detour-rate",
            "0",
            "--unnamed-share",
            "0",
        ]
        argv += ["--json", "--devices", str(devices), "--info", str(Path(folder) / "none"), *more]
        if product.feed is not None:
            argv += ["--feed", str(product.feed)]
        async with child("bench.simulate", *argv) as process:
            yield process


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of sorted values; NaN where there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
