"""The console used as an owner would, over a real server with real calls in its journal."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.serving.ui.test_accessible import axe
from tests.serving.ui.world import ARTIFACTS, XSS

pytestmark = pytest.mark.browser


def pictures(page: Page, name: str) -> None:
    """The whole page, wide in both themes and as on a phone."""
    ARTIFACTS.mkdir(exist_ok=True)
    expect(page.locator(".console-body h1")).to_be_visible()

    def whole(file: str, width: int) -> None:
        page.set_viewport_size({"width": width, "height": 860})
        height = int(page.evaluate("document.querySelector('.console').scrollHeight"))
        page.set_viewport_size({"width": width, "height": min(height + 20, 4000)})
        page.screenshot(path=ARTIFACTS / file)

    whole(f"console-{name}.png", 1280)
    page.get_by_role("button", name="Dark mode").click()
    whole(f"console-{name}-dark.png", 1280)
    page.get_by_role("button", name="Dark mode").click()
    whole(f"console-{name}-phone.png", 390)
    page.set_viewport_size({"width": 1280, "height": 860})


def test_home_tells_what_was_asked_and_what_needs_attention(console, live):
    with live.client() as client:
        rows = client.get("/api/2.0/smalti/journal", params={"limit": 1000}).json()["rows"]
    asked = str(sum(row["parent_request_id"] is None for row in rows))
    page = console()
    figures = page.locator(".figure strong")
    expect(figures.first).to_have_text(asked)
    expect(page.locator(".attention")).to_contain_text("skipped in main.default.docs")
    expect(page.locator(".plot svg").first).to_be_visible()
    row = page.locator(".grid tbody tr", has_text="assistant")
    expect(row).to_contain_text("READY")
    expect(page.locator(".plot figcaption")).to_have_text(
        ["Requests", "Latency, ms", "Tokens", "Cost, $", "Feedback", "Requests by endpoint"]
    )
    page.get_by_role("button", name="7 days").click()
    expect(page.get_by_role("button", name="7 days")).to_have_attribute("aria-pressed", "true")
    expect(figures.first).to_have_text(asked)
    pictures(page, "home")
    page.get_by_role("button", name="Open main.default.docs").click()  # one endpoint's numbers, its inner calls among them
    expect(page.get_by_label("Endpoint", exact=True)).to_have_value("main.default.docs")
    searched = str(sum(row["endpoint_name"] == "main.default.docs" for row in rows))
    expect(figures.first).to_have_text(searched)
    expect(page).to_have_url(re.compile(r"\?endpoint=main\.default\.docs&hours=168$"))
    page.get_by_role("link", name="Its calls in the journal").click()
    expect(page.locator(".grid tbody tr").first).to_contain_text("main.default.docs")


def test_tables_filter_sort_and_leave_as_csv(console):
    page = console("/console/access")
    keys = page.locator("#keys")
    every = keys.locator("tbody tr")
    expect(every.filter(has_text="alice")).to_have_count(1)
    keys.get_by_label("Filter keys").fill("bob")
    expect(every).to_have_count(1)
    keys.get_by_label("Filter keys").fill("")
    keys.locator("th", has_text="Name").click()
    expect(every.first).to_contain_text("admin")
    with page.expect_download() as got:
        keys.get_by_role("button", name="Keys as CSV").click()
    text = got.value.path().read_text()
    assert text.splitlines()[0] == "Key id,Name,Kind,Groups,Rights,Label,State,Made,Expires"
    assert '"bob <script>window.__xss=1</script>"' in text or "bob <script>window.__xss=1</script>," in text


def test_a_limit_is_added_in_place_and_holds(console, live):
    page = console("/console/endpoints?name=minilm")
    page.goto(f"{live.url}/console/endpoints")
    name = page.locator(".cell-link").last.inner_text()
    page.get_by_role("button", name=f"Open {name}").click()
    detail = page.locator(".detail")
    expect(detail.get_by_role("heading", name=name)).to_be_visible()
    detail.get_by_label("Amount").fill("7000")
    detail.get_by_label("For").select_option("user")
    detail.get_by_role("button", name="Add").click()
    expect(detail).to_contain_text("7,000 calls a minute, each user")
    with live.client() as client:
        shown = client.get(f"/api/2.0/serving-endpoints/{name}").json()["ai_gateway"]["rate_limits"]
    assert shown == [{"calls": 7000, "key": "user", "renewal_period": "minute"}]
    pictures(page, "endpoints")
    detail.get_by_role("button", name=re.compile("^Remove")).click()
    expect(detail).to_contain_text("None: whoever is granted")


def test_the_playground_asks_two_endpoints(console):
    page = console("/console/endpoints")
    ground = page.locator(".playground")
    ground.get_by_label("Second").select_option("assistant")
    ground.get_by_label("Question").fill("What do I need to install it?")
    ground.get_by_role("button", name="Ask both").click()
    sides = ground.locator(".versus-side")
    for i in range(2):
        expect(sides.nth(i).locator(".hint")).to_contain_text("request", timeout=20_000)
        expect(sides.nth(i).locator(".prose")).not_to_be_empty()


def test_a_request_opens_with_its_inner_calls(console):
    page = console("/console/journal")
    expect(page.locator(".grid tbody tr").first).to_be_visible()  # the newest calls, before any are looked for
    page.get_by_label("Text in request, answer or error").fill("install")
    page.get_by_label("Caller").fill("admin")
    page.get_by_label("Endpoint", exact=True).fill("assistant")
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".grid tbody tr").first).to_contain_text("assistant")
    page.locator(".grid .cell-link").first.click()
    detail = page.locator(".detail")
    expect(detail).to_contain_text("Took")
    expect(detail.locator(".payload").first).to_contain_text("What do I need to install it?")
    expect(detail.locator(".grid")).to_contain_text("main.default.docs")
    pictures(page, "journal")
    page.reload()  # a request has an address
    expect(detail.locator(".payload").first).to_contain_text("What do I need to install it?")
    page.get_by_label("Text in request, answer or error").fill("no such words at all")
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".empty-state")).to_contain_text("No calls match")


def test_a_query_shows_the_three_ranks(console):
    page = console("/console/indexes")
    expect(page.locator(".grid").first).to_contain_text("ONLINE")
    page.locator("summary").click()
    expect(page.locator(".skipped")).to_contain_text("onerror")
    page.get_by_role("searchbox", name="Query").fill("disk space for Python")
    page.get_by_role("button", name="Search").click()
    found = page.locator(".grid").nth(1)
    expect(found.locator("tbody tr").first.locator("td").first).to_have_text("1")
    expect(found).to_contain_text("three gigabytes")
    pictures(page, "indexes")


def test_keys_and_grants_are_made_and_taken_back(console, live):
    page = console("/console/access")
    form = page.locator("#keys form")
    form.get_by_label("Name").fill("carol")
    form.get_by_role("button", name="Make a key").click()
    secret = page.locator(".secret code").inner_text()
    with live.client() as client:
        me = client.get("/api/2.0/preview/scim/v2/Me", headers={"Authorization": f"Bearer {secret}"})
    assert me.json()["userName"] == "carol"
    grants = page.locator("#grants")
    grants.get_by_label(re.compile("^Who")).fill("user:carol")
    grants.get_by_label(re.compile("^On")).fill("endpoint:assistant")
    grants.get_by_role("button", name="Grant", exact=True).click()
    mine = grants.locator("tbody tr", has_text="user:carol")
    direct = mine.filter(has=page.locator(".cell-link", has_text="Remove"))
    expect(direct).to_contain_text("endpoint:assistant")
    expect(mine).to_have_count(2)  # the index that the agent reads came with it
    expect(page.locator("#audit")).to_contain_text("grants.set")
    budget = page.locator("#budgets tbody tr", has_text="all-minilm-l6-v2")
    expect(budget).to_contain_text(f"user group {XSS[1]}")  # as text
    expect(budget).to_contain_text("500 calls")
    page.locator("#audit tbody .cell-link", has_text="grants.set").first.click()
    expect(page.locator("#audit .payload").last).to_contain_text('"user:carol": "CAN_QUERY"')
    pictures(page, "access")
    direct.locator(".cell-link", has_text="Remove").click()
    expect(mine).to_have_count(0)
    page.locator("#keys tbody tr", has_text="carol").locator(".cell-link").click()
    assert not (wrong := axe(page, "access, with a change and a question open")), "\n".join(wrong)
    page.get_by_role("button", name="Revoke", exact=True).click()
    expect(page.locator("#keys tbody tr", has_text="carol")).to_contain_text("revoked")
    with live.client() as client:
        me = client.get("/api/2.0/preview/scim/v2/Me", headers={"Authorization": f"Bearer {secret}"})
    assert me.status_code in (401, 403)


def test_others_see_their_own(console, live):
    page = console(key=live.told["alice"])
    expect(page.locator(".figure strong").first).to_have_text("1")
    expect(page.get_by_role("link", name="Access")).to_have_count(0)
    page.goto(f"{live.url}/console/access")
    expect(page.locator(".console-body")).to_contain_text("for administrators")
    page.goto(f"{live.url}/console/journal")
    expect(page.locator(".grid")).to_contain_text("alice")
    expect(page.locator(".grid")).not_to_contain_text("admin")
    page.goto(f"{live.url}/console/endpoints?name=assistant")
    expect(page.locator(".detail")).to_contain_text("assistant")
    expect(page.locator(".detail form")).to_have_count(0)
