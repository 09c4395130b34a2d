"""The fences of one area: what each is for, and which a vehicle can touch on its way from one fix to the next. Immutable; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from engine.tracking.episodes import MAJOR, MINOR
from engine.tracking.hours import Hours
from geo.boxes import Box, Boxes, pieces
from geo.fence import Area

PLAIN, RESTRICTED, STAY_IN, SPEED_ZONE, CORRIDOR = "PLAIN", "RESTRICTED", "STAY_IN", "SPEED_ZONE", "CORRIDOR"
KINDS: Final = {  # severity of what is said of one, where nobody has set another
    PLAIN: MINOR,  # a depot, a terminal, a school: coming and going is said
    RESTRICTED: MAJOR,  # being inside is an incident
    STAY_IN: MAJOR,  # being outside is an incident, wherever it begins
    SPEED_ZONE: MINOR,  # a speed limit holds inside; the fence itself says nothing
    CORRIDOR: MAJOR,  # once inside, leaving it sideways is an incident; past its ends is not
}


class Fence:
    """One fence. `buses` and `routes` empty: it is for all; else for the buses named, and for those on a trip of a route named (ids of the
    feed)."""

    __slots__ = (
        "always",
        "area",
        "buses",
        "fence_id",
        "for_all",
        "hours",
        "kind",
        "limit_mps",
        "name",
        "pieces",
        "routes",
        "severity",
        "version",
    )

    def __init__(
        self,
        fence_id: str,
        name: str,
        kind: str,
        area: Area,
        *,
        severity: str | None = None,
        hours: Hours | None = None,
        buses: Iterable[str] = (),
        routes: Iterable[str] = (),
        limit_mps: float | None = None,
        version: int = 1,
    ) -> None:
        self.fence_id, self.name, self.kind, self.area, self.version = fence_id, name, kind, area, version
        self.severity = severity or KINDS[kind]
        self.hours = hours  # None: always
        self.buses, self.routes = frozenset(buses), frozenset(routes)
        self.for_all = not self.buses and not self.routes
        self.always = self.for_all and hours is None
        self.limit_mps = limit_mps
        self.pieces = [] if kind == STAY_IN else pieces(area)

    def is_for(self, bus_id: str, route_id: str | None) -> bool:
        return self.for_all or bus_id in self.buses or route_id in self.routes


class FenceIndex:
    """All fences in force in one area. `mark` says up to where the database was read (engine/store/fences.py)."""

    __slots__ = ("_boxes", "_stay_all", "_stay_bus", "_stay_route", "by_id", "has_stays", "has_zones", "mark")

    def __init__(self, fences: Iterable[Fence] = (), mark: int = 0) -> None:
        self.mark = mark
        self.by_id: Mapping[str, Fence] = {fence.fence_id: fence for fence in sorted(fences, key=_name)}  # in one order on every worker
        self._stay_all: list[Fence] = []
        self._stay_bus: dict[str, list[Fence]] = {}
        self._stay_route: dict[str, list[Fence]] = {}
        touched: list[tuple[Box, Fence]] = []
        for fence in self.by_id.values():
            if fence.kind != STAY_IN:
                touched += [(piece, fence) for piece in fence.pieces]
                continue
            if fence.for_all:
                self._stay_all.append(fence)
            for bus_id in fence.buses:
                self._stay_bus.setdefault(bus_id, []).append(fence)
            for route_id in fence.routes:
                self._stay_route.setdefault(route_id, []).append(fence)
        self._boxes = Boxes(touched)
        self.has_stays = any(fence.kind == STAY_IN for fence in self.by_id.values())
        self.has_zones = any(fence.kind == SPEED_ZONE for fence in self.by_id.values())

    def __len__(self) -> int:
        return len(self.by_id)

    def near(self, west: float, south: float, east: float, north: float) -> list[Fence]:
        """Fences (but those to stay in) whose boxes meet this one; whoever is in none of them touches none."""
        return self._boxes.meeting(west, south, east, north)

    def stays(self, bus_id: str, route_id: str | None) -> list[Fence]:
        """The fences that this vehicle has to stay in."""
        if bus_id not in self._stay_bus and (route_id is None or route_id not in self._stay_route):
            return self._stay_all
        by_bus = self._stay_bus.get(bus_id, [])
        by_route = self._stay_route.get(route_id, []) if route_id is not None else []
        return [*self._stay_all, *by_bus, *(fence for fence in by_route if bus_id not in fence.buses)]

    def changed(self, fences: Iterable[Fence], gone: Iterable[str], mark: int) -> FenceIndex:
        """The index with these fences new or changed, and those gone."""
        left = dict(self.by_id)
        for fence_id in gone:
            left.pop(fence_id, None)
        left.update({fence.fence_id: fence for fence in fences})
        return FenceIndex(left.values(), mark)


def _name(fence: Fence) -> str:
    return fence.fence_id


NO_FENCES: Final = FenceIndex()
