"""Crowds of live sockets: who subscribes to what, how old a position is when it is read, and whether what was promised of the order holds."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from bench.harness.address import Address
from bench.harness.scenario import Share
from bench.loads.roads import epoch_ms
from bench.loads.socket import Socket, connect_all, upgrade

GRANT_LIMIT_S = 60.0
CHANNELS_MAX = 100  # of one socket: half of what the product allows


class Push(msgspec.Struct):
    """One message of the server, as much of it as a load looks at."""

    t: str = ""
    ch: str | list[str] = ""
    o: int | list[int] | None = None
    d: msgspec.Raw = msgspec.Raw(b"")
    id: int | None = None
    ok: bool | None = None
    e: str | None = None
    recovered: bool | None = None


class Seen(msgspec.Struct):
    """Of a position: whose, and of when."""

    bus_id: str = msgspec.field(name="busId", default="")
    at: str = ""


decode_push = msgspec.json.Decoder(Push).decode
decode_pushes = msgspec.json.Decoder(list[Push]).decode
decode_seen = msgspec.json.Decoder(Seen).decode
decode_all_seen = msgspec.json.Decoder(list[Seen]).decode


class Ordered:
    """The messages of an ordered channel for one listener: every one, once, in the order of its offsets, over any number of connections."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self.epoch, self.offset = "", -1
        self.heard = 0

    def message(self, push: Push) -> bool:
        """Notes a message of the channel; whether it is one that was said, and not a snapshot of where things stand."""
        if not isinstance(push.o, int):
            return False
        if push.t == "snapshot":
            if self.epoch and push.e == self.epoch and push.o > self.offset:
                self.share.count("not recovered", push.o - self.offset)
            self.epoch, self.offset = push.e or "", push.o
            return False
        if push.o != self.offset + 1:
            self.share.fault("doubled" if push.o <= self.offset else "hole in an ordered channel")
        self.offset = max(self.offset, push.o)
        self.heard += 1
        return True

    @property
    def since(self) -> tuple[str, int] | None:
        """What a listener says that comes back."""
        return (self.epoch, self.offset) if self.epoch else None


def subscribe(channel: str, number: int = 1, since: tuple[str, int] | None = None) -> bytes:
    """The message that asks for a channel."""
    said: dict[str, Any] = {"id": number, "op": "sub", "ch": channel}
    if since is not None:
        said["since"] = {"e": since[0], "o": since[1]}
    return json.dumps(said, separators=(",", ":")).encode()


def view(box: Sequence[float], zoom: int = 12) -> bytes:
    """The message that shows a map: west, south, east, north."""
    return json.dumps({"id": 1, "op": "bbox", "box": list(box), "zoom": zoom}, separators=(",", ":")).encode()


class Wish(msgspec.Struct):
    """What one socket asks for, and what it is for."""

    asks: list[bytes]
    kind: str = ""
    token: str = ""
    open: int = 0  # asks not yet granted
    seen: dict[str, int] = msgspec.field(default_factory=dict)  # bus -> the newest fix that this connection has shown, ms
    ordered: Ordered | None = None  # of an ordered channel
    cut_s: float = 0.0  # when it was cut; 0: it has heard something since


def watching(channels: Iterable[str], kind: str, *, token: str = "") -> list[Wish]:
    """A socket for each channel."""
    return [Wish([subscribe(channel)], kind, token) for channel in channels]


def gathered(channels: Sequence[str], kind: str) -> list[Wish]:
    """Few sockets for many channels."""
    return [
        Wish([subscribe(channel, number + 1) for number, channel in enumerate(channels[at : at + CHANNELS_MAX])], kind)
        for at in range(0, len(channels), CHANNELS_MAX)
    ]


class Crowd:
    """Sockets on /ws, a wish each (`socket.mark`). `heard` is given every message that is no answer."""

    def __init__(
        self, share: Share, wishes: Sequence[Wish], heard: Callable[[Socket, bytes], None], granted: Callable[[Socket], object] = id
    ) -> None:
        """`granted`: told of each socket when all that it asked for is answered."""
        self.share, self.address, self._heard, self._granted_to = share, Address.of(share.url), heard, granted
        self.hello = upgrade(self.address, "/ws", Sec_WebSocket_Protocol="timepoint.v1.json")
        self.sockets = [Socket(self.hello, self.hear, self.lost, wish) for wish in wishes]
        self.closing = False
        self._granted = asyncio.Event()
        self._open = 0

    async def open(self, *, rcvbuf: int = 0) -> float:
        """Connects, subscribes and waits until all is granted; the seconds it took to connect. Raises OSError, TimeoutError."""
        took_s = await connect_all(self.address, self.sockets, rcvbuf=rcvbuf)
        self._open = len(self.sockets)
        for at, socket in enumerate(self.sockets):
            self.ask(socket)
            if at % 50 == 49:
                await asyncio.sleep(0)
        if self.sockets:
            await asyncio.wait_for(self._granted.wait(), GRANT_LIMIT_S)
        return took_s

    def ask(self, socket: Socket) -> None:
        wish: Wish = socket.mark
        if wish.token:
            socket.say(json.dumps({"op": "auth", "token": wish.token}).encode())
        wish.open = len(wish.asks)
        for one in wish.asks:
            socket.say(one)

    def hear(self, socket: Socket, payload: bytes) -> None:
        if payload[:6] == b'{"id":' and socket.mark.open:
            if b'"error"' in payload:
                self.share.fault("refused: " + payload.decode(errors="replace")[:120])
            socket.mark.open -= 1
            if socket.mark.open == 0:
                self._granted_to(socket)
                self._open -= 1
                if self._open == 0:
                    self._granted.set()
            return
        self._heard(socket, payload)

    def lost(self, socket: Socket) -> None:
        if not self.closing:
            self.share.fault(f"socket closed {socket.code or 'without a word'}")

    def close(self) -> None:
        self.closing = True
        for socket in self.sockets:
            if socket.transport is not None:
                socket.cut()


