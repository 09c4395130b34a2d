"""/ingest/ws: telemetry objects as frames in, acknowledgements out. No I/O: the host gives frames and takes frames (api/device_socket.py).

Promises: `{"ack": seq}` goes out after the append, in the order of the frames, and says the highest seq so far stored: everything the
device sent before it is stored or was named in a `quarantined`. Fixes without a seq are acknowledged by number, `{"ack": null, "n": 3}`.
Frames are answered in their own kind (text: JSON, binary: MessagePack) and several answers at once become one. An append that fails ends
the socket (1012, come back): what was not acknowledged is sent again, and the tracker calls a second copy DUPLICATE.

Bounds: `IN_FLIGHT_MAX` fixes wait for their append, then `paused` asks the host to stop reading; a frame over `ingest_fixes_max` is 4400,
a device over its rate 4429. One that is retired or rotated out meanwhile is 4401 at its next frame.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from engine.errors import TooMany, Unavailable
from engine.office.accounts import Device
from engine.tracking.fix import Fix
from ingest.door import Door
from ingest.wire import Refused, WireError, is_msgpack, telemetry

IN_FLIGHT_MAX = 2000  # fixes of one socket: 2 s of a gateway of 1,000 buses
RESTARTING, BAD_MESSAGE, NOT_AUTHENTICATED, TOO_MANY = 1012, 4400, 4401, 4429

_json, _pack = msgspec.json.Encoder().encode, msgspec.msgpack.Encoder().encode


class _Flight:
    """One frame's fixes on their way, called when they are appended. `seq`: the highest of them; `bare`: how many carry none."""

    __slots__ = ("bare", "count", "landed", "seq", "session")

    def __init__(self, session: IngestSession, fixes: list[Fix]) -> None:
        self.session, self.landed, self.count = session, False, len(fixes)
        if self.count == 1:
            self.seq = seq = fixes[0].seq
            self.bare = 1 if seq is None else 0
        else:
            numbers = [fix.seq for fix in fixes if fix.seq is not None]
            self.seq, self.bare = max(numbers, default=None), self.count - len(numbers)

    def __call__(self, fault: Unavailable | None) -> None:
        self.landed = True
        self.session._landed(fault)


class IngestSession:
    """One device's socket. Not for two threads."""

    __slots__ = (
        "_ack_bare", "_ack_due", "_ack_seq", "_close", "_ended", "_flights", "_held", "_packed", "_send", "device", "door", "on_resume",
    )  # fmt: skip

    def __init__(self, door: Door, device: Device, send: Callable[[bytes, bool], None], close: Callable[[int, str], None]) -> None:
        """`send(payload, is_text)` writes one frame, `close(code, reason)` ends the socket; both are called on the loop, never after `closed()`."""
        self.door, self.device, self._send, self._close = door, device, send, close
        self.on_resume: Callable[[], None] | None = None
        self._flights: deque[_Flight] = deque()
        self._held = 0
        self._packed = False  # how the device talks
        self._ended = False
        self._ack_seq: int | None = None
        self._ack_bare = 0
        self._ack_due = False

    @property
    def paused(self) -> bool:
        """Too many fixes in flight: read no more frames until `on_resume` is called."""
        return self._held >= IN_FLIGHT_MAX

    def receive(self, body: bytes, is_text: bool) -> None:
        """One frame: a telemetry object, an array of them, or lines of them. Never raises."""
        if self._ended:
            return
        device = self.door.devices.renewed(self.device)
        if device is None:
            self._end(NOT_AUTHENTICATED, "the credentials of this socket are no longer good")
            return
        self.device = device
        self._packed = not is_text and is_msgpack(body, "")
        try:
            decoded = telemetry(body, "", device, "socket", self.door.clock.now_ms())
        except WireError as fault:
            self._refuse([Refused(0, "MALFORMED", fault.detail)])
            return
        if decoded.count > self.door.settings.ingest_fixes_max:
            self._end(BAD_MESSAGE, f"a frame may have at most {self.door.settings.ingest_fixes_max} fixes")
            return
        try:
            self.door.meter_out(device, decoded.count)
        except TooMany as fault:
            self._end(TOO_MANY, fault.detail)
            return
        if decoded.refused:
            self._refuse(decoded.refused)
        if decoded.fixes:
            flight = _Flight(self, decoded.fixes)
            try:
                self.door.submit(device, decoded.fixes, flight)
            except Unavailable as fault:
                self._end(RESTARTING, fault.detail)
                return
            self._flights.append(flight)
            self._held += flight.count

    def closed(self) -> None:
        """The socket is gone: nothing is sent any more. What was taken is still appended."""
        self._ended = True

    def _refuse(self, refused: list[Refused]) -> None:
        self.door.keep(self.device, refused, "socket")
        for one in refused:
            self._say({"quarantined": {"seq": one.seq, "reason": one.reason}})

    def _landed(self, fault: Unavailable | None) -> None:
        """Acknowledge in the order of the frames: areas differ in speed, and an ack speaks for all before it."""
        if self._ended:
            return
        if fault is not None:
            self._end(RESTARTING, "the fixes could not be stored: send again what was not acknowledged")
            return
        was_paused, flights = self.paused, self._flights
        while flights and flights[0].landed:
            flight = flights.popleft()
            self._held -= flight.count
            self._ack_bare += flight.bare
            if flight.seq is not None and (self._ack_seq is None or flight.seq > self._ack_seq):
                self._ack_seq = flight.seq
        if not flights:
            self._acknowledge()
        elif not self._ack_due:
            self._ack_due = True
            asyncio.get_running_loop().call_soon(self._acknowledge)
        if was_paused and not self.paused and self.on_resume is not None:
            self.on_resume()

    def _acknowledge(self) -> None:
        """All that landed in one turn of the loop, or the last that was in flight, in one frame (two where some fixes have a seq and some none)."""
        self._ack_due = False
        if self._ended:
            return
        seq, bare = self._ack_seq, self._ack_bare
        if seq is not None:
            self._ack_seq = None
            self._send(_pack({"ack": seq}), False) if self._packed else self._send(b'{"ack":%d}' % seq, True)
        if bare:
            self._ack_bare = 0
            self._say({"ack": None, "n": bare})

    def _say(self, said: dict[str, Any]) -> None:
        self._send(_pack(said), False) if self._packed else self._send(_json(said), True)

    def _end(self, code: int, reason: str) -> None:
        self._ended = True
        self._close(code, reason[:120])  # a close frame holds 123 bytes of reason
