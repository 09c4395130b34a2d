"""What the engine says: the records that leave the tracker for the live stream and for history.

All are msgpack arrays by position inside Redis (append fields only at the end). Times are UTC ms, lengths metres, speeds m/s. Ids here are
the feed's own; the public form `{feed}:{id}` is made at the rim (`engine/live/hub.py`, `api/`).
"""

from __future__ import annotations

import msgspec

# states of a vehicle (tracking): STALE = no fix for 90 s, OFFLINE = for 10 min
DEADHEAD, LAYOVER, IN_TRIP, OFF_ROUTE, DONE, STALE, OFFLINE = (
    "DEADHEAD",
    "LAYOVER",
    "IN_TRIP",
    "OFF_ROUTE",
    "DONE",
    "STALE",
    "OFFLINE",
)


SKIPPED = "SKIPPED"  # kind of a stop's forecast: the vehicle missed it


class StopForecast(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One stop of a trip: still to come, or missed (SKIPPED, no times). Quantiles of the arrival; kind SCHEDULED | ESTIMATED | SKIPPED |
    NO_DATA."""

    stop_id: str
    stop_sequence: int
    p10_ms: int | None
    p50_ms: int | None
    p90_ms: int | None
    delay_s: int | None  # p50 minus scheduled arrival, positive = late
    kind: str
    departs_ms: int | None = None  # median of the departure


class Position(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where we believe a vehicle is: the newest thing worth telling a watcher."""

    bus_id: str
    partner_id: str
    feed_id: str
    trip_id: str | None
    route_id: str | None
    start_date: str | None
    lat: float
    lon: float
    bearing_deg: float | None
    speed_mps: float | None
    along_m: float | None
    offset_m: float | None
    state: str
    delay_s: int | None
    next_stop: StopForecast | None
    fixed_at_ms: int
    received_at_ms: int
    stop_index: int | None = None  # index in the pattern of the next stop
    occupancy: int | None = None  # passengers on board where the device says
    driven_m: float | None = None  # since the start of the trip
    remaining_m: float | None = None  # along the shape to the last stop


class TripForecast(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Arrivals of one vehicle at all remaining stops of its trip, made anew every few seconds and at every stop; before them the stops that
    it missed, until the trip ends."""

    bus_id: str
    trip_id: str
    start_date: str
    route_id: str
    made_at_ms: int
    stops: tuple[StopForecast, ...]

    @property
    def ahead(self) -> tuple[StopForecast, ...]:
        """The stops without those that were missed."""
        if not self.stops or self.stops[0].kind != SKIPPED:
            return self.stops
        return tuple(stop for stop in self.stops if stop.kind != SKIPPED)


class StopEvent(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="stop"):
    """A vehicle served, passed or missed a stop. `event_id` is made from what happened, so a replay says the same id again."""

    event_id: str
    bus_id: str
    trip_id: str
    start_date: str
    route_id: str
    stop_id: str
    stop_sequence: int
    arrived_at_ms: int | None
    departed_at_ms: int | None
    kind: str  # SERVED | PASSED | MISSED | INTERPOLATED
    late: bool = False  # True: from late data; history only, nobody is told


class IncidentEvent(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="incident"):
    """One episode opened, changed or closed (off route, missed stop, wrong way ...)."""

    event_id: str  # of this saying
    incident_id: str  # of the episode, the same in all its sayings
    kind: str
    severity: str  # MINOR | MAJOR | CRITICAL
    bus_id: str
    trip_id: str | None
    start_date: str | None
    route_id: str | None
    opened_at_ms: int
    closed_at_ms: int | None
    lat: float
    lon: float
    detail: str  # JSON object
    late: bool = False
    handled: str | None = None  # ACKNOWLEDGED | ASSIGNED | CLOSED: what people did with it while it went on


class TripEvent(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="trip"):
    """A vehicle was given a trip, started it or ended it; `reason` says who said so or why."""

    event_id: str
    bus_id: str
    trip_id: str
    start_date: str
    route_id: str
    kind: str  # ASSIGNED | STARTED | COMPLETED | UNASSIGNED
    at_ms: int
    reason: str
    late: bool = False


class ApproachEvent(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="approach"):
    """A stop is near: a word for passengers, once for each stop of a trip. Live only, history does not keep it."""

    event_id: str
    bus_id: str
    trip_id: str
    start_date: str
    route_id: str
    stop_id: str
    stop_sequence: int
    at_ms: int
    away_m: float  # along the shape
    late: bool = False


Event = StopEvent | IncidentEvent | TripEvent | ApproachEvent


class Sos(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="sos"):
    """Somebody on a bus, or looking at one, calls for help. The same `incident_id` twice is one call."""

    incident_id: str
    bus_id: str
    trip_id: str | None
    start_date: str | None
    route_id: str | None
    lat: float
    lon: float
    at_ms: int
    detail: str = "{}"  # JSON object: who called (role, never a name), a note


class Handled(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="handled"):
    """What a person did with an incident."""

    incident_id: str
    state: str  # ACKNOWLEDGED | ASSIGNED | CLOSED
    at_ms: int
    detail: str = "{}"  # JSON object added to the incident's: assignedTo, note


Word = Sos | Handled  # what enters an area beside fixes, through the same stream


class TrackRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One fix with its verdict, as history keeps it."""

    bus_id: str
    fixed_at_ms: int
    lat: float
    lon: float
    received_at_ms: int
    device_id: str
    source: str
    verdict: str  # OK | LATE | DUPLICATE, or the reason of a quarantine: FUTURE, TELEPORT, FROZEN, ...
    accuracy_m: float | None
    speed_mps: float | None
    bearing_deg: float | None
    seq: int | None
    trip_id: str | None
    start_date: str | None
    along_m: float | None
    offset_m: float | None
    state: str | None


class OutBatch(msgspec.Struct, frozen=True, array_like=True):
    """One committed batch of an area in `out:{area}`: what history and the relay read."""

    n: int
    token: str
    rows: list[TrackRow]
    events: list[Event]
    forecasts: list[TripForecast] = []  # what was published, each vehicle sampled once a minute


class LiveBatch(msgspec.Struct, frozen=True, array_like=True):
    """One numbered message on `live:{area}`. `positions` and `forecasts` are msgpack of Position and TripForecast, raw until wanted."""

    area: str
    epoch: str
    n: int
    positions: list[msgspec.Raw]
    forecasts: list[msgspec.Raw]
    events: list[Event]
    gone: list[str] = []  # bus ids that left the live picture (offline)
    incidents: list[msgspec.Raw] = []  # msgpack of IncidentEvent: all that are open. Of a picture only; a batch tells them as `events`


class Refusal(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One fix that the door could not use, as `quar:{area}` keeps it. `detail` says what was wrong, with an excerpt; at most 256 characters."""

    received_at_ms: int
    device_id: str
    bus_id: str | None  # None: the fix names no bus of the device
    source: str
    reason: str  # MALFORMED | RANGE | ZERO_ISLAND | ACCURACY | ABSURD_TIME | NOT_YOUR_BUS
    index: int  # place in its request
    detail: str
