"""Live sockets: /ws, /ws/tracking/{busId}, /ws/booking/{ref}, /ws/notifications; and the one registry of all sockets of a worker.

One `asyncio.Protocol` per connection, which takes the transport over from the gate (api/gate.py) or from the HTTP protocol (api/server.py), so
sockets share port and loop with HTTP. Handshake and frames are judged by api/handshake.py and api/websocket.py; what we send is framed once by
the hub and written as ready bytes to every transport: no task, no await, no queue per socket. permessage-deflate is never offered. Everything
is slotted; nothing of a handshake is left once it is done.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from api.device_socket import DeviceSocket
from api.handshake import NoUpgrade, Pairs, accept_key, switching
from api.ids import VERSION, request_id
from api.problems import BAD_MESSAGE, MEDIA_TYPE, NOT_AUTHENTICATED, RESTARTING, close_code, problem_of
from api.speaker import GOING_AWAY_REASON, SPEAKER_SLOTS, Speaker
from api.websocket import OPEN, binary_frame, text_frame
from engine.clock import Clock
from engine.errors import EngineError, Forbidden, Invalid, NotFound, TooMany, Unauthenticated, Unavailable
from engine.live.channels import spoken
from engine.live.frames import ENCODE, JSON, MSGPACK, Wire
from engine.live.hub import OFFSETS, Hub, Since
from engine.live.listener import Listener
from engine.meter import Meter
from engine.office.accounts import Device
from engine.settings import Settings
from ingest.http import HEAD, DevicePaths

SUBPROTOCOLS: Final = {"timepoint.v1.json": JSON, "timepoint.v1.msgpack": MSGPACK}
DEVICE_PATH: Final = "/ingest/ws"
INSTANCE_MAX: Final = 200  # characters of a path that an answer says again
WIRES: Final = (Wire("ws-json", JSON, text_frame), Wire("ws-msgpack", MSGPACK, binary_frame))


class Ask(msgspec.Struct, gc=False):
    """One message of a client. `op`: auth, sub, unsub, bbox, ping."""

    op: str
    id: int | str | None = None
    ch: str | None = None
    since: AskSince | None = None
    token: str | None = None
    hold_token: str | None = msgspec.field(name="holdToken", default=None)  # a guest's, instead of an access token
    box: tuple[float, float, float, float] | None = None
    zoom: float | None = None


class AskSince(msgspec.Struct, gc=False):
    e: str
    o: int


_DECODE: Final[tuple[Callable[[bytes], Ask], ...]] = (msgspec.json.Decoder(Ask).decode, msgspec.msgpack.Decoder(Ask).decode)


class Sockets:
    """All live sockets of one worker, and what they share."""

    def __init__(
        self,
        hub: Hub,
        settings: Settings,
        clock: Clock,
        principal_of: Callable[[str], Any],
        meter: Meter | None = None,
        devices: DevicePaths | None = None,
        guest_of: Callable[[str], Any] | None = None,
    ) -> None:
        self.hub, self.settings, self.clock = hub, settings, clock
        self.guest_of = guest_of  # hold token -> principal of a guest; None: there is nothing here for guests
        self.principal_of = principal_of  # access token -> principal with .subject and .expires_at_ms; raises Unauthenticated
        self.devices = devices  # None: this worker takes no devices
        self.entering: set[asyncio.Task[None]] = set()  # devices whose credentials are being looked at
        self.draining = False
        origins = settings.socket_origins.strip()
        self.origins = None if origins == "*" else {origin.strip() for origin in origins.split(",")}
        self.slots: list[dict[LiveSocket | DeviceSocket, None]] = [{} for _ in range(max(1, round(settings.socket_ping_s)))]
        self.count = 0
        self._next = 0
        self._chance, last = self.clock.uuid7()[13:].rsplit("-", 1)  # of the ids of requests
        self._idents = int(last, 16) >> 1  # room to count in
        meter = meter or Meter()
        self.gauge = meter.gauge("timepoint_sockets", "open WebSocket connections", ("kind",))
        self.closed = meter.counter("timepoint_sockets_closed_total", "WebSocket connections that we closed, by code", ("code",))
        self.refused = meter.counter("timepoint_sockets_refused_total", "handshakes refused, by status", ("status",))

    def upgrade(
        self,
        transport: asyncio.Transport,
        connections: set[Any],
        target: str,
        given: Pairs,
        asked: dict[bytes, bytes],
        rest: bytes = b"",
        method: str = "GET",
        version: str = "1.1",
    ) -> None:
        """An upgrade request on that transport: answers 101 and gives it to its socket, or refuses it and closes.

        `given` are its headers, names in lower case, as one parser of requests or the other read them, and `asked` the same by name; `rest` is
        what came behind them.
        """
        path, _, query = target.partition("?")
        try:
            self._may_enter(method, version, asked)
            if path == DEVICE_PATH and self.devices is not None:
                if b"x-signature" not in asked:
                    device = self.devices.token_holder(asked, query.encode("latin-1"))
                    self._admit_device(transport, connections, given, asked, rest, device)
                    return
                transport.pause_reading()  # until it is known who it is: nothing may be said before the 101
                entering = asyncio.get_running_loop().create_task(
                    self._enter_device(transport, connections, target, given, asked, rest, self.devices)
                )
                self.entering.add(entering)
                entering.add_done_callback(self.entering.discard)
            else:
                own = _own_channel_of(path)
                accept, offered = accept_key(given, asked), _offered(given) if b"sec-websocket-protocol" in asked else ()
                speaks = next((name for name in offered if name in SUBPROTOCOLS), None) if offered else None  # never its `bearer.` token
                hello = switching(accept, speaks, self._ident(asked), VERSION)
                LiveSocket(self, speaks, offered, own).begin(transport, connections, hello, rest)
        except EngineError as fault:
            self._refuse(transport, fault, path, asked)

    async def _enter_device(
        self,
        transport: asyncio.Transport,
        connections: set[Any],
        target: str,
        given: Pairs,
        asked: dict[bytes, bytes],
        rest: bytes,
        devices: DevicePaths,
    ) -> None:
        """A signed upgrade: Redis is asked whether its nonce is new."""
        path, _, query = target.partition("?")
        try:
            try:
                async with asyncio.timeout(self.settings.ingest_answer_timeout_s):
                    device = await devices.signer(path, asked, query.encode("latin-1"))
            except TimeoutError as fault:
                raise Unavailable("the credentials could not be checked in time", retry_after_s=2) from fault
            if self.draining:
                raise Unavailable(GOING_AWAY_REASON, retry_after_s=2)
            if not transport.is_closing():
                transport.resume_reading()
                self._admit_device(transport, connections, given, asked, rest, device)
        except EngineError as fault:
            self._refuse(transport, fault, path, asked)
        except BaseException:  # a fault of ours, or the end: nothing else looks after this connection any more
            transport.abort()
            raise

    def _admit_device(
        self, transport: asyncio.Transport, connections: set[Any], given: Pairs, asked: dict[bytes, bytes], rest: bytes, device: Device
    ) -> None:
        """Raises `Invalid` where it is no handshake after all."""
        assert self.devices is not None
        hello = switching(accept_key(given, asked), None, self._ident(asked), VERSION)
        DeviceSocket(self, self.devices.door, device).begin(transport, connections, hello, rest)

    def _ident(self, asked: dict[bytes, bytes]) -> str:
        """The caller's own id of this request where it is a decent one, else one of ours: a UUIDv7 that counts up in the last part of what is random
        in it (RFC 9562 section 6.2): asking the system for chance each time took 10 us of a handshake, putting one together from its bits 5.
        """
        given = asked.get(b"x-request-id")
        if given is not None:
            return request_id(given, self.clock)
        self._idents += 1
        now_ms = self.clock.now_ms()
        return f"{now_ms >> 16:08x}-{now_ms & 0xFFFF:04x}{self._chance}-{self._idents:012x}"

    def _may_enter(self, method: str, version: str, asked: dict[bytes, bytes]) -> None:
        """What is asked of every upgrade. Raises `Invalid`, `Forbidden`, `Unavailable`."""
        if method != "GET" or version != "1.1":
            raise Invalid("a WebSocket handshake is a GET of HTTP/1.1")
        origin = asked.get(b"origin")
        if self.origins is not None and origin is not None and origin.decode("latin-1") not in self.origins:
            raise Forbidden(f"pages of {origin.decode('latin-1')} may not open sockets here")
        if self.draining:
            raise Unavailable(GOING_AWAY_REASON, retry_after_s=2)

    def _refuse(self, transport: asyncio.Transport, fault: EngineError, path: str, asked: dict[bytes, bytes]) -> None:
        """The problem document, on this connection's last breath: a device's as on every device path, with the time to set its clock by."""
        self.refused.add(1, str(fault.status))
        if path == DEVICE_PATH and self.devices is not None:
            said = self.devices.problem(fault, path, asked)
            status, lines, body = said.status, said.lines, said.body
        else:
            ident = self._ident(asked)
            problem, more = problem_of(fault, path[:INSTANCE_MAX], ident)
            status, body = fault.status, msgspec.json.encode(problem)
            lines = b"".join(b"%s: %s\r\n" % (name.encode(), value.encode()) for name, value in more.items())
            lines += HEAD % (MEDIA_TYPE.encode(), len(body), ident.encode())
        if isinstance(fault, NoUpgrade):
            lines += b"upgrade: websocket\r\nsec-websocket-version: 13\r\n"  # RFC 6455 section 4.4
        first = b"HTTP/1.1 %d %s\r\nconnection: close\r\n" % (status, HTTPStatus(status).phrase.encode())
        date = b"date: %s\r\n\r\n" % formatdate(self.clock.now_ms() / 1000, usegmt=True).encode()
        transport.write(first + lines + date + body)
        transport.close()

    def add(self, socket: LiveSocket | DeviceSocket, kind: str) -> None:
        """Counted, and pinged in its slot of the wheel."""
        self._next = (self._next + 1) % len(self.slots)
        socket.slot = self._next
        self.slots[self._next][socket] = None
        self.count += 1
        self.gauge.add(1, kind)

    def drop(self, socket: LiveSocket | DeviceSocket, kind: str) -> None:
        if self.slots[socket.slot].pop(socket, self) is None:
            self.count -= 1
            self.gauge.add(-1, kind)

    async def run(self) -> None:
        """Pings: one slot of the wheel after the other, each once in `socket_ping_s`. Whoever has not answered since the last one is gone."""
        pause_s = self.settings.socket_ping_s / len(self.slots)
        at = 0
        while True:
            await asyncio.sleep(pause_s)
            at = (at + 1) % len(self.slots)
            for number, one in enumerate(list(self.slots[at])):
                if number % 100 == 99:
                    await asyncio.sleep(0)
                one.ping()

    async def drain(self, over_s: float) -> None:
        """Says `drain` to everybody, then closes with 1012 in ten waves a second over `over_s`, so that they do not all come back at once."""
        self.draining = True
        everyone = [one for slot in self.slots for one in slot]
        body = {"t": "drain", "d": {"withinMs": int(over_s * 1000)}}
        frames = [wire.frame(ENCODE[wire.encoding](body), "") for wire in WIRES]
        for number, one in enumerate(everyone):
            if number % 100 == 99:
                await asyncio.sleep(0)
            if isinstance(one, LiveSocket) and one.mailbox is None and one.state == OPEN:
                one.write(frames[one.wire.encoding])
        waves = max(1, round(over_s * 10))
        size = -(-len(everyone) // waves)
        for start in range(0, len(everyone), max(1, size)):
            for one in everyone[start : start + size]:
                one.close(RESTARTING, GOING_AWAY_REASON)
            await asyncio.sleep(over_s / waves)


def _own_channel_of(path: str) -> str | None:
    """The channel that a path subscribes by itself; None: /ws, which leaves it to the client. Raises `NotFound`."""
    if path == "/ws":
        return None
    if path == "/ws/notifications":
        return "notifications"
    rest = unquote(path.removeprefix("/ws/").partition("/")[2])
    if path.startswith("/ws/tracking/") and rest:
        return "bus:" + rest
    if path.startswith("/ws/booking/") and rest:
        return "booking:" + rest
    raise NotFound(
        f"no socket at {path[:INSTANCE_MAX]}; there are /ws, /ws/tracking/BUS, /ws/booking/REF, /ws/notifications, {DEVICE_PATH}"
    )


def _offered(given: Pairs) -> list[str]:
    """The subprotocols that the client offers, and its `bearer.<jwt>` among them: the only way in for a browser's token before its first message."""
    return [name.strip() for key, line in given if key == b"sec-websocket-protocol" for name in line.decode("latin-1").split(",")]


