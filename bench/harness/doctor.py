"""What stands in the way of a good measurement, before it is made: each finding with what to do about it.

`ok`, `note` (the figures will say so) or `bad` (they will be wrong, or the run will fail). Nothing is changed.
"""

from __future__ import annotations

import contextlib
import email.utils
import os
import resource
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec
import psycopg
import redis

from bench.harness import machine
from bench.harness.scenario import CallFailed
from bench.harness.target import Deployment

State = Literal["ok", "note", "bad"]
FILES_WANTED: Final = 65_536
PORTS_WANTED: Final = 20_000
LATE_WANTED_S: Final = 0.005
CLOCKS_OFF_S: Final = 0.5
FAST_CLOCKS: Final = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page")


class Finding(msgspec.Struct, frozen=True):
    what: str
    state: State
    said: str
    do: str = ""  # where it is not ok


def examine(target: Deployment | None, processes: int) -> Iterator[Finding]:
    """Each as it is found; some take a second."""
    for check in CHECKS:
        yield check(processes)
    if target is not None:
        for look in OF_THE_TARGET:
            yield look(target)


# ------------------------------------------------------------------------------------------------ this machine


def open_files(processes: int) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = f"{hard:,} a process" + (f" ({soft:,} until a generator raises it)" if soft != hard else "")
    if hard >= FILES_WANTED:
        return Finding("open files", "ok", said)
    return Finding(
        "open files", "note", said, f"a generator holds fewer sockets than that: `ulimit -Hn {FILES_WANTED}`, or more --processes"
    )


def ports(processes: int) -> Finding:
    text = _read("/proc/sys/net/ipv4/ip_local_port_range")
    if not text:
        return Finding("client ports", "note", "not known on this system")
    low, high = map(int, text.split())
    said = f"{high - low:,} to one address ({low} to {high})"
    if high - low >= PORTS_WANTED:
        return Finding("client ports", "ok", said)
    return Finding("client ports", "note", said, "sysctl -w net.ipv4.ip_local_port_range='10000 65535' for more sockets to one product")


def cores(processes: int) -> Finding:
    count = machine.cores()
    said = f"{count} for us, {processes} generators"
    if count > processes:
        return Finding("cores", "ok", said)
    return Finding(
        "cores", "note", said, "a product on this machine shares them: trust CPU per unit (cost.NAME), or load it from another machine"
    )


def load(processes: int) -> Finding:
    now, count = os.getloadavg()[0], machine.cores()
    if now < 0.3 * count:
        return Finding("load before the run", "ok", f"{now:.2f} on {count} cores")
    state: State = "note" if now < count else "bad"
    return Finding(
        "load before the run",
        state,
        f"{now:.2f} on {count} cores",
        "something else runs: `top` says what; wait, or compare only ratios of one run",
    )


def steal(processes: int) -> Finding:
    """Time that the host gave to others, of one second."""
    first = _cpu_times()
    if not first:
        return Finding("stolen time", "note", "not known on this system")
    time.sleep(1.0)
    gone = [after - before for before, after in zip(first, _cpu_times(), strict=True)]
    share = gone[7] / max(1, sum(gone)) if len(gone) > 7 else 0.0
    if share < 0.02:
        return Finding("stolen time", "ok", f"{share:.1%}")
    return Finding("stolen time", "note", f"{share:.1%}", "the host is shared: measure in pairs (A B A B), believe medians")


