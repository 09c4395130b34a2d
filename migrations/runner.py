"""Brings a database to the schema of this release: numbered SQL files, forward only, each applied once.

    NNNN_name.sql                            one transaction
    NNNN_name.sql with `-- migrate: no-transaction`   statements between lines `-- next`, each on its own (CREATE INDEX CONCURRENTLY)

Promised: several runners at once do the work once; a file that fails leaves nothing behind (a no-transaction file may, and is run again
from its start: write its statements so that they can be). Refused: a file that was edited after it had been applied, a file older than
the newest applied one that never was, two files of one number. Every file has to suit the previous release's code for one version.

Three roles are made first, if the connecting role may: `timepoint_owner` owns everything the files make, `timepoint_app` (the engine: no
superuser, no BYPASSRLS) may read and write rows, `timepoint_read` may read them. Grants follow by default privileges; a file that wants
less revokes it.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psycopg
from psycopg import sql

LOCK = 0x74_69_6D_65_70_6F_69_6E  # "timepoin": the advisory lock of all runners on one database
FOLDER = Path(__file__).parent
OWNER, APPLICATION, READER = "timepoint_owner", "timepoint_app", "timepoint_read"

_NO_TRANSACTION = re.compile(r"^-- migrate: no-transaction\s*$", re.M)
_NEXT = re.compile(r"^-- next\s*$", re.M)


class MigrationRefused(RuntimeError):
    """The files and the database do not fit together, or the connecting role may not do it. The text says what to do."""


class Migration(NamedTuple):
    """One file. `digest` is the SHA-256 of its text with line ends as \\n."""

    number: str
    name: str
    text: str
    digest: str

    @property
    def in_transaction(self) -> bool:
        return not _NO_TRANSACTION.search(self.text)


def read_files(folder: Path = FOLDER) -> list[Migration]:
    """The files of `folder` in order. Raises `MigrationRefused` when two share a number."""
    found = []
    for path in sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.sql")):
        text = path.read_text(encoding="utf-8")
        found.append(Migration(path.name[:4], path.name, text, hashlib.sha256(text.encode()).hexdigest()))
    for one, other in itertools.pairwise(found):
        if one.number == other.number:
            raise MigrationRefused(f"{one.name} and {other.name} share a number")
    return found


def migrate(url: str, *, folder: Path = FOLDER, say: Callable[[str], None] = print, wait_s: float = 60.0) -> list[str]:
    """Applies what is missing on the database of `url` (an owner or superuser) and returns the names of the files it applied.

    Waits at most `wait_s` seconds for another runner. Raises `MigrationRefused`; a failing statement raises psycopg's error with a note
    that names the file.
    """
    files = read_files(folder)
    with psycopg.connect(url, autocommit=True, connect_timeout=10, application_name="timepoint migrate") as connection:
        connection.execute("set client_min_messages = warning")
        _lock(connection, wait_s)
        try:
            connection.execute("set lock_timeout = '30s'")  # an idle session with a lock stops us, not the other way round
            _make_roles(connection)
            _make_extensions(connection)
            connection.execute(sql.SQL("set role {}").format(sql.Identifier(OWNER)))
            connection.execute(_LEDGER)
            waiting = _unapplied(files, _applied(connection))
            for file in waiting:
                say(f"{file.name} {_apply(connection, file)} ms")
            return [file.name for file in waiting]
        finally:
            if not connection.closed:
                connection.execute("select pg_advisory_unlock(%s)", (LOCK,))


def pending(url: str, *, folder: Path = FOLDER) -> list[str]:
    """Names of the files that `migrate` would apply; the database may be of any role that can read. Raises `MigrationRefused`."""
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        there = connection.execute("select to_regclass('public.schema_migrations') is not null").fetchone()
        applied = _applied(connection) if there and there[0] else {}
        return [file.name for file in _unapplied(read_files(folder), applied)]


# The session holds this lock over all transactions. Polled: a session that blocks in pg_advisory_lock holds a snapshot, for which
# CREATE INDEX CONCURRENTLY of the runner that has the lock waits: a deadlock.
def _lock(connection: psycopg.Connection, wait_s: float) -> None:
    limit = time.monotonic() + wait_s
    while True:
        row = connection.execute("select pg_try_advisory_lock(%s)", (LOCK,)).fetchone()
        if row and row[0]:
            return
        if time.monotonic() > limit:
            raise MigrationRefused(f"another runner has been migrating this database for {wait_s:.0f} s: wait for it, then run again")
        time.sleep(0.1)


_LEDGER = """
create table if not exists public.schema_migrations (
  number text primary key,
  name text not null,
  digest text not null,
  applied_at timestamptz not null default now(),
  took_ms int not null
);
revoke insert, update, delete on public.schema_migrations from timepoint_app;
"""


def _applied(connection: psycopg.Connection) -> dict[str, tuple[str, str]]:
    return {
        number: (name, digest) for number, name, digest in connection.execute("select number, name, digest from public.schema_migrations")
    }


def _unapplied(files: list[Migration], applied: dict[str, tuple[str, str]]) -> list[Migration]:
    """The files to apply, in order, after the two refusals. An applied number without a file is a newer release's: left alone."""
    newest = max(applied, default="")
    waiting = []
    for file in files:
        if file.number not in applied:
            if file.number < newest:
                raise MigrationRefused(f"{file.name} is older than {applied[newest][0]}, which is applied: give it the next free number")
            waiting.append(file)
        elif applied[file.number][1] != file.digest:
            raise MigrationRefused(f"{file.name} was changed after it had been applied: undo that and write the change as a new file")
    return waiting


