"""Frames and handshakes of our own beside `websockets`' sans-I/O protocol and the HTTP parser: the same bytes, the same opinion."""

from __future__ import annotations

import random
from typing import Any

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.datastructures import Headers
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN as THEIRS_OPEN
from websockets.protocol import SERVER, Protocol
from websockets.server import ServerProtocol
from websockets.speedups import apply_mask

from api.handshake import accept_key, plain_upgrade
from api.websocket import CLOSED, CLOSING, OPEN, TEXT, Conversation, close_frame, text_frame
from engine.errors import Invalid

LIMIT = 200


class Ours(Conversation):
    """A conversation that keeps what it hears and says. A message of `bye` makes us close, as a session does."""

    __slots__ = ("fragments", "heard", "is_text", "limit_bytes", "rest", "said", "state", "trifles", "wanted")

    def __init__(self, limit_bytes: int = LIMIT) -> None:
        self.heard: list[tuple[bool, bytes]] = []
        self.said: list[bytes] = []
        self.trifles = 0
        self.converse(limit_bytes)

    def message(self, data: bytes, is_text: bool) -> None:
        self.heard.append((is_text, data))
        if data == b"bye":
            self.state = CLOSING
            self.say(close_frame(1012, "over"))

    def trifle(self) -> None:
        self.trifles += 1

    def say(self, frame: bytes) -> None:
        self.said.append(frame)

    def hang_up(self) -> None:
        self.said.append(b"")


def ours(*pieces: bytes) -> Ours:
    made = Ours()
    for piece in pieces:
        made.take(piece)
    return made


class Theirs:
    """The library with what its shells do: fragments are put together, text that is no UTF-8 is 1007, and what comes after our close is not heard."""

    def __init__(self) -> None:
        self.protocol = Protocol(SERVER, max_size=LIMIT)
        self.heard: list[tuple[bool, bytes]] = []
        self.said: list[bytes] = []
        self.parts, self.is_text = b"", False

    def take(self, data: bytes) -> None:
        for at in range(len(data)):  # one at a time, so that what is said stands behind the frame that it answers
            self.protocol.receive_data(data[at : at + 1])
            for event in self.protocol.events_received():
                assert isinstance(event, Frame)
                self._frame(event)
            self.said += self.protocol.data_to_send()

    def _frame(self, frame: Frame) -> None:
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        if frame.opcode is not Opcode.CONT:
            self.parts, self.is_text = b"", frame.opcode is Opcode.TEXT
        self.parts += bytes(frame.data)
        if not frame.fin or self.protocol.state is not THEIRS_OPEN:
            return
        if self.is_text:
            try:
                self.parts.decode()
            except UnicodeDecodeError as fault:
                self.protocol.fail(1007, f"{fault.reason} at position {fault.start}")
                return
        self.heard.append((self.is_text, self.parts))
        if self.parts == b"bye":
            self.protocol.send_close(1012, "over")


def judged(said: list[bytes]) -> list[Any]:
    """What was said, a close frame by its code alone: reasons are words."""
    found: list[Any] = []
    for frame in said:
        found.append(Close.parse(frame[2:]).code if frame[:1] == b"\x88" else frame)
    return found


def frame(first: int, payload: bytes = b"", *, mask: bytes = b"\x01\x02\x03\x04", masked: bool = True, length: int | None = None) -> bytes:
    """A client's frame. `length` 126 or 127 spells its size the long way."""
    size, more = len(payload), b""
    if length == 127 or size > 65_535:
        size, more = 127, len(payload).to_bytes(8, "big")
    elif length == 126 or size > 125:
        size, more = 126, len(payload).to_bytes(2, "big")
    return bytes((first, size | (0x80 if masked else 0))) + more + (mask + apply_mask(payload, mask) if masked else payload)


payloads = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"bye", b"{}", "né".encode(), b"\xff\xfe", b"\xc3", b"\xa9", "\u20ac".encode()[:2], b"x" * 125, b"x" * 126, b"x" * 199, b"x" * 201]),
    st.builds(lambda code, text: code.to_bytes(2, "big") + text, st.sampled_from([0, 999, 1000, 1004, 1005, 1006, 1012, 1014, 1015, 2999, 3000, 5000]),
              st.sampled_from([b"", b"why", b"\xff"])),
)  # fmt: skip
firsts = st.one_of(
    st.sampled_from([0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8A, 0x88]),
    st.sampled_from([0x81, 0x01, 0x80, 0x00]),
    st.integers(0, 255),
)
frames = st.builds(
    frame, firsts, payloads, mask=st.binary(min_size=4, max_size=4),
    masked=st.sampled_from([True] * 15 + [False]), length=st.sampled_from([None, None, None, 126, 127]),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(frames, max_size=7), st.binary(max_size=4), st.data())
