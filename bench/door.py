"""The door: CPU of the server per fix that a device sends by POST and by socket, one fix a request or frame, each beside its floor.

    python -m bench.door [--rate 4000] [--seconds 8] [--devices 250]

The product accepts as it always does: limits, token, rate, screens, one XADD for what gathered, and only then the answer. The floors are one
asyncio protocol on uvloop, in a process of its own, that decodes the same JSON into structs and answers at once: no credentials, no store.
Both meet the same clients: kept connections, an open loop of `--rate` fixes a second in turns of 2 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from websockets.frames import apply_mask  # type: ignore[attr-defined]  # in C where the package has it

from bench.network.feed import write_feed
from bench.product import Product, cpu_s, floor_server, table, verdict
from bench.simulate import register

BAR_POST_FLOORS = 2.2
BAR_SOCKET_FLOORS = 1.13  # 1.1 times the gate of the prototype, which took 1.02 floors
TURN_S = 0.002
WARM_UP_S = 2.0
MASK = b"\x17\x2a\x5c\x90"
UPGRADE = (
    "GET /ingest/ws?token={token} HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
POST = (
    "POST /ingest/telemetry HTTP/1.1\r\nHost: bench.example\r\nUser-Agent: bench\r\nAccept: */*\r\nAuthorization: Bearer {token}\r\n"
    "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
)


def telemetry(bus_id: str, seq: int) -> bytes:
    """About 300 bytes, as a phone's are."""
    said = {
        "busId": bus_id, "timestamp": time.time_ns() // 1_000_000, "location": {"latitude": 36.752887 + seq % 89 / 1e6, "longitude": 3.042048, "accuracy": 6.5},
        "motion": {"speed": 31.5, "heading": 184.2, "altitude": 112.0}, "status": {"ignition": True, "doorOpen": False, "passengers": 23, "fuel": 61.0},
        "tripId": "demo:T1024:20261122", "startDate": "20261122", "seq": seq,
    }  # fmt: skip
    return json.dumps(said, separators=(",", ":")).encode()


# --- the floor ---


class _Where(msgspec.Struct, gc=False):
    latitude: float
    longitude: float
    accuracy: float | None = None


class _Motion(msgspec.Struct, gc=False):
    speed: float | None = None
    heading: float | None = None
    altitude: float | None = None


class _Fix(msgspec.Struct, gc=False, rename="camel"):
    bus_id: str
    timestamp: int
    location: _Where
    motion: _Motion | None = None
    seq: int | None = None


_DECODE = msgspec.json.Decoder(_Fix).decode
_ACCEPTED = b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: 31\r\n\r\n" + b'{"accepted":1,"quarantined":[]}'


