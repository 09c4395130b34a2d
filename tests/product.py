"""The whole product for tests that look at it from outside: `timepoint serve` on real servers, the demo network loaded, buses driving.

Started once a session, for REST, pages and the README's lines. Tests of what happens when parts die have servers of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.network.feed import write_feed
from deploy.servers import PostgresServer, RedisServer, free_port, throw_away_folder
from tests.detour_drive import DetourDrive

CHECKOUT = Path(__file__).resolve().parent.parent
BUSES = 40


class Product:
    """Where it is, and who may do what."""

    def __init__(self, base_url: str, env: dict[str, str], folder: Path, feed: Path) -> None:
        self.base_url, self.env, self.folder, self.feed = base_url, env, folder, feed
        self.devices: dict[str, str] = {}
        self.detour: DetourDrive | None = None  # where a test of the session asks for it
        self.http = httpx.Client(base_url=base_url, timeout=20)
        self.admin = {"Authorization": "Bearer " + self.token("SUPER_ADMIN")}

    def command(self, *argv: str | Path) -> str:
        """What `timepoint ...` prints."""
        done = subprocess.run(
            [sys.executable, "-m", "api.cli", *map(str, argv)], env=self.env, cwd=CHECKOUT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def token(self, role: str, partner: str = "demo") -> str:
        return self.command("user", "token", role, "--partner", partner, "--hours", "1").strip()

    def get(self, path: str, **params: Any) -> Any:
        answer = self.http.get(path, params=params or None)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def running_trip(self) -> dict[str, Any]:
        """The position of a simulated bus (which goes on) in the middle of a trip with stops ahead."""

        def look() -> dict[str, Any] | None:
            items = self.get("/v1/buses/locations", bbox="-180,-85,180,85", limit=100)["items"]
            moving = (bus for bus in items if bus["busId"] in self.devices and bus["state"] == "IN_TRIP" and bus["ageMs"] < 10_000)
            return next((bus for bus in moving if bus["nextStop"] and bus["nextStop"]["p50"]), None)

        found: dict[str, Any] = eventually(look)
        return found


def eventually(holds: Callable[[], Any], limit_s: float = 40) -> Any:
    """The first true answer; fails after the limit."""
    limit = time.monotonic() + limit_s
    while time.monotonic() < limit:
        answer = holds()
        if answer:
            return answer
        time.sleep(0.2)
    raise AssertionError(f"nothing within {limit_s} s: {holds}")


@pytest.fixture(scope="session")
def product(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Product]:
    """One worker and 40 simulated buses, and one that drives a detour where a test asks for it."""
    folder = tmp_path_factory.mktemp("product")
    redis = RedisServer(throw_away_folder(), appendfsync="no")
    redis.start()
    postgres_server.create_database("product", template="template_timepoint")
    from datetime import UTC, datetime

    feed = folder / "demo.zip"
    write_feed(feed, datetime.now(UTC).date())
    port = free_port()
    env = os.environ | {
        "DATABASE_URL": postgres_server.dsn("product"),
        "REDIS_URL": redis.url,
        "MQTT_URL": "",
        "DEMO": "1",
        "PORT": str(port),
        "DRAIN_S": "1",
    }
    made = Product(f"http://127.0.0.1:{port}", env, folder, feed)
    made.command("import-gtfs", feed, "--feed-id", "demo", "--partner", "demo")
    made.command("sales", "demo")
    listed = subprocess.run(
        [sys.executable, "-m", "bench.network", "buses", str(feed)], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    (folder / "buses.json").write_text(listed.stdout)
    made.command("device", "demo", "--buses", folder / "buses.json", "--out", folder / "devices.json")
    made.devices = json.loads((folder / "devices.json").read_text())
    log = (folder / "engine.log").open("wb")
    engine = subprocess.Popen([sys.executable, "-m", "api.cli", "serve"], env=env, cwd=CHECKOUT, stdout=log, stderr=log)
    drive = ["simulate", "--feed", str(feed), "--base-url", made.base_url, "--devices", str(folder / "devices.json"), "--buses", str(BUSES)]
    buses: subprocess.Popen[bytes] | None = None
    try:
        eventually(lambda: _ready(made.http))
        buses = subprocess.Popen([sys.executable, "-m", "api.cli", *drive], env=env, cwd=CHECKOUT, stdout=log, stderr=log)
        eventually(lambda: len(made.get("/v1/buses/locations", bbox="-180,-85,180,85", limit=100)["items"]) > BUSES // 2)
        if any("test_flow_detour" in item.nodeid for item in request.session.items):
            made.detour = DetourDrive(made)
            made.detour.start()
        yield made
    finally:
        for process in (buses, engine):
            if process is not None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        made.http.close()
        log.close()
        redis.remove()
        postgres_server.drop_database("product")


def _ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False