@example([frame(0x01, b"a"), frame(0x89, b"p"), frame(0x88, b"\x03\xe8")], b"", None)
@example([frame(0x01, b"x" * 199), frame(0x89, b"xx")], b"", None)
@example([frame(0x81, b"bye"), frame(0x89, b"p"), frame(0x81, b"late"), frame(0x88, b"\x03\xf4")], b"", None)
def test_the_same_bytes_give_the_same_messages_answers_and_close_codes(made: list[bytes], tail: bytes, data: Any) -> None:
    stream = b"".join(made) + tail
    theirs = Theirs()
    theirs.take(stream)
    expected = theirs.heard, judged(theirs.said)
    ways = [[stream], [stream[at : at + 1] for at in range(len(stream))]]
    if data is not None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))
        ways.append([stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)])
    for pieces in ways:
        found = ours(*pieces)
        assert (found.heard, judged(found.said)) == expected, pieces


def test_one_stream_is_judged_alike_at_every_split() -> None:
    stream = b"".join(
        (
            frame(0x01, b"na"), frame(0x00, "ï".encode()[:1]), frame(0x89, b"still there?"), frame(0x80, "ï".encode()[1:] + b"ve"),
            frame(0x82, b"x" * 130), frame(0x8A), frame(0x81, b"y" * 20, length=127), frame(0x81, b"bye"), frame(0x81, b"unheard"),
            frame(0x89, b"p"), frame(0x88, b"\x03\xf4over"), frame(0x81, b"behind"),
        )
    )  # fmt: skip
    theirs = Theirs()
    theirs.take(stream)
    assert [len(data) for _, data in theirs.heard] == [6, 130, 20, 3]
    for cut in range(len(stream) + 1):
        found = ours(stream[:cut], stream[cut:])
        assert (found.heard, judged(found.said), found.state) == (theirs.heard, judged(theirs.said), CLOSED), cut


@pytest.mark.parametrize("seed", range(2))
def test_random_bytes_are_judged_alike_and_keep_nothing_beyond_the_limit(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(800):
        stream = bytearray(chance.randbytes(chance.randrange(40)))
        if stream and chance.random() < 0.8:
            stream[0] = chance.choice((0x81, 0x82, 0x01, 0x80, 0x89, 0x88))
        if len(stream) > 1 and chance.random() < 0.9:
            stream[1] = 0x80 | chance.choice((0, 1, 2, 5, 12, 126, 127))
        theirs, at = Theirs(), chance.randrange(len(stream) + 1)
        theirs.take(bytes(stream))
        found = ours(bytes(stream[:at]), bytes(stream[at:]))
        assert (found.heard, judged(found.said)) == (theirs.heard, judged(theirs.said)), bytes(stream)
        assert found.rest is None or len(found.rest) < LIMIT + 14


def test_a_long_message_in_small_pieces_is_put_together_once() -> None:
    made = Ours(limit_bytes=1_000_000)
    body = b"z" * 900_000
    stream = frame(0x82, body)
    for at in range(0, len(stream), 700):
        made.take(stream[at : at + 700])
    assert made.heard == [(False, body)] and made.rest is None
    made.take(frame(0x82, b"z" * 1_000_001)[:20])
    assert judged(made.said) == [1009, b""]


def test_pings_pongs_and_empty_fragments_are_told() -> None:
    made = ours(frame(0x89, b"a"), frame(0x8A, b"b"), frame(0x01), frame(0x00), frame(0x80, b"x"))
    assert (made.trifles, made.heard, made.said) == (4, [(True, b"x")], [b"\x8a\x01a"])
    assert made.state == OPEN and TEXT == Opcode.TEXT and text_frame(b"y" * 70_000)[:10] == b"\x81\x7f" + (70_000).to_bytes(8, "big")


# --- handshakes ---

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
HEADERS = [
    (b"Host", b"x"), (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"), (b"Sec-WebSocket-Version", b"13"), (b"Sec-WebSocket-Key", KEY),
]  # fmt: skip
values = st.one_of(
    st.sampled_from([
        b"Upgrade", b"upgrade", b"keep-alive, Upgrade", b"Upgrade,", b", ,upgrade", b"close", b"up grade", b"x;upgrade", b"websocket", b"WebSocket",
        b"websocket, h2c", b"13", b"8", b" 13 ", b"13, 8", KEY, KEY[:-1], KEY + b"=", b"A" * 24, b"dGhlIHNhbXBsZSBub25jZQ =", b"", b"0", b"chunked",
    ]),
    st.text("abz09-_. \t,;=\"\x7f\xe9\x00", max_size=8).map(lambda text: text.encode("latin-1")),
)  # fmt: skip
names = st.sampled_from(
    [b"Connection", b"Upgrade", b"Sec-WebSocket-Version", b"Sec-WebSocket-Key", b"Content-Length", b"Transfer-Encoding", b"Expect", b"X-Y", b"x y", b""]
)  # fmt: skip


@st.composite
def heads(draw: Any) -> bytes:
    """A handshake with up to three wounds."""
    lines = [b"%s: %s" % pair for pair in HEADERS]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(lines)))
        match draw(st.integers(0, 3)):
            case 0:
                lines.insert(at, b"%s:%s%s" % (draw(names), draw(st.sampled_from([b"", b" ", b"\t "])), draw(values)))
            case 1 if at < len(lines):
                lines[at] = lines[at].split(b": ")[0] + b": " + draw(values)
            case 2 if at < len(lines):
                del lines[at]
            case _:
                lines.insert(at, draw(st.sampled_from([b" folded", b"\tfolded", b"bare\nnewline: x", b"no colon", b"sp : x", b"cr\rx: y"])))
    first = draw(
        st.sampled_from(
            [b"GET /ws HTTP/1.1"] * 6
            + [
                b"GET /ws?a=%20b#c HTTP/1.1",
                b"GET /ws HTTP/1.0",
                b"GET  /ws HTTP/1.1",
                b"GET /w\xe9 HTTP/1.1",
                b'GET /ws"<>^`{|} HTTP/1.1',
                b"get /ws HTTP/1.1",
            ]
        )
    )
    end = draw(st.sampled_from([b"\r\n\r\n"] * 5 + [b"\r\n", b"\n\n", b"\r\n\r\nmore"]))
    return bytes(b"\r\n".join((first, *lines)) + end)


