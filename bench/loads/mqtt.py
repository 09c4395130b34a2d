"""MQTT 3.1.1 by hand (OASIS, 2014), as much as a bus needs: CONNECT, PUBLISH with QoS 1, PUBACK, PINGREQ. One connection is one login."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bench.harness.address import Address

CONNECT_LIMIT_S = 15.0
KEEPALIVE_S = 300
PORTS = 1883, 8883  # plain and secure
REFUSED = {1: "protocol version", 2: "client id", 3: "broker away", 4: "user or password", 5: "not allowed"}


def packet(kind: int, body: bytes) -> bytes:
    """A control packet: its first byte, the remaining length in groups of seven bits, the rest."""
    size, head = len(body), bytearray((kind,))
    while size > 127:
        head.append(0x80 | size & 127)
        size >>= 7
    head.append(size)
    return bytes(head) + body


def text(value: str) -> bytes:
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


class Login(asyncio.Protocol):
    """`acked(number)` for every PUBACK, `lost()` once if the connection goes. Not more than 65,535 messages may be under way."""

    __slots__ = ("acked", "broker", "hello", "lost", "number", "opened", "rest", "topic", "transport")

    def __init__(
        self, broker: Address, client_id: str, user: str, password: str, topic: str, acked: Callable[[int], None], lost: Callable[[], None]
    ) -> None:
        self.broker, self.acked, self.lost = broker, acked, lost
        flags = 0xC2  # user name, password, clean session
        self.hello = packet(
            0x10, text("MQTT") + bytes((4, flags)) + KEEPALIVE_S.to_bytes(2, "big") + text(client_id) + text(user) + text(password)
        )
        self.topic = text(topic)
        self.number = 0
        self.rest = b""
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport = None  # type: ignore[assignment]

    async def connect(self) -> None:
        """Raises OSError (ConnectionError where the login is refused), TimeoutError."""
        loop, broker = asyncio.get_running_loop(), self.broker
        async with asyncio.timeout(CONNECT_LIMIT_S):
            await loop.create_connection(lambda: self, broker.host, broker.port, ssl=broker.ssl)
            await self.opened

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.transport.write(self.hello)

    def publish(self, payload: bytes) -> int:
        """Its packet identifier, which `acked` will name."""
        self.number = self.number % 65_535 + 1
        self.transport.write(packet(0x32, self.topic + self.number.to_bytes(2, "big") + payload))
        return self.number

    def ping(self) -> None:
        self.transport.write(b"\xc0\0")

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data = self.rest + data
        at = 0
        while len(data) - at >= 2 and len(data) - at >= 2 + data[at + 1]:  # all that a broker says to us is short
            kind = data[at] >> 4
            if kind == 4:
                self.acked(int.from_bytes(data[at + 2 : at + 4], "big"))
            elif kind == 2 and not self.opened.done():
                if data[at + 3]:
                    self.opened.set_exception(ConnectionError(f"the broker refuses: {REFUSED.get(data[at + 3], data[at + 3])}"))
                else:
                    self.opened.set_result(None)
            at += 2 + data[at + 1]
        self.rest = data[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionError("the broker hung up"))
        else:
            self.lost()

    def close(self) -> None:
        self.lost = lambda: None
        self.transport.write(b"\xe0\0")
        self.transport.close()
