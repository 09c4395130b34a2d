"""POS, waitlist and waiting room over HTTP: who may, what it looks like, what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api import booking, pos, waiting
from api.app import make_app
from api.auth import Tokens
from api.parts import BookingParts, Parts
from engine.booking.drawers import Drawers
from engine.booking.leases import Leases
from engine.booking.rates import Rates
from engine.booking.room import Room
from engine.booking.till import Till
from engine.booking.waitlist import Waitlist
from engine.live.hub import Hub
from engine.live.table import LiveTable
from engine.settings import Settings
from engine.store.queue import Queue
from engine.store.waiting import Rooms
from tests.booking_world import OTHER, PARTNER, SECRET, FlatPrices, World


class Counter:
    """A world behind its HTTP calls."""

    def __init__(self, world: World) -> None:
        self.world = world
        settings, table, clock = Settings(secret_key=SECRET), LiveTable(), world.clock
        self.tokens = Tokens(settings, clock)
        self.waitlist = Waitlist(world.pool, world.catalogue, FlatPrices(), world.tokens, SECRET, clock=clock, settings=world.settings)
        self.room = world.desk.room = Room(Queue(world.redis), Rooms(world.pool), SECRET, clock=clock, settings=world.settings)
        none: dict[str, Any] = dict.fromkeys(BookingParts.__struct_fields__)
        shells = {
            "pool": world.pool, "catalogue": world.catalogue, "desk": world.desk, "tokens": world.tokens, "rates": Rates({}, clock),
            "till": Till(world.pool, world.catalogue, clock), "drawers": Drawers(world.pool, clock), "waitlist": self.waitlist,
            "leases": Leases(world.pool, world.catalogue, FlatPrices(), clock=clock, settings=world.settings), "room": self.room,
        }  # fmt: skip
        parts = Parts(
            settings=settings, clock=clock, table=table, hub=Hub(table, settings, clock), tokens=self.tokens,
            booking=BookingParts(**(none | shells)),
        )  # fmt: skip
        app = make_app(parts, (*booking.ROUTERS, *pos.ROUTERS, *waiting.ROUTERS))
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://desk/v1")  # type: ignore[arg-type]

    def staff(self, role: str = "AGENT", partner: str | None = PARTNER) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens.mint('nadia', role, partner_id=partner)}"}

    def keyed(self, **more: str) -> dict[str, str]:
        return {"Idempotency-Key": self.world.clock.uuid7()} | more

    def sale(self, seq: int, seat: str, **changed: Any) -> dict[str, Any]:
        told = {
            "seq": seq,
            "tripId": self.world.trip_id,
            "seat": seat,
            "from": "demo:A",
            "to": "demo:F",
            "amount": 50_000,
            "currency": "DZD",
        }
        return (
            told | {"soldAtMs": self.world.clock.now_ms(), "method": "CASH", "passenger": {"firstName": "Amal", "lastName": "B"}} | changed
        )

    async def post(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> httpx.Response:
        return await self.http.post(path, json=body, headers=self.keyed() | (self.staff() if headers is None else headers))

    async def lease(self, *seats: str, headers: dict[str, str] | None = None) -> httpx.Response:
        return await self.post("/pos/leases", {"deviceId": "till-1", "tripId": self.world.trip_id, "seats": list(seats)}, headers)

    async def sync(self, *sales: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
        body = {"deviceId": "till-1", "deviceTimeMs": self.world.clock.now_ms(), "sales": list(sales)}
        return await self.post("/pos/sync", body, headers)


@pytest.fixture
async def counter(database_url: str, redis_url: str) -> AsyncIterator[Counter]:
    world = await World.make(database_url, redis_url)
    made = Counter(world)
    yield made
    await made.http.aclose()
    await world.close()


async def test_a_day_at_the_counter(counter: Counter) -> None:
    opened = (await counter.post("/pos/sessions", {"deviceId": "till-1", "currency": "DZD", "float": 10_000})).json()
    lease = await counter.lease("1A", "1B")
    assert lease.status_code == 201 and lease.headers["Location"] == f"/v1/pos/leases/{lease.json()['id']}"
    assert lease.json()["seats"][0] == {"seat": "1A", "price": 50_000, "class": 1000}
    third = counter.sale(3, "2C")
    done = await counter.sync(counter.sale(1, "1A"), counter.sale(2, "1A"), third)
    assert done.status_code == 200
    said = done.json()["results"]
    assert [(one["result"], one["code"]) for one in said] == [
        ("CONFIRMED", None),
        ("CONFLICT_REFUND", "SEAT_TAKEN"),
        ("CONFLICT_REFUND", "NOT_LEASED"),
    ]
    shown = await counter.http.get(f"/bookings/{said[0]['ref']}", headers=counter.staff())
    assert shown.json()["status"] == "CONFIRMED"
    seated = await counter.post("/pos/sales/2/seat", {"deviceId": "till-1", "seat": "3D"})
    assert seated.json()["seat"] == "3D"
    await counter.sync(third | {"void": True})
    page = (await counter.http.get("/pos/sales?device=till-1&limit=2", headers=counter.staff())).json()
    assert [one["result"] for one in page["items"]] == ["CONFIRMED", "CONFIRMED"] and page["nextCursor"] == "2"
    extended = await counter.post(f"/pos/leases/{lease.json()['id']}/extend", {"ttlS": 20_000})
    assert extended.json()["expiresAt"] > lease.json()["expiresAt"]
    given = await counter.http.delete(f"/pos/leases/{lease.json()['id']}", headers=counter.staff())
    assert (given.status_code, given.json()["status"], given.json()["left"]) == (200, "RELEASED", [])
    closed = (await counter.post(f"/pos/sessions/{opened['id']}/close", {"counted": 109_000})).json()
    assert (closed["expected"]["amount"], closed["difference"]["amount"], closed["status"]) == (110_000, -1_000, "CLOSED")


async def test_a_sync_asks_for_a_key_and_is_answered_once(counter: Counter) -> None:
    await counter.lease("1A")
    body = {"deviceId": "till-1", "deviceTimeMs": counter.world.clock.now_ms(), "sales": [counter.sale(1, "1A")]}
    without = await counter.http.post("/pos/sync", json=body, headers=counter.staff())
    assert (without.status_code, without.json()["code"]) == (400, "IDEMPOTENCY_KEY_REQUIRED")
    headers = counter.keyed(**counter.staff())
    first = await counter.http.post("/pos/sync", json=body, headers=headers)
    again = await counter.http.post("/pos/sync", json=body, headers=headers)
    assert again.headers["Idempotency-Replayed"] == "true" and again.json() == first.json()
    other = await counter.http.post("/pos/sync", json=body | {"sales": []}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


async def test_a_device_with_a_token_of_its_own_acts_for_itself_alone(counter: Counter) -> None:
    made = await counter.post("/pos/devices", {"deviceId": "handheld", "name": "red"}, counter.staff("PARTNER_ADMIN"))
    assert made.status_code == 201
    device = {"Authorization": f"Bearer {made.json()['token']}"}
    lease = await counter.post("/pos/leases", {"tripId": counter.world.trip_id, "seats": {"count": 2}}, device)
    assert (lease.status_code, lease.json()["deviceId"]) == (201, "handheld")
    assert (await counter.lease("1A", headers=device)).status_code == 404  # another device
    theirs = (await counter.lease("3A")).json()["id"]
    assert (await counter.http.get(f"/pos/leases/{theirs}", headers=device)).status_code == 404
    gone = await counter.http.delete("/pos/devices/handheld", headers=counter.staff("PARTNER_ADMIN"))
    assert gone.status_code == 204
    assert (await counter.post("/pos/leases", {"tripId": counter.world.trip_id, "seats": ["2A"]}, device)).status_code == 401


async def test_another_operator_finds_nothing(counter: Counter) -> None:
    lease = (await counter.lease("1A")).json()
    session = (await counter.post("/pos/sessions", {"deviceId": "till-1", "currency": "DZD", "float": 0})).json()
    south = counter.staff("PARTNER_ADMIN", OTHER)
    calls = [
        ("GET", f"/pos/leases/{lease['id']}", None), ("DELETE", f"/pos/leases/{lease['id']}", None),
        ("POST", f"/pos/leases/{lease['id']}/extend", {}), ("GET", f"/pos/sessions/{session['id']}", None),
        ("POST", f"/pos/sessions/{session['id']}/close", {"counted": 1}), ("DELETE", "/pos/devices/till-1", None),
        ("POST", "/pos/leases", {"deviceId": "till-1", "tripId": counter.world.trip_id, "seats": ["1B"]}),
        ("PUT", f"/trips/{counter.world.trip_id}/waiting-room", {"mode": "ON"}),
    ]  # fmt: skip
    for method, path, body in calls:
        said = await counter.http.request(method, path, json=body, headers=counter.keyed(**south))
        assert (said.status_code, said.json()["code"]) == (404, "NOT_FOUND"), (method, path)
    sold = await counter.sync(counter.sale(1, "1A"), headers=south)
    assert sold.json()["results"][0]["code"] == "UNKNOWN_TRIP"
    assert (await counter.http.get("/pos/sales?device=till-1", headers=south)).json()["items"] == []


@pytest.mark.parametrize("role", ["CUSTOMER", "DRIVER", "SUPER_ADMIN"])
async def test_the_till_is_for_the_operators_people(counter: Counter, role: str) -> None:
    assert (await counter.lease("1A", headers=counter.staff(role, None))).status_code == 403
    assert (await counter.lease("1A", headers={})).status_code == 401
    assert (await counter.post("/pos/devices", {"deviceId": "x"}, counter.staff("AGENT"))).status_code == 403


async def test_bad_input_is_named_and_leaves_nothing_behind(counter: Counter) -> None:
    trip, agent = counter.world.trip_id, counter.staff()
    for path, body, code in (
        ("/pos/leases", {"deviceId": "till-1", "tripId": trip, "seats": ["9Z"]}, 400),
        ("/pos/leases", {"deviceId": "till-1", "tripId": trip, "seats": ["1A", "1A"]}, 400),
        ("/pos/leases", {"deviceId": "till-1", "tripId": trip, "seats": []}, 400),
        ("/pos/leases", {"deviceId": "till-1", "tripId": trip, "seats": ["1A"], "from": "demo:F", "to": "demo:A"}, 400),
        ("/pos/leases", {"tripId": trip, "seats": ["1A"]}, 400),
        ("/pos/leases", {"deviceId": "no spaces", "tripId": trip, "seats": ["1A"]}, 400),
        ("/pos/leases", {"deviceId": "till-1", "tripId": "demo:NONE:20261121", "seats": ["1A"]}, 404),
        ("/pos/sync", {"deviceId": "till-1", "deviceTimeMs": 1, "sales": [{"seq": -1}]}, 400),
        ("/pos/sync", {"deviceId": "till-1", "sales": []}, 400),
        ("/pos/sessions", {"deviceId": "till-1", "currency": "DZD", "float": -1}, 400),
        ("/pos/sales/1/seat", {"deviceId": "till-1", "seat": "1A"}, 404),
        (f"/trips/{trip}/waitlist", {"count": 0, "from": "demo:A", "to": "demo:B", "contact": {"email": "a@b.cd"}}, 400),
        (f"/trips/{trip}/waitlist", {"count": 1, "from": "demo:A", "to": "demo:B", "contact": {}}, 400),
        ("/trips/demo:NONE:20261121/queue", None, 404),
    ):  # fmt: skip
        said = await counter.post(path, body, agent)
        assert said.status_code == code, (path, body, said.text)
        assert said.json()["code"]
    for path in ("/pos/leases/x", "/pos/sessions/x", "/waitlist/x"):
        assert (await counter.http.get(path, headers=agent)).status_code == 404
    assert await counter.world.value("select count(*) from pos.sale") == 0
    assert await counter.world.value("select count(*) from booking.booking") == 0


async def test_a_sale_with_numbers_out_of_all_bounds_is_rejected_and_the_others_stand(counter: Counter) -> None:
    await counter.lease("1A")
    odd = [counter.sale(2, "1A", amount=10**30), counter.sale(3, "1A", soldAtMs=-(10**30)), counter.sale(4, "1A", soldAtMs=10**18)]
    done = (await counter.sync(counter.sale(1, "1A"), *odd)).json()["results"]
    assert [one["code"] for one in done] == [None, "INVALID_AMOUNT", "INVALID_TIME", "INVALID_TIME"]


async def test_who_waits_is_offered_what_is_let_go_and_books_it(counter: Counter) -> None:
    trip = counter.world.trip_id
    everything = (await counter.post("/pos/leases", {"deviceId": "till-1", "tripId": trip, "seats": {"count": 12}})).json()
    wish = {"count": 2, "from": "demo:A", "to": "demo:C", "contact": {"phone": "+213 555 0100"}}
    joined = await counter.post(f"/trips/{trip}/waitlist", wish, {})
    assert joined.status_code == 201
    place, mine = joined.json(), {"X-Waitlist-Token": joined.json()["token"]}
    assert (place["status"], place["position"], place["offer"]) == ("WAITING", 1, None)
    assert (await counter.post(f"/trips/{trip}/waitlist", wish, {})).json()["code"] == "ALREADY_WAITING"
    await counter.waitlist.round()
    await counter.http.delete(f"/pos/leases/{everything['id']}", headers=counter.staff())
    await counter.waitlist.round(everything=True)
    offer = (await counter.http.get(f"/waitlist/{place['id']}", headers=mine)).json()["offer"]
    assert len(offer["seats"]) == 2 and offer["total"] == {"amount": 40_000, "currency": "DZD"}
    named = [{"seat": seat["seat"], "firstName": "Amal", "lastName": "B"} for seat in offer["seats"]]
    body = {"holdId": offer["holdId"], "passengers": named, "contact": {"email": "a@example.org"}}
    booked = await counter.post("/bookings", body, {"X-Hold-Token": offer["holdToken"]})
    assert (booked.status_code, booked.json()["status"]) == (201, "PENDING_PAYMENT")
    assert (await counter.http.get(f"/waitlist/{place['id']}")).status_code == 404
    assert (await counter.http.delete(f"/waitlist/{place['id']}", headers=mine)).status_code == 200


async def test_a_rush_is_queued_and_let_in(counter: Counter) -> None:
    trip = counter.world.trip_id
    said = await counter.http.put(
        f"/trips/{trip}/waiting-room", json={"mode": "ON", "admitPerS": 1000}, headers=counter.staff("PARTNER_ADMIN")
    )
    assert said.status_code == 200
    await counter.room.refresh()
    wish = {"seats": ["1A"], "from": "demo:A", "to": "demo:B"}
    away = await counter.post(f"/trips/{trip}/holds", wish, {})
    assert (away.status_code, away.json()["code"], away.headers["Retry-After"]) == (429, "WAITING_ROOM", "1")
    assert f"/v1/trips/{trip}/queue" in away.json()["errors"][0]["detail"]
    place = await counter.http.post(f"/trips/{trip}/queue")
    assert place.status_code == 201 and set(place.json()) == {"queueToken", "position", "admittedAtMs"}
    held = await counter.post(f"/trips/{trip}/holds", wish, {"X-Queue-Token": place.json()["queueToken"]})
    assert held.status_code == 201
    read = await counter.http.get(f"/trips/{trip}/waiting-room", headers=counter.staff())
    assert read.json() == {"tripId": trip, "mode": "ON", "admitPerS": 1000, "queueing": True}
