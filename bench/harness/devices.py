"""Devices for the buses of a run, registered the way a fleet is: in bulk, by an operator's admin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bench.harness.scenario import Target

AT_ONCE: Final = 2000


def register(target: Target, bus_ids: Sequence[str]) -> dict[str, str]:
    """Bus id -> token of a new device. Raises CallFailed."""
    tokens: dict[str, str] = {}
    for begin in range(0, len(bus_ids), AT_ONCE):
        wanted = [{"busId": bus_id, "name": bus_id} for bus_id in bus_ids[begin : begin + AT_ONCE]]
        answer = target.call("POST", "/v1/admin/devices/bulk", {"devices": wanted})
        tokens.update((item["busId"], item["token"]) for item in answer["items"])
    return tokens


def gateway(target: Target, bus_ids: Sequence[str]) -> str:
    """The token of one new device that may send for all of them; the buses exist. Raises CallFailed."""
    body = {"busIds": list(bus_ids), "kind": "GATEWAY", "name": "bench gateway"}
    token: str = target.call("POST", "/v1/admin/devices", body)["token"]
    return token
