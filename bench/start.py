"""How long `make run` takes from the word to a product that answers: the first start of a checkout, and the second.

    python -m bench.start

What `make run` does is done one after the other: `deploy/prepare.py` in this checkout, which must find all that it looks for (run `make setup`
before), then `deploy.local run` in a copy of it, so that a running demo and its data are left alone: servers and data belong to the copy and are
thrown away with it. The first start makes the data.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.product import CHECKOUT
from deploy.servers import free_port

LIMIT_S = 120.0
LEFT_OUT = (
    ".git",
    ".venv",
    ".dev",
    "run",
    "node_modules",
    "__pycache__",
    "test-artifacts",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
)


def start(checkout: Path, port: int) -> float:
    """Seconds until run/info.json is there, which is written when the product is ready; it is stopped again."""
    info = checkout / "run" / "info.json"
    environ = os.environ | {"PORT": str(port), "PYTHONPATH": str(checkout)}  # the copy's own modules, whatever is installed
    for name in ("DATABASE_URL", "REDIS_URL", "MQTT_URL"):
        environ.pop(name, None)
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        subprocess.run(["make", "-s", "setup"], cwd=CHECKOUT, stdout=log, stderr=log, check=True)
        argv = [sys.executable, "-m", "deploy.local", "run"]
        process = subprocess.Popen(argv, cwd=checkout, env=environ, stdout=log, stderr=log, start_new_session=True)
        try:
            while not info.exists():
                if process.poll() is not None or time.perf_counter() - begun > LIMIT_S:
                    log.seek(0)
                    raise SystemExit(f"it did not start: {log.read()[-1500:]}")
                time.sleep(0.02)
            return time.perf_counter() - begun
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m bench.start", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        shutil.copytree(CHECKOUT, checkout, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
        (checkout / ".venv").symlink_to(Path(sys.prefix))  # used, never changed: what prepares it is not run in the copy
        Path(folder).chmod(0o755)  # the servers run as a user of their own
        port = free_port(20_000 + os.getpid() % 8_000)  # benches that start at once do not meet
        for name in ("first", "second"):
            print(f"{name} start {start(checkout, port):6.2f} s", flush=True)


if __name__ == "__main__":
    main()
