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
_LEFT: Final = frozenset((b"content-length", b"transfer-encoding", b"expect"))  # a body, or the wish for one


class NoUpgrade(Invalid):
    """The peer speaks another version of the protocol, or none."""

    code, status = "UPGRADE_REQUIRED", 426


def plain_upgrade(data: bytes) -> tuple[str, Pairs] | None:
    """(target, headers) of an upgrade whose head is all that came; None: it is for the HTTP parser to judge."""
    found = _HEAD.fullmatch(data)
    if found is None:
        return None
    given: Pairs = []
    connection = upgrade = b""
    for line in data[found.end(1) + 11 : -4].split(b"\r\n"):
        name, _, value = line.partition(b":")
        name = name.lower()
        value = value.lstrip(b" \t")  # as the parser does
        if name in _LEFT:
            return None
        if name == b"upgrade":
            upgrade = value
        elif name == b"connection":
            connection = value
        given.append((name, value))
    if upgrade.lower() != b"websocket" or b"upgrade" not in connection.lower():
        return None  # the parser knows whether it is one
    return found[1].decode("ascii"), given


def accept_key(given: Pairs) -> bytes:
    """Sec-WebSocket-Accept of a good handshake. Raises `Invalid`, `NoUpgrade`."""
    key = version = None
    connection = upgrade = False
    for name, value in given:
        if name == b"sec-websocket-key":
            if key is not None:
                raise Invalid("Sec-WebSocket-Key stands there twice")
            key = value
        elif name == b"sec-websocket-version":
            if version is not None:
                raise Invalid("Sec-WebSocket-Version stands there twice")
            version = value
        elif name == b"connection":
            connection = connection or _lists(value, b"upgrade")
        elif name == b"upgrade":
            if upgrade or value.lower() != b"websocket":
                raise Invalid("Upgrade has to be websocket, and nothing else")
            upgrade = True
    if not (connection and upgrade):
        raise Invalid("not a WebSocket handshake: Connection: Upgrade and Upgrade: websocket have to be there")
    if key is None or len(key) != 24 or not _is_key(key):
        raise Invalid("Sec-WebSocket-Key has to be 16 bytes as base64")
    if version != VERSION:
        raise NoUpgrade("only version 13 of the WebSocket protocol is spoken here (RFC 6455)")
    return binascii.b2a_base64(sha1(key + GUID, usedforsecurity=False).digest(), newline=False)


def _lists(value: bytes, wanted: bytes) -> bool:
    """Whether a list of tokens has one, whatever its case. Raises `Invalid` where it is no list of tokens."""
    lowered = value.lower()
    if lowered == wanted:
        return True
    if not _LIST.fullmatch(value):
        raise Invalid("Connection is not a list of tokens")
    return any(part.strip(b" \t") == wanted for part in lowered.split(b","))


def _is_key(key: bytes) -> bool:
    try:
        return len(binascii.a2b_base64(key, strict_mode=True)) == 16
    except binascii.Error:
        return False


def switching(accept: bytes, subprotocol: str | None, request_id: str, api_version: bytes) -> bytes:
    """The 101. No extension is ever in it."""
    protocol = b"Sec-WebSocket-Protocol: %s\r\n" % subprotocol.encode() if subprotocol else b""
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n%s"
        b"X-Request-Id: %s\r\nX-API-Version: %s\r\n\r\n" % (accept, protocol, request_id.encode(), api_version)
    )
