"""What the product promises of speed, row by row: the data of `python -m bench.bars`.

A row that needs minutes of its own, or another checkout, is here too and names its command: it is never taken for held.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec


class Load(msgspec.Struct, frozen=True):
    """A scenario, all of them one after the other on the same product."""

    scenario: str
    rate: float
    options: dict[str, Any] = {}
    seconds: int = 10
    warm_up: int = 4
    processes: int = 1  # generators


class Bench(msgspec.Struct, frozen=True):
    """A bench of its own; `{feed}` stands for the feed given, and without one it is left out."""

    argv: tuple[str, ...]


class Elsewhere(msgspec.Struct, frozen=True):
    """What is not measured here: the command that does, and why it is not run."""

    command: str
    why: str


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One promise. `ask`: of a load the figure's name (as thresholds have it), of a bench a pattern whose group is the figure."""

    name: str
    what: str
    source: str
    ask: str = ""
    unit: str
    sign: str = "<="
    first: float | None = None
    then: float | None = None
    floor: str = ""  # pattern of the figure that it is divided by, of the same run; a bar in floors is a row of its own, in x
    floor_is: str = "its floor"
    peer: str = ""  # what stands beside it
    published: float | None = None  # its figure (the better end) where the bars were set, divided by where there is no floor in the run
    over: str = ""  # a load that is divided by: the same figure of it
    lacks: str = ""  # pattern of why a bench has no figure here
    by_cpu: bool = False  # the machine counts


def city(rate: float, watchers: int, **more: Any) -> Load:
    quiet = {"watchers": watchers, "maps": 0, "fleets": 5 if watchers else 0, "reads": 0.0, "bookings": 0.0}
    return Load("mixed-city", rate, quiet | more)


SOURCES: Final[dict[str, Load | Bench | Elsewhere]] = {
    "batches": Load("ingest-batch", 2000.0, {"batch": 100, "buses": 1000}),
    "singles": city(1000.0, 0),
    "reads": Load("reads", 500.0),
    "readers": Load("slow-client", 20.0, {"watchers": 800, "stalled": 0}, seconds=12),
    "stalled": Load("slow-client", 20.0, {"watchers": 800, "stalled": 200}, seconds=12),
    "broadcasts": Load("fanout", 2.0, {"watchers": 5000, "reads": 50.0}, processes=2),
    "city of 2,000": city(2000.0, 1000),
    "city of 5,000": city(5000.0, 2000),
    "door": Bench(("bench.door", "--seconds", "5")),
    "fanout": Bench(("bench.peers", "fanout", "--peer", "nchan", "--peer", "epoll")),
    "idle": Bench(("bench.idle_sockets", "--sockets", "3000")),
    "rush": Bench(("bench.seat_rush", "--part", "picks", "--part", "holds", "--seconds", "6")),
    "picks": Bench(("bench.picks",)),
    "booking": Bench(("bench.booking", "--seconds", "6")),
    "history": Bench(("bench.history", "--rows", "200000")),
    "import": Bench(("bench.feed_import", "{feed}", "--repeat", "1")),
    "start": Bench(("bench.start",)),
    "tests": Elsewhere("time make test", "it takes longer than all of this, and keeps no record of how long"),
    "page": Bench(("bench.page",)),
}

NCHAN, C_FLOOR = r"Nchan \(.*\)\s+[\d.]+\s+", r"C epoll floor \(.*\)\s+[\d.]+\s+"
NO_NCHAN, NO_FLOOR = r"nchan is missing: (.*)", r"epoll is missing: (.*)"

