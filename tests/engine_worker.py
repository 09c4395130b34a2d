"""A worker of the engine without its web side, for the tests that kill, freeze and cut off: `python -m tests.engine_worker`.

DATABASE_URL and REDIS_URL say where. Options: `--roles track,history`, `--tracker counting` (below), `--without number|token` cuts that check
out of the commit script, `--freeze FILE`: while FILE exists, the next commit stops the process (SIGSTOP) before it is sent and removes FILE.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine import settings as settings_
from engine.clock import SystemClock
from engine.events import Position, TrackRow, TripEvent
from engine.meter import Meter
from engine.store import area as area_
from engine.store import redis as redis_
from engine.store.postgres import Postgres
from engine.store.redis import Redis
from engine.tracking import control
from engine.tracking.fix import Fix
from engine.tracking.history import History
from engine.tracking.plans import Plans
from engine.tracking.relay import Relay
from engine.tracking.shares import Shares
from engine.tracking.tracker import Outcome


class CountingTracker:
    """Says one event a fix, with how many fixes of the bus were folded before it: a fix folded twice, left out or out of order shows."""

    def __init__(self, timetable: Any, *, feed_id: str, partner_id: str) -> None:
        self.feed_id, self.partner_id = feed_id, partner_id
        self.counts: Counter[str] = Counter()
        self.restore({})

    def restore(self, states: Mapping[str, bytes], open_incidents: Iterable[bytes] = ()) -> None:
        self._counts: dict[str, tuple[int, int]] = {key: msgspec.msgpack.decode(blob, type=tuple[int, int]) for key, blob in states.items()}
        self._out = Outcome({}, [], [], [], [], [], {}, [])

    def swap(self, timetable: Any) -> None:
        pass

    def tick(self, now_ms: int) -> None:
        pass

    def fold(self, fix: Fix) -> None:
        key = f"bus:{fix.bus_id}"
        count, seq = self._counts.get(key, (0, 0))
        if fix.seq is None or fix.seq <= seq:
            return  # a device that got no answer sent it again
        count, seq = self._counts[key] = (count + 1, fix.seq)
        out = self._out
        out.states[key] = msgspec.msgpack.encode((count, seq))
        event = f"{fix.bus_id}:{seq}:{count}"
        out.events.append(TripEvent(event, fix.bus_id, "t", "20261121", "r", "STARTED", fix.fixed_at_ms, "test"))
        values = msgspec.structs.asdict(fix)
        known = {name: values[name] for name in ("bus_id", "fixed_at_ms", "lat", "lon", "received_at_ms")}
        out.rows.append(
            TrackRow(
                **known, device_id="d", source="telemetry", verdict="OK", accuracy_m=None, speed_mps=None, bearing_deg=None, seq=seq,
                trip_id=None, start_date=None, along_m=None, offset_m=None, state=None,
            )
        )  # fmt: skip
        out.positions.append(
            Position(
                **known, partner_id="p", feed_id=self.feed_id, trip_id=None, route_id=None, start_date=None, bearing_deg=None, speed_mps=None,
                along_m=None, offset_m=None, state="DEADHEAD", delay_s=None, next_stop=None,
            )
        )  # fmt: skip

    def take(self) -> Outcome:
        out, self._out = self._out, Outcome({}, [], [], [], [], [], {}, [])
        return out


def without(script: str, part: str) -> str:
    """The script with one check cut out."""
    begin, end = script.index(f"--[{part}]"), script.index(f"--[/{part}]")
    return script[:begin] + script[end:]


def freeze_before_commit(flag: Path) -> None:
    real = area_.AreaStore.commit

    async def commit(self: area_.AreaStore, token: str, change: area_.Change) -> str:
        if flag.exists():  # noqa: ASYNC240
            flag.unlink()  # noqa: ASYNC240
            os.kill(os.getpid(), signal.SIGSTOP)
        return await real(self, token, change)

    area_.AreaStore.commit = commit  # type: ignore[method-assign]


async def run(roles: set[str]) -> None:
    settings, meter, clock = settings_.load(os.environ), Meter(), SystemClock()
    redis, postgres = await Redis.connect(settings, meter), await Postgres.connect(settings)
    plans = Plans(postgres, meter)
    shares = Shares(redis, plans, clock=clock, settings=settings, meter=meter)
    works = [plans.run()]
    if "track" in roles:
        works.append(shares.run())
    if "history" in roles:
        works.append(History(redis, clock=clock, settings=settings, meter=meter).run())
    if "relay" in roles:
        works.append(Relay(redis, plans, clock=clock, settings=settings, meter=meter).run())
    await asyncio.gather(*works)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--roles", default="track,history")
    parser.add_argument("--tracker", choices=["real", "counting"], default="counting")
    parser.add_argument("--without", choices=["number", "token"])
    parser.add_argument("--freeze", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    if args.tracker == "counting":
        control.Tracker = CountingTracker  # type: ignore[assignment,misc]
    if args.without:
        whole = redis_.lua
        redis_.lua = lambda name: without(whole(name), args.without) if name == "commit" else whole(name)  # type: ignore[assignment]
    if args.freeze:
        freeze_before_commit(args.freeze)
    asyncio.run(run(set(args.roles.split(","))))


if __name__ == "__main__":
    main()
