"""The console in a real Chromium: numbers, tables that filter and sort, and who sees what."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_admin_sees_numbers_journal_indexes_and_keys(world, sign_in, samples):
    page = sign_in()
    page.goto(f"{world.url}/console")
    outer = [row for row in world.journal if not row["parent_id"]]
    figures = page.locator(".figure strong")
    expect(figures.nth(0)).to_have_text(str(len(outer)))
    expect(figures.nth(1)).to_have_text(str(sum(row["status"] >= 500 for row in outer)))
    journal = page.locator("#journal")
    expect(journal.locator("tbody tr")).to_have_count(15)
    journal.get_by_label("Filter journal").fill("429")
    expect(journal.locator("tbody tr")).to_have_count(sum(row["status"] == 429 for row in world.journal))
    journal.get_by_label("Filter journal").fill("")
    journal.locator("th").nth(5).click()
    first = journal.locator("tbody tr").first.locator("td").nth(5)
    expect(first).to_have_text(str(min(row["latency_ms"] for row in world.journal)))
    page.locator("#indexes summary").click()
    expect(page.locator(".skipped")).to_contain_text("not a PDF: its header is missing")
    expect(page.locator(".skipped")).to_contain_text(samples.xss[1])
    expect(page.locator("#keys")).to_contain_text("team-a")
    assert "smk_" not in page.content()
    page.get_by_role("button", name="1 hour").click()
    expect(page.get_by_role("button", name="1 hour")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="24 hours").click()
    expect(figures.nth(0)).to_have_text(str(len(outer)))
    page.evaluate("document.querySelector('.console').scrollTo(0, 0)")
    samples.artifacts.mkdir(exist_ok=True)
    page.screenshot(path=samples.artifacts / "console.png")
    page.get_by_role("button", name="Dark mode").click()
    page.screenshot(path=samples.artifacts / "console-dark.png")


def test_others_see_their_own_calls_and_no_keys(world, sign_in):
    page = sign_in(world.alice_key)
    page.goto(f"{world.url}/console")
    mine = [row for row in world.journal if row["caller"] == "alice" and not row["parent_id"]]
    expect(page.locator(".figure strong").first).to_have_text(str(len(mine)))
    expect(page.locator("#keys")).to_have_count(0)
    expect(page.locator("#journal")).not_to_contain_text("nightly-report")


def test_a_revoked_key_sees_nothing_more(world, sign_in):
    page = sign_in(world.identity.create_key("curious")[1])
    page.goto(f"{world.url}/console")
    page.locator(".figure").first.wait_for()
    for key in world.identity.list_keys("curious"):
        world.identity.revoke(key.id)
    page.get_by_role("button", name="7 days").click()
    page.wait_for_url("**/login?next=/console")