def _apply(connection: psycopg.Connection, file: Migration) -> int:
    """Runs one file and enters it in the ledger. Returns milliseconds."""
    began = time.monotonic()

    def enter() -> int:
        took_ms = int((time.monotonic() - began) * 1000)
        connection.execute(
            "insert into public.schema_migrations (number, name, digest, took_ms) values (%s, %s, %s, %s)",
            (file.number, file.name, file.digest, took_ms),
        )
        return took_ms

    try:
        if not file.in_transaction:
            for statement in _NEXT.split(file.text):
                connection.execute(statement.encode())
            return enter()
        with connection.transaction():
            connection.execute(file.text.encode())
            return enter()
    except psycopg.Error as fault:
        fault.add_note(f"in migrations/{file.name}{_line_of(fault, file)}")
        raise


def _line_of(fault: psycopg.Error, file: Migration) -> str:
    position = fault.diag.statement_position
    if not position or not file.in_transaction:
        return ""
    return f", line {file.text.count(chr(10), 0, int(position)) + 1}"


def _make_roles(connection: psycopg.Connection) -> None:
    """Owner, application and reader, and the right of each on what the owner makes later. Idempotent."""
    roles = ((OWNER, "nologin"), (APPLICATION, "login"), (READER, "login"))
    there = {name for (name,) in connection.execute("select rolname from pg_roles")}
    try:
        for role, login in roles:
            if role in there:
                continue
            try:
                connection.execute(
                    sql.SQL("create role {} {} nosuperuser nocreatedb nocreaterole").format(sql.Identifier(role), sql.SQL(login))
                )
            except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                continue  # roles are the whole server's: a runner on another database was faster
        for role in (OWNER, APPLICATION):  # the application too: a single DSN can then serve as it, by `set role`
            row = connection.execute("select pg_has_role(current_user, %s, 'member')", (role,)).fetchone()
            if not (row and row[0]):
                connection.execute(sql.SQL("grant {} to current_user").format(sql.Identifier(role)))
        row = connection.execute(
            "select has_database_privilege(%s, current_database(), 'create') and has_schema_privilege(%s, 'public', 'create')",
            (OWNER, OWNER),
        ).fetchone()
        if not (row and row[0]):
            connection.execute(_ROOM)
        connection.execute(_GRANTS)
    except psycopg.errors.InsufficientPrivilege as fault:
        user = connection.info.user
        raise MigrationRefused(
            f"{user} may not prepare this database ({fault.diag.message_primary}). Run `timepoint migrate` with DATABASE_OWNER_URL of a"
            f" superuser, or have one run: create role {OWNER}; create role {APPLICATION} login; create role {READER} login;"
            f" grant {OWNER}, {APPLICATION} to {user}; create extension postgis;"
        ) from fault


_ROOM = """
do $$ begin execute format('grant create, connect, temporary on database %I to timepoint_owner', current_database()); end $$;
grant usage, create on schema public to timepoint_owner;
"""

_GRANTS = """
grant usage on schema public to timepoint_app, timepoint_read;
alter default privileges for role timepoint_owner grant usage on schemas to timepoint_app, timepoint_read;
alter default privileges for role timepoint_owner grant select, insert, update, delete on tables to timepoint_app;
alter default privileges for role timepoint_owner grant usage, select on sequences to timepoint_app;
alter default privileges for role timepoint_owner grant select on tables to timepoint_read;
"""


def _make_extensions(connection: psycopg.Connection) -> None:
    """PostGIS, which only a superuser may create. (Trusted extensions, TimescaleDB among them, are for the files to create.)"""
    if connection.execute("select 1 from pg_extension where extname = 'postgis'").fetchone() is None:
        try:
            connection.execute("create extension if not exists postgis")
        except psycopg.errors.InsufficientPrivilege as fault:
            raise MigrationRefused("PostGIS is missing: have a superuser run `create extension postgis` in this database") from fault
        except psycopg.errors.FeatureNotSupported as fault:
            raise MigrationRefused(f"this PostgreSQL server has no PostGIS: {fault.diag.message_primary}") from fault
