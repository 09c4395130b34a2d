"""Alerts: what passengers should know beside the positions. Written by operators, or made of the incidents that are open.

One form for both, `AlertItem`, which `GET /v1/alerts`, the live channels and GTFS-Realtime say. Words are those of GTFS-Realtime, messages
Alert and EntitySelector: what stands in one selector holds together (this stop *on* this route), an alert concerns whatever any of its
selectors concerns, and one without selectors concerns the whole feed. Pure; ids inside are the feed's own, those of the items public.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal
from weakref import WeakKeyDictionary

import msgspec

from engine.events import IncidentEvent
from engine.live.advice import Params, advice
from engine.live.channels import trip_key
from engine.live.frames import rfc3339
from engine.tracking.episodes import DELAYED
from engine.tracking.timetable import Timetable, Trip

Cause = Literal[
    "UNKNOWN_CAUSE", "OTHER_CAUSE", "TECHNICAL_PROBLEM", "STRIKE", "DEMONSTRATION", "ACCIDENT", "HOLIDAY", "WEATHER", "MAINTENANCE",
    "CONSTRUCTION", "POLICE_ACTIVITY", "MEDICAL_EMERGENCY",
]  # fmt: skip
Effect = Literal[
    "NO_SERVICE", "REDUCED_SERVICE", "SIGNIFICANT_DELAYS", "DETOUR", "ADDITIONAL_SERVICE", "MODIFIED_SERVICE", "OTHER_EFFECT", "UNKNOWN_EFFECT",
    "STOP_MOVED", "NO_EFFECT", "ACCESSIBILITY_ISSUE",
]  # fmt: skip
Level = Literal["INFO", "WARNING", "SEVERE"]

OPERATOR, INCIDENT = "OPERATOR", "INCIDENT"
LEVELS: Final[dict[str, Level]] = {"MINOR": "INFO", "MAJOR": "WARNING", "CRITICAL": "SEVERE"}  # by severity of an incident


class Period(msgspec.Struct, frozen=True, gc=False):
    """When an alert holds, UTC ms, half open. None: from the beginning, or without an end."""

    from_ms: int | None = None
    to_ms: int | None = None


class Selector(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What an alert concerns; ids of the feed. None: any. `start_date` (yyyymmdd) goes with a trip, `direction_id` with a route."""

    route_id: str | None = None
    direction_id: int | None = None
    stop_id: str | None = None
    trip_id: str | None = None
    start_date: str | None = None


class OperatorAlert(msgspec.Struct, frozen=True):
    """An alert as its operator wrote it. Texts by language (BCP 47). No periods: it holds until it is retired."""

    alert_id: str
    partner_id: str
    feed_id: str
    cause: str
    effect: str
    level: str
    header: dict[str, str]
    description: dict[str, str]
    url: str | None
    periods: tuple[Period, ...]
    selectors: tuple[Selector, ...]
    version: int
    changed_at_ms: int
    retired_at_ms: int | None = None

    def holds(self, now_ms: int) -> bool:
        """Now."""
        if self.retired_at_ms is not None:
            return False
        return not self.periods or any((p.from_ms or 0) <= now_ms and (p.to_ms is None or now_ms < p.to_ms) for p in self.periods)

    def is_over(self, now_ms: int) -> bool:
        """It will not hold again."""
        if self.retired_at_ms is not None:
            return True
        return bool(self.periods) and all(p.to_ms is not None and p.to_ms <= now_ms for p in self.periods)


class PeriodItem(msgspec.Struct, frozen=True, rename="camel"):
    from_: str | None = msgspec.field(name="from")
    to: str | None


class SelectorItem(msgspec.Struct, frozen=True, rename="camel"):
    """A selector with public ids. `tripId` names a trip instance, or the trip of every date."""

    route_id: str | None = None
    direction_id: int | None = None
    stop_id: str | None = None
    trip_id: str | None = None


class AlertItem(msgspec.Struct, frozen=True, rename="camel"):
    """An alert as everybody reads it."""

    alert_id: str  # of an incident: its incidentId
    source: Literal["OPERATOR", "INCIDENT"]
    code: str  # OPERATOR: NOTICE; INCIDENT: DETOUR | DELAYED, with `params` to make a sentence of in another language
    feed_id: str
    cause: Cause
    effect: Effect
    level: Level
    header: dict[str, str]  # by language
    description: dict[str, str]
    url: str | None
    periods: list[PeriodItem]  # none: until further notice
    informed: list[SelectorItem]  # none: the whole feed
    params: Params | None
    in_force: bool  # False: it will hold later
    version: int
    updated_at: str


class AlertNotice(msgspec.Struct, frozen=True, rename="camel"):
    """`notice` on the channel of a trip, a route or a stop: an operator's alert holds, or holds no longer."""

    what: Literal["ALERT", "ALERT_OVER"]
    alert: AlertItem


# ------------------------------------------------------------------------------------------------ as everybody reads it


def of_operator(alert: OperatorAlert, now_ms: int) -> AlertItem:
    feed = alert.feed_id
    return AlertItem(
        alert_id=alert.alert_id,
        source="OPERATOR",
        code="NOTICE",
        feed_id=feed,
        cause=alert.cause,  # type: ignore[arg-type]  # checked when it was written
        effect=alert.effect,  # type: ignore[arg-type]
        level=alert.level,  # type: ignore[arg-type]
        header=alert.header,
        description=alert.description,
        url=alert.url,
        periods=[PeriodItem(_when(period.from_ms), _when(period.to_ms)) for period in alert.periods],
        informed=[public(feed, selector) for selector in alert.selectors],
        params=None,
        in_force=alert.holds(now_ms),
        version=alert.version,
        updated_at=rfc3339(alert.changed_at_ms),
    )


