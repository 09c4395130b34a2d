"""The office over HTTP and sockets: event types, publishing, dead letters, the audit, and who may follow a booking."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api import office as calls
from api.app import make_app
from api.auth import Tokens, may_listen
from api.following import Followers, guests
from api.live import Sockets
from api.parts import BookingParts, Parts
from api.server import Worker
from api.sse import Streams
from engine.live.hub import Hub
from engine.live.ordered import OrderedChannels
from engine.live.table import LiveTable
from engine.meter import Meter
from engine.office.outbox import PARTS, Counts, Dispatcher
from engine.office.topics import TOPICS, Event
from engine.store.office import Office
from engine.store.outlet import Outlet
from tests.booking_world import OTHER, PARTNER, World
from tests.live_house import ask, hear


class House:
    """The office's calls, in process; and who may make them."""

    def __init__(self, world: World, parts: Parts, tokens: Tokens) -> None:
        self.world, self.parts, self.tokens, self.office = world, parts, tokens, Office(world.pool)
        self.app = make_app(parts, calls.ROUTERS)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://office")

    def who(self, role: str, partner: str | None = PARTNER, subject: str = "ops") -> dict[str, str]:
        return {"Authorization": "Bearer " + self.tokens.mint(subject, role, partner_id=partner)}

    async def get(self, path: str, role: str = "PARTNER_ADMIN", partner: str | None = PARTNER, **params: Any) -> httpx.Response:
        """`of`: the query parameter `partner`."""
        if "of" in params:
            params["partner"] = params.pop("of")
        return await self.http.get("/v1" + path, params=params, headers=self.who(role, partner))

    async def publish(self, role: str = "PARTNER_ADMIN", partner: str | None = PARTNER, key: str = "", **body: Any) -> httpx.Response:
        headers = self.who(role, partner) | {"Idempotency-Key": key or self.world.clock.uuid7()}
        said = {"topic": "system", "type": "ALERT", "data": {"road": "N5"}} | body
        return await self.http.post("/v1/events/publish", json=said, headers=headers)

    async def die(self) -> str:
        """One event of the partner becomes a dead letter; its id."""
        await self.world.run(
            "select office.record($1, 't', 't', 'partner', 'CAPACITY_CHANGED', $2, 1, '{}')", PARTNER, self.world.clock.uuid7()
        )
        dispatchers = [
            Dispatcher(
                part, self.office, Outlet(self.world.redis, 1000), self.world.catalogue, clock=self.world.clock,
                settings=self.world.settings, counts=Counts(Meter()), sinks=(Refusing(),),
            )
            for part in range(PARTS)
        ]  # fmt: skip
        for one in dispatchers:
            await one.round()
        (dead,) = await self.office.dead_letters(PARTNER, state="HELD")
        return dead.dead_letter_id


class Refusing:
    name = "refusing"

    def lines(self, event: Event, *_: Any) -> Any:
        if event.topic == "partner":
            raise ValueError("never")
        return ()


@pytest.fixture
async def house(database_url: str, redis_url: str) -> AsyncIterator[House]:
    world = await World.make(database_url, redis_url, demo=True, outbox_tries_max=1, drain_s=0.1)
    tokens, table = Tokens(world.settings, world.clock), LiveTable()
    hub = Hub(table, world.settings, world.clock, may_listen=may_listen)
    parts = Parts(settings=world.settings, clock=world.clock, table=table, hub=hub, redis=world.redis, tokens=tokens)
    shells: dict[str, Any] = dict.fromkeys(BookingParts.__struct_fields__)
    shells |= {"pool": world.pool, "catalogue": world.catalogue, "desk": world.desk, "tokens": world.tokens}
    parts.booking = BookingParts(**shells)
    made = House(world, parts, tokens)
    yield made
    await made.http.aclose()
    await world.close()


