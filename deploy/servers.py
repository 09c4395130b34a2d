"""Private PostgreSQL, Redis and Mosquitto for one folder: for `make run`, where the data is kept, and for tests, where it is thrown away.

Promised: never as root (a root caller's servers run as the checkout's owner, else `postgres`, else `nobody`), never on a standard port
(PostgreSQL and Redis listen on Unix sockets only, Mosquitto on an odd loopback port), every wait has a limit, and a server that does not
come up is reported with the last lines of its log. Nothing of the machine outside the given folder is touched, apart from a socket folder
under /tmp where the folder's own path is too long for a socket.

Refused: a data folder of another PostgreSQL major version, and a folder that is neither empty nor ours: never initialised again.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import errno
import glob
import hashlib
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

SOCKET_PATH_MAX = 107  # bytes of sockaddr_un.sun_path without its closing zero, Linux; macOS has 103
POSTGRES_SOCKET = ".s.PGSQL.5432"  # the port only names the socket: nothing listens on TCP
OLDEST_POSTGRES = 14
PORTS = range(18_700, 28_700, 7)  # odd ones for brokers, well below 32768 where the kernel's own client ports begin


class NotStarted(RuntimeError):
    """A server is missing, refused its folder or did not answer in time. The text says what to do."""


# Who the servers run as ------------------------------------------------------------------------------------------------------------------


def service_user(checkout: Path | None = None) -> pwd.struct_passwd:
    """The account of the servers: ourselves, or for a root caller who called sudo, who owns the checkout, `postgres` or `nobody`."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    owner = (checkout or Path(__file__).resolve().parent.parent).stat().st_uid
    for uid in (int(os.environ.get("SUDO_UID", "0")), owner):
        with contextlib.suppress(KeyError):
            if uid:
                return pwd.getpwuid(uid)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise NotStarted("run as a normal user: PostgreSQL refuses to run as root and there is no `postgres` or `nobody` account to run it as")


def as_service(user: pwd.struct_passwd) -> dict[str, Any]:
    """Keyword arguments of `subprocess` that make a child run as `user` with a plain environment (a broken LC_ALL stops initdb)."""
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "LANG": "C", "TZ": "UTC", "HOME": user.pw_dir}
    given: dict[str, Any] = {"env": env, "umask": 0o077}
    if os.geteuid() == 0:
        given |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return given


def reachable(folder: Path, user: pwd.struct_passwd) -> bool:
    """Whether `user` may walk into `folder` (a checkout under a 0700 home is out of reach of a root caller's servers)."""
    return subprocess.run(["test", "-x", str(folder)], cwd="/", check=False, **as_service(user)).returncode == 0


