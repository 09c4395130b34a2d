"""What scanners saw of one ticket, folded into who has boarded. Pure.

Scanners work offline and tell us later, in any order, some of it twice. The fold takes the set of scans: the order in which they came, and
how often, changes nothing. Times are the device's own, corrected by how far its clock was off when it told us (`corrected_ms`).

The rule: of the valid scans the earliest boards. A later one is ALREADY_BOARDED, or, of another device that was offline and could not know,
DUPLICATE_OFFLINE: two people may have travelled on one ticket (a screenshot), and the operator is shown both. A scan made offline after the
ticket was taken back is CANCELLED_BEFORE_SCAN: the device did not know; one made before it is BOARDED_BEFORE_CANCELLATION: the passenger
was on the bus when somebody cancelled. Neither changes the booking (its money has gone back): both are for the operator to look at. Online it
is simply REVOKED.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from engine.booking import tickets

BOARDED, ALREADY_BOARDED, DUPLICATE_OFFLINE = "BOARDED", tickets.ALREADY_BOARDED, "DUPLICATE_OFFLINE"
CANCELLED_BEFORE_SCAN, BOARDED_BEFORE_CANCELLATION = "CANCELLED_BEFORE_SCAN", "BOARDED_BEFORE_CANCELLATION"
BOARDED_AFTER_NO_SHOW: Final = "BOARDED_AFTER_NO_SHOW"  # the first valid scan, of a passenger already given up
SEQ_REUSED: Final = "SEQ_REUSED"  # this device's number stands for another scan already: nothing is done

MEANINGS: Final[dict[str, str]] = {
    **tickets.MEANINGS,
    BOARDED: "the first valid scan: welcome aboard",
    DUPLICATE_OFFLINE: "another device had boarded this ticket before, and this one was offline: look at both",
    CANCELLED_BEFORE_SCAN: "it was cancelled before the scan and the device could not know: the passenger has no seat any more",
    BOARDED_BEFORE_CANCELLATION: "it was scanned before somebody cancelled it: the passenger has travelled",
    BOARDED_AFTER_NO_SHOW: "scanned in time, told after the passenger had been given up: the passenger has travelled",
    SEQ_REUSED: "this number of this device stands for another scan already",
}
LOOK_AT: Final = frozenset(
    {DUPLICATE_OFFLINE, CANCELLED_BEFORE_SCAN, BOARDED_BEFORE_CANCELLATION, BOARDED_AFTER_NO_SHOW}
)  # for the operator
ABOARD: Final = frozenset({BOARDED, BOARDED_AFTER_NO_SHOW, BOARDED_BEFORE_CANCELLATION})  # of the winner


class Scan(msgspec.Struct, frozen=True):
    """One scan of a ticket. `verdict`: what the bytes and the corrected time say (engine.booking.tickets)."""

    scan_id: str
    device: str
    seq: int | None  # the device's own number; None: it keeps none, and each scan is its own
    at_ms: int  # corrected
    offline: bool
    version: int  # of the ticket, as the QR says
    verdict: str


class Standing(msgspec.Struct, frozen=True):
    """What the server knows of the ticket besides its scans."""

    version: int = 1  # in force, or the last that was
    revoked_at_ms: int | None = None
    no_show: bool = False
    paid: bool = True


class Boarding(msgspec.Struct, frozen=True):
    """`results` by scan id. `winner` None: nobody has boarded."""

    winner: Scan | None
    results: dict[str, str]


def corrected_ms(scanned_at_ms: int, device_time_ms: int | None, received_ms: int) -> int:
    """When it was scanned on our clock. `device_time_ms`: the device's clock when it sent this; None: it does not say, its clock is trusted.
    Never later than when we heard of it."""
    offset = 0 if device_time_ms is None else received_ms - device_time_ms
    return min(scanned_at_ms + offset, received_ms)


def merged(scans: Iterable[Scan]) -> list[Scan]:
    """Each (device, seq) once, by time. Told twice, the earlier time holds: what the network took can only make it later."""
    seen: dict[tuple[str, int | str], Scan] = {}
    for scan in scans:
        key = (scan.device, scan.scan_id if scan.seq is None else scan.seq)
        known = seen.get(key)
        if known is None or _place(scan) < _place(known):
            seen[key] = scan
    return sorted(seen.values(), key=_place)


def fold_scans(scans: Iterable[Scan], standing: Standing) -> Boarding:
    """Commutative, associative over unions, idempotent: a function of the set of scans and of what the server knows."""
    winner: Scan | None = None
    results: dict[str, str] = {}
    for scan in merged(scans):
        result = _alone(scan, standing)
        if result in ABOARD:
            if winner is None:
                winner = scan
            elif scan.offline and scan.device != winner.device:
                result = DUPLICATE_OFFLINE
            else:
                result = ALREADY_BOARDED
        results[scan.scan_id] = result
    return Boarding(winner, results)


def _place(scan: Scan) -> tuple[int, str, int, str]:
    return scan.at_ms, scan.device, -1 if scan.seq is None else scan.seq, scan.scan_id


def _alone(scan: Scan, standing: Standing) -> str:
    """What a scan would be if it were the first."""
    if scan.verdict != tickets.VALID:
        return scan.verdict
    if scan.version < standing.version:
        return tickets.SUPERSEDED
    if not standing.paid:
        return tickets.NOT_CONFIRMED
    if standing.revoked_at_ms is not None:
        if not scan.offline:  # it waited for the booking while somebody cancelled it: its device has not let anybody in yet
            return tickets.REVOKED
        return BOARDED_BEFORE_CANCELLATION if scan.at_ms < standing.revoked_at_ms else CANCELLED_BEFORE_SCAN
    return BOARDED_AFTER_NO_SHOW if standing.no_show else BOARDED
