"""CPU and memory of processes by name, from /proc (proc(5)): each with all that descends from it. Linux, and processes of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
SERVERS = ("redis", "postgres", "mosquitto")
BESIDE = ("supervisor", "simulator")  # a demo's own: no part of what is measured


class Spent:
    """What one look has found."""

    __slots__ = ("cpu_s", "memory_kb")

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = {}
        self.memory_kb: dict[str, int] = {}


def look(pids: Mapping[str, int]) -> Spent:
    """CPU seconds so far, with children that have ended, and resident memory: what each has to itself, and the most that one of them shares."""
    tree, cpu_s = _table()
    roots = {pid: name for name, pid in pids.items()}
    found = Spent()
    for name, pid in pids.items():
        if pid not in cpu_s or name in BESIDE:
            continue
        todo, seen = [pid], set()
        while todo:
            one = todo.pop()
            seen.add(one)
            todo += [child for child in tree.get(one, ()) if child not in roots and child not in seen]
        found.cpu_s[name] = sum(cpu_s[one] for one in seen)
        found.memory_kb[name] = _resident_kb(seen)
    return found


def ours(name: str) -> bool:
    """Whether a process is of the product itself, not a server beneath it."""
    return name not in SERVERS


def _resident_kb(pids: Iterable[int]) -> int:
    """PostgreSQL's processes all map the same buffers: those are counted once."""
    alone = shared = 0
    for pid in pids:
        try:
            resident, common = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
        except OSError:
            continue  # it has ended
        alone += resident - common
        shared = max(shared, common)
    return (alone + shared) * PAGE_KB


def _table() -> tuple[dict[int, list[int]], dict[int, float]]:
    """The children, and the CPU seconds, of every process."""
    tree: dict[int, list[int]] = {}
    cpu_s: dict[int, float] = {}
    if not Path("/proc/self/stat").exists():
        return tree, cpu_s
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        pid = int(name)
        tree.setdefault(int(fields[1]), []).append(pid)
        cpu_s[pid] = sum(map(int, fields[11:15])) * TICK_S
    return tree, cpu_s
