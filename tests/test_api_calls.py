"""Our way from a request to its handler answers what the framework's own answers: the same status, headers and body, for the same bytes."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from litestar import Request, Response, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody

from api.app import BODY_MAX, Edge, make_app
from api.calls import Calls
from api.parts import Parts
from engine.clock import ManualClock
from engine.errors import NotFound, Unavailable
from engine.live.hub import Hub
from engine.live.table import LiveTable
from engine.settings import Settings


class Nested(msgspec.Struct):
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=5)]
    when: float | None = None


class Order(msgspec.Struct, rename="camel"):
    count_of: Annotated[int, msgspec.Meta(ge=1, le=9)]
    flag: bool = False
    inner: list[Nested] = []


@post("/orders/{order_id:str}")
async def order(request: Request[Any, Any, Any], order_id: FromPath[str], data: JSONBody[Order]) -> Response[Any]:
    """Says what it was given."""
    said = {"id": order_id, "data": data, "bytes": len(await request.body()), "template": request.scope["path_template"]}
    return Response(said, headers={"ETag": '"7"', "Location": request.url.path})


@get("/orders/{order_id:str}", sync_to_thread=False)
def shown(order_id: FromPath[str], limit: FromQuery[int] = 3, since: FromQuery[str | None] = None) -> dict[str, Any]:
    if order_id == "none":
        raise NotFound("no such order")
    if order_id == "away":
        raise Unavailable("come back", retry_after_s=3)
    if order_id == "broken":
        raise KeyError("oops")
    return {"id": order_id, "limit": limit, "since": since}


@delete("/orders/{order_id:str}")
async def dropped(request: Request[Any, Any, Any], order_id: FromPath[str]) -> None:
    await request.body()


@delete("/texts/{text_id:str}", status_code=200)
async def told(request: Request[Any, Any, Any], text_id: FromPath[str]) -> Response[Any]:
    return Response((await request.body()).decode(errors="replace") or "nothing", media_type="text/plain")


@get("/numbers/{number:int}")
async def counted(number: FromPath[int]) -> Response[Any]:
    return Response(None if number == 304 else {"n": number}, status_code=304 if number == 304 else 200, headers={"ETag": '"1"'})


def make() -> Edge:
    chosen, clock = Settings(), ManualClock(1_771_250_709_250)
    table = LiveTable()
    parts = Parts(settings=chosen, clock=clock, table=table, hub=Hub(table, chosen, clock))
    return make_app(parts, [order, shown, dropped, told, counted])


@pytest.fixture(scope="module")
def edges() -> tuple[Edge, Edge]:
    """Ours, and one that leaves every call to the framework."""
    ours = make()
    framework = Edge(ours.litestar, ours.parts)
    assert len(ours.calls._calls) >= 5
    framework.calls = Calls(framework.litestar, BODY_MAX + 1)  # of another size all of them are the framework's business
    assert not framework.calls._calls
    return ours, framework


async def ask(
    edge: Edge, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]], chunks: list[bytes], whole: bool
) -> list[Any]:
    sent: list[Any] = []
    left = list(chunks)

    async def receive() -> Any:
        if not left:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or not whole}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 5), "scheme": "http",
        "method": method, "root_path": "", "path": path, "raw_path": path.encode(), "query_string": query, "state": {},
        "headers": [(b"host", b"bench"), (b"x-request-id", b"the-same-one"), *headers],
    }  # fmt: skip
    await edge(scope, receive, send)
    return [(m["type"], m.get("status"), m.get("headers"), m.get("body")) for m in sent]


BODIES = st.one_of(
    st.sampled_from(
        [b"", b"null", b"{}", b"{", b"[1]", b'"x"', b"\xff", b'{"countOf":3}', b'{"countOf":"3"}', b'{"countOf":3.0}', b'{"countOf":0}',
         b'{"countOf":1,"flag":"true"}', b'{"countOf":1,"flag":1}', b'{"countOf":1,"inner":[{"text":""}]}', b'{"countOf":2,"x":1}',
         b'{"countOf":1,"inner":[{"text":"abc","when":"2"}]}', b'{"countOf":1,"inner":[{"text":"abcdefgh"}]}', b'{"countOf":1} ', b'{"countOf":1}x',
         b'{"countOf":' + b"9" * 30 + b"}", b"[" * 5_000, b"x" * (BODY_MAX + 1)]
    ),
    st.binary(max_size=20),
)  # fmt: skip
PATHS = st.sampled_from(
    ["/v1/orders/a", "/api/v1/orders/a", "/v1/orders/none", "/v1/orders/away", "/v1/orders/broken", "/v1/orders/a/", "//v1/orders//a", "/v1/orders",
     "/v1/orders/a b", "/v1/orders/é", "/v1/orders/\ufffd", "/v1/texts/t", "/v1/numbers/7", "/v1/numbers/304", "/v1/numbers/x", "/v1/nowhere", "/"]
)  # fmt: skip


async def test_the_same_requests_get_the_same_answers(edges: tuple[Edge, Edge]) -> None:
    loop, statuses = asyncio.get_running_loop(), set()

    @given(
        st.sampled_from(["GET", "POST", "DELETE", "HEAD", "PUT", "OPTIONS"]), PATHS, BODIES, st.sampled_from(["length", "chunked", "cut off"]),
        st.sampled_from([b"", b"limit=5", b"limit=x", b"since=a&since=b"]),
        st.lists(st.sampled_from([
            (b"content-type", b"text/plain"), (b"accept", b"application/vnd.timepoint.envelope+json"), (b"host", b"not a host!"),
            (b"if-none-match", b'"1"'), (b"content-length", b"x"), (b"content-length", b"99999999"),
        ]), max_size=2),
    )  # fmt: skip
    @example("POST", "/v1/orders/a", b'{"countOf":3}', "length", b"", [])
    @example("POST", "/v1/orders/a", b"x" * (BODY_MAX + 1), "chunked", b"", [])
    @example("POST", "/v1/orders/a", b'{"countOf":"3"}', "chunked", b"limit=5", [(b"accept", b"application/vnd.timepoint.envelope+json")])
    @example("GET", "/v1/orders/away", b"", "length", b"", [])
    @example("HEAD", "/v1/orders/broken", b"", "length", b"", [])
    @settings(max_examples=300, deadline=None, derandomize=True)
    def check(method: str, path: str, body: bytes, how: str, query: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        half = len(body) // 2
        chunks = [body] if how == "length" else [body[:half], body[half:]]
        more = (b"transfer-encoding", b"chunked") if how == "chunked" else (b"content-length", str(len(body)).encode())
        if not body and how == "length":  # most requests without a body do not speak of it
            given_headers = headers
        else:
            given_headers = [*headers, more]
        asked = (method, path, query, given_headers, chunks, how != "cut off")
        said = [asyncio.run_coroutine_threadsafe(ask(edge, *asked), loop).result() for edge in edges]
        assert said[0] == said[1]
        statuses.add(said[0][0][1])

    await asyncio.to_thread(check)
    assert {200, 201, 204, 304, 400, 404, 405, 413, 500, 503} <= statuses
