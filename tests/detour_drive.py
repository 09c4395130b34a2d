"""A simulated bus that really drives a detour through the session's product, and everything that three kinds of listeners hear meanwhile.

It takes more than a minute of real time (off route is said after 45 s), so it runs in a thread beside the other tests of the product: started
with the product where the session has a test that asks for it, joined by that test.
"""

from __future__ import annotations

import json
import random
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from bench.driving import Driver
from bench.receiver import Truth
from bench.scenario_roads import Detour, Driven, Happening
from engine.tracking.timetable import TripInstance
from ingest.gtfs import read_feed

if TYPE_CHECKING:
    from tests.product import Product

BUS = "DETOUR-1"
EVERY_S, BEFORE_S, AFTER_S, GRACE_S = 2.0, 20.0, 22.0, 15.0
BEFORE_M = 120.0  # driven before it leaves its line: who is first heard of at a stop is not known to have begun its trip
AWAY_MS = 52_000  # off route is said after 45 s
DETOUR = Detour(length_m=590.0, aside_m=130.0, speed_mps=12.0)  # away for 58 s


class DetourDrive(threading.Thread):
    """Join it, then read what was heard. Times are seconds of the wall clock."""

    def __init__(self, product: Product) -> None:
        super().__init__(name="a bus on a detour", daemon=True)
        self.product = product
        self.http = httpx.Client(base_url=product.base_url, timeout=20)
        self.fault: BaseException | None = None
        self.trip_id = ""
        self.away_s = self.back_s = 0.0  # when it was truly 60 m from its line, and when it was back on it
        self.worst_m = 0
        self.managers: list[tuple[float, dict[str, Any]]] = []  # pushes of incidents:demo
        self.passengers: list[tuple[float, dict[str, Any]]] = []  # of the trip's own channel
        self.alerts: list[tuple[float, list[dict[str, Any]]]] = []  # of GTFS-Realtime, those of the trip
        self._over = threading.Event()

    def run(self) -> None:
        try:
            self._run()
        except BaseException as fault:
            self.fault = fault  # whoever joins raises it
        finally:
            self._over.set()

    def _run(self) -> None:
        driven, happening = self._plan()
        instance = driven.instance
        self.trip_id = f"demo:{instance.trip.trip_id}:{instance.start_date}"
        self.worst_m = happening.facts["maxOffsetM"]
        made = self.http.post(
            "/v1/admin/devices", json={"busIds": [BUS], "feedId": "demo", "partnerId": "demo"}, headers=self.product.admin
        ).json()
        bearer = {"Authorization": f"Bearer {made['token']}"}
        while self.http.post("/ingest/telemetry", json=[], headers=bearer).status_code != 202:
            time.sleep(0.2)
        manager = self.product.token("PARTNER_ADMIN")
        threading.Thread(target=self._read_alerts, daemon=True).start()
        ready = [self._listen("incidents:demo", self.managers, manager), self._listen(f"trip:{self.trip_id}", self.passengers, None)]
        assert all(each.wait(30) for each in ready), "nobody may listen"
        begins_s = time.time() + 0.5
        from_ms = happening.from_ms - BEFORE_S * 1000
        self.away_s = begins_s + (happening.facts["awayFromMs"] - from_ms) / 1000
        self.back_s = begins_s + (happening.to_ms - from_ms) / 1000
        count = round(((happening.to_ms - from_ms) / 1000 + AFTER_S) / EVERY_S)
        for n in range(count):
            time.sleep(max(0.0, begins_s + n * EVERY_S - time.time()))
            if self.is_over():
                return
            truth = driven.truth(round(from_ms + n * EVERY_S * 1000))
            answer = self.http.post("/ingest/telemetry", json=said(truth, begins_s + n * EVERY_S, instance), headers=bearer)
            assert answer.status_code == 202, answer.text
        limit = time.time() + GRACE_S
        while time.time() < limit and not self.is_over():
            time.sleep(0.2)

    def is_over(self) -> bool:
        """Everybody has heard the end of it."""
        return self.closed(self.managers) and self.closed(self.passengers) and bool(self.alerts) and not self.alerts[-1][1]

    def _plan(self) -> tuple[Driven, Happening]:
        """A trip of about now that no simulated bus drives, with a place where another way is truly another way."""
        timetable = read_feed(self.product.feed)
        taken = {bus["tripId"] for bus in self.product.get("/v1/buses/locations", bbox="-180,-85,180,85", limit=100)["items"]}
        now_ms, today = round(time.time() * 1000), datetime.now(UTC).date()
        begun = [
            each
            for day in (today, today - timedelta(days=1))
            for each in timetable.instances_on(day)
            if each.departure_ms(0) < now_ms - 600_000 and len(each.trip.arrival_s) >= 8 and each.trip.pattern.shape.length_m < 25_000
        ]
        begun.sort(
            key=lambda each: (abs(each.arrival_ms(-1) - now_ms - 900_000), each.trip.trip_id)
        )  # at night the last ones of the evening
        for instance in begun[:200]:
            if f"demo:{instance.trip.trip_id}:{instance.start_date}" in taken:
                continue
            plain = Driven.of(BUS, Driver(1).trip(instance))
            driven = DETOUR.strike(plain, random.Random(instance.trip.trip_id))
            if driven is not plain and shows(driven, driven.happened[0]):
                return driven, driven.happened[0]
        raise AssertionError("no trip of this hour has room for a detour")

    def _listen(self, channel: str, heard: list[tuple[float, dict[str, Any]]], token: str | None) -> threading.Event:
        """Set when it is subscribed; a thread then listens to the end."""
        ready = threading.Event()
        threading.Thread(target=self._hear, args=(channel, heard, token, ready), daemon=True).start()
        return ready

    def _hear(self, channel: str, heard: list[tuple[float, dict[str, Any]]], token: str | None, ready: threading.Event) -> None:
        with connect(self.product.base_url.replace("http", "ws") + "/ws", compression=None) as ws:
            if token is not None:
                ws.send(json.dumps({"id": 0, "op": "auth", "token": token}))
            ws.send(json.dumps({"id": 1, "op": "sub", "ch": channel}))
            while not self._over.is_set():
                try:
                    got = json.loads(ws.recv(timeout=1.0))
                except TimeoutError:
                    continue
                except ConnectionClosed:
                    return
                if got.get("id") == 1 and got.get("ok"):
                    ready.set()
                for push in got["d"] if got.get("t") == "batch" else [got]:
                    bodies = push["d"] if isinstance(push.get("d"), list) else [push.get("d")]
                    heard.extend((time.time(), body) for body in bodies if isinstance(body, dict) and "incidentId" in body)

    def _read_alerts(self) -> None:
        http = httpx.Client(base_url=self.product.base_url, timeout=20)
        trip = self.trip_id.split(":")
        while not self._over.is_set():
            try:
                entities = http.get("/gtfs-rt/alerts.json").json().get("entity", [])
            except httpx.TransportError:
                continue
            found = [
                entity
                for entity in entities
                if any(each.get("trip", {}).get("tripId") == trip[1] for each in entity["alert"].get("informedEntity", []))
            ]
            self.alerts.append((time.time(), found))
            self._over.wait(1.0)

    def of(self, heard: list[tuple[float, dict[str, Any]]]) -> list[tuple[float, dict[str, Any]]]:
        """What was heard of this drive being off route."""
        return [(at_s, body) for at_s, body in list(heard) if body["kind"] == "OFF_ROUTE" and body["tripId"] == self.trip_id]

    def closed(self, heard: list[tuple[float, dict[str, Any]]]) -> bool:
        return any(body["closedAt"] for _, body in self.of(heard))


def shows(driven: Driven, detour: Happening) -> bool:
    """It is under way before, misses a stop meanwhile, stays away for as long as it takes to say so, and so near that it is a MINOR one."""
    facts = detour.facts
    if not facts["stopsMissed"] or "awayFromMs" not in facts or facts["awayToMs"] - facts["awayFromMs"] < AWAY_MS:
        return False
    before_m = driven.truth(detour.from_ms).along_m - driven.truth(detour.from_ms - round(BEFORE_S * 1000)).along_m
    return before_m > BEFORE_M and facts["maxOffsetM"] < 190


def said(truth: Truth, at_s: float, instance: TripInstance) -> dict[str, Any]:
    return {
        "busId": BUS,
        "timestamp": round(at_s * 1000),
        "location": {"latitude": round(truth.lat, 6), "longitude": round(truth.lon, 6), "accuracy": 5},
        "motion": {"speed": round(truth.speed_mps * 3.6, 1), "heading": round(truth.bearing_deg, 1)},
        "tripId": instance.trip.trip_id,
        "startDate": instance.start_date,
    }
