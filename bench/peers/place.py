"""Where peers are installed and how they run: a folder outside the checkout, by package name and pinned version, once.

`TIMEPOINT_PEERS` names the folder; else it is `timepoint-peers` in the user's cache. Nothing of the machine is changed: Debian packages are
unpacked, not installed. What cannot be had raises `Missing` with the reason, and the table says so instead of a figure.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from bench.cost import tree
from bench.product import cpu_s, memory_kb
from deploy.servers import free_port

INSTALL_LIMIT_S = 900.0
START_LIMIT_S = 90.0


class Missing(Exception):
    """A peer that cannot be had here, with the reason."""


class Running(NamedTuple):
    """A server under load. `pids`: of the processes that are charged to it, with all that descend from them."""

    port: int
    pids: tuple[int, ...]
    notes: Mapping[str, str] = {}

    def cpu_s(self) -> float:
        return sum(_of(pid, cpu_s) for pid in tree(self.pids))

    def memory_kb(self) -> int:
        return int(sum(_of(pid, memory_kb) for pid in tree(self.pids)))


class Peer(NamedTuple):
    """`start` answers it running, and stops it on leaving. `path`: of its sockets."""

    name: str
    version: str
    start: Callable[[], AbstractContextManager[Running]]
    path: str = "/"


def _of(pid: int, read: Callable[[int], float]) -> float:
    try:
        return read(pid)
    except (OSError, StopIteration):
        return 0.0


def folder(name: str) -> Path:
    """Of one peer, made if need be."""
    cache = os.environ.get("TIMEPOINT_PEERS") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "timepoint-peers"
    found = Path(cache) / name
    found.mkdir(parents=True, exist_ok=True)
    return found


def once(where: Path, stamp: str, make: Callable[[], None]) -> None:
    """Calls `make` unless it was done with the same `stamp` before."""
    done = where / "installed.stamp"
    if not done.exists() or done.read_text() != stamp:
        make()
        done.write_text(stamp)


def run(argv: Sequence[str], where: Path, **environ: str) -> str:
    """Raises `Missing` with the end of what it said."""
    if shutil.which(argv[0]) is None:
        raise Missing(f"there is no {argv[0]} on this machine")
    try:
        done = subprocess.run(
            argv, cwd=where, env=os.environ | environ, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"`{' '.join(argv[:3])}` took longer than {INSTALL_LIMIT_S:.0f} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Missing(f"`{' '.join(argv[:3])}` failed: {said[-1] if said else done.returncode}")
    return done.stdout


def from_pypi(name: str, *packages: str) -> Path:
    """The Python of a virtual environment that has `packages` (`name==version`)."""
    where = folder(name)
    python = where / "venv/bin/python"

    def make() -> None:
        shutil.rmtree(where / "venv", ignore_errors=True)
        run([sys.executable, "-m", "venv", "venv"], where)
        run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], where)

    once(where, " ".join(packages), make)
    return python


def from_npm(name: str, *packages: str) -> Path:
    """The folder in which `node` finds `packages` (`name@version`)."""
    where = folder(name)
    once(where, " ".join(packages), lambda: _run_npm(where, packages))
    return where


def _run_npm(where: Path, packages: Sequence[str]) -> None:
    run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(where), *packages], where)


def from_debian(name: str, *packages: str) -> Path:
    """The root under which `packages` are unpacked; the versions are those of the Debian that runs here."""
    where = folder(name)

    def make() -> None:
        for old in where.glob("*.deb"):
            old.unlink()
        run(["apt-get", "download", *packages], where)
        for file in sorted(where.glob("*.deb")):
            run(["dpkg", "-x", str(file), str(where / "root")], where)

    once(where, " ".join(packages), make)
    return where / "root"


def debian_version(name: str) -> str:
    """Of what `from_debian` fetched under that name."""
    return ", ".join(sorted(file.name.split("_")[1].replace("%3a", ":") for file in folder(name).glob("*.deb")))


@contextlib.contextmanager
def serving(argv: Sequence[str], port: int, *, where: Path | None = None, **environ: str) -> Iterator[Running]:
    """Starts a server, waits until its port answers, and ends it afterwards with whatever it started. Raises `Missing` where it does not come up."""
    log = (folder("logs") / f"{Path(argv[0]).name}-{port}.log").open("w+")
    server = subprocess.Popen(
        argv, cwd=where, env=os.environ | environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=_many_files
    )
    try:
        end_s = time.monotonic() + START_LIMIT_S
        while not _answers(port):
            if server.poll() is not None or time.monotonic() > end_s:
                log.seek(0)
                raise Missing(f"it did not come up: {log.read()[-300:].strip()}")
            time.sleep(0.05)
        yield Running(port, (server.pid,))
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()


def some_port() -> int:
    """A free one that others who start servers just now hardly find too."""
    return free_port(20_000 + random.randrange(8_000))


def _many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
