"""How full a bus is, as the desk knows it: seats of the map in force, and who was scanned aboard."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from engine.meter import Meter
from engine.store.loads import Load, Loads
from tests.booking_world import World


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    made = await World.make(database_url)
    yield made
    await made.close()


async def board(world: World, lead: str, state: str = "USED") -> None:
    """Tickets of a booking, in that state."""
    await world.run(
        """insert into ticket.ticket (booking_id, seat, printed_seat, partner_id, trip_no, legs, state, valid_from, valid_to)
        select booking_id, unnest(seats), 1, partner_id, trip_no, legs, $2, now(), now() from booking.booking where lead_id = $1""",
        lead,
        state,
    )


async def test_who_was_scanned_aboard_counts_between_their_own_stops(world: World) -> None:
    whole = await world.confirmed("1A", "1B")
    short = await world.confirmed("2A", frm="demo:B", to="demo:D")
    waiting = await world.confirmed("2B")
    await board(world, whole["lead"])
    await board(world, short["lead"])
    await board(world, waiting["lead"], "ISSUED")
    loads = Loads(world.pool, Meter())
    assert loads.of(world.trip_id) is None, "not read yet"
    await loads.read([world.trip_id, "demo:unsold:20260101"])
    load = loads.of(world.trip_id)
    assert load is not None and load.seats == 12
    assert [load.aboard(place) for place in range(6)] == [2, 2, 3, 3, 2, 2]
    assert loads.of("demo:unsold:20260101") is None


async def test_where_nobody_was_scanned_nobody_can_say_that_the_bus_is_empty(world: World) -> None:
    await world.confirmed("1A")
    loads = Loads(world.pool, Meter())
    await loads.read([world.trip_id])
    assert loads.of(world.trip_id) == Load(12, ()) and Load(12, ()).aboard(3) is None


async def test_readers_wait_for_nothing_and_a_crowd_of_them_asks_once(world: World) -> None:
    loads = Loads(world.pool, Meter())
    for _ in range(50):
        loads.want([world.trip_id])
    assert loads.of(world.trip_id) is None
    reading = loads._reading
    assert reading is not None
    await reading
    assert loads.of(world.trip_id) is not None
    loads.want([world.trip_id])
    assert loads._reading is None, "what was read just now is good for a while"
