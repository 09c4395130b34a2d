"""A real TimescaleDB for the history tests: `python -m deploy.timescale_folder [command ...]`.

Builds a Debian 13 folder from stock packages (PostgreSQL 17, PostGIS, TimescaleDB in its Apache edition) with mmdebstrap, once, about 0.8 GB;
starts its PostgreSQL on a Unix socket as a user without rights, with a throw-away data directory; sets TIMESCALE_URL and runs the command
(default: the history tests); stops it. The packages come from the mirror that this machine's apt uses.

Refused, with exit code 3 and the reason: no mmdebstrap and no way to install it, not Debian, neither root nor user namespaces.
TIMEPOINT_TRIXIE names the folder; without it, ~/.cache/timepoint/trixie.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SUITE = "trixie"
PACKAGES = "postgresql-17,postgresql-17-postgis-3,postgresql-17-timescaledb"
BIN = "/usr/lib/postgresql/17/bin"
COMMAND = [sys.executable, "-m", "pytest", "-q", "tests/test_engine_history.py", "tests/test_engine_repair.py"]
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
BUILD_LIMIT_S = 1_200
START_LIMIT_S = 60
_NAMESPACE = [] if os.geteuid() == 0 else ["unshare", "--map-auto", "--map-root-user"]


class NotHere(RuntimeError):
    """This machine cannot have it; the text says why and what would help."""


def mirror() -> str:
    """The Debian mirror of this machine's apt. Raises `NotHere`."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    if release.get("ID", "").strip('"') != "debian":
        raise NotHere("this is not Debian: its apt has no mirror of Debian packages")
    codename = release.get("VERSION_CODENAME", "").strip('"')
    for file in sorted(Path("/etc/apt").glob("sources.list")) + sorted(Path("/etc/apt/sources.list.d").glob("*")):
        text = file.read_text(errors="replace")
        if file.suffix == ".sources":
            for block in re.split(r"\n\s*\n", text):
                suites = re.search(r"^Suites:(.*)$", block, re.M)
                address = re.search(r"^URIs:\s*(\S+)", block, re.M)
                if suites and address and codename in suites.group(1).split():
                    return address.group(1)
        else:
            for line in text.splitlines():
                found = re.match(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+.*\bmain\b", line.strip())
                if found and found.group(2) == codename:
                    return found.group(1)
    raise NotHere(f"apt's sources name no mirror for {codename}")


def folder() -> Path:
    given = os.environ.get("TIMEPOINT_TRIXIE")
    return Path(given) if given else Path.home() / ".cache" / "timepoint" / SUITE


def build(target: Path) -> None:
    """The folder, if it is not there yet. A build that was cut off is done again."""
    done = target / "etc" / "timepoint-built"
    if done.exists():
        return
    if shutil.which("mmdebstrap") is None:
        if os.geteuid() != 0:
            raise NotHere("mmdebstrap is not installed: `sudo apt-get install mmdebstrap`")
        subprocess.run(["apt-get", "install", "-y", "-q", "-o", "DPkg::Lock::Timeout=300", "mmdebstrap"], check=False, timeout=300)
        if shutil.which("mmdebstrap") is None:
            raise NotHere("mmdebstrap could not be installed")
    if os.geteuid() != 0 and shutil.which("newuidmap") is None:
        raise NotHere("neither root nor user namespaces: `sudo apt-get install uidmap`, or run as root")
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    address = mirror()
    print(f"building {target} ({PACKAGES})", file=sys.stderr, flush=True)
    command = ["mmdebstrap", "--variant=essential", f"--mode={'root' if os.geteuid() == 0 else 'unshare'}", f"--include={PACKAGES}"]
    command += [
        "--aptopt=APT::Install-Recommends false",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
    ]
    # Debian would make a cluster of its own at installation
    command += [
        '--essential-hook=mkdir -p "$1/etc/postgresql-common"; echo "create_main_cluster = false" > "$1/etc/postgresql-common/createcluster.conf"'
    ]
    command += ['--customize-hook=touch "$1/etc/timepoint-built"']
    if KEYRING.exists():
        command.append(f"--keyring={KEYRING}")
    try:
        subprocess.run([*command, SUITE, str(target), address], check=True, timeout=BUILD_LIMIT_S, stdin=subprocess.DEVNULL)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as fault:
        raise NotHere(f"mmdebstrap could not build the folder from {address}: {fault}") from fault


def inside(target: Path, *command: str) -> list[str]:
    """The command inside the folder, as its user postgres."""
    return [*_NAMESPACE, "chroot", "--userspec=postgres:postgres", str(target), *command]


@contextlib.contextmanager
def server(target: Path) -> Iterator[str]:
    """A running server with nothing in it; its DSN as superuser. Stopped and thrown away at the end."""
    home = f"/srv/t{os.getpid()}"
    place = target / home.lstrip("/")
    as_root = [*_NAMESPACE, "chroot", str(target), "/bin/sh", "-c"]
    plain = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    if len(str(place / ".s.PGSQL.5432")) > 107:
        raise NotHere(f"{place} is too long for a socket: set TIMEPOINT_TRIXIE to a shorter path")
    subprocess.run([*as_root, f"mkdir -m 755 -p {home} && chown postgres:postgres {home}"], check=True, env=plain)
    initdb = [f"{BIN}/initdb", "-D", f"{home}/data", "-E", "UTF8", "--locale=C", "--auth=trust", "-U", "postgres", "--no-sync"]
    subprocess.run(inside(target, *initdb), check=True, env=plain, stdout=subprocess.DEVNULL, timeout=START_LIMIT_S)
    values = {
        "listen_addresses": "",
        "unix_socket_directories": home,
        "unix_socket_permissions": "0777",
        "shared_preload_libraries": "timescaledb",
        "timescaledb.telemetry_level": "off",
        "dynamic_shared_memory_type": "mmap",  # /dev/shm of a container is often too small
        "fsync": "off",
        "max_worker_processes": "16",
    }
    given = [part for key, value in values.items() for part in ("-c", f"{key}={value}")]
    with (Path(os.environ.get("TMPDIR", "/tmp")) / f"timescale-{os.getpid()}.log").open("w+b") as log:
        process = subprocess.Popen(
            inside(target, f"{BIN}/postgres", "-D", f"{home}/data", *given), env=plain, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_for(place / ".s.PGSQL.5432", process, log.name)
            yield f"postgresql://postgres@/postgres?host={place}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
            subprocess.run([*as_root, f"rm -rf {home}"], check=False, env=plain)
            Path(log.name).unlink(missing_ok=True)


def wait_for(socket: Path, process: subprocess.Popen[bytes], log: str) -> None:
    import psycopg

    limit = time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit and process.poll() is None:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(f"postgresql://postgres@/postgres?host={socket.parent}", connect_timeout=2).close()
            return
        time.sleep(0.1)
    raise NotHere("the server did not start:\n" + Path(log).read_text(errors="replace")[-2_000:])


def main() -> int:
    target = folder()
    try:
        build(target)
        with server(target) as url:
            return subprocess.run(sys.argv[1:] or COMMAND, env=os.environ | {"TIMESCALE_URL": url}, check=False).returncode
    except NotHere as reason:
        print(f"TimescaleDB cannot be had here: {reason}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    raise SystemExit(main())
