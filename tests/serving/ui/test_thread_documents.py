"""A document handed to a conversation in the chat: answers cite it there, and it goes with the conversation."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import expect

from tests.live import KEY
from tests.serving.ui.test_accessible import both
from tests.serving.ui.test_chat import ask, done
from tests.serving.ui.world import ARTIFACTS, XSS

pytestmark = pytest.mark.browser

BADGE = "# Badges\n\nThe badge of Quillon Ferndale has the number 7741 and is kept in the blue drawer of the archive.\n"
QUESTION = "What number has the badge of Quillon Ferndale?"


@pytest.fixture
def chat(live, world, context):
    context.asked_of = live.url

    def go(key=KEY):
        page = context.new_page()
        page.goto(f"{live.url}/login")
        page.get_by_label("Access key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_label("Your question").wait_for()
        page.wait_for_function("window.did_handshake")
        return page

    return go


def attach(page, name, content, media="text/markdown"):
    chooser = page.get_by_label("Add a document to this conversation", exact=True)
    chooser.set_input_files({"name": name, "mimeType": media, "buffer": content})


def test_an_answer_cites_what_was_handed_in_there_and_nowhere_else(chat, live):
    page = chat()
    name = f"badge {XSS[1].replace('/', '')}.md"  # a file's name is text
    attach(page, name, BADGE.encode())
    expect(page.locator(".attached li")).to_contain_text("onerror")
    expect(page.get_by_role("button", name="Remove badge")).to_be_visible()
    ask(page, QUESTION)
    answer = done(page)
    expect(answer).to_contain_text("7741")
    chip = answer.locator("a.cite").first
    chip.click()
    expect(page.frame_locator("#panel iframe").locator("#passage")).to_contain_text("7741")
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / "chat-document.png")
    page.keyboard.press("Escape")
    assert not (wrong := both(page, "a conversation with a document")), "\n".join(wrong)
    expect(page).to_have_url(re.compile("thread="))
    address, document = page.url, live.url + (chip.get_attribute("href") or "")

    def status(key):
        return httpx.get(document, headers={"Authorization": f"Bearer {key}"}).status_code

    assert (status(KEY), status(live.told["alice"])) == (200, 403)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".attached li")).to_have_count(0)
    ask(page, QUESTION)  # in another conversation of the same person
    expect(done(page)).not_to_contain_text("7741")
    page.goto(address)
    expect(page.locator(".attached li")).to_have_count(1)
    ask(page, "In which drawer is the badge of Quillon Ferndale?")
    expect(done(page)).to_contain_text("blue drawer")
    question = page.locator(".question").last  # asked anew, it goes on in a conversation that has the document too
    question.hover()
    question.get_by_role("button", name="Edit and send again").click()
    page.get_by_label("Edit your question").fill(QUESTION)
    page.locator(".edit-form").get_by_role("button", name="Send").click()
    expect(page.locator(".question").last).to_contain_text("What number")
    expect(done(page)).to_contain_text("7741")
    page.goto(address)
    expect(page.locator(".attached li")).to_have_count(1)
    row = page.locator(".thread.current")
    row.hover()
    row.locator(".delete").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_text("What would you like to know?")).to_be_visible()
    expect(page.locator(".thread.current")).to_have_count(0)
    page.wait_for_function("url => fetch(url).then(answer => answer.status === 404)", arg=document)


def test_what_cannot_be_read_is_told_and_a_document_is_taken_out(chat):
    page = chat()
    attach(page, "broken.pdf", b"no PDF at all", "application/pdf")
    expect(page.get_by_role("alert")).to_contain_text("broken.pdf cannot be read")
    expect(page.locator(".attached li")).to_have_count(0)
    attach(page, "badge.md", BADGE.encode())
    page.get_by_role("button", name="Remove badge.md").click()
    expect(page.locator(".attached li")).to_have_count(0)
    attach(page, "x" * 300 + ".md", BADGE.encode())
    expect(page.get_by_role("button", name="Remove x")).to_be_visible()
    page.set_viewport_size({"width": 390, "height": 844})
    page.screenshot(path=ARTIFACTS / "chat-document-phone.png")


def test_a_file_from_another_site_or_without_a_session_is_refused(live):
    own = {"Origin": live.url}
    assert httpx.post(f"{live.url}/uploads?name=a.md", content=b"x", headers=own).status_code == 401
    told = httpx.post(f"{live.url}/uploads?name=a.md", content=b"x", headers={"Origin": "http://evil.example"})
    assert (told.status_code, "another site" in told.json()["message"]) == (403, True)
