"""What is said about changes: the topics, their types with versions, and the one form of an event. Pure data.

An event is the news that a change was committed. Its id, `topic:aggregate:seq`, is made from what happened, so the same event comes with the
same id however often it is said; `seq` rises by one for each change of an aggregate. `version` is that of the shape of `data`: it rises when
a field changes its meaning or goes away; new fields may come at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from engine.live.frames import rfc3339


class Event(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """An event as consumers get it (stream, webhooks, `GET /v1/events/topics`)."""

    id: str  # topic:aggregate:seq
    topic: str
    type: str
    version: int  # of the shape of `data`
    aggregate: str  # UUID of what changed
    seq: int  # its how manieth change
    partner_id: str
    at: str  # RFC 3339
    data: Any


class Kind(NamedTuple):
    """One type of event: what it means, an example of its data, the version of its shape."""

    meaning: str
    example: Mapping[str, Any]
    version: int = 1


_SEATS: Final = {
    "ref": "7GK2QX",
    "status": "CONFIRMED",
    "tripId": "demo:C1-0:20261121",
    "seats": ["1A", "1B"],
    "from": "demo:ALG",
    "to": "demo:ORN",
    "mapVersion": 1,
    "expiresAt": None,
}


def _seats(status: str, **more: Any) -> dict[str, Any]:
    return {**_SEATS, "status": status, **more}


_HOLD: Final = {"ref": None, "expiresAt": "2026-11-21T09:10:00.000Z"}
_BOOKING: Final = {"bookingId": "0195c0de-0001-7000-8000-000000000003", "ref": "7GK2QX"}
_PAID: Final = {**_BOOKING, "provider": "SIMULATED_CARD", "amount": {"amount": 240000, "currency": "DZD"}}
_TICKET: Final = {**_BOOKING, "tripId": "demo:C1-0:20261121", "seat": "1A", "version": 1, "state": "ISSUED"}
_TRIP: Final = {"tripId": "demo:C1-0:20261121", "busId": "BUS-17"}
_PARCEL: Final = {"parcel": "P-104", "from": "demo:ALG", "to": "demo:ORN"}
_DRIVER: Final = {"driverId": "DRV-4"}
_WAIT: Final = {"tripId": "demo:C1-0:20261121", "count": 2, "from": "demo:ALG", "to": "demo:ORN", "state": "WAITING", "holdId": None}
_WAITS: Final = {
    "JOINED": "somebody waits for seats",
    "OFFERED": "freed seats are held for them",
    "TAKEN": "they booked what was offered",
    "LAPSED": "they did not; it is passed on",
    "LEFT": "they wait no longer",
    "CLOSED": "the trip is no longer sold",
}

_INCIDENT: Final = {
    "incidentId": "5d0f2c7a9b1e4c3d",
    "kind": "OFF_ROUTE",
    "severity": "MAJOR",
    "busId": "BUS-17",
    "tripId": "demo:C1-0:20261121",
    "routeId": "demo:C1",
    "startDate": "20261121",
    "openedAt": "2026-11-21T09:00:00.000Z",
    "closedAt": None,
    "lat": 36.7561,
    "lon": 3.0592,
    "detail": {"maxOffsetM": 240, "leftM": 1841, "bypassedStops": []},
    "handledState": None,
}
_NOTICE: Final = {
    "what": "DETOUR",
    "tripId": "demo:C1-0:20261121",
    "incidentId": "5d0f2c7a9b1e4c3d",
    "text": "The bus of line C1 to Oran is on a detour; it may not call at all of its stops.",
    "params": {"line": "C1", "headsign": "Oran", "stops": [], "since": "2026-11-21T09:00:00.000Z"},
    "at": "2026-11-21T09:00:00.000Z",
    "bookings": ["7GK2QX"],
}
_TOLD: Final = {
    "DETOUR": "their bus has left its usual way",
    "DETOUR_OVER": "their bus is on a detour no longer",
    "STOP_MISSED": "their bus did not stop where they wanted to get in or out",
    "DELAYED": "their bus is held up",
    "DELAY_OVER": "their bus is held up no longer",
}

# topic -> type -> what it means. The order is the one in which they are listed.
TOPICS: Final[dict[str, dict[str, Kind]]] = {
    "vehicle": {
        "LOCATION_UPDATED": Kind("a bus is somewhere else", {"busId": "BUS-17", "lat": 36.75, "lon": 3.06}),
        "STATUS_CHANGED": Kind("a bus came into service, went out of it or fell silent", {"busId": "BUS-17", "status": "OFFLINE"}),
        "MAINTENANCE_DUE": Kind("a bus is due for maintenance", {"busId": "BUS-17", "due": "2026-12-01"}),
    },
    "route": {
        "OPTIMIZED": Kind("a route's timetable was improved", {"routeId": "demo:104"}),
        "DEVIATION": Kind("a bus has left the route", {"routeId": "demo:104", **_TRIP}),
        "COMPLETED": Kind("a run over the route is complete", {"routeId": "demo:104", **_TRIP}),
    },
    "trip": {
        "SCHEDULED": Kind("a trip instance is on sale", _TRIP),
        "STARTED": Kind("it has left", _TRIP),
        "DELAYED": Kind("it runs later than it said", {**_TRIP, "delayS": 900}),
        "COMPLETED": Kind("it has ended", _TRIP),
        "CANCELLED": Kind("it will not run", _TRIP),
        "BUS_SWAPPED": Kind("another bus drives it; seats may have moved", {**_TRIP, "mapVersion": 2}),
        "SALES_CLOSED": Kind("it can be bought no more", _TRIP),
        "SALES_OPENED": Kind("it can be bought again", _TRIP),
    },
    "driver": {
        "STATUS_CHANGED": Kind("a driver came on duty or went off it", {**_DRIVER, "status": "ON_DUTY"}),
        "LOCATION_UPDATED": Kind("a driver on duty is somewhere else", {**_DRIVER, "lat": 36.75, "lon": 3.06}),
        "HOS_VIOLATION": Kind("hours of service were exceeded", {**_DRIVER, "hours": 11.5}),
    },
    "booking": {
        "HELD": Kind("seats are held", _seats("HELD", **_HOLD)),
        "CREATED": Kind("passengers are named; it waits for its payment", _seats("PENDING_PAYMENT", expiresAt=_HOLD["expiresAt"])),
        "CONFIRMED": Kind("it is paid; the seats are sold", _SEATS),
        "CANCELLED": Kind("its seats are free again", _seats("CANCELLED")),
        "EXPIRED": Kind("its time was over; its seats are free again", _seats("EXPIRED")),
        "MODIFIED": Kind("names, seats or legs have changed", _seats("CONFIRMED")),
        "BOARDED": Kind("the first valid scan", _seats("BOARDED")),
        "EXTENDED": Kind("a hold lives longer", _seats("HELD", **_HOLD)),
        "RELEASED": Kind("a hold was let go by its holder", _seats("RELEASED", ref=None)),
        "MOVED": Kind("a bus swap gave it other seats", _seats("CONFIRMED", mapVersion=2)),
        "CHECKED_IN": Kind("a passenger has checked in", _seats("CHECKED_IN")),
        "COMPLETED": Kind("the trip has ended with them on board", _seats("COMPLETED")),
        "NO_SHOW": Kind("the bus left without them", _seats("NO_SHOW")),
        "EXCHANGED": Kind("another booking took its place", _seats("EXCHANGED")),
        "REFUNDED": Kind("the money has gone back", _seats("REFUNDED")),
        "WAITLIST_OFFERED": Kind(
            "freed seats are held for who waits", _seats("HELD", entryId="0195c0de-0001-7000-8000-000000000007", **_HOLD)
        ),
    },
    "payment": {
        "INITIATED": Kind("a provider was asked for money", _PAID),
        "CONFIRMED": Kind("the money is in", _PAID),
        "FAILED": Kind("it will not come", _PAID),
        "REFUNDED": Kind("money has gone back", _PAID),
        "SEATS_OFFERED": Kind("the money came too late for its seats: others are offered", _PAID),
    },
    "ticket": {
        "ISSUED": Kind("a ticket was signed", _TICKET),
        "SCANNED": Kind("a ticket was shown to a scanner", {**_TICKET, "result": "VALID"}),
        "REVOKED": Kind("a ticket holds no longer", _TICKET),
    },
    "parcel": {
        "CREATED": Kind("a parcel was booked", _PARCEL),
        "ASSIGNED": Kind("it has a trip", {**_PARCEL, **_TRIP}),
        "PICKED_UP": Kind("it was handed over", _PARCEL),
        "IN_TRANSIT": Kind("it is on the bus", {**_PARCEL, **_TRIP}),
        "DELIVERED": Kind("it has arrived", _PARCEL),
        "CANCELLED": Kind("it will not be carried", _PARCEL),
        "DELAYED": Kind("it arrives later than it was said", {**_PARCEL, "delayS": 3600}),
    },
    "partner": {
        "PERFORMANCE_UPDATED": Kind("an operator's figures were made anew", {"onTime": 0.94}),
        "CAPACITY_CHANGED": Kind("an operator has more or fewer seats to sell", {"seats": 1200}),
        "SETTLED": Kind(
            "a period was paid out",
            {"from": "2026-11-01T00:00:00Z", "to": "2026-12-01T00:00:00Z", "amount": {"amount": 120, "currency": "DZD"}},
        ),
        "SEAT_LAYOUT_CHANGED": Kind("a seat layout was drawn, changed or retired", {"id": "coach-49", "version": 2}),
        "FARE_PLAN_CHANGED": Kind("a fare plan was made, changed or retired", {"id": "summer", "version": 2}),
        "OFFER_CHANGED": Kind("a route came on sale, is sold differently or no more", {"id": "demo:104", "version": 2}),
        "TRIP_ORDERED": Kind("somebody said which bus drives a trip", {"id": "demo:104-END-0-031:20261121", "version": 2}),
        "TRIP_ORDER_WITHDRAWN": Kind("and took it back", {"id": "demo:104-END-0-031:20261121", "version": 2}),
        "RULES_CHANGED": Kind("thresholds of a feed, or its window of being on time, were set", {"id": "demo", "version": 2}),
        "ALERT_CHANGED": Kind(
            "an alert for passengers was written, changed or retired", {"id": "0195c0de-0001-7000-8000-00000000000a", "version": 2}
        ),
        "FENCE_CHANGED": Kind("a geofence was drawn, changed or retired", {"id": "0195c0de-0001-7000-8000-000000000008", "version": 2}),
        "PROMO_CODE_CHANGED": Kind("a promo code was made, changed or retired", {"id": "SPRING", "version": 2}),
    },
    "pos": {
        "SYNCED": Kind("a device uploaded sales", {"deviceId": "till-7", "counts": {"CONFIRMED": 3, "CONFLICT_REFUND": 1}}),
        "SEATED": Kind("a sale that waited has a seat", {"deviceId": "till-7", "seq": 12, "seat": "4A"}),
        "SESSION_OPENED": Kind("a drawer was opened", {"deviceId": "till-7", "float": {"amount": 500000, "currency": "DZD"}}),
        "SESSION_CLOSED": Kind("a drawer was counted", {"deviceId": "till-7", "expected": 650000, "counted": 649000, "difference": -1000}),
        "DEVICE_CHANGED": Kind("a device has a new token, or none", {"deviceId": "till-7", "name": "north gate"}),
        "POLICY_CHANGED": Kind("what becomes of sales whose seat is gone", {"onConflict": "OFFER"}),
    },
    "waitlist": {
        **{kind: Kind(meaning, _WAIT) for kind, meaning in _WAITS.items()},
        "ROOM_SWITCHED": Kind("an operator closed or opened a waiting room", {**_TRIP, "mode": "ON", "admitPerS": 10}),
    },
    "incident": {
        "OPENED": Kind("something happens to a bus that its operator should know; a missed stop is over at once", _INCIDENT),
        "RAISED": Kind("it has become worse", {**_INCIDENT, "severity": "CRITICAL"}),
        "HANDLED": Kind("somebody acknowledged it, was given it, or closed it", {**_INCIDENT, "handledState": "ACKNOWLEDGED"}),
        "CLOSED": Kind("it is over", {**_INCIDENT, "closedAt": "2026-11-21T09:12:00.000Z"}),
    },
    "notice": {code: Kind(f"passengers of a trip were told: {meaning}", {**_NOTICE, "what": code}) for code, meaning in _TOLD.items()},
    "system": {
        "ALERT": Kind("somebody should look", {"alert": "EVENT_DEAD", "eventId": "booking:0195c0de-0001-7000-8000-000000000001:3"}),
        "ANOMALY_SUSPECTED": Kind("somebody does more than people do", {"actor": "agent:4", "perS": 12}),
        "PREDICTION": Kind("a forecast was made", {"what": "demand", "routeId": "demo:104"}),
    },
}
PUBLISHABLE: Final = {  # what people may say themselves: nothing that only a change may say
    "partner": ("PERFORMANCE_UPDATED", "CAPACITY_CHANGED"),
    "system": ("ALERT", "ANOMALY_SUSPECTED", "PREDICTION"),
}


def version_of(topic: str, kind: str) -> int:
    """Of the shape of an event's data; 1 for one that is not in the list."""
    known = TOPICS.get(topic, {}).get(kind)
    return known.version if known is not None else 1


