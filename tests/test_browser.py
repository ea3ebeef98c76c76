"""The chat page in a real browser over the real server: ask, read, open the cited passage. Makes the README's picture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.live import ROOT, serving, wait_until

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
        mark.wait_for(timeout=30_000)
        assert mark.is_visible()
        assert mark.inner_text().strip()
        outside = [url for url in asked_of if not url.startswith((live.url, live.url.replace("http", "ws", 1), "data:", "blob:"))]
        assert outside == []
        page.close()


@pytest.mark.browser
def test_a_thumb_with_a_comment_is_feedback_on_the_trace(tmp_path: Path, chromium: Browser) -> None:
    with serving(tmp_path / "home", ROOT / "docs", SMALTI_MLFLOW="true") as live, live.client() as client:
        page = chromium.new_page()
        page.goto(live.told["chat"])
        box = page.get_by_role("textbox").first
        box.fill("How do I back up the state?")
        box.press("Enter")
        page.get_by_role("button", name="Helpful", exact=True).click(timeout=30_000)
        comment = page.get_by_role("textbox", name=re.compile("What was good"))
        comment.fill("short and right")
        comment.press("Enter")
        (row,) = client.get("/api/2.0/smalti/journal", params={"endpoint": "assistant"}).json()["rows"]
        trace = f"/api/3.0/mlflow/traces/tr-{row['databricks_request_id']}"

        def given() -> list[dict]:
            answer = client.get(trace)
            return answer.json()["trace"]["trace_info"].get("assessments", []) if answer.status_code == 200 else []

        wait_until(lambda: any(each.get("rationale") == "short and right" for each in given()), 60)
        assert [each["feedback"]["value"] for each in given()] == [True]
        page.goto(f"{live.url}/console")
        expect(page.locator(".figure", has_text="Helpful").locator("strong")).to_have_text("100%")
        expect(page.locator(".plot", has_text="Feedback").locator("svg")).to_be_visible()
        page.goto(f"{live.url}/console/journal?request={row['databricks_request_id']}")
        link = page.get_by_role("link", name="Its trace in MLflow").get_attribute("href") or ""
        experiment = client.get(trace).json()["trace"]["trace_info"]["trace_location"]["mlflow_experiment"]["experiment_id"]
        found = f"/mlflow/#/experiments/{experiment}/traces?selectedEvaluationId=tr-{row['databricks_request_id']}"
        assert link == found
        page.goto(live.url + link)
        expect(page.get_by_text("How do I back up the state?").first).to_be_visible(timeout=60_000)
        page.screenshot(path=ARTIFACTS / "trace.png")
        page.close()
