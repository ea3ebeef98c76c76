"""axe finds nothing serious on any page, in light and dark, wide and on a phone."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.serving.ui.test_chat import ask, done

pytestmark = pytest.mark.browser

_SETTLED = """async () => {
    const ends = each => each.effect && each.effect.getComputedTiming().endTime < Infinity;
    await Promise.all(document.getAnimations().filter(ends).map(each => each.finished.catch(() => null)));
    for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame);
}"""


def axe(page: Page, where: str) -> list[str]:
    """Serious and critical violations, each with the elements that have it."""
    package = find_spec("axe_playwright_python")
    assert package is not None
    assert package.origin is not None
    page.evaluate((Path(package.origin).parent / "axe.min.js").read_text())
    for _ in range(3):  # colours of the theme before are no violation: what is found once more is
        page.evaluate(_SETTLED)
        found = page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
        if not any(each["impact"] in ("serious", "critical") for each in found["violations"]):
            return []
        page.wait_for_timeout(300)
    return [
        f"{where}: {each['id']} ({each['help']}): {[node['html'][:160] for node in each['nodes'][:4]]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]


def both(page: Page, where: str) -> list[str]:
    """In both themes, and on a phone."""
    wrong = axe(page, where)
    dark = page.locator("[data-theme-toggle]").last
    if dark.is_visible():
        dark.click()
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        wrong += axe(page, f"{where}, dark")
        dark.click()
        expect(page.locator("html")).to_have_attribute("data-theme", "light")
    page.set_viewport_size({"width": 390, "height": 844})
    wrong += axe(page, f"{where}, phone")
    page.set_viewport_size({"width": 1280, "height": 860})
    return wrong


def test_chat_and_documents(world, sign_in):
    page = sign_in()
    wrong = both(page, "empty chat")
    ask(page, "How do I install it?")
    done(page).locator("summary").first.click()
    ask(page, "Which ways are there?")
    done(page)
    wrong += both(page, "chat")
    page.locator(".thread.current").get_by_role("button", name="Rename").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    wrong += axe(page, "dialog")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.goto(f"{world.url}/?thread=none")
    ask(page, "approve please")
    expect(page.locator(".ask").first).to_be_visible()
    wrong += axe(page, "approval")
    page.goto(f"{world.url}/documents/main.default.docs/guide?start=10&end=60")
    wrong += both(page, "document")
    page.goto(f"{world.url}/login")
    wrong += both(page, "login")
    assert not wrong, "\n".join(wrong)


def test_the_console(console):
    page = console()
    wrong = both(page, "home")
    for name in ("Endpoints", "Journal", "Indexes", "Experiments", "Fine-tuning", "Evaluations", "Review", "Access"):
        page.get_by_role("link", name=name, exact=True).click()
        expect(page.get_by_role("heading", name=name, exact=True, level=1)).to_be_visible()
        expect(page.locator(".grid, .empty-state").first).to_be_visible()
        opens = page.locator(".cell-link:not(:empty)").first
        if name in ("Endpoints", "Journal"):
            opens.click()
            expect(page.locator(".detail h2")).to_be_visible()
        filled = name in ("Endpoints", "Journal", "Indexes", "Access")  # the others are looked at where they have rows
        wrong += both(page, name) if filled else axe(page, name)
    assert not wrong, "\n".join(wrong)
