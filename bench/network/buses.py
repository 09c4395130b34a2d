"""Which bus drives which trips of a feed: blocks first, then buses for blocks, for any feed and always the same way.

A bus drives a block's trips in a row (a trip without a block is a block of its own). Blocks of consecutive days go to buses in order of
their start: to the bus that already stands where the block begins, else to the one that has had time to come over empty, else to a new
one. The assignment starts on an anchor day before the one asked for, the same day for a whole week, so that a bus keeps its name and its
work when a simulation is started again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

import msgspec

from engine.tracking.timetable import Stop, Timetable, TripInstance
from geo.coords import distance_m

HERE_M = 400.0  # a block that begins within this of where the last one ended needs no empty drive
EMPTY_MPS = 9.0  # a bus coming over empty, straight-line metres a second
EMPTY_MAX_M = 25_000.0  # farther than this another bus is cheaper
READY_MS = 180_000


class Block(msgspec.Struct, frozen=True, eq=False):
    """Trip instances that one bus drives in a row, by departure, none overlapping."""

    block_id: str
    agency_id: str
    trips: tuple[TripInstance, ...]

    @property
    def begins_ms(self) -> int:
        return self.trips[0].departure_ms(0)

    @property
    def ends_ms(self) -> int:
        return self.trips[-1].arrival_ms(-1)


class Bus(msgspec.Struct):
    """A bus and its work in order of time."""

    bus_id: str
    agency_id: str
    work: list[Block]


def blocks_on(timetable: Timetable, day: date) -> list[Block]:
    """The blocks of one service date, by start."""
    gathered: dict[str, list[TripInstance]] = {}
    for instance in timetable.instances_on(day):
        gathered.setdefault(instance.trip.block_id or f"trip:{instance.trip.trip_id}", []).append(instance)
    blocks = []
    for block_id, trips in gathered.items():
        agency = timetable.routes[trips[0].trip.route_id].agency_id or next(iter(timetable.agencies), "")
        part: list[TripInstance] = []
        for trip in sorted(trips, key=lambda t: (t.departure_ms(0), t.trip.trip_id)):
            if part and trip.departure_ms(0) < part[-1].arrival_ms(-1):  # a feed may let trips of a block overlap
                blocks.append(Block(block_id, agency, (trip,)))
            else:
                part.append(trip)
        blocks.append(Block(block_id, agency, tuple(part)))
    return sorted(blocks, key=lambda b: (b.begins_ms, b.block_id, b.trips[0].trip.trip_id))


def _end(timetable: Timetable, trip: TripInstance, index: int) -> Stop:
    return timetable.stops[trip.trip.pattern.stop_ids[index]]


def _prefix(agency_id: str) -> str:
    return agency_id if agency_id.isascii() and agency_id.isalpha() and len(agency_id) <= 5 and agency_id.isupper() else "BUS"


def assign(timetable: Timetable, day: date, days: int = 2) -> list[Bus]:
    """The feed's buses with their work from the anchor day to `days` days from `day` on. Deterministic; raises nothing."""
    anchor = date.fromordinal(day.toordinal() // 7 * 7) - timedelta(days=1)
    blocks = [b for n in range((day - anchor).days + days) for b in blocks_on(timetable, anchor + timedelta(days=n))]
    buses: list[Bus] = []
    free: list[tuple[int, Stop]] = []  # when and where each bus ended its last block
    numbers: dict[str, int] = {}
    for block in sorted(blocks, key=lambda b: (b.begins_ms, b.block_id)):
        number = _nearest_free(buses, free, block, _end(timetable, block.trips[0], 0))
        if number is None:
            prefix = _prefix(block.agency_id)
            numbers[prefix] = numbers.get(prefix, 0) + 1
            number = len(buses)
            buses.append(Bus(f"{prefix}-{100 + numbers[prefix]}", block.agency_id, []))
            free.append((0, _end(timetable, block.trips[0], 0)))
        buses[number].work.append(block)
        free[number] = (block.ends_ms, _end(timetable, block.trips[-1], -1))
    return buses


def _nearest_free(buses: Sequence[Bus], free: Sequence[tuple[int, Stop]], block: Block, start: Stop) -> int | None:
    """Index of the bus that takes the block: one that stands there, the longest waiting first, else the nearest that has time to come over."""
    begins_ms = block.begins_ms
    best: tuple[float, int, int] | None = None
    for number, (ended_ms, end) in enumerate(free):
        if ended_ms > begins_ms or buses[number].agency_id != block.agency_id:
            continue
        away_m = 0.0 if end is start else distance_m(end.lon, end.lat, start.lon, start.lat)
        if away_m > EMPTY_MAX_M or (away_m > HERE_M and begins_ms - ended_ms < READY_MS + away_m / EMPTY_MPS * 1000):
            continue
        rank = (0.0 if away_m <= HERE_M else away_m, ended_ms, number)
        best = rank if best is None or rank < best else best
    return None if best is None else best[2]


def bus_list(timetable: Timetable, day: date) -> list[dict[str, str]]:
    """`[{"busId", "name", "agencyId"}]` of every bus that the feed needs in the fortnight around `day`, to register their devices."""
    known: dict[str, dict[str, str]] = {}
    for week in (0, 7):
        for bus in assign(timetable, day + timedelta(days=week), days=8):
            agency = timetable.agencies.get(bus.agency_id)
            label = f"{agency.name if agency else 'Bus'} {bus.bus_id.rpartition('-')[2]}"
            known.setdefault(bus.bus_id, {"busId": bus.bus_id, "name": label, "agencyId": bus.agency_id})
    return [known[bus_id] for bus_id in sorted(known)]
