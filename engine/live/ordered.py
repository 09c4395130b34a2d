"""Ordered channels: seats, booking, incidents, notifications. Every message, in order, to whoever listens.

Redis gives each message its offset, its place in a bounded log and its PUBLISH in one step; publications may be lost (a reconnect), the log
is not. So a hole in the offsets, a reconnect or a new epoch makes us read the log; what it no longer has becomes a snapshot. A listener
that comes with `since` gets what it missed; without, or where the log does not reach back, a snapshot (`picture`, or the newest messages
the log still has). A listener with no room for a message is sent away (4408) and comes back with `since`: none is ever dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

import msgspec

from engine.errors import EngineError, Unavailable
from engine.live import frames
from engine.live.channels import spoken
from engine.live.delivery import SLICE
from engine.live.frames import ENCODE, JSON, Wire
from engine.live.hub import Hub, Since
from engine.live.listener import Listener
from engine.meter import Meter

log = logging.getLogger(__name__)

WAITING_MAX: Final = 1_000  # messages kept per channel while its log is read: as many as the log keeps
JOINING_MAX: Final = 1_000  # subscriptions that wait for the log at once; past it they are refused and come back
SNAPSHOT_MAX: Final = 100  # newest messages that stand for a picture where nobody gives a better one
RETRY_S: Final = 0.5

Picture = Callable[[str], Awaitable[Any]]  # inner channel name -> what a newcomer has to know; None: nothing better than the log
Admit = Callable[[Any, str], Awaitable[None]]  # (principal, inner channel name); raises an `EngineError` for who may not listen


class Message(Protocol):
    """One message, as `engine.store.redis.ChannelMessage`."""

    @property
    def channel(self) -> str: ...
    @property
    def epoch(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def payload(self) -> bytes: ...


class Log(Protocol):
    """What a channel still keeps after an offset, as `engine.store.redis.ChannelLog`."""

    @property
    def epoch(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def complete(self) -> bool: ...
    @property
    def messages(self) -> Sequence[Message]: ...


class Source(Protocol):
    """What we need of `engine.store.redis.Redis`."""

    async def channel_log(self, channel: str, since: int) -> Any: ...
    def listen_ordered(self) -> AsyncIterator[Any]: ...


class Said(msgspec.Struct, gc=False):
    """A message's payload: its kind and its body, both encodings made at most once by `Push`."""

    t: str
    d: msgspec.Raw


class Push:
    """One message on its way: the encoded push per encoding, and its frame per wire, which all listeners share."""

    __slots__ = ("_frames", "_made", "message")

    def __init__(self, message: Message) -> None:
        self.message = message
        self._made: list[bytes | None] = [None, None]
        self._frames: dict[Wire, bytes] = {}

    def frame(self, wire: Wire) -> bytes:
        made = self._frames.get(wire)
        if made is None:
            made = self._frames[wire] = wire.frame(self.bytes(wire.encoding), f"{self.message.epoch}:{self.message.offset}")
        return made

    def bytes(self, encoding: int) -> bytes:
        made = self._made[encoding]
        if made is None:
            said = msgspec.json.decode(self.message.payload, type=Said)
            body = bytes(said.d) if encoding == JSON else msgspec.msgpack.encode(msgspec.json.decode(said.d))
            made = frames.push(encoding, (spoken(self.message.channel),), self.message.offset, said.t, body)
            self._made[encoding] = made
        return made


class OrderedChannel:
    """One that somebody listens to. `offset`: the last one told; `reading`: its log is being read and live messages wait; `joining`: how many
    are about to listen, so that it stays when the last listener leaves."""

    __slots__ = ("epoch", "heard", "joining", "listeners", "name", "offset", "reading", "waiting")

    def __init__(self, name: str) -> None:
        self.name, self.epoch, self.offset = name, "", 0
        self.heard = ("", 0)  # epoch and offset of the newest publication, told or not
        self.listeners: dict[Listener, None] = {}
        self.reading = False
        self.joining = 0
        self.waiting: deque[Message] = deque(maxlen=WAITING_MAX)


