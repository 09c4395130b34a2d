"""What this field uses for ingest: FastAPI and pydantic on one uvicorn worker (uvloop, httptools), a token looked at, nothing stored.

Known traps: the access log is off; a plain `def` handler would cost a thread a request, so it is `async`; no `response_model`, which would
encode the answer twice; pydantic's core is compiled, so there is nothing to gain in a model with fewer checks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bench.peers.place import Peer, Running, folder, from_pypi, serving, some_port

PACKAGES = ("fastapi==0.165.0", "pydantic==2.14.3", "uvicorn==0.54.0", "httptools", "uvloop")
SERVER = """
import sys
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, Field


class Location(BaseModel):
    latitude: float = Field(ge=-90, le=90)
    longitude: float = Field(ge=-180, le=180)
    accuracy: float | None = Field(None, ge=0)


class Motion(BaseModel):
    speed: float | None = Field(None, ge=0)
    heading: float | None = Field(None, ge=0, le=360)
    altitude: float | None = None


class Status(BaseModel):
    ignition: bool | None = None
    doorOpen: bool | None = None
    passengers: int | None = None
    fuel: float | None = None


class Fix(BaseModel):
    busId: str = Field(max_length=64)
    timestamp: int
    location: Location
    motion: Motion | None = None
    status: Status | None = None
    tripId: str | None = None
    startDate: str | None = None
    seq: int | None = None


async def device(request: Request) -> str:
    said = request.headers.get("authorization", "")
    if not said.startswith("Bearer ") or len(said) < 12:
        raise HTTPException(401)
    return said[7:]


app = FastAPI()


@app.post("/ingest/telemetry", status_code=202)
async def accept(fix: Fix, token: str = Depends(device)):
    return {"accepted": 1, "quarantined": []}


@app.post("/ingest/batch", status_code=202)
async def accept_many(fixes: list[Fix], token: str = Depends(device)):
    return {"accepted": len(fixes), "quarantined": []}


uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, log_level="warning", timeout_keep_alive=75, backlog=4096)
"""


@contextlib.contextmanager
def _start() -> Iterator[Running]:
    python, port = from_pypi("fastapi", *PACKAGES), some_port()
    (folder("fastapi") / "server.py").write_text(SERVER)
    with serving([str(python), str(folder("fastapi") / "server.py"), str(port)], port) as running:
        yield running


def peer() -> Peer:
    from_pypi("fastapi", *PACKAGES)
    return Peer("FastAPI + pydantic", ", ".join(one.replace("==", " ") for one in PACKAGES[:3]), _start, "/ingest/batch")
