"""The AsyncAPI 3.0 document of the live sockets: made from the very structs that are sent, so it cannot say another shape.

Served at /schema/asyncapi.json and kept under docs/ (`make docs`); a test fails when the two differ.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from litestar import get

from engine.errors import Forbidden, Invalid, TooMany, TooManyChannels, Unauthenticated, Unavailable
from engine.events import IncidentEvent, Position, StopEvent, StopForecast, TripForecast
from engine.live import frames
from engine.live.advice import TripIncident, TripNotice
from engine.live.alerts import AlertNotice
from engine.live.frames import BookingSaid, Eta, Gone, Incident, Notice, Pos, SeatSaid, Served

EXAMPLES: Final[dict[str, Any]] = {
    "sub": {"id": 1, "op": "sub", "ch": "bus:ALG-101", "since": {"e": "epoch", "o": 812}},
    "unsub": {"id": 2, "op": "unsub", "ch": "bus:ALG-101"},
    "bbox": {"id": 3, "op": "bbox", "box": [2.9, 36.6, 3.3, 36.9], "zoom": 12},
    "auth": {"id": 4, "op": "auth", "token": "an access token"},
    "ping": {"id": 5, "op": "ping"},
}

# who may listen, by kind of channel (api/auth.py, `may_listen`)
WHO: Final[dict[str, str]] = {
    "bus, trip, route, stop, seats, bbox": "everybody",
    "booking": "the customer whose it is, PARTNER_ADMIN and AGENT of the operator, SUPER_ADMIN, a guest who sent auth with its holdToken",
    "fleet, incidents": "PARTNER_ADMIN and AGENT of the operator, SUPER_ADMIN",
    "notifications": "whoever is signed in: their own",
}
REFUSALS: Final = (Invalid, Unauthenticated, Forbidden, TooMany, TooManyChannels, Unavailable)

_AT: Final = 1_795_244_709_250
_AHEAD: Final = StopForecast("END", 31, _AT + 50_000, _AT + 62_000, _AT + 80_000, 32, "ESTIMATED", _AT + 70_000)
_POS: Final = frames.pos(
    Position(
        "ALG-101", "demo", "demo", "104-END-0-031", "104", "20261121", 36.753812, 3.058756, 271.0, 9.4, 1841.2, 3.1, "IN_TRIP", 32, _AHEAD,
        _AT, _AT + 180, 30, 12,
    )
)  # fmt: skip
_ETA: Final = frames.eta("demo", TripForecast("ALG-101", "104-END-0-031", "20261121", "104", _AT, (_AHEAD,)))
_STOP: Final = frames.served("demo", StopEvent("e1", "ALG-101", "104-END-0-031", "20261121", "104", "END", 31, _AT, _AT + 9_000, "SERVED"))
_INCIDENT: Final = frames.incident(
    "demo",
    IncidentEvent(
        "e2", "5d0f2c7a9b1e4c3d", "OFF_ROUTE", "MAJOR", "ALG-101", "104-END-0-031", "20261121", "104", _AT, None, 36.7561, 3.0592,
        '{"maxOffsetM":240,"leftM":1841,"bypassedStops":[]}',
    ),
)  # fmt: skip
_TRIP: Final = "trip:demo:104-END-0-031:20261121"
_SOLD: Final = "demo:W1-0-00:20261121"
# kind -> (channel, body) as they are sent
PUSHES: Final[dict[str, tuple[str, Any]]] = {
    "snapshot": ("bus:ALG-101", [_POS]),
    "pos": ("bus:ALG-101", _POS),
    "eta": (_TRIP, _ETA),
    "stop": (_TRIP, _STOP),
    "gone": ("bbox", Gone("ALG-101")),
    "incident": ("incidents:demo", _INCIDENT),
    "seat": (f"seats:{_SOLD}", SeatSaid("1A", "PICKED", "demo:ALG", "demo:ORN", _AT + 90_000)),
    "booking": (
        "booking:7GK2QX",
        BookingSaid("CONFIRMED", 3, frames.rfc3339(_AT), "7GK2QX", "CONFIRMED", _SOLD, ["1A"], "demo:ALG", "demo:ORN"),
    ),
    "notice": (f"seats:{_SOLD}", Notice("MAP_CHANGED", 2)),
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


def _example(kind: str) -> Any:
    """The push as it is sent, as plain data."""
    if kind == "drain":
        return {"t": "drain", "d": {"withinMs": 10_000}}
    if kind == "batch":
        return {"t": "batch", "d": [_example("pos"), _example("gone")]}
    channel, body = PUSHES[kind]
    epoch = "9f1c03aa.b2" if kind == "snapshot" else None
    return msgspec.json.decode(frames.push(frames.JSON, (channel,), 4_127, kind, msgspec.json.encode(body), epoch))


def document() -> dict[str, Any]:
    """The whole document, as plain data."""
    structs: dict[str, type] = {
        "pos": Pos, "eta": Eta, "stop": Served, "gone": Gone, "incident": Incident, "seat": SeatSaid, "booking": BookingSaid, "notice": Notice,
        "incident of a trip": TripIncident, "notice of an alert": AlertNotice, "notice of a trip": TripNotice,
    }  # fmt: skip
    schemas, components = msgspec.json.schema_components(structs.values(), ref_template="#/components/schemas/{name}")
    bodies: dict[str, dict[str, Any]] = dict(zip(structs, schemas, strict=True))
    for kind, others in (("incident", ("incident of a trip",)), ("notice", ("notice of an alert", "notice of a trip"))):
        bodies[kind] = {"anyOf": [bodies[kind], *(bodies.pop(other) for other in others)]}
    bodies["snapshot"] = {
        "type": "array",
        "items": {"anyOf": [bodies[kind] for kind in ("pos", "eta", "seat", "booking", "incident")]},
        "description": "what pushes of the channel carry: of a position channel pos, of a stop channel eta, of an ordered channel its own",
    }
    bodies["drain"] = {"type": "object", "required": ["withinMs"], "properties": {"withinMs": {"type": "integer"}}}
    bodies["batch"] = {"type": "array", "items": {"type": "object"}, "description": "several pushes in one frame"}
    pushes = {kind: _message(kind, _push(kind, body), _example(kind)) for kind, body in sorted(bodies.items())}
    for kind in ("batch", "drain"):
        pushes[kind]["payload"]["required"] = ["t", "d"]
    asks = {
        op: _message(op, {"type": "object", "required": ["op"], "properties": {"op": {"const": op}}}, EXAMPLES[op])
        for op in sorted(EXAMPLES)
    }
    codes = [leaf.code for leaf in REFUSALS]
    reply = {
        "type": "object",
        "required": ["id"],
        "properties": {
            "id": {"oneOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}]},
            "ok": {"const": True},
            "e": {"type": "string"},
            "o": {"type": "integer"},
            "recovered": {"type": "boolean"},
            "error": {"type": "object", "required": ["code"], "properties": {"code": {"enum": codes}, "detail": {"type": "string"}}},
        },
    }
    messages = {
        **{f"ask.{op}": m for op, m in asks.items()},
        **{f"push.{kind}": m for kind, m in pushes.items()},
        "reply": _message("reply", reply, {"id": 1, "ok": True, "ch": "bus:ALG-101", "e": "9f1c03aa.b2", "o": 4_127, "recovered": False}),
    }
    closes = "\n".join(f"- {code}: {meaning}" for code, meaning in CLOSE_CODES.items())
    who = "\n".join(f"- {kinds}: {people}" for kinds, people in WHO.items())
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Timepoint live",
            "version": "1",
            "description": "Subprotocols `timepoint.v1.json` (default) and `timepoint.v1.msgpack`. Who may listen:\n\n"
            + who
            + "\n\nClose codes:\n\n"
            + closes,
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
