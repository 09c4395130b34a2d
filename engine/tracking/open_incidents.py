"""The incidents of an area that are open, as the live picture shows them. Pure.

An episode opens, may change, and closes by its own table; people may acknowledge, assign or close it meanwhile. What a person closed is not
said again until its own table has closed it too. A call for help has no table: only a person closes it.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable

import msgspec

from engine.events import Handled, IncidentEvent, Sos
from engine.tracking.ride import event_id

log = logging.getLogger(__name__)

SOS, CRITICAL, CLOSED = "SOS", "CRITICAL", "CLOSED"
OPEN_MAX = 5_000  # of one area; past it the oldest leaves the picture (never the record)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(IncidentEvent).decode


class OpenIncidents:
    """Open incidents by id, oldest first, and which of them changed since `changed` was asked."""

    def __init__(self) -> None:
        self._open: dict[str, IncidentEvent] = {}
        self._changed: dict[str, None] = {}

    def restore(self, blobs: Iterable[bytes]) -> int:
        """What `changed` said, taken up again; how many could not be read."""
        self._open, self._changed, bad = {}, {}, 0
        for blob in blobs:
            try:
                event = _decode(blob)
            except (msgspec.DecodeError, msgspec.ValidationError) as fault:
                log.error("an open incident cannot be read: %s", fault)
                bad += 1
            else:
                self._open[event.incident_id] = event
        self._open = dict(sorted(self._open.items(), key=lambda item: (item[1].opened_at_ms, item[0])))
        return bad

    def changed(self) -> dict[str, bytes]:
        """Incident id -> its record, b"" where it is no longer open; since the last time."""
        found = {name: _encode(event) if (event := self._open.get(name)) is not None else b"" for name in self._changed}
        self._changed = {}
        return found

    def said(self, event: IncidentEvent) -> IncidentEvent | None:
        """What a table says of an episode, with what people did; None: a person closed it, nobody wants to hear more."""
        if event.late:
            return event
        known = self._open.get(event.incident_id)
        if known is not None and known.handled is not None:
            event = msgspec.structs.replace(event, handled=known.handled)
        if event.closed_at_ms is None:
            self._put(event)
        elif known is not None:
            self._drop(event.incident_id)
        return None if event.handled == CLOSED else event

    def sos(self, word: Sos) -> list[IncidentEvent]:
        """A call for help; nothing where it is known already."""
        if word.incident_id in self._open:
            return []
        event = IncidentEvent(
            event_id(word.incident_id, "opened"), word.incident_id, SOS, CRITICAL, word.bus_id, word.trip_id, word.start_date,
            word.route_id, word.at_ms, None, word.lat, word.lon, word.detail,
        )  # fmt: skip
        self._put(event)
        return [event]

    def handled(self, word: Handled) -> list[IncidentEvent]:
        """What a person did with an open incident; nothing where it is not open (any more), or closed by somebody already."""
        known = self._open.get(word.incident_id)
        if known is None or known.handled == CLOSED:
            return []
        detail = msgspec.json.decode(known.detail) | msgspec.json.decode(word.detail)
        event = msgspec.structs.replace(
            known,
            event_id=event_id(word.incident_id, word.state, word.at_ms),
            handled=word.state,
            closed_at_ms=word.at_ms if word.state == CLOSED and known.kind == SOS else None,
            detail=msgspec.json.encode(detail).decode(),
        )
        if event.closed_at_ms is None:
            self._put(event)
        else:
            self._drop(word.incident_id)
        return [event]

    def abandoned(self, buses: Container[str], at_ms: int) -> list[IncidentEvent]:
        """Closes what is open of buses that nobody knows any more: their tables are gone with them. A call for help stays."""
        left = [event for event in self._open.values() if event.kind != SOS and event.bus_id not in buses]
        said = []
        for event in left:
            detail = msgspec.json.decode(event.detail) | {"reason": "FORGOTTEN"}
            closed_at_ms, told = max(at_ms, event.opened_at_ms), msgspec.json.encode(detail).decode()
            name = event_id(event.incident_id, "closed")
            closed = self.said(msgspec.structs.replace(event, event_id=name, closed_at_ms=closed_at_ms, detail=told))
            if closed is not None:
                said.append(closed)
        return said

    def _put(self, event: IncidentEvent) -> None:
        if event.incident_id not in self._open and len(self._open) >= OPEN_MAX:
            self._drop(next(iter(self._open)))
        self._open[event.incident_id] = event
        self._changed[event.incident_id] = None

    def _drop(self, incident_id: str) -> None:
        if self._open.pop(incident_id, None) is not None:
            self._changed[incident_id] = None
