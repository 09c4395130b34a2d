"""The README's lines do what it says, word for word, on a running product."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from tests.product import Product

README = Path(__file__).resolve().parent.parent / "README.md"


def block(heading: str) -> str:
    """The first shell block below a heading."""
    below = README.read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1]
    found = re.search(r"```sh\n(.*?)```", below, re.S)
    assert found is not None
    return found[1]


def test_a_seat_is_booked_by_the_lines_of_the_readme(product: Product, tmp_path: Path) -> None:
    lines = block("Book a seat")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines],
        cwd=tmp_path,
        env=os.environ | {"API": f"{product.base_url}/v1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr + "".join(path.read_text() for path in tmp_path.glob("*.json"))
    confirmed, verified, refused = done.stdout.splitlines()
    seat = json.loads((tmp_path / "hold.json").read_text())["seats"][0]["seat"]
    assert (confirmed, verified) == ("CONFIRMED", "VALID")
    assert refused.startswith(f"{seat} on ") and "taken" in refused
    assert (tmp_path / "ticket.svg").read_text().startswith(("<?xml", "<svg"))
