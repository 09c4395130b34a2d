"""Devices that send one fix a request over HTTP, each with its own token: the door, the commonest way in.

A bus drives straight ahead at 10 m/s; its fixes carry the moment they were meant to be sent at. What the product does with them behind its
answer (tracking, publishing, history) costs it CPU too: `cost.accepted` is all of it, per fix.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from bench.harness.calls import CONNECTIONS, Calls, opening, whole
from bench.harness.devices import SPEED_MPS, fix, register
from bench.harness.scenario import Measure, Option, Scenario, Share, Target


class IngestHttp(Scenario):
    name = "ingest-http"
    summary = "devices that send one fix a request, each with its own token"
    unit = "fixes"
    rate = 500.0
    options = (
        Option("buses", 1000, "buses, each with a device of its own; a bus sends every buses/rate seconds"),
        CONNECTIONS,
    )
    measures = (Measure("answer", "from a fix's intended moment to its 202"),)
    needs: ClassVar[frozenset[str]] = frozenset({"token"})

    def prepare(self, target: Target, options: Mapping[str, Any], rate: float, seed: int) -> Any:
        return {"tokens": register(target, [f"load-{number}" for number in range(options["buses"])])}

    async def drive(self, share: Share) -> None:
        tokens = sorted(share.data["tokens"].items())[share.number :: share.of]
        calls = await Calls.open(share, max(1, min(share.options["connections"], len(tokens))))
        buses = [(bus_id, opening("POST", "/ingest/telemetry", host=calls.host, token=token)) for bus_id, token in tokens]
        began_s, turn = await share.begun(), 0

        def heard(status: int, body: bytes) -> None:
            if status != 202:
                share.fault(str(status))
            elif b'"accepted":1' in body:
                share.count("accepted")
            else:
                share.fault("quarantined: " + json.loads(body)["quarantined"][0]["reason"])

        async for moment in share.moments():
            at = turn % len(buses)
            bus_id, head = buses[at]
            body = fix(bus_id, at, share.epoch_ms(moment), (moment - began_s) * SPEED_MPS)
            calls.send(moment, whole(head, body), "answer", heard)
            turn += 1
        await calls.rest()
