"""Chunks are exact spans, along structure, of a size the encoder sees."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import BadRequest, Encoder
from retrieval.chunk import CONTEXT, LONGEST, STRATEGIES, TARGET, Chunking, chunk, context, embedded_text, sentences
from retrieval.load import plain


def words(text: str) -> np.ndarray:
    """A token for each word: fast, and enough to test the cutting."""
    return np.array([m.start() for m in re.finditer(r"\S+", text)], dtype=np.int64)


MARKDOWN = st.lists(
    st.one_of(
        st.sampled_from(
            ["# One\n", "## Two\n", "### Three\n", "Title\n=====\n", "\n", "---\n", "```python\nx = 1\n\ny = 2\n```\n", "~~~\n"]
        ),
        st.sampled_from(
            [
                "- item one\n- item two\n  - nested\n",
                "1. first\n2. second\n",
                "| a | b |\n|---|---|\n| 1 | 2 |\n",
                "> quoted. Yes.\n",
            ]
        ),
        st.text(alphabet="ab. !?\n\t#*`|-_é🙂\u2028\x0b\x85\xa0", max_size=80),
        st.lists(st.sampled_from(["alpha", "beta.", "gamma!", "e.g.", "Delta", "東京。"]), max_size=60).map(
            lambda w: " ".join(w) + "\n\n"
        ),
    ),
    max_size=25,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(MARKDOWN, st.sampled_from(["text/markdown", "text/plain"]), st.integers(8, 40), st.sampled_from(STRATEGIES))
def test_spans_are_exact_and_cover_the_words(text: str, media: str, target: int, strategy: str) -> None:
    chunks = chunk(text, words, media_type=media, plan=Chunking(strategy, target))
    last = 0
    for c in chunks:
        assert text[c.start : c.end] == c.text
        assert c.text == c.text.strip() != ""
        assert c.start >= last, "chunks are in order and do not overlap"
        last = c.end
        assert len(words(c.text)) <= target or len(c.text.split()) == 1
    if media == "text/plain":
        assert "".join("".join(c.text.split()) for c in chunks) == "".join(text.split()), "nothing is lost"


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=400))
def test_sentences_are_in_order_and_lose_nothing(text: str) -> None:
    spans = sentences(text)
    assert all(a < b for a, b in spans)
    assert all(x[1] <= y[0] for x, y in pairwise(spans))
    assert "".join("".join(text[a:b].split()) for a, b in spans) == "".join(text.split())


def test_sentences_stop_at_ends_not_at_abbreviations() -> None:
    text = 'Use a tool, e.g. Ruff. It is fast! "Really?" Dr. Smith asked. Version 1.2 works.'
    assert [text[a:b] for a, b in sentences(text)] == [
        "Use a tool, e.g. Ruff.",
        "It is fast!",
        '"Really?"',
        "Dr. Smith asked.",
        "Version 1.2 works.",
    ]


def test_headings_are_kept_outermost_first() -> None:
    text = "# Guide\n\nIntro.\n\n## Install\n\nRun it.\n\n### On `Linux`\n\nUse apt.\n\n## Use [it](x.md)\n\nGo.\n"
    assert [(c.heading, c.text) for c in chunk(text, words)] == [
        (("Guide",), "Intro."),
        (("Guide", "Install"), "Run it."),
        (("Guide", "Install", "On Linux"), "Use apt."),
        (("Guide", "Use it"), "Go."),
    ]


def test_hashes_in_code_are_no_headings_and_front_matter_is_no_text() -> None:
    text = "---\ntitle: Deploy\ntags: [a]\n---\n# Run\n\n```sh\n# not a heading\nmake\n```\n"
    (only,) = chunk(text, words)
    assert only.heading == ("Run",)
    assert only.text == "```sh\n# not a heading\nmake\n```"


def test_a_document_of_headings_alone_is_not_lost() -> None:
    assert [c.text for c in chunk("# Only a title\n", words)] == ["# Only a title"]


def test_sentences_code_and_tables_stay_whole_where_they_fit() -> None:
    sentence = "This sentence has exactly eight words in it. "
    code = "```python\ndef f():\n    return 1\n```\n"
    table = "| a | b |\n|---|---|\n| 1 | 2 |\n"
    text = f"# T\n\n{sentence * 9}\n\n{code}\n{table}"
    chunks = chunk(text, words, plan=Chunking(tokens=30))
    assert all(c.text.endswith((".", "```", "|")) for c in chunks)
    assert any(code.strip() in c.text for c in chunks)
    assert any(table.strip() in c.text for c in chunks)


def test_a_long_table_is_cut_between_rows_and_a_list_between_items() -> None:
    table = "| k | v |\n|---|---|\n" + "".join(f"| key{i} | value {i} |\n" for i in range(40))
    rows = [line for c in chunk(table, words, plan=Chunking(tokens=40)) for line in c.text.splitlines()]
    assert rows == table.splitlines()
    items = "".join(f"- item {i} has five words\n" for i in range(30))
    assert all(line.startswith("- item") for c in chunk(items, words, plan=Chunking(tokens=25)) for line in c.text.splitlines())


def test_no_chunk_exceeds_what_the_encoder_sees(encoder: Encoder) -> None:
    text = "# Long\n\n" + "A sentence with several common words goes here. " * 300 + "\n\n" + "x" * 5000 + "\n\n" + "wörd" * 300
    chunks = chunk(text, encoder.token_starts)
    sizes = [encoder.count_tokens(c.text) for c in chunks if len(c.text.split()) > 1]
    assert max(sizes) <= TARGET
    assert sum(size > TARGET * 0.8 for size in sizes) > 10, "chunks are filled, not cut small"


def test_a_picture_in_base64_is_cut_though_it_is_one_word(encoder: Encoder) -> None:
    text = f"# Logo\n\nThe logo is blue.\n\n![logo](data:image/png;base64,{'iVBORw0KGgo' * 20_000})\n\nIt is old.\n"
    chunks = chunk(text, encoder.token_starts)
    assert max(len(c.text) for c in chunks) == LONGEST
    assert all(text[c.start : c.end] == c.text for c in chunks)
    assert "".join("".join(c.text.split()) for c in chunks) == "".join(text.removeprefix("# Logo").split())


def test_pages_and_given_headings_part_a_text() -> None:
    text = "Page one text.\n\nMore here.\n\nPage two text."
    chunks = chunk(text, words, media_type="application/pdf", pages=[0, text.index("Page two")])
    assert [(c.page, c.text) for c in chunks] == [(1, "Page one text.\n\nMore here."), (2, "Page two text.")]
    rst = "Title\n=====\n\nBody.\n\nSub\n---\n\nDeep.\n"
    chunks = chunk(rst, words, media_type="text/x-rst", headings=[(0, 1, "Title"), (rst.index("Sub"), 2, "Sub")])
    assert [c.heading for c in chunks] == [("Title",), ("Title", "Sub")]


def test_context_says_nothing_twice() -> None:
    assert context("Guide", ("Guide", "Install")) == "Guide > Install"
    long = context("Title", [f"heading number {i}" for i in range(60)])
    seen = embedded_text(long, "The text.", words)
    assert seen.endswith("heading number 59\nThe text.")
    assert len(words(seen)) == CONTEXT + 2
    assert plain("Use [`Agent`][x.Agent] **now** {#anchor}") == "Use Agent now"


def test_sentences_fill_chunks_that_overlap() -> None:
    text = "# Kiln\n\n" + " ".join(f"Sentence {i} says a little more." for i in range(12)) + "\n\n```\ncode stays\n```\n"
    cut = chunk(text, words, plan=Chunking("sentences", 40, 12))
    assert len(cut) > 2
    for one, other in pairwise(cut):
        assert one.start < other.start < one.end < other.end, "the next one repeats an end, and adds to it"
        assert text[other.start : one.end].startswith("Sentence")
    assert cut[-1].text.endswith("```\ncode stays\n```")
    assert {c.heading for c in cut} == {("Kiln",)}
    assert chunk(text, words, plan=Chunking(tokens=40, overlap=0)) == chunk(text, words, plan=Chunking("structure", 40))


@pytest.mark.parametrize("plan", [{"strategy": "magic"}, {"tokens": 7}, {"tokens": 201}, {"overlap": 101}, {"overlap": -1}])
def test_a_chunking_that_cannot_be_is_refused(plan: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        Chunking(**plan)
