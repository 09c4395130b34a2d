"""Postings: they add up in every split, and the database posts the same."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.booking import ledger
from engine.booking.ledger import added, captured, refund, refund_paid, sale
from engine.booking.providers import CARD
from tests.paying_world import PayingWorld

AMOUNTS = st.integers(1, 10**12)


@given(AMOUNTS, st.integers(0, 1000), st.lists(st.integers(1, 10**12), max_size=8))
def test_any_sale_and_any_parts_of_its_refund_balance(amount: int, permille: int, parts: list[int]) -> None:
    lines, sold = sale(amount, permille)
    done = [captured("PROVIDER:X", amount), lines]
    for part in parts:
        part = min(part, sold.captured - sold.returned)
        if part:
            lines, sold = refund(sold, part)
            assert all(line >= 0 for account, line in lines.items() if account != ledger.REFUNDS)
            done += [lines, refund_paid("PROVIDER:X", part)]
    assert all(sum(lines.values()) == 0 for lines in done)
    assert sum(added(*done).values()) == 0
    assert added(*done).get("PROVIDER:X", 0) == amount - sold.returned


@given(AMOUNTS, st.integers(0, 1000), st.data())
def test_when_all_is_refunded_in_whatever_parts_no_account_keeps_anything(amount: int, permille: int, data: st.DataObject) -> None:
    lines, sold = sale(amount, permille)
    done = [captured("PROVIDER:X", amount), lines]
    while left := sold.captured - sold.returned:
        part = left if len(done) > 16 else data.draw(st.integers(1, left))
        lines, sold = refund(sold, part)
        done += [lines, refund_paid("PROVIDER:X", part)]
    assert added(*done) == {}


def test_more_than_is_left_is_no_refund() -> None:
    _, sold = sale(100, 50)
    for amount in (0, -1, 101):
        with pytest.raises(ValueError):
            refund(sold, amount)


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[PayingWorld]:
    world = await PayingWorld.make(database_url)
    yield world
    await world.close()


async def test_the_database_posts_what_the_table_says(world: PayingWorld) -> None:
    await world.run("insert into money.terms (partner_id, permille) values ('north', 77)")
    shown, _ = await world.paid("1A", frm="demo:A", to="demo:D")
    lines, sold = sale(30_000, 77)
    done = [captured(f"PROVIDER:{CARD}", 30_000), lines]
    for part in (1, 777, 12_345, 3, 16_874):
        await world.refund(shown, part)
        lines, sold = refund(sold, part)
        done += [lines, refund_paid(f"PROVIDER:{CARD}", part)]
        assert await world.accounts() == {account: -amount for account, amount in added(*done).items()}
    kinds = {row["kind"] for row in await world.run("select distinct kind from money.ledger")}
    assert kinds <= ledger.KINDS.keys()


async def test_rounding_in_the_database_is_half_to_even_as_in_python(world: PayingWorld) -> None:
    from engine.booking.money import scaled

    cases = [(amount, part, whole) for amount in (0, 1, 5, 15, 25, 10**15) for part in (0, 1, 50, 333) for whole in (1, 2, 10, 1000)]
    for amount, part, whole in cases:
        assert await world.value("select money.share($1, $2, $3)", amount, part, whole) == scaled(amount, part, whole)


async def test_an_entry_that_does_not_balance_is_refused(world: PayingWorld) -> None:
    for accounts, amounts in ((["CUSTOMER"], [5]), (["CUSTOMER", "PARTNER"], [5, -4])):
        with pytest.raises(asyncpg.PostgresError, match="LEDGER_UNBALANCED"):
            await world.run("select money.post('north', 'DZD', 'SALE', null, null, $1, $2)", accounts, amounts)
    with pytest.raises(asyncpg.PostgresError, match="LEDGER_UNBALANCED"):  # two currencies do not make up for each other
        await world.run(
            """insert into money.ledger (txn, line, partner_id, currency, account, debit, credit, kind)
            values (9, 1, 'north', 'DZD', 'CUSTOMER', 5, 0, 'SALE'), (9, 2, 'north', 'EUR', 'PARTNER', 0, 5, 'SALE')"""
        )
    assert await world.value("select count(*) from money.ledger") == 0


async def test_the_application_may_not_change_or_delete_a_posting_or_a_fact(world: PayingWorld) -> None:
    await world.paid("1A")
    for statement in (
        "update money.ledger set debit = debit + 1",
        "delete from money.ledger",
        "truncate money.ledger",
        "update money.fact set amount = 1",
        "delete from money.fact",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await world.run(statement)


async def test_another_partner_sees_nothing_of_the_money(world: PayingWorld) -> None:
    await world.paid("1A")
    for table in ("payment", "fact", "ledger"):

        async def count(connection: asyncpg.Connection, table: str = table) -> int:
            return int(await connection.fetchval(f"select count(*) from money.{table}"))

        assert await world.pool.run("south", count) == 0
        assert await world.pool.run("north", count) > 0