async def until(holds: Callable[[], Any], limit_s: float) -> None:
    """Waits until it holds, so long at most."""
    end_s = time.monotonic() + limit_s
    while not holds() and time.monotonic() < end_s:  # noqa: ASYNC110  (now and then, at the end of a run; an event would cost every message)
        await asyncio.sleep(0.02)


class Ages:
    """How old positions are when they are read, against the intended moments that our buses' fixes carry; noted under the name `measures`
    has for the socket's kind. Other buses are counted and left."""

    def __init__(self, share: Share, measures: dict[str, str], ledger: Ledger | None = None) -> None:
        self.share, self.measures, self.ledger = share, measures, ledger
        self._last, self._found, self._stood = b"", list[tuple[str, int]](), list[tuple[str, int]]()

    def heard(self, socket: Socket, payload: bytes) -> None:
        if payload != self._last:  # a broadcast says the same to everybody
            self._last, self._found, self._stood = payload, list(positions(payload)), list(standing(payload))
        if self.ledger is not None:
            for bus_id, at_ms in self._stood:
                self.ledger.stood(bus_id, at_ms)
        if not self._found:
            return
        now_ms, measure = time.time() * 1000, self.measures[socket.mark.kind]
        for bus_id, at_ms in self._found:
            self.share.note(measure, (now_ms - at_ms) / 1000)
            if self.ledger is not None:
                self.ledger.seen(socket, bus_id, at_ms)
        self.share.count("delivered", len(self._found))


def pushes(payload: bytes) -> Sequence[Push]:
    """The messages of a frame."""
    push = decode_push(payload)
    return decode_pushes(push.d) if push.t == "batch" else (push,)


def positions(payload: bytes) -> Iterable[tuple[str, int]]:
    """(bus, time of the fix) of every new position of one of our buses in a frame; snapshots tell no news."""
    for one in pushes(payload):
        if one.t == "pos":
            yield from _ours(decode_seen(one.d))


def standing(payload: bytes) -> Iterable[tuple[str, int]]:
    """(bus, time of the fix) of every one of our buses in a frame's snapshots of where buses stand: what a socket that comes back hears first."""
    for one in pushes(payload):
        if one.t == "snapshot" and bytes(one.d)[:2] == b"[{":
            for seen in decode_all_seen(one.d):
                yield from _ours(seen)


def _ours(seen: Seen) -> Iterable[tuple[str, int]]:
    if seen.at and seen.bus_id.startswith("load-"):
        yield seen.bus_id, epoch_ms(seen.at.encode())


class Ledger:
    """Accepted fixes against seen ones, bus by bus: each must be seen by a watcher of its bus, or a newer one in its place, as news or in the
    snapshot of a watcher who came late; no watcher may see news twice, or an older one after a newer."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self._accepted: dict[str, int] = {}  # newest, ms
        self._seen: dict[str, int] = {}

    def accepted(self, bus_id: str, at_ms: int) -> None:
        if at_ms > self._accepted.get(bus_id, 0):
            self._accepted[bus_id] = at_ms

    def seen(self, socket: Socket, bus_id: str, at_ms: int) -> None:
        before_ms = socket.mark.seen.get(bus_id, 0)
        if at_ms <= before_ms:
            self.share.fault("seen twice" if at_ms == before_ms else "older after newer")
        socket.mark.seen[bus_id] = at_ms
        self.stood(bus_id, at_ms)

    def stood(self, bus_id: str, at_ms: int) -> None:
        """A watcher was shown it."""
        if at_ms > self._seen.get(bus_id, 0):
            self._seen[bus_id] = at_ms

    def behind(self, until_ms: float = float("inf")) -> list[str]:
        """Buses of which a fix was accepted (and is not newer than `until_ms`), and neither it nor a newer one seen."""
        return [bus_id for bus_id, at_ms in self._accepted.items() if self._seen.get(bus_id, 0) < min(at_ms, until_ms)]

    @property
    def buses(self) -> int:
        """Of how many something was accepted."""
        return len(self._accepted)

    async def settle(self, limit_s: float) -> list[str]:
        """Waits until nothing is behind, so long at most; each that still is, is a fault `lost`."""
        await until(lambda: not self.behind(), limit_s)
        left = self.behind()
        for _ in left:
            self.share.fault("lost")
        return left
