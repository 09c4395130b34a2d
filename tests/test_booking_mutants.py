"""Holds under a rush: the functions as they are keep every promise, and each mutant of them is found, by the same judges."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bench import checks
from engine.booking.refusals import Refused
from engine.meter import Meter
from engine.office.outbox import PARTS, Counts, Dispatcher
from engine.store.bookings import Bookings
from engine.store.desk import Key
from engine.store.office import Office
from engine.store.outlet import EVENTS, Entry, Outlet
from tests import booking_rush
from tests.booking_rush import Caller, Rush, rush
from tests.booking_world import World, connect
from tests.raw_redis import raw

LIMIT_S = 15.0  # by then a mutant has to be found; most are within one
TRIP_LOCK = "pg_advisory_xact_lock_shared(1, hashint8(p_trip))"


async def test_nothing_goes_wrong_while_strangers_duel_seats_are_renumbered_and_connections_die(
    database_admin_url: str, database_url: str
) -> None:
    async with rush(database_admin_url, database_url) as house:
        found = await house.run(4, swaps=True, kills=True)
        assert not found
        assert house.stats["crowd HELD"] > 5 and house.stats["crowd SEAT_TAKEN"] > 5, house.stats
        assert house.stats["duel HELD"] > 10 and house.stats["duel TP409"] + house.stats["duel SEAT_TAKEN"] > 10, house.stats
        assert house.stats["again IDEMPOTENCY_KEY_REUSED"] > 3 and house.stats["swaps"] > 5 and house.stats["kills"] > 5, house.stats
        assert await deadlocks(house) == 0


async def test_a_dropped_constraint_is_found(database_admin_url: str, database_url: str) -> None:
    async with rush(database_admin_url, database_url) as house:
        await house.admin.execute("alter table booking.seat_claim drop constraint seat_leg_sold_once")
        for function in ("booking.hold", "booking.hold_many"):
            await house.mutate(function, "on conflict on constraint seat_leg_sold_once do nothing", "on conflict do nothing")
        assert "overlaps" in await house.run(LIMIT_S)


async def test_a_hold_without_the_trips_lock_is_found_while_swaps_run(database_admin_url: str, database_url: str) -> None:
    async with rush(database_admin_url, database_url) as house:
        await house.mutate("booking.hold", TRIP_LOCK, "null")
        assert "stale_claims" in await house.run(LIMIT_S, swaps=True)


MANY: dict[str, tuple[list[tuple[str, str]], str]] = {
    "swaps are not waited for": ([("if not pg_try_advisory_xact_lock_shared(1, hashint8(p_trip)) then", "if false then")], "stale_claims"),
    "who lost a seat keeps the others": ([("delete from booking.seat_claim where booking_id = any(v_short);", "")], "orphans"),
    "and is told that they have all": ([("v_out[i] := retry; v_won := array_remove(v_won, i::bigint);", "null;")], "partial"),
    "nobody in a call knows of those before": (
        [("v_busy[s] := v_busy[s] | v_mask;", "null;"), ("if v_short is not null then", "if false then")], "partial",
    ),
    "a key takes any body": ([("r.fingerprint, r.print)", "decode(r.print, 'hex'), r.print)")], "fingerprint"),
}  # fmt: skip


async def test_mutants_of_the_call_for_many_are_found(database_admin_url: str, database_url: str) -> None:
    async with rush(database_admin_url, database_url) as house:
        for what, (pieces, check) in MANY.items():
            whole, *_ = [await house.mutate("booking.hold_many", *piece) for piece in pieces]
            found = await house.run(LIMIT_S, swaps=check == "stale_claims", probes=(*checks.ALWAYS, "partial", "orphans"))
            assert check in found, what
            await house.begin_anew(whole)


async def test_a_key_that_takes_any_body_is_found(database_admin_url: str, database_url: str) -> None:
    async with rush(database_admin_url, database_url) as house:
        await house.mutate("booking.answered", "known.fingerprint <> p_print", "false")
        assert "fingerprint" in await house.run(LIMIT_S)


async def test_an_answer_kept_in_a_transaction_of_its_own_is_found(
    database_admin_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Caller.hold

    async def hold_then_keep(self: Caller, key: str, *asked: Any) -> Any:
        said = await plain(self, key, *asked)
        if said["status"] == "HELD" and not said.get("replayed"):
            kept = "select to_jsonb(booking.keep_answer($1::uuid, 'p', $2, $3::jsonb) is null) from set_config('tp.partner', 'p', true)"
            await self.ask(kept, key, booking_rush.print_of(1, asked[0], asked[1]), booking_rush.json.dumps(said))
        return said

    async with rush(database_admin_url, database_url) as house:
        await house.mutate("booking.hold", "where p_key is not null)", "where false)")
        monkeypatch.setattr(Caller, "hold", hold_then_keep)
        found = await house.run(LIMIT_S, kills=True)
        assert found.keys() & {"one_answer_a_key", "acknowledged"}


async def test_seats_taken_in_any_order_are_found_by_their_deadlocks(database_admin_url: str, database_url: str) -> None:
    async with rush(database_admin_url, database_url, lines=8) as house:
        await house.mutate("booking.hold", "from unnest(p_seats) u order by u", "from unnest(p_seats) u")
        house.shuffled = True
        running = asyncio.create_task(house.run(LIMIT_S))
        while not running.done() and not await deadlocks(house, house.killer):  # noqa: ASYNC110  (the database tells nobody)
            await asyncio.sleep(0.1)
        house.over = True
        await running
        assert await deadlocks(house) > 0, house.stats


async def test_an_event_said_before_its_commit_is_found(
    database_admin_url: str, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, admin = await World.make(database_url, redis_url), await connect(database_admin_url)
    try:
        await duels(world)
        assert len(await said(world)) >= 5 and not await checks.unfounded(admin, await said(world))

        plain, outlet = Bookings.hold, Outlet(world.redis, 1_000)

        async def say_then_hold(self: Bookings, key: Key | None, new: Any) -> Any:
            await outlet.say([Entry(f"booking:{new.booking_id}:1", "booking", "HELD", new.partner_id, b"{}")])
            return await plain(self, key, new)

        monkeypatch.setattr(Bookings, "hold", say_then_hold)
        await duels(world)
        assert await checks.unfounded(admin, await said(world))
    finally:
        await admin.close()
        await world.close()


async def duels(world: World, rounds: int = 5) -> None:
    """Two strangers, the same seats, the same instant, again and again; then the relay says what was committed."""
    for _ in range(rounds):
        made = await asyncio.gather(world.hold("1A", "1B"), world.hold("1A", "1B"), return_exceptions=True)
        for one in made:
            if not isinstance(one, BaseException):
                await world.desk.release(world.guest(one.token), world.key(), one.held.booking)
            elif not isinstance(one, Refused):
                raise one
    outlet, given = Outlet(world.redis, 1_000), {"clock": world.clock, "settings": world.settings, "counts": Counts(Meter())}
    for part in range(PARTS):
        while await Dispatcher(part, Office(world.pool), outlet, world.catalogue, **given).round():
            pass


async def said(world: World) -> list[str]:
    """Ids of the events that programs were told."""
    return [fields[b"id"].decode() for _, fields in await raw(world.redis).xrange(EVENTS)]


async def deadlocks(house: Rush, connection: Any = None) -> int:
    """What the server had to break; its counters are a second behind at most."""
    line = connection or house.admin
    await line.execute("select pg_stat_force_next_flush(), pg_stat_clear_snapshot()")
    return int(await line.fetchval(checks.STATEMENTS["deadlocks"]))
