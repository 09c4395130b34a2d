"""The runner of migrations against a real PostgreSQL, and the schema that this release's files make."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from deploy.servers import PostgresServer
from migrations import runner
from migrations.runner import MigrationRefused, migrate, pending, read_files


@pytest.fixture
def empty_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A database with nothing in it, as superuser."""
    postgres_server.create_database("empty")
    yield postgres_server.dsn("empty", "postgres")
    postgres_server.drop_database("empty")


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name[1:]}.sql").write_text(text)
    return folder


def quiet(_: str) -> None:
    pass


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def test_files_are_applied_in_order_once_and_said(empty_url: str, tmp_path: Path) -> None:
    said: list[str] = []
    write(tmp_path, _0001_a="create table a (n int)", _0010_b="alter table a add m int")
    assert pending(empty_url, folder=tmp_path) == ["0001_a.sql", "0010_b.sql"]
    assert migrate(empty_url, folder=tmp_path, say=said.append) == ["0001_a.sql", "0010_b.sql"]
    assert [line.split()[0] for line in said] == ["0001_a.sql", "0010_b.sql"]
    assert migrate(empty_url, folder=tmp_path, say=said.append) == []
    assert pending(empty_url, folder=tmp_path) == []
    assert len(said) == 2


def test_a_file_edited_after_it_was_applied_is_refused(empty_url: str, tmp_path: Path) -> None:
    migrate(empty_url, folder=write(tmp_path, _0001_a="create table a (n int)"), say=quiet)
    write(tmp_path, _0001_a="create table a (n bigint)", _0002_b="create table b (n int)")
    with pytest.raises(MigrationRefused, match=r"0001_a\.sql was changed after"):
        migrate(empty_url, folder=tmp_path, say=quiet)
    assert rows(empty_url, "select to_regclass('b')") == [(None,)]


def test_a_file_older_than_the_newest_applied_one_is_refused_but_a_gap_is_not(empty_url: str, tmp_path: Path) -> None:
    migrate(empty_url, folder=write(tmp_path, _0001_a="create table a (n int)", _0010_b="create table b (n int)"), say=quiet)
    write(tmp_path, _0005_late="create table late (n int)")
    with pytest.raises(MigrationRefused, match=r"0005_late\.sql is older than 0010_b\.sql"):
        migrate(empty_url, folder=tmp_path, say=quiet)
    (tmp_path / "0005_late.sql").rename(tmp_path / "0011_late.sql")
    assert migrate(empty_url, folder=tmp_path, say=quiet) == ["0011_late.sql"]


def test_two_files_of_one_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MigrationRefused, match="share a number"):
        read_files(write(tmp_path, _0001_a="", _0001_b=""))


def test_a_database_of_a_newer_release_is_left_alone(empty_url: str, tmp_path: Path) -> None:
    migrate(empty_url, folder=write(tmp_path, _0001_a="create table a (n int)", _0002_b="create table b (n int)"), say=quiet)
    (tmp_path / "0002_b.sql").unlink()
    assert migrate(empty_url, folder=tmp_path, say=quiet) == []


def test_a_failing_file_leaves_nothing_and_names_itself_and_its_line(empty_url: str, tmp_path: Path) -> None:
    write(tmp_path, _0001_a="create table a (n int);", _0002_b="create table b (n int);\n\ninsert into nowhere values (1);")
    with pytest.raises(psycopg.errors.UndefinedTable) as caught:
        migrate(empty_url, folder=tmp_path, say=quiet)
    assert caught.value.__notes__ == ["in migrations/0002_b.sql, line 3"]
    assert rows(empty_url, "select to_regclass('a') is not null, to_regclass('b') is not null") == [(True, False)]
    write(tmp_path, _0002_b="create table b (n int);")
    assert migrate(empty_url, folder=tmp_path, say=quiet) == ["0002_b.sql"]


