"""The hub: who listens to what, and what they are told. It knows no transport.

Promises on position channels: a snapshot (or, for a `since` of this epoch that we can look back to, only what changed), then the newest state
per vehicle; offsets may skip; a vehicle's update reaches a listener once, naming all of its channels that carry it; several updates of one
round travel in one frame; a slow reader gets the newest when it reads again, holds up nobody and is sent away after `socket_stall_s`.
A trip's channel also tells the incidents that concern its passengers, and channels of trips, routes and stops the operators' alerts: a
newcomer gets those that go on right behind its snapshot, so what is not among them is over.
On ordered channels: every message, in order (engine/live/ordered.py).
Refuses: a task or an await per listener. Rounds are planned at once and delivered in slices of `SLICE` sockets with a yield between, so
that a 5,000-wide broadcast never holds the loop for more than a millisecond (on a prototype, HTTP p99 46 ms without slices, 1.5 ms with them).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.clock import Clock
from engine.errors import Forbidden, Invalid, TooManyChannels, Unauthenticated
from engine.live import frames
from engine.live.advice import trip_incident
from engine.live.alerts import AlertItem, AlertNotice
from engine.live.channels import ORDERED, kind_of
from engine.live.listener import BBOX, Listener, Mailbox
from engine.live.table import Change, Foreseen, LiveTable, Seen, group_channels
from engine.live.troubles import Trouble, Troubles, Words
from engine.live.updates import Part, Pending, Update, framed, gone_update, merged, same_groups
from engine.meter import Meter
from engine.settings import Settings

log = logging.getLogger(__name__)

SLICE: Final = 100  # sockets written between two yields: about 0.7 ms
NEVER: Final = 1 << 62
SLOW_READER: Final = 4408
BOX_CHUNK: Final = 500_000  # comparisons of viewports with vehicles between two yields: about 1 ms in numpy
SWEEP_S: Final = 1.0
OFFSETS: Final = range(1 << 53)  # what a listener may say it saw; beyond it nobody has been


class Since:
    """Where a listener was: the epoch and offset it saw last."""

    __slots__ = ("epoch", "offset")

    def __init__(self, epoch: str, offset: int) -> None:
        self.epoch, self.offset = epoch, offset


class Channel:
    """A position channel that somebody listens to. A dict keeps its listeners: it iterates faster than a set."""

    __slots__ = ("listeners", "name", "snapshots")

    def __init__(self, name: str) -> None:
        self.name = name
        self.listeners: dict[Listener, None] = {}
        self.snapshots: tuple[int, Update] | None = None  # (hub version, snapshot): a crowd that comes at once shares one


class Job:
    """The same parts for many listeners. `first` is the oldest version among them: whoever subscribed later gets only what is newer."""

    __slots__ = ("channel", "first", "listeners", "parts")

    def __init__(self, channel: str | None, parts: list[Part], listeners: list[Listener]) -> None:
        self.channel = channel  # None: several, checked part by part
        self.parts, self.listeners = parts, listeners
        self.first = min(update.version for update, _ in parts)


class Viewports:
    """The boxes of all listeners that follow a map, as columns, so that one numpy step compares all of them with all vehicles of a round."""

    def __init__(self) -> None:
        self.columns: NDArray[np.float64] = np.full((4, 64), np.nan)  # west, south, east, north; NaN is inside nothing
        self.rows: dict[int, Listener] = {}
        self._free = list(range(63, -1, -1))

    def put(self, listener: Listener, box: tuple[float, float, float, float]) -> None:
        if listener.row < 0:
            if not self._free:
                size = self.columns.shape[1]
                self.columns = np.concatenate([self.columns, np.full((4, size), np.nan)], axis=1)
                self._free = list(range(2 * size - 1, size - 1, -1))
            listener.row = self._free.pop()
            self.rows[listener.row] = listener
        self.columns[:, listener.row] = box
        listener.box = box

    def drop(self, listener: Listener) -> None:
        if listener.row >= 0:
            self.columns[:, listener.row] = np.nan
            self._free.append(listener.row)
            del self.rows[listener.row]
            listener.row, listener.box = -1, None

    def inside(self, rows: slice, lons: NDArray[np.float64], lats: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(rows, vehicles): whether each vehicle is in each box."""
        west, south, east, north = self.columns[:, rows, None]
        across = np.where(west <= east, (west <= lons) & (lons <= east), (west <= lons) | (lons <= east))
        inside: NDArray[np.bool_] = across & (south <= lats) & (lats <= north)
        return inside


