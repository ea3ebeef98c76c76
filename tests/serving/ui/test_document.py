"""The document page over real HTTP: what a citation opens, and who may."""

from __future__ import annotations

import html
import re

import httpx
import pytest
from playwright.sync_api import expect

from serving.ui.document import document_url, span


@pytest.fixture
def get(world):
    def go(path, *, key=world.admin_key, accept="text/html", **more):
        headers = {"accept": accept, **({"authorization": f"Bearer {key}"} if key else {}), **more}
        return httpx.get(world.url + path, headers=headers)

    return go


def marked(text):
    found = re.search(r'<mark id="passage"[^>]*>(.*?)</mark>', text, re.S)
    return html.unescape(found[1]) if found else None


def article(text):
    return html.unescape(re.sub(r"</?mark[^>]*>", "", re.search(r"<article[^>]*>(.*)</article>", text, re.S)[1]))


def test_passage_is_marked_and_the_text_is_whole(world, get, samples):
    start = samples.guide.index(samples.quotes[0])
    answer = get(f"/documents/{samples.index}/guide?start={start}&end={start + len(samples.quotes[0])}")
    assert answer.status_code == 200
    assert marked(answer.text) == samples.quotes[0]
    assert article(answer.text) == samples.guide
    assert "guide/install.md" in answer.text
    assert samples.index in answer.text
    call = world.engine.invoked[-1]
    assert (call.task, call.endpoint, call.payload, call.credential) == (
        "document",
        samples.index,
        {"id": "guide"},
        world.admin_key,
    )


def test_markup_in_a_document_is_text(get, samples):
    answer = get(f"/documents/{samples.index}/hostile?start=0&end=40")
    assert article(answer.text) == samples.hostile
    assert set(re.findall(r"<(\w+)", answer.text)) <= {
        "html",
        "head",
        "meta",
        "title",
        "link",
        "script",
        "body",
        "header",
        "a",
        "img",
        "div",
        "h1",
        "p",
        "span",
        "main",
        "article",
        "mark",
    }
    assert answer.text.count("<script") == 2  # ours
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2", "5", (2, 5)),
        ("-4", "5", (0, 5)),
        ("2", "999", (2, 10)),
        ("5", "5", None),
        ("9", "3", None),
        ("50", "60", None),
        ("x", "5", None),
        (None, None, None),
        ("1", None, None),
        ("9" * 30, "9" * 31, None),
    ],
)
def test_offsets_are_clamped(start, end, expected):
    assert span(start, end, 10) == expected


def test_unknown_document_is_told_in_words(get, samples):
    answer = get(f"/documents/{samples.index}/nope")
    assert answer.status_code == 404
    assert "No such document" in answer.text
    answer = get("/documents/main.default.other/guide", accept="application/json")
    assert (answer.status_code, answer.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")


def test_without_a_key_browsers_sign_in_and_clients_get_401(get, samples):
    path = f"/documents/{samples.index}/guide?start=1&end=2"
    browser = get(path, key=None)
    assert browser.status_code == 303
    assert browser.headers["location"] == "/login?next=%2Fdocuments%2Fmain.default.docs%2Fguide%3Fstart%3D1%26end%3D2"
    client = get(path, key=None, accept="*/*")
    assert client.status_code == 401
    assert client.json()["error_code"] == "UNAUTHENTICATED"
    assert client.headers["www-authenticate"] == "Bearer"
    assert get(path, key="smk_wrong", accept="*/*").status_code == 401


def test_address_of_an_awkward_id_finds_its_way_back(world, get):
    world.engine.documents["a/b c?d#e%2F&ü"] = ("Odd", "odd.md", "text of it")
    answer = get(document_url("main.default.docs", "a/b c?d#e%2F&ü", 0, 4))
    assert marked(answer.text) == "text"


@pytest.mark.browser
def test_document_opens_at_its_passage(world, sign_in, samples):
    world.engine.documents["long"] = (
        "A long one",
        "long.md",
        "Line of text.\n" * 900 + "The needle.\n" + "Line of text.\n" * 900,
    )
    page = sign_in()
    start = 900 * 14
    page.goto(world.url + document_url(samples.index, "long", start, start + 11))
    passage = page.locator("#passage")
    expect(passage).to_have_text("The needle.")
    expect(passage).to_be_in_viewport()
    expect(passage).to_be_focused()
    start = samples.guide.index(samples.quotes[0])
    page.goto(world.url + document_url(samples.index, "guide", start, start + len(samples.quotes[0])))
    samples.artifacts.mkdir(exist_ok=True)
    page.screenshot(path=samples.artifacts / "document.png")
    page.goto(f"{world.url}/documents/{samples.index}/nope")
    expect(page.get_by_role("heading")).to_have_text("No such document")
