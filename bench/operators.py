"""The other side of the desk in the torture run: an operator who swaps buses under open sales, and a conductor who sells from leased seats."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from typing import Any

from bench import sold
from bench.buyers import Buyer, Log, Unanswered

LAYOUTS = ("backwards", "short", "plain", "plain")


class Operator(Buyer):
    """Swaps a bus every other second, and sells at a counter between."""

    def __init__(
        self, ports: Sequence[int], log: Log, chance: random.Random, trips: int, seats: Sequence[str], stops: int, bearer: str
    ) -> None:
        super().__init__(ports, log, chance, trips, seats, stops)
        self.bearer = bearer
        self.seq = 0
        self.cancels_at_s = float("inf")  # monotonic: when the last trip is cancelled

    async def live(self) -> None:
        while not self.over:
            with contextlib.suppress(Unanswered):
                if time.monotonic() > self.cancels_at_s:
                    await self.cancel_trip(self.trips)
                    self.cancels_at_s = float("inf")
                await self.swap()
                await self.counter()
                if self.chance.random() < 0.1:
                    await self.give_back()
            await asyncio.sleep(0.5 + self.chance.random())
        for line in self.lines:
            line.close()

    async def swap(self) -> None:
        """Another bus, with whoever has no seat in it moved to a later trip or given their money back."""
        path = f"/v1/trips/{sold.trip_id(self.chance.randint(1, self.trips))}/swap-bus"
        plan = await self.ask("swap plan", "POST", path, {"plan": True, "layoutId": self.chance.choice(LAYOUTS)}, bearer=self.bearer)
        if plan.status == 200:
            body = {"planId": plan.body["planId"], "overflow": self.chance.choice(("REFUND", "REBOOK"))}
            await self.ask("swap", "POST", path, body, key=self.key(), bearer=self.bearer)

    async def give_back(self) -> None:
        """A little of somebody's money, out of goodwill; often for what has none left."""
        if self.log.confirmed:
            body = {
                "bookingRef": self.chance.choice(sorted(self.log.confirmed)),
                "amount": {"amount": 100, "currency": "DZD"},
                "reason": "goodwill",
            }
            await self.ask("refund", "POST", "/v1/payments/refund", body, key=self.key(), bearer=self.bearer)

    async def cancel_trip(self, trip: int) -> None:
        """A trip that will not run, with all that was sold for it."""
        path = f"/v1/trips/{sold.trip_id(trip)}/cancel"
        await self.ask("cancel trip", "POST", path, {"reason": "broken down"}, key=self.key(), bearer=self.bearer)

    async def counter(self) -> None:
        """A device leases two seats, sells one of them offline, sends the sale twice and lets the lease go."""
        trip, wish = self.wish()
        body = {"tripId": sold.trip_id(trip), "seats": wish["seats"][:2], "from": wish["from"], "to": wish["to"], "deviceId": "counter-1"}
        lease = await self.ask("lease", "POST", "/v1/pos/leases", body, key=self.key(), bearer=self.bearer)
        if lease.status != 201:
            return
        seat = lease.body["seats"][0]
        self.seq += 1
        now_ms = time.time_ns() // 1_000_000
        sale: dict[str, Any] = {
            "seq": self.seq, "tripId": sold.trip_id(trip), "seat": seat["seat"], "from": wish["from"], "to": wish["to"], "soldAtMs": now_ms,
            "amount": seat["price"], "currency": "DZD", "method": "CASH", "passenger": {"firstName": "Nadia", "lastName": "Cherif"},
        }  # fmt: skip
        batch = {"deviceId": "counter-1", "deviceTimeMs": now_ms, "sales": [sale]}
        for _ in range(2):
            await self.ask("sync", "POST", "/v1/pos/sync", batch, key=self.key(), bearer=self.bearer)
        await self.ask("lease over", "DELETE", f"/v1/pos/leases/{lease.body['id']}?deviceId=counter-1", bearer=self.bearer)