class Hub:
    """One per worker."""

    def __init__(
        self,
        table: LiveTable,
        settings: Settings,
        clock: Clock,
        meter: Meter | None = None,
        may_listen: Callable[[Any, str], bool] = lambda principal, channel: True,
        words: Words | None = None,
    ) -> None:
        self.table, self.settings, self.clock, self.may_listen = table, settings, clock, may_listen
        self.troubles = Troubles(words or (lambda area, event: trip_incident(area, event, None, clock.now_ms())), clock.now_ms)
        self.alerts: Callable[[str], list[AlertItem]] = lambda channel: []  # what is in force for a channel (engine/live/board.py)
        self.version = 0
        self.channels: dict[str, Channel] = {}
        self.viewports = Viewports()
        self.stalled: dict[Listener, float] = {}  # -> steady seconds at which it stopped reading
        self.ordered: Any = None  # engine.live.ordered.OrderedChannels, where the worker has one
        self._pending = Pending()
        self._wake = asyncio.Event()
        self._stop_channels = 0
        self._alert_over: dict[str, int] = {}  # area -> its number when an alert ended last: who was away then takes a snapshot
        meter = meter or Meter()
        self.sent = meter.counter("timepoint_live_deliveries_total", "frames handed to listeners")
        self._kept = meter.counter("timepoint_live_kept_total", "updates kept for stalled listeners")
        self._slow = meter.counter("timepoint_live_slow_readers_total", "listeners sent away because they did not read")
        self._broken = meter.counter("timepoint_live_rounds_failed_total", "rounds of the hub that raised")
        self._listeners = meter.gauge("timepoint_live_subscriptions", "position channels that somebody listens to")

    # --- listening ---

    def subscribe(self, listener: Listener, channel: str, since: Since | None = None, ident: Any = None, *, name: str = "") -> None:
        """Grants it or raises `Invalid`, `Unauthenticated`, `Forbidden` or `TooMany`; calls `listener.subscribed`, then pushes.

        `name` is the channel's inner name where it differs (everyone's own notifications).
        """
        kind = kind_of(channel)
        if not self.may_listen(listener.principal, channel):
            if listener.principal is None:
                raise Unauthenticated(f"{channel} asks for an access token: send auth first")
            raise Forbidden(f"{channel} is not for you")
        name = name or channel
        if name not in listener.channels and len(listener.channels) >= self.settings.socket_subscriptions_max:
            raise TooManyChannels(f"at most {self.settings.socket_subscriptions_max} channels a socket")
        if kind in ORDERED:
            if self.ordered is None:
                raise Invalid(f"{kind} channels are not served here")
            self.ordered.subscribe(listener, name, since, ident)
            return
        held = self.channels.get(name)
        if held is None:
            held = self.channels[name] = Channel(name)
            self._stop_channels += kind == "stop"
            self._listeners.set(len(self.channels))
        held.listeners[listener] = None
        listener.channels[name] = self.version
        self._begin(listener, held, since, ident)

    def unsubscribe(self, listener: Listener, name: str) -> None:
        """Harmless where it was not subscribed."""
        if listener.channels.pop(name, None) is None:
            return
        if name == BBOX:
            self.viewports.drop(listener)
            return
        held = self.channels.get(name)
        if held is None:
            if self.ordered is not None:
                self.ordered.unsubscribe(listener, name)
            return
        held.listeners.pop(listener, None)
        if not held.listeners:
            del self.channels[name]
            self._stop_channels -= name.startswith("stop:")
            self._listeners.set(len(self.channels))

    def look(self, listener: Listener, box: Sequence[float], ident: Any = None) -> None:
        """Follow a map: west, south, east, north in degrees; replaces the box before. Raises `Invalid`. A snapshot of the box follows."""
        west, south, east, north = box
        span = self.settings.bbox_span_max_deg
        width = east - west if west <= east else east - west + 360
        if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
            raise Invalid("a box is [west, south, east, north] in degrees, south below north")
        if width > span or north - south > span:
            raise Invalid(f"a box spans at most {span:g} degrees either way")
        self.viewports.put(listener, (west, south, east, north))
        listener.box_version = self.version
        listener.channels[BBOX] = self.version
        listener.subscribed(ident, BBOX, "", 0, False)
        self._give(listener, [(self._box_snapshot(listener), (BBOX,))])

    def leave(self, listener: Listener) -> None:
        """It is gone: forget it everywhere."""
        for name in list(listener.channels):
            self.unsubscribe(listener, name)
        listener.mailbox = None
        self.stalled.pop(listener, None)

    def stall(self, listener: Listener) -> None:
        """Its transport's buffer is full: keep the newest until `resume`."""
        if listener.mailbox is None:
            listener.mailbox = Mailbox()
            self.stalled.setdefault(listener, self.clock.steady_s())

    def resume(self, listener: Listener) -> None:
        """It reads again: one frame with what was kept, then a snapshot of each channel that dropped something."""
        box = listener.mailbox
        if box is None:
            return
        listener.mailbox = None
        self.stalled.pop(listener, None)  # it reads: where what follows fills it again, it has stalled anew
        encoding = listener.wire.encoding
        kept = [*box.ordered, *box.parts.values()]
        if kept:
            listener.write(listener.wire.frame(frames.batch(encoding, kept), ""))
        while box.owed:
            if listener.mailbox is not None:  # full again: the rest is still owed
                listener.mailbox.owe(box.owed)
                return
            name = next(iter(box.owed))
            del box.owed[name]
            snapshot = self._snapshot_for(listener, name)
            if snapshot is not None:
                listener.write(framed(listener.wire, [(update, (name,)) for update in (snapshot, *self._beside(name))]))

    # --- hearing from the table ---

    def tell(self, change: Change) -> None:
        """What the table said; heard in the next round. Costs nothing where nobody listens."""
        self.version += 1
        troubles = self.troubles.hear(change) if change.incidents or change.over or change.reset else ()
        if self.channels or self.viewports.rows:
            self._pending.add(change, self.version)
            for one in troubles:
                self._pending.troubles[one.body.incident_id] = (self._trouble(one), one.channel)
            self._wake.set()

    def announce(self, feed_id: str, item: AlertItem, *, over: bool, carries: Callable[[str], bool]) -> None:
        """An operator's alert begins, changes or ends, on every channel that `carries` it."""
        self.version += 1
        update = self._notice(feed_id, item, over=over)
        if over:
            self._alert_over[feed_id] = update.n
        for name in [name for name in self.channels if carries(name)]:
            self._pending.notices[name, item.alert_id] = (update, name)
            self._wake.set()

    async def run(self) -> None:
        """Rounds until cancelled, and once a second a look at who does not read."""
        sweep = asyncio.create_task(self._sweep(), name="live sweep")
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                try:
                    await self.round()
                except Exception:
                    self._broken.add()
                    log.exception("a round of the hub broke; the next one goes on")
        finally:
            sweep.cancel()

    async def round(self) -> None:
        """Says everything that is pending, in slices."""
        pending, self._pending = self._pending, Pending()
        if not pending:
            return
        touched = self._touched(pending)
        crowd, mixed = self._sorted(touched)
        for name, listeners in crowd:
            await self._deliver(Job(name, [(update, (name,)) for update in touched[name]], listeners))
        views = await self._views(pending) if self.viewports.rows else {}
        groups: dict[tuple[str, ...], list[Listener]] = {}
        for listener, names in mixed.items():
            if listener not in views:
                groups.setdefault(tuple(names), []).append(listener)
        for group, listeners in groups.items():
            await self._deliver(Job(group[0] if len(group) == 1 else None, merged(group, touched), listeners))
        for number, (viewer, seen) in enumerate(views.items()):
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            self._give_new(viewer, self._with_view(merged(mixed.get(viewer, ()), touched), seen))

    # --- a round ---

    def _touched(self, pending: Pending) -> dict[str, list[Update]]:
        """For every channel that somebody listens to: what it has to say, oldest first."""
        touched: dict[str, list[Update]] = {}
        channels = self.channels

        def say(update: Update, names: Iterable[str]) -> None:
            for name in names:
                if name in channels:
                    touched.setdefault(name, []).append(update)

        for area_id in pending.resets:
            self._reset(area_id, touched)
        for bus_id, moved in pending.moved.items():
            now, before = moved.now, moved.before
            epoch = self._epoch(now.area)
            if now.area not in pending.resets:
                say(moved.update(epoch), ("bus:" + bus_id, *group_channels(now.position)))
            if before is not None and not same_groups(before.position, now.position):
                stays = group_channels(now.position)
                say(gone_update(bus_id, epoch, now.n, moved.version), [c for c in group_channels(before.position) if c not in stays])
        for bus_id, (seen, version) in pending.gone.items():
            say(gone_update(bus_id, self._epoch(seen.area), seen.n, version), ("bus:" + bus_id, *group_channels(seen.position)))
        for found, version in pending.forecasts.values():
            self._touch_forecast(found, version, say)
        for key, (change, event, version) in pending.stops.items():
            body = frames.served(change.area, event)
            update = Update(("stop", key), "stop", self._epoch(change.area), change.n, version, lambda body=body: body)  # type: ignore[misc]
            say(update, ("trip:" + body.trip_id, "stop:" + body.stop_id))
        for word, name in (*pending.troubles.values(), *pending.notices.values()):
            say(word, (name,))
        return touched

    def _touch_forecast(self, found: Foreseen, version: int, say: Callable[[Update, Iterable[str]], None]) -> None:
        forecast, area, epoch = found.forecast, found.area, self._epoch(found.area)
        trip = f"trip:{area}:{forecast.trip_id}:{forecast.start_date}"
        if trip in self.channels:
            say(Update(("eta", trip), "eta", epoch, found.n, version, lambda: frames.eta(area, forecast)), (trip,))
        if self._stop_channels:
            for stop in forecast.ahead:  # of a stop that was missed its channel hears once, by `stop`
                name = f"stop:{area}:{stop.stop_id}"
                if name in self.channels:
                    update = Update(
                        ("eta", name, trip), "eta", epoch, found.n, version,
                        lambda stop_id=stop.stop_id: frames.eta(area, forecast, stop_id),  # type: ignore[misc]
                    )  # fmt: skip
                    say(update, (name,))

    def _reset(self, area_id: str, touched: dict[str, list[Update]]) -> None:
        """A new epoch: a snapshot on every channel of that area."""
        for name, held in self.channels.items():
            area, _ = self.table.mark(name)
            if area is not None and area.id == area_id:
                touched.setdefault(name, []).extend((self._snapshot(held), *self._troubles_of(name), *self._notices_of(name)))

    def _sorted(self, touched: dict[str, list[Update]]) -> tuple[list[tuple[str, list[Listener]]], dict[Listener, list[str]]]:
        """The crowd of each channel (listeners of nothing else), and the others with their touched channels."""
        crowd: list[tuple[str, list[Listener]]] = []
        mixed: dict[Listener, list[str]] = {}
        for name in touched:
            alone = []
            for listener in self.channels[name].listeners:
                if len(listener.channels) == 1:
                    alone.append(listener)
                else:
                    mixed.setdefault(listener, []).append(name)
            if alone:
                crowd.append((name, alone))
        return crowd, mixed

    async def _deliver(self, job: Job) -> None:
        """One job in slices; the frame is made once per wire."""
        made: dict[Any, bytes] = {}
        channel, first, parts = job.channel, job.first, job.parts
        for start in range(0, len(job.listeners), SLICE):
            if start:
                await asyncio.sleep(0)
            count = 0
            for listener in job.listeners[start : start + SLICE]:
                if channel is None:
                    if any(listener.channels.get(name, NEVER) >= first for _, names in parts for name in names):
                        self._give_new(listener, parts)
                        continue
                elif listener.channels.get(channel, NEVER) >= first:
                    self._give_new(listener, parts)
                    continue
                if listener.mailbox is None:
                    wire = listener.wire
                    frame = made.get(wire)
                    if frame is None:
                        frame = made[wire] = framed(wire, parts)
                    listener.write(frame)
                    count += 1
                else:
                    self._keep(listener, parts)
            self.sent.add(count)

    def _give_new(self, listener: Listener, parts: list[Part]) -> None:
        """Only what is newer than the listener's subscription of the channel that carries it."""
        fresh = []
        for update, names in parts:
            kept = tuple(name for name in names if listener.channels.get(name, NEVER) < update.version)
            if kept:
                fresh.append((update, kept))
        if fresh:
            self._give(listener, fresh)

    def _give(self, listener: Listener, parts: list[Part]) -> None:
        if listener.mailbox is None:
            listener.write(framed(listener.wire, parts))
            self.sent.add()
        else:
            self._keep(listener, parts)

    def _keep(self, listener: Listener, parts: list[Part]) -> None:
        box = listener.mailbox
        assert box is not None
        encoding = listener.wire.encoding
        self._kept.add(len(parts))
        for update, names in parts:
            if update.kind == "snapshot":
                box.owe(dict.fromkeys(names))
                continue
            key = update.key if update.kind == "pos" else (update.key, names)
            if not box.keep(key, names, update.push(encoding, names)):
                box.owe(dict.fromkeys(name for name in listener.channels if name in self.channels or name == BBOX))

    # --- viewports ---

    async def _views(self, pending: Pending) -> dict[Listener, list[Update]]:
        """What each viewport has to say: vehicles in it that have something new, and those that left it."""
        found: dict[Listener, list[Update]] = {}
        if pending.resets:
            for listener in list(self.viewports.rows.values()):
                found[listener] = [self._box_snapshot(listener)]
        moved = [m for m in pending.moved.values() if m.now.area not in pending.resets]
        updates = [m.update(self._epoch(m.now.area)) for m in moved]
        farewells = [gone_update(m.now.position.bus_id, self._epoch(m.now.area), m.now.n, m.version) for m in moved]
        places = [m.now.position for m in moved]
        before = [m.now.position if m.before is None else m.before.position for m in moved]
        for bus_id, (seen, version) in pending.gone.items():
            farewells.append(gone_update(bus_id, self._epoch(seen.area), seen.n, version))
            updates.append(farewells[-1])
            places.append(seen.position)
            before.append(seen.position)
        if not updates:
            return found
        is_gone = np.arange(len(updates)) >= len(moved)
        lons, lats = np.array([p.lon for p in places]), np.array([p.lat for p in places])
        old_lons, old_lats = np.array([p.lon for p in before]), np.array([p.lat for p in before])
        size, step = self.viewports.columns.shape[1], max(1, BOX_CHUNK // len(updates))
        for start in range(0, size, step):
            if start:
                await asyncio.sleep(0)
            rows = slice(start, min(size, start + step))
            here = self.viewports.inside(rows, lons, lats) & ~is_gone
            was = self.viewports.inside(rows, old_lons, old_lats)
            for row, index in zip(*(found_at.tolist() for found_at in np.nonzero(here | was)), strict=True):
                viewer = self.viewports.rows.get(start + row)
                if viewer is not None:
                    found.setdefault(viewer, []).append(updates[index] if here[row, index] else farewells[index])
        return found

    @staticmethod
    def _with_view(parts: list[Part], seen: list[Update]) -> list[Part]:
        """The updates of a viewport among those of the listener's other channels: a vehicle that both carry is said once."""
        at = {(update.kind, update.key): index for index, (update, _) in enumerate(parts)}
        out = list(parts)
        for update in seen:
            index = at.get((update.kind, update.key))
            if index is None:
                out.append((update, (BBOX,)))
            else:
                out[index] = (out[index][0], (*out[index][1], BBOX))
        out.sort(key=lambda part: part[0].version)
        return out

    # --- first words ---

    def _epoch(self, area_id: str) -> str:
        area = self.table.areas.get(area_id)
        return "" if area is None else area.epoch

    def _begin(self, listener: Listener, channel: Channel, since: Since | None, ident: Any) -> None:
        """The reply, then a snapshot, or what changed since."""
        name = channel.name
        area, single = self.table.mark(name)
        epoch, offset = (area.epoch, area.n) if area is not None and single else ("", 0)
        parts: list[Part] | None = None
        if since is not None and area is not None and epoch and since.epoch == epoch:
            parts = self._missed(name, since.offset)
        listener.subscribed(ident, name, epoch, offset, parts is not None)
        if parts is None:
            parts = [(update, (name,)) for update in (self._snapshot(channel), *self._beside(name))]
        if parts:
            self._give(listener, parts)

    def _missed(self, name: str, offset: int) -> list[Part] | None:
        """What the channel said after that offset, newest only; None where a snapshot has to say it."""
        area, _ = self.table.mark(name)
        if area is None or offset > area.n or (name.startswith("stop:") and offset != area.n):
            return None  # ahead of us: another worker's, or a lost tail. Stops: what was served is not kept, the board is short
        left = [] if name.startswith("bus:") else self.table.left_since(area, name, offset)
        said = self.troubles.since(area.id, name, offset)
        if left is None or said is None or (name.startswith(("trip:", "route:")) and offset <= self._alert_over.get(area.id, -1)):
            return None
        gone = [gone_update(bus_id, area.epoch, area.n, self.version) for bus_id in left]
        changed = sorted((seen for seen in self.table.on_channel(name) if seen.n > offset), key=lambda seen: seen.n)
        updates = gone + [self._position(seen) for seen in changed] + self._forecasts_of(name, offset)
        updates += [self._trouble(one) for one in said] + self._notices_of(name)
        return [(update, (name,)) for update in updates]

    def _beside(self, name: str) -> list[Update]:
        """What follows a snapshot in its frame: forecasts, incidents that go on, alerts in force."""
        return [*self._forecasts_of(name, -1), *self._troubles_of(name), *self._notices_of(name)]

    def _troubles_of(self, name: str) -> list[Update]:
        return [self._trouble(one) for one in self.troubles.open_on(name)]

    def _trouble(self, one: Trouble) -> Update:
        return Update(("incident", one.body.incident_id), "incident", self._epoch(one.area), one.n, self.version, lambda: one.body)

    def _notices_of(self, name: str) -> list[Update]:
        area, _ = self.table.mark(name)
        return [] if area is None else [self._notice(area.id, item, over=False) for item in self.alerts(name)]

    def _notice(self, feed_id: str, item: AlertItem, *, over: bool) -> Update:
        area = self.table.areas.get(feed_id)
        body = AlertNotice("ALERT_OVER" if over else "ALERT", item)
        return Update(("notice", item.alert_id), "notice", self._epoch(feed_id), 0 if area is None else area.n, self.version, lambda: body)

    def _position(self, seen: Seen) -> Update:
        return Update(seen.position.bus_id, "pos", self._epoch(seen.area), seen.n, self.version, lambda: frames.pos(seen.position))

    def _forecasts_of(self, name: str, offset: int) -> list[Update]:
        """A trip channel's forecasts that changed after that offset."""
        if not name.startswith("trip:"):
            return []
        found = [self.table.forecasts.get(seen.position.bus_id) for seen in self.table.on_channel(name)]
        return [
            Update(("eta", name), "eta", self._epoch(f.area), f.n, self.version, lambda f=f: frames.eta(f.area, f.forecast))  # type: ignore[misc]
            for f in found
            if f is not None and f.n > offset and name == f"trip:{f.area}:{f.forecast.trip_id}:{f.forecast.start_date}"
        ]

    def _snapshot_for(self, listener: Listener, name: str) -> Update | None:
        if name == BBOX:
            return self._box_snapshot(listener) if listener.row >= 0 else None
        held = self.channels.get(name)
        if held is None or listener not in held.listeners:
            return None
        listener.channels[name] = self.version
        return self._snapshot(held)

    def _snapshot(self, channel: Channel) -> Update:
        """All that the channel carries now."""
        if channel.snapshots is not None and channel.snapshots[0] == self.version:
            return channel.snapshots[1]
        name = channel.name
        area, single = self.table.mark(name)
        epoch, n = (area.epoch, area.n) if area is not None and single else ("", 0)
        if name.startswith("stop:"):
            stop_id = name.split(":", 2)[2]
            board = self.table.at_stop(name[5:])
            made = Update("snapshot", "snapshot", epoch, n, self.version, lambda: [frames.eta(f.area, f.forecast, stop_id) for f in board])
        else:
            seen = self.table.on_channel(name)
            made = Update("snapshot", "snapshot", epoch, n, self.version, lambda: [frames.pos(s.position) for s in seen])
        channel.snapshots = (self.version, made)
        return made

    def _box_snapshot(self, listener: Listener) -> Update:
        assert listener.box is not None
        listener.channels[BBOX] = listener.box_version = self.version
        seen = list(self.table.inside(*listener.box))
        n = max((s.n for s in seen), default=0)
        return Update("snapshot", "snapshot", "", n, self.version, lambda: [frames.pos(s.position) for s in seen])

    # --- who does not read ---

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep()

    def sweep(self) -> None:
        """Sends away whoever has not read for `socket_stall_s`."""
        limit = self.clock.steady_s() - self.settings.socket_stall_s
        for listener in [listener for listener, since in self.stalled.items() if since <= limit]:
            self._slow.add()
            self.stalled.pop(listener, None)
            listener.close(SLOW_READER, "slow reader: come back")

    def send_away(self, listener: Listener) -> None:
        """An ordered message found no room: it may not be dropped, so the listener has to come back with `since`."""
        self._slow.add()
        self.stalled.pop(listener, None)
        listener.close(SLOW_READER, "slow reader: come back with since")
