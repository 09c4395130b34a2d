"""What an incident means to the passengers of its trip: a code, the parameters, and a plain English sentence made of them.

Only kinds in `CODES` concern passengers; speeding, bunching or a call for help are the operator's business. What is said here is public, so
of an incident's detail only `SHOWN` goes out: notes and names of those who handle it never do. Clients that speak another language make
their own sentence of code and parameters. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from engine.events import IncidentEvent
from engine.live.channels import trip_key
from engine.live.frames import Incident, incident, rfc3339
from engine.tracking.episodes import DELAYED, MISSED_STOP, OFF_ROUTE
from engine.tracking.timetable import Timetable, Trip

CLOSED: Final = "CLOSED"
# kind -> (code while it goes on, code once it is over)
CODES: Final[dict[str, tuple[str, str]]] = {
    OFF_ROUTE: ("DETOUR", "DETOUR_OVER"),
    MISSED_STOP: ("STOP_MISSED", "STOP_MISSED"),
    DELAYED: ("DELAYED", "DELAY_OVER"),
}
SHOWN: Final = frozenset({"maxOffsetM", "leftM", "rejoinedM", "bypassedStops", "stopId", "stopSequence", "alongM", "stoodS", "reason"})
NAMED_MAX: Final = 4  # stops named in one sentence; the parameters have all of them


class StopRef(msgspec.Struct, frozen=True, rename="camel"):
    """A stop that is not served."""

    stop_id: str  # public id
    seq: int
    name: str


class Params(msgspec.Struct, frozen=True, rename="camel"):
    """What a sentence is made of. None, or no stops: this code has none, or it is not known."""

    line: str | None = None
    headsign: str | None = None
    stops: list[StopRef] = []
    since: str | None = None


class Advice(NamedTuple):
    """`over`: it holds no longer."""

    code: str
    text: str
    params: Params
    over: bool


class TripIncident(Incident, frozen=True, rename="camel"):
    """`incident` on the channel of a trip: the same, in words for passengers."""

    code: str  # DETOUR | DETOUR_OVER | STOP_MISSED | DELAYED | DELAY_OVER
    text: str
    params: Params


class TripNotice(msgspec.Struct, frozen=True, rename="camel"):
    """`notice` on `booking:{ref}` and `notifications`: what the passengers of a booking are told of their trip (engine/office/notices.py)."""

    ref: str
    what: Literal["DETOUR", "DETOUR_OVER", "STOP_MISSED", "DELAYED", "DELAY_OVER"]
    trip_id: str
    incident_id: str
    text: str
    params: Params
    at: str


def concerns(event: IncidentEvent) -> bool:
    """Whether passengers of a trip should know."""
    return event.kind in CODES and event.trip_id is not None and event.start_date is not None


def is_over(event: IncidentEvent) -> bool:
    """Its episode has ended, or a person has closed it."""
    return event.closed_at_ms is not None or event.handled == CLOSED


def advice(feed_id: str, event: IncidentEvent, timetable: Timetable | None) -> Advice | None:
    """None: it does not concern passengers. Without a timetable, or for a trip it does not know, the sentence names neither line nor stops."""
    if not concerns(event):
        return None
    over = is_over(event)
    code = CODES[event.kind][over]
    trip = timetable.trips.get(event.trip_id or "") if timetable is not None else None
    detail = msgspec.json.decode(event.detail, type=dict[str, Any])
    stops = _stops(feed_id, event.kind, detail, timetable, trip) if timetable is not None and trip is not None else []
    line = None if timetable is None or trip is None else _line(timetable, trip)
    params = Params(line, trip.headsign if trip is not None else None, stops, rfc3339(event.opened_at_ms))
    return Advice(code, sentence(code, params), params, over)


def trip_incident(feed_id: str, event: IncidentEvent, timetable: Timetable | None, now_ms: int) -> TripIncident | None:
    """What the trip's channel says; None: nothing. What a person closed is over `now_ms`, whether or not its episode goes on."""
    told = advice(feed_id, event, timetable)
    if told is None:
        return None
    if told.over and event.closed_at_ms is None:
        event = msgspec.structs.replace(event, closed_at_ms=now_ms)
    said = msgspec.structs.asdict(incident(feed_id, event))
    said["detail"] = {name: value for name, value in said["detail"].items() if name in SHOWN}
    said["handled_state"] = None
    return TripIncident(**said, code=told.code, text=told.text, params=told.params)


def sentence(code: str, params: Params) -> str:
    """Plain and short, in English."""
    bus = "The bus" if params.line is None else f"The bus of line {params.line}"
    if params.line is not None and params.headsign:
        bus += f" to {params.headsign}"
    names = _names([stop.name for stop in params.stops])
    if code == "DETOUR":
        return f"{bus} is on a detour" + (f" and does not stop at {names}." if names else "; it may not call at all of its stops.")
    if code == "DETOUR_OVER":
        return f"{bus} is no longer on a detour."
    if code == "STOP_MISSED":
        return f"{bus} did not stop at {names or 'one of its stops'}."
    return f"{bus} is held up and makes no progress." if code == "DELAYED" else f"{bus} is no longer held up."


def _names(names: Sequence[str]) -> str:
    shown = list(dict.fromkeys(names))
    if len(shown) > NAMED_MAX:
        return f"{', '.join(shown[:NAMED_MAX])} and {len(shown) - NAMED_MAX} more stops"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _line(timetable: Timetable, trip: Trip) -> str | None:
    route = timetable.routes.get(trip.route_id)
    return None if route is None else route.short_name or route.long_name or route.route_id


def _stops(feed_id: str, kind: str, detail: dict[str, Any], timetable: Timetable, trip: Trip) -> list[StopRef]:
    """The stops of the trip that are not served, in its order."""
    wanted = detail.get("bypassedStops", []) if kind == OFF_ROUTE else [detail.get("stopSequence")] if kind == MISSED_STOP else []
    pairs = zip(trip.pattern.stop_sequences, trip.pattern.stop_ids, strict=True)
    return [
        StopRef(f"{feed_id}:{stop}", seq, timetable.stops[stop].name) for seq, stop in pairs if seq in wanted and stop in timetable.stops
    ]


def channel_of(feed_id: str, event: IncidentEvent) -> str:
    """The trip channel of an incident that `concerns`."""
    return "trip:" + trip_key(feed_id, event.trip_id or "", event.start_date or "")
