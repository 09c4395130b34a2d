"""The printed manifest in a real Chromium: in both themes, at desk and phone size, with nothing from outside and nothing that the policy forbids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route

from api.app import CONTENT_SECURITY_POLICY
from api.manifest_page import page as manifest_page
from api.pages import TYPES, WEB
from engine.booking.manifest import LookAt, Manifest, Travels
from tests.test_browser_pages import ARTEFACTS, AXE, SIZES, browser  # noqa: F401  # the fixture

pytestmark = pytest.mark.browser

PEOPLE = (
    ("1A", "Amal", "Benaïssa", "BOARDED", "2026-11-21T07:52:10.000Z"),
    ("1B", "محمد الأمين", "بن عيسى", "CHECKED_IN", None),
    ("2C", "Maximiliana Wilhelmina Johanna", "van der Westhuizen-Kowalczyk", "BOOKED", None),
    ("3D", "<b>Ilyes</b>", "Kaci", "NO_SHOW", None),
)


def travels(seat: str, first: str, last: str, state: str, boarded_at: str | None) -> Travels:
    return Travels(
        seat=seat, passenger=f"{first} {last}", first_name=first, last_name=last, type="ADULT", from_="Alger, gare routière du Caroubier",
        to="Oran, El Hamri", from_stop_id="demo:ALG", to_stop_id="demo:ORN", state=state, reference="K7M2PX", channel="WEB",
        phone="+213 550 12 34 56", needs=None, ticket_id=None, ticket_version=None, boarded_at=boarded_at, boarded_by=None,
    )  # fmt: skip


def manifest(*people: Travels, odd: bool = False) -> Manifest:
    look_at = LookAt(
        result="DUPLICATE_OFFLINE", told="BOARDED", meaning="another device had boarded this ticket before, and this one was offline: look at both",
        seat="1A", reference="K7M2PX", device="door-7", seq=4, scanned_at="2026-11-21T07:53:00.000Z", received_at="2026-11-21T08:20:00.000Z",
        boarded_at=None, boarded_by=None,
    )  # fmt: skip
    states = [one.state for one in people]
    return Manifest(
        trip_id="demo:COACH-ORN-0900:20261121", route_id="demo:C1", headsign="Oran", operator="Sahel Coaches", status="SCHEDULED",
        bus_id="BUS-C17", timezone="Africa/Algiers", departs_at="2026-11-21T08:00:00.000Z", arrives_at="2026-11-21T13:10:00.000Z",
        map_version=1, made_at="2026-11-21T07:55:00.000Z",
        counts={"passengers": len(people), "seats": 48} | {state: states.count(state) for state in ("BOOKED", "CHECKED_IN", "BOARDED", "NO_SHOW")},
        passengers=list(people), look_at=[look_at] if odd else [], revoked=[], keys=[], trip_secrets=[],
    )  # fmt: skip


@pytest.fixture
def opened(browser: Browser) -> Iterator[Any]:  # noqa: F811
    contexts = []

    def open_(text: str, theme: str, size: str) -> tuple[Page, list[str]]:
        context = browser.new_context(viewport=SIZES[size], color_scheme=theme)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)

        def answer(route: Route) -> None:
            path = route.request.url.removeprefix("http://desk")
            if path.startswith("/assets/"):
                file = WEB / "assets" / path.removeprefix("/assets/")
                route.fulfill(body=file.read_bytes(), content_type=TYPES[file.suffix])
            elif path == "/manifest":
                route.fulfill(
                    body=text, content_type="text/html; charset=utf-8", headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY}
                )
            else:
                errors.append(f"asked for {route.request.url}")
                route.abort()

        page.route("**/*", answer)
        page.goto("http://desk/manifest")
        return page, errors

    yield open_
    for context in contexts:
        context.close()


@pytest.mark.parametrize(("theme", "size"), [("light", "desk"), ("dark", "desk"), ("light", "phone"), ("dark", "phone")])
def test_the_manifest_is_read_at_the_door(opened: Any, theme: str, size: str) -> None:
    page, errors = opened(manifest_page(manifest(*(travels(*one) for one in PEOPLE), odd=True)), theme, size)
    assert page.get_by_text("Amal Benaïssa").is_visible()
    assert page.get_by_text("<b>Ilyes</b> Kaci").is_visible(), "what people write stays text"
    assert "09:00" in page.locator("header").inner_text(), "times are the trip's"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing hangs over the edge"
    page.evaluate("() => document.fonts.ready")
    found = page.evaluate(f"async () => {{ {AXE.read_text(encoding='utf-8')}; return (await axe.run(document)).violations }}")
    assert not [one["id"] for one in found if one["impact"] in ("serious", "critical")]
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"manifest-{theme}-{size}.png", full_page=True)
    assert not errors


def test_a_bus_that_nobody_has_booked_says_so(opened: Any) -> None:
    page, errors = opened(manifest_page(manifest()), "light", "phone")
    assert page.get_by_text("Nobody has booked yet.").is_visible()
    assert not errors
