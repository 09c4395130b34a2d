"""The auditor: sound books pass, and every invariant that a superuser breaks behind our back is found."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from rich.console import Console

from api.auditing import show
from deploy.servers import PostgresServer
from engine.clock import SystemClock
from engine.errors import Unavailable
from engine.office.auditor import INVARIANTS, Broken, Finding, report
from engine.store.auditor import ask, audit, purposes
from engine.store.postgres import statements
from tests.booking_world import OTHER, PARTNER, World
from tests.product import CHECKOUT

DATABASE = "audited"


async def paid(world: World, *labels: str) -> Any:
    """A booking that was paid for in cash, with its tickets."""
    shown = await world.booked(*labels, who=world.agent())
    await world.run("select pos.confirm($1, $2, 'till', 'test', 'test')", shown["lead"], world.clock.uuid7())
    return shown


async def furnish(world: World) -> dict[str, str]:
    """A desk with a bit of everything: names for what the tests break."""
    held = await world.hold("1A")
    booked = await world.booked("1B")
    sold = await paid(world, "1C", "1D")
    gone = await paid(world, "2A")
    released = await world.hold("2B")
    await world.desk.release(world.guest(released.token), world.key(), released.held.booking)
    over = await world.hold("2B")
    await world.age(over.held.booking, 3_600)
    await world.run("select booking.expire(array[$1::uuid], 'sweep')", over.held.booking)

    async def cancel(connection: Any) -> None:
        await connection.execute("select * from booking.locked($1)", gone["lead"])
        await connection.execute("select booking.move(array[$1::uuid], 'CANCELLED', 'test', 'test')", gone["lead"])
        await connection.execute("select ticket.revoke(array[$1::uuid], null, 'test', 'test')", gone["lead"])
        await connection.execute("select money.plan_refund($1, null, 'CANCELLED', 'test', 'test')", gone["lead"])
        refund = await connection.fetchval("select refund_id from money.refund where lead_id = $1", gone["lead"])
        await connection.execute("select money.give_cash($1, 'till', 'test', 'test')", refund)

    await world.pool.run("*", cancel)
    await world.run("select money.close_period($1, $2, 'DZD', clock_timestamp(), 'test', 'test')", world.clock.uuid7(), PARTNER)
    await world.run(
        """insert into sale.promo_code (partner_id, code, kind, value, valid_from, max_uses) values ($1, 'SPRING', 'PERCENT', 100, now(), 1)""",
        PARTNER,
    )
    await world.run(
        "insert into sale.promo_use (partner_id, code, person, lead_id, amount) values ($1, 'SPRING', '', $2, 1)", PARTNER, sold["lead"]
    )
    await world.run(
        """insert into booking.ancillary (booking_id, code, partner_id, trip_no, kind, name, count, price, stock)
        values ($1, 'BAG', $2, $3, 'BAGGAGE', 'Bag', 3, 0, 3)""",
        sold["lead"], PARTNER, world.trip_no,
    )  # fmt: skip
    await world.run("insert into pos.device (partner_id, device_id) values ($1, 'kiosk')", PARTNER)
    leased = await world.hold("3A", "3B", who=world.agent())
    await world.run("update booking.booking set channel = 'LEASE' where booking_id = $1", leased.held.booking)
    await world.run(
        """insert into pos.lease (lease_id, partner_id, device_id, trip_no, labels, legs, tariff)
        values ($1, $2, 'kiosk', $3, '{3A,3B}', '[0,5)', '{}')""",
        leased.held.booking, PARTNER, world.trip_no,
    )  # fmt: skip
    await world.run(
        """insert into pos.session (session_id, partner_id, device_id, currency, opened_by, opened_with, closed_by, closed_at, counted, expected,
          difference) values ($1, $2, 'kiosk', 'DZD', 'a', 0, 'a', now(), 90, 100, -10)""",
        world.clock.uuid7(), PARTNER,
    )  # fmt: skip
    await world.run(
        """insert into pos.sale (partner_id, device_id, seq, fingerprint, trip_no, seat, legs, sold_at, amount, currency, method, passenger, void,
          result, booking_id) values ($1, 'kiosk', 1, '', $2, '1C', '[0,5)', now(), 100000, 'DZD', 'CASH', '{}', false, 'CONFIRMED', $3)""",
        PARTNER, world.trip_no, sold["lead"],
    )  # fmt: skip
    return {
        "held": held.held.booking, "booked": booked["lead"], "sold": sold["lead"], "gone": gone["lead"], "leased": leased.held.booking,
        "expired": over.held.booking,
    }  # fmt: skip


class Books:
    """A furnished database that all tests of this file read; whoever breaks something takes it back."""

    def __init__(self, server: PostgresServer, names: dict[str, str]) -> None:
        self.url, self.read_url, self.admin_url = (server.dsn(DATABASE, *role) for role in ((), ("timepoint_read",), ("postgres",)))
        self.names = names

    async def findings(self, url: str | None = None, **more: Any) -> dict[str, Finding]:
        done = await audit(url or self.url, SystemClock(), keep_days=7, **more)
        return {one.name: one for one in done.findings}

    async def broken_by(self, statement: str) -> set[str]:
        """What the auditor finds after `statement`, which is rolled back."""
        connection = await asyncpg.connect(self.admin_url)
        try:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("set local session_replication_role = replica")  # no trigger and no foreign key stands in the way
            await connection.execute(statement.format(**self.names))
            found = await ask(connection, SystemClock(), keep_days=7)
            await transaction.rollback()
        finally:
            await connection.close()
        assert all(one.count is not None for one in found), [one for one in found if one.count is None]
        return {one.name for one in found if not one.holds}


@pytest.fixture(scope="module")
def books(postgres_server: PostgresServer) -> Iterator[Books]:
    postgres_server.create_database(DATABASE, template="template_timepoint")

    async def make() -> dict[str, str]:
        world = await World.make(postgres_server.dsn(DATABASE))
        try:
            return await furnish(world)
        finally:
            await world.close()

    yield Books(postgres_server, asyncio.run(make()))
    postgres_server.drop_database(DATABASE)


async def test_sound_books_pass_for_the_application_for_its_reader_and_for_a_superuser(books: Books) -> None:
    for url in (books.url, books.read_url, books.admin_url):
        found = await books.findings(url)
        assert [one for one in found.values() if not one.holds] == []
        assert list(found) == list(INVARIANTS)


def test_every_invariant_has_its_statement_and_its_line_of_purpose_and_there_is_no_other() -> None:
    assert set(INVARIANTS) == set(statements("auditor")) == set(purposes())
    assert all(purpose.endswith(".") or purpose.endswith(")") for purpose in purposes().values())


# what a superuser does behind our back -> the invariants that must find it ($named ones are ids of `furnish`)
BREAKS: dict[str, tuple[str, set[str]]] = {
    "the constraint was dropped and a seat sold twice": (
        """alter table booking.seat_claim drop constraint seat_leg_sold_once;
        insert into booking.seat_claim select '{booked}', map_version, seat, partner_id, trip_no, '[4,5)', 'HELD' from booking.seat_claim
          where booking_id = '{held}'""",
        {"seat_sold_once", "claim_is_of_its_booking", "booking_has_its_claims"},
    ),
    "a claim outlived its booking": ("delete from booking.booking where booking_id = '{held}'", {"claim_is_of_its_booking"}),
    "a claim has other legs than its booking": (
        "update booking.seat_claim set legs = '[0,4)' where booking_id = '{held}'",
        {"claim_is_of_its_booking"},
    ),
    "half of a booking lost its seats": (
        "delete from booking.seat_claim where booking_id = '{sold}' and seat = 3",
        {"booking_has_its_claims"},
    ),
    "a seat was given away for nothing": (
        "update booking.seat_claim set state = 'SOLD' where booking_id = '{held}'",
        {"sold_means_paid"},
    ),
    "a claim stayed on the old map": (
        """insert into sale.seat_map select trip_no, 2, partner_id, seats, labels, layout from sale.seat_map;
        update sale.trip_instance set map_version = 2""",
        {"claims_on_the_trips_map"},
    ),
    "one way of a return trip expired": (
        """update booking.booking set lead_id = '{booked}', state = 'EXPIRED' where booking_id = '{held}';
        delete from booking.seat_claim where booking_id = '{held}'""",
        {"bookings_are_whole"},
    ),
    "a passenger is missing": ("delete from booking.passenger where booking_id = '{sold}' and seat = 4", {"passengers_have_their_seats"}),
    "a reference leads nowhere": (
        "delete from booking.reference where lead_id = '{sold}'",
        {"references_lead_home"},
    ),
    "a claim belongs to another operator": (
        "update booking.seat_claim set partner_id = '" + OTHER + "' where booking_id = '{held}'",
        {"one_tenant_each"},
    ),
    "a state was set by hand": (
        "update booking.booking set state = 'CONFIRMED' where booking_id = '{booked}'",
        {"moves_are_in_the_table", "sold_means_paid", "confirmed_once", "tickets_for_every_seat", "seat_is_paid_for"},
    ),
    "a move that is not in the table was audited": (
        """insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
        select partner_id, actor, request_id, action, entity_kind, entity_id, '{{"state": "BOARDED", "version": 3}}' from office.audit
          where entity_id = '{booked}' limit 1""",
        {"moves_are_in_the_table", "every_version_is_audited"},
    ),
    "an audit row is gone": (
        "delete from office.audit where entity_id = '{sold}' and action = 'booking.CREATED'",
        {"every_version_is_audited"},
    ),
    "an event is gone": (
        "delete from office.outbox where aggregate = '{held}'",
        {"every_version_has_its_event"},
    ),
    "a confirmation was said twice": (
        """insert into office.outbox (part, topic, aggregate, version, partner_id, kind, body)
        select part, topic, aggregate, 9, partner_id, kind, body from office.outbox where aggregate = '{sold}' and kind = 'CONFIRMED'""",
        {"confirmed_once", "every_version_has_its_event"},
    ),
    "a confirmation was never said": (
        "delete from office.outbox where aggregate = '{sold}' and kind = 'CONFIRMED'",
        {"confirmed_once", "every_version_has_its_event"},
    ),
    "an event overtook another": (
        "update office.outbox set delivered_at = now() where aggregate = '{sold}' and version = 3",
        {"events_are_said_in_order"},
    ),
    "an event is held back by nobody": (
        "update office.outbox set parked = true where aggregate = '{held}'",
        {"held_back_means_dead"},
    ),
    "an answer speaks of a booking that is not there": (
        "delete from booking.seat_claim where booking_id = '{held}'; delete from booking.booking where booking_id = '{held}'",
        {"answers_speak_of_bookings"},
    ),
    "a seat has no ticket": ("delete from ticket.ticket where booking_id = '{sold}' and seat = 3", {"tickets_for_every_seat"}),
    "a cancelled booking still has a ticket": (
        "update ticket.ticket set state = 'ISSUED', revoked_at = null where booking_id = '{gone}'",
        {"tickets_for_every_seat"},
    ),
    "somebody boarded with no ticket used": (
        "update booking.booking set state = 'BOARDED' where booking_id = '{sold}'",
        {"boarded_by_a_scan", "moves_are_in_the_table"},
    ),
    "a line of the ledger is gone": (
        "delete from money.ledger where txn = (select min(txn) from money.ledger where payment_id is not null) and line = "
        "(select max(line) from money.ledger where txn = (select min(txn) from money.ledger where payment_id is not null))",
        {"ledger_balances", "ledger_balances_in_all"},
    ),
    "two transactions were booked to two operators": (
        "update money.ledger set partner_id = '" + OTHER + "' where line = 1",
        {"ledger_balances", "ledger_balances_in_all"},
    ),
    "a payment took more than the ledger knows": (
        "update money.payment set captured = captured + 1 where lead_id = '{sold}'",
        {"captured_is_the_ledgers"},
    ),
    "a payment was taken that no provider knows of": (
        "update money.payment set provider = 'SIMULATED_CARD' where lead_id = '{sold}'",
        {"captured_is_the_ledgers"},
    ),
    "more was paid back than was taken": (
        """alter table money.payment drop constraint payment_refund_within;
        update money.refund set amount = amount * 2; update money.payment set refunded = refunded * 2 where lead_id = '{gone}'""",
        {"refunds_within_what_was_paid"},
    ),
    "a negative refund": (
        """alter table money.refund drop constraint refund_amount; update money.refund set amount = -amount;
        update money.payment set refunded = 0 where lead_id = '{gone}'""",
        {"refunds_within_what_was_paid"},
    ),
    "somebody paid and has no seat": (
        """update booking.booking set state = 'EXPIRED' where booking_id = '{sold}'; delete from booking.seat_claim where booking_id = '{sold}'""",
        {"paid_has_its_seat"},
    ),
    "somebody sits for nothing": ("update money.payment set earned = false where lead_id = '{sold}'", {"seat_is_paid_for"}),
    "a settlement paid out too little": ("update money.settlement set amount = amount - 1", {"settlements_add_up"}),
    "a settlement leaves a gap": (
        """insert into money.settlement (settlement_id, partner_id, currency, from_at, to_at, amount, carried, closed_by)
        select gen_random_uuid(), partner_id, currency, to_at + interval '1 hour', to_at + interval '2 hours', 0, 0, 'x' from money.settlement""",
        {"settlements_add_up"},
    ),
    "a promo code was used once too often": (
        "insert into sale.promo_use values ('" + PARTNER + "', 'SPRING', '', '{booked}', 1)",
        {"promo_codes_within_their_uses"},
    ),
    "more bags than the bus takes": ("update booking.ancillary set count = 4", {"ancillaries_in_stock"}),
    "a lease of no device": ("delete from pos.lease", {"leases_belong_to_devices"}),
    "a lease reaches beyond its legs": ("update pos.lease set legs = '[0,2)'", {"leases_belong_to_devices"}),
    "an offline sale was confirmed and has no seat": (
        "update pos.sale set booking_id = '{expired}'",
        {"offline_sales_have_their_seats"},
    ),
    "a drawer's difference does not add up": ("update pos.session set difference = 0", {"drawers_are_counted"}),
    "a trip lost a stop": ("delete from sale.trip_stop where place = 3", {"trips_have_stops_and_a_map"}),
    "a trip has no map": ("delete from sale.seat_map", {"trips_have_stops_and_a_map", "claims_on_the_trips_map"}),
}


@pytest.mark.parametrize("what", BREAKS, ids=lambda what: what.replace(" ", "-"))
async def test_what_a_superuser_breaks_is_found(books: Books, what: str) -> None:
    statement, wanted = BREAKS[what]
    assert wanted <= await books.broken_by(statement)


def test_every_invariant_is_broken_by_some_test() -> None:
    assert set().union(*(wanted for _, wanted in BREAKS.values())) == set(INVARIANTS)


async def test_what_could_not_be_asked_in_time_says_so_and_is_not_called_sound(books: Books) -> None:
    found = await books.findings(limit_s=0.0)
    assert all(one.count is None and one.fault for one in found.values())
    assert not report("now", list(found.values())).sound


async def test_the_auditor_cannot_change_anything(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(statements("auditor"), "ledger_balances", "select nextval('money.txn')::text as entity, '' as said")
    found = await books.findings()
    assert "ReadOnlySQLTransaction" in (found["ledger_balances"].fault or "")
    assert found["trips_have_stops_and_a_map"].holds, "and one that cannot be asked leaves the others what they are"


async def test_without_a_database_the_auditor_says_that_and_nothing_else() -> None:
    with pytest.raises(Unavailable):
        await audit("postgresql://127.0.0.1:1/nothing", SystemClock(), keep_days=7)


def test_the_command_prints_a_table_and_answers_with_its_exit_code(books: Books) -> None:
    env = os.environ | {"DATABASE_URL": books.url}

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "api.cli", "auditor", *argv], env=env, cwd=CHECKOUT, capture_output=True, text=True)

    sound = run()
    assert sound.returncode == 0, sound.stdout + sound.stderr
    assert "seat_sold_once" in sound.stdout
    unsound = run("--json", "--limit-s", "0")
    assert unsound.returncode == 1
    said = json.loads(unsound.stdout)
    assert said["sound"] is False and {one["count"] for one in said["findings"]} == {None}


def test_what_is_wrong_is_shown_row_by_row() -> None:
    rows = [Broken("session:1", "expected 1, counted 2, difference 0"), Broken("session:2", "expected [1], counted 2")]
    out = io.StringIO()
    wrong = [Finding("a", "A purpose.", 22, rows), Finding("b", "Another.", None, [], "the time is over"), Finding("c", "Well.", 0, [])]
    assert show(Console(file=out, width=200), report("now", wrong)) == 1
    said = out.getvalue()
    assert "session:2  expected [1], counted 2" in said and "and 20 more" in said and "the time is over" in said and "2 of 3" in said
