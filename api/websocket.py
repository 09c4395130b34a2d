"""RFC 6455 as a server speaks it, without I/O: bytes in, messages out, what has to be written back, close codes. No extensions.

`Conversation` is mixed into a socket. It judges frames exactly as `websockets`' sans-I/O protocol does, at every split of the bytes
(tests/test_api_websocket.py holds one against the other), and says 1007 to a text message that is no UTF-8, which that library leaves to its
shells. Why not the library: a frame costs it eight generator steps and four objects, a connection 1 KB that lives as long as its socket.

Promises: messages in their order, each whole and once; a ping is answered before what follows it is looked at; after a close frame nothing is
looked at any more. Bounds: a message and its fragments stay below `limit_bytes`, or 1009; of an unfinished frame at most that and a header
are kept. Refuses (1002): unknown opcodes, unmasked frames, reserved bits, control frames that are long or fragmented, a message inside
another, close frames with codes that may not be sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from websockets.frames import apply_mask  # type: ignore[attr-defined]  # in C where the package has it

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
OPEN, CLOSING, CLOSED = 0, 1, 2  # CLOSING: our close frame is out, the peer's is not in; CLOSED: nothing is read any more
PROTOCOL_ERROR, NO_STATUS, INVALID_DATA, TOO_BIG = 1002, 1005, 1007, 1009
SENDABLE: Final = frozenset((1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014))  # and 3000-4999; IANA's registry
CONTROL_MAX: Final = 125  # bytes of a control frame


def text_frame(payload: bytes, last: str = "") -> bytes:
    """One unmasked text frame, as every server frame is (RFC 6455 section 5.1)."""
    return _header(0x81, len(payload)) + payload


def binary_frame(payload: bytes, last: str = "") -> bytes:
    """One unmasked binary frame."""
    return _header(0x82, len(payload)) + payload


def close_frame(code: int, reason: str) -> bytes:
    """A close frame; its reason is cut to what a control frame holds."""
    payload = code.to_bytes(2, "big") + reason.encode("utf-8", "replace")[: CONTROL_MAX - 2].decode("utf-8", "ignore").encode()
    return bytes((0x88, len(payload))) + payload


def _header(first: int, size: int) -> bytes:
    if size < 126:
        return bytes((first, size))
    if size < 65_536:
        return bytes((first, 126)) + size.to_bytes(2, "big")
    return bytes((first, 127)) + size.to_bytes(8, "big")


class Broken(Exception):
    """What the peer sent ends the conversation, with this code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Conversation:
    """One connection after its handshake. The subclass has the slots, calls `converse`, and is called with what came.

    `message` may end the conversation; what lies behind it in the same bytes is not looked at then.
    """

    if not TYPE_CHECKING:
        __slots__ = ()

    state: int
    limit_bytes: int  # of one message
    rest: bytearray | None  # the beginning of a frame that is not whole yet
    wanted: int  # so long `rest` has to be before it is worth another look
    fragments: bytearray | None  # of a message that came in part
    is_text: bool  # that message

    def converse(self, limit_bytes: int) -> None:
        """The handshake is done."""
        self.state, self.limit_bytes = OPEN, limit_bytes
        self.rest, self.wanted = None, 0
        self.fragments, self.is_text = None, False

    def message(self, data: bytes, is_text: bool) -> None:
        """A whole message. Called while OPEN only; `data` of a text is good UTF-8."""
        raise NotImplementedError

    def trifle(self) -> None:
        """A frame without a message has come: a ping (its answer is said already), a pong, an empty fragment. A peer may flood with them."""

    def say(self, frame: bytes) -> None:
        """Bytes for the peer."""
        raise NotImplementedError

    def hang_up(self) -> None:
        """Our half of the connection ends behind what was said. Called once."""
        raise NotImplementedError

    def take(self, data: bytes) -> None:
        """The next bytes of the peer."""
        rest = self.rest
        if rest is not None:
            rest += data
            if len(rest) < self.wanted:
                return
            data, self.rest = bytes(rest), None
        at, size = 0, len(data)
        try:
            while at < size and self.state != CLOSED:
                after = self._frame(data, at, size)
                if after < 0:
                    self.rest, self.wanted = bytearray(data[at:]), -after
                    return
                at = after
        except Broken as fault:
            self._fail(fault)

    def _frame(self, data: bytes, at: int, size: int) -> int:
        """Judges the frame that begins at `at`: where the next one begins, or minus the bytes that there must be before it can be judged."""
        if size - at < 2:
            return -2
        first, length, start = data[at], data[at + 1], at + 6
        opcode = first & 0x0F
        if 2 < opcode < 8 or opcode > PONG:
            raise Broken(PROTOCOL_ERROR, "invalid opcode")
        if length < 0x80:
            raise Broken(PROTOCOL_ERROR, "incorrect masking")
        length -= 0x80
        if length > 125:
            start = at + (8 if length == 126 else 14)
            if size < start - 4:
                return at + 4 - start
            length = int.from_bytes(data[at + 2 : start - 4], "big")
        fragments = self.fragments
        if length > (self.limit_bytes if fragments is None else self.limit_bytes - len(fragments)):
            raise Broken(TOO_BIG, f"a message may have at most {self.limit_bytes} bytes")
        end = start + length
        if size < end:
            return at - end
        payload = apply_mask(data[start:end], data[start - 4 : start])
        if fragments is None and (first == 0x81 or first == 0x82):
            self._whole(payload, first == 0x81)
        elif first & 0x70:
            raise Broken(PROTOCOL_ERROR, "reserved bits must be 0")
        elif opcode >= CLOSE:
            self._control(opcode, first, payload)
        else:
            self._part(opcode, first >= 0x80, payload)
        return end

    def _whole(self, payload: bytes, is_text: bool) -> None:
        if self.state != OPEN:
            return  # we have said goodbye already
        if is_text and not payload.isascii():
            try:
                payload.decode()
            except UnicodeDecodeError as fault:
                raise Broken(INVALID_DATA, f"{fault.reason} at position {fault.start}") from fault
        self.message(payload, is_text)

    def _part(self, opcode: int, last: bool, payload: bytes) -> None:
        """A piece of a message in several."""
        fragments = self.fragments
        if not payload and not last:
            self.trifle()
        if opcode == CONT:
            if fragments is None:
                raise Broken(PROTOCOL_ERROR, "unexpected continuation frame")
            fragments += payload
            if last:
                self.fragments = None
                self._whole(bytes(fragments), self.is_text)
        elif fragments is not None:
            raise Broken(PROTOCOL_ERROR, "expected a continuation frame")
        else:
            self.fragments, self.is_text = bytearray(payload), opcode == TEXT

    def _control(self, opcode: int, first: int, payload: bytes) -> None:
        if len(payload) > CONTROL_MAX:
            raise Broken(PROTOCOL_ERROR, "control frame too long")
        if first < 0x80:
            raise Broken(PROTOCOL_ERROR, "fragmented control frame")
        if opcode != CLOSE:
            if opcode == PING:
                self.say(bytes((0x80 | PONG, len(payload))) + payload)
            self.trifle()
            return
        _judge_close(payload)
        if self.fragments is not None:
            raise Broken(PROTOCOL_ERROR, "incomplete fragmented message")
        if self.state == OPEN:
            self.say(bytes((0x80 | CLOSE, len(payload))) + payload)
        self._end()

    def _fail(self, fault: Broken) -> None:
        """RFC 6455 section 7.1.7."""
        if self.state == OPEN:
            self.say(close_frame(fault.code, fault.reason))
        self._end()

    def _end(self) -> None:
        self.state, self.rest, self.fragments = CLOSED, None, None
        self.hang_up()


def _judge_close(payload: bytes) -> None:
    """Raises `Broken` where a close frame says what it may not."""
    if len(payload) == 1:
        raise Broken(PROTOCOL_ERROR, "close frame too short")
    if payload:
        code = int.from_bytes(payload[:2], "big")
        try:
            payload[2:].decode()
        except UnicodeDecodeError as fault:
            raise Broken(INVALID_DATA, f"{fault.reason} at position {fault.start}") from fault
        if code not in SENDABLE and not 3000 <= code < 5000:
            raise Broken(PROTOCOL_ERROR, "invalid status code")
