"""The supervisor of `make run`: real servers, with short programs standing in for the engine and the simulator."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from deploy.local import as_application, without_password
from deploy.servers import PostgresServer, runs, throw_away_folder

CHECKOUT = Path(__file__).resolve().parent.parent

TIMEPOINT = """
    import http.server, json, os, pathlib, signal, sys, time

    class Ready(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200), self.end_headers()

        def log_message(self, *said):
            pass

    what, rest = sys.argv[1], sys.argv[2:]
    if what == "device":
        tokens = {bus: "token-" + bus for bus in json.loads(pathlib.Path(rest[rest.index("--buses") + 1]).read_text())}
        pathlib.Path(rest[rest.index("--out") + 1]).write_text(json.dumps(tokens))
    elif what == "serve":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        if pathlib.Path("broken").exists():
            sys.exit("the engine's own complaint")
        http.server.HTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Ready).serve_forever()
    elif what == "sales":
        print('[{"tripId": "demo:W1-1:20990101", "departsAt": "2099-01-01T06:00:00.000Z"}]')
    elif what == "simulate":
        time.sleep(600)
"""

NETWORK = """
    import pathlib, sys

    if sys.argv[3] == "buses":
        print('["bus-1", "bus-2"]')
    else:
        pathlib.Path(sys.argv[3]).touch()
"""


def eventually(holds: Callable[[], Any], limit_s: float = 20) -> Any:
    limit = time.monotonic() + limit_s
    while not (found := holds()):
        assert time.monotonic() < limit, "it did not come"
        time.sleep(0.05)
    return found


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Place:
    """A checkout with stand-ins for our programs, and the supervisor in it."""

    def __init__(self) -> None:
        self.folder = throw_away_folder()
        self.port = unused_port()
        self.process: subprocess.Popen[str] | None = None
        binaries = self.folder / ".venv" / "bin"
        binaries.mkdir(parents=True)
        for name, text in (("timepoint", TIMEPOINT), ("python", NETWORK)):
            (binaries / name).write_text(f"#!{sys.executable}\n{textwrap.dedent(text)}")
            (binaries / name).chmod(0o755)

    def start(self) -> subprocess.Popen[str]:
        code = f"import sys, pathlib; from deploy.local import main; sys.exit(main(['run'], pathlib.Path({str(self.folder)!r})))"
        env = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "REDIS_URL", "MQTT_URL")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=CHECKOUT,
            env=env | {"PORT": str(self.port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return self.process

    def info(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / "run" / "info.json").read_text()))
        except FileNotFoundError:
            if self.process is not None and self.process.poll() is not None:
                pytest.fail(f"the supervisor ended: {self.process.communicate()[0]}")
            return {}

    def end(self, sig: signal.Signals = signal.SIGTERM) -> str:
        assert self.process is not None
        self.process.send_signal(sig)
        return self.process.communicate(timeout=60)[0]


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.end()
    subprocess.run(["rm", "-rf", made.folder], check=True)


def test_a_run_tells_where_it_is_ends_clean_and_finds_its_data_again(place: Place) -> None:
    place.start()
    info = eventually(place.info)
    assert set(info) == {"baseUrl", "pids", "databaseUrl", "redisUrl", "mqttUrl", "logins", "devices", "tripInstances"}
    assert info["tripInstances"] == ["demo:W1-1:20990101"]
    assert (place.folder / "run" / "info.json").stat().st_mode & 0o777 == 0o600
    assert info["baseUrl"] == f"http://127.0.0.1:{place.port}"
    assert info["devices"] == {"bus-1": "token-bus-1", "bus-2": "token-bus-2"}
    assert set(info["pids"]) == {"supervisor", "engine", "simulator", "postgres", "redis", "mosquitto"}
    assert all(runs(pid) for pid in info["pids"].values())
    assert info["logins"]["DRIVER"]["token"].count(".") == 2
    with psycopg.connect(info["databaseUrl"]) as connection:
        assert connection.execute("select current_user").fetchone() == ("timepoint_app",)
    with redis.Redis.from_url(info["redisUrl"]) as line:
        line.set("kept", "yes")

    said = place.end(signal.SIGINT)
    assert place.process is not None
    assert place.process.returncode == 0, said
    assert not (place.folder / "run" / "info.json").exists()
    assert not [name for name, pid in info["pids"].items() if runs(pid)]

    place.start()
    again = eventually(place.info)
    assert again["mqttUrl"] == info["mqttUrl"]
    with redis.Redis.from_url(again["redisUrl"]) as line:
        assert line.get("kept") == b"yes"


def test_what_dies_is_named_with_its_log_and_started_again(place: Place) -> None:
    place.start()
    before = eventually(place.info)["pids"]
    for name in ("engine", "redis"):
        os.kill(before[name], signal.SIGKILL)
    after = eventually(
        lambda: (now := place.info()["pids"]) and now.get("engine") and all(now[n] != before[n] for n in ("engine", "redis")) and now
    )
    assert after["postgres"] == before["postgres"]
    said = place.end()
    assert "engine ended with -9" in said
    assert "Redis is gone" in said


def test_a_supervisor_killed_outright_leaves_nothing_that_the_next_start_would_trip_over(place: Place) -> None:
    process = place.start()
    before = eventually(place.info)["pids"]
    process.kill()
    process.wait(10)
    place.start()
    after = eventually(lambda: (now := place.info()) and now["pids"]["supervisor"] != before["supervisor"] and now["pids"])
    assert all(runs(pid) for pid in after.values())
    assert not runs(before["engine"])
    assert not runs(before["simulator"])


def test_a_second_supervisor_is_refused_and_the_first_goes_on(place: Place) -> None:
    first = place.start()
    info = eventually(place.info)
    second = place.start()
    said = second.communicate(timeout=30)[0]
    place.process = first
    assert second.returncode == 1
    assert f"runs already (supervisor {first.pid})" in said
    assert place.info() == info


def test_a_taken_port_is_said_before_anything_starts(place: Place) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", place.port))
        taken.listen()
        said = place.start().communicate(timeout=30)[0]
    assert f"port {place.port} is taken" in said
    assert f"PORT={place.port + 1} make run" in said
    assert not (place.folder / ".dev" / "postgres").exists()


def test_an_engine_that_does_not_come_up_is_quoted_and_everything_else_stopped(place: Place) -> None:
    (place.folder / "broken").touch()
    process = place.start()
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "the engine's own complaint" in said
    assert not list((place.folder / ".dev").glob("*/server.pid"))
    assert not (place.folder / ".dev" / "postgres" / "data" / "postmaster.pid").exists()


def test_a_superuser_given_for_the_database_is_made_to_act_as_the_application(postgres_server: PostgresServer, database: str) -> None:
    url = as_application(postgres_server.dsn(database, "postgres"))
    with psycopg.connect(url) as connection:
        assert connection.execute("select current_user").fetchone() == ("timepoint_app",)
    assert as_application(postgres_server.dsn(database)) == postgres_server.dsn(database)


async def test_and_so_does_the_engines_own_driver(postgres_server: PostgresServer, database: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(as_application(postgres_server.dsn(database, "postgres")))
    try:
        assert await connection.fetchval("select current_user") == "timepoint_app"
    finally:
        await connection.close()


def test_a_password_does_not_reach_what_others_read() -> None:
    assert without_password("mqtt://timepoint:secret@127.0.0.1:18707") == "mqtt://127.0.0.1:18707"
    assert without_password("mqtt://127.0.0.1:18707") == "mqtt://127.0.0.1:18707"
