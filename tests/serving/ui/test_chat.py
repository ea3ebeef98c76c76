"""The chat used as a person would, in a real Chromium."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.browser


def ask(page, text):
    page.get_by_label("Your question").fill(text)
    page.keyboard.press("Enter")


def test_a_question_streams_its_answer_with_citations(world, sign_in, samples):
    page = sign_in()
    ask(page, "How do I install it?")
    page.get_by_text("You need Python").wait_for()
    page.get_by_text("Quoted from documents").first.wait_for()
    samples.artifacts.mkdir(exist_ok=True)
    page.screenshot(path=samples.artifacts / "chat.png")
