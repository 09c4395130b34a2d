"""What a replay found worth a word, and how that differs from another replay of the same fixes: behind `timepoint incidents`.

An episode of one replay is that of another when vehicle, trip instance, kind and what it is about (a stop, a fence) are the same and their times
overlap, give or take a minute. What has a partner is the same or changed, what has none was gained or lost. Rates are per 1,000 fixes on a trip
and per 1,000 hours on a trip, so that recordings of any length can be held beside each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.errors import Invalid
from engine.events import IN_TRIP, OFF_ROUTE
from engine.tracking.replay import INCIDENTS
from engine.tracking.score import read_manifest, read_rows

ON_TRIP: Final = (IN_TRIP, OFF_ROUTE)
GAP_MS: Final = 300_000  # fixes further apart: what was driven between them is nobody's hour
SLACK_MS: Final = 60_000
FOR_EVER_MS: Final = 1 << 60
SAME_MS: Final = 1_000  # times closer than this are the same
ABOUT: Final = ("stopSequence", "stopId", "fenceId")  # of the detail: what an episode is about
SEVERITIES: Final = ("CRITICAL", "MAJOR", "MINOR")


class Episode(msgspec.Struct, frozen=True):
    """One row of incidents.csv."""

    opened_at_ms: int
    vehicle_id: str
    kind: str
    severity: str
    trip_id: str  # empty: on no trip
    start_date: str
    closed_at_ms: int | None  # None: still open when the recording ended
    detail: str  # JSON object

    def about(self) -> tuple[str, ...]:
        """What must be the same in both replays."""
        try:
            detail = msgspec.json.decode(self.detail or "{}", type=dict[str, Any])
        except msgspec.DecodeError:
            detail = {}
        return (self.kind, self.vehicle_id, self.trip_id, self.start_date, *(str(detail.get(name, "")) for name in ABOUT))


class Count(msgspec.Struct, frozen=True):
    """Episodes of one kind and severity."""

    kind: str
    severity: str
    episodes: int
    per_1000_fixes: float | None  # None: no fix on a trip
    per_1000_hours: float | None
    median_s: float | None  # of those that were closed
    elsewhere: int | None = None  # in the other replay; None: there is none


class Change(msgspec.Struct, frozen=True):
    """An episode of both replays that is not the same: what of it differs."""

    here: Episode
    there: Episode
    what: list[str]


class Side(msgspec.Struct, frozen=True):
    """One replay."""

    name: str
    fixes: int  # on a trip
    hours: float  # on a trip
    changed: dict[str, str]  # settings that differ from the defaults
    episodes: list[Episode]


class IncidentReport(msgspec.Struct, frozen=True):
    """One replay, or one beside another."""

    here: Side
    counts: list[Count]
    there: Side | None = None
    same: int = 0
    gained: list[Episode] = []
    lost: list[Episode] = []
    changed: list[Change] = []


def incident_report(out: Path, against: Path | None = None) -> IncidentReport:
    """Raises `Invalid` where a folder is no replay, or the two are of different fixes."""
    here = _side(out)
    if against is None:
        return IncidentReport(here, _counts(here, None))
    there = _side(against)
    if read_manifest(out)["fixes"]["sha256"] != read_manifest(against)["fixes"]["sha256"]:
        raise Invalid(f"{out} and {against} are replays of different fixes: there is nothing to compare")
    pairs, gained, lost = matched(here.episodes, there.episodes)
    changed = [Change(mine, other, what) for mine, other in pairs if (what := _differences(mine, other))]
    return IncidentReport(here, _counts(here, there), there, len(pairs) - len(changed), gained, lost, changed)


def matched(here: Sequence[Episode], there: Sequence[Episode]) -> tuple[list[tuple[Episode, Episode]], list[Episode], list[Episode]]:
    """Pairs, those of `here` alone, those of `there` alone; each in order of time.

    What is the same to the letter is paired first, then the longest overlap. Ties are told apart by what the two say, not by which side
    they stand on, so that the other way round is the mirror.
    """
    groups: dict[tuple[str, ...], tuple[list[Episode], list[Episode]]] = defaultdict(lambda: ([], []))
    for side, episodes in enumerate((here, there)):
        for episode in episodes:
            groups[episode.about()][side].append(episode)
    pairs, gained, lost = [], [], []
    for ours, theirs in groups.values():
        candidates = sorted(
            (one != other, -_overlap_ms(one, other), abs(one.opened_at_ms - other.opened_at_ms), sorted((_key(one), _key(other))), i, j)
            for i, one in enumerate(ours)
            for j, other in enumerate(theirs)
            if _overlap_ms(one, other) >= -SLACK_MS
        )
        mine, other_ones = set(range(len(ours))), set(range(len(theirs)))
        for *_, i, j in candidates:
            if i in mine and j in other_ones:
                mine.discard(i)
                other_ones.discard(j)
                pairs.append((ours[i], theirs[j]))
        gained += [ours[i] for i in mine]
        lost += [theirs[j] for j in other_ones]
    return sorted(pairs, key=lambda pair: (_key(pair[0]), _key(pair[1]))), sorted(gained, key=_key), sorted(lost, key=_key)


def _key(one: Episode) -> tuple[int, str, str, str, int, str]:
    """An order of all episodes; one that never closed comes behind those that did."""
    return (
        one.opened_at_ms,
        one.vehicle_id,
        one.kind,
        one.severity,
        FOR_EVER_MS if one.closed_at_ms is None else one.closed_at_ms,
        one.detail,
    )


def _overlap_ms(one: Episode, other: Episode) -> int:
    """How long both were open; negative: how far apart they lie."""
    ends = [episode.closed_at_ms for episode in (one, other) if episode.closed_at_ms is not None]
    begins = max(one.opened_at_ms, other.opened_at_ms)
    return min(ends, default=FOR_EVER_MS) - begins


def _differences(one: Episode, other: Episode) -> list[str]:
    what = []
    if one.severity != other.severity:
        what.append(f"{other.severity} -> {one.severity}")
    if abs(one.opened_at_ms - other.opened_at_ms) > SAME_MS:
        what.append(f"opened {(one.opened_at_ms - other.opened_at_ms) / 1000:+.0f} s")
    if (one.closed_at_ms is None) != (other.closed_at_ms is None):
        what.append("not closed any more" if one.closed_at_ms is None else "closed now")
    elif one.closed_at_ms is not None and other.closed_at_ms is not None and abs(one.closed_at_ms - other.closed_at_ms) > SAME_MS:
        what.append(f"closed {(one.closed_at_ms - other.closed_at_ms) / 1000:+.0f} s")
    if not what and one.detail != other.detail:
        what.append("detail")
    return what


def _side(out: Path) -> Side:
    manifest = read_manifest(out)
    episodes = [
        Episode(int(opened), vehicle, kind, severity, trip_id, start_date, int(closed) if closed else None, detail)
        for kind, severity, vehicle, trip_id, start_date, opened, closed, detail in read_rows(out / "incidents.csv", INCIDENTS)
    ]
    fixes, hours = _on_trips(read_rows(out / "progress.csv", ("vehicle_id", "timestamp_ms", "trip_id", "start_date", "state")))
    changed = manifest.get("changed", {})
    return Side(str(out), fixes, round(hours, 3), changed if isinstance(changed, dict) else {}, sorted(episodes, key=_key))


def _on_trips(rows: Iterable[Sequence[str]]) -> tuple[int, float]:
    """Fixes and hours on a trip."""
    times: dict[tuple[str, str, str], list[int]] = {}
    for vehicle, at_ms, trip_id, start_date, state in rows:
        if trip_id and state in ON_TRIP:
            times.setdefault((vehicle, trip_id, start_date), []).append(int(at_ms))
    driven_ms = 0
    for mine in times.values():
        driven_ms += sum(after - before for before, after in pairwise(sorted(mine)) if after - before <= GAP_MS)
    return sum(map(len, times.values())), driven_ms / 3_600_000


def _counts(here: Side, there: Side | None) -> list[Count]:
    """By kind, the gravest severity first."""
    sides = [_grouped(side.episodes) for side in (here, there) if side is not None]
    found = []
    for kind, severity in sorted(set().union(*sides), key=lambda key: (key[0], _gravity(key[1]))):
        mine = sides[0].get((kind, severity), [])
        lasted = sorted((one.closed_at_ms - one.opened_at_ms) / 1000 for one in mine if one.closed_at_ms is not None)
        found.append(
            Count(
                kind,
                severity,
                len(mine),
                round(1000 * len(mine) / here.fixes, 3) if here.fixes else None,
                round(1000 * len(mine) / here.hours, 2) if here.hours else None,
                lasted[len(lasted) // 2] if lasted else None,
                len(sides[1].get((kind, severity), [])) if there is not None else None,
            )
        )
    return found


def _grouped(episodes: Iterable[Episode]) -> dict[tuple[str, str], list[Episode]]:
    found: dict[tuple[str, str], list[Episode]] = {}
    for episode in episodes:
        found.setdefault((episode.kind, episode.severity), []).append(episode)
    return found


def _gravity(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)
