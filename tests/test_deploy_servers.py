"""The private servers of `make run` and of these tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from deploy.servers import (
    SOCKET_PATH_MAX,
    MosquittoServer,
    NotStarted,
    PostgresServer,
    RedisServer,
    free_port,
    runs,
    service_user,
    socket_folder,
    throw_away_folder,
)

CHECKOUT = Path(__file__).resolve().parent.parent


def test_no_server_runs_as_root(own_redis: RedisServer, postgres_server: PostgresServer, own_mosquitto: MosquittoServer) -> None:
    for server in (own_redis, postgres_server, own_mosquitto):
        assert server.pid is not None
        assert os.stat(f"/proc/{server.pid}").st_uid == service_user().pw_uid != 0


def test_postgres_keeps_its_rows_over_a_stop_and_over_a_kill(own_postgres: PostgresServer) -> None:
    with psycopg.connect(own_postgres.admin_url) as connection:
        connection.execute("create table kept as select 7 as n")
    for end in (own_postgres.stop, own_postgres.kill):
        end()
        assert own_postgres.pid is None
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(own_postgres.admin_url)
        own_postgres.start()
        with psycopg.connect(own_postgres.admin_url) as connection:
            assert connection.execute("select n from kept").fetchone() == (7,)


def test_redis_killed_hard_has_every_write_it_answered(own_redis: RedisServer) -> None:
    with redis.Redis.from_url(own_redis.url) as line:
        for n in range(200):
            line.rpush("answered", n)
    own_redis.kill()
    own_redis.start()
    with redis.Redis.from_url(own_redis.url) as line:
        assert line.llen("answered") == 200


def test_mosquitto_keeps_its_port_and_asks_for_logins_once_it_has_some(own_mosquitto: MosquittoServer) -> None:
    before = own_mosquitto.url
    own_mosquitto.stop()
    own_mosquitto.give("passwords", "")
    own_mosquitto.start()
    assert own_mosquitto.url == before
    assert MosquittoServer(own_mosquitto.folder).url == before
    with socket.create_connection(("127.0.0.1", own_mosquitto.port), timeout=5) as line:
        line.sendall(bytes.fromhex("100d00044d5154540402003c000178"))  # CONNECT, MQTT 3.1.1, client "x", no login
        assert line.recv(4) == bytes.fromhex("20020005")  # CONNACK, not authorised


def test_a_second_start_adopts_what_runs(own_redis: RedisServer, own_postgres: PostgresServer) -> None:
    for server in (own_redis, own_postgres):
        second = type(server)(server.folder)
        second.start()
        assert second.adopted
        assert second.pid == server.pid
        second.stop()
        assert server.pid is None


@pytest.fixture
def folder() -> Iterator[Path]:
    made = throw_away_folder()
    yield made
    shutil.rmtree(made)


def test_servers_end_with_the_process_that_started_them(folder: Path) -> None:
    code = (
        "import sys, pathlib; from deploy.servers import RedisServer\n"
        f"server = RedisServer(pathlib.Path({str(folder)!r}) / 'redis').start()\n"
        "print(server.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert runs(pid, "redis")
    parent.send_signal(signal.SIGKILL)
    parent.communicate(timeout=10)
    limit = time.monotonic() + 10
    while runs(pid) and time.monotonic() < limit:
        time.sleep(0.02)
    left = runs(pid)
    RedisServer(folder / "redis").remove()
    assert not left


def test_a_socket_path_never_passes_the_limit_of_the_kernel(folder: Path) -> None:
    for depth in (1, 30, 60, 90, 120):
        sockets = socket_folder(folder / ("d" * depth), service_user())
        assert len(os.fsencode(sockets / ".s.PGSQL.5432")) <= SOCKET_PATH_MAX
        assert len(os.fsencode(sockets / "redis.sock")) <= SOCKET_PATH_MAX
        sockets.rmdir()


def test_redis_runs_from_a_folder_too_deep_for_a_socket(folder: Path) -> None:
    server = RedisServer(folder / ("deep" * 20) / "redis")
    try:
        with redis.Redis.from_url(server.start().url) as line:
            assert line.ping()
    finally:
        server.remove()


def test_a_server_that_cannot_start_says_why_in_its_own_words(folder: Path) -> None:
    server = RedisServer(folder / "redis", maxmemory="a lot")
    try:
        with pytest.raises(NotStarted, match="maxmemory"):
            server.start()
    finally:
        server.remove()


def test_a_data_folder_of_another_postgres_is_refused_and_left_alone() -> None:
    server = PostgresServer(throw_away_folder())
    try:
        server.data.mkdir()
        (server.data / "PG_VERSION").write_text("9\n")
        with pytest.raises(NotStarted, match="made by PostgreSQL 9"):
            server.start()
        (server.data / "PG_VERSION").rename(server.data / "diary")
        with pytest.raises(NotStarted, match="neither empty nor a database"):
            server.start()
        assert (server.data / "diary").exists()
    finally:
        server.remove()


def test_kept_data_is_never_removed() -> None:
    server = RedisServer(throw_away_folder(), throw_away=False)
    with pytest.raises(NotStarted, match="is kept"):
        server.remove()
    server.throw_away = True
    server.remove()


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) != port
