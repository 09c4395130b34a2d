"""npm `ws`, what node programs use for sockets: one process, a loop over all clients, the frame encoded once for each send.

Known traps: permessage-deflate is off by default on its server since version 3 and stays off; `send` of a string encodes it anew for every
client, so a Buffer is sent with `binary: false`, the cheapest that its documented interface offers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bench.peers.place import Peer, Running, from_npm, run, serving, some_port

VERSION = "8.23.0"
SERVER = """
const http = require('http'), { WebSocketServer } = require('ws');
const wss = new WebSocketServer({ noServer: true, perMessageDeflate: false });
const server = http.createServer((request, response) => {
  const parts = [];
  request.on('data', (part) => parts.push(part));
  request.on('end', () => {
    const said = Buffer.concat(parts);
    for (const client of wss.clients) client.send(said, { binary: false });
    response.end('ok');
  });
});
server.keepAliveTimeout = 3600000;
server.on('upgrade', (request, socket, head) => wss.handleUpgrade(request, socket, head, (client) => client.on('message', () => {})));
server.listen({ port: Number(process.argv[2]), host: '127.0.0.1', backlog: 4096 });
"""


@contextlib.contextmanager
def _start() -> Iterator[Running]:
    where, port = from_npm("ws", f"ws@{VERSION}"), some_port()
    (where / "server.js").write_text(SERVER)
    with serving(["node", str(where / "server.js"), str(port)], port, where=where) as running:
        yield running


def peer() -> Peer:
    where = from_npm("ws", f"ws@{VERSION}")
    return Peer("npm ws", f"{VERSION}, node {run(['node', '--version'], where).strip()}", _start)
