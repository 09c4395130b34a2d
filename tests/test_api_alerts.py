"""Alerts: an operator writes them, incidents make them, and everybody who is concerned reads and hears the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import pytest
from google.transit import gtfs_realtime_pb2 as rt

from api import alerts, feeds, notices
from api.openapi import BODIES
from engine.events import IncidentEvent
from engine.live.alerts import Selector, concerns_route, concerns_stop, concerns_trip
from engine.live.board import Board
from engine.meter import Meter
from engine.store.alerts import changed_alerts
from engine.tracking.plans import Plan
from engine.tracking.timetable import Timetable
from tests import small_world
from tests.booking_world import OTHER, PARTNER
from tests.gtfs_realtime_rules import check
from tests.live_house import batch
from tests.seat_house import SeatHouse, problem
from tests.test_live_hub import Collector

DAY = small_world.DAY
TRIP = f"demo:T0:{DAY}"


class OneFeed:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def get(self, feed_id: str) -> Plan | None:
        return self.plan if feed_id == self.plan.feed_id else None

    def timetable(self, feed_id: str) -> Timetable | None:
        return self.plan.timetable if feed_id == self.plan.feed_id else None

    def all(self) -> list[Plan]:
        return [self.plan]


class AlertHouse(SeatHouse):
    board: Board

    async def ask(self, method: str, path: str, body: Any = None, *, role: str = "AGENT", partner: str = PARTNER, **headers: str) -> Any:
        given = self.as_(role, partner) if role else {}
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.request(method, path, json=body, headers=given | more)

    async def written(self, *informed: dict[str, Any], **more: Any) -> Any:
        body = {"header": {"en": "Works"}, "informed": list(informed), **more}
        answer = await self.ask("POST", "/v1/admin/alerts", body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def shown(self, **asked: str) -> list[str]:
        answer = await self.http.get("/v1/alerts", params=asked)
        assert answer.status_code == 200, answer.text
        return [item["alertId"] for item in answer.json()["items"]]

    def listen(self, *channels: str) -> Collector:
        listener = Collector()
        for channel in channels:
            self.parts.hub.subscribe(listener, channel)
        return listener

    async def heard(self, listener: Collector) -> list[tuple[str, Any, str]]:
        """(what, channels, alert) of the notices since it was last asked."""
        await self.parts.hub.round()
        told, listener.told = listener.told, []
        return [(m["d"]["what"], m["ch"], m["d"]["alert"]["alertId"]) for m in told if m["t"] == "notice"]


@pytest.fixture
async def house(database_url: str, redis_url: str) -> AsyncIterator[AlertHouse]:
    made = await AlertHouse.make(database_url, redis_url, (*alerts.ROUTERS, *notices.ROUTERS, *feeds.ROOTS))
    assert isinstance(made, AlertHouse)
    plan = Plan("demo", PARTNER, small_world.feed())
    plans = OneFeed(plan)
    await made.world.run("insert into network.feed (feed_id, partner_id) values ('demo', $1)", PARTNER)
    changed = partial(changed_alerts, made.world.pool)
    made.board = Board(changed, plans, made.parts.hub, clock=made.parts.clock, meter=Meter())
    made.parts.plans, made.parts.board = plans, made.board  # type: ignore[assignment]
    made.parts.hub.alerts = made.board.on_channel
    made.parts.table.learn(batch(1))
    yield made
    await made.close()


def hours(n: float) -> str:
    return (datetime.now(UTC) + timedelta(hours=n)).isoformat()


def detour(trip: str = "T0", **more: Any) -> IncidentEvent:
    given = {
        "event_id": "e1", "incident_id": "i1", "kind": "OFF_ROUTE", "severity": "MAJOR", "bus_id": "b1", "trip_id": trip, "start_date": DAY,
        "route_id": "R", "opened_at_ms": 1_772_438_400_000, "closed_at_ms": None, "lat": 36.75, "lon": 3.05,
        "detail": '{"maxOffsetM":240,"bypassedStops":[4],"note":"driver is Amal"}',
    }  # fmt: skip
    return IncidentEvent(**(given | more))


async def test_an_alert_lives_from_its_writing_to_its_end(house: AlertHouse) -> None:
    made = await house.written({"routeId": "demo:R"}, cause="CONSTRUCTION", url="https://example.org/w")
    name = made["alertId"]
    assert (made["partnerId"], made["feedId"], made["version"], made["inForce"], made["code"]) == (PARTNER, "demo", 1, True, "NOTICE")
    assert await house.shown() == [name]
    read = await house.ask("GET", f"/v1/admin/alerts/{name}")
    assert read.headers["etag"] == '"1"' and read.json() == made
    edited = await house.ask("PATCH", f"/v1/admin/alerts/{name}", {"header": {"en": "Closed", "fr": "Fermé"}, "url": None}, if_match='"1"')
    assert (edited.json()["header"], edited.json()["url"], edited.json()["cause"]) == (
        {"en": "Closed", "fr": "Fermé"},
        None,
        "CONSTRUCTION",
    )
    assert problem(await house.ask("PATCH", f"/v1/admin/alerts/{name}", {"level": "INFO"}, if_match='"1"'), 412, "PRECONDITION_FAILED")
    retired = await house.ask("DELETE", f"/v1/admin/alerts/{name}")
    assert retired.json()["retiredAt"] is not None and await house.shown() == []
    again = await house.ask("DELETE", f"/v1/admin/alerts/{name}")
    assert again.json()["version"] == 3, "retired once"
    assert problem(await house.ask("PATCH", f"/v1/admin/alerts/{name}", {"level": "INFO"}), 409, "CONFLICT")
    said = await house.world.run(
        "select version, action from office.audit a join office.outbox o on o.aggregate = a.entity_id order by 1, 2"
    )
    assert {row[1] for row in said} == {"partner.ALERT_CHANGED"}
    assert await house.world.value("select count(*) from office.audit where action = 'partner.ALERT_CHANGED'") == 3


async def test_another_operators_alert_is_as_unknown_as_none(house: AlertHouse) -> None:
    name = (await house.written())["alertId"]
    for method in ("GET", "PATCH", "DELETE"):
        body = {"level": "INFO"} if method == "PATCH" else None
        assert (await house.ask(method, f"/v1/admin/alerts/{name}", body, partner=OTHER, role="PARTNER_ADMIN")).status_code == 404
    assert (await house.ask("GET", "/v1/admin/alerts", partner=OTHER)).json()["items"] == []
    assert (await house.ask("GET", "/v1/admin/alerts", role="CUSTOMER")).status_code == 403
    assert (await house.ask("GET", "/v1/admin/alerts", role="")).status_code == 401
    assert problem(await house.ask("POST", "/v1/admin/alerts", {"header": {"en": "x"}}, partner=OTHER), 400, "INVALID")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"informed": [{"routeId": "demo:nowhere"}]}, "/informed/0/routeId"),
    ({"informed": [{"stopId": "other:S1"}]}, "/informed/0/stopId"),
    ({"informed": [{"routeId": "demo:R"}, {"tripId": f"demo:T9:{DAY}"}]}, "/informed/1/tripId"),
    ({"informed": [{"directionId": 1, "stopId": "demo:S1"}]}, "/informed/0/routeId"),
    ({"informed": [{}]}, "/informed/0"),
    ({"informed": [{"routeId": "R1x"}]}, "/informed/0"),
    ({"feedId": "other"}, "/feedId"),
    ({"periods": [{"from": "2026-11-21T08:00:00Z", "to": "2026-11-21T08:00:00Z"}]}, "/periods/0/to"),
    ({"periods": [{"from": "1926-11-21T08:00:00Z"}]}, "/periods/0"),
    ({"header": {}}, "/header"),
    ({"header": {"english please": "x"}}, ""),
    ({"cause": "BAD_LUCK"}, "/cause"),
    ({"url": "javascript:alert(1)"}, "/url"),
]


async def test_what_the_feed_does_not_have_or_no_reader_could_use_is_refused_by_its_place(house: AlertHouse) -> None:
    for body, pointer in REFUSED:
        answer = await house.ask("POST", "/v1/admin/alerts", {"header": {"en": "Works"}} | body)
        assert answer.status_code == 400, body
        assert any(error["pointer"].startswith(pointer) for error in answer.json()["errors"]), answer.text


async def test_the_example_of_the_document_is_an_alert_once_the_names_are_of_this_feed(house: AlertHouse) -> None:
    body = BODIES["post /v1/admin/alerts"] | {"informed": [{"routeId": "demo:R"}]}
    answer = await house.ask("POST", "/v1/admin/alerts", body)
    assert answer.status_code == 201 and answer.json()["periods"][0]["from"] == "2026-11-21T06:00:00.000Z"


async def test_pages_of_an_operators_alerts_are_newest_first_and_each_once(house: AlertHouse) -> None:
    names = [(await house.written())["alertId"] for _ in range(5)]
    seen, cursor = [], None
    while True:
        asked = "/v1/admin/alerts?limit=2" + (f"&cursor={cursor}" if cursor else "")
        page = (await house.ask("GET", asked)).json()
        seen += [item["alertId"] for item in page["items"]]
        cursor = page["nextCursor"]
        if cursor is None:
            break
    assert seen == names[::-1]


async def test_everybody_reads_what_concerns_them_with_a_tag_that_changes_when_it_does(house: AlertHouse) -> None:
    route = (await house.written({"routeId": "demo:R"}))["alertId"]
    stop = (await house.written({"stopId": "demo:S3"}))["alertId"]
    instance = (await house.written({"tripId": TRIP}))["alertId"]
    always = (await house.written({"tripId": "demo:T1", "stopId": "demo:S5"}))["alertId"]
    later = (await house.written(periods=[{"from": hours(2), "to": hours(3)}]))["alertId"]
    over = (await house.written(periods=[{"from": hours(-3), "to": hours(-2)}]))["alertId"]
    assert set(await house.shown()) == {route, stop, instance, always}
    assert set(await house.shown(upcoming="true")) == {route, stop, instance, always, later} and over not in await house.shown()
    assert set(await house.shown(trip=TRIP)) == {route, stop, instance}
    assert set(await house.shown(trip=f"demo:T1:{DAY}")) == {route, stop, always}
    assert set(await house.shown(stop="demo:S5")) == {route, instance, always}
    assert await house.shown(trip="demo:T9:20260302") == [] and await house.shown(feed="other") == []
    assert (await house.http.get("/v1/alerts", params={"trip": "T0"})).status_code == 400
    first = await house.http.get("/v1/alerts")
    same = await house.http.get("/v1/alerts", headers={"If-None-Match": first.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    await house.ask("DELETE", f"/v1/admin/alerts/{stop}")
    assert (await house.http.get("/v1/alerts", headers={"If-None-Match": first.headers["etag"]})).status_code == 200


async def test_an_open_incident_is_an_alert_without_what_is_the_operators_business(house: AlertHouse) -> None:
    table = house.parts.table
    speeding = detour(event_id="e2", incident_id="i2", kind="SPEEDING")
    table.hear(batch(2, events=(detour(), speeding)))
    answer = await house.http.get("/v1/alerts", params={"trip": TRIP})
    (item,) = answer.json()["items"]
    assert (item["alertId"], item["source"], item["code"], item["effect"]) == ("i1", "INCIDENT", "DETOUR", "DETOUR")
    assert item["informed"][1]["stopId"] == "demo:S3" and item["params"]["stops"][0]["name"] == "Stop 3"
    assert item["description"]["en"] == "The bus of line 1 is on a detour and does not stop at Stop 3."
    assert "Amal" not in answer.text
    table.hear(batch(3, events=(msgspec.structs.replace(detour(), event_id="e3", closed_at_ms=1_772_438_700_000),)))
    assert await house.shown() == []


async def test_the_feed_of_alerts_says_the_same_and_breaks_no_rule(house: AlertHouse) -> None:
    written = await house.written({"routeId": "demo:R", "stopId": "demo:S3"}, {"tripId": TRIP}, effect="NO_SERVICE")
    house.parts.table.hear(batch(2, events=(detour(),)))
    answer = await house.http.get("/v1/gtfs-rt/alerts.pb")
    message = rt.FeedMessage.FromString(answer.content)
    assert {entity.id for entity in message.entity} == {"a:" + written["alertId"], "a:i1"}
    timetable = small_world.feed()
    assert not check([message], timetable, message.header.timestamp)


async def test_who_follows_a_trip_a_route_or_a_stop_hears_when_an_alert_begins_changes_and_ends(house: AlertHouse) -> None:
    channels = [f"trip:{TRIP}", "route:demo:R", "stop:demo:S3", "stop:demo:S9", f"trip:demo:T1:{DAY}"]
    everyone = house.listen(*channels)
    name = (await house.written({"stopId": "demo:S3", "tripId": TRIP}))["alertId"]
    assert await house.heard(everyone) == [("ALERT", [f"trip:{TRIP}", "route:demo:R", "stop:demo:S3"], name)]
    late = house.listen(f"trip:{TRIP}")
    assert await house.heard(late) == [("ALERT", f"trip:{TRIP}", name)], "who comes later gets it with the snapshot"
    await house.ask("PATCH", f"/v1/admin/alerts/{name}", {"informed": [{"stopId": "demo:S9"}]})
    said = await house.heard(everyone)
    assert ("ALERT_OVER", "stop:demo:S3", name) in said and ("ALERT", [*channels[:2], *channels[3:]], name) in said
    await house.ask("DELETE", f"/v1/admin/alerts/{name}")
    assert await house.heard(late) == [("ALERT", f"trip:{TRIP}", name), ("ALERT_OVER", f"trip:{TRIP}", name)]


async def test_another_worker_learns_of_an_alert_whose_transaction_took_long(house: AlertHouse) -> None:
    other = Board(partial(changed_alerts, house.world.pool), house.parts.plans, house.parts.hub, clock=house.parts.clock, meter=Meter())  # type: ignore[arg-type]
    async with house.world.pool.pool.acquire() as connection:
        slow = connection.transaction()
        await slow.start()
        await connection.execute("select set_config('tp.partner', '*', true)")
        await connection.execute(
            "insert into network.alert (alert_id, partner_id, feed_id, cause, effect, level, header, description, periods, selectors) values "
            "(gen_random_uuid(), $1, 'demo', 'STRIKE', 'NO_SERVICE', 'SEVERE', '{\"en\": \"x\"}', '{}', '[]', '[]')",
            PARTNER,
        )
        quick = (await house.written())["alertId"]
        await other.refresh()
        assert [alert.alert_id for alert in other.all()] == [quick]
        await slow.commit()
    await other.refresh()
    assert len(other.all()) == 2


def test_what_stands_in_one_selector_holds_together() -> None:
    timetable = small_world.feed()
    trip = timetable.trips["T0"]
    both = (Selector(route_id="R", stop_id="nowhere"), Selector(trip_id="T1"))
    assert not concerns_trip(both, timetable, trip, DAY) and not concerns_stop((Selector(trip_id="gone"),), timetable, "S1")
    assert concerns_route(both, timetable, "R") and concerns_trip((), timetable, trip, DAY)
    assert not concerns_trip((Selector(trip_id="T0", start_date="20260303"),), timetable, trip, DAY)
    assert not concerns_trip((Selector(route_id="R", direction_id=1),), timetable, trip, DAY)
    assert not concerns_route((Selector(trip_id="gone"),), timetable, "R")


async def test_a_manager_says_which_incidents_come_to_their_own_notifications(house: AlertHouse) -> None:
    path = "/v1/notifications/incidents"
    assert (await house.ask("GET", path)).status_code == 404
    said = await house.ask("PUT", path, {"severity": "MINOR", "kinds": ["SOS", "SOS", "OFF_ROUTE"]})
    assert said.json() == {"partnerId": PARTNER, "severity": "MINOR", "kinds": ["SOS", "OFF_ROUTE"]}
    assert (await house.ask("PUT", path, {"kinds": []})).json()["severity"] == "MAJOR", "chosen anew, not added to"
    assert (await house.ask("GET", path)).json()["kinds"] == []
    assert (await house.ask("GET", path, partner=OTHER)).status_code == 404
    assert (await house.ask("PUT", path, {"kinds": ["BAD_LUCK"]})).status_code == 400
    assert (await house.ask("PUT", path, {}, role="CUSTOMER")).status_code == 403
    assert [(await house.ask("DELETE", path)).status_code for _ in range(2)] == [204, 204]
    assert (await house.ask("GET", path)).status_code == 404
