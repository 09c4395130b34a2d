"""The pages in a real Chromium: what a person sees on first opening, in both themes, at desk and phone size, with no internet."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.product import Product

CHECKOUT = Path(__file__).resolve().parent.parent
AXE = CHECKOUT / "api/web/node_modules/axe-core/axe.min.js"
ARTEFACTS = CHECKOUT / "test-artifacts"
FLAGS = [
    "--no-sandbox", "--enable-unsafe-swiftshader", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic",
]  # fmt: skip
SIZES = {"desk": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 780}}

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium, or say where it is in CHROMIUM")
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=found, args=FLAGS)
        yield running
        running.close()


class Seen:
    """What a page did besides showing itself."""

    def __init__(self, page: Page, product: Product) -> None:
        self.page, self.errors, self.outside = page, [], []  # type: ignore[var-annotated]
        home = urlsplit(product.base_url).netloc
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._went(request.url, home))

    def _went(self, url: str, home: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != home:
            self.outside.append(url)

    def assert_clean(self) -> None:
        assert not self.errors
        assert not self.outside

    def serious(self) -> list[str]:
        """Findings of axe that are serious or critical."""
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found: list[dict[str, Any]] = self.page.evaluate("async () => (await axe.run(document)).violations")
        return [f"{one['id']}: {one['nodes'][0]['html'][:160]}" for one in found if one["impact"] in ("serious", "critical")]


def opened(browser: Browser, product: Product, path: str, theme: str, size: str) -> Seen:
    context = browser.new_context(viewport=SIZES[size], color_scheme=theme, timezone_id="Africa/Algiers")  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(30_000)
    seen = Seen(page, product)
    page.goto(product.base_url + path)
    return seen


@pytest.mark.parametrize(("theme", "size"), [("light", "desk"), ("dark", "phone")])
def test_the_fleet_map_shows_moving_buses_on_first_opening(browser: Browser, product: Product, theme: str, size: str) -> None:
    product.running_trip()
    seen = opened(browser, product, "/fleet", theme, size)
    page = seen.page
    page.wait_for_function("() => window.timepoint && window.timepoint.buses.size > 5")
    assert page.locator("#state").inner_text() == "live"
    positions = "Object.fromEntries([...window.timepoint.buses].map(([id, bus]) => [id, `${bus.lat},${bus.lon}`]))"
    before = page.evaluate(positions)
    page.wait_for_function(
        f"before => {{ const now = {positions}; return Object.keys(before).filter(id => now[id] && now[id] !== before[id]).length > 3 }}",
        arg=before,
    )
    inked = (
        "() => { const { marks } = window.timepoint, { canvas, all } = marks, ratio = devicePixelRatio;"
        " return [...all.values()].filter(({ left, top }) => left > 0 && top > 0 && left < marks.width && top < marks.height"
        " && canvas.getContext('2d').getImageData(left * ratio, top * ratio, 1, 1).data[3] > 0).length > 3 }"
    )
    page.wait_for_function(inked)  # there is paint where a bus is
    assert not seen.serious()
    shot(page, f"fleet-{theme}-{size}")
    seen.assert_clean()
    page.context.close()


# Where the map says that a bus is which no chip or control covers.
CLICKABLE = """() => {
  const { map, marks } = window.timepoint, box = map.getCanvas().getBoundingClientRect();
  return [...marks.all.values()].map(({ lon, lat }) => map.project([lon, lat]))
    .find(({ x, y }) => document.elementFromPoint(box.left + x, box.top + y) === map.getCanvas());
}"""
FARTHEST = """view => {
  const { map, marks } = window.timepoint;
  map.jumpTo(view);
  marks.paint();
  return Math.max(...[...marks.all.values()].map(({ lon, lat, left, top }) => {
    const { x, y } = map.project([lon, lat]);
    return Math.hypot(x - left, y - top);
  }));
}"""


def test_marks_stand_where_the_map_has_their_places_turned_and_tilted_too(browser: Browser, product: Product) -> None:
    product.running_trip()
    seen = opened(browser, product, "/fleet", "light", "desk")
    seen.page.wait_for_function("() => window.timepoint && window.timepoint.marks.all.size > 2")
    for view in ({"zoom": 10.3}, {"zoom": 13, "bearing": 40}, {"zoom": 12, "bearing": -70, "pitch": 45}):
        assert seen.page.evaluate(FARTHEST, view) < 0.5, view
    seen.assert_clean()
    seen.page.context.close()


def test_a_bus_on_the_map_opens_its_card_and_a_chip_hides_its_class(browser: Browser, product: Product) -> None:
    product.running_trip()
    seen = opened(browser, product, "/fleet", "light", "desk")
    page = seen.page
    page.wait_for_function("() => window.timepoint && window.timepoint.marks.all.size > 2 && window.timepoint.map.loaded()")
    at = page.evaluate(CLICKABLE)
    box = page.locator("#map").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + at["x"], box["y"] + at["y"])
    page.locator("#card h2").wait_for()
    assert page.locator("#card").get_by_text("Heard").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("#card").is_hidden()
    chip = page.get_by_role("button", name="On time")
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    seen.assert_clean()
    page.context.close()


@pytest.mark.parametrize(("theme", "size"), [("light", "phone"), ("dark", "desk")])
def test_a_trip_page_shows_stops_arrivals_with_ranges_and_how_old_the_position_is(
    browser: Browser, product: Product, theme: str, size: str
) -> None:
    bus = product.running_trip()
    seen = opened(browser, product, f"/trip/{bus['tripId']}", theme, size)
    page = seen.page
    page.locator("#stops li").first.wait_for()
    assert page.locator("#stops li").count() == len(product.get(f"/v1/trips/{bus['tripId']}")["stops"])
    page.wait_for_function("() => /updated \\d+ s ago/.test(document.getElementById('age').textContent)")
    assert page.get_by_text("planned").count() > 0
    page.wait_for_function("() => window.timepoint && window.timepoint.map.loaded()")
    assert not seen.serious()
    shot(page, f"trip-{theme}-{size}")
    seen.assert_clean()
    page.context.close()


def test_the_start_page_lists_what_is_on_the_road_and_an_unknown_trip_says_so(browser: Browser, product: Product) -> None:
    product.running_trip()
    seen = opened(browser, product, "/", "light", "desk")
    seen.page.locator("#running a").first.wait_for()
    assert not seen.serious()
    shot(seen.page, "home-light-desk")
    seen.assert_clean()
    seen.page.goto(product.base_url + "/trip/demo:nobody:20260101")
    seen.page.get_by_text("No such trip").wait_for()
    seen.page.context.close()


def shot(page: Page, name: str) -> None:
    """Kept as an artefact of the run, for people to look at."""
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"{name}.png")
