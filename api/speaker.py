"""Speaker: what live and device sockets share: the transport, pings, the end, and the limits of a client.

The frames themselves are judged by `Conversation` (api/websocket.py). Slotted, and nothing is made for a socket but itself and what it says.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from api.problems import RESTARTING, TOO_MANY
from api.websocket import CLOSED, CLOSING, OPEN, Conversation, close_frame

if TYPE_CHECKING:
    from api.live import Sockets

MOVING: Final = 1001  # what a peer that vanished is closed with: no pong within a ping's interval
WINDOW_S: Final = 10.0  # the client's messages are counted over it
GIVE_UP_S: Final = 5.0  # after a close frame, before the connection is cut
LOW_WATER: Final = 16_384
PING: Final = b"\x89\x00"
GOING_AWAY_REASON: Final = "restarting: come back"
SPEAKER_SLOTS: Final = (
    "asked", "connections", "fragments", "is_text", "limit_bytes", "rest", "slot", "sockets", "state", "transport", "trifles", "unanswered",
    "wanted", "window_s",
)  # fmt: skip


class Speaker(Conversation, asyncio.Protocol):
    """One socket from its 101 on. The subclasses have the slots: Python lets only one base of a class have slots of its own."""

    if not TYPE_CHECKING:
        __slots__ = ()

    kind = ""
    sockets: Sockets
    transport: asyncio.Transport
    connections: set[Any]
    slot: int
    unanswered: bool  # a ping of ours, since nothing came
    asked: int  # messages in this window
    trifles: int  # frames without a message in it
    window_s: float  # when it began

    def begin(self, transport: asyncio.Transport, connections: set[Any], hello: bytes, rest: bytes) -> None:
        """The transport is ours from here. `hello`: the 101; `connections`: what uvicorn waits for at its end; `rest`: what came already."""
        sockets = self.sockets
        settings = sockets.settings
        self.transport, self.connections = transport, connections
        self.unanswered, self.asked, self.trifles = False, 0, 0
        self.window_s = sockets.clock.steady_s()
        self.converse(self.message_max_bytes())
        high = self.unsent_max_bytes()
        transport.set_protocol(self)
        transport.set_write_buffer_limits(high=high, low=min(LOW_WATER, high // 4))
        if transport.get_write_buffer_size() > high:  # an answer still waits, and uvloop told the protocol before us
            self.pause_writing()
        transport.write(hello)
        connections.add(self)
        sockets.add(self, self.kind)  # type: ignore[arg-type]
        if sockets.count > settings.socket_max:
            self.close(TOO_MANY, "this worker has all the sockets it takes")
            return
        self.opened()
        if rest:
            self.data_received(rest)

    def message_max_bytes(self) -> int:
        return self.sockets.settings.socket_message_max_bytes

    def unsent_max_bytes(self) -> int:
        """More than this waiting in the transport is too much (`pause_writing`)."""
        return self.sockets.settings.socket_buffer_max_bytes

    def data_received(self, data: bytes) -> None:
        self.unanswered = False
        self.take(data)

    def eof_received(self) -> None:
        """The peer is done; the transport closes itself."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.state = CLOSED  # whoever walks over all sockets may still have this one
        self.connections.discard(self)
        self.sockets.drop(self, self.kind)  # type: ignore[arg-type]
        self.ended()

    def ping(self) -> None:
        """Called once in every ping interval."""
        if self.unanswered:
            self.close(MOVING, "no answer to a ping")
        elif self.state == OPEN:
            self.unanswered = True
            self.transport.write(PING)

    def close(self, code: int, reason: str) -> None:
        """A close frame, and no message after it; the connection is cut when the peer does not answer it."""
        if self.state != OPEN:
            return
        self.sockets.closed.add(1, str(code))
        self.state = CLOSING
        self.say(close_frame(code, reason))
        self._give_up()
        self.ended()

    def say(self, frame: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(frame)

    def hang_up(self) -> None:
        """The peer ends its own half: to cut it with input unread would reset the connection, and lose our close frame."""
        if not self.transport.is_closing():
            self.transport.write_eof()
            self._give_up()
        self.ended()

    def _give_up(self) -> None:
        asyncio.get_running_loop().call_later(GIVE_UP_S, self.transport.abort)

    def shutdown(self) -> None:
        """uvicorn's last word, after the drain."""
        self.close(RESTARTING, GOING_AWAY_REASON)
        self.transport.close()

    def trifle(self) -> None:
        self._look_at_window()
        self.trifles += 1
        if self.trifles > self.sockets.settings.socket_messages_max:
            self.close(TOO_MANY, "too many control frames")

    def flooding(self) -> bool:
        """Whether this message is one too many; the socket is closed then."""
        self._look_at_window()
        self.asked += 1
        if self.asked <= self.sockets.settings.socket_messages_max:
            return False
        self.close(TOO_MANY, "too many messages")
        return True

    def _look_at_window(self) -> None:
        now_s = self.sockets.clock.steady_s()
        if now_s - self.window_s > WINDOW_S:
            self.window_s, self.asked, self.trifles = now_s, 0, 0

    def opened(self) -> None:
        raise NotImplementedError

    def ended(self) -> None:
        """Called at least once, maybe twice."""
        raise NotImplementedError
