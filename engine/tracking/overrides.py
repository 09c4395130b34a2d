"""Settings that a replay may try: every field of the arrival model, and every threshold of what is watched, by dotted name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, get_args

import msgspec

from engine.errors import Invalid
from engine.tracking.eta import ArrivalConfig
from engine.tracking.rules import WatchConfig

WATCH: Final = "watch"  # the prefix of thresholds that decide what deserves a word


def configured(overrides: Mapping[str, str]) -> tuple[ArrivalConfig, WatchConfig]:
    """The defaults with some fields set by dotted name: `silent_s` and `pace.noise_s` of the arrivals, `watch.off_m` of what is watched.

    Raises `Invalid` that names each bad one.
    """
    tree: dict[str, Any] = msgspec.to_builtins(ArrivalConfig()) | {WATCH: msgspec.to_builtins(WatchConfig())}
    faults = []
    for name, text in overrides.items():
        *rooms, leaf = name.split(".")
        place: Any = tree
        for room in rooms:
            place = place.get(room) if isinstance(place, dict) else None
        if not isinstance(place, dict) or leaf not in place or isinstance(place[leaf], dict):
            detail = "no such setting of the arrival model, and none of the watches (watch.NAME)"
            faults.append({"pointer": name, "code": "UNKNOWN_SETTING", "detail": detail})
            continue
        before = place[leaf]
        try:
            place[leaf] = msgspec.json.decode(text)
            _converted(tree)
        except msgspec.MsgspecError as fault:
            place[leaf] = before
            faults.append({"pointer": name, "code": "BAD_SETTING", "detail": f"{text!r}: {fault}"})
    if faults:
        raise Invalid("bad settings: " + "; ".join(f"{f['pointer']}: {f['detail']}" for f in faults), errors=faults)
    return _converted(tree)


def settable() -> list[tuple[str, str, str]]:
    """(dotted name, default, reason) of everything that `overrides` may set."""
    found: list[tuple[str, str, str]] = []

    def gather(kind: type[msgspec.Struct], prefix: str) -> None:
        for field in msgspec.structs.fields(kind):
            default = getattr(kind(), field.name)
            if isinstance(default, msgspec.Struct):
                gather(type(default), f"{prefix}{field.name}.")
            else:
                reasons = [meta.description for meta in get_args(field.type)[1:] if isinstance(meta, msgspec.Meta) and meta.description]
                found.append((prefix + field.name, msgspec.json.encode(default).decode(), reasons[0] if reasons else ""))

    gather(ArrivalConfig, "")
    gather(WatchConfig, WATCH + ".")
    return found


def _converted(tree: Mapping[str, Any]) -> tuple[ArrivalConfig, WatchConfig]:
    arrivals = {name: value for name, value in tree.items() if name != WATCH}
    return msgspec.convert(arrivals, ArrivalConfig), msgspec.convert(tree[WATCH], WatchConfig)
