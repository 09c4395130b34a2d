"""What every request meets first: ids, headers, alias, envelope, problems; and the limits of the server in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from litestar import Litestar, get, post
from litestar.params import FromQuery, JSONBody
from litestar.types import Receive, Scope, Send

from api import network, server
from api.app import Edge, envelope, make_app
from api.parts import Parts
from engine.clock import ManualClock
from engine.errors import Conflict, Unavailable
from engine.live.hub import Hub
from engine.live.table import LiveTable
from engine.settings import Settings
from engine.tracking.plans import Plan
from tests import small_world
from tests.live_house import batch, house, position


class OnePlan:
    """One feed in force."""

    def all(self) -> list[Plan]:
        return [Plan("demo", "P", small_world.feed())]


ENVELOPED = {"Accept": "application/vnd.timepoint.envelope+json"}


class Order(msgspec.Struct):
    count: int


@get("/list", sync_to_thread=False)
def listed() -> dict[str, Any]:
    return {"items": [1, 2], "nextCursor": "c2"}


@get("/broken", sync_to_thread=False)
def broken() -> None:
    raise KeyError("oops")


@get("/taken", sync_to_thread=False)
def taken() -> None:
    raise Conflict("it is taken")


@post("/orders", sync_to_thread=False)
def order(data: JSONBody[Order]) -> Order:
    return data


@get("/number", sync_to_thread=False)
def number(count: FromQuery[int]) -> int:
    return count


def app(**more: Any) -> Edge:
    clock, table = ManualClock(1_771_250_709_250), LiveTable()
    settings = Settings()
    parts = Parts(settings=settings, clock=clock, table=table, hub=Hub(table, settings, clock), **more)
    return make_app(parts, [listed, broken, taken, order, number])


@pytest.fixture
async def web() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app()), base_url="http://test") as client:
        yield client


async def test_every_answer_has_its_id_version_and_security_headers(web: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/v1/list", "/nowhere", "/v1/broken"):
        got = await web.get(path)
        assert len(got.headers["x-request-id"]) == 36 and got.headers["x-api-version"] == "1"
        policy = got.headers["content-security-policy"]
        assert "script-src 'self'" in policy and "unsafe" not in policy
        assert got.headers["x-content-type-options"] == "nosniff"


async def test_a_decent_request_id_is_kept_and_another_is_not(web: httpx.AsyncClient) -> None:
    assert (await web.get("/healthz", headers={"X-Request-Id": "client-0042"})).headers["x-request-id"] == "client-0042"
    for bad in ("short", "x" * 65, "a b c d e f g h", '<script>"'):
        assert (await web.get("/healthz", headers={"X-Request-Id": bad})).headers["x-request-id"] != bad


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/nowhere", None, 404, "NOT_FOUND"),
        ("GET", "/v1/nowhere", None, 404, "NOT_FOUND"),
        ("DELETE", "/v1/list", None, 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/taken", None, 409, "CONFLICT"),
        ("GET", "/v1/broken", None, 500, "INTERNAL"),
        ("GET", "/v1/number?count=x", None, 400, "INVALID"),
        ("POST", "/v1/orders", b'{"count":"x"}', 400, "INVALID"),
        ("POST", "/v1/orders", b"{", 400, "INVALID"),
        ("POST", "/v1/orders", b'{"count":1,"x":"' + b"x" * 1_100_000 + b'"}', 413, "TOO_LARGE"),
    ],
)
async def test_every_error_is_a_problem_document(
    web: httpx.AsyncClient, method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    got = await web.request(method, path, content=body, headers={"Content-Type": "application/json"} if body else None)
    assert got.status_code == status and got.headers["content-type"] == "application/problem+json"
    said = got.json()
    assert said["code"] == code and said["status"] == status and said["requestId"] == got.headers["x-request-id"]
    assert said["instance"] == path.partition("?")[0]


async def test_the_alias_reaches_the_same_handlers(web: httpx.AsyncClient) -> None:
    assert (await web.get("/api/v1/list")).json() == (await web.get("/v1/list")).json()


async def test_head_is_get_without_its_body(web: httpx.AsyncClient) -> None:
    got, whole = await web.head("/v1/list"), await web.get("/v1/list")
    assert got.status_code == 200 and got.content == b"" and got.headers["content-length"] == whole.headers["content-length"]


async def test_a_head_leaves_its_connection_good_for_the_next_request(redis_url: str) -> None:
    async with house(redis_url) as h:
        reader, writer = await asyncio.open_connection("127.0.0.1", h.port)
        async with asyncio.timeout(5):
            for _ in range(3):
                writer.write(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                headless = await reader.readuntil(b"\r\n\r\n")
                whole = await reader.readuntil(b"\r\n\r\n")
                assert headless.startswith(b"HTTP/1.1 200") and whole.startswith(b"HTTP/1.1 200"), "no body stands between the two"
                assert b"content-length: 15" in headless and await reader.readexactly(15) == b'{"status":"ok"}'
        writer.close()


async def test_the_envelope_for_clients_that_were_built_for_it(web: httpx.AsyncClient) -> None:
    got = await web.get("/v1/list", headers=ENVELOPED)
    said = got.json()
    assert got.headers["content-type"] == ENVELOPED["Accept"] and int(got.headers["content-length"]) == len(got.content)
    assert (said["success"], said["data"], said["pagination"]) == (True, [1, 2], {"nextCursor": "c2"})
    assert said["meta"] == {"timestamp": "2026-02-16T14:05:09.250Z", "requestId": got.headers["x-request-id"]}
    said = (await web.get("/v1/taken", headers=ENVELOPED)).json()
    assert said["success"] is False and said["error"]["code"] == "CONFLICT"


def test_an_envelope_around_nothing() -> None:
    assert msgspec.json.decode(envelope(b"", 200, "rid", "now"))["data"] is None


async def test_the_schema_is_openapi_31(web: httpx.AsyncClient) -> None:
    said = (await web.get("/schema")).json()
    assert said["openapi"].startswith("3.1") and "/v1/orders" in said["paths"] and "/healthz" in said["paths"]


async def test_device_paths_go_past_the_framework() -> None:
    async def devices(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 202, "headers": []})
        await send({"type": "http.response.body", "body": scope["raw_path"], "more_body": False})

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app(devices=devices)), base_url="http://test") as web:
        got = await web.post("/ingest/osmand/T%2F1")
        assert got.status_code == 202 and got.content == b"/ingest/osmand/T%2F1"
        assert (await web.get("/ingestion")).status_code == 404


class Away:
    async def ping(self) -> None:
        raise Unavailable("Redis does not answer")


async def test_readiness_names_the_part_that_is_away() -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app(redis=Away())), base_url="http://test") as web:
        got = await web.get("/readyz")
        assert got.status_code == 503 and got.json()["parts"]["redis"] == "Redis does not answer" and got.headers["retry-after"]
        assert (await web.get("/healthz")).status_code == 200


def test_the_framework_is_reachable_for_the_documents() -> None:
    assert isinstance(app().litestar, Litestar)


# --- the server's limits ---


async def test_a_head_without_end_and_a_head_that_never_comes(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_TIMEOUT_S", 0.5)
    monkeypatch.setattr(server, "SWEEP_S", 0.1)
    async with house(redis_url) as h:
        reader, writer = await asyncio.open_connection("127.0.0.1", h.port)
        writer.write(b"GET /healthz HTTP/1.1\r\n" + b"X-A: " + b"a" * 40_000)
        assert (await reader.readline()).startswith(b"HTTP/1.1 431")
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", h.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.close()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{h.port}") as web:
            for _ in range(3):
                assert (await web.get("/healthz")).status_code == 200
                await asyncio.sleep(0.3)  # between requests a connection may rest


async def test_a_body_that_stops_is_cut(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_TIMEOUT_S", 0.5)
    monkeypatch.setattr(server, "SWEEP_S", 0.1)
    async with house(redis_url) as h:
        reader, writer = await asyncio.open_connection("127.0.0.1", h.port)
        writer.write(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        async with asyncio.timeout(5):
            while await reader.read(65_536):
                pass
        writer.close()


@pytest.mark.parametrize(("stop_index", "status"), [(3, "RUNNING"), (None, "COMPLETED")])
async def test_a_trip_whose_bus_has_done_it_is_completed_though_the_bus_still_stands_there(stop_index: int | None, status: str) -> None:
    clock, table, settings = ManualClock(1_772_433_000_000), LiveTable(), Settings()  # 2 March 2026, 07:30: its times are ahead
    table.learn(batch(1, position("17", trip="T0", route="R", start_date="20260302", stop_index=stop_index)))
    parts = Parts(settings=settings, clock=clock, table=table, hub=Hub(table, settings, clock), plans=OnePlan())  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app(parts, network.ROUTERS)), base_url="http://test") as client:
        trip = (await client.get("/v1/trips/demo:T0:20260302")).json()
    assert (trip["status"], trip["busId"]) == (status, "17")