class Floor(asyncio.Protocol):
    """POSTs and masked frames that come whole: the least anybody could do."""

    __slots__ = ("is_socket", "transport")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.is_socket = False

    def data_received(self, data: bytes) -> None:
        if self.is_socket:
            start = 8 if data[1] & 127 == 126 else 6
            said = _DECODE(apply_mask(data[start:], data[start - 4 : start]))
            answer = b'{"ack":%d}' % (said.seq or 0)
            self.transport.write(bytes((0x81, len(answer))) + answer)
        elif data.startswith(b"POST"):
            at = data.index(b"\r\n\r\n") + 4
            length = data.index(b"Content-Length: ") + 16
            assert len(data) == at + int(data[length : data.index(b"\r", length)])
            _DECODE(data[at:])
            self.transport.write(_ACCEPTED)
        else:
            self.is_socket = True
            self.transport.write(b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")


async def serve_floor(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Floor, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


# --- the devices ---


class Device(asyncio.Protocol):
    """One kept connection, by POST or by socket; counts answers by their first line or frame."""

    def __init__(self, bus_id: str, token: str, by_socket: bool) -> None:
        self.bus_id, self.token, self.by_socket = bus_id, token, by_socket
        self.ready = asyncio.get_running_loop().create_future()
        self.sent = self.answered = 0
        self.busy = False
        self.fault = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        if self.by_socket:
            self.transport.write(UPGRADE.format(token=self.token).encode())
        else:
            self.ready.set_result(None)

    def data_received(self, data: bytes) -> None:
        if not self.ready.done():
            if not data.startswith(b"HTTP/1.1 101"):
                self.fault = data.decode(errors="replace")
            self.ready.set_result(None)
            return
        if self.by_socket:
            if data == b"\x89\x00":  # a ping; our next fix says as well that we are there
                return
            if b'"ack"' not in data:
                self.fault = repr(data)
        elif not data.startswith(b"HTTP/1.1 202"):
            self.fault = data.decode(errors="replace")
        self.answered += 1
        self.busy = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.busy = True

    def send(self) -> None:
        self.busy = True
        self.sent += 1
        body = telemetry(self.bus_id, self.sent)
        if self.by_socket:
            self.transport.write(bytes((0x81, 0x80 | 126)) + len(body).to_bytes(2, "big") + MASK + apply_mask(body, MASK))
        else:
            self.transport.write(POST.format(token=self.token, length=len(body)).encode() + body)


async def load(port: int, pid: int, tokens: dict[str, str], by_socket: bool, args: argparse.Namespace) -> tuple[float, float]:
    """(CPU us of the server per answered fix, answered a second)."""
    loop = asyncio.get_running_loop()
    devices = [
        (await loop.create_connection(lambda b=bus_id, t=token: Device(b, t, by_socket), "127.0.0.1", port))[1]  # type: ignore[misc]
        for bus_id, token in tokens.items()
    ]
    await asyncio.gather(*(device.ready for device in devices))
    began_s, sent, at = time.perf_counter(), 0, 0
    marked: tuple[float, float, int] | None = None
    while (now_s := time.perf_counter() - began_s) < WARM_UP_S + args.seconds:
        if marked is None and now_s >= WARM_UP_S:
            marked = now_s, cpu_s(pid), sum(device.answered for device in devices)
        while sent < args.rate * now_s:
            for _ in devices:  # the next one that has its answer
                at = (at + 1) % len(devices)
                if not devices[at].busy:
                    break
            else:
                break
            devices[at].send()
            sent += 1
        await asyncio.sleep(TURN_S)
    assert marked is not None
    spent_s, answered = cpu_s(pid) - marked[1], sum(device.answered for device in devices) - marked[2]
    took_s = time.perf_counter() - began_s - marked[0]
    for device in devices:
        device.transport.close()
    fault = next((device.fault for device in devices if device.fault), "")
    if fault or not answered:
        raise RuntimeError(f"a device was refused: {fault[:500]}")
    return spent_s / answered * 1e6, answered / took_s


def measured(args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    figures: dict[str, Any] = {}
    bus_ids = [f"door-{number}" for number in range(args.devices)]
    with tempfile.TemporaryDirectory() as folder:
        feed = Path(folder) / "demo.zip"
        write_feed(feed, date.today())
        with Product(feed=feed) as product, floor_server("bench.door") as (floor_port, floor_pid):
            tokens = register(f"http://127.0.0.1:{product.port}", product.token, bus_ids)
            time.sleep(5)  # credentials are good within that
            for name, by_socket in (("post", False), ("socket", True)):
                if args.only in ("", name):
                    if args.product_first:
                        input(f"{name}: worker {product.pid}\n")
                    figures[f"{name}, floor"] = uvloop.run(load(floor_port, floor_pid, tokens, by_socket, args))
                    figures[name] = uvloop.run(load(product.port, product.pid, tokens, by_socket, args))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.door", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=4_000, help="fixes a second")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--devices", type=int, default=250)
    parser.add_argument("--only", choices=("", "post", "socket"), default="")
    parser.add_argument("--product-first", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--floor", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.floor:
        uvloop.run(serve_floor(args.floor))
        return
    figures = measured(args)
    rows = []
    for name, bar in (("post", BAR_POST_FLOORS), ("socket", BAR_SOCKET_FLOORS)):
        if name in figures:
            (us, a_second), (floor_us, floor_a_second) = figures[name], figures[f"{name}, floor"]
            rows += [
                (f"CPU us a fix by {name}, product", f"{us:.1f}", "", "", f"{a_second:.0f} a second"),
                (f"CPU us a fix by {name}, floor", f"{floor_us:.1f}", "", "", f"{floor_a_second:.0f} a second"),
                ("in floors", f"{us / floor_us:.2f}", f"<= {bar}", verdict(us / floor_us, bar), ""),
            ]
    table(f"the door: {args.devices} devices, {args.rate} fixes a second", rows)


if __name__ == "__main__":
    main()
