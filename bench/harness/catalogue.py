"""Which scenarios there are, by name; each is imported when it is asked for. One's own: `my_scenario.py`, `my_scenario.py:Class` or `package.module:Class`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

from bench.harness.scenario import Scenario

LISTED: Final = {
    "ingest-http": "bench.harness.ingest_http:IngestHttp",
    "reads": "bench.harness.reads:Reads",
    "ingest-batch": "bench.loads.ingest:IngestBatch",
    "ingest-ws": "bench.loads.ingest:IngestWs",
    "ingest-mqtt": "bench.loads.ingest:IngestMqtt",
    "osmand": "bench.loads.ingest:OsmAnd",
    "fanout": "bench.loads.fanout:Fanout",
    "slow-client": "bench.loads.fanout:SlowClient",
    "seat-rush": "bench.loads.seats:SeatRush",
    "booking": "bench.loads.seats:Booking",
    "mixed-city": "bench.loads.city:MixedCity",
    "soak": "bench.loads.city:Soak",
    "reconnect-storm": "bench.loads.reconnect:ReconnectStorm",
    "replay": "bench.loads.replay:Replay",
}


def find(name: str) -> type[Scenario]:
    """Raises ValueError with what there is instead."""
    where = LISTED.get(name, name)
    place, _, wanted = where.partition(":")
    if place.endswith(".py"):
        return _only(_from_file(Path(place)), wanted)
    if not wanted:
        raise ValueError(f"no scenario {name!r}: one of {', '.join(LISTED)}, a file.py of your own, or package.module:Class")
    try:
        return _only(importlib.import_module(place), wanted)
    except ModuleNotFoundError as fault:
        raise ValueError(f"{name}: {fault}") from None


def reference(kind: type[Scenario], name: str) -> str:
    """What another process finds it by."""
    return LISTED.get(name, str(Path(name.partition(":")[0]).resolve()) + ":" + kind.__name__ if ".py" in name else name)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"scenario_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as fault:  # the file is a stranger's: whatever it raises is why it does not import
        raise ValueError(f"{path} does not import: {type(fault).__name__}: {fault}") from fault
    return module


def _only(module: ModuleType, wanted: str) -> type[Scenario]:
    """The scenario of that name, or the only one that the module defines."""
    found = {
        name: kind
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, Scenario) and kind.__module__ == module.__name__
    }
    if wanted and wanted not in found:
        raise ValueError(f"{module.__name__} has no scenario {wanted!r}: {', '.join(found) or 'none at all'}")
    if not wanted and len(found) != 1:
        raise ValueError(f"{module.__name__} has {len(found)} scenarios: say which, file.py:Class")
    kind = found[wanted] if wanted else next(iter(found.values()))
    missing = [name for name in ("name", "summary", "unit", "measures") if not hasattr(kind, name)]
    if missing:
        raise ValueError(f"{kind.__name__} does not say its {', '.join(missing)}")
    return kind
