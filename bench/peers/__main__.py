"""Timepoint beside other people's servers: the same client, the same run, in turn and again; the figures that can be compared are ratios.

    python -m bench.peers                                 all three: about six minutes, more where peers have to be installed first
    python -m bench.peers fanout --sockets 5000           Nchan, npm ws, uWebSockets, a C epoll floor
    python -m bench.peers ingest --rate 1500              FastAPI with pydantic, an asyncio floor, a bare ASGI application
    python -m bench.peers booking                         pretix: a seat into the cart, an order with a seat
    python -m bench.peers --out peers.json --into run.json   the ratios as JSON; added to a result of `timepoint bench run`, whose report shows them

Peers are installed on first use by package name and pinned version into a folder outside the checkout (TIMEPOINT_PEERS; by default in the user's
cache); one that cannot be had is named with the reason, and the others are measured. CPU is the server's own, as the kernel counts it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.crowd import raise_limit
from bench.harness.result import Peer, read
from bench.peers import booking, fanout, ingest

Row = tuple[str, ...]


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def fanned(args: argparse.Namespace) -> tuple[list[Peer], list[Row], dict[str, str]]:
    found, missing = fanout.measure(args.sockets, args.rounds, args.turns, 0.02, say, args.peer or fanout.PEERS)
    ours, ten = found[0], found[1]
    rows: list[Row] = [
        (
            "server",
            "us a delivery",
            "us an update",
            "ours in theirs",
            "ten a tick in theirs",
            "us a handshake",
            "KB a socket",
            "p99 ms of a round",
            "turns",
        )
    ]
    peers = []
    for one in found:
        ratios = ("", "") if one in (ours, ten) else (f"{ours.update_us / one.update_us:.2f}", f"{ten.update_us / one.update_us:.3f}")
        turns = " ".join(f"{us:.1f}" for us in one.turns_us)
        rows.append(
            (
                f"{one.name} ({one.version})",
                f"{one.delivery_us:.2f}",
                f"{one.update_us:.2f}",
                *ratios,
                f"{one.handshake_us:.0f}",
                f"{one.socket_kb:.1f}",
                f"{one.late_ms:.0f}",
                turns,
            )
        )
        if one not in (ours, ten):
            peers += [
                peer(one, f"fan-out to {args.sockets}", "us CPU a delivery", one.update_us, ours.update_us),
                peer(one, "fan-out, ten buses a tick", "us CPU an update", one.update_us, ten.update_us),
                peer(one, "handshake", "us CPU", one.handshake_us, ours.handshake_us),
            ]
    return peers, rows, missing


def taken_in(args: argparse.Namespace) -> tuple[list[Peer], list[Row], dict[str, str]]:
    found, missing = ingest.measure(args.rate, args.seconds, say)
    ours = found[0]
    rows: list[Row] = [("server", "us a request, 1 fix", "ours in theirs", f"us a fix, {ingest.BATCH} fixes", "ours in theirs", "refused")]
    peers = []
    for one in found:
        each = "-" if one.fix_us is None else f"{one.fix_us:.2f}"
        of_many = "-" if one.fix_us is None or ours.fix_us is None else f"{ours.fix_us / one.fix_us:.2f}"
        refused = ", ".join(f"{n} x {what}" for what, n in one.refused.items()) or "none"
        beneath = f" (and {one.beneath_us:.0f} of Redis)" if one.beneath_us else ""
        rows.append(
            (
                f"{one.name} ({one.version})",
                f"{one.request_us:.1f}{beneath}",
                f"{ours.request_us / one.request_us:.2f}",
                each,
                of_many,
                refused,
            )
        )
        if one is not ours:
            peers.append(peer(one, "POST of one fix", "us CPU a request", one.request_us, ours.request_us))
            if one.fix_us is not None and ours.fix_us is not None:
                peers.append(peer(one, f"POST of {ingest.BATCH} fixes", "us CPU a fix", one.fix_us, ours.fix_us))
    return peers, rows, missing


def booked(args: argparse.Namespace) -> tuple[list[Peer], list[Row], dict[str, str]]:
    found, missing = booking.measure(args.callers, args.seconds, say)
    ours = {one.what: one for one in found if one.name == "Timepoint"}
    rows: list[Row] = [
        ("server", "what", "ms CPU, all processes", "web process", "ours in theirs", "a second", "p95 ms of a call", "refused")
    ]
    peers = []
    for one in found:
        refused = ", ".join(f"{n} x {what}" for what, n in one.refused.items()) or "none"
        ratio = ours[one.what].us / one.us
        rows.append(
            (
                f"{one.name} ({one.version})",
                one.what,
                f"{one.us / 1e3:.2f}",
                f"{one.web_us / 1e3:.2f}",
                f"{ratio:.3f}",
                f"{one.rate:.1f}",
                f"{one.p95_ms:.0f}",
                refused,
            )
        )
        if one.name != "Timepoint":
            peers.append(peer(one, one.what, "us CPU of all processes", one.us, ours[one.what].us))
    return peers, rows, missing


def peer(one: Any, what: str, unit: str, theirs: float, ours: float) -> Peer:
    return Peer(name=one.name, version=one.version, what=what, unit=unit, figure=theirs, ours=ours)


PARTS: dict[str, Callable[[argparse.Namespace], tuple[list[Peer], list[Row], dict[str, str]]]] = {
    "fanout": fanned, "ingest": taken_in, "booking": booked,
}  # fmt: skip


def table(title: str, rows: Sequence[Row]) -> None:
    print(f"\n{title}")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def add_to(path: Path, peers: Sequence[Peer]) -> None:
    """Puts the ratios into a result, in place of older ones of the same name and thing."""
    result = read(path.read_bytes())
    new = {(one.name, one.what) for one in peers}
    kept = [one for one in result.peers if (one.name, one.what) not in new]
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(result, peers=[*kept, *peers])))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], help="which comparisons (default: all)")
    parser.add_argument("--peer", action="append", choices=list(fanout.PEERS), help="of fanout, only this one (may be given again)")
    parser.add_argument("--sockets", type=int, default=5000, metavar="N", help="of the crowd on each server (default 5000)")
    parser.add_argument("--rounds", type=int, default=8, metavar="N", help="messages a turn of fanout (default 8)")
    parser.add_argument("--turns", type=int, default=4, metavar="N", help="of each server of fanout, there and back (default 4)")
    parser.add_argument("--rate", type=int, default=1500, metavar="N", help="requests a second with one fix (default 1500)")
    parser.add_argument("--seconds", type=float, default=6.0, metavar="S", help="of each turn of ingest and booking (default 6)")
    parser.add_argument("--callers", type=int, default=16, metavar="N", help="booking at once (default 16)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the ratios")
    parser.add_argument("--into", type=Path, metavar="RESULT.json", help="add them to a result")
    args = parser.parse_args(argv)
    raise_limit()
    peers: list[Peer] = []
    for part in args.part or PARTS:
        found, rows, missing = PARTS[part](args)
        peers += found
        table(f"{part}: one process each, the same client, in turn", rows)
        for name, why in missing.items():
            print(f"  {name} is missing: {why}")
    if args.out is not None:
        args.out.write_bytes(msgspec.json.format(msgspec.json.encode(peers), indent=1) + b"\n")
    if args.into is not None:
        add_to(args.into, peers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
