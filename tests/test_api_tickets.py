"""Tickets and boarding over HTTP: who may, in what form, and what a driver sees at the door."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api import tickets as api_tickets
from api.app import make_app
from api.auth import Tokens
from api.parts import BookingParts, Parts
from api.ticket_keys import verified
from engine.booking import tickets
from engine.booking.rates import Rates
from engine.errors import Invalid
from engine.live.hub import Hub
from engine.live.table import LiveTable
from engine.office.accounts import Device
from engine.settings import Settings
from tests.booking_world import OTHER, PARTNER, SECRET
from tests.test_booking_boarding import House

CHECKOUT = Path(__file__).resolve().parent.parent


class Registry:
    """One device, with the token `handheld`."""

    def by_token(self, token: str | bytes) -> Device | None:
        return Device("door-7", PARTNER, "TOKEN", {"BUS-1": "demo"}) if token == "handheld" else None


class Desk:
    """The calls of tickets and boarding on a world of one trip."""

    def __init__(self, house: House) -> None:
        self.house, self.world = house, house.world
        settings, table = Settings(secret_key=SECRET), LiveTable()
        self.tokens = Tokens(settings, house.clock)
        world = house.world
        none: dict[str, Any] = dict.fromkeys(BookingParts.__struct_fields__)
        shells = {"pool": world.pool, "catalogue": world.catalogue, "desk": world.desk, "tokens": world.tokens, "boarding": house.boarding}
        booking = BookingParts(**(none | shells | {"rates": Rates({}, house.clock)}))
        parts = Parts(
            settings=settings, clock=house.clock, table=table, hub=Hub(table, settings, house.clock), tokens=self.tokens,
            booking=booking, registry=Registry(),
        )  # type: ignore[arg-type]  # fmt: skip
        app = make_app(parts, api_tickets.ROUTERS)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://desk/v1")  # type: ignore[arg-type]

    def staff(self, role: str = "DRIVER", partner: str = PARTNER) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens.mint('nadia', role, partner_id=partner)}"}

    def holder(self, shown: Any) -> dict[str, str]:
        return {"X-Hold-Token": self.world.tokens.mint(shown["lead"])}


@pytest.fixture
async def desk(database_url: str) -> AsyncIterator[Desk]:
    house = await House.make(database_url)
    made = Desk(house)
    yield made
    await made.http.aclose()
    await house.world.close()


async def test_the_tickets_of_a_booking_as_json_pdf_png_and_svg(desk: Desk) -> None:
    shown = await desk.world.confirmed("1A", "1B")
    path, mine = f"/bookings/{shown['ref']}/ticket", desk.holder(shown)
    said = (await desk.http.get(path, headers=mine)).raise_for_status().json()
    assert said["ref"] == shown["ref"]
    assert [(one["seat"], one["passenger"]) for one in said["tickets"]] == [("1A", "Amal Benaïssa"), ("1B", "Amal Benaïssa")]
    first = said["tickets"][0]
    assert {"qr", "validFrom", "validTo", "tripId", "from", "to", "operator"} <= first.keys()
    for kind, start in (("application/pdf", b"%PDF"), ("image/png", b"\x89PNG"), ("image/svg+xml", b"<svg")):
        answer = await desk.http.get(path, headers=mine | {"Accept": kind})
        assert answer.headers["content-type"].startswith(kind) and answer.content.startswith(start)
        again = await desk.http.get(path, headers=mine | {"Accept": kind, "If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
    one = await desk.http.get(path, params={"seat": "1B"}, headers=mine)
    assert [ticket["seat"] for ticket in one.json()["tickets"]] == ["1B"]
    assert (await desk.http.get(path, params={"seat": "9Z"}, headers=mine)).status_code == 404


async def test_a_picture_of_too_many_tickets_is_refused_and_a_pdf_is_not(desk: Desk) -> None:
    shown = await desk.world.confirmed("1A", "1B", "1C", "1D", "2A", "2B", "2C", who=desk.world.agent())
    path, mine = f"/bookings/{shown['ref']}/ticket", desk.staff("AGENT")
    refused = await desk.http.get(path, headers=mine | {"Accept": "image/png"})
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (400, "TOO_MANY_SEATS")
    assert (await desk.http.get(path, headers=mine | {"Accept": "application/pdf"})).content.count(b"/Type /Page\n") == 7


async def test_a_ticket_is_its_holders_and_only_after_payment(desk: Desk) -> None:
    waiting = await desk.world.booked("2A")
    answer = await desk.http.get(f"/bookings/{waiting['ref']}/ticket", headers=desk.holder(waiting))
    assert (answer.status_code, answer.json()["code"]) == (409, "NOT_CONFIRMED")
    shown = await desk.world.confirmed("1A")
    path = f"/bookings/{shown['ref']}/ticket"
    assert (await desk.http.get(path)).status_code == 404
    assert (await desk.http.get(path, headers=desk.holder(waiting))).status_code == 404
    assert (await desk.http.get(path, headers=desk.staff("AGENT"))).status_code == 200
    assert (await desk.http.get(path, headers=desk.staff("AGENT", OTHER))).status_code == 404
    assert (await desk.http.get("/bookings/ZZZZZZ/ticket")).status_code == 404


async def test_verifying_tells_strangers_no_names_and_staff_who_it_is(desk: Desk) -> None:
    shown, (mine,) = await desk.house.sold("1A")
    body = {"qr": mine.qr, "tripId": desk.world.trip_id}
    public = (await desk.http.post("/tickets/verify", json=body)).raise_for_status().json()
    assert (public["result"], public["seat"], public["passenger"], public["ref"]) == ("VALID", "1A", None, None)
    staff = (await desk.http.post("/tickets/verify", json=body, headers=desk.staff())).json()
    assert (staff["passenger"], staff["ref"]) == ("Amal Benaïssa", shown["ref"])
    others = (await desk.http.post("/tickets/verify", json=body, headers=desk.staff(partner=OTHER))).json()
    assert others["passenger"] is None
    for changed, code in (
        ({"qr": "x"}, "MALFORMED"), ({"tripId": "demo:none:20260101"}, "WRONG_TRIP"), ({"qr": mine.qr[:-1] + ("1" if mine.qr[-1] == "0" else "0")}, "ALTERED"),
    ):  # fmt: skip
        said = (await desk.http.post("/tickets/verify", json=body | changed)).raise_for_status().json()
        assert said["result"] == code or (code == "ALTERED" and said["result"] == "MALFORMED")
    for bad in ({}, {"qr": ""}, {"qr": 5}, {"qr": "x" * 5_000}):
        assert (await desk.http.post("/tickets/verify", json=bad)).status_code == 400


async def test_the_keys_are_public_and_a_client_that_has_them_gets_304(desk: Desk) -> None:
    answer = (await desk.http.get("/tickets/keys")).raise_for_status()
    assert answer.json()["keys"][0].keys() >= {"keyId", "alg", "publicKey"}
    assert "public" in answer.headers["cache-control"]
    assert (await desk.http.get("/tickets/keys", headers={"If-None-Match": answer.headers["etag"]})).status_code == 304
    await desk.house.issuer.rotate()
    assert (await desk.http.get("/tickets/keys")).headers["etag"] != answer.headers["etag"]


async def test_scans_are_for_the_operators_people_and_devices(desk: Desk) -> None:
    _, (mine, hers) = await desk.house.sold("1A", "1B")
    body = {"qr": mine.qr, "tripId": desk.world.trip_id}
    assert (await desk.http.post("/tickets/scans", json=body)).status_code == 401
    assert (await desk.http.post("/tickets/scans", json=body, headers=desk.staff("CUSTOMER"))).status_code == 403
    foreign = (await desk.http.post("/tickets/scans", json=body, headers=desk.staff(partner=OTHER))).json()
    assert (foreign["result"], foreign["items"][0]["passenger"]) == ("UNKNOWN_TICKET", None)
    said = (await desk.http.post("/tickets/scans", json=body, headers=desk.staff())).raise_for_status().json()
    assert (said["result"], said["items"][0]["passenger"], said["boardedBy"]) == ("BOARDED", "Amal Benaïssa", "nadia")
    device = {"Authorization": "Bearer handheld"}
    again = (await desk.http.post("/tickets/scans", json=body, headers=device)).json()
    assert (again["result"], again["boardedBy"], again["boardedAt"]) == ("ALREADY_BOARDED", "nadia", said["boardedAt"])
    now = desk.house.clock.now_ms()
    batch = {
        "deviceTimeMs": now,
        "tripId": desk.world.trip_id,
        "scans": [{"qr": hers.qr, "seq": 1, "scannedAtMs": now}, {"qr": "?", "seq": 2}],
    }
    for _ in range(2):
        done = (await desk.http.post("/tickets/scans", json=batch, headers=device)).raise_for_status().json()
        assert [(one["seq"], one["result"]) for one in done["items"]] == [(1, "BOARDED"), (2, "MALFORMED")]
    assert await desk.world.value("select actor from ticket.scan where seq = 1") == "device:door-7"
    for bad in ({}, {"qr": "x", "scans": [{"qr": "x"}]}, {"scans": []}, {"qr": "x", "deviceTimeMs": -1}, {"qr": "x", "deviceId": "a b"}):
        assert (await desk.http.post("/tickets/scans", json=bad, headers=device)).status_code == 400


async def test_the_manifest_as_json_csv_and_a_page_for_staff_alone(desk: Desk) -> None:
    await desk.house.sold("1A")
    path = f"/trips/{desk.world.trip_id}/manifest"
    assert (await desk.http.get(path)).status_code == 401
    assert (await desk.http.get(path, headers=desk.staff(partner=OTHER))).status_code == 404
    said = (await desk.http.get(path, headers=desk.staff())).raise_for_status().json()
    assert [(one["seat"], one["passenger"], one["from"]) for one in said["passengers"]] == [("1A", "Amal Benaïssa", "Stop A")]
    sheet = await desk.http.get(path, headers=desk.staff() | {"Accept": "text/csv"})
    assert sheet.text.splitlines()[1].startswith("1A,Benaïssa,Amal")
    page = await desk.http.get(path, headers=desk.staff() | {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html") and "Amal Benaïssa" in page.text
    assert "<script" not in page.text and "style=" not in page.text, "the content security policy allows neither"
    assert page.headers["cache-control"] == "private, no-store"


async def test_check_in_and_a_trip_that_starts_and_ends(desk: Desk) -> None:
    desk.house.clock.by_ms = 60_000
    shown = await desk.world.confirmed("1A")
    path = f"/bookings/{shown['ref']}/check-in"
    assert (await desk.http.post(path)).status_code == 404
    said = (await desk.http.post(path, headers=desk.holder(shown))).raise_for_status().json()
    assert said["status"] == "CHECKED_IN" and said["passengers"][0]["status"] == "CHECKED_IN"
    trip = f"/trips/{desk.world.trip_id}"
    assert (await desk.http.post(f"{trip}/start", headers=desk.staff("AGENT"))).status_code == 403
    assert (await desk.http.post(f"{trip}/start", headers=desk.staff(partner=OTHER))).status_code == 404
    early = await desk.http.post(f"{trip}/end", headers=desk.staff())
    assert (early.status_code, early.json()["code"]) == (409, "WRONG_STATE")
    assert (await desk.http.post(f"{trip}/start", headers=desk.staff())).json()["status"] == "STARTED"
    assert (await desk.http.post(f"{trip}/end", headers=desk.staff())).json()["status"] == "COMPLETED"


async def test_a_ticket_is_verified_from_files_alone(desk: Desk, tmp_path: Path) -> None:
    shown, (mine,) = await desk.house.sold("1A")
    keys = tmp_path / "keys.json"
    keys.write_bytes((await desk.http.get("/tickets/keys")).content)
    await desk.house.cancel(shown)
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes((await desk.http.get(f"/trips/{desk.world.trip_id}/manifest", headers=desk.staff())).content)

    def told(*more: object, qr: str = mine.qr) -> tuple[int, str]:
        command = [sys.executable, "-m", "api.cli", "ticket", "verify", qr, "--keys", str(keys), *map(str, more)]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, check=False)
        return done.returncode, json.loads(done.stdout)["result"] if done.stdout else done.stderr

    assert told("--trip", desk.world.trip_id) == (0, "VALID")
    assert told("--trip", desk.world.trip_id, "--revoked", manifest) == (1, "REVOKED")
    clock, more = desk.house.clock, {"keys": keys, "trip_id": None, "revoked": None}
    assert verified(mine.qr, clock, **(more | {"trip_id": "demo:x:20260101"}), at=None)["result"] == "WRONG_TRIP"
    assert verified(mine.qr, clock, **more, at="2036-01-01T00:00:00Z")["result"] == "EXPIRED"
    assert verified(mine.qr, clock, **more, at="1700000000000")["result"] == "NOT_YET_VALID"
    assert verified(mine.qr, clock, **(more | {"keys": manifest}), at=None)["result"] == "VALID"
    assert verified(tickets.base45(bytes([1]) + bytes(103)), clock, **more, at=None)["result"] == "UNKNOWN_KEY"
    for bad in ({"keys": tmp_path / "none.json"}, {"revoked": keys.parent}):
        with pytest.raises(Invalid):
            verified(mine.qr, clock, **(more | bad), at=None)
    with pytest.raises(Invalid):
        verified(mine.qr, clock, **more, at="2036-01-01T00:00:00")


async def test_keys_are_listed_and_rotated_from_the_command_line(desk: Desk, database_url: str) -> None:
    from api.ticket_keys import keys

    settings = Settings(database_url=database_url)
    assert [key.key_id for key in (await keys(settings, desk.house.clock, SECRET, rotate=False)).keys] == [1]
    made = (await keys(settings, desk.house.clock, SECRET, rotate=True)).keys
    assert [(key.key_id, key.retired_at is None) for key in made] == [(1, False), (2, True)]
