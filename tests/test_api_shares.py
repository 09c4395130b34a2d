"""A link that shows a trip: for a while, to whoever has it, ended by who made it, and without a word about them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from engine.events import IncidentEvent
from tests.reads_house import House, at, driving, foretold
from tests.small_world import DAY

pytestmark = pytest.mark.asyncio(loop_scope="module")
T0, T2 = f"demo:T0:{DAY}", f"demo:T2:{DAY}"


async def made(reads: House, trip: str = T0, head: dict[str, str] | None = None, **wish: Any) -> dict[str, Any]:
    answer = await reads.http.post(f"/v1/trips/{trip}/share", json=wish, headers=head)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def rows(reads: House, statement: str) -> list[dict[str, Any]]:
    """What an operator's tables say."""
    async with reads.postgres.connection() as connection, connection.transaction():
        await connection.execute("select set_config('tp.partner', '*', true)")
        return [dict(row) for row in await connection.fetch(statement)]


async def test_a_link_shows_the_bus_and_when_it_will_be_at_each_stop(reads: House) -> None:
    now_ms = reads.clock.at_ms = at("2026-03-02T08:10:00+01:00")
    ahead = {i: now_ms + (i - 5) * 60_000 for i in range(6, 13)}
    reads.say(driving(at_ms=now_ms, next_stop=6), forecasts=(foretold(made_at_ms=now_ms, stops=ahead, skipped=(4,)),))
    link = await made(reads, **{"from": "demo:S2", "to": 9})
    assert link["url"] == f"https://bus.example/share/{link['token']}"
    shown = await reads.get(f"/v1/share/{link['token']}")
    assert (shown["tripId"], shown["status"], shown["state"], shown["delayS"]) == (T0, "RUNNING", "IN_TRIP", 240)
    assert (shown["position"]["busId"], shown["ageMs"]) == ("b1", 0)
    assert (shown["from"], shown["to"], shown["toSeq"]) == ("demo:S2", "demo:S8", 9)
    assert [stop["kind"] for stop in shown["stops"]] == ["PASSED"] * 4 + ["SKIPPED", "PASSED"] + ["ESTIMATED"] * 7
    assert shown["stops"][6]["p10"] < shown["stops"][6]["p50"] == "2026-03-02T07:11:00.000Z" < shown["stops"][6]["p90"]
    assert [notice["kind"] for notice in shown["notices"]] == ["STOPS_SKIPPED"] and "Stop 4" in shown["notices"][0]["text"]


async def test_before_the_bus_is_there_a_link_has_the_planned_times(reads: House) -> None:
    shown = await reads.get(f"/v1/share/{(await made(reads))['token']}")
    assert (shown["status"], shown["position"], shown["ageMs"], shown["notices"]) == ("SCHEDULED", None, None, [])
    assert {stop["kind"] for stop in shown["stops"]} == {"SCHEDULED"} and shown["from"] is None


async def test_a_detour_is_told_in_words_while_it_goes_on(reads: House) -> None:
    now_ms = reads.clock.at_ms = at("2026-03-02T08:10:00+01:00")
    opened = IncidentEvent("e1", "i1", "OFF_ROUTE", "MAJOR", "b1", "T0", DAY, "R", now_ms, None, 36.7, 3.0, '{"bypassedStops": [5]}')
    reads.say(driving(at_ms=now_ms, state="OFF_ROUTE"), events=(opened,))
    path = f"/v1/share/{(await made(reads))['token']}"
    (notice,) = (await reads.get(path))["notices"]
    assert notice["kind"] == "DETOUR" and "Stop 4" in notice["text"]
    closed = msgspec.structs.replace(opened, event_id="e2", closed_at_ms=now_ms)
    reads.say(driving(at_ms=now_ms), events=(closed,))
    assert (await reads.get(path))["notices"] == []


