"""What a running product costs: CPU seconds of its processes, from /proc, by part. Linux only, and only for processes of this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")
SERVERS = ("redis", "postgres", "mosquitto")
NOT_THE_ENGINE = (*SERVERS, "supervisor", "simulator")


def _stat(pid: int) -> tuple[int, int] | None:
    """(parent, CPU ticks of the process and of its children that have ended), or None where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), sum(map(int, fields[11:15]))


def tree(roots: Iterable[int]) -> set[int]:
    """The processes and all that descend from them."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _stat(int(name))) is not None:
            children.setdefault(stat[0], []).append(int(name))
    found, todo = set(), list(roots)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo.extend(children.get(pid, ()))
    return found


def parts_of(pids: Mapping[str, int]) -> dict[str, set[int]]:
    """`pids` of run/info.json by part: `timepoint` (engine and workers) and each server. Raises ValueError where no engine is among them."""
    engine = [pid for name, pid in pids.items() if name not in NOT_THE_ENGINE]
    if not engine:
        raise ValueError("no process of the engine is named: give --pids PID[,PID...] or --info")
    return {"timepoint": tree(engine)} | {name: tree([pids[name]]) for name in SERVERS if name in pids}


class Meter:
    """CPU seconds by part between `start` and `stop`."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self._begun: dict[str, float] = {}

    def _now(self) -> dict[str, float]:
        found = {}
        for part, processes in parts_of(self._pids).items():
            found[part] = sum(stat[1] for pid in processes if (stat := _stat(pid)) is not None) / _TICKS
        return found

    def start(self) -> None:
        self._begun = self._now()

    def stop(self) -> dict[str, float]:
        return {part: seconds - self._begun.get(part, 0.0) for part, seconds in self._now().items()}


def pids_of(given: str | None, info: Mapping[str, Any]) -> dict[str, int]:
    """`--pids 12,13` or `engine=12,redis=13`, else those of run/info.json."""
    if not given:
        return dict(info.get("pids") or {})
    found = {}
    for number, one in enumerate(given.split(",")):
        name, _, pid = one.rpartition("=")
        found[name or f"engine{number}"] = int(pid)
    return found


def described(cpu_s: Mapping[str, float], fixes: int, seconds: float) -> str:
    """One line a part: us a fix, and how much of a core."""
    width = max(map(len, cpu_s))
    return "\n".join(
        f"  {part:<{width}}  {used / max(1, fixes) * 1e6:7.1f} us/fix   {used / seconds:5.2f} cores" for part, used in cpu_s.items()
    )


def dump(path: Path | None, found: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n")
