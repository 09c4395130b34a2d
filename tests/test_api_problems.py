"""Errors on the wire: the one table, and what each document says."""

from __future__ import annotations

import logging

import msgspec
import pytest
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException, ValidationException

from api import problems
from engine import errors
from engine.booking.refusals import REFUSALS, Refused


def leaves(kind: type[errors.EngineError]) -> list[type[errors.EngineError]]:
    if kind is Refused:
        return []  # one class for a table of codes, each with a row of its own
    return [kind, *(leaf for sub in kind.__subclasses__() for leaf in leaves(sub))]


@pytest.mark.parametrize("leaf", leaves(errors.EngineError), ids=lambda leaf: leaf.__name__)
def test_every_leaf_has_a_row_of_its_own_or_of_an_ancestor(leaf: type[errors.EngineError]) -> None:
    title, code = problems.title_and_close_code(leaf)
    assert title and (code in (1011, 1012) or 4400 <= code <= 4499)
    problem, _ = problems.problem_of(leaf("because"), "/v1/x", "rid-1234")
    assert (problem.status, problem.code, problem.retryable) == (leaf.status, leaf.code, leaf.retryable)
    if leaf is not errors.EngineError:
        assert title != problems.TITLES[errors.EngineError][0], "an ancestor nearer than the root"


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_speaks_with_the_title_and_status_of_its_code(code: str) -> None:
    problem, _ = problems.problem_of(Refused(code, "because"), "/v1/x", "rid-1234")
    meaning = REFUSALS[code]
    assert (problem.title, problem.status, problem.code, problem.retryable) == (meaning.title, meaning.status, code, meaning.retryable)
    assert problems.close_code(Refused(code, "because")) == 4400


def test_the_table_of_refusals_is_in_order() -> None:
    assert list(REFUSALS) == sorted(REFUSALS)


def test_the_document_is_that_of_the_contract() -> None:
    fault = errors.TooMany("slow down", retry_after_s=0.2, errors=[{"pointer": "/a", "code": "X", "detail": "y"}])
    problem, headers = problems.problem_of(fault, "/v1/stops", "rid-1234")
    assert msgspec.json.decode(msgspec.json.encode(problem)) == {
        "type": "urn:timepoint:problem:too-many-requests",
        "title": "Too many requests",
        "status": 429,
        "detail": "slow down",
        "instance": "/v1/stops",
        "code": "TOO_MANY_REQUESTS",
        "requestId": "rid-1234",
        "retryable": True,
        "errors": [{"pointer": "/a", "code": "X", "detail": "y"}],
    }
    assert headers == {"Retry-After": "1"}


def test_credentials_ask_for_a_bearer() -> None:
    assert problems.problem_of(errors.Unauthenticated("no"), "/", "")[1]["WWW-Authenticate"] == "Bearer"


def test_a_bug_says_nothing_of_itself_and_stands_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        problem, _ = problems.problem_of(KeyError("secret"), "/v1/x", "rid-1234")
    assert (problem.status, problem.code) == (500, "INTERNAL") and "secret" not in problem.detail
    assert "rid-1234" in caplog.text and "secret" in caplog.text


class Inner(msgspec.Struct):
    name: str


class Body(msgspec.Struct, forbid_unknown_fields=True):
    stops: list[Inner]
    size: int = 0


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ('{"stops":[{"name":"a"},{"name":5}]}', "/stops/1/name", "INVALID_VALUE"),
        ('{"size":1}', "/stops", "MISSING_FIELD"),
        ('{"stops":[{}]}', "/stops/0/name", "MISSING_FIELD"),
        ('{"stops":[],"more":1}', "/more", "UNKNOWN_FIELD"),
        ("[]", "", "INVALID_VALUE"),
    ],
)
def test_a_complaint_points_at_its_place(body: str, pointer: str, code: str) -> None:
    with pytest.raises(msgspec.ValidationError) as fault:
        msgspec.json.decode(body, type=Body)
    problem, _ = problems.problem_of(fault.value, "/", "")
    assert problem.status == 400 and [(one.pointer.replace("...", "1"), one.code) for one in problem.errors] in (
        [(pointer, code)],
        [(pointer.replace("/0/", "/1/"), code)],  # msgspec names the place in a list as `[...]`
    )


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (NotFoundException(), 404, "NOT_FOUND"),
        (MethodNotAllowedException(), 405, "METHOD_NOT_ALLOWED"),
        (HTTPException(status_code=418), 418, "HTTP_418"),
        (ValidationException(detail="no", extra=[{"key": "near", "source": "query", "message": "bad"}]), 400, "INVALID"),
        (HTTPException(status_code=500, detail="inner workings"), 500, "INTERNAL"),
    ],
)
def test_what_the_framework_raises_is_a_problem_too(fault: HTTPException, status: int, code: str) -> None:
    problem, _ = problems.problem_of(fault, "/", "")
    assert (problem.status, problem.code) == (status, code) and "inner workings" not in problem.detail


def test_a_query_parameter_is_pointed_at_by_name() -> None:
    fault = ValidationException(detail="no", extra=[{"key": "near", "source": "query", "message": "bad"}])
    assert problems.problem_of(fault, "/", "")[0].errors == [problems.Fault("?near", "INVALID_VALUE", "bad")]


def test_close_codes() -> None:
    assert problems.close_code(errors.Unauthenticated("")) == 4401 and problems.close_code(errors.Forbidden("")) == 4403
    assert problems.close_code(errors.TooManyChannels("")) == 4429 and problems.close_code(ValueError()) == 1011
