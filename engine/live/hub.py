"""The hub: who listens to what, and what they are told. It knows no transport.

Promises on position channels: a snapshot (or, for a `since` of this epoch that we can look back to, only what changed), then the newest state
per vehicle; offsets may skip; a vehicle's update reaches a listener once, naming all of its channels that carry it; several updates of one
round travel in one frame; a slow reader gets the newest when it reads again, holds up nobody and is sent away after `socket_stall_s`.
A trip's channel also tells the incidents that concern its passengers, and channels of trips, routes and stops the operators' alerts: a
newcomer gets those that go on right behind its snapshot, so what is not among them is over.
On ordered channels: every message, in order (engine/live/ordered.py).

Two audiences (engine/live/audience.py): who follows single vehicles is told in the next turn of the loop, who follows many at ticks of
`live_gather_ms`, the first of a quiet moment at once. Both are told by the same task, so nothing overtakes anything; while a tick goes out in
slices (engine/live/delivery.py), those who are told at once are told between them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from engine.clock import Clock
from engine.errors import Forbidden, Invalid, TooManyChannels, Unauthenticated
from engine.live import frames
from engine.live.advice import trip_incident
from engine.live.alerts import AlertItem
from engine.live.audience import Audience, Channel, Touched, belongs_later
from engine.live.channels import ORDERED, kind_of
from engine.live.delivery import SLICE, Breathe, Delivery, Job, with_view
from engine.live.first_words import FirstWords
from engine.live.listener import BBOX, Listener, Mailbox
from engine.live.table import Change, LiveTable
from engine.live.troubles import Troubles, Words
from engine.live.updates import Part, Pending, Update, framed, merged
from engine.meter import Meter
from engine.settings import Settings

log = logging.getLogger(__name__)

SLOW_READER: Final = 4408
SWEEP_S: Final = 1.0
OFFSETS: Final = range(1 << 53)  # what a listener may say it saw; beyond it nobody has been


class Since:
    """Where a listener was: the epoch and offset it saw last."""

    __slots__ = ("epoch", "offset")

    def __init__(self, epoch: str, offset: int) -> None:
        self.epoch, self.offset = epoch, offset


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
        self.version = 0
        self.alerts: Callable[[str], list[AlertItem]] = lambda channel: []  # what is in force for a channel (engine/live/board.py)
        self.first = FirstWords(table, self.troubles, lambda: self.version, lambda channel: self.alerts(channel))
        self.now = Audience(self.first.epoch)  # who is told at once
        self.later = Audience(self.first.epoch)  # who is told at ticks
        self.stalled: dict[Listener, float] = {}  # -> steady seconds at which it stopped reading
        self.ordered: Any = None  # engine.live.ordered.OrderedChannels, where the worker has one
        self._moving: dict[Listener, None] = {}  # who goes from `now` to `later` when the round that is on its way has arrived
        self._wake = asyncio.Event()
        self._tick_s = float("-inf")  # steady seconds of the last tick
        self._timer: asyncio.TimerHandle | None = None  # of the next one
        meter = meter or Meter()
        self.delivery = Delivery(meter)
        self._slow = meter.counter("timepoint_live_slow_readers_total", "listeners sent away because they did not read")
        self._broken = meter.counter("timepoint_live_rounds_failed_total", "rounds of the hub that raised")
        self._listeners = meter.gauge("timepoint_live_subscriptions", "position channels that somebody listens to")

    @property
    def channels(self) -> dict[str, Channel]:
        """The position channels that somebody listens to."""
        return {**self.later.channels, **self.now.channels}

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
        listener.channels[name] = self.version
        self._settle(listener)
        held = self._audience(listener).join(listener, name)
        self._listeners.set(len(self.now.channels) + len(self.later.channels))
        self._begin(listener, held, since, ident)

    def unsubscribe(self, listener: Listener, name: str) -> None:
        """Harmless where it was not subscribed."""
        if listener.channels.pop(name, None) is None:
            return
        if name == BBOX:
            self._audience(listener).viewports.drop(listener)
        elif self._audience(listener).part(listener, name):
            self._listeners.set(len(self.now.channels) + len(self.later.channels))
        elif self.ordered is not None:
            self.ordered.unsubscribe(listener, name)
        if not listener.channels:
            listener.is_later = False

    def look(self, listener: Listener, box: Sequence[float], ident: Any = None) -> None:
        """Follow a map: west, south, east, north in degrees; replaces the box before. Raises `Invalid`. A snapshot of the box follows."""
        west, south, east, north = box
        span = self.settings.bbox_span_max_deg
        width = east - west if west <= east else east - west + 360
        if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
            raise Invalid("a box is [west, south, east, north] in degrees, south below north")
        if width > span or north - south > span:
            raise Invalid(f"a box spans at most {span:g} degrees either way")
        listener.channels[BBOX] = self.version
        self._settle(listener)
        self._audience(listener).viewports.put(listener, (west, south, east, north))
        self._audience(listener).pending.cut = self.version
        listener.subscribed(ident, BBOX, "", 0, False)
        self.delivery.give(listener, [(self.first.box_snapshot(listener), (BBOX,))])

    def leave(self, listener: Listener) -> None:
        """It is gone: forget it everywhere."""
        for name in list(listener.channels):
            self.unsubscribe(listener, name)
        listener.mailbox = None
        self.stalled.pop(listener, None)
        self._moving.pop(listener, None)

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
            anew = self._anew(listener, name)
            if anew:
                listener.write(framed(listener.wire, [(update, (name,)) for update in anew]))

    def _audience(self, listener: Listener) -> Audience:
        return self.later if listener.is_later else self.now

    def _settle(self, listener: Listener) -> None:
        """To the audience that it belongs to by now. Who is told at ticks stays so while it listens to anything: a fix of its tick might be on
        its way."""
        if listener.is_later or not belongs_later(listener):
            return
        if len(listener.channels) == 1:
            listener.is_later = True
        elif self.now.is_busy:
            self._moving[listener] = None
        else:
            self._move(listener)

    def _move(self, listener: Listener) -> None:
        """From who is told at once to who is told at ticks, while no round is on its way: it is told what is pending, and goes on from there."""
        touched = self._touched(self.now, self.now.pending)
        names = [name for name in listener.channels if name in touched and listener in self.now.channels[name].listeners]
        if names:
            self.delivery.give_new(listener, merged(names, touched))
        for name in list(listener.channels):
            if self.now.part(listener, name):
                self.later.join(listener, name)
                listener.channels[name] = self.version
        listener.is_later = True
        self.later.pending.cut = self.version
        box = listener.box
        if box is not None:
            self.now.viewports.drop(listener)
            self.later.viewports.put(listener, box)
            self.delivery.give(listener, [(self.first.box_snapshot(listener), (BBOX,))])

    def _begin(self, listener: Listener, channel: Channel, since: Since | None, ident: Any) -> None:
        """The reply, then a snapshot, or what changed since."""
        name = channel.name
        self._audience(listener).pending.cut = self.version
        epoch, offset = self.first.mark(name)
        parts: list[Part] | None = None
        if since is not None and epoch and since.epoch == epoch:
            parts = self.first.missed(name, since.offset)
        listener.subscribed(ident, name, epoch, offset, parts is not None)
        if parts is None:
            parts = [(update, (name,)) for update in self.first.anew(channel)]
        if parts:
            self.delivery.give(listener, parts)

    def _anew(self, listener: Listener, name: str) -> list[Update]:
        """All that a channel of a listener has to say now; nothing where it has left it."""
        self._audience(listener).pending.cut = self.version
        if name == BBOX:
            return [self.first.box_snapshot(listener)] if listener.row >= 0 else []
        held = self._audience(listener).channels.get(name)
        if held is None or listener not in held.listeners:
            return []
        listener.channels[name] = self.version
        return self.first.anew(held)

    # --- hearing from the table ---

    def tell(self, change: Change) -> None:
        """What the table said; heard in the next round. Costs nothing where nobody listens."""
        self.version += 1
        troubles = self.troubles.hear(change) if change.incidents or change.over or change.reset else ()
        for audience in (self.now, self.later):
            if audience:
                audience.pending.add(change, self.version, audience.channels, bool(audience.viewports.rows))
                for one in troubles:
                    audience.pending.troubles[one.body.incident_id] = (self.first.trouble(one), one.channel)
                if audience.pending:
                    self._wake.set()

    def announce(self, feed_id: str, item: AlertItem, *, over: bool, carries: Callable[[str], bool]) -> None:
        """An operator's alert begins, changes or ends, on every channel that `carries` it."""
        self.version += 1
        update = self.first.notice(feed_id, item, over=over)
        if over:
            self.first.alert_over[feed_id] = update.n
        for audience in (self.now, self.later):
            for name in [name for name in audience.channels if carries(name)]:
                audience.pending.notices[name, item.alert_id] = (update, name)
                self._wake.set()

    # --- rounds ---

    async def run(self) -> None:
        """Rounds until cancelled, and once a second a look at who does not read."""
        sweep = asyncio.create_task(self._sweep(), name="live sweep")
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._guarded(self.now, _yield)
                if self.later.pending and self._is_time():
                    await self._guarded(self.later, self._breathe)
        finally:
            sweep.cancel()
            if self._timer is not None:
                self._timer.cancel()

    def _is_time(self) -> bool:
        """Whether a tick may go out; else we are woken when it may."""
        now_s = self.clock.steady_s()
        wait_s = self._tick_s + self.settings.live_gather_ms / 1000 - now_s
        if wait_s <= 0:
            self._tick_s = now_s
            return True
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._tick)
        return False

    def _tick(self) -> None:
        self._timer = None
        self._wake.set()

    async def _breathe(self) -> None:
        """Between two slices of a tick: the loop's other work, and who is told at once."""
        await asyncio.sleep(0)
        await self._guarded(self.now, _yield)

    async def _guarded(self, audience: Audience, breathe: Breathe) -> None:
        try:
            await self._round(audience, breathe)
        except Exception:
            self._broken.add()
            log.exception("a round of the hub broke; the next one goes on")

    async def round(self) -> None:
        """Says everything that is pending, whatever the time."""
        await self._round(self.now, _yield)
        await self._round(self.later, self._breathe)

    async def _round(self, audience: Audience, breathe: Breathe) -> None:
        """What is pending, in slices."""
        if not audience.pending:
            return
        audience.is_busy = True
        try:
            pending = audience.taken()
            touched = self._touched(audience, pending)
            mixed = await self.delivery.say(audience, touched, breathe)
            if audience.viewports.rows:
                await self._say_views(audience, pending, mixed, touched, breathe)
            await self.delivery.say_mixed(mixed, touched, breathe)
        finally:
            audience.is_busy = False
            while self._moving and audience is self.now:
                self._move(self._moving.popitem()[0])

    def _touched(self, audience: Audience, pending: Pending) -> Touched:
        return audience.touched(pending, self.first.anew, self.first.area_of)

    async def _say_views(
        self, audience: Audience, pending: Pending, mixed: dict[Listener, list[str]], touched: Touched, breathe: Breathe
    ) -> None:
        """To who follows a map: vehicles in it that have something new, and those that left it. Takes them out of `mixed`."""
        written = 0
        if pending.resets:
            for viewer in list(audience.viewports.rows.values()):
                self.delivery.give_new(viewer, merged(mixed.pop(viewer, ()), touched))
                self.delivery.give(viewer, [(self.first.box_snapshot(viewer), (BBOX,))])
                written += SLICE // 10
                if written >= SLICE:
                    written = 0
                    await breathe()
        vehicles = audience.on_maps(pending)
        if not vehicles:
            return
        for viewers, here, left in audience.viewports.shown(vehicles):
            seen = sorted([vehicles[i].shown() for i in here] + [vehicles[i].left() for i in left], key=_version)
            plain = [viewer for viewer in viewers if viewer not in mixed]
            if plain:
                await self.delivery.slices(Job((BBOX,), [(update, (BBOX,)) for update in seen], plain), breathe)
            for viewer in viewers:
                names = mixed.pop(viewer, None)
                if names is not None:
                    self.delivery.give_new(viewer, with_view(merged(names, touched), seen))
            written += len(viewers) + len(seen) // 5
            if written >= SLICE:
                written = 0
                await breathe()

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


async def _yield() -> None:
    await asyncio.sleep(0)


def _version(update: Update) -> int:
    return update.version