def governor(processes: int) -> Finding:
    found = {_read(str(path)) for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")}
    if found <= {"performance"}:
        return Finding("CPU frequency", "ok", "fixed at the top" if found else "not ours to say (a virtual machine, or no cpufreq)")
    return Finding(
        "CPU frequency", "note", f"governor {', '.join(sorted(found))}", "it changes under load: `cpupower frequency-set -g performance`"
    )


def clock_source(processes: int) -> Finding:
    name = _read("/sys/devices/system/clocksource/clocksource0/current_clocksource") or sys.platform
    began = time.perf_counter()
    for _ in range(10_000):
        time.monotonic()
    each_ns = (time.perf_counter() - began) * 1e5
    if name in FAST_CLOCKS or each_ns < 200:
        return Finding("clock source", "ok", f"{name}, {each_ns:.0f} ns a look")
    return Finding(
        "clock source",
        "note",
        f"{name}, {each_ns:.0f} ns a look",
        "each latency takes three looks: boot with clocksource=tsc where the CPU allows it",
    )


def wakes(processes: int) -> Finding:
    """How late a sleep of 1 ms ends, 500 times: the best that a generator can do here."""
    late = []
    for _ in range(500):
        due_s = time.monotonic() + 0.001
        time.sleep(0.001)
        late.append(time.monotonic() - due_s)
    p99_s = statistics.quantiles(late, n=100)[98]
    said = f"1 ms sleeps end {statistics.median(late) * 1e6:.0f} us late, {p99_s * 1000:.1f} ms at the 99th percentile"
    if p99_s < LATE_WANTED_S:
        return Finding("wake-ups", "ok", said)
    return Finding(
        "wake-ups",
        "note",
        said,
        "generators will lag as much by no doing of their own: free a core, `nice -n -5`, or raise --lag-limit knowingly",
    )


def memory(processes: int) -> Finding:
    lines = dict(line.split(":", 1) for line in (_read("/proc/meminfo") or "").splitlines() if ":" in line)
    if "MemAvailable" not in lines:
        return Finding("memory", "note", "not known on this system")
    free_mb = int(lines["MemAvailable"].split()[0]) // 1024
    if free_mb > 1024:
        return Finding("memory", "ok", f"{free_mb:,} MB to be had")
    return Finding("memory", "bad", f"{free_mb:,} MB to be had", "generators and product will swap: free some")


# ------------------------------------------------------------------------------------------------ the target


def answers(target: Deployment) -> Finding:
    """A look at its health, and the way there and back."""
    took = []
    for _ in range(5):
        began = time.monotonic()
        try:
            with urllib.request.urlopen(target.url + "/healthz", timeout=5):
                took.append(time.monotonic() - began)
        except OSError as fault:
            return Finding("product", "bad", f"{target.where}: no answer ({fault})", "is it up? `timepoint serve`, `make run`, or --url")
    return Finding("product", "ok", f"{target.where}: answers in {min(took) * 1000:.1f} ms, a fresh connection each time")


def version(target: Deployment) -> Finding:
    with contextlib.suppress(CallFailed, KeyError, TypeError):
        info = target.call("GET", "/schema/openapi.json")["info"]
        return Finding("version", "ok", f"{info['title']} {info['version']}")
    return Finding(
        "version", "note", "it does not say", "no /schema/openapi.json behind that address: is it Timepoint, and is nothing in between?"
    )


def credentials(target: Deployment) -> Finding:
    if not target.token:
        return Finding(
            "token", "note", "none", "scenarios that register devices need one: `timepoint user token PARTNER_ADMIN --partner ID --hours 2`"
        )
    try:
        target.call("GET", "/v1/admin/devices?limit=1")
    except CallFailed as fault:
        return Finding("token", "bad", str(fault)[:200], "make a new one: `timepoint user token PARTNER_ADMIN --partner ID --hours 2`")
    return Finding("token", "ok", "may register devices")


def clocks(target: Deployment) -> Finding:
    """Fixes carry our clock, ages are read off theirs: within one machine they are the same."""
    if target.pids:
        return Finding("clocks", "ok", "one machine, one clock: NTP or chrony do not matter")
    try:
        with urllib.request.urlopen(target.url + "/healthz", timeout=5) as answer:
            said = email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp() + 0.5  # it has whole seconds
    except (OSError, TypeError, ValueError):
        return Finding(
            "clocks", "note", "the product says no Date", "ages of fixes are as true as the two clocks: run chrony on both machines"
        )
    off_s = abs(said - time.time())
    if off_s < CLOCKS_OFF_S + 0.5:
        return Finding(
            "clocks",
            "ok",
            "within a second of each other; for ages below that run chrony on both machines (latencies need no clock but ours)",
        )
    return Finding(
        "clocks",
        "bad",
        f"{off_s:.0f} s apart",
        "fixes will be refused as too old or too new, and ages are wrong: run chrony on both machines",
    )


def its_redis(target: Deployment) -> Finding:
    if not target.redis_url:
        return Finding("Redis", "note", "not in sight", "no figures of it in the results: --redis-url")
    try:
        with contextlib.closing(redis.Redis.from_url(target.redis_url, socket_timeout=2)) as asked:
            took = []
            for _ in range(50):
                began = time.monotonic()
                asked.ping()
                took.append(time.monotonic() - began)
            kept = asked.config_get("appendfsync").get("appendfsync", "?")
    except redis.RedisError as fault:
        return Finding("Redis", "bad", str(fault)[:200], "the product cannot do without it either: is it up, is the address right?")
    return Finding("Redis", "ok", f"answers in {statistics.median(took) * 1e6:.0f} us; appendfsync {kept}")


def its_database(target: Deployment) -> Finding:
    if not target.database_url:
        return Finding("PostgreSQL", "note", "not in sight", "no figures of it in the results: --database-url")
    try:
        with psycopg.connect(target.database_url, connect_timeout=3, autocommit=True) as asked:
            kept = {
                name: (asked.execute(f"show {name}").fetchone() or ("?",))[0] for name in ("server_version", "fsync", "synchronous_commit")
            }
    except psycopg.Error as fault:
        return Finding("PostgreSQL", "bad", str(fault).strip()[:200], "bookings and history wait for it: is it up, is the address right?")
    said = f"{kept['server_version']}, fsync {kept['fsync']}, synchronous_commit {kept['synchronous_commit']}"
    if kept["fsync"] == "on":
        return Finding("PostgreSQL", "ok", said)
    return Finding("PostgreSQL", "note", said, "figures of a database that keeps nothing: turn fsync on before you quote them")


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def _cpu_times() -> list[int]:
    first = _read("/proc/stat").partition("\n")[0].split()
    return [int(value) for value in first[1:9]]


CHECKS: Final[tuple[Callable[[int], Finding], ...]] = (
    open_files, ports, cores, load, steal, governor, clock_source, wakes, memory,
)  # fmt: skip
OF_THE_TARGET: Final[tuple[Callable[[Deployment], Finding], ...]] = (answers, version, credentials, clocks, its_redis, its_database)
