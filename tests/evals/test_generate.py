from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from evals.generate import distinct, generate

TEXTS = (
    ("keys.md", "Keys", "Pepper is a secret that every key's digest is made with. It lives for 90 days."),
    ("keys.md", "Rotating a key", "A rotated key goes on working for 24 hours after its successor."),
    ("wal.md", "The write-ahead log", "Journal is an append-only file which loses no record at all."),
)
PASSAGES = [{"source": source, "heading": [heading], "text": text} for source, heading, text in TEXTS]


@pytest.mark.anyio
async def test_templates_ask_what_the_passages_hold_and_some_that_nothing_does() -> None:
    rows = await generate(PASSAGES, 8, share=0.25)
    assert rows == await generate(PASSAGES, 8, share=0.25)
    answerable = [row for row in rows if not row.get("unanswerable")]
    assert len(rows) - len(answerable) == 2
    texts = {passage["source"]: "" for passage in PASSAGES}
    for passage in PASSAGES:
        texts[passage["source"]] += passage["text"]
    for row in answerable:
        assert all(fact in texts[row["expected_sources"][0]] for fact in row.get("expected_facts", ()))
    asked = {row["question"] for row in answerable}
    assert {"What is Pepper?", "What is Journal?", "What is written about Rotating a key?"} <= asked
    assert "Which number belongs in: A rotated key goes on working for ____ hours after its successor." in asked
    assert {row["expected_sources"][0] for row in answerable} == {"keys.md", "wal.md"}


@pytest.mark.anyio
async def test_a_models_answer_must_be_in_its_passage() -> None:
    said = iter([
        'Sure! {"question": "How long does a key live?", "answer": "90 days", "unanswerable": "Who invented keys?"}',
        '{"question": "How long?", "answer": "a year", "unanswerable": "Why?"}',
        "I cannot do that.",
    ])  # fmt: skip

    async def ask(prompt: str) -> str:
        assert "----" in prompt
        return next(said)

    rows = await generate(PASSAGES, 10, share=0.5, ask=ask, seed=0)
    assert [row["question"] for row in rows if not row.get("unanswerable")] in ([], ["How long does a key live?"])
    assert all(row["made_by"] == "model" for row in rows)


@pytest.mark.anyio
async def test_a_model_gives_one_question_a_passage_and_one_without_answer() -> None:
    async def ask(prompt: str) -> str:
        text = prompt.split("----")[1].strip()
        return json.dumps({"question": f"About {text[:9]}?", "answer": text[:20], "unanswerable": f"Beyond {text[:9]}?"})

    rows = await generate(PASSAGES, 4, share=0.5, ask=ask)
    assert [bool(row.get("unanswerable")) for row in rows] == [False, False, True, True]
    assert all(row["unchecked"] for row in rows[2:])


@pytest.mark.anyio
async def test_a_model_that_fails_now_and_then_costs_those_passages_alone() -> None:
    asked = 0

    async def ask(prompt: str) -> str:
        nonlocal asked
        asked += 1
        if asked == 2 or prompt.count("never"):
            raise ConnectionError("503")
        text = prompt.split("----")[1].strip()
        return json.dumps({"question": f"About {text}?", "answer": text[:20]})

    passages = [{"text": f"Number {n} is about thing {'abcdefgh'[n] * 3} alone.", "source": f"{n}.md"} for n in range(8)]
    failures: list[BaseException] = []
    rows = await generate(passages, 20, share=0, ask=ask, failures=failures)
    assert (len(rows), [str(each) for each in failures]) == (7, ["503"])
    with pytest.raises(ConnectionError):
        await generate([{"text": "never", "source": "a.md"}] * 6, 5, ask=ask)


def test_questions_that_say_or_mean_the_same_are_one() -> None:
    def made(question: str, by: str = "model") -> dict[str, Any]:
        return {"question": question, "made_by": by}

    rows = [made("What is a key?"), made("what is a KEY"), made("Define key"), made("Define log", "template"), made("")]
    assert [row["question"] for row in distinct(rows)] == ["What is a key?", "Define key", "Define log"]

    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.ones((len(texts), 1), np.float32)

    assert [row["question"] for row in distinct(rows, embed)] == ["What is a key?", "Define log"]


@pytest.mark.anyio
async def test_counts_and_shares_out_of_range_are_refused() -> None:
    for count, share in ((0, 0.5), (5, 1.5)):
        with pytest.raises(ValueError, match="out of range"):
            await generate(PASSAGES, count, share=share)
    assert await generate([], 5) == []
