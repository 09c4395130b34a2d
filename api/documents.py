"""`python -m api.documents`: the documents that are made from the code and kept under docs/, so that a reader needs no running engine.

A test makes them again and fails when they differ from what is kept.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Final

from api import asyncapi
from api.app import make_app
from api.openapi import described
from api.parts import Parts
from api.routers import ROOTS, ROUTERS
from engine import settings as settings_
from engine.booking.booking import diagram
from engine.clock import ManualClock
from engine.live.hub import Hub
from engine.live.table import LiveTable
from engine.settings import Settings

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"


def settings_table() -> str:
    """docs/settings.md."""
    lines = ["# Settings", "", "Every setting is an environment variable. Made from `engine/settings.py` by `make docs`.", ""]
    lines += ["| variable | type | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {kind} | `{default}` | {reason} |" for name, kind, default, reason in settings_.describe()]
    return "\n".join(lines) + "\n"


def openapi() -> str:
    """docs/openapi.json: the REST side without the pages and the device paths (docs/devices.md)."""
    settings, clock, table = Settings(), ManualClock(), LiveTable()
    parts = Parts(settings=settings, clock=clock, table=table, hub=Hub(table, settings, clock))
    app = make_app(parts, ROUTERS, roots=ROOTS)
    return json.dumps(described(app.litestar.openapi_schema.to_schema()), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def booking_states() -> str:
    """docs/booking.md, its state diagram drawn from the table of moves."""
    kept = (DOCS / "booking.md").read_text(encoding="utf-8")
    return re.sub(r"```mermaid\n.*?```", f"```mermaid\n{diagram()}```", kept, flags=re.S)


def made() -> dict[str, str]:
    """Name under docs/ -> text."""
    return {
        "settings.md": settings_table(),
        "booking.md": booking_states(),
        "openapi.json": openapi(),
        "asyncapi.json": json.dumps(asyncapi.document(), indent=1, ensure_ascii=False) + "\n",
    }


def main() -> int:
    for name, text in made().items():
        (DOCS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
