"""A day at another speed, through the public wire: a file of recorded fixes (FIXES.csv of docs/replay.md), or a drive of our own where none is given.

The rate of the run says how fast: recorded fixes a second times N. Trips are those of the file, so the product must have loaded its feed. Two clocks:

- `recorded`: fixes keep their own distances in time, moved so that the last of the file is of the moment at which the run begins: a backlog in
  order, as after a night without a network, at any N. Nobody is told of what is long over; the record must have every fix of it, once.
- `wall`: each fix is of the moment at which it is meant to be sent, so watchers can tell its age. Buses look N times as fast; much above 3 the
  product takes them for receivers gone wrong.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

import msgspec

from bench.harness.calls import Calls, opening, whole
from bench.harness.devices import register
from bench.harness.scenario import Measure, Option, Scenario, Share, Target
from bench.loads.ingest import MEASURE, all_said, counted, took_all
from bench.loads.roads import Bus, Town, city_of, survey
from bench.loads.watch import Ages, Crowd, Ledger, gathered
from engine.tracking.fix import Fix
from engine.tracking.replay import read_fixes

LANES = 32  # connections of one generator; a bus always has the same one, so its fixes keep their order
SETTLE_S = 8.0
RECORD_LIMIT_S = 20.0  # until the record has what was accepted last

Row = tuple[str, int, Callable[[int], bytes]]  # bus, when it was recorded (ms), the telemetry object of a time


class Replay(Scenario):
    name = "replay"
    summary = "a recorded day (or a drive of our own), faster than it was"
    unit = "fixes"
    rate: ClassVar[float] = 500.0
    options = (
        Option("fixes", "", "FIXES.csv or FIXES.csv.gz; empty: buses of our own"),
        Option("buses", 100, "of our own drive"),
        Option("span", 900, "seconds of our own drive"),
        Option("interval", 5, "seconds between two fixes of a bus of our own drive"),
        Option("clock", "recorded", "recorded: fixes keep their distances in time; wall: a fix is of its intended moment"),
    )
    measures = (
        MEASURE,
        Measure("age", "until a watcher of its bus has read it; with the clock `wall`"),
    )
    needs = frozenset({"token"})

    def prepare(self, target: Target, options: Mapping[str, Any], rate: float, seed: int) -> Any:
        prefix = f"load-{int(time.time()):x}-"  # buses of this run alone: a bus never goes back in its own time
        if options["fixes"]:
            rows, _ = read_fixes(Path(options["fixes"]))
            names = sorted({prefix + row.bus_id for row in rows})
            span_s, count, city = (rows[-1].fixed_at_ms - rows[0].fixed_at_ms) / 1000, len(rows), None
        else:
            names, span_s = [f"{prefix}{number}" for number in range(int(options["buses"]))], float(options["span"])
            count, city = round(len(names) * span_s / options["interval"]), msgspec.to_builtins(survey(target))
        recorded = count / max(1.0, span_s)
        print(
            f"replay: {count} fixes of {len(names)} buses, {recorded:.1f}/s as recorded: this is x {rate / recorded:.1f}", file=sys.stderr
        )
        return {
            "city": city,
            "tokens": register(target, names),
            "span_ms": round(span_s * 1000),
            "prefix": prefix,
            "begins_ms": round((time.time() - span_s) * 1000),
        }

    async def drive(self, share: Share) -> None:
        wall, ledger = share.options["clock"] == "wall", Ledger(share)
        mine = [name for name in share.data["tokens"] if crc32(name.encode()) % share.of == share.number]
        crowd = Crowd(share, gathered([f"bus:{name}" for name in mine if wall], "bus"), Ages(share, {"bus": "age"}, ledger).heard)
        await crowd.open()
        lanes = [await Calls.open(share, 1) for _ in range(max(1, min(LANES, len(mine))))]
        heads = {name: opening("POST", "/ingest/telemetry", host=lanes[0].host, token=share.data["tokens"][name]) for name in mine}
        rows = self._rows(share, set(mine))
        async for moment in share.moments():
            row = next(rows, None)
            if row is None:
                share.count("file is over")
                continue
            bus_id, recorded_ms, made = row
            at_ms = share.epoch_ms(moment) if wall else recorded_ms

            def answered(status: int, said: bytes, bus_id: str = bus_id, at_ms: int = at_ms) -> None:
                counted(share, status, said, 1)
                if wall and took_all(status, said):
                    ledger.accepted(bus_id, at_ms)

            share.count("sent")
            lanes[crc32(bus_id.encode()) // share.of % len(lanes)].send(moment, whole(heads[bus_id], made(at_ms)), "ingest", answered)
        for lane in lanes:
            await lane.rest()
        await ledger.settle(SETTLE_S)
        crowd.close()

    def _rows(self, share: Share, mine: set[str]) -> Iterator[Row]:
        """In order of receipt, times moved. What takes long (the file, the ways) is read before the first is asked for."""
        begins_ms, span_ms, prefix = share.data["begins_ms"], share.data["span_ms"], share.data["prefix"]
        if share.options["fixes"]:
            table, _ = read_fixes(Path(share.options["fixes"]))
            move_ms = begins_ms - table[0].fixed_at_ms
            return (
                (bus_id, row.fixed_at_ms + move_ms, partial(_object, row, bus_id))
                for row in table
                if (bus_id := prefix + row.bus_id) in mine
            )
        town, step_ms = Town(city_of(share.data["city"])), round(share.options["interval"] * 1000)
        buses = [Bus(town, number, name) for number, name in enumerate(share.data["tokens"]) if name in mine]
        return (
            (bus.bus_id, own_ms, partial(bus.fix, own_ms / 1000))
            for at_ms in range(begins_ms, begins_ms + span_ms, step_ms)
            for bus in buses
            for own_ms in (at_ms + crc32(bus.bus_id.encode()) % step_ms,)
        )

    def verify(self, target: Target, data: Any, counts: Mapping[str, int]) -> list[str]:
        wrong, accepted = all_said(data, counts), counts.get("accepted", 0)
        until_s = time.monotonic() + RECORD_LIMIT_S
        while (kept := sum(_kept(target, data, bus_id) for bus_id in data["tokens"])) < accepted and time.monotonic() < until_s:
            time.sleep(0.5)
        if kept != accepted:
            wrong.append(f"{accepted} fixes were accepted, and the record has {kept}")
        return wrong


def _kept(target: Target, data: Any, bus_id: str) -> int:
    """Fixes of a bus in the record."""
    begins = datetime.fromtimestamp(data["begins_ms"] / 1000 - 60, UTC)
    span = f"from={_zulu(begins)}&to={_zulu(datetime.now(UTC) + timedelta(minutes=5))}"
    return sum(one["fixes"] for one in target.call("GET", f"/v1/buses/{bus_id}/history?{span}&bucket=86400")["items"])


def _zulu(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _object(row: Fix, bus_id: str, at_ms: int) -> bytes:
    """A recorded fix as a telemetry object of now."""
    location = {"latitude": row.lat, "longitude": row.lon, "accuracy": row.accuracy_m}
    motion = {"speed": None if row.speed_mps is None else row.speed_mps * 3.6, "heading": row.bearing_deg}
    said: dict[str, Any] = {"busId": bus_id, "timestamp": at_ms}
    said |= {
        name: {key: value for key, value in part.items() if value is not None}
        for name, part in (("location", location), ("motion", motion))
    }
    if row.trip_id:
        said |= {"tripId": row.trip_id} | ({"startDate": row.start_date} if row.start_date else {})
    return msgspec.json.encode(said)
