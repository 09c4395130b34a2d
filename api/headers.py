"""The headers of our calls, for the document: handlers read them by name, so the web framework cannot know of them.

Who may send which follows from what a call may be refused with: one that answers IDEMPOTENCY_KEY_REQUIRED wants a key, one that answers
PRECONDITION_FAILED takes `If-Match`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

_TOKEN: Final = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"}
KEY: Final = {
    "name": "Idempotency-Key",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    "description": "a fresh UUID for each new request; the same one when it is tried again, and the first answer comes again",
}
IF_MATCH: Final = {
    "name": "If-Match",
    "schema": _TOKEN,
    "description": "the ETag of what you mean to change: 412 where it is another by now",
}
IF_NONE_MATCH: Final = {"name": "If-None-Match", "schema": _TOKEN, "description": "the ETag you have: 304 where nothing has changed"}
HOLD_TOKEN: Final = {
    "name": "X-Hold-Token",
    "schema": _TOKEN,
    "description": "opens a guest's hold and its booking; who is signed in needs none",
}
QUEUE_TOKEN: Final = {"name": "X-Queue-Token", "schema": _TOKEN, "description": "of POST /v1/trips/{trip_id}/queue, where the trip is hot"}
SHARE_KEY: Final = {"name": "X-Share-Key", "schema": _TOKEN, "description": "the `revokeKey` that a guest was given with a link"}
WAITLIST_TOKEN: Final = {"name": "X-Waitlist-Token", "schema": _TOKEN, "description": "opens a guest's place in the waitlist"}

# "method path", or what the path begins with -> a header it may have
MAY_SEND: Final = (
    ("/v1/holds/", HOLD_TOKEN),
    ("post /v1/bookings", HOLD_TOKEN),
    ("/v1/bookings/{ref}", HOLD_TOKEN),
    ("/v1/payments/initiate", HOLD_TOKEN),
    ("/v1/payments/confirm", HOLD_TOKEN),
    ("/v1/payments/{payment_id}/", HOLD_TOKEN),
    ("post /v1/trips/{trip_id}/holds", QUEUE_TOKEN),
    ("/v1/waitlist/", WAITLIST_TOKEN),
    ("delete /v1/share/{token}", SHARE_KEY),
)
# "get" of these answers 304 to whoever has it already; what ends in / stands for all below it
CONDITIONAL: Final = (
    "/v1/alerts",
    "/v1/bookings/{ref}", "/v1/bookings/{ref}/ticket", "/v1/routes/{route_id}", "/v1/tickets/keys", "/v1/trips/{trip_id}/seats", "/gtfs-rt/",
    "/v1/stops", "/v1/stops/{stop_id}/departures", "/v1/trips/{trip_id}/live", "/v1/buses/{bus_id}/location", "/v1/share/{token}",
)  # fmt: skip


def add_headers(method: str, path: str, call: dict[str, Any], codes: Collection[str]) -> None:
    """What may, or has to, be sent with a call that may be refused with `codes`, and what its answers carry; `call` is changed in place."""
    sent: list[dict[str, Any]] = [header for start, header in MAY_SEND if f"{method} {path}" == start or path.startswith(start)]
    if "IDEMPOTENCY_KEY_REUSED" in codes:
        sent.append(KEY | {"required": "IDEMPOTENCY_KEY_REQUIRED" in codes})
        _answers(call, "Idempotency-Replayed", "`true`: this is the first answer again")
    if "PRECONDITION_FAILED" in codes:
        sent.append(IF_MATCH)
    if method == "get" and any(path == one or (one.endswith("/") and path.startswith(one)) for one in CONDITIONAL):
        sent.append(IF_NONE_MATCH)
        _answers(call, "ETag", "of what is answered")
        call["responses"].setdefault("304", {"description": "Not Modified: it is what If-None-Match names"})
    if sent:
        call.setdefault("parameters", []).extend({"in": "header", "required": False} | header for header in sent)


def _answers(call: dict[str, Any], name: str, meaning: str) -> None:
    for status, said in call["responses"].items():
        if status.startswith("2"):
            said.setdefault("headers", {})[name] = {"schema": {"type": "string"}, "description": meaning}
