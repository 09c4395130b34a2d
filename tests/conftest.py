"""Real servers for the tests: started once, lazily, thrown away at the end; nothing of the machine's own servers is touched."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from deploy.servers import MosquittoServer, PostgresServer, RedisServer, throw_away_folder
from migrations.runner import migrate

CHECKOUT = Path(__file__).resolve().parent.parent
# minutes, few tests; what waits for a drive that began with the product comes last of them
LONG = ("test_torture", "test_crash", "test_office_crash", "test_contract_fuzz", "test_browser_", "test_flow_detour")
_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first: what begins last should be short, or one process ends minutes after the other."""
    items.sort(key=lambda item: next((at for at, name in enumerate(LONG) if item.path.name.startswith(name)), len(LONG)))


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


# Empties what a test has filled, and leaves what the migrations themselves wrote (seeds: the tables that are not empty in the template).
EMPTY = """
do $$
declare t regclass; s regclass; has bool;
begin
  set local session_replication_role = replica;  -- in any order, and past the triggers that keep rows for ever
  for t in select c.oid::regclass from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind = 'r' and n.nspname !~ '^(pg_|information_schema)' and c.oid::regclass::text <> all('{seeds}'::text[]) loop
    execute format('select exists (select from %s)', t) into has;
    if has then execute format('delete from %s', t); end if;
  end loop;
  for s in select format('%I.%I', schemaname, sequencename)::regclass from pg_sequences where last_value is not null loop
    perform setval(s, 1, false);
  end loop;
end $$"""
FULL = """
select array_agg(c.oid::regclass::text) from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and n.nspname !~ '^(pg_|information_schema)'
  and (xpath('/row/c/text()', query_to_xml(format('select count(*) as c from %s', c.oid::regclass), false, true, '')))[1]::text <> '0'"""


class Databases:
    """Migrated databases, made once and used again: copying the template takes longer than most tests."""

    def __init__(self, server: PostgresServer) -> None:
        self.server, self.free = server, list[str]()
        with psycopg.connect(server.dsn("template_timepoint", "postgres")) as connection:
            row = connection.execute(FULL).fetchone()
        self.seeds = "{" + ",".join(row[0] if row and row[0] else []) + "}"

    def take(self) -> str:
        if self.free:
            return self.free.pop()
        name = f"t{next(_numbers)}"
        self.server.create_database(name, template="template_timepoint")
        return name

    def give_back(self, name: str) -> None:
        with psycopg.connect(self.server.dsn(name, "postgres"), autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and pid <> pg_backend_pid()", (name,)
            )
            connection.execute(EMPTY.format(seeds=self.seeds))
        self.free.append(name)


@pytest.fixture(scope="session")
def databases(postgres_server: PostgresServer) -> Databases:
    return Databases(postgres_server)


@pytest.fixture
def database(databases: Databases, request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of a migrated database with nothing in it. One that a test could change as a superuser is dropped, the others are emptied."""
    name = databases.take()
    yield name
    if "database_admin_url" in request.fixturenames:
        databases.server.drop_database(name)
    else:
        databases.give_back(name)


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
from tests.reads_house import reads, reads_of_module  # noqa: E402, F401  # the REST side of a worker, in this process
