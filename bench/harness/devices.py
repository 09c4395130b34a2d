"""Devices for the buses of a run, registered the way a fleet is: in bulk, by an operator's admin; and the simplest fix that they can send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bench.harness.scenario import Target

AT_ONCE: Final = 2000
METRES_PER_DEGREE: Final = 111_195
SPEED_MPS: Final = 10.0


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


def fix(bus_id: str, lane: int, at_ms: int, along_m: float) -> bytes:
    """One telemetry object of a bus that drives east at 10 m/s; each `lane` is a parallel of its own."""
    lat, lon = 36.70 + lane % 997 / 5000, 3.05 + along_m / METRES_PER_DEGREE
    return (
        f'{{"busId":"{bus_id}","timestamp":{at_ms},"location":{{"latitude":{lat:.6f},"longitude":{lon:.6f},"accuracy":5.0}},'
        f'"motion":{{"speed":{SPEED_MPS * 3.6:.1f},"heading":90.0}}}}'
    ).encode()