def event_of(topic: str, kind: str, aggregate: str, seq: int, partner_id: str, at_ms: int, data: Any) -> Event:
    return Event(f"{topic}:{aggregate}:{seq}", topic, kind, version_of(topic, kind), aggregate, seq, partner_id, rfc3339(at_ms), data)


def examples() -> list[Event]:
    """One event of each type, in the order of the list."""
    return [
        event_of(topic, kind, "0195c0de-0001-7000-8000-000000000001", 1, "demo", 1_795_244_709_250, one.example)
        for topic, kinds in TOPICS.items()
        for kind, one in kinds.items()
    ]


class _Stop(Protocol):
    @property
    def stop_id(self) -> str: ...


class SoldTrip(Protocol):
    """What we need of `engine.booking.catalogue.SoldTrip`."""

    @property
    def trip_id(self) -> str: ...
    @property
    def stops(self) -> Sequence[_Stop]: ...


_INNER: Final = frozenset({"tripNo", "map", "seats", "from", "to", "state", "ref", "until", "was"})


def booking_data(body: Mapping[str, Any], trip: SoldTrip, labels: Sequence[str]) -> dict[str, Any]:
    """The data of a booking's event, from the body of its outbox row: seats by label, stops by id. `labels` of the body's map version."""
    data = {
        "ref": body.get("ref"),
        "status": body["state"],
        "tripId": trip.trip_id,
        "seats": [labels[number - 1] for number in body["seats"]],
        "from": trip.stops[body["from"]].stop_id,
        "to": trip.stops[body["to"]].stop_id,
        "mapVersion": body["map"],
        "expiresAt": instant(body.get("until")),
    }
    return data | {name: value for name, value in body.items() if name not in _INNER}


def plain_data(body: Mapping[str, Any], trip: SoldTrip | None, labels: Sequence[str]) -> dict[str, Any]:
    """The data of any other event: as it was written, but for our numbers of trips, seats and places, who is told, and money as the wire writes it.
    `trip` None: it names none."""
    data = {name: value for name, value in body.items() if name not in ("tripNo", "currency", "subjects")}
    if isinstance(data.get("amount"), int) and "currency" in body:
        data["amount"] = {"amount": data["amount"], "currency": body["currency"]}
    elif "currency" in body:
        data["currency"] = body["currency"]
    if trip is not None:
        data["tripId"] = trip.trip_id
        seat = data.get("seat")
        if isinstance(seat, int) and 0 < seat <= len(labels):
            data["seat"] = labels[seat - 1]
        for end in ("from", "to"):
            place = data.get(end)
            if isinstance(place, int) and 0 <= place < len(trip.stops):
                data[end] = trip.stops[place].stop_id
    return data


def instant(when: str | None) -> str | None:
    """RFC 3339 of a timestamp as PostgreSQL writes it into JSON."""
    if when is None:
        return None
    return rfc3339(round(msgspec.convert(when.replace(" ", "T"), type=datetime).timestamp() * 1000))
