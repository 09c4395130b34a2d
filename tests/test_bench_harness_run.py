"""The load harness whole: `timepoint bench run` with its generator processes, against a small server that stalls when it is told to."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api import cli
from bench.harness import catalogue, target
from bench.harness.arguments import option_arguments
from bench.harness.command import COMMANDS, parser_of
from bench.harness.histogram import decode
from bench.harness.result import Result, read

CHECKOUT = Path(__file__).resolve().parent.parent
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
STALL_S = 0.8
SLEEPY = """
import time
from bench.harness.scenario import Scenario

class Sleepy(Scenario):
    name, summary, unit, measures = "sleepy", "waits between its moments", "naps", ()

    async def drive(self, share):
        async for moment in share.moments():
            time.sleep(0.3)
            share.count("slept")
"""
BROKEN = """
from bench.harness.scenario import Measure, Scenario

class Broken(Scenario):
    name, summary, unit, measures = "broken", "falls over", "tries", (Measure("x", "y"),)

    async def drive(self, share):
        await share.begun()
        raise RuntimeError("no such luck")
"""


class Stub:
    """Answers every request; once it has answered `stall_after` of them it holds its loop for STALL_S, once. Says that it has tracked ten fixes more
    whenever it is asked."""

    def __init__(self, stall_after: int = 10**9) -> None:
        self.stall_after, self.answered, self.tracked = stall_after, 0, 0
        self.loop = asyncio.new_event_loop()
        self.up = threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        assert self.up.wait(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(asyncio.start_server(self._talk, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self.up.set()
        self.loop.run_forever()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"GET /v1/stops"):
                    self.answered += 1
                    if self.answered == self.stall_after:
                        time.sleep(STALL_S)  # noqa: ASYNC251  # that is what a stalled server does
                if head.startswith(b"GET /metrics"):
                    self.tracked += 10
                    text = b'timepoint_commit_fixes_sum{worker="0"} %d\n' % self.tracked
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text))
                else:
                    writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)


@pytest.fixture
def stub() -> Iterator[Stub]:
    one = Stub(stall_after=60)
    yield one
    one.stop()


@pytest.fixture
def stops(tmp_path: Path) -> Path:
    """The scenario that docs/bench.md shows."""
    (text,) = re.findall(r"```python\n(.*?)```", (CHECKOUT / "docs/bench.md").read_text(), re.S)
    (tmp_path / "stops.py").write_text(text)
    return tmp_path / "stops.py"


def bench(*words: str | Path) -> int:
    return cli.main(["bench", *map(str, words)])


def test_a_server_that_stalls_shows_the_stall_to_all_who_came_meanwhile(
    stub: Stub, stops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load = ("--rate", "50", "--seconds", "2", "--warm-up", "1", "--processes", "1", "--radius", "300", "--lag-limit", "5000")
    code = bench(
        "run", stops, "--url", stub.url, *load, "--threshold", "near.p99<400ms", "--threshold", "faults<1", "--out", tmp_path / "out"
    )
    found: Result = read((tmp_path / "out/result.json").read_bytes())
    slow = decode(found.measures["near"].hdr).above(0.1)
    assert slow >= 30, (
        "35 requests were meant for the stalled time; a client that waits for its answers would have shown 8, one a connection"
    )
    assert found.measures["near"].max_s >= 0.75
    assert found.measures["near"].count == found.offered == 100 and not found.faults and not found.refused
    assert found.options == {"radius": 300} and found.scenario == "stops"
    assert found.counts["tracked"] % 10 == 0 < found.counts["tracked"] <= stub.tracked, (
        "its own counter, from the hold's beginning to its end"
    )
    assert [one.held for one in found.thresholds] == [False, True] and code == 1
    assert [second.phase for second in found.series] == ["warm-up", "hold", "hold"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"result.json", "result.md", "junit.xml", "report.html", "near.hlog"}
    assert "MISSED  near.p99<400ms" in capsys.readouterr().out
    assert bench("report", tmp_path / "out", tmp_path / "out/result.json", "--out", tmp_path / "both.html") == 1
    assert "stops" in (tmp_path / "both.html").read_text()
    assert bench("compare", tmp_path / "out", tmp_path / "out") == 0
    assert "too few samples" in capsys.readouterr().out


def test_a_generator_that_lags_is_no_evidence(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    words = ("--url", stub.url, "--rate", "4", "--seconds", "1", "--warm-up", "0", "--processes", "1", "--threshold", "count.slept>=0")
    assert bench("run", tmp_path / "sleepy.py", *words, "--json") == 3
    found = read(capsys.readouterr().out.encode())
    assert found.generators.lagged and found.generators.lag_p99_s >= 0.14 and "more --processes" in found.refused
    assert found.thresholds[0].held, "it is refused although every threshold holds"


def test_a_generator_that_falls_over_says_where(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    assert bench("run", tmp_path / "broken.py:Broken", "--url", stub.url, "--seconds", "1", "--warm-up", "0", "--processes", "1") == 3
    assert "RuntimeError: no such luck (broken.py:9)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "nothing-of-that-name"), "no scenario 'nothing-of-that-name'"),
        (("run", "nowhere.py"), "there is no file nowhere.py"),
        (("run", "ingest-http", "--url", "http://127.0.0.1:9"), "needs an operator admin's access token"),
        (("run", "ingest-http", "--url", "http://127.0.0.1:9", "--token", "t"), "nothing answers at http://127.0.0.1:9"),
        (("run", "ingest-http", "--threshold", "answer<5"), "threshold 'answer<5'"),
        (("run", "ingest-http", "--buses", "many"), "buses is a number like 1000, not 'many'"),
        (("run", "ingest-http", "--option", "wheels=3"), "ingest-http has no option 'wheels'"),
        (("run", "ingest-http", "--rate", "0"), "rate must be at least"),
        (("find-max", "ingest-http"), "--threshold"),
        (("compare", "only-one.json"), "two results"),
        (("report", "missing.json"), "missing.json is no result"),
        (("juggle",), "there is no 'juggle'"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(*words) == 2
    assert said in capsys.readouterr().err


def test_a_running_demo_is_the_target_and_its_admin_the_one_who_asks(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    said = {
        "baseUrl": stub.url,
        "logins": {"PARTNER_ADMIN": {"token": "t"}},
        "pids": {"worker0": 7},
        "redisUrl": "redis://x",
        "mqttUrl": "",
    }
    (tmp_path / "run/info.json").write_text(json.dumps(said))
    monkeypatch.chdir(tmp_path)
    with target.find(catalogue.find("ingest-http"), {}) as found:
        assert (found.url, found.token, found.pids, found.where) == (stub.url, "t", {"worker0": 7}, "the running demo")
        assert found.has() == {"token", "local", "redis"} and found.call("GET", "/healthz") == {}
    with pytest.raises(target.NoTarget, match="--mqtt-url"), target.find(catalogue.find("ingest-mqtt"), {}):
        pass


def test_every_scenario_of_the_list_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("list") == 0
    listed = capsys.readouterr().out
    for name in catalogue.LISTED:
        kind = catalogue.find(name)
        assert kind.name == name and name in listed and kind.measures and kind.unit
        assert bench("list", name) == 0
    assert bench("list", "--thresholds") == 0 and "rate.accepted>=1500" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "list", "find-max", "compare", "report", "doctor"])
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench(command, "--help")
    assert ended.value.code == 0 and f"timepoint bench {command}" in capsys.readouterr().out.partition("examples:")[2]


def examples() -> list[str]:
    """Those of the commands' own help, and those of the pages, which begin a line and end before two spaces."""
    pages = "\n".join((CHECKOUT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/bench.md"))
    found = re.findall(r"^(?:\$ \.venv/bin/)?(timepoint bench (?!COMMAND).+?)(?:  .*)?$", pages, re.M)
    return [*found, *(line for command in COMMANDS for line in command.examples.splitlines())]


@pytest.mark.parametrize("example", examples())
def test_every_example_can_be_said(example: str) -> None:
    name, *words = shlex.split(example.removeprefix("timepoint bench "))
    parser = parser_of(next(one for one in COMMANDS if one.name == name))
    if name in ("run", "find-max") and words[0] in catalogue.LISTED:
        option_arguments(parser, catalogue.find(words[0]))
    parser.parse_args(words)  # ends with exit code 2 where an option is not there


def test_help_of_a_scenario_shows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench("run", "ingest-http", "--help")
    assert "--buses" in capsys.readouterr().out
