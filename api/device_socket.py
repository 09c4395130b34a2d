"""/ingest/ws: a device's socket. Frames go to its ingest session (ingest/socket.py), which answers when they are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.speaker import SPEAKER_SLOTS, Speaker
from api.websocket import OPEN, binary_frame, text_frame
from engine.office.accounts import Device
from ingest.door import Door
from ingest.socket import IngestSession

if TYPE_CHECKING:
    from api.live import Sockets


class DeviceSocket(Speaker):
    """One device that is known already: a token that does not hold was answered 401 at the handshake."""

    __slots__ = (*SPEAKER_SLOTS, "session")

    kind = "device"

    def __init__(self, sockets: Sockets, door: Door, device: Device) -> None:
        self.sockets = sockets
        self.session = IngestSession(door, device, self._send, self.close)
        self.session.on_resume = self._resume

    def message_max_bytes(self) -> int:
        """A frame may hold what a POST may: 100 telemetry objects are 27 KB."""
        return self.sockets.settings.ingest_body_max_bytes

    def opened(self) -> None:
        """Its session exists since the handshake."""

    def ended(self) -> None:
        self.session.closed()

    def message(self, data: bytes, is_text: bool) -> None:
        session = self.session
        session.receive(data, is_text)
        if session.paused:
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        """It does not read its acknowledgements: we read no more fixes."""
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._resume()

    def _resume(self) -> None:
        """Its fixes are stored, or it reads again; both have to be so."""
        self.unanswered = False
        transport = self.transport
        full = transport.get_write_buffer_size() > self.sockets.settings.socket_buffer_max_bytes
        if not (full or transport.is_closing() or self.session.paused):
            transport.resume_reading()

    def _send(self, payload: bytes, is_text: bool) -> None:
        if self.state == OPEN and not self.transport.is_closing():
            self.transport.write(text_frame(payload) if is_text else binary_frame(payload))
