"""Incidents and calls for help over REST: who may, what is said where, and what is kept."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.events import Handled, IncidentEvent, Sos, Word
from engine.settings import Settings
from engine.store.area import START, AreaStore
from engine.store.timescale import Batch, HistoryWriter
from tests.reads_house import House, at, driving
from tests.small_world import DAY

T0 = f"demo:T0:{DAY}"
NOW_MS = at("2026-03-02T08:10:00+01:00")

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def record(reads: House, *events: IncidentEvent) -> None:
    """As history writes them."""
    writer = HistoryWriter(Settings(database_url=reads.parts.settings.database_url))
    cursor = (await writer.cursors()).get(("demo", "out"))
    await writer.write(Batch("demo", "out", cursor, f"{int((cursor or '0-0').split('-')[0]) + 1}-0", events=[*events]), NOW_MS)
    await writer.close()


def episode(name: str, **more: Any) -> IncidentEvent:
    closed_at_ms, kind = more.get("closed_at_ms"), more.get("kind", "OFF_ROUTE")
    return IncidentEvent(
        f"said {name}", name, kind, "MAJOR", "b1", "T0", DAY, "R", more.get("at_ms", NOW_MS), closed_at_ms, 36.75, 3.05, '{"leftM":100}'
    )  # fmt: skip


async def words(reads: House) -> list[Word]:
    """What people have said into the area so far."""
    entries = await AreaStore(reads.parts.redis, "demo").read_incoming(START, 1_000, 1)
    return [msgspec.msgpack.decode(payload, type=Word) for _, payload, is_word in entries if is_word]


async def said(reads: House) -> list[dict[str, Any]]:
    """The messages of the operator's channel."""
    log = await reads.parts.redis.channel_log("incidents:demo", 0)
    return [msgspec.json.decode(message.payload)["d"] for message in log.messages]


async def test_steps_are_said_on_the_channel_and_into_the_area_and_shown_in_order(reads: House) -> None:
    reads.clock.at_ms = NOW_MS + 60_000
    await record(reads, episode("e1"))
    agent, path = reads.head("AGENT", subject="amal"), "/v1/incidents/e1"
    heard = len(await said(reads))
    first = await reads.http.patch(path, json={"state": "ACKNOWLEDGED"}, headers=agent)
    again = await reads.http.patch(path, json={"state": "ACKNOWLEDGED"}, headers=agent)
    assert first.status_code == again.status_code == 200 and first.json() == again.json()
    reads.clock.at_ms += 1_000
    assigned = {"state": "ASSIGNED", "assignedTo": "night desk", "note": "calls the driver"}
    whole = (await reads.http.patch(path, json=assigned, headers=agent)).json()
    assert [(step["state"], step["by"], step["note"]) for step in whole["handlings"]] == [
        ("ACKNOWLEDGED", "amal", None), ("ASSIGNED", "amal", "calls the driver"),
    ]  # fmt: skip
    assert (whole["handledState"], whole["assignedTo"], whole["closedAt"]) == ("ASSIGNED", "night desk", None)
    told = (await said(reads))[heard:]
    assert [(one["incidentId"], one["handledState"]) for one in told] == [("e1", "ACKNOWLEDGED"), ("e1", "ASSIGNED")]
    assert told[1]["detail"] == {"leftM": 100, "handledBy": "amal", "assignedTo": "night desk", "note": "calls the driver"}
    mine = [word for word in await words(reads) if isinstance(word, Handled) and word.incident_id == "e1"]
    assert [word.state for word in mine][-1] == "ASSIGNED"


async def test_what_a_person_closed_is_not_open_and_cannot_be_opened_again(reads: House) -> None:
    reads.clock.at_ms = NOW_MS + 60_000
    await record(reads, episode("e2"), episode("e3", at_ms=NOW_MS - 1), episode("e4", at_ms=NOW_MS - 2, closed_at_ms=NOW_MS))
    admin = reads.head("PARTNER_ADMIN")
    assert (await reads.http.patch("/v1/incidents/e2", json={"state": "CLOSED"}, headers=admin)).status_code == 200
    refused = await reads.http.patch("/v1/incidents/e2", json={"state": "ACKNOWLEDGED"}, headers=admin)
    assert (refused.status_code, refused.json()["code"]) == (409, "CONFLICT")
    open_now = [one["incidentId"] for one in (await reads.get("/v1/incidents", admin, open="true", limit=100))["items"]]
    assert "e3" in open_now and not {"e2", "e4"} & set(open_now)


