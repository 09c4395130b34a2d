"""The benches' own instruments: CPU of process trees, and watchers that read the clock right."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from bench.cost import Meter, parts_of, pids_of, tree
from bench.load import child, percentile


def test_the_cpu_of_a_process_and_of_its_children_is_charged_to_their_part() -> None:
    burn = "import os, time\nfor _ in range(2):\n    os.fork()\nwhile sum(os.times()[:2]) < 0.3: pass\nprint(flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            meter = Meter({"engine": process.pid, "simulator": os.getpid()})
            meter.start()
            assert process.stdout is not None
            for _ in range(4):
                process.stdout.readline()
            assert len(tree([process.pid])) == 4
            assert meter.stop()["timepoint"] == pytest.approx(1.2, abs=0.4)
        finally:
            os.killpg(process.pid, 9)


def test_servers_the_supervisor_and_the_simulator_are_not_the_engine() -> None:
    with pytest.raises(ValueError, match="engine"):
        parts_of({"redis": 1, "simulator": 2, "supervisor": 3})
    assert pids_of("engine=7,redis=9", {}) == {"engine": 7, "redis": 9}
    assert pids_of("7", {}) == {"engine0": 7}
    assert pids_of(None, {"pids": {"engine": 5}}) == {"engine": 5}


def test_percentiles_of_nothing_are_no_number() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0
    assert percentile([], 0.5) != percentile([], 0.5)


async def test_watchers_subscribe_and_measure_the_age_of_single_and_batched_positions() -> None:
    from websockets.asyncio.server import ServerConnection, serve

    asked: list[dict[str, str]] = []
    begun, read = asyncio.Event(), asyncio.Semaphore(0)

    def pos(age_ms: float) -> dict[str, object]:
        return {
            "ch": "x",
            "o": 1,
            "t": "pos",
            "d": {"busId": "B", "at": datetime.fromtimestamp(time.time() - age_ms / 1000, UTC).isoformat()},
        }

    async def engine(socket: ServerConnection) -> None:
        async for text in socket:
            said = json.loads(text)
            asked.append(said)
            if said["op"] == "sub":
                await socket.send(json.dumps({"id": 1, "ok": True, "e": "e", "o": 0}, separators=(",", ":")))
                await begun.wait()
                if said["ch"].startswith("bus:"):
                    await socket.send(json.dumps(pos(5000)))
                    await socket.send(json.dumps({"ch": "x", "o": 1, "t": "snapshot", "d": []}))
                else:
                    await socket.send(json.dumps({"t": "batch", "d": [pos(9000)] * 300}))  # a long frame
                await (await socket.ping())  # answered after what came before it
                read.release()

    async with serve(engine, "127.0.0.1", 0, subprotocols=["timepoint.v1.json"]) as server:  # type: ignore[list-item]
        port = next(iter(server.sockets)).getsockname()[1]
        async with child("bench.watchers") as watchers:
            await watchers.tell(json.dumps({"url": f"http://127.0.0.1:{port}", "channels": ["bus:B", "fleet:demo"], "token": "boss"}))
            assert await watchers.said() == {"ready": 2}
            await watchers.tell("begin")
            assert await watchers.said() == {"begun": True}
            begun.set()
            for _ in range(2):
                await asyncio.wait_for(read.acquire(), 30)
            await watchers.tell("end")
            heard = await watchers.said()
    assert {"op": "auth", "token": "boss"} in asked
    assert len(heard["ages"]["bus"]) == 1 and 4900 < heard["ages"]["bus"][0] < 15_000
    assert len(heard["ages"]["fleet"]) == 300 and min(heard["ages"]["fleet"]) > 8900
