"""What is kept under docs/ is what the code says."""

from __future__ import annotations

import json

import pytest

from api.cli import _masked
from api.documents import DOCS, made

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


def test_every_push_of_the_contract_is_in_the_asyncapi_document() -> None:
    messages = json.loads(MADE["asyncapi.json"])["components"]["messages"]
    for kind in ("snapshot", "pos", "eta", "stop", "seat", "incident", "booking", "notice", "gone", "batch", "drain"):
        assert f"push.{kind}" in messages


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
