"""pretix, the ticket shop with seats in Django, from PyPI: a seat into a cart, an order with a seat, through its documented API.

One gunicorn process with threads on a PostgreSQL of its own that keeps data as ours does. Its migrations take about three minutes of CPU and are made
once; every run sells an event of its own. Known traps: without Redis and Celery its tasks run in the request, which is what a small shop has, and
mails are switched off; gunicorn's sync worker closes every connection, so threads serve; `Host` must be that of its own address; with
`debug` it would keep every statement.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.peers.place import Missing, Peer, Running, folder, from_pypi, once, run, serving, some_port
from deploy.servers import NotStarted, PostgresServer

PACKAGES = ("pretix==2026.8.0", "gunicorn==27.0.1", "psycopg2-binary==2.9.13")
SEATS = 4000
CONFIG = """[pretix]
instance_name=bench
url=http://bench
datadir={where}/data
[database]
backend=postgresql
name=pretix
user=postgres
host={sockets}
port=5432
[django]
secret=a-secret-of-a-bench-that-guards-nothing-at-all
debug=off
"""
EVENT = """
import json, sys, uuid
import django
django.setup()
from datetime import timedelta
from decimal import Decimal
from django.utils.timezone import now
from django_scopes import scopes_disabled
from pretix.base.models import Event, Organizer, Seat, Team, TeamAPIToken
with scopes_disabled():
    organizer, _ = Organizer.objects.get_or_create(slug="bench", defaults={"name": "Bench"})
    event = Event.objects.create(organizer=organizer, name="Ride", slug=uuid.uuid4().hex[:12], currency="EUR", date_from=now() + timedelta(days=30),
                                 live=True, plugins="pretix.plugins.manualpayment")
    event.set_defaults()
    item = event.items.create(name="Seat", default_price=Decimal("10.00"))
    quota = event.quotas.create(name="All", size=None)
    quota.items.add(item)
    event.seat_category_mappings.create(layout_category="Seat", product=item)
    Seat.objects.bulk_create([Seat(event=event, product=item, seat_number=str(n), seat_guid=f"s{n}", sorting_rank=n) for n in range(int(sys.argv[1]))])
    team = Team.objects.create(organizer=organizer, name="bench", all_events=True, all_event_permissions=True, all_organizer_permissions=True)
    print(json.dumps({"slug": event.slug, "item": item.pk, "token": TeamAPIToken.objects.create(team=team, name="bench").token}))
"""


class Shop(NamedTuple):
    """An event on sale. `postgres`: the server beneath."""

    running: Running
    postgres: Running
    slug: str
    item: int
    token: str


class _Event(msgspec.Struct):
    slug: str
    item: int
    token: str


@contextlib.contextmanager
def shop() -> Iterator[Shop]:
    """Raises `Missing`."""
    where, python = folder("pretix"), from_pypi("pretix", *PACKAGES)
    try:
        postgres = PostgresServer(where / "postgres", throw_away=False)
        postgres.start()
    except NotStarted as fault:
        raise Missing(str(fault)) from None
    try:
        (where / "data").mkdir(exist_ok=True)
        (where / "pretix.cfg").write_text(CONFIG.format(where=where, sockets=postgres.sockets))
        (where / "event.py").write_text(EVENT)
        environ = {"PRETIX_CONFIG_FILE": str(where / "pretix.cfg"), "DJANGO_SETTINGS_MODULE": "pretix.settings"}
        migrated = where / "migrated"
        migrated.mkdir(exist_ok=True)
        once(migrated, PACKAGES[0], lambda: _migrate(postgres, python, where, environ))
        said = run([str(python), str(where / "event.py"), str(SEATS)], where, **environ).strip().splitlines()[-1]
        event = msgspec.json.decode(said, type=_Event)
        port = some_port()
        argv = [str(python.parent / "gunicorn"), "pretix.wsgi", "--workers", "1", "--threads", "8", "--worker-class", "gthread",
                "--keep-alive", "75", "--bind", f"127.0.0.1:{port}", "--timeout", "120"]  # fmt: skip
        with serving(argv, port, where=where, **environ) as running:
            yield Shop(running, Running(0, (postgres.pid or 0,)), event.slug, event.item, event.token)
    finally:
        postgres.stop()


def _migrate(postgres: PostgresServer, python: Path, where: Path, environ: dict[str, str]) -> None:
    if os.environ.get("TIMEPOINT_PEERS_SKIP_SLOW"):
        raise Missing("its migrations take minutes and TIMEPOINT_PEERS_SKIP_SLOW is set")
    postgres.create_database("pretix")
    run([str(python), "-m", "pretix", "migrate"], where, **environ)


def peer() -> Peer:
    """Its name and version; `shop` starts it."""
    from_pypi("pretix", *PACKAGES)
    return Peer("pretix", PACKAGES[0].partition("==")[2], shop)  # type: ignore[arg-type]
