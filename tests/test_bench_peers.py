"""Peers: each is missing with a reason or gets the same crowd; ratios land in a result once."""

from __future__ import annotations

import contextlib
import http.client
from pathlib import Path

import msgspec
import pytest

from bench.crowd import CrowdProcess
from bench.harness.result import Peer, read
from bench.peers import __main__ as command
from bench.peers import epoll, nchan, place
from bench.peers.place import Missing
from tests.test_bench_report import result


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMEPOINT_PEERS", str(tmp_path / "peers"))


def test_every_socket_of_the_floor_gets_every_message_and_is_charged_for_it() -> None:
    try:
        peer = epoll.peer()
    except Missing as fault:
        pytest.skip(str(fault))
    with peer.start() as running, contextlib.closing(CrowdProcess(running.port, peer.path)) as crowd:
        crowd.tell("connect", 60, "-")
        line = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
        for size in (20, 300, 20_000):
            crowd.tell("expect")
            line.request("POST", "/pub", b"x" * size)
            assert line.getresponse().read() == b"ok"
            said = crowd.tell("report", 0.0, 60, 10)
            assert (said["frames"], said["bytes"]) == (60, 60 * (size + (2 if size < 126 else 4)))
        assert running.cpu_s() >= 0 and running.memory_kb() > 0
        line.close()


def test_what_cannot_be_had_says_why() -> None:
    with pytest.raises(Missing, match="there is no no-such-program"):
        place.run(["no-such-program"], place.folder("x"))
    with pytest.raises(Missing, match="failed: never heard of it"):
        place.run(["sh", "-c", "echo never heard of it >&2; exit 3"], place.folder("x"))
    with pytest.raises(Missing, match="did not come up: it fell over"), place.serving(["sh", "-c", "echo it fell over; exit 1"], 1):
        pass


def test_nothing_is_fetched_for_a_peer_that_cannot_start_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(nchan, "NGINX", ("no-such-nginx",))
    with pytest.raises(Missing, match="there is no nginx"):
        nchan.peer()
    assert not (place.folder("nchan") / "root").exists()


def test_a_peer_is_installed_once_for_each_version() -> None:
    made: list[str] = []
    for stamp in ("a==1", "a==1", "a==2"):
        place.once(place.folder("a"), stamp, lambda stamp=stamp: made.append(stamp))  # type: ignore[misc]
    assert made == ["a==1", "a==2"]


def test_ratios_replace_those_of_an_earlier_run_of_the_same_thing(tmp_path: Path) -> None:
    old = Peer(name="Nchan", version="1", what="fan-out", unit="us", figure=8.0, ours=16.0)
    other = Peer(name="npm ws", version="1", what="fan-out", unit="us", figure=8.0, ours=4.0)
    (tmp_path / "run.json").write_bytes(msgspec.json.encode(result(peers=[old, other])))
    command.add_to(tmp_path / "run.json", [msgspec.structs.replace(old, ours=4.0)])
    assert [(one.name, one.ratio) for one in read((tmp_path / "run.json").read_bytes()).peers] == [("npm ws", 0.5), ("Nchan", 0.5)]
