"""Live sockets over the real server, the real Redis and a stranger's client."""

from __future__ import annotations

from tests.live_house import ask, hear, house, position


async def test_a_subscriber_of_a_bus_gets_its_snapshot_and_then_what_the_area_says(redis_url: str) -> None:
    async with house(redis_url) as h:
        await h.owner.say(position("17"))
        async with h.connect() as ws:
            await ask(ws, id=1, op="sub", ch="bus:17")
            reply = await hear(ws)
            assert (reply["id"], reply["ok"], reply["recovered"]) == (1, True, False)
            snapshot = await hear(ws)
            assert snapshot["t"] == "snapshot" and snapshot["ch"] == "bus:17" and [d["busId"] for d in snapshot["d"]] == ["17"]
            n = await h.owner.say(position("17", lat=36.76))
            pushed = await hear(ws)
            assert (pushed["ch"], pushed["o"], pushed["t"], pushed["d"]["lat"]) == ("bus:17", n, "pos", 36.76)
            assert pushed["d"]["tripId"] == "demo:t1:20260216" and pushed["d"]["at"] == "2026-02-16T14:05:09.250Z"
