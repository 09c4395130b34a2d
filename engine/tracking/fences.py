"""Fences: a vehicle goes in, goes out, or passes through; each once, whatever the noise. Pure; one small table per vehicle and fence.

With d the signed distance to the border (negative inside), u = min(accuracy, 50 m), r the depth of the area and h = max(10 m, 0.1 r):

    OUT -> IN   d < -min(u, r/3) in two fixes, or once d < -min(2u, r/2)
    IN  -> OUT  d > h + 2u in two fixes, or once d > h + 5u
    passed      outside before and after, and the way between leads through it

The times said are those at which the straight way between two fixes leads over the border. A vehicle that stands (120 s within some tens of
metres) goes nowhere: nothing changes until it has moved away. Parked 10 m inside the border for a day, one fix is on the wrong side some
thousand times; this table says nothing (`python -m bench.fences`).

Quiet, which is nearly always, costs one question to the index and answers the same object. Deep inside a large fence, and far from the
border of one with many corners, the distance d itself says how far a vehicle may move before anybody need look again.

Lengths in metres, times in UTC ms, degrees of WGS 84.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from engine.events import IncidentEvent
from engine.tracking.episodes import CLOSED, FENCE_ENTERED, FENCE_EXITED, FENCE_PASSED, OPENED, Sight, incident
from engine.tracking.fence_index import CORRIDOR, NO_FENCES, PLAIN, RESTRICTED, SPEED_ZONE, STAY_IN, Fence, FenceIndex
from engine.tracking.fence_state import AFAR, IN, OUT, FenceState, Rest, Touch, Way, rest_m, rest_next
from engine.tracking.fix import Fix
from engine.tracking.ride import Ride
from geo.coords import distance_m
from geo.fence import Corridor, Spans, near_lon, scale_at

__all__ = [
    "CORRIDOR",
    "FENCES_MOST",
    "NO_FENCES",
    "PLAIN",
    "RESTRICTED",
    "SPEED_ZONE",
    "STAY_IN",
    "Fence",
    "FenceIndex",
    "FenceState",
    "fences_close",
    "fences_next",
    "limit_mps",
]

ACCURACY_MAX_M, ACCURACY_M = 50.0, 15.0  # of a fix, at most; where the device does not say
NEAR_M, NEAR_SHARE = 10.0, 0.1  # h
CHORD_MS = 120_000  # over a longer silence nobody knows the way: no passing, and times are those of the fixes
STRIDE_M, STRIDE_ACCURACY = 100.0, 6.0  # a step of max(100 m, 6u) is driven, not noise: one that leads through a fence has passed it
FENCES_MOST = 32  # of one vehicle at once; more are not taken on
AFAR_MOST, AFAR_M = 8, 25.0  # large fences watched from afar, and from how far on that pays
SAFE = 0.98  # of d: what may be moved without looking (the scale of a degree changes a little on the way)

NOTHING: tuple[IncidentEvent, ...] = ()
NO_STAYS: list[Fence] = []


def fences_next(
    states: tuple[FenceState, ...], sight: Sight, index: FenceIndex | None
) -> tuple[tuple[FenceState, ...], Sequence[IncidentEvent]]:
    """One accepted fix further; the same object where nothing changed. `index` None: the area has no fences."""
    if index is None:
        if not states:
            return states, NOTHING
        index = NO_FENCES
    motion, last = sight.motion, sight.last
    lon, lat = motion.lon, motion.lat
    from_lon: float | None = None
    west = east = lon
    south = north = from_lat = lat
    if last is not None and 0 < motion.gap_ms <= CHORD_MS:
        from_lon, from_lat = last.lon, last.lat
        apart = from_lon - lon
        if not -180.0 <= apart < 180.0:
            from_lon = near_lon(from_lon, lon)
        if from_lon < lon:
            west = from_lon
        else:
            east = from_lon
        if from_lat < lat:
            south = from_lat
        else:
            north = from_lat
    near = index.near(west, south, east, north)
    bus_id, ride = sight.fix.bus_id, sight.ride
    route_id = ride.route_id if ride is not None else None
    stays = index.stays(bus_id, route_id) if index.has_stays else NO_STAYS
    if not (near or states or stays):
        return states, NOTHING
    per_lon, per_lat = scale_at(lat)
    length_m = 0.0 if from_lon is None else math.hypot((lon - from_lon) * per_lon, (lat - from_lat) * per_lat)
    asleep = _asleep(states, lon, lat, per_lon, per_lat, near, index)
    met = [fence for fence in stays if fence not in asleep]
    reach_m = 1.01 * length_m
    for fence in near:
        if fence not in asleep:
            area = fence.area
            away_m = area.rough_m(lon, lat)
            if away_m <= reach_m or (away_m >= AFAR_M and area.is_large):  # else the way stays outside, and it will be asked again
                met.append(fence)
    if len(asleep) == len(states) and not met:
        return states, NOTHING
    accuracy = motion.accuracy_m
    u = ACCURACY_M if accuracy is None else min(accuracy, ACCURACY_MAX_M)
    way = Way(sight, motion.fixed_at_ms, lon, lat, u, from_lon, from_lat, motion.gap_ms, length_m)
    said: list[IncidentEvent] = []
    now, changed = _known_next(states, way, index, asleep, near, route_id, said)
    known = {state.fence_id for state in now} if now else set()
    for fence in met:
        if len(now) >= FENCES_MOST:  # however many lie over each other here, a fix asks no more of them than it may follow
            break
        if fence.fence_id in known or not fence.is_for(bus_id, route_id):
            continue
        if fence.hours is not None and not fence.hours.holds(way.at_ms):
            continue
        words: list[IncidentEvent] = []
        state = _met(fence, way, words)
        if state is not None:
            full = sum(one.phase == AFAR for one in now) >= AFAR_MOST if state.phase == AFAR else len(now) >= FENCES_MOST
            if full:
                continue  # no word of it either: nobody could close it
            now.append(state)
            changed = True
        said += words
    return (tuple(now) if changed else states), said or NOTHING


def _asleep(
    states: tuple[FenceState, ...], lon: float, lat: float, per_lon: float, per_lat: float, near: list[Fence], index: FenceIndex
) -> list[Fence]:
    """The fences of the states for which the vehicle is still where nothing can change. Not those whose hours or buses have to be asked."""
    found: list[Fence] = []
    for state in states:
        awake = state.awake
        if awake is None:
            continue
        fence = index.by_id.get(state.fence_id)
        if fence is None or not fence.always or state.version != fence.version:
            continue
        east, north, free_m = (awake[0] - lon) * per_lon, (awake[1] - lat) * per_lat, awake[2]
        if east * east + north * north < free_m * free_m and (state.phase == IN or fence in near):
            found.append(fence)
    return found


def _known_next(
    states: tuple[FenceState, ...],
    way: Way,
    index: FenceIndex,
    asleep: list[Fence],
    near: list[Fence],
    route_id: str | None,
    said: list[IncidentEvent],
) -> tuple[list[FenceState], bool]:
    """The states that go on, and whether any of them changed or went."""
    now: list[FenceState] = []
    changed = False
    per_lon, per_lat = scale_at(way.lat)
    for state in states:
        fence = index.by_id.get(state.fence_id)
        if fence is not None and fence in asleep:
            now.append(state)
            continue
        reason, at_ms = None, way.at_ms
        if fence is None:
            reason = "RETIRED"
        elif not fence.is_for(way.sight.fix.bus_id, route_id):
            reason = "OTHER_TRIP"
        elif fence.hours is not None and not fence.hours.holds(at_ms):
            reason, at_ms = "CALENDAR", fence.hours.ended_ms(state.seen_ms, at_ms)
        if fence is None or reason is not None:
            if state.kind:
                said.append(_event(state, fence, way.sight.fix, way.sight.ride, CLOSED, max(at_ms, state.since_ms), reason))
            changed = True
            continue
        if state.version != fence.version:
            state = msgspec.structs.replace(state, version=fence.version, awake=None)
            changed = True
        elif not fence.always and state.awake is not None and (state.phase == IN or fence in near):
            awake_lon, awake_lat, free_m = state.awake
            if math.hypot((awake_lon - way.lon) * per_lon, (awake_lat - way.lat) * per_lat) < free_m:
                now.append(state)
                continue
        if state.phase == AFAR:
            changed = True  # looked at anew like one that was never met, where it is still near
            continue
        after = _step(state, fence, way, said)
        changed = changed or after is not state
        if after is not None:
            now.append(after)
    return now, changed


def _met(fence: Fence, way: Way, said: list[IncidentEvent]) -> FenceState | None:
    """A fence without a state. None: the way has not touched it, or has passed it in one stride (which is said)."""
    if fence.kind == STAY_IN:
        return _step(FenceState(fence.fence_id, fence.version, IN, seen_ms=way.at_ms), fence, way, said)
    d = fence.area.rough_m(way.lon, way.lat)
    if d > 0.0 and (d > 1.01 * way.length_m or not _spans(fence, way)):
        if d < AFAR_M or not fence.area.is_large:
            return None
        return FenceState(fence.fence_id, fence.version, AFAR, awake=(way.lon, way.lat, d * SAFE), seen_ms=way.at_ms)
    return _step(FenceState(fence.fence_id, fence.version, seen_ms=way.at_ms), fence, way, said)


def _step(state: FenceState, fence: Fence, way: Way, said: list[IncidentEvent]) -> FenceState | None:
    """The table, one fix further. None: outside, and nothing more to remember."""
    d = fence.area.rough_m(way.lon, way.lat) if state.phase == IN else 1.0
    if d > 0.0:
        d = fence.area.signed_m(way.lon, way.lat)
    rest, away_m = rest_next(state.rest, way)
    if rest.is_long(way.at_ms):
        border = 0
        if (d <= 0.0) == (state.phase == OUT):  # on the other side: by noise, or on its way
            border = way.at_ms if away_m <= 0.5 * rest_m(way.u) else state.border_ms or _border_ms(state, fence, way)
        return msgspec.structs.replace(state, count=0, border_ms=border, touch=None, rest=rest, awake=None, seen_ms=way.at_ms)
    if state.phase == IN:
        return _inside_next(state, fence, way, d, rest, said)
    return _outside_next(state, fence, way, d, rest, said)


def _inside_next(state: FenceState, fence: Fence, way: Way, d: float, rest: Rest, said: list[IncidentEvent]) -> FenceState | None:
    if d <= 0.0:
        awake = (way.lon, way.lat, -d * SAFE)
        return msgspec.structs.replace(state, count=0, border_ms=0, rest=rest, awake=awake, seen_ms=way.at_ms)
    border = state.border_ms or _border_ms(state, fence, way)
    h = max(NEAR_M, NEAR_SHARE * fence.area.depth_m)
    count = state.count + 1 if d > h + 2.0 * way.u else 0
    if count < 2 and d <= h + 5.0 * way.u:
        return msgspec.structs.replace(state, count=count, border_ms=border, rest=rest, awake=None, seen_ms=way.at_ms)
    return _left(state, fence, way, d, border, rest, said)


def _left(state: FenceState, fence: Fence, way: Way, d: float, border: int, rest: Rest, said: list[IncidentEvent]) -> FenceState | None:
    """IN -> OUT."""
    fix, ride = way.sight.fix, way.sight.ride
    if state.kind:
        said.append(_event(state, fence, fix, ride, CLOSED, max(border, state.since_ms), "LEFT"))
    out = FenceState(fence.fence_id, fence.version, OUT, FENCE_EXITED, fence.severity, border, rest=rest, seen_ms=way.at_ms)
    if fence.kind == PLAIN:
        said.append(_event(out, fence, fix, ride, CLOSED, border, None))
        return None
    area = fence.area
    if fence.kind == STAY_IN or (fence.kind == CORRIDOR and not (isinstance(area, Corridor) and area.is_past_end(way.lon, way.lat))):
        out = msgspec.structs.replace(out, farthest_m=d)
        said.append(_event(out, fence, fix, ride, OPENED, None, None))
        return out
    return None


def _outside_next(state: FenceState, fence: Fence, way: Way, d: float, rest: Rest, said: list[IncidentEvent]) -> FenceState | None:
    if d <= 0.0:
        return _coming_in(state, fence, way, d, rest, said)
    h = max(NEAR_M, NEAR_SHARE * fence.area.depth_m)
    count = (0 if state.border_ms else state.count) + 1 if d > h + 2.0 * way.u else 0
    is_clear = count >= 2 or d > h + 5.0 * way.u
    if state.kind:  # to stay in it: outside until it is back
        return msgspec.structs.replace(
            state, count=0, border_ms=0, rest=rest, farthest_m=max(state.farthest_m, d), touch=None, seen_ms=way.at_ms
        )
    touch = _touched(state, fence, way, _spans(fence, way), d)
    if touch is None:
        return (
            None
            if is_clear
            else msgspec.structs.replace(state, count=count, border_ms=0, found=False, touch=None, rest=rest, seen_ms=way.at_ms)
        )
    if _has_passed(state, touch, fence, way, is_clear):
        if fence.kind in (PLAIN, RESTRICTED):
            passed = FenceState(fence.fence_id, fence.version, OUT, FENCE_PASSED, fence.severity, touch.in_ms)
            said.append(_event(passed, fence, way.sight.fix, way.sight.ride, CLOSED, touch.out_ms, None, depthM=round(-touch.deepest_m)))
        return None
    if is_clear:
        return None
    return msgspec.structs.replace(state, count=count, border_ms=0, found=False, touch=touch, rest=rest, seen_ms=way.at_ms)


def _coming_in(state: FenceState, fence: Fence, way: Way, d: float, rest: Rest, said: list[IncidentEvent]) -> FenceState:
    """OUT, and the fix lies inside."""
    spans = _spans(fence, way)
    border, found, count = state.border_ms, state.found, state.count
    if not border:
        crossed = bool(spans) and spans[-1][0] > 0.0
        border, count = (way.ms(spans[-1][0]) if crossed else way.at_ms), 0
        found = not crossed and not state.kind and _was_inside(fence, way, spans)
    u, r = way.u, fence.area.depth_m
    count = count + 1 if d < -min(u, r / 3.0) else 0
    if count < 2 and d >= -min(2.0 * u, r / 2.0):
        touch = None if found else _touched(state, fence, way, spans, d)
        return msgspec.structs.replace(
            state, count=count, border_ms=border, found=found, touch=touch, rest=rest, awake=None, seen_ms=way.at_ms
        )
    fix, ride = way.sight.fix, way.sight.ride
    if state.kind:
        said.append(_event(state, fence, fix, ride, CLOSED, max(border, state.since_ms), "BACK"))
    asleep = (way.lon, way.lat, -d * SAFE)
    inside = FenceState(fence.fence_id, fence.version, IN, since_ms=border, rest=rest, awake=asleep, seen_ms=way.at_ms)
    if fence.kind == RESTRICTED or (fence.kind == PLAIN and not found):
        inside = msgspec.structs.replace(inside, kind=FENCE_ENTERED, severity=fence.severity)
        said.append(_event(inside, fence, fix, ride, OPENED, None, None))
    return inside


def _was_inside(fence: Fence, way: Way, spans: Spans) -> bool:
    """Whether the fix before lay inside already, or there was none."""
    if way.from_lon is not None:
        return bool(spans) and spans[0][0] == 0.0
    last = way.sight.last
    return last is None or fence.area.signed_m(last.lon, last.lat) <= 0.0


def _border_ms(state: FenceState, fence: Fence, way: Way) -> int:
    """When the way led over the border to the side of this fix, the other one than the phase says; unknown: now."""
    spans = _spans(fence, way)
    share = 1.0 if not spans else spans[-1][1] if state.phase == IN else spans[-1][0]
    return way.ms(share) if 0.0 < share < 1.0 else way.at_ms


def _spans(fence: Fence, way: Way) -> Spans:
    if way.from_lon is None:
        return []
    return fence.area.spans(way.from_lon, way.from_lat, way.lon, way.lat)


def _touched(state: FenceState, fence: Fence, way: Way, spans: Spans, d: float) -> Touch | None:
    """The touch with this step in it. None: the way has not come in from outside, or is not known."""
    known = state.touch
    if way.from_lon is None or (known is None and (not spans or spans[0][0] == 0.0)):
        return None
    if not spans:
        return known
    deepest = d if known is None else min(d, known.deepest_m)
    for begin, end in spans:
        share = 0.5 * (begin + end)
        lon, lat = way.from_lon + share * (way.lon - way.from_lon), way.from_lat + share * (way.lat - way.from_lat)
        deepest = min(deepest, fence.area.signed_m(lon, lat))
    stride = way.length_m >= 2.0 * fence.area.depth_m
    if known is None:
        return Touch(way.from_lon, way.from_lat, deepest, way.ms(spans[0][0]), way.ms(spans[-1][1]), stride)
    return Touch(known.lon, known.lat, deepest, known.in_ms, way.ms(spans[-1][1]), known.stride and stride)


def _has_passed(state: FenceState, touch: Touch, fence: Fence, way: Way, is_clear: bool) -> bool:
    """Whether a touch that has ended outside was a passage. One long stride through it was; else it must have led clear of the fence, away
    from where it came from, and deep enough not to be noise, unless the fence is too small for the steps to leave a fix in its depth."""
    moved_m = distance_m(touch.lon, touch.lat, way.lon, way.lat)
    if state.touch is None and moved_m >= max(STRIDE_M, STRIDE_ACCURACY * way.u):
        return True
    deep = touch.deepest_m < -min(way.u, fence.area.depth_m / 3.0)
    return is_clear and moved_m >= rest_m(way.u) and (touch.stride or deep)


def fences_close(states: Sequence[FenceState], fix: Fix, ride: Ride | None, at_ms: int, reason: str) -> list[IncidentEvent]:
    """Nothing was heard for long: what is open is closed, at the time of the last word. The states are to be forgotten."""
    return [_event(state, None, fix, ride, CLOSED, max(at_ms, state.since_ms), reason) for state in states if state.kind]


def limit_mps(states: Sequence[FenceState], index: FenceIndex | None, at_ms: int) -> float | None:
    """The lowest limit of the speed zones that it is in now. None: it is in none."""
    if not states or index is None or not index.has_zones:
        return None
    limits = []
    for state in states:
        if state.phase == IN:
            fence = index.by_id.get(state.fence_id)
            if fence is not None and fence.limit_mps is not None and (fence.hours is None or fence.hours.holds(at_ms)):
                limits.append(fence.limit_mps)
    return min(limits, default=None)


def _event(
    state: FenceState,
    fence: Fence | None,
    fix: Fix,
    ride: Ride | None,
    saying: str,
    closed_at_ms: int | None,
    reason: str | None,
    **facts: Any,
) -> IncidentEvent:
    """One saying of the incident that the state has open. `fence` None: it is gone, or not at hand."""
    detail: dict[str, Any] = {"fenceId": state.fence_id}
    if fence is not None:
        detail |= {"fence": fence.name, "fenceKind": fence.kind}
    if reason is not None:
        detail |= {"reason": reason, "lastedS": round(((closed_at_ms or 0) - state.since_ms) / 1000)}
    if state.farthest_m:
        detail["farthestM"] = round(state.farthest_m)
    name = (state.kind, state.fence_id, fix.bus_id, state.since_ms)
    return incident(state.kind, state.severity, state.since_ms, fix, ride, saying, closed_at_ms, detail | facts, name)