def test_statements_that_refuse_a_transaction_run_one_by_one(empty_url: str, tmp_path: Path) -> None:
    write(
        tmp_path,
        _0001_a="create table a (n int)",
        _0002_b="-- migrate: no-transaction\ncreate index concurrently a_n on a (n);\n-- next\n"
        "create index concurrently a_m on a ((n + 1));",
    )
    migrate(empty_url, folder=tmp_path, say=quiet)
    assert rows(empty_url, "select count(*) from pg_indexes where tablename = 'a'") == [(2,)]


def test_many_runners_at_once_do_the_work_once(empty_url: str, tmp_path: Path) -> None:
    write(
        tmp_path,
        _0001_a="create table a (n int); select pg_sleep(0.2);",
        _0002_b="-- migrate: no-transaction\ncreate index concurrently a_n on a (n);",
        _0003_c="insert into a values (1)",
    )
    done: list[list[str]] = []
    runners = [threading.Thread(target=lambda: done.append(migrate(empty_url, folder=tmp_path, say=quiet))) for _ in range(5)]
    for thread in runners:
        thread.start()
    for thread in runners:
        thread.join(30)
    assert sorted(done, key=len) == [[], [], [], [], ["0001_a.sql", "0002_b.sql", "0003_c.sql"]]
    assert rows(empty_url, "select n from a") == [(1,)]


def test_a_runner_does_not_wait_for_ever_for_another(empty_url: str, tmp_path: Path) -> None:
    with psycopg.connect(empty_url, autocommit=True) as other:
        other.execute("select pg_advisory_lock(%s)", (runner.LOCK,))
        with pytest.raises(MigrationRefused, match="another runner"):
            migrate(empty_url, folder=tmp_path, say=quiet, wait_s=0.3)
    assert migrate(empty_url, folder=tmp_path, say=quiet) == []


def test_a_role_that_may_not_prepare_the_database_is_told_what_to_do(postgres_server: PostgresServer, tmp_path: Path) -> None:
    postgres_server.create_database("plain")
    with psycopg.connect(postgres_server.dsn("plain", "postgres"), autocommit=True) as connection:
        connection.execute("drop role if exists clerk")
        connection.execute("create role clerk login")
    try:
        with pytest.raises(MigrationRefused, match=r"clerk may not prepare this database .* grant timepoint_owner, timepoint_app to clerk"):
            migrate(postgres_server.dsn("plain", "clerk"), folder=tmp_path, say=quiet)
    finally:
        postgres_server.drop_database("plain")


# The schema of this release ---------------------------------------------------------------------------------------------------------------


def test_the_application_reads_and_writes_rows_and_owns_nothing(database_url: str, database_admin_url: str) -> None:
    assert rows(database_url, "select rolsuper, rolbypassrls, rolcreaterole from pg_roles where rolname = current_user") == [
        (False, False, False)
    ]
    assert rows(database_admin_url, "select relname from pg_class where pg_get_userbyid(relowner) = 'timepoint_app'") == []
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        rows(database_url, "create table public.mine (n int)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        rows(database_url, "delete from public.schema_migrations returning 1")


def test_the_reader_reads_every_table_and_writes_none(database_admin_url: str) -> None:
    found = rows(
        database_admin_url,
        "select oid::regclass::text from pg_class where relkind in ('r', 'p', 'v') and pg_get_userbyid(relowner) = 'timepoint_owner'"
        " and has_table_privilege('timepoint_read', oid, 'insert, update, delete')",
    )
    assert found == []


def test_every_table_has_a_primary_key(database_admin_url: str) -> None:
    assert (
        rows(
            database_admin_url,
            "select oid::regclass::text from pg_class c where relkind in ('r', 'p') and pg_get_userbyid(relowner) = 'timepoint_owner'"
            " and not relispartition and not exists (select from pg_constraint where conrelid = c.oid and contype = 'p')",
        )
        == []
    )


def test_tables_with_row_security_force_it_on_their_owner(database_admin_url: str) -> None:
    assert rows(database_admin_url, "select relname from pg_class where relrowsecurity and not relforcerowsecurity") == []


def test_the_files_of_this_release_applied_a_second_time_do_nothing(database_admin_url: str) -> None:
    assert migrate(database_admin_url, say=quiet) == []
    assert pending(database_admin_url) == []
