"""A shared link in a real Chromium: made on the page of a trip, opened by somebody else."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser

from tests.product import Product
from tests.test_browser_pages import browser, opened  # noqa: F401  # a fixture

pytestmark = pytest.mark.browser


def test_a_trip_is_shared_and_whoever_has_the_link_sees_it(browser: Browser, product: Product) -> None:  # noqa: F811
    bus = product.running_trip()
    seen = opened(browser, product, f"/trip/{bus['tripId']}", "light", "phone")
    with seen.page.expect_response(re.compile(r"/share$")) as made:
        seen.page.get_by_role("button", name="Share this trip").click()
    link = made.value.json()["url"]
    seen.page.wait_for_function("() => document.getElementById('shared').textContent.length > 10")
    assert not seen.serious()
    seen.assert_clean()
    title = seen.page.locator("#title").inner_text()
    seen.page.context.close()
    assert link.startswith(product.base_url + "/share/")
    other = opened(browser, product, link.removeprefix(product.base_url), "dark", "desk")
    other.page.locator("#stops li").first.wait_for()
    assert other.page.locator("#title").inner_text() == title
    other.assert_clean()
    other.page.goto(product.base_url + "/share/" + "x" * 24)
    other.page.get_by_role("heading", name="This link leads nowhere").wait_for()
    other.page.context.close()
