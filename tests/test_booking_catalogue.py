"""Sold trips in a worker's memory: read once, again behind the readers' backs, never more of them than the bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from engine.booking.catalogue import KEEP_MS, STALE_MS, Catalogue, SoldTrip
from engine.errors import Invalid, NotFound
from engine.meter import Meter
from tests.booking_world import World


class Watched(Catalogue):
    """One that tells how often it asked the database."""

    reads = 0

    async def _read(self, statement: str, key: object) -> SoldTrip:
        self.reads += 1
        return await super()._read(statement, key)

    def age(self, trip: SoldTrip, by_ms: int) -> None:
        """Let what it knows of a trip be so much older."""
        self._trips[trip.trip_id] = msgspec.structs.replace(trip, read_at_ms=trip.read_at_ms - by_ms)

    async def settled(self) -> None:
        await asyncio.gather(*self._reading.values())


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    made = await World.make(database_url)
    yield made
    await made.close()


@pytest.fixture
def catalogue(world: World) -> Watched:
    return Watched(world.pool, 2, Meter())


async def test_a_trip_is_read_once_and_known_by_id_and_number(world: World, catalogue: Watched) -> None:
    trip = await catalogue.trip(world.trip_id)
    assert await catalogue.trip(world.trip_id) is trip and await catalogue.by_no(trip.trip_no) is trip
    assert catalogue.reads == 1


async def test_an_old_entry_is_read_again_once_while_readers_go_on_with_it(world: World, catalogue: Watched) -> None:
    trip = await catalogue.trip(world.trip_id)
    catalogue.age(trip, KEEP_MS)
    await world.run("update sale.trip_instance set sales_open = false where trip_no = $1", trip.trip_no)
    seen = [await catalogue.trip(world.trip_id) for _ in range(5)]
    assert all(one.sales_open for one in seen)
    await catalogue.settled()
    assert not (await catalogue.trip(world.trip_id)).sales_open and catalogue.reads == 2


async def test_a_very_old_entry_is_waited_for(world: World, catalogue: Watched) -> None:
    trip = await catalogue.trip(world.trip_id)
    catalogue.age(trip, STALE_MS)
    await world.run("update sale.trip_instance set sales_open = false where trip_no = $1", trip.trip_no)
    assert not (await catalogue.trip(world.trip_id)).sales_open


async def test_a_trip_that_is_not_sold_is_looked_for_once(catalogue: Watched) -> None:
    assert [await catalogue.find("demo:NONE:20990101") for _ in range(3)] == [None] * 3
    assert catalogue.reads == 1
    with pytest.raises(NotFound):
        await catalogue.trip("demo:NONE:20990101")


async def test_no_more_trips_are_kept_than_the_bound(world: World, catalogue: Watched) -> None:
    ids = [world.trip_id, (await world.trip())[0], (await world.trip())[0]]
    for trip_id in ids:
        await catalogue.trip(trip_id)
    assert len(catalogue._trips) == len(catalogue._ids) == 2


async def test_of_a_stop_that_comes_twice_the_shortest_ride_is_meant_and_its_sequence_names_the_other(world: World) -> None:
    trip_id, _ = await world.trip(stops=("A", "B", "C", "B", "D"))
    trip = await world.catalogue.trip(trip_id)
    assert (trip.legs("demo:B", "demo:D"), trip.legs(2, "demo:D"), trip.legs("2", "demo:D")) == ((3, 4), (1, 4), (1, 4))
    with pytest.raises(Invalid):
        trip.legs("demo:D", "demo:B")


async def test_a_worker_that_has_not_heard_of_another_bus_reads_the_trip_again_when_a_new_seat_is_named(world: World) -> None:
    from tests.booking_world import LAYOUT

    trip = await world.catalogue.trip(world.trip_id)
    longer = LAYOUT | {"decks": [LAYOUT["decks"][0] | {"rows": 4}], "seats": [*LAYOUT["seats"], {"label": "4A", "row": 3, "column": 0}]}
    world.catalogue._trips[trip.trip_id] = msgspec.structs.replace(trip, read_at_ms=trip.read_at_ms - 5_000)
    await world.run(
        "update sale.seat_map set labels = labels || '4A'::text, seats = seats || 13::int2, layout = $2 where trip_no = $1",
        trip.trip_no, longer,
    )  # fmt: skip
    assert (await world.hold("4A")).labels == ("4A",)