def own_folder(folder: Path, user: pwd.struct_passwd) -> Path:
    """`folder`, made if need be, 0700 and belonging to `user`; folders above it that had to be made are walkable. Returns it."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    for made in reversed(missing):
        made.mkdir(mode=0o755, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(made, user.pw_uid, user.pw_gid)
    if os.geteuid() == 0 and folder.stat().st_uid != user.pw_uid:
        os.chown(folder, user.pw_uid, user.pw_gid)
    folder.chmod(0o700)
    return folder


def throw_away_folder(checkout: Path | None = None) -> Path:
    """A fresh short folder that the servers may use. pytest's tmp_path will not do: it is 0700 of the caller, and long."""
    user = service_user(checkout)
    for base in (os.environ.get("TIMEPOINT_TMP"), tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if base and reachable(Path(base), user) and len(base) < 60:
            return own_folder(Path(tempfile.mkdtemp(prefix="timepoint-", dir=base)), user)
    raise NotStarted("no temporary folder that the servers can reach: set TIMEPOINT_TMP")


def socket_folder(folder: Path, user: pwd.struct_passwd) -> Path:
    """Where the sockets of a server in `folder` stand: in it, or under /tmp where the path would pass the limit of 107 bytes."""
    inside = folder / "run"
    limit = SOCKET_PATH_MAX if os.uname().sysname == "Linux" else 103
    if len(os.fsencode(inside / POSTGRES_SOCKET)) > limit:
        tag = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
        inside = Path("/tmp") / f"timepoint-{user.pw_uid}-{tag}"
        if inside.exists() and inside.stat().st_uid != user.pw_uid:
            raise NotStarted(f"{inside} belongs to somebody else: remove it or move the checkout to a shorter path")
    return own_folder(inside, user)


def free_port(preferred: int | None = None) -> int:
    """A loopback TCP port that nobody listens on: `preferred` if free, else one of `PORTS`.

    The search begins anywhere: whoever asks now listens in a while, and two who ask meanwhile should not hear the same answer.
    """
    first = random.randrange(len(PORTS))
    for port in [*([preferred] if preferred else []), *PORTS[first:], *PORTS[:first]]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as fault:
                if fault.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
            else:
                return port
    raise NotStarted(f"no free port between {PORTS.start} and {PORTS.stop}")


# One server ------------------------------------------------------------------------------------------------------------------------------


class Server:
    """One server in one folder: start, stop (its own clean way), kill (as a crash would), start again and find the data.

    A server that we started gets a signal when we die (Linux: parent-death signal through setpriv), so that nothing is left running; one
    that is running all the same when `start` is called is adopted, so a killed supervisor costs nothing.
    """

    title = "server"
    name = "server"  # in run/info.json
    stop_signal = signal.SIGTERM
    start_limit_s = 30.0
    stop_limit_s = 30.0

    def __init__(self, folder: Path, *, throw_away: bool = True) -> None:
        self.user = service_user()
        self.folder = own_folder(folder, self.user)
        self.sockets = socket_folder(folder, self.user)
        self.throw_away = throw_away  # no fsync where nobody will miss the data
        self.log = folder / "server.log"
        self.pid_file = folder / "server.pid"
        self.adopted = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        raise NotImplementedError

    @property
    def pid(self) -> int | None:
        """The running server's process id, None when it does not run."""
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        return self.found_pid()

    def command(self) -> list[str]:
        """What to run; writes the configuration it names."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether the server takes requests now."""
        raise NotImplementedError

    def found_pid(self) -> int | None:
        """Process id of a server that an earlier run of ours left behind in this folder. Redis writes its socket over its command line."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(self.pid_file.read_text().split()[0])
            if runs(pid, str(self.folder), str(self.sockets)):
                return pid
        return None

    def start(self) -> Server:
        """Starts it, or adopts it if it runs already; returns when it answers. Raises `NotStarted` with the end of its log."""
        self.launch()
        return self.wait()

    def launch(self) -> None:
        """The first half of `start`: returns as soon as its process is there, for several that come up side by side. On the thread that
        lives as long as we do: the leash hangs on it."""
        if self.pid is not None:
            with contextlib.suppress(NotStarted):
                self._await_answer(lambda: self.pid is not None, "stopped while it was being adopted")
                self.adopted = self._process is None
                return
        self.adopted = False
        argv = self.command()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*leash(self.stop_signal), *argv],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is for the supervisor, which stops us in order
                **as_service(self.user),
            )
        if self.pid_file.parent == self.folder:
            self.give(self.pid_file.name, f"{self._process.pid}\n")

    def wait(self) -> Server:
        """The second half: returns when it answers."""
        self._await_answer(lambda: self.adopted or (self._process is not None and self._process.poll() is None), "ended at once")
        return self

    def _await_answer(self, still_there: Any, fault: str) -> None:
        limit = time.monotonic() + self.start_limit_s
        while not self.answers():
            if not still_there():
                raise NotStarted(f"{self.title} {fault}:\n{self.last_lines()}")
            if time.monotonic() > limit:
                raise NotStarted(f"{self.title} did not answer within {self.start_limit_s:.0f} s:\n{self.last_lines()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Its own clean stop; after `stop_limit_s` the hard one. Does nothing to a server that is not running."""
        pid = self.pid
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, self.stop_signal)
        if not self._gone(pid, self.stop_limit_s):
            self.kill()
        self._forget()

    def kill(self) -> None:
        """SIGKILL to it and its children: the way a power cut looks from outside."""
        pid = self.pid
        if pid is None:
            return
        for victim in [pid, *children(pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        if not self._gone(pid, 10):
            raise NotStarted(f"{self.title}, process {pid}, survived SIGKILL for 10 s")
        self._forget()

    def freeze(self) -> None:
        """SIGSTOP: there, but silent. `thaw` ends it."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        if self.pid is not None:
            os.kill(self.pid, signal.SIGCONT)

    def _gone(self, pid: int, limit_s: float) -> bool:
        limit = time.monotonic() + limit_s
        while time.monotonic() < limit:
            if self._process is not None and self._process.pid == pid:
                if self._process.poll() is not None:
                    return True
            elif not runs(pid):
                return True
            time.sleep(0.01)
        return False

    def _forget(self) -> None:
        self._process = None
        if self.pid_file.parent == self.folder:
            self.pid_file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Stops it for good and deletes its folders. Only for throw-away instances."""
        if not self.throw_away:
            raise NotStarted(f"{self.folder} is kept: not deleted")
        self.kill()
        for folder in (self.folder, self.sockets):
            shutil.rmtree(folder, ignore_errors=True)

    def give(self, name: str, text: str) -> Path:
        """Writes a file of the server (0600, its own account's) whole or not at all. Returns its path."""
        path, draft = self.folder / name, self.folder / f".{name}.new"
        draft.write_text(text, encoding="utf-8")
        draft.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(draft, self.user.pw_uid, self.user.pw_gid)
        draft.replace(path)
        return path

    def last_lines(self) -> str:
        return last_lines(self.log)


class PostgresServer(Server):
    """PostgreSQL >= 14 with PostGIS on a Unix socket. Trust inside its 0700 socket folder; superuser `postgres`, database `timepoint`."""

    title, name = "PostgreSQL", "postgres"
    stop_signal = signal.SIGINT  # fast: open sessions are ended, data is written

    def __init__(self, folder: Path, *, throw_away: bool = True) -> None:
        super().__init__(folder, throw_away=throw_away)
        self.bin = find_postgres()
        self.data = folder / "data"
        self.pid_file = self.data / "postmaster.pid"  # its own

    @property
    def url(self) -> str:
        """DSN of the application role on database `timepoint`."""
        return self.dsn()

    def dsn(self, database: str = "timepoint", user: str = "timepoint_app") -> str:
        return f"postgresql://{user}@/{quote(database)}?host={quote(str(self.sockets), safe='/')}&port=5432"

    @property
    def admin_url(self) -> str:
        """DSN of the superuser on database `timepoint`: migrations and tests of roles only."""
        return self.dsn(user="postgres")

    def command(self) -> list[str]:
        self._refuse_strangers()
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        return [str(self.bin / "postgres"), "-D", str(self.data), "-c", f"config_file={self.give('postgresql.conf', self._settings())}"]

    def _refuse_strangers(self) -> None:
        version = self.data / "PG_VERSION"
        if version.exists():
            have = version.read_text().strip()
            ours = str(postgres_major(self.bin))
            if have != ours:
                raise NotStarted(
                    f"{self.data} was made by PostgreSQL {have}, found is {ours} ({self.bin}). Set PG_BIN to the folder of a PostgreSQL"
                    f" {have}, or move that folder away to begin with an empty database."
                )
        elif self.data.exists() and any(self.data.iterdir()):
            raise NotStarted(f"{self.data} is neither empty nor a database: move it away")

    def _initialise(self) -> None:
        # --no-sync: a power cut in the first half minute would ask for a new, still empty database; the sync costs 1 to 6 s
        argv = [str(self.bin / "initdb"), "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        made = subprocess.run(argv, cwd=self.folder, capture_output=True, text=True, check=False, timeout=120, **as_service(self.user))
        if made.returncode:
            shutil.rmtree(self.data, ignore_errors=True)
            raise NotStarted(f"initdb failed:\n{made.stdout[-500:]}{made.stderr[-1500:]}")

    def _settings(self) -> str:
        preload = "timescaledb" if has_extension(self.bin, "timescaledb") else ""
        lines = {
            "data_directory": f"'{self.data}'",
            "hba_file": f"'{self.data}/pg_hba.conf'",
            "ident_file": f"'{self.data}/pg_ident.conf'",
            "listen_addresses": "''",
            "port": "5432",
            "unix_socket_directories": f"'{self.sockets}'",
            "unix_socket_permissions": "0700",
            "shared_preload_libraries": f"'{preload}'",
            "max_connections": "120",
            "shared_buffers": "64MB" if self.throw_away else "256MB",
            "max_wal_size": "2GB",
            "jit": "off",  # every statement of ours is short: compiling one costs more than it saves
            "timezone": "'UTC'",
            "log_timezone": "'UTC'",
            "log_min_messages": "warning",
        }
        if preload:
            lines["timescaledb.telemetry_level"] = "off"
        if self.throw_away:
            lines |= {"fsync": "off", "synchronous_commit": "on", "full_page_writes": "off", "autovacuum_naptime": "1h"}
        if shared_memory_is_small():
            lines["dynamic_shared_memory_type"] = "mmap"
        return "".join(f"{name} = {value}\n" for name, value in lines.items())

    def answers(self) -> bool:
        argv = [str(self.bin / "pg_isready"), "-q", "-h", str(self.sockets), "-p", "5432", "-t", "2"]
        return subprocess.run(argv, check=False, timeout=10, env={"LC_ALL": "C"}).returncode == 0

    def create_database(self, name: str = "timepoint", *, template: str | None = None) -> None:
        """An empty database, or a copy of `template` (tens of milliseconds); nothing if it is there already."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.dsn("postgres", "postgres"), autocommit=True) as connection:
            if connection.execute("select 1 from pg_database where datname = %s", (name,)).fetchone():
                return
            source = sql.SQL(" template {}").format(sql.Identifier(template)) if template else sql.SQL("")
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)) + source)

    def drop_database(self, name: str) -> None:
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.dsn("postgres", "postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


class RedisServer(Server):
    """Redis (or Valkey) on a Unix socket, append-only file on: `always` keeps every answered write, `everysec` may lose about a second."""

    title, name = "Redis", "redis"

    def __init__(self, folder: Path, *, throw_away: bool = True, appendfsync: str = "always", maxmemory: str = "1gb") -> None:
        super().__init__(folder, throw_away=throw_away)
        self.appendfsync = appendfsync
        self.maxmemory = maxmemory
        self.socket = self.sockets / "redis.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}?db=0"

    def command(self) -> list[str]:
        own_folder(self.folder / "data", self.user)
        settings = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder / "data"),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": self.appendfsync,
            "save": '""',  # the append-only file is the record; a snapshot fork beside it costs latency and adds nothing
            "maxmemory": self.maxmemory,
            "maxmemory-policy": "noeviction",
            "loglevel": "notice",
        }
        conf = self.give("redis.conf", "".join(f"{name} {value}\n" for name, value in settings.items()))
        return [*find_redis(self.folder), str(conf)]

    def answers(self) -> bool:
        return self._ask(b"PING\r\n").startswith(b"+PONG")  # -LOADING while the file is being read

    def _ask(self, request: bytes) -> bytes:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as line:
            line.settimeout(2)
            line.connect(str(self.socket))
            line.sendall(request)
            return line.recv(65536)
        return b""


class MosquittoServer(Server):
    """Mosquitto on a loopback port. What the broker acknowledged is on disk within a second; queues are bounded and stated.

    With `passwords` and `acl` in its folder (see `give`) every client has to log in; without them anybody on this machine may (tests).
    """

    title, name = "Mosquitto", "mosquitto"

    def __init__(self, folder: Path, *, throw_away: bool = True, port: int | None = None) -> None:
        super().__init__(folder, throw_away=throw_away)
        remembered = folder / "port"
        if port is None and remembered.exists():
            port = int(remembered.read_text())
        self.port = port or 0

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        if self.found_pid() is None:
            self.port = free_port(self.port or None)
        self.give("port", f"{self.port}\n")
        own_folder(self.folder / "data", self.user)
        lines = [
            "per_listener_settings false",
            f"listener {self.port} 127.0.0.1",
            "persistence true",
            f"persistence_location {self.folder}/data/",
            "autosave_on_changes true",
            "autosave_interval 1",  # with autosave_on_changes: written after every change
            "max_queued_messages 100000",  # of one client that is away: our reader, for 100 s at 1,000 fixes/s
            "max_queued_bytes 67108864",
            "max_inflight_messages 1000",
            "max_packet_size 65536",
            "persistent_client_expiration 14d",
            "log_dest stderr",
            "log_type error",
            "log_type warning",
            "log_type notice",
            "connection_messages false",
        ]
        passwords, acl = self.folder / "passwords", self.folder / "acl"
        lines.append(f"allow_anonymous {'false' if passwords.exists() else 'true'}")
        lines += [f"password_file {passwords}"] if passwords.exists() else []
        lines += [f"acl_file {acl}"] if acl.exists() else []
        return [find_mosquitto(), "-c", str(self.give("mosquitto.conf", "\n".join(lines) + "\n"))]

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def reload(self) -> None:
        """Reads `passwords` and `acl` again, connections stay."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGHUP)


# What is on this machine -----------------------------------------------------------------------------------------------------------------


def find_postgres() -> Path:
    """Folder of the newest PostgreSQL >= 14 that has PostGIS (`PG_BIN` overrules)."""
    if given := os.environ.get("PG_BIN"):
        return Path(given)
    places = [
        "/usr/lib/postgresql/*/bin",
        "/usr/pgsql-*/bin",
        "/opt/homebrew/opt/postgresql@*/bin",
        "/usr/local/opt/postgresql@*/bin",
        "/Applications/Postgres.app/Contents/Versions/*/bin",
    ]
    found = [Path(p) for place in places for p in glob.glob(place)]
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve().parent)
    usable = [b for b in found if (b / "initdb").exists() and (b / "postgres").exists()]
    usable = [b for b in usable if has_extension(b, "postgis") and postgres_major(b) >= OLDEST_POSTGRES]
    if not usable:
        raise NotStarted(
            f"no PostgreSQL >= {OLDEST_POSTGRES} with PostGIS found: `make setup` installs one (macOS: brew install postgresql@17 postgis)"
        )
    return max(usable, key=postgres_major)


def postgres_major(folder: Path) -> int:
    text = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    found = re.search(r"(\d+)(?:\.|devel|beta|rc|\s|$)", text)
    return int(found[1]) if found else 0


def has_extension(folder: Path, name: str) -> bool:
    places = [
        Path("/usr/share/postgresql") / folder.parent.name / "extension",
        folder.parent / "share/extension",
        folder.parent / "share/postgresql/extension",
        *folder.parent.glob("share/postgresql@*/extension"),
    ]
    return any((place / f"{name}.control").exists() for place in places)


def find_redis(folder: Path | None) -> list[str]:
    """Redis or Valkey. Debian's redis-tools alone will do: its redis-check-rdb is the server's own binary, which looks at its name, so it
    gets the right one by a link in `folder` (None: only look)."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name, path=_with_sbin()):
            return [found]
    if same_binary := shutil.which("redis-check-rdb", path=_with_sbin()):
        link = (folder or Path("/nonexistent")) / "redis-server"
        if folder and not link.is_symlink():
            link.symlink_to(os.path.realpath(same_binary))
        return [str(link)]
    raise NotStarted("no Redis found: `make setup` installs one (macOS: brew install redis)")


def find_mosquitto() -> str:
    found = shutil.which("mosquitto", path=_with_sbin())
    if not found:
        raise NotStarted("no Mosquitto found: `make setup` installs one (macOS: brew install mosquitto)")
    return found


def _with_sbin() -> str:
    """Debian keeps mosquitto in /usr/sbin, which is not on a normal user's PATH."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"])


def shared_memory_is_small() -> bool:
    """Containers often give /dev/shm 64 MB, which PostgreSQL's parallel plans pass."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage("/dev/shm").free < 128 * 1024 * 1024
    return True


# Processes -------------------------------------------------------------------------------------------------------------------------------


def leash(sig: signal.Signals) -> list[str]:
    """Prefix that makes the kernel send `sig` to a child when the thread that started it dies (Linux; elsewhere nothing)."""
    setpriv = shutil.which("setpriv") if ctypes.util.find_library("c") and os.uname().sysname == "Linux" else None
    return [setpriv, "--pdeathsig", sig.name.removeprefix("SIG"), "--"] if setpriv else []


def runs(pid: int, *marks: str) -> bool:
    """Whether process `pid` is alive, no zombie, and has one of `marks` in its command line: a reused number is not taken for ours."""
    if Path("/proc/self").exists():
        try:
            zombie = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if zombie and len(os.listdir(f"/proc/{pid}/task")) == 1:  # Redis: its first thread may end before the others
                return False
            shown = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return False
    else:
        shown = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False, timeout=10).stdout
        if not shown.strip():
            return False
    return not marks or any(mark in shown for mark in marks)


def last_lines(log: Path, count: int = 15) -> str:
    """The end of a log, indented, for a message about whoever wrote it."""
    with contextlib.suppress(OSError):
        return "\n".join("    " + line for line in log.read_text(errors="replace").splitlines()[-count:])
    return "    (no log)"


def children(pid: int) -> list[int]:
    """Direct children (PostgreSQL's backends are their own session leaders, so a signal to the group would miss them)."""
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