class OrderedChannels:
    """All of one worker. The hub hands it the subscriptions of ordered kinds."""

    def __init__(
        self, hub: Hub, source: Source, meter: Meter | None = None, picture: Picture | None = None, admit: Admit | None = None
    ) -> None:
        self.hub, self.source, self.picture = hub, source, picture
        self.admit = admit  # for what the channel's name alone cannot tell; None: everybody whom the hub let through
        self.channels: dict[str, OrderedChannel] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # that read a log
        meter = meter or Meter()
        self._told = meter.counter("timepoint_ordered_messages_total", "messages told on ordered channels")
        self._holes = meter.counter("timepoint_ordered_holes_total", "times a channel's log was read because something was missing")
        self._bad = meter.counter("timepoint_ordered_undecodable_total", "messages that did not decode")
        hub.ordered = self

    # --- listening ---

    def subscribe(self, listener: Listener, name: str, since: Since | None, ident: Any) -> None:
        """Answers when the log has been read. Raises `Unavailable` where too many wait for that already."""
        if len(self._tasks) >= JOINING_MAX:
            raise Unavailable("too many subscriptions at once: come back", retry_after_s=1)
        listener.channels[name] = self.hub.version  # counted, and gone again with the listener while we wait
        task = asyncio.create_task(self._join(listener, name, since, ident), name=f"join {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def unsubscribe(self, listener: Listener, name: str) -> None:
        held = self.channels.get(name)
        if held is not None:
            held.listeners.pop(listener, None)
            self._settle(held)

    async def _join(self, listener: Listener, name: str, since: Since | None, ident: Any) -> None:
        held = self.channels.get(name)
        if held is None:
            held = self.channels[name] = OrderedChannel(name)
        held.joining += 1
        try:
            if self.admit is not None:
                await self.admit(listener.principal, name)
            kept, missed, picture = await self._read(held, since)
        except EngineError as fault:
            listener.channels.pop(name, None)
            listener.refused(ident, fault)
        else:
            if name in listener.channels:  # else it left while we read
                self._catch_up(held, kept, picture)
                listener.subscribed(ident, name, held.epoch, held.offset, missed is not None)
                if missed is None:
                    self._snapshot(listener, held, picture)
                for message in missed or ():
                    self._give(listener, Push(message))
                held.listeners[listener] = None
        finally:
            held.joining -= 1
            self._settle(held)

    async def _read(self, held: OrderedChannel, since: Since | None) -> tuple[Log, list[Message] | None, Any]:
        """The log as of now, what a listener missed since (None: it takes the picture instead), and the picture."""
        while True:
            start = since.offset if since is not None else 0
            if held.listeners:
                start = min(start, held.offset)
            kept: Log = await self.source.channel_log(held.name, max(0, start))
            missed = None
            if since is not None:
                later = [message for message in kept.messages if message.offset > since.offset]
                if since.epoch != kept.epoch or not kept.epoch or since.offset + len(later) != kept.offset:
                    since = None
                    continue  # it takes a snapshot: read once more, from the log's beginning
                missed = later
            picture = await self._look(held, kept)
            if held.heard[0] != kept.epoch or kept.offset >= held.heard[1]:
                return kept, missed, picture

    async def _look(self, held: OrderedChannel, kept: Log) -> Any:
        shown = await self.picture(held.name) if self.picture is not None else None
        if shown is not None:
            return shown
        found = []
        for message in kept.messages[-SNAPSHOT_MAX:]:
            try:
                found.append(msgspec.json.decode(msgspec.json.decode(message.payload, type=Said).d))
            except (msgspec.DecodeError, msgspec.ValidationError) as fault:
                self._undecodable(message, fault)
        return found

    def _undecodable(self, message: Message, fault: Exception) -> None:
        self._bad.add()
        log.error("message %d of %s does not decode: %s", message.offset, message.channel, fault)

    def _catch_up(self, held: OrderedChannel, kept: Log, picture: Any) -> None:
        """Bring the channel's other listeners to where the log stands, so that the newcomer joins at one offset with them."""
        later = [message for message in kept.messages if message.offset > held.offset]
        if held.listeners and kept.epoch == held.epoch and held.offset + len(later) == kept.offset:
            for message in later:
                self._tell(held, message)
        else:
            self._restart(held, kept, picture)

    # --- telling ---

    async def run(self) -> None:
        """Listens until cancelled."""
        async for message in self.source.listen_ordered():
            if message is None:
                for held in list(self.channels.values()):
                    self._refill(held)
                continue
            held_now = self.channels.get(message.channel)
            if held_now is not None:
                self.hear(held_now, message)
                if len(held_now.listeners) > SLICE:
                    await asyncio.sleep(0)

    def hear(self, held: OrderedChannel, message: Message) -> None:
        """One publication: told at once if it is the next one."""
        held.heard = (message.epoch, message.offset)
        if held.reading:
            held.waiting.append(message)
        elif not held.listeners:
            return  # whoever is joining reads the log until it has this one
        elif not held.epoch and message.offset == 1:  # the very first of a channel that was empty
            held.epoch = message.epoch
            self._tell(held, message)
        elif message.epoch == held.epoch and message.offset == held.offset + 1:
            self._tell(held, message)
        elif message.epoch != held.epoch or message.offset > held.offset:
            self._refill(held)

    def _refill(self, held: OrderedChannel) -> None:
        if held.reading or not held.listeners:
            return
        held.reading = True
        self._holes.add()
        task = asyncio.create_task(self._read_hole(held), name=f"refill {held.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read_hole(self, held: OrderedChannel) -> None:
        while held.listeners:
            try:
                kept: Log = await self.source.channel_log(held.name, held.offset)
                if not held.epoch and not held.offset:
                    held.epoch = kept.epoch
                if kept.epoch == held.epoch and kept.complete:
                    for message in kept.messages:
                        if message.offset == held.offset + 1:
                            self._tell(held, message)
                else:
                    kept = await self.source.channel_log(held.name, 0)
                    self._restart(held, kept, await self._look(held, kept))
                break
            except Unavailable:
                await asyncio.sleep(RETRY_S)
        held.reading = False
        waiting, held.waiting = held.waiting, deque(maxlen=WAITING_MAX)
        for late in waiting:
            self.hear(held, late)
        self._settle(held)

    def _restart(self, held: OrderedChannel, kept: Log, picture: Any) -> None:
        """A new epoch, or a log that does not reach back: everyone gets a snapshot and goes on from there."""
        held.epoch, held.offset = kept.epoch, kept.offset
        for listener in list(held.listeners):
            self._snapshot(listener, held, picture)

    def _tell(self, held: OrderedChannel, message: Message) -> None:
        held.offset = message.offset
        push = Push(message)
        self._told.add()
        for listener in list(held.listeners):
            self._give(listener, push)

    def _give(self, listener: Listener, push: Push) -> None:
        try:
            if listener.mailbox is None:
                frame = push.frame(listener.wire)
            elif listener.mailbox.keep_ordered(push.bytes(listener.wire.encoding)):
                return
            else:
                self.hub.send_away(listener)
                return
        except (msgspec.DecodeError, msgspec.ValidationError) as fault:
            self._undecodable(push.message, fault)
            return
        listener.write(frame)

    def _snapshot(self, listener: Listener, held: OrderedChannel, picture: Any) -> None:
        encoding = listener.wire.encoding
        part = frames.push(encoding, (spoken(held.name),), held.offset, "snapshot", ENCODE[encoding](picture), held.epoch)
        if listener.mailbox is None:
            listener.write(listener.wire.frame(part, f"{held.epoch}:{held.offset}"))
        elif not listener.mailbox.keep_ordered(part):
            self.hub.send_away(listener)

    def _settle(self, held: OrderedChannel) -> None:
        if not (held.listeners or held.reading or held.joining) and self.channels.get(held.name) is held:
            del self.channels[held.name]
