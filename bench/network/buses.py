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

from bench.network.drawing import metres_per_degree
from engine.tracking.timetable import Timetable, TripInstance

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


def _metres(a: tuple[float, float], b: tuple[float, float]) -> float:
    ky, kx = metres_per_degree((a[0] + b[0]) / 2)
    return float((((a[0] - b[0]) * ky) ** 2 + ((a[1] - b[1]) * kx) ** 2) ** 0.5)


def _end(timetable: Timetable, trip: TripInstance, index: int) -> tuple[float, float]:
    stop = timetable.stops[trip.trip.pattern.stop_ids[index]]
    return stop.lat, stop.lon


def _prefix(agency_id: str) -> str:
    return agency_id if agency_id.isascii() and agency_id.isalpha() and len(agency_id) <= 5 and agency_id.isupper() else "BUS"


def assign(timetable: Timetable, day: date, days: int = 2) -> list[Bus]:
    """The feed's buses with their work from the anchor day to `days` days from `day` on. Deterministic; raises nothing."""
    anchor = date.fromordinal(day.toordinal() // 7 * 7) - timedelta(days=1)
    blocks = [b for n in range((day - anchor).days + days) for b in blocks_on(timetable, anchor + timedelta(days=n))]
    buses: list[Bus] = []
    numbers: dict[str, int] = {}
    for block in sorted(blocks, key=lambda b: (b.begins_ms, b.block_id)):
        start = _end(timetable, block.trips[0], 0)
        best: tuple[float, int, int] | None = None
        for number, bus in enumerate(buses):
            last = bus.work[-1]
            idle_ms = block.begins_ms - last.ends_ms
            if bus.agency_id != block.agency_id or idle_ms < 0:
                continue
            away_m = _metres(_end(timetable, last.trips[-1], -1), start)
            if away_m > EMPTY_MAX_M or (away_m > HERE_M and idle_ms < READY_MS + away_m / EMPTY_MPS * 1000):
                continue
            rank = (0.0 if away_m <= HERE_M else away_m, last.ends_ms, number)
            best = rank if best is None or rank < best else best
        if best is not None:
            buses[best[2]].work.append(block)
            continue
        prefix = _prefix(block.agency_id)
        numbers[prefix] = numbers.get(prefix, 0) + 1
        buses.append(Bus(f"{prefix}-{100 + numbers[prefix]}", block.agency_id, [block]))
    return buses


def bus_list(timetable: Timetable, day: date) -> list[dict[str, str]]:
    """`[{"busId", "name", "agencyId"}]` of every bus that the feed needs in the fortnight around `day`, to register their devices."""
    known: dict[str, dict[str, str]] = {}
    for week in (0, 7):
        for bus in assign(timetable, day + timedelta(days=week), days=8):
            agency = timetable.agencies.get(bus.agency_id)
            label = f"{agency.name if agency else 'Bus'} {bus.bus_id.rpartition('-')[2]}"
            known.setdefault(bus.bus_id, {"busId": bus.bus_id, "name": label, "agencyId": bus.agency_id})
    return [known[bus_id] for bus_id in sorted(known)]


def demo_buses(timetable: Timetable, day: date) -> list[str]:
    """The bus ids of `bus_list`."""
    return [row["busId"] for row in bus_list(timetable, day)]


def at_work(buses: Sequence[Bus], now_ms: int) -> list[tuple[Bus, TripInstance]]:
    """Buses that are in a trip at this moment, by schedule, with the trip."""
    found = []
    for bus in buses:
        for block in bus.work:
            if block.begins_ms <= now_ms < block.ends_ms:
                found.extend((bus, trip) for trip in block.trips if trip.departure_ms(0) <= now_ms < trip.arrival_ms(-1))
    return found