def problem(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


# ------------------------------------------------------------------------------------------------ events


async def test_every_event_type_is_listed_with_its_version_and_an_example_for_everybody(house: House) -> None:
    items = (await house.http.get("/v1/events/topics")).json()["items"]
    assert [(item["topic"], item["type"]) for item in items] == [(topic, kind) for topic, kinds in TOPICS.items() for kind in kinds]
    held = next(item for item in items if (item["topic"], item["type"]) == ("booking", "HELD"))
    assert held["version"] == 1 and held["example"]["data"]["seats"] == ["1A", "1B"]
    assert held["example"].keys() == {"id", "topic", "type", "version", "aggregate", "seq", "partnerId", "at", "data"}


async def test_a_published_event_goes_through_outbox_and_audit_and_only_once_under_its_key(house: House) -> None:
    first = await house.publish(key="k1")
    again = await house.publish(key="k1")
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json() and again.headers["idempotency-replayed"] == "true"
    assert first.json()["partnerId"] == PARTNER and first.json()["type"] == "ALERT"
    assert await house.world.value("select count(*) from office.outbox") == 1
    assert await house.world.value("select actor from office.audit") == "partner_admin:ops"
    problem(await house.publish(key="k1", data={"road": "N6"}), 422, "IDEMPOTENCY_KEY_REUSED")


async def test_nobody_publishes_what_only_a_change_may_say_or_for_somebody_else(house: House) -> None:
    problem(await house.publish(topic="booking", type="CONFIRMED"), 400, "INVALID")
    problem(await house.publish(type="CONFIRMED"), 400, "INVALID")
    problem(await house.publish(partnerId=OTHER), 404, "NOT_FOUND")
    problem(await house.publish(role="SUPER_ADMIN", partner=None), 400, "INVALID")
    problem(await house.publish(role="SUPER_ADMIN", partner=None, partnerId="nobody"), 404, "NOT_FOUND")
    problem(await house.publish(role="AGENT"), 403, "FORBIDDEN")
    problem(await house.publish(data={"x": "y" * 20_000}), 400, "INVALID")
    headers = house.who("PARTNER_ADMIN")
    body = {"topic": "system", "type": "ALERT", "data": {}}
    problem(await house.http.post("/v1/events/publish", json=body, headers=headers), 400, "IDEMPOTENCY_KEY_REQUIRED")
    problem(await house.http.post("/v1/events/publish", json=body), 401, "UNAUTHENTICATED")
    assert (await house.publish(role="SUPER_ADMIN", partner=None, partnerId=OTHER)).json()["partnerId"] == OTHER
    assert await house.world.value("select count(*) from office.outbox") == 1


async def test_a_dead_letter_is_seen_and_replayed_by_its_operator_and_is_unknown_to_others(house: House) -> None:
    dead = await house.die()
    (item,) = (await house.get("/events/dead-letters")).json()["items"]
    assert (item["id"], item["state"], item["type"], item["sink"]) == (dead, "HELD", "CAPACITY_CHANGED", "refusing")
    assert (await house.get("/events/dead-letters", partner=OTHER)).json()["items"] == []
    assert (await house.get("/events/dead-letters", "SUPER_ADMIN", None)).json()["items"][0]["id"] == dead
    path = f"/v1/events/dead-letters/{dead}/replay"
    problem(await house.http.post(path, headers=house.who("PARTNER_ADMIN", OTHER)), 404, "NOT_FOUND")
    problem(await house.http.post(path, headers=house.who("AGENT")), 403, "FORBIDDEN")
    problem(await house.http.post("/v1/events/dead-letters/nonsense/replay", headers=house.who("PARTNER_ADMIN")), 404, "NOT_FOUND")
    assert (await house.get("/events/dead-letters")).json()["items"][0]["state"] == "HELD", "none of them moved it"
    for _ in range(2):
        assert (await house.http.post(path, headers=house.who("PARTNER_ADMIN"))).json() == {"id": dead, "state": "REPLAYED"}
    await house.world.run("update office.dead_letter set state = 'DELIVERED'")
    problem(await house.http.post(path, headers=house.who("PARTNER_ADMIN")), 409, "EVENT_DELIVERED")


async def test_dead_letters_are_paged_newest_first(house: House) -> None:
    dead = []
    for _ in range(3):
        dead.append(await house.die())
        await house.world.run("update office.dead_letter set state = 'REPLAYED'")
    first = (await house.get("/events/dead-letters", limit=2)).json()
    second = (await house.get("/events/dead-letters", limit=2, cursor=first["nextCursor"])).json()
    assert [item["id"] for item in first["items"] + second["items"]] == dead[::-1]
    assert second["nextCursor"] is None
    problem(await house.get("/events/dead-letters", cursor="x"), 400, "INVALID")


# ------------------------------------------------------------------------------------------------ the audit


async def test_the_audit_of_a_booking_tells_its_whole_life(house: House) -> None:
    shown = await house.world.confirmed("1A", who=house.world.customer("amal"))
    items = (await house.get("/audit", entity=f"booking:{shown['lead']}")).json()["items"]
    assert [item["action"] for item in items] == ["booking.CONFIRMED", "booking.CREATED", "booking.HELD"]
    assert items[-1]["actor"] == "customer:amal" and items[0]["diff"] == {"state": "CONFIRMED", "version": 3}
    assert {item["entity"] for item in items} == {f"booking:{shown['lead']}"}


async def test_the_audit_is_paged_filtered_and_cut_by_time(house: House) -> None:
    for label in ("1A", "1B", "1C"):
        await house.world.hold(label, who=house.world.customer(label))
    await house.world.run(
        """insert into office.audit (partner_id, actor, request_id, at, action, entity_kind, entity_id) overriding user value
        select 'north', 'system', 'r', date_trunc('second', now()) + n * interval '1 hour', 'trip.DELAYED', 'trip', gen_random_uuid()
        from generate_series(1, 50) n"""
    )
    whole = (await house.get("/audit", limit=100)).json()["items"]
    assert len(whole) == 53
    first = (await house.get("/audit", limit=30)).json()
    second = (await house.get("/audit", limit=30, cursor=first["nextCursor"])).json()
    assert first["items"] + second["items"] == whole and second["nextCursor"] is None
    assert [item["action"] for item in (await house.get("/audit", actor="customer:1B")).json()["items"]] == ["booking.HELD"]
    assert len((await house.get("/audit", action="trip.DELAYED", limit=100)).json()["items"]) == 50
    span = {"from": whole[30]["at"], "to": whole[10]["at"], "limit": 100}
    assert (await house.get("/audit", **span)).json()["items"] == whole[11:31], "from is in, to is not"
    assert (await house.get("/audit", to="2001-01-01T00:00:00Z")).json()["items"] == []
    assert (await house.get("/audit", **{"from": "2199-01-01T00:00:00Z"})).json()["items"] == []


async def test_another_operators_audit_is_nobodys_business(house: House) -> None:
    shown = await house.world.confirmed("1A")
    entity = f"booking:{shown['lead']}"
    assert (await house.get("/audit", partner=OTHER, entity=entity)).json()["items"] == []
    assert len((await house.get("/audit", "SUPER_ADMIN", None, entity=entity)).json()["items"]) == 3
    headers = house.who("PARTNER_ADMIN", OTHER)
    problem(await house.http.get("/v1/audit", params={"partner": PARTNER}, headers=headers), 404, "NOT_FOUND")
    for role in ("CUSTOMER", "DRIVER", "AGENT"):
        problem(await house.get("/audit", role), 403, "FORBIDDEN")
    problem(await house.get("/audit", partner=None), 403, "FORBIDDEN")


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("/audit", {"entity": "booking"}),
        ("/audit", {"entity": "booking:17"}),
        ("/audit", {"from": "yesterday"}),
        ("/audit", {"to": "2026-13-01"}),
        ("/audit", {"cursor": "²"}),
        ("/audit", {"cursor": "9" * 5000}),
        ("/audit", {"limit": 0}),
        ("/audit", {"actor": "\0"}),
        ("/audit", {"action": "\0"}),
        ("/events/dead-letters", {"state": "GONE"}),
        ("/events/dead-letters", {"cursor": "\0"}),
    ],
)
async def test_a_question_that_reads_wrong_is_answered_400(house: House, path: str, wrong: dict[str, Any]) -> None:
    problem(await house.get(path, **wrong), 400, "INVALID")


