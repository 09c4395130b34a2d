"""The booking calls under generated requests, from their own document: no fault of ours, and no answer that the document does not name.

Six of each call; FUZZ_EXAMPLES=200 for the long form, 0 for none.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from tests.product import Product

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "6"))
DESK = {"booking", "payments", "boarding", "operations", "offers", "POS", "alerts"}  # tags of calls
KEPT = json.loads((Path(__file__).resolve().parent.parent / "docs/openapi.json").read_text(encoding="utf-8"))  # a test holds it to the code
SCHEMA = schemathesis.openapi.from_dict(KEPT)
CALLS = [(path, method) for path, calls in KEPT["paths"].items() for method, call in calls.items() if DESK & set(call["tags"])]


@pytest.mark.skipif(not EXAMPLES, reason="FUZZ_EXAMPLES says how many requests of each call")
@pytest.mark.parametrize(("path", "method"), CALLS, ids=[f"{method} {path}" for path, method in CALLS])
def test_whatever_is_asked_is_answered_as_the_document_says(product: Product, path: str, method: str) -> None:
    strategy: Any = SCHEMA[path][method].as_strategy()

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=strategy)
    def ask(case: Any) -> None:
        for headers in ({}, product.admin):
            case.call_and_validate(base_url=product.base_url, headers=headers, checks=CHECKS)

    ask()
    assert product.http.get("/healthz").status_code == 200
