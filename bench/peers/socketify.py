"""uWebSockets, C++, through PyPI's `socketify`: its own topic tree sends; Python hears a handshake and a publish.

Known traps: compression off; `idle_timeout` 0 and no automatic pings, for they would count; a publish leaves with the loop's next turn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bench.peers.place import Peer, Running, folder, from_pypi, serving, some_port

VERSION = "0.0.31"
SERVER = """
import sys
from socketify import App, AppListenOptions, CompressOptions, OpCode

app = App()

async def publish(response, request):
    said = await response.get_data()
    app.publish("crowd", said.getvalue(), OpCode.TEXT, False)
    response.end("ok")

app.post("/pub", publish)
app.ws("/*", {
    "compression": CompressOptions.DISABLED, "idle_timeout": 0, "send_pings_automatically": False, "max_lifetime": 0,
    "max_backpressure": 1024 * 1024, "open": lambda ws: ws.subscribe("crowd"), "message": lambda ws, message, code: None,
})
app.listen(AppListenOptions(port=int(sys.argv[1]), host="127.0.0.1"), lambda config: None)
app.run()
"""


@contextlib.contextmanager
def _start() -> Iterator[Running]:
    python, port = from_pypi("socketify", f"socketify=={VERSION}"), some_port()
    (folder("socketify") / "server.py").write_text(SERVER)
    with serving([str(python), str(folder("socketify") / "server.py"), str(port)], port) as running:
        yield running


def peer() -> Peer:
    from_pypi("socketify", f"socketify=={VERSION}")
    return Peer("uWebSockets (socketify)", VERSION, _start)
