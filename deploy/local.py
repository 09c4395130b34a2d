"""`make run`: a running product with a network and moving buses, on private servers whose data stays in the checkout.

One supervisor starts everything in the order in which it depends on each other (`Run.start` is that order), watches it, and stops it in
the opposite order. Promised: a second start finds its data; a child that dies is named, with the end of its log, and started again after
a growing pause; Ctrl-C, SIGTERM or a closed terminal drain and stop all of it, every wait limited; a supervisor killed outright takes
its children with it (Linux) or has them tidied by the next start. `run/info.json` tells programs where everything is, from the moment
the engine is ready until it has stopped.

DATABASE_URL, REDIS_URL or MQTT_URL in the environment: that server is used, and none of ours is started for it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from urllib.parse import quote

from deploy.prepare import CHECKOUT, digest, step
from deploy.servers import (
    MosquittoServer,
    NotStarted,
    PostgresServer,
    RedisServer,
    Server,
    children,
    last_lines,
    leash,
    own_folder,
    reachable,
    runs,
    service_user,
)

DEMO_FEED, DEMO_PARTNER = "demo", "demo"
DEMO_FEED_LIFE_S = 180 * 86_400  # the demo calendar reaches 400 days ahead
BUSES_LIFE_S = 3 * 86_400  # who drives is worked out for a fortnight ahead
READER = "timepoint"  # the engine's own login at the broker
TOKEN_LIFE_S = 86_400
STAGED_S = 900  # between two detours of the demo; the first begins two to four minutes after the start
SOLD_LISTED, SOLD_AHEAD = 120, timedelta(hours=2)  # trip instances that run/info.json names: what leaves later than so soon
READY_LIMIT_S, COMMAND_LIMIT_S = 60.0, 300.0
PAUSE_FIRST_S, PAUSE_MOST_S = 0.5, 10.0  # before a dead child is started again: doubled each time, back to the first after a minute of life
LOG_MOST_BYTES = 16 * 1024 * 1024


class Stop(BaseException):
    """A signal asked for the end. A BaseException, so that no `except Exception` on the way keeps it."""


# The engine and the simulator -------------------------------------------------------------------------------------------------------------


class Child:
    """One program of ours, with its log, that is to run until we stop it."""

    def __init__(self, title: str, argv: list[str], *, cwd: Path, env: dict[str, str], log: Path, stop_limit_s: float) -> None:
        self.title, self.argv, self.cwd, self.env, self.log, self.stop_limit_s = title, argv, cwd, env, log, stop_limit_s
        self.began = 0.0
        self.pause_s = PAUSE_FIRST_S
        self.again_at: float | None = None  # monotonic; None while it runs
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        if self.log.exists() and self.log.stat().st_size > LOG_MOST_BYTES:
            self.log.replace(self.log.with_suffix(".old"))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*leash(signal.SIGTERM), *self.argv],
                cwd=self.cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the supervisor
            )
        self.began, self.again_at = time.monotonic(), None

    def look(self) -> bool:
        """Says so when it has died and starts it again when its pause is over. True when its process id has changed."""
        now = time.monotonic()
        if self.again_at is not None:
            if now < self.again_at:
                return False
            self.start()
            return True
        code = self._process.poll() if self._process else None
        if code is None:
            return False
        if now - self.began > 60:
            self.pause_s = PAUSE_FIRST_S
        say(f"{self.title} ended with {code}; started again in {self.pause_s:.1f} s. The end of {self.log}:\n{last_lines(self.log)}")
        self.again_at, self.pause_s = now + self.pause_s, min(self.pause_s * 2, PAUSE_MOST_S)
        return True

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to its whole group after `stop_limit_s`."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(self.stop_limit_s)
        except subprocess.TimeoutExpired:
            say(f"{self.title} did not end within {self.stop_limit_s:.0f} s: killed")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)


# What is kept between two runs ------------------------------------------------------------------------------------------------------------


def state_folder(checkout: Path) -> Path:
    """Where the data lives: `.dev` of the checkout, or, where the servers cannot reach that, a folder named after it that they can."""
    user = service_user(checkout)
    if reachable(checkout, user):
        return own_folder(checkout / ".dev", user)
    tag = hashlib.sha256(os.fsencode(checkout)).hexdigest()[:12]
    home = Path("/var/tmp") if os.geteuid() == 0 else Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    folder = home / f"timepoint-{tag}"
    if folder.exists() and folder.stat().st_uid != user.pw_uid:
        raise NotStarted(f"{folder} belongs to somebody else: remove it, or put the checkout where {user.pw_name} can reach it")
    return own_folder(folder, user)


@contextlib.contextmanager
def only_one(state: Path) -> Iterator[None]:
    """One supervisor per checkout. Raises `NotStarted` that names the one that runs."""
    with (state / "supervisor.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise NotStarted(f"it runs already (supervisor {lock.read().strip() or 'unknown'}); run/info.json says where") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def write_private(path: Path, value: Any) -> None:
    """JSON, mode 0600, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    draft.touch(mode=0o600)
    draft.chmod(0o600)
    draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
    return {}


