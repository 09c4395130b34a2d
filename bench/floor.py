"""A floor for ingest: a bare ASGI application on uvicorn that reads a body and accepts it unread.

python -m bench.floor PORT          (other benches start it for themselves)
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

ANSWER = b'{"accepted":1,"quarantined":[]}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]


async def accept(scope: dict[str, Any], receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 202, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


def main() -> None:
    uvicorn.run(
        accept, port=int(sys.argv[1]), loop="uvloop", http="httptools", lifespan="off", access_log=False, log_level="warning",
        timeout_keep_alive=75, backlog=4096,
    )  # fmt: skip


if __name__ == "__main__":
    main()