class Parsed:
    """What the HTTP parser makes of a head."""

    def __init__(self, data: bytes) -> None:
        self.url, self.headers, self.upgrades = b"", [], False  # type: ignore[var-annotated]
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.upgrades = parser.should_upgrade() and parser.get_method() == b"GET" and parser.get_http_version() == "1.1"
        except httptools.HttpParserError:
            pass

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


@settings(max_examples=400, deadline=None)
@given(heads())
@example(b"\r\n".join((b"GET /ws HTTP/1.1", *(b"%s: %s" % pair for pair in HEADERS), b"", b"")))
@example(b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: x;upgrade\r\nUpgrade: a\r\nUpgrade: websocket\r\n\r\n")
@example(b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: x;upgrade\r\nUpgrade: websocket\r\n\r\n")
def test_a_head_that_we_read_ourselves_is_what_the_http_parser_reads_there(data: bytes) -> None:
    read = plain_upgrade(data)
    if read is not None:
        parsed = Parsed(data)
        assert parsed.upgrades
        assert (parsed.url.decode(), parsed.headers, dict(parsed.headers)) == read


@settings(max_examples=400, deadline=None)
@given(heads())
@example(b"\r\n".join((b"GET /ws HTTP/1.1", *(b"%s: %s" % pair for pair in HEADERS), b"", b"")))
def test_a_handshake_is_accepted_as_the_library_accepts_it(data: bytes) -> None:
    parsed = Parsed(data)
    if not parsed.upgrades:
        return
    conn = ServerProtocol()
    given_headers = Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in parsed.headers)
    answer = conn.accept(Request(parsed.url.decode("latin-1"), given_headers))
    try:
        accept: bytes | None = accept_key(parsed.headers, dict(parsed.headers))
    except Invalid:
        accept = None
    said = answer.headers.get("Sec-WebSocket-Accept")
    assert (answer.status_code == 101, said) == (accept is not None, accept and accept.decode())


def test_an_ordinary_handshake_is_read_without_the_parser() -> None:
    data = b"\r\n".join((b"GET /ws?x=1 HTTP/1.1", *(b"%s: %s" % pair for pair in HEADERS), b"", b""))
    headers = [(name.lower(), value) for name, value in HEADERS]
    assert plain_upgrade(data) == ("/ws?x=1", headers, dict(headers))
    for wound in (
        data + b"x",
        data[:-2],
        data.replace(b"x\r\n", b"x\r\nContent-Length: 3\r\n"),
        data.replace(b"x\r\n", b"x\n"),
        data.replace(b": x", b":\xe9"),
    ):
        assert plain_upgrade(wound) is None
    assert accept_key(headers, dict(headers)) == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3
