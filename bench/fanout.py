"""Fan-out: CPU of the server per delivery, N subscribers of one bus, beside a floor that writes ready bytes and does nothing else.

    python -m bench.fanout [--sockets 5000] [--rounds 40]

The floor is an asyncio/uvloop protocol in a process of its own that answers the same handshake and, on a byte from its control connection,
writes one ready frame of the same size to every socket, in the product's slices. Both are read by the same crowd, one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import statistics
import time

import uvloop

from bench.crowd import CrowdProcess, raise_limit
from bench.product import Area, Product, cpu_s, floor_server, table, verdict

BAR_US = 9.0  # CPU of the product per delivery, where the floor took 6.4
BAR_FLOORS = 1.4
SLICE = 100


class Floor(asyncio.Protocol):
    """Handshake once, then nothing but writes."""

    __slots__ = ("task", "transport")
    everyone: list[asyncio.Transport] = []  # noqa: RUF012 - of the process

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET"):
            self.transport.write(
                b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            )
            self.everyone.append(self.transport)
        elif data.startswith(b"size"):
            frame = b"\x81\x7e" + (int(data[4:]) - 4).to_bytes(2, "big") + b"x" * (int(data[4:]) - 4)
            self.task = asyncio.get_running_loop().create_task(self.broadcast(frame))

    async def broadcast(self, frame: bytes) -> None:
        for start in range(0, len(self.everyone), SLICE):
            for transport in self.everyone[start : start + SLICE]:
                transport.write(frame)
            await asyncio.sleep(0)
        self.transport.write(b"done")


async def serve_floor(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Floor, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def measure_product(sockets: int, rounds: int, pause_s: float) -> tuple[float, int, float]:
    """(us per delivery, bytes of a frame, p99 ms of a round's deliveries)."""
    with Product() as product:
        area, crowd = Area(product.redis), CrowdProcess(product.port)
        try:
            area.say([area.position("b17", 0)])
            crowd.tell("connect", sockets, "bus:b17")
            time.sleep(8)  # replies and snapshots go out, the collector freezes the crowd
            late = []
            crowd.tell("expect")
            area.say([area.position("b17", 1)])
            size = crowd.tell("report", time.time(), sockets, 10)["bytes"] // sockets
            began = cpu_s(product.pid)
            for at in range(rounds):
                crowd.tell("expect")
                now = time.time()
                area.say([area.position("b17", at)])
                said = crowd.tell("report", now, sockets, 10)
                assert said["frames"] == sockets, said
                late.append(said["p99_ms"])
                time.sleep(pause_s)
            return (cpu_s(product.pid) - began) / (rounds * sockets) * 1e6, size, statistics.median(late)
        finally:
            crowd.close()


def measure_floor(sockets: int, rounds: int, pause_s: float, size: int) -> tuple[float, float]:
    with floor_server("bench.fanout") as (port, pid), contextlib.closing(CrowdProcess(port)) as crowd:
        crowd.tell("connect", sockets, "-")
        late = []
        with socket.create_connection(("127.0.0.1", port), timeout=10) as control:
            began = cpu_s(pid)
            for _ in range(rounds):
                crowd.tell("expect")
                now = time.time()
                control.sendall(b"size%d" % size)
                said = crowd.tell("report", now, sockets, 10)
                assert said["frames"] == sockets, said
                late.append(said["p99_ms"])
                control.recv(16)
                time.sleep(pause_s)
            return (cpu_s(pid) - began) / (rounds * sockets) * 1e6, statistics.median(late)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fanout", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sockets", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between two rounds")
    parser.add_argument("--floor", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    raise_limit()
    if args.floor:
        uvloop.run(serve_floor(args.floor))
        return
    product_us, size, late = measure_product(args.sockets, args.rounds, args.pause)
    floor_us, floor_late = measure_floor(args.sockets, args.rounds, args.pause, size)
    table(
        f"fan-out: {args.sockets} subscribers of one bus, {args.rounds} rounds, frames of {size} bytes, one worker",
        [
            ("CPU us per delivery, product", f"{product_us:.2f}", f"<= {BAR_US:.0f}", verdict(product_us, BAR_US), "the kernel's write"),
            ("CPU us per delivery, floor (uvloop)", f"{floor_us:.2f}", "", "", "the kernel's write"),
            ("product / floor", f"{product_us / floor_us:.2f}", f"<= {BAR_FLOORS}", verdict(product_us / floor_us, BAR_FLOORS), ""),
            ("p99 of a round, product, ms", f"{late:.1f}", "", "", "one core for server and readers"),
            ("p99 of a round, floor, ms", f"{floor_late:.1f}", "", "", ""),
        ],
    )


if __name__ == "__main__":
    main()
