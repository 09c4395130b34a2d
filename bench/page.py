"""The fleet page in a real Chromium: 2,000 buses that report once a second, and how long after its commit each is on the screen.

    python -m bench.page [--buses 2000] [--seconds 20] [--theme dark]

A fix counts as drawn when the frame after the one that painted it begins. From the moment at which the area's owner says the
batch (what comes before that is mixed-city's) until then: hub, gathering, socket, script and map. Also: errors on the console, requests to
anywhere but the product, and what axe finds serious, where the front-end's own packages have it. Needs Chromium; its frames are drawn in software
where there is no graphics card, on the same cores as all the rest.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.load import percentile
from bench.product import CHECKOUT, Area, Product, table, verdict

BAR_MS = 200.0
COMMITS = 20  # a second
AXE = CHECKOUT / "api/web/node_modules/axe-core/axe.min.js"
FLAGS = [
    "--no-sandbox", "--enable-unsafe-swiftshader", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic",
]  # fmt: skip
EPOCH_MS = 1_771_250_709_250  # of Area.position
# A painting remembers whose new fixes it carries; they are drawn once the browser asks for the frame after it: it has then taken this one.
WATCH = """() => {
  const { marks, buses } = window.timepoint, seen = new Map();
  window.drawn = [];
  window.paintings = 0;
  marks.onPaint = () => {
    window.paintings += 1;
    const fresh = [];
    for (const [id, mark] of marks.all) {
      const at = Date.parse(buses.get(id)?.at);
      if (!Number.isNaN(mark.left) && seen.get(id) !== at) { seen.set(id, at); fresh.push(at); }
    }
    requestAnimationFrame(() => { const now = Date.now(); for (const at of fresh) window.drawn.push(now - at); });
  };
}"""
SERIOUS = "async () => (await axe.run(document)).violations.filter(one => ['serious', 'critical'].includes(one.impact)).map(one => one.id)"


def browser_path() -> str | None:
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Traffic(threading.Thread):
    """All buses once a second, in even commits, until told to stop."""

    def __init__(self, area: Area, buses: int) -> None:
        super().__init__(daemon=True)
        self.area, self.buses, self.over = area, buses, threading.Event()
        self.late_ms: list[float] = []

    def run(self) -> None:
        begun, each = time.time(), self.buses / COMMITS
        turn = 0
        while not self.over.is_set():
            due = begun + turn / COMMITS
            time.sleep(max(0.0, due - time.time()))
            self.late_ms.append((time.time() - due) * 1e3)
            at, part = round(time.time() * 1e3) - EPOCH_MS, turn % COMMITS
            self.area.say([self.area.position(f"b{number}", at) for number in range(round(part * each), round((part + 1) * each))])
            turn += 1


def measure(args: argparse.Namespace, executable: str) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    errors: list[str] = []
    outside: list[str] = []
    with Product() as product, sync_playwright() as driver:
        area = Area(product.redis)
        traffic = Traffic(area, args.buses)
        traffic.start()
        running = driver.chromium.launch(executable_path=executable, args=FLAGS)
        page = running.new_context(viewport={"width": 1280, "height": 800}, color_scheme=args.theme).new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: outside.append(request.url) if _elsewhere(request.url, product.port) else None)
        page.goto(f"http://127.0.0.1:{product.port}/fleet")
        page.wait_for_function("() => window.timepoint?.marks")
        page.evaluate("window.timepoint.map.jumpTo({ center: [3.1, 36.75], zoom: 11 })")
        page.wait_for_function(f"() => window.timepoint.buses.size >= {args.buses}", timeout=20_000)
        page.evaluate(WATCH)
        time.sleep(3)
        page.evaluate("() => { window.drawn = []; window.paintings = 0; }")
        traffic.late_ms.clear()
        time.sleep(args.seconds)
        drawn, paintings = page.evaluate("() => [window.drawn, window.paintings]")
        late_ms = sorted(traffic.late_ms)
        if args.shot:
            page.screenshot(path=args.shot)
        serious: list[str] | None = None
        if AXE.exists():
            page.evaluate(AXE.read_text(encoding="utf-8"))
            serious = page.evaluate(SERIOUS)
        traffic.over.set()
        traffic.join()
        running.close()
    return {
        "ms": sorted(drawn),
        "frames": paintings / args.seconds,
        "errors": errors,
        "outside": outside,
        "serious": serious,
        "late_ms": late_ms,
    }


def _elsewhere(url: str, port: int) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != f"127.0.0.1:{port}"


def report(found: dict[str, Any], args: argparse.Namespace) -> bool:
    ms = found["ms"]
    p50, p95, p99 = (percentile(ms, share) for share in (0.5, 0.95, 0.99))
    missing = len(ms) < 0.9 * args.buses * args.seconds
    rows = [
        ("drawn after the commit, p95 ms", f"{p95:.0f}", f"< {BAR_MS:.0f}", verdict(p95, BAR_MS), f"p50 {p50:.0f}, p99 {p99:.0f}"),
        (
            "fixes drawn of those said",
            f"{len(ms) / (args.buses * args.seconds):.2f}",
            ">= 0.90",
            "SHORT" if missing else "pass",
            "newest wins",
        ),
        ("paintings of the marks a second", f"{found['frames']:.1f}", "", "", ""),
        ("errors on the console", str(len(found["errors"])), "0", "SHORT" if found["errors"] else "pass", "; ".join(found["errors"][:2])),
        ("requests elsewhere", str(len(found["outside"])), "0", "SHORT" if found["outside"] else "pass", " ".join(found["outside"][:2])),
    ]
    good = p95 <= BAR_MS and not missing and not found["errors"] and not found["outside"]
    if found["serious"] is None:
        rows += [("axe, serious", "not installed", "0", "", "`make setup` in a checkout has it")]
    else:
        rows += [("axe, serious", str(len(found["serious"])), "0", "SHORT" if found["serious"] else "pass", " ".join(found["serious"]))]
        good &= not found["serious"]
    table(
        f"the fleet page: {args.buses} buses at 1 Hz, Chromium; commits themselves late by p95 {percentile(found['late_ms'], 0.95):.0f} ms",
        rows,
    )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--buses", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument("--shot", type=Path, metavar="FILE.png", help="a picture of the page at the end")
    args = parser.parse_args()
    executable = browser_path()
    if executable is None:
        print("bench page: no Chromium: apt-get install chromium, or say where it is in CHROMIUM", file=sys.stderr)
        return 2
    return 0 if report(measure(args, executable), args) else 1


if __name__ == "__main__":
    sys.exit(main())
