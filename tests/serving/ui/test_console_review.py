"""Review queues in the console: two people judge, one takes what they agree on."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from tests.serving.ui.test_accessible import both
from tests.serving.ui.test_console import pictures
from tests.serving.ui.world import XSS

pytestmark = pytest.mark.browser

AT = "/api/2.0/smalti/reviews"
LABELS = [
    {"name": "correct", "input": {"type": "boolean"}, "instruction": f"By the passages alone. {XSS[1]}"},
    {"name": "tone", "title": f"Tone {XSS[0]}", "input": {"type": "categorical", "options": ["kind", XSS[1]]}, "required": False},
    {"name": "stars", "input": {"type": "numeric", "min": 1, "max": 5}, "required": False},
    {"name": "expected_facts", "type": "expectation", "input": {"type": "text_list"}, "required": False},
]


@pytest.fixture(scope="module")
def queue(live):
    """Three answers that two people judge; alice has judged the first."""
    body = {
        "name": "quality", "endpoint": "assistant", "labels": LABELS, "reviewers": ["user:alice"], "reviews_per_item": 2,
        "instruction": f"Judge what is said, not how. {XSS[1]}",
    }  # fmt: skip
    passage = {"source": XSS[1], "text": f"You need Python 3.11. {XSS[0]}"}
    with live.client() as client:
        client.post(AT, json=body).raise_for_status()
        calls = client.get("/api/2.0/smalti/journal", params={"endpoint": "assistant"}).json()["rows"]
        asked = calls[-1]["databricks_request_id"]
        items = [
            {"question": "What do I need?", "answer": f"Python **3.11**. {XSS[1]}", "passages": [passage], "request_id": asked},
            {"question": f"Who prints {XSS[0]}?", "answer": "The first start."},
            {"question": "How long is this? " + "word " * 300, "answer": "\n\n".join(XSS)},
        ]
        assert client.post(f"{AT}/quality/items", json={"items": items}).json() == {"added": 3}
        said = {"labels": {"correct": True}, "comment": XSS[1]}
        at = f"{AT}/quality/items/{asked}/labels"
        client.post(at, json=said, headers={"Authorization": f"Bearer {live.told['alice']}"}).raise_for_status()
    yield body["name"]
    with live.client() as client:
        client.delete(f"{AT}/quality")


def test_answers_are_judged_one_after_the_other_and_become_a_dataset(console, live, queue):
    page = console("/console/review")
    page.get_by_role("button", name="Open quality").click()
    detail, item = page.locator(".detail"), page.locator(".review-item")
    expect(detail.get_by_role("progressbar")).to_have_accessible_name(
        "0 of 3 answers of assistant reviewed, 2 reviews each; 0 by you"
    )
    expect(item.locator(".question")).to_contain_text(f"Who prints {XSS[0]}?")  # nobody has judged it
    expect(detail.locator(".verdict")).to_contain_text(XSS[1])
    detail.locator(".grid").first.get_by_role("button", name="Open What do I need?").click()
    expect(item.locator(".question")).to_have_text("What do I need?")
    expect(item.locator(".prose strong")).to_have_text("3.11")
    expect(item.locator(".payload")).to_contain_text(XSS[0])
    expect(item.get_by_role("link", name="In the journal")).to_be_visible()
    expect(item.get_by_role("radio", checked=True)).to_have_count(0)  # what others said is not told before
    expect(page).to_have_url(re.compile("item="))
    pictures(page, "review")
    assert not (wrong := both(page, "review")), "\n".join(wrong)
    item.get_by_role("group", name="Correct").get_by_text("yes", exact=True).click()
    item.get_by_label("Stars").fill("4")
    item.get_by_label("Expected facts").fill(f"Python 3.11\n{XSS[1]}")
    item.get_by_role("button", name="Save and go on").click()
    expect(item.locator(".question")).to_contain_text("Who prints")
    item.get_by_role("group", name="Correct").get_by_text("no", exact=True).click()
    item.get_by_role("button", name="Save and go on").click()
    expect(item.locator(".question")).to_contain_text("How long is this?")
    expect(detail.locator(".grid").first).to_contain_text(f"correct: yes, expected_facts: Python 3.11; {XSS[1]}, stars: 4")
    agreement = detail.locator(".grid").nth(1)
    expect(agreement).to_contain_text("admin and alice")
    expect(agreement).to_contain_text("100%")
    with page.expect_download() as got:
        detail.get_by_role("button", name="Dataset").click()
    assert got.value.suggested_filename == "quality.jsonl"
    rows = [json.loads(line) for line in got.value.path().read_text().splitlines()]
    assert [row["question"] for row in rows] == ["What do I need?", f"Who prints {XSS[0]}?"]
    assert (rows[0]["labels"]["correct"], rows[0]["expected_facts"]) == (True, ["Python 3.11", XSS[1]])
    assert rows[1]["labels"] == {"correct": False}
    detail.get_by_label("Questions that match").fill("^Who prints")
    detail.get_by_role("button", name="Add", exact=True).click()
    expect(detail.get_by_role("progressbar")).to_have_accessible_name(
        "1 of 4 answers of assistant reviewed, 2 reviews each; 2 by you"
    )


def test_a_queue_is_made_filled_and_deleted(console, live):
    page = console("/console/review")
    new = page.locator("#new-queue")
    new.get_by_label("Name").fill("tone of voice")
    new.get_by_label("Endpoint").select_option("assistant")
    new.get_by_label(re.compile("^Labels")).fill("correct:boolean, tone: kind|rude")
    new.get_by_role("button", name="Make").click()
    expect(page.get_by_role("alert")).to_contain_text("name")  # no blanks in a name
    new.get_by_label("Name").fill("tone")
    new.get_by_role("button", name="Make").click()
    detail = page.locator(".detail")
    expect(detail.locator(".empty-state").first).to_contain_text("No answer is in this queue yet")
    with live.client() as client:
        made = client.get(f"{AT}/tone").json()
        assert [each["input"]["type"] for each in made["labels"]] == ["boolean", "categorical"]
    detail.get_by_role("button", name="Delete the queue").click()
    detail.get_by_role("alertdialog").get_by_role("button", name="Delete the queue").click()
    expect(detail).to_have_count(0)


def test_a_reviewer_judges_and_manages_nothing(console, live, queue):
    page = console("/console/review?queue=quality", key=live.told["alice"])
    detail = page.locator(".detail")
    expect(detail.locator(".review-item .question")).to_be_visible()
    expect(detail.get_by_role("button", name="Dataset")).to_have_count(0)
    expect(detail).not_to_contain_text("Agreement")
    expect(detail).not_to_contain_text("admin")
    with live.client() as client:
        key = client.post("/api/2.0/smalti/keys", json={"name": "dora"}).json()["key"]
    other = console("/console/review", key=key)
    expect(other.locator(".empty-state")).to_contain_text("No queue for you to review")
    other.goto(f"{live.url}/console/review?queue=quality")
    expect(other.get_by_role("alert")).to_contain_text("There is no review queue 'quality'")
