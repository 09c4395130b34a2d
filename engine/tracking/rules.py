"""What people have set for one area: thresholds, who is to drive which trip, fences. Immutable; a change is a new `Rules` with a new number.

The owner of an area hands the newest to its tracker at a tick (`rulebooks.py` keeps them as new as the database), so within one tick all
fixes are judged alike. Thresholds are the operator's, the defaults are ours; a replay may try others (`timepoint replay --set watch.off_m=80`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

DISPATCHER, DRIVER = "DISPATCHER", "DRIVER"  # whose word an order is


class WatchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every threshold of what is watched, with unit and reason."""

    off_m: Annotated[float, Meta(ge=20, le=1_000, description="further from its shape than this a vehicle may be off route, metres")] = 60.0
    off_accuracy: Annotated[float, Meta(ge=1, le=10, description="or than this many times the accuracy that the receiver states")] = 3.0
    off_fixes: Annotated[int, Meta(ge=1, le=20, description="off route needs so many fixes in a row: one is noise")] = 3
    off_s: Annotated[float, Meta(ge=0, le=600, description="and so many seconds")] = 45.0
    off_driven_m: Annotated[float, Meta(ge=0, le=2_000, description="and so many metres driven: a parked bus goes nowhere")] = 150.0
    reflected_s: Annotated[
        float, Meta(ge=0, le=900, description="seconds needed after a sideways step that no bus can make: a reflected signal")
    ] = 90.0
    near_share: Annotated[
        float, Meta(ge=1, le=10, description="never further away than this many times the distance: it takes near_patience times as long")
    ] = 1.5
    near_patience: Annotated[
        float, Meta(ge=1, le=100, description="errors that wander slowly stay just beyond the distance for minutes")
    ] = 6.0
    far_share: Annotated[
        float,
        Meta(ge=1, le=100, description="on average further away than this many times the distance: it takes far_patience times as long"),
    ] = 2.0
    far_patience: Annotated[float, Meta(gt=0, le=1, description="nothing but driving leads on and on away")] = 0.5
    back_share: Annotated[float, Meta(gt=0, le=1, description="back on route is nearer than this share of the distance")] = 0.6
    back_fixes: Annotated[int, Meta(ge=1, le=20, description="for so many fixes in a row")] = 2
    major_m: Annotated[float, Meta(ge=0, description="an episode that went further than this is MAJOR, metres")] = 200.0
    critical_m: Annotated[float, Meta(ge=0, description="and further than this CRITICAL, metres")] = 2_000.0
    wrong_m: Annotated[float, Meta(ge=50, le=5_000, description="driven backwards along the shape: the wrong way, metres")] = 150.0
    wrong_fixes: Annotated[int, Meta(ge=2, le=20, description="in at least so many fixes")] = 3
    right_m: Annotated[float, Meta(ge=10, le=5_000, description="forward again so far closes the episode, metres")] = 100.0
    delayed_s: Annotated[float, Meta(ge=30, le=7_200, description="no progress for so long where the timetable does not ask to wait")] = (
        240.0
    )
    delayed_m: Annotated[
        float, Meta(ge=10, le=1_000, description="progress is this far along the shape: noise of a standing bus is less")
    ] = 50.0
    delayed_major_s: Annotated[float, Meta(ge=30, description="no progress for so long is MAJOR, seconds")] = 600.0
    delayed_critical_s: Annotated[float, Meta(ge=30, description="and for so long CRITICAL, seconds")] = 1_800.0
    speed_limit_mps: Annotated[
        float,
        Meta(gt=0, le=60, description="of every bus where no speed zone says less, m/s; 27.8 (100 km/h) is the usual limit of coaches"),
    ] = 27.8
    speed_slack_mps: Annotated[float, Meta(ge=0, le=10, description="over the limit by less is a receiver's error, m/s")] = 0.8
    speeding_s: Annotated[float, Meta(ge=0, le=300, description="over the limit for so long is speeding, and so long under it ends it")] = (
        10.0
    )
    speeding_gap_s: Annotated[
        float, Meta(ge=1, le=300, description="fixes further apart than this say nothing of the way between them")
    ] = 45.0
    speeding_major: Annotated[float, Meta(ge=1, description="so many times the limit is MAJOR")] = 1.2
    speeding_critical: Annotated[float, Meta(ge=1, description="and so many times CRITICAL")] = 1.5
    idle_s: Annotated[
        float, Meta(ge=30, le=86_400, description="standing for so long with the engine on, at no terminal and not waiting")
    ] = 300.0
    idle_m: Annotated[float, Meta(ge=5, le=500, description="standing is within this of one place, metres: receivers wander")] = 40.0
    idle_major_s: Annotated[float, Meta(ge=30, description="idling for so long is MAJOR, seconds")] = 1_200.0
    bunched_share: Annotated[
        float, Meta(gt=0, lt=1, description="a gap to the leader below this share of the scheduled one is a bunch")
    ] = 0.25
    bunched_s: Annotated[float, Meta(ge=0, le=600, description="or below so many seconds (of the scheduled gap at most half)")] = 60.0
    bunched_stops: Annotated[int, Meta(ge=1, le=20, description="at so many stops one after the other: one stop is a red light")] = 2
    bunched_major_stops: Annotated[int, Meta(ge=1, le=100, description="a bunch that lasts for so many stops is MAJOR")] = 6
    spread_share: Annotated[float, Meta(gt=0, le=1, description="a gap of this share of the scheduled one ends the bunch")] = 0.5
    silent_s: Annotated[float, Meta(ge=90, le=7_200, description="a bus under way that was not heard for so long is silent")] = 360.0
    silent_major_s: Annotated[float, Meta(ge=90, description="silence for so long is MAJOR, seconds")] = 900.0
    silent_over_s: Annotated[
        float, Meta(ge=0, le=86_400, description="so long after the end of its trip by the timetable nobody waits for a word, seconds")
    ] = 1_800.0
    approach_m: Annotated[float, Meta(ge=0, le=5_000, description="a stop is near from here on, metres")] = 250.0
    approach_s: Annotated[float, Meta(ge=0, le=600, description="or from so many seconds before it, at the speed of the moment")] = 30.0


