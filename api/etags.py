"""Conditional reads: whether the client already has what it asks for."""

from __future__ import annotations

from typing import Any

from litestar import Request


def unchanged(request: Request[Any, Any, Any], tag: str) -> bool:
    """Whether If-None-Match names the entity tag `tag`, quotes and all.

    The comparison is the weak one, and the header may be a list or `*` (RFC 9110, sections 8.8.3.2 and 13.1.2): proxies that compress an
    answer turn its tag into `W/"..."`. No tag of ours has a comma in it.
    """
    given = request.headers.get("if-none-match")
    if given is None:
        return False
    return given.strip() == "*" or tag in (one.strip().removeprefix("W/") for one in given.split(","))
