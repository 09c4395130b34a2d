"""A page that we write as one file, on a phone: it fits, asks for nothing, and everybody can read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.test_browser_pages import AXE, SIZES

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def holds_on_a_phone(browser: Browser, page: Path, theme: str) -> None:
    context = browser.new_context(viewport=SIZES["phone"], color_scheme=theme)  # type: ignore[arg-type]
    try:
        shown = context.new_page()
        asked: list[str] = []
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto(page.as_uri())
        assert shown.evaluate("document.documentElement.scrollWidth") <= SIZES["phone"]["width"]
        assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
        if AXE.exists():
            shown.evaluate(AXE.read_text(encoding="utf-8"))
            found = shown.evaluate("axe.run()")["violations"]
            assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
    finally:
        context.close()
