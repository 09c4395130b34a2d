"""First words: what a newcomer to a position channel is told, and what somebody who comes back has missed.

A snapshot holds all that the channel carries now; beside it, in the same frame, go forecasts, incidents that go on and alerts in force. For a
`since` of this epoch that we can look back to there is only what changed since. Reads the live table, troubles and alerts; keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.live import frames
from engine.live.alerts import AlertItem, AlertNotice
from engine.live.audience import Channel
from engine.live.listener import BBOX, Listener
from engine.live.table import LiveTable, Seen
from engine.live.troubles import Trouble, Troubles
from engine.live.updates import Moved, Part, Update, gone_update


class FirstWords:
    """Of one hub, whose `version` every update carries."""

    def __init__(self, table: LiveTable, troubles: Troubles, version: Callable[[], int], alerts: Callable[[str], list[AlertItem]]) -> None:
        """`alerts`: what is in force for a channel."""
        self.table, self.troubles, self._version, self._alerts = table, troubles, version, alerts
        self.alert_over: dict[str, int] = {}  # area -> its number when an alert ended last: who was away then takes a snapshot

    def epoch(self, area_id: str) -> str:
        area = self.table.areas.get(area_id)
        return "" if area is None else area.epoch

    def area_of(self, name: str) -> str | None:
        area, _ = self.table.mark(name)
        return None if area is None else area.id

    def mark(self, name: str) -> tuple[str, int]:
        """Epoch and number that a channel's offsets are of; ("", 0) where nothing can be resumed."""
        area, single = self.table.mark(name)
        return (area.epoch, area.n) if area is not None and single else ("", 0)

    def snapshot(self, channel: Channel) -> Update:
        """All that the channel carries now."""
        version, name = self._version(), channel.name
        if channel.snapshot is not None and channel.snapshot[0] == version:
            return channel.snapshot[1]
        epoch, n = self.mark(name)
        if name.startswith("stop:"):
            stop_id = name.split(":", 2)[2]
            board = self.table.at_stop(name[5:])
            made = Update("snapshot", "snapshot", epoch, n, version, lambda: [frames.eta(f.area, f.forecast, stop_id) for f in board])
        else:
            made = Picture(epoch, n, version, self.table.on_channel(name))
        channel.snapshot = (version, made)
        return made

    def box_snapshot(self, listener: Listener) -> Update:
        """All that its map shows now. What was said before is nothing to it any more."""
        assert listener.box is not None
        version = listener.channels[BBOX] = self._version()
        seen = list(self.table.inside(*listener.box))
        return Picture("", max((s.n for s in seen), default=0), version, seen)

    def anew(self, channel: Channel) -> list[Update]:
        """A snapshot and what stands beside it."""
        return [self.snapshot(channel), *self.beside(channel.name)]

    def beside(self, name: str) -> list[Update]:
        """What follows a snapshot in its frame: forecasts, incidents that go on, alerts in force."""
        return [*self._forecasts(name, -1), *(self.trouble(one) for one in self.troubles.open_on(name)), *self._notices(name)]

    def missed(self, name: str, offset: int) -> list[Part] | None:
        """What the channel said after that offset, newest only; None where a snapshot has to say it."""
        area, _ = self.table.mark(name)
        if area is None or offset > area.n or (name.startswith("stop:") and offset != area.n):
            return None  # ahead of us: another worker's, or a lost tail. Stops: what was served is not kept, the board is short
        left = [] if name.startswith("bus:") else self.table.left_since(area, name, offset)
        said = self.troubles.since(area.id, name, offset)
        if left is None or said is None or (name.startswith(("trip:", "route:")) and offset <= self.alert_over.get(area.id, -1)):
            return None
        version = self._version()
        gone = [gone_update(bus_id, area.epoch, area.n, version) for bus_id in left]
        changed = sorted((seen for seen in self.table.on_channel(name) if seen.n > offset), key=lambda seen: seen.n)
        moved = [Moved(seen, version, self.epoch(seen.area)) for seen in changed]
        updates = [*gone, *moved, *self._forecasts(name, offset), *(self.trouble(one) for one in said), *self._notices(name)]
        return [(update, (name,)) for update in updates]

    def trouble(self, one: Trouble) -> Update:
        return Update(("incident", one.body.incident_id), "incident", self.epoch(one.area), one.n, self._version(), lambda: one.body)

    def notice(self, feed_id: str, item: AlertItem, *, over: bool) -> Update:
        area = self.table.areas.get(feed_id)
        body = AlertNotice("ALERT_OVER" if over else "ALERT", item)
        n = 0 if area is None else area.n
        return Update(("notice", item.alert_id), "notice", self.epoch(feed_id), n, self._version(), lambda: body)

    def _notices(self, name: str) -> list[Update]:
        area, _ = self.table.mark(name)
        return [] if area is None else [self.notice(area.id, item, over=False) for item in self._alerts(name)]

    def _forecasts(self, name: str, offset: int) -> list[Update]:
        """A trip channel's forecasts that changed after that offset."""
        if not name.startswith("trip:"):
            return []
        found = [self.table.forecasts.get(seen.position.bus_id) for seen in self.table.on_channel(name)]
        return [
            Update(("eta", name), "eta", self.epoch(f.area), f.n, self._version(), lambda f=f: frames.eta(f.area, f.forecast))  # type: ignore[misc]
            for f in found
            if f is not None and f.n > offset and name == f.trip
        ]


class Picture(Update):
    """A snapshot of vehicles, put together from what was encoded when they were told."""

    __slots__ = ("seen",)

    def __init__(self, epoch: str, n: int, version: int, seen: list[Seen]) -> None:
        super().__init__("snapshot", "snapshot", epoch, n, version, list)
        self.seen = seen

    def body(self, encoding: int) -> bytes:
        return frames.array(encoding, [one.body(encoding) for one in self.seen])