async def test_the_ends_of_time_and_texts_that_no_column_holds_are_no_fault_of_ours(house: House) -> None:
    problem(await house.get("/audit", "SUPER_ADMIN", None, of="\0"), 400, "INVALID")
    problem(await house.publish(data={"x": "\0"}), 400, "INVALID")
    for since, until in (
        ("0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59-23:00"),
        ("9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:00"),
    ):
        assert (await house.get("/audit", **{"from": since, "to": until})).json()["items"] == []


# ------------------------------------------------------------------------------------------------ following a booking


@pytest.fixture
async def live(house: House) -> AsyncIterator[Any]:
    """A socket address beside the house's calls."""
    parts, guest_of = house.parts, guests(house.world.tokens, house.world.clock)
    ordered = OrderedChannels(parts.hub, house.world.redis, admit=Followers(house.office).admit)
    sockets = Sockets(parts.hub, parts.settings, parts.clock, house.tokens.principal, guest_of=guest_of)
    streams = Streams(parts.hub, 65_536, house.tokens.principal, guest_of)
    worker = Worker(make_app(parts, roots=[streams.handler]), sockets, parts, streams)
    sock = socket.create_server(("127.0.0.1", 0))
    tasks = [asyncio.create_task(job) for job in (ordered.run(), worker.run_on(sock))]
    async with asyncio.timeout(10):
        while not worker.started:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
    from websockets.asyncio.client import connect

    yield lambda path="/ws": connect(f"ws://127.0.0.1:{sock.getsockname()[1]}{path}", compression=None)
    worker.should_exit = True
    await asyncio.wait(tasks[1:], timeout=5)
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def told(house: House) -> None:
    """What waits in the outbox is said."""
    for part in range(PARTS):
        outlet = Outlet(house.world.redis, 1000)
        given = {"clock": house.world.clock, "settings": house.world.settings, "counts": Counts(Meter())}
        await Dispatcher(part, house.office, outlet, house.world.catalogue, **given).round()


