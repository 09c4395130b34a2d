"""What is kept under docs/ is what the code says."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from types import SimpleNamespace

import msgspec
import pytest

from api.cli import _masked
from api.documents import DOCS, made
from engine.live.frames import BookingSaid, Notice, SeatSaid
from engine.office.outbox import Bookings, Seats
from engine.office.topics import booking_data, event_of
from tests.product import Product

MADE = made()


@pytest.mark.parametrize("name", sorted(MADE))
def test_a_kept_document_is_what_the_code_makes(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == MADE[name], "it has drifted: run `make docs`"


def test_every_rest_call_is_described_and_documents_its_answer() -> None:
    paths = json.loads(MADE["openapi.json"])["paths"]
    assert len(paths) > 20
    for path, calls in paths.items():
        for method, call in calls.items():
            assert call.get("description"), f"{method} {path} says nothing of itself"
            assert any(code.startswith("2") for code in call["responses"]), f"{method} {path}"


def test_a_call_says_which_headers_it_wants_and_which_it_takes() -> None:
    paths = json.loads(MADE["openapi.json"])["paths"]
    sent = {
        (method, path, parameter["name"]): parameter["required"]
        for path, calls in paths.items()
        for method, call in calls.items()
        for parameter in call.get("parameters", [])
        if parameter["in"] == "header"
    }
    for path in ("trips/{trip_id}/holds", "bookings", "payments/initiate", "payments/confirm", "payments/refund", "pos/sync"):
        assert sent["post", f"/v1/{path}", "Idempotency-Key"] is True
    assert sent["post", "/v1/bookings", "X-Hold-Token"] is sent["patch", "/v1/bookings/{ref}/cancel", "If-Match"] is False
    assert "304" in paths["/v1/trips/{trip_id}/seats"]["get"]["responses"] and "304" in paths["/v1/bookings/{ref}"]["get"]["responses"]
    assert not any(path == "/v1/bookings" and method == "get" for method, path, _ in sent)


API = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((DOCS.parent / "api").glob("*.py"))}
FUNCTIONS = {
    (name, one.name): one for name, tree in API.items() for one in tree.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
}
BORROWED = {
    (name, alias.asname or alias.name): (str(one.module).removeprefix("api."), alias.name)
    for name, tree in API.items()
    for one in tree.body
    if isinstance(one, ast.ImportFrom)
    for alias in one.names
}


def _asks(function: tuple[str, str], seen: frozenset[tuple[str, str]] = frozenset()) -> bool:
    """Whether it asks for a role, itself or through what it calls."""
    function = BORROWED.get(function, function)
    if function == ("auth", "need"):
        return True
    if function in seen or function not in FUNCTIONS:
        return False
    calls = [one.func.id for one in ast.walk(FUNCTIONS[function]) if isinstance(one, ast.Call) and isinstance(one.func, ast.Name)]
    return any(_asks((function[0], name), seen | {function}) for name in calls)


def _calls(module: str) -> Iterator[tuple[str, str, bool]]:
    """(method, path, whether its handler asks for a role)."""
    for (name, handler), function in FUNCTIONS.items():
        for mark in function.decorator_list if name == module else ():
            if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.args and isinstance(mark.args[0], ast.Constant):
                yield mark.func.id, re.sub(r":\w+}", "}", f"/v1{mark.args[0].value}"), _asks((module, handler))


@pytest.mark.parametrize("module", [name for name in API if any(_calls(name))])
def test_a_call_that_asks_for_a_role_says_so_in_the_document_and_no_other(module: str) -> None:
    paths = json.loads(MADE["openapi.json"])["paths"]
    for method, path, asked in _calls(module):
        call = paths.get(path, {}).get(method)
        if call is not None:
            assert (call["x-roles"] != ["everybody"]) is asked, f"{method} {path}"


def test_every_push_of_the_contract_is_in_the_asyncapi_document() -> None:
    messages = json.loads(MADE["asyncapi.json"])["components"]["messages"]
    for kind in ("snapshot", "pos", "eta", "stop", "seat", "incident", "booking", "notice", "gone", "batch", "drain"):
        assert f"push.{kind}" in messages and "examples" in messages[f"push.{kind}"]


def test_what_is_said_of_seats_and_bookings_has_the_shapes_of_the_document() -> None:
    stops = [SimpleNamespace(stop_id="demo:A"), SimpleNamespace(stop_id="demo:B")]
    trip = SimpleNamespace(trip_id="demo:T:20261121", map_version=1, labels=("1A", "1B"), stops=stops)
    body = {"ref": "7GK2QX", "state": "HELD", "seats": [2], "from": 0, "to": 1, "map": 1, "until": "2026-11-21T09:10:00+00:00"}
    held = event_of("booking", "HELD", "0195c0de-0001-7000-8000-000000000001", 1, "demo", 1_000, booking_data(body, trip, trip.labels))
    swapped = event_of("trip", "BUS_SWAPPED", "0195c0de-0001-7000-8000-000000000002", 2, "demo", 1_000, {})
    for sink, event, about, shape in (
        (Seats(), held, body, SeatSaid),
        (Bookings(), held, body, BookingSaid),
        (Seats(), swapped, {"tripId": trip.trip_id, "mapVersion": 2}, Notice),
    ):
        (line,) = sink.lines(event, about, trip)
        said = json.loads(line.payload)["d"]
        assert msgspec.to_builtins(msgspec.convert(said, shape)) == said, "no field more and none less"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SECRET_KEY", "hidden"),
        ("REDIS_URL", "redis://:hidden@cache:6379/0"),
        ("DATABASE_URL", "postgresql://bob:hidden@db/timepoint"),
        ("DATABASE_URL", "postgresql://db/timepoint?user=bob&password=hidden&sslmode=require"),
        ("DATABASE_OWNER_URL", "host=db password=hidden user=bob"),
    ],
)
def test_settings_are_shown_without_their_secrets(name: str, value: str) -> None:
    shown = str(_masked(name, value))
    assert "hidden" not in shown and "***" in shown
    assert ("bob" in shown) == ("bob" in value) and ("sslmode=require" in shown) == ("sslmode" in value)


def test_the_schema_is_the_same_each_time_it_is_asked_for(product: Product) -> None:
    first, second = (product.http.get("/schema").json() for _ in range(2))
    assert first == second == json.loads(MADE["openapi.json"])
