"""How true tracking is: every measure of it, one after the other, each with its bars.

    python -m bench.truth                    simulated: matching, assignment, deviation, fences, the step list (about ten minutes)
    python -m bench.truth --data DIR         and recorded days: DIR/*/{gtfs.zip,fixes.csv.gz} are replayed and judged, labelled traces watched
    python -m bench.truth --only match fences

The exit code is the number of measures that missed a bar or failed. What each figure means: docs/truth.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PARTS = ("match", "assignment", "deviation", "fences", "steps", "arrivals")


def commands(part: str, data: Path | None, out: Path) -> Iterator[list[str]]:
    """What is run for a part, without the interpreter."""
    given = ["--data", str(data)] if data is not None else []
    if part == "match":
        feeds = sorted(data.glob("*/gtfs*.zip")) if data is not None else []
        yield ["bench.match", *(word for feed in feeds for word in ("--feed", str(feed)))]
    elif part == "assignment":
        yield ["bench.assignment", *given]
    elif part == "deviation":
        for each in ("recorded", "noise", "detours") if data is not None else ("noise", "detours"):
            yield ["bench.deviation", *given, "--part", each]
    elif part == "fences":
        yield ["bench.fences"]
    elif part == "steps":
        yield ["bench.fold"]
    elif data is not None:
        folders = [fixes.parent for fixes in sorted(data.glob("*/fixes.csv.gz")) if (fixes.parent / "gtfs.zip").is_file()]
        for folder in folders:
            places = ["--feed", str(folder / "gtfs.zip"), "--fixes", str(folder / "fixes.csv.gz"), "--out", str(out / folder.name)]
            yield ["api.cli", "replay", *places]
        if folders:
            truths = [folder / "arrivals.csv.gz" for folder in folders]
            known = ["--arrivals"] * all(path.is_file() for path in truths)
            reports = [word for folder in folders for word in ("--out", str(out / folder.name))]
            yield ["api.cli", "eta-report", "--strict", *reports, *(word for path in truths for word in (*known, str(path)) if known)]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.truth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of recorded days")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as out:
        for part in args.only:
            for command in commands(part, args.data, Path(out)):
                shown = " ".join(command)
                print(f"\n=== {shown}", flush=True)
                if subprocess.run([sys.executable, "-m", *command], check=False).returncode:
                    missed.append(shown)
    print("\n" + ("\n".join(f"missed a bar or failed: {one}" for one in missed) or "every bar is reached"))
    return len(missed)


if __name__ == "__main__":
    sys.exit(main())
