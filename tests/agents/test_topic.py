"""What is answered to a message that names a topic."""

from __future__ import annotations

import pytest

from agents.extract import make_reader
from agents.topic import topic_of
from retrieval.types import Passage


def passage(number: int, heading: tuple[str, ...], text: str) -> Passage:
    return Passage(f"p{number}", "d", "main.default.docs", "guide.md", "Guide", heading, text, 0, len(text), similarity=0.5)


FOUND = [
    passage(1, ("Guide",), "Welcome to the guide. It has chapters on backups, limits and more."),
    passage(2, ("Guide", "Costs"), "Backups cost two cents. A backup is billed by the day."),
    passage(
        3,
        ("Guide", "Backups"),
        "| name |\n|---|\n| full |\n\nCopy the folder. A copy made while it runs is whole.",
    ),
    passage(4, ("Guide", "Limits"), "Calls have a rate that is bounded. A call over it is refused.\n\n```\nx\n```\n\nEnd."),
]


@pytest.mark.parametrize(
    ("message", "topic"),
    [
        ("What is said about Backups?", "Backups"),
        ("could you please tell me about rate limits", "rate limits"),
        ("rate limits", "rate limits"),
        ("summarize the section on backups", "backups"),
        ("What do the documents say about overtime?", "overtime"),
        ("What is a backup?", ""),
        ("explain how I restart it", ""),
        ("who wrote Hamlet", ""),
        ("a long sentence that makes a claim about copper and heat", ""),
        ("the of", ""),
    ],
)
def test_a_topic_is_told_from_a_question(message: str, topic: str) -> None:
    assert topic_of(message) == topic


@pytest.mark.anyio
@pytest.mark.parametrize("message", ["backups", "What is said about backups?", "Tell me more about Backups!"])
async def test_a_topic_is_met_with_the_opening_of_its_section(message: str) -> None:
    reading = await make_reader()(message, FOUND)
    assert reading.text == "Copy the folder. [1] A copy made while it runs is whole. [1]"
    assert [c.quote for c in reading.citations] == ["Copy the folder.", "A copy made while it runs is whole."]
    assert not reading.abstained


@pytest.mark.anyio
async def test_a_heading_may_hold_a_part_of_the_topic_and_its_text_the_rest() -> None:
    reading = await make_reader()("rate limits", FOUND)
    assert reading.text.startswith("Calls have a rate that is bounded. [1] A call over it is refused. [1]")


@pytest.mark.anyio
async def test_a_topic_that_nothing_is_written_about_is_declined() -> None:
    assert (await make_reader()("Tell me about kangaroos", FOUND)).abstained


@pytest.mark.anyio
async def test_a_piece_of_data_is_not_quoted_as_a_sentence() -> None:
    data = '"overlap": [{"name": "rate", "unit": "s", "limit": {"rate": 5, "burst": {"of": ["x", "y"]}}}], "limits": {}'
    prose = "The rate limit is five calls a second."
    found = [passage(1, (), data), passage(2, (), prose)]
    reading = await make_reader(threshold=0.0)("What is the rate limit?", found)
    assert prose in reading.text
    assert "overlap" not in reading.text
