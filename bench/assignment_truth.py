"""What `bench.assignment` holds the tracker to: which bus truly drives which trip instance from when to when, and how answers are counted.

The truth of a recorded day are its labels, followed by the same tracker with the labels left on: a trip begins when its first stop was left
(where nobody saw that: when the bus was first seen on it) and ends at its last stop. The truth of a simulated fleet is known.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from engine.events import StopEvent, TrackRow, TripEvent, TripForecast
from engine.tracking.eta import ArrivalModel, Progress
from engine.tracking.fix import Fix
from engine.tracking.ride import Roadbook
from engine.tracking.timetable import Timetable
from engine.tracking.tracker import Tracker

AFTER_MS = 180_000  # a trip must be known so long after its departure
STEP_MS = 15_000  # between two looks of the strict count
TICK_MS = 5_000
DRAIN_MS = 10_000

Name = tuple[str, str]  # trip_id, start_date


class Drive(NamedTuple):
    """One bus on one trip instance. `seen`: its departure was seen; otherwise it was first seen under way."""

    bus_id: str
    name: Name
    begins_ms: int
    ends_ms: int
    seen: bool
    doubt: str | None = None  # why the label itself may be wrong


class Answers:
    """What was published of each bus over time: the trip it is said to drive, and when that changed."""

    def __init__(self) -> None:
        self._at: dict[str, list[int]] = defaultdict(list)
        self._names: dict[str, list[Name | None]] = defaultdict(list)

    def say(self, bus_id: str, at_ms: int, name: Name | None) -> None:
        names = self._names[bus_id]
        if not names or names[-1] != name:
            self._at[bus_id].append(at_ms)
            names.append(name)

    def at(self, bus_id: str, at_ms: int) -> Name | None:
        index = bisect_right(self._at[bus_id], at_ms) - 1
        return self._names[bus_id][index] if index >= 0 else None

    def switches(self, drive: Drive) -> int:
        """How often the bus was taken from one trip to another while it drove this one."""
        names = [
            name
            for at, name in zip(self._at[drive.bus_id], self._names[drive.bus_id], strict=True)
            if drive.begins_ms + AFTER_MS < at < drive.ends_ms - 60_000 and name is not None
        ]
        return len(names)


class Mute(ArrivalModel):
    """Foretells nothing: arrivals are not what is measured, and take most of the time."""

    def observe(self, progress: Progress) -> None:
        pass

    def forecast(self, progress: Progress, now_ms: int, *, learn: bool = True) -> TripForecast | None:
        return None


class Run(NamedTuple):
    """One day through the tracker."""

    answers: Answers
    events: list[StopEvent | TripEvent]
    rows: list[TrackRow]  # settled, on a trip
    counts: Counter[str]
    fixes: int
    seconds: float  # CPU of all of it


def run(timetable: Timetable, fixes: Sequence[Fix]) -> Run:
    """The fixes in order of receipt, with ticks in between, as the owner of an area drives it."""
    tracker = Tracker(timetable, feed_id=timetable.feed_id, partner_id="bench", model=Mute())
    answers, events, rows = Answers(), [], []
    now_ms = fixes[0].received_at_ms
    began = time.process_time()
    done = 0
    while done < len(fixes):
        now_ms += TICK_MS
        while done < len(fixes) and fixes[done].received_at_ms <= now_ms:
            tracker.fold(fixes[done])
            done += 1
        tracker.tick(now_ms if done < len(fixes) else now_ms + DRAIN_MS)
        out = tracker.take()
        for position in out.positions:
            name = (position.trip_id, position.start_date) if position.trip_id is not None and position.start_date is not None else None
            answers.say(position.bus_id, now_ms, name if position.state != "DONE" else None)
        rows += [row for row in out.rows if row.along_m is not None]
        events += [event for event in out.events if isinstance(event, StopEvent | TripEvent)]
    return Run(answers, events, rows, tracker.counts, len(fixes), time.process_time() - began)


def stripped(fixes: Iterable[Fix]) -> list[Fix]:
    """The same fixes from devices that do not say which trip they drive."""
    return [msgspec.structs.replace(fix, trip_id=None, start_date=None) for fix in fixes]


def recorded_drives(timetable: Timetable, fixes: Sequence[Fix]) -> list[Drive]:
    """The truth of a recorded day, by bus and time."""
    labelled = run(timetable, fixes)
    book = Roadbook(timetable)
    spans: dict[tuple[str, Name], list[int]] = {}
    fits: Counter[tuple[str, Name]] = Counter()
    for fix in fixes:
        instance = book.named(fix.trip_id, fix.start_date, fix.fixed_at_ms) if fix.trip_id is not None else None
        if instance is None:
            continue
        key = fix.bus_id, (instance.trip.trip_id, instance.start_date)
        spans.setdefault(key, []).append(fix.fixed_at_ms)
        line = book.course(instance).line
        fits[key] += min(each.offset_m for each in line.candidates(fix.lon, fix.lat, 0.0, line.length_m)) <= 100.0
    ended = {
        (event.bus_id, (event.trip_id, event.start_date)): event.arrived_at_ms
        for event in labelled.events
        if isinstance(event, StopEvent) and event.arrived_at_ms is not None and _is_last(book, event)
    }
    paths: dict[tuple[str, Name], list[TrackRow]] = defaultdict(list)
    for row in labelled.rows:
        if row.trip_id is not None and row.start_date is not None:
            paths[row.bus_id, (row.trip_id, row.start_date)].append(row)
    buses_of: dict[Name, set[str]] = defaultdict(set)
    for bus_id, name in spans:
        buses_of[name].add(bus_id)
    drives = []
    for key, times in spans.items():
        begins, seen = _departure(book, key[1], sorted(paths[key], key=lambda row: row.fixed_at_ms))
        doubt = None
        if begins is None:
            doubt = "never began"
        elif len(buses_of[key[1]]) > 1:
            doubt = "named by two buses"
        elif fits[key] < 0.5 * len(times):
            doubt = "mostly away from its shape"
        drives.append(Drive(*key, begins or times[0], ended.get(key, times[-1]), seen, doubt))
    return sorted(drives)


def _is_last(book: Roadbook, event: StopEvent) -> bool:
    instance = book.instance(event.trip_id, event.start_date)
    return instance is not None and event.stop_sequence == instance.trip.pattern.stop_sequences[-1]


def _departure(book: Roadbook, name: Name, path: Sequence[TrackRow]) -> tuple[int | None, bool]:
    """When the bus was last seen within 100 m of its first stop's place on the line before it had driven a third of it, and True; where it
    never was, when it was first seen on the line, and False. None: it drove less than a tenth of the line."""
    instance = book.instance(*name)
    assert instance is not None
    course = book.course(instance)
    first_m, length_m = course.along_m[0], course.along_m[course.last] - course.along_m[0]
    on = [row for row in path if row.offset_m is not None and row.offset_m <= 100.0 and row.along_m is not None]
    arcs = [row.along_m - first_m for row in on if row.along_m is not None]
    if not arcs or max(arcs) - min(arcs) < 0.1 * length_m or max(arcs) < 100.0:
        return None, False
    far = next(
        (index for index, arc in enumerate(arcs) if arc > length_m / 3 and on[index].state not in ("LAYOVER", "DEADHEAD")), len(arcs)
    )
    near = [row.fixed_at_ms for row, arc in zip(on[:far], arcs[:far], strict=True) if arc <= 100.0]
    if near:
        return near[-1], True
    under_way = next((row.fixed_at_ms for row, arc in zip(on, arcs, strict=True) if arc > 100.0), None)
    return under_way, False


class Tally(msgspec.Struct):
    """How many trips were right, wrong and without an answer."""

    trips: int = 0
    right: int = 0
    wrong: int = 0
    none: int = 0
    mid_right: int = 0
    mid_wrong: int = 0
    ever_wrong: int = 0  # strict: at any look from departure + 3 min to the end
    switches: int = 0
    causes: Counter[str] = msgspec.field(default_factory=Counter)
    worst: list[tuple[Drive, Name | None]] = []


def counted(drives: Iterable[Drive], answers: Answers, book: Roadbook) -> Tally:
    """Every drive once, at departure + 3 min (or its end, if that is sooner), and at its middle."""
    tally = Tally()
    for drive in drives:
        at_ms = min(drive.begins_ms + AFTER_MS, max(drive.begins_ms, drive.ends_ms - 30_000))
        told = answers.at(drive.bus_id, at_ms)
        tally.trips += 1
        tally.right += told == drive.name
        tally.none += told is None
        tally.wrong += told is not None and told != drive.name
        middle = answers.at(drive.bus_id, max(at_ms, (drive.begins_ms + drive.ends_ms) // 2))
        tally.mid_right += middle == drive.name
        tally.mid_wrong += middle is not None and middle != drive.name
        looks = range(at_ms, max(at_ms + 1, drive.ends_ms - 60_000), STEP_MS)
        tally.ever_wrong += any((one := answers.at(drive.bus_id, look)) is not None and one != drive.name for look in looks)
        tally.switches += answers.switches(drive)
        if told != drive.name:
            tally.causes[cause(book, drive.name, told)] += 1
            tally.worst.append((drive, told))
    return tally


def cause(book: Roadbook, truth: Name, told: Name | None) -> str:
    """What a wrong answer took for the trip."""
    if told is None:
        return "not yet assigned"
    one, other = book.instance(*truth), book.instance(*told)
    if one is None or other is None:
        return "no such trip"
    if one.trip.route_id != other.trip.route_id:
        return "other route"
    if one.trip.pattern.direction_id != other.trip.pattern.direction_id:
        return "other direction of the route"
    return "earlier trip of the route" if other.departure_ms(0) < one.departure_ms(0) else "later trip of the route"
