"""A Redis Cluster of three servers on loopback ports of their own, thrown away at the end; and a slot that moves while it is used."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from deploy.servers import RedisServer, free_port, throw_away_folder

NODES, SLOTS = 3, 16_384


class Node(RedisServer):
    """One of them. Its clients come over TCP: a server of a cluster names the others by address and port."""

    def __init__(self) -> None:
        super().__init__(throw_away_folder(), appendfsync="no")
        self.port = 0

    def command(self) -> list[str]:
        argv = super().command()
        self.port = self.port or free_port()
        own = f"port {self.port}\nbind 127.0.0.1\ncluster-enabled yes\ncluster-port {self.port + 1}\ncluster-node-timeout 2000\n"
        conf = self.folder / "redis.conf"
        self.give("redis.conf", conf.read_text().replace("port 0\n", own))
        return argv

    def ask(self, *command: Any) -> Any:
        with redis.Redis(unix_socket_path=str(self.socket)) as connection:
            return connection.execute_command(*command)


class Cluster:
    """`url` names all of its servers."""

    def __init__(self) -> None:
        self.nodes = [Node() for _ in range(NODES)]

    def start(self) -> Cluster:
        for number, node in enumerate(self.nodes):
            node.start()
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.ask("CLUSTER", "ADDSLOTSRANGE", number * SLOTS // NODES, (number + 1) * SLOTS // NODES - 1)
            node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, self.nodes[0].port + 1)
        limit_s = time.monotonic() + 30
        while not all(self._whole(node) for node in self.nodes):
            assert time.monotonic() < limit_s, "the cluster did not come up"
            time.sleep(0.05)
        return self

    @staticmethod
    def _whole(node: Node) -> bool:
        told = node.ask("CLUSTER", "INFO")
        return b"cluster_state:ok" in told and b"cluster_known_nodes:%d\r" % NODES in told

    @property
    def url(self) -> str:
        return ",".join(f"redis://127.0.0.1:{node.port}" for node in self.nodes)

    def owner(self, slot: int) -> Node:
        """The server that holds a slot now."""
        for first, last, (_, port, *_), *_ in self.nodes[0].ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody holds slot {slot}")

    def move(self, slot: int, to: Node, between: Any = lambda: None) -> None:
        """The slot with its keys, as an operator does it; `between` runs while half of its keys have gone."""
        source = self.owner(slot)
        here, there = source.ask("CLUSTER", "MYID"), to.ask("CLUSTER", "MYID")
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", here)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", there)
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1_000)
        for number, key in enumerate(keys):
            if number == len(keys) // 2:
                between()
            source.ask("MIGRATE", "127.0.0.1", to.port, key, 0, 5_000)
        for node in (to, source, *self.nodes):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", there)

    def remove(self) -> None:
        for node in self.nodes:
            node.remove()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        yield cluster.start()
    finally:
        cluster.remove()