ROWS: Final = (
    Row(name="path batch", what="whole path CPU of the worker per fix, batches of 100", source="batches",
        ask="cost.tracked.worker-0", unit="us", first=80, then=40, peer="FastAPI's bare accept", published=6.9, by_cpu=True),
    Row(name="path single", what="whole path CPU of the worker per fix, single requests", source="singles",
        ask="cost.tracked.worker-0", unit="us", first=150, then=80, peer="FastAPI's bare accept", published=111, by_cpu=True),
    Row(name="reads cached", what="API reads at 500/s, from memory: p95", source="reads", ask="cached.p95", unit="ms", first=20, then=20,
        peer="seeds", published=50),
    Row(name="reads uncached", what="API reads at 500/s, the others: p95", source="reads", ask="uncached.p95", unit="ms", first=100, then=100,
        peer="seeds", published=200),
    Row(name="slow others", what="200 of 1,000 readers stall: the others' p99 / with none stalled", source="stalled", ask="fanout.p99", over="readers",
        unit="x", first=1.1, then=1.1, peer="the same with none stalled"),
    Row(name="slow memory", what="memory of a stalled reader", source="stalled", ask="figure.stalled_kb", unit="KB", first=256, then=256),
    Row(name="broadcast", what="HTTP p99 on the same worker during 5,000-wide broadcasts", source="broadcasts", ask="read.p99", unit="ms", then=5,
        peer="without slices", published=46),
    Row(name="age 2000", what="fix to watcher, 2,000 buses at 1 Hz, 1,000 watchers, 5 of the fleet: p99", source="city of 2,000", ask="age.p99",
        unit="ms", first=150, then=100, peer="seeds", published=200),
    Row(name="age 5000 p50", what="fix to watcher, 5,000 buses at 1 Hz, 2,000 watchers, 5 of the fleet: p50", source="city of 5,000", ask="age.p50",
        unit="ms", then=25, peer="seeds", published=200),
    Row(name="age 5000 p99", what="the same: p99", source="city of 5,000", ask="age.p99", unit="ms", then=100, peer="seeds", published=200),
    Row(name="door post", what="device POST, accepted and authenticated, up to the XADD", source="door", unit="us", then=20, by_cpu=True,
        ask=r"CPU us a fix by post, product\s+([\d.]+)", floor=r"CPU us a fix by post, floor\s+([\d.]+)", peer="Litestar 73-100 us published"),
    Row(name="door socket", what="socket ingest, one fix a frame: floors", source="door", unit="x", then=1.13, peer="an asyncio protocol, same run",
        ask=r"by socket, floor.*\n\s+in floors\s+([\d.]+)"),
    Row(name="fan-out", what="fan-out, product path, CPU per delivery", source="fanout", unit="us", first=9, by_cpu=True,
        ask=r"Timepoint \(this checkout\)\s+([\d.]+)", floor=C_FLOOR + r"([\d.]+)", floor_is="the C epoll floor"),
    Row(name="fan-out Nchan", what="fan-out, product path, in what Nchan takes", source="fanout", unit="x", then=1, peer="Nchan, same run",
        ask=NCHAN + r"[\d.]+\s+([\d.]+)", lacks=NO_NCHAN),
    Row(name="fan-out C", what="fan-out, product path, in what the C epoll floor takes", source="fanout", unit="x", then=1.4,
        peer="the C epoll floor, same run", ask=C_FLOOR + r"[\d.]+\s+([\d.]+)", lacks=NO_FLOOR),
    Row(name="fan-out ten", what="ten buses a tick for each socket, an update in what Nchan takes", source="fanout", unit="x", then=0.15,
        peer="Nchan, same run", ask=NCHAN + r"[\d.]+\s+[\d.]+\s+([\d.]+)", lacks=NO_NCHAN),
    Row(name="idle memory", what="idle socket, listening to one bus", source="idle", ask=r"KB a socket, listening to one bus\s+([\d.]+)", unit="KB",
        first=16, then=4, peer="Nchan", published=10.3),
    Row(name="idle handshake", what="handshake", source="idle", ask=r"CPU us a handshake, connected\s+([\d.]+)", unit="us", first=300, then=40,
        floor=r"CPU us a handshake, floor\s+([\d.]+)", peer="Nchan 25 us published", by_cpu=True),
    Row(name="seats pick", what="three-seat picks through HTTP", source="rush", ask=r"three-seat picks /s, 201\s+([\d.]+)", unit="/s", sign=">=",
        first=2000, then=4000, by_cpu=True),
    Row(name="seats pick Redis", what="three-seat picks straight through Redis", source="picks", ask=r"three-seat picks /s, straight\s+([\d.]+)",
        unit="/s", sign=">=", then=15_000, by_cpu=True),
    Row(name="seats hold", what="holds granted on one hot trip, each let go", source="rush", ask=r"holds granted /s[^\d]*201, each let go\s+([\d.]+)",
        unit="/s", sign=">=", first=500, then=1500, peer="pretix, seat into cart", published=16, by_cpu=True),
    Row(name="seats hold p95", what="a hold at 500/s: p95", source="rush", ask=r"p50 / p95 ms at \d+/s\s+[\d.]+ / ([\d.]+)", unit="ms", first=50),
    Row(name="booking rate", what="hold to confirmed, four calls", source="booking", ask=r"bookings confirmed /s\s+([\d.]+)", unit="/s", sign=">=",
        first=200, then=450, peer="pretix, order with seat", published=6.6, by_cpu=True),
    Row(name="booking p95", what="the slowest of its calls: p95", source="booking", ask=r"worst p95 of a call at \d+/s, ms\s+([\d.]+)", unit="ms",
        first=200),
    Row(name="history write", what="history, idempotent", source="history", ask=r"new rows\s+([\d,]+) rows/s", unit="/s", sign=">=", first=40_000,
        then=80_000, by_cpu=True),
    Row(name="history day", what="a day of one bus", source="history", ask=r"a day of one bus\s+([\d.]+) ms", unit="ms", first=50, then=50),
    Row(name="import", what="import of the feed given (the bar is for 82,644 stop times)", source="import", ask=r"import\s+([\d.]+) s", unit="s",
        first=15, then=6, by_cpu=True),
    Row(name="start first", what="`make run`, first start where packages are installed (a fresh clone installs them before: `git clone`, `make run`)",
        source="start", ask=r"first start\s+([\d.]+) s", unit="s", first=300, then=300),
    Row(name="start second", what="`make run`, second start", source="start", ask=r"second start\s+([\d.]+) s", unit="s", first=10, then=4, by_cpu=True),
    Row(name="tests", what="`make test`", source="tests", unit="s", first=720, then=720),
    Row(name="page", what="2,000 buses drawn after the fix: p95", source="page", ask=r"drawn after the commit, p95 ms\s+([\d.]+)", unit="ms", first=200,
        then=200),
    Row(name="page errors", what="errors on the page's console", source="page", ask=r"errors on the console\s+(\d+)", unit="", first=0, then=0),
    Row(name="page requests", what="requests of the page to elsewhere", source="page", ask=r"requests elsewhere\s+(\d+)", unit="", first=0, then=0),
    Row(name="page axe", what="serious findings of axe on the page", source="page", ask=r"axe, serious\s+(\d+)", unit="", first=0, then=0,
        lacks=r"axe, serious\s+(not installed)"),
)  # fmt: skip
