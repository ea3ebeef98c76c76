from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.extract import make_reader
from agents.state import NOT_FOUND, Reading
from retrieval.types import Passage

pytestmark = pytest.mark.anyio


def verify(read: Reading, text: str) -> None:
    """Every citation quotes the document exactly, and its marker stands where it says."""
    for citation in read.citations:
        assert text[citation.start : citation.end] == citation.quote
        assert citation.quote.strip() == citation.quote != ""
        assert read.text[citation.text_start : citation.text_end] == f"[{citation.number}]"


async def answer(question: str, passages: Sequence[Passage], embed: Callable, **options: Any) -> Reading:
    search = [replace(p, similarity=0.5) for p in passages]
    return await make_reader(embed, **options)(question, search)


@pytest.mark.parametrize(
    ("question", "quotes"),
    [
        ("How many days of paid vacation do employees get?", "Employees get 30 days of paid vacation a year."),
        ("When do unused vacation days expire?", "Unused days expire on 31 March of the following year."),
        ("When is a doctor's note needed?", "A doctor's note is needed from the third day on."),
        ("How do I install the client?", "```bash\npip install acme-client\n```"),
        ("How do I delete a table?", '```python\nclient.drop("orders")\n```'),
        ("Where does the client read its settings from?", "The client reads its settings from `acme.toml`."),
        ("What does the client support?", "- macOS 13 and later"),
    ],
)
async def test_it_quotes_what_answers(question: str, quotes: str, passages: list[Passage], embedder: Callable, text: str) -> None:
    read = await answer(question, passages, embedder, threshold=0.0)
    assert quotes in read.text
    assert read.citations
    verify(read, text)


async def test_it_works_without_embeddings(passages: list[Passage], text: str) -> None:
    read = await make_reader(None, threshold=0.0)("When do unused vacation days expire?", passages)
    assert "31 March" in read.text
    verify(read, text)


@pytest.mark.parametrize(
    "question", ["Who won the 1998 World Cup?", "What is the boiling point of ethanol?", "?", "", "the of and"]
)
async def test_what_is_not_there_is_not_answered(question: str, passages: list[Passage], embedder: Callable) -> None:
    search = [replace(p, similarity=0.05) for p in passages]
    read = await make_reader(embedder)(question, search)
    assert read == Reading(NOT_FOUND, abstained=True, support=read.support)
    assert (await make_reader(embedder)(question, [])).abstained


async def test_no_sentence_is_quoted_twice(passages: list[Passage], embedder: Callable) -> None:
    overlapping = [*passages, replace(passages[0], id="again"), replace(passages[1], id="again too")]
    read = await answer("How many days of paid vacation do employees get?", overlapping, embedder, threshold=0.0)
    assert len({c.quote for c in read.citations}) == len(read.citations)


async def test_links_and_attributes_are_reduced_in_the_answer_and_exact_in_the_quote(embedder: Callable) -> None:
    text = 'Use the [client](../client.md#x){.md-button} class of [Agent][pkg.Agent], see [site](https://x.org "t").'
    passage = Passage("p", "d", "i", "a.md", "T", (), text, 0, len(text), similarity=0.5)
    read = await answer("Which client class to use?", [passage], embedder, threshold=0.0)
    assert read.text == 'Use the client class of Agent, see [site](https://x.org "t"). [1]'
    verify(read, text)


BLOCKS = [
    "Employees get 30 days of vacation. Dr. Smith agrees, e.g. on Mondays!",
    "- one item. With two sentences.\n- another item",
    "1. first\n2. second\n   continued",
    "```py\nx = 1  # vacation\n```",
    "    ```\n    indented\n    ```",
    "| a | b |\n|---|---|\n| vacation | 30 |",
    "# Heading about vacation",
    "Title\n=====",
    '!!! note "Vacation"',
    "Vacation:\n\n- 30 days\n- paid",
    "```",
    "Was ist Urlaub? 休暇は30日です。 Ünïcode…",
    "   ",
    "{{ template }}",
    "\tTabs\r\nand returns",
]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=9),
    st.sampled_from(["\n\n", "\n"]),
    st.integers(0, 40),
    st.integers(0, 40),
    st.sampled_from(["How many days of vacation?", "how do I code vacation", "items"]),
)
async def test_offsets_hold_whatever_the_text(parts: list[str], joint: str, before: int, after: int, question: str) -> None:
    text = joint.join(parts)
    start, end = min(before, len(text)), max(min(before, len(text)), len(text) - after)
    passage = Passage("p", "d", "i", "a.md", "T", (), text[start:end], start, end, similarity=0.5)
    read = await make_reader(None, threshold=0.0)(question, [passage])
    verify(read, text)
