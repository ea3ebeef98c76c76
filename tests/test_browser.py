"""The chat page in a real browser over the real server: ask, read, open the cited passage. Makes the README's picture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.live import ROOT, serving

ARTIFACTS = Path(__file__).parent / "artifacts"
QUESTION = "How do I add my own examples to the router?"


@pytest.mark.browser
def test_a_person_asks_and_opens_the_cited_passage(tmp_path: Path, chromium: Browser) -> None:
    with serving(tmp_path / "home", ROOT / "docs") as live:
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        asked_of: list[str] = []
        page.on("request", lambda request: asked_of.append(request.url))
        page.goto(live.told["chat"])
        box = page.get_by_role("textbox", name=re.compile("ask|message|question", re.I)).first
        box.wait_for(timeout=30_000)
        box.fill(QUESTION)
        box.press("Enter")
        chip = page.locator("a[href*='/documents/']").first
        chip.wait_for(timeout=30_000)
        page.wait_for_timeout(600)
        ARTIFACTS.mkdir(exist_ok=True)
        page.screenshot(path=ARTIFACTS / "readme.png")
        target = chip.get_attribute("href")
        assert target
        page.goto(live.url + target if target.startswith("/") else target)
        mark = page.locator("mark#passage")
        mark.wait_for(timeout=10_000)
        assert mark.is_visible()
        assert mark.inner_text().strip()
        outside = [url for url in asked_of if not url.startswith((live.url, live.url.replace("http", "ws", 1), "data:", "blob:"))]
        assert outside == []
        page.close()
