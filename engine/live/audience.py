"""Audiences: the listeners of one worker by how soon they are told, and what each channel of theirs has to say of a round.

There are two. Who follows single vehicles (`bus:`, `trip:`) is told at once: a channel that carries one vehicle has nothing to gather. Whoever
follows many (`route:`, `stop:`, `fleet:`, a viewport, or more than `AT_ONCE_MAX` channels) is told everything at ticks: 88 % of a delivery is
the kernel's write, whatever its size, so ten buses in one write cost a tenth each. A listener belongs to one of them with all its channels, or
a fix that two of them carry would be said twice, and an offset of one channel would promise what its tick still holds back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from engine.live import frames
from engine.live.listener import BBOX, Listener
from engine.live.table import Foreseen, Seen
from engine.live.updates import Moved, Pending, Update, gone_update
from engine.live.viewports import OnMap, Viewports

LATER: Final = frozenset({"route", "stop", "fleet"})  # kinds that carry many vehicles
AT_ONCE_MAX: Final = 8  # channels of a listener: past it the writes are worth gathering

Touched = dict[str, list[Update]]  # channel -> what it has to say, oldest first


class Channel:
    """A position channel that somebody of an audience listens to. A dict keeps its listeners: it iterates faster than a set."""

    __slots__ = ("listeners", "name", "snapshot")

    def __init__(self, name: str) -> None:
        self.name = name
        self.listeners: dict[Listener, None] = {}
        self.snapshot: tuple[int, Update] | None = None  # (hub version, snapshot): a crowd that comes at once shares one


class Audience:
    """Those who are told together."""

    def __init__(self, epoch_of: Callable[[str], str]) -> None:
        self.channels: dict[str, Channel] = {}
        self.viewports = Viewports()
        self.pending = Pending()
        self.is_busy = False  # True: a round is on its way to them
        self._epoch_of = epoch_of
        self._stop_channels = 0

    def __bool__(self) -> bool:
        """Whether there is anybody."""
        return bool(self.channels or self.viewports.rows)

    def join(self, listener: Listener, name: str) -> Channel:
        held = self.channels.get(name)
        if held is None:
            held = self.channels[name] = Channel(name)
            self._stop_channels += name.startswith("stop:")
        held.listeners[listener] = None
        return held

    def part(self, listener: Listener, name: str) -> bool:
        """False: it did not listen to that here."""
        held = self.channels.get(name)
        if held is None or listener not in held.listeners:
            return False
        del held.listeners[listener]
        if not held.listeners:
            del self.channels[name]
            self._stop_channels -= name.startswith("stop:")
        return True

    def taken(self) -> Pending:
        """What is pending, for a round."""
        pending, self.pending = self.pending, Pending()
        return pending

    # --- what a round has to say ---

    def touched(self, pending: Pending, snapshot: Callable[[Channel], list[Update]], area_of: Callable[[str], str | None]) -> Touched:
        """By channel. `snapshot`: all that a channel has to say after a new epoch of its area (`area_of`)."""
        touched: Touched = {}
        channels = self.channels

        def say(update: Update, names: Iterable[str]) -> None:
            for name in names:
                if name in channels:
                    touched.setdefault(name, []).append(update)

        if pending.resets:
            for name, held in channels.items():
                if area_of(name) in pending.resets:
                    touched[name] = snapshot(held)
        for bus_id, (heard_of, now, version) in pending.moved.items():
            if now.area not in pending.resets:
                moved = None
                for name in now.names:
                    if name in channels:
                        if moved is None:
                            moved = Moved(now, version, self._epoch_of(now.area))
                        touched.setdefault(name, []).append(moved)
            if heard_of and (heard_of[0].names is not now.names or len(heard_of) > 1):
                left = [name for name in _names_of(heard_of) if name not in now.names]
                say(gone_update(bus_id, self._epoch_of(now.area), now.n, version), left)
        for bus_id, (heard_of, seen, version) in pending.gone.items():
            say(gone_update(bus_id, self._epoch_of(seen.area), seen.n, version), _names_of(heard_of))
        for found, version in pending.forecasts.values():
            self._foresee(found, version, say)
        for key, (change, event, version) in pending.stops.items():
            body = frames.served(change.area, event)
            update = Update(("stop", key), "stop", self._epoch_of(change.area), change.n, version, lambda body=body: body)  # type: ignore[misc]
            say(update, ("trip:" + body.trip_id, "stop:" + body.stop_id))
        for word, name in (*pending.troubles.values(), *pending.notices.values()):
            say(word, (name,))
        return touched

    def _foresee(self, found: Foreseen, version: int, say: Callable[[Update, Iterable[str]], None]) -> None:
        """The whole forecast on its trip, each stop of it on its own."""
        area, epoch, trip = found.area, self._epoch_of(found.area), found.trip
        if trip in self.channels:
            say(Update(("eta", trip), "eta", epoch, found.n, version, lambda: frames.eta(area, found.forecast)), (trip,))
        if self._stop_channels:
            start = len("stop:") + len(area) + 1
            for name in found.ahead:  # of a stop that was missed its channel hears once, by `stop`
                if name in self.channels:
                    update = Update(
                        ("eta", name, trip), "eta", epoch, found.n, version,
                        lambda stop_id=name[start:]: frames.eta(area, found.forecast, stop_id),  # type: ignore[misc]
                    )  # fmt: skip
                    say(update, (name,))

    def on_maps(self, pending: Pending) -> list[OnMap]:
        """The vehicles of a round that a map may show, or showed."""
        found = []
        for heard_of, now, version in pending.moved.values():
            if now.area not in pending.resets:
                epoch = self._epoch_of(now.area)
                found.append(OnMap(heard_of[0] if heard_of else now, now, version, epoch, is_gone=False, is_again=False))
                found += [OnMap(was, now, version, epoch, is_gone=False, is_again=True) for was in heard_of[1:]]
        for heard_of, seen, version in pending.gone.values():
            found += [OnMap(was, seen, version, self._epoch_of(seen.area), is_gone=True, is_again=False) for was in heard_of]
        return found


def _names_of(heard_of: tuple[Seen, ...]) -> Iterable[str]:
    """The channels that carried it, each once."""
    return heard_of[0].names if len(heard_of) == 1 else dict.fromkeys(name for seen in heard_of for name in seen.names)


def belongs_later(listener: Listener) -> bool:
    """Whether it follows so much that it is told at ticks."""
    channels = listener.channels
    if BBOX in channels or len(channels) > AT_ONCE_MAX:
        return True
    return any(name.partition(":")[0] in LATER for name in channels)
