"""Updates: what one round of the hub says, encoded at most once per encoding and set of channels, and only where somebody listens.

`Pending` gathers changes of the live table until the hub's next round and lets the newest win per vehicle, so a busy round never makes a
queue: it makes the next round's updates newer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from engine.events import Position, StopEvent
from engine.live import frames
from engine.live.channels import spoken
from engine.live.frames import ENCODE, Wire
from engine.live.table import Change, Foreseen, Seen


class Update:
    """One thing to say. `version` orders all updates of this worker; `n` is the number of its area (the wire's `o`)."""

    __slots__ = ("_bodies", "_make", "_pushes", "epoch", "key", "kind", "n", "ordered", "version")

    def __init__(self, key: Hashable, kind: str, epoch: str, n: int, version: int, make: Callable[[], Any]) -> None:
        self.key, self.kind, self.epoch, self.n, self.version = key, kind, epoch, n, version
        self.ordered = False
        self._make = make
        self._bodies: list[bytes | None] = [None, None]
        self._pushes: dict[tuple[int, tuple[str, ...]], bytes] = {}

    def body(self, encoding: int) -> bytes:
        """The encoded `d`."""
        made = self._bodies[encoding]
        if made is None:
            made = self._bodies[encoding] = ENCODE[encoding](self._make())
        return made

    def push(self, encoding: int, channels: tuple[str, ...]) -> bytes:
        """The encoded push that names these channels."""
        made = self._pushes.get((encoding, channels))
        if made is None:
            names = [spoken(channel) for channel in channels]
            epoch = self.epoch if self.kind == "snapshot" else None
            made = frames.push(encoding, names, [self.n] * len(names), self.kind, self.body(encoding), epoch)
            self._pushes[encoding, channels] = made
        return made


Part = tuple[Update, tuple[str, ...]]  # an update, and the channels of one listener that carry it


def framed(wire: Wire, parts: Sequence[Part]) -> bytes:
    """The one frame that says all of it."""
    payload = frames.batch(wire.encoding, [update.push(wire.encoding, channels) for update, channels in parts])
    last = parts[-1][0]
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


class Moved:
    """A vehicle that has something new: `before` is what its listeners heard last, None where they heard nothing."""

    __slots__ = ("_update", "before", "now", "version")

    def __init__(self, before: Seen | None, now: Seen, version: int) -> None:
        self.before, self.now, self.version = before, now, version
        self._update: Update | None = None

    def update(self, epoch: str) -> Update:
        """Its one `pos`, whichever channels and viewports say it."""
        if self._update is None:
            position = self.now.position
            self._update = Update(position.bus_id, "pos", epoch, self.now.n, self.version, lambda: frames.pos(position))
        return self._update


class Pending:
    """What the table said since the last round; at most one entry per vehicle, per forecast, per stop served, and per incident and alert that
    passengers hear of."""

    __slots__ = ("forecasts", "gone", "moved", "notices", "resets", "stops", "troubles")

    def __init__(self) -> None:
        self.moved: dict[str, Moved] = {}
        self.gone: dict[str, tuple[Seen, int]] = {}
        self.forecasts: dict[str, tuple[Foreseen, int]] = {}
        self.stops: dict[tuple[str, str, str, int], tuple[Change, StopEvent, int]] = {}
        self.resets: dict[str, None] = {}
        self.troubles: dict[str, tuple[Update, str]] = {}  # by incident, with the channel of its trip
        self.notices: dict[tuple[str, str], tuple[Update, str]] = {}  # by channel and alert

    def __bool__(self) -> bool:
        return bool(self.moved or self.gone or self.forecasts or self.stops or self.resets or self.troubles or self.notices)

    def add(self, change: Change, version: int) -> None:
        if change.reset:
            self.resets[change.area] = None
        for before, now in change.moved:
            bus_id = now.position.bus_id
            held = self.moved.pop(bus_id, None)  # popped and put back: the dict stays in order of version
            left = self.gone.pop(bus_id, None)
            heard = held.before if held is not None else left[0] if left is not None else before
            self.moved[bus_id] = Moved(heard, now, version)
        for seen in change.gone:
            bus_id = seen.position.bus_id
            held = self.moved.pop(bus_id, None)
            self.forecasts.pop(bus_id, None)
            if held is None or held.before is not None:
                last = seen.position if held is None or held.before is None else held.before.position
                self.gone[bus_id] = (Seen(seen.area, seen.n, last), version)
        for found in change.forecasts:
            self.forecasts.pop(found.forecast.bus_id, None)
            self.forecasts[found.forecast.bus_id] = (found, version)
        for event in change.stops:
            key = (event.bus_id, event.trip_id, event.start_date, event.stop_sequence)
            self.stops.pop(key, None)
            self.stops[key] = (change, event, version)


def gone_update(bus_id: str, epoch: str, n: int, version: int) -> Update:
    return Update(("gone", bus_id), "gone", epoch, n, version, lambda: frames.Gone(bus_id))


def same_groups(a: Position, b: Position) -> bool:
    """Whether both are carried by the same trip, route and fleet channels."""
    return a.trip_id == b.trip_id and a.route_id == b.route_id and a.partner_id == b.partner_id and a.start_date == b.start_date
