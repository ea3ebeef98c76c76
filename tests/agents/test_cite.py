from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.cite import CitationFilter, Marker, best_place, make_check
from retrieval.types import Passage

pytestmark = pytest.mark.anyio

P = [
    Passage("a", "d", "i", "a.md", "Vacation", (), "Employees get 30 days of paid vacation a year.", 0, 46),
    Passage("b", "d", "i", "a.md", "Sick", (), "A doctor's note is needed from the third day on.", 50, 98),
]


async def run(text: str, cuts: list[int] | None = None, passages: list[Passage] = P) -> str:
    filtered = CitationFilter(make_check(passages))
    bounds = [0, *sorted(c % (len(text) + 1) for c in cuts or []), len(text)]
    out: list[str | Marker] = []
    for a, b in pairwise(bounds):
        out += await filtered.feed(text[a:b])
    out += await filtered.finish()
    return "".join(p if isinstance(p, str) else p.text for p in out)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Employees get 30 days of vacation [1].", "Employees get 30 days of vacation [1]."),
        ("Employees get 30 days of vacation. [1] More.", "Employees get 30 days of vacation. [1] More."),
        ("Employees get 31 days of vacation [1].", "Employees get 31 days of vacation."),
        ("Employees get 30 days of vacation [7].", "Employees get 30 days of vacation."),
        ("Employees get 30 days of paid vacation [1, 2].", "Employees get 30 days of paid vacation [1]."),
        ("A doctor's note is needed from the third day [1][2].", "A doctor's note is needed from the third day [2]."),
        ("Paid vacation: 30 days a year【1】 ok", "Paid vacation: 30 days a year[1] ok"),
        ("Elephants are grey and heavy [1] indeed.", "Elephants are grey and heavy indeed."),
        ("Use `x[1]` for the list [2] there.", "Use `x[1]` for the list there."),
        ("```py\na[1] = b[2]\n```\nDone", "```py\na[1] = b[2]\n```\nDone"),
        ("A [link](http://x.y) and [not a marker] stay.", "A [link](http://x.y) and [not a marker] stay."),
        ("Odd ` tick, elephants are grey [1]\nnext", "Odd ` tick, elephants are grey \nnext"),
        ("Vacation is 30 days a year [1] and a doctor's note comes on the third day [2].",) * 2,
        ("Trailing [", "Trailing ["),
        ("Nested [1[2]] and [[9]1] here", "Nested [1 and [1 here"),
        ("Trailing [1", "Trailing [1"),
    ],
)
async def test_markers_are_kept_only_where_their_passage_supports_them(said: str, shown: str) -> None:
    assert await run(said) == shown


PIECES = [
    "Employees get 30 days of paid vacation a year",
    "A doctor's note is needed from the third day on",
    "Elephants are grey",
    " [1]",
    "[2]",
    " [1, 2]",
    "[9]",
    "[1",
    "]",
    ". ",
    "\n",
    "\n\n",
    "`",
    "```",
    " ",
    "a[0]",
    "【1】",
    "[^2]",
    "[1-2]",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14), st.lists(st.integers(0, 10_000), max_size=12))
async def test_chunking_changes_nothing(parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    assert await run(text, cuts) == await run(text)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from([p for p in PIECES if "`" not in p]), max_size=14))
async def test_no_unsupported_marker_leaks(parts: list[str]) -> None:
    text = "".join(parts)
    shown = await run(text, passages=[])
    assert not re.search(r"\[\^?\d+(?:\s*[,;–-]\s*\d+)*\]|【", shown)


async def test_text_is_not_held_back() -> None:
    filtered = CitationFilter(make_check(P))
    assert await filtered.feed("Employees get") == ["Employees get"]
    assert await filtered.feed(" 30 days of vacation [") == [" 30 days of vacation"]
    assert await filtered.feed("1") == []
    assert await filtered.feed("] a") == [" ", Marker(1, 0, 46), " a"]


async def test_embeddings_let_a_paraphrase_pass_and_numbers_still_count() -> None:
    import numpy as np

    async def alike(texts):
        return np.ones((len(texts), 2), np.float32) / np.sqrt(2)

    check = make_check(P, alike)
    assert await check(1, "Staff enjoy thirty holidays annually, vacation included") is None  # 30 in digits or words, but too far
    assert await check(1, "Staff have 30 vacation days annually on top") is not None
    assert await check(1, "Staff have 29 vacation days annually") is None


def test_best_place_is_the_sentence() -> None:
    passage = Passage("a", "d", "i", "a.md", "T", (), "Cats sleep. Dogs bark loudly at night. Birds sing.", 0, 50)
    start, end = best_place("At night dogs bark", passage)
    assert passage.text[start:end] == "Dogs bark loudly at night."