class Order(msgspec.Struct, frozen=True, array_like=True):
    """Somebody's word on who drives a trip instance. It wins over what the engine finds and over what the device says."""

    trip_id: str
    start_date: str  # yyyymmdd
    bus_id: str
    driver_id: str | None
    said_as: str  # DISPATCHER | DRIVER
    said_by: str  # subject of the principal
    at_ms: int


class Rules:
    """What holds in one area from now on. `number` rises with every change."""

    __slots__ = ("fences", "number", "of_bus", "of_trip", "on_time_early_s", "on_time_late_s", "watch")

    def __init__(
        self,
        number: int = 0,
        watch: WatchConfig | None = None,
        orders: Iterable[Order] = (),
        fences: Any = None,
        on_time_early_s: int = 60,
        on_time_late_s: int = 300,
    ) -> None:
        self.number = number
        self.watch = watch or WatchConfig()
        self.of_trip: dict[tuple[str, str], Order] = {(order.trip_id, order.start_date): order for order in orders}
        self.of_bus: dict[str, list[Order]] = {}  # a bus may have an order for every trip of its day; by the time they were given
        for order in sorted(self.of_trip.values(), key=lambda each: (each.at_ms, each.start_date, each.trip_id)):
            self.of_bus.setdefault(order.bus_id, []).append(order)
        self.fences = fences  # engine.tracking.fences.FenceIndex; None: the area has none
        self.on_time_early_s, self.on_time_late_s = on_time_early_s, on_time_late_s  # a departure within [-early, +late] is on time


NO_RULES = Rules()
