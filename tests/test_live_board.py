"""The board: alerts begin and end at their time, on the channels that they concern, whatever the database does meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.clock import ManualClock
from engine.errors import Unavailable
from engine.live.alerts import AlertItem, OperatorAlert, Period, Selector
from engine.live.board import Board
from engine.meter import Meter
from engine.tracking.timetable import Timetable
from tests import small_world

CHANNELS = (
    "trip:demo:T0:20260302",
    "route:demo:R",
    "stop:demo:S3",
    "bus:17",
    "fleet:demo",
    "trip:other:T0:20260302",
    "trip:demo:T9:20260302",
)


class Ears:
    """Hears what is announced, and on which of CHANNELS."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bool, list[str]]] = []

    def announce(self, feed_id: str, item: AlertItem, *, over: bool, carries: Callable[[str], bool]) -> None:
        self.heard.append((item.alert_id, over, [name for name in CHANNELS if carries(name)]))

    def took(self) -> list[tuple[str, bool, list[str]]]:
        heard, self.heard = self.heard, []
        return heard


class World:
    """A board, its clock, and a database that answers what it is told to."""

    def __init__(self) -> None:
        self.clock, self.ears, self.rows = ManualClock(1_000_000), Ears(), list[OperatorAlert]()
        self.away, self.asked = False, list[int]()
        self.plan = small_world.feed()
        self.board = Board(self.changed, self, self.ears, clock=self.clock, meter=Meter())

    def timetable(self, feed_id: str) -> Timetable | None:
        return self.plan if feed_id == "demo" else None

    async def changed(self, since: int) -> tuple[list[OperatorAlert], int]:
        if self.away:
            raise Unavailable("PostgreSQL does not answer")
        self.asked.append(since)
        rows, self.rows = self.rows, []
        return rows, since + 7

    async def writes(self, *rows: OperatorAlert) -> list[tuple[str, bool, list[str]]]:
        self.rows = list(rows)
        await self.board.refresh()
        return self.ears.took()


def alert(alert_id: str = "a", *selectors: Selector, version: int = 1, **more: Any) -> OperatorAlert:
    given = {
        "alert_id": alert_id, "partner_id": "demo", "feed_id": "demo", "cause": "STRIKE", "effect": "NO_SERVICE", "level": "SEVERE",
        "header": {"en": "x"}, "description": {}, "url": None, "periods": (), "selectors": selectors, "version": version, "changed_at_ms": 1,
    }  # fmt: skip
    return OperatorAlert(**(given | more))


async def test_an_alert_is_told_where_it_concerns_somebody_and_its_end_likewise() -> None:
    world = World()
    assert await world.writes(alert("a", Selector(stop_id="S3"))) == [("a", False, list(CHANNELS[:3]))]
    assert await world.writes(alert("a", Selector(stop_id="S3"))) == [], "read again, and nothing new"
    assert await world.writes(alert("a", version=2, retired_at_ms=999)) == [("a", True, list(CHANNELS[:3]))]
    assert world.board.all() == [] and world.asked == [0, 7, 14]


async def test_time_alone_begins_and_ends_an_alert() -> None:
    world = World()
    spans = (Period(2_000_000, 3_000_000), Period(4_000_000, 5_000_000))
    assert await world.writes(alert("a", Selector(route_id="R"), periods=spans)) == []
    assert [each.alert_id for each in world.board.all()] == ["a"] and world.board.on_channel(CHANNELS[1]) == []
    told = []
    for at_ms in (1_999_999, 2_000_000, 2_999_999, 3_000_000, 4_500_000, 5_000_000):
        world.clock.at_ms = at_ms
        told.append([over for _, over, _ in await world.writes()])
    assert told == [[], [False], [], [True], [False], [True]]
    assert world.board.all() == [], "it will not hold again"


async def test_what_an_edit_no_longer_concerns_hears_that_it_is_over() -> None:
    world = World()
    await world.writes(alert("a", Selector(route_id="R")))
    said = await world.writes(alert("a", Selector(trip_id="T0", start_date="20260302"), version=2))
    assert said == [("a", True, []), ("a", False, list(CHANNELS[:3]))]
    said = await world.writes(alert("a", Selector(stop_id="elsewhere"), version=3))
    assert said == [("a", True, list(CHANNELS[:3])), ("a", False, [])]
    assert await world.writes(alert("a", Selector(route_id="R"), version=2)) == [], "an older version that comes late changes nothing"


async def test_a_database_that_is_away_changes_nothing_and_time_goes_on() -> None:
    world = World()
    await world.writes(alert("a", periods=(Period(None, 2_000_000),)))
    world.away = True
    with pytest.raises(Unavailable):
        await world.board.refresh()
    assert [item.alert_id for item in world.board.on_channel(CHANNELS[0])] == ["a"]
    world.clock.at_ms = 2_000_000
    world.board.take([])
    assert [(over, channels) for _, over, channels in world.ears.took()][-1] == (True, list(CHANNELS[:3]))
