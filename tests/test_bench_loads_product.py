"""Every load scenario for a second or two against the whole product: it does what it says, counts what it did, and its verdict holds."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest

from bench.harness.target import Deployment
from bench.loads.city import Soak
from bench.loads.fanout import SlowClient
from bench.loads.ingest import IngestBatch, IngestMqtt, IngestWs, OsmAnd
from bench.loads.onsale import Sold
from bench.loads.reconnect import ReconnectStorm
from bench.loads.replay import Replay
from bench.loads.seats import Booking, Customers, SeatRush
from deploy.servers import MosquittoServer
from tests.loads_share import run
from tests.product import Product


class Remembering(Deployment):
    """The network does not change between two tests: it is asked for once."""

    known: ClassVar[dict[str, Any]] = {}

    def call(self, method: str, path: str, body: object = None, *, key: str = "", token: str | None = None) -> Any:
        if method != "GET" or "/seats" in path or not path.startswith(("/v1/routes", "/v1/trips")):
            return super().call(method, path, body, key=key, token=token)
        if path not in self.known:
            self.known[path] = super().call(method, path)
        return self.known[path]


@pytest.fixture(scope="module")
def target(product: Product) -> Deployment:
    return Remembering(product.base_url, product.token("PARTNER_ADMIN"), where="given")


async def test_gateways_post_batches_and_every_fix_is_answered(target: Deployment) -> None:
    share, wrong = await run(IngestBatch, target, 200, 0.5, buses=20, batch=30)
    assert not wrong and not share.faults
    assert share.counts["accepted"] == share.counts["sent"] == share.offered == 100
    assert len(share.notes["ingest"]) == share.counts["requests"] == 4 and min(share.notes["ingest"]) > 0


async def test_phones_and_sockets_are_acknowledged_fix_by_fix(target: Deployment) -> None:
    phones, wrong = await run(OsmAnd, target, 60, 0.5, buses=10)
    sockets, wrong_too = await run(IngestWs, target, 60, 0.5, buses=10)
    assert not wrong and not wrong_too and not phones.faults and not sockets.faults
    assert phones.counts["accepted"] == sockets.counts["accepted"] == 30
    assert len(phones.notes["ingest"]) == len(sockets.notes["ingest"]) == 30


async def test_a_broker_that_the_product_does_not_read_is_found_out(
    target: Deployment, own_mosquitto: MosquittoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.loads.ingest.SETTLE_S", 0.3)
    there = Remembering(target.url, target.token, where="given", info={"mqttUrl": own_mosquitto.url})
    share, wrong = await run(IngestMqtt, there, 40, 0.5, buses=10)
    assert share.counts["accepted"] == 20 == len(share.notes["ingest"])
    assert share.faults == {"lost": 10} and "no watcher saw one" in wrong[0]


async def test_watchers_hear_of_every_update_while_others_stall(target: Deployment) -> None:
    share, wrong = await run(SlowClient, target, 10, 1.0, watchers=30, stalled=10)
    assert not wrong and not share.faults
    assert share.counts["stalled"] == 10 and share.counts["accepted"] == 10
    assert 30 <= share.counts["delivered"] == len(share.notes["fanout"]) <= 300
    assert min(share.notes["fanout"]) >= min(share.notes["ingest"]) - 0.002  # the whole way, not a part of it


async def test_every_accepted_fix_of_a_soak_is_followed_to_a_watcher_of_its_bus(target: Deployment) -> None:
    share, wrong = await run(Soak, target, 40, 1.0, buses=20, watchers=20, maps=4, fleets=1, reads=0.2, bookings=0.05)
    assert not wrong and not share.faults
    assert share.counts["accepted"] == share.counts["followed"] == 40
    assert share.counts["read"] + share.counts["not there"] == 8 and share.counts["confirmed"] == 2
    assert {"ingest", "age", "age_map", "age_check", "read", "booked"} <= set(share.notes)


async def test_all_come_back_from_a_storm_and_listeners_miss_nothing(target: Deployment) -> None:
    share, wrong = await run(ReconnectStorm, target, 1.0, 2.0, watchers=30, listeners=5, buses=10, guests=20.0)
    assert not wrong and not share.faults
    assert share.counts["cut"] == share.counts["came back"] == 70
    assert len(share.notes["first"]) == 60 and len(share.notes["recovered"]) == 10


async def test_a_rush_leaves_every_seat_as_it_was(target: Deployment) -> None:
    share, wrong = await run(SeatRush, target, 30, 1.0, holds=0.5)
    assert not wrong and not share.faults
    assert share.counts["picked"] + share.counts["taken"] == 30 == len(share.notes["pick"])
    assert share.counts["held"] == len(share.notes["hold"]) > 0 and share.counts["seat messages"] > 0


async def test_seats_that_stay_taken_are_found_out(target: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.loads.seats.SETTLE_S", 0.1)
    shown = Deployment(target.url, target.token, where="given")
    trip = SeatRush().prepare(target, {"trip": "", "seats": 3}, 1, 1)
    body = {"seats": trip["seats"][:2], "from": trip["stops"][0], "to": trip["stops"][1]}
    await asyncio.to_thread(target.call, "POST", f"/v1/trips/{trip['trip_id']}/holds", body, token="")
    (found,) = await asyncio.to_thread(SeatRush().verify, shown, trip, {"picked": 1})
    assert "2 seats" in found


async def test_bookings_are_confirmed_and_their_seats_are_taken(target: Deployment) -> None:
    share, wrong = await run(Booking, target, 5, 1.0, trips=1)
    assert not wrong and not share.faults
    assert share.counts["confirmed"] == share.counts["held"] == 5 == len(share.notes["booked"])
    assert min(share.notes["booked"]) > max(min(share.notes[call]) for call in ("hold", "book", "initiate", "confirm"))
    sold: list[Sold] = share.data
    (lost,) = await asyncio.to_thread(Booking().verify, target, sold, {"held": 6, "confirmed": 6})
    assert "6 bookings were confirmed, and 5 seats are taken" in lost


async def test_a_guest_for_whom_no_seat_is_left_is_a_fault(target: Deployment) -> None:
    share, _ = await run(Booking, target, 1, 0.1, trips=1)
    customers = Customers(share, None, [])  # type: ignore[arg-type]
    customers.come(0.0)
    assert share.faults == {"nothing left to sell": 1}


async def test_a_replayed_backlog_stands_in_the_record_once(target: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    share, wrong = await run(Replay, target, 60, 0.5, buses=5, span=60, interval=5)
    assert not wrong and not share.faults and share.counts["accepted"] == 30
    monkeypatch.setattr("bench.loads.replay.RECORD_LIMIT_S", 0.0)
    (lost,) = await asyncio.to_thread(Replay().verify, target, share.data, {"sent": 31, "accepted": 31})
    assert "31 fixes were accepted, and the record has 30" in lost
