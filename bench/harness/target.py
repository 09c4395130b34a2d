"""The deployment under load: one that somebody names, the running demo, or a product of the harness's own, started and thrown away.

`find` promises a target that fulfils what the scenario needs, or raises `NoTarget` with what to do about it. A product of its own gets the demo
network of today, PostgreSQL and Redis as they would be set up to keep what they accept (`appendfsync always`), and a broker where one is needed.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, Final

from bench import product as ours
from bench.harness.scenario import CallFailed, Scenario
from bench.network.feed import write_feed
from deploy.servers import MosquittoServer, children, throw_away_folder

CALL_LIMIT_S: Final = 60.0
INFO: Final = Path("run/info.json")
ROLES: Final = "api,track,history"
OWN: Final = "its own"


class NoTarget(Exception):
    """There is nothing to load, or it lacks what the scenario needs. The text says what to do."""


class Deployment:
    """bench.harness.scenario.Target."""

    def __init__(self, url: str, token: str = "", *, where: str, info: Mapping[str, Any] | None = None) -> None:
        info = info or {}
        self.url, self.token, self.where = url.rstrip("/"), token, where
        self.partner = str(info.get("partner", "demo"))
        self.mqtt_url: str = info.get("mqttUrl") or ""
        self.redis_url: str = info.get("redisUrl") or ""
        self.database_url: str = info.get("databaseUrl") or ""
        self.pids: Mapping[str, int] = dict(info.get("pids") or {})

    def call(self, method: str, path: str, body: object = None, *, key: str = "", token: str | None = None) -> Any:
        headers = {"Accept": "application/json"}
        if (token if token is not None else self.token) != "":
            headers["Authorization"] = f"Bearer {token if token is not None else self.token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        if method not in ("GET", "HEAD"):
            headers["Idempotency-Key"] = key or str(uuid.uuid4())
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=CALL_LIMIT_S) as answer:
                return _body(answer.read())
        except urllib.error.HTTPError as refused:
            raise CallFailed(method, path, refused.code, _body(refused.read())) from None
        except OSError as fault:
            raise CallFailed(method, path, 0, fault) from None

    def has(self) -> set[str]:
        """Of what scenarios may need."""
        found = {"token": self.token, "mqtt": self.mqtt_url, "redis": self.redis_url, "database": self.database_url, "local": self.pids}
        return {name for name, value in found.items() if value}


def _body(data: bytes) -> Any:
    try:
        return json.loads(data) if data else None
    except ValueError:
        return data.decode(errors="replace")


LACKS: Final = {
    "token": "an operator admin's access token: --token (`timepoint user token PARTNER_ADMIN --partner ID --hours 2` prints one)",
    "mqtt": "its MQTT broker: --mqtt-url mqtt://host:port",
    "redis": "its Redis: --redis-url, or run it against the demo or a product of its own",
    "database": "its PostgreSQL: --database-url, or run it against the demo or a product of its own",
    "local": "its processes on this machine: --pids worker-0=PID,redis=PID, or run it against the demo or a product of its own",
}


@contextmanager
def find(kind: type[Scenario], given: Mapping[str, Any], *, workers: int = 1, own: bool = False) -> Iterator[Deployment]:
    """`given`: url, token, mqttUrl, redisUrl, databaseUrl, pids, partner, as far as they are known. `own`: never the running demo."""
    target = None if own and not given.get("url") else known(given)
    if target is None:
        with _own(kind, workers) as target:
            yield target
        return
    lacking = [LACKS[need] for need in sorted(kind.needs - target.has())]
    if lacking:
        raise NoTarget(f"{kind.name} needs {'; '.join(lacking)}")
    try:
        target.call("GET", "/healthz")
    except CallFailed as fault:
        raise NoTarget(f"nothing answers at {target.url}: {fault}") from None
    yield target


def known(given: Mapping[str, Any]) -> Deployment | None:
    """What `given` names, or the running demo; None where there is neither."""
    if given.get("url"):
        return Deployment(given["url"], given.get("token") or "", where="given", info=given)
    if not (info := read_info()):
        return None
    token = given.get("token") or (info.get("logins", {}).get("PARTNER_ADMIN") or {}).get("token") or ""
    return Deployment(info["baseUrl"], token, where="the running demo", info=info)


def read_info(path: Path = INFO) -> dict[str, Any]:
    """What a running demo says of itself; empty where none runs."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        with urllib.request.urlopen(found["baseUrl"] + "/healthz", timeout=5):
            return found
    except (OSError, ValueError, KeyError):
        return {}


@contextmanager
def _own(kind: type[Scenario], workers: int) -> Iterator[Deployment]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = {"ROLES": ROLES, **kind.serves}
        broker = None
        if "mqtt" in kind.needs:
            broker = MosquittoServer(throw_away_folder())
            stack.callback(broker.remove)
            broker.start()
            settings |= {"MQTT_URL": broker.url, "ROLES": settings["ROLES"] + ",mqtt"}
        feed = folder / "demo.zip"
        write_feed(feed, date.today())
        try:
            product = stack.enter_context(ours.Product(appendfsync="always", feed=feed, workers=workers, durable=True, **settings))
        except (OSError, RuntimeError) as fault:
            raise NoTarget(f"a product of our own does not start: {fault}") from fault
        assert product.supervisor is not None
        pids = {"supervisor": product.supervisor.pid, "redis": product.redis.pid, "postgres": product.postgres.pid}
        pids |= {f"worker-{number}": pid for number, pid in enumerate(children(product.supervisor.pid))}
        pids |= {"mosquitto": broker.pid} if broker is not None else {}
        info = {
            "mqttUrl": broker.url if broker is not None else "", "redisUrl": product.redis.url, "databaseUrl": product.postgres.url,
            "pids": {name: pid for name, pid in pids.items() if pid},
        }  # fmt: skip
        yield Deployment(f"http://127.0.0.1:{product.port}", product.token, where=OWN, info=info)