async def test_a_list_is_narrowed_and_a_wrong_word_is_refused(reads: House) -> None:
    reads.clock.at_ms = NOW_MS + 60_000
    await record(reads, episode("e5", kind="SPEEDING"), episode("e6", kind="IDLING", at_ms=NOW_MS - 3_600_000))
    admin = reads.head("PARTNER_ADMIN")
    found = await reads.get("/v1/incidents", admin, kind="SPEEDING,IDLING", trip=T0, route="demo:R", bus="b1")
    assert [one["incidentId"] for one in found["items"]] == ["e5", "e6"]
    found = await reads.get("/v1/incidents", admin, kind="SPEEDING,IDLING", **{"from": "2026-03-02T08:00:00+01:00"})
    assert [one["incidentId"] for one in found["items"]] == ["e5"]
    assert (await reads.get("/v1/incidents", admin, trip="other:T0:20260302"))["items"] == []
    for wrong in (
        {"trip": "T0"},
        {"route": "R"},
        {"kind": "RAIN"},
        {"severity": "BAD"},
        {"from": "yesterday"},
        {"to": "2026-03-02T08:00:00"},
    ):
        assert (await reads.http.get("/v1/incidents", params=wrong, headers=admin)).status_code == 400


async def test_another_operators_incidents_are_unknown_and_a_driver_may_not_look(reads: House) -> None:
    await record(reads, episode("e7"))
    stranger = reads.head("PARTNER_ADMIN", partner="other")
    assert (await reads.http.get("/v1/incidents/e7", headers=stranger)).status_code == 404
    assert (await reads.http.patch("/v1/incidents/e7", json={"state": "CLOSED"}, headers=stranger)).status_code == 404
    assert (await reads.http.get("/v1/incidents", headers=reads.head("DRIVER"))).status_code == 403


async def test_a_driver_calls_for_help_once_and_the_operator_hears_the_note(reads: House) -> None:
    reads.clock.at_ms = NOW_MS
    await reads.add_buses("b1")
    reads.say(driving(at_ms=NOW_MS))
    driver = reads.head("DRIVER", subject="d7")
    call = {"busId": "b1", "note": "a passenger\x00 is unwell", "id": "press-1"}
    first = await reads.http.post("/v1/sos", json=call, headers=driver)
    assert first.status_code == 201, first.text
    answer = first.json()
    assert (answer["kind"], answer["severity"], answer["busId"], answer["tripId"]) == ("SOS", "CRITICAL", "b1", T0)
    again = (await reads.http.post("/v1/sos", json=call, headers=driver)).json()
    assert again["incidentId"] == answer["incidentId"]
    calls = [word for word in await words(reads) if isinstance(word, Sos)]
    assert {(word.incident_id, word.bus_id, word.trip_id) for word in calls} == {(answer["incidentId"], "b1", "T0")}
    assert msgspec.json.decode(calls[0].detail) == {"calledAs": "DRIVER", "note": "a passenger is unwell"}
    audited = await reads.get("/v1/audit", reads.head("PARTNER_ADMIN"), action="incident.SOS")
    assert audited["items"][0]["actor"] == "driver:d7" and "unwell" not in str(audited)


async def test_a_passenger_calls_for_the_trip_that_goes_now_and_not_too_often(reads: House) -> None:
    reads.clock.at_ms = NOW_MS
    place = {"lat": 36.75, "lon": 3.05}
    answer = await reads.http.post("/v1/sos", json={"tripId": T0, **place})
    assert (answer.status_code, answer.json()["tripId"]) == (201, T0)
    assert (await reads.http.post("/v1/sos", json={"busId": "b1", **place})).status_code == 400
    reads.clock.at_ms = at("2026-03-02T17:00:00+01:00")
    assert (await reads.http.post("/v1/sos", json={"tripId": T0, **place})).status_code == 409
    codes = [(await reads.http.post("/v1/sos", json={"tripId": T0, **place})).status_code for _ in range(6)]
    assert codes[-1] == 429


async def test_a_stranger_calls_for_nobodys_bus(reads: House) -> None:
    reads.clock.at_ms = NOW_MS
    await reads.add_buses("b1")
    other = reads.head("DRIVER", partner="other")
    for call in ({"busId": "b1"}, {"tripId": T0}):
        assert (await reads.http.post("/v1/sos", json={**call, "lat": 36.75, "lon": 3.05}, headers=other)).status_code == 404
