"""The AsyncAPI 3.0 document of the live sockets: made from the very structs that are sent, so it cannot say another shape.

Served at /schema/asyncapi.json and kept under docs/ (`make docs`); a test fails when the two differ.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from litestar import get

from engine.live.frames import Eta, Gone, Incident, Pos, Served

EXAMPLES: Final[dict[str, Any]] = {
    "sub": {"id": 1, "op": "sub", "ch": "bus:ALG-101", "since": {"e": "epoch", "o": 812}},
    "unsub": {"id": 2, "op": "unsub", "ch": "bus:ALG-101"},
    "bbox": {"id": 3, "op": "bbox", "box": [2.9, 36.6, 3.3, 36.9], "zoom": 12},
    "auth": {"id": 4, "op": "auth", "token": "an access token"},
    "ping": {"id": 5, "op": "ping"},
}

CLOSE_CODES: Final[dict[int, str]] = {
    1012: "restarting: come back",
    4400: "a message that is not in this document",
    4401: "not authenticated",
    4403: "not allowed",
    4408: "too slow a reader: come back with since",
    4429: "too many sockets or subscriptions",
}


def _message(title: str, payload: dict[str, Any], example: Any = None) -> dict[str, Any]:
    message: dict[str, Any] = {"name": title, "title": title, "payload": payload}
    if example is not None:
        message["examples"] = [{"payload": example}]
    return message


def _push(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    either = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    offsets = {"oneOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]}
    return {
        "type": "object",
        "required": ["ch", "o", "t", "d"],
        "properties": {"ch": either, "o": offsets, "e": {"type": "string"}, "t": {"const": kind}, "d": body},
    }


def document() -> dict[str, Any]:
    """The whole document, as plain data."""
    schemas, components = msgspec.json.schema_components([Pos, Eta, Served, Gone, Incident], ref_template="#/components/schemas/{name}")
    bodies = dict(zip(("pos", "eta", "stop", "gone", "incident"), schemas, strict=True))
    bodies["snapshot"] = {"type": "array", "items": bodies["pos"]}
    bodies |= {kind: {"type": "object"} for kind in ("seat", "booking", "notice", "drain")}
    bodies["batch"] = {"type": "array", "items": {"type": "object"}, "description": "several pushes in one frame"}
    pushes = {kind: _message(kind, _push(kind, body)) for kind, body in sorted(bodies.items())}
    pushes["batch"]["payload"]["required"] = ["t", "d"]
    asks = {
        op: _message(op, {"type": "object", "required": ["op"], "properties": {"op": {"const": op}}}, EXAMPLES[op])
        for op in sorted(EXAMPLES)
    }
    reply = {
        "type": "object",
        "required": ["id"],
        "properties": {
            "id": {"type": "integer"},
            "ok": {"const": True},
            "e": {"type": "string"},
            "o": {"type": "integer"},
            "recovered": {"type": "boolean"},
            "error": {"type": "object", "required": ["code"], "properties": {"code": {"type": "string"}, "detail": {"type": "string"}}},
        },
    }
    messages = {
        **{f"ask.{op}": m for op, m in asks.items()},
        **{f"push.{kind}": m for kind, m in pushes.items()},
        "reply": _message("reply", reply),
    }
    codes = "\n".join(f"- {code}: {meaning}" for code, meaning in CLOSE_CODES.items())
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Timepoint live",
            "version": "1",
            "description": "Subprotocols `timepoint.v1.json` (default) and `timepoint.v1.msgpack`. Close codes:\n\n" + codes,
        },
        "channels": {"live": {"address": "/ws", "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages}}},
        "operations": {
            "ask": {
                "action": "receive",
                "channel": {"$ref": "#/channels/live"},
                "messages": [{"$ref": f"#/channels/live/messages/ask.{op}"} for op in asks],
            },
            "push": {
                "action": "send",
                "channel": {"$ref": "#/channels/live"},
                "messages": [*({"$ref": f"#/channels/live/messages/push.{k}"} for k in pushes), {"$ref": "#/channels/live/messages/reply"}],
            },
        },
        "components": {"schemas": dict(sorted(components.items())), "messages": messages},
    }


@get("/schema/asyncapi.json", tags=["ops"], include_in_schema=False, sync_to_thread=False)
def asyncapi() -> dict[str, Any]:
    """This document."""
    return document()
