"""No statement of the way from a free seat to a ticket reads a table whole, though its plan was made while all the tables were empty.

PostgreSQL plans our functions once a connection and keeps the plans; what it chose for an empty table costs more with every booking until
somebody analyses it. auto_explain says what it chose.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from deploy.servers import PostgresServer
from tests.paying_world import PayingWorld

GROWING = {
    "booking", "seat_claim", "passenger", "reference", "ticket", "payment", "refund", "fact", "ledger", "idempotency", "outbox", "audit",
    "trip_instance", "seat_map", "charge",
}  # fmt: skip
SETTINGS = {"log_min_duration": "0", "log_nested_statements": "on", "log_format": "json"}


def explain_everything(server: PostgresServer) -> None:
    """For connections from now on, into the server's log."""
    with psycopg.connect(server.admin_url, autocommit=True) as admin:
        try:
            admin.execute("load 'auto_explain'")
        except psycopg.errors.UndefinedFile:
            pytest.skip("this PostgreSQL has no auto_explain")
        admin.execute("alter role timepoint_app set session_preload_libraries = 'auto_explain'")
        for name, value in SETTINGS.items():
            admin.execute(sql.SQL("alter system set {} = {}").format(sql.Identifier("auto_explain", name), sql.Literal(value)))
        admin.execute("select pg_reload_conf()")


def plans(log: str) -> Iterator[dict[str, Any]]:
    for found in re.finditer(r"plan:\n\t(\{.*?\n\t\})\n", log, re.S):
        yield json.loads(found[1].replace("\n\t", "\n"))


def whole_tables(node: dict[str, Any]) -> list[str]:
    """Growing tables that this plan reads without a key."""
    here = node.get("Relation Name", "")
    scan = node["Node Type"] in ("Seq Scan", "Index Scan", "Index Only Scan") and "Index Cond" not in node
    return [here for _ in range(scan and here in GROWING)] + [name for child in node.get("Plans", ()) for name in whole_tables(child)]


async def test_from_a_free_seat_to_a_ticket_and_back_everything_is_found_by_a_key(own_postgres: PostgresServer) -> None:
    explain_everything(own_postgres)
    world = await PayingWorld.make(own_postgres.url)
    with psycopg.connect(own_postgres.admin_url, autocommit=True) as admin:
        admin.execute("vacuum analyze")  # now the planner knows that they are empty
    offset = own_postgres.log.stat().st_size  # what sets the world up may read what it likes
    try:
        held = await world.hold("1A", "1B")
        await world.desk.extend(world.guest(held.token), held.held.booking)
        await world.desk.release(world.guest(held.token), world.key(), held.held.booking)
        shown, _ = await world.paid("2A", "2B")
        await world.refund(shown, 100)
        await world.hold("3A", who=world.customer())
    finally:
        await world.close()
    log = own_postgres.log.read_text(errors="replace")[offset:]
    seen = list(plans(log))
    assert len(seen) > 60 and any("seat_leg_sold_once" in json.dumps(plan) for plan in seen)
    wrong = {(re.sub(r"\s+", " ", plan["Query Text"])[:200], *found) for plan in seen if (found := whole_tables(plan["Plan"]))}
    assert not wrong, "\n".join(map(str, sorted(wrong)))
