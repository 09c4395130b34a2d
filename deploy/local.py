"""`make run`: a running product with a demo network and moving buses, from the private servers of deploy/servers.py."""

from __future__ import annotations

from deploy.servers import MosquittoServer, NotStarted, PostgresServer, RedisServer, Server, throw_away_folder

__all__ = ["MosquittoServer", "NotStarted", "PostgresServer", "RedisServer", "Server", "throw_away_folder"]