def say(text: str) -> None:
    print(text, flush=True)


# One run ----------------------------------------------------------------------------------------------------------------------------------


class Run:
    """Everything of one `make run`, in order of start."""

    def __init__(self, checkout: Path, state: Path, *, feed: Path | None, port: int) -> None:
        self.checkout, self.state, self.port = checkout, state, port
        self.info = checkout / "run" / "info.json"
        self.feed_id = re.sub(r"[^a-z0-9_-]+", "-", feed.stem.lower()).strip("-") if feed else DEMO_FEED
        self.feed = feed or state / "demo.zip"
        self.base_url = f"http://127.0.0.1:{port}"
        self.python = str(checkout / ".venv" / "bin" / "python")
        self.timepoint = str(checkout / ".venv" / "bin" / "timepoint")
        self.logs = state / "log"
        self.logs.mkdir(exist_ok=True)
        self.secrets = self._secrets()
        self.env = dict(os.environ)
        self.mqtt_url = ""  # without the engine's password: what others may know
        self.servers: list[Server] = []
        self.children: list[Child] = []
        self.workers: list[int] = []  # the engine's own processes
        self.devices: dict[str, str] = {}
        self.logins: dict[str, dict[str, str | None]] = {}
        self.sold: list[str] = []  # trip instances on sale, the next ones first
        self.errands: list[subprocess.Popen[str]] = []  # commands of ours that may still run

    def start(self) -> None:
        """All of it, in order; what does not need each other comes up side by side. Raises `NotStarted`."""
        self.info.unlink(missing_ok=True)
        self._tidy_after_a_crash()
        refuse_a_taken_port(self.port)
        self.env |= {"PORT": str(self.port), "HOST": "127.0.0.1", "DEMO": "1", "SECRET_KEY": self.secrets["secret_key"]}
        servers = self._launched()
        self._people()
        self._database(servers)
        self._redis(servers)
        self._network()
        self._sales()
        tokens, devices = self._devices()
        sold = self._begun([self.timepoint, "sales", "list", "--json", "--limit", str(SOLD_LISTED)]) if self.is_demo else None
        self._broker(servers)
        engine = self._engine()
        with step("devices and sales"):
            if devices:
                self._ended(devices)
            self.devices = read_json(tokens)
            self.sold = leaving_later(self._ended(sold)) if sold else []
        self._ready(engine)
        self._buses()
        self._tell()

    @property
    def is_demo(self) -> bool:
        return self.feed == self.state / "demo.zip"

    def _secrets(self) -> dict[str, str]:
        path = self.state / "secrets.json"
        kept = read_json(path)
        for name in ("secret_key", "reader_password"):
            kept.setdefault(name, secrets.token_urlsafe(36))
        write_private(path, kept)
        return kept

    def _tidy_after_a_crash(self) -> None:
        """Ends an engine or simulator whose supervisor was killed (where the kernel has not done it for us): they hold the port."""
        for name, pid in read_json(self.state / "children.json").items():
            if isinstance(pid, int) and runs(pid, str(self.checkout)):
                say(f"  {name} of the last run, process {pid}, still runs: stopped")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
                limit = time.monotonic() + 25
                while runs(pid, str(self.checkout)):
                    if time.monotonic() > limit:
                        os.killpg(pid, signal.SIGKILL)
                    time.sleep(0.05)

    def _launched(self) -> dict[str, Server]:
        """Those servers that nobody gave us, coming up."""
        wanted: list[Server] = []
        if not os.environ.get("DATABASE_URL"):
            wanted.append(PostgresServer(self.state / "postgres", throw_away=False))
        if not os.environ.get("REDIS_URL"):
            wanted.append(RedisServer(self.state / "redis", throw_away=False))
        if not os.environ.get("MQTT_URL"):
            broker = MosquittoServer(self.state / "mosquitto", throw_away=False)
            for name in ("passwords", "acl"):  # without such a file the broker would let anybody in
                if not (broker.folder / name).exists():
                    broker.give(name, "")
            wanted.append(broker)
        with step("servers"):
            for server in wanted:
                self.servers.append(server)  # first of all: a signal in the middle of a start must not leave it behind
                server.launch()
        return {server.name: server for server in wanted}

    def _database(self, servers: dict[str, Server]) -> None:
        from migrations.runner import MigrationRefused, migrate

        if given := os.environ.get("DATABASE_URL"):
            owner = os.environ.get("DATABASE_OWNER_URL") or given
        else:
            server = servers[PostgresServer.name]
            assert isinstance(server, PostgresServer)
            with step(f"PostgreSQL {server.bin}"):
                server.wait()
                server.create_database()
            owner, given = server.admin_url, server.url
        with step("schema"):
            try:
                migrate(owner, say=lambda line: say(f"    {line}"))
            except MigrationRefused as refused:
                raise NotStarted(str(refused)) from refused
        self.env |= {"DATABASE_URL": as_application(given), "DATABASE_OWNER_URL": owner}

    def _redis(self, servers: dict[str, Server]) -> None:
        if server := servers.get(RedisServer.name):
            with step("Redis"):
                server.wait()
            self.env["REDIS_URL"] = server.url

    def _network(self) -> None:
        """The demo network, written again when its authors' code changed or its calendar gets old; then imported, if not there already."""
        if self.is_demo:
            stamp, wanted = self.state / "demo.stamp", digest(*sorted((self.checkout / "bench" / "network").glob("*.py")))
            fresh = stamp.exists() and stamp.read_text() == wanted and time.time() - stamp.stat().st_mtime < DEMO_FEED_LIFE_S
            if not (fresh and self.feed.exists()):
                with step("demo network"):
                    self._command([self.python, "-m", "bench.network", str(self.feed)])
                stamp.write_text(wanted)
        stamp, wanted = self.state / f"imported-{self.feed_id}.stamp", digest(self.feed)
        ours = not os.environ.get("DATABASE_URL")  # of another's database we do not know what is in it
        if ours and stamp.exists() and stamp.read_text() == wanted:
            return
        with step(f"import of {self.feed.name}"):
            self._command([self.timepoint, "import-gtfs", str(self.feed), "--feed-id", self.feed_id, "--partner", DEMO_PARTNER])
        if ours:
            stamp.write_text(wanted)

    def _sales(self) -> None:
        """The coaches of the demo network go on sale. Later days are opened by the engine itself."""
        if not self.is_demo:
            return
        stamp, wanted = self.state / "sales.stamp", f"{digest(self.feed)} {date.today()}"
        if os.environ.get("DATABASE_URL") or not stamp.exists() or stamp.read_text() != wanted:
            with step("coaches on sale"):
                self._command([self.timepoint, "sales", "demo", "--feed-id", self.feed_id])
            stamp.write_text(wanted)

    def _devices(self) -> tuple[Path, subprocess.Popen[str] | None]:
        """Buses and a device each in the database: where their tokens will be, and the command that still sees to it. Where most of them
        are new it has ended; else there is next to nothing to do and the engine, which hears of a change within 5 s, need not wait for it.
        """
        tokens, buses = self.state / f"devices-{self.feed_id}.json", self.state / f"buses-{self.feed_id}.json"
        is_known = tokens.exists() and buses.exists()
        if not buses.exists() or max(self.feed.stat().st_mtime, time.time() - BUSES_LIFE_S) > buses.stat().st_mtime:
            with step("buses"):
                buses.write_text(self._command([self.python, "-m", "bench.network", "buses", str(self.feed)]))
                is_known = False
        argv = [self.timepoint, "device", "demo", "--feed-id", self.feed_id, "--partner", DEMO_PARTNER]
        command = self._begun([*argv, "--buses", str(buses), "--out", str(tokens)])
        if is_known:
            return tokens, command
        with step("their devices"):
            self._ended(command)
        return tokens, None

    def _broker(self, servers: dict[str, Server]) -> None:
        """The broker, whose logins the engine keeps as the registry of devices says."""
        if given := os.environ.get("MQTT_URL"):
            self.mqtt_url = without_password(given)
            return
        server = servers[MosquittoServer.name]
        assert isinstance(server, MosquittoServer)
        with step("Mosquitto"):
            server.wait()
        self.mqtt_url = server.url
        self.env["MQTT_URL"] = f"mqtt://{READER}:{quote(self.secrets['reader_password'])}@127.0.0.1:{server.port}"
        self.env["MQTT_BROKER_DIR"] = str(server.folder)

    def _people(self) -> None:
        """A token of a day for every role of the demo."""
        from api.auth import ROLES, Tokens
        from engine import settings
        from engine.clock import SystemClock

        tokens = Tokens(settings.load(self.env), SystemClock())
        for role in ROLES:
            login = f"{role.lower().replace('_', '-')}@{DEMO_PARTNER}"
            token = tokens.mint(login, role, partner_id=DEMO_PARTNER, life_s=TOKEN_LIFE_S)
            self.logins[role] = {"login": login, "password": None, "token": token}

    def _engine(self) -> Child:
        """Begun, not ready yet."""
        drain_s = float(self.env.get("DRAIN_S") or 10)
        argv = [self.timepoint, "serve"]
        engine = Child("engine", argv, cwd=self.checkout, env=self.env, log=self.logs / "engine.log", stop_limit_s=drain_s + 15)
        self._keep(engine)
        return engine

    def _ready(self, engine: Child) -> None:
        with step("engine"):
            limit = time.monotonic() + READY_LIMIT_S
            while not ready(self.base_url):
                if engine.pid is None:
                    raise NotStarted(f"the engine ended at once. The end of {engine.log}:\n{last_lines(engine.log)}")
                if time.monotonic() > limit:
                    raise NotStarted(
                        f"the engine was not ready within {READY_LIMIT_S:.0f} s. The end of {engine.log}:\n{last_lines(engine.log)}"
                    )
                time.sleep(0.02)

    def _buses(self) -> None:
        argv = [self.timepoint, "simulate", "--feed", str(self.feed), "--base-url", self.base_url]
        argv += ["--devices", str(self.state / f"devices-{self.feed_id}.json"), "--staged", str(STAGED_S)]
        env = {
            name: value for name, value in self.env.items() if name not in ("SECRET_KEY", "DATABASE_OWNER_URL", "DATABASE_URL", "REDIS_URL")
        }
        self._keep(Child("simulator", argv, cwd=self.checkout, env=env, log=self.logs / "simulator.log", stop_limit_s=10))

    def _keep(self, part: Child) -> None:
        """Starts a part and remembers it for the way back, first of all: a signal in the middle of a start must not leave it behind."""
        self.children.append(part)
        part.start()
        write_private(self.state / "children.json", {child.title: child.pid for child in self.children})

    def _command(self, argv: list[str]) -> str:
        """Runs one of our own commands to its end and returns what it printed. Raises `NotStarted` with the end of its complaints."""
        return self._ended(self._begun(argv))

    def _begun(self, argv: list[str]) -> subprocess.Popen[str]:
        """One of our own commands, running; `_ended` waits for it."""
        command = subprocess.Popen(
            argv, cwd=self.checkout, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.errands.append(command)
        return command

    def _ended(self, command: subprocess.Popen[str]) -> str:
        """What it printed. Raises `NotStarted` with the end of its complaints."""
        argv = shlex.join(map(str, command.args))  # type: ignore[arg-type]
        try:
            said, complained = command.communicate(timeout=COMMAND_LIMIT_S)
        except subprocess.TimeoutExpired as late:
            raise NotStarted(f"`{argv}` took longer than {COMMAND_LIMIT_S:.0f} s") from late
        self.errands.remove(command)
        if command.returncode:
            end = "\n".join("    " + line for line in (said + complained).splitlines()[-20:])
            raise NotStarted(f"`{argv}` ended with {command.returncode}:\n{end}")
        return said

    # and then

    def watch(self) -> NoReturn:
        """Until a signal comes: who died is named and started again."""
        pauses = dict.fromkeys(self.servers, PAUSE_FIRST_S)
        while True:
            time.sleep(0.25)
            changed = False
            for server in self.servers:
                if server.pid is None:
                    say(f"{server.title} is gone; started again in {pauses[server]:.1f} s. The end of {server.log}:\n{server.last_lines()}")
                    time.sleep(pauses[server])
                    pauses[server] = min(pauses[server] * 2, PAUSE_MOST_S)
                    try:
                        server.start()
                    except NotStarted as fault:
                        say(str(fault))
                    changed = True
            for child in self.children:
                changed |= child.look()
            engine = self.children[0].pid
            workers = children(engine) if engine else []
            if changed or workers != self.workers:
                self.workers = workers
                self._tell()

    def stop(self) -> None:
        """The way back: buses, engine (which drains), broker, Redis, PostgreSQL. Every step has its limit and none skips the next."""
        for command in self.errands:
            command.kill()
            command.wait(10)
        self._stop_each([*reversed(self.children)])
        self.info.unlink(missing_ok=True)
        (self.state / "children.json").unlink(missing_ok=True)
        self._stop_each([*reversed(self.servers)])

    def _stop_each(self, parts: list[Server] | list[Child]) -> None:
        for part in parts:
            try:
                part.stop()
            except Exception as fault:
                say(f"  {part.title}: {fault}")

    def _tell(self) -> None:
        """run/info.json, in the shape that programs rely on."""
        parts = {"supervisor": os.getpid()} | {child.title: child.pid for child in self.children}
        parts |= {f"worker{number}": pid for number, pid in enumerate(self.workers)}
        parts |= {server.name: server.pid for server in self.servers}
        write_private(
            self.info,
            {
                "baseUrl": self.base_url,
                "pids": {name: pid for name, pid in parts.items() if pid},
                "databaseUrl": self.env["DATABASE_URL"],
                "redisUrl": self.env["REDIS_URL"],
                "mqttUrl": self.mqtt_url,
                "logins": self.logins,
                "devices": self.devices,
                "tripInstances": self.sold,
            },
        )

    def greeting(self, seconds: float) -> str:
        lines = {
            "map": f"{self.base_url}/",
            "API": f"{self.base_url}/v1, described at {self.base_url}/schema",
            "live": f"ws://127.0.0.1:{self.port}/ws",
            "GTFS-Realtime": f"{self.base_url}/gtfs-rt/vehicle-positions.json",
            "MQTT": self.mqtt_url,
            "logins, devices": f"{self.info.relative_to(self.checkout)}",
            "logs": f"{self.logs}",
        }
        if not self.devices:
            lines["note"] = f"no bus moves: nothing runs in {self.feed.name} in the coming fortnight; its calendar may be over"
        shown = "\n".join(f"  {name:<16}{value}" for name, value in lines.items())
        return f"\nTimepoint runs, {len(self.devices)} buses, after {seconds:.1f} s\n{shown}\nCtrl-C stops all of it; the data stays.\n"


# Small questions --------------------------------------------------------------------------------------------------------------------------


def refuse_a_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as fault:
            raise NotStarted(f"port {port} is taken ({fault.strerror}): PORT={port + 1} make run") from fault


def ready(base_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{base_url}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def leaving_later(listed: str) -> list[str]:
    """The trip instances among what `sales list --json` says that can still be booked in peace."""
    soon = datetime.now(UTC) + SOLD_AHEAD
    return [trip["tripId"] for trip in json.loads(listed) if datetime.fromisoformat(trip["departsAt"]) > soon]


def as_application(url: str) -> str:
    """`url`, made to act as the application's role where its own role is a superuser, whom no row security would hold."""
    import psycopg

    with psycopg.connect(url, connect_timeout=10) as connection:
        row = connection.execute("select rolsuper from pg_roles where rolname = current_user").fetchone()
    if not (row and row[0]):
        return url
    return f"{url}{'&' if '?' in url else '?'}options={quote('-c role=timepoint_app')}"


def without_password(url: str) -> str:
    return re.sub(r"//[^@/]*@", "//", url)


def main(argv: list[str] | None = None, checkout: Path = CHECKOUT) -> int:
    parser = argparse.ArgumentParser(prog="make run")
    parser.add_argument("what", choices=["run"])
    parser.add_argument("--feed", type=Path, metavar="FILE.zip", help="a GTFS feed instead of the demo network")
    args = parser.parse_args(argv)
    began, stopping = time.monotonic(), False

    def on_signal(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            say("  stopping already; every step of it has a limit")
            return
        stopping = True
        raise Stop(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    run: Run | None = None
    try:
        if args.feed and not args.feed.is_file():
            raise NotStarted(f"there is no {args.feed}")
        port = os.environ.get("PORT") or "8787"
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise NotStarted(f"PORT={port}: not a port")
        state = state_folder(checkout)
        with only_one(state):
            run = Run(checkout, state, feed=args.feed.resolve() if args.feed else None, port=int(port))
            try:
                run.start()
                say(run.greeting(time.monotonic() - began))
                run.watch()
            finally:
                stopping = True
                with step("stopping"):
                    run.stop()
    except Stop:
        return 0
    except NotStarted as fault:
        print(f"\nmake run: {fault}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