class LiveSocket(Speaker, Listener):
    """One listener's socket: the ops of the contract, translated for the hub."""

    __slots__ = (*SPEAKER_SLOTS, "boxes", "file", "own", "timer", "token")

    kind = "live"

    def __init__(self, sockets: Sockets, speaks: str | None, offered: Sequence[str], own: str | None) -> None:
        """`speaks`: the subprotocol that the handshake chose; `offered`: all that the client named."""
        Listener.__init__(self, WIRES[SUBPROTOCOLS[speaks] if speaks else JSON])
        self.sockets = sockets
        self.own = own  # the channel that this path subscribes by itself, until it has
        self.token = next((name[7:] for name in offered if name.startswith("bearer.")), None) if offered else None
        self.boxes = 0
        self.timer: asyncio.TimerHandle | None = None  # the wait for a token, then its end

    # --- life ---

    def opened(self) -> None:
        self.file = self.transport.get_extra_info("socket").fileno()
        token, self.token = self.token, None
        try:
            if token is not None:
                self._authenticate(token)
            self._own_channel()
        except EngineError as fault:
            self.close(close_code(fault), fault.detail)

    def ended(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.file = -1
        self.sockets.hub.leave(self)

    def ping(self) -> None:
        if self.mailbox is None:  # a stalled one is the hub's to judge, and we do not read its pongs
            Speaker.ping(self)

    def unsent_max_bytes(self) -> int:
        """Anything: for who is not stalled nothing waits, and the next frame can go straight to the kernel."""
        return 0

    def write(self, frame: bytes) -> None:
        """Straight to the kernel where nothing waits before it: the transport's own way there is longer (docs/decisions/0077).

        The file is the transport's until `connection_lost` has returned, and forgotten in `ended`.
        """
        sent = 0
        if self.mailbox is None:
            try:
                sent = os.write(self.file, frame)
            except OSError:  # full, or lost: the transport finds out which
                sent = 0
        if sent < len(frame):
            self.transport.write(frame[sent:])

    def pause_writing(self) -> None:
        """The kernel's buffer for it is full: newest only, and no more questions or pings from it either."""
        self.transport.pause_reading()
        if self.state == OPEN:
            self.sockets.hub.stall(self)

    def resume_writing(self) -> None:
        if self.transport.is_closing():
            return
        self.transport.resume_reading()
        if self.state == OPEN:
            self.unanswered = False
            self.sockets.hub.resume(self)

    # --- what the client says ---

    def message(self, data: bytes, is_text: bool) -> None:
        if self.flooding():
            return
        try:
            ask = _DECODE[JSON if is_text else MSGPACK](data)
            step = _OPS[ask.op]
        except (msgspec.DecodeError, msgspec.ValidationError, KeyError, UnicodeDecodeError, RecursionError) as fault:
            self.close(BAD_MESSAGE, f"bad message: {fault}")
            return
        try:
            step(self, ask)
        except EngineError as fault:
            self.refused(ask.id, fault)

    def _auth(self, ask: Ask) -> None:
        guest_of = self.sockets.guest_of
        if ask.hold_token and guest_of is not None:
            self._known(guest_of(ask.hold_token))
        elif ask.token:
            self._authenticate(ask.token)
        else:
            raise Invalid("auth needs its token or holdToken")
        self._reply({"id": ask.id, "ok": True})
        try:
            self._own_channel()
        except EngineError as fault:
            self.close(close_code(fault), fault.detail)

    def _sub(self, ask: Ask) -> None:
        since = ask.since
        self._listen(_channel(ask), None if since is None or since.o not in OFFSETS else Since(since.e, since.o), ask.id)

    def _unsub(self, ask: Ask) -> None:
        channel = _channel(ask)
        self.sockets.hub.unsubscribe(self, self._inner(channel) if channel == "notifications" else channel)
        self._reply({"id": ask.id, "ok": True})

    def _bbox(self, ask: Ask) -> None:
        if ask.box is None:
            raise Invalid("bbox needs its box: [west, south, east, north]")
        if self.asked == 1:  # the first message of a new window
            self.boxes = 0
        self.boxes += 1
        if self.boxes > self.sockets.settings.bbox_changes_max:
            raise TooMany("the viewport changes too often", retry_after_s=1)
        self.sockets.hub.look(self, ask.box, ask.id)

    def _ping(self, ask: Ask) -> None:
        self._reply({"id": ask.id, "ok": True})

    # --- what the hub says ---

    def subscribed(self, ident: Any, channel: str, epoch: str, offset: int, recovered: bool) -> None:
        self._reply({"id": ident, "ok": True, "ch": spoken(channel), "e": epoch, "o": offset, "recovered": recovered})

    def refused(self, ident: Any, fault: EngineError) -> None:
        self._reply({"id": ident, "error": {"code": fault.code, "detail": fault.detail, "retryable": fault.retryable}})

    def _reply(self, said: dict[str, Any]) -> None:
        if self.state == OPEN:
            self.write(self.wire.frame(ENCODE[self.wire.encoding](said), ""))

    # --- who it is ---

    def _authenticate(self, token: str) -> None:
        self._known(self.sockets.principal_of(token))

    def _known(self, principal: Any) -> None:
        sockets = self.sockets
        if self.principal is not None and self.principal.subject != principal.subject:
            raise Forbidden("this socket belongs to somebody else: open another")
        self.principal = principal
        if self.timer is not None:
            self.timer.cancel()
        left_s = max(0.0, (principal.expires_at_ms - sockets.clock.now_ms()) / 1000)
        self.timer = asyncio.get_running_loop().call_later(left_s, self._token_over)

    def _token_over(self) -> None:
        """Public channels go on without a token; private ones end the socket."""
        self.timer, self.principal = None, None
        may_listen = self.sockets.hub.may_listen
        if self.own is not None or not all(name == "bbox" or may_listen(None, spoken(name)) for name in self.channels):
            self.close(NOT_AUTHENTICATED, "the access token is over: auth again before it ends")

    def _own_channel(self) -> None:
        """Subscribes the channel of this socket's path; a private one waits for its token, bounded."""
        if self.own is None:
            return
        own = self.own
        if self.principal is None and not self.sockets.hub.may_listen(None, own):
            self.timer = asyncio.get_running_loop().call_later(self.sockets.settings.socket_auth_s, self._token_over)
            return
        self.own = None
        self._listen(own, None, None)

    def _listen(self, channel: str, since: Since | None, ident: Any) -> None:
        self.sockets.hub.subscribe(self, channel, since, ident, name=self._inner(channel) if channel == "notifications" else channel)

    def _inner(self, channel: str) -> str:
        if self.principal is None:
            raise Unauthenticated(f"{channel} asks for an access token: send auth first")
        return f"{channel}:{self.principal.subject}"


def _channel(ask: Ask) -> str:
    if not ask.ch:
        raise Invalid(f"{ask.op} needs its ch")
    return ask.ch


_OPS: Final[dict[str, Callable[[LiveSocket, Ask], None]]] = {
    "auth": LiveSocket._auth,
    "sub": LiveSocket._sub,
    "unsub": LiveSocket._unsub,
    "bbox": LiveSocket._bbox,
    "ping": LiveSocket._ping,
}
