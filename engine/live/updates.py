"""Updates: what one round of the hub says, encoded at most once per encoding and set of channels, and only where somebody listens.

`Pending` gathers changes of the live table until its audience's next round and lets the newest win per vehicle, so a busy round never makes a
queue: it makes the next round's updates newer.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Sequence
from typing import Any

from engine.events import StopEvent
from engine.live import frames
from engine.live.channels import spoken
from engine.live.frames import ENCODE, Wire
from engine.live.table import NOT_MADE, Change, Foreseen, Seen


class Update:
    """One thing to say. `version` orders all updates of this worker; `n` is the number of its area (the wire's `o`)."""

    __slots__ = ("_bodies", "_make", "_pushes", "epoch", "key", "kind", "n", "version")

    def __init__(self, key: Hashable, kind: str, epoch: str, n: int, version: int, make: Callable[[], Any]) -> None:
        self.key, self.kind, self.epoch, self.n, self.version = key, kind, epoch, n, version
        self._make = make
        self._bodies = NOT_MADE
        self._pushes: dict[tuple[int, tuple[str, ...]], bytes] | None = None

    def body(self, encoding: int) -> bytes:
        """The encoded `d`."""
        made = self._bodies[encoding]
        if made is None:
            made = ENCODE[encoding](self._make())
            self._bodies = (made, self._bodies[1]) if encoding == frames.JSON else (self._bodies[0], made)
        return made

    def push(self, encoding: int, channels: tuple[str, ...]) -> bytes:
        """The encoded push that names these channels."""
        pushes = self._pushes
        if pushes is None:
            pushes = self._pushes = {}
        made = pushes.get((encoding, channels))
        if made is None:
            epoch = self.epoch if self.kind == "snapshot" else None
            made = frames.push(encoding, [spoken(name) for name in channels], self.n, self.kind, self.body(encoding), epoch)
            pushes[encoding, channels] = made
        return made


class Moved(Update):
    """A vehicle that has something new: its `pos`."""

    __slots__ = ("now",)

    def __init__(self, now: Seen, version: int, epoch: str) -> None:
        self.now = now
        self.key, self.kind, self.epoch, self.n, self.version = now.position.bus_id, "pos", epoch, now.n, version
        self._pushes = None

    def body(self, encoding: int) -> bytes:
        return self.now.body(encoding)


Part = tuple[Update, tuple[str, ...]]  # an update, and the channels of one listener that carry it


def framed(wire: Wire, parts: Sequence[Part]) -> bytes:
    """The one frame that says all of it."""
    encoding, (last, names) = wire.encoding, parts[-1]
    if len(parts) == 1:
        payload = last.push(encoding, names)
    else:
        payload = frames.batch(encoding, [update.push(encoding, channels) for update, channels in parts])
    return wire.frame(payload, f"{last.epoch}:{last.n}")


def merged(names: Sequence[str], touched: dict[str, list[Update]]) -> list[Part]:
    """The updates of several channels, each once, oldest first, with all of these channels that carry it."""
    carried: dict[Update, list[str]] = {}
    for name in names:
        for update in touched[name]:
            carried.setdefault(update, []).append(name)
    parts = [(update, tuple(channels)) for update, channels in carried.items()]
    if len(names) > 1:
        parts.sort(key=lambda part: part[0].version)
    return parts


class Pending:
    """What the table said since its audience's last round, as far as that hears it; at most one entry per vehicle, per forecast, per stop
    served, and per incident and alert that passengers hear of."""

    __slots__ = ("cut", "forecasts", "gone", "moved", "notices", "resets", "stops", "troubles")

    def __init__(self) -> None:
        self.cut = -1  # version at which somebody was given a picture last: what stood then has been heard, though it was pending
        self.moved: dict[str, tuple[tuple[Seen, ...], Seen, int]] = {}  # (what was heard of it, the oldest first, now, version)
        self.gone: dict[str, tuple[tuple[Seen, ...], Seen, int]] = {}
        self.forecasts: dict[str, tuple[Foreseen, int]] = {}
        self.stops: dict[tuple[str, str, str, int], tuple[Change, StopEvent, int]] = {}
        self.resets: dict[str, None] = {}
        self.troubles: dict[str, tuple[Update, str]] = {}  # by incident, with the channel of its trip
        self.notices: dict[tuple[str, str], tuple[Update, str]] = {}  # by channel and alert

    def __bool__(self) -> bool:
        return bool(self.moved or self.gone or self.forecasts or self.stops or self.resets or self.troubles or self.notices)

    def add(self, change: Change, version: int, heard: Container[str], all_vehicles: bool) -> None:
        """`heard`: the channels that somebody of this audience listens to. `all_vehicles`: somebody looks at a map, which may show any."""
        if change.reset:
            self.resets[change.area] = None
        moved = self.moved
        for before, now in change.moved:
            names, bus_id = now.names, now.position.bus_id
            if not (all_vehicles or bus_id in moved or _any_of(names, heard)) and (
                before is None or before.names is names or not _any_of(before.names, heard)
            ):
                continue
            heard_of = self._heard_of(bus_id, before)  # popped and put back: the dict stays in order of version
            moved[bus_id] = (heard_of, now, version)
        for seen in change.gone:
            bus_id = seen.position.bus_id
            self.forecasts.pop(bus_id, None)
            heard_of = self._heard_of(bus_id, seen)
            if heard_of:  # else it came and went between two rounds
                self.gone[bus_id] = (heard_of, seen, version)
        for found in change.forecasts:
            self.forecasts.pop(found.bus_id, None)
            if found.trip in heard or _any_of(found.ahead, heard):
                self.forecasts[found.bus_id] = (found, version)
        for event in change.stops:
            key = (event.bus_id, event.trip_id, event.start_date, event.stop_sequence)
            self.stops.pop(key, None)
            self.stops[key] = (change, event, version)

    def _heard_of(self, bus_id: str, before: Seen | None) -> tuple[Seen, ...]:
        """Takes the vehicle's entry out; answers what its listeners heard of it, and who was given a picture since saw `before` as well."""
        held = self.moved.pop(bus_id, None) or self.gone.pop(bus_id, None)
        if held is None:
            return () if before is None else (before,)
        return (*held[0], before) if before is not None and held[2] <= self.cut else held[0]


def _any_of(names: tuple[str, ...], heard: Container[str]) -> bool:
    for name in names:  # noqa: SIM110 - `any` of a generator costs three times as much, and this is asked of every fix
        if name in heard:
            return True
    return False


def gone_update(bus_id: str, epoch: str, n: int, version: int) -> Update:
    return Update(("gone", bus_id), "gone", epoch, n, version, lambda: frames.Gone(bus_id))
