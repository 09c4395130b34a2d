"""The handshake of RFC 6455 section 4.2 without I/O: what a request has to say, and the 101 that answers it.

`plain_upgrade` reads the head of an ordinary upgrade by itself; whatever is the least bit unusual (a body, obs-text, folding, bare line feeds, an
escape in another place, an absolute target) it leaves to the HTTP parser, which judges all requests. So there is one opinion on what a request
is: `plain_upgrade` only ever agrees with it sooner (tests/test_api_websocket.py holds one against the other).
"""

from __future__ import annotations

import binascii
import re
from hashlib import sha1
from typing import Final

from engine.errors import Invalid

Pairs = list[tuple[bytes, bytes]]  # a request's headers, names in lower case

GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
VERSION: Final = b"13"
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# one request line and complete headers of visible ASCII, spaces and tabs, none of them empty-named, folded or of another line end
_HEAD: Final = re.compile(rb"GET (/[!-~]*) HTTP/1\.1\r\n(?:%s+:[\t -~]*+\r\n)++\r\n" % _TOKEN)
_LIST: Final = re.compile(rb"[ \t,]*%s[ \t]*(?:,[ \t]*(?:%s[ \t]*)?)*" % (_TOKEN, _TOKEN))  # RFC 9110 section 5.6.1, of tokens
_LINES: Final = re.compile(
    rb"([^:]++):[ \t]*+([^\r]*+)\r\n"
).findall  # of a head that `_HEAD` has judged; values begin where the parser's do
_ONCE: Final = (b"upgrade", b"sec-websocket-key", b"sec-websocket-version")
_LEFT: Final = frozenset((b"content-length", b"transfer-encoding", b"expect"))  # a body, or the wish for one


class NoUpgrade(Invalid):
    """The peer speaks another version of the protocol, or none."""

    code, status = "UPGRADE_REQUIRED", 426


def plain_upgrade(data: bytes) -> tuple[str, Pairs, dict[bytes, bytes]] | None:
    """(target, headers, the same by name) of an upgrade whose head is all that came; None: it is for the HTTP parser to judge."""
    found = _HEAD.fullmatch(data)
    if found is None:
        return None
    given = [(name.lower(), value) for name, value in _LINES(data, found.end(1) + 11)]
    asked = dict(given)
    if len(asked) != len(given) or not _LEFT.isdisjoint(asked) or asked.get(b"upgrade", b"").lower() != b"websocket":
        return None
    connection = asked.get(b"connection", b"")
    if connection != b"Upgrade" and b"upgrade" not in [part.strip(b" \t").lower() for part in connection.split(b",")]:
        return None
    return found[1].decode("ascii"), given, asked


def accept_key(given: Pairs, asked: dict[bytes, bytes]) -> bytes:
    """Sec-WebSocket-Accept of a good handshake; `asked`: its headers by name. Raises `Invalid`, `NoUpgrade`."""
    alone = len(asked) == len(given)
    if not alone:  # a header stands there twice
        names = [name for name, _ in given]
        if any(names.count(name) > 1 for name in _ONCE):
            raise Invalid("Upgrade, Sec-WebSocket-Key and Sec-WebSocket-Version stand there once")
    connection = asked.get(b"connection", b"")
    if not ((alone and connection == b"Upgrade") or _listed(given)) or asked.get(b"upgrade", b"").lower() != b"websocket":
        raise Invalid("not a WebSocket handshake: Connection: Upgrade and Upgrade: websocket have to be there")
    key = asked.get(b"sec-websocket-key", b"")
    try:
        nonce = binascii.a2b_base64(key, strict_mode=True)
    except binascii.Error:
        nonce = b""
    if len(nonce) != 16:
        raise Invalid("Sec-WebSocket-Key has to be 16 bytes as base64")
    if asked.get(b"sec-websocket-version") != VERSION:
        raise NoUpgrade("only version 13 of the WebSocket protocol is spoken here (RFC 6455)")
    return binascii.b2a_base64(sha1(key + GUID, usedforsecurity=False).digest(), newline=False)


def _listed(given: Pairs) -> bool:
    """Whether Connection, in one line or several, lists upgrade. Raises `Invalid` where it is no list of tokens."""
    lines = [value for name, value in given if name == b"connection"]
    if not all(_LIST.fullmatch(line) for line in lines):
        raise Invalid("Connection is not a list of tokens")
    return any(part.strip(b" \t").lower() == b"upgrade" for line in lines for part in line.split(b","))


def switching(accept: bytes, subprotocol: str | None, request_id: str, api_version: bytes) -> bytes:
    """The 101. No extension is ever in it."""
    protocol = b"Sec-WebSocket-Protocol: %s\r\n" % subprotocol.encode() if subprotocol else b""
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n%s"
        b"X-Request-Id: %s\r\nX-API-Version: %s\r\n\r\n" % (accept, protocol, request_id.encode(), api_version)
    )