async def test_a_link_ends_by_itself_and_says_so(reads: House) -> None:
    link = await made(reads, expiresInS=60)
    assert link["expiresAt"] == "2026-03-02T06:31:00.000Z"
    reads.clock.advance(59_999)
    await reads.get(f"/v1/share/{link['token']}")
    reads.clock.advance(1)
    answer = await reads.http.get(f"/v1/share/{link['token']}")
    assert (answer.status_code, answer.json()["code"]) == (410, "GONE")
    unknown = await reads.http.get("/v1/share/" + "x" * 24)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "NOT_FOUND")


async def test_a_link_lives_six_hours_or_until_an_hour_after_the_ride(reads: House) -> None:
    for now, expires in (  # T2 leaves at ten and arrives at 10:12
        ("2026-02-20T20:00:00+01:00", "2026-02-22T19:00:00"),  # never longer than two days
        ("2026-03-01T20:00:00+01:00", "2026-03-02T10:12:"),
        ("2026-03-02T07:30:00+01:00", "2026-03-02T12:30:00"),
    ):
        reads.clock.at_ms = at(now)
        assert (await made(reads, T2, reads.head("CUSTOMER", None, now)))["expiresAt"].startswith(expires)


async def test_a_guest_ends_a_link_with_the_key_and_nobody_else_does(reads: House) -> None:
    link = await made(reads)
    path = f"/v1/share/{link['token']}"
    for head in ({}, {"X-Share-Key": "another-key-of-somebody"}, {"X-Share-Key": link["token"]}, reads.head("SUPER_ADMIN")):
        assert (await reads.http.delete(path, headers=head)).status_code == 404, head
    for _ in range(2):
        assert (await reads.http.delete(path, headers={"X-Share-Key": link["revokeKey"]})).status_code == 204
    assert (await reads.http.get(path)).status_code == 410


async def test_who_is_signed_in_ends_their_own_link_and_no_other(reads: House) -> None:
    link = await made(reads, head=reads.head("CUSTOMER", None, "amal"))
    path = f"/v1/share/{link['token']}"
    assert link["revokeKey"] is None
    assert (await reads.http.delete(path, headers=reads.head("CUSTOMER", None, "ilyes"))).status_code == 404
    assert (await reads.http.delete(path, headers=reads.head("CUSTOMER", None, "amal"))).status_code == 204
    said = await rows(
        reads, "select action, actor, partner_id, diff from office.audit where action like 'share.%' order by audit_id desc limit 2"
    )
    assert [(row["action"], row["actor"], row["partner_id"]) for row in said] == [
        ("share.ENDED", "customer:amal", "demo"),
        ("share.MADE", "customer:amal", "demo"),
    ]


async def test_neither_the_link_nor_its_row_knows_the_person_or_the_token(reads: House) -> None:
    link = await made(reads, head=reads.head("CUSTOMER", None, "amal-benaissa"))
    shown = json.dumps(await reads.get(f"/v1/share/{link['token']}"))
    kept = repr(await rows(reads, "select * from sharing.link"))
    for secret in ("amal", link["token"]):
        assert secret not in shown and secret not in kept
    assert "demo:T0" in kept


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({"to": "demo:NONE"}, "UNKNOWN_STOP"),
        ({"from": "demo:S9", "to": "demo:S2"}, "WRONG_DIRECTION"),
        ({"expiresInS": 172_801}, None),
        ({"expiresInS": 5}, None),
    ],
)
async def test_a_wish_that_cannot_be_is_refused(reads: House, wish: dict[str, Any], code: str | None) -> None:
    answer = await reads.http.post(f"/v1/trips/{T0}/share", json=wish)
    assert answer.status_code == 400 and (code is None or answer.json()["errors"][0]["code"] == code)
    assert (await reads.http.post("/v1/trips/demo:none:20260302/share", json={})).status_code == 404


async def test_guests_of_one_address_may_not_make_any_number_of_links(reads: House) -> None:
    answers = [(await reads.http.post(f"/v1/trips/{T0}/share")).status_code for _ in range(25)]
    assert answers[0] == 201 and answers[-1] == 429, "and a body is not needed"
    assert sorted(answers) == answers


async def test_the_page_of_a_link_is_the_page_of_a_trip(reads: House) -> None:
    page = await reads.http.get("/share/whatever-token-it-is")
    assert page.status_code == 200 and "/assets/trip.js" in page.text
