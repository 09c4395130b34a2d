"""The floor: an epoll loop in C that writes ready bytes and does nothing else (epoll.c beside this file), compiled at need with `cc`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bench.peers.place import Peer, Running, folder, once, run, serving, some_port

SOURCE = Path(__file__).with_name("epoll.c")


def _program() -> Path:
    where = folder("epoll")
    once(where, SOURCE.read_text(), lambda: _compile(where))
    return where / "epoll"


def _compile(where: Path) -> None:
    run(["cc", "-O2", "-o", str(where / "epoll"), str(SOURCE)], where)


@contextlib.contextmanager
def _start() -> Iterator[Running]:
    port = some_port()
    with serving([str(_program()), str(port)], port) as running:
        yield running


def peer() -> Peer:
    _program()
    return Peer("C epoll floor", run(["cc", "--version"], folder("epoll")).splitlines()[0], _start)
