"""What this machine is, for a result that is read elsewhere: no names, no addresses."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parent.parent.parent


def described() -> dict[str, str]:
    """Cores, model, kernel, Python, and the load before."""
    found = {
        "cores": str(cores()),
        "model": model(),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.2f}",
    }
    return {name: value for name, value in found.items() if value}


def version() -> str:
    """Of the product that stands in this checkout, with its commit where there is one."""
    found = metadata.version("timepoint")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--exclude=*"]
        found += " " + subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return found


def cores() -> int:
    """That we may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