def of_incident(feed_id: str, event: IncidentEvent, timetable: Timetable | None) -> AlertItem | None:
    """The alert that an open incident makes; None where it does not concern passengers, is over, or its trip is not of this timetable."""
    told = advice(feed_id, event, timetable)
    if told is None or told.over or told.code == "STOP_MISSED" or timetable is None or event.trip_id not in timetable.trips:
        return None
    line, params = told.params.line, told.params
    late = event.kind == DELAYED
    instance = trip_key(feed_id, event.trip_id or "", event.start_date or "")
    return AlertItem(
        alert_id=event.incident_id,
        source="INCIDENT",
        code=told.code,
        feed_id=feed_id,
        cause="UNKNOWN_CAUSE",
        effect="SIGNIFICANT_DELAYS" if late else "DETOUR",
        level=LEVELS.get(event.severity, "WARNING"),
        header={"en": f"{line}: {'held up' if late else 'detour'}"},
        description={"en": told.text},
        url=None,
        periods=[PeriodItem(rfc3339(event.opened_at_ms), None)],
        informed=[SelectorItem(trip_id=instance), *(SelectorItem(stop_id=stop.stop_id, trip_id=instance) for stop in params.stops)],
        params=params,
        in_force=True,
        version=1,
        updated_at=rfc3339(event.opened_at_ms),
    )


def public(feed_id: str, selector: Selector) -> SelectorItem:
    trip = selector.trip_id
    if trip is not None:
        trip = f"{feed_id}:{trip}" if selector.start_date is None else trip_key(feed_id, trip, selector.start_date)
    return SelectorItem(
        None if selector.route_id is None else f"{feed_id}:{selector.route_id}",
        selector.direction_id,
        None if selector.stop_id is None else f"{feed_id}:{selector.stop_id}",
        trip,
    )


def _when(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)


# ------------------------------------------------------------------------------------------------ whom it concerns


def concerns_trip(selectors: Iterable[Selector], timetable: Timetable, trip: Trip, start_date: str | None) -> bool:
    """Whether a trip (on that service date; None: on some) is concerned: itself, its route, or a stop where it calls."""
    return any(_holds_for(each, timetable, trip, start_date) for each in _of_feed(selectors))


def concerns_route(selectors: Iterable[Selector], timetable: Timetable, route_id: str) -> bool:
    """Whether a route is: itself, a trip of it, or a stop that it serves."""
    for each in _of_feed(selectors):
        named = timetable.trips.get(each.trip_id) if each.trip_id is not None else None
        if each.trip_id is not None and (named is None or named.route_id != route_id):
            continue
        if each.route_id in (None, route_id) and (each.stop_id is None or _serves(timetable, route_id, each.stop_id)):
            return True
    return False


def concerns_stop(selectors: Iterable[Selector], timetable: Timetable, stop_id: str) -> bool:
    """Whether a stop is: itself, its station, a route that serves it, or a trip that calls there."""
    for each in _of_feed(selectors):
        if each.stop_id is not None:
            if _is_at(timetable, stop_id, each.stop_id):
                return True
            continue
        named = timetable.trips.get(each.trip_id) if each.trip_id is not None else None
        if each.trip_id is not None:
            if named is not None and stop_id in named.pattern.stop_ids:
                return True
        elif each.route_id is None or _serves(timetable, each.route_id, stop_id):
            return True
    return False


def _of_feed(selectors: Iterable[Selector]) -> Iterator[Selector]:
    given = tuple(selectors)
    yield from given or (Selector(),)


def _holds_for(each: Selector, timetable: Timetable, trip: Trip, start_date: str | None) -> bool:
    if each.trip_id is not None and each.trip_id not in (trip.trip_id, trip.frequency_of):
        return False
    if each.start_date is not None and start_date is not None and each.start_date != start_date:
        return False
    if each.route_id is not None and each.route_id != trip.route_id:
        return False
    if each.direction_id is not None and each.direction_id != trip.pattern.direction_id:
        return False
    return each.stop_id is None or any(_is_at(timetable, stop, each.stop_id) for stop in trip.pattern.stop_ids)


_SERVED: WeakKeyDictionary[Timetable, dict[str, frozenset[str]]] = WeakKeyDictionary()  # timetables go when their feed has a new one


def _serves(timetable: Timetable, route_id: str, place: str) -> bool:
    """Whether a route calls at a stop, or in a station."""
    served = _SERVED.get(timetable)
    if served is None:
        found: dict[str, set[str]] = {}
        for pattern in timetable.patterns.values():
            among = found.setdefault(pattern.route_id, set())
            for stop_id in pattern.stop_ids:
                stop = timetable.stops.get(stop_id)
                among.update((stop_id,) if stop is None or stop.parent_station is None else (stop_id, stop.parent_station))
        served = _SERVED[timetable] = {route: frozenset(stops) for route, stops in found.items()}
    return place in served.get(route_id, ())


def _is_at(timetable: Timetable, stop_id: str, place: str) -> bool:
    """Whether a stop is that place, or lies in that station."""
    if stop_id == place:
        return True
    stop = timetable.stops.get(stop_id)
    return stop is not None and stop.parent_station == place
