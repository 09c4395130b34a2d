"""What recorded stop events teach: the parts of an arrival model made anew from telemetry.stop_events. Pure.

The events go through the same filter as live fixes do, each stop a fix at the stop, so that what is learned has one form (`ArrivalModel.dump`),
bounded by the feed's links, and one meaning. Days of other types can be left out: a Sunday says little of a Monday. Not by half hour: from
one day to another what a route loses at the same half hour is uncorrelated (docs/decisions/0020-arrivals.md).
Not learned from stop events: the spread (it needs what was foretold) and halts (they need the fixes between stops).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import NamedTuple

from engine.tracking.eta import ArrivalConfig, ArrivalModel, Progress
from engine.tracking.timetable import Timetable, Trip, TripInstance, parse_date

WEEKDAY, SATURDAY, SUNDAY = 0, 1, 2  # a holiday drives the service of one of them
KINDS = ("SERVED", "PASSED")  # not MISSED, and not INTERPOLATED: filled in from the neighbours


class StopRow(NamedTuple):
    """A row of telemetry.stop_events, as far as it teaches; UTC ms."""

    bus_id: str
    trip_id: str
    start_date: str
    stop_sequence: int
    arrived_at_ms: int | None
    kind: str


def day_type(timetable: Timetable, trip: Trip, day: date) -> int:
    """Weekday, Saturday, or Sunday and holidays, by the service calendar: a Monday on which the Sunday service runs is a Sunday."""
    service = timetable.services.get(trip.service_id)
    planned = {max(WEEKDAY, index - 4) for index, runs in enumerate(service.weekdays) if runs} if service is not None else set()
    dated = max(WEEKDAY, day.weekday() - 4)
    return dated if not planned or dated in planned else max(planned)


def learn_from(
    rows: Iterable[StopRow], timetable: Timetable, *, only: int | None = None, config: ArrivalConfig | None = None
) -> dict[str, bytes]:
    """Parts for `ArrivalModel.inherit`, from stop events in any order. `only`: days of that type.

    Trips that the timetable does not know and stops that are none of theirs are passed over; of a stop that was said twice the earlier
    arrival counts, and one that is no later than the stop before it does not. The same rows in any order give the same parts.
    """
    runs: dict[tuple[str, str, str], dict[int, int]] = {}
    for row in rows:
        if row.arrived_at_ms and row.kind in KINDS:
            seen = runs.setdefault((row.start_date, row.trip_id, row.bus_id), {})
            seen[row.stop_sequence] = min(row.arrived_at_ms, seen.get(row.stop_sequence, row.arrived_at_ms))
    passed: list[tuple[str, int, str, int, TripInstance]] = []  # date, time, bus, stop index: the order in which they are learned
    for (start_date, trip_id, bus_id), seen in runs.items():
        instance, day = timetable.instance(trip_id, start_date), parse_date(start_date)
        if instance is None or day is None or only not in (None, day_type(timetable, instance.trip, day)):
            continue
        indices = {sequence: index for index, sequence in enumerate(instance.trip.pattern.stop_sequences)}
        passed += [(start_date, at_ms, bus_id, indices[sequence], instance) for sequence, at_ms in seen.items() if sequence in indices]
    passed.sort(key=lambda each: (*each[:4], each[4].trip.trip_id))
    model, today = ArrivalModel(config), ""
    for start_date, at_ms, bus_id, index, instance in passed:
        if today and start_date != today:
            model.new_day()
        today = start_date
        along_m = float(instance.trip.pattern.along_m[index])
        model.observe(Progress(bus_id, instance, at_ms, along_m, 0.0, index + 1, None, True))
    return {key: part for key, part in model.dump(everything=True).items() if not key.startswith("run:")}
