"""What goes wrong, on the pages: a call for help beside the fleet map, an alert on the page of a trip, as soon as they are said."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.product import Product
from tests.test_browser_pages import browser, opened, shot  # noqa: F401  # the fixture of a running Chromium

pytestmark = pytest.mark.browser
PATIENT_MS = 90_000  # WebGL in software beside a product that has two cores for everything


def answered(product: Product, method: str, path: str, body: Any = None) -> Any:
    answer = product.http.request(method, path, json=body, headers=product.admin)
    assert answer.status_code < 300, answer.text
    return answer.json()


def test_a_call_for_help_stands_beside_the_map_goes_to_its_bus_and_is_dimmed_once_somebody_looks_after_it(
    browser: Browser,  # noqa: F811
    product: Product,
) -> None:
    bus = product.running_trip()
    seen = opened(browser, product, "/fleet", "light", "phone")
    page = seen.page
    page.set_default_timeout(PATIENT_MS)
    page.wait_for_function("() => window.timepoint && window.timepoint.buses.size > 5")
    page.locator("#inbox-toggle").click()
    page.locator("#token").fill(product.token("PARTNER_ADMIN"))
    page.get_by_role("button", name="Open", exact=True).click()
    page.locator("#sign-in").wait_for(state="hidden")
    called = answered(product, "POST", "/v1/sos", {"busId": bus["busId"], "lat": bus["lat"], "lon": bus["lon"]})
    row = page.locator(f".incident[data-id='{called['incidentId']}']")
    row.wait_for()
    assert row.locator(".severity").inner_text() == "Critical" and bus["busId"] in row.inner_text()
    row.locator("button.plain").click()
    page.wait_for_function(
        "([lon, lat]) => { const at = window.timepoint.map.getCenter(); return Math.hypot(at.lng - lon, at.lat - lat) < 0.05 }",
        arg=[bus["lon"], bus["lat"]],
    )
    assert bus["busId"] in page.locator("#card h2").inner_text()
    page.keyboard.press("Escape")
    assert not seen.serious()
    shot(page, "incidents-light-phone")
    row.get_by_role("button", name="Acknowledge").click()
    page.locator(f".incident.handled[data-id='{called['incidentId']}']").wait_for()
    answered(product, "PATCH", f"/v1/incidents/{called['incidentId']}", {"state": "CLOSED"})
    page.locator(f".incident.over[data-id='{called['incidentId']}']").wait_for()
    seen.assert_clean()
    page.context.close()


def test_a_trip_page_says_what_its_operator_wrote_and_takes_it_back(browser: Browser, product: Product) -> None:  # noqa: F811
    bus = product.running_trip()
    seen = opened(browser, product, f"/trip/{bus['tripId']}", "light", "phone")
    page = seen.page
    page.set_default_timeout(PATIENT_MS)
    page.wait_for_function("() => document.getElementById('state').textContent === 'live'")
    body = {
        "header": {"en": "Works at the post office"},
        "description": {"en": "Get in one stop earlier."},
        "informed": [{"tripId": bus["tripId"]}],
    }
    alert = answered(product, "POST", "/v1/admin/alerts", body)
    page.locator("#notices").get_by_text("Works at the post office").wait_for()
    assert "Get in one stop earlier." in page.locator("#notices").inner_text()
    assert not seen.serious()
    shot(page, "trip-alert-light-phone")
    answered(product, "DELETE", f"/v1/admin/alerts/{alert['alertId']}")
    page.locator("#notices").get_by_text("Works at the post office").wait_for(state="detached")
    seen.assert_clean()
    page.context.close()