async def test_a_guest_follows_the_booking_of_its_hold_token_by_path(house: House, live: Any) -> None:
    shown = await house.world.booked("1A")
    token = house.world.tokens.mint(shown["lead"])
    async with live(f"/ws/booking/{shown['ref']}") as ws:
        await ask(ws, id=1, op="auth", holdToken=token)
        assert (await hear(ws))["ok"] is True
        assert (await hear(ws))["ch"] == f"booking:{shown['ref']}"
        assert (await hear(ws))["t"] == "snapshot"
        await told(house)
        heard = [await hear(ws) for _ in range(1)]
        assert [(one["t"], one["d"]["type"], one["d"]["status"]) for one in heard] == [("booking", "CREATED", "PENDING_PAYMENT")]


@pytest.mark.parametrize(
    ("role", "partner", "subject", "may"),
    [
        ("CUSTOMER", None, "amal", True),
        ("CUSTOMER", None, "other", False),
        ("AGENT", PARTNER, "desk", True),
        ("PARTNER_ADMIN", PARTNER, "ops", True),
        ("SUPER_ADMIN", None, "root", True),
        ("AGENT", OTHER, "desk", False),
        ("PARTNER_ADMIN", OTHER, "ops", False),
        ("DRIVER", PARTNER, "amal", False),
    ],
)
async def test_who_may_follow_a_booking(house: House, live: Any, role: str, partner: str | None, subject: str, may: bool) -> None:
    shown = await house.world.booked("1A", who=house.world.customer("amal"))
    async with live() as ws:
        await ask(ws, id=1, op="auth", token=house.tokens.mint(subject, role, partner_id=partner))
        await hear(ws)
        await ask(ws, id=2, op="sub", ch=f"booking:{shown['ref']}")
        answer = await hear(ws)
        assert answer.get("ok", False) is may
        if not may:
            assert answer["error"]["code"] == "NOT_FOUND"
            await ask(ws, id=3, op="sub", ch="booking:ZZZZZZ")
            unknown = await hear(ws)
            assert unknown["error"]["code"] == "NOT_FOUND", "a foreign booking and one that is not there are answered alike"


async def test_a_hold_token_of_another_booking_or_a_forged_one_opens_nothing(house: House, live: Any) -> None:
    mine, theirs = await house.world.booked("1A"), await house.world.booked("1B")
    token = house.world.tokens.mint(mine["lead"])
    async with live() as ws:
        await ask(ws, id=1, op="sub", ch=f"booking:{mine['ref']}")
        assert (await hear(ws))["error"]["code"] == "UNAUTHENTICATED"
        await ask(ws, id=2, op="auth", holdToken=token[:-4] + "AAAA")
        assert (await hear(ws))["error"]["code"] == "UNAUTHENTICATED"
        await ask(ws, id=3, op="auth", holdToken=token)
        assert (await hear(ws))["ok"] is True
        await ask(ws, id=4, op="sub", ch=f"booking:{theirs['ref']}")
        assert (await hear(ws))["error"]["code"] == "NOT_FOUND"
        for channel in ("notifications", f"fleet:{PARTNER}", f"incidents:{PARTNER}"):
            await ask(ws, id=5, op="sub", ch=channel)
            assert (await hear(ws))["error"]["code"] == "FORBIDDEN", "a guest is nobody else"
