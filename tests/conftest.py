"""Real servers for the tests: started once, lazily, thrown away at the end; nothing of the machine's own servers is touched."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.servers import MosquittoServer, PostgresServer, RedisServer, throw_away_folder
from migrations.runner import migrate

CHECKOUT = Path(__file__).resolve().parent.parent
_numbers = itertools.count(1)


def _migrated(server: PostgresServer, database: str) -> None:
    server.create_database(database)
    migrate(server.dsn(database, "postgres"), say=lambda _: None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's PostgreSQL, with an empty migrated database `template_timepoint` that every test's own is copied from."""
    server = PostgresServer(throw_away_folder())
    try:
        server.start()
        _migrated(server, "template_timepoint")
        yield server
    finally:
        server.remove()


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """Name of a fresh migrated database, dropped after the test."""
    name = f"t{next(_numbers)}"
    postgres_server.create_database(name, template="template_timepoint")
    yield name
    postgres_server.drop_database(name)


@pytest.fixture
def database_url(postgres_server: PostgresServer, database: str) -> str:
    """DSN of a fresh migrated database as the engine sees it: role timepoint_app, no superuser."""
    return postgres_server.dsn(database)


@pytest.fixture
def database_admin_url(postgres_server: PostgresServer, database: str) -> str:
    """The same database as a superuser, for what the application may not do."""
    return postgres_server.dsn(database, "postgres")


@pytest.fixture
def database_read_url(postgres_server: PostgresServer, database: str) -> str:
    """The same database as the read-only role of reports."""
    return postgres_server.dsn(database, "timepoint_read")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The session's Redis."""
    server = RedisServer(throw_away_folder(), appendfsync="no")
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of a Redis with nothing in it."""
    import redis

    with redis.Redis.from_url(redis_server.url) as connection:
        connection.flushall()
    return redis_server.url


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL of this test alone, to be stopped and killed; `.url` is its migrated database as role timepoint_app."""
    server = PostgresServer(throw_away_folder())
    try:
        server.start()
        _migrated(server, "timepoint")
        yield server
    finally:
        server.remove()


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis of this test alone, to be stopped and killed; appendfsync always, so what it answered is on disk."""
    server = RedisServer(throw_away_folder())
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def own_mosquitto() -> Iterator[MosquittoServer]:
    """A broker of this test alone. It lets anybody in until the test gives it `passwords` and `acl` (then stop and start it)."""
    server = MosquittoServer(throw_away_folder())
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Recorded feeds and fixes: TIMEPOINT_DATA, or shared/data beside the checkout."""
    given = os.environ.get("TIMEPOINT_DATA")
    for folder in [Path(given)] if given else [CHECKOUT.parent / "shared" / "data"]:
        if folder.is_dir():
            return folder
    pytest.skip("no recorded data: set TIMEPOINT_DATA to a folder of feeds and fixes")


from tests.product import product  # noqa: E402, F401  # the fixture of the whole product
