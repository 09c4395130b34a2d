"""The house rules, read from the code: who may import whom, and who alone speaks SQL, Redis, time and chance."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("geo", "engine", "ingest", "api", "bench", "migrations")
MAY_IMPORT = {
    "geo": {"geo"},
    "engine": {"engine", "geo"},
    "ingest": {"ingest", "engine", "geo"},
    "api": {"api", "ingest", "engine", "geo"},
    "bench": {"bench", "geo"},
    "migrations": {"migrations"},
}
BENCH_PURE = (  # without I/O
    "engine.events", "engine.errors", "ingest.gtfs", "geo",
    *("engine.tracking." + core for core in (
        "accuracy", "assign", "atlas", "boarding", "eta", "fences", "fix", "guard", "headways", "overrides", "pace", "replay", "ride",
        "rules", "score", "spread", "timetable", "tracker", "truth", "vehicle", "watch", "window",
    )),
)  # fmt: skip
CLI_ALSO = ("migrations", "bench")  # the composition root starts them as commands
SQL = re.compile(
    r"\b(select\s.+\sfrom|insert\s+into|update\s+\w+(\.\w+)?\s+set|delete\s+from|create\s+(table|index|schema))\b", re.I | re.S
)
CLOCKWORK = {
    ("time", "time"), ("time", "time_ns"), ("time", "monotonic"), ("time", "monotonic_ns"), ("datetime", "now"), ("datetime", "utcnow"),
    ("date", "today"), ("uuid", "uuid4"), ("uuid", "uuid1"),
}  # fmt: skip
REDIS_WORDS = {"redis", "hiredis"}


def modules(*rooms: str) -> list[Path]:
    return sorted(p for room in rooms for p in (ROOT / room).rglob("*.py") if "node_modules" not in p.parts)


def imported(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def wrong_arrows(room: str, names: list[str], *, is_cli: bool = False) -> list[str]:
    """Imports of `names` that a module of `room` may not have."""
    wrong = []
    for name in names:
        top = name.split(".")[0]
        if top not in ROOMS or top in MAY_IMPORT[room] or (is_cli and top in CLI_ALSO):
            continue
        if room == "bench" and (name in ("engine", "engine.tracking", "ingest") or name.startswith(BENCH_PURE)):
            continue
        wrong.append(name)
    return wrong


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_arrows(room: str) -> None:
    faults = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(room)
        for name in wrong_arrows(room, imported(path), is_cli=path == ROOT / "api/cli.py")
    ]
    assert not faults, "\n".join(faults)


def test_the_arrow_test_can_fail() -> None:
    assert wrong_arrows("geo", ["engine.errors"]) == ["engine.errors"]
    assert wrong_arrows("engine", ["api.app"]) == ["api.app"]
    assert wrong_arrows("bench", ["engine.store.redis"]) == ["engine.store.redis"]
    assert not wrong_arrows("bench", ["ingest.gtfs"])


def is_docstring(tree: ast.AST, node: ast.Constant) -> bool:
    for owner in ast.walk(tree):
        if isinstance(owner, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and owner.body:
            first = owner.body[0]
            if isinstance(first, ast.Expr) and first.value is node:
                return True
    return False


def sql_texts(source: str) -> list[int]:
    tree = ast.parse(source)
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SQL.search(node.value) and not is_docstring(tree, node)
    ]


def test_sql_stands_only_in_the_store_and_in_migrations() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in modules("geo", "engine", "ingest", "api", "bench")
        if (ROOT / "engine/store") not in path.parents
        for line in sql_texts(path.read_text(encoding="utf-8"))
    ]
    assert not faults, "\n".join(faults)
    assert sql_texts("x = 'select a from b'") == [1]


def test_only_the_store_speaks_redis() -> None:
    faults = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules("geo", "engine", "ingest", "api")
        if (ROOT / "engine/store") not in path.parents
        for name in imported(path)
        if name.split(".")[0] in REDIS_WORDS
    ]
    assert not faults, "\n".join(faults)


def clock_faults(source: str) -> list[str]:
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if (owner, node.attr) in CLOCKWORK:
                faults.append(f"{node.lineno}: {owner}.{node.attr}")
        elif isinstance(node, ast.Import) and any(alias.name in ("random", "secrets") for alias in node.names):
            faults.append(f"{node.lineno}: import {node.names[0].name}")
        elif isinstance(node, ast.ImportFrom) and (
            node.module in ("random", "secrets") or (node.module == "uuid" and [alias.name for alias in node.names] != ["UUID"])
        ):
            faults.append(f"{node.lineno}: from {node.module}")
    return faults


def test_time_ids_and_chance_come_from_the_clock() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{fault}"
        for path in modules("geo", "engine", "ingest", "api")
        if path != ROOT / "engine/clock.py"
        for fault in clock_faults(path.read_text(encoding="utf-8"))
    ]
    assert not faults, "\n".join(faults)
    assert clock_faults("import time\nx = time.time()") == ["2: time.time"]
    assert clock_faults("import datetime\nx = datetime.datetime.now()") == ["2: datetime.now"]


def test_a_pattern_of_the_wire_takes_no_line_end_behind_it() -> None:
    loose = re.compile(r'(pattern=r?|Final = r)"\^[^"]*\$"')  # Python's `$` also stands before a last line end: a UUID with one is no UUID
    faults = [
        f"{path.relative_to(ROOT)}:{i}"
        for path in modules("engine", "ingest", "api")
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if loose.search(line)
    ]
    assert not faults, "write $(?!\\n): " + ", ".join(faults)


def test_no_local_path_and_no_registry_address_in_any_file() -> None:
    wrong = re.compile(r"pypi\.org|files\.pythonhosted|registry\.npmjs|/r" + r"oot/|/w" + r"ork/main|/w" + r"ork/shared|deb\.debian\.org")
    faults = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if not path.is_file() or parts[0] in (".git", ".venv", ".dev", "run", "build", "dist", "test-artifacts") or path == Path(__file__):
            continue
        if {"node_modules", "vendor", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"} & set(parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        faults += [f"{path.relative_to(ROOT)}:{i}" for i, line in enumerate(text.splitlines(), 1) if wrong.search(line)]
    assert not faults, "\n".join(faults)
