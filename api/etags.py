"""Conditional reads: whether the client already has what it asks for."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from litestar import MediaType, Request, Response


def unchanged(request: Request[Any, Any, Any], tag: str) -> bool:
    """Whether If-None-Match names the entity tag `tag`, quotes and all.

    The comparison is the weak one, and the header may be a list or `*` (RFC 9110, sections 8.8.3.2 and 13.1.2): proxies that compress an
    answer turn its tag into `W/"..."`. No tag of ours has a comma in it.
    """
    given = request.headers.get("if-none-match")
    if given is None:
        return False
    return given.strip() == "*" or tag in (one.strip().removeprefix("W/") for one in given.split(","))


def tagged(request: Request[Any, Any, Any], answer: Any, *, but: Any = None) -> Response[Any]:
    """A read that clients poll: the answer with an entity tag of what it says, or 304 where the client has just that.

    `answer` may be its JSON already. `but`: the answer without what changes by itself (an age). The tag is then a weak one (RFC 9110
    section 8.8.1).
    """
    said = answer if isinstance(answer, bytes) else msgspec.json.encode(answer)
    body = said if but is None else but if isinstance(but, bytes) else msgspec.json.encode(but)
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"ETag": tag if but is None else "W/" + tag, "Cache-Control": "no-cache"}
    if unchanged(request, tag):
        return Response(None, status_code=304, headers=headers)
    return Response(said, headers=headers, media_type=MediaType.JSON)
