"""Live sockets: /ws, /ws/tracking/{busId}, /ws/booking/{ref}, /ws/notifications, and the devices' /ingest/ws.

One `asyncio.Protocol` per connection, which takes the transport over from uvicorn's HTTP protocol (api/server.py), so sockets share port
and loop with HTTP. Handshake and frames of RFC 6455 are judged by `websockets`' sans-I/O protocols; what we send is framed once by the hub
and written as ready bytes to every transport: no task, no await, no queue per socket (on a prototype: 7.0 us a delivery where the framework's
own send loop costs 12.6). permessage-deflate is never offered. Everything is slotted; the handshake's objects are gone once it is done.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote

import msgspec
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN, SERVER
from websockets.protocol import Protocol as WsProtocol
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from api.ids import VERSION, request_id
from api.problems import BAD_MESSAGE, MEDIA_TYPE, NOT_AUTHENTICATED, RESTARTING, TOO_MANY, close_code, problem_of
from engine.clock import Clock
from engine.errors import EngineError, Forbidden, Invalid, NotFound, TooMany, Unauthenticated, Unavailable
from engine.live.channels import spoken
from engine.live.frames import ENCODE, JSON, MSGPACK, Wire
from engine.live.hub import OFFSETS, Hub, Since
from engine.live.listener import Listener
from engine.meter import Meter
from engine.office.accounts import Device
from engine.settings import Settings
from ingest.door import Door
from ingest.http import DevicePaths
from ingest.socket import IngestSession

log = logging.getLogger(__name__)
_quiet = logging.getLogger("timepoint.websockets")
_quiet.setLevel(logging.WARNING)  # the library says "connection open" for every socket

SUBPROTOCOLS: Final = {"timepoint.v1.json": JSON, "timepoint.v1.msgpack": MSGPACK}
MOVING: Final = 1001  # what a peer that vanished is closed with: no pong within a ping's interval
WINDOW_S: Final = 10.0  # the client's messages are counted over it
GIVE_UP_S: Final = 5.0  # after a close frame, before the connection is cut
LOW_WATER: Final = 16_384
PING: Final = b"\x89\x00"
DEVICE_PATH: Final = "/ingest/ws"
INSTANCE_MAX: Final = 200  # characters of a path that an answer says again
GOING_AWAY_REASON: Final = "restarting: come back"

Pairs = list[tuple[bytes, bytes]]  # a request's headers, names in lower case


def text_frame(payload: bytes, last: str = "") -> bytes:
    """One unmasked text frame, as every server frame is (RFC 6455 section 5.1)."""
    return _header(0x81, len(payload)) + payload


def binary_frame(payload: bytes, last: str = "") -> bytes:
    """One unmasked binary frame."""
    return _header(0x82, len(payload)) + payload


def _header(first: int, size: int) -> bytes:
    if size < 126:
        return bytes((first, size))
    if size < 65_536:
        return bytes((first, 126)) + size.to_bytes(2, "big")
    return bytes((first, 127)) + size.to_bytes(8, "big")


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
        meter = meter or Meter()
        self.gauge = meter.gauge("timepoint_sockets", "open WebSocket connections", ("kind",))
        self.closed = meter.counter("timepoint_sockets_closed_total", "WebSocket connections that we closed, by code", ("code",))
        self.refused = meter.counter("timepoint_sockets_refused_total", "handshakes refused, by status", ("status",))

    def upgrade(self, transport: asyncio.Transport, method: str, target: str, given: Pairs, connections: set[Any]) -> None:
        """An upgrade request on that transport: answers 101 and gives it to its socket, or refuses it and closes.

        `given` are its headers, names in lower case, as uvicorn's HTTP protocol read them; `websockets` judges the handshake (RFC 6455
        section 4.2).
        """
        path = target.partition("?")[0]
        try:
            self._may_enter(method, given)
            if path == DEVICE_PATH and self.devices is not None:
                transport.pause_reading()  # until it is known who it is: nothing may be said before the 101
                entering = asyncio.get_running_loop().create_task(self._enter_device(transport, target, given, connections, self.devices))
                self.entering.add(entering)
                entering.add_done_callback(self.entering.discard)
            else:
                self._accept(transport, target, given, connections, lambda: LiveSocket(self, given, _own_channel_of(path)))
        except EngineError as fault:
            self._refuse(transport, fault, path, given)

    async def _enter_device(
        self, transport: asyncio.Transport, target: str, given: Pairs, connections: set[Any], devices: DevicePaths
    ) -> None:
        """A device's upgrade: who it is first, which for a signed one asks Redis."""
        path, _, query = target.partition("?")
        try:
            try:
                async with asyncio.timeout(self.settings.ingest_answer_timeout_s):
                    device = await devices.socket_device(path, dict(given), query.encode("latin-1"))
            except TimeoutError as fault:
                raise Unavailable("the credentials could not be checked in time", retry_after_s=2) from fault
            if self.draining:
                raise Unavailable(GOING_AWAY_REASON, retry_after_s=2)
            if not transport.is_closing():
                self._accept(transport, target, given, connections, lambda: DeviceSocket(self, devices.door, device))
                transport.resume_reading()
        except EngineError as fault:
            self._refuse(transport, fault, path, given)

    def _may_enter(self, method: str, given: Pairs) -> None:
        """What is asked of every upgrade. Raises `Invalid`, `Forbidden`, `Unavailable`."""
        if method != "GET":
            raise Invalid("a WebSocket handshake is a GET")
        origin = dict(given).get(b"origin")
        if self.origins is not None and origin is not None and origin.decode("latin-1") not in self.origins:
            raise Forbidden(f"pages of {origin.decode('latin-1')} may not open sockets here")
        if self.draining:
            raise Unavailable(GOING_AWAY_REASON, retry_after_s=2)

    def _accept(
        self, transport: asyncio.Transport, target: str, given: Pairs, connections: set[Any], made: Callable[[], LiveSocket | DeviceSocket]
    ) -> None:
        """The 101, and from there on the transport belongs to the socket that `made` answers. Raises `Invalid`."""
        speaker = made()
        conn = ServerProtocol(select_subprotocol=_select, logger=_quiet)
        headers = Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in given)
        response = conn.accept(Request(target, headers))
        if response.status_code != 101:
            raise Invalid(str(conn.handshake_exc or "not a WebSocket handshake"))
        response.headers["X-Request-Id"] = request_id(dict(given).get(b"x-request-id"), self.clock)
        response.headers["X-API-Version"] = VERSION.decode()
        transport.write(response.serialize())
        speaker.begin(transport, connections)

    def _refuse(self, transport: asyncio.Transport, fault: EngineError, path: str, given: Pairs) -> None:
        """The problem document, on this connection's last breath: a device's as on every device path, with the time to set its clock by."""
        self.refused.add(1, str(fault.status))
        if path == DEVICE_PATH and self.devices is not None:
            status, headers, body = self.devices.problem(fault, path, dict(given))
        else:
            ident = request_id(dict(given).get(b"x-request-id"), self.clock)
            problem, more = problem_of(fault, path[:INSTANCE_MAX], ident)
            status, body = fault.status, msgspec.json.encode(problem)
            headers = [(name.encode(), value.encode()) for name, value in more.items()]
            headers += [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", b"%d" % len(body))]
            headers += [(b"x-request-id", ident.encode()), (b"x-api-version", VERSION)]
        head = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode()), b"connection: close"]
        head += [name + b": " + value for name, value in headers]
        transport.write(b"\r\n".join(head) + b"\r\n\r\n" + body)
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
            if isinstance(one, LiveSocket) and one.mailbox is None:
                one.write(frames[one.wire.encoding])
        waves = max(1, round(over_s * 10))
        size = -(-len(everyone) // waves)
        for start in range(0, len(everyone), max(1, size)):
            for one in everyone[start : start + size]:
                one.close(RESTARTING, GOING_AWAY_REASON)
            await asyncio.sleep(over_s / waves)


def _select(conn: ServerProtocol, offered: Any) -> Subprotocol | None:
    """The first of ours that the client offers; never its `bearer.` token."""
    return next((name for name in offered if name in SUBPROTOCOLS), None)


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


class Speaker(asyncio.Protocol):
    """What live and device sockets share: reading frames, ping, close, the limits of a client."""

    if not TYPE_CHECKING:
        __slots__ = ()  # the subclasses have them: Python lets only one base of a class have slots of its own

    kind = ""
    sockets: Sockets
    conn: WsProtocol
    transport: asyncio.Transport
    connections: set[Any]
    slot: int
    unanswered: bool  # a ping of ours, since nothing came
    fragments: bytearray | None  # of a message that came in part
    is_text: bool  # that message
    asked: int
    window_s: float

    def begin(self, transport: asyncio.Transport, connections: set[Any]) -> None:
        """The handshake is done; the transport is ours from here. `connections`: what uvicorn waits for at its end."""
        self.transport, self.connections = transport, connections
        self.conn = WsProtocol(SERVER, max_size=self.message_max_bytes(), logger=_quiet)
        self.unanswered, self.fragments, self.is_text = False, None, False
        self.asked, self.window_s = 0, self.sockets.clock.steady_s()
        high = self.sockets.settings.socket_buffer_max_bytes
        transport.set_write_buffer_limits(high=high, low=min(LOW_WATER, high // 4))
        raw = transport.get_extra_info("socket")
        if raw is not None:  # or the kernel would take megabytes for a peer that does not read, and all of it old news
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.sockets.settings.socket_kernel_buffer_bytes)
        transport.set_protocol(self)
        self.connections.add(self)
        self.sockets.add(self, self.kind)  # type: ignore[arg-type]
        if self.sockets.count > self.sockets.settings.socket_max:
            self.close(TOO_MANY, "this worker has all the sockets it takes")
            return
        self.opened()

    def message_max_bytes(self) -> int:
        return self.sockets.settings.socket_message_max_bytes

    def data_received(self, data: bytes) -> None:
        self.unanswered = False
        conn = self.conn
        conn.receive_data(data)
        for event in conn.events_received():
            if conn.state is OPEN:
                self._frame(cast(Frame, event))
        out = conn.data_to_send()
        if out and not self.transport.is_closing():
            self.transport.write(b"".join(out))  # pongs, the echo of a close frame, the verdict on a broken frame
            if not out[-1]:  # the library's mark for the end of the stream
                self._hang_up()

    def eof_received(self) -> None:
        """The peer is done; the transport closes itself."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self.sockets.drop(self, self.kind)  # type: ignore[arg-type]
        self.ended()

    def ping(self) -> None:
        """Called once in every ping interval."""
        if self.unanswered:
            self.close(MOVING, "no answer to a ping")
        elif self.conn.state is OPEN:
            self.unanswered = True
            self.transport.write(PING)

    def close(self, code: int, reason: str) -> None:
        """A close frame, and no more after it; the connection is cut when the peer does not answer it."""
        if self.conn.state is not OPEN:
            return
        self.sockets.closed.add(1, str(code))
        self.conn.send_close(code, reason[:120])  # a control frame holds 125 bytes
        if not self.transport.is_closing():
            self.transport.write(b"".join(self.conn.data_to_send()))
            asyncio.get_running_loop().call_later(GIVE_UP_S, self.transport.abort)
        self.ended()

    def _hang_up(self) -> None:
        """Our half of the connection ends. The peer ends its own: to cut it with input unread would reset it, and lose our close frame."""
        self.transport.write_eof()
        asyncio.get_running_loop().call_later(GIVE_UP_S, self.transport.abort)
        self.ended()

    def shutdown(self) -> None:
        """uvicorn's last word, after the drain."""
        self.close(RESTARTING, GOING_AWAY_REASON)
        self.transport.close()

    def _frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode in (Opcode.TEXT, Opcode.BINARY):
            self.is_text = opcode is Opcode.TEXT
            if frame.fin:
                self.message(bytes(frame.data), self.is_text)
            else:
                self.fragments = bytearray(frame.data)
        elif opcode is Opcode.CONT and self.fragments is not None:
            self.fragments += frame.data  # the library holds the sum below `message_max_bytes`; fragments of nothing take no room
            if frame.fin:
                whole, self.fragments = bytes(self.fragments), None
                self.message(whole, self.is_text)

    def _over_rate(self, most: int) -> bool:
        now_s = self.sockets.clock.steady_s()
        if now_s - self.window_s > WINDOW_S:
            self.window_s, self.asked = now_s, 0
        self.asked += 1
        return self.asked > most

    def opened(self) -> None:
        raise NotImplementedError

    def ended(self) -> None:
        """Called at least once, maybe twice."""
        raise NotImplementedError

    def message(self, data: bytes, is_text: bool) -> None:
        raise NotImplementedError


_SPEAKER_SLOTS = ("asked", "conn", "connections", "fragments", "is_text", "sockets", "slot", "transport", "unanswered", "window_s")


class LiveSocket(Speaker, Listener):
    """One listener's socket: the ops of the contract, translated for the hub."""

    __slots__ = (*_SPEAKER_SLOTS, "boxes", "own", "timer", "token")

    kind = "live"

    def __init__(self, sockets: Sockets, given: Pairs, own: str | None) -> None:
        offered = _offered(given)
        encoding = next((SUBPROTOCOLS[name] for name in offered if name in SUBPROTOCOLS), JSON)
        Listener.__init__(self, WIRES[encoding], _nowhere)
        self.sockets = sockets
        self.own = own  # the channel that this path subscribes by itself, until it has
        self.token = next((name[7:] for name in offered if name.startswith("bearer.")), None)
        self.boxes = 0
        self.timer: asyncio.TimerHandle | None = None  # the wait for a token, then its end

    # --- life ---

    def opened(self) -> None:
        self.write = self.transport.write
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
        self.sockets.hub.leave(self)

    def ping(self) -> None:
        if self.mailbox is None:  # a stalled one is the hub's to judge, and we do not read its pongs
            Speaker.ping(self)

    def pause_writing(self) -> None:
        """Our buffer for it is full: newest only, and no more questions from it either."""
        if self.conn.state is OPEN:
            self.sockets.hub.stall(self)
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.conn.state is OPEN and not self.transport.is_closing():
            self.transport.resume_reading()
            self.unanswered = False
            self.sockets.hub.resume(self)

    # --- what the client says ---

    def message(self, data: bytes, is_text: bool) -> None:
        if self._over_rate(self.sockets.settings.socket_messages_max):
            self.close(TOO_MANY, "too many messages")
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
        if self.asked == 1:
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
        if self.conn.state is OPEN:
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


def _nowhere(frame: bytes) -> None:
    """Before the handshake is done nothing is written."""


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


class DeviceSocket(Speaker):
    """A device's socket: frames go to its ingest session, which answers when they are stored."""

    __slots__ = (*_SPEAKER_SLOTS, "session")

    kind = "device"

    def __init__(self, sockets: Sockets, door: Door, device: Device) -> None:
        self.sockets = sockets
        self.session = IngestSession(door, device, self._send, self.close)
        self.session.on_resume = self._resume

    def message_max_bytes(self) -> int:
        """A frame may hold what a POST may: 100 telemetry objects are 27 KB."""
        return self.sockets.settings.ingest_body_max_bytes

    def opened(self) -> None:
        """Its session exists since the handshake: a token that does not hold was answered 401 there."""

    def ended(self) -> None:
        self.session.closed()

    def message(self, data: bytes, is_text: bool) -> None:
        self.session.receive(data.decode("utf-8", "replace") if is_text else data)
        if self.session.paused:
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        """It does not read its acknowledgements: we read no more fixes."""
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._resume()

    def _resume(self) -> None:
        self.unanswered = False
        if not self.transport.is_closing() and not self.session.paused:
            self.transport.resume_reading()

    def _send(self, frame: str | bytes) -> None:
        if self.conn.state is OPEN and not self.transport.is_closing():
            self.transport.write(text_frame(frame.encode()) if isinstance(frame, str) else binary_frame(frame))
